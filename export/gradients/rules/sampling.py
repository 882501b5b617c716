"""Sampling between the cells: GridSample, RoiAlign, DeformConv and AffineGrid.

A sample is a weighted sum of few cells along each axis, its taps, and along all of them the product. Its
adjoint adds to those cells, at places that only the run time knows: one scatter-add, which TensorRT and the
web lack. RoiAlign, whose samples form a grid, needs matrices alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import Builder, Var
from ..geometry import Pad
from ..registry import Unsupported, vjp
from .indexing import added_along


@dataclass(frozen=True)
class _Taps:
    """Which cells along one axis make each of P samples.

    Attributes:
        cells: (N, P, T) int64, inside the axis.
        weights: (N, P, T); 0 for a cell outside.
        slopes: the weights' derivative by the sample's place, (N, P, T).
    """

    cells: Var
    weights: Var
    slopes: Var


_Inside = Callable[[Var], tuple[Var, Var | None]]
_A = -0.75  #: of the cubic kernel (Keys 1981), as in PyTorch


def _taps(op: Builder, at: Var, mode: str, inside: _Inside) -> _Taps:
    """The taps of places ``at`` (N, P), counted from the centre of the first cell.

    Args:
        op: the builder.
        at: the places.
        mode: nearest, linear or cubic.
        inside: from cells (N, P, T) int64 to those of the axis, and a factor on their weights.
    """
    n, p = at.shape
    low = op.Round(at, dims=at.dims) if mode == "nearest" else op.Floor(at, dims=at.dims)
    t = op.Unsqueeze(at - low, [2], dims=(n, p, 1))
    if mode == "nearest":
        offsets, weights, slopes = [0], [t * 0.0 + 1.0], [t * 0.0]
    elif mode == "linear":
        offsets, weights, slopes = [0, 1], [1.0 - t, t], [t * 0.0 - 1.0, t * 0.0 + 1.0]
    else:
        offsets = [-1, 0, 1, 2]
        weights = [_far(t + 1.0), _near(t), _near(1.0 - t), _far(2.0 - t)]
        slopes = [_far_slope(t + 1.0), _near_slope(t), -_near_slope(1.0 - t), -_far_slope(2.0 - t)]
    dims = (n, p, len(offsets))
    first = op.cast(op.Unsqueeze(low, [2], dims=(n, p, 1)), op.const(np.zeros(1, np.int64)).dtype)
    cells, factor = inside(Var((first + op.const(np.asarray(offsets))).value, op, dims))
    w, s = (
        parts[0] if len(parts) == 1 else op.Concat(*parts, axis=2, dims=dims) for parts in (weights, slopes)
    )
    return _Taps(cells, w if factor is None else w * factor, s if factor is None else s * factor)


def _near(d: Var) -> Var:
    return ((_A + 2) * d - (_A + 3)) * d * d + 1.0


def _far(d: Var) -> Var:
    return ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A


def _near_slope(d: Var) -> Var:
    return (3 * (_A + 2) * d - 2 * (_A + 3)) * d


def _far_slope(d: Var) -> Var:
    return (3 * _A * d - 10 * _A) * d + 8 * _A


def _padding(op: Builder, size: Any, mode: str, align_corners: int, like: Var) -> _Inside:
    """What becomes of cells outside an axis of ``size`` (a number or a scalar tensor)."""

    def whole(n: Any) -> Var:
        return n if isinstance(n, Var) else op.const(np.asarray(n, np.int64))

    zero, last = whole(0), whole(size - 1)

    def clipped(cells: Var) -> Var:
        return op.Min(op.Max(cells, zero, dims=cells.dims), last, dims=cells.dims)

    def inside(cells: Var) -> tuple[Var, Var | None]:
        if mode == "zeros":
            held = op.And(cells >= 0, op.LessOrEqual(cells, last, dims=cells.dims), dims=cells.dims)
            return clipped(cells), op.mask(held, like)
        if mode == "border":
            return clipped(cells), None
        # Reflected at the first and the last cell's centres, or at their outer edges.
        period = whole(2 * (size - 1) if align_corners else 2 * size)
        period = op.Max(period, whole(1), dims=())
        within = op.Mod(cells, period, dims=cells.dims)
        mirrored = period - within if align_corners else period - 1 - within
        return clipped(op.Min(within, mirrored, dims=cells.dims)), None

    return inside


def _joined(op: Builder, taps: Sequence[Var], sizes: Sequence[Any] | None) -> Var:
    """Cells or weights per axis (N, P, T) as one for all taps together, (N, P, T * T * ...)."""
    rank = len(taps)
    total: Var | None = None
    n, p, _ = taps[0].shape
    for k, part in enumerate(taps):
        others = [2 + j for j in range(rank) if j != k]
        dims = (n, p, *(part.shape[2] if j == k else 1 for j in range(rank)))
        part = op.Unsqueeze(part, others, dims=dims) if others else part
        if total is None:
            total = part
        elif sizes is None:
            total = total * part
        else:
            total = total * sizes[k] + part
    assert total is not None
    return op.Reshape(total, [0, 0, -1], dims=(n, p, None))


class _Samples:
    """P samples of images X (N, C, ...): where they read, and the way back."""

    def __init__(self, op: Builder, X: Var, taps: Sequence[_Taps]) -> None:
        self.op, self.X, self.taps = op, X, taps
        n, c = X.shape[:2]
        sizes = [op.dim(X, k) for k in range(2, X.rank)]
        cells = _joined(op, [t.cells for t in taps], sizes)
        # One row of cells for all channels.
        flat = op.Reshape(cells, [0, 1, -1], dims=(n, 1, None))
        size = op.Concat([1], op.Shape(X, start=1, end=2), [1], axis=0)
        self.cells = op.Expand(flat, size, dims=(n, c, None))
        self.weights = _joined(op, [t.weights for t in taps], None)
        self.pixels = op.Reshape(X, [0, 0, -1], dims=(n, c, None))

    def values(self) -> Var:
        """(N, C, P, taps)."""
        n, c = self.X.shape[:2]
        read = self.op.GatherElements(self.pixels, self.cells, axis=2, dims=(n, c, None))
        return self._apart(read)

    def spread(self, g: Var) -> Var:
        """The adjoint of reading: from the samples' gradient (N, C, P) to the images'."""
        n, c = self.X.shape[:2]
        each = self.op.Unsqueeze(g, [3], dims=(*g.shape, 1)) * self._of_all_channels(self.weights)
        updates = self.op.Reshape(each, [0, 0, -1], dims=(n, c, None))
        nothing = self.op.zeros_like(self.pixels)
        added = self.op.ScatterElements(nothing, self.cells, updates, axis=2, reduction="add")
        return self.op.reshape_like(Var(added.value, self.op, (n, c, None)), self.X)

    def slope(self, g: Var, axis: int, values: Var) -> Var:
        """How the samples' gradient (N, C, P) moves with the place along an axis: (N, P)."""
        op = self.op
        parts = [t.slopes if k == axis else t.weights for k, t in enumerate(self.taps)]
        moved = op.sum(values * self._of_all_channels(_joined(op, parts, None)), [3], keepdims=False)
        return op.sum(Var((moved * g).value, op, g.dims), [1], keepdims=False)

    def read(self) -> Var:
        """The samples, (N, C, P)."""
        return self.op.sum(self.values() * self._of_all_channels(self.weights), [3], keepdims=False)

    def _of_all_channels(self, w: Var) -> Var:
        n, p, t = w.shape
        return self.op.Unsqueeze(w, [1], dims=(n, 1, p, t))

    def _apart(self, x: Var) -> Var:
        n, c = self.X.shape[:2]
        p, t = self.weights.shape[1:]
        size = self.op.Concat([0, 0], self.op.Shape(self.weights, start=1), axis=0)
        return self.op.Reshape(x, size, dims=(n, c, p, t))


