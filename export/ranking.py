"""What a search for the culprits of a quantisation finds, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .switches import Tensor


@dataclass(frozen=True)
class Effect:
    """What a setting of the switches does to the explanations.

    Attributes:
        mean: of the measure over the photos, against the reference. Where a map has no contrast and the
            reference's has, they do not agree at all: that counts as 0, or as the worst value of a measure
            where lower is better.
        worst: of one photo.
        photo: which one that is.
        same_answer: the share of the photos that get the reference's class.
    """

    mean: float
    worst: float
    photo: str
    same_answer: float


@dataclass(frozen=True)
class Culprit:
    """A tensor, and what its quantisation does.

    Attributes:
        tensor: which.
        alone: it alone is quantised.
        without: all others are; None if it was not tried.
    """

    tensor: Tensor
    alone: Effect
    without: Effect | None


@dataclass(frozen=True)
class Check:
    """Whether the file with switches is the two files that it stands for.

    Each is the largest difference of the outputs, over their largest entry.

    Attributes:
        off: all switches off, from the reference.
        on: all on, from the quantised file in float, as its nodes say (optimisation disabled). Sums in
            another order may carry a number over the edge of a step.
        kernels: the quantised file as ONNX Runtime runs it, from itself in float: what its integer kernels
            add, for which no tensor is to blame.
    """

    off: float
    on: float
    kernels: float

    @property
    def sound(self) -> bool:
        """Whether the quantised file is so near that what is found of the switches holds for it."""
        return self.on <= 0.05


@dataclass(frozen=True)
class Advice:
    """What to leave in float.

    Attributes:
        tensors: no fewer of them will do: each was tried, with the others of them in float, and is needed.
        readers: the nodes that read them, which quantisers take as nodes to exclude.
        effect: all others quantised.
        reached: whether its mean meets the threshold.
    """

    tensors: tuple[str, ...]
    readers: tuple[str, ...]
    effect: Effect
    reached: bool


@dataclass(frozen=True)
class Ranking:
    """What was found.

    Attributes:
        reference, quantised: the files' names.
        layer: that is explained, as the reference calls it.
        method: by which.
        measure: of agreement.
        better: "higher" or "lower".
        threshold: of its mean, for :attr:`advice`.
        photos: that were explained.
        skipped: (photo, why not).
        culprits: the one that moves the explanation most first.
        same: quantised weights that stand for the reference's very numbers, and move nothing.
        everything: all of them quantised.
        advice: what to leave in float.
        check: of the file that all this was computed by.
        runs: how many photos were explained, counted once for each setting.
        seconds: what it took.
    """

    reference: str
    quantised: str
    layer: str
    method: str
    measure: str
    better: str
    threshold: float
    photos: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    culprits: tuple[Culprit, ...]
    same: tuple[str, ...]
    everything: Effect
    advice: Advice
    check: Check
    runs: int
    seconds: float

    def data(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dataclasses.asdict(self)
