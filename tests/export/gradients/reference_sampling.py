"""Kernels in float64, sample by sample, of what ``onnx.reference`` has in float32: GridSample and others."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]


def _cell(image: Array, at: tuple[int, ...], padding: str, corners: int) -> Array:
    """(C) of an image (C, ...), which goes on beyond its edges as the padding says."""
    inside = []
    for i, n in zip(at, image.shape[1:], strict=True):
        if padding == "zeros" and not 0 <= i < n:
            return np.zeros(image.shape[0])
        if padding == "reflection" and n > 1:
            while not 0 <= i < n:
                low, high = (0, 2 * (n - 1)) if corners else (-1, 2 * n - 1)
                i = low - i if i < 0 else high - i
        inside.append(min(max(i, 0), n - 1))
    return np.asarray(image[(slice(None), *inside)])


def _kernel(mode: str, distance: float) -> float:
    d = abs(distance)
    if mode == "linear":
        return max(0.0, 1 - d)
    if d <= 1:
        return (1.25 * d - 2.25) * d * d + 1
    return ((-0.75 * d + 3.75) * d - 6) * d + 3 if d < 2 else 0.0


def _sample(image: Array, at: list[float], mode: str, padding: str, corners: int) -> Array:
    if mode == "nearest":
        return _cell(image, tuple(int(np.rint(a)) for a in at), padding, corners)
    total = np.zeros(image.shape[0])
    near = [range(math.floor(a) - 1, math.floor(a) + 3) for a in at]
    for cell in itertools.product(*near):
        weight = math.prod(_kernel(mode, a - c) for a, c in zip(at, cell, strict=True))
        if weight:
            total += weight * _cell(image, cell, padding, corners)
    return total


class GridSample(OpRun):
    def _run(  # type: ignore[override]
        self, x: Array, grid: Array, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
    ) -> tuple[Array]:
        mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
        out = np.zeros((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
        for place in np.ndindex(grid.shape[:-1]):
            sizes = x.shape[2:]
            wanted = grid[place][::-1]
            at = [
                (v + 1) / 2 * (n - 1) if align_corners else ((v + 1) * n - 1) / 2
                for v, n in zip(wanted, sizes, strict=True)
            ]
            found = _sample(x[place[0]], at, mode, padding_mode, align_corners)
            out[(place[0], slice(None), *place[1:])] = found
        return (out,)


class AffineGrid(OpRun):
    def _run(self, theta: Array, size: Array, align_corners: int = 0) -> tuple[Array]:  # type: ignore[override]
        sizes = [int(n) for n in size[2:]]
        out = np.zeros((len(theta), *sizes, len(sizes)), theta.dtype)
        for place in np.ndindex(*sizes):
            at = [
                2 * i / (n - 1) - 1 if align_corners else (2 * i + 1) / n - 1
                for i, n in zip(place, sizes, strict=True)
            ]
            out[(slice(None), *place)] = theta @ np.array([*at[::-1], 1.0])
        return (out,)


class DeformConv(OpRun):
    def _run(  # type: ignore[override]
        self,
        x: Array,
        w: Array,
        offset: Array,
        b: Any = None,
        mask: Any = None,
        dilations: Any = None,
        group: int = 1,
        kernel_shape: Any = None,
        offset_group: int = 1,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        strides, dilations, pads = strides or [1, 1], dilations or [1, 1], pads or [0] * 4
        n, c = x.shape[:2]
        m, per_group, *kernel = w.shape
        oh, ow = offset.shape[2:]
        moved = offset.reshape(n, offset_group, *kernel, 2, oh, ow)
        shown = (
            np.ones((n, offset_group, *kernel, oh, ow))
            if mask is None
            else mask.reshape(n, offset_group, *kernel, oh, ow)
        )
        y = np.zeros((n, m, oh, ow), x.dtype) + (0 if b is None else b.reshape(-1, 1, 1))
        for i, of, ky, kx, oy, ox in np.ndindex(n, offset_group, *kernel, oh, ow):
            dy, dx = moved[i, of, ky, kx, :, oy, ox]
            at = [
                oy * strides[0] - pads[0] + ky * dilations[0] + dy,
                ox * strides[1] - pads[1] + kx * dilations[1] + dx,
            ]
            part = slice(of * c // offset_group, (of + 1) * c // offset_group)
            found = np.zeros(c)
            found[part] = _sample(x[i, part], at, "linear", "zeros", 0) * shown[i, of, ky, kx, oy, ox]
            for out in range(m):
                of_group = out * group // m
                read = found[of_group * per_group : (of_group + 1) * per_group]
                y[i, out, oy, ox] += w[out, :, ky, kx] @ read
        return (y,)


for _kernel_class in (GridSample, AffineGrid, DeformConv):
    _kernel_class.op_domain = ""
KERNELS = [GridSample, AffineGrid, DeformConv]
