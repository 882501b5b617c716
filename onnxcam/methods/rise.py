"""Black boxes: nothing of the model is needed but its scores."""

from __future__ import annotations

import math

import numpy as np

from onnxcam import postprocess, rows
from onnxcam.errors import MethodError
from onnxcam.perturbation import Scorer

from . import Array, method


@method(
    "rise",
    needs=("masked",),
    source="Petsiuk et al., RISE: Randomized Input Sampling for Explanation, BMVC 2018",
    formula="M = 1/(N p) Σ_i f(x ⊙ m_i) m_i over N random masks m_i",
)
def rise(
    masked: Scorer, *, masks: int = 4000, cells: int = 7, probability: float = 0.5, seed: int = 0
) -> Array:
    """The mean of random masks, weighted by the score of what each of them shows.

    Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
    eq. 6 and section 3.2: small grids of zeros and ones, enlarged linearly and shifted by a random part of a
    cell. The score is the probability where the model is a classifier.

    Args:
        masked: scores of the image behind masks.
        masks: N. The paper takes 4,000 for VGG16 and 8,000 for ResNet-50; the map's noise falls with its
            root.
        cells: of the small grid, per side.
        probability: p, with which a cell is seen.
        seed: of the masks.

    Returns:
        M, (T, h, w) at the size of the model's input, one for each target.
    """
    if masks < 1 or cells < 1 or not 0 < probability < 1:
        raise MethodError(
            "RISE needs at least one mask, one cell and a probability between 0 and 1, not "
            f"{masks}, {cells} and {probability}."
        )
    sides = masked.sides
    size = [math.ceil(side / cells) for side in sides]

    def drawn(part: slice) -> Array:
        made = np.empty((part.stop - part.start, *sides), np.float32)
        for k, one in zip(range(part.start, part.stop), made, strict=True):
            rng = np.random.default_rng((seed, k))
            grid = rng.random((cells,) * len(sides)) < probability
            shift = [rng.integers(0, n) for n in size]
            whole = postprocess.resize(grid[None].astype(np.float32), [(cells + 1) * n for n in size])[0]
            one[:] = whole[tuple(slice(a, a + n) for a, n in zip(shift, sides, strict=True))]
        return made

    scores = masked.masked(drawn, masks, of="probability")
    total = np.zeros((scores.shape[1], *sides), np.float32)
    for part in rows.batches(masks, masked.batch):
        total += np.tensordot(scores[part].T, drawn(part), axes=1)
    return total / (masks * probability)


@method(
    "occlusion",
    needs=("masked",),
    source="Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014",
    formula="M = mean over the windows that cover a pixel of f(x) - f(x without the window)",
)
def occlusion(masked: Scorer, *, window: float = 1 / 7, stride: float = 0.5, baseline: float = 0.0) -> Array:
    """How much the score falls when a window slides over the image.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2; where
    windows overlap, a pixel has the mean of theirs.

    Args:
        masked: scores of the image behind masks.
        window: side of the window, as a share of the image's.
        stride: steps of the window, as a share of its side.
        baseline: what the window is filled with, in units of the model's input: 0 is the mean colour where
            the preprocessing subtracts it.

    Returns:
        M, (T, h, w) at the size of the model's input, one for each target.
    """
    if not 0 < window <= 1 or not 0 < stride <= 1:
        raise MethodError(
            "The window and the stride of occlusion are shares above 0 and up to 1, not "
            f"{window} and {stride}."
        )
    sides = masked.sides
    size = [max(1, round(side * window)) for side in sides]
    starts = [_starts(side, n, max(1, round(n * stride))) for side, n in zip(sides, size, strict=True)]
    places = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(sides))

    def window_at(k: int) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(places[k], size, strict=True))

    def drawn(part: slice) -> Array:
        made = np.ones((part.stop - part.start, *sides), np.float32)
        for k, one in zip(range(part.start, part.stop), made, strict=True):
            if k:  # the first sees the whole image
                one[window_at(k - 1)] = 0
        return made

    scores = masked.masked(drawn, len(places) + 1, baseline=baseline)
    falls = scores[0] - scores[1:]
    total = np.zeros((scores.shape[1], *sides), np.float32)
    times = np.zeros(sides, np.float32)
    for k, fall in enumerate(falls):
        total[(slice(None), *window_at(k))] += fall.reshape(-1, *[1] * len(sides))
        times[window_at(k)] += 1
    return total / times


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where the windows along one side begin: the last ends with the side."""
    starts = list(range(0, side - window, stride))
    return [*starts, side - window]
