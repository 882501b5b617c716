"""Scores of changed copies of one image: what methods that run the model are given.

However many copies there are, one batch of them exists at a time: a method hands over a function that makes
the copies number ``part.start`` to ``part.stop``, not the copies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import postprocess, rows, weighted
from .contract import (
    CHOICES,
    CLASS_INDEX,
    SCORE,
    TOP_CLASS,
    Score,
)
from .errors import TensorError
from .feeds import shape_of
from .grids import channels_first, put_back
from .session import Session, TensorInfo
from .softmax import softmax
from .tail import Patches, Tail
from .targets import Targets
from .weighted import Weigh

Array: TypeAlias = NDArray[np.float32]
Make: TypeAlias = Callable[[slice], Array]  #: the copies, or masks, of a part of them
Progress: TypeAlias = Callable[[int, int], object]  #: told how many of how many runs are done
Of: TypeAlias = Literal["output", "probability"]

LOCAL = 4  #: times as many copies are in one run where each is computed in part, and needs less memory

#: Makes the copies of a part, and gives what runs them for a row and fetches an output.
Run: TypeAlias = "Callable[[slice], Callable[[Targets, str], NDArray[Any]]]"


@dataclass
class Passes:
    """How much was run, and who is told of it.

    Attributes:
        model: images that went through the whole file.
        tail: copies that went through what follows a layer.
        progress: called with the number of copies that are done and that are known of so far.
    """

    model: int = 0
    tail: int = 0
    progress: Progress | None = None
    _done: int = field(default=0, repr=False)
    _known: int = field(default=0, repr=False)

    def expect(self, count: int) -> None:
        """So many more copies will be run."""
        self._known += count

    def did(self, count: int) -> None:
        """So many copies were run."""
        self._done += count
        if self.progress is not None:
            self.progress(self._done, self._known)


@dataclass(frozen=True)
class Copies:
    """How changed copies of one image are scored for its T targets.

    Attributes:
        targets: the T rows, of image 0 and with nothing left to the file's choice.
        score: the file's.
        table: whether the score's output is one that tells every class.
        batch: copies in one run.
        passes: where the runs are counted.
    """

    targets: Targets
    score: Score
    table: bool
    batch: int
    passes: Passes

    def scored(self, run: Run, count: int, of: Of) -> Array:
        """(count, T). Targets that are a class alone share one run, which tells all classes."""
        each = range(len(self.targets.class_index))
        feeds = self.targets.feeds or ({},) * len(each)
        classes = [
            t for t in each if self.table and not feeds[t] and self.targets.class_index[t] != TOP_CLASS
        ]
        alone = [t for t in each if t not in classes]
        runs = len(alone) + bool(classes)
        self.passes.expect(count * runs)
        found = np.empty((count, len(each)), np.float32)
        for part in rows.batches(count, self.batch):
            fetch = run(part)
            if classes:
                told = fetch(self.targets.rows([classes[0]]), self.score.output)
                told = told.reshape(len(told), -1).astype(np.float32, copy=False)
                if of == "probability" and gives_logits(self.score):
                    told = probabilities(told)
                found[part, classes] = told[:, self.targets.class_index[classes]]
            for t in alone:
                found[part, t] = fetch(self.targets.rows([t]), SCORE)
            self.passes.did((part.stop - part.start) * runs)
        if not np.isfinite(found).all():
            raise TensorError(
                "The score of a changed copy of the image is not finite: the model overflows there."
            )
        return found


@dataclass(frozen=True)
class Scorer:
    """What the model gives to changed copies of one image, for each of its T targets.

    Attributes:
        session: the open file.
        feeds: its inputs for the image, a batch of one each.
        image: the input that is changed.
        channels: which axis of it counts channels.
        copies: how they are scored.
    """

    session: Session
    feeds: Mapping[str, Any]
    image: TensorInfo
    channels: int
    copies: Copies

    @property
    def targets(self) -> Targets:
        """The T rows."""
        return self.copies.targets

    @property
    def batch(self) -> int:
        """Copies in one run."""
        return self.copies.batch

    @functools.cached_property
    def tensor(self) -> NDArray[Any]:
        """The image as the model takes it, without its batch axis."""
        array: NDArray[Any] = on_host(self.feeds[self.image.name])[0]
        return array

    @functools.cached_property
    def _there(self) -> Any:
        """The image on the session's device: it crosses once."""
        return self.session.on_device(self.feeds[self.image.name])

    @property
    def sides(self) -> tuple[int, ...]:
        """(H, W) of the image, (L,) of a signal, (D, H, W) of a volume."""
        return tuple(n for axis, n in enumerate(self.tensor.shape) if axis != self.channels - 1)

    def masked(
        self,
        make: Make,
        count: int,
        *,
        baseline: float = 0.0,
        stretch: float | None = None,
        of: Of = "output",
    ) -> Array:
        """Scores of the image behind masks: x ⊙ mask + baseline ⊙ (1 - mask).

        Args:
            make: the masks of a part, (K, H, W), or of a smaller grid, which is enlarged linearly.
            count: how many there are.
            baseline: what takes the place of masked pixels, in the units of the model's input.
            stretch: min-max each mask once it is enlarged, with this added to its range.
            of: see :meth:`inputs`.

        Returns:
            (count, T) float32.
        """
        return self.inputs(lambda part: self.behind(make(part), baseline, stretch), count, of=of)

    def behind(self, masks: Array, baseline: float = 0.0, stretch: float | None = None) -> Any:
        """The image behind masks, (K, ...) as the model takes it; see :meth:`masked`.

        An array; where the session runs on a device, an OrtValue there: masks alone cross to it.
        """
        made = self._behind_on_device(masks, baseline, stretch)
        return self._behind_on_host(masks, baseline, stretch) if made is None else made

    def _behind_on_device(self, masks: Array, baseline: float, stretch: float | None) -> Any:
        x, sides = self.tensor, self.sides
        graph = self.session.beside("behind.onnx")
        if graph is None or x.ndim != 3 or x.dtype != np.float32 or isinstance(self.image.shape[0], int):
            return None
        size = (len(masks), 1, *sides)
        return graph(
            {
                "x": self._there,
                "masks": masks[:, None].astype(np.float32, copy=False),
                "size": np.array(size),
                "shape": np.array(size if self.channels == 1 else (len(masks), *sides, 1)),
                "baseline": np.array(baseline, np.float32),
                "stretched": np.array(stretch is not None),
                "epsilon": np.array(stretch or 0.0, np.float32),
            }
        )

    def _behind_on_host(self, masks: Array, baseline: float, stretch: float | None) -> NDArray[Any]:
        x, sides = self.tensor, self.sides
        if masks.shape[1:] != sides:
            masks = postprocess.resize(masks, sides)
        if stretch is not None:
            masks = min_max(masks, stretch)
        weights = np.expand_dims(masks, self.channels)
        made = x * weights
        if baseline:
            made += baseline * (1 - weights)
        return made.astype(x.dtype, copy=False)

    def inputs(self, make: Make, count: int, *, of: Of = "output") -> Array:
        """Scores of inputs.

        Args:
            make: the inputs of a part, (K, ...), as the model takes them.
            count: how many there are.
            of: ``output``: as the file gives it; ``probability``: of a classifier that gives logits, after a
                softmax.

        Returns:
            (count, T) float32.
        """

        def run(part: slice) -> Callable[[Targets, str], NDArray[Any]]:
            copies = make(part)
            if isinstance(copies, np.ndarray):
                copies = copies.astype(self.tensor.dtype, copy=False)
            k = shape_of(copies)[0]
            feeds = {name: _repeated(value, k) for name, value in self.feeds.items()}
            feeds[self.image.name] = copies

            def fetch(target: Targets, name: str) -> NDArray[Any]:
                every = replace(target.rows(np.zeros(k, int)), image_index=np.arange(k))
                self.copies.passes.model += k
                found = rows.run(self.session, feeds, every, [name], {}, self.image, self.copies.batch)
                return found.arrays[name]

            return fetch

        return self.copies.scored(run, count, of)


