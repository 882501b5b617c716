"""From inputs to raw maps: what a method needs is run for, and handed to it."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import many, projection, rows, smoothing, targets
from .contract import (
    CHOSEN_BOX,
    CHOSEN_REGION,
    CLASS,
    EMBEDDING,
    PREFIX,
    SCORE,
    TOP_CLASS,
    Fused,
    Layer,
    Layout,
    Record,
)
from .errors import BadTail, MethodError, TensorError
from .feeds import shape_of
from .grids import channels_first
from .methods import Method
from .perturbation import Copies, Passes, Scorer, TailScorer, on_host, pinned
from .rows import Rows
from .session import Session, TensorInfo
from .smoothing import Change, Smoothing
from .tail import Tail, rows_of
from .targets import Targets

_log = logging.getLogger("onnxcam")

Maps: TypeAlias = NDArray[np.float32]
NO_CLASS = -1  #: the class of a row that is of none
INPUT = "input"  #: what the maps are called that methods without a layer give
TOLD = (SCORE, CLASS, CHOSEN_BOX, CHOSEN_REGION, EMBEDDING)


@dataclass(frozen=True)
class File:
    """An open file, and how its inputs are.

    Attributes:
        session: open.
        image: the input that takes the image.
        channels: the axis of that input that counts channels.
        max_batch: rows in one run.
        tail: opens what follows a layer.
    """

    session: Session
    image: TensorInfo
    channels: int
    max_batch: int
    tail: Callable[[str], Tail]

    @property
    def record(self) -> Record:
        """The file's."""
        return self.session.record

    @functools.cached_property
    def own_outputs(self) -> tuple[str, ...]:
        """The model's, without ours."""
        return tuple(o.name for o in self.session.outputs if not o.name.startswith(PREFIX))

    @functools.cached_property
    def told(self) -> tuple[str, ...]:
        """The outputs that say what was explained."""
        names = {o.name for o in self.session.outputs}
        return tuple(name for name in TOLD if name in names)


@dataclass(frozen=True)
class Request:
    """What one call asks for.

    Attributes:
        method: which.
        options: of the method, {name: value}.
        layers: of the file; empty for a method that looks at none, and for a map that the file makes.
        targets: the rows.
        smoothing: see :mod:`onnxcam.smoothing`.
        channels: of the layer, that alone take part; None: all.
        passes: counts the runs.
        fused: the map that the file itself computes; None: it is made of the layers' tensors, or of runs.
    """

    method: Method
    options: Mapping[str, Any]
    layers: tuple[Layer, ...]
    targets: Targets
    smoothing: Smoothing = field(default_factory=Smoothing)
    channels: tuple[int, ...] | None = None
    passes: Passes = field(default_factory=Passes)
    fused: Fused | None = None

    def rows_of(self, part: slice) -> Targets:
        """The rows of the images in ``part``, counted from its start."""
        index = self.targets.image_index
        return self.targets.rows((index >= part.start) & (index < part.stop), part.start)


@dataclass(frozen=True)
class Evidence:
    """What was found for some rows.

    Attributes:
        run: what the file gave for the inputs as they are, without the layers' tensors.
        class_ids: (R,) int64, -1 for a row of no one class.
        scores: (R,) float32.
        groups: per group of changed inputs {layer: raw maps (R, ...grid)}; see :mod:`onnxcam.smoothing`.
    """

    run: Rows
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    groups: tuple[dict[str, Maps], ...]

    @property
    def layer_maps(self) -> dict[str, Maps]:
        """The mean of the groups."""
        first, *rest = self.groups
        if not rest:
            return first
        return {name: np.mean([group[name] for group in self.groups], axis=0) for name in first}


