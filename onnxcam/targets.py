"""What is explained, of which image: one row for each.

A target is None (the top class), a class by index or label, or one of the kinds below, which say more. A
kind is one dataclass and one function, entered in :data:`_KINDS`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .contract import BOX, REFERENCE, REGION, TOP_CLASS, Score, Seed
from .errors import TargetError, nearest
from .kinds import is_finite
from .softmax import softmax

Class: TypeAlias = "int | str"  #: by index or label


@dataclass(frozen=True, eq=False)
class Region:
    """A class of a segmentation, summed over some pixels.

    Attributes:
        of: the class; None: the one with most pixels.
        mask: (H, W) bool, or weights, at the photo's size for ``explain`` and the model input's for
            ``explain_tensor`` ((D, H, W) of a volume); None: the pixels that the model gives to the class.
    """

    of: Class | None = None
    mask: Any = None


@dataclass(frozen=True)
class Box:
    """A detection: the one that fits a box best.

    Attributes:
        corners: x1, y1, x2, y2 in pixels: of the photo for ``explain``, of the model's input for
            ``explain_tensor``.
        of: its class; None: any.
    """

    corners: Sequence[float]
    of: Class | None = None


@dataclass(frozen=True, eq=False)
class Similar:
    """What an image has in common with another.

    Attributes:
        reference: (D,) the other's embedding, of any length; what is explained is the cosine
            similarity to it.
        name: what the similarity is called.
    """

    reference: Any
    name: str = "similarity"


@dataclass(frozen=True)
class Contrast:
    """Why one class and not another: the difference of their logits.

    Attributes:
        of: the class.
        against: the other; or several, of which the mean is taken.
        weight: of the others (1: the plain difference).
    """

    of: Class
    against: Class | Sequence[Class]
    weight: float = 1.0


@dataclass(frozen=True)
class Finer:
    """What tells a class from those that the model takes for nearest.

    Finer-CAM: Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual
    Explanation", CVPR 2025. Which classes these are, and their weights, follow from the scores of each image,
    so that the file runs for them first; then again, or only what follows the layers, if the file has tails.

    Attributes:
        of: the class; None: each image's top class.
        references: how many of the classes with the nearest logits, or which.
        weight: of theirs, the paper's α.
        mean: False, as the authors: Σ_i p_i (y_c - α y_i) / Σ_i p_i with the softmax p, through which the
            gradient goes, too. True, as torch-cam: y_c - α times the mean of the y_i.
    """

    of: Class | None = None
    references: int | Sequence[Class] = 3
    weight: float = 1.0
    mean: bool = False


@dataclass(frozen=True, eq=False)
class Weights:
    """Any linear functional: the sum of weight times value.

    Attributes:
        of: weights for the score: {class: weight}, or an array in the shape of one image's score. For
            several outputs {output: such weights, or a number for an output of one number}.
        name: what the sum is called; None: what it is the sum of.
    """

    of: Any
    name: str | None = None


@dataclass(frozen=True)
class Targets:
    """One row per explanation.

    Attributes:
        image_index: (R,) int64, ascending: the image of each row.
        class_index: (R,) int64: its class; :data:`~onnxcam.contract.TOP_CLASS` is the image's best.
        feeds: per row what else is fed, {input: its entry of the batch}; empty if no row has any.
        names: per row what it is called, where no class says; empty if no row has one.
        finer: per row what its weights follow from, once the scores are known; empty if no row has any.
    """

    image_index: NDArray[np.int64]
    class_index: NDArray[np.int64]
    feeds: tuple[Mapping[str, NDArray[Any]], ...] = ()
    names: tuple[str | None, ...] = ()
    finer: tuple[Finer | None, ...] = ()

    def rows(self, index: Any, first: int = 0) -> Targets:
        """Some rows; their images are counted from ``first`` on."""
        picked = np.arange(len(self.image_index))[index]
        return Targets(
            self.image_index[picked] - first,
            self.class_index[picked],
            tuple(self.feeds[i] for i in picked) if self.feeds else (),
            tuple(self.names[i] for i in picked) if self.names else (),
            tuple(self.finer[i] for i in picked) if self.finer else (),
        )


@dataclass(frozen=True)
class _Row:
    class_index: int = TOP_CLASS
    feeds: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    name: str | None = None
    finer: Finer | None = None


@dataclass(frozen=True)
class _File:
    """What a file can be asked."""

    score: Score
    classes: int | None
    labels: Sequence[str] | None

    def class_of(self, target: Any) -> int:
        return _class_index(target, self.classes, self.labels)


def resolve(
    target: Any,
    images: int,
    classes: int | None,
    labels: Sequence[str] | None,
    score: Score | None = None,
) -> Targets:
    """The rows that ``target`` asks for.

    Args:
        target: None: each image's top class; a class index, a label, or one of the kinds of this
            module: for every image; a list with one entry per image, each of them one of these, None
            or a list of them (several rows for that image).
        images: how many images there are.
        classes: how many classes the model has; None where the file does not say.
        labels: one per class, or None. "tabby, tabby cat" is found by the whole label and by either
            part, whatever the case.
        score: the file's; None: a classification.

    Raises:
        TargetError: no such class, an ambiguous label, not one entry per image, or what this file
            cannot explain.
    """
    file = _File(score or Score("", ""), classes, labels)
    if isinstance(target, np.ndarray):
        target = target.tolist()
    if not isinstance(target, (list, tuple)):
        target = [target] * images
    elif len(target) != images:
        hint = " For several classes of one image write [[281, 282]]." if images == 1 else ""
        count = "1 entry" if len(target) == 1 else f"{len(target)} entries"
        of = f"{images} image{'s' * (images != 1)}"
        raise TargetError(f"target has {count} for {of}; a list has one entry per image.{hint}")
    made: dict[int, tuple[Any, _Row]] = {}  # one target for every image is resolved once

    def row(entry: Any) -> _Row:
        if id(entry) not in made:
            made[id(entry)] = entry, _row(entry, file)  # kept, so that no other takes its id
        return made[id(entry)][1]

    rows = [(i, row(t)) for i, entry in enumerate(target) for t in entries(entry, i)]
    return Targets(
        np.array([i for i, _ in rows], np.int64),
        np.array([r.class_index for _, r in rows], np.int64),
        tuple(r.feeds for _, r in rows) if any(r.feeds for _, r in rows) else (),
        tuple(r.name for _, r in rows) if any(r.name for _, r in rows) else (),
        tuple(r.finer for _, r in rows) if any(r.finer for _, r in rows) else (),
    )


def placed(
    targets: Targets,
    box: Callable[[int, NDArray[np.float32]], NDArray[np.float32]],
    region: Callable[[int, NDArray[np.float32]], NDArray[np.float32]],
) -> Targets:
    """The rows with their boxes and regions where the model sees them.

    Args:
        targets: in the coordinates of the caller.
        box: from the index of an image and corners (4,) to those in the model's input.
        region: from the index of an image and a mask to that of the model's input.
    """
    how = {BOX: box, REGION: region}
    moved = [
        {name: how[name](i, value) if name in how else value for name, value in feeds.items()}
        for i, feeds in zip(targets.image_index.tolist(), targets.feeds, strict=False)
    ]
    return replace(targets, feeds=tuple(moved))


def stacked(targets: Targets, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """What is fed for the rows; NaN where a row has none of it, so that the file chooses there.

    Raises:
        TargetError: entries of one input that differ in shape.
    """
    fed = {}
    for name in names:
        entries = [feeds.get(name) for feeds in targets.feeds]
        some = next(e for e in entries if e is not None)
        if any(e is not None and e.shape != some.shape for e in entries):
            raise TargetError(f"The targets give '{name}' in several shapes; one call takes one shape.")
        nothing = np.full(some.shape, np.nan, some.dtype)
        fed[name] = np.stack([nothing if e is None else e for e in entries])
    return fed


def _row(target: Any, file: _File) -> _Row:
    kind = _KINDS.get(type(target))
    if kind is not None:
        return kind(target, file)
    task = file.score.task
    if target is None:
        if task == "regression" and (file.classes or 1) > 1:
            raise TargetError(
                f"The model regresses {file.classes} numbers, of which none is the top one: name one, 0 to "
                f"{(file.classes or 1) - 1}, or a label."
            )
        return _Row()
    if task == "embedding" and isinstance(target, (int, str)):
        raise TargetError(
            "The file explains an embedding, which has no classes: the target is None or "
            "onnxcam.targets.Similar(reference)."
        )
    return _Row(file.class_of(target))


def _region(target: Region, file: _File) -> _Row:
    _only("A Region", "segmentation", file)
    feeds = {}
    if target.mask is not None:
        mask = _array(target.mask)
        if (
            mask.ndim not in (1, 2, 3)
            or mask.dtype.kind not in "bfui"
            or not np.isfinite(mask).all()
            or not mask.size
        ):
            raise TargetError(
                f"The mask of a Region is (H, W), bool or finite, not {mask.dtype} {mask.shape}."
            )
        feeds[REGION] = mask.astype(np.float32)
    return _Row(TOP_CLASS if target.of is None else file.class_of(target.of), feeds)


def _array(values: Any) -> NDArray[Any]:
    """As an array; of nothing, which every check refuses, if rows differ in length."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.empty(0)


