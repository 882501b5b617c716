"""Gradients through Scan and Loop: the repetitions once more, and then backwards.

Beside a loop stands a replay of it, which also keeps the state that each repetition began with. Another then
goes through those from the last to the first: from the gradient of the state behind a repetition it makes
that of the state before, and adds up that of what the body read from outside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from .builder import HALF, NODE_PREFIX, Builder, Var, dims_of
from .control_flow import captured_by, computed_inside, copied
from .registry import constant


def is_loop(node: ir.Node) -> bool:
    """Whether a node is ONNX's Scan or Loop."""
    return node.op_type in ("Scan", "Loop") and not node.domain


@dataclass(frozen=True)
class Places:
    """Where a loop has what: its node's inputs and outputs, and its body's.

    Attributes:
        node: the loop.
        states: how many values each repetition hands to the next.
        scanned: how many inputs it goes through slice by slice.
    """

    node: ir.Node
    states: int
    scanned: int

    @classmethod
    def of(cls, node: ir.Node) -> Places:
        """Of a Scan or a Loop."""
        scanned = node.attributes.get_int("num_scan_inputs", 0)
        return cls(node, len(node.inputs) - scanned - (0 if node.op_type == "Scan" else 2), scanned)

    @property
    def counts(self) -> bool:
        """Whether the body is told its number: a Loop's."""
        return self.node.op_type == "Loop"

    @property
    def body(self) -> ir.Graph:
        """The forward body."""
        return self.node.attributes["body"].as_graph()

    def before(self, graph: ir.Graph) -> list[ir.Value]:
        """A body's inputs that are states."""
        return [*graph.inputs][2 * self.counts :][: self.states]

    def slices(self, graph: ir.Graph) -> list[ir.Value]:
        """A body's inputs that are slices of scanned ones."""
        return [*graph.inputs][self.states :] if self.scanned else []

    def behind(self, graph: ir.Graph) -> list[ir.Value]:
        """A body's outputs that are states."""
        return [*graph.outputs][int(self.counts) :][: self.states]

    def stacked(self, graph: ir.Graph) -> list[ir.Value]:
        """A body's outputs that are stacked up."""
        return [*graph.outputs][int(self.counts) + self.states :]

    def each(self, name: str, count: int) -> list[int]:
        """A Scan's axes or directions; zeros where it has none."""
        found = self.node.attributes.get(name)
        return [0] * count if found is None else [*found.as_ints()]

    def index_of(self, at: int) -> int:
        """Which of the node's inputs is a state, or (counted on) a scanned input."""
        return at + 2 * self.counts


def infer(op: Builder, places: Places, graph: ir.Graph) -> list[bool]:
    """Note the shapes in a copy of the body: states keep the shape that they begin with, or have none.

    Returns:
        Of each state, whether it is known to keep its shape. A Scan's does.
    """
    node = places.node
    before, behind = places.before(graph), places.behind(graph)
    starts = [node.inputs[places.index_of(k)] for k in range(len(before))]
    assumed = [value for value in before if value.shape is None]
    for value, start in zip(before, starts, strict=True):
        if start is not None:
            value.type = value.type or start.type
        if start is not None and (value.shape is None or not places.counts):
            value.shape = _merged(value.shape, start.shape)
    axes = places.each("scan_input_axes", places.scanned)
    for j, (value, axis) in enumerate(zip(places.slices(graph), axes, strict=True)):
        whole = node.inputs[places.index_of(places.states + j)]
        dims = None if whole is None else dims_of(whole)
        if whole is not None:
            value.type = value.type or whole.type
        if dims is not None:
            axis %= len(dims)
            value.shape = _merged(value.shape, ir.Shape([*dims[:axis], *dims[axis + 1 :]]))
    _note(op, node, graph)
    if not places.counts:
        return [True] * places.states
    # A Loop's states may change their shape, and inference gives none to its results.
    kept = [_same(a, b) for a, b in zip(before, behind, strict=True)]
    changing = [a for a, same in zip(before, kept, strict=True) if not same and a in assumed]
    if changing:
        for value in changing:
            value.shape = None
        for inner in graph:
            for value in inner.outputs:
                value.shape = None
        _note(op, node, graph)
    for value, start, same in zip(node.outputs, starts, kept, strict=False):
        if value.shape is None and start is not None and same:
            value.shape = start.shape
    for value, end in zip(node.outputs[places.states :], places.stacked(graph), strict=True):
        dims = dims_of(end)
        if value.shape is None and dims is not None:
            value.shape = ir.Shape([None, *dims])
    return kept


