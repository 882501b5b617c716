"""Which operators work cell by cell along an axis.

If a node computes each cell of an output axis from the same cell of its inputs alone, a gradient that
is zero outside a stretch of that axis can be taken back on the stretch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from .builder import Dims, dims_of

#: For each input: the axis that holds the same cells, or None if the input does not have it.
InputAxes: TypeAlias = list[int | None]

POINTWISE = frozenset(
    """
    Add Sub Mul Div Pow Where Sum Max Min Mean Relu Sigmoid Tanh Erf Gelu Exp Log Sqrt Neg Abs
    Reciprocal Identity Cast Dropout Clip HardSigmoid HardSwish LeakyRelu Elu Selu Celu Softplus
    Softsign Mish Swish
    """.split()
)


def input_axes(node: ir.Node, axis: int) -> InputAxes | None:
    """Where each input of a node keeps the cells of an axis of its first output.

    Args:
        node: a node of the default domain.
        axis: an axis of its first output, not negative.

    Returns:
        One entry per input, or None if the node mixes cells along that axis.
    """
    shapes = [None if v is None else dims_of(v) for v in node.inputs]
    out = dims_of(node.outputs[0])
    if node.domain or out is None or any(s is None for v, s in zip(node.inputs, shapes, strict=True) if v):
        return None
    inputs = [s or () for s in shapes]
    if node.op_type in POINTWISE:
        return [_aligned(dims, axis, len(out)) for dims in inputs]
    special = _SPECIAL.get(node.op_type)
    return special(node, axis, out, inputs) if special else None


def _aligned(dims: Dims, axis: int, rank: int) -> int | None:
    """The axis of a broadcast operand; None where it is stretched or missing."""
    at = axis - (rank - len(dims))
    return at if at >= 0 and dims[at] != 1 else None


def _only_first(axis: int, inputs: Sequence[Dims]) -> InputAxes:
    return [axis, *[None] * (len(inputs) - 1)]


def _matmul(node: ir.Node, axis: int, out: Dims, inputs: Sequence[Dims]) -> InputAxes | None:
    a, b = inputs
    if len(a) < 2 or len(b) < 2:
        return None
    if axis == len(out) - 1:
        return [None, len(b) - 1]
    if axis == len(out) - 2:
        return [len(a) - 2, None]
    return [_aligned(a, axis, len(out)), _aligned(b, axis, len(out))]


def _gemm(node: ir.Node, axis: int, out: Dims, inputs: Sequence[Dims]) -> InputAxes | None:
    trans_a, trans_b = (bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB"))
    axes: InputAxes = [int(trans_a), None] if axis == 0 else [None, int(not trans_b)]
    return axes + [_aligned(c, axis, 2) for c in inputs[2:]]


def _layer_norm(node: ir.Node, axis: int, out: Dims, inputs: Sequence[Dims]) -> InputAxes | None:
    first = node.attributes.get_int("axis", -1) % len(out)
    return _only_first(axis, inputs) if axis < first else None


def _softmax(node: ir.Node, axis: int, out: Dims, inputs: Sequence[Dims]) -> InputAxes | None:
    return [axis] if axis != node.attributes.get_int("axis", -1) % len(out) else None


def _transpose(node: ir.Node, axis: int, out: Dims, inputs: Sequence[Dims]) -> InputAxes | None:
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(out)))))
    return [perm[axis]]


def _reshape(node: ir.Node, axis: int, out: Dims, inputs: Sequence[Dims]) -> InputAxes | None:
    """The axis survives if it stands whole and all axes before it (or all behind it) are unchanged."""
    data = inputs[0]
    rest: InputAxes = [None] * (len(inputs) - 1)
    if axis < len(data) and data[: axis + 1] == out[: axis + 1] and None not in out[: axis + 1]:
        return [axis, *rest]
    behind = len(out) - axis
    if behind <= len(data) and data[-behind:] == out[-behind:] and None not in out[-behind:]:
        return [len(data) - behind, *rest]
    return None


def _concat(node: ir.Node, axis: int, out: Dims, inputs: Sequence[Dims]) -> InputAxes | None:
    joined = node.attributes.get_int("axis", 0) % len(out)
    return [axis] * len(inputs) if axis != joined else None


_SPECIAL: dict[str, Callable[[ir.Node, int, Dims, Sequence[Dims]], InputAxes | None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Concat": _concat,
}
