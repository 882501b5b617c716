"""Methods measured through a real file: the demo's model and its mosaics, whose truth is known."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from onnxcam import Explainer, demo, methods, metrics, plots, truth
from onnxcam.demo import mosaics
from onnxcam.errors import (
    ImageError,
    InputError,
    MethodError,
    MetricError,
    MissingDependency,
    OnnxcamError,
    TargetError,
)
from onnxcam.evaluation import RANDOM, Measured, evaluate, usual
from onnxcam.methods import Method
from onnxcam.metrics import Case, Curve, Metric
from onnxcam.metrics.localisation import mosaic
from onnxcam.preprocess import Geometry


@pytest.fixture(scope="module")
def explainer():
    return Explainer(demo.model_bytes(), ["cpu"])


@pytest.fixture(scope="module")
def asked():
    """Two mosaics, each asked for all of its four classes: photos, classes and boxes."""
    made = mosaics.mosaics(mosaics.held_out(), 2)
    each = [(m.image, label, [list(place)]) for m in made for label, place in m.tiles.items()]
    return [list(column) for column in zip(*each, strict=True)]


@pytest.fixture(scope="module")
def found(explainer, asked):
    photos, classes, boxes = asked
    names = [*usual(True), "road", "coherency", "maxboxacc", "grid_pointing"]
    return evaluate(explainer, photos, ["gradcam", "cam"], names, target=classes, truths=boxes)


def mean(found, method, metric):
    return next(row for row in found.rows if row.name == method).measured[metric].mean


def test_gradcam_beats_the_random_map_where_the_truth_is_known(found):
    assert [row.name for row in found.rows] == ["gradcam", "cam", RANDOM]
    assert [row.baseline for row in found.rows] == [False, False, True]
    for metric in ("insertion", "pointing", "energy", "coherency", "maxboxacc", "road"):
        assert mean(found, "gradcam", metric) > mean(found, RANDOM, metric), metric
    assert mean(found, "gradcam", "deletion") < mean(found, RANDOM, "deletion")
    assert mean(found, RANDOM, "grid_pointing") == pytest.approx(0.25, abs=0.1)
    energy = next(m for m in found.metrics if m.name == "energy")
    assert found.best(energy) == ("gradcam",)


def test_the_numbers_are_those_of_the_metric_itself(found, explainer, asked):
    """Once more by hand, from the model's own tensor and output."""
    photos, classes, boxes = asked
    from onnxcam import preprocess

    x, geometry = preprocess.apply(photos[3], explainer.preprocess)
    index = mosaics.LABELS.index(classes[3])

    def score(make, count):
        logits = explainer.explain_tensor(make(slice(0, count)), target=index).outputs["logits"]
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (e / e.sum(axis=1, keepdims=True))[:, index]

    heatmap = explainer.explain_tensor(x[None], target=index).heatmaps[0]
    clean = float(score(lambda part: x[None], 1)[0])
    case = Case(x, heatmap, score, clean, truth.seen(boxes[3], geometry))
    row = found.rows[0]
    assert found.scores[3] == pytest.approx(clean, rel=1e-5)
    for name in ("deletion", "insertion", "drop", "energy", "pointing"):
        wanted = float(metrics.measure(name, case))
        assert row.measured[name].values[3] == pytest.approx(wanted, rel=1e-4, abs=1e-6), name


def test_mean_and_standard_error_are_over_the_images(found):
    one = found.rows[0].measured["deletion"]
    assert one.count == len(one.values) == 8
    assert one.mean == pytest.approx(one.values.mean())
    assert one.error == pytest.approx(one.values.std(ddof=1) / 8**0.5)
    assert float(one.curve) == pytest.approx(one.mean)  # areas are linear
    assert one.curve.y[0] == pytest.approx(np.mean(found.scores), rel=1e-5)


def test_of_one_image_there_is_no_standard_error(explainer, asked):
    one = evaluate(explainer, asked[0][0], "gradcam", ["deletion"]).rows[0].measured["deletion"]
    assert np.isfinite(one.mean)
    assert np.isnan(one.error)


