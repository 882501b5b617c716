"""``onnxcam compare``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options
from .terminal import Terminal

if TYPE_CHECKING:
    from ..comparison.data import Comparison, Row, Statistic
    from ..comparison.gate import Gate, Judgement
    from ..comparison.sides import Side

HELP = "do two models give the same answers for the same reasons? a gate, and a report"
EPILOG = """a side is an explainable file (model.cam.onnx), any ONNX file, pkg.module:factory of a PyTorch
model, or a recording (`onnxcam record`, run.npz). The same file twice, with --candidate-provider or
--candidate-optimization, compares two ways to run it.

examples:
  onnxcam compare a.onnx b.onnx photos/ --require "same_reason >= 0.95" --require "pearson.p05 >= 0.8"
  onnxcam compare desk.npz device.npz --gate gate.toml
  onnxcam compare model.cam.onnx model.cam.onnx photos/ --candidate-provider cuda

"""
#: Instead of those of the other commands.
EXIT_STATUS = """exit status:
  0    the gate is passed, or none was asked for
  1    the gate failed
  2    it could not judge, or an error; the message is on stderr
  130  interrupted with Ctrl-C; the same command goes on

Results go to stdout, as JSON with --json; messages and progress go to stderr."""
JSON, JUNIT, REPORT = "comparison.json", "junit.xml", "report.html"
#: What tells those of a comparison from other programs' files of these names.
_MARKS = {
    JSON: b'"judged"',
    JUNIT: b"onnxcam.compare",
    REPORT: b"Do they answer the same, and for the same reason?",
}
#: Options that ask models, and where they are kept.
_ASKING = {"method": "method", "target": "target", "layer": "layers", "by-layer": "by_layer"}
_OF_SIDES = {
    name: name for name in ("preprocess", "labels", "optimization", "score", "task", "head", "shape")
}
_OF_SIDES |= {"provider": "providers"}
_WORST = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", help="the side that is trusted")
    parser.add_argument("candidate", help="the side that is judged")
    parser.add_argument("images", nargs="*", help="photos, and folders of them")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        default="comparison",
        help="where report.html, comparison.json, junit.xml and the recordings go, and the parts of a run "
        "that was cut off, which goes on (default: comparison)",
    )
    parser.add_argument("-m", "--method", metavar="NAME", help="see `onnxcam methods` (default: gradcam)")
    parser.add_argument(
        "-t",
        "--target",
        metavar="CLASS",
        help="one class for all photos, by label or the reference's number (default: each side's own top "
        "class)",
    )
    options.add_layers(parser, "of the reference; may be repeated (default: those of the file, or its best)")
    parser.add_argument(
        "--pair",
        action="append",
        metavar="A=B",
        help="compare the reference's layer A with the candidate's B, or A alone where both have it; may be "
        "repeated (default: by name, then by grid and position)",
    )
    parser.add_argument(
        "--by-layer",
        action="store_true",
        help="ask models at the last layer of each resolution (explainable files with several layers at "
        "those): where do they part?",
    )
    parser.add_argument("--judge", metavar="LAYER", help="whose maps verdicts go by (default: the last one)")
    parser.add_argument(
        "--measures",
        metavar="NAME,...",
        help="of agreement: pearson spearman cosine iou20 peak js ssim emd (default: all but the last two; "
        'emd needs `pip install "onnxcam[metrics]"`)',
    )
    parser.add_argument("--measure", metavar="NAME", help="that decides about the reason (default: pearson)")
    parser.add_argument("--threshold", type=float, help="of that measure (default: 0.8)")
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="CRITERION",
        help='of the gate: "same_answer >= 0.99", "same_reason >= 0.95", "pearson.mean >= 0.9", '
        '"pearson.p05 >= 0.6", "js.mean <= 0.1"; .low is the lower bound of the mean\'s 95 %% interval; may '
        "be repeated",
    )
    parser.add_argument("--gate", metavar="FILE.toml", help="the same in a file, see README")
    parser.add_argument(
        "--max-skipped",
        type=options.share,
        metavar="SHARE",
        help="of the photos that may be skipped before the gate cannot judge (default: 0.1)",
    )
    _add_side(parser, "")
    _add_side(parser, "candidate-")
    parser.add_argument(
        "--batch", type=options.positive, default=8, metavar="N", help="photos in one run (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--no-report", action="store_true", help="no report.html (which needs jinja2)")
    options.add_json(parser, "the comparison")


def _add_side(parser: argparse.ArgumentParser, of: str) -> None:
    """The options that each side has; the candidate's default to the reference's."""
    what = "of the candidate" if of else "of both sides"
    parser.add_argument(
        f"--{of}preprocess",
        action="append",
        metavar="PRESET|FILE.json|KEY=VALUE",
        help=f"how photos become the input {what} (default: what the file records, or the other side's)",
    )
    parser.add_argument(f"--{of}labels", metavar="FILE", help=f"the classes' names {what}")
    parser.add_argument(
        f"--{of}provider",
        action="append",
        dest=f"{of.replace('-', '_')}providers",
        metavar="NAME",
        help=f"execution provider {what}; may be repeated",
    )
    parser.add_argument(
        f"--{of}optimization",
        choices=("all", "extended", "basic", "disable"),
        help=f"ONNX Runtime's optimisation of the graph {what}",
    )
    parser.add_argument(
        f"--{of}score",
        metavar="OUTPUT",
        help=f"what a file that is not explainable yet is explained by {what}",
    )
    parser.add_argument(
        f"--{of}task", choices=options.TASKS, help=f"what that is {what} (default: told by its shape)"
    )
    parser.add_argument(f"--{of}head", choices=options.HEADS, help=f"how a detector keeps its boxes {what}")
    parser.add_argument(f"--{of}shape", metavar="1x3x224x224", help=f"of the input of a PyTorch model {what}")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from ..comparison import gate, report
    from ..errors import OnnxcamError, OutputError
    from ..folder import write_whole

    _forget(Path(args.output))
    try:
        asked = _gate(args)
        if not args.no_report:
            report.require()
        return _compare(args, asked, terminal)
    except OnnxcamError as e:
        if args.require or args.gate:  # a pipeline looks for the result there, whatever it is
            with contextlib.suppress(OutputError):  # the first error is the one to see
                write_whole(Path(args.output, JUNIT), _junit(gate.unable(e), None))
        raise


def _forget(folder: Path) -> None:
    """Remove what an older comparison said, which is never to be taken for what this one says.

    Raises:
        OutputError: it cannot be removed, and so could not be written.
    """
    from ..errors import OutputError

    for path, mark in ((folder / name, mark) for name, mark in _MARKS.items()):
        try:
            with contextlib.suppress(FileNotFoundError):
                if mark in path.read_bytes():
                    path.unlink()
        except OSError as e:
            raise OutputError(
                f"'{path}' cannot be replaced: {e.strerror or e}. Name another folder with -o."
            ) from e


def _compare(args: argparse.Namespace, asked: Gate, terminal: Terminal) -> int:
    from .. import comparison, recorder
    from ..comparison import gate, report, sides
    from ..folder import write_whole

    folder = Path(args.output)
    _refuse_unheard(args)
    chosen = comparison.MEASURES if args.measures is None else args.measures.split(",")
    measures = [*(name.strip() for name in chosen), *gate.measures_of(asked.criteria)]
    comparison.asked(measures, asked.measure or "pearson", asked.threshold)  # before anything is run
    both = _side(args, args.reference, ""), _side(args, args.candidate, "candidate_")
    with terminal.progress("comparing") as update:
        recordings = sides.recorded(
            *both,
            args.images,
            folder,
            method=args.method or "gradcam",
            target=None if args.target is None else options.class_named(args.target),
            batch=args.batch,
            progress=update,
        )
    found = comparison.compare(
        *recordings,
        pairs=args.pair,
        judge=args.judge,
        measures=measures,
        measure=asked.measure or "pearson",
        threshold=asked.threshold,
        seed=args.seed,
    )
    judged = gate.judge(found, asked.criteria, asked.max_skipped) if asked.criteria else None
    told = found.data() | {"gate": None if judged is None else judged.data()}
    files = {JSON: json.dumps(told, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")}
    if judged is not None:
        files[JUNIT] = _junit(judged, found)
    if not args.no_report:
        named = recorder.names_of(args.images) if args.images else {}
        files[REPORT] = report.html(found, *recordings, named, judged)
    for name, content in files.items():
        write_whole(folder / name, content)
    for recording, name in zip(recordings, sides.FILES, strict=True):
        if (journal := recorder.journal_of(folder / name)).is_dir():  # last: until here a killed run goes on
            recording.save(folder / name)
            recorder.discard(journal)
            files[name] = b""
    _print(found, judged, told, args.by_layer, terminal)
    terminal.say(f"{', '.join(files)} in {folder}")
    return 0 if judged is None else judged.exit_status


def _gate(args: argparse.Namespace) -> Gate:
    """What the file and the options ask for; the options are on top of the file."""
    from ..comparison import gate
    from ..errors import InputError

    asked = gate.Gate(()) if args.gate is None else gate.load(args.gate)
    own = tuple(map(gate.parse, args.require))
    named = {(one.quantity, one.part) for one in own}
    kept = tuple(one for one in asked.criteria if (one.quantity, one.part) not in named)
    if args.gate is not None and not kept + own:  # or a file that lost its criteria would let all pass
        raise InputError(
            f"The gate '{args.gate}' asks for nothing: write criteria in its table [gate], such as "
            "same_answer = 0.99, or give them with --require."
        )
    return dataclasses.replace(
        asked,
        criteria=kept + own,
        max_skipped=asked.max_skipped if args.max_skipped is None else args.max_skipped,
        measure=args.measure or asked.measure,
        threshold=asked.threshold if args.threshold is None else args.threshold,
    )


def _refuse_unheard(args: argparse.Namespace) -> None:
    """Recordings cannot be asked anew, and who asks is not to believe that they were.

    Raises:
        InputError: both sides are recordings, and an option asks models.
    """
    from ..errors import InputError
    from ..recording import SUFFIX

    if not all(side.lower().endswith(SUFFIX) for side in (args.reference, args.candidate)):
        return
    of_candidate = {f"candidate-{option}": f"candidate_{name}" for option, name in _OF_SIDES.items()}
    for option, name in (_ASKING | _OF_SIDES | of_candidate).items():
        if getattr(args, name):
            raise InputError(
                f"--{option} asks models, and both sides are recordings: leave it out, or record them again "
                "with it."
            )


def _side(args: argparse.Namespace, source: str, of: str) -> Side:
    """One side; the candidate's own options, or the reference's."""
    from ..comparison import sides

    def option(name: str) -> Any:
        own = getattr(args, f"{of}{name}")
        return getattr(args, name) if own is None else own

    told = {"output": option("score"), "task": option("task"), "head": option("head")}
    score = {name: value for name, value in told.items() if value is not None}
    layers: Any = sides.STAGES if args.by_layer else args.layers
    if args.pair:
        pairs = [one.partition("=") if "=" in one else (one, "=", one) for one in args.pair]
        layers = [pair[2 if of else 0].strip() for pair in pairs]
    elif of and layers != sides.STAGES:
        layers = None
    return sides.Side(
        source,
        layers,
        options.preprocess(option("preprocess")),
        options.labels(option("labels")),
        option("providers"),
        option("optimization"),
        score=score if score.keys() - {"output"} else score.get("output"),
        shape=_shape(option("shape")),
    )


def _shape(text: str | None) -> tuple[int, ...]:
    from .export import parse_input

    return parse_input(text or "1x3x224x224")[2]


def _junit(judged: Judgement, found: Comparison | None) -> bytes:
    from ..comparison.junit import junit

    return junit(judged, found)


def _print(
    found: Comparison, judged: Judgement | None, told: Mapping[str, Any], by_layer: bool, terminal: Terminal
) -> None:
    from ..comparison import report

    if terminal.as_json:
        terminal.json(told)
        return
    one, two, measure = found.reference, found.candidate, found.measure
    photos = f"{len(found.rows)} photos, {one.method} at {found.judged.name}"
    terminal.print(f"{two.model} against {one.model}: {photos}")
    columns = ["share of photos", "", "95 % interval"]
    terminal.table(
        columns,
        [(name, f"{s.mean:.1%}", f"{s.low:.1%} to {s.high:.1%}") for name, s in found.shares.items()],
        right=columns[1:],
    )
    columns = ["agreement", "mean", "95 % interval", "median", "worst 5 %", "worst"]
    terminal.table(
        columns,
        [
            (
                name,
                f"{s.mean:.3f}",
                f"{s.low:.3f} to {s.high:.3f}",
                *(f"{value:.3f}" for value in (s.median, _tail(s, name), s.worst)),
            )
            for name, s in found.statistics.items()
        ],
        right=columns[1:],
        whole=columns,
    )
    if len(found.pairs) > 1:
        curve = [
            (name, f"{stats[measure].mean:.3f}") for name, stats in found.by_layer.items() if measure in stats
        ]
        terminal.table(["layer, from the input on", measure], curve, right=[measure])
        if found.parts is not None:
            threshold = f"{found.threshold:g}"
            terminal.print(f"They part at {found.parts.name}, the first whose mean misses {threshold}.")
    worst = [row for row in report.ranked(found) if row.verdict != "same reason"][:_WORST]
    if worst:
        terminal.table(
            ["photo", "verdict", measure, "reference", "candidate"],
            [
                (row.image, row.verdict, _cell(found, row), row.reference.label, row.candidate.label)
                for row in worst
            ],
            right=[measure],
            whole=["verdict"],
        )
    if by_layer and len(found.pairs) == 1:
        terminal.print(
            "There is one pair of layers: the models have no layers of several resolutions in common, or one "
            "side is a recording of a single layer."
        )
    for note in found.notes:
        terminal.print(note)
    if found.skipped:
        first = found.skipped[0]
        why = f"'{first.image}' ({first.side}): {first.reason}"
        terminal.print(f"{len(found.skipped)} skipped; the first is {why}")
    if judged is not None:
        terminal.print(str(judged))


def _tail(statistic: Statistic, name: str) -> float:
    """The 5 % quantile on the bad side."""
    from ..comparison import agreement

    lower = name in agreement.names() and agreement.get(name).better == "higher"
    return statistic.p05 if lower else statistic.p95


def _cell(found: Comparison, row: Row) -> str:
    value = row.agreement[found.judged.name][found.measure]
    return "-" if value is None else f"{value:.3f}"
