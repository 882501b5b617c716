"""Deep feature factorization, and its pictures."""

import json

import cv2
import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import onnxcam
from onnxcam import Explainer, demo, factorize, images, paint
from onnxcam.demo import mosaics
from onnxcam.errors import InputError, OutputError, TensorError, UnknownLayer
from onnxcam.factorization import factorized, nmf
from onnxcam.methods import Method

from . import nets


def products(rank=3, shape=(12, 40), seed=0):
    """A matrix that is the product of two that are not negative, half of them zeros."""
    rng = np.random.default_rng(seed)
    w, h = rng.random((shape[0], rank)), rng.random((rank, shape[1]))
    return (w * (w > 0.5)) @ (h * (h > 0.5))


def residual(x, w, h):
    return np.linalg.norm(x - w @ h) / np.linalg.norm(x)


def test_nmf_finds_the_factors_of_a_product():
    x = products()
    w, h = nmf(x, 3, iterations=3000, tolerance=1e-9)
    assert w.shape == (12, 3)
    assert h.shape == (3, 40)
    assert min(w.min(), h.min()) >= 0
    assert residual(x, w, h) < 1e-4
    few = nmf(x, 2)
    assert residual(x, *few) > 0.05


def test_nmf_is_a_minimum():
    """The conditions of Karush, Kuhn and Tucker: no slope where positive, none downwards at zero."""
    x = np.random.default_rng(1).random((9, 30))
    w, h = nmf(x, 4, iterations=5000, tolerance=1e-10)
    for values, slope in [(w, (w @ h - x) @ h.T), (h, w.T @ (w @ h - x))]:
        assert np.abs(slope[values > 1e-6]).max() < 1e-4
        assert slope[values == 0].min() > -1e-4


def test_nmf_never_gets_worse():
    x = np.random.default_rng(2).random((8, 20))
    rest = [residual(x, *nmf(x, 3, iterations=n)) for n in (1, 2, 5, 20, 100)]
    assert rest == sorted(rest, reverse=True)


def test_nmf_is_the_same_every_time_and_leaves_its_arguments_alone():
    x = products(seed=3)
    kept = x.copy()
    one, other = nmf(x, 3, seed=4), nmf(x, 3, seed=4)
    np.testing.assert_array_equal(one[0], other[0])
    start = tuple(part.copy() for part in one)
    nmf(x, 3, start=start)
    np.testing.assert_array_equal(start[0], one[0])
    np.testing.assert_array_equal(start[1], one[1])
    np.testing.assert_array_equal(x, kept)
    assert np.abs(nmf(x, 3, seed=5)[0] - one[0]).max() > 1e-3


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_nmf_is_scikit_learns_from_the_same_start(rank, seed):
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(seed)
    x, start = rng.random((20, 60)), (rng.random((20, rank)), rng.random((rank, 60)))
    theirs = decomposition.NMF(rank, init="custom", max_iter=200, tol=1e-4)
    w = theirs.fit_transform(x, W=start[0].copy(), H=start[1].copy())
    ours = nmf(x, rank, start=start)
    np.testing.assert_allclose(ours[0], w, atol=1e-8)
    np.testing.assert_allclose(ours[1], theirs.components_, atol=1e-8)


def two_concepts():
    """Two images, three channels: an object at the left of one, another at the right of both."""
    maps = np.zeros((2, 2, 2, 4))
    maps[0, 0, :, :2] = 2
    maps[:, 1, :, 3:] = 1
    vectors = np.array([[1.0, 0, 3], [0, 2, 0]])
    least = np.array([0.5, -1.0, 2.0])
    return vectors, maps, least, np.einsum("kc,nkhw->nchw", vectors, maps) + least.reshape(3, 1, 1)


def test_known_concepts_are_found():
    vectors, maps, least, activations = two_concepts()
    found = factorized(activations, 2)
    assert found.error < 1e-3
    # The first takes 8 × 4 of 8 × 4 + 4 × 2 units in all; its map is scaled from 2 to 1.
    np.testing.assert_allclose(found.shares, [0.8, 0.2], atol=1e-3)
    np.testing.assert_allclose(found.maps, maps / [[[2]], [[1]]], atol=1e-3)
    np.testing.assert_allclose(found.vectors, [vectors[0] * 2 + least, vectors[1] + least], atol=5e-3)
    assert found.maps.dtype == found.vectors.dtype == np.float32


