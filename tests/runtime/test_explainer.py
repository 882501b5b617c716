from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest

import onnxcam
from onnxcam import Explainer, contract, errors, methods, postprocess
from onnxcam.contract import Preprocess


def opened(model, provider="cpu", **options):
    return Explainer(model.graph_bytes(), [provider], **options)


def test_gradcam_equals_the_computation_by_hand(tiny, provider):
    model = tiny()
    x, classes = model.x(), np.array([4, 0, 2])
    result = opened(model, provider).explain_tensor(x, target=classes)
    expected = model.gradcam(x, classes)
    np.testing.assert_allclose(result.maps, expected, atol=1e-5 if provider == "cpu" else 1e-3)
    np.testing.assert_allclose(result.heatmaps, postprocess.heatmaps([expected], (12, 12)), atol=2e-3)
    np.testing.assert_allclose(result.outputs["scores"], model.forward(x)["logits"], rtol=1e-3, atol=1e-4)
    assert result.maps.dtype == result.heatmaps.dtype == result.scores.dtype == np.float32
    assert result.class_ids.tolist() == [4, 0, 2]
    assert result.labels == ["hot pot", "tabby, tabby cat", "crane"]
    assert result.scores.tolist() == [result.outputs["scores"][i, c] for i, c in enumerate(classes)]
    assert result.image_index.tolist() == [0, 1, 2]
    assert not result.zero.any()
    assert list(result.outputs) == ["scores"]
    assert len(result) == 3


def test_the_top_class_is_taken_by_default(tiny, provider):
    model = tiny()
    x = model.x(4)
    result = opened(model, provider).explain_tensor(x)
    best = model.forward(x)["logits"].argmax(1)
    assert result.class_ids.tolist() == best.tolist()
    np.testing.assert_allclose(result.maps, model.gradcam(x, best), atol=1e-3)


@pytest.mark.parametrize(
    "form",
    [
        {"layout": "NHWC"},
        {"nhwc": True},
        {"nhwc": True, "preprocess": None},
        {"nhwc": True, "layout": "NHWC", "softmax": True},
        {"layout": "tokens"},
        {"softmax": True},
        {"batch": 1},
        {"batch": 2},
        {"batch": 4},
        {"score_shape": (-1, 5, 1, 1)},
        {"size": None},
    ],
    ids=str,
)
def test_every_form_of_the_model_gives_the_same_maps(tiny, provider, form):
    model = tiny(**form)
    x = model.x(3)
    result = opened(model, provider).explain_tensor(model.fed(x), target=[0, 1, 3])
    np.testing.assert_allclose(result.maps, model.gradcam(x, np.array([0, 1, 3])), atol=1e-3)
    values = model.forward(x)["probs" if model.softmax else "logits"]
    np.testing.assert_allclose(result.scores, values[np.arange(3), [0, 1, 3]], rtol=1e-3, atol=1e-4)
    assert result.heatmaps.shape == (3, 12, 12)
    assert len(result.outputs["scores"]) == 3


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
def test_half_precision_is_fed_as_declared_and_mapped_in_float32(tiny, provider, given):
    model = tiny(half=True)
    x = model.x()
    result = opened(model, provider).explain_tensor(x.astype(given), target=2)
    assert result.maps.dtype == np.float32
    assert result.outputs["scores"].dtype == np.float16
    np.testing.assert_allclose(result.maps, model.gradcam(x, np.array([2, 2, 2])), atol=5e-3)


