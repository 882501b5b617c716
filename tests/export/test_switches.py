"""A switch on every quantised tensor: all off it is the reference, all on the QDQ file; what is refused."""

from __future__ import annotations

import itertools

import nets
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from culprit_files import constant, network, pair

from onnxcam import demo
from onnxcam.errors import MissingDependency, ModelError, NotOnnx
from onnxcam.export import switches
from onnxcam.export.switches import SWITCHES, switchable

WEIGHTS = nets.weights(w=(4, 3, 3, 3), b=(4,), v=(5, 4), u=(5,))
ROUNDING = {
    "s": np.array(0.03, np.float32),
    "z": np.array(128, np.uint8),
    "t": np.array(0.05, np.float32),
    "i": np.array(3, np.int8),
    "sc": np.array([0.02, 0.03, 0.04, 0.05], np.float32),
    "zc": np.array([0, 10, 128, 200], np.uint8),
    "sr": np.array(0.02, np.float32),
    "zr": np.array(0, np.uint8),
    "wq": np.clip(np.rint(WEIGHTS["w"] / 0.01), -128, 127).astype(np.int8),
    "ws": np.array(0.01, np.float32),
    "wz": np.array(0, np.int8),
    "vq": np.clip(np.rint(WEIGHTS["v"].T / 0.02), -128, 127).astype(np.int8),
    "vs": np.array(0.02, np.float32),
    "z16": np.array(30000, np.uint16),
    "s16": np.array(0.0002, np.float32),
}
HEAD = "g = GlobalAveragePool(m) f = Flatten(g) y = Gemm<transB=1>(f, v, u)"
PLAIN = f"c = Conv<pads=[1,1,1,1]>(x, w, b) m = Relu(c) {HEAD}"


def build(body, opset=18, outputs="float[N,5] y", extra="", **more):
    known = {**WEIGHTS, **ROUNDING, **more}
    used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    arrays = {name: array for name, array in known.items() if name in used}
    return nets.model(body, outputs=outputs, initializers=arrays, opset=opset, extra_opsets=extra)


def run(model, feeds, optimized=True):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def checked(reference, quantised, atol=1e-5, x=None):
    """The switchable network, after all off and all on were compared with the two files."""
    board = switchable(reference.SerializeToString(), quantised.SerializeToString())
    made = ir.to_proto(board.model)
    onnx.checker.check_model(made)
    if x is None:
        x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    count = len(board.tensors)
    for on, model in ((False, reference), (True, quantised)):
        wanted = run(model, {"x": x}, optimized=False)
        got = run(made, {"x": x, SWITCHES: np.full(count, on)})
        assert [a.shape for a in got] == [a.shape for a in wanted]
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    off, full = (run(made, {"x": x, SWITCHES: np.full(count, on)})[0] for on in (False, True))
    assert not np.allclose(off, full, atol=1e-6), "the two files say the same, so that nothing is tested"
    return board


def named(board):
    return [t.name for t in board.tensors]


# -- what QDQ files look like -------------------------------------------------------------------------

