"""``onnxcam explain``: overlays, the manifest, and what is skipped."""

from __future__ import annotations

import hashlib
import json
import shutil

import cv2
import numpy as np
import pytest

import onnxcam
from onnxcam import Explainer, stream
from onnxcam.explainer import Explainer as ExplainerClass


def test_a_folder_with_a_broken_image(cli, tiny_file, photos, tmp_path):
    model = tiny_file()
    ran = cli("explain", model, photos, "-o", tmp_path / "out")
    assert ran.status == 1
    assert (
        f"skipped: '{photos}/broken.jpg' is not an image that OpenCV can read, or it is damaged." in ran.err
    )
    assert ran.err.endswith(f"2 overlays and manifest.json in {tmp_path}/out; 1 skipped\n")
    assert "a.png" in ran.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "manifest.json"]

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["skipped"] == [
        {"image": f"{photos}/broken.jpg", "reason": ran.err.split("skipped: ")[1].splitlines()[0]}
    ]
    assert manifest["complete"] is True
    assert manifest["tool"] == f"onnxcam {onnxcam.__version__}"
    assert manifest["model"]["file"] == str(model)
    assert manifest["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert manifest["score"] == {
        "output": "scores",
        "task": "classification",
        "activation": None,
        "explained": "output",
    }
    assert manifest["providers"] == ["CPUExecutionProvider"]
    assert (manifest["method"], manifest["layers"], manifest["fuse"]) == ("gradcam", ["top"], "mean")
    assert manifest["overlay"] == {"alpha": 0.5, "colormap": "jet", "style": "blend"}

    paths = [f"{photos}/a.png", f"{photos}/below/b.jpg"]
    expected = Explainer(model, "cpu").explain(paths)
    for i, item in enumerate(manifest["items"]):
        assert item == {
            "image": paths[i],
            "image_index": i,
            "overlay": ("a.png", "b.png")[i],
            "class_id": int(expected.class_ids[i]),
            "label": expected.labels[i],
            "score": pytest.approx(float(expected.scores[i])),
            "size": [30, 40],
            "zero": bool(expected.zero[i]),
        }
        drawn = cv2.imread(str(tmp_path / "out" / item["overlay"]))[:, :, ::-1]
        np.testing.assert_array_equal(drawn, expected.overlay()[i])


def test_json_is_the_manifest_on_stdout_and_nothing_else(cli, tiny_file, photos, tmp_path):
    ran = cli("explain", tiny_file(), photos, "-o", tmp_path / "out", "--json")
    assert ran.status == 1
    assert ran.data == json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))


def test_quiet_leaves_the_results_and_what_is_skipped(cli, tiny_file, photos, tmp_path):
    ran = cli("explain", tiny_file(), photos, "-o", tmp_path / "out", "-q")
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("skipped: ")


def test_all_options_reach_the_library(cli, tiny_file, photos, tmp_path):
    model = tiny_file(layers=("features", "top"))
    ran = cli(
        *(
            "explain",
            model,
            photos / "a.png",
            "-o",
            tmp_path / "out",
            "--json",
            "--sheet",
            "--provider",
            "cpu",
        ),
        *("--method", "layercam", "-t", "tabby", "-t", "4", "--layer", "features", "--layer", "top"),
        *("--fuse", "max", "--alpha", "0.3", "--colormap", "viridis", "--style", "show_cam", "--batch", "1"),
        *("--preprocess", "imagenet-stretch", "--allow-fallback"),
    )
    assert ran.status == 0, ran.err
    manifest = ran.data
    assert (manifest["method"], manifest["layers"], manifest["fuse"]) == (
        "layercam",
        ["features", "top"],
        "max",
    )
    assert [item["overlay"] for item in manifest["items"]] == ["a.0.png", "a.4.png"]
    assert [item["label"] for item in manifest["items"]] == ["tabby, tabby cat", "hot pot"]
    assert {item["sheet"] for item in manifest["items"]} == {"a.sheet.png"}
    expected = Explainer(model, "cpu", preprocess="imagenet-stretch").explain(
        photos / "a.png", "layercam", [[0, 4]], ["features", "top"], "max"
    )
    for item, overlay in zip(manifest["items"], expected.overlay(0.3, "viridis", "show_cam"), strict=True):
        np.testing.assert_array_equal(
            cv2.imread(str(tmp_path / "out" / item["overlay"]))[:, :, ::-1], overlay
        )
    sheet = cv2.imread(str(tmp_path / "out" / "a.sheet.png"))[:, :, ::-1]
    np.testing.assert_array_equal(sheet, expected.sheet(0.3, "viridis", "show_cam"))


