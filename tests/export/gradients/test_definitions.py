"""Operators that ONNX does not define: what their definitions compute is what ONNX Runtime computes, and the
gradient of an operator is that of its definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as runtime
import pytest

from onnxcam.errors import NoGradientRule
from onnxcam.export.from_onnx import normalize
from onnxcam.export.gradients import add_gradients, definitions
from onnxcam.export.gradients.builder import dims_of
from onnxcam.export.shapes import _substitute, infer_shapes

from .harness import Array, difference, run_ort

MS = definitions.registry.MICROSOFT
RNG = np.random.default_rng(3)


def f32(*shape: int, scale: float = 1.0) -> Array:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def u8(*shape: int) -> Array:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def i8(*shape: int) -> Array:
    return RNG.integers(-127, 128, shape, dtype=np.int8)


def scale(value: Any) -> Array:
    return np.asarray(value, dtype=np.float32)


def zero(value: Any, dtype: Any = np.uint8) -> Array:
    return np.asarray(value, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Case:
    """A graph from ``x`` (float, of this shape) to ``y``; ``step`` is that of a quantised result."""

    name: str
    text: str
    shape: tuple[int, ...]
    values: dict[str, Array]
    step: float = 0.0
    opset: int = 18

    @property
    def model(self) -> onnx.ModelProto:
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : {self.opset}, "{MS}" : 1]> '
            f"g (float{list(self.shape)} x) => (float y) {{ {self.text} }}"
        )
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info("y", 1, None))
        model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in self.values.items())
        return model


def case(
    name: str, text: str, x: tuple[int, ...], step: float = 0.0, opset: int = 18, **values: Array
) -> Case:
    return Case(name, text.replace("MS.", f"{MS}.").replace(";", "\n"), x, values, step, opset)


#: x, in and out of the range that scale .02 and zero point 120 span; and a result's scale and zero point.
IN = {"s": scale(0.02), "z": zero(120)}
OUT = {"t": scale(0.05), "w": zero(100)}
Q, DQ = "q = QuantizeLinear(x, s, z);", "y = DequantizeLinear(r, t, w)"
SMALL = {"ws": scale(0.01), "wz": zero(128), "bias": RNG.integers(-500, 500, 4, dtype=np.int32)}

CASES = [
    case(
        "QLinearConv",
        f"{Q} r = QLinearConv<pads=[1,1,1,1], strides=[2,2]>(q, s, z, k, ws, wz, t, w, bias); {DQ}",
        (2, 3, 7, 7),
        0.05,
        k=u8(4, 3, 3, 3),
        **IN,
        **OUT,
        **SMALL,
    ),
    case(
        "QLinearConv per channel, depthwise",
        f"{Q} r = QLinearConv<group=4>(q, s, z, k, ws, wz, t, w); {DQ}",
        (1, 4, 5, 5),
        0.05,
        k=i8(4, 1, 3, 3),
        ws=scale([0.01, 0.02, 0.005, 0.03]),
        wz=zero([0, 0, 0, 0], np.int8),
        **IN,
        **OUT,
    ),
    case(
        "QLinearConv channels last",
        f"{Q} r = MS.QLinearConv<channels_last=1, pads=[1,0,1,0]>(q, s, z, k, ws, wz, t, w, bias); {DQ}",
        (2, 7, 6, 3),
        0.05,
        k=u8(4, 3, 3, 3),
        **IN,
        **OUT,
        **SMALL,
    ),
    case(
        "QLinearMatMul",
        f"{Q} r = QLinearMatMul(q, s, z, b, bs, bz, t, w); {DQ}",
        (3, 6),
        0.05,
        b=u8(6, 5),
        bs=scale(0.01),
        bz=zero(128),
        **IN,
        **OUT,
    ),
    case(
        "QLinearMatMul per column",
        f"{Q} r = QLinearMatMul(q, s, z, b, bs, bz, t, w); {DQ}",
        (3, 6),
        0.05,
        b=i8(6, 5),
        bs=scale([0.01, 0.02, 0.03, 0.01, 0.02]),
        bz=zero([0] * 5, np.int8),
        **IN,
        **OUT,
    ),
    case(
        "ConvInteger",
        "q, s, z = DynamicQuantizeLinear(x); r = ConvInteger<pads=[1,1,1,1]>(q, k, z, kz); c = Cast<to=1>(r);"
        "u = Mul(s, ks); y = Mul(c, u)",
        (1, 3, 5, 5),
        k=u8(4, 3, 3, 3),
        kz=zero(120),
        ks=scale(0.02),
    ),
    case(
        "MatMulInteger",
        "q, s, z = DynamicQuantizeLinear(x); r = MatMulInteger(q, b, z, bz); c = Cast<to=1>(r);"
        "u = Mul(s, bs); y = Mul(c, u)",
        (2, 3, 6),
        b=i8(6, 5),
        bz=zero(0, np.int8),
        bs=scale(0.02),
    ),
    case(
        "MatMulInteger per column, without zero points",
        "q = QuantizeLinear(x, s, z); r = MatMulInteger(q, b); c = Cast<to=1>(r); y = Mul(c, bs)",
        (3, 6),
        b=u8(6, 5),
        bs=scale([0.01, 0.02, 0.03, 0.01, 0.02]),
        **IN,
    ),
    case(
        "MatMulIntegerToFloat",
        "q, s, z = DynamicQuantizeLinear(x); y = MS.MatMulIntegerToFloat(q, b, s, bs, z, bz, bias)",
        (3, 6),
        b=u8(6, 5),
        bz=zero(120),
        bs=scale(0.02),
        bias=f32(5),
    ),
    case(
        "MatMulIntegerToFloat per column",
        "q, s, z = DynamicQuantizeLinear(x); y = MS.MatMulIntegerToFloat(q, b, s, bs, z, bz)",
        (3, 6),
        b=i8(6, 2),
        bz=zero([1, -2], np.int8),
        bs=scale([0.02, 0.01]),
    ),
    case(
        "DynamicQuantizeMatMul",
        "y = MS.DynamicQuantizeMatMul(x, b, bs, bz, bias)",
        (2, 3, 6),
        b=i8(6, 5),
        bz=zero(0, np.int8),
        bs=scale(0.02),
        bias=f32(5),
    ),
    case(
        "QGemm",
        f"{Q} r = MS.QGemm<transB=1, alpha=2.0>(q, s, z, b, bs, bz, c, t, w); {DQ}",
        (3, 6),
        0.05,
        b=i8(5, 6),
        bs=scale([0.01, 0.02, 0.03, 0.01, 0.02]),
        bz=zero([0] * 5, np.int8),
        c=RNG.integers(-90, 90, 5, dtype=np.int32),
        **IN,
        **OUT,
    ),
    case(
        "QGemm to float",
        f"{Q} y = MS.QGemm(q, s, z, b, bs, bz)",
        (3, 6),
        b=u8(6, 5),
        bs=scale(0.01),
        bz=zero(9),
        **IN,
    ),
    *(
        case(
            f"{op} {shape}",
            f"{Q} r = MS.{op}(q, s, z, b, bs, bz, t, w); {DQ}",
            (2, 3, 4),
            0.05,
            b=u8(*shape),
            bs=scale(0.03),
            bz=zero(90),
            **IN,
            **OUT,
        )
        for op in ("QLinearAdd", "QLinearMul")
        for shape in ((2, 3, 4), (3, 1))
    ),
    case(
        "QLinearSigmoid",
        f"{Q} r = MS.QLinearSigmoid(q, s, z, t, w); {DQ}",
        (3, 4),
        1 / 256,
        t=scale(1 / 256),
        w=zero(0),
        **IN,
    ),
    case(
        "QLinearLeakyRelu",
        f"{Q} r = MS.QLinearLeakyRelu<alpha=0.2>(q, s, z, t, w); {DQ}",
        (3, 4),
        0.05,
        **IN,
        **OUT,
    ),
    case(
        "QLinearSoftmax",
        f"{Q} r = MS.QLinearSoftmax<axis=1, opset=13>(q, s, z, t, w); {DQ}",
        (3, 4, 2),
        1 / 256,
        t=scale(1 / 256),
        w=zero(0),
        **IN,
    ),
    case(
        "QLinearSoftmax before opset 13",
        f"{Q} r = MS.QLinearSoftmax<axis=1, opset=12>(q, s, z, t, w); {DQ}",
        (3, 4),
        1 / 256,
        t=scale(1 / 256),
        w=zero(0),
        **IN,
    ),
    case(
        "QLinearWhere",
        f"{Q} r = MS.QLinearWhere(c, q, s, z, b, bs, bz, t, w); {DQ}",
        (3, 4),
        0.05,
        c=np.array([[True], [False], [True]]),
        b=u8(3, 4),
        bs=scale(0.03),
        bz=zero(90),
        **IN,
        **OUT,
    ),
    case(
        "QLinearConcat",
        f"{Q} r = MS.QLinearConcat<axis=1>(t, w, q, s, z, b, bs, bz, q, s, z); {DQ}",
        (2, 3),
        0.05,
        b=u8(2, 4),
        bs=scale(0.03),
        bz=zero(90),
        **IN,
        **OUT,
    ),
    case(
        "QLinearGlobalAveragePool",
        f"{Q} r = MS.QLinearGlobalAveragePool(q, s, z, t, w); {DQ}",
        (2, 3, 4, 5),
        0.05,
        **IN,
        **OUT,
    ),
    case(
        "QLinearGlobalAveragePool channels last",
        f"{Q} r = MS.QLinearGlobalAveragePool<channels_last=1>(q, s, z, t, w); {DQ}",
        (2, 4, 5, 3),
        0.05,
        **IN,
        **OUT,
    ),
    case(
        "QLinearAveragePool",
        f"{Q} r = MS.QLinearAveragePool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>"
        f"(q, s, z, t, w); {DQ}",
        (2, 3, 5, 5),
        0.05,
        **IN,
        **OUT,
    ),
    case(
        "QLinearAveragePool channels last, padding counted",
        f"{Q} r = MS.QLinearAveragePool<kernel_shape=[2,3], pads=[0,1,0,1], channels_last=1, "
        f"count_include_pad=1>(q, s, z, t, w); {DQ}",
        (2, 5, 5, 3),
        0.05,
        **IN,
        **OUT,
    ),
    case(
        "NhwcMaxPool",
        f"{Q} r = MS.NhwcMaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(q); "
        "y = DequantizeLinear(r, s, z)",
        (2, 5, 6, 3),
        **IN,
    ),
    case(
        "QuantizeLinear and back",
        "q = MS.QuantizeLinear(x, s, z); y = MS.DequantizeLinear(q, s, z)",
        (3, 4),
        opset=21,
        s=scale(0.02),
        z=zero(0, np.int16),
    ),
    case(
        "QuantizeLinear per axis",
        "q = MS.QuantizeLinear<axis=0>(x, s, z); y = MS.DequantizeLinear<axis=0>(q, s, z)",
        (3, 4),
        s=scale([0.02, 0.01, 0.5]),
        z=zero([3, 0, 100]),
    ),
    case(
        "MatMulNBits",
        "y = MS.MatMulNBits<K=48, N=5, bits=4, block_size=32>(x, b, bs)",
        (2, 3, 48),
        b=u8(5, 2, 16),
        bs=np.abs(f32(5, 2)),
    ),
    case(
        "MatMulNBits with zero points and bias",
        "y = MS.MatMulNBits<K=96, N=5, bits=4, block_size=32>(x, b, bs, bz, , c)",
        (3, 96),
        b=u8(5, 3, 16),
        bs=np.abs(f32(5, 3)),
        bz=u8(5, 2),
        c=f32(5),
    ),
    case(
        "MatMulNBits of 8 bits",
        "y = MS.MatMulNBits<K=64, N=5, bits=8, block_size=32>(x, b, bs)",
        (3, 64),
        b=u8(5, 2, 32),
        bs=np.abs(f32(5, 2)),
    ),
    *(
        case(
            f"FusedConv {kind or 'plain'}",
            f"y = MS.FusedConv<pads=[1,1,1,1]{f', activation={chr(34)}{kind}{chr(34)}' if kind else ''}"
            f"{f', activation_params={p}' if p else ''}>(x, k, b)",
            (2, 3, 5, 5),
            1e-5,
            k=f32(4, 3, 3, 3),
            b=f32(4),
        )
        for kind, p in (
            ("", None),
            ("Relu", None),
            ("Sigmoid", None),
            ("Tanh", None),
            ("LeakyRelu", [0.2]),
            ("Clip", [-1.0, 2.0]),
            ("HardSigmoid", [0.3, 0.4]),
        )
    ),
    case(
        "FusedConv with a sum",
        'y = MS.FusedConv<activation="Relu", strides=[2,2]>(x, k, b, z)',
        (2, 3, 6, 6),
        k=f32(4, 3, 2, 2),
        b=f32(4),
        z=f32(2, 4, 3, 3),
    ),
    case(
        "FusedMatMul",
        "t = Add(x, c); y = MS.FusedMatMul<transA=1, transB=1, alpha=0.3>(x, t)",
        (2, 4, 4),
        c=f32(4, 4),
    ),
    case("TransposeMatMul", "y = MS.TransposeMatMul<transB=1>(x, b)", (3, 4), b=f32(5, 4)),
    *(
        case(
            f"FusedGemm {kind}",
            f'y = MS.FusedGemm<transB=1, alpha=0.5, beta=2.0, activation="{kind}"{more}>(x, b, c)',
            (3, 4),
            1e-5,
            b=f32(5, 4),
            c=f32(5),
        )
        for kind, more in (
            ("Relu", ""),
            ("LeakyRelu", ", activation_alpha=0.1"),
            ("Sigmoid", ""),
            ("Tanh", ""),
        )
    ),
    case("Gelu", "y = MS.Gelu(x)", (3, 4)),
    case("FastGelu", "y = MS.FastGelu(x, b)", (3, 4), b=f32(4)),
    case("FastGelu without bias", "y = MS.FastGelu(x)", (3, 4)),
    case("BiasGelu", "y = MS.BiasGelu(x, b)", (3, 4), b=f32(4)),
    case("QuickGelu", "y = MS.QuickGelu<alpha=1.3>(x)", (3, 4)),
    case("SiLU", "y = MS.QuickGelu<alpha=1.0>(x)", (3, 4)),
    case(
        "SkipLayerNormalization",
        "y = MS.SkipLayerNormalization<epsilon=0.001>(x, s, g, b, c)",
        (2, 3, 4),
        s=f32(2, 3, 4),
        g=f32(4),
        b=f32(4),
        c=f32(4),
    ),
    case(
        "SkipLayerNormalization, its sum used",
        "a, , , r = MS.SkipLayerNormalization(x, s, g, b); y = Add(a, r)",
        (2, 3, 4),
        s=f32(2, 3, 4),
        g=f32(4),
        b=f32(4),
    ),
    case(
        "SkipSimplifiedLayerNormalization",
        "a, , , r = MS.SkipSimplifiedLayerNormalization<epsilon=0.001>(x, s, g); y = Mul(a, r)",
        (2, 3, 4),
        s=f32(2, 3, 4),
        g=f32(4),
    ),
    case("SimplifiedLayerNormalization", "y = SimplifiedLayerNormalization(x, g)", (2, 3, 4), g=f32(4)),
    case(
        "Attention",
        "y = MS.Attention<num_heads=2>(x, k, b)",
        (2, 3, 4),
        k=f32(4, 12),
        b=f32(12),
    ),
    case(
        "Attention of other widths, masked, biased",
        "y = MS.Attention<num_heads=2, qkv_hidden_sizes=[4,4,6], scale=0.3>(x, k, b, m, , a)",
        (2, 3, 4),
        k=f32(4, 14),
        b=f32(14),
        m=np.array([[1, 1, 0], [1, 0, 1]], np.int32),
        a=f32(1, 2, 3, 3),
    ),
    case(
        "Attention, causal",
        "y = MS.Attention<num_heads=2, unidirectional=1>(x, k, b)",
        (2, 3, 4),
        k=f32(4, 12),
        b=f32(12),
    ),
    case(
        "MultiHeadAttention",
        "k = Mul(x, x); v = Sin(x); y = MS.MultiHeadAttention<num_heads=2>(x, k, v)",
        (2, 3, 4),
    ),
    case(
        "MultiHeadAttention with bias and mask",
        "v = Sin(x); y = MS.MultiHeadAttention<num_heads=2>(x, x, v, b, m, a)",
        (2, 3, 4),
        b=f32(12),
        m=np.array([[1, 1, 0], [1, 0, 1]], np.int32),
        a=f32(2, 2, 3, 3),
    ),
]
#: Without a kernel on the CPU: compared with the same computation in ONNX's operators.
ELSEWHERE = {
    "BiasSoftmax": (
        case("", "y = MS.BiasSoftmax<axis=2, is_inner_broadcast=0>(x, b)", (2, 3, 4), b=f32(1, 3, 4)),
        "t = Add(x, b); y = Softmax<axis=2>(t)",
    ),
    "QLinearReduceMean": (
        case(
            "",
            f"{Q} r = MS.QLinearReduceMean<axes=[2,3], keepdims=0>(q, s, z, t, w); {DQ}",
            (2, 3, 4, 5),
            **IN,
            **OUT,
        ),
        f"{Q} d = DequantizeLinear(q, s, z); a = Constant<value_ints=[2,3]>();"
        f"m = ReduceMean<keepdims=0>(d, a);"
        f"r = QuantizeLinear(m, t, w); {DQ}",
    ),
    "BiasDropout": (
        case("", "y = MS.BiasDropout(x, b, r)", (3, 4), b=f32(4), r=f32(3, 4)),
        "t = Add(x, b); y = Add(t, r)",
    ),
    "GroupNorm": (
        case(
            "",
            "y = MS.GroupNorm<groups=2, activation=1, channels_last=1, epsilon=0.001>(x, g, b)",
            (2, 3, 5, 4),
            g=f32(4),
            b=f32(4),
            ones=np.ones(2, np.float32),
            zeros=np.zeros(2, np.float32),
            g3=np.zeros(0, np.float32),
        ),
        "a = Transpose<perm=[0,3,1,2]>(x); r = Constant<value_ints=[0,2,-1]>(); v = Reshape(a, r);"
        "n = InstanceNormalization<epsilon=0.001>(v, ones, zeros); h = Shape(a); m = Reshape(n, h);"
        "c = Constant<value_ints=[-1,1,1]>(); gr = Reshape(g, c); br = Reshape(b, c); k = Mul(m, gr);"
        "o = Add(k, br); e = Sigmoid(o); f = Mul(o, e); y = Transpose<perm=[0,2,3,1]>(f)",
    ),
    "LayerNormalization": (
        case("", "y = MS.LayerNormalization<epsilon=0.001>(x, g, b)", (3, 4), g=f32(4), b=f32(4)),
        "y = LayerNormalization<epsilon=0.001>(x, g, b)",
    ),
    "FusedMatMulActivation": (
        case("", 'y = MS.FusedMatMulActivation<alpha=0.5, activation="Relu">(x, b)', (3, 4), b=f32(4, 2)),
        "p = MatMul(x, b); h = Constant<value_float=0.5>(); m = Mul(p, h); y = Relu(m)",
    ),
    "SkipGroupNorm": (
        case(
            "",
            "n, s = MS.SkipGroupNorm<groups=2, activation=0, channels_last=0>(x, g, b, k, c); y = Add(n, s)",
            (2, 4, 3, 5),
            g=f32(4),
            b=f32(4),
            k=f32(2, 4, 3, 5),
            c=f32(1, 4, 1, 1),
            ones=np.ones(2, np.float32),
            zeros=np.zeros(2, np.float32),
        ),
        "p = Add(x, k); s = Add(p, c); r = Constant<value_ints=[0,2,-1]>(); v = Reshape(s, r);"
        "n = InstanceNormalization(v, ones, zeros); h = Shape(s); m = Reshape(n, h);"
        "e = Constant<value_ints=[-1,1,1]>(); gr = Reshape(g, e); br = Reshape(b, e); q = Mul(m, gr);"
        "o = Add(q, br); y = Add(o, s)",
    ),
}


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every operator that we define replaced by its definition."""
    work = normalize(ir.from_proto(model))
    while _substitute(work, every=True):
        passes.InlinePass()(work)
    for value in [v for node in work.graph for v in node.outputs if not v.is_graph_output()]:
        value.type = value.shape = None  # what was counted in whole numbers is real now
    infer_shapes(work)
    return ir.to_proto(work)


