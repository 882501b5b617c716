"""Resizing: separable and linear, so that one matrix per axis takes the gradient back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..builder import Builder, Dim, Var
from ..registry import Unsupported, vjp

#: How the matrix of one axis is made: the attributes of the Resize that it stands for.
_COPIED = (
    "antialias",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "mode",
    "nearest_mode",
)


@vjp("Resize", wrt="X")
def resize_x(
    op: Builder,
    g: Var,
    X: Var,
    roi: Var | None,
    scales: Var | None,
    sizes: Var | None,
    *,
    antialias: int,
    axes: tuple[int, ...] | None,
    coordinate_transformation_mode: str,
    cubic_coeff_a: float,
    exclude_outside: int,
    keep_aspect_ratio_policy: str,
    mode: str,
    nearest_mode: str,
) -> Var:
    how = dict(
        zip(
            _COPIED,
            (antialias, coordinate_transformation_mode, cubic_coeff_a, exclude_outside, mode, nearest_mode),
            strict=True,
        )
    )
    g = g if g.dims is not None else Var(g.value, op, (None,) * X.rank)
    over = [a % X.rank for a in axes] if axes else list(range(X.rank))
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    factors: Any = None if scales is None or scales.shape == (0,) else op.array(scales)
    kept = keep_aspect_ratio_policy if sizes is not None else "stretch"
    if kept != "stretch":
        factors = _common_factor(op, X, over, sizes, kept)
    for k, axis in enumerate(over):
        factor = None if factors is None else float(factors[k])
        if not crops and _is_kept(X.shape[axis], g.shape[axis], axis, factor):
            continue
        whole = _whole_factor(factor, X.shape[axis], g.shape[axis])
        if whole is not None and mode == "nearest" and _repeats(coordinate_transformation_mode, nearest_mode):
            g = _summed(op, g, X, axis, whole)
            continue
        # The same Resize of the unit vectors: its column j is what cell j of the input becomes.
        size: tuple[Any, Any]
        if scales is not None and scales.shape != (0,):
            size = op.slice(scales, [k], [k + 1], [0]), None
        elif kept != "stretch":
            size = op.const(np.asarray([factor], np.float32)), None
        else:
            size = None, op.Shape(g, start=axis, end=axis + 1)
        part = None if roi is None or not crops else _bounds(op, roi, k, len(over))
        vectors, dims = _identity(op, X, axis), (g.shape[axis], X.shape[axis])
        if kept != "stretch" and _is_rounded_up(X.shape[axis], g.shape[axis], factor):
            table = _rounded_up(op, vectors, g.shape[axis], size[0], how)
        else:
            table = op.Resize(vectors, part, *size, axes=[0], dims=dims, **how)
        g = _along(op, g, table, X, axis)
    return Var(g.value, op, X.dims)


def _is_kept(before: Dim, after: Dim, axis: int, factor: float | None) -> bool:
    """Whether an axis keeps its cells."""
    if factor is not None:
        return factor == 1
    if isinstance(before, int) and isinstance(after, int):
        return before == after
    # The batch is never resized; sizes that are computed repeat its symbol, or inference loses it.
    return axis == 0 or (before is not None and before == after)


def _whole_factor(factor: float | None, before: Dim, after: Dim) -> int | None:
    """By how much an axis grows, if that is a whole number."""
    if factor is None and isinstance(before, int) and isinstance(after, int):
        factor = after / before
    return int(factor) if factor is not None and factor == int(factor) and factor >= 1 else None


def _repeats(transformation: str, rounding: str) -> bool:
    """Whether a whole factor repeats every cell so many times."""
    if transformation == "asymmetric":
        return rounding == "floor"
    halves = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    return transformation in halves and rounding.startswith("round")


def _summed(op: Builder, g: Var, X: Var, axis: int, factor: int) -> Var:
    """The adjoint of repeating every cell of an axis."""
    dims = (*g.shape[:axis], X.shape[axis], *g.shape[axis + 1 :])
    n = op.dim(X, axis)
    split = [op.dim(g, k) if k != axis else n for k in range(g.rank)]
    apart = op.reshape(g, [*split[: axis + 1], factor, *split[axis + 1 :]])
    return Var(op.sum(apart, [axis + 1], keepdims=False).value, op, dims)


def _identity(op: Builder, X: Var, axis: int) -> Var:
    """(n, n) for the size n of an axis, in X's dtype; ONNX Runtime folds it at load if n is a number."""
    count = op.iota(X, axis)
    return op.mask(op.Equal(op.Unsqueeze(count, [1], dims=(X.shape[axis], 1)), count), X)


def _is_rounded_up(before: Dim, after: Dim, factor: float | None) -> bool:
    return isinstance(before, int) and factor is not None and int(before * factor) != after


def _rounded_up(op: Builder, vectors: Var, count: Any, factor: Any, how: dict[str, Any]) -> Var:
    """The matrix of a factor whose product with the size was rounded up: the edge goes on for a while."""
    places = how["coordinate_transformation_mode"]
    if places not in ("half_pixel", "asymmetric") or how["antialias"] or how["exclude_outside"]:
        raise Unsupported(f"its policy rounds a size up, and it is {places} or weighs its edges")
    n = vectors.shape[0]
    assert isinstance(n, int)
    longer = op.Gather(vectors, [*range(n), n - 1, n - 1, n - 1], axis=0, dims=(n + 3, n))
    table = op.Resize(longer, None, factor, axes=[0], dims=(None, n), **how)
    return Var(op.slice(table, [0], [count], [0]).value, op, (count, n))


def _bounds(op: Builder, roi: Var, k: int, count: int) -> Var:
    """Where the crop begins and ends along the axis ``k`` of those that are resized."""
    return op.Concat(*(op.slice(roi, [at], [at + 1], [0]) for at in (k, k + count)), axis=0, dims=(2,))


def _along(op: Builder, g: Var, table: Var, X: Var, axis: int) -> Var:
    """The adjoint of applying ``table`` (m, n) along an axis."""
    dims = (*g.shape[:axis], X.shape[axis], *g.shape[axis + 1 :])
    behind = g.shape[axis + 1 :]
    if not behind:
        return op.MatMul(g, table, dims=dims)
    back = op.swap(table)
    if len(behind) == 1:
        return op.MatMul(back, g, dims=dims)
    leading = [0] * (axis + 1)  # 0 copies an axis
    flat = op.Reshape(g, [*leading, -1], dims=(*g.shape[: axis + 1], None))
    mixed = op.MatMul(back, flat, dims=(*dims[: axis + 1], None))
    behind_sizes = [op.dim(g, k) for k in range(axis + 1, g.rank)]
    return op.Reshape(mixed, op.vector([*leading, *behind_sizes]), dims=dims)


def _common_factor(op: Builder, X: Var, over: Sequence[int], sizes: Var | None, policy: str) -> list[float]:
    """The factor of all axes under ``keep_aspect_ratio_policy``."""
    wanted = None if sizes is None else op.ints(sizes)
    before = [X.shape[a] for a in over]
    if wanted is None or not all(isinstance(n, int) for n in before):
        raise Unsupported(f"its sizes are computed at run time, with the policy {policy!r}")
    pick = min if policy == "not_larger" else max
    factor = pick(m / int(n or 1) for n, m in zip(before, wanted, strict=True))
    return [factor] * len(over)
