"""What follows a layer, as a model of its own.

ONNX Runtime runs every node of a file and cannot start in the middle of one. A tail is cut out of the
finished explainable graph, from the layer's tensor to the score, to what is told of the choice, and to the
gradient, so that the task's whole logic is in it as it is in the file. What it reads besides, and the layer
does not make, are its *sides*: outputs of the file and inputs of the tail. Sizes that follow the batch are no
sides: a tail computes those from the batch that it is given, so that it runs with any.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..contract import (
    CHOICES,
    KEY,
    PREFIX,
    WITH_GRADIENTS,
    Layer,
    Record,
    Side,
    Tail,
    activations_name,
    gradients_name,
    heatmap_name,
    side_name,
)
from ..errors import ModelError
from .folding import settle_shapes
from .gradients.add import named_values
from .gradients.builder import NODE_PREFIX, Builder, Var, dims_of
from .gradients.control_flow import captured_by, empty, subgraphs
from .gradients.engine import shape_unknown
from .gradients.quantized import is_real, quantization
from .local_tails import add_local_way
from .paths import image_input
from .scores.found import optional_input
from .verify import Feeds

_BATCHES = (5, 7)
_NOT_TOLD = (activations_name(""), gradients_name(""), heatmap_name(""), f"{PREFIX}side.")


@dataclass(frozen=True)
class Cut:
    """A tail that is not written yet.

    Attributes:
        model: what follows the layer.
        tail: what the record will say of it; without a hash.
    """

    model: ir.Model
    tail: Tail


def cut(
    model: ir.Model, record: Record, layers: Mapping[str, ir.Value], feeds: Feeds, target: str
) -> list[Cut]:
    """Cut the tails of a model's layers out; the model gets their sides as outputs, in place.

    Args:
        model: explainable (:func:`.explainable.add_explanation`).
        record: what it was made so with.
        layers: by the layers' names, their values in the model.
        feeds: sizes that the model runs with.
        target: the name of the file that it will be.

    Raises:
        ModelError: a layer whose images do not follow each other, or a tail that needs a size of which it
            cannot be told whether it follows the batch.
    """
    if record.maps_only:
        raise ModelError(
            "A tail takes the layer's activations, and maps_only leaves them out of the file: ask for one of "
            "the two."
        )
    extents = Extents(model, feeds)
    names = file_names(target, [layer.name for layer in record.layers])
    outlined = [_outline(model.graph, record, x, layers[x.name], extents) for x in record.layers]
    sides = _Sides(model.graph, extents)
    for outline in outlined:
        sides.add(outline)
    cuts = []
    for layer, outline, name in zip(record.layers, outlined, names, strict=True):
        tail = Tail(layer.name, name, "", sides.all_of(outline), outline.rows)
        made, local = _extracted(model, layer, outline, sides)
        tail = dataclasses.replace(tail, local=local)
        own = dataclasses.replace(record, layers=(layer,), tails=(), fused=(), tail_of=target)
        made.metadata_props[KEY] = own.to_json()
        cuts.append(Cut(made, tail))
    return cuts


def file_names(target: str, layers: Sequence[str]) -> list[str]:
    """The tails' names: ``model.tail.onnx`` beside ``model.cam.onnx``; of several layers each with its own.

    Args:
        target: the explainable file's name.
        layers: the layers' names.
    """
    stem = target.removesuffix(".onnx").removesuffix(".cam")
    if len(layers) == 1:
        return [f"{stem}.tail.onnx"]
    names: list[str] = []
    for layer in layers:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", layer).strip("._") or "layer"
        taken = {n.casefold() for n in names}
        ends = ("", *(f"_{k}" for k in range(2, len(layers) + 1)))
        wanted = (f"{stem}.{safe}{end}.tail.onnx" for end in ends)
        names.append(next(n for n in wanted if n.casefold() not in taken))
    return names


# -- sizes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerImage:
    """A size that is a number of entries for each image of the batch."""

    rows: int


class Extents:
    """Which sizes of a model's tensors follow the batch.

    Args:
        model: with shapes inferred.
        feeds: sizes that it runs with.

    Attributes:
        batch: the size of a fixed one; else its symbol, or None.
        fixed: whether it is fixed.
    """

    def __init__(self, model: ir.Model, feeds: Feeds) -> None:
        self._model = model
        self._feeds = feeds
        dims = dims_of(image_input(model.graph)) or (None,)
        self.batch = dims[0]
        self.fixed = isinstance(self.batch, int)
        inputs = [v for v in model.graph.inputs if not v.is_initializer()]
        symbols = {d for v in inputs for d in dims_of(v) or () if isinstance(d, str)}
        self._others = symbols - {self.batch}
        self._measured: list[dict[str | None, tuple[int | str | None, ...] | None]] = []

    def __call__(self, value: ir.Value, axis: int) -> int | PerImage | None:
        """The size of an axis: a number, so many for each image, or None where it is another open one.

        Raises:
            ModelError: it cannot be told.
        """
        size = self._dims(value)[axis]
        if isinstance(size, int):
            return size
        if self.fixed or size in self._others:
            return None
        if size is not None and size == self.batch:
            return PerImage(1)
        shapes = [found.get(value.name) for found in self._at_batches()]
        first, second = (None if dims is None else dims[axis] for dims in shapes)
        if isinstance(first, int) and isinstance(second, int):
            if first == second:
                return None
            rows = first // _BATCHES[0]
            if (first, second) == (rows * _BATCHES[0], rows * _BATCHES[1]):
                return PerImage(rows)
        raise ModelError(
            f"A tail would need the size of axis {axis} of {value.name!r}, and the file does not tell "
            "whether it follows the batch. Fix the input's sizes (`input_shapes=`), or leave the tail out."
        )

    def rows(self, value: ir.Value) -> int:
        """How many entries of the first axis each image has; 0 where it counts something else.

        Raises:
            ModelError: it cannot be told.
        """
        if not self._dims(value):
            return 0
        size = self(value, 0)
        if isinstance(size, PerImage):
            return size.rows
        if self.fixed and isinstance(self.batch, int) and isinstance(size, int):
            return size // self.batch if size % self.batch == 0 else 0
        return 0

    def rank(self, value: ir.Value) -> int:
        """How many axes a value has."""
        return len(self._dims(value))

    def _dims(self, value: ir.Value) -> tuple[int | str | None, ...]:
        dims = dims_of(value)
        if dims is None and (dims := self._at_batches()[0].get(value.name)) is not None:
            dims = (None,) * len(dims)
        if dims is None:
            raise shape_unknown(value)
        return dims

    def _at_batches(self) -> list[dict[str | None, tuple[int | str | None, ...] | None]]:
        """The shapes by name at two batches."""
        if not self._measured:
            self._measured = [_shapes(self._model, self._feeds, batch) for batch in _BATCHES]
        return self._measured


def _shapes(
    model: ir.Model, feeds: Feeds, batch: int
) -> dict[str | None, tuple[int | str | None, ...] | None]:
    copy = model.clone()
    for value in copy.graph.inputs:
        fed = feeds.get(value.name or "")
        if fed is not None:
            dims = dims_of(value) or fed.shape
            sizes = [d if isinstance(d, int) else n for d, n in zip(dims, fed.shape, strict=True)]
            if dims and not isinstance(dims[0], int):
                sizes[0] = batch
            value.shape = ir.Shape(sizes)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    settle_shapes(copy)
    return {v.name: dims_of(v) for node in copy.graph for v in node.outputs}


# -- what belongs to a tail -------------------------------------------------------------------------


@dataclass
class _Outline:
    """What a tail consists of, by values of the whole graph.

    Attributes:
        layer: the value that it starts from.
        rows: how many entries of its first axis each image has.
        wanted: the outputs.
        sides: values that do not depend on the layer.
        measured: values of which only sizes are needed, and that do not depend on the layer either.
    """

    layer: ir.Value
    rows: int
    wanted: list[ir.Value]
    sides: list[ir.Value] = field(default_factory=list)
    measured: list[ir.Value] = field(default_factory=list)


def _outline(graph: ir.Graph, record: Record, layer: Layer, value: ir.Value, extents: Extents) -> _Outline:
    rows = extents.rows(value)
    if not rows or not _images_first(layer):
        raise ModelError(
            f"The layer {layer.name!r} has the shape {list(dims_of(value) or ())}, in which the images do "
            "not follow each other along the first axis: its tail could not be run with another batch. Leave "
            "the tail out, or choose another layer (`onnxcam layers MODEL`)."
        )
    moved = _moved(graph, [value, *_choices(graph, record)])
    data = _data(graph, moved)
    wanted = [
        v
        for v in graph.outputs
        if v.name == layer.gradients or (v in moved and _is_told(v.name or "", record))
    ]
    found = _Outline(value, rows, wanted)
    seen: set[ir.Value] = set()
    stack = list(reversed(wanted))
    while stack:
        v = stack.pop()
        if v in seen or v is value:
            continue
        seen.add(v)
        node = v.producer()
        if v in data and not (node is not None and _reads_quantized(node, data)):
            found.sides.append(v)
        elif node is not None and _measures(node, data):
            measured = node.inputs[0]
            assert measured is not None
            found.measured.append(measured)
        elif node is not None:
            stack += [x for x in (*node.inputs, *captured_by(node)) if x is not None]
    found.sides = list(dict.fromkeys(found.sides))
    found.measured = list(dict.fromkeys(found.measured))
    return found


def _is_told(name: str, record: Record) -> bool:
    """Whether an output says what was explained."""
    return name == record.score.output or (name.startswith(PREFIX) and not name.startswith(_NOT_TOLD))


def _images_first(layer: Layer) -> bool:
    """Whether one image's entries follow the other's along the first axis."""
    factors = layer.layout.axes
    places = [(k, n) for k, axis in enumerate(factors) for n, factor in enumerate(axis) if factor.of == "N"]
    return not places or places == [(0, 0)]


def _choices(graph: ir.Graph, record: Record) -> list[ir.Value]:
    """The optional inputs."""
    names = {*CHOICES[record.score.task], *(seed.input for seed in record.score.seeds)}
    return [v for v in graph.inputs if v.name in names]


def _moved(graph: ir.Graph, sources: Sequence[ir.Value]) -> set[ir.Value]:
    """All that is computed from these values."""
    moved = set(sources)
    for node in graph:
        if not moved.isdisjoint((*node.inputs, *captured_by(node))) and moved.isdisjoint(node.outputs):
            moved.update(node.outputs)
    return moved


def _data(graph: ir.Graph, moved: Collection[ir.Value]) -> set[ir.Value]:
    """What is not moved, and computed from the numbers of the model's inputs, not from their sizes alone."""
    data = {v for v in graph.inputs if not v.is_initializer()} - set(moved)
    for node in graph:
        if node.op_type not in _MEASURING and not data.isdisjoint((*node.inputs, *captured_by(node))):
            data.update(v for v in node.outputs if v not in moved)
    return data


