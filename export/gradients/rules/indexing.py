"""Gathers and scatters.

An index that is a constant is undone by another gather: cell d of the input receives what the output's
cells that read it hold, or an added zero. A scatter, whose addition TensorRT and the web lack, is left for
indices that only the run time knows.
"""

from typing import Any

import numpy as np

from ..builder import Builder, Dim, Var
from ..cotangent import Cotangent, window
from ..registry import Unsupported, vjp

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


def added_along(op: Builder, g: Var, axis: int, rows: Var, size: int | Var) -> Var:
    """The adjoint of ``take(x, rows, axis)`` for rows of the run time, which may be negative."""
    full: list[int | Var] = [size if k == axis else op.dim(g, k) for k in range(g.rank)]
    dims = tuple(n if isinstance(n, int) else g.shape[k] if k != axis else None for k, n in enumerate(full))
    zeros = op.Expand(op.const(np.zeros((), g.dtype.numpy())), op.vector(full), dims=dims)
    if g.rank > 1:
        rows = op.Reshape(rows, [-1 if k == axis else 1 for k in range(g.rank)])
        rows = op.Expand(rows, op.Shape(g))
    return op.ScatterElements(zeros, rows, g, axis=axis, reduction="add", dims=dims)


@vjp("Gather", wrt="data")
def gather_data(op: Builder, g: Var, data: Var, indices: Var, *, axis: int) -> Cotangent:
    axis %= data.rank
    size = data.shape[axis]
    known = op.array(indices)
    count = None if known is None else known.size
    # The axes of the indices as one, where the axis of the data was.
    if indices.rank == 0:
        g = op.Unsqueeze(g, [axis], dims=(*g.shape[:axis], 1, *g.shape[axis:]))
    elif indices.rank > 1:
        behind = [op.dim(data, k) for k in range(axis + 1, data.rank)]
        dims = (*data.shape[:axis], count, *data.shape[axis + 1 :])
        g = op.Reshape(g, op.vector([*[0] * axis, -1, *behind]), dims=dims)
    if known is not None and isinstance(size, int):
        known = np.where(known < 0, known + size, known)
    if known is not None and (known >= 0).all():
        flat = known.reshape(-1)
        if len(flat) and (np.diff(flat) == 1).all():
            return window(op, g, data, axis, int(flat[0]), len(flat))
        if isinstance(size, int):
            return picked_along(op, g, axis, flat, size)
    rows = indices if indices.rank == 1 else op.Reshape(indices, [-1])
    return added_along(op, g, axis, rows, op.dim(data, axis))


@vjp("GatherElements", wrt="data")
def gather_elements_data(op: Builder, g: Var, data: Var, indices: Var, *, axis: int) -> Var:
    return op.ScatterElements(op.zeros_like(data), indices, g, axis=axis, reduction="add", dims=data.dims)


@vjp("GatherND", wrt="data")
def gather_nd_data(op: Builder, g: Var, data: Var, indices: Var, *, batch_dims: int) -> Var:
    if batch_dims:
        raise Unsupported("it has batch_dims")
    known = op.array(indices)
    depth = known.shape[-1] if known is not None else 0
    sizes = [n for n in data.shape[:depth] if isinstance(n, int)]
    if known is None or len(sizes) < depth:
        return op.ScatterND(op.zeros_like(data), indices, g, reduction="add", dims=data.dims)
    wrapped = np.where(known < 0, known + np.asarray(sizes), known)
    flat = np.asarray(np.ravel_multi_index(tuple(np.moveaxis(wrapped, -1, 0).reshape(depth, -1)), sizes))
    behind = [op.dim(data, k) for k in range(depth, data.rank)]
    rows = op.Reshape(g, op.vector([len(flat), *behind]), dims=(len(flat), *data.shape[depth:]))
    return op.reshape_like(picked_along(op, rows, 0, flat, int(np.prod(sizes))), data)


@vjp("ScatterND", wrt="data")
def scatter_nd_data(op: Builder, g: Var, indices: Var, updates: Var, *, reduction: str | None) -> Var:
    if reduction == "add":
        return g
    if reduction not in (None, "none"):
        raise Unsupported(f"its reduction is {reduction!r}")
    return op.ScatterND(g, indices, op.zeros_like(updates), dims=g.dims)


@vjp("ScatterND", wrt="updates")
def scatter_nd_updates(op: Builder, g: Var, indices: Var, updates: Var, *, reduction: str | None) -> Var:
    if reduction not in (None, "none", "add"):
        raise Unsupported(f"its reduction is {reduction!r}")
    return op.GatherND(g, indices, dims=updates.dims)
