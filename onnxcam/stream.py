"""Many photos through one Explainer, a batch at a time, so that thousands do not fill memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from . import images
from .errors import ImageError
from .explainer import Explainer
from .images import Photo
from .result import Explanation


@dataclass(frozen=True)
class Batch:
    """Some of the photos, in order.

    Attributes:
        explanation: of those that could be read; None if none could.
        skipped: (path, why it cannot be read) of the others.
    """

    explanation: Explanation | None
    skipped: tuple[tuple[str, str], ...]


def explain_files(
    explainer: Explainer, paths: Sequence[str], targets: Sequence[Any] = (), batch: int = 8, **how: Any
) -> Iterator[Batch]:
    """Explain files; those that are no images, or damaged, are reported instead.

    The next batch is read while one is explained.

    Args:
        explainer: open.
        paths: of the photos.
        targets: what to explain in every photo (see :mod:`onnxcam.targets`); none: each one's top class.
        batch: how many photos are in memory at once, twice.
        how: ``method``, ``layers`` and ``fuse`` of :meth:`Explainer.explain`.

    Raises:
        TargetError, MethodError, UnknownLayer, TensorError: see :meth:`Explainer.explain`.
    """
    parts = [list(paths[i : i + batch]) for i in range(0, len(paths), batch)]
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(_read, parts[0]) if parts else None
        for following in [*parts[1:], None]:
            if upcoming is None:
                return
            loaded, skipped = upcoming.result()
            upcoming = reader.submit(_read, following) if following is not None else None
            if not loaded:
                yield Batch(None, skipped)
                continue
            target = [list(targets)] * len(loaded) if targets else None
            found = explainer.explain(list(loaded.values()), target=target, **how)
            yield Batch(replace(found, names=tuple(loaded)), skipped)


def _read(paths: Sequence[str]) -> tuple[dict[str, Photo], tuple[tuple[str, str], ...]]:
    loaded, skipped = {}, []
    for path in paths:
        try:
            loaded[path] = images.load(path)
        except ImageError as e:
            skipped.append((path, str(e)))
    return loaded, tuple(skipped)
