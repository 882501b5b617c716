"""How much the maps of two recordings agree: every photo, every pair of layers, every measure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import methods
from ..errors import InputError, MethodError
from ..recording import Recording
from .agreement import Maps, Measure, agreement
from .alignment import common, geometry
from .data import Pair

_CHUNK = 512  #: photos whose maps are widened to float64 at once


@dataclass(frozen=True, eq=False)
class Agreements:
    """Of N photos.

    Attributes:
        pairs: of layers.
        measures: that were taken.
        values: (N, pairs, measures) float64, NaN where undefined.
        apart: {place among the N: why} of the photos whose maps do not meet.
    """

    pairs: tuple[Pair, ...]
    measures: tuple[Measure, ...]
    values: NDArray[np.float64]
    apart: dict[int, str]

    def of(self, pair: Pair, measure: Measure) -> NDArray[np.float64]:
        """(N,) of one pair by one measure."""
        return self.values[:, self.pairs.index(pair), self.measures.index(measure)]

    def row(self, photo: int) -> dict[str, dict[str, float | None]]:
        """{pair: {measure: value}} of one photo."""
        return {
            pair.name: {
                one.name: None if np.isnan(value) else value
                for one, value in zip(self.measures, told, strict=True)
            }
            for pair, told in zip(self.pairs, self.values[photo].tolist(), strict=True)
        }

    def without_apart(self) -> Agreements:
        """Of the photos whose maps meet."""
        kept = [photo for photo in range(len(self.values)) if photo not in self.apart]
        return Agreements(self.pairs, self.measures, self.values[kept], {})


def agreements(
    reference: Recording,
    candidate: Recording,
    at: NDArray[np.int64],
    pairs: tuple[Pair, ...],
    measures: Sequence[Measure],
) -> Agreements:
    """Take every measure of every pair of maps.

    Maps are rectified as their method has it; those of a method that is another program's stay as they are.

    Args:
        reference: a recording.
        candidate: by the same method.
        at: (N, 2) each photo's places in the two.
        pairs: of their layers.
        measures: to be taken.

    Raises:
        MissingDependency: a measure needs a package of the extra ``[metrics]``.
    """
    names = [one.name for one in measures]
    values = np.full((len(at), len(pairs), len(names)), np.nan)
    apart: dict[int, str] = {}
    rectify = rectifies(reference.maker.method)
    for start in range(0, len(at), _CHUNK):
        part = range(start, min(start + _CHUNK, len(at)))
        for p, pair in enumerate(pairs):
            grids: dict[tuple[int, ...], list[tuple[int, tuple[Any, ...]]]] = defaultdict(list)
            for row in part:
                try:
                    i, j = at[row].tolist()
                    aligned = _aligned(reference, candidate, i, j, pair, rectify)
                except InputError as e:
                    apart[row] = str(e).rstrip(".")
                else:
                    grids[aligned[0].shape].append((row, aligned))
            for alike in grids.values():
                stacked = (np.stack(some) for some in zip(*(made for _, made in alike), strict=True))
                found = agreement(Maps(*stacked), names)
                values[[row for row, _ in alike], p] = np.stack([found[name] for name in names], axis=1)
    return Agreements(pairs, tuple(measures), values, apart)


def _aligned(
    reference: Recording, candidate: Recording, i: int, j: int, pair: Pair, rectify: bool
) -> tuple[NDArray[Any], ...]:
    """The two maps of a photo on their common grid, and the places of its rows and columns."""
    height, width = reference.sizes[i].tolist()
    one, two = reference.maps[pair.reference][i], candidate.maps[pair.candidate][j]
    first, second = (geometry((height, width), side.maker.preprocess) for side in (reference, candidate))
    met = common(first, one.shape, second, two.shape)
    if rectify:
        one, two = np.maximum(one, 0), np.maximum(two, 0)
    return (*met.align(one, two), met.ys, met.xs)


def rectifies(method: str) -> bool:
    """Whether evidence below zero is dropped; not that of a method that is another program's own."""
    try:
        return methods.get(method).rectify
    except MethodError:
        return False
