"""Scores of changed copies of one image: what methods that run the model are given.

However many copies there are, one batch of them exists at a time: a method hands over a function that makes
the copies number ``part.start`` to ``part.stop``, not the copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import postprocess, rows
from .contract import SCORE, Score
from .errors import TensorError
from .rows import Rows
from .session import Session, TensorInfo
from .targets import Targets

Array: TypeAlias = NDArray[np.float32]
Make: TypeAlias = Callable[[slice], Array]  #: the copies, or masks, of a part of them
Progress: TypeAlias = Callable[[int, int], object]  #: told how many of how many runs are done
Of: TypeAlias = Literal["output", "probability"]


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
class Scorer:
    """What the model gives to changed copies of one image, for each of its T targets.

    Attributes:
        session: the open file.
        feeds: its inputs for the image, a batch of one each.
        image: the input that is changed.
        channels: which axis of it counts channels.
        targets: the T rows, of image 0 and with nothing left to the file's choice.
        score: the file's.
        batch: copies in one run.
        passes: where the runs are counted.
    """

    session: Session
    feeds: Mapping[str, Any]
    image: TensorInfo
    channels: int
    targets: Targets
    score: Score
    batch: int
    passes: Passes

    @property
    def tensor(self) -> NDArray[Any]:
        """The image as the model takes it, without its batch axis."""
        value = self.feeds[self.image.name]
        array: NDArray[Any] = value if isinstance(value, np.ndarray) else value.numpy()
        return array[0]

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

    def behind(self, masks: Array, baseline: float = 0.0, stretch: float | None = None) -> NDArray[Any]:
        """The image behind masks, (K, ...) as the model takes it; see :meth:`masked`."""
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
        runs = 1 if self._one_table else len(self.targets.class_index)
        self.passes.expect(count * runs)
        found = np.empty((count, len(self.targets.class_index)), np.float32)
        for part in rows.batches(count, self.batch):
            copies = make(part)
            k = len(copies)
            feeds = {name: _repeated(value, k, name) for name, value in self.feeds.items()}
            feeds[self.image.name] = copies
            if self._one_table:
                table = self._run(feeds, k, self.targets.rows(slice(0, 1)), self.score.output)
                found[part] = _picked(table, self.targets.class_index, self._as(of))
            else:
                for t in range(len(self.targets.class_index)):
                    found[part, t] = self._run(feeds, k, self.targets.rows(slice(t, t + 1)), SCORE)
            self.passes.model += k * runs
            self.passes.did(k * runs)
        if not np.isfinite(found).all():
            raise TensorError(
                "The score of a changed copy of the image is not finite: the model overflows there."
            )
        return found

    @property
    def _one_table(self) -> bool:
        """Whether one run tells every target's score."""
        return SCORE not in {o.name for o in self.session.outputs}

    def _as(self, of: Of) -> Callable[[Array], Array] | None:
        return _softmax if of == "probability" and gives_logits(self.score) else None

    def _run(self, feeds: Mapping[str, Any], count: int, target: Targets, fetch: str) -> NDArray[Any]:
        """An output for copies, all with the same target."""
        every = replace(target.rows(np.zeros(count, int)), image_index=np.arange(count))
        run = rows.run(self.session, feeds, every, [fetch], {}, self.image, self.batch)
        return run.arrays[fetch]


def min_max(masks: Array, epsilon: float) -> Array:
    """Each of (K, ...) as (m - min m) / (max m - min m + epsilon), in [0, 1]; 0 where it is constant."""
    axes = tuple(range(1, masks.ndim))
    low = masks.min(axis=axes, keepdims=True)
    span = masks.max(axis=axes, keepdims=True) - low
    scaled: Array = (masks - low) / np.where(span > 0, span + np.float32(epsilon), 1)
    return scaled


def gives_logits(score: Score) -> bool:
    """Whether a classifier's own output is what a softmax would make probabilities of."""
    return score.task == "classification" and score.activation is None and (score.classes or 2) > 1


def pinned(run: Rows, classes: NDArray[np.int64], fixed: Mapping[str, str]) -> Targets:
    """The rows of a run with what the file chose for them, so that a changed image is asked the same.

    Args:
        run: of the unchanged images.
        classes: per row the class that was explained, or -1.
        fixed: {input: the output that tells what was chosen in its place}.
    """
    wanted = run.targets
    given = wanted.feeds or tuple({} for _ in classes)
    feeds = tuple(
        {
            **{
                name: run.arrays[told][row].astype(np.float32)
                for name, told in fixed.items()
                if told in run.arrays
            },
            **given[row],
        }
        for row in range(len(classes))
    )
    class_index = np.where(classes < 0, wanted.class_index, classes)
    return replace(wanted, class_index=class_index, feeds=feeds if any(feeds) else ())


def _picked(
    table: NDArray[Any], classes: NDArray[np.int64], change: Callable[[Array], Array] | None
) -> Array:
    """(K, T) of one run's scores (K, classes)."""
    scores = table.reshape(len(table), -1).astype(np.float32, copy=False)
    return (scores if change is None else change(scores))[:, classes]


def _softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Array = e / e.sum(axis=1, keepdims=True)
    return result


def _repeated(value: Any, count: int, name: str) -> NDArray[Any]:
    array = value if isinstance(value, np.ndarray) else value.numpy()
    return np.repeat(array, count, axis=0) if array.ndim and len(array) == 1 else array
