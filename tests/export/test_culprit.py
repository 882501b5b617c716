"""Which quantised tensor moves the explanation: against files put together by hand, and planted culprits."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import culprit_files as files
import nets
import numpy as np
import onnx
import pytest
from quantized_files import DATA, PREPROCESS

from onnxcam import Explainer, preprocess
from onnxcam.errors import (
    ImageError,
    InputError,
    MethodError,
    MetricError,
    ModelError,
    UnknownLayer,
    VerificationError,
)
from onnxcam.export import culprit, culprits, rewrite_onnx
from onnxcam.export.switches import SWITCHES, switchable
from onnxcam.export.write import staged

HOW = {"preprocess": files.PREPROCESS, "layer": files.LAYER}


@pytest.fixture(scope="module")
def made():
    """A folder with the network, its QDQ form and photos."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files.pair(folder)
        files.photos(folder / "photos")
        yield folder


def found(made, quantised="QDQ.onnx", **how):
    return culprits(made / "net.onnx", made / quantised, made / "photos", **{**HOW, **how})


@pytest.fixture(scope="module")
def ranking(made):
    return found(made)


# -- the truth of the numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor", ["x", "r1", "p1", "r2", "c3", "a", "k", "r4", "g", "w1", "w3", "v", "b1", "b4"]
)
def test_each_alone_is_the_file_with_it_alone_quantised(tensor, made, ranking, tmp_path):
    """Two files put together by hand, maps made by the ordinary road, NumPy's correlation."""
    by_hand = files.alone(made / "net.onnx", made / "QDQ.onnx", tensor, tmp_path / "alone.onnx")
    maps, answers = [], []
    for path in (made / "net.onnx", by_hand):
        target = tmp_path / f"{path.stem}.cam.onnx"
        rewrite_onnx(path, target, files.LAYER, preprocess=files.PREPROCESS)
        explainer = Explainer(target, "cpu")
        photos = [made / "photos" / name for name in ranking.photos]
        told = explainer.explain(photos, target=answers[0].tolist() if answers else None)
        maps.append(np.maximum(told.maps, 0))
        answers.append(told.outputs["y"].argmax(axis=1))
    wanted = correlations(*maps)
    one = next(c for c in ranking.culprits if c.tensor.reference == tensor)
    assert one.alone.mean == pytest.approx(wanted.mean(), abs=1e-5)
    assert one.alone.worst == pytest.approx(wanted.min(), abs=1e-5)
    assert one.alone.same_answer == np.mean(answers[0] == answers[1])
    # the maps themselves, which correlations near one would hide
    switched = Switched(made, made / "QDQ.onnx")
    theirs = switched.maps([t.reference == tensor for t in switched.tensors])
    np.testing.assert_allclose(theirs, maps[1], atol=1e-5 * maps[1].max())


class Switched:
    """The file with switches, by the ordinary road."""

    def __init__(self, folder, quantised):
        board = switchable(folder / "net.onnx", quantised)
        self.tensors = board.tensors
        with tempfile.TemporaryDirectory() as name:
            plain, target = Path(name) / "plain.onnx", Path(name) / "plain.cam.onnx"
            with staged(board.model, plain):
                pass
            layer, score = board.read[files.LAYER], board.scores["y"]
            report = rewrite_onnx(plain, target, layer, score, preprocess=files.PREPROCESS)
            assert report.output_error is not None  # the file was run against the one with switches
            self._explainer = Explainer(target, "cpu")
        record = self._explainer.preprocess
        pixels = map(files.picture, range(6))
        self._x = np.stack([preprocess.apply(p, record, np.dtype(np.float32))[0] for p in pixels])
        told = self._run([False] * len(self.tensors), None)
        self.reference, self._classes = np.maximum(told.maps, 0), told.class_ids.tolist()

    def maps(self, setting):
        return np.maximum(self._run(setting, self._classes).maps, 0)

    def _run(self, setting, target):
        return self._explainer.explain_tensor({"x": self._x, SWITCHES: np.array(setting)}, target=target)


def correlations(one, other):
    """By NumPy, map by map."""
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other, strict=True)])


