"""Tails: what is cut out, that it runs with any batch, and what failure leaves behind."""

from __future__ import annotations

import hashlib

import nets
import numpy as np
import onnx
import onnxruntime

from onnxcam.contract import CLASS_INDEX, KEY, WITH_GRADIENTS, Record
from onnxcam.export import rewrite_onnx
from onnxcam.export import tail_files as files

GRAD = "cam.gradients.r"


def open_(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, feeds):
    s = open_(path)
    return dict(zip([o.name for o in s.get_outputs()], s.run(None, feeds), strict=True))


def image(batch=2, seed=0, size=8):
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size)).astype(np.float32)


def written(model, tmp_path, **options):
    """The report of a model with its tail."""
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    return rewrite_onnx(source, tmp_path / "model.cam.onnx", tail=True, **options)


def again(report, main, index, feeds=(), tail=0):
    """What a tail gives for some images of a run of its file, in any order and number."""
    record = report.record
    told = record.tails[tail]
    layer = next(x for x in record.layers if x.name == told.layer)
    fed = {layer.activations: files.rows_of(main[layer.activations], told.rows, index)}
    fed |= {s.name: files.rows_of(main[s.name], s.rows, index) for s in told.sides}
    fed |= {WITH_GRADIENTS: np.asarray(True), **dict(feeds)}
    return run(report.path.with_name(told.file), fed)


def agrees(report, main, index, names, **how):
    """That a tail gives what its file gave, for images with one entry each."""
    found = again(report, main, index, **how)
    for name in names:
        np.testing.assert_allclose(found[name], main[name][index], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_tail_is_named_hashed_and_told_of(tmp_path):
    report = written(nets.cnn(), tmp_path)
    (tail,) = report.record.tails
    path = tmp_path / "model.tail.onnx"
    assert (tail.layer, tail.file, tail.sides, tail.rows) == ("r", path.name, (), 1)
    assert tail.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.tails == {path.name: path.stat().st_size}
    assert f"model.tail.onnx: {path.stat().st_size:,} bytes, what follows r" in str(report)
    own = Record.from_json(open_(path).get_modelmeta().custom_metadata_map[KEY])
    assert (own.tail_of, own.layers, own.tails) == ("model.cam.onnx", report.record.layers, ())
    recorded = open_(report.path).get_modelmeta().custom_metadata_map[KEY]
    assert Record.from_json(recorded).tails == report.record.tails


def test_without_being_asked_for_there_is_none(tmp_path):
    onnx.save(nets.cnn(), tmp_path / "model.onnx")
    report = rewrite_onnx(tmp_path / "model.onnx", tmp_path / "model.cam.onnx")
    assert report.record.tails == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.cam.onnx", "model.onnx"]


def test_a_linear_head_by_hand(tmp_path):
    net = nets.cnn()
    report = written(net, tmp_path)
    w = {t.name: onnx.numpy_helper.to_array(t) for t in net.graph.initializer}
    a = np.random.default_rng(1).standard_normal((4, 4, 8, 8)).astype(np.float32)
    fed = {"cam.activations.r": a, CLASS_INDEX: np.array([0, 4, 2, 2]), WITH_GRADIENTS: np.asarray(True)}
    found = run(tmp_path / "model.tail.onnx", fed)
    np.testing.assert_allclose(found["y"], a.mean((2, 3)) @ w["v"].T + w["b"], rtol=1e-5, atol=1e-6)
    want = np.broadcast_to(w["v"][[0, 4, 2, 2]][:, :, None, None] / 64, a.shape)
    np.testing.assert_allclose(found[GRAD], want, rtol=1e-6)
    assert report.output_error == 0.0


def test_no_gradient_unless_asked_for(tmp_path):
    written(nets.cnn(), tmp_path)
    fed = {"cam.activations.r": np.ones((3, 4, 8, 8), np.float32)}
    assert run(tmp_path / "model.tail.onnx", fed)[GRAD].shape == (0, 0, 0, 0)
    (branch,) = [n for n in onnx.load(tmp_path / "model.tail.onnx").graph.node if n.op_type == "If"]
    then = next(a.g for a in branch.attribute if a.name == "then_branch")
    outside = {n.op_type for n in onnx.load(tmp_path / "model.tail.onnx").graph.node}
    assert "Expand" in {n.op_type for n in then.node}
    assert outside == {"GlobalAveragePool", "Flatten", "Gemm", "If"}
