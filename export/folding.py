"""Arithmetic on sizes that no input moves, computed once.

torch's older exporter spells the pads of a Pad as such a chain, and Keras its padding "same", from sizes that
the file itself declares: ONNX's shape inference ends there, and with it what is known of every layer behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from ..errors import ModelError
from .gradients.builder import Dim, dims_of
from .gradients.expand import sizes_of, to_initializer
from .gradients.registry import constant
from .shapes import infer_shapes

_MOST = 1024  #: elements
_BATCHES = (5, 7)
_RANDOM = frozenset(
    "RandomUniform RandomNormal RandomUniformLike RandomNormalLike Bernoulli Multinomial".split()
)

Array = np.ndarray[Any, Any]


def settle_shapes(model: ir.Model) -> None:
    """Note the shapes of a model, in place: what is computed with them may tell more shapes.

    Where an open batch hides other sizes (ONNX's inference does not cancel it from a Reshape), those that
    are the same for two batches are noted.

    Raises:
        ModelError: see :func:`.shapes.infer_shapes`.
    """
    said = {v: v.shape for node in model.graph for v in node.outputs}
    _settle(model, said)
    if any(_made_up(d) for v in said if _is_real(v) for d in dims_of(v) or (None,)):
        said |= _at_two_batches(model, said)
        _settle(model, said)


def _settle(model: ir.Model, said: Mapping[ir.Value, ir.Shape | None]) -> None:
    """Infer and fold by turns. ``said``: by value, what holds beside what is inferred."""
    fold_sizes(model.graph)
    while True:
        for value in (v for node in model.graph for v in node.outputs):
            value.shape = said[value]  # not the symbols that inference made up
        infer_shapes(model)
        if not fold_sizes(model.graph):
            return


def _at_two_batches(
    model: ir.Model, said: Mapping[ir.Value, ir.Shape | None]
) -> dict[ir.Value, ir.Shape | None]:
    """The shapes that become known if the batch is fixed: sizes that do not change with it, and it itself."""
    first, second = (_at_batch(model, said, n) for n in _BATCHES)
    symbols = {dims[0] for v in model.graph.inputs if (dims := dims_of(v)) and not isinstance(dims[0], int)}
    known: dict[ir.Value, ir.Shape | None] = {}
    for value in said:
        a, b = first.get(value.name), second.get(value.name)
        if a is None or b is None or len(a) != len(b):
            continue
        dims = dims_of(value) or (None,) * len(a)
        known[value] = ir.Shape(
            [
                d
                if not _made_up(d)
                else x
                if isinstance(x, int) and x == y
                else next(iter(symbols))
                if (x, y) == _BATCHES and len(symbols) == 1
                else None
                for d, x, y in zip(dims, a, b, strict=True)
            ]
        )
    return known


def _at_batch(
    model: ir.Model, said: Mapping[ir.Value, ir.Shape | None], batch: int
) -> dict[str | None, tuple[Dim, ...] | None]:
    """The shapes by name if the open first axes of all inputs have this size."""
    copy = model.clone()
    for value in copy.graph.inputs:
        dims = dims_of(value)
        if dims and not isinstance(dims[0], int):
            value.shape = ir.Shape([batch, *dims[1:]])
    by_name = {v.name: shape for v, shape in said.items()}
    values = {v: by_name[v.name] for node in copy.graph for v in node.outputs}
    try:
        _settle(copy, values)
    except ModelError:
        return {}
    return {v.name: dims_of(v) for v in values}


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _made_up(size: Dim) -> bool:
    """Whether a size is a symbol of ONNX's inference, which nothing else has."""
    return size is None or (isinstance(size, str) and size.startswith("unk__"))


def fold_sizes(graph: ir.Graph) -> bool:
    """Compute the nodes that make small whole numbers from constants and known sizes, in place.

    What they give becomes an initializer of the same name.

    Returns:
        Whether there were any.
    """
    folded = False
    for node in list(graph):
        if node.domain or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        array = _size(node)
        if array is None:
            array = _computed(node, graph.opset_imports)
        if array is None:
            continue
        to_initializer(graph, node, ir.tensor(array, name=node.outputs[0].name))
        folded = True
    for node in list(graph):
        if folded and node.op_type == "Shape" and not node.outputs[0].uses():
            graph.remove(node, safe=True)
    return folded


def _size(node: ir.Node) -> Array | None:
    """A tensor's shape, or a size that is picked from it; None if an open size is among them."""
    index = None
    if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[1] is not None:
        index = constant(node.inputs[1])
    picks = index is not None
    shape = node.inputs[0].producer() if picks and node.inputs[0] is not None else node
    if shape is None or shape.op_type != "Shape" or shape.domain:
        return None
    dims = sizes_of(shape)
    if dims is None:
        return None
    sizes = np.array([d if isinstance(d, int) else -1 for d in dims], np.int64)
    chosen = np.asarray(sizes[index] if picks else sizes)
    return chosen if (chosen >= 0).all() else None


def _computed(node: ir.Node, opsets: Mapping[str, int]) -> Array | None:
    """A node's result; None if it is not arithmetic on small constant whole numbers."""
    if (
        node.op_type in _RANDOM
        or not any(node.inputs)
        or any(a.type in _GRAPHS for a in node.attributes.values())
    ):
        return None
    fed = {v.name or "": constant(v) for v in node.inputs if v is not None}
    if any(a is None or not _small(a) for a in fed.values()):
        return None
    graph = onnx.helper.make_graph(
        [ir.to_proto(node)],
        "folding",
        [onnx.helper.make_empty_tensor_value_info(name) for name in fed],
        [onnx.helper.make_empty_tensor_value_info(node.outputs[0].name or "")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opsets[""])])
    try:
        (found,) = onnx.reference.ReferenceEvaluator(model).run(None, fed)
    except Exception:
        return None  # it may run elsewhere
    return found if isinstance(found, np.ndarray) and _small(found) else None


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _small(array: Array) -> bool:
    return array.dtype.kind in "iub" and array.size <= _MOST
