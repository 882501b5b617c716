"""Ablation-CAM: each channel weighted by what the score loses without it."""

import numpy as np

from onnxcam.perturbation import TailScorer

from . import Array, method


@method(
    "ablationcam",
    needs=("activations", "tail"),
    source="Desai and Ramaswamy, Ablation-CAM, WACV 2020",
    formula="M = Σ_k w_k A^k, w_k = (y - y_k) / |y|, y_k: the score with channel k set to zero",
)
def ablationcam(activations: Array, tail: TailScorer) -> Array:
    """Each channel weighted by the share of the score that goes when the channel is set to zero.

    Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", WACV 2020, eq. 3. Only what follows the layer is run again. The paper divides by y; with a
    negative score that would turn the map around, so its absolute value is taken. (pytorch-grad-cam puts very
    negative values, which depend on its batch size, into channels of layers with negative ones; the paper's
    zero is taken here for all layers.)

    Args:
        activations: A, (C, h, w), of one image.
        tail: scores of changed activations.

    Returns:
        M, (T, h, w), one for each target.
    """
    count, *grid = activations.shape

    def without(part: slice) -> Array:
        """Weights: 1, but 0 for the channel before the copy's own number; copy 0 is the image itself."""
        one = np.eye(part.stop - part.start, count, part.start - 1, dtype=np.float32)
        return (1 - one).reshape(*one.shape, *(1 for _ in grid))

    scores = tail.times(without, 1 + count)
    score, falls = scores[0], scores[0] - scores[1:]
    weights = falls / np.where(score == 0, 1, np.abs(score))
    return np.tensordot(weights.T, activations, axes=1)
