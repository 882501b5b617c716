"""From any ONNX file to an explainable one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from ..contract import KEY, Preprocess, Source, read_record
from ..digest import sha256
from ..errors import InputError, ModelError, NoGradientRule, ShapeUnknown, UnknownLayer
from ..grids import channel_axis, sides
from ..preprocess import resolve
from .bfloat16 import in_bfloat16
from .explainable import add_explanation, strip
from .from_onnx import inline, input_named, load, normalize
from .fuse import FuseLike, as_specs
from .gradients.builder import dims_of
from .gradients.quantized import QUANTIZING, is_real, quantization, readable
from .layers import AUTO, Names, candidates, differentiable_layers, listed
from .layouts import Layouts, layouts
from .notes import copied_bytes as copied_bytes
from .notes import notes_on
from .paths import image_input
from .report import ExportReport
from .scores import FoundScore, ScoreSpec, find_score
from .tail_files import check_tails, staged_with_tails
from .verify import compare, example_feeds
from .verify_maps import compare_maps, complete, tensors_of


def rewrite_onnx(
    source: str | os.PathLike[str] | bytes,
    target: str | os.PathLike[str],
    layers: str | Sequence[str] | None = AUTO,
    score: str | Mapping[str, Any] | ScoreSpec | None = None,
    *,
    probability: bool = False,
    preprocess: str | Mapping[str, Any] | Preprocess | None = None,
    labels: Sequence[str] | None = None,
    lower: bool = False,
    input_shapes: Mapping[str, tuple[int | str, ...]] | None = None,
    example_inputs: Mapping[str, np.ndarray[Any, Any]] | None = None,
    fuse: FuseLike | Sequence[FuseLike] | None = None,
    maps_only: bool = False,
    tail: bool = False,
    verify: bool = True,
) -> ExportReport:
    """Make an ONNX file explainable.

    Args:
        source: the file's path or bytes; one that is explainable already is stripped first, and its
            preprocessing and labels are kept where none are given.
        target: where to write; replaced only by a complete, checked file.
        layers: ``auto`` (or None), or one or more names: a module path, a node's or a tensor's.
        score: what to explain: an output, or the fields of a :class:`onnxcam.export.ScoreSpec`, such as
            ``{"task": "detection", "head": "yolox"}`` or ``{"seed": True}``. A lone output needs no name,
            and its shape tells classes from segmentation maps.
        probability: explain the probability, not the logit before a final softmax or sigmoid.
        preprocess: a preset's name, a record's fields, or a :class:`Preprocess`; None: not recorded.
        labels: the classes' names in index order; None: not recorded.
        lower: bring a file above opset 18 down to it, where every operator has a CUDA kernel.
        input_shapes: sizes to fix on inputs (symbols stay open).
        example_inputs: what to verify with; random where left out.
        fuse: methods whose maps the file computes itself: names of :func:`onnxcam.fused.fusable`, or the
            fields of a :class:`onnxcam.export.FuseSpec`, such as ``{"method": "gradcam", "size": "layer"}``;
            one or several.
        maps_only: those maps are all that the file gives besides the model's own outputs: the layers'
            tensors, of which any method's map can be made, are left out.
        tail: write what follows each layer as a file of its own, too: ``model.tail.onnx`` beside
            ``model.cam.onnx``, with which targets and perturbations beyond the first cost no whole run.
        verify: run the result against the source in ONNX Runtime, fused maps against the host's, and
            tails against the result.

    Returns:
        What was written.

    Raises:
        NotOnnx, UnknownLayer, LayerNotOnPath, NoGradientRule, ShapeUnknown, ScoreError: the model.
        ModelError: labels, sizes or example inputs that do not fit it, names that are ours, or a layer
            that no tail can start from.
        MethodError: a method that cannot be fused, or not at these layers.
        VerificationError: the result computes something else; nothing is written.
        MissingDependency: ``verify`` without ONNX Runtime.
        OutputError: the target cannot be written.
    """
    started = time.perf_counter()
    maps_wanted, wanted = as_specs(fuse, maps_only), listed(layers)
    model = load(source)
    source_bytes = len(source) if isinstance(source, bytes) else _size_on_disk(Path(source), model)
    if KEY in model.metadata_props:
        # What the file already says of photos and classes stays, unless it is given anew.
        before_it = read_record(model.metadata_props)
        preprocess = before_it.preprocess if preprocess is None else preprocess
        labels = before_it.labels if labels is None else labels
        model = strip(model)
    labels = as_labels(labels)
    inline(model)  # what is inside a function can be named, too
    names = Names(model.graph)
    for name in example_inputs or {}:
        input_named(model.graph, name)
    tensors = None if wanted is None else {name: names.resolve(name) for name in wanted}
    model = normalize(model, input_shapes, lower)
    found = find_score(model.graph, score, probability, labels)
    known = layouts(model.graph)
    chosen = choose(model.graph, tensors, found, known, names)
    recorded = None if preprocess is None else preprocessing(model.graph, preprocess)
    path = None if isinstance(source, bytes) else Path(source)
    origin = Source() if path is None else Source(path.name, sha256(path))
    before = model.graph.num_nodes()
    narrow = in_bfloat16(model.graph)
    checked = checked_labels(labels, found)
    try:
        record, maps = add_explanation(
            model, chosen, known, found, recorded, checked, origin, maps_wanted, maps_only
        )
    except NoGradientRule as e:
        works = ", ".join(map(repr, differentiable_layers(model.graph, found, names, known)))
        rest = f"These layers can be explained: {works}." if works else "No layer lies behind them."
        raise NoGradientRule(f"{e} {rest}") from e
    feeds = {**example_feeds(model.graph, recorded), **(example_inputs or {})}
    with staged_with_tails(model, record, target, chosen if tail else {}, feeds) as drafts:
        draft, record = drafts.path, drafts.record
        original = source if isinstance(source, bytes) else os.fspath(source)
        rounds = any(n.op_type in QUANTIZING for n in model.graph)
        agreement = None
        if verify:
            with complete(draft, tensors_of(record, maps)) as whole:
                agreement = compare(original, whole, record, feeds, rounds, narrow)
            check_tails(drafts, model.graph, feeds, narrow)
        map_error = compare_maps(maps, agreement.found) if agreement is not None and maps else None
        size = sum(p.stat().st_size for p in draft.parent.iterdir())
    zero = agreement.zero_gradient if agreement is not None else ()
    return ExportReport(
        path=Path(target),
        record=record,
        opset=model.graph.opset_imports[""],
        nodes_added=model.graph.num_nodes() - before,
        source_bytes=source_bytes,
        bytes=size,
        tails=drafts.bytes,
        copied_bytes=copied_bytes(model.graph),
        output_error=max(agreement.outputs.values(), default=0.0) if agreement is not None else None,
        map_error=map_error,
        notes=notes_on(
            model.graph, record, zero, agreement is not None and agreement.other_kernels, narrow and verify
        ),
        seconds=time.perf_counter() - started,
    )


def _size_on_disk(path: Path, model: ir.Model) -> int:
    """Of a model's file and of those that hold its weights."""
    weights = [v.const_value for v in model.graph.initializers.values()]
    outside = {os.path.realpath(w.path) for w in weights if isinstance(w, ir.ExternalTensor)}
    return path.stat().st_size + sum(os.path.getsize(p) for p in outside)


