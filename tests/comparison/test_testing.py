"""The helper for tests of a deployment."""

import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
from comparison.recordings import hot, recording, spots

from onnxcam.errors import InputError
from onnxcam.testing import DEFAULT, assert_same_reasons

ONE = recording(hot(0, 1, 2, 3), spots((0, 0), (1, 1), (2, 2), (3, 3)))
TWO = recording(hot(0, 1, 2, 2), spots((0, 0), (1, 1), (4, 4), (3, 3)))


def test_a_model_that_agrees_passes_and_the_comparison_comes_back():
    found = assert_same_reasons(ONE, ONE)
    assert found.shares["same_reason"].mean == 1
    assert assert_same_reasons(ONE, TWO, same_answer=0.75, same_reason_mean=0.5, js=0.3).seed == 0


def test_paths_of_recordings_do_as_well(tmp_path):
    paths = [tmp_path / "one.npz", str(tmp_path / "two.npz")]
    for side, path in zip((ONE, TWO), paths, strict=True):
        side.save(path)
    assert_same_reasons(*paths, same_answer=0.75)
    with pytest.raises(AssertionError, match=r"same_answer >= 0\.76  FAILED"):
        assert_same_reasons(*paths, same_answer=0.76)


def test_the_message_is_a_table_of_all_that_was_asked():
    with pytest.raises(AssertionError) as caught:
        assert_same_reasons(ONE, TWO, require=["pearson.p05 >= -1"], same_answer=0.99, cosine_worst=0.5)
    assert str(caught.value).splitlines() == [
        "model.onnx against model.onnx, 4 photos at last: 2 same reason, 1 other reason, 1 other answer; "
        "0 skipped",
        "gate: failed",
        "  pearson.p05 >= -1    passed      found 0.1146",
        "  same_answer >= 0.99  FAILED      found 0.75",
        "                         3.jpg: dog -> cat",
        "  cosine.worst >= 0.5  FAILED      found 0",
        "                         2.jpg: cosine 0",
        "                         0.jpg: cosine 1",
        "                         1.jpg: cosine 1",
        "                         3.jpg: cosine 1",
    ]


def test_without_criteria_the_defaults_hold():
    with pytest.raises(AssertionError) as caught:
        assert_same_reasons(ONE, TWO)
    assert all(one in str(caught.value) for one in DEFAULT)


def test_the_verdicts_rule_and_the_pairs_can_be_named():
    assert_same_reasons(ONE, TWO, same_reason=0.75, measure="peak", threshold=1)
    assert_same_reasons(ONE, TWO, pairs=["last=last"], judge="last", same_answer=0.5)


def test_a_measure_that_is_asked_for_is_taken():
    pytest.importorskip("scipy.optimize")
    with pytest.raises(AssertionError, match=r"emd\.worst <= 0\.1  FAILED      found 0\.4"):
        assert_same_reasons(ONE, TWO, emd_worst=0.1)


def test_what_could_not_be_judged_is_not_passed():
    lost = recording(hot(0, 1, 2), spots((0, 0), (1, 1), (2, 2)), skipped=[("3.jpg", "crashed")])
    with pytest.raises(AssertionError, match=r"gate: could not judge: 1 of 4 photos are skipped.*crashed"):
        assert_same_reasons(ONE, lost, same_answer=0.5)
    assert_same_reasons(ONE, lost, same_answer=0.5, max_skipped=0.3)
    blank = recording(hot(0, 1, 2, 3), np.zeros((4, 5, 5)))
    with pytest.raises(
        AssertionError, match=r"not judge: pearson\.mean >= 0: pearson is not defined for any"
    ):
        assert_same_reasons(ONE, blank, pearson=0)


def test_mistakes_are_errors_of_their_own():
    with pytest.raises(InputError, match=r"no quantity 'pearsn' to be judged\. Nearest: 'pearson'"):
        assert_same_reasons(ONE, TWO, pearsn=0.5)
    with pytest.raises(InputError, match="bound of same_answer is a number between 0 and 1, not 99"):
        assert_same_reasons(ONE, TWO, same_answer=99)
    with pytest.raises(InputError, match="at least 2 photos"):
        assert_same_reasons(ONE, recording(hot(0), spots((0, 0))))


def test_models_are_asked_about_photos():
    demo = files("onnxcam.demo")
    model, photos = str(demo / "demo.cam.onnx"), [str(demo / name) for name in ("cat.jpg", "stars.jpg")]
    found = assert_same_reasons(model, model, photos, same_answer=1, same_reason=1, js=0)
    assert [row.image for row in found.rows] == ["cat.jpg", "stars.jpg"]
    with pytest.raises(InputError, match="at least 2 photos"):
        assert_same_reasons(model, model, photos[0])


def test_no_test_framework_is_imported():
    code = "import sys, onnxcam.testing; print({'pytest', 'torch', 'onnx', 'scipy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
