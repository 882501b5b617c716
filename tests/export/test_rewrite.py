"""Rewriting a file: the contract, the values, and what failure leaves behind."""

import json
import os
from pathlib import Path

import nets
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxcam.contract import CLASS_INDEX, KEY, Record
from onnxcam.errors import (
    LayerNotOnPath,
    ModelError,
    NoGradientRule,
    NotOnnx,
    OutputError,
    ScoreError,
    UnknownLayer,
    VerificationError,
)
from onnxcam.export import list_layers, load, normalize, rewrite_onnx, strip
from onnxcam.export.gradients import registry

ACT, GRAD = "cam.activations.r", "cam.gradients.r"


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    source = os.fspath(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model, feeds, outputs=None):
    s = session(model)
    names = outputs or [o.name for o in s.get_outputs()]
    return dict(zip(names, s.run(names, feeds), strict=True))


def image(batch=2, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def rewrite(model, tmp_path, **options):
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    target = tmp_path / "model.cam.onnx"
    return rewrite_onnx(source, target, **options), target


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_original_outputs_keep_names_order_and_values(tmp_path):
    net = nets.cnn()
    report, target = rewrite(net, tmp_path)
    s = session(target)
    assert [i.name for i in s.get_inputs()] == ["x"]
    assert [i.name for i in s.get_overridable_initializers()] == [CLASS_INDEX]
    assert [o.name for o in s.get_outputs()] == ["y", ACT, GRAD]
    x = image(3)
    np.testing.assert_array_equal(run(target, {"x": x})["y"], run(net, {"x": x})["y"])
    assert report.output_error == 0.0


def test_the_gradient_of_a_linear_head_is_its_weight_over_the_area(tmp_path):
    net = nets.cnn()
    _, target = rewrite(net, tmp_path)
    x = image(2)
    v = onnx.numpy_helper.to_array(next(t for t in net.graph.initializer if t.name == "v"))
    for classes in ([4, 0], [2, 2]):
        got = run(target, {"x": x, CLASS_INDEX: np.asarray(classes)})[GRAD]
        want = np.broadcast_to(v[classes][:, :, None, None] / 64, got.shape)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_by_default_each_images_top_class_is_explained(tmp_path):
    net = nets.cnn()
    net.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(np.float32([0, -6, -2, 1, 1]), "b"))
    _, target = rewrite(net, tmp_path)
    x = image(8) + 3 * np.random.default_rng(1).standard_normal((8, 3, 1, 1)).astype(np.float32)
    default = run(target, {"x": x})
    top = default["y"].argmax(axis=1)
    assert len(set(top)) > 1
    np.testing.assert_array_equal(default[GRAD], run(target, {"x": x, CLASS_INDEX: top})[GRAD])
    one_for_all = run(target, {"x": x, CLASS_INDEX: np.asarray([1])})[GRAD]
    np.testing.assert_array_equal(one_for_all, run(target, {"x": x, CLASS_INDEX: np.full(8, 1)})[GRAD])


@pytest.mark.parametrize(
    ("end", "outputs", "activation"),
    [
        ("s = Softmax(y)", "float[N,5] s", "softmax"),
        ("s = LogSoftmax(y)", "float[N,5] s", "log_softmax"),
        ("s = Sigmoid(y)", "float[N,5] s", "sigmoid"),
        ("u = Softmax(y) s = Identity(u)", "float[N,5] s", "softmax"),
        (
            "u = Softmax(y) k = Constant<value_ints=[0, 5, 1, 1]>() s = Reshape(u, k)",
            "float[N,5,1,1] s",
            "softmax",
        ),
        ("u = Softmax(y) s = Cast<to=11>(u)", "double[N,5] s", "softmax"),
    ],
)
def test_the_logit_is_found_behind_a_final_activation(tmp_path, end, outputs, activation):
    report, target = rewrite(nets.cnn(end, outputs), tmp_path, layers="r")
    assert (report.record.score.tensor, report.record.score.activation) == ("y", activation)
    assert report.record.score.output == "s"
    x = image()
    plain = tmp_path / "plain"
    plain.mkdir()
    _, logits = rewrite(nets.cnn(), plain, layers="r")
    np.testing.assert_allclose(run(target, {"x": x})[GRAD], run(logits, {"x": x})[GRAD], rtol=1e-6)


