"""The networks on which the whole road is compared with PyTorch: exported once, with all their layers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Network:
    """What to export.

    Attributes:
        size: height and width of its images.
        layers: module paths, the last one first.
        calibrated: BatchNorm statistics are its images': with random ones it is all but constant, and
            its maps a matter of rounding.
    """

    size: int
    layers: tuple[str, ...]
    calibrated: bool = False


NETWORKS = {
    "resnet18": Network(96, ("layer4", "layer2")),
    "resnet50": Network(96, ("layer4", "layer3.2")),
    "vgg16": Network(64, ("features.29", "features.16")),
    "mobilenet_v3_large": Network(96, ("features", "features.13.block.1"), calibrated=True),
    # An in-place ReLU follows the first; pytorch-grad-cam can only be compared at the others.
    "densenet121": Network(
        96, ("features", "features.denseblock4.denselayer16.relu2", "features.transition2.relu")
    ),
    "efficientnet_b0": Network(96, ("features", "features.4")),
    "convnext_tiny": Network(64, ("features", "features.5.4")),
    "timm:vit_tiny_patch16_224": Network(224, ("blocks.11.norm1", "blocks.6.norm1")),
    "timm:swin_tiny_patch4_window7_224": Network(224, ("norm", "layers.2")),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A network and its explainable file."""

    name: str
    model: Any
    path: Path
    report: Any
    layers: tuple[str, ...]


def build(name: str) -> Any:
    """A network of the benchmarks in evaluation mode, its norms randomised."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    spec = importlib.util.spec_from_file_location("benchmark_models", ROOT / "benchmarks" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.build(name)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and NETWORKS[name].calibrated]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        with torch.no_grad():
            model(images(name, 4, seed=1))
    for norm in norms:
        norm.eval()
        norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.75, 1.25)
    for norm in model.modules():
        if isinstance(norm, torch.nn.LayerNorm):
            # XGrad-CAM divides by a channel's sum, which must not vanish.
            torch.nn.init.uniform_(norm.weight, 0.75, 1.25)
            torch.nn.init.uniform_(norm.bias, 0.5, 1.0)
    return model


def images(name: str, batch: int, seed: int = 0) -> Any:
    """Random images of the network's size, smooth as photos are: noise averages out on its way down."""
    import torch

    size = NETWORKS[name].size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return 2 * smooth + 0.1 * torch.randn(batch, 3, size, size, generator=generator)


def by_autograd(model: Any, images: Any, layers: Sequence[str], classes: Any = None) -> tuple[Any, Any, Any]:
    """The scores of a module, and by layer its activations and torch.autograd's gradients, as arrays."""
    import torch

    kept = {}
    modules = dict(model.named_modules())

    def keep(module: Any, inputs: Any, output: Any, name: str) -> Any:
        kept[name] = output
        return output.clone()  # what an operation in place may change

    handles = [modules[n].register_forward_hook(functools.partial(keep, name=n)) for n in layers]
    try:
        scores = model(images.clone().requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()
    classes = scores.argmax(1) if classes is None else torch.as_tensor(classes)
    picked = scores[torch.arange(len(images)), classes].sum()
    gradients = torch.autograd.grad(picked, [kept[n] for n in layers])
    return (
        scores.detach().numpy(),
        {n: kept[n].detach().numpy() for n in layers},
        {n: g.numpy() for n, g in zip(layers, gradients, strict=True)},
    )


def unchanged(image: Any) -> list[Any]:
    """An image as it is."""
    return [image]


@functools.lru_cache(2)
def steady(exported: Exported, count: int = 3, copies: Callable[[Any], list[Any]] = unchanged) -> Any:
    """Images on which no ReLU sits so close to its kink that rounding moves the gradient.

    Told by torch alone: its float32, its float64, and its float64 on the image moved by a rounding error
    all agree, on each of the ``copies`` of the image.
    """
    import torch

    kept = []
    double = copy.deepcopy(exported.model).double()
    for seed in range(30):
        image = images(exported.name, 1, seed)
        if all(_is_steady(exported, double, one, seed) for one in copies(image)):
            kept.append(image)
        if len(kept) == count:
            return torch.cat(kept)
    return pytest.fail(f"torch's float32 and float64 agree on {len(kept)} of 30 images only")


def _is_steady(exported: Exported, double: Any, image: Any, seed: int) -> bool:
    import torch

    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    _, _, exact = by_autograd(double, image.double(), exported.layers)
    others = [
        by_autograd(exported.model, image, exported.layers)[2],
        *(by_autograd(double, image * (1 + e * noise), exported.layers)[2] for e in (3e-7, -3e-7)),
    ]
    return all(
        np.mean(np.abs(other[n] - exact[n]) > 1e-4 * np.abs(exact[n]).max()) < 1e-3
        for other in others
        for n in exported.layers
    )


def export(name: str, folder: Path) -> Exported:
    """The network ``name`` with its layers in one file of open batch."""
    from onnxcam.export import export_torch

    network = NETWORKS[name]
    model = build(name)
    path = folder / f"{name.removeprefix('timm:')}.cam.onnx"
    report = export_torch(model, images(name, 1, seed=7), path, layers=list(network.layers))
    return Exported(name, model, path, report, network.layers)


def each(*names: str) -> Any:
    """Parametrises a test over networks: one test for each, so that only one process exports it."""
    return pytest.mark.parametrize(
        "exported", names, indirect=True, scope="session", ids=lambda n: n.removeprefix("timm:")
    )
