"""Explanation: what a call found, and its pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import images as photos
from .errors import InputError
from .folder import OverlayFolder
from .images import Photo
from .overlay import Row
from .overlay import overlay as draw
from .overlay import sheet as draw_sheet


@dataclass(frozen=True)
class Explanation:
    """One row per image and target, in the order of both. R rows, N images.

    Attributes:
        maps: (R, h, w) float32, raw, at the layer's resolution and in the score's units. Of several
            layers: their fusion, in [0, 1], on the finest of their grids; see ``layer_maps``. Of signals
            (R, l), of volumes (R, d, h, w); so are the heatmaps.
        heatmaps: float32 in [0, 1]: (R, H, W) at the model input's size from ``explain_tensor``; from
            ``explain`` a list, each at its photo's size and 0 where the model did not see it.
        outputs: the model's own outputs, {name: one entry per image}.
        class_ids: (R,) int64; -1 for a row that is of no one class.
        scores: (R,) float32: the model's own score output at the class; of other tasks the number that
            is explained: a region's sum, a detection's confidence, a similarity, a weighted sum.
        labels: R strings: the class's label, "class 281" where none is known, or what the target is.
        image_index: (R,) int64: the image of each row.
        zero: (R,) bool: the heatmap is zero everywhere, there is no evidence to show.
        layer_maps: {layer: (R, h, w) float32}, raw.
        method: the method's name.
        boxes: (R, 4) float32 x1, y1, x2, y2 of each row's detection, in pixels of its photo from
            ``explain`` and of the model's input from ``explain_tensor``; None for other tasks.
        embeddings: (N, D) float32: each image's embedding, for
            :class:`onnxcam.targets.Similar`; None for other tasks.
        seen: per image (H, W) bool, the pixels that the model saw; None from ``explain_tensor``.
        images: the N photos, (H, W, 3) uint8 RGB; None from ``explain_tensor``.
        names: the photos' paths, or "image 0"; empty from ``explain_tensor``.
        passes: how many images went through the whole file for it, changed copies among them.
        tail_passes: how many changed copies went through what follows a layer.
    """

    maps: NDArray[np.float32]
    heatmaps: NDArray[np.float32] | list[NDArray[np.float32]]
    outputs: dict[str, NDArray[Any]]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    labels: list[str]
    image_index: NDArray[np.int64]
    zero: NDArray[np.bool_]
    layer_maps: dict[str, NDArray[np.float32]]
    method: str
    boxes: NDArray[np.float32] | None = None
    embeddings: NDArray[np.float32] | None = None
    seen: list[NDArray[np.bool_]] | None = None
    images: list[Photo] | None = None
    names: tuple[str, ...] = ()
    passes: int = 0
    tail_passes: int = 0

    def __len__(self) -> int:
        return len(self.class_ids)

    def overlay(
        self, alpha: float = 0.5, colormap: str | int = "jet", style: str = "blend", *, images: Any = None
    ) -> list[Photo]:
        """The photos with their heatmaps over them, one per row.

        Args:
            alpha: weight of the colours, 0 to 1.
            colormap: a name of OpenCV's, such as "jet", "viridis", "inferno".
            style: "blend", or "show_cam" for pytorch-grad-cam's look.
            images: the photos, for a result of ``explain_tensor``: one per image.

        Returns:
            R arrays (H, W, 3) uint8 RGB, each at its photo's size.

        Raises:
            InputError: there are no photos, or an argument cannot be used.
        """
        rows = self.rows(images)
        return [draw(r.image, r.heatmap, alpha, colormap, r.seen, style, r.box) for r in rows]

    def sheet(
        self, alpha: float = 0.5, colormap: str | int = "jet", style: str = "blend", *, images: Any = None
    ) -> Photo:
        """Photo, heatmap and overlay side by side with class and score, the rows below each other.

        Args:
            alpha: see :meth:`overlay`.
            colormap: see :meth:`overlay`.
            style: see :meth:`overlay`.
            images: see :meth:`overlay`.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            InputError: there are no photos, or an argument cannot be used.
        """
        return draw_sheet(self.rows(images), alpha, colormap, style)

    def save(
        self,
        folder: str | os.PathLike[str],
        alpha: float = 0.5,
        colormap: str | int = "jet",
        style: str = "blend",
        *,
        images: Any = None,
    ) -> list[Path]:
        """Write one overlay per row and ``manifest.json``, which says what each of them is.

        Every file is written whole or not at all, the manifest last; files of the same name are
        replaced. For several calls into one folder see :class:`onnxcam.folder.OverlayFolder`.

        Args:
            folder: made if it does not exist.
            alpha: see :meth:`overlay`.
            colormap: see :meth:`overlay`.
            style: see :meth:`overlay`.
            images: see :meth:`overlay`.

        Returns:
            The paths of the overlays, in the order of the rows.

        Raises:
            InputError: there are no photos, or an argument cannot be used.
            OutputError: a file cannot be written.
        """
        target = OverlayFolder(folder, alpha, colormap, style)
        written = target.add(self, images=images)
        target.finish()
        return written

    def rows(self, images: Any = None) -> list[Row]:
        """What is drawn, one per row: see :func:`onnxcam.overlay.sheet`.

        Args:
            images: see :meth:`overlay`.

        Raises:
            InputError: there are no photos, or not one for each image.
        """
        if self.maps.ndim != 3:
            grid = "signals: plot" if self.maps.ndim == 2 else "volumes: draw slices of"
            raise InputError(f"Overlays are of images, and these maps are of {grid} `heatmaps` instead.")
        pictures = self.images
        if images is not None:
            pictures = [photos.load(image, name) for name, image in photos.each(images)]
        if pictures is None:
            raise InputError(
                "There are no photos to draw on: explain_tensor was given tensors. Hand them over as images=."
            )
        count = int(self.image_index[-1]) + 1
        if len(pictures) != count:
            raise InputError(f"images has {len(pictures)} entries, but {count} were explained.")
        return [
            Row(
                pictures[i],
                self.heatmaps[row],
                self.labels[row],
                float(self.scores[row]),
                self.seen[i] if self.seen is not None and images is None else None,
                self.boxes[row] if self.boxes is not None and images is None else None,
            )
            for row, i in enumerate(self.image_index.tolist())
        ]
