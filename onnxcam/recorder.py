"""Photos through one or several open files, each into a recording; what was done is not done again.

Each photo is decoded once for all files, in a thread of its own, while the photos before it are explained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import images, preprocess, recording
from ._version import __version__
from .contract import Preprocess
from .errors import ImageError, InputError, OutputError, ProviderError, TensorError
from .explainer import Explainer
from .folder import write_whole
from .recording import Maker, Recording

_log = logging.getLogger("onnxcam")

Progress = Callable[[int, int], object]
PARTIAL = ".partial"  #: what a recording's name gets for the folder of its parts


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
        InputError: the file takes no photos, or records nothing of how to prepare them.
    """
    how, record = explainer.preprocess, explainer.record
    if how is None:
        raise InputError(
            f"'{os.fspath(model)}' records no preprocessing for photos. Say how its input is made from one: "
            "--preprocess, or Explainer(..., preprocess=...), takes a preset such as imagenet, or fields."
        )
    import onnxruntime

    path = Path(model)
    maker = Maker(
        path.name,
        (),
        _sha256_of(path),
        f"onnxcam {__version__}",
        {
            "onnxruntime": onnxruntime.__version__,
            "providers": ", ".join(explainer.providers),
            "platform": f"{platform.system()} {platform.machine()}",
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


def names_of(paths: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """{name: path} of photos, and of those in folders: relative to the folder, with "/" between parts.

    A name that two photos would have is the path as it was given.

    Raises:
        ImageError: see :func:`onnxcam.images.find_images`.
    """
    found: dict[str, str] = {}
    for given in paths:
        folder = Path(given)
        for path in images.find_images([given]):
            name = Path(path).relative_to(folder).as_posix() if folder.is_dir() else Path(path).name
            if found.get(name, path) != path:
                name = Path(path).as_posix()
            found[name] = path
    return found


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
        OutputError: a journal cannot be written.
        TargetError, MethodError, UnknownLayer: what is asked cannot be answered for any photo.
    """
    folders = journals or [None] * len(sides)
    kept = [_Journal(folder, _plan(one, photos, batch)) for one, folder in zip(sides, folders, strict=True)]
    names = list(photos)
    parts = {at // batch: names[at : at + batch] for at in range(0, len(names), batch)}
    missing = {number: part for number, part in parts.items() if not all(k.has(number) for k in kept)}
    told = progress or (lambda done, of: None)
    told(0, len(names))
    for number, read in _ahead(sides, photos, missing):
        for which, (one, journal) in enumerate(zip(sides, kept, strict=True)):
            if not journal.has(number):
                journal.add(number, _explained(one, which, read))
        told(min((number + 1) * batch, len(names)), len(names))
    return [journal.whole(len(parts)) for journal in kept]


def _ahead(
    sides: Sequence[Side], photos: Mapping[str, str], parts: Mapping[int, Sequence[str]]
) -> Iterator[tuple[int, list[_Read]]]:
    """The photos of one part after the other; the next is read while one is used."""

    def read(names: Sequence[str]) -> list[_Read]:
        return [_read(name, photos[name], sides) for name in names]

    with ThreadPoolExecutor(1) as reader:
        upcoming = deque[tuple[int, Future[list[_Read]]]]()
        for number, names in parts.items():
            upcoming.append((number, reader.submit(read, names)))
            if len(upcoming) > 1:
                first, ready = upcoming.popleft()
                yield first, ready.result()
        for last, ready in upcoming:
            yield last, ready.result()


def _read(name: str, path: str, sides: Sequence[Side]) -> _Read:
    try:
        with open(path, "rb") as file:
            data = file.read()
        photo = images.load(data, f"'{name}'")
    except (ImageError, OSError) as e:
        return _Read(name, reason=str(e))
    tensors: dict[tuple[Preprocess, Any], NDArray[Any]] = {}
    ready = []
    for one in sides:
        key = (one.preprocess, one.explainer.input.dtype or np.dtype(np.float32))
        if key not in tensors:
            tensors[key] = preprocess.apply(photo, *key)[0]
        ready.append(tensors[key])
    return _Read(name, hashlib.sha256(data).hexdigest(), photo.shape[:2], tuple(ready))


def _explained(one: Side, which: int, read: Sequence[_Read]) -> Recording:
    """What a side says of some photos: of all at once or, where that fails, of each alone."""
    good = [photo for photo in read if photo.tensors]
    skipped = tuple((photo.name, photo.reason) for photo in read if not photo.tensors)
    try:
        return dataclasses.replace(_run(one, which, good), skipped=skipped)
    except (TensorError, ProviderError) as e:
        if len(read) > 1:
            return recording.joined([_explained(one, which, [photo]) for photo in read])
        return dataclasses.replace(_run(one, which, []), skipped=((read[0].name, str(e)),))


def _run(one: Side, which: int, read: Sequence[_Read]) -> Recording:
    if not read:
        return recording.empty(one.maker)
    x = np.stack([photo.tensors[which] for photo in read])
    found = one.explainer.explain_tensor(x, one.maker.method, one.target, one.layers, **one.options)
    if len(found) != len(read):
        raise InputError("A recording holds one explanation for each photo: name one target.")
    outputs = found.outputs.get(one.explainer.record.score.output)
    classes = one.maker.task in ("classification", "regression") and outputs is not None
    return Recording(
        dataclasses.replace(one.maker, layers=tuple(found.layer_maps)),
        tuple(photo.name for photo in read),
        tuple(photo.sha256 for photo in read),
        np.array([photo.size for photo in read], np.int64),
        found.class_ids,
        tuple(found.labels),
        found.scores,
        outputs.reshape(len(read), -1).astype(np.float32) if classes and outputs is not None else None,
        found.layer_maps,
    )


def _plan(one: Side, photos: Mapping[str, str], batch: int) -> str:
    """All that decides what a recording holds; a photo by its size and date, which need no reading."""
    plan = {
        "maker": dataclasses.asdict(one.maker),
        "target": repr(one.target),
        "layers": None if one.layers is None else list(one.layers),
        "options": {name: repr(value) for name, value in one.options.items()},
        "batch": batch,
        "photos": {name: _stamp(path) for name, path in photos.items()},
    }
    return json.dumps(plan, ensure_ascii=False, indent=1)


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
        self._parts: dict[int, Recording] = {}
        if folder is None:
            return
        known = folder / "plan.json"
        if folder.is_dir() and not (known.is_file() and known.read_text("utf-8", "surrogatepass") == plan):
            _log.warning("What is kept in '%s' is of another run, and is begun anew.", folder)
            discard(folder)
        if not folder.is_dir():
            write_whole(known, plan.encode("utf-8", "surrogatepass"))

    def has(self, number: int) -> bool:
        return number in self._parts if self._folder is None else self._path(number).is_file()

    def add(self, number: int, part: Recording) -> None:
        if self._folder is None:
            self._parts[number] = part
        else:
            part.save(self._path(number))

    def whole(self, count: int) -> Recording:
        return recording.joined([self._part(number) for number in range(count)])

    def _part(self, number: int) -> Recording:
        return self._parts[number] if self._folder is None else recording.load(self._path(number))

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:06}{recording.SUFFIX}"


def discard(folder: Path) -> None:
    """Remove the parts of a recording, and nothing else that lies there.

    Raises:
        OutputError: they cannot be removed.
    """
    try:
        for path in folder.glob("*"):
            if path.name == "plan.json" or path.suffix == recording.SUFFIX or path.name.startswith("."):
                path.unlink()
        folder.rmdir()
    except OSError as e:
        raise OutputError(
            f"'{folder}' cannot be removed: {e.strerror or e}. Remove it, or name another file."
        ) from e


def _sha256_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
