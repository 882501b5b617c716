"""Heatmaps as pictures: coloured, blended over the photo, and in sheets to compare.

RGB in, RGB out; no function changes its arguments.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError, nearest

Picture: TypeAlias = NDArray[np.uint8]  #: (H, W, 3) RGB

STYLES = ("blend", "show_cam")
_DIM = 0.45  # brightness of what the model never saw
_SIDES = (256, 512)  # least and greatest longer side of a sheet's panels
_GAP, _PAPER, _INK = 8, 255, 32
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DRAWS_UNICODE = hasattr(cv2, "FontFace")  # OpenCV 5; before, putText has strokes for ASCII alone


def overlay(
    image: Picture,
    heatmap: NDArray[np.floating[Any]],
    alpha: float = 0.5,
    colormap: str | int = "jet",
    seen: NDArray[np.bool_] | None = None,
    style: str = "blend",
    box: NDArray[np.floating[Any]] | None = None,
) -> Picture:
    """The photo with the heatmap over it.

    Args:
        image: (H, W, 3) uint8 RGB.
        heatmap: (h, w) float in [0, 1]; resized to the photo if it has another size.
        alpha: weight of the colours, 0 (photo only) to 1 (colours only).
        colormap: one of :func:`colormaps`, or OpenCV's constant.
        seen: (H, W) bool; where False, the model never saw the photo: it is shown grey, darkened and
            without heat. None: it saw everything.
        style: ``blend``: (1 - alpha) photo + alpha colours, ``cv2.addWeighted``. ``show_cam``:
            pytorch-grad-cam's ``show_cam_on_image`` with ``image_weight = 1 - alpha``: the same sum,
            then brightened until its brightest value is white.
        box: x1, y1, x2, y2 in the photo's pixels, to be drawn around what was detected.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: an argument of the wrong shape, type or range.
    """
    photo = _checked_image(image)
    if not isinstance(alpha, (int, float, np.integer, np.floating)) or not 0 <= alpha <= 1:
        raise InputError(f"alpha is a number from 0 to 1, not {alpha!r}.")
    if style not in STYLES:
        raise InputError(
            f"No style {style!r}.{nearest(str(style), [*STYLES])} There are: {', '.join(STYLES)}."
        )
    colours = colourize(_fit(_checked_heatmap(heatmap), photo.shape[:2], cv2.INTER_LINEAR), colormap)
    if style == "blend":
        blended: Picture = np.empty_like(photo)
        cv2.addWeighted(photo, 1 - float(alpha), colours, float(alpha), 0, dst=blended)
    else:
        blended = _show_cam(photo, colours, float(alpha))
    if seen is not None:
        blended = dimmed(blended, photo, _checked_seen(seen, photo))
    return blended if box is None else _boxed(blended, box)


def dimmed(picture: Picture, photo: Picture, seen: NDArray[np.bool_]) -> Picture:
    """A picture of a photo, with the photo in dark grey where the model never saw it.

    Args:
        picture: (H, W, 3) uint8 RGB.
        photo: (H, W, 3) uint8 RGB.
        seen: (H, W) bool.
    """
    if seen.all():
        return picture
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None] * _DIM
    return np.where(seen[..., None], picture, grey.astype(np.uint8))


def _boxed(photo: Picture, box: NDArray[np.floating[Any]]) -> Picture:
    """The photo with a frame, white in black so that it shows on any ground."""
    x1, y1, x2, y2 = (round(float(v)) for v in np.clip(box, -(2**15), 2**15))
    width = max(1, round(max(photo.shape[:2]) / 300))
    framed = np.ascontiguousarray(photo).copy()
    for colour, thickness in ((0, 3 * width), (255, width)):
        cv2.rectangle(framed, (x1, y1), (x2 - 1, y2 - 1), (colour,) * 3, thickness)
    return framed


def colourize(heatmap: NDArray[np.floating[Any]], colormap: str | int = "jet") -> Picture:
    """A heatmap's colours.

    Args:
        heatmap: (h, w) float in [0, 1]; entry ⌊255 heatmap⌋ of the colour map is taken.
        colormap: one of :func:`colormaps`, or OpenCV's constant.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        InputError: not a heatmap, or an unknown colour map.
    """
    index = (255 * _checked_heatmap(heatmap)).astype(np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(index, _colormap(colormap)), cv2.COLOR_BGR2RGB)
    return coloured.astype(np.uint8, copy=False)


def colormaps() -> list[str]:
    """The names of OpenCV's colour maps, in lower case, sorted."""
    return sorted(_COLORMAPS)