def test_all_others_is_the_file_without_it(made, ranking, tmp_path):
    """Of the QDQ file with one weight put back by hand, explained by the ordinary road."""
    model, plain = onnx.load(made / "QDQ.onnx"), onnx.load(made / "net.onnx")
    node = next(n for n in model.graph.node if n.input[0] == "w1_quantized")
    for reader in model.graph.node:
        for k, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[k] = "w1"
    model.graph.initializer.append(next(i for i in plain.graph.initializer if i.name == "w1"))
    onnx.save(model, tmp_path / "without.onnx")
    reference, without = tmp_path / "net.cam.onnx", tmp_path / "without.cam.onnx"
    rewrite_onnx(made / "net.onnx", reference, files.LAYER, preprocess=files.PREPROCESS)
    rewrite_onnx(tmp_path / "without.onnx", without, files.LAYER, preprocess=files.PREPROCESS)
    photos = [made / "photos" / name for name in ranking.photos]
    wanted = Explainer(reference, "cpu").explain(photos)
    # Integer kernels round otherwise: without optimisation ONNX Runtime computes what the nodes say.
    plainly = {"graph_optimization_level": onnxruntime_level()}
    got = Explainer(without, "cpu", session_options=plainly).explain(photos, target=wanted.class_ids.tolist())
    agreed = correlations(np.maximum(wanted.maps, 0), np.maximum(got.maps, 0))
    one = next(c for c in ranking.culprits if c.tensor.name == "w1_quantized")
    assert one.without.mean == pytest.approx(agreed.mean(), abs=1e-5)


def onnxruntime_level():
    import onnxruntime

    return onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


# -- planted culprits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "factor"), [("r2", 0.02), ("a", 0.02), ("x", 0.05), ("w3_quantized", 5), ("w4_quantized", 8)]
)
def test_a_spoilt_scale_is_named_first(tensor, factor, made, tmp_path, ranking):
    spoilt = files.spoil(made / "QDQ.onnx", tensor, factor, tmp_path / "spoilt.onnx")
    bad = found(made, spoilt)
    assert ranking.everything.mean > 0.99
    assert ranking.advice.tensors == ()
    assert bad.everything.mean < 0.95
    assert bad.culprits[0].tensor.name == tensor
    assert bad.advice.tensors == (tensor,)
    assert bad.advice.reached
    assert bad.advice.effect.mean == bad.culprits[0].without.mean > 0.95
    # put back, it gains what no other gains
    assert bad.culprits[0].without.mean > max(c.without.mean for c in bad.culprits[1:]) + 0.04


def test_two_that_hide_each_other_are_both_left_in_float(made, tmp_path):
    """A pool hands on what was clipped before it: putting back one of the two changes nothing."""
    once = files.spoil(made / "QDQ.onnx", "r1", 0.02, tmp_path / "once.onnx")
    bad = found(made, files.spoil(once, "p1", 0.02, tmp_path / "twice.onnx"))
    assert {c.tensor.name for c in bad.culprits[:2]} == {"r1", "p1"}
    assert all(c.without.mean == pytest.approx(bad.everything.mean) for c in bad.culprits[:2])
    assert set(bad.advice.tensors) == {"r1", "p1"}
    assert set(bad.advice.readers) == {"node_p1", "node_c2", "node_a", "node_k"}
    assert bad.advice.reached


def test_none_of_the_advice_can_be_missed(made, tmp_path):
    spoilt = files.spoil(made / "QDQ.onnx", "r2", 0.02, tmp_path / "once.onnx")
    spoilt = files.spoil(spoilt, "v_quantized", -1, tmp_path / "twice.onnx")
    bad = found(made, spoilt, threshold=0.9985)
    tensors = bad.advice.tensors
    assert {"r2", "v_quantized"} < set(tensors)
    assert bad.advice.effect.mean >= 0.9985
    switched = Switched(made, spoilt)

    def mean(floats):
        got = switched.maps([t.name not in floats for t in switched.tensors])
        return correlations(switched.reference, got).mean()

    assert mean(tensors) == pytest.approx(bad.advice.effect.mean, abs=1e-6)
    for left in tensors:
        assert mean([t for t in tensors if t != left]) < 0.9985


