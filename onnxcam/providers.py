"""Execution providers: their names, where to get them, and why one does not work."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .errors import ProviderError, nearest

#: A provider by its full or its short name, or that and its options.
Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
#: Providers whose inputs and outputs can stay in CUDA memory.
ON_CUDA = (CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
#: Short names are the full ones without "ExecutionProvider", and these.
_ALIASES = {"trt": "Tensorrt", "directml": "Dml"}
_KNOWN = (
    *("CPU", "CUDA", "Tensorrt", "NvTensorRTRTX", "OpenVINO", "CoreML", "QNN", "Xnnpack", "Dml", "WebGpu"),
    *("ROCM", "MIGraphX", "CANN", "VitisAI", "Dnnl", "ACL", "Nnapi", "Azure"),
)
_WHEELS = {
    "CUDA": 'pip install "onnxcam[gpu]"',
    "Tensorrt": 'pip install "onnxcam[gpu]" tensorrt',
    "NvTensorRTRTX": "pip install onnxruntime-trt-rtx",
    "OpenVINO": "pip install onnxruntime-openvino",
    "Dml": "pip install onnxruntime-directml",
    "QNN": "pip install onnxruntime-qnn",
    "WebGpu": "pip install onnxruntime-webgpu",
    "ROCM": "pip install onnxruntime-rocm",
    "MIGraphX": "pip install onnxruntime-migraphx",
    "CANN": "pip install onnxruntime-cann",
    "CoreML": "the onnxruntime wheel for macOS has it",
}
MISSING_LIBRARY = re.compile(
    r"(?:lib)?[\w.+-]+\.(?:so|dll|dylib)[.\d]*(?=: cannot open| is missing| not found)"
)


def full_name(name: str) -> str:
    """ONNX Runtime's full name of a provider: "cuda" is ``CUDAExecutionProvider``.

    Raises:
        ProviderError: a short name that is not known.
    """
    if name.endswith("ExecutionProvider"):
        return name
    lowered = {k.lower(): k for k in _KNOWN} | _ALIASES
    if name.lower() not in lowered:
        raise ProviderError(
            f"There is no execution provider {name!r}.{nearest(name, sorted(lowered))} "
            f"Known short names are {', '.join(sorted(lowered))}; ONNX Runtime's full names work too."
        )
    return f"{lowered[name.lower()]}ExecutionProvider"


def short_name(name: str) -> str:
    """What a user calls a provider: ``cuda`` for ``CUDAExecutionProvider``."""
    return name.removesuffix("ExecutionProvider").lower()


def installable() -> list[str]:
    """The full names of the providers that we know how to get."""
    return [f"{short}ExecutionProvider" for short in _WHEELS]


def how_to_get(name: str) -> str:
    """A command, or where to read on, for a provider by its full name."""
    short = name.removesuffix("ExecutionProvider")
    return _WHEELS.get(short, "see https://onnxruntime.ai/docs/execution-providers")


def requested(ort: Any, providers: Any, provider_options: Any) -> list[tuple[str, dict[str, Any]]]:
    """The providers with their options, all of them by their full names."""
    if providers is None:
        providers = [CUDA if CUDA in ort.get_available_providers() else CPU]
    elif isinstance(providers, str) or _is_pair(providers):
        providers = [providers]
    if not isinstance(providers, Sequence) or not all(isinstance(p, str) or _is_pair(p) for p in providers):
        raise ProviderError(
            f'An execution provider is a name or (name, options), as in providers=["cpu"], not {providers!r}.'
        )
    if not providers:
        raise ProviderError(
            'No execution provider is named; write providers=["cpu"], or None for the default.'
        )
    if isinstance(provider_options, Mapping):
        provider_options = [provider_options]
    extra: Sequence[Mapping[str, Any]] = provider_options or [{}] * len(providers)
    if not isinstance(extra, Sequence) or not all(isinstance(o, Mapping) for o in extra):
        raise ProviderError(f"provider_options is a mapping, or one for each provider, not {extra!r}.")
    if len(extra) != len(providers):
        raise ProviderError(
            f"provider_options has {len(extra)} entries for {len(providers)} "
            f"provider{'s' * (len(providers) != 1)}; give one mapping for each."
        )
    pairs = [(p, {}) if isinstance(p, str) else p for p in providers]
    return [(full_name(n), {**o, **more}) for (n, o), more in zip(pairs, extra, strict=True)]


def _is_pair(provider: Any) -> bool:
    """Whether it is (name, options)."""
    return isinstance(provider, (tuple, list)) and len(provider) == 2 and isinstance(provider[1], Mapping)


def not_built(ort: Any, name: str) -> str:
    wheel = how_to_get(name)
    clash = (
        " (uninstall the other onnxruntime wheel first: they overwrite each other)" if "pip" in wheel else ""
    )
    return (
        f"{name} was asked for, but the installed onnxruntime {ort.__version__} is built without it: it has "
        f"{', '.join(ort.get_available_providers())}. To have it: {wheel}{clash}. To run on the CPU: "
        'providers=["cpu"].'
    )


def why_not(ort: Any, names: Sequence[str], message: str) -> str:
    """What to say of a provider that this wheel has and that does not come up."""
    reasons = [r for r in (_load_library(ort, name) for name in names) if r]
    missing = [m.group() for m in map(MISSING_LIBRARY.search, [*reasons, message]) if m]
    if missing:
        why = f"the library {missing[0]} is missing"
    else:
        why = next(
            (line for line in [*reasons, *message.splitlines()] if line.strip()), "it gives no reason"
        ).strip()
    wheel = _WHEELS.get(names[0].removesuffix("ExecutionProvider"), "")
    advice = f"Install what it needs (`{wheel}`), check the driver" if "pip" in wheel else "Check its setup"
    return (
        f"{' and '.join(names)} does not work here: {why}. {advice}, or run on the CPU with "
        'providers=["cpu"].'
    )


def _load_library(ort: Any, name: str) -> str:
    """Why a provider's shared library does not load; "" if it does or there is none.

    ONNX Runtime only logs this, and a log line cannot be read back.
    """
    short = name.removesuffix("ExecutionProvider").lower()
    stem, suffix = ("", "dll") if sys.platform == "win32" else ("lib", "so")
    library = Path(ort.__file__).parent / "capi" / f"{stem}onnxruntime_providers_{short}.{suffix}"
    if not library.exists():
        return ""
    try:
        ctypes.CDLL(str(library))
    except OSError as e:
        return str(e)
    return ""


def preload(ort: Any) -> None:
    # Finds CUDA and cuDNN in NVIDIA's wheels. It prints what it misses; we say it in the error.
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            ort.preload_dlls()