_MEASURING = ("Shape", "Size")


def _measures(node: ir.Node, data: Collection[ir.Value]) -> bool:
    return node.op_type in _MEASURING and not node.domain and node.inputs[0] in data


def _reads_quantized(node: ir.Node, data: Collection[ir.Value]) -> bool:
    """Whether a node gives the real numbers of a quantised tensor, which is smaller."""
    return node.op_type == "DequantizeLinear" and not any(v in data for v in node.inputs[1:])


# -- sides ------------------------------------------------------------------------------------------


class _Sides:
    """The outputs by which the whole graph hands its tails what they read."""

    def __init__(self, graph: ir.Graph, extents: Extents) -> None:
        self._op = Builder(graph, shape_unknown)
        self._extents = extents
        self._made: dict[ir.Value, Side] = {}
        self._sizes: dict[ir.Value, Side] = {}

    def add(self, outline: _Outline) -> None:
        """Make outputs of an outline's sides."""
        for value in outline.sides:
            if value not in self._made:
                self._made[value] = self._output(value)
        for value in outline.measured:
            sizes = [self._extents(value, k) for k in range(self._extents.rank(value))]
            if None in sizes and value not in self._sizes:
                measured = self._op.Shape(self._op.wrap(value)).value
                measured.shape = ir.Shape([len(sizes)])
                self._sizes[value] = self._output(measured, 0)

    def all_of(self, outline: _Outline) -> tuple[Side, ...]:
        """An outline's sides."""
        sizes = (self._sizes[v] for v in outline.measured if v in self._sizes)
        return (*(self._made[v] for v in outline.sides), *sizes)

    def of(self, value: ir.Value) -> Side:
        """That of a value's numbers."""
        return self._made[value]

    def sizes(self, value: ir.Value) -> tuple[Side | None, list[int | PerImage | None]]:
        """Of a value's sizes, if a tail must be told some; and the sizes."""
        return self._sizes.get(value), [self._extents(value, k) for k in range(self._extents.rank(value))]

    def _output(self, value: ir.Value, rows: int | None = None) -> Side:
        graph, op = self._op.graph, self._op
        if not isinstance(value.type, ir.TensorType):
            raise ModelError(
                f"A tail would read {value.name!r}, which is no tensor but {value.type}: it cannot be handed "
                "over. Leave the tail out, or choose another layer."
            )
        rows = self._extents.rows(value) if rows is None else rows
        narrow = value.dtype == ir.DataType.BFLOAT16  # which NumPy does not know
        if value.is_graph_output() and not narrow:
            return Side(value.name or "", rows=rows)
        name = op.unique(side_name(len(self._made) + len(self._sizes)))
        own = value.producer() is not None and not narrow
        tensor = value.name or "" if own and not (value.name or "").startswith(NODE_PREFIX) else ""
        dims = value.shape if value.shape is not None else ir.Shape([None] * self._extents.rank(value))
        if not own:
            with op.working_on("what goes around a layer", value.name or ""):
                x = op.wrap(value)
                value = (op.single(x) if narrow else op.Identity(x, dims=x.dims)).value
        value.name, value.shape = name, dims
        graph.outputs.append(value)
        return Side(name, tensor, rows)


