"""Where maps of two models meet: known maps through different preprocessing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam.comparison.alignment import common, geometry
from onnxcam.contract import Preprocess
from onnxcam.errors import InputError
from onnxcam.preprocess import Geometry

RNG = np.random.default_rng(1)
STRETCH = Preprocess(size=(224, 224))
CROP = Preprocess(size=(224, 224), fit="crop", resize=256)
LETTERBOX = Preprocess(size=(320, 320), fit="letterbox")
CORNER = Preprocess(size=(320, 320), fit="letterbox", anchor="top-left")
HOW = {"stretch": STRETCH, "crop": CROP, "letterbox": LETTERBOX, "corner": CORNER, "unknown": None}


def met(photo, how, grid, other_how, other_grid):
    return common(geometry(photo, how), grid, geometry(photo, other_how), other_grid)


def drawn(function, photo, how, grid, fine=1):
    """A map that a model would give: a function of the place in the photo, in pixels, at each cell's centre.

    With ``fine`` the mean over that many points along each axis of the cell.
    """
    at = geometry(photo, how)
    places = []
    for axis in (0, 1):
        cells = (np.arange(grid[axis] * fine) + 0.5) * at.size[axis] / (grid[axis] * fine)
        places.append((cells - at.offset[axis]) / at.scale[axis])
    values = function(places[0][:, None], places[1][None, :])
    return values.reshape(grid[0], fine, grid[1], fine).mean(axis=(1, 3)).astype(np.float32)


@pytest.mark.parametrize("how", [STRETCH, CROP, None], ids=["stretch", "crop", "unknown"])
def test_equal_windows_and_grids_leave_the_maps_as_they_are(how):
    a, b = RNG.random((2, 7, 7)).astype(np.float32)
    for photo in ((300, 500), (97, 61)):
        one, two = met(photo, how, (7, 7), how, (7, 7)).align(a, b)
        np.testing.assert_array_equal(one, a)
        np.testing.assert_array_equal(two, b)


def test_equal_views_of_different_sizes_leave_equal_grids_as_they_are():
    a, b = RNG.random((2, 7, 7)).astype(np.float32)
    small = Preprocess(size=(192, 192), fit="stretch")
    one, two = met((301, 517), STRETCH, (7, 7), small, (7, 7)).align(a, b)
    np.testing.assert_array_equal(one, a)
    np.testing.assert_array_equal(two, b)


def test_the_finer_map_is_averaged_over_the_coarser_ones_cells():
    a, b = RNG.random((14, 14)).astype(np.float32), RNG.random((7, 7)).astype(np.float32)
    means = a.reshape(7, 2, 7, 2).mean(axis=(1, 3))
    one, two = met((200, 300), STRETCH, (14, 14), STRETCH, (7, 7)).align(a, b)
    np.testing.assert_allclose(one, means, rtol=1e-6)
    np.testing.assert_array_equal(two, b)
    two, one = met((200, 300), STRETCH, (7, 7), STRETCH, (14, 14)).align(b, a)
    np.testing.assert_allclose(one, means, rtol=1e-6)
    np.testing.assert_array_equal(two, b)


def test_cells_that_do_not_fit_into_each_other_share_by_area():
    # Three cells over two: the middle one is half in either.
    one, two = met((60, 60), None, (3, 1), None, (2, 1)).align(
        np.array([[1], [2], [6]], np.float32), np.array([[1], [2]], np.float32)
    )
    np.testing.assert_allclose(one, [[(1 + 0.5 * 2) / 1.5], [(0.5 * 2 + 6) / 1.5]])
    np.testing.assert_array_equal(two, [[1], [2]])


def test_each_axis_has_its_own_coarser_side():
    made = met((100, 100), STRETCH, (4, 12), STRETCH, (8, 6))
    assert made.rows[0].shape == (4, 4)
    assert made.columns[1].shape == (6, 6)
    one, two = made.align(np.ones((4, 12)), np.ones((8, 6)))
    assert one.shape == two.shape == (4, 6)


@pytest.mark.parametrize("photo", [(480, 640), (640, 480), (333, 700), (50, 50)], ids=str)
@pytest.mark.parametrize("second", sorted(HOW))
@pytest.mark.parametrize("first", sorted(HOW))
def test_a_map_that_is_linear_in_the_photo_is_the_same_through_both_models(first, second, photo):
    def slope(y, x):
        return y / photo[0] + 2 * x / photo[1]

    # The coarser map's whole cells are means of the slope; the finer one's are constant, so that its mean
    # over a place is off by at most a quarter of a cell where the edges do not fit.
    made = met(photo, HOW[first], (10, 10), HOW[second], (60, 60))
    one, two = made.align(
        drawn(slope, photo, HOW[first], (10, 10)), drawn(slope, photo, HOW[second], (60, 60))
    )
    assert min(one.shape) >= 3
    at = geometry(photo, HOW[second])
    cell = [size / 60 / scale for size, scale in zip(at.size, at.scale, strict=True)]
    step = cell[0] / photo[0] + 2 * cell[1] / photo[1]
    inner = np.abs(one - two)[1:-1, 1:-1]
    assert inner.max() <= step / 4 + 1e-6
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("mirrored", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize("second", sorted(HOW))
@pytest.mark.parametrize("first", sorted(HOW))
def test_a_hot_spot_stays_at_its_place_in_the_photo(first, second, mirrored):
    photo, spot = (480, 640), (200.0, 260.0)
    if mirrored:
        spot = (spot[0], photo[1] - spot[1])

    def heat(y, x):
        return np.exp(-((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / (2 * 60.0**2))

    made = met(photo, HOW[first], (28, 28), HOW[second], (20, 20))
    maps = made.align(
        drawn(heat, photo, HOW[first], (28, 28), 8), drawn(heat, photo, HOW[second], (20, 20), 8)
    )
    diagonal = _diagonal(made, photo, HOW[first], HOW[second])
    for one in maps:
        weights = one.astype(float) / one.sum()
        y = (weights.sum(axis=1) * made.ys).sum() * diagonal
        x = (weights.sum(axis=0) * made.xs).sum() * diagonal
        assert (y, x) == pytest.approx(spot, abs=6)  # a quarter of a cell
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.98


def _diagonal(made, photo, first, second):
    """From two neighbouring centres: an inner cell's height in pixels over its height in diagonals."""
    at = [geometry(photo, how) for how in (first, second)]
    grids = (28, 28), (20, 20)
    cells = [side.size[0] / grid[0] / side.scale[0] for side, grid in zip(at, grids, strict=True)]
    return max(cells) / (made.ys[2] - made.ys[1])


