"""The cosine similarity of an embedding to a reference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...contract import EMBEDDING, REFERENCE, Score
from ...errors import ScoreError
from ..gradients.builder import Builder, dims_of
from .found import Choice, FoundScore, ScoreSpec, find_tensor, given, optional_input, rows


def find(graph: ir.Graph, spec: ScoreSpec) -> FoundScore:
    """See :func:`onnxcam.export.scores.find_score`.

    Without a reference the score is the embedding's length, whose gradient is its own direction: what an
    image is recognised by, not what it has in common with another.
    """
    value = find_tensor(graph, spec.output)
    dims = dims_of(value)
    if dims is None or len(dims) < 2:
        raise ScoreError(
            f"The embedding {value.name!r} has shape {'unknown' if dims is None else list(dims)}; "
            "an embedding is [N, D]. Name another output with `score=`."
        )

    def choose(op: Builder) -> Choice:
        nothing = np.full((1, 1), np.nan, dtype=np.float32)
        e = rows(op, op.single(op.wrap(value)))
        reference = op.cast(optional_input(op, REFERENCE, nothing), e.dtype)
        fed = given(op, reference)
        r = op.where(fed, reference, e)
        length = op.node("ReduceL2", [e, [1]], {"keepdims": 1}, (e.shape[0], 1))
        unit = e / op.Max(length, op.operand(_TINY, e), dims=length.dims)
        r_length = op.node("ReduceL2", [r, [1]], {"keepdims": 1}, (e.shape[0], 1))
        r_unit = r / op.Max(r_length, op.operand(_TINY, e), dims=length.dims)
        cosine = op.sum(unit * r_unit, [1])
        slope = (r_unit - cosine * unit) / op.Max(length, op.operand(_TINY, e), dims=length.dims)
        seed = op.reshape_like(op.where(fed, slope, unit), op.wrap(value))
        score = op.where(fed, cosine, length)
        return Choice(
            {value: seed},
            lambda: op.cast(op.Squeeze(score, [1], dims=e.shape[:1]), ir.DataType.FLOAT),
            further={EMBEDDING: op.cast(e, ir.DataType.FLOAT)},
        )

    record = Score(output=spec.output or value.name or "", tensor=value.name or "", task="embedding")
    return FoundScore(record, (value,), choose)


_TINY = 1e-6  #: below it an embedding has no direction; float16 can hold it
