"""Normalizations at inference, in primitives: TensorRT gives LayerNormalization's Y alone."""

from collections.abc import Sequence

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
    if centred:
        x = x - _mean(op, x, axes)
    deviation = op.Sqrt(_mean(op, x * x, axes) + epsilon)
    y = x / deviation
    inner = y * _mean(op, g * y, axes)
    if centred:
        g = g - _mean(op, g, axes)
    return (g - inner) / deviation


def _per_channel(op: Builder, v: Var, rank: int) -> Var:
    """(C) as (1, C, 1, ...)."""
    dims: list[Dim] = [1] * rank
    dims[1] = v.shape[0]
    return op.reshape(v, dims)


@vjp("BatchNormalization", wrt="X")
def batch_normalization_x(
    op: Builder, g: Var, X: Var, scale: Var, input_var: Var, *, epsilon: float, training_mode: int
) -> Var:
    if training_mode:
        raise Unsupported("it is in training mode: export the model for inference")
    # The running statistics are constants: ONNX Runtime folds the factor at load.
    factor = scale / op.Sqrt(input_var + epsilon)
    return g * op.cast(_per_channel(op, factor, X.rank), g.dtype)


@vjp("LayerNormalization", wrt="X")
def layer_normalization_x(op: Builder, g: Var, X: Var, Scale: Var, *, axis: int, epsilon: float) -> Var:
    return _standardized(op, g * Scale, X, range(axis % X.rank, X.rank), epsilon)


@vjp("RMSNormalization", wrt="X")
def rms_normalization_x(op: Builder, g: Var, X: Var, scale: Var, *, axis: int, epsilon: float) -> Var:
    return _standardized(op, g * scale, X, range(axis % X.rank, X.rank), epsilon, centred=False)


@vjp("InstanceNormalization", wrt="input")
def instance_normalization_input(op: Builder, g: Var, input: Var, scale: Var, *, epsilon: float) -> Var:
    return _standardized(op, g * _per_channel(op, scale, input.rank), input, range(2, input.rank), epsilon)


@vjp("GroupNormalization", wrt="X", since=21)
def group_normalization_x(op: Builder, g: Var, X: Var, scale: Var, *, epsilon: float, num_groups: int) -> Var:
    # What is averaged over is one axis of (N, groups, rest): no size needs to be known.
    def fold(x: Var) -> Var:
        return op.Reshape(x, [0, num_groups, -1], dims=(X.shape[0], num_groups, None))

    weighted = fold(g * _per_channel(op, scale, X.rank))
    return op.reshape_like(_standardized(op, weighted, fold(X), [2], epsilon), X)
