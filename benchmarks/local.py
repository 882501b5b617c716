"""Recipro-CAM from what each cell reaches, against the whole tail for each cell.

    python benchmarks/local.py [--networks resnet50 resnet18] [--layers layer3 layer2] [--pairs 3]

Random weights, one image of 224 x 224. *whole* and *local*: an ``explain_tensor`` over plain inference of
the plain export, with a tail that has no way from changed cells, and with one that has. *tail*: what having
it costs a run of the whole tail. A and B take turns, medians; no spinning. *error*: of the maps, over the
largest.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build, export_plain
from overhead import machine, options, ratio

import onnxcam
from onnxcam.export import export_torch, tails
from onnxcam.tail import Tail


def measure(name: str, layer: str, pairs: int, threads: int, batch: int) -> str:
    """One line of the table."""
    import onnxruntime
    import torch

    model, x = build(name), np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    how: dict[str, Any] = {"session_options": options(threads)}
    with tempfile.TemporaryDirectory() as folder:
        plain_path = export_plain(model, Path(folder, "plain.onnx"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            files = [Path(folder, f"{way}.cam.onnx") for way in ("whole", "local")]
            with mock.patch.object(tails, "add_local_way", return_value=False):
                export_torch(model, torch.from_numpy(x), files[0], layer, tail=True)
            report = export_torch(model, torch.from_numpy(x), files[1], layer, tail=True)
        if not report.record.tails[0].local:
            return f"{name:20} {layer:12} has no such way"
        session = onnxruntime.InferenceSession(
            plain_path, options(threads), providers=["CPUExecutionProvider"]
        )
        forward = functools.partial(session.run, None, {session.get_inputs()[0].name: x})
        explainers = [onnxcam.Explainer(f, "cpu", max_batch=batch, **how) for f in files]
        whole, local = (functools.partial(e.explain_tensor, x, "reciprocam", 7) for e in explainers)
        a, b = whole().maps, local().maps
        error = np.abs(a - b).max() / np.abs(a).max()
        slower, _ = ratio(local, whole, pairs)
        multiple, forward_ms = ratio(forward, local, pairs)
        (shape,) = {e.record.layers[0].shape for e in explainers}
        sizes = [d for d in shape if isinstance(d, int)]
        copies = np.random.default_rng(0).standard_normal((8, *sizes)).astype(np.float32)
        both = [
            functools.partial(
                Tail(f, e.record, e.record.layers[0].name, providers="cpu", **how).scores, copies
            )
            for f, e in zip(files, explainers, strict=True)
        ]
        cost, _ = ratio(*both, 3 * pairs)
        cells = int(np.prod(sizes[1:]))
        return (
            f"{name:20} {layer:12} {cells:6} {forward_ms:11.1f} {slower * multiple:8.1f}x {multiple:7.1f}x "
            f"{slower:7.1f}x {cost:7.3f}x {error:9.1e}"
        )


def main() -> None:
    """Print the table."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["resnet50", "resnet18"])
    parser.add_argument("--layers", nargs="+", default=["layer3", "layer2"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32, help="max_batch of the explainer")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args.threads))
    print(
        f"{'network':20} {'layer':12} {'cells':>6} {'forward ms':>11} {'whole':>9} {'local':>8} {'ratio':>8} "
        f"{'tail':>8} {'error':>9}",
        flush=True,
    )
    for name in args.networks:
        for layer in args.layers:
            print(measure(name, layer, args.pairs, args.threads, args.batch), flush=True)


if __name__ == "__main__":
    main()
