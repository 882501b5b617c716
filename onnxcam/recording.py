"""Recordings: what a model said of photos, and where it looked, as one file that any program can write.

An ``.npz`` (a zip of ``.npy`` arrays). All text is one entry, ``about``: UTF-8 JSON as an array of uint8, so
that a writer needs arrays of numbers alone. docs/recording.md describes it for other languages.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Preprocess, Task, build
from .errors import BadRecording
from .folder import write_whole

SCHEMA = 1  #: the newest schema that this version reads and the one it writes
SUFFIX = ".npz"
_ARRAYS = {"sizes": 2, "class_ids": 1, "scores": 1}  #: the arrays of every recording, and their ranks
_WHOLE = ("sizes", "class_ids")  #: those of whole numbers


@dataclass(frozen=True)
class Maker:
    """What made a recording.

    Attributes:
        model: the file's name.
        sha256: of its bytes, in hexadecimal; "" if unknown.
        tool: the program and its version.
        runtime: versions, providers and options that may matter, {name: value}.
        method: of :func:`onnxcam.methods.names`.
        layers: whose maps are recorded, from the input to the output.
        task: what the score is.
        activation: between what is explained and the output.
        probability: whether what the output says after that activation is explained.
        labels: one per class; None if unknown.
        preprocess: how a photo becomes the input; it says where a map lies in the photo.
    """

    model: str
    layers: tuple[str, ...]
    sha256: str = ""
    tool: str = ""
    runtime: Mapping[str, str] = field(default_factory=dict)
    method: str = "gradcam"
    task: Task = "classification"
    activation: str | None = None
    probability: bool = False
    labels: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None


@dataclass(frozen=True, eq=False)
class Recording:
    """What one model said of N photos, K classes.

    Attributes:
        maker: what made it.
        names: of the photos, relative to the folder that was given, with "/" between parts.
        sha256: of each photo's bytes, in hexadecimal; "" if unknown.
        sizes: (N, 2) int64, height and width of each photo as it is shown.
        class_ids: (N,) int64, the class that was explained; -1 if it was none.
        labels: what that is called.
        scores: (N,) float32, of what was explained, as the model gives it.
        outputs: (N, K) float32, every class's score; None for other tasks.
        maps: {layer: (N, h, w) float32}, as the method gives them, not scaled.
        skipped: (name, why) of photos that could not be read or explained.
    """

    maker: Maker
    names: tuple[str, ...]
    sha256: tuple[str, ...]
    sizes: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    outputs: NDArray[np.float32] | None
    maps: Mapping[str, NDArray[np.float32]]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The entries of the file."""
        about = {
            "schema": SCHEMA,
            "maker": dataclasses.asdict(self.maker),
            "names": self.names,
            "sha256": self.sha256,
            "labels": self.labels,
            "skipped": self.skipped,
        }
        text = json.dumps(about, ensure_ascii=False).encode("utf-8", "surrogatepass")
        arrays: dict[str, NDArray[Any]] = {
            "about": np.frombuffer(text, np.uint8),
            "sizes": self.sizes,
            "class_ids": self.class_ids,
            "scores": self.scores,
        }
        if self.outputs is not None:
            arrays["outputs"] = self.outputs
        return arrays | {f"maps/{i}": self.maps[name] for i, name in enumerate(self.maker.layers)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all; the same recording becomes the same bytes.

        Raises:
            BadRecording: it contradicts itself, so that it could not be read again.
            OutputError: it cannot be written.
        """
        try:
            _check(self)
        except ValueError as e:
            raise BadRecording(f"The recording is not written to '{os.fspath(path)}': {e}.") from e
        write_whole(Path(path), _packed(self.arrays()))


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording.

    Raises:
        BadRecording: it cannot be read, is none, was written by a newer onnxcam, or contradicts itself.
    """
    what = f"'{os.fspath(path)}'"
    try:
        arrays = _unpacked(path)
    except FileNotFoundError:
        raise BadRecording(f"There is no recording {what}. `onnxcam record` makes one.") from None
    except Exception as e:  # zipfile, zlib and NumPy have no common error for what is damaged
        reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise BadRecording(
            f"{what} is no recording, or a damaged one: {reason.rstrip('.')}. `onnxcam record` makes one."
        ) from e
    return _parsed(arrays, what)


def empty(maker: Maker) -> Recording:
    """Of no photos."""
    none = np.empty(0, np.int64)
    maker = dataclasses.replace(maker, layers=())
    return Recording(maker, (), (), none.reshape(0, 2), none, (), np.empty(0, np.float32), None, {})


def joined(parts: Sequence[Recording]) -> Recording:
    """The recordings of further and further photos as one; at least one, and all of one maker."""
    skipped = tuple(one for part in parts for one in part.skipped)
    some = [part for part in parts if len(part)]
    if not some:
        return dataclasses.replace(parts[0], skipped=skipped)
    maker = some[0].maker
    outputs = [part.outputs for part in some if part.outputs is not None]
    return Recording(
        maker,
        tuple(name for part in some for name in part.names),
        tuple(one for part in some for one in part.sha256),
        np.concatenate([part.sizes for part in some]),
        np.concatenate([part.class_ids for part in some]),
        tuple(label for part in some for label in part.labels),
        np.concatenate([part.scores for part in some]),
        np.concatenate(outputs) if outputs else None,
        {name: np.concatenate([part.maps[name] for part in some]) for name in maker.layers},
        skipped,
    )


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    # Not numpy.savez: its entries are the arguments of a function, and their dates are its own business.
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:  # dated 1980, always
                np.lib.format.write_array(entry, np.asarray(array, order="C"), allow_pickle=False)
    return stream.getvalue()


def _unpacked(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    arrays = {}
    with zipfile.ZipFile(path) as file:
        for entry in file.namelist():
            name = entry.removesuffix(".npy")
            with file.open(entry) as stream:  # one that is not known, too: it may be a damaged name
                if name in ("about", "outputs", *_ARRAYS) or name.startswith("maps/"):
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
                    if stream.read(1):  # reading up to the end checks the sum, too
                        raise ValueError(f"the entry '{name}' is longer than its shape")
    return arrays


def _parsed(arrays: Mapping[str, NDArray[Any]], what: str) -> Recording:
    again = (
        "Record it again with `onnxcam record`, or see docs/recording.md for how other programs write one."
    )
    missing = [name for name in ("about", *_ARRAYS) if name not in arrays]
    if missing:
        raise BadRecording(f"{what} is no recording: it has no entry '{missing[0]}'. {again}")
    text = arrays["about"]
    if text.dtype.kind not in "iu" or text.dtype.itemsize != 1:
        raise BadRecording(f"The entry 'about' of {what} is {text.dtype}, not bytes (uint8). {again}")
    try:
        about = json.loads(text.tobytes().decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as e:
        raise BadRecording(f"The entry 'about' of {what} is not JSON: {e}. {again}") from e
    schema = about.get("schema") if isinstance(about, dict) else None
    if type(schema) is not int or schema < 1:
        raise BadRecording(f"The entry 'about' of {what} has no schema number. {again}")
    if schema > SCHEMA:
        raise BadRecording(
            f"The recording {what} has schema {schema}; this version reads up to {SCHEMA}. Upgrade onnxcam "
            "(`pip install -U onnxcam`)."
        )
    try:
        made = _made(about, arrays)
        _check(made)
    except (TypeError, ValueError) as e:
        raise BadRecording(f"The recording {what} is damaged: {e}. {again}") from e
    return made


def _made(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Recording:
    """The recording; TypeError or ValueError where an entry is not what it is to be."""
    maker: Maker = build(Maker, about.get("maker"), "maker")
    names = build(tuple[str, ...], about.get("names"), "names")
    unknown = [""] * len(names)
    ranks = dict(_ARRAYS)
    if "outputs" in arrays:
        ranks["outputs"] = 2
    for i, layer in enumerate(maker.layers):
        if f"maps/{i}" not in arrays:
            raise ValueError(f"it has no entry 'maps/{i}', the maps of the layer '{layer}'")
        ranks[f"maps/{i}"] = 3
    read = {name: _numbers(name, arrays[name], rank) for name, rank in ranks.items()}
    return Recording(
        maker,
        names,
        tuple(one.lower() for one in build(tuple[str, ...], about.get("sha256", unknown), "sha256")),
        read["sizes"],
        read["class_ids"],
        build(tuple[str, ...], about.get("labels", unknown), "labels"),
        read["scores"],
        read.get("outputs"),
        {layer: read[f"maps/{i}"] for i, layer in enumerate(maker.layers)},
        build(tuple[tuple[str, str], ...], about.get("skipped", []), "skipped"),
    )


def _numbers(name: str, array: NDArray[Any], rank: int) -> NDArray[Any]:
    if array.ndim != rank or array.dtype.kind not in "fiu":
        axes = f"{rank} ax{'es' if rank > 1 else 'is'}"
        raise ValueError(f"'{name}' is {array.dtype} {array.shape}, not numbers on {axes}")
    if name not in _WHOLE:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return array.astype(np.float32)
    with np.errstate(invalid="ignore"):  # of NaN, too, nothing whole is made that is equal to it
        whole = array.astype(np.int64)
    if (whole != array).any():
        raise ValueError(f"'{name}' is {array.dtype} and holds what is no whole number")
    return whole


def _check(made: Recording) -> None:
    """Raise ValueError if the parts of a recording do not fit together."""
    count, labels = len(made), made.maker.labels
    for name, n in Counter(made.maker.layers).items():
        if n > 1:
            raise ValueError(f"the layer '{name}' is there twice")
    for name, n in Counter([*made.names, *(name for name, _ in made.skipped)]).items():
        if n > 1:
            raise ValueError(f"the photo '{name}' is there twice")
    maps = {f"maps/{i}": made.maps[layer] for i, layer in enumerate(made.maker.layers)}
    floats = {"scores": made.scores, **maps} | ({} if made.outputs is None else {"outputs": made.outputs})
    arrays: dict[str, NDArray[Any]] = {"sizes": made.sizes, "class_ids": made.class_ids, **floats}
    counts = {
        "sha256": len(made.sha256),
        "labels": len(made.labels),
        **{k: len(v) for k, v in arrays.items()},
    }
    for name, n in counts.items():
        if n != count:
            raise ValueError(f"'{name}' has {n} entries for {count} photos")
    for name, array in floats.items():
        if count and not array.size:
            raise ValueError(f"'{name}' is empty: its shape is {array.shape}")
        if not np.isfinite(array).all():
            photo = made.names[int(np.argmin(np.isfinite(array.reshape(count, -1)).all(axis=1)))]
            raise ValueError(f"'{name}' holds NaN or infinity, for the photo '{photo}'")
    if made.sizes.shape[1] != 2 or (made.sizes < 1).any():
        raise ValueError("'sizes' is to hold the height and width of each photo, in pixels")
    classes = None if made.outputs is None or not count else made.outputs.shape[1]
    if classes is not None and labels is not None and len(labels) != classes:
        raise ValueError(f"there are {len(labels)} labels for the {classes} classes of 'outputs'")
    for name, which in zip(made.names, made.class_ids.tolist(), strict=True):
        if which < -1 or (classes is not None and which >= classes):
            end = "" if classes is None else f" to {classes - 1}"
            raise ValueError(f"the photo '{name}' has the class {which}: classes are 0{end}, -1 is none")
