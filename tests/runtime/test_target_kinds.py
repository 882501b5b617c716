"""Targets that are more than a class: regions, boxes, references, contrasts and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcam import Explainer
from onnxcam.contract import BOX, REGION, Score, Seed
from onnxcam.errors import TargetError
from onnxcam.methods import Method
from onnxcam.preprocess import Geometry, box_to_input, box_to_photo, mask_to_input, resize_mask
from onnxcam.targets import Box, Contrast, Finer, Region, Similar, Weights, resolve, stacked

from .. import nets

pytest.importorskip("onnx_ir")
from onnxcam.export import rewrite_onnx

PHOTOS = {"preprocess": {"size": (8, 8), "fit": "stretch", "antialias": False}}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Explainer]:
    folder = tmp_path_factory.mktemp("files")
    body = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Tanh(c) "
    parts = nets.weights(w=(4, 3, 3, 3), b=(4,), v=(3, 4, 1, 1), u=(6, 4, 1, 1))
    shape = {"s": np.array([0, 6, -1])}
    made = {
        "segmentation": (body + "y = Conv(r, v)", "float[N,3,8,8] y", {}, {}),
        "detection": (
            body + "h = Conv(r, u) f = Reshape(h, s) y = Transpose<perm=[0,2,1]>(f)",
            "float[N,64,6] y",
            shape,
            {"score": {"task": "detection", "head": "yolov5"}},
        ),
        "embedding": (
            body + "g = GlobalAveragePool(r) y = Flatten(g)",
            "float[N,4] y",
            {},
            {"score": {"task": "embedding"}},
        ),
        "classification": (
            body + "g = GlobalAveragePool(r) h = Conv(g, u) y = Flatten(h)",
            "float[N,6] y",
            {},
            {"score": {"seed": True}, "labels": [*"abcdef"]},
        ),
        "regression": (
            body + "g = GlobalAveragePool(r) h = Conv(g, u) y = Flatten(h)",
            "float[N,6] y",
            {},
            {"score": {"task": "regression"}},
        ),
    }
    opened = {}
    for name, (text, output, more, options) in made.items():
        source = folder / f"{name}.onnx"
        onnx.save(nets.model(text, outputs=output, initializers={**parts, **more}), source)
        rewrite_onnx(source, folder / f"{name}.cam.onnx", "r", **{**PHOTOS, **options})
        opened[name] = Explainer(folder / f"{name}.cam.onnx", "cpu", max_batch=2)
    return opened


def tensors(count: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


def photos(count: int = 3, size: tuple[int, int] = (16, 12)) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


# -- each kind -----------------------------------------------------------------------------------------


def test_a_region_of_a_class(files):
    x, explainer = tensors(), files["segmentation"]
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    found = explainer.explain_tensor(x, target=Region(1, mask))
    np.testing.assert_array_equal(found.class_ids, [1, 1, 1])
    np.testing.assert_allclose(found.scores, found.outputs["y"][:, 1, :4].sum((1, 2)), rtol=1e-5)
    # Behind a 1x1 convolution the gradient is the class's weight inside the region, and nothing outside.
    weights = nets.weights(w=(4, 3, 3, 3), b=(4,), v=(3, 4, 1, 1))["v"][1, :, 0, 0]
    by_hand = explainer.explain_tensor(x, target=Region(1, mask), method="hirescam").maps
    activations = np.tanh(conv(x))
    wanted = np.einsum("nchw,c->nhw", activations, weights) * mask
    np.testing.assert_allclose(by_hand, wanted, atol=1e-4)


def conv(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    w = nets.weights(w=(4, 3, 3, 3), b=(4,))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("nchwij,mcij->nmhw", windows, w["w"]) + w["b"][:, None, None]


def test_the_region_of_a_photo_lies_where_the_photo_does(files):
    explainer = files["segmentation"]
    images = photos(3, (16, 24))
    mask = np.zeros((16, 24), np.float32)
    mask[:, 12:] = 1
    found = explainer.explain(images, target=Region(2, mask))
    np.testing.assert_allclose(found.scores, found.outputs["y"][:, 2, :, 4:].sum((1, 2)), rtol=1e-4)


def test_images_with_and_without_a_region_share_a_call(files):
    x, explainer = tensors(), files["segmentation"]
    mixed = explainer.explain_tensor(x, target=[None, [Region(0), Region(0, np.ones((4, 4)))], 2])
    np.testing.assert_array_equal(mixed.image_index, [0, 1, 1, 2])
    np.testing.assert_allclose(mixed.scores[2], mixed.outputs["y"][1, 0].sum(), rtol=1e-4)
    top = explainer.explain_tensor(x)
    np.testing.assert_allclose(mixed.scores[0], top.scores[0], rtol=1e-6)


def test_a_box_of_a_photo(files):
    explainer = files["detection"]
    images = photos()
    top = explainer.explain(images)
    assert top.boxes.shape == (3, 4)
    # The box that comes out is the one that goes in.
    again = explainer.explain(images, target=[Box(widened(b)) for b in top.boxes])
    assert again.boxes.shape == (3, 4)
    assert len(again.overlay()) == 3
    framed, plain = explainer.explain(images[:1]).overlay()[0], photos()[0]
    assert framed.shape == plain.shape


@pytest.mark.parametrize(
    "target", [0, [None, 0], [[0, Box((0, 0, 4, 4))], None]], ids=["one", "two", "boxes"]
)
def test_classes_and_boxes_are_fed_to_several_images_each_on_its_own(files, target):
    """This detector has one class, so that what is made of the class's index has the shape of a score."""
    x, explainer = tensors(2), files["detection"]
    found = explainer.explain_tensor(x, target=target)
    each = target if isinstance(target, list) else [target] * 2
    alone = [explainer.explain_tensor(x[i : i + 1], target=[t]) for i, t in enumerate(each)]
    for name in ("scores", "boxes", "maps"):
        np.testing.assert_allclose(
            getattr(found, name), np.concatenate([getattr(a, name) for a in alone]), rtol=1e-4, atol=1e-5
        )


