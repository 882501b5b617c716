"""What a comparison finds, as data: rows, distributions, and the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..recording import Maker

Verdict: TypeAlias = Literal["same reason", "other reason", "other answer"]
VERDICTS: tuple[Verdict, ...] = ("same reason", "other reason", "other answer")


@dataclass(frozen=True)
class Decision:
    """What one side says of a photo.

    Attributes:
        class_id: in the reference's numbering; -1 for no class.
        label: what was explained.
        score: of it: a probability where the side's outputs give one, else as the model gives it.
        top: (label, score) of the best five classes, best first; empty where only one is known.
    """

    class_id: int
    label: str
    score: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Pair:
    """A layer of each side, which are compared."""

    reference: str
    candidate: str

    @property
    def name(self) -> str:
        """The layers' one name, or both."""
        return self.reference if self.reference == self.candidate else f"{self.reference} = {self.candidate}"


@dataclass(frozen=True)
class Row:
    """One photo.

    Attributes:
        image: its name.
        sha256: of its bytes; "" if unknown.
        reference: what the reference says.
        candidate: what the candidate says.
        same_answer: whether both explained the same class.
        top5: the share of the reference's five best classes that are among the candidate's; None if unknown.
        score_difference: |candidate - reference| of the score of the reference's class; None if unknown.
        agreement: {pair: {measure: value}}; None where a measure is undefined, as of a map without evidence.
        verdict: by the comparison's measure at its judged pair.
    """

    image: str
    sha256: str
    reference: Decision
    candidate: Decision
    same_answer: bool
    top5: float | None
    score_difference: float | None
    agreement: Mapping[str, Mapping[str, float | None]]
    verdict: Verdict


@dataclass(frozen=True)
class Statistic:
    """A distribution over photos.

    Attributes:
        count: photos where the value is defined.
        mean: of them.
        low, high: the mean's 95 % bootstrap interval (Efron's percentiles).
        median, p05, p95: quantiles.
        worst: the smallest value, or the largest where lower is better.
    """

    count: int
    mean: float
    low: float
    high: float
    median: float
    p05: float
    p95: float
    worst: float


@dataclass(frozen=True)
class Skipped:
    """A photo that is not compared, the side that lacks it (or both), and why."""

    image: str
    side: Literal["reference", "candidate", "both"]
    reason: str


@dataclass(frozen=True)
class OfClass:
    """What was found of the photos of one class of the reference's.

    Attributes:
        label: the class.
        count: its photos.
        same_answer: the share that the candidate gives the same answer for.
        same_reason: the share with the same answer for the same reason.
        agreement: the mean of the comparison's measure; None if it is defined for none.
    """

    label: str
    count: int
    same_answer: float
    same_reason: float
    agreement: float | None


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        reference, candidate: what made the recordings.
        rows: one per photo that both sides explained, in the reference's order.
        skipped: the others.
        pairs: the layers that were compared, from the input to the output.
        judged: the pair that verdicts go by.
        measure: whose agreement decides about the reason.
        threshold: of it.
        shares: of the photos: ``same_answer`` and ``same_reason``, and ``top5``, where it is known.
        statistics: {measure: its distribution at the judged pair}, and of ``score_difference``; without those
            that are defined for no photo.
        by_class: the reference's classes, the least agreeing first.
        by_layer: {pair: {measure: its distribution}}, likewise.
        parts: the first pair whose mean agreement misses the threshold; None if none does.
        seed: of the bootstrap.
        notes: sentences on what had to be assumed, as where a photo lies in an unknown input.
    """

    reference: Maker
    candidate: Maker
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    pairs: tuple[Pair, ...]
    judged: Pair
    measure: str
    threshold: float
    shares: Mapping[str, Statistic]
    statistics: Mapping[str, Statistic]
    by_class: tuple[OfClass, ...]
    by_layer: Mapping[str, Mapping[str, Statistic]]
    parts: Pair | None
    seed: int
    notes: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dataclasses.asdict(self)
