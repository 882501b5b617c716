"""Where two sides look in one photo, and how that differs: three small pictures."""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import postprocess, preprocess
from ..images import Photo
from ..overlay import Picture, dimmed, overlay
from ..recording import Recording
from . import alignment
from .data import Pair
from .explanations import rectifies

SIDE = 240  #: the longer side of a picture, in pixels
#: RGB of what the candidate lost and gained: Okabe and Ito's blue and vermilion, which no eye confuses.
LOST, GAINED = (0, 114, 178), (213, 94, 0)
_QUALITY = 82  # of the JPEGs
_PAPER = 208  # grey under the maps where there is no photo


@dataclass(frozen=True)
class Pictures:
    """Data URIs of JPEGs of one size.

    Attributes:
        reference, candidate: each side's heatmap over the photo.
        difference: see :func:`difference`.
        size: (H, W) in pixels.
    """

    reference: str
    candidate: str
    difference: str
    size: tuple[int, int]


def draw(
    reference: Recording, candidate: Recording, pair: Pair, at: tuple[int, int], photo: Photo | None
) -> Pictures:
    """The two heatmaps of a photo and their difference.

    Args:
        reference: a recording.
        candidate: the other.
        pair: the layers whose maps are shown.
        at: the photo's position in each recording.
        photo: (H, W, 3) uint8 RGB; None: the maps are drawn over plain grey.
    """
    height, width = (int(n) for n in reference.sizes[at[0]])
    ratio = SIDE / max(height, width)
    size = (max(round(height * ratio), 1), max(round(width * ratio), 1))
    ground = np.full((*size, 3), _PAPER, np.uint8) if photo is None else _small(photo, size)
    sides = [
        heatmap(reference, pair.reference, at[0], size),
        heatmap(candidate, pair.candidate, at[1], size),
    ]
    alpha = 1.0 if photo is None else 0.5
    first, second = (overlay(ground, heat, alpha, seen=seen) for heat, seen in sides)
    change = sides[1][0] - sides[0][0]
    third = dimmed(difference(ground, change), ground, sides[0][1] & sides[1][1])
    return Pictures(_uri(first), _uri(second), _uri(third), size)


def heatmap(
    recording: Recording, layer: str, at: int, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A recorded map as :meth:`onnxcam.Explainer.explain` would show it, over a photo of another size.

    Args:
        recording: of the map. A model whose preprocessing is unknown saw the whole photo.
        layer: of the map.
        at: the photo's position.
        size: (H, W) of the result.

    Returns:
        (H, W) float32 in [0, 1], and where the model saw the photo, (H, W) bool.
    """
    raw = recording.maps[layer][at]
    whole: tuple[int, int] = (int(recording.sizes[at][0]), int(recording.sizes[at][1]))
    placed = alignment.geometry(whole, recording.maker.preprocess)
    ratios = [scale * n / m for scale, n, m in zip(placed.scale, whole, size, strict=True)]
    geometry = dataclasses.replace(placed, photo=size, scale=(ratios[0], ratios[1]))
    grid = postprocess.scale(np.maximum(raw, 0)[None] if rectifies(recording.maker.method) else raw[None])[0]
    window = preprocess.window(geometry)
    heat = np.zeros(size, np.float32)
    heat[window] = postprocess.scale(preprocess.to_photo(grid, geometry)[window][None])[0]
    return heat, preprocess.seen(geometry)


def difference(photo: Picture, change: NDArray[np.float32]) -> Picture:
    """The greyed photo, coloured where the heat changed.

    Args:
        photo: (H, W, 3) uint8 RGB.
        change: (H, W) float32 in [-1, 1], candidate minus reference.

    Returns:
        (H, W, 3) uint8 RGB: (1 - |change|) grey + |change| colour, the colour being :data:`GAINED` where the
        candidate is hotter and :data:`LOST` where the reference is.
    """
    grey = 64 + 0.625 * cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    weight = np.abs(change)[..., None]
    colour = np.where(change[..., None] > 0, np.array(GAINED, np.float32), np.array(LOST, np.float32))
    coloured: Picture = np.rint((1 - weight) * grey + weight * colour).astype(np.uint8)
    return coloured


def _small(photo: Photo, size: tuple[int, int]) -> Picture:
    shrinks = photo.shape[0] >= size[0] and photo.shape[1] >= size[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(photo, size[::-1], interpolation=how), np.uint8)


def _uri(picture: Picture) -> str:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
