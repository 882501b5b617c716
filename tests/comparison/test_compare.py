"""Two recordings, compared: cases that are solved by hand."""

import dataclasses
import json

import numpy as np
import pytest
from comparison.recordings import LABELS, hot, recording, spots

from onnxcam.comparison import MEASURES, THRESHOLDS, compare
from onnxcam.contract import Preprocess
from onnxcam.errors import InputError, MetricError
from onnxcam.softmax import softmax

RNG = np.random.default_rng(5)


def random_side(count=12, classes=7, seed=0, **more):
    rng = np.random.default_rng(seed)
    return recording(rng.normal(size=(count, classes)), rng.random((count, 5, 5)), **more)


def relabelled(side, labels):
    return dataclasses.replace(side, maker=dataclasses.replace(side.maker, labels=tuple(labels)))


# Verdicts


def test_the_same_recording_twice_agrees_fully():
    one = random_side()
    found = compare(one, one)
    assert [row.verdict for row in found.rows] == ["same reason"] * 12
    assert (
        found.shares["same_answer"].mean == found.shares["same_reason"].mean == found.shares["top5"].mean == 1
    )
    best = {"pearson": 1, "spearman": 1, "cosine": 1, "iou20": 1, "peak": 0, "js": 0, "score_difference": 0}
    assert {name: told.mean for name, told in found.statistics.items()} == pytest.approx(best, abs=1e-9)
    assert found.skipped == ()
    assert found.parts is None
    assert found.notes == (
        "The reference does not say how a photo becomes its input: the whole photo is taken to fill it.",
        "The candidate does not say how a photo becomes its input: the whole photo is taken to fill it.",
    )


def test_verdicts_of_known_photos():
    zero = np.zeros((1, 5, 5))
    first = np.concatenate([spots((0, 0), (0, 0), (2, 2)), zero, spots((1, 1)), zero])
    second = np.concatenate([spots((0, 0), (4, 4), (2, 2)), zero, zero, spots((1, 1))])
    found = compare(recording(hot(0, 0, 0, 0, 0, 0), first), recording(hot(0, 0, 1, 0, 0, 0), 3 * second))
    assert [row.verdict for row in found.rows] == [
        "same reason",
        "other reason",
        "other answer",
        "same reason",  # nothing to see on either side
        "other reason",  # something on one side alone
        "other reason",
    ]
    pearson = [row.agreement["last"]["pearson"] for row in found.rows]
    # Of 25 cells with one hot each, in different places.
    assert pearson == [pytest.approx(1), pytest.approx(-1 / 24), pytest.approx(1), 1, None, None]
    assert found.rows[4].agreement["last"] == dict.fromkeys(MEASURES)
    assert found.rows[3].agreement["last"] == dict(zip(MEASURES, (1, 1, 1, 1, 0, 0), strict=True))
    assert found.statistics["pearson"].count == 4
    assert found.statistics["pearson"].mean == pytest.approx((3 - 1 / 24) / 4)
    assert found.shares["same_answer"].mean == pytest.approx(5 / 6)
    assert found.shares["same_reason"].mean == pytest.approx(2 / 6)
    assert found.statistics["peak"].worst == pytest.approx(np.hypot(4, 4) / np.hypot(5, 5))


def test_measure_and_threshold_decide():
    one, two = recording(hot(0, 1), spots((0, 0), (1, 1))), recording(hot(0, 1), spots((0, 1), (3, 3)))
    near = 1 / np.hypot(5, 5)

    def verdicts(**more):
        return [row.verdict for row in compare(one, two, **more).rows]

    assert verdicts(measure="peak", threshold=near + 1e-6) == ["same reason", "other reason"]
    assert verdicts(measure="peak", threshold=near - 1e-6) == ["other reason", "other reason"]
    assert verdicts(threshold=-0.5) == ["same reason", "same reason"]
    assert compare(one, two).threshold == THRESHOLDS["pearson"]


