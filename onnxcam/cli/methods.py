"""``onnxcam methods``."""

from __future__ import annotations

import argparse

from .options import add_json
from .terminal import Terminal

HELP = "the CAM methods, their formulas and papers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "the table")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from onnxcam import methods
    from onnxcam.fused import fusable

    inside = fusable()
    known = [methods.get(name) for name in methods.names()]
    if args.json:
        fields = ("name", "formula", "source", "kind", "needs", "options", "rectify", "head")
        terminal.json(
            [{**{field: getattr(m, field) for field in fields}, "not_inside": inside[m.name]} for m in known]
        )
        return 0
    terminal.table(
        ["name", "needs", "formula", "source"],
        [
            (
                m.name,
                m.kind,
                m.formula,
                m.source + (" (needs average pooling and one linear layer)" if m.head else ""),
            )
            for m in known
        ],
        whole=["name"],
    )
    terminal.print("A: a layer's activation, G: the score's gradient there, k: a channel.")
    reasons = dict.fromkeys(filter(None, inside.values()))
    terminal.print()
    terminal.table(
        ["inside a file (--fuse)", "methods"],
        [
            (reason or "Yes.", ", ".join(name for name, why in inside.items() if why == reason))
            for reason in (None, *reasons)
        ],
    )
    return 0
