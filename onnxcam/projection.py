"""Projection of channels on their first principal component."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def first_component(channels: NDArray[Any], rectify_sign: bool = True) -> NDArray[Any]:
    """Each cell's coordinate along the direction in which the cells differ most.

    The cells of an image are vectors of C channels; their mean is subtracted, and they are projected on the
    first right singular vector of the (h w, C) matrix that they form. A singular vector has no sign of its
    own.

    Args:
        channels: (B, C, h, w).
        rectify_sign: turn each map so that it correlates with the sum over the channels (Eigen-CAM's authors
            and pytorch-grad-cam leave the sign to LAPACK, which turns some maps upside down).

    Returns:
        (B, h, w), in the dtype of ``channels``; zeros where all cells are equal.
    """
    maps = np.zeros((channels.shape[0], *channels.shape[2:]), channels.dtype)
    for b, image in enumerate(channels):
        cells = image.reshape(len(image), -1).T.astype(np.float64)
        centred = cells - cells.mean(axis=0)
        # The eigenvectors of the smaller of the two products: C is often twenty times h w.
        if centred.shape[0] <= centred.shape[1]:
            values, vectors = np.linalg.eigh(centred @ centred.T)
            along = vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
        else:
            _, vectors = np.linalg.eigh(centred.T @ centred)
            along = centred @ vectors[:, -1]
        if rectify_sign and along @ cells.sum(axis=1) < 0:
            along = -along
        maps[b] = along.reshape(image.shape[1:])
    return maps
