"""Shapley-CAM: the gradient, and what its change over the layer takes away from it."""

from . import NUMPY, Array, Namespace, method


@method(
    "shapleycam",
    needs=("activations", "gradients", "curvature"),
    source="Cai et al., CAMs as Shapley Value-based Explainers, The Visual Computer 41, 2025",
    formula="M = Σ_k w_k A^k, w_k = mean of G^k - ½ (H A)^k, H = ∂²score/∂A²",
)
def shapleycam(activations: Array, gradients: Array, curvature: Array, *, xp: Namespace = NUMPY) -> Array:
    """Each channel weighted by the mean of its gradient, less half the mean of H A.

    Cai, "CAMs as Shapley Value-based Explainers", The Visual Computer 41, 2025: the Shapley value of a
    channel, with the score expanded to the second order around the activations; as pytorch-grad-cam's
    ``ShapleyCAM`` computes it. Where what follows the layer is piecewise linear H is zero, and this is
    Grad-CAM: with a head of pooling and one linear layer the paper explains the residual softmax score
    (ReST, ``score={"rest": True}``), which is not linear in the logits.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        curvature: H A = ∂(Σ G A)/∂A with the factor A held constant, (B, C, h, w).
        xp: the array namespace.

    Returns:
        M, (B, h, w), of any sign.
    """
    weights = xp.mean(gradients - 0.5 * curvature, axis=(2, 3))
    return xp.einsum("bk,bkhw->bhw", weights, activations)
