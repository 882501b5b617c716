"""Options that several commands have, and the reading of their values."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError, nearest

SUFFIX = ".cam.onnx"


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


TASKS = ("classification", "regression", "segmentation", "detection", "embedding")
HEADS = ("yolov5", "yolov8", "yolov10", "yolox", "detr", "rtdetr", "nms")


def add_layers(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-l", "--layer", action="append", dest="layers", metavar="NAME", help=what)


def add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--score", metavar="OUTPUT", help="the output, or any tensor, to explain")
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="what that output is (default: told by its shape)",
    )
    parser.add_argument(
        "--head",
        choices=HEADS,
        help='how a detector keeps its boxes (README, "Which score")',
    )
    parser.add_argument("--boxes", metavar="OUTPUT", help="a detector's output of boxes, if it has one")
    parser.add_argument(
        "--box-units",
        choices=("pixels", "shares"),
        help="whether a detector's boxes are in pixels of the model's input or in shares of it "
        "(default: as the head has them)",
    )
    parser.add_argument(
        "--background", type=int, metavar="CLASS", help="a segmentation's class that is nobody's top class"
    )
    parser.add_argument(
        "--seed",
        nargs="?",
        const=True,
        action="append",
        metavar="OUTPUT",
        help="take weights of any linear functional at run time: of the score, or of the named outputs; "
        "may be repeated",
    )
    parser.add_argument(
        "--rest",
        action="store_true",
        help="explain a classifier's y + log softmax(y) instead of its logit y: what shapleycam is made for",
    )
    parser.add_argument(
        "--probability",
        action="store_true",
        help="explain the probability, not the logit before a final softmax or sigmoid",
    )


def score(args: argparse.Namespace) -> dict[str, Any] | str | None:
    """What the options of :func:`add_score` say, as :func:`onnxcam.export.rewrite_onnx` takes it."""
    fields = {name: getattr(args, name) for name in ("task", "head", "boxes", "box_units", "background")}
    fields = {name: value for name, value in fields.items() if value is not None}
    if args.rest:
        fields["rest"] = True
    if args.seed:
        fields["seed"] = True if args.seed == [True] else [args.score if s is True else s for s in args.seed]
    return {"output": args.score, **fields} if fields else args.score


def add_fuse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fuse",
        action="append",
        metavar="METHOD",
        help="compute a method's map inside the file, as the output cam.heatmap.METHOD; may be repeated "
        "(`onnxcam methods` lists those that can be)",
    )
    parser.add_argument(
        "--fuse-size",
        choices=("input", "layer"),
        help="fused maps as large as the model's input, or as the layer (default: the input; with --fuse-raw "
        "the layer)",
    )
    parser.add_argument(
        "--fuse-raw", action="store_true", help="fused maps as the method gives them, not scaled to [0, 1]"
    )
    parser.add_argument(
        "--maps-only",
        action="store_true",
        help="leave the layers' tensors out of the file's outputs: no other method can be asked of it",
    )


def add_tail(parser: argparse.ArgumentParser) -> None:
    """``--tail``."""
    parser.add_argument(
        "--tail",
        action="store_true",
        help="write what follows each layer as model.tail.onnx, too: many targets, Ablation-CAM and "
        "Recipro-CAM run it alone",
    )


def fuse(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What the options of :func:`add_fuse` say, as :func:`onnxcam.export.rewrite_onnx` takes it.

    Raises:
        InputError: options of maps, and no map.
    """
    how = {"size": args.fuse_size, "scaled": not args.fuse_raw}
    if not args.fuse and how != {"size": None, "scaled": True}:
        option = "--fuse-raw" if args.fuse_raw else "--fuse-size"
        raise InputError(
            f"{option} says how fused maps are, and no map is fused: name a method with --fuse METHOD "
            f"(`onnxcam methods` lists those that can be), or leave {option} out."
        )
    return [{"method": method, **how} for method in args.fuse or ()]


def add_preprocess(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--preprocess",
        action="append",
        metavar="PRESET|FILE.json|KEY=VALUE",
        help=f"{what}: a preset (imagenet, imagenet-stretch, half, keras-tf, yolo, ...), a JSON file with a "
        "record's fields, or one field (size=320, mean=0.5,0.5,0.5); may be repeated",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="the classes' names, in index order: one per line, or JSON (a list, or {index: name})",
    )


