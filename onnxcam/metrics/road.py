"""ROAD: pixels are removed so that nothing betrays where they were, and the score is asked again.

Rong, Leemann, Borisov, Kasneci and Kasneci, "A Consistent and Efficient Evaluation Strategy for Attribution
Methods", ICML 2022. A removed pixel becomes the weighted mean of its eight neighbours, those that are
removed too included (one linear system for all of them), and a little noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from . import metric, require
from .case import Case, Image
from .curves import ranks

_SOURCE = "Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022"
_USES = ("scipy.sparse.linalg",)
#: Offsets and weights of the neighbours: edges 1/6, corners 1/12.
_NEIGHBOURS = [((y, x), 1 / 6 if y * x == 0 else 1 / 12) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
NOISE = 0.01  #: standard deviation of the noise on removed pixels
PERCENTILES = tuple(range(10, 100, 10))


def impute(
    pixels: NDArray[np.float32], keep: NDArray[np.bool_], noise: float = 0.0, seed: int = 0
) -> NDArray[np.float32]:
    """Noisy linear imputation, the paper's.

    Args:
        pixels: (C, H, W).
        keep: (H, W); the others are replaced.
        noise: standard deviation of what is added to them.
        seed: of the noise.

    Returns:
        (C, H, W) float32.

    Raises:
        MetricError: nothing is kept, so that nothing is known.
        MissingDependency: scipy is not installed.
    """
    sparse = require("scipy.sparse", "road")
    solver = require("scipy.sparse.linalg", "road")
    gone = np.flatnonzero(~keep)
    if len(gone) == keep.size:
        raise MetricError("ROAD has removed every pixel: there is nothing left to fill them from.")
    out = np.array(pixels, np.float32)
    if not len(gone):
        return out
    number = np.full(keep.shape, -1)
    number[~keep] = np.arange(len(gone))
    y, x = np.divmod(gone, keep.shape[1])
    weight_sum, known = np.zeros(len(gone)), np.zeros((len(gone), len(pixels)))
    rows, columns, entries = [], [], []
    for (dy, dx), weight in _NEIGHBOURS:
        inside = (y + dy >= 0) & (y + dy < keep.shape[0]) & (x + dx >= 0) & (x + dx < keep.shape[1])
        at = y[inside] + dy, x[inside] + dx
        row, there = np.flatnonzero(inside), keep[at]
        weight_sum[row] += weight
        known[row[there]] += weight * pixels[:, at[0][there], at[1][there]].T
        rows.append(row[~there])
        columns.append(number[at][~there])
        entries.append(np.full((~there).sum(), -weight))
    diagonal = np.arange(len(gone))
    system = sparse.csc_matrix(
        (
            np.concatenate([*entries, weight_sum]),
            (np.concatenate([*rows, diagonal]), np.concatenate([*columns, diagonal])),
        )
    )
    # Symmetric and diagonally dominant: this ordering fills in least, and no pivot is ever exchanged.
    factors = solver.splu(
        system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
    filled = factors.solve(known)
    if noise:
        filled = filled + noise * np.random.default_rng(seed).standard_normal(filled.shape)
    out.reshape(len(pixels), -1)[:, gone] = filled.T
    return out


@metric(
    "road_morf",
    better="lower",
    source=_SOURCE,
    formula="mean over p = 10 ... 90 of s(x, its hottest p % imputed) - s",
    uses=_USES,
)
def road_morf(case: Case, *, percentiles: Sequence[float] = PERCENTILES, seed: int = 0) -> float:
    """The change of the score as the most relevant pixels go first.

    Exactly p % of the pixels go, equal ones in reading order, as in the authors' code.

    Args:
        case: the image and its map.
        percentiles: the shares p that are removed.
        seed: of the noise.
    """
    return _change(case, _hottest(case, percentiles), seed)


@metric(
    "road_lerf",
    better="higher",
    source=_SOURCE,
    formula="mean over p = 10 ... 90 of s(x, its coldest p % imputed) - s",
    uses=_USES,
)
def road_lerf(case: Case, *, percentiles: Sequence[float] = PERCENTILES, seed: int = 0) -> float:
    """The change of the score as the least relevant pixels go first.

    Args:
        case: the image and its map.
        percentiles: the shares p that are removed.
        seed: of the noise.
    """
    return _change(case, _coldest(case, percentiles), seed)


@metric(
    "road",
    better="higher",
    source=f"{_SOURCE}; the combination is pytorch-grad-cam's ROADCombined",
    formula="(road_lerf - road_morf) / 2",
    uses=_USES,
)
def road(case: Case, *, percentiles: Sequence[float] = PERCENTILES, seed: int = 0) -> float:
    """Both orders in one number: 0 for a map that knows nothing, at most 1/2 of a probability.

    Args:
        case: the image and its map.
        percentiles: the shares p that are removed.
        seed: of the noise.
    """
    both = [road_lerf(case, percentiles=percentiles, seed=seed)]
    both += [road_morf(case, percentiles=percentiles, seed=seed)]
    return float(both[0] - both[1]) / 2


@metric(
    "road:pgc",
    better="higher",
    source="pytorch-grad-cam, ROADCombined",
    formula="as road; the pixels kept are those below the p-th percentile of M, then of 1 - M",
    uses=_USES,
)
def road_pgc(
    case: Case, *, percentiles: Sequence[float] = PERCENTILES, seed: int = 0, noise: float = NOISE
) -> float:
    """ROAD by thresholds.

    Where a share p of the map or more is equal and lowest (a rectified map is often 0 on a tenth
    of the image), nothing lies below the threshold and every pixel is removed; the library's singular
    system then gives an image of zeros, and so it is here. ``road`` removes by rank: always p per cent.

    Args:
        case: the image and its map.
        percentiles: p; of most relevant first 100 - p per cent are removed.
        seed: of the noise, which is drawn from NumPy's generator, not torch's.
        noise: its standard deviation.
    """
    cold = 1 - case.heatmap
    most = {("most", p): case.heatmap < np.percentile(case.heatmap, p) for p in percentiles}
    least = {("least", p): cold < np.percentile(cold, p) for p in percentiles}
    return (_change(case, least, seed, noise) - _change(case, most, seed, noise)) / 2


def _hottest(case: Case, percentiles: Sequence[float]) -> dict[Any, NDArray[np.bool_]]:
    return _kept(ranks(case.heatmap), percentiles, "hottest")


def _coldest(case: Case, percentiles: Sequence[float]) -> dict[Any, NDArray[np.bool_]]:
    return _kept(ranks(-case.heatmap), percentiles, "coldest")


def _kept(rank: NDArray[np.int64], percentiles: Sequence[float], which: str) -> dict[Any, NDArray[np.bool_]]:
    return {(which, p): rank >= min(round(rank.size * p / 100), rank.size - 1) for p in percentiles}


def _change(case: Case, keeps: Mapping[Any, NDArray[np.bool_]], seed: int, noise: float = NOISE) -> float:
    """The mean change of the score; what one metric has asked, the next need not ask again.

    Args:
        case: whose image is imputed.
        keeps: {what it is: the pixels that stay}.
        seed: of the noise.
        noise: its standard deviation.
    """
    planes = case.image.transpose(2, 0, 1) if case.channels_last else case.image
    new = [key for key in keeps if (*key, seed, noise) not in case.known]

    def fill(key: Any) -> Image:
        if keeps[key].any():
            return impute(planes, keeps[key], noise, seed)
        return np.asarray(noise * np.random.default_rng(seed).standard_normal(planes.shape), np.float32)

    def make(part: slice) -> Image:
        made = np.stack([fill(key) for key in new[part]])
        return made.transpose(0, 2, 3, 1) if case.channels_last else made

    if new:
        scores = case.score(make, len(new))
        case.known.update({(*key, seed, noise): float(s) for key, s in zip(new, scores, strict=True)})
    return float(np.mean([case.known[*key, seed, noise] for key in keeps])) - case.clean