def test_several_targets_per_image(tiny, provider):
    model = tiny()
    x = model.x(3)
    explainer = opened(model, provider, max_batch=2)
    result = explainer.explain_tensor(x, target=[[0, "hot pot"], [2], [None, 1, 3]])
    assert result.image_index.tolist() == [0, 0, 1, 2, 2, 2]
    assert result.class_ids.tolist() == [0, 4, 2, model.forward(x)["logits"][2].argmax(), 1, 3]
    expected = model.gradcam(x[result.image_index], result.class_ids)
    np.testing.assert_allclose(result.maps, expected, atol=1e-3)
    assert result.outputs["scores"].shape == (3, 5)
    np.testing.assert_allclose(result.outputs["scores"], model.forward(x)["logits"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("max_batch", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", ["N", 3])
def test_splitting_changes_nothing(tiny, max_batch, batch):
    model = tiny(batch=batch)
    x = model.x(7)
    whole = opened(tiny()).explain_tensor(x)
    split = opened(model, max_batch=max_batch).explain_tensor(x)
    # The convolution's kernel may sum in another order at another batch size.
    np.testing.assert_allclose(split.maps, whole.maps, atol=1e-6)
    np.testing.assert_allclose(split.outputs["scores"], whole.outputs["scores"], atol=1e-6)
    assert split.class_ids.tolist() == whole.class_ids.tolist()


def test_eight_threads_give_what_one_gives(tiny, provider):
    model = tiny()
    explainer = opened(model, provider)
    inputs = [model.x(1 + i % 3, seed=i) for i in range(20)]
    alone = [explainer.explain_tensor(x, target=i % 5).heatmaps for i, x in enumerate(inputs)]
    wrong: list[object] = []

    def work() -> None:
        try:
            for i, x in enumerate(inputs):
                found = explainer.explain_tensor(x, target=i % 5).heatmaps
                if not np.array_equal(found, alone[i]):
                    wrong.append(i)
        except Exception as e:
            wrong.append(e)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_layers_are_fused_or_chosen(tiny, provider):
    model = tiny(layers=("features", "top"))
    x, classes = model.x(2), np.array([1, 4])
    explainer = opened(model, provider)
    assert explainer.layers == ("features", "top")
    maps = {name: model.gradcam(x, classes, name) for name in explainer.layers}
    for name in explainer.layers:
        one = explainer.explain_tensor(x, target=classes, layers=name)
        np.testing.assert_allclose(one.maps, maps[name], atol=1e-3)
        assert list(one.layer_maps) == [name]
    fused = explainer.explain_tensor(x, target=classes, fuse="max")
    expected = postprocess.heatmaps(list(maps.values()), (12, 12), fuse="max")
    np.testing.assert_allclose(fused.heatmaps, expected, atol=2e-3)
    assert fused.maps.shape == (2, 6, 6)
    np.testing.assert_allclose(fused.layer_maps["features"], maps["features"], atol=1e-3)
    assert list(explainer.explain_tensor(x, layers=["top", "features"]).layer_maps) == ["top", "features"]


@pytest.mark.parametrize("fuse", ["mean", "max", "product", "product:pgc"])
def test_layers_are_fused_over_what_the_model_saw(tiny, fuse):
    """A cut photo: the rest of it is no part of any layer's range."""
    cut = Preprocess(size=(12, 12), fit="crop", resize=20, antialias=False, mean=(0.5,), std=(0.25,))
    explainer = opened(tiny(layers=("top", "features"), preprocess=cut))
    photo = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    result = explainer.explain(photo, target=1, fuse=fuse)
    (seen,), (heatmap,) = result.seen, result.heatmaps
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    size = len(rows), len(columns)
    assert size == (24, 24)
    expected = postprocess.heatmaps(list(result.layer_maps.values()), size, fuse=fuse)[0]
    np.testing.assert_allclose(heatmap[np.ix_(rows, columns)], expected, atol=1e-5)
    assert not heatmap[~seen].any()


def test_cam_keeps_negative_evidence_and_needs_its_head(tiny):
    model = tiny(layers=("features", "top"))
    explainer = opened(model)
    x = model.x(1)
    result = explainer.explain_tensor(x, method="cam", target=3, layers="top")
    weights = model.weights["w"][3]
    np.testing.assert_allclose(
        result.maps[0], np.einsum("c,chw->hw", weights, model.forward(x)["top"][0]), atol=1e-5
    )
    np.testing.assert_allclose(
        result.heatmaps, postprocess.heatmaps([result.maps], (12, 12), rectify=False), atol=1e-6
    )
    with pytest.raises(
        errors.MethodError,
        match=r"'cam' needs a model that ends in global average pooling.*"
        r"after the layer 'features' there is something else. "
        r"Use 'gradcam', which is its generalisation, or layers='top'\.",
    ):
        explainer.explain_tensor(x, method="cam")


def test_only_what_the_method_needs_is_fetched(tiny, monkeypatch):
    explainer = opened(tiny(layers=("features", "top")))
    fetched: list[list[str]] = []
    run = explainer._session.run
    monkeypatch.setattr(
        explainer._session, "run", lambda feeds, fetch: fetched.append(list(fetch)) or run(feeds, fetch)
    )
    mean = onnxcam.methods.Method(
        "mean",
        lambda activations, *, xp=np: xp.mean(activations, axis=1),
        ("activations",),
        "",
        "",
    )
    explainer.explain_tensor(tiny().x(), method=mean, layers="top")
    explainer.explain_tensor(tiny().x(), layers="features")
    assert fetched == [
        ["scores", "cam.activations.top"],
        ["scores", "cam.activations.features", "cam.gradients.features"],
    ]


def test_photos_get_heatmaps_at_their_own_size(tiny, provider):
    model = tiny(preprocess=Preprocess(size=(12, 12), antialias=False, mean=(0.5,), std=(0.25,)))
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((40, 30), (12, 12), (1, 1))]
    result = opened(model, provider).explain(images, target="Grass Snake")
    x = np.stack([cv2.resize(i, (12, 12)) for i in images]).transpose(0, 3, 1, 2) / 255
    maps = model.gradcam(((x - 0.5) / 0.25).astype(np.float32), np.array([3, 3, 3]))
    np.testing.assert_allclose(result.maps, maps, atol=1e-3)
    for image, heatmap, m in zip(images, result.heatmaps, maps, strict=True):
        assert heatmap.shape == image.shape[:2]
        assert heatmap.dtype == np.float32
        if heatmap.size > 1:
            np.testing.assert_allclose(heatmap, postprocess.heatmaps([m[None]], heatmap.shape)[0], atol=3e-3)
    assert all(seen.all() for seen in result.seen)
    assert result.zero.tolist() == [False, False, True]  # one pixel has no contrast


def test_what_the_model_never_saw_stays_zero(tiny):
    crop = Preprocess(size=(12, 12), fit="crop", resize=16)
    image = np.random.default_rng(2).integers(0, 256, (64, 100, 3), np.uint8)
    result = opened(tiny(preprocess=crop)).explain(image)
    heatmap, seen = result.heatmaps[0], result.seen[0]
    assert heatmap.shape == seen.shape == (64, 100)
    assert 0 < seen.mean() < 1
    assert not heatmap[~seen].any()
    assert heatmap[seen].max() == pytest.approx(1, abs=1e-6)
    assert heatmap[seen].min() == 0


def test_photos_are_split_like_tensors(tiny):
    images = [np.random.default_rng(i).integers(0, 256, (20, 20 + i, 3), np.uint8) for i in range(5)]
    target = [[0, 1], [2], None, [3], [4, 0, 1]]
    whole = opened(tiny()).explain(images, target=target)
    for model, options in ((tiny(), {"max_batch": 2}), (tiny(batch=3), {}), (tiny(batch=1), {})):
        split = opened(model, **options).explain(images, target=target)
        np.testing.assert_allclose(split.maps, whole.maps, atol=1e-6)
        assert split.image_index.tolist() == whole.image_index.tolist() == [0, 0, 1, 2, 3, 4, 4, 4]
        assert split.class_ids.tolist() == whole.class_ids.tolist()
        np.testing.assert_allclose(split.outputs["scores"], whole.outputs["scores"], atol=1e-6)


def test_preprocessing_and_labels_can_be_given_when_opening(tiny):
    model = tiny(preprocess=None, labels=None)
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(
        errors.InputError, match=r'records no preprocessing.*Explainer\(\.\.\., preprocess="imagenet"\)'
    ):
        opened(model).explain(image)
    explainer = opened(model, preprocess="imagenet", labels=["a", "b", "c", "d", "e"])
    assert explainer.preprocess.size == (12, 12)
    assert explainer.preprocess.resize == 14
    assert explainer.explain(image, target="c").labels == ["c"]
    assert opened(model).explain_tensor(model.x(1), target=4).labels == ["class 4"]


def test_a_zero_map_is_flagged_and_never_nan(tiny):
    class Dead(tiny):  # every top unit stays below zero
        @property
        def weights(self):
            return {**super().weights, "b2": np.full(6, -100, np.float32)}

    result = opened(Dead()).explain_tensor(tiny().x(2))
    assert result.zero.tolist() == [True, True]
    assert not result.heatmaps.any()
    assert not result.maps.any()


def test_device_tensors_of_other_libraries(tiny, provider):
    torch = pytest.importorskip("torch")
    if provider == "cuda" and not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    model = tiny()
    x = model.x(2)
    explainer = opened(model, provider)
    expected = explainer.explain_tensor(x, target=1)
    tensor = torch.from_numpy(x).to(provider)
    found = explainer.explain_tensor(tensor, target=1)
    np.testing.assert_allclose(found.maps, expected.maps, atol=1e-6)
    with pytest.raises(errors.TensorError, match=r"cannot be shared through DLPack.*detach"):
        explainer.explain_tensor(tensor.clone().requires_grad_())


def test_ort_values(tiny, provider):
    ort = pytest.importorskip("onnxruntime")
    model = tiny()
    x = model.x(2)
    explainer = opened(model, provider)
    expected = explainer.explain_tensor(x)
    value = ort.OrtValue.ortvalue_from_numpy(x, provider, 0)
    np.testing.assert_array_equal(explainer.explain_tensor(value).maps, expected.maps)
    if provider == "cuda":
        with pytest.raises(errors.TensorError, match="one target per image"):
            explainer.explain_tensor(value, target=[[0, 1], [2]])
        bad = ort.OrtValue.ortvalue_from_numpy(np.full_like(x, np.nan), provider, 0)
        with pytest.raises(errors.TensorError, match="not finite"):
            explainer.explain_tensor(bad)


@pytest.mark.parametrize(("batch", "target"), [("N", [[0, 1], [2]]), (3, [0, 1])])
def test_device_tensors_are_not_cut_or_repeated(tiny, batch, target, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    explainer = opened(tiny(batch=batch))
    monkeypatch.setattr(explainer._session, "as_feed", lambda name, value: value)  # as if on a device
    value = ort.OrtValue.ortvalue_from_numpy(tiny().x(2))
    message = r"A device tensor is run as it is: one target per image.*\(here [23]\). Give a host array"
    with pytest.raises(errors.TensorError, match=message):
        explainer.explain_tensor(value, target=target)


def test_lists_are_arrays_too(tiny):
    model = tiny()
    x = model.x(1)
    np.testing.assert_array_equal(
        opened(model).explain_tensor(x.tolist()).maps, opened(model).explain_tensor(x).maps
    )


WANTED = r"The input 'image' wants float32 \(N, 3, 12, 12\), but got "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], WANTED + r"float32 \(3, 12, 12\). Is the batch axis missing"),
        (lambda x: x[:, :2], WANTED + r"float32 \(3, 2, 12, 12\)\.$"),
        (lambda x: x[..., :11], WANTED + r"float32 \(3, 3, 12, 11\)"),
        (lambda x: x.transpose(0, 2, 3, 1), r"channels are last: try x.transpose\(0, 3, 1, 2\)"),
        (lambda x: x.astype(np.uint8), WANTED + r"uint8 .* Photos \(uint8\) go to explain"),
        (lambda x: x.astype(np.int32), WANTED + "int32"),
        (lambda x: x[:0], r"'image' is an empty batch: its shape is \(0, 3, 12, 12\)"),
        (lambda x: np.where(x == x[1, 1, 1, 1], np.nan, x), "'image' holds NaN or infinity as float32"),
        (lambda x: np.where(x == x[1, 1, 1, 1], -np.inf, x), "'image' holds NaN or infinity as float32"),
        (lambda x: x.astype(np.float64) * 1e300, "'image' holds NaN or infinity as float32"),
        (lambda x: {"imagee": x}, "no input 'imagee'. Nearest: 'image'. It has 'image'"),
        (lambda x: {}, r"input 'image' is missing; the model wants float32 \(N, 3, 12, 12\)"),
        (lambda x: "photo.jpg", "'image' is a str, not an array or a tensor of numbers"),
        (lambda x: [[1.0], [1.0, 2.0]], "'image' is no array: its rows differ in length"),
    ],
)
def test_unusable_tensors(tiny, change, message):
    x = np.abs(tiny().x())
    with pytest.raises(errors.TensorError, match=message):
        opened(tiny()).explain_tensor(change(x))


