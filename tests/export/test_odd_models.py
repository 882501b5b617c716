"""Models and requests out of the ordinary: the right gradient, or one sentence and nothing written."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nets
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxcam.contract import CLASS_INDEX
from onnxcam.errors import ModelError, NoGradientRule, NotOnnx, OutputError, ShapeUnknown, UnknownLayer
from onnxcam.export import list_layers, load, rewrite_onnx, strip

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)


def save(model, folder, name="model.onnx"):
    path = folder / name
    onnx.save(model, path)
    return path


def run(path, feeds=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds or {"x": X}), strict=True))


def explained(model, folder, feeds=None, **options):
    """The rewritten model's record and what it computes."""
    report = rewrite_onnx(save(model, folder), folder / "model.cam.onnx", **options)
    return report.record, run(report.path, feeds)


def gradient_of_the_linear_head(model, scores):
    """Of the classifier in :data:`nets.HEAD`: its row over the area."""
    v = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "v"))
    return v[scores.argmax(axis=1)][:, :, None, None] / 64


def check_linear_head(model, folder, feeds=None, **options):
    record, got = explained(model, folder, feeds, **options)
    want = gradient_of_the_linear_head(model, got["y"])
    gradient = got[record.layers[0].gradients]
    np.testing.assert_allclose(gradient, np.broadcast_to(want, gradient.shape), rtol=1e-5)
    return record


def left(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def renamed(model, old, new):
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if n == old else n for n in names]
    for v in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        v.name = new if v.name == old else v.name
    return model


# -- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_", "層/４é☃", "r" * 5000, "a b'\"\\", "cam.r"])
def test_any_name_will_do(tmp_path, name):
    model = renamed(nets.cnn(), "r", name)
    record = check_linear_head(model, tmp_path)
    assert record.layers[0].tensor == name
    (tmp_path / "again").mkdir()
    again = rewrite_onnx(tmp_path / "model.cam.onnx", tmp_path / "again" / "m.cam.onnx", layers=name)
    assert again.record.layers[0].tensor == name


@pytest.mark.parametrize("name", ["cam.activations.r", "cam.gradients.r", "cam.N"])
def test_the_record_names_the_outputs_where_a_value_has_their_name(tmp_path, name):
    record = check_linear_head(renamed(nets.cnn(), "c", name), tmp_path, layers="r")
    layer = record.layers[0]
    assert (layer.activations == "cam.activations.r") == (name != "cam.activations.r")
    stripped = strip(load(tmp_path / "model.cam.onnx"))
    assert {v.name for n in stripped.graph for v in n.outputs} == {name, "r", "p", "f", "y"}


def test_weights_whose_names_begin_as_ours_survive(tmp_path):
    model = renamed(nets.cnn(), "w", "cam.w")  # a module named cam
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "cam.unused"))
    check_linear_head(model, tmp_path)
    assert {"cam.w", "cam.unused"} <= {*strip(load(tmp_path / "model.cam.onnx")).graph.initializers}


@pytest.mark.parametrize(
    ("old", "new"),
    [("c", CLASS_INDEX), ("w", CLASS_INDEX), ("c", "onnxcam/const"), ("w", "onnxcam/const")],
)
def test_names_that_would_be_taken_for_ours_are_refused(tmp_path, old, new):
    with pytest.raises(ModelError, match=rf"has the name '{new}', which is ours.* or rename it"):
        explained(renamed(nets.cnn(), old, new), tmp_path, layers="r")
    assert left(tmp_path) == ["model.onnx"]


def test_what_is_left_of_an_explainable_file_is_refused(tmp_path):
    rewrite_onnx(save(nets.cnn(outputs="float[N,5] y"), tmp_path), tmp_path / "model.cam.onnx")
    model = onnx.load(tmp_path / "model.cam.onnx")
    del model.metadata_props[:]
    del model.graph.output[1:]
    kept = [v for v in model.graph.input if v.name != CLASS_INDEX]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    with pytest.raises(ModelError, match=r"which is ours: it may be what another tool left of"):
        rewrite_onnx(save(model, tmp_path, "left.onnx"), tmp_path / "out.cam.onnx")


