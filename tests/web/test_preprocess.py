"""The browser's preprocessing against Python's."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcam import preprocess
from onnxcam.contract import Preprocess

NODE = shutil.which("node")
SCRIPT = Path(__file__).parents[2] / "examples" / "web" / "test" / "preprocess.mjs"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed (`apt-get install nodejs`)")

PHOTOS = ((61, 97), (300, 211), (24, 24), (17, 150), (48, 40))
GRID = (5, 7)

FITS = (
    Preprocess(size=(48, 40)),
    Preprocess(size=(48, 40), fit="crop"),
    Preprocess(size=(32, 45), fit="crop", resize=51),
    Preprocess(size=(40, 40), fit="crop", resize=(31, 77)),  # bars above and below
    Preprocess(size=(48, 64), fit="letterbox"),
    Preprocess(size=(64, 48), fit="letterbox", anchor="top-left", pad_value=7),
)
KERNELS = ("nearest", "linear", "cubic", "lanczos", "area")
COLOURS = (
    Preprocess(size=(30, 20), channels="BGR", scale=1.0, mean=(103.939, 116.779, 123.68), layout="NHWC"),
    Preprocess(size=(30, 20), channels="L", mean=(0.5,), std=(0.25,)),
    Preprocess(size=(30, 20), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    Preprocess(size=(30, 20), scale=1 / 127.5, mean=(1.0,), layout="NHWC"),
)
EXACT = [
    *(
        dataclasses.replace(fit, interpolation=kernel)
        for fit, kernel in itertools.product(FITS, KERNELS)
    ),
    *COLOURS,
]  # fmt: skip
OPENCV = [
    dataclasses.replace(fit, interpolation=kernel, antialias=False)
    for fit, kernel in itertools.product(FITS, KERNELS)
]


def run(
    hows: list[Preprocess], folder: Path
) -> list[
    tuple[Preprocess, NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
]:
    """Per case what was asked, the photo, the grid, and what the browser makes of both."""
    rng = np.random.default_rng(0)
    cases, asked = [], list(itertools.product(hows, PHOTOS))
    for i, (how, size) in enumerate(asked):
        photo = rng.integers(0, 256, (*size, 3), np.uint8)
        grid = rng.random(GRID, np.float32)
        (folder / f"{i}.rgb").write_bytes(photo.tobytes())
        (folder / f"{i}.grid").write_bytes(grid.tobytes())
        cases.append((how, photo, grid))
    body = [{"photo": size, "how": dataclasses.asdict(how), "grid": GRID} for how, size in asked]
    (folder / "cases.json").write_text(json.dumps(body))
    subprocess.run([str(NODE), str(SCRIPT), str(folder)], check=True, timeout=120)
    return [
        (*case, *(np.fromfile(folder / f"{i}.{kind}", np.float32) for kind in ("values", "map")))
        for i, case in enumerate(cases)
    ]


def test_equals_python_to_the_bit_with_antialiasing(tmp_path: Path) -> None:
    for how, photo, _, values, _ in run(EXACT, tmp_path):
        expected, _ = preprocess.apply(photo, how)
        np.testing.assert_array_equal(values, expected.ravel(), err_msg=f"{photo.shape} {how}")


def test_is_within_one_level_of_opencv_without(tmp_path: Path) -> None:
    off: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
    for how, photo, _, values, _ in run(OPENCV, tmp_path):
        expected, _ = preprocess.apply(photo, how)
        levels = np.abs(values - expected.ravel()) * 255
        assert levels.max() < 1.01, f"{photo.shape} {how}"
        off[how.interpolation].append(float(np.mean(levels > 0.5)))
    # Fixed point is repeated bit for bit; which vector code OpenCV takes depends on the processor, though.
    assert {kernel: np.mean(shares) < 0.005 for kernel, shares in off.items()} == dict.fromkeys(KERNELS, True)


def test_maps_return_onto_the_photo_as_in_python(tmp_path: Path) -> None:
    for how, photo, grid, _, back in run([*FITS, *COLOURS], tmp_path):
        _, geometry = preprocess.apply(photo, how)
        found = back.reshape(photo.shape[:2])
        seen = preprocess.seen(geometry)
        np.testing.assert_array_equal(~np.isnan(found), seen)
        expected = preprocess.to_photo(grid, geometry)
        np.testing.assert_allclose(np.where(seen, found, 0), expected, atol=1e-6)
