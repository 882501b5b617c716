"""Copies of which weights alone are handed over: made on the host and on a device, of every layout."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxcam import Explainer, methods
from onnxcam.contract import CLASS_INDEX, Factor, Layout
from onnxcam.errors import TensorError
from onnxcam.export import rewrite_onnx
from onnxcam.grids import channels_first, put_back
from onnxcam.methods import Method
from onnxcam.session import Session
from onnxcam.tail import Tail
from onnxcam.weighted import on_device, on_host

from .. import nets
from ..export.test_half_precision import in_half
from ..export.test_local_tails import BODIES, network
from ..export.test_tails import RESIDUAL, WINDOWS

METHODS = ("ablationcam", "reciprocam", "vitreciprocam")
N, Y, X = Factor("N", None), Factor("y", 3), Factor("x", 4)

#: A layout, and the shape of one image's tensor of five channels.
LAYOUTS = {
    "NCL": (Layout("NCL"), (1, 5, 6)),
    "NLC": (Layout("NLC"), (1, 6, 5)),
    "NCHW": (Layout("NCHW"), (1, 5, 3, 4)),
    "NHWC": (Layout("NHWC"), (1, 3, 4, 5)),
    "NCDHW": (Layout("NCDHW"), (1, 5, 2, 3, 4)),
    "NDHWC": (Layout("NDHWC"), (1, 2, 3, 4, 5)),
    "tokens": (Layout("tokens", 0, (3, 4)), (1, 12, 5)),
    "class token": (Layout("tokens", 1, (3, 4)), (1, 13, 5)),
    "tokens around": (Layout("tokens", 2, (3, 4), 1), (1, 15, 5)),
    "tokens of a signal": (Layout("tokens", 1, (6,), 2), (1, 9, 5)),
    "tokens of a volume": (Layout("tokens", 1, (2, 3, 4)), (1, 25, 5)),
    "tokens without a grid": (Layout("tokens", 1), (1, 8, 5)),
    "factored": (Layout("factored", axes=((Y, X), (N,), (Factor("C", 5),))), (12, 1, 5)),
}

#: A layer of tokens behind a class token; the score is read off that, which looks at all of them.
CLASS_TOKEN = nets.model(
    "c = Conv<strides=[2,2]>(x, w) f = Reshape(c, flat) t = Transpose<perm=[0,2,1]>(f) n = Shape(x) "
    "b = Slice(n, zero, one) z = Concat<axis=0>(b, one, four) e = Expand(cls, z) "
    "r = Concat<axis=1>(e, t) q = MatMul(r, u) k = Transpose<perm=[0,2,1]>(q) s = MatMul(r, k) "
    "p = Softmax<axis=-1>(s) m = MatMul(p, r) o = Add(m, r) h = Gather<axis=1>(o, first) y = MatMul(h, v)",
    initializers={
        **nets.weights(w=(4, 3, 2, 2), cls=(1, 1, 4), u=(4, 4), v=(4, 5)),
        "flat": np.array([0, 4, 16]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "four": np.array([4]),
        "first": np.array(0),
    },
)
#: The same with the channels last.
CHANNELS_LAST = nets.model(
    "c = Conv<pads=[1,1,1,1]>(x, w) r = Transpose<perm=[0,2,3,1]>(c) m = MatMul(r, u) t = Tanh(m) "
    "p = ReduceMean<keepdims=0>(t, grid) y = MatMul(p, v)",
    initializers={**nets.weights(w=(4, 3, 3, 3), u=(4, 4), v=(4, 5)), "grid": np.array([1, 2])},
)
SIGNAL = nets.model(
    "c = Conv<pads=[1,1]>(x, w) r = Relu(c) t = Tanh(r) p = GlobalMaxPool(t) f = Flatten(p) y = MatMul(f, v)",
    inputs="float[N,3,9] x",
    initializers=nets.weights(w=(4, 3, 3), v=(4, 5)),
)
MASKED = nets.cnn(
    body="m = Greater(c, b0) q = Where(m, r, b0) p = GlobalMaxPool(q) f = Flatten(p) "
    "y = Gemm<transB=1>(f, v, b)"
)
MASKED.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.2), "b0"))
CHANNELS = 4  #: of every layer here


@pytest.fixture
def device(file):
    """A session that says it runs on a device: CUDA's way, on what every machine has."""
    session = Session(file, "cpu")
    session._device = ("cpu", 0)
    return session


