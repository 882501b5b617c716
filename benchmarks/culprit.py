"""What a setting of the switches costs, on the real classifiers of ../shared/data and their QDQ forms.

    python benchmarks/culprit.py [MODEL ...] [--pairs 9] [--threads 1] [--photos 8]

mobilenet_v2 comes quantised by its authors, the others are quantised by ONNX Runtime, calibrated on the
photos. *switches*: tensors that are quantised, but for weights that stand for the very numbers of the fp32
file. *plain*: an explanation of the photos by the fp32 file. *switched*: the same with one tensor quantised,
over plain. *a file*: rewriting and opening the fp32 file and explaining with it once, which is the least that
each tensor would take without switches, over switched; more photos make it less. A and B take turns, medians;
no spinning.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from overhead import machine, options, ratio

import onnxcam
from onnxcam import images, preprocess
from onnxcam.export import list_layers, rewrite_onnx
from onnxcam.export.switches import SWITCHES, switchable
from onnxcam.export.write import staged
from tests.quantized_files import DATA, PREPROCESS, photos, quantized, quantized_by_its_authors


def measure(name: str, pairs: int, threads: int, count: int, folder: Path) -> str:
    """One line of the table."""
    source, how = DATA / "models" / f"{name}.onnx", {"session_options": options(threads)}
    layer = list_layers(source)[0]

    def explainable(path: Path, layer: str, score: str | None = None) -> onnxcam.Explainer:
        target = folder / f"{path.stem}.cam.onnx"
        rewrite_onnx(path, target, layer, score, preprocess=PREPROCESS[name], verify=False)
        return onnxcam.Explainer(target, "cpu", **how)

    plain = explainable(source, layer.name)
    record = plain.preprocess
    assert record is not None
    x = np.stack(
        [preprocess.apply(images.load(p), record, np.dtype(np.float32))[0] for p in photos()[:count]]
    )
    feeds: list[dict[str, Any]] = [{record.input: one[None]} for one in x]
    path = quantized_by_its_authors(name) or quantized(source, "QDQ", folder / f"{name}.qdq.onnx", feeds)
    board = switchable(source, path)
    with staged(board.model, folder / "switched.onnx"):
        pass
    score = next(iter(board.scores.values()), None)
    switched = explainable(folder / "switched.onnx", board.read.get(layer.tensor, layer.tensor), score)
    one = np.arange(len(board.tensors)) == 0
    setting = functools.partial(switched.explain_tensor, {record.input: x, SWITCHES: one})
    dearer, plain_ms = ratio(functools.partial(plain.explain_tensor, x), setting, pairs)
    anew, _ = ratio(setting, lambda: explainable(source, layer.name).explain_tensor(x), max(3, pairs // 3))
    return f"{name:28} {len(board.tensors):8} {len(x):6} {plain_ms:9.1f} {dearer:8.2f}x {anew:7.1f}x"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(PREPROCESS))
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--photos", type=int, default=8)
    args = parser.parse_args()
    print(machine(args.threads))
    print(f"{'network':28} {'switches':>8} {'photos':>6} {'plain ms':>9} {'switched':>9} {'a file':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            print(measure(name, args.pairs, args.threads, args.photos, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
