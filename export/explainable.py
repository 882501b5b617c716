"""The rewrite itself: outputs for activations and gradients, the class input, and the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .._version import __version__
from ..contract import (
    CLASS_INDEX,
    KEY,
    PREFIX,
    TOP_CLASS,
    Layer,
    Preprocess,
    Record,
    Source,
    activations_name,
    gradients_name,
    read_record,
)
from ..errors import ModelError
from .gradients.builder import NODE_PREFIX, Builder, Var, dims_of
from .gradients.engine import differentiate, prune, shape_unknown
from .layers import linear_head
from .layouts import Layouts
from .score import FoundScore


def add_explanation(
    model: ir.Model,
    tensors: Mapping[str, ir.Value],
    known: Layouts,
    score: FoundScore,
    preprocess: Preprocess | None,
    labels: Sequence[str] | None,
    source: Source,
) -> Record:
    """Add the contract's inputs, outputs and record to a model, in place.

    Args:
        model: in normal form.
        tensors: the layers to explain: what each is called, and its value.
        known: the layouts of the graph's values.
        score: what is differentiated.
        preprocess: for the record, like the two that follow.
        labels: the classes' names in index order.
        source: where the model came from.

    Raises:
        NoGradientRule, LayerNotOnPath, ShapeUnknown: see
            :func:`onnxcam.export.gradients.engine.differentiate`.
        ModelError: the model has names that are ours.
    """
    graph = model.graph
    _refuse_our_names(graph)
    op = Builder(graph, shape_unknown)
    output = next(v for v in graph.outputs if v.name == score.score.output)
    seed = _seed(op, op.wrap(score.value), op.wrap(output))
    gradients = differentiate(
        op, {score.value: seed}, list(dict.fromkeys(tensors.values())), score.score.output
    )
    path_to_score = score.value
    layers = []
    for name, value in tensors.items():
        layout = known[value]
        dims = dims_of(value) or ()
        tensor = value.name or ""
        head = "gap-linear" if linear_head(graph, value, layout, path_to_score) else None
        outputs = op.unique(activations_name(name)), op.unique(gradients_name(name))
        layers.append(Layer(name, tensor, *outputs, layout, dims, head))  # type: ignore[arg-type]
    for layer, value in zip(layers, tensors.values(), strict=True):
        gradient = op.output(gradients[value], layer.gradients, value)
        graph.outputs.extend([_activations(op, value, layer.activations), gradient])
    prune(op)
    record = Record(
        layers=tuple(layers),
        score=score.score,
        preprocess=preprocess,
        labels=None if labels is None else tuple(labels),
        source=source,
        tool_version=__version__,
    )
    model.metadata_props[KEY] = record.to_json()
    return record


def strip(model: ir.Model) -> ir.Model:
    """Remove all that :func:`add_explanation` added, in place: the model in normal form.

    Raises:
        NotExplainable: there is no record.
    """
    record = read_record(model.metadata_props, "The model")
    graph = model.graph
    del model.metadata_props[KEY]
    for value in [v for v in graph.outputs if v.name and v.name.startswith(PREFIX)]:
        graph.outputs.remove(value)
    ours = {layer.activations: layer.tensor for layer in record.layers}
    for node in reversed(list(graph)):
        if (
            node.name
            and node.name.startswith(NODE_PREFIX)
            and not any(v.is_graph_output() for v in node.outputs)
        ):
            graph.remove(node, safe=True)
    for node in graph:
        for value in node.outputs:
            if value.name in ours:
                value.name = ours[value.name]
    for value in [v for v in graph.inputs if v.name and v.name.startswith(PREFIX)]:
        graph.inputs.remove(value)
    for name, value in list(graph.initializers.items()):
        if name.startswith((NODE_PREFIX, CLASS_INDEX)) and not value.uses():
            del graph.initializers[name]
    return model


def _refuse_our_names(graph: ir.Graph) -> None:
    """What we add must not be taken for the model's, nor the model's for ours when it is stripped."""
    for value in (*graph.inputs, *graph.outputs):
        if value.name and value.name.startswith(PREFIX):
            raise ModelError(
                f"The model has an input or output named {value.name!r}; rename it: '{PREFIX}' is ours."
            )
    inner = [v.name for n in graph.all_nodes() for v in n.outputs]
    for name in (*graph.initializers, *inner, *(n.name for n in graph.all_nodes())):
        if name and (name == CLASS_INDEX or name.startswith(NODE_PREFIX)):
            raise ModelError(
                f"The model has the name {name!r}, which is ours: it may be what another tool left of an "
                "explainable file. Rewrite the original model, or rename it."
            )


def _seed(op: Builder, score: Var, output: Var) -> Var:
    """The cotangent: one for the chosen class of each image, in the score's shape.

    The top class is that of the output, not of the logit behind it: where a softmax saturates and ties,
    the class that a caller reads off the output is the class that is explained.
    """
    default = ir.tensor(np.asarray([TOP_CLASS], dtype=np.int64), name=CLASS_INDEX)
    # Its own symbol: by default it has one entry, whatever the batch.
    index = ir.Value(
        name=CLASS_INDEX,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([f"{PREFIX}N"]),
        const_value=default,
    )
    op.graph.inputs.append(index)
    op.graph.register_initializer(index)
    with op.working_on("the class to explain", "score"):
        top = op.ArgMax(_table(op, output), axis=1, keepdims=0, dims=score.shape[:1])
        wanted = op.wrap(index)
        chosen = op.Where(wanted < 0, top, wanted, dims=score.shape[:1])
        return op.reshape_like(op.one_hot(chosen, _table(op, score)), score)


def _table(op: Builder, x: Var) -> Var:
    """(N, K, 1, ...) as (N, K)."""
    return x if x.rank == 2 else op.Reshape(x, [0, -1], dims=x.shape[:2])


def _activations(op: Builder, value: ir.Value, name: str) -> ir.Value:
    """The layer's value as a graph output: renamed, not copied, unless its name is the user's."""
    if value.is_graph_output() or value.is_graph_input() or value.producer() is None:
        return op.output(op.Identity(op.wrap(value), dims=dims_of(value)), name, value)
    value.name = name
    return value
