"""What lies between a layer and the score: CAM's head or another."""

from __future__ import annotations

import onnx_ir as ir

from ..contract import Layout
from ..grids import CHANNELS_FIRST, CHANNELS_LAST
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
            layout = _moved(node, layout)
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


_GRID = {
    **dict.fromkeys(CHANNELS_FIRST, slice(2, None)),
    **dict.fromkeys(CHANNELS_LAST, slice(1, -1)),
    "tokens": slice(1, 2),
}


def _pools_grid(node: ir.Node, layout: Layout) -> bool:
    if layout.kind not in _GRID or layout.prefix or layout.suffix:
        return False
    if node.op_type == "GlobalAveragePool":
        return _GRID[layout.kind].start == 2
    axes = node.attributes.get_ints("axes", ())
    if not axes and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        axes = tuple(array.tolist()) if array is not None else ()
    rank = 3 if layout.kind == "tokens" else len(layout.kind)
    return {a % rank for a in axes} == set(range(rank)[_GRID[layout.kind]])


def _moved(node: ir.Node, layout: Layout) -> Layout:
    """The layout after a Transpose; factored (and so no head's) where it has no name."""
    perm = node.attributes.get_ints("perm", ())
    letters = "".join(layout.kind[k] for k in perm) if len(perm) == len(layout.kind) else ""
    return Layout(letters) if letters in _GRID else Layout("factored")  # type: ignore[arg-type]