#: The quantised network's body, its opset, the tensors that have a switch.
FORMS = {
    "one activation": (
        f"c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) q = QuantizeLinear(r, s, zr) "
        f"m = DequantizeLinear(q, s, zr) {HEAD}",
        ["r"],
    ),
    "a weight": (
        "wd = DequantizeLinear(wq, ws, wz) c = Conv<pads=[1,1,1,1]>(x, wd, b) m = Relu(c) " + HEAD,
        ["wq"],
    ),
    "a weight per channel": (
        "wd = DequantizeLinear<axis=0>(wq, sc, wz4) c = Conv<pads=[1,1,1,1]>(x, wd, b) m = Relu(c) " + HEAD,
        ["wq"],
    ),
    "a weight that is turned": (
        f"{PLAIN.split(' g =')[0]} g = GlobalAveragePool(m) f = Flatten(g) vd = DequantizeLinear(vq, vs) "
        "vt = Transpose<perm=[1,0]>(vd) y = Gemm<transB=1>(f, vt, u)",
        ["vq"],
    ),
    "a weight that is rounded from float": (
        "wi = QuantizeLinear(w, ws, wz) wd = DequantizeLinear(wi, ws, wz) "
        "c = Conv<pads=[1,1,1,1]>(x, wd, b) m = Relu(c) " + HEAD,
        ["w"],
    ),
    "Relu left to the range": (
        f"c = Conv<pads=[1,1,1,1]>(x, w, b) q = QuantizeLinear(c, sr, zr) "
        f"m = DequantizeLinear(q, sr, zr) {HEAD}",
        ["c"],
    ),
    "Identity and Cast between": (
        "si = Identity(s) zi = Identity(zr) c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) "
        "q = QuantizeLinear(r, si, zi) qc = Cast<to=2>(q) qi = Identity(qc) "
        f"m = DequantizeLinear(qi, si, zi) {HEAD}",
        ["r"],
    ),
    "moved as whole numbers": (
        f"{PLAIN.split(' g =')[0]} g = GlobalAveragePool(m) q = QuantizeLinear(g, sr, zr) qf = Flatten(q) "
        "qi = Identity(qf) f = DequantizeLinear(qi, sr, zr) y = Gemm<transB=1>(f, v, u)",
        ["g"],
    ),
    "per channel": (
        f"c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) q = QuantizeLinear<axis=1>(r, sc, zc) "
        f"m = DequantizeLinear<axis=1>(q, sc, zc) {HEAD}",
        ["r"],
    ),
    "signed, without zero point back": (
        "xq = QuantizeLinear(x, t, i) xd = DequantizeLinear(xq, t, i) "
        f"c = Conv<pads=[1,1,1,1]>(xd, w, b) m = Relu(c) {HEAD}",
        ["x"],
    ),
    "without zero points": (
        f"c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) q = QuantizeLinear(r, s) "
        f"m = DequantizeLinear(q, s) {HEAD}",
        ["r"],
    ),
    "one after the other": (
        "xq = QuantizeLinear(x, t, i) xd = DequantizeLinear(xq, t, i) "
        "xr = QuantizeLinear(xd, s, z) xe = DequantizeLinear(xr, s, z) "
        f"c = Conv<pads=[1,1,1,1]>(xe, w, b) m = Relu(c) {HEAD}",
        ["x", "xd"],
    ),
    "the output": (
        f"{PLAIN.replace('y = ', 'h = ')} q = QuantizeLinear(h, t, z) y = DequantizeLinear(q, t, z)",
        ["h"],
    ),
    "other numbers after training": (
        "xq = QuantizeLinear(x, t, i) xd = DequantizeLinear(xq, t, i) "
        f"c = Conv<pads=[1,1,1,1]>(xd, w, b2) m = Relu(c) {HEAD}",
        ["x", "b2"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_off_is_the_reference_and_all_on_the_quantised_file(form):
    body, tensors = FORMS[form]
    reference = PLAIN
    quantised = build(body, wz4=np.zeros(4, np.int8), b2=WEIGHTS["b"] + 0.1)
    board = checked(build(reference), quantised)
    assert named(board) == tensors


def test_kinds():
    body, _ = FORMS["other numbers after training"]
    board = checked(build(PLAIN), build(body, b2=WEIGHTS["b"] + 0.1))
    assert [(t.kind, t.scale is None, t.reference, t.type) for t in board.tensors] == [
        ("activation", False, "x", "int8"),
        ("constant", True, "b", "float"),
    ]
    board = checked(build(PLAIN), build(FORMS["a weight"][0]))
    (weight,) = board.tensors
    assert (weight.kind, weight.reference, weight.readers) == ("weight", "w", ("c",))
    assert weight.range == (pytest.approx(ROUNDING["wq"].min() * 0.01), pytest.approx(1.27, abs=0.3))


@pytest.mark.parametrize("opset", [10, 11, 12, 13, 19, 21])
def test_opsets(opset):
    """The quantised file at another opset than the reference, as tools convert on the way."""
    body = (
        f"xq = QuantizeLinear(x, t, z) xd = DequantizeLinear(xq, t, z) wd = DequantizeLinear(wq, ws, wz) "
        f"c = Conv<pads=[1,1,1,1]>(xd, wd, b) m = Relu(c) {HEAD}"
    )
    board = checked(build(PLAIN, opset=11), build(body, opset=opset))
    assert named(board) == ["x", "wq"]


@pytest.mark.parametrize("opset", [17, 21])
def test_microsofts_operators_and_sixteen_bits(opset):
    ours = ', "com.microsoft": 1' if opset < 21 else ""
    prefix = "com.microsoft." if opset < 21 else ""
    body = (
        f"c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) q = {prefix}QuantizeLinear(r, s16, z16) "
        f"m = {prefix}DequantizeLinear(q, s16, z16) {HEAD}"
    )
    board = checked(build(PLAIN), build(body, opset=opset, extra=ours), atol=1e-5)
    assert [(t.name, t.type) for t in board.tensors] == [("r", "uint16")]


def test_half_precision():
    def half(body, **more):
        arrays = {
            n: a.astype(np.float16) if a.dtype == np.float32 else a
            for n, a in {**WEIGHTS, **ROUNDING}.items()
        }
        used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
        return nets.model(
            body,
            inputs="float16[N,3,8,8] x",
            outputs="float16[N,5] y",
            initializers={n: a for n, a in arrays.items() if n in used},
            opset=19,
        )

    body = (
        f"c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) q = QuantizeLinear(r, s, zr) "
        f"m = DequantizeLinear(q, s, zr) {HEAD}"
    )
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float16)
    board = checked(half(PLAIN), half(body), atol=4e-3, x=x)
    assert named(board) == ["r"]


# -- one switch for one tensor ------------------------------------------------------------------------

TWO = (
    "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) h = Sigmoid(r) k = Tanh(r) m = Add(h, k) " + HEAD,
    "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) {} h = Sigmoid(d1) k = Tanh(d2) m = Add(h, k) " + HEAD,
)


def test_a_tensor_quantised_alike_for_each_reader_has_one_switch():
    twice = " ".join(f"q{n} = QuantizeLinear(r, s, zr) d{n} = DequantizeLinear(q{n}, s, zr)" for n in (1, 2))
    once = "q = QuantizeLinear(r, s, zr) d1 = DequantizeLinear(q, s, zr) d2 = DequantizeLinear(q, s, zr)"
    for how in (twice, once):
        board = checked(build(TWO[0]), build(TWO[1].format(how)))
        assert [(t.name, t.readers) for t in board.tensors] == [("r", ("h", "k"))]
        assert board.read == {"r": "onnxcam.switched.0.0.either"}


def test_a_tensor_quantised_in_two_ways_has_two():
    how = (
        "q1 = QuantizeLinear(r, s, zr) d1 = DequantizeLinear(q1, s, zr) "
        "q2 = QuantizeLinear(r, t, zr) d2 = DequantizeLinear(q2, t, zr)"
    )
    board = checked(build(TWO[0]), build(TWO[1].format(how)))
    assert [(t.name, t.readers) for t in board.tensors] == [("r", ("h",)), ("q2", ("k",))]
    assert board.read == {}  # each reader reads another one


def test_a_tensor_quantised_for_one_reader_alone():
    how = "q = QuantizeLinear(r, s, zr) d1 = DequantizeLinear(q, s, zr) d2 = Identity(r)"
    board = checked(build(TWO[0]), build(TWO[1].format(how)))
    assert [(t.name, t.readers) for t in board.tensors] == [("r", ("h",))]
    assert board.read == {}


def test_a_weight_that_several_nodes_read_has_one_switch(tmp_path):
    """Quantised by ONNX Runtime, which makes two biases of one: their scales are their inputs'."""
    source, quantised = pair(tmp_path)
    board = switchable(source, quantised)
    shared = [t for t in board.tensors if t.reference == "w3"]
    assert [(t.name, t.readers) for t in shared] == [("w3_quantized", ("node_c3", "node_d"))]
    assert [t.name for t in board.tensors if t.reference == "b3"] == ["b3_quantized", "b30_quantized"]


@pytest.mark.parametrize("form", ["QDQ", "QDQ per channel", "QDQ int8"])
def test_every_subset_is_what_its_switches_say(form, tmp_path):
    """Weights by their numbers in NumPy, in a file without activations that are rounded."""
    source, quantised = pair(tmp_path, form)
    board = switchable(source, quantised)
    theirs, made = onnx.load(quantised), ir.to_proto(board.model)
    x = np.random.default_rng(0).standard_normal((2, 3, 24, 24)).astype(np.float32)
    weights = [k for k, t in enumerate(board.tensors) if t.kind != "activation"]
    assert len(weights) == 11
    for chosen in itertools.chain(itertools.combinations(weights[:4], 2), [weights]):
        plain = network()
        for k in chosen:
            node = next(n for n in theirs.graph.node if n.input[0] == board.tensors[k].name)
            whole, scale, zero = (constant(theirs, name).astype(np.float64) for name in node.input)
            spread = (-1, *[1] * (whole.ndim - 1))
            real = ((whole - zero.reshape(spread)) * scale.reshape(spread)).astype(np.float32)
            _replace(plain, board.tensors[k], real)
        setting = np.isin(np.arange(len(board.tensors)), chosen)
        (got,), (wanted,) = run(made, {"x": x, SWITCHES: setting}), run(plain, {"x": x})
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def _replace(model, tensor, array):
    """A weight, at its readers alone: the quantiser may make two of one."""
    name = f"{tensor.name}.real"
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in model.graph.node:
        if node.name in tensor.readers:
            for k, read in enumerate(node.input):
                if read == tensor.reference:
                    node.input[k] = name


def test_quantised_constants_of_equal_numbers_need_no_switch():
    real = (ROUNDING["wq"].astype(np.float32)) * np.float32(0.01)
    body = (
        f"xq = QuantizeLinear(x, t, z) xd = DequantizeLinear(xq, t, z) wd = DequantizeLinear(wq, ws, wz) "
        f"c = Conv<pads=[1,1,1,1]>(xd, wd, b) m = Relu(c) {HEAD}"
    )
    reference = build(PLAIN)
    next(i for i in reference.graph.initializer if i.name == "w").CopyFrom(
        onnx.numpy_helper.from_array(real, "w")
    )
    board = checked(reference, build(body))
    assert named(board) == ["x"]
    assert board.same == ("wq",)


def test_explainable_files_are_taken_as_they_were():
    """The reference with our record in it: what was added is no difference."""
    explainable = demo.model_bytes()
    with pytest.raises(ModelError, match="holds no DequantizeLinear"):
        switchable(explainable, explainable)


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["QOperator", "dynamic"])
def test_other_forms_of_quantisation(form, tmp_path):
    source, quantised = pair(tmp_path, form)
    with pytest.raises(
        ModelError, match=r"computes with whole numbers itself \(.* Quantise to QDQ: quantize_static\("
    ):
        switchable(source, quantised)


def test_a_file_that_is_not_quantised():
    with pytest.raises(
        ModelError, match=r"holds no DequantizeLinear: .* fp32 file first and its QDQ version"
    ):
        switchable(build(PLAIN).SerializeToString(), build(PLAIN).SerializeToString())


def test_no_onnx_file(tmp_path):
    with pytest.raises(NotOnnx, match="There is no file"):
        switchable(tmp_path / "none.onnx", build(PLAIN).SerializeToString())


Q = "xq = QuantizeLinear(x, t, z) xd = DequantizeLinear(xq, t, z) "


@pytest.mark.parametrize(
    ("reference", "quantised", "message"),
    [
        (PLAIN, PLAIN.replace("Relu(c)", "Tanh(c)"), r"at Relu 'm': the quantised file has Tanh 'm' there"),
        (
            PLAIN,
            PLAIN.replace("pads=[1,1,1,1]", "pads=[2,2,2,2], dilations=[2,2]"),
            r"at Conv 'c': its dilations is None, and \(2, 2\) in the quantised file",
        ),
        (
            PLAIN,
            PLAIN.replace(", b)", ")"),
            r"at Conv 'c': input 2 is there in one file alone",
        ),
        (
            PLAIN,
            PLAIN.replace("Conv<pads=[1,1,1,1]>(x", "Conv<pads=[1,1,1,1]>(n").replace(
                "c =", "n = Neg(x) c =", 1
            ),
            r"at Conv 'c': it reads the input 'x' in the reference and the result of Neg 'n' in the other",
        ),
        (
            PLAIN,
            PLAIN.replace("(f, v, u)", "(f, v2, u)"),
            r"the constant 'v' that Gemm 'y' reads is float32 \[5, 4\] in .* and float32 \[5, 4, 1\]",
        ),
        (
            PLAIN.replace("f = Flatten(g)", "f = Reshape(g, k)"),
            PLAIN.replace("f = Flatten(g)", "f = Reshape(g, k2)"),
            r"the constant 'k' that Reshape 'f' reads holds other whole numbers in the quantised file",
        ),
        (
            PLAIN.replace("Flatten(g)", "Flatten(g) n = Neg(f)").replace("(f, v", "(n, v"),
            PLAIN.replace("Flatten(g)", "Flatten(g) n = Neg(vz)").replace("(f, v", "(n, v"),
            r"at the outputs: 'y' is a constant in one file alone",
        ),
    ],
    ids=["operator", "attribute", "arity", "source", "shape", "whole numbers", "constant"],
)
def test_files_of_two_networks(reference, quantised, message):
    more = {
        "v2": WEIGHTS["v"][..., None],
        "vz": np.zeros((2, 4), np.float32),
        "k": np.array([0, 4]),
        "k2": np.array([-1, 4]),
    }
    theirs = quantised.replace("(x, w", "(xd, w").replace("Neg(x)", "Neg(xd)")
    given = [build(body, **more).SerializeToString() for body in (reference, Q + theirs)]
    with pytest.raises(ModelError, match=rf"The two files are not of one network: .*{message}"):
        switchable(*given)


def test_other_inputs_and_outputs():
    two = build(Q + PLAIN.replace("(x, w", "(xd, w"), outputs="float[N,5] y, float[N,4,1,1] g")
    with pytest.raises(ModelError, match="the reference has 1 outputs and the quantised file 2"):
        switchable(build(PLAIN).SerializeToString(), two.SerializeToString())


def test_a_node_that_stands_twice_in_one_file():
    """Which of the two copies the reference's would be cannot be told."""
    twice = (
        "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) e = Conv<pads=[1,1,1,1]>(x, w, b) r2 = Relu(e) "
        "q = QuantizeLinear(r2, s, zr) d = DequantizeLinear(q, s, zr) h = Sigmoid(r) k = Tanh(d) "
        "m = Add(h, k) "
    )
    given = [build(body).SerializeToString() for body in (TWO[0], twice + HEAD)]
    with pytest.raises(
        ModelError, match=r"at Tanh 'k': it reads another result than that of Relu 'r', or of a"
    ):
        switchable(*given)


def test_another_result_of_a_node():
    body = "l, m = Split<axis=1, num_outputs=2>(c2) " + HEAD.replace("(m)", "({})")
    start = "c = Conv<pads=[1,1,1,1]>({}, w, b) c2 = Concat<axis=1>(c, c) "
    given = [
        build(text).SerializeToString()
        for text in (start.format("x") + body.format("m"), Q + start.format("xd") + body.format("l"))
    ]
    with pytest.raises(
        ModelError, match=r"at GlobalAveragePool 'g': it reads another result than that of Split"
    ):
        switchable(*given)


def test_control_flow_is_not_looked_into():
    body = "p = Identity(ok) y = If(p) <then_branch = a () => (float[N,5] t1) { t1 = Neg(h) }, "
    body += "else_branch = e () => (float[N,5] t2) { t2 = Abs(h) }>"
    plain = PLAIN.replace("y = ", "h = ")
    feeds = []
    for start in (plain, Q + plain.replace("(x, w", "(xd, w")):
        model = build(f"{start} k0 = ReduceMax<keepdims=0>(h) ok = Greater(k0, s) {body}")
        feeds.append(model.SerializeToString())
    with pytest.raises(
        ModelError, match=r"If .* holds graphs of its own, in which quantised tensors are not"
    ):
        switchable(*feeds)


def test_scales_that_the_input_decides():
    body = (
        "k0 = ReduceMax<keepdims=0>(x) sd = Abs(k0) xq = QuantizeLinear(x, sd, z) "
        f"xd = DequantizeLinear(xq, sd, z) {PLAIN.replace('(x, w', '(xd, w')}"
    )
    with pytest.raises(
        ModelError, match=r"computes the scale or zero point 'sd' from its input\. Quantise stat"
    ):
        switchable(build(PLAIN).SerializeToString(), build(body).SerializeToString())


def test_types_without_a_switch():
    body = (
        f"c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) q = QuantizeLinear<output_dtype=17>(r, s) "
        f"m = DequantizeLinear(q, s) {HEAD}"
    )
    with pytest.raises(
        ModelError, match=r"activation 'r' is held in float8e4m3fn, which has no switch\. Quan"
    ):
        switchable(build(PLAIN).SerializeToString(), build(body, opset=21).SerializeToString())


def test_without_onnx_runtime(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingDependency, match=r'Reading quantised weights needs .*`pip install "onnxcam\[cpu\]"`'
    ):
        switchable(build(PLAIN).SerializeToString(), build(FORMS["a weight"][0]).SerializeToString())


def test_the_input_is_named_once():
    board = switchable(
        build(PLAIN).SerializeToString(), build(FORMS["one activation"][0]).SerializeToString()
    )
    assert [v.name for v in board.model.graph.inputs] == ["x", switches.SWITCHES]
