"""What is explained: which class of which image, one row for each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import TOP_CLASS
from .errors import TargetError, nearest


@dataclass(frozen=True)
class Targets:
    """One row per explanation.

    Attributes:
        image_index: (R,) int64, ascending: the image of each row.
        class_index: (R,) int64: its class; :data:`~onnxcam.contract.TOP_CLASS` is the image's best.
    """

    image_index: NDArray[np.int64]
    class_index: NDArray[np.int64]


def resolve(target: Any, images: int, classes: int | None, labels: Sequence[str] | None) -> Targets:
    """The rows that ``target`` asks for.

    Args:
        target: None: each image's top class; a class index or a label: for every image; a list with
            one entry per image, each of them an index, a label, None or a list of these (several
            rows for that image).
        images: how many images there are.
        classes: how many classes the model has; None where the file does not say.
        labels: one per class, or None. "tabby, tabby cat" is found by the whole label and by either
            part, whatever the case.

    Raises:
        TargetError: no such class, an ambiguous label, or not one entry per image.
    """
    if isinstance(target, np.ndarray):
        target = target.tolist()
    if not isinstance(target, (list, tuple)):
        one = _class_index(target, classes, labels)
        return Targets(np.arange(images), np.full(images, one, np.int64))
    if len(target) != images:
        hint = " For several classes of one image write [[281, 282]]." if images == 1 else ""
        raise TargetError(
            f"target has {len(target)} entries for {images} image{'s' * (images != 1)}; a list has one entry "
            f"per image.{hint}"
        )
    rows = [
        (i, _class_index(t, classes, labels)) for i, entry in enumerate(target) for t in _entries(entry, i)
    ]
    table = np.array(rows, np.int64).reshape(-1, 2)
    return Targets(table[:, 0], table[:, 1])


def _entries(entry: Any, i: int) -> Sequence[Any]:
    if isinstance(entry, np.ndarray):
        entry = entry.tolist()
    if not isinstance(entry, (list, tuple)):
        return [entry]
    if not entry:
        raise TargetError(f"target[{i}] is empty; name at least one class, or None for the top class.")
    return entry


def _class_index(target: Any, classes: int | None, labels: Sequence[str] | None) -> int:
    if target is None:
        return TOP_CLASS
    if isinstance(target, str):
        return _by_label(target, labels)
    try:
        if isinstance(target, (bool, np.bool_)):
            raise TypeError
        index = operator.index(target)
    except TypeError:
        raise TargetError(
            f"A target is a class index, a label or None, not {target!r} ({type(target).__name__})."
        ) from None
    check(index, classes)
    return index


def check(index: int, classes: int | None) -> None:
    """Raise TargetError unless ``index`` is a class."""
    if index < 0:
        raise TargetError(f"Class index {index} is negative; write None for each image's top class.")
    if classes is not None and index >= classes:
        raise TargetError(
            f"Class index {index} is out of range: the model has {classes} classes, 0 to {classes - 1}."
        )


def _by_label(label: str, labels: Sequence[str] | None) -> int:
    if not labels:
        raise TargetError(
            f"The label {label!r} cannot be looked up: the file records no labels. Give the class index, "
            "or labels= when the Explainer is opened."
        )
    wanted = label.strip().casefold()
    whole = [i for i, known in enumerate(labels) if known.strip().casefold() == wanted]
    part = [i for i, known in enumerate(labels) if wanted in (p.strip().casefold() for p in known.split(","))]
    found = whole or part
    if not found:
        raise TargetError(
            f"There is no label {label!r} among the {len(labels)} recorded.{nearest(label, list(labels))}"
        )
    if len(found) > 1:
        named = ", ".join(f"{i} ({labels[i]!r})" for i in found)
        raise TargetError(f"The label {label!r} is ambiguous: it is that of {named}. Give the class index.")
    return found[0]