# -- the tail itself --------------------------------------------------------------------------------


def _extracted(model: ir.Model, layer: Layer, outline: _Outline, sides: _Sides) -> tuple[ir.Model, bool]:
    """The tail's model, and whether it takes changed cells alone."""
    tail = model.clone()
    graph = tail.graph
    values = named_values(graph)
    op = Builder(graph, shape_unknown)
    shown = next(v for v in model.graph.outputs if v.name == layer.activations)
    wanted = [values[v.name or ""] for v in outline.wanted]
    choices = [v for v in graph.inputs if v.is_initializer()]
    graph.outputs.clear()
    graph.inputs.clear()

    def entering(name: str, kind: ir.TypeProtocol | None, shape: ir.Shape | None) -> Var:
        value = ir.Value(name=name, type=kind, shape=shape)
        graph.inputs.append(value)
        return op.wrap(value)

    activations = entering(layer.activations, shown.type, outline.layer.shape)
    start = values[outline.layer.name or ""]
    with op.working_on("the start of the tail", layer.name):
        entries = {start: _as_inside(op, activations, start)}
        for value in outline.measured:
            side, sizes = sides.sizes(value)
            told = None if side is None else entering(side.name, _INT64, ir.Shape([len(sizes)]))
            _resize(op, values[value.name or ""], sizes, activations, outline.rows, told)
        for value in outline.sides:
            narrow = value.dtype == ir.DataType.BFLOAT16
            kind = ir.TensorType(ir.DataType.FLOAT) if narrow else value.type
            entry = entering(sides.of(value).name, kind, value.shape)
            entries[values[value.name or ""]] = op.cast(entry, value.dtype or entry.dtype)
        for old, new in entries.items():
            old.replace_all_uses_with(new.value)
        outputs = [op.output(entries[v], v.name or "", v) if v in entries else v for v in wanted]
    graph.outputs.extend(outputs)
    graph.inputs.extend(choices)
    _remove_unused(graph)
    graph.sort()
    local = _local(op, activations.value, [sides.of(v) for v in outline.sides], outline, choices, layer)
    _on_request(op, layer)
    return tail, local


