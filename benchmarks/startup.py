"""What starting costs: importing the package, and rewriting ResNet-50's file.

    python benchmarks/startup.py [--runs 9]

Imports are timed as whole processes, taking turns with a process that imports numpy, OpenCV and ONNX
Runtime alone, all of them compiled to bytecode, as an installed wheel is; the ratio is the median of the
pairs. The rewrite includes load, check, verification and save.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build, export_plain
from overhead import machine

NEEDED = "import numpy, cv2, onnxruntime"
OURS = "import onnxcam, onnxruntime"


def process_seconds(code: str, bytecode: str) -> float:
    """Wall time of a fresh interpreter that runs ``code``; ``bytecode``: where it is kept."""
    # A checkout may have none, where PYTHONDONTWRITEBYTECODE is set; pip compiles what it installs.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return time.perf_counter() - start


def import_ratio(runs: int) -> float:
    """Time to import onnxcam over the time to import what it needs, less the interpreter's own."""
    ratios = []
    with tempfile.TemporaryDirectory() as bytecode:
        for _ in range(runs + 1):
            empty, needed, ours = (process_seconds(code, bytecode) for code in ("pass", NEEDED, OURS))
            ratios.append((ours - empty) / (needed - empty))
    return statistics.median(ratios[1:])


def rewrite_seconds(runs: int) -> tuple[float, float]:
    """Seconds to rewrite ResNet-50 at its last layer, verified; and the growth of the file in percent."""

    from onnxcam.export import rewrite_onnx

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = export_plain(build("resnet50"), Path(folder, "resnet50.onnx"))
        reports = [rewrite_onnx(source, Path(folder, "resnet50.cam.onnx")) for _ in range(runs)]
        growth = 100 * (reports[0].bytes / reports[0].source_bytes - 1)
        return statistics.median(r.seconds for r in reports), growth


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    print(machine(1))
    print(f"import onnxcam / import numpy, cv2, onnxruntime: {import_ratio(args.runs):.2f}x", flush=True)
    seconds, growth = rewrite_seconds(max(3, args.runs // 3))
    print(f"rewrite ResNet-50 at its last layer: {seconds:.2f} s, file {growth:+.3f} %")


if __name__ == "__main__":
    main()
