"""Which quantised tensors move the explanation: each alone quantised, and each alone put back to float.

The reference and its QDQ form become one file with a switch per tensor (:mod:`.switches`). It explains every
photo with every setting of the switches, always for the class that the reference chooses, and each setting's
maps are compared with the reference's on the same grid.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import images, methods
from ..comparison import agreement
from ..comparison.agreement import Measure
from ..contract import KEY, PREFIX, Preprocess, Record, read_record
from ..errors import ImageError, InputError, MethodError, ModelError, VerificationError
from ..explainer import Explainer
from ..kinds import is_finite, is_whole
from ..preprocess import apply
from ..recorder import names_of
from .bench import Bench, Progress
from .explainable import strip
from .from_onnx import inline, load, normalize
from .gradients.builder import dims_of
from .layers import Names
from .layouts import layouts
from .ranking import Advice, Check, Culprit, Effect, Ranking
from .rewrite import choose, rewrite_onnx
from .scores import SAME_NUMBERS, FoundScore, ScoreSpec, as_spec, find_score
from .scores.classification import one_per_class
from .switches import Array, Switchable, Tensor, switchable
from .verify import TOLERANCE
from .write import staged

#: What the maps must reach so that no further tensor is left in float; of measures where lower is better, how
#: far from their best they may be.
AGREEMENT = 0.95

Source = str | os.PathLike[str]


def culprits(
    reference: Source,
    quantised: Source,
    photos: Source | Sequence[Source],
    *,
    method: str = "gradcam",
    layer: str | None = None,
    measure: str = "pearson",
    threshold: float | None = None,
    top: int | None = None,
    batch: int = 8,
    preprocess: str | Mapping[str, Any] | Preprocess | None = None,
    labels: Sequence[str] | None = None,
    score: str | Mapping[str, Any] | ScoreSpec | None = None,
    probability: bool = False,
    providers: Any = None,
    progress: Progress | None = None,
) -> Ranking:
    """Rank the quantised tensors by how much each, alone, moves the explanation.

    Example:
        >>> found = culprits("fp32.onnx", "qdq.onnx", "photos/", preprocess="imagenet")  # doctest: +SKIP
        >>> found.culprits[0].tensor.name, found.advice.tensors  # doctest: +SKIP

    Args:
        reference: the fp32 file; if it is explainable, what it records of layer and photos holds where
            nothing else is said.
        quantised: the file that Q and DQ were put into.
        photos: and folders of them. A few dozen will do: each is explained twice for every tensor, and what
            the model takes of it is kept in memory.
        method: of :func:`onnxcam.methods.names`; one that needs no more than a layer.
        layer: of the reference; None: its best.
        measure: of :mod:`onnxcam.comparison.agreement`.
        threshold: that the mean must meet when the tensors of the advice are in float; None: 0.95, or 0.05 of
            measures where lower is better.
        top: how many tensors are also put back to float one by one; None: all.
        batch: photos in one run.
        preprocess: how photos become the model's input; see :func:`onnxcam.export.rewrite_onnx`.
        labels: see there.
        score: what is explained; see there.
        probability: see there.
        providers: see :class:`onnxcam.Explainer`.
        progress: called with how many photos were explained, and how many are known to follow so far, each
            counted for every setting.

    Raises:
        ModelError: the files are not a network and its QDQ form, or hold the same numbers.
        VerificationError: the file with switches does not compute what the reference does.
        InputError: no photo that can be used, no preprocessing, or an argument out of its range.
        MethodError, MetricError, UnknownLayer: the names.
    """
    started = time.perf_counter()
    chosen = agreement.get(measure)
    limit = _threshold(chosen, threshold)
    for name, value, least in (("top", top, 0), ("batch", batch, 1)):
        if not (value is None and name == "top") and not is_whole(value, least):
            raise InputError(f"{name} is {value!r}; it is a whole number of at least {least}.")
    held = methods.get(method)
    if held.inside or held.head is not None or "tail" in held.needs:
        raise MethodError(
            f"The method '{method}' needs more of the network than a layer's activations and gradients, and "
            "switches stand in it: take one that does not, such as gradcam, layercam or hirescam."
        )
    board = switchable(reference, quantised)
    if not board.tensors:
        raise ModelError(
            f"'{os.fspath(quantised)}' holds the numbers of '{os.fspath(reference)}' in every tensor, and "
            "rounds no activation: its explanations are the same."
        )
    known = _record(reference)
    spec = as_spec(score, probability)
    asked = spec.output
    name, tensor, spec = _explained(reference, layer, spec, known)
    paths = names_of([photos] if isinstance(photos, (str, os.PathLike)) else photos)
    with tempfile.TemporaryDirectory() as folder:
        plain, made = Path(folder) / "switched.onnx", Path(folder) / "switched.cam.onnx"
        with staged(board.model, plain):
            pass
        rewrite_onnx(
            plain,
            made,
            board.read.get(tensor, tensor),
            _before_switch(spec, board),
            preprocess=known.preprocess if preprocess is None and known is not None else preprocess,
            labels=known.labels if labels is None and known is not None else labels,
            verify=False,
        )
        explainer = Explainer(made, providers)
    ready, skipped = _read(explainer, paths, reference)
    bench = Bench(
        explainer, held, chosen, ready, len(board.tensors), _classes(explainer, board, asked), batch, progress
    )
    check = _check(bench, reference, quantised)
    everything, found = _ranking(bench, board.tensors, top)
    advice = _advice(bench, board.tensors, found, limit)
    return Ranking(
        reference=Path(reference).name,
        quantised=Path(quantised).name,
        layer=name,
        method=method,
        measure=measure,
        better=chosen.better,
        threshold=limit,
        photos=bench.names,
        skipped=(*skipped, *bench.silent),
        culprits=found,
        same=board.same,
        everything=everything,
        advice=advice,
        check=check,
        runs=bench.runs,
        seconds=time.perf_counter() - started,
    )


def _threshold(measure: Measure, given: float | None) -> float:
    best, usual = measure.best, 1 - AGREEMENT
    if given is None:
        return best - usual if measure.better == "higher" else best + usual
    if not is_finite(given) or not measure.low <= given <= measure.high:
        raise InputError(
            f"threshold is {given!r}; the measure '{measure.name}' lies between {measure.low:g} and "
            f"{measure.high:g}."
        )
    return given


def _record(reference: Source) -> Record | None:
    model = load(reference)
    return read_record(model.metadata_props) if KEY in model.metadata_props else None


def _explained(
    reference: Source, layer: str | None, spec: ScoreSpec, known: Record | None
) -> tuple[str, str, ScoreSpec]:
    """What is explained of the reference: the layer's name and tensor, and the score's tensor.

    That of the logits, as the network makes them: behind them lie activations and shapes, and switches, which
    do not take part, since a score that its range clips is still what is explained.
    """
    model = load(reference)
    if known is not None:
        model = strip(model)
    inline(model)
    names = Names(model.graph)
    tensors = None if layer is None else {layer: names.resolve(layer)}
    if tensors is None and known is not None and known.layers:
        tensors = {known.layers[0].name: known.layers[0].tensor}
    model = normalize(model)
    found = find_score(model.graph, spec)
    ((name, value),) = choose(model.graph, tensors, found, layouts(model.graph), names).items()
    if found.score.task in _OF_ONE_TENSOR:
        spec = dataclasses.replace(spec, output=_made_first(found).name, task=found.score.task)
    return name, value.name or "", spec


_OF_ONE_TENSOR = ("classification", "regression", "segmentation")


def _made_first(found: FoundScore) -> ir.Value:
    """The score before it was only put into another shape, where it has one number per class there, too."""
    value = found.value
    while found.score.task != "segmentation" and (node := value.producer()) is not None:
        source = node.inputs[0] if node.inputs and node.op_type in SAME_NUMBERS else None
        dims = None if source is None else dims_of(source)
        if source is None or dims is None or not one_per_class(dims):
            break
        value = source
    return value


def _before_switch(spec: ScoreSpec, board: Switchable) -> ScoreSpec:
    """The score, of the outputs before their own switches."""
    output, boxes = (None if n is None else board.scores.get(n, n) for n in (spec.output, spec.boxes))
    return dataclasses.replace(spec, output=output, boxes=boxes)


def _read(
    explainer: Explainer, photos: Mapping[str, str], reference: Source
) -> tuple[dict[str, Array], tuple[tuple[str, str], ...]]:
    """What the model takes of each photo, and the photos that cannot be read."""
    how = explainer.preprocess
    if how is None:
        raise InputError(
            f"'{os.fspath(reference)}' records no preprocessing for photos. Say how its input is made from "
            "one: preprocess= (--preprocess) takes a preset such as imagenet, or fields."
        )
    dtype = explainer.input.dtype or np.dtype(np.float32)
    found, skipped = {}, []
    for name, path in photos.items():
        try:
            found[name] = apply(images.load(path), how, dtype)[0]
        except ImageError as e:
            skipped.append((name, str(e)))
    if not found:
        raise InputError(f"None of the photos can be read. The first: {skipped[0][1]}")
    return found, tuple(skipped)


def _classes(explainer: Explainer, board: Switchable, asked: str | None) -> str | None:
    """The output that a classifier's answer is read from; None where there is none."""
    outputs = [v.name or "" for v in board.model.graph.outputs]
    name = outputs[0] if asked is None and len(outputs) == 1 else asked
    return name if explainer.record.score.task == "classification" and name in outputs else None


