"""onnxcam evaluate."""

from __future__ import annotations

import csv
import io
import json

import cv2
import numpy as np
import pytest

from onnxcam import demo, metrics
from onnxcam.demo import mosaics


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A mosaic, once for each of its classes, with what is explained and where it is, said in three ways."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name in ("photos", "masks"):
        (folder / name).mkdir()
    (folder / "demo.cam.onnx").write_bytes(demo.model_bytes())
    (made,) = mosaics.mosaics(mosaics.held_out(), 1)
    boxes, classes = {}, {}
    for label, (left, top, right, bottom) in made.tiles.items():
        mask = np.zeros(made.image.shape[:2], np.uint8)
        mask[top:bottom, left:right] = 255
        cv2.imwrite(str(folder / "photos" / f"{label}.png"), cv2.cvtColor(made.image, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(folder / "masks" / f"{label}.png"), mask)
        boxes[f"{label}.png"], classes[f"{label}.png"] = [[left, top, right, bottom]], label
    (folder / "boxes.json").write_text(json.dumps(boxes))
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


@pytest.fixture
def evaluate(cli, photos):
    """``onnxcam evaluate`` of the demo's model on these photos, with gradcam alone."""

    def run(*more):
        return cli("evaluate", photos / "demo.cam.onnx", photos / "photos", "-m", "gradcam", *more)

    return run


def test_the_table_has_a_row_per_method_and_one_of_random_maps(evaluate):
    ran = evaluate("--metrics", "deletion,increase")
    assert (ran.status, ran.err) == (0, "")
    heads, _, first, baseline, *_ = ran.out.splitlines()
    assert heads.split() == ["method", "deletion", "↓", "increase", "↑", "s/image", "passes"]
    assert first.startswith(" gradcam ")
    assert "*0." in first
    assert first.split()[-1] == "1"
    assert baseline.startswith(" random (baseline)")
    assert "4 images. *: the best of its column" in ran.out


@pytest.mark.parametrize("truth", ["masks", "boxes.json"])
def test_masks_and_boxes_say_the_same(evaluate, photos, truth):
    ran = evaluate(
        "--metrics", "energy,pointing", "--truth", photos / truth, "-t", photos / "classes.json", "--json"
    )
    assert ran.status == 0
    assert [image["target"] for image in ran.data["images"]] == sorted(
        json.loads((photos / "classes.json").read_text()).values()
    )
    values = [ran.data["methods"][0]["metrics"][name]["mean"] for name in ("energy", "pointing")]
    assert values == pytest.approx([0.90, 1.0], abs=0.1)


def test_csv_is_what_the_report_has(evaluate, tmp_path):
    pytest.importorskip("matplotlib")
    ran = evaluate("--metrics", "deletion,drop", "--csv", "-o", tmp_path / "report")
    assert ran.status == 0
    assert "report.json, report.csv, curves.png in " in ran.err
    printed = list(csv.DictReader(io.StringIO(ran.out)))
    written = (tmp_path / "report" / "report.csv").read_text(encoding="utf-8")
    assert printed == list(csv.DictReader(io.StringIO(written)))
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert float(printed[0]["deletion"]) == report["methods"][0]["metrics"]["deletion"]["mean"]
    picture = cv2.imread(str(tmp_path / "report" / "curves.png"))
    assert picture.shape[0] > 300


def test_the_plot_of_an_earlier_report_is_no_photo(cli, photos, tmp_path):
    pytest.importorskip("matplotlib")
    source = next((photos / "photos").iterdir())
    (tmp_path / "photo.png").write_bytes(source.read_bytes())
    command = ("evaluate", photos / "demo.cam.onnx", tmp_path, "-m", "gradcam", "-o", tmp_path / "report")
    for _ in range(2):
        ran = cli(*command, "--metrics", "deletion", "--json")
        assert [image["image"] for image in ran.data["images"]] == [str(tmp_path / "photo.png")]
    assert (tmp_path / "report" / "curves.png").exists()


def test_without_a_curve_there_is_no_plot(evaluate, tmp_path):
    assert evaluate("--metrics", "drop", "-o", tmp_path, "-q").status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.csv", "report.json"]


def test_options_and_the_score_reach_the_library(evaluate):
    ran = evaluate("--metrics", "deletion", "--set", "deletion.steps=4", "--score", "output", "--json")
    assert ran.data["score"] == "output"
    assert ran.data["methods"][0]["metrics"]["deletion"]["curve"]["x"] == [0, 0.25, 0.5, 0.75, 1]


def test_what_is_left_out_and_what_is_refused_is_said(evaluate, photos, tmp_path):
    partial = tmp_path / "partial.json"
    partial.write_text(json.dumps(dict(list(json.loads((photos / "boxes.json").read_text()).items())[:3])))
    ran = evaluate("--metrics", "energy", "--truth", partial, "-m", "gradcam,finercam")
    assert ran.status == 0
    assert "1 of the photos have no truth." in ran.err
    assert "(of 3)" in ran.out
    assert "left out: energy of gradcam, random: There is no truth for '" in ran.out
    assert "not measured: finercam: " in ran.out


def test_many_reasons_are_not_all_printed(cli, photos, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    picture = next((photos / "photos").iterdir()).read_bytes()
    for path in paths:
        path.write_bytes(picture)
    (tmp_path / "boxes.json").write_text(json.dumps({"0.png": [[0, 0, 9, 9]]}))
    what = ("-m", "gradcam", "--metrics", "energy", "--truth", tmp_path / "boxes.json")
    ran = cli("evaluate", photos / "demo.cam.onnx", *paths, *what)
    assert ran.out.count("left out: ") == 10
    assert "... and for 1 more reasons, in --json." in ran.out


def test_the_sanity_check_takes_a_second_file(evaluate, photos):
    metric = "randomised_ssim"
    ran = evaluate("--metrics", metric, "--randomised", photos / "demo.cam.onnx", "--json")
    assert ran.data["methods"][0]["metrics"][metric]["mean"] == pytest.approx(1)


def test_the_file_with_random_weights_can_be_made_on_the_way(evaluate, photos):
    pytest.importorskip("onnx_ir")
    names = ("randomised_ssim", "randomised_rank")
    classes = photos / "classes.json"
    ran = evaluate("--metrics", ",".join(names), "--randomised", "auto", "-t", classes, "--json")
    assert ran.status == 0, ran.err
    found = ran.data["methods"][0]["metrics"]
    assert all(abs(found[name]["mean"]) < 0.8 for name in names)


def test_photos_that_cannot_be_read_are_skipped(cli, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff cut short")
    good = next((photos / "photos").iterdir())
    ran = cli("evaluate", photos / "demo.cam.onnx", good, tmp_path, "-m", "gradcam", "--metrics", "drop")
    assert ran.status == 1
    assert "skipped: " in ran.err
    assert "1 images." in ran.out or "1 image." in ran.out
    ran = cli("evaluate", photos / "demo.cam.onnx", tmp_path)
    assert ran.status == 2
    assert "None of the photos can be read." in ran.err


def test_the_list_is_the_registry(cli):
    ran = cli("evaluate", "--list", "--json")
    assert [m["name"] for m in ran.data] == metrics.names()
    assert "deletion" in cli("evaluate", "--list").out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metrics", "deletoin"], "No metric 'deletoin'. Nearest: 'deletion'"),
        (["--metrics", "energy"], "'energy' needs the truth, where the object is"),
        (["--truth", "nowhere"], "There is no folder of masks or JSON file 'nowhere'"),
        (["--set", "steps=3"], "--set is NAME.OPTION=VALUE, such as deletion.steps=50, not 'steps=3'"),
        (["--set", "deletion.steps"], "--set is NAME.OPTION=VALUE"),
        (["--set", "deletion.steps=x"], "--set is NAME.OPTION=VALUE"),
        (
            ["--metrics", "deletion", "--set", "deletion.steps=0"],
            "is a whole number of at least 1, such as 20,",
        ),
        (["--metrics", ""], "--metrics names no metric; `onnxcam evaluate --list` has them all."),
        (["-t", "{photos}/partial.json"], "names no class for '"),
        (["-m", "gradcma"], "No method 'gradcma'"),
        (["-o", "{photos}/demo.cam.onnx"], "cannot be written: "),
    ],
    ids=range(11),
)
def test_errors_are_one_line(evaluate, photos, more, message):
    pytest.importorskip("matplotlib")
    (photos / "partial.json").write_text("{}")
    ran = evaluate("--metrics", "drop", *(part.format(photos=photos) for part in more))
    assert ran.status == 2
    assert message in ran.err
    assert ran.err.strip().count("\n") == 0


def test_a_model_and_photos_are_needed(cli):
    ran = cli("evaluate")
    assert ran.status == 2
    assert "Name an explainable file and photos: `onnxcam evaluate model.cam.onnx folder/`" in ran.err
