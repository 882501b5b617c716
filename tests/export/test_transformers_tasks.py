"""Detectors and segmenters of Hugging Face, in random configurations, from PyTorch to the map."""

import dataclasses

import numpy as np
import pytest
from torchvision_shim import import_torchvision

from onnxcam import Explainer
from onnxcam.export import export_torch
from onnxcam.targets import Box, Region

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
CASCADE = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}


@dataclasses.dataclass(frozen=True)
class Network:
    """A class of transformers with its configuration, and the module to explain."""

    model: str
    config: dict
    layer: str
    size: int
    head: str = "detr"


BACKBONE = {**CASCADE, "embedding_size": 16, "layer_type": "basic", "out_features": ["stage4"]}
ENCODER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 10,
    "use_timm_backbone": False,
}
DETECTORS = {
    "yolos": Network(
        "Yolos",
        {**SMALL, "image_size": [64, 64], "patch_size": 8, "num_detection_tokens": 10},
        "vit.encoder.layer.2.layernorm_before",
        64,
    ),
    "detr": Network("Detr", ENCODER, "model.input_projection", 128),
    "conditional": Network("ConditionalDetr", ENCODER, "model.input_projection", 128, "rtdetr"),
}


def built(network, task):
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    config = dict(network.config)
    if "d_model" in config:
        config["backbone_config"] = transformers.ResNetConfig(**BACKBONE)
    torch.manual_seed(0)
    kind = getattr(transformers, f"{network.model}For{task}")
    model = kind(getattr(transformers, f"{network.model}Config")(num_labels=5, **config)).eval()
    for module in model.modules():  # sharper than they begin
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.15)
    return model, torch.rand(2, 3, network.size, network.size)


def with_hook(model, layer, x):
    """The model's outputs and one module's, which keeps its graph."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    outputs = model(x)
    handle.remove()
    return outputs, kept[-1]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detection_has_autograds_gradient(name, tmp_path):
    network = DETECTORS[name]
    model, x = built(network, "ObjectDetection")
    score = {"task": "detection", "head": network.head, "output": "logits", "boxes": "pred_boxes"}
    report = export_torch(model, {"pixel_values": x}, tmp_path / "out.cam.onnx", network.layer, score)
    explainer = Explainer(report.path, "cpu")
    outputs, features = with_hook(model, network.layer, x)
    logits = outputs.logits.detach()
    shares = logits.softmax(-1)[..., :-1] if network.head == "detr" else logits.sigmoid()
    cx, cy, w, h = (outputs.pred_boxes * network.size).unbind(-1)
    corners = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1).detach().numpy()
    asked = [None, Box(tuple(map(float, corners[1, 3])), 2)]
    result = explainer.explain_tensor(x.numpy(), "hirescam", asked)
    best = shares[0].flatten().argmax().item()
    fits = shares[1, :, 2].numpy() * overlap(corners[1], corners[1, 3])
    chosen = [divmod(best, shares.shape[2]), (int(fits.argmax()), 2)]
    assert result.class_ids.tolist() == [k for _, k in chosen]
    found = [float(shares[i, row, k]) for i, (row, k) in enumerate(chosen)]
    np.testing.assert_allclose(result.scores, found, rtol=1e-3)
    wanted = [corners[i, row] for i, (row, _) in enumerate(chosen)]
    np.testing.assert_allclose(result.boxes, wanted, atol=0.05)
    picked = sum(outputs.logits[i, row, k] for i, (row, k) in enumerate(chosen))
    (gradient,) = torch.autograd.grad(picked, features)
    maps = (gradient * features).detach()
    if maps.ndim == 3:  # one class token, the patches, then the detections'
        cells = (network.size // 8) ** 2
        maps = maps[:, 1 : 1 + cells].sum(-1).reshape(2, network.size // 8, -1)
    else:
        maps = maps.sum(1)
    np.testing.assert_allclose(result.maps, maps.numpy(), atol=2e-4 * float(maps.abs().max()))


def overlap(boxes, box):
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    both = np.maximum(sides, 0).prod(1)
    return both / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - both)


def test_a_segformers_region_has_autograds_gradient(tmp_path):
    config = {**CASCADE, "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 32}
    network = Network("Segformer", config, "segformer.stages.3", 64)
    model, x = built(network, "SemanticSegmentation")
    names = [n for n, _ in model.named_modules()]
    layer = next(n for n in ("segformer.stages.3.layer_norm", "segformer.encoder.layer_norm.3") if n in names)
    report = export_torch(
        model, {"pixel_values": x}, tmp_path / "out.cam.onnx", layer, {"task": "segmentation"}
    )
    mask = np.zeros((64, 64), np.float32)
    mask[:32, 16:48] = 1
    result = Explainer(report.path, "cpu").explain_tensor(x.numpy(), "hirescam", Region(3, mask))
    outputs, features = with_hook(model, layer, x)
    region = torch.from_numpy(mask[::4, ::4].copy())
    (gradient,) = torch.autograd.grad((outputs.logits[:, 3] * region).sum(), features)
    product = (gradient * features).detach().sum(-1)
    maps = product.reshape(2, *result.maps.shape[1:]).numpy()
    np.testing.assert_allclose(result.maps, maps, atol=2e-4 * np.abs(maps).max())