def test_maps_are_rectified_where_their_method_is():
    first, second = np.array([[[1.0, -5], [0, 0]]] * 2), np.array([[[1.0, 0], [-7, 0]]] * 2)

    def cosine(method):
        sides = (recording(hot(0, 1), m, method=method) for m in (first, second))
        return compare(*sides).statistics["cosine"].mean

    assert cosine("gradcam") == pytest.approx(1)
    unrectified = 1 / (np.sqrt(26) * np.sqrt(50))
    assert cosine("cam") == pytest.approx(unrectified)
    assert cosine("another program's") == pytest.approx(unrectified)


def test_maps_meet_on_the_coarser_grid_in_the_part_that_both_see():
    fine = np.zeros((2, 8, 8))
    fine[:, 5, 2] = 4
    coarse = np.zeros((2, 4, 4))
    coarse[:, 2, 1] = 1
    how = Preprocess(size=(64, 64))
    one, two = recording(hot(0, 1), fine, preprocess=how), recording(hot(0, 1), coarse, preprocess=how)
    for sides in ((one, two), (two, one)):
        found = compare(*sides, pairs=["last"])
        assert found.statistics["pearson"].mean == pytest.approx(1)
        assert found.notes == ()
    # A crop of the middle half has the same spot in its last row, and does not see the other's outer cells.
    crop = recording(
        hot(0, 1), spots((3, 0), (3, 0), grid=(4, 4)), preprocess=Preprocess("", (50, 50), "crop", 100)
    )
    inner = np.zeros((2, 4, 4))
    inner[:, 2, 1] = 1
    inner[:, 0, 0] = 9
    whole = recording(hot(0, 1), inner, preprocess=how)
    found = compare(whole, crop, pairs=["last"])
    assert found.statistics["peak"].mean == pytest.approx(0, abs=1e-9)
    assert found.statistics["pearson"].mean == pytest.approx(1)


# Decisions


def test_scores_are_probabilities_where_the_outputs_give_them():
    logits = RNG.normal(size=(4, 7)).astype(np.float32)
    maps = RNG.random((4, 5, 5))
    p = softmax(logits.astype(float))
    as_logits = recording(logits, maps)
    for other in (
        recording(p, maps, activation="softmax"),
        recording(np.log(p), maps, activation="log_softmax"),
        recording(p, maps),  # nobody says so, but they add up to one
    ):
        found = compare(as_logits, other)
        assert found.statistics["score_difference"].mean == pytest.approx(0, abs=1e-6)
        row = found.rows[2]
        best = np.argsort(-p[2])[:5]
        assert [name for name, _ in row.candidate.top] == [LABELS[c] for c in best]
        assert [s for _, s in row.reference.top] == pytest.approx(p[2][best], abs=1e-6)
        assert row.candidate.score == pytest.approx(p[2].max(), abs=1e-6)
        assert row.reference.label == LABELS[best[0]]


def test_the_score_difference_is_of_the_references_class():
    one, two = np.tile([0.7, 0.2, 0.1], (2, 1)), np.tile([0.3, 0.6, 0.1], (2, 1))
    maps = RNG.random((2, 5, 5))
    found = compare(*(recording(p, maps, activation="softmax") for p in (one, two)))
    assert [row.score_difference for row in found.rows] == pytest.approx([0.4, 0.4])
    assert [row.verdict for row in found.rows] == ["other answer"] * 2
    assert (found.rows[0].reference.class_id, found.rows[0].candidate.class_id) == (0, 1)
    assert found.statistics["score_difference"].worst == pytest.approx(0.4)