def test_the_bars_of_a_letterbox_take_no_part():
    # 640×320 in 320×320: the photo is the middle half of the rows, 5 of 10.
    photo = (320, 640)
    a = np.zeros((10, 10), np.float32)
    a[:2] = 9  # heat on the bar
    a[4, 3] = 1
    made = met(photo, LETTERBOX, (10, 10), LETTERBOX, (10, 10))
    one, two = made.align(a, a)
    np.testing.assert_array_equal(one, two)
    # Rows 2 and 7 are half in the photo, which is enough.
    np.testing.assert_array_equal(one, a[2:8])
    np.testing.assert_allclose(np.diff(made.ys)[1:-1] * np.hypot(320, 640), 64)


def test_what_a_crop_hides_takes_no_part():
    # A square photo: the crop sees 7/8 of it, [1/16, 15/16].
    photo = (512, 512)
    a = np.zeros((16, 16), np.float32)
    a[0, 0], a[5, 6] = 9, 1
    one, two = met(photo, STRETCH, (16, 16), CROP, (28, 28)).align(a, np.ones((28, 28)))
    np.testing.assert_array_equal(one, a[1:-1, 1:-1])
    np.testing.assert_allclose(two, 1, rtol=1e-6)


def test_a_cell_takes_part_if_half_of_it_is_seen_by_both():
    photo = (100, 100)
    whole = geometry(photo, None)

    def window(low, high):
        return Geometry(photo, (100, 100), (100 / (high - low),) * 2, (-low * 100 / (high - low),) * 2)

    for low, rows in ((0, 10), (4, 10), (5, 10), (6, 9), (14, 9), (16, 8)):
        made = common(whole, (10, 10), window(low, 100), (50, 50))
        assert made.rows[0].shape == (rows, 10), low
    # A view smaller than half a cell still meets it.
    made = common(whole, (10, 10), window(31, 33), (4, 4))
    assert made.rows[0].shape == (1, 10)
    np.testing.assert_array_equal(made.rows[0][0], np.eye(10)[3])
    np.testing.assert_allclose(made.rows[1], 1 / 4)


