"""What every method costs, in forward passes; and how much memory masking takes.

    python benchmarks/methods.py [--layer layer4] [--pairs 5] [--threads 1] [--peers] [--memory] [--only NAME]

ResNet-50 with random weights, one image of 224 x 224. A figure is the time of a whole ``explain_tensor`` over
that of plain inference of the plain export: A and B take turns, medians of pairs. Methods that run the whole
file for hundreds of copies are timed on 64 of them and scaled to their number, which is printed.

``--peers``: Ablation-CAM and Score-CAM in full, ours and pytorch-grad-cam's, in one run (15 minutes).
``--memory``: the peak resident memory of a process that runs RISE with 100, 1,000 and 10,000 masks, and
Score-CAM with 100 and with all 960 channels.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build, export_plain
from overhead import machine, options, timed

import onnxcam
from onnxcam import methods
from onnxcam.export import export_torch

SOME = 64  #: copies on which a method of many runs is timed

#: What makes a method run so few copies.
FEW: dict[str, dict[str, Any]] = {
    **{name: {"top": SOME} for name in ("scorecam", "scorecam:pgc", "scorecam:torchcam")},
    "iscam": {"top": 8, "intervals": 8},
    "sscam": {"top": 8, "samples": 8},
    "rise": {"masks": SOME},
}


@dataclass(frozen=True)
class Files:
    """A network: plain; explainable at a layer, with its tail; and with each map that only a file holds."""

    plain: Path
    explainable: Path
    inside: dict[str, Path]


def write(model: Any, layer: str, folder: Path) -> Files:
    """The files of one layer."""
    import torch

    example = torch.randn(1, 3, 224, 224)
    plain = export_plain(model, folder / "plain.onnx")
    seeded = folder / "model.cam.onnx"
    export_torch(model, example, seeded, layer, {"seed": True}, tail=True)
    inside = {}
    for number, name in enumerate(n for n in methods.names() if methods.get(n).inside):
        with contextlib.suppress(onnxcam.OnnxcamError):  # LeGrad is for transformers
            export_torch(model, example, folder / f"{number}.cam.onnx", layer, fuse=name)
            inside[name] = folder / f"{number}.cam.onnx"
    return Files(plain, seeded, inside)


def in_turns(a: Callable[[], Any], b: Callable[[], Any], pairs: int) -> tuple[float, float]:
    """Median seconds of two calls, taking turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(pairs):
        for which in (0, 1) if k % 2 == 0 else (1, 0):
            times[which].append(timed((a, b)[which]))
    return statistics.median(times[0]), statistics.median(times[1])


def costs(layer: str, pairs: int, threads: int, only: str | None) -> None:
    """The table of one layer."""
    import onnxruntime
    import torch

    torch.set_num_threads(threads)
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = write(build("resnet50"), layer, Path(folder))
        plain = onnxruntime.InferenceSession(
            files.plain, options(threads), providers=["CPUExecutionProvider"]
        )
        inference = functools.partial(plain.run, None, {plain.get_inputs()[0].name: x})
        opened = functools.cache(
            lambda path: onnxcam.Explainer(path, "cpu", session_options=options(threads))
        )
        inference()
        print(f"{'method':22} {'whole':>7} {'tails':>7} {'x forward':>10}   at {layer}", flush=True)
        for name in methods.names():
            if only and only not in name:
                continue
            explainer = opened(files.inside.get(name, files.explainable))
            few = FEW.get(name, {})
            explain = functools.partial(explainer.explain_tensor, x, name, 7, **few)
            try:
                found = explain()
            except onnxcam.OnnxcamError as e:
                print(f"{name:22} - {e}", flush=True)
                continue
            forward, took = in_turns(inference, explain, 3 if found.passes > 8 else pairs)
            passes, ratio, note = found.passes, took / forward, ""
            if few:
                passes = copies(name, x, explainer) + 1
                ratio = 1 + (ratio - 1) * (passes - 1) / (found.passes - 1)
                note = f"  (timed on {found.passes - 1})"
            print(f"{name:22} {passes:7} {found.tail_passes:7} {ratio:9.2f}x{note}", flush=True)


