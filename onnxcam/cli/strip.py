"""``onnxcam strip``."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import options
from .terminal import Terminal, size_text

HELP = "the original graph back from an explainable file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an explainable file (model.cam.onnx)")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where to write")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    target = options.checked_output(
        args.output, Path(args.output), args.model if Path(args.model).exists() else None
    )
    with terminal.busy(f"stripping {args.model}"):
        from onnxcam.export import load, strip
        from onnxcam.export.write import staged

        with staged(strip(load(args.model)), target):
            pass
    terminal.print(f"{target}: {size_text(options.model_size(target))}, nothing of onnxcam's in it")
    return 0
