"""From raw maps at layer resolution to heatmaps: rectify, scale, resize, fuse.

:func:`heatmaps` is pytorch-grad-cam's pipeline, step for step, because its users compare: every map
is scaled before it is enlarged, and the fused map is scaled again. :func:`pipeline` is the same steps,
written once for arrays and for a file in which the heatmap is computed.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, TensorError, nearest

Maps: TypeAlias = NDArray[np.float32]  #: (B, h, w); of signals (B, l), of volumes (B, d, h, w)

EPSILON = 1e-7  #: added to a map's maximum before it divides; it keeps a map of zeros at zero


def heatmaps(
    layer_maps: Sequence[ArrayLike],
    size: Sequence[int],
    rectify: bool = True,
    fuse: str = "mean",
    scale: str = "image",
) -> Maps:
    """Heatmaps of one or more layers' raw maps.

    Args:
        layer_maps: per layer (B, h, w), float, of any sign; the layers' grids may differ. Grids of signals
            (B, l) and volumes (B, d, h, w) do as well.
        size: (H, W) of the result; one number per axis of the grid.
        rectify: drop negative evidence first; False lets it take part in the scaling (CAM).
        fuse: see :func:`fuse`.
        scale: ``image``: each sample is scaled on its own; ``batch``: all alike, so that they compare.

    Returns:
        (B, H, W) float32 in [0, 1]. A map without contrast (all zeros, or nothing positive) is exactly zero
        everywhere if it is scaled on its own.

    Raises:
        InputError: no layer, maps of the wrong shape or of different ranks, an unusable size, an unknown
            fusion or scaling.
        TensorError: a map that is not finite.
    """
    checked = [_checked(raw) for raw in layer_maps]
    if len(ranks := {maps.ndim for maps in checked}) > 1:
        grids = " and ".join(_AXES[rank - 1] for rank in sorted(ranks))
        raise InputError(f"Layers with grids {grids} make no common heatmap: explain them one by one.")
    made: Maps = pipeline([m if rectify else m.copy() for m in checked], size, rectify, fuse, scale)
    return made


def pipeline(
    layer_maps: Sequence[Any],
    size: Any,
    rectify: bool,
    fuse: str,
    scale: str = "image",
    xp: Any = np,
    resize: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """The steps of :func:`heatmaps`, on checked arrays or on tensors of a graph.

    Args:
        layer_maps: see :func:`heatmaps`; arrays are written over unless they are rectified.
        size: see :func:`heatmaps`; None leaves the maps at their own.
        rectify: see :func:`heatmaps`.
        fuse: see :func:`heatmaps`.
        scale: see :func:`heatmaps`.
        xp: the array namespace.
        resize: of that namespace: maps and a size to maps; None: OpenCV's.
    """
    resize = resize or _resize
    enlarged = []
    for maps in layer_maps:
        scaled = _scale(xp.maximum(maps, 0) if rectify else maps, scale, xp)
        enlarged.append(scaled if size is None else resize(scaled, size))
    # The library also rectifies here; scaled maps and their linear interpolations are never negative.
    return _scale(_combine(enlarged, fuse, xp), scale, xp)


def scale(maps: ArrayLike, over: str = "image") -> Maps:
    """Moved and stretched to [0, 1]: z = M - min M, then z / (max z + 1e-7).

    Args:
        maps: (B, h, w), float.
        over: ``image``: each sample by its own range; ``batch``: all by that of all.

    Returns:
        (B, h, w) float32; zero everywhere for what is constant.

    Raises:
        InputError: maps of the wrong shape, or an unknown scaling.
        TensorError: a map that is not finite.
    """
    scaled: Maps = _scale(_checked(maps).copy(), over)
    return scaled


def scale_each(maps: Sequence[Maps], over: str = "image") -> list[Maps]:
    """:func:`scale` for maps (H, W) of different sizes."""
    if over == "image":
        return [scale(one[None])[0] for one in maps]
    flat = scale(np.concatenate([one.ravel() for one in maps])[None], over)[0]
    ends = np.cumsum([one.size for one in maps])[:-1]
    return [part.reshape(one.shape) for part, one in zip(np.split(flat, ends), maps, strict=True)]


def resize(maps: ArrayLike, size: Sequence[int], corners: bool = False) -> Maps:
    """Maps at another size: linear along each axis, half-pixel centres, edges repeated, no antialiasing.

    Args:
        maps: (B, h, w), float; or (B, l), or (B, d, h, w).
        size: (H, W), one number per axis of the grid.
        corners: the centres of the first and last cells become those of the first and last pixels.

    Returns:
        (B, H, W) float32, a new array.

    Raises:
        InputError: maps of the wrong shape or an unusable size.
    """
    checked = _checked(maps)
    return _by_corners(checked, size) if corners else _resize(checked, size)


def _by_corners(maps: Maps, size: Sequence[int]) -> Maps:
    for axis, n in enumerate(size, start=1):
        at = np.linspace(0, maps.shape[axis] - 1, n)
        low = np.minimum(at.astype(int), max(maps.shape[axis] - 2, 0))
        share = np.expand_dims((at - low).astype(np.float32), tuple(range(1, maps.ndim - axis)))
        high = np.minimum(low + 1, maps.shape[axis] - 1)
        maps = np.take(maps, low, axis) * (1 - share) + np.take(maps, high, axis) * share
    return maps


def _resize(maps: Maps, size: Sequence[int]) -> Maps:
    rank = maps.ndim - 1
    try:
        sizes = [int(n) for n in size]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) != rank:
        raise InputError(f"The size of a heatmap is {_AXES[rank]}, not {size!r}.")
    if min(sizes) < 1:
        raise InputError(f"The size of a heatmap is at least {'×'.join('1' * rank)}, not {_by(sizes)}.")
    if rank == 1:
        return _planes(maps[:, None], 1, sizes[0])[:, 0]
    batch, *depth = maps.shape[:-2]
    planes = _planes(maps.reshape(-1, *maps.shape[-2:]), *sizes[-2:])
    if not depth:
        return planes
    columns = planes.reshape(batch, depth[0], sizes[1] * sizes[2])  # each a line through the slices
    return _planes(columns, sizes[0], columns.shape[2]).reshape(batch, *sizes)


_AXES = {1: "(length,)", 2: "(height, width)", 3: "(depth, height, width)"}


def _planes(maps: Maps, height: int, width: int) -> Maps:
    """(B, h, w) at another size."""
    resized = np.empty((len(maps), height, width), np.float32)
    for source, target in zip(np.ascontiguousarray(maps), resized, strict=True):
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def _by(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def fuse(maps: Sequence[ArrayLike], how: str = "mean") -> Maps:
    """The maps of several layers as one.

    Args:
        maps: per layer (B, H, W), float, of equal shape.
        how: ``mean``, ``max`` or ``product``, cell by cell; ``product:pgc``: each scaled once more before.

    Returns:
        (B, H, W) float32, not scaled again.

    Raises:
        InputError: no layer, maps of different shapes, or an unknown ``how``.
    """
    combined: Maps = _combine([_checked(m) for m in maps], how)
    return combined


def _combine(maps: Sequence[Any], how: str, xp: Any = np) -> Any:
    if not isinstance(how, str) or how not in _FUSIONS:
        raise InputError(
            f"No fusion {how!r}.{nearest(str(how), [*_FUSIONS])} There are: {', '.join(_FUSIONS)}."
        )
    if not maps:
        raise InputError("There is no layer's map to fuse.")
    shapes = [m.shape for m in maps]
    if len(set(shapes)) > 1:
        raise InputError(f"Maps of equal shape can be fused, not of {', '.join(map(str, shapes))}.")
    return maps[0] if len(maps) == 1 else _FUSIONS[how](maps, xp)


_FUSIONS: dict[str, Callable[[Sequence[Any], Any], Any]] = {
    "mean": lambda maps, xp: functools.reduce(operator.add, maps) / len(maps),
    "max": lambda maps, xp: functools.reduce(xp.maximum, maps),
    "product": lambda maps, xp: functools.reduce(operator.mul, maps),
    # As pytorch-grad-cam's RefineCAM: each is a finished heatmap, scaled after it was enlarged, too.
    "product:pgc": lambda maps, xp: functools.reduce(
        operator.mul, [_scale(m.copy() if xp is np else m, "image", xp) for m in maps]
    ),
}


def _checked(maps: ArrayLike) -> Maps:
    """``maps`` as float32 (B, h, w), itself where it is one already."""
    if isinstance(maps, np.ndarray) and maps.dtype == np.float32:
        array = maps
    else:
        with np.errstate(over="ignore"):  # beyond float32: found below
            array = np.asarray(maps, np.float32)
    if array.ndim not in (2, 3, 4) or 0 in array.shape[1:]:
        raise InputError(
            "Maps have the shape (batch, height, width), (batch, length) or (batch, depth, height, width), "
            f"not {array.shape}."
        )
    _refuse_broken(array)
    return array


SCALINGS = ("image", "batch")  #: over what maps are scaled


def _scale(maps: Any, over: str = "image", xp: Any = np) -> Any:
    """Scale, arrays in place: at image size a second buffer costs more than the arithmetic."""
    if over not in SCALINGS:
        raise InputError(
            f"No scaling {over!r}.{nearest(str(over), [*SCALINGS])} There are: {', '.join(SCALINGS)}."
        )
    grid = tuple(range(over == "image", len(maps.shape)))
    low = xp.min(maps, axis=grid, keepdims=True)
    if xp is not np or low.any():  # rectified maps mostly have a cell without heat
        with np.errstate(over="ignore"):  # a range beyond float32: found below
            maps -= low
    high = xp.max(maps, axis=grid, keepdims=True)
    if xp is np:
        _refuse_broken(high)
    maps /= high + EPSILON
    return maps


def _refuse_broken(maps: Maps) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(maps.sum()):  # one pass; a sum that overflows only asks for a closer look
            return
    broken = ~np.isfinite(maps).reshape(len(maps), -1).all(axis=1)
    if broken.any():
        raise TensorError(
            f"The map of image {np.flatnonzero(broken)[0]} of the batch is not finite: activations or "
            "gradients of the model overflow. A float16 model may need its float32 version."
        )
