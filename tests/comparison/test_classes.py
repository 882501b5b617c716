"""Which class is which on two sides."""

import numpy as np
import pytest

from onnxcam.comparison.classes import matched
from onnxcam.errors import InputError

ABC = ("ant", "bee", "cat")


def test_equal_lists_keep_their_numbers():
    found = matched(ABC, list(ABC))
    assert found.order is None
    assert found.labels == ABC
    assert found.note == ""
    np.testing.assert_array_equal(found.to_reference(np.array([2, -1])), [2, -1])


def test_equal_lists_may_have_a_label_twice():
    assert matched(("crane", "crane", "ox"), ("crane", "crane", "ox")).order is None


def test_another_order_is_matched_by_label():
    found = matched(ABC, ("cat", "ant", "bee"))
    np.testing.assert_array_equal(found.to_reference(np.array([0, 1, 2, -1])), [2, 0, 1, -1])
    np.testing.assert_array_equal(found.columns(np.array([[30, 10, 20]], np.float32)), [[10, 20, 30]])
    assert found.labels == ABC
    assert "matched by label" in found.note


@pytest.mark.parametrize(
    ("sides", "counts", "side"),
    [
        ((ABC, None), (3, 3), "candidate"),
        ((None, ABC), (None, 3), "reference"),
        ((None, ABC), (3, 3), "reference"),
    ],
    ids=str,
)
def test_a_side_without_labels_takes_the_others_by_number(sides, counts, side):
    found = matched(*sides, counts)
    assert found.order is None
    assert found.labels == ABC
    assert f"The {side} has no labels" in found.note


def test_sides_without_any_labels_are_matched_by_number():
    assert matched(None, None, (5, 5)).labels is None
    assert matched(None, None).note == ""


@pytest.mark.parametrize(
    ("sides", "counts", "message"),
    [
        ((ABC, None), (3, 4), "has 3 classes and the candidate 4, and the candidate has no labels"),
        ((None, ABC), (4, 3), "has 4 classes and the candidate 3, and the reference has no labels"),
        ((None, None), (3, 4), "and neither has labels to match them by. Give them"),
    ],
    ids=["candidate", "reference", "both"],
)
def test_different_counts_without_labels_are_refused(sides, counts, message):
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        matched(*sides, counts)


def test_different_lists_are_refused_with_the_difference():
    with pytest.raises(InputError) as caught:
        matched((*ABC, "dog"), ("ant", "bee", "eel", "fox"))
    assert str(caught.value) == (
        "The class lists differ (4 and 4 classes): the candidate lacks 'cat', 'dog'; the reference lacks "
        "'eel', 'fox'. Give both sides the same labels (`--labels`), or compare models of the same classes."
    )


def test_only_the_first_missing_names_are_listed():
    with pytest.raises(InputError, match=r"lacks 'c0', 'c1', 'c2', 'c3', 'c4' and 7 more\. Give"):
        matched(("x", *(f"c{i}" for i in range(12))), ("x",))


@pytest.mark.parametrize("other", ["Bee", " bee", "be e", "b_ee"])
def test_case_and_spaces_count_but_are_pointed_to(other):
    with pytest.raises(
        InputError, match=f"'bee' and '{other}' differ in case or spaces alone: labels are comp"
    ):
        matched(ABC, ("ant", other, "cat"))


def test_a_label_that_is_there_twice_cannot_be_put_in_order():
    with pytest.raises(InputError, match="different orders, and 'crane' is there more than once"):
        matched(("crane", "ox", "crane"), ("ox", "crane", "crane"))
    with pytest.raises(InputError, match="and 'a', 'b' are there more than once"):
        matched(("a", "b", "a", "b"), ("a", "a", "b", "b"))
    # How often counts, too.
    with pytest.raises(InputError, match="the candidate lacks 'crane'; the reference lacks 'ox'"):
        matched(("crane", "ox", "crane"), ("ox", "crane", "ox"))
