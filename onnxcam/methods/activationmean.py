"""The mean over the channels: what a layer does, whatever the class."""

from . import NUMPY, Array, Namespace, method


@method(
    "activation_mean",
    needs=("activations",),
    source="OpenVINO XAI, ActivationMap (Intel, 2024)",
    formula="M = (1/C) Σ_k A^k",
    rectify=False,
)
def activation_mean(activations: Array, *, xp: Namespace = NUMPY) -> Array:
    """The mean of the activations over the channels.

    No paper: OpenVINO XAI's ``ActivationMap``, and the mean of captum's ``LayerActivation``. No class takes
    part, and no gradient: the map is the same for every target. It shows where the layer is active.

    Args:
        activations: A, (B, C, h, w).
        xp: the array namespace.

    Returns:
        M, (B, h, w), of any sign; scaled as it is, without a ReLU, as OpenVINO XAI does.
    """
    return xp.mean(activations, axis=1)
