"""A gate: what a comparison must reach, and whether it does.

A criterion is ``same_answer >= 0.99``, or ``pearson.p05 >= 0.6``: a quantity, which of its numbers (the mean
if none is named), and a bound. Its direction follows the quantity: what is better high has a lower bound.
Three ends are possible: passed, failed, and could not judge, which is never taken for passed.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ..errors import InputError, nearest
from ..kinds import is_finite
from . import agreement
from .agreement import Better
from .data import Comparison, Row, Statistic
from .summary import SCORE_DIFFERENCE, TOLD

Status: TypeAlias = Literal["passed", "failed", "could not judge"]
EXIT: Mapping[Status, int] = {"passed": 0, "failed": 1, "could not judge": 2}  #: statuses of the command
MAX_SKIPPED = 0.1  #: the share of photos that may be skipped
PARTS = ("mean", "low", "high", "median", "p05", "p95", "worst")  #: of a Statistic; low and high of its mean
_OF_SHARES = PARTS[:3]  #: quantiles of yes and no tell nothing
_WORST = 5  #: photos that are named
_WRITTEN = re.compile(r"\s*([\w.+:-]+?)\s*(>=|<=|==?|≥|≤)\s*(\S+)\s*")


@dataclass(frozen=True)
class Criterion:
    """What is asked.

    Attributes:
        quantity: a measure of agreement, "same_answer", "same_reason", "top5" or "score_difference".
        part: of its distribution, of :data:`PARTS`.
        wanted: the bound.
        better: whether that is a lower or an upper one.
    """

    quantity: str
    part: str
    wanted: float
    better: Better

    @property
    def text(self) -> str:
        """As it is written."""
        part = "" if self.part == "mean" and self.quantity in TOLD else f".{self.part}"
        return f"{self.quantity}{part} {'>=' if self.better == 'higher' else '<='} {self.wanted:g}"

    def met(self, value: float) -> bool:
        """Whether a value is within the bound, but for the rounding of a mean."""
        return value >= self.wanted - 1e-12 if self.better == "higher" else value <= self.wanted + 1e-12


class Finding(NamedTuple):
    """One criterion, judged.

    Attributes:
        text: the criterion.
        wanted: its bound.
        found: the value; None if there is none.
        passed: whether it is met; None: that could not be judged.
        why: in words.
        worst: the photos that speak most against it, if it is not met.
    """

    text: str
    wanted: float
    found: float | None
    passed: bool | None
    why: str
    worst: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What a gate says.

    Attributes:
        status: of the whole.
        findings: one per criterion.
        reason: why it could not be judged; "" if it could.
    """

    status: Status
    findings: tuple[Finding, ...]
    reason: str = ""

    @property
    def exit_status(self) -> int:
        """0 passed, 1 failed, 2 could not judge."""
        return EXIT[self.status]

    def data(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        findings = [{**one._asdict(), "worst": list(one.worst)} for one in self.findings]
        return {"status": self.status, "reason": self.reason, "criteria": findings}

    def __str__(self) -> str:
        """A table for people."""
        lines = [f"gate: {self.status}{f': {self.reason}' if self.reason else ''}"]
        width = max((len(one.text) for one in self.findings), default=0)
        for one in self.findings:
            word = {True: "passed", False: "FAILED", None: "not judged"}[one.passed]
            lines.append(f"  {one.text:{width}}  {word:10}  {one.why}")
            lines += [f"  {'':{width}}    {photo}" for photo in one.worst]
        return "\n".join(lines)


@dataclass(frozen=True)
class Gate:
    """What a TOML file asks for.

    Attributes:
        criteria: all to be met.
        max_skipped: see :func:`judge`.
        measure: of the verdict; None: the default.
        threshold: of it; None: the default.
    """

    criteria: tuple[Criterion, ...]
    max_skipped: float = MAX_SKIPPED
    measure: str | None = None
    threshold: float | None = None


def judge(
    comparison: Comparison, criteria: Sequence[Criterion | str], max_skipped: float = MAX_SKIPPED
) -> Judgement:
    """Hold a comparison against what it must reach.

    Args:
        comparison: to be judged.
        criteria: at least one, parsed or as they are written.
        max_skipped: the share of all photos that may be skipped; of more nothing can be said of the set.

    Raises:
        InputError: no criterion, or one that cannot be read.
    """
    asked = [parse(one) if isinstance(one, str) else one for one in criteria]
    if not asked:
        raise InputError(
            'A gate needs at least one criterion: --require "same_answer >= 0.99", or the table [gate] of a '
            "TOML file."
        )
    allowed = _checked_share(max_skipped)
    findings = tuple(_found(comparison, one) for one in asked)
    skipped = len(comparison.skipped)
    photos = skipped + len(comparison.rows)
    if skipped > allowed * photos + 1e-9:  # 29 of 100 are a share of 0.29, though 0.29 * 100 is less
        first = comparison.skipped[0]
        reason = (
            f"{skipped} of {photos} photos are skipped, and a share of {allowed:.4g} may be (max_skipped); "
            f"the first is '{first.image}' ({first.side}): {first.reason}"
        )
        return Judgement("could not judge", findings, reason)
    unknown = [one for one in findings if one.passed is None]
    if unknown:
        return Judgement("could not judge", findings, f"{unknown[0].text}: {unknown[0].why}")
    passed = all(one.passed for one in findings)
    return Judgement("passed" if passed else "failed", findings)


def unable(error: Exception | str) -> Judgement:
    """Of a comparison that could not be made."""
    return Judgement("could not judge", (), str(error))


def parse(text: str) -> Criterion:
    """A criterion as it is written: ``pearson.mean >= 0.9``, ``js <= 0.1``, ``same_answer = 0.99``.

    ``=`` is a bound in the quantity's own direction.

    Raises:
        InputError: it cannot be read, asks for the wrong direction, or for a value that cannot be.
    """
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise InputError(
            f'The criterion {text!r} is not written as "same_answer >= 0.99" or "pearson.p05 >= 0.6": a '
            "quantity, a sign, a number."
        )
    name, sign, number = match.groups()
    try:
        wanted = float(number)
    except ValueError:
        raise InputError(f"The criterion {text!r} asks for {number!r}, which is no number.") from None
    made = criterion(name, wanted)
    direction = {">=": "higher", "≥": "higher", "<=": "lower", "≤": "lower"}.get(sign, made.better)
    if direction != made.better:
        right = ">=" if made.better == "higher" else "<="
        raise InputError(
            f"The criterion {text!r} bounds {made.quantity} from the wrong side: {made.better} is better. "
            f"Write {right}."
        )
    return made


def criterion(name: str, wanted: Any) -> Criterion:
    """A criterion from its name, ``same_answer`` or ``pearson.low``, and its bound.

    Raises:
        InputError: no such quantity or number of it, or a bound that the quantity cannot have.
    """
    quantity, dot, part = name.partition(".")
    known = quantities()
    if quantity not in known:
        raise InputError(
            f"There is no quantity {quantity!r} to be judged.{nearest(quantity, list(known))} There are: "
            f"{', '.join(known)}."
        )
    if not dot:
        part = "mean"
    parts = _OF_SHARES if quantity in TOLD and quantity != SCORE_DIFFERENCE else PARTS
    if part not in parts:
        raise InputError(
            f"There is no {quantity}.{part}.{nearest(part, list(parts))} There are: "
            f"{', '.join(f'{quantity}.{one}' for one in parts)}."
        )
    better, low, high = known[quantity]
    if not is_finite(wanted) or not low <= wanted <= high:
        upper = f"{low:g} and {high:g}" if np.isfinite(high) else f"{low:g} and infinity"
        raise InputError(f"The bound of {quantity} is a number between {upper}, not {wanted!r}.")
    return Criterion(quantity, part, float(wanted), better)


def quantities() -> dict[str, tuple[Better, float, float]]:
    """{name: (which way is better, the lowest, the highest value)} of all that can be judged."""
    own = {name: (better, 0.0, np.inf if name == SCORE_DIFFERENCE else 1.0) for name, better in TOLD.items()}
    measures = map(agreement.get, agreement.names())
    return {**own, **{one.name: (one.better, float(one.low), float(one.high)) for one in measures}}


def measures_of(criteria: Sequence[Criterion]) -> list[str]:
    """The measures of agreement that criteria ask for, to be taken by ``compare``."""
    known = agreement.names()
    return list(dict.fromkeys(one.quantity for one in criteria if one.quantity in known))


def load(path: str | os.PathLike[str]) -> Gate:
    """A gate from a TOML file.

    Example::

        [gate]
        same_answer = 0.99      # at least; of measures where lower is better, at most
        pearson.low = 0.9
        max_skipped = 0.05      # of all photos

        [verdict]
        measure = "pearson"
        threshold = 0.8

    Raises:
        InputError: it cannot be read, is no TOML, or holds something unknown or unusable.
    """
    what = f"'{os.fspath(path)}'"
    try:
        with open(path, "rb") as file:
            told = tomllib.load(file)
    except OSError as e:
        raise InputError(f"The gate {what} cannot be read: {e.strerror or e}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise InputError(f"The gate {what} is no TOML: {e}.") from e
    try:
        return _gate(told)
    except InputError as e:
        raise InputError(f"In the gate {what}: {e}") from e


def _gate(told: Mapping[str, Any]) -> Gate:
    tables = {name: _table(told, name) for name in ("gate", "verdict")}
    _refuse_unknown(told, tables, "table")
    _refuse_unknown(tables["verdict"], ("measure", "threshold"), "key of [verdict]")
    asked = dict(_flat(tables["gate"]))
    share = _checked_share(asked.pop("max_skipped", MAX_SKIPPED))
    measure, threshold = (tables["verdict"].get(key) for key in ("measure", "threshold"))
    if measure is not None:
        agreement.get(measure)
    if threshold is not None and not is_finite(threshold):
        raise InputError(f"The threshold of [verdict] is a number, not {threshold!r}.")
    return Gate(tuple(criterion(name, value) for name, value in asked.items()), share, measure, threshold)


def _table(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = told.get(name, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{name} is a table, [{name}], not {found!r}.")
    return found


def _refuse_unknown(found: Mapping[str, Any], known: Any, what: str) -> None:
    for name in found:
        if name not in known:
            raise InputError(
                f"There is no {what} {name!r}.{nearest(name, list(known))} There are: {', '.join(known)}."
            )


def _flat(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """``pearson.low = 0.9`` without quotes is a table in TOML."""
    found = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            found += [(f"{name}.{part}", one) for part, one in value.items()]
        else:
            found.append((name, value))
    return found


def _checked_share(value: Any) -> float:
    if not is_finite(value) or not 0 <= value <= 1:
        raise InputError(f"max_skipped is a share between 0 and 1, not {value!r}.")
    return float(value)


def _found(comparison: Comparison, asked: Criterion) -> Finding:
    told: Statistic | None = {**comparison.statistics, **comparison.shares}.get(asked.quantity)
    if told is None:
        known = asked.quantity in agreement.names() and asked.quantity not in _taken(comparison)
        why = (
            f"{asked.quantity} was not measured: name it among the measures"
            if known
            else f"{asked.quantity} is not defined for any of the {len(comparison.rows)} photos"
        )
        return Finding(asked.text, asked.wanted, None, None, why)
    found: float = getattr(told, asked.part)
    passed, photos = asked.met(found), len(comparison.rows)
    of = "" if told.count == photos else f", defined for {told.count} of {photos} photos"
    worst = () if passed else _worst(comparison, asked)
    return Finding(asked.text, asked.wanted, found, passed, f"found {found:.4g}{of}", worst)


def _taken(comparison: Comparison) -> set[str]:
    return {name for row in comparison.rows for name in row.agreement[comparison.judged.name]}


def _worst(comparison: Comparison, asked: Criterion) -> tuple[str, ...]:
    """The photos that speak most against a criterion, the worst first, with what speaks."""
    rows = comparison.rows
    if asked.quantity == "same_answer":
        against = [row for row in rows if not row.same_answer]
        against.sort(key=lambda row: -(row.score_difference or 0))
        return tuple(_told(row, _answers(row)) for row in against[:_WORST])
    if asked.quantity == "same_reason":
        against = [row for row in rows if row.verdict != "same reason"]
        against.sort(key=lambda row: _badness(comparison, row, comparison.measure))
        return tuple(_told(row, _reason(comparison, row)) for row in against[:_WORST])
    valued = [(row, value) for row in rows if (value := _value(comparison, row, asked.quantity)) is not None]
    valued.sort(key=lambda one: one[1] if asked.better == "higher" else -one[1])
    return tuple(_told(row, f"{asked.quantity} {value:.4g}") for row, value in valued[:_WORST])


def _value(comparison: Comparison, row: Row, quantity: str) -> float | None:
    if quantity in ("top5", SCORE_DIFFERENCE):
        return row.top5 if quantity == "top5" else row.score_difference
    return row.agreement[comparison.judged.name].get(quantity)


def _badness(comparison: Comparison, row: Row, measure: str) -> float:
    """The lower the worse; where nothing is defined, the worst."""
    value = _value(comparison, row, measure)
    if value is None:
        return -np.inf
    return value if agreement.get(measure).better == "higher" else -value


def _answers(row: Row) -> str:
    return f"{row.reference.label} -> {row.candidate.label}"


def _reason(comparison: Comparison, row: Row) -> str:
    if row.verdict == "other answer":
        return f"{row.verdict}, {_answers(row)}"
    value = _value(comparison, row, comparison.measure)
    return f"{row.verdict}, {comparison.measure} {'undefined' if value is None else f'{value:.4g}'}"


def _told(row: Row, what: str) -> str:
    return f"{row.image}: {what}"
