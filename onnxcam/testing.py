"""For tests of a deployment: does the model that is shipped still look at the same thing?

Needs no test framework; pytest shows the message of the AssertionError as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .comparison import MEASURES, compare, gate
from .comparison.data import VERDICTS, Comparison, Pair
from .comparison.gate import MAX_SKIPPED, PARTS, Criterion, Judgement

__all__ = ["DEFAULT", "assert_same_reasons"]

DEFAULT = ("same_answer >= 0.99", "same_reason >= 0.95")  #: where nothing is asked for


def assert_same_reasons(
    reference: Any,
    candidate: Any,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    require: Sequence[str] = (),
    max_skipped: float = MAX_SKIPPED,
    pairs: Sequence[str | Pair | tuple[str, str]] | None = None,
    judge: str | None = None,
    measure: str = "pearson",
    threshold: float | None = None,
    seed: int = 0,
    method: str = "gradcam",
    target: Any = None,
    options: Mapping[str, Any] | None = None,
    **criteria: float,
) -> Comparison:
    """Compare two models on photos, and refuse the candidate if it does not reach what is asked.

    Example::

        def test_int8_looks_at_the_same_thing():
            assert_same_reasons("fp32.cam.onnx", "int8.onnx", "photos/", same_answer=0.99, pearson_p05=0.6)

    Args:
        reference: a recording or its path, an explainable file, any ONNX file, ``pkg.module:factory`` of a
            PyTorch model, or a :class:`onnxcam.comparison.sides.Side`.
        candidate: the same.
        images: photos, and folders of them; not needed where both sides are recordings.
        require: criteria as they are written: ``"pearson.p05 >= 0.6"``.
        max_skipped: the share of photos that may be skipped.
        pairs: see :func:`onnxcam.comparison.compare`.
        judge: see there.
        measure: see there.
        threshold: see there.
        seed: see there.
        method: of :func:`onnxcam.methods.names`; of models, as recordings have theirs.
        target: one class for all photos; None: each side's own top class.
        options: of the method.
        **criteria: bounds, at least or at most as the quantity has it: ``same_answer=0.99``, ``js=0.1``,
            ``pearson_p05=0.6``. Without any, and without ``require``: :data:`DEFAULT`.

    Returns:
        What was found, where it is enough.

    Raises:
        AssertionError: a criterion is missed, or could not be judged; with a table of all.
        OnnxcamError: the two could not be compared at all.
    """
    __tracebackhide__ = True  # pytest: the line that called this is the one to see
    from .comparison import sides

    asked = [gate.parse(one) for one in require] + [_criterion(*one) for one in criteria.items()]
    asked = asked or [gate.parse(one) for one in DEFAULT]
    photos = [images] if isinstance(images, (str, os.PathLike)) else list(images or ())
    recordings = sides.recorded(reference, candidate, photos, method=method, target=target, **(options or {}))
    found = compare(
        *recordings,
        pairs=pairs,
        judge=judge,
        measures=(*MEASURES, *gate.measures_of(asked)),
        measure=measure,
        threshold=threshold,
        seed=seed,
    )
    judged = gate.judge(found, asked, max_skipped)
    if judged.status != "passed":
        raise AssertionError(_message(found, judged))
    return found


def _criterion(name: str, wanted: float) -> Criterion:
    """A keyword cannot have a dot: ``pearson_p05`` is ``pearson.p05``."""
    quantity, _, part = name.rpartition("_")
    named = name not in gate.quantities() and part in PARTS
    return gate.criterion(f"{quantity}.{part}" if named else name, wanted)


def _message(found: Comparison, judged: Judgement) -> str:
    counts = {verdict: sum(row.verdict == verdict for row in found.rows) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    sides = f"{found.candidate.model} against {found.reference.model}"
    photos = f"{len(found.rows)} photos at {found.judged.name}"
    return f"{sides}, {photos}: {told}; {len(found.skipped)} skipped\n{judged}"
