"""A tail's second way to its score: from the cells of the layer that differ from a base.

A change of a cell reaches only the cells whose windows see it. So a tail runs on the base, one image, as it
does on any activations; beside it, in a branch that is taken where changed cells are fed, every tensor after
the layer is a table with a row of channels for each cell that is reached, of all copies. What is not reached
is read from the base's tensors. A convolution is then a gather of its windows' rows, from the changed rows,
the base's and one of padding, and one matrix product; or, where fewer cells go in changed than come out, the
base's result and what the changes add to it. Nothing is approximated. Where an operator needs the whole grid,
or most of it is reached, tables and base are put together, and the ordinary tail goes on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..contract import CELLS, PATCHES
from .gradients.builder import NODE_PREFIX, Builder, Var, dims_of, is_static
from .gradients.control_flow import captured_by
from .gradients.locality import POINTWISE
from .gradients.registry import constant
from .scores.found import optional_input
from .spread import Spread, Window, of_layer, through, together, window_of

LIMIT = 0.8  #: the share of its work at which a node is left to the ordinary tail
FEWER = 0.8  #: changed cells in, over those out, below which a convolution is computed from the former
WORTH = 0.8  #: the share of the tail's multiplications at which this way is still left out

Place: TypeAlias = tuple[ir.Node, int]


@dataclass(frozen=True)
class Plan:
    """What a change reaches, and where it leaves the tables.

    Attributes:
        nodes: those that compute tables, in order, and those that make a tensor of all copies of one.
        spreads: by value, the cells that its table has.
        exits: the values of all copies that the rest of the tail reads: tables put together, what nodes made
            of them, and sides, once for each copy; and who reads each: nodes with the number of the input.
    """

    nodes: tuple[ir.Node, ...]
    spreads: Mapping[ir.Value, Spread]
    exits: Mapping[ir.Value, tuple[Place, ...]]


def add_local_way(
    op: Builder,
    activations: ir.Value,
    sides: Collection[ir.Value],
    outputs: Sequence[ir.Value],
    choices: Collection[ir.Value],
    nodes: Sequence[ir.Node],
) -> bool:
    """Let a tail take changed cells, if that saves work; in place.

    It gets the optional inputs :data:`.contract.PATCHES`, float32 (R, C), and :data:`.contract.CELLS`, int64
    (R, 2): for each changed cell its copy and its number in the layer's grid, row by row, and its channels.
    Each of the K copies must have one. The activations are then the base, of one image, and so are the sides.

    Args:
        op: of the tail's graph, sorted.
        activations: its input.
        sides: its inputs of which each image has one entry.
        outputs: those that are wanted.
        choices: all that is computed from its optional inputs.
        nodes: those that the outputs need.

    Returns:
        Whether it was done.
    """
    plan = _planned(op, activations, sides, outputs, choices, nodes)
    if plan is None:
        return False
    dims = dims_of(activations) or ()
    with op.working_on("changed cells alone", activations.name or ""):
        patches = optional_input(op, PATCHES, np.zeros((0, dims[1]), np.float32))
        cells = optional_input(op, CELLS, np.zeros((0, 2), np.int64))
        patches.value.shape, cells.value.shape = ir.Shape(["cam.cells", dims[1]]), ir.Shape(["cam.cells", 2])
        given = op.Shape(cells, start=0, end=1, dims=(1,)) > 0
        branches = [
            ir.Graph(
                [], [], nodes=[], opset_imports=dict(op.graph.opset_imports), name=f"{NODE_PREFIX}{name}"
            )
            for name in ("cells", "whole")
        ]
        _Tables(op.inside(branches[0]), plan, activations, patches.value, cells.value).build()
        plainly = op.inside(branches[1])
        for value in plan.exits:
            branches[1].outputs.append(_result(plainly, plainly.Identity(plainly.wrap(value)), value))
        made = ir.Node(
            "",
            "If",
            [given.value],
            [ir.AttrGraph("then_branch", branches[0]), ir.AttrGraph("else_branch", branches[1])],
            num_outputs=len(plan.exits),
            name=op.unique(f"{NODE_PREFIX}{op.scope}If"),
        )
        for result, (value, readers) in zip(made.outputs, plan.exits.items(), strict=True):
            result.name = op.unique(f"{made.name}_{value.name}")
            result.type = value.type
            for node, index in readers:
                node.replace_input_with(index, result)
    op.graph.append(made)
    op.graph.sort()
    _forget_batch(op.graph, made)
    return True


def _result(op: Builder, x: Var, like: ir.Value) -> ir.Value:
    value = x.value
    value.type, value.shape = like.type, None
    value.name = op.unique(f"{NODE_PREFIX}{op.scope}{like.name}")
    return value


def _forget_batch(graph: ir.Graph, branch: ir.Node) -> None:
    """Copies are not as many as bases, though the graph's shapes have one symbol for both."""
    behind = set(branch.outputs)
    for node in graph:
        if behind.isdisjoint((*node.inputs, *captured_by(node))):
            continue
        behind.update(node.outputs)
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])


