"""Files that ONNX Runtime's quantisers and optimiser made: what they compute stays as it was, and their maps
are those of the original."""

from __future__ import annotations

import collections
import statistics
import tempfile
from pathlib import Path

import nets
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from quantized_files import (
    DATA,
    FORMATS,
    METHODS,
    MIDDLE,
    agreement,
    called,
    correlation,
    quantized,
    quantized_by_its_authors,
)

from onnxcam import Explainer
from onnxcam.errors import ModelError, UnknownLayer, VerificationError
from onnxcam.export import list_layers, rewrite_onnx, verify
from onnxcam.export.from_onnx import load, normalize
from onnxcam.export.layers import Names
from onnxcam.export.layouts import layouts
from onnxcam.export.notes import notes_on
from onnxcam.export.rewrite import choose
from onnxcam.export.scores import find_score

BODY = """
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
    c2 = Conv<pads=[1,1,1,1], group=8>(p1, w2, b2) r2 = Clip(c2, zero, six) c3 = Conv(r2, w3, b3)
    a = Add(p1, c3) s = Sigmoid(a) m = Mul(a, s) k = Concat<axis=1>(m, p1)
    c4 = Conv<pads=[1,1,1,1]>(k, w4, b4) r4 = Relu(c4)
    g = GlobalAveragePool(r4) f = Flatten(g) y = Gemm<transB=1>(f, v, b)
"""
SIZE = 24


def network() -> onnx.ModelProto:
    shapes = {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (8, 1, 3, 3),
        "b2": (8,),
        "w3": (8, 8, 1, 1),
        "b3": (8,),
        "w4": (16, 16, 3, 3),
        "b4": (16,),
        "v": (5, 16),
        "b": (5,),
    }
    found = nets.weights(**shapes)
    found["six"], found["zero"] = np.array(6, np.float32), np.array(0, np.float32)
    nodes = nets.model(BODY, inputs=f"float[N,3,{SIZE},{SIZE}] x", initializers=found)
    for node in nodes.graph.node:
        node.name = f"node_{node.output[0]}"
    return nodes


def image(seed: int, count: int = 1) -> np.ndarray:
    """Something with places: blobs of colour on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    found = 0.3 * rng.standard_normal((count, 3, SIZE, SIZE))
    for n in range(count):
        for _ in range(3):
            at, width = rng.uniform(0, SIZE, 2), rng.uniform(2, 5)
            blob = np.exp(-((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / (2 * width**2))
            found[n] += 3 * rng.standard_normal((3, 1, 1)) * blob
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def files():
    """The network's file, and by form the file that ONNX Runtime's quantiser makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "net.onnx"
        onnx.save(network(), source)
        found = {"original": source}
        for form in FORMATS:
            feeds = [{"x": image(seed, 4)} for seed in range(8)]
            found[form] = quantized(source, form, Path(folder) / f"{form}.onnx", feeds)
        yield found


def options(saved=None, level=None, **entries):
    made = ort.SessionOptions()
    made.log_severity_level = 4
    made.intra_op_num_threads = 1
    if saved is not None:
        made.optimized_model_filepath = str(saved)
    if level is not None:
        made.graph_optimization_level = level
    for key, value in entries.items():
        made.add_session_config_entry(f"session.{key}", value)
    return made


def outputs(path, x, names=None, opened=None):
    session = ort.InferenceSession(str(path), opened or options(), providers=["CPUExecutionProvider"])
    names = names or [o.name for o in session.get_outputs() if not o.name.startswith("cam.")]
    return session.run(names, {session.get_inputs()[0].name: x})


def kernels(path, folder) -> collections.Counter:
    """How many nodes of each kind ONNX Runtime runs for the forward graph."""
    saved = folder / "optimized.onnx"
    ort.InferenceSession(str(path), options(saved), providers=["CPUExecutionProvider"])
    return collections.Counter(
        n.op_type for n in onnx.load(saved).graph.node if not n.name.startswith("onnxcam/")
    )


