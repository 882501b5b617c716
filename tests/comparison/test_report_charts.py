"""The report's charts: every photo in a bar, at its place, and every mark within the chart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcam.comparison import charts
from onnxcam.comparison.data import Statistic

FINITE = st.floats(-1e3, 1e3, allow_nan=False)


def placed(value, ticks):
    """Where a value lies on the axis, by its outermost ticks."""
    low, high = (float(tick.text) for tick in (ticks[0], ticks[-1]))
    return charts.LEFT + (charts.RIGHT - charts.LEFT) * (value - low) / (high - low)


@given(st.lists(FINITE, min_size=1, max_size=60), st.none() | FINITE)
def test_every_value_is_in_the_bar_around_it(values, threshold):
    chart = charts.histogram(values, threshold)
    assert sum(bar.count for bar in chart.bars) == len(values)
    assert chart.most == max(bar.count for bar in chart.bars)
    slack = 1e-6 * max(1, *map(abs, values), abs(threshold or 0))
    for bar in chart.bars:
        inside = sum(bar.low - slack <= value <= bar.high + slack for value in values)
        surely = sum(bar.low + slack < value < bar.high - slack for value in values)
        assert surely <= bar.count <= inside
        assert charts.LEFT - 0.01 <= bar.x < bar.x + bar.width <= charts.RIGHT + 0.01
        assert charts.TOP - 0.01 <= bar.y <= charts.BOTTOM
        assert bar.height == pytest.approx((charts.BOTTOM - charts.TOP) * bar.count / chart.most)
    if threshold is not None:
        assert charts.LEFT - 0.01 <= chart.line.at <= charts.RIGHT + 0.01


def test_a_histogram_by_hand():
    chart = charts.histogram([0.05, 0.05, 0.31, 1.0], 0.8)
    assert [tick.text for tick in chart.ticks] == ["0", "0.5", "1"]
    assert [(bar.count, round(bar.low, 3), round(bar.high, 3)) for bar in chart.bars] == [
        (2, 0, 0.125),
        (1, 0.25, 0.375),
        (1, 0.875, 1),
    ]
    assert chart.line.text == "0.8"
    assert chart.line.at == pytest.approx(placed(0.8, chart.ticks))
    assert charts.histogram([0.5]).line is None


@pytest.mark.parametrize("value", [1.0, 0.0, -1.0, 0.3])
def test_a_single_value_has_a_chart(value):
    (bar,) = charts.histogram([value] * 5).bars
    assert bar.count == 5
    assert bar.low <= value <= bar.high + 1e-9


@given(FINITE, FINITE)
def test_ticks_are_round_and_around_all(one, other):
    low, high = sorted((one, other))
    ticks = charts.nice(low, high)
    slack = 1e-5 * (ticks[-1] - ticks[0])
    assert ticks[0] - slack <= low
    assert high <= ticks[-1] + slack
    assert 2 <= len(ticks) <= 7
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.456, 1, (0.4, 0.6, 0.8, 1)),
        (-1, 1, (-1, -0.5, 0, 0.5, 1)),
        (0.988, 0.999, (0.985, 0.99, 0.995, 1)),
        (0, 17, (0, 5, 10, 15, 20)),
    ],
)
def test_ticks_by_hand(low, high, ticks):
    assert charts.nice(low, high) == ticks


def statistic(mean, low, high, p05, p95):
    return Statistic(9, mean, low, high, mean, p05, p95, p05)


def test_a_curve_by_hand():
    layers = [statistic(1, 0.9, 1, 0.5, 1), statistic(0.5, 0.4, 0.6, 0, 0.9)]
    chart = charts.curve(layers, 0.75, lower=False)
    assert [tick.text for tick in chart.ticks] == ["0", "0.5", "1"]
    middle, quarter = (charts.BOTTOM + charts.TOP) / 2, (charts.RIGHT - charts.LEFT) / 4
    first, second = chart.points
    assert (first.mean, first.high, first.tail) == pytest.approx((charts.TOP, charts.TOP, middle))
    assert (second.mean, second.tail) == pytest.approx((middle, charts.BOTTOM))
    assert second.high < second.mean < second.low  # down is less
    assert (first.x, second.x) == pytest.approx((charts.LEFT + quarter, charts.RIGHT - quarter))
    assert chart.line.at == pytest.approx((middle + charts.TOP) / 2)
    assert chart.line.text == "0.75"


def test_a_layer_without_a_value_keeps_its_number():
    one = statistic(1, 0.9, 1, 0.5, 1)
    chart = charts.curve([one, None, one], 0.75, lower=False)
    assert [point.number for point in chart.points] == [1, 3]
    third = (charts.RIGHT - charts.LEFT) / 3
    assert [point.x for point in chart.points] == pytest.approx(
        [charts.LEFT + third / 2, charts.RIGHT - third / 2]
    )


def test_where_lower_is_better_the_tail_is_the_upper_one():
    layers = [statistic(0.2, 0.1, 0.3, 0, 1), statistic(0.2, 0.1, 0.3, 0, 0.2)]
    first, second = charts.curve(layers, 0.3, lower=True).points
    assert first.tail == pytest.approx(charts.TOP)
    assert second.tail == pytest.approx(second.mean)
