from __future__ import annotations

import cv2
import numpy as np
import pytest
from torchvision_shim import import_torchvision

from onnxcam import errors, preprocess
from onnxcam.contract import Preprocess

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (90, 160, 3), np.uint8)


@pytest.mark.parametrize("size", [(32, 57), (24, 24), (90, 40), (45, 160), (120, 200), (1, 1), (90, 160)])
@pytest.mark.parametrize("name", ["area", "linear", "cubic", "lanczos", "nearest"])
def test_antialiased_resize_is_pillows(name, size):
    image = pytest.importorskip("PIL.Image")
    kernel = {"area": "BOX", "linear": "BILINEAR", "cubic": "BICUBIC"}.get(name, name.upper())
    expected = np.asarray(image.fromarray(PHOTO).resize(size[::-1], image.Resampling[kernel]))
    np.testing.assert_array_equal(preprocess.resize(PHOTO, size, name), expected)


@pytest.mark.parametrize("name", ["area", "linear", "cubic", "lanczos"])
def test_plain_resize_is_opencvs(name):
    flag = {"lanczos": "LANCZOS4"}.get(name, name.upper())
    expected = cv2.resize(PHOTO, (57, 32), interpolation=getattr(cv2, f"INTER_{flag}"))
    np.testing.assert_array_equal(preprocess.resize(PHOTO, (32, 57), name, antialias=False), expected)


@pytest.mark.parametrize("antialias", [True, False])
def test_a_part_is_cut_from_the_whole(antialias):
    whole = preprocess.resize(PHOTO, (64, 114), "cubic", antialias)
    part = preprocess.resize(PHOTO, (64, 114), "cubic", antialias, (range(4, 60), range(29, 85)))
    np.testing.assert_array_equal(part, whole[4:60, 29:85])


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (97, 131), (30, 40), (64, 64), (1, 1)])
def test_imagenet_is_torchvisions_transform(shape):
    transforms = import_torchvision().transforms
    image = pytest.importorskip("PIL.Image")
    photo = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    spec = preprocess.resolve("imagenet", size=(56, 56))
    assert spec.resize == 64
    reference = transforms.Compose(
        [
            transforms.Resize(64),
            transforms.CenterCrop(56),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    tensor, _ = preprocess.apply(photo, spec)
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, 56, 56)
    np.testing.assert_allclose(tensor, reference(image.fromarray(photo)).numpy(), atol=2e-6)


def test_a_photo_smaller_than_the_crop_gets_torchvisions_bars():
    transforms = import_torchvision().transforms
    image = pytest.importorskip("PIL.Image")
    spec = preprocess.resolve({"preset": "unit", "fit": "crop", "resize": 20, "size": 31})
    reference = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(31), transforms.ToTensor()])
    tensor, _ = preprocess.apply(PHOTO[:, :100], spec)
    np.testing.assert_allclose(tensor, reference(image.fromarray(PHOTO[:, :100])).numpy(), atol=1e-6)