def written(net, layer, folder):
    onnx.save(net, folder / "model.onnx")
    rewrite_onnx(folder / "model.onnx", folder / "model.cam.onnx", layers=layer, tail=True)
    return folder / "model.cam.onnx"


def fixed(net, batch):
    """A network that takes so many images."""
    made = onnx.ModelProto()
    made.CopyFrom(net)
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return made


NETS = {
    "plain": (nets.cnn(), "r"),
    "around": (RESIDUAL, "d"),
    "fixed": (fixed(RESIDUAL, 2), "d"),
    "local": (network(BODIES["what goes around"], (7, 9)), "r"),
    "class token": (CLASS_TOKEN, "r"),
    "channels last": (CHANNELS_LAST, "r"),
    "signal": (SIGNAL, "r"),
}


def image(net, seed=0):
    dims = [d.dim_value for d in net.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(seed).standard_normal((1, *dims)).astype(np.float32)


def bound(path, layer, provider, **options):
    """An explainer whose tail is bound to a device; what is fed to it, and what crosses to the device."""
    explainer = Explainer(path, provider, session_options={"log_severity_level": 4}, **options)
    session = explainer._file.tail(layer).session
    if provider == "cpu":
        session._device = ("cpu", 0)
    fed, crossed = [], []
    run, on = session.run, session.on_device
    session.run = lambda feeds, fetch: fed.append(dict(feeds)) or run(feeds, fetch)

    def counted(value):
        if isinstance(value, np.ndarray):
            crossed.append(value)
        return on(value)

    session.on_device = counted
    return explainer, fed, crossed


# -- the copies ---------------------------------------------------------------------------------------


def parts(shape, rng):
    """Weights of parts of several sizes: of a channel, of a cell, of all of them, and one for all."""
    channels, *grid = shape
    ones = [1] * len(grid)
    cells = int(np.prod(grid))
    yield from (
        (1 - np.eye(k, channels, s)).reshape(k, channels, *ones) for k, s in ((3, -1), (2, 2), (3, 0))
    )
    yield from (np.eye(k, cells, s).reshape(k, 1, *grid) for k, s in ((4, 0), (2, 4)))
    yield from (rng.random((2, channels, *grid)) for _ in range(2))
    yield rng.random((3, channels, *ones))
    yield rng.random((2, 1, *grid[:1], *ones[1:]))
    yield np.zeros((1, 1, *ones))


@pytest.mark.parametrize("name", LAYOUTS)
def test_copies_are_the_grid_weighted_and_the_rest_as_it_was(name, device):
    layout, shape = LAYOUTS[name]
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal(shape).astype(np.float32)
    cells = channels_first(tensor, layout)
    there = on_device(tensor, layout, device)
    assert (there is None) == (name == "factored")
    here = on_host(tensor, layout)
    for weights in parts(cells.shape[1:], rng):
        weights = weights.astype(np.float32)
        expected = put_back(cells * weights, layout, tensor)
        np.testing.assert_allclose(here(weights), expected, rtol=1e-6, err_msg=str(weights.shape))
        if there is not None:
            np.testing.assert_allclose(there(weights).numpy(), expected, rtol=1e-6)


def test_halves_are_weighted_on_the_host(device):
    layout, shape = LAYOUTS["class token"]
    tensor = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    assert on_device(tensor, layout, device) is None
    weights = np.full((2, 1, 3, 4), 0.3, np.float32)
    made = on_host(tensor, layout)(weights)
    assert made.dtype == np.float16
    expected = put_back(channels_first(tensor, layout) * weights, layout, tensor)
    np.testing.assert_array_equal(made, expected)


def test_on_the_host_there_is_no_device(file):
    assert on_device(np.ones((1, 2, 3, 3), np.float32), Layout(), Session(file, "cpu")) is None


# -- the methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_on_a_device_weights_alone_cross(name, tmp_path, provider):
    net, layer = NETS[name]
    path, x = written(net, layer, tmp_path), image(net)
    for method in METHODS[: 2 if name == "signal" else 3]:
        there, fed, crossed = bound(path, layer, provider, max_batch=7)
        record = there.record.tails[0]
        expected = Explainer(path, "cpu", max_batch=7).explain_tensor(x, method, [[3, 1]])
        found = there.explain_tensor(x, method, [[3, 1]])
        scale = np.abs(expected.maps).max()
        assert np.ptp(expected.maps) > 1e-3 * scale
        tolerance = 1e-5 if provider == "cpu" else 1e-2
        np.testing.assert_allclose(found.maps, expected.maps, rtol=0, atol=tolerance * scale, err_msg=method)
        assert found.tail_passes == expected.tail_passes
        tensors = [there.record.layers[0].activations, *(side.name for side in record.sides)]
        assert fed
        assert all(isinstance(feeds[n], ort.OrtValue) for feeds in fed for n in tensors)
        # Each tensor once, and of every copy its weights, of channels or of cells.
        once = [math.prod(fed[0][n].shape()[1:]) for n in tensors]
        cells, places = found.maps[0].size, once[0] // CHANNELS  # a class token has no weight, but a place
        alone = method == "reciprocam" and record.local
        copies = 1 if alone else 1 + CHANNELS if method == "ablationcam" else cells
        each = 1 if alone else CHANNELS if method == "ablationcam" else places
        numbers = sum(a.size for a in crossed if a.dtype == np.float32)
        assert numbers == sum(once) + copies * each


def test_a_side_that_is_no_number_is_repeated_on_the_host(tmp_path, provider):
    path, x = written(MASKED, "r", tmp_path), image(MASKED)
    there, fed, _ = bound(path, "r", provider, max_batch=3)
    found = there.explain_tensor(x, "ablationcam", 2)
    expected = Explainer(path, "cpu").explain_tensor(x, "ablationcam", 2)
    tolerance = 1e-5 if provider == "cpu" else 1e-2
    np.testing.assert_allclose(found.maps, expected.maps, atol=tolerance * np.abs(expected.maps).max())
    assert isinstance(fed[0]["cam.activations.r"], ort.OrtValue)
    assert fed[0]["cam.side.0"].dtype == bool
    assert [len(feeds["cam.side.0"]) for feeds in fed] == [3, 2]


@pytest.mark.parametrize("name", ["half", "windows"])
def test_what_goes_the_hosts_way(name, tmp_path, provider):
    net, layer = (in_half(RESIDUAL), "d") if name == "half" else (WINDOWS, "q")
    path, x = written(net, layer, tmp_path), image(net).astype(np.float16 if name == "half" else np.float32)
    there, fed, _ = bound(path, layer, provider, max_batch=3)
    for method in METHODS:
        expected = Explainer(path, "cpu", max_batch=3).explain_tensor(x, method, 3)
        found = there.explain_tensor(x, method, 3)
        tolerance = 2e-2 if name == "half" or provider != "cpu" else 1e-5
        scale = np.abs(expected.maps).max()
        np.testing.assert_allclose(found.maps, expected.maps, rtol=0, atol=tolerance * scale)
    assert all(isinstance(feeds[f"cam.activations.{layer}"], np.ndarray) for feeds in fed)


@pytest.mark.parametrize("name", NETS)
def test_weights_give_what_whole_copies_give(name, tmp_path):
    net, layer = NETS[name]
    told = []

    def both(activations, tail):
        weights = np.random.default_rng(1).random((9, 1, *activations.shape[1:])).astype(np.float32)
        weights[:, :, 0] = 1
        told.append(tail.times(lambda part: weights[part], 9))
        told.append(tail(lambda part: activations * weights[part], 9))
        told.append(tail.alone())
        eye = np.eye(len(told[-1]), dtype=np.float32).reshape(-1, 1, *activations.shape[1:])
        told.append(tail(lambda part: activations * eye[part], len(eye)))
        return np.zeros((2, *activations.shape[1:]), np.float32)

    method = Method("both", both, ("activations", "tail"), source="ours", formula="M = 0")
    explainer = Explainer(written(net, layer, tmp_path), "cpu", max_batch=4)
    explainer.explain_tensor(image(net), method, [[3, 1]])
    for ours, whole in (told[:2], told[2:]):
        assert np.ptp(whole[:, 0]) > 1e-3 * np.abs(whole).max()
        np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 1, 1, 1), (1, 3, 1, 1), (1, 1, 8, 4)], ids=str)
