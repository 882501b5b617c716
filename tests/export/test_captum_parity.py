"""Raw maps of a file equal those of captum's layer methods, of the module that it came from."""

import networks
import numpy as np
import pytest
from torchvision_shim import import_torchvision

from onnxcam import Explainer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

TARGETS = [281, 7]


@pytest.fixture(scope="module")
def captum():
    import_torchvision()
    return pytest.importorskip("captum.attr")


@pytest.fixture(scope="module")
def explainer(exported):
    return Explainer(exported.path.read_bytes(), "cpu", session_options={"log_severity_level": 3})


@networks.each("resnet18", "mobilenet_v3_large")
def test_raw_maps(exported, explainer, captum):
    images = networks.steady(exported)[:2]
    for layer in exported.layers:
        module = exported.model.get_submodule(layer)
        given = images.clone()
        expected = {
            "gradcam": captum.LayerGradCam(exported.model, module).attribute(given, TARGETS)[:, 0],
            "activation_mean": captum.LayerActivation(exported.model, module).attribute(given).mean(1),
            "hirescam": captum.LayerGradientXActivation(exported.model, module)
            .attribute(given, TARGETS)
            .sum(1),
        }
        for name, theirs in expected.items():
            ours = explainer.explain_tensor(images.numpy(), name, TARGETS, layer).maps
            theirs = theirs.detach().numpy()
            peak = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * peak, err_msg=f"{name} {layer}")
