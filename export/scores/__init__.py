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
        ScoreError: unknown, several and none named, not floating-point, not of the task's shape, or fields
            that the task does not have.
    """
    spec = as_spec(score, probability)
    task = spec.task or _task(graph, spec)
    _refuse_fields_of_others(spec, task)
    first = str(labels[0]).strip("_ ").casefold() if labels else ""
    if task == "segmentation" and spec.background is None and first == "background":
        spec = dataclasses.replace(spec, background=0)
    found = _FINDERS[task](graph, spec)
    return with_seeds(graph, found, spec)


#: The fields of a :class:`ScoreSpec` that not every task has, and the tasks that have them.
_OF_TASKS: dict[str, tuple[Task, ...]] = {
    "head": ("detection",),
    "boxes": ("detection",),
    "box_units": ("detection",),
    "background": ("segmentation",),
    "rest": ("classification",),
    "probability": ("classification", "regression", "segmentation"),
}


def _refuse_fields_of_others(spec: ScoreSpec, task: Task) -> None:
    for name, tasks in _OF_TASKS.items():
        value = getattr(spec, name)
        if value is None or value is False or task in tasks:
            continue
        if name == "probability" and isinstance(spec.seed, tuple):
            continue  # it is of the outputs that take weights, too
        raise ScoreError(
            f"There is no `{name}` (`--{name.replace('_', '-')}`) of the task '{task}', which this score "
            f"is taken for; it belongs to {' and '.join(tasks)}. Leave it out, or name the task that the "
            f"model does: `task={tasks[0]!r}` (`--task {tasks[0]}`)."
        )


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
