"""HiResCAM: no averaging before the product."""

from . import NUMPY, Array, Namespace, weighting


@weighting(
    "hirescam",
    per="cell",
    source="Draelos and Carin, Use HiResCAM instead of Grad-CAM, arXiv:2011.08891, 2020",
    formula="M = Σ_k G^k A^k",
)
def hirescam(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Each cell weighted by its own gradient.

    Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
    neural networks", arXiv:2011.08891, 2020: M = Σ_k G^k ⊙ A^k. Where the head is linear in A, the
    sum of M over the grid plus the head's bias is the score.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        W = G, (B, C, h, w). M, (B, h, w), is of any sign, linear in G.
    """
    return gradients
