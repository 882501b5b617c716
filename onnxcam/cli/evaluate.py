"""``onnxcam evaluate``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options
from .terminal import Terminal

if TYPE_CHECKING:
    from .. import Explainer
    from ..evaluation import Evaluation, Measured

HELP = "measure methods on photos: faithfulness, localisation, cost"
EPILOG = """metrics, by what they need beside the photos:
  nothing         deletion insertion drop increase gain road complexity infidelity ...
  --truth         pointing energy box_iou maxboxacc
  --randomised    randomised_ssim randomised_rank: the sanity check of Adebayo et al.
  four classes    grid_pointing
`onnxcam evaluate --list` prints all with their formulas and sources. road, arcc, randomised_rank and the plot
need `pip install "onnxcam[metrics]"`.

"""
_REASONS = 10  #: that are printed
_ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="an explainable file (model.cam.onnx)")
    parser.add_argument("images", nargs="*", help="photos, and folders of them")
    parser.add_argument(
        "--list", action="store_true", help="the metrics, their formulas and sources; no more"
    )
    parser.add_argument(
        "-m",
        "--methods",
        default="quick",
        metavar="NAME,...",
        help="of `onnxcam methods`; all; or quick: those that run the file once (default: quick)",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAME,...",
        help="(default: deletion,insertion,drop,increase, and with --truth pointing,energy)",
    )
    parser.add_argument(
        "-t",
        "--target",
        metavar="CLASS|FILE.json",
        help="class index or label for every photo, or {photo: class} (default: each photo's top class)",
    )
    parser.add_argument(
        "--truth",
        metavar="FOLDER|FILE.json",
        help="where the objects are: masks with the photos' names, not black on the object, or "
        "{photo: [[x1, y1, x2, y2], ...]} in pixels",
    )
    parser.add_argument(
        "--randomised",
        metavar="FILE|auto",
        help="the same model with random weights, explainable likewise; auto: made from the model (needs "
        '`pip install "onnxcam[export]"`)',
    )
    parser.add_argument(
        "--score",
        choices=("probability", "output"),
        default="probability",
        help="what is measured: after a softmax where a classifier gives logits, or the output as it is "
        "(default: probability)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="an option of a metric or a method, such as deletion.steps=50; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random maps (default: 0)")
    options.add_layers(parser, "which of the file's layers; may be repeated (default: all, fused)")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="write report.json, report.csv and curves.png there"
    )
    options.add_providers(parser)
    options.add_preprocess(parser, "instead of what the file records")
    parser.add_argument("--csv", action="store_true", help="print the table as CSV")
    options.add_json(parser, "the report")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from .. import images, plots, truth
    from .. import metrics as registry
    from ..errors import InputError
    from ..evaluation import evaluate, usual

    if args.list:
        return _list(terminal)
    if args.model is None or not args.images:
        raise InputError("Name an explainable file and photos: `onnxcam evaluate model.cam.onnx folder/`.")
    metrics = list(usual(args.truth is not None)) if args.metrics is None else _names(args.metrics)
    if not metrics:
        raise InputError("--metrics names no metric; `onnxcam evaluate --list` has them all.")
    for name in metrics:
        registry.get(name)
    given = _options(args.set)
    if args.output is not None:
        plots.require()
    paths, skipped = _readable(_without(args.output, images.find_images(args.images)))
    for reason in skipped:
        terminal.warn(f"skipped: {reason}")
    if not paths:
        raise InputError("None of the photos can be read.")
    truths = None if args.truth is None else truth.read(args.truth, paths)
    if truths is not None and None in [None if t is None else 0 for t in truths]:
        terminal.say(f"{sum(t is None for t in truths)} of the photos have no truth.")
    explainer = _open(args.model, args)
    with contextlib.ExitStack() as stack:
        other = _randomised(args, stack)
        update = stack.enter_context(terminal.progress("evaluating"))
        found = evaluate(
            explainer,
            paths,
            args.methods if args.methods in ("all", "quick") else _names(args.methods),
            metrics,
            target=_targets(args.target, paths),
            truths=truths,
            layers=args.layers,
            randomised=other,
            of=args.score,
            seed=args.seed,
            options=given,
            progress=update,
        )
    _print(found, args, terminal)
    if args.output is not None:
        _write(found, Path(args.output), terminal)
    return 1 if skipped else 0


def _open(model: str, args: argparse.Namespace) -> Explainer:
    from .. import Explainer

    how, labels = options.preprocess(args.preprocess), options.labels(args.labels)
    return Explainer(model, args.providers, preprocess=how, labels=labels)


def _randomised(args: argparse.Namespace, stack: contextlib.ExitStack) -> Explainer | None:
    """The model with random weights; one that is made here goes when ``stack`` closes."""
    if args.randomised != "auto":
        return None if args.randomised is None else _open(args.randomised, args)
    from ..export import randomised

    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / Path(args.model).name
    randomised(args.model, path, args.seed)
    return _open(str(path), args)


def _list(terminal: Terminal) -> int:
    from .. import metrics

    known = [metrics.get(name) for name in metrics.names()]
    if terminal.as_json:
        fields = ("name", "better", "formula", "source", "needs", "uses")
        terminal.json([{field: getattr(m, field) for field in fields} for m in known])
        return 0
    rows = [(m.name, m.better, m.formula, m.source, " ".join(m.needs)) for m in known]
    terminal.table(["name", "better", "formula", "source", "needs"], rows, whole=["name"])
    terminal.print("M: the heatmap, x: the image, s: the score.")
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _without(output: str | None, paths: Sequence[str]) -> list[str]:
    """The photos, without the plot of an earlier report below one of their folders."""
    if output is None:
        return list(paths)
    folder = Path(output).resolve()
    return [path for path in paths if folder not in Path(path).resolve().parents]


def _readable(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    from .. import images
    from ..errors import ImageError

    good, bad = [], []
    for path in paths:
        try:
            images.load(path)
            good.append(path)
        except ImageError as e:
            bad.append(str(e))
    return good, bad


def _targets(given: str | None, paths: Sequence[str]) -> Any:
    from .. import truth
    from ..errors import InputError

    if given is None or not given.lower().endswith(".json"):
        return None if given is None else options.class_named(given)
    each = truth.by_photo(given, paths)
    if None in each:
        raise InputError(f"'{given}' names no class for '{paths[each.index(None)]}'.")
    return [options.class_named(str(one)) for one in each]


def _options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    from ..errors import InputError

    made: dict[str, dict[str, Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        of, dot, option = name.rpartition(".")
        try:
            made.setdefault(of, {})[option] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals or not dot:
            raise InputError(f"--set is NAME.OPTION=VALUE, such as deletion.steps=50, not {text!r}.")
    return made


def _print(found: Evaluation, args: argparse.Namespace, terminal: Terminal) -> None:
    if terminal.as_json:
        terminal.json(found.data())
        return
    if args.csv:
        sys.stdout.write(found.csv())
        return
    best = {m.name: found.best(m) for m in found.metrics}
    heads = [f"{m.name}{_ARROWS[m.better]}" for m in found.metrics]
    rows = []
    for row in found.rows:
        cells = [
            _cell(row.measured[m.name], row.name in best[m.name], len(found.images)) for m in found.metrics
        ]
        passes = f"{row.passes:.4g}" + (f" + {row.tail_passes:.4g} of the tail" if row.tail_passes else "")
        cost = ("", "") if row.baseline else (f"{row.seconds:.3g}", passes)
        rows.append((f"{row.name} (baseline)" if row.baseline else row.name, *cells, *cost))
    columns = ["method", *heads, "s/image", "passes"]
    terminal.table(columns, rows, right=columns[1:], whole=["method", *columns[-2:]])
    count = len(found.images)
    terminal.print(
        f"{count} image{'s' * (count != 1)}. *: the best of its column; ±: standard error of the mean; "
        "random: maps of noise; passes: images that the file is run on for one map."
    )
    for name, reason in found.refused.items():
        terminal.print(f"not measured: {name}: {reason}")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in found.rows:
        for name, one in row.measured.items():
            for reason in one.undefined:
                reasons.setdefault((name, reason), []).append(row.name)
    for (name, reason), rows_of in list(reasons.items())[:_REASONS]:
        terminal.print(f"left out: {name} of {', '.join(rows_of)}: {reason}")
    if len(reasons) > _REASONS:
        terminal.print(f"... and for {len(reasons) - _REASONS} more reasons, in --json.")


def _cell(one: Measured, best: bool, images: int) -> str:
    if not one.count:
        return "-"
    error = f" ± {one.error:.3f}" if one.count > 1 else ""
    part = f" (of {one.count})" if one.undefined else ""
    return f"{'*' if best else ''}{one.mean:.3f}{error}{part}"


def _write(found: Evaluation, folder: Path, terminal: Terminal) -> None:
    from .. import plots
    from ..errors import OutputError

    report = json.dumps(found.data(), indent=2, ensure_ascii=False)
    files = {"report.json": report.encode(), "report.csv": found.csv().encode()}
    if plots.with_curves(found.metrics, found.rows):
        files["curves.png"] = plots.curves(found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            part = folder / f".{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as e:
        raise OutputError(f"'{folder}' cannot be written: {e.strerror or e}. Choose another folder.") from e
    terminal.say(f"{', '.join(files)} in {folder}")