def test_top5_is_the_share_of_the_references_best_classes():
    one = np.array([[6, 5, 4, 3, 2, 1, 0]] * 2, float)
    two = np.array([[6, 5, 4, 1, 0, 3, 2], [6, 5, 4, 3, 2, 1, 0]], float)
    maps = RNG.random((2, 5, 5))
    found = compare(recording(one, maps), recording(two, maps))
    assert [row.top5 for row in found.rows] == [3 / 5, 1]
    assert found.shares["top5"].mean == pytest.approx(0.8)
    # All five of five classes are always among the best: that tells nothing.
    few = compare(recording(one[:, :5], maps), recording(two[:, :5], maps))
    assert [row.top5 for row in few.rows] == [None, None]
    assert "top5" not in few.shares
    assert len(few.rows[0].reference.top) == 5


def test_classes_in_another_order_are_matched_by_label():
    order = [3, 0, 6, 1, 5, 2, 4]
    one = random_side()
    two = recording(one.outputs[:, order], one.maps["last"])
    shuffled = relabelled(two, [LABELS[i] for i in order])
    found = compare(one, shuffled)
    assert [row.verdict for row in found.rows] == ["same reason"] * 12
    assert found.shares["top5"].mean == 1
    assert found.statistics["score_difference"].mean == pytest.approx(0, abs=1e-7)
    for row in found.rows:
        one, two = row.reference, row.candidate
        assert (one.class_id, one.label) == (two.class_id, two.label)
        assert [name for name, _ in one.top] == [name for name, _ in two.top]
        assert [score for _, score in one.top] == pytest.approx([score for _, score in two.top])
    assert "matched by label" in found.notes[0]


def test_classes_without_a_name_get_the_other_sides():
    maps = spots((0, 0), (1, 1))
    one = recording(hot(0, 1), maps)
    unnamed = dataclasses.replace(one.maker, labels=None)
    two = dataclasses.replace(one, maker=unnamed, labels=("class 0", "class 1"))
    for sides in ((one, two), (two, one)):
        found = compare(*sides)
        labels = [(row.reference.label, row.candidate.label) for row in found.rows]
        assert labels == [("ant", "ant"), ("bee", "bee")]
        assert [row.verdict for row in found.rows] == ["same reason"] * 2
        assert "has no labels" in found.notes[0]
    bare = compare(two, two)
    assert [row.reference.label for row in bare.rows] == ["class 0", "class 1"]


def test_what_is_of_no_class_is_told_by_its_own_name():
    maps = spots((0, 0), (1, 1))
    one, two = (
        recording(hot(0, 1), maps, class_ids=[-1, -1], labels=["ant or bee", name], scores=[1, 2])
        for name in ("cat or dog", "cat or eel")
    )
    found = compare(one, two)
    assert [row.same_answer for row in found.rows] == [True, False]
    assert [row.score_difference for row in found.rows] == [0, None]
    assert [row.reference.class_id for row in found.rows] == [-1, -1]


def test_equal_scores_are_the_answer_that_the_file_gave():
    # Of two equal scores each file explains the one that comes first in its own order.
    table = np.array([[2.0, 2, 0]] * 2)
    one = recording(table, spots((0, 0), (1, 1)))
    two = relabelled(recording(table[:, [1, 0, 2]], spots((0, 0), (1, 1))), ("bee", "ant", "cat"))
    found = compare(one, two)
    assert [(row.reference.label, row.candidate.label) for row in found.rows] == [("ant", "bee")] * 2
    assert found.shares["same_answer"].mean == 0


def test_any_of_the_highest_scores_is_an_answer():
    # Class 1 shares the highest score on one side, and has it alone on the other: both may answer it.
    one = recording([[2.0, 2, 0]] * 2, spots((0, 0), (1, 1)), class_ids=[1, 1])
    two = recording([[1.0, 2, 0]] * 2, spots((0, 0), (1, 1)))
    assert compare(one, two).shares["same_answer"].mean == 1


