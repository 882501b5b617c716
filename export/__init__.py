"""Build time: from a PyTorch model or any ONNX file to an explainable ONNX file."""

try:
    import onnx
    import onnx_ir
except ImportError as e:  # the sentence a user needs, not a traceback into ours
    from ..errors import MissingDependency

    raise MissingDependency(
        f'Rewriting models needs {e.name!r}, which is not installed: `pip install "onnxcam[export]"`.'
    ) from e

from typing import TYPE_CHECKING, Any

from .culprit import culprits
from .explainable import strip
from .from_onnx import load, normalize
from .fuse import FuseSpec
from .gradients import add_gradients
from .layers import Candidate, list_layers
from .randomise import randomised
from .ranking import Ranking
from .report import ExportReport
from .rewrite import rewrite_onnx
from .scores import ScoreSpec

__all__ = [
    "Candidate",
    "ExportReport",
    "FuseSpec",
    "Ranking",
    "ScoreSpec",
    "add_gradients",
    "culprits",
    "export_torch",
    "list_layers",
    "load",
    "normalize",
    "randomised",
    "rewrite_onnx",
    "strip",
]

if TYPE_CHECKING:
    from .from_torch import export_torch


def __getattr__(name: str) -> Any:
    """``export_torch``, the only name that needs torch, on first use."""
    if name != "export_torch":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
        import torch  # noqa: F401
    except ImportError as e:
        from ..errors import MissingDependency

        raise MissingDependency(
            f"Exporting from PyTorch needs {e.name!r}, which is not installed: "
            '`pip install "onnxcam[torch]"`.'
        ) from e
    from .from_torch import export_torch

    return export_torch


del onnx, onnx_ir
