"""Targets whose weights follow from the scores (Finer-CAM): the scores are asked for first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import many, rows, targets
from .answers import Answer, explained, fetched, logits_of, run
from .contract import TOP_CLASS
from .errors import BadTail
from .feeds import shape_of
from .request import File, Request
from .rows import Rows
from .targets import Targets

_log = logging.getLogger("onnxcam")


def answer(file: File, feeds: Mapping[str, Any], wanted: Targets, request: Request, layered: bool) -> Answer:
    """What the file says of rows whose weights follow from the scores, which it is asked for first.

    Args:
        file: open.
        feeds: {input: checked array or device tensor}, of images that one run takes.
        wanted: the rows.
        request: the method and how.
        layered: whether the layers' tensors are read, too.
    """
    if layered:
        layers = many.layers_of(file.record, fetched(file, request)[1])
        found = _by_tails(file, feeds, wanted, request, layers) if layers else None
        if found is not None:
            return found
    told = run(file, feeds, wanted, request, layered=False)
    class_ids, scores = explained(file, told)
    logits = logits_of(file.record.score.activation, told.arrays[file.record.score.output])
    weighed, scores = _weighed(file, wanted, class_ids, logits, scores)
    if layered:
        told = run(file, feeds, weighed, request)
    return Answer(told, weighed, class_ids, scores)


def _by_tails(
    file: File, feeds: Mapping[str, Any], wanted: Targets, request: Request, layers: Sequence[str]
) -> Answer | None:
    """The same, where the whole file runs once for each image, and tells the weights that the tails need."""
    layouts, fetch = fetched(file, request)
    index, count = wanted.image_index, shape_of(feeds[file.image.name])[0]
    top = Targets(np.arange(count), np.full(count, TOP_CLASS))
    try:
        tails = [file.tail(layer) for layer in layers]
        asked = [name for name in fetch if name not in {t.layer.gradients for t in tails}]
        asked = list(dict.fromkeys([*asked, *many.read_by(tails)]))
        whole = rows.run(file.session, feeds, top, asked, {}, file.image, file.max_batch)
        best, _ = explained(file, whole)
        class_ids = np.where(wanted.class_index == TOP_CLASS, best[index], wanted.class_index)
        logits = logits_of(file.record.score.activation, whole.arrays[file.record.score.output])[index]
        weighed, differences = _weighed(file, wanted, class_ids, logits, np.zeros(len(index), np.float32))
        none = np.empty(0, np.int64)
        arrays = many.completed(
            file.session, tails, whole.arrays, weighed, count, none, fetch, layouts, file.max_batch
        )
    except BadTail as e:
        _log.warning("%s Going on without it: the whole file runs twice.", e)
        return None
    request.passes.model += count
    request.passes.tail += len(index)
    told = Rows(arrays, weighed, count)
    own_ids, own_scores = explained(file, told)
    finer = np.array([one is not None for one in wanted.finer])
    ids, scores = np.where(finer, class_ids, own_ids), np.where(finer, differences, own_scores)
    return Answer(told, weighed, ids, scores)


def _weighed(
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
