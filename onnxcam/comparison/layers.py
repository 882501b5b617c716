"""Which layer of the candidate is compared with which of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import InputError, nearest
from .data import Pair

Grids: TypeAlias = Mapping[
    str, Any
]  #: {layer: what layers of the same place have in common}, shallow to deep


def paired(
    reference: Grids, candidate: Grids, named: Sequence[str | Pair | tuple[str, str]] | None = None
) -> tuple[Pair, ...]:
    """Pairs of layers, from the input to the output.

    As the user says; else by name, if both sides have any layer of the same name; else by what the layers
    have in common, from the output backwards: the longest common sequence, and of several the one nearest
    the output. A side's only layer belongs to the other side's only one.

    Args:
        reference: its layers and of each the size of the grid, or what part of the input one cell is.
        candidate: likewise.
        named: the user's: ``"a=b"``, ``"a"`` where the names are equal, a Pair or two names.

    Raises:
        InputError: an unknown layer, or none in common; both lists are given.
    """
    if named:
        found = [_named(one, reference, candidate) for one in named]
    else:
        found = [Pair(name, name) for name in reference if name in candidate]
        found = found or _alike(reference, candidate)
        if not found and len(reference) == len(candidate) == 1:  # there is nothing to choose
            found = [Pair(*reference, *candidate)]
    if not found:
        raise InputError(
            f"The two sides have no layer in common. The reference has {_listed(reference)}; the candidate "
            f"has {_listed(candidate)}. Say which belong together (`--pair REFERENCE=CANDIDATE`)."
        )
    depth = {name: i for i, name in enumerate(reference)}
    return tuple(sorted(dict.fromkeys(found), key=lambda pair: depth[pair.reference]))


def judged(pairs: Sequence[Pair], name: str | None = None) -> Pair:
    """The pair that verdicts go by: the deepest unless it is named, by a layer of the reference or as a pair.

    Raises:
        InputError: no such pair.
    """
    if name is None:
        return pairs[-1]
    for pair in pairs:
        if name in (pair.name, pair.reference, f"{pair.reference}={pair.candidate}"):
            return pair
    known = [pair.name for pair in pairs]
    raise InputError(
        f"The pair of layers {name!r}, to be judged by, is not compared.{nearest(name, known)} Compared are "
        f"{', '.join(map(repr, known))}."
    )


def _named(one: str | Pair | tuple[str, str], reference: Grids, candidate: Grids) -> Pair:
    if isinstance(one, Pair):
        splits = [(one.reference, one.candidate)]
    elif isinstance(one, str):  # a layer's name may have "=" in it
        cuts = [i for i, letter in enumerate(one) if letter == "="]
        splits = [(one, one), *((one[:i].strip(), one[i + 1 :].strip()) for i in cuts)]
    else:
        splits = [(str(one[0]), str(one[1]))]
    for first, second in splits:
        if first in reference and second in candidate:
            return Pair(first, second)
    first, second = splits[-1]
    side, name, known = (
        ("reference", first, reference) if first not in reference else ("candidate", second, candidate)
    )
    raise InputError(
        f"The {side} has no layer {name!r}.{nearest(name, list(known))} It has {_listed(known)}. A pair is "
        "written REFERENCE=CANDIDATE."
    )


def _alike(reference: Grids, candidate: Grids) -> list[Pair]:
    """The longest common sequence of the layers by their grids; of several that whose pairs are deepest."""
    names, others = list(reference), list(candidate)
    best: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, name in enumerate(names):
        for j, other in enumerate(others):
            ways = [best.get((i, j - 1), []), best.get((i - 1, j), [])]
            if reference[name] == candidate[other]:
                ways.append([*best.get((i - 1, j - 1), []), (i, j)])
            best[i, j] = max(ways, key=lambda way: (len(way), way[::-1]))
    return [Pair(names[i], others[j]) for i, j in best.get((len(names) - 1, len(others) - 1), [])]


def _listed(layers: Grids) -> str:
    return ", ".join(f"{name!r} ({_told(grid)})" for name, grid in layers.items()) or "none"


def _told(grid: Any) -> str:
    return "×".join(map(str, grid)) if isinstance(grid, tuple) else str(grid)
