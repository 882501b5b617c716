"""What a user may name as a side of a comparison, opened: a file, a model's source, or a recording.

Plain ONNX files and PyTorch models are made explainable on the way, which needs the extra ``[export]``
(``[torch]``); a recording and an explainable file need nothing but the runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import recorder, recording
from ..contract import Preprocess, Score
from ..errors import InputError, MissingDependency, NotExplainable, OnnxcamError
from ..explainer import Explainer
from ..grids import grid_of
from ..kinds import is_whole
from ..recorder import Progress
from ..recording import Maker, Recording
from . import classes

if TYPE_CHECKING:
    from ..export import Candidate

FILES = ("reference.npz", "candidate.npz")  #: what the sides' recordings are called in a folder
STAGES = "stages"  #: layers that a model is asked at where it is to be seen by layer


@dataclass(frozen=True)
class Side:
    """One side, as it is named.

    Attributes:
        source: a path (an explainable file, any ONNX file, a recording), ``pkg.module:factory`` of a PyTorch
            model, or a :class:`Recording`.
        layers: to explain; None: those of an explainable file; of another model those that match the other
            side's, or its best one; ``"stages"``: the last layer of each resolution, but of an explainable
            file with several layers these.
        preprocess: see :class:`onnxcam.Explainer`.
        labels: see there.
        providers: see there.
        optimization: of :data:`onnxcam.recorder.OPTIMIZATIONS`; None: ONNX Runtime's default.
        session_options: further ones, {name: value}.
        score: what a plain model is explained by: see :func:`onnxcam.export.rewrite_onnx`.
        shape: of the input of a PyTorch model.
    """

    source: Any
    layers: Sequence[str] | Literal["stages"] | None = None
    preprocess: Any = None
    labels: Sequence[str] | None = None
    providers: Any = None
    optimization: str | None = None
    session_options: Mapping[str, Any] = field(default_factory=dict)
    score: Any = None
    shape: tuple[int, ...] = (1, 3, 224, 224)

    @property
    def name(self) -> str:
        """For messages."""
        return self.source.maker.model if isinstance(self.source, Recording) else os.fspath(self.source)


def recorded(
    reference: Any,
    candidate: Any,
    photos: Sequence[str | os.PathLike[str]] = (),
    folder: str | os.PathLike[str] | None = None,
    *,
    method: str = "gradcam",
    target: Any = None,
    batch: int = 8,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Recording, Recording]:
    """What both sides say of the photos; each photo is decoded once for both.

    Args:
        reference: a :class:`Side`, or its source.
        candidate: the same.
        photos: and folders of them; not needed where both sides are recordings.
        folder: where the journals of both recordings are kept (:func:`onnxcam.recorder.journal_of`), so that
            a run that was cut off goes on; None: in memory.
        method: of :func:`onnxcam.methods.names`.
        target: one class for all photos, by label or by the reference's number; None: each side's own top
            class.
        batch: photos in one run.
        progress: called with the number of photos that are done, and of all.
        **options: of the method.

    Raises:
        InputError: a side that cannot be used, or no photos.
        ModelError, ExplainableFileError, ProviderError: a side that cannot be opened.
    """
    sides = [one if isinstance(one, Side) else Side(one) for one in (reference, candidate)]
    with contextlib.ExitStack() as stack:
        found = [_recording(one) for one in sides]
        live = [which for which in (0, 1) if found[which] is None]
        if live and not photos:
            raise InputError(
                f"'{sides[live[0]].name}' is a model, and there are no photos to ask it about: name some, or "
                "give recordings (`onnxcam record`) on both sides."
            )
        opened: dict[int, Explainer] = {}
        files: dict[int, Path] = {}
        for which in sorted(live, key=lambda which: _needs_work(sides[which])):
            known = _known(found[1 - which], opened.get(1 - which))
            with _naming(which, sides[which]):
                opened[which], files[which] = _opened(sides[which], known, stack)
        named = recorder.names_of(photos) if live else {}
        labels = [_labels(found[which], opened.get(which)) for which in (0, 1)]
        asked = []
        for which in live:
            with _naming(which, sides[which]):
                one = recorder.side(
                    opened[which],
                    sides[which].name,
                    method,
                    _own(target, *labels) if which else target,
                    _asked(sides[which]),
                    _runtime(sides[which]),
                    **options,
                )
            if _is_factory(sides[which].name):  # which has no bytes but those of what it was exported to
                sha256 = recorder.sha256_of(files[which])
                one = dataclasses.replace(one, maker=dataclasses.replace(one.maker, sha256=sha256))
            asked.append(one)
        journals = [
            None if folder is None else recorder.journal_of(Path(folder, FILES[which])) for which in live
        ]
        made = recorder.record(asked, named, journals, batch=batch, progress=progress) if live else []
        for which, result in zip(live, made, strict=True):
            found[which] = result
    first, second = found
    assert first is not None
    assert second is not None
    return first, second


def _recording(side: Side) -> Recording | None:
    if isinstance(side.source, Recording):
        return side.source
    return recording.load(side.source) if str(side.source).lower().endswith(recording.SUFFIX) else None


@contextlib.contextmanager
def _naming(which: int, side: Side) -> Iterator[None]:
    """Errors say of which of the two sides they are."""
    try:
        yield
    except OnnxcamError as e:
        name = "" if str(side.name) in str(e) else f" ('{side.name}')"
        raise type(e)(f"The {('reference', 'candidate')[which]}{name}: {e}") from e


def _labels(recorded: Recording | None, opened: Explainer | None) -> Sequence[str] | None:
    return recorded.maker.labels if recorded is not None else opened.labels if opened is not None else None


def _own(target: Any, reference: Sequence[str] | None, candidate: Sequence[str] | None) -> Any:
    """The candidate's number of a class that is named by its number, which is the reference's.

    Raises:
        InputError: the classes of the two differ.
    """
    if not is_whole(target, 0) or reference is None or candidate is None:
        return target
    order = classes.matched(reference, candidate).order
    return target if order is None or target >= len(order) else int(np.flatnonzero(order == target)[0])


@dataclass(frozen=True)
class _Known:
    """Of the other side what holds where a side says nothing itself, as far as it is known.

    Attributes:
        layers: with their grids.
        preprocess: of its photos.
        score: what it is explained by, as the fields of a score that are not the usual ones.
    """

    layers: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    preprocess: Preprocess | None = None
    score: Mapping[str, Any] = field(default_factory=dict)


def _known(recorded: Recording | None, opened: Explainer | None) -> _Known:
    if recorded is not None:
        maker = recorded.maker
        layers = {name: maps.shape[1:] for name, maps in recorded.maps.items()}
        return _Known(layers, maker.preprocess, _unusual(maker))
    if opened is None:
        return _Known()
    layers = {one.name: grid_of(one.layout, one.shape) for one in opened.record.layers}
    return _Known(layers, opened.preprocess, _unusual(opened.record.score))


def _unusual(score: Score | Maker) -> dict[str, Any]:
    usual = {"task": "classification", "probability": False, "background": None, "rest": False}
    told = {name: getattr(score, name, default) for name, default in usual.items()}
    return {name: value for name, value in told.items() if value != usual[name]}


def _asked(side: Side) -> Sequence[str] | None:
    """Of the file's layers; a file that was written on the way has no others."""
    return None if side.layers is None or side.layers == STAGES else side.layers


