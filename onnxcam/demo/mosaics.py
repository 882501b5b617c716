"""The demo's photographs and the mosaics cut from them; shared by the demo and its training script.

Each photograph gives one class. Its *training* rectangles are all that the model was trained on; its
*held-out* rectangle, at least :data:`MARGIN` pixels away from them, is shipped beside this file and is
what the mosaics are cut from. A mosaic is four tiles of four different classes, so the place of each
class is known and a map can be scored by the share of its heat that lies there.

Rectangles are (left, top, right, bottom) in pixels of the photograph after ``shrink``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..images import load

Rectangle = tuple[int, int, int, int]
Image = NDArray[np.uint8]

MARGIN = 12  #: pixels between a held-out rectangle and the nearest training rectangle, at least
SIZE = 256  #: side of a mosaic in pixels; the model sees it at half that size
SPLIT = (96, 160)  #: a mosaic is cut into four at a point whose coordinates lie in this range
SEED, COUNT = 20, 64  #: the held-out mosaics of the demo's table
PHOTO_SEED = 203  #: the mosaic of the demo's pictures: cat, brick, stars and tower


@dataclass(frozen=True)
class Texture:
    """One class of the demo's model.

    Attributes:
        label: the class name.
        photo: the file in scikit-image's ``skimage/data``.
        train: the rectangles that training may see.
        held_out: the rectangle that it never sees; shipped as ``<label>.jpg``.
        tile: side of the square, in pixels, that becomes one tile of a mosaic.
        shrink: the photograph is first made smaller by this whole factor.
    """

    label: str
    photo: str
    train: tuple[Rectangle, ...]
    held_out: Rectangle
    tile: int = 128
    shrink: int = 1


TEXTURES = (
    Texture("brick", "brick.png", ((0, 0, 352, 512),), (368, 0, 512, 512)),
    Texture("grass", "grass.png", ((0, 0, 352, 512),), (368, 0, 512, 400)),
    Texture("gravel", "gravel.png", ((0, 0, 352, 512),), (368, 0, 512, 400)),
    Texture("writing", "text.png", ((0, 0, 284, 172),), (300, 0, 448, 172), tile=96),
    Texture("stars", "hubble_deep_field.jpg", ((0, 0, 1000, 700),), (0, 716, 700, 872)),
    Texture("cat", "chelsea.png", ((136, 0, 345, 300),), (0, 110, 120, 300), tile=96),
    Texture("retina", "retina.jpg", ((130, 90, 580, 384),), (120, 400, 570, 550), shrink=2),
    Texture("wood", "coffee.png", ((484, 0, 600, 240), (0, 150, 72, 400)), (470, 254, 600, 400), tile=104),
    Texture("tower", "rocket.jpg", ((0, 0, 105, 427),), (535, 0, 640, 400), tile=100),
)
LABELS = tuple(t.label for t in TEXTURES)


@dataclass(frozen=True)
class Mosaic:
    """Four tiles and where they are.

    Attributes:
        image: (SIZE, SIZE, 3) uint8 RGB.
        tiles: label to the rectangle of ``image`` that shows it, reading order.
    """

    image: Image
    tiles: Mapping[str, Rectangle]


def cut(photo: Image, rectangle: Rectangle) -> Image:
    """The part of a photo inside a rectangle."""
    left, top, right, bottom = rectangle
    return photo[top:bottom, left:right]


def held_out(folder: Path | None = None) -> dict[str, Image]:
    """The shipped regions, (h, w, 3) uint8 RGB by label; ``folder`` is where else to look for them."""
    source = folder or files(__package__)
    return {label: load((source / f"{label}.jpg").read_bytes(), f"{label}.jpg") for label in LABELS}


def mosaics(regions: Mapping[str, Image], count: int = COUNT, seed: int = SEED) -> list[Mosaic]:
    """Mosaics of four different classes with unequal tiles; the same for the same arguments.

    Args:
        regions: label to the region that its tiles are cut from, as :func:`held_out` gives them.
        count: how many.
        seed: of the choice of classes, split points and tiles.
    """
    rng = np.random.default_rng(seed)
    sides = {t.label: t.tile for t in TEXTURES}
    made = []
    for _ in range(count):
        labels = [str(label) for label in rng.permutation(sorted(regions))[:4]]
        x, y = (int(v) for v in rng.integers(*SPLIT, size=2, endpoint=True))
        places = ((0, 0, x, y), (x, 0, SIZE, y), (0, y, x, SIZE), (x, y, SIZE, SIZE))
        image = np.empty((SIZE, SIZE, 3), np.uint8)
        for label, place in zip(labels, places, strict=True):
            cut(image, place)[:] = _tile(rng, regions[label], sides[label], place)
        made.append(Mosaic(image, dict(zip(labels, places, strict=True))))
    return made


def share(heatmap: NDArray[np.float32], place: Rectangle) -> float:
    """Share of a non-negative map's heat inside a rectangle, 0 to 1; 0 for a map without heat.

    The energy-based pointing game of Wang et al., Score-CAM, CVPR workshops 2020, section 4.3.
    """
    total = float(heatmap.sum(dtype=np.float64))
    left, top, right, bottom = place
    return float(heatmap[top:bottom, left:right].sum(dtype=np.float64)) / total if total > 0 else 0.0


def area(place: Rectangle) -> float:
    """Share of a mosaic that a rectangle covers, 0 to 1: what a uniform map scores."""
    left, top, right, bottom = place
    return (right - left) * (bottom - top) / SIZE**2


def noise_maps(count: int, seed: int = SEED, grid: int = 16) -> list[NDArray[np.float32]]:
    """Maps of uniform noise on the layer's grid, scaled up as a real map is: what chance scores."""
    rng = np.random.default_rng(seed)
    grids = rng.random((count, grid, grid), np.float32)
    return [np.asarray(cv2.resize(g, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)) for g in grids]


def _tile(rng: np.random.Generator, region: Image, side: int, place: Sequence[int]) -> Image:
    """A piece of a region at its class's scale, in the size of its place.

    A tile is ``side`` pixels for half a mosaic; a larger place gets more pixels, as far as there are.
    """
    width, height = place[2] - place[0], place[3] - place[1]
    h, w = region.shape[:2]
    zoom = min(2 * side / SIZE, w / width, h / height)
    cw, ch = int(width * zoom), int(height * zoom)
    left, top = int(rng.integers(w - cw, endpoint=True)), int(rng.integers(h - ch, endpoint=True))
    piece = region[top : top + ch, left : left + cw]
    return np.asarray(cv2.resize(piece, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
