"""The same file on every provider that works here: the CPU's maps, and no added node away from the device.

The CUDA cases run wherever a GPU is present and are skipped, saying so, elsewhere.
"""

import networks
import numpy as np
import pytest

import onnxcam
from onnxcam.export.gradients.builder import NODE_PREFIX

pytestmark = pytest.mark.torch

NETWORKS = ("resnet18", "mobilenet_v3_large", "densenet121", "convnext_tiny", "timm:vit_tiny_patch16_224")


def heatmaps(path, providers, x, **options):
    explainer = onnxcam.Explainer(path, providers, record_placement=True, **options)
    return explainer, explainer.explain_tensor(x, target=[3, 5])


@networks.each(*NETWORKS)
@pytest.mark.parametrize(("tf32", "tolerance"), [("0", 1e-4), ("1", 1e-3)], ids=["exact", "tf32"])
def test_maps_equal_the_cpus(exported, provider, tf32, tolerance):
    if provider == "cpu" and tf32 == "1":
        pytest.skip("TF32 is CUDA's")
    x = networks.images(exported.name, 2).numpy()
    _, expected = heatmaps(exported.path, ["cpu"], x)
    options = {"provider_options": [{"use_tf32": tf32}]} if provider == "cuda" else {}
    _, result = heatmaps(exported.path, [provider], x, **options)
    np.testing.assert_allclose(result.heatmaps, expected.heatmaps, atol=tolerance)
    assert result.heatmaps.max() > 0.9


@networks.each(*NETWORKS)
def test_every_added_node_runs_on_the_provider(exported, provider):
    explainer, _ = heatmaps(exported.path, [provider], networks.images(exported.name, 2).numpy())
    placement = explainer.placement()
    if placement is None:
        pytest.skip("this ONNX Runtime does not tell where nodes run")
    elsewhere = {
        node.name
        for name, nodes in placement.items()
        if name != explainer.providers[0]
        for node in nodes
        if node.name.startswith(NODE_PREFIX)
    }
    assert not elsewhere