def _runtime(side: Side) -> dict[str, str]:
    told = {"optimization": side.optimization or "all"}
    return told | {name: str(value) for name, value in side.session_options.items()}


def _needs_work(side: Side) -> bool:
    """Whether a side can only be asked where the other one is asked, once it has been made explainable."""
    return _is_factory(side.name) or not str(side.name).endswith(".cam.onnx")


def _opened(side: Side, other: _Known, stack: contextlib.ExitStack) -> tuple[Explainer, Path]:
    """A side, open and explainable, and the file; the stack keeps what is written on the way."""
    explainer = None if _is_factory(side.name) else _explainable(side)
    if explainer is None or not _answers(side, explainer):
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "model.cam.onnx")
        if side.score is None or isinstance(side.score, str):
            usual = other.score if explainer is None else _unusual(explainer.record.score)
            output = {} if side.score is None else {"output": side.score}
            side = dataclasses.replace(side, score={**usual, **output} or None)
        if _is_factory(side.name):
            _export(side, list(other.layers), path)
        else:
            _rewrite(side, other.layers, path)
        side = dataclasses.replace(side, source=path)
        explainer = Explainer(path, **_how(side))
    if explainer.preprocess is None and other.preprocess is not None:
        own = {"input", "size", "layout"}  # which follow from the model
        fields = {k: v for k, v in dataclasses.asdict(other.preprocess).items() if k not in own}
        explainer = Explainer(side.name, **_how(dataclasses.replace(side, preprocess=fields)))
    return explainer, Path(side.name)


