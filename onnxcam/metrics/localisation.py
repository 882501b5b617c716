"""Whether the heat is where the object is.

A map of zeros points nowhere: it misses, and none of its heat is inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from . import metric
from .case import Case, Curve, Image, Truth

_WSOL = "Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020"
THRESHOLDS = np.arange(100) / 100  #: of the heatmap, where a box is drawn


@metric(
    "pointing",
    better="higher",
    source="Zhang et al., Top-Down Neural Attention by Excitation Backprop, ECCV 2016",
    formula="1 if the hottest pixel is in the truth, else 0",
    needs=("truth",),
)
def pointing(case: Case, *, tolerance: float = 0.0) -> float:
    """The pointing game.

    Zhang et al. 2016. Where several pixels are equally hot, the share of them that hits: what
    choosing one of them at random scores on average, so that a flat map gets no more than its due.

    Args:
        case: the image, its map and the truth.
        tolerance: how many pixels of the model's input beside the truth still hit; see ``pointing:15px``.
    """
    if not case.heatmap.any():
        return 0.0
    hottest = case.heatmap == case.heatmap.max()
    return float(_near(_truth(case).mask, tolerance)[hottest].mean())


@metric(
    "pointing:15px",
    better="higher",
    source="Zhang et al. 2016 and TorchRay's PointingGame, which allow 15 pixels",
    formula="1 if the hottest pixel is within 15 pixels of the truth, else 0",
    needs=("truth",),
)
def pointing_15px(case: Case) -> float:
    """The pointing game with the 15 pixels of tolerance of the authors' experiments.

    Theirs are pixels of photos of some 500 pixels, these are the model's.
    """
    return pointing(case, tolerance=15)


@metric(
    "pointing:ovx",
    better="higher",
    source="openvino_xai, PointingGame",
    formula="1 if any of the hottest pixels is in a box, edges included, else 0",
    needs=("truth",),
)
def pointing_ovx(case: Case) -> float:
    """The pointing game that takes the luckiest of equally hot pixels: a flat map always hits.

    A box x1, y1, x2, y2 is openvino_xai's (x1, y1, x2 - x1, y2 - y1), with its far edge included.
    """
    y, x = np.nonzero(case.heatmap == case.heatmap.max())
    left, top, right, bottom = _truth(case).boxes.T[:, :, None]
    return float(((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).any())


@metric(
    "energy",
    better="higher",
    source="Wang et al., Score-CAM, CVPR workshops 2020, section 4.3",
    formula="Σ M in the truth / Σ M",
    needs=("truth",),
)
def energy(case: Case) -> float:
    """The energy-based pointing game: the share of the heat that lies on the object.

    Wang et al. 2020, section 4.3. A uniform map scores the object's share of the image.
    """
    total = float(case.heatmap.sum(dtype=np.float64))
    return float(case.heatmap[_truth(case).mask].sum(dtype=np.float64)) / total if total else 0.0


@metric(
    "grid_pointing",
    better="higher",
    source="Böhle et al., Convolutional Dynamic Alignment Networks, CVPR 2021",
    formula="Σ M in the class's cell of a mosaic / Σ M",
    needs=("truth", "grid"),
)
def grid_pointing(case: Case) -> float:
    """The energy-based pointing game on a mosaic of images of different classes.

    Böhle et al. 2021. The truth needs no labels: it is the cell of the image whose class is explained. A map
    that knows nothing scores 1 / cells. The mosaics are made by :func:`onnxcam.evaluation.evaluate`.
    """
    return energy(case)


@metric(
    "maxboxacc",
    better="higher",
    source=_WSOL,
    formula="max over thresholds τ of the share of images with IoU(box of M ≥ τ, truth) ≥ 1/2",
    needs=("truth",),
    summary="peak",
)
def maxboxacc(case: Case, *, iou: float = 0.5) -> Curve:
    """Whether the box around the largest warm region fits, threshold by threshold.

    Choe et al. 2020: the map is cut at τ, a box drawn around its largest connected part
    (8 neighbours), and compared with the best of the true boxes. The one τ that is best for the whole set
    counts.

    Args:
        case: the image, its map and the truth.
        iou: δ, from which on a box fits.
    """
    curve = box_iou(case)
    return Curve(curve.x, (curve.y >= iou).astype(np.float64))


@metric(
    "box_iou",
    better="higher",
    source=f"{_WSOL}, its IoU before it is compared with 1/2",
    formula="max over thresholds τ of the mean IoU(box of M ≥ τ, truth)",
    needs=("truth",),
    summary="peak",
)
def box_iou(case: Case) -> Curve:
    """The IoU of the box around the largest warm region with the best true box, threshold by threshold.

    A map without heat has no box, and no IoU.
    """
    boxes = _truth(case).boxes
    made = [_box(case.heatmap >= threshold) if case.heatmap.any() else None for threshold in THRESHOLDS]
    y = [0.0 if box is None else float(_ious(box, boxes).max()) for box in made]
    return Curve(THRESHOLDS.astype(np.float64), np.array(y))


def mosaic(images: Sequence[Image], channels_last: bool = False) -> tuple[Image, list[NDArray[np.bool_]]]:
    """Images in a square grid, in reading order, in the size of one of them.

    Args:
        images: n² of one shape, ready for the model; each is shrunk to its cell by averaging.
        channels_last: their layout.

    Returns:
        The mosaic in their shape, and per image the mask (H, W) of its cell.

    Raises:
        MetricError: their number is no square of at least 2, or they are smaller than the grid.
    """
    planes = [image if channels_last else image.transpose(1, 2, 0) for image in images]
    side = math.isqrt(len(planes))
    if side < 2 or side**2 != len(planes):
        raise MetricError(f"A square mosaic has 4, 9, 16, ... images, not {len(planes)}.")
    made = np.empty_like(planes[0])
    if min(made.shape[:2]) < side:
        raise MetricError(f"Images of {made.shape[1]}x{made.shape[0]} pixels make no grid of {side}x{side}.")
    rows, columns = (np.linspace(0, n, side + 1).round().astype(int) for n in made.shape[:2])
    masks = []
    for i, plane in enumerate(planes):
        (top, bottom), (left, right) = rows[i // side :][:2], columns[i % side :][:2]
        cell = cv2.resize(plane, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        made[top:bottom, left:right] = cell.reshape(bottom - top, right - left, -1)
        mask = np.zeros(made.shape[:2], bool)
        mask[top:bottom, left:right] = True
        masks.append(mask)
    return (made if channels_last else np.ascontiguousarray(made.transpose(2, 0, 1))), masks


def _truth(case: Case) -> Truth:
    assert case.truth is not None  # measure() has looked
    return case.truth


def _near(mask: NDArray[np.bool_], tolerance: float) -> NDArray[np.bool_]:
    if not tolerance:
        return mask
    outside = np.asarray(~mask, np.uint8)
    return np.asarray(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= tolerance)


def _box(warm: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """x1, y1, x2, y2 around the part with most pixels; the first of equals in reading order."""
    stats = cv2.connectedComponentsWithStats(warm.astype(np.uint8), connectivity=8)[2][1:]
    if not len(stats):
        return None
    left, top, width, height, _ = stats[stats[:, cv2.CC_STAT_AREA].argmax()].tolist()
    return np.array([left, top, left + width, top + height], np.float64)


def _ious(box: NDArray[np.float64], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.asarray(shared / ((box[2:] - box[:2]).prod() + areas - shared), np.float64)
