"""Cases of quantised tensors: in real numbers they are a clip, and x lies on the steps of the scale."""

from __future__ import annotations

import numpy as np

from ._make import Array, Case, case, vector

STEP = 0.25
#: The range of uint8 with zero point 120, in real numbers, and just outside of it: no kink lies on a step.
LEAST, MOST = -30.0, 33.75
RNG = np.random.default_rng(5)


def steps(*shape: int, spread: float = 1.4) -> Array:
    """Multiples of the scale, all different, some of them out of range."""
    count = int(np.prod(shape))
    found = np.linspace(-30 * spread, 33.75 * spread, count)
    inside = np.round(found / STEP) * STEP
    inside = np.where((inside == LEAST) | (inside == MOST), inside + STEP * np.sign(inside), inside)
    assert len(np.unique(inside)) == count
    return RNG.permutation(inside).reshape(shape)


def quantized(name: str, between: str, instead: str, x: Array, opset: int = 18, **values: Array) -> Case:
    """``between`` leads from q to r, both quantised; ``instead`` from c to y, both real."""
    return case(
        name,
        f"q = QuantizeLinear(x, s, z); {between}; y0 = DequantizeLinear(r, s, z); y = Cast<to=FLOAT>(y0)",
        instead=f"c = Clip(x, least, most); {instead}",
        wrt=("x",),
        opset=opset,
        x=x,
        s=np.float32(STEP),
        z=np.uint8(120),
        least=np.float64(LEAST),
        most=np.float64(MOST),
        **values,
    )


X = steps(2, 3, 4, 4)
ROW = steps(3, 8)

