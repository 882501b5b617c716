"""``onnxcam rewrite``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from . import options
from .terminal import Terminal

if TYPE_CHECKING:
    from onnxcam.export import ExportReport

HELP = "make any ONNX file explainable"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an ONNX file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write (default: model.cam.onnx beside the source)"
    )
    options.add_layers(
        parser, "what to explain: a module path, a node or a tensor; may be repeated (default: auto)"
    )
    options.add_score(parser)
    options.add_fuse(parser)
    options.add_tail(parser)
    options.add_preprocess(parser, "how photos become the model's input, for the record")
    parser.add_argument(
        "--lower", action="store_true", help="bring a file above opset 18 down to it: no gaps on CUDA"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not run the result against the source")
    options.add_json(parser, "the report")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    source = Path(args.model)
    default = source.with_name(source.name.removesuffix(".onnx").removesuffix(".cam") + options.SUFFIX)
    target = options.checked_output(args.output, default, args.model if source.exists() else None)
    preprocess, labels = options.preprocess(args.preprocess), options.labels(args.labels)
    with terminal.busy(f"rewriting {source.name}"):
        from onnxcam.export import rewrite_onnx

        report = rewrite_onnx(
            args.model,
            target,
            args.layers or "auto",
            options.score(args),
            probability=args.probability,
            preprocess=preprocess,
            labels=labels,
            fuse=options.fuse(args),
            maps_only=args.maps_only,
            tail=args.tail,
            lower=args.lower,
            verify=not args.no_verify,
        )
    print_report(report, terminal)
    return 0


def print_report(report: ExportReport, terminal: Terminal) -> None:
    """A report, for people or as JSON."""
    if terminal.as_json:
        terminal.json({**dataclasses.asdict(report), "path": str(report.path)})
        return
    terminal.print(str(report))
    if report.record.preprocess is None:
        terminal.say(
            "The file records no preprocessing, so photos cannot be explained as they are: "
            "give --preprocess here, or to `onnxcam explain`."
        )
