"""What quantised operators compute, in real numbers: dequantise, calculate, quantise.

Whole numbers that are only added up (ConvInteger, MatMulInteger) are defined as the real numbers they are.
"""

from .registry import MICROSOFT, Call, NoDefinition, define

GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
POOLING = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def real(call: Call, name: str, x: str, scale: str, zero_point: str, axis: int | None = None) -> str:
    """One line: ``name`` is the quantised tensor ``x`` in real numbers, in tensors of the node."""
    along = "" if axis is None else f"<axis = {axis}> "
    return f"{name} = DequantizeLinear {along}({call.given(x, scale, zero_point)})\n"


def quantized(call: Call, name: str, x: str, scale: str, zero_point: str) -> str:
    """One line: ``name`` is ``x`` quantised."""
    operands = f"{x}, {call.given(scale, zero_point)}"
    return f"{name} = QuantizeLinear ({operands})\n"


def to_channels_first(name: str, x: str, rank: int) -> str:
    """One line: NHWC as NCHW."""
    return f"{name} = Transpose <perm = {[0, rank - 1, *range(1, rank - 1)]}> ({x})\n"


def to_channels_last(name: str, x: str, rank: int) -> str:
    """One line: NCHW as NHWC."""
    return f"{name} = Transpose <perm = {[0, *range(2, rank), 1]}> ({x})\n"


# -- convolutions and products ------------------------------------------------------------------


@define("QLinearConv", "x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B => y")
@define(
    "QLinearConv",
    "x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B => y",
    domain=MICROSOFT,
)
def qlinear_conv(call: Call) -> str:
    last = call.attribute("channels_last", 0)
    rank = call.rank("w")
    text = real(call, "data", "x", "x_scale", "x_zero_point")
    text += real(call, "weights", "w", "w_scale", "w_zero_point", axis=0)
    if last:
        text += to_channels_first("turned", "data", rank)
    operands = f"{'turned' if last else 'data'}, weights"
    if "B" in call:
        # The bias counts in units of x_scale * w_scale.
        text += f"unit = Mul (x_scale, w_scale)\ncounted = Cast <to = {call.dtype.value}> (B)\n"
        text += f"unit_1 = Reshape (unit, {call.ints(-1)})\nbias = Mul (counted, unit_1)\n"
        operands += ", bias"
    text += f"sums = Conv {call.attributes(*GEOMETRY)} ({operands})\n"
    if last:
        text += to_channels_last("back", "sums", rank)
    return text + quantized(call, "y", "back" if last else "sums", "y_scale", "y_zero_point")


_MATMUL = "a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point => y"


@define("QLinearMatMul", _MATMUL)
def qlinear_matmul(call: Call) -> str:
    return (
        _scaled(call, "left", "a", "a_scale", "a_zero_point", -2)
        + _scaled(call, "right", "b", "b_scale", "b_zero_point", -1)
        + "sums = MatMul (left, right)\n"
        + quantized(call, "y", "sums", "y_scale", "y_zero_point")
    )


def _scaled(call: Call, name: str, x: str, scale: str, zero_point: str, axis: int) -> str:
    """A factor of a product in real numbers: scales per row (-2), per column (-1) or for all of it."""
    per_axis = call.rank(scale) == 1 and call.value(scale).shape != (1,)
    return real(call, name, x, scale, zero_point, call.rank(x) + axis if per_axis else None)


@define("ConvInteger", "x, w, x_zero_point, w_zero_point => y")
def conv_integer(call: Call) -> str:
    rank = call.rank("w")
    return (
        _counted(call, "data", "x", "x_zero_point")
        + _counted(call, "weights", "w", "w_zero_point", [-1, *[1] * (rank - 1)])
        + f"y = Conv {call.attributes(*GEOMETRY)} (data, weights)"
    )


@define("MatMulInteger", "A, B, a_zero_point, b_zero_point => Y")
def matmul_integer(call: Call) -> str:
    per_row = "a_zero_point" in call and call.rank("a_zero_point") == 1
    return (
        _counted(call, "left", "A", "a_zero_point", [-1, 1] if per_row else None)
        + _counted(call, "right", "B", "b_zero_point")
        + "Y = MatMul (left, right)"
    )


