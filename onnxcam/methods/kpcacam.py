"""KPCA-CAM: Eigen-CAM with a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxcam.errors import MethodError, nearest
from onnxcam.projection import first_kernel_component

from . import Array, method


@method(
    "kpcacam",
    needs=("activations",),
    source="Karmani et al., KPCA-CAM: Visual Explainability of Deep Computer Vision Models, MMSP 2024",
    formula="M = √λ u, u the first eigenvector of the centred kernel matrix of the cells, λ its eigenvalue",
    host="The principal component is an eigenvector, for which ONNX has no operator.",
)
def kpcacam(activations: Array, *, kernel: str = "sigmoid", gamma: float | None = None) -> Array:
    """The first kernel principal component of the activations.

    Karmani, Sivakaran, Prasad, Ali, Yang and Tang, "KPCA-CAM: Visual Explainability of Deep Computer Vision
    Models Using Kernel PCA", MMSP 2024, as pytorch-grad-cam's ``KPCA_CAM`` computes it: the means of the
    channels are subtracted, then the kernel's. The value furthest from zero is positive, as scikit-learn has
    it. No class takes part. A grid of n cells takes an n × n matrix and a time of n³.

    Args:
        activations: A, (B, C, h, w).
        kernel: of two cells x and y: ``sigmoid``, tanh(γ x·y + 1); ``rbf``, exp(-γ |x - y|²); ``poly``,
            (γ x·y + 1)³; ``cosine``; or ``linear``, which is Eigen-CAM but for the sign.
        gamma: γ; None: 1/C.

    Returns:
        M, (B, h, w), of any sign.
    """
    if kernel not in KERNELS:
        raise MethodError(
            f"No kernel {kernel!r}.{nearest(str(kernel), [*KERNELS])} There are: {', '.join(KERNELS)}."
        )
    given: Any = gamma
    if gamma is not None and (isinstance(given, str) or not 0 < given < np.inf):
        raise MethodError(f"The gamma of kpcacam is a number above 0, or None for 1/C, not {gamma!r}.")
    scale = 1 / activations.shape[1] if gamma is None else gamma
    return first_kernel_component(activations, lambda cells: KERNELS[kernel](cells, scale))


def _rbf(cells: Array, gamma: float) -> Array:
    squared = np.einsum("nc,nc->n", cells, cells)
    return np.exp(-gamma * np.maximum(squared + squared[:, None] - 2 * cells @ cells.T, 0.0))


def _cosine(cells: Array, gamma: float) -> Array:
    length = np.linalg.norm(cells, axis=1, keepdims=True)
    unit = cells / np.where(length > 0, length, 1.0)
    return unit @ unit.T


KERNELS: Mapping[str, Callable[[Array, float], Array]] = {
    "sigmoid": lambda cells, gamma: np.tanh(gamma * (cells @ cells.T) + 1),
    "rbf": _rbf,
    "poly": lambda cells, gamma: (gamma * (cells @ cells.T) + 1) ** 3,
    "cosine": _cosine,
    "linear": lambda cells, gamma: cells @ cells.T,
}
