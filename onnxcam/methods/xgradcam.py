"""XGrad-CAM: gradients averaged with the activations as weights."""

from . import NUMPY, Array, Namespace, weighting


@weighting(
    "xgradcam",
    per="channel",
    source="Fu et al., Axiom-based Grad-CAM, BMVC 2020",
    formula="M = Σ_k α_k A^k, α_k = Σ_ij G^k_ij A^k_ij / Σ_ij A^k_ij",
)
def xgradcam(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Each channel weighted by the mean of its gradient, weighted in turn by the activation.

    Fu, Hu, Dong, Guo, Gao and Li, "Axiom-based Grad-CAM: Towards Accurate Visualization and
    Explanation of CNNs", BMVC 2020: α_k = Σ_ij (A^k_ij / Σ_ab A^k_ab) G^k_ij. The sum of M
    over the grid is that of HiResCAM.

    A channel whose activations add up to exactly zero (a dead one) has its denominator taken as 1.
    pytorch-grad-cam adds 1e-7 to every denominator instead; on activations of ordinary size the two
    agree far within 1e-4, so the library's variant has no name of its own here.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        α, (B, C). M, (B, h, w), is of any sign, linear in G.
    """
    total = xp.sum(activations, axis=(2, 3), keepdims=True)
    share = activations / xp.where(xp.abs(total) > 0, total, 1.0)
    return xp.sum(gradients * share, axis=(2, 3))