def test_it_gives_the_same_numbers_twice_and_other_random_maps_for_another_seed(explainer, asked):
    def drops(seed):
        rows = evaluate(explainer, asked[0][:2], "gradcam", ["drop"], seed=seed).rows
        return [row.measured["drop"].values.tolist() for row in rows]

    assert drops(0) == drops(0)
    assert drops(0)[0] == drops(1)[0]
    assert drops(0)[1] != drops(1)[1]


def test_cost_is_told_in_passes_and_seconds(found, explainer, asked):
    row = found.rows[0]
    assert row.passes == 1
    assert row.tail_passes == 0
    assert row.seconds > 0

    def many(masked):
        made = masked.masked(lambda part: np.ones((part.stop - part.start, 4, 4), np.float32), 5)
        return np.broadcast_to(made.mean(), (1, 4, 4)) * np.eye(4, dtype=np.float32)

    own = Method("many", many, ("masked",), source="a test", formula="5 masks")
    assert evaluate(explainer, asked[0][:1], own, ["drop"]).rows[0].passes == 6


def test_probabilities_are_measured_unless_the_output_is_asked_for(explainer, asked):
    photo = asked[0][0]
    (logits,) = explainer.explain(photo).outputs["logits"]
    output = evaluate(explainer, photo, "gradcam", ["complexity"], of="output")
    assert output.scores[0] == pytest.approx(float(logits.max()), rel=1e-5)
    chance = evaluate(explainer, photo, "gradcam", ["complexity"])
    assert chance.scores[0] == pytest.approx(float(np.exp(logits.max()) / np.exp(logits).sum()), rel=1e-4)


def test_a_method_that_the_file_cannot_carry_is_listed_with_the_reason(explainer, asked):
    cannot = replace(methods.get("gradcam"), name="cannot", head="other")
    found = evaluate(explainer, asked[0][:1], [cannot, "gradcam"], ["drop"])
    assert [row.name for row in found.rows] == ["gradcam", RANDOM]
    assert "The method 'cannot' needs a model that ends" in found.refused["cannot"]
    with pytest.raises(MethodError, match=r"The file carries none of these methods\. The method 'cannot'"):
        evaluate(explainer, asked[0][:1], [cannot], ["drop"])


def test_a_map_that_is_not_finite_is_left_out_and_said(explainer, asked):
    def broken(activations):
        return np.full(activations[:, 0].shape, np.nan)

    own = Method("broken", broken, ("activations",), source="a test", formula="NaN")
    found = evaluate(explainer, asked[0][:2], [own, "gradcam"], ["drop", "deletion"])
    one = found.rows[0].measured["deletion"]
    assert one.count == 0
    assert np.isnan(one.mean)
    assert "is not finite" in one.undefined[0]
    assert found.rows[1].measured["deletion"].count == 2
    assert json.loads(json.dumps(found.data()))["methods"][0]["metrics"]["deletion"]["mean"] is None
    assert ",,,0," in found.csv()


def test_truth_that_is_not_known_of_a_photo_leaves_that_one_out(explainer, asked):
    photos, classes, boxes = asked
    found = evaluate(
        explainer, photos[:3], "gradcam", ["energy", "drop"], target=classes[:3], truths=[None, *boxes[1:3]]
    )
    energy = found.rows[0].measured["energy"]
    assert np.isnan(energy.values).tolist() == [True, False, False]
    assert energy.undefined == ("There is no truth for 'image 0'.",)
    assert found.rows[0].measured["drop"].count == 3


def test_the_randomised_files_maps_are_compared(explainer, asked):
    """Of a file with itself: the same maps."""
    found = evaluate(
        explainer, asked[0][:1], "gradcam", ["randomised_ssim", "randomised_rank"], randomised=explainer
    )
    assert found.rows[0].measured["randomised_ssim"].mean == pytest.approx(1)
    assert found.rows[0].measured["randomised_rank"].mean == pytest.approx(1)
    assert abs(found.rows[1].measured["randomised_rank"].mean) < 0.7  # two random maps


