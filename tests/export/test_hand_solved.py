"""Networks small enough to solve by hand, through the whole road: rewrite, session, method.

The convolutional net and its numbers are those that captum's tests state for layer Grad-CAM: a 3x3
convolution of ones with biases -50 and -75, ReLU, and a linear map whose rows are five ones and three minus
ones; x = 0..15.
"""

import nets
import numpy as np
import onnx
import onnxruntime
import pytest

import onnxcam
from onnxcam.export import rewrite_onnx

X = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
ROW = np.float32([1, 1, 1, 1, 1, -1, -1, -1])


def net(inputs="float[N,1,4,4] x", before=""):
    return nets.model(
        f"{before} c = Conv(x, w, wb) r = Relu(c) f = Flatten(r) z = Gemm<transB=1>(f, v) y = Relu(z)",
        inputs=inputs,
        outputs="float[N,4] y",
        initializers={
            "w": np.ones((2, 1, 3, 3), np.float32),
            "wb": np.float32([-50, -75]),
            "v": np.tile(ROW, (4, 1)),
        },
    )


def explain(tmp_path, model, layer, x, method):
    rewrite_onnx(model.SerializeToString(), tmp_path / "net.cam.onnx", layers=layer, verify=False)
    explainer = onnxcam.Explainer(tmp_path / "net.cam.onnx", ["CPUExecutionProvider"])
    return explainer.explain_tensor(x, method=method, target=0)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [("c", [[11.25, 13.5], [20.25, 22.5]]), ("r", [[0, 4], [28, 32.5]])],
)
def test_gradcam_has_captums_values(tmp_path, layer, expected):
    np.testing.assert_allclose(explain(tmp_path, net(), layer, X, "gradcam").maps[0], expected, atol=1e-4)


def test_two_inputs_have_captums_values(tmp_path):
    # The second input is added to the first before the convolution.
    model = net("float[N,1,4,4] a, float[N,1,4,4] b", "x = Add(a, b)")
    result = explain(tmp_path, model, "c", {"a": X, "b": np.ones_like(X)}, "gradcam")
    np.testing.assert_allclose(result.maps[0], [[14.5, 19], [32.5, 37]], atol=1e-4)


def test_the_gradient_is_that_of_the_linear_row_where_the_score_is_positive(tmp_path):
    result = explain(tmp_path, net(), "r", X, "hirescam")
    c = np.float32([[[-5, 4], [31, 40]], [[-30, -21], [6, 15]]])
    relu = np.maximum(c, 0)
    np.testing.assert_allclose(result.maps[0], (relu * ROW.reshape(2, 2, 2)).sum(axis=0), atol=1e-4)


def test_a_score_that_relu_switches_off_gives_a_map_of_zeros_that_is_flagged(tmp_path):
    result = explain(tmp_path, net(), "r", -X, "gradcam")
    assert not result.maps.any()
    assert not result.heatmaps.any()
    assert result.zero.tolist() == [True]


def test_cam_of_a_linear_head_is_the_weighted_sum_of_the_features(tmp_path):
    model = nets.cnn()
    rewrite_onnx(model.SerializeToString(), tmp_path / "net.cam.onnx", layers="r")
    explainer = onnxcam.Explainer(tmp_path / "net.cam.onnx", ["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    v = nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,))["v"]
    model.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (features,) = session.run(["r"], {"x": x})
    expected = np.einsum("nk,nkhw->nhw", v[[3, 0]], features)
    np.testing.assert_allclose(
        explainer.explain_tensor(x, "cam", target=[3, 0]).maps, expected, rtol=1e-4, atol=1e-5
    )
