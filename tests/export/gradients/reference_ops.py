"""Kernels in NumPy that ``onnx.reference`` lacks, has in float32 alone, or gets wrong.

ConvTranspose with groups, MaxPool and AveragePool with ``pads`` that differ by axis, with dilations or
ceil_mode, Pad with negative pads, Erf (and Gelu) in float64, and LpNormalization of negative numbers.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from . import reference_loops, reference_sampling

Array = np.ndarray[Any, Any]


class ConvTranspose(OpRun):
    def _run(self, x: Array, w: Array, b: Any = None, **attributes: Any) -> tuple[Array]:  # type: ignore[override]
        kernel = w.shape[2:]
        rank = len(kernel)
        strides = attributes.get("strides") or [1] * rank
        dilations = attributes.get("dilations") or [1] * rank
        pads = attributes.get("pads") or [0] * 2 * rank
        extra = attributes.get("output_padding") or [0] * rank
        group = attributes.get("group") or 1
        assert not attributes.get("output_shape")
        sizes = [
            (n - 1) * s + (k - 1) * d + 1 + e
            for n, s, k, d, e in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
        ]
        per_in, per_out = x.shape[1] // group, w.shape[1]
        full = np.zeros((x.shape[0], group * per_out, *sizes), x.dtype)
        for part, at in itertools.product(range(group), itertools.product(*map(range, kernel))):
            inputs, outputs = (
                slice(part * per_in, (part + 1) * per_in),
                slice(part * per_out, (part + 1) * per_out),
            )
            where = tuple(
                slice(k * d, k * d + (n - 1) * s + 1, s)
                for k, d, n, s in zip(at, dilations, x.shape[2:], strides, strict=True)
            )
            full[:, outputs, *where] += np.einsum("nc...,cm->nm...", x[:, inputs], w[inputs, :, *at])
        kept = tuple(slice(b, n - e) for b, e, n in zip(pads[:rank], pads[rank:], sizes, strict=True))
        bias = 0 if b is None else b.reshape(-1, *[1] * rank)
        return (full[:, :, *kept] + bias,)


class _Pool(OpRun):
    def _windows(self, x: Array, attributes: dict[str, Any]) -> tuple[list[Array], list[Array]]:
        """The cells of every window, NaN outside the tensor; and 1 where count_include_pad counts."""
        kernel = attributes["kernel_shape"]
        rank = len(kernel)
        strides = attributes.get("strides") or [1] * rank
        dilations = attributes.get("dilations") or [1] * rank
        pads = list(attributes.get("pads") or [0] * 2 * rank)
        auto_pad = attributes.get("auto_pad") or "NOTSET"
        sizes = x.shape[2:]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        outs = []
        for a in range(rank):
            if auto_pad.startswith("SAME"):
                out = -(-sizes[a] // strides[a])
                amount = max((out - 1) * strides[a] + spans[a] - sizes[a], 0)
                pads[a], pads[a + rank] = amount // 2, amount - amount // 2
                if auto_pad == "SAME_LOWER":
                    pads[a], pads[a + rank] = pads[a + rank], pads[a]
            room = sizes[a] + pads[a] + pads[a + rank] - spans[a]
            out = room // strides[a] + 1
            if attributes.get("ceil_mode"):
                out = -(-room // strides[a]) + 1
                if (out - 1) * strides[a] >= sizes[a] + pads[a]:
                    out -= 1  # no window may start in the padding at the end
            outs.append(out)
        reach = [
            max((o - 1) * s + r, n + b + e)
            for o, s, r, n, b, e in zip(outs, strides, spans, sizes, pads[:rank], pads[rank:], strict=True)
        ]
        cells = np.full((*x.shape[:2], *reach), np.nan)
        cells[:, :, *[slice(b, b + n) for b, n in zip(pads[:rank], sizes, strict=True)]] = x
        counted = np.zeros(reach)
        counted[
            tuple(slice(0, n + b + e) for n, b, e in zip(sizes, pads[:rank], pads[rank:], strict=True))
        ] = 1
        views, counts = [], []
        for at in itertools.product(*map(range, kernel)):
            where = tuple(
                slice(k * d, k * d + (o - 1) * s + 1, s)
                for k, d, o, s in zip(at, dilations, outs, strides, strict=True)
            )
            views.append(cells[:, :, *where])
            counts.append(counted[where])
        return views, counts


class MaxPool(_Pool):
    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:  # type: ignore[override]
        return (np.nanmax(self._windows(x, attributes)[0], axis=0).astype(x.dtype),)


class AveragePool(_Pool):
    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:  # type: ignore[override]
        views, counts = self._windows(x, attributes)
        if not attributes.get("count_include_pad"):
            return (np.nanmean(views, axis=0).astype(x.dtype),)
        return ((np.nansum(views, axis=0) / np.sum(counts, axis=0)).astype(x.dtype),)


class Pad(OpRun):
    def _run(
        self, x: Array, pads: Array, value: Any = None, axes: Any = None, mode: str = "constant"
    ) -> tuple[Array]:  # type: ignore[override]
        over = [a % x.ndim for a in (range(x.ndim) if axes is None else axes)]
        begins, ends = pads[: len(over)], pads[len(over) :]
        for axis, begin, end in zip(over, begins, ends, strict=True):
            widths = [(0, 0)] * x.ndim
            widths[axis] = (max(begin, 0), max(end, 0))
            more = {"constant_values": 0 if value is None else value} if mode == "constant" else {}
            x = np.pad(x, widths, mode=mode, **more)  # type: ignore[call-overload]
            kept = [slice(None)] * x.ndim
            kept[axis] = slice(max(-begin, 0), x.shape[axis] - max(-end, 0))
            x = x[tuple(kept)]
        return (x,)


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), dtype=x.dtype)


class Erf(OpRun):
    def _run(self, x: Array) -> tuple[Array]:  # type: ignore[override]
        return (_erf(x),)


class Gelu(OpRun):
    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:  # type: ignore[override]
        if approximate == "tanh":
            return (x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (x * 0.5 * (1 + _erf(x / math.sqrt(2))),)


class LpNormalization(OpRun):
    def _run(self, x: Array, axis: int = -1, p: int = 2) -> tuple[Array]:  # type: ignore[override]
        norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


class GlobalLpPool(OpRun):
    def _run(self, x: Array, p: int = 2) -> tuple[Array]:  # type: ignore[override]
        over = tuple(range(2, x.ndim))
        return ((np.abs(x) ** p).sum(axis=over, keepdims=True) ** (1 / p),)


class LRN(OpRun):
    def _run(  # type: ignore[override]
        self, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1
    ) -> tuple[Array]:
        total = np.zeros_like(x)
        for c in range(x.shape[1]):  # onnx.reference counts images here, not channels
            near = slice(max(0, c - (size - 1) // 2), c + math.ceil((size - 1) / 2) + 1)
            total[:, c] = (x[:, near] ** 2).sum(axis=1)
        return (x / (bias + alpha / size * total) ** beta,)


for _kernel in (ConvTranspose, MaxPool, AveragePool, Pad, Erf, Gelu, GlobalLpPool, LRN, LpNormalization):
    _kernel.op_domain = ""
KERNELS = [
    ConvTranspose,
    MaxPool,
    AveragePool,
    Pad,
    Erf,
    Gelu,
    GlobalLpPool,
    LRN,
    LpNormalization,
    *reference_sampling.KERNELS,
    *reference_loops.KERNELS,
]
