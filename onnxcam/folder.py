"""A folder of overlays and its manifest, filled by any number of explanations."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ._version import __version__
from .errors import OutputError
from .overlay import Picture, overlay, sheet

if TYPE_CHECKING:
    from .result import Explanation

MANIFEST = "manifest.json"


class OverlayFolder:
    """Writes one overlay per row, and at the end ``manifest.json``, which says what each of them is.

    Every file is written whole or not at all; files of the same name are replaced, but never a photo
    that is being explained. Left through an exception, the manifest lists what was written until
    then and says that it is not complete.

    Example:
        >>> with OverlayFolder("out") as folder:  # doctest: +SKIP
        ...     for photos in batches:
        ...         folder.add(explainer.explain(photos))

    Args:
        path: made when the first file is written.
        alpha: see :func:`onnxcam.overlay.overlay`.
        colormap: see :func:`onnxcam.overlay.overlay`.
        style: see :func:`onnxcam.overlay.overlay`.
        sheets: write a sheet (photo, heatmap, overlay, caption) per image too.
        about: entries for the head of the manifest: the model, for one.

    Attributes:
        manifest: what will be written, as plain values.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        alpha: float = 0.5,
        colormap: str | int = "jet",
        style: str = "blend",
        *,
        sheets: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = {
            "schema": 1,
            "tool": f"onnxcam {__version__}",
            **(about or {}),
            "complete": False,
            "items": [],
            "skipped": [],
        }
        self._look = (alpha, colormap, style)
        self._sheets = sheets
        self._taken = {MANIFEST}
        self._images = 0

    def add(self, explanation: Explanation, *, images: Any = None) -> list[Path]:
        """Write the overlays of an explanation.

        Args:
            explanation: of images that follow those that were added before.
            images: the photos, for a result of ``explain_tensor``: one per image.

        Returns:
            The paths of the overlays, in the order of the rows.

        Raises:
            InputError: there are no photos, or an argument cannot be used.
            OutputError: a file cannot be written.
        """
        rows = explanation.rows(images)
        self.manifest["method"] = explanation.method
        self.manifest["layers"] = list(explanation.layer_maps)
        self._keep_photos(explanation.names)
        written = []
        for image, part in _by_image(explanation):
            named = explanation.names[image] if explanation.names else None
            # explain() calls arrays "image 0", counted from the start of its own batch.
            unnamed = named is None or re.fullmatch(r"image \d+", named)
            stem = f"image-{self._images}" if unnamed else file_stem(str(named))
            items = []
            for row in part:
                picture = overlay(
                    rows[row].image,
                    rows[row].heatmap,
                    *self._look[:2],
                    rows[row].seen,
                    self._look[2],
                    rows[row].box,
                )
                name = self._name(f"{stem}.{explanation.class_ids[row]}" if len(part) > 1 else stem)
                write_whole(self.path / name, encoded(picture))
                written.append(self.path / name)
                items.append(
                    {
                        "image": named,
                        "image_index": self._images,
                        "overlay": name,
                        "class_id": int(explanation.class_ids[row]),
                        "label": explanation.labels[row],
                        "score": float(explanation.scores[row]),
                        "size": list(explanation.heatmaps[row].shape),
                        "zero": bool(explanation.zero[row]),
                        **({} if explanation.boxes is None else {"box": explanation.boxes[row].tolist()}),
                    }
                )
            if self._sheets:
                name = self._name(f"{stem}.sheet")
                write_whole(self.path / name, encoded(sheet([rows[row] for row in part], *self._look)))
                items = [{**item, "sheet": name} for item in items]
            self.manifest["items"] += items
            self._images += 1
        return written

    def skip(self, image: str, reason: str) -> None:
        """Record an image that could not be explained."""
        self.manifest["skipped"].append({"image": image, "reason": reason})

    def finish(self, *, complete: bool = True) -> Path:
        """Write the manifest.

        Raises:
            OutputError: it cannot be written.
        """
        self.manifest["complete"] = complete
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False)
        write_whole(self.path / MANIFEST, text.encode("utf-8", "surrogatepass"))
        return self.path / MANIFEST

    def __enter__(self) -> OverlayFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif self.manifest["items"]:
            with contextlib.suppress(OutputError):  # the first error is the one to see
                self.finish(complete=False)

    def _keep_photos(self, names: tuple[str, ...]) -> None:
        """No overlay may take the name of a photo that lies in this very folder."""
        here = os.path.realpath(self.path)
        self._taken |= {
            os.path.basename(n).lower() for n in names if os.path.realpath(os.path.dirname(n) or ".") == here
        }

    def _name(self, stem: str) -> str:
        name, k = f"{stem}.png", 2
        while name.lower() in self._taken:  # some file systems ignore case
            name, k = f"{stem}-{k}.png", k + 1
        self._taken.add(name.lower())
        return name


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; its folder is made if it is not there.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as e:
        raise OutputError(
            f"Cannot write to '{path.parent}': {e.strerror or e}. Choose a folder that is yours to write."
        ) from e


def _by_image(explanation: Explanation) -> Iterator[tuple[int, list[int]]]:
    """(image, its rows), in order."""
    index = explanation.image_index
    for image in np.unique(index).tolist():
        yield image, np.flatnonzero(index == image).tolist()


def file_stem(name: str) -> str:
    """A photo's name as a file name that every system takes."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", Path(name).stem)[:100].strip(". ") or "image"


def encoded(picture: Picture) -> bytes:
    """A picture as the bytes of a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
