"""From a PyTorch model to an explainable file, through torch's own ONNX exporter.

The only module of the project that imports torch (with :mod:`.torch_records`, which reads the records
of timm, torchvision and Hugging Face).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..contract import Preprocess, Record, Source
from ..errors import ExportError, UnknownLayer, VerificationError, nearest
from .explainable import add_explanation
from .from_onnx import OPSET, normalize
from .layers import AUTO, Names
from .layouts import layouts
from .notes import notes_on
from .report import ExportReport
from .rewrite import checked_labels, choose, copied_bytes, preprocessing
from .score import find_score
from .torch_records import find_labels, find_preprocess
from .verify import TOLERANCE, relative_error, run
from .write import staged

LayerSpec: TypeAlias = "str | nn.Module"
Inputs: TypeAlias = "torch.Tensor | Sequence[Any] | Mapping[str, Any]"

#: Largest gradient error allowed, over the largest entry, in the elements that are not at a kink.
GRADIENT_TOLERANCE = {"float32": 1e-3, "float64": 1e-6, "float16": 5e-2}
#: Share of the elements that may be off: a ReLU or max-pool that sits on its kink may go either way.
KINKS = 0.01


@dataclass(frozen=True)
class Target:
    """A module whose output is captured: its path, and which of its calls."""

    name: str
    path: str
    call: int = -1


def export_torch(
    model: nn.Module,
    example_inputs: Inputs,
    target: str | os.PathLike[str],
    layers: LayerSpec | Sequence[LayerSpec] = AUTO,
    score: str | None = None,
    *,
    probability: bool = False,
    preprocess: Any = None,
    labels: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    opset: int = OPSET,
    verify: bool = True,
) -> ExportReport:
    """Export a PyTorch model as an explainable ONNX file.

    Args:
        model: a module in float32, float64 or float16, on any device. One in training mode is
            exported in evaluation mode and left as it was.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
        target: where to write; replaced only by a complete, checked file.
        layers: ``auto``; or a module path (``layer4``, ``features.29``), a module object, or a list of
            them. A module that is called several times is explained at its last call; ``path#0`` means
            its first.
        score: the output that holds one score per class; may be left out if there is only one.
        probability: explain the probability, not the logit before a final softmax or sigmoid.
        preprocess: a preset's name, a record's fields, or what torchvision (weights or their transforms),
            timm (a data config) or Hugging Face (an image processor) describe theirs with; None: what the
            model itself carries, if it does.
        labels: the classes' names in index order; None: what the model or ``preprocess`` carries.
        dynamic_batch: leave the first axis of every input open.
        dynamic_size: leave height and width of image inputs open, too.
        opset: of the file; 18 is the newest without gaps on CUDA.
        verify: compare outputs and gradients with the model and ``torch.autograd``.

    Returns:
        What was written, with the errors found.

    Raises:
        ExportError: a model that cannot be exported, or a layer that cannot be captured.
        UnknownLayer: no such module; the nearest are named.
        VerificationError: the file computes something else; nothing is written.
        LayerNotOnPath, NoGradientRule, ShapeUnknown, ScoreError, OutputError: see
            :func:`onnxcam.export.rewrite_onnx`.
    """
    started = time.perf_counter()
    _check_model(model)
    args, kwargs = _arguments(model, example_inputs)
    targets = None if isinstance(layers, str) and layers == AUTO else _targets(model, layers)
    notes: list[str] = []
    if any(m.training for m in model.modules()):
        notes.append("The model was in training mode; it was exported in evaluation mode.")
    with _evaluating(model):
        captured, notes_of_export = _export(
            model, args, kwargs, targets or [], dynamic_batch, dynamic_size, opset
        )
        notes += notes_of_export
        names = Names(captured.model.graph)
        onnx_model = normalize(captured.model)
        found = find_score(onnx_model.graph, score, probability)
        known = layouts(onnx_model.graph)
        chosen = choose(onnx_model.graph, captured.tensors if targets else None, found, known, names)
        spec = find_preprocess(model if preprocess is None else preprocess)
        recorded = None if spec is None else preprocessing(onnx_model.graph, spec)
        if labels is None:
            labels = _fitting(find_labels(preprocess) or find_labels(model), found.score.classes)
        before = onnx_model.graph.num_nodes()
        record = add_explanation(
            onnx_model, chosen, known, found, recorded, checked_labels(labels, found), Source(type(model).__name__)
        )
        errors: tuple[float | None, float | None] = (None, None)
        with staged(onnx_model, target) as draft:
            if verify:
                errors = _verify(model, args, kwargs, draft, record, captured, targets)
                if errors[1] is None:
                    notes.append("The gradient could not be compared with torch.autograd: its tensor is no module's.")
            size = draft.stat().st_size
    return ExportReport(
        path=Path(target),
        record=record,
        opset=onnx_model.graph.opset_imports[""],
        nodes_added=onnx_model.graph.num_nodes() - before,
        source_bytes=0,
        bytes=size,
        copied_bytes=copied_bytes(onnx_model.graph),
        output_error=errors[0],
        gradient_error=errors[1],
        notes=(*notes, *notes_on(onnx_model.graph, record, ())),
        seconds=time.perf_counter() - started,
    )


# -- arguments --------------------------------------------------------------------------------------


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ExportError(
            f"export_torch takes a torch.nn.Module, not {type(model).__name__}. "
            "Wrap a function in a module, or give an ONNX file to rewrite_onnx."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ExportError("A TorchScript module cannot be captured: export the original nn.Module.")
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if torch.bfloat16 in dtypes:
        raise ExportError(
            "The model is in bfloat16, for which ONNX Runtime has few kernels. Convert it with `model.float()` "
            "or `model.half()` first."
        )
    if any(p.is_meta for p in model.parameters()):
        raise ExportError("The model's weights are on the meta device: load them first.")


def _arguments(model: nn.Module, example: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs."""
    if isinstance(example, Mapping):
        args: tuple[Any, ...] = ()
        kwargs = dict(example)
    else:
        args = (example,) if isinstance(example, torch.Tensor) else tuple(example)
        kwargs = {}
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if not tensors:
        raise ExportError("example_inputs holds no tensor: give a tensor, a tuple of them, or a dict by input name.")
    if any(t.ndim and t.shape[0] == 0 for t in tensors):
        raise ExportError("example_inputs has an empty batch: give at least one image.")
    device = next((p.device for p in model.parameters()), None)
    if device is not None and any(t.device != device for t in tensors):
        raise ExportError(
            f"The model is on {device} and example_inputs on {tensors[0].device}: move them to one device."
        )
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    given = next((t.dtype for t in tensors if t.is_floating_point()), None)
    if wanted is not None and given is not None and wanted != given:
        raise ExportError(f"The model is in {wanted} and example_inputs in {given}: convert one of them.")
    return args, kwargs


