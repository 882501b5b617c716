"""What is explained: a score found in the graph, and the seed that its gradient starts from.

A task is one module with one function ``find(graph, spec) -> FoundScore``, entered in :data:`_FINDERS`.
What it returns knows the values to differentiate and builds their cotangents, and with them the inputs that
the caller may feed (:data:`onnxcam.contract.CHOICES`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ...contract import Task
from ...errors import ScoreError
from ..gradients.builder import dims_of
from . import classification, detection, embedding, segmentation
from .found import SAME_NUMBERS, Choice, FoundScore, ScoreSpec, as_spec, find_tensor
from .seeds import with_seeds

_FINDERS: dict[Task, Callable[[ir.Graph, ScoreSpec], FoundScore]] = {
    "classification": classification.find,
    "regression": classification.find,
    "segmentation": segmentation.find,
    "detection": detection.find,
    "embedding": embedding.find,
}


def find_score(
    graph: ir.Graph,
    score: str | Mapping[str, Any] | ScoreSpec | None = None,
    probability: bool = False,
    labels: Sequence[str] | None = None,
) -> FoundScore:
    """The score of a model.

    Args:
        graph: in normal form.
        score: an output, the fields of a :class:`ScoreSpec`, or one. Without a task, one number per class is
            a classification, one map per class (or one alone) a segmentation, and boxes that go into a
            NonMaxSuppression a detection.
        probability: see :class:`ScoreSpec`.
        labels: the classes' names; the first may be that of a background.

    Raises:
        ScoreError: unknown, several and none named, not floating-point, or not of the task's shape.
    """
    spec = as_spec(score, probability)
    if spec.background is None and labels and str(labels[0]).strip("_ ").casefold() == "background":
        spec = dataclasses.replace(spec, background=0)
    task = spec.task or _task(graph, spec)
    if spec.rest and task != "classification":
        raise ScoreError(f"The residual softmax score (rest) is of classifiers; the task is {task}.")
    found = _FINDERS[task](graph, spec)
    return with_seeds(graph, found, spec)


def _task(graph: ir.Graph, spec: ScoreSpec) -> Task:
    """What the shape of the score tells."""
    if spec.head is not None:
        return "detection"
    if spec.output is None and any(n.op_type == "NonMaxSuppression" for n in graph):
        return "detection"
    dims = dims_of(find_tensor(graph, spec.output))
    if dims is not None and (
        segmentation.class_axis(graph, dims) is not None or segmentation.is_map(graph, dims)
    ):
        return "segmentation"
    return "classification"


__all__ = ["SAME_NUMBERS", "Choice", "FoundScore", "ScoreSpec", "as_spec", "find_score"]