def test_photos_of_one_name_from_several_batches_do_not_overwrite_each_other(
    cli, tiny_file, photos, tmp_path
):
    for i in range(5):
        (photos / str(i)).mkdir()
        shutil.copy(photos / "a.png", photos / str(i) / "a.png")
    ran = cli("explain", tiny_file(), photos, "-o", tmp_path / "out", "--batch", "2", "--json")
    names = [item["overlay"] for item in ran.data["items"]]
    assert len(names) == len({n.lower() for n in names}) == 7
    assert [item["image_index"] for item in ran.data["items"]] == list(range(7))
    assert all((tmp_path / "out" / name).exists() for name in names)


def test_photos_are_read_in_batches(tiny_file, photos, monkeypatch):
    sizes = []
    explain = ExplainerClass.explain
    monkeypatch.setattr(
        ExplainerClass,
        "explain",
        lambda self, images, *a, **k: sizes.append(len(images)) or explain(self, images, *a, **k),
    )
    explainer = Explainer(tiny_file(), "cpu")
    paths = [f"{photos}/{name}" for name in ("a.png", "below/b.jpg", "broken.jpg", "nowhere.png")]
    batches = list(stream.explain_files(explainer, paths, batch=2))
    assert sizes == [2]
    assert [b.explanation is None for b in batches] == [False, True]
    assert batches[0].explanation.names == (f"{photos}/a.png", f"{photos}/below/b.jpg")
    assert [path for path, _ in batches[1].skipped] == [f"{photos}/broken.jpg", f"{photos}/nowhere.png"]
    assert list(stream.explain_files(explainer, [])) == []


def test_only_broken_images(cli, tiny_file, photos, tmp_path):
    ran = cli("explain", tiny_file(), photos / "broken.jpg", "-o", tmp_path / "out", "--json")
    assert ran.status == 1
    assert ran.data["items"] == []
    assert ran.data["layers"] == ["top"]
    assert (tmp_path / "out" / "manifest.json").exists()


def test_ctrl_c_leaves_a_manifest_of_what_is_there(cli, tiny_file, photos, tmp_path, monkeypatch):
    calls = []
    explain = ExplainerClass.explain

    def interrupted(self, images, *a, **k):
        calls.append(images)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return explain(self, images, *a, **k)

    monkeypatch.setattr(ExplainerClass, "explain", interrupted)
    ran = cli("explain", tiny_file(), photos, "-o", tmp_path / "out", "--batch", "1")
    assert (ran.status, ran.err) == (130, "interrupted\n")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["complete"] is False
    assert [item["overlay"] for item in manifest["items"]] == ["a.png"]


def test_a_map_of_zeros_is_reported(cli, tiny_file, tmp_path):
    from runtime.conftest import Tiny

    black = tmp_path / "black.png"
    found = None
    for value in (0, 255):
        cv2.imwrite(str(black), np.full((12, 12, 3), value, np.uint8))
        result = Explainer(Tiny().graph_bytes(), "cpu").explain(black, target=[[0, 1, 2, 3, 4]])
        found = next((int(c) for c, zero in zip(result.class_ids, result.zero, strict=True) if zero), found)
        if found is not None:
            break
    assert found is not None
    ran = cli("explain", tiny_file(), black, "-o", tmp_path / "out", "-t", found)
    assert ran.status == 0
    assert "(no evidence)" in ran.out
    assert "1 of the heatmaps are zero everywhere" in ran.err


def test_results_of_an_earlier_run_are_not_explained(cli, tiny_file, photos):
    (photos / "broken.jpg").unlink()
    assert cli("explain", tiny_file(), photos, "-o", photos / "out").status == 0
    ran = cli("explain", tiny_file(), photos, "-o", photos / "out", "--json")
    assert ran.status == 0
    assert len(ran.data["items"]) == 2
    assert "2 pictures in the output folder" in ran.err


def test_the_output_may_be_above_the_photos(cli, tiny_file, photos):
    ran = cli("explain", tiny_file(), photos / "below", "-o", photos, "--json")
    assert len(ran.data["items"]) == 1
    assert ran.status == 0


@pytest.mark.parametrize("what", ["folder", "file"])
def test_photos_are_never_overwritten(cli, tiny_file, photos, what):
    before = (photos / "a.png").read_bytes()
    ran = cli("explain", tiny_file(), photos if what == "folder" else photos / "a.png", "-o", photos)
    assert ran.status == 2
    assert "lie in the output folder" in ran.err
    assert "Name another folder with -o" in ran.err
    assert (photos / "a.png").read_bytes() == before
    assert not (photos / "manifest.json").exists()


