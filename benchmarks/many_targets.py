"""Ten classes of one image: the whole file for each, against one whole run and what follows the layer.

    python benchmarks/many_targets.py [--classes 10] [--pairs 9] [--threads 1] [--json FILE]

ResNet-50 with random weights, as benchmarks/overhead.py makes it. *whole*: onnxcam.rows.run, the classes in
one batch; *one by one*: the same in batches of one, which is what a loop over the classes costs; *tail*:
onnxcam.many.run. All three give the activations and the gradients of every class; *error* is how far apart
they are. A and B take turns (A B A B ...); a figure is the median of the ratios of the pairs. No spinning.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from onnxcam import many, rows, targets
from onnxcam.contract import activations_name, gradients_name
from onnxcam.export import export_torch
from onnxcam.feeds import image_input
from onnxcam.session import Session
from onnxcam.tail import Tail

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build
from overhead import machine, options, ratio


@dataclass(frozen=True)
class Row:
    """One line of the table; ratios are medians of pairs.

    Attributes:
        layer: of the network.
        classes: of one image.
        tail_ms: what many.run takes.
        whole: how many times longer one batch of whole runs takes.
        one_by_one: how many times longer whole runs after each other take.
        error: the largest difference between the gradients, over the largest.
    """

    layer: str
    classes: int
    tail_ms: float
    whole: float
    one_by_one: float
    error: float


def measure(layer: str, classes: int, pairs: int, threads: int) -> Row:
    """The figures of one layer."""
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.cam.onnx")
        export_torch(build("resnet50"), torch.randn(1, 3, 224, 224), path, layers=layer, tail=True)
        how = {"providers": "cpu", "session_options": options(threads)}
        session = Session(path, **how)
        tail = functools.cache(lambda name: Tail(path, session.record, name, **how))
        (known,) = session.record.layers
        entry = image_input(session.inputs, None)
        x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
        wanted = targets.resolve([list(range(classes))], 1, 1000, None, session.record.score)
        fetch = [session.record.score.output, activations_name(layer), gradients_name(layer)]
        laid = dict.fromkeys(fetch[1:], known.layout)
        given = ({entry.name: x}, wanted, fetch, laid, entry)
        whole = functools.partial(rows.run, session, *given, classes)
        one_by_one = functools.partial(rows.run, session, *given, 1)
        ours = functools.partial(many.run, session, tail, *given, classes)
        want, found = (run().arrays[gradients_name(layer)] for run in (whole, ours))
        error = float(np.abs(found - want).max() / np.abs(want).max())
        batch, tail_ms = ratio(ours, whole, pairs)
        loop, _ = ratio(ours, one_by_one, pairs)
    return Row(layer, classes, tail_ms, batch, loop, error)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--layers", nargs="+", default=["layer4", "layer3"])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    args = parser.parse_args()
    print(machine(args.threads))
    print(
        f"{'layer':8} {'classes':>8} {'tail ms':>9} {'whole':>8} {'one by one':>11} {'error':>9}", flush=True
    )
    found = []
    for layer in args.layers:
        row = measure(layer, args.classes, args.pairs, args.threads)
        figures = f"{row.tail_ms:9.1f} {row.whole:7.2f}x {row.one_by_one:10.2f}x {row.error:9.1e}"
        print(f"{row.layer:8} {row.classes:8} {figures}", flush=True)
        found.append(row)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