def test_the_probability_is_explained_on_request(tmp_path):
    report, target = rewrite(nets.cnn("s = Softmax(y)", "float[N,5] s"), tmp_path, probability=True)
    assert report.record.score.probability
    assert report.record.score.tensor == "s"
    net = nets.cnn()
    x, classes = image(), np.asarray([3, 1])
    got = run(target, {"x": x, CLASS_INDEX: classes})
    v = onnx.numpy_helper.to_array(next(t for t in net.graph.initializer if t.name == "v"))
    p = softmax(run(net, {"x": x})["y"])
    # dp_c/dz = p_c (e_c - p)
    chosen = p[[0, 1], classes]
    dz = chosen[:, None] * (np.eye(5)[classes] - p)
    want = np.broadcast_to((dz @ v)[:, :, None, None] / 64, got[GRAD].shape)
    np.testing.assert_allclose(got[GRAD], want, rtol=1e-4, atol=1e-8)


def test_gradients_equal_finite_differences_through_a_nonlinear_head(tmp_path):
    body = (
        "m = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r) "
        "h = Conv<pads=[1,1,1,1], strides=[2,2]>(m, w2) t = Tanh(h) "
        "p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, v, b)"
    )
    net = nets.cnn(body=body)
    net.graph.initializer.append(onnx.numpy_helper.from_array(nets.weights(w2=(4, 4, 3, 3))["w2"], "w2"))
    _, target = rewrite(net, tmp_path, layers="r")
    x = image(1)
    got = run(target, {"x": x, CLASS_INDEX: np.asarray([2])})
    tail = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(net)).extract_model(["r"], ["y"])
    rng = np.random.default_rng(1)
    direction = rng.standard_normal(got[ACT].shape).astype(np.float32)
    step = 1e-2

    def score(r):
        return float(run(tail, {"r": r})["y"][0, 2])

    difference = (score(got[ACT] + step * direction) - score(got[ACT] - step * direction)) / (2 * step)
    assert float((got[GRAD] * direction).sum()) == pytest.approx(difference, rel=2e-2, abs=1e-4)


def test_the_record_says_what_was_done(tmp_path):
    labels = ["a", "b", "c", "d", "e"]
    report, target = rewrite(nets.cnn(), tmp_path, preprocess="imagenet", labels=labels)
    record = Record.from_json(session(target).get_modelmeta().custom_metadata_map[KEY])
    assert record == report.record
    assert record.labels == tuple(labels)
    assert record.preprocess.size == (8, 8)
    assert record.preprocess.input == "x"
    assert len(record.source.sha256) == 64
    assert record.source.name == "model.onnx"
    (layer,) = record.layers
    assert (layer.name, layer.tensor, layer.layout.kind, layer.shape, layer.head) == (
        "r",
        "r",
        "NCHW",
        ("N", 4, 8, 8),
        "gap-linear",
    )
    assert "explains 'y' at r" in str(report)
    assert "verified" in str(report)


def test_a_nonlinear_head_is_not_recorded_as_linear(tmp_path):
    body = "p = GlobalAveragePool(r) f = Flatten(p) t = Tanh(f) y = Gemm<transB=1>(t, v, b)"
    report, _ = rewrite(nets.cnn(body=body), tmp_path)
    assert report.record.layers[0].head is None


def test_several_layers_and_a_layer_that_is_an_output(tmp_path):
    net = nets.cnn(outputs="float[N,5] y, float[N,4,8,8] r")
    report, target = rewrite(net, tmp_path, layers=["r", "c"], score="y")
    assert [x.name for x in report.record.layers] == ["r", "c"]
    x = image()
    got = run(target, {"x": x})
    assert list(got) == ["y", "r", ACT, GRAD, "cam.activations.c", "cam.gradients.c"]
    np.testing.assert_array_equal(got["r"], got[ACT])
    np.testing.assert_array_equal(got["cam.gradients.c"], np.where(got["r"] > 0, got[GRAD], 0))


