"""Which method suits a model: metrics of methods over photos, beside what each method costs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import images as photos
from . import methods as cam_methods
from . import metrics as registry
from . import subjects, truth
from .errors import InputError, MethodError, MetricError, TargetError, TensorError, nearest
from .explainer import Explainer
from .kinds import is_whole
from .methods import Method
from .metrics import Case, Curve, Metric, Truth
from .perturbation import Of
from .subjects import Made, Source, Subject

RANDOM = "random"  #: the baseline's row: maps of noise, which know neither model nor image


@dataclass(frozen=True)
class Measured:
    """One metric of one method.

    Attributes:
        values: (N,) float64, one per image or cell of a mosaic; NaN where the metric is not defined.
        undefined: why not, each reason once.
        curve: the mean curve of a metric that has one.
    """

    values: NDArray[np.float64]
    undefined: tuple[str, ...] = ()
    curve: Curve | None = None

    @property
    def count(self) -> int:
        """On how many images it is defined."""
        return int(np.isfinite(self.values).sum())

    @property
    def mean(self) -> float:
        """Over those; NaN of none."""
        return float(np.nanmean(self.values)) if self.count else float("nan")

    @property
    def error(self) -> float:
        """The standard error of the mean; NaN of fewer than two."""
        return float(np.nanstd(self.values, ddof=1) / self.count**0.5) if self.count > 1 else float("nan")


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: the method's, or :data:`RANDOM`.
        baseline: whether it is the random map.
        seconds: of one explanation, the median over the images.
        passes: images that go through the whole file for one explanation.
        tail_passes: copies that go through what follows a layer.
        measured: by metric.
    """

    name: str
    baseline: bool
    seconds: float
    passes: float
    tail_passes: float
    measured: Mapping[str, Measured]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        images: the photos' names.
        labels: what is explained in each.
        scores: the measured score of each.
        of: what the scores are; see :func:`evaluate`.
        metrics: the columns.
        rows: the methods in the order asked for, then the baseline.
        refused: the methods that this file cannot carry, {name: reason}.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    of: Of
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    refused: Mapping[str, str]

    def best(self, metric: Metric) -> tuple[str, ...]:
        """The rows with the best mean up to rounding, maybe the baseline; none where no value is better."""
        sign = {"higher": 1, "lower": -1, "neither": 0}[metric.better]
        means = {row.name: sign * row.measured[metric.name].mean for row in self.rows}
        top = max((m for m in means.values() if np.isfinite(m)), default=float("nan"))
        return tuple(name for name, m in means.items() if sign and m >= top - 1e-6 * abs(top))

    def data(self) -> dict[str, Any]:
        """All of it for JSON; what is not defined is None."""
        told = zip(self.images, self.labels, self.scores, strict=True)
        return {
            "images": [{"image": i, "target": label, "score": score} for i, label, score in told],
            "score": self.of,
            "metrics": [
                {
                    "name": m.name,
                    "better": m.better,
                    "best": list(self.best(m)),
                    "formula": m.formula,
                    "source": m.source,
                }
                for m in self.metrics
            ],
            "methods": [_row_data(row) for row in self.rows],
            "refused": dict(self.refused),
        }

    def csv(self) -> str:
        """A line of heads, then one per method; mean, standard error and count of each metric."""
        heads = [f"{m.name}{part}" for m in self.metrics for part in ("", " stderr", " images")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "baseline", *heads, "seconds", "passes", "tail_passes"])
        for row in self.rows:
            measured = [row.measured[m.name] for m in self.metrics]
            cells = [
                cell for one in measured for cell in (_or_none(one.mean), _or_none(one.error), one.count)
            ]
            cost = map(_or_none, (row.seconds, row.passes, row.tail_passes))
            writer.writerow([row.name, int(row.baseline), *cells, *cost])
        return text.getvalue()


