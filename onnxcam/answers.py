"""What a file answers for the rows of a call: its outputs, the layers' tensors, and what was explained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import many, rows, targets
from .contract import (
    BOX,
    CHOSEN_BOX,
    CHOSEN_REGION,
    CLASS,
    EMBEDDING,
    REFERENCE,
    REGION,
    SCORE,
    TOP_CLASS,
    Layer,
    Layout,
)
from .errors import BadTail, TensorError
from .feeds import shape_of
from .methods import Method
from .perturbation import Passes
from .request import File, Request
from .rows import Rows
from .targets import Targets

_log = logging.getLogger("onnxcam")

NO_CLASS = -1  #: the class of a row that is of none


@dataclass(frozen=True)
class Answer:
    """What the file says of some rows.

    Attributes:
        run: its outputs, and what the method reads of the layers.
        targets: the rows as they are explained, with the weights that followed from the scores.
        class_ids: (R,) int64, -1 for a row of no one class.
        scores: (R,) float32.
    """

    run: Rows
    targets: Targets
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]


def answer(file: File, feeds: Mapping[str, Any], wanted: Targets, request: Request, layered: bool) -> Answer:
    """One run of the rows; ``layered``: with the layers' tensors."""
    found = run(file, feeds, wanted, request, layered)
    return Answer(found, wanted, *explained(file, found))


def run(
    file: File, feeds: Mapping[str, Any], wanted: Targets, request: Request, layered: bool = True
) -> Rows:
    """The file's outputs for the rows, and the layers' tensors that the method reads."""
    layouts, fetch = fetched(file, request, layered)
    return rows_of_targets(file, feeds, wanted, fetch, layouts, request.passes)


def fetched(file: File, request: Request, layered: bool = True) -> tuple[dict[str, Layout], list[str]]:
    """The layouts of the layers' tensors that the method reads, and the names of all that is fetched."""
    layers = request.layers if layered else ()
    layouts = {name: layer.layout for layer in layers for name in tensors(layer, request.method).values()}
    fetch = [*file.own_outputs, *file.told, *layouts]
    if request.fused is not None and layered:
        fetch.append(request.fused.output)
    if "tail" in request.method.needs:  # which takes the tensors as the layers have them
        layouts = {}
        fetch += [side for layer in layers for side in file.tail(layer.name).sides]
    return layouts, list(dict.fromkeys(fetch))


def rows_of_targets(
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


def tensors(layer: Layer, method: Method) -> dict[str, str]:
    """The outputs of ``layer`` that ``method`` reads."""
    names = {"activations": layer.activations, "gradients": layer.gradients}
    return {kind: names[kind] for kind in method.needs if kind in names}


def explained(file: File, run: Rows) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
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


#: What the file chose, by the input that would have said it.
_CHOSEN = {BOX: CHOSEN_BOX, REGION: CHOSEN_REGION}


def pinned(told: Answer, own: bool = False) -> Targets:
    """The rows with what the file chose for them, so that a changed image is asked the same.

    Args:
        told: of the unchanged images.
        own: an embedding without a reference is compared with that of the unchanged image.
    """
    arrays, wanted = told.run.arrays, told.targets
    feeds = []
    for row, given in enumerate(wanted.feeds or ({},) * len(told.class_ids)):
        chosen = {name: arrays[of][row] for name, of in _CHOSEN.items() if of in arrays}
        if own and EMBEDDING in arrays:
            given = {REFERENCE: arrays[EMBEDDING][row], **given}
        feeds.append({**given, **chosen})
    class_index = np.where(told.class_ids < 0, wanted.class_index, told.class_ids)
    return replace(wanted, class_index=class_index, feeds=tuple(feeds) if any(feeds) else ())
