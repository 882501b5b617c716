"""``onnxcam concepts``."""

from __future__ import annotations

import json

import cv2
import pytest

from onnxcam import images
from onnxcam.demo import mosaics


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for label in ("brick", "cat"):
        cv2.imwrite(str(folder / f"{label}.png"), mosaics.held_out()[label][..., ::-1])
    return folder


def test_concepts_writes_pictures_and_says_what_they_show(cli, demo_file, photos, tmp_path):
    out = tmp_path / "out"
    ran = cli("concepts", demo_file, photos, "-o", out, "-k", 2)
    assert ran.status == 0, ran.err
    assert sorted(p.name for p in out.iterdir()) == [
        "brick.concepts.png",
        "cat.concepts.png",
        "concepts.json",
    ]
    assert images.load(out / "cat.concepts.png").shape[1] >= 256
    assert "cat 1.00" in ran.out
    assert "brick 0." in ran.out
    assert f"2 pictures in {out}." in ran.out


def test_concepts_as_json(cli, demo_file, photos, tmp_path):
    ran = cli("concepts", demo_file, photos, "-o", tmp_path / "out", "-k", 3, "--names", 0, "--json", "-q")
    assert ran.status == 0, ran.err
    assert ran.data == json.loads((tmp_path / "out" / "concepts.json").read_text())
    assert len(ran.data["concepts"]) == 3
    assert all(not one["classes"] for one in ran.data["concepts"])
    assert sum(one["share"] for one in ran.data["concepts"]) == pytest.approx(1, abs=1e-4)


def test_too_many_concepts_are_refused(cli, demo_file, photos, tmp_path):
    ran = cli("concepts", demo_file, photos, "-o", tmp_path / "out", "-k", 100_000)
    assert ran.status == 2
    assert "cells hold 1 to" in ran.err
    assert "not 100000." in ran.err
    assert not (tmp_path / "out").exists()


def test_photos_that_cannot_be_read_are_skipped(cli, demo_file, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no image")
    ran = cli("concepts", demo_file, photos, "-o", tmp_path / "out", "-k", 2, "--names", 0)
    assert ran.status == 1
    assert "skipped: " in ran.err
    assert "broken.jpg" in ran.err
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    alone = cli("concepts", demo_file, photos / "broken.jpg", "-o", tmp_path / "other")
    assert alone.status == 2
    assert "None of the images can be read" in alone.err
