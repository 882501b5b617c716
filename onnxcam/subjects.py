"""Inputs of an open file as what metrics see: an image, its map, and the model as a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import postprocess, preprocess, truth
from .contract import Preprocess
from .errors import MetricError, TargetError
from .explainer import Explainer
from .images import Photo
from .methods import Method
from .metrics import Case, Truth, truth_of_mask
from .metrics.case import Make, Score
from .metrics.localisation import mosaic
from .perturbation import Of, Scorer
from .preprocess import Geometry
from .result import Explanation

CELLS = 4  #: images of a mosaic
GRID = 7  #: side of the grid of a random map


@dataclass(frozen=True)
class Made:
    """A heatmap and what it took.

    Attributes:
        heatmap: (H, W) float32 in [0, 1].
        passes: images that went through the whole file.
        tail_passes: copies that went through what follows a layer.
        seconds: of wall time.
    """

    heatmap: NDArray[np.float32]
    passes: int = 0
    tail_passes: int = 0
    seconds: float = 0.0


#: From an open file, an input without its batch axis and a target to a heatmap.
Source: TypeAlias = Callable[[Explainer, NDArray[Any], Any], Made]


@dataclass(frozen=True, eq=False)
class Subject:
    """One input of the model, and what is asked of it.

    Attributes:
        name: the photo's.
        tensor: float32, as the model takes it, without its batch axis.
        score: see :data:`onnxcam.metrics.case.Score`.
        clean: the score of the input itself.
        target: what is explained; a class that the model chose stays chosen.
        label: what that is called.
        truth: where the object is, or why nobody knows.
        black: a black photo as the model takes it; None of mosaics.
    """

    name: str
    tensor: NDArray[np.float32]
    score: Score
    clean: float
    target: Any
    label: str
    truth: Truth | MetricError
    black: NDArray[np.float32] | None = None


def of_method(method: Method, layers: Any, options: Mapping[str, Any]) -> Source:
    """The maps of a method with some of its options."""

    def make(explainer: Explainer, x: NDArray[Any], target: Any) -> Made:
        start = time.perf_counter()
        found = explainer.explain_tensor(_fed(explainer, x[None]), method, [target], layers, **options)
        seconds = time.perf_counter() - start
        return Made(np.asarray(found.heatmaps[0]), found.passes, found.tail_passes, seconds)

    return make


def of_noise(seed: int) -> Source:
    """Uniform noise on a grid, enlarged and scaled as a layer's map is; another map on every call."""
    rng = np.random.default_rng(seed)

    def make(explainer: Explainer, x: NDArray[Any], target: Any) -> Made:
        size = x.shape[:2] if channels_last(explainer) else x.shape[1:]
        return Made(postprocess.heatmaps([rng.random((1, GRID, GRID), np.float32)], size)[0])

    return make


def of_photo(
    explainer: Explainer, photo: Photo, name: str, target: Any, given: truth.Given, of: Of
) -> Subject:
    """A photo as the model sees it.

    Args:
        explainer: open; it knows how photos are prepared.
        photo: (H, W, 3) uint8 RGB.
        name: for messages.
        target: one; None: the top class.
        given: the truth, in pixels of the photo.
        of: see :func:`onnxcam.evaluation.evaluate`.

    Raises:
        TargetError: no such target, or several.
    """
    how = explainer.preprocess
    assert how is not None
    tensor, geometry = _applied(photo, how)
    try:
        where: Truth | MetricError = truth.seen(given, geometry, f"'{name}'")
    except MetricError as e:
        where = e
    black, _ = _applied(np.zeros_like(photo), how)
    return _asked(explainer, name, tensor, target, where, of, black)


