"""Distributions and their bootstrap intervals."""

import tracemalloc

import numpy as np
import pytest

from onnxcam.comparison.statistics import RESAMPLES, resampled, statistics

RNG = np.random.default_rng(3)


def one(values, better="higher", seed=0):
    return statistics(np.array(values, float)[:, None], [better], seed)[0]


def test_quantiles_mean_and_the_worst_end():
    told = one([4, 1, 3, 2, 5])
    assert (told.count, told.mean, told.median) == (5, 3, 3)
    assert (told.p05, told.p95) == pytest.approx((1.2, 4.8))
    assert told.worst == 1
    assert one([4, 1, 3, 2, 5], "lower").worst == 5


def test_the_interval_is_scipys_percentile_bootstrap():
    stats = pytest.importorskip("scipy.stats")
    values = RNG.gamma(2, size=80)
    told = one(values)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # Both are random: their ends differ by the error of a quantile of 2,000 draws.
    error = 0.12 * values.std() / np.sqrt(80)
    assert (told.low, told.high) == pytest.approx((theirs.low, theirs.high), abs=2 * error)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    held = 0
    for trial in range(200):
        told = one(RNG.normal(size=60), seed=trial)
        held += told.low <= 0 <= told.high
    assert 0.90 <= held / 200 <= 0.99  # 0.94 expected of 60 values, and 3 standard errors


def test_the_interval_of_a_share_is_that_of_the_binomial():
    hits = np.r_[np.ones(90), np.zeros(10)]
    told = one(hits)
    binomial = pytest.importorskip("scipy.stats").binom(100, 0.9)
    assert (told.low, told.high) == pytest.approx(np.array(binomial.ppf([0.025, 0.975])) / 100, abs=0.011)
    assert told.mean == pytest.approx(0.9)


def test_equal_values_have_an_interval_without_width():
    told = one([0.1] * 7)
    assert (told.mean, told.low, told.high, told.worst) == pytest.approx((0.1,) * 4, abs=1e-15)
    assert told.low == told.high
    assert one([0.7]).high == one([0.7]).low == 0.7


def test_what_is_not_defined_is_left_out_and_counted():
    values = np.array([[1, np.nan], [np.nan, np.nan], [3, np.nan]])
    told, none = statistics(values, ["higher", "higher"])
    assert none is None
    assert (told.count, told.mean) == (2, 2)
    assert 1 <= told.low < told.high <= 3
    assert statistics(np.empty((0, 1)), ["higher"]) == [None]


def test_the_seed_decides_and_quantities_do_not_disturb_each_other():
    values = RNG.random((50, 3))
    assert statistics(values, ["higher"] * 3, 4) == statistics(values, ["higher"] * 3, 4)
    assert statistics(values, ["higher"] * 3, 4) != statistics(values, ["higher"] * 3, 5)
    alone = statistics(values[:, 1:2], ["higher"], 4)[0]
    both = statistics(values, ["higher"] * 3, 4)[1]
    assert (alone.low, alone.high) == pytest.approx((both.low, both.high), rel=1e-12)


def test_resampled_means_are_means_of_photos_drawn_again():
    values = np.arange(4.0)[:, None]
    means = resampled(values, 0)
    assert means.shape == (RESAMPLES, 1)
    assert set(np.round(means[:, 0] * 4, 9)) <= set(range(13))
    assert means.mean() == pytest.approx(1.5, abs=0.05)
    # A quarter of (3/4)⁴ of the draws lack one of the four.
    sparse = np.array([[5.0], [np.nan], [np.nan], [np.nan]])
    lost = np.isnan(resampled(sparse, 0)).mean()
    assert lost == pytest.approx(0.75**4, abs=0.04)


def test_memory_does_not_grow_with_the_photos():
    peaks = []
    for count in (5_000, 100_000):
        values = RNG.random((count, 2))
        tracemalloc.start()
        resampled(values, 0, 400)
        peaks.append((tracemalloc.get_traced_memory()[1] - 5 * values.nbytes) / 2**20)
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
