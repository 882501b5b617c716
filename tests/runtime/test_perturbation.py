"""Methods that run the model on masked copies, against brute force on a model whose values NumPy knows."""

import types

import cv2
import numpy as np
import pytest

import onnxcam
from onnxcam import Explainer, errors, methods
from onnxcam.perturbation import min_max

NEEDS_NO_LAYER = ["occlusion", "rise"]
MASKING = ["iscam", "scorecam", "scorecam:pgc", "scorecam:torchcam", "sscam"]


def opened(model, **options):
    return Explainer(model.graph_bytes(), ["cpu"], **options)


def probabilities(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def enlarged(channel, size):
    return cv2.resize(np.ascontiguousarray(channel), (size, size), interpolation=cv2.INTER_LINEAR)


def by_corners(channel, size):
    """Bilinear, the corners' centres kept: written out pixel by pixel."""
    h, w = channel.shape
    out = np.zeros((size, size), np.float64)
    for i in range(size):
        for j in range(size):
            y, x = i * (h - 1) / (size - 1), j * (w - 1) / (size - 1)
            top, left = min(int(y), h - 2), min(int(x), w - 2)
            b, a = y - top, x - left
            cell = channel[top : top + 2, left : left + 2]
            out[i, j] = (1 - b) * ((1 - a) * cell[0, 0] + a * cell[0, 1]) + b * (
                (1 - a) * cell[1, 0] + a * cell[1, 1]
            )
    return out


def unit(mask):
    return (mask - mask.min()) / (mask.max() - mask.min() + 1e-8) if np.ptp(mask) else np.zeros_like(mask)


def softmax(values):
    e = np.exp(values - values.max())
    return e / e.sum()


@pytest.mark.parametrize(
    "form", [{}, {"nhwc": True}, {"batch": 2}, {"softmax": True}, {"layout": "NHWC"}], ids=str
)
def test_scorecam_by_brute_force(tiny, form):
    model = tiny(**form)
    x, classes, size = model.x(2), [4, 1], 12
    explainer = opened(model)
    activations = model.forward(x)["top"]

    def scores(masks, i):
        """(K, classes) behind masks: logits, or probabilities where the model ends in a softmax."""
        values = model.forward(x[i] * np.float32(masks)[:, None])
        return values["probs" if model.softmax else "logits"]

    for i, c in enumerate(classes):
        a = activations[i]
        own = scores(np.stack([unit(enlarged(k, size)) for k in a]), i)
        varied = np.array([np.ptp(k) > 0 for k in a])
        weights = {
            "scorecam": varied * (own if model.softmax else probabilities(own))[:, c],
            "scorecam:pgc": softmax(scores(np.stack([unit(by_corners(k, size)) for k in a]), i)[:, c]),
            "scorecam:torchcam": softmax(scores(np.stack([enlarged(unit(k), size) for k in a]), i)[:, c]),
        }
        for name, w in weights.items():
            ours = explainer.explain_tensor(model.fed(x), name, classes).maps[i]
            expected = np.einsum("k,khw->hw", w, a)
            np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)


def test_the_most_telling_channels(tiny):
    model = tiny()
    x = model.x(1)
    a = model.forward(x)["top"][0]
    spread = a.reshape(len(a), -1).std(axis=1)
    kept = np.sort(np.argsort(-spread)[:2])
    few = opened(model).explain_tensor(x, "scorecam", 3, top=2)
    same = opened(model).explain_tensor(x, "scorecam", 3, channels=kept.tolist())
    np.testing.assert_allclose(few.maps, same.maps, rtol=1e-6)
    assert few.passes == 1 + 2
    with pytest.raises(
        errors.MethodError, match=r"^top is how many channels take part, at least 1, not 0\.$"
    ):
        opened(model).explain_tensor(x, "scorecam", top=0)


