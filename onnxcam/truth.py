"""Where the objects of photos are: a folder of masks, or a JSON file of boxes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import images, preprocess
from .errors import MetricError, nearest
from .metrics import Truth, truth_of_boxes, truth_of_mask
from .preprocess import Geometry

#: Of a photo, in its pixels: a mask, an array (H, W); boxes, a list [[x1, y1, x2, y2], ...]; None: unknown.
Given: TypeAlias = "NDArray[Any] | Sequence[Sequence[float]] | None"


def read(source: str | os.PathLike[str], photos: Sequence[str]) -> list[Given]:
    """The truth of each photo.

    Args:
        source: a folder of pictures with the photos' names (``cat.png`` for ``cat.jpg``; in folders below
            it as the photos are in theirs), not black where the object is; or a JSON file
            {photo: [[x1, y1, x2, y2], ...]} in pixels of the photo, whose photos are named by their path or
            their file name.
        photos: their paths.

    Returns:
        One entry per photo, None for those of which it says nothing.

    Raises:
        MetricError: it cannot be read, or says nothing of any of them.
        ImageError: a mask is no picture.
    """
    path = Path(source)
    if not path.exists():
        raise MetricError(f"There is no folder of masks or JSON file '{path}'.")
    found = _masks(path, photos) if path.is_dir() else by_photo(path, photos)
    if all(one is None for one in found):
        what = "no mask in the folder" if path.is_dir() else "no photo of the file"
        known = sorted(p.name for p in path.iterdir()) if path.is_dir() else sorted(_table(path))
        raise MetricError(
            f"There is {what} '{path}' that has the name of a photo, such as "
            f"'{Path(photos[0]).stem if path.is_dir() else Path(photos[0]).name}'."
            f"{nearest(Path(photos[0]).name, known)}"
        )
    return found


def seen(given: Given, geometry: Geometry, name: str = "the photo") -> Truth:
    """The truth as the model sees it: through its crop, letterbox or stretch.

    Args:
        given: in pixels of the photo.
        geometry: where the photo lies in the model's input.
        name: of the photo, for messages.

    Raises:
        MetricError: no truth, a mask of another size than the photo's, an empty one, bad boxes, or an object
            that lies outside of what the model sees.
    """
    if given is None:
        raise MetricError(f"There is no truth for {name}.")
    if isinstance(given, np.ndarray):
        mask = given != 0
        if mask.shape != geometry.photo:
            raise MetricError(f"The mask of {name} is {mask.shape}, but the photo is {geometry.photo}.")
        if not mask.any():
            raise MetricError(f"The mask of {name} is empty: it marks no pixel of the object.")
        mask = preprocess.mask_to_input(mask.astype(np.float32), geometry) > 0
        if not mask.any():
            raise MetricError(f"The object in {name} lies outside of what the model sees of it.")
        return truth_of_mask(mask)
    corners = truth_of_boxes(given, geometry.photo).boxes
    h, w = geometry.size
    placed = np.stack([preprocess.box_to_input(box, geometry) for box in corners])
    placed = np.clip(placed, 0, np.array([w, h, w, h], np.float32))
    placed = placed[(placed[:, 0] < placed[:, 2]) & (placed[:, 1] < placed[:, 3])]
    if not len(placed):
        raise MetricError(f"The object in {name} lies outside of what the model sees of it.")
    return truth_of_boxes(placed, geometry.size)


def _masks(folder: Path, photos: Sequence[str]) -> list[Given]:
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in images.EXTENSIONS]
    known = {p.relative_to(folder).with_suffix(""): p for p in files}
    root = os.path.commonpath([os.path.dirname(os.path.abspath(photo)) for photo in photos])
    masks: list[Given] = []
    for photo in photos:
        below = Path(os.path.relpath(photo, root)).with_suffix("")
        mask = known.get(below, known.get(Path(below.name)))
        masks.append(None if mask is None else np.asarray(images.load(mask).any(axis=2)))
    return masks


def by_photo(path: str | os.PathLike[str], photos: Sequence[str]) -> list[Any]:
    """What a JSON file {photo: ...} says of each photo, by its path or its file name; None of the others.

    Raises:
        MetricError: it is no such file.
    """
    table = _table(Path(path))
    return [table.get(photo, table.get(Path(photo).name)) for photo in photos]


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise MetricError(f"'{path}' is no readable JSON: {e}.") from e
    if not isinstance(table, dict):
        raise MetricError(f"'{path}' holds no JSON object {{photo: ...}}.")
    return table