def test_weights_that_do_not_fit(shape, tmp_path):
    method = replace(
        methods.get("reciprocam"),
        function=lambda activations, tail: tail.times(lambda _: np.ones(shape, np.float32), 1),
    )
    message = (
        r"^The weights of 1 copies of the activations of 'r' have the shape \(.*\): they are to be "
        r"\(1, 4, 8, 8\), or 1 along any axis but the first\.$"
    )
    explainer = Explainer(written(nets.cnn(), "r", tmp_path), "cpu")
    with pytest.raises(TensorError, match=message):
        explainer.explain_tensor(image(nets.cnn()), method)


# -- the tail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 2])
def test_device_tensors_are_cut_and_repeated_there(batch, tmp_path, provider):
    net = fixed(RESIDUAL, batch) if batch else RESIDUAL
    path = written(net, "d", tmp_path)
    explainer, fed, crossed = bound(path, "d", provider)
    tail = explainer._file.tail("d")
    a, side = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    there = [ort.OrtValue.ortvalue_from_numpy(array, *tail.session._device) for array in (a, side)]
    of, classes = np.array([2, 0, 0, 1, 2]), {CLASS_INDEX: np.arange(5)}
    host = Tail(path, explainer.record, "d", providers="cpu")
    expected = host.gradients(a[of], {"cam.side.0": side}, classes, of)
    found = tail.gradients(tail.copies(there[0], of), {"cam.side.0": there[1]}, classes, of)
    for name, array in expected.items():
        tolerance = 1e-5 if provider == "cpu" else 1e-2
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance)
    assert len(fed) == (3 if batch else 1)
    assert all(
        isinstance(feeds[n], ort.OrtValue) for feeds in fed for n in ("cam.activations.d", "cam.side.0")
    )
    assert all(array.dtype == np.int64 for array in crossed)  # which of them