def test_where_lower_is_better_the_largest_comes_first(made, tmp_path):
    spoilt = files.spoil(made / "QDQ.onnx", "a", 0.02, tmp_path / "spoilt.onnx")
    bad = found(made, spoilt, measure="js")
    assert (bad.better, bad.threshold) == ("lower", pytest.approx(0.05))
    means = [c.alone.mean for c in bad.culprits]
    assert means == sorted(means, reverse=True)
    assert bad.culprits[0].tensor.name == "a"
    assert bad.culprits[0].alone.worst >= bad.culprits[0].alone.mean
    assert bad.advice.tensors == ("a",)


@pytest.mark.parametrize("method", ["layercam", "gradcam++", "eigencam", "scorecam"])
def test_other_methods(method, made, tmp_path):
    spoilt = files.spoil(made / "QDQ.onnx", "a", 0.02, tmp_path / "spoilt.onnx")
    bad = found(made, spoilt, method=method, top=1)
    assert bad.culprits[0].tensor.name == "a"
    assert bad.culprits[0].alone.mean < bad.culprits[1].alone.mean - 0.03
    assert bad.everything.mean < bad.culprits[0].without.mean - 0.03


def test_a_segmentation(tmp_path):
    """Whose answer is the class with most pixels, and whose maps are of each setting's own."""
    weights = nets.weights(w=(4, 3, 3, 3), b=(4,), v=(3, 4, 3, 3))
    weights |= {"s": np.array(0.05, np.float32), "t": np.array(0.002, np.float32), "z": np.array(0, np.uint8)}
    form = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) {}"
    body = {
        "net": "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(r) y = Conv<pads=[1,1,1,1]>(p, v)",
        "QDQ": "q = QuantizeLinear(r, t, z) d = DequantizeLinear(q, t, z) "
        "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(d) qp = QuantizeLinear(p, s, z) "
        "dp = DequantizeLinear(qp, s, z) y = Conv<pads=[1,1,1,1]>(dp, v)",
    }
    for name, rest in body.items():
        arrays = {n: a for n, a in weights.items() if name == "QDQ" or n not in "stz"}
        text = form.format(rest)
        outputs = "float[N,3,24,24] y"
        made = nets.model(text, "float[N,3,24,24] x", outputs, initializers=arrays)
        onnx.save(made, tmp_path / f"{name}.onnx")
    photos = files.photos(tmp_path / "photos")
    how = {"preprocess": files.PREPROCESS, "layer": "p"}
    one = culprits(tmp_path / "net.onnx", tmp_path / "QDQ.onnx", photos, **how)
    assert [c.tensor.name for c in one.culprits] == ["r", "p"]  # r's range ends at 0.51
    assert one.culprits[0].alone.mean < 0.9 < one.culprits[1].alone.mean
    assert one.advice.tensors == ("r",)


# -- what is told -------------------------------------------------------------------------------------


def test_the_tensors_are_described(ranking):
    told = {c.tensor.name: c.tensor for c in ranking.culprits}
    assert told["p1"].readers == ("node_c2", "node_a", "node_k")
    assert told["w3_quantized"].readers == ("node_c3", "node_d")
    assert told["y_QuantizeLinear_Input"].readers == ("",)
    kinds = {name: t.kind for name, t in told.items()}
    assert kinds["w1_quantized"] == "weight"
    assert kinds["b1_quantized"] == "bias"
    assert kinds["x"] == "activation"
    assert (told["r2"].type, told["b1_quantized"].type) == ("uint8", "int32")
    low, high = told["r2"].range
    assert low == 0
    assert high == pytest.approx(255 * told["r2"].scale[0])
    assert len(told) == 23


def test_all_off_and_all_on_are_the_two_files(ranking):
    assert ranking.check.off < 1e-6
    assert ranking.check.on < 1e-6
    assert ranking.check.sound


def test_the_best_of_the_worst_alone_are_put_back(made, ranking):
    short = found(made, top=3)
    assert [c.tensor.name for c in short.culprits] == [c.tensor.name for c in ranking.culprits]
    assert [c.without is not None for c in short.culprits] == [True] * 3 + [False] * 20
    assert ranking.runs - short.runs == 6 * 20


def test_progress_ends_at_its_total(made):
    seen = []
    ranking = found(made, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 6 * (1 + 23 + 23))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert ranking.runs <= seen[-1][1] + 6


