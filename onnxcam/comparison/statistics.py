"""Distributions over photos, and how sure their means are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .agreement import Better
from .data import Statistic

RESAMPLES = 2000  #: enough for the ends of a 95 % interval: Efron and Tibshirani 1993, section 13
LEVEL = 0.95  #: of the interval
_BLOCK = 2**16  #: photos drawn at once, so that memory does not grow with their number


def statistics(
    values: NDArray[np.float64], better: Sequence[Better], seed: int = 0, resamples: int = RESAMPLES
) -> list[Statistic | None]:
    """What is told of each quantity over the photos.

    The interval of the mean is Efron's percentile bootstrap (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, section 13.3): whole photos are drawn with replacement, the same for all quantities, and
    the mean is over those drawn where the quantity is defined.

    Args:
        values: (N, M) of N photos; NaN where a quantity is not defined.
        better: (M) which end of each is the worst.
        seed: of the draws; the same values and seed always give the same interval.
        resamples: the number of draws.

    Returns:
        (M); None for a quantity that is defined for no photo.
    """
    means = resampled(values, seed, resamples)
    return [
        _statistic(values[:, m], means[:, m], better[m]) if np.isfinite(values[:, m]).any() else None
        for m in range(values.shape[1])
    ]


def resampled(values: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """(resamples, M) the means over photos that are drawn with replacement; NaN where none defines it."""
    count, quantities = values.shape
    found = np.full((resamples, quantities), np.nan)
    if not count:
        return found
    defined = np.isfinite(values).astype(np.float64)
    middle = _means(values)
    # From their middle, equal values have a mean that is exact, and an interval without width.
    moved = np.where(np.isfinite(values), values - middle, 0)
    random = np.random.default_rng(seed)
    step = max(_BLOCK // count, 1)
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        rows = part.stop - part.start
        drawn = random.integers(count, size=(rows, count))
        drawn += np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0: none of the drawn photos defines it
            found[part] = (times @ moved) / (times @ defined)
    return np.asarray(found + middle, np.float64)


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each column over what is finite; NaN of none."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(finite, values, 0).sum(axis=0) / finite.sum(axis=0), np.float64)


def _statistic(values: NDArray[np.float64], means: NDArray[np.float64], better: Better) -> Statistic:
    values = values[np.isfinite(values)]
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(means[np.isfinite(means)], [tail, 100 - tail])
    p05, median, p95 = np.percentile(values, [5, 50, 95])
    told: list[Any] = [values.mean(), low, high, median, p05, p95]
    told.append(values.min() if better == "higher" else values.max())
    return Statistic(len(values), *map(float, told))