FUSED = ("QLinearConv", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearConcat", "QGemm", "Conv")


def layers_of(path) -> list[str]:
    return [layer.name for layer in list_layers(path)]


# -- the forward graph --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_outputs_stay_bit_for_bit_at_every_layer(form, files, tmp_path):
    x = image(99, 3)
    expected = outputs(files[form], x)
    before = kernels(files[form], tmp_path)
    names = layers_of(files[form])
    assert len(names) >= 5
    for name in names:
        target = tmp_path / "out.cam.onnx"
        report = rewrite_onnx(files[form], target, layers=name)
        # On a CPU without int8 products ONNX Runtime fuses int8 tensors only where nothing else reads them.
        entries = {"qdqisint8allowed": "1"} if "int8" in form else {}
        if entries:
            expected = outputs(files[form], x, opened=options(**entries))
        else:
            assert report.output_error == 0
            after = kernels(target, tmp_path)
            assert {k: after[k] for k in FUSED} == {k: before[k] for k in FUSED}, name
        for a, b in zip(expected, outputs(target, x, opened=options(**entries)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", FORMATS)
def test_the_weights_are_not_copied(form, files, tmp_path):
    report = rewrite_onnx(files[form], tmp_path / "out.cam.onnx", layers=layers_of(files[form])[-1])
    assert report.copied_bytes < 2500  # the pool's table of positions
    there = {i.name: i for i in onnx.load(files[form]).graph.initializer}
    for tensor in onnx.load(tmp_path / "out.cam.onnx").graph.initializer:
        if tensor.name in there:
            assert onnx.numpy_helper.to_array(tensor).tobytes() == (
                onnx.numpy_helper.to_array(there[tensor.name]).tobytes()
            )


# -- the maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layer", ["r4", "a"])
def test_the_maps_are_the_originals(form, layer, files, tmp_path):
    rewrite_onnx(files["original"], tmp_path / "original.cam.onnx", layers=layer)
    name = called(files[form], files["original"], layer)
    rewrite_onnx(files[form], tmp_path / "again.cam.onnx", layers=name)
    original, again = (Explainer(tmp_path / f"{n}.cam.onnx", "cpu") for n in ("original", "again"))
    for method in ("gradcam", "layercam", "hirescam"):
        found = []
        for seed in range(20):
            x = image(500 + seed)
            wanted = original.explain_tensor(x, method)
            got = again.explain_tensor(x, method, target=int(wanted.class_ids[0]))
            if not wanted.zero.any():
                found.append(correlation(wanted.heatmaps[0], got.heatmaps[0]))
        assert len(found) >= 10
        assert statistics.median(found) >= 0.95, (method, sorted(found))


def test_the_highest_score_is_explained_at_the_end_of_its_range(files, tmp_path):
    """The range was made for smaller scores: what is clipped there is still what is explained."""
    for form in ("QDQ", "QOperator"):
        model = onnx.load(files[form])
        last = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "QGemm")][-1]
        scale = last.input[1] if last.op_type == "QuantizeLinear" else last.input[7]
        for tensor in model.graph.initializer:
            if tensor.name == scale:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(1e-4), scale))
        onnx.save(model, tmp_path / "narrow.onnx")
        target = tmp_path / "narrow.cam.onnx"
        rewrite_onnx(tmp_path / "narrow.onnx", target)
        result = Explainer(target, "cpu").explain_tensor(image(1))
        (scores,) = result.outputs.values()
        assert scores.max() == np.sort(scores.ravel())[-2], "two scores lie at the end"
        assert not result.zero.any()


def test_other_kernels_are_told_from_another_computation(tmp_path, monkeypatch):
    """int8 activations on some CPUs: fused only where nothing further reads them, so that steps differ."""
    source, target = tmp_path / "net.onnx", tmp_path / "net.cam.onnx"
    onnx.save(network(), source)
    record = rewrite_onnx(source, target).record
    run = verify._run

    def fused_otherwise(model, feeds, what, optimized=True):
        found = run(model, feeds, what, optimized)
        if model == str(target) and (optimized or everywhere):
            found["y"] = found["y"] + 0.01
        return found

    monkeypatch.setattr(verify, "_run", fused_otherwise)
    everywhere, feeds = False, {"x": image(0, 2)}
    found = verify.compare(str(source), target, record, feeds, quantized=True)
    assert found.other_kernels
    assert 0 < found.outputs["y"] < 0.1
    assert any("qdqisint8allowed" in note for note in notes_on(ir.load(target).graph, record, (), True))
    with pytest.raises(VerificationError, match="differs from the original's by"):
        verify.compare(str(source), target, record, feeds)
    everywhere = True
    with pytest.raises(VerificationError, match="differs from the original's by"):
        verify.compare(str(source), target, record, feeds, quantized=True)


