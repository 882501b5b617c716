"""Which photo of the one recording is which of the other."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray

from ..recording import Recording
from .data import Skipped


def matched(reference: Recording, candidate: Recording) -> tuple[NDArray[np.int64], tuple[Skipped, ...]]:
    """The photos that both sides explained, and the others with the reason.

    Photos are the same if their bytes are, under whatever name; of several equal ones those of one name
    belong together first. Where a side does not know the bytes' hash, the name decides.

    Returns:
        (N, 2) int64, a photo's places in both recordings, in the reference's order; and what is left.
    """
    partner = _partners(reference, candidate)
    found, skipped = [], []
    for i, j in sorted(partner.items()):
        one, two = reference.sizes[i].tolist(), candidate.sizes[j].tolist()
        if one == two:
            found.append((i, j))
            continue
        reason = (
            f"it has {one[1]}×{one[0]} pixels in the reference and {two[1]}×{two[0]} in the candidate; both "
            "must say its size as it is shown, after the rotation that its EXIF data ask for"
        )
        skipped.append(Skipped(reference.names[i], "both", reason))
    return np.array(found, np.int64).reshape(-1, 2), (*skipped, *_left(reference, candidate, partner))


def _partners(reference: Recording, candidate: Recording) -> dict[int, int]:
    """{place in the reference: place in the candidate} of the same photos."""
    found: dict[int, int] = {}

    def match(key: Callable[[Recording, int], Hashable]) -> None:
        taken = set(found.values())
        waiting: dict[Hashable, deque[int]] = defaultdict(deque)
        for j in range(len(candidate)):
            if j not in taken and (told := key(candidate, j)) is not None:
                waiting[told].append(j)
        for i in range(len(reference)):
            if i not in found and (told := key(reference, i)) in waiting and waiting[told]:
                found[i] = waiting[told].popleft()

    match(lambda side, at: (side.sha256[at], side.names[at]) if side.sha256[at] else None)
    match(lambda side, at: side.sha256[at] or None)
    places, taken = {name: j for j, name in enumerate(candidate.names)}, set(found.values())
    for i, name in enumerate(reference.names):
        j = places.get(name)
        if i in found or j is None or j in taken or (reference.sha256[i] and candidate.sha256[j]):
            continue
        found[i] = j
    return found


def _left(reference: Recording, candidate: Recording, partner: dict[int, int]) -> list[Skipped]:
    """The photos without a partner, and those that a side skipped itself."""
    why = {"reference": dict(reference.skipped), "candidate": dict(candidate.skipped)}
    used = set(partner.values())
    alone = [name for i, name in enumerate(reference.names) if i not in partner]
    others = [name for j, name in enumerate(candidate.names) if j not in used]
    found: dict[str, Skipped] = {}
    for name in sorted({*alone} & {*others}, key=alone.index):
        reason = "the photos of this name are different files: their hashes differ"
        found[name] = Skipped(name, "both", reason)
    for name in alone:
        reason = why["candidate"].get(name, "it is not among the candidate's photos")
        found.setdefault(name, Skipped(name, "candidate", reason))
    for name in others:
        reason = why["reference"].get(name, "it is not among the reference's photos")
        found.setdefault(name, Skipped(name, "reference", reason))
    for name, reason in why["reference"].items():
        both = name in why["candidate"]
        found.setdefault(name, Skipped(name, "both" if both else "reference", reason))
    for name, reason in why["candidate"].items():
        found.setdefault(name, Skipped(name, "candidate", reason))
    return list(found.values())