# -- inputs and scores ------------------------------------------------------------------------------


def test_a_batch_symbol_named_as_ours(tmp_path):
    check_linear_head(nets.cnn(inputs="float[M,3,8,8] x"), tmp_path)
    model = nets.cnn()
    for v in (*model.graph.input, *model.graph.output):
        v.type.tensor_type.shape.dim[0].dim_param = f"{CLASS_INDEX}.N"
    check_linear_head(model, tmp_path)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch(tmp_path, batch):
    model = nets.cnn(inputs=f"float[{batch},3,8,8] x", outputs=f"float[{batch},5] y")
    check_linear_head(model, tmp_path, {"x": RNG.standard_normal((batch, 3, 8, 8)).astype(np.float32)})


def test_one_class_behind_a_sigmoid_and_a_squeeze(tmp_path):
    model = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) "
        "y = Gemm<transB=1>(f, v) s = Sigmoid(y) one = Constant<value_ints=[1]>() q = Squeeze(s, one)",
        outputs="float[N] q",
        initializers=nets.weights(w=(4, 3, 3, 3), v=(1, 4)),
    )
    record, got = explained(model, tmp_path)
    assert (record.score.activation, record.score.classes) == ("sigmoid", 1)
    v = onnx.numpy_helper.to_array(model.graph.initializer[1])
    want = np.broadcast_to(v[:, :, None, None] / 64, (2, 4, 8, 8))
    np.testing.assert_allclose(got["cam.gradients.r"], want, rtol=1e-5)


def test_a_second_input_of_whole_numbers_before_the_image(tmp_path):
    model = nets.model(
        "e = Gather(table, ids) s = ReduceMean<keepdims=0>(e, one) s4 = Unsqueeze(s, two) "
        f"c = Conv<pads=[1,1,1,1]>(x, w) t = Add(c, s4) r = Relu(t) {nets.HEAD}",
        inputs="int64[N,L] ids, float[N,3,8,8] x",
        initializers={
            **nets.weights(w=(4, 3, 3, 3), v=(5, 4), b=(5,), table=(11, 4)),
            "one": np.asarray([1]),
            "two": np.asarray([2, 3]),
        },
    )
    record = check_linear_head(
        model, tmp_path, {"x": X, "ids": np.ones((2, 7), np.int64)}, preprocess="imagenet"
    )
    assert record.preprocess.input == "x"


def test_a_class_token_at_the_end_is_gathered_by_minus_one(tmp_path):
    model = nets.model(
        "c = Conv(x, w) l = Reshape(c, shape) t = Transpose<perm=[0,2,1]>(l) n = LayerNormalization(t, s) "
        "a = Softmax<axis=1>(n) m = Mul(a, n) z = Gather<axis=1>(m, last) y = Gemm<transB=1>(z, v)",
        initializers={
            **nets.weights(w=(4, 3, 1, 1), v=(5, 4), s=(4,)),
            "shape": np.asarray([0, 0, -1]),
            "last": np.asarray(-1),
        },
    )
    record, got = explained(model, tmp_path, layers="n")
    n, v, s = got[record.layers[0].activations], nets.weights(w=(4, 3, 1, 1), v=(5, 4))["v"], 1e-3

    def score(n):
        e = np.exp(n.astype(np.float64))
        return ((e / e.sum(axis=1, keepdims=True) * n)[:, -1] @ v.T)[[0, 1], got["y"].argmax(axis=1)].sum()

    direction = RNG.standard_normal(n.shape)
    want = (score(n + s * direction) - score(n - s * direction)) / (2 * s)
    assert (got[record.layers[0].gradients] * direction).sum() == pytest.approx(want, rel=1e-4)