def test_strip_gives_the_original_back(tmp_path):
    net = nets.cnn("s = Softmax(y)", "float[N,5] s")
    _, target = rewrite(net, tmp_path, layers=["r", "c"])
    stripped = ir.to_proto(strip(load(target)))
    assert {v.name for v in stripped.graph.input} == {"x"}
    assert [v.name for v in stripped.graph.output] == ["s"]
    assert [n.op_type for n in stripped.graph.node] == [n.op_type for n in net.graph.node]
    assert [list(n.output) for n in stripped.graph.node] == [list(n.output) for n in net.graph.node]
    assert {t.name for t in stripped.graph.initializer} == {t.name for t in net.graph.initializer}
    np.testing.assert_array_equal(run(stripped, {"x": image()})["s"], run(net, {"x": image()})["s"])


def test_an_explainable_file_can_be_rewritten_at_another_layer(tmp_path):
    labels = ["a", "b", "c", "d", "e"]
    _, target = rewrite(nets.cnn(), tmp_path, layers="r", preprocess="imagenet", labels=labels)
    again = tmp_path / "again.cam.onnx"
    report = rewrite_onnx(target, again, layers="c")
    assert report.record.labels == tuple(labels)
    assert report.record.preprocess.size == (8, 8)
    assert [x.name for x in report.record.layers] == ["c"]
    assert ACT not in {o.name for o in session(again).get_outputs()}


def test_a_file_is_rewritten_in_place(tmp_path):
    source = tmp_path / "model.onnx"
    onnx.save(nets.cnn(), source)
    size = source.stat().st_size
    report = rewrite_onnx(source, source)
    assert (report.source_bytes, report.bytes) == (size, source.stat().st_size)
    assert left(tmp_path) == ["model.onnx"]


def test_bytes_in_place_of_a_path(tmp_path):
    report = rewrite_onnx(nets.cnn().SerializeToString(), tmp_path / "m.cam.onnx")
    assert report.record.source.sha256 == ""
    assert session(tmp_path / "m.cam.onnx").run(None, {"x": image()})


def test_added_nodes_are_standard_named_and_explained(tmp_path):
    report, target = rewrite(nets.cnn(), tmp_path)
    added = [n for n in onnx.load(target).graph.node if n.name.startswith("onnxcam/")]
    assert len(added) == report.nodes_added
    assert all(not n.domain and n.doc_string for n in added)
    # The class is picked from the weights; no table of classes is multiplied.
    assert "Gather" in {n.op_type for n in added}
    assert "MatMul" not in {n.op_type for n in added}


def test_weights_are_shared(tmp_path):
    wide = nets.model(
        f"c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) {nets.HEAD}",
        initializers=nets.weights(w=(256, 3, 3, 3), v=(1000, 256), b=(1000,)),
        outputs="float[N,1000] y",
    )
    report, _ = rewrite(wide, tmp_path)
    assert report.bytes <= 1.01 * report.source_bytes
    assert report.copied_bytes < 1000


def test_opsets_below_18_are_converted_with_names_kept(tmp_path):
    net = nets.cnn("s = Softmax<axis=1>(y)", "float[N,5] s", opset=9, ir_version=4)
    report, target = rewrite(net, tmp_path)
    assert report.opset == 18
    assert report.record.layers[0].name == "r"
    np.testing.assert_allclose(run(target, {"x": image()})["s"], run(net, {"x": image()})["s"], rtol=1e-6)


def test_initializers_listed_as_inputs(tmp_path):
    net = nets.cnn(opset=7, ir_version=3)
    for t in net.graph.initializer:
        net.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    report, target = rewrite(net, tmp_path)
    assert [i.name for i in session(target).get_inputs()] == ["x"]
    assert report.opset == 18


def test_opsets_above_18_stay_unless_lowered(tmp_path):
    net = nets.cnn("g = Gelu(y) s = Elu(g)", "float[N,5] s", opset=22, ir_version=10)
    kept, _ = rewrite(net, tmp_path)
    assert kept.opset == 22
    assert any("At opset 22 ONNX Runtime up to 1.24 has no CUDA kernel for Elu (1)" in n for n in kept.notes)
    lowered, target = rewrite(net, tmp_path, lower=True)
    assert lowered.opset == 18
    assert not any("CUDA kernel" in n for n in lowered.notes)
    assert "Gelu" not in {n.op_type for n in onnx.load(target).graph.node}
    np.testing.assert_allclose(run(target, {"x": image()})["s"], run(net, {"x": image()})["s"], rtol=1e-5)


