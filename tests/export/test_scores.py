"""Every score of an explainable file: what is chosen, what it is worth, and its slope at the layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxcam import Explainer, contract
from onnxcam.contract import BOX, CHOSEN_BOX, CLASS, CLASS_INDEX, REFERENCE, REGION, SCORE, SEED
from onnxcam.errors import ScoreError, TargetError
from onnxcam.export import ScoreSpec, list_layers, rewrite_onnx
from onnxcam.targets import Region

from .. import nets

Array = np.ndarray[Any, Any]

# The layer r equals the image, so that the score's slope at r is its slope at the image.
EYE = {"eye": np.eye(3, dtype=np.float32)[..., None, None]}
SEGMENTATION = nets.model(
    "r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) y = Tanh(c)",
    "float[N,3,6,5] x",
    "float[N,4,6,5] y",
    {**nets.weights(w=(4, 3, 3, 3), b=(4,)), **EYE},
)
CHANNELS_LAST = nets.model(
    "r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) t = Tanh(c) y = Transpose<perm=[0,2,3,1]>(t)",
    "float[N,3,6,5] x",
    "float[N,6,5,4] y",
    {**nets.weights(w=(4, 3, 3, 3), b=(4,)), **EYE},
)
_BOXES = "c = Conv<strides=[2,2]>(r, w, b) f = Reshape(c, s) t = Transpose<perm=[0,2,1]>(f)"
_PARTS = "boxes, logits = Split<axis=2>(t, k)"
#: Boxes of some size around places in the image.
BOX_BIAS = np.array([4, 3, 3, 3, 0, 0, 0, 0, 0], np.float32)
YOLO_WEIGHTS = {
    **EYE,
    **nets.weights(w=(8, 3, 2, 2)),
    "b": BOX_BIAS[:8],
    "s": np.array([0, 8, -1]),
    "k": np.array([4, 4]),
}
YOLOV5 = nets.model(
    f"r = Conv(x, eye) {_BOXES} {_PARTS} p = Sigmoid(logits) y = Concat<axis=2>(boxes, p)",
    "float[N,3,6,8] x",
    "float[N,12,8] y",
    YOLO_WEIGHTS,
)
YOLOV8 = nets.model(
    f"r = Conv(x, eye) {_BOXES} {_PARTS} p = Sigmoid(logits) z = Concat<axis=2>(boxes, p) "
    "y = Transpose<perm=[0,2,1]>(z)",
    "float[N,3,6,8] x",
    "float[N,8,12] y",
    YOLO_WEIGHTS,
)
DETR = nets.model(
    f"r = Conv(x, eye) {_BOXES} {_PARTS} pred_boxes = Sigmoid(boxes) scaled = Mul(logits, two)",
    "float[N,3,6,8] x",
    "float[N,12,5] scaled, float[N,12,4] pred_boxes",
    {
        **EYE,
        **nets.weights(w=(9, 3, 2, 2), b=(9,)),
        "s": np.array([0, 9, -1]),
        "k": np.array([4, 5]),
        "two": np.array(2, np.float32),
    },
)
SUPPRESSED = nets.model(
    f"r = Conv(x, eye) {_BOXES} {_PARTS} p = Sigmoid(logits) scores = Transpose<perm=[0,2,1]>(p) "
    "kept = NonMaxSuppression(boxes, scores, most, overlap, least)",
    "float[1,3,6,8] x",
    "int64[M,3] kept, float[1,4,12] scores",
    {
        **YOLO_WEIGHTS,
        "most": np.array([3]),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32),
    },
)
EMBEDDING = nets.model(
    "r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) t = Tanh(c) g = GlobalAveragePool(t) e = Flatten(g)",
    "float[N,3,6,5] x",
    "float[N,4] e",
    {**nets.weights(w=(4, 3, 3, 3), b=(4,)), **EYE},
)
TWO_OUTPUTS = nets.model(
    "r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) t = Tanh(c) g = GlobalAveragePool(t) f = Flatten(g) "
    "kind_logits = MatMul(f, v) kind = Softmax(kind_logits) age = MatMul(f, u)",
    "float[N,3,6,5] x",
    "float[N,5] kind, float[N,1] age",
    {**nets.weights(w=(4, 3, 3, 3), b=(4,), v=(4, 5), u=(4, 1)), **EYE},
)


class Rewritten:
    """An explainable file in memory, with what it gives."""

    def __init__(self, net: onnx.ModelProto, folder: Path, score: Any = None, **options: Any) -> None:
        source, target = folder / "model.onnx", folder / "model.cam.onnx"
        onnx.save(net, source)
        self.report = rewrite_onnx(source, target, "r", score, **options)
        self.record = self.report.record
        options_ = ort.SessionOptions()
        options_.log_severity_level = 4
        self.session = ort.InferenceSession(target, options_, providers=["CPUExecutionProvider"])
        self.names = [o.name for o in self.session.get_outputs()]

    def run(self, x: Array, **fed: Array) -> dict[str, Array]:
        return dict(zip(self.names, self.session.run(None, {"x": x, **fed}), strict=True))

    def slope_error(
        self, x: Array, score: Callable[[dict[str, Array]], Array] = lambda out: out[SCORE], **fed: Array
    ) -> float:
        """How far the gradient at the layer is from the slope of a score along random directions."""
        rng = np.random.default_rng(3)
        gradient = self.run(x, **fed)["cam.gradients.r"]
        assert gradient.shape == x.shape
        worst, h = 0.0, np.float32(1e-2)
        for _ in range(3):
            u = rng.standard_normal(x.shape).astype(np.float32)
            up, down = (score(self.run(x + sign * h * u, **fed)) for sign in (1, -1))
            slopes = (up.astype(np.float64) - down) / (2 * h)
            wanted = (gradient * u).reshape(len(x), -1).sum(1)
            worst = max(worst, float(np.abs(slopes - wanted).max() / np.linalg.norm(gradient)))
        return worst


def images(net: onnx.ModelProto, count: int = 3) -> Array:
    shape = [d.dim_value for d in net.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(5).uniform(0.5, 1.5, (count, *shape)).astype(np.float32)


def fed(name: str, array: Any) -> dict[str, Array]:
    return {name: np.asarray(array)}


# -- segmentation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [SEGMENTATION, CHANNELS_LAST], ids=["channels first", "channels last"])
def test_a_segmentation_is_told_by_its_shape_and_sums_a_class_over_its_pixels(tmp_path, net):
    file = Rewritten(net, tmp_path)
    assert (file.record.score.task, file.record.score.classes) == ("segmentation", 4)
    x = images(net)
    out = file.run(x)
    y = out["y"] if net is SEGMENTATION else out["y"].transpose(0, 3, 1, 2)
    labels = y.argmax(1)
    top = np.array([np.bincount(m.ravel(), minlength=4).argmax() for m in labels])
    np.testing.assert_array_equal(out[CLASS], top)
    sums = [(y[i, k] * (labels[i] == k)).sum() for i, k in enumerate(top)]
    np.testing.assert_allclose(out[SCORE], sums, rtol=1e-5)


@pytest.mark.parametrize("net", [SEGMENTATION, CHANNELS_LAST], ids=["channels first", "channels last"])
def test_the_slope_of_a_class_over_a_region(tmp_path, net):
    file = Rewritten(net, tmp_path)
    x = images(net)
    region = np.random.default_rng(1).uniform(0, 1, (3, 6, 5)).astype(np.float32)
    choice = {**fed(REGION, region), **fed(CLASS_INDEX, [2, 0, 3])}
    out = file.run(x, **choice)
    y = out["y"] if net is SEGMENTATION else out["y"].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(
        out[SCORE], [(y[i, k] * region[i]).sum() for i, k in enumerate([2, 0, 3])], rtol=1e-5
    )
    assert file.slope_error(x, **choice) < 2e-3


def test_one_image_of_a_batch_may_leave_its_region_open(tmp_path):
    file = Rewritten(SEGMENTATION, tmp_path)
    x = images(SEGMENTATION)
    region = np.full((3, 6, 5), np.nan, np.float32)
    region[1] = 1
    mixed, chosen = file.run(x, **fed(REGION, region)), file.run(x)
    np.testing.assert_allclose(mixed[SCORE][[0, 2]], chosen[SCORE][[0, 2]], rtol=1e-6)
    k = chosen[CLASS][1]
    np.testing.assert_allclose(mixed[SCORE][1], mixed["y"][1, k].sum(), rtol=1e-5)


def test_a_region_may_have_any_size(tmp_path):
    file = Rewritten(SEGMENTATION, tmp_path)
    x = images(SEGMENTATION, 1)
    left = np.zeros((1, 12, 10), np.float32)
    left[..., :4] = 1
    out = file.run(x, **fed(REGION, left), **fed(CLASS_INDEX, [1]))
    np.testing.assert_allclose(out[SCORE], out["y"][:, 1, :, :2].sum((1, 2)), rtol=1e-5)


def test_the_background_is_nobodys_top_class(tmp_path):
    net = onnx.ModelProto()
    net.CopyFrom(SEGMENTATION)
    bias = next(i for i in net.graph.initializer if i.name == "b")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([9, 0, 1, 0], np.float32), "b"))
    x = images(net)
    assert set(Rewritten(net, tmp_path).run(x)[CLASS]) == {0}
    by_number = Rewritten(net, tmp_path, {"background": 0})
    by_label = Rewritten(net, tmp_path, labels=["background", "a", "b", "c"])
    for file in (by_number, by_label):
        assert file.record.score.background == 0
        assert 0 not in file.run(x)[CLASS]


def test_a_label_map_stands_for_the_scores_before_it(tmp_path):
    net = nets.model(
        "r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) map = ArgMax<axis=1, keepdims=0>(c)",
        "float[N,3,6,5] x",
        "int64[N,6,5] map",
        {**nets.weights(w=(4, 3, 3, 3), b=(4,)), **EYE},
    )
    file = Rewritten(net, tmp_path)
    assert (file.record.score.task, file.record.score.tensor) == ("segmentation", "c")
    assert (
        file.slope_error(
            images(net), **fed(REGION, np.ones((3, 6, 5), np.float32)), **fed(CLASS_INDEX, [1] * 3)
        )
        < 1e-3
    )


def test_the_automatic_layer_of_a_segmentation_still_looks_around():
    net = nets.model(
        "a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w) r = Relu(a) "
        "g = GlobalAveragePool(r) gg = Expand(g, size) j = Concat<axis=1>(r, gg) "
        'p = Conv(j, v) q = Relu(p) y = Resize<mode="linear">(q, , scales)',
        "float[1,3,16,16] x",
        "float[1,5,16,16] y",
        {
            **nets.weights(w=(4, 3, 3, 3), v=(5, 8, 1, 1)),
            "size": np.array([1, 4, 8, 8]),
            "scales": np.array([1, 1, 2, 2], np.float32),
        },
    )
    first = list_layers(net)[0]
    assert first.tensor == "r"  # behind it every pixel is made of one, but for the pooled branch
    assert "coarsest grid" in first.why


@pytest.mark.parametrize(("end", "probability"), [("Identity", False), ("Sigmoid", False), ("Sigmoid", True)])
def test_of_one_map_the_likely_pixels_count(tmp_path, end, probability):
    """Object or not: a single map has no other class to be compared with."""
    net = nets.model(
        f"r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) y = {end}(c)",
        "float[N,3,6,5] x",
        "float[N,1,6,5] y",
        {**nets.weights(w=(1, 3, 3, 3)), "b": np.array([0.8], np.float32), **EYE},
    )
    file = Rewritten(net, tmp_path, {"task": "segmentation"}, probability=probability)
    x = images(net)
    out = file.run(x)
    sigmoid = end == "Sigmoid"
    logits = np.log(out["y"] / (1 - out["y"])) if sigmoid else out["y"]
    likely = logits > 0
    assert 0.1 < likely.mean() < 0.9
    value = out["y"] if probability else logits
    np.testing.assert_allclose(out[SCORE], (value * likely).sum((1, 2, 3)), rtol=1e-4)
    region = likely[:, 0].astype(np.float32)
    np.testing.assert_allclose(
        file.run(x, **fed(REGION, region))["cam.gradients.r"], out["cam.gradients.r"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("end", "shape"),
    [
        ("s = Sigmoid(c) y = Transpose<perm=[0,2,3,1]>(s)", "N,6,5,1"),
        ("s = Sigmoid(c) y = Clip(s, low)", "N,1,6,5"),
        ("y = HardSigmoid(c)", "N,1,6,5"),
        ('s = Sigmoid(c) y = Resize<mode="linear">(s, , scales)', "N,1,12,10"),
    ],
)
def test_a_sigmoid_is_seen_through_what_follows_it(tmp_path, end, shape):
    net = nets.model(
        f"r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) {end}",
        "float[N,3,6,5] x",
        f"float[{shape}] y",
        {
            **nets.weights(w=(1, 3, 3, 3)),
            "b": np.array([0.8], np.float32),
            "low": np.array(0, np.float32),
            "scales": np.array([1, 1, 2, 2], np.float32),
            **EYE,
        },
    )
    out = Rewritten(net, tmp_path, {"task": "segmentation"}).run(images(net))
    likely = out["y"] > 0.5
    assert 0.1 < likely.mean() < 0.9
    np.testing.assert_allclose(out[SCORE], (out["y"] * likely).sum((1, 2, 3)), rtol=1e-5)


VOLUME = nets.model(
    "r = Conv(x, eye) c = Conv<pads=[1,1,1,1,1,1]>(r, w, b) y = Tanh(c)",
    "float[N,3,4,6,5] x",
    "float[N,4,4,6,5] y",
    {**nets.weights(w=(4, 3, 3, 3, 3), b=(4,)), "eye": EYE["eye"][..., None]},
)
SIGNAL = nets.model(
    "r = Conv(x, eye) c = Conv<pads=[1,1]>(r, w, b) y = Tanh(c)",
    "float[N,3,16] x",
    "float[N,4,16] y",
    {**nets.weights(w=(4, 3, 3), b=(4,)), "eye": EYE["eye"][..., 0]},
)


@pytest.mark.parametrize("net", [VOLUME, SIGNAL], ids=["volume", "signal"])
def test_classes_of_volumes_and_signals(tmp_path, net):
    """A region has the axes of the grid."""
    file = Rewritten(net, tmp_path)
    assert (file.record.score.task, file.record.score.classes) == ("segmentation", 4)
    x = images(net)
    out = file.run(x)
    labels = out["y"].argmax(1)
    top = [np.bincount(label.ravel(), minlength=4).argmax() for label in labels]
    np.testing.assert_array_equal(out[CLASS], top)
    wanted = [y[k][label == k].sum() for y, k, label in zip(out["y"], top, labels, strict=True)]
    np.testing.assert_allclose(out[SCORE], wanted, rtol=1e-5)
    region = np.zeros((3, *x.shape[2:]), np.float32)
    region[:, 1:3] = 1
    asked = {CLASS_INDEX: np.array([1, 1, 1]), REGION: region}
    found = file.run(x, **asked)
    np.testing.assert_allclose(found[SCORE], (out["y"][:, 1] * region).reshape(3, -1).sum(1), rtol=1e-5)
    assert file.slope_error(x, **asked) < 4e-3


def test_a_mask_has_the_axes_of_the_grid(tmp_path):
    Rewritten(VOLUME, tmp_path)
    explainer = Explainer(tmp_path / "model.cam.onnx", "cpu")
    x = images(VOLUME)
    whole = explainer.explain_tensor(x, target=Region(1, np.ones((4, 6, 5))))
    half = explainer.explain_tensor(x, target=Region(1, np.ones((2, 3, 5))))  # of another size
    np.testing.assert_allclose(half.scores, whole.scores, rtol=1e-5)
    with pytest.raises(
        TargetError, match=r"takes 'cam.region' as .*, but the targets give \(6, 5\) for each"
    ):
        explainer.explain_tensor(x, target=Region(1, np.ones((6, 5))))


@pytest.mark.parametrize("score", [{"seed": True, "task": "regression"}, {"task": "regression"}])
def test_an_output_of_any_shape_is_explained_by_entry_or_by_weights(tmp_path, score):
    net = nets.model(
        "r = Conv(x, eye) c = Conv<strides=[2,2]>(r, w) q = Reshape(c, s) y = Tanh(q)",
        "float[N,3,6,8] x",
        "float[N,4,2,6] y",
        {**nets.weights(w=(4, 3, 2, 2)), "s": np.array([0, 4, 2, 6]), **EYE},
    )
    file = Rewritten(net, tmp_path, score)
    assert file.record.score.classes == 48
    x = images(net)
    asked = fed(CLASS_INDEX, [5, 17, 47])
    flat = file.run(x, **asked)["y"].reshape(3, -1)
    slope = file.slope_error(x, lambda o: o["y"].reshape(3, -1)[range(3), [5, 17, 47]], **asked)
    assert slope < 2e-3
    explainer = Explainer(tmp_path / "model.cam.onnx", "cpu")
    np.testing.assert_allclose(
        explainer.explain_tensor(x, target=[5, 17, 47]).scores, flat[range(3), [5, 17, 47]]
    )
    if "seed" in score:
        weights = np.random.default_rng(1).standard_normal((3, 4, 2, 6)).astype(np.float32)
        assert file.slope_error(x, **fed(SEED, weights)) < 2e-3


def test_a_depth_is_one_map(tmp_path):
    """(N, H, W): one number per place, and no class."""
    net = nets.model(
        "r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) s = Softplus(c) y = Squeeze(s, one)",
        "float[N,3,16,24] x",
        "float[N,16,24] y",
        {**nets.weights(w=(1, 3, 3, 3), b=(1,)), "one": np.array([1]), **EYE},
    )
    file = Rewritten(net, tmp_path)
    assert (file.record.score.task, file.record.score.classes) == ("segmentation", 1)
    x = images(net)
    out = file.run(x)
    np.testing.assert_allclose(out[SCORE], out["y"].sum((1, 2)), rtol=1e-5)
    region = np.zeros((3, 16, 24), np.float32)
    region[:, 4:9, 10:20] = 1
    found = file.run(x, **fed(REGION, region))
    np.testing.assert_allclose(found[SCORE], (out["y"] * region).sum((1, 2)), rtol=1e-5)
    assert not found["cam.gradients.r"][:, :, 12:].any()
    assert file.slope_error(x, **fed(REGION, region)) < 2e-3


def test_a_small_map_is_one_if_it_is_said_to_be(tmp_path):
    net = nets.model(
        "r = Conv(x, eye) c = Conv<pads=[1,1,1,1]>(r, w, b) y = Squeeze(c, one)",
        "float[N,3,6,5] x",
        "float[N,6,5] y",
        {**nets.weights(w=(1, 3, 3, 3), b=(1,)), "one": np.array([1]), **EYE},
    )
    assert Rewritten(net, tmp_path, {"task": "segmentation"}).record.score.classes == 1


# -- detection ----------------------------------------------------------------------------------------


def corners(box: Array) -> Array:
    return np.concatenate([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], -1)


def detections(name: str, out: dict[str, Array]) -> tuple[Array, Array]:
    """Boxes (N, A, 4) and confidence (N, A, K), by the definition of the head."""
    if name == "yolov5":
        return corners(out["y"][..., :4]), out["y"][..., 4:5] * out["y"][..., 5:]
    if name == "yolov8":
        y = out["y"].transpose(0, 2, 1)
        return corners(y[..., :4]), y[..., 4:]
    if name == "shares":
        return corners(out["y"].transpose(0, 2, 1)[..., :4]) * np.array([8, 6, 8, 6]), out["y"].transpose(
            0, 2, 1
        )[..., 4:]
    boxes = corners(out["pred_boxes"]) * np.array([8, 6, 8, 6])
    e = np.exp(out["scaled"])
    if name == "detr":
        return boxes, (e / e.sum(-1, keepdims=True))[..., :-1]
    return boxes, e / (1 + e)


HEADS = {"yolov5": YOLOV5, "yolov8": YOLOV8, "detr": DETR, "rtdetr": DETR}


@pytest.mark.parametrize("head", HEADS)
def test_the_most_confident_detection(tmp_path, head):
    net = HEADS[head]
    file = Rewritten(net, tmp_path, {"task": "detection", "head": head})
    out = file.run(images(net))
    boxes, confidence = detections(head, out)
    at, k = np.unravel_index(confidence.reshape(3, -1).argmax(1), confidence.shape[1:])
    np.testing.assert_array_equal(out[CLASS], k)
    np.testing.assert_allclose(out[SCORE], confidence[range(3), at, k], rtol=1e-5)
    np.testing.assert_allclose(out[CHOSEN_BOX], boxes[range(3), at], rtol=1e-5, atol=1e-5)
    assert file.record.score.classes == confidence.shape[2]


@pytest.mark.parametrize("head", HEADS)
def test_a_detection_by_class_and_by_box(tmp_path, head):
    net = HEADS[head]
    file = Rewritten(net, tmp_path, {"task": "detection", "head": head})
    x = images(net)
    out = file.run(x, **fed(CLASS_INDEX, [1, 2, -1]))
    boxes, confidence = detections(head, out)
    np.testing.assert_array_equal(out[CLASS][:2], [1, 2])
    for i, k in enumerate([1, 2]):
        at = confidence[i, :, k].argmax()
        np.testing.assert_allclose(out[CHOSEN_BOX][i], boxes[i, at], rtol=1e-5, atol=1e-5)
    wide = [np.flatnonzero((b[:, 2:] - b[:, :2] > 0.05).all(1)) for b in boxes]
    chosen = np.array([w[-1] for w in wide])
    asked = boxes[range(3), chosen].astype(np.float32)
    found = file.run(x, **fed(BOX, asked))
    for i in range(3):
        value = overlap(boxes[i], asked[i]) * confidence[i].max(1)
        np.testing.assert_allclose(found[CHOSEN_BOX][i], boxes[i, value.argmax()], rtol=1e-5, atol=1e-5)


def test_boxes_in_shares_of_the_image(tmp_path):
    """What TensorFlow's exports of YOLO give."""
    file = Rewritten(YOLOV8, tmp_path, {"head": "yolov8", "box_units": "shares"})
    out = file.run(images(YOLOV8))
    boxes, confidence = detections("shares", out)
    at = confidence.reshape(3, -1).argmax(1) // 4
    np.testing.assert_allclose(out[CHOSEN_BOX], boxes[range(3), at], rtol=1e-5, atol=1e-5)


