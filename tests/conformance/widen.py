"""A model with every number in float64, to be evaluated exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from .node_tests import FLOATS

_TYPES = ("to", "dtype", "output_dtype")  #: attributes that name an element type
_PRECISION = ("stash_type", "softmax_precision", "precision")  #: attributes that lower it inside an operator


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which float16, bfloat16 and float32 are float64: inputs, constants and casts."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _graph(copy.graph)
    for function in copy.functions:
        for node in function.node:
            _node(node)
    return copy


def wide_feeds(feeds: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: data.astype(np.float64) if isinstance(data, np.ndarray) and _is_float(data) else data
        for name, data in feeds.items()
    }


def _is_float(data: np.ndarray[Any, Any]) -> bool:
    return data.dtype.kind == "f" or data.dtype.name == "bfloat16"


def _graph(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _tensor(tensor)
    for node in graph.node:
        _node(node)


def _node(node: onnx.NodeProto) -> None:
    for attribute in list(node.attribute):
        if attribute.type == AttributeProto.TENSOR:
            _tensor(attribute.t)
        elif attribute.type == AttributeProto.GRAPH:
            _graph(attribute.g)
        elif attribute.name in _TYPES and attribute.i in FLOATS:
            attribute.i = TensorProto.DOUBLE
        elif attribute.name in _PRECISION:
            node.attribute.remove(attribute)
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            numbers = attribute.f if attribute.name == "value_float" else [*attribute.floats]
            node.attribute.remove(attribute)
            node.attribute.append(
                onnx.helper.make_attribute("value", numpy_helper.from_array(np.asarray(numbers, np.float64)))
            )
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(
            onnx.helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float64)))
        )


def _tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), name))
