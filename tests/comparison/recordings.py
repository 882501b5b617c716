"""Recordings that are written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcam.recording import Maker, Recording

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def recording(
    outputs: Any,
    maps: Any,
    *,
    names: Any = None,
    sha256: Any = None,
    sizes: Any = None,
    class_ids: Any = None,
    labels: Any = None,
    scores: Any = None,
    skipped: Any = (),
    **maker: Any,
) -> Recording:
    """Of N photos of 100×100 pixels, in one layer "last" or in several, each side's own top class."""
    layers = maps if isinstance(maps, dict) else {"last": maps}
    layers = {name: np.asarray(m, np.float32) for name, m in layers.items()}
    count = len(next(iter(layers.values())))
    table = None if outputs is None else np.asarray(outputs, np.float32)
    if class_ids is None:
        class_ids = np.zeros(count) if table is None else table.argmax(axis=1)
    ids = np.asarray(class_ids, np.int64)
    maker.setdefault("labels", None if table is None else LABELS[: table.shape[1]])
    if scores is None:
        scores = np.zeros(count) if table is None else table[np.arange(count), np.maximum(ids, 0)]
    return Recording(
        Maker("model.onnx", tuple(layers), **maker),
        tuple(names or (f"{i}.jpg" for i in range(count))),
        tuple(sha256 or (f"hash{i}" for i in range(count))),
        np.full((count, 2), 100, np.int64) if sizes is None else np.asarray(sizes, np.int64),
        ids,
        tuple(labels or ("",) * count),
        np.asarray(scores, np.float32),
        table,
        layers,
        tuple(skipped),
    )


def spots(*places: tuple[int, int], grid: tuple[int, int] = (5, 5)) -> Any:
    """A map per place, hot there alone."""
    made = np.zeros((len(places), *grid), np.float32)
    for one, place in zip(made, places, strict=True):
        one[place] = 1
    return made


def hot(*which: int, classes: int = 7) -> Any:
    """Logits with their highest score at a class, one row for each."""
    table = np.tile(np.linspace(0, 0.5, classes), (len(which), 1))
    table[np.arange(len(which)), list(which)] = 4
    return table
