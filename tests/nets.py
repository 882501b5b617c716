"""Small ONNX models for the exporter's tests, as ONNX text with seeded weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser

HEAD = "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v, b)"


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {k: (0.5 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}


def model(
    body: str,
    inputs: str = "float[N,3,8,8] x",
    outputs: str = "float[N,5] y",
    initializers: dict[str, np.ndarray[Any, Any]] | None = None,
    opset: int = 18,
    ir_version: int = 8,
    extra_opsets: str = "",
    functions: str = "",
) -> onnx.ModelProto:
    """A model from the body of its graph."""
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}{extra_opsets}]>'
    text = f"{head} g ({inputs}) => ({outputs}) {{ {body} }} {functions}"
    made = onnx.parser.parse_model(text)
    for name, array in (initializers or {}).items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def cnn(end: str = "", outputs: str = "float[N,5] y", body: str = "", **options: Any) -> onnx.ModelProto:
    """Conv, Relu, global average pooling and a classifier of five classes.

    The last convolution's ReLU is ``r``, (N, 4, 8, 8); ``end`` follows the logits ``y``.
    """
    return model(
        f"c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) {body or HEAD} {end}",
        outputs=outputs,
        initializers=weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,)),
        **options,
    )
