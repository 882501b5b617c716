"""Many targets of one image: the whole file runs once for it, and what follows the layers for each target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import rows
from .contract import CLASS_INDEX, PREFIX, Layout, Record, activations_name, heatmap_name
from .feeds import shape_of
from .grids import channels_first
from .rows import Rows
from .session import Session, TensorInfo
from .tail import Tail
from .targets import Targets


def run(
    session: Session,
    tail: Callable[[str], Tail],
    feeds: Mapping[str, Any],
    targets: Targets,
    fetch: Sequence[str],
    layouts: Mapping[str, Layout],
    image: TensorInfo,
    max_batch: int,
) -> Rows:
    """What :func:`onnxcam.rows.run` gives, with one whole run for each image if its tails allow that.

    They do not where the file has none for a layer whose gradients are fetched, or a fetched map is computed
    in the file; and they are not needed where every image has one target.

    Args:
        session: the open file.
        tail: from a layer's name to what follows it; asked for layers that the record has one for.
        feeds: {input: checked array or device tensor}.
        targets: the rows; every image has at least one.
        fetch: the outputs to bring back.
        layouts: of those that become float32 (N, C, ...grid).
        image: the input whose leading axis counts the images.
        max_batch: images, or rows, in one run, where the file leaves it open.

    Raises:
        BadTail: a tail is missing, or belongs to another file.
        TensorError, TargetError, ProviderError: see :func:`onnxcam.rows.run`.
    """
    count = shape_of(feeds[image.name])[0]
    layers = [] if len(targets.image_index) == count else layers_of(session.record, fetch)
    if not layers:
        return rows.run(session, feeds, targets, fetch, layouts, image, max_batch)
    tails = [tail(layer) for layer in layers]
    parts = []
    for images in rows.batches(count, rows.images_in_one_run(feeds, image, max_batch)):
        inside = (targets.image_index >= images.start) & (targets.image_index < images.stop)
        part = targets.rows(inside)
        first = np.searchsorted(part.image_index, np.arange(images.start, images.stop))
        asked = list(dict.fromkeys([*fetch, *read_by(tails)]))
        whole = rows.run(session, feeds, part.rows(first), asked, {}, image, max_batch)
        local = part.rows(slice(None), images.start)
        arrays = completed(session, tails, whole.arrays, local, len(first), first, fetch, layouts, max_batch)
        parts.append(Rows(arrays, local, len(first)))
    return Rows(rows.joined(parts).arrays, targets, count)


def layers_of(record: Record, fetch: Sequence[str]) -> list[str]:
    """The layers whose tails give what differs between the targets of an image; empty if they cannot."""
    known = {t.layer for t in record.tails}
    wanted = [layer.name for layer in record.layers if layer.gradients in fetch]
    if not known.issuperset(wanted) or any(name.startswith(heatmap_name("")) for name in fetch):
        return []
    return wanted or [t.layer for t in record.tails[:1]]


def read_by(tails: Sequence[Tail]) -> list[str]:
    """The outputs of the whole file that tails take."""
    return [name for t in tails for name in (t.layer.activations, *t.sides)]


def completed(
    session: Session,
    tails: Sequence[Tail],
    whole: Mapping[str, NDArray[Any]],
    targets: Targets,
    count: int,
    done: NDArray[np.int64],
    fetch: Sequence[str],
    layouts: Mapping[str, Layout],
    max_batch: int,
) -> dict[str, NDArray[Any]]:
    """Each row's outputs, from one whole run of each image.

    Args:
        session: the open file.
        tails: of the layers whose gradients are fetched.
        whole: what the file gave for each image: what is fetched, as the layers have it, and what the tails
            read; what differs between the rows only if some are ``done``.
        targets: the rows.
        count: how many images there are.
        done: the rows that the whole run was of, one for each image; or none.
        fetch: see :func:`run`.
        layouts: see :func:`run`.
        max_batch: see :func:`run`.

    Raises:
        BadTail, TensorError, TargetError, ProviderError: see :func:`run`.
    """
    rest = np.setdiff1d(np.arange(len(targets.image_index)), done)
    varying: dict[str, NDArray[Any]] = {}
    for tail in tails:
        names = [n for n in tail.outputs if n in fetch and n not in varying and _varies(n)]
        if len(rest) and names:
            varying |= _of_rows(session, tail, names, whole, targets.rows(rest), count, max_batch)
    made = {}
    for name in fetch:
        if name in varying and not len(done):
            made[name] = _laid_out(varying[name], layouts.get(name))
            continue
        array = _laid_out(whole[name], layouts.get(name))
        array = array[:count] if name in layouts else array  # a fixed batch was filled up
        if name in varying:
            every = np.empty((len(targets.image_index), *array.shape[1:]), array.dtype)
            every[done], every[rest] = array, _laid_out(varying[name], layouts.get(name))
            made[name] = every
        else:
            per_image = array.ndim > 0 and len(array) == count
            made[name] = array[targets.image_index] if per_image else array
    return made


def _of_rows(
    session: Session,
    tail: Tail,
    names: Sequence[str],
    whole: Mapping[str, NDArray[Any]],
    targets: Targets,
    count: int,
    max_batch: int,
) -> dict[str, NDArray[Any]]:
    """A tail's outputs for rows of ``count`` images."""
    activations = whole[tail.layer.activations][: count * tail.rows]
    sides = {s.name: whole[s.name][: count * s.rows] if s.rows else whole[s.name] for s in tail.record.sides}
    fed = rows.asked(session, targets)
    if CLASS_INDEX in session.choices:
        fed[CLASS_INDEX] = targets.class_index
    ask = tail.gradients if tail.layer.gradients in names else tail.scores
    parts = []
    for piece in rows.batches(len(targets.image_index), max_batch):
        of = targets.image_index[piece]
        found = ask(tail.copies(activations, of), sides, {n: a[piece] for n, a in fed.items()}, of)
        parts.append({name: found[name] for name in names})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _varies(name: str) -> bool:
    """Whether an output is another for each target of an image."""
    return name.startswith(PREFIX) and not name.startswith(activations_name(""))


def _laid_out(array: NDArray[Any], layout: Layout | None) -> NDArray[Any]:
    return array if layout is None else channels_first(array, layout)
