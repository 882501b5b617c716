"""Which class of the candidate is which of the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Labels: TypeAlias = Sequence[str]
_SHOWN = 5  #: names in a message


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of two sides.

    Attributes:
        order: (K,) int64, for each class of the candidate its number in the reference; None: all numbers are
            the same on both sides, however many there are.
        labels: the reference's, or the candidate's where the reference has none; None if unknown.
        note: what had to be assumed; "" if nothing.
    """

    order: NDArray[np.int64] | None
    labels: tuple[str, ...] | None
    note: str = ""

    def to_reference(self, class_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The candidate's class numbers as the reference's; -1, no class, stays.

        Raises:
            InputError: a number for which there is no class.
        """
        if self.order is None:
            return class_ids
        if class_ids.max(initial=-1) >= len(self.order):
            raise InputError(
                f"The candidate explains class {class_ids.max()}, and has labels for {len(self.order)} "
                "classes. Record it again with labels for all of its classes."
            )
        return np.where(class_ids < 0, -1, self.order[np.maximum(class_ids, 0)])

    def columns(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """The candidate's scores (N, K) in the order of the reference's classes."""
        return table if self.order is None else table[:, np.argsort(self.order)]


def matched(
    reference: Labels | None, candidate: Labels | None, counts: tuple[int | None, int | None] = (None, None)
) -> Classes:
    """Match the classes: by their labels where both sides have some, else by their numbers.

    Labels are compared as they are written.

    Args:
        reference: one label per class; None if unknown.
        candidate: likewise.
        counts: the number of classes of each side, where it is known without labels.

    Raises:
        InputError: the lists differ in more than their order, or are not of the same length, or their order
            differs and a label is there twice.
    """
    if reference is None or candidate is None:
        return _by_number(reference, candidate, counts)
    reference, candidate = tuple(reference), tuple(candidate)
    if reference == candidate:
        return Classes(None, reference)
    if Counter(reference) != Counter(candidate):
        raise InputError(_difference(reference, candidate))
    twice = [label for label, count in Counter(reference).items() if count > 1]
    if twice:
        raise InputError(
            f"The two sides have the same classes in different orders, and {_told(twice)} {_is_are(twice)} "
            "there more than once, so that it is not known which is which. Give the classes labels of their "
            "own (`--labels`), or the same order."
        )
    numbers = {label: number for number, label in enumerate(reference)}
    order = np.array([numbers[label] for label in candidate], np.int64)
    return Classes(order, reference, "The classes are in another order on each side: matched by label.")


def _by_number(
    reference: Labels | None, candidate: Labels | None, counts: tuple[int | None, int | None]
) -> Classes:
    known = [
        count if labels is None else len(labels)
        for labels, count in zip((reference, candidate), counts, strict=True)
    ]
    if None not in known and known[0] != known[1]:
        lacking = "the reference has no" if reference is None else "the candidate has no"
        if reference is None and candidate is None:
            lacking = "neither has"
        raise InputError(
            f"The reference has {known[0]} classes and the candidate {known[1]}, and {lacking} "
            "labels to match them by. Give them (`--labels`), or compare models of the same classes."
        )
    labels = reference if reference is not None else candidate
    if labels is None:
        return Classes(None, None)
    side = "reference" if reference is None else "candidate"
    note = f"The {side} has no labels: its classes are taken to be the other side's, by number."
    return Classes(None, tuple(labels), note)


def _difference(reference: tuple[str, ...], candidate: tuple[str, ...]) -> str:
    """What the two lists do not have in common, and what to do."""
    missing = list((Counter(reference) - Counter(candidate)).elements())
    added = list((Counter(candidate) - Counter(reference)).elements())
    told = []
    if missing:
        told.append(f"the candidate lacks {_told(missing)}")
    if added:
        told.append(f"the reference lacks {_told(added)}")
    alike = {_plain(label): label for label in added}
    near = [(label, alike[_plain(label)]) for label in missing if _plain(label) in alike]
    hint = ""
    if near:
        one, other = near[0]
        hint = (
            f" {one!r} and {other!r} differ in case or spaces alone: labels are compared as they are written."
        )
    return (
        f"The class lists differ ({len(reference)} and {len(candidate)} classes): {'; '.join(told)}.{hint} "
        "Give both sides the same labels (`--labels`), or compare models of the same classes."
    )


def _plain(label: str) -> str:
    return "".join(label.casefold().replace("_", " ").split())


def _told(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(map(repr, labels[:_SHOWN])) + more


def _is_are(labels: Sequence[str]) -> str:
    return "is" if len(labels) == 1 else "are"