def widened(box: np.ndarray[Any, Any]) -> tuple[float, ...]:
    x1, y1, x2, y2 = map(float, box)
    return min(x1, x2), min(y1, y2), max(x1, x2) + 1, max(y1, y2) + 1


def test_similarity_to_another_image(files):
    x, explainer = tensors(), files["embedding"]
    before = explainer.explain_tensor(x)
    np.testing.assert_allclose(before.embeddings, before.outputs["y"], rtol=1e-6)
    reference = before.embeddings[0]
    found = explainer.explain_tensor(x, target=Similar(3 * reference))
    assert found.labels == ["similarity"] * 3
    assert found.class_ids.tolist() == [-1, -1, -1]
    np.testing.assert_allclose(found.scores[0], 1, rtol=1e-5)
    assert abs(found.scores[1]) <= 1 + 1e-5
    own = explainer.explain_tensor(x)
    np.testing.assert_allclose(own.scores, np.linalg.norm(own.outputs["y"], axis=1), rtol=1e-5)
    assert own.labels == ["", "", ""]


def test_a_contrast_is_the_difference_of_two_classes(files):
    x, explainer = tensors(), files["classification"]
    found = explainer.explain_tensor(x, target=Contrast("a", "c"))
    a, c = (explainer.explain_tensor(x, target=k).maps for k in ("a", "c"))
    np.testing.assert_allclose(found.maps, a - c, atol=1e-5)
    y = found.outputs["y"]
    np.testing.assert_allclose(found.scores, y[:, 0] - y[:, 2], rtol=1e-4, atol=1e-6)
    assert found.labels == ["a, not c"] * 3
    several = explainer.explain_tensor(x, target=Contrast(0, ["b", 2], weight=0.5))
    np.testing.assert_allclose(several.scores, y[:, 0] - 0.25 * (y[:, 1] + y[:, 2]), rtol=1e-4, atol=1e-6)
    assert several.labels[0] == "a, not b and c"


