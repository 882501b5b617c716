"""Final heatmaps equal pytorch-grad-cam's own, from the same weights."""

import numpy as np
import pytest
from torchvision_shim import import_pytorch_grad_cam

from onnxcam import methods
from onnxcam.overlay import overlay
from onnxcam.postprocess import heatmaps

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
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(16),  # signed activations
        torch.nn.Conv2d(16, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d((2, 2)),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 5),
    ).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(1))


def by_autograd(net, images, layers, targets):
    """Activations and gradients of the layers, forward order, through autograd alone."""
    kept, value = [], images
    for index, module in enumerate(net):
        value = module(value)
        if index in layers:
            kept.append(value)
    score = value[range(len(images)), targets].sum()
    gradients = torch.autograd.grad(score, kept)
    return [(a.detach().numpy(), g.numpy()) for a, g in zip(kept, gradients, strict=True)]


@pytest.mark.parametrize("layers", [[1], [3], [5], [1, 5], [1, 3, 5]], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_heatmaps(name, layers, pgc, net, images):
    targets = [3, 1]
    outputs = [pgc.utils.model_targets.ClassifierOutputTarget(t) for t in targets]
    with getattr(pgc, CLASSES[name])(net, [net[i] for i in layers]) as theirs:
        expected = theirs(images, outputs)
    record = methods.get(name)
    raw = [record.function(a, g) for a, g in by_autograd(net, images, layers, targets)]
    ours = heatmaps(raw, (32, 40), record.rectify)
    assert ours.shape == expected.shape == (2, 32, 40)
    assert ours.max() > 0.99
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_authors_gradcampp_is_another_map(pgc, net, images):
    """The suffix is there for a reason: pytorch-grad-cam's epsilon outweighs real gradients."""
    [(activations, gradients)] = by_autograd(net, images, [5], [3, 1])
    one, other = (
        heatmaps([methods.get(n).function(activations, gradients * np.float32(0.01))], (32, 40))
        for n in ("gradcam++", "gradcam++:pgc")
    )
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("colormap", ["jet", "viridis"])
def test_the_show_cam_look(alpha, colormap, pgc):
    import cv2

    rng = np.random.default_rng(2)
    photo = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    heatmap = rng.random((20, 30), dtype=np.float32)
    expected = pgc.utils.image.show_cam_on_image(
        np.float32(photo) / 255,
        heatmap,
        use_rgb=True,
        colormap=getattr(cv2, f"COLORMAP_{colormap.upper()}"),
        image_weight=1 - alpha,
    )
    ours = overlay(photo, heatmap, alpha, colormap, style="show_cam")
    # Truncation to a byte may tip either way on the last bit of a float.
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert (ours == expected).mean() > 0.999
