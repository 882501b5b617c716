"""SESS: where the windows stand, what counts how much, and what cannot be asked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcam import Explainer, sess
from onnxcam.errors import InputError, TargetError, TensorError
from onnxcam.sess import Window, enhanced, windows
from onnxcam.targets import Box, Contrast, Region, Similar

from .. import nets

FEW = {"scales": [12, 17], "window": 8, "stride": 5}


def opened(model, **options):
    return Explainer(model.graph_bytes(), ["cpu"], **options)


def test_windows_stand_at_every_stride_and_at_the_edges():
    assert windows((5, 8), (3, 4), (2, 3), [5]) == [
        Window((5, 8), top, left) for top, left in itertools.product([0, 2], [0, 3, 4])
    ]
    assert windows((5, 8), (5, 8), (5, 8), [5]) == [Window((5, 8), 0, 0)]
    # The shorter side is 10; the longer is truncated: 10 * 8 // 5.
    assert {w.scaled for w in windows((8, 5), (5, 5), (5, 5), [10])} == {(16, 10)}


@pytest.mark.parametrize("size", [(7, 7), (9, 16), (23, 11)], ids=str)
@pytest.mark.parametrize(
    ("window", "stride"), [((7, 7), (7, 7)), ((5, 6), (2, 3)), ((1, 7), (1, 4))], ids=str
)
def test_every_pixel_of_every_scale_is_in_a_window(size, window, stride):
    scales = [min(size), min(size) + 3, 31]
    found = windows(size, window, stride, scales)
    assert len(set(found)) == len(found)
    assert [min(scaled) for scaled in dict.fromkeys(w.scaled for w in found)] == list(dict.fromkeys(scales))
    for scaled in {w.scaled for w in found}:
        seen = np.zeros(scaled, int)
        for place in (w for w in found if w.scaled == scaled):
            assert 0 <= place.top <= scaled[0] - window[0]
            assert 0 <= place.left <= scaled[1] - window[1]
            seen[place.top : place.top + window[0], place.left : place.left + window[1]] += 1
        assert seen.min() == 1


def test_scales_by_number_are_the_papers():
    """224, 288, ..., 928."""
    found = windows((224, 224), (224, 224), (224, 224), 12)
    assert list(dict.fromkeys(w.scaled[0] for w in found)) == list(range(224, 929, 64))


def test_patches_of_the_image_as_it_is_are_cut_out():
    image = np.random.default_rng(0).random((3, 5, 8), dtype=np.float32)
    places = windows((5, 8), (3, 4), (2, 3), [5])
    for place, patch in zip(places, sess.patches(image, places, (3, 4)), strict=True):
        np.testing.assert_allclose(
            patch, image[:, place.top : place.top + 3, place.left : place.left + 4], atol=1e-6
        )


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("method", ["gradcam", "eigencam", "rise"])
def test_one_window_is_the_heatmap_itself(method, pool, tiny):
    explainer, x = opened(tiny()), tiny().x()
    options = {"masks": 20} if method == "rise" else {}
    plain = explainer.explain_tensor(x, method, [None, [4, 0], "hot pot"], **options).heatmaps
    assert plain.max(axis=(1, 2)).min() > 0.5
    found = enhanced(
        explainer, x, method, [None, [4, 0], "hot pot"], scales=1, pool=pool, blur=False, **options
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert (
        np.abs(enhanced(explainer, x, method, scales=1, pool=pool, **options) - plain[[0, 1, 3]]).max() > 0.01
    )


def test_windows_by_hand(tiny):
    """Two scales, weighed, pasted and averaged in a loop that knows nothing of batches."""
    net = tiny(size=None)
    explainer, x = opened(net), tiny().x(1)
    clean = explainer.explain_tensor(x).class_ids[0]
    total, count = np.zeros((2, 12, 12))
    parts = []
    for place in windows((12, 12), (8, 8), (5, 5), [12]):
        patch = np.ascontiguousarray(x[:, :, place.top : place.top + 8, place.left : place.left + 8])
        heat = np.zeros((12, 12))
        one = explainer.explain_tensor(patch, target=int(clean))
        heat[place.top : place.top + 8, place.left : place.left + 8] = one.heatmaps[0]
        parts.append((net.forward(patch)["probs"][0, clean], heat))
    best = max(p for p, _ in parts)
    for p, heat in parts:
        total += p / best * heat
        count += heat > 0
    mean = total / np.maximum(count, 1)
    found = enhanced(explainer, x, scales=[12], window=8, stride=5, blur=False, batch=1)
    np.testing.assert_allclose(found[0], (mean - mean.min()) / np.ptp(mean), atol=1e-4)


def test_neither_batches_nor_layouts_change_anything(tiny, monkeypatch):
    net = tiny(size=None)
    explainer, x = opened(net), tiny().x(2)
    whole = enhanced(explainer, x, target=[[1, 3], None], **FEW)
    assert whole.shape == (3, 12, 12)
    assert whole.std() > 0.05
    run, seen = explainer._session.run, []
    monkeypatch.setattr(
        explainer._session, "run", lambda fed, fetch: seen.append(len(fed["image"])) or run(fed, fetch)
    )
    np.testing.assert_allclose(
        enhanced(explainer, x, target=[1, None], batch=3, **FEW), whole[[0, 2]], atol=1e-5
    )
    assert max(seen) == 3
    last = tiny(size=None, nhwc=True)
    found = enhanced(opened(last), last.fed(x), target=[[1, 3], None], **FEW)
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_probabilities_of_the_file_count_as_they_are(tiny):
    x = tiny().x(2)
    logits, probabilities = (enhanced(opened(tiny(size=None, softmax=s)), x, **FEW) for s in (False, True))
    np.testing.assert_allclose(logits, probabilities, atol=1e-4)
    other = enhanced(opened(tiny(size=None)), x, probability=False, **FEW)
    assert np.abs(other - logits).max() > 1e-3


def test_weights_are_relative_to_the_best_window():
    told = np.array([[0.2, 0], [0.4, 0], [0.1, 0], [0.3, 0]], np.float32)
    np.testing.assert_allclose(sess._weights(told, 0), [[0.5, 1], [1, 1], [0.25, 1], [0.75, 1]])
    np.testing.assert_allclose(sess._weights(told, 0.5)[:, 0], [0, 1, 0, 0.75])
    assert sess._weights(told, 0.5)[:, 1].sum() == 2  # of windows that are all alike half take part, too
    np.testing.assert_allclose(sess._weights(told, 0.9)[:, 0], [0, 1, 0, 0])


def test_a_threshold_takes_the_weak_out(tiny):
    explainer, x = opened(tiny(size=None)), tiny().x(1)
    assert not enhanced(explainer, x, threshold=1.0, **FEW).any()
    some = enhanced(explainer, x, threshold=0.5, **FEW)
    assert np.abs(some - enhanced(explainer, x, **FEW)).max() > 0.01
    assert some.max() == pytest.approx(1, abs=1e-5)


def test_a_black_box(tiny):
    made = nets.cnn(inputs="float[N,3,H,W] x").SerializeToString()
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    box = Explainer(made, "cpu", black_box=True)
    found = enhanced(box, x, "rise", [[2, 0]], masks=10, **FEW)
    assert found.shape == (2, 12, 12)
    top = int(box.explain_tensor(x, "rise", masks=2).class_ids[0])
    for pinned in (None, top):
        np.testing.assert_allclose(
            enhanced(box, x, "rise", pinned, masks=10, **FEW),
            enhanced(box, x, "rise", top, masks=10, batch=5, **FEW),
            atol=1e-4,
        )


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A classifier that takes weights, an embedding and a segmentation, of images of any size."""
    rewrite_onnx = pytest.importorskip("onnxcam.export").rewrite_onnx
    folder = tmp_path_factory.mktemp("tasks")
    pooled = "g = GlobalAveragePool(r) e = Flatten(g)"
    made = {
        "classes": (nets.HEAD, "float[N,5] y", {"score": {"seed": True}}),
        "embedding": (pooled, "float[N,4] e", {"score": {"task": "embedding"}}),
        "segmentation": ("y = Conv(r, k)", "float[N,5,H,W] y", {"score": {"task": "segmentation"}}),
    }
    weights = nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,), k=(5, 4, 1, 1))
    opened = {}
    for name, (text, output, options) in made.items():
        body = f"c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) {text}"
        source = nets.model(body, "float[N,3,H,W] x", output, weights)
        rewrite_onnx(source.SerializeToString(), folder / f"{name}.cam.onnx", "r", **options)
        opened[name] = Explainer(folder / f"{name}.cam.onnx", "cpu")
    return opened


