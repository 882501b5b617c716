"""What the gradient on request costs a tail: its If against files without one.

    python benchmarks/tails.py [--layers layer4 layer3 layer2] [--copies 8] [--pairs 15] [--threads 1]

ResNet-50 with random weights. *unasked*: the tail without its gradient, against a file that has none;
*asked*: with its gradient, against a file with the same nodes and no If. A and B take turns (A B A B ...); a
figure is the median of the ratios of the pairs. No spinning. *error*: of the gradient, over the largest.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxcam.contract import WITH_GRADIENTS, Layer
from onnxcam.export import export_torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build
from overhead import machine, options, ratio


def without_if(tail: onnx.ModelProto, with_gradient: bool) -> onnx.ModelProto:
    """The tail with its gradient's nodes in the open, or with none of them."""
    made = onnx.ModelProto()
    made.CopyFrom(tail)
    graph = made.graph
    (branch,) = [n for n in graph.node if WITH_GRADIENTS in n.input]
    then = next(a.g for a in branch.attribute if a.name == "then_branch")
    graph.node.remove(branch)
    if with_gradient:
        graph.node.extend(then.node)
        graph.initializer.extend(then.initializer)
        graph.node.append(onnx.helper.make_node("Identity", [then.output[0].name], branch.output))
    else:
        kept = [o for o in graph.output if o.name != branch.output[0]]
        del graph.output[:]
        graph.output.extend(kept)
    return made


def measure(tail: Path, layer: Layer, copies: int, pairs: int, threads: int) -> str:
    """One line of the table."""
    model = onnx.load(tail)
    sessions = [
        onnxruntime.InferenceSession(
            m.SerializeToString(), options(threads), providers=["CPUExecutionProvider"]
        )
        for m in (model, without_if(model, False), without_if(model, True))
    ]
    ours, forward, plain = sessions
    shape = [copies, *(d for d in layer.shape[1:] if isinstance(d, int))]
    fed: dict[str, Any] = {
        layer.activations: np.maximum(np.random.default_rng(0).standard_normal(shape), 0).astype(np.float32)
    }
    names = [o.name for o in forward.get_outputs()]
    asking = {**fed, WITH_GRADIENTS: np.array([True])}
    unasked, forward_ms = ratio(
        functools.partial(forward.run, names, fed), functools.partial(ours.run, names, fed), pairs
    )
    asked, plain_ms = ratio(
        functools.partial(plain.run, None, fed), functools.partial(ours.run, None, asking), pairs
    )
    want, found = plain.run([layer.gradients], fed)[0], ours.run([layer.gradients], asking)[0]
    error = np.abs(found - want).max() / np.abs(want).max()
    return f"{forward_ms:11.2f} {unasked:8.3f}x {plain_ms:12.2f} {asked:8.3f}x {error:9.1e}"


def main() -> None:
    """Print the table."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", default=["layer4", "layer3", "layer2"])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args.threads))
    head = f"{'forward ms':>11} {'unasked':>9} {'gradient ms':>12} {'asked':>9} {'error':>9}"
    print(f"{'layer':8} {'copies':>6} {head}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.cam.onnx")
        report = export_torch(
            build("resnet50"), torch.randn(1, 3, 224, 224), path, layers=args.layers, tail=True
        )
        for layer, tail in zip(report.record.layers, report.record.tails, strict=True):
            for copies in args.copies:
                line = measure(path.with_name(tail.file), layer, copies, args.pairs, args.threads)
                print(f"{layer.name:8} {copies:6} {line}", flush=True)


if __name__ == "__main__":
    main()
