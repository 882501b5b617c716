"""Final heatmaps of a file equal pytorch-grad-cam's of the module it came from."""

import itertools

import networks
import numpy as np
import pytest
from torchvision_shim import import_pytorch_grad_cam

from onnxcam import Explainer, methods

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CLASSES = {
    "gradcam": "GradCAM",
    "gradcam++:pgc": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcam_elementwise": "GradCAMElementWise",
}


@pytest.fixture(scope="module")
def pgc():
    return import_pytorch_grad_cam()


@pytest.fixture(scope="module")
def explainer(exported):
    return Explainer(exported.path.read_bytes(), "cpu", session_options={"log_severity_level": 3})


def tokens_as_grid(tensor):
    """What pytorch-grad-cam's README does with a ViT-Tiny's tokens."""
    grid = tensor[:, 1:].reshape(len(tensor), 14, 14, tensor.shape[2])
    return grid.permute(0, 3, 1, 2)


def layers_of(exported):
    """The layers that pytorch-grad-cam sees as they are: none that an operation in place follows."""
    return [n for n in exported.layers if (exported.name, n) != ("densenet121", "features")]


@networks.each("resnet18", "mobilenet_v3_large", "densenet121", "timm:vit_tiny_patch16_224")
def test_heatmaps(exported, explainer, pgc):
    last, middle = layers_of(exported)
    images = networks.steady(exported)[:2]
    reshape = tokens_as_grid if "vit" in exported.name else None
    cases = itertools.product(CLASSES, [[last], [middle], [middle, last]], [None, [281, 7]])
    for method, layers, classes in cases:
        outputs = classes and [pgc.utils.model_targets.ClassifierOutputTarget(c) for c in classes]
        modules = [exported.model.get_submodule(n) for n in layers]
        with getattr(pgc, CLASSES[method])(exported.model, modules, reshape) as theirs:
            expected = theirs(images.clone(), outputs)
        ours = explainer.explain_tensor(images.numpy(), method, classes, layers)
        assert ours.heatmaps.shape == expected.shape == (2, *images.shape[2:])
        assert ours.heatmaps.max() > 0.99
        np.testing.assert_allclose(
            ours.heatmaps, expected, rtol=0, atol=1e-4, err_msg=f"{method} {layers} {classes}"
        )


@networks.each("densenet121")
def test_before_an_operation_in_place_the_file_is_right(exported, explainer, pgc):
    """pytorch-grad-cam's activations there are those after the ReLU: its map is another one."""
    images = networks.steady(exported)[:2]
    ours = explainer.explain_tensor(images.numpy(), layers="features")
    with pgc.GradCAM(exported.model, [exported.model.features]) as theirs:
        overwritten = theirs(images.clone(), None)
    assert np.abs(ours.heatmaps - overwritten).max() > 0.01
    _, activations, gradients = networks.by_autograd(exported.model, images, ["features"])
    assert activations["features"].min() < 0
    expected = methods.get("gradcam").function(activations["features"], gradients["features"])
    np.testing.assert_allclose(ours.maps, expected, atol=1e-4 * np.abs(expected).max())