def test_one_class_for_all_photos_still_compares_the_answers():
    one = recording(hot(0, 2), spots((0, 0), (1, 1)), class_ids=[2, 2])
    two = recording(hot(1, 2), spots((0, 0), (1, 1)), class_ids=[2, 2])
    found = compare(one, two)
    assert [row.reference.label for row in found.rows] == ["cat", "cat"]
    assert [row.same_answer for row in found.rows] == [False, True]
    assert [row.verdict for row in found.rows] == ["other answer", "same reason"]


def test_maps_of_different_classes_are_of_another_answer():
    one = recording(hot(0, 0), spots((0, 0), (1, 1)), class_ids=[0, 1])
    two = recording(hot(0, 0), spots((0, 0), (1, 1)), class_ids=[0, 2])
    assert [row.same_answer for row in compare(one, two).rows] == [True, False]


def test_a_yes_or_no_is_compared_at_one_half():
    one = recording([[0.9], [0.4], [0.6]], spots((0, 0), (1, 1), (2, 2)), activation="sigmoid")
    two = recording([[0.6], [0.45], [0.4]], spots((0, 0), (1, 1), (2, 2)), activation="sigmoid")
    found = compare(one, two)
    assert [row.same_answer for row in found.rows] == [True, True, False]
    assert [row.score_difference for row in found.rows] == pytest.approx([0.3, 0.05, 0.2])
    assert found.rows[0].reference.top == ()
    raw = compare(*(recording([[3.0], [-1]], spots((0, 0), (1, 1))) for _ in "ab"))
    assert "whether the answer is yes or no is not compared" in raw.notes[-1]


@pytest.mark.parametrize(
    ("activation", "outputs", "message"),
    [
        ("softmax", [[2.5, -1], [0, 1]], "softmax made its outputs, and they lie between -1 and 2.5: record"),
        (
            "sigmoid",
            [[0.5, 0.1], [0, 1.2]],
            "sigmoid made its outputs, and they lie between 0 and 1.2: record",
        ),
        ("log_softmax", [[0.5, 900], [0, 1]], "log_softmax made its outputs, and they lie between 0 and 900"),
        (
            "relu",
            [[1, 2], [0, 1]],
            "'relu' made its outputs, and known are softmax, sigmoid, log_softmax: write",
        ),
    ],
    ids=["softmax", "sigmoid", "log_softmax", "relu"],
)
def test_outputs_that_are_not_what_they_are_said_to_be(activation, outputs, message):
    maps = spots((0, 0), (1, 1))
    one, two = recording(outputs, maps, activation=activation), recording(outputs, maps)
    assert compare(two, two).shares["same_reason"].mean == 1
    for sides in ((one, two), (two, one)):
        with pytest.raises(InputError, match=f"^The recording of 'model.onnx' says that {message}"):
            compare(*sides)


def test_probabilities_of_eight_bits_may_be_a_step_off():
    outputs = [[256 / 255, -1 / 255], [0, 1]]
    made = recording(outputs, spots((0, 0), (1, 1)), activation="softmax")
    assert compare(made, made).shares["same_answer"].mean == 1


def test_the_only_layers_of_other_grids_are_said_to_be_compared():
    one = recording(hot(0, 1), spots((0, 0), (1, 1)))
    for grid, told in (((5, 5), "they are paired by their grids"), ((9, 9), "though their grids differ")):
        two = recording(hot(0, 1), {"other": spots((0, 0), (1, 1), grid=grid)})
        assert told in compare(one, two).notes[-1]


def test_what_has_no_class_and_no_name():
    maps = spots((0, 0), (1, 1))
    made = recording(None, maps, task="embedding", class_ids=[-1, -1], labels=["", "a smile"])
    assert [row.reference.label for row in compare(made, made).rows] == ["no class", "a smile"]


