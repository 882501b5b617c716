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
from .indexing import added_along

_DIGIT = 4096


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
    g: Var,
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
    rank = len(kernel_shape)
    cells = math.prod(kernel_shape)
    if _tiles(X, g, kernel_shape, strides, pads, dilations):
        return _max_of_tiles(op, g, X, kernel_shape)
    spans = reach(kernel_shape, dilations)
    last = _past_last_start(op, g, strides)
    begins = pads[:rank]
    lowest = float(np.finfo(X.dtype.numpy()).min) if X.dtype.name != "BFLOAT16" else -3e38
    padded = op.pad(X, [0, 0, *begins], _completing(op, g, X, strides, begins, spans), lowest)
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
        scatter_windows(
            op, _merged(op, picked, cells, rank), op.const(one_hot), X, strides, begins, dilations, spans
        ),
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
            _counts(
                X.shape[a + 2],
                g.shape[a + 2],
                kernel_shape[a],
                strides[a],
                pads[a],
                pads[rank + a],
                dilations[a],
                bool(count_include_pad),
            )
            for a in range(rank)
        ]
        table = counts[0]
        for c in counts[1:]:
            table = np.multiply.outer(table, c)
        g = g / op.const(table.astype(g.dtype.numpy()))
    else:
        # How many cells of each window count, by pooling ones (made from the data, so that they lie
        # on its device) padded until every window is complete.
        first = op.slice(X, [0, 0], [1, 1], [0, 1])
        ones = op.mask(op.Equal(first, first), g)
        behind = _completing(op, g, X, strides, begins, spans)
        declared: list[Pad] = [0, 0, *pads[rank:]]
        begins_left: list[Pad] = [0, 0, *begins]
        if count_include_pad:
            ones = op.pad(ones, [0, 0, *begins], declared, 1)
            begins_left = [0] * X.rank
            behind = [_at_least_0(op, b - d) for b, d in zip(behind, declared, strict=True)]
        share = op.AveragePool(
            op.pad(ones, begins_left, behind),
            kernel_shape=kernel_shape,
            strides=strides,
            dilations=dilations if any(d != 1 for d in dilations) else None,  # new in opset 19
            dims=(1, 1, *g.shape[2:]),
        )
        g = g / (share * cells)
    ones = op.const(np.ones((1, 1, *kernel_shape), dtype=g.dtype.numpy()))
    spread = scatter_windows(op, _merged(op, g, 1, rank), ones, X, strides, begins, dilations, spans)
    return _unmerged(op, spread, X)


def _past_last_start(op: Builder, g: Var, strides: Sequence[int]) -> list[Pad]:
    """One past the cell at which the last window starts, along each spatial axis."""
    return [(op.dim(g, a + 2) - 1) * s + 1 for a, s in enumerate(strides)]


def _completing(
    op: Builder, g: Var, X: Var, strides: Sequence[int], begins: Sequence[Pad], spans: Sequence[int]
) -> list[Pad]:
    """The padding behind each axis with which every window is complete, be it declared or ceil_mode's."""
    last = _past_last_start(op, g, strides)
    return [0, 0] + [
        _at_least_0(op, last[a] + (span - 1) - op.dim(X, a + 2) - begins[a]) for a, span in enumerate(spans)
    ]


