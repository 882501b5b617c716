"""Pools."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..builder import Builder, Var, is_static
from ..geometry import Pad, reach
from ..registry import vjp
from .convolution import scatter_windows


@vjp("GlobalAveragePool", wrt="X")
def global_average_pool_x(op: Builder, g: Var, X: Var) -> Var:
    return op.expand_like(g / op.count(X, range(2, X.rank)), X)


@vjp("GlobalMaxPool", wrt="X")
def global_max_pool_x(op: Builder, g: Var, X: Var) -> Var:
    # The first of equal maxima takes it all, as in torch.
    cells = op.count(X, range(2, X.rank))
    flat = op.Reshape(X, [0, 0, -1], dims=(*X.shape[:2], cells if isinstance(cells, int) else None))
    winner = op.ArgMax(flat, axis=2, keepdims=1, dims=(*X.shape[:2], 1))
    g = op.Reshape(g, [0, 0, 1], dims=(*X.shape[:2], 1))
    return op.reshape_like(op.where(op.Equal(winner, op.iota(flat, 2)), g, 0.0), X)


@vjp("MaxPool", wrt="X")
def max_pool_x(
    op: Builder,
    gs: Sequence[Var | None],
    X: Var,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[Pad, ...],
    dilations: tuple[int, ...],
) -> Var:
    # Without the Indices output, which TensorRT and WebGPU do not have: the cells of each window are
    # laid side by side with slices (exact, unlike a one-hot convolution under TF32), ArgMax picks the
    # first of equal maxima as torch does, and what it picked is added back into place.
    g = gs[0]
    assert g is not None
    rank = len(kernel_shape)
    cells = math.prod(kernel_shape)
    if _tiles(X, g, kernel_shape, strides, pads, dilations):
        return _max_of_tiles(op, g, X, kernel_shape)
    spans = reach(kernel_shape, dilations)
    outs = [op.dim(g, a + 2) for a in range(rank)]
    last = [(o - 1) * s + 1 for o, s in zip(outs, strides, strict=True)]  # one past the last window's start
    begins = pads[:rank]
    # Windows may reach past the declared padding (ceil_mode).
    ends: list[Any] = []
    for a in range(rank):
        beyond = last[a] + (spans[a] - 1) - op.dim(X, a + 2) - begins[a]
        ends.append(max(beyond, 0) if isinstance(beyond, int) else op.Max(beyond, op.operand(0, beyond), dims=()))
    lowest = float(np.finfo(X.dtype.numpy()).min) if X.dtype.name != "BFLOAT16" else -3e38
    padded = op.pad(X, [0, 0, *begins], [0, 0, *ends], lowest)
    views = []
    for offsets in itertools.product(*[range(k) for k in kernel_shape]):
        starts = [o * d for o, d in zip(offsets, dilations, strict=True)]
        stops = op.vector([n + s for n, s in zip(last, starts, strict=True)])
        view = op.slice(padded, starts, stops, range(2, rank + 2), strides)
        views.append(op.Unsqueeze(view, [2], dims=(*g.shape[:2], 1, *g.shape[2:])))
    side_by_side = op.Concat(*views, axis=2, dims=(*g.shape[:2], cells, *g.shape[2:]))
    winner = op.ArgMax(side_by_side, axis=2, keepdims=1, dims=(*g.shape[:2], 1, *g.shape[2:]))
    which = op.const(np.arange(cells, dtype=np.int64).reshape(cells, *[1] * rank))
    picked = op.where(op.Equal(winner, which), op.Unsqueeze(g, [2], dims=winner.dims), 0.0)
    one_hot = np.eye(cells, dtype=g.dtype.numpy()).reshape(cells, 1, *kernel_shape)
    return _unmerged(
        op,
        scatter_windows(op, _merged(op, picked, cells), op.const(one_hot), X, strides, begins, dilations, spans),
        X,
    )


@vjp("AveragePool", wrt="X")
def average_pool_x(
    op: Builder,
    g: Var,
    X: Var,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[Pad, ...],
    dilations: tuple[int, ...],
    count_include_pad: int,
    ceil_mode: int,
    auto_pad: str,
) -> Var:
    rank = len(kernel_shape)
    cells = math.prod(kernel_shape)
    if _tiles(X, g, kernel_shape, strides, pads, dilations):
        return _spread_over_tiles(op, g / cells, X, kernel_shape)
    begins, spans = pads[:rank], reach(kernel_shape, dilations)
    sizes = (*X.shape[2:], *g.shape[2:])
    if all(isinstance(p, int) and p == 0 for p in pads) and not ceil_mode:
        g = g / cells
    elif is_static(sizes) and all(isinstance(p, int) for p in pads):
        counts = [
            _counts(X.shape[a + 2], g.shape[a + 2], kernel_shape[a], strides[a], pads[a], pads[rank + a], dilations[a], bool(count_include_pad))
            for a in range(rank)
        ]
        table = counts[0]
        for c in counts[1:]:
            table = np.multiply.outer(table, c)
        g = g / op.const(table.astype(g.dtype.numpy()))
    else:
        # The share of each window that counts, by pooling ones (made from the data, so that they lie
        # on its device).
        first = op.slice(X, [0, 0], [1, 1], [0, 1])
        share = op.AveragePool(
            op.mask(op.Equal(first, first), g),
            kernel_shape=kernel_shape,
            strides=strides,
            pads=None if auto_pad != "NOTSET" else pads,
            auto_pad=auto_pad,
            count_include_pad=1,
            ceil_mode=ceil_mode,
            dims=(1, 1, *g.shape[2:]),
        )
        g = g / cells if count_include_pad else g / (share * cells)
    ones = op.const(np.ones((1, 1, *kernel_shape), dtype=g.dtype.numpy()))
    spread = scatter_windows(op, _merged(op, g, 1), ones, X, strides, begins, dilations, spans)
    return _unmerged(op, spread, X)


def _counts(
    n: Any, out: Any, kernel: int, stride: int, begin: Any, end: Any, dilation: int, include_pad: bool
) -> np.ndarray[Any, Any]:
    """How many cells of each window along one axis the average is taken over."""
    at = np.arange(out)[:, None] * stride - begin + np.arange(kernel)[None] * dilation
    inside = (at >= -begin) & (at < n + end) if include_pad else (at >= 0) & (at < n)
    return np.asarray(inside.sum(axis=1))


def _tiles(
    X: Var,
    g: Var,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[Pad],
    dilations: Sequence[int],
) -> bool:
    """Whether the windows tile the input: each cell in exactly one."""
    return (
        tuple(kernel_shape) == tuple(strides)
        and all(isinstance(p, int) and p == 0 for p in pads)
        and all(d == 1 for d in dilations)
        and is_static(X.shape[2:])
        and all(n == o * k for n, o, k in zip(X.shape[2:], g.shape[2:], kernel_shape, strict=True))  # type: ignore[operator]
    )


def _max_of_tiles(op: Builder, g: Var, X: Var, kernel: Sequence[int]) -> Var:
    rank = len(kernel)
    sizes = [v for o, k in zip(g.shape[2:], kernel, strict=True) for v in (o, k)]
    outer = [0, 1, *range(2, 2 + 2 * rank, 2)]
    inner = [*range(3, 3 + 2 * rank, 2)]
    order = [*outer, *inner]
    tiles = op.transpose(op.Reshape(X, [0, 0, *sizes], dims=(*X.shape[:2], *sizes)), order)
    cells = math.prod(kernel)
    lead = g.shape
    flat = op.Reshape(tiles, [0, 0, *lead[2:], cells], dims=(*lead, cells))
    winner = op.ArgMax(flat, axis=rank + 2, keepdims=1, dims=(*lead, 1))
    g = op.Unsqueeze(g, [rank + 2], dims=(*lead, 1))
    picked = op.where(op.Equal(winner, op.iota(flat, rank + 2)), g, 0.0)
    back = op.Reshape(picked, [0, 0, *lead[2:], *kernel], dims=(*lead, *kernel))
    merged = op.transpose(back, [order.index(k) for k in range(len(order))])
    return op.Reshape(merged, [0, 0, *X.shape[2:]], dims=X.dims)  # type: ignore[no-any-return]


def _spread_over_tiles(op: Builder, g: Var, X: Var, kernel: Sequence[int]) -> Var:
    holes = [v for o in g.shape[2:] for v in (o, 1)]
    filled = [v for o, k in zip(g.shape[2:], kernel, strict=True) for v in (o, k)]
    g = op.Reshape(g, [0, 0, *holes], dims=(*g.shape[:2], *holes))
    g = op.Expand(g, [1, 1, *filled], dims=(*g.shape[:2], *filled))
    return op.Reshape(g, [0, 0, *X.shape[2:]], dims=X.dims)  # type: ignore[no-any-return]


def _merged(op: Builder, x: Var, channels: int) -> Var:
    """(N, C, [channels,] ...) as (N*C, channels, ...): one weight serves all channels, whatever C is."""
    spatial = x.shape[3:] if channels > 1 else x.shape[2:]
    dims = (None, channels, *spatial)
    if is_static(spatial):
        return op.Reshape(x, [-1, channels, *spatial], dims=dims)  # type: ignore[no-any-return]
    tail = op.Shape(x, start=x.rank - len(spatial))
    return op.Reshape(x, op.Concat([-1, channels], tail, axis=0), dims=dims)  # type: ignore[no-any-return]


def _unmerged(op: Builder, x: Var, X: Var) -> Var:
    return op.Reshape(x, op.shape_of(X), dims=X.dims) if not is_static(X.shape[1:]) else op.reshape_like(x, X)
