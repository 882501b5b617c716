"""Photos through one or several open files, each into a recording; what was done is not done again.

Each photo is decoded once for all files, in a thread of its own, while the photos before it are explained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import feeds, images, preprocess, recording
from ._version import __version__
from .contract import BOX, REGION, Preprocess
from .digest import sha256
from .errors import (
    BadRecording,
    ImageError,
    InputError,
    MethodError,
    OutputError,
    ProviderError,
    TensorError,
    nearest,
)
from .explainer import Explainer
from .folder import write_whole
from .recording import Maker, Recording

_log = logging.getLogger("onnxcam")

Progress = Callable[[int, int], object]
PARTIAL = ".partial"  #: what a recording's name gets for the folder of its parts
READER = "onnxcam-reader"  #: what the threads that read photos are called
#: ONNX Runtime's levels of graph optimisation, as they are called here.
OPTIMIZATIONS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disable": "ORT_DISABLE_ALL",
}
_PLAN, _WHOLE = "plan.json", "whole.npz"
#: The files of a journal, and what a killed run leaves of them.
_OWN = re.compile(r"(plan\.json|(whole|\d{6,})\.npz)|\.(plan\.json|(whole|\d{6,})\.npz)\.[0-9a-f]{8}")


@dataclass(frozen=True)
class Side:
    """An open file, and what is recorded of it.

    Attributes:
        explainer: open; it knows how photos are prepared.
        maker: without the layers, which the first photos tell.
        target: see :meth:`Explainer.explain`; one, for all photos.
        layers: of the file; None: all.
        options: of the method.
    """

    explainer: Explainer
    maker: Maker
    target: Any = None
    layers: Sequence[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def preprocess(self) -> Preprocess:
        """Of its photos."""
        how = self.maker.preprocess
        assert how is not None
        return how


@dataclass(frozen=True)
class _Read:
    """A photo as it was read: its bytes' hash, its size, what each side's model takes of it; or why not."""

    name: str
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    tensors: tuple[NDArray[Any], ...] = ()
    reason: str = ""


def side(
    explainer: Explainer,
    model: str | os.PathLike[str],
    method: str = "gradcam",
    target: Any = None,
    layers: Sequence[str] | None = None,
    runtime: Mapping[str, str] | None = None,
    **options: Any,
) -> Side:
    """What is recorded of an open file.

    Args:
        explainer: of the file.
        model: its path.
        method: see :meth:`Explainer.explain`.
        target: see there; one, for all photos.
        layers: see there.
        runtime: what else may matter of how it is run, {name: value}.
        **options: of the method.

    Raises:
        InputError: the file takes no photos, or records nothing of how to prepare them; several targets.
        TensorError: photos that are prepared so do not fit the file's input, or it has other inputs.
        TargetError, MethodError, UnknownLayer: what is asked cannot be answered.
    """
    how, record = explainer.preprocess, explainer.record
    if how is None:
        raise InputError(
            f"'{os.fspath(model)}' records no preprocessing for photos. Say how its input is made from one: "
            "--preprocess, or Explainer(..., preprocess=...), takes a preset such as imagenet, or fields."
        )
    # What holds for every photo is refused here; what fails later is a matter of one photo.
    explainer._refuse_other_inputs("a recording is made of photos alone")
    if isinstance(target, (list, tuple, np.ndarray)):
        raise InputError(f"A recording has one target, the same for all photos, not {target!r}.")
    request = explainer._request(method, target, layers, 1, None, None, None, options)
    if any(name in fed for fed in request.targets.feeds for name in (BOX, REGION)):
        raise InputError(f"A {type(target).__name__} lies in one photo; a recording's target is for all.")
    grey = np.zeros((8, 8, 3), np.uint8)
    feeds.check(explainer.input, preprocess.apply(grey, how, _dtype(explainer))[0][None])
    import onnxruntime

    path = Path(model)
    weights = path.with_name(f"{path.name}.data")
    maker = Maker(
        path.name,
        (),
        sha256_of(path),
        f"onnxcam {__version__}",
        {
            "onnxruntime": onnxruntime.__version__,
            "providers": ", ".join(explainer.providers),
            "platform": f"{platform.system()} {platform.machine()}",
            **({"weights": sha256_of(weights)} if weights.is_file() else {}),
            **({} if target is None else {"target": _text(target)}),
            **{f"{method}.{name}": _text(value) for name, value in options.items()},
            **(runtime or {}),
        },
        method,
        record.score.task,
        record.score.activation,
        record.score.probability,
        explainer.labels,
        how,
    )
    return Side(explainer, maker, target, layers, options)


def session_options(optimization: str) -> dict[str, Any]:
    """ONNX Runtime's level of graph optimisation, as :class:`Explainer` takes it.

    Args:
        optimization: of :data:`OPTIMIZATIONS`.

    Raises:
        InputError: another one.
    """
    import onnxruntime

    if optimization not in OPTIMIZATIONS:
        raise InputError(
            f"There is no optimization {optimization!r}.{nearest(optimization, list(OPTIMIZATIONS))} "
            f"There is {', '.join(OPTIMIZATIONS)}."
        )
    level = getattr(onnxruntime.GraphOptimizationLevel, OPTIMIZATIONS[optimization])
    return {"graph_optimization_level": level}


def names_of(paths: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """{name: path} of photos, and of those in folders: relative to the folder, with "/" between parts.

    Photos that would have the same name are called by their paths as they were given.

    Raises:
        ImageError: see :func:`onnxcam.images.find_images`.
    """
    short: dict[Path, str] = {}
    for given in map(Path, paths):
        for path in map(Path, images.find_images([given])):
            short.setdefault(path, path.relative_to(given).as_posix() if given.is_dir() else path.name)
    often = Counter(short.values())
    names = {path: name if often[name] == 1 else path.as_posix() for path, name in short.items()}
    if len(set(names.values())) < len(names):  # a path that is another photo's name
        names = {path: path.as_posix() for path in names}
    return {name: str(path) for path, name in names.items()}


def record_to(
    sides: Sequence[Side],
    photos: Mapping[str, str],
    paths: Sequence[str | os.PathLike[str]],
    *,
    batch: int = 8,
    progress: Progress | None = None,
) -> list[Recording]:
    """Record what every side says of every photo, and write it.

    Until the recordings are whole their parts lie in a folder beside each (:func:`journal_of`), so that a run
    that was cut off, at any moment, goes on when it is started again, to the same bytes.

    Args:
        sides: one recording each.
        photos: see :func:`record`.
        paths: of the recordings, one per side.
        batch: see :func:`record`.
        progress: see :func:`record`.

    Raises:
        InputError: two recordings of one path, or see :func:`record`.
        OutputError: a file cannot be written.
    """
    journals = [journal_of(path) for path in paths]
    if len(set(journals)) < len(journals):
        raise InputError("Two sides are recorded into one file: name one for each.")
    for path in paths:
        if os.path.isdir(path):
            raise OutputError(f"'{os.fspath(path)}' is a folder: name a file for the recording.")
    made = record(sides, photos, journals, batch=batch, progress=progress)
    # In the journal first: what a killed run leaves of a file goes with it.
    for one, journal in zip(made, journals, strict=True):
        one.save(journal / _WHOLE)
    for path, journal in zip(paths, journals, strict=True):
        try:
            os.replace(journal / _WHOLE, path)
        except OSError as e:
            raise OutputError(
                f"Cannot write '{os.fspath(path)}': {e.strerror or e}. Name another file."
            ) from e
    for journal in journals:
        discard(journal)
    return made


def journal_of(path: str | os.PathLike[str]) -> Path:
    """The folder where the parts of a recording lie until it is whole."""
    return Path(path).with_name(Path(path).name + PARTIAL)


def record(
    sides: Sequence[Side],
    photos: Mapping[str, str],
    journals: Sequence[Path | None] = (),
    *,
    batch: int = 8,
    progress: Progress | None = None,
) -> list[Recording]:
    """Record what every side says of every photo.

    A photo that cannot be read, or that one side cannot explain, is skipped there with the reason.

    Args:
        sides: one recording each.
        photos: {name: path}.
        journals: for each side a folder where the parts are kept until the recording is whole, so that a run
            that was cut off goes on; None keeps them in memory. It goes on only if the files, the photos and
            what is asked are the same, or from the start.
        batch: photos in one run.
        progress: called with the number of photos that are done, and of all.

    Raises:
        InputError: there are no photos, or no such batch.
        OutputError: a journal cannot be written, its folder is something else, or another run uses it, too.
        TargetError, MethodError, UnknownLayer: what is asked cannot be answered for any photo.
    """
    if not photos:
        raise InputError("There are no photos to record.")
    if type(batch) is not int or batch < 1:
        raise InputError(f"batch is {batch!r}; it is a whole number of at least 1.")
    folders = journals or [None] * len(sides)
    kept = [_Journal(folder, _plan(one, photos, batch)) for one, folder in zip(sides, folders, strict=True)]
    names = list(photos)
    parts = {at // batch: names[at : at + batch] for at in range(0, len(names), batch)}
    missing = {number: part for number, part in parts.items() if not all(k.has(number) for k in kept)}
    done = len(names) - sum(map(len, missing.values()))
    told = progress or (lambda done, of: None)
    told(done, len(names))
    with contextlib.closing(_ahead(sides, photos, missing)) as ahead:
        for number, read in ahead:
            for which, (one, journal) in enumerate(zip(sides, kept, strict=True)):
                if not journal.has(number):
                    journal.add(number, _explained(one, which, read))
            done += len(read)
            told(done, len(names))
            del read  # or three parts would be held while the next one is taken
    return [journal.whole(len(parts)) for journal in kept]


def _ahead(
    sides: Sequence[Side], photos: Mapping[str, str], parts: Mapping[int, Sequence[str]]
) -> Generator[tuple[int, list[_Read]]]:
    """The photos of one part after the other; the next is read while one is used.

    Whoever leaves early does not wait for the reader, which ends after the photo that it is at.
    """
    left = threading.Event()

    def read(names: Sequence[str]) -> list[_Read]:
        return [_read(name, photos[name], sides) for name in names if not left.is_set()]

    reader = ThreadPoolExecutor(1, READER)
    try:
        numbers = list(parts)
        upcoming = [reader.submit(read, parts[number]) for number in numbers[:1]]
        for at, number in enumerate(numbers):
            ready = upcoming.pop().result()
            upcoming += [reader.submit(read, parts[following]) for following in numbers[at + 1 : at + 2]]
            yield number, ready
    finally:
        left.set()
        reader.shutdown(wait=False, cancel_futures=True)


def _read(name: str, path: str, sides: Sequence[Side]) -> _Read:
    try:
        with open(path, "rb") as file:
            data = file.read()
        photo = images.load(data, f"'{name}'")
        tensors: dict[tuple[Preprocess, Any], NDArray[Any]] = {}
        ready = []
        for one in sides:
            # What the input is called makes no difference.
            key = (dataclasses.replace(one.preprocess, input=""), _dtype(one.explainer))
            if key not in tensors:
                tensors[key] = preprocess.apply(photo, *key)[0]
            ready.append(tensors[key])
    except ImageError as e:
        return _Read(name, reason=str(e))
    except OSError as e:
        return _Read(name, reason=f"'{name}' cannot be read: {e.strerror or e}.")
    except MemoryError:
        return _Read(name, reason=f"'{name}' needs more memory than there is.")
    return _Read(name, hashlib.sha256(data).hexdigest(), photo.shape[:2], tuple(ready))


def _dtype(explainer: Explainer) -> np.dtype[Any]:
    """Of what the model takes."""
    return explainer.input.dtype or np.dtype(np.float32)


def _explained(one: Side, which: int, read: Sequence[_Read]) -> Recording:
    """What a side says of some photos: of all at once or, where that fails, of each alone."""
    good = [photo for photo in read if photo.tensors]
    skipped = tuple((photo.name, photo.reason) for photo in read if not photo.tensors)
    try:
        return dataclasses.replace(_run(one, which, good), skipped=skipped)
    except (TensorError, ProviderError) as e:
        if len(read) > 1:
            return recording.joined([_explained(one, which, [photo]) for photo in read])
        return dataclasses.replace(recording.empty(one.maker), skipped=((read[0].name, str(e)),))


def _run(one: Side, which: int, read: Sequence[_Read]) -> Recording:
    if not read:
        return recording.empty(one.maker)
    x = np.stack([photo.tensors[which] for photo in read])
    found = one.explainer.explain_tensor(x, one.maker.method, one.target, one.layers, **one.options)
    outputs = found.outputs.get(one.explainer.record.score.output)
    if one.maker.task not in ("classification", "regression") or outputs is None:
        table = None
    else:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            table = outputs.reshape(len(read), -1).astype(np.float32)
    for name, maps in found.layer_maps.items():
        if maps.ndim != 3:
            raise MethodError(
                f"The maps of the layer '{name}' are {maps.shape[1:]} for each photo, and a recording holds "
                "maps of height and width: record other layers (--layer)."
            )
    for name, values in {"outputs": table, **found.layer_maps}.items():
        if values is not None and not np.isfinite(values).all():
            what = "The model's outputs hold" if name == "outputs" else f"The map of the layer '{name}' holds"
            raise TensorError(f"{what} NaN or infinity: the model overflows.")
    return Recording(
        dataclasses.replace(one.maker, layers=tuple(found.layer_maps)),
        tuple(photo.name for photo in read),
        tuple(photo.sha256 for photo in read),
        np.array([photo.size for photo in read], np.int64),
        found.class_ids,
        tuple(found.labels),
        found.scores,
        table,
        found.layer_maps,
    )


def _plan(one: Side, photos: Mapping[str, str], batch: int) -> str:
    """All that decides what a recording holds; a photo by its size and date, which need no reading."""
    record = one.explainer.record.to_json().encode("utf-8", "surrogatepass")
    plan = {
        "maker": dataclasses.asdict(one.maker),
        "record": hashlib.sha256(record).hexdigest(),  # a file that is written on the way may change
        "target": _text(one.target),
        "layers": None if one.layers is None else list(one.layers),
        "options": {name: _text(value) for name, value in one.options.items()},
        "batch": batch,
        "photos": {name: _stamp(path) for name, path in photos.items()},
    }
    return json.dumps(plan, ensure_ascii=False, indent=1)


def _text(value: Any) -> str:
    """A value as text that no other value has, of arrays, too."""
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return value if isinstance(value, str) else repr(value)


def _stamp(path: str) -> list[Any]:
    try:
        state = os.stat(path)
    except OSError:
        return [path]
    return [os.path.realpath(path), state.st_size, state.st_mtime_ns]


class _Journal:
    """The parts of a recording, in a folder or in memory."""

    def __init__(self, folder: Path | None, plan: str) -> None:
        self._folder = folder
        self._plan = plan
        self._parts: dict[int, Recording] = {}
        if folder is None:
            return
        if folder.is_dir() and not _is_of(folder, plan):
            if (folder / _PLAN).exists():
                _log.warning("What is kept in '%s' is of another run, and is begun anew.", folder)
            discard(folder)
        if not folder.is_dir():
            write_whole(folder / _PLAN, plan.encode("utf-8", "surrogatepass"))

    def has(self, number: int) -> bool:
        if self._folder is None:
            return number in self._parts
        try:
            recording.load(self._path(number))
        except BadRecording:  # not there, or cut where the machine itself went down
            return False
        return True

    def add(self, number: int, part: Recording) -> None:
        if self._folder is None:
            self._parts[number] = part
        else:
            self._refuse_another()
            part.save(self._path(number))

    def whole(self, count: int) -> Recording:
        try:
            made = recording.joined([self._part(number) for number in range(count)])
        except BadRecording:
            self._refuse_another()
            raise
        self._refuse_another()
        return made

    def _refuse_another(self) -> None:
        """Two runs at once would each take the other's parts for its own."""
        if self._folder is not None and not _is_of(self._folder, self._plan):
            raise OutputError(
                f"Another run uses '{self._folder}' at the same time: start this one again when that one has "
                "ended, or name another file."
            )

    def _part(self, number: int) -> Recording:
        return self._parts[number] if self._folder is None else recording.load(self._path(number))

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:06}{recording.SUFFIX}"


def _is_of(folder: Path, plan: str) -> bool:
    try:
        return (folder / _PLAN).read_bytes() == plan.encode("utf-8", "surrogatepass")
    except OSError:
        return False


def discard(folder: Path) -> None:
    """Remove the parts of a recording, if there is nothing else in their folder.

    Raises:
        OutputError: there is, or they cannot be removed.
    """
    try:
        paths = list(folder.iterdir())
        others = sorted(path.name for path in paths if not _OWN.fullmatch(path.name))
        if others:
            raise OutputError(
                f"'{folder}' is where the parts of a recording are kept, and '{others[0]}' is none: move it, "
                "or name another file for the recording."
            )
        for path in paths:
            path.unlink()
        folder.rmdir()
    except OSError as e:
        raise OutputError(
            f"'{folder}' cannot be removed: {e.strerror or e}. Remove it, or name another file."
        ) from e


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; "" if it cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return ""