# -- GridSample -------------------------------------------------------------------------------


def _grid_samples(
    op: Builder, X: Var, grid: Var, align_corners: int, mode: str, padding_mode: str
) -> tuple[_Samples, list[Any]]:
    """The samples, and by how much each axis's place in cells moves with the grid's."""
    kind = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    rank = X.rank - 2
    flat = op.Reshape(grid, [0, -1, rank], dims=(X.shape[0], None, rank))
    taps, factors = [], []
    for k in range(rank):
        size = op.dim(X, k + 2)
        # The grid names the last axis first.
        at = op.Squeeze(op.slice(flat, [rank - 1 - k], [rank - k], [2]), [2], dims=flat.shape[:2])
        wide: Any = op.cast(size, at.dtype) if isinstance(size, Var) else float(size)
        factor = (wide - 1.0) * 0.5 if align_corners else wide * 0.5
        at = (at + 1.0) * factor if align_corners else (at + 1.0) * factor - 0.5
        taps.append(_taps(op, at, kind, _padding(op, size, padding_mode, align_corners, X)))
        factors.append(factor)
    return _Samples(op, X, taps), factors


@vjp("GridSample", wrt="X")
def grid_sample_x(
    op: Builder, g: Var, X: Var, grid: Var, *, align_corners: int, mode: str, padding_mode: str
) -> Var:
    samples, _ = _grid_samples(op, X, grid, align_corners, mode, padding_mode)
    return samples.spread(op.Reshape(g, [0, 0, -1], dims=(*X.shape[:2], None)))