def test_local_functions_are_inlined_and_their_calls_keep_their_names(tmp_path):
    net = nets.cnn(
        body="q = local.twice(r) p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        extra_opsets=', "local": 1',
        functions='<domain: "local", opset_import: ["": 18]> '
        "twice (a) => (d) { h = Sigmoid(a) d = Add(a, h) }",
    )
    report, target = rewrite(net, tmp_path, layers="q")
    assert report.record.layers[0].tensor == "q"
    np.testing.assert_array_equal(run(target, {"x": image()})["y"], run(net, {"x": image()})["y"])


def test_external_data_stays_external(tmp_path):
    source, target = tmp_path / "model.onnx", tmp_path / "out" / "model.cam.onnx"
    target.parent.mkdir()
    onnx.save(nets.cnn(), source, save_as_external_data=True, location="model.bin", size_threshold=0)
    rewrite_onnx(source, target)
    assert {p.name for p in target.parent.iterdir()} == {"model.cam.onnx", "model.cam.onnx.data"}
    x = image()
    np.testing.assert_array_equal(run(target, {"x": x})["y"], run(source, {"x": x})["y"])


def test_dynamic_height_and_width(tmp_path):
    net = nets.cnn(inputs="float[N,3,H,W] x")
    _, target = rewrite(net, tmp_path, layers=["r", "c"])
    v = onnx.numpy_helper.to_array(next(t for t in net.graph.initializer if t.name == "v"))
    for size in ((8, 8), (5, 11)):
        x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
        got = run(target, {"x": x, CLASS_INDEX: np.asarray([1])})
        want = np.broadcast_to(v[1][None, :, None, None] / (size[0] * size[1]), got[GRAD].shape)
        np.testing.assert_allclose(got[GRAD], want, rtol=1e-6)


def test_channels_last_layers(tmp_path):
    net = nets.model(
        "t = Transpose<perm=[0,3,1,2]>(x) c = Conv<pads=[1,1,1,1]>(t, w) r = Relu(c) "
        "k = Transpose<perm=[0,2,3,1]>(r) s = Sigmoid(k) axes = Constant<value_ints=[1,2]>() "
        "p = ReduceMean<keepdims=0>(s, axes) y = MatMul(p, v)",
        inputs="float[N,8,8,3] x",
        initializers=nets.weights(w=(4, 3, 3, 3), v=(4, 5)),
    )
    report, _ = rewrite(net, tmp_path, preprocess="keras-tf")
    (layer,) = report.record.layers
    assert (layer.tensor, layer.layout.kind, layer.shape) == ("s", "NHWC", ("N", 8, 8, 4))
    assert layer.head == "gap-linear"
    assert report.record.preprocess.layout == "NHWC"


# -- failure ----------------------------------------------------------------------------------------


def left(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no ONNX graph: it is empty, cut short or of another format"),
        (b"this is no model", "is not an ONNX model, or it is cut short"),
        (nets.cnn().SerializeToString()[:300], "is not an ONNX model, or it is cut short"),
    ],
)
def test_files_that_are_no_models(tmp_path, content, message):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(NotOnnx, match=message):
        rewrite_onnx(tmp_path / "bad.onnx", tmp_path / "out.cam.onnx")
    assert left(tmp_path) == ["bad.onnx"]


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(NotOnnx, match=r"There is no file .*nowhere\.onnx'. Check the path"):
        rewrite_onnx(tmp_path / "nowhere.onnx", tmp_path / "out.cam.onnx")
    with pytest.raises(NotOnnx, match=r"is a folder, not an ONNX file"):
        rewrite_onnx(tmp_path, tmp_path / "out.cam.onnx")


