"""What an explanation costs, as ratios measured in one run.

    python benchmarks/overhead.py [--pairs 15] [--threads 1] [--only NAME] [--json FILE]

For each network, layer and batch: plain ONNX Runtime inference of the plain export; the explainable file
alone (all of its outputs computed, those of the layer fetched); the same made with ``seed=True``, so that it
takes the weights of any linear functional, and unfed; the whole ``Explainer`` call with its
post-processing; and pytorch-grad-cam on the same weights. A and B take turns (A B A B ...); a figure is the
median of the ratios of the pairs. Spinning is off: two spinning sessions spoil each other's figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxcam
from onnxcam.contract import activations_name, gradients_name
from onnxcam.export import export_torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build, export_plain


@dataclass(frozen=True)
class Job:
    """One network and the layers to measure: the last, then middle ones."""

    name: str
    layers: tuple[str, ...]
    tokens: bool = False


JOBS = (
    Job("resnet50", ("layer4", "layer3", "layer2")),
    Job("mobilenet_v3_large", ("features", "features.12")),
    Job("timm:vit_tiny_patch16_224", ("blocks.11.norm1", "blocks.6.norm1"), tokens=True),
)


@dataclass(frozen=True)
class Row:
    """One line of the table; ratios are medians of pairs."""

    model: str
    layer: str
    batch: int
    plain_ms: float
    file: float
    seeded: float
    call: float
    pytorch_grad_cam: float | None


def ratio(a: Callable[[], Any], b: Callable[[], Any], pairs: int) -> tuple[float, float]:
    """Median of time(b) / time(a) over alternating pairs, and a's median in milliseconds."""
    for _ in range(3):
        a(), b()
    ratios, plain = [], []
    for k in range(pairs):
        if k % 2:
            y, x = timed(b), timed(a)
        else:
            x, y = timed(a), timed(b)
        ratios.append(y / x)
        plain.append(x)
    return statistics.median(ratios), 1e3 * statistics.median(plain)


def timed(f: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(job: Job, batches: Sequence[int], pairs: int, threads: int, peer: bool) -> list[Row]:
    """The rows of one network."""
    import onnxruntime
    import torch

    torch.set_num_threads(threads)
    model = build(job.name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain_path = export_plain(model, Path(folder, "plain.onnx"))
        plain = onnxruntime.InferenceSession(plain_path, options(threads), providers=["CPUExecutionProvider"])
        name = plain.get_inputs()[0].name
        for layer in job.layers:
            path = Path(folder, "model.cam.onnx")
            export_torch(model, torch.randn(1, 3, 224, 224), path, layers=layer)
            general = Path(folder, "seeded.cam.onnx")
            export_torch(model, torch.randn(1, 3, 224, 224), general, layer, {"seed": True})
            explainer = onnxcam.Explainer(path, ["CPUExecutionProvider"], session_options=options(threads))
            file, seeded = (
                onnxruntime.InferenceSession(p, options(threads), providers=["CPUExecutionProvider"])
                for p in (path, general)
            )
            entry = file.get_inputs()[0].name
            fetched = [file.get_outputs()[0].name, activations_name(layer), gradients_name(layer)]
            for batch in batches:
                x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
                inference = functools.partial(plain.run, None, {name: x})
                explanation = functools.partial(explainer.explain_tensor, x)
                alone = functools.partial(file.run, fetched, {entry: x})
                taking_weights = functools.partial(seeded.run, fetched, {entry: x})
                file_ratio, plain_ms = ratio(inference, alone, pairs)
                seeded_ratio, _ = ratio(inference, taking_weights, pairs)
                call_ratio, _ = ratio(inference, explanation, pairs)
                peers = peer_ratio(job, model, layer, x, explanation, pairs) if peer else None
                short = job.name.removeprefix("timm:")
                rows.append(Row(short, layer, batch, plain_ms, file_ratio, seeded_ratio, call_ratio, peers))
                print(line(rows[-1]), flush=True)
    return rows


def peer_ratio(
    job: Job, model: Any, layer: str, x: np.ndarray[Any, Any], ours: Callable[[], Any], pairs: int
) -> float:
    """How many times longer pytorch-grad-cam takes for the same maps."""
    import torch
    from torchvision_shim import import_pytorch_grad_cam

    gradcam = import_pytorch_grad_cam()
    transform = (lambda t: t[:, 1:].reshape(len(t), 14, 14, -1).permute(0, 3, 1, 2)) if job.tokens else None
    tensor = torch.from_numpy(x)
    module = dict(model.named_modules())[layer]
    with gradcam.GradCAM(model=model, target_layers=[module], reshape_transform=transform) as cam:
        return ratio(ours, lambda: cam(input_tensor=tensor, targets=None), max(3, pairs // 3))[0]


def options(threads: int) -> Any:
    """Session options: so many threads, none of them spinning."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 3
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return made


HEADER = (
    f"{'network':24} {'layer':16} {'batch':>5} {'plain ms':>9} {'file':>7} {'seeded':>7} {'call':>7} "
    f"{'pytorch-grad-cam':>17}"
)


def line(row: Row) -> str:
    """A row of the table."""
    peer = f"{row.pytorch_grad_cam:16.1f}x" if row.pytorch_grad_cam is not None else f"{'-':>17}"
    ours = f"{row.plain_ms:9.1f} {row.file:6.3f}x {row.seeded:6.3f}x {row.call:6.3f}x"
    return f"{row.model:24} {row.layer:16} {row.batch:5} {ours} {peer}"


def machine(threads: int) -> str:
    """What the figures were measured on."""
    import onnxruntime
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (ln.split(":", 1)[1].strip() for ln in info.read_text().splitlines() if "model name" in ln), cpu
        )
    return (
        f"{cpu}, {threads} thread{'s' if threads > 1 else ''}; onnxcam {onnxcam.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--no-peer", action="store_true", help="without pytorch-grad-cam")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    args = parser.parse_args()
    print(machine(args.threads))
    print(HEADER, flush=True)
    rows = [
        row
        for job in JOBS
        if not args.only or args.only in job.name
        for row in measure(job, args.batch, args.pairs, args.threads, not args.no_peer)
    ]
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
