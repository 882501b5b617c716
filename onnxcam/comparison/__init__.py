"""Two recordings of the same photos: do the models say the same, and for the same reason?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..kinds import is_finite, is_whole
from ..recording import Recording
from . import agreement, classes, decisions, explanations, layers, photos, summary, verdict
from .agreement import Measure
from .data import Comparison, Pair, Skipped
from .verdict import Rule

__all__ = ["MEASURES", "THRESHOLDS", "compare"]

MEASURES = ("pearson", "spearman", "cosine", "iou20", "peak", "js")  #: where no others are asked for
THRESHOLDS: Mapping[str, float] = {"pearson": 0.8}  #: of a verdict where none is named, by measure
LEAST = 2  #: photos


def compare(
    reference: Recording,
    candidate: Recording,
    *,
    pairs: Sequence[str | Pair | tuple[str, str]] | None = None,
    judge: str | None = None,
    measures: Sequence[str] = MEASURES,
    measure: str = "pearson",
    threshold: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Whether two models say the same of the same photos, and for the same reason.

    Args:
        reference: what one of them said.
        candidate: what the other said.
        pairs: of layers, as ``"a=b"``; None: see :func:`onnxcam.comparison.layers.paired`.
        judge: the pair that verdicts go by; None: the deepest.
        measures: of :func:`onnxcam.comparison.agreement.names`; that of the verdict is added.
        measure: whose agreement decides about the reason.
        threshold: from which on it is the same; None: that of :data:`THRESHOLDS`.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than two common photos, different methods, tasks or class lists, no common layer,
            outputs that are not what their recording says, or a threshold that the measure cannot have.
        MetricError: an unknown measure.
        MissingDependency: a measure needs a package of the extra ``[metrics]``.
    """
    wanted, deciding, limit = asked(measures, measure, threshold)
    if not is_whole(seed, 0):
        raise InputError(f"The seed of the bootstrap is a whole number of at least 0, not {seed!r}.")
    _refuse_different(reference, candidate)
    for side in (reference, candidate):
        decisions.check(side)
    at, skipped = photos.matched(reference, candidate)
    _refuse_few(len(at), skipped)
    counts = _count(reference), _count(candidate)
    known = classes.matched(reference.maker.labels, candidate.maker.labels, counts)
    found = layers.paired(*_places(reference, candidate), pairs)
    rule = Rule(layers.judged(found, judge), deciding, limit)
    agreed = explanations.agreements(reference, candidate, at, found, wanted)
    if agreed.apart:
        skipped += tuple(Skipped(reference.names[at[k, 0]], "both", why) for k, why in agreed.apart.items())
        at = np.delete(at, list(agreed.apart), axis=0)
        agreed = agreed.without_apart()
        _refuse_few(len(at), skipped)
    rows = verdict.rows(reference, candidate, at, known, agreed, rule)
    told, by_layer = summary.distributions(rows, agreed, int(seed))
    differences = {summary.SCORE_DIFFERENCE: told.pop(summary.SCORE_DIFFERENCE, None)}
    return Comparison(
        reference.maker,
        candidate.maker,
        tuple(rows),
        skipped,
        found,
        rule.pair,
        measure,
        limit,
        told,
        by_layer[rule.pair.name] | {name: one for name, one in differences.items() if one is not None},
        summary.by_class(rows, rule),
        by_layer,
        summary.parting(by_layer, found, rule),
        int(seed),
        _notes(reference, candidate, known.note, found, pairs),
    )


def asked(
    measures: Sequence[str], measure: str, threshold: float | None
) -> tuple[list[Measure], Measure, float]:
    """The measures, the one that decides, and its threshold, as :func:`compare` takes them.

    Raises:
        MetricError: an unknown measure.
        InputError: a threshold that the measure cannot have, or none and it has no default.
    """
    deciding = agreement.get(measure)
    wanted = [agreement.get(name) for name in dict.fromkeys((*measures, measure))]
    return wanted, deciding, _threshold(deciding, threshold)


