"""What the axes of a tensor count, and what reshapes, cuts and products make of it.

An axis is a product of atoms, the slowest first: a window partition of (N, H, W, C) has the axes
(N, y8, x8), (y7, x7), (C), where the rows y are an outer atom of stride 7 and an inner one of stride 1.
Followed so, a grid survives windows, heads, rows of rank 2 and space-to-depth, and can be put together again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..grids import LETTERS
from .gradients.builder import Dims

LOST = "?"  #: cells that have been mixed, moved or joined, so that they are nobody's any more


@dataclass(frozen=True)
class Atom:
    """Part of an axis.

    Attributes:
        of: N, C, a letter of :data:`onnxcam.grids.LETTERS`, or :data:`LOST`.
        size: None where unknown.
        stride: of a grid's letter, how many of its cells one step spans.
    """

    of: str
    size: int | None
    stride: int = 1


@dataclass(frozen=True)
class Tokens:
    """A grid's cells with other tokens (class, register, distillation, detection) around them.

    Attributes:
        before, after: how many others.
        cells: the grid's atoms.
    """

    before: int
    cells: tuple[Atom, ...]
    after: int

    @property
    def size(self) -> int | None:
        """Of the axis; None where the grid's is unknown."""
        cells = size_of(self.cells)
        return None if cells is None else self.before + cells + self.after


Axis: TypeAlias = tuple[Atom | Tokens, ...]
Axes: TypeAlias = tuple[Axis, ...]


def atom(of: str, size: int | str | None, stride: int = 1) -> Axis:
    """An axis of one atom."""
    return (Atom(of, size if isinstance(size, int) else None, stride),)


def lettered(of: str, dims: Dims) -> Axes:
    """An axis of one atom for each letter, with its size."""
    return tuple(atom(letter, d) for letter, d in zip(of, dims, strict=True))


def size_of(axis: Iterable[Atom | Tokens]) -> int | None:
    """The product of the atoms' sizes; None if one is unknown."""
    sizes = [a.size for a in axis]
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def atoms(axes: Iterable[Axis]) -> list[Atom]:
    """All atoms, those of tokens included, in their order."""
    return [b for axis in axes for a in axis for b in (a.cells if isinstance(a, Tokens) else (a,))]


def letters(axes: Iterable[Axis]) -> set[str]:
    """The letters of the grid that occur."""
    return {a.of for a in atoms(axes)} & set(LETTERS)


def lost(axis: Axis, size: int | str | None) -> Axis:
    """An axis whose cells, or images, are nobody's; channels stay channels."""
    return atom("C" if all(a.of == "C" for a in atoms([axis])) else LOST, size)


def agreed(several: Sequence[Axes], grid: str = LETTERS) -> Axes:
    """The axes of tensors that are joined place by place: those that know most of the grid.

    Where two have a grid along an axis, but not the same, its cells are nobody's.

    Args:
        several: the axes of each.
        grid: which atoms must agree; with :data:`LOST`, what is nobody's in one is so in the result.
    """
    best = max(several, key=lambda axes: len(letters(axes)))

    def places(axis: Axis) -> set[tuple[str, int]]:
        return {(a.of, a.stride) for a in atoms([axis]) if a.of in grid and a.size != 1}

    # What one of them does not know of an axis is no contradiction.
    return tuple(
        lost(axis, size_of(axis))
        if places(axis) and any(not places(axes[k]) <= places(axis) for axes in several)
        else axis
        for k, axis in enumerate(best)
    )


def reshaped(axes: Axes, source: Dims, dims: Dims) -> Axes | None:
    """The axes after a Reshape, Flatten, Squeeze or Unsqueeze; None where they cannot be known.

    Args:
        axes: before.
        source: the shape before.
        dims: the shape after; beside its leading axes at most one size may be unknown.
    """
    if 0 in source or 0 in dims:
        return None
    same = 0
    while same < min(len(source), len(dims)) and source[same] == dims[same] is not None:
        same += 1
    pool = [a for axis in axes[same:] for a in axis]
    left: list[Axis] = list(axes[:same])
    right: list[Axis] = []
    rest = list(dims[same:])
    while rest and isinstance(size := rest[-1], int):
        if (taken := _take(pool, size, -1)) is None:
            return None
        right.insert(0, taken)
        rest.pop()
    while rest and isinstance(size := rest[0], int):
        if (taken := _take(pool, size, 0)) is None:
            return None
        left.append(taken)
        rest.pop(0)
    if len(rest) > 1:
        return None
    if rest:
        found = [*left, tuple(pool), *right]
    elif all(a.size == 1 for a in pool):
        found = [*left, *right]
        found[0] = (*pool, *found[0])  # a batch of one
    else:
        return None
    return tuple(map(_tidy, found))


def _tidy(axis: Axis) -> Axis:
    """An axis whose neighbouring atoms are one again where they were one before."""
    found: list[Atom | Tokens] = []
    for a in axis:
        last = found[-1] if found else None
        if isinstance(a, Atom) and isinstance(last, Atom) and a.of == last.of != "N":
            whole = size_of((last, a))
            follows = a.of not in LETTERS or (a.size is not None and last.stride == a.stride * a.size)
            if whole is not None and follows:
                found[-1] = Atom(a.of, whole, a.stride)
                continue
        found.append(a)
    return tuple(a for a in found if a.size != 1 or not isinstance(a, Atom) or a.of not in ("C", LOST))


