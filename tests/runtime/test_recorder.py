"""Photos through open files into recordings: each is read once, and none is lost or done twice."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest

from onnxcam import Explainer, contract, errors, images, preprocess, recorder, recording
from onnxcam.contract import Preprocess
from onnxcam.recorder import names_of, record, record_to, side
from onnxcam.targets import Box, Region

from .. import nets
from .conftest import LABELS, SIZE

OTHER = Preprocess(
    size=(SIZE, SIZE), fit="letterbox", antialias=False, channels="BGR", mean=(0.2,), std=(0.5,)
)


@pytest.fixture
def photos(tmp_path):
    """{name: path} of eleven photos of several sizes."""
    rng = np.random.default_rng(2)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(11):
        pixels = rng.integers(0, 256, (12 + i, 30 - i, 3), np.uint8)
        cv2.imencode(".png", pixels)[1].tofile(folder / f"{i:02}.png")
    return names_of([folder])


@pytest.fixture
def opened(tiny, tmp_path):
    """An open file and its path: ``opened(softmax=True)``."""

    def open_(name="tiny.cam.onnx", **form):
        path = tmp_path / name
        path.write_bytes(tiny(**form).graph_bytes())
        return Explainer(path, "cpu"), path

    return open_


def expected(explainer, paths, how, **asked):
    """What ``explain_tensor`` says of the same photos."""
    x = np.stack([preprocess.apply(images.load(path), how)[0] for path in paths])
    return explainer.explain_tensor(x, **asked)


# What is recorded


def test_several_sides_record_what_explain_tensor_says(opened, photos):
    first, path = opened()
    second, other = opened("other.cam.onnx", softmax=True, preprocess=OTHER, layers=("features", "top"))
    sides = [
        side(first, path, runtime={"optimization": "all"}),
        side(second, other, "layercam", target="hot pot"),
    ]
    one, two = record(sides, photos, batch=4)
    for made, explainer, how, asked in [
        (one, first, first.preprocess, {}),
        (two, second, second.preprocess, {"method": "layercam", "target": 4}),
    ]:
        assert made.names == tuple(photos)
        wanted = expected(explainer, photos.values(), how, **asked)
        np.testing.assert_array_equal(made.class_ids, wanted.class_ids)
        np.testing.assert_allclose(made.scores, wanted.scores, atol=1e-6)
        np.testing.assert_allclose(made.outputs, wanted.outputs["scores"], atol=1e-6)
        assert made.labels == tuple(wanted.labels)
        assert made.maker.layers == tuple(wanted.layer_maps)
        for layer, maps in wanted.layer_maps.items():
            np.testing.assert_allclose(made.maps[layer], maps, atol=1e-6)
        assert made.skipped == ()
    assert one.sizes.tolist() == [[12 + i, 30 - i] for i in range(11)]
    assert one.sha256 == tuple(hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in photos.values())
    assert one.maker.layers == ("top",)
    assert two.maker.layers == ("features", "top")


def test_the_maker_says_what_made_it(opened, photos):
    import onnxruntime

    explainer, path = opened(softmax=True)
    path.with_name("tiny.cam.onnx.data").write_bytes(b"weights")
    one = side(explainer, path, "layercam", "hot pot", runtime={"optimization": "basic"})
    (made,) = record([one], photos)
    maker = made.maker
    assert (maker.model, maker.method, maker.task) == ("tiny.cam.onnx", "layercam", "classification")
    assert (maker.activation, maker.probability) == ("softmax", False)
    assert maker.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert maker.tool.startswith("onnxcam ")
    assert maker.labels == LABELS
    assert maker.preprocess == explainer.preprocess
    assert maker.runtime["onnxruntime"] == onnxruntime.__version__
    assert maker.runtime["providers"] == "CPUExecutionProvider"
    assert maker.runtime["optimization"] == "basic"
    assert maker.runtime["target"] == "hot pot"
    assert maker.runtime["weights"] == hashlib.sha256(b"weights").hexdigest()
    assert maker.runtime["platform"]
    rise = side(explainer, path, "rise", masks=3, seed=1).maker
    assert (rise.runtime["rise.masks"], rise.runtime["rise.seed"]) == ("3", "1")


BODY = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) "
POOLED = BODY + "g = GlobalAveragePool(r) h = Conv(g, u) y = Flatten(h)"
TASKS = {
    "segmentation": (BODY + "y = Conv(r, u)", "float[N,6,8,8] y", None, None),
    "detection": (
        BODY + "h = Conv(r, u) f = Reshape(h, s) y = Transpose<perm=[0,2,1]>(f)",
        "float[N,64,6] y",
        {"task": "detection", "head": "yolov5"},
        None,
    ),
    "embedding": (POOLED, "float[N,6] y", {"task": "embedding"}, None),
    "regression": (POOLED, "float[N,6] y", {"task": "regression"}, 3),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_recorded(tmp_path, photos, task):
    pytest.importorskip("onnx_ir")
    from onnxcam.export import rewrite_onnx

    body, outputs, score, target = TASKS[task]
    parts = nets.weights(w=(4, 3, 3, 3), b=(4,), u=(6, 4, 1, 1)) | {"s": np.array([0, 6, -1])}
    onnx.save(nets.model(body, outputs=outputs, initializers=parts), tmp_path / "m.onnx")
    path = tmp_path / "m.cam.onnx"
    rewrite_onnx(tmp_path / "m.onnx", path, "r", score, preprocess={"size": (8, 8), "fit": "stretch"})
    explainer = Explainer(path, "cpu")
    record_to([side(explainer, path, target=target)], photos, [tmp_path / "run.npz"], batch=4)
    made = recording.load(tmp_path / "run.npz")
    wanted = expected(explainer, photos.values(), explainer.preprocess, target=target)
    assert made.maker.task == task
    assert (made.outputs is not None) == (task == "regression")
    np.testing.assert_array_equal(made.class_ids, wanted.class_ids)
    assert made.labels == tuple(wanted.labels)
    np.testing.assert_allclose(made.scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(made.maps["r"], wanted.maps, atol=1e-5)
    if task in ("segmentation", "detection"):
        place = Region(1, np.ones((8, 8))) if task == "segmentation" else Box((1, 1, 5, 5))
        kind = type(place).__name__
        with pytest.raises(
            errors.InputError, match=rf"A {kind} lies in one photo; a recording's target is for all\."
        ):
            side(explainer, path, target=place)


def test_sizes_are_those_of_photos_as_they_are_shown(opened, tmp_path):
    pil = pytest.importorskip("PIL.Image")
    exif = pil.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    pil.fromarray(np.zeros((10, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (made,) = record([side(*opened())], names_of([tmp_path / "a.jpg"]))
    assert made.sizes.tolist() == [[30, 10]]


def test_methods_that_run_the_model_are_recorded_too(opened, photos):
    explainer, path = opened()
    (made,) = record([side(explainer, path, "rise", target=1, masks=4)], photos)
    wanted = expected(explainer, photos.values(), explainer.preprocess, method="rise", target=1, masks=4)
    np.testing.assert_allclose(made.maps["input"], wanted.layer_maps["input"], atol=1e-6)
    assert made.maker.layers == ("input",)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_every_size_of_a_batch_gives_the_same(opened, photos, batch):
    explainer, path = opened(batch=2)
    told = []
    (made,) = record([side(explainer, path)], photos, batch=batch, progress=lambda *of: told.append(of))
    wanted = expected(explainer, photos.values(), explainer.preprocess)
    np.testing.assert_allclose(made.maps["top"], wanted.layer_maps["top"], atol=1e-6)
    assert told == [(min(n, 11), 11) for n in range(0, 11 + batch, batch)]


def counted(monkeypatch, module, name):
    calls = []
    real = getattr(module, name)

    def call(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(module, name, call)
    return calls


def test_each_photo_is_decoded_once_for_all_sides(opened, photos, monkeypatch):
    first, path = opened()
    second, _ = opened("second.cam.onnx", softmax=True)
    third, _ = opened("third.cam.onnx", preprocess=OTHER)
    loads = counted(monkeypatch, recorder.images, "load")
    made = counted(monkeypatch, recorder.preprocess, "apply")
    sides = [side(one, path) for one in (first, second, third)]
    how = replace(sides[1].preprocess, input="other")
    sides[1] = replace(sides[1], maker=replace(sides[1].maker, preprocess=how))
    made.clear()  # each side tried its input with a grey picture
    record(sides, photos, batch=4)
    assert [name for _, name in loads] == [f"'{name}'" for name in photos]
    assert len(made) == 2 * len(photos)  # the first two want the same of a photo


# What is skipped


def test_photos_that_cannot_be_read_are_skipped_on_every_side(opened, photos, tmp_path):
    Path(photos["03.png"]).write_bytes(b"\xff\xd8\xff cut")
    Path(photos["10.png"]).write_bytes(b"")
    Path(photos["05.png"]).unlink()
    first, path = opened()
    second, other = opened("other.cam.onnx", preprocess=OTHER)
    for made in record([side(first, path), side(second, other)], photos, batch=4):
        assert made.names == tuple(name for name in photos if name not in ("03.png", "05.png", "10.png"))
        assert made.skipped == (
            (
                "03.png",
                "'03.png' (7 bytes) is not an image that OpenCV can read, or it is damaged.",
            ),
            ("05.png", "'05.png' cannot be read: No such file or directory."),
            ("10.png", "'10.png' (0 bytes) is empty: it has no bytes."),
        )
        wanted = expected(first, [photos[name] for name in made.names], made.maker.preprocess)
        np.testing.assert_allclose(made.maps["top"], wanted.maps, atol=1e-6)


def test_a_photo_that_memory_does_not_hold_is_skipped(opened, photos, monkeypatch):
    real = images.load

    def load(data, name):
        if name == "'02.png'":
            raise MemoryError
        return real(data, name)

    monkeypatch.setattr(recorder.images, "load", load)
    (made,) = record([side(*opened())], photos)
    assert made.skipped == (("02.png", "'02.png' needs more memory than there is."),)


class Failing:
    """An explainer that fails where a photo is among those of a run; else the real one."""

    def __init__(self, explainer, photo, error):
        self._explainer, self._error = explainer, error
        self._photo = preprocess.apply(images.load(photo), explainer.preprocess)[0]

    def __getattr__(self, name):
        return getattr(self._explainer, name)

    def explain_tensor(self, x, *arguments, **options):
        if any(np.array_equal(one, self._photo) for one in x):
            raise self._error
        return self._explainer.explain_tensor(x, *arguments, **options)


@pytest.mark.parametrize("kind", [errors.TensorError, errors.ProviderError])
def test_a_photo_that_one_side_fails_for_is_skipped_there_alone(opened, photos, kind):
    explainer, path = opened()
    failing = Failing(explainer, photos["05.png"], kind("The run failed on it."))
    healthy, broken = record([side(explainer, path), side(failing, path)], photos, batch=4)
    assert healthy.names == tuple(photos)
    assert broken.names == tuple(name for name in photos if name != "05.png")
    assert broken.skipped == (("05.png", "The run failed on it."),)
    kept = [i for i, name in enumerate(photos) if name != "05.png"]
    np.testing.assert_allclose(broken.maps["top"], healthy.maps["top"][kept], atol=1e-6)


def test_a_model_that_crashes_on_one_photo(photos, tmp_path):
    """Its brightest pixel picks from a table that is too short for it; the others of its run stay."""
    pytest.importorskip("onnx_ir")
    from onnxcam.export import rewrite_onnx

    pick = "m = ReduceMax<keepdims=0>(x) i = Cast<to=7>(m) t = Gather(table, i) y = Add(f, t)"
    body = BODY + "g = GlobalAveragePool(r) h = Conv(g, u) f = Flatten(h) " + pick
    parts = nets.weights(w=(4, 3, 3, 3), b=(4,), u=(6, 4, 1, 1), table=(100,))
    onnx.save(nets.model(body, outputs="float[N,6] y", initializers=parts), tmp_path / "m.onnx")
    path = tmp_path / "m.cam.onnx"
    rewrite_onnx(tmp_path / "m.onnx", path, "r", preprocess={"size": (8, 8), "scale": 1.0})
    for name, photo in photos.items():
        bright = 255 if name == "06.png" else 90
        cv2.imencode(".png", np.full((12, 12, 3), bright, np.uint8))[1].tofile(photo)
    (made,) = record([side(Explainer(path, "cpu"), path)], photos, batch=4)
    ((name, why),) = made.skipped
    assert name == "06.png"
    assert "Gather" in why
    assert made.names == tuple(name for name in photos if name != "06.png")


def test_a_model_that_overflows_for_one_photo(opened, photos):
    """In half precision a photo far brighter than the others leaves its range, in the file itself."""
    brightest = Preprocess(size=(SIZE, SIZE), antialias=False, scale=150.0)
    for path in photos.values():
        cv2.imencode(".png", np.zeros((12, 12, 3), np.uint8))[1].tofile(path)
    cv2.imencode(".png", np.full((12, 12, 3), 255, np.uint8))[1].tofile(photos["06.png"])
    explainer, path = opened(half=True, preprocess=brightest)
    (made,) = record([side(explainer, path)], photos, batch=4)
    ((name, why),) = made.skipped
    assert name == "06.png"
    assert "not finite" in why
    assert made.names == tuple(name for name in photos if name != "06.png")
    assert np.isfinite(made.outputs).all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"outputs": np.inf}, "The model's outputs hold NaN or infinity: the model overflows."),
        ({"maps": np.nan}, "The map of the layer 'top' holds NaN or infinity: the model overflows."),
    ],
    ids=["outputs", "maps"],
)
def test_what_is_not_finite_beside_the_score_is_found(opened, photos, change, why):
    explainer, path = opened()

    class Overflowing(Failing):
        def explain_tensor(self, x, *arguments, **options):
            found = self._explainer.explain_tensor(x, *arguments, **options)
            for i, one in enumerate(x):
                if np.array_equal(one, self._photo):
                    table = found.outputs["scores"] if "outputs" in change else found.layer_maps["top"]
                    table[i] = next(iter(change.values()))
            return found

    (made,) = record([side(Overflowing(explainer, photos["01.png"], None), path)], photos, batch=4)
    assert made.skipped == (("01.png", why),)
    assert len(made) == 10


def test_photos_of_which_none_can_be_recorded(opened, photos, tmp_path):
    for path in photos.values():
        Path(path).write_bytes(b"no photo")
    (made,) = record_to([side(*opened())], photos, [tmp_path / "run.npz"], batch=4)
    assert len(made) == 0
    assert [name for name, _ in made.skipped] == list(photos)
    assert recording.load(tmp_path / "run.npz").skipped == made.skipped


# What is refused


@pytest.mark.parametrize(
    ("asked", "error", "why"),
    [
        ({"method": "gradcan"}, errors.MethodError, "gradcan"),
        ({"layers": ["nowhere"]}, errors.UnknownLayer, "The file does not explain a layer 'nowhere'"),
        ({"target": 7}, errors.TargetError, "Class index 7 is out of range"),
        ({"method": "rise", "mask": 7}, errors.MethodError, "mask"),
        (
            {"target": [1, 2]},
            errors.InputError,
            r"A recording has one target, the same for all .*, not \[1, 2\]",
        ),
    ],
    ids=["method", "layer", "target", "option", "targets"],
)
def test_what_holds_for_every_photo_is_refused_at_once(opened, asked, error, why):
    with pytest.raises(error, match=why):
        side(*opened(), **asked)


def test_files_that_take_no_photos(opened):
    with pytest.raises(
        errors.InputError, match=r"tiny\.cam\.onnx' records no preprocessing for photos\. Say how"
    ):
        side(*opened(preprocess=None))
    explainer, path = opened(preprocess=Preprocess(size=(20, 20)))
    with pytest.raises(
        errors.TensorError, match=r"The input 'image' wants float32 \(N, 3, 12, 12\), but got"
    ):
        side(explainer, path)


def test_files_with_further_inputs(opened, monkeypatch):
    explainer, path = opened()
    both = (explainer.input, replace(explainer.input, name="mask"))
    monkeypatch.setattr(explainer._session, "inputs", both)
    with pytest.raises(
        errors.TensorError,
        match=r"The model has the inputs 'image', 'mask'; a recording is made of photos alone\.",
    ):
        side(explainer, path)


def test_maps_of_no_photo(opened, photos):
    explainer, path = opened()

    class OfSignals(Failing):
        def explain_tensor(self, x, *arguments, **options):
            found = self._explainer.explain_tensor(x, *arguments, **options)
            return replace(found, layer_maps={"top": found.layer_maps["top"][:, 0]})

    with pytest.raises(
        errors.MethodError, match=r"The maps of the layer 'top' are \(6,\) for each photo, and"
    ):
        record([side(OfSignals(explainer, photos["01.png"], None), path)], photos)


def test_an_error_of_the_request_ends_all(opened, photos):
    explainer, path = opened()
    failing = Failing(explainer, photos["05.png"], errors.MethodError("The method is at a loss."))
    with pytest.raises(errors.MethodError, match="at a loss"):
        record([side(failing, path)], photos, batch=4)


def test_calls_that_make_no_sense(opened, photos, tmp_path):
    one = side(*opened())
    with pytest.raises(errors.InputError, match=r"There are no photos to record\."):
        record([one], {})
    with pytest.raises(errors.InputError, match=r"batch is 0; it is a whole number of at least 1\."):
        record([one], photos, batch=0)
    with pytest.raises(errors.InputError, match=r"Two sides are recorded into one file: name one for each\."):
        record_to([one, one], photos, [tmp_path / "a.npz", tmp_path / "a.npz"])
    with pytest.raises(errors.OutputError, match=r"photos' is a folder: name a file for the recording\."):
        record_to([one], photos, [tmp_path / "photos"])
    with pytest.raises(
        errors.InputError, match=r"There is no optimization 'al'\. Nearest: 'all'.* There is all, ext"
    ):
        recorder.session_options("al")


def test_levels_of_optimisation_are_those_of_onnx_runtime():
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    assert [
        recorder.session_options(name)["graph_optimization_level"] for name in recorder.OPTIMIZATIONS
    ] == [
        levels.ORT_ENABLE_ALL,
        levels.ORT_ENABLE_EXTENDED,
        levels.ORT_ENABLE_BASIC,
        levels.ORT_DISABLE_ALL,
    ]


# Names


def test_names_are_relative_to_the_folder_that_was_given(tmp_path):
    for name in ("a/x.png", "a/below/y.png", "b/x.png", "b/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    a, b = tmp_path / "a", tmp_path / "b"
    assert names_of([a]) == {"below/y.png": str(a / "below/y.png"), "x.png": str(a / "x.png")}
    assert names_of([a, b / "z.png"]).keys() == {"below/y.png", "x.png", "z.png"}
    assert names_of([a, b]).keys() == {
        "below/y.png",
        (a / "x.png").as_posix(),
        (b / "x.png").as_posix(),
        "z.png",
    }
    assert list(names_of([a, a / "below"]).values()) == [str(a / "below/y.png"), str(a / "x.png")]


def test_no_photo_takes_the_name_of_another(tmp_path, monkeypatch):
    """b/x.png is called so in the folder a, and by its path."""
    for name in ("a/b/x.png", "a/x.png", "b/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert names_of(["a", "b"]) == {name: str(Path(name)) for name in ("a/b/x.png", "a/x.png", "b/x.png")}


# One part ahead, and no more


class Watched:
    """A side whose explainer tells of each run, by the number of photos in it."""

    def __init__(self, during):
        how = Preprocess(size=(4, 4), antialias=False)
        self.preprocess = how
        self.explainer = SimpleNamespace(
            input=SimpleNamespace(dtype=np.dtype(np.float32)),
            record=contract.Record((), contract.Score("scores", "logits")),
            explain_tensor=self.explain_tensor,
        )
        self.maker = recording.Maker("m", (), preprocess=how)
        self.target, self.layers, self.options = None, None, {}
        self._during = during

    def explain_tensor(self, x, *_):
        self._during(x)
        maps = np.ones((len(x), 2, 2), np.float32)
        return SimpleNamespace(
            outputs={"scores": np.ones((len(x), 3), np.float32)},
            layer_maps={"top": maps},
            class_ids=np.zeros(len(x), np.int64),
            labels=["a"] * len(x),
            scores=np.ones(len(x), np.float32),
        )


@pytest.fixture
def reads(monkeypatch):
    """Names of the photos that were begun to be read, and what is called before each."""
    seen = SimpleNamespace(names=[], before=lambda name: None)
    real = images.load

    def load(data, name):
        seen.names.append(name.strip("'"))
        seen.before(seen.names[-1])
        return real(data, name)

    monkeypatch.setattr(recorder.images, "load", load)
    return seen


def joined_readers():
    """Wait for the threads that read."""
    for thread in threading.enumerate():
        if thread.name.startswith(recorder.READER):
            thread.join(60)
            assert not thread.is_alive()


def test_the_next_part_is_read_while_the_model_runs(photos, reads):
    begun = threading.Event()

    def before(name):
        if name == "05.png":  # of the second part
            begun.set()

    def during(x):
        assert begun.wait(60), "the reader waits for the run"

    reads.before = before
    (made,) = record([Watched(during)], photos, batch=4)
    assert made.names == tuple(photos)


class AtOnce(ThreadPoolExecutor):
    """A reader that is done with all that it is given before anybody goes on."""

    def submit(self, *arguments):
        future = super().submit(*arguments)
        future.result()
        return future


@pytest.mark.parametrize("reader", [ThreadPoolExecutor, AtOnce])
def test_no_more_than_two_parts_are_held(photos, monkeypatch, reader):
    made, held = [], []
    monkeypatch.setattr(recorder, "ThreadPoolExecutor", reader)
    real = recorder._read

    def read(*arguments):
        held.append(sum(one() is not None for one in made))
        one = real(*arguments)
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(recorder, "_read", read)
    record([Watched(lambda x: None)], photos, batch=3)
    assert len(held) == 11
    assert max(held) <= 5  # a whole part, and all but the last photo of the next


@pytest.mark.parametrize("error", [errors.MethodError("no"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_whoever_leaves_does_not_wait_for_the_reader(photos, reads, error):
    """It ends after the photo that it is at, however long that takes."""
    begun, goes_on, timely = threading.Event(), threading.Event(), []

    def before(name):
        if name == "05.png":  # the second of the second part
            begun.set()
            timely.append(goes_on.wait(20))

    def during(x):
        assert begun.wait(60)
        raise error

    reads.before = before
    with pytest.raises(type(error)):
        record([Watched(during)], photos, batch=4)
    goes_on.set()
    joined_readers()
    assert timely == [True]
    assert reads.names == [f"{i:02}.png" for i in range(6)]


# Killed and started again


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def stopping(after):
    """What is called during a run, and stops the run after so many parts as Ctrl-C does."""
    calls = []

    def during(x):
        calls.append(len(x))
        if len(calls) > after:
            raise KeyboardInterrupt

    return during, calls


@pytest.mark.parametrize("after", range(4))
def test_a_run_goes_on_where_it_was(photos, tmp_path, reads, after):
    whole, path = tmp_path / "whole.npz", tmp_path / "run.npz"
    record_to([Watched(lambda x: None)], photos, [whole], batch=3)
    reads.names.clear()
    stops, _ = stopping(after)
    with pytest.raises(KeyboardInterrupt):
        record_to([Watched(stops)], photos, [path], batch=3)
    joined_readers()
    journal = recorder.journal_of(path)
    assert journal.name == "run.npz.partial"
    assert sorted(contents(journal)) == [*(f"{i:06}.npz" for i in range(after)), "plan.json"]
    assert not path.exists()
    reads.names.clear()
    goes_on, calls = stopping(99)
    told = []
    record_to([Watched(goes_on)], photos, [path], batch=3, progress=lambda *of: told.append(of))
    assert calls == [3, 3, 3, 2][after:]
    assert reads.names == list(photos)[3 * after :]
    assert told[0] == (3 * after, 11)
    assert told[-1] == (11, 11)
    assert path.read_bytes() == whole.read_bytes()
    assert not journal.exists()


def test_a_side_that_was_ahead_of_the_other_is_not_run_again(photos, tmp_path):
    stops, _ = stopping(1)
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    first, calls = stopping(99)
    with pytest.raises(KeyboardInterrupt):
        record_to([Watched(first), Watched(stops)], photos, paths, batch=3)
    assert calls == [3, 3]
    calls.clear()
    again, second_calls = stopping(99)
    record_to([Watched(first), Watched(again)], photos, paths, batch=3)
    assert calls == [3, 2]
    assert second_calls == [3, 3, 2]
    assert [p.name for p in sorted(tmp_path.glob("*.npz*"))] == ["a.npz", "b.npz"]


def interrupted(side_, photos, path, batch=3):
    side_.explainer.explain_tensor, kept = (
        Watched(stopping(2)[0]).explain_tensor,
        side_.explainer.explain_tensor,
    )
    with pytest.raises(KeyboardInterrupt):
        record_to([side_], photos, [path], batch=batch)
    side_.explainer.explain_tensor = kept


CHANGES = {
    "model": lambda one: setattr(one, "maker", replace(one.maker, sha256="other")),
    "record": lambda one: setattr(
        one.explainer, "record", contract.Record((), contract.Score("scores", "other"))
    ),
    "method": lambda one: setattr(one, "maker", replace(one.maker, method="layercam")),
    "target": lambda one: setattr(one, "target", 3),
    "layers": lambda one: setattr(one, "layers", ("top",)),
    "options": lambda one: setattr(one, "options", {"seed": np.arange(5000.0)}),
}


@pytest.mark.parametrize("change", [*CHANGES, "batch", "photo", "fewer"])
def test_what_is_kept_of_another_run_is_begun_anew(photos, tmp_path, caplog, change):
    path, calls = tmp_path / "run.npz", []
    one = Watched(lambda x: calls.append(len(x)))
    one.explainer.explain_tensor = lambda x, *_, **__: Watched.explain_tensor(one, x)
    interrupted(one, photos, path)
    if change in CHANGES:
        CHANGES[change](one)
    elif change == "photo":
        os.utime(photos["09.png"], ns=(1, 1))
    elif change == "fewer":
        photos = dict(list(photos.items())[:9])
    record_to([one], photos, [path], batch=4 if change == "batch" else 3)
    assert sum(calls) == len(photos)
    assert caplog.record_tuples == [
        (
            "onnxcam",
            logging.WARNING,
            f"What is kept in '{path}.partial' is of another run, and is begun anew.",
        )
    ]


def test_options_that_differ_in_one_number_of_many_are_not_the_same(photos):
    one, other = np.arange(5000.0), np.arange(5000.0)
    other[2500] = np.nextafter(2500.0, 0)
    sides = [SimpleNamespace(**{**vars(Watched(None)), "options": {"x": x}}) for x in (one, other)]
    assert recorder._plan(sides[0], photos, 3) != recorder._plan(sides[1], photos, 3)
    assert recorder._plan(sides[0], photos, 3) == recorder._plan(sides[0], dict(photos), 3)


def test_a_part_that_was_cut_is_recorded_again(photos, tmp_path):
    path, calls = tmp_path / "run.npz", []
    one = Watched(lambda x: calls.append(len(x)))
    interrupted(one, photos, path)
    part = recorder.journal_of(path) / "000001.npz"
    part.write_bytes(part.read_bytes()[:200])
    record_to([one], photos, [path], batch=3)
    assert calls == [3, 3, 2]
    assert recording.load(path).names == tuple(photos)


@pytest.mark.parametrize("other", [{"batch": 2}, {"batch": 3}], ids=["another", "the same"])
@pytest.mark.parametrize("done", [3, 11], ids=["early", "at the end"])
def test_two_runs_at_once_do_not_mix(photos, tmp_path, other, done):
    """The later one, whether it asks for the same or not, ends while the first is under way."""
    path, inside = tmp_path / "run.npz", []

    def during(count, of):
        if count == done and not inside:
            inside.append(record_to([Watched(lambda x: None)], photos, [path], **other))

    with pytest.raises(
        errors.OutputError,
        match=r"Another run uses '.*run\.npz\.partial' at the same time: start this one again when that one",
    ):
        record_to([Watched(lambda x: None)], photos, [path], batch=3, progress=during)
    assert recording.load(path).names == tuple(photos)
    assert not recorder.journal_of(path).exists()


def test_a_folder_of_somebody_else_is_left_alone(photos, tmp_path):
    folder = tmp_path / "run.npz.partial"
    folder.mkdir()
    (folder / "000000.npz").write_bytes(b"mine")
    (folder / "holiday.npz").write_bytes(b"mine, too")
    with pytest.raises(
        errors.OutputError,
        match=r"partial' is where the parts of a recording are kept, and 'holiday\.npz' is none: move it, or",
    ):
        record_to([Watched(lambda x: None)], photos, [tmp_path / "run.npz"])
    assert sorted(contents(folder)) == ["000000.npz", "holiday.npz"]


def test_what_a_killed_run_left_of_a_file_goes_with_the_journal(photos, tmp_path, caplog):
    folder = tmp_path / "run.npz.partial"
    folder.mkdir()
    record_to([Watched(lambda x: None)], photos, [tmp_path / "run.npz"])  # killed before it had written
    folder.mkdir()
    for name in (".plan.json.0123abcd", ".000001.npz.0123abcd", ".whole.npz.0123abcd"):
        (folder / name).write_bytes(b"half")
    record_to([Watched(lambda x: None)], photos, [tmp_path / "run.npz"])
    assert not folder.exists()
    assert not caplog.records


def test_folders_that_cannot_be_written(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        errors.OutputError, match=r"Cannot write to '.*file/run\.npz\.partial': Not a directory"
    ):
        record_to([Watched(lambda x: None)], photos, [tmp_path / "file" / "run.npz"])

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rmdir", refuse)
        with pytest.raises(
            errors.OutputError, match=r"partial' cannot be removed: Permission denied\. Remove it"
        ):
            record_to([Watched(lambda x: None)], photos, [tmp_path / "run.npz"])
    assert recording.load(tmp_path / "run.npz").names == tuple(photos)
    with monkeypatch.context() as patched:
        real = os.replace
        patched.setattr(
            recorder.os, "replace", lambda a, b: refuse() if str(b).endswith("two.npz") else real(a, b)
        )
        with pytest.raises(
            errors.OutputError, match=r"Cannot write '.*two\.npz': Permission denied\. Name another"
        ):
            record_to([Watched(lambda x: None)], photos, [tmp_path / "two.npz"])


KILLED = """
import sys, time
from pathlib import Path
from onnxcam import Explainer
from onnxcam.recorder import names_of, record_to, side