def test_missing_external_data(tmp_path):
    source = tmp_path / "model.onnx"
    onnx.save(nets.cnn(), source, save_as_external_data=True, location="model.bin", size_threshold=0)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(NotOnnx, match=r"keeps its weights in 'model.bin', which is missing"):
        rewrite_onnx(source, tmp_path / "out.cam.onnx")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "rr"}, UnknownLayer, r"The model has no layer 'rr'\. Nearest: 'r'"),
        ({"layers": "w"}, UnknownLayer, r"has no layer 'w'"),
        *(
            (
                {"layers": wrong},
                UnknownLayer,
                rf"^A layer is a name, not {told}: pass layers='auto', a name or a list of them\. `onnxcam",
            )
            for wrong, told in ((7, "7"), (["r", None], "None"), (b"r", "b'r'"), ({"r": 1}, r"\{'r': 1\}"))
        ),
        (
            {"layers": "y"},
            UnknownLayer,
            r"The layer 'y' has shape \['N', 5\], in which no spatial grid is known",
        ),
        (
            {"score": "yy"},
            ScoreError,
            r"The model has no output 'yy'\. Nearest: 'y'.* Its outputs: 'y' \['N', 5\]",
        ),
        (
            {"labels": ["a"]},
            ModelError,
            r"There is 1 label for the 5 classes of 'y'\. Give one .* \(`labels=`, `--labels`\)",
        ),
        (
            {"input_shapes": {"z": (1, 3, 8, 8)}},
            ModelError,
            r"The model has no input 'z'; its inputs are 'x'",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        rewrite(nets.cnn(), tmp_path, **options)
    assert left(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nets.cnn("z = Tanh(y)", "float[N,5] y, float[N,5] z"),
            r"The model has 2 outputs; name the one to explain with `score=` \(`--score`\)\. "
            r"They are: 'y' \['N', 5\], 'z'",
        ),
        (
            nets.cnn("k = Cast<to=7>(y)", "int64[N,5] k"),
            r"The model has no floating-point output to explain",
        ),
        (
            nets.cnn("s = Constant<value_ints=[0,0,-1]>() t = Reshape(r, s)", "float[N,4,64] t"),
            r"The score 't' has shape \['N', 4, 64\]; a class score has one number per class, \[N, K\]\. "
            "Name another output with `score=`, or say with `task=` what it is",
        ),
    ],
)
def test_scores_that_cannot_be_explained(tmp_path, net, message):
    with pytest.raises(ScoreError, match=message):
        rewrite(net, tmp_path)


def test_layers_that_are_none_are_the_automatic_one(tmp_path):
    asked, _ = rewrite(nets.cnn(), tmp_path, layers=None)
    left_out, _ = rewrite(nets.cnn(), tmp_path)
    assert asked.record.layers == left_out.record.layers


def test_an_integer_output_named_as_score(tmp_path):
    net = nets.cnn("k = Cast<to=7>(y)", "float[N,5] y, int64[N,5] k")
    with pytest.raises(ScoreError, match=r"The output 'k' is not floating-point, so it has no gradient"):
        rewrite(net, tmp_path, score="k")


def test_a_layer_beside_the_path(tmp_path):
    net = nets.cnn("side = Sigmoid(c)", "float[N,5] y, float[N,4,8,8] side")
    with pytest.raises(LayerNotOnPath, match=r"The score 'y' does not depend on the layer 'side'"):
        rewrite(net, tmp_path, layers="side", score="y")
    assert left(tmp_path) == ["model.onnx"]


def test_every_gap_is_named_at_once(tmp_path, monkeypatch):
    for key in (("", "LRN", "X"), ("", "LpPool", "X")):
        monkeypatch.delitem(registry._RULES, key)
    body = (
        "a = LRN<size=3>(r) l = LpPool<kernel_shape=[2,2]>(a) p = GlobalAveragePool(l) f = Flatten(p) "
        "y = Gemm<transB=1>(f, v, b)"
    )
    with pytest.raises(
        NoGradientRule, match=r"(?s)2 operators between 'r' and 'y'.*LRN.*LpPool.*Choose a later layer"
    ):
        rewrite(nets.cnn(body=body), tmp_path, layers="r")
    assert left(tmp_path) == ["model.onnx"]


def test_our_names_are_refused_in_the_source(tmp_path):
    net = nets.cnn("cam_y = Identity(y)", "float[N,5] y, float[N,5] cam_y")
    net.graph.output[1].name = net.graph.node[-1].output[0] = "cam.y"
    with pytest.raises(ModelError, match=r"has an input or output named 'cam\.y'; rename it"):
        rewrite(net, tmp_path, score="y")