def _counted(call: Call, name: str, x: str, zero_point: str, shape: list[int] | None = None) -> str:
    """One line or more: ``name`` is ``x`` above its zero point, as real numbers."""
    if zero_point not in call:
        return f"{name} = Cast <to = 1> ({x})\n"
    text = f"{name}_raw = Cast <to = 1> ({x})\n{name}_zero = Cast <to = 1> ({zero_point})\n"
    if shape is not None and call.rank(zero_point):
        text += f"{name}_zeros = Reshape ({name}_zero, {call.ints(*shape)})\n"
        return text + f"{name} = Sub ({name}_raw, {name}_zeros)\n"
    return text + f"{name} = Sub ({name}_raw, {name}_zero)\n"


@define(
    "MatMulIntegerToFloat",
    "A, B, a_scale, b_scale, a_zero_point, b_zero_point, bias => Y",
    domain=MICROSOFT,
)
def matmul_integer_to_float(call: Call) -> str:
    return (
        real(call, "left", "A", "a_scale", "a_zero_point")
        + _scaled(call, "right", "B", "b_scale", "b_zero_point", -1)
        + _with_bias(call, "MatMul (left, right)", "bias")
    )


@define("DynamicQuantizeMatMul", "A, B, b_scale, b_zero_point, bias => Y", domain=MICROSOFT)
def dynamic_quantize_matmul(call: Call) -> str:
    return (
        "whole, scale, zero = DynamicQuantizeLinear (A)\nleft = DequantizeLinear (whole, scale, zero)\n"
        + _scaled(call, "right", "B", "b_scale", "b_zero_point", -1)
        + _with_bias(call, "MatMul (left, right)", "bias")
    )


def _with_bias(call: Call, product: str, bias: str) -> str:
    return f"product = {product}\nY = Add (product, {bias})" if bias in call else f"Y = {product}"


@define(
    "QGemm",
    "A, a_scale, a_zero_point, B, b_scale, b_zero_point, C, y_scale, y_zero_point => Y",
    domain=MICROSOFT,
)
def qgemm(call: Call) -> str:
    out = 0 if call.attribute("transB", 0) else 1
    per_column = call.rank("b_scale") == 1 and call.value("b_scale").shape != (1,)
    text = real(call, "left", "A", "a_scale", "a_zero_point")
    text += real(call, "right", "B", "b_scale", "b_zero_point", axis=out if per_column else None)
    text += f"product = Gemm {call.attributes('alpha', 'transA', 'transB')} (left, right)\n"
    sums = "product"
    if "C" in call:
        # The bias counts in units of alpha * a_scale * b_scale.
        alpha = call.number(call.attribute("alpha", 1.0))
        text += f"unit_1 = Mul (a_scale, b_scale)\nunit = Mul (unit_1, {alpha})\n"
        text += f"counted = Cast <to = {call.dtype.value}> (C)\nbias = Mul (counted, unit)\n"
        text += "sums = Add (product, bias)\n"
        sums = "sums"
    if "y_scale" not in call:
        return text + f"Y = Identity ({sums})"
    return text + quantized(call, "Y", sums, "y_scale", "y_zero_point")