def test_it_is_json(ranking):
    data = json.loads(json.dumps(ranking.data()))
    assert data["layer"] == "r4"
    assert data["culprits"][0]["tensor"]["name"] == ranking.culprits[0].tensor.name
    assert data["advice"]["tensors"] == []


def test_an_explainable_reference_says_what_is_explained(made, ranking, tmp_path):
    target = tmp_path / "net.cam.onnx"
    rewrite_onnx(made / "net.onnx", target, files.LAYER, preprocess=files.PREPROCESS)
    again = culprits(target, made / "QDQ.onnx", made / "photos")
    assert again.layer == files.LAYER
    assert [c.alone for c in again.culprits] == [c.alone for c in ranking.culprits]


def test_the_best_layer_is_taken_where_none_is_named(made, ranking):
    again = culprits(made / "net.onnx", made / "QDQ.onnx", made / "photos", preprocess=files.PREPROCESS)
    assert again.layer == "node_r4"
    assert again.everything == ranking.everything


def test_a_softmax_at_the_end_is_seen_through(made, tmp_path):
    """Quantised behind it, too: the logit is explained, of the class that the probabilities choose."""
    for name in ("net", "QDQ"):
        model = onnx.load(made / f"{name}.onnx")
        model.graph.node.append(onnx.helper.make_node("Softmax", ["y"], ["s"], "node_s", axis=1))
        last = "s"
        if name == "QDQ":
            for array, what in ((np.float32(1 / 256), "s"), (np.uint8(0), "z")):
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array), f"s.{what}"))
            model.graph.node.extend(
                [
                    onnx.helper.make_node("QuantizeLinear", ["s", "s.s", "s.z"], ["s.q"]),
                    onnx.helper.make_node("DequantizeLinear", ["s.q", "s.s", "s.z"], ["s.dq"]),
                ]
            )
            last = "s.dq"
        model.graph.output[0].name = last
        onnx.save(model, tmp_path / f"{name}.onnx")
    one = culprits(tmp_path / "net.onnx", tmp_path / "QDQ.onnx", made / "photos", **HOW)
    plain = found(made)
    for a in plain.culprits:
        b = next(c for c in one.culprits if c.tensor.reference == a.tensor.reference)
        assert b.alone.mean == pytest.approx(a.alone.mean, abs=1e-6)
    last = next(c for c in one.culprits if c.tensor.name == "s")
    assert last.alone.mean == pytest.approx(1, abs=1e-6)
    assert last.tensor.readers == ("",)


def test_outputs_in_another_order(made, ranking, tmp_path):
    """By their names; and a class that another answer moves by hundreds is no difference of the files."""
    for name in ("net", "QDQ"):
        model = onnx.load(made / f"{name}.onnx")
        model.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["top"], "node_top", axis=1))
        model.graph.output.append(onnx.helper.make_tensor_value_info("top", onnx.TensorProto.INT64, None))
        if name == "QDQ":
            outputs = list(model.graph.output)[::-1]
            del model.graph.output[:]
            model.graph.output.extend(outputs)
        onnx.save(model, tmp_path / f"{name}.onnx")
    one = culprits(tmp_path / "net.onnx", tmp_path / "QDQ.onnx", made / "photos", **HOW, score="y")
    assert one.check.on < 1e-6
    assert one.everything == ranking.everything
    told = {c.tensor.name: c for c in one.culprits}
    assert told["y_QuantizeLinear_Input"].tensor.readers == ("node_top", "")


