"""An exported file against the PyTorch model it came from: outputs, and gradients by torch.autograd."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..contract import CLASS, SCORE, Record, Score
from ..errors import VerificationError
from .torch_capture import Captured, Target, capturing, outputs_by_name
from .verify import GRADIENT_TOLERANCE, KINKS, TOLERANCE, relative_error, run

#: One ReLU on its kink behind a flattening moves every element. It does not sit there on another input.
ATTEMPTS = 4


def verify_against(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    draft: Path,
    record: Record,
    captured: Captured,
    targets: Sequence[Target] | None,
) -> tuple[float, float | None]:
    """Compare an exported file's outputs and gradients with the model's own, on the example inputs.

    Args:
        model: in evaluation mode.
        args: positional inputs.
        kwargs: keyword inputs.
        draft: the file.
        record: its record.
        captured: what torch exported.
        targets: the modules whose outputs are its layers; None if they were chosen in the graph.

    Returns:
        The errors of the outputs and of the gradients, over their largest entries; None for gradients
        that torch could not be asked for.

    Raises:
        VerificationError: they differ.
    """
    args, kwargs = pytree.tree_map(_detached, (args, kwargs))
    for attempt in range(ATTEMPTS):
        scale = 1 - attempt / 16
        scaled_args, scaled_kwargs = pytree.tree_map(lambda x, s=scale: _scaled(x, s), (args, kwargs))
        try:
            return _compare(model, scaled_args, scaled_kwargs, draft, record, captured, targets)
        except _GradientDiffers:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


class _GradientDiffers(VerificationError):
    """By more than kinks explain, on one input."""


def _compare(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    draft: Path,
    record: Record,
    captured: Captured,
    targets: Sequence[Target] | None,
) -> tuple[float, float | None]:
    score = record.score
    traced = captured.program is None and targets is None
    targets = _named_after(model, record) if traced else targets
    kept: list[torch.Tensor] = []

    def finish(output: Any, found: list[torch.Tensor]) -> Any:
        kept[:] = found
        return output

    # Weights need no gradient, but the captured tensors must be on a graph: an input that requires one
    # puts everything behind it there.
    with (
        torch.enable_grad(),
        warnings.catch_warnings(action="ignore"),
        _requiring_grad(args, kwargs),
        capturing(model, targets or (), finish),
    ):
        outputs = outputs_by_name(model(*args, **kwargs))
    found = run(os.fspath(draft), feeds(captured, args, kwargs))
    output_error = max(_checked_output(n, found[n], t.detach().cpu().numpy()) for n, t in outputs.items())
    pairs = [(found.get(x.activations), t) for x, t in zip(record.layers, kept, strict=False)]
    if traced and not all(a is None or _same(a, t) for a, t in pairs):
        targets = None
    gradients: Sequence[torch.Tensor | None] = [None] * len(record.layers)
    if targets is not None and score.output in outputs and (score.activation is None or score.probability):
        gradients = _gradients(explained(score, outputs[score.output], found), kept)
    elif captured.program is not None:
        gradients = _program_gradients(captured.program, captured.origins, args, kwargs, record, found)
    errors = [
        _checked_gradient(layer.name, found[layer.gradients], gradient.detach().cpu().numpy())
        for layer, gradient in zip(record.layers, gradients, strict=True)
        if gradient is not None and layer.gradients in found
    ]
    return output_error, max(errors) if errors else None


def _named_after(model: nn.Module, record: Record) -> list[Target] | None:
    """The modules whose paths the layers have in the graph of a trace; None if a layer is no module's."""
    paths = dict(model.named_modules())
    names = [layer.name for layer in record.layers]
    return [Target(n, n) for n in names] if all(n in paths for n in names) else None


def _same(ours: np.ndarray[Any, Any], theirs: torch.Tensor) -> bool:
    array = theirs.detach().cpu().numpy()
    return relative_error(ours, array) <= 10 * TOLERANCE.get(array.dtype.name, 0.0)


def explained(score: Score, tensor: torch.Tensor, found: Mapping[str, Any]) -> torch.Tensor | None:
    """The sum over the batch of what a file explains where nothing is fed, from the tensor it differentiates.

    The choices are the file's own: in half precision two classes may tie. None for a detection, whose head
    the record does not keep.
    """

    def fetched(name: str) -> torch.Tensor:
        return torch.as_tensor(found[name], device=tensor.device)

    if score.task == "embedding":
        lengths: torch.Tensor = tensor.flatten(1).norm(dim=1)
        return lengths.sum()
    if score.task == "segmentation":
        # Which axis counts the classes, and what is likely of one map, the file's own score tells.
        sums = [tensor[tensor > likely].sum() for likely in (0.0, 0.5) if score.classes == 1]
        for axis in (1, tensor.ndim - 1) if score.classes != 1 else ():
            if tensor.shape[axis] == score.classes:
                chosen = fetched(CLASS).reshape(-1, *[1] * (tensor.ndim - 1))
                region = tensor.argmax(axis, keepdim=True) == chosen
                sums.append((tensor.take_along_dim(chosen, axis) * region).sum())
        total = fetched(SCORE).sum()
        return min(sums, key=lambda found: abs(float(found.detach() - total)), default=None)
    if score.task == "detection":
        return None
    table = tensor.reshape(len(tensor), -1)
    table = table + table.log_softmax(1) if score.rest else table
    classes = fetched(CLASS) if CLASS in found else fetched(score.output).reshape(len(tensor), -1).argmax(1)
    return table.gather(1, classes[:, None]).sum()