# -- operators off and on the path ------------------------------------------------------------------


def branching(value, shape):
    return (
        "i = Constant<value_int=1>() cond = Cast<to=9>(i) k = If(cond) "
        f"<then_branch = g1 () => (float[{shape}] a) "
        f"{{ two = Constant<value_float=2.0>() a = Mul({value}, two) }}, "
        f"else_branch = g2 () => (float[{shape}] e) {{ e = Identity({value}) }}>"
    )


def test_control_flow_before_the_layer(tmp_path):
    model = nets.model(
        f"{branching('x', 'N,3,8,8')} c = Conv<pads=[1,1,1,1]>(k, w) r = Relu(c) {nets.HEAD}",
        initializers=nets.weights(w=(4, 3, 3, 3), v=(5, 4), b=(5,)),
    )
    assert check_linear_head(model, tmp_path).layers[0].name == "r"


@pytest.mark.parametrize(("value", "shape"), [("r", "N,4,8,8"), ("f", "N,4")])
def test_control_flow_beside_the_path(tmp_path, value, shape):
    model = nets.cnn(branching(value, shape), outputs=f"float[N,5] y, float[{shape}] k")
    check_linear_head(model, tmp_path, layers="r", score="y")


IF_ON_THE_PATH = (
    f"p = GlobalAveragePool(r) f = Flatten(p) {branching('f', 'N,4')} y = Gemm<transB=1>(k, v, b)"
)


def test_an_if_on_the_path_passes_the_gradient_of_the_branch_taken(tmp_path):
    model = nets.cnn(body=IF_ON_THE_PATH)
    record, got = explained(model, tmp_path, layers="r")
    want = np.broadcast_to(2 * gradient_of_the_linear_head(model, got["y"]), (2, 4, 8, 8))
    np.testing.assert_allclose(got[record.layers[0].gradients], want, rtol=1e-5)
    assert list_layers(tmp_path / "model.onnx")[0].name == "r"


def test_an_explainable_file_with_an_if_gives_its_original_back(tmp_path):
    model = nets.cnn(body=IF_ON_THE_PATH)
    explained(model, tmp_path, layers="r")
    plain = strip(load(tmp_path / "model.cam.onnx"))
    assert [n.op_type for n in plain.graph].count("If") == 1
    assert not any((n.name or "").startswith("onnxcam/") for n in plain.graph.all_nodes())
    ir.save(plain, tmp_path / "plain.onnx")
    np.testing.assert_array_equal(run(tmp_path / "plain.onnx")["y"], run(tmp_path / "model.onnx")["y"])


@pytest.mark.parametrize("name", ["a", "e"])
def test_a_layer_inside_a_branch_is_refused(tmp_path, name):
    model = nets.cnn(body=IF_ON_THE_PATH)
    with pytest.raises(
        UnknownLayer, match=rf"layer '{name}' lies inside If 'k', .* Name a layer before or behind"
    ):
        explained(model, tmp_path, layers=name)


LOOP = (
    "n = Constant<value=int64 {2}>() go = Constant<value=bool {1}>() "
    "k = Loop(n, go, r) <body = g1 (int64 i, bool a, float[N,4,8,8] q) => (bool b2, float[N,4,8,8] s) "
    "{ b2 = Identity(a) both = SequenceConstruct(q, q) j = Cast<to=7>(a) s = SequenceAt(both, j) }> "
)


def test_what_is_refused_names_the_layers_that_can_be_explained(tmp_path):
    model = nets.cnn(
        body=f"{LOOP} t = MaxPool<kernel_shape=[1,1]>(k) m = Mul(t, t) {nets.HEAD.replace('(r)', '(m)')}"
    )
    # Inference takes a loop's result to be of any size; exporters write down what it is.
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("k", 1, ["N", 4, 8, 8]))
    with pytest.raises(NoGradientRule, match="it handles a sequence of tensors") as caught:
        explained(model, tmp_path, layers="r")
    named = str(caught.value).partition("These layers can be explained: ")[2]
    assert named == "'m', 't'."
    assert left(tmp_path) == ["model.onnx"]
    for name in ("m", "t"):
        record, got = explained(model, tmp_path, layers=name)
        assert np.abs(got[record.layers[0].gradients]).max() > 0
        os.remove(tmp_path / "model.cam.onnx")