def test_other_tasks_compare_what_was_explained():
    def side(scores, labels):
        maps = spots((0, 0), (1, 1))
        return recording(None, maps, task="embedding", class_ids=[-1, -1], scores=scores, labels=labels)

    found = compare(side([0.5, 0.25], ["like a", "like b"]), side([0.25, 0.25], ["like a", "like c"]))
    assert [row.same_answer for row in found.rows] == [True, False]
    assert [row.score_difference for row in found.rows] == [0.25, None]
    assert [row.reference.top for row in found.rows] == [(), ()]
    regression = [
        recording(table, spots((0, 0), (1, 1)), task="regression", class_ids=[1, 1])
        for table in ([[9, 2.0], [9, 3]], [[1, 2.5], [1, 3]])
    ]
    told = compare(*regression)
    assert [row.score_difference for row in told.rows] == [0.5, 0]
    assert [row.same_answer for row in told.rows] == [True, True]


def test_scores_of_different_units_have_no_difference():
    maps = spots((0, 0), (1, 1))
    one = recording([[0.9, 0.1]] * 2, maps, activation="softmax")
    two = recording(None, maps, scores=[3, 4], labels=["ant", "ant"])
    found = compare(one, two)
    assert [row.score_difference for row in found.rows] == [None, None]
    assert "score_difference" not in found.statistics
    assert "The scores have no difference: one side gives a probability, the other a logit." in found.notes
    assert found.shares["same_answer"].mean == 1


def test_explaining_logit_and_probability_is_noted():
    maps = spots((0, 0), (1, 1))
    one = recording([[0.9, 0.1]] * 2, maps, activation="softmax", probability=True)
    two = recording([[0.9, 0.1]] * 2, maps, activation="softmax")
    assert (
        "The reference explains the probability of the class, the candidate the logit."
        in compare(one, two).notes
    )


# Over the photos


def test_classes_are_listed_the_least_agreeing_first():
    places = (0, 0), (0, 0), (1, 1), (1, 1), (2, 2)
    others = (0, 0), (4, 4), (1, 1), (1, 1), (4, 4)
    found = compare(
        recording(hot(0, 0, 1, 1, 2), spots(*places)), recording(hot(0, 0, 1, 3, 2), spots(*others))
    )
    told = [(one.label, one.count, one.same_answer, one.same_reason) for one in found.by_class]
    assert told == [("cat", 1, 1, 0), ("ant", 2, 1, 0.5), ("bee", 2, 0.5, 0.5)]
    assert [one.agreement for one in found.by_class] == pytest.approx([-1 / 24, (1 - 1 / 24) / 2, 1])
    # Where lower is better, too.
    lower = compare(
        recording(hot(0, 0, 1, 1, 2), spots(*places)),
        recording(hot(0, 0, 1, 3, 2), spots(*others)),
        measure="peak",
        threshold=0.5,
    )
    assert [one.label for one in lower.by_class] == ["ant", "bee", "cat"]
    nothing = compare(recording(hot(0, 1), spots((0, 0), (1, 1))), recording(hot(0, 1), np.zeros((2, 5, 5))))
    assert [one.agreement for one in nothing.by_class] == [None, None]
    assert "pearson" not in nothing.statistics
    assert nothing.by_layer == {"last": {}}
    assert nothing.parts.name == "last"


def test_layers_are_compared_in_their_order_and_the_first_that_parts_is_named():
    same, other = RNG.random((4, 9, 9)), RNG.random((4, 9, 9))
    one = recording(hot(0, 1, 2, 3), {"a": same, "b": same, "c": same})
    two = recording(hot(0, 1, 2, 3), {"a": same, "b": other, "c": other})
    found = compare(one, two)
    assert [pair.name for pair in found.pairs] == ["a", "b", "c"]
    assert found.judged.name == "c"
    assert found.parts.name == "b"
    assert list(found.by_layer) == ["a", "b", "c"]
    assert found.by_layer["a"]["pearson"].mean == pytest.approx(1)
    assert found.statistics["pearson"] == found.by_layer["c"]["pearson"]
    assert {row.verdict for row in found.rows} == {"other reason"}
    early = compare(one, two, judge="a")
    assert {row.verdict for row in early.rows} == {"same reason"}
    assert early.statistics["pearson"] == early.by_layer["a"]["pearson"]
    said = compare(one, two, pairs=["a=c", "c=a"])
    assert [pair.name for pair in said.pairs] == ["a = c", "c = a"]


