"""Tails: what is cut out, that it runs with any batch, and what failure leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcam.contract import (
    BOX,
    CHOSEN_BOX,
    CLASS,
    CLASS_INDEX,
    EMBEDDING,
    KEY,
    REFERENCE,
    REGION,
    SCORE,
    WITH_GRADIENTS,
    Record,
    Side,
    seed_name,
)
from onnxcam.errors import ModelError, NotExplainable, OutputError, VerificationError
from onnxcam.export import load, rewrite_onnx, strip
from onnxcam.export import tail_files as files
from onnxcam.export.tails import file_names
from onnxcam.tail import rows_of

from .. import nets
from .test_half_precision import SINCE, in_bfloat16, in_half
from .test_scores import EMBEDDING as EMBEDDING_NET
from .test_scores import SEGMENTATION, TWO_OUTPUTS, YOLOV8

GRAD = "cam.gradients.r"
INDEX = np.array([1, 2, 0, 0])  #: which of three images the tails are given

#: A block with something around its layer d.
RESIDUAL = nets.model(
    "c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, u) s = Add(d, r) t = Relu(s) "
    "p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
    initializers=nets.weights(w=(4, 3, 3, 3), wb=(4,), u=(4, 4, 3, 3), v=(5, 4), b=(5,)),
)
#: A layer q in windows of four by four, with its windows around it.
WINDOWS = nets.model(
    "c = Conv<pads=[1,1,1,1]>(x, w) cut = Reshape(c, six) turned = Transpose<perm=[0,2,4,3,5,1]>(cut) "
    "win = Reshape(turned, rows) m = MatMul(win, u) q = Relu(m) s = Add(q, win) whole = Reshape(s, back) "
    "moved = Transpose<perm=[0,5,1,3,2,4]>(whole) r = Reshape(moved, image) "
    + "t = Tanh(r) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
    initializers={
        **nets.weights(w=(4, 3, 3, 3), u=(4, 4), v=(5, 4), b=(5,)),
        "six": np.array([0, 4, 2, 4, 2, 4]),
        "rows": np.array([-1, 16, 4]),
        "back": np.array([-1, 2, 2, 4, 4, 4]),
        "image": np.array([-1, 4, 8, 8]),
    },
)
#: Which branch is taken, a number of the whole batch tells.
BRANCHES = nets.model(
    "c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) "
    "total = ReduceSum<keepdims=0>(x) on = Greater(total, zero) "
    "y = If(on) <then_branch = t () => (float[N,5] a) { a = Gemm<transB=1>(f, v, b) }, "
    "else_branch = e () => (float[N,5] o) { h = Tanh(f) o = Gemm<transB=1>(h, v, b) }>",
    initializers={**nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,)), "zero": np.float32(0)},
)


def open_(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, feeds):
    s = open_(path)
    return dict(zip([o.name for o in s.get_outputs()], s.run(None, feeds), strict=True))


def image(batch=3, seed=0, size=(8, 8)):
    return np.random.default_rng(seed).standard_normal((batch, 3, *size)).astype(np.float32)


def written(model, tmp_path, **options):
    """The report of a model with its tail."""
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    return rewrite_onnx(source, tmp_path / "model.cam.onnx", tail=True, **options)


def again(report, main, index, tail=0, **feeds):
    """What a tail gives for some images of a run of its file, in any order and number."""
    told = report.record.tails[tail]
    layer = next(x for x in report.record.layers if x.name == told.layer)
    fed = {layer.activations: rows_of(main[layer.activations], told.rows, index)}
    fed |= {s.name: rows_of(main[s.name], s.rows, index) for s in told.sides}
    return run(report.path.with_name(told.file), {**fed, WITH_GRADIENTS: np.array([True]), **feeds})


def agrees(report, x, names, index=INDEX, rows=1, tail=0, **feeds):
    """That a tail gives for some images what its file gave for each, fed with entries of their own."""
    fed = x if isinstance(x, dict) else {"x": x}
    main = run(report.path, {**fed, **feeds})
    chosen = {n: a[index] for n, a in feeds.items()}
    found = again(report, main, index, tail, **chosen)
    for name in names:
        per_image = rows if name.startswith("cam.gradients") else 1
        want = rows_of(main[name], per_image, index)
        assert found[name].dtype == want.dtype
        assert want.any(), name
        scale = np.abs(want).max()
        np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_a_tail_is_named_hashed_and_told_of(tmp_path):
    report = written(nets.cnn(), tmp_path)
    (tail,) = report.record.tails
    path = tmp_path / "model.tail.onnx"
    assert (tail.layer, tail.file, tail.sides, tail.rows) == ("r", path.name, (), 1)
    assert tail.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.tails == {path.name: path.stat().st_size}
    assert f"model.tail.onnx: {path.stat().st_size:,} bytes, what follows r" in str(report)
    own = Record.from_json(open_(path).get_modelmeta().custom_metadata_map[KEY])
    assert (own.tail_of, own.layers, own.tails) == ("model.cam.onnx", report.record.layers, ())
    recorded = open_(report.path).get_modelmeta().custom_metadata_map[KEY]
    assert Record.from_json(recorded).tails == report.record.tails


def test_without_being_asked_for_there_is_none(tmp_path):
    onnx.save(nets.cnn(), tmp_path / "model.onnx")
    report = rewrite_onnx(tmp_path / "model.onnx", tmp_path / "model.cam.onnx")
    assert report.record.tails == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.cam.onnx", "model.onnx"]


def test_a_linear_head_by_hand(tmp_path):
    net = nets.cnn()
    written(net, tmp_path)
    w = {t.name: onnx.numpy_helper.to_array(t) for t in net.graph.initializer}
    a = np.random.default_rng(1).standard_normal((4, 4, 8, 8)).astype(np.float32)
    fed = {"cam.activations.r": a, CLASS_INDEX: np.array([0, 4, 2, 2]), WITH_GRADIENTS: np.array([True])}
    found = run(tmp_path / "model.tail.onnx", fed)
    np.testing.assert_allclose(found["y"], a.mean((2, 3)) @ w["v"].T + w["b"], rtol=1e-5, atol=1e-6)
    want = np.broadcast_to(w["v"][[0, 4, 2, 2]][:, :, None, None] / 64, a.shape)
    np.testing.assert_allclose(found[GRAD], want, rtol=1e-6)


def test_no_gradient_unless_asked_for(tmp_path):
    written(nets.cnn(), tmp_path)
    fed = {"cam.activations.r": np.ones((3, 4, 8, 8), np.float32)}
    assert run(tmp_path / "model.tail.onnx", fed)[GRAD].shape == (0, 0, 0, 0)
    graph = onnx.load(tmp_path / "model.tail.onnx").graph
    (branch,) = [n for n in graph.node if n.op_type == "If"]
    then = next(a.g for a in branch.attribute if a.name == "then_branch")
    assert "Expand" in {n.op_type for n in then.node}
    assert {n.op_type for n in graph.node} == {"GlobalAveragePool", "Flatten", "Gemm", "If"}


# -- what goes around a layer -----------------------------------------------------------------------


def test_a_residual_branch_is_a_side(tmp_path):
    report = written(RESIDUAL, tmp_path, layers="d")
    assert report.record.tails[0].sides == (Side("cam.side.0", "r", 1),)
    x = image()
    main, source = run(report.path, {"x": x}), run(tmp_path / "model.onnx", {"x": x})
    np.testing.assert_allclose(main["y"], source["y"], rtol=1e-5)
    agrees(report, x, ("y", "cam.gradients.d"), **{CLASS_INDEX: np.array([4, 0, 2])})


def test_stripping_gives_sides_their_names_back(tmp_path):
    report = written(RESIDUAL, tmp_path, layers="d")
    model = strip(load(report.path))
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert [v.name for n in model.graph for v in n.outputs] == [*"crdstpfy"]
    assert (tmp_path / "model.tail.onnx").exists()


def test_rewriting_a_file_with_a_tail_gives_the_same_again(tmp_path):
    first = written(RESIDUAL, tmp_path, layers="d")
    second = rewrite_onnx(first.path, tmp_path / "model.cam.onnx", layers="d", tail=True)
    assert second.record.tails[0].sides == first.record.tails[0].sides
    agrees(second, image(), ("y", "cam.gradients.d"))


def test_several_layers_have_a_tail_each(tmp_path):
    report = written(RESIDUAL, tmp_path, layers=["t", "d", "r"])
    names = [t.file for t in report.record.tails]
    assert names == ["model.t.tail.onnx", "model.d.tail.onnx", "model.r.tail.onnx"]
    assert list(report.tails) == names
    # The side of d is a layer itself: its activations are an output already.
    assert report.record.tails[1].sides == (Side("cam.activations.r", "", 1),)
    for k, layer in enumerate("tdr"):
        agrees(report, image(), ("y", f"cam.gradients.{layer}"), tail=k)


def test_names_are_safe_for_file_systems():
    assert file_names("a.cam.onnx", ["x"]) == ["a.tail.onnx"]
    assert file_names("a.onnx", ["/x/y:0"]) == ["a.tail.onnx"]
    found = file_names("a.cam.onnx", ["/x/y:0", "x_y_0", "X.Y 0", "X_Y_0", "...", "layer"])
    ends = ("x_y_0", "x_y_0_2", "X.Y_0", "X_Y_0_3", "layer", "layer_2")
    assert found == [f"a.{end}.tail.onnx" for end in ends]


def test_windows_have_several_rows_for_each_image(tmp_path):
    report = written(WINDOWS, tmp_path, layers="q")
    (tail,) = report.record.tails
    assert (tail.rows, [s.rows for s in tail.sides]) == (4, [4])
    agrees(report, image(), ("y", "cam.gradients.q"), rows=4)


def test_the_image_itself_goes_around_a_layer(tmp_path):
    net = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) j = Concat<axis=1>(r, x) t = Tanh(j) "
        "p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        initializers=nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 7), b=(5,)),
    )
    report = written(net, tmp_path, layers="r")
    assert report.record.tails[0].sides == (Side("cam.side.0", "", 1),)
    agrees(report, image(), ("y", GRAD))


def test_an_output_of_the_model_is_a_side_as_it_is(tmp_path):
    net = onnx.ModelProto()
    net.CopyFrom(RESIDUAL)
    net.graph.output.append(onnx.helper.make_tensor_value_info("r", 1, ["N", 4, 8, 8]))
    report = written(net, tmp_path, layers="d", score="y")
    assert report.record.tails[0].sides == (Side("r", "", 1),)
    agrees(report, image(), ("y", "cam.gradients.d"))


def test_a_gradient_that_the_layer_does_not_move_is_a_side(tmp_path):
    gate = "c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) g = Conv<pads=[1,1,1,1]>(x, u) h = Sigmoid(g) "
    net = nets.model(
        gate + "m = Mul(r, h) s = ReduceSum<keepdims=0>(m, axes) y = Identity(s)",
        "float[N,3,8,8] x",
        "float[N] y",
        {**nets.weights(w=(4, 3, 3, 3), wb=(4,), u=(4, 3, 3, 3)), "axes": np.array([1, 2, 3])},
    )
    report = written(net, tmp_path, layers="r", score={"task": "regression"})
    agrees(report, image(), ("y", GRAD))


def test_an_input_without_batch_is_the_same_for_all(tmp_path):
    net = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) "
        "unit = Tanh(words) turned = Transpose<perm=[1,0]>(unit) y = MatMul(f, turned)",
        "float[N,3,8,8] x, float[K,4] words",
        "float[N,K] y",
        nets.weights(w=(4, 3, 3, 3)),
    )
    words = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)  # as many as images
    report = written(net, tmp_path, layers="r", example_inputs={"words": words[[0, 1, 2, 0]]})
    assert [s.rows for s in report.record.tails[0].sides] == [0]
    agrees(report, {"x": image(), "words": words}, ("y", GRAD))


def test_a_branch_reads_the_layer_and_a_condition_of_the_image(tmp_path):
    report = written(BRANCHES, tmp_path, layers="r")
    assert report.record.tails[0].sides == (Side("cam.side.0", "on", 0),)
    for sign in (1, -1):
        agrees(report, sign * (image() + 0.3), ("y", GRAD))


# -- sizes ------------------------------------------------------------------------------------------


def test_a_batch_that_is_spelt_out_is_the_tails_own(tmp_path):
    net = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) t = Tanh(r) n = Shape<start=0, end=1>(x) "
        "s = Concat<axis=0>(n, k) f = Reshape(t, s) m = ReduceMean<keepdims=0>(f, last) "
        "size = Size(x) whole = Div(size, area) cut = Cast<to=1>(whole) one = Div(cut, cut) "
        "g = Mul(m, one) y = Gemm<transB=1>(g, v, b)",
        initializers={
            **nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,)),
            "k": np.array([4, 64]),
            "last": np.array([2]),
            "area": np.array(3 * 64),
        },
    )
    report = written(net, tmp_path, layers="r")
    assert report.record.tails[0].sides == ()
    agrees(report, image(), ("y", GRAD))


def test_open_sizes_are_told_for_each_run(tmp_path):
    net = nets.model(
        "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, wb) r = Relu(c) d = Conv(r, u) "
        "n = Shape(x) area = Slice(n, two, four) k = Shape<start=0, end=2>(d) s = Concat<axis=0>(k, area) "
        'z = Resize<mode="linear">(d, , , s) y = Tanh(z)',
        "float[N,3,H,W] x",
        "float[N,5,H,W] y",
        {
            **nets.weights(w=(4, 3, 3, 3), wb=(4,), u=(5, 4, 1, 1)),
            "two": np.array([2]),
            "four": np.array([4]),
        },
    )
    report = written(net, tmp_path, layers="r", score={"task": "segmentation"}, preprocess={"size": [8, 8]})
    (side,) = report.record.tails[0].sides
    assert (side.tensor, side.rows) == ("", 0)
    for size in ((8, 8), (6, 10)):
        agrees(report, image(size=size), ("y", SCORE, CLASS, GRAD))


def test_a_fixed_batch_stays_fixed(tmp_path):
    net = nets.cnn(inputs="float[2,3,8,8] x", outputs="float[2,5] y")
    report = written(net, tmp_path)
    agrees(report, image(2), ("y", GRAD), index=np.array([1, 0]))


def test_a_layer_whose_images_do_not_follow_each_other_is_refused(tmp_path):
    net = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) q = Transpose<perm=[1,0,2,3]>(c) h = Tanh(q) "
        "r = Transpose<perm=[1,0,2,3]>(h) p = GlobalAveragePool(r) f = Flatten(p) "
        "y = Gemm<transB=1>(f, v, b)",
        initializers=nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,)),
    )
    with pytest.raises(ModelError, match=r"the images do not follow each other.*Leave the tail out"):
        written(net, tmp_path, layers="q")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_size_of_which_nothing_is_known_is_refused(tmp_path):
    net = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) z = NonZero(x) n = Shape<start=1, end=2>(z) "
        "part = Div(n, n) real = Cast<to=1>(part) m = Mul(r, real) "
        "p = GlobalAveragePool(m) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        initializers=nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,)),
    )
    with pytest.raises(ModelError, match=r"size of axis 1 of 'z'.*whether it follows the batch"):
        written(net, tmp_path, layers="r")


# -- tasks and types --------------------------------------------------------------------------------

_BOXES = np.array([[0, 0, 3, 3], [2, 1, 7, 5], [1, 1, 6, 6]], np.float32)
_MASKS = np.random.default_rng(2).random((3, 6, 5)).astype(np.float32)
TASKS = {
    "probability": (
        nets.cnn("s = Softmax(y)", "float[N,5] s"),
        {"probability": True},
        ("s", GRAD),
        {CLASS_INDEX: np.array([4, 1, -1])},
    ),
    "segmentation": (
        SEGMENTATION,
        {},
        (SCORE, CLASS, "y", GRAD),
        {REGION: _MASKS, CLASS_INDEX: np.array([1, 3, -1])},
    ),
    "detection": (
        YOLOV8,
        {"score": {"task": "detection", "head": "yolov8"}},
        (SCORE, CLASS, CHOSEN_BOX, GRAD),
        {BOX: _BOXES, CLASS_INDEX: np.array([2, -1, 0])},
    ),
    "embedding": (
        EMBEDDING_NET,
        {"score": {"task": "embedding"}},
        (SCORE, EMBEDDING, GRAD),
        {REFERENCE: np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)},
    ),
    "weights": (
        TWO_OUTPUTS,
        {"score": {"output": "kind", "seed": ["kind", "age"]}},
        (SCORE, CLASS, GRAD),
        {
            seed_name("kind"): np.random.default_rng(4).standard_normal((3, 5)).astype(np.float32),
            seed_name("age"): np.array([[1], [np.nan], [2]], np.float32),
        },
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_whole_task_is_in_the_tail(tmp_path, task):
    net, options, names, feeds = TASKS[task]
    report = written(net, tmp_path, layers="r", **options)
    dims = [d.dim_value for d in net.graph.input[0].type.tensor_type.shape.dim[2:]]
    agrees(report, image(size=dims), names, **feeds)
    plain = {n: a for n, a in feeds.items() if n == CLASS_INDEX} or {}
    agrees(report, image(size=dims), [n for n in names if n != CLASS], **plain)


def test_half_precision_keeps_its_types(tmp_path):
    report = written(in_half(nets.cnn()), tmp_path, layers="r")
    taken = {i.name: i.type for i in open_(tmp_path / "model.tail.onnx").get_inputs()}
    assert taken == {"cam.activations.r": "tensor(float16)"}
    main = run(report.path, {"x": image().astype(np.float16)})
    found = again(report, main, INDEX)
    assert found[GRAD].dtype == np.float32
    np.testing.assert_allclose(found[GRAD], main[GRAD][INDEX], rtol=1e-3)
    np.testing.assert_allclose(found["y"], main["y"][INDEX], rtol=1e-2)


def test_bfloat16_is_checked_as_its_twin(tmp_path):
    residual = onnx.version_converter.convert_version(RESIDUAL, SINCE)
    report = written(in_bfloat16(residual), tmp_path, layers="d")
    (side,) = report.record.tails[0].sides
    assert side.tensor == ""  # a copy in float32: NumPy does not know bfloat16
    graph = onnx.load(tmp_path / "model.tail.onnx").graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in graph.input}
    assert kinds["cam.activations.d"] == kinds[side.name] == onnx.TensorProto.FLOAT


def test_a_quantised_layer_takes_its_real_numbers(tmp_path):
    scales = {"s": np.float32(0.02), "z": np.uint8(3), "ws": np.float32(0.01), "wz": np.uint8(128)}
    q = {
        k: np.random.default_rng(5).integers(90, 170, size).astype(np.uint8)
        for k, size in {"w": (4, 3, 3, 3), "u": (4, 4, 3, 3)}.items()
    }
    net = nets.model(
        "i = QuantizeLinear(x, s, z) a = QLinearConv<pads=[1,1,1,1]>(i, s, z, w, ws, wz, s, z) "
        "r = QLinearConv<pads=[1,1,1,1]>(a, s, z, u, ws, wz, s, z) d = DequantizeLinear(r, s, z) "
        "e = DequantizeLinear(a, s, z) j = Mul(d, e) "
        "p = GlobalAveragePool(j) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        initializers={**scales, **q, **nets.weights(v=(5, 4), b=(5,))},
    )
    report = written(net, tmp_path, layers="a")
    layer = report.record.layers[0]
    x = image()
    main = run(report.path, {"x": x})
    assert main[layer.activations].dtype == np.float32
    agrees(report, x, ("y", layer.gradients))
    # What is quantised around a layer is handed over as it is, in eight bits.
    around = written(net, tmp_path, layers="r")
    main = run(around.path, {"x": x})
    assert [main[s.name].dtype for s in around.record.tails[0].sides] == [np.uint8]
    agrees(around, x, ("y", around.record.layers[0].gradients))


def test_a_dequantised_layer_keeps_its_integer_kernels(tmp_path):
    """And a branch has its quantised weights in it: ONNX Runtime does not look for them outside."""
    q = np.random.default_rng(6).integers(60, 200, (4, 5)).astype(np.uint8)
    net = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) i = QuantizeLinear(c, s, z) d = DequantizeLinear(i, s, z) "
        "p = GlobalAveragePool(d) j = QuantizeLinear(p, s, z) e = DequantizeLinear(j, s, z) f = Flatten(e) "
        "k = QuantizeLinear(f, s, z) m = QLinearMatMul(k, s, z, v, ws, wz, s, z) "
        "y = DequantizeLinear(m, s, z)",
        initializers={
            **nets.weights(w=(4, 3, 3, 3), wb=(4,)),
            **{
                "s": np.float32(0.02),
                "z": np.uint8(128),
                "ws": np.float32(0.01),
                "wz": np.uint8(128),
                "v": q,
            },
        },
    )
    report = written(net, tmp_path, layers="d")
    tail = onnx.load(tmp_path / "model.tail.onnx").graph
    assert [n.op_type for n in tail.node][:3] == ["QuantizeLinear", "DequantizeLinear", "GlobalAveragePool"]
    agrees(report, image(), ("y", report.record.layers[0].gradients))


def test_weights_outside_the_file_are_the_tails_own(tmp_path):
    source, net = tmp_path / "model.onnx", onnx.ModelProto()
    net.CopyFrom(RESIDUAL)  # saving moves the weights out of it
    onnx.save(net, source, save_as_external_data=True, location="model.bin", size_threshold=0)
    report = rewrite_onnx(source, tmp_path / "model.cam.onnx", layers="d", tail=True)
    data = tmp_path / "model.tail.onnx.data"
    assert report.tails == {
        "model.tail.onnx": (tmp_path / "model.tail.onnx").stat().st_size + data.stat().st_size
    }
    agrees(report, image(), ("y", "cam.gradients.d"))


# -- failure ----------------------------------------------------------------------------------------


def test_a_tail_that_cannot_be_written_leaves_neither_file(tmp_path):
    (tmp_path / "model.tail.onnx").mkdir()
    with pytest.raises(OutputError, match=r"model\.tail\.onnx.*folder"):
        written(nets.cnn(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.tail.onnx"]


@pytest.mark.parametrize(
    ("weight", "name"), [("b", "y"), ("onnxcam/p/Div_output_0", "cam.gradients.r")], ids=["score", "gradient"]
)
def test_a_tail_that_computes_something_else_leaves_neither_file(tmp_path, monkeypatch, weight, name):
    def spoilt(*args):
        (made,) = cut(*args)
        graph = made.model.graph
        if weight in graph.initializers:
            tensor = graph.initializers[weight].const_value.numpy() + np.float32(0.1)
            graph.initializers[weight].const_value = files.ir.tensor(tensor)
        else:
            (divisor,) = [v for v in graph.initializers.values() if v.const_value.numpy().tolist() == 64.0]
            divisor.const_value = files.ir.tensor(np.float32(63))
        return [dataclasses.replace(made)]

    cut = files.cut
    monkeypatch.setattr(files, "cut", spoilt)
    with pytest.raises(VerificationError, match=f"'r' gives another '{name}'.*Nothing was written"):
        written(nets.cnn(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_batch_that_a_tail_froze_is_found(tmp_path, monkeypatch):
    """Verification gives a tail another number of images than the file had."""
    monkeypatch.setattr("onnxcam.export.tails._measures", lambda *_: False)
    net = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) n = Shape<start=0, end=1>(x) "
        "s = Concat<axis=0>(n, k) f = Reshape(r, s) m = ReduceMean<keepdims=0>(f, last) "
        "y = Gemm<transB=1>(m, v, b)",
        initializers={
            **nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,)),
            "k": np.array([4, 64]),
            "last": np.array([2]),
        },
    )
    monkeypatch.setattr("onnxcam.export.tails._MEASURING", ())
    with pytest.raises(VerificationError):
        written(net, tmp_path, layers="r")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_maps_alone_and_a_tail_exclude_each_other(tmp_path):
    with pytest.raises(ModelError, match="maps_only leaves them out"):
        written(nets.cnn(), tmp_path, fuse="gradcam", maps_only=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_tail_is_no_model_to_rewrite_or_strip(tmp_path):
    written(nets.cnn(), tmp_path)
    tail = tmp_path / "model.tail.onnx"
    with pytest.raises(NotExplainable, match=r"is a tail.*Take 'model\.cam\.onnx'"):
        strip(load(tail))
    with pytest.raises(NotExplainable, match="is a tail"):
        rewrite_onnx(tail, tmp_path / "other.cam.onnx")
    assert not (tmp_path / "other.cam.onnx").exists()


def test_records_without_tails_are_read():
    record = Record.from_json('{"schema": 1, "layers": [], "score": {"output": "y", "tensor": "y"}}')
    assert (record.tails, record.tail_of) == ((), "")


@pytest.mark.parametrize(
    ("ours", "error"),
    [
        ([1, 0, 0, 4], 0.0),
        ([1, 0, 0, 4.002], 0.0),  # within the tolerance of the largest
        ([0, 0, 0, 4], 0.25),  # one of four elements
        ([1, 0, np.nan, 4], np.inf),
        ([1, 0, 0], np.inf),
    ],
)
def test_how_far_a_gradient_is_off(ours, error):
    theirs = np.array([1, 0, 0, 4], np.float32)
    found = files.gradient_error(np.array(ours, np.float32), theirs, 1e-3)
    assert found == pytest.approx(min(error, 1 / np.sqrt(17)) if error == 0.25 else error)
