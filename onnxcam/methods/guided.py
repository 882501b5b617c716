"""Guided backpropagation, and Grad-CAM made fine by it."""

from onnxcam.interpolation import linear_like

from . import NUMPY, Array, Namespace, method


@method(
    "guided_backprop",
    needs=("guided",),
    source="Springenberg et al., Striving for Simplicity: The All Convolutional Net, ICLR 2015 workshop",
    formula="M = max_k |R^k|, R: ∂score/∂x, at every ReLU passed on where it is positive",
)
def guided_backprop(guided: Array, *, xp: Namespace = NUMPY) -> Array:
    """The input's gradient, through ReLUs only where it is positive; the largest of the channels.

    Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for Simplicity: The All Convolutional Net", ICLR
    2015 workshop, sec. 3.4. It is one number per pixel and channel; the map takes the largest magnitude of
    the channels, as Simonyan et al. 2014, sec. 3.1, do for plain gradients.

    Args:
        guided: R, (B, C, H, W).
        xp: the array namespace.

    Returns:
        M, (B, h, w), ≥ 0, in the input's grid.
    """
    return xp.max(xp.abs(guided), axis=1)


@method(
    "guided_gradcam",
    needs=("guided", "activations", "gradients"),
    source="Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks, ICCV 2017",
    formula="M = relu(Σ_k α_k A^k), enlarged, times max_k |R^k|",
)
def guided_gradcam(guided: Array, activations: Array, gradients: Array, *, xp: Namespace = NUMPY) -> Array:
    """Grad-CAM, rectified and enlarged, times guided backpropagation.

    Selvaraju et al., ICCV 2017, sec. 3.2 (there with bilinear interpolation, too).

    Args:
        guided: R, (B, C, H, W).
        activations: A, (B, K, h, w).
        gradients: G = ∂score/∂A, (B, K, h, w).
        xp: the array namespace.

    Returns:
        M, (B, h, w), ≥ 0, in the input's grid.
    """
    coarse = xp.einsum("bk,bkhw->bhw", xp.mean(gradients, axis=(2, 3)), activations)
    return linear_like(xp.maximum(coarse, 0.0), guided, xp) * guided_backprop(guided, xp=xp)
