"""A way to run the command line in this process, and small files for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from runtime.conftest import Tiny

from onnxcam import demo
from onnxcam.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs ``onnxcam`` with these arguments: ``cli("layers", path)``."""
    monkeypatch.delenv("COLUMNS", raising=False)  # tables would wrap as in the tester's terminal

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as e:
            status = int(e.code or 0)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture
def demo_file(tmp_path: Path) -> Path:
    """The embedded model, explainable."""
    path = tmp_path / "demo.cam.onnx"
    path.write_bytes(demo.model_bytes())
    return path


@pytest.fixture
def plain_file(demo_file: Path, cli: Callable[..., Ran]) -> Path:
    """The embedded model as it was before it was made explainable."""
    path = demo_file.with_name("plain.onnx")
    assert cli("strip", demo_file, "-o", path).status == 0
    return path


@pytest.fixture
def tiny_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the runtime tests' model: ``tiny_file(preprocess=None)``."""

    def write(**form: Any) -> Path:
        path = tmp_path / "tiny.cam.onnx"
        path.write_bytes(Tiny(**form).graph_bytes())
        return path

    return write


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder: two photos, one of them one folder down, and a file that is no image."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name in ("a.png", "below/b.jpg"):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        cv2.imencode(Path(name).suffix, pixels)[1].tofile(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff cut short")
    (folder / "notes.txt").write_text("not an image")
    return folder
