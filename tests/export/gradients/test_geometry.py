"""Convolutions and pools of any geometry, with sizes known and unknown, against torch's gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .harness import (
    FLOAT,
    Case,
    case,
    declare,
    difference,
    feeds_of,
    forward,
    gradient_of,
    run_ort,
    seed_like,
)

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.torch

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)
dynamic = st.booleans()


@st.composite
def geometries(draw: st.DrawFn, rank: int = 2, dilated: bool = True) -> dict[str, Any]:
    """Kernel, stride, pads and dilation along each axis, and sizes that hold at least one window."""
    made: dict[str, Any] = {k: [] for k in ("kernel", "strides", "begins", "ends", "dilations", "sizes")}
    for _ in range(rank):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2 if dilated else 1))
        span = (kernel - 1) * dilation + 1
        begin, end = draw(st.integers(0, kernel - 1)), draw(st.integers(0, kernel - 1))
        made["kernel"].append(kernel)
        made["dilations"].append(dilation)
        made["strides"].append(draw(st.integers(1, 4)))
        made["begins"].append(begin)
        made["ends"].append(end)
        made["sizes"].append(draw(st.integers(max(1, span - begin - end), span + 6)))
    return made


def attributes(geo: dict[str, Any], **more: Any) -> str:
    listed = {
        "kernel_shape": geo["kernel"],
        "strides": geo["strides"],
        "pads": geo["begins"] + geo["ends"],
        **more,
    }
    if any(d != 1 for d in geo["dilations"]):
        listed["dilations"] = geo["dilations"]
    return ", ".join(f"{k}={v}" for k, v in listed.items())


def torch_padded(x: Any, geo: dict[str, Any], value: float = 0.0) -> Any:
    both = zip(reversed(geo["begins"]), reversed(geo["ends"]), strict=True)
    return F.pad(x, [p for pair in both for p in pair], value=value)


def check(c: Case, dynamic: bool, expected: Any, **given: np.ndarray[Any, Any]) -> None:
    """``expected`` computes y from x in torch."""
    model = forward(
        c,
        FLOAT,
        given,
        {"x": ["N", *given["x"].shape[1:2], "H", "W", "D"][: given["x"].ndim]} if dynamic else None,
    )
    feeds = feeds_of(c, given, FLOAT)
    y = run_ort(model, feeds, ["y"])[0]
    if not dynamic:
        declare(model, y)
    seed = seed_like(y)
    built = gradient_of(model, ["x"], check=not dynamic)
    g = run_ort(built.model, {**feeds, "seed": seed}, built.outputs)[0]
    x = torch.tensor(given["x"], dtype=torch.float64, requires_grad=True)
    out = expected(x)
    assert tuple(out.shape) == y.shape
    (true,) = torch.autograd.grad(out, x, torch.tensor(seed, dtype=torch.float64))
    assert difference(g, true.numpy()) < 1e-5


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@few
@given(
    geo=geometries(),
    group=st.sampled_from([1, 2, 3]),
    width=st.integers(1, 2),
    filters=st.integers(1, 2),
    dynamic=dynamic,
)
def test_conv(geo: dict[str, Any], group: int, width: int, filters: int, dynamic: bool) -> None:
    x, w = numbers(2, group * width, *geo["sizes"]), numbers(group * filters, width, *geo["kernel"])
    c = case("conv", f"y = Conv<{attributes(geo, group=group)}>(x, w)", x=x.shape, w=w.shape)
    weight = torch.tensor(w)
    check(
        c,
        dynamic,
        lambda x: F.conv2d(torch_padded(x, geo), weight, None, geo["strides"], 0, geo["dilations"], group),
        x=x,
        w=w,
    )


@pytest.mark.parametrize("rank", [1, 3])
@settings(few, max_examples=15)
@given(data=st.data(), dynamic=dynamic)
def test_conv_of_other_ranks(rank: int, data: st.DataObject, dynamic: bool) -> None:
    geo = data.draw(geometries(rank))
    x, w = numbers(1, 2, *geo["sizes"]), numbers(3, 2, *geo["kernel"])
    c = case("conv", f"y = Conv<{attributes(geo)}>(x, w)", x=x.shape, w=w.shape)
    conv = {1: F.conv1d, 3: F.conv3d}[rank]
    weight = torch.tensor(w)
    check(
        c,
        dynamic,
        lambda x: conv(torch_padded(x, geo), weight, None, geo["strides"], 0, geo["dilations"]),
        x=x,
        w=w,
    )


@few
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    lower=st.booleans(),
    dynamic=dynamic,
)
def test_conv_same(kernel: int, stride: int, height: int, width: int, lower: bool, dynamic: bool) -> None:
    def pads(n: int) -> list[int]:
        amount = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        return sorted([amount // 2, amount - amount // 2], reverse=lower)

    (top, bottom), (left, right) = pads(height), pads(width)
    x, w = numbers(1, 2, height, width), numbers(3, 2, kernel, kernel)
    word = "SAME_LOWER" if lower else "SAME_UPPER"
    c = case("conv", f'y = Conv<auto_pad="{word}", strides=[{stride},{stride}]>(x, w)', x=x.shape, w=w.shape)
    weight = torch.tensor(w)
    check(
        c, dynamic, lambda x: F.conv2d(F.pad(x, [left, right, top, bottom]), weight, None, stride), x=x, w=w
    )


@few
@given(geo=geometries(), ties=st.booleans(), dynamic=dynamic)
def test_max_pool(geo: dict[str, Any], ties: bool, dynamic: bool) -> None:
    x = numbers(1, 2, *geo["sizes"])
    if ties:
        x = np.round(x)
    # A pad of torch's own is needed where -inf could win: it takes symmetric ones up to half the kernel.
    c = case("maxpool", f"y = MaxPool<{attributes(geo)}>(x)", x=x.shape)
    check(
        c,
        dynamic,
        lambda x: F.max_pool2d(
            torch_padded(x, geo, -1e30), geo["kernel"], geo["strides"], 0, geo["dilations"]
        ),
        x=x,
    )


@st.composite
def torch_pools(draw: st.DrawFn) -> dict[str, Any]:
    """Geometry that torch's own pools take: symmetric pads of at most half the kernel, no dilation."""
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    pads = [draw(st.integers(0, k // 2)) for k in kernel]
    return {
        "kernel": kernel,
        "strides": [draw(st.integers(1, 4)) for _ in range(2)],
        "begins": pads,
        "ends": pads,
        "dilations": [1, 1],
        "sizes": [draw(st.integers(k, k + 7)) for k in kernel],
    }


@few
@given(geo=torch_pools(), dynamic=dynamic)
def test_max_pool_with_ceil_mode(geo: dict[str, Any], dynamic: bool) -> None:
    x = np.round(numbers(1, 2, *geo["sizes"]) * 3)
    c = case("maxpool", f"y = MaxPool<{attributes(geo, ceil_mode=1)}>(x)", x=x.shape)
    check(
        c,
        dynamic,
        lambda x: F.max_pool2d(x, geo["kernel"], geo["strides"], geo["begins"], ceil_mode=True),
        x=x,
    )


@few
@given(geo=torch_pools(), ceil_mode=st.integers(0, 1), include=st.integers(0, 1), dynamic=dynamic)
def test_average_pool(geo: dict[str, Any], ceil_mode: int, include: int, dynamic: bool) -> None:
    x = numbers(1, 2, *geo["sizes"])
    text = f"y = AveragePool<{attributes(geo, ceil_mode=ceil_mode, count_include_pad=include)}>(x)"
    c = case("averagepool", text, x=x.shape)
    check(
        c,
        dynamic,
        lambda x: F.avg_pool2d(
            x, geo["kernel"], geo["strides"], geo["begins"], bool(ceil_mode), bool(include)
        ),
        x=x,
    )


@few
@given(geo=geometries(dilated=False), include=st.integers(0, 1), dynamic=dynamic)
def test_average_pool_with_asymmetric_pads(geo: dict[str, Any], include: int, dynamic: bool) -> None:
    x = numbers(1, 2, *geo["sizes"])
    c = case("averagepool", f"y = AveragePool<{attributes(geo, count_include_pad=include)}>(x)", x=x.shape)

    def average(x: Any) -> Any:
        total = F.avg_pool2d(torch_padded(x, geo), geo["kernel"], geo["strides"], divisor_override=1)
        ones = torch_padded(torch.ones_like(x), geo, float(include))
        return total / F.avg_pool2d(ones, geo["kernel"], geo["strides"], divisor_override=1)

    check(c, dynamic, average, x=x)
