"""Which layers belong together."""

import pytest

from onnxcam.comparison.data import Pair
from onnxcam.comparison.layers import judged, paired
from onnxcam.errors import InputError


def names(pairs):
    return [(pair.reference, pair.candidate) for pair in pairs]


DEEP = {"layer1": (56, 56), "layer2": (28, 28), "layer3": (14, 14), "layer4": (7, 7)}


def test_layers_of_one_name_belong_together_in_the_references_order():
    other = {"layer4": (6, 6), "layer2": (24, 24), "head": (6, 6)}
    assert names(paired(DEEP, other)) == [("layer2", "layer2"), ("layer4", "layer4")]


def test_without_a_common_name_the_grids_decide_from_the_output_backwards():
    other = {"a": (28, 28), "b": (28, 28), "c": (7, 7), "d": (7, 7)}
    assert names(paired(DEEP, other)) == [("layer2", "b"), ("layer4", "d")]
    assert names(paired(other, DEEP)) == [("b", "layer2"), ("d", "layer4")]


def test_the_order_of_the_layers_is_kept_where_grids_come_back():
    # Down and up again, as in a U-Net; the other one ends at the bottom.
    down_up = {"in": 56, "low": 28, "out": 56}
    assert names(paired({"x": 56, "y": 28}, down_up)) == [("x", "in"), ("y", "low")]
    assert names(paired({"x": 28, "y": 56}, down_up)) == [("x", "low"), ("y", "out")]


def test_the_user_says_which():
    other = {"/f/1": (9, 9), "/f/2": (3, 3)}
    said = paired(DEEP, other, ["layer4 = /f/2", Pair("layer2", "/f/1"), ("layer4", "/f/2")])
    assert names(said) == [("layer2", "/f/1"), ("layer4", "/f/2")]
    assert [pair.name for pair in said] == ["layer2 = /f/1", "layer4 = /f/2"]
    assert names(paired(DEEP, DEEP, ["layer3"])) == [("layer3", "layer3")]


def test_a_layers_name_may_have_an_equals_sign():
    odd = {"a=b": (7, 7)}
    assert names(paired(odd, odd, ["a=b"])) == [("a=b", "a=b")]
    assert names(paired(odd, {"c": (7, 7)}, ["a=b=c"])) == [("a=b", "c")]


def test_the_only_layers_of_both_sides_belong_together():
    assert names(paired({"x": (7, 7)}, {"y": (14, 14)})) == [("x", "y")]


def test_no_common_layer_is_refused_with_both_lists():
    with pytest.raises(InputError) as caught:
        paired({"x": (7, 7)}, {"y": (14, 14), "z": 3})
    assert str(caught.value) == (
        "The two sides have no layer in common. The reference has 'x' (7×7); the candidate has 'y' (14×14), "
        "'z' (3). Say which belong together (`--pair REFERENCE=CANDIDATE`)."
    )
    with pytest.raises(InputError, match="The reference has none; the candidate has 'y'"):
        paired({}, {"y": (7, 7)})


def test_an_unknown_layer_is_refused_with_the_nearest():
    with pytest.raises(
        InputError, match=r"The reference has no layer 'layr4'\. Nearest: 'layer4'.*7×7.*REFERENCE="
    ):
        paired(DEEP, DEEP, ["layr4=layer4"])
    with pytest.raises(InputError, match=r"The candidate has no layer 'head'\. It has 'layer1'"):
        paired(DEEP, DEEP, ["layer4=head"])
    with pytest.raises(InputError, match=r"The reference has no layer 'xyz'"):
        paired(DEEP, DEEP, [("xyz", "layer4")])
    with pytest.raises(InputError, match=r"The candidate has no layer 'layer4'"):
        paired(DEEP, {"y": (7, 7)}, ["layer4"])


def test_the_deepest_pair_is_judged_unless_one_is_named():
    pairs = paired(DEEP, {"/f/1": 1, "/f/2": 2}, ["layer2=/f/1", "layer4=/f/2"])
    assert judged(pairs).reference == "layer4"
    for name in ("layer2", "layer2=/f/1", "layer2 = /f/1"):
        assert judged(pairs, name).reference == "layer2"
    with pytest.raises(InputError, match=r"'layer3', to be judged by, is not compared.*'layer2 = /f/1'"):
        judged(pairs, "layer3")
