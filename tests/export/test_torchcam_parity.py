"""Maps of a file equal torch-cam's of the module that it came from, at the layer's resolution."""

import networks
import numpy as np
import pytest
from torchvision_shim import import_torchvision

from onnxcam import Explainer, methods, smoothing
from onnxcam.export import export_torch
from onnxcam.postprocess import heatmaps, scale
from onnxcam.targets import Finer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CLASSES = {"gradcam": "GradCAM", "xgradcam": "XGradCAM", "layercam": "LayerCAM"}
TARGETS = [281, 7]


@pytest.fixture(scope="module")
def torchcam():
    import_torchvision()
    return pytest.importorskip("torchcam").methods


@pytest.fixture(scope="module")
def explainer(exported):
    return Explainer(exported.path.read_bytes(), "cpu", session_options={"log_severity_level": 3})


def theirs_of(make, exported, images, layers, targets=TARGETS, **call):
    """The library's maps, one array per layer."""
    with make(exported.model, layers, input_shape=tuple(images.shape[1:])) as extractor:
        scores = exported.model(images.clone())
        return [cam.detach().numpy() for cam in extractor(targets, scores, **call)]


@networks.each("resnet18", "mobilenet_v3_large")
def test_maps(exported, explainer, torchcam):
    images = networks.steady(exported)[:2]
    for name, kind in CLASSES.items():
        expected = theirs_of(getattr(torchcam, kind), exported, images, list(exported.layers))
        ours = explainer.explain_tensor(images.numpy(), name, TARGETS)
        for layer, theirs in zip(exported.layers, expected, strict=True):
            maps = scale(np.maximum(ours.layer_maps[layer], 0))
            assert maps.max() > 0.99
            np.testing.assert_allclose(maps, theirs, rtol=0, atol=1e-4, err_msg=f"{name} {layer}")


@networks.each("resnet18")
def test_cam(exported, explainer, torchcam):
    images = networks.steady(exported)[:2]

    def make(model, layers, input_shape):
        return torchcam.CAM(model, layers, fc_layer="fc", input_shape=input_shape)

    [expected] = theirs_of(make, exported, images, "layer4", normalized=False)
    ours = explainer.explain_tensor(images.numpy(), "cam", TARGETS, "layer4")
    np.testing.assert_allclose(ours.maps, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@networks.each("resnet18", "mobilenet_v3_large")
def test_fused_by_the_maximum(exported, explainer, torchcam):
    images = networks.steady(exported)[:2]
    layers = list(exported.layers)
    maps = theirs_of(torchcam.GradCAM, exported, images, layers)
    expected = torchcam.GradCAM.fuse_cams([torch.from_numpy(m) for m in maps]).numpy()
    ours = explainer.explain_tensor(images.numpy(), target=TARGETS, fuse="max")
    np.testing.assert_allclose(ours.maps, scale(expected), rtol=0, atol=1e-4)


@networks.each("resnet18", "mobilenet_v3_large")
def test_refinecam(exported, explainer, torchcam):
    """On maps that the library computes as their paper says; at the finest grid, and at the image's size."""
    images = networks.steady(exported)[:2]
    layers = list(exported.layers)

    def make(model, layers, input_shape):
        return torchcam.RefineCAM(model, layers, input_shape, base_method=torchcam.LayerCAM)

    ours = explainer.explain_tensor(images.numpy(), "layercam", TARGETS, fuse="product")
    [finest] = theirs_of(make, exported, images, layers)
    np.testing.assert_allclose(ours.maps, finest, rtol=0, atol=1e-4)
    [whole] = theirs_of(make, exported, images, layers, target_shape=tuple(images.shape[2:]))
    np.testing.assert_allclose(ours.heatmaps, whole, rtol=0, atol=1e-4)


@networks.each("resnet18", "mobilenet_v3_large")
def test_refinecam_of_the_authors_gradcampp(exported, explainer, torchcam):
    """The library's own Grad-CAM++ leaves α's denominator out; its fusion of the right maps is ours."""
    images = networks.steady(exported)[:2]
    _, activations, gradients = networks.by_autograd(exported.model, images, exported.layers, TARGETS)
    for layer in exported.layers:
        [wrong] = theirs_of(torchcam.GradCAMpp, exported, images, layer, normalized=False)
        g = gradients[layer].astype(float)
        weights = (g**2 * np.maximum(g, 0)).sum((2, 3))
        documented = np.maximum(np.einsum("bk,bkhw->bhw", weights, activations[layer]), 0)
        np.testing.assert_allclose(scale(wrong), scale(documented), rtol=0, atol=1e-4)
        right = methods.get("gradcam++").function(activations[layer], gradients[layer])
        assert np.abs(scale(np.maximum(right, 0)) - scale(wrong)).max() > 1e-3
    ours = explainer.explain_tensor(images.numpy(), "refinecam", TARGETS)
    maps = [torch.from_numpy(np.maximum(m, 0)) for m in ours.layer_maps.values()]
    expected = torchcam.RefineCAM.fuse_cams(maps, tuple(images.shape[2:])).numpy()
    np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4)


