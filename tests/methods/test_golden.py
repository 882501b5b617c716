"""Methods on numbers that can be checked by hand, or that the libraries themselves gave."""

import numpy as np
import pytest

from onnxcam import methods, postprocess

A = np.array([[[[1, 2], [3, 4]], [[0, -1], [2, 1]]]], float)
G = np.array([[[[0.1, -0.2], [0.3, 0.4]], [[-0.5, 0.2], [0.1, 0]]]], float)

RAW = {  # of pytorch-grad-cam on A and G, row by row; cam: the sums of G are .6 and -.2
    "cam": [0.6, 1.4, 1.4, 2.2],
    "gradcam": [0.15, 0.35, 0.35, 0.55],
    "gradcam++:pgc": [0.1599987, 0.1912124, 0.7375660, 0.7687797],
    "xgradcam": [0.22, 0.44, 0.66, 0.88],
    "hirescam": [0.1, -0.6, 1.1, 1.6],
    "gradcam_elementwise": [0.1, 0, 1.1, 1.6],
    "layercam": [0.1, -0.2, 1.1, 1.6],
}


def run(name, activations, gradients):
    return methods.get(name)(activations=activations, gradients=gradients)


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden_vectors(name, dtype):
    raw = run(name, A.astype(dtype), G.astype(dtype))
    assert raw.shape == (1, 2, 2)
    assert raw.dtype == dtype
    np.testing.assert_allclose(raw.ravel(), RAW[name], atol=2e-7 if dtype == np.float64 else 1e-6)


def test_every_method_has_a_golden_vector():
    assert sorted([*RAW, "gradcam++"]) == [n for n in ARRAYS if methods.get(n).finer is None]


def test_gradcampp_pgc_by_hand():
    one_hot = np.eye(2).reshape(1, 2, 1, 2)  # S_k = 1, and each cell of the map is one weight
    raw = run("gradcam++:pgc", one_hot, np.full((1, 2, 1, 2), 0.5))
    alpha = 0.25 / (0.5 + 0.125 + 1e-6)
    np.testing.assert_allclose(raw, np.full((1, 1, 2), 2 * alpha * 0.5), rtol=1e-12)


def authors_gradcampp(activations, gradients, score):
    """Grad-CAM++ written out cell by cell, with the factor exp(score) that the method leaves out."""
    batch, channels, height, width = activations.shape
    cells = [(i, j) for i in range(height) for j in range(width)]
    out = np.zeros((batch, height, width))
    for b in range(batch):
        for k in range(channels):
            act, grad = activations[b, k], gradients[b, k]
            total = sum(act[c] for c in cells)
            alpha = {}
            for c in cells:
                second, third = (np.exp(score) * grad[c] ** n for n in (2, 3))
                below = 2 * second + third * total
                alpha[c] = second / (below if below != 0 else 1)
            norm = sum(alpha[c] for c in cells if grad[c] > 0)
            norm = norm if norm != 0 else 1
            weight = sum(alpha[c] / norm * max(np.exp(score) * grad[c], 0) for c in cells)
            out[b] += weight * act
    return out


def test_gradcampp_is_the_authors_up_to_exp_of_the_score():
    rng = np.random.default_rng(0)
    for activations, gradients in [(A, G), (rng.random((2, 5, 3, 4)), rng.normal(size=(2, 5, 3, 4)))]:
        raw = run("gradcam++", activations, gradients)
        np.testing.assert_allclose(raw, authors_gradcampp(activations, gradients, 0.0), rtol=1e-12)
        np.testing.assert_allclose(
            postprocess.heatmaps([raw], (8, 8)),
            postprocess.heatmaps([authors_gradcampp(activations, gradients, 1.7)], (8, 8)),
            atol=1e-6,
        )


def test_gradcampp_by_hand():
    # One channel, S = 6: α = 1 / (2 + 6 G) where G > 0, that is 1/5 and 1/8; their sum is 13/40.
    activations = np.array([[[[1.0, 2.0, 3.0]]]])
    gradients = np.array([[[[0.5, 1.0, -1.0]]]])
    weight = (8 / 13) * 0.5 + (5 / 13) * 1.0
    np.testing.assert_allclose(run("gradcam++", activations, gradients), weight * activations[:, 0])


