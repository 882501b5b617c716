"""Linear interpolation as a product with matrices: for arrays and for tensors of a graph alike.

ONNX's Resize computes where to look in float32, which on large grids is not exact enough, and has no CUDA
kernel at every opset; OpenCV, which :mod:`onnxcam.postprocess` takes on the host, is in no graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any  #: a NumPy array, or a tensor of a graph under construction
Size: TypeAlias = Any  #: an int, or a scalar of the graph

_STORED = 2**14  #: entries above which a graph computes a matrix when it is loaded, instead of storing it


def linear(maps: Array, size: Sequence[Size], xp: Any = np) -> Array:
    """Maps at another size, as :func:`onnxcam.postprocess.resize` has it.

    Args:
        maps: (B, l), (B, h, w) or (B, d, h, w), float.
        size: one number per axis of the grid.
        xp: the array namespace.

    Returns:
        (B, *size).
    """
    grid = [xp.size(maps, axis) for axis in range(1, len(maps.shape))]
    if len(grid) < 3:
        return _planes(maps, grid, size, xp)
    planes = _planes(maps, grid[1:], size[1:], xp)  # slice by slice; then each cell's line through the slices
    lines = xp.matmul(weights(grid[0], size[0], xp), xp.reshape(planes, (xp.size(maps, 0), grid[0], -1)))
    return xp.reshape(lines, (xp.size(maps, 0), *size))


def linear_like(maps: Array, like: Array, xp: Any = np) -> Array:
    """Maps (B, h, w) in the grid of a tensor (B, C, H, W); see :func:`linear`."""
    return linear(maps, [xp.size(like, axis) for axis in range(2, len(like.shape))], xp)


def _planes(maps: Array, grid: Sequence[Size], size: Sequence[Size], xp: Any) -> Array:
    if len(grid) == 2 and not _equal(grid[0], size[0]):
        maps = xp.matmul(weights(grid[0], size[0], xp), maps)
    if not _equal(grid[-1], size[-1]):
        maps = xp.matmul(maps, xp.permute_dims(weights(grid[-1], size[-1], xp), (1, 0)))
    return maps


def weights(cells: Size, pixels: Size, xp: Any = np) -> Array:
    """How much each pixel along an axis takes from each cell.

    Half-pixel centres, edges repeated, no antialiasing: pixel i looks at x = (i + 1/2) n / N - 1/2, brought
    into [0, n - 1], and takes max(0, 1 - |x - j|) of cell j. All of it times 2 N is whole numbers, so that no
    place is rounded.

    Args:
        cells: n.
        pixels: N.
        xp: the array namespace.

    Returns:
        (N, n) float32.
    """
    known = isinstance(cells, int) and isinstance(pixels, int)
    of = np if known and cells * pixels <= _STORED else xp
    at = (of.arange(pixels) * 2 + 1) * cells - pixels
    at = of.minimum(of.maximum(at, 0), (cells - 1) * 2 * pixels)
    apart = of.abs(of.reshape(at, (-1, 1)) - of.arange(cells) * 2 * pixels)
    whole = of.asarray(2 * pixels, dtype=np.float32)
    return xp.asarray(of.maximum(1 - of.asarray(apart, dtype=np.float32) / whole, 0), dtype=np.float32)


def _equal(a: Size, b: Size) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b


def antialiased(images: Array, size: tuple[int, int]) -> Array:
    """Images at another size, as torch and Pillow enlarge and shrink them: the kernel widens as they shrink.

    Args:
        images: (C, h, w).
        size: H, W.

    Returns:
        (C, H, W) float32.
    """
    rows, columns = (_spread(n, m) for n, m in zip(images.shape[1:], size, strict=True))
    return np.matmul(rows, np.matmul(np.asarray(images, np.float32), columns.T))


def _spread(cells: int, pixels: int) -> Array:
    """(N, n) float32, rows that sum to 1: triangles as wide as a pixel is in cells, but at least one cell."""
    step = cells / pixels
    centres = (np.arange(pixels) + 0.5) * step
    apart = np.abs(np.arange(cells) + 0.5 - centres[:, None]) / max(step, 1)
    weights = np.maximum(1 - apart, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
