"""Shapes of a graph's values: by ONNX's inference, and through definitions where that ends."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from ..errors import ModelError
from .gradients import definitions
from .gradients.builder import dims_of
from .gradients.definitions import NoDefinition
from .gradients.registry import schema

_BODY = "onnxcam.shapes"
_NO_TENSOR = frozenset(
    """
    SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceMap SplitToSequence Optional
    """.split()
)


def infer_shapes(model: ir.Model) -> None:
    """Note types and shapes in a model, in place; what the file says already stays.

    ONNX's inference ends at an operator of another domain, such as ONNX Runtime's FusedConv. Where such an
    operator is defined by ONNX's own, a copy of the graph is made in which the definition stands in its
    place, and what is inferred there holds here. The copy shares the weights.

    Raises:
        ModelError: the file says another size than its nodes give.
    """
    _check_said(model)
    _infer(model)
    if not any(_is_foreign(node) for node in model.graph):
        return
    known = {v.name: v for node in _plain(model.clone(), False).graph for v in node.outputs if v.name}
    for value in [v for node in model.graph for v in node.outputs]:
        found = known.get(value.name or "")
        if found is not None:
            value.shape = _merged(value, found)
        if found is not None and value.type is None:
            value.type = found.type


#: Of which ONNX's inference gives some a wrong size, as of pools with a ceil_mode.
_DOUBTFUL = frozenset("Attention STFT".split())


def _check_said(model: ir.Model) -> None:
    """Infer without what the file says of its inner values; where both know a size, they must agree."""
    said = {v: v.shape for node in model.graph for v in node.outputs if v.shape is not None}
    for value in said:
        value.shape = None
    _infer(model)
    for value, shape in said.items():
        ours, theirs = dims_of(value), tuple(d if isinstance(d, int) else d.value for d in shape)
        pairs = zip(ours, theirs, strict=False) if ours is not None else ()
        differ = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
        if ours is not None and (len(ours) != len(theirs) or differ):
            node = value.producer()
            assert node is not None
            ceils = node.attributes.get_int("ceil_mode", 0)
            if node.op_type in _DOUBTFUL or ceils:
                break  # the file may know better, and all behind it too
            raise ModelError(
                f"The file says that {value.name!r} has the shape {list(theirs)}, but its {node.op_type} "
                f"makes it {list(ours)}. The file contradicts itself: export it again, or remove what it "
                "(`model.graph.value_info`)."
            )
    for value, shape in said.items():
        value.shape = shape


def _merged(value: ir.Value, found: ir.Value) -> ir.Shape | None:
    """A value's shape with what another inference found: sizes for symbols, and anything for nothing."""
    ours, theirs = dims_of(value), dims_of(found)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return found.shape if ours is None else value.shape
    return ir.Shape(
        [
            b if a is None or (isinstance(b, int) and not isinstance(a, int)) else a
            for a, b in zip(ours, theirs, strict=True)
        ]
    )


def in_plain_operators(graph: ir.Graph) -> ir.Graph:
    """A graph in which definitions stand in the place of what they define; itself if it has nothing of that.

    Values keep their names; shapes are inferred.
    """
    if not any(definitions.find(node) for node in graph):
        return graph
    return _plain(ir.Model(graph.clone(), ir_version=10), True).graph


def _plain(model: ir.Model, every: bool) -> ir.Model:
    while _substitute(model, every):
        passes.InlinePass()(model)
        _infer(model)
    return model


def _infer(model: ir.Model) -> None:
    others = [v for n in model.graph.all_nodes() if n.op_type in _NO_TENSOR for v in n.outputs]
    types = {v: (v.type, v.shape) for v in others}
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for v, before in types.items():  # the pass takes a sequence for a tensor of its elements' type
        v.type, v.shape = before


def _is_foreign(node: ir.Node) -> bool:
    opset = node.graph.opset_imports.get("", 18) if node.graph is not None else 18
    return definitions.find(node) is not None and schema(node.op_type, node.domain, opset) is None


def _substitute(model: ir.Model, every: bool = False) -> bool:
    """Turn foreign nodes into calls of their definitions, in place; whether there were any that could be.

    Args:
        model: its functions are to be inlined.
        every: not foreign ones alone, but all that have a definition among :mod:`.gradients.definitions`.
    """
    opset = model.graph.opset_imports.get("", 18)
    model.graph.opset_imports[_BODY] = 1
    before = len(model.functions)
    for k, node in enumerate(list(model.graph)):
        found = definitions.find(node) if every or _is_foreign(node) else None
        if found is None:
            continue
        try:
            proto = found.function(node, opset, _BODY)
        except NoDefinition:
            continue  # perhaps for want of a shape that the next round knows
        proto.name = f"{node.op_type}_{k}"
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
        named = [v for v in node.outputs if v.name]
        call = ir.Node(_BODY, proto.name, node.inputs, num_outputs=len(named), name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [call], named, call.outputs)
    return len(model.functions) > before