def test_a_result_that_differs_is_not_written(tmp_path, monkeypatch):
    source = tmp_path / "model.onnx"
    onnx.save(nets.cnn(), source)
    import onnxcam.export.rewrite as module

    original = module.compare

    def other_source(path, *arguments):
        different = nets.cnn()
        different.graph.initializer[3].CopyFrom(onnx.numpy_helper.from_array(np.ones(5, np.float32), "b"))
        return original(different.SerializeToString(), *arguments)

    monkeypatch.setattr(module, "compare", other_source)
    with pytest.raises(
        VerificationError, match=r"output 'y' differs from the original's by .* Nothing was written"
    ):
        rewrite_onnx(source, tmp_path / "out.cam.onnx")
    assert left(tmp_path) == ["model.onnx"]


def test_a_model_that_does_not_run_is_not_written(tmp_path):
    net = nets.cnn()
    source = tmp_path / "model.onnx"
    onnx.save(net, source)
    with pytest.raises(
        VerificationError, match=r"The original model does not run in ONNX Runtime .*example_inputs="
    ):
        rewrite_onnx(
            source, tmp_path / "out.cam.onnx", example_inputs={"x": np.zeros((1, 4, 8, 8), np.float32)}
        )
    assert left(tmp_path) == ["model.onnx"]


def test_an_existing_target_survives_failure_and_is_replaced_by_success(tmp_path):
    target = tmp_path / "model.cam.onnx"
    target.write_bytes(b"precious")
    with pytest.raises(UnknownLayer):
        rewrite(nets.cnn(), tmp_path, layers="nothing")
    assert target.read_bytes() == b"precious"
    rewrite(nets.cnn(), tmp_path)
    assert session(target).get_outputs()[1].name == ACT


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*folder': it is a folder"):
        rewrite_onnx(nets.cnn().SerializeToString(), tmp_path / "folder")
    with pytest.raises(OutputError, match=r"Cannot write .*No such file or directory.*Choose another place"):
        rewrite_onnx(nets.cnn().SerializeToString(), tmp_path / "missing" / "m.cam.onnx")


def test_a_model_without_inputs_or_grid(tmp_path):
    flat = nets.model("y = Gemm(x, v)", inputs="float[N,4] x", initializers=nets.weights(v=(4, 5)))
    with pytest.raises(
        UnknownLayer, match=r"No tensor with a spatial grid lies between the inputs and the score"
    ):
        rewrite(flat, tmp_path)


def test_opsets_that_cannot_be_converted(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(ModelError, match=r"The model's opset 9 cannot be converted to 18: no adapter"):
        normalize(ir.from_proto(nets.cnn(opset=9, ir_version=4)))


def test_a_failed_conversion_leaves_the_model_whole(monkeypatch):
    net = nets.model(
        f"c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) {nets.HEAD}",
        initializers=nets.weights(w=(64, 3, 3, 3), v=(5, 64), b=(5,)),
        opset=9,
        ir_version=4,
    )
    model = ir.from_proto(net)

    def refuse(*_):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(ModelError):
        normalize(model)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert {*model.graph.initializers} == {"w", "v", "b"}


def test_list_layers_is_best_first(tmp_path):
    listed = list_layers(nets.cnn())
    assert [x.name for x in listed] == ["r", "c"]
    assert listed[0].shape == ("N", 4, 8, 8)
    assert listed[0].why == "the last spatial tensor before global pooling"
    assert json.dumps([x.name for x in listed])


def test_weights_that_will_be_mirrored_in_memory_are_reported(tmp_path):
    net = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, w2) s = Relu(d) "
        "p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        initializers=nets.weights(w=(64, 3, 3, 3), w2=(64, 64, 3, 3), v=(5, 64), b=(5,)),
    )
    last, _ = rewrite(net, tmp_path, layers="s")
    assert last.notes == ()
    middle, _ = rewrite(net, tmp_path, layers="r")
    (note,) = middle.notes
    assert note.startswith(
        "ONNX Runtime will keep 147,456 bytes of convolution weights a second time in memory"
    )
    assert middle.bytes <= 1.05 * middle.source_bytes