def test_keras_presets():
    same = np.full((8, 8, 3), (10, 100, 200), np.uint8)
    values = {n: preprocess.apply(same, preprocess.resolve(n, size=(4, 4)))[0][0, 0] for n in
              ("keras-tf", "keras-torch", "keras-caffe")}  # fmt: skip
    rgb = np.array([10, 100, 200])
    np.testing.assert_allclose(values["keras-tf"], rgb / 127.5 - 1, atol=1e-6)
    expected = (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(values["keras-torch"], expected, atol=1e-6)
    np.testing.assert_allclose(values["keras-caffe"], rgb[::-1] - [103.939, 116.779, 123.68], atol=1e-4)


def test_channels_and_integer_inputs():
    bgr = preprocess.resolve({"size": 90, "channels": "BGR", "scale": 1.0, "layout": "NHWC"})
    tensor, _ = preprocess.apply(PHOTO[:, :90], bgr, np.uint8)
    assert tensor.dtype == np.uint8
    np.testing.assert_array_equal(tensor, PHOTO[:, :90, ::-1])
    grey, _ = preprocess.apply(PHOTO[:, :90], preprocess.resolve({"size": 90, "channels": "L", "scale": 1.0}))
    np.testing.assert_array_equal(grey[0], cv2.cvtColor(PHOTO[:, :90], cv2.COLOR_RGB2GRAY))
    signed = preprocess.resolve({"size": 90, "scale": 1.0, "mean": 128.0})
    tensor, _ = preprocess.apply(PHOTO[:, :90], signed, np.int8)
    np.testing.assert_array_equal(
        tensor.transpose(1, 2, 0), (PHOTO[:, :90].astype(int) - 128).astype(np.int8)
    )


@pytest.mark.parametrize(("anchor", "top"), [("center", 17), ("top-left", 0)])
def test_letterbox(anchor, top):
    spec = preprocess.resolve(
        {"fit": "letterbox", "size": 80, "scale": 1.0, "anchor": anchor, "antialias": False}
    )
    tensor, geometry = preprocess.apply(PHOTO, spec)  # 90x160 -> 45x80
    np.testing.assert_array_equal(tensor[:, top : top + 45].transpose(1, 2, 0), cv2.resize(PHOTO, (80, 45)))
    bars = np.delete(tensor, np.s_[top : top + 45], axis=1)
    assert (bars == 114).all()
    assert bars.shape[1] == 35
    assert geometry == preprocess.Geometry((90, 160), (80, 80), (0.5, 0.5), (float(top), 0.0))
    assert preprocess.seen(geometry).all()


def test_a_map_comes_back_through_the_letterbox():
    spec = preprocess.resolve({"fit": "letterbox", "size": 80})
    _, geometry = preprocess.apply(PHOTO, spec)
    grid = RNG.random((5, 5), np.float32)
    canvas = cv2.resize(grid, (160, 160))  # the input's frame in the photo's pixels
    np.testing.assert_allclose(preprocess.to_photo(grid, geometry), canvas[34:124], atol=1e-6)


def test_a_map_comes_back_through_the_crop():
    spec = preprocess.resolve({"fit": "crop", "resize": 45, "size": (40, 40)})  # to 45x80, then 40x40
    _, geometry = preprocess.apply(PHOTO, spec)
    assert geometry.scale == (0.5, 0.5)
    assert geometry.offset == (-2.0, -20.0)
    grid = RNG.random((7, 4), np.float32)
    expected = np.zeros((90, 160), np.float32)
    expected[4:84, 40:120] = cv2.resize(grid, (80, 80))
    np.testing.assert_allclose(preprocess.to_photo(grid, geometry), expected, atol=1e-6)
    np.testing.assert_array_equal(preprocess.seen(geometry), expected != 0)


@pytest.mark.parametrize("grid", [(7, 7), (1, 1), (1, 3), (60, 50)])
def test_a_map_on_a_stretched_photo_is_opencvs_resize(grid):
    _, geometry = preprocess.apply(PHOTO, preprocess.resolve("imagenet-stretch"))
    values = RNG.random(grid, np.float32)
    expected = cv2.resize(values, (160, 90))
    np.testing.assert_allclose(preprocess.to_photo(values, geometry), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (2, 2000), (1, 1)])
@pytest.mark.parametrize("name", ["imagenet", "yolo", "imagenet-stretch", "clip"])
def test_extreme_shapes(shape, name):
    spec = preprocess.resolve(name, size=(28, 28))
    tensor, geometry = preprocess.apply(np.full((*shape, 3), 7, np.uint8), spec)
    assert tensor.shape == (3, 28, 28)
    assert preprocess.seen(geometry).any()
    assert preprocess.to_photo(np.ones((3, 3), np.float32), geometry).max() == 1


def test_presets_follow_the_models_size():
    spec = preprocess.resolve("imagenet", size=(299, 299), layout="NHWC", input="x")
    assert (spec.size, spec.resize, spec.layout, spec.input) == ((299, 299), 342, "NHWC", "x")
    fixed = preprocess.resolve({"preset": "imagenet", "size": 100, "resize": 110}, size=(299, 299))
    assert (fixed.size, fixed.resize) == ((100, 100), 110)
    record = Preprocess(size=(8, 8), input="y")
    assert preprocess.resolve(record, size=(9, 9), input="x") is record


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagnet", "no preprocessing preset 'imagnet'. Nearest: 'imagenet'.* Known are imagenet, "),
        ({"sise": 3}, "Unknown preprocessing field 'sise'; the fields are "),
        ({"std": 0}, "size and resize must be at least 1, scale and std must not be zero"),
        ({"size": [0, 3]}, "Unusable preprocessing: size and resize must be at least 1"),
        ({"fit": "crop", "resize": -5}, "Unusable preprocessing: size and resize must be at least 1"),
        ({"size": [3]}, "Unusable preprocessing: preprocess.size has 1 entries, not 2"),
        ({"mean": "red"}, "Unusable preprocessing: preprocess.mean is 'red', not a list"),
        ({"antialias": None}, "Unusable preprocessing: preprocess.antialias is None"),
        (3, "preprocess is a preset's name, fields or a record, not int"),
        ({"fit": "squeeze"}, "Unusable preprocessing: .*'squeeze', not one of"),
        ({"mean": [1.0, 2.0]}, r"mean has 2 values for 3 channels \(RGB\)"),
        ({"channels": "L", "std": [1.0, 1.0, 1.0]}, r"std has 3 values for 1 channel \(L\)"),
    ],
)
def test_unusable_specs(spec, message):
    with pytest.raises(errors.InputError, match=message):
        preprocess.resolve(spec)
