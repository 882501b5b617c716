"""Recipro-CAM: the score where the model sees one place of the layer alone."""

import numpy as np

from onnxcam.errors import MethodError
from onnxcam.perturbation import TailScorer

from . import Array, method


@method(
    "reciprocam",
    needs=("activations", "tail"),
    source="Byun and Lee, Recipro-CAM: Fast gradient-free visual explanations, arXiv:2209.14074, 2022",
    formula="M_ij = the score with A set to zero everywhere but at the cell ij",
    rectify=False,  # a logit has no zero of its own
)
def reciprocam(activations: Array, tail: TailScorer) -> Array:
    """What each cell scores alone.

    Byun and Lee, "Recipro-CAM: Fast gradient-free visual explanations for convolutional neural networks",
    arXiv:2209.14074, 2022. Only what follows the layer is run again, once for each cell.

    Args:
        activations: A, (C, h, w), of one image.
        tail: scores of changed activations.

    Returns:
        M, (T, h, w), one for each target.
    """
    return tail.alone().T.reshape(-1, *activations.shape[1:])


@method(
    "vitreciprocam",
    needs=("activations", "tail"),
    source="Byun and Lee, ViT-ReciproCAM, arXiv:2310.02588, 2023",
    formula="M_ij = the score with A ⊙ a 3 × 3 Gaussian around ij, the class token as it is",
    rectify=False,
)
def vitreciprocam(activations: Array, tail: TailScorer) -> Array:
    """What the neighbourhood of each cell scores, with the class token as it is.

    Byun and Lee, "ViT-ReciproCAM: Gradient and Attention-Free Visual Explanations for Vision Transformer",
    arXiv:2310.02588, 2023: the mask is (1, 2, 1) by (1, 2, 1) over 4, cut at the edges of the grid.

    Args:
        activations: A, (C, h, w), of one image; the tokens around the grid stay in the tail.
        tail: scores of changed activations.

    Returns:
        M, (T, h, w), one for each target.
    """
    if activations.ndim != 3:
        raise MethodError(
            f"vitreciprocam is for images, and the layer's grid is {activations.shape[1:]}: take reciprocam."
        )
    h, w = activations.shape[1:]
    row, column = np.divmod(np.arange(h * w), w)

    def masks(part: slice) -> Array:
        near = [
            np.maximum(1 - np.abs(np.arange(n) - at[part, None]) / 2, 0) for n, at in ((h, row), (w, column))
        ]
        return (near[0][:, None, :, None] * near[1][:, None, None, :]).astype(np.float32)

    scores = tail.times(masks, h * w)
    return scores.T.reshape(-1, h, w)
