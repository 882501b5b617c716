"""Which execution providers really work here, what the others lack, and where a file's nodes run."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import demo, providers
from ._version import __version__
from .errors import OnnxcamError
from .explainer import Explainer

_TOLERANCE = 1e-2  #: of a heatmap in [0, 1], against the CPU's; TF32 and fp16 providers stay below

#: What to ask the version of, and what it is needed for.
PACKAGES = {
    "numpy": "everything",
    "opencv-python-headless": "everything (any build of OpenCV)",
    "onnxruntime": "explaining",
    "onnx": "rewriting",
    "onnx-ir": "rewriting",
    "torch": "exporting from PyTorch",
    "onnxscript": "exporting from PyTorch",
}
_OTHER_BUILDS = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "onnxruntime": (
        *("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn"),
        *("onnxruntime-trt-rtx", "onnxruntime-webgpu", "onnxruntime-rocm", "onnxruntime-migraphx"),
        *("onnxruntime-cann", "onnxruntime-training"),
    ),
}


@dataclass(frozen=True)
class ProviderState:
    """How one execution provider fares.

    Attributes:
        name: ONNX Runtime's full name.
        short: what ``--provider`` takes.
        state: ``works``: it opened the demo's model, ran nodes of it and found the CPU's heatmap;
            ``idle``: it opens, but ran no node; ``broken``; ``absent``: not in the installed wheel.
        detail: why not, or how to get it.
    """

    name: str
    short: str
    state: Literal["works", "idle", "broken", "absent"]
    detail: str


def versions() -> dict[str, str | None]:
    """Of this package, Python, the system and :data:`PACKAGES`; None where one is not installed."""
    found: dict[str, str | None] = {
        "onnxcam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in PACKAGES:
        builds = [(b, _version(b)) for b in (name, *_OTHER_BUILDS.get(name, ()))]
        installed = [(b, v) for b, v in builds if v is not None]
        if not installed:
            found[name] = None
        # Two wheels of one library overwrite each other's files: show them all.
        for build, version in installed:
            found[build] = version
    return found


def check_providers(also: Sequence[str] = ()) -> list[ProviderState]:
    """Every provider of the installed ONNX Runtime, tried; then the others, with how to get them.

    Args:
        also: short or full names to try beyond those.

    Raises:
        MissingDependency: there is no ONNX Runtime.
        ProviderError: an unknown short name.
    """
    reference = Explainer(demo.model_bytes(), providers.CPU)
    import onnxruntime as ort

    offered = list(ort.get_available_providers())
    names = list(dict.fromkeys([*offered, *map(providers.full_name, also), *providers.installable()]))
    x = _example(reference)
    expected = reference.explain_tensor(x).heatmaps
    return [
        _try(name, x, expected)
        if name in offered
        else ProviderState(name, providers.short_name(name), "absent", providers.how_to_get(name))
        for name in names
    ]


def default_provider() -> str:
    """The provider that :class:`Explainer` takes where none is named."""
    import onnxruntime as ort

    return str(providers.requested(ort, None, None)[0][0])


def _try(name: str, x: Any, expected: Any) -> ProviderState:
    short = providers.short_name(name)
    try:
        explainer = Explainer(demo.model_bytes(), name, record_placement=True)
        found = explainer.explain_tensor(x).heatmaps
    except OnnxcamError as e:
        return ProviderState(name, short, "broken", str(e))
    placed = explainer.placement()
    if placed is not None and not placed.get(name):
        return ProviderState(name, short, "idle", "it opens, but takes no node of the test model")
    worst = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    if not worst <= _TOLERANCE:
        detail = f"its heatmap differs from the CPU's by up to {worst:.2g} (of 1)"
        return ProviderState(name, short, "broken", detail)
    detail = "the reference" if name == providers.CPU else f"heatmap within {worst:.1e} of the CPU's"
    return ProviderState(name, short, "works", detail)


def _example(explainer: Explainer) -> Any:
    how = explainer.preprocess
    h, w = how.size if how is not None else (224, 224)
    channels = 1 if how is not None and how.channels == "L" else 3
    shape = (1, channels, h, w) if how is None or how.layout == "NCHW" else (1, h, w, channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def placement(model: str, names: Sequence[str]) -> dict[str, Any]:
    """Where the nodes of an explainable file run.

    Args:
        model: its path.
        names: the providers to open it on.

    Returns:
        ``providers``, the active ones; ``nodes``, {provider: [{name, op_type}, ...]}, or None where
        this ONNX Runtime does not say.

    Raises:
        OnnxcamError: see :class:`Explainer`.
    """
    explainer = Explainer(model, list(names), record_placement=True)
    placed = explainer.placement()
    return {
        "providers": list(explainer.providers),
        "nodes": placed
        and {name: [{"name": n.name, "op_type": n.op_type} for n in nodes] for name, nodes in placed.items()},
    }