@pytest.mark.parametrize(("name", "runs"), [("scorecam", 2), ("scorecam:pgc", 3), ("scorecam:torchcam", 3)])
def test_channels_that_are_constant_share_a_run(name, runs):
    rng = np.random.default_rng(0)
    a = rng.random((5, 3, 4), dtype=np.float32)
    a[1], a[2], a[4] = 0.0, 0.7, -0.2
    weights = rng.normal(size=(2, 3, 4))
    counts = []

    def masked(make, count, *, stretch=None, of="output"):
        masks = make(slice(0, count))
        if stretch is not None:
            masks = min_max(masks, stretch)
        counts.append(count)
        return np.einsum("khw,thw->kt", masks, weights)

    model = types.SimpleNamespace(sides=(3, 4), masked=masked)
    result = methods.get(name).function(a, model)
    assert counts == [runs]
    scores = np.einsum("khw,thw->kt", [unit(k) for k in a], weights)
    for t in range(2):
        w = scores[:, t] * [1, 0, 0, 1, 0] if name == "scorecam" else softmax(scores[:, t])
        np.testing.assert_allclose(result[t], np.einsum("k,khw->hw", w, a), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["scorecam", "scorecam:pgc", "scorecam:torchcam"])
def test_where_all_channels_are_constant_there_is_nothing_to_see(name, tiny):
    result = opened(tiny()).explain_tensor(np.zeros((1, 3, 12, 12), np.float32), name, 2)
    assert result.zero.all()
    assert not result.heatmaps.any()


def test_iscam_and_sscam_by_brute_force(tiny):
    model = tiny()
    x, c = model.x(1, seed=4), 2
    a = model.forward(x)["top"][0]
    masks = np.stack([enlarged(unit(k), 12) for k in a])

    def logit(inputs):
        return model.forward(np.float32(inputs))["logits"][:, c]

    for first, factors in [(0, [0, 0.25, 0.75, 1.5]), (1, [0.25, 0.75, 1.5, 2.5])]:
        w = softmax(np.mean([logit(x * (f * masks)[:, None]) for f in factors], axis=0))
        ours = opened(model).explain_tensor(x, "iscam", c, intervals=4, first=first)
        np.testing.assert_allclose(ours.maps[0], np.einsum("k,khw->hw", w, a), rtol=1e-5)
    draws = [np.random.default_rng((9, k)) for k in range(len(a) * 3)]
    noise = [0.5 * rng.standard_normal((12, 12), dtype=np.float32) for rng in draws]
    w = softmax(
        np.array(
            [np.mean([logit(x * (m + noise[3 * k + i]))[0] for i in range(3)]) for k, m in enumerate(masks)]
        )
    )
    ours = opened(model).explain_tensor(x, "sscam", c, samples=3, sigma=0.5, seed=9)
    np.testing.assert_allclose(ours.maps[0], np.einsum("k,khw->hw", w, a), rtol=1e-5)
    draws = [np.random.default_rng((9, k)) for k in range(len(a) * 2)]
    noise = [rng.standard_normal((3, 12, 12), dtype=np.float32) for rng in draws]
    w = softmax(
        np.array(
            [np.mean([logit(x * m + noise[2 * k + i])[0] for i in range(2)]) for k, m in enumerate(masks)]
        )
    )
    ours = opened(model).explain_tensor(x, "sscam", c, samples=2, sigma=1.0, seed=9, on="input")
    np.testing.assert_allclose(ours.maps[0], np.einsum("k,khw->hw", w, a), rtol=1e-5)
    with pytest.raises(
        errors.MethodError, match=r"^The noise of sscam is on 'mask' or on 'input', not on 'x'\.$"
    ):
        opened(model).explain_tensor(x, "sscam", on="x")


def test_occlusion_by_brute_force(tiny):
    model = tiny()
    x, c, baseline = model.x(1), 1, 0.25
    base = model.forward(x)["logits"][0, c]
    total, times = np.zeros((12, 12)), np.zeros((12, 12))
    for i in (0, 2, 4, 6, 8):
        for j in (0, 2, 4, 6, 8):
            covered = x.copy()
            covered[:, :, i : i + 4, j : j + 4] = baseline
            total[i : i + 4, j : j + 4] += base - model.forward(covered)["logits"][0, c]
            times[i : i + 4, j : j + 4] += 1
    result = opened(model).explain_tensor(x, "occlusion", c, window=1 / 3, stride=0.5, baseline=baseline)
    np.testing.assert_allclose(result.maps[0], total / times, atol=1e-5)
    assert result.passes == 1 + 26
    assert list(result.layer_maps) == ["input"]


