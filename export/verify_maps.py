"""Maps computed inside a file against the same functions on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .. import methods
from ..contract import Record
from ..errors import VerificationError
from ..grids import channels_first
from ..postprocess import heatmaps, resize
from .fuse import TracedMap
from .needs import Given
from .verify import Feeds

TOLERANCE = 1e-5  #: of the map's peak


@contextlib.contextmanager
def complete(draft: Path, wanted: Sequence[str]) -> Iterator[Path]:
    """A copy of a file, beside it, with further values as outputs; the file itself if it has them all.

    Args:
        draft: the file; weights beside it are shared.
        wanted: names of values; those that no node makes are left out.
    """
    model = onnx.load(draft, load_external_data=False)
    there = {o.name for o in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    missing = [name for name in dict.fromkeys(wanted) if name in made - there]
    if not missing:
        yield draft
        return
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    path = draft.with_name(f"complete.{draft.name}")
    path.write_bytes(model.SerializeToString())
    try:
        yield path
    finally:
        path.unlink()


def tensors_of(record: Record, maps: Sequence[TracedMap]) -> list[str]:
    """The layers' tensors, and what :func:`compare_maps` reads."""
    layers = [name for layer in record.layers for name in (layer.activations, layer.gradients)]
    read = [x.value.name or "" for m in maps for given in m.given for g in given.values() for x in g.raw]
    return [*layers, *read]


def compare_maps(maps: Sequence[TracedMap], found: Feeds) -> float:
    """Compare maps with the host's, made from the same tensors.

    Args:
        maps: what they were made from.
        found: the outputs of one run, with those of :func:`tensors_of`.

    Returns:
        The largest difference, over the map's peak.

    Raises:
        VerificationError: it is larger than rounding explains.
    """
    worst = 0.0
    for traced in maps:
        ours = found[traced.fused.output]
        expected = on_host(traced, found, ours.shape[1:], np.float32)
        exact = on_host(traced, found, ours.shape[1:], np.float64)
        if ours.shape != expected.shape or not np.isfinite(ours).all():
            raise VerificationError(
                f"The map {traced.fused.output!r} has shape {ours.shape} (the host's: {expected.shape}) or "
                "is not finite. Nothing was written; please report it with the model."
            )
        peak = float(np.abs(exact).max()) or 1.0
        error = float(np.abs(ours - expected).max()) / peak
        # A map whose channels cancel is all rounding: two orders of adding up differ by as much.
        rounding = float(np.abs(expected - exact).max()) / peak
        if not error <= max(TOLERANCE, 10 * rounding):
            raise VerificationError(
                f"The map {traced.fused.output!r} differs from the host's by {error:.2g} of its peak "
                f"(allowed: {TOLERANCE:g}). Nothing was written; please report it with the model."
            )
        worst = max(worst, error)
    return worst


def on_host(traced: TracedMap, found: Feeds, size: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """The map as NumPy makes it, the method computed in a dtype."""
    fused, method = traced.fused, methods.get(traced.fused.method)
    raw = []
    for given in traced.given:
        tensors = {need: _arrays(g, found, dtype) for need, g in given.items()}
        first, of_first = next(zip(given.values(), tensors.values(), strict=True))
        grid = of_first[0].shape[first.lead :]
        made = method(**{need: g.handed(tensors[need], np) for need, g in given.items()})
        raw.append(np.asarray(made, np.float32).reshape(len(made), *grid))
    if fused.scaled:
        return heatmaps(raw, size, method.rectify, fused.fuse)
    return resize(raw[0], size)


def _arrays(given: Given, found: Feeds, dtype: Any) -> list[np.ndarray[Any, Any]]:
    """What the host's function is given for one need."""
    arrays = [found[x.value.name or ""] for x in given.raw]
    if given.layout is not None:
        arrays = [channels_first(a, given.layout) for a in arrays]
    return [a.astype(dtype) for a in arrays]
