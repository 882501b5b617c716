"""Fixtures of the whole suite."""

from __future__ import annotations

import functools

import pytest


@functools.cache
def cuda_works() -> bool:
    """Whether a CUDA session really opens and runs here; a wheel that offers it is not enough."""
    try:
        import numpy as np
        import onnxruntime as ort
        from onnx import TensorProto, helper

        if "CUDAExecutionProvider" not in ort.get_available_providers():
            return False
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([helper.make_node("Conv", ["x", "x"], ["y"])], "probe", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CUDAExecutionProvider"], enable_fallback=0
        )
        session.disable_fallback()
        session.run(None, {"x": np.ones((1, 1, 4, 4), np.float32)})
        return "CUDAExecutionProvider" in session.get_providers()
    except Exception:
        return False


@pytest.fixture(params=["cpu", "cuda"])
def provider(request: pytest.FixtureRequest) -> str:
    """Each execution provider that works on this machine, by its short name."""
    if request.param == "cuda" and not cuda_works():
        pytest.skip("no working CUDA here")
    return str(request.param)