def _threshold(measure: Measure, threshold: float | None) -> float:
    if threshold is None:
        if measure.name not in THRESHOLDS:
            raise InputError(
                f"From which {measure.name} on a reason is the same is for you to say (`--threshold`): "
                f"between {measure.low:g} and {measure.high:g}, {measure.better} is better."
            )
        return THRESHOLDS[measure.name]
    if not is_finite(threshold) or not measure.low <= threshold <= measure.high:
        raise InputError(
            f"The threshold of {measure.name} is a number between {measure.low:g} and {measure.high:g}, "
            f"not {threshold!r}."
        )
    return float(threshold)


def _refuse_different(reference: Recording, candidate: Recording) -> None:
    for what, again in (("method", "--method"), ("task", "--score")):
        one, two = (getattr(side.maker, what) for side in (reference, candidate))
        if one != two:
            raise InputError(
                f"The {what}s differ: the reference was explained by {one!r} and the candidate by {two!r}. "
                "What they look at can be compared only if they are asked the same: record one again "
                f"(`{again}`)."
            )


def _refuse_few(count: int, skipped: Sequence[Skipped]) -> None:
    if count >= LEAST:
        return
    told = ""
    if skipped:
        first = skipped[0]
        told = f" {len(skipped)} are skipped; the first is '{first.image}' ({first.side}): {first.reason}."
    there = "is 1" if count else "are none"
    raise InputError(
        f"A comparison needs at least {LEAST} photos that both sides explain, and there {there}.{told} "
        "Record both sides of the same photos."
    )


def _count(side: Recording) -> int | None:
    return None if side.outputs is None else side.outputs.shape[1]


def _places(reference: Recording, candidate: Recording) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of each side's layers the grid; where both inputs are known, the size of a cell there."""
    sizes = [
        None if side.maker.preprocess is None else side.maker.preprocess.size
        for side in (reference, candidate)
    ]

    def place(maps: NDArray[np.float32], size: tuple[int, int] | None) -> Any:
        grid = maps.shape[1:]
        if size is None or None in sizes:
            return grid
        h, w = (round(n / cells) for n, cells in zip(size, grid, strict=True))
        return f"cells of {h}×{w} pixels"

    one, two = (
        {name: place(side.maps[name], size) for name in side.maker.layers}
        for side, size in zip((reference, candidate), sizes, strict=True)
    )
    return one, two


def _notes(
    reference: Recording, candidate: Recording, known: str, pairs: Sequence[Pair], named: Any
) -> tuple[str, ...]:
    """What had to be assumed, and what makes numbers less comparable."""
    notes = [known] if known else []
    sides = {"reference": reference, "candidate": candidate}
    for name, side in sides.items():
        if side.maker.preprocess is None:
            notes.append(
                f"The {name} does not say how a photo becomes its input: the whole photo is taken to fill it."
            )
    if not named and all(pair.reference != pair.candidate for pair in pairs):
        places, others = _places(reference, candidate)
        if all(places[pair.reference] == others[pair.candidate] for pair in pairs):
            how = "they are paired by their grids and places"
        else:
            how = "each side's only one is compared with the other's, though their grids differ"
        notes.append(f"No layer has the same name on both sides: {how}.")
    one, two = reference.maker, candidate.maker
    if one.probability != two.probability:
        told = {True: "the probability", False: "the logit"}
        explained = f"The reference explains {told[one.probability]} of the class, the candidate "
        notes.append(f"{explained}{told[two.probability]}.")
    units = [decisions.scale(side).unit for side in sides.values()]
    if units[0] != units[1]:
        notes.append(f"The scores have no difference: one side gives a {units[0]}, the other a {units[1]}.")
    elif units[0] == "logit" and _count(reference) == 1:
        notes.append(
            "The one score of each side is of unknown scale: whether the answer is yes or no is not compared."
        )
    return tuple(notes)