@dataclass(frozen=True)
class TailScorer:
    """What the score becomes where one image's activations of a layer are changed; nothing before it is run.

    Attributes:
        tail: what follows the layer.
        activations: of the image, in the layer's own layout.
        sides: what the tail takes besides, of the image.
        copies: how they are scored.
    """

    tail: Tail
    activations: NDArray[Any]
    sides: Mapping[str, NDArray[Any]]
    copies: Copies

    def __call__(self, make: Make, count: int, *, of: Of = "output") -> Array:
        """Scores of changed activations.

        Args:
            make: those of a part, (K, C, ...grid); what is no grid's (a class token) stays as it is.
            count: how many there are.
            of: see :meth:`Scorer.inputs`.

        Returns:
            (count, T) float32.
        """

        def run(part: slice) -> Callable[[Targets, str], NDArray[Any]]:
            changed = self._put_back(make(part))
            return self._fetch(part, lambda feeds: self.tail.scores(changed, self.sides, feeds))

        return self.copies.scored(run, count, of)

    def times(self, weights: Make, count: int, *, of: Of = "output") -> Array:
        """Scores of weighted activations: A ⊙ w.

        Where the tail runs on a device, the activations cross to it once, and weights alone after that.

        Args:
            weights: those of a part, float32 of a shape that broadcasts to (K, C, ...grid): (K, C, 1, 1) of
                channels, (K, 1, h, w) of cells; what is no grid's (a class token) stays as it is.
            count: how many copies there are.
            of: see :meth:`Scorer.inputs`.

        Returns:
            (count, T) float32.

        Raises:
            TensorError: weights that do not fit.
        """

        def run(part: slice) -> Callable[[Targets, str], NDArray[Any]]:
            copies = self._weigh(self._fitting(weights(part), part.stop - part.start))
            return self._fetch(part, lambda feeds: self.tail.scores(copies, self._sides, feeds))

        return self.copies.scored(run, count, of)

    def alone(self, *, of: Of = "output") -> Array:
        """Scores of the activations where one cell of the grid keeps its own and the others are zero.

        Where the tail can, it computes for each cell what that reaches, and the rest once.

        Args:
            of: see :meth:`Scorer.inputs`.

        Returns:
            (cells, T) float32, the cells row by row.
        """
        grid = self._cells.shape[1:]
        columns = self._cells.reshape(len(self._cells), -1).T
        count = len(columns)
        if not self.tail.local:

            def one(part: slice) -> Array:
                cells = np.eye(part.stop - part.start, count, part.start, dtype=np.float32)
                return cells.reshape(-1, 1, *grid)

            return self.times(one, count, of=of)
        nothing = self._weigh(np.zeros((1,) * (1 + self._cells.ndim), np.float32))

        def run(part: slice) -> Callable[[Targets, str], NDArray[Any]]:
            at = np.arange(part.start, part.stop)
            cells = Patches(at - part.start, at, columns[at])
            return self._fetch(part, lambda feeds: self.tail.local_scores(nothing, cells, self._sides, feeds))

        return replace(self.copies, batch=LOCAL * self.copies.batch).scored(run, count, of)

    @functools.cached_property
    def _cells(self) -> Array:
        """(C, ...grid)."""
        cells: Array = channels_first(self.activations, self.tail.layer.layout)[0]
        return cells

    @functools.cached_property
    def _there(self) -> Weigh | None:
        """What makes copies on the device where the tail runs."""
        return weighted.on_device(self.activations, self.tail.layer.layout, self.tail.session)

    @functools.cached_property
    def _weigh(self) -> Weigh:
        return self._there or weighted.on_host(self.activations, self.tail.layer.layout)

    @functools.cached_property
    def _sides(self) -> Mapping[str, Any]:
        """Where the copies are made; other types than float32 are repeated on the host."""
        if self._there is None:
            return self.sides
        on = self.tail.session.on_device
        return {name: on(side) if side.dtype == np.float32 else side for name, side in self.sides.items()}

    def _fitting(self, weights: Array, count: int) -> Array:
        wanted = (count, *self._cells.shape)
        fits = weights.ndim == len(wanted) and len(weights) == count
        if not fits or any(n not in (1, m) for n, m in zip(weights.shape, wanted, strict=True)):
            raise TensorError(
                f"The weights of {count} copies of the activations of {self.tail.layer.name!r} have the "
                f"shape {weights.shape}: they are to be {wanted}, or 1 along any axis but the first."
            )
        return weights.astype(np.float32, copy=False)

    def _put_back(self, activations: Array) -> NDArray[Any]:
        return put_back(activations, self.tail.layer.layout, self.activations)

    def _fetch(
        self, part: slice, scores: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
    ) -> Callable[[Targets, str], NDArray[Any]]:
        def fetch(target: Targets, name: str) -> NDArray[Any]:
            self.copies.passes.tail += part.stop - part.start
            feeds = {n: value[None] for n, value in (target.feeds[0] if target.feeds else {}).items()}
            if CLASS_INDEX in CHOICES[self.copies.score.task]:
                feeds[CLASS_INDEX] = target.class_index
            return scores(feeds)[name]

        return fetch


