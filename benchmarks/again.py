"""What runs a network again and again, against the longer way: names of concepts, Finer-CAM, SESS.

    python benchmarks/again.py [--model resnet18] [--pairs 5] [--threads 1] [--scales 4]

Random weights, one image of 224×224. *concepts*: eight of them named, with a tail and without one, by the
gradients of 1,000 classes (each way once). *finercam*: with a tail, and without one, by two runs of the whole
file. *sess*: ours, and pytorch-grad-cam's; with the largest difference of their heatmaps. A and B take turns
(A B A B ...); the ratio is the median of the pairs'. No spinning.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np

from onnxcam import Explainer, factorize, sess
from onnxcam.export import export_torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build
from overhead import machine, options, ratio, timed


def main() -> None:
    """Print the table."""
    import torch
    from torchvision_shim import import_pytorch_grad_cam

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--layer", default="layer4")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scales", type=int, default=4, help="of SESS (the default of both libraries is 12)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("onnxcam").setLevel(logging.ERROR)  # that a file is run without its tail is the point
    print(machine(args.threads))
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (224, 224, 3), np.uint8)
    x = rng.standard_normal((1, 3, 224, 224)).astype(np.float32)
    model = build(args.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.cam.onnx")
        how = {"score": {"seed": True}, "preprocess": "imagenet", "tail": True}
        export_torch(model, torch.from_numpy(x), path, layers=args.layer, **how)
        tailed, plain = (
            Explainer(source, "cpu", session_options=options(args.threads))
            for source in (path, path.read_bytes())  # no file lies beside bytes
        )

        def show(name: str, times: float, ms: float, more: str = "") -> None:
            print(f"{name:9} {ms:10.1f} ms {times:8.2f}x {more}", flush=True)

        print(f"{'':9} {'ours':>13} {'longer way':>9}")
        by_tail, by_gradients = (timed(lambda e=e: factorize(e, photo, names=2)) for e in (tailed, plain))
        show("concepts", by_gradients / by_tail, 1e3 * by_tail)
        finer = (lambda e=e: e.explain_tensor(x, "finercam") for e in (tailed, plain))
        show("finercam", *ratio(*finer, args.pairs))
        gradcam = import_pytorch_grad_cam()
        with gradcam.SESS(model, [model.get_submodule(args.layer)], num_scales=args.scales) as library:

            def theirs() -> np.ndarray:
                return library(torch.from_numpy(x), None)

            def ours() -> np.ndarray:
                return sess.enhanced(tailed, x, scales=args.scales)

            apart = np.abs(ours() - theirs()).max()
            show("sess", *ratio(ours, theirs, max(args.pairs // 3, 1)), f"largest difference {apart:.1e}")


if __name__ == "__main__":
    main()
