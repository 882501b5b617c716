"""LeGrad: how the attention of every block moves the score of that block."""

from collections.abc import Sequence

from . import NUMPY, Array, Namespace, method


@method(
    "legrad",
    needs=("attention",),
    source="Bousselham et al., LeGrad, ICCV 2025 (arXiv:2404.03214, as in torch-cam)",
    formula="M = mean over blocks l, heads, queries of relu(∂s^l/∂a^l), s^l: the score of block l's tokens",
)
def legrad(attention: Sequence[Array], *, xp: Namespace = NUMPY) -> Array:
    """The positive gradients of each block's own score with respect to its attention, averaged.

    Bousselham, Boggust, Chaybouti, Strobelt and Kuehne, "LeGrad: An Explainability Method for Vision
    Transformers via Feature Formation Sensitivity", ICCV 2025. The score of a block is the model's head
    applied to the mean of the block's tokens, as torch-cam's ``LeGrad`` has it.

    Args:
        attention: per block the gradient of its score at its attention, (B, heads, queries, h, w): the keys
            are those of the grid.
        xp: the array namespace.

    Returns:
        M, (B, h, w), ≥ 0.
    """
    maps = [xp.mean(xp.maximum(gradient, 0.0), axis=(1, 2)) for gradient in attention]
    total = maps[0]
    for one in maps[1:]:
        total = total + one
    return total / len(maps)
