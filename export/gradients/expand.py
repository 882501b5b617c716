"""An operator without a rule, replaced by its definition.

Many operators are defined by ONNX as a function of simpler ones; :mod:`.definitions` does the same for
others. The body is computed once more beside the forward node, which stays as it is, and the gradient is
taken through the body. What rules read of the body's results is the node's own result, so that of the
second computation only what they need in between stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import onnx_ir as ir
import onnx_ir.passes.common as passes

from . import definitions
from .builder import NODE_PREFIX, Builder, Dim, Dims, dims_of, is_static
from .registry import constant, schema

_DOMAIN = "onnxcam.body"


def expand(op: Builder, node: ir.Node) -> dict[ir.Value, ir.Value] | None:
    """Append a node's function body to the graph.

    Args:
        op: the builder of the graph.
        node: a node of an operator without a rule.

    Returns:
        For each output of ``node`` the value that recomputes it, or None if nobody defines this operator
        at this opset.

    Raises:
        NoDefinition: there is a definition, but not of this form of the operator.
    """
    graph = definition(node, op.opset)
    if graph is None:
        return None
    known = {v.name: v for v in node.inputs if v is not None}
    ends = {v.name: v for v in graph.outputs}
    for value in (*graph.inputs, *graph.initializers.values()):
        there = known.get(value.name)
        if there is None:
            assert value.const_value is not None
            there = op.const(value.const_value.numpy()).value
        value.replace_all_uses_with(there, replace_graph_outputs=True)  # in branches, too
        if value.name in ends:
            ends[value.name] = there
    graph.outputs.clear()
    # The names that inference invents for other sizes are unique within the body alone.
    symbols = {d for v in (*node.inputs, *node.outputs) if v is not None for d in dims_of(v) or ()}
    moved = [*graph]
    for inner in [*graph.all_nodes()]:
        inner.name = op.unique(f"{NODE_PREFIX}{op.scope}{inner.op_type}")
        inner.doc_string = op.doc
        for k, value in enumerate(inner.outputs):
            value.name = op.unique(f"{inner.name}_output_{k}")
            value.shape = _known_shape(value, symbols)
    for inner in moved:
        graph.remove(inner)
        op.graph.append(inner)
        op.added.append(inner)
    return {v: ends[v.name] for v in node.outputs if v.name}


def definition(node: ir.Node, opset: int) -> ir.Graph | None:
    """A node's definition as a graph of its own, with the names of the node and with shapes.

    Raises:
        NoDefinition: see :func:`expand`.
    """
    ours = definitions.find(node)
    function = _definition(node, opset) if ours is None else ours.function(node, opset, _DOMAIN)
    return None if function is None else _inlined(node, function, opset)


def _definition(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    """ONNX's definition of a node, which may depend on its attributes and types; None if there is none."""
    found: Any = schema(node.op_type, node.domain, opset)
    ours = node.domain in ("", "ai.onnx.preview")
    if found is None or not ours or any(v is not None and v.type is None for v in node.inputs):
        return None
    if found.has_function:
        versions = [v for v in found.function_opset_versions if v <= opset]
        raw = found.get_function_with_opset_version(versions[-1]) if versions else None
    elif found.has_context_dependent_function:
        versions = [v for v in found.context_dependent_function_opset_versions if v <= opset]
        call = ir.serde.serialize_node(node).SerializeToString()
        types = [_type_of(v).SerializeToString() for v in node.inputs]
        raw = (
            found.get_context_dependent_function_with_opset_version(versions[-1], call, types)
            if versions
            else None
        )
    else:
        raw = None
    if not raw:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(raw)
    function.domain, function.name = _DOMAIN, node.op_type
    return function


