"""From a photo to the model's input, and from the model's grid back onto the photo.

Both ways are one affine map per axis, held by :class:`Geometry`: pixel edges, not pixel centres,
are the coordinates, so that ``input = photo * scale + offset`` has no half-pixel terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from .contract import Preprocess, make_preprocess
from .errors import InputError, TargetError, nearest
from .images import Photo

_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_CAFFE: dict[str, Any] = {"antialias": False, "channels": "BGR", "scale": 1.0}

#: Preprocessing by name; the sizes give way to the model's own.
PRESETS: Mapping[str, Preprocess] = {
    # torchvision's and timm's evaluation transform: shorter side 256, centre 224.
    "imagenet": Preprocess(fit="crop", resize=256, **_IMAGENET),
    "imagenet-bicubic": Preprocess(fit="crop", resize=256, interpolation="cubic", **_IMAGENET),
    "imagenet-stretch": Preprocess(**_IMAGENET),
    "clip": Preprocess(fit="crop", interpolation="cubic", **_CLIP),
    # Hugging Face's ViT and the like: stretched, to [-1, 1].
    "half": Preprocess(mean=(0.5,), std=(0.5,)),
    # keras.applications' preprocess_input in its three modes.
    "keras-tf": Preprocess(layout="NHWC", antialias=False, scale=1 / 127.5, mean=(1.0,)),
    "keras-torch": Preprocess(layout="NHWC", antialias=False, **_IMAGENET),
    "keras-caffe": Preprocess(layout="NHWC", mean=(103.939, 116.779, 123.68), **_CAFFE),
    "caffe": Preprocess(fit="crop", resize=256, mean=(104.0, 117.0, 123.0), **_CAFFE),
    "unit": Preprocess(),
    "raw": Preprocess(scale=1.0),
    # Ultralytics' letterbox, and YOLOX's.
    "yolo": Preprocess(size=(640, 640), fit="letterbox", antialias=False),
    "yolox": Preprocess(size=(416, 416), fit="letterbox", anchor="top-left", **_CAFFE),
}


@dataclass(frozen=True)
class Geometry:
    """Where a photo lies in the model's input: ``input = photo * scale + offset``, per axis (y, x).

    Attributes:
        photo, size: (H, W) of the photo and of the model's input, in pixels.
        scale, offset: of the map between their pixel edges.
    """

    photo: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]


def resolve(
    spec: str | Mapping[str, Any] | Preprocess,
    *,
    size: tuple[int, int] | None = None,
    layout: Literal["NCHW", "NHWC"] | None = None,
    input: str = "",
) -> Preprocess:
    """A preset's name, a record's fields or a record, as a record.

    Args:
        spec: a name of :data:`PRESETS`; fields of :class:`~onnxcam.contract.Preprocess`, on top of
            those of the preset under "preset" if there is one; or a finished record.
        size: (H, W) of the model's input: replaces a preset's, whose shorter side before the crop
            changes in proportion; fields given outright stay.
        layout: of the model's input, likewise.
        input: the graph input, where the spec names none.

    Raises:
        InputError: an unknown preset or field, or a value that cannot be used.
    """
    if isinstance(spec, Preprocess):
        return spec if spec.input else dataclasses.replace(spec, input=input)
    if not isinstance(spec, (str, Mapping)):
        raise InputError(f"preprocess is a preset's name, fields or a record, not {type(spec).__name__}.")
    fields = {"preset": spec} if isinstance(spec, str) else dict(spec)
    preset = fields.pop("preset", "unit")
    if preset not in PRESETS:
        raise InputError(
            f"There is no preprocessing preset {preset!r}.{nearest(str(preset), list(PRESETS))} "
            f"Known are {', '.join(PRESETS)}, or give the fields of a record."
        )
    base = PRESETS[preset]
    if size is not None:
        if isinstance(base.resize, int):
            ratio = base.resize / min(base.size)
            base = dataclasses.replace(base, resize=round(min(size) * ratio))
        base = dataclasses.replace(base, size=size)
    if layout is not None:
        base = dataclasses.replace(base, layout=layout)
    try:
        return make_preprocess({**dataclasses.asdict(base), "input": input, **fields})
    except ValueError as e:
        raise InputError(str(e)) from e


def apply(
    image: Photo, preprocess: Preprocess, dtype: DTypeLike = np.float32
) -> tuple[NDArray[Any], Geometry]:
    """The model's input for one photo, and where the photo lies in it.

    Args:
        image: (H, W, 3) uint8 RGB.
        preprocess: the record.
        dtype: of the result; for an integer type the values are rounded and clipped.

    Returns:
        (C, H, W) or (H, W, C), as the record says, without a batch axis; and the geometry.
    """
    pixels, geometry = _place(image, preprocess)
    if preprocess.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    elif preprocess.channels == "L":
        grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
        pixels = cast(Photo, grey[:, :, None])
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    if preprocess.layout == "NCHW":
        pixels, mean, std = pixels.transpose(2, 0, 1), mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
    # One multiplication and one addition; the factors are rounded once, from float64.
    values = pixels * (preprocess.scale / std).astype(np.float32) - (mean / std).astype(np.float32)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(cast(Any, dtype))
        values = np.clip(np.rint(values), info.min, info.max)
    return np.ascontiguousarray(values, dtype=dtype), geometry


def placed(photo: tuple[int, int], preprocess: Preprocess) -> Geometry:
    """Where a photo of (H, W) pixels lies in the input that :func:`apply` makes of it."""
    resized, size = _resized_size(photo, preprocess), preprocess.size
    if preprocess.fit == "letterbox":
        top_left = preprocess.anchor == "top-left"
        offset = tuple(0 if top_left else (n - r) // 2 for n, r in zip(size, resized, strict=True))
    else:
        # torchvision's CenterCrop: round half to even; a photo that is too small gets black bars.
        offset = tuple(
            -round((r - n) / 2) if r >= n else (n - r) // 2 for n, r in zip(size, resized, strict=True)
        )
    scale = (resized[0] / photo[0], resized[1] / photo[1])
    return Geometry(photo, size, scale, cast(tuple[float, float], tuple(map(float, offset))))


def to_photo(grid: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """A map over the model's whole input, interpolated at every pixel of the photo.

    Bilinear with half-pixel centres and clamped edges, the same as OpenCV's INTER_LINEAR when the
    photo fills the input; straight from the grid, so that nothing is interpolated twice.

    Args:
        grid: (h, w), at any resolution.
        geometry: of the photo.

    Returns:
        (H, W) float32 at the photo's size; 0 where :func:`seen` is False.
    """
    ys, xs = window(geometry)
    rows, columns = (_lerp(grid.shape[axis], geometry, axis) for axis in (0, 1))
    wide = np.zeros((grid.shape[0], geometry.photo[1]), np.float32)
    wide[:, xs] = np.asarray(grid, np.float32) @ columns[xs].T
    out = np.zeros(geometry.photo, np.float32)
    step = max(_SMALL_PRODUCT // wide.size, 1)
    for top in range(ys.start, ys.stop, step):
        part = slice(top, min(top + step, ys.stop))
        np.matmul(rows[part], wide, out=out[part])
    return out


def box_to_input(box: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Corners x1, y1, x2, y2 (4,) in pixels of the photo as pixels of the model's input."""
    scale, offset = (np.array([v[1], v[0]] * 2) for v in (geometry.scale, geometry.offset))
    moved: NDArray[np.float32] = (box * scale + offset).astype(np.float32)
    return moved


