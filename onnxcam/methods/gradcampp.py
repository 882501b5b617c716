"""Grad-CAM++: one name, several formulas; the authors' and pytorch-grad-cam's.

Both rest on α^k_ij = G² / (2 G² + S_k G³), the paper's eq. 19 for a score that is passed through
an exponential, with S_k = Σ_ab A^k_ab. They differ in what they do next, and visibly so.
"""

from . import NUMPY, Array, Namespace, weighting


@weighting(
    "gradcam++",
    per="channel",
    source="Chattopadhay et al., Grad-CAM++, WACV 2018 (the authors' code)",
    formula="M = Σ_k w_k A^k, w_k = Σ_ij α^k_ij relu(G^k_ij) / Σ_{G>0} α^k_ij, α = G²/(2G² + S_k G³)",
)
def gradcampp(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Each channel weighted by an α-weighted mean of its positive gradients.

    Chattopadhay, Sarkar, Howlader and Balasubramanian, "Grad-CAM++: Improved Visual Explanations for
    Deep Convolutional Networks", WACV 2018, eq. 5 and 19, as the authors' own code computes it:

    - S_k = Σ_ij A^k_ij; α = G² / (2 G² + S_k G³), a denominator of exactly zero being taken as 1;
    - α is divided by its sum over the cells where G > 0, a sum of exactly zero being taken as 1;
    - w_k = Σ_ij α^k_ij relu(G^k_ij); M = Σ_k w_k A^k.

    Their derivatives are those of exp(score), a factor exp(score) on G, G² and G³ alike. It cancels
    in α and remains as one positive factor of the map, which the scaling removes; it is left out, so
    M is in the score's units.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        w, (B, C). M, (B, h, w), is ≥ 0 if A is, as after a ReLU. Not linear in G.
    """
    positive, numerator, denominator = _alpha(activations, gradients, xp)
    alpha = numerator / _nonzero(denominator, xp)
    alpha = alpha / _nonzero(xp.sum(alpha, axis=(2, 3), keepdims=True), xp)
    return xp.sum(alpha * positive, axis=(2, 3))


@weighting(
    "gradcam++:pgc",
    per="channel",
    source="pytorch-grad-cam, GradCAMPlusPlus (Gildenblat et al., 2021)",
    formula="M = Σ_k w_k A^k, w_k = Σ_ij α^k_ij relu(G^k_ij), α = G²/(2G² + S_k G³ + 1e-6)",
)
def gradcampp_pgc(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """pytorch-grad-cam's Grad-CAM++: α is not normalised and its denominator has 1e-6 added.

    Real gradients are small (around 5e-4 at the last layer of a ResNet), so 1e-6 is not small
    against 2 G²: it shapes the map, and parity needs exactly this value.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        w, (B, C). M, (B, h, w), is ≥ 0 if A is, as after a ReLU. Not linear in G.
    """
    positive, numerator, denominator = _alpha(activations, gradients, xp)
    alpha = numerator / (denominator + 1e-6)
    return xp.sum(positive * alpha, axis=(2, 3))


def _alpha(activations: Array, gradients: Array, xp: Namespace) -> tuple[Array, Array, Array]:
    """relu(G), and α's numerator G² and denominator 2 G² + S_k G³, each (B, C, h, w).

    Only cells with G > 0 count in either formula: elsewhere G is taken as 0, and so is α.
    """
    positive = xp.maximum(gradients, 0.0)
    squared = positive * positive
    total = xp.sum(activations, axis=(2, 3), keepdims=True)
    return positive, squared, 2.0 * squared + total * (squared * positive)


def _nonzero(denominator: Array, xp: Namespace) -> Array:
    """The denominator, 1 where it is exactly zero."""
    return xp.where(xp.abs(denominator) > 0, denominator, 1.0)