@networks.each("resnet18", "mobilenet_v3_large")
def test_finercam(exported, torchcam, tmp_path):
    images = networks.steady(exported)[:2]
    path = tmp_path / "seeded.cam.onnx"
    export_torch(exported.model, images[:1], path, layers=list(exported.layers), score={"seed": True})
    seeded = Explainer(path, "cpu", session_options={"log_severity_level": 3})
    for layer in exported.layers:
        # As they are before the scaling: the differences are small, and 1e-7 is not small against them.
        how = {"normalized": False}
        [expected] = theirs_of(torchcam.FinerCAM, exported, images, layer, **how)
        ours = seeded.explain_tensor(images.numpy(), "finercam:torchcam", TARGETS, layer)
        same(ours.maps, expected, layer)
        how["comparison_idx"] = [[3, 5], [0, 9]]
        [expected] = theirs_of(torchcam.FinerCAM, exported, images, layer, **how)
        finer = [Finer(of, [*against], 0.6, mean=True) for of, against in [(281, (3, 5)), (7, (0, 9))]]
        ours = seeded.explain_tensor(images.numpy(), target=finer, layers=layer)
        same(ours.maps, expected, layer)


def same(maps, rectified, layer):
    peak = np.abs(maps).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(np.maximum(maps, 0) / peak, rectified / peak, rtol=0, atol=1e-4, err_msg=layer)


class Drawn:
    """A distribution whose samples are known."""

    def __init__(self, samples):
        self.samples = iter(samples)

    def sample(self, size):
        return next(self.samples)


SAMPLES, SIGMA, SEED = 3, 0.1, 5


def noisy_copies(image):
    """Those that the file is run on."""
    noise = [smoothing.noise_like(image.numpy(), SIGMA, SEED + k) for k in range(SAMPLES)]
    return [image, *(image + torch.from_numpy(n) for n in noise)]


@networks.each("resnet18", "vgg16")
def test_smoothgradcampp(exported, explainer, torchcam):
    """Ours is the paper's, by autograd; torch-cam's differs in three ways, each of which is shown here."""
    image = networks.steady(exported, 1, noisy_copies)
    target = TARGETS[:1]
    clean, *copies = noisy_copies(image)
    _, clean_activations, _ = networks.by_autograd(exported.model, clean, exported.layers, target)
    runs = [networks.by_autograd(exported.model, copy, exported.layers, target) for copy in copies]
    for layer in exported.layers:
        a = clean_activations[layer].astype(float)
        gradients = np.stack([g[layer] for _, _, g in runs]).astype(float)
        d1, d2, d3 = ((gradients**n).mean(0) for n in (1, 2, 3))
        below = 2 * d2 + a.sum((2, 3), keepdims=True) * d3
        alpha = d2 / np.where(below == 0, 1, below)
        weights = (alpha * np.maximum(d1, 0)).sum((2, 3))
        expected = np.einsum("bk,bkhw->bhw", weights, a)
        ours = explainer.explain_tensor(
            image.numpy(), "smoothgradcam++", target, layer, samples=SAMPLES, sigma=SIGMA, seed=SEED
        )
        np.testing.assert_allclose(ours.maps, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert ours.passes == 1 + SAMPLES

        drawn = Drawn([copy - clean for copy in copies])
        shape = tuple(image.shape[1:])
        with torchcam.SmoothGradCAMpp(exported.model, layer, SAMPLES, input_shape=shape) as extractor:
            extractor._distrib = drawn
            [theirs] = extractor(target, exported.model(image.clone()))
        alpha = d2 / (2 * d2 + (a * d3).sum((2, 3), keepdims=True) + 1e-8)
        weights = (alpha * np.maximum(gradients[-1], 0)).sum((2, 3))
        last = np.einsum("bk,bkhw->bhw", weights, runs[-1][1][layer])
        np.testing.assert_allclose(theirs.numpy(), scale(np.maximum(last, 0)), rtol=0, atol=1e-4)
        assert np.abs(theirs.numpy() - scale(np.maximum(ours.maps, 0))).max() > 1e-3


@networks.each("resnet18")
def test_chosen_channels(exported, explainer):
    """The paper of Smooth Grad-CAM++ shows a subset of feature maps: those alone take part, in any method."""
    images = networks.steady(exported)[:2]
    _, activations, gradients = networks.by_autograd(exported.model, images, ["layer4"], TARGETS)
    channels = [3, 100, -1]
    a, g = activations["layer4"][:, channels], gradients["layer4"][:, channels]
    for name in ("gradcam", "gradcam++", "layercam", "eigengradcam", "fem", "activation_mean"):
        record = methods.get(name)
        ours = explainer.explain_tensor(images.numpy(), name, TARGETS, "layer4", channels=channels)
        expected = record(activations=a, gradients=g)
        np.testing.assert_allclose(ours.maps, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)
        whole = heatmaps([expected], tuple(images.shape[2:]), record.rectify)
        np.testing.assert_allclose(ours.heatmaps, whole, atol=1e-3, err_msg=name)
