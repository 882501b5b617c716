"""Methods on numbers that can be checked by hand, or that the libraries themselves gave."""

import itertools

import numpy as np
import pytest

from onnxcam import methods, postprocess
from onnxcam.errors import MethodError, TensorError

A = np.array([[[[1, 2], [3, 4]], [[0, -1], [2, 1]]]], float)
G = np.array([[[[0.1, -0.2], [0.3, 0.4]], [[-0.5, 0.2], [0.1, 0]]]], float)

# Of pytorch-grad-cam on A and G, row by row. cam: the sums of G are .6 and -.2. The signs of eigencam and
# eigengradcam, which the library leaves to chance, are those of Σ_k A^k and Σ_k G^k A^k.
RAW = {
    "activation_mean": [0.5, 0.5, 2.5, 2.5],
    "cam": [0.6, 1.4, 1.4, 2.2],
    "gradcam": [0.15, 0.35, 0.35, 0.55],
    "gradcam++:pgc": [0.1599987, 0.1912124, 0.7375660, 0.7687797],
    "xgradcam": [0.22, 0.44, 0.66, 0.88],
    "hirescam": [0.1, -0.6, 1.1, 1.6],
    "gradcam_elementwise": [0.1, 0, 1.1, 1.6],
    "layercam": [0.1, -0.2, 1.1, 1.6],
    "eigencam": [-1.4142135, -1.4142135, 1.4142135, 1.4142135],
    "eigengradcam": [-0.4471015, -0.9665444, 0.3704092, 1.0432367],
    "segeigencam": [-0.6478210, -0.3651892, 0.1658597, 0.8471506],
    "fem": [0, 0, 0, 0],  # no cell of four is two standard deviations above their mean
    "refinecam:pgc": [0.1599987, 0.1912124, 0.7375660, 0.7687797],
}
HERE = {"gradcam++", "refinecam", "kpcacam", "randomcam"}  # in tests of their own below


def run(name, activations, gradients=None, **options):
    return methods.get(name)(activations=activations, gradients=gradients, **options)


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden_vectors(name, dtype):
    raw = run(name, A.astype(dtype), G.astype(dtype))
    assert raw.shape == (1, 2, 2)
    assert raw.dtype == dtype
    np.testing.assert_allclose(raw.ravel(), RAW[name], atol=2e-7 if dtype == np.float64 else 1e-6)


def test_randomcam_weighs_by_chance_and_the_same_in_every_batch():
    rng = np.random.default_rng(3)
    activations = rng.random((4, 200, 2, 3)).astype(np.float32)
    raw = run("randomcam", activations)
    np.testing.assert_allclose(raw[1:2], run("randomcam", activations[1:2]), rtol=1e-5)
    ones = np.eye(200, dtype=np.float32).reshape(1, 200, 10, 20)
    drawn = run("randomcam", ones).ravel()
    assert -1 <= drawn.min() < -0.9
    assert 0.9 < drawn.max() <= 1
    assert abs(drawn.mean()) < 0.15
    assert np.abs(run("randomcam", ones, seed=1).ravel() - drawn).max() > 0.5


def test_every_method_has_a_golden_vector():
    assert {*RAW} | HERE == {n for n in ARRAYS if methods.get(n).finer is None}


def test_fem_by_hand():
    np.testing.assert_allclose(run("fem", A, k=0).ravel(), [0.5, 0.5, 2.5, 2.5])
    # One peak of five: μ = 2, σ = √(80 / 5) = 4, so that 10 lies two deviations above: at k = 1.9 not at 2.
    peak = np.array([[[[0.0, 0, 0, 0, 10]], [[1.0, 1, 1, 1, 1]]]])
    np.testing.assert_allclose(run("fem", peak, k=1.9)[0, 0], [0, 0, 0, 0, 2])
    assert not run("fem", peak).any()


def test_eigencam_turns_to_where_the_layer_is_active():
    turned = -A  # the component of -A is that of A or its negative; the layer is active at the top
    np.testing.assert_allclose(run("eigencam", turned), -run("eigencam", A), rtol=1e-12)
    # Where Σ_k A^k is constant, it says nothing: the value furthest from zero is positive.
    ramp = np.array([[0.0, 1.0, 5.0]])
    opposed = np.stack([ramp, 5 - ramp])[None]
    np.testing.assert_allclose(run("eigencam", opposed)[0], np.sqrt(2) * (ramp - 2), rtol=1e-12)
    np.testing.assert_allclose(run("eigencam", opposed[:, ::-1])[0], np.sqrt(2) * (ramp - 2), rtol=1e-12)


def test_eigengradcam_turns_to_the_evidence():
    np.testing.assert_allclose(run("eigengradcam", A, -G), -run("eigengradcam", A, G), rtol=1e-12)


def test_segeigencam_turns_to_its_peak():
    for activations, gradients in itertools.product([A, -A], [G, -G]):
        np.testing.assert_allclose(
            run("segeigencam", activations, gradients), run("segeigencam", A, G), rtol=1e-12
        )


