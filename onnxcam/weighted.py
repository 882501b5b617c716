"""Copies of one image's tensor of a layer whose grid is weighted: on the host, or on the session's device.

A method hands over weights, which are few: one for each channel, or one for each cell of the grid. A
:data:`Weigh` makes the copies of them, in the layer's own layout. What is no grid's (a class token) keeps its
values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .contract import Layout
from .grids import CHANNELS_FIRST, channels_first, put_back
from .session import Session

Array: TypeAlias = NDArray[np.float32]

#: From float32 weights, of the rank of (K, C, ...grid) and broadcast to it, to K copies in the layer's own
#: layout: an array, or an OrtValue on the device. They may be overwritten by the next call.
Weigh: TypeAlias = Callable[[Array], Any]


def on_device(tensor: NDArray[Any], layout: Layout, session: Session) -> Weigh | None:
    """Copies that are made on the device of a session: the tensor crosses to it once, then weights alone.

    Args:
        tensor: of one image, in the layer's own layout.
        layout: of the tensor.
        session: that will take the copies.

    Returns:
        None where :func:`on_host` is the way: the session runs there; the tensor is not float32; or its axes
        are factored, so that weights are no smaller than copies.
    """
    graph = session.beside("times.onnx")
    if graph is None or tensor.dtype != np.float32 or layout.kind == "factored":
        return None
    inside = np.ones((1,) * tensor.ndim, bool)
    if layout.kind == "tokens":
        inside = np.zeros((1, tensor.shape[1], 1), bool)
        inside[:, _cells(layout, tensor)] = True
    x, grid = session.on_device(tensor), session.on_device(inside)

    def weigh(weights: Array) -> Any:
        own = _in_layout(weights, layout)
        if layout.kind == "tokens" and own.shape[1] > 1:  # any number will do outside the grid
            own = np.pad(own, ((0, 0), (layout.prefix, layout.suffix), (0, 0)))
        return graph({"x": x, "weights": own, "grid": grid})

    return weigh


def on_host(tensor: NDArray[Any], layout: Layout) -> Weigh:
    """Copies in one buffer, in which the next call touches what has another weight than before.

    Args:
        tensor: of one image, in the layer's own layout.
        layout: of the tensor.
    """
    if layout.kind == "factored":
        cells = channels_first(tensor, layout)
        return lambda weights: put_back(cells * weights, layout, tensor)
    copies, known = tensor[:0], np.empty(0, np.float32)
    part = (slice(None), _cells(layout, tensor)) if layout.kind == "tokens" else ()

    def weigh(weights: Array) -> NDArray[Any]:
        nonlocal copies, known
        own = _in_layout(weights, layout)
        count = len(own)
        if count > len(copies) or own.shape[1:] != known.shape[1:]:
            copies, known = np.repeat(tensor, count, axis=0), np.ones_like(own)
        _renew(copies[:count][part], tensor[part], own, known[:count])
        known[:count] = own
        return copies[:count]

    return weigh


def _renew(copies: NDArray[Any], tensor: NDArray[Any], weights: Array, known: Array) -> None:
    """Make tensor ⊙ weights of what is tensor ⊙ known."""
    other = weights != known
    if 2 * np.count_nonzero(other) > other.size:
        np.multiply(tensor, weights, out=copies)
        return
    # With the axes along which there are several weights in front, an entry of each is one weight's share.
    several = [axis for axis, size in enumerate(weights.shape) if axis == 0 or size > 1]
    order = several + [axis for axis in range(weights.ndim) if axis not in several]
    places = np.flatnonzero(other.transpose(order))  # much faster than nonzero
    at = np.unravel_index(places, [weights.shape[axis] for axis in several])
    shares = tensor.transpose(order)[0][at[1:]]
    copies.transpose(order)[at] = shares * weights.transpose(order)[at]


def _in_layout(weights: Array, layout: Layout) -> Array:
    """Weights of (K, C, ...grid) with the axes of the layer's layout; without those around the grid."""
    if layout.kind in CHANNELS_FIRST:
        return weights
    own = np.moveaxis(weights, 1, -1)
    count, *grid, channels = own.shape
    if layout.kind == "tokens" and layout.grid is not None:
        if math.prod(grid) > 1:
            own = np.broadcast_to(own, (count, *layout.grid, channels))
        own = own.reshape(count, -1, channels)
    return own


def _cells(layout: Layout, tensor: NDArray[Any]) -> slice:
    """The tokens of the grid."""
    return slice(layout.prefix, tensor.shape[1] - layout.suffix)
