"""The files of ``examples/web/demo`` are what the documented commands make."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort

from onnxcam import preprocess
from onnxcam.cli import main
from onnxcam.contract import CLASS_INDEX
from onnxcam.demo import mosaics
from onnxcam.explainer import Explainer

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "web" / "demo"


def test_the_photo_is_the_demos() -> None:
    (mosaic,) = mosaics.mosaics(mosaics.held_out(), 1, mosaics.PHOTO_SEED)
    stored = cv2.imread(str(DEMO / "photo.png"), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(stored, mosaic.image)


def test_the_model_is_what_the_command_in_the_readme_makes(tmp_path: Path, monkeypatch) -> None:
    text = (ROOT / "examples" / "web" / "README.md").read_text()
    (command,) = re.findall(r"onnxcam (rewrite \S+demo\.cam\.onnx (?:.*\\\n)*.*)", text)
    made = tmp_path / "demo.cam.onnx"
    arguments = shlex.split(
        command.replace("\\\n", " ").replace("examples/web/demo/demo.cam.onnx", str(made))
    )
    monkeypatch.chdir(ROOT)
    assert main([*arguments, "--quiet"]) == 0
    stored = DEMO / "demo.cam.onnx"
    records = [dataclasses.replace(Explainer(path).record, tool_version="") for path in (made, stored)]
    assert records[0] == records[1]
    assert [fused.method for fused in records[0].fused] == ["gradcam", "layercam", "hirescam"]
    assert records[0].preprocess is not None
    (mosaic,) = mosaics.mosaics(mosaics.held_out(), 1, mosaics.PHOTO_SEED)
    x, _ = preprocess.apply(mosaic.image, records[0].preprocess)
    sessions = [ort.InferenceSession(path.read_bytes()) for path in (made, stored)]
    for index in range(len(mosaics.LABELS)):
        feeds = {"image": x[None], CLASS_INDEX: np.array([index])}
        for one, other in zip(*(session.run(None, feeds) for session in sessions), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
