"""Pointwise rules: g is the gradient of the output; the result has the output's shape.

Where the formula allows it the output is used, not the input: what is computed already costs nothing,
and a mask made from the output leaves ONNX Runtime free to fuse the operator into its producer.
Kinks follow PyTorch.
"""

import math

import onnx_ir as ir

from ..builder import Builder, Var
from ..registry import Unsupported, vjp

# -- arithmetic -------------------------------------------------------------------------------


@vjp("Add", wrt="A")
@vjp("Add", wrt="B")
@vjp("Sub", wrt="A")
@vjp("Identity", wrt="input")
@vjp("Sum", wrt="data_0")
def same(g: Var) -> Var:
    return g


@vjp("Dropout", wrt="data")
def dropout_data(op: Builder, g: Var, data: Var, training_mode: Var | None) -> Var:
    if training_mode is not None and op.scalar(training_mode) != 0:
        raise Unsupported("it is in training mode: export the model for inference")
    return g


@vjp("Sub", wrt="B")
@vjp("Neg", wrt="X")
def negated(g: Var) -> Var:
    return -g


@vjp("Mul", wrt="A")
def mul_a(g: Var, B: Var) -> Var:
    return g * B


@vjp("Mul", wrt="B")
def mul_b(g: Var, A: Var) -> Var:
    return g * A


@vjp("Div", wrt="A")
def div_a(g: Var, B: Var) -> Var:
    return g / B


@vjp("Div", wrt="B")
def div_b(g: Var, B: Var, C: Var) -> Var:
    return -g * C / B  # -A/B^2 = -C/B


@vjp("Pow", wrt="X")
def pow_x(op: Builder, g: Var, X: Var, Y: Var) -> Var:
    exponent = op.scalar(Y)
    if exponent == 2:
        return g * X * 2
    if exponent == 1:
        return g
    Y = op.cast(Y, X.dtype)  # an exponent may be of another type
    slope = Y * op.Pow(X, Y - 1)
    if exponent is None or exponent == 0:
        slope = op.where(op.Equal(Y, op.operand(0, Y)), 0.0, slope)  # 0 * 0^-1 is NaN
    return g * slope


@vjp("Pow", wrt="Y")
def pow_y(op: Builder, g: Var, X: Var, Z: Var) -> Var:
    # 0^Y does not depend on Y > 0; log(0) must not turn that into NaN.
    return op.where(X > 0, g * Z * op.Log(op.where(X > 0, X, 1.0)), 0.0)


@vjp("Mean", wrt="data_0")
def mean_data(g: Var, data_0: tuple[Var, ...]) -> Var:
    return g / len(data_0)


@vjp("Max", wrt="data_0")
def max_data(op: Builder, g: Var, data_0: tuple[Var, ...], max: Var, index: int) -> Var:
    return _shared_by_ties(op, g, data_0, max, index)


@vjp("Min", wrt="data_0")
def min_data(op: Builder, g: Var, data_0: tuple[Var, ...], min: Var, index: int) -> Var:
    return _shared_by_ties(op, g, data_0, min, index)


def _shared_by_ties(op: Builder, g: Var, data: tuple[Var, ...], extreme: Var, index: int) -> Var:
    """The gradient goes to the operand that won; those that tie share it, as in torch.maximum."""
    hits = [op.mask(op.Equal(x, extreme), g) for x in data]
    count = hits[0]
    for hit in hits[1:]:
        count = count + hit
    return g * hits[index] / count


@vjp("Where", wrt="X")
def where_x(op: Builder, g: Var, condition: Var) -> Var:
    return op.where(condition, g, 0.0)


@vjp("Where", wrt="Y")
def where_y(op: Builder, g: Var, condition: Var) -> Var:
    return op.where(condition, 0.0, g)


@vjp("Cast", wrt="input")
def cast_input(op: Builder, g: Var, input: Var) -> Var:
    return op.cast(g, input.dtype)


# -- functions of one number --------------------------------------------------------------------


@vjp("Exp", wrt="input")
def exp_input(g: Var, output: Var) -> Var:
    return g * output


@vjp("Log", wrt="input")
def log_input(g: Var, input: Var) -> Var:
    return g / input


@vjp("Sqrt", wrt="X")
def sqrt_x(g: Var, Y: Var) -> Var:
    return g * 0.5 / Y


@vjp("Reciprocal", wrt="X")
def reciprocal_x(g: Var, Y: Var) -> Var:
    return -g * Y * Y


@vjp("Abs", wrt="X")
def abs_x(op: Builder, g: Var, X: Var) -> Var:
    return g * op.Sign(X)


@vjp("Erf", wrt="input")
def erf_input(op: Builder, g: Var, input: Var) -> Var:
    return g * op.Exp(-(input * input)) * (2 / math.sqrt(math.pi))


@vjp("Sin", wrt="input")
def sin_input(op: Builder, g: Var, input: Var) -> Var:
    return g * op.Cos(input)


@vjp("Cos", wrt="input")
def cos_input(op: Builder, g: Var, input: Var) -> Var:
    return -g * op.Sin(input)


# -- activations --------------------------------------------------------------------------------


@vjp("Relu", wrt="X")
def relu_x(op: Builder, g: Var, Y: Var) -> Var:
    return op.where(Y > 0, g, 0.0)


