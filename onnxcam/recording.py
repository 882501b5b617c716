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
        """Write the file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **self.arrays())
        write_whole(Path(path), stream.getvalue())


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording.

    Raises:
        BadRecording: it cannot be read, is none, was written by a newer onnxcam, or contradicts itself.
    """
    what = f"'{os.fspath(path)}'"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise BadRecording(f"There is no recording {what}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as e:
        # AttributeError: a lone array, which np.load gives as it is
        raise BadRecording(f"{what} is no recording: {e}. `onnxcam record` makes one.") from e
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


def _parsed(arrays: Mapping[str, NDArray[Any]], what: str) -> Recording:
    again = (
        "Record it again with `onnxcam record`, or see docs/recording.md for how other programs write one."
    )
    missing = [name for name in ("about", *_ARRAYS) if name not in arrays]
    if missing:
        raise BadRecording(f"{what} is no recording: it has no entry '{missing[0]}'. {again}")
    try:
        about = json.loads(arrays["about"].astype(np.uint8).tobytes().decode("utf-8", "surrogatepass"))
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
        maker: Maker = build(Maker, about.get("maker"), "maker")
        texts = {
            name: build(tuple[str, ...], about.get(name, []), name) for name in ("names", "sha256", "labels")
        }
        skipped = build(tuple[tuple[str, str], ...], about.get("skipped", []), "skipped")
        return _checked(maker, texts, skipped, arrays)
    except (TypeError, ValueError, KeyError) as e:
        raise BadRecording(f"The recording {what} is damaged: {e}. {again}") from e


def _checked(
    maker: Maker,
    texts: Mapping[str, tuple[str, ...]],
    skipped: tuple[tuple[str, str], ...],
    arrays: Mapping[str, NDArray[Any]],
) -> Recording:
    """The recording, if its parts fit together; ValueError if they do not."""
    names = texts["names"]
    count = len(names)
    texts = {k: v or ("",) * count for k, v in texts.items()}  # what is left out is unknown
    maps = {f"maps/{i}": layer for i, layer in enumerate(maker.layers)}
    ranks = {**_ARRAYS, **dict.fromkeys(maps, 3)} | ({"outputs": 2} if "outputs" in arrays else {})
    for name, rank in ranks.items():
        array = arrays.get(name)
        if array is None:
            raise ValueError(f"it has no entry '{name}', the maps of the layer '{maps[name]}'")
        if array.ndim != rank or len(array) != count or array.dtype.kind not in "fiu":
            raise ValueError(
                f"'{name}' is {array.dtype} {array.shape}, not {rank} axes of numbers with {count} entries, "
                "one for each photo"
            )
        if not array.size and count:
            raise ValueError(f"'{name}' is empty: its shape is {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"'{name}' holds NaN or infinity")
    for name, values in texts.items():
        if len(values) != count:
            raise ValueError(f"'{name}' has {len(values)} entries for {count} photos")
    if arrays["sizes"].shape[1] != 2 or (arrays["sizes"] < 1).any():
        raise ValueError("'sizes' is to hold the height and width of each photo, in pixels")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < count else []
    if twice:
        raise ValueError(f"the photo '{twice[0]}' is there twice")
    if maker.labels is not None and "outputs" in arrays and len(maker.labels) != arrays["outputs"].shape[1]:
        raise ValueError(
            f"there are {len(maker.labels)} labels for the {arrays['outputs'].shape[1]} classes of 'outputs'"
        )
    return Recording(
        maker,
        names,
        texts["sha256"],
        arrays["sizes"].astype(np.int64),
        arrays["class_ids"].astype(np.int64),
        texts["labels"],
        arrays["scores"].astype(np.float32),
        arrays["outputs"].astype(np.float32) if "outputs" in arrays else None,
        {layer: arrays[name].astype(np.float32) for name, layer in maps.items()},
        skipped,
    )