def _gradients(score: torch.Tensor | None, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
    """The gradients of a score."""
    if score is None or not score.requires_grad:
        return [None] * len(tensors)
    return torch.autograd.grad(score, tensors, allow_unused=True)


class _Watching(torch.fx.Interpreter):
    """Runs an exported program and keeps some of its values."""

    def __init__(self, module: torch.fx.GraphModule, names: Sequence[str]) -> None:
        super().__init__(module)
        self.kept: dict[str, torch.Tensor] = {}
        self._names = set(names)

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._names and isinstance(value, torch.Tensor):
            self.kept[n.name] = value
        return value


def watched(
    module: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Those of a program's values that have these names, on a graph of torch.autograd.

    Args:
        module: an exported program's.
        inputs: that require gradients; the weights need none, and with them torch would choose attention
            kernels whose results have other strides than the views behind them were traced with.
        names: of values; a file that torch's newer exporter made from the program has the same.
    """
    watching = _Watching(module, names)
    weights = [p for p in module.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        with torch.enable_grad(), warnings.catch_warnings(action="ignore"):
            watching.run(*inputs)
    finally:
        for p in weights:
            p.requires_grad_(True)
    return watching.kept


def _program_gradients(
    program: torch.export.ExportedProgram,
    origins: Mapping[str, str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    record: Record,
    found: Mapping[str, Any],
) -> Sequence[torch.Tensor | None]:
    """torch.autograd's gradients where score or layer is no module's output: through torch's own program."""
    names = [origins.get(t, t) for t in (record.score.tensor, *(x.tensor for x in record.layers))]
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    try:
        with _requiring_grad(args, kwargs):
            kept = watched(program.module(check_guards=False), leaves, names)
    except Exception:
        kept = {}  # it holds what has no derivative, or cannot be stepped through; the report says so
    if any(n not in kept for n in names):
        return [None] * len(record.layers)
    score, *layers = (kept[n] for n in names)
    return _gradients(explained(record.score, score, found), layers)


def _checked_output(name: str, ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The error over the largest entry."""
    error = relative_error(ours, theirs)
    # torch's kernels and ONNX Runtime's differ by more than two runs of ONNX Runtime do.
    limit = 10 * TOLERANCE.get(theirs.dtype.name, 0.0)
    if not error <= limit:
        raise VerificationError(
            f"The exported output {name!r} differs from the model's by {error:.2g} of its largest entry "
            f"(allowed: {limit:g}). Nothing was written. A model that is random in evaluation mode cannot be "
            "verified: pass verify=False if that is what it is."
        )
    return error


def _checked_gradient(name: str, ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The error over the largest entry, kinks left out."""
    if ours.shape != theirs.shape:
        raise VerificationError(
            f"The gradient at {name!r} has shape {ours.shape}, torch's has {theirs.shape}. "
            "Nothing was written; please report it."
        )
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    errors = np.abs(a - b) / (np.abs(b).max() or 1.0)
    off = ~(errors <= GRADIENT_TOLERANCE.get(theirs.dtype.name, 1e-3))
    if off.mean() <= KINKS:
        return float(errors[~off].max()) if (~off).any() else 0.0
    # One flipped unit of a deep network can move many elements a little.
    whole = float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))
    if not whole <= KINKS:
        raise _GradientDiffers(
            f"The gradient at {name!r} differs from torch.autograd's by {float(errors.max()):.2g} of its "
            f"largest entry in {100 * float(off.mean()):.1f} % of its elements. Nothing was written; please "
            "report it."
        )
    return whole


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x


def _scaled(x: Any, factor: float) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    return x * factor if x.is_floating_point() and factor != 1 else x.clone()


@contextlib.contextmanager
def _requiring_grad(args: Any, kwargs: Any) -> Iterator[None]:
    tensors = [
        t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.is_floating_point()
    ]
    for t in tensors:
        t.requires_grad_(True)
    try:
        yield
    finally:
        for t in tensors:
            t.requires_grad_(False)


def feeds(
    captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """A model's inputs as its file takes them."""
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    names = [v.name or "" for v in captured.model.graph.inputs if not v.is_initializer()]
    return {n: t.detach().cpu().numpy() for n, t in zip(names, tensors, strict=False)}