def _same(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are known to have one shape."""
    dims = dims_of(a)
    return dims is not None and None not in dims and dims == dims_of(b)


def _merged(said: ir.Shape | None, given: ir.Shape | None) -> ir.Shape | None:
    """A shape that a body declares with the one that it is given: sizes, else the body's own symbols."""
    if said is None or given is None or len(said) != len(given):
        return said if given is None else given
    pairs = zip(said, given, strict=True)
    return ir.Shape(
        [b if isinstance(b, int) or (not isinstance(a, int) and a.value is None) else a for a, b in pairs]
    )


def _note(op: Builder, node: ir.Node, graph: ir.Graph) -> None:
    """ONNX's inference on a body; what it reads from outside are inputs there."""
    proto = ir.serde.serialize_graph(graph)
    for value in dict.fromkeys(captured_by(node)):
        array = constant(value) if value.dtype == ir.DataType.INT64 else None
        if array is not None:
            proto.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        elif value.type is not None:
            proto.input.append(ir.serde.serialize_value(value))
    model = onnx.helper.make_model(
        proto, opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in op.graph.opset_imports.items()]
    )
    found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {
        v.name: ir.serde.deserialize_value_info_proto(v, None) for v in (*found.value_info, *found.output)
    }
    for inner in graph:
        for value in inner.outputs:
            if value.name in known:
                value.shape = _merged(known[value.name].shape, value.shape)
                value.type = value.type or known[value.name].type


@dataclass(frozen=True)
class Loop:
    """A loop that the gradient goes through.

    Attributes:
        places: where it has what.
        inner: of a copy of its body, which becomes that of the loop back.
        reached: the values of the copy that depend on what counts.
        states, scanned: which states and which scanned inputs count.
        captured: the values outside that the gradient flows to.
    """

    places: Places
    inner: Builder
    reached: Collection[ir.Value]
    states: tuple[int, ...]
    scanned: tuple[int, ...]
    captured: tuple[ir.Value, ...]

    def start(self, at: int) -> ir.Value:
        """What a state begins with, or (counted on) a scanned input."""
        value = self.places.node.inputs[self.places.index_of(at)]
        assert value is not None
        return value


@dataclass(frozen=True)
class _Slice:
    """A tensor that a Scan goes through slice by slice: its slice in the body, the axis and the direction."""

    tensor: Var
    here: ir.Value
    axis: int
    direction: int


@dataclass
class Seeds:
    """The gradients that come in from behind a loop, and in its body from behind a repetition.

    Attributes:
        dtype: of gradients, of half precision too.
        seeds: by result of the body.
        carried: for each state that counts and then each captured value, what its gradient is before the
            first step back, and in the body before each.
        slices: the gradients of what the loop stacked up.
    """

    dtype: ir.DataType
    seeds: dict[ir.Value, Var]
    carried: list[tuple[Var, Var]]
    slices: list[_Slice]

    def type_of(self, value: ir.Value) -> ir.DataType:
        """The type of a value's gradient."""
        return self.dtype if value.dtype is None or value.dtype in HALF else value.dtype

    def zeros(self, within: Builder, like: ir.Value) -> Var:
        """No gradient."""
        return within.cast(within.zeros_like(within.wrap(like)), self.type_of(like))