# -- layers -------------------------------------------------------------------------------------------


def test_a_float_that_is_only_quantised_is_explained_behind_it(files, tmp_path):
    for name in ("m", "node_m", "m_DequantizeLinear_Output", "m_QuantizeLinear_Output"):
        report = rewrite_onnx(files["QDQ"], tmp_path / "out.cam.onnx", layers=name)
        (layer,) = report.record.layers
        assert layer.tensor == "m_DequantizeLinear_Output"
        assert report.notes[0].startswith(
            f"{name!r} is quantised in this file: what is explained are the real"
        )
    shown = {layer.tensor: layer.name for layer in list_layers(files["QDQ"])}
    assert shown["m_DequantizeLinear_Output"] == "node_m"
    assert "m" not in shown
    assert "m_QuantizeLinear_Output" not in shown


def test_a_quantised_layer_is_explained_in_real_numbers(files, tmp_path):
    """What QLinearAdd gives out is uint8; its activations and their gradient are those of the QDQ file."""
    x = image(7, 2)
    got = {}
    for form in ("QDQ", "QOperator"):
        report = rewrite_onnx(files[form], tmp_path / f"{form}.cam.onnx", layers="a")
        (layer,) = report.record.layers
        names = [layer.activations, layer.gradients]
        got[form] = outputs(tmp_path / f"{form}.cam.onnx", x, names)
        assert all(a.dtype == np.float32 and a.shape == (2, 8, SIZE // 2, SIZE // 2) for a in got[form])
    assert report.record.layers[0].tensor == "a_quantized"
    for a, b in zip(got["QDQ"], got["QOperator"], strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999
        assert abs(np.abs(a).mean() / np.abs(b).mean() - 1) < 0.01


def test_a_relu_folded_into_the_range_passes_nothing_at_its_end(files, tmp_path):
    """The quantiser drops ``r4``: its zero is the range's lowest number."""
    model = onnx.load(files["QDQ"])
    assert "Relu" not in {n.op_type for n in model.graph.node}
    last = called(files["QDQ"], files["original"], "r4")
    behind = rewrite_onnx(files["QDQ"], tmp_path / "out.cam.onnx", layers=["k", last]).record.layers
    x = image(3)
    inner, relu, g = outputs(
        tmp_path / "out.cam.onnx", x, [behind[0].gradients, behind[1].activations, behind[1].gradients]
    )
    assert (relu == 0).any()
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    kernel = (weights["w4_quantized"].astype(np.float32) - weights["w4_zero_point"]) * weights["w4_scale"]
    passed = np.pad(np.where(relu > 0, g, 0), [(0, 0), (0, 0), (1, 1), (1, 1)])
    expected = np.zeros_like(inner)
    for i in range(3):
        for j in range(3):
            cells = passed[:, :, 2 - i : 2 - i + inner.shape[2], 2 - j : 2 - j + inner.shape[3]]
            expected += np.einsum("nohw,oc->nchw", cells, kernel[:, :, i, j])
    np.testing.assert_allclose(inner, expected, atol=1e-6 * np.abs(expected).max() + 1e-9)


def test_whole_numbers_without_a_scale_are_no_layer(tmp_path):
    model = nets.model(
        "q, s, z = DynamicQuantizeLinear(x) k = ConvInteger(q, w, z) c = Cast<to=1>(k) r = Mul(c, s) "
        f"{nets.HEAD}",
        initializers={
            "w": np.random.default_rng(0).integers(0, 255, (4, 3, 3, 3), dtype=np.uint8),
            **nets.weights(v=(5, 4), b=(5,)),
        },
    )
    with pytest.raises(UnknownLayer, match="The layer 'k' holds whole numbers, and the file does not say"):
        rewrite_onnx(model.SerializeToString(), tmp_path / "out.cam.onnx", layers="k")


# -- what the optimiser saves -------------------------------------------------------------------------


def optimized(path, folder, level):
    saved = folder / "optimized.onnx"
    ort.InferenceSession(str(path), options(saved, level), providers=["CPUExecutionProvider"])
    return saved


@pytest.mark.parametrize("form", ["original", *FORMATS])
@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
def test_an_optimised_file_gives_the_same_gradient(form, level, files, tmp_path):
    saved = optimized(files[form], tmp_path, getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}"))
    kinds = {f"{n.domain}.{n.op_type}" for n in onnx.load(saved).graph.node if n.domain}
    if level == "EXTENDED":
        assert "com.microsoft.FusedConv" in kinds if form == "original" else kinds or "int8" in form
    x, got = image(5, 2), []
    for path in (files[form], saved):
        layer = list_layers(path)[0].name
        report = rewrite_onnx(path, tmp_path / "out.cam.onnx", layers=layer)
        names = [report.record.layers[0].activations, report.record.layers[0].gradients]
        got.append(outputs(tmp_path / "out.cam.onnx", x, names))
    for a, b in zip(*got, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())


def test_a_file_in_the_layout_of_a_cpu_is_refused(tmp_path):
    model = nets.model(
        f"r = com.microsoft.nchwc.Conv(x, w) {nets.HEAD}",
        initializers=nets.weights(w=(8, 3, 3, 3), v=(5, 8), b=(5,)),
        extra_opsets=', "com.microsoft.nchwc": 1',
    )
    with pytest.raises(
        ModelError, match=r"(?s)level ALL: com\.microsoft\.nchwc\.Conv 'r' .*Save it at level EXTENDED"
    ):
        list_layers(model)


def test_normalizations_in_onnxs_domain_before_onnx_had_them(tmp_path):
    """The optimiser writes LayerNormalization and SimplifiedLayerNormalization as ONNX's at any opset."""
    model = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) t = Transpose<perm=[0,2,3,1]>(c) l = LayerNormalization(t, m, o) "
        "k = SimplifiedLayerNormalization(l, m) r = Transpose<perm=[0,3,1,2]>(k) "
        f"{nets.HEAD}",
        initializers=nets.weights(w=(4, 3, 3, 3), wb=(4,), m=(4,), o=(4,), v=(5, 4), b=(5,)),
        opset=13,
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    report = rewrite_onnx(model.SerializeToString(), tmp_path / "out.cam.onnx", layers="l")
    names = [report.record.layers[0].activations, report.record.layers[0].gradients]
    a, g = outputs(tmp_path / "out.cam.onnx", x, names)
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    y = outputs(tmp_path / "out.cam.onnx", x, ["y"])[0]
    row = weights["v"][y.argmax(1)] * weights["m"] / 64
    root = np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5)
    expected = (row[:, None, None] - a * (a * row[:, None, None]).mean(-1, keepdims=True) / root**2) / root
    np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-7)