def _local(
    op: Builder,
    activations: ir.Value,
    sides: Sequence[Side],
    outline: _Outline,
    choices: Sequence[ir.Value],
    layer: Layer,
) -> bool:
    """Give a tail its way from changed cells, if it can have one."""
    graph = op.graph
    if layer.layout.kind != "NCHW" or outline.rows != 1 or any(s.rows > 1 for s in sides):
        return False
    inputs = {v.name: v for v in graph.inputs}
    per_image = [inputs[s.name] for s in sides if s.rows == 1 and s.name in inputs]
    told = [v for v in graph.outputs if v.name != layer.gradients]
    needed = _ancestors(told)
    nodes = [n for n in graph if n in needed]
    return add_local_way(op, activations, per_image, told, _moved(graph, choices), nodes)


_INT64 = ir.TensorType(ir.DataType.INT64)


def _as_inside(op: Builder, x: Var, start: ir.Value) -> Var:
    """Activations as the file shows them, as the layer has them.

    Where those are dequantised numbers, they are quantised and dequantised again: only behind that ONNX
    Runtime runs integer kernels, and others would give other scores than the file's.
    """
    if not is_real(start):
        how = quantization(start)
        assert how is not None
        operands = [op.wrap(v) for v in (how.scale, how.zero_point) if v is not None]
        return _quantized(op, x, operands, how.axis, start)
    node = start.producer()
    source = node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None
    if node is not None and source is not None and source.dtype in _BYTES:
        operands = [op.wrap(v) for v in node.inputs[1:] if v is not None]
        again = _quantized(op, x, operands, node.attributes.get_int("axis", 1), source)
        made = op.DequantizeLinear(again, *operands, **dict(node.attributes.items()), dims=x.dims)
        made.value.type = start.type
        return made
    return op.cast(x, start.dtype or ir.DataType.FLOAT)


