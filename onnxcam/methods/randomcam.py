"""Random weights: what a method must be better than."""

import numpy as np

from . import Array, method


@method(
    "randomcam",
    needs=("activations",),
    source="pytorch-grad-cam, RandomCAM (Gildenblat et al., 2021)",
    formula="M = Σ_k w_k A^k, w_k drawn evenly from -1 to 1",
    host="Its weights are drawn at random.",
)
def randomcam(activations: Array, *, seed: int = 0) -> Array:
    """Each channel weighted by chance: a baseline, not an explanation.

    No paper: pytorch-grad-cam's ``RandomCAM``. All images have the same weights, so that a map does not
    depend on the batch that an image is in.

    Args:
        activations: A, (B, C, h, w).
        seed: of the weights.

    Returns:
        M, (B, h, w), of any sign.
    """
    weights = np.random.default_rng(seed).uniform(-1, 1, activations.shape[1])
    return np.einsum("k,bkhw->bhw", weights.astype(activations.dtype), activations)
