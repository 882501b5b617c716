"""Every layout, taken apart by NumPy, is put together again."""

import json

import numpy as np
import pytest

from onnxcam.contract import Factor, Layer, Layout, Record, Score
from onnxcam.grids import channels_first, grid_of, holds, put_back, sides

N, C = 2, 6
N_, C2, C3 = Factor("N", None), Factor("C", 2), Factor("C", 3)


def numbered(*grid):
    """(N, C, ...grid), every entry another number."""
    return np.arange(N * C * np.prod(grid), dtype=np.float32).reshape(N, C, *grid)


def windows(x):
    """(N, C, 8, 6) as Swin cuts it: (N * windows, 4 * 3, C)."""
    cut = x.transpose(0, 2, 3, 1).reshape(N, 2, 4, 2, 3, C)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(N * 4, 12, C)


def strided(x):
    """(N, C, 8, 6) as MaxViT's grid attention cuts it: every second row and column is one window's."""
    cut = x.transpose(0, 2, 3, 1).reshape(N, 4, 2, 3, 2, C)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(N * 4, 12, C)


def heads(x):
    """(N, C, h, w) with one token before and two behind, as (N, heads, tokens, C / heads)."""
    tokens = x.reshape(N, C, -1).transpose(0, 2, 1)
    joined = np.concatenate([-np.ones((N, 1, C)), tokens, -np.ones((N, 2, C))], axis=1)
    return joined.reshape(N, -1, 2, 3).transpose(0, 2, 1, 3)


def rows(x):
    """(N, C, h, w) with one token before, all images' below each other."""
    tokens = x.reshape(N, C, -1).transpose(0, 2, 1)
    return np.concatenate([-np.ones((N, 1, C)), tokens], axis=1).reshape(-1, C)


def factored(*axes, prefix=0, suffix=0):
    return Layout("factored", prefix, None, suffix, axes)


def y(size, stride=1):
    return Factor("y", size, stride)


def x_(size, stride=1):
    return Factor("x", size, stride)


WINDOWS = factored((N_, y(2, 4), x_(2, 3)), (y(4), x_(3)), (Factor("C", C),))
CASES = [
    (Layout("NCL"), (5,), lambda t: t),
    (Layout("NLC"), (5,), lambda t: t.transpose(0, 2, 1)),
    (Layout("NCHW"), (8, 6), lambda t: t),
    (Layout("NHWC"), (8, 6), lambda t: t.transpose(0, 2, 3, 1)),
    (Layout("NCDHW"), (4, 3, 2), lambda t: t),
    (Layout("NDHWC"), (4, 3, 2), lambda t: t.transpose(0, 2, 3, 4, 1)),
    (Layout("tokens", 0, (8, 6)), (8, 6), lambda t: t.reshape(N, C, -1).transpose(0, 2, 1)),
    (
        Layout("tokens", 2, (4, 3, 2), 1),
        (4, 3, 2),
        lambda t: np.pad(t.reshape(N, C, -1).transpose(0, 2, 1), ((0, 0), (2, 1), (0, 0))),
    ),
    (WINDOWS, (8, 6), windows),
    (
        factored((N_, y(2), x_(2)), (y(4, 2), x_(3, 2)), (Factor("C", C),)),
        (8, 6),
        strided,
    ),
    (factored((N_,), (C2,), (y(8), x_(6)), (C3,), prefix=1, suffix=2), (8, 6), heads),
    (factored((N_, y(8), x_(6)), (Factor("C", C),), prefix=1), (8, 6), rows),
]


@pytest.mark.parametrize(("layout", "grid", "arranged"), CASES)
def test_a_layout_is_put_together_again(layout, grid, arranged):
    whole = numbered(*grid)
    tensor = arranged(whole)
    assert holds(tensor.shape, layout)
    assert grid_of(layout, tensor.shape) == grid
    back = channels_first(tensor, layout)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, whole)


@pytest.mark.parametrize(("layout", "grid", "arranged"), CASES)
def test_what_is_put_together_goes_back(layout, grid, arranged):
    tensor = arranged(numbered(*grid)).astype(np.float16)
    back = put_back(channels_first(tensor, layout), layout, tensor)
    assert back.dtype == np.float16
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, tensor)


@pytest.mark.parametrize(("layout", "grid", "arranged"), CASES)
def test_copies_of_one_image_get_its_other_tokens(layout, grid, arranged):
    whole = numbered(*grid)
    one = np.split(arranged(whole), N)[0]
    one = np.where(one < 0, -7, one)  # tokens of its own, in the layouts that have some
    copies = np.stack([whole[0] + 1, whole[0] + 2, 3 * whole[0]])
    back = put_back(copies, layout, one)
    assert back.shape == (len(one) * 3, *one.shape[1:])
    np.testing.assert_array_equal(channels_first(back, layout), copies)
    for copy in np.split(back, 3):
        np.testing.assert_array_equal(np.where(one < 0, copy, 0), np.where(one < 0, one, 0))


def test_plain_layouts_are_not_copied():
    tensor = numbered(8, 6)
    assert channels_first(tensor, Layout("NCHW")) is tensor
    assert np.shares_memory(channels_first(tensor, Layout("NHWC")), tensor)


def test_a_file_without_batch_has_one_image():
    whole = numbered(8, 6)[:1]
    layout = factored((y(2, 4), x_(2, 3)), (y(4), x_(3)), (Factor("C", C),))
    cut = whole.transpose(0, 2, 3, 1).reshape(2, 4, 2, 3, C).transpose(0, 2, 1, 3, 4).reshape(4, 12, C)
    np.testing.assert_array_equal(channels_first(cut, layout), whole)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout("NCHW"), (2, 6, 8)),
        (Layout("NCL"), (2, 6, 8, 6)),
        (Layout("tokens", 1, (8, 6)), (2, 48, 6)),
        (Layout("tokens", 1, (8, 6), 2), ("N", 50, 6)),
        (WINDOWS, (8, 11, 6)),
        (WINDOWS, (8, 12)),
    ],
)
def test_a_layout_that_a_shape_cannot_have(layout, shape):
    assert not holds(shape, layout)


def test_open_axes_hold_any_layout():
    assert holds(("M", None, 6), WINDOWS)
    assert holds((None, 99, 6), factored((N_,), (y(8), x_(6)), (Factor("C", C),), prefix=1))


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((1, 3, 224, 196), (224, 196)),
        (("N", 224, 196, 3), (224, 196)),
        ((None, 1, "h", None), ("h", None)),
        ((1, 12, 500), (500,)),
        ((1, 500, 12), (500,)),
        ((1, 1, 16, 32, 48), (16, 32, 48)),
        ((1, 16, 32, 48, 1), (16, 32, 48)),
        ((1, 8, 3, 32, 48), (8, 32, 48)),
    ],
)
def test_the_sides_of_an_input_are_not_its_batch_and_channels(shape, found):
    assert sides(shape) == found


def test_records_keep_layouts_and_older_ones_are_read():
    record = Record((Layer("l", "t", "a", "g", WINDOWS),), Score("y", "y"))
    assert Record.from_json(record.to_json()).layers[0].layout == WINDOWS
    body = json.loads(record.to_json())
    body["layers"][0]["layout"] = {"kind": "tokens", "prefix": 1, "grid": [8, 6]}
    assert Record.from_json(json.dumps(body)).layers[0].layout == Layout("tokens", 1, (8, 6))
