"""Grad-CAM and its element-wise relative."""

from . import NUMPY, Array, Namespace, weighting


@weighting(
    "gradcam",
    per="channel",
    source="Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks, ICCV 2017",
    formula="M = Σ_k α_k A^k, α_k = (1/Z) Σ_ij G^k_ij",
)
def gradcam(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Each channel weighted by the mean of its gradient.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, eq. 1 and 2: α_k = (1/Z) Σ_ij G^k_ij with Z = h w, M = Σ_k α_k A^k.
    The ReLU of eq. 2 is the post-processing's.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        α, (B, C). M, (B, h, w), is of any sign, linear in G.
    """
    return xp.mean(gradients, axis=(2, 3))


@weighting(
    "gradcam_elementwise",
    per="cell",
    source="pytorch-grad-cam, GradCAMElementWise (Gildenblat et al., 2021)",
    formula="M = Σ_k relu(G^k A^k)",
)
def gradcam_elementwise(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Gradient times activation, negative products dropped before the channels are added.

    No paper: pytorch-grad-cam's ``GradCAMElementWise``. M = Σ_k relu(G^k ⊙ A^k).

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        W, (B, C, h, w): G where G ⊙ A is positive, else 0. M, (B, h, w), is ≥ 0, linear under positive
        factors of G.
    """
    return xp.where(gradients * activations > 0, gradients, 0.0)
