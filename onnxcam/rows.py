"""Running a file for rows of (image, class): in pieces, padded where the file's batch is fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import CLASS_INDEX, TOP_CLASS, Layout
from .errors import TargetError, TensorError
from .feeds import shape_of
from .grids import channels_first
from .session import Session, TensorInfo
from .targets import Targets, stacked


@dataclass(frozen=True)
class Rows:
    """What the file gave.

    Attributes:
        arrays: {output: array}, with one entry per row where it has a batch axis.
        targets: the rows.
        images: how many images they are of.
    """

    arrays: dict[str, NDArray[Any]]
    targets: Targets
    images: int

    def per_image(self, name: str) -> NDArray[Any]:
        """An output with one entry per image; as it is, if it has no batch axis."""
        array, index = self.arrays[name], self.targets.image_index
        if len(index) == self.images or not _is_batched(array, len(index)):
            return array
        return array[np.searchsorted(index, np.arange(self.images))]


def run(
    session: Session,
    feeds: Mapping[str, Any],
    targets: Targets,
    fetch: Sequence[str],
    layouts: Mapping[str, Layout],
    image: TensorInfo,
    max_batch: int,
) -> Rows:
    """Run ``targets`` of the images in ``feeds``.

    Args:
        session: the open file.
        feeds: {input: checked array or device tensor}.
        targets: the rows.
        fetch: the outputs to bring back.
        layouts: of those that become float32 (N, C, ...grid); windows have no batch axis before.
        image: the input whose leading axis counts the images.
        max_batch: rows in one run, where the file leaves it open.

    Raises:
        TensorError: device tensors, and a request that would need them cut or repeated.
    """
    count = shape_of(feeds[image.name])[0]
    one_each = len(targets.image_index) == count  # every image has a row
    fixed = _fixed_batch(image)
    if all(isinstance(value, np.ndarray) for value in feeds.values()):
        pieces = list(batches(len(targets.image_index), piece(image, max_batch)))
    elif one_each and fixed in (None, count):
        pieces = [slice(0, count)]
    else:
        raise TensorError(
            "A device tensor is run as it is: one target per image and, in a file with a fixed batch, "
            f"exactly that many images (here {fixed or count}). Give a host array."
        )
    batched = [i.name for i in session.inputs if i.name in feeds and _follows(i, image, feeds, count)]
    wanted = asked(session, targets)
    parts = []
    for part in pieces:
        index, classes = targets.image_index[part], targets.class_index[part]
        extra = {name: array[part] for name, array in wanted.items()}
        real = len(index)
        if fixed is not None and real < fixed:
            index, classes, *filled = (_filled(a, fixed) for a in (index, classes, *extra.values()))
            extra = dict(zip(extra, filled, strict=True))
        fed = dict(feeds)
        if not one_each or len(index) != count:
            fed.update({name: feeds[name][index] for name in batched})
        if (classes != TOP_CLASS).any() and CLASS_INDEX in session.choices:  # a black box takes none
            fed[CLASS_INDEX] = np.ascontiguousarray(classes)
        fed |= extra
        found = session.run(fed, fetch)
        found |= {name: channels_first(found[name], layout) for name, layout in layouts.items()}
        arrays = {k: v[:real] if _is_batched(v, len(index)) else v for k, v in found.items()}
        parts.append(Rows(arrays, targets.rows(part), count))
    return Rows(_concatenated(parts), targets, count)


def asked(session: Session, targets: Targets) -> dict[str, NDArray[Any]]:
    """What is fed for the rows besides their images and classes: {input: one entry per row}.

    Raises:
        TargetError: an entry of another shape than the input's.
    """
    chosen = list(dict.fromkeys(name for feed in targets.feeds for name in feed))
    fed = stacked(targets, chosen)
    for name, array in fed.items():
        if len(session.choices[name].shape) != array.ndim:
            raise TargetError(
                f"The model takes '{name}' as {session.choices[name]}, but the targets give "
                f"{array.shape[1:]} for each image."
            )
    return {name: array.astype(session.choices[name].dtype, copy=False) for name, array in fed.items()}


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of further and further images as one."""
    starts = np.cumsum([0, *(part.images for part in parts)])
    index = [part.targets.image_index + start for part, start in zip(parts, starts, strict=False)]
    classes = [part.targets.class_index for part in parts]
    names = [part.targets.names or (None,) * len(part.targets.image_index) for part in parts]
    targets = Targets(np.concatenate(index), np.concatenate(classes), names=tuple(chain(*names)))
    return Rows(_concatenated(parts), targets, int(starts[-1]))


def batches(count: int, size: int) -> Iterator[slice]:
    """0 to ``count`` in slices of ``size``."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def piece(image: TensorInfo, max_batch: int) -> int:
    """How many rows one run takes."""
    return _fixed_batch(image) or max_batch


def images_in_one_run(feeds: Mapping[str, Any], image: TensorInfo, max_batch: int) -> int:
    """How many images one run takes; device tensors are run as they are."""
    on_host = all(isinstance(value, np.ndarray) for value in feeds.values())
    return piece(image, max_batch) if on_host else shape_of(feeds[image.name])[0]


def _filled(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """The last row again until there are so many."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _concatenated(parts: Sequence[Rows]) -> dict[str, NDArray[Any]]:
    if len(parts) == 1:
        return parts[0].arrays
    whole = {}
    for name, first in parts[0].arrays.items():
        arrays = [part.arrays[name] for part in parts]
        per_row = all(_is_batched(a, len(p.targets.image_index)) for a, p in zip(arrays, parts, strict=True))
        whole[name] = np.concatenate(arrays) if per_row else first
    return whole


def _fixed_batch(image: TensorInfo) -> int | None:
    batch = image.shape[0] if image.shape else None
    return batch if isinstance(batch, int) else None


def _follows(info: TensorInfo, image: TensorInfo, feeds: Mapping[str, Any], count: int) -> bool:
    """Whether an input's leading axis is the image input's batch axis."""
    if info.name == image.name:
        return True
    same_axis = bool(info.shape) and info.shape[0] in (None, image.shape[0])
    return same_axis and shape_of(feeds[info.name])[0] == count


def _is_batched(array: NDArray[Any], rows: int) -> bool:
    return array.ndim > 0 and len(array) == rows
