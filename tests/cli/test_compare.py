"""onnxcam compare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from onnxcam import demo, recording
from onnxcam.comparison import compare
from onnxcam.comparison.sides import Side, recorded
from onnxcam.demo import mosaics

pytest.importorskip("jinja2", reason="the report needs jinja2")
RECORDINGS = {"reference.npz", "candidate.npz"}
WRITTEN = {"comparison.json", "report.html"} | RECORDINGS


@pytest.fixture
def pictures(tmp_path):
    """Six of the demo's mosaics."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, mosaic in enumerate(mosaics.mosaics(mosaics.held_out(), 6)):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.cvtColor(mosaic.image, cv2.COLOR_RGB2BGR))
    return folder


@pytest.fixture
def blind_file(demo_file, tmp_path):
    """The demo's model with other weights, explainable."""
    pytest.importorskip("onnx_ir")
    from onnxcam.export import randomised

    randomised(demo_file, tmp_path / "blind.cam.onnx", seed=1)
    return tmp_path / "blind.cam.onnx"


def test_one_file_on_two_ways_to_run_it(cli, demo_file, pictures, tmp_path):
    ran = cli(
        *(
            "compare",
            demo_file,
            demo_file,
            pictures,
            "-o",
            tmp_path / "out",
            "--candidate-optimization",
            "disable",
        ),
        *("--require", "same_reason >= 0.99", "--require", "pearson.worst >= 0.99"),
    )
    assert ran.status == 0, ran.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN | {"junit.xml"}
    assert "6 photos, gradcam at features" in ran.out
    assert "gate: passed" in ran.out
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert told["candidate"]["runtime"]["optimization"] == "disable"
    assert told["reference"]["runtime"]["optimization"] == "all"
    assert told["gate"]["status"] == "passed"
    expected = compare(*recorded(demo_file, Side(demo_file, optimization="disable"), [pictures]))
    assert told["statistics"]["pearson"]["mean"] == expected.statistics["pearson"].mean
    made = recording.load(tmp_path / "out" / "reference.npz")
    assert len(made) == 6


def test_a_gate_that_fails(cli, demo_file, blind_file, pictures, tmp_path):
    (tmp_path / "gate.toml").write_text('[gate]\nsame_answer = 0.5\n"pearson.mean" = 0.99\n')
    ran = cli(
        *(
            "compare",
            demo_file,
            blind_file,
            pictures,
            "-o",
            tmp_path / "out",
            "--gate",
            tmp_path / "gate.toml",
        ),
        *("--require", "same_answer >= 0", "--json"),
    )
    assert ran.status == 1
    criteria = {one["text"]: one["passed"] for one in ran.data["gate"]["criteria"]}
    assert criteria == {
        "pearson.mean >= 0.99": False,
        "same_answer >= 0": True,
    }  # the option replaces the file's
    suite = ElementTree.parse(tmp_path / "out" / "junit.xml").find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Gate failed" in page
    assert "blind.cam.onnx" in page
    assert page.count("data:image/") >= 12


def test_what_cannot_be_judged(cli, demo_file, pictures, tmp_path):
    for path in sorted(pictures.iterdir())[1:]:
        path.unlink()
    out = tmp_path / "out"
    ran = cli("compare", demo_file, demo_file, pictures, "-o", out, "--require", "same_answer >= 0.9")
    assert ran.status == 2
    assert "A comparison needs at least 2 photos that both sides explain, and there is 1." in ran.err
    case = ElementTree.parse(out / "junit.xml").find("testsuite/testcase/error")
    assert case is not None
    assert "at least 2 photos" in str(case.get("message"))
    assert not (out / "comparison.json").exists()
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff cut short")
    cv2.imwrite(str(pictures / "more.png"), np.zeros((9, 9, 3), np.uint8))
    ran = cli("compare", demo_file, demo_file, pictures, "-o", out, "--require", "same_answer >= 0.9")
    assert ran.status == 2  # a third of the photos is skipped
    assert "could not judge: 1 of 3 photos are skipped" in ran.out
    assert "1 skipped; the first is 'broken.jpg'" in ran.out
    ran = cli(
        *("compare", demo_file, demo_file, pictures, "-o", out, "--require", "same_answer >= 0.9"),
        *("--max-skipped", "0.5"),
    )
    assert ran.status == 0


