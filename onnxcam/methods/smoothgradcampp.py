"""Smooth Grad-CAM++: Grad-CAM++ with derivatives averaged over noisy copies of the input."""

from collections.abc import Callable

import numpy as np

from onnxcam.errors import MethodError

from . import Array, method


@method(
    "smoothgradcam++",
    needs=("activations", "noisy"),
    source="Omeiza et al., Smooth Grad-CAM++, arXiv:1908.01224, 2019",
    formula="M = Σ_k w_k A^k, w_k = Σ_ij α^k_ij relu(D1), α = D2/(2 D2 + S_k D3), Dn = mean noisy Gⁿ",
    host="It runs the model on noisy copies of the input.",
)
def smoothgradcampp(
    activations: Array,
    noisy: Callable[[int, float, int], Array],
    *,
    samples: int = 8,
    sigma: float = 0.15,
    seed: int = 0,
    numerator: int = 2,
) -> Array:
    """Grad-CAM++ of the mean first, second and third derivatives of noisy copies.

    Omeiza, Speakman, Cintas and Weldermariam, "Smooth Grad-CAM++: An Enhanced Inference Level Visualization
    Technique for Deep Convolutional Neural Network Models", arXiv:1908.01224, 2019. D1, D2, D3 are the means
    of G, G², G³ over the copies, S_k = Σ_ab A^k_ab of the clean input; α = D2 / (2 D2 + S_k D3), where a
    denominator of exactly zero is taken as 1. The paper prints D1 above the line of α (``numerator=1``), and
    that is not Grad-CAM++ where there is no noise; torch-cam, too, reads it as D2. The paper's choice of
    feature maps is the caller's ``channels``.

    torch-cam's ``SmoothGradCAMpp`` is another map, and no variant of this one: its noise has a standard
    deviation in units of the model's input, Σ_ab A^k_ab D3_ab stands for S_k D3, and relu(G) and A are those
    of its last noisy copy alone, which changes with the draw.

    Args:
        activations: A, (B, C, h, w).
        noisy: from samples, sigma and seed to the means of G, G², G³, (3, B, C, h, w).
        samples: how many copies.
        sigma: standard deviation of the noise, as a share of the input's range.
        seed: of the noise.
        numerator: 2, or 1 as the paper prints it.

    Returns:
        M, (B, h, w), ≥ 0 if A is, as after a ReLU. Not linear in G.
    """
    if samples < 1 or not sigma >= 0 or numerator not in (1, 2):
        raise MethodError(
            "smoothgradcam++ needs at least one sample, a sigma of at least 0 and the numerator 1 or 2, not "
            f"{samples}, {sigma} and {numerator}."
        )
    moments = noisy(samples, sigma, seed)
    first, second, third = moments
    denominator = 2 * second + activations.sum(axis=(2, 3), keepdims=True) * third
    alpha = moments[numerator - 1] / np.where(denominator != 0, denominator, 1)
    weights = (alpha * np.maximum(first, 0)).sum(axis=(2, 3))
    return np.einsum("bk,bkhw->bhw", weights, activations)