folder, slow = Path(sys.argv[1]), float(sys.argv[2])

class Slow:
    def __init__(self, explainer):
        self.explainer = explainer
    def __getattr__(self, name):
        return getattr(self.explainer, name)
    def explain_tensor(self, *arguments, **options):
        time.sleep(slow)
        return self.explainer.explain_tensor(*arguments, **options)

path = folder / "tiny.cam.onnx"
sides = [side(Slow(Explainer(path, "cpu", session_options={"intra_op_num_threads": 1})), path) for _ in "ab"]
record_to(sides, names_of([folder / "photos"]), [folder / sys.argv[3], folder / sys.argv[4]], batch=2)
"""


UNIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no SIGKILL here")


@UNIX
def test_killed_at_any_moment_and_started_again(opened, photos, tmp_path):
    """What lies there is whole or is not there, and what comes out is what an uninterrupted run writes."""
    opened()

    def start(slow, *names):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(slow), *names])

    assert start(0, "a.npz", "b.npz").wait(120) == 0
    whole = [(tmp_path / name).read_bytes() for name in ("a.npz", "b.npz")]
    names = ("c.npz", "d.npz")
    journals = [recorder.journal_of(tmp_path / name) for name in names]
    kept: list[int] = []
    for wanted in (0, 1, 3, 4):  # parts that are kept when the run is killed
        process = start(0.05, *names)
        try:
            for _ in range(6000):
                kept_now = len(list(journals[0].glob("[0-9]*.npz"))) if journals[0].is_dir() else -1
                if kept_now >= wanted or process.poll() is not None:
                    break
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        assert process.returncode == -signal.SIGKILL
        for journal in journals:
            for part in journal.glob("[0-9]*.npz"):
                recording.load(part)
        kept.append(len(list(journals[0].glob("[0-9]*.npz"))))
        assert not (tmp_path / "c.npz").exists()
    assert kept == sorted(kept)
    assert kept[-1] >= 4
    assert start(0, *names).wait(120) == 0
    assert [(tmp_path / name).read_bytes() for name in names] == whole
    assert not any(journal.exists() for journal in journals)


MOMENTS = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from onnxcam import contract, recorder, recording

folder = Path(sys.argv[1])
how = contract.Preprocess(size=(4, 4))
DOES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}

def explain_tensor(x, *_):
    mean = x.mean((1, 2, 3))
    return SimpleNamespace(
        outputs={"scores": np.stack([mean, -mean], 1)}, layer_maps={"top": x[:, 0]}, labels=["a"] * len(x),
        class_ids=np.zeros(len(x), np.int64), scores=mean)

def side(name):
    explainer = SimpleNamespace(
        input=SimpleNamespace(dtype=np.dtype(np.float32)), explain_tensor=explain_tensor,
        record=contract.Record((), contract.Score("scores", "logits")))
    return recorder.Side(explainer, recording.Maker(name, (), preprocess=how))

def run(where, at):
    # In a process that kills itself before it changes the disk for the at-th time; whether it came to that.
    child = os.fork()
    if not child:
        left = [at]
        def hook(event, arguments):
            if event in DOES and str(where) in str(arguments[0]):
                if event != "open" or "x" in (arguments[1] or ""):
                    left[0] -= 1
                    if left[0] == -1:
                        os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        photos = recorder.names_of([folder / "photos"])
        recorder.record_to([side("a"), side("b")], photos, [where / "a.npz", where / "b.npz"], batch=4)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0

def contents(where):
    return {p.relative_to(where).as_posix(): p.read_bytes() for p in where.rglob("*") if p.is_file()}

def fresh(name):
    (folder / name).mkdir()
    return folder / name

assert not run(fresh("whole"), 1 << 30)
whole = contents(folder / "whole")
assert sorted(whole) == ["a.npz", "b.npz"]
moments = 0
while True:
    where = fresh(f"{moments}")
    if not run(where, moments):
        break
    for again in (moments // 2, 1 << 30):
        seen = contents(where)
        for name in ("a.npz", "b.npz"):
            assert seen.get(name, whole[name]) == whole[name]
        for name in seen:
            if name.endswith(".npz") and "/." not in name:
                recording.load(where / name)
        killed = run(where, again)
    assert not killed
    assert contents(where) == whole, sorted(contents(where))
    assert not [p for p in where.iterdir() if p.is_dir()]
    moments += 1
print(moments)
"""


@UNIX
def test_killed_before_each_change_of_the_disk(photos, tmp_path):
    """And once more while it goes on: what is there is whole, and in the end everything is, and no more."""
    done = subprocess.run(
        [sys.executable, "-c", MOMENTS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30  # two plans, six parts, two recordings; each opened, renamed, removed