def _at_least_0(op: Builder, n: Pad) -> Pad:
    return max(n, 0) if isinstance(n, int) else op.Max(n, op.operand(0, n), dims=())


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
    sizes: tuple[Any, ...] = (*X.shape[2:], *g.shape[2:])
    rank = len(kernel_shape)
    return (
        tuple(kernel_shape) == tuple(strides)
        and all(isinstance(p, int) and p == 0 for p in pads)
        and all(d == 1 for d in dilations)
        and is_static(sizes)
        and all(n == o * k for n, o, k in zip(sizes[:rank], sizes[rank:], kernel_shape, strict=True))
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
    return op.Reshape(merged, [0, 0, *X.shape[2:]], dims=X.dims)


def _spread_over_tiles(op: Builder, g: Var, X: Var, kernel: Sequence[int]) -> Var:
    holes = [v for o in g.shape[2:] for v in (o, 1)]
    filled = [v for o, k in zip(g.shape[2:], kernel, strict=True) for v in (o, k)]
    g = op.Reshape(g, [0, 0, *holes], dims=(*g.shape[:2], *holes))
    g = op.Expand(g, [1, 1, *filled], dims=(*g.shape[:2], *filled))
    return op.Reshape(g, [0, 0, *X.shape[2:]], dims=X.dims)


def _merged(op: Builder, x: Var, channels: int, rank: int) -> Var:
    """(N, C, [channels,] ...) as (N*C, channels, ...): one weight serves all channels, whatever C is."""
    spatial = x.shape[-rank:]
    dims = (None, channels, *spatial)
    if is_static(spatial):
        return op.Reshape(x, [-1, channels, *spatial], dims=dims)
    tail = op.Shape(x, start=x.rank - rank)
    return op.Reshape(x, op.Concat([-1, channels], tail, axis=0), dims=dims)


def _unmerged(op: Builder, x: Var, X: Var) -> Var:
    return op.Reshape(x, op.shape_of(X), dims=X.dims) if not is_static(X.shape[1:]) else op.reshape_like(x, X)


@vjp("LpPool", wrt="X")
def lp_pool_x(
    op: Builder,
    g: Var,
    X: Var,
    Y: Var,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[Pad, ...],
    dilations: tuple[int, ...],
    p: int,
) -> Var:
    """Of y = (sum of |x|^p)^(1/p) over each window."""
    rank = len(kernel_shape)
    spans = reach(kernel_shape, dilations)
    ones = op.const(np.ones((1, 1, *kernel_shape), dtype=g.dtype.numpy()))
    shared = _merged(op, g * _power(op, Y, 1 - p), 1, rank)
    spread = scatter_windows(op, shared, ones, X, strides, pads[:rank], dilations, spans)
    return _unmerged(op, spread, X) * op.Sign(X) * _power(op, op.Abs(X), p - 1)


@vjp("GlobalLpPool", wrt="X")
def global_lp_pool_x(op: Builder, g: Var, X: Var, Y: Var, *, p: int) -> Var:
    return g * _power(op, Y, 1 - p) * op.Sign(X) * _power(op, op.Abs(X), p - 1)


def _power(op: Builder, x: Var, exponent: int) -> Var:
    """``x`` (not negative) to a power; 0 stays 0, where the norm has no gradient."""
    if exponent in (0, 1):
        return x if exponent else op.mask(x > 0, x)
    raised = op.Pow(op.where(x > 0, x, 1.0), op.operand(float(exponent), x), dims=x.dims)
    return op.where(x > 0, raised, op.operand(0.0, x))


@vjp("MaxUnpool", wrt="X")
def max_unpool_x(
    op: Builder,
    g: Var,
    X: Var,
    I: Var,  # noqa: E741  (ONNX's name)
    output_shape: Var | None,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
) -> Var:
    if output_shape is None:
        return op.Gather(op.Reshape(g, [-1], dims=(None,)), I, axis=0, dims=X.dims)
    # ONNX counts the indices in the pool's shape, ONNX Runtime in the one that is asked for: the operator
    # itself says which entry, from 1 on, it puts where. In two digits that is exact in float32.
    flat = op.Reshape(X, [-1], dims=(None,))
    entries = op.reshape_like(op.iota(flat, 0) + 1, X)

    def placed(digit: Var) -> Var:
        there = op.MaxUnpool(
            op.cast(Var(digit.value, op, X.dims), X.dtype),
            I,
            output_shape,
            kernel_shape=kernel_shape,
            strides=strides,
            pads=pads,
        )
        return op.cast(op.Reshape(there, [-1], dims=(None,)), entries.dtype)

    base = op.operand(_DIGIT, entries)
    found = placed(op.Div(entries, base)) * _DIGIT + placed(op.Mod(entries, base))
    g = op.Reshape(g, [-1], dims=(None,))
    added = added_along(op, g, 0, found, op.dim(flat, 0) + 1)
    return op.reshape_like(op.slice(added, [1], [2**62], [0]), X)