def seeded(op: Builder, loop: Loop, gs: Sequence[Var | None]) -> Seeds:
    """Name in the body's copy the gradients that a repetition is given.

    Args:
        op: the builder of the graph that holds the loop.
        loop: the loop.
        gs: the gradient of each of its results, None where nothing flows.
    """
    places, inner, graph = loop.places, loop.inner, loop.inner.graph
    found = Seeds(next(g.dtype for g in gs if g is not None), {}, [], [])

    def seed(end: ir.Value, what: str) -> Var:
        here = _input(inner, what, end, found.type_of(end))
        found.seeds[end] = found.seeds[end] + here if end in found.seeds else here
        return here

    for k in loop.states:
        start, g = loop.start(k), gs[k]
        first = found.zeros(op, start) if g is None else op.cast(g, found.type_of(start))
        found.carried.append((first, seed(places.behind(graph)[k], "state")))
    for value in loop.captured:
        here = _input(inner, "captured", value, found.type_of(value))
        found.carried.append((found.zeros(op, value), here))
    stacked = places.stacked(graph)
    axes = places.each("scan_output_axes", len(stacked))
    directions = places.each("scan_output_directions", len(stacked))
    for g, end, axis, direction in zip(gs[places.states :], stacked, axes, directions, strict=True):
        if g is not None and end in loop.reached:
            here = seed(end, "slice")
            found.slices.append(_Slice(op.cast(g, here.dtype), here.value, axis, 1 - direction))
    return found


def settle(loop: Loop, seeds: Seeds, ends: Mapping[ir.Value, Var]) -> None:
    """Let the body's copy return the gradients before a repetition, which ``ends`` holds.

    They are those of the states, the sums of those of the captured values, and those of the slices.
    """
    places, inner, graph = loop.places, loop.inner, loop.inner.graph

    def end(value: ir.Value) -> Var:
        return inner.cast(ends[value], seeds.type_of(value)) if value in ends else seeds.zeros(inner, value)

    before, slices = places.before(graph), places.slices(graph)
    outputs = [end(before[k]) for k in loop.states]
    for value, (_, here) in zip(loop.captured, seeds.carried[len(loop.states) :], strict=True):
        outputs.append(here + end(value) if value in ends else here)
    _close(inner, [*outputs, *(end(slices[j]) for j in loop.scanned)])
    if places.counts and graph.inputs[1].uses():  # it went on
        ir.convenience.replace_all_uses_with(graph.inputs[1], inner.const(np.asarray(True)).value)


def turned_back(op: Builder, loop: Loop, seeds: Seeds) -> list[tuple[ir.Value, Var]]:
    """Append the replay, where a step back needs it, and the loop back, whose body was settled.

    Returns:
        The gradients of what the loop starts from, reads from outside and goes through.
    """
    places, graph = loop.places, loop.inner.graph
    before, slices = places.before(graph), places.slices(graph)
    axes = places.each("scan_input_axes", places.scanned)
    directions = [1 - d for d in places.each("scan_input_directions", places.scanned)]
    scanned = [*seeds.slices]
    for j, here in enumerate(slices):
        scanned.append(_Slice(op.wrap(loop.start(places.states + j)), here, axes[j], directions[j]))
    kept = [k for k, v in enumerate(before) if v.uses()]
    if kept or places.counts:
        begun = [*(before[k] for k in kept), *([graph.inputs[0]] * places.counts)]
        stacks = _replay(op, places, kept)
        scanned += [_Slice(stack, here, 0, 1) for stack, here in zip(stacks, begun, strict=True)]
    to = [loop.start(k) for k in loop.states] + [*loop.captured]
    to += [loop.start(places.states + j) for j in loop.scanned]
    if places.counts:
        node = _looped_back(op, loop.inner, seeds, scanned)
        return [(value, Var(g, op, dims_of(value))) for value, g in zip(to, node.outputs, strict=True)]
    graph.inputs[:] = [*(here.value for _, here in seeds.carried), *(part.here for part in scanned)]
    attributes = [
        ir.AttrInt64("num_scan_inputs", len(scanned)),
        ir.AttrInt64s("scan_input_axes", [part.axis for part in scanned]),
        ir.AttrInt64s("scan_input_directions", [part.direction for part in scanned]),
    ]
    if loop.scanned:
        attributes += [
            ir.AttrInt64s("scan_output_axes", [axes[j] for j in loop.scanned]),
            ir.AttrInt64s("scan_output_directions", [directions[j] for j in loop.scanned]),
        ]
    inputs = [*(first.value for first, _ in seeds.carried), *(part.tensor.value for part in scanned)]
    node = _appended(op, "Scan", inputs, graph, attributes)
    return [(value, Var(g, op, dims_of(value))) for value, g in zip(to, node.outputs, strict=True)]