@vjp("GridSample", wrt="grid")
def grid_sample_grid(
    op: Builder, g: Var, X: Var, grid: Var, *, align_corners: int, mode: str, padding_mode: str
) -> Var:
    samples, factors = _grid_samples(op, X, grid, align_corners, mode, padding_mode)
    values = samples.values()
    flat = op.Reshape(g, [0, 0, -1], dims=(*X.shape[:2], None))
    n, p = grid.shape[0], None
    slopes = [
        op.Unsqueeze(samples.slope(flat, k, values) * factor, [2], dims=(n, p, 1))
        for k, factor in enumerate(factors)
    ]
    together = op.Concat(*reversed(slopes), axis=2, dims=(n, p, len(slopes)))
    return op.reshape_like(together, grid)


@vjp("AffineGrid", wrt="theta")
def affine_grid_theta(op: Builder, g: Var, theta: Var, *, size: tuple[int, ...], align_corners: int) -> Var:
    # The grid is the regular one, with a column of ones, times theta transposed.
    axes = [
        np.linspace(-1, 1, n) if align_corners else (2 * np.arange(n) + 1) / n - 1 for n in reversed(size[2:])
    ]
    places = [axis.ravel() for axis in np.meshgrid(*reversed(axes), indexing="ij")]
    regular = np.stack([*reversed(places), np.ones_like(places[0])], 1)
    rank = len(size) - 2
    flat = op.Reshape(g, [0, -1, rank], dims=(theta.shape[0], len(regular), rank))
    return op.MatMul(op.swap(flat), op.const(regular.astype(g.dtype.numpy())), dims=theta.dims)


# -- RoiAlign ---------------------------------------------------------------------------------


