"""An operator without a rule, replaced by ONNX's own definition of it.

Many operators are defined by ONNX as a function of simpler ones. The body is computed once more
beside the forward node, which stays as it is, and the gradient is taken through the body.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx.inliner
import onnx_ir as ir

from .builder import Builder
from .registry import schema

_FUNCTION_DOMAIN = "onnxcam.body"


def expand(op: Builder, node: ir.Node) -> dict[ir.Value, ir.Value] | None:
    """Append a node's function body to the graph.

    Args:
        op: the builder of the graph.
        node: a node of an operator without a rule.

    Returns:
        For each output of ``node`` the value that recomputes it, or None if ONNX has no body for
        this operator at this opset.
    """
    body = _body_nodes(node, op.opset)
    if body is None:
        return None
    graph, names = body
    known: dict[str, ir.Value] = {
        inner.name: outer  # type: ignore[misc]
        for inner, outer in zip(graph.inputs, [v for v in node.inputs if v is not None], strict=True)
    }
    replaced = {v.name: w for v, w in zip(names, node.outputs, strict=True)}
    for initializer in graph.initializers.values():
        assert initializer.name is not None and initializer.const_value is not None
        known[initializer.name] = op.const(initializer.const_value.numpy()).value
    for inner in graph:
        made = ir.node(
            inner.op_type,
            [None if v is None else known[v.name] for v in inner.inputs],  # type: ignore[index]
            {a.name: a.value for a in inner.attributes.values()},
            num_outputs=len(inner.outputs),
            name=op.unique(f"onnxcam/{op.scope}{inner.op_type}"),
            doc_string=f"definition of {node.op_type} of {node.name}",
        )
        for k, (a, b) in enumerate(zip(inner.outputs, made.outputs, strict=True)):
            b.name = op.unique(f"{made.name}_output_{k}")
            b.type, b.shape, b.const_value = a.type, a.shape, a.const_value
            assert a.name is not None
            known[a.name] = b
        op.graph.append(made)
        op.added.append(made)
    return {w: known[name] for name, w in replaced.items() if name in known}  # type: ignore[index]


def _body_nodes(node: ir.Node, opset: int) -> tuple[ir.Graph, list[ir.Value]] | None:
    """The body as a graph of its own with shapes inferred, and its outputs in the node's order."""
    found = schema(node.op_type, node.domain, opset)
    if found is None or node.domain:
        return None
    proto = ir.serde.serialize_node(node)
    types = [
        ir.serde.serialize_value(v).type for v in node.inputs if v is not None and v.type is not None
    ]
    if len(types) != sum(v is not None for v in node.inputs):
        return None
    if found.has_function:
        versions = [v for v in found.function_opset_versions if v <= opset]
        raw = found.get_function_with_opset_version(versions[-1]) if versions else None
    elif found.has_context_dependent_function:
        versions = [v for v in found.context_dependent_function_opset_versions if v <= opset]
        with_absent = [_type_of(v) for v in node.inputs]
        raw = (
            found.get_context_dependent_function_with_opset_version(
                versions[-1], proto.SerializeToString(), with_absent
            )
            if versions
            else None
        )
    else:
        raw = None
    if not raw:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(raw)
    function.domain, function.name = _FUNCTION_DOMAIN, node.op_type
    call = onnx.NodeProto()
    call.CopyFrom(proto)
    call.domain = _FUNCTION_DOMAIN
    inputs = _unique(onnx.helper.make_value_info(i, t) for i, t in zip([i for i in call.input if i], types, strict=True))
    outputs = [onnx.helper.make_empty_tensor_value_info(o) for o in call.output if o]
    for info, v in zip(outputs, [o for o in node.outputs if o.name], strict=True):
        if v.type is not None:
            info.CopyFrom(ir.serde.serialize_value(v))
    model = onnx.helper.make_model(
        onnx.helper.make_graph([call], "body", inputs, outputs),
        functions=[function],
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(_FUNCTION_DOMAIN, 1)],
        ir_version=10,
    )
    model = onnx.inliner.inline_local_functions(model, convert_version=True)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    built = ir.serde.deserialize_model(model)
    lift_constants(built.graph)
    by_name = {v.name: v for v in built.graph.outputs}
    return built.graph, [by_name.get(o.name) or o for o in node.outputs]


def lift_constants(graph: ir.Graph) -> None:
    """Turn Constant nodes into initializers, in place."""
    for node in [n for n in graph if n.op_type == "Constant" and not n.domain]:
        value = node.outputs[0]
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or value.is_graph_output():
            continue
        constant = ir.Value(
            name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
        value.replace_all_uses_with(constant)
        graph.remove(node, safe=True)
        graph.register_initializer(constant)


def _type_of(value: ir.Value | None) -> bytes:
    if value is None:
        return onnx.TypeProto().SerializeToString()
    return ir.serde.serialize_value(value).type.SerializeToString()


def _unique(infos: Any) -> list[onnx.ValueInfoProto]:
    return list({i.name: i for i in infos}.values())

