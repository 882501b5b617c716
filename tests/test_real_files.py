"""Real classifiers, made explainable from their files alone, on real photos.

The models and photos are no part of the package: ../shared/data beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from onnxcam import Explainer, preprocess

pytest.importorskip("onnx_ir")

from onnxcam.export import rewrite_onnx

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}"),
]

CAFFE = {
    "size": (224, 224),
    "fit": "stretch",
    "channels": "BGR",
    "scale": 1.0,
    "mean": (104.0, 117.0, 123.0),
    "std": (1.0,),
}
MOBILENET = {"preset": "imagenet-stretch", "antialias": False}
PREPROCESS = {
    "mobilenet_v2": MOBILENET,
    "keras_mobilenet_v1_025_nhwc": "keras-tf",
    "squeezenet1.1": CAFFE,
    "squeezenet1.1_fp16": CAFFE,
}
#: The least difference of the upper half's shares, and whether the probability is explained instead of the
#: logit. SqueezeNet's tabby logit answers to the dog, too (its tabby has a probability of 2e-5): its maps are
#: its own class maps and can tell no more than 0.33. Its probability, which weighs a class against the
#: others, tells them apart.
DOG_MINUS_CAT = [
    ("mobilenet_v2", False, 0.5),
    ("keras_mobilenet_v1_025_nhwc", False, 0.4),
    ("squeezenet1.1", False, 0.3),
    ("squeezenet1.1", True, 0.4),
    ("squeezenet1.1_fp16", True, 0.4),
]
EACH = pytest.mark.parametrize("name", PREPROCESS)


@pytest.fixture(scope="module")
def labels():
    return (DATA / "labels" / "imagenet_classes.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def explainers(tmp_path_factory, labels):
    """By name, each file rewritten and opened once; without labels in it."""
    opened = {}

    def get(name, probability=False):
        if (name, probability) not in opened:
            source = DATA / "models" / f"{name}.onnx"
            target = tmp_path_factory.mktemp("real") / f"{name}.cam.onnx"
            report = rewrite_onnx(source, target, probability=probability, preprocess=PREPROCESS[name])
            opened[name, probability] = Explainer(target, "cpu", labels=labels), report
        return opened[name, probability]

    return get


def photo(name):
    return str(DATA / "photos" / name)


@EACH
def test_the_file_hardly_grows(name, explainers):
    _, report = explainers(name)
    assert report.bytes <= 1.01 * report.source_bytes
    assert report.output_error < 1e-3


@pytest.mark.parametrize(("name", "probability", "least"), DOG_MINUS_CAT)
def test_the_heat_moves_from_the_dog_to_the_cat(name, probability, least, explainers):
    explainer, _ = explainers(name, probability)
    result = explainer.explain(photo("gradcam_both.png"), target=[["bull mastiff", "tabby"]])
    dog, cat = (h[: len(h) // 2].sum() / h.sum() for h in result.heatmaps)
    assert dog - cat >= least, (dog, cat)
    assert not result.zero.any()


@EACH
@pytest.mark.parametrize(("animal", "least"), [("bird", 1.5), ("dog", 1.15)])
def test_the_heat_lies_on_the_animal(name, animal, least, explainers):
    mask = cv2.imread(photo(f"{animal}_segmentation_mask.bmp"), cv2.IMREAD_UNCHANGED)
    mask = (mask if mask.ndim == 2 else mask[..., 0]) == {"bird": 3, "dog": 0}[animal]
    (heat,) = explainers(name)[0].explain(photo(f"{animal}_segmentation.bmp")).heatmaps
    assert heat.shape == mask.shape
    ratio = heat[mask].sum() / heat.sum() / mask.mean()
    assert ratio >= least, ratio


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("bird_segmentation.bmp", "vulture"),
        ("cat_720p.jpg", "Egyptian cat"),
        ("dog_segmentation.bmp", "Samoyed"),
        ("gradcam_both.png", "bull mastiff"),
        ("hot_dog.jpg", "hotdog"),
        ("owl.jpg", "ruffed grouse"),
        ("parrot.jpg", "macaw"),
        ("pets.jpg", "American Staffordshire terrier"),
    ],
)
def test_predictions(file, label, explainers):
    assert explainers("mobilenet_v2")[0].explain(photo(file)).labels == [label]


def test_half_precision_gives_the_same_maps(explainers):
    (single, _), (half, _) = explainers("squeezenet1.1"), explainers("squeezenet1.1_fp16")
    for file in ("gradcam_both.png", "bird_segmentation.bmp", "dog_segmentation.bmp"):
        expected, found = (e.explain(photo(file)) for e in (single, half))
        assert found.class_ids == expected.class_ids
        assert np.corrcoef(expected.heatmaps[0].ravel(), found.heatmaps[0].ravel())[0, 1] >= 0.999


def test_squeezenets_map_is_its_own_class_map(explainers):
    """No layer between the class maps and the score: Grad-CAM there can show nothing else."""
    explainer, report = explainers("squeezenet1.1")
    (layer,) = report.record.layers
    assert (layer.name, layer.shape[1]) == ("conv10_2", 1000)
    result = explainer.explain(photo("gradcam_both.png"), target="tabby")
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(report.path), options, providers=["CPUExecutionProvider"])
    tensor, _ = preprocess.apply(result.images[0], explainer.preprocess, np.dtype(np.float32))
    (maps,) = session.run(["cam.activations.conv10_2"], {"data_0": tensor[None]})
    expected = maps[0, result.class_ids[0]] / maps[0, result.class_ids[0]].max()
    np.testing.assert_allclose(result.maps[0] / result.maps[0].max(), expected, atol=1e-5)
