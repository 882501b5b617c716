"""Any ONNX file as it is: what can be explained where nothing but scores is to be had.

The file is not rewritten, so there are no activations and no gradients; methods that need only scores
(:attr:`onnxcam.methods.Method.layered` is False) remain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .contract import Record, Score
from .errors import TensorError
from .session import Session, TensorInfo

#: From a run's outputs, {name: array}, to one number per image and class, (N, K) or (N,).
Judge: TypeAlias = "Callable[[Mapping[str, NDArray[Any]]], Any]"
JUDGED = "judged"  #: the output that a judge adds


def record_of(outputs: Sequence[TensorInfo], score: str | None, what: str) -> Record:
    """A record of a file that has none.

    Args:
        outputs: the file's.
        score: which of them is explained; None: the only one that has one number per class, (N, K).
        what: the file's name for the message.

    Raises:
        TensorError: no such output, none that could be it, or several.
    """
    known = {o.name: o for o in outputs}
    if score is not None and score not in known:
        raise TensorError(
            f"{what} has no output {score!r}. It has {', '.join(map(str, outputs_of(outputs)))}."
        )
    if score is None:
        tables = [o for o in outputs if _is_table(o)]
        if len(tables) != 1:
            found = f"{len(tables)} outputs" if tables else "no output"
            raise TensorError(
                f"{what} has {found} with one number per class, (N, K): it has "
                f"{', '.join(outputs_of(outputs))}. Name one, black_box='NAME' (--black-box NAME), or give "
                "a function from {output: array} to such numbers, black_box=function."
            )
        score = tables[0].name
    sizes = known[score].shape[1:]
    fixed = [n for n in sizes if isinstance(n, int)]
    classes = math.prod(fixed) if len(fixed) == len(sizes) else None
    return Record(layers=(), score=Score(score, score, classes=classes))


def outputs_of(outputs: Sequence[TensorInfo]) -> list[str]:
    """Names and shapes, for messages."""
    return [f"'{o.name}' {o}" for o in outputs]


def _is_table(info: TensorInfo) -> bool:
    """Whether an output may hold one number per class: floats, (N, K) or (N, K, 1, ...)."""
    rest = info.shape[1:]
    real = info.dtype is not None and info.dtype.kind == "f"
    return real and len(rest) >= 1 and all(n == 1 for n in rest[1:])


def opened(model: Any, black_box: bool | str | Judge, **how: Any) -> Session:
    """A session of an explainable file, or of any file as a black box.

    Args:
        model: a path, or the bytes of the file.
        black_box: False: the file must be explainable; else see :class:`onnxcam.Explainer`.
        how: of :class:`onnxcam.session.Session`.
    """
    if callable(black_box):
        return Judged(model, black_box, **how)
    if black_box is False:
        return Session(model, **how)
    score = None if black_box is True else black_box
    return Session(model, black_box=lambda outputs, what: record_of(outputs, score, what), **how)


class Judged(Session):
    """A session with one output more, which a function makes of the others."""

    def __init__(self, model: Any, judge: Judge, **how: Any) -> None:
        self._judge = judge
        super().__init__(model, black_box=_judged, **how)
        self._plain = self.outputs
        self.outputs = (*self.outputs, TensorInfo(JUDGED, np.dtype(np.float32), (None, None)))

    def run(self, feeds: Mapping[str, Any], fetch: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See :meth:`onnxcam.session.Session.run`.

        Raises:
            TensorError: the function gives something else than (N, K) numbers.
        """
        found = super().run(feeds, [o.name for o in self._plain])
        given = np.asarray(self._judge(found))
        table = given[:, None] if given.ndim == 1 else given
        if table.ndim != 2 or table.dtype.kind not in "biuf" or not table.shape[1]:
            raise TensorError(
                f"The function of the black box gave {given.dtype} {given.shape}; one number per image and "
                "class is wanted, (N, K) or (N,)."
            )
        found[JUDGED] = table.astype(np.float32)
        return {name: found[name] for name in fetch}


def _judged(outputs: Sequence[TensorInfo], what: str) -> Record:
    return Record(layers=(), score=Score(JUDGED, JUDGED, probability=True))  # as the function gives it