def _ranking(bench: Bench, tensors: Sequence[Tensor], top: int | None) -> tuple[Effect, tuple[Culprit, ...]]:
    """The effect of all tensors, and each one's, the worst first."""
    count = len(tensors)
    tried = count if top is None else min(top, count)
    bench.expect(1 + count + tried)
    everything = bench.effect(bench.all_but(()))
    alone = [bench.effect(bench.setting([k])) for k in range(count)]
    order = sorted(range(count), key=lambda k: (-bench.badness(alone[k]), alone[k].same_answer))
    without = {k: bench.effect(bench.all_but([k])) for k in order[:tried]}
    return everything, tuple(Culprit(tensors[k], alone[k], without.get(k)) for k in order)


def _advice(bench: Bench, tensors: Sequence[Tensor], found: Sequence[Culprit], threshold: float) -> Advice:
    """What to leave in float: as many from the top of the ranking as it takes, less those not needed."""
    order = [tensors.index(one.tensor) for one in found]

    def enough(floats: Sequence[int]) -> bool:
        bench.expect(1)
        return bench.meets(bench.effect(bench.all_but(floats)), threshold)

    short, long = 0, 0
    while not enough(order[:long]) and long < len(order):
        short, long = long, min(max(1, 2 * long), len(order))
    while long - short > 1:  # `short` are too few, `long` are enough
        middle = (short + long) // 2
        short, long = (short, middle) if enough(order[:middle]) else (middle, long)
    kept = order[:long]
    for one in reversed(order[:long]):
        rest = [k for k in kept if k != one]
        kept = rest if enough(rest) else kept
    effect = bench.effect(bench.all_but(kept))
    readers = dict.fromkeys(reader for k in kept for reader in tensors[k].readers if reader)
    return Advice(
        tuple(tensors[k].name for k in kept), tuple(readers), effect, bench.meets(effect, threshold)
    )


