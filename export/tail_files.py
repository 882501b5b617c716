"""Tails beside their file: written with it or not at all, and run against it before."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..contract import (
    CELLS,
    CHOSEN_BOX,
    CHOSEN_REGION,
    CLASS,
    KEY,
    PATCHES,
    WITH_GRADIENTS,
    Layer,
    Record,
    Tail,
)
from ..digest import sha256
from ..errors import VerificationError
from ..tail import rows_of
from .bfloat16 import twin
from .gradients.builder import dims_of
from .paths import image_input
from .tails import cut
from .verify import GRADIENT_TOLERANCE, KINKS, TOLERANCE, TOLERANCE_OF_BFLOAT16, Feeds, relative_error, run
from .write import staged

_AGAIN = (2, 0, 1, 2, 0)  #: which of a batch's images the tail is given, in another number and order


@dataclass(frozen=True)
class Drafts:
    """Files that are complete but have not their names yet.

    Attributes:
        path: the explainable file.
        record: what is recorded in it.
        tails: by name, those beside it.
        bytes: the size of each of those, with the weights that lie beside it.
    """

    path: Path
    record: Record
    tails: Mapping[str, Path] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def staged_with_tails(
    model: ir.Model,
    record: Record,
    target: str | os.PathLike[str],
    layers: Mapping[str, ir.Value],
    feeds: Feeds,
) -> Iterator[Drafts]:
    """Save a model, and beside it what follows its layers; they take their names when the block ends well.

    Args:
        model: explainable; it gets the tails' sides as outputs, and the record that names them.
        record: what it was made explainable with.
        target: the file to write or replace. A tail has weights of its own: above 2 GB, or if the
            source's are outside it, in ``<tail>.data`` beside it.
        layers: by the layers' names, their values; empty if no tail is wanted.
        feeds: sizes that the model runs with.

    Raises:
        ModelError: a tail that cannot be cut out; see :func:`.tails.cut`.
        OutputError, VerificationError: see :func:`.write.staged`.
    """
    path = Path(target)
    with contextlib.ExitStack() as stack:
        drafts, tails = {}, []
        for piece in cut(model, record, layers, feeds, path.name) if layers else ():
            draft = stack.enter_context(staged(piece.model, path.with_name(piece.tail.file)))
            drafts[piece.tail.file] = draft
            tails.append(dataclasses.replace(piece.tail, sha256=sha256(draft)))
        if tails:
            record = dataclasses.replace(record, tails=tuple(tails))
            model.metadata_props[KEY] = record.to_json()
        sizes = {n: sum(p.stat().st_size for p in d.parent.iterdir()) for n, d in drafts.items()}
        yield Drafts(stack.enter_context(staged(model, path)), record, drafts, sizes)


def check_tails(drafts: Drafts, graph: ir.Graph, feeds: Feeds, bfloat16: bool = False) -> None:
    """Run each tail against its file: on one image, and on three, of which the tail is given five.

    Args:
        drafts: the files.
        graph: the explainable one's.
        feeds: the inputs to try.
        bfloat16: whether they compute in it, for which the CPU has no kernels (:mod:`.bfloat16`).

    Raises:
        VerificationError: a tail does not run, or gives another score, class or gradient.
    """
    batch = (dims_of(image_input(graph)) or (None,))[0]
    for size in (1, len(set(_AGAIN))) if not isinstance(batch, int) else (batch,):
        fed = at_batch(graph, feeds, size) if not isinstance(batch, int) else feeds
        again = np.asarray(_AGAIN if size > 1 and not isinstance(batch, int) else range(size))
        whole = _run(drafts.path, fed, bfloat16)
        for tail in drafts.record.tails:
            _check(tail, drafts, whole, size, again, bfloat16)


def at_batch(graph: ir.Graph, feeds: Feeds, size: int) -> dict[str, np.ndarray[Any, Any]]:
    """The same inputs for another batch, every image another."""
    batch = (dims_of(image_input(graph)) or (None,))[0]
    made = {}
    for value in graph.inputs:
        name, dims = value.name or "", dims_of(value) or ()
        if name not in feeds or value.is_initializer():
            continue
        array = feeds[name]
        if dims and not isinstance(dims[0], int) and dims[0] == batch and len(array):
            rows = np.arange(size)
            array = array[rows % len(array)]
            if array.dtype.kind == "f":  # an image that was there before is a little paler now
                paler = 1 - (rows // len(feeds[name])) / 16
                array = (array * paler.reshape(-1, *[1] * (array.ndim - 1))).astype(array.dtype)
        made[name] = array
    return made


def _run(path: Path, feeds: Feeds, bfloat16: bool) -> dict[str, np.ndarray[Any, Any]]:
    with twin(os.fspath(path)) if bfloat16 else contextlib.nullcontext(os.fspath(path)) as file:
        wide = {n: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for n, a in feeds.items()}
        return run(file, wide)


def _check(
    tail: Tail, drafts: Drafts, whole: Feeds, size: int, again: np.ndarray[Any, Any], bfloat16: bool
) -> None:
    layer = next(x for x in drafts.record.layers if x.name == tail.layer)
    fed = {layer.activations: rows_of(whole[layer.activations], tail.rows, again)}
    fed |= {side.name: rows_of(whole[side.name], side.rows, again) for side in tail.sides}
    fed[WITH_GRADIENTS] = np.array([True])
    if tail.local and size == 1:
        _check_local(tail, layer, drafts, fed)
    for name, ours in _run(drafts.tails[tail.file], fed, bfloat16).items():
        rows = len(whole[name]) // size
        theirs = rows_of(whole[name], rows, again)
        kind = theirs.dtype.name
        if name == layer.gradients:
            error = gradient_error(ours, theirs, 5e-2 if bfloat16 else GRADIENT_TOLERANCE.get(kind, 0.0))
            limit = KINKS
        else:
            error = relative_error(ours, theirs)
            limit = TOLERANCE_OF_BFLOAT16 if bfloat16 else TOLERANCE.get(kind, 0.0)
        if not error <= limit:
            raise VerificationError(
                f"The tail of the layer {layer.name!r} gives another {name!r} than the file for a batch of "
                f"{len(again)}: it differs by {error:.2g} (allowed: {limit:g}). Nothing was written; leave "
                "the tail out, and please report it with the model."
            )


def _check_local(tail: Tail, layer: Layer, drafts: Drafts, fed: Feeds) -> None:
    """Run a tail on cells that went out, at corners and inside, and on the whole of the same activations."""
    base = fed[layer.activations]
    channels, height, width = base.shape[1:]
    cells = np.unique([0, width - 1, (height // 2) * width + width // 2, height * width - 1])
    copies = np.arange(len(cells))
    changed = np.repeat(base, len(cells), axis=0)
    changed.reshape(len(cells), channels, -1)[copies, :, cells] = 0
    path = drafts.tails[tail.file]
    same = {n: a for n, a in fed.items() if n not in (layer.activations, WITH_GRADIENTS)}
    sides = {s.name: rows_of(same[s.name], s.rows, 0 * copies) for s in tail.sides}
    whole = _run(path, {**same, **sides, layer.activations: changed}, False)
    patches = {PATCHES: np.zeros((len(cells), channels), base.dtype), CELLS: np.stack([copies, cells], 1)}
    found = _run(path, {**same, layer.activations: base, **patches}, False)
    for name in found.keys() - {
        layer.gradients,
        CLASS,
        CHOSEN_BOX,
        CHOSEN_REGION,
    }:  # rounding may choose another
        error, limit = relative_error(found[name], whole[name]), TOLERANCE.get(found[name].dtype.name, 0.0)
        if not error <= limit:
            raise VerificationError(
                f"The tail of the layer {layer.name!r} gives another {name!r} from changed cells alone than "
                f"from whole activations: it differs by {error:.2g} (allowed: {limit:g}). Nothing was "
                "written; leave the tail out, and please report it with the model."
            )


def gradient_error(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], tolerance: float) -> float:
    """How far a gradient is off: the share of its elements, or of its length, whichever is less.

    Args:
        ours: a gradient.
        theirs: what it should be.
        tolerance: of an element, over the largest.
    """
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    off = ~(np.abs(a - b) <= tolerance * (np.abs(b).max() if b.size else 0.0))
    return min(float(off.mean()), float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0)))