_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


def _quantized(op: Builder, x: Var, operands: Sequence[Var], axis: int, like: ir.Value) -> Var:
    """Real numbers quantised as another tensor is; ``operands`` are its scale and perhaps its zero point."""
    if len(operands) == 1 and like.dtype != ir.DataType.UINT8:  # the zero point tells the type
        zero = np.zeros([d for d in operands[0].shape if isinstance(d, int)], np.int8)
        operands = [*operands, op.const(zero)]
    made = op.QuantizeLinear(x, *operands, axis=None if operands[0].rank == 0 else axis, dims=x.dims)
    made.value.type = like.type
    return made


def _resize(
    op: Builder, value: ir.Value, sizes: Sequence[int | PerImage | None], x: Var, rows: int, side: Var | None
) -> None:
    """Put a tail's own sizes in the place of those of a value that it does not have."""
    for node in [n for n in value.consumers() if n.op_type in _MEASURING and not n.domain]:
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
        axes = range(len(sizes)) if node.op_type == "Size" else range(*slice(start, end).indices(len(sizes)))
        parts = [_size(op, sizes[k], k, x, rows, side) for k in axes]
        made = op.Concat(*parts, axis=0, dims=(len(parts),)) if len(parts) != 1 else parts[0]
        if not parts:
            made = op.const(np.zeros(0, np.int64))
        if node.op_type == "Size":
            made = op.ReduceProd(made, keepdims=0, dims=())
        node.outputs[0].replace_all_uses_with(made.value)


def _size(op: Builder, size: int | PerImage | None, axis: int, x: Var, rows: int, side: Var | None) -> Var:
    """A size as a vector of one entry."""
    if isinstance(size, int):
        return op.operand([size])
    if size is None:
        assert side is not None
        return op.Slice(side, [axis], [axis + 1], [0], dims=(1,))
    found = op.Shape(x, start=0, end=1, dims=(1,))
    if size.rows != rows:
        found = op.Div(op.Mul(found, op.operand([size.rows])), op.operand([rows]))
    return found