def box_to_photo(box: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """The inverse of :func:`box_to_input`, cut to the photo."""
    scale, offset = (np.array([v[1], v[0]] * 2) for v in (geometry.scale, geometry.offset))
    h, w = geometry.photo
    moved: NDArray[np.float32] = np.clip((box - offset) / scale, 0, [w, h, w, h]).astype(np.float32)
    return moved


def mask_to_input(mask: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Weights (H, W) of the photo's pixels as the model sees them: the nearest, 0 outside the photo.

    Raises:
        TargetError: they are not of the photo's size.
    """
    if mask.shape != geometry.photo:
        raise TargetError(f"The mask of a Region is {mask.shape}, but its photo is {geometry.photo}.")
    picked, inside = [], []
    for axis in (0, 1):
        cells = np.arange(geometry.size[axis]) + 0.5
        at = np.floor((cells - geometry.offset[axis]) / geometry.scale[axis]).astype(np.int64)
        inside.append((at >= 0) & (at < geometry.photo[axis]))
        picked.append(np.clip(at, 0, geometry.photo[axis] - 1))
    seen_part = inside[0][:, None] & inside[1]
    return np.where(seen_part, mask[picked[0][:, None], picked[1]], np.float32(0))


def resize_mask(mask: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Weights (h, w), of any rank, at another size (H, W): the nearest."""
    return mask[np.ix_(*(_nearest(n, m) for n, m in zip(mask.shape, size, strict=True)))]


def window(geometry: Geometry) -> tuple[slice, slice]:
    """The rows and the columns of the photo that lie in the model's input; at least one of each."""
    spans = []
    for axis in (0, 1):
        at = _centres(geometry, axis)
        first, last = map(int, np.searchsorted(at, (0.0, geometry.size[axis])))
        if first == last:  # the input is a part of one pixel, between two centres
            first = min(first, len(at) - 1)
        spans.append(slice(first, max(last, first + 1)))
    return spans[0], spans[1]


def seen(geometry: Geometry) -> NDArray[np.bool_]:
    """(H, W): the pixels of the photo that lie in the model's input, by their centres."""
    inside = np.zeros(geometry.photo, bool)
    inside[window(geometry)] = True
    return inside


def _centres(geometry: Geometry, axis: int) -> NDArray[np.float64]:
    pixels = np.arange(geometry.photo[axis], dtype=np.float64)
    return (pixels + 0.5) * geometry.scale[axis] + geometry.offset[axis]


def _lerp(cells: int, geometry: Geometry, axis: int) -> NDArray[np.float32]:
    """(pixels, cells) weights of linear interpolation along one axis."""
    at = np.clip(_centres(geometry, axis) * cells / geometry.size[axis] - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(np.int64), max(cells - 2, 0))
    weights = np.zeros((len(at), cells), np.float32)
    pixel = np.arange(len(at))
    weights[pixel, low] = 1 - (at - low)
    weights[pixel, np.minimum(low + 1, cells - 1)] += at - low
    return weights


def _place(image: Photo, p: Preprocess) -> tuple[Photo, Geometry]:
    """The photo resized and cut or padded to the input's size."""
    geometry = placed(cast(tuple[int, int], image.shape[:2]), p)
    resized, offset = _resized_size(geometry.photo, p), [int(o) for o in geometry.offset]
    inside = [range(max(-o, 0), min(n - o, r)) for o, n, r in zip(offset, p.size, resized, strict=True)]
    pixels = resize(image, resized, p.interpolation, p.antialias, (inside[0], inside[1]))
    top, left = (max(o, 0) for o in offset)
    bottom, right = p.size[0] - top - pixels.shape[0], p.size[1] - left - pixels.shape[1]
    if top or left or bottom or right:
        bars = (p.pad_value if p.fit == "letterbox" else 0,) * 3
        padded = cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=bars)
        pixels = cast(Photo, padded)
    return pixels, geometry


def _resized_size(photo: tuple[int, int], p: Preprocess) -> tuple[int, int]:
    (h, w), (H, W) = photo, p.size
    if p.fit == "stretch":
        return p.size
    if p.fit == "letterbox":
        ratio = min(H / h, W / w)
        return max(round(h * ratio), 1), max(round(w * ratio), 1)
    if isinstance(p.resize, tuple):
        return p.resize
    if p.resize is None:  # just large enough to cover the input
        ratio = max(H / h, W / w)
        return max(round(h * ratio), H), max(round(w * ratio), W)
    # As torchvision: the longer side is truncated, not rounded.
    if h <= w:
        return p.resize, max(p.resize * w // h, 1)
    return max(p.resize * h // w, 1), p.resize


_CV2_FLAGS = {
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "area": cv2.INTER_AREA,
}


def resize(
    image: Photo,
    size: tuple[int, int],
    interpolation: str = "linear",
    antialias: bool = True,
    part: tuple[range, range] | None = None,
) -> Photo:
    """``image`` (h, w, 3) uint8 at ``size`` (H, W).

    With ``antialias`` the kernel widens as the image shrinks and the result is Pillow's (``area`` is
    its BOX); without, it is OpenCV's. ``nearest`` is Pillow's either way. ``part``: the rows and
    columns of the result that are wanted; the others are not computed.
    """
    ys, xs = part or (range(size[0]), range(size[1]))
    if interpolation == "nearest":
        rows, columns = (_nearest(n, m) for n, m in zip(image.shape, size, strict=False))
        return image[rows[ys.start : ys.stop, None], columns[xs.start : xs.stop]]
    if image.shape[:2] == size or not antialias:
        if image.shape[:2] != size:
            image = cast(Photo, cv2.resize(image, size[::-1], interpolation=_CV2_FLAGS[interpolation]))
        return image[ys.start : ys.stop, xs.start : xs.stop]
    # Pillow's order and its rounding to uint8 between the passes: first along x, then along y. Each
    # pass works along the first axis, where the memory it mixes is contiguous.
    turned = _resample(cast(Photo, cv2.transpose(image)), size[1], interpolation, xs)
    return _resample(cast(Photo, cv2.transpose(turned)), size[0], interpolation, ys)


def _nearest(n: int, size: int) -> NDArray[np.int64]:
    """The sample of n under the centre of each of ``size``."""
    # A running sum, as Pillow has it: where a centre falls between two samples, its rounding decides.
    return np.cumsum([0.5 * (n / size), *[n / size] * (size - 1)]).astype(np.int64)


def _resample(image: Photo, size: int, interpolation: str, part: range) -> Photo:
    """Entries ``part`` of (n, m, 3) uint8 resampled to (size, m, 3) along its first axis."""
    if image.shape[0] == size:
        return image[part.start : part.stop]
    rows = image.reshape(image.shape[0], -1)
    out = np.empty((len(part), rows.shape[1]), np.uint8)
    bands = _bands(image.shape[0], size, interpolation, part)
    mixed = np.empty((len(part), _COLUMNS))
    for left in range(0, rows.shape[1], _COLUMNS):
        strip = rows[:, left : left + _COLUMNS].astype(np.float64)
        sums = mixed[:, : strip.shape[1]]
        for start, stop, low, weights in bands:
            np.matmul(weights, strip[low : low + weights.shape[1]], out=sums[start:stop])
        sums += 0.5  # the sums are exact, so this rounds as Pillow's shift does
        out[:, left : left + _COLUMNS] = np.clip(sums, 0, 255, out=sums)
    return out.reshape(len(part), *image.shape[1:])


# OpenBLAS starts threads for more than 2**18 multiplications, and they stall where cores are busy,
# as beside a running session: so the products are kept smaller than that.
_COLUMNS = 64
_SMALL_PRODUCT = 2**18


@lru_cache(maxsize=64)
def _bands(
    n: int, size: int, interpolation: str, part: range
) -> list[tuple[int, int, int, NDArray[np.float64]]]:
    """Pillow's weights from n samples to those of ``size`` in ``part``, as blocks along the diagonal.

    An output reads only a few neighbours, so one dense matrix would be mostly zeros: each block
    covers some outputs, [start, stop) of the part, and the inputs from ``low`` on that they read. The weights
    are multiples of 2**-22, Pillow's fixed point, so that float64 sums of theirs are exact.
    """
    kernel, support = _KERNELS[interpolation]
    step = n / size
    wide = max(step, 1.0)
    centres = (np.array(part) + 0.5) * step
    lows = np.maximum((centres - support * wide + 0.5).astype(np.int64), 0)
    highs = np.minimum((centres + support * wide + 0.5).astype(np.int64), n)
    bands = []
    outputs = max(int(np.sqrt(2**11 / wide)), 1)
    for start in range(0, len(part), outputs):
        stop = min(start + outputs, len(part))
        low, high = int(lows[start]), int(highs[stop - 1])
        inputs = np.arange(low, high)
        weights = kernel((inputs[None] - centres[start:stop, None] + 0.5) / wide)
        weights *= (inputs >= lows[start:stop, None]) & (inputs < highs[start:stop, None])
        weights /= weights.sum(axis=1, keepdims=True)
        bands.append((start, stop, low, np.trunc(weights * 2**22 + np.copysign(0.5, weights)) / 2**22))
    return bands


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 1, 1 - np.abs(x), 0.0)


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # Keys' kernel with a = -0.5, as Pillow has it (OpenCV's is -0.75).
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS: Mapping[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "area": (_box, 0.5),
    "linear": (_triangle, 1.0),
    "cubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
