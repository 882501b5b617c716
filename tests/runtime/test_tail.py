"""What follows a layer, run alone: on copies, for many targets of an image, and without its file."""

from __future__ import annotations

import functools
import json
import os

import numpy as np
import onnx
import pytest

from onnxcam import Explainer, many, rows, targets
from onnxcam.contract import CLASS_INDEX, KEY
from onnxcam.errors import BadTail, InputError, NotExplainable, TensorError
from onnxcam.export import rewrite_onnx
from onnxcam.feeds import image_input
from onnxcam.grids import channels_first, put_back
from onnxcam.session import Session
from onnxcam.tail import Tail, rows_of
from onnxcam.targets import Box, Contrast, Region, Similar, Weights

from .. import nets
from ..export.test_scores import EMBEDDING, SEGMENTATION, TWO_OUTPUTS, YOLOV8
from ..export.test_tails import BRANCHES, RESIDUAL, WINDOWS

QUIET = {"log_severity_level": 4}


def image(batch=3, size=(8, 8), seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, *size)).astype(np.float32)


def opened(net, folder, **options):
    """The session of a file that has a tail."""
    onnx.save(net, folder / "model.onnx")
    rewrite_onnx(folder / "model.onnx", folder / "model.cam.onnx", tail=True, **options)
    return Session(folder / "model.cam.onnx", "cpu", session_options=QUIET)


def tail_of(session, folder, layer, **how):
    return Tail(folder / "model.cam.onnx", session.record, layer, **{"providers": "cpu", **how})


def everything(session, x, **feeds):
    return session.run({"x": x, **feeds}, [o.name for o in session.outputs])


# -- copies -----------------------------------------------------------------------------------------


