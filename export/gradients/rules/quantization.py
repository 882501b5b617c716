"""Quantisation, straight through: rounding counts as no change, and what left the range passes nothing.

A quantised tensor's gradient is that of the whole numbers in it, taken as real ones: QuantizeLinear divides
by its scale and DequantizeLinear multiplies by it. Scales and zero points are constants, also those that
DynamicQuantizeLinear takes from the data: the range follows the data, so that what a larger scale adds at
one end the coarser count takes away at the other. The estimator is that of Bengio et al., Estimating or
Propagating Gradients Through Stochastic Neurons, arXiv:1308.3432, 2013.
"""

from collections.abc import Sequence

import onnx_ir as ir

from ..builder import NODE_PREFIX, Builder, Var
from ..registry import stop, vjp

_CONSTANT = "scales and zero points are taken as constants"
stop("QuantizeLinear", _CONSTANT, wrt=["y_scale", "y_zero_point"])
stop("DequantizeLinear", _CONSTANT, wrt=["x_scale", "x_zero_point"])


@vjp("DequantizeLinear", wrt="x", since=13)
def dequantize_x(op: Builder, g: Var, x: Var, x_scale: Var, *, axis: int) -> Var:
    return g * op.cast(_spread(op, x_scale, x, axis, 0), g.dtype)


@vjp("DequantizeLinear", wrt="x", since=21)
def dequantize_blocks_x(op: Builder, g: Var, x: Var, x_scale: Var, *, axis: int, block_size: int) -> Var:
    return g * op.cast(_spread(op, x_scale, x, axis, block_size), g.dtype)


@vjp("QuantizeLinear", wrt="x", since=13)
def quantize_x(op: Builder, g: Var, x: Var, y_scale: Var, y: Var, *, axis: int) -> Var:
    return _quantized(op, g, x, y_scale, y, axis, 0)


@vjp("QuantizeLinear", wrt="x", since=21)
def quantize_blocks_x(
    op: Builder, g: Var, x: Var, y_scale: Var, y: Var, *, axis: int, block_size: int
) -> Var:
    return _quantized(op, g, x, y_scale, y, axis, block_size)


def _quantized(op: Builder, g: Var, x: Var, y_scale: Var, y: Var, axis: int, block_size: int) -> Var:
    # The range is that of the result, so that nothing reads x: ONNX Runtime keeps x inside an integer kernel.
    # Its ends do not belong to it. There lies what was clipped, and everything negative where a ReLU was
    # folded into the range.
    counts = op.cast(y, ir.DataType.FLOAT)
    inside = op.And(counts > float(y.dtype.min), counts < float(y.dtype.max))
    return op.cast(op.where(inside, _over(op, g, _spread(op, y_scale, x, axis, block_size)), 0.0), x.dtype)


@vjp("DynamicQuantizeLinear", wrt="x")
def dynamic_quantize_x(op: Builder, gs: Sequence[Var | None], x: Var, y_scale: Var) -> Var:
    # The range is that of the data: nothing leaves it.
    return op.zeros_like(x) if gs[0] is None else _over(op, gs[0], y_scale)


def _over(op: Builder, g: Var, scale: Var) -> Var:
    """``g / scale``; where g was multiplied by an equal scale last, what it was before."""
    node = g.value.producer()
    if node is not None and node.op_type == "Mul" and (node.name or "").startswith(NODE_PREFIX):
        before, factor = node.inputs
        assert before is not None
        assert factor is not None
        if _same_number(factor, scale.value):
            return Var(before, op, g.dims)
    return g / op.cast(scale, g.dtype)


def _same_number(a: ir.Value, b: ir.Value) -> bool:
    a, b = _origin(a), _origin(b)
    x, y = a.const_value, b.const_value
    if a is b:
        return a.shape is not None and all(d == 1 for d in a.shape)
    return x is not None and y is not None and x.size == y.size == 1 and x.numpy().item() == y.numpy().item()


def _origin(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _spread(op: Builder, scale: Var, x: Var, axis: int, block_size: int) -> Var:
    """Scales of all of ``x``, of the entries of an axis or of blocks, in a shape that broadcasts to its."""
    if scale.rank == 0 or scale.shape == (1,):
        return scale
    axis %= x.rank
    if scale.rank == 1:
        return op.reshape(scale, [1] * axis + [scale.shape[0]] + [1] * (x.rank - axis - 1))
    counts = [1] * (x.rank + 1)
    counts[axis + 1] = block_size
    repeated = op.Tile(op.Unsqueeze(scale, [axis + 1], dims=()), counts)
    joined = op.vector([-1 if k == axis else op.dim(scale, k) for k in range(x.rank)])
    end = op.vector([op.dim(x, axis)])  # the last block may be cut short
    return op.Slice(op.Reshape(repeated, joined), [0], end, [axis], dims=x.dims)