def test_what_has_no_contrast_has_no_concepts():
    for constant in (0.0, 3.0, -1e10):
        found = factorized(np.full((2, 3, 2, 2), constant, np.float32), 2)
        assert not found.maps.any()
        assert found.error == 0
        assert not found.shares.any()
        np.testing.assert_allclose(found.vectors, constant)


def test_more_concepts_than_there_are():
    _, _, _, activations = two_concepts()
    found = factorized(activations, 3)
    assert found.error < 1e-3
    assert np.isfinite(found.vectors).all()
    assert np.isfinite(found.maps).all()


def test_one_channel_and_one_cell():
    one = np.array([1.0, 5.0, 2.0]).reshape(3, 1, 1, 1)
    found = factorized(one, 1)
    np.testing.assert_allclose(found.maps.ravel(), [0, 1, 0.25], atol=1e-6)
    np.testing.assert_allclose(found.vectors, [[5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "concepts", "message"),
    [
        ((2, 3, 4, 5), 0, r"^2 images of 3 channels and 4×5 cells hold 1 to 3 concepts, not 0\.$"),
        ((2, 3, 4, 5), 4, r"hold 1 to 3 concepts, not 4\.$"),
        ((2, 3, 4, 5), 2.5, r"hold 1 to 3 concepts, not 2\.5\.$"),
        ((1, 30, 1, 2), 3, r"^1 images of 30 channels and 1×2 cells hold 1 to 2 concepts"),
        ((2, 3, 4), 1, r"^Activations have the shape \(images, channels, h, w\), not \(2, 3, 4\)\.$"),
    ],
)
def test_unusable_numbers(shape, concepts, message):
    with pytest.raises(InputError, match=message):
        factorized(np.ones(shape), concepts)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_not_finite(bad):
    activations = np.ones((2, 3, 2, 2))
    activations[1, 2, 0, 0] = bad
    with pytest.raises(TensorError, match=r"^The activations of image 1 are not finite: the model"):
        factorized(activations, 1)


@pytest.fixture(scope="module")
def explainer():
    return Explainer(demo.model_bytes(), "cpu")


@pytest.fixture(scope="module")
def photos():
    """Each class's texture alone, then a mosaic."""
    regions = mosaics.held_out()
    pictures = {label: cv2.resize(region, (192, 128)) for label, region in regions.items()}
    return pictures


def test_the_demos_textures_are_concepts_with_their_own_names(explainer, photos):
    """Three textures and three concepts: each concept is one photo's, and named after it."""
    chosen = ["brick", "grass", "cat"]
    found = factorize(explainer, [photos[label] for label in chosen], concepts=3)
    assert len(found) == 3
    mine = found.factors.maps.mean(axis=(2, 3)).argmax(axis=1)
    assert sorted(mine.tolist()) == [0, 1, 2]
    assert [found.names[k][0].label for k in mine] == chosen
    assert all(0 <= n.probability <= 1 for names in found.names for n in names)
    assert [h.shape for h in found.heatmaps] == [(3, 128, 192)] * 3


def test_names_are_the_classifiers(explainer, photos):
    """A grid that is filled with a concept gives, through the model's own head, these probabilities."""
    given = [photos["brick"], photos["stars"]]
    seen = []
    found = factorize(explainer, given, concepts=2, names=9, progress=lambda *a: seen.append(a))
    assert seen == [(9, 9)]
    kept = []
    read = Method("read", lambda a: kept.append(a) or a.mean(1), ("activations",), "", "")
    shown = explainer.explain(given, read)
    logits = np.log(np.maximum(shown.outputs[explainer.record.score.output], 1e-30))
    if explainer.record.score.activation is None:
        logits = shown.outputs[explainer.record.score.output]
    # The head is affine in the pooled activations: solved from photos, checked on the concepts' names.
    everything = explainer.explain([*photos.values()], read)
    pooled = np.concatenate([kept[1].mean((2, 3)), np.ones((len(photos), 1))], axis=1)
    target = everything.outputs[explainer.record.score.output]
    inside = kept[0].mean((2, 3))
    gradients = []
    explainer.explain(
        given[0],
        Method("read", lambda g: gradients.append(g) or g.mean(1), ("gradients",), "", ""),
        [list(range(9))],
    )
    weights = gradients[0].sum((2, 3))
    np.testing.assert_allclose(logits - inside @ weights.T, (logits - inside @ weights.T)[[0, 0]], atol=1e-3)
    assert pooled.shape[0] == len(target)
    bias = (target - kept[1].mean((2, 3)) @ weights.T).mean(0)
    for names, vector in zip(found.names, found.factors.vectors, strict=True):
        e = np.exp(weights @ vector + bias - (weights @ vector + bias).max())
        for name in names:
            assert name.probability == pytest.approx(e[name.class_id] / e.sum(), abs=1e-3)
            assert name.label == explainer.labels[name.class_id]
        assert [n.probability for n in names] == sorted((n.probability for n in names), reverse=True)


def test_without_names_no_class_is_run(explainer, photos):
    found = factorize(explainer, photos["cat"], concepts=2, names=0, progress=lambda *_: pytest.fail("ran"))
    assert found.names == ()
    assert found.captions() == [f"{s:.0%}" for s in found.factors.shares]


@pytest.mark.parametrize("options", [{"names": -1}, {"names": 1.5}, {"seed": -1}, {"seed": None}], ids=str)
def test_names_and_seeds_that_are_none(explainer, photos, options):
    with pytest.raises(InputError, match=r"^names and seed of concepts are whole numbers of at least 0, not"):
        factorize(explainer, photos["cat"], concepts=2, **options)


def test_other_heads_give_no_names(tiny_file, photos):
    found = factorize(Explainer(tiny_file(("features",)), "cpu"), photos["cat"], concepts=2)
    assert found.names == ()
    named = factorize(Explainer(tiny_file(("top",)), "cpu"), photos["cat"], concepts=2)
    assert len(named.names) == 2


def test_names_behind_a_softmax_are_those_before_it(tiny_file, photos):
    plain, softmax = (
        factorize(Explainer(tiny_file(("top",), softmax=s), "cpu"), photos["cat"], concepts=2, names=5)
        for s in (False, True)
    )
    for one, other in zip(plain.names, softmax.names, strict=True):
        assert [n.class_id for n in one] == [n.class_id for n in other]
        np.testing.assert_allclose([n.probability for n in one], [n.probability for n in other], atol=1e-4)


@pytest.fixture
def tiny_file():
    from runtime.conftest import Tiny

    return lambda layers, **options: Tiny(layers=layers, **options).graph_bytes()


BODY = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c)"
POOLED = "p = GlobalAveragePool(r) f = Flatten(p) z = Gemm<transB=1>(f, v, u)"
DEEP = "d = Conv<pads=[1,1,1,1]>(r, k) p = GlobalMaxPool(d) f = Flatten(p) z = Gemm<transB=1>(f, v, u)"
WEIGHTS = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4), "u": (5,), "k": (4, 4, 3, 3)}