def test_copies_of_one_image_get_its_sides(tmp_path):
    session = opened(RESIDUAL, tmp_path, layers="d")
    tail = tail_of(session, tmp_path, "d")
    assert tail.sides == ("cam.side.0",)
    main = everything(session, image(1))
    a = main["cam.activations.d"]
    copies = np.concatenate([a, np.zeros_like(a), a])
    copies[2, 1] = 0  # a channel left out
    found = tail.scores(copies, main)
    assert sorted(found) == ["y"]
    # By hand: what follows d is Add, Relu, pooling and a classifier.
    w = {t.name: onnx.numpy_helper.to_array(t) for t in RESIDUAL.graph.initializer}
    pooled = np.maximum(copies + main["cam.side.0"], 0).mean((2, 3))
    np.testing.assert_allclose(found["y"], pooled @ w["v"].T + w["b"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["y"][0], main["y"][0], rtol=1e-5)


def test_each_copy_may_be_of_another_image_and_class(tmp_path):
    session = opened(RESIDUAL, tmp_path, layers="d")
    tail = tail_of(session, tmp_path, "d")
    x, of, classes = image(), [2, 0, 0, 1], np.array([4, 0, 3, 3])
    main = everything(session, x)
    found = tail.gradients(main["cam.activations.d"][of], main, {CLASS_INDEX: classes}, of)
    want = everything(session, x[of], **{CLASS_INDEX: classes})
    for name in ("y", "cam.gradients.d"):
        np.testing.assert_allclose(found[name], want[name], rtol=1e-4, atol=1e-6)


def test_one_class_for_all_copies(tmp_path):
    session = opened(nets.cnn(), tmp_path)
    tail = tail_of(session, tmp_path, "r")
    a = everything(session, image())["cam.activations.r"]
    one = tail.gradients(a, feeds={CLASS_INDEX: np.array([2])})["cam.gradients.r"]
    each = tail.gradients(a, feeds={CLASS_INDEX: np.array([2, 2, 2])})["cam.gradients.r"]
    np.testing.assert_array_equal(one, each)


def test_copies_in_windows_go_back_and_through(tmp_path):
    session = opened(WINDOWS, tmp_path, layers="q")
    tail = tail_of(session, tmp_path, "q")
    main = everything(session, image(1))
    a = main["cam.activations.q"]
    grid = channels_first(a, tail.layer.layout)
    changed = np.concatenate([grid, 0 * grid])
    found = tail.scores(put_back(changed, tail.layer.layout, a), main)["y"]
    np.testing.assert_allclose(found[0], main["y"][0], rtol=1e-5)
    nothing = tail.scores(np.zeros_like(a), main)["y"]
    np.testing.assert_allclose(found[1], nothing[0], rtol=1e-5)
    assert np.abs(found[1] - found[0]).max() > 1e-3


def test_a_fixed_batch_is_filled_up(tmp_path):
    net = onnx.ModelProto()
    net.CopyFrom(RESIDUAL)
    for value in (*net.graph.input, *net.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    session = opened(net, tmp_path, layers="d")
    main = everything(session, image(2))
    of = [1, 0, 1, 1, 0]
    fed = {CLASS_INDEX: np.array([0, 1, 2, 3, 4])}
    tail = tail_of(session, tmp_path, "d")
    found = tail.gradients(main["cam.activations.d"][of], main, fed, of)
    assert [len(a) for a in found.values()] == [5, 5]
    np.testing.assert_allclose(found["y"], main["y"][of], rtol=1e-5)
    for k in range(5):
        classes = np.array([fed[CLASS_INDEX][k]] * 2)
        want = everything(session, image(2), **{CLASS_INDEX: classes})["cam.gradients.d"][of[k]]
        np.testing.assert_allclose(found["cam.gradients.d"][k], want, rtol=1e-4, atol=1e-6)


def test_a_number_of_the_whole_batch_goes_to_every_copy(tmp_path):
    session = opened(BRANCHES, tmp_path, layers="r")
    tail = tail_of(session, tmp_path, "r")
    for sign in (1, -1):
        main = everything(session, sign * (image() + 0.3))
        assert main[tail.sides[0]].shape == ()
        found = tail.scores(main["cam.activations.r"][[1, 1, 0, 2]], main)["y"]
        np.testing.assert_allclose(found, main["y"][[1, 1, 0, 2]], rtol=1e-5)


def test_rows_of_images():
    array = np.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(rows_of(array, 2, np.array([2, 0]))[:, 0], [8, 10, 0, 2])
    assert rows_of(array, 0, np.array([5, 5])) is array
    assert rows_of(array, 2, np.arange(3)) is array
    assert rows_of(np.zeros((4, 0, 3)), 2, np.array([1, 1, 0])).shape == (6, 0, 3)


# -- what does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sides": {}}, r"'d' reads the output 'cam\.side\.0'.*give it in sides"),
        ({"activations": slice(0, 0)}, "0 entries.*each image has 1: that is no whole number of copies"),
        ({"activations": slice(0, 2)}, "2 copies.*sides are of 3 images.*`of`"),
        ({"of": [0, 1]}, "3 copies.*`of` tells the images of 2"),
        ({"of": [0, 1, 3]}, "3 copies.*sides are of 3 images"),
        ({"of": [0, 1, -1]}, "3 copies.*sides are of 3 images"),
        ({"feeds": {"cam.class": np.zeros(3)}}, r"no optional input 'cam\.class'.*'cam\.class_index'"),
        ({"feeds": {"cam.with_gradients": np.array([True])}}, "no optional input 'cam.with_gradients'"),
        ({"feeds": {CLASS_INDEX: np.array([1, 2])}}, r"has the shape \(2,\): .* or 3, one for each"),
        ({"feeds": {CLASS_INDEX: np.array(1)}}, r"has the shape \(\)"),
    ],
    ids=range(10),
)
def test_what_a_tail_is_given_must_fit(tmp_path, change, message):
    session = opened(RESIDUAL, tmp_path, layers="d")
    tail = tail_of(session, tmp_path, "d")
    main = everything(session, image())
    a = main["cam.activations.d"][change.get("activations", slice(None))]
    given = {"sides": main, **change, "activations": a}
    with pytest.raises(TensorError, match=message):
        tail.scores(**given)


def test_windows_must_be_whole(tmp_path):
    session = opened(WINDOWS, tmp_path, layers="q")
    main = everything(session, image(1))
    with pytest.raises(TensorError, match=r"3 entries.*each image has 4"):
        tail_of(session, tmp_path, "q").scores(main["cam.activations.q"][:3], main)


def test_a_layer_without_tail(tmp_path):
    session = opened(nets.cnn(), tmp_path)
    with pytest.raises(BadTail, match=r"no tail for the layer 'x'.*onnxcam rewrite model\.onnx --tail"):
        tail_of(session, tmp_path, "x")


def test_bytes_have_nothing_beside_them(tmp_path):
    session = opened(nets.cnn(), tmp_path)
    with pytest.raises(BadTail, match=r"opened from bytes.*'model\.tail\.onnx'.*by its path"):
        Tail((tmp_path / "model.cam.onnx").read_bytes(), session.record, "r")


def test_a_missing_tail_is_missed_when_it_is_used(tmp_path):
    session = opened(nets.cnn(), tmp_path)
    (tmp_path / "model.tail.onnx").unlink()
    tail = tail_of(session, tmp_path, "r")  # not yet
    with pytest.raises(
        BadTail, match=r"'r' lies in .*model\.tail\.onnx.*cannot be read.*No such file.*together"
    ):
        tail.scores(np.zeros((1, 4, 8, 8), np.float32))


