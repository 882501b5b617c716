"""Of the map itself, and of the map against what the model says of it: ADCC, ARCC and their parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from . import metric
from .case import Case
from .confidence import drop, drop_ovx
from .road import road, road_pgc

_ADCC = "Poppi et al., Revisiting the Evaluation of Class Activation Mapping, CVPR workshops 2021"
_ARCC = "as pytorch-grad-cam's ARCC (after arXiv 2605.14641)"
_ROAD_OF_ARCC = (20, 40, 60, 80)


@metric("complexity", better="lower", source=_ADCC, formula="mean of M")
def complexity(case: Case) -> float:
    """How much of the image the map needs: its L1 norm over the number of pixels.

    The same in pytorch-grad-cam and openvino_xai. A map of zeros is the least
    complex: read it beside the others.
    """
    return float(case.heatmap.mean(dtype=np.float64))


@metric(
    "sparseness",
    better="higher",
    source="Chalasani et al., Concise Explanations of Neural Networks using Adversarial Training, ICML 2020",
    formula="Gini index of M",
)
def sparseness(case: Case) -> float:
    """The Gini index: 0 where every pixel has the same heat, nearly 1 where one has all of it.

    Raises:
        MetricError: the map is zero everywhere: no heat to be shared.
    """
    heat = np.sort(case.heatmap.ravel().astype(np.float64))
    if not heat.sum():
        raise MetricError("The sparseness is of the heat's shares, and the map is zero everywhere.")
    n = heat.size
    return float(((2 * np.arange(1, n + 1) - n - 1) * heat).sum() / (n * heat.sum()))


@metric(
    "coherency",
    better="higher",
    source=_ADCC,
    formula="(ρ(M(x ⊙ M), M) + 1) / 2, ρ Pearson's correlation",
    needs=("explain",),
)
def coherency(case: Case) -> float:
    """Whether the model's map of what the map shows is the map again.

    Poppi et al. 2021, moved to [0, 1] as in the authors' code.

    Raises:
        MetricError: one of the two maps is constant, which correlates with nothing.
    """
    return (_pearson(case.heatmap, case.shown_heatmap()) + 1) / 2


@metric(
    "coherency:pgc",
    better="higher",
    source="pytorch-grad-cam, Coherency",
    formula="(cov / (σ σ′ + 1e-8) + 1) / 2",
    needs=("explain",),
)
def coherency_pgc(case: Case) -> float:
    """Coherency with pytorch-grad-cam's epsilon, which gives constant maps 1/2."""
    a, b = (m - m.mean() for m in _flat(case.heatmap, case.shown_heatmap()))
    free = a.size - 1
    covariance = (a * b).sum() / free
    spread = np.sqrt((a * a).sum() / free) * np.sqrt((b * b).sum() / free)
    return float((covariance / (spread + 1e-8) + 1) / 2)


@metric(
    "coherency:ovx",
    better="higher",
    source="openvino_xai, ADCC",
    formula="as coherency, hidden pixels black",
    needs=("explain", "black"),
)
def coherency_ovx(case: Case) -> float:
    """Coherency where hidden pixels are black in the photo.

    openvino_xai explains the masked photo without scaling, then scales to [0, 1]; a correlation is the same
    either way.
    """
    return (_pearson(case.heatmap, case.shown_heatmap(black=True)) + 1) / 2


@metric(
    "adcc",
    better="higher",
    source=_ADCC,
    formula="harmonic mean of coherency, 1 - complexity and 1 - drop",
    needs=("explain",),
)
def adcc(case: Case) -> float:
    """Average DCC: drop, coherency and complexity in one number in [0, 1].

    Poppi et al. 2021, of one image; a set's is the mean. A part that is 0 makes it 0.
    """
    return _harmonic(coherency(case), 1 - complexity(case), 1 - drop(case))


@metric(
    "adcc:ovx",
    better="higher",
    source="openvino_xai, ADCC",
    formula="as adcc, hidden pixels black",
    needs=("explain", "black"),
)
def adcc_ovx(case: Case) -> float:
    """ADCC where hidden pixels are black in the photo.

    Of one image. openvino_xai's ``evaluate`` takes the harmonic mean of the set's three means instead of the
    mean of the images' harmonic means, as the paper has it; the two agree on one image.
    """
    return _harmonic(coherency_ovx(case), 1 - complexity(case), 1 - drop_ovx(case))


@metric(
    "arcc",
    better="higher",
    source=f"{_ARCC}, on road by rank, no epsilon",
    formula="harmonic mean of coherency, 1 - complexity and 2 road in [0, 1]",
    needs=("explain",),
    uses=("scipy.sparse.linalg",),
)
def arcc(case: Case, *, seed: int = 0) -> float:
    """ROAD, coherency and complexity in one number in [0, 1]: ADCC with ROAD in the drop's place.

    Args:
        case: the image and its map.
        seed: of ROAD's noise.
    """
    share = float(np.clip(2 * road(case, percentiles=_ROAD_OF_ARCC, seed=seed), 0, 1))
    return _harmonic(coherency(case), 1 - complexity(case), share)


@metric(
    "arcc:pgc",
    better="higher",
    source="pytorch-grad-cam, ARCC",
    formula="3 / Σ 1 / (part + 1e-8) of coherency:pgc, 1 - complexity and 2 road:pgc in [0, 1]",
    needs=("explain",),
    uses=("scipy.sparse.linalg",),
)
def arcc_pgc(case: Case, *, seed: int = 0, noise: float = 0.01) -> float:
    """As the library computes it: a harmonic mean, where its docstring says geometric.

    Args:
        case: the image and its map.
        seed: of ROAD's noise.
        noise: its standard deviation.
    """
    share = float(np.clip(2 * road_pgc(case, percentiles=_ROAD_OF_ARCC, seed=seed, noise=noise), 0, 1))
    parts = np.array([coherency_pgc(case), 1 - complexity(case), share])
    return float(3 / (1 / (parts + 1e-8)).sum())


def _flat(*maps: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    return [m.ravel().astype(np.float64) for m in maps]


def _pearson(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    a, b = (m - m.mean() for m in _flat(first, second))
    if first.min() == first.max() or second.min() == second.max():
        raise MetricError("A constant map correlates with nothing: the coherency is not defined for it.")
    return float((a @ b) / np.sqrt((a @ a) * (b @ b)))


def _harmonic(*parts: float) -> float:
    return 0.0 if min(parts) <= 0 else len(parts) / sum(1 / part for part in parts)