def _looped_back(op: Builder, inner: Builder, seeds: Seeds, scanned: Sequence[_Slice]) -> ir.Node:
    """A Loop goes back as one, since it may repeat nothing, and ONNX Runtime's Scan wants slices."""
    graph = inner.graph
    number = ir.Value(
        name=inner.unique(f"{NODE_PREFIX}{inner.scope}step"),
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([]),
    )
    going = ir.Value(
        name=inner.unique(f"{NODE_PREFIX}{inner.scope}going"),
        type=ir.TensorType(ir.DataType.BOOL),
        shape=ir.Shape([]),
    )
    count = op.Squeeze(op.Shape(scanned[-1].tensor, start=0, end=1), [0], dims=())
    at = inner.wrap(count.value) - inner.wrap(number) - 1
    for part in scanned:
        read = inner.Gather(inner.wrap(part.tensor.value), at, axis=part.axis)
        ir.convenience.replace_all_uses_with(part.here, read.value, replace_graph_outputs=True)
    _close(inner, [inner.wrap(going), *map(inner.wrap, graph.outputs)])
    graph.inputs[:] = [number, going, *(here.value for _, here in seeds.carried)]
    graph.sort()
    return _appended(op, "Loop", [count.value, None, *(first.value for first, _ in seeds.carried)], graph, [])


def _replay(op: Builder, places: Places, kept: Sequence[int]) -> list[Var]:
    """Append the loop once more; what its state ``k`` was before each repetition, stacked, for each kept k.

    Of a Loop the numbers of the repetitions come last.
    """
    node = places.node
    inner = op.inside(copied(op, places.body))
    graph = inner.graph
    begun = [places.before(graph)[k] for k in kept] + [*graph.inputs[:1]] * places.counts
    _close(inner, [*map(inner.wrap, graph.outputs), *map(inner.wrap, begun)])
    attributes = [a for a in node.attributes.values() if a.name != "body"]
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in node.attributes:
            attributes = [a for a in attributes if a.name != name]
            attributes.append(ir.AttrInt64s(name, [*node.attributes[name].as_ints(), *[0] * len(begun)]))
    made = _appended(op, node.op_type, node.inputs, graph, attributes)
    found = []
    for value, stack in zip(begun, made.outputs[len(node.outputs) :], strict=True):
        dims = dims_of(value)
        found.append(Var(stack, op, None if dims is None else (None, *dims)))
    return found


def _close(inner: Builder, outputs: Sequence[Var]) -> None:
    """Make values the outputs of a body."""
    ends: list[ir.Value] = []
    for x in outputs:
        ends.append(computed_inside(inner, x, ends).value)
    inner.graph.outputs[:] = ends


def _appended(
    op: Builder,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    body: ir.Graph,
    attributes: Sequence[ir.Attr],
) -> ir.Node:
    made = ir.Node(
        "",
        op_type,
        inputs,
        [*attributes, ir.AttrGraph("body", body)],
        num_outputs=len(body.outputs) - (op_type == "Loop"),
        name=op.unique(f"{NODE_PREFIX}{op.scope}{op_type}"),
        doc_string=op.doc or None,
    )
    for k, (value, end) in enumerate(zip(made.outputs, body.outputs[op_type == "Loop" :], strict=True)):
        value.name = op.unique(f"{made.name}_output_{k}")
        value.type = end.type
    op.graph.append(made)
    op.added.append(made)
    return made


def _input(inner: Builder, name: str, like: ir.Value, dtype: ir.DataType) -> Var:
    """A value that a body will take, in the shape of another."""
    value = ir.Value(name=inner.unique(f"{NODE_PREFIX}{inner.scope}{name}"), type=ir.TensorType(dtype))
    value.shape = like.shape
    return Var(value, inner, dims_of(like))