#: Rows of a box, a score and a class: 2, 1, 2, 1, ...
ROWS = nets.model(
    f"r = Conv(x, eye) {_BOXES} boxes, logits = Split<axis=2>(t, k) p = Sigmoid(logits) "
    "y = Concat<axis=2>(boxes, p, kinds)",
    "float[3,3,6,8] x",
    "float[3,12,6] y",
    {
        **EYE,
        **nets.weights(w=(5, 3, 2, 2)),
        "b": BOX_BIAS[:5],
        "s": np.array([0, 5, -1]),
        "k": np.array([4, 1]),
        "kinds": np.tile(np.array([2, 1], np.float32), (3, 6))[..., None],
    },
)


def test_rows_that_say_their_class(tmp_path):
    """YOLOv10: nothing is suppressed, and no row has more than one class."""
    file = Rewritten(ROWS, tmp_path, {"head": "yolov10"})
    assert file.record.score.classes is None
    x = images(ROWS)
    out = file.run(x)
    at = out["y"][..., 4].argmax(1)
    np.testing.assert_array_equal(out[CLASS], out["y"][range(3), at, 5])
    np.testing.assert_array_equal(out[SCORE], out["y"][range(3), at, 4])
    np.testing.assert_array_equal(out[CHOSEN_BOX], out["y"][range(3), at, :4])
    asked = file.run(x, **fed(CLASS_INDEX, [1, 2, 7]))
    np.testing.assert_array_equal(asked[CLASS], [1, 2, 7])
    of_class = [np.where(y[:, 5] == k, y[:, 4], 0) for y, k in zip(out["y"], (1, 2, 7), strict=True)]
    np.testing.assert_array_equal(asked[SCORE], np.max(of_class, axis=1))
    gradients = asked["cam.gradients.r"]
    assert gradients[:2].any(axis=(1, 2, 3)).all()
    assert not gradients[2].any()  # no row is of class 7
    best = np.argmax(of_class[:2], axis=1)
    slope = file.slope_error(
        x, lambda o: np.append(o["y"][range(2), best, 4], 0), **fed(CLASS_INDEX, [1, 2, 7])
    )
    assert slope < 2e-3