def test_what_is_refused_says_if_no_layer_lies_behind_it(tmp_path):
    body = (
        "p = GlobalAveragePool(r) f = Flatten(p) u = Gemm<transB=1>(f, v, b) n = Constant<value=int64 {2}>() "
        "go = Constant<value=bool {1}>() y = Loop(n, go, u) <body = g1 (int64 i, bool p3, float[N,5] q) => "
        "(bool p2, float[N,5] s) { p2 = Identity(p3) t = SequenceConstruct(q, q) j = Cast<to=7>(p3) "
        "s = SequenceAt(t, j) }>"
    )
    with pytest.raises(NoGradientRule, match=r"No layer lies behind them\.$"):
        explained(nets.cnn(body=body), tmp_path, layers="r")


def test_sequences_off_the_path(tmp_path):
    model = nets.model(
        "q = SequenceConstruct(x, x) i = Constant<value_int=0>() z = SequenceAt(q, i) "
        f"c = Conv<pads=[1,1,1,1]>(z, w) r = Relu(c) {nets.HEAD}",
        initializers=nets.weights(w=(4, 3, 3, 3), v=(5, 4), b=(5,)),
    )
    model.graph.output.append(onnx.helper.make_tensor_sequence_value_info("q", 1, None))
    check_linear_head(model, tmp_path, score="y")


@pytest.mark.parametrize(
    ("node", "extra"),
    [
        ("n, m2, v2 = BatchNormalization<training_mode=1>(r, s, s, s, s)", {"s": np.ones(4, np.float32)}),
        ("n = Dropout(r, half, yes)", {"half": np.float32(0.5), "yes": np.bool_(True)}),
    ],
)
def test_training_mode_is_refused(tmp_path, node, extra):
    model = nets.cnn(body=f"{node} p = GlobalAveragePool(n) f = Flatten(p) y = Gemm<transB=1>(f, v, b)")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in extra.items())
    with pytest.raises(NoGradientRule, match=r"it is in training mode: export the model for inference"):
        explained(model, tmp_path, layers="r")
    assert left(tmp_path) == ["model.onnx"]


def test_every_layer_that_is_listed_can_be_named(tmp_path):
    model = nets.cnn(
        body="q = local.outer(r) p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        extra_opsets=', "local": 1',
        functions='<domain: "local", opset_import: ["": 18, "local": 1]> inner (a) => (d) '
        "{ h = Sigmoid(a) d = Add(a, h) } "
        '<domain: "local", opset_import: ["": 18, "local": 1]> outer (a) => (d) '
        "{ u = local.inner(a) d = local.inner(u) }",
    )
    names = [layer.name for layer in list_layers(model)]
    assert len(names) == 6
    assert [layer.name for layer in explained(model, tmp_path)[0].layers] == names[:1]
    record, got = explained(model, tmp_path, layers=names)
    assert [layer.name for layer in record.layers] == names
    # q = u + sigmoid(u)
    gradients = {layer.tensor: got[layer.gradients] for layer in record.layers}
    u = got[next(layer.activations for layer in record.layers if layer.tensor == "u")]
    slope = 1 + np.exp(-u) / (1 + np.exp(-u)) ** 2
    np.testing.assert_allclose(gradients["u"], gradients["q"] * slope, rtol=1e-4)


