"""The networks that tests and benchmarks use: architectures of torchvision and timm, random weights."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from torchvision_shim import import_torchvision


def build(name: str, seed: int = 0, **fields: Any) -> Any:
    """A network in evaluation mode, its BatchNorm statistics randomised so that folding them is no identity.

    Args:
        name: a torchvision model, or ``timm:NAME``.
        seed: of weights and statistics.
        fields: of the architecture, where they are to differ (timm alone).
    """
    import torch

    torchvision = import_torchvision()
    torch.manual_seed(seed)
    if name.startswith("timm:"):
        import timm

        model = timm.create_model(name.removeprefix("timm:"), pretrained=False, **fields)
    else:
        model = torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.75, 1.25)
    return model.eval()


def export_plain(model: Any, path: Path) -> Path:
    """Write the file that PyTorch's exporter makes of a network, for any number of images of 224 × 224."""
    import torch

    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            model,
            (torch.randn(2, 3, 224, 224),),
            dynamo=True,
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    program.save(path)
    return path