def choose(
    graph: ir.Graph,
    tensors: Mapping[str, str] | None,
    score: FoundScore,
    known: Layouts,
    names: Names,
) -> dict[str, ir.Value]:
    """The values to explain, by name; the automatic layer where none is named.

    Raises:
        UnknownLayer: the name's tensor is gone, has no grid, or there is nothing to choose from.
        ShapeUnknown: the tensor's shape is not known.
    """
    if tensors is None:
        found = candidates(graph, score, names, known)
        if not found:
            raise UnknownLayer(
                "No tensor with a spatial grid lies between the inputs and the score, so there is no layer "
                f"to choose.{_unknown_from(graph)} Name one with `layers=` (`--layer`) if you know better."
            )
        tensors = {found[0].name: found[0].tensor}
    values = {v.name: v for n in graph for v in n.outputs} | {v.name: v for v in graph.inputs}
    read = readable(graph)
    chosen = {}
    for name, tensor in tensors.items():
        value = values.get(tensor)
        if value is None and names.is_fed(tensor):
            raise UnknownLayer(
                f"The layer {name!r} is gone: the conversion of the opset has replaced it, or it is a size "
                "that is known beforehand. `onnxcam layers MODEL` lists the layers that can be explained."
            )
        if value is None:
            raise UnknownLayer(
                f"The layer {name!r} is the constant {tensor!r}: it does not depend on the input."
            )
        value = read.get(value, value)
        if not is_real(value) and quantization(value) is None:
            raise UnknownLayer(
                f"The layer {name!r} holds whole numbers, and the file does not say what they stand for. "
                "`onnxcam layers MODEL` lists the layers that can be explained."
            )
        dims = dims_of(value)
        if dims is None:
            raise ShapeUnknown(
                f"The shape of the layer {name!r} is not known.{_unknown_from(graph)} "
                "`onnxcam layers MODEL` lists the layers whose grid is known."
            )
        if value not in known:
            raise UnknownLayer(
                f"The layer {name!r} has shape {list(dims)}, in which no spatial grid is known: its places "
                "are not, or no longer, the image's. `onnxcam layers MODEL` lists the layers that have one."
            )
        chosen[name] = value
    return chosen


