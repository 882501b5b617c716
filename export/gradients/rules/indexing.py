"""Gathers and scatters.

An index that is a constant is undone by another gather: cell d of the input receives what the output's
cells that read it hold, or an added zero. No scatter is needed, which TensorRT and the web lack.
"""

from typing import Any

import numpy as np

from ..builder import Builder, Dim, Var
from ..cotangent import Cotangent, window
from ..registry import NotConstant, vjp

#: Up to so many readers of one cell are added gather by gather; beyond, one matrix product does it.
_MOST_GATHERS = 4


def picked_along(op: Builder, g: Var, axis: int, indices: np.ndarray[Any, Any], size: int) -> Var:
    """The adjoint of ``take(x, indices, axis)``.

    Args:
        op: the builder.
        g: the gradient of what was taken.
        axis: the axis, not negative.
        indices: (count) ints in [0, size).
        size: x's size along the axis.
    """
    dims = tuple(size if k == axis else d for k, d in enumerate(g.shape))
    readers: list[list[int]] = [[] for _ in range(size)]
    for at, index in enumerate(indices.tolist()):
        readers[index].append(at)
    most = max(map(len, readers))
    if most > _MOST_GATHERS:
        table = np.zeros((size, len(indices)), dtype=g.dtype.numpy())
        table[indices, np.arange(len(indices))] = 1
        return _mixed_along(op, op.const(table), g, axis, dims)
    nothing = len(indices)
    ends = [0] * g.rank
    ends[axis] = 1
    zero_added = g if all(len(r) == most for r in readers) else op.pad(g, [0] * g.rank, ends)
    out: Var | None = None
    for turn in range(most):
        source = [r[turn] if turn < len(r) else nothing for r in readers]
        taken = op.Gather(zero_added, source, axis=axis, dims=dims)
        out = taken if out is None else out + taken
    assert out is not None
    return out


def _mixed_along(op: Builder, table: Var, g: Var, axis: int, dims: tuple[Dim, ...]) -> Var:
    """``table`` (size, count) applied along one axis of g."""
    order = [k for k in range(g.rank) if k != axis] + [axis]
    turned = op.transpose(g, order)
    mixed = op.MatMul(turned, op.swap(table))
    back = op.transpose(mixed, [order.index(k) for k in range(len(order))])
    return Var(back.value, op, dims)


@vjp("Gather", wrt="data")
def gather_data(op: Builder, g: Var, data: Var, indices: Var, *, axis: int) -> Cotangent:
    axis %= data.rank
    size = data.shape[axis]
    rank = indices.rank
    known = op.array(indices)
    if known is not None and (isinstance(size, int) or (known >= 0).all()):
        flat = known.reshape(-1)
        if isinstance(size, int):
            flat = np.where(flat < 0, flat + size, flat)
        stretch = op.reshape(g, (*g.shape[:axis], len(flat), *g.shape[axis + rank :]), g if rank == 1 else None) if rank != 1 else g
        if len(flat) and (np.diff(flat) == 1).all():
            return window(op, stretch, data, axis, int(flat[0]), len(flat))
        if isinstance(size, int):
            return picked_along(op, stretch, axis, flat, size)
    # An index of the run time: a table of which output cell reads which input cell.
    if rank > 1:
        raise NotConstant("its indices are computed at run time and have more than one axis")
    spread = op.reshape(indices, (1,)) if rank == 0 else indices
    cells = op.iota(data, axis)
    column = op.Unsqueeze(cells, [1], dims=(size, 1))
    wrapped = op.where(spread < 0, spread + op.dim(data, axis), spread)
    table = op.mask(op.Equal(column, op.cast(wrapped, cells.dtype)), g)
    if rank == 0:
        g = op.Unsqueeze(g, [axis], dims=(*g.shape[:axis], 1, *g.shape[axis:]))
    return _mixed_along(op, table, g, axis, data.shape)


@vjp("GatherND", wrt="data")
def gather_nd_data(op: Builder, g: Var, data: Var, indices: Var, *, batch_dims: int) -> Var:
    known = op.array(indices)
    if known is None or batch_dims:
        raise NotConstant("its indices are computed at run time, or it has batch_dims")
    depth = known.shape[-1]
    sizes = data.shape[:depth]
    if not all(isinstance(n, int) for n in sizes):
        raise op.shape_unknown(data.value)
    shape = tuple(int(n) for n in sizes if isinstance(n, int))
    wrapped = np.where(known < 0, known + np.asarray(shape), known)
    flat = np.ravel_multi_index(tuple(np.moveaxis(wrapped, -1, 0).reshape(depth, -1)), shape)
    rows = op.reshape(g, (len(flat), *data.shape[depth:]))
    return op.reshape_like(picked_along(op, rows, 0, flat, int(np.prod(shape))), data)


@vjp("ScatterND", wrt="data")
def scatter_nd_data(op: Builder, g: Var, indices: Var, updates: Var, *, reduction: str | None) -> Var:
    if reduction == "add":
        return g
    if reduction not in (None, "none"):
        raise NotConstant(f"its reduction is {reduction!r}")
    return op.ScatterND(g, indices, op.zeros_like(updates), dims=g.dims)  # type: ignore[no-any-return]


@vjp("ScatterND", wrt="updates")
def scatter_nd_updates(op: Builder, g: Var, indices: Var, updates: Var, *, reduction: str | None) -> Var:
    if reduction not in (None, "none", "add"):
        raise NotConstant(f"its reduction is {reduction!r}")
    return op.GatherND(g, indices, dims=updates.dims)  # type: ignore[no-any-return]
