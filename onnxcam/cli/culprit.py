"""``onnxcam culprit``."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import options
from .terminal import Terminal

if TYPE_CHECKING:
    from onnxcam.export.ranking import Culprit, Ranking

HELP = "which quantised tensors move the explanation, and what to leave in float"
EPILOG = """the reference is the very file that was quantised, the other its QDQ version; each tensor is
quantised alone, and put back to float alone, and the maps are compared with the reference's.

examples:
  onnxcam culprit fp32.onnx qdq.onnx photos/ --preprocess imagenet
  onnxcam culprit fp32.cam.onnx qdq.onnx photos/ --measure js --top 10 -o culprits.json

"""
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", help="the fp32 file, explainable or not")
    parser.add_argument("quantised", help="its QDQ version")
    parser.add_argument("images", nargs="+", help="photos, and folders of them; a few dozen will do")
    parser.add_argument("-l", "--layer", metavar="NAME", help="of the reference (default: its best)")
    parser.add_argument("-m", "--method", default="gradcam", help="see `onnxcam methods` (default: gradcam)")
    parser.add_argument(
        "--measure",
        default="pearson",
        metavar="NAME",
        help="of agreement: pearson spearman cosine iou20 peak js ssim emd (default: pearson)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="that the mean of the measure must meet with some tensors left in float (default: 0.95; 0.05 "
        "where lower is better)",
    )
    parser.add_argument(
        "--top",
        type=int,
        metavar="N",
        help=f"tensors to print and to put back to float one by one (default: all; {_SHOWN} are printed)",
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="photos in one run (default: 8)")
    options.add_score(parser)
    options.add_providers(parser)
    options.add_preprocess(
        parser, "how photos become the model's input (default: what the reference records)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the report there as JSON")
    options.add_json(parser, "the report")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from ..errors import OutputError
    from ..folder import write_whole

    if args.output is not None and os.path.isdir(args.output):
        raise OutputError(f"'{args.output}' is a folder: name a file for the report.")
    with terminal.progress("explaining") as update:
        from onnxcam.export import culprits

        found = culprits(
            args.reference,
            args.quantised,
            args.images,
            method=args.method,
            layer=args.layer,
            measure=args.measure,
            threshold=args.threshold,
            top=args.top,
            batch=args.batch,
            preprocess=options.preprocess(args.preprocess),
            labels=options.labels(args.labels),
            score=options.score(args),
            probability=args.probability,
            providers=args.providers,
            progress=update,
        )
    for photo, reason in found.skipped:
        terminal.warn(f"skipped: {photo}: {reason}")
    if args.output is not None:
        text = json.dumps(found.data(), indent=2, ensure_ascii=False)
        write_whole(Path(args.output), text.encode("utf-8", "surrogatepass"))
        terminal.say(f"The report is in {args.output}.")
    if args.json:
        terminal.json(found.data())
    else:
        _print(found, _SHOWN if args.top is None else args.top, terminal)
    return 1 if found.skipped else 0


def _print(found: Ranking, shown: int, terminal: Terminal) -> None:
    columns = ["tensor", "kind", "read by", "type", "scale", "alone", "worst", "same answer", "without it"]
    rows = [_row(one) for one in found.culprits[:shown]]
    terminal.table(columns, rows, right=columns[5:], whole=[*columns[1:2], *columns[3:]])
    more = len(found.culprits) - len(rows)
    also = f" {more} more tensors move it less." if more > 0 else ""
    same = f" {len(found.same)} quantised weights are the reference's very numbers." if found.same else ""
    photos = f"{len(found.photos)} photo{'s' * (len(found.photos) != 1)}"
    terminal.say(f"{found.runs} explanations in {found.seconds:.1f} s.")
    terminal.print(
        f"{found.method} at {found.layer}, {photos}: mean {found.measure} of the maps with the reference's "
        f"({found.better} is better) where a tensor alone is quantised, and where all others are.{also}{same}"
    )
    everything, advice = found.everything, found.advice
    terminal.print(
        f"All quantised: {everything.mean:.3f}, worst {everything.worst:.3f} ({everything.photo}), "
        f"{everything.same_answer:.0%} same answers."
    )
    if not advice.tensors:
        terminal.print(f"Nothing needs to stay in float: that meets {found.threshold:g}.")
    else:
        verdict = "meets" if advice.reached else "still misses"
        terminal.print(
            f"Leave in float: {', '.join(advice.tensors)}. The rest quantised: {advice.effect.mean:.3f}, "
            f"worst {advice.effect.worst:.3f}, {advice.effect.same_answer:.0%} same answers, which {verdict} "
            f"{found.threshold:g}. They are read by {', '.join(advice.readers) or 'the output'}."
        )
    check = found.check
    terminal.print(
        f"Check: outputs differ from the reference's by {check.off:.1g} with all switches off, from the "
        f"quantised file's in float by {check.on:.1g} with all on; its integer kernels add "
        f"{check.kernels:.1g}."
    )
    if not check.sound:
        terminal.warn(
            "The switches do not add up to the quantised file: what is said above may not hold for it."
        )


def _row(one: Culprit) -> tuple[str, ...]:
    tensor = one.tensor
    scale = "-" if tensor.scale is None else " to ".join(f"{s:.3g}" for s in dict.fromkeys(tensor.scale))
    return (
        tensor.name,
        tensor.kind,
        ", ".join(reader or "(output)" for reader in tensor.readers),
        tensor.type,
        scale,
        f"{one.alone.mean:.4f}",
        f"{one.alone.worst:.4f}",
        f"{one.alone.same_answer:.0%}",
        "-" if one.without is None else f"{one.without.mean:.4f}",
    )
