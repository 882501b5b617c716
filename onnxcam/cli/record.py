"""``onnxcam record``."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from . import options
from .terminal import Terminal, shape_text, size_text

if TYPE_CHECKING:
    from ..recording import Recording

HELP = "what a model says of photos, and why, as one file that `onnxcam compare` takes in its place"
EPILOG = """A run that was cut off goes on where it was when the same command is given again.
docs/recording.md says how programs in other languages write the file.

"""
_SHOWN = 10  #: photos that were skipped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an explainable file (model.cam.onnx)")
    parser.add_argument("images", nargs="+", help="photos, and folders of them")
    parser.add_argument(
        "-o", "--output", metavar="FILE.npz", default="run.npz", help="the recording (default: run.npz)"
    )
    parser.add_argument(
        "-m", "--method", metavar="NAME", default="gradcam", help="see `onnxcam methods` (default: gradcam)"
    )
    parser.add_argument(
        "--option",
        action="append",
        metavar="KEY=VALUE",
        help="of the method, such as masks=1000 for rise; may be repeated",
    )
    parser.add_argument(
        "-t",
        "--target",
        metavar="CLASS",
        help="class index or label, for every photo (default: each photo's top class)",
    )
    options.add_layers(parser, "whose maps are recorded; may be repeated (default: all that the file has)")
    options.add_providers(parser)
    parser.add_argument(
        "--optimization",
        choices=("all", "extended", "basic", "disable"),
        default="all",
        help="ONNX Runtime's optimisation of the graph (default: all)",
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="photos in one run (default: 8)")
    options.add_preprocess(parser, "instead of what the file records")
    options.add_json(parser, "what was recorded")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from .. import Explainer, recorder
    from ..errors import InputError, OutputError
    from ..recording import SUFFIX

    if not args.output.lower().endswith(SUFFIX):
        raise OutputError(f"A recording is an {SUFFIX} file: name one with -o, not '{args.output}'.")
    photos = recorder.names_of(args.images)
    explainer = Explainer(
        args.model,
        args.providers,
        session_options=recorder.session_options(args.optimization),
        preprocess=options.preprocess(args.preprocess),
        labels=options.labels(args.labels),
    )
    side = recorder.side(
        explainer,
        args.model,
        args.method,
        None if args.target is None else options.class_named(args.target),
        args.layers,
        {"optimization": args.optimization},
        **options.method_options(args.method, args.option),
    )
    journal = recorder.journal_of(args.output)
    with terminal.progress("recording") as update:
        try:
            (made,) = recorder.record_to([side], photos, [args.output], batch=args.batch, progress=update)
        except KeyboardInterrupt:
            terminal.say(f"What is done is kept in '{journal}': the same command goes on from there.")
            raise
    for name, reason in made.skipped[:_SHOWN]:
        terminal.warn(f"skipped: {name}: {reason}")
    if len(made.skipped) > _SHOWN:
        terminal.warn(f"... and {len(made.skipped) - _SHOWN} more, in the recording.")
    if not len(made):
        raise InputError(f"None of the photos could be recorded: {made.skipped[0][1]}")
    _print(made, args, terminal)
    return 1 if made.skipped else 0


def _print(made: Recording, args: argparse.Namespace, terminal: Terminal) -> None:
    maker = made.maker
    if terminal.as_json:
        terminal.json(
            {
                "recording": args.output,
                "bytes": os.path.getsize(args.output),
                "model": {"file": args.model, "sha256": maker.sha256},
                "runtime": dict(maker.runtime),
                "method": maker.method,
                "layers": {layer: list(made.maps[layer].shape[1:]) for layer in maker.layers},
                "photos": len(made),
                "skipped": [{"image": name, "reason": reason} for name, reason in made.skipped],
            }
        )
        return
    terminal.facts(
        [
            ("recording", f"{args.output} ({size_text(os.path.getsize(args.output))})"),
            ("photos", f"{len(made)}" + (f", {len(made.skipped)} skipped" if made.skipped else "")),
            ("model", f"{args.model} ({maker.sha256[:12]})"),
            ("runtime", ", ".join(f"{name} {value}" for name, value in maker.runtime.items())),
            ("method", maker.method),
            *(("layer", f"{name} ({shape_text(maps.shape[1:])})") for name, maps in made.maps.items()),
        ]
    )
