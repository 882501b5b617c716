"""``onnxcam concepts``."""

from __future__ import annotations

import argparse

from . import options
from .terminal import Terminal

HELP = "what a layer sees in some photos, as a few concepts: each a colour over the photos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an explainable file (model.cam.onnx)")
    parser.add_argument("images", nargs="+", help="photos, and folders of them; they share the concepts")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", default="out", help="where to write (default: out)"
    )
    parser.add_argument("-l", "--layer", metavar="NAME", help="of the file's layers (default: its first)")
    parser.add_argument(
        "-k", "--concepts", type=int, default=8, metavar="N", help="how many concepts (default: 8)"
    )
    parser.add_argument(
        "--names",
        type=int,
        default=2,
        metavar="N",
        help="how many classes to name for each concept: at once where the file has a tail, else by a "
        "run of the model per class, behind average pooling and one linear layer; 0 for none (default: 2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the factorization's start (default: 0)")
    options.add_providers(parser)
    options.add_preprocess(parser, "instead of what the file records")
    options.add_json(parser, "concepts.json")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from onnxcam import Explainer, factorize, images
    from onnxcam.errors import ImageError

    paths, skipped = [], 0
    for path in images.find_images(args.images):
        try:
            images.load(path)
            paths.append(path)
        except ImageError as e:
            terminal.warn(f"skipped: {e}")
            skipped += 1
    if not paths:
        raise ImageError("None of the images can be read, so there are no concepts in them.")
    explainer = Explainer(
        args.model,
        args.providers,
        preprocess=options.preprocess(args.preprocess),
        labels=options.labels(args.labels),
    )
    with terminal.progress("naming concepts") as update:
        found = factorize(
            explainer, paths, args.layer, args.concepts, names=args.names, seed=args.seed, progress=update
        )
    written = found.save(args.output)
    if args.json:
        terminal.json(found.summary(written))
        return 1 if skipped else 0
    terminal.table(
        ["concept", "share", "classes its vector scores highest"],
        [
            (
                str(k + 1),
                f"{share:.0%}",
                ", ".join(f"{n.label} {n.probability:.2f}" for n in found.names[k]) if found.names else "",
            )
            for k, share in enumerate(found.factors.shares.tolist())
        ],
        right=["share"],
    )
    terminal.print(
        f"{found.factors.error:.0%} of the layer '{found.layer}' is in none of them. "
        f"{len(written)} pictures in {args.output}."
    )
    return 1 if skipped else 0