def test_the_last_suppression_is_the_detectors(tmp_path):
    """A first one chooses the regions that are looked at, as in Faster R-CNN."""
    body = (
        f"r = Conv(x, eye) {_BOXES} {_PARTS} p = Sigmoid(logits) scores = Transpose<perm=[0,2,1]>(p) "
        "any = ReduceMax<keepdims=1>(scores, one) "
        "regions = NonMaxSuppression(boxes, any, most, overlap, least) "
        "kept = NonMaxSuppression(boxes, scores, most, overlap, least)"
    )
    net = nets.model(
        body,
        "float[1,3,6,8] x",
        "int64[M,3] kept, int64[L,3] regions",
        {
            **YOLO_WEIGHTS,
            "one": np.array([1]),
            "most": np.array([3]),
            "overlap": np.array([0.5], np.float32),
            "least": np.array([0.1], np.float32),
        },
    )
    file = Rewritten(net, tmp_path)
    assert (file.record.score.tensor, file.record.score.classes) == ("scores", 4)


def overlap(boxes: Array, box: Array) -> Array:
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    both = np.maximum(sides, 0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return both / np.maximum(areas - both, 1e-9)


@pytest.mark.parametrize("head", ["yolov5", "yolov8"])
def test_the_slope_of_a_confidence(tmp_path, head):
    net = HEADS[head]
    file = Rewritten(net, tmp_path, {"task": "detection", "head": head})
    x = images(net)
    _, confidence = detections(head, file.run(x))
    at = confidence[range(3), :, [0, 1, 2]].argmax(1)

    def of_these(out: dict[str, Array]) -> Array:  # which is the best may change along the way
        return detections(head, out)[1][range(3), at, [0, 1, 2]]

    assert file.slope_error(x, of_these, **fed(CLASS_INDEX, [0, 1, 2])) < 2e-3


@pytest.mark.parametrize("head", ["detr", "rtdetr"])
def test_of_independent_logits_the_logit_is_differentiated(tmp_path, head):
    file = Rewritten(DETR, tmp_path, {"task": "detection", "head": head, "seed": True})
    x = images(DETR)
    out = file.run(x)
    _, confidence = detections(head, out)
    at, k = np.unravel_index(confidence.reshape(3, -1).argmax(1), confidence.shape[1:])
    seed = np.zeros((3, 12, 5), np.float32)
    seed[range(3), at, k] = 1
    np.testing.assert_allclose(
        file.run(x, **fed(SEED, seed))["cam.gradients.r"], out["cam.gradients.r"], rtol=1e-5, atol=1e-7
    )
    assert file.slope_error(x, **fed(SEED, seed)) < 2e-3


def test_a_detection_before_its_suppression(tmp_path):
    file = Rewritten(SUPPRESSED, tmp_path)
    assert (file.record.score.task, file.record.score.tensor) == ("detection", "scores")
    x = images(SUPPRESSED, 1)
    out = file.run(x)
    plain = ort.InferenceSession(SUPPRESSED.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(out["kept"], plain.run(["kept"], {"x": x})[0])
    k, at = np.unravel_index(out["scores"].argmax(), (4, 12))
    assert out[CLASS][0] == k
    np.testing.assert_array_equal(out[SCORE], out["scores"][:, k, at])
    assert file.slope_error(x, lambda o: o["scores"][:, k, at]) < 2e-3


def test_yolox_decodes_its_grid(tmp_path):
    grids = " ".join(f"c{s} = Conv<strides=[{s},{s}]>(r, w{s}) f{s} = Reshape(c{s}, s)" for s in (8, 16, 32))
    net = nets.model(
        f"r = Conv(x, eye) {grids} f = Concat<axis=2>(f8, f16, f32) y = Transpose<perm=[0,2,1]>(f)",
        "float[N,3,32,64] x",
        "float[N,42,7] y",
        {
            **{
                k: v * 0.05
                for k, v in nets.weights(w8=(7, 3, 8, 8), w16=(7, 3, 16, 16), w32=(7, 3, 32, 32)).items()
            },
            "s": np.array([0, 7, -1]),
            **EYE,
        },
    )
    file = Rewritten(net, tmp_path, {"head": "yolox"})
    out = file.run(images(net, 2))
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(32 // s) for x in range(64 // s)]
    at = (out["y"][..., 4:5] * out["y"][..., 5:]).max(2).argmax(1)
    for i, a in enumerate(at):
        x, y, stride = cells[a]
        cx, cy, w, h = out["y"][i, a, :4]
        wanted = corners(
            np.array([(cx + x) * stride, (cy + y) * stride, np.exp(w) * stride, np.exp(h) * stride])
        )
        np.testing.assert_allclose(out[CHOSEN_BOX][i], wanted, rtol=1e-4)


# -- embeddings ---------------------------------------------------------------------------------------


def test_the_cosine_similarity_to_a_reference(tmp_path):
    file = Rewritten(EMBEDDING, tmp_path, {"task": "embedding"})
    x = images(EMBEDDING)
    reference = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    out = file.run(x, **fed(REFERENCE, reference))
    cosine = (
        (out["e"] * reference).sum(1) / np.linalg.norm(out["e"], axis=1) / np.linalg.norm(reference, axis=1)
    )
    np.testing.assert_allclose(out[SCORE], cosine, rtol=1e-5)
    assert file.slope_error(x, **fed(REFERENCE, reference)) < 2e-3
    assert CLASS not in out


def test_without_a_reference_an_embedding_is_its_own(tmp_path):
    file = Rewritten(EMBEDDING, tmp_path, {"task": "embedding"})
    x = images(EMBEDDING)
    np.testing.assert_allclose(file.run(x)[SCORE], np.linalg.norm(file.run(x)["e"], axis=1), rtol=1e-5)
    assert file.slope_error(x) < 2e-3


# -- weights of one's own -----------------------------------------------------------------------------


def test_weights_replace_the_class_and_reach_the_logit(tmp_path):
    file = Rewritten(TWO_OUTPUTS, tmp_path, {"output": "kind", "seed": True})
    assert [s.tensor for s in file.record.score.seeds] == ["kind_logits"]
    x = images(TWO_OUTPUTS)
    contrast = np.array([[1, -1, 0, 0, 0]], np.float32)
    by_class = [file.run(x, **fed(CLASS_INDEX, [k] * 3))["cam.gradients.r"] for k in (0, 1)]
    out = file.run(x, **fed(SEED, np.repeat(contrast, 3, 0)))
    np.testing.assert_allclose(out["cam.gradients.r"], by_class[0] - by_class[1], rtol=1e-4, atol=1e-7)
    assert file.slope_error(x, **fed(SEED, np.repeat(contrast, 3, 0))) < 2e-3
    top = file.run(x)
    np.testing.assert_array_equal(top[CLASS], top["kind"].argmax(1))
    np.testing.assert_allclose(top[SCORE], top["kind"].max(1), rtol=1e-6)


def test_weights_of_several_outputs_add_up(tmp_path):
    file = Rewritten(TWO_OUTPUTS, tmp_path, ScoreSpec("kind", seed=("age", "kind")))
    x = images(TWO_OUTPUTS)
    assert [s.input for s in file.record.score.seeds] == ["cam.seed.age", "cam.seed.kind"]
    age = np.full((3, 1), 0.5, np.float32)
    kind = np.zeros((3, 5), np.float32)
    kind[:, 2] = 2
    both = {**fed("cam.seed.age", age), **fed("cam.seed.kind", kind)}
    assert file.slope_error(x, **both) < 2e-3
    apart = [file.run(x, **{k: v})["cam.gradients.r"] for k, v in both.items()]
    np.testing.assert_allclose(file.run(x, **both)["cam.gradients.r"], sum(apart), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        file.run(x, **fed("cam.seed.age", age))[SCORE], 0.5 * file.run(x)["age"][:, 0], rtol=1e-5
    )


def test_each_image_of_a_batch_has_weights_or_a_class(tmp_path):
    file = Rewritten(TWO_OUTPUTS, tmp_path, ScoreSpec("kind", seed=("age", "kind")))
    x = images(TWO_OUTPUTS)
    age = np.array([[np.nan], [1], [np.nan]], np.float32)
    mixed, chosen = file.run(x, **fed("cam.seed.age", age)), file.run(x)
    for name in (SCORE, "cam.gradients.r"):
        np.testing.assert_allclose(mixed[name][[0, 2]], chosen[name][[0, 2]], rtol=1e-5)
    np.testing.assert_allclose(mixed[SCORE][1], mixed["age"][1, 0], rtol=1e-6)


def test_weights_of_a_segmentation_map(tmp_path):
    file = Rewritten(SEGMENTATION, tmp_path, {"seed": True})
    x = images(SEGMENTATION)
    weights = np.random.default_rng(8).standard_normal((3, 4, 6, 5)).astype(np.float32)
    out = file.run(x, **fed(SEED, weights))
    np.testing.assert_allclose(out[SCORE], (out["y"] * weights).sum((1, 2, 3)), rtol=1e-4)
    assert file.slope_error(x, **fed(SEED, weights)) < 2e-3


def test_a_regression_without_a_class_axis(tmp_path):
    net = nets.cnn(
        "q = Tanh(y) z = Constant<value_ints=[1]>() y1 = ReduceSum<keepdims=0>(q, z)", "float[N] y1"
    )
    file = Rewritten(net, tmp_path, {"task": "regression"})
    assert (file.record.score.task, file.record.score.classes) == ("regression", 1)
    out = file.run(images(net, 2))
    assert out["cam.gradients.r"].any()


def test_an_inner_tensor_as_score(tmp_path):
    net = nets.cnn(
        "z = Tanh(y) s = Constant<value_ints=[1]>() t = ReduceMax<keepdims=1>(z, s)", "float[N,1] t"
    )
    file = Rewritten(net, tmp_path, "y")
    x = images(net, 2)
    out = file.run(x)
    np.testing.assert_allclose(np.tanh(out[SCORE]), out["t"][:, 0], rtol=1e-5)
    assert file.run(x, **fed(CLASS_INDEX, [3, 3]))[CLASS].tolist() == [3, 3]


def test_stripping_takes_every_input_back(tmp_path):
    from onnxcam.export import load, strip

    source, target = tmp_path / "m.onnx", tmp_path / "m.cam.onnx"
    for net, score in (
        (SEGMENTATION, {"seed": True}),
        (YOLOV5, {"task": "detection", "head": "yolov5"}),
        (EMBEDDING, {"task": "embedding"}),
    ):
        onnx.save(net, source)
        rewrite_onnx(source, target, "r", score)
        back = strip(load(target))
        assert [v.name for v in back.graph.inputs] == ["x"]
        assert [v.name for v in back.graph.outputs] == [o.name for o in net.graph.output]
        assert set(back.graph.initializers) == {i.name for i in net.graph.initializer}


def test_the_record_of_a_score_survives_json(tmp_path):
    record = Rewritten(TWO_OUTPUTS, tmp_path, ScoreSpec("kind", seed=("age",))).record
    assert contract.Record.from_json(record.to_json()) == record


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "score", "message"),
    [
        (SEGMENTATION, {"tusk": "segmentation"}, r"A score has no field 'tusk'\. Nearest: 'task'"),
        (
            SEGMENTATION,
            {"task": "segmentatoin"},
            r"There is no task 'segmentatoin'\. Nearest: 'segmentation'",
        ),
        (YOLOV5, {"head": "yolo5"}, r"There is no head 'yolo5'\. Nearest: 'yolov5'"),
        (SEGMENTATION, {"background": 4}, r"The background 4 is no class: 'y' has 4"),
        (
            EMBEDDING,
            {"task": "segmentation"},
            r"The score 'e' has shape \['N', 4\]; a segmentation has one map",
        ),
        (
            YOLOV5,
            {"task": "detection"},
            r"Whether the boxes in \['N', 12, 8\] are decoded cannot be seen: name the head",
        ),
        (DETR, {"task": "detection"}, r"Whether this detector's last class means 'nothing' cannot be seen"),
        (EMBEDDING, {"task": "detection"}, r"No detector's head is known in \['N', 4\]: name it with"),
        (
            EMBEDDING,
            {"head": "yolov5"},
            r"The score 'e' has shape \['N', 4\]; the head 'yolov5' has \[N, A, 5 \+ K\]",
        ),
        (
            EMBEDDING,
            {"head": "nms"},
            r"The head 'nms' needs a NonMaxSuppression in the graph, and there is none",
        ),
        (
            TWO_OUTPUTS,
            {"head": "detr"},
            r"The head 'detr' has class scores \[N, A, K\] and boxes \[N, A, 4\]",
        ),
        (
            YOLOV5,
            {"head": "yolox"},
            r"has one row for each cell of the grids of stride 8, 16 and 32: 0 for an image",
        ),
        (
            nets.cnn("s = Constant<value_ints=[1]>() t = ReduceMax<keepdims=0>(y, s)", "float[N] t"),
            {"task": "embedding"},
            r"The embedding 't' has shape \['N'\]; an embedding is \[N, D\]",
        ),
        *(
            (
                SEGMENTATION,
                {field: value},
                rf"no `{field}` \(`--{option}`\) of the task 'segmentation', which this score is taken for; "
                r"it belongs to detection\. Leave it out, or .* `task='detection'`",
            )
            for field, option, value in (("boxes", "boxes", "y"), ("box_units", "box-units", "shares"))
        ),
        (
            nets.cnn(),
            {"background": 0},
            r"There is no `background` .* of the task 'classification'.*belongs to segmentation\.",
        ),
        (
            SEGMENTATION,
            {"task": "segmentation", "head": "yolov8"},
            r"no `head` .* of the task 'segmentation'",
        ),
        (SEGMENTATION, {"rest": True}, r"no `rest` .* of the task 'segmentation'.*belongs to classification"),
        (
            EMBEDDING,
            {"task": "embedding", "probability": True},
            r"no `probability` .* of the task 'embedding'",
        ),
        (
            YOLOV5,
            {"head": "yolov5", "boxes": "y"},
            r"The head 'yolov5' says where its boxes are, .* leave `boxes` \(`--boxes`\) out, or name another"
            r" head; those with such an output are detr, rtdetr\.",
        ),
        (TWO_OUTPUTS, {"output": "kind", "seed": "agee"}, r"The model has no output 'agee'\. Nearest: 'age'"),
    ],
)
def test_scores_that_do_not_fit(tmp_path, net, score, message):
    source = tmp_path / "model.onnx"
    onnx.save(net, source)
    with pytest.raises(ScoreError, match=message):
        rewrite_onnx(source, tmp_path / "model.cam.onnx", "r", score)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_boxes_in_shares_of_an_open_image(tmp_path):
    net = onnx.ModelProto()
    net.CopyFrom(DETR)
    net.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    source = tmp_path / "model.onnx"
    onnx.save(net, source)
    with pytest.raises(
        ScoreError, match=r"depend on the size of the image, which the model leaves open: fix it"
    ):
        rewrite_onnx(source, tmp_path / "m.cam.onnx", "r", {"head": "detr"})