def test_places_are_in_diagonals_of_the_photos_common_part():
    made = met((300, 400), STRETCH, (3, 4), STRETCH, (3, 4))
    np.testing.assert_allclose(made.ys, np.array([50, 150, 250]) / 500)
    np.testing.assert_allclose(made.xs, np.array([50, 150, 250, 350]) / 500)


def test_an_unknown_preprocess_is_the_whole_photo():
    assert geometry((30, 50), None) == Geometry((30, 50), (30, 50), (1.0, 1.0), (0.0, 0.0))
    a, b = RNG.random((2, 7, 7)).astype(np.float32)
    one, two = met((31, 53), None, (7, 7), STRETCH, (7, 7)).align(a, b)
    np.testing.assert_array_equal(one, a)
    np.testing.assert_array_equal(two, b)


def test_views_that_do_not_meet_are_refused():
    photo = (100, 100)
    left = Geometry(photo, (100, 40), (1.0, 1.0), (0.0, 0.0))
    right = Geometry(photo, (100, 40), (1.0, 1.0), (0.0, -60.0))
    with pytest.raises(InputError, match="no common part of the photo"):
        common(left, (7, 7), right, (7, 7))
    touching = Geometry(photo, (100, 60), (1.0, 1.0), (0.0, -40.0))
    with pytest.raises(InputError, match="no common part of the photo"):
        common(left, (7, 7), touching, (7, 7))


def test_a_photo_of_two_sizes_is_refused():
    with pytest.raises(InputError, match=r"640×480 pixels on one side and 480×640 on the other.*EXIF"):
        common(geometry((480, 640), None), (7, 7), geometry((640, 480), None), (7, 7))


@settings(deadline=None)
@given(
    st.tuples(st.integers(8, 2000), st.integers(8, 2000)),
    st.sampled_from(sorted(HOW)),
    st.sampled_from(sorted(HOW)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_any_two_views_meet_in_means_of_their_cells(photo, first, second, grid, other):
    made = met(photo, HOW[first], grid, HOW[second], other)
    for pair, axis in ((made.rows, 0), (made.columns, 1)):
        for weights, cells in zip(pair, (grid, other), strict=True):
            assert weights.shape[1] == cells[axis]
            assert (weights >= 0).all()
            np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
        # One side's cells are taken as they are, each once.
        whole = [w for w in pair if ((w == 0) | (w == 1)).all()]
        assert any((w.sum(axis=0) <= 1).all() for w in whole)
    flat = made.align(np.full(grid, 0.1, np.float32), np.full(other, 0.1, np.float32))
    for one in flat:
        np.testing.assert_array_equal(one, np.float32(0.1))  # no contrast comes of averaging
    assert (np.diff(made.ys) > 0).all()
    assert (np.diff(made.xs) > 0).all()
    assert max(np.ptp(made.ys), np.ptp(made.xs)) < 1


def test_a_grid_is_made_once_for_all_photos_of_a_size():
    first = met((211, 307), CROP, (7, 7), STRETCH, (8, 8))
    assert met((211, 307), CROP, (7, 7), STRETCH, (8, 8)) is first