def _unknown_from(graph: ir.Graph) -> str:
    """A sentence on where shapes cease to be known; empty if they do not."""
    for value in graph.inputs:
        if dims_of(value) is None:
            return f" The file gives no shape for its input {value.name!r}: pass it as `input_shapes=`."
    for node in graph:
        if any(dims_of(v) is None for v in node.outputs):
            kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            return f" ONNX's shape inference ends at {kind} {node.name!r}."
    return ""


def preprocessing(graph: ir.Graph, spec: str | Mapping[str, Any] | Preprocess) -> Preprocess:
    """A preprocessing record that fits the graph's image input: its name, size and layout.

    Raises:
        InputError: an unknown preset or field, or a value that cannot be used.
    """
    value = image_input(graph)
    dims = dims_of(value) or ()
    layout: Literal["NCHW", "NHWC"] | None = None
    size = None
    if len(dims) in (3, 5):
        raise InputError(
            f"The model's input {value.name!r} has shape {list(dims)}, which is no photo's: leave the "
            "preprocessing out, and hand arrays to explain_tensor."
        )
    if len(dims) == 4:
        layout = "NHWC" if channel_axis(dims) == 3 else "NCHW"
        h, w = sides(dims)
        size = (h, w) if isinstance(h, int) and isinstance(w, int) else None
    return resolve(spec, size=size, layout=layout, input=value.name or "")


def as_labels(labels: Any) -> list[str] | None:
    """The labels as a list.

    Raises:
        ModelError: they are no strings.
    """
    if labels is None:
        return None
    several = isinstance(labels, Iterable) and not isinstance(labels, str)
    found: list[Any] = list(labels) if several else [None]
    if not all(isinstance(x, str) for x in found):
        raise ModelError(
            "The labels must be a list of strings, one for each class, in index order (`--labels` reads them "
            "from a file)."
        )
    return found


def checked_labels(labels: Sequence[str] | None, score: FoundScore) -> Sequence[str] | None:
    """The labels, if there is one for each class.

    Raises:
        ModelError: too many, or too few.
    """
    classes = score.score.classes
    if labels is not None and classes is not None and len(labels) != classes:
        raise ModelError(
            f"There {'is 1 label' if len(labels) == 1 else f'are {len(labels)} labels'} for the {classes} "
            f"class{'es' * (classes != 1)} of {score.score.output!r}. Give one for each class, in index "
            "order (`labels=`, `--labels`)."
        )
    return labels