def with_tail(folder, head, end="y = Identity(z)"):
    """A file and what follows its layer."""
    rewrite_onnx = pytest.importorskip("onnxcam.export").rewrite_onnx
    weights = nets.weights(**WEIGHTS)
    net = nets.model(f"{BODY} {head} {end}", "float[N,3,12,12] x", "float[N,5] y", weights)
    path = folder / "net.cam.onnx"
    rewrite_onnx(net.SerializeToString(), path, "r", preprocess={"size": (12, 12)}, tail=True)
    return path, weights


@pytest.mark.parametrize("end", ["y = Identity(z)", "y = Softmax(z)", "y = Sigmoid(z)"])
def test_a_tail_names_as_the_gradients_do(end, photos, tmp_path):
    """Behind average pooling and a linear map."""
    path, _ = with_tail(tmp_path, POOLED, end)
    given, tail_steps, steps = [photos["cat"], photos["brick"]], [], []
    with_its_tail = factorize(
        Explainer(path, "cpu", max_batch=2),
        given,
        concepts=3,
        names=5,
        progress=lambda *a: tail_steps.append(a),
    )
    for tail in tmp_path.glob("*tail*"):
        tail.unlink()
    without = factorize(
        Explainer(path, "cpu"), given, concepts=3, names=5, progress=lambda *a: steps.append(a)
    )
    assert tail_steps == [(2, 3), (3, 3)]
    assert steps == [(5, 5)]
    assert np.ptp([names[0].probability for names in without.names]) > 0.01
    assert max(len(names) for names in without.names) > 1
    for one, other in zip(with_its_tail.names, without.names, strict=True):
        assert [n.class_id for n in one] == [n.class_id for n in other]
        np.testing.assert_allclose([n.probability for n in one], [n.probability for n in other], atol=1e-4)