@pytest.mark.parametrize("layers", ["r", "auto"])
def test_where_shapes_cease_to_be_known_is_said(tmp_path, layers):
    model = nets.model(
        f"g = other.Blur(x) c = Conv<pads=[1,1,1,1]>(g, w) r = Relu(c) {nets.HEAD}",
        initializers=nets.weights(w=(4, 3, 3, 3), v=(5, 4), b=(5,)),
        extra_opsets=', "other": 1',
    )
    error = UnknownLayer if layers == "auto" else ShapeUnknown
    with pytest.raises(error, match=r"ONNX's shape inference ends at other\.Blur 'g'"):
        explained(model, tmp_path, layers=layers)
    model = nets.cnn()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(error, match=r"gives no shape for its input 'x': pass it as `input_shapes=`"):
        explained(model, tmp_path, layers=layers)
    check_linear_head(model, tmp_path, layers=layers, input_shapes={"x": ("N", 3, 8, 8)})


# -- files ------------------------------------------------------------------------------------------


def sparse_weight(model):
    weight = onnx.numpy_helper.to_array(model.graph.initializer.pop(0))
    places = onnx.numpy_helper.from_array(np.arange(weight.size), "places")
    values = onnx.numpy_helper.from_array(weight.reshape(-1), "w")
    return onnx.helper.make_sparse_tensor(values, places, weight.shape)


def test_sparse_weights_are_refused(tmp_path):
    model = nets.cnn()
    model.graph.sparse_initializer.append(sparse_weight(model))
    with pytest.raises(NotOnnx, match=r"reads 'w', which nothing in it defines as a tensor \(sparse"):
        explained(model, tmp_path)
    model = nets.cnn()
    node = onnx.helper.make_node("Constant", [], ["w"], sparse_value=sparse_weight(model))
    model.graph.node.insert(0, node)
    with pytest.raises(NotOnnx, match=r"is not a model that can be read: Sparse tensors are not supported"):
        explained(model, tmp_path)


