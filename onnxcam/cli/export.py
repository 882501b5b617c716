"""``onnxcam export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxcam.errors import InputError, nearest

from . import options
from .rewrite import print_report
from .terminal import Terminal

HELP = "make a PyTorch model explainable (needs torch)"
EPILOG = """examples:
  onnxcam export torchvision.models:resnet50 --layer layer4 --input 1x3x224x224
  onnxcam export mymodels:make --input image:1x3x224x224 --input ids:int64:1x16 -o mine.cam.onnx

"""
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "factory",
        metavar="pkg.module:factory",
        help="a function that returns the model, or the model itself; found from the current folder too",
    )
    parser.add_argument(
        "-i",
        "--input",
        action="append",
        dest="inputs",
        metavar="[NAME:][DTYPE:]SHAPE",
        required=True,
        help="an example input (1x3x224x224, ids:int64:1x16); may be repeated",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where to write (default: factory.cam.onnx in the current folder)",
    )
    options.add_layers(
        parser, "what to explain: a module path (layer4, features.29); may be repeated (default: auto)"
    )
    options.add_score(parser)
    options.add_fuse(parser)
    options.add_tail(parser)
    options.add_preprocess(parser, "how photos become the input (default: what the model itself records)")
    parser.add_argument("--dynamic-size", action="store_true", help="leave height and width open, too")
    parser.add_argument("--no-verify", action="store_true", help="do not compare with torch.autograd")
    options.add_json(parser, "the report")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    inputs = [parse_input(text) for text in args.inputs]
    preprocess, labels = options.preprocess(args.preprocess), options.labels(args.labels)
    with terminal.busy(f"exporting {args.factory}"):
        from onnxcam.export import export_torch
        from onnxcam.export.factory import make_module

        model = make_module(args.factory)
        target = args.output or f"{args.factory.partition(':')[2].rpartition('.')[2]}{options.SUFFIX}"
        report = export_torch(
            model,
            example_inputs(inputs),
            Path(target),
            args.layers or "auto",
            score=options.score(args),
            probability=args.probability,
            preprocess=preprocess,
            labels=labels,
            fuse=options.fuse(args),
            maps_only=args.maps_only,
            tail=args.tail,
            dynamic_size=args.dynamic_size,
            verify=not args.no_verify,
        )
    print_report(report, terminal)
    return 0


def parse_input(text: str) -> tuple[str, str, tuple[int, ...]]:
    """(name or "", dtype, shape) of ``[name:][dtype:]shape``.

    Raises:
        InputError: it is not of that form.
    """
    *before, dims = text.split(":")
    name, dtype = "", "float32"
    if len(before) == 2:
        name, dtype = before
    elif len(before) == 1 and before[0] in _DTYPES:
        dtype = before[0]
    elif len(before) == 1:
        name = before[0]
    shape = dims.lower().split("x")
    if len(before) > 2 or not all(n.isdecimal() and int(n) > 0 for n in shape):
        raise InputError(
            f"--input {text!r} is not [name:][dtype:]shape with a shape such as 1x3x224x224, "
            "every size at least 1."
        )
    if dtype not in _DTYPES:
        raise InputError(f"--input {text!r} has no known dtype.{nearest(dtype, list(_DTYPES))}")
    return name, dtype, tuple(map(int, shape))


def example_inputs(specs: Sequence[tuple[str, str, tuple[int, ...]]]) -> Any:
    """Tensors as specified: one, a tuple of them, or {name: tensor}.

    Raises:
        InputError: some have names and some do not.
    """
    import torch

    random = torch.Generator().manual_seed(0)

    def tensor(dtype: str, shape: tuple[int, ...]) -> Any:
        kind = getattr(torch, dtype)
        if kind.is_floating_point:
            return torch.randn(shape, generator=random).to(kind)
        # Indices of any table with two entries; a mask keeps everything.
        return (
            torch.ones(shape, dtype=kind)
            if dtype == "bool"
            else torch.randint(0, 2, shape, generator=random).to(kind)
        )

    named = [name for name, _, _ in specs if name]
    if named and len(named) != len(specs):
        raise InputError("Some --input have a name and some do not: name all of them, or none.")
    if len(set(named)) != len(named):
        raise InputError("Two --input have the same name.")
    if named:
        return {name: tensor(dtype, shape) for name, dtype, shape in specs}
    tensors = tuple(tensor(dtype, shape) for _, dtype, shape in specs)
    return tensors[0] if len(tensors) == 1 else tensors
