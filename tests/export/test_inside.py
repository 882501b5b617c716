"""What methods need of a graph beyond a layer's tensors: biases, guided gradients."""

import nets
import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcam import methods
from onnxcam.errors import ModelError
from onnxcam.export import rewrite_onnx
from onnxcam.methods import Method


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(net, tmp_path, x, classes, **options):
    source, path = tmp_path / "m.onnx", tmp_path / "m.cam.onnx"
    onnx.save(net, source)
    report = rewrite_onnx(source, path, **options)
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    feeds = {"x": x, "cam.class_index": np.asarray(classes)}
    return report, dict(zip(names, session.run(names, feeds), strict=True))


@pytest.fixture
def total(monkeypatch):
    """The sum of all terms of a decomposition, everywhere in a map of the input's size."""

    def function(biases, *, xp=np):
        whole = xp.sum(biases[0], axis=(1, 2, 3), keepdims=True)
        for term in biases[1:]:
            whole = whole + xp.sum(term, axis=(1, 2, 3), keepdims=True)
        return xp.sum(biases[0] * 0.0 + whole, axis=1) / biases[0].shape[1]

    monkeypatch.setitem(methods._methods, "total", Method("total", function, ("biases",), "", ""))
    return {"method": "total", "scaled": False}


CONV = "c = Conv<pads=[1,1,1,1]>(x, w, wb)"
END = "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v)"
COMPLETE = {
    "convolutions": f"{CONV} a = Relu(c) d = Conv<strides=[2,2]>(a, w2, b2) r = Relu(d) {END}",
    "transposed": f"{CONV} a = Relu(c) d = ConvTranspose<strides=[2,2]>(a, w2, b2) r = Relu(d) {END}",
    "norms": f"{CONV} n = BatchNormalization(c, b2, b2, wb, va) r = Relu(n) {END}",
    "norm before": f"n = BatchNormalization(x, s3, s3, s3, va3) c = Conv(n, w, wb) r = LeakyRelu(c) {END}",
    "a shift of the input": f"z = Sub(x, shift) c = Conv(z, w, wb) r = Relu(c) {END}",
    "taken from a constant": f"z = Sub(shift, x) c = Conv(z, w) r = Relu(c) {END}",
    "channels last": "t = Transpose<perm=[0,2,3,1]>(x) m = MatMul(t, k) c = Add(m, wb) a = Relu(c)"
    f" r = Transpose<perm=[0,3,1,2]>(a) {END}",
    "rows": f"{CONV} r0 = Relu(c) t = Transpose<perm=[0,2,3,1]>(r0) q = Reshape(t, flat)"
    f" g = Gemm<beta=2.0>(q, kk, wb) a = Relu(g) u = Reshape(a, back) r = Transpose<perm=[0,3,1,2]>(u) {END}",
}