def test_recordings_alone(cli, demo_file, pictures, tmp_path):
    for name in ("desk.npz", "device.npz"):
        assert cli("record", demo_file, pictures, "-o", tmp_path / name).status == 0
    ran = cli("compare", tmp_path / "desk.npz", tmp_path / "device.npz", "-o", tmp_path / "out")
    assert ran.status == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.json", "report.html"}
    assert "gate" not in ran.out
    page = (tmp_path / "out" / "report.html").read_text()
    with_photos = cli(
        *("compare", tmp_path / "desk.npz", tmp_path / "device.npz", pictures, "-o", tmp_path / "with"),
    )
    assert with_photos.status == 0
    assert len((tmp_path / "with" / "report.html").read_text()) > len(page)


def test_a_plain_file_takes_what_the_other_side_records(cli, demo_file, plain_file, pictures, tmp_path):
    pytest.importorskip("onnx_ir")
    ran = cli("compare", demo_file, plain_file, pictures, "-o", tmp_path / "out", "--no-report", "--json")
    assert ran.status == 0
    assert ran.data["statistics"]["pearson"]["worst"] == pytest.approx(1)
    assert ran.data["candidate"]["preprocess"] == ran.data["reference"]["preprocess"]
    assert not (tmp_path / "out" / "report.html").exists()