def _numbers(values: Any) -> NDArray[np.float32]:
    """As float32; NaN, which every check refuses, where these are no numbers."""
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        return np.array(np.nan, np.float32)


def _box(target: Box, file: _File) -> _Row:
    _only("A Box", "detection", file)
    corners = _numbers(target.corners)
    if corners.shape != (4,) or not np.isfinite(corners).all() or (corners[2:] <= corners[:2]).any():
        raise TargetError(
            f"The corners of a Box are x1, y1, x2, y2 in pixels, x1 < x2 and y1 < y2, not {target.corners!r}."
        )
    return _Row(TOP_CLASS if target.of is None else file.class_of(target.of), {BOX: corners})


def _similar(target: Similar, file: _File) -> _Row:
    _only("A Similar", "embedding", file)
    reference = _numbers(target.reference).reshape(-1)
    if not np.isfinite(reference).all() or not reference.any():
        raise TargetError("The reference of a Similar is one embedding, finite and not zero.")
    return _Row(feeds={REFERENCE: reference}, name=target.name)


def _contrast(target: Contrast, file: _File) -> _Row:
    others = _several(target.against)
    if not others:
        raise TargetError("A Contrast needs at least one class to be set against.")
    _check_weight("a Contrast", target.weight)
    weights = {file.class_of(target.of): 1.0}
    for other in map(file.class_of, others):
        weights[other] = weights.get(other, 0.0) - target.weight / len(others)
    against = " and ".join(_named(file, i) for i in map(file.class_of, others))
    row = _weights(Weights({file.score.output: weights}), file)
    return replace(row, name=f"{_named(file, file.class_of(target.of))}, not {against}")


