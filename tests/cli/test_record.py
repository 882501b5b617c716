"""onnxcam record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from runtime.conftest import Tiny

from onnxcam import Explainer, demo, recorder, recording
from onnxcam.cli import record

NOT_NEEDED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_ir", "scipy", "matplotlib", "PIL", "jinja2"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from onnxcam.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def healthy(photos):
    """The folder of photos, without the broken one."""
    (photos / "broken.jpg").unlink()
    return photos


def test_a_recording_is_what_explain_says(cli, demo_file, healthy, tmp_path):
    ran = cli("record", demo_file, healthy, "-o", tmp_path / "run.npz")
    assert (ran.status, ran.err) == (0, "")
    made = recording.load(tmp_path / "run.npz")
    explainer = Explainer(demo_file)
    assert made.names == ("a.png", "below/b.jpg")
    found = explainer.explain([healthy / "a.png", healthy / "below" / "b.jpg"])
    np.testing.assert_array_equal(made.class_ids, found.class_ids)
    np.testing.assert_allclose(
        made.maps[explainer.layers[0]], found.layer_maps[explainer.layers[0]], atol=1e-6
    )
    facts = dict(line.split(None, 1) for line in ran.out.splitlines())
    assert facts["photos"] == "2"
    assert facts["recording"].startswith(str(tmp_path / "run.npz"))
    assert "optimization all" in facts["runtime"]
    assert facts["layer"].startswith(explainer.layers[0])


def test_every_option_reaches_the_recording(cli, tiny_file, healthy, tmp_path):
    path = tiny_file(layers=("features", "top"))
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    ran = cli(
        *("record", path, healthy, "-o", tmp_path / "run.npz", "-m", "layercam", "-t", "c", "-l", "features"),
        *("--provider", "cpu", "--optimization", "disable", "--batch", "1", "--json"),
        *("--labels", tmp_path / "labels.txt", "--preprocess", "half"),
    )
    assert ran.status == 0
    made = recording.load(tmp_path / "run.npz")
    maker = made.maker
    assert (maker.method, maker.layers, maker.labels) == ("layercam", ("features",), tuple("abcde"))
    assert made.class_ids.tolist() == [2, 2]
    assert made.labels == ("c", "c")
    assert maker.preprocess.mean == (0.5,)
    assert maker.runtime["optimization"] == "disable"
    assert ran.data == {
        "recording": str(tmp_path / "run.npz"),
        "bytes": (tmp_path / "run.npz").stat().st_size,
        "model": {"file": str(path), "sha256": maker.sha256},
        "runtime": dict(maker.runtime),
        "method": "layercam",
        "layers": {"features": [6, 6]},
        "photos": 2,
        "skipped": [],
    }


def test_options_of_the_method(cli, tiny_file, healthy, tmp_path):
    command = ("record", tiny_file(), healthy, "-o", tmp_path / "run.npz", "-m", "rise")
    assert cli(*command, "--option", "masks=3", "--option", "seed=5").status == 0
    runtime = recording.load(tmp_path / "run.npz").maker.runtime
    assert (runtime["rise.masks"], runtime["rise.seed"]) == ("3", "5")
    ran = cli(*command, "--option", "masks")
    assert (ran.status, ran.out) == (2, "")
    assert "--option is KEY=VALUE, not 'masks'; see `onnxcam methods --json`." in ran.err


def test_photos_that_are_skipped_are_said_and_change_the_exit_status(cli, demo_file, photos, tmp_path):
    ran = cli("record", demo_file, photos, "-o", tmp_path / "run.npz", "--json")
    assert ran.status == 1
    assert ran.err.startswith("skipped: broken.jpg: 'broken.jpg' (13 bytes) is not an image")
    assert ran.data["photos"] == 2
    assert [one["image"] for one in ran.data["skipped"]] == ["broken.jpg"]
    for i in range(11):
        (photos / f"x{i:02}.png").write_bytes(b"")
    ran = cli("record", demo_file, photos, "-o", tmp_path / "run.npz")
    assert ran.status == 1
    assert ran.err.count("skipped: ") == 10
    assert ran.err.endswith("... and 2 more, in the recording.\n")
    assert ["photos", "2,", "12", "skipped"] in [line.split() for line in ran.out.splitlines()]


def test_no_photo_could_be_recorded(cli, demo_file, photos, tmp_path):
    (photos / "a.png").unlink()
    (photos / "below" / "b.jpg").unlink()
    ran = cli("record", demo_file, photos, "-o", tmp_path / "run.npz")
    assert (ran.status, ran.out) == (2, "")
    assert "error: None of the photos could be recorded: 'broken.jpg' (13 bytes) is not an image" in ran.err


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("-o", "run.json"), "error: A recording is an .npz file: name one with -o, not 'run.json'."),
        (("-m", "gradcan"), "Nearest: 'gradcam'"),
        (("-l", "nowhere"), "The file does not explain a layer 'nowhere'."),
        (("-t", "99"), "Class index 99 is out of range"),
        (("--batch", "0"), "error: batch is 0; it is a whole number of at least 1."),
        (("--optimization", "some"), "invalid choice: 'some'"),
        (("--preprocess", "size=7"), "The input 'image' wants float32 (N, 3, 12, 12)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(cli, tiny_file, healthy, tmp_path, more, why):
    before = sorted(tmp_path.iterdir())
    output = () if "-o" in more else ("-o", tmp_path / "run.npz")
    path = tiny_file()
    ran = cli("record", path, healthy, *output, *more)
    assert ran.status == 2
    assert why in ran.err
    assert sorted(tmp_path.iterdir()) == sorted([*before, path])


def test_files_that_are_not_explainable_or_not_there(cli, plain_file, healthy, tmp_path):
    ran = cli("record", plain_file, healthy, "-o", tmp_path / "run.npz")
    assert (ran.status, "it has no 'onnxcam' record" in ran.err) == (2, True)
    ran = cli("record", tmp_path / "none.cam.onnx", healthy, "-o", tmp_path / "run.npz")
    assert (ran.status, "There is no file" in ran.err) == (2, True)
    ran = cli("record", plain_file, tmp_path / "nowhere", "-o", tmp_path / "run.npz")
    assert (ran.status, "There is no file or folder" in ran.err) == (2, True)


def test_an_interrupted_run_says_where_it_goes_on(cli, tiny_file, healthy, tmp_path, monkeypatch):
    real, calls = Explainer.explain_tensor, []

    def explain_tensor(self, x, *arguments, **options):
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, x, *arguments, **options)

    command = ("record", tiny_file(), healthy, "-o", tmp_path / "run.npz", "--batch", "1")
    with monkeypatch.context() as patched:
        patched.setattr(Explainer, "explain_tensor", explain_tensor)
        ran = cli(*command)
    assert ran.status == 130
    journal = tmp_path / "run.npz.partial"
    assert f"What is done is kept in '{journal}': the same command goes on from there." in ran.err
    assert sorted(p.name for p in journal.iterdir()) == ["000000.npz", "plan.json"]
    calls.clear()
    with monkeypatch.context() as patched:
        patched.setattr(
            Explainer, "explain_tensor", lambda *a, **o: (calls.append(len(a[1])), real(*a, **o))[1]
        )
        assert cli(*command).status == 0
    assert calls == [1]
    assert not journal.exists()
    again = (tmp_path / "run.npz").read_bytes()
    assert cli(*command).status == 0
    assert (tmp_path / "run.npz").read_bytes() == again


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal of its own there")
def test_ctrl_c_ends_the_process_soon(demo_file, healthy, tmp_path):
    for i in range(200):
        (healthy / f"{i:03}.png").write_bytes((healthy / "a.png").read_bytes())
    command = ["record", demo_file, healthy, "-o", tmp_path / "run.npz", "--batch", "1", "-m", "rise"]
    command += ["--option", "masks=500"]
    # A shell's background jobs, and so their children, are started with Ctrl-C ignored.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from onnxcam.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "run.npz.partial"
    try:
        for _ in range(6000):
            if (journal / "000000.npz").exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted"
    assert f"What is done is kept in '{journal}'" in said
    assert 1 <= len(list(journal.glob("[0-9]*.npz"))) < 200


def test_the_levels_are_those_of_the_recorder(cli):
    choices = ",".join(recorder.OPTIMIZATIONS)
    assert f"{{{choices}}}" in cli("record", "--help").out
    assert record.HELP in " ".join(cli("--help").out.split())


def test_recording_needs_nothing_but_the_runtime(tmp_path):
    (tmp_path / "demo.cam.onnx").write_bytes(demo.model_bytes())
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    command = ["record", "demo.cam.onnx", "a.png", "-o", "run.npz", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", NOT_NEEDED, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(recording.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert recording.load(tmp_path / "run.npz").names == ("a.png",)


def test_a_fixed_batch_is_filled(cli, tmp_path, healthy):
    for name, batch in (("one", "N"), ("two", 2)):
        (tmp_path / f"{name}.cam.onnx").write_bytes(Tiny(batch=batch).graph_bytes())
        model = tmp_path / f"{name}.cam.onnx"
        assert cli("record", model, healthy, "-o", tmp_path / f"{name}.npz", "--batch", "3").status == 0
    one, two = (recording.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    np.testing.assert_allclose(one.maps["top"], two.maps["top"], atol=1e-6)