def test_a_score_that_its_range_clips_is_still_explained(tmp_path):
    """A head of one convolution, in another shape before the softmax; its range ends below the best score."""
    weights = nets.weights(w=(4, 3, 3, 3), b=(4,), v=(5, 4, 1, 1))
    weights |= {"s": np.array(1e-4, np.float32), "z": np.array(128, np.uint8), "k": np.array([0, 5])}
    body = {
        "net": "h = Conv(g, v) e = Reshape(h, k)",
        "QDQ": "h = Conv(g, v) q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z) e = Reshape(d, k)",
    }
    for name, head in body.items():
        text = f"c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) g = GlobalAveragePool(r) {head} y = Softmax(e)"
        arrays = weights if name == "QDQ" else {n: a for n, a in weights.items() if n not in "sz"}
        made = nets.model(text, inputs="float[N,3,24,24] x", initializers=arrays)
        onnx.save(made, tmp_path / f"{name}.onnx")
    photos = files.photos(tmp_path / "photos")
    one = culprits(tmp_path / "net.onnx", tmp_path / "QDQ.onnx", photos, preprocess=files.PREPROCESS)
    assert [c.tensor.name for c in one.culprits] == ["h"]
    assert one.culprits[0].alone.mean == pytest.approx(1, abs=1e-6)
    # and that is what the QDQ file itself says
    maps = []
    for name in ("net", "QDQ"):
        rewrite_onnx(tmp_path / f"{name}.onnx", tmp_path / "made.cam.onnx", "r", preprocess=files.PREPROCESS)
        maps.append(Explainer(tmp_path / "made.cam.onnx", "cpu").explain(photos, target=2).maps)
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)


def test_photos_that_tell_nothing_are_named(made, tmp_path):
    files.photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    one = culprits(made / "net.onnx", made / "QDQ.onnx", tmp_path / "photos", **HOW)
    assert one.photos == ("0.png", "1.png")
    assert [name for name, _ in one.skipped] == ["broken.png"]


def test_a_silent_reference_is_left_out(made, monkeypatch):
    original = culprit.Bench._run

    def silenced(self, x, setting, target):
        told = original(self, x, setting, target)
        if len(told.maps) == 6:
            told.maps[1] = 0
        return told

    monkeypatch.setattr(culprit.Bench, "_run", silenced)
    one = found(made)
    assert one.photos == ("0.png", "2.png", "3.png", "4.png", "5.png")
    assert one.skipped == (
        ("1.png", "the reference's map is the same everywhere, so that nothing can agree with it"),
    )


def test_a_map_that_falls_silent_does_not_agree_at_all(made, tmp_path):
    """Of a dead convolution: its map is zero, the reference's is not."""
    model = onnx.load(made / "QDQ.onnx")
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "r4")
    back = next(n for n in model.graph.node if n.input[0] == node.output[0])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e3, np.float32), "huge"))
    node.input[1] = back.input[1] = "huge"  # everything is rounded to zero
    onnx.save(model, tmp_path / "dead.onnx")
    bad = found(made, tmp_path / "dead.onnx")
    assert bad.culprits[0].tensor.name == "r4"
    assert (bad.culprits[0].alone.mean, bad.culprits[0].alone.worst) == (0, 0)
    assert found(made, tmp_path / "dead.onnx", measure="js").culprits[0].alone.mean == 1


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"measure": "pearsn"}, MetricError, r"No measure of agreement 'pearsn'\. Nearest: 'pearson'"),
        ({"layer": "r44"}, UnknownLayer, r"The model has no layer 'r44'\. Nearest: 'r4'"),
        ({"layer": "f"}, UnknownLayer, r"The layer 'f' has shape \['N', 16\], in which no spatial grid"),
        ({"method": "ablationcam"}, MethodError, r"'ablationcam' needs more of the network .* gradcam"),
        ({"method": "shapleycam"}, MethodError, r"'shapleycam' needs more of the network than a layer's"),
        ({"method": "cam"}, MethodError, r"'cam' needs more of the network than a layer's activations"),
        ({"threshold": 2}, InputError, r"threshold is 2; the measure 'pearson' lies between -1 and 1\."),
        ({"threshold": "high"}, InputError, r"threshold is 'high'; the measure"),
        ({"top": -1}, InputError, r"top is -1; it is a whole number of at least 0\."),
        ({"batch": 0}, InputError, r"batch is 0; it is a whole number of at least 1\."),
        ({"preprocess": None}, InputError, r"net\.onnx' records no preprocessing .* preprocess= \(--prep"),
    ],
    ids=[
        "measure",
        "layer",
        "grid",
        "tail",
        "inside",
        "head",
        "range",
        "number",
        "top",
        "batch",
        "preprocess",
    ],
)
def test_arguments_that_cannot_be(how, error, message, made):
    with pytest.raises(error, match=message):
        found(made, **how)


