"""What a heatmap is worth: a registry of plain functions on one image's explanation.

To add a metric, write one function in a module of this folder::

    @metric("complexity", better="lower", source="Poppi et al., CVPR workshops 2021", formula="mean |M|")
    def complexity(case: Case) -> float: ...

Nothing else has to be edited: every module of the folder is imported here, and ``onnxcam evaluate``, the
tables and the tests read the registry. A bare name is the paper's definition; ``:pgc``
(pytorch-grad-cam), ``:torchcam`` and ``:ovx`` (openvino_xai) are what these libraries compute where that
is something else.

A metric sees a :class:`~onnxcam.metrics.case.Case` and returns a number, or a
:class:`~onnxcam.metrics.case.Curve` that many images average before it becomes one. What cannot be
answered (a correlation with a constant map) is a MetricError, never a made-up number.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..errors import MetricError, nearest
from ..kinds import is_finite, is_whole
from .case import Case, Curve, Truth, truth_of_boxes, truth_of_mask

__all__ = [
    "Case",
    "Curve",
    "Metric",
    "Truth",
    "get",
    "measure",
    "metric",
    "names",
    "options",
    "truth_of_boxes",
    "truth_of_mask",
    "values",
]

#: What a metric may ask for beside image, heatmap and score: fields of Case, and "grid", a mosaic of
#: several images of which each case explains one.
Need: TypeAlias = Literal["truth", "explain", "black", "randomised", "grid"]
Function: TypeAlias = Callable[..., "float | Curve"]
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Metric:
    """One metric of the registry.

    Attributes:
        name: what the user calls it; ``:pgc`` and the like mark a library's variant of a definition.
        function: a Case, and keyword options with defaults, to a number or a Curve.
        better: which way a map is better; "neither" for what only describes it.
        source: the paper, or the library for a variant.
        formula: one line. M the heatmap, x the image, s the score.
        needs: see :data:`Need`.
        uses: packages beyond the run time's; ``pip install "onnxcam[metrics]"`` brings them.
        summary: what becomes of a Curve: the "area" under it, or its "peak".
    """

    name: str
    function: Function
    better: Literal["higher", "lower", "neither"]
    source: str
    formula: str
    needs: tuple[Need, ...] = ()
    uses: tuple[str, ...] = ()
    summary: Literal["area", "peak"] = "area"

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuse options that the function cannot be called with.

        Raises:
            MetricError: there is no such option, or it cannot have this value (see :data:`VALUES`).
        """
        known = options(self)
        for name, value in given.items():
            if name not in known:
                its = ", ".join(f"{k} ({v})" for k, v in known.items()) or "none"
                near = nearest(str(name), list(known))
                raise MetricError(f"The metric '{self.name}' has no option {name!r}.{near} It has: {its}.")
            if name in VALUES and not VALUES[name].fits(value):
                raise MetricError(
                    f"The option '{name}' of the metric '{self.name}' is {VALUES[name].told}, such as "
                    f"{known[name]!r}, not {value!r}."
                )


class Value(NamedTuple):
    """What an option may be.

    Attributes:
        told: in words.
        fits: whether something is that.
    """

    told: str
    fits: Callable[[Any], bool]


_metrics: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    better: Literal["higher", "lower", "neither"],
    source: str,
    formula: str,
    needs: tuple[Need, ...] = (),
    uses: tuple[str, ...] = (),
    summary: Literal["area", "peak"] = "area",
) -> Callable[[F], F]:
    """Register the decorated function; the arguments are :class:`Metric`'s."""

    def register(function: F) -> F:
        if name in _metrics:
            raise ValueError(f"The metric {name!r} is registered twice.")
        _metrics[name] = Metric(name, function, better, source, formula, needs, uses, summary)
        return function

    return register


def names() -> list[str]:
    """The names of all metrics, sorted."""
    return sorted(_metrics)


def get(name: str) -> Metric:
    """The metric of that name.

    Raises:
        MetricError: there is none; the nearest names are given.
    """
    if not isinstance(name, str) or name not in _metrics:
        known = names()
        raise MetricError(f"No metric {name!r}.{nearest(str(name), known)} There are: {', '.join(known)}.")
    return _metrics[name]


def measure(name: str | Metric, case: Case, **options: Any) -> float | Curve:
    """One metric of one image's map.

    Args:
        name: of :func:`names`, or a Metric of one's own.
        case: the image, its map and the score.
        options: the function's own, such as ``steps`` of "deletion".

    Returns:
        A number, or a Curve: ``float(curve)`` is the area under it.

    Raises:
        MetricError: no such metric, unusable options, the case lacks what it needs, or it is not defined for
            this map.
        MissingDependency: it needs a package of the extra ``[metrics]``.
    """
    chosen = name if isinstance(name, Metric) else get(name)
    chosen.check(options)
    for package in chosen.uses:
        require(package, chosen.name)
    for need in chosen.needs:
        if need != "grid" and getattr(case, need) is None:
            raise MetricError(f"The metric '{chosen.name}' needs {NEEDED[need]}.")
    return chosen.function(case, **options)


def values(name: str | Metric, measured: Sequence[float | Curve]) -> NDArray[np.float64]:
    """One number per image of what :func:`measure` gave for several.

    A peak is the mean curve's: every image is read at the one place where the mean is highest, as MaxBoxAcc
    chooses one threshold for the whole set.

    Args:
        name: the metric.
        measured: its results, one per image.

    Returns:
        (N,) float64; their mean is the metric of the set.
    """
    chosen = name if isinstance(name, Metric) else get(name)
    if not measured or not isinstance(measured[0], Curve) or chosen.summary == "area":
        return np.array([float(one) for one in measured], np.float64)
    table = np.array([one.y for one in measured if isinstance(one, Curve)])
    return np.asarray(table[:, table.mean(axis=0).argmax()], np.float64)


def options(name: str | Metric) -> dict[str, Any]:
    """The function's own arguments, {name: default}."""
    chosen = name if isinstance(name, Metric) else get(name)
    parameters = inspect.signature(chosen.function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def require(package: str, metric: str) -> Any:
    """A package of the extra ``[metrics]``, imported.

    Raises:
        MissingDependency: it is not installed.
    """
    return extras.require(package, f"The metric '{metric}'", "metrics")


def _shares(value: Any) -> bool:
    several = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str) and len(value) > 0
    return several and all(is_finite(p) and 0 < p < 100 for p in value)


#: By an option's name, which means the same in every metric.
VALUES: Mapping[str, Value] = {
    "steps": Value("a whole number of at least 1", lambda v: is_whole(v, 1)),
    "samples": Value("a whole number of at least 1", lambda v: is_whole(v, 1)),
    "seed": Value("a whole number of at least 0", lambda v: is_whole(v, 0)),
    "percentiles": Value("a list of shares between 0 and 100 per cent", _shares),
    "noise": Value("a finite number of at least 0", lambda v: is_finite(v) and v >= 0),
    "tolerance": Value("a finite number of at least 0", lambda v: is_finite(v) and v >= 0),
    "radius": Value("a finite number above 0", lambda v: is_finite(v) and v > 0),
    "iou": Value("a number above 0 and up to 1", lambda v: is_finite(v) and 0 < v <= 1),
}

#: What a metric asks for, in words.
NEEDED: dict[str, str] = {
    "truth": "the truth, where the object is: a mask or boxes (`onnxcam evaluate --truth`)",
    "explain": "a way to explain other inputs: Case(explain=...)",
    "black": "to know what a black pixel is in the model's input: Case(black=...)",
    "randomised": "the map of a model with random weights (`onnxcam evaluate --randomised`)",
}

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