QUANTIZATION = [
    quantized("quantise and back", "r = Identity(q)", "y = Identity(c)", X),
    quantized("quantise and back, opset 21", "r = Identity(q)", "y = Identity(c)", X, opset=21),
    quantized("uint8 cast to uint8", "r = Cast<to=2>(q)", "y = Identity(c)", X),
    quantized("uint8 reshape", "r = Reshape(q, t)", "y = Reshape(c, t)", X, t=vector(2, -1)),
    quantized("uint8 flatten", "r = Flatten(q)", "y = Flatten(c)", X),
    quantized("uint8 transpose", "r = Transpose<perm=[0,2,3,1]>(q)", "y = Transpose<perm=[0,2,3,1]>(c)", X),
    quantized(
        "uint8 maxpool",
        "r = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(q)",
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)",
        steps(1, 2, 6, 6, spread=0.9),
    ),
    quantized(
        "uint8 maxpool of tiles",
        "r = MaxPool<kernel_shape=[2,2], strides=[2,2]>(q)",
        "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)",
        steps(1, 2, 6, 6, spread=0.9),
    ),
    quantized("uint8 concat", "r = Concat<axis=1>(q, q)", "y = Concat<axis=1>(c, c)", ROW),
    quantized("uint8 gather", "r = Gather<axis=1>(q, i)", "y = Gather<axis=1>(c, i)", ROW, i=vector(3, 0, 3)),
    quantized(
        "uint8 slice",
        "r = Slice(q, b, e, a)",
        "y = Slice(c, b, e, a)",
        ROW,
        b=vector(1),
        e=vector(5),
        a=vector(1),
    ),
    quantized("uint8 split", "r, o = Split<axis=1>(q, n)", "y, o = Split<axis=1>(c, n)", ROW, n=vector(3, 5)),
    quantized("uint8 squeeze", "u = Unsqueeze(q, a); r = Squeeze(u, a)", "y = Identity(c)", ROW, a=vector(1)),
    quantized("uint8 pad", "r = Pad(q, p, z)", "y = Pad(c, p)", ROW, p=vector(0, 1, 1, 2)),
    quantized("uint8 expand", "r = Expand(q, t)", "y = Expand(c, t)", ROW, t=vector(2, 3, 8)),
    quantized(
        "uint8 where",
        "r = Where(m, q, z)",
        "o = Sub(c, c); y = Where(m, c, o)",
        ROW,
        m=np.arange(24).reshape(3, 8) % 3 > 0,
    ),
    quantized("read twice", "r = Concat<axis=0>(q, q)", "y = Concat<axis=0>(c, c)", ROW),
    case(
        "int8 without zero point",
        "q0 = QuantizeLinear(x, s, z); q = Relu(q0); r = DequantizeLinear(q, s); y = Cast<to=FLOAT>(r)",
        instead="c = Clip(x, least, most); y = Relu(c)",
        wrt=("x",),
        x=steps(3, 8) + STEP / 2,
        s=np.float32(STEP / 2),
        z=np.int8(0),
        least=np.float64(-16),
        most=np.float64(15.875),
    ),
    case(
        "uint8 without zero point",
        "q = QuantizeLinear(x, s); r = DequantizeLinear(q, s); y = Cast<to=FLOAT>(r)",
        instead="y = Clip(x, least, most)",
        wrt=("x",),
        x=steps(3, 8) + STEP,
        s=np.float32(STEP / 2),
        least=np.float64(0),
        most=np.float64(31.875),
    ),
    case(
        "a scale per channel",
        "q = QuantizeLinear<axis=1>(x, s, z); r = DequantizeLinear<axis=1>(q, s, z); y = Cast<to=FLOAT>(r)",
        instead="y0 = Max(x, least); y = Min(y0, most)",
        wrt=("x",),
        x=steps(2, 3, 4),
        s=np.array([0.25, 0.125, 0.0625], np.float32),
        z=np.array([120, 0, 255], np.uint8),
        least=np.array([[-30.0], [0.0], [-15.9375]]),
        most=np.array([[33.75], [31.875], [0.0]]),
    ),
    case(
        "another scale behind than before",
        "q = QuantizeLinear(x, s, z); r = DequantizeLinear(q, t, z); y = Cast<to=FLOAT>(r)",
        instead="c = Clip(x, least, most); y = Add(c, c)",
        wrt=("x",),
        x=ROW,
        s=np.float32(STEP),
        t=np.float32(2 * STEP),
        z=np.uint8(120),
        least=np.float64(LEAST),
        most=np.float64(MOST),
    ),
    case(
        "scales per block",
        "q = QuantizeLinear<axis=1, block_size=3>(x, s, z); "
        "r = DequantizeLinear<axis=1, block_size=3>(q, t, z); y = Cast<to=FLOAT>(r)",
        instead="y = Mul(x, ratio)",
        wrt=("x",),
        opset=21,
        x=steps(2, 7, spread=0.2),
        s=np.array([[0.25, 0.125, 0.25], [0.25, 0.25, 0.125]], np.float32),
        t=np.array([[0.5, 0.125, 0.25], [0.25, 0.25, 0.5]], np.float32),
        z=np.full((2, 3), 120, np.uint8),
        ratio=np.array([[2, 2, 2, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 4]], np.float64),
    ),
    case(
        "16 bits",
        "q = QuantizeLinear(x, s, z); r = DequantizeLinear(q, s, z); y = Cast<to=FLOAT>(r)",
        instead="y = Clip(x, least, most)",
        wrt=("x",),
        opset=21,
        x=ROW,
        s=np.float32(2**-10),
        z=np.int16(0),
        least=np.float64(-32.0),
        most=np.float64(32767 / 1024),
    ),
    case(
        "4 bits",
        "q = QuantizeLinear<output_dtype=22>(x, s); r = DequantizeLinear(q, s); y = Cast<to=FLOAT>(r)",
        instead="y = Clip(x, least, most)",
        wrt=("x",),
        opset=21,
        x=np.array([[-3.0, -1.75, -0.25, 0.0, 0.5, 1.5, 2.5]]),
        s=np.float32(STEP),
        least=np.float64(-2.0),
        most=np.float64(1.75),
    ),
    case(
        "8-bit floats",
        "q = QuantizeLinear<output_dtype=17>(x, s); t = Reshape(q, h); r = DequantizeLinear(t, s);"
        "y = Cast<to=FLOAT>(r)",
        instead="c = Clip(x, least, most); y = Reshape(c, h)",
        wrt=("x",),
        opset=21,
        x=np.array([[-300.0, -4.0, -0.25, 0.0, 0.5, 1.5, 300.0]]),
        s=np.float32(STEP),
        h=vector(7),
        least=np.float64(-112.0),
        most=np.float64(112.0),
    ),
    case(
        "dynamic quantisation",
        "q, s, z = DynamicQuantizeLinear(x); r = DequantizeLinear(q, s, z); y = Mul(r, w)",
        instead="y = Mul(x, w)",
        wrt=("x",),
        x=np.array([[0.0, 255.0, 3.0, 77.0], [1.0, 2.0, 200.0, 9.0]]),
        w=(2, 4),
    ),
]
