"""Which tensor is the score: found from an output, walking back from a final softmax to the logit."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..contract import Score
from ..errors import ScoreError, nearest
from .gradients.builder import Dims, dims_of

#: What may stand between a logit, its activation and the output: the same numbers in another shape or type.
SAME_NUMBERS = frozenset("Identity Reshape Flatten Squeeze Unsqueeze Cast Dropout".split())
_ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}


@dataclass(frozen=True)
class FoundScore:
    """A score and the value that is differentiated."""

    score: Score
    value: ir.Value


def find_score(graph: ir.Graph, output: str | None = None, probability: bool = False) -> FoundScore:
    """The score of a classifier.

    Args:
        graph: in normal form.
        output: the graph output that holds one score per class; may be left out if there is only one.
        probability: differentiate the output itself, not the logit before its softmax or sigmoid.

    Returns:
        The score; its value is (N, K), or (N, K, 1, ...).

    Raises:
        ScoreError: unknown, several and none named, not floating-point, or not one number per class.
    """
    chosen = _output(graph, output)
    name = chosen.name or ""
    activation, value = _logit(chosen)
    if probability:
        value = chosen
    dims = dims_of(value)
    if dims is None:
        dims = dims_of(chosen)
    if dims is None or not _one_per_class(dims):
        shape = "unknown" if dims is None else str(list(dims))
        raise ScoreError(
            f"The score {name!r} has shape {shape}; a class score has one number per class, [N, K]. "
            "Name another output with `score=` (segmentation maps and detection heads need a score of "
            "their own: reduce them to [N, K] inside the model)."
        )
    classes = dims[1] if isinstance(dims[1], int) else None
    return FoundScore(
        Score(
            output=name,
            tensor=value.name or "",
            activation=activation,  # type: ignore[arg-type]
            probability=probability,
            classes=classes,
        ),
        value,
    )


def _output(graph: ir.Graph, output: str | None) -> ir.Value:
    floats = [v for v in graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
    listed = ", ".join(f"{v.name!r} {list(dims_of(v) or ())}" for v in graph.outputs)
    if output is not None:
        found = next((v for v in graph.outputs if v.name == output), None)
        if found is None:
            names = [v.name or "" for v in graph.outputs]
            raise ScoreError(
                f"The model has no output {output!r}.{nearest(output, names)} Its outputs: {listed}."
            )
        if found not in floats:
            raise ScoreError(f"The output {output!r} is not floating-point, so it has no gradient.")
        return found
    if not floats:
        raise ScoreError(f"The model has no floating-point output to explain. Its outputs: {listed}.")
    if len(floats) > 1:
        raise ScoreError(
            f"The model has {len(floats)} outputs; name the one to explain with `score=` (`--score`). "
            f"They are: {listed}."
        )
    return floats[0]


def _logit(output: ir.Value) -> tuple[str | None, ir.Value]:
    """The final activation, if there is one, and what goes into it."""
    value = output
    while (node := value.producer()) is not None and not node.domain:
        source = node.inputs[0] if node.inputs else None
        if source is None:
            break
        if node.op_type in _ACTIVATIONS:
            return _ACTIVATIONS[node.op_type], source
        if node.op_type not in SAME_NUMBERS:
            break
        value = source
    return None, output


def _one_per_class(dims: Dims) -> bool:
    return len(dims) >= 2 and all(d == 1 for d in dims[2:])