def test_eigen_smoothed_gradcam():
    from onnxcam.projection import first_component

    smoothed = first_component(methods.get("gradcam").products(A, G))
    np.testing.assert_allclose(smoothed.ravel(), [-0.2252362, -0.0890691, 0.0890691, 0.2252362], atol=2e-7)


def test_a_linear_kernel_is_eigencam_but_for_the_sign():
    rng = np.random.default_rng(4)
    activations = rng.normal(size=(3, 5, 4, 6))
    linear, plain = run("kpcacam", activations, kernel="linear"), run("eigencam", activations)
    sign = np.sign((linear * plain).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(sign * linear, plain, atol=1e-9)
    assert (linear.max((1, 2)) >= -linear.min((1, 2))).all()


def test_kpcacam_by_hand():
    # Two cells x and -x after centring: the centred kernel matrix is d [[1, -1], [-1, 1]] with d half of
    # k(x, x) - k(x, -x). Its eigenvalue is 2 d, its eigenvector (1, -1) / √2, the map ±√d. |x|² = 1 + 4.
    activations = np.array([[[[3.0, 5.0]], [[2.0, -2.0]]]])
    for kernel, apart in {
        "sigmoid": (np.tanh(1 + 2.5) - np.tanh(1 - 2.5)) / 2,
        "rbf": (1 - np.exp(-0.5 * 20)) / 2,
        "poly": (3.5**3 - (-1.5) ** 3) / 2,
        "cosine": 1.0,
        "linear": 5.0,
    }.items():
        raw = run("kpcacam", activations, kernel=kernel)
        np.testing.assert_allclose(np.abs(raw)[0, 0], np.sqrt([apart] * 2), rtol=1e-12)
        assert raw.sum() == pytest.approx(0)
    gamma = run("kpcacam", activations, kernel="rbf", gamma=0.01)
    np.testing.assert_allclose(gamma[0, 0] ** 2, (1 - np.exp(-0.01 * 20)) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kernel": "sigmod"},
            r"^No kernel 'sigmod'\. Nearest: 'sigmoid'\. There are: sigmoid, rbf, poly, cos",
        ),
        ({"gamma": 0}, r"^The gamma of kpcacam is a number above 0, or None for 1/C, not 0\.$"),
        ({"gamma": "auto"}, r"^The gamma of kpcacam .* not 'auto'\.$"),
        ({"gamma": float("inf")}, r"^The gamma of kpcacam .* not inf\.$"),
        ({"gamma": float("nan")}, r"^The gamma of kpcacam .* not nan\.$"),
    ],
)
def test_unusable_kernels(options, message):
    with pytest.raises(MethodError, match=message):
        run("kpcacam", A, **options)


@pytest.mark.parametrize("name", ["eigencam", "eigengradcam", "segeigencam", "kpcacam"])
def test_what_has_no_component_gives_zeros(name):
    rng = np.random.default_rng(5)
    constant = np.broadcast_to(rng.normal(size=(2, 3, 1, 1)) * 1e10, (2, 3, 4, 5)).astype(np.float32)
    ones = np.ones_like(constant)
    for shape in [(4, 5), (1, 1)]:
        activations = constant[..., : shape[0], : shape[1]]
        assert not run(name, activations, ones[..., : shape[0], : shape[1]]).any()
    assert not run(name, np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1, 1))).any()


def test_a_kernel_that_tells_no_cells_apart_gives_zeros():
    activations = np.random.default_rng(6).normal(size=(1, 3, 4, 5))
    assert not run("kpcacam", activations, kernel="rbf", gamma=1e-300).any()
    assert not run("kpcacam", activations, kernel="rbf", gamma=1e9).any()  # each is like itself alone
    assert not run("kpcacam", np.zeros((1, 2, 3, 3)), kernel="cosine").any()


def test_where_several_directions_are_first_none_is_shown():
    corners = np.array([[[[1.0, -1, 1, -1]], [[1.0, 1, -1, -1]]]])
    assert not run("eigencam", corners).any()
    assert not run("eigencam", np.concatenate([corners, 0 * corners, 0 * corners], axis=1)).any()
    assert run("eigencam", corners * np.array([1.0, 1.001]).reshape(1, 2, 1, 1)).any()


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-5])
def test_large_grids_have_the_component_of_all_eigenvectors(apart):
    """Beyond 400 cells the largest eigenvalue alone is computed, also where the second is near."""
    rng = np.random.default_rng(11)
    cells, channels = 900, 600
    v = np.linalg.qr(rng.normal(size=(channels, 500)))[0]
    u = np.linalg.qr(np.hstack([np.ones((cells, 1)), rng.normal(size=(cells, 500))]))[0][:, 1:]  # no mean
    values = np.concatenate([[1 + apart, 1.0], np.linspace(0.99, 0, 498)])
    activations = (v * values @ u.T).reshape(1, channels, 30, 30)
    centred = activations[0].reshape(channels, -1).T
    centred = centred - centred.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    assert sizes[0] - sizes[1] == pytest.approx(apart, rel=1e-6)
    expected = centred @ directions[0]
    for name, options in {"eigencam": {}, "kpcacam": {"kernel": "linear"}}.items():
        raw = run(name, activations, **options).ravel()
        sign = np.sign(raw @ expected)
        np.testing.assert_allclose(sign * raw, expected, atol=1e-6 * np.abs(expected).max(), err_msg=name)


