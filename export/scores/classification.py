"""One entry of a vector: the logit of a class, or a regressed number, of a tensor of any shape."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ...contract import CLASS_INDEX, TOP_CLASS, Score
from ...errors import ScoreError
from ..gradients.builder import Builder, Dims, dims_of
from .found import (
    Choice,
    FoundScore,
    ScoreSpec,
    arg_max,
    find_tensor,
    logit,
    optional_input,
    pick,
    rows,
)


def find(graph: ir.Graph, spec: ScoreSpec) -> FoundScore:
    """See :func:`onnxcam.export.scores.find_score`."""
    chosen = find_tensor(graph, spec.output)
    name = spec.output or chosen.name or ""
    activation, value = logit(chosen)
    if spec.probability:
        value = chosen
    dims = dims_of(value) or dims_of(chosen)
    anything = bool(spec.seed) or spec.task == "regression"  # then its entries are counted row by row
    if dims is None or not (one_per_class(dims) or (anything and dims)):
        shape = "unknown" if dims is None else str(list(dims))
        raise ScoreError(
            f"The score {name!r} has shape {shape}; a class score has one number per class, [N, K]. "
            "Name another output with `score=`, or say with `task=` what it is: segmentation, detection, "
            "embedding."
        )
    sizes = [d for d in dims[1:] if isinstance(d, int)]
    classes = math.prod(sizes) if len(sizes) == len(dims) - 1 else None

    def choose(op: Builder) -> Choice:
        index = optional_input(op, CLASS_INDEX, np.asarray([TOP_CLASS], dtype=np.int64))
        # The top class is that of the output, not of the logit behind it: where a softmax saturates and
        # ties, the class that a caller reads off the output is the class that is explained.
        score, output = op.single(op.wrap(value)), op.single(op.wrap(chosen))
        table = rows(op, output)
        wanted = op.Where(index < 0, arg_max(op, table, 1), index, dims=table.shape[:1])
        logits = rows(op, score)
        told, seed = table, op.one_hot(wanted, logits)
        if spec.rest:  # d(y_c + log softmax(y)_c)/dy = 2 [k = c] - softmax(y)
            told = logits + op.LogSoftmax(logits, axis=1, dims=logits.dims)
            seed = 2 * seed - op.Softmax(logits, axis=1)
        return Choice(
            {value: op.reshape_like(seed, score)},
            lambda: op.cast(pick(op, told, wanted), ir.DataType.FLOAT),
            lambda: wanted,
        )

    if spec.rest and spec.probability:
        raise ScoreError(
            "The residual softmax score (rest) is made of a classifier's logits: leave `probability` out."
        )
    record = Score(
        output=name,
        tensor=value.name or "",
        activation=activation,  # type: ignore[arg-type]
        probability=spec.probability,
        classes=classes,
        task=spec.task or "classification",
        rest=spec.rest,
    )
    told = chosen.is_graph_output() and chosen.name == name and not spec.rest
    return FoundScore(record, (value,), choose, told=told)


def one_per_class(dims: Dims) -> bool:
    """Whether a tensor holds one number per class: (N,), (N, K) or (N, K, 1, ...)."""
    return len(dims) >= 1 and all(d == 1 for d in dims[2:])
