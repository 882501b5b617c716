"""Eigen-CAM and its relatives: the first principal component of the channels.

A principal component has no sign: v and -v are both right, and which of them LAPACK gives depends on its
version and on the machine. The negative half of a map is dropped afterwards, so that the wrong sign shows
everything but the object. The sign is fixed here (:data:`onnxcam.projection.Sign`), so a suffix for a
library's is needed nowhere: its map is this one, or its negative by chance.
"""

import numpy as np

from onnxcam.projection import first_component

from . import Array, method

_HOST = "The principal component is an eigenvector, for which ONNX has no operator."


@method(
    "eigencam",
    needs=("activations",),
    source="Muhammad and Yeasin, Eigen-CAM: Class Activation Map using Principal Components, IJCNN 2020",
    formula="M = Σ_k v_k (A^k - mean A^k), v the first right singular vector of the centred cells × channels",
    host=_HOST,
)
def eigencam(activations: Array) -> Array:
    """The first principal component of the activations.

    Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020, with the
    channels' means subtracted first, as pytorch-grad-cam does. No class takes part: the map is the same for
    every target. Its sign is that of its correlation with the sum over the channels: a layer behind a ReLU is
    active where something is.

    Args:
        activations: A, (B, C, h, w).

    Returns:
        M, (B, h, w), of any sign, with a mean of zero.
    """
    return first_component(activations)


@method(
    "eigengradcam",
    source="pytorch-grad-cam, EigenGradCAM (Gildenblat et al., 2021)",
    formula="M = Σ_k v_k (X^k - mean X^k), X = G A, v its first right singular vector",
    host=_HOST,
)
def eigengradcam(activations: Array, gradients: Array) -> Array:
    """The first principal component of gradient times activation.

    No paper: pytorch-grad-cam's ``EigenGradCAM``, Eigen-CAM of G ⊙ A, which makes it a class's. Its sign is
    that of its correlation with Σ_k G^k ⊙ A^k, HiResCAM's map: positive where the evidence is.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).

    Returns:
        M, (B, h, w), of any sign, with a mean of zero; linear under positive factors of G.
    """
    return first_component(gradients * activations)


@method(
    "segeigencam",
    source="Chung and Ying, Seg-Eigen-CAM, Applied Sciences 15(13), 2025",
    formula="M = ±Σ_k v_k (X^k - mean X^k), X = |G| A, v its first right singular vector, max |M| positive",
    host=_HOST,
)
def segeigencam(activations: Array, gradients: Array) -> Array:
    """The first principal component of the activations, weighted by how much they matter.

    Chung and Ying, "Seg-Eigen-CAM: Eigen-Value-Based Visual Explanations for Semantic Segmentation Models",
    Applied Sciences 15(13), 7562, 2025, eq. 10 to 13: of |G| ⊙ A, turned so that the value furthest from zero
    is positive. Any task's gradients do.

    Args:
        activations: A, (B, C, h, w).
        gradients: G = ∂score/∂A, (B, C, h, w).

    Returns:
        M, (B, h, w), of any sign, with a mean of zero; linear under factors of G, whose sign changes nothing.
    """
    return first_component(np.abs(gradients) * activations, sign="peak")
