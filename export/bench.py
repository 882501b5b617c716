"""A file with switches on a bench: what each setting of them does to the maps of some photos."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comparison import agreement
from ..comparison.agreement import Measure
from ..errors import InputError
from ..explainer import Explainer
from ..methods import Method
from ..result import Explanation
from .ranking import Effect
from .switches import SWITCHES, Array

Setting = NDArray[np.bool_]
Progress = Callable[[int, int], object]


class Bench:
    """The file with switches, the photos, and the effects of settings.

    A setting says of each tensor whether it is quantised.

    Attributes:
        names: of the photos.
        silent: (photo, why) of those whose map tells nothing.
        count: of the switches.
        runs: how many photos were explained so far, counted once for each setting.
    """

    def __init__(
        self,
        explainer: Explainer,
        method: Method,
        measure: Measure,
        photos: Mapping[str, Array],
        count: int,
        answers: str | None,
        batch: int,
        progress: Progress | None,
    ) -> None:
        self._explainer, self._method, self._measure = explainer, method, measure
        self._batch, self._progress = batch, progress or (lambda done, total: None)
        self.count, self.runs = count, 0
        self._done = self._total = 0
        self._effects: dict[bytes, Effect] = {}
        self._answers_of = answers
        self._classes: Array | None = None
        self._x = np.stack([*photos.values()])
        maps, self._answers = self._explained(self.setting(on=()))
        cells = maps.reshape(len(maps), -1)
        telling = cells.max(axis=1) > cells.min(axis=1)
        self.names = tuple(n for n, told in zip(photos, telling, strict=True) if told)
        self.silent = tuple((n, _SILENT) for n, told in zip(photos, telling, strict=True) if not told)
        if not self.names:
            raise InputError(
                f"There is no photo to judge by: of each, {_SILENT}. Name another layer or method."
            )
        self._x, self._maps, self._answers = (a[telling] for a in (self._x, maps, self._answers))
        self._classes = self._answers if self._answers_of is not None else None

    def setting(self, on: Iterable[int]) -> Setting:
        """These tensors quantised, and no others."""
        made = np.zeros(self.count, bool)
        made[list(on)] = True
        return made

    def all_but(self, off: Iterable[int]) -> Setting:
        """These tensors in float, and no others."""
        return ~self.setting(off)

    def expect(self, settings: int) -> None:
        """So many further settings will be asked for."""
        self._total += settings * len(self.names)
        self._progress(self._done, self._total)

    def effect(self, setting: Setting) -> Effect:
        """What a setting does; one that is known is not run again."""
        key = setting.tobytes()
        if key not in self._effects:
            self._effects[key] = self._found(*self._explained(setting))
        self._done += len(self.names)
        self._total = max(self._total, self._done)
        self._progress(self._done, self._total)
        return self._effects[key]

    def meets(self, effect: Effect, threshold: float) -> bool:
        """Whether the mean agreement is as good as a threshold, or better."""
        return self._measure.meets(effect.mean, threshold)

    def badness(self, effect: Effect) -> float:
        """Larger, the less its maps agree."""
        return -effect.mean if self._measure.better == "higher" else effect.mean

    def outputs(self, setting: Setting) -> tuple[Array, dict[str, Array]]:
        """The first photos, and what the model gives for them."""
        x = self._x[: self._batch]
        return x, self._run(x, setting, None).outputs

    def _found(self, maps: Array, answers: Array) -> Effect:
        h, w = maps.shape[1:]
        high, wide = _sides(self._explainer)
        diagonal = math.hypot(high, wide)
        ys, xs = ((np.arange(n) + 0.5) / n * side / diagonal for n, side in ((h, high), (w, wide)))
        count = (len(maps), 1)
        pairs = agreement.Maps(self._maps, maps, np.tile(ys, count), np.tile(xs, count))
        values = agreement.agreement(pairs, [self._measure.name])[self._measure.name]
        higher = self._measure.better == "higher"
        values[np.isnan(values)] = 0 if higher else self._measure.high
        worst = int(values.argmin() if higher else values.argmax())
        same = float((answers == self._answers).mean())
        return Effect(float(values.mean()), float(values[worst]), self.names[worst], same)

    def _explained(self, setting: Setting) -> tuple[Array, Array]:
        """Maps (N, h, w) and answers (N,) of all photos."""
        maps, answers = [], []
        for at in range(0, len(self._x), self._batch):
            part = slice(at, at + self._batch)
            wanted = None if self._classes is None else self._classes[part].tolist()
            found = self._run(self._x[part], setting, wanted)
            maps.append(np.maximum(found.maps, 0) if self._method.rectify else found.maps)
            scores = None if self._answers_of is None else found.outputs[self._answers_of]
            answers.append(
                found.class_ids if scores is None else scores.reshape(len(scores), -1).argmax(axis=1)
            )
        self.runs += len(self._x)
        return np.concatenate(maps), np.concatenate(answers)

    def _run(self, x: Array, setting: Setting, target: Any) -> Explanation:
        feeds = {self._explainer.input.name: x, SWITCHES: setting}
        return self._explainer.explain_tensor(feeds, self._method, target)


_SILENT = "the reference's map is the same everywhere, so that nothing can agree with it"


def _sides(explainer: Explainer) -> tuple[int, int]:
    how = explainer.preprocess
    assert how is not None
    return how.size
