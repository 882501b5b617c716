"""What a metric sees: one image, its heatmap, and the model as a function that gives scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import MetricError

Image: TypeAlias = NDArray[np.float32]
#: From a range of numbers to these inputs stacked: ``make(slice(a, b))`` is (b - a, *image.shape).
Make: TypeAlias = Callable[[slice], Image]
#: From such a function and how many inputs there are to their scores (count,), made in batches.
Score: TypeAlias = Callable[[Make, int], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Truth:
    """Where the object is, in pixels of the model's input.

    Attributes:
        mask: (H, W) bool, with at least one True.
        boxes: (K, 4) float32 x1, y1, x2, y2: pixel edges, so that x2 - x1 is the width.
    """

    mask: NDArray[np.bool_]
    boxes: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Curve:
    """A quantity that is measured many times.

    Attributes:
        x: (T,) float64, ascending: the share of pixels changed, or a threshold.
        y: (T,) float64.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def __float__(self) -> float:
        """The area under it, by trapezia."""
        return float(np.trapezoid(self.y, self.x))


@dataclass(frozen=True, eq=False)
class Case:
    """One image's explanation.

    Attributes:
        image: (C, H, W) float32, or (H, W, C) with ``channels_last``: ready for the model.
        heatmap: (H, W) float32 in [0, 1].
        score: the explained score of other inputs, of the one class; see :data:`Score`. The papers' metrics
            are defined on probabilities.
        clean: the score of the image itself.
        truth: where the object is, or None.
        explain: from an input in the image's shape to its heatmap (H, W), same method and class; or None.
        randomised: (H, W) the heatmap of the same image from a model with random weights, or None.
        black: what a black pixel is in the model's input, in a shape that broadcasts to the image's; or None.
        channels_last: see ``image``.
        known: scores and maps that metrics share, so that the model runs once for all of them.

    Raises:
        MetricError: sizes that do not fit, values that are not finite, or a heatmap outside [0, 1].
    """

    image: Image
    heatmap: NDArray[np.float32]
    score: Score
    clean: float
    truth: Truth | None = None
    explain: Callable[[Image], NDArray[np.float32]] | None = None
    randomised: NDArray[np.float32] | None = None
    black: NDArray[np.float32] | None = None
    channels_last: bool = False
    known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.image.ndim != 3:
            raise MetricError(f"The image has the shape {self.image.shape}, not (C, H, W) or (H, W, C).")
        grid = self.image.shape[:2] if self.channels_last else self.image.shape[1:]
        maps = {"heatmap": self.heatmap, "heatmap of the randomised model": self.randomised}
        for what, heatmap in maps.items():
            if heatmap is None:
                continue
            if heatmap.shape != grid:
                raise MetricError(f"The {what} is {heatmap.shape}, but the image is {grid}.")
            if not np.isfinite(heatmap).all():
                raise MetricError(f"The {what} holds NaN or infinity: the method failed on this image.")
            if heatmap.min() < 0 or heatmap.max() > 1:
                raise MetricError(
                    f"The {what} reaches from {heatmap.min():.3g} to {heatmap.max():.3g}; a heatmap is "
                    "scaled to [0, 1] (onnxcam.postprocess.scale)."
                )
        if self.truth is not None and self.truth.mask.shape != grid:
            raise MetricError(
                f"The truth's mask is {self.truth.mask.shape}, but the image is {grid}: give it at the size "
                "of the model's input."
            )
        if not np.isfinite(self.image).all():
            raise MetricError("The image holds NaN or infinity.")
        if not np.isfinite(self.clean):
            raise MetricError(f"The score of the image is {self.clean}: nothing can be compared with it.")

    def over(self, weights: NDArray[Any]) -> NDArray[Any]:
        """(..., H, W) in a shape that broadcasts over the image's channels."""
        return weights[..., None] if self.channels_last else weights[..., None, :, :]

    @cached_property
    def flat(self) -> bool:
        """Whether the heatmap is the same everywhere, so that it prefers no pixel."""
        return bool(self.heatmap.min() == self.heatmap.max())

    def shown(self, black: bool = False) -> Image:
        """The image where the heatmap is 1, the baseline where it is 0, their blend between.

        The baseline is 0 in the model's input, or a black pixel.
        """
        weights = self.over(self.heatmap)
        if not black:
            return np.asarray(self.image * weights, np.float32)
        base = np.broadcast_to(np.asarray(self.black, np.float32), self.image.shape)
        return np.asarray(base + (self.image - base) * weights, np.float32)

    def shown_score(self, black: bool = False) -> float:
        """The score of :meth:`shown`; the model runs once however many metrics ask."""
        if ("score", black) not in self.known:
            self.known["score", black] = self.score_of(self.shown(black))
        return float(self.known["score", black])

    def shown_heatmap(self, black: bool = False) -> NDArray[np.float32]:
        """The heatmap (H, W) of :meth:`shown`, made once."""
        if ("heatmap", black) not in self.known:
            assert self.explain is not None
            self.known["heatmap", black] = self.explain(self.shown(black))
        return np.asarray(self.known["heatmap", black])

    def score_of(self, image: Image) -> float:
        """The score of one input."""
        return float(self.score(lambda part: np.asarray(image[None], np.float32), 1)[0])


def truth_of_mask(mask: ArrayLike) -> Truth:
    """The object's pixels, with a box around each of its connected parts (8 neighbours).

    Args:
        mask: (H, W), nonzero where the object is.

    Raises:
        MetricError: it is not (H, W), or marks no pixel.
    """
    marked = np.asarray(mask) != 0
    if marked.ndim != 2:
        raise MetricError(f"A mask has the shape (height, width), not {marked.shape}.")
    if not marked.any():
        raise MetricError("The mask is empty: it marks no pixel of the object.")
    stats = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)[2][1:]
    left, top, width, height = stats[:, :4].T
    boxes = np.stack([left, top, left + width, top + height], axis=1)
    return Truth(marked, boxes.astype(np.float32))


def truth_of_boxes(boxes: ArrayLike, size: Sequence[int]) -> Truth:
    """Boxes, and the pixels whose centres lie in one of them.

    Args:
        boxes: (K, 4) or (4,): x1, y1, x2, y2, pixel edges.
        size: (H, W) of the image.

    Raises:
        MetricError: no box, one that is no rectangle, or none with a pixel of the image in it.
    """
    try:
        corners: NDArray[np.float32] = np.atleast_2d(np.asarray(boxes, np.float32))
    except (TypeError, ValueError):
        corners = np.empty(0, np.float32)
    if corners.ndim != 2 or corners.shape[1] != 4 or not len(corners):
        raise MetricError(f"Boxes are [[x1, y1, x2, y2], ...] with at least one, not {boxes!r}.")
    if not np.isfinite(corners).all() or (corners[:, :2] >= corners[:, 2:]).any():
        raise MetricError(f"A box has x1 < x2 and y1 < y2, in pixels; these are {corners.tolist()}.")
    y, x = (np.arange(n) + 0.5 for n in size)
    within = (
        (x >= corners[:, 0, None, None])
        & (x < corners[:, 2, None, None])
        & (y[:, None] >= corners[:, 1, None, None])
        & (y[:, None] < corners[:, 3, None, None])
    )
    inside: NDArray[np.bool_] = np.any(within, axis=0)
    if not inside.any():
        raise MetricError(f"The boxes {corners.tolist()} hold no pixel of the image, which is {tuple(size)}.")
    return Truth(inside, corners)
