"""What each side answers: in the reference's classes, and in probabilities where there are some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..recording import Recording
from ..softmax import softmax
from .classes import Classes
from .data import Decision

TOP = 5  #: classes of a decision
#: What an activation can give, and how far numbers of few bits may be off.
RANGES = {"softmax": (0.0, 1.0), "sigmoid": (0.0, 1.0), "log_softmax": (-np.inf, 0.0)}
_ROUNDING = 0.05

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Scale:
    """How a side's numbers are told.

    Attributes:
        unit: what they are then; numbers of different units have no difference.
        of: outputs (N, K), or scores (N,) of one class each, to that.
    """

    unit: str
    of: Callable[[Array], Array]


def scale(side: Recording) -> Scale:
    """As probabilities where the outputs are a classifier's scores of several classes, else as they are."""
    maker, outputs = side.maker, side.outputs
    if maker.task != "classification":
        return Scale(maker.task, _same)
    if maker.activation == "log_softmax":
        return Scale("probability", np.exp)
    if maker.activation is not None or maker.probability:
        return Scale("probability", _same)
    if outputs is None or outputs.shape[1] == 1:
        return Scale("logit", _same)
    # Nobody says so of a file that has an activation of its own kind, but shares that add up to one are some.
    shares = (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=1e-3)
    return Scale("probability", _same if shares else softmax)


def check(side: Recording) -> None:
    """Refuse outputs that cannot be what they are said to be.

    Raises:
        InputError: an activation that is not known, or that does not give such numbers.
    """
    maker, outputs = side.maker, side.outputs
    if maker.activation is None or maker.task != "classification":
        return
    if maker.activation not in RANGES:
        raise InputError(
            f"The recording of '{maker.model}' says that {maker.activation!r} made its outputs, and known "
            f"are {', '.join(RANGES)}: write null for outputs that are logits."
        )
    low, high = RANGES[maker.activation]
    if outputs is None or not outputs.size:
        return
    found = float(outputs.min()), float(outputs.max())
    if found[0] < low - _ROUNDING or found[1] > high + _ROUNDING:
        raise InputError(
            f"The recording of '{maker.model}' says that {maker.activation} made its outputs, and they lie "
            f"between {found[0]:.4g} and {found[1]:.4g}: record what comes after it, or write null as their "
            "activation if they are logits."
        )


def _same(values: Array) -> Array:
    return values


@dataclass(frozen=True, eq=False)
class Said:
    """What a side says of n photos.

    Attributes:
        explained: (n,) int64, the class whose map was recorded, in the reference's numbering; -1 for none.
        answers: (n,) int64, the class with the highest score; the explained one where only that is known.
        positive: (n,) whether the probability of the only class is at least 1/2; True where there are more.
        labels: of what was explained.
        scores: (n,) of that.
        table: (n, K) of every class, in the reference's order; None if unknown.
        top: (n, 5) int64, the classes with the highest scores, the first of equal ones first; all of fewer,
            none where only one is known.
    """

    explained: NDArray[np.int64]
    answers: NDArray[np.int64]
    positive: NDArray[np.bool_]
    labels: list[str]
    scores: Array
    table: Array | None
    top: NDArray[np.int64]

    def decision(self, row: int, names: tuple[str, ...] | None) -> Decision:
        """Of one photo; ``names`` are those of the classes."""
        best: list[tuple[str, float]] = []
        if self.table is not None:
            best = [(name_of(c, names), float(self.table[row, c])) for c in self.top[row].tolist()]
        return Decision(int(self.explained[row]), self.labels[row], float(self.scores[row]), tuple(best))


def said(side: Recording, at: NDArray[np.int64], how: Scale, classes: Classes, own: bool) -> Said:
    """What a side says of some of its photos.

    Args:
        side: a recording.
        at: (n,) places of the photos in it.
        how: of the side.
        classes: of both sides.
        own: whether it is the reference, whose numbers stay.
    """
    own_ids = side.class_ids[at]
    explained = own_ids if own else classes.to_reference(own_ids)
    labels = [
        name_of(c, classes.labels) if side.labels[i] in ("", name_of(n, None)) else side.labels[i]
        for i, n, c in zip(at.tolist(), own_ids.tolist(), explained.tolist(), strict=True)
    ]
    rows, every = np.arange(len(at)), np.ones(len(at), bool)
    table = None if side.outputs is None else how.of(side.outputs[at].astype(np.float64))
    if table is not None and not own:
        table = classes.columns(table)
    if table is None or side.maker.task != "classification":
        scores, none = how.of(side.scores[at].astype(np.float64)), np.empty((len(at), 0), np.int64)
        return Said(explained, explained, every, labels, scores, table, none)
    scores = np.where(explained < 0, side.scores[at], table[rows, np.maximum(explained, 0)])
    # Of equal scores the explained one: which of them comes first is up to the file's own numbering.
    own_best = (explained >= 0) & (scores >= table.max(axis=1))
    answers = np.where(own_best, explained, table.argmax(axis=1))
    alone = table.shape[1] == 1
    positive = table[:, 0] >= 0.5 if alone and how.unit == "probability" else every
    top = np.argsort(-table, axis=1, kind="stable")[:, : 0 if alone else TOP]
    return Said(explained, answers, positive, labels, scores, table, top)


def name_of(number: int, names: tuple[str, ...] | None) -> str:
    """What a class is called."""
    if number < 0:
        return "no class"
    return names[number] if names is not None and number < len(names) else f"class {number}"