def decomposed(body):
    arrays = nets.weights(
        w=(4, 3, 3, 3), wb=(4,), w2=(4, 4, 3, 3), b2=(4,), v=(5, 4), s3=(3,), k=(3, 4), kk=(4, 4)
    )
    arrays |= {"va": np.float32([1, 2, 0.5, 1]), "va3": np.float32([1, 2, 0.5])}
    arrays["shift"] = nets.weights(shift=(1, 3, 1, 1))["shift"]
    arrays |= {"flat": np.array([-1, 4]), "back": np.array([-1, 8, 8, 4])}
    used = {
        k: a
        for k, a in arrays.items()
        if k in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    return nets.model(body, initializers=used)


@pytest.mark.parametrize("case", COMPLETE)
def test_input_and_biases_add_up_to_the_score(tmp_path, total, case):
    """Srinivas and Fleuret 2019, proposition 1: of a piecewise linear network nothing is left over."""
    x, classes = noise(3, 3, 8, 8), [2, 0, 4]
    _, found = run(decomposed(COMPLETE[case]), tmp_path, x, classes, fuse=total)
    scores = found["y"][np.arange(3), classes]
    for whole, score in zip(found["cam.heatmap.total"], scores, strict=True):
        np.testing.assert_allclose(whole, score, rtol=0, atol=1e-5 * np.abs(scores).max())


def test_full_grad_by_hand():
    x = np.array([[[[1.0, -3.0]], [[0.0, 1.0]]]])
    b = np.array([[[[2.0, 2.0]]]])
    # |x| has 0 to 3 over all, 1 to 3 and 0 to 1 by channel; b has no contrast.
    made = methods.get("fullgrad").function([x, b])
    np.testing.assert_allclose(made, [[[1 / 3, 4 / 3]]], rtol=1e-5)
    made = methods.get("fullgrad:pgc").function([x, b])
    np.testing.assert_allclose(made, [[[0, 2]]], rtol=1e-5)


def test_guided_backpropagation_by_hand(tmp_path):
    """Two ReLUs after each other: what is negative before the second does not go on to the first."""
    net = nets.model(
        "a = Relu(x) m = Mul(a, s) r = Relu(m) c = Mul(r, t) p = GlobalAveragePool(c) f = Flatten(p)"
        " y = Gemm<transB=1>(f, v)",
        inputs="float[N,2,2,2] x",
        outputs="float[N,2] y",
        initializers={
            "s": np.float32([[[1, 1], [1, -1]]]),
            "t": np.float32([[[1, -1], [1, 1]]]),
            "v": np.float32([[4, 8], [-4, 4]]),
        },
    )
    x = np.float32([[[[1, 1], [-1, 1]], [[1, 1], [1, 1]]]])
    spec = {"method": "guided_backprop", "scaled": False}
    _, found = run(net, tmp_path, x, [0], layers="m", fuse=spec)
    # Channel gradients are 1 and 2; the cell with t < 0 is guided away, the one with s < 0 is off.
    np.testing.assert_allclose(found["cam.heatmap.guided_backprop"], [[[2, 0], [2, 0]]])
    _, found = run(net, tmp_path, x, [1], layers="m", fuse=spec)
    # -1 and 1: of the first channel only what t turns round is positive at the ReLU.
    np.testing.assert_allclose(found["cam.heatmap.guided_backprop"], [[[1, 1], [1, 0]]])


def test_the_walk_alone_is_guided(tmp_path):
    """The layer's own gradient keeps the registered rule."""
    _, plain = run(nets.cnn(), tmp_path, noise(1, 3, 8, 8), [1])
    _, guided = run(nets.cnn(), tmp_path, noise(1, 3, 8, 8), [1], fuse="guided_gradcam")
    np.testing.assert_array_equal(plain["cam.gradients.r"], guided["cam.gradients.r"])


def test_an_input_of_whole_numbers_has_no_gradient(tmp_path):
    net = nets.model(
        "z = Cast<to=1>(x) c = Conv(z, w, wb) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)"
        " y = Gemm<transB=1>(f, v, b)",
        inputs="uint8[N,3,8,8] x",
        initializers=nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,)),
    )
    for method in ("fullgrad", "guided_backprop"):
        with pytest.raises(ModelError, match="input 'x' holds whole numbers: it has no gradient"):
            run(net, tmp_path, np.zeros((1, 3, 8, 8), np.uint8), [0], fuse=method)


def test_frames_have_no_map_of_their_own(tmp_path):
    net = nets.model(
        "q = Reshape(x, flat) c = Conv(q, w, wb) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)"
        " y = Gemm<transB=1>(f, v, b)",
        inputs="float[1,4,3,8,8] x",
        outputs="float[4,5] y",
        initializers=nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,)),
    )
    net.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 3, 8, 8]), "flat"))
    with pytest.raises(ModelError, match="is no signal, image or volume: a map in its grid cannot be fused"):
        run(net, tmp_path, noise(1, 4, 3, 8, 8), [0], layers="r", fuse="guided_backprop")
