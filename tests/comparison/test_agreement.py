"""Measures of agreement against SciPy, scikit-image and maps that are solved by hand."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxcam.comparison import agreement
from onnxcam.comparison.agreement import Maps
from onnxcam.errors import MetricError, MissingDependency

RNG = np.random.default_rng(0)
ALL = agreement.names()
UNDEFINED_BELOW_7 = {"ssim"}


def maps(first, second, size=None):
    """Pairs of maps (h, w) or (N, h, w) over photos of one size (H, W); by default, of square cells."""
    first, second = (np.asarray(m, np.float32) for m in (first, second))
    if first.ndim == 2:
        first, second = first[None], second[None]
    count, *grid = first.shape
    size = np.array(size or grid, float)
    ys, xs = ((np.arange(n) + 0.5) * s / n / np.hypot(*size) for n, s in zip(grid, size, strict=True))
    return Maps(first, second, np.tile(ys, (count, 1)), np.tile(xs, (count, 1)))


def one(name, first, second, size=None):
    return float(agreement.agreement(maps(first, second, size), [name])[name][0])


def spot(y, x, shape=(5, 5), value=1.0):
    made = np.zeros(shape)
    made[y, x] = value
    return made


# The registry


def test_the_registry_says_what_each_measure_is():
    assert ALL == ["pearson", "spearman", "cosine", "iou20", "peak", "js", "ssim", "emd"]
    for name in ALL:
        measure = agreement.get(name)
        assert measure.source
        assert measure.formula
        assert measure.low < measure.high
        assert measure.best == (measure.high if measure.better == "higher" else measure.low)
        assert measure.function.__doc__
    assert {name for name in ALL if agreement.get(name).extra} == {"emd"}


def test_an_unknown_measure_is_refused_with_the_nearest():
    with pytest.raises(MetricError, match=r"No measure of agreement 'person'\. Nearest: 'pearson'"):
        agreement.get("person")
    with pytest.raises(MetricError, match="No measure of agreement 3"):
        agreement.get(3)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'js' is registered twice"):
        agreement.measure("js", better="lower", low=0, high=1, source="", formula="")(agreement.js)


def test_a_value_meets_a_threshold_from_its_better_side():
    assert agreement.get("pearson").meets(0.8, 0.8)
    assert not agreement.get("pearson").meets(0.79, 0.8)
    assert agreement.get("js").meets(0.1, 0.1)
    assert not agreement.get("js").meets(0.11, 0.1)


# References


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_and_cosine_are_scipys(ties):
    stats = pytest.importorskip("scipy.stats")
    distance = pytest.importorskip("scipy.spatial.distance")
    a, b = RNG.normal(size=(2, 6, 7, 9))
    if ties:
        a, b = (np.maximum(np.round(m, 1), 0) for m in (a, b))
    found = agreement.agreement(maps(a, b), ["pearson", "spearman", "cosine"])
    for i in range(6):
        x, y = (m[i].ravel().astype(np.float32).astype(float) for m in (a, b))
        assert found["pearson"][i] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert found["spearman"][i] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert found["cosine"][i] == pytest.approx(1 - distance.cosine(x, y), abs=1e-12)


@given(arrays(np.float64, (3, 12), elements=st.integers(-3, 3).map(float)))
def test_ranks_are_scipys(cells):
    stats = pytest.importorskip("scipy.stats")
    np.testing.assert_array_equal(agreement.ranks(cells), stats.rankdata(cells, axis=1))


def test_js_is_scipys_distance_squared():
    distance = pytest.importorskip("scipy.spatial.distance")
    a, b = np.maximum(RNG.normal(size=(2, 7, 7)), 0).astype(np.float32)
    wanted = distance.jensenshannon(a.ravel().astype(float), b.ravel().astype(float), base=2) ** 2
    assert one("js", a, b) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("shape", [(7, 7), (7, 12), (28, 20)])
def test_ssim_is_scikit_images(shape):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    a, b = RNG.random((2, *shape)).astype(np.float32)
    scaled = [(m.astype(float) - m.min()) / (float(m.max()) - float(m.min())) for m in (a, b)]
    wanted = structural_similarity(*scaled, data_range=1)
    # 1e-6: scikit-image's variances E[x²] - E[x]² come from running sums, in another order.
    assert one("ssim", a, b) == pytest.approx(wanted, abs=1e-6)
    assert one("ssim", 5 * a - 2, b) == pytest.approx(wanted, abs=1e-5)  # scaled in float32


def test_ssim_is_not_defined_for_a_grid_smaller_than_its_window():
    a, b = RNG.random((2, 6, 20))
    assert np.isnan(one("ssim", a, b))
    assert not np.isnan(one("pearson", a, b))


def test_emd_is_scipys_along_a_line_and_any_linear_programs_in_the_plane():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.maximum(RNG.normal(size=(2, 1, 12)), 0).astype(np.float32)
    places = np.arange(12) / np.hypot(1, 12)
    wanted = stats.wasserstein_distance(places, places, a[0].astype(float), b[0].astype(float))
    assert one("emd", a, b) == pytest.approx(wanted, abs=1e-6)
    a, b = np.maximum(RNG.normal(size=(2, 4, 5)), 0).astype(np.float32)
    yx = np.argwhere(np.ones((4, 5))).astype(float)
    weights = a.ravel() / a.sum(dtype=float), b.ravel() / b.sum(dtype=float)
    wanted = stats.wasserstein_distance_nd(yx, yx, *weights) / np.hypot(4, 5)
    assert one("emd", a, b) == pytest.approx(wanted, abs=1e-6)


# Solved by hand


def test_iou20_of_known_maps():
    # 25 cells: the hottest five.
    a = np.zeros((5, 5))
    a[0] = [5, 4, 3, 2, 1]
    assert one("iou20", a, a[::-1]) == 0
    b = np.zeros((5, 5))
    b[0, :3] = [1, 2, 3]
    b[4, :2] = [4, 5]
    assert one("iou20", a, b) == pytest.approx(3 / 7)


def test_iou20_counts_a_part_of_a_cell_where_the_grid_has_no_fifth():
    # 4 cells: 0.8 of one. Equal peaks share all of it.
    assert one("iou20", [[9, 1], [2, 0]], [[7, 3], [5, 0]]) == pytest.approx(1)
    # 6 cells: 1.2 of them, so the second hottest is a fifth of a member.
    assert one("iou20", [[9, 8, 1], [1, 1, 0]], [[9, 1, 8], [1, 1, 0]]) == pytest.approx(1 / 1.4)


def test_iou20_shares_the_last_places_among_ties():
    # 10 cells: two places. 3 cells tie for the second one, a third each; the other map has both of its own.
    a = np.array([[9, 5, 5, 5, 1, 1, 1, 1, 1, 0]])
    b = np.array([[9, 8, 1, 1, 1, 1, 1, 1, 1, 0]])
    assert one("iou20", a, b) == pytest.approx((1 + 1 / 3) / (1 + 1 + 2 / 3))
    assert one("iou20", a, a[:, ::-1]) == 0


def test_iou20_of_single_hot_cells_is_that_of_the_cells_alone():
    assert one("iou20", spot(0, 0), spot(4, 4)) == 0
    assert one("iou20", spot(1, 2), spot(1, 2, value=7)) == 1


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((5, 5), np.hypot(3, 4) / np.hypot(5, 5)), ((100, 200), np.hypot(60, 160) / np.hypot(100, 200))],
    ids=["square", "wide"],
)
def test_peaks_and_moved_heat_are_apart_by_a_share_of_the_photos_diagonal(size, wanted):
    assert one("peak", spot(0, 0), spot(3, 4), size) == pytest.approx(wanted)
    assert one("emd", spot(0, 0), spot(3, 4), size) == pytest.approx(wanted)


def test_equally_hot_cells_have_their_centroid_as_peak():
    corners = spot(0, 0) + spot(4, 4)
    assert one("peak", corners, spot(2, 2)) == pytest.approx(0, abs=1e-12)
    assert one("peak", corners, spot(2, 0)) == pytest.approx(2 / np.hypot(5, 5))


def test_js_and_emd_of_known_maps():
    assert one("js", spot(0, 0), spot(0, 1)) == pytest.approx(1)
    # p = (1, 0), q = (1/2, 1/2): H(3/4, 1/4) - 1/2.
    wanted = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    assert one("js", [[1, 0]], [[1, 1.0001]]) == pytest.approx(wanted, abs=1e-4)
    # Half of the heat goes one cell along.
    assert one("emd", [[2, 0, 0]], [[1, 1, 0]]) == pytest.approx(0.5 / np.hypot(1, 3))
    # What is below zero is moved up: (-1, 0, 1) is heat of (0, 1, 2).
    assert one("js", [[-1, 0, 1]], [[0, 1, 2]]) == pytest.approx(0, abs=1e-12)
    assert one("emd", [[-1, 0, 1]], [[0, 1, 2]]) == pytest.approx(0, abs=1e-9)


def test_opposite_maps_correlate_negatively():
    a = RNG.random((5, 5))
    assert one("pearson", a, 1 - a) == pytest.approx(-1, abs=1e-6)  # 1 - a is rounded to float32
    assert one("spearman", a, -a) == pytest.approx(-1)
    assert one("cosine", a, -a) == pytest.approx(-1)
    assert one("cosine", spot(0, 0), spot(0, 1)) == 0


# What all measures have in common

heat = arrays(np.float32, (7, 7), elements=st.integers(0, 6).map(float))


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=25)
@given(a=heat, b=heat)
def test_every_measure_is_symmetric_in_its_range_and_blind_to_scale(name, a, b):
    if name == "emd":
        pytest.importorskip("scipy.optimize")
    measure = agreement.get(name)
    value = one(name, a, b)
    if np.isnan(value):
        assert min(np.ptp(a), np.ptp(b)) == 0
        return
    assert measure.low <= value <= measure.high
    assert one(name, b, a) == pytest.approx(value, abs=1e-9)
    assert one(name, 4 * a, b / 8) == pytest.approx(value, abs=1e-9)
    assert measure.meets(measure.best, value)


@pytest.mark.parametrize("name", ALL)
def test_equal_maps_agree_fully(name):
    if name == "emd":
        pytest.importorskip("scipy.optimize")
    for a in (RNG.random((9, 8)), spot(2, 3, (7, 7)), RNG.integers(0, 2, (8, 8)), -RNG.random((7, 7))):
        assert one(name, a, 3 * np.asarray(a, np.float32)) == pytest.approx(
            agreement.get(name).best, abs=1e-6
        )


@pytest.mark.parametrize("name", sorted({*ALL} - UNDEFINED_BELOW_7))
def test_no_measure_depends_on_where_a_turned_photos_cells_are_listed(name):
    if name == "emd":
        pytest.importorskip("scipy.optimize")
    a, b = RNG.integers(0, 4, (2, 5, 6))
    for turned in (lambda m: m[::-1], lambda m: m[:, ::-1], lambda m: m.T):
        size = (6, 5) if turned(a).shape == (6, 5) else (5, 6)
        assert one(name, turned(a), turned(b), size) == pytest.approx(one(name, a, b), abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_map_without_contrast_agrees_with_nothing_but_two_of_zeros_agree(name):
    if name == "emd":
        pytest.importorskip("scipy.optimize")
    zero, flat, some = np.zeros((7, 7)), np.full((7, 7), 0.3), RNG.random((7, 7))
    first = np.stack([zero, zero, zero, flat, flat, some])
    second = np.stack([zero, flat, some, flat, some, some])
    found = agreement.agreement(maps(first, second), [name])[name]
    assert np.isnan(found).tolist() == [False, True, True, True, True, False]
    assert found[0] == agreement.get(name).best
    assert found[5] == pytest.approx(agreement.get(name).best, abs=1e-6)


def test_many_pairs_at_once_are_the_pairs_one_by_one():
    a, b = RNG.random((2, 5, 7, 7))
    quick = [name for name in ALL if name != "emd"]
    found = agreement.agreement(maps(a, b), quick)
    for name in quick:
        np.testing.assert_allclose(found[name], [one(name, *p) for p in zip(a, b, strict=True)], rtol=1e-12)


def test_tiny_and_huge_maps_are_measured_like_others():
    a, b = RNG.random((2, 7, 7)).astype(np.float32)
    for factor in (1e-36, 1e37):
        for name in ("pearson", "spearman", "cosine", "iou20", "peak", "js", "ssim"):
            assert one(name, a * np.float32(factor), b) == pytest.approx(one(name, a, b), abs=1e-5)


def test_emd_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependency, match=r"\'emd\' needs \'scipy\'.*onnxcam\[metrics\]"):
        one("emd", spot(0, 0), spot(1, 1))


def test_an_unsolved_transport_is_an_error(monkeypatch):
    optimize = pytest.importorskip("scipy.optimize")

    class Failed:
        success, message = False, "time limit"

    monkeypatch.setattr(optimize, "linprog", lambda *a, **k: Failed)
    with pytest.raises(MetricError, match="earth mover's distance was not found: time limit"):
        one("emd", spot(0, 0), spot(1, 1))
