"""Running what is traced into a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from onnxcam.export.gradients.builder import Builder, dims_of
from onnxcam.export.gradients.engine import shape_unknown
from onnxcam.export.namespace import Traced

SYMBOLS = ("N", "C", "h", "w")


def traced(
    function: Any, *arrays: np.ndarray[Any, Any], open_dims: bool = False, opset: int = 18
) -> tuple[np.ndarray[Any, Any], Any]:
    """``function(*arrays, xp=...)`` as a graph, run; its result, and its dims in the graph."""
    inputs = []
    for k, array in enumerate(arrays):
        dims = SYMBOLS[: array.ndim] if open_dims else array.shape
        dtype = ir.DataType.from_numpy(array.dtype)
        inputs.append(ir.Value(name=f"x{k}", shape=ir.Shape(dims), type=ir.TensorType(dtype)))
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": opset}, name="g")
    op = Builder(graph, shape_unknown)
    made = function(*map(op.wrap, inputs), xp=Traced(op))
    like = ir.Value(type=ir.TensorType(made.dtype), shape=ir.Shape(made.shape))
    graph.outputs.append(op.output(made, "y", like))
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=8)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {f"x{k}": array for k, array in enumerate(arrays)}
    (result,) = session.run(None, feeds)
    return result, dims_of(graph.outputs[0])