def _targets(model: nn.Module, layers: LayerSpec | Sequence[LayerSpec]) -> list[Target]:
    """The modules to capture."""
    listed = [layers] if isinstance(layers, str | nn.Module) else list(layers)
    if not listed:
        raise UnknownLayer("No layer was named: pass layers='auto', a module path or a module.")
    modules = dict(model.named_modules(remove_duplicate=False))
    targets = []
    for layer in listed:
        if isinstance(layer, nn.Module):
            path = next((p for p, m in modules.items() if m is layer), None)
            if path is None:
                raise UnknownLayer(f"The given {type(layer).__name__} is not a module of this model.")
            targets.append(Target(path or type(layer).__name__, path))
            continue
        path, _, call = str(layer).partition("#")
        if path not in modules or (call and not call.isdigit()):
            known = [p for p in modules if p]
            raise UnknownLayer(
                f"The model has no module {layer!r}.{nearest(path, known)} "
                "`[name for name, _ in model.named_modules()]` lists them all."
            )
        targets.append(Target(layer, path, int(call) if call else -1))
    return targets


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode after."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# -- capture ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _capturing(
    model: nn.Module, targets: Sequence[Target], finish: Callable[[Any, list[torch.Tensor]], Any]
) -> Iterator[None]:
    """Make the model return ``finish(its output, the captured tensors)`` inside.

    What a module returns is captured as it leaves it: what follows gets a clone, so that an operation
    in place (a ReLU behind a DenseNet's last norm) cannot change it.
    """
    calls: dict[str, list[torch.Tensor]] = {}

    def hook_for(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            tensor, rebuild = _first_tensor(output, path)
            calls.setdefault(path, []).append(tensor)
            return rebuild(tensor.clone())

        return hook

    def root(module: nn.Module, inputs: Any, output: Any) -> Any:
        found = []
        for t in targets:
            made = calls.get(t.path, [])
            if not made or t.call >= len(made):
                raise ExportError(
                    f"The module {t.path!r} was called {len(made)} times in a forward pass, so {t.name!r} has no "
                    "output to explain."
                )
            found.append(made[t.call])
        calls.clear()
        return finish(output, found)

    modules = dict(model.named_modules(remove_duplicate=False))
    handles = [modules[path].register_forward_hook(hook_for(path)) for path in {t.path for t in targets}]
    handles.append(model.register_forward_hook(root))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any, path: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """The (first) tensor of a module's output, and how to put another in its place."""
    if isinstance(output, torch.Tensor):
        return output, lambda t: t
    leaves, spec = pytree.tree_flatten(output)
    at = next((k for k, v in enumerate(leaves) if isinstance(v, torch.Tensor)), None)
    if at is None:
        raise ExportError(f"The module {path!r} returns {type(output).__name__}, which holds no tensor to explain.")

    def rebuild(t: torch.Tensor) -> Any:
        return pytree.tree_unflatten([*leaves[:at], t, *leaves[at + 1 :]], spec)

    return leaves[at], rebuild


def _outputs(output: Any) -> dict[str, torch.Tensor]:
    """A model's tensors by name: ``output`` for one alone, keys for dicts, ``output_k`` else."""
    if isinstance(output, torch.Tensor):
        return {"output": output}
    if isinstance(output, Mapping):  # Hugging Face's ModelOutput is one
        return {str(k): v for k, v in output.items() if isinstance(v, torch.Tensor)}
    leaves = [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]
    return {f"output_{k}" if len(leaves) > 1 else "output": v for k, v in enumerate(leaves)}


@dataclass(frozen=True)
class _Captured:
    """An exported model.

    Attributes:
        model: as torch exported it, with the user's output names.
        tensors: the layers' values by the user's name.
        origins: what torch called the values that were renamed.
        program: torch's ONNXProgram.
    """

    model: ir.Model
    tensors: dict[str, str]
    origins: dict[str, str]
    program: Any


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    targets: Sequence[Target],
    dynamic_batch: bool,
    dynamic_size: bool,
    opset: int,
) -> tuple[_Captured, list[str]]:
    names: list[str] = []

    def finish(output: Any, found: list[torch.Tensor]) -> Any:
        tensors = _outputs(output)
        names[:] = [*tensors]
        if not tensors:
            raise ExportError(f"The model returns {type(output).__name__}, which holds no tensor to explain.")
        return (*tensors.values(), *found)

    notes: list[str] = []
    with _capturing(model, targets, finish):
        if dynamic_batch or dynamic_size:
            try:
                program = _torch_export(model, args, kwargs, dynamic_batch, dynamic_size, opset)
            except ExportError:
                raise
            except Exception as dynamic_error:
                try:
                    program = _torch_export(model, args, kwargs, False, False, opset)
                except Exception:
                    raise ExportError(_why(dynamic_error)) from dynamic_error
                notes.append(
                    "The sizes are fixed to those of example_inputs: torch could not export the model with an open "
                    f"batch ({_first_line(dynamic_error)})."
                )
        else:
            try:
                program = _torch_export(model, args, kwargs, False, False, opset)
            except ExportError:
                raise
            except Exception as e:
                raise ExportError(_why(e)) from e
    graph = program.model.graph
    extra = list(graph.outputs)[len(names) :]
    tensors: dict[str, str] = {}
    for t, value in zip(targets, extra, strict=True):
        # The exporter may hand out a copy of the value that the rest of the graph uses.
        while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
            value = node.inputs[0]
        tensors[t.name] = value.name or ""
    del graph.outputs[len(names) :]
    renamed: dict[str, str] = {}
    for value, name in zip(graph.outputs, names, strict=True):
        renamed[value.name or ""] = name
        value.name = name
    tensors = {n: renamed.get(t, t) for n, t in tensors.items()}
    return _Captured(program.model, tensors, {v: k for k, v in renamed.items()}, program), notes


