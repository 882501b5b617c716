"""The report's pictures: the maps where an Explainer shows them, and colours that say what changed."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from reported import recordings

import onnxcam
from onnxcam import recorder
from onnxcam.comparison import pictures
from onnxcam.comparison.data import Pair
from onnxcam.demo import mosaics
from onnxcam.images import load
from onnxcam.overlay import overlay

DEMO = Path(onnxcam.demo.__file__).parent / "demo.cam.onnx"
RNG = np.random.default_rng(2)


def seen(uri):
    """The picture of a data URI, RGB."""
    return load(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))


@pytest.fixture(scope="module")
def photo():
    return mosaics.mosaics(mosaics.held_out(), 1, mosaics.PHOTO_SEED)[0].image


@pytest.mark.parametrize(
    "how",
    [{}, {"fit": "crop", "resize": 300}, {"fit": "letterbox"}],
    ids=["stretch", "crop", "letterbox"],
)
@pytest.mark.parametrize("method", ["gradcam", "cam"])
def test_a_recorded_map_is_shown_as_the_explainer_shows_it(tmp_path, photo, how, method):
    wide = np.ascontiguousarray(photo[:200])
    path = tmp_path / "photo.png"
    path.write_bytes(cv2.imencode(".png", wide[..., ::-1])[1].tobytes())
    explainer = onnxcam.Explainer(DEMO)
    fields = {**dataclasses.asdict(explainer.preprocess), **how}
    explainer = onnxcam.Explainer(DEMO, preprocess=fields)
    (found,) = recorder.record([recorder.side(explainer, DEMO, method)], {"photo.png": str(path)})
    layer = found.maker.layers[0]
    size = wide.shape[:2]
    heat, visible = pictures.heatmap(found, layer, 0, size)
    expected = explainer.explain(str(path), method)
    np.testing.assert_allclose(heat, expected.heatmaps[0], atol=1e-6)
    np.testing.assert_array_equal(visible, expected.seen[0])
    assert visible.all() == (how.get("fit") != "crop")


def test_a_smaller_photo_shows_the_same_places():
    first, _ = recordings(["a.png"], sizes=(480, 640))
    first.maps["last"][0] = RNG.random((4, 4), np.float32)
    large, seen_large = pictures.heatmap(first, "last", 0, (480, 640))
    small, seen_small = pictures.heatmap(first, "last", 0, (120, 160))
    every = slice(1, None, 4)  # nearly the centres of the small one's pixels
    np.testing.assert_allclose(small, large[every, every], atol=0.02)
    np.testing.assert_array_equal(seen_small, seen_large[every, every])


def test_what_changed_is_coloured():
    photo = RNG.integers(0, 256, (2, 3, 3), np.uint8)
    change = np.array([[1, -1, 0], [0.5, -0.5, 0]], np.float32)
    found = pictures.difference(photo, change)
    grey = 64 + 0.625 * cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(float)
    assert tuple(found[0, 0]) == pictures.GAINED
    assert tuple(found[0, 1]) == pictures.LOST
    for row in (0, 1):
        np.testing.assert_allclose(found[row, 2], grey[row, 2], atol=0.51)
    np.testing.assert_allclose(found[1, 0], (grey[1, 0] + pictures.GAINED) / 2, atol=0.51)
    np.testing.assert_allclose(found[1, 1], (grey[1, 1] + pictures.LOST) / 2, atol=0.51)


def test_the_two_sides_and_their_difference():
    sides = recordings(["a.png", "b.png", "c.png"], sizes=(64, 64))
    photo = np.full((64, 64, 3), 128, np.uint8)
    drawn = pictures.draw(
        *sides, Pair("last", "last"), (2, 2), photo
    )  # the candidate looks two cells further right
    assert drawn.size == (pictures.SIDE, pictures.SIDE)
    shown = [seen(uri).astype(int) for uri in (drawn.reference, drawn.candidate, drawn.difference)]
    assert all(picture.shape == (*drawn.size, 3) for picture in shown)
    ground = np.full((*drawn.size, 3), 128, np.uint8)
    for side, picture in zip(sides, shown[:2], strict=True):
        heat, visible = pictures.heatmap(side, "last", 2, drawn.size)
        assert np.abs(picture - overlay(ground, heat, seen=visible)).mean() < 3  # what JPEG loses
    hot = np.array([pictures.heatmap(side, "last", 2, drawn.size)[0].argmax() for side in sides])
    rows, columns = np.unravel_index(hot, drawn.size)
    assert columns[0] < columns[1]
    lost, gained = (shown[2][row, column] for row, column in zip(rows, columns, strict=True))
    assert np.abs(lost - pictures.LOST).max() < 40
    assert np.abs(gained - pictures.GAINED).max() < 40
    assert (shown[2][0, 0] < 70).all()  # cut off by both: dimmed


def test_without_a_photo_the_map_alone_is_shown():
    sides = recordings(["a.png"], sizes=(64, 64))
    drawn = pictures.draw(*sides, Pair("last", "last"), (0, 0), None)
    heat, visible = pictures.heatmap(sides[0], "last", 0, drawn.size)
    expected = overlay(np.full((*drawn.size, 3), 208, np.uint8), heat, 1.0, seen=visible)
    assert np.abs(seen(drawn.reference).astype(int) - expected).mean() < 4  # what JPEG loses of pure colours


@pytest.mark.parametrize("size", [(1, 2000), (7, 3), (3000, 10)])
def test_any_proportions_can_be_drawn(size):
    sides = recordings(["a.png"], sizes=size)
    photo = RNG.integers(0, 256, (*size, 3), np.uint8)
    drawn = pictures.draw(*sides, Pair("stem", "last"), (0, 0), photo)
    assert max(drawn.size) == pictures.SIDE
    assert min(drawn.size) >= 1
    assert seen(drawn.difference).shape[:2] == drawn.size


def test_maps_of_no_evidence_differ_nowhere():
    sides = recordings(["a.png"], sizes=(64, 64))
    drawn = pictures.draw(*sides, Pair("stem", "stem"), (0, 0), np.full((64, 64, 3), 128, np.uint8))
    picture = seen(drawn.difference).astype(int)
    assert np.ptp(picture, axis=2).max() <= 2  # grey


def test_maps_are_rectified_as_their_method_has_it():
    first, _ = recordings(["a.png"], sizes=(64, 64))
    first.maps["last"][0] = [[1, 0, 0, 0], [0, -1, -1, 0], [0, -1, -1, 0], [0, 0, 0, 0]]
    for method, cold in (("theirs", True), ("gradcam", False), ("cam", True)):
        of = dataclasses.replace(first, maker=dataclasses.replace(first.maker, method=method))
        heat, _ = pictures.heatmap(of, "last", 0, (64, 64))
        corner = heat[-15, -15]  # a cell of zeros; only where evidence against counts is another one colder
        assert (corner > 0.1) == cold
