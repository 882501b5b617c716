"""From inputs to raw maps: what a method needs is run for, and handed to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import answers, finer, projection, rows, smoothing
from .answers import pinned
from .contract import Layer
from .errors import MethodError, TensorError
from .feeds import shape_of
from .grids import channels_first
from .methods import Method
from .perturbation import Copies, Scorer, TailScorer, on_host
from .request import File, Request
from .rows import Rows
from .smoothing import Change
from .tail import rows_of
from .targets import Targets

Maps: TypeAlias = NDArray[np.float32]
INPUT = "input"  #: what the maps are called that methods without a layer give


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
    finely = any(wanted.finer)
    whole = rows.images_in_one_run(feeds, file.image, file.max_batch) if finely else count
    size = 1 if request.method.runs else whole
    if count > size:  # image by image, or as many as one run takes
        parts = [_part(file, feeds, wanted, part) for part in rows.batches(count, size)]
        return joined([find(file, *part, request) for part in parts])
    plain = request.smoothing.groups == ((Change(),),)
    told = (finer.answer if finely else answers.answer)(file, feeds, wanted, request, layered=plain)
    alone = plain and _is_plain(request.method)
    asked = told.targets if alone else pinned(told, own=request.method.runs)
    if plain:
        groups: tuple[dict[str, Maps], ...] = (_maps(file, feeds, asked, told.run, request),)
    else:
        groups = tuple(_mean_of(file, feeds, asked, request, group) for group in request.smoothing.groups)
    kept = {k: v for k, v in told.run.arrays.items() if k in file.own_outputs or k in file.told}
    return Evidence(replace(told.run, arrays=kept), told.class_ids, told.scores, groups)


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
        run = answers.run(file, fed, rows_, request)
        for name, maps in _maps(file, fed, rows_, run, request).items():
            share = smoothing.undone(maps, change) / np.float32(len(group))
            total[name] = total[name] + share if name in total else share
    return total


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
            given = {
                k: run.arrays[name] for k, name in (answers.tensors(layer, method) if layer else {}).items()
            }
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
            run = answers.rows_of_targets(file, fed, asked, [layer.gradients], layouts, request.passes)
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
