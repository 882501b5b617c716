"""Recipro-CAM from what each cell reaches: the same maps as from whole activations, in fewer steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from onnxcam import Explainer
from onnxcam.contract import CELLS, CLASS_INDEX, PATCHES, Record
from onnxcam.errors import BadTail, TensorError
from onnxcam.export import rewrite_onnx
from onnxcam.session import Session
from onnxcam.tail import Patches, Tail

from ..export.test_local_tails import BODIES, network, without_this_way

QUIET = {"log_severity_level": 4}
SIZE = (7, 9)
LOCAL = network(BODIES["two blocks"], SIZE)
WHOLE = network("t = Relu(r)", SIZE)
AROUND = network(BODIES["what goes around"], SIZE)


def image(batch=1, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, *SIZE)).astype(np.float32)


def written(net, folder):
    onnx.save(net, folder / "model.onnx")
    rewrite_onnx(folder / "model.onnx", folder / "model.cam.onnx", layers="r", tail=True)
    return folder / "model.cam.onnx"


def opened(net, folder):
    """A tail, and what its file gives for an image."""
    path = written(net, folder)
    session = Session(path, "cpu", session_options=QUIET)
    main = session.run({"x": image()}, [o.name for o in session.outputs])
    return Tail(path, session.record, "r", providers="cpu"), main


@pytest.mark.parametrize("net", [LOCAL, AROUND], ids=["blocks", "around the layer"])
@pytest.mark.parametrize("batch", [1, 5, 32])
def test_maps_are_those_of_a_file_without_this_way(net, batch, tmp_path):
    path = written(net, tmp_path)
    x = image(2)
    maps = []
    for file in (path, without_this_way(path)):
        explainer = Explainer(file, "cpu", session_options=QUIET, max_batch=batch)
        found = explainer.explain_tensor(x, "reciprocam", target=[[1, 4], [0]])
        assert found.maps.shape == (3, *SIZE)
        assert found.tail_passes == 2 * SIZE[0] * SIZE[1] + 1  # and the second class of the first image
        maps.append(found.maps)
    ours, theirs = maps
    assert np.ptp(theirs, axis=(1, 2)).min() > 1e-3 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_what_cannot_be_run_so_is_run_as_a_whole(tmp_path):
    """Behind the layer is a pool alone: by hand, a cell alone scores its channels' share of the mean."""
    path = written(WHOLE, tmp_path)
    explainer = Explainer(path, "cpu", session_options=QUIET)
    assert not explainer.record.tails[0].local
    found = explainer.explain_tensor(image(), "reciprocam", target=3)
    w = {t.name: onnx.numpy_helper.to_array(t) for t in WHOLE.graph.initializer}
    session = Session(path, "cpu", session_options=QUIET)
    a = np.maximum(session.run({"x": image()}, ["cam.activations.r"])["cam.activations.r"][0], 0)
    want = np.tensordot(w["v"][3], a, 1) / a[0].size + w["b"][3]
    np.testing.assert_allclose(found.maps[0], want, rtol=1e-4, atol=1e-6)


def test_a_base_with_patches_of_several_cells(tmp_path):
    tail, main = opened(AROUND, tmp_path)
    base = main["cam.activations.r"]
    rng = np.random.default_rng(1)
    copies, cells = np.array([0, 2, 0, 1, 2, 2]), np.array([3, 0, 60, 62, 8, 9])
    values = rng.standard_normal((6, 4)).astype(np.float32)
    changed = np.repeat(base, 3, axis=0)
    changed.reshape(3, 4, -1)[copies, :, cells] = values
    feeds = {CLASS_INDEX: np.array([2])}
    ours = tail.local_scores(base, Patches(copies, cells, values), main, feeds)
    theirs = tail.scores(changed, main, feeds)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-5)


def test_an_older_record_has_no_such_way(tmp_path):
    path = without_this_way(written(LOCAL, tmp_path))
    session = Session(path, "cpu", session_options=QUIET)
    tail = Tail(path, session.record, "r", providers="cpu")
    assert not tail.local
    with pytest.raises(BadTail, match=r"'r' cannot be run on changed cells alone: give `scores` the whole"):
        tail.local_scores(np.zeros((1, 4, *SIZE), np.float32), Patches(*[np.zeros(0, np.int64)] * 3))


def test_the_record_keeps_it():
    record = Record.from_json(
        '{"schema": 1, "layers": [], "score": {"output": "y", "tensor": "y"}, '
        '"tails": [{"layer": "r", "file": "f", "sha256": "", "local": true}]}'
    )
    assert record.tails[0].local
    assert Record.from_json(record.to_json()) == record
    assert not dataclasses.replace(record.tails[0], local=False).local


PATCH = Patches(np.arange(2), np.array([5, 62]), np.zeros((2, 4), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copies": np.array([0, 2])}, r"cells 0 to 62 of copies 0 to K - 1: no cell of a copy twice.*not\."),
        ({"copies": np.array([-1, 0])}, "cells 0 to 62"),
        ({"cells": np.array([5, 63])}, "cells 0 to 62"),
        ({"cells": np.array([-1, 5])}, "cells 0 to 62"),
        ({"copies": np.array([0, 0]), "cells": np.array([5, 5])}, "cells 0 to 62"),
        (
            {"values": np.zeros((2, 3), np.float32)},
            r"patches the shape \(2, 3\): they are to be .*\(2, 4\)\.",
        ),
        ({"base": np.zeros((2, 4, *SIZE), np.float32)}, r"base of 'r' has the shape \(2, 4, 7, 9\)"),
        ({"sides": {}}, r"'r' reads the output 'cam\.side\.0'.*give it in sides"),
        ({"feeds": {CLASS_INDEX: np.arange(3)}}, "one entry for all copies, or 2"),
        ({"feeds": {PATCHES: np.zeros((2, 4))}}, r"no optional input 'cam\.patches'"),
        ({"feeds": {CELLS: np.zeros((2, 2))}}, r"no optional input 'cam\.cells'"),
    ],
    ids="gap copy-below cell-above cell-below twice channels bases sides feeds patches cells".split(),
)
def test_what_does_not_fit_is_refused(change, message, tmp_path):
    tail, main = opened(AROUND, tmp_path)
    own = {k: change.pop(k) for k in ("copies", "cells", "values") if k in change}
    given = {"base": main["cam.activations.r"], "sides": main, "feeds": {}, **change}
    with pytest.raises(TensorError, match=message):
        tail.local_scores(given["base"], dataclasses.replace(PATCH, **own), given["sides"], given["feeds"])


def test_no_patches_at_all(tmp_path):
    tail, main = opened(LOCAL, tmp_path)
    none = Patches(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
    with pytest.raises(TensorError, match="at least one for each copy"):
        tail.local_scores(main["cam.activations.r"], none)