def run_plainly(model: onnx.ModelProto, x: Array) -> Array:
    """``y``, node by node: the optimiser would make of a definition what it is the definition of."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["y"], {"x": x})[0])


def image(shape: tuple[int, ...]) -> Array:
    return np.asarray(np.random.default_rng(11).standard_normal(shape) * 2, np.float32)


def gradient(model: onnx.ModelProto, x: Array, seed: Array) -> Array:
    work = normalize(ir.from_proto(model))
    names = add_gradients(work, "y", ["x"])
    return run_ort(ir.to_proto(work), {"x": x, "seed": seed}, [names["x"]])[0]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_definition_computes_what_onnx_runtime_computes(case: Case) -> None:
    x = image(case.shape)
    (y,) = run_ort(case.model, {"x": x}, ["y"])
    plain = expanded(case.model)
    assert {n.domain for n in plain.graph.node} == {""}
    assert not {n.op_type for n in plain.graph.node} & {
        d.op_type for d in definitions.defined() if not d.domain
    }
    again = run_plainly(plain, x)
    assert again.shape == y.shape
    # An integer kernel may round the other way, by one step and seldom.
    assert np.abs(again - y).max() <= 1.001 * case.step + 1e-4 * np.abs(y).max()
    assert np.mean(np.abs(again - y) > 1e-4 * np.abs(y).max()) < 0.1


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_gradient_is_that_of_the_definition(case: Case) -> None:
    x = image(case.shape)
    y = run_ort(case.model, {"x": x}, ["y"])[0]
    seed = f32(*y.shape)
    found = gradient(case.model, x, seed)
    plain = expanded(case.model)
    # Where an integer kernel rounds the other way, a slope that is read off the result differs by as much.
    same = np.allclose(run_plainly(plain, x), y, atol=1e-4)
    assert difference(found, gradient(plain, x, seed)) < (2e-4 if same else 0.02)
    assert np.abs(found).max() > 0


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_definition_without_a_kernel_here(name: str) -> None:
    case, text = ELSEWHERE[name]
    x = image(case.shape)
    plain = dataclasses.replace(case, text=text.replace(";", "\n")).model
    (y,) = run_ort(plain, {"x": x}, ["y"])
    (again,) = run_ort(expanded(case.model), {"x": x}, ["y"])
    assert difference(again, y) < 1e-5
    seed = f32(*y.shape)
    assert difference(gradient(expanded(case.model), x, seed), gradient(plain, x, seed)) < 1e-4


def test_a_convolution_that_the_runtimes_tool_turned() -> None:
    """NhwcConv, which the CPU lacks: the tool that writes it says how its weights are laid out."""
    fusion = pytest.importorskip("onnxruntime.transformers.fusion_nhwc_conv")
    tool = pytest.importorskip("onnxruntime.transformers.onnx_model")
    built = case(
        "",
        "y = Conv<pads=[1,1,0,0], strides=[2,1]>(x, k, b)",
        (2, 3, 5, 6),
        k=f32(4, 3, 3, 2),
        b=f32(4),
    )
    turned = tool.OnnxModel(onnx.shape_inference.infer_shapes(built.model))
    fusion.FusionNhwcConv(turned, update_weight=True).apply()
    turned.topological_sort()
    assert "NhwcConv" in {n.op_type for n in turned.model.graph.node}
    x = image(built.shape)
    y = run_plainly(built.model, x)
    assert difference(run_plainly(expanded(turned.model), x), y) < 1e-6
    seed = f32(*y.shape)
    assert difference(gradient(expanded(turned.model), x, seed), gradient(built.model, x, seed)) < 1e-5


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_shapes_go_on_behind_it(case: Case) -> None:
    x = image(case.shape)
    (y,) = run_ort(case.model, {"x": x}, ["y"])
    work = normalize(ir.from_proto(case.model))
    for node in work.graph:
        assert all(v.shape is not None and v.dtype is not None for v in node.outputs if v.name), node
    assert dims_of(work.graph.outputs[0]) == y.shape


def test_every_definition_has_a_case() -> None:
    texts = " ".join([c.text for c in CASES] + [c.text for c, _ in ELSEWHERE.values()])
    missing = [
        f"{d.domain}.{d.op_type}"
        for d in definitions.defined()
        if f"{d.domain + '.' if d.domain else ' '}{d.op_type}" not in texts
    ]
    # Another domain's name of what has a case, and what has a test of its own.
    elsewhere = {".RNN", ".GRU", ".LSTM"}  # test_loops.py
    assert set(missing) == {f"{MS}.SimplifiedLayerNormalization", f"{MS}.NhwcConv"} | elsewhere


@pytest.mark.parametrize("definition", definitions.defined(), ids=lambda d: f"{d.domain}.{d.op_type}")
def test_formal_names_are_the_runtimes(definition: definitions.registry.Definition) -> None:
    known = {(s.domain, s.name): s for s in runtime.get_all_operator_schema()}
    schema = known.get((definition.domain, definition.op_type))
    if schema is None:
        assert (definition.domain, definition.op_type) in {
            (MS, "SimplifiedLayerNormalization"),
            (MS, "LayerNormalization"),
            (MS, "SkipGroupNorm"),
        }
        return
    assert definition.inputs == tuple(i.name for i in schema.inputs)
    assert definition.outputs == tuple(o.name for o in schema.outputs)


@pytest.mark.parametrize(
    ("text", "shape", "reason", "values"),
    [
        (
            "y = MS.Attention<num_heads=2>(x, k, b, m)",
            (2, 3, 4),
            "its mask_index has 1 axes",
            {"k": f32(4, 12), "b": f32(12), "m": np.array([3, 2], np.int32)},
        ),
        (
            "y = MS.FusedMatMul<transBatchA=1>(x, b)",
            (2, 3, 4),
            "it turns batch axes",
            {"b": f32(3, 4, 2)},
        ),
        (
            "y = MS.MatMulNBits<K=64, N=5, bits=2, block_size=32>(x, b, s)",
            (3, 64),
            "its weights have 2 bits",
            {"b": u8(5, 2, 8), "s": f32(5, 2)},
        ),
        (
            'y = MS.FusedConv<activation="Gelu">(x, k)',
            (1, 2, 4, 4),
            "its activation Gelu is not known",
            {"k": f32(1, 2, 3, 3)},
        ),
    ],
)
def test_a_form_that_is_not_covered_is_refused_with_its_reason(text, shape, reason, values) -> None:
    built = case("", text, shape, **values)
    work = normalize(ir.from_proto(built.model))
    with pytest.raises(NoGradientRule, match=f"(?s)com.microsoft.*{reason}"):
        add_gradients(work, "y", ["x"])


def test_defining_twice_raises() -> None:
    with pytest.raises(ValueError, match=r"com\.microsoft\.Gelu is defined twice"):
        definitions.registry.define("Gelu", "X => Y", domain=MS)(lambda call: "")


def test_what_is_not_needed_is_not_computed_again() -> None:
    """A fused convolution's ReLU is read off its result: the gradient is one mask and one convolution."""
    built = next(c for c in CASES if c.name == "FusedConv Relu")
    work = normalize(ir.from_proto(built.model))
    before = set(work.graph)
    add_gradients(work, "y", ["x"])
    assert sorted(n.op_type for n in work.graph if n not in before) == [
        "Conv",
        "Greater",
        "Slice",
        "Transpose",
        "Where",
    ]
