"""Pictures of evaluations. The only module that imports matplotlib."""

from __future__ import annotations

import io
from typing import Any

from . import extras
from .errors import MetricError
from .evaluation import Evaluation, Row
from .metrics import Metric

_STYLES = ("-", "--", "-.", ":")
_COLOURS = 10  #: of matplotlib's cycle; further lines take the next style


def require() -> Any:
    """The figure class of matplotlib, drawn without a window.

    Raises:
        MissingDependency: it is not installed.
    """
    return extras.require("matplotlib.figure", "Plotting the curves", "metrics").Figure


def with_curves(metrics: tuple[Metric, ...], rows: tuple[Row, ...]) -> list[Metric]:
    """The metrics that have a curve, of at least one method."""
    return [m for m in metrics if any(row.measured[m.name].curve for row in rows)]


def curves(evaluation: Evaluation) -> bytes:
    """The mean curves of each metric that has them, one panel each; the best methods first in the legend.

    Returns:
        A PNG.

    Raises:
        MetricError: no metric of the evaluation has a curve.
        MissingDependency: matplotlib is not installed.
    """
    shown = with_curves(evaluation.metrics, evaluation.rows)
    if not shown:
        raise MetricError("None of the metrics has a curve to plot; 'deletion' and 'insertion' have.")
    lines = max(sum(row.measured[m.name].curve is not None for row in evaluation.rows) for m in shown)
    size = (8.2 * len(shown), max(4.8, 2.2 + 0.22 * lines))
    figure = require()(figsize=size, layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _panel(axes, evaluation, metric)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _panel(axes: Any, evaluation: Evaluation, metric: Metric) -> None:
    order = -1 if metric.better == "higher" else 1
    colours = {row.name: i for i, row in enumerate(evaluation.rows)}
    for row in sorted(evaluation.rows, key=lambda row: order * row.measured[metric.name].mean):
        one = row.measured[metric.name]
        if one.curve is None:
            continue
        i = colours[row.name]
        style: dict[str, Any] = {"color": f"C{i % _COLOURS}", "linestyle": _STYLES[i // _COLOURS % 4]}
        if row.baseline:
            style = {"color": "0.35", "linestyle": (0, (1, 1)), "linewidth": 2.5}
        axes.plot(one.curve.x, one.curve.y, label=f"{row.name}  {one.mean:.3f}", **style)
    peak = metric.summary == "peak"
    axes.set_title(f"{metric.name} ({metric.better} is better)")
    axes.set_xlabel("threshold of the heatmap" if peak else "share of the pixels changed, the hottest first")
    axes.set_ylabel(f"mean over {len(evaluation.images)} images" if peak else f"score ({evaluation.of})")
    axes.grid(alpha=0.25)
    side = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}  # beside the lines, which fill the panel
    axes.legend(fontsize=8, title="its peak" if peak else "area", title_fontsize=8, **side)