def test_every_name_of_the_registry_can_be_asked(explainer):
    quick = evaluate(explainer, np.zeros((40, 50, 3), np.uint8), "quick", ["complexity"])
    ran = {row.name for row in quick.rows} | set(quick.refused)
    assert {"gradcam", "cam", "layercam", "gradcam++", RANDOM} <= ran
    assert not any(methods.get(name).runs for name in ran - {RANDOM})


def test_the_usual_metrics_need_no_further_package():
    from test_promises import python

    code = """
import numpy as np
from onnxcam import Explainer, demo
from onnxcam.evaluation import evaluate, usual
photo = np.zeros((40, 40, 3), np.uint8)
e = Explainer(demo.model_bytes(), ["cpu"])
found = evaluate(e, photo, "gradcam", usual(True), truths=[[[0, 0, 9, 9]]])
print(len(found.rows[0].measured))
"""
    assert python(code, "scipy", "matplotlib", "sklearn", "torch", "onnx", "rich") == "6"


def test_options_reach_the_metric_and_the_method(explainer, asked):
    seen = []

    def tuned(activations, *, power=1):
        seen.append(power)
        return (activations**power).mean(axis=1)

    own = Method("tuned", tuned, ("activations",), source="a test", formula="mean A^p")
    options = {"deletion": {"steps": 4}, "tuned": {"power": 2}}
    found = evaluate(explainer, asked[0][0], own, ["deletion"], options=options)
    assert len(found.rows[0].measured["deletion"].curve.x) == 5
    assert set(seen) == {2}


def test_no_metric_is_called_as_a_method_is():
    assert not {*metrics.names()} & {*methods.names(), RANDOM}


BLACK = np.zeros((40, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"methods": "gradcma"}, MethodError, "No method 'gradcma'"),
        ({"methods": []}, MethodError, "no method to evaluate: name some, or 'all'"),
        ({"metrics": ["deletoin"]}, MetricError, "No metric 'deletoin'"),
        ({"metrics": []}, MetricError, "no metric to evaluate: name some"),
        (
            {"metrics": ["energy"]},
            MetricError,
            "'energy' needs the truth, where the object is: a mask or boxes",
        ),
        ({"metrics": ["randomised_ssim"]}, MetricError, "needs the map of a model with random weights"),
        (
            {"metrics": ["grid_pointing"]},
            MetricError,
            "takes 4 photos in which different .* are 1: give more",
        ),
        ({"target": "zebra"}, TargetError, "zebra"),
        ({"target": [1, 2]}, InputError, "target has 2 entries for 1 photo; a list has one per photo"),
        ({"target": [[1, 2]]}, TargetError, "evaluated for one target, not 2: give the photo once for each"),
        ({"truths": []}, InputError, "truths has 0 entries for 1 photo;"),
        ({"options": {"drop": {}}}, InputError, "There are options of 'drop', which is not evaluated"),
        (
            {"options": {"deletion": {"step": 3}}},
            MetricError,
            r"'deletion' has no option 'step'\. Nearest: 'steps'\. It has: steps \(20\)",
        ),
        (
            {"options": {"deletion": {"steps": 0}}},
            MetricError,
            "The option 'steps' of the metric 'deletion' is a whole number of at least 1, such as 20, not 0",
        ),
        ({"progress": 5}, InputError, r"progress is a function that is called with \(done, total\), not 5"),
        (
            {"methods": "fem", "options": {"fem": {"k": "x"}}},
            MethodError,
            "option 'k' of the method 'fem' is a finite number, such as 2.0, not 'x'",
        ),
        ({"seed": -1}, InputError, "The seed of the random maps is a whole number of at least 0, not -1"),
        ({"images": []}, ImageError, "no image to explain"),
    ],
    ids=range(18),
)
def test_what_cannot_be_evaluated_is_refused(explainer, how, error, message):
    given = {"images": BLACK, "methods": "gradcam", "metrics": ["deletion"], **how}
    with pytest.raises(error, match=message):
        evaluate(explainer, **given)