@define("MatMulNBits", "A, B, scales, zero_points, g_idx, bias => Y", domain=MICROSOFT)
def matmul_n_bits(call: Call) -> str:
    bits, size = call.attribute("bits", 4), call.attribute("block_size")
    N, K = call.attribute("N"), call.attribute("K")
    if bits not in (4, 8):
        raise NoDefinition(f"its weights have {bits} bits")
    if "g_idx" in call:
        raise NoDefinition("its weights are grouped by g_idx")
    blocks = -(-K // size)
    to = call.dtype.value
    text = _unpacked(call, "B", "counts", bits, (N, blocks, size))
    text += f"raw = Cast <to = {to}> (counts)\n"
    if "zero_points" not in call:
        zero = call.number(2 ** (bits - 1))
    else:
        zero = "zero"
        kind = call.value("zero_points").dtype
        if kind is not None and kind.is_floating_point():
            text += f"zero = Reshape (zero_points, {call.ints(N, blocks, 1)})\n"
        else:
            padded = -(-blocks * bits // 8) * 8 // bits
            text += _unpacked(call, "zero_points", "zeros", bits, (N, padded, 1))
            text += f"cut = Slice (zeros, {call.ints(0)}, {call.ints(blocks)}, {call.ints(1)})\n"
            text += f"zero = Cast <to = {to}> (cut)\n"
    text += f"centred = Sub (raw, {zero})\nunits = Reshape (scales, {call.ints(N, blocks, 1)})\n"
    text += f"scaled = Mul (centred, units)\nrows = Reshape (scaled, {call.ints(N, blocks * size)})\n"
    text += f"weights = Slice (rows, {call.ints(0)}, {call.ints(K)}, {call.ints(1)})\n"
    text += "columns = Transpose <perm = [1, 0]> (weights)\n"
    return text + _with_bias(call, "MatMul (A, columns)", "bias")


def _unpacked(call: Call, x: str, name: str, bits: int, shape: tuple[int, ...]) -> str:
    """Lines: bytes as their numbers of ``bits`` bits, the lowest first."""
    target = call.ints(*shape)
    if bits == 8:
        return f"{name} = Reshape ({x}, {target})\n"
    from onnx_ir import DataType

    mask, four = call.number(15, DataType.UINT8), call.number(4, DataType.UINT8)
    last = call.ints(-1)
    return (
        f"{name}_low = BitwiseAnd ({x}, {mask})\n"
        f'{name}_high = BitShift <direction = "RIGHT"> ({x}, {four})\n'
        f"{name}_first = Unsqueeze ({name}_low, {last})\n{name}_second = Unsqueeze ({name}_high, {last})\n"
        f"{name}_both = Concat <axis = -1> ({name}_first, {name}_second)\n"
        f"{name} = Reshape ({name}_both, {target})\n"
    )


# -- pointwise ----------------------------------------------------------------------------------

_BINARY = "A, A_scale, A_zero_point, B, B_scale, B_zero_point, C_scale, C_zero_point => C"


def _binary(call: Call, op_type: str) -> str:
    return (
        real(call, "left", "A", "A_scale", "A_zero_point")
        + real(call, "right", "B", "B_scale", "B_zero_point")
        + f"result = {op_type} (left, right)\n"
        + quantized(call, "C", "result", "C_scale", "C_zero_point")
    )


@define("QLinearAdd", _BINARY, domain=MICROSOFT)
def qlinear_add(call: Call) -> str:
    return _binary(call, "Add")


@define("QLinearMul", _BINARY, domain=MICROSOFT)
def qlinear_mul(call: Call) -> str:
    return _binary(call, "Mul")


_UNARY = "X, X_scale, X_zero_point, Y_scale, Y_zero_point => Y"


def _unary(call: Call, application: str) -> str:
    return (
        real(call, "data", "X", "X_scale", "X_zero_point")
        + f"result = {application}\n"
        + quantized(call, "Y", "result", "Y_scale", "Y_zero_point")
    )


@define("QLinearSigmoid", _UNARY, domain=MICROSOFT)
def qlinear_sigmoid(call: Call) -> str:
    return _unary(call, "Sigmoid (data)")


@define("QLinearLeakyRelu", _UNARY, domain=MICROSOFT)
def qlinear_leaky_relu(call: Call) -> str:
    return _unary(call, f"LeakyRelu {call.attributes('alpha')} (data)")


@define("QLinearSoftmax", "X, X_scale, x_zero_point, y_scale, y_zero_point => Y", domain=MICROSOFT)
def qlinear_softmax(call: Call) -> str:
    rank = call.rank("X")
    axis = call.attribute("axis", -1) % rank
    if call.attribute("opset") < 13 and axis != rank - 1:
        raise NoDefinition("it flattens all axes from its axis on")
    text = real(call, "data", "X", "X_scale", "x_zero_point")
    text += f"result = Softmax <axis = {axis}> (data)\n"
    return text + quantized(call, "Y", "result", "y_scale", "y_zero_point")


@define(
    "QLinearWhere",
    "condition, X, x_scale, x_zero_point, Y, y_scale, y_zero_point, z_scale, z_zero_point => Z",
    domain=MICROSOFT,
)
def qlinear_where(call: Call) -> str:
    return (
        real(call, "left", "X", "x_scale", "x_zero_point")
        + real(call, "right", "Y", "y_scale", "y_zero_point")
        + "result = Where (condition, left, right)\n"
        + quantized(call, "Z", "result", "z_scale", "z_zero_point")
    )


# -- joining and pooling ------------------------------------------------------------------------


@define("QLinearConcat", "Y_scale, Y_zero_point, inputs* => Y", domain=MICROSOFT)
def qlinear_concat(call: Call) -> str:
    text, parts = "", []
    for k in range(0, len(call.node.inputs) - 2, 3):
        parts.append(f"part_{k}")
        text += real(call, parts[-1], f"inputs_{k}", f"inputs_{k + 1}", f"inputs_{k + 2}")
    text += f"result = Concat {call.attributes('axis')} ({', '.join(parts)})\n"
    return text + quantized(call, "Y", "result", "Y_scale", "Y_zero_point")


_POOL = "X, x_scale, x_zero_point, y_scale, y_zero_point => Y"


def _pooled(call: Call, application: str) -> str:
    """A pool of ``data``; NHWC is turned and turned back."""
    last = call.attribute("channels_last", 0)
    text = real(call, "turned" if last else "data", "X", "x_scale", "x_zero_point")
    rank = call.rank("X") if last else 0
    if last:
        text += to_channels_first("data", "turned", rank)
    text += f"pooled = {application} (data)\n"
    if last:
        text += to_channels_last("result", "pooled", rank)
    return text + quantized(call, "Y", "result" if last else "pooled", "y_scale", "y_zero_point")


@define("QLinearGlobalAveragePool", _POOL, domain=MICROSOFT)
def qlinear_global_average_pool(call: Call) -> str:
    return _pooled(call, "GlobalAveragePool")


@define("QLinearAveragePool", _POOL, domain=MICROSOFT)
def qlinear_average_pool(call: Call) -> str:
    return _pooled(call, f"AveragePool {call.attributes(*POOLING)}")


@define("NhwcMaxPool", "x => y", domain=MICROSOFT)
def nhwc_max_pool(call: Call) -> str:
    rank = len(call.attribute("kernel_shape")) + 2
    attributes = call.attributes("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    return (
        to_channels_first("data", "x", rank)
        + f"pooled = MaxPool {attributes} (data)\n"
        + to_channels_last("y", "pooled", rank)
    )


@define(
    "QLinearReduceMean",
    "data, data_scale, data_zero_point, reduced_scale, reduced_zero_point => reduced",
    domain=MICROSOFT,
)
def qlinear_reduce_mean(call: Call) -> str:
    text = real(call, "values", "data", "data_scale", "data_zero_point")
    axes = f", {call.ints(*call.attribute('axes'))}" if "axes" in call.node.attributes else ""
    text += f"result = ReduceMean {call.attributes('keepdims')} (values{axes})\n"
    return text + quantized(call, "reduced", "result", "reduced_scale", "reduced_zero_point")


# -- ONNX Runtime's own names for ONNX's operators (16 and 4 bits before opset 21) ------------------


@define("QuantizeLinear", "x, y_scale, y_zero_point => y", domain=MICROSOFT)
def quantize_linear(call: Call) -> str:
    return f"y = QuantizeLinear {call.attributes('axis')} ({call.given('x', 'y_scale', 'y_zero_point')})"


@define("DequantizeLinear", "x, x_scale, x_zero_point => y", domain=MICROSOFT)
def dequantize_linear(call: Call) -> str:
    return f"y = DequantizeLinear {call.attributes('axis')} ({call.given('x', 'x_scale', 'x_zero_point')})"
