"""CAM: the classifier's own weights."""

from . import NUMPY, Array, Namespace, weighting


@weighting(
    "cam",
    per="channel",
    source="Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016",
    formula="M = Σ_k w_k A^k, w = the class's row of the classifier",
    rectify=False,
    head="gap-linear",
)
def cam(activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Each channel weighted by the classifier's weight for the class.

    Zhou, Khosla, Lapedriza, Oliva and Torralba, "Learning Deep Features for Discriminative
    Localization", CVPR 2016, eq. 2: M(x, y) = Σ_k w_k A^k(x, y).

    The paper's network is global average pooling, then a linear map: the gradient at every cell of
    channel k is w_k / (h w), so its sum over the grid is w_k. On any other head this is not CAM,
    and the caller refuses it. The mean of M plus the classifier's bias is the score itself.

    Args:
        activations: A, (B, C, h, w), what is pooled.
        gradients: ∂score/∂A, (B, C, h, w), constant over each channel.
        xp: the array namespace.

    Returns:
        w, (B, C). M, (B, h, w), is of any sign: negative values are evidence against the class.
    """
    return xp.sum(gradients, axis=(2, 3))