def test_layers_that_the_user_pairs(cli, plain_file, pictures, tmp_path):
    pytest.importorskip("onnx_ir")
    fields = ("--preprocess", "size=128", "--preprocess", "mean=0.5", "--preprocess", "std=0.25")
    names = [line.split()[0] for line in cli("layers", plain_file).out.splitlines()[2:6]]
    ran = cli(
        *(
            "compare",
            plain_file,
            plain_file,
            pictures,
            "-o",
            tmp_path / "out",
            "--no-report",
            "--json",
            *fields,
        ),
        *("--pair", f"{names[0]}={names[1]}", "--pair", f"{names[1]}={names[1]}", "--judge", names[1]),
    )
    assert ran.status == 0, ran.err
    assert list(ran.data["by_layer"]) == [f"{names[0]} = {names[1]}", names[1]]
    assert ran.data["judged"] == {"reference": names[1], "candidate": names[1]}
    by = cli(
        *("compare", plain_file, plain_file, pictures, "-o", tmp_path / "by", "--no-report", *fields),
        *("--by-layer", "--candidate-optimization", "basic"),
    )
    assert by.status == 0, by.err
    assert "layer, from the input on" in by.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--require", "pearson.mean <= 0.5"], "bounds pearson from the wrong side: higher is better"),
        (["--require", "persan >= 0.5"], "There is no quantity 'persan' to be judged. Nearest: 'pearson'"),
        (["--measures", "pearson,nothing"], "nothing"),
        (["--measure", "js"], "From which js on a reason is the same is for you to say (`--threshold`)"),
        (["--threshold", "3"], "The threshold of pearson is a number between -1 and 1, not 3.0"),
        (["--max-skipped", "7"], "is not a number from 0 to 1"),
        (["--gate", "nowhere.toml"], "The gate 'nowhere.toml' cannot be read"),
        (["--pair", "a"], "a"),
        (["--judge", "nowhere"], "nowhere"),
        (["--target", "nowhere"], "nowhere"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_is_refused(cli, demo_file, pictures, tmp_path, arguments, message):
    ran = cli("compare", demo_file, demo_file, pictures, "-o", tmp_path / "out", *arguments)
    assert ran.status == 2
    assert message in ran.err
    assert not (tmp_path / "out" / "comparison.json").exists()


def test_a_comparison_that_was_killed_goes_on_to_the_same_report(demo_file, pictures, tmp_path):
    """Byte by byte, however often it was killed."""
    command = [
        sys.executable,
        "-m",
        "onnxcam",
        "compare",
        demo_file,
        demo_file,
        pictures,
        "--batch",
        "1",
        "-q",
    ]
    command += ["--require", "same_answer >= 0.9", "-o"]
    subprocess.run([*command, tmp_path / "whole"], check=True)
    out = tmp_path / "out"
    for parts in (1, 3, 5):  # of the candidate, whose part is the last of each photo
        running = subprocess.Popen([*command, out])
        seen = out / "candidate.npz.partial" / f"{parts - 1:06}.npz"
        until = time.monotonic() + 60
        while not seen.exists() and running.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    subprocess.run([*command, out], check=True)
    for name in (*WRITTEN, "junit.xml"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert {path.name for path in out.iterdir()} == WRITTEN | {"junit.xml"}


@pytest.fixture
def pair(cli, demo_file, pictures, tmp_path):
    """Two recordings of one model."""
    for name in ("desk.npz", "device.npz"):
        assert cli("record", demo_file, pictures, "-o", tmp_path / name).status == 0
    return tmp_path / "desk.npz", tmp_path / "device.npz"


def test_an_older_comparison_is_never_taken_for_this_one(cli, pair, tmp_path):
    """A pipeline reads what lies in the folder, however this run ends."""
    out = tmp_path / "out"

    def passed():
        ran = cli("compare", *pair, "-o", out, "--require", "same_answer >= 0.9")
        assert ran.status == 0
        assert {path.name for path in out.iterdir()} == WRITTEN - RECORDINGS | {"junit.xml"}

    passed()
    assert cli("compare", *pair, "-o", out, "--no-report").status == 0
    assert {path.name for path in out.iterdir()} == {"comparison.json"}
    for broken in (["--require", "same_anser >= 0.9"], ["--gate", tmp_path / "none.toml"]):
        passed()
        ran = cli("compare", *pair, "-o", out, *broken)
        assert ran.status == 2
        assert {path.name for path in out.iterdir()} == {"junit.xml"}
        case = ElementTree.parse(out / "junit.xml").find("testsuite/testcase/error")
        assert case is not None
        assert str(case.get("message")) in ran.err


def test_other_programs_files_are_not_taken_for_older_comparisons(cli, pair, tmp_path):
    """Such as the junit.xml of pytest in the folder where all this is started."""
    for name in ("comparison.json", "junit.xml", "report.html"):
        (tmp_path / name).write_text("of somebody else")
    assert cli("compare", *pair, "-o", tmp_path, "--gate", tmp_path / "none.toml").status == 2
    for name in ("comparison.json", "report.html"):
        assert (tmp_path / name).read_text() == "of somebody else"
    assert cli("compare", *pair, "-o", tmp_path, "--no-report").status == 0
    assert (tmp_path / "report.html").read_text() == "of somebody else"


def test_a_folder_where_nothing_can_be_written_is_refused_before_the_work(cli, pair, tmp_path):
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    (tmp_path / "file").touch()
    for folder, path in (("out", "out/report.html"), ("file", "file/comparison.json")):
        ran = cli("compare", *pair, "-o", tmp_path / folder)
        assert ran.status == 2
        assert f"{path}' cannot be replaced: " in ran.err
        assert "Name another folder with -o." in ran.err


@pytest.mark.parametrize("text", ["", "[gate]\n", "[gate]\nmax_skipped = 0\n[verdict]\nthreshold = 0.9\n"])
def test_a_gate_that_asks_for_nothing_lets_nothing_pass(cli, pair, tmp_path, text):
    (tmp_path / "gate.toml").write_text(text)
    asked = ("compare", *pair, "-o", tmp_path / "out", "--gate", tmp_path / "gate.toml")
    ran = cli(*asked)
    assert ran.status == 2
    assert "gate.toml' asks for nothing: write criteria in its table [gate]" in ran.err
    assert cli(*asked, "--require", "same_answer >= 0.9").status == 0


def test_a_pair_of_one_name(cli, demo_file, plain_file, pictures, tmp_path):
    pytest.importorskip("onnx_ir")
    name = cli("layers", plain_file).out.splitlines()[3].split()[0]
    ran = cli(
        *("compare", demo_file, plain_file, pictures, "-o", tmp_path / "out", "--no-report", "--json"),
        *("--pair", name),
    )
    assert ran.status == 0, ran.err
    assert ran.data["judged"] == {"reference": name, "candidate": name}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--method", "layercam"],
        ["--target", "0"],
        ["--layer", "features"],
        ["--by-layer"],
        ["--labels", "names.txt"],
        ["--candidate-provider", "cpu"],
    ],
    ids=lambda value: value[0],
)
def test_recordings_cannot_be_asked_anew(cli, pair, tmp_path, arguments):
    ran = cli("compare", *pair, "-o", tmp_path / "out", *arguments)
    assert ran.status == 2
    assert f"{arguments[0]} asks models, and both sides are recordings: leave it out, or record" in ran.err


