"""Several maps on one photo: each in a colour of its own, with a legend.

RGB in, RGB out; no function changes its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .overlay import Picture, dimmed, drawable

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PAPER, _INK, _GAP = 255, 32, 8
_LEAST = 256  #: width of a picture with a legend, at least


def palette(count: int) -> NDArray[np.uint8]:
    """Colours that can be told apart: (count, 3) uint8 RGB, their hues spread over the circle.

    Every second one is darker, because neighbours of many are close.
    """
    hues = np.arange(count) * 180 / max(count, 1)
    dark = (np.arange(count) % 2 == 1) & (count > 6)
    hsv = np.stack([hues, np.where(dark, 255, 215), np.where(dark, 190, 255)], axis=1)
    colours: NDArray[np.uint8] = cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]
    return colours


def painted(
    photo: Picture,
    heatmaps: NDArray[np.floating[Any]],
    colours: NDArray[np.uint8],
    alpha: float = 0.7,
    seen: NDArray[np.bool_] | None = None,
) -> Picture:
    """A photo in which every pixel has the colour of the map that is strongest there.

    Args:
        photo: (H, W, 3) uint8 RGB.
        heatmaps: (K, H, W) float in [0, 1].
        colours: (K, 3) uint8 RGB.
        alpha: weight of a colour where its map is 1; where it is less, in proportion.
        seen: (H, W) bool; see :func:`onnxcam.overlay.overlay`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: shapes that do not fit, or an unusable ``alpha``.
    """
    if heatmaps.shape != (len(colours), *photo.shape[:2]):
        raise InputError(
            f"{len(colours)} colours on a photo of {photo.shape[:2]} need maps of the shape "
            f"{(len(colours), *photo.shape[:2])}, not {heatmaps.shape}."
        )
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is a number from 0 to 1, not {alpha!r}.")
    strongest = heatmaps.argmax(axis=0)
    weight = alpha * np.take_along_axis(heatmaps, strongest[None], 0)[0][..., None]
    mixed: Picture = np.rint((1 - weight) * photo + weight * colours[strongest]).astype(np.uint8)
    return mixed if seen is None else dimmed(mixed, photo, seen)


def with_legend(picture: Picture, colours: NDArray[np.uint8], captions: Sequence[str]) -> Picture:
    """A picture with one line below for each colour.

    Args:
        picture: (H, W, 3) uint8 RGB.
        colours: (K, 3) uint8 RGB.
        captions: K lines; cut where they are too long.

    Returns:
        (H', W', 3) uint8 RGB, W' at least 256: narrower pictures are centred.
    """
    width = max(picture.shape[1], _LEAST)
    size = 0.4 if width < 400 else 0.5 if width < 800 else 0.8
    (_, ascent), descent = cv2.getTextSize("Ag", _FONT, size, 1)
    line = ascent + descent + _GAP
    legend = np.full((len(captions) * line + _GAP, width, 3), _PAPER, np.uint8)
    for k, caption in enumerate(captions):
        top = _GAP + k * line
        legend[top : top + ascent, _GAP : _GAP + 2 * ascent] = colours[k]
        left = 2 * _GAP + 2 * ascent
        text = _cut(drawable(caption), size, width - left - _GAP)
        cv2.putText(legend, text, (left, top + ascent), _FONT, size, (_INK,) * 3, 1, cv2.LINE_AA)
    whole = np.full((picture.shape[0], width, 3), _PAPER, np.uint8)
    left = (width - picture.shape[1]) // 2
    whole[:, left : left + picture.shape[1]] = picture
    return np.concatenate([whole, legend])


def _cut(text: str, size: float, space: int) -> str:
    def wide(line: str) -> bool:
        return bool(cv2.getTextSize(line, _FONT, size, 1)[0][0] > space)

    if not wide(text):
        return text
    while text and wide(text + "..."):
        text = text[:-1]
    return text.rstrip() + "..."