def test_save_keeps_the_photos_too(tiny_file, photos):
    before = (photos / "a.png").read_bytes()
    (saved,) = Explainer(tiny_file(), "cpu").explain(photos / "a.png").save(photos)
    assert saved == photos / "a-2.png"
    assert (photos / "a.png").read_bytes() == before


def test_smoothing_scaling_channels_and_a_methods_own_options(cli, tiny_file, photos, tmp_path):
    model = tiny_file()
    how = ("--smooth", "tta", "--smooth", "noise", "--scale", "batch", "--channels", "0,2,-1")
    ran = cli(
        "explain", model, photos / "a.png", photos / "below" / "b.jpg", "-o", tmp_path / "out", "--json", *how
    )
    assert ran.status == 0, ran.err
    manifest = ran.data
    assert (manifest["smooth"], manifest["scale"], manifest["channels"]) == (
        ["tta", "noise"],
        "batch",
        "0,2,-1",
    )
    expected = Explainer(model, "cpu").explain(
        [photos / "a.png", photos / "below" / "b.jpg"],
        smooth=["tta", "noise"],
        scale="batch",
        channels=[0, 2, -1],
    )
    for item, overlay in zip(manifest["items"], expected.overlay(), strict=True):
        np.testing.assert_array_equal(
            cv2.imread(str(tmp_path / "out" / item["overlay"]))[:, :, ::-1], overlay
        )
    ran = cli(
        *("explain", model, photos / "a.png", "-o", tmp_path / "rise", "--json", "--method", "rise"),
        *("--option", "masks=20", "--option", "cells=3"),
    )
    assert ran.status == 0, ran.err
    assert ran.data["options"] == ["masks=20", "cells=3"]
    expected = Explainer(model, "cpu").explain(photos / "a.png", "rise", masks=20, cells=3)
    [item] = ran.data["items"]
    np.testing.assert_array_equal(
        cv2.imread(str(tmp_path / "rise" / item["overlay"]))[:, :, ::-1], expected.overlay()[0]
    )


def test_photos_of_a_method_of_many_runs_are_scaled_alike(cli, tiny_file, photos, tmp_path):
    model, pair = tiny_file(), [photos / "a.png", photos / "below" / "b.jpg"]
    how = ("-m", "rise", "--option", "masks=20", "--scale", "batch", "--batch", "2")
    ran = cli("explain", model, *pair, "-o", tmp_path / "out", "--json", *how)
    assert ran.status == 0, ran.err
    together = Explainer(model, "cpu").explain(pair, "rise", scale="batch", masks=20)
    apart = Explainer(model, "cpu").explain(pair, "rise", masks=20)
    assert any(
        not np.array_equal(*overlays) for overlays in zip(together.overlay(), apart.overlay(), strict=True)
    )
    for item, overlay in zip(ran.data["items"], together.overlay(), strict=True):
        np.testing.assert_array_equal(
            cv2.imread(str(tmp_path / "out" / item["overlay"]))[:, :, ::-1], overlay
        )