def of_mosaics(explainer: Explainer, subjects: Sequence[Subject], of: Of) -> Iterator[Subject]:
    """Each image of each mosaic in turn, its truth the cell where it lies.

    A mosaic takes the images together that the model is surest of, no two of the same label.

    Raises:
        MetricError: there are too few different labels for one.
    """
    last = channels_last(explainer)
    groups: list[list[Subject]] = []
    for one in sorted(subjects, key=lambda s: -s.clean):
        home = next((g for g in groups if len(g) < CELLS and one.label not in {s.label for s in g}), None)
        if home is None:
            groups.append(home := [])
        home.append(one)
    whole = [group for group in groups if len(group) == CELLS]
    if not whole:
        kinds = len({s.label for s in subjects})
        raise MetricError(
            f"A mosaic takes {CELLS} photos in which different classes are explained, and here the classes "
            f"are {kinds}: give more photos, or leave 'grid_pointing' out."
        )
    for group in whole:
        made, cells = mosaic([s.tensor for s in group], last)
        for one, cell in zip(group, cells, strict=True):
            name = f"{one.name} in a mosaic"
            yield _asked(explainer, name, made, one.target, truth_of_mask(cell), of)


def case_of(
    explainer: Explainer,
    subject: Subject,
    source: Source,
    heatmap: NDArray[np.float32],
    randomised: Explainer | None = None,
) -> Case:
    """What metrics see of a subject and one of its maps.

    Args:
        explainer: open.
        subject: the input.
        source: where the map comes from, and those of other inputs.
        heatmap: the map.
        randomised: the file with random weights.

    Raises:
        MetricError: see :class:`onnxcam.metrics.Case`.
        TensorError: the map of the file with random weights is not finite.
    """
    other = None if randomised is None else source(randomised, subject.tensor, subject.target).heatmap
    return Case(
        subject.tensor,
        heatmap,
        subject.score,
        subject.clean,
        subject.truth if isinstance(subject.truth, Truth) else None,
        lambda image: source(explainer, image, subject.target).heatmap,
        other,
        subject.black,
        channels_last(explainer),
    )


def channels_last(explainer: Explainer) -> bool:
    """Whether the file takes photos as (H, W, C)."""
    return explainer.preprocess is not None and explainer.preprocess.layout == "NHWC"


def _asked(
    explainer: Explainer,
    name: str,
    tensor: NDArray[np.float32],
    target: Any,
    where: Truth | MetricError,
    of: Of,
    black: NDArray[np.float32] | None = None,
) -> Subject:
    scorer, told = _scorer(explainer, tensor, target)
    if len(told) != 1:
        raise TargetError(
            f"'{name}' is evaluated for one target, not {len(told)}: give the photo once for each."
        )

    class_id = int(told.class_ids[0])
    how = explainer.record.score
    logarithms = of == "probability" and class_id >= 0 and how.activation == "log_softmax"

    def score(make: Make, count: int) -> NDArray[np.float32]:
        found = scorer.inputs(lambda part: _fed(explainer, make(part)), count, of=of)[:, 0]
        return np.exp(found) if logarithms else found

    clean = float(score(lambda part: tensor[None], 1)[0])
    pinned = class_id if class_id >= 0 else target
    return Subject(name, tensor, score, clean, pinned, told.labels[0], where, black)


def _scorer(explainer: Explainer, tensor: NDArray[Any], target: Any) -> tuple[Scorer, Explanation]:
    """The scorer that methods of masks are given, kept by one that draws nothing."""
    kept: list[Scorer] = []

    def keep(masked: Scorer) -> NDArray[np.float32]:
        kept.append(masked)
        return np.zeros((len(masked.targets.class_index), 1, 1), np.float32)

    method = Method("scores", keep, ("masked",), source="ours", formula="0")
    told = explainer.explain_tensor(_fed(explainer, tensor[None]), method, [target])
    return kept[0], told


def _applied(photo: Photo, how: Preprocess) -> tuple[NDArray[np.float32], Geometry]:
    tensor, geometry = preprocess.apply(photo, how)
    return tensor.astype(np.float32, copy=False), geometry


def _fed(explainer: Explainer, batch: NDArray[np.float32]) -> NDArray[Any]:
    """Inputs in the type that the file declares: of whole numbers, the nearest."""
    dtype = explainer._file.image.dtype or np.dtype(np.float32)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        batch = np.clip(np.rint(batch), limits.min, limits.max)
    return batch.astype(dtype, copy=False)
