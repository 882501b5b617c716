"""FullGrad: what the input and every bias contribute to the score, laid over each other."""

from collections.abc import Sequence

from onnxcam.interpolation import linear_like

from . import NUMPY, Array, Namespace, method


@method(
    "fullgrad",
    needs=("biases",),
    source="Srinivas and Fleuret, Full-Gradient Representation for Visualization, NeurIPS 2019",
    formula="M = ψ(x G) + Σ_l Σ_k ψ(b_l G_l), ψ(T) = |T| - min |T| over its maximum, enlarged",
)
def fullgrad(biases: Sequence[Array], *, xp: Namespace = NUMPY) -> Array:
    """The input times its gradient, and of each layer with biases these times its gradient, added up.

    Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
    eq. 7: for a network of ReLUs the terms, with those of biases that have no place, add up to the score.
    Each is made absolute and scaled to [0, 1] over its channels and cells together, the epsilon of 1e-6 being
    the authors' code's, and summed over the channels; here they are enlarged with half-pixel centres.

    Args:
        biases: (B, C, h, w) each: first the input times its gradient, then per node its bias times the
            gradient of its output.
        xp: the array namespace.

    Returns:
        M, (B, h, w), ≥ 0, in the input's grid.
    """
    return _total([_scaled(term, (1, 2, 3), 1e-6, xp) for term in biases], xp)


@method(
    "fullgrad:pgc",
    needs=("biases",),
    source="pytorch-grad-cam, FullGrad (Gildenblat et al., 2021)",
    formula="M = Σ_k ψ(x G)_k + Σ_l Σ_k ψ(b_l G_l)_k, ψ scaling each channel on its own",
)
def fullgrad_pgc(biases: Sequence[Array], *, xp: Namespace = NUMPY) -> Array:
    """pytorch-grad-cam's FullGrad: every channel is scaled to [0, 1] on its own, with 1e-7.

    Args:
        biases: see :func:`fullgrad`.
        xp: the array namespace.

    Returns:
        M, (B, h, w), ≥ 0, in the input's grid.
    """
    return _total([_scaled(term, (2, 3), 1e-7, xp) for term in biases], xp)


def _scaled(term: Array, over: tuple[int, ...], epsilon: float, xp: Namespace) -> Array:
    term = xp.abs(term)
    term = term - xp.min(term, axis=over, keepdims=True)
    return term / (xp.max(term, axis=over, keepdims=True) + epsilon)


def _total(terms: Sequence[Array], xp: Namespace) -> Array:
    """Enlarging is linear: the channels are added before it."""
    total = xp.sum(terms[0], axis=1)
    for term in terms[1:]:
        total = total + linear_like(xp.sum(term, axis=1), terms[0], xp)
    return total