def test_the_bar_counts_the_runs(cli, tiny_file, photos, tmp_path, monkeypatch):
    from contextlib import contextmanager

    from onnxcam.cli.terminal import Terminal

    seen = []

    @contextmanager
    def progress(self, doing):
        yield lambda done, total: seen.append((doing, done, total))

    monkeypatch.setattr(Terminal, "progress", progress)
    arguments = ("--method", "rise", "--option", "masks=20", "--batch", "8")
    pair = (photos / "a.png", photos / "below" / "b.jpg")
    cli("explain", tiny_file(), *pair, "-o", tmp_path / "out", *arguments)
    assert seen[0] == ("running", 0, 2)
    assert seen[1:] == [("running", n, 40) for n in (8, 16, 20, 28, 36, 40)]
    seen.clear()
    cli("explain", tiny_file(), *pair, "-o", tmp_path / "out", *arguments, "--scale", "batch")
    # In one call the runs of a photo are known once it is reached.
    assert seen[1:] == [("running", n, of) for of in (20, 40) for n in (of - 12, of - 4, of)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "There is no file or folder 'nowhere.png'."),
        (["{empty}"], "There is no image in the folder"),
        (
            ["{photo}", "-t", "hot pott"],
            "There is no label 'hot pott' among the 5 recorded. Nearest: 'hot pot'",
        ),
        (["{photo}", "-t", "5"], "Class index 5 is out of range: the model has 5 classes, 0 to 4."),
        (["{photo}", "-t", "-3"], "Class index -3 is negative"),
        (["{photo}", "-m", "gradcm"], "No method 'gradcm'. Nearest: 'gradcam'"),
        (["{photo}", "-l", "topp"], "The file does not explain a layer 'topp'. Nearest: 'top'"),
        (["{photo}", "--provider", "cudda"], "There is no execution provider 'cudda'. Nearest: 'cuda'"),
        (
            ["{photo}", "--provider", "qnn"],
            "QNNExecutionProvider was asked for, but the installed onnxruntime",
        ),
        (["{photo}", "--colormap", "jett"], "No colour map 'jett'. Nearest: 'jet'"),
        (["{photo}", "--style", "nice"], "argument --style: invalid choice: 'nice'"),
        (["{photo}", "--batch", "0"], "argument --batch: '0' is not a whole number of at least 1"),
        (["{photo}", "--alpha", "2"], "argument --alpha: '2' is not a number from 0 to 1"),
        (["{photo}", "--alpha", "x"], "argument --alpha: 'x' is not a number from 0 to 1"),
        (["{photo}", "-o", "{file}"], "Choose a folder that is yours to write"),
        (
            ["{photo}", "--preprocess", "imagenett"],
            "There is no preprocessing preset 'imagenett'. Nearest: 'imagenet'",
        ),
        (
            ["{photo}", "--option", "masks"],
            "--option is KEY=VALUE, not 'masks'; see `onnxcam methods --json`.",
        ),
        (["{photo}", "--option", "mask=3"], "The method 'gradcam' has no option 'mask'. It has: none."),
        (
            ["{photo}", "-m", "rise", "--option", "mask=3"],
            "The method 'rise' has no option 'mask'. Nearest: 'masks'. It has: masks (4000), cells (7)",
        ),
        (
            ["{photo}", "--option", "target=3"],
            "The method 'gradcam' has no option 'target'. It has: none.",
        ),
        (["{photo}", "--target=--1"], "There is no label '--1' among the 5 recorded."),
        (
            ["{photo}", "--target=-1"],
            "Class index -1 is negative; write None for each image's top class (leave --target out)",
        ),
        (["{photo}", "--channels=--1"], "--channels are numbers, as in 0,17,512, not '--1'."),
        (
            ["{photos}", "--scale", "batch", "--batch", "2"],
            "--scale batch compares all photos, here 3, and a --batch holds 2: say --batch 3, or leave",
        ),
        (["{photo}", "--channels", "a,1"], "--channels are numbers, as in 0,17,512, not 'a,1'."),
        (["{photo}", "--channels", "6"], "The layer 'top' has no channel 6: it has 6, 0 to 5."),
        (["{photo}", "--labels", "{empty}/none.txt"], "cannot be read: No such file or directory."),
    ],
    ids=lambda v: " ".join(v[-2:]) if isinstance(v, list) else None,
)
def test_errors(cli, tiny_file, photos, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    places = {"photo": photos / "a.png", "empty": tmp_path / "empty", "file": tmp_path / "file"}
    arguments = [a.format(**places, photos=photos) for a in arguments]
    ran = cli("explain", tiny_file(), "-o", tmp_path / "out", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_a_file_without_preprocessing(cli, tiny_file, photos, tmp_path):
    model = tiny_file(preprocess=None)
    ran = cli("explain", model, photos, "-o", tmp_path / "out")
    assert ran.status == 2
    assert ran.err.startswith(f"error: '{model}' records no preprocessing for photos. Say with --preprocess")
    assert cli("explain", model, photos / "a.png", "-o", tmp_path / "out", "--preprocess", "half").status == 0


def test_a_file_that_is_not_explainable(cli, plain_file, photos, tmp_path):
    ran = cli("explain", plain_file, photos, "-o", tmp_path / "out")
    assert ran.status == 2
    assert "is an ONNX model but not an explainable one" in ran.err
    assert "`onnxcam rewrite model.onnx -o model.cam.onnx`" in ran.err


def test_labels_from_a_file(cli, tiny_file, photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\nfour\nfive\n")
    ran = cli(
        *("explain", tiny_file(), photos / "a.png", "-o", tmp_path / "out"),
        *("--labels", names, "-t", "four", "--json"),
    )
    assert ran.data["items"][0]["class_id"] == 3
