"""``onnxcam doctor``."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from . import options
from .terminal import Terminal

HELP = "which execution providers really work here, and what the others lack"
_SHOWN = 20

if TYPE_CHECKING:
    from onnxcam.doctor import ProviderState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="an explainable file: where do its nodes run?")
    options.add_providers(parser)
    options.add_json(parser, "all of it")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    from onnxcam import doctor, providers
    from onnxcam.errors import MissingDependency, ProviderError

    wanted = [providers.full_name(name) for name in args.providers or ()]
    versions = doctor.versions()
    if not args.json:
        terminal.facts([(name, _version(name, version)) for name, version in versions.items()])
    found: dict[str, Any] = {"versions": versions, "providers": [], "problems": []}
    problems = found["problems"]
    try:
        with terminal.busy("trying the execution providers"):
            states = doctor.check_providers(wanted)
            wanted = wanted or [doctor.default_provider()]
    except MissingDependency as e:
        problems.append(str(e))
        states = []
    found["providers"] = [dataclasses.asdict(s) for s in states]
    problems += [_problem(s) for s in states if s.name in wanted and s.state in ("broken", "absent")]
    if states and not args.json:
        terminal.print()
        terminal.table(
            ["provider", "--provider", "state", "what is known"],
            [(s.name.removesuffix("ExecutionProvider"), s.short, s.state, s.detail) for s in states],
            whole=["provider", "--provider", "state"],
        )
    if args.model is not None and states:
        try:
            with terminal.busy(f"opening {args.model}"):
                found["model"] = doctor.placement(args.model, wanted)
        except ProviderError as e:
            problems.append(str(e))
        else:
            if not args.json:
                _print_placement(args.model, found["model"], terminal)
    if args.json:
        terminal.json(found)
    for problem in problems:
        terminal.warn(f"problem: {problem}")
    return 1 if problems else 0


def _problem(state: ProviderState) -> str:
    if state.state == "absent":
        return f"{state.name} is not in the installed onnxruntime: {state.detail}"
    return state.detail if state.name in state.detail else f"{state.name}: {state.detail}"


def _version(name: str, version: str | None) -> str:
    from onnxcam.doctor import PACKAGES

    return version if version is not None else f"not installed (for {PACKAGES.get(name, 'nothing')})"


def _print_placement(model: str, placed: dict[str, Any], terminal: Terminal) -> None:
    nodes = placed["nodes"]
    if nodes is None:
        terminal.print(
            f"{model} opens on {', '.join(placed['providers'])}; this ONNX Runtime does not say which"
        )
        terminal.print("provider runs which node (newer ones do).")
        return
    rows = []
    for name, part in nodes.items():
        kinds = Counter(node["op_type"] for node in part).most_common()
        rows.append(
            (name.removesuffix("ExecutionProvider"), len(part), ", ".join(f"{k} {n}" for k, n in kinds))
        )
    terminal.print(f"{model}, as ONNX Runtime runs it:")
    terminal.table(["provider", "nodes", "operators"], rows, right=["nodes"], whole=["provider"])
    elsewhere = [n for name, part in nodes.items() if name != placed["providers"][0] for n in part]
    if elsewhere:
        terminal.print(f"Not on {placed['providers'][0]}:")
        for node in elsewhere[:_SHOWN]:
            terminal.print(f"  {node['op_type']}  {node['name']}")
        if len(elsewhere) > _SHOWN:
            terminal.say(f"  ... and {len(elsewhere) - _SHOWN} more, with --json.")
