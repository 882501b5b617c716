"""The functions of :class:`onnxcam.methods.Namespace` on tensors of a graph: what is called becomes nodes.

With it a method, and what :mod:`onnxcam.postprocess` and :mod:`onnxcam.grids` do, is written once and
runs on NumPy's arrays and inside a file. Operators (``+ - * / < >``) are :class:`Var`'s own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .gradients.builder import Builder, Dim, Dims, Operand, Var

Axes = int | tuple[int, ...]


class Traced:
    """NumPy's functions as nodes of a graph; shapes may have open sizes.

    Args:
        op: where the nodes go.
    """

    def __init__(self, op: Builder) -> None:
        self.op = op

    # -- what a method may call --------------------------------------------------------------

    def sum(self, x: Var, /, *, axis: Axes, keepdims: bool = False) -> Var:
        return self._reduce("ReduceSum", x, axis, keepdims)

    def mean(self, x: Var, /, *, axis: Axes, keepdims: bool = False) -> Var:
        return self._reduce("ReduceMean", x, axis, keepdims)

    def max(self, x: Var, /, *, axis: Axes, keepdims: bool = False) -> Var:
        return self._reduce("ReduceMax", x, axis, keepdims)

    def min(self, x: Var, /, *, axis: Axes, keepdims: bool = False) -> Var:
        return self._reduce("ReduceMin", x, axis, keepdims)

    def maximum(self, a: Operand, b: Operand, /) -> Var:
        return self.op.binary("Max", a, b)

    def minimum(self, a: Operand, b: Operand, /) -> Var:
        return self.op.binary("Min", a, b)

    def where(self, condition: Var, a: Operand, b: Operand, /) -> Var:
        return self.op.where(condition, a, b)

    def exp(self, x: Var, /) -> Var:
        return self.op.Exp(x)

    def abs(self, x: Var, /) -> Var:
        return self.op.Abs(x)

    def sqrt(self, x: Var, /) -> Var:
        return self.op.Sqrt(x)

    def matmul(self, a: Var, b: Var, /) -> Var:
        return self.op.MatMul(a, b)

    def reshape(self, x: Var, shape: Sequence[Dim | Var], /) -> Var:
        """As NumPy's; a symbol of x's own shape is the size of the axis that has it."""
        plain = [None if isinstance(d, Var) else d for d in shape]
        known = tuple(_rest(x.shape, plain) if d == -1 else d for d in plain)
        if known == x.dims and None not in known:
            return x
        if sum(not isinstance(d, int) for d in known) <= 1 and 0 not in known:
            sizes: Any = [d if isinstance(d, int) else -1 for d in known]
        else:  # a Reshape counts out one size alone
            sizes = self.op.vector([d if isinstance(d, int) else self._size(x, d) for d in shape])
        return self.op.Reshape(x, sizes, dims=known)

    def einsum(self, equation: str, /, *operands: Var) -> Var:
        terms, _, result = equation.replace(" ", "").partition("->")
        named = terms.split(",")
        sizes = {c: d for t, x in zip(named, operands, strict=True) for c, d in zip(t, x.shape, strict=True)}
        dims = tuple(sizes[letter] for letter in result)
        weighted = f"{result[:1]}{named[0][1:]},{named[0]}{result[1:]}"  # bk,bk... of a result b...
        if len(named[0]) == 2 and terms == weighted:
            return self._weighted_sum(operands[0], operands[1], dims)
        return self.op.Einsum(*operands, equation=equation, dims=dims)

    def _weighted_sum(self, weights: Var, x: Var, dims: Dims) -> Var:
        """bk,bk...->b...: a product of matrices, for which ONNX Runtime is three times as fast."""
        row = self.op.Unsqueeze(weights, [1], dims=(weights.shape[0], 1, weights.shape[1]))
        summed = self.op.MatMul(row, self.reshape(x, (*x.shape[:2], -1)))
        sizes = [self.op.dim(x, axis) for axis in (0, *range(2, x.rank))]
        return Var(self.reshape(summed, sizes).value, self.op, dims)

    # -- what layouts and interpolation need beyond that ----------------------------------------------

    def permute_dims(self, x: Var, axes: Sequence[int], /) -> Var:
        return self.op.transpose(x, axes)

    def size(self, x: Var, axis: int, /) -> int | Var:
        return self.op.dim(x, axis)

    def asarray(self, x: Any, /, *, dtype: Any) -> Var:
        if not isinstance(x, Var):
            return self.op.const(np.asarray(x, dtype))
        return self.op.cast(x, ir.DataType.from_numpy(np.dtype(dtype)))

    def arange(self, stop: int | Var, /) -> Var:
        zero, one = (self.op.const(np.asarray(v, dtype=np.int64)) for v in (0, 1))
        end = stop if isinstance(stop, Var) else self.op.const(np.asarray(stop, dtype=np.int64))
        return self.op.Range(zero, end, one, dims=(stop if isinstance(stop, int) else None,))

    # -- how ----------------------------------------------------------------------------------------

    def _reduce(self, op_type: str, x: Var, axis: Axes, keepdims: bool) -> Var:
        if x.dtype == ir.DataType.BOOL:  # NumPy counts them
            x = self.op.cast(x, ir.DataType.FLOAT)
        axes = sorted(a % x.rank for a in ((axis,) if isinstance(axis, int) else axis))
        dims = tuple(1 if k in axes else d for k, d in enumerate(x.shape) if keepdims or k not in axes)
        return self.op.node(op_type, [x, axes], {"keepdims": int(keepdims)}, dims)

    def _size(self, x: Var, symbol: Dim | Var) -> int | Var:
        if isinstance(symbol, Var):
            return symbol
        if symbol is None or symbol not in x.shape:
            raise self.op.shape_unknown(x.value)
        return self.op.dim(x, x.shape.index(symbol))


def _rest(whole: Dims, shape: Sequence[Dim]) -> Dim:
    """What -1 stands for in a new shape; None if it cannot be told."""
    ours, theirs = list(whole), [d for d in shape if d != -1]
    for d in [*theirs]:
        if d in ours:
            ours.remove(d)
            theirs.remove(d)
    count = 1
    for d in ours:
        if not isinstance(d, int):
            return d if len(ours) == 1 and not theirs else None
        count *= d
    for d in theirs:
        if not isinstance(d, int):
            return None
        count //= d
    return count