def _finer(target: Finer, file: _File) -> _Row:
    _only("A Finer", "classification", file)
    own_seed(file.score)
    _check_weight("a Finer", target.weight)
    references = target.references
    if not isinstance(references, int):
        references = tuple(file.class_of(other) for other in _several(references))
    count = references if isinstance(references, int) else len(references)
    if count < 1 or (isinstance(references, int) and file.classes is not None and count >= file.classes):
        raise TargetError(f"A Finer has {_others(file.classes)} to refer to, not {count}.")
    return _Row(
        TOP_CLASS if target.of is None else file.class_of(target.of),
        finer=replace(target, references=references),
    )


def _others(classes: int | None) -> str:
    """How many classes there are beside one."""
    if classes is None:
        return "1 or more classes"
    return {1: "no class", 2: "1 class"}.get(classes, f"1 to {classes - 1} classes")


def _several(classes: Any) -> list[Any]:
    """One class or several as a list; what is neither is refused where it is looked up."""
    if classes is None:
        return []
    return list(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else [classes]


def _check_weight(what: str, weight: Any) -> None:
    if not is_finite(weight):
        raise TargetError(f"The weight of {what} is a finite number, such as 1.0, not {weight!r}.")


def refined(wanted: Targets, fields: Mapping[str, Any], score: Score) -> Targets:
    """The rows, each class against its nearest (:class:`Finer` with ``fields``); other rows as they are.

    Raises:
        TargetError: the file takes no weights.
    """
    own_seed(score)
    given = wanted.feeds or ({},) * len(wanted.class_index)
    asked = wanted.finer or (None,) * len(given)
    finer = tuple(one or (None if fed else Finer(**fields)) for one, fed in zip(asked, given, strict=True))
    return replace(wanted, finer=finer if any(finer) else ())


def own_seed(score: Score) -> Seed:
    """The input for weights of the score itself.

    Raises:
        TargetError: the file has none.
    """
    for seed in score.seeds:
        if seed.output == score.output:
            return seed
    raise TargetError(
        "The file takes no weights for its score, which a difference of classes needs. Rewrite the model "
        'with them: `rewrite_onnx(..., score={"seed": True})` or `onnxcam rewrite --seed`.'
    )


def finer_weights(logits: NDArray[np.float32], of: int, finer: Finer) -> tuple[NDArray[np.float32], float]:
    """The cotangent of a :class:`Finer`'s score, and the score.

    Args:
        logits: y, (K,), of one image.
        of: c, the class.
        finer: with references by index.

    Returns:
        ∂f/∂y, (K,) float32, and f(y).
    """
    y = logits.astype(np.float64)
    if isinstance(finer.references, int):
        near = np.argsort(np.abs(y - y[of]), kind="stable")
        others = near[near != of][: finer.references]
    else:
        others = np.asarray(finer.references, np.int64)
    weights = np.zeros_like(y)
    if finer.mean:
        weights[of] = 1.0
        np.add.at(weights, others, -finer.weight / len(others))
        return weights.astype(np.float32), float(weights @ y)
    p = softmax(y)
    part = np.zeros_like(y)  # p of the references, 0 elsewhere
    np.add.at(part, others, p[others])
    total = part.sum() + _FINER_EPSILON
    apart = y[of] - finer.weight * y
    numerator = part @ apart
    weights[of] = part.sum()
    weights += part * (apart - finer.weight) - p * numerator
    weights = weights / total - numerator / total**2 * (part - p * part.sum())
    return weights.astype(np.float32), float(numerator / total)


_FINER_EPSILON = 1e-9  #: the authors'


def _weights(target: Weights, file: _File) -> _Row:
    seeds = file.score.seeds
    if not seeds:
        raise TargetError(
            "The file takes no weights. Rewrite the model with them: "
            '`rewrite_onnx(..., score={"seed": True})` or `onnxcam rewrite --seed`.'
        )
    by_output = {seed.output: seed for seed in seeds}
    given = target.of
    if not (isinstance(given, Mapping) and given and all(k in by_output for k in given)):
        if len(seeds) > 1:
            raise TargetError(
                f"The file takes weights for {', '.join(map(repr, by_output))}: give {{output: weights}}."
            )
        given = {seeds[0].output: given}
    feeds = {by_output[k].input: _cotangent(w, by_output[k], file) for k, w in given.items()}
    return _Row(feeds=feeds, name=target.name or " + ".join(_sum(w, k) for k, w in given.items()))


def _sum(weights: Any, output: str) -> str:
    """Weights as people write them."""
    if isinstance(weights, Mapping):
        return " + ".join(f"{weight:g} {output}[{name}]" for name, weight in weights.items())
    return f"weighted {output}" if np.ndim(weights) else f"{weights:g} {output}"


def _cotangent(weights: Any, seed: Seed, file: _File) -> NDArray[np.float32]:
    """Weights for one image's entry of an output."""
    sizes = seed.shape[1:]
    if isinstance(weights, Mapping):
        known = sizes[0] if sizes and isinstance(sizes[0], int) else None
        if known is None and sizes:
            raise TargetError(f"How many numbers '{seed.output}' has is not known: give weights as an array.")
        table = np.zeros([known or 1, *[1] * (len(sizes) - 1)], np.float32)
        own = seed.output == file.score.output
        for name, weight in weights.items():
            table[_class_index(name, known or 1, file.labels if own else None)] = _numbers(weight)
        weights = table
    array = _numbers(weights)
    if array.ndim == 0 and all(n == 1 for n in sizes):
        array = array.reshape([1] * len(sizes))
    elif not sizes:
        array = array.reshape(array.shape[1:] if array.shape == (1,) else array.shape)
    if array.ndim != len(sizes) or any(
        isinstance(n, int) and n != m for n, m in zip(sizes, array.shape, strict=True)
    ):
        raise TargetError(
            f"The weights for '{seed.output}' have the shape {array.shape}; one image's entry has "
            f"{tuple(sizes)}."
        )
    if not np.isfinite(array).all():
        raise TargetError(f"The weights for '{seed.output}' are not finite.")
    return array


_KINDS: dict[type, Callable[[Any, _File], _Row]] = {
    Region: _region,
    Box: _box,
    Similar: _similar,
    Contrast: _contrast,
    Finer: _finer,
    Weights: _weights,
}


def _only(what: str, task: str, file: _File) -> None:
    if file.score.task != task:
        own = file.score.task
        raise TargetError(
            f"{what} is a target of {_article(task)}, and this file explains {_article(own)}. "
            f'Rewrite the model with `score={{"task": "{task}"}}` (`--task {task}`) if that is what it does.'
        )


def _article(task: str) -> str:
    return f"an {task}" if task[0] in "aeiou" else f"a {task}"


def _named(file: _File, index: int) -> str:
    labels = file.labels
    return labels[index] if labels is not None and index < len(labels) else f"class {index}"


def entries(entry: Any, i: int) -> Sequence[Any]:
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
        raise TargetError(
            f"Class index {index} is negative; write None for each image's top class (leave --target out)."
        )
    if classes is not None and index >= classes:
        there = "one class, 0" if classes == 1 else f"{classes} classes, 0 to {classes - 1}"
        raise TargetError(f"Class index {index} is out of range: the model has {there}.")


def _by_label(label: str, labels: Sequence[str] | None) -> int:
    if not labels:
        raise TargetError(
            f"The label {label!r} cannot be looked up: the file records no labels. Give the class index, or "
            "the labels: `--labels`, or labels= when the Explainer is opened."
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
