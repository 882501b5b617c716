"""Tensors taken from a sequence whose elements the graph shows, as if there were no sequence.

Older exporters put the parts of a split, or tensors to be stacked, into a sequence. Where it is made by
SequenceConstruct or SplitToSequence and read at an index that is a constant, or joined again, the
gradient goes straight to the tensors in it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Builder, Var
from .registry import constant


def stands_aside(node: ir.Node) -> bool:
    """Whether a node makes a sequence of which every reader can be resolved."""
    if node.domain or node.op_type not in ("SequenceConstruct", "SplitToSequence"):
        return False
    made = node.outputs[0]
    return not made.is_graph_output() and all(_is_resolvable(reader, node) for reader in made.consumers())


def resolve(op: Builder, node: ir.Node) -> dict[ir.Value, ir.Value] | None:
    """What a reader of such a sequence gives, from the tensors in it.

    Returns:
        For the output of ``node`` the value that is equal to it, made by nodes that are appended where
        needed; None if the node is no such reader.
    """
    maker = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if maker is None or not stands_aside(maker):
        return None
    if node.op_type == "ConcatFromSequence":
        value = _joined(op, node, maker).value
    else:
        value = _element(op, maker, _index(node) or 0)
    return {node.outputs[0]: value}


def _is_resolvable(node: ir.Node, maker: ir.Node) -> bool:
    if node.domain:
        return False
    if maker.op_type == "SequenceConstruct":
        at = _index(node)
        count = len(maker.inputs)
        known = node.op_type == "SequenceAt" and at is not None and -count <= at < count
        return known or node.op_type == "ConcatFromSequence"
    at = _index(node)
    return node.op_type == "SequenceAt" and at is not None and _bounds(maker, at) is not None


def _index(node: ir.Node) -> int | None:
    if node.op_type != "SequenceAt" or node.inputs[1] is None:
        return None
    array = constant(node.inputs[1])
    return None if array is None else int(array.item())


def _element(op: Builder, maker: ir.Node, at: int) -> ir.Value:
    if maker.op_type == "SequenceConstruct":
        found = maker.inputs[at]
        assert found is not None
        return found
    bounds = _bounds(maker, at)
    assert bounds is not None
    assert maker.inputs[0] is not None
    x = op.wrap(maker.inputs[0])
    axis = maker.attributes.get_int("axis", 0) % x.rank
    part = _noted(op.slice(x, [bounds[0]], [bounds[1]], [axis]))
    if len(maker.inputs) < 2 and not maker.attributes.get_int("keepdims", 1):
        part = _noted(op.Squeeze(part, [axis], dims=(*part.shape[:axis], *part.shape[axis + 1 :])))
    return part.value


def _bounds(maker: ir.Node, at: int) -> tuple[int, int] | None:
    """Where a part of SplitToSequence begins and ends; None if only the run time knows."""
    sizes = np.asarray(1) if len(maker.inputs) < 2 or maker.inputs[1] is None else constant(maker.inputs[1])
    if sizes is None:
        return None
    if sizes.ndim:
        ends = np.cumsum(sizes)
        return (int(ends[at] - sizes[at]), int(ends[at])) if -len(ends) <= at < len(ends) else None
    return (at * int(sizes), (at + 1) * int(sizes)) if at >= 0 else None


def _joined(op: Builder, node: ir.Node, maker: ir.Node) -> Var:
    parts = [op.wrap(v) for v in maker.inputs if v is not None]
    axis = node.attributes.get_int("axis", 0)
    if node.attributes.get_int("new_axis", 0):
        rank = parts[0].rank + 1
        axis %= rank
        parts = [_noted(op.Unsqueeze(p, [axis], dims=(*p.shape[:axis], 1, *p.shape[axis:]))) for p in parts]
    value = op.wrap(node.outputs[0])
    return op.Concat(*parts, axis=axis, dims=value.dims)


def _noted(x: Var) -> Var:
    """Rules read a forward value's shape off the graph."""
    x.value.shape = None if x.dims is None else ir.Shape(x.dims)
    return x
