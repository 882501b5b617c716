from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest

from onnxcam import errors, images

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)


WEBP_IS_TURNED = int(cv2.__version__.split(".")[0]) >= 5


def encoded(pixels, extension=".png"):
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    bgr = cv2.cvtColor(pixels, order[pixels.shape[2]]) if pixels.ndim == 3 else pixels
    return cv2.imencode(extension, bgr)[1].tobytes()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_encoded_bytes(kind):
    loaded = images.load(kind(encoded(RGB)))
    np.testing.assert_array_equal(loaded, RGB)
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous


@pytest.mark.parametrize("name", ["photo.png", "фото 猫.png", "no extension"])
@pytest.mark.parametrize("kind", [str, Path])
def test_paths(tmp_path, name, kind):
    (tmp_path / name).write_bytes(encoded(RGB))
    np.testing.assert_array_equal(images.load(kind(tmp_path / name)), RGB)


def test_arrays():
    assert images.load(RGB) is RGB
    grey = np.repeat(RGB[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(images.load(RGB[:, :, 0]), grey)
    np.testing.assert_array_equal(images.load(RGB[:, :, :1]), grey)
    np.testing.assert_array_equal(images.load(RGB[::2, ::-1]), RGB[::2, ::-1])
    np.testing.assert_array_equal(images.load(RGB.astype(np.uint16) * 257), RGB)


def test_grey_and_16_bit_files():
    grey = np.repeat(RGB[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(images.load(encoded(RGB[:, :, 0])), grey)
    np.testing.assert_array_equal(images.load(encoded(RGB[:, :, 0].astype(np.uint16) * 257)), grey)
    np.testing.assert_array_equal(
        images.load(encoded(np.minimum(RGB, 254).astype(np.uint16) * 257 + 100)), np.minimum(RGB, 254)
    )
    np.testing.assert_array_equal(images.load(encoded(RGB[:1, :1])), RGB[:1, :1])


def test_transparency_is_white():
    rgba = np.dstack([RGB, RNG.integers(0, 256, (20, 30), np.uint8)])
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    expected = np.rint((rgba[..., :3] * (rgba[..., 3:] / 255.0)) + 255 * (1 - rgba[..., 3:] / 255.0))
    for loaded in (images.load(rgba), images.load(encoded(rgba))):
        np.testing.assert_allclose(loaded, expected, atol=1)
        assert loaded[0, 0].tolist() == [255, 255, 255]
        assert loaded[0, 1].tolist() == RGB[0, 1].tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGBA")]
)
def test_exif_orientation(orientation, kind, mode):
    pil = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    pixels = cv2.resize(RGB, (48, 32), interpolation=cv2.INTER_CUBIC)  # smooth, for JPEG
    if mode == "RGBA":
        pixels = np.dstack([pixels, np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))])
    exif = pil.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pil.fromarray(pixels).save(file, kind, exif=exif, **lossless)
    upright = images.load(np.asarray(ops.exif_transpose(pil.open(io.BytesIO(file.getvalue())))))
    if kind == "WEBP" and not WEBP_IS_TURNED:
        pytest.skip(f"OpenCV {cv2.__version__} does not read WebP's orientation")
    loaded = images.load(file.getvalue())
    assert loaded.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    np.testing.assert_allclose(loaded.astype(int), upright, atol=12 if kind == "JPEG" else 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
def test_pil_images(mode):
    pil = pytest.importorskip("PIL.Image")
    image = pil.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(images.load(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"image 3 \(0 bytes\) is empty: it has no bytes"),
        (b"hello world", "is not an image that OpenCV can read, or it is damaged"),
        (encoded(RGB)[:200], "is not an image that OpenCV can read, or it is damaged"),
        (encoded(RGB, ".jpg")[:-300], "is a truncated JPEG: its end is missing. Copy or download it again"),
    ],
)
def test_unreadable_files_are_named(tmp_path, data, message):
    with pytest.raises(errors.ImageError, match=message):
        images.load(data, "image 3")
    (tmp_path / "bad.jpg").write_bytes(data)
    with pytest.raises(errors.ImageError, match=r"bad\.jpg"):
        images.load(tmp_path / "bad.jpg")


def test_what_the_decoder_says_is_passed_on(monkeypatch):
    def refuse(*_: object) -> None:
        error = cv2.error("assertion failed")
        error.err = "too many pixels"
        raise error

    monkeypatch.setattr(cv2, "imdecode", refuse)
    with pytest.raises(errors.ImageError, match=r"image 3 \(4 bytes\) cannot be decoded: too many pixels\."):
        images.load(b"\x89PNG", "image 3")


def test_float_files(tmp_path):
    ok, tiff = cv2.imencode(".tiff", RGB.astype(np.float32) / 255)
    assert ok
    with pytest.raises(errors.ImageError, match="has float32 pixels; images are uint8"):
        images.load(tiff.tobytes())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB.astype(np.float32), "image 0 has float32 pixels; images are uint8 .* goes to explain_tensor"),
        (RGB.astype(bool), "has bool pixels"),
        (RGB.transpose(2, 0, 1), r"has the shape \(3, 20, 30\); an image is \(H, W\), \(H, W, 3\)"),
        (RGB[None], r"has the shape \(1, 20, 30, 3\)"),
        (RGB[:0], r"has no pixels: its shape is \(0, 30, 3\)"),
        (42, "is a int; give a path, the bytes of an image file, a PIL image or a uint8 array"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(errors.ImageError, match=message):
        images.load(image, "image 0")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(errors.ImageError, match=r"There is no image '.*nothing.png'"):
        images.load(tmp_path / "nothing.png")
    with pytest.raises(errors.ImageError, match=r"The image 'a\\x00b' cannot be read: embedded null byte"):
        images.load("a\0b")
    with pytest.raises(errors.ImageError, match=r"is a folder, not an image"):
        images.load(tmp_path)


def test_one_or_many():
    assert [n for n, _ in images.each("a.png")] == ["a.png"]
    assert [n for n, _ in images.each(RGB)] == ["image 0"]
    assert [n for n, _ in images.each(np.stack([RGB, RGB]))] == ["image 0", "image 1"]
    assert [n for n, _ in images.each([RGB, Path("b.png"), b"x"])] == ["image 0", "b.png", "image 2"]
    assert [n for n, _ in images.each(p for p in ("a", "b"))] == ["a", "b"]
    for nothing in ([], np.zeros((0, 4, 4, 3), np.uint8)):
        with pytest.raises(errors.ImageError, match="There is no image to explain: the sequence is empty"):
            images.each(nothing)


def test_folders_are_expanded_in_order(tmp_path):
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", "notes.txt", ".hidden.png", "empty/.keep"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = images.find_images([tmp_path, tmp_path / "notes.txt", tmp_path / "a.jpg"])
    assert [Path(f).relative_to(tmp_path).as_posix() for f in found] == [
        "a.jpg",
        "b.PNG",
        "deep/er/c.webp",
        "notes.txt",  # named by the user: its extension does not count
    ]
    with pytest.raises(errors.ImageError, match=r"no image in the folder '.*empty'. Known are .avif, .bmp"):
        images.find_images([tmp_path / "empty"])
    with pytest.raises(errors.ImageError, match=r"There is no file or folder '.*gone'"):
        images.find_images([tmp_path / "gone"])