def min_max(masks: Array, epsilon: float) -> Array:
    """Each of (K, ...) as (m - min m) / (max m - min m + epsilon), in [0, 1]; 0 where it is constant."""
    axes = tuple(range(1, masks.ndim))
    low = masks.min(axis=axes, keepdims=True)
    span = masks.max(axis=axes, keepdims=True) - low
    scaled: Array = (masks - low) / np.where(span > 0, span + np.float32(epsilon), 1)
    return scaled


def gives_logits(score: Score) -> bool:
    """Whether a classifier's own output is what a softmax would make probabilities of."""
    raw = score.activation is None and not score.probability
    return score.task == "classification" and raw and score.classes != 1


def probabilities(table: Array) -> Array:
    """A softmax of logits; of a file that was not rewritten nobody knows whether it has taken one itself."""
    if (table >= 0).all() and np.allclose(table.sum(axis=1), 1, atol=1e-3):
        return table
    return softmax(table)


def on_host(value: Any) -> NDArray[Any]:
    """An array, or that of a device tensor."""
    array: NDArray[Any] = value if isinstance(value, np.ndarray) else value.numpy()
    return array


def _repeated(value: Any, count: int) -> NDArray[Any]:
    array = on_host(value)
    return np.repeat(array, count, axis=0) if array.ndim and len(array) == 1 else array