def test_a_file_that_knows_no_photos_is_refused(tiny):
    with pytest.raises(InputError, match=r"records no preprocessing for photos\. Give it when opening"):
        evaluate(tiny, BLACK)


@pytest.fixture
def tiny():
    from runtime.conftest import Tiny

    return Explainer(Tiny(preprocess=None).graph_bytes(), ["cpu"])


# Files of other kinds

CONV = "c = Conv<pads=[1,1,1,1]>({x}, w, wb) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)"
HEAD = "y = Gemm<transB=1>(f, v, b)"
LAST = {"preset": "unit", "size": [24, 24], "layout": "NHWC"}


def opened(path, body, x="x", score=None, preprocess=None, dtype=np.float32, **form):
    """A small model, explainable."""
    pytest.importorskip("onnx_ir")
    from nets import model, weights

    from onnxcam.export import rewrite_onnx

    arrays = weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,), k=(2, 4, 1, 1))
    used = {name: a.astype(dtype) for name, a in arrays.items() if f" {name}" in body}
    made = model(body.format(x=x), initializers=used, **form)
    how = preprocess or {"preset": "unit", "size": [24, 24]}
    rewrite_onnx(made.SerializeToString(), path, score=score, preprocess=how)
    return Explainer(path, ["cpu"])


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(5)
    return [cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (30, 20)) for _ in range(2)]


