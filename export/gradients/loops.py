"""Gradients through Scan and Loop: the repetitions once more, and then backwards.

Beside a loop stands a replay of it, which also keeps the state that each repetition began with. A Scan then
goes through those from the last to the first: from the gradient of the state behind a repetition it makes
that of the state before, and adds up that of what the body read from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx.shape_inference
import onnx_ir as ir

from .builder import NODE_PREFIX, Builder, Var, dims_of
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

    def direction(self, name: str, count: int) -> list[int]:
        """A Scan's axes or directions; zeros where it has none."""
        found = self.node.attributes.get(name)
        return [0] * count if found is None else [*found.as_ints()]

    def index_of(self, at: int) -> int:
        """Which of the node's inputs is a state, or (counted on) a scanned input."""
        return at + 2 * self.counts


def infer(op: Builder, places: Places, graph: ir.Graph) -> None:
    """Note the shapes in a copy of the body: states keep the shape that they begin with, or have none."""
    node = places.node
    assumed = {}
    for k, value in enumerate(places.before(graph)):
        start = node.inputs[places.index_of(k)]
        if start is not None and start.shape is not None and (value.shape is None or not places.counts):
            value.shape = start.shape
            assumed[k] = value
    axes = places.direction("scan_input_axes", places.scanned)
    for j, (value, axis) in enumerate(zip(places.slices(graph), axes, strict=True)):
        whole = node.inputs[places.index_of(places.states + j)]
        dims = None if whole is None else dims_of(whole)
        if dims is not None:
            axis %= len(dims)
            value.shape = ir.Shape([*dims[:axis], *dims[axis + 1 :]])
    _note(op, node, graph)
    changing = [k for k, v in assumed.items() if dims_of(places.behind(graph)[k]) != dims_of(v)]
    if places.counts and changing:
        for k in changing:
            assumed[k].shape = None
        for inner in graph:
            for value in inner.outputs:
                value.shape = None
        _note(op, node, graph)
    # Inference gives a Loop's results no shape.
    for value, end in zip(node.outputs, places.behind(graph), strict=False):
        dims = dims_of(end)
        if value.shape is None and dims is not None and not changing:
            value.shape = ir.Shape(dims)
    for value, end in zip(node.outputs[places.states :], places.stacked(graph), strict=True):
        dims = dims_of(end)
        if value.shape is None and dims is not None and places.counts:
            value.shape = ir.Shape([None, *dims])


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
                value.shape = value.shape or known[value.name].shape
                value.type = value.type or known[value.name].type


def replay(op: Builder, places: Places, kept: Sequence[int]) -> list[Var]:
    """Append the loop once more; what its state ``k`` was before each repetition, stacked, for each kept k.

    Of a Loop the numbers of the repetitions come last.
    """
    node = places.node
    inner = op.inside(copied(op, places.body))
    graph = inner.graph
    begun = [places.before(graph)[k] for k in kept] + [*graph.inputs[:1]] * places.counts
    close(inner, [*map(inner.wrap, graph.outputs), *map(inner.wrap, begun)])
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


def close(inner: Builder, outputs: Sequence[Var]) -> None:
    """Make values the outputs of a body."""
    ends: list[ir.Value] = []
    for x in outputs:
        ends.append(computed_inside(inner, x, ends).value)
    inner.graph.outputs[:] = ends


@dataclass(frozen=True)
class Scanned:
    """A tensor that a Scan goes through, or puts together, slice by slice.

    Attributes:
        slice: in the body.
        axis: of the tensor.
        direction: 0 from its first to its last slice, 1 from the last to the first.
    """

    slice: ir.Value
    axis: int
    direction: int


def backwards(
    op: Builder,
    inner: Builder,
    carried: Sequence[tuple[Var, ir.Value]],
    scanned: Sequence[tuple[Var, Scanned]],
    made: Sequence[Scanned],
) -> tuple[list[Var], list[Var]]:
    """Append the Scan that goes back.

    Args:
        op: the builder of the graph that holds the loop.
        inner: of the Scan's body, which is closed: its outputs are what is carried on, then what is made.
        carried: what the Scan carries on: the first value, and its name in the body.
        scanned: the tensors that it goes through.
        made: those that it puts together.

    Returns:
        The last values of what it carries on, and the tensors made.
    """
    graph = inner.graph
    graph.inputs[:] = [*(here for _, here in carried), *(part.slice for _, part in scanned)]
    attributes: list[ir.Attr] = [
        ir.AttrInt64("num_scan_inputs", len(scanned)),
        ir.AttrInt64s("scan_input_axes", [part.axis for _, part in scanned]),
        ir.AttrInt64s("scan_input_directions", [part.direction for _, part in scanned]),
    ]
    if made:
        attributes += [
            ir.AttrInt64s("scan_output_axes", [part.axis for part in made]),
            ir.AttrInt64s("scan_output_directions", [part.direction for part in made]),
        ]
    inputs = [*(first.value for first, _ in carried), *(x.value for x, _ in scanned)]
    node = _appended(op, "Scan", inputs, graph, attributes)
    ends = [Var(v, op, first.dims) for v, (first, _) in zip(node.outputs, carried, strict=False)]
    return ends, [Var(v, op, None) for v in node.outputs[len(carried) :]]


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


def new_input(inner: Builder, name: str, like: ir.Value, dtype: ir.DataType) -> Var:
    """A value that a body will take: in the shape of another."""
    value = ir.Value(name=inner.unique(f"{NODE_PREFIX}{inner.scope}{name}"), type=ir.TensorType(dtype))
    value.shape = like.shape
    return Var(value, inner, dims_of(like))