def add_providers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--provider",
        action="append",
        dest="providers",
        metavar="NAME",
        help="execution provider (cpu, cuda, openvino, ...); may be repeated, in order of preference",
    )


def preprocess(values: Sequence[str] | None) -> str | dict[str, Any] | None:
    """What ``--preprocess`` says, as :func:`onnxcam.preprocess.resolve` takes it.

    Raises:
        InputError: a file that cannot be read, or is no record.
    """
    if not values:
        return None
    fields: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if value.lower().endswith(".json"):
            fields |= _fields_of(value)
        elif equals:
            fields[key.strip()] = _plain(text.strip())
        else:
            fields["preset"] = value
    return str(fields["preset"]) if list(fields) == ["preset"] else fields


def labels(path: str | None) -> list[str] | None:
    """The names in a file.

    Raises:
        InputError: it cannot be read, or is no list of names.
    """
    if path is None:
        return None
    text = _text(path)
    if not path.lower().endswith(".json"):
        names = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
        if not names:
            raise InputError(f"The label file '{path}' is empty. Write one name per line.")
        return names
    data = _json(path, text)
    # Hugging Face's config.json and ImageNet's class index: {"0": ["n01440764", "tench"], ...}.
    if isinstance(data, dict) and isinstance(data.get("id2label"), dict):
        data = data["id2label"]
    if isinstance(data, dict) and data and all(str(k).isdecimal() for k in data):
        table = {int(k): v for k, v in data.items()}
        if sorted(table) != list(range(len(table))):
            raise InputError(
                f"The label file '{path}' has gaps: its indices are not 0 to {len(table) - 1}. "
                "Give every class a name."
            )
        data = [table[i] for i in range(len(table))]
    if not isinstance(data, list) or not data:
        raise InputError(f"The label file '{path}' is neither a list of names nor {{index: name}}.")
    return [str(entry[-1]) if isinstance(entry, list) and entry else str(entry) for entry in data]


def add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--method", metavar="NAME", help="see `onnxcam methods` (default: gradcam)")
    parser.add_argument(
        "--option",
        action="append",
        metavar="KEY=VALUE",
        help="of the method, such as masks=1000 for rise or top=256 for scorecam; may be repeated",
    )
    parser.add_argument(
        "--smooth",
        action="append",
        choices=("tta", "noise", "eigen"),
        help="average over flipped and scaled copies (tta) or noisy ones; project the weighted channels on "
        "their first principal component (eigen); may be repeated",
    )
    parser.add_argument(
        "--scale",
        choices=("image", "batch"),
        default="image",
        help="each heatmap by its own range, or those of all photos alike, which one --batch is to hold "
        "(default: image)",
    )
    parser.add_argument(
        "--channels", metavar="I,J,...", help="of the layer, that alone take part (default: all)"
    )
    parser.add_argument(
        "--fuse",
        choices=("mean", "max", "product", "product:pgc"),
        help="of several layers (default: as the method has it, mostly mean)",
    )


def method(args: argparse.Namespace) -> dict[str, Any]:
    """What the options of :func:`add_method` say, as :meth:`onnxcam.Explainer.explain` takes it.

    Raises:
        InputError: an option without a value, or channels that are no numbers.
    """
    own = method_options(args.method, args.option)
    channels = None if args.channels is None else args.channels.split(",")
    if channels is not None and not all(c.strip().removeprefix("-").isdecimal() for c in channels):
        raise InputError(f"--channels are numbers, as in 0,17,512, not {args.channels!r}.")
    return {
        "method": args.method,
        "fuse": args.fuse,
        "smooth": args.smooth,
        "scale": args.scale,
        "channels": None if channels is None else [int(c) for c in channels],
        **own,
    }


def method_options(name: str, given: Sequence[str] | None) -> dict[str, Any]:
    """What ``--option`` says of the method ``name``.

    Raises:
        InputError: an option without a value.
        MethodError: no such method, or option.
    """
    own = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option is KEY=VALUE, not {text!r}; see `onnxcam methods --json`.")
        own[key.strip()] = _plain(value.strip())
    from ..methods import get

    get(name).check(own)
    return own


