"""FEM: each channel weighted by how much of the grid it is strongly active in."""

from . import NUMPY, Array, Namespace, method


@method(
    "fem",
    needs=("activations",),
    source="Fuad et al., Features Understanding in 3D CNNs for Actions Recognition in Video, IPTA 2020",
    formula="M = Σ_k w_k A^k, w_k = share of the cells where A^k > μ_k + 2 σ_k",
)
def fem(activations: Array, *, k: float = 2.0, xp: Namespace = NUMPY) -> Array:
    """Each channel weighted by the share of cells in which it is rarely so active.

    Fuad, Martin, Giot, Bourqui, Benois-Pineau and Zemmari, "Features Understanding in 3D CNNs for Actions
    Recognition in Video", IPTA 2020 (the feature explanation method), as pytorch-grad-cam's ``FEM`` computes
    it: w is the share of cells above μ + k σ, the mean and the standard deviation (of the population) of the
    channel. No class takes part.

    Args:
        activations: A, (B, C, h, w).
        k: how many standard deviations above the mean.
        xp: the array namespace.

    Returns:
        M, (B, h, w), of any sign; ≥ 0 if A is, as after a ReLU. Zero for constant channels.
    """
    apart = activations - xp.mean(activations, axis=(2, 3), keepdims=True)
    deviation = xp.sqrt(xp.mean(apart * apart, axis=(2, 3), keepdims=True))
    strong = xp.where(apart > k * deviation, activations * 0.0 + 1.0, 0.0)
    return xp.einsum("bk,bkhw->bhw", xp.mean(strong, axis=(2, 3)), activations)
