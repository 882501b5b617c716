"""The embedded demo: a small model, real photographs, and maps whose right answer is known.

Nothing is downloaded and no training framework is needed. The model tells nine textures apart
(``examples/train_demo.py`` made it); the mosaics that it explains are cut from parts of the
photographs that it was not trained on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import InputError, OutputError
from ..explainer import Explainer
from ..overlay import Row, colourize, overlay, sheet
from ..softmax import softmax
from . import mosaics

FOLDER = "onnxcam-demo"
METHODS = ("gradcam", "gradcam++", "layercam")  #: the rows of the table; the pictures show the first
_BATCH = 16


@dataclass(frozen=True)
class Explained:
    """One class of the demo's photo.

    Attributes:
        label: the class.
        probability: the model's, after softmax.
        share: the part of the heatmap's heat that lies in the class's tile, 0 to 1.
        area: the part of the photo that the tile covers: what a map that knows nothing scores.
    """

    label: str
    probability: float
    share: float
    area: float


@dataclass(frozen=True)
class Localisation:
    """How well one kind of map finds the classes of the held-out mosaics.

    Attributes:
        name: a method, ``random`` or ``uniform``.
        share: the part of a map's heat that lies in its class's tile; mean over all maps.
        worst: the class with the lowest mean, and that mean.
        by_class: the mean of each class.
    """

    name: str
    share: float
    worst: tuple[str, float]
    by_class: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What :func:`run` did.

    Attributes:
        files: what was written, in order: photo, heatmaps, overlays, sheet.
        explained: the two classes of the pictures.
        method: of the pictures.
        table: the methods', then a random map's and a uniform map's localisation.
        mosaics, maps: how many the table is over.
        top_in_place: share of the mosaics whose top class is one of their four.
        classes: what the model can tell apart.
    """

    files: tuple[Path, ...]
    explained: tuple[Explained, ...]
    method: str
    table: tuple[Localisation, ...]
    mosaics: int
    maps: int
    top_in_place: float
    classes: tuple[str, ...]


def model_bytes() -> bytes:
    """The embedded explainable file."""
    return (files(__package__) / "demo.cam.onnx").read_bytes()


def run(
    folder: str | os.PathLike[str] = FOLDER,
    methods: Sequence[str] = METHODS,
    count: int = mosaics.COUNT,
    progress: Callable[[int, int], None] | None = None,
    **session: Any,
) -> Report:
    """Explain one mosaic for its two likeliest classes, and measure the maps of many.

    Args:
        folder: where the pictures go; made if it is not there.
        methods: of the table; the first one's maps are the pictures.
        count: how many mosaics the table is over.
        progress: called with (maps done, maps in all).
        session: passed on to :class:`onnxcam.Explainer`, ``providers`` for one.

    Raises:
        InputError: no method, or fewer than one mosaic.
        OutputError: the pictures cannot be written.
    """
    if not methods:
        raise InputError("The demo needs at least one method; `onnxcam.methods.names()` lists them.")
    if count < 1:
        raise InputError(f"The demo needs at least one mosaic, not {count}.")
    out = _make_folder(folder)
    explainer = Explainer(model_bytes(), **session)
    regions = mosaics.held_out()
    (photo,) = mosaics.mosaics(regions, 1, mosaics.PHOTO_SEED)
    explained, written = _pictures(explainer, photo, methods[0], out)
    measured = mosaics.mosaics(regions, count)
    table, top_in_place = _measure(explainer, measured, methods, progress)
    return Report(
        files=tuple(written),
        explained=tuple(explained),
        method=methods[0],
        table=tuple(table),
        mosaics=count,
        maps=sum(len(m.tiles) for m in measured),
        top_in_place=top_in_place,
        classes=mosaics.LABELS,
    )


def _pictures(
    explainer: Explainer, mosaic: mosaics.Mosaic, method: str, out: Path
) -> tuple[list[Explained], list[Path]]:
    (logits,) = explainer.explain(mosaic.image, method=method).outputs["logits"]
    best = np.argsort(-logits)[:2]
    result = explainer.explain(mosaic.image, method=method, target=[best.tolist()])
    probabilities = softmax(logits)
    explained, rows = [], []
    pictures: dict[str, mosaics.Image] = {"photo.png": mosaic.image}
    for c, heatmap in zip(best, result.heatmaps, strict=True):
        label = mosaics.LABELS[c]
        place = mosaic.tiles.get(label, (0, 0, 0, 0))
        pictures[f"heatmap-{label}.png"] = colourize(heatmap)
        pictures[f"overlay-{label}.png"] = overlay(mosaic.image, heatmap)
        rows.append(Row(mosaic.image, heatmap, label, float(probabilities[c])))
        explained.append(
            Explained(label, float(probabilities[c]), mosaics.share(heatmap, place), mosaics.area(place))
        )
    pictures["sheet.png"] = sheet(rows)
    return explained, [_write(out / name, picture) for name, picture in pictures.items()]


def _measure(
    explainer: Explainer,
    shown: Sequence[mosaics.Mosaic],
    methods: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Localisation], float]:
    """The rows of the table, and the share of mosaics whose top class is in them."""
    wanted = [(m.tiles[label], label) for m in shown for label in m.tiles]
    total, done = len(wanted) * len(methods), 0
    found: dict[str, list[float]] = {name: [] for name in methods}
    hits = 0
    for name in methods:
        for start in range(0, len(shown), _BATCH):
            batch = shown[start : start + _BATCH]
            result = explainer.explain(
                [m.image for m in batch], method=name, target=[list(m.tiles) for m in batch]
            )
            places = [place for m in batch for place in m.tiles.values()]
            found[name] += [mosaics.share(h, p) for h, p in zip(result.heatmaps, places, strict=True)]
            if name == methods[0]:
                tops = result.outputs["logits"].argmax(1)
                hits += sum(mosaics.LABELS[t] in m.tiles for t, m in zip(tops, batch, strict=True))
            done += len(places)
            if progress:
                progress(done, total)
    noise = mosaics.noise_maps(len(wanted))
    found["random"] = [mosaics.share(n, place) for n, (place, _) in zip(noise, wanted, strict=True)]
    found["uniform"] = [mosaics.area(place) for place, _ in wanted]
    labels = [label for _, label in wanted]
    return [_localisation(name, shares, labels) for name, shares in found.items()], hits / len(shown)


def _localisation(name: str, shares: Sequence[float], labels: Sequence[str]) -> Localisation:
    by_class = {
        c: float(np.mean([s for s, label in zip(shares, labels, strict=True) if label == c]))
        for c in mosaics.LABELS
        if c in labels
    }
    worst = min(by_class.items(), key=lambda item: item[1])
    return Localisation(name, float(np.mean(shares)), worst, by_class)


def _make_folder(folder: str | os.PathLike[str]) -> Path:
    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"The folder '{out}' cannot be made: {e.strerror or e}. Choose another one.") from e
    return out


def _write(path: Path, picture: mosaics.Image) -> Path:
    """Write a PNG whole or not at all."""
    encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(encoded.tobytes())
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise OutputError(f"'{path}' cannot be written: {e.strerror or e}. Choose another folder.") from e
    return path
