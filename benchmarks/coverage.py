"""Which architectures can be explained, and how close their gradients are to torch.autograd's.

    python benchmarks/coverage.py [--minutes 12] [NAME ...]

Each network (random weights) is exported by torch.onnx.export with an open batch, rewritten from the file
alone at the automatic layer and at one in the middle of the list, and run on a batch of two. The reference
is torch.autograd through the program that torch exported, whose values have the names of the file's.
"Unsteady" are gradients on which torch's own float32 and float64 part as much, by units on a kink.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.errors import OnnxcamError
from onnxcam.export import Candidate, list_layers, rewrite_onnx
from onnxcam.export.verify import run

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import build

NAMES = """
    regnet_y_400mf shufflenet_v2_x0_5 mnasnet0_5 squeezenet1_1 googlenet densenet121 timm:resnet10t
    timm:resnext26ts timm:mobilenetv4_conv_small timm:efficientformer_l1 timm:levit_128s timm:mobilevit_xxs
    timm:edgenext_xx_small timm:poolformer_s12 timm:convmixer_768_32 timm:mixer_s32_224
    timm:deit3_small_patch16_224 timm:cait_xxs24_224 timm:xcit_nano_12_p16_224 timm:pvt_v2_b0
    timm:twins_svt_small timm:maxvit_rmlp_pico_rw_256 timm:coatnet_pico_rw_224 timm:ghostnet_050
    timm:repvit_m0_9 timm:hrnet_w18_small timm:resmlp_12_224 timm:gmlp_s16_224 timm:convnextv2_atto
    timm:fastvit_t8 timm:starnet_s1 timm:vit_tiny_r_s16_p8_224 timm:eca_nfnet_l0 timm:res2net50_14w_8s
    timm:dla34 timm:nf_regnet_b1 timm:tiny_vit_5m_224 timm:crossvit_tiny_240 timm:visformer_tiny
    timm:focalnet_tiny_srf inception_v3 timm:swinv2_cr_tiny_224 timm:davit_tiny timm:inception_next_atto
""".split()
MOST_BYTES = 60e6
EQUAL = 0.9999


def main() -> int:
    """Print the table and its totals; 1 if a gradient differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="torchvision's, or timm:NAME")
    parser.add_argument("--minutes", type=float, default=12, help="start no further network after so long")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    counts = {"equal": 0, "different": 0, "unsteady": 0, "refused": 0, "no reference": 0, "not tried": 0}
    print(f"{'model':34}{'layer':44}{'layout':11}{'cosine':>10}  within 1e-4")
    for name in arguments.names:
        for layer, layout, kind, text in [] if time.monotonic() > end else rows(name):
            counts[kind] += 1
            print(f"{name.removeprefix('timm:'):34}{layer[-42:]:44}{layout:11}{text}", flush=True)
        counts["not tried"] += time.monotonic() > end
    print(", ".join(f"{n} {kind}" for kind, n in counts.items()))
    return int(counts["different"] > 0)


def rows(name: str) -> list[tuple[str, str, str, str]]:
    """(layer, layout, kind, figures) of the automatic layer and of one in the middle."""
    import torch

    try:
        model = build(name)
        for weight in model.parameters():
            if not weight.any():  # a branch that starts switched off has no gradient to compare
                torch.nn.init.normal_(weight, std=0.05)
        size = sum(t.nbytes for t in model.state_dict().values())
        if size > MOST_BYTES:
            return [("", "", "not tried", f"{size / 1e6:.0f} MB of weights")]
        side = getattr(model, "default_cfg", {}).get("input_size", (3, 299 if "inception" in name else 224))[
            -1
        ]
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        with contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                model, (images,), dynamo=True, opset_version=18, dynamic_shapes=[{0: torch.export.Dim("N")}]
            )
    except Exception as e:
        return [("", "", "not tried", f"torch: {first_line(e)}")]
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "model.onnx")
        program.save(source)
        try:
            listed = list_layers(source)
        except OnnxcamError as e:
            return [("", "", "refused", first_line(e))]
        exported = program.exported_program
        known = {n.name for n in exported.graph.nodes}
        referable = [c for c in listed[1:] if c.tensor in known]
        layers = listed[:1] + referable[len(referable) // 2 :][:1]
        return [(c.name, c.layout.kind, *judge(source, c, exported, images)) for c in layers]


def judge(source: str, layer: Candidate, exported: Any, images: Any) -> tuple[str, str]:
    """What became of one layer, and the figures or the error."""
    target = f"{source}.cam.onnx"
    try:
        report = rewrite_onnx(source, target, layers=layer.tensor)
    except OnnxcamError as e:
        return "refused", first_line(e)
    record = report.record
    (image,) = exported.graph_signature.user_inputs
    found = run(target, {image: images.numpy()})
    classes = found[record.score.output].reshape(len(images), -1).argmax(axis=1)
    tensors = record.score.tensor, record.layers[0].tensor
    reference = by_autograd(exported.module(check_guards=False), images, *tensors, classes)
    if reference is None:
        return "no reference", "the tensor is not in torch's program"
    ours = found[record.layers[0].gradients].astype(np.float64)
    within = float((np.abs(ours - reference) <= 1e-4 * np.abs(reference).max()).mean())
    figures = f"{cosine(ours, reference):10.7f} {100 * within:8.2f} %"
    if cosine(ours, reference) > EQUAL:
        return "equal", figures
    exact = by_autograd(exported.module(check_guards=False).double(), images.double(), *tensors, classes)
    assert exact is not None
    own = f"  (against float64: torch {cosine(reference, exact):.4f}, ours {cosine(ours, exact):.4f})"
    closer = 1 - cosine(ours, exact) <= 2 * (1 - cosine(reference, exact))
    return "unsteady" if closer else "different", figures + own


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Of two gradients; 1 if both are zero."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / lengths if lengths else float(not (a.any() or b.any()))


def by_autograd(
    program: Any, images: Any, score: str, layer: str, classes: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any] | None:
    """d score[classes] / d layer, through torch's program; None if it does not have these values."""
    import torch

    kept: dict[str, torch.Tensor] = {}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in (score, layer):
                kept[n.name] = value
            return value

    with torch.enable_grad():
        Watching(program).run(images.clone().requires_grad_())
        if len(kept) < 2:
            return None
        picked = kept[score].flatten(1)[torch.arange(len(classes)), torch.as_tensor(classes)].sum()
        (gradient,) = torch.autograd.grad(picked, kept[layer])
    return gradient.numpy().astype(np.float64)


def first_line(e: BaseException) -> str:
    """An error's beginning: enough to see what it is."""
    lines: Sequence[str] = [line.strip() for line in str(e).splitlines() if line.strip()]
    return f"{type(e).__name__}: {' '.join(lines[:2])[:200]}"


if __name__ == "__main__":
    sys.exit(main())