def _torch_export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: bool, size: bool, opset: int
) -> Any:
    shapes = None
    if batch or size:
        # torch takes a size of 1 for a constant.
        args, kwargs = pytree.tree_map(_doubled, (args, kwargs)) if batch else (args, kwargs)
        shapes = _dynamic_shapes(model, args, kwargs, batch, size)
    with _quietly(), torch.no_grad():
        return torch.onnx.export(
            model,
            args,
            kwargs=kwargs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=shapes,
            verbose=False,
            optimize=True,
        )


def _doubled(x: Any) -> Any:
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) and x.ndim and x.shape[0] == 1 else x


def _dynamic_shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: bool, size: bool
) -> dict[str, Any]:
    """The open axes of every input, by the names of the forward method's parameters."""
    n = torch.export.Dim("batch") if batch else None
    bound = inspect.signature(model.forward).bind(*args, **kwargs)

    def axes(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return None
        opened: dict[int, Any] = {}
        if n is not None and x.ndim:
            opened[0] = n
        if size and x.ndim == 4:
            opened |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        return opened

    return {name: pytree.tree_map(axes, value) for name, value in bound.arguments.items()}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's progress, warnings and logs; errors come through."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _why(e: BaseException) -> str:
    return (
        f"torch could not export the model: {_first_line(e)}. Try `torch.export.export(model, args)` alone to see "
        "all of it, or export an ONNX file by other means and rewrite that."
    )


def _first_line(e: BaseException) -> str:
    """The cause of a chain of errors, in one line."""
    while (inner := e.__cause__ or e.__context__) is not None and inner is not e:
        e = inner
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[0] if lines else type(e).__name__).rstrip(".")[:300]


