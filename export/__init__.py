"""Build time: from a PyTorch model or any ONNX file to an explainable ONNX file."""

try:
    import onnx
    import onnx_ir
except ImportError as e:  # the sentence a user needs, not a traceback into ours
    from ..errors import MissingDependency

    raise MissingDependency(
        f"Rewriting models needs {e.name!r}, which is not installed: `pip install \"onnxcam[export]\"`."
    ) from e

from .explainable import strip
from .from_onnx import load, normalize
from .gradients import add_gradients
from .layers import Candidate, list_layers
from .report import ExportReport
from .rewrite import rewrite_onnx

__all__ = [
    "Candidate",
    "ExportReport",
    "add_gradients",
    "list_layers",
    "load",
    "normalize",
    "rewrite_onnx",
    "strip",
]

del onnx, onnx_ir
