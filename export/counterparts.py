"""A network and its quantised form, read side by side: which tensor of one is which of the other.

Both graphs are followed from their outputs back to their inputs at once. On the quantised side Q and DQ, and
what exporters write between them, are passed over and noted; all else must be the same on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import onnx
import onnx_ir as ir

from ..errors import ModelError
from .gradients.control_flow import captured_by, subgraphs
from .gradients.definitions.registry import MICROSOFT
from .gradients.registry import plain, schema
from .paths import fed

_EMPTY = frozenset(("Identity", "Dropout"))
#: Activations that a quantiser may leave to the range's lower or upper end.
_IN_RANGE = frozenset(("Relu", "Clip"))
#: Operators that do the same to whole numbers as to the real ones that they stand for.
_MOVING = frozenset(
    "Reshape Flatten Squeeze Unsqueeze Transpose MaxPool Slice Gather DepthToSpace SpaceToDepth Tile".split()
)


@dataclass(frozen=True, eq=False)
class Step:
    """An activation's way through whole numbers and back.

    Attributes:
        quantize: the node.
        dequantize: the node that reads what it gives.
        before: what is quantised, in the reference, where that is not the tensor itself: what went into a
            Relu or Clip that the quantised file leaves to the range.
    """

    quantize: ir.Node
    dequantize: ir.Node
    before: ir.Value | None = None


@dataclass(frozen=True, eq=False)
class Use:
    """A place where the quantised file may read other numbers than the reference.

    Attributes:
        node: of the reference, that reads; None for the graph's outputs.
        index: of its input, or of the output.
        value: what it reads there.
        steps: that the activation takes in the quantised file, the first one first.
        constant: what is read there instead in the quantised file, where that is a constant.
    """

    node: ir.Node | None
    index: int
    value: ir.Value
    steps: tuple[Step, ...] = ()
    constant: ir.Value | None = None


def uses(reference: ir.Graph, quantised: ir.Graph) -> list[Use]:
    """Where the two differ by no more than quantisation.

    Args:
        reference: in normal form.
        quantised: in normal form; changed in place: what stands between Q and DQ moves behind DQ.

    Raises:
        ModelError: they are not of one network; the first difference, from the outputs on, is named.
    """
    _dequantise_first(quantised)
    inputs = _aligned(reference, quantised, "input")
    depends = set(fed(reference)) | {v for v in reference.inputs if not v.is_initializer()}
    theirs = set(fed(quantised)) | {v for v in quantised.inputs if not v.is_initializer()}
    outputs = _aligned(reference, quantised, "output")
    # The outputs lie in a stack upside down: the first is looked at first.
    stack: list[tuple[ir.Node | None, int, ir.Value | None, ir.Value | None]] = []
    stack += [(None, index, ours, outputs[ours]) for index, ours in enumerate(reference.outputs)][::-1]
    found: list[Use] = []
    matched: dict[ir.Node, ir.Node] = {}
    while stack:
        reader, index, ours, their = stack.pop()
        if ours is None or their is None:
            if ours is not their:
                _differ(reader, f"input {index} is there in one file alone")
            continue
        if (ours in depends) != (their in theirs):
            _differ(reader, f"{ours.name!r} is a constant in one file alone")
        if ours not in depends:
            found.append(Use(reader, index, ours, constant=their))
            continue
        before, steps, source = _unwrapped(ours, their)
        if steps:
            found.append(Use(reader, index, ours, steps))
        node, other = before.producer(), source.producer()
        if node is None or other is None:
            if node is not other or inputs[before] is not source:
                _differ(reader, f"it reads {_made(before)} in the reference and {_made(source)} in the other")
            continue
        if before.index() != source.index() or matched.get(node, other) is not other:
            _differ(reader, f"it reads another result than that of {_label(node)}, or of a copy of it")
        if node not in matched:
            matched[node] = other
            _check_same(node, other)
            width = max(len(node.inputs), len(other.inputs))
            pairs = zip(_padded(node.inputs, width), _padded(other.inputs, width), strict=True)
            stack += [(node, k, a, b) for k, (a, b) in enumerate(pairs)][::-1]
    return found


def _unwrapped(ours: ir.Value, their: ir.Value) -> tuple[ir.Value, tuple[Step, ...], ir.Value]:
    """Two values as their own nodes made them, and the steps between on the quantised side."""
    before = _past_empty(ours)
    steps: list[Step] = []
    while (node := their.producer()) is not None:
        if node.op_type in _EMPTY and node.inputs[0] is not None:
            their = node.inputs[0]
            continue
        made = _quantizer(node) if node.op_type == "DequantizeLinear" else None
        if made is None or made.inputs[0] is None:
            break
        steps.append(Step(made, node))
        their = made.inputs[0]
    steps.reverse()
    inner = before.producer()
    if steps and inner is not None and inner.op_type in _IN_RANGE and inner.inputs[0] is not None:
        other = their.producer()
        if other is None or other.op_type != inner.op_type:
            before = inner.inputs[0]
            steps[0] = Step(steps[0].quantize, steps[0].dequantize, before)
            before = _past_empty(before)
    return before, tuple(steps), their


def _past_empty(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type in _EMPTY and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _quantizer(dequantize: ir.Node) -> ir.Node | None:
    """The QuantizeLinear whose numbers a DequantizeLinear reads, perhaps past Identity and Cast."""
    value = dequantize.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "QuantizeLinear":
            return node
        source = node.inputs[0]
        if node.op_type not in ("Identity", "Cast") or source is None or source.dtype != value.dtype:
            return None
        value = source
    return None


def _dequantise_first(graph: ir.Graph) -> None:
    """``DQ(move(q))`` as ``move(DQ(q))``, where one scale is that of all entries."""
    pending = [n for n in graph if n.op_type == "DequantizeLinear"]
    while pending:
        node = pending.pop()
        value, scale = node.inputs[0], node.inputs[1]
        move = None if value is None else _past_empty(value).producer()
        if move is None or move.op_type not in _MOVING or move.domain or not _is_single(scale):
            continue
        real = ir.node(node.op_type, [move.inputs[0], *node.inputs[1:]], node.attributes, domain=node.domain)
        moved = ir.node(move.op_type, [real.outputs[0], *move.inputs[1:]], move.attributes, name=move.name)
        for made in (real.outputs[0], moved.outputs[0]):
            made.type = node.outputs[0].type
        real.outputs[0].name = f"{node.outputs[0].name}/before {move.op_type}"
        graph.insert_before(node, [real, moved])
        ir.convenience.replace_all_uses_with(node.outputs[0], moved.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
        pending.append(real)


def _is_single(scale: ir.Value | None) -> bool:
    return scale is not None and scale.shape is not None and all(d == 1 for d in scale.shape)


def _aligned(ours: ir.Graph, theirs: ir.Graph, what: str) -> Mapping[ir.Value, ir.Value]:
    """The inputs, or the outputs, of two graphs: by name if the names are the same, else in order."""
    a, b = (
        list(g.outputs) if what == "output" else [v for v in g.inputs if not v.is_initializer()]
        for g in (ours, theirs)
    )
    if len(a) != len(b):
        raise ModelError(
            f"The two files are not of one network: the reference has {len(a)} {what}s and the quantised "
            f"file {len(b)}. {_ADVICE}"
        )
    named = {v.name: v for v in b}
    if {v.name for v in a} == set(named):
        b = [named[v.name] for v in a]
    return dict(zip(a, b, strict=True))


_ADVICE = (
    "Give the very file that was quantised: where it was prepared first (ONNX Runtime's quant_pre_process "
    "fuses nodes), that is the prepared one."
)


def _check_same(node: ir.Node, other: ir.Node) -> None:
    if (node.op_type, node.domain) != (other.op_type, other.domain):
        _differ(node, f"the quantised file has {_label(other)} there")
    if any(True for _ in subgraphs(node)) or captured_by(node):
        raise ModelError(
            f"{_label(node)} holds graphs of its own, in which quantised tensors are not looked for. "
            "Export the network without control flow."
        )
    a, b = _attributes(node), _attributes(other)
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            _differ(node, f"its {name} is {a.get(name)}, and {b.get(name)} in the quantised file")


def _attributes(node: ir.Node) -> dict[str, Any]:
    """With the defaults of those that are not given; tensors by their bytes."""
    opset = node.graph.opset_imports.get(node.domain, 1) if isinstance(node.graph, ir.Graph) else 1
    known = schema(node.op_type, node.domain, opset)
    found = {}
    for name, attribute in known.attributes.items() if known is not None else ():
        if attribute.default_value.name:
            found[name] = plain(onnx.helper.get_attribute_value(attribute.default_value))
    for name, given in node.attributes.items():
        value = given.value
        found[name] = value.numpy().tobytes() if isinstance(value, ir.TensorProtocol) else plain(value)
    return found


def _padded(values: Any, width: int) -> list[ir.Value | None]:
    return [*values, *[None] * (width - len(values))]


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name!r}"


def _made(value: ir.Value) -> str:
    node = value.producer()
    return f"the input {value.name!r}" if node is None else f"the result of {_label(node)}"


def _differ(reader: ir.Node | None, how: str) -> NoReturn:
    where = "the outputs" if reader is None else _label(reader)
    raise ModelError(
        "The two files are not of one network: from the outputs backwards, the first difference is at "
        f"{where}: {how}. {_ADVICE}"
    )


#: Operators of other forms of quantisation, which compute with whole numbers themselves.
_OTHER_FORMS = frozenset(
    "QLinearConv QLinearMatMul ConvInteger MatMulInteger DynamicQuantizeLinear QGemm DynamicQuantizeMatMul "
    "MatMulIntegerToFloat QLinearAdd QLinearMul QLinearConcat QLinearGlobalAveragePool QLinearAveragePool "
    "QLinearLeakyRelu QLinearSigmoid QLinearSoftmax QAttention MatMulNBits".split()
)


def check_form(graph: ir.Graph) -> None:
    """Refuse a file that is not quantised by Q and DQ around real operators.

    Raises:
        ModelError: it is of another form, or not quantised.
    """
    nodes = list(graph.all_nodes())
    other = next((n for n in nodes if n.op_type in _OTHER_FORMS), None)
    if other is not None:
        raise ModelError(
            f"The quantised file computes with whole numbers itself ({_label(other)}), so no tensor of it "
            "can be put back to float. Quantise to QDQ: quantize_static(..., quant_format=QuantFormat.QDQ)."
        )
    if not any(n.op_type == "DequantizeLinear" and n.domain in ("", MICROSOFT) for n in nodes):
        raise ModelError(
            "The quantised file holds no DequantizeLinear: nothing in it is quantised. Give the fp32 file "
            "first and its QDQ version second."
        )


def dequantizer(constant: ir.Value) -> ir.Node | None:
    """The DequantizeLinear that a constant comes from; None if it holds real numbers all along."""
    stack = [constant]
    while stack:
        node = stack.pop().producer()
        if node is not None and node.op_type == "DequantizeLinear":
            return node
        stack += [v for v in node.inputs if v is not None] if node is not None else []
    return None


def stored(constant: ir.Value) -> ir.Value:
    """The file's tensor that a constant is computed from, by way of its nodes' first inputs."""
    while (node := constant.producer()) is not None and node.inputs and node.inputs[0] is not None:
        constant = node.inputs[0]
    return constant
