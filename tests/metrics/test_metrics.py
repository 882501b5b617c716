"""Every metric on models and maps whose answer is known by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
from metrics.cases import case, curve, number

from onnxcam import metrics
from onnxcam.errors import MetricError, MissingDependency
from onnxcam.metrics import Case, Curve, measure, truth_of_boxes, truth_of_mask
from onnxcam.metrics.curves import blurred, ranks
from onnxcam.metrics.road import impute

RNG = np.random.default_rng(0)


def weighted(*weights: float):
    """The score Σ w x of a one-row image."""
    return lambda x: x[:, 0, 0] @ np.array(weights, np.float32)


# Deletion and insertion


def test_the_curves_of_a_linear_model_are_the_running_sums_of_its_weights():
    one = case([[1, 1]], [[1, 0]], weighted(0.7, 0.3))
    deleted, inserted = curve("deletion", one, steps=2), curve("insertion:torchcam", one, steps=2)
    np.testing.assert_allclose(deleted.x, [0, 0.5, 1])
    np.testing.assert_allclose(deleted.y, [1, 0.3, 0], atol=1e-7)
    np.testing.assert_allclose(inserted.y, [0, 0.7, 1], atol=1e-7)
    assert float(deleted) == pytest.approx(0.4)
    assert float(inserted) == pytest.approx(0.6)


def test_steps_that_do_not_divide_the_pixels_leave_a_smaller_last_block():
    weights = 0.3, 0.25, 0.2, 0.15, 0.1
    one = case([[1] * 5], [[1, 0.8, 0.6, 0.4, 0.2]], weighted(*weights))
    deleted, inserted = curve("deletion", one, steps=3), curve("insertion:torchcam", one, steps=3)
    np.testing.assert_allclose(deleted.x, [0, 0.4, 0.8, 1])
    np.testing.assert_allclose(deleted.y, [1, 0.45, 0.1, 0], atol=1e-6)
    # By trapezia: 0.4 (1 + .45) / 2 + 0.4 (.45 + .1) / 2 + 0.2 (.1 + 0) / 2.
    assert float(deleted) == pytest.approx(0.41)
    assert float(inserted) == pytest.approx(0.59)


def test_the_points_of_ovx_are_equally_spaced_though_its_counts_are_rounded_down():
    one = case([[1] * 5], [[5, 4, 3, 2, 1]] / np.float32(5), weighted(*[0.2] * 5), black=np.float32(0))
    deleted = curve("deletion:ovx", one, steps=3)
    np.testing.assert_allclose(deleted.x, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(deleted.y, [1, 0.8, 0.4, 0], atol=1e-6)  # 0, 1, 3 and 5 pixels
    assert float(curve("insertion:ovx", one, steps=3)) == pytest.approx((0.2 + 0.6 + 0.5) / 3)


def test_removed_pixels_are_black_or_zero_as_the_metric_says():
    one = case(np.full((2, 1, 1), 3), [[1]], black=np.array([[[-1]], [[-2]]], np.float32))
    assert curve("deletion", one, steps=1).y.tolist() == [3, 0]
    assert curve("deletion:ovx", one, steps=1).y.tolist() == [3, -1.5]
    assert curve("insertion:ovx", one, steps=1).y.tolist() == [-1.5, 3]


def test_equal_pixels_change_in_reading_order():
    np.testing.assert_array_equal(ranks(np.float32([[0, 1], [1, 0]])), [[2, 0], [1, 3]])
    flat = case([[1, 1, 1, 1]], [[0.5] * 4], weighted(0.4, 0.3, 0.2, 0.1))
    np.testing.assert_allclose(curve("deletion", flat, steps=4).y, [1, 0.6, 0.3, 0.1, 0], atol=1e-6)


def test_a_perfect_order_beats_its_reverse_and_nothing_beats_it():
    weights = RNG.random(30).astype(np.float32)
    image = np.ones((1, 1, 30))
    scores = {
        name: number("deletion", case(image, heat[None], weighted(*weights)), steps=30)
        for name, heat in {"best": weights, "worst": 1 - weights, "chance": RNG.random(30)}.items()
    }
    assert scores["best"] < scores["chance"] < scores["worst"]


def test_insertion_starts_from_the_blurred_image_and_ends_at_the_image():
    image = RNG.random((3, 24, 20)).astype(np.float32)
    one = case(image, RNG.random((24, 20)), lambda x: (x**2).mean(axis=(1, 2, 3)))
    start = blurred(one)
    assert start.shape == image.shape
    assert start.std() < image.std() / 2
    found = curve("insertion", one, steps=4)
    assert found.y[0] == pytest.approx(float((start**2).mean()), rel=1e-5)
    assert found.y[-1] == pytest.approx(one.clean, rel=1e-5)
    # A constant image is its own blur: nothing rises.
    still = case(np.full((1, 12, 12), 0.5), RNG.random((12, 12)))
    np.testing.assert_allclose(curve("insertion", still).y, 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["deletion", "insertion", "deletion:ovx", "road", "infidelity", "drop:ovx"])
def test_channels_last_is_the_same_measurement(name):
    image, heatmap = RNG.random((3, 16, 14)).astype(np.float32), RNG.random((16, 14))
    black = np.array([-1, -2, -3], np.float32)
    first = case(image, heatmap, lambda x: x[:, 0].mean(axis=(1, 2)) + 0.1, black=black[:, None, None])
    last = case(
        image.transpose(1, 2, 0),
        heatmap,
        lambda x: x[..., 0].mean(axis=(1, 2)) + 0.1,
        black=black,
        channels_last=True,
    )
    assert number(name, last) == pytest.approx(number(name, first), rel=1e-4, abs=1e-7)


# Confidence


def test_drop_increase_and_gain_of_a_known_change():
    fell = case([[1, 1]], [[0.4, 0.4]])  # 1 to .4
    assert number("drop", fell) == pytest.approx(0.6)
    assert number("drop:torchcam", fell) == pytest.approx(0.6 / (1 + 1e-7), rel=1e-9, abs=1e-7)
    assert number("increase", fell) == number("gain", fell) == 0
    rose = case([[1, 1]], [[1, 0]], lambda x: 0.2 + 0.3 * (x[:, 0, 0, 1] == 0))  # .2 to .5
    assert number("drop", rose) == number("drop:pgc", rose) == 0
    assert number("increase", rose) == 1
    assert number("gain", rose) == pytest.approx(0.3 / 0.8)
    half = case([[0.5, 0.5]], [[0.4, 0.4]])  # .5 to .2: the library's drop is not a share
    assert number("drop", half) == pytest.approx(0.6)
    assert number("drop:pgc", half) == pytest.approx(0.3)


def test_a_certain_score_has_nothing_to_gain():
    assert number("gain", case([[1]], [[1]])) == 0


@pytest.mark.parametrize("name", ["drop", "drop:ovx"])
def test_a_share_of_a_negative_logit_is_refused(name):
    with pytest.raises(
        MetricError, match=rf"'{name}' divides by the score, which is -1\. It is defined on prob"
    ):
        measure(name, case([[-1]], [[1]], black=np.float32(0)))


def test_a_gain_of_a_logit_is_refused():
    with pytest.raises(MetricError, match="The gain is of a probability, and the score is 3"):
        measure("gain", case([[3]], [[1]]))


def test_metrics_that_ask_for_the_same_input_run_the_model_once():
    runs = []
    one = case([[1, 1]], [[0.5, 0]], lambda x: runs.append(len(x)) or x.mean(axis=(1, 2, 3)))
    runs.clear()
    for name in ("drop", "drop:pgc", "increase", "gain"):
        measure(name, one)
    assert runs == [1]


# ROAD


def test_imputed_pixels_solve_the_papers_equations():
    image, keep = RNG.random((3, 7, 9)).astype(np.float32), RNG.random((7, 9)) > 0.6
    keep[0, 0] = keep[6, 8] = False
    filled = impute(image, keep)
    np.testing.assert_array_equal(filled[:, keep], image[:, keep])
    for y, x in np.argwhere(~keep):
        total, weight = np.zeros(3), 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy or dx) and 0 <= y + dy < 7 and 0 <= x + dx < 9:
                    w = 1 / 6 if 0 in (dy, dx) else 1 / 12
                    total, weight = total + w * filled[:, y + dy, x + dx], weight + w
        np.testing.assert_allclose(filled[:, y, x], total / weight, atol=1e-5)


def test_a_constant_image_is_imputed_as_itself_and_noise_is_added_where_asked():
    image, keep = np.full((1, 20, 20), 0.3, np.float32), np.zeros((20, 20), bool)
    keep[5, 5] = True
    np.testing.assert_allclose(impute(image, keep), image, atol=1e-5)
    noisy = impute(image, keep, 0.01, seed=1)
    np.testing.assert_array_equal(noisy, impute(image, keep, 0.01, seed=1))
    assert (noisy - image)[0, ~keep].std() == pytest.approx(0.01, rel=0.2)
    np.testing.assert_array_equal(impute(image, np.ones((20, 20), bool)), image)


def test_road_of_a_map_that_knows_the_object_is_positive_and_of_its_reverse_negative():
    image = np.zeros((1, 20, 20), np.float32)
    image[0, 5:12, 6:14] = 1
    good = case(image, image[0])
    assert number("road_morf", good) < number("road_lerf", good)
    assert number("road", good) > 0.02
    assert number("road", case(image, 1 - image[0])) < -0.02
    assert number("road", good) == number("road", good)


def test_a_flat_map_loses_by_rank_what_the_librarys_rule_takes_whole():
    image = np.ones((1, 12, 12))
    flat = case(image, np.zeros((12, 12)))
    assert number("road", flat) == pytest.approx(0, abs=0.01)  # what is removed is filled with what it was
    # Nothing is below any percentile: every input is 0, in both orders.
    given = []
    spied = case(image, np.zeros((12, 12)), lambda x: given.extend(x.mean(axis=(1, 2, 3))) or x[:, 0, 0, 0])
    given.clear()
    assert number("road:pgc", spied, noise=0.0) == 0
    assert given == [0] * 18


def test_nothing_can_be_imputed_from_nothing():
    with pytest.raises(MetricError, match="ROAD has removed every pixel"):
        impute(np.ones((1, 3, 3), np.float32), np.zeros((3, 3), bool))


# Infidelity and sensitivity


def test_the_map_of_a_linear_model_is_faithful_and_others_are_not():
    weights = RNG.random((16, 16)).astype(np.float32)
    image = RNG.random((1, 16, 16)).astype(np.float32)
    model = lambda x: (x[:, 0] * weights).sum(axis=(1, 2))  # noqa: E731
    exact = image[0] * weights
    assert number("infidelity", case(image, exact / exact.max(), model)) == pytest.approx(0, abs=1e-9)
    assert number("infidelity", case(image, RNG.random((16, 16)), model)) > 0.1
    # Of a map of zeros: the mean square of what is lost.
    assert number("infidelity", case(image, np.zeros((16, 16)), model)) > 1


def test_sensitivity_is_the_largest_relative_change():
    image = np.zeros((1, 4, 4), np.float32)
    still = case(image, np.full((4, 4), 0.5), explain=lambda x: np.full((4, 4), 0.5, np.float32))
    assert number("sensitivity", still) == 0
    calls = []

    def explain(x):
        assert 0 < np.abs(x).max() <= 0.1
        calls.append(x)
        return np.full((4, 4), 0.5 + 0.1 * (len(calls) == 3), np.float32)

    moved = case(image, np.full((4, 4), 0.5), explain=explain)
    assert number("sensitivity", moved, radius=0.1, samples=5) == pytest.approx(0.2)
    assert len(calls) == 5


def test_the_sensitivity_of_a_map_of_zeros_is_undefined():
    with pytest.raises(MetricError, match="relative to the map, and the map is zero everywhere"):
        measure("sensitivity", case(np.ones((4, 4)), np.zeros((4, 4)), explain=lambda x: x[0]))


# The map itself


def test_complexity_and_sparseness():
    one_pixel, even = np.zeros((10, 10)), np.full((10, 10), 0.25)
    one_pixel[3, 4] = 1
    assert number("complexity", case(even, one_pixel)) == pytest.approx(0.01)
    assert number("complexity", case(even, even)) == pytest.approx(0.25)
    assert number("sparseness", case(even, one_pixel)) == pytest.approx(0.99)
    assert number("sparseness", case(even, even)) == pytest.approx(0)
    with pytest.raises(MetricError, match="the heat's shares, and the map is zero"):
        measure("sparseness", case(even, np.zeros((10, 10))))


def test_coherency_is_one_for_the_same_map_and_zero_for_its_reverse():
    heat = RNG.random((6, 6)).astype(np.float32)
    image = np.ones((1, 6, 6), np.float32)
    for name in ("coherency", "coherency:pgc", "coherency:ovx"):
        assert number(
            name, case(image, heat, explain=lambda x: heat * 0.5, black=np.float32(0))
        ) == pytest.approx(1)
        assert number(
            name, case(image, heat, explain=lambda x: 1 - heat, black=np.float32(0))
        ) == pytest.approx(0, abs=1e-6)


def test_coherency_explains_what_the_map_shows():
    seen = []
    one = case([[2, 4]], [[0.5, 1]], explain=lambda x: seen.append(x) or x[0] / 4, black=np.float32(-2))
    measure("coherency", one)
    measure("coherency:ovx", one)
    measure("adcc", one)  # not explained again
    assert [x.tolist() for x in seen] == [[[[1, 4]]], [[[0, 4]]]]


def test_constant_maps_have_no_coherency_but_pgcs_half():
    for heat, other in ((np.zeros((3, 3)), np.eye(3)), (np.eye(3), np.ones((3, 3)))):
        one = case(np.ones((3, 3)), heat, explain=lambda x, other=other: np.float32(other))
        assert number("coherency:pgc", one) == pytest.approx(0.5)
        for name in ("coherency", "adcc"):
            with pytest.raises(MetricError, match="A constant map correlates with nothing"):
                measure(name, one)


def test_adcc_is_the_harmonic_mean_of_its_parts():
    heat = np.float32([[1, 0.5], [0, 0]])
    one = case([[1, 1], [0, 0]], heat, explain=lambda x: heat, black=np.float32(0))
    parts = [1.0, 1 - 0.375, 1 - 0.25]  # coherency, complexity, the drop from .5 to .375
    assert number("adcc", one) == pytest.approx(3 / sum(1 / p for p in parts))
    assert number("adcc:ovx", one) == pytest.approx(3 / sum(1 / p for p in parts))
    lost = case([[1, 0], [0, 0]], [[0, 1], [0, 0]], explain=lambda x: heat)
    assert number("adcc", lost) == 0  # all of the score is gone


def test_arcc_lies_between_its_parts():
    image = np.zeros((1, 20, 20), np.float32)
    image[0, 5:12, 6:14] = 1
    one = case(image, image[0], explain=lambda x: image[0])
    parts = [1, 1 - 56 / 400, 2 * number("road", one, percentiles=(20, 40, 60, 80))]
    assert number("arcc", one) == pytest.approx(3 / sum(1 / p for p in parts))


# Localisation


def found(name, heatmap, truth, **options):
    heatmap = np.asarray(heatmap, np.float32)
    return number(name, case(np.ones(heatmap.shape), heatmap, truth=truth), **options)


def test_the_pointing_game_hits_misses_and_shares_ties():
    truth = truth_of_mask([[0, 1, 1], [0, 1, 1]])
    hit, miss, tie = [[0, 0, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 1]]
    assert [found("pointing", m, truth) for m in (hit, miss, tie)] == pytest.approx([1, 0, 2 / 3])
    assert found("pointing:ovx", tie, truth) == 1
    assert found("pointing", np.ones((2, 3)), truth) == pytest.approx(4 / 6)
    assert found("pointing", np.zeros((2, 3)), truth) == 0  # points nowhere
    assert found("pointing:ovx", np.zeros((2, 3)), truth) == 1  # as the library has it


def test_the_pointing_game_tolerates_what_lies_near():
    mask, heat = np.zeros((60, 60)), np.zeros((60, 60))
    mask[20:30, 20:30] = heat[29, 44] = 1  # 15 pixels from the last column of the object
    assert found("pointing", heat, truth_of_mask(mask)) == 0
    assert found("pointing:15px", heat, truth_of_mask(mask)) == 1
    assert found("pointing", heat, truth_of_mask(mask), tolerance=14.9) == 0


def test_openvinos_boxes_have_their_far_edge():
    heat = np.zeros((6, 6))
    heat[4, 4] = 1
    truth = truth_of_boxes([1, 1, 4, 4], (6, 6))
    assert found("pointing", heat, truth) == 0
    assert found("pointing:ovx", heat, truth) == 1


def test_energy_is_the_share_of_the_heat_inside():
    truth = truth_of_mask([[1, 0], [0, 0]])
    assert found("energy", [[0.6, 0.2], [0, 0]], truth) == pytest.approx(0.75)
    assert found("energy", np.full((2, 2), 0.3), truth) == pytest.approx(0.25)
    assert found("energy", np.zeros((2, 2)), truth) == 0
    assert found("grid_pointing", [[0.6, 0.2], [0, 0]], truth) == pytest.approx(0.75)


def test_the_box_is_drawn_around_the_largest_warm_region():
    heat = np.zeros((20, 20))
    heat[2:8, 2:8] = 0.6  # 36 pixels
    heat[3:5, 3:5] = 1
    heat[12:15, 12:15] = 0.9
    truth = truth_of_boxes([[2, 2, 8, 8], [0, 15, 3, 18]], (20, 20))
    one = case(np.ones((20, 20)), heat, truth=truth)
    iou = curve("box_iou", one)
    at = dict(zip(iou.x.round(2).tolist(), iou.y.tolist(), strict=True))
    assert at[0.0] == pytest.approx(36 / 400)  # all of the image
    assert at[0.3] == at[0.6] == 1
    assert at[0.7] == 0  # the second region, 9 pixels, far from both boxes
    assert at[0.95] == pytest.approx(4 / 36)
    assert curve("maxboxacc", one).y.sum() == sum(v >= 0.5 for v in at.values())
    zero = case(np.ones((20, 20)), np.zeros((20, 20)), truth=truth)
    assert not curve("box_iou", zero).y.any()


def test_one_threshold_is_chosen_for_the_whole_set():
    x = np.array([0, 0.5, 0.9])
    hits = [Curve(x, np.array(y, float)) for y in ([1, 1, 0], [0, 1, 0], [0, 0, 1])]
    np.testing.assert_array_equal(metrics.values("maxboxacc", hits), [1, 1, 0])
    # Of areas every image keeps its own, and of numbers they are themselves.
    np.testing.assert_allclose(metrics.values("deletion", hits[:1]), [0.5 + 0.2])
    np.testing.assert_array_equal(metrics.values("energy", [0.25, 1.0]), [0.25, 1])


# Sanity


def test_ssim_is_scikit_images():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    a, b = RNG.random((2, 40, 33)).astype(np.float32)
    b = (a + 0.3 * b) / 1.3
    wanted = structural_similarity(
        *(m.astype(np.float64) for m in (a, b)),
        data_range=1,
        gaussian_weights=True,
        use_sample_covariance=False,
    )
    assert number("randomised_ssim", case(a, a, randomised=b)) == pytest.approx(wanted, rel=1e-9)
    assert number("randomised_ssim", case(a, a, randomised=a)) == pytest.approx(1)


def test_rank_correlation_of_equal_reversed_and_unrelated_maps():
    a = RNG.random((40, 40)).astype(np.float32)
    assert number("randomised_rank", case(a, a, randomised=a**3)) == pytest.approx(1)
    assert number("randomised_rank", case(a, a, randomised=1 - a)) == pytest.approx(1)
    other = RNG.random((40, 40)).astype(np.float32)
    assert number("randomised_rank", case(a, a, randomised=other)) < 0.1
    with pytest.raises(MetricError, match="A constant map orders nothing"):
        measure("randomised_rank", case(a, a, randomised=np.zeros((40, 40), np.float32)))


def test_ssim_needs_a_window():
    small = np.ones((10, 20), np.float32)
    with pytest.raises(MetricError, match=r"windows of 11 pixels, and the map is \(10, 20\)"):
        measure("randomised_ssim", case(small, small, randomised=small))


# What is given


def test_boxes_and_masks_say_the_same_of_a_rectangle():
    mask = np.zeros((9, 12))
    mask[2:5, 3:10] = 1
    from_mask, from_box = truth_of_mask(mask), truth_of_boxes([3, 2, 10, 5], (9, 12))
    np.testing.assert_array_equal(from_mask.mask, from_box.mask)
    np.testing.assert_array_equal(from_mask.boxes, from_box.boxes)
    mask[8, 11] = 200
    assert truth_of_mask(mask).boxes.tolist() == [[3, 2, 10, 5], [11, 8, 12, 9]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: truth_of_mask(np.zeros((4, 4))), "The mask is empty: it marks no pixel"),
        (lambda: truth_of_mask(np.ones((4, 4, 3))), r"\(height, width\), not \(4, 4, 3\)"),
        (lambda: truth_of_boxes([], (4, 4)), r"\[\[x1, y1, x2, y2\], ...\] with at least one, not \[\]"),
        (lambda: truth_of_boxes([[1, 2, 3]], (4, 4)), "with at least one, not"),
        (lambda: truth_of_boxes("boxes", (4, 4)), "with at least one, not 'boxes'"),
        (lambda: truth_of_boxes([3, 0, 1, 2], (4, 4)), "A box has x1 < x2 and y1 < y2"),
        (lambda: truth_of_boxes([0, 0, np.nan, 2], (4, 4)), "A box has x1 < x2 and y1 < y2"),
        (lambda: truth_of_boxes([9, 9, 12, 12], (4, 4)), r"hold no pixel of the image, which is \(4, 4\)"),
        (lambda: case(np.ones((4, 4)), np.ones((3, 4))), r"heatmap is \(3, 4\), but the image is \(4, 4\)"),
        (lambda: case(np.ones((2, 2)), [[0, np.nan], [0, 1]]), "heatmap holds NaN or infinity: the method"),
        (lambda: case(np.ones((1, 2)), [[-1, 3]]), r"from -1 to 3; a heatmap is scaled to \[0, 1\]"),
        (
            lambda: case(np.ones((4, 4)), np.ones((4, 4)), truth=truth_of_mask(np.ones((5, 5)))),
            r"truth's mask is \(5, 5\), but the image is \(4, 4\): give it at the size",
        ),
        (lambda: case([[np.inf]], [[1]]), "The image holds NaN or infinity"),
        (lambda: case([[1]], [[1]], lambda x: x[:, 0, 0, 0] / 0 * 0), "The score of the image is nan"),
        (
            lambda: Case(np.ones(3, np.float32), np.ones((1, 3), np.float32), lambda m, n: None, 1.0),
            r"shape \(3,\), not \(C, H, W\)",
        ),
        (
            lambda: case([[1]], [[1]], randomised=np.ones((2, 2), np.float32)),
            r"heatmap of the randomised model is \(2, 2\)",
        ),
    ],
    ids=range(16),
)
@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
def test_bad_data_is_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


WHOLE = "a whole number of at least 1"
SHARES = "a list of shares between 0 and 100 per cent"


@pytest.mark.parametrize(
    ("name", "option", "values", "told"),
    [
        ("deletion", "steps", (0, 2.5, True, "50", None), f"{WHOLE}, such as 20"),
        ("insertion", "steps", (-1,), f"{WHOLE}, such as 20"),
        ("deletion:ovx", "steps", (0,), f"{WHOLE}, such as 30"),
        ("infidelity", "samples", (0,), f"{WHOLE}, such as 50"),
        ("infidelity", "seed", (-1, 0.5), "a whole number of at least 0, such as 0"),
        ("sensitivity", "samples", (0,), f"{WHOLE}, such as 10"),
        ("sensitivity", "radius", (0, np.nan, "x"), "a finite number above 0, such as 0.02"),
        ("road", "percentiles", ((), (0,), (50, 100), 50, "50", [None]), SHARES),
        ("road_morf", "percentiles", ((),), SHARES),
        ("road:pgc", "noise", (-0.1, np.inf), "a finite number of at least 0, such as 0.01"),
        ("pointing", "tolerance", (-1,), "a finite number of at least 0, such as 0.0"),
        ("maxboxacc", "iou", (0, 1.5), "a number above 0 and up to 1, such as 0.5"),
    ],
)
def test_options_that_no_metric_can_be_called_with_are_refused(name, option, values, told):
    for value in values:
        said = rf"^The option '{option}' of the metric '{name}' is {told}.*, not {re.escape(repr(value))}\.$"
        with pytest.raises(MetricError, match=said):
            measure(name, case([[1]], [[1]]), **{option: value})


def test_every_option_of_every_metric_is_checked_and_its_default_passes():
    for name in metrics.names():
        known = metrics.options(name)
        metrics.get(name).check(known)
        assert set(known) <= set(metrics.VALUES)


def test_an_option_that_a_metric_does_not_have():
    with pytest.raises(
        MetricError, match=r"'deletion' has no option 'step'\. Nearest: 'steps'\. It has: steps"
    ):
        measure("deletion", case([[1]], [[1]]), step=3)
    with pytest.raises(MetricError, match=r"The metric 'drop' has no option 'steps'\. It has: none\."):
        measure("drop", case([[1]], [[1]]), steps=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pointing", "needs the truth, where the object is"),
        ("coherency", "needs a way to explain other inputs"),
        ("deletion:ovx", "needs to know what a black pixel is"),
        ("randomised_ssim", "needs the map of a model with random weights"),
    ],
)
def test_what_a_metric_needs_it_says(name, message):
    with pytest.raises(MetricError, match=f"'{name}' {message}"):
        measure(name, case([[1]], [[1]]))


# The registry


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(MetricError, match=r"No metric 'deletoin'\. Nearest: 'deletion'.*There are: adcc, "):
        metrics.get("deletoin")


def test_every_metric_is_described():
    for name in metrics.names():
        one = metrics.get(name)
        assert one.source
        assert one.formula
        assert one.function.__doc__
        assert name == one.name
    with pytest.raises(ValueError, match="registered twice"):
        metrics.metric("drop", better="lower", source="", formula="")(lambda case: 0.0)


def test_a_metric_of_ones_own_needs_no_registration():
    own = metrics.Metric("brightest", lambda case: float(case.image.max()), "neither", "ours", "max x")
    assert measure(own, case([[1, 3]], [[1, 0]])) == 3


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("onnxcam.metrics.importlib.import_module", missing)
    with pytest.raises(MissingDependency, match=r"'road' needs 'scipy'.*pip install \"onnxcam\[metrics\]\""):
        measure("road", case([[1]], [[1]]))
    assert number("deletion", case([[1]], [[1]])) == pytest.approx(0.5)  # needs nothing