def test_another_files_tail_is_refused(tmp_path):
    session = opened(nets.cnn(), tmp_path)
    path = tmp_path / "model.tail.onnx"
    model = onnx.load(path)
    model.doc_string = "another"
    onnx.save(model, path)
    with pytest.raises(BadTail, match=r"another file than the one that was written with it.*run it again"):
        tail_of(session, tmp_path, "r").scores(np.zeros((1, 4, 8, 8), np.float32))


def test_a_tail_is_not_explained(tmp_path):
    opened(nets.cnn(), tmp_path)
    for front in (Session, Explainer):
        with pytest.raises(NotExplainable, match=r"model\.tail\.onnx' is a tail.*Take 'model\.cam\.onnx'"):
            front(tmp_path / "model.tail.onnx")


def test_a_file_that_lost_its_sides_says_so(tmp_path):
    opened(RESIDUAL, tmp_path, layers="d")
    model = onnx.load(tmp_path / "model.cam.onnx")
    kept = [o for o in model.graph.output if o.name != "cam.side.0"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    with pytest.raises(Exception, match=r"names the output 'cam\.side\.0'.*changed after"):
        Session(model.SerializeToString(), "cpu")


def test_a_tail_is_opened_as_its_file_is(tmp_path):
    session = opened(nets.cnn(), tmp_path)
    tail = tail_of(session, tmp_path, "r", session_options={"no_such_option": 1})
    with pytest.raises(InputError, match="no_such_option"):
        tail.scores(np.zeros((1, 4, 8, 8), np.float32))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("model.cam.onnx", "model.tail.onnx"):
        os.replace(tmp_path / name, moved / name)
    os.replace(moved / "model.cam.onnx", moved / "renamed.onnx")  # the tail keeps its name
    found = Tail(moved / "renamed.onnx", session.record, "r", providers="cpu")
    assert found.scores(np.zeros((2, 4, 8, 8), np.float32))["y"].shape == (2, 5)


# -- many targets -----------------------------------------------------------------------------------


class Counting:
    """A session that counts the images that go through it."""

    def __init__(self, session):
        self._session, self.images = session, 0

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self, feeds, fetch):
        self.images += len(feeds["x"])
        return self._session.run(feeds, fetch)


def asked(session, target, count, labels=None):
    return targets.resolve(target, count, session.record.score.classes, labels, session.record.score)


def both(session, folder, target, size=(8, 8), layer="r", max_batch=32, count=2, fetch=None):
    """What the whole file gives for rows, and what it gives with its tail; and how many images ran."""
    x = image(count, size)
    known = next(x for x in session.record.layers if x.name == layer)
    fetch = [o.name for o in session.outputs if not o.name.startswith("cam.side")] if fetch is None else fetch
    laid = {n: known.layout for n in (known.activations, known.gradients) if n in fetch}
    feeds, entry = {"x": x}, image_input(session.inputs, None)
    wanted = asked(session, target, count)
    whole = rows.run(session, feeds, wanted, fetch, laid, entry, max_batch)
    counting = Counting(session)
    tail = functools.cache(functools.partial(tail_of, session, folder))
    parts = many.run(counting, tail, feeds, wanted, fetch, laid, entry, max_batch)
    return whole, parts, counting.images


def same(whole, parts, count=2):
    assert parts.images == whole.images == count
    assert parts.targets is whole.targets
    assert list(parts.arrays) == list(whole.arrays)
    for name, want in whole.arrays.items():
        got = parts.arrays[name]
        assert got.dtype == want.dtype
        assert got.shape == want.shape, name
        scale = np.abs(want).max() if want.size else 1
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
        np.testing.assert_allclose(parts.per_image(name), whole.per_image(name), rtol=1e-4, atol=1e-5)