def test_a_tail_names_behind_any_head(photos, tmp_path, caplog):
    path, weights = with_tail(tmp_path, DEEP)
    found = factorize(Explainer(path, "cpu"), photos["cat"], concepts=2, names=5)
    head = nets.model(DEEP, "float[N,4,12,12] r", "float[N,5] z", weights)
    filled = np.broadcast_to(found.factors.vectors[:, :, None, None], (2, 4, 12, 12))
    (z,) = ReferenceEvaluator(head).run(None, {"r": np.ascontiguousarray(filled)})
    e = np.exp(z - z.max(axis=1, keepdims=True))
    for names, p in zip(found.names, e / e.sum(axis=1, keepdims=True), strict=True):
        assert [n.class_id for n in names] == [c for c in np.argsort(-p) if p[c] >= 0.01]
        np.testing.assert_allclose([n.probability for n in names], [p[n.class_id] for n in names], rtol=1e-3)
    for tail in tmp_path.glob("*tail*"):
        tail.unlink()
    assert factorize(Explainer(path, "cpu"), photos["cat"], concepts=2).names == ()
    assert "Going on without it: the classifier is read off its gradients" in caplog.text


def test_an_unknown_layer(explainer, photos):
    with pytest.raises(UnknownLayer, match="does not explain a layer 'featurs'"):
        factorize(explainer, photos["cat"], "featurs")


def test_saved_pictures(explainer, photos, tmp_path):
    paths = []
    for folder in ("a", "b"):  # two photos of one name
        paths.append(tmp_path / folder / "cat.jpg")
        paths[-1].parent.mkdir()
        cv2.imwrite(str(paths[-1]), photos["cat"][..., ::-1])
    found = factorize(explainer, paths, concepts=2)
    written = found.save(tmp_path / "out")
    assert [p.name for p in written] == ["cat.concepts.png", "cat.concepts-2.png"]
    picture = images.load(written[0])
    np.testing.assert_array_equal(picture, found.pictures()[0])
    assert picture.shape[1] == 256  # a legend needs room
    told = json.loads((tmp_path / "out" / "concepts.json").read_text())
    assert told == found.summary(written)
    assert [one["picture"] for one in told["images"]] == [p.name for p in written]
    assert told["concepts"][0]["colour"] == "#{:02x}{:02x}{:02x}".format(*paint.palette(2)[0])
    assert [p.shape for p in found.pictures(legend=False)] == [(128, 192, 3)] * 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match=r"^Cannot write to '.*file'"):
        found.save(blocked)


def test_a_pixel_has_the_colour_of_its_strongest_map():
    photo = np.full((1, 4, 3), 100, np.uint8)
    heatmaps = np.array([[[1.0, 0.2, 0.5, 0]], [[0.3, 0.8, 0.5, 0]]])
    colours = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    picture = paint.painted(photo, heatmaps, colours, alpha=0.5)
    expected = [[150, 50, 50], [60, 140, 60], [125, 75, 75], [100, 100, 100]]
    np.testing.assert_array_equal(picture[0], expected)
    seen = np.array([[True, True, False, True]])
    dim = paint.painted(photo, heatmaps, colours, 0.5, seen)
    np.testing.assert_array_equal(dim[0], [*expected[:2], [45, 45, 45], expected[3]])
    with pytest.raises(InputError, match=r"^2 colours on a photo of \(1, 4\) need maps of the shape"):
        paint.painted(photo, heatmaps[:1], colours)
    with pytest.raises(InputError, match=r"^alpha is a number from 0 to 1, not 2\.$"):
        paint.painted(photo, heatmaps, colours, 2)


@pytest.mark.parametrize("count", [1, 2, 8, 16])
def test_colours_differ(count):
    colours = paint.palette(count).astype(int)
    assert colours.shape == (count, 3)
    apart = [np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(apart, default=255) >= 50


def test_the_legend_shows_each_colour_and_cuts_long_lines():
    colours = paint.palette(3)
    photo = np.zeros((20, 300, 3), np.uint8)
    whole = paint.with_legend(photo, colours, ["brick", "x" * 300, ""])
    np.testing.assert_array_equal(whole[:20], photo)
    for colour in colours:
        assert (whole[20:] == colour).all(axis=2).sum() > 50
    lines = (whole[20:, 40:] < 128).any(axis=(1, 2))
    assert lines.any()
    assert (whole[20:, -8:] == 255).all()


def test_it_is_public():
    assert onnxcam.factorize is factorize