@vjp("Clip", wrt="input")
def clip_input(op: Builder, g: Var, output: Var, min: Var | None, max: Var | None) -> Var:
    # Nothing at the bounds themselves, as in torch's relu6 and hardtanh.
    if min is not None:
        g = op.where(output > min, g, 0.0)
    if max is not None:
        g = op.where(output < max, g, 0.0)
    return g


@vjp("LeakyRelu", wrt="X")
def leaky_relu_x(op: Builder, g: Var, X: Var, *, alpha: float) -> Var:
    return op.where(X > 0, g, g * alpha)


@vjp("Elu", wrt="X")
def elu_x(op: Builder, g: Var, X: Var, Y: Var, *, alpha: float) -> Var:
    return op.where(X > 0, g, g * (Y + alpha))


@vjp("Sigmoid", wrt="X")
def sigmoid_x(g: Var, Y: Var) -> Var:
    return g * Y * (1 - Y)


@vjp("HardSigmoid", wrt="X")
def hard_sigmoid_x(op: Builder, g: Var, Y: Var, *, alpha: float) -> Var:
    return op.where(op.And(Y > 0, Y < 1), g * alpha, 0.0)


@vjp("HardSwish", wrt="X")
def hard_swish_x(op: Builder, g: Var, X: Var) -> Var:
    # x * clip(x/6 + 1/2, 0, 1): slope 0 below -3, x/3 + 1/2 between, 1 above 3.
    return op.where(X < -3, 0.0, op.where(X <= 3, g * (X * (1 / 3) + 0.5), g))


@vjp("Tanh", wrt="input")
def tanh_input(g: Var, output: Var) -> Var:
    return g * (1 - output * output)


@vjp("Softplus", wrt="X")
def softplus_x(op: Builder, g: Var, X: Var) -> Var:
    return g * op.Sigmoid(X)


@vjp("Gelu", wrt="X")
def gelu_x(op: Builder, g: Var, X: Var, *, approximate: str) -> Var:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi)
        t = op.Tanh((X + X * X * X * 0.044715) * inner)
        slope = (X * X * (3 * 0.044715) + 1) * inner
        return g * (0.5 * (t + 1) + 0.5 * X * (1 - t * t) * slope)
    # Phi(x) + x phi(x), the normal distribution and its density.
    distribution = 0.5 * (op.Erf(X * math.sqrt(0.5)) + 1)
    density = op.Exp(X * X * -0.5) * (1 / math.sqrt(2 * math.pi))
    return g * (distribution + X * density)


@vjp("Softmax", wrt="input", since=13)
def softmax_input(op: Builder, g: Var, output: Var, *, axis: int) -> Var:
    if _is_patched(output.value):
        # A row that is masked out entirely is NaN; a Where behind replaces it, and lets nothing back.
        output = op.where(op.IsNaN(output), 0, output)
    weighted = g * output
    return weighted - output * op.sum(weighted, [axis])


def _is_patched(value: ir.Value) -> bool:
    """Whether a Where, perhaps behind a Cast, picks among the entries of a value."""
    readers = value.consumers()
    return any(
        n.op_type == "Where" or (n.op_type in ("Cast", "CastLike") and _is_patched(n.outputs[0]))
        for n in readers
    )


@vjp("LogSoftmax", wrt="input", since=13)
def log_softmax_input(op: Builder, g: Var, output: Var, *, axis: int) -> Var:
    return g - op.Exp(output) * op.sum(g, [axis])


# -- angles -----------------------------------------------------------------------------------


@vjp("Tan", wrt="input")
def tan_input(g: Var, output: Var) -> Var:
    return g * (output * output + 1.0)


@vjp("Asin", wrt="input")
def asin_input(op: Builder, g: Var, input: Var) -> Var:
    return g / op.Sqrt(1.0 - input * input)


@vjp("Acos", wrt="input")
def acos_input(op: Builder, g: Var, input: Var) -> Var:
    return -g / op.Sqrt(1.0 - input * input)


@vjp("Atan", wrt="input")
def atan_input(g: Var, input: Var) -> Var:
    return g / (input * input + 1.0)


@vjp("Sinh", wrt="input")
def sinh_input(op: Builder, g: Var, input: Var) -> Var:
    return g * op.Cosh(input, dims=input.dims)


@vjp("Cosh", wrt="input")
def cosh_input(op: Builder, g: Var, input: Var) -> Var:
    return g * op.Sinh(input, dims=input.dims)


@vjp("Asinh", wrt="input")
def asinh_input(op: Builder, g: Var, input: Var) -> Var:
    return g / op.Sqrt(input * input + 1.0)


@vjp("Acosh", wrt="input")
def acosh_input(op: Builder, g: Var, input: Var) -> Var:
    return g / op.Sqrt(input * input - 1.0)


@vjp("Atanh", wrt="input")
def atanh_input(g: Var, input: Var) -> Var:
    return g / (1.0 - input * input)


@vjp("Mod", wrt="A")
def mod_a(g: Var) -> Var:
    return g


@vjp("Mod", wrt="B")
def mod_b(g: Var, A: Var, B: Var, C: Var) -> Var:
    return g * (C - A) / B  # how often B goes into A, whichever way it is rounded
