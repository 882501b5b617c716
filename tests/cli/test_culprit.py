"""``onnxcam culprit``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import culprit_files as files
import pytest

FIELDS = ("size=24,24", "fit=stretch", "mean=0.5", "std=0.25")
HOW = [part for field in FIELDS for part in ("--preprocess", field)]


@pytest.fixture(scope="module")
def made():
    """A folder: the network, its QDQ form, one with a spoilt activation, and photos."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, good = files.pair(folder)
        files.spoil(good, "a", 0.02, folder / "bad.onnx")
        files.photos(folder / "photos", 4)
        yield folder


def run(cli, made, quantised, *more, photos=()):
    how = ("-l", "r4", *HOW, *more)
    return cli("culprit", made / "net.onnx", made / quantised, *(photos or [made / "photos"]), *how)


def test_the_culprit_is_named_first(cli, made):
    ran = run(cli, made, "bad.onnx")
    assert ran.status == 0, ran.err
    head, _, first, *rows = ran.out.splitlines()
    columns = ["tensor", "kind", "read by", "type", "scale", "alone", "worst", "same answer", "without it"]
    assert [c for c in columns if c in head] == columns
    assert first.split()[:4] == ["a", "activation", "node_d", "uint8"]
    assert sum(line.startswith(("w", "b", "v")) and "_quantized" in line for line in rows) <= 10
    assert (
        "gradcam at r4, 4 photos: mean pearson of the maps with the reference's (higher is better)" in ran.out
    )
    assert "3 more tensors move it less." in ran.out
    assert "All quantised: 0.5" in ran.out
    assert "Leave in float: a. The rest quantised: 0.99" in ran.out
    assert "which meets 0.95. They are read by node_d." in ran.out
    assert "Check: outputs differ from the reference's by" in ran.out
    assert "do not add up" not in ran.err


def test_a_good_file_needs_nothing(cli, made):
    ran = run(cli, made, "QDQ.onnx", "--top", 2)
    assert ran.status == 0, ran.err
    assert "Nothing needs to stay in float: that meets 0.95." in ran.out
    assert "21 more tensors move it less." in ran.out
    assert len([line for line in ran.out.splitlines() if "activation" in line or "_quantized" in line]) == 2


def test_the_report_as_json(cli, made, tmp_path):
    target = tmp_path / "new" / "report.json"
    how = ("--measure", "js", "--threshold", 0.01, "--method", "layercam")
    ran = run(cli, made, "bad.onnx", "--json", "-o", target, *how)
    assert ran.status == 0, ran.err
    assert ran.data == json.loads(target.read_text())
    assert (ran.data["measure"], ran.data["method"], ran.data["layer"]) == ("js", "layercam", "r4")
    assert ran.data["culprits"][0]["tensor"]["name"] == "a"
    assert ran.data["advice"]["tensors"] == ["a"]
    assert ran.data["photos"] == ["0.png", "1.png", "2.png", "3.png"]
    assert f"The report is in {target}." in ran.err


def test_photos_that_cannot_be_read_are_reported(cli, made, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    ran = run(cli, made, "QDQ.onnx", "--top", 0, photos=(made / "photos", tmp_path / "broken.png"))
    assert ran.status == 1
    assert "skipped: broken.png: " in ran.err


def test_a_threshold_that_nothing_meets(cli, made):
    """Exactly one is what no rounding reaches, but the reference itself."""
    ran = run(cli, made, "bad.onnx", "--threshold", 1, "--top", 0)
    assert ran.status == 0, ran.err
    assert "Leave in float: a, " in ran.out


def test_switches_that_do_not_add_up_are_said(cli, made, monkeypatch):
    from onnxcam.export import culprit

    original = culprit._check

    def apart(*given):
        found = original(*given)
        return culprit.Check(found.off, 0.2, found.kernels)

    monkeypatch.setattr(culprit, "_check", apart)
    ran = run(cli, made, "QDQ.onnx", "--top", 0)
    assert "The switches do not add up to the quantised file" in ran.err


def test_errors_are_one_sentence(cli, made):
    ran = cli("culprit", made / "net.onnx", made / "net.onnx", made / "photos", *HOW)
    assert ran.status == 2
    assert ran.err.startswith("error: The quantised file holds no DequantizeLinear")
    ran = cli("culprit", made / "net.onnx", made / "QDQ.onnx", made / "photos")
    assert ran.status == 2
    assert "records no preprocessing for photos" in ran.err
    assert "--preprocess" in ran.err


def test_what_is_refused_before_anything_is_run(cli, made, tmp_path):
    """There are no photos, which would be the next error."""
    ran = run(cli, made, "bad.onnx", "-o", tmp_path, photos=["nowhere"])
    assert ran.status == 2
    assert f"'{tmp_path}' is a folder: name a file for the report." in ran.err
