"""What the rows of a comparison say together: distributions, classes, and where the models part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from .agreement import Better
from .data import OfClass, Pair, Row, Statistic
from .explanations import Agreements
from .statistics import statistics
from .verdict import Rule

SCORE_DIFFERENCE = "score_difference"

#: What is told of a row besides the agreement of its maps, and which end is better.
TOLD: Mapping[str, Better] = {
    "same_answer": "higher",
    "same_reason": "higher",
    "top5": "higher",
    SCORE_DIFFERENCE: "lower",
}


def distributions(
    rows: Sequence[Row], found: Agreements, seed: int
) -> tuple[dict[str, Statistic], dict[str, dict[str, Statistic]]]:
    """Of what :data:`TOLD` lists, and {pair: {measure: of its agreement}}; without what no photo defines."""
    own = [
        [float(row.same_answer) for row in rows],
        [float(row.verdict == "same reason") for row in rows],
        [np.nan if row.top5 is None else row.top5 for row in rows],
        [np.nan if row.score_difference is None else row.score_difference for row in rows],
    ]
    table = np.concatenate([np.array(own).T, found.values.reshape(len(rows), -1)], axis=1)
    ends = [*TOLD.values(), *(one.better for _ in found.pairs for one in found.measures)]
    told = iter(statistics(table, ends, seed))
    first = {name: one for name in TOLD if (one := next(told)) is not None}
    by_layer = {
        pair.name: {m.name: one for m in found.measures if (one := next(told)) is not None}
        for pair in found.pairs
    }
    return first, by_layer


def by_class(rows: Sequence[Row], rule: Rule) -> tuple[OfClass, ...]:
    """Of the reference's classes, the least agreeing first."""
    groups: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.reference.class_id, row.reference.label].append(row)
    found = []
    for (_, label), some in groups.items():
        told = [v for row in some if (v := row.agreement[rule.pair.name][rule.measure.name]) is not None]
        same = [row.verdict == "same reason" for row in some]
        found.append(
            OfClass(
                label,
                len(some),
                float(np.mean([row.same_answer for row in some])),
                float(np.mean(same)),
                float(np.mean(told)) if told else None,
            )
        )
    sign = 1 if rule.measure.better == "higher" else -1

    def order(one: OfClass) -> tuple[float, float, str]:
        return one.same_reason, -np.inf if one.agreement is None else sign * one.agreement, one.label

    return tuple(sorted(found, key=order))


def parting(
    by_layer: Mapping[str, Mapping[str, Statistic]], pairs: Sequence[Pair], rule: Rule
) -> Pair | None:
    """The first pair, from the input on, whose mean misses the threshold, or is defined for no photo."""
    for pair in pairs:
        told = by_layer[pair.name].get(rule.measure.name)
        if told is None or not rule.met(told.mean):
            return pair
    return None
