"""What lies between a layer and the score: CAM's head or another."""

from __future__ import annotations

import onnx_ir as ir

from ..contract import Layout
from .gradients.registry import constant
from .paths import on_path
from .scores import SAME_NUMBERS


def linear_head(graph: ir.Graph, value: ir.Value, layout: Layout, score: ir.Value) -> bool:
    """Whether only global average pooling and linear maps lie between a layer and the score (CAM's head)."""
    path = set(on_path(graph, [score]))
    pooled = False
    while value is not score:
        users = [n for n in dict.fromkeys(value.consumers()) if any(v in path for v in n.outputs)]
        if len(users) != 1:
            return False
        node = users[0]
        kind = node.op_type
        if kind in ("GlobalAveragePool", "ReduceMean") and not pooled:
            pooled = _pools_grid(node, layout)
            if not pooled:
                return False
        elif kind in ("Transpose",) and not pooled:
            layout = Layout("NCHW" if layout.kind == "NHWC" else "NHWC")
        elif kind == "Add":
            others = [v for v in node.inputs if v is not value]
            if not pooled or not all(v is not None and v.is_initializer() for v in others):
                return False
        elif kind in ("Gemm", "MatMul", "Conv"):
            if not pooled or node.inputs[0] is not value:
                return False
        elif kind not in SAME_NUMBERS and not (pooled and kind == "Transpose"):
            return False
        value = node.outputs[0]
    return pooled


def _pools_grid(node: ir.Node, layout: Layout) -> bool:
    if layout.kind == "tokens":
        return False
    if node.op_type == "GlobalAveragePool":
        return layout.kind == "NCHW"
    axes = node.attributes.get_ints("axes", ())
    if not axes and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        axes = tuple(array.tolist()) if array is not None else ()
    wanted = {2, 3} if layout.kind == "NCHW" else {1, 2}
    return {a % 4 for a in axes} == wanted
