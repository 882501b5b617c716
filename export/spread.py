"""Which cells of a tensor a change of single cells of a layer reaches.

A convolution or a pool hands a change on to the outputs whose windows hold a changed cell, and arithmetic of
two tensors to the cells that are changed in either. Along one axis of the grid that is a table: does this row
of the layer reach that row? A set of cells that windows alone have spread is a product of two such tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .gradients.builder import Builder, dims_of, is_static
from .gradients.geometry import geometry, reach

Table: TypeAlias = NDArray[np.bool_]  #: (cells of the layer along one axis, cells of the tensor along it)


@dataclass(frozen=True)
class Window:
    """Which cells an operator reads for a cell of its output: of a grid (H, W), for a grid (H', W').

    Attributes:
        kernel, strides, dilations: per axis.
        begins, ends: the padding per axis; at the end as much as the last output reads.
        before, after: the grids.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    begins: tuple[int, int]
    ends: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def padded(self) -> tuple[int, int]:
        """The grid that is read from, with its padding."""
        height, width = (b + n + e for b, n, e in zip(self.begins, self.before, self.ends, strict=True))
        return height, width

    @property
    def count(self) -> int:
        """Cells in a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def of_one(self) -> bool:
        """Whether each output is of the same cell of the input alone."""
        plain = self.kernel == self.strides == (1, 1) and self.begins == (0, 0)
        return plain and self.before == self.after

    def starts(self) -> NDArray[np.int64]:
        """(H' W',) the first cell of each window, of the padded grid counted row by row."""
        row, column = (s * np.arange(n) for s, n in zip(self.strides, self.after, strict=True))
        return (row[:, None] * self.padded[1] + column).ravel()

    def offsets(self) -> NDArray[np.int64]:
        """(cells in a window,) from the first of them."""
        row, column = (d * np.arange(k) for d, k in zip(self.dilations, self.kernel, strict=True))
        return (row[:, None] * self.padded[1] + column).ravel()

    def inside(self) -> NDArray[np.int64]:
        """(H' W',) how many cells of each window are in the grid, not in its padding."""
        rows, columns = (self._reads(axis).sum(1) for axis in (0, 1))
        return np.asarray(rows[:, None] * columns, np.int64).ravel()

    def spread(self, tables: Sequence[Table]) -> tuple[Table, Table]:
        """What reaches the output, from what reaches the input."""
        rows, columns = (t @ self._reads(axis).T for axis, t in enumerate(tables))
        return rows, columns

    def _reads(self, axis: int) -> Table:
        """(H', H): whether an output's window holds a cell."""
        first = self.strides[axis] * np.arange(self.after[axis]) - self.begins[axis]
        step = self.dilations[axis] * np.arange(self.kernel[axis])
        read = first[:, None] + step
        table: Table = (read[:, :, None] == np.arange(self.before[axis])).any(1)
        return table


@dataclass(frozen=True, eq=False)
class Spread:
    """The cells of a tensor that a change of a cell of the layer reaches; one for all tensors that share it.

    Attributes:
        grid: (H, W) of the tensor.
        products: pairs of tables, for rows and columns; a cell is reached as one of them says.
        of: what it comes from: none for the layer's own, one through ``window``, or several together.
        window: see ``of``.
    """

    grid: tuple[int, int]
    products: tuple[tuple[Table, Table], ...]
    of: tuple[Spread, ...] = ()
    window: Window | None = None

    def share(self) -> float:
        """The share of the grid that a cell reaches on average, or a little more."""
        shares = [rows.mean() * columns.mean() for rows, columns in self.products]
        return min(1.0, float(sum(shares)))

    def holds(self, other: Spread) -> bool:
        """Whether it surely has all cells of another."""
        return self is other or all(
            any((a <= b).all() and (c <= d).all() for b, d in self.products) for a, c in other.products
        )


def of_layer(grid: tuple[int, int]) -> Spread:
    """The layer's own: each cell reaches itself."""
    return Spread(grid, ((np.eye(grid[0], dtype=np.bool_), np.eye(grid[1], dtype=np.bool_)),))


def through(spread: Spread, window: Window) -> Spread:
    """Behind a convolution or a pool."""
    if window.of_one:
        return spread
    made = tuple(window.spread(p) for p in spread.products)
    return Spread(window.after, made, (spread,), window)


def together(spreads: Sequence[Spread]) -> Spread:
    """Where several tensors meet cell by cell."""
    for one in spreads:
        if all(one.holds(other) for other in spreads):
            return one
    distinct = tuple(dict.fromkeys(spreads))
    return Spread(distinct[0].grid, tuple(p for s in distinct for p in s.products), distinct)


def window_of(op: Builder, node: ir.Node) -> Window | None:
    """That of a convolution or a pool over two axes; None where its sizes are not known, or have more."""
    data, result = (None if v is None else dims_of(v) for v in (node.inputs[0], node.outputs[0]))
    if data is None or result is None or len(data) != 4 or not is_static((*data[2:], *result[2:])):
        return None
    found = geometry(op, node)
    if len(found["kernel_shape"]) != 2 or not is_static(found["pads"]):
        return None
    before: Any = data[2:]
    after: Any = result[2:]
    begins = found["pads"][:2]
    spans = reach(found["kernel_shape"], found["dilations"])
    sizes = zip(after, found["strides"], spans, before, begins, strict=True)
    ends = [max(0, (m - 1) * s + span - n - b) for m, s, span, n, b in sizes]
    return Window(
        found["kernel_shape"],
        found["strides"],
        found["dilations"],
        tuple(begins),
        (ends[0], ends[1]),
        tuple(before),
        tuple(after),
    )