@vjp("RoiAlign", wrt="X")
def roi_align_x(
    op: Builder,
    g: Var,
    X: Var,
    rois: Var,
    batch_indices: Var,
    *,
    coordinate_transformation_mode: str,
    mode: str,
    output_height: int,
    output_width: int,
    sampling_ratio: int,
    spatial_scale: float,
) -> Var:
    """A region is its two interpolation matrices: y = A_h X A_w^T, averaged over its samples."""
    if sampling_ratio < 1:
        raise Unsupported("its sampling_ratio is 0: each region takes a number of samples of its own")
    half = coordinate_transformation_mode == "half_pixel"
    n, c, h, w = X.shape
    r = rois.shape[0]
    places = []
    for k, count in enumerate((output_height, output_width)):
        low, high = (
            op.slice(rois, [at], [at + 1], [1]) * spatial_scale - (0.5 if half else 0.0)
            for at in (1 - k, 3 - k)
        )
        span = high - low if half else op.Max(high - low, op.operand(1.0, rois), dims=(r, 1))
        at = (np.arange(count * sampling_ratio) + 0.5) / (count * sampling_ratio)
        places.append(Var((low + span * op.const(at.astype(X.dtype.numpy()))).value, op, (r, len(at))))
    if mode == "max":
        out = output_height, output_width
        return _roi_align_max(op, g, X, places, batch_indices, out, sampling_ratio)
    rows, columns = (
        _interpolation(op, at, X, axis, count, sampling_ratio)
        for at, axis, count in zip(places, (2, 3), (output_height, output_width), strict=True)
    )
    # (R, C, oh, ow) x (R, ow, W), then all regions of an image at once: (N * H, R * oh) x (R * oh, C * W).
    wide = op.MatMul(g, op.Unsqueeze(columns, [1]), dims=(r, c, output_height, w))
    turned = op.transpose(wide, [0, 2, 1, 3])
    flat = op.Reshape(turned, op.vector([-1, _product(op, op.dim(X, 1), op.dim(X, 3))]), dims=(None, None))
    image = op.Unsqueeze(op.iota(X, 0), [1], dims=(n, 1))
    mine = op.mask(op.Equal(image, op.Unsqueeze(batch_indices, [0], dims=(1, r))), X)
    mine = op.Unsqueeze(Var(mine.value, op, (n, r)), [1, 3], dims=(n, 1, r, 1))
    tall = op.Unsqueeze(op.transpose(rows, [2, 0, 1]), [0], dims=(1, h, r, output_height))
    weights = op.Reshape(mine * tall, op.vector([-1, _product(op, op.dim(rois, 0), output_height)]))
    summed = op.MatMul(weights, flat)
    apart = op.Reshape(summed, op.vector([op.dim(X, k) for k in (0, 2, 1, 3)]), dims=(n, h, c, w))
    return op.transpose(apart, [0, 2, 1, 3])


def _roi_align_max(
    op: Builder,
    g: Var,
    X: Var,
    places: Sequence[Var],
    batch_indices: Var,
    out: tuple[int, int],
    samples: int,
) -> Var:
    """The largest of all weighted cells around all samples, not of their sums: so ONNX computes it."""
    c, r = X.shape[1], places[0].shape[0]
    cells, weights = [], []
    for k, at in enumerate(places):
        at, seen = _held(op, at, X, k + 2)
        low = op.Floor(at, dims=at.dims)
        cell = op.cast(low, ir.DataType.INT64)
        last = op.operand(op.dim(X, k + 2), cell) - 1
        # Regions, rows and columns of the output, of the samples in one, and of the cells around a sample.
        apart = [0, *(v if k == j else 1 for v in (out[k], samples, 2) for j in (0, 1))]
        cells.append(op.Reshape(_pair(op, cell, op.Min(cell + 1, last, dims=cell.dims)), apart))
        part = at - low
        weights.append(op.Reshape(_pair(op, (1.0 - part) * seen, part * seen), apart))
    image = op.Unsqueeze(batch_indices, [*range(1, 7)])
    size = [op.operand(op.dim(X, k), image) for k in (2, 3)]
    around = (c, r, *out, 4 * samples**2)
    rows = op.Reshape((image * size[0] + cells[0]) * size[1] + cells[1], [-1], dims=(None,))
    share = op.Reshape(weights[0] * weights[1], [0, 0, 0, -1], dims=around[1:])
    turned = op.transpose(X, [1, 0, 2, 3])
    pixels = op.Reshape(turned, [0, -1], dims=(c, None))
    read = op.Gather(pixels, rows, axis=1, dims=(c, None))
    shape = op.vector([0, -1, *out, around[-1]])
    values = Var((op.Reshape(read, shape) * share).value, op, around)
    winner = op.ArgMax(values, axis=4, keepdims=1, dims=(*around[:4], 1))
    g = op.Unsqueeze(op.transpose(g, [1, 0, 2, 3]), [4], dims=winner.dims)
    won = op.where(op.Equal(winner, op.iota(values, 4)), g, 0.0) * share
    flat = op.Reshape(won, [0, -1], dims=(c, None))
    added = added_along(op, flat, 1, rows, op.dim(pixels, 1))
    return op.transpose(op.reshape_like(added, turned), [1, 0, 2, 3])


def _pair(op: Builder, a: Var, b: Var) -> Var:
    a, b = (op.Unsqueeze(x, [2]) for x in (a, b))
    return op.Concat(a, b, axis=2)


