"""Gathers and scatters.

An index that is a constant is undone by another gather: cell d of the input receives what the output's
cells that read it hold, or an added zero. A scatter, whose addition TensorRT and the web lack, is left for
indices that only the run time knows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..builder import Builder, Dim, Var
from ..cotangent import Cotangent, window
from ..registry import vjp

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


@vjp("ArrayFeatureExtractor", wrt="X", domain="ai.onnx.ml")
def array_feature_extractor_x(op: Builder, g: Var, X: Var, Y: Var) -> Cotangent:
    known = op.array(Y)
    rows = op.Reshape(Y, [-1], dims=(None,)) if known is None else op.const(known.reshape(-1))
    if X.rank == 1:  # its result has one row
        g = op.Reshape(g, [-1], dims=(None,))
    return gather_data(op, g, X, rows, axis=-1)


@vjp("GatherElements", wrt="data")
def gather_elements_data(op: Builder, g: Var, data: Var, indices: Var, *, axis: int) -> Var:
    return op.ScatterElements(op.zeros_like(data), indices, g, axis=axis, reduction="add", dims=data.dims)


@vjp("GatherND", wrt="data")
def gather_nd_data(op: Builder, g: Var, data: Var, indices: Var, *, batch_dims: int) -> Var:
    known = op.array(indices) if not batch_dims else None
    depth = known.shape[-1] if known is not None else 0
    sizes = [n for n in data.shape[:depth] if isinstance(n, int)]
    if known is None or len(sizes) < depth:
        whole = _with_batch(op, indices, batch_dims) if batch_dims else indices
        return op.ScatterND(op.zeros_like(data), whole, g, reduction="add", dims=data.dims)
    wrapped = np.where(known < 0, known + np.asarray(sizes), known)
    flat = np.asarray(np.ravel_multi_index(tuple(np.moveaxis(wrapped, -1, 0).reshape(depth, -1)), sizes))
    behind = [op.dim(data, k) for k in range(depth, data.rank)]
    rows = op.Reshape(g, op.vector([len(flat), *behind]), dims=(len(flat), *data.shape[depth:]))
    return op.reshape_like(picked_along(op, rows, 0, flat, int(np.prod(sizes))), data)


def _with_batch(op: Builder, indices: Var, batch_dims: int) -> Var:
    """Indices that say their batch themselves: the counts of the batch's axes before them."""
    one = Var(op.slice(indices, [0], [1], [indices.rank - 1]).value, op, (*indices.shape[:-1], 1))
    columns = []
    for axis in range(batch_dims):
        count = op.iota(indices, axis)
        shape = [-1 if k == axis else 1 for k in range(indices.rank)]
        columns.append(op.Expand(op.Reshape(count, shape), op.Shape(one), dims=one.dims))
    return op.Concat(*columns, indices, axis=-1, dims=(*indices.shape[:-1], None))


# -- scatters ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scatter:
    """ScatterElements or ScatterND at a node's indices, and the gather that reads the same cells."""

    onto: Callable[[Var, Var, str], Var]
    read: Callable[[Var], Var]


def _elements(op: Builder, indices: Var, axis: int) -> _Scatter:
    return _Scatter(
        lambda data, updates, how: op.ScatterElements(
            data, indices, updates, axis=axis, reduction=how, dims=data.dims
        ),
        lambda data: op.GatherElements(data, indices, axis=axis, dims=indices.dims),
    )


def _nd(op: Builder, indices: Var, updates: Var) -> _Scatter:
    return _Scatter(
        lambda data, new, how: op.ScatterND(data, indices, new, reduction=how, dims=data.dims),
        lambda data: op.GatherND(data, indices, dims=updates.dims),
    )


def _of_data(op: Builder, scatter: _Scatter, g: Var, data: Var, updates: Var, output: Var, how: str) -> Var:
    if how == "add":
        return g
    if how == "none":
        return scatter.onto(g, op.zeros_like(updates), "none")
    if how == "mul":
        return g * scatter.onto(
            op.Expand(op.operand(1.0, g), op.shape_of(data), dims=data.dims), updates, "mul"
        )
    won, _, share = _winners(op, scatter, g, data, updates, output)
    return won * share


def _of_updates(
    op: Builder, scatter: _Scatter, g: Var, data: Var, updates: Var, output: Var, how: str
) -> Var:
    if how in ("none", "add"):
        return scatter.read(g)
    if how == "mul":
        # The product of all others at the same cell: another zero makes it zero, its own does not count.
        zero = op.Equal(updates, op.operand(0.0, updates), dims=updates.dims)
        is_zero = op.mask(zero, updates)
        safe = op.where(zero, 1.0, updates)
        zeros = scatter.read(scatter.onto(op.zeros_like(data), is_zero, "add")) - is_zero
        others = scatter.read(scatter.onto(data, safe, "mul")) / safe
        return scatter.read(g) * op.where(zeros > 0.5, op.operand(0.0, g), others)
    _, mine, share = _winners(op, scatter, g, data, updates, output)
    return mine * scatter.read(share)


def _winners(
    op: Builder, scatter: _Scatter, g: Var, data: Var, updates: Var, output: Var
) -> tuple[Var, Var, Var]:
    """Whether the data, whether each update is the largest (or smallest) at its cell; ties share g."""
    of_data = op.mask(op.Equal(data, output, dims=data.dims), g)
    mine = op.mask(op.Equal(updates, scatter.read(output), dims=updates.dims), g)
    return of_data, mine, g / scatter.onto(of_data, mine, "add")


