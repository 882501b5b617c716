"""``onnxcam layers``."""

from __future__ import annotations

import argparse
import dataclasses

from . import options
from .terminal import Terminal, layout_text, shape_text

HELP = "what can be explained in an ONNX file, the best layer first"
_SHOWN = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an ONNX file")
    options.add_score(parser)
    parser.add_argument("--all", action="store_true", help=f"all of them, not the first {_SHOWN}")
    options.add_json(parser, "all layers")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    with terminal.busy(f"reading {args.model}"):
        from onnxcam.export import list_layers

        found = list_layers(args.model, options.score(args), probability=args.probability)
    if args.json:
        terminal.json([{**dataclasses.asdict(layer), "grid": layer.grid} for layer in found])
        return 0
    if not found:
        terminal.print("There is no layer to explain: no tensor with a spatial grid leads to the score.")
        return 0
    shown = found if args.all else found[:_SHOWN]
    terminal.table(
        ["name", "shape", "map", "layout", "why"],
        [(c.name, shape_text(c.shape), shape_text(c.grid), layout_text(c.layout), c.why) for c in shown],
        whole=["map", "layout"],
    )
    if len(found) > len(shown):
        terminal.say(f"{len(found) - len(shown)} more, down to the input, with --all.")
    return 0
