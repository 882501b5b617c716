"""Projection of channels on their first principal component."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]

_LARGE = 400  #: rows from which on not all eigenvectors are computed
_BLOCK = 4

#: A component has no sign of its own. ``channels``: the one with which the map correlates with the sum over
#: the channels; ``peak``: the one with which the value furthest from zero is positive.
Sign: TypeAlias = Literal["channels", "peak"]


def first_component(channels: NDArray[Any], sign: Sign = "channels") -> NDArray[Any]:
    """Each cell's coordinate along the direction in which the cells differ most.

    The cells of an image are vectors of C channels; their mean is subtracted, and they are projected on the
    first right singular vector of the (h w, C) matrix that they form.

    Args:
        channels: (B, C, h, w).
        sign: see :data:`Sign` (Eigen-CAM's authors and pytorch-grad-cam leave it to LAPACK, which turns some
            maps upside down). Where the map does not correlate with the sum, ``channels`` is ``peak``.

    Returns:
        (B, h, w), in the dtype of ``channels``; zeros where all cells are equal or several directions are
        first, NaN for an image with values that are not finite.
    """
    return _of_images(channels, sign, _linear)


def first_kernel_component(
    channels: NDArray[Any], kernel: Callable[[Matrix], Matrix], sign: Sign = "peak"
) -> NDArray[Any]:
    """:func:`first_component` in the space of a kernel: kernel principal component analysis.

    Schölkopf, Smola and Müller, "Nonlinear Component Analysis as a Kernel Eigenvalue Problem", Neural
    Computation 10, 1998.

    Args:
        channels: (B, C, h, w).
        kernel: from n centred cells (n, C) to their products in that space, (n, n), symmetric.
        sign: see :data:`Sign`.

    Returns:
        See :func:`first_component`; zeros also where the kernel tells no cells apart.
    """
    return _of_images(channels, sign, lambda centred: _dual(_doubly_centred(kernel(centred))))


def _of_images(channels: NDArray[Any], sign: Sign, component: Callable[[Matrix], Matrix]) -> NDArray[Any]:
    maps = np.zeros((channels.shape[0], *channels.shape[2:]), channels.dtype)
    for map_, image in zip(maps, channels, strict=True):
        cells = image.reshape(len(image), -1).T.astype(np.float64)
        if not np.isfinite(cells).all():
            map_[...] = np.nan
            continue
        centred = np.where(np.ptp(cells, axis=0) > 0, cells - cells.mean(axis=0), 0.0)
        if centred.any():
            along = component(centred)
            map_[...] = (_sign(along, centred.sum(axis=1), sign) * along).reshape(map_.shape)
    return maps


def _linear(centred: Matrix) -> Matrix:
    # The eigenvector of the smaller of the two products: C is often twenty times h w.
    if centred.shape[0] <= centred.shape[1]:
        return _dual(centred @ centred.T)
    along: Matrix = centred @ _first(centred.T @ centred)[1]
    return along


def _dual(products: Matrix) -> Matrix:
    """The coordinates of n points along their first component, from their products (n, n)."""
    value, vector = _first(products)
    along: Matrix = np.sqrt(value) * vector
    return along


def _first(matrix: Matrix) -> tuple[float, Matrix]:
    """The largest eigenvalue and its eigenvector; zeros where it is not positive or not alone the largest."""
    values, vectors = _largest(matrix) if len(matrix) > _LARGE else np.linalg.eigh(matrix)
    second = values[-2] if len(values) > 1 else 0.0
    if values[-1] <= _rounding(matrix) or values[-1] - second <= _rounding(matrix):
        return 0.0, np.zeros(len(matrix))
    return float(values[-1]), vectors[:, -1]


def _largest(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """The largest eigenvalues of a symmetric matrix and their vectors, ascending, without the others.

    Block Krylov iteration (Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977):
    the matrix is only multiplied with a few vectors. Equal eigenvalues are found, up to as many as a block
    has columns. Where it does not converge, all are computed.
    """
    n = len(matrix)
    block = np.linalg.qr(np.random.default_rng(0).standard_normal((n, _BLOCK)))[0]
    basis, images = block, matrix @ block
    while basis.shape[1] <= n // 4:
        for _ in range(8):
            block = images[:, -_BLOCK:]
            for _ in range(2):  # twice is enough
                block = block - basis @ (basis.T @ block)
            if np.abs(block).max() <= _rounding(matrix):
                break
            block = np.linalg.qr(block)[0]
            basis, images = np.hstack([basis, block]), np.hstack([images, matrix @ block])
        values, inside = np.linalg.eigh(basis.T @ images)
        rest = float(np.linalg.norm(images @ inside[:, -1] - values[-1] * (basis @ inside[:, -1])))
        if rest <= max(1e-9 * (values[-1] - values[-2]), _rounding(matrix)):
            return values[-2:], basis @ inside[:, -2:]
    return np.linalg.eigh(matrix)


def _doubly_centred(products: Matrix) -> Matrix:
    """The products of points, as those of the points less their mean."""
    rows = products.mean(axis=0)
    centred: Matrix = products - rows - rows[:, None] + rows.mean()
    return np.where(np.abs(centred) > _rounding(products), centred, 0.0)


def _rounding(matrix: Matrix) -> float:
    return float(len(matrix) * np.finfo(np.float64).eps * np.abs(matrix).max())


def _sign(along: Matrix, total: Matrix, sign: Sign) -> float:
    if sign == "channels":
        agreement = float(along @ total)
        if abs(agreement) > 1e-9 * float(np.linalg.norm(along) * np.linalg.norm(total)):
            return float(np.sign(agreement))
    return -1.0 if abs(along.min()) > abs(along.max()) else 1.0
