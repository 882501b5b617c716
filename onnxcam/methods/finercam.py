"""Finer-CAM: Grad-CAM of what tells a class from those that look like it."""

from . import NUMPY, Array, Namespace, weighting


@weighting(
    "finercam",
    per="channel",
    source="Zhang et al., Finer-CAM, CVPR 2025 (the authors' code, as in pytorch-grad-cam)",
    formula="M = Σ_k α_k A^k, α_k = mean of ∂f/∂A^k, f = Σ_i p_i (y_c - y_i) / Σ_i p_i, i: the 3 nearest",
    finer={"references": 3, "weight": 1.0},
)
@weighting(
    "finercam:torchcam",
    per="channel",
    source="torch-cam, FinerCAM (Fernandez, 2020)",
    formula="M = Σ_k α_k A^k, α_k = mean of ∂f/∂A^k, f = y_c - 0.6 mean of y_i over the 3 nearest classes",
    finer={"references": 3, "weight": 0.6, "mean": True},
)
def finercam(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Each channel weighted by the mean of its gradient, of a difference of scores.

    Zhang, Gu, Shi, Ren, Chao and Yu, "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual
    Explanation", CVPR 2025. What is differentiated is the target's (:class:`onnxcam.targets.Finer`), which
    any other method can be given, too; the map is Grad-CAM's.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂f/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        α, (B, C). M, (B, h, w), is of any sign, linear in G.
    """
    return xp.mean(gradients, axis=(2, 3))
