"""Every method of arrays on layers that are dead, constant, broken, tiny, or no image."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcam import Explainer, methods
from onnxcam.errors import TensorError

from .. import nets

pytest.importorskip("onnx_ir")
from onnxcam.export import rewrite_onnx

NEEDS = {"activations", "gradients", "noisy"}
NAMES = [n for n in methods.names() if {*methods.get(n).needs} <= NEEDS]
HEAD = "g = GlobalAveragePool(r) f = Flatten(g) y = Gemm<transB=1>(f, v, b)"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A file of a body whose layer is ``r``."""
    folder = tmp_path_factory.mktemp("odd")

    def make(body, inputs="float[N,3,8,8] x", **initializers):
        head = nets.weights(v=(5, initializers["w"].shape[0]), b=(5,))
        arrays = head | {"v": np.abs(head["v"])} | initializers  # so that every class has evidence
        onnx.save(nets.model(body, inputs, initializers=arrays), folder / "m.onnx")
        rewrite_onnx(folder / "m.onnx", folder / "m.cam.onnx", layers="r", score={"seed": True}, verify=False)
        return Explainer((folder / "m.cam.onnx").read_bytes(), ["cpu"])

    return make


def explained(explainer, x, name):
    return explainer.explain_tensor(x, name, target=[3] * len(x))


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_a_dead_layer_gives_zeros(opened):
    body = f"c = Conv<pads=[1,1,1,1]>(x, w, low) r = Relu(c) {HEAD}"
    explainer = opened(body, w=nets.weights(w=(4, 3, 3, 3))["w"], low=np.full(4, -1e3, np.float32))
    for name in NAMES:
        result = explained(explainer, noise(2, 3, 8, 8), name)
        assert not result.heatmaps.any(), name
        assert result.zero.all(), name


def test_constant_channels_say_nothing_of_where(opened):
    """Grad-CAM's map is constant there; no method makes contrast of rounding."""
    body = f"c = Conv<pads=[1,1,1,1]>(x, w) z = Mul(c, nothing) r = Add(z, each) {HEAD}"
    each = 1e4 * np.random.default_rng(1).random((1, 4, 1, 1)).astype(np.float32)
    explainer = opened(body, w=nets.weights(w=(4, 3, 3, 3))["w"], nothing=np.zeros(1, np.float32), each=each)
    for name in NAMES:
        assert not explained(explainer, noise(2, 3, 8, 8), name).heatmaps.any(), name


def test_nan_in_activations_is_a_sentence(opened):
    """The score is finite all the same: what is not a number is left out behind the layer."""
    body = (
        "c = Conv<pads=[1,1,1,1]>(x, w) r = Log(c) n = IsNaN(r) s = Where(n, nothing, r)"
        " g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, v, b)"
    )
    explainer = opened(body, w=nets.weights(w=(4, 3, 3, 3))["w"], nothing=np.zeros(1, np.float32))
    for name in (n for n in NAMES if methods.get(n).head is None):
        with (
            np.errstate(invalid="ignore"),
            pytest.raises(
                TensorError, match=r"^The map of image 0 of the batch is not finite: activations or grad"
            ),
        ):
            explained(explainer, noise(2, 3, 8, 8), name)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (4, 1), (1, 1)])
def test_one_channel_and_one_cell(opened, channels, size):
    explainer = opened(
        f"c = Conv(x, w) r = Relu(c) {HEAD}",
        f"float[N,3,{size},{size}] x",
        w=nets.weights(w=(channels, 3, 1, 1))["w"],
    )
    x = noise(2, 3, size, size)
    for name in NAMES:
        result = explained(explainer, x, name)
        assert result.maps.shape == result.heatmaps.shape == (2, size, size), name
        assert np.isfinite(result.heatmaps).all(), name
        assert size > 1 or result.zero.all(), name  # one cell has no contrast


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((2, 3, 12), (4, 3, 3)), ((2, 3, 4, 5, 6), (4, 3, 3, 3, 3))],
    ids=["signal", "volume"],
)
def test_signals_and_volumes_are_their_cells_in_a_row(opened, shape, kernel):
    """Nothing but the arrangement of the cells differs from an image: each method knows no neighbours."""
    sides = ",".join(map(str, shape[2:]))
    explainer = opened(
        f"c = Conv(x, w) r = Relu(c) {HEAD}", f"float[N,3,{sides}] x", w=nets.weights(w=kernel)["w"]
    )
    x = noise(*shape)
    kept = {}
    for need in ("activations", "gradients"):
        keep = methods.Method("keep", lambda t, need=need: kept.update({need: t}) or t[:, 0], (need,), "", "")
        grid = explained(explainer, x, keep).maps.shape[1:]
    assert grid == tuple(n - 2 for n in shape[2:])
    flat = {need: t.reshape(2, 4, 1, -1) for need, t in kept.items()}
    for name in (n for n in NAMES if "noisy" not in methods.get(n).needs and methods.get(n).finer is None):
        result = explained(explainer, x, name)
        expected = methods.get(name)(**flat).reshape(result.maps.shape)
        np.testing.assert_allclose(result.maps, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)
        assert result.heatmaps.shape == (2, *shape[2:])
    smooth = explained(explainer, x, "smoothgradcam++")
    assert smooth.maps.shape == (2, *grid)
    assert smooth.heatmaps.max() > 0.9