def test_an_explainable_file_of_one_layer_is_asked_at_each_resolution(cli, demo_file, pictures, tmp_path):
    pytest.importorskip("onnx_ir")
    asked = ("compare", demo_file, demo_file, pictures, "--no-report", "--by-layer", "--json")
    ran = cli(*asked, "-o", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert len(ran.data["by_layer"]) >= 3
    assert ran.data["judged"]["reference"] == ran.data["pairs"][-1]["reference"]
    assert ran.data["statistics"]["pearson"]["worst"] == pytest.approx(1)


def test_recordings_have_no_further_layers(cli, demo_file, pictures, tmp_path):
    assert cli("record", demo_file, pictures, "-o", tmp_path / "run.npz").status == 0
    asked = ("compare", tmp_path / "run.npz", tmp_path / "run.npz", "-o", tmp_path / "out", "--no-report")
    ran = cli(*asked)
    assert ran.status == 0, ran.err
    assert "layer, from the input on" not in ran.out


def test_what_a_plain_file_is_asked_for(cli, plain_file, pictures, tmp_path):
    pytest.importorskip("onnx_ir")
    fields = ("--preprocess", "size=128", "--preprocess", "mean=0.5", "--preprocess", "std=0.25")
    asked = ("compare", plain_file, plain_file, pictures, "-o", tmp_path / "out", "--no-report", "--json")
    ran = cli(*asked, *fields, "--task", "embedding")
    assert ran.status == 0, ran.err
    assert (ran.data["reference"]["task"], ran.data["candidate"]["task"]) == ("embedding", "embedding")
    ran = cli(*asked, *fields, "--candidate-task", "detection", "--candidate-head", "yolox")
    assert ran.status == 2
    assert f"The candidate ('{plain_file}'): " in ran.err
    assert "yolox" in ran.err


def test_demo_is_not_touched(demo_file, cli, pictures, tmp_path):
    cli("compare", demo_file, demo_file, pictures, "-o", tmp_path / "out")
    assert demo_file.read_bytes() == demo.model_bytes()


@pytest.mark.parametrize("arguments", [["--measures", "nothing"], ["--measure", "js"], ["--threshold", "3"]])
def test_nothing_is_run_for_what_cannot_be_compared(cli, demo_file, tmp_path, arguments):
    """There are no photos, which would be the next error."""
    ran = cli("compare", demo_file, demo_file, tmp_path / "nowhere", "-o", tmp_path / "out", *arguments)
    assert ran.status == 2
    assert "nowhere" not in ran.err


def test_help_tells_the_gates_exit_status_alone(cli):
    told = cli("compare", "--help").out
    assert "1    the gate failed" in told
    assert "images were skipped, a provider" not in told
