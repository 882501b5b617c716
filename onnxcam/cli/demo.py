"""``onnxcam demo``."""

from __future__ import annotations

import argparse

from .options import add_json, add_providers
from .terminal import Terminal

HELP = "the whole road on an embedded model and photo; nothing to download"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="where the pictures go (default: onnxcam-demo)"
    )
    add_providers(parser)
    add_json(parser, "the result")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    import dataclasses

    from onnxcam import demo

    with terminal.progress("explaining mosaics") as update:
        report = demo.run(args.output or demo.FOLDER, progress=update, providers=args.providers)
    if args.json:
        terminal.json({**dataclasses.asdict(report), "files": [str(f) for f in report.files]})
        return 0
    terminal.print(f"One photo, two of the {len(report.classes)} classes ({', '.join(report.classes)}):")
    terminal.table(
        ["class", "probability", f"{report.method}'s heat in its tile", "the tile's area"],
        [(e.label, f"{e.probability:.3f}", f"{e.share:.0%}", f"{e.area:.0%}") for e in report.explained],
        right=["probability", f"{report.method}'s heat in its tile", "the tile's area"],
    )
    terminal.print(
        f"Localisation over {report.mosaics} held-out mosaics: the share of {report.maps} maps' heat that "
        "lies in the class's own tile."
    )
    terminal.table(
        ["map", "mean", "worst class"],
        [(row.name, f"{row.share:.1%}", f"{row.worst[0]} {row.worst[1]:.1%}") for row in report.table],
        right=["mean"],
    )
    terminal.print(f"The likeliest class is one that is shown in {report.top_in_place:.0%} of the mosaics.")
    terminal.print(f"In {report.files[-1].parent}: {', '.join(path.name for path in report.files)}")
    return 0