def _held(op: Builder, places: Var, X: Var, axis: int) -> tuple[Var, Var]:
    """Samples' places, moved onto the axis of X; and 0 for those that are too far off to count."""
    size = op.dim(X, axis)
    edge: Any = op.cast(size, X.dtype) if isinstance(size, Var) else op.operand(float(size), X)
    seen = op.mask(op.And(places >= -1.0, places <= edge), X)
    at = op.Max(places, op.operand(0.0, X), dims=places.dims)
    return op.Min(at, edge - 1.0, dims=places.dims), seen


def _interpolation(op: Builder, places: Var, X: Var, axis: int, count: int, samples: int) -> Var:
    """(R, count, size): how much each cell of an axis is part of each output."""
    r, p = places.shape
    size = op.dim(X, axis)
    at, seen = _held(op, places, X, axis)
    cell = op.cast(op.iota(X, axis), X.dtype)
    distance = op.Abs(op.Unsqueeze(at, [2], dims=(r, p, 1)) - cell)
    hat = op.Relu(1.0 - distance, dims=(r, p, X.shape[axis]))
    table = hat * op.Unsqueeze(seen, [2], dims=(r, p, 1))
    apart = op.Reshape(table, op.vector([-1, count, samples, size]), dims=(r, count, samples, X.shape[axis]))
    return op.sum(apart, [2], keepdims=False) / samples


def _product(op: Builder, a: Any, b: Any) -> Any:
    return a * b if isinstance(a, Var) or not isinstance(b, Var) else b * a


# -- DeformConv -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Deformed:
    """A deformable convolution as a product: y = W columns, columns = samples times mask.

    Attributes:
        samples: of images (N * offset groups, C / groups, H, W), with P = kernel cells * output cells.
        mask: (N * offset groups, 1, P), or None.
        columns: (N, groups, C / group * kernel cells, output cells).
        weights: (groups, M / group, C / group * kernel cells).
        g: (N, groups, M / group, output cells).
    """

    samples: _Samples
    mask: Var | None
    columns: Var
    weights: Var
    g: Var

    def of_columns(self, op: Builder) -> Var:
        """The gradient of the samples times mask, (N * offset groups, C / groups, P)."""
        back = op.MatMul(op.swap(self.weights), self.g)
        sampled = self.samples
        n, c = sampled.X.shape[:2]
        size = op.Concat(op.Shape(sampled.X, start=0, end=2), [-1], axis=0)
        return op.Reshape(back, size, dims=(n, c, None))


def _deformed(
    op: Builder,
    g: Var,
    X: Var,
    W: Var,
    offset: Var,
    mask: Var | None,
    strides: Sequence[int],
    pads: Sequence[Pad],
    dilations: Sequence[int],
    kernel_shape: Sequence[int],
    group: int,
    offset_group: int,
) -> _Deformed:
    if X.rank != 4:
        raise Unsupported("it is not two-dimensional")
    cells = kernel_shape[0] * kernel_shape[1]
    n, c, h, w = X.shape
    per_group = W.shape[1]
    parts = n * offset_group if isinstance(n, int) else None
    share = c // offset_group if isinstance(c, int) else None
    size = [op.dim(X, 2), op.dim(X, 3)]
    image = op.Reshape(
        X, op.vector([-1, share or _quotient(op, X, offset_group), *size]), dims=(parts, share, h, w)
    )
    # (N, offset groups, kernel cells, 2, oh, ow): for each axis (N * offset groups, P).
    out = [op.dim(offset, 2), op.dim(offset, 3)]
    moved = op.Reshape(offset, op.vector([-1, cells, 2, *out]), dims=(parts, cells, 2, *offset.shape[2:]))
    taps = []
    for axis in (0, 1):
        shift = op.Squeeze(op.slice(moved, [axis], [axis + 1], [2]), [2])
        shift = Var(shift.value, op, (parts, cells, *offset.shape[2:]))
        kernel = np.arange(kernel_shape[axis]) * dilations[axis]
        kernel = (kernel[:, None] if axis == 0 else kernel[None]) * np.ones(kernel_shape)
        start = op.cast(op.iota(offset, axis + 2), X.dtype) * float(strides[axis])
        start = start if axis == 1 else op.Unsqueeze(start, [1], dims=(offset.shape[2], 1))
        pad = pads[axis]
        begin: Any = op.cast(pad, X.dtype) if isinstance(pad, Var) else float(pad)
        at = shift + start + op.const(kernel.reshape(cells, 1, 1).astype(X.dtype.numpy())) - begin
        at = op.Reshape(at, [0, -1], dims=(parts, None))
        taps.append(_taps(op, at, "linear", _padding(op, size[axis], "zeros", 0, X)))
    samples = _Samples(op, image, taps)
    of_mask = None if mask is None else op.Reshape(mask, op.vector([-1, 1, _columns(op, cells, out)]))
    if of_mask is not None:
        of_mask = Var(of_mask.value, op, (parts, 1, None))
    read = samples.read() if of_mask is None else samples.read() * of_mask
    rows = per_group * cells if isinstance(per_group, int) else None
    area = _product(op, *out)
    columns = op.Reshape(read, op.vector([op.dim(X, 0), group, -1, area]), dims=(n, group, rows, None))
    weights = op.Reshape(
        W, op.vector([group, -1, _product(op, op.dim(W, 1), cells)]), dims=(group, None, rows)
    )
    flat = op.Reshape(g, op.vector([0, group, -1, area]), dims=(n, group, None, None))
    return _Deformed(samples, of_mask, columns, weights, flat)


