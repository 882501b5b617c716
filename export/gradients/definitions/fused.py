"""What ONNX Runtime's fused operators compute: a product or convolution and what follows it."""

from .quantized import GEOMETRY, to_channels_first, to_channels_last
from .registry import MICROSOFT, Call, NoDefinition, define

#: Activations that may be fused, and the parameters they take in this order.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}


def activated(call: Call, y: str, x: str, parameters: list[float | None]) -> str:
    """Lines: ``y`` is ``x`` behind the activation that the node names."""
    kind = call.attribute("activation", "")
    if not kind:
        return f"{y} = Identity ({x})"
    if kind == "Clip":
        least, most = (call.number(0.0 if p is None else p) for p in parameters[:2])
        return f"{y} = Clip ({x}, {least}, {most})"
    if kind == "HardSwish":
        return f"{y} = HardSwish ({x})"
    if kind not in ACTIVATIONS:
        raise NoDefinition(f"its activation {kind} is not known")
    given = [(n, v) for n, v in zip(ACTIVATIONS[kind], parameters, strict=False) if v is not None]
    attributes = ", ".join(f"{n} = {float(v)!r}" for n, v in given)
    return f"{y} = {kind} {f'<{attributes}>' if attributes else ''} ({x})"


@define("FusedConv", "X, W, B, Z => Y", domain=MICROSOFT)
def fused_conv(call: Call) -> str:
    operands = "X, W, B" if "B" in call else "X, W"
    text = f"sums = Conv {call.attributes(*GEOMETRY)} ({operands})\n"
    if "Z" in call:
        text += "joined = Add (sums, Z)\n"
    return text + activated(
        call, "Y", "joined" if "Z" in call else "sums", list(call.attribute("activation_params", ()))
    )


@define("NhwcConv", "X, W, B => Y", domain=MICROSOFT)
def nhwc_conv(call: Call) -> str:
    rank = call.rank("W")
    return (
        to_channels_first("data", "X", rank)
        + to_channels_first("weights", "W", rank)
        + f"sums = Conv {call.attributes(*GEOMETRY)} (data, weights{', B' if 'B' in call else ''})\n"
        + to_channels_last("Y", "sums", rank)
    )


@define("FusedGemm", "A, B, C => Y", domain=MICROSOFT)
def fused_gemm(call: Call) -> str:
    text = (
        f"sums = Gemm {call.attributes('alpha', 'beta', 'transA', 'transB')} ({call.given('A', 'B', 'C')})\n"
    )
    return text + activated(call, "Y", "sums", _parameters(call))


def _parameters(call: Call) -> list[float | None]:
    return [call.attribute(f"activation_{n}") for n in ("alpha", "beta", "gamma")]


def _product(call: Call, name: str) -> str:
    """Lines: ``name`` is alpha * A @ B, either with its last two axes exchanged."""
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise NoDefinition("it turns batch axes")
    text, factors = "", []
    for x in ("A", "B"):
        rank = call.rank(x) if call.attribute(f"trans{x}", 0) else 0
        if rank >= 2:  # a vector stays what it is
            text += f"turned_{x} = Transpose <perm = {[*range(rank - 2), rank - 1, rank - 2]}> ({x})\n"
        factors.append(f"turned_{x}" if rank >= 2 else x)
    alpha = call.attribute("alpha", 1.0)
    if alpha == 1:
        return text + f"{name} = MatMul ({', '.join(factors)})\n"
    return text + f"product = MatMul ({', '.join(factors)})\n{name} = Mul (product, {call.number(alpha)})\n"


@define("FusedMatMul", "A, B => Y", domain=MICROSOFT)
@define("TransposeMatMul", "A, B => Y", domain=MICROSOFT)
def fused_matmul(call: Call) -> str:
    return _product(call, "Y")


@define("FusedMatMulActivation", "A, B => Y", domain=MICROSOFT)
def fused_matmul_activation(call: Call) -> str:
    return _product(call, "scaled") + activated(call, "Y", "scaled", _parameters(call))


# -- activations --------------------------------------------------------------------------------


def _gelu(call: Call, y: str, x: str) -> str:
    """Lines: x Phi(x), Phi the normal distribution."""
    return f"""
    root = Mul ({x}, {call.number(0.7071067811865476)})
    error = Erf (root)
    above = Add (error, {call.number(1.0)})
    half = Mul ({x}, {call.number(0.5)})
    {y} = Mul (half, above)
    """


def _tanh_gelu(call: Call, y: str, x: str) -> str:
    """Lines: Gelu with tanh(sqrt(2/pi) (x + 0.044715 x^3)) for the error function."""
    return f"""
    square = Mul ({x}, {x})
    cube = Mul (square, {x})
    bend = Mul (cube, {call.number(0.044715)})
    bent = Add ({x}, bend)
    scaled = Mul (bent, {call.number(0.7978845608028654)})
    turned = Tanh (scaled)
    above = Add (turned, {call.number(1.0)})
    half = Mul ({x}, {call.number(0.5)})
    {y} = Mul (half, above)
    """


@define("Gelu", "X => Y", domain=MICROSOFT)
def gelu(call: Call) -> str:
    return _gelu(call, "Y", "X")


@define("BiasGelu", "A, B => C", domain=MICROSOFT)
def bias_gelu(call: Call) -> str:
    return "biased = Add (A, B)\n" + _gelu(call, "C", "biased")


@define("FastGelu", "X, bias => Y", domain=MICROSOFT)
def fast_gelu(call: Call) -> str:
    if "bias" in call:
        return "biased = Add (X, bias)\n" + _tanh_gelu(call, "Y", "biased")
    return _tanh_gelu(call, "Y", "X")


@define("QuickGelu", "X => Y", domain=MICROSOFT)
def quick_gelu(call: Call) -> str:
    alpha = call.attribute("alpha", 1.702)
    scaled = "X" if alpha == 1 else "scaled"
    text = "" if alpha == 1 else f"scaled = Mul (X, {call.number(alpha)})\n"
    return text + f"gate = Sigmoid ({scaled})\nY = Mul (X, gate)"


@define("BiasSoftmax", "data, bias => output", domain=MICROSOFT)
def bias_softmax(call: Call) -> str:
    rank = call.rank("data")
    if call.attribute("axis", 1) % rank != rank - 1:
        raise NoDefinition("it flattens all axes from its axis on")
    return "biased = Add (data, bias)\noutput = Softmax <axis = -1> (biased)"


@define("BiasDropout", "data, bias, residual, ratio, training_mode => output, mask", domain=MICROSOFT)
def bias_dropout(call: Call) -> str:
    # As in inference: nothing is dropped.
    if "training_mode" in call or call.wants(1):
        raise NoDefinition("it drops values as in training: export the model for inference")
    if "residual" in call:
        return "biased = Add (data, bias)\noutput = Add (biased, residual)"
    return "output = Add (data, bias)"