def test_channels_first_to_a_channels_last_model(tiny):
    with pytest.raises(errors.TensorError, match=r"channels are first: try x.transpose\(0, 2, 3, 1\)"):
        opened(tiny(nhwc=True)).explain_tensor(tiny().x())


def test_large_values_are_not_taken_for_infinite(tiny):
    x = np.full((1, 3, 12, 12), 1e36, np.float32)  # the sum overflows, the values do not
    assert np.isfinite(opened(tiny()).explain_tensor(x).outputs["scores"]).all()


def test_a_model_that_overflows_is_no_answer(tiny):
    with pytest.raises(
        errors.TensorError, match=r"The score of image 0 is not finite.*or the model overflows"
    ):
        opened(tiny()).explain_tensor(np.full((1, 3, 12, 12), 3e38, np.float32))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": 5}, errors.TargetError, "Class index 5 is out of range: the model has 5 classes, 0 to 4"),
        ({"target": [0]}, errors.TargetError, "target has 1 entry for 3 images"),
        ({"method": "grad-cam"}, errors.MethodError, "No method 'grad-cam'. Nearest: 'gradcam'"),
        ({"layers": "tpo"}, errors.UnknownLayer, "a layer 'tpo'. Nearest: 'top'. It explains 'top'"),
        ({"layers": []}, errors.UnknownLayer, "layers is empty; the file explains 'top'"),
        ({"layers": 3}, errors.UnknownLayer, "does not explain a layer 3. It explains 'top'"),
        ({"method": ["gradcam"]}, errors.MethodError, r"No method \['gradcam'\]"),
        ({"layers": [["top"]]}, errors.UnknownLayer, r"does not explain a layer \['top'\]\."),
        ({"fuse": ["mean"]}, errors.InputError, r"No fusion \['mean'\]"),
        ({"fuse": "sum"}, errors.InputError, "No fusion 'sum'"),
    ],
)  # fmt: skip
def test_unusable_requests(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        opened(tiny()).explain_tensor(tiny().x(), **arguments)


def test_a_class_out_of_range_is_found_without_a_recorded_count(tiny):
    model = tiny(classes=None)
    with pytest.raises(errors.OnnxcamError):
        opened(model).explain_tensor(model.x(1), target=7)


def test_max_batch_is_checked(tiny):
    for wrong in (0, -1, 2.5, "8", None):
        with pytest.raises(errors.InputError, match=f"max_batch is {wrong!r}; it is a whole number of at"):
            opened(tiny(), max_batch=wrong)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("names.txt", r"labels is a list with one name per class; `onnxcam explain --labels` reads a file"),
        ([1, 2, 3, 4, 5], "labels is a list with one name per class"),
        (["a", "b"], r"labels \(`--labels`\) has 2 names, but the model has 5 classes: which name"),
    ],
)
def test_unusable_labels(tiny, labels, message):
    with pytest.raises(errors.InputError, match=message):
        opened(tiny(), labels=labels)