KINDS = {
    "channels last": {
        "body": f"t = Transpose<perm=[0,3,1,2]>(x) {CONV} {HEAD}",
        "inputs": "float[N,24,24,3] x",
        "x": "t",
        "preprocess": LAST,
    },
    "one image at a time": {
        "body": f"{CONV} {HEAD}",
        "inputs": "float[1,3,24,24] x",
        "outputs": "float[1,5] y",
    },
    "half": {
        "body": f"{CONV} {HEAD}",
        "inputs": "float16[N,3,24,24] x",
        "outputs": "float16[N,5] y",
        "dtype": np.float16,
    },
    "its own softmax": {
        "body": f"{CONV} z = Gemm<transB=1>(f, v, b) y = Softmax(z)",
        "inputs": "float[N,3,24,24] x",
    },
    "its own logarithms": {
        "body": f"{CONV} z = Gemm<transB=1>(f, v, b) y = LogSoftmax(z)",
        "inputs": "float[N,3,24,24] x",
    },
    "weights at run time": {
        "body": f"{CONV} {HEAD}",
        "inputs": "float[N,3,24,24] x",
        "score": {"seed": True},
    },
    "softmax and weights": {
        "body": f"{CONV} z = Gemm<transB=1>(f, v, b) y = Softmax(z)",
        "inputs": "float[N,3,24,24] x",
        "score": {"seed": True},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_forms_are_measured_alike(tmp_path, small, kind):
    names = ["deletion", "insertion", "drop", "drop:ovx", "road", "coherency", "infidelity", "energy"]
    files = [
        opened(tmp_path / "0.cam.onnx", f"{CONV} {HEAD}", inputs="float[N,3,24,24] x"),
        opened(tmp_path / "1.cam.onnx", **KINDS[kind]),
    ]
    boxes = [[[3, 3, 20, 15]]] * 2
    rows = [evaluate(one, small, "gradcam", names, truths=boxes).rows[0].measured for one in files]
    for name in names:
        np.testing.assert_allclose(rows[1][name].values, rows[0][name].values, rtol=0.02, atol=2e-3)


def test_whole_numbers_are_rounded_on_the_way_in(tmp_path, small):
    body = f"d = Cast<to=1>(x) s = Constant<value_float=0.01>() e = Mul(d, s) {CONV} {HEAD}"
    file = opened(
        tmp_path / "u.cam.onnx",
        body,
        "e",
        preprocess={"preset": "raw", "size": [24, 24]},
        inputs="uint8[N,3,24,24] x",
    )
    one = evaluate(file, small, "gradcam", ["deletion", "insertion", "road"]).rows[0].measured
    assert all(one[name].count == 2 for name in one)
    assert one["insertion"].curve.y[-1] == pytest.approx(one["deletion"].curve.y[0], rel=1e-5)


def test_a_segmentation_is_measured_in_its_own_units(tmp_path, small):
    body = "c = Conv<pads=[1,1,1,1]>({x}, w, wb) r = Relu(c) y = Conv(r, k)"
    file = opened(
        tmp_path / "s.cam.onnx",
        body,
        score={"task": "segmentation"},
        inputs="float[N,3,24,24] x",
        outputs="float[N,2,24,24] y",
    )
    found = evaluate(file, small, "gradcam", ["deletion", "gain"])
    assert found.rows[0].measured["deletion"].count == 2
    assert found.scores[0] == pytest.approx(float(file.explain(small[0]).scores[0]), rel=1e-5)
    assert "The gain is of a probability" in found.rows[0].measured["gain"].undefined[0]


# The report


def test_csv_and_json_say_the_same(found):
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    data = json.loads(json.dumps(found.data()))
    for line, row in zip(rows, data["methods"], strict=True):
        assert line["method"] == row["method"]
        assert float(line["deletion"]) == row["metrics"]["deletion"]["mean"]
        assert float(line["passes"]) == row["passes"]
    assert data["refused"] == {}
    assert [m["name"] for m in data["metrics"]][:2] == ["deletion", "insertion"]


def test_the_best_are_those_with_the_best_mean_however_a_metric_counts(found):
    def with_means(*means):
        rows = tuple(
            replace(row, measured={"m": Measured(np.array([m]))})
            for row, m in zip(found.rows, means, strict=True)
        )
        return replace(found, rows=rows)

    up, down, flat = (Metric("m", lambda case: 0.0, b, "", "") for b in ("higher", "lower", "neither"))
    assert with_means(1, 3, 2).best(up) == ("cam",)
    assert with_means(1, 3, 2).best(down) == ("gradcam",)
    assert with_means(1, 3, 3).best(up) == ("cam", RANDOM)
    assert with_means(1, 3, 3).best(flat) == ()
    assert with_means(np.nan, 3, np.nan).best(down) == ("cam",)


def test_the_plot_is_a_picture_with_a_panel_for_each_metric_that_has_a_curve(found):
    pytest.importorskip("matplotlib")
    two = replace(
        found, metrics=tuple(m for m in found.metrics if m.name in ("deletion", "insertion", "drop"))
    )
    shapes = [
        cv2.imdecode(np.frombuffer(plots.curves(one), np.uint8), cv2.IMREAD_COLOR).shape
        for one in (two, replace(two, metrics=two.metrics[:1]))
    ]
    assert shapes[0][1] == 2 * shapes[1][1] > 800
    with pytest.raises(MetricError, match="None of the metrics has a curve to plot; 'deletion'"):
        plots.curves(replace(two, metrics=two.metrics[2:]))


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch, found):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r'needs .matplotlib.*pip install "onnxcam\[metrics\]"'):
        plots.curves(found)


# Mosaics


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_a_mosaic_shows_each_image_in_its_cell(last):
    images = [np.full((8, 10, 3) if last else (3, 8, 10), i, np.float32) for i in range(4)]
    made, cells = mosaic(images, last)
    assert made.shape == images[0].shape
    assert sum(cell.astype(int) for cell in cells).tolist() == np.ones((8, 10), int).tolist()
    for i, cell in enumerate(cells):
        assert set((made if last else made.transpose(1, 2, 0))[cell].ravel().tolist()) == {i}


@pytest.mark.parametrize(
    ("count", "size", "message"), [(3, 8, "has 4, 9, 16"), (1, 8, "not 1"), (9, 2, "no grid of 3x3")]
)
def test_a_mosaic_is_square_and_has_room(count, size, message):
    with pytest.raises(MetricError, match=message):
        mosaic([np.zeros((1, size, size), np.float32)] * count)