def test_the_last_window_ends_with_the_image(tiny):
    result = opened(tiny()).explain_tensor(tiny().x(1), "occlusion", 1, window=5 / 12, stride=0.8)
    assert np.isfinite(result.maps).all()  # every pixel is covered
    assert result.passes == 1 + 1 + 3 * 3  # 0, 4, 7


@pytest.mark.parametrize("name", NEEDS_NO_LAYER)
def test_what_alone_is_bright_is_the_hottest(name, tiny):
    """One spot of an otherwise black image decides how the scores differ from those of black."""
    model = tiny()
    x = np.zeros((1, 3, 12, 12), np.float32)
    x[:, :, 7:10, 2:5] = 3
    logits = model.forward(np.concatenate([x, np.zeros_like(x)]))["logits"]
    gain = probabilities(logits)[0] - probabilities(logits)[1]
    options = {"masks": 600, "cells": 6} if name == "rise" else {"window": 2 / 12}
    hot = opened(model).explain_tensor(x, name, int(gain.argmax()), **options).heatmaps[0]
    assert hot.shape == (12, 12)
    y, x = np.unravel_index(hot.argmax(), hot.shape)
    assert 6 <= y <= 10
    assert 1 <= x <= 5


def test_rise_is_its_definition(tiny):
    model = tiny(softmax=True)
    x = model.x(1)
    kept = []

    def drawn(masked):
        """The masks that RISE draws, and their scores, through what it is given."""
        masks = []

        def spied(make, count, **how):
            masks.extend(make(slice(0, count)))
            return masked.masked(make, count, **how)

        spy = types.SimpleNamespace(sides=masked.sides, batch=masked.batch, masked=spied)
        result = methods.get("rise").function(spy, masks=60, cells=4, probability=0.3, seed=3)
        kept.append((np.stack(masks), result))
        return result

    spy = methods.Method("spy", drawn, ("masked",), "s", "M = RISE")
    opened(model).explain_tensor(x, spy, [[0, 3]])
    masks, result = kept[0]
    assert masks.shape == (60, 12, 12)
    assert masks.min() == 0
    assert masks.max() == 1
    assert abs(masks.mean() - 0.3) < 0.05
    probs = model.forward(x * masks[:, None])["probs"]
    for t, c in enumerate((0, 3)):
        expected = np.einsum("k,khw->hw", probs[:, c], masks) / (60 * 0.3)
        np.testing.assert_allclose(result[t], expected, rtol=1e-4)


@pytest.mark.parametrize("name", [*NEEDS_NO_LAYER, *MASKING])
def test_many_targets_share_the_runs(name, tiny):
    model = tiny()
    x = model.x(2)
    options = {"rise": {"masks": 20}, "sscam": {"samples": 2}, "occlusion": {"window": 0.5}}.get(name, {})
    together = opened(model).explain_tensor(x, name, [[0, 3, 1], [2]], **options)
    alone = [
        opened(model).explain_tensor(x[i : i + 1], name, c, **options)
        for i, c in ((0, 0), (0, 3), (0, 1), (1, 2))
    ]
    for row, one in enumerate(alone):
        np.testing.assert_allclose(together.maps[row], one.maps[0], rtol=1e-4, atol=1e-6)
    copies = alone[0].passes - 1 + alone[3].passes - 1
    assert together.passes == 3 + 1 + copies
    np.testing.assert_allclose(together.scores, [one.scores[0] for one in alone], rtol=1e-5)