MASKS = np.random.default_rng(7).random((3, 6, 5)) > 0.5
REFERENCES = np.random.default_rng(8).standard_normal((3, 4)).astype(np.float32)
SEEDED = {"output": "kind", "seed": ["kind", "age"]}
CASES = {
    "one and five classes": (nets.cnn(), {}, [[2], [0, 1, None, 4, 3]], {}),
    "around the layer": (RESIDUAL, {"layers": "d"}, [[1, 0, 4], [None, 3]], {"layer": "d"}),
    "windows": (WINDOWS, {"layers": "q"}, [[1, 0, 4], [None, 3]], {"layer": "q"}),
    "probability": (
        nets.cnn("s = Softmax(y)", "float[N,5] s"),
        {"probability": True},
        [[1, 0], [4, None, 3]],
        {},
    ),
    "contrasts": (
        nets.cnn(),
        {"score": {"seed": True}},
        [[Contrast(0, 1), Contrast(3, [1, 2])], [2, Weights({1: 1.0, 4: -2.0})]],
        {},
    ),
    "several outputs": (
        TWO_OUTPUTS,
        {"score": SEEDED},
        [[Weights({"age": 1.0}), 1], [Weights({"kind": {2: 1.0}}), None, Weights({"age": 2.0})]],
        {"size": (6, 5)},
    ),
    "regions": (
        SEGMENTATION,
        {},
        [[Region(1, MASKS[0]), Region(mask=MASKS[1])], [2, None, Region(0, MASKS[2])]],
        {"size": (6, 5)},
    ),
    "boxes": (
        YOLOV8,
        {"score": {"task": "detection", "head": "yolov8"}},
        [[Box((0, 0, 3, 3)), 1], [Box((2, 1, 7, 5), 2), None, 0]],
        {"size": (6, 8)},
    ),
    "embeddings": (
        EMBEDDING,
        {"score": {"task": "embedding"}},
        [[Similar(REFERENCES[0]), None], [Similar(REFERENCES[1]), Similar(REFERENCES[2])]],
        {"size": (6, 5)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_many_targets_are_what_the_whole_file_gives(tmp_path, case):
    net, options, target, how = CASES[case]
    session = opened(net, tmp_path, **{"layers": "r", **options})
    whole, parts, ran = both(session, tmp_path, target, **how)
    assert ran == 2  # each image once, whatever it was asked for
    same(whole, parts)


@pytest.mark.parametrize("max_batch", [1, 2, 3])
@pytest.mark.parametrize("layer", ["q", "r"], ids=["around the layer", "nothing around it"])
def test_pieces_of_images_and_of_rows(tmp_path, layer, max_batch):
    session = opened(WINDOWS, tmp_path, layers=layer)
    target = [[1, 0, 4], [2], [None, 3], [0, 1, 2, 3, 4], [1]]
    whole, parts, ran = both(session, tmp_path, target, layer=layer, max_batch=max_batch, count=5)
    assert ran == 5
    same(whole, parts, 5)


def test_a_fixed_batch_of_many_targets(tmp_path):
    net = onnx.ModelProto()
    net.CopyFrom(WINDOWS)
    for value in (*net.graph.input, *net.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    session = opened(net, tmp_path, layers="q")
    target = [[1, 0, 4], [2], [None, 3, 0]]  # the second run has one image and is filled up
    whole, parts, ran = both(session, tmp_path, target, layer="q", count=3)
    assert ran == 4
    same(whole, parts, 3)


def test_several_layers_of_many_targets(tmp_path):
    session = opened(RESIDUAL, tmp_path, layers=["d", "t"])
    whole, parts, ran = both(session, tmp_path, [[0, 1, 2], [3]], layer="t")
    assert ran == 2
    same(whole, parts)


def test_without_gradients_the_tail_computes_none(tmp_path):
    session = opened(nets.cnn(), tmp_path, score={"seed": True})
    fetch = ["y", "cam.score", "cam.class", "cam.activations.r"]
    whole, parts, ran = both(session, tmp_path, [[0, 1, 2], [3]], fetch=fetch)
    assert ran == 2
    same(whole, parts)


def test_one_target_each_runs_the_file_alone(tmp_path):
    session = opened(nets.cnn(), tmp_path)
    (tmp_path / "model.tail.onnx").unlink()
    whole, parts, ran = both(session, tmp_path, [3, None])
    assert ran == 2
    same(whole, parts)


def test_without_tails_every_row_runs_the_file(tmp_path):
    session = opened(nets.cnn(), tmp_path, fuse="gradcam")
    target = [[0, 1, 2], [3]]
    whole, parts, ran = both(session, tmp_path, target)  # a map in the file is each row's own
    assert ran == 4
    same(whole, parts)
    model = onnx.load(tmp_path / "model.cam.onnx")
    record = json.loads(model.metadata_props[0].value) | {"tails": []}
    assert model.metadata_props[0].key == KEY
    model.metadata_props[0].value = json.dumps(record)
    bare = Session(model.SerializeToString(), "cpu", session_options=QUIET)
    whole, parts, ran = both(bare, tmp_path, target, fetch=["y", "cam.gradients.r"])
    assert ran == 4
    same(whole, parts)


def test_a_missing_tail_is_an_error_and_no_slow_run(tmp_path):
    session = opened(nets.cnn(), tmp_path)
    (tmp_path / "model.tail.onnx").unlink()
    with pytest.raises(BadTail, match="cannot be read"):
        both(session, tmp_path, [[0, 1, 2], [3]])