def _remove_unused(graph: ir.Graph) -> None:
    """Nodes and constants that no output needs."""
    kept = _ancestors(graph.outputs)
    unused = [n for n in graph if n not in kept]
    for node in reversed(unused):
        for inner in subgraphs(node):
            empty(inner)
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def _ancestors(values: Iterable[ir.Value | None]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in found:
            found.add(node)
            stack += [*node.inputs, *captured_by(node)]
    return found


def _on_request(op: Builder, layer: Layer) -> None:
    """Put what only the gradient needs into a branch that is taken where the gradient is asked for.

    With it goes what it computes from weights alone: ONNX Runtime folds that inside the branch, and brings
    only weights that it finds there into the blocked layout of its convolutions.
    """
    graph = op.graph
    gradient = next(v for v in graph.outputs if v.name == layer.gradients)
    others = [v for v in graph.outputs if v is not gradient]
    always = _ancestors(others)
    inner = [n for n in graph if n not in always]
    position = [*graph.outputs].index(gradient)
    graph.outputs[:] = others
    with op.working_on("the gradient on request", layer.name):
        asked = optional_input(op, WITH_GRADIENTS, np.zeros(1, np.bool_))
        asked.value.shape = ir.Shape([1])
        nothing = _nothing(op, gradient)
        then = _branch(op, "then", gradient, inner)
        name = op.unique(f"{NODE_PREFIX}{op.scope}If")
    made = ir.Node(
        "",
        "If",
        [asked.value],
        [ir.AttrGraph("then_branch", then), ir.AttrGraph("else_branch", nothing)],
        num_outputs=1,
        name=name,
    )
    (result,) = made.outputs
    rank = len(dims_of(gradient) or layer.shape)
    result.name, result.type, result.shape = layer.gradients, gradient.type, ir.Shape([None] * rank)
    graph.append(made)
    graph.outputs.insert(position, result)


def _branch(op: Builder, name: str, gradient: ir.Value, nodes: Sequence[ir.Node]) -> ir.Graph:
    opsets = dict(op.graph.opset_imports)
    branch = ir.Graph([], [], nodes=[], opset_imports=opsets, name=f"{NODE_PREFIX}{name}")
    for node in nodes:
        op.graph.remove(node)
        branch.append(node)
    inside = op.inside(branch)
    # ONNX Runtime looks for quantised weights beside the node that reads them, and fails if they are outside
    # the branch; a copy is folded in there.
    for node in [n for n in nodes if n.op_type == "DequantizeLinear"]:
        for k, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and not value.is_graph_input():
                again = inside.Reshape(inside.wrap(value), list(dims_of(value) or ()), dims=dims_of(value))
                node.replace_input_with(k, again.value)
    branch.sort()
    if gradient.graph is not branch or gradient.producer() is None:
        gradient = inside.Identity(inside.wrap(gradient), dims=dims_of(gradient)).value
    gradient.name = op.unique(f"{NODE_PREFIX}{op.scope}gradient")
    branch.outputs.append(gradient)
    return branch


def _nothing(op: Builder, like: ir.Value) -> ir.Graph:
    """A branch that gives an empty tensor."""
    dtype = (like.dtype or ir.DataType.FLOAT).numpy()
    empty_tensor = np.zeros((0,) * len(dims_of(like) or ()), dtype)
    name = op.unique(f"{NODE_PREFIX}{op.scope}none")
    node = ir.node("Constant", [], {"value": ir.tensor(empty_tensor)}, name=name)
    node.outputs[0].name, node.outputs[0].type = op.unique(f"{name}_output_0"), like.type
    node.outputs[0].shape = ir.Shape(empty_tensor.shape)
    opsets = dict(op.graph.opset_imports)
    return ir.Graph([], node.outputs, nodes=[node], opset_imports=opsets, name=f"{NODE_PREFIX}else")