def test_weights_for_the_score(files):
    x, explainer = tensors(), files["classification"]
    y = explainer.explain_tensor(x).outputs["y"]
    for weights, label in (
        ({"b": 2.0, 5: -1}, "2 y[b] + -1 y[5]"),
        (np.array([0, 2, 0, 0, 0, -1]), "weighted y"),
        ({"y": {1: 2, "f": -1}}, "2 y[1] + -1 y[f]"),
    ):
        found = explainer.explain_tensor(x, target=Weights(weights))
        np.testing.assert_allclose(found.scores, 2 * y[:, 1] - y[:, 5], rtol=1e-4, atol=1e-6)
        assert found.labels == [label] * 3
    assert explainer.explain_tensor(x, target=Weights({0: 1.0}, "mine")).labels == ["mine"] * 3


def test_a_class_still_is_one_in_a_file_that_takes_weights(files):
    x, explainer = tensors(), files["classification"]
    found = explainer.explain_tensor(x, target=[["b", Contrast(0, 1)], None, "c"])
    assert found.labels == ["b", "a, not b", "abcdef"[found.outputs["y"][1].argmax()], "c"]
    assert found.class_ids[1] == -1


def test_weights_for_outputs_of_one_number():
    score = Score(
        "kind",
        "kind",
        seeds=(Seed("age", "age", "cam.seed.age", ("N", 1)), Seed("kind", "kind", "cam.seed.kind", ("N", 3))),
    )
    both = resolve(Weights({"age": 0.5, "kind": {2: 1.0}}), 1, 3, None, score)
    fed = stacked(both, ["cam.seed.age", "cam.seed.kind"])
    np.testing.assert_array_equal(fed["cam.seed.age"], [[0.5]])
    np.testing.assert_array_equal(fed["cam.seed.kind"], [[0, 0, 1]])
    assert both.names == ("0.5 age + 1 kind[2]",)
    contrast = stacked(resolve(Contrast(2, 0), 1, 3, None, score), ["cam.seed.kind"])
    np.testing.assert_array_equal(contrast["cam.seed.kind"], [[-1, 0, 1]])


# -- places ------------------------------------------------------------------------------------------


def proper(explainer: Explainer, count: int) -> np.ndarray[Any, Any]:
    """Images whose best detection has a width and a height, which this detector does not promise."""
    x = np.random.default_rng(1).standard_normal((60, 3, 8, 8)).astype(np.float32)
    boxes = explainer.explain_tensor(x).boxes
    assert boxes is not None
    found = x[(boxes[:, 2:] - boxes[:, :2] > 0.2).all(axis=1)]
    assert len(found) >= count
    return found[:count]


def spy(seen):
    """A method that scores three changed copies of each image."""

    def scores(masked):
        copies = np.random.default_rng(8).standard_normal((3, 3, 8, 8)).astype(np.float32)
        seen.append((copies, masked.inputs(lambda part: copies[part], 3)))
        return np.zeros((len(masked.targets.class_index), 2, 2), np.float32)

    return Method("spy", scores, ("masked",), "s", "M = 0")


