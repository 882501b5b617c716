"""What the normalizations that ONNX Runtime's optimiser writes compute."""

from .quantized import to_channels_first, to_channels_last
from .registry import MICROSOFT, Call, NoDefinition, define


def _layer_norm(call: Call, y: str, operands: str, epsilon: float, first_statistic: int) -> str:
    """One line: LayerNormalization over the last axis, with the statistics that the node gives out."""
    outputs = y
    if call.wants(first_statistic) or call.wants(first_statistic + 1):
        outputs += ", mean, inv_std_var"
    return f"{outputs} = LayerNormalization <axis = -1, epsilon = {epsilon!r}> ({operands})\n"


def _rms_norm(call: Call, y: str, x: str, scale: str, epsilon: float) -> str:
    """Lines: x / sqrt(mean(x^2) + epsilon) * scale over the last axis."""
    return f"""
    square = Mul ({x}, {x})
    mean_square = ReduceMean (square, {call.ints(-1)})
    shifted = Add (mean_square, {call.number(epsilon)})
    deviation = Sqrt (shifted)
    inv_std_var = Reciprocal (deviation)
    normal = Mul ({x}, inv_std_var)
    {y} = Mul (normal, {scale})
    """


def _joined(call: Call) -> str:
    """Lines: ``total`` is input + skip (+ bias)."""
    name = "input_skip_bias_sum" if call.wants(3) else "total"
    if "bias" in call:
        return f"sum_1 = Add (input, skip)\n{name} = Add (sum_1, bias)\n"
    return f"{name} = Add (input, skip)\n"


def _total(call: Call) -> str:
    return "input_skip_bias_sum" if call.wants(3) else "total"


_SKIP_OUTPUTS = "output, mean, inv_std_var, input_skip_bias_sum"


@define("SkipLayerNormalization", f"input, skip, gamma, beta, bias => {_SKIP_OUTPUTS}", domain=MICROSOFT)
def skip_layer_normalization(call: Call) -> str:
    operands = f"{_total(call)}, {call.given('gamma', 'beta')}"
    return _joined(call) + _layer_norm(call, "output", operands, call.attribute("epsilon", 1e-12), 1)


@define("SkipSimplifiedLayerNormalization", f"input, skip, gamma, bias => {_SKIP_OUTPUTS}", domain=MICROSOFT)
def skip_simplified_layer_normalization(call: Call) -> str:
    if call.wants(1):
        raise NoDefinition("it gives out a mean, which it does not have")
    epsilon = call.attribute("epsilon", 1e-12)
    return _joined(call) + _rms_norm(call, "output", _total(call), "gamma", epsilon)


@define("SimplifiedLayerNormalization", "X, scale => Y, inv_std_var")
@define("SimplifiedLayerNormalization", "X, scale => Y, inv_std_var", domain=MICROSOFT)
def simplified_layer_normalization(call: Call) -> str:
    _last_axis(call)
    return _rms_norm(call, "Y", "X", "scale", call.attribute("epsilon", 1e-5))


@define("LayerNormalization", "X, Scale, B => Y, Mean, InvStdDev", domain=MICROSOFT)
def layer_normalization(call: Call) -> str:
    return (
        f"{'Y, Mean, InvStdDev' if call.wants(1) or call.wants(2) else 'Y'} = LayerNormalization "
        f"{call.attributes('axis', 'epsilon', 'stash_type')} ({call.given('X', 'Scale', 'B')})"
    )


def _last_axis(call: Call) -> None:
    axis = call.attribute("axis", -1)
    if axis != -1 and axis != call.rank("X") - 1:
        raise NoDefinition("it normalizes more than the last axis")


@define("GroupNorm", "X, gamma, beta => Y", domain=MICROSOFT)
def group_norm(call: Call) -> str:
    return _group_norm(call, "X")


@define("SkipGroupNorm", "X, gamma, beta, skip, bias => Y, S", domain=MICROSOFT)
def skip_group_norm(call: Call) -> str:
    if call.rank("skip") != 4:
        raise NoDefinition("its skip is broadcast")
    total = "S" if call.wants(1) else "total"
    if "bias" in call:
        return f"sum_1 = Add (X, skip)\n{total} = Add (sum_1, bias)\n" + _group_norm(call, total)
    return f"{total} = Add (X, skip)\n" + _group_norm(call, total)


def _group_norm(call: Call, x: str) -> str:
    """Lines: groups of channels normalized, scaled, and through SiLU where the node says so."""
    last = call.attribute("channels_last", 1)
    text = to_channels_first("data", x, 4) if last else f"data = Identity ({x})\n"
    to = call.dtype.value
    text += f"""
    shape = Shape (data)
    grouped = Reshape (data, {call.ints(0, call.attribute("groups"), -1)})
    mean = ReduceMean (grouped, {call.ints(-1)})
    centred = Sub (grouped, mean)
    square = Mul (centred, centred)
    variance = ReduceMean (square, {call.ints(-1)})
    shifted = Add (variance, {call.number(call.attribute("epsilon", 1e-5))})
    deviation = Sqrt (shifted)
    normal = Div (centred, deviation)
    normed = Reshape (normal, shape)
    gamma_typed = Cast <to = {to}> (gamma)
    beta_typed = Cast <to = {to}> (beta)
    gamma_column = Reshape (gamma_typed, {call.ints(-1, 1, 1)})
    beta_column = Reshape (beta_typed, {call.ints(-1, 1, 1)})
    scaled = Mul (normed, gamma_column)
    moved = Add (scaled, beta_column)
    """
    result = "moved"
    if call.attribute("activation"):
        text += "gate = Sigmoid (moved)\ngated = Mul (moved, gate)\n"
        result = "gated"
    return text + (to_channels_last("Y", result, 4) if last else f"Y = Identity ({result})")
