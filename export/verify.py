"""Running a rewritten file against its source, in ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ..contract import PREFIX, Preprocess, Record
from ..errors import MissingDependency, VerificationError
from .bfloat16 import twin
from .gradients.builder import dims_of

#: Largest difference allowed, as a share of the output's largest entry. The same arithmetic in
#: another order of fusion differs by some 1e-6 in float32.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "float16": 2e-2}
#: Largest gradient error allowed, over the largest entry, in the elements that are not at a kink.
GRADIENT_TOLERANCE = {"float32": 1e-3, "float64": 1e-6, "float16": 5e-2}
#: Share of the elements, or of the gradient's length, that may be off: a ReLU or max-pool that sits on its
#: kink may go either way.
KINKS = 0.01
TOLERANCE_OF_BFLOAT16 = 5e-2  #: of any output of a file that computes in it

Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Agreement:
    """How a rewritten file compares with its source on one input.

    Attributes:
        outputs: for each of the source's outputs, the largest difference over its largest entry.
        zero_gradient: layers whose gradient was zero everywhere on that input.
        other_kernels: whether ONNX Runtime chose other integer kernels for the two, so that their
            outputs differ by more than :data:`TOLERANCE`; node by node they agree.
        found: the rewritten file's outputs.
    """

    outputs: dict[str, float]
    zero_gradient: tuple[str, ...] = ()
    other_kernels: bool = False
    found: Feeds = field(default_factory=dict)


def example_feeds(
    graph: ir.Graph, preprocess: Preprocess | None, batch: int = 2
) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs in the shapes that a graph declares; open sizes are filled in.

    Args:
        graph: whose inputs to feed.
        preprocess: tells an image's size where the graph leaves it open (else 224).
        batch: what an open first axis becomes.
    """
    rng = np.random.default_rng(0)
    feeds = {}
    for value in graph.inputs:
        if value.is_initializer():
            continue
        dims = dims_of(value) or ()
        size = preprocess.size if preprocess is not None else (224, 224)
        channels_last = preprocess is not None and preprocess.layout == "NHWC"
        spatial = {1: size[0], 2: size[1]} if channels_last else {2: size[0], 3: size[1]}
        shape = [
            d if isinstance(d, int) else batch if k == 0 else spatial.get(k, 1) if len(dims) == 4 else 1
            for k, d in enumerate(dims)
        ]
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        noise = rng.standard_normal(shape)
        real = (value.dtype or ir.DataType.FLOAT).is_floating_point()
        feeds[value.name or ""] = (noise if real else np.zeros(shape)).astype(dtype)
    return feeds


def compare(
    source: str | bytes,
    rewritten: str | os.PathLike[str],
    record: Record,
    feeds: Feeds,
    quantized: bool = False,
    bfloat16: bool = False,
) -> Agreement:
    """Run both files on one input; those that compute in bfloat16 as their twins (:mod:`.bfloat16`).

    Args:
        source: the original's path or bytes; it may be explainable itself.
        rewritten: the explainable file.
        record: its record.
        feeds: the inputs.
        quantized: whether they round to whole numbers, so that a last bit may become a step of a scale.
        bfloat16: whether they compute in it, for which the CPU has no kernels.

    Raises:
        ModelError: an operator takes no bfloat16 at the file's opset.
        MissingDependency: no ONNX Runtime is installed.
        VerificationError: one of them does not run, or they differ by more than :data:`TOLERANCE`.
    """
    files: list[str | bytes] = [source, os.fspath(rewritten)]
    with contextlib.ExitStack() as stack:
        if bfloat16:
            files = [stack.enter_context(twin(file)) for file in files]
            feeds = {name: _wide(a) for name, a in feeds.items()}
        before, after = _run_both(files, feeds)
        differences = _differences(before, after)
        other_kernels = quantized and not _agree(before, differences)
        judged = differences
        if other_kernels:
            judged = _differences(*_run_both(files, feeds, optimized=False))
    for name, difference in judged.items():
        limit = TOLERANCE_OF_BFLOAT16 if bfloat16 else _limit(before[name])
        if not difference <= limit:
            raise VerificationError(
                f"The rewritten model's output {name!r} differs from the original's by "
                f"{difference:.2g} of its largest entry (allowed: {limit:g}). Nothing was written; "
                "please report it with the model."
            )
    zero = []
    for layer in record.layers:
        if layer.gradients not in after:  # no map needs them
            continue
        activations, gradients = after[layer.activations], after[layer.gradients]
        if activations.shape != gradients.shape or not np.isfinite(gradients).all():
            raise VerificationError(
                f"The gradient at layer {layer.name!r} has shape {gradients.shape} (the layer: "
                f"{activations.shape}) or is not finite. Nothing was written; please report it with the "
                "model."
            )
        if not gradients.any():
            zero.append(layer.name)
    return Agreement(differences, tuple(zero), other_kernels, after)


def _wide(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return a.astype(np.float32) if a.dtype.name == "bfloat16" else a


def _run_both(files: Sequence[str | bytes], feeds: Feeds, optimized: bool = True) -> list[Feeds]:
    names = "The original model", "The rewritten model"
    return [_run(file, feeds, name, optimized) for file, name in zip(files, names, strict=True)]


def _differences(before: Feeds, after: Feeds) -> dict[str, float]:
    """By output; not of those that the source had as an explainable file, nor of sequences."""
    return {
        name: relative_error(after[name], a)
        for name, a in before.items()
        if not name.startswith(PREFIX) and isinstance(a, np.ndarray)
    }


def _limit(output: np.ndarray[Any, Any]) -> float:
    return TOLERANCE.get(output.dtype.name, 0.0)


def _agree(before: Feeds, differences: Mapping[str, float]) -> bool:
    return all(difference <= _limit(before[name]) for name, difference in differences.items())


def relative_error(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """max|a - b| / max|b|; 0 for equal arrays, infinite where shapes differ or one is not finite."""
    if a.shape != b.shape:
        return float("inf")
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = float(np.abs(x - y).max() / (np.abs(y).max() or 1.0))
    return error if np.isfinite(error) else float("inf")


def run(model: str | bytes, feeds: Feeds, optimized: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """All outputs of a model on the CPU.

    Args:
        model: a path or bytes.
        feeds: the inputs.
        optimized: False runs node by node what the file says, without ONNX Runtime's fusions.

    Raises:
        MissingDependency: no ONNX Runtime is installed.
    """
    return _run(model, feeds, "The model", optimized)


def _run(
    model: str | bytes, feeds: Feeds, what: str, optimized: bool = True
) -> dict[str, np.ndarray[Any, Any]]:
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingDependency(
            "Checking a rewritten model needs ONNX Runtime, and none is installed: "
            '`pip install "onnxcam[cpu]"` or `"onnxcam[gpu]"`, or pass `verify=False`.'
        ) from e
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        known = {i.name for i in (*session.get_inputs(), *session.get_overridable_initializers())}
        fed = {k: v for k, v in feeds.items() if k in known}
        return dict(zip(names, session.run(names, fed), strict=True))
    except Exception as e:
        cause = " ".join(str(e).split())[:500]
        raise VerificationError(
            f"{what} does not run in ONNX Runtime {onnxruntime.__version__}: {cause}. "
            "If the sizes that were tried are wrong, pass `input_shapes=` or `example_inputs=`."
        ) from e
