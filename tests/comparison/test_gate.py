"""A gate passes, fails, or says that it could not judge."""

import json

import numpy as np
import pytest
from comparison.recordings import hot, recording, spots

from onnxcam.comparison import agreement, compare, gate
from onnxcam.comparison.gate import Criterion, judge, load, parse
from onnxcam.errors import InputError, MetricError


def comparison(same=3, elsewhere=1, wrong=1, skipped=0, **more):
    """Of photos with the same answer and map, with another map, and with another answer."""
    count = same + elsewhere + wrong
    first = spots(*[(0, 0)] * count)
    second = spots(*[(0, 0)] * same, *[(4, 4)] * elsewhere, *[(0, 0)] * wrong)
    lost = tuple((f"lost{i}.jpg", "cannot be decoded") for i in range(skipped))
    one = recording(hot(*[0] * count), first)
    two = recording(hot(*[0] * (same + elsewhere), *[1] * wrong), second, skipped=lost)
    return compare(one, two, **more)


# Criteria


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pearson.mean >= 0.9", Criterion("pearson", "mean", 0.9, "higher")),
        ("pearson>=.9", Criterion("pearson", "mean", 0.9, "higher")),
        ("js.p95 <= 0.1", Criterion("js", "p95", 0.1, "lower")),
        ("js = 0.1", Criterion("js", "mean", 0.1, "lower")),
        ("same_answer = 0.99", Criterion("same_answer", "mean", 0.99, "higher")),
        (" same_answer.low == 97e-2 ", Criterion("same_answer", "low", 0.97, "higher")),
        ("top5 ≥ 1", Criterion("top5", "mean", 1, "higher")),
        ("score_difference.worst ≤ 12", Criterion("score_difference", "worst", 12, "lower")),
        ("spearman.median >= -0.5", Criterion("spearman", "median", -0.5, "higher")),
    ],
)
def test_criteria_are_read_as_they_are_written(text, wanted):
    assert parse(text) == wanted
    assert parse(wanted.text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pearson", r"'pearson' is not written as \"same_answer >= 0.99\" or"),
        ("pearson > 0.9", "is not written as"),
        ("pearson >= high", "asks for 'high', which is no number"),
        ("pearson >= nan", "bound of pearson is a number between -1 and 1, not nan"),
        ("pearson >= 1.01", r"bound of pearson is a number between -1 and 1, not 1\.01"),
        ("same_answer >= 99", "bound of same_answer is a number between 0 and 1, not 99"),
        ("js <= -0.1", r"bound of js is a number between 0 and 1, not -0\.1"),
        ("score_difference <= -1", "bound of score_difference is a number between 0 and infinity"),
        ("pearson <= 0.9", r"bounds pearson from the wrong side: higher is better\. Write >="),
        ("js >= 0.9", r"bounds js from the wrong side: lower is better\. Write <="),
        (
            "person >= 0.9",
            r"no quantity 'person' to be judged\. Nearest: 'pearson'.*There are: same_answer, same_r",
        ),
        ("pearson.max >= 0.9", r"no pearson\.max\..* There are: pearson\.mean, pearson\.low"),
        (
            "same_answer.p05 >= 0.9",
            r"no same_answer\.p05\..* There are: same_answer\.mean, same_answer\.low, same",
        ),
        ("pearson. >= 0.9", r"no pearson\.\."),
    ],
)
def test_unusable_criteria_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


def test_every_measure_can_be_asked_for():
    for name in agreement.names():
        measure = agreement.get(name)
        sign = ">=" if measure.better == "higher" else "<="
        assert parse(f"{name}.p95 {sign} {measure.best}").better == measure.better
    asked = [parse(text) for text in ("emd <= 0.1", "same_answer = 1", "emd.low <= 0.1", "js = 0")]
    assert gate.measures_of(asked) == ["emd", "js"]


# Judgements


