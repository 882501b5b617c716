"""What torch's exporter makes of common layers: gradients against torch.autograd, at two batch sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxcam.export.from_onnx import normalize
from onnxcam.export.gradients import add_gradients

from .harness import difference, run_ort

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn, F = torch.nn, torch.nn.functional
pytestmark = pytest.mark.torch


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Any) -> Any:
        s = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.up(F.relu6(self.down(s) * 9)))


class Attention(nn.Module):
    """Four tokens and a class token, scaled dot-product attention, the class token read out."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 37, 8))
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return (x + F.gelu(self.out(y)))[:, 0]


class Windows(nn.Module):
    """Swin's shifted windows: roll, partition, a mask, merge, roll back, and patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.mask = nn.Linear(8, 8), nn.Parameter(torch.randn(4, 9, 1))

    def forward(self, x: Any) -> Any:
        x = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2))
        b, h, w, c = x.shape
        x = x.view(b, 2, 3, 2, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(b, 4, 9, c)
        x = self.linear(x).softmax(2) * self.mask
        x = x.view(b, 2, 2, 3, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = torch.roll(x, (1, 1), (1, 2))
        return torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


#: Modules from (N, 8, 6, 6); each is one export, so that several layers share one.
MODULES: dict[str, Callable[[], Any]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(8, 6, 3, 2, 1),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Conv2d(6, 6, 3, 1, 2, dilation=2, groups=3),
        nn.LeakyReLU(),
        nn.Conv2d(6, 4, (1, 3), padding="same"),
        nn.ELU(),
    ),
    "max pools": lambda: nn.Sequential(
        nn.MaxPool2d(3, 1, 1), nn.Hardswish(), nn.MaxPool2d(2, 2), nn.MaxPool2d(3, 2, ceil_mode=True)
    ),
    "average pools": lambda: nn.Sequential(
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.Mish(),
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
    ),
    "adaptive pools": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((3, 2)), nn.AdaptiveMaxPool2d(1)),
    "squeeze and excite": Squeeze,
    "norms": lambda: nn.Sequential(
        nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.LayerNorm([6, 6]), nn.Softplus()
    ),
    "convnext": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        Of(lambda x: x.permute(0, 2, 3, 1)),
        nn.LayerNorm(8),
        nn.Linear(8, 16),
        nn.GELU(),
        Of(lambda x: x * torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)),
        nn.Linear(16, 8),
        Of(lambda x: x.permute(0, 3, 1, 2)),
    ),
    "attention": Attention,
    "windows": Windows,
    "indexing": lambda: Of(
        lambda x: torch.stack([x[:, [0, 2, 2]], x[:, 1:4], x.flip(1)[:, -3:]], 1)[:, :, :, ::2, -1]
    ),
    "padding": lambda: Of(
        lambda x: F.pad(F.pad(F.pad(x, (1, 2, 0, 1)), (1, 1, 1, 1), "reflect"), (2, 0, 1, 1), "replicate")
    ),
    "channel shuffle": lambda: Of(
        lambda x: x.view(-1, 2, 4, 6, 6).transpose(1, 2).flatten(1, 2).chunk(2, 1)[1]
    ),
    "arithmetic": lambda: Of(
        lambda x: (x / (1 + x.abs()) - x.clamp(-0.5, 0.7) ** 2).amax((2, 3)).logsumexp(1)
    ),
    "einsum": lambda: Of(lambda x: torch.einsum("bchw,bdhw->bcd", x.tanh(), x.sigmoid()).log_softmax(-1)),
}


@pytest.mark.parametrize("name", MODULES)
def test_against_autograd(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.randn(2, 8, 6, 6),),
            dynamo=True,
            opset_version=18,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    model = normalize(ir.from_proto(program.model_proto))
    x_name, y_name = model.graph.inputs[0].name, model.graph.outputs[0].name
    gradient = add_gradients(model, y_name, [x_name])[x_name]
    proto = ir.to_proto(model)
    for batch in (1, 3):
        x = torch.randn(batch, 8, 6, 6, requires_grad=True)
        y = module(x)
        seed = torch.randn_like(y)
        (true,) = torch.autograd.grad(y, x, seed)
        out, got = run_ort(proto, {x_name: x.detach().numpy(), "seed": seed.numpy()}, [y_name, gradient])
        assert difference(out, y.detach().numpy().astype(np.float64)) < 1e-5
        assert difference(got, true.numpy().astype(np.float64)) < 1e-4
