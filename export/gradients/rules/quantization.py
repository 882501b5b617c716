"""Quantisation, straight through: rounding counts as no change, and what left the range passes nothing.

A quantised tensor's gradient is that of the whole numbers in it, taken as real ones: QuantizeLinear divides
by its scale and DequantizeLinear multiplies by it. Scales and zero points are constants, also those that
DynamicQuantizeLinear takes from the data: the range follows the data, so that what a larger scale adds at
one end the coarser count takes away at the other. The estimator is that of Bengio et al., Estimating or
Propagating Gradients Through Stochastic Neurons, arXiv:1308.3432, 2013.
"""

from collections.abc import Sequence

import onnx_ir as ir

from ..builder import Builder, Var
from ..quantized import over, spread
from ..registry import stop, vjp

_CONSTANT = "scales and zero points are taken as constants"
stop("QuantizeLinear", _CONSTANT, wrt=["y_scale", "y_zero_point"])
stop("DequantizeLinear", _CONSTANT, wrt=["x_scale", "x_zero_point"])


@vjp("DequantizeLinear", wrt="x", since=13)
def dequantize_x(op: Builder, g: Var, x: Var, x_scale: Var, *, axis: int) -> Var:
    return g * op.cast(spread(op, x_scale, x, axis, 0), g.dtype)


@vjp("DequantizeLinear", wrt="x", since=21)
def dequantize_blocks_x(op: Builder, g: Var, x: Var, x_scale: Var, *, axis: int, block_size: int) -> Var:
    return g * op.cast(spread(op, x_scale, x, axis, block_size), g.dtype)


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
    return op.cast(op.where(inside, over(op, g, spread(op, y_scale, x, axis, block_size)), 0.0), x.dtype)


@vjp("DynamicQuantizeLinear", wrt="x")
def dynamic_quantize_x(op: Builder, gs: Sequence[Var | None], x: Var, y_scale: Var) -> Var:
    # The range is that of the data: nothing leaves it.
    return op.zeros_like(x) if gs[0] is None else over(op, gs[0], y_scale)