@pytest.mark.parametrize("max_batch", [1, 5, 64])
def test_never_more_than_a_batch_of_copies(max_batch, tiny, monkeypatch):
    model = tiny()
    seen = []
    explainer = opened(model, max_batch=max_batch)
    run = explainer._session.run
    monkeypatch.setattr(
        explainer._session, "run", lambda feeds, fetch: seen.append(len(feeds["image"])) or run(feeds, fetch)
    )
    told = []
    result = explainer.explain_tensor(
        model.x(1), "rise", 0, masks=33, progress=lambda done, of: told.append((done, of))
    )
    assert max(seen) == min(max_batch, 33)
    assert sum(seen) == result.passes == 34
    assert told[-1] == (33, 33)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    other = opened(model, max_batch=7).explain_tensor(model.x(1), "rise", 0, masks=33)
    np.testing.assert_allclose(result.maps, other.maps, rtol=1e-4)


def test_a_mask_that_makes_the_model_overflow(tiny):
    explainer = opened(tiny())
    blow = methods.Method(
        "blow",
        lambda masked: masked.inputs(lambda part: np.full((1, 3, 12, 12), np.float32(3e38)), 1),
        ("masked",),
        "s",
        "M = 0",
    )
    with pytest.raises(
        errors.TensorError, match=r"score of a changed copy of the image is not finite: the model"
    ):
        explainer.explain_tensor(tiny().x(1), blow)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "rise",
            {"masks": 0},
            r"RISE needs at least one mask, one cell and a probability between 0 and 1, not 0",
        ),
        ("sscam", {"samples": 0}, r"^sscam needs at least one sample and a sigma of at least 0, not 0 and 2"),
        (
            "sscam",
            {"sigma": -1},
            r"^sscam needs at least one sample and a sigma of at least 0, not 35 and -1",
        ),
        ("iscam", {"intervals": 0}, r"^iscam needs at least one interval, not 0\.$"),
        ("scorecam", {"top": 2.5}, r"^top is how many channels take part, at least 1, not 2\.5\.$"),
        ("rise", {"probability": 1}, r"a probability between 0 and 1, not 4000, 7 and 1\."),
        ("occlusion", {"window": 0}, r"of occlusion are shares above 0 and up to 1, not 0 and 0\.5\."),
        (
            "occlusion",
            {"sride": 1},
            r"'occlusion' has no option 'sride'\. Nearest: 'stride'\. It has: window",
        ),
    ],
)
def test_options_that_make_no_sense(name, options, message, tiny):
    with pytest.raises(errors.MethodError, match=message):
        opened(tiny()).explain_tensor(tiny().x(1), name, **options)


def test_eigen_smoothing_is_for_weighted_channels(tiny):
    with pytest.raises(
        errors.MethodError, match=r"'rise' come from runs of the model, so there is nothing for eigen"
    ):
        opened(tiny()).explain_tensor(tiny().x(1), "rise", smooth="eigen")


def test_noise_with_a_method_that_runs_the_model(tiny):
    model = tiny()
    noise = onnxcam.smoothing.Noise(samples=3, sigma=0.1, seed=2)
    x = model.x(1)
    result = opened(model).explain_tensor(x, "scorecam", 4, smooth=noise)
    from onnxcam.smoothing import noise_like

    copies = [x + noise_like(x, 0.1, 2 + k) for k in range(3)]
    expected = np.mean([opened(model).explain_tensor(c, "scorecam", 4).maps for c in copies], axis=0)
    np.testing.assert_allclose(result.maps, expected, rtol=1e-4)


def test_min_max():
    masks = np.array([[[1.0, 3.0]], [[2.0, 2.0]], [[-1.0, 0.0]]], np.float32)
    np.testing.assert_array_equal(min_max(masks, 0.0), [[[0, 1]], [[0, 0]], [[0, 1]]])
    np.testing.assert_allclose(min_max(masks, 2.0)[0], [[0, 0.5]])