def add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t",
        "--target",
        action="append",
        dest="targets",
        metavar="CLASS",
        help="class index or label, for every photo; may be repeated (default: each photo's top class)",
    )
    parser.add_argument(
        "--against",
        action="append",
        metavar="CLASS",
        help="why the target and not this class; may be repeated (needs a file with --seed)",
    )
    parser.add_argument(
        "--box", metavar="X1,Y1,X2,Y2", help="the detection that fits this box of the photo best"
    )
    parser.add_argument(
        "--region", metavar="MASK", help="a picture of the photo's size, not black where a class is summed"
    )
    parser.add_argument(
        "--reference",
        metavar="FILE.npy",
        help="an embedding to be compared with (np.save of outputs of explain_tensor)",
    )


def targets(args: argparse.Namespace) -> list[Any]:
    """What the options of :func:`add_targets` say: a whole number is a class index, all else a label.

    Raises:
        InputError: a file that cannot be read, options that exclude each other, or no such box.
    """
    from .. import images
    from ..targets import Box, Contrast, Region, Similar

    kinds = [name for name in ("against", "box", "region", "reference") if getattr(args, name) is not None]
    if len(kinds) > 1:
        raise InputError(f"--{kinds[0]} and --{kinds[1]} exclude each other.")
    classes = [class_named(value) for value in args.targets or ()]
    each: list[Any] = classes or [None]
    if args.against:
        if not classes:
            raise InputError("--against needs a --target to set its classes against.")
        return [Contrast(of, [class_named(value) for value in args.against]) for of in classes]
    if args.box is not None:
        corners = _plain(args.box)
        if not isinstance(corners, list) or len(corners) != 4:
            raise InputError(f"--box is X1,Y1,X2,Y2 in pixels of the photo, not {args.box!r}.")
        return [Box(tuple(corners), of) for of in each]
    if args.region is not None:
        mask = images.load(args.region).any(axis=2)
        return [Region(of, mask) for of in each]
    if args.reference is not None:
        return [Similar(_array(args.reference))]
    return classes


def class_named(value: str) -> int | str:
    """A class by index, where that is a whole number, or by label."""
    return int(value) if value.strip().removeprefix("-").isdecimal() else value


def _array(path: str) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as e:
        raise InputError(f"'{path}' is no array of NumPy's: {e}.") from e


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def checked_output(given: str | None, default: Path, source: str | None) -> Path:
    """Where to write a model.

    Raises:
        OutputError: that is the source itself.
    """
    path = Path(given) if given is not None else default
    if source is not None and os.path.exists(path) and os.path.samefile(path, source):
        raise OutputError(
            f"'{path}' is the source itself, which is never overwritten. Name another file with -o."
        )
    return path


def model_size(path: Path | str) -> int:
    """In bytes, with the weights that lie beside the file."""
    data = Path(f"{path}.data")
    return Path(path).stat().st_size + (data.stat().st_size if data.is_file() else 0)


def _fields_of(path: str) -> dict[str, Any]:
    data = _json(path, _text(path))
    if isinstance(data, dict) and isinstance(data.get("preprocess"), dict):
        data = data["preprocess"]  # what `onnxcam inspect --json` prints
    if not isinstance(data, dict):
        raise InputError(f"'{path}' is no preprocessing record: it holds no JSON object.")
    return data


def _plain(text: str) -> Any:
    """A field's value: JSON, or numbers with commas (or x) between them, or text."""
    for candidate in (text, f"[{text}]", f"[{text.replace('x', ',')}]"):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return text


def _json(path: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise InputError(f"'{path}' is not JSON: {e}.") from e


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(f"'{path}' is not UTF-8 text (byte {e.start}). Save it as UTF-8.") from e
    except OSError as e:
        hint = nearest(Path(path).name, [p.name for p in Path(path).parent.glob("*")][:1000])
        raise InputError(f"'{path}' cannot be read: {e.strerror or e}.{hint}") from e