# -- verification -----------------------------------------------------------------------------------


def _verify(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    draft: Path,
    record: Record,
    captured: _Captured,
    targets: Sequence[Target] | None,
) -> tuple[float, float | None]:
    """Compare outputs and gradients with the model's own, on the example inputs.

    Returns:
        The errors of the outputs and of the gradients, over their largest entries.
    """
    score = record.score
    grabbed: list[torch.Tensor] = []

    def finish(output: Any, found: list[torch.Tensor]) -> Any:
        grabbed[:] = found
        return output

    args, kwargs = pytree.tree_map(_frozen, (args, kwargs))
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if targets is not None:
            # Weights need no gradient, but the captured tensors must be on a graph: an input that
            # requires one puts everything behind it there.
            with _requiring_grad(args, kwargs), _capturing(model, targets, finish):
                outputs = _outputs(model(*args, **kwargs))
        else:
            outputs = _outputs(model(*args, **kwargs))
            grabbed = []
    feeds = _feeds(captured, args, kwargs)
    after = run(os.fspath(draft), feeds)
    output_error = 0.0
    for name, tensor in outputs.items():
        expected = tensor.detach().cpu().numpy()
        error = relative_error(after[name], expected)
        output_error = max(output_error, error)
        limit = max(TOLERANCE.get(expected.dtype.name, 0.0), 1e-3 if expected.dtype == np.float32 else 0.0)
        if not error <= limit:
            raise VerificationError(
                f"The exported output {name!r} differs from the model's by {error:.2g} of its largest entry (allowed: "
                f"{limit:g}). Nothing was written. Models that are random at inference cannot be verified: "
                "pass verify=False."
            )
    if targets is not None and (score.activation is None or score.probability):
        table = outputs[score.output].flatten(1)
        expected_gradients = _gradients(table, table, grabbed)
    else:
        expected_gradients = _program_gradients(captured, args, kwargs, record, outputs[score.output])
    errors = [
        _checked_gradient(layer.name, after[layer.gradients], gradient.detach().cpu().numpy())
        for layer, gradient in zip(record.layers, expected_gradients, strict=True)
        if gradient is not None
    ]
    return output_error, max(errors) if errors else None