def test_many_targets_of_an_image_are_told_of_its_activations_once(tmp_path, provider):
    path, x = written(RESIDUAL, "d", tmp_path), image(RESIDUAL)
    there, fed, crossed = bound(path, "d", provider)
    target = [[4, 2, 0, 1]]
    found = there.explain_tensor(x, "gradcam", target)
    expected = Explainer(path, "cpu").explain_tensor(x, "gradcam", target)
    tolerance = 1e-5 if provider == "cpu" else 1e-2
    np.testing.assert_allclose(found.maps, expected.maps, atol=tolerance * np.abs(expected.maps).max())
    assert [feeds["cam.activations.d"].shape()[0] for feeds in fed] == [3]
    assert [a.shape for a in crossed if a.dtype == np.float32] == [(1, 4, 8, 8)] * 2  # and what goes around


def test_windows_of_an_image_follow_each_other(tmp_path):
    path = written(WINDOWS, "q", tmp_path)
    explainer, *_ = bound(path, "q", "cpu")
    tail = explainer._file.tail("q")
    a = np.random.default_rng(0).standard_normal((3 * 4, 16, 4)).astype(np.float32)
    of = [1, 1, 0, 2, 2]
    picked = tail.copies(a, of)
    np.testing.assert_array_equal(picked.numpy(), a.reshape(3, 4, 16, 4)[of].reshape(20, 16, 4))
    halves = tail.copies(a.astype(np.float16), of)  # on the host
    np.testing.assert_array_equal(halves, picked.numpy().astype(np.float16))
    for wrong in (-1, 3):
        message = rf"^The activations of 'q' are of 3 images, 0 to 2, and `of` names {wrong}\.$"
        with pytest.raises(TensorError, match=message):
            tail.copies(a, [1, wrong, 0])
    some = tail.copies(a, [2, 0])  # fewer than there are: what is left out need not cross
    np.testing.assert_array_equal(some, a.reshape(3, 4, 16, 4)[[2, 0]].reshape(8, 16, 4))