def test_the_number_of_classes_is_the_files(tiny):
    shape = (-1, 5)  # what the score is reshaped to, so that the file declares it
    recorded = opened(tiny(score_shape=shape, classes=99))
    with pytest.raises(errors.TargetError, match="the model has 5 classes, 0 to 4"):
        recorded.explain_tensor(tiny().x(1), target=50)


@pytest.mark.parametrize("wrong", [lambda a, g: a, lambda a, g: a.mean(1)[:1]])
def test_a_method_that_gives_other_maps(tiny, wrong):
    own = methods.Method("own", wrong, ("activations", "gradients"), "", "")
    with pytest.raises(
        errors.MethodError, match=r"'own' gave maps of the shape \(.*\) for the layer 'top', not \(3, 6, 6\)"
    ):
        opened(tiny()).explain_tensor(tiny().x(3), method=own)


def test_pictures_and_files(tiny, tmp_path):
    import json

    rng = np.random.default_rng(3)
    paths = [tmp_path / "a" / "über cat.png", tmp_path / "b" / "ÜBER cat.png"]
    for path in paths:
        path.parent.mkdir()
        cv2.imencode(".png", rng.integers(0, 256, (30, 40, 3), np.uint8))[1].tofile(path)
    explainer = opened(tiny())
    result = explainer.explain(paths, target=[[0, 4], [1]])
    overlays = result.overlay(alpha=0.3, colormap="viridis")
    assert [o.shape for o in overlays] == [(30, 40, 3)] * 3
    assert overlays[0].dtype == np.uint8
    np.testing.assert_array_equal(
        overlays[2], onnxcam.overlay(result.images[1], result.heatmaps[2], 0.3, "viridis")
    )
    assert result.sheet().shape[2] == 3
    saved = result.save(tmp_path / "out" / "deep")
    assert [p.name for p in saved] == ["über cat.0.png", "über cat.4.png", "ÜBER cat.png"]
    assert sorted(p.name for p in (tmp_path / "out" / "deep").iterdir()) == sorted(
        [*(p.name for p in saved), "manifest.json"]
    )
    read = cv2.imdecode(np.fromfile(saved[2], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(read, result.overlay()[2])
    manifest = json.loads((tmp_path / "out" / "deep" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 1
    assert manifest["method"] == "gradcam"
    assert manifest["layers"] == ["top"]
    assert manifest["items"][1] == {
        "image": str(paths[0]),
        "image_index": 0,
        "overlay": "über cat.4.png",
        "class_id": 4,
        "label": "hot pot",
        "score": pytest.approx(float(result.scores[1])),
        "size": [30, 40],
        "zero": False,
    }


def test_file_names_never_clash(tiny, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        cv2.imencode(".png", photo)[1].tofile(tmp_path / folder / ("Cat.png" if folder == "b" else "cat.png"))
    result = opened(tiny()).explain([tmp_path / f for f in ("a/cat.png", "b/Cat.png", "c/cat.png")])
    assert [p.name for p in result.save(tmp_path / "out")] == ["cat.png", "Cat-2.png", "cat-3.png"]
    arrays = opened(tiny()).explain([photo, photo])
    assert [p.name for p in arrays.save(tmp_path / "out")] == ["image-0.png", "image-1.png"]


def test_an_unwritable_output(tiny, tmp_path):
    result = opened(tiny()).explain(np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        errors.OutputError, match=r"Cannot write to '.*file.*'.*Choose a folder that is yours to write"
    ):
        result.save(tmp_path / "file")
    with pytest.raises(errors.OutputError, match="Cannot write"):
        result.save(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_failed_write_leaves_the_old_file(tiny, tmp_path, monkeypatch):
    from onnxcam import result as module

    result = opened(tiny()).explain(np.zeros((8, 8, 3), np.uint8))
    result.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(errors.OutputError, match="No space left on device"):
        result.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_tensors_have_no_photos_unless_given(tiny, tmp_path):
    result = opened(tiny()).explain_tensor(tiny().x(2))
    for call in (result.overlay, result.sheet, lambda: result.save(tmp_path)):
        with pytest.raises(
            errors.InputError, match=r"There are no photos to draw on.*Hand them over as images="
        ):
            call()
    photo = np.zeros((24, 24, 3), np.uint8)
    assert [o.shape for o in result.overlay(images=[photo, photo])] == [(24, 24, 3)] * 2
    with pytest.raises(errors.InputError, match="images has 1 entries, but 2 were explained"):
        result.overlay(images=[photo])


def test_the_record_is_there(tiny):
    explainer = opened(tiny())
    assert isinstance(explainer.record, contract.Record)
    assert explainer.record.score.output == "scores"
    assert explainer.labels[1] == "crane"
    assert explainer.providers == ("CPUExecutionProvider",)


def test_placement_says_who_runs_what(tiny, provider):
    assert opened(tiny(), provider).placement() is None
    placed = opened(tiny(), provider, record_placement=True).placement()
    if placed is None:
        pytest.skip("this onnxruntime does not tell")
    full = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[provider]
    assert any("Conv" in node.op_type for node in placed[full])
