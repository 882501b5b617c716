"""The outcomes by operator, and the table of them in the README."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from .judge import Kind, Outcome, judge
from .node_tests import node_tests

README = Path(__file__).resolve().parents[2] / "README.md"
_BLOCK = re.compile(r"(<!-- table: operators -->\n).*?(<!-- /table -->)", re.DOTALL)
PASS, WRONG, NO_RULE = "pass", "wrong", "no rule"


def outcomes(operator: str) -> list[Outcome]:
    """Of all cases of an operator."""
    return [o for test in node_tests()[operator] for o in judge(test)]


def verdict(operator: str, found: Iterable[Outcome]) -> str:
    """The row of the table that an operator belongs to.

    It passes if every case that can be evaluated does; what else it is, the worst of its cases says. A case
    that spells the operator out counts where it is wrong; what is missing in it are other operators.
    """
    by_kind: dict[Kind, list[Outcome]] = {}
    for outcome in found:
        if not outcome.spelt_out or outcome.kind == Kind.WRONG:
            by_kind.setdefault(outcome.kind, []).append(outcome)
    if Kind.WRONG in by_kind:
        return WRONG
    if Kind.NO_RULE in by_kind:
        reason = _reason(operator, by_kind[Kind.NO_RULE][0].note)
        return NO_RULE if reason == "no gradient rule" else f"{NO_RULE}: {reason}"
    if Kind.PASS in by_kind:
        return PASS
    if Kind.UNEVALUATED in by_kind:
        return f"cannot be evaluated: {by_kind[Kind.UNEVALUATED][0].note}"
    held = [o for o in by_kind[Kind.STOPPED] if o.note.startswith("held constant")]
    return f"not differentiable: {(held or by_kind[Kind.STOPPED])[0].note}"


def _reason(operator: str, note: str) -> str:
    """Of a refusal ``Op input: reason; ...``: the first reason, without the operator's own name."""
    match = re.match(r"(\S+) [^:;]+: ([^;]*)", note)
    if match is None:
        found = "a shape that inference does not find" if note.startswith("ShapeUnknown") else note
        return found.removeprefix("ModelError: ").partition(". ")[0]
    return match[2] if match[1] == operator else f"its definition has {match[1]}: {match[2]}"


def passing_cases(found: Iterable[Outcome], spelt_out: bool) -> tuple[int, int]:
    """How many cases have a right gradient wherever one flows, and how many there are."""
    kinds: dict[str, set[Kind]] = {}
    for outcome in found:
        if outcome.spelt_out == spelt_out:
            kinds.setdefault(outcome.case, set()).add(outcome.kind)
    right = [k for k in kinds.values() if k <= {Kind.PASS, Kind.STOPPED}]
    return len(right), len(kinds)


def render(found: Mapping[str, Sequence[Outcome]], date: datetime.date) -> str:
    """The table as it stands in the README, from every operator's outcomes."""
    verdicts = {operator: verdict(operator, outcomes) for operator, outcomes in found.items()}
    every = [o for outcomes in found.values() for o in outcomes]
    nodes, graphs = passing_cases(every, False), passing_cases(every, True)
    rows: dict[str, list[str]] = {}
    for operator, row in verdicts.items():
        rows.setdefault(row, []).append(operator)
    order = sorted(rows, key=lambda row: (row != PASS, row))
    total = ", ".join(
        f"{sum(len(rows[r]) for r in rows if r.partition(':')[0] == kind)} {kind}"
        for kind in dict.fromkeys(r.partition(":")[0] for r in order)
    )
    lines = [
        f"{len(verdicts)} operators: {total}. {nodes[0]} of their {nodes[1]} cases have the right gradient, "
        f"and {graphs[0]} of the {graphs[1]} that spell an operator out as the graph that defines it.",
        f"({date}; onnx {onnx.__version__}, ONNX Runtime {ort.__version__}; "
        "`python benchmarks/conformance.py`)",
        "",
        "<details><summary>By operator</summary>",
        "",
        "| outcome | | operators |",
        "| --- | --- | --- |",
        *(f"| {row} | {len(rows[row])} | {' '.join(sorted(rows[row]))} |" for row in order),
        "",
        "</details>",
    ]
    return "\n".join(lines)


def recorded() -> dict[str, str]:
    """What the README's table says of each operator."""
    block = _BLOCK.search(README.read_text())
    assert block is not None, "the README has lost its table of operators"
    rows = re.findall(r"^\| ([^|]+) \| \d+ \| ([^|]+) \|$", block[0], re.MULTILINE)
    return {operator: row for row, operators in rows for operator in operators.split()}


def write(table: str) -> None:
    """Put the table into the README."""
    text = README.read_text()
    README.write_text(_BLOCK.sub(lambda m: f"{m[1]}{table}\n{m[2]}", text))


def describe(operator: str, found: Sequence[Outcome]) -> str:
    """One line of figures, and one for each different thing that is no pass."""
    count = {kind: sum(o.kind == kind for o in found) for kind in Kind}
    figures = [f"{n} {kind.name.lower().replace('_', ' ')}" for kind, n in count.items() if n]
    more = {
        "with the other inputs constant": sum(o.constants for o in found if o.kind == Kind.PASS),
        "moved off a kink": sum(o.nudged for o in found),
        "by ONNX Runtime in float32": sum(not o.exact for o in found),
        "run in ONNX Runtime": sum(o.in_ort is True for o in found),
    }
    figures += [f"{n} {what}" for what, n in more.items() if n]
    lines = [f"{operator}: {verdict(operator, found)} ({', '.join(figures)})"]
    others = {o.note: o for o in found if o.kind not in (Kind.PASS, Kind.STOPPED)}
    lines += [f"    {o.case}, {o.pair}: {note}" for note, o in others.items()]
    nudged = dict.fromkeys(o.case for o in found if o.nudged)
    lines += [f"    moved off a kink: {', '.join(nudged)}"] if nudged else []
    return "\n".join(lines)