def external(folder, location="model.bin", name="model.onnx"):
    path = folder / name
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(nets.cnn(), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.fixture
def scores(tmp_path_factory):
    return run(save(nets.cnn(), tmp_path_factory.mktemp("plain")))["y"]


def test_external_data_in_a_folder_below(tmp_path, scores):
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "m.cam.onnx"
    source = external(tmp_path, "weights/sub/w.bin")
    report = rewrite_onnx(source, target)
    weights = tmp_path / "weights" / "sub" / "w.bin"
    assert report.source_bytes == source.stat().st_size + weights.stat().st_size
    assert report.bytes == sum(p.stat().st_size for p in target.parent.iterdir())
    np.testing.assert_array_equal(run(target)["y"], scores)
    assert left(tmp_path / "out") == ["m.cam.onnx", "m.cam.onnx.data"]


def test_an_explainable_file_with_external_data_is_rewritten_elsewhere_and_in_place(tmp_path, scores):
    first = tmp_path / "m.cam.onnx"
    rewrite_onnx(external(tmp_path), first, layers="r")
    (tmp_path / "b").mkdir()
    for target in (tmp_path / "b" / "n.cam.onnx", first):
        report = rewrite_onnx(first, target, layers="c")
        assert report.output_error == 0.0
        np.testing.assert_array_equal(run(target)["y"], scores)


def test_weights_that_the_source_is_read_from_are_not_overwritten(tmp_path, scores):
    source = external(tmp_path, "model.cam.onnx.data")
    target = tmp_path / "model.cam.onnx"
    rewrite_onnx(source, target)
    for path in (source, target):
        np.testing.assert_array_equal(run(path)["y"], scores)
    assert left(tmp_path) == [
        "model.cam.onnx",
        "model.cam.onnx.1.data",
        "model.cam.onnx.data",
        "model.onnx",
    ]


def test_external_data_that_is_cut_short_or_that_bytes_do_not_lead_to(tmp_path):
    path = external(tmp_path)
    with pytest.raises(NotOnnx, match=r"'model\.bin', which its bytes do not lead to\. Give the path"):
        rewrite_onnx(path.read_bytes(), tmp_path / "out.cam.onnx")
    (tmp_path / "model.bin").write_bytes(b"short")
    with pytest.raises(NotOnnx, match=r"keeps its weights in 'model\.bin', which is cut short"):
        rewrite_onnx(path, tmp_path / "out.cam.onnx")
    assert left(tmp_path) == ["model.bin", "model.onnx"]


def test_in_place(tmp_path, scores):
    path = save(nets.cnn(), tmp_path)
    for layer in ("r", "c"):
        assert rewrite_onnx(path, path, layers=layer).record.layers[0].name == layer
        np.testing.assert_array_equal(run(path)["y"], scores)
    assert left(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("moment", ["save", "compare"])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, moment):
    import onnxcam.export.rewrite as rewriting

    source, target = save(nets.cnn(), tmp_path), tmp_path / "model.cam.onnx"
    target.write_bytes(b"precious")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((ir, "save") if moment == "save" else (rewriting, "compare")), interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewrite_onnx(source, target)
    assert left(tmp_path) == ["model.cam.onnx", "model.onnx"]
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []
    assert target.read_bytes() == b"precious"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source = save(nets.cnn(), tmp_path)

    def full(model, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(OutputError, match=r"Cannot write .*model\.cam\.onnx': No space left on device"):
        rewrite_onnx(source, tmp_path / "model.cam.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_rewrites_of_one_target_at_once_do_not_mix(tmp_path, scores):
    source, target = external(tmp_path), tmp_path / "model.cam.onnx"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: rewrite_onnx(source, target, layers="rc"[k % 2]), range(8)))
    np.testing.assert_array_equal(run(target)["y"], scores)
    assert left(tmp_path) == ["model.bin", "model.cam.onnx", "model.cam.onnx.data", "model.onnx"]


# -- requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": []}, UnknownLayer, r"No layer was named: pass layers='auto', a name or a list"),
        ({"example_inputs": {"z": X}}, ModelError, r"The model has no input 'z'; its inputs are 'x'"),
        ({"labels": 5}, ModelError, r"The labels must be a list .* \(`--labels` reads them from a file\)"),
        ({"labels": "abcde"}, ModelError, r"The labels must be a list of strings, one for each class"),
        ({"labels": [1, 2, 3, 4, 5]}, ModelError, r"The labels must be a list of strings"),
        (
            {"input_shapes": {"x": (1, 3)}},
            ModelError,
            r"'x' cannot have the shape \[1, 3\]: the file declares",
        ),
        ({"input_shapes": {"x": (1, 3, 9, 8)}}, ModelError, r"cannot have the shape \[1, 3, 9, 8\]"),
        ({"input_shapes": {"x": (-1, 3, 8, 8)}}, ModelError, r"cannot have the shape \[-1, 3, 8, 8\]"),
    ],
)
def test_requests_that_do_not_fit(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        explained(nets.cnn(), tmp_path, **options)
    assert left(tmp_path) == ["model.onnx"]


def test_an_attention_table_mixed_by_a_matrix_is_no_grid():
    """CaiT mixes its heads by a linear map of (N, queries, keys, heads): rank 4, and no image."""
    model = nets.model(
        "c = Conv(x, w) s = Shape<start=0, end=1>(x) k = Constant<value_ints=[4, 16]>() "
        "t = Concat<axis=0>(s, k) f = Reshape(c, t) q = Transpose<perm=[0,2,1]>(f) a = MatMul(q, f) "
        "one = Constant<value_ints=[-1]>() u = Unsqueeze(a, one) m = MatMul(u, h) r = Relu(m) "
        "axes = Constant<value_ints=[1,2]>() p = ReduceMean<keepdims=0>(r, axes) y = MatMul(p, v)",
        inputs="float[N,3,4,4] x",
        initializers=nets.weights(w=(4, 3, 1, 1), h=(1, 2), v=(2, 5)),
    )
    assert {"m", "r"}.isdisjoint(layer.name for layer in list_layers(model))
