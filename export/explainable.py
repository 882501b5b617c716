"""The rewrite itself: outputs for activations and gradients, the class input, and the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from .._version import __version__
from ..contract import (
    CHOICES,
    CLASS,
    KEY,
    PREFIX,
    SCORE,
    SEED,
    Layer,
    Preprocess,
    Record,
    Source,
    activations_name,
    gradients_name,
    read_record,
    refuse_tail,
)
from ..errors import ModelError
from .fuse import FuseSpec, TracedMap, add_maps
from .gradients.builder import NODE_PREFIX, Builder, dims_of
from .gradients.control_flow import empty, subgraphs
from .gradients.engine import differentiate, prune, shape_unknown
from .gradients.quantized import OURS, dequantize, is_real, of_dequantized
from .heads import linear_head
from .layouts import Layouts
from .needs import Scene, Site
from .paths import image_input
from .scores import Choice, FoundScore


def add_explanation(
    model: ir.Model,
    tensors: Mapping[str, ir.Value],
    known: Layouts,
    found: FoundScore,
    preprocess: Preprocess | None,
    labels: Sequence[str] | None,
    source: Source,
    fuse: Sequence[FuseSpec] = (),
    maps_only: bool = False,
) -> tuple[Record, tuple[TracedMap, ...]]:
    """Add the contract's inputs, outputs and record to a model, in place.

    Args:
        model: in normal form.
        tensors: the layers to explain: what each is called, and its value.
        known: the layouts of the graph's values.
        found: what is differentiated.
        preprocess: for the record, like the two that follow.
        labels: the classes' names in index order.
        source: where the model came from.
        fuse: the maps to compute in the graph.
        maps_only: leave the layers' tensors out of the outputs.

    Returns:
        The record, and what the maps were made from.

    Raises:
        NoGradientRule, LayerNotOnPath, ShapeUnknown: see
            :func:`onnxcam.export.gradients.engine.differentiate`.
        ModelError: the model has names that are ours.
        UnknownLayer, MethodError: see :func:`.fuse.add_maps`.
    """
    graph = model.graph
    _refuse_our_names(graph)
    op = Builder(graph, shape_unknown)
    with op.working_on("the choice of what to explain", "score"):
        choice = found.choose(op)
    score = found.score
    wanted = list(dict.fromkeys(tensors.values()))
    gradients = differentiate(op, choice.seeds, wanted, score.output, unclipped=not score.probability)
    classifies = score.task in ("classification", "regression")
    layers = []
    for name, value in tensors.items():
        layout = known[value]
        dims = dims_of(value) or ()
        tensor = value.name or ""
        linear = classifies and linear_head(graph, value, layout, found.value)
        head = "gap-linear" if linear else None
        outputs = op.unique(activations_name(name)), op.unique(gradients_name(name))
        layers.append(Layer(name, tensor, *outputs, layout, dims, head))  # type: ignore[arg-type]
    sites = {}
    for layer, value in zip(layers, tensors.values(), strict=True):
        activations, gradient = value, gradients[value]
        if not is_real(value):  # a quantised layer is explained by the real numbers that it stands for
            with op.working_on("what is quantised", layer.tensor):
                activations, gradient = (
                    dequantize(op, op.wrap(value)).value,
                    of_dequantized(op, gradient, value),
                )
        if activations.dtype == ir.DataType.BFLOAT16:  # which NumPy does not know
            with op.working_on("what NumPy can hold", layer.tensor):
                activations = op.single(op.wrap(activations)).value
                activations.shape = value.shape
        pair = (
            _activations(op, activations, layer.activations),
            op.output(gradient, layer.gradients, activations, single=True),
        )
        sites[layer.name] = Site(layer, value, *map(op.wrap, pair))
        if not maps_only:
            graph.outputs.extend(pair)
    maps: tuple[TracedMap, ...] = ()
    if fuse:
        named = next((v for v in graph.inputs if preprocess is not None and v.name == preprocess.input), None)
        last = None if preprocess is None else preprocess.layout == "NHWC"
        maps = add_maps(Scene(op, named or image_input(graph), last, choice, found, sites, known), fuse)
    with op.working_on("the choice of what to explain", "score"):
        graph.outputs.extend(_told(op, found, choice))
    prune(op)
    record = Record(
        layers=tuple(layers),
        score=score,
        preprocess=preprocess,
        labels=None if labels is None else tuple(labels),
        fused=tuple(m.fused for m in maps),
        maps_only=maps_only,
        source=source,
        tool_version=__version__,
    )
    model.metadata_props[KEY] = record.to_json()
    return record, maps


def strip(model: ir.Model) -> ir.Model:
    """Remove all that :func:`add_explanation` added, in place: the model in normal form.

    Raises:
        NotExplainable: there is no record, or it is that of a tail, which holds no whole model.
    """
    record = read_record(model.metadata_props, "The model")
    refuse_tail(record)
    graph = model.graph
    del model.metadata_props[KEY]
    for value in [v for v in graph.outputs if v.name and v.name.startswith(PREFIX)]:
        graph.outputs.remove(value)
    ours = {layer.activations: layer.tensor for layer in record.layers}
    ours |= {side.name: side.tensor for tail in record.tails for side in tail.sides if side.tensor}
    for node in reversed(list(graph)):
        if (
            node.name
            and node.name.startswith(NODE_PREFIX)
            and not any(v.is_graph_output() for v in node.outputs)
        ):
            for inner in subgraphs(node):
                empty(inner)
            graph.remove(node, safe=True)
    for node in graph:
        for value in node.outputs:
            if value.name in ours:
                value.name = ours[value.name]
    for value in [v for v in graph.inputs if v.name and v.name.startswith(PREFIX)]:
        graph.inputs.remove(value)
        graph.initializers.pop(value.name or "", None)
    for name, value in list(graph.initializers.items()):
        if name.startswith(NODE_PREFIX) and not value.uses():
            del graph.initializers[name]
    return model


def _refuse_our_names(graph: ir.Graph) -> None:
    """What we add must not be taken for the model's, nor the model's for ours when it is stripped."""
    for value in (*graph.inputs, *graph.outputs):
        if value.name and value.name.startswith(PREFIX):
            raise ModelError(
                f"The model has an input or output named {value.name!r}; rename it: '{PREFIX}' is ours."
            )
    nodes = [n for n in graph.all_nodes() if OURS not in n.meta]
    inner = [v.name for n in nodes for v in n.outputs]
    for name in (*graph.initializers, *inner, *(n.name for n in nodes)):
        if name and (name in _INPUTS or name.startswith((SEED, NODE_PREFIX))):
            raise ModelError(
                f"The model has the name {name!r}, which is ours: it may be what another tool left of an "
                "explainable file. Rewrite the original model, or rename it."
            )


_INPUTS = frozenset(name for names in CHOICES.values() for name in names)


def _told(op: Builder, found: FoundScore, choice: Choice) -> list[ir.Value]:
    """The outputs that say what was explained, where the model's own do not."""
    said = dict(choice.further)
    if not found.told:
        said[SCORE] = choice.score()
        if choice.classes is not None:
            said[CLASS] = choice.classes()
    outputs = []
    for name, x in said.items():
        like = ir.Value(type=ir.TensorType(x.dtype), shape=ir.Shape(x.shape))
        outputs.append(op.output(x, name, like))
    return outputs


def _activations(op: Builder, value: ir.Value, name: str) -> ir.Value:
    """The layer's value as a graph output: renamed, not copied, unless its name is the user's."""
    if value.is_graph_output() or value.is_graph_input() or value.producer() is None:
        return op.output(op.Identity(op.wrap(value), dims=dims_of(value)), name, value)
    value.name = name
    return value
