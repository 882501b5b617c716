"""``onnxcam inspect``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import fused
from ..contract import BOX, CLASS_INDEX, REFERENCE, REGION, Fused, Score
from ..digest import sha256
from . import options
from .terminal import Terminal, layout_text, shape_text, size_text

HELP = "what an explainable file says about itself"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an explainable file (model.cam.onnx)")
    options.add_json(parser, "the record")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from onnxcam.contract import CHOICES
    from onnxcam.session import Session

    session = Session(args.model, "cpu")
    record = session.record
    tensors = {
        kind: [{"name": t.name, "dtype": str(t.dtype), "shape": list(t.shape)} for t in found]
        for kind, found in (("inputs", session.inputs), ("outputs", session.outputs))
    }
    size, digest = options.model_size(args.model), sha256(args.model)
    usable = fused.usable(record)
    if args.json:
        about = {"file": args.model, "bytes": size, "sha256": digest, **tensors, "methods": usable}
        terminal.json({**json.loads(record.to_json()), **about})
        return 0
    score = record.score
    if score.probability:
        explained = (
            f"the probability after the {score.activation}" if score.activation else "the output itself"
        )
    else:
        explained = f"the logit before the {score.activation}" if score.activation else "the output itself"
    if score.rest:
        explained += ", plus the logarithm of its softmax"
    labels = record.labels
    shapes = {seed.input: seed.shape for seed in score.seeds}
    terminal.facts(
        [
            ("file", f"{args.model} ({size_text(size)})"),
            ("sha256", digest),
            ("source", " ".join(filter(None, (record.source.name, record.source.sha256))) or "not recorded"),
            ("made by", f"onnxcam {record.tool_version}, schema {record.schema}"),
            ("score", _score(score)),
            ("explained", explained),
            ("labels", f"{len(labels)}: {', '.join(labels[:3])}, ..." if labels else "not recorded"),
            ("preprocessing", _preprocess(record.preprocess)),
            ("methods", ", ".join(usable) or "none"),
            ("computes", "; ".join(map(_map, record.fused)) or "no maps itself"),
            ("tails", "; ".join(f"{t.file} (after {t.layer})" for t in record.tails) or "none"),
        ]
    )
    terminal.print()
    terminal.table(
        ["layer", "tensor", "shape", "layout", "head"],
        [
            (
                layer.name,
                layer.tensor,
                shape_text(layer.shape),
                layout_text(layer.layout),
                layer.head or "-",
            )
            for layer in record.layers
        ],
    )
    terminal.table(
        ["", "name", "type", "shape"],
        [
            (kind.removesuffix("s"), t["name"], t["dtype"], shape_text(t["shape"]))
            for kind, found in tensors.items()
            for t in found
        ]
        + [
            (
                "optional",
                i.name,
                str(i.dtype),
                _MEANING.get(name) or f"{shape_text(shapes[name])} (weights)",
            )
            for name in (*CHOICES[score.task], *shapes)
            for i in [session.choices[name]]
        ],
    )
    return 0


def _map(one: Fused) -> str:
    what = "scaled" if one.scaled else "raw"
    if len(one.layers) > 1:
        what += f", {one.fuse}"
    return f"{one.output} ({fused.told(one)}, {what}, at the {one.size}'s size)"


_MEANING = {
    CLASS_INDEX: "N (-1, the default: each image's top class)",
    REGION: "N×h×w over the image (default: the pixels of the class)",
    BOX: "N×4: x1, y1, x2, y2 in the model's input (default: the best)",
    REFERENCE: "N×D (default: the image's own)",
}


def _score(score: Score) -> str:
    classes = f"{score.classes or 'an unknown number of'} class{'es' * (score.classes != 1)}"
    if score.task == "classification":
        return f"{score.output}, {classes}"
    return f"{score.output}, {score.task}" + (f", {classes}" if score.task != "embedding" else "")


def _preprocess(how: Any) -> str:
    if how is None:
        return "not recorded"
    h, w = how.size
    fit = how.fit
    if fit == "crop" and how.resize is not None:
        fit = f"resize to {how.resize if isinstance(how.resize, int) else shape_text(how.resize)}, crop"
    numbers = [f"{name} {', '.join(f'{v:.6g}' for v in getattr(how, name))}" for name in ("mean", "std")]
    resize = how.interpolation + (" antialiased" if how.antialias else "")
    return (
        f"{fit} to {h}×{w} ({resize}), {how.channels} × {how.scale:.6g}, {', '.join(numbers)}, "
        f"{how.layout}, input {how.input}"
    )