# -- real files ---------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}")
@pytest.mark.parametrize(
    ("model", "form", "middle"),
    [
        ("mobilenet_v2", "authors", 0.98),
        ("mobilenet_v2", "QDQ per channel", 0.98),
        ("mobilenet_v2", "QOperator per channel", 0.98),
        ("squeezenet1.1", "QDQ", 0.97),
        ("squeezenet1.1", "dynamic", 0.97),
        ("keras_mobilenet_v1_025_nhwc", "QDQ per channel", 0.9),
        ("keras_mobilenet_v1_025_nhwc", "QOperator", 0.9),
    ],
)
def test_real_files_keep_their_maps(model, form, middle, tmp_path):
    """Floors of what benchmarks/quantized.py prints; in the middle, of the methods that do not cancel."""
    found = agreement(model, form, tmp_path)
    last = found.pop(next(name for name in found if name != MIDDLE[model]))
    for method in METHODS:
        assert statistics.median(last[method]) >= 0.95, method
        assert min(last[method]) >= 0.85, method
    for method in ("gradcam++", "layercam"):
        assert statistics.median(found[MIDDLE[model]][method]) >= middle, method


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}")
@pytest.mark.parametrize("layer", ["auto", "Relu_621", "Relu_392"])
def test_a_real_qdq_file_computes_what_it_did(layer, tmp_path):
    source = quantized_by_its_authors("mobilenet_v2")
    target = tmp_path / "out.cam.onnx"
    report = rewrite_onnx(source, target, layers=layer)
    assert report.output_error == 0
    x = np.random.default_rng(1).standard_normal((2, 3, 244, 244)).astype(np.float32)
    np.testing.assert_array_equal(outputs(source, x)[0], outputs(target, x)[0])
    before, after = kernels(source, tmp_path), kernels(target, tmp_path)
    assert {k: after[k] for k in FUSED} == {k: before[k] for k in FUSED}
    assert before["QLinearConv"] == 52


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}")
def test_what_an_integer_kernel_holds_is_not_offered_and_costs_it(tmp_path):
    """What goes into a ReLU inside of a kernel can be explained, at the price of that kernel."""
    source = quantized_by_its_authors("mobilenet_v2")
    assert "Conv_705" not in layers_of(source)
    report = rewrite_onnx(source, tmp_path / "out.cam.onnx", layers="Conv_705")
    assert kernels(tmp_path / "out.cam.onnx", tmp_path)["QLinearConv"] == 51
    assert (report.output_error > 1e-4) == any("fuses quantised" in n for n in report.notes)


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}")
@pytest.mark.parametrize("form", ["QDQ", "QOperator", "original"])
def test_every_layer_that_is_offered_can_be_asked_for(form, tmp_path):
    """Keras' names end in those of weights, before which the quantiser puts nodes."""
    path = DATA / "models" / "keras_mobilenet_v1_025_nhwc.onnx"
    if form != "original":
        feed = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
        path = quantized(path, form, tmp_path / "quantised.onnx", [{"input": feed}])
    offered = list_layers(path)
    assert "conv_pw_13_bn" in {layer.name for layer in offered}
    model = load(path)
    names = Names(model.graph)
    tensors = {layer.name: names.resolve(layer.name) for layer in offered}
    assert len(tensors) == len(offered)
    model = normalize(model)
    chosen = choose(model.graph, tensors, find_score(model.graph), layouts(model.graph), names)
    assert {name: v.name for name, v in chosen.items()} == {x.name: x.tensor for x in offered}
    report = rewrite_onnx(path, tmp_path / "out.cam.onnx", layers="conv_pw_13_bn")
    assert [layer.shape[1:] for layer in report.record.layers] == [(256, 7, 7)]


