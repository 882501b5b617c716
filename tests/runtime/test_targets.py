from __future__ import annotations

import numpy as np
import pytest

from onnxcam import errors, targets
from onnxcam.contract import Score, Seed

LABELS = (
    "tabby, tabby cat",
    "crane",
    "crane",
    "Grass snake, ringneck",
    "tabby",
    "hot pot, pot",
    "pot, kettle",
)


def rows(target, images=2, classes=7, labels=LABELS):
    found = targets.resolve(target, images, classes, labels)
    assert found.image_index.dtype == found.class_index.dtype == np.int64
    return list(zip(found.image_index.tolist(), found.class_index.tolist(), strict=True))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [(0, -1), (1, -1)]),
        (3, [(0, 3), (1, 3)]),
        (np.int32(3), [(0, 3), (1, 3)]),
        ("kettle", [(0, 6), (1, 6)]),
        ("GRASS SNAKE", [(0, 3), (1, 3)]),
        ("tabby", [(0, 4), (1, 4)]),  # the whole label first
        ("tabby cat", [(0, 0), (1, 0)]),
        ([5, 2], [(0, 5), (1, 2)]),
        ((5, None), [(0, 5), (1, -1)]),
        (np.array([5, 2]), [(0, 5), (1, 2)]),
        (np.array([[5, 2], [0, 1]]), [(0, 5), (0, 2), (1, 0), (1, 1)]),
        ([["kettle", 2, None], 1], [(0, 6), (0, 2), (0, -1), (1, 1)]),
        ([np.array([5, 2]), np.int64(1)], [(0, 5), (0, 2), (1, 1)]),
    ],
)
def test_targets(target, expected):
    assert rows(target) == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (7, "Class index 7 is out of range: the model has 7 classes, 0 to 6"),
        (-1, r"Class index -1 is negative; write None for each image's top class \(leave --target out\)\."),
        ([0, 70], "Class index 70 is out of range"),
        (True, r"A target is a class index, a label or None, not True \(bool\)"),
        ([np.True_, 1], r"not np.True_ \(bool\)"),
        (1.0, r"not 1.0 \(float\)"),
        ([0], "target has 1 entry for 2 images; a list has one entry per image"),
        ([0, 1, 2], "target has 3 entries for 2 images"),
        ([[], [1]], r"target\[0\] is empty; name at least one class"),
        ([[[1]], 1], r"not \[1\] \(list\)"),
        ("crane", r"'crane' is ambiguous: it is that of 1 \('crane'\), 2 \('crane'\). Give the class index"),
        ("pot", r"'pot' is ambiguous: it is that of 5 \('hot pot, pot'\), 6 \('pot, kettle'\)"),
        ("tabbi", "no label 'tabbi' among the 7 recorded. Nearest: 'tabby'"),
    ],
)
def test_unusable_targets(target, message):
    with pytest.raises(errors.TargetError, match=message):
        rows(target)


def test_one_image_and_several_classes_need_two_brackets():
    with pytest.raises(errors.TargetError, match=r"For several classes of one image write \[\[281, 282\]\]"):
        rows([1, 2], images=1)
    assert rows([[1, 2]], images=1) == [(0, 1), (0, 2)]


def test_labels_without_labels():
    with pytest.raises(
        errors.TargetError,
        match=r"'cat' cannot be looked up: the file records no labels\. .* the labels: `--labels`, or label",
    ):
        rows("cat", labels=None)


def test_one_class_is_one():
    with pytest.raises(
        errors.TargetError, match=r"Class index 3 is out of range: the model has one class, 0\.$"
    ):
        rows(3, classes=1)


@pytest.mark.parametrize(
    ("classes", "others"),
    [(1, "no class"), (2, "1 class"), (3, "1 to 2 classes"), (None, "1 or more classes")],
)
def test_how_many_classes_a_finer_may_refer_to(classes, others):
    score = Score("y", "y", seeds=(Seed("y", "y", "cam.seed", (None, classes)),))
    with pytest.raises(errors.TargetError, match=rf"^A Finer has {others} to refer to, not 0\.$"):
        targets.resolve(targets.Finer(references=0), 1, classes, None, score)


def test_an_unknown_number_of_classes_is_not_checked():
    assert rows(1000, classes=None) == [(0, 1000), (1, 1000)]
