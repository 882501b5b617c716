"""Where the marks of a chart lie; the report's page draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .data import Statistic

WIDTH, HEIGHT = 320, 160  #: of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 34, 308, 22, 132  #: of the part that is plotted on
_PARTS = 4  # bins between two ticks


@dataclass(frozen=True)
class Tick:
    """A value on an axis, or a line across the chart: where, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """Photos with values from ``low`` to ``high``: a rectangle."""

    x: float
    y: float
    width: float
    height: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Histogram:
    """How many photos have which values.

    Attributes:
        bars: those that are not empty.
        ticks: of the values' axis.
        most: photos in the highest bar.
        line: the threshold; None if there is none.
    """

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    most: int
    line: Tick | None


@dataclass(frozen=True)
class Point:
    """A layer: the mean, the ends of its interval, and the value that a twentieth of the photos misses."""

    number: int
    x: float
    mean: float
    low: float
    high: float
    tail: float


@dataclass(frozen=True)
class Curve:
    """A measure over layers: ticks of the measure's axis, and the threshold's line."""

    points: tuple[Point, ...]
    ticks: tuple[Tick, ...]
    line: Tick


def nice(low: float, high: float, about: int = 4) -> tuple[float, ...]:
    """Round numbers around all from ``low`` to ``high``, in steps of 1, 2 or 5 times a power of ten."""
    if high - low < 1e-6:  # a single value: the chart still has a width
        low, high = (low - 0.1, high) if low > 0 else (low, high + 0.1)
    wanted = (high - low) / about
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return tuple(float(f"{i * step:.6g}") for i in range(first, last + 1))


def histogram(values: Sequence[float], threshold: float | None = None) -> Histogram:
    """How many of the values lie where; at least one."""
    marked = [*values, *([] if threshold is None else [threshold])]
    ticks = nice(min(marked), max(marked))
    bins = _PARTS * (len(ticks) - 1)
    step = (ticks[-1] - ticks[0]) / bins
    counts = [0] * bins
    for value in values:
        counts[min(max(int((value - ticks[0]) / step + 1e-9), 0), bins - 1)] += 1
    most, width = max(counts), (RIGHT - LEFT) / bins

    def bar(i: int, count: int) -> Bar:
        height = (BOTTOM - TOP) * count / most
        low = ticks[0] + i * step
        return Bar(LEFT + i * width, BOTTOM - height, width, height, low, low + step, count)

    bars = tuple(bar(i, count) for i, count in enumerate(counts) if count)
    return Histogram(bars, _ticks(ticks, LEFT, RIGHT), most, _line(threshold, ticks, LEFT, RIGHT))


def curve(statistics: Sequence[Statistic | None], threshold: float, lower: bool) -> Curve:
    """A measure over layers.

    Args:
        statistics: of each layer, from the input to the output; None where the measure is undefined, at one
            at least it is not.
        threshold: of the measure.
        lower: whether lower values agree better.
    """
    known = [(number, one) for number, one in enumerate(statistics, 1) if one is not None]
    reach = [v for _, one in known for v in (one.low, one.high, one.p95 if lower else one.p05)]
    ticks = nice(min(threshold, *reach), max(threshold, *reach))

    def point(number: int, one: Statistic) -> Point:
        values = (one.mean, one.low, one.high, one.p95 if lower else one.p05)
        ys = (_place(value, ticks, BOTTOM, TOP) for value in values)
        return Point(number, LEFT + (number - 0.5) * (RIGHT - LEFT) / len(statistics), *ys)

    points = tuple(point(number, one) for number, one in known)
    return Curve(
        points, _ticks(ticks, BOTTOM, TOP), Tick(_place(threshold, ticks, BOTTOM, TOP), f"{threshold:g}")
    )


def _ticks(ticks: Sequence[float], start: float, end: float) -> tuple[Tick, ...]:
    return tuple(Tick(_place(value, ticks, start, end), f"{value:g}") for value in ticks)


def _line(value: float | None, ticks: Sequence[float], start: float, end: float) -> Tick | None:
    return None if value is None else Tick(_place(value, ticks, start, end), f"{value:g}")


def _place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    return start + (end - start) * (value - ticks[0]) / (ticks[-1] - ticks[0])