def _check(bench: Bench, reference: Source, quantised: Source) -> Check:
    """Compare the file with switches with the two that it stands for.

    Raises:
        VerificationError: all switches off, it does not compute what the reference does.
    """
    x, off = bench.outputs(bench.setting(()))
    _, on = bench.outputs(bench.all_but(()))
    wanted = _outputs_of(reference, x)
    steps, kernels = (_outputs_of(quantised, x, optimized) for optimized in (False, True))
    found = Check(_difference(off, wanted), _difference(on, steps), _difference(kernels, steps))
    limit = max(TOLERANCE.get(str(a.dtype), 0) for a in wanted.values())
    if not found.off <= limit:
        raise VerificationError(
            f"With all switches off, the outputs differ from the reference's by {found.off:.2g} of their "
            f"largest entry (allowed: {limit:g}). Please report it with the models."
        )
    return found


def _outputs_of(model: Source, x: Array, optimized: bool = True) -> dict[str, Array]:
    """What a file gives for the first photos, an explainable one without what is ours."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs() if not o.name.startswith(PREFIX)]
    image = session.get_inputs()[0]
    size = image.shape[0] if isinstance(image.shape[0], int) else len(x)
    filled = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
    parts = [session.run(names, {image.name: filled[at : at + size]}) for at in range(0, len(filled), size)]
    arrays = [np.concatenate(several)[: len(x)] for several in zip(*parts, strict=True)]
    return dict(zip(names, arrays, strict=True))


def _difference(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    """The largest, of all outputs in real numbers, over the largest entry; by name, or else in order."""
    other = wanted if found.keys() == wanted.keys() else dict(zip(found, wanted.values(), strict=True))
    worst = [0.0]
    for name, array in found.items():
        if array.dtype.kind == "f":
            one, two = (v.astype(np.float64) for v in (array, other[name]))
            worst.append(np.abs(one - two).max(initial=0) / (np.abs(two).max(initial=0) or 1))
    return float(np.max(worst))
