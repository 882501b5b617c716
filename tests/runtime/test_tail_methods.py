"""Ablation-CAM and Recipro-CAM against a network that is run again as a whole, its layer replaced."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcam import Explainer, errors
from onnxcam.targets import Region

from .. import nets

rewrite_onnx = pytest.importorskip("onnxcam.export").rewrite_onnx

IMAGE = "float[N,3,5,6] x"
BODY = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) "
PARTS = nets.weights(w=(4, 3, 3, 3), b=(4,), v=(5, 4), k=(6, 4, 3, 3), u=(5, 6))
HEADS = {
    "pooled": ("p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v)", "float[N,5] y"),
    "deep": (
        "d = Conv<pads=[1,1,1,1]>(r, k) e = Tanh(d) p = GlobalMaxPool(e) f = Flatten(p) "
        "y = Gemm<transB=1>(f, u)",
        "float[N,5] y",
    ),
    "softmax": (
        "p = GlobalAveragePool(r) f = Flatten(p) z = Gemm<transB=1>(f, v) y = Softmax(z)",
        "float[N,5] y",
    ),
    # What goes around the layer is an input of the tail, too.
    "around": (
        "s = Sigmoid(r) t = Mul(s, c) q = Add(t, r) p = GlobalAveragePool(q) f = Flatten(p) "
        "y = Gemm<transB=1>(f, v)",
        "float[N,5] y",
    ),
}


def made(name, tmp_path, layer="r", **options):
    text, outputs = HEADS[name]
    source = nets.model(BODY + text, IMAGE, outputs, PARTS)
    path = tmp_path / f"{name}.cam.onnx"
    rewrite_onnx(source.SerializeToString(), path, layer, tail=True, **options)
    return source, path


def replaced(source, layer, x, change):
    """The output of a network, run node by node, one layer's value changed; and that value as it was."""
    known = {"x": x} | {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    for node in source.graph.node:
        one = helper.make_model(
            helper.make_graph(
                [node],
                "one",
                [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in node.input],
                [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in node.output],
            ),
            opset_imports=source.opset_import,
        )
        found = ReferenceEvaluator(one).run(None, {n: known[n] for n in node.input})
        known |= dict(zip(node.output, found, strict=True))
        if layer in node.output:
            was, known[layer] = known[layer], change(known[layer])
    return known["y"], was


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("layer", ["r", "c"])
@pytest.mark.parametrize("name", HEADS)
def test_ablationcam(name, layer, x, tmp_path):
    source, path = made(name, tmp_path, layer)
    result = Explainer(path, "cpu", max_batch=3).explain_tensor(x, "ablationcam", [[2, 0], [1]])
    for row, (i, c) in enumerate([(0, 2), (0, 0), (1, 1)]):
        one = x[i : i + 1]
        y, a = replaced(source, layer, one, lambda a: a)
        expected = 0
        for k in range(a.shape[1]):
            keep = np.ones(a.shape[1], np.float32)
            keep[k] = 0
            without, _ = replaced(source, layer, one, lambda a, keep=keep: a * keep[:, None, None])
            expected = expected + (y - without)[0, c] / abs(y[0, c]) * a[0, k]
        np.testing.assert_allclose(
            result.maps[row], expected, atol=1e-4 * np.abs(expected).max()
        )  # a difference of scores
    assert result.passes == 2  # one for each image: the backbone never runs again
    assert result.tail_passes == 2 * (1 + 4) + 1  # the third row's class


@pytest.mark.parametrize("layer", ["r", "c"])
@pytest.mark.parametrize("name", HEADS)
def test_reciprocam(name, layer, x, tmp_path):
    source, path = made(name, tmp_path, layer)
    explainer = Explainer(path, "cpu", max_batch=7)
    masks = np.eye(30, dtype=np.float32).reshape(30, 5, 6)
    soft = np.zeros((30, 5, 6), np.float32)
    for cell in range(30):
        for i, v in ((-1, 1), (0, 2), (1, 1)):
            for j, h in ((-1, 1), (0, 2), (1, 1)):
                y, column = cell // 6 + i, cell % 6 + j
                if 0 <= y < 5 and 0 <= column < 6:
                    soft[cell, y, column] = v * h / 4
    for method, shapes in (("reciprocam", masks), ("vitreciprocam", soft)):
        result = explainer.explain_tensor(x, method, 3)
        for i in range(2):
            expected = [replaced(source, layer, x[i : i + 1], lambda a, m=m: a * m)[0][0, 3] for m in shapes]
            np.testing.assert_allclose(
                result.maps[i], np.reshape(expected, (5, 6)), rtol=1e-4, atol=1e-5, err_msg=method
            )


def test_on_a_pooled_linear_head_they_are_gradcam(x, tmp_path):
    """Without channel k the logit loses w_k times its mean; alone, a cell has what it adds, and the bias."""
    _, path = made("pooled", tmp_path)
    explainer = Explainer(path, "cpu")
    cam = explainer.explain_tensor(x, "cam", 1)
    ablated = explainer.explain_tensor(x, "ablationcam", 1)
    alone = explainer.explain_tensor(x, "reciprocam", 1)
    for i in range(2):
        a = explainer.explain_tensor(x[i : i + 1], "gradcam", 1)
        np.testing.assert_allclose(alone.maps[i], cam.maps[i] / 30, rtol=1e-4, atol=1e-5)
        assert ablated.maps[i].shape == a.maps[0].shape


def test_a_region_under_ablation(tmp_path):
    parts = {**PARTS, **nets.weights(q=(3, 4, 1, 1))}
    source = nets.model(BODY + "y = Conv(r, q)", IMAGE, "float[N,3,5,6] y", parts)
    rewrite_onnx(
        source.SerializeToString(), tmp_path / "s.cam.onnx", "r", tail=True, score={"task": "segmentation"}
    )
    explainer = Explainer(tmp_path / "s.cam.onnx", "cpu")
    x = np.random.default_rng(3).standard_normal((1, 3, 5, 6)).astype(np.float32)
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    result = explainer.explain_tensor(x, "ablationcam", [[Region(1, mask), None]])
    top = explainer.explain_tensor(x, "hirescam").class_ids[0]
    y, a = replaced(source, "r", x, lambda a: a)
    for row, (c, region) in enumerate([(1, mask), (top, y[0].argmax(0) == top)]):
        weights = nets.weights(q=(3, 4, 1, 1))["q"][c, :, 0, 0]
        score = (y[0, c] * region).sum()
        # A 1 x 1 convolution: without channel k the region loses just what the channel gave.
        falls = [(weights[k] * a[0, k] * region).sum() / abs(score) for k in range(4)]
        np.testing.assert_allclose(result.maps[row], np.tensordot(falls, a[0], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_many_targets_cost_one_whole_run(name, x, tmp_path, caplog):
    _, path = made(name, tmp_path)
    explainer = Explainer(path, "cpu", max_batch=3)
    target = [[4, None, 0, 1], [2]]
    for method in ("gradcam", "layercam", "smoothgradcam++"):
        result = explainer.explain_tensor(x, method, target)
        alone = [
            explainer.explain_tensor(x[i : i + 1], method, c)
            for i, c in ((0, 4), (0, None), (0, 0), (0, 1), (1, 2))
        ]
        for row, one in enumerate(alone):
            np.testing.assert_allclose(result.maps[row], one.maps[0], rtol=1e-4, atol=1e-6)
            assert result.class_ids[row] == one.class_ids[0]
            np.testing.assert_allclose(result.scores[row], one.scores[0], rtol=1e-5)
        copies = 1 + (8 if method == "smoothgradcam++" else 0)
        assert (result.passes, result.tail_passes) == (2 * copies, 3 * copies)
    (tmp_path / f"{name}.tail.onnx").unlink()
    again = Explainer(path, "cpu").explain_tensor(x, "gradcam", target)
    np.testing.assert_allclose(again.maps, explainer.explain_tensor(x, "gradcam", target).maps, rtol=1e-4)
    assert (again.passes, again.tail_passes) == (5, 0)
    assert "Going on without it: the whole file runs for each target." in caplog.text


def test_a_file_without_its_tail(x, tmp_path):
    text, outputs = HEADS["pooled"]
    source = nets.model(BODY + text, IMAGE, outputs, PARTS)
    rewrite_onnx(source.SerializeToString(), tmp_path / "p.cam.onnx", "r")
    with pytest.raises(
        errors.BadTail, match=r"has no tail for the layer 'r'.*`onnxcam rewrite model\.onnx --tail`"
    ):
        Explainer(tmp_path / "p.cam.onnx", "cpu").explain_tensor(x, "ablationcam")


def test_a_signal_has_no_neighbourhood_of_nine(tmp_path):
    text = "c = Conv<pads=[1,1]>(x, w, b) r = Relu(c) " + HEADS["pooled"][0]
    source = nets.model(
        text,
        inputs="float[N,3,L] x",
        outputs="float[N,5] y",
        initializers=nets.weights(w=(4, 3, 3), b=(4,), v=(5, 4)),
    )
    rewrite_onnx(source.SerializeToString(), tmp_path / "l.cam.onnx", "r", tail=True)
    explainer = Explainer(tmp_path / "l.cam.onnx", "cpu")
    x = np.random.default_rng(3).standard_normal((1, 3, 9)).astype(np.float32)
    assert explainer.explain_tensor(x, "reciprocam").maps.shape == (1, 9)
    assert explainer.explain_tensor(x, "ablationcam").maps.shape == (1, 9)
    with pytest.raises(
        errors.MethodError, match=r"^vitreciprocam is for images, and the layer's grid is \(9,\): take"
    ):
        explainer.explain_tensor(x, "vitreciprocam")
