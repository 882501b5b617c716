"""The low-level front door: gradients of any value with respect to any other."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...errors import ModelError, UnknownLayer, nearest
from .builder import HALF, Builder, dims_of
from .engine import differentiate, prune, shape_unknown

MINIMUM_OPSET = 18


def add_gradients(model: ir.Model, of: str, wrt: Sequence[str], seed: str = "seed") -> dict[str, str]:
    """Add the gradient of a value to a graph, in place.

    Adds the graph input ``seed``, the cotangent in the shape and dtype of ``of``, and one graph output
    for each entry of ``wrt``: d sum(of * seed) / d wrt, in its shape and dtype.

    Args:
        model: a model in normal form (:func:`onnxcam.export.normalize`): opset 18 or newer, functions
            inlined, shapes inferred.
        of: the value to differentiate.
        wrt: graph inputs, initializers or intermediate values.
        seed: the name of the new graph input.

    Returns:
        The name of the gradient's graph output for each entry of ``wrt``.

    Raises:
        UnknownLayer: no value of that name.
        LayerNotOnPath: ``of`` does not depend on one of them.
        NoGradientRule: operators on the way cannot be differentiated; all are listed.
        ModelError: the opset is below 18.
    """
    graph = model.graph
    opset = graph.opset_imports.get("", 0)
    if opset < MINIMUM_OPSET:
        raise ModelError(
            f"add_gradients needs opset {MINIMUM_OPSET} or newer, and the model has {opset}. "
            "Convert it with `onnxcam.export.normalize(model)`."
        )
    values = named_values(graph)
    for name in (of, *wrt):
        if name not in values:
            raise UnknownLayer(f"The graph has no value named {name!r}.{nearest(name, list(values))}")
    if seed in values:
        raise ModelError(f"The graph has a value named {seed!r} already: choose another name for the seed.")
    op = Builder(graph, shape_unknown)
    score = values[of]
    dims = dims_of(score)
    cotangent = ir.Value(
        name=op.unique(seed),
        type=ir.TensorType(score.dtype or ir.DataType.FLOAT),
        shape=None if dims is None else ir.Shape(dims),
    )
    graph.inputs.append(cotangent)
    try:
        gradients = differentiate(op, {score: op.wrap(cotangent)}, [values[name] for name in wrt], of)
    except Exception:
        prune(op)  # nothing of ours is used yet: all of it goes
        graph.inputs.remove(cotangent)
        raise
    names = {}
    for name in wrt:
        value, gradient = values[name], gradients[values[name]]
        if value.dtype in HALF and gradient.value.dtype == ir.DataType.FLOAT:  # it came through float32
            gradient = op.cast(gradient, value.dtype)
        names[name] = op.unique(f"{name}.gradient")
        graph.outputs.append(op.output(gradient, names[name], values[name]))
    prune(op)
    return names


def named_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Every value of the main graph by name."""
    values = {v.name: v for v in graph.inputs if v.name}
    values |= {name: v for name, v in graph.initializers.items() if name}
    values |= {v.name: v for node in graph for v in node.outputs if v.name}
    return values
