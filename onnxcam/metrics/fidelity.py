"""Infidelity and sensitivity.

Yeh, Hsieh, Suggala, Inouye and Ravikumar, "On the (In)fidelity and Sensitivity of Explanations", NeurIPS
2019.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from . import metric
from .case import Case, Image

_SOURCE = "Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019"


@metric(
    "infidelity",
    better="lower",
    source=f"{_SOURCE}",
    formula="E_I (β Iᵀ M - (s(x) - s(x - I ⊙ x)))², I a random square, β the best factor",
)
def infidelity(case: Case, *, samples: int = 50, seed: int = 0) -> float:
    """How badly the heat in a square tells what the score loses when the square is removed.

    With the authors' square removal: I is 1 on a square of random side (a tenth to a half
    of the image's shorter side) and place, 0 elsewhere, and removed pixels are 0 in the model's input. A
    heatmap has no units, so it is first multiplied by the one number β that makes the result smallest, as
    the authors' code and captum's ``infidelity(normalize=True)`` do.

    Args:
        case: the image and its map.
        samples: how many squares.
        seed: of the squares.

    Returns:
        ≥ 0, in the score's units squared.
    """
    squares = _squares(case.heatmap.shape, samples, seed)

    def make(part: slice) -> Image:
        return np.stack([case.image * case.over(~square) for square in squares[part]])

    lost = case.clean - np.asarray(case.score(make, samples), np.float64)
    told = np.array([case.heatmap[square].sum(dtype=np.float64) for square in squares])
    energy = float((told**2).mean())
    beta = float((told * lost).mean()) / energy if energy else 0.0
    return float(((beta * told - lost) ** 2).mean())


@metric(
    "sensitivity",
    better="lower",
    source=f"{_SOURCE}",
    formula="max over |δ|∞ ≤ r of ‖M(x + δ) - M(x)‖ / ‖M(x)‖",
    needs=("explain",),
)
def sensitivity(case: Case, *, radius: float = 0.02, samples: int = 10, seed: int = 0) -> float:
    """How much the map changes at most when the image hardly does.

    By Monte Carlo: uniform noise in the cube of half side ``radius`` around the image, in the
    model's units; divided by the map's own norm, as in the authors' code and captum's
    ``sensitivity_max``.

    Args:
        case: the image and its map.
        radius: r.
        samples: how many noisy copies.
        seed: of the noise.

    Raises:
        MetricError: the map is zero everywhere, so that no change can be set against it.
    """
    norm = float(np.linalg.norm(case.heatmap))
    if not norm:
        raise MetricError("The sensitivity is relative to the map, and the map is zero everywhere.")
    rng = np.random.default_rng(seed)
    assert case.explain is not None
    changes = []
    for _ in range(samples):
        noise = rng.uniform(-radius, radius, case.image.shape).astype(np.float32)
        changes.append(float(np.linalg.norm(case.explain(case.image + noise) - case.heatmap)))
    return max(changes) / norm


def _squares(shape: tuple[int, ...], count: int, seed: int) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    short = min(shape)
    made = np.zeros((count, *shape), bool)
    for square in made:
        side = int(rng.integers(max(short // 10, 1), max(short // 2, 1), endpoint=True))
        top, left = (int(rng.integers(n - side, endpoint=True)) for n in shape)
        square[top : top + side, left : left + side] = True
    return made