def test_a_gate_passes_where_everything_is_reached():
    judged = judge(comparison(), ["same_answer >= 0.8", "same_reason >= 0.6", "js.median <= 0"])
    assert (judged.status, judged.exit_status, judged.reason) == ("passed", 0, "")
    assert [one.found for one in judged.findings] == pytest.approx([0.8, 0.6, 0])
    assert [one.passed for one in judged.findings] == [True] * 3
    assert judged.findings[0].why == "found 0.8"


def test_a_gate_fails_with_the_worst_photos_where_one_thing_is_missed():
    judged = judge(
        comparison(), ["same_answer >= 0.81", "same_reason >= 0.6", "same_reason >= 0.9", "js.worst <= 0.5"]
    )
    assert (judged.status, judged.exit_status) == ("failed", 1)
    assert [one.passed for one in judged.findings] == [False, True, False, False]
    assert [one.worst for one in judged.findings] == [
        ("4.jpg: ant -> bee",),
        (),
        ("3.jpg: other reason, pearson -0.04167", "4.jpg: other answer, ant -> bee"),
        ("3.jpg: js 1", "0.jpg: js 0", "1.jpg: js 0", "2.jpg: js 0", "4.jpg: js 0"),
    ]
    assert str(judged).splitlines() == [
        "gate: failed",
        "  same_answer >= 0.81  FAILED      found 0.8",
        "                         4.jpg: ant -> bee",
        "  same_reason >= 0.6   passed      found 0.6",
        "  same_reason >= 0.9   FAILED      found 0.6",
        "                         3.jpg: other reason, pearson -0.04167",
        "                         4.jpg: other answer, ant -> bee",
        "  js.worst <= 0.5      FAILED      found 1",
        "                         3.jpg: js 1",
        "                         0.jpg: js 0",
        "                         1.jpg: js 0",
        "                         2.jpg: js 0",
        "                         4.jpg: js 0",
    ]


@pytest.mark.parametrize("part", gate.PARTS)
@pytest.mark.parametrize("name", ["pearson", "peak", "score_difference"])
def test_bounds_hold_at_the_value_itself(name, part):
    found = comparison()
    told = getattr(found.statistics[name], part)
    sign, step = (">=", 1e-6) if name == "pearson" else ("<=", -1e-6)
    if -1 < told < 1 and told > 0:
        assert judge(found, [f"{name}.{part} {sign} {told!r}"]).status == "passed"
        assert judge(found, [f"{name}.{part} {sign} {told + step!r}"]).status == "failed"


def test_the_lower_bound_of_the_interval_can_be_asked_for():
    found = comparison(same=18, elsewhere=0, wrong=2)
    low = found.shares["same_answer"].low
    assert low < 0.9
    assert judge(found, ["same_answer >= 0.9"]).status == "passed"
    assert judge(found, ["same_answer.low >= 0.9"]).status == "failed"
    assert judge(found, [Criterion("same_answer", "low", low, "higher")]).status == "passed"


def test_the_mean_of_equal_shares_passes_at_its_own_value():
    # 0.1 + ... is not exactly what is written.
    found = comparison(same=7, elsewhere=2, wrong=1)
    assert judge(found, ["same_answer >= 0.9", "same_reason >= 0.7"]).status == "passed"


def test_too_many_skipped_photos_could_not_be_judged():
    found = comparison(skipped=1)
    assert judge(found, ["same_answer >= 0.5"], max_skipped=0.2).status == "passed"
    judged = judge(found, ["same_answer >= 0.5"])
    assert (judged.status, judged.exit_status) == ("could not judge", 2)
    assert judged.reason == (
        "1 of 6 photos are skipped, and a share of 0.1 may be (max_skipped); the first is 'lost0.jpg' "
        "(candidate): cannot be decoded"
    )
    assert judged.findings[0].passed
    # Even where a criterion is missed: of the photos that are left that may not be so.
    assert judge(found, ["same_answer >= 1"]).status == "could not judge"
    assert judge(comparison(same=7, skipped=1), ["same_answer >= 0.5"]).status == "passed"  # 1 of 10
    many = comparison(same=69, skipped=29)  # of 100
    assert judge(many, ["same_answer >= 0.5"], max_skipped=0.29).status == "passed"
    assert judge(many, ["same_answer >= 0.5"], max_skipped=0.289).status == "could not judge"


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "all", True])
def test_unusable_shares_of_skipped_photos_are_refused(share):
    with pytest.raises(InputError, match="max_skipped is a share between 0 and 1, not"):
        judge(comparison(), ["same_answer >= 0.5"], share)


