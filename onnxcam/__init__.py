"""Class activation maps from one ONNX Runtime session; see README.md."""

from . import methods
from ._version import __version__
from .errors import OnnxcamError
from .explainer import Explainer
from .factorization import factorize
from .overlay import overlay
from .result import Explanation

__all__ = ["Explainer", "Explanation", "OnnxcamError", "__version__", "factorize", "methods", "overlay"]