def _answers(side: Side, explainer: Explainer) -> bool:
    """Whether an explainable file explains what the side is asked for."""
    if side.layers == STAGES:
        return len(explainer.layers) > 1
    return set(_asked(side) or ()) <= set(explainer.layers)


def _explainable(side: Side) -> Explainer | None:
    """The file, open; None if it must be made explainable first."""
    try:
        return Explainer(side.name, **_how(side))
    except NotExplainable:
        return None


def _how(side: Side) -> dict[str, Any]:
    options = dict(side.session_options)
    if side.optimization is not None:
        options |= recorder.session_options(side.optimization)
    return {
        "providers": side.providers,
        "session_options": options or None,
        "preprocess": side.preprocess,
        "labels": side.labels,
    }


def _is_factory(name: str) -> bool:
    return ":" in name and not os.path.exists(name) and not name.lower().endswith((".onnx", ".ort"))


def _export(side: Side, other: Sequence[str], target: Path) -> None:
    """Write a PyTorch model at the layers that were named, or at those of the other side's that it has."""
    try:
        import torch

        from ..export import export_torch
        from ..export.factory import make_module
    except ImportError as e:
        raise MissingDependency(
            f"'{side.name}' is a PyTorch model, and {e.name} is not installed: `pip install "
            '"onnxcam[torch]"`, or export it where PyTorch is (`onnxcam export`) and compare the file.'
        ) from e
    model = make_module(side.name)
    known = dict(model.named_modules())
    if side.layers == STAGES:
        raise InputError(f"'{side.name}' is a PyTorch model, whose layers are to be named: give --layer.")
    layers = list(side.layers) if side.layers else [name for name in other if name in known]
    example = torch.randn(side.shape, generator=torch.Generator().manual_seed(0))
    export_torch(
        model, example, target, layers or "auto", side.score, preprocess=side.preprocess, labels=side.labels
    )


def _rewrite(side: Side, other: Mapping[str, tuple[Any, ...]], target: Path) -> None:
    """Write a file at the layers that were named, or at those that match the other side's."""
    try:
        from ..export import list_layers, rewrite_onnx
    except ImportError as e:
        raise MissingDependency(
            f"'{side.name}' is not explainable yet, and to make it so {e.name} is missing: `pip install "
            '"onnxcam[export]"`, or rewrite it elsewhere (`onnxcam rewrite`) and compare the result.'
        ) from e
    layers: Sequence[str] = []
    if side.layers == STAGES:
        layers = stages(list_layers(side.name, side.score))
    elif side.layers is not None:
        layers = side.layers
    elif other:
        layers = matching(list_layers(side.name, side.score), other)
    rewrite_onnx(side.name, target, list(layers) or "auto", side.score, labels=side.labels)


def stages(listed: Sequence[Candidate]) -> list[str]:
    """The last layer of each resolution, from the input to the output.

    Args:
        listed: as :func:`onnxcam.export.list_layers` gives them.
    """
    last: dict[tuple[Any, ...], str] = {}
    for one in listed:  # the best first, which may be one of those that follow from the score backwards
        if all(isinstance(n, int) and n > 1 for n in one.grid):
            last.setdefault(one.grid, one.name)
    return [last[grid] for grid in sorted(last, key=math.prod, reverse=True)]


def matching(listed: Sequence[Candidate], other: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """For each of the other side's layers that of the same name, or the last one of the same grid.

    Args:
        listed: as :func:`onnxcam.export.list_layers` gives them.
        other: {layer: its grid}.

    Returns:
        Names, without those for which there is none.
    """
    named = {one.name for one in listed}
    last: dict[tuple[Any, ...], str] = {}
    for one in listed:
        last.setdefault(one.grid, one.name)
    found = (name if name in named else last.get(tuple(grid)) for name, grid in other.items())
    return list(dict.fromkeys(name for name in found if name is not None))