def evaluate(
    explainer: Explainer,
    images: Any,
    methods: str | Sequence[str | Method] = "quick",
    metrics: Sequence[str | Metric] | None = None,
    *,
    target: Any = None,
    truths: Sequence[truth.Given] | None = None,
    layers: str | Sequence[str] | None = None,
    randomised: Explainer | None = None,
    of: Of = "probability",
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Measure methods on photos.

    All happens at the model's input: maps are those of :meth:`Explainer.explain_tensor`, and truth is brought
    there through the photo's crop or letterbox. What is explained stays the same while the image is changed.

    Args:
        explainer: the open file.
        images: photos, as :meth:`Explainer.explain` takes them.
        methods: names or Methods; "all" of the registry, or "quick": those that run the file once.
        metrics: of :func:`onnxcam.metrics.names`, or Metrics; None: :func:`usual`.
        target: what is explained, in every photo, or a list with one entry per photo; None: the top class.
        truths: one per photo, in its pixels: a mask, an array (H, W); boxes, a list [[x1, y1, x2, y2], ...];
            None where it is not known.
        layers: see :meth:`Explainer.explain`.
        randomised: the model with random weights (:func:`onnxcam.export.randomised`), explainable at the same
            layers: for the sanity checks.
        of: "probability": after a softmax where a classifier gives logits; the papers' metrics are
            defined on it. "output": the score as the file gives it.
        seed: of the random maps.
        options: of metrics and methods, {name: {option: value}}, such as ``{"deletion": {"steps": 50}}``.
        progress: called with (done, total).

    Returns:
        Plain data: a row per method, and one of random maps.

    Raises:
        MethodError: an unknown method, or none that the file can carry.
        MetricError: an unknown metric, one with unusable options, or one that lacks its truth, its file with
            random weights or its mosaics.
        MissingDependency: a metric needs a package of ``onnxcam[metrics]``.
        InputError: the file records no preprocessing, or arguments that do not fit the photos.
        ImageError, TargetError: see :meth:`Explainer.explain`.
    """
    if explainer.preprocess is None:
        raise InputError(
            "The file records no preprocessing for photos. Give it when opening: "
            'Explainer(..., preprocess="imagenet").'
        )
    named = photos.each(images)
    chosen, options = _chosen(methods), options or {}
    columns = _columns(usual(truths is not None) if metrics is None else metrics, truths, randomised)
    if not is_whole(seed, 0):
        raise InputError(f"The seed of the random maps is a whole number of at least 0, not {seed!r}.")
    _check_options(options, {**{m.name: m for m in chosen}, **{m.name: m for m in columns}})
    if progress is not None and not callable(progress):
        raise InputError(f"progress is a function that is called with (done, total), not {progress!r}.")
    wanted = _each(target if isinstance(target, (list, tuple)) else [target] * len(named), named, "target")
    given = _each([None] * len(named) if truths is None else truths, named, "truths")
    sources = {m.name: subjects.of_method(m, layers, options.get(m.name, {})) for m in chosen}
    sources[RANDOM] = subjects.of_noise(seed)
    bench = _Bench(
        explainer, randomised, columns, options or {}, sources, progress, len(named) * len(sources)
    )

    grid = any("grid" in m.needs for m in columns)
    told, kept = [], []
    for (name, image), one, where in zip(named, wanted, given, strict=True):
        photo = photos.load(image, name)
        subject = subjects.of_photo(explainer, photo, name, one, where, of)
        bench.measure(subject)
        told.append((subject.name, subject.label, subject.clean))
        if grid:
            kept.append(subject)
    if grid:
        for subject in subjects.of_mosaics(explainer, kept, of):
            bench.measure(subject, grid=True)
    names, labels, scores = zip(*told, strict=True)
    rows = tuple(bench.row(name) for name in sources)
    return Evaluation(names, labels, scores, of, columns, rows, bench.refused)


def usual(with_truth: bool = False) -> tuple[str, ...]:
    """The metrics where none are named: the best known, of those that need no further package."""
    return ("deletion", "insertion", "drop", "increase", *(("pointing", "energy") if with_truth else ()))


@dataclass
class _Bench:
    """The results so far."""

    explainer: Explainer
    randomised: Explainer | None
    metrics: tuple[Metric, ...]
    options: Mapping[str, Mapping[str, Any]]
    sources: dict[str, Source]
    progress: Callable[[int, int], object] | None
    total: int
    done: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    made: dict[str, list[Made]] = field(default_factory=dict)
    found: dict[tuple[str, str], list[float | Curve | MetricError]] = field(default_factory=dict)

    def measure(self, subject: Subject, grid: bool = False) -> None:
        """All methods on one input; those that the file cannot carry are never tried again."""
        columns = [m for m in self.metrics if ("grid" in m.needs) == grid]
        for name, source in list(self.sources.items()):
            try:
                made, found = self._measured(subject, source, columns)
            except (MethodError, TargetError) as e:  # the target itself has been tried
                self.refused[name] = str(e)
                del self.sources[name]
                if set(self.sources) == {RANDOM}:
                    raise MethodError(f"The file carries none of these methods. {e}") from e
                continue
            if made is not None and not grid:
                self.made.setdefault(name, []).append(made)
            for metric, value in zip(columns, found, strict=True):
                self.found.setdefault((name, metric.name), []).append(value)
            if not grid:
                self.done += 1
                if self.progress is not None:
                    self.progress(self.done, self.total)

    def _measured(
        self, subject: Subject, source: Source, columns: Sequence[Metric]
    ) -> tuple[Made | None, list[float | Curve | MetricError]]:
        made = None
        try:
            made = source(self.explainer, subject.tensor, subject.target)
            sane = any("randomised" in m.needs for m in columns)
            other = self.randomised if sane else None
            case = subjects.case_of(self.explainer, subject, source, made.heatmap, other)
        except (MetricError, TensorError) as e:  # a map that is not finite
            return made, [MetricError(str(e)) for _ in columns]
        return made, [self._one(metric, case, subject) for metric in columns]

    def _one(self, metric: Metric, case: Case, subject: Subject) -> float | Curve | MetricError:
        if "truth" in metric.needs and not isinstance(subject.truth, Truth):
            return subject.truth
        try:
            return registry.measure(metric, case, **self.options.get(metric.name, {}))
        except (MetricError, TensorError) as e:
            return MetricError(str(e))

    def row(self, name: str) -> Row:
        made = self.made.get(name, [])
        return Row(
            name,
            name == RANDOM,
            float(np.median([m.seconds for m in made])) if made else float("nan"),
            float(np.mean([m.passes for m in made])) if made else float("nan"),
            float(np.mean([m.tail_passes for m in made])) if made else float("nan"),
            {m.name: _measured(m, self.found[name, m.name]) for m in self.metrics},
        )


def _measured(metric: Metric, found: Sequence[float | Curve | MetricError]) -> Measured:
    good = [i for i, one in enumerate(found) if not isinstance(one, MetricError)]
    results = [one for one in found if not isinstance(one, MetricError)]
    values = np.full(len(found), np.nan)
    values[good] = registry.values(metric, results)
    reasons = dict.fromkeys(str(one) for one in found if isinstance(one, MetricError))
    curves = [one for one in results if isinstance(one, Curve)]
    sizes = {c.x.shape for c in curves}
    mean = Curve(curves[0].x, np.mean([c.y for c in curves], axis=0)) if len(sizes) == 1 else None
    return Measured(values, tuple(reasons), mean)


def _chosen(methods: str | Sequence[str | Method]) -> list[Method]:
    if methods == "all":
        return [cam_methods.get(name) for name in cam_methods.names()]
    if methods == "quick":
        known = [cam_methods.get(name) for name in cam_methods.names()]
        return [m for m in known if not m.runs and not m.inside and "noisy" not in m.needs]
    each = [methods] if isinstance(methods, (str, Method)) else methods
    chosen = [m if isinstance(m, Method) else cam_methods.get(m) for m in each]
    if not chosen:
        raise MethodError("There is no method to evaluate: name some, or 'all'.")
    return chosen


def _columns(
    metrics: Sequence[str | Metric],
    truths: Any,
    randomised: Explainer | None,
) -> tuple[Metric, ...]:
    """The metrics, once each, with what they need."""
    each = [metrics] if isinstance(metrics, (str, Metric)) else metrics
    columns = {m.name: m for m in (n if isinstance(n, Metric) else registry.get(n) for n in each)}
    if not columns:
        raise MetricError("There is no metric to evaluate: name some.")
    for m in columns.values():
        for package in m.uses:
            registry.require(package, m.name)
        if "truth" in m.needs and "grid" not in m.needs and truths is None:
            raise MetricError(f"The metric '{m.name}' needs {registry.NEEDED['truth']}.")
        if "randomised" in m.needs and randomised is None:
            raise MetricError(f"The metric '{m.name}' needs {registry.NEEDED['randomised']}.")
    return tuple(columns.values())


def _check_options(given: Mapping[str, Mapping[str, Any]], known: Mapping[str, Method | Metric]) -> None:
    for name, values in given.items():
        if name not in known:
            raise InputError(
                f"There are options of '{name}', which is not evaluated.{nearest(name, list(known))}"
            )
        known[name].check(values)


def _each(values: Sequence[Any], named: Sequence[Any], what: str) -> Sequence[Any]:
    if len(values) != len(named):
        count = "1 entry" if len(values) == 1 else f"{len(values)} entries"
        raise InputError(
            f"{what} has {count} for {len(named)} photo{'s' * (len(named) != 1)}; a list has one per photo."
        )
    return values


def _row_data(row: Row) -> dict[str, Any]:
    return {
        "method": row.name,
        "baseline": row.baseline,
        "seconds": _or_none(row.seconds),
        "passes": _or_none(row.passes),
        "tail_passes": _or_none(row.tail_passes),
        "metrics": {
            name: {
                "mean": _or_none(one.mean),
                "stderr": _or_none(one.error),
                "images": one.count,
                "values": [_or_none(v) for v in one.values.tolist()],
                "undefined": list(one.undefined),
                **({"curve": {"x": one.curve.x.tolist(), "y": one.curve.y.tolist()}} if one.curve else {}),
            }
            for name, one in row.measured.items()
        },
    }


def _or_none(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
