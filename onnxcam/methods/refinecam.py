"""RefineCAM: several layers' maps multiplied, so that each corrects the others."""

from . import NUMPY, Array, Namespace, weighting
from .gradcampp import gradcampp, gradcampp_pgc


@weighting(
    "refinecam",
    per="channel",
    source="RefineCAM: How to Evaluate and Refine your CAM, arXiv:2605.14641, 2026 (as torch-cam fuses)",
    formula="M = Σ_k w_k A^k as gradcam++; the layers' scaled heatmaps are multiplied",
    fuse="product",
)
def refinecam(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Grad-CAM++ of each layer; the layers' heatmaps are multiplied.

    "How to Evaluate and Refine your CAM", arXiv:2605.14641, 2026: what a late layer finds and an early one
    draws. Each layer's map is rectified, scaled to [0, 1] and enlarged, the product is scaled again, as
    torch-cam's ``RefineCAM`` does when it is told the image's size (its own Grad-CAM++ leaves α's denominator
    out). Any other method is refined by ``fuse="product"``. With one layer it is Grad-CAM++.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        w, (B, C). M, (B, h, w), is ≥ 0 if A is, as after a ReLU. Not linear in G.
    """
    return gradcampp(activations, gradients, xp=xp)


@weighting(
    "refinecam:pgc",
    per="channel",
    source="pytorch-grad-cam, RefineCAM (Gildenblat et al., 2026)",
    formula="M = Σ_k w_k A^k as gradcam++:pgc; the layers' heatmaps are scaled once more, then multiplied",
    fuse="product:pgc",
)
def refinecam_pgc(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """pytorch-grad-cam's RefineCAM: its own Grad-CAM++; enlarged maps are scaled again before the product.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        w, (B, C). M, (B, h, w), is ≥ 0 if A is, as after a ReLU. Not linear in G.
    """
    return gradcampp_pgc(activations, gradients, xp=xp)