def test_photos_that_cannot_be_read(made, tmp_path):
    with pytest.raises(ImageError, match="There is no file or folder"):
        culprits(made / "net.onnx", made / "QDQ.onnx", tmp_path / "none", **HOW)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"None of the photos can be read\. The first: .*broken\.png"):
        culprits(made / "net.onnx", made / "QDQ.onnx", tmp_path / "broken.png", **HOW)


def test_maps_that_are_the_same_everywhere(made, monkeypatch):
    original = culprit.Bench._run

    def silenced(self, x, setting, target):
        told = original(self, x, setting, target)
        told.maps[:] = 0
        return told

    monkeypatch.setattr(culprit.Bench, "_run", silenced)
    with pytest.raises(
        InputError, match="There is no photo to judge by: of each, the reference's map is the"
    ):
        found(made)


def test_a_file_that_quantises_nothing(made, tmp_path):
    """Weights alone, which stand for the very numbers."""
    model = onnx.load(made / "net.onnx")
    kept = next(i for i in model.graph.initializer if i.name == "b")
    whole = np.array([1, 2, 3, 4, 5], np.int32)
    kept.CopyFrom(onnx.numpy_helper.from_array(whole.astype(np.float32), "b"))
    onnx.save(model, tmp_path / "net.onnx")
    kept.CopyFrom(onnx.numpy_helper.from_array(whole, "b_quantized"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "one"))
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["b_quantized", "one"], ["b"]))
    onnx.save(model, tmp_path / "same.onnx")
    with pytest.raises(ModelError, match=r"same\.onnx' holds the numbers of .*net\.onnx' in every tensor"):
        culprits(tmp_path / "net.onnx", tmp_path / "same.onnx", made / "photos", **HOW)


def test_a_network_without_layers(tmp_path):
    body = {
        "net": "f = ReduceMean<keepdims=0>(x, k) y = Gemm(f, w)",
        "qdq": "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "f = ReduceMean<keepdims=0>(d, k) y = Gemm(f, w)",
    }
    weights = {
        **nets.weights(w=(24, 5)),
        "k": np.array([1, 2]),
        "s": np.array(0.1, np.float32),
        "z": np.array(128, np.uint8),
    }
    for name, text in body.items():
        made = nets.model(text, inputs="float[N,3,24,24] x", initializers=weights)
        onnx.save(made, tmp_path / f"{name}.onnx")
    photos = files.photos(tmp_path / "photos", 1)
    with pytest.raises(
        UnknownLayer, match=r"No tensor with a spatial grid lies between the inputs and the score"
    ):
        culprits(tmp_path / "net.onnx", tmp_path / "qdq.onnx", photos, preprocess=files.PREPROCESS)


def test_switches_that_do_not_add_up_to_the_reference(made, monkeypatch):
    original = culprit._outputs_of
    monkeypatch.setattr(
        culprit, "_outputs_of", lambda *given: {n: 2 * a for n, a in original(*given).items()}
    )
    with pytest.raises(VerificationError, match=r"all switches off, the outputs differ .* by 0\.5 of their"):
        found(made)


# -- a real pair --------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("tensor", "factor"), [("onnx::QuantizeLinear_1441", 0.03), ("onnx::DequantizeLinear_1588", 4)]
)
def test_a_planted_culprit_in_mobilenet_v2(tensor, factor, tmp_path):
    """An activation of the last blocks, and the first layer's weights."""
    reference, quantised = (DATA / "models" / f"mobilenet_v2{end}.onnx" for end in ("", "_qdq"))
    if not quantised.is_file():
        pytest.skip("needs ../shared/data")
    spoilt = files.spoil(quantised, tensor, factor, tmp_path / "spoilt.onnx")
    photos = [DATA / "photos" / name for name in ("owl.jpg", "pets.jpg")]
    bad = culprits(reference, spoilt, photos, preprocess=PREPROCESS["mobilenet_v2"], top=3)
    assert bad.check.on < 1e-3
    assert len(bad.same) >= 105  # the reference is the QDQ file without its Q and DQ
    assert bad.culprits[0].tensor.name == tensor
    assert bad.everything.mean < 0.95 <= bad.advice.effect.mean
    assert bad.advice.tensors == (tensor,)
