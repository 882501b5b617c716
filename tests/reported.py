"""Comparisons with known numbers, for the tests of the report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from onnxcam.comparison.data import Comparison, Decision, OfClass, Pair, Row, Skipped, Statistic
from onnxcam.contract import Preprocess
from onnxcam.recording import Maker, Recording

LAYERS = ("stem", "last")
THRESHOLD = 0.8
MEASURES = ("pearson", "js")
HOW = Preprocess(input="x", size=(32, 32), fit="crop", resize=40)


def names(count: int) -> tuple[str, ...]:
    """Of photos."""
    return tuple(f"day {i % 3}/photo {i}.png" for i in range(count))


def statistic(values: Sequence[float | None], better: str = "higher") -> Statistic:
    """A distribution; the interval is a tenth to both sides, which no test takes for a bootstrap."""
    known = np.array([value for value in values if value is not None])
    mean = float(known.mean())
    median, p05, p95 = (float(np.quantile(known, q)) for q in (0.5, 0.05, 0.95))
    worst = float(known.min() if better == "higher" else known.max())
    return Statistic(len(known), mean, mean - 0.1, mean + 0.1, median, p05, p95, worst)


def recordings(
    photos: Sequence[str],
    labels: Sequence[str] = ("ash", "birch"),
    sizes: tuple[int, int] = (48, 64),
    **of: str,
) -> tuple[Recording, Recording]:
    """Two recordings of the photos: what one side sees at the left, the other sees further to the right."""
    made = []
    for side, model in enumerate(("float.onnx", "int8.onnx")):
        maker = Maker(
            of.get("model", model),
            LAYERS,
            f"{side}" * 64,
            "onnxcam 1.2.3",
            {"onnxruntime": f"1.2{side}.0", "providers": ("CPUExecutionProvider", "XNNPACK")[side]},
            labels=tuple(labels),
            preprocess=HOW,
        )
        count = len(photos)
        maps = {layer: np.zeros((count, n, n), np.float32) for layer, n in zip(LAYERS, (8, 4), strict=True)}
        for i in range(count):
            maps["last"][i, i % 4, side * (i % 3)] = 1
        class_ids = np.zeros(count, np.int64)
        made.append(
            Recording(
                maker,
                tuple(photos),
                ("",) * count,
                np.tile(np.array(sizes, np.int64), (count, 1)),
                class_ids,
                (labels[0],) * count,
                np.ones(count, np.float32),
                None,
                maps,
            )
        )
    return made[0], made[1]


def comparison(
    sides: tuple[Recording, Recording],
    agreements: Sequence[float | None],
    other: Sequence[int] = (),
    layers: Sequence[str] = LAYERS,
    skipped: Sequence[Skipped] = (),
    measure: str = "pearson",
    threshold: float = THRESHOLD,
) -> Comparison:
    """Of photos that agree so much; ``other``: those that the candidate gives the second label.

    At the stem, the first layer, all agree by 0.5.
    """
    first, second = (side.maker for side in sides)
    labels = first.labels or ("", "")
    pairs = tuple(Pair(name, name) for name in layers)
    judged = pairs[-1]
    rows = []
    for i, (image, value) in enumerate(zip(sides[0].names, agreements, strict=True)):
        found = {measure: value, "js": None if value is None else 0.25}
        answer = Decision(1, labels[1], 0.25) if i in other else Decision(0, labels[0], 0.75)
        rows.append(
            Row(
                image,
                sides[0].sha256[i],
                Decision(0, labels[0], 1 - i / 1000),
                answer,
                i not in other,
                None,
                0.125,
                {p.name: found if p == judged else {measure: 0.5, "js": 0.5} for p in pairs},
                "other answer"
                if i in other
                else "same reason"
                if value is not None and value >= threshold
                else "other reason",
            )
        )
    statistics = {
        **({measure: statistic(agreements)} if any(value is not None for value in agreements) else {}),
        "js": statistic([0.25], "lower"),
        "score_difference": statistic([0.125] * len(rows), "lower"),
    }
    by_layer = {p.name: statistics if p == judged else {measure: statistic([0.5] * len(rows))} for p in pairs}
    shares = {
        "same_answer": statistic([float(row.same_answer) for row in rows]),
        "same_reason": statistic([float(row.verdict == "same reason") for row in rows]),
    }
    parts = pairs[0] if len(pairs) > 1 else None
    classes = (
        OfClass(labels[1], 1, 1.0, 0.0, None),
        OfClass(labels[0], len(rows) - 1, 0.5, 0.25, 0.75),
    )
    return Comparison(
        first,
        second,
        tuple(rows),
        tuple(skipped),
        pairs,
        judged,
        measure,
        threshold,
        shares,
        statistics,
        classes,
        by_layer,
        parts,
        7,
    )


def nothing(sides: tuple[Recording, Recording], skipped: Sequence[Skipped]) -> Comparison:
    """A comparison of no photo."""
    pair = Pair("last", "last")
    makers = (sides[0].maker, sides[1].maker)
    return Comparison(
        *makers, (), tuple(skipped), (pair,), pair, "pearson", THRESHOLD, {}, {}, (), {pair.name: {}}, None, 7
    )


def photos(folder: Path, wanted: Sequence[str], size: tuple[int, int] = (48, 64)) -> dict[str, str]:
    """Smooth random photos as files: {name: path}."""
    rng = np.random.default_rng(5)
    paths = {}
    for i, name in enumerate(wanted):
        small = rng.integers(0, 256, (6, 8, 3), np.uint8)
        path = folder / f"{i}.png"
        path.write_bytes(cv2.imencode(".png", cv2.resize(small, size[::-1]))[1].tobytes())
        paths[name] = str(path)
    return paths


def sha256(path: str) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