def _inlined(node: ir.Node, function: onnx.FunctionProto, opset: int) -> ir.Graph:
    call = ir.serde.serialize_node(node)
    call.domain = _DOMAIN
    found = schema(node.op_type, node.domain, opset)
    if definitions.find(node) is not None:  # its attributes are in its body
        del call.attribute[:]
        call.output[:] = [name for name in call.output if name]
    elif found is not None:
        given = {a.name for a in call.attribute}
        call.attribute.extend(
            a.default_value
            for name, a in found.attributes.items()
            if name not in given and a.default_value.name
        )
    values = {v.name: v for v in node.inputs if v is not None and v.name}
    # Axes and sizes say what shapes come out; weights do not, and may be large.
    sizes = {
        n: a for n, v in values.items() if v.dtype == ir.DataType.INT64 and (a := constant(v)) is not None
    }
    graph = onnx.helper.make_graph(
        [call],
        "body",
        [onnx.helper.make_value_info(n, _type_of(v)) for n, v in values.items() if n not in sizes],
        [_declared(v) for v in node.outputs if v.name],
        [onnx.numpy_helper.from_array(a, n) for n, a in sizes.items()],
        value_info=[onnx.helper.make_value_info(n, _type_of(values[n])) for n in sizes],
    )
    model = onnx.helper.make_model(
        graph,
        functions=[function],
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(_DOMAIN, 1)],
        ir_version=10,
    )
    built = ir.from_proto(onnx.inliner.inline_local_functions(model, convert_version=True))
    lift_constants(built.graph)
    infer = passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    infer(built)
    while _fold_sizes(built.graph, opset):
        infer(built)
    return built.graph


def _fold_sizes(graph: ir.Graph, opset: int) -> bool:
    """Turn whole numbers that known sizes and constants determine into constants; whether there were any.

    Bodies are written for any shape and compute their axes and splits from it; inference stops there.
    """
    found = False
    for node in list(graph):
        value = node.outputs[0] if len(node.outputs) == 1 else None
        if value is None or value.is_graph_output() or value.dtype != ir.DataType.INT64:
            continue
        array = _size(node) if node.op_type == "Shape" else _computed(node, opset)
        if array is not None:
            to_initializer(graph, node, ir.tensor(array, name=value.name))
            found = True
    return found


def _size(node: ir.Node) -> np.ndarray[Any, Any] | None:
    wanted = sizes_of(node)
    return np.asarray(wanted, dtype=np.int64) if wanted is not None and is_static(wanted) else None


def sizes_of(node: ir.Node) -> Dims | None:
    """What a Shape node gives: the sizes from its start to its end; None if the rank is unknown."""
    value = node.inputs[0]
    dims = None if value is None else dims_of(value)
    if dims is None:
        return None
    return dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]


def _computed(node: ir.Node, opset: int) -> np.ndarray[Any, Any] | None:
    arrays: Any = {v.name: constant(v) for v in node.inputs if v is not None}
    if not arrays or any(a is None for a in arrays.values()):
        return None
    evaluate: Any = onnx.reference.ReferenceEvaluator(ir.serde.serialize_node(node), opsets={"": opset})
    return np.asarray(evaluate.run(None, arrays)[0])


def lift_constants(graph: ir.Graph) -> None:
    """Turn Constant nodes into initializers, in place."""
    for node in [n for n in graph if n.op_type == "Constant" and not n.domain]:
        value = node.outputs[0]
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or value.is_graph_output():
            continue
        to_initializer(graph, node, tensor)


def to_initializer(graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    """Put an initializer of the same name in the place of a node of one output, in place."""
    (value,) = node.outputs
    made = ir.Value(
        name=value.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    value.replace_all_uses_with(made)
    graph.remove(node, safe=True)
    graph.register_initializer(made)


def _known_shape(value: ir.Value, symbols: set[Dim]) -> ir.Shape | None:
    dims = dims_of(value)
    return (
        None if dims is None else ir.Shape([d if isinstance(d, int) or d in symbols else None for d in dims])
    )


def _declared(value: ir.Value) -> onnx.ValueInfoProto:
    """A result as the body's output; whole numbers may be defined as the real numbers that they are."""
    if value.dtype is None or value.dtype.is_floating_point():
        return ir.serde.serialize_value(value)
    return onnx.helper.make_empty_tensor_value_info(value.name or "")


def _type_of(value: ir.Value | None) -> onnx.TypeProto:
    return onnx.TypeProto() if value is None else ir.serde.serialize_value(value).type
