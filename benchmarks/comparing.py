"""What comparing two models costs: its time over that of running both plainly, and its memory.

    python benchmarks/comparing.py [--photos 160] [--pairs 5] [--memory 100 1000]

The photos of ../shared/data, cropped and flipped, are written as JPEG files, and go through mobilenet_v2.onnx
and mobilenet_v2_qdq.onnx. *Plainly*: the files as they are, in the same fashion: batches of eight, photos
hashed, decoded and prepared once for both in a thread that is one batch ahead. *Comparing*: both files made
explainable, recorded with a journal until both recordings lie on the disk, compared, and the report written.
A and B take turns (A B B A ...); a figure is the median of the ratios of the pairs. Memory: the peak of a
process of its own that compares so many photos, and of one that only opens both files.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from onnxcam import Explainer, images, preprocess, recorder
from onnxcam.comparison import compare, report
from onnxcam.contract import Preprocess
from onnxcam.folder import write_whole

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS = ("mobilenet_v2", "mobilenet_v2_qdq")
HOW: dict[str, Any] = {"preset": "imagenet-stretch", "antialias": False}
SIZE = (600, 800)  #: of the crops
BATCH = 8


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=int, default=160, help="of a timed run (default: 160)")
    parser.add_argument("--pairs", type=int, default=5, help="of timed runs (default: 5)")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[100, 1000], help="photos (default: 100 1000)"
    )
    parser.add_argument("--peak", nargs=2, metavar=("FOLDER", "PHOTOS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(Path(arguments.peak[0]), int(arguments.peak[1])))
        return 0
    from onnxcam.export import rewrite_onnx  # not needed to compare

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:
            rewrite_onnx(DATA / "models" / f"{model}.onnx", folder / f"{model}.cam.onnx", preprocess=HOW)
        write_photos(folder, max(arguments.photos, *arguments.memory, 1))
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        if arguments.pairs:
            times(folder, arguments.photos, arguments.pairs)
        if arguments.memory:
            before = in_a_process(folder, 0)
            print(f"both files open: {before:.0f} MB", flush=True)
        for count in arguments.memory:
            print(f"{count:5} photos compared: peak of {in_a_process(folder, count):.0f} MB", flush=True)
    return 0


def write_photos(folder: Path, count: int) -> None:
    """So many different crops, every other one flipped, as JPEG files."""
    paths = sorted(p for p in (DATA / "photos").iterdir() if p.suffix in (".jpg", ".png", ".bmp"))
    photos = [cv2.cvtColor(images.load(path), cv2.COLOR_RGB2BGR) for path in paths if "mask" not in path.stem]
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(count):
        photo = photos[i % len(photos)]
        height, width = (round(n * rng.uniform(0.5, 1.0)) for n in photo.shape[:2])
        top, left = rng.integers(0, photo.shape[0] - height + 1), rng.integers(0, photo.shape[1] - width + 1)
        crop = cv2.resize(photo[top : top + height, left : left + width], SIZE[::-1])
        cv2.imencode(".jpg", crop[:, ::-1] if i % 2 else crop)[1].tofile(folder / "photos" / f"{i:04}.jpg")


def some(folder: Path, count: int) -> dict[str, str]:
    """{name: path} of the first photos."""
    return dict(list(recorder.names_of([folder / "photos"]).items())[:count])


def sides(folder: Path) -> list[recorder.Side]:
    """Both explainable files, open."""
    paths = [folder / f"{model}.cam.onnx" for model in MODELS]
    return [recorder.side(Explainer(path, "cpu"), path) for path in paths]


def plainly(
    opened: Sequence[onnxruntime.InferenceSession], how: Preprocess, photos: dict[str, str], output: Path
) -> None:
    """Both files as they are, in the recorder's fashion; what they say is kept and written."""
    paths = list(photos.values())
    parts = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]

    def read(part: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        tensors = []
        for path in part:
            data = Path(path).read_bytes()
            hashlib.sha256(data).hexdigest()
            tensors.append(preprocess.apply(images.load(data), how)[0])
        return tensors

    said: list[list[Any]] = [[] for _ in opened]
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(read, parts[0])
        for following in [*parts[1:], None]:
            x = np.stack(upcoming.result())
            if following is not None:
                upcoming = reader.submit(read, following)
            for session, kept in zip(opened, said, strict=True):
                kept.append(session.run(None, {session.get_inputs()[0].name: x})[0])
    write_whole(output, b"".join(np.concatenate(kept).tobytes() for kept in said))


def compared(both: Sequence[recorder.Side], photos: dict[str, str], folder: Path) -> None:
    """All that ``onnxcam compare`` does once both files are open."""
    made = recorder.record_to(both, photos, [folder / "a.npz", folder / "b.npz"], batch=BATCH)
    write_whole(folder / "report.html", report.html(compare(*made), made[0], made[1], photos))


def times(folder: Path, count: int, pairs: int) -> None:
    """Print the ratio of comparing to running plainly."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    plain = [
        onnxruntime.InferenceSession(
            str(DATA / "models" / f"{model}.onnx"), options, providers=["CPUExecutionProvider"]
        )
        for model in MODELS
    ]
    both, photos = sides(folder), some(folder, count)
    how = both[0].preprocess

    def a() -> None:
        plainly(plain, how, photos, folder / "plain.bin")

    def b() -> None:
        compared(both, photos, folder)

    a(), b()
    ratios, plain_s = [], []
    for k in range(pairs):
        if k % 2:
            y, x = timed(b), timed(a)
        else:
            x, y = timed(a), timed(b)
        ratios.append(y / x)
        plain_s.append(x)
    each = ", ".join(f"{r:.2f}" for r in ratios)
    print(
        f"{count} photos through both: plainly {statistics.median(plain_s):.2f} s, comparing "
        f"{statistics.median(ratios):.2f} times that (pairs: {each})",
        flush=True,
    )


def timed(f: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def in_a_process(folder: Path, count: int) -> float:
    """The peak in MB of a process that compares so many photos."""
    command = [sys.executable, __file__, "--peak", str(folder), str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak(folder: Path, count: int) -> float:
    """Compare some photos; this process's peak in MB."""
    both = sides(folder)
    if count:
        compared(both, some(folder, count), folder)
    # Not getrusage: its peak begins with the parent's.
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
