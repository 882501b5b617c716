"""A bfloat16 file as the CPU can run it: each operator in float32, its results rounded to bfloat16.

ONNX Runtime's CPU provider has next to no kernels in bfloat16. Those of other devices multiply in bfloat16,
add up in float32 and round the result; so does this copy, and the numbers are theirs but for the order of
the additions.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..errors import ModelError
from .from_onnx import ModelSource, inline, load
from .gradients.registry import schema
from .shapes import infer_shapes

BFLOAT16, FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT
_TYPES = ("to", "dtype", "output_dtype", "softmax_precision", "stash_type")  #: attributes that name a type


def in_bfloat16(graph: ir.Graph) -> bool:
    """Whether a graph computes in bfloat16 anywhere, as far as its types are known."""
    return any(v.dtype == BFLOAT16 for v in _values(graph))


@contextlib.contextmanager
def twin(source: ModelSource) -> Iterator[str]:
    """The path of a copy that computes in float32 what the file computes in bfloat16.

    Inputs and outputs in bfloat16 are float32 in it, and their numbers are rounded all the same.

    Raises:
        NotOnnx, ModelError: the source; or an operator takes no bfloat16 at the file's opset.
    """
    model = load(source)
    widen(model)
    with tempfile.TemporaryDirectory(prefix="onnxcam-") as folder:
        path = Path(folder, "twin.onnx")
        ir.save(model, path, external_data="twin.data")
        yield str(path)


def widen(model: ir.Model) -> None:
    """Make a model its twin, in place.

    Raises:
        ModelError: an operator takes no bfloat16 at the model's opset.
    """
    inline(model)
    infer_shapes(model)
    _check(model.graph)
    for graph in (model.graph, *model.graph.subgraphs()):
        _widen(graph)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for inner in (graph, *graph.subgraphs()):
        yield from inner.inputs
        yield from inner.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def _check(graph: ir.Graph) -> None:
    """ONNX lets many operators take bfloat16 at its newer opsets alone; a runtime refuses them before."""
    opset = graph.opset_imports.get("", 0)
    refused: dict[str, ir.Node] = {}
    for node in graph.all_nodes():
        found = schema(node.op_type, node.domain, opset)
        if found is None or node.domain:
            continue
        names = [(v, formal.type_str) for v, formal in zip(node.inputs, found.inputs, strict=False)]
        names += [(v, formal.type_str) for v, formal in zip(node.outputs, found.outputs, strict=False)]
        allowed = {c.type_param_str: c.allowed_type_strs for c in found.type_constraints}
        if any(
            v is not None and v.dtype == BFLOAT16 and "tensor(bfloat16)" not in allowed.get(name, [name])
            for v, name in names
        ):
            refused.setdefault(node.op_type, node)
    if refused:
        listed = ", ".join(f"{op_type} {_label(node)!r}" for op_type, node in sorted(refused.items()))
        raise ModelError(
            f"At opset {opset} ONNX has no bfloat16 for {listed}, and no ONNX Runtime loads such a file, "
            "whatever the device. Bring the model to opset 22 or newer "
            "(`onnx.version_converter.convert_version(model, 22)`), or give it in float16 or float32."
        )


def _label(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def _widen(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == BFLOAT16:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(FLOAT)
    for node in list(graph):
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == BFLOAT16:
                wide = ir.tensor(attribute.value.numpy().astype(np.float32), name=attribute.value.name)
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, wide)
            elif attribute.name in _TYPES and attribute.value == BFLOAT16:
                node.attributes[attribute.name] = ir.AttrInt64(attribute.name, FLOAT)
        for value in node.outputs:
            if value.dtype == BFLOAT16:
                _round(graph, value, node)
    first = next(iter(graph), None)
    for value in graph.inputs:
        if value.dtype == BFLOAT16 and not value.is_initializer() and first is not None:
            _round(graph, value, first, after=False)


def _round(graph: ir.Graph, value: ir.Value, at: ir.Node, after: bool = True) -> None:
    """Type a value as float32, and let all that read it read it rounded."""
    if not isinstance(value.type, ir.TensorType):  # a sequence, whose tensors are rounded
        value.dtype = FLOAT
        return
    value.type = ir.TensorType(FLOAT)
    down = ir.node("Cast", [value], {"to": BFLOAT16})
    up = ir.node("Cast", [down.outputs[0]], {"to": FLOAT})
    rounded = up.outputs[0]
    rounded.type, rounded.shape = ir.TensorType(FLOAT), value.shape
    down.outputs[0].type = ir.TensorType(BFLOAT16)
    ir.convenience.replace_all_uses_with(value, rounded, replace_graph_outputs=True)
    down.replace_input_with(0, value)
    if after:
        value.name, rounded.name = f"{value.name}.wide", value.name
        graph.insert_after(at, [down, up])
    else:
        rounded.name = f"{value.name}.rounded"
        graph.insert_before(at, [down, up])
    down.outputs[0].name = f"{rounded.name}.bfloat16"