def copies(name: str, x: Any, explainer: Any) -> int:
    """How many copies a method of many runs takes by default."""
    found: list[int] = []

    def count(*arguments: Any) -> Any:
        *rest, masked = arguments

        def told(make: Any, number: int, **how: Any) -> Any:
            found.append(number)
            return np.zeros((number, 1), np.float32)

        spy = type("Spy", (), {"sides": masked.sides, "batch": masked.batch, "tensor": masked.tensor})()
        spy.masked = spy.inputs = told
        methods.get(name).function(*rest, spy)
        return np.zeros((1, *(rest[0].shape[1:] if rest else (1, 1))), np.float32)

    needs = methods.get(name).needs
    explainer.explain_tensor(x, methods.Method("count", count, needs, source="ours", formula="M = 0"), 7)
    return found[0]


def peers(layer: str, threads: int) -> None:
    """Ablation-CAM and Score-CAM beside pytorch-grad-cam's."""
    import onnxruntime
    import torch
    from torchvision_shim import import_pytorch_grad_cam

    torch.set_num_threads(threads)
    gradcam, model = import_pytorch_grad_cam(), build("resnet50")
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    target = [gradcam.utils.model_targets.ClassifierOutputTarget(7)]
    with tempfile.TemporaryDirectory() as folder:
        files = write(model, layer, Path(folder))
        explainer = onnxcam.Explainer(files.explainable, "cpu", session_options=options(threads))
        plain = onnxruntime.InferenceSession(
            files.plain, options(threads), providers=["CPUExecutionProvider"]
        )
        inference = functools.partial(plain.run, None, {plain.get_inputs()[0].name: x})
        for ours, theirs in (
            ("reciprocam", None),
            ("ablationcam", "AblationCAM"),
            ("scorecam:pgc", "ScoreCAM"),
        ):
            explain = functools.partial(explainer.explain_tensor, x, ours, 7)
            explain() if theirs is None or ours == "ablationcam" else inference()
            forward, took = in_turns(inference, explain, 5 if theirs is None else 1)
            print(f"{ours}: {took:.2f} s, {took / forward:.2f}x one forward pass", flush=True)
            if theirs is not None:
                with getattr(gradcam, theirs)(model, [model.get_submodule(layer)]) as cam:
                    slow = timed(lambda cam=cam: cam(torch.from_numpy(x), target))
                print(f"  pytorch-grad-cam's {theirs}: {slow:.1f} s, {slow / took:.1f}x ours", flush=True)


MEMORY = """
import resource, sys, numpy as np, onnxcam
explainer = onnxcam.Explainer(sys.argv[1], "cpu", session_options={"intra_op_num_threads": 1})
x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
explainer.explain_tensor(x, sys.argv[2], 7, **{sys.argv[3]: int(sys.argv[4])})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def memory() -> None:
    """Peak memory of masking, by the number of masks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.cam.onnx")
        import torch

        export_torch(build("mobilenet_v3_large"), torch.randn(1, 3, 224, 224), path, "features")
        wanted = [("rise", "masks", n) for n in (100, 1_000, 10_000)]
        wanted += [("scorecam", "top", n) for n in (100, 960)]
        for name, option, count in wanted:
            command = [sys.executable, "-c", MEMORY, path, name, option, str(count)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            peak = float(ran.stdout)
            print(f"{name}, MobileNetV3-Large, {count:6,} masks: peak {peak:.0f} MiB", flush=True)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layer", default="layer4")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="methods whose name contains this")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    print(machine(args.threads), flush=True)
    if args.memory:
        memory()
    elif args.peers:
        peers(args.layer, args.threads)
    else:
        costs(args.layer, args.pairs, args.threads, args.only)


if __name__ == "__main__":
    main()