def test_what_is_not_known_is_not_judged():
    found = comparison(measures=["cosine"])
    judged = judge(found, ["js <= 0.5", "same_answer >= 0.5", "top5 >= 0.5"])
    assert (judged.status, judged.exit_status) == ("could not judge", 2)
    assert judged.findings[0].passed is None
    assert judged.reason == "js.mean <= 0.5: js was not measured: name it among the measures"
    nothing = recording(hot(0, 1), np.zeros((2, 5, 5)))
    empty = compare(recording(hot(0, 1), spots((0, 0), (1, 1))), nothing)
    judged = judge(empty, ["pearson >= 0.5"])
    assert judged.status == "could not judge"
    assert judged.reason == "pearson.mean >= 0.5: pearson is not defined for any of the 2 photos"
    # The share of same reasons counts what is undefined as another reason.
    assert judge(empty, ["same_reason >= 0.5"]).status == "failed"
    assert (
        judge(empty, ["same_reason >= 0.5"]).findings[0].worst[0] == "0.jpg: other reason, pearson undefined"
    )


def test_photos_where_a_measure_is_undefined_are_told():
    one = recording(hot(0, 0, 0), spots((0, 0), (0, 0), (0, 0)))
    two = recording(hot(0, 0, 0), np.concatenate([spots((0, 0), (0, 0)), np.zeros((1, 5, 5))]))
    assert (
        judge(compare(one, two), ["pearson >= 0.5"]).findings[0].why == "found 1, defined for 2 of 3 photos"
    )


def test_the_worst_of_each_quantity_come_first():
    table = hot(0, 0, 0)
    other = table.copy()
    other[1, 0], other[2, 0] = 2, 1
    found = compare(recording(table, spots(*[(0, 0)] * 3)), recording(other, spots(*[(0, 0)] * 3)))
    worst = judge(found, ["score_difference.worst <= 0"]).findings[0].worst
    assert [one.split(":")[0] for one in worst] == ["2.jpg", "1.jpg", "0.jpg"]
    top = judge(found, ["top5 >= 1"])
    assert top.status == "passed"
    other = table[:, ::-1].copy()
    other[0] = table[0]
    found = compare(recording(table, spots(*[(0, 0)] * 3)), recording(other, spots(*[(0, 0)] * 3)))
    assert judge(found, ["top5 >= 1"]).findings[0].worst[-1] == "0.jpg: top5 1"


def test_the_surest_of_other_answers_come_first():
    sure, unsure = hot(1)[0], hot(1)[0]
    unsure[0] = unsure[1] - 0.1
    one = recording(hot(0, 0, 0), spots(*[(0, 0)] * 3))
    two = recording([unsure, hot(0)[0], sure], spots(*[(0, 0)] * 3))
    worst = judge(compare(one, two), ["same_answer >= 1"]).findings[0].worst
    assert worst == ("2.jpg: ant -> bee", "0.jpg: ant -> bee")


def test_reasons_that_cannot_be_seen_are_worse_than_others():
    one = recording(hot(0, 0, 0), spots((0, 0), (0, 0), (0, 0)))
    two = recording(hot(0, 0, 0), np.concatenate([spots((0, 0), (4, 4)), np.zeros((1, 5, 5))]))
    for more in ({}, {"measure": "peak", "threshold": 0.1}):
        worst = judge(compare(one, two, **more), ["same_reason >= 1"]).findings[0].worst
        assert [line.split(",")[0] for line in worst] == ["2.jpg: other reason", "1.jpg: other reason"]


