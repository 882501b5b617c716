"""Normalizations at inference, in primitives: TensorRT gives LayerNormalization's Y alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..builder import Builder, Dim, Var
from ..registry import Unsupported, vjp


def _mean(op: Builder, x: Var, axes: Sequence[int]) -> Var:
    return op.sum(x, axes) / op.count(x, axes)


def _standardized(
    op: Builder, g: Var, x: Var, axes: Sequence[int], epsilon: float, centred: bool = True
) -> Var:
    """The gradient of x -> (x - mean) / sqrt(var + epsilon) over axes, given that of its result.

    dx = (g - mean(g) - y mean(g y)) / sigma with y the result; without centring the means of x and of
    g drop out.
    """
    y, deviation = _normalized(op, x, axes, epsilon, centred)
    inner = y * _mean(op, g * y, axes)
    if centred:
        g = g - _mean(op, g, axes)
    return (g - inner) / deviation


def _normalized(
    op: Builder, x: Var, axes: Sequence[int], epsilon: float, centred: bool = True
) -> tuple[Var, Var]:
    """(x - mean) / sqrt(var + epsilon) over axes, and what it was divided by."""
    if centred:
        x = x - _mean(op, x, axes)
    deviation = op.Sqrt(_mean(op, x * x, axes) + epsilon)
    return x / deviation, deviation


def _per_channel(op: Builder, v: Var, rank: int) -> Var:
    """(C) as (1, C, 1, ...)."""
    dims: list[Dim] = [1] * rank
    dims[1] = v.shape[0]
    return op.reshape(v, dims)


@vjp("BatchNormalization", wrt="X")
def batch_normalization_x(
    op: Builder, g: Var, X: Var, scale: Var, input_var: Var, *, epsilon: float, training_mode: int
) -> Var:
    _refuse_training(training_mode)
    # The running statistics are constants: ONNX Runtime folds the factor at load.
    factor = scale / op.Sqrt(input_var + epsilon)
    return g * op.cast(_per_channel(op, factor, X.rank), g.dtype)


@vjp("BatchNormalization", wrt="scale")
def batch_normalization_scale(
    op: Builder, g: Var, X: Var, input_mean: Var, input_var: Var, *, epsilon: float, training_mode: int
) -> Var:
    centred = _centred(op, X, input_mean, training_mode)
    deviation = _per_channel(op, op.Sqrt(input_var + epsilon), X.rank)
    return _channels(op, g * centred / op.cast(deviation, g.dtype), input_var)


@vjp("BatchNormalization", wrt="B")
def batch_normalization_b(op: Builder, g: Var, X: Var, B: Var, *, training_mode: int) -> Var:
    _refuse_training(training_mode)
    return _channels(op, Var(g.value, op, X.dims), B)


@vjp("BatchNormalization", wrt="input_mean")
def batch_normalization_mean(
    op: Builder, g: Var, X: Var, scale: Var, input_var: Var, *, epsilon: float, training_mode: int
) -> Var:
    _refuse_training(training_mode)
    total = _channels(op, Var(g.value, op, X.dims), input_var)
    return -total * op.cast(scale, input_var.dtype) / op.Sqrt(input_var + epsilon)


@vjp("BatchNormalization", wrt="input_var")
def batch_normalization_var(
    op: Builder,
    g: Var,
    X: Var,
    scale: Var,
    input_mean: Var,
    input_var: Var,
    *,
    epsilon: float,
    training_mode: int,
) -> Var:
    total = _channels(op, g * _centred(op, X, input_mean, training_mode), input_var)
    squared = input_var + epsilon
    return total * op.cast(scale, input_var.dtype) * -0.5 / (squared * op.Sqrt(squared))


def _refuse_training(training_mode: int) -> None:
    if training_mode:
        raise Unsupported("it is in training mode: export the model for inference")


def _centred(op: Builder, X: Var, mean: Var, training_mode: int) -> Var:
    _refuse_training(training_mode)
    return X - op.cast(_per_channel(op, mean, X.rank), X.dtype)


def _channels(op: Builder, x: Var, like: Var) -> Var:
    """(N, C, ...) summed to (C), in the type of ``like``."""
    total = op.sum(x, [0, *range(2, x.rank)], keepdims=False)
    return op.cast(Var(total.value, op, like.dims), like.dtype)


@vjp("LayerNormalization", wrt="X")
def layer_normalization_x(
    op: Builder, gs: Sequence[Var | None], X: Var, Scale: Var, *, axis: int, epsilon: float
) -> Var:
    over = range(axis % X.rank, X.rank)
    g, of_mean, of_inverse = (*gs, None, None)[:3]
    total = None if g is None else _standardized(op, g * Scale, X, over, epsilon)
    if of_mean is not None:
        part = op.expand_like(of_mean / op.count(X, over), X)
        total = part if total is None else total + part
    if of_inverse is not None:
        centred = X - _mean(op, X, over)
        squared = _mean(op, centred * centred, over) + epsilon
        part = centred * (of_inverse / (squared * op.Sqrt(squared) * op.count(X, over)))
        total = -part if total is None else total - part
    assert total is not None
    return total


@vjp("LayerNormalization", wrt="Scale")
def layer_normalization_scale(
    op: Builder, gs: Sequence[Var | None], X: Var, Scale: Var, *, axis: int, epsilon: float
) -> Var:
    y, _ = _normalized(op, X, range(axis % X.rank, X.rank), epsilon)
    return _summed_to(op, gs[0], y, Scale)


@vjp("LayerNormalization", wrt="B")
def layer_normalization_b(op: Builder, gs: Sequence[Var | None], B: Var) -> Var:
    return _summed_to(op, gs[0], None, B)


@vjp("RMSNormalization", wrt="scale")
def rms_normalization_scale(op: Builder, g: Var, X: Var, scale: Var, *, axis: int, epsilon: float) -> Var:
    y, _ = _normalized(op, X, range(axis % X.rank, X.rank), epsilon, centred=False)
    return _summed_to(op, g, y, scale)


def _summed_to(op: Builder, g: Var | None, y: Var | None, like: Var) -> Var:
    """``g * y`` summed to the shape of a scale or bias, which broadcast."""
    if g is None:  # the mean and the deviation know nothing of them
        return op.zeros_like(like)
    x = g if y is None else g * y
    lead = x.rank - like.rank
    x = op.sum(x, range(lead), keepdims=False)
    stretched = [k for k, d in enumerate(like.shape) if d == 1 and x.shape[k] != 1]
    return Var(op.sum(x, stretched).value, op, like.dims)


@vjp("LRN", wrt="X")
def lrn_x(op: Builder, g: Var, X: Var, *, alpha: float, beta: float, bias: float, size: int) -> Var:
    """Of y = x / s^beta, s = bias + alpha / size * (the sum of x^2 over ``size`` neighbouring channels)."""
    channels = X.shape[1]
    if not isinstance(channels, int):
        raise op.shape_unknown(X.value)
    at = np.arange(channels)
    before, behind = (size - 1) // 2, size - 1 - (size - 1) // 2
    near = (at[None] >= at[:, None] - before) & (at[None] <= at[:, None] + behind)

    def over_neighbours(table: np.ndarray[Any, Any], x: Var) -> Var:
        flat = op.Reshape(x, [0, 0, -1], dims=(*X.shape[:2], None))
        return op.reshape_like(op.MatMul(op.const(table.astype(X.dtype.numpy())), flat), X)

    s = over_neighbours(near, X * X) * (alpha / size) + bias
    power = op.Pow(s, op.operand(-beta, X), dims=X.dims)
    spread = over_neighbours(near.T, g * X * power / s)
    return g * power - X * spread * (2 * alpha * beta / size)


@vjp("RMSNormalization", wrt="X")
def rms_normalization_x(op: Builder, g: Var, X: Var, scale: Var, *, axis: int, epsilon: float) -> Var:
    return _standardized(op, g * scale, X, range(axis % X.rank, X.rank), epsilon, centred=False)


@vjp("InstanceNormalization", wrt="input")
def instance_normalization_input(op: Builder, g: Var, input: Var, scale: Var, *, epsilon: float) -> Var:
    return _standardized(op, g * _per_channel(op, scale, input.rank), input, range(2, input.rank), epsilon)


@vjp("InstanceNormalization", wrt="scale")
def instance_normalization_scale(op: Builder, g: Var, input: Var, scale: Var, *, epsilon: float) -> Var:
    y, _ = _normalized(op, input, range(2, input.rank), epsilon)
    return _channels(op, g * y, scale)


@vjp("InstanceNormalization", wrt="B")
def instance_normalization_b(op: Builder, g: Var, input: Var, B: Var) -> Var:
    return _channels(op, Var(g.value, op, input.dims), B)


@vjp("GroupNormalization", wrt="X", since=21)
def group_normalization_x(op: Builder, g: Var, X: Var, scale: Var, *, epsilon: float, num_groups: int) -> Var:
    # What is averaged over is one axis of (N, groups, rest): no size needs to be known.
    def fold(x: Var) -> Var:
        return op.Reshape(x, [0, num_groups, -1], dims=(X.shape[0], num_groups, None))

    weighted = fold(g * _per_channel(op, scale, X.rank))
    return op.reshape_like(_standardized(op, weighted, fold(X), [2], epsilon), X)
