"""Sanity check: a map that is the same when the model's weights are random explains no model.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity Checks for Saliency Maps", NeurIPS 2018.
:func:`onnxcam.export.randomised` makes the other model.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from . import metric, require
from .case import Case

_SOURCE = "Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018"


@metric(
    "randomised_ssim",
    better="lower",
    source=_SOURCE,
    formula="SSIM(M, M of the model with random weights)",
    needs=("randomised",),
)
def randomised_ssim(case: Case) -> float:
    """How alike the two maps look: 1 if they are equal.

    Structural similarity of Wang et al., IEEE TIP 2004: a Gaussian window of 11 pixels with σ = 1.5,
    K = (0.01, 0.03), of maps in [0, 1]; the mean over the windows that lie within the image, as
    scikit-image takes it with ``gaussian_weights=True``.
    """
    assert case.randomised is not None
    return ssim(case.heatmap, case.randomised)


@metric(
    "randomised_rank",
    better="lower",
    source=_SOURCE,
    formula="|Spearman's ρ(M, M of the model with random weights)|",
    needs=("randomised",),
    uses=("scipy.stats",),
)
def randomised_rank(case: Case) -> float:
    """How alike the two maps order the pixels: 1 if they agree, 0 if they have nothing in common.

    Without its sign: a map that is turned over tells as much of the other one.

    Raises:
        MetricError: one of them is constant, and orders nothing.
    """
    assert case.randomised is not None
    pair = case.heatmap, case.randomised
    if any(m.min() == m.max() for m in pair):
        raise MetricError("A constant map orders nothing: its rank correlation is not defined.")
    stats = require("scipy.stats", "randomised_rank")
    return abs(float(stats.spearmanr(pair[0].ravel(), pair[1].ravel()).statistic))


def ssim(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The structural similarity of two maps (H, W) in [0, 1].

    Raises:
        MetricError: they are smaller than the window of 11 pixels.
    """
    if min(first.shape) < 11:
        raise MetricError(f"SSIM looks at windows of 11 pixels, and the map is {first.shape}.")

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5], np.float64)

    a, b = (m.astype(np.float64) for m in (first, second))
    return structural_similarity(a, b, mean)


def structural_similarity(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    mean: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    correction: float = 1.0,
) -> float:
    """The mean of Wang et al.'s index over windows, equation 13, with K = (0.01, 0.03).

    Args:
        a: (H, W) in [0, 1].
        b: likewise.
        mean: of an array in each window.
        correction: n / (n - 1) for sample covariances of n pixels; 1 for those of the paper.
    """
    ma, mb = mean(a), mean(b)
    va, vb, cov = (
        correction * v for v in (mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb)
    )
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return float(index.mean())