def test_large_grids_where_several_directions_are_first():
    ones = np.eye(500)[None].reshape(1, 500, 20, 25)  # each cell has a channel of its own
    assert not run("kpcacam", ones, kernel="rbf", gamma=1.0).any()
    assert not run("eigencam", ones).any()


def test_one_channel_is_its_own_component():
    one = np.random.default_rng(7).random((2, 1, 4, 5))
    np.testing.assert_allclose(run("eigencam", one), one[:, 0] - one.mean((2, 3)).reshape(2, 1, 1))
    rank_one = np.concatenate([one, 2 * one, 0 * one], axis=1)  # √5 along (1, 2, 0)
    np.testing.assert_allclose(run("eigencam", rank_one), np.sqrt(5) * run("eigencam", one))


@pytest.mark.parametrize("name", sorted({*RAW} | HERE))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_reported(name, bad):
    activations, gradients = (np.concatenate([t, t]).astype(np.float32) for t in (A, G))
    activations[1, 0, 0, 0] = bad
    with np.errstate(invalid="ignore"):
        raw = run(name, activations, gradients)
        with pytest.raises(TensorError, match=r"^The map of image 1 of the batch is not finite: activations"):
            postprocess.heatmaps([raw], (4, 4), methods.get(name).rectify)


def smooth_inputs(seed, copies=3):
    """A and noisy copies' G, with the function that gives their moments."""
    rng = np.random.default_rng(seed)
    activations, gradients = rng.random((2, 3, 4, 5)), rng.normal(size=(copies, 2, 3, 4, 5))
    return activations, gradients, lambda *_: np.stack([(gradients**n).mean(0) for n in (1, 2, 3)])


@pytest.mark.parametrize("numerator", [2, 1])
def test_smoothgradcampp_cell_by_cell(numerator):
    activations, gradients, noisy = smooth_inputs(8)
    raw = methods.get("smoothgradcam++")(activations=activations, noisy=noisy, numerator=numerator)
    expected = np.zeros((2, 4, 5))
    for b, k in itertools.product(range(2), range(3)):
        weight = 0.0
        for i, j in itertools.product(range(4), range(5)):
            d = {n: sum(g[b, k, i, j] ** n for g in gradients) / 3 for n in (1, 2, 3)}
            alpha = d[numerator] / (2 * d[2] + activations[b, k].sum() * d[3])
            weight += alpha * max(d[1], 0)
        expected[b] += weight * activations[b, k]
    np.testing.assert_allclose(raw, expected, rtol=1e-9)


def test_smoothgradcampp_of_one_clean_copy_is_gradcampp():
    activations, gradients, noisy = smooth_inputs(10, copies=1)
    raw = methods.get("smoothgradcam++")(activations=activations, noisy=noisy)
    # pytorch-grad-cam's is the formula without the authors' division of α, but for its 1e-6.
    alike = run("gradcam++:pgc", activations * 1e-6, gradients[0] * 1e6)
    np.testing.assert_allclose(raw, alike, rtol=1e-9)


def test_smoothgradcampp_asks_for_what_it_is_told():
    activations, _, noisy = smooth_inputs(9)
    asked = []
    methods.get("smoothgradcam++")(
        activations=activations, noisy=lambda *a: asked.append(a) or noisy(*a), samples=5, sigma=0.3, seed=7
    )
    methods.get("smoothgradcam++")(activations=activations, noisy=lambda *a: asked.append(a) or noisy(*a))
    assert asked == [(5, 0.3, 7), (8, 0.15, 0)]


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"sigma": -1.0}, {"numerator": 3}], ids=str)
def test_smoothgradcampp_refuses_unusable_noise(wrong):
    activations, _, noisy = smooth_inputs(9)
    message = (
        r"^smoothgradcam\+\+ needs at least one sample, a sigma of at least 0 and the numerator 1 or 2, not"
    )
    with pytest.raises(MethodError, match=message):
        methods.get("smoothgradcam++")(activations=activations, noisy=noisy, **wrong)


def test_refinecam_is_gradcampp_of_each_layer():
    np.testing.assert_array_equal(run("refinecam", A, G), run("gradcam++", A, G))
    assert methods.get("refinecam").fuse == "product"
    assert methods.get("refinecam:pgc").fuse == "product:pgc"
    assert {methods.get(n).fuse for n in RAW if not n.startswith("refinecam")} == {"mean"}


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
