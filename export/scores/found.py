"""What the tasks share: what is asked for, what is found, and how an output is looked up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir

from ...contract import Score, Task
from ...errors import ScoreError, nearest
from ..gradients.builder import Builder, Var, dims_of
from ..gradients.definitions.registry import MICROSOFT
from ..gradients.quantized import in_real_numbers

#: What may stand between a logit, its activation and the output: the same numbers in another shape or type.
SAME_NUMBERS = frozenset("Identity Reshape Flatten Squeeze Unsqueeze Cast Dropout".split())
_ACTIVATIONS = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
    "QLinearSoftmax": "softmax",
    "QLinearSigmoid": "sigmoid",
}
_ROUNDING = frozenset(("QuantizeLinear", "DequantizeLinear"))

HeadName = Literal["yolov5", "yolov8", "yolov10", "yolox", "detr", "rtdetr", "nms"]
Units = Literal["pixels", "shares"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class ScoreSpec:
    """Which score of a model to explain.

    Attributes:
        output: a graph output, or any tensor; may be left out if there is only one to choose.
        task: what the output is; None: told by its shape.
        probability: explain the probability, not the logit before a final softmax or sigmoid.
        seed: let callers give the weights of any linear functional at run time: of the score (True), or
            of the named outputs. A class is then no longer a row of the classifier's weights but a
            product with all of them.
        head: how a detector keeps its boxes; see :mod:`onnxcam.export.scores.detection`.
        background: a segmentation's class that is nobody's top class; None: 0 if it is labelled so.
        boxes: the output with a detector's boxes, where it has one of its own; None: found by its shape.
        box_units: ``pixels`` of the model's input, or ``shares`` of it; None: as the head has them.
        rest: of a classification, explain the residual softmax score y + log softmax(y) (ReST: Cai, "CAMs as
            Shapley Value-based Explainers", 2025) instead of the logit y.
    """

    output: str | None = None
    task: Task | None = None
    probability: bool = False
    seed: bool | tuple[str, ...] = False
    head: HeadName | None = None
    background: int | None = None
    boxes: str | None = None
    box_units: Units | None = None
    rest: bool = False


@dataclass(frozen=True)
class Choice:
    """The score that the graph chooses where the caller gives no weights.

    Attributes:
        seeds: for each differentiated value its cotangent.
        score: (N,) what is explained, in float32.
        classes: (N,) int64: of which class; None where there are none.
        further: other outputs by name.
    """

    seeds: dict[ir.Value, Var]
    score: Callable[[], Var]
    classes: Callable[[], Var] | None = None
    further: dict[str, Var] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundScore:
    """A score and the values that are differentiated.

    Attributes:
        score: for the record.
        values: those that the score is made of; the first is ``score.tensor``.
        choose: builds the choice.
        told: whether the file's own outputs tell class and score, so that it needs none of ours.
        seeded: the values that take weights at run time, in the order of ``score.seeds``.
    """

    score: Score
    values: tuple[ir.Value, ...]
    choose: Callable[[Builder], Choice]
    told: bool = False
    seeded: tuple[ir.Value, ...] = ()

    @property
    def value(self) -> ir.Value:
        """The first of the values."""
        return self.values[0]


def as_spec(score: str | Mapping[str, Any] | ScoreSpec | None, probability: bool = False) -> ScoreSpec:
    """An output's name, the fields of a :class:`ScoreSpec`, or one, as a :class:`ScoreSpec`.

    Raises:
        ScoreError: an unknown field, task or head.
    """
    if isinstance(score, ScoreSpec):
        spec = score
    elif isinstance(score, Mapping):
        known = [f.name for f in dataclasses.fields(ScoreSpec)]
        for name in score:
            if name not in known:
                raise ScoreError(
                    f"A score has no field {name!r}.{nearest(str(name), known)} It has {', '.join(known)}."
                )
        given = dict(score)
        if isinstance(given.get("seed"), (str, list)):
            given["seed"] = (given["seed"],) if isinstance(given["seed"], str) else tuple(given["seed"])
        spec = ScoreSpec(**given)
    else:
        spec = ScoreSpec(output=score)
    for what, value, choices in (
        ("task", spec.task, TASKS),
        ("head", spec.head, get_args(HeadName)),
        ("unit of boxes", spec.box_units, get_args(Units)),
    ):
        if value is not None and value not in choices:
            raise ScoreError(
                f"There is no {what} {value!r}.{nearest(str(value), list(choices))} "
                f"There are {', '.join(choices)}."
            )
    return dataclasses.replace(spec, probability=True) if probability else spec


def find_tensor(graph: ir.Graph, name: str | None) -> ir.Value:
    """A graph output or inner tensor by name; the only floating-point output without one.

    What an ArgMax made whole numbers of stands for the scores that went into it.

    Raises:
        ScoreError: unknown, several and none named, or not floating-point.
    """
    listed = ", ".join(f"{v.name!r} {list(dims_of(v) or ())}" for v in graph.outputs)
    if name is not None:
        outputs = [v for v in graph.outputs if v.name]
        found = next((v for v in outputs if v.name == name), None) or _inner(graph, name)
        if found is None:
            raise ScoreError(
                f"The model has no output {name!r}.{nearest(name, [v.name or '' for v in outputs])} "
                f"Its outputs: {listed}."
            )
        source = _before_arg_max(found)
        if not _is_float(source):
            raise ScoreError(f"The output {name!r} is not floating-point, so it has no gradient.")
        return source
    floats = [v for v in graph.outputs if _is_float(v)]
    if not floats:
        floats = [s for v in graph.outputs if _is_float(s := _before_arg_max(v))]
    if not floats:
        raise ScoreError(f"The model has no floating-point output to explain. Its outputs: {listed}.")
    if len(floats) > 1:
        raise ScoreError(
            f"The model has {len(floats)} outputs; name the one to explain with `score=` (`--score`). "
            f"They are: {listed}."
        )
    return floats[0]


def logit(value: ir.Value) -> tuple[str | None, ir.Value]:
    """The final activation, if there is one, and what goes into it, in real numbers."""
    at = value
    while (node := at.producer()) is not None and node.domain in ("", MICROSOFT):
        source = node.inputs[0] if node.inputs else None
        if source is None:
            break
        if node.op_type in _ACTIVATIONS:
            return _ACTIVATIONS[node.op_type], in_real_numbers(source)
        if node.op_type not in SAME_NUMBERS | _ROUNDING:
            break
        at = source
    return None, value


def optional_input(op: Builder, name: str, default: np.ndarray[Any, Any]) -> Var:
    """A graph input that need not be fed: an initializer with open dims."""
    tensor = ir.tensor(default, name=name)
    # Symbols of its own: the default has one entry along every axis, whatever the model's sizes and whatever
    # is fed to the other inputs. ONNX Runtime shares memory between tensors whose symbols are the same.
    dims = tuple(f"{name}.{axis}" for axis in ("N", "a", "b", "c", "d", "e")[: default.ndim])
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(dims), const_value=tensor)
    op.graph.inputs.append(value)
    op.graph.register_initializer(value)
    return op.wrap(value)


def rows(op: Builder, x: Var) -> Var:
    """(N, ...) as (N, K), K the product of all other sizes."""
    if x.rank == 1:
        return op.Unsqueeze(x, [1], dims=(*x.shape, 1))
    return x if x.rank == 2 else op.Reshape(x, [0, -1], dims=(x.shape[0], _product(x.shape[1:])))


def arg_max(op: Builder, x: Var, axis: int) -> Var:
    """The index of the first largest entry along an axis, which goes."""
    dims = tuple(d for k, d in enumerate(x.shape) if k != axis)
    return op.ArgMax(x, axis=axis, keepdims=0, dims=dims)


def pick_row(op: Builder, table: Var, index: Var) -> Var:
    """Entry ``index`` (N,) along axis 1 of a table (N, A, C): (N, C)."""
    n, _, c = table.shape
    size = op.Concat([1, 1], op.Shape(table, start=2), axis=0)
    at = op.Expand(op.Unsqueeze(index, [1, 2], dims=(n, 1, 1)), size)
    return op.Squeeze(op.GatherElements(table, at, axis=1, dims=(n, 1, c)), [1], dims=(n, c))


def pick(op: Builder, table: Var, index: Var) -> Var:
    """Entry ``index`` (N,) of each row of a table (N, A): (N,)."""
    n = table.shape[0]
    at = op.Unsqueeze(index, [1], dims=(n, 1))
    return op.Squeeze(op.GatherElements(table, at, axis=1, dims=(n, 1)), [1], dims=(n,))


def hot(op: Builder, index: Var, like: Var, axis: int) -> Var:
    """1 at each row's index along an axis of ``like``, else 0; size 1 along the others but the first."""
    shape = tuple(d if k in (0, axis) else 1 for k, d in enumerate(like.shape))
    column = op.Unsqueeze(index, [*range(1, like.rank)], dims=(like.shape[0], *[1] * (like.rank - 1)))
    counted, behind = op.iota(like, axis), like.rank - 1 - axis
    if behind:
        counted = op.Unsqueeze(counted, [*range(1, behind + 1)], dims=(like.shape[axis], *[1] * behind))
    return op.cast(Var(op.Equal(column, counted).value, op, shape), like.dtype)


def given(op: Builder, x: Var) -> Var:
    """(N, 1) bool: whether each row of an input that is NaN where it was not fed was fed."""
    first = op.Reshape(x, [0, -1], dims=(x.shape[0], None)) if x.rank != 2 else x
    return op.Not(op.IsNaN(op.slice(first, [0], [1], [1])))


def _product(dims: tuple[Any, ...]) -> int | None:
    known = [d for d in dims if isinstance(d, int)]
    return int(np.prod(known)) if len(known) == len(dims) else None


def _inner(graph: ir.Graph, name: str) -> ir.Value | None:
    return next((v for node in graph for v in node.outputs if v.name == name), None)


def _before_arg_max(value: ir.Value) -> ir.Value:
    at = value
    while (node := at.producer()) is not None and not node.domain and node.inputs[0] is not None:
        if node.op_type == "ArgMax":
            return node.inputs[0]
        if node.op_type not in SAME_NUMBERS:
            break
        at = node.inputs[0]
    return value


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