def _take(pool: list[Atom | Tokens], size: int, end: int) -> Axis | None:
    """Atoms of a total size off one end (0 or -1) of a list, the last of them split where it is too large."""
    if size == 1:
        return (pool.pop(end),) if pool and pool[end].size == 1 else ()
    taken: Axis = ()
    while size > 1:
        if not pool or (has := (first := pool.pop(end)).size) is None:
            return None
        if size % has and not (isinstance(first, Atom) and has % size == 0):
            return None
        if size % has:
            assert isinstance(first, Atom)
            inner = has // size if end == 0 else size
            stride = inner if first.of in LETTERS else 1
            outer_half = Atom(first.of, has // inner, first.stride * stride)
            inner_half = Atom(first.of, inner, first.stride)
            first, remaining = (outer_half, inner_half) if end == 0 else (inner_half, outer_half)
            pool.insert(0 if end == 0 else len(pool), remaining)
            has = size
        size //= has
        taken = (*taken, first) if end == 0 else (first, *taken)
    return taken


def mixed(kept: Sequence[Axis], gone: Sequence[Axis]) -> Axes:
    """The axes that remain where others are summed over.

    A grid whose inner atoms went into channels is a coarser one; inner atoms without their outer ones are
    nobody's.
    """
    outermost = {
        letter: max(a.stride for a in atoms(gone) if a.of == letter)
        for letter in letters(gone) & letters(kept)
    }

    def remains(a: Atom) -> Atom:
        inner = a.of in outermost and a.stride < outermost[a.of]
        return dataclasses.replace(a, of=LOST) if inner else a

    return tuple(
        tuple(
            dataclasses.replace(a, cells=tuple(map(remains, a.cells)))
            if isinstance(a, Tokens)
            else remains(a)
            for a in axis
        )
        for axis in kept
    )


@dataclass(frozen=True)
class Term:
    """An operand of a sum of products.

    Attributes:
        labels: one character per axis.
        axes: None where unknown.
        dims: its shape.
        constant: whether it is a weight.
    """

    labels: str
    axes: Axes | None
    dims: Dims
    constant: bool


def contracted(terms: Sequence[Term], labels: str, dims: Dims) -> Axes | None:
    """The axes of an Einsum's result; None where no operand's are known.

    The first operand that keeps a grid gives the result's: in attention, the queries. What another operand
    has of that grid are not cells of the result.
    """
    if all(t.axes is None for t in terms):
        return None
    kept: list[dict[str, Axis]] = []
    taken: set[str] = set()
    for t in terms:
        own: dict[str, Axis] = {}
        if t.axes is not None:
            pairs = list(zip(t.labels, t.axes, strict=True))
            stays = [p for p in pairs if p[0] in labels]
            after = mixed([a for _, a in stays], [a for label, a in pairs if label not in labels])
            fits = dict(zip(t.labels, t.dims, strict=True))
            for (label, _), axis in zip(stays, after, strict=True):
                if fits[label] == 1 and dims[labels.index(label)] != 1:
                    continue  # broadcast
                foreign = taken & letters([axis]) and not any(label in k for k in kept)
                own[label] = atom(LOST, size_of(axis)) if foreign else axis
            taken |= letters(own.values())
        kept.append(own)
    found: list[Axis] = []
    for label, d in zip(labels, dims, strict=True):
        known = [k[label] for k in kept if label in k]
        weight = any(t.constant and label in t.labels for t in terms)
        found.append(known[0] if known else atom("C" if weight else LOST, d))
    return tuple(found)


def resized(axis: Axis, before: int | str | None, after: int | str | None) -> Axis:
    """An axis whose places stay in their order but of which there are more or fewer.

    Cells of the same size stay what they are; a single letter becomes a finer or coarser one.
    """
    if before is not None and before == after:
        return axis
    found = [a for a in axis if isinstance(a, Atom)]
    if len(found) == len(axis) and len(axis) and found[0].of in LETTERS:
        inner = {a.of for a in found[1:]} - {"C", found[0].of}
        if not inner:  # its stride still says where it stands among its letter's other atoms
            return atom(found[0].of, after, min(a.stride for a in found if a.of == found[0].of))
    return lost(axis, after)


def cut(axis: Axis, before: int | str | None, after: int | str | None, front: int, back: int) -> Axis:
    """An axis of which some places were removed at its ends, or added where the counts are negative."""
    if front == 0 == back:
        return axis
    if not letters([axis]):
        return lost(axis, after)
    single = len(axis) == 1
    if single and isinstance(axis[0], Tokens):
        t = axis[0]
        if t.before >= front and t.after >= back:
            left = dataclasses.replace(t, before=t.before - front, after=t.after - back)
            return (left,) if left.before or left.after else left.cells
        return lost(axis, after)
    few = not isinstance(before, int) or 4 * abs(front + back) <= before
    if single and abs(front - back) <= 1 and few:
        return resized(axis, before, after)  # a border: off centre by half a cell at most
    if front <= 0 and back <= 0 and len(letters([axis])) > 1 and is_cells(axis):
        return (Tokens(-front, tuple(atoms([axis])), -back),)
    return lost(axis, after)


def is_cells(axis: Axis) -> bool:
    """Whether an axis is nothing but cells."""
    return all(isinstance(a, Atom) and a.of in LETTERS for a in axis)