def _quotient(op: Builder, X: Var, parts: int) -> Any:
    return op.dim(X, 1) / op.const(np.asarray(parts, np.int64))


def _columns(op: Builder, cells: int, out: Sequence[Any]) -> Any:
    return _product(op, _product(op, out[0], out[1]), cells)


def _deform_rule(wrt: str) -> Callable[[Callable[..., Var]], None]:
    """Register a rule that is a function of the product form."""

    def register(function: Callable[[Builder, _Deformed, dict[str, Any]], Var]) -> None:
        def rule(
            op: Builder,
            g: Var,
            X: Var,
            W: Var,
            offset: Var,
            mask: Var | None,
            *,
            strides: tuple[int, ...],
            pads: tuple[Pad, ...],
            dilations: tuple[int, ...],
            kernel_shape: tuple[int, ...],
            group: int,
            offset_group: int,
        ) -> Var:
            form = _deformed(
                op, g, X, W, offset, mask, strides, pads, dilations, kernel_shape, group, offset_group
            )
            return function(op, form, {"X": X, "W": W, "offset": offset, "mask": mask})

        vjp("DeformConv", wrt=wrt)(rule)

    return register


@_deform_rule("X")
def _deform_conv_x(op: Builder, form: _Deformed, of: dict[str, Any]) -> Var:
    g = form.of_columns(op)
    return op.reshape_like(form.samples.spread(g if form.mask is None else g * form.mask), of["X"])


@_deform_rule("W")
def _deform_conv_w(op: Builder, form: _Deformed, of: dict[str, Any]) -> Var:
    each = op.MatMul(form.g, op.swap(form.columns))
    return op.reshape_like(op.sum(each, [0], keepdims=False), of["W"])


@_deform_rule("offset")
def _deform_conv_offset(op: Builder, form: _Deformed, of: dict[str, Any]) -> Var:
    g = form.of_columns(op)
    g = g if form.mask is None else g * form.mask
    values = form.samples.values()
    offset = of["offset"]
    kernel = form.samples.X.shape[0]
    slopes = []
    for axis in (0, 1):
        slope = form.samples.slope(g, axis, values)  # (N * offset groups, kernel cells * oh * ow)
        apart = op.Reshape(slope, op.vector([0, -1, 1, op.dim(offset, 2), op.dim(offset, 3)]))
        slopes.append(Var(apart.value, op, (kernel, None, 1, *offset.shape[2:])))
    return op.reshape_like(op.Concat(*slopes, axis=2), offset)


@_deform_rule("mask")
def _deform_conv_mask(op: Builder, form: _Deformed, of: dict[str, Any]) -> Var:
    read = form.samples.read()
    return op.reshape_like(op.sum(form.of_columns(op) * read, [1], keepdims=False), of["mask"])
