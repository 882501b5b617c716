"""SESS: heatmaps of many windows of an enlarged image, put together as one.

Tursun, Denman, Sridharan and Fookes, "SESS: Saliency Enhancing with Scaling and Sliding", ECCV 2022
(arXiv:2207.01769). A model sees small things, and the second of two alike, better in a window that shows
little else: the image is enlarged step by step, a window slides over it at every size, and each window's
heatmap counts as much as the window looks like the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import interpolation, postprocess, rows, smoothing, targets
from .errors import InputError, TargetError, nearest
from .explainer import Explainer
from .methods import Method
from .perturbation import gives_logits, on_host, probabilities
from .result import Explanation
from .targets import Box, Finer, Region, Similar

Size = tuple[int, int]  #: height, width

POOLS = ("mean", "max")
_STEP = 2 / 7  #: from scale to scale, in windows: 224, 288, 352, ... as in the paper


@dataclass(frozen=True)
class Window:
    """Where a patch is cut out.

    Attributes:
        scaled: (H, W) of the enlarged image.
        top: its first row there.
        left: its first column there.
    """

    scaled: Size
    top: int
    left: int


def enhanced(
    explainer: Explainer,
    x: Any,
    method: str | Method = "gradcam",
    target: Any = None,
    layers: str | Sequence[str] | None = None,
    *,
    scales: int | Sequence[int] = 12,
    window: int | Size | None = None,
    stride: int | Size | None = None,
    prefilter: float = 0.0,
    threshold: float = 0.0,
    pool: str = "mean",
    blur: bool = True,
    probability: bool = True,
    batch: int = 32,
    **options: Any,
) -> NDArray[np.float32]:
    """Heatmaps of images by any method, enhanced by scaling and sliding.

    As pytorch-grad-cam's ``SESS``, with these differences. The window has the image's shape where nothing
    else is said, so that a file of a fixed size need not be square (the library's is a square of the shorter
    side). A file that gives probabilities weighs by these; the library takes a softmax of whatever it gets.
    The windows of an image are compared with the embedding of the whole, where nothing else is.

    The model runs twice for each window, once for its score alone; for the defaults there are more than a
    hundred. One batch of them is in memory at a time.

    Example:
        >>> sess.enhanced(explainer, x, "layercam", "tabby")  # doctest: +SKIP

    Args:
        explainer: open; of a model with one input, of images.
        x: (N, C, H, W), or channels last as the file has it: an array or a tensor that speaks DLPack.
        method: see :meth:`onnxcam.Explainer.explain_tensor`.
        target: see :meth:`onnxcam.Explainer.explain_tensor`. None is the top class of the whole image. Places
            (a Box, the mask of a Region) are elsewhere in a window, and refused; the classes that a Finer
            counts as nearest are each window's own.
        layers: see :meth:`onnxcam.Explainer.explain_tensor`.
        scales: the lengths in pixels that the image's shorter side gets; or how many of them, from the
            window's shorter side on in steps of 2/7 of it.
        window: height and width in pixels, or one number for both; None: the image's.
        stride: of the window, likewise, at most the window; None: the window's. Windows that would reach
            over the right or the bottom edge are moved back to it.
        prefilter: the share of the windows, those with the lowest scores, that take no part; below 1.
        threshold: pixels of a window with no more heat than that, weighted, take no part in the mean.
        pool: "mean" of the windows that have heat at a pixel, or the "max".
        blur: smooth the result (11×11 pixels, σ = 5).
        probability: a window counts by the probability of its class; False, and for targets that are no
            class: by the score, where that is above 0.
        batch: windows in one call.
        **options: of :meth:`onnxcam.Explainer.explain_tensor` and of the method.

    Returns:
        (R, H, W) float32 in [0, 1], one for each image and target; zero everywhere if no window has heat.

    Raises:
        InputError: unusable scales, windows, strides or another option; inputs that are no images.
        TargetError: a place in the image as target.
        TensorError, MethodError, UnknownLayer: see :meth:`onnxcam.Explainer.explain_tensor`; a file of a
            fixed size takes windows of no other.
    """
    _check(prefilter, threshold, pool, batch)
    if isinstance(x, Mapping):
        raise InputError("Windows are cut out of one image input: give its array, not one for each input.")
    channels = explainer._file.channels
    tensor = on_host(explainer._session.as_feed(explainer._file.image.name, x))
    if tensor.ndim != 4:
        raise InputError(f"Windows are cut out of images, (N, C, H, W) or (N, H, W, C), not {tensor.shape}.")
    planes = np.moveaxis(tensor, channels, 1)
    height, width = planes.shape[2:]
    cut = _pair("window", (height, width) if window is None else window)
    places = windows((height, width), cut, _pair("stride", cut if stride is None else stride), scales)
    clean = explainer.explain_tensor(tensor, method, target, layers, **options)
    asked = _pinned(target, clean, len(tensor))
    parts = list(rows.batches(len(places), batch))
    maps = []
    for i, image in enumerate(planes):
        wanted = [asked[row] for row in np.flatnonzero(clean.image_index == i)]
        view = _View(explainer, image, places, cut, wanted, channels)
        told = [_told(explainer, view.explain(part, *_scores(explainer)), probability) for part in parts]
        weights = _weights(np.concatenate(told).reshape(len(places), -1), prefilter)
        total, seen = np.zeros((2, len(wanted), height, width), np.float32)
        for part in parts:
            heat = np.asarray(view.explain(part, method, layers, **options).heatmaps)
            heat = heat.reshape(-1, len(wanted), *cut)
            for place, one, weight in zip(places[part], heat, weights[part], strict=True):
                pasted = _pasted(one * weight[:, None, None], place, (height, width))
                if pool == "max":
                    np.maximum(total, pasted, out=total)
                else:
                    total += np.where(pasted > threshold, pasted, 0)
                    seen += pasted > threshold
        maps.append(total / np.maximum(seen, 1))
    pooled = np.concatenate(maps)
    if blur:
        pooled = np.stack([cv2.GaussianBlur(one, (11, 11), 5.0) for one in pooled])
    return postprocess.scale(pooled)


def windows(size: Size, window: Size, stride: Size, scales: int | Sequence[int]) -> list[Window]:
    """Where a window stands on an image at every scale, from left to right and from top to bottom.

    Args:
        size: (H, W) of the image.
        window: its height and width.
        stride: from one to the next, down and to the right.
        scales: see :func:`enhanced`.

    Raises:
        InputError: no scale, an image smaller than the window, or a stride that leaves pixels out.
    """
    if any(s > w for s, w in zip(stride, window, strict=True)):
        raise InputError(
            f"The stride {_by(stride)} is larger than the window {_by(window)}: what lies between two "
            "windows would be in none. Take a stride of at most the window."
        )
    if isinstance(scales, int):
        first = min(window)
        scales = [first + round(first * _STEP) * i for i in range(scales)]
    if not scales:
        raise InputError("SESS needs at least one scale: how many, or the lengths of the shorter side.")
    found = []
    for scale in scales:
        # As torchvision: the longer side is truncated, not rounded.
        scaled = tuple(scale * n // min(size) for n in size)
        if any(n < w for n, w in zip(scaled, window, strict=True)):
            raise InputError(
                f"At the scale {scale} the image is {_by(scaled)}, smaller than the window {_by(window)}. "
                "Take larger scales or a smaller window."
            )
        tops, lefts = (_starts(*axis) for axis in zip(scaled, window, stride, strict=True))
        found += [Window((scaled[0], scaled[1]), top, left) for top in tops for left in lefts]
    return found


def _starts(length: int, window: int, stride: int) -> list[int]:
    return [*range(0, length - window, stride), length - window]


def patches(image: NDArray[Any], places: Sequence[Window], window: Size) -> Iterator[NDArray[np.float32]]:
    """What the windows show.

    Args:
        image: (C, H, W).
        places: of the windows; neighbours of one scale share the enlarged image.
        window: its height and width.

    Yields:
        (C, h, w) float32 for each of ``places``.
    """
    for scaled, group in groupby(places, key=lambda place: place.scaled):
        enlarged = interpolation.antialiased(image, scaled)
        for place in group:
            yield enlarged[:, place.top : place.top + window[0], place.left : place.left + window[1]]


@dataclass(frozen=True)
class _View:
    """One image through its windows."""

    explainer: Explainer
    image: NDArray[Any]
    places: Sequence[Window]
    window: Size
    targets: list[Any]
    channels: int

    def explain(
        self, part: slice, method: str | Method, layers: str | Sequence[str] | None, **options: Any
    ) -> Explanation:
        """What the model sees in some of the windows."""
        shown = np.stack(list(patches(self.image, self.places[part], self.window)))
        fed = np.moveaxis(smoothing.rounded(shown, self.image.dtype), 1, self.channels)
        wanted = [self.targets] * len(fed)
        return self.explainer.explain_tensor(np.ascontiguousarray(fed), method, wanted, layers, **options)


def _pasted(heat: NDArray[np.float32], place: Window, size: Size) -> NDArray[np.float32]:
    """Heatmaps (T, h, w) of a window where it lies in the image, (T, H, W)."""
    whole = np.zeros((len(heat), *place.scaled), np.float32)
    whole[:, place.top : place.top + heat.shape[1], place.left : place.left + heat.shape[2]] = heat
    return postprocess.resize(whole, size)


def _pinned(target: Any, clean: Explanation, images: int) -> list[Any]:
    """Per row the target, with what the whole image decides about it."""
    each = target.tolist() if isinstance(target, np.ndarray) else target
    each = each if isinstance(each, (list, tuple)) else [each] * images
    flat = [one for i, entry in enumerate(each) for one in targets.entries(entry, i)]
    pinned = []
    for row, one in enumerate(flat):
        top = int(clean.class_ids[row])
        if isinstance(one, Box) or (isinstance(one, Region) and one.mask is not None):
            raise TargetError(
                f"A {type(one).__name__} is a place in the image, which is elsewhere in each window: name "
                "the class alone, or explain the image without SESS."
            )
        if one is None and clean.embeddings is not None:
            one = Similar(clean.embeddings[clean.image_index[row]])
        elif one is None and top >= 0:
            one = top
        elif isinstance(one, (Finer, Region)) and one.of is None:
            one = replace(one, of=top)
        pinned.append(one)
    return pinned


def _scores(explainer: Explainer) -> tuple[Method, str | None]:
    """A method that draws nothing, for the scores of a batch, and the layer that it is asked at."""
    if explainer.layers and not explainer.record.maps_only:
        nothing = Method(
            "scores", lambda a: np.zeros_like(a[:, 0]), ("activations",), source="ours", formula="0"
        )
        return nothing, explainer.layers[0]

    def none(masked: Any) -> NDArray[np.float32]:
        return np.zeros((len(masked.targets.class_index), 1, 1), np.float32)

    return Method("scores", none, ("masked",), source="ours", formula="0"), None


def _told(explainer: Explainer, run: Explanation, probability: bool) -> NDArray[np.float32]:
    """(R,) how much each window looks like what is explained of it, at least 0."""
    score = explainer.record.score
    told = run.scores
    if probability and score.task == "classification" and score.output in run.outputs:
        table = run.outputs[score.output].reshape(int(run.image_index[-1]) + 1, -1).astype(np.float32)
        table = probabilities(table) if gives_logits(score) else table
        told = np.where(run.class_ids < 0, told, table[run.image_index, run.class_ids])
    return np.maximum(told, 0)


def _weights(told: NDArray[np.float32], prefilter: float) -> NDArray[np.float32]:
    """(P, T) in [0, 1] from scores: relative to the best window, 0 for those that take no part."""
    order = np.argsort(told, axis=0, kind="stable")
    best = told.max(axis=0)
    weights = np.where(best > 0, told / np.where(best > 0, best, 1), 1)
    np.put_along_axis(weights, order[: int(len(told) * prefilter)], 0, axis=0)
    return weights.astype(np.float32)


def _check(prefilter: float, threshold: float, pool: str, batch: int) -> None:
    if pool not in POOLS:
        raise InputError(
            f"No pooling {pool!r}.{nearest(str(pool), list(POOLS))} There are: {', '.join(POOLS)}."
        )
    if not 0 <= prefilter < 1:
        raise InputError(f"prefilter is {prefilter!r}; it is a share of the windows from 0 to below 1.")
    if not threshold >= 0:
        raise InputError(f"threshold is {threshold!r}; heat is at least 0, and so is what it has to exceed.")
    if not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch is {batch!r}; it is a whole number of at least 1.")


def _pair(what: str, value: Any) -> Size:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) and n >= 1 for n in pair):
        raise InputError(f"{what} is {value!r}; it is one number of pixels, at least 1, or height and width.")
    return int(pair[0]), int(pair[1])


def _by(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