@dataclass(frozen=True)
class Row:
    """One row of a sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        heatmap: (h, w) float in [0, 1].
        label: the class's name.
        score: printed after the name; None: nothing is printed.
        seen: see :func:`overlay`.
        box: see :func:`overlay`.
    """

    image: Picture
    heatmap: NDArray[np.floating[Any]]
    label: str = ""
    score: float | None = None
    seen: NDArray[np.bool_] | None = None
    box: NDArray[np.floating[Any]] | None = None


def sheet(
    rows: Sequence[Row], alpha: float = 0.5, colormap: str | int = "jet", style: str = "blend"
) -> Picture:
    """Photo, heatmap and overlay side by side, one row under the other, each with its caption.

    A photo keeps its aspect. All are brought to one longer side, that of the largest photo but at
    least 256 and at most 512 pixels.

    Args:
        rows: at least one; photos may differ in size.
        alpha: see :func:`overlay`.
        colormap: see :func:`overlay`.
        style: see :func:`overlay`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: no row, or what :func:`overlay` refuses.
    """
    if not rows:
        raise InputError("A sheet needs at least one row.")
    largest = max(max(_checked_image(row.image).shape[:2]) for row in rows)
    side = min(max(largest, _SIDES[0]), _SIDES[1])
    panels = [_panels(row, side, alpha, colormap, style) for row in rows]
    column = max(_SIDES[0] // 2, *(row[0].shape[1] for row in panels))
    width = 3 * column + 4 * _GAP
    bands: list[Picture] = []
    for row, three in zip(rows, panels, strict=True):
        height = three[0].shape[0]
        band = _paper(_GAP + height, width)
        for i, panel in enumerate(three):
            left = _GAP + i * (column + _GAP) + (column - panel.shape[1]) // 2
            band[_GAP:, left : left + panel.shape[1]] = panel
        bands += [band, _caption(row.label, row.score, width)]
    return np.concatenate(bands)


def _panels(row: Row, side: int, alpha: float, colormap: str | int, style: str) -> list[Picture]:
    """Photo, heatmap and overlay, their longer side ``side`` pixels."""
    photo = _checked_image(row.image)
    factor = side / max(photo.shape[:2])
    size = tuple(max(1, round(n * factor)) for n in photo.shape[:2])
    enlarge = cv2.INTER_NEAREST if factor > 4 else cv2.INTER_CUBIC
    small = _fit(photo, size, enlarge if factor > 1 else cv2.INTER_AREA)
    heat = _fit(_checked_heatmap(row.heatmap), size, cv2.INTER_LINEAR)
    seen = row.seen
    if seen is not None:
        seen = _fit(_checked_seen(seen, photo).astype(np.uint8), size, cv2.INTER_NEAREST).astype(bool)
    box = None if row.box is None else np.asarray(row.box) * factor
    return [
        small if box is None else _boxed(small, box),
        overlay(small, heat, 1, colormap, seen),
        overlay(small, heat, alpha, colormap, seen, style, box),
    ]


def _caption(label: str, score: float | None, width: int) -> Picture:
    """A band of the sheet's width with the name, cut to fit, and the score, never cut."""
    number = "" if score is None else f"{score:.3g}" if math.isfinite(score) else str(score)
    name = drawable(label)
    if not name and not number:
        return _paper(_GAP, width)
    size, thickness = (0.5, 1) if width < 700 else (0.7, 1) if width < 1100 else (0.9, 2)
    (_, ascent), descent = cv2.getTextSize("Ag", _FONT, size, thickness)
    band = _paper(ascent + descent + 2 * _GAP, width)
    baseline = _GAP + ascent
    space = width - 2 * _GAP - (_width(number, size, thickness) + 2 * _GAP if number else 0)
    if _width(name, size, thickness) > space:
        while name and _width(name + "...", size, thickness) > space:
            name = name[:-1]
        name = name.rstrip() + "..."
    ink = (_INK, _INK, _INK)
    cv2.putText(band, name, (_GAP, baseline), _FONT, size, ink, thickness, cv2.LINE_AA)
    right = _GAP + (_width(name, size, thickness) + 2 * _GAP if name else 0)
    cv2.putText(band, number, (right, baseline), _FONT, size, (176, 32, 32), thickness, cv2.LINE_AA)
    return band


def drawable(text: str, unicode: bool = _DRAWS_UNICODE) -> str:
    """``text`` as one line that OpenCV can draw.

    Args:
        text: any.
        unicode: False: only ASCII can be drawn; letters lose their accents, and what has no ASCII
            likeness becomes a question mark.
    """
    line = " ".join(text.split())
    if not unicode:
        apart = unicodedata.normalize("NFKD", line).translate(_LIKENESS)
        line = "".join(c if c.isascii() else "?" for c in apart if not unicodedata.combining(c))
    return "".join(c if c.isprintable() else "?" for c in line)


_LIKENESS = str.maketrans(
    {"–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "⁄": "/", "×": "x"}
    | {
        "ß": "ss",
        "æ": "ae",
        "Æ": "Ae",
        "œ": "oe",
        "Œ": "Oe",
        "ø": "o",
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
    }
)


def _show_cam(photo: Picture, colours: Picture, alpha: float) -> Picture:
    mixed = alpha * (colours.astype(np.float32) / 255) + (1 - alpha) * (photo.astype(np.float32) / 255)
    brightest = mixed.max()
    shown: Picture = (255 * (mixed / brightest if brightest > 0 else mixed)).astype(np.uint8)
    return shown


def _colormap(name: str | int) -> int:
    if isinstance(name, str):
        short = name.lower().removeprefix("colormap_")
        if short in _COLORMAPS:
            return _COLORMAPS[short]
    elif name in _COLORMAPS.values():
        return int(name)
    raise InputError(
        f"No colour map {name!r}.{nearest(str(name), colormaps())} There are: {', '.join(colormaps())}."
    )


_COLORMAPS: dict[str, int] = {
    n.removeprefix("COLORMAP_").lower(): getattr(cv2, n) for n in dir(cv2) if n.startswith("COLORMAP_")
}


def _checked_image(image: Any) -> Picture:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"The photo is a uint8 RGB array (height, width, 3), not {array.dtype} {array.shape}. "
            "One with floats from 0 to 1 becomes it by (255 * image).astype('uint8')."
        )
    return np.ascontiguousarray(array)


def _checked_seen(seen: Any, photo: Picture) -> NDArray[np.bool_]:
    mask = np.asarray(seen)
    if mask.dtype != bool or mask.shape != photo.shape[:2]:
        raise InputError(
            f"seen is a bool array of the photo's size {photo.shape[:2]}, not {mask.dtype} {mask.shape}."
        )
    return mask


def _checked_heatmap(heatmap: Any) -> NDArray[np.float32]:
    array = np.asarray(heatmap)
    if array.dtype.kind != "f" or array.ndim != 2 or 0 in array.shape:
        raise InputError(f"A heatmap is a float array (height, width), not {array.dtype} {array.shape}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also where one of them is NaN
        raise InputError(
            f"A heatmap's values lie from 0 to 1, not from {low:.4g} to {high:.4g}: "
            "onnxcam.postprocess.scale brings maps there."
        )
    clipped: NDArray[np.float32] = np.clip(array, 0, 1).astype(np.float32, copy=False)
    return clipped


def _fit(array: Any, size: tuple[int, ...], interpolation: int) -> Any:
    """``array`` at ``size`` (H, W); itself if it is that large."""
    if array.shape[:2] == tuple(size):
        return array
    return cv2.resize(array, (size[1], size[0]), interpolation=interpolation)


def _paper(height: int, width: int) -> Picture:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _width(text: str, size: float, thickness: int) -> int:
    return cv2.getTextSize(text, _FONT, size, thickness)[0][0] if text else 0