def test_layers_of_other_names_are_paired_by_how_much_they_shrink():
    one = recording(
        hot(0, 1),
        {"a": RNG.random((2, 8, 8)), "b": RNG.random((2, 4, 4))},
        preprocess=Preprocess(size=(64, 64)),
    )
    two = recording(
        hot(0, 1),
        {"/x": RNG.random((2, 6, 6)), "/y": RNG.random((2, 3, 3))},
        preprocess=Preprocess(size=(48, 48)),
    )
    found = compare(one, two)
    assert [pair.name for pair in found.pairs] == ["a = /x", "b = /y"]
    assert "paired by their grids" in found.notes[0]
    assert compare(one, two, pairs=["a=/x"]).notes == ()


def test_measures_are_those_asked_for_and_the_deciding_one():
    one = random_side()
    assert list(compare(one, one, measures=["js", "ssim"]).rows[0].agreement["last"]) == [
        "js",
        "ssim",
        "pearson",
    ]
    assert compare(one, one, measures=["ssim"]).rows[0].agreement["last"]["ssim"] is None  # 5×5 cells


def test_what_is_not_compared_is_listed():
    one = random_side(names=[f"{i}.jpg" for i in range(12)], skipped=[("x.jpg", "cannot be decoded")])
    two = random_side(11, seed=1, skipped=[("11.jpg", "the model crashed")])
    found = compare(one, two)
    assert len(found.rows) == 11
    assert [(s.image, s.side, s.reason) for s in found.skipped] == [
        ("11.jpg", "candidate", "the model crashed"),
        ("x.jpg", "reference", "cannot be decoded"),
    ]


def test_photos_that_the_models_see_no_common_part_of_are_skipped(monkeypatch):
    from onnxcam.comparison import explanations

    def common(first, grid, second, other):
        if first.photo == (60, 60):
            raise InputError("The models see no common part of the photo.")
        return met(first, grid, second, other)

    met = explanations.common
    monkeypatch.setattr(explanations, "common", common)
    sizes = [[100, 100], [60, 60], [100, 100]]
    one = recording(hot(0, 1, 2), spots((0, 0), (1, 1), (2, 2)), sizes=sizes)
    found = compare(one, one)
    assert [row.image for row in found.rows] == ["0.jpg", "2.jpg"]
    assert [(s.image, s.side, s.reason) for s in found.skipped] == [
        ("1.jpg", "both", "The models see no common part of the photo")
    ]
    assert [row.verdict for row in found.rows] == ["same reason"] * 2


def test_the_same_recordings_give_the_same_comparison_as_plain_values():
    one, two = random_side(), random_side(seed=1)
    assert compare(one, two) == compare(one, two)
    assert compare(one, two, seed=7).seed == 7
    told = json.loads(json.dumps(compare(one, two).data(), allow_nan=False))
    assert len(told["rows"]) == 12
    assert told["judged"] == {"reference": "last", "candidate": "last"}


def test_sides_that_change_places_agree_as_much():
    one = random_side(preprocess=Preprocess(size=(50, 50)))
    rng = np.random.default_rng(9)
    two = recording(
        rng.normal(size=(12, 7)),
        rng.random((12, 8, 6)),
        preprocess=Preprocess(size=(64, 64), fit="letterbox"),
    )
    there, back = compare(one, two), compare(two, one)
    for name in MEASURES:
        told = [dataclasses.asdict(found.statistics[name]) for found in (there, back)]
        assert told[0] == pytest.approx(told[1], abs=1e-9)
    shares = [(c.shares["same_answer"].mean, c.shares["same_reason"].mean) for c in (there, back)]
    assert shares[0] == shares[1]


