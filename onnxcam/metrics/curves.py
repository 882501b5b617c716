"""Deletion and insertion: the score as the pixels change, the hottest first.

Pixels of equal heat change in reading order (row by row), so that a curve is the same on every run; on a
flat map that order is all there is, and the curve says nothing of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import metric
from .case import Case, Curve, Image

_RISE = "Petsiuk et al., RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018"


def ranks(heatmap: NDArray[np.float32]) -> NDArray[np.int64]:
    """(H, W): 0 for the hottest pixel, 1 for the next; equal ones in reading order."""
    order = np.argsort(-heatmap.ravel(), kind="stable")
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    return rank.reshape(heatmap.shape)


def exchange(
    case: Case, start: Image, end: Image, counts: Sequence[int], x: NDArray[np.float64] | None = None
) -> Curve:
    """The score as pixels of ``start`` become those of ``end``, the hottest first.

    Args:
        case: whose heatmap says which is hot.
        start: in the image's shape.
        end: in the image's shape.
        counts: how many pixels have changed at each point.
        x: of the curve; None: the share of the pixels that have changed.
    """
    rank, changed = ranks(case.heatmap), np.asarray(counts, np.int64)

    def make(part: slice) -> Image:
        new = case.over(rank < changed[part, None, None])
        return np.where(new, end, start)

    y = np.asarray(case.score(make, len(changed)), np.float64)
    return Curve(changed / rank.size if x is None else x, y)


def blocks(pixels: int, steps: int) -> list[int]:
    """0, then ever one block of ceil(pixels / steps) more, up to all: the last may be smaller."""
    return [*range(0, pixels, -(-pixels // steps)), pixels]


@metric(
    "deletion",
    better="lower",
    source=_RISE,
    formula="area under s(x, its hottest pixels set to 0) over the share of pixels set",
)
def deletion(case: Case, *, steps: int = 20) -> Curve:
    """How fast the score falls as the hottest pixels are removed.

    Petsiuk et al. 2018. Removed pixels are 0 in the model's input: for most
    models the training set's mean colour. The same as torch-cam's ``DeletionInsertionMetric``.

    Args:
        case: the image and its map.
        steps: into how many blocks the pixels are cut; RISE's own code cuts blocks of one row's length.
    """
    counts = blocks(case.heatmap.size, steps)
    return exchange(case, case.image, np.zeros_like(case.image), counts)


@metric(
    "insertion",
    better="higher",
    source=_RISE,
    formula="area under s(x blurred, its hottest pixels restored) over the share of pixels restored",
)
def insertion(case: Case, *, steps: int = 20) -> Curve:
    """How fast the score rises as the hottest pixels are restored, from a blurred image.

    Petsiuk et al. 2018: blurred rather than empty, because on an empty canvas the edges of what
    is inserted are evidence themselves. The blur is a Gaussian of 11 pixels with σ = 5, as in
    the authors' code, with reflected edges.

    Args:
        case: the image and its map.
        steps: see ``deletion``.
    """
    return exchange(case, blurred(case), case.image, blocks(case.heatmap.size, steps))


@metric(
    "insertion:torchcam",
    better="higher",
    source="torch-cam, DeletionInsertionMetric",
    formula="area under s(0, the hottest pixels of x inserted) over the share of pixels inserted",
)
def insertion_torchcam(case: Case, *, steps: int = 20) -> Curve:
    """Insertion that starts from zeros in the model's input instead of a blurred image.

    Args:
        case: the image and its map.
        steps: see ``deletion``.
    """
    return exchange(case, np.zeros_like(case.image), case.image, blocks(case.heatmap.size, steps))


@metric(
    "deletion:ovx",
    better="lower",
    source="openvino_xai, InsertionDeletionAUC",
    formula="as deletion, pixels set to black, steps + 1 points equally spaced",
    needs=("black",),
)
def deletion_ovx(case: Case, *, steps: int = 30) -> Curve:
    """Deletion to black pixels of the photo.

    openvino_xai sorts with an unstable sort: on equal pixels its curve depends on the NumPy in use; ours
    takes them in reading order.

    Args:
        case: the image and its map.
        steps: how many intervals.
    """
    return exchange(case, case.image, _black(case), *_even(case.heatmap.size, steps))


@metric(
    "insertion:ovx",
    better="higher",
    source="openvino_xai, InsertionDeletionAUC",
    formula="as insertion, from a black image, steps + 1 points equally spaced",
    needs=("black",),
)
def insertion_ovx(case: Case, *, steps: int = 30) -> Curve:
    """Insertion into a black image; equal pixels as in ``deletion:ovx``.

    Args:
        case: the image and its map.
        steps: how many intervals.
    """
    return exchange(case, _black(case), case.image, *_even(case.heatmap.size, steps))


def blurred(case: Case) -> Image:
    """The image under a Gaussian of 11 pixels, σ = 5."""
    planes: Any = case.image if case.channels_last else case.image.transpose(1, 2, 0)
    blurred = cv2.GaussianBlur(np.ascontiguousarray(planes), (11, 11), 5.0, borderType=cv2.BORDER_REFLECT)
    blurred = blurred.reshape(planes.shape)  # OpenCV drops an axis of one channel
    return np.asarray(blurred if case.channels_last else blurred.transpose(2, 0, 1), np.float32)


def _black(case: Case) -> Image:
    return np.broadcast_to(np.asarray(case.black, np.float32), case.image.shape)


def _even(pixels: int, steps: int) -> tuple[list[int], NDArray[np.float64]]:
    """Points equally spaced whatever the number of pixels; the counts are rounded down."""
    return [int(i * pixels / steps) for i in range(steps + 1)], np.linspace(0, 1, steps + 1)