# -- what is reached --------------------------------------------------------------------------------


def _planned(
    op: Builder,
    activations: ir.Value,
    sides: Collection[ir.Value],
    outputs: Sequence[ir.Value],
    choices: Collection[ir.Value],
    nodes: Sequence[ir.Node],
) -> Plan | None:
    """None where nothing is gained."""
    dims = dims_of(activations)
    if dims is None or len(dims) != 4 or isinstance(dims[0], int) or not is_static(dims[1:]):
        return None
    if activations.dtype != ir.DataType.FLOAT or any(v in choices for v in sides):
        return None
    grid: Any = dims[2:]
    spreads = {activations: of_layer(grid)}
    tracked, planned, whole, reduced = {activations}, [], 0.0, 0.0
    left: list[ir.Value] = []  # what nodes of ours make for all copies
    for node in nodes:
        read = [v for v in (*node.inputs, *captured_by(node)) if v is not None]
        if not any(v in tracked for v in read):
            continue
        tracked.update(node.outputs)
        work = _multiplications(node)
        whole += work
        known = all((v in spreads or v not in tracked) and v not in choices for v in read)
        if known and not captured_by(node) and not node.domain and len(node.outputs) == 1:
            if node.op_type in _LEAVING and _LEAVING[node.op_type](op, node):
                planned.append(node)
                left.append(node.outputs[0])
                continue
            spread = _reached(op, node, spreads, sides)
            if spread is not None and (share := _share(node, spreads, spread)) <= LIMIT:
                planned.append(node)
                spreads[node.outputs[0]] = spread
                reduced += work * share
                continue
        reduced += work
    if not whole or reduced > WORTH * whole:
        return None
    ours, needed = set(planned), set(nodes)
    exits: dict[ir.Value, tuple[Place, ...]] = {}
    for value in (*spreads, *left, *sides):
        if value.is_graph_output() and value in spreads:
            return None  # what the file says of its choice is no grid
        readers = tuple((n, k) for n, k in value.uses() if n in needed and n not in ours)
        if readers:
            exits[value] = readers
    if any(v in outputs for v in left):
        return None
    inner = {v for n in nodes for v in captured_by(n)}
    if any(v in inner for v in (*spreads, *left, *sides)):
        return None
    _widen_single(planned, spreads, exits, needed)
    return Plan(tuple(planned), spreads, exits)


def _widen_single(
    nodes: Sequence[ir.Node],
    spreads: dict[ir.Value, Spread],
    exits: Collection[ir.Value],
    needed: Collection[ir.Node],
) -> None:
    """A table that one sum alone reads is made of that sum's cells at once, and no base of it is needed."""
    for node in reversed(nodes):
        spread = spreads.get(node.outputs[0])
        if spread is None or not _cell_by_cell(node):
            continue
        for value in node.inputs:
            if value in spreads and value.producer() is not None and value not in exits:
                readers = {n for n, _ in value.uses() if n in needed}
                if readers == {node}:
                    spreads[value] = spread


