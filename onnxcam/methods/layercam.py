"""LayerCAM: positive gradients, cell by cell."""

from . import NUMPY, Array, Namespace, weighting


@weighting(
    "layercam",
    per="cell",
    source="Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps, IEEE TIP 2021",
    formula="M = Σ_k relu(G^k) A^k",
)
def layercam(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Each cell weighted by its own gradient where that is positive.

    Jiang, Zhang, Hou, Cheng and Wei, "LayerCAM: Exploring Hierarchical Class Activation Maps for
    Localization", IEEE Transactions on Image Processing 30, 2021:
    M = Σ_k relu(G^k) ⊙ A^k. Made for early layers as well as the last. The paper's final ReLU is the
    post-processing's, and so is the fusion of several layers.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        W, (B, C, h, w). M, (B, h, w), is ≥ 0 if A is, as after a ReLU. Linear under positive factors of G.
    """
    return xp.maximum(gradients, 0.0)
