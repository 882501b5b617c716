"""Class activation maps from one ONNX Runtime session; see README.md."""

from ._version import __version__
from .errors import OnnxcamError

__all__ = ["OnnxcamError", "__version__"]
