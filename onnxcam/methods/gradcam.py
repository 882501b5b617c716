"""Grad-CAM and its element-wise relative."""

from . import NUMPY, Array, Namespace, method


@method(
    "gradcam",
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
        M, (B, h, w), of any sign, linear in G.
    """
    alpha = xp.mean(gradients, axis=(2, 3))
    return xp.einsum("bk,bkhw->bhw", alpha, activations)  # the product is never stored: a third of the time


@method(
    "gradcam_elementwise",
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
        M, (B, h, w), ≥ 0, linear under positive factors of G.
    """
    return xp.sum(xp.maximum(gradients * activations, 0.0), axis=1)
