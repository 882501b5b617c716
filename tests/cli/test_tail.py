"""``--tail`` on the command line."""

import numpy as np
import onnx
import pytest

from ..export.test_tails import RESIDUAL, image, run


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(RESIDUAL, path)
    return path


def test_rewrite_names_the_tail_and_inspect_lists_it(cli, source, tmp_path):
    text = cli("rewrite", source, "--layer", "d", "--tail").out
    size = (tmp_path / "net.tail.onnx").stat().st_size
    assert f"net.tail.onnx: {size:,} bytes, what follows d" in text
    assert "tails net.tail.onnx (after d)" in " ".join(cli("inspect", tmp_path / "net.cam.onnx").out.split())
    data = cli("rewrite", source, "--layer", "d", "--tail", "--json").data
    assert data["tails"] == {"net.tail.onnx": size}
    (tail,) = cli("inspect", tmp_path / "net.cam.onnx", "--json").data["tails"]
    assert (tail["layer"], tail["sides"]) == ("d", [{"name": "cam.side.0", "tensor": "r", "rows": 1}])


def test_without_it_there_are_none(cli, source, tmp_path):
    cli("rewrite", source)
    assert not (tmp_path / "net.tail.onnx").exists()
    assert "tails none" in " ".join(cli("inspect", tmp_path / "net.cam.onnx").out.split())


def test_strip_leaves_a_tail_alone(cli, source, tmp_path):
    cli("rewrite", source, "--layer", "d", "--tail")
    tail, plain = tmp_path / "net.tail.onnx", tmp_path / "plain.onnx"
    before = tail.read_bytes()
    assert cli("strip", tmp_path / "net.cam.onnx", "-o", plain).status == 0
    assert [o.name for o in onnx.load(plain).graph.output] == ["y"]
    np.testing.assert_array_equal(run(plain, {"x": image()})["y"], run(source, {"x": image()})["y"])
    refused = cli("strip", tail, "-o", tmp_path / "other.onnx")
    assert refused.status == 2
    assert "is a tail" in refused.err
    assert "Take 'net.cam.onnx'" in " ".join(refused.err.split())
    assert tail.read_bytes() == before


def test_inspect_of_a_tail_says_whose_it_is(cli, source, tmp_path):
    cli("rewrite", source, "--layer", "d", "--tail")
    refused = cli("inspect", tmp_path / "net.tail.onnx")
    assert refused.status == 2
    assert "Take 'net.cam.onnx'" in " ".join(refused.err.split())


def test_export_writes_a_tail(cli, tmp_path, monkeypatch):
    pytest.importorskip("torch").set_num_threads(1)
    (tmp_path / "small.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    ran = cli("export", "small:make", "--input", "1x3x8x8", "--layer", "1", "--tail", "-o", "small.cam.onnx")
    assert ran.status == 0, ran.err
    assert "small.tail.onnx" in ran.out
    a = np.random.default_rng(0).random((7, 4, 6, 6)).astype(np.float32)  # another batch than any exported
    assert next(iter(run(tmp_path / "small.tail.onnx", {"cam.activations.1": a}).values())).shape == (7, 5)
