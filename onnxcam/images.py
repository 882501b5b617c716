"""Photos, however they come, as (H, W, 3) uint8 RGB arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import ImageError

Photo = NDArray[np.uint8]

#: What :func:`find_images` takes for an image in a folder.
EXTENSIONS = (
    ".avif",
    ".bmp",
    ".gif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)

_SINGLE = (str, os.PathLike, bytes, bytearray, memoryview)


def load(image: Any, name: str = "the image") -> Photo:
    """One photo as uint8 RGB.

    Files and encoded bytes are turned upright by their EXIF orientation (where OpenCV reads it: all
    formats from version 5 on, not WebP's before). Grey becomes three equal
    channels, 16 bits become 8 (value / 257, rounded), and transparent pixels are composited on
    white, which is how a viewer shows them. An array or a PIL image is taken as it stands.

    Args:
        image: a path; the bytes of an image file; an array of uint8 or uint16, (H, W), (H, W, 1),
            (H, W, 3) RGB or (H, W, 4) RGBA; a PIL image.
        name: what messages call an image that has no path.

    Returns:
        (H, W, 3) uint8, C-contiguous.

    Raises:
        ImageError: it cannot be read, or is not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        return _decode(_read(path), repr(str(path)))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(np.frombuffer(image, np.uint8), f"{name} ({len(image)} bytes)")
    if hasattr(image, "convert") and hasattr(image, "mode"):  # PIL, which is never imported here
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert(
                "RGBA" if image.mode in ("LA", "PA") or "transparency" in image.info else "RGB"
            )
        return _to_rgb(np.asarray(image), name)
    if isinstance(image, np.ndarray):
        return _to_rgb(image, name)
    raise ImageError(
        f"{name} is a {type(image).__name__}; give a path, the bytes of an image file, a PIL image "
        "or a uint8 array (H, W, 3) in RGB."
    )


def each(images: Any) -> list[tuple[str, Any]]:
    """The (name, image) pairs of ``explain``'s argument: one image, or a sequence or 4-D array of them.

    Paths are named by themselves, the others by their position.

    Raises:
        ImageError: there are none.
    """
    many: Iterable[Any]
    if isinstance(images, _SINGLE) or hasattr(images, "mode"):
        many = [images]
    elif isinstance(images, np.ndarray):
        many = images if images.ndim == 4 else [images]
    elif isinstance(images, Iterable):
        many = images
    else:
        many = [images]  # load() says what is wrong with it
    found = [
        (os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {i}", image)
        for i, image in enumerate(many)
    ]
    if not found:
        raise ImageError("There is no image to explain: the sequence is empty.")
    return [(str(name), image) for name, image in found]


def find_images(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Files as they are, and every image below each folder, sorted by path.

    In folders, files are taken by their extension (:data:`EXTENSIONS`); hidden ones are left out.

    Raises:
        ImageError: a path does not exist, or a folder holds no image.
    """
    found: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [str(f) for f in _walk(path)]
            if not inside:
                raise ImageError(
                    f"There is no image in the folder '{path}'. Known are {', '.join(EXTENSIONS)}."
                )
            found += inside
        elif path.exists():
            found.append(str(path))
        else:
            raise ImageError(f"There is no file or folder '{path}'.")
    return list(dict.fromkeys(found))


def _walk(folder: Path) -> Iterator[Path]:
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            yield from _walk(child)
        elif child.suffix.lower() in EXTENSIONS:
            yield child


def _read(path: str) -> NDArray[np.uint8]:
    if os.path.isdir(path):
        raise ImageError(
            f"'{path}' is a folder, not an image; list its files with onnxcam.images.find_images."
        )
    try:
        # Not cv2.imread: on Windows it cannot open every Unicode path.
        return np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise ImageError(f"There is no image '{path}'.") from None
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        raise ImageError(f"The image {path!r} cannot be read: {getattr(e, 'strerror', None) or e}.") from e


def _decode(data: NDArray[np.uint8], what: str) -> Photo:
    if data.size == 0:
        raise ImageError(f"{what} is empty: it has no bytes.")
    if _is_cut_jpeg(data):
        raise ImageError(f"{what} is a truncated JPEG: its end is missing. Copy or download it again.")
    try:
        colour = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        raw = None if _is_jpeg(data) else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as e:
        raise ImageError(f"{what} cannot be decoded: {e.err}.") from e
    if colour is None:
        raise ImageError(f"{what} is not an image that OpenCV can read, or it is damaged.")
    if colour.ndim == 2:  # OpenCV 4's 16-bit grey stays one channel with IMREAD_ANYDEPTH
        colour = cv2.cvtColor(colour, cv2.COLOR_GRAY2BGR)
    pixels = cv2.cvtColor(colour, cv2.COLOR_BGR2RGB)
    if raw is not None and raw.ndim == 3 and raw.shape[2] == 4:
        pixels = np.dstack([pixels, _upright(raw, colour)[:, :, 3]])
    return _to_rgb(pixels, what)


def _is_jpeg(data: NDArray[np.uint8]) -> bool:
    return data[:3].tobytes() == b"\xff\xd8\xff"


def _is_cut_jpeg(data: NDArray[np.uint8]) -> bool:
    # OpenCV 4 fills what is missing with grey and only prints a warning. After the last start of a
    # scan there must be an end of image: inside scan data 0xff is always followed by 0 or a restart.
    if not _is_jpeg(data):
        return False
    whole = data.tobytes()
    return whole.rfind(b"\xff\xd9") < whole.rfind(b"\xff\xda")


def _upright(raw: NDArray[Any], colour: NDArray[Any]) -> NDArray[Any]:
    # OpenCV honours EXIF when it reads colour, but not always when it keeps the alpha channel: find
    # the turn that makes the two agree.
    for turned in (raw, np.swapaxes(raw, 0, 1)):
        for candidate in (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1]):
            if candidate.shape[:2] == colour.shape[:2] and np.array_equal(candidate[:, :, :3], colour):
                return candidate
    return raw if raw.shape[:2] == colour.shape[:2] else np.swapaxes(raw, 0, 1)


def _to_rgb(pixels: NDArray[Any], what: str) -> Photo:
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError(
            f"{what} has {pixels.dtype} pixels; images are uint8 (0-255) or uint16. "
            "A tensor that is ready for the model goes to explain_tensor."
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"{what} has the shape {pixels.shape}; an image is (H, W), (H, W, 3) in RGB or (H, W, 4) in RGBA."
        )
    if pixels.size == 0:
        raise ImageError(f"{what} has no pixels: its shape is {pixels.shape}.")
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    elif pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:].astype(np.uint32)
        pixels = (pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return cast(Photo, np.ascontiguousarray(pixels, dtype=np.uint8))
