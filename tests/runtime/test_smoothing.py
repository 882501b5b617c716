"""Explanations of changed inputs: what is changed, what is undone, and what is averaged."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from onnxcam import Explainer, methods, postprocess, projection
from onnxcam.contract import BOX, REFERENCE, REGION
from onnxcam.errors import InputError, MethodError
from onnxcam.smoothing import Change, Noise, Smoothing, asked, changed, noise_like, resolve, undone
from onnxcam.targets import Targets


def opened(model, **options):
    return Explainer(model.graph_bytes(), ["cpu"], **options)


def test_what_can_be_asked_for():
    assert resolve(None) == Smoothing(((Change(),),), eigen=False)
    tta = resolve("tta")
    assert len(tta.groups) == 6
    assert {(c.flip, c.factor) for (c,) in tta.groups} == set(
        itertools.product([False, True], [0.9, 1.0, 1.1])
    )
    (noisy,) = resolve("noise").groups
    assert [(c.sigma, c.seed) for c in noisy] == [(0.15, k) for k in range(8)]
    (noisy,) = resolve(Noise(2, 0.3, seed=5)).groups
    assert [(c.sigma, c.seed) for c in noisy] == [(0.3, 5), (0.3, 6)]
    assert resolve("eigen") == Smoothing(eigen=True)
    for order in itertools.permutations(["tta", Noise(3), "eigen"]):
        all_three = resolve(order)
        assert all_three.eigen
        assert [len(group) for group in all_three.groups] == [3] * 6
        assert {(c.flip, c.factor) for group in all_three.groups for c in group} == {
            (c.flip, c.factor) for (c,) in tta.groups
        }


@pytest.mark.parametrize(
    ("smooth", "message"),
    [
        ("tta2", r"^No smoothing 'tta2'\. Nearest: 'tta'\.? There are: tta, noise, eigen\.$"),
        (["tta", 3], r"^No smoothing 3\. There are: tta, noise, eigen\.$"),
        (Noise(0), r"^Noise needs at least one sample, a sigma above 0 and a seed .* not 0, 0\.15 and 0\.$"),
        (Noise(2.5), r"^Noise needs .* not 2\.5, 0\.15 and 0\.$"),
        (Noise(2, "much"), r"^Noise needs .* not 2, 'much' and 0\.$"),
        (Noise(2, np.inf), r"^Noise needs .* not 2, inf and 0\.$"),
        (Noise(2, seed=-1), r"^Noise needs .* a seed of at least 0, not 2, 0\.15 and -1\.$"),
        (3, r"^No smoothing 3\. There are: tta, noise, eigen\.$"),
        (Noise(4, 0.0), r"not 4, 0\.0 and 0\.$"),
        (Noise(4, float("nan")), r"not 4, nan and 0\.$"),
    ],
)
def test_what_cannot(smooth, message, tiny):
    with pytest.raises(InputError, match=message):
        resolve(smooth)
    with pytest.raises(InputError, match=message):
        opened(tiny()).explain_tensor(tiny().x(), smooth=smooth)


@pytest.mark.parametrize(("shape", "channels", "columns"), [((2, 3, 4, 5), 1, 3), ((2, 4, 5, 3), 3, 2)])
def test_a_flip_is_of_the_columns_and_undoes_itself(shape, channels, columns):
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    flipped = changed(x, Change(flip=True), channels)
    np.testing.assert_array_equal(flipped, np.flip(x, columns))
    np.testing.assert_array_equal(changed(flipped, Change(flip=True), channels), x)
    assert flipped.flags["C_CONTIGUOUS"]
    maps = x[:, 0]
    np.testing.assert_array_equal(
        undone(undone(maps, Change(flip=True)), Change(flip=True)), undone(maps, Change())
    )


def test_a_factor_keeps_the_dtype():
    x = np.random.default_rng(1).random((2, 3, 4, 5)).astype(np.float16)
    scaled = changed(x, Change(factor=1.1), 1)
    assert scaled.dtype == np.float16
    np.testing.assert_allclose(scaled, x * 1.1, rtol=1e-3)


def test_images_of_bytes_are_rounded_and_cut():
    """A model that takes bytes: nothing wraps around, and no factor becomes zero."""
    x = np.array([0, 7, 100, 200, 255], np.uint8).reshape(1, 1, 1, 5)
    np.testing.assert_array_equal(changed(x, Change(factor=0.9), 1).ravel(), [0, 6, 90, 180, 230])
    np.testing.assert_array_equal(changed(x, Change(factor=1.1), 1).ravel(), [0, 8, 110, 220, 255])
    wide = np.resize(x, (1, 3, 32, 32))
    noised = changed(wide, Change(sigma=0.2, seed=1), 1)
    assert noised.dtype == np.uint8
    exact = wide + noise_like(wide, 0.2, 1)
    np.testing.assert_allclose(noised, np.clip(exact, 0, 255), atol=0.5)
    assert exact.min() < -20


def test_noise_is_the_same_whatever_is_beside_it():
    rng = np.random.default_rng(2)
    x = rng.random((4, 3, 6, 7), dtype=np.float32) * np.array([1, 2, 10, 0], np.float32).reshape(4, 1, 1, 1)
    together = noise_like(x, 0.2, 3)
    for i in range(4):
        np.testing.assert_array_equal(together[i : i + 1], noise_like(x[i : i + 1], 0.2, 3))
    assert not together[3].any()  # an image without contrast has no range
    np.testing.assert_array_equal(noise_like(x, 0.2, 3), together)
    assert np.abs(noise_like(x, 0.2, 4) - together).max() > 0.1


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_noise_has_the_share_of_the_range(sigma):
    x = np.random.default_rng(3).uniform(-2, 6, (2, 3, 64, 64)).astype(np.float32)
    noise = noise_like(x, sigma, 0)
    for image, drawn in zip(x, noise, strict=True):
        assert drawn.std() == pytest.approx(sigma * np.ptp(image), rel=0.02)
        assert abs(drawn.mean()) < 0.02 * sigma * np.ptp(image)
    np.testing.assert_allclose(noise, sigma / 0.1 * noise_like(x, 0.1, 0), rtol=1e-4, atol=1e-6)
    assert changed(x.astype(np.float16), Change(sigma=sigma), 1).dtype == np.float16


def test_places_are_flipped_with_the_image():
    mask = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    given = Targets(
        np.array([0, 1]),
        np.array([2, 2]),
        ({BOX: np.array([1, 2, 4, 8], np.float32)}, {REGION: mask, REFERENCE: np.array([1.0, 2])}),
    )
    assert asked(given, Change(factor=0.9), 10) is given
    flipped = asked(given, Change(flip=True), 10)
    np.testing.assert_array_equal(flipped.feeds[0][BOX], [6, 2, 9, 8])
    np.testing.assert_array_equal(flipped.feeds[1][REGION], mask[:, ::-1])
    np.testing.assert_array_equal(flipped.feeds[1][REFERENCE], [1, 2])
    twice = asked(flipped, Change(flip=True), 10)
    np.testing.assert_array_equal(twice.feeds[0][BOX], given.feeds[0][BOX])
    np.testing.assert_array_equal(given.feeds[0][BOX], [1, 2, 4, 8])
    plain = Targets(np.array([0]), np.array([2]))
    assert asked(plain, Change(flip=True), 10) is plain


@pytest.mark.parametrize("form", [{}, {"nhwc": True}, {"layout": "tokens"}, {"batch": 2}], ids=str)
def test_tta_is_the_mean_heatmap_of_six_copies(tiny, form):
    """By hand, on an asymmetric image; the class is that of the image as it is."""
    model = tiny(**form)
    x = model.x(2)
    result = opened(model).explain_tensor(model.fed(x), smooth="tta")
    classes = model.forward(x)["logits"].argmax(1)
    assert result.class_ids.tolist() == classes.tolist()
    each = []
    for flip, factor in itertools.product([False, True], [0.9, 1.0, 1.1]):
        copy = factor * (x[..., ::-1] if flip else x)
        maps = model.gradcam(copy.astype(np.float32), classes)
        each.append(postprocess.heatmaps([maps[..., ::-1] if flip else maps], (12, 12)))
    np.testing.assert_allclose(result.heatmaps, np.mean(each, axis=0), atol=2e-3)
    plain = opened(model).explain_tensor(model.fed(x))
    np.testing.assert_allclose(result.outputs["scores"], plain.outputs["scores"], atol=1e-6)
    np.testing.assert_allclose(result.scores, plain.scores, atol=1e-6)
    assert result.heatmaps.max() < 1  # no re-scaling after the mean
    assert np.abs(result.heatmaps - plain.heatmaps).max() > 0.01


def test_noise_averages_raw_maps(tiny):
    model = tiny()
    x = model.x(2)
    result = opened(model).explain_tensor(x, target=[1, 3], smooth=Noise(3, 0.2, seed=4))
    classes = np.array([1, 3])
    raw = [model.gradcam(x + noise_like(x, 0.2, 4 + k), classes) for k in range(3)]
    np.testing.assert_allclose(result.maps, np.mean(raw, axis=0), atol=1e-4)
    np.testing.assert_allclose(
        result.heatmaps, postprocess.heatmaps([np.mean(raw, axis=0)], (12, 12)), atol=2e-3
    )
    np.testing.assert_allclose(result.outputs["scores"], model.forward(x)["logits"], atol=1e-4)


@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_noise_is_the_same_in_any_batch(tiny, max_batch):
    model = tiny()
    x = model.x(3)
    together = opened(model, max_batch=max_batch).explain_tensor(x, smooth="noise").maps
    apart = [opened(model).explain_tensor(x[i : i + 1], smooth="noise").maps for i in range(3)]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)


def test_eigen_is_the_first_component_of_the_products(tiny):
    model = tiny(layers=("top", "features"))
    x, classes = model.x(2), np.array([1, 3])
    values, gradients = model.forward(x), model.gradients(x, classes)
    for name, layer in itertools.product(["gradcam", "gradcam++", "layercam"], ["top", "features"]):
        result = opened(model).explain_tensor(x, name, [1, 3], layer, smooth="eigen")
        products = methods.get(name).products(values[layer], gradients[layer])
        expected = projection.first_component(products)
        np.testing.assert_allclose(
            result.maps, expected, atol=1e-3 * np.abs(expected).max(), err_msg=f"{name} {layer}"
        )


@pytest.mark.parametrize("name", ["eigencam", "fem", "activation_mean", "smoothgradcam++"])
def test_eigen_needs_weighted_channels(tiny, name):
    message = (
        rf"^The maps of '{name.replace('+', '.')}' are no sum of weighted channels, so .* eigen smoothing"
    )
    with pytest.raises(MethodError, match=message):
        opened(tiny()).explain_tensor(tiny().x(), name, smooth="eigen")


def test_all_together_and_any_method(tiny):
    model = tiny(layers=("top", "features"))
    x = model.x(2)
    result = opened(model).explain_tensor(x, smooth=["tta", Noise(2), "eigen"])
    assert result.heatmaps.shape == (2, 12, 12)
    assert np.isfinite(result.heatmaps).all()
    for name in ("fem", "eigencam", "smoothgradcam++", "refinecam"):
        assert opened(model).explain_tensor(x, name, smooth="tta").heatmaps.max() > 0


def test_scaling_over_a_batch_compares(tiny):
    model = tiny()
    x = model.x(3)
    x[1] *= 0.3
    alone = opened(model).explain_tensor(x, target=2)
    together = opened(model).explain_tensor(x, target=2, scale="batch")
    np.testing.assert_array_equal(alone.maps, together.maps)
    raw = postprocess.resize(postprocess.scale(np.maximum(alone.maps, 0), "batch"), (12, 12))
    np.testing.assert_allclose(together.heatmaps, postprocess.scale(raw, "batch"), atol=1e-6)
    assert together.heatmaps.max() == pytest.approx(1, abs=1e-5)
    peaks = together.heatmaps.max(axis=(1, 2))
    assert peaks.min() < 0.9
    assert np.argsort(peaks).tolist() == np.argsort(np.maximum(alone.maps, 0).max(axis=(1, 2))).tolist()
    with pytest.raises(InputError, match=r"^No scaling 'batches'\. Nearest: 'batch'"):
        opened(model).explain_tensor(x, scale="batches")


def test_photos_are_scaled_alike(tiny):
    rng = np.random.default_rng(5)
    photos = [
        rng.integers(0, 256, (20, 30, 3), dtype=np.uint8),
        rng.integers(90, 140, (40, 24, 3), dtype=np.uint8),
    ]
    alike = opened(tiny()).explain(photos, target=2, scale="batch").heatmaps
    assert [h.shape for h in alike] == [(20, 30), (40, 24)]
    peaks = [h.max() for h in alike]
    assert max(peaks) == pytest.approx(1, abs=1e-5)
    assert min(peaks) < 0.98


def test_chosen_channels(tiny):
    model = tiny()
    x, classes = model.x(2), np.array([1, 3])
    a, g = model.forward(x)["top"], model.gradients(x, classes)["top"]
    expected = np.einsum("bk,bkhw->bhw", g.mean((2, 3))[:, [4, 0]], a[:, [4, 0]])
    for channels in ([4, 0], (0, 4), np.array([4, 0]), [-2, 0]):
        result = opened(model).explain_tensor(x, target=[1, 3], channels=channels)
        np.testing.assert_allclose(result.maps, expected, atol=1e-4)
    one = opened(model).explain_tensor(x, "smoothgradcam++", [1, 3], channels=[4], sigma=0.0, samples=1)
    assert one.maps.shape == (2, 6, 6)
    ratio = one.maps[a[:, 4] > 1e-3] / a[:, 4][a[:, 4] > 1e-3]
    assert np.ptp(ratio[: (a[0, 4] > 1e-3).sum()]) < 1e-3  # a multiple of that channel


@pytest.mark.parametrize("channels", [[6], [0, -7]])
def test_channels_that_are_not_there(tiny, channels):
    with pytest.raises(MethodError, match=r"^The layer 'top' has no channel (6|-7): it has 6, 0 to 5\.$"):
        opened(tiny()).explain_tensor(tiny().x(), channels=channels)


@pytest.mark.parametrize("channels", [[], 3, "a", ["a"], [0.5], [[0]]], ids=repr)
def test_channels_that_are_no_numbers(tiny, channels):
    with pytest.raises(InputError, match=r"^channels are numbers of the layer's channels, such as \[0, 17\]"):
        opened(tiny()).explain_tensor(tiny().x(), "scorecam", channels=channels)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("ablationcam", "runs what follows all of them"),
        ("reciprocam", "runs what follows all of them"),
        ("occlusion", "looks at no layer"),
    ],
)
def test_channels_of_methods_that_take_none(tiny, method, why):
    with pytest.raises(MethodError, match=f"^The method '{method}' {why}: leave channels out"):
        opened(tiny()).explain_tensor(tiny().x(), method, channels=[0])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("fem", {"kk": 2}, r"^The method 'fem' has no option 'kk'\. Nearest: 'k'\.? It has: k \(2\.0\)\.$"),
        ("gradcam", {"k": 2}, r"^The method 'gradcam' has no option 'k'\. It has: none\.$"),
        (
            "kpcacam",
            {"kernell": "rbf"},
            r"Nearest: 'kernel'\.? It has: kernel \(sigmoid\), gamma \(None\)\.$",
        ),
    ],
)
def test_unknown_options(tiny, method, options, message):
    with pytest.raises(MethodError, match=message):
        opened(tiny()).explain_tensor(tiny().x(), method, **options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rise", {"masks": 2.5}, "'masks' of the method 'rise' is a whole number, such as 4000, not 2.5."),
        ("rise", {"masks": True}, "'masks' of the method 'rise' is a whole number, such as 4000, not True."),
        ("rise", {"masks": "many"}, "is a whole number, such as 4000, not 'many'."),
        (
            "rise",
            {"seed": -1},
            "'seed' of the method 'rise' is a whole number, 0 or more, such as 0, not -1.",
        ),
        ("randomcam", {"seed": None}, "is a whole number, 0 or more, such as 0, not None."),
        ("fem", {"k": float("nan")}, "'k' of the method 'fem' is a finite number, such as 2.0, not nan."),
        ("fem", {"k": "2"}, "is a finite number, such as 2.0, not '2'."),
        ("kpcacam", {"kernel": 5}, "'kernel' of the method 'kpcacam' is a name, such as 'sigmoid', not 5."),
    ],
)
def test_options_of_another_kind(tiny, method, options, message):
    with pytest.raises(MethodError, match=re.escape(message) + "$"):
        opened(tiny()).explain_tensor(tiny().x(1), method, **options)


def test_options_of_numpys_types(tiny):
    explainer, x = opened(tiny()), tiny().x(1)
    ours = explainer.explain_tensor(x, "fem", k=np.float32(1)).maps
    np.testing.assert_array_equal(ours, explainer.explain_tensor(x, "fem", k=1).maps)
    ours = explainer.explain_tensor(x, "randomcam", seed=np.int64(3)).maps
    np.testing.assert_array_equal(ours, explainer.explain_tensor(x, "randomcam", seed=3).maps)


def test_options_reach_the_method(tiny):
    model = tiny()
    x = model.x(2)
    a = model.forward(x)["top"]
    for k in (0.0, 1.0):
        result = opened(model).explain_tensor(x, "fem", k=k)
        np.testing.assert_allclose(
            result.maps, methods.get("fem")(activations=a, k=k), atol=1e-3 * np.abs(result.maps).max()
        )


def test_progress_is_called(tiny):
    with pytest.raises(InputError, match=r"^progress is 5; it is called with the number of runs done and kn"):
        opened(tiny()).explain_tensor(tiny().x(), progress=5)