def transformer(norm):
    """Tokens of a 4x4 grid, two blocks and a mean, in the operators of ONNX Runtime's optimiser."""
    sizes = {"p": (6, 3, 2, 2), "g": (6,), "o": (6,), "qkv": (6, 18), "qb": (18,), "v": (5, 6), "b": (5,)}
    joined = f"com.microsoft.{norm}({{}}, {{}}, g{', o' if norm == 'SkipLayerNormalization' else ''})"
    blocks = "".join(
        f"a{k} = com.microsoft.Attention<num_heads=2>(n{k}, qkv, qb) "
        f"m{k}, , , s{k} = {joined.format(f'a{k}', f't{k}')} "
        f"f{k} = com.microsoft.BiasGelu(m{k}, o) "
        f"n{k + 1}, , , t{k + 1} = {joined.format(f'f{k}', f's{k}')} "
        for k in (1, 2)
    )
    body = (
        "c = Conv<strides=[2,2]>(x, p) h = Reshape(c, flat) t1 = Transpose<perm=[0,2,1]>(h) "
        f"n1 = LayerNormalization(t1, g, o) {blocks}"
        "e = ReduceMean<keepdims=0>(n3, one) y = Gemm<transB=1>(e, v, b)"
    )
    values = {**nets.weights(**sizes), "flat": np.array([0, 6, 16]), "one": np.array([1])}
    return nets.model(body, initializers=values, extra_opsets=', "com.microsoft": 1')


@pytest.mark.parametrize("norm", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_the_last_blocks_first_norm_is_found_where_the_sum_is_part_of_it(norm):
    best = list_layers(transformer(norm))[0]
    assert (best.tensor, best.op_type, best.shape) == ("n2", norm, ("N", 16, 6))
    assert best.layout.grid == (4, 4)
