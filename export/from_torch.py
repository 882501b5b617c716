"""From a PyTorch model to an explainable file, through torch's own ONNX exporters.

With :mod:`.torch_capture` (module outputs), :mod:`.torch_exporters` (which exporter takes the model) and
:mod:`.torch_verify` (the check against autograd) all of the project that imports torch;
:mod:`.torch_records` reads what timm, torchvision and Hugging Face record.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..contract import Source
from ..errors import ExportError, UnknownLayer, nearest
from .explainable import add_explanation
from .from_onnx import OPSET, inline, normalize
from .fuse import FuseLike, as_specs
from .layers import AUTO, Names, listed
from .layouts import layouts
from .notes import notes_on
from .report import ExportReport
from .rewrite import as_labels, checked_labels, choose, copied_bytes, preprocessing
from .scores import ScoreSpec, find_score
from .tail_files import check_tails, staged_with_tails
from .torch_capture import Captured, Target, capturing, outputs_by_name
from .torch_exporters import Exported, export_graph, first_line
from .torch_records import find_labels, find_preprocess
from .torch_verify import feeds, verify_against
from .verify import run
from .verify_maps import compare_maps, complete, tensors_of

LayerSpec: TypeAlias = "str | nn.Module"
Inputs: TypeAlias = "torch.Tensor | Sequence[Any] | Mapping[str, Any]"


def export_torch(
    model: nn.Module,
    example_inputs: Inputs,
    target: str | os.PathLike[str],
    layers: LayerSpec | Sequence[LayerSpec] | None = AUTO,
    score: str | Mapping[str, Any] | ScoreSpec | None = None,
    *,
    probability: bool = False,
    preprocess: Any = None,
    labels: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    opset: int = OPSET,
    fuse: FuseLike | Sequence[FuseLike] | None = None,
    maps_only: bool = False,
    tail: bool = False,
    verify: bool = True,
) -> ExportReport:
    """Export a PyTorch model as an explainable ONNX file.

    Args:
        model: a module in float32 or float16, on any device. One in training mode is
            exported in evaluation mode and left as it was.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
        target: where to write; replaced only by a complete, checked file.
        layers: ``auto`` (or None); or a module path (``layer4``, ``features.29``), a module object, or a
            list of them. A module that is called several times is explained at its last call; ``path#0``
            means its first.
        score: what to explain; see :func:`onnxcam.export.rewrite_onnx`.
        probability: explain the probability, not the logit before a final softmax or sigmoid.
        preprocess: a preset's name, a record's fields, or what torchvision (weights or their transforms),
            timm (a data config) or Hugging Face (an image processor) describe theirs with; None: what the
            model itself carries, if it does.
        labels: the classes' names in index order; None: what the model or ``preprocess`` carries.
        dynamic_batch: leave the first axis of every input open.
        dynamic_size: leave height and width of image inputs open, too.
        opset: of the file; 18 is the newest without gaps on CUDA. torch's older exporter, which takes the
            model where the newer one refuses it, ends at 20.
        fuse: methods whose maps the file computes itself, and
        maps_only: whether to leave out all else; see :func:`onnxcam.export.rewrite_onnx`.
        tail: write what follows each layer, too; see :func:`onnxcam.export.rewrite_onnx`.
        verify: compare outputs and gradients with the model and ``torch.autograd``, fused maps with the
            host's, and tails with the file.

    Returns:
        What was written, with the errors found.

    Raises:
        ExportError: a model that cannot be exported, or a layer that cannot be captured.
        UnknownLayer: no such module; the nearest are named.
        VerificationError: the file computes something else; nothing is written.
        LayerNotOnPath, NoGradientRule, ShapeUnknown, ScoreError, MethodError, OutputError: see
            :func:`onnxcam.export.rewrite_onnx`.
    """
    started = time.perf_counter()
    maps_wanted = as_specs(fuse, maps_only)
    _check_model(model)
    args, kwargs = _arguments(model, example_inputs)
    labels = as_labels(labels)
    wanted = listed(layers, (str, nn.Module), "a module path or a module")
    targets = None if wanted is None else _targets(model, wanted)
    notes: list[str] = []
    if any(m.training for m in model.modules()):
        notes.append("The model was in training mode; it was exported in evaluation mode.")
    with _evaluating(model):
        captured, notes_of_export = _export(
            model, args, kwargs, targets or [], dynamic_batch, dynamic_size, opset
        )
        notes += notes_of_export
        inline(captured.model)
        names = Names(captured.model.graph)
        onnx_model = normalize(captured.model)
        found = find_score(onnx_model.graph, score, probability, labels)
        known = layouts(onnx_model.graph)
        chosen = choose(onnx_model.graph, captured.tensors if targets else None, found, known, names)
        spec = find_preprocess(model if preprocess is None else preprocess)
        recorded = None if spec is None else preprocessing(onnx_model.graph, spec)
        if labels is None:
            labels = _fitting(find_labels(preprocess) or find_labels(model), found.score.classes)
        before = onnx_model.graph.num_nodes()
        record, maps = add_explanation(
            onnx_model,
            chosen,
            known,
            found,
            recorded,
            checked_labels(labels, found),
            Source(type(model).__name__),
            maps_wanted,
            maps_only,
        )
        errors: tuple[float | None, float | None] = (None, None)
        map_error = None
        given = feeds(captured, args, kwargs)
        with staged_with_tails(onnx_model, record, target, chosen if tail else {}, given) as drafts:
            draft, record = drafts.path, drafts.record
            if verify:
                with complete(draft, tensors_of(record, maps)) as whole:
                    errors = verify_against(model, args, kwargs, whole, record, captured, targets)
                    if maps:
                        map_error = compare_maps(maps, run(os.fspath(whole), given))
                check_tails(drafts, onnx_model.graph, given)
                if errors[1] is None:
                    notes.append(
                        "The gradient was not compared with torch.autograd: its tensor is no module's, or "
                        "the score is a detection's."
                    )
            size = draft.stat().st_size
    return ExportReport(
        path=Path(target),
        record=record,
        opset=onnx_model.graph.opset_imports[""],
        nodes_added=onnx_model.graph.num_nodes() - before,
        source_bytes=0,
        bytes=size,
        tails=drafts.bytes,
        copied_bytes=copied_bytes(onnx_model.graph),
        output_error=errors[0],
        gradient_error=errors[1],
        map_error=map_error,
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
            "The model is in bfloat16, for which ONNX Runtime has few kernels. "
            "Convert it with `model.float()` or `model.half()` first."
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
        raise ExportError(
            "example_inputs holds no tensor: give a tensor, a tuple of them, or a dict by input name."
        )
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


def _targets(model: nn.Module, layers: Sequence[LayerSpec]) -> list[Target]:
    """The modules to capture."""
    modules = dict(model.named_modules(remove_duplicate=False))
    targets = []
    for layer in layers:
        if isinstance(layer, nn.Module):
            path = next((p for p, m in modules.items() if m is layer), None)
            if path is None:
                raise UnknownLayer(f"The given {type(layer).__name__} is not a module of this model.")
            targets.append(Target(path or type(layer).__name__, path))
            continue
        path, _, call = layer.partition("#")
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


# -- export ---


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    targets: Sequence[Target],
    dynamic_batch: bool,
    dynamic_size: bool,
    opset: int,
) -> tuple[Captured, tuple[str, ...]]:
    names: list[str] = []

    def finish(output: Any, found: list[torch.Tensor]) -> Any:
        tensors = outputs_by_name(output)
        names[:] = [*tensors]
        if not tensors:
            raise ExportError(f"The model returns {type(output).__name__}, which holds no tensor to explain.")
        return (*tensors.values(), *found)

    with capturing(model, targets, finish):
        _rehearse(model, args, kwargs)
        exported = export_graph(model, args, kwargs, dynamic_batch, dynamic_size, opset)
    return _captured(exported, targets, names), exported.notes


def _rehearse(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One plain run: what is wrong with a model, its inputs or layers is not torch.export's to say."""
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            model(*args, **kwargs)
    except ExportError:
        raise
    except Exception as e:
        raise ExportError(
            f"The model does not run on example_inputs: {first_line(e)}. Give what its forward takes: "
            "a tensor, a tuple, or a dict by parameter."
        ) from e


def _captured(exported: Exported, targets: Sequence[Target], names: Sequence[str]) -> Captured:
    """Takes the layers off the outputs of an exported model, and gives the outputs the model's names."""
    graph = exported.model.graph
    tensors: dict[str, str] = {}
    for t, value in zip(targets, list(graph.outputs)[len(names) :], strict=True):
        tensors[t.name] = _original(value).name or ""
    del graph.outputs[len(names) :]
    renamed: dict[str, str] = {}
    for value, name in zip(graph.outputs, names, strict=True):
        renamed[value.name or ""] = name
        value.name = name
    tensors = {n: renamed.get(t, t) for n, t in tensors.items()}
    return Captured(exported.model, tensors, {v: k for k, v in renamed.items()}, exported.program)


def _original(value: ir.Value) -> ir.Value:
    """The value that a chain of copies hands out: the exporter copies what is used twice."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _fitting(labels: Sequence[str] | None, classes: int | None) -> Sequence[str] | None:
    """Labels that a model carries, unless its head was changed to another number of classes."""
    return labels if labels is not None and classes in (None, len(labels)) else None