def test_many_photos_are_the_same_in_one_part_or_in_several(monkeypatch):
    from onnxcam.comparison import explanations, verdict

    one, two = random_side(30), random_side(30, seed=1)
    whole = compare(one, two)
    monkeypatch.setattr(explanations, "_CHUNK", 7)
    monkeypatch.setattr(verdict, "_CHUNK", 7)
    assert compare(one, two) == whole


# Bad input


def test_fewer_than_two_photos_are_refused():
    one = random_side(2)
    with pytest.raises(
        InputError,
        match=r"at least 2 photos that both sides explain, and there is 1\. 1 are skipped; the first is "
        r"'1.jpg' \(candidate\): too dark\. Record both",
    ):
        compare(one, random_side(1, skipped=[("1.jpg", "too dark")]))
    with pytest.raises(InputError, match=r"and there are none\. 4 are skipped"):
        compare(one, random_side(2, names=["a", "b"], sha256=["x", "y"]))


def test_different_methods_and_tasks_are_refused():
    one = random_side()
    with pytest.raises(InputError, match=r"The methods differ: .*'gradcam'.*'layercam'.*\(`--method`\)"):
        compare(one, random_side(method="layercam"))
    with pytest.raises(
        InputError, match=r"The tasks differ: .*'classification'.*'regression'.*\(`--score`\)"
    ):
        compare(one, random_side(task="regression"))


def test_different_class_lists_and_layers_are_refused():
    one = random_side()
    with pytest.raises(
        InputError, match=r"The class lists differ \(7 and 7 classes\): the candidate lacks 'ant'"
    ):
        compare(one, relabelled(one, ("ape", *LABELS[1:])))
    layers = {"neck": RNG.random((12, 2, 2)), "head": RNG.random((12, 3, 3))}
    with pytest.raises(InputError, match="no layer in common"):
        compare(one, recording(hot(*range(7), 0, 0, 0, 0, 0), layers))


def test_a_class_without_a_label_is_refused_where_labels_decide():
    maps = spots((0, 0), (1, 1))
    one = relabelled(recording(None, maps, class_ids=[0, 1]), ("ant", "bee"))
    two = relabelled(recording(None, maps, class_ids=[0, 5]), ("bee", "ant"))
    with pytest.raises(InputError, match=r"explains class 5, and has labels for 2 classes\. Record"):
        compare(one, two)


@pytest.mark.parametrize(
    ("measure", "threshold", "message"),
    [
        ("pearson", 1.1, r"threshold of pearson is a number between -1 and 1, not 1\.1"),
        ("js", -0.1, r"threshold of js is a number between 0 and 1, not -0\.1"),
        ("pearson", float("nan"), "threshold of pearson is a number between -1 and 1, not nan"),
        ("pearson", "high", "threshold of pearson is a number between -1 and 1, not 'high'"),
        (
            "js",
            None,
            r"which js on a reason is the same is for you to say \(`--threshold`\): between 0 and 1, lower",
        ),
    ],
)
def test_unusable_thresholds_are_refused(measure, threshold, message):
    one = random_side()
    with pytest.raises(InputError, match=message):
        compare(one, one, measure=measure, threshold=threshold)


def test_unknown_measures_layers_and_seeds_are_refused():
    one = random_side()
    with pytest.raises(MetricError, match="No measure of agreement 'pearsn'"):
        compare(one, one, measure="pearsn")
    with pytest.raises(MetricError, match="No measure of agreement 'jss'"):
        compare(one, one, measures=["jss"])
    with pytest.raises(InputError, match="'first', to be judged by, is not compared"):
        compare(one, one, judge="first")
    with pytest.raises(InputError, match=r"seed of the bootstrap is a whole number of at least 0, not -1"):
        compare(one, one, seed=-1)