@pytest.mark.parametrize(
    ("kind", "targets", "explicit"),
    [
        ("classification", [None, "b"], lambda clean: [int(clean.class_ids[0]), 1]),
        ("classification", [Contrast("a", "c")], lambda clean: [Contrast("a", "c")]),
        (
            "classification",
            [None, Weights({"b": 2.0})],
            lambda clean: [int(clean.class_ids[0]), Weights({1: 2.0})],
        ),
        ("regression", [4, 2], lambda clean: [4, 2]),
        (
            "segmentation",
            [None, 1],
            lambda clean: [
                Region(c, clean.outputs["y"][0].argmax(0) == c) for c in (int(clean.class_ids[0]), 1)
            ],
        ),
        ("segmentation", [Region(2, np.eye(8))], lambda clean: [Region(2, np.eye(8))]),
        (
            "detection",
            [None, Box((1, 1, 5, 4), 0)],
            lambda clean: [Box(tuple(b), int(c)) for b, c in zip(clean.boxes, clean.class_ids, strict=True)],
        ),
        (
            "embedding",
            [None, Similar([1, 0, 2, 0])],
            lambda clean: [Similar(clean.embeddings[0]), Similar([1, 0, 2, 0])],
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_changed_copies_are_asked_what_the_image_was(files, kind, targets, explicit):
    seen = []
    x = proper(files[kind], 2) if kind == "detection" else tensors(2)
    clean = files[kind].explain_tensor(x, spy(seen), [targets, targets[:1]])
    assert [scores.shape for _, scores in seen] == [(3, len(targets)), (3, 1)]
    for i, (copies, scores) in enumerate(seen):
        alone = files[kind].explain_tensor(x[i : i + 1], "hirescam", [targets[: scores.shape[1]]])
        np.testing.assert_allclose(clean.scores[clean.image_index == i], alone.scores, rtol=1e-5)
        for t, target in enumerate(explicit(alone)):
            if t < scores.shape[1]:
                expected = files[kind].explain_tensor(copies, "hirescam", target).scores
                np.testing.assert_allclose(scores[:, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["segmentation", "detection", "classification"])
def test_augmented_copies_are_asked_what_the_image_was(files, kind):
    """The mirrored image's map, mirrored back: of the same class, over the mirrored region and box."""
    x = proper(files[kind], 1) if kind == "detection" else tensors(1)
    plain = files[kind].explain_tensor(x, "hirescam")
    c = int(plain.class_ids[0])
    target = {
        "segmentation": lambda: Region(c, (plain.outputs["y"][0].argmax(0) == c)[:, ::-1]),
        "detection": lambda: Box(
            (8 - plain.boxes[0, 2], plain.boxes[0, 1], 8 - plain.boxes[0, 0], plain.boxes[0, 3]), c
        ),
        "classification": lambda: c,
    }[kind]()
    copies = [
        files[kind].explain_tensor(np.float32(x[..., ::-1] * f), "hirescam", target) for f in (0.9, 1, 1.1)
    ]
    if kind == "classification":
        target = c
    elif kind == "segmentation":
        target = Region(c, plain.outputs["y"][0].argmax(0) == c)
    else:
        target = Box(tuple(plain.boxes[0]), c)
    copies += [files[kind].explain_tensor(np.float32(x * f), "hirescam", target) for f in (0.9, 1, 1.1)]
    maps = [m.maps[..., ::-1] if k < 3 else m.maps for k, m in enumerate(copies)]
    smooth = files[kind].explain_tensor(x, "hirescam", smooth="tta")
    np.testing.assert_allclose(smooth.maps, np.mean(maps, axis=0), rtol=1e-3, atol=1e-6)
    assert smooth.passes == 7


def test_boxes_and_masks_go_through_a_letterbox():
    # A photo of 10 x 20 pixels, halved and set 3 down in an input of 12 x 10.
    geometry = Geometry((10, 20), (12, 10), (0.5, 0.5), (3.0, 0.0))
    box = np.array([4, 2, 12, 8], np.float32)
    np.testing.assert_allclose(box_to_input(box, geometry), [2, 4, 6, 7])
    np.testing.assert_allclose(box_to_photo(box_to_input(box, geometry), geometry), box)
    np.testing.assert_allclose(box_to_photo(np.array([-4, 0, 90, 90], np.float32), geometry), [0, 0, 20, 10])
    mask = np.zeros((10, 20), np.float32)
    mask[2:8, 4:12] = 1
    seen = mask_to_input(mask, geometry)
    assert seen.shape == (12, 10)
    assert seen.sum() == 3 * 4
    assert (seen[4:7, 2:6] == 1).all()
    np.testing.assert_array_equal(resize_mask(mask, (5, 10)), mask[1::2, 1::2])


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (
            "classification",
            Region(0),
            r"A Region is a target of a segmentation, and this file explains a classif",
        ),
        (
            "segmentation",
            Box((0, 0, 1, 1)),
            r"A Box is a target of a detection, and this file explains a segment",
        ),
        ("segmentation", Similar([1.0]), r"A Similar is a target of an embedding, and this file"),
        ("segmentation", Contrast(0, 1), r"The file takes no weights\. Rewrite the model with them"),
        (
            "segmentation",
            Region(0, np.ones(3)),
            r"takes 'cam.region' as float32 \(.*\), but the targets give \(3,\) for each image",
        ),
        (
            "segmentation",
            Region(0, np.full((3, 3), np.nan)),
            r"The mask of a Region is \(H, W\), bool or finite, not float64 \(3, 3\)",
        ),
        (
            "detection",
            Box((4, 0, 1, 1)),
            r"The corners of a Box are x1, y1, x2, y2 in pixels, x1 < x2 and y1 < y2",
        ),
        (
            "embedding",
            Similar(np.zeros(4)),
            r"The reference of a Similar is one embedding, finite and not zero",
        ),
        ("embedding", 3, r"The file explains an embedding, which has no classes"),
        (
            "regression",
            None,
            r"The model regresses 6 numbers, of which none is the top one: name one, 0 to 5",
        ),
        ("classification", Contrast("a", []), r"A Contrast needs at least one class to be set against"),
        (
            "classification",
            Contrast("a", None),
            r"A Contrast needs at least one class to be set against",
        ),
        (
            "classification",
            Contrast("a", "b", weight=np.nan),
            r"The weight of a Contrast is a finite number, such as 1\.0, not nan",
        ),
        ("classification", Finer(weight=np.nan), r"The weight of a Finer is a finite number, .* not nan"),
        ("classification", Finer(weight="1"), r"The weight of a Finer is a finite number, .* not '1'"),
        ("classification", Finer(references=2.5), r"A target is a class index, a label or None, not 2\.5"),
        ("classification", Weights("heavy"), r"The weights for 'y' have the shape \(\); one image's"),
        ("classification", Weights({"a": "heavy"}), r"The weights for 'y' are not finite"),
        ("detection", Box("wide"), r"The corners of a Box are x1, y1, x2, y2 in pixels, .* not 'wide'"),
        (
            "segmentation",
            Region(0, [[1, 0], [1]]),
            r"The mask of a Region is \(H, W\), bool or finite, not float64 \(0,\)",
        ),
        ("embedding", Similar("x"), r"The reference of a Similar is one embedding, finite and not zero"),
        ("classification", Contrast("a", "z"), r"There is no label 'z'"),
        (
            "classification",
            Weights(np.ones(5)),
            r"The weights for 'y' have the shape \(5,\); one image's entry has \(6,\)",
        ),
        ("classification", Weights([np.inf] * 6), r"The weights for 'y' are not finite"),
        ("classification", Weights({"q": 1.0}), r"There is no label 'q'"),
    ],
)
def test_targets_that_do_not_fit(files, kind, target, message):
    with pytest.raises(TargetError, match=message):
        files[kind].explain_tensor(tensors(), target=target)


def test_one_target_of_each_image_may_not_differ_in_shape(files):
    with pytest.raises(TargetError, match=r"The mask of a Region is \(5, 5\), but its photo is \(16, 12\)"):
        files["segmentation"].explain(photos(1), target=Region(0, np.ones((5, 5))))
    rows = resolve([Similar([1.0, 2]), Similar([1.0])], 2, None, None, Score("e", "e", task="embedding"))
    with pytest.raises(TargetError, match=r"The targets give 'cam\.reference' in several shapes"):
        stacked(rows, ["cam.reference"])


def test_weights_of_several_outputs_must_name_them():
    seeds = tuple(Seed(n, n, f"cam.seed.{n}", ("N", k)) for n, k in (("age", 1), ("kind", None)))
    score = Score("kind", "kind", seeds=seeds)
    with pytest.raises(
        TargetError, match=r"The file takes weights for 'age', 'kind': give \{output: weights\}"
    ):
        resolve(Weights({0: 1.0}), 1, 3, None, score)
    with pytest.raises(
        TargetError, match="How many numbers 'kind' has is not known: give weights as an array"
    ):
        resolve(Weights({"kind": {0: 1.0}}), 1, 3, None, score)


def test_masks_and_boxes_reach_the_file_by_their_names():
    assert (
        REGION in resolve(Region(0, np.ones((2, 2))), 1, 3, None, Score("", "", task="segmentation")).feeds[0]
    )
    assert BOX in resolve(Box((0, 0, 1, 1)), 1, 3, None, Score("", "", task="detection")).feeds[0]
