"""Two maps of one photo on one grid, over the part of the photo that both models see.

The grid is the coarser one's: its cells keep their values, and the finer map is averaged over each of them by
area. Nothing is interpolated, so that no map gets detail that its layer does not have. Rows and columns are
independent of each other, and so is which side is the coarser along them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..contract import Preprocess
from ..errors import InputError
from ..preprocess import Geometry, placed

_ROUNDING = 1e-9  #: of a cell: what edges that are the same may differ by


@dataclass(frozen=True, eq=False)
class Common:
    """The grid (h, w) on which two maps (h1, w1) and (h2, w2) meet.

    Attributes:
        rows: two float64 matrices, (h, h1) and (h, h2), whose rows add up to one.
        columns: likewise, (w, w1) and (w, w2).
        ys, xs: (h,) and (w,), the centres of the cells in the photo, in diagonals of the grid's extent there.
    """

    rows: tuple[NDArray[np.float64], NDArray[np.float64]]
    columns: tuple[NDArray[np.float64], NDArray[np.float64]]
    ys: NDArray[np.float64]
    xs: NDArray[np.float64]

    def align(
        self, reference: NDArray[Any], candidate: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The two maps on the grid, (h, w) float32: equal cells stay equal, which ties depend on."""
        one, two = (
            (rows @ side.astype(np.float64) @ columns.T).astype(np.float32)
            for rows, side, columns in zip(self.rows, (reference, candidate), self.columns, strict=True)
        )
        return one, two


@lru_cache(maxsize=256)
def common(reference: Geometry, grid: tuple[int, int], candidate: Geometry, other: tuple[int, int]) -> Common:
    """The grid on which maps of two models meet.

    A cell of the coarser grid takes part if the photo's part that both see covers at least half of it.

    Args:
        reference: where the photo lies in the one model's input.
        grid: (h1, w1) of its map.
        candidate: where the same photo lies in the other's.
        other: (h2, w2) of that one's map.

    Raises:
        InputError: the models see no common part of the photo, or it is not the same photo.
    """
    if reference.photo != candidate.photo:
        raise InputError(
            f"The photo has {_by(reference.photo)} pixels on one side and {_by(candidate.photo)} on the "
            "other: both must have it as it is shown, after the rotation that its EXIF data ask for."
        )
    ys, xs = (
        _meet(_edges(reference, grid, axis), _edges(candidate, other, axis), reference.photo[axis])
        for axis in (0, 1)
    )
    if ys is None or xs is None:
        raise InputError("The models see no common part of the photo.")
    diagonal = float(np.hypot(*(axis.spans[-1, 1] - axis.spans[0, 0] for axis in (ys, xs))))
    middles = [axis.spans.mean(axis=1) / diagonal for axis in (ys, xs)]
    return Common(ys.weights, xs.weights, *middles)


def geometry(photo: tuple[int, int], preprocess: Preprocess | None) -> Geometry:
    """Where a photo of (H, W) pixels lies in a model's input; where that is unknown, the whole fills it."""
    return Geometry(photo, photo, (1.0, 1.0), (0.0, 0.0)) if preprocess is None else placed(photo, preprocess)


def _edges(side: Geometry, grid: tuple[int, int], axis: int) -> NDArray[np.float64]:
    """(cells + 1,) the lines of a grid, in pixels of the photo."""
    lines = np.arange(grid[axis] + 1) * (side.size[axis] / grid[axis])
    return np.asarray((lines - side.offset[axis]) / side.scale[axis], np.float64)


class _Axis(NamedTuple):
    """The common cells along an axis: spans (k, 2) in the photo, each side's weights (k, cells) in them."""

    spans: NDArray[np.float64]
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]


def _meet(one: NDArray[np.float64], two: NDArray[np.float64], photo: int) -> _Axis | None:
    """Where the cells between two sides' lines meet; None if they do not."""
    low, high = max(0.0, one[0], two[0]), min(float(photo), one[-1], two[-1])
    coarser = one if one[1] - one[0] >= two[1] - two[0] else two
    cell = float(coarser[1] - coarser[0])
    if high - low <= _ROUNDING * cell:
        return None
    spans = np.asarray(np.clip(np.stack([coarser[:-1], coarser[1:]], axis=1), low, high), np.float64)
    covered = np.diff(spans)[:, 0] / cell
    kept = covered >= 0.5 - _ROUNDING
    if not kept.any():  # the part is smaller than a cell
        kept = covered == covered.max()
    return _Axis(spans[kept], (_weights(spans[kept], one), _weights(spans[kept], two)))


def _weights(spans: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, cells) the share of each span that lies in each cell."""
    ends = np.minimum(spans[:, 1:], edges[None, 1:]) - np.maximum(spans[:, :1], edges[None, :-1])
    overlap = np.where(ends > _ROUNDING * (edges[1] - edges[0]), ends, 0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), np.float64)


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"
