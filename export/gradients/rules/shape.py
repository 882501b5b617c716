"""Rules of operators that only move values: reshape, transpose, join, cut, repeat."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import Builder, Var
from ..cotangent import Cotangent, dense, window
from ..registry import Unsupported, vjp
from .indexing import added_along, picked_along


@vjp("Reshape", wrt="data")
def reshape_data(op: Builder, g: Var, data: Var) -> Var:
    return op.reshape_like(g, data)


@vjp("Flatten", wrt="input")
def flatten_input(op: Builder, g: Var, input: Var) -> Var:
    return op.reshape_like(g, input)


@vjp("Squeeze", wrt="data")
@vjp("Unsqueeze", wrt="data")
def squeeze_data(op: Builder, g: Var, data: Var) -> Var:
    return op.reshape_like(g, data)


@vjp("Transpose", wrt="data")
def transpose_data(op: Builder, g: Var, data: Var, *, perm: tuple[int, ...] | None) -> Var:
    order = list(perm) if perm is not None else list(reversed(range(data.rank)))
    return op.transpose(g, [order.index(k) for k in range(len(order))])


@vjp("Expand", wrt="input")
def expand_input(g: Var) -> Var:
    return g


@vjp("Concat", wrt="inputs")
def concat_inputs(op: Builder, g: Var, inputs: tuple[Var, ...], index: int, *, axis: int) -> Var:
    axis %= g.rank
    start: Any = 0
    for x in inputs[:index]:
        start = start + op.dim(x, axis)
    end = start + op.dim(inputs[index], axis)
    return op.slice(g, op.vector([start]), op.vector([end]), [axis])


@vjp("Split", wrt="input")
def split_input(
    op: Builder, gs: Sequence[Var | None], input: Var, outputs: tuple[Var, ...], *, axis: int
) -> Cotangent:
    axis %= input.rank
    sizes = [op.dim(o, axis) for o in outputs]
    flowing = [k for k, g in enumerate(gs) if g is not None]
    if len(flowing) == 1 and all(isinstance(n, int) for n in sizes[: flowing[0] + 1]):
        k = flowing[0]
        g = gs[k]
        assert g is not None
        return window(op, g, input, axis, sum(sizes[:k]), sizes[k])  # type: ignore[arg-type]
    parts = [op.zeros_like(o) if g is None else g for g, o in zip(gs, outputs, strict=True)]
    return op.Concat(*parts, axis=axis, dims=input.dims)


@vjp("Slice", wrt="data")
def slice_data(
    op: Builder, g: Var, data: Var, starts: Var, ends: Var, axes: Var | None, steps: Var | None
) -> Cotangent:
    count = starts.shape[0]
    along = op.ints(axes) if axes is not None else tuple(range(count)) if isinstance(count, int) else None
    if along is None:
        raise Unsupported("its input axes is computed at run time")
    strides = (1,) * len(along) if steps is None else op.ints(steps)
    first, last = op.ints(starts), op.ints(ends)
    out: Cotangent = g
    for k, axis in enumerate(a % data.rank for a in along):
        n = data.shape[axis]
        stride = None if strides is None else strides[k]
        length = g.shape[axis]
        wanted: range | Var | None = None
        if first is not None and last is not None and stride is not None and isinstance(n, int):
            wanted = range(*slice(first[k], _end(last[k], stride), stride).indices(n))
        elif first is not None and stride == 1 and first[k] >= 0 and isinstance(length, int):
            wanted = range(first[k], first[k] + length)
        if wanted is None:
            bounds = [_entry(op, v, k) for v in (starts, ends)]
            step = None if steps is None else _entry(op, steps, k)
            # What the same Slice does to 0, 1, 2, ... tells which cells it read.
            wanted = op.Slice(op.iota(data, axis), *bounds, [0], step, dims=(length,))
        out = _uncut(op, dense(op, out), data, axis, wanted, stride)
    return out


def _uncut(op: Builder, g: Var, data: Var, axis: int, wanted: range | Var, step: int | None) -> Cotangent:
    """The adjoint of taking the cells ``wanted`` of one axis of ``data``."""
    n = data.shape[axis]
    restored = tuple(n if a == axis else d for a, d in enumerate(g.shape))
    if isinstance(wanted, range):
        if step == 1:
            # Only the last axis that is cut stays a stretch; those before are filled in on the way.
            return window(op, g, Var(data.value, op, restored), axis, wanted.start, len(wanted))
        assert isinstance(n, int)
        return picked_along(op, g, axis, np.asarray(wanted, dtype=np.int64), n)
    size = op.dim(data, axis)
    if step != 1:
        return added_along(op, g, axis, wanted, size)
    begin = op.Squeeze(op.slice(wanted, [0], [1], [0]), [0], dims=())
    begins: list[Any] = [0] * g.rank
    tails: list[Any] = [0] * g.rank
    begins[axis], tails[axis] = begin, size - begin - op.dim(g, axis)
    return Var(op.pad(g, begins, tails).value, op, restored)


def _entry(op: Builder, bounds: Var, k: int) -> Var:
    return op.slice(bounds, [k], [k + 1], [0])


def _end(end: int, step: int) -> int | None:
    return None if step < 0 and end < -(2**31) else end


@vjp("Pad", wrt="data")
def pad_data(op: Builder, g: Var, data: Var, pads: Var, axes: Var | None, *, mode: str) -> Var:
    known, along = op.ints(pads), None if axes is None else op.ints(axes)
    if known is None or (axes is not None and along is None):
        if mode != "constant":
            raise Unsupported("its input pads is computed at run time")
        # What was added is cut off, and what a negative pad cut off comes back as zeros.
        return op.Pad(g, op.Neg(pads), None, axes, dims=data.dims)
    over = [a % data.rank for a in along] if along else list(range(data.rank))
    for k, axis in enumerate(over):
        begin, end = known[k], known[k + len(over)]
        if begin == end == 0:
            continue
        n = data.shape[axis]
        if mode == "constant":
            g = _unpadded(op, g, data, axis, begin, end)
        elif not isinstance(n, int):
            # Where the cells of the result come from, by padding 0, 1, 2, ... alike.
            source = op.Pad(op.iota(data, axis), [begin, end], mode=mode, dims=(g.shape[axis],))
            g = added_along(op, g, axis, source, op.dim(data, axis))
        else:
            source = np.pad(np.arange(n), (max(begin, 0), max(end, 0)), mode=mode)  # type: ignore[call-overload]
            source = source[max(-begin, 0) : len(source) - max(-end, 0)]
            g = picked_along(op, g, axis, source, n)
    return g


def _unpadded(op: Builder, g: Var, data: Var, axis: int, begin: int, end: int) -> Var:
    """The adjoint of constant padding: cut what was added, refill what a negative pad cut."""
    start = max(begin, 0)
    stop = op.dim(data, axis) + start - max(-begin, 0) - max(-end, 0)
    g = op.slice(g, [start], op.vector([stop]), [axis])
    begins, ends = [0] * g.rank, [0] * g.rank
    begins[axis], ends[axis] = max(-begin, 0), max(-end, 0)
    g = op.pad(g, begins, ends)
    return Var(g.value, op, tuple(data.shape[axis] if a == axis else d for a, d in enumerate(g.shape)))


@vjp("Tile", wrt="input")
def tile_input(op: Builder, g: Var, input: Var, *, repeats: tuple[int, ...]) -> Var:
    split: list[Any] = [
        v for r, d in zip(repeats, [op.dim(input, a) for a in range(input.rank)], strict=True) for v in (r, d)
    ]
    apart = op.reshape(g, split)
    return op.reshape_like(op.sum(apart, range(0, 2 * input.rank, 2), keepdims=False), input)


@vjp("DepthToSpace", wrt="input")
def depth_to_space_input(op: Builder, g: Var, input: Var, *, blocksize: int, mode: str) -> Var:
    n, _, h, w = input.shape
    sizes = [op.dim(input, 2), op.dim(input, 3)]
    apart = op.Reshape(g, op.vector([0, -1, sizes[0], blocksize, sizes[1], blocksize]))
    apart = Var(apart.value, op, (n, None, h, blocksize, w, blocksize))
    order = [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
    return op.Reshape(op.transpose(apart, order), op.vector([0, -1, *sizes]), dims=input.dims)


@vjp("SpaceToDepth", wrt="input")
def space_to_depth_input(op: Builder, g: Var, input: Var, *, blocksize: int) -> Var:
    return _to_space(op, g, input, blocksize, "DCR")


@vjp("SpaceToDepth", wrt="input", since=28)
def space_to_depth_of_mode(op: Builder, g: Var, input: Var, *, blocksize: int, mode: str) -> Var:
    return _to_space(op, g, input, blocksize, mode)


def _to_space(op: Builder, g: Var, input: Var, blocksize: int, mode: str) -> Var:
    n, c, _, _ = input.shape
    if g.dims is None:
        g = Var(g.value, op, (n, None, None, None))
    cells = [op.dim(g, 2), op.dim(g, 3)]
    block = (blocksize, blocksize)
    first = mode == "DCR"  # the place in the block counts the channels first
    apart = op.Reshape(g, op.vector([0, *block, -1, *cells] if first else [0, -1, *block, *cells]))
    apart = Var(apart.value, op, (n, *block, c, *g.shape[2:]) if first else (n, c, *block, *g.shape[2:]))
    turned = op.transpose(apart, [0, 3, 4, 1, 5, 2] if first else [0, 1, 4, 2, 5, 3])
    joined = [op.dim(input, 2), op.dim(input, 3)]
    return op.Reshape(turned, op.vector([0, -1, *joined]), dims=input.dims)


@vjp("Range", wrt="start")
def range_start(op: Builder, g: Var) -> Var:
    return op.sum(g, [0], keepdims=False)


@vjp("Range", wrt="delta")
def range_delta(op: Builder, g: Var) -> Var:
    return op.sum(g * op.cast(op.iota(g, 0), g.dtype), [0], keepdims=False)


@vjp("OptionalGetElement", wrt="input")
def optional_get_element_input(g: Var, input: Var) -> Var:
    if not isinstance(input.value.type, ir.TensorType):
        raise Unsupported("it handles a value that may be absent")
    return g