def _gradients(
    table: torch.Tensor, output: torch.Tensor, tensors: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor | None]:
    """The gradients of each image's score for its top class, the class that a file explains unasked."""
    picked = table.gather(1, output.detach().argmax(1, keepdim=True)).sum()
    if not picked.requires_grad:
        return [None] * len(tensors)
    return torch.autograd.grad(picked, tensors, allow_unused=True)


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


def _program_gradients(
    captured: _Captured, args: tuple[Any, ...], kwargs: dict[str, Any], record: Record, output: torch.Tensor
) -> Sequence[torch.Tensor | None]:
    """torch.autograd's gradients where score or layer is no module's output: through torch's own program.

    The exported file's values have the names of the program's.
    """
    names = [captured.origins.get(t, t) for t in (record.score.tensor, *(x.tensor for x in record.layers))]
    watching = _Watching(captured.program.exported_program.module(), names)
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    with torch.enable_grad(), warnings.catch_warnings(), _requiring_grad(args, kwargs):
        warnings.simplefilter("ignore")
        try:
            watching.run(*leaves)
        except Exception:
            # A program with guards of its own cannot be stepped through; the report says so.
            return [None] * len(record.layers)
    if any(n not in watching.kept for n in names):
        return [None] * len(record.layers)
    score, *layers = (watching.kept[n] for n in names)
    return _gradients(score.flatten(1), output.flatten(1), layers)


def _checked_gradient(name: str, ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The error over the largest entry, kinks left out."""
    if ours.shape != theirs.shape:
        raise VerificationError(
            f"The gradient at {name!r} has shape {ours.shape}; torch's has {theirs.shape}. Nothing was written."
        )
    scale = float(np.abs(theirs).max()) or 1.0
    errors = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)) / scale
    limit = GRADIENT_TOLERANCE.get(theirs.dtype.name, 1e-3)
    off = errors > limit
    if off.mean() > KINKS:
        raise VerificationError(
            f"The gradient at {name!r} differs from torch.autograd's by {float(errors.max()):.2g} of its largest "
            f"entry in {100 * float(off.mean()):.1f} % of its elements. Nothing was written; please report it."
        )
    return float(errors[~off].max()) if (~off).any() else 0.0


def _frozen(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x


@contextlib.contextmanager
def _requiring_grad(args: Any, kwargs: Any) -> Iterator[None]:
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    for t in tensors:
        t.requires_grad_(True)
    try:
        yield
    finally:
        for t in tensors:
            t.requires_grad_(False)


def _feeds(captured: _Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    names = [v.name or "" for v in captured.model.graph.inputs if not v.is_initializer()]
    return {n: t.detach().cpu().numpy() for n, t in zip(names, tensors, strict=False)}


def _fitting(labels: Sequence[str] | None, classes: int | None) -> Sequence[str] | None:
    """Labels that a model carries, unless its head was changed to another number of classes."""
    return labels if labels is not None and classes in (None, len(labels)) else None