@pytest.mark.parametrize("form", [{}, {"nhwc": True}, {"half": True}, {"batch": 2}], ids=str)
@pytest.mark.parametrize("name", [*NEEDS_NO_LAYER, *MASKING])
def test_copies_that_are_made_on_the_device_are_the_same(name, form, tiny, provider):
    """As on CUDA: everything bound, masks alone handed over. On the CPU the same graphs run."""
    model = tiny(**form)
    x = model.fed(model.x(2))
    options = {"rise": {"masks": 20}, "sscam": {"samples": 2}, "occlusion": {"baseline": 0.5}}.get(name, {})
    if name == "sscam":
        options["on"] = "input"
    expected = opened(model).explain_tensor(x, name, [[0, 3], [2]], **options)
    bound = Explainer(model.graph_bytes(), [provider], max_batch=5)
    if provider == "cpu":
        bound._session._device = ("cpu", 0)
    made = []
    beside = bound._session.beside
    bound._session.beside = lambda graph: made.append(graph) or beside(graph)
    result = bound.explain_tensor(x, name, [[0, 3], [2]], **options)
    assert made
    tolerance = 2e-2 if model.half else 1e-4 if provider == "cpu" else 1e-2
    np.testing.assert_allclose(
        result.maps, expected.maps, rtol=0, atol=tolerance * np.abs(expected.maps).max()
    )


def test_the_graphs_beside_are_what_the_exporter_says():
    onnx = pytest.importorskip("onnx")
    from pathlib import Path

    from onnxcam.export.mask_graphs import GRAPHS, build

    for name, text in GRAPHS.items():
        assert onnx.load(Path(onnxcam.__file__).with_name(name)) == build(text)


def test_inputs_without_places():
    """A table has columns, and no place that could be hidden."""
    onnx = pytest.importorskip("onnx")
    text = '<ir_version: 8, opset_import: ["": 18]> t (float[N,4] x) => (float[N,4] y) { y = Softmax(x) }'
    box = Explainer(onnx.parser.parse_model(text).SerializeToString(), ["cpu"], black_box=True)
    message = (
        r"^The method 'rise' hides places of the input, and 'x', float32 \(N, 4\), has none: it is for images"
    )
    with pytest.raises(errors.MethodError, match=message):
        box.explain_tensor(np.ones((1, 4), np.float32), "rise")


@pytest.mark.parametrize("name", ["scorecam", "iscam"])
def test_activations_that_are_no_numbers(name, tiny, monkeypatch):
    explainer = opened(tiny())
    run = explainer._session.run

    def broken(feeds, fetch):
        found = run(feeds, fetch)
        for key in found:
            if key.startswith("cam.activations"):
                found[key] = found[key].copy()
                found[key][:, 2, 1, 1] = np.nan
        return found

    monkeypatch.setattr(explainer._session, "run", broken)
    with pytest.raises(
        errors.TensorError, match=r"^The activations of the layer 'top' hold NaN or infinity: the"
    ):
        explainer.explain_tensor(tiny().x(1), name)
    with pytest.raises(errors.TensorError, match=r"^The map of image 0 of the batch is not finite"):
        explainer.explain_tensor(tiny().x(1), "gradcam")


def test_signals_and_volumes_are_masked_along_all_their_axes():
    pytest.importorskip("onnx")
    from .. import nets

    head = "r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v)"
    for axes, kernel, shape in (("L", "[1,1]", (9,)), ("D,H,W", "[1,1,1,1,1,1]", (4, 5, 6))):
        model = nets.model(
            f"c = Conv<pads={kernel}>(x, w, b) {head}",
            f"float[N,3,{axes}] x",
            "float[N,5] y",
            nets.weights(w=(4, 3, *[3] * len(shape)), b=(4,), v=(5, 4)),
        )
        box = Explainer(model.SerializeToString(), ["cpu"], black_box=True)
        x = np.random.default_rng(0).standard_normal((1, 3, *shape)).astype(np.float32)
        for name, options in (("rise", {"masks": 20, "cells": 3}), ("occlusion", {"window": 0.5})):
            result = box.explain_tensor(x, name, 1, **options)
            assert result.heatmaps.shape == (1, *shape)
            assert result.heatmaps.max() > 0.99