@vjp("ScatterElements", wrt="data")
def scatter_elements_data(
    op: Builder, g: Var, data: Var, indices: Var, updates: Var, output: Var, *, axis: int, reduction: str
) -> Var:
    return _of_data(op, _elements(op, indices, axis), g, data, updates, output, reduction)


@vjp("ScatterElements", wrt="updates")
def scatter_elements_updates(
    op: Builder, g: Var, data: Var, indices: Var, updates: Var, output: Var, *, axis: int, reduction: str
) -> Var:
    return _of_updates(op, _elements(op, indices, axis), g, data, updates, output, reduction)


@vjp("ScatterND", wrt="data")
def scatter_nd_data(
    op: Builder, g: Var, data: Var, indices: Var, updates: Var, output: Var, *, reduction: str
) -> Var:
    return _of_data(op, _nd(op, indices, updates), g, data, updates, output, reduction)


@vjp("ScatterND", wrt="updates")
def scatter_nd_updates(
    op: Builder, g: Var, data: Var, indices: Var, updates: Var, output: Var, *, reduction: str
) -> Var:
    return _of_updates(op, _nd(op, indices, updates), g, data, updates, output, reduction)


def _written(
    op: Builder, past_cache: Var, update: Var, write_indices: Var | None, mode: str, axis: int
) -> Var:
    """Which cell along the axis each entry of a TensorScatter's update overwrites: in the update's shape."""
    around = [k for k in range(update.rank) if k != axis]
    at = op.Unsqueeze(op.iota(update, axis), around)
    if write_indices is not None:
        at = at + op.Unsqueeze(write_indices, [*range(1, update.rank)])
    if mode == "circular":
        at = op.Mod(at, op.operand(op.dim(past_cache, axis), at))
    return op.expand_like(Var(at.value, op, None), update)


@vjp("TensorScatter", wrt="past_cache")
def tensor_scatter_past_cache(
    op: Builder, g: Var, past_cache: Var, update: Var, write_indices: Var | None, *, mode: str, axis: int
) -> Var:
    axis %= update.rank
    at = _written(op, past_cache, update, write_indices, mode, axis)
    return op.ScatterElements(g, at, op.zeros_like(update), axis=axis, dims=past_cache.dims)


@vjp("TensorScatter", wrt="update")
def tensor_scatter_update(
    op: Builder, g: Var, past_cache: Var, update: Var, write_indices: Var | None, *, mode: str, axis: int
) -> Var:
    axis %= update.rank
    at = _written(op, past_cache, update, write_indices, mode, axis)
    return op.GatherElements(g, at, axis=axis, dims=update.dims)


# -- selections -------------------------------------------------------------------------------


@vjp("TopK", wrt="X")
def top_k_x(op: Builder, g: Var, X: Var, Indices: Var, *, axis: int) -> Var:
    return op.ScatterElements(op.zeros_like(X), Indices, g, axis=axis, dims=X.dims)


@vjp("Compress", wrt="input")
def compress_input(op: Builder, g: Var, input: Var, condition: Var, *, axis: int | None) -> Var:
    rows = op.Squeeze(op.NonZero(condition), [0], dims=(None,))
    if axis is not None:
        return added_along(op, g, axis % input.rank, rows, op.dim(input, axis))
    flat = op.Reshape(input, [-1], dims=(None,))
    g = Var(g.value, op, (None,))
    return op.reshape_like(added_along(op, g, 0, rows, op.dim(flat, 0)), input)


@vjp("ReverseSequence", wrt="input")
def reverse_sequence_input(
    op: Builder, g: Var, input: Var, sequence_lens: Var, *, batch_axis: int, time_axis: int
) -> Var:
    return op.ReverseSequence(g, sequence_lens, batch_axis=batch_axis, time_axis=time_axis, dims=input.dims)


@vjp("OneHot", wrt="values")
def one_hot_values(op: Builder, g: Var, indices: Var, depth: Var, values: Var, *, axis: int) -> Var:
    at = axis % (indices.rank + 1)
    zero, one = (op.const(np.asarray(k, np.int64)) for k in (0, 1))
    many = op.cast(op.Reshape(depth, np.zeros(0, np.int64), dims=()), zero.dtype)
    count = op.Range(zero, many, one, dims=(None,))
    behind = indices.rank - at
    count = op.Unsqueeze(count, [*range(1, behind + 1)], dims=(None, *[1] * behind)) if behind else count
    wanted = op.Unsqueeze(op.cast(indices, zero.dtype), [at])
    hit = op.Or(op.Equal(wanted, count), op.Equal(op.Add(wanted, many), count))  # from the end, too
    on = op.ReduceSum(op.Mul(g, op.mask(hit, g)), None, keepdims=0, dims=())
    off = op.ReduceSum(g, None, keepdims=0, dims=()) - on
    return op.Concat(op.reshape_scalar(off), op.reshape_scalar(on), axis=0, dims=(2,))


@vjp("Trilu", wrt="input")
def trilu_input(op: Builder, g: Var, input: Var, k: Var | None, *, upper: int) -> Var:
    return op.Trilu(g, k, upper=upper, dims=input.dims)
