"""Methods that exist inside a file alone, against pytorch-grad-cam and captum."""

import dataclasses
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnxruntime
import pytest
from torchvision_shim import import_pytorch_grad_cam, import_torchvision

from onnxcam import postprocess

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

TARGETS = [3, 77]


@dataclasses.dataclass(frozen=True, eq=False)
class Fused:
    """A network, and what its file computes of two images."""

    name: str
    model: Any
    images: Any
    layer: str
    found: dict[str, Any]


METHODS = ["fullgrad:pgc", "guided_backprop", "guided_gradcam"]


@pytest.fixture(scope="module")
def pgc():
    return import_pytorch_grad_cam()


def build(name: str, apart: float) -> Any:
    """A network, the scores of its classes so many times as far apart, so that a softmax bends."""
    torch.manual_seed(0)
    if name in networks.NETWORKS:
        model = networks.build(name)
    else:
        model = getattr(import_torchvision().models, name)(weights=None).eval()
    *_, head = (m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d))
    with torch.no_grad():
        head.weight *= apart
    return model


def fused(name: str, path: Path, layer: str, apart: float = 1.0, **options: Any) -> Fused:
    """A network exported with maps of its own, run on two images."""
    from onnxcam.export import export_torch

    torch.set_num_threads(1)
    model = build(name, apart)
    images = networks.images(name if name in networks.NETWORKS else "resnet18", 2)
    export_torch(model, images[:1], path, layers=layer, maps_only=True, **options)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    feeds = {session.get_inputs()[0].name: images.numpy(), "cam.class_index": np.array(TARGETS)}
    return Fused(name, model, images, layer, dict(zip(names, session.run(names, feeds), strict=True)))


CONVOLUTIONAL = {"resnet18": "layer4", "squeezenet1_1": "features.12.expand3x3"}


@pytest.fixture(scope="module", params=CONVOLUTIONAL)
def network(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("inside") / "m.cam.onnx"
    return fused(request.param, path, CONVOLUTIONAL[request.param], fuse=METHODS)


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.max() > 0.99
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_full_grad_is_pytorch_grad_cams(network, pgc):
    targets = [pgc.utils.model_targets.ClassifierOutputTarget(k) for k in TARGETS]
    with pgc.FullGrad(network.model, []) as theirs:
        close(network.found["cam.heatmap.fullgrad:pgc"], theirs(network.images.clone(), targets))


def largest(gradients):
    """Scaled maps of gradients (B, C, H, W)."""
    return postprocess.scale(np.abs(gradients).max(axis=1))


def test_guided_backpropagation_is_pytorch_grad_cams(network, pgc):
    theirs = []
    for image, k in zip(network.images, TARGETS, strict=True):
        guided = pgc.GuidedBackpropReLUModel(model=network.model, device="cpu")
        theirs.append(guided(image[None].clone(), target_category=k).transpose(2, 0, 1))
    close(network.found["cam.heatmap.guided_backprop"], largest(np.stack(theirs)))


@pytest.mark.filterwarnings("ignore")
def test_guided_methods_are_captums(network):
    captum = pytest.importorskip("captum.attr")
    for module in network.model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    images = network.images.clone().requires_grad_(True)
    theirs = captum.GuidedBackprop(network.model).attribute(images, target=TARGETS)
    close(network.found["cam.heatmap.guided_backprop"], largest(theirs.detach().numpy()))
    layer = network.model.get_submodule(network.layer)
    theirs = captum.GuidedGradCam(network.model, layer).attribute(
        images, target=TARGETS, interpolate_mode="bilinear"
    )
    close(network.found["cam.heatmap.guided_gradcam"], largest(theirs.detach().numpy()))


@pytest.mark.parametrize(
    ("name", "layer", "rest", "apart"),
    [
        ("resnet18", "layer4", True, 1.0),
        ("mobilenet_v3_large", "features", False, 5.0),
        ("efficientnet_b0", "features.4", True, 5.0),
    ],
)
def test_shapley_cam_is_pytorch_grad_cams(tmp_path, pgc, name, layer, rest, apart):
    """Of tokens pytorch-grad-cam makes no such map: its reshape_transform is not applied there."""
    score = {"rest": True} if rest else None
    ours = fused(name, tmp_path / "m.cam.onnx", layer, apart, fuse=["shapleycam", "gradcam"], score=score)
    of = pgc.utils.model_targets
    targets = [(of.ClassifierOutputReST if rest else of.ClassifierOutputTarget)(k) for k in TARGETS]
    module = ours.model.get_submodule(layer)
    theirs = []
    for image, target in zip(ours.images, targets, strict=True):  # its ReST target wants one image at a time
        with pgc.ShapleyCAM(ours.model, [module]) as cam:
            theirs.append(cam(image[None].clone(), [target])[0])
    close(ours.found["cam.heatmap.shapleycam"], np.stack(theirs))
    # It is another map than Grad-CAM's.
    assert np.abs(ours.found["cam.heatmap.shapleycam"] - ours.found["cam.heatmap.gradcam"]).max() > 1e-3