def joined(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of further and further images as one."""
    if len(parts) == 1:
        return parts[0]
    groups = tuple(
        {name: np.concatenate([group[name] for group in same]) for name in same[0]}
        for same in zip(*(part.groups for part in parts), strict=True)
    )
    return Evidence(
        rows.joined([part.run for part in parts]),
        np.concatenate([part.class_ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        groups,
    )


def find(file: File, feeds: Mapping[str, Any], wanted: Targets, request: Request) -> Evidence:
    """Run what the request needs for some images.

    Args:
        file: open.
        feeds: {input: checked array or device tensor}.
        wanted: the rows of these images, boxes and regions as the model sees them.
        request: the method and how.

    Raises:
        MethodError: the method cannot carry these layers, or gives something else than maps.
        TargetError, TensorError: the rows, the inputs.
    """
    count = shape_of(feeds[file.image.name])[0]
    plain = request.smoothing.groups == ((Change(),),)
    tails = _tails_of_finer(file, wanted, request) if plain else []
    whole = rows.images_in_one_run(feeds, file.image, file.max_batch) if tails else count
    size = 1 if request.method.runs else whole
    if count > size:  # image by image, or as many as one run takes
        parts = [_part(file, feeds, wanted, part) for part in rows.batches(count, size)]
        return joined([find(file, *part, request) for part in parts])
    told = _finer_by_tails(file, feeds, wanted, request, tails) if tails else None
    wanted, run, class_ids, scores = told or _told(file, feeds, wanted, request, plain)
    alone = plain and _is_plain(request.method)
    asked = wanted if alone else pinned(run, class_ids, own=request.method.runs)
    if plain:
        groups: tuple[dict[str, Maps], ...] = (_maps(file, feeds, asked, run, request),)
    else:
        groups = tuple(_mean_of(file, feeds, asked, request, group) for group in request.smoothing.groups)
    kept = {k: v for k, v in run.arrays.items() if k in file.own_outputs or k in file.told}
    return Evidence(replace(run, arrays=kept), class_ids, scores, groups)


def _told(
    file: File, feeds: Mapping[str, Any], wanted: Targets, request: Request, plain: bool
) -> tuple[Targets, Rows, NDArray[np.int64], NDArray[np.float32]]:
    """The rows as they are run in the end, what the file gives for them, their classes and scores."""
    run = _run(file, feeds, wanted, request, tensors=plain)
    class_ids, scores = _explained(file, run)
    if any(wanted.finer):
        logits = logits_of(file.record.score.activation, run.arrays[file.record.score.output])
        wanted, scores = _finer(file, wanted, class_ids, logits, scores)
        if plain:
            run = _run(file, feeds, wanted, request)
    return wanted, run, class_ids, scores


def _finer_by_tails(
    file: File, feeds: Mapping[str, Any], wanted: Targets, request: Request, layers: Sequence[str]
) -> tuple[Targets, Rows, NDArray[np.int64], NDArray[np.float32]] | None:
    """The same, where the whole file runs once for each image, and tells the weights that the tails need."""
    layouts, fetch = _fetched(file, request)
    index, count = wanted.image_index, shape_of(feeds[file.image.name])[0]
    top = Targets(np.arange(count), np.full(count, TOP_CLASS))
    try:
        tails = [file.tail(layer) for layer in layers]
        asked = [name for name in fetch if name not in {t.layer.gradients for t in tails}]
        asked = list(dict.fromkeys([*asked, *many.read_by(tails)]))
        whole = rows.run(file.session, feeds, top, asked, {}, file.image, file.max_batch)
        best, _ = _explained(file, whole)
        class_ids = np.where(wanted.class_index == TOP_CLASS, best[index], wanted.class_index)
        logits = logits_of(file.record.score.activation, whole.arrays[file.record.score.output])[index]
        weighed, differences = _finer(file, wanted, class_ids, logits, np.zeros(len(index), np.float32))
        none = np.empty(0, np.int64)
        arrays = many.completed(
            file.session, tails, whole.arrays, weighed, count, none, fetch, layouts, file.max_batch
        )
    except BadTail as e:
        _log.warning("%s Going on without it: the whole file runs twice.", e)
        return None
    request.passes.model += count
    request.passes.tail += len(index)
    run = Rows(arrays, weighed, count)
    own_ids, own_scores = _explained(file, run)
    finer = np.array([one is not None for one in wanted.finer])
    class_ids = np.where(finer, class_ids, own_ids)
    return weighed, run, class_ids, np.where(finer, differences, own_scores)


def _tails_of_finer(file: File, wanted: Targets, request: Request) -> list[str]:
    """The layers whose tails spare the second run of the whole file; empty if there is none, or no way."""
    if not any(wanted.finer) or request.method.runs:
        return []
    return many.layers_of(file.record, _fetched(file, request)[1])


def _is_plain(method: Method) -> bool:
    """Whether the method sees one run of the inputs as they are."""
    return not method.runs and "noisy" not in method.needs


def _mean_of(
    file: File, feeds: Mapping[str, Any], asked: Targets, request: Request, group: Sequence[Change]
) -> dict[str, Maps]:
    """The mean of the raw maps of changed copies of the images."""
    image = file.image.name
    x = on_host(feeds[image])
    total: dict[str, Maps] = {}
    for change in group:
        fed = {**feeds, image: smoothing.changed(x, change, file.channels)}
        rows_ = smoothing.asked(asked, change, x.shape[smoothing.columns(x, file.channels)])
        run = _run(file, fed, rows_, request)
        for name, maps in _maps(file, fed, rows_, run, request).items():
            share = smoothing.undone(maps, change) / np.float32(len(group))
            total[name] = total[name] + share if name in total else share
    return total


def _run(
    file: File, feeds: Mapping[str, Any], wanted: Targets, request: Request, tensors: bool = True
) -> Rows:
    """The file's outputs for the rows, and the layers' tensors that the method reads."""
    layouts, fetch = _fetched(file, request, tensors)
    return _rows(file, feeds, wanted, fetch, layouts, request.passes)


def _fetched(file: File, request: Request, tensors: bool = True) -> tuple[dict[str, Layout], list[str]]:
    """The layouts of the layers' tensors that the method reads, and the names of all that is fetched."""
    layers = request.layers if tensors else ()
    layouts = {name: layer.layout for layer in layers for name in _tensors(layer, request.method).values()}
    fetch = [*file.own_outputs, *file.told, *layouts]
    if request.fused is not None and tensors:
        fetch.append(request.fused.output)
    if "tail" in request.method.needs:  # which takes the tensors as the layers have them
        layouts = {}
        fetch += [side for layer in layers for side in file.tail(layer.name).sides]
    return layouts, list(dict.fromkeys(fetch))


def _rows(
    file: File,
    feeds: Mapping[str, Any],
    wanted: Targets,
    fetch: Sequence[str],
    layouts: Mapping[str, Layout],
    passes: Passes,
) -> Rows:
    """The file's outputs; where an image has several targets, the whole file runs once for it if it can."""
    images, count = shape_of(feeds[file.image.name])[0], len(wanted.image_index)
    if images < count and many.layers_of(file.record, fetch):
        try:
            found = many.run(
                file.session, file.tail, feeds, wanted, fetch, layouts, file.image, file.max_batch
            )
        except BadTail as e:  # the same comes out without it, only later
            _log.warning("%s Going on without it: the whole file runs for each target.", e)
        else:
            passes.model += images
            passes.tail += count - images
            return found
    passes.model += count
    return rows.run(file.session, feeds, wanted, fetch, layouts, file.image, file.max_batch)


def _tensors(layer: Layer, method: Method) -> dict[str, str]:
    """The outputs of ``layer`` that ``method`` reads."""
    names = {"activations": layer.activations, "gradients": layer.gradients}
    return {kind: names[kind] for kind in method.needs if kind in names}


def _explained(file: File, run: Rows) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Per row the class (-1: none) and the score that is explained of it."""
    chosen, image_index = run.targets.class_index, run.targets.image_index
    if SCORE in run.arrays:
        scores = run.arrays[SCORE].astype(np.float32, copy=False)
        class_ids = run.arrays.get(CLASS, np.full(len(chosen), NO_CLASS))
        own = np.array([name is None for name in run.targets.names or [None] * len(chosen)])
        class_ids = np.where(own, class_ids, NO_CLASS)
    else:
        table = run.arrays[file.record.score.output].reshape(len(chosen), -1)
        # Again, for files that do not record how many classes there are.
        targets.check(int(chosen.max(initial=0)), table.shape[1])
        class_ids = np.where(chosen == TOP_CLASS, table.argmax(axis=1), chosen)
        scores = table[np.arange(len(chosen)), class_ids].astype(np.float32, copy=False)
    if not np.isfinite(scores).all():
        raise TensorError(
            f"The score of image {image_index[np.argmin(np.isfinite(scores))]} is not finite: "
            "the input holds NaN or infinity, or the model overflows."
        )
    return class_ids, scores


def logits_of(activation: str | None, output: NDArray[Any]) -> NDArray[np.float32]:
    """(R, K) what is before the output's activation, up to a constant per row."""
    table = output.reshape(len(output), -1).astype(np.float32, copy=False)
    tiny = np.finfo(np.float32).tiny
    if activation == "softmax":
        return np.log(np.maximum(table, tiny))
    if activation == "sigmoid":
        return np.log(np.maximum(table, tiny)) - np.log(np.maximum(1 - table, np.finfo(np.float32).eps))
    return table


def _finer(
    file: File,
    wanted: Targets,
    class_ids: NDArray[np.int64],
    logits: NDArray[np.float32],
    scores: NDArray[np.float32],
) -> tuple[Targets, NDArray[np.float32]]:
    """The rows with the weights that follow from the scores, and the differences that these weigh."""
    seed = targets.own_seed(file.record.score)
    sizes = [n if isinstance(n, int) else -1 for n in seed.shape[1:]]
    feeds, scores = list(wanted.feeds or ({},) * len(class_ids)), scores.copy()
    for row, finer in enumerate(wanted.finer):
        if finer is not None:
            weights, scores[row] = targets.finer_weights(logits[row], int(class_ids[row]), finer)
            feeds[row] = {**feeds[row], seed.input: weights.reshape(sizes)}
    return replace(wanted, feeds=tuple(feeds), finer=()), scores


def _maps(
    file: File, feeds: Mapping[str, Any], asked: Targets, run: Rows, request: Request
) -> dict[str, Maps]:
    """Per layer its raw maps (R, ...grid)."""
    method, fused = request.method, request.fused
    maps: dict[str, Maps] = {}
    if fused is not None:
        return {" + ".join(fused.layers) or INPUT: run.arrays[fused.output].astype(np.float32, copy=False)}
    for layer in request.layers or (None,):
        if method.runs:
            given = _runners(file, feeds, asked, run, layer, request)
        else:
            given = {k: run.arrays[name] for k, name in (_tensors(layer, method) if layer else {}).items()}
        if request.channels is not None:
            given = {
                k: _chosen(t, request.channels, layer.name if layer else "", axis=0 if method.runs else 1)
                for k, t in given.items()
            }
        if "noisy" in method.needs:
            given["noisy"] = _moments(file, feeds, asked, request, layer)
        made = _of_runs(given, request) if method.runs else _of_arrays(given, request)
        name = INPUT if layer is None else layer.name
        maps[name] = _checked(made, given, len(asked.image_index), name, request)
    return maps


def _of_arrays(given: Mapping[str, Any], request: Request) -> NDArray[Any]:
    """The maps of a method of arrays, which knows images: signals are one row, slices below each other."""
    method = request.method
    grid = next(t.shape[2:] for t in given.values() if isinstance(t, np.ndarray))

    def flat(t: Any) -> Any:
        return (
            t.reshape(*t.shape[: -len(grid)], math.prod(grid[:-1]), grid[-1])
            if isinstance(t, np.ndarray)
            else t
        )

    tensors = {
        k: (lambda *a, t=t, **kw: flat(t(*a, **kw))) if callable(t) else flat(t) for k, t in given.items()
    }
    if request.smoothing.eigen:
        if method.products is None:
            raise MethodError(
                f"The maps of '{method.name}' are no sum of weighted channels, so there is nothing for eigen "
                "smoothing to project. It is for gradcam, gradcam++, hirescam, layercam and their like."
            )
        inputs = [tensors[n] for n in method.needs]
        made = projection.first_component(method.products(*inputs, **request.options))
    else:
        made = method(**tensors, **request.options)
    made = np.asarray(made, np.float32)
    whole = (*made.shape[:1], math.prod(grid[:-1]), grid[-1])
    return made.reshape(*made.shape[:1], *grid) if made.shape == whole else made


def _part(
    file: File, feeds: Mapping[str, Any], wanted: Targets, part: slice
) -> tuple[dict[str, Any], Targets]:
    """The inputs and the rows of some of the images."""
    count = shape_of(feeds[file.image.name])[0]
    arrays = {name: on_host(value) for name, value in feeds.items()}
    some = {n: a[part] if a.ndim and len(a) == count else a for n, a in arrays.items()}
    inside = (wanted.image_index >= part.start) & (wanted.image_index < part.stop)
    return some, wanted.rows(inside, part.start)


def _of_runs(given: Mapping[str, Any], request: Request) -> NDArray[Any]:
    """The maps of a method that runs the model, for the rows of one image."""
    if request.smoothing.eigen:
        raise MethodError(
            f"The maps of '{request.method.name}' come from runs of the model, so there is nothing for eigen "
            "smoothing to project. It is for gradcam, gradcam++, hirescam, layercam and their like."
        )
    return np.asarray(request.method(**given, **request.options), np.float32)


def _runners(
    file: File, feeds: Mapping[str, Any], asked: Targets, run: Rows, layer: Layer | None, request: Request
) -> dict[str, Any]:
    """What a method that runs the model is given: its needs, of one image."""
    needs = request.method.needs
    score = file.record.score
    table = score.task in ("classification", "regression") and score.output in file.own_outputs
    copies = Copies(asked, score, table, file.max_batch, request.passes)
    given: dict[str, Any] = {}
    if "masked" in needs:
        given["masked"] = Scorer(file.session, feeds, file.image, file.channels, copies)
        if not given["masked"].sides:
            raise MethodError(
                f"The method '{request.method.name}' hides places of the input, and '{file.image.name}', "
                f"{file.image}, has none: it is for images, signals and volumes."
            )
    if layer is None:
        return given
    tensor = run.arrays[layer.activations]
    if not np.isfinite(tensor).all():
        raise TensorError(
            f"The activations of the layer '{layer.name}' hold NaN or infinity: the model overflows there. A "
            "float16 model may need its float32 version."
        )
    if "tail" in needs:
        tail = file.tail(layer.name)
        known = next(t for t in file.record.tails if t.layer == layer.name)
        tensor = rows_of(tensor, known.rows, np.zeros(1, np.int64))
        sides = {s.name: rows_of(run.arrays[s.name], s.rows, np.zeros(1, np.int64)) for s in known.sides}
        given["tail"] = TailScorer(tail, tensor, sides, copies)
        tensor = channels_first(tensor, layer.layout)
    given["activations"] = tensor[0]
    return given


def _moments(
    file: File, feeds: Mapping[str, Any], asked: Targets, request: Request, layer: Layer | None
) -> Callable[..., Maps]:
    """See ``noisy`` of :data:`onnxcam.methods.NEEDS`."""
    if layer is None:
        raise MethodError(f"The method '{request.method.name}' needs a layer.")

    def noisy(samples: int, sigma: float, seed: int = 0) -> Maps:
        x = on_host(feeds[file.image.name])
        total: Any = 0.0
        for k in range(samples):
            fed = {**feeds, file.image.name: smoothing.noisy(x, sigma, seed + k)}
            layouts = {layer.gradients: layer.layout}
            run = _rows(file, fed, asked, [layer.gradients], layouts, request.passes)
            g = run.arrays[layer.gradients]
            if request.channels is not None:
                g = g[:, list(request.channels)]
            total = total + np.stack([g, g**2, g**3]) / np.float32(samples)
        moments: Maps = total
        return moments

    return noisy


def _chosen(tensor: Any, channels: tuple[int, ...], layer: str, axis: int) -> Any:
    if not isinstance(tensor, np.ndarray):
        return tensor
    count = tensor.shape[axis]
    wrong = [c for c in channels if not -count <= c < count]
    if wrong:
        raise MethodError(f"The layer '{layer}' has no channel {wrong[0]}: it has {count}, 0 to {count - 1}.")
    return np.take(tensor, channels, axis)


def _checked(made: NDArray[Any], given: Mapping[str, Any], count: int, layer: str, request: Request) -> Maps:
    """The maps, if they are what a method gives: one per row, on the layer's grid or of its own choice."""
    tensor = next((t for t in given.values() if isinstance(t, np.ndarray)), None)
    free = request.method.runs or tensor is None
    wanted = (count, *(made.shape[1:] if free or tensor is None else tensor.shape[2:]))
    if made.shape != wanted:
        raise MethodError(
            f"The method '{request.method.name}' gave maps of the shape {made.shape} "
            f"for the layer '{layer}', not {wanted}."
        )
    return made