def test_other_targets_than_classes(tasks):
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    one, other = (enhanced(tasks["classes"], x, target=Contrast(*pair), **FEW) for pair in [(1, 2), (2, 1)])
    assert min(one.max(), other.max()) > 0.9
    assert np.abs(one - other).max() > 0.1
    own = tasks["embedding"].explain_tensor(x).embeddings
    np.testing.assert_allclose(
        enhanced(tasks["embedding"], x, **FEW),
        enhanced(tasks["embedding"], x, target=[Similar(e) for e in own], **FEW),
        atol=1e-6,
    )
    chosen = tasks["segmentation"].explain_tensor(x).class_ids
    np.testing.assert_allclose(
        enhanced(tasks["segmentation"], x, target=Region(), **FEW),
        enhanced(tasks["segmentation"], x, target=[int(c) for c in chosen], **FEW),
        atol=1e-6,
    )


def test_places_are_refused(tasks):
    x = np.zeros((1, 3, 12, 12), np.float32)
    region = Region(1, np.ones((12, 12)))
    with pytest.raises(TargetError, match=r"^A Region is a place in the image, .* name the class alone"):
        enhanced(tasks["segmentation"], x, target=region, **FEW)
    with pytest.raises(TargetError, match=r"^A Box is a target of a detection"):
        enhanced(tasks["classes"], x, target=Box((0, 0, 4, 4)), **FEW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "median"}, r"^No pooling 'median'\. Nearest: .* There are: mean, max\.$"),
        ({"prefilter": 1.0}, r"^prefilter is 1\.0; it is a share of the windows from 0 to below 1\.$"),
        ({"threshold": -0.1}, r"^threshold is -0\.1; heat is at least 0"),
        ({"batch": 0}, r"^batch is 0; it is a whole number of at least 1\.$"),
        ({"window": 0}, r"^window is 0; it is one number of pixels, at least 1, or height and width\.$"),
        ({"window": (4, 4, 4)}, r"^window is \(4, 4, 4\); it is one number"),
        ({"stride": 2.5}, r"^stride is 2\.5; it is one number"),
        ({"window": 4, "stride": 5}, r"^The stride 5×5 is larger than the window 4×4: what lies between two"),
        ({"scales": 0}, r"^SESS needs at least one scale"),
        ({"scales": []}, r"^SESS needs at least one scale"),
        (
            {"scales": [12, 6], "window": 8},
            r"^At the scale 6 the image is 6×6, smaller than the window 8×8",
        ),
    ],
    ids=str,
)
def test_unusable_options(options, message, tiny):
    with pytest.raises(InputError, match=message):
        enhanced(opened(tiny()), tiny().x(1), **options)


def test_unusable_inputs(tiny):
    explainer, x = opened(tiny()), tiny().x(1)
    with pytest.raises(InputError, match=r"^Windows are cut out of one image input: give its array"):
        enhanced(explainer, {"image": x})
    with pytest.raises(InputError, match=r"^Windows are cut out of images, .* not \(3, 12, 12\)\.$"):
        enhanced(explainer, x[0])
    with pytest.raises(TensorError, match=r"^The input 'image' wants .* but got float32 \(2, 3, 8, 8\)"):
        enhanced(explainer, x, window=(8, 8), scales=[8, 9], batch=2)
