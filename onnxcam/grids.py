"""From a layer's own layout to channels and a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .contract import Factor, Layout

CHANNELS_FIRST = ("NCL", "NCHW", "NCDHW")  #: kinds of a layout, by rank from 3 on
CHANNELS_LAST = ("NLC", "NHWC", "NDHWC")
LETTERS = "zyx"  #: of depth, rows and columns in factors; N is the batch, C channels

Array: TypeAlias = Any  #: a NumPy array, or a tensor of a graph under construction
S = TypeVar("S", bound="int | str | None")


def channels_first(tensor: Array, layout: Layout, xp: Any = np) -> Array:
    """A layer's tensor as (N, C, ...grid).

    Args:
        tensor: in the layout's own shape.
        layout: of the tensor.
        xp: NumPy, or what makes nodes of a graph of it (:class:`onnxcam.export.namespace.Traced`).

    Returns:
        float32 (N, C, l), (N, C, h, w) or (N, C, d, h, w); a view where the dtype and the layout allow it.
    """
    if layout.kind == "tokens":
        tensor = tensor[:, layout.prefix : -layout.suffix or None]
        if layout.grid is not None and len(layout.grid) > 1:
            tensor = xp.reshape(tensor, (-1, *layout.grid, tensor.shape[2]))
        tensor = _channels_second(tensor, xp)
    elif layout.kind in CHANNELS_LAST:
        tensor = _channels_second(tensor, xp)
    elif layout.kind == "factored":
        tensor = _put_together(tensor, layout, xp)
    return xp.asarray(tensor, dtype=np.float32)


def put_back(array: NDArray[Any], layout: Layout, like: NDArray[Any]) -> NDArray[Any]:
    """Channels and a grid as a layer's own tensor: the inverse of :func:`channels_first`.

    Args:
        array: (K, C, ...grid), K copies of one image or of as many as ``like`` has.
        layout: of the tensor.
        like: the layer's own tensor, of one image or of K: whose tokens around the grid the copies get.

    Returns:
        In the layout's own shape and the dtype of ``like``.
    """
    if layout.kind == "factored":
        array = _taken_apart(array, layout, like)
    elif layout.kind not in CHANNELS_FIRST:
        array = np.moveaxis(array, 1, -1)
    if layout.kind == "tokens":
        cells = array.reshape(len(array), -1, array.shape[-1])
        array = _among_tokens(cells, layout, like, 0, 1)
    return np.ascontiguousarray(array, like.dtype)


def grid_of(layout: Layout, shape: Sequence[int | str | None]) -> tuple[int | str | None, ...]:
    """The sizes of a tensor's grid.

    Args:
        layout: of the tensor.
        shape: its sizes, symbols or None.

    Returns:
        (l,), (h, w) or (d, h, w).
    """
    if layout.kind in CHANNELS_FIRST:
        return tuple(shape[2:])
    if layout.kind in CHANNELS_LAST:
        return tuple(shape[1:-1])
    if layout.kind == "tokens":
        return layout.grid or (None,)
    factors = _factors(layout)
    return tuple(
        math.prod(f.size or 1 for f in factors if f.of == letter)
        for letter in LETTERS
        if any(f.of == letter for f in factors)
    )


def holds(shape: Sequence[int | str | None], layout: Layout) -> bool:
    """Whether a tensor of that shape can have the layout."""
    if layout.kind == "factored":
        wanted: list[int | None] = [_size(axis) for axis in layout.axes]
        if layout.prefix or layout.suffix:  # its axis is longer
            wanted = [
                None if any(f.of in LETTERS for f in axis) else size
                for axis, size in zip(layout.axes, wanted, strict=True)
            ]
    elif layout.kind == "tokens":
        count = None if layout.grid is None else layout.prefix + math.prod(layout.grid) + layout.suffix
        wanted = [None, count, None]
    else:
        wanted = [None] * len(layout.kind)
    return len(shape) == len(wanted) and all(
        want is None or not isinstance(size, int) or size == want
        for size, want in zip(shape, wanted, strict=True)
    )


def channel_axis(shape: Sequence[int | str | None]) -> int:
    """Which axis of a model's input counts its channels, by where its shape has an image's.

    Args:
        shape: of the input, of rank 3 (a signal), 4 (an image) or 5 (a volume, or frames).
    """
    if len(shape) == 3:
        first, last = shape[1:]
        few = isinstance(last, int) and (last < first if isinstance(first, int) else last <= 4)
        return 2 if few else 1
    if len(shape) == 4:
        return 3 if shape[3] in (1, 3) and shape[1] not in (1, 3) else 1
    places = (1, 4, 2)  # of volumes, of their like in TensorFlow, of frames
    counts = ((3,), (1,), (2, 4))  # colour and grey before anything else
    return next((axis for some in counts for axis in places if shape[axis] in some), 1)


def sides(shape: Sequence[S]) -> tuple[S, ...]:
    """The sizes of a model's input without its batch and its channels, which :func:`channel_axis` finds.

    Args:
        shape: of the input, of rank 3, 4 or 5; sizes, symbols or None.

    Returns:
        (l,), (h, w) or (d, h, w), of frames (t, h, w).
    """
    channels = channel_axis(shape)
    return tuple(size for axis, size in enumerate(shape) if axis not in (0, channels))


def _channels_second(tensor: Array, xp: Any) -> Array:
    """(N, ..., C) as (N, C, ...)."""
    return _moved(tensor, len(tensor.shape) - 1, 1, xp)


def _moved(tensor: Array, source: int, target: int, xp: Any) -> Array:
    """One axis at another place."""
    order = [k for k in range(len(tensor.shape)) if k != source]
    return xp.permute_dims(tensor, [*order[:target], source, *order[target:]])


def _put_together(tensor: Array, layout: Layout, xp: Any) -> Array:
    """Cut the other tokens off, bring the factors in the order (N, C, z, y, x), and join them."""
    factors = _factors(layout)
    n, c, grid = _by_kind(factors)
    sizes = [-1 if f.of == "N" else f.size or 1 for f in factors]
    if layout.prefix or layout.suffix:
        cells = math.prod(sizes[k] for k in grid)
        first, behind = min(grid), max(grid) + 1
        whole = [*sizes[:first], layout.prefix + cells + layout.suffix, *sizes[behind:]]
        tensor = _moved(xp.reshape(tensor, whole), first, 0, xp)[layout.prefix : layout.prefix + cells]
        tensor = _moved(tensor, 0, first, xp)
    apart = xp.permute_dims(xp.reshape(tensor, sizes), n + c + grid)
    count = -1 if n else 1
    return xp.reshape(apart, (count, math.prod(sizes[k] for k in c), *grid_of(layout, tensor.shape)))


def _taken_apart(array: NDArray[Any], layout: Layout, like: NDArray[Any]) -> NDArray[Any]:
    """(K, C, ...grid) as the layout has its factors, with the other tokens around the grid."""
    factors = _factors(layout)
    n, c, grid = _by_kind(factors)
    sizes = [len(array) if f.of == "N" else f.size or 1 for f in factors]
    order = n + c + grid
    apart = array.reshape([sizes[k] for k in order]).transpose(np.argsort(order))
    if layout.prefix or layout.suffix:
        first, behind = min(grid), max(grid) + 1
        joined = apart.reshape(*sizes[:first], -1, *sizes[behind:])
        others = [*joined.shape]
        others[first] += layout.prefix + layout.suffix
        if n:
            others[n[0]] = -1
        apart = _among_tokens(joined, layout, like.reshape(others), n[0] if n else 0, first)
    return apart.reshape([_length(axis, layout, len(array)) for axis in layout.axes])


def _length(axis: Sequence[Factor], layout: Layout, count: int) -> int:
    """Of an axis, for so many images."""
    cells = [f.size or 1 for f in axis if f.of in LETTERS]
    others = [count if f.of == "N" else f.size or 1 for f in axis if f.of not in LETTERS]
    return math.prod(others) * (math.prod(cells) + (layout.prefix + layout.suffix if cells else 0))


def _among_tokens(
    cells: NDArray[Any], layout: Layout, like: NDArray[Any], batch: int, axis: int
) -> NDArray[Any]:
    """Cells with the tokens that ``like`` has before and behind them."""
    if like.shape[batch] != cells.shape[batch]:
        like = np.repeat(like, cells.shape[batch], axis=batch)
    before, after = np.split(like, [layout.prefix, like.shape[axis] - layout.suffix], axis=axis)[::2]
    return np.concatenate([before, cells, after], axis=axis)


def _by_kind(factors: Sequence[Factor]) -> tuple[list[int], list[int], list[int]]:
    """The places of the batch, of channels, and of the grid's factors in the order (z, y, x)."""
    places = range(len(factors))
    return (
        [k for k in places if factors[k].of == "N"],
        [k for k in places if factors[k].of == "C"],
        sorted(
            (k for k in places if factors[k].of in LETTERS),
            key=lambda k: (LETTERS.index(factors[k].of), -factors[k].stride),
        ),
    )


def _factors(layout: Layout) -> list[Factor]:
    return [f for axis in layout.axes for f in axis]


def _size(axis: Sequence[Factor]) -> int | None:
    return None if any(f.of == "N" for f in axis) else math.prod(f.size or 1 for f in axis)
