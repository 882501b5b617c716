"""Which values a score depends on, and through what; and the image, from which all starts."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ..errors import ModelError
from .gradients.control_flow import captured_by, is_if
from .gradients.registry import input_name, stop_reason

#: What quantised tensors, and sums of them, consist of; shapes and indices are int64.
_QUANTIZED = frozenset(ir.DataType[f"{sign}INT{bits}"] for sign in ("", "U") for bits in (4, 8, 16, 32))


def image_input(graph: ir.Graph) -> ir.Value:
    """The input that takes the image: the first of rank 4; else a volume, a signal, or the first."""
    inputs = [v for v in graph.inputs if not v.is_initializer()]
    if not inputs:
        raise ModelError("The model has no inputs: there is nothing to explain.")
    ranks = [len(v.shape) if v.shape is not None else 0 for v in inputs]
    return next((inputs[ranks.index(rank)] for rank in (4, 5, 3) if rank in ranks), inputs[0])


def on_path(graph: ir.Graph, scores: Iterable[ir.Value]) -> list[ir.Value]:
    """The values that a score depends on through floating-point inputs, in topological order."""
    wanted = set(scores)
    stack = [*wanted]
    while stack:
        node = stack.pop().producer()
        for source in sources(node, graph) if node is not None else ():
            if source not in wanted:
                wanted.add(source)
                stack.append(source)
    return [v for v in fed(graph) if v in wanted]


def fed(graph: ir.Graph) -> list[ir.Value]:
    """The values that nodes make of the graph's inputs, not of constants alone, in topological order."""
    found = {v: None for v in graph.inputs if not v.is_initializer()}
    given = len(found)
    for node in graph:
        if any(v in found for v in (*node.inputs, *captured_by(node))):
            found.update(dict.fromkeys(node.outputs))
    return list(found)[given:]


def sources(node: ir.Node, graph: ir.Graph) -> Iterable[ir.Value]:
    """The inputs of a node through which a gradient could flow."""
    opset = graph.opset_imports.get("", 18)
    captured = captured_by(node) if is_if(node) else []
    return [
        v
        for k, v in [*enumerate(node.inputs), *((len(node.inputs), v) for v in captured)]
        if v is not None
        and (v.dtype is None or v.dtype.is_floating_point() or v.dtype in _QUANTIZED)
        and not v.is_initializer()
        and stop_reason(node, input_name(node, k, opset)) is None
    ]


def ancestors(node: ir.Node) -> set[ir.Value]:
    """All that a node's inputs are computed from, and they themselves."""
    found: set[ir.Value] = set()
    stack = list(node.inputs)
    while stack:
        value = stack.pop()
        if value is not None and value not in found:
            found.add(value)
            producer = value.producer()
            stack += list(producer.inputs) if producer is not None else []
    return found


def op_type(value: ir.Value) -> str:
    """The operator that makes a value; ``input`` for a graph's input."""
    node = value.producer()
    return node.op_type if node is not None else "input"
