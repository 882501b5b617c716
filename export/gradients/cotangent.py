"""Gradients that are known to be zero almost everywhere.

A class token, one output of a Split, one row of a table: what flows back there is zero outside a
stretch of one axis. The engine carries such a gradient as a :class:`Window`, so that the rules work
on that stretch alone (:mod:`.locality` says where they may), and fills in the zeros where they may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from .builder import HALF, Builder, Dim, Var


@dataclass(frozen=True)
class Window:
    """A gradient that is zero outside ``[start, start + length)`` of one axis.

    Attributes:
        part: the stretch itself.
        axis: the axis, not negative.
        start, length: the stretch, in the full tensor.
        full: the full tensor's size along the axis: a number, or a scalar tensor.
    """

    part: Var
    axis: int
    start: int
    length: int
    full: int | Var

    @property
    def end(self) -> int:
        return self.start + self.length

    def dense(self, op: Builder) -> Var:
        """With its zeros."""
        begins: list[Dim | Var] = [0] * self.part.rank
        ends: list[Dim | Var] = [0] * self.part.rank
        begins[self.axis] = self.start
        ends[self.axis] = self.full - self.end
        return op.pad(self.part, begins, ends)

    def covers_all(self) -> bool:
        """Whether nothing is left out."""
        return self.start == 0 and isinstance(self.full, int) and self.length == self.full


Cotangent: TypeAlias = Var | Window


def window(op: Builder, part: Var, x: Var, axis: int, start: int, length: int) -> Cotangent:
    """The gradient of ``x`` given that of ``x[..., start : start+length, ...]``."""
    axis %= x.rank
    made = Window(part, axis, start, length, op.dim(x, axis))
    return part if made.covers_all() else made


def dense(op: Builder, g: Cotangent) -> Var:
    """A gradient with all its entries."""
    return g.dense(op) if isinstance(g, Window) else g


def total(op: Builder, parts: Sequence[Cotangent]) -> Cotangent:
    """The sum of what flows back into one value along several ways.

    In float32 if one of them went through float32 and another through half precision.
    """
    types = {(p.part if isinstance(p, Window) else p).dtype for p in parts}
    if len(types) > 1 and types <= {ir.DataType.FLOAT, *HALF}:
        parts = [op.single(dense(op, p)) for p in parts]
    windows = [p for p in parts if isinstance(p, Window)]
    if len(windows) == len(parts) > 1 and len({w.axis for w in windows}) == 1:
        merged = _merge(op, sorted(windows, key=lambda w: w.start))
        if merged is not None:
            return merged
    if len(parts) == 1:
        return parts[0]
    out = dense(op, parts[0])
    for part in parts[1:]:
        out = out + dense(op, part)
    return out


def _merge(op: Builder, windows: Sequence[Window]) -> Cotangent | None:
    """Windows of one axis as one, if they are equal or follow each other without a gap."""
    spans: list[Window] = []
    for w in windows:
        last = spans[-1] if spans else None
        if last is not None and (w.start, w.end) == (last.start, last.end):
            spans[-1] = Window(last.part + w.part, w.axis, w.start, w.length, w.full)
        elif last is None or w.start == last.end:
            spans.append(w)
        else:
            return None
    first, axis = spans[0], spans[0].axis
    if len(spans) == 1:
        return first
    length = spans[-1].end - first.start
    dims = tuple(length if k == axis else d for k, d in enumerate(first.part.shape))
    part = op.Concat(*[w.part for w in spans], axis=axis, dims=dims)
    joined = Window(part, axis, first.start, length, first.full)
    return part if joined.covers_all() else joined
