"""What a map computed inside the file costs, as ratios measured in one run.

    python benchmarks/fused.py [--pairs 15] [--threads 1] [--only NAME] [--method gradcam] [--json FILE]

For each network at its last layer, and each batch: plain ONNX Runtime inference of the plain export; the
explainable file without maps; the file with a fused map; and the file of that map alone (``maps_only``). A
run fetches all of a file's outputs: the model's, and the map or the layer's tensors. A and B take turns
(A B A B ...); a figure is the median of the ratios of the pairs; threads do not spin.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build, export_plain
from overhead import JOBS, Job, machine, options, ratio

from onnxcam.export import export_torch

FILES = {"tensors": {}, "fused": {"fuse": True}, "maps only": {"fuse": True, "maps_only": True}}


@dataclass(frozen=True)
class Row:
    """One line of the table; ratios are medians of pairs."""

    model: str
    layer: str
    batch: int
    plain_ms: float
    tensors: float
    fused: float
    maps_only: float


def measure(job: Job, method: str, batches: Sequence[int], pairs: int, threads: int) -> list[Row]:
    """The rows of one network."""
    import onnxruntime
    import torch

    torch.set_num_threads(threads)
    model, layer = build(job.name), job.layers[0]
    example = torch.randn(1, 3, 224, 224)

    def session(path: Path) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(path, options(threads), providers=["CPUExecutionProvider"])

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = session(export_plain(model, Path(folder, "plain.onnx")))
        files = []
        for wanted in FILES.values():
            path = Path(folder, "model.cam.onnx")
            fuse = method if wanted.get("fuse") else None
            export_torch(model, example, path, layer, fuse=fuse, maps_only="maps_only" in wanted)
            files.append(session(path))
        for batch in batches:
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
            inference = functools.partial(plain.run, None, {plain.get_inputs()[0].name: x})
            found = [
                ratio(inference, functools.partial(file.run, None, {file.get_inputs()[0].name: x}), pairs)
                for file in files
            ]
            ratios = [r for r, _ in found]
            rows.append(Row(job.name.removeprefix("timm:"), layer, batch, found[0][1], *ratios))
            print(line(rows[-1]), flush=True)
    return rows


HEADER = f"{'network':24} {'layer':16} {'batch':>5} {'plain ms':>9} " + " ".join(f"{n:>10}" for n in FILES)


def line(row: Row) -> str:
    """A row of the table."""
    ratios = " ".join(f"{r:9.3f}x" for r in (row.tensors, row.fused, row.maps_only))
    return f"{row.model:24} {row.layer:16} {row.batch:5} {row.plain_ms:9.1f} {ratios}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--method", default="gradcam")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated (default: 1 and 8)")
    parser.add_argument("--json", type=Path, help="write the rows there")
    args = parser.parse_args()
    print(machine(args.threads))
    print(HEADER)
    rows = []
    for job in JOBS:
        if args.only is None or args.only in job.name:
            rows += measure(job, args.method, args.batch or [1, 8], args.pairs, args.threads)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
