"""A model with random weights, for sanity checks: a map that stays the same explains no model.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity Checks for Saliency Maps", NeurIPS 2018: the
model parameter randomisation test. ``randomised("model.cam.onnx", "random.cam.onnx")`` writes the other
model, and ``onnxcam evaluate --randomised random.cam.onnx`` compares the maps of both by the metrics
``randomised_ssim`` and ``randomised_rank``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from ..contract import KEY, Record, read_record
from ..errors import InputError, ModelError
from ..kinds import is_whole
from .explainable import strip
from .from_onnx import inline, load
from .rewrite import rewrite_onnx
from .write import staged

#: Operators whose constant operands are learned.
_LEARNED = frozenset(
    "Conv ConvTranspose DeformConv Gemm MatMul Einsum LSTM GRU RNN QLinearConv QLinearMatMul ConvInteger "
    "MatMulInteger QGemm FusedConv FusedGemm FusedMatMul".split()
)


def randomised(
    source: str | os.PathLike[str] | bytes,
    target: str | os.PathLike[str],
    seed: int = 0,
    cascade: int | None = None,
    **how: Any,
) -> tuple[str, ...]:
    """Write a model whose layers, from the score backwards, have random weights.

    A layer is a convolution, a linear map, a matrix product with a constant, or a recurrent operator; its
    weights become draws from a normal distribution with their mean and standard deviation, so that signals
    keep their size. Quantised weights are rounded and stay in their type's range. Biases, normalisations and
    embeddings stay, and so do the layers inside loops and branches.

    Args:
        source: an ONNX file, or its bytes; explainable or not.
        target: where to write. Of an explainable source it is explainable: at the same layers, with the
            same score, preprocessing and labels.
        seed: of the draws.
        cascade: how many layers, counted from the score; None: all of them. 1, 2, 3, ... is the paper's
            cascading randomisation.
        how: arguments of :func:`rewrite_onnx` where the record does not tell them, such as a detector's head:
            ``score={"head": "yolox"}``.

    Returns:
        The names of the nodes whose weights are random, from the score backwards.

    Raises:
        NotOnnx: the source.
        ModelError: it has no layers with weights, or fewer than asked for.
        InputError: the seed.
        OutputError: the target cannot be written.
        Any of :func:`rewrite_onnx`'s, of an explainable source.
    """
    if not is_whole(seed, 0):
        raise InputError(f"The seed of the random weights is a whole number of at least 0, not {seed!r}.")
    model = load(source)
    record = read_record(model.metadata_props) if KEY in model.metadata_props else None
    if record is not None:
        model = strip(model)
    inline(model)
    LiftConstantsToInitializersPass()(model)
    layers = list(_layers(model.graph))
    count = len(layers) if cascade is None else cascade
    if not layers:
        raise ModelError("The model has no layer with weights that could be made random.")
    if not 1 <= count <= len(layers):
        raise ModelError(
            f"cascade is {cascade}, but it counts layers from the score backwards: 1 to {len(layers)}."
        )
    rng = np.random.default_rng(seed)
    drawn: set[ir.Value] = set()
    for _, weights in layers[:count]:
        for value in weights:
            if value not in drawn:  # shared with a layer nearer to the score
                drawn.add(value)
                _draw(value, rng)
    if record is None:
        with staged(model, target):
            pass
    else:
        _explainable_again(model, target, record, how)
    return tuple(name for name, _ in layers[:count])


def _layers(graph: ir.Graph) -> Iterator[tuple[str, list[ir.Value]]]:
    """Node and weights, from the score backwards: what comes late in the graph's order comes first."""
    fed = {value for value in graph.inputs if not value.is_initializer()}
    found = []
    for node in graph:
        if not any(value in fed for value in node.inputs):
            continue
        fed.update(node.outputs)
        if node.op_type in _LEARNED:
            weights = [w for value in node.inputs if value not in fed for w in _constants(value)]
            if weights:
                found.append((node.name or node.outputs[0].name or node.op_type, weights))
    return reversed(found)


def _constants(value: ir.Value | None) -> Iterator[ir.Value]:
    """The weights that a constant operand is made of, through casts, transpositions, dequantisation."""
    if value is None:
        return
    tensor = value.const_value
    if tensor is not None and value.is_initializer():
        real = tensor.dtype.is_floating_point() or tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
        if real and len(tensor.shape) > 1:
            yield value
        return
    node = value.producer()
    for source in node.inputs if node is not None else ():
        yield from _constants(source)


def _draw(value: ir.Value, rng: np.random.Generator) -> None:
    assert value.const_value is not None
    old = value.const_value.numpy()
    real = old.astype(np.float64)
    new = rng.normal(real.mean(), real.std(), real.shape)
    if old.dtype.kind in "iu":
        limits = np.iinfo(old.dtype)
        new = np.clip(np.rint(new), limits.min, limits.max)
    value.const_value = ir.tensor(new.astype(old.dtype), name=value.name)


def _explainable_again(
    model: ir.Model, target: str | os.PathLike[str], record: Record, how: dict[str, Any]
) -> None:
    score = record.score
    told = {"output": score.output, "task": score.task, "background": score.background}
    given = how.pop("score", None) or {}
    fields = {**told, **({"output": given} if isinstance(given, str) else given)}
    if score.seeds:
        fields.setdefault("seed", True)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / (record.source.name or "model.onnx")
        with staged(model, plain):
            pass
        rewrite_onnx(
            plain,
            target,
            **{
                "layers": [layer.name for layer in record.layers],
                "score": {name: value for name, value in fields.items() if value is not None},
                "probability": score.probability,
                "preprocess": record.preprocess,
                "labels": record.labels,
                **how,
            },
        )