# Truth


WHOLE = Geometry((4, 6), (8, 12), (2.0, 2.0), (0.0, 0.0))  # a photo of 4 x 6, twice as large for the model
CENTRE = Geometry((4, 8), (4, 4), (1.0, 1.0), (0.0, -2.0))  # columns 2 to 5 of a photo of 4 x 8


def test_masks_and_boxes_are_seen_through_the_models_eyes():
    mask = np.zeros((4, 6))
    mask[1:3, 2:5] = 1
    for given in (mask, [[2, 1, 5, 3]]):
        seen = truth.seen(given, WHOLE)
        assert seen.mask.sum() == 24
        assert seen.boxes.tolist() == [[4, 2, 10, 6]]
    cut = truth.seen([[0, 0, 4, 4], [6, 0, 8, 4]], CENTRE)
    assert cut.boxes.tolist() == [[0, 0, 2, 4]]  # the second lies outside


@pytest.mark.parametrize(
    ("given", "geometry", "message"),
    [
        (None, WHOLE, "There is no truth for 'a.png'"),
        (np.ones((5, 6)), WHOLE, r"The mask of 'a.png' is \(5, 6\), but the photo is \(4, 6\)"),
        (np.zeros((4, 6)), WHOLE, "The mask of 'a.png' is empty"),
        (np.eye(4, 8) * [[1], [0], [0], [0]], CENTRE, "The object in 'a.png' lies outside of what the model"),
        ([[6, 0, 8, 4]], CENTRE, "The object in 'a.png' lies outside of what the model"),
        ([[3, 3, 1, 1]], WHOLE, "A box has x1 < x2"),
    ],
    ids=range(6),
)
def test_truth_that_does_not_fit_is_refused(given, geometry, message):
    with pytest.raises(MetricError, match=message):
        truth.seen(given, geometry, "'a.png'")


def test_masks_are_found_by_name_and_folder(tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for folder in (photos / "b", masks / "b"):
        folder.mkdir(parents=True)
    for name, side in (("cat.png", 2), ("b/cat.png", 3), ("b/dog.png", 4)):
        cv2.imwrite(str(masks / name), np.eye(5, dtype=np.uint8)[:side] * 9)
    paths = [str(photos / name) for name in ("cat.jpg", "b/cat.jpg", "b/dog.jpg", "b/owl.jpg")]
    found = truth.read(masks, paths)
    assert [None if m is None else m.sum() for m in found] == [2, 3, 4, None]


def test_boxes_are_found_by_path_or_file_name(tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"a.png": [[0, 0, 1, 1]], "x/b.png": [[0, 0, 2, 2]]}))
    assert truth.read(file, ["y/a.png", "x/b.png", "y/b.png"]) == [[[0, 0, 1, 1]], [[0, 0, 2, 2]], None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no folder of masks or JSON file"),
        ("{", "is no readable JSON"),
        ("[]", "holds no JSON object"),
        ('{"cta.png": []}', r"There is no photo of the file .* such as 'cat.png'. Nearest: 'cta.png'"),
    ],
    ids=range(4),
)
def test_truth_that_cannot_be_read_is_refused(tmp_path, content, message):
    file = tmp_path / "truth.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(OnnxcamError, match=message):
        truth.read(file, ["cat.png"])


def test_a_folder_without_a_mask_of_these_photos_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "dog.png"), np.ones((2, 2), np.uint8))
    with pytest.raises(MetricError, match=r"There is no mask in the folder .* such as 'cat'"):
        truth.read(tmp_path, ["cat.png"])


def test_curves_of_different_lengths_have_no_mean():
    from onnxcam.evaluation import _measured

    x = np.linspace(0, 1, 3)
    curves = [Curve(x, x), Curve(x[:2], x[:2])]
    assert _measured(metrics.get("deletion"), curves).curve is None
    assert _measured(metrics.get("deletion"), curves[:1]).curve is not None