def _share(node: ir.Node, spreads: Mapping[ir.Value, Spread], spread: Spread) -> float:
    """The share of a node's work on the whole grid that its table takes."""
    own = spreads.get(node.inputs[0]) if node.inputs[0] is not None else None
    share = spread.share()
    if own is None or not _by_changes(node, own, spread):
        return share
    return min(share, own.share() * math.prod(own.grid) / math.prod(spread.grid))


def _by_changes(node: ir.Node, own: Spread, spread: Spread) -> bool:
    """Whether fewer cells go into a convolution changed than come out: then it is of their changes alone."""
    if node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return False
    return own.share() * math.prod(own.grid) < FEWER * spread.share() * math.prod(spread.grid)


def _multiplications(node: ir.Node) -> float:
    """Of a convolution for one image; 0 for anything else."""
    if node.op_type != "Conv" or node.inputs[1] is None:
        return 0.0
    weight, result = dims_of(node.inputs[1]), dims_of(node.outputs[0])
    if weight is None or result is None:
        return 0.0
    return float(math.prod(d for d in (*weight, *result[2:]) if isinstance(d, int)))


def _cell_by_cell(node: ir.Node) -> bool:
    return node.op_type in _CELL_BY_CELL


_CELL_BY_CELL = (POINTWISE - {"Cast"}) | {"PRelu", "Concat", "BatchNormalization"}


def _reached(
    op: Builder, node: ir.Node, spreads: Mapping[ir.Value, Spread], sides: Collection[ir.Value]
) -> Spread | None:
    """The cells of a node's output that are reached; None if its table cannot be computed."""
    result = dims_of(node.outputs[0])
    if result is None or len(result) != 4 or not is_static(result[1:]):
        return None
    if node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    if node.op_type in ("Conv", "MaxPool", "AveragePool"):
        data, *weights = node.inputs
        if data is None or data not in spreads or any(v in spreads or v in sides for v in weights):
            return None
        window = window_of(op, node)
        if window is None or any(v is not None and constant(v) is None for v in weights):
            return None
        if node.op_type == "AveragePool" and node.attributes.get_int("ceil_mode", 0) != 0:
            return None
        return through(spreads[data], window)
    if not _cell_by_cell(node):
        return None
    if node.op_type == "Concat" and node.attributes.get_int("axis", 0) not in (1, -3):
        return None
    if node.op_type == "BatchNormalization":
        data, *weights = node.inputs
        fixed = all(v is not None and constant(v) is not None for v in weights)
        inferred = node.attributes.get_int("training_mode", 0) == 0
        return spreads.get(data) if data is not None and fixed and inferred else None
    operands = [v for v in node.inputs if v is not None]
    if any(_broadcast(v, result, spreads, sides) is None for v in operands):
        return None
    if node.op_type == "Concat" and any(_broadcast(v, result, spreads, sides) != "grid" for v in operands):
        return None
    return together([spreads[v] for v in operands if v in spreads])


def _broadcast(
    value: ir.Value,
    result: Sequence[Any],
    spreads: Mapping[ir.Value, Spread],
    sides: Collection[ir.Value],
) -> str | None:
    """How an operand goes with a grid: as one (``grid``), as numbers of channels; None: otherwise."""
    dims = dims_of(value)
    if dims is None or len(dims) > 4:
        return None
    full = (1,) * (4 - len(dims)) + dims
    if value in spreads:
        return "grid" if full[2:] == tuple(result[2:]) else None
    if (full[0] != 1 and value not in sides) or not is_static(full[1:]):
        return None
    if full[2:] == (1, 1):
        return "channels"
    return "grid" if full[2:] == tuple(result[2:]) else None


# -- leaving the grid -------------------------------------------------------------------------------


def _pools(op: Builder, node: ir.Node) -> bool:
    """Whether a node reduces the grid, and the grid alone."""
    if node.op_type.startswith("Global"):
        return True
    axes = op.ints(op.wrap(node.inputs[1])) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return axes is not None and sorted(a % 4 for a in axes) == [2, 3]


