"""``onnxcam explain``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import options
from .terminal import Terminal

HELP = "overlays of photos, with a manifest that says what each of them shows"
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an explainable file (model.cam.onnx); with --black-box, any ONNX file")
    parser.add_argument("images", nargs="+", help="photos, and folders of them")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", default="out", help="where to write (default: out)"
    )
    options.add_method(parser)
    options.add_targets(parser)
    options.add_layers(parser, "which of the file's layers; may be repeated (default: all, fused)")
    parser.add_argument(
        "--black-box",
        nargs="?",
        const=True,
        default=False,
        metavar="OUTPUT",
        help="explain a file that was not rewritten by its scores alone, with rise (the default then) or "
        "occlusion; OUTPUT: where they are, if there are several outputs",
    )
    options.add_providers(parser)
    parser.add_argument(
        "--allow-fallback", action="store_true", help="go on without a provider that does not work"
    )
    parser.add_argument(
        "--batch", type=options.positive, default=8, metavar="N", help="photos in one run (default: 8)"
    )
    parser.add_argument(
        "--alpha", type=options.share, default=0.5, help="weight of the colours, 0 to 1 (default: 0.5)"
    )
    parser.add_argument(
        "--colormap", default="jet", help="a name of OpenCV's: jet, viridis, turbo, ... (default: jet)"
    )
    parser.add_argument(
        "--style", choices=("blend", "show_cam"), default="blend", help="show_cam: pytorch-grad-cam's look"
    )
    parser.add_argument(
        "--sheet",
        action="store_true",
        help="photo, heatmap and overlay side by side too, one sheet per photo",
    )
    options.add_preprocess(parser, "instead of what the file records")
    options.add_json(parser, "the manifest")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from onnxcam import Explainer, images, methods
    from onnxcam.errors import InputError
    from onnxcam.folder import OverlayFolder
    from onnxcam.stream import explain_files

    paths = _without_output(images.find_images(args.images), args, terminal)
    if args.scale == "batch" and len(paths) > args.batch:
        raise InputError(
            f"--scale batch compares all photos, here {len(paths)}, and a --batch holds {args.batch}: say "
            f"--batch {len(paths)}, or leave --scale batch out."
        )
    explainer = Explainer(
        args.model,
        args.providers,
        allow_fallback=args.allow_fallback,
        preprocess=options.preprocess(args.preprocess),
        labels=options.labels(args.labels),
        max_batch=args.batch,
        black_box=args.black_box,
    )
    if args.method is None:
        args.method = "gradcam" if explainer.layers else "rise"
    if explainer.preprocess is None:
        raise InputError(
            f"'{args.model}' records no preprocessing for photos. Say with --preprocess how its input is "
            "made from a photo (a preset such as imagenet, a JSON file or fields), here or to "
            "`onnxcam rewrite`."
        )
    folder = OverlayFolder(
        args.output, args.alpha, args.colormap, args.style, sheets=args.sheet, about=_about(args, explainer)
    )
    how = {"layers": args.layers, **options.method(args)}
    runs = methods.get(args.method).runs
    # A method of many runs takes photo by photo, unless they are scaled together.
    batch_size = 1 if runs and args.scale == "image" else args.batch
    with terminal.progress("running" if runs else "explaining") as update, folder:
        done = 0
        update(done, len(paths))
        if runs:  # the bar counts the runs of each call
            calls = -(-len(paths) // batch_size)
            how["progress"] = lambda ran, of: update(done // batch_size * of + ran, calls * of)
        for batch in explain_files(explainer, paths, options.targets(args), batch_size, **how):
            for path, reason in batch.skipped:
                folder.skip(path, reason)
                terminal.warn(f"skipped: {reason}")
            if batch.explanation is not None:
                folder.add(batch.explanation)
            done += len(batch.skipped) + (0 if batch.explanation is None else len(batch.explanation.names))
            if not runs:
                update(done, len(paths))
    _print(folder.manifest, folder.path, terminal)
    return 1 if folder.manifest["skipped"] else 0


def _about(args: argparse.Namespace, explainer: Any) -> dict[str, Any]:
    """The head of the manifest."""
    from onnxcam import methods
    from onnxcam.digest import sha256

    record, score = explainer.record, explainer.record.score
    return {
        "model": {
            "file": args.model,
            "sha256": sha256(args.model),
            "source": record.source.name,
            "source_sha256": record.source.sha256,
            "tool_version": record.tool_version,
        },
        "score": {
            "output": score.output,
            "activation": score.activation,
            "task": score.task,
            "explained": "probability" if score.probability else "logit" if score.activation else "output",
        },
        "providers": list(explainer.providers),
        "method": args.method,
        "layers": list(args.layers or explainer.layers),
        "fuse": args.fuse or methods.get(args.method).fuse,
        "options": list(args.option or ()),
        "smooth": list(args.smooth or ()),
        "scale": args.scale,
        "channels": args.channels,
        "overlay": {"alpha": args.alpha, "colormap": args.colormap, "style": args.style},
    }


def _without_output(paths: Sequence[str], args: argparse.Namespace, terminal: Terminal) -> list[str]:
    """The photos, without what an earlier run wrote below a given folder."""
    from onnxcam.errors import ImageError, OutputError

    output = os.path.realpath(args.output)
    given = {os.path.realpath(p) for p in args.images}
    if output in given or any(os.path.dirname(p) == output and not os.path.isdir(p) for p in given):
        raise OutputError(
            f"The photos lie in the output folder '{args.output}' itself, where overlays would take their "
            "names. Name another folder with -o."
        )
    if not any(output.startswith(os.path.join(folder, "")) for folder in given):
        return list(paths)
    kept = [p for p in paths if not os.path.realpath(p).startswith(os.path.join(output, ""))]
    if not kept:
        raise ImageError(f"All photos lie in the output folder '{args.output}'. Name another one with -o.")
    if len(kept) < len(paths):
        terminal.say(f"{len(paths) - len(kept)} pictures in the output folder '{args.output}' are left out.")
    return kept


def _print(manifest: dict[str, Any], folder: Path, terminal: Terminal) -> None:
    if terminal.as_json:
        terminal.json(manifest)
        return
    items, skipped = manifest["items"], manifest["skipped"]
    if items:
        terminal.table(
            ["photo", "class", "score", "overlay"],
            [
                (
                    os.path.basename(item["image"]),
                    f"{item['class_id']} {item['label']}" + (" (no evidence)" if item["zero"] else ""),
                    f"{item['score']:.4g}",
                    item["overlay"],
                )
                for item in items[:_SHOWN]
            ],
            right=["score"],
            whole=["score"],
        )
    if len(items) > _SHOWN:
        terminal.say(f"... and {len(items) - _SHOWN} more, in the manifest.")
    zeros = sum(item["zero"] for item in items)
    if zeros:
        terminal.say(
            f"{zeros} of the heatmaps are zero everywhere: nothing in the photo speaks for the class."
        )
    lost = f"; {len(skipped)} skipped" if skipped else ""
    terminal.say(f"{len(items)} overlay{'s' * (len(items) != 1)} and manifest.json in {folder}{lost}")