def test_zero_denominators_become_one():
    # Grad-CAM++: S = -2, so at G = 1 both 2 G² + S G³ = 0 and α = G² = 1; at G = 0.5 α = 1.
    activations = np.array([[[[-3.0, 1.0]]]])
    gradients = np.array([[[[1.0, 0.5]]]])
    np.testing.assert_allclose(run("gradcam++", activations, gradients), 0.75 * activations[:, 0])
    # XGrad-CAM: activations that cancel give Σ G A over 1.
    activations = np.array([[[[-1.0, 1.0]]]])
    np.testing.assert_allclose(run("xgradcam", activations, gradients), -0.5 * activations[:, 0])


ARRAYS = [n for n in methods.names() if {*methods.get(n).needs} <= {"activations", "gradients"}]


@pytest.mark.parametrize("name", [n for n in ARRAYS if "gradients" in methods.get(n).needs])
def test_zeros_stay_zeros(name):
    zeros = np.zeros((2, 3, 4, 5), np.float32)
    for a, g in [(zeros, zeros), (zeros, zeros + 1), (zeros + 1, zeros)]:
        np.testing.assert_array_equal(run(name, a, g), zeros[:, 0])


X = np.arange(16.0).reshape(4, 4)


def hand_net(x):
    """A and G at the convolution and after the ReLU of a net with known answers.

    Convolution 1 to 2, all weights 1, biases -50 and -75; ReLU; linear with the row five times 1,
    three times -1; its score is positive, so the final ReLU changes nothing.
    """
    window = np.lib.stride_tricks.sliding_window_view(x, (3, 3)).sum(axis=(2, 3))
    conv = np.stack([window - 50, window - 75])[None]
    row = np.array([1, 1, 1, 1, 1, -1, -1, -1.0]).reshape(1, 2, 2, 2)
    assert (row * np.maximum(conv, 0)).sum() > 0
    return {"conv": (conv, row * (conv > 0)), "relu": (np.maximum(conv, 0), row)}


@pytest.mark.parametrize(
    ("x", "layer", "expected"),
    [
        (X, "conv", [[11.25, 13.5], [20.25, 22.5]]),
        (X, "relu", [[0, 4], [28, 32.5]]),
        (X + 1, "conv", [[14.5, 19], [32.5, 37]]),
    ],
)
def test_gradcam_of_the_hand_net(x, layer, expected):
    np.testing.assert_allclose(run("gradcam", *hand_net(x)[layer])[0], expected, atol=1e-12)


def test_gradcam_channels_of_the_hand_net():
    activations, gradients = hand_net(X)["conv"]
    for k, expected in enumerate([[[-3.75, 3], [23.25, 30]], [[15, 10.5], [-3, -7.5]]]):
        channel = slice(k, k + 1)
        np.testing.assert_allclose(
            run("gradcam", activations[:, channel], gradients[:, channel])[0], expected
        )


def test_gradcam_of_the_hand_net_at_its_input():
    x = X.copy()
    x[1, 1] = -4
    _, gradients = hand_net(x)["conv"]
    back = np.zeros((4, 4))
    for i in range(2):
        for j in range(2):
            back[i : i + 3, j : j + 3] += gradients[0, :, i, j].sum()
    raw = run("gradcam", x[None, None], back[None, None])
    np.testing.assert_allclose(raw[0], 0.5625 * x)
    assert postprocess.heatmaps([raw], (4, 4))[0, 1, 1] == 0


@pytest.mark.parametrize(
    ("values", "weight"),
    [
        ([[1, 1], [1, 1]], 1),
        ([[1, 1], [0, 0]], 0.5),
        ([[1, 0.5], [0, 0]], 0.375),
        ([[0.5, 0], [0, 0]], 0.125),
    ],
)
def test_gradcam_weight_is_the_mean_gradient(values, weight):
    both = np.array(values, float)[None, None]
    np.testing.assert_allclose(run("gradcam", both, both), weight * both[0])


def test_final_heatmap_of_pytorch_grad_cam():
    maps = postprocess.heatmaps([run("gradcam", A, G)], (4, 4))
    expected = [
        [0, 0.125, 0.375, 0.5],
        [0.125, 0.25, 0.5, 0.625],
        [0.375, 0.5, 0.75, 0.875],
        [0.5, 0.625, 0.875, 1],
    ]
    np.testing.assert_allclose(maps[0], expected, atol=1e-6)