_REDUCED = {
    "GlobalAveragePool": "ReduceMean",
    "GlobalMaxPool": "ReduceMax",
    "ReduceMean": "ReduceMean",
    "ReduceMax": "ReduceMax",
    "ReduceSum": "ReduceSum",
}
_LEAVING: Mapping[str, Callable[[Builder, ir.Node], bool]] = {
    **dict.fromkeys(_REDUCED, _pools),
    "Shape": lambda op, node: True,
}


# -- tables -----------------------------------------------------------------------------------------


class _Tables:
    """The nodes of the branch.

    Args:
        op: of the branch's graph.
        plan: what it computes.
        activations: the base.
        patches, given: what is fed.
    """

    def __init__(
        self, op: Builder, plan: Plan, activations: ir.Value, patches: ir.Value, given: ir.Value
    ) -> None:
        self._op, self._plan = op, plan
        cells = op.wrap(given)
        self._copies = op.ReduceMax(op.Gather(cells, _number(0), axis=1), keepdims=1, dims=(1,)) + 1
        self._rows = {activations: op.wrap(patches)}
        layer = plan.spreads[activations]
        found = (op.Gather(cells, _number(0), axis=1), op.Gather(cells, _number(1), axis=1))
        self._found: dict[Spread, tuple[Var, Var]] = {layer: found}
        self._memo: dict[tuple[Any, ...], Var] = {}

    def build(self) -> None:
        """All of them."""
        op = self._op
        for node in self._plan.nodes:
            with op.working_on("changed cells alone", node.name or node.op_type):
                (value,) = node.outputs
                if node.op_type == "Shape":
                    self._rows[value] = self._shape(node)
                elif node.op_type in _REDUCED:
                    self._rows[value] = self._reduced(node)
                elif node.op_type in _OWN:
                    self._rows[value] = _OWN[node.op_type](self, node)
                else:
                    self._rows[value] = self._by_cell(node)
        for value in self._plan.exits:
            op.graph.outputs.append(_result(op, self._of_all_copies(value), value))

    # -- sets of cells

    def _once(self, key: tuple[Any, ...], make: Callable[[], Var]) -> Var:
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def _cells(self, spread: Spread) -> tuple[Var, Var]:
        """(n,) twice: the copies, and the cells of the grid, row by row, that a table's rows are of."""
        if spread not in self._found:
            op = self._op
            where = op.NonZero(op.Reshape(self._mask(spread), [-1, math.prod(spread.grid)]))
            self._found[spread] = (op.Gather(where, _number(0), axis=0), op.Gather(where, _number(1), axis=0))
        return self._found[spread]

    def _mask(self, spread: Spread) -> Var:
        """(K, 1, H, W) float32: 1 at the cells of the set."""
        return self._once(("mask", spread), lambda: self._made_mask(spread))

    def _made_mask(self, spread: Spread) -> Var:
        op = self._op
        if not spread.of:
            flat = self._flat(spread)
            size = self._copies * math.prod(spread.grid)
            none = op.Expand(op.const(np.zeros(1, np.float32)), size)
            ones = op.Expand(op.const(np.ones(1, np.float32)), op.Shape(flat))
            marked = op.ScatterElements(none, flat, ones, axis=0)
            return op.Reshape(marked, [-1, 1, *spread.grid])
        masks = [self._mask(s) for s in spread.of]
        if spread.window is None:
            return functools.reduce(lambda a, b: op.Max(a, b), masks)
        w = spread.window
        counts = op.Conv(
            masks[0],
            op.const(np.ones((1, 1, *w.kernel), np.float32)),
            strides=w.strides,
            pads=(*w.begins, *w.ends),
            dilations=w.dilations,
        )
        return op.Min(counts, op.const(np.ones((), np.float32)))

    def _flat(self, spread: Spread) -> Var:
        """(n,) the cells of all copies' grids, one after the other."""
        copy, cell = self._cells(spread)
        return self._once(("flat", spread), lambda: copy * math.prod(spread.grid) + cell)

    def _count(self, spread: Spread) -> Var:
        """(1,) n."""
        return self._once(("count", spread), lambda: self._op.Shape(self._cells(spread)[0], dims=(1,)))

    def _numbers(self, spread: Spread) -> Var:
        """(K H W,) the row of each cell of each copy: of the table, or behind it, of the base."""
        return self._once(("numbers", spread), lambda: self._made_numbers(spread))

    def _made_numbers(self, spread: Spread) -> Var:
        op, size = self._op, math.prod(spread.grid)
        count = self._count(spread)
        of_base = op.const(np.arange(size, dtype=np.int64)[None]) + count
        tiled = op.Reshape(op.Expand(of_base, op.Concat(self._copies, op.operand([size]), axis=0)), [-1])
        rows = op.Range(_number(0), op.Squeeze(count, [0], dims=()), _number(1))
        return op.ScatterElements(tiled, self._flat(spread), rows, axis=0)

    # -- rows

    def _base(self, value: ir.Value) -> Var:
        """(H W, C) of the base, or of a side."""
        return self._once(("base", value), lambda: self._made_base(value))

    def _made_base(self, value: ir.Value) -> Var:
        op = self._op
        dims = dims_of(value) or ()
        x = op.wrap(value)
        if len(dims) < 4:
            x = op.Reshape(x, [1] * (4 - len(dims)) + [d for d in dims if isinstance(d, int)])
        channels = dims[-3] if len(dims) >= 3 else 1
        return op.Reshape(op.Transpose(x, perm=[0, 2, 3, 1]), [-1, channels])

    def _table(self, value: ir.Value, pad: float | None = None) -> Var:
        """The rows of a value's cells, of its base, and one of padding."""
        return self._once(("table", value, pad), lambda: self._made_table(value, pad))

    def _made_table(self, value: ir.Value, pad: float | None) -> Var:
        op = self._op
        parts = [self._rows[value], self._base(value)]
        if pad is not None:
            channels = (dims_of(value) or ())[1]
            assert isinstance(channels, int)
            parts.append(op.const(np.full((1, channels), pad, np.float32)))
        return op.Concat(*parts, axis=0)

    def _at(self, value: ir.Value, spread: Spread) -> Var:
        """(n, C) a value's rows at the cells of a set that has all of its own."""
        op = self._op
        own = self._plan.spreads.get(value)
        if own is spread:
            return self._rows[value]
        if own is None:
            return op.Gather(self._base(value), self._cells(spread)[1], axis=0)
        index = self._once(
            ("widened", own, spread),
            lambda: op.Gather(self._numbers(own), self._flat(spread), axis=0),
        )
        return op.Gather(self._table(value), index, axis=0)

    def _read(self, node: ir.Node, pad: float) -> Var:
        """(n, cells of a window, C) what each output's window sees; (n, C) for windows of one cell."""
        op = self._op
        (value, *_), (result,) = node.inputs, node.outputs
        assert value is not None
        spread, own = self._plan.spreads[result], self._plan.spreads[value]
        window = _window(op, node)
        if window.of_one:
            return self._at(value, spread)
        padded = any(window.begins + window.ends)
        index = self._once(("index", own, spread, window), lambda: self._made_index(own, spread, window))
        return op.Gather(self._table(value, pad if padded else None), index, axis=0)

    def _made_index(self, own: Spread, spread: Spread, window: Window) -> Var:
        found = self._seen(self._numbers(own), self._count(own) + math.prod(own.grid), own, spread, window)
        return found if window.count > 1 else self._op.Squeeze(found, [1])

    def _seen(self, numbers: Var, padding: Var, own: Spread, spread: Spread, window: Window) -> Var:
        """(n, cells of a window) the numbers that each output's window sees of (K H W,)."""
        op = self._op
        if any(window.begins + window.ends):
            grids = op.Reshape(numbers, [-1, *own.grid])
            pads = [0, *window.begins, 0, *window.ends]
            numbers = op.Reshape(op.Pad(grids, pads, op.Squeeze(padding, [0], dims=())), [-1])
        copy, cell = self._cells(spread)
        first = op.Gather(op.const(window.starts()), cell, axis=0) + copy * math.prod(window.padded)
        return op.Gather(numbers, op.Unsqueeze(first, [1]) + op.const(window.offsets()[None]), axis=0)

    # -- operators

    def _conv(self, node: ir.Node) -> Var:
        own, spread = (self._plan.spreads[v] for v in (node.inputs[0], node.outputs[0]) if v is not None)
        return self._conv_of_changes(node) if _by_changes(node, own, spread) else self._conv_of_windows(node)

    def _conv_of_changes(self, node: ir.Node) -> Var:
        """A convolution is linear: of the base, and what each changed cell adds through each tap."""
        op, window = self._op, _window(self._op, node)
        value, weight, *_ = node.inputs
        assert value is not None
        assert weight is not None
        own, spread = self._plan.spreads[value], self._plan.spreads[node.outputs[0]]
        dims: Any = dims_of(weight)
        features, channels, taps = dims[0], dims[1], window.count
        change = self._rows[value] - op.Gather(self._base(value), self._cells(own)[1], axis=0)
        turned = op.Reshape(op.Transpose(op.wrap(weight), perm=[1, 2, 3, 0]), [channels, taps * features])
        added = op.Reshape(op.MatMul(change, turned), [-1, features])
        added = op.Concat(added, op.const(np.zeros((1, features), np.float32)), axis=0)
        index = self._once(("taps", own, spread, window), lambda: self._taps(own, spread, window))
        total = op.ReduceSum(op.Gather(added, index, axis=0), [1], keepdims=0)
        operands = [None if v is None else op.wrap(v) for v in node.inputs]
        base = op.Transpose(op.node("Conv", operands, dict(node.attributes.items())), perm=[0, 2, 3, 1])
        return total + op.Gather(op.Reshape(base, [-1, features]), self._cells(spread)[1], axis=0)

    def _taps(self, own: Spread, spread: Spread, window: Window) -> Var:
        """(n, taps) where an output finds what its window's cells add: at the end, where that is nothing."""
        op, taps, count = self._op, window.count, self._count(own)
        numbers = self._seen(op.Min(self._numbers(own), count), count, own, spread, window)
        return op.Min(numbers * taps + op.const(np.arange(taps, dtype=np.int64)[None]), count * taps)

    def _conv_of_windows(self, node: ir.Node) -> Var:
        op = self._op
        weight = node.inputs[1]
        assert weight is not None
        dims: Any = dims_of(weight)
        features, per_group, count = dims[0], dims[1], dims[2] * dims[3]
        groups = node.attributes.get_int("group", 1)
        x, w = self._read(node, 0.0), op.wrap(weight)
        if groups == 1:
            turned = op.Reshape(op.Transpose(w, perm=[2, 3, 1, 0]), [count * per_group, features])
            made = op.MatMul(x if count == 1 else op.Reshape(x, [-1, count * per_group]), turned)
        elif per_group == 1 and groups == features:
            each = op.Transpose(op.Reshape(w, [features, count]), perm=[1, 0])
            made = op.Reshape(x, [-1, count, features]) * each
            made = op.ReduceSum(made, [1], keepdims=0)
        else:
            out = features // groups
            split = op.Reshape(x, [-1, count, groups, per_group])
            split = op.Reshape(op.Transpose(split, perm=[2, 0, 1, 3]), [groups, -1, count * per_group])
            turned = op.Reshape(w, [groups, out, per_group, count])
            turned = op.Reshape(op.Transpose(turned, perm=[0, 3, 2, 1]), [groups, count * per_group, out])
            made = op.Reshape(op.Transpose(op.MatMul(split, turned), perm=[1, 0, 2]), [-1, features])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return made if bias is None else made + op.wrap(bias)

    def _max_pool(self, node: ir.Node) -> Var:
        seen = self._read(node, -np.inf)
        return (
            seen
            if _window(self._op, node).of_one
            else self._op.ReduceMax(self._windows(seen, node), [1], keepdims=0)
        )

    def _average_pool(self, node: ir.Node) -> Var:
        op, window = self._op, _window(self._op, node)
        seen = self._read(node, 0.0)
        total = seen if window.of_one else op.ReduceSum(self._windows(seen, node), [1], keepdims=0)
        if node.attributes.get_int("count_include_pad", 0):
            return total / window.count
        _, cell = self._cells(self._plan.spreads[node.outputs[0]])
        counts = op.const(window.inside().astype(np.float32)[:, None])
        return total / op.Gather(counts, cell, axis=0)

    def _windows(self, seen: Var, node: ir.Node) -> Var:
        """(n, cells of a window, C), also of windows of one."""
        return self._op.Unsqueeze(seen, [1]) if _window(self._op, node).count == 1 else seen

    def _normalized(self, node: ir.Node) -> Var:
        op = self._op
        data, *weights = (v for v in node.inputs if v is not None)
        scale, bias, mean, variance = map(op.wrap, weights)
        factor = scale / op.Sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return self._at(data, self._plan.spreads[node.outputs[0]]) * factor + (bias - mean * factor)

    def _by_cell(self, node: ir.Node) -> Var:
        op, spreads = self._op, self._plan.spreads
        spread, result = spreads[node.outputs[0]], dims_of(node.outputs[0]) or ()
        operands: list[Var | None] = []
        for value in node.inputs:
            if value is None:
                operands.append(None)
            elif _broadcast(value, result, spreads, (value,)) == "grid":
                operands.append(self._at(value, spread))
            else:
                x = op.wrap(value)
                operands.append(op.Reshape(x, [-1]) if dims_of(value) else x)
        attributes = dict(node.attributes.items())
        return op.node(
            node.op_type, operands, {**attributes, "axis": 1} if node.op_type == "Concat" else attributes
        )

    # -- all copies

    def _of_all_copies(self, value: ir.Value) -> Var:
        op = self._op
        spread = self._plan.spreads.get(value)
        dims = dims_of(value) or ()
        if spread is not None:
            whole = op.Reshape(self._grids(value, spread), [-1, *spread.grid, dims[1]])
            return op.Transpose(whole, perm=[0, 3, 1, 2])
        if value in self._rows:
            return op.Identity(self._rows[value])
        return op.Gather(op.wrap(value), op.Expand(op.const(np.zeros(1, np.int64)), self._copies), axis=0)

    def _grids(self, value: ir.Value, spread: Spread) -> Var:
        """(K H W, C) changed or not."""
        return self._op.Gather(self._table(value), self._numbers(spread), axis=0)

    def _reduced(self, node: ir.Node) -> Var:
        op = self._op
        value = node.inputs[0]
        assert value is not None
        spread, dims = self._plan.spreads[value], dims_of(value) or ()
        grids = op.Reshape(self._grids(value, spread), [-1, math.prod(spread.grid), dims[1]])
        made = op.node(_REDUCED[node.op_type], [grids, [1]], {"keepdims": 0})
        kept = node.op_type.startswith("Global") or node.attributes.get_int("keepdims", 1) != 0
        return op.Reshape(made, [-1, dims[1], 1, 1]) if kept else made

    def _shape(self, node: ir.Node) -> Var:
        op = self._op
        value = node.inputs[0]
        assert value is not None
        dims = [d for d in (dims_of(value) or ())[1:] if isinstance(d, int)]
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", 1 + len(dims))
        return op.Slice(op.Concat(self._copies, op.operand(dims), axis=0), [start], [end], [0])


_OWN: Mapping[str, Callable[[_Tables, ir.Node], Var]] = {
    "Conv": _Tables._conv,
    "MaxPool": _Tables._max_pool,
    "AveragePool": _Tables._average_pool,
    "BatchNormalization": _Tables._normalized,
}


def _number(k: int) -> np.ndarray[Any, Any]:
    return np.asarray(k, np.int64)


def _window(op: Builder, node: ir.Node) -> Window:
    window = window_of(op, node)
    assert window is not None
    return window
