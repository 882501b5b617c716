"""What the biases of a graph contribute to a score: for FullGrad.

A node's bias is what it adds whatever goes in, a number per channel or cell: the bias of Conv, ConvTranspose,
DeformConv, Gemm, LayerNormalization, GroupNormalization (of one entry per channel) and InstanceNormalization;
shift less scaled mean of BatchNormalization; and what Add and Sub add to or take from a tensor, where that is
a constant of more than one entry (a linear layer's bias, positions). Only nodes count whose output has a
known grid, and on which the score depends.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .gradients.builder import Builder, Var, dims_of
from .gradients.registry import constant


def bias(op: Builder, node: ir.Node) -> Var | None:
    """What a node adds, in a shape that broadcasts to its output's; None if it adds nothing."""
    made = _BIASES.get(node.op_type) if not node.domain else None
    return None if made is None else made(op, node)


def _input(op: Builder, node: ir.Node, index: int) -> Var | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or constant(value) is None else op.single(op.wrap(value))


def _along_channels(op: Builder, node: ir.Node, x: Var) -> Var | None:
    """(C,) as (C, 1, ...): for outputs (N, C, ...)."""
    dims = dims_of(node.outputs[0])
    if dims is None or x.shape != dims[1:2]:
        return None
    behind = [*range(1, len(dims) - 1)]
    return op.Unsqueeze(x, behind, dims=(*x.shape, *[1] * len(behind))) if behind else x


def _of_input(index: int) -> Callable[[Builder, ir.Node], Var | None]:
    def made(op: Builder, node: ir.Node) -> Var | None:
        x = _input(op, node, index)
        return None if x is None else _along_channels(op, node, x)

    return made


def _batch_norm(op: Builder, node: ir.Node) -> Var | None:
    parts = [_input(op, node, index) for index in range(1, 5)]
    if any(part is None for part in parts):
        return None
    scale, shift, mean, variance = (part for part in parts if part is not None)
    deviation = op.Sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return _along_channels(op, node, shift - scale * mean / deviation)


def _gemm(op: Builder, node: ir.Node) -> Var | None:
    x = _input(op, node, 2)
    return None if x is None else x * node.attributes.get_float("beta", 1.0)


def _constant_operand(sign: int) -> Callable[[Builder, ir.Node], Var | None]:
    def made(op: Builder, node: ir.Node) -> Var | None:
        for index in (0, 1):
            x = _input(op, node, index)
            if x is not None and any(d != 1 for d in x.shape):
                return -x if index and sign < 0 else x
        return None

    return made


_BIASES: dict[str, Callable[[Builder, ir.Node], Var | None]] = {
    "Conv": _of_input(2),
    "ConvTranspose": _of_input(2),
    "DeformConv": _of_input(3),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _of_input(2),
    "GroupNormalization": _of_input(2),
    "LayerNormalization": lambda op, node: _input(op, node, 2),
    "Gemm": _gemm,
    "Add": _constant_operand(1),
    "Sub": _constant_operand(-1),
}
