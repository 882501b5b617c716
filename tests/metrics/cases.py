"""Models that are NumPy functions, and cases made with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxcam.metrics import Case, Curve, measure


def scorer(model: Callable[[Any], Any], batch: int = 7) -> Callable[..., Any]:
    """``model`` maps (K, ...) to (K,); it is asked in batches, and never for more than one of them."""

    def score(make: Callable[[slice], Any], count: int) -> Any:
        parts = [slice(i, min(i + batch, count)) for i in range(0, count, batch)]
        found = []
        for part in parts:
            made = make(part)
            assert made.dtype == np.float32
            assert len(made) == part.stop - part.start
            found.append(np.asarray(model(made), np.float32))
        return np.concatenate(found)

    return score


def case(image: Any, heatmap: Any, model: Callable[[Any], Any] | None = None, **more: Any) -> Case:
    """A case whose model is by default the mean of the input."""
    image = np.asarray(image, np.float32)
    image = image[None] if image.ndim == 2 else image
    of = model or (lambda x: x.mean(axis=(1, 2, 3)))
    score = scorer(of)
    clean = float(score(lambda part: image[None], 1)[0])
    return Case(image, np.asarray(heatmap, np.float32), score, clean, **more)


def number(name: str, of: Case, **options: Any) -> float:
    return float(measure(name, of, **options))


def curve(name: str, of: Case, **options: Any) -> Curve:
    found = measure(name, of, **options)
    assert isinstance(found, Curve)
    return found
