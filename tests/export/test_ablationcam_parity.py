"""Ablation-CAM equals pytorch-grad-cam's behind ReLUs and for scores above zero: there both are the paper's.

Elsewhere theirs depends on its batch size; tests/runtime/test_tail_methods.py compares ours with brute force.
"""

import networks
import numpy as np
import pytest
from torchvision_shim import import_pytorch_grad_cam

from onnxcam import Explainer
from onnxcam.export import export_torch

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def vgg_like():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 24, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(24, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d((3, 3)),
        torch.nn.Flatten(),
        torch.nn.Linear(288, 20),
        torch.nn.ReLU(),
        torch.nn.Linear(20, 10),
    ).eval()


@pytest.mark.parametrize(
    ("name", "size", "layers"), [("vgg-like", 48, ("7", "4")), ("resnet18", 64, ("layer4", "layer2"))]
)
def test_ablationcam(name, size, layers, tmp_path):
    torch.set_num_threads(1)
    gradcam = import_pytorch_grad_cam()
    model = vgg_like() if name == "vgg-like" else networks.build(name)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        scores = model(image)[0]
    target = int(scores.argmax())
    assert scores[target] > 0
    outputs = [gradcam.utils.model_targets.ClassifierOutputTarget(target)]
    export_torch(model, image, tmp_path / "m.cam.onnx", layers, tail=True)
    explainer = Explainer(tmp_path / "m.cam.onnx", "cpu")
    for layer in layers:
        with gradcam.AblationCAM(model, [model.get_submodule(layer)]) as theirs:
            expected = theirs(image.clone(), outputs)
        ours = explainer.explain_tensor(image.numpy(), "ablationcam", target, layer)
        np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4, err_msg=layer)
        assert ours.passes == 1