def test_a_gate_without_criteria_is_refused():
    with pytest.raises(InputError, match=r"at least one criterion: --require .*\[gate\]"):
        judge(comparison(), [])


def test_what_could_not_be_compared_could_not_be_judged():
    judged = gate.unable(InputError("A comparison needs at least 2 photos."))
    assert (judged.exit_status, judged.findings) == (2, ())
    assert str(judged) == "gate: could not judge: A comparison needs at least 2 photos."


def test_judgements_are_plain_values():
    told = json.loads(json.dumps(judge(comparison(), ["same_answer >= 0.9"]).data(), allow_nan=False))
    assert told == {
        "status": "failed",
        "reason": "",
        "criteria": [
            {
                "text": "same_answer >= 0.9",
                "wanted": 0.9,
                "found": 0.8,
                "passed": False,
                "why": "found 0.8",
                "worst": ["4.jpg: ant -> bee"],
            }
        ],
    }


# Files


def written(tmp_path, text):
    path = tmp_path / "gate.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_gate_is_read_from_toml(tmp_path):
    found = load(
        written(
            tmp_path,
            '[gate]\nsame_answer = 0.99\n"pearson.low" = 0.9\npearson.p05 = 0.5\njs = 0\nmax_skipped = 0.05\n'
            '[verdict]\nmeasure = "spearman"\nthreshold = 0.7\n',
        )
    )
    assert [one.text for one in found.criteria] == [
        "same_answer >= 0.99",
        "pearson.low >= 0.9",
        "pearson.p05 >= 0.5",
        "js.mean <= 0",
    ]
    assert (found.max_skipped, found.measure, found.threshold) == (0.05, "spearman", 0.7)
    empty = load(written(tmp_path, ""))
    assert (empty.criteria, empty.max_skipped, empty.measure, empty.threshold) == ((), 0.1, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gate", "is no TOML"),
        ("[gates]\n", r"There is no table 'gates'\. Nearest: 'gate'\. There are: gate, verdict"),
        ("gate = 3\n", r"gate is a table, \[gate\], not 3"),
        ("[verdict]\nmesure = 1\n", r"no key of \[verdict\] 'mesure'\. Nearest: 'measure'"),
        ("[gate]\nsame_anwer = 0.9\n", r"no quantity 'same_anwer' to be judged\. Nearest: 'same_answer'"),
        ("[gate]\npearson.lowest = 0.9\n", r"no pearson\.lowest\. Nearest: 'low'"),
        ("[gate]\nsame_answer = 99\n", "bound of same_answer is a number between 0 and 1, not 99"),
        ("[gate]\nsame_answer = true\n", "bound of same_answer is a number between 0 and 1, not True"),
        (
            '[gate]\nsame_answer = ">= 0.9"\n',
            "bound of same_answer is a number between 0 and 1, not '>= 0.9'",
        ),
        ("[gate]\nmax_skipped = 2\n", "max_skipped is a share between 0 and 1, not 2"),
        ('[verdict]\nthreshold = "high"\n', r"threshold of \[verdict\] is a number, not 'high'"),
        ('[verdict]\nmeasure = "pearsn"\n', "No measure of agreement 'pearsn'"),
    ],
    ids=lambda value: value.replace("\n", " ")[:40],
)
def test_unusable_files_are_refused_by_name(tmp_path, text, message):
    with pytest.raises((InputError, MetricError), match=f"gate .*gate.toml'.*{message}"):
        load(written(tmp_path, text))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"gate '.*none\.toml' cannot be read: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bytes\.toml' is no TOML"):
        load(tmp_path / "bytes.toml")
