"""What follows a layer: run again on other activations, without what comes before it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import CELLS, PATCHES, WITH_GRADIENTS, Layer, Record
from .digest import sha256
from .errors import BadTail, TensorError, nearest
from .feeds import shape_of
from .session import Session


@dataclass(frozen=True)
class Patches:
    """Cells of a layer's grid in which K copies differ from one base.

    Attributes:
        copies: (R,) which copy each cell is of, 0 to K - 1; every copy has at least one.
        cells: (R,) its number in the grid, row by row; a copy has each once.
        values: (R, C) float32, its channels.
    """

    copies: NDArray[np.int64]
    cells: NDArray[np.int64]
    values: NDArray[np.float32]


class Tail:
    """The file of what follows one layer of an explainable file, which lies beside it.

    It is opened when it is first used. Safe to call from several threads at once.

    Args:
        model: the explainable file; its bytes will not do, because nothing lies beside them.
        record: its record.
        layer: the layer's name.
        how: how the tail is opened: the keyword arguments of :class:`onnxcam.session.Session`.

    Attributes:
        layer: of the record.
        record: what the file says of its tail.
        path: of the tail.
        sides: the names of what it takes besides activations: outputs of the explainable file.
        rows: how many entries of the first axis of the layer's tensor each image has.
        local: whether it has :meth:`local_scores`.

    Raises:
        BadTail: the file has no tail for that layer, or was opened from bytes.
    """

    def __init__(self, model: Any, record: Record, layer: str, **how: Any) -> None:
        found = {tail.layer: tail for tail in record.tails}
        if layer not in found:
            raise BadTail(
                f"The file has no tail for the layer {layer!r}, with which what follows the layer could be "
                "run alone. Write one beside it: `onnxcam rewrite model.onnx --tail`, or "
                "`rewrite_onnx(..., tail=True)`."
            )
        self.record = found[layer]
        if not isinstance(model, (str, os.PathLike)):
            raise BadTail(
                f"The file was opened from bytes, but what follows the layer {layer!r} lies beside a file, "
                f"as {self.record.file!r}: open the file by its path."
            )
        self.layer: Layer = next(x for x in record.layers if x.name == layer)
        self.path = Path(model).with_name(self.record.file)
        self.sides = tuple(side.name for side in self.record.sides)
        self.rows = self.record.rows
        self.local = self.record.local
        self._how = how
        self._opened: Session | None = None
        self._opening = threading.Lock()

    @property
    def session(self) -> Session:
        """Open; the first use opens it.

        Raises:
            BadTail: the tail is missing, or belongs to another file.
        """
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all outputs."""
        return tuple(o.name for o in self.session.outputs)

    def copies(self, activations: Any, of: Sequence[int] | NDArray[Any]) -> Any:
        """The activations of some images, in their order.

        Args:
            activations: of the images, in the layer's own layout: an array, or an OrtValue.
            of: (K,) the images.

        Returns:
            As :meth:`scores` takes it. Where the tail runs on a device, an image of which there are several
            copies crosses to it once.

        Raises:
            TensorError: an image that there is not.
        """
        index, images = np.asarray(of, np.int64), shape_of(activations)[0] // self.rows
        if not ((index >= 0) & (index < images)).all():
            raise TensorError(
                f"The activations of {self.layer.name!r} are of {images} images, 0 to {images - 1}, and `of` "
                f"names {int(index.min()) if index.min() < 0 else int(index.max())}."
            )
        return self._taken(activations, self.rows, index)

    def scores(
        self,
        activations: Any,
        sides: Mapping[str, Any] | None = None,
        feeds: Mapping[str, NDArray[Any]] | None = None,
        of: Sequence[int] | NDArray[Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """What the score becomes; no gradient is computed.

        Args:
            activations: K copies in the layer's own layout, such as :func:`onnxcam.grids.put_back` gives; in
                layouts where an image has several entries of the first axis, one copy's after the other's. An
                array, or an OrtValue on the session's device.
            sides: the outputs of the explainable file that :attr:`sides` names, of one image or several:
                arrays, or OrtValues as well.
            feeds: {optional input of the file: one entry for all copies, or one for each}.
            of: (K,) which of the images in ``sides`` each copy is of; None: as many images as copies, or one
                for all.

        Returns:
            {output: array, K entries}: the score's output, and what else says what was explained.

        Raises:
            BadTail: the tail is missing, or belongs to another file.
            TensorError: sides are missing, or something has another shape or number of entries.
            ProviderError: the run fails.
        """
        return self._run(activations, sides or {}, feeds or {}, of, False)

    def gradients(
        self,
        activations: Any,
        sides: Mapping[str, Any] | None = None,
        feeds: Mapping[str, NDArray[Any]] | None = None,
        of: Sequence[int] | NDArray[Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The same as :meth:`scores` gives, and the gradients with respect to ``activations``."""
        return self._run(activations, sides or {}, feeds or {}, of, True)

    def local_scores(
        self,
        base: Any,
        patches: Patches,
        sides: Mapping[str, Any] | None = None,
        feeds: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The same as :meth:`scores` gives, where copies differ from a base in some cells alone.

        What those cells do not reach is computed once, for the base.

        Args:
            base: (1, C, h, w), an array, or an OrtValue on the session's device.
            patches: where the K copies differ from it.
            sides: see :meth:`scores`; of one image.
            feeds: see there.

        Raises:
            BadTail: the tail is missing, belongs to another file, or cannot be run so.
            TensorError: see :meth:`scores`; or patches that are none of this grid, or copies without any.
            ProviderError: the run fails.
        """
        if not self.local:
            raise BadTail(
                f"What follows the layer {self.layer.name!r} cannot be run on changed cells alone: give "
                "`scores` the whole activations, or write the file again with this version of onnxcam."
            )
        session, sides, feeds = self.session, sides or {}, feeds or {}
        count = self._check_patches(session, base, patches)
        self._images(sides, 1, None)
        for name, array in feeds.items():
            self._check_feed(session, name, array, count)
        fed = {self.layer.activations: base, **{s: sides[s] for s in self.sides}, **feeds}
        fed |= {PATCHES: patches.values, CELLS: np.stack([patches.copies, patches.cells], axis=1)}
        fed = {n: _fed(session, n, a) for n, a in fed.items()}
        return session.run(fed, [o.name for o in session.outputs if o.name != self.layer.gradients])

    def _check_patches(self, session: Session, base: Any, patches: Patches) -> int:
        """K."""
        shape = (1, *session.inputs[0].shape[1:])
        channels, *grid = (n for n in shape[1:] if isinstance(n, int))
        rows = len(patches.cells)
        if shape_of(base) != shape or patches.values.shape != (rows, channels):
            raise TensorError(
                f"The base of {self.layer.name!r} has the shape {shape_of(base)}, and {rows} patches the "
                f"shape {patches.values.shape}: they are to be {shape} and {(rows, channels)}."
            )
        copies = np.unique(patches.copies)
        places = patches.copies * int(np.prod(grid)) + patches.cells
        inside = bool(((patches.cells >= 0) & (patches.cells < np.prod(grid))).all())
        whole = bool(rows) and np.array_equal(copies, np.arange(len(copies)))
        if not whole or not inside or len(np.unique(places)) != rows:
            raise TensorError(
                f"Patches of {self.layer.name!r} are cells 0 to {int(np.prod(grid)) - 1} of copies 0 to K - "
                "1: no cell of a copy twice, and at least one for each copy. These are not."
            )
        return len(copies)

    def _run(
        self,
        activations: Any,
        sides: Mapping[str, Any],
        feeds: Mapping[str, NDArray[Any]],
        of: Sequence[int] | NDArray[Any] | None,
        with_gradients: bool,
    ) -> dict[str, NDArray[Any]]:
        session = self.session
        rows = self.rows
        entries = shape_of(activations)[0]
        count, rest = divmod(entries, rows)
        if rest or not count:
            raise TensorError(
                f"The activations of {self.layer.name!r} have {entries} entries along their first "
                f"axis, and each image has {rows}: that is no whole number of copies."
            )
        index = self._images(sides, count, of)
        for name, array in feeds.items():
            self._check_feed(session, name, array, count)
        fetch = [o.name for o in session.outputs if with_gradients or o.name != self.layer.gradients]
        fixed = session.inputs[0].shape[0]
        piece = fixed // rows if isinstance(fixed, int) else count
        parts = []
        for start in range(0, count, piece):
            taken = np.minimum(np.arange(start, start + piece), count - 1)  # the last again where it is short
            fed = {self.layer.activations: self._taken(activations, rows, taken)}
            fed |= {s.name: self._taken(sides[s.name], s.rows, index[taken]) for s in self.record.sides}
            fed |= {n: a if len(a) == 1 else a[taken] for n, a in feeds.items()}
            fed = {n: _fed(session, n, a) for n, a in fed.items()}
            fed[WITH_GRADIENTS] = np.array([with_gradients])
            real = min(piece, count - start)
            found = session.run(fed, fetch)
            parts.append({n: a[: len(a) // piece * real] for n, a in found.items()})
        return {n: np.concatenate([p[n] for p in parts]) if len(parts) > 1 else parts[0][n] for n in fetch}

    def _taken(self, value: Any, rows: int, index: NDArray[np.int64]) -> Any:
        """:func:`rows_of`, taken on the session's device of what is there or would cross to it repeatedly."""
        wanted, on_host = rows * len(index), isinstance(value, np.ndarray)
        if rows == 0 or (shape_of(value)[0] == wanted and np.array_equal(index, np.arange(len(index)))):
            return value
        is_float = value.dtype == np.float32 if on_host else value.data_type() == "tensor(float)"
        pick = self.session.beside("pick.onnx") if is_float else None
        if pick is None or (on_host and len(value) >= wanted):
            return rows_of(value if on_host else value.numpy(), rows, index)
        return pick({"x": value, "entries": (index[:, None] * rows + np.arange(rows)).ravel()})

    def _images(
        self, sides: Mapping[str, Any], count: int, of: Sequence[int] | NDArray[Any] | None
    ) -> NDArray[np.int64]:
        """(K,) the image of each copy."""
        for name in self.sides:
            if name not in sides:
                raise TensorError(
                    f"What follows {self.layer.name!r} reads the output {name!r} of the explainable file, "
                    "too: fetch it with the activations, and give it in sides."
                )
        images = {shape_of(sides[s.name])[0] // s.rows for s in self.record.sides if s.rows}
        known = max(images, default=count)
        each = np.zeros(count, np.int64) if known == 1 else np.arange(known)
        index = each if of is None else np.asarray(of, np.int64)
        if len(index) != count:
            told = f"and `of` tells the images of {len(index)}" if of is not None else self._of_images(images)
        elif images and (len(images) > 1 or not 0 <= index.min() <= index.max() < known):
            told = self._of_images(images)
        else:
            return index
        raise TensorError(
            f"There are {count} copies of the activations of {self.layer.name!r}, {told}: give the sides of "
            "one image, of one for each copy, or say with `of` which image each copy is of."
        )

    @staticmethod
    def _of_images(images: set[int]) -> str:
        return f"and the sides are of {' or '.join(map(str, sorted(images)))} images"

    def _check_feed(self, session: Session, name: str, array: NDArray[Any], count: int) -> None:
        known = [n for n in session.choices if n not in (WITH_GRADIENTS, PATCHES, CELLS)]
        if name not in known:
            raise TensorError(
                f"The tail of {self.layer.name!r} has no optional input {name!r}.{nearest(name, known)} "
                f"It has {', '.join(map(repr, known))}."
            )
        if np.ndim(array) == 0 or len(array) not in (1, count):
            raise TensorError(
                f"'{name}' has the shape {np.shape(array)}: it takes one entry for all copies, or {count}, "
                "one for each."
            )

    def _open(self) -> Session:
        what = f"What follows the layer {self.layer.name!r} lies in {str(self.path)!r}"
        again = "Keep the files of one `onnxcam rewrite --tail` together, or run it again."
        try:
            digest = sha256(self.path)
        except OSError as e:
            raise BadTail(f"{what}, which cannot be read: {e.strerror or e}. {again}") from e
        if digest != self.record.sha256:
            raise BadTail(f"{what}, but that is another file than the one that was written with it. {again}")
        return Session(self.path, tail=True, **self._how)


def rows_of(array: NDArray[Any], rows: int, index: NDArray[Any]) -> NDArray[Any]:
    """The entries of some images, in their order.

    Args:
        array: with ``rows`` entries of the first axis for each image, one image's after the other's; with 0
            it is the same for all of them.
        rows: see ``array``.
        index: (K,) the images.
    """
    if rows == 0 or (len(array) == rows * len(index) and np.array_equal(index, np.arange(len(index)))):
        return array
    rest = array.shape[1:]
    picked: NDArray[Any] = array.reshape(len(array) // rows, rows, *rest)[index]
    return picked.reshape(len(index) * rows, *rest)


def _fed(session: Session, name: str, value: Any) -> Any:
    """An array as the session takes it; a device tensor as it is."""
    return np.asarray(value, _dtype(session, name), order="C") if isinstance(value, np.ndarray) else value


def _dtype(session: Session, name: str) -> Any:
    taken = {i.name: i.dtype for i in session.inputs}
    return taken[name] if name in taken else session.choices[name].dtype
