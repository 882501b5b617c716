"""What is found of one photo: both decisions, how much their reasons agree, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..recording import Recording
from . import decisions
from .agreement import Measure
from .classes import Classes
from .data import Pair, Row, Verdict
from .decisions import Said
from .explanations import Agreements

_CHUNK = 64  #: photos whose scores of all classes are held at once


@dataclass(frozen=True)
class Rule:
    """What a verdict goes by.

    Attributes:
        pair: of layers, whose maps are the reasons.
        measure: of their agreement.
        threshold: from which on the reasons are the same.
    """

    pair: Pair
    measure: Measure
    threshold: float

    def met(self, value: float) -> bool:
        """Whether maps that agree so much are the same reason; NaN never."""
        return self.measure.meets(value, self.threshold)


def rows(
    reference: Recording,
    candidate: Recording,
    at: NDArray[np.int64],
    known: Classes,
    found: Agreements,
    rule: Rule,
) -> list[Row]:
    """One per photo.

    Args:
        reference: a recording.
        candidate: another one.
        at: (N, 2) each photo's places in the two.
        known: the classes of both.
        found: of the N photos.
        rule: of the verdict.
    """
    first, second = (decisions.scale(side) for side in (reference, candidate))
    decisive = found.of(rule.pair, rule.measure).tolist()
    made: list[Row] = []
    for start in range(0, len(at), _CHUNK):
        part = at[start : start + _CHUNK]
        one = decisions.said(reference, part[:, 0], first, known, own=True)
        two = decisions.said(candidate, part[:, 1], second, known, own=False)
        same = _same_answer(one, two)
        for k, (i, j) in enumerate(part.tolist()):
            verdict: Verdict = "other answer"
            if same[k]:
                verdict = "same reason" if rule.met(decisive[start + k]) else "other reason"
            made.append(
                Row(
                    reference.names[i],
                    reference.sha256[i] or candidate.sha256[j],
                    one.decision(k, known.labels),
                    two.decision(k, known.labels),
                    same[k],
                    _top5(one, two, k),
                    _difference(one, two, k) if first.unit == second.unit else None,
                    found.row(start + k),
                    verdict,
                )
            )
    return made


def _same_answer(one: Said, two: Said) -> list[bool]:
    """Whether both explained one class, and would both have answered the same by themselves."""
    alike = (one.explained == two.explained) & (one.answers == two.answers) & (one.positive == two.positive)
    called = np.array([a == b for a, b in zip(one.labels, two.labels, strict=True)], bool)
    agreed: list[bool] = (alike & (called | (one.explained >= 0))).tolist()
    return agreed


def _top5(one: Said, two: Said, row: int) -> float | None:
    """The share of the one's best classes that are among the other's; None of no more than five."""
    if one.table is None or two.table is None or min(one.table.shape[1], two.table.shape[1]) <= decisions.TOP:
        return None
    if not one.top.size or not two.top.size:
        return None
    return len({*one.top[row].tolist()} & {*two.top[row].tolist()}) / decisions.TOP


def _difference(one: Said, two: Said, row: int) -> float | None:
    """Of the score of the class that the one explained."""
    which = int(one.explained[row])
    if two.table is not None and 0 <= which < two.table.shape[1]:
        return abs(float(two.table[row, which]) - float(one.scores[row]))
    same = which == int(two.explained[row]) and (which >= 0 or one.labels[row] == two.labels[row])
    return abs(float(two.scores[row]) - float(one.scores[row])) if same else None
