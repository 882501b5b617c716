"""Real files, fused, in the page: float32, float16 and int8, both layouts, a detector and a segmentation.

The models and photos are no part of the package: ../shared/data beside the repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from chromium import Browser, missing

from onnxcam import images, preprocess
from onnxcam.contract import CLASS_INDEX
from onnxcam.explainer import Explainer
from onnxcam.export import rewrite_onnx

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MISSING = missing() if DATA.is_dir() else f"no real models and photos in {DATA}"
pytestmark = [pytest.mark.data, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

CAFFE = {"size": (224, 224), "channels": "BGR", "scale": 1.0, "mean": (104.0, 117.0, 123.0)}
MOBILENET = {"preset": "imagenet-stretch", "antialias": False}
IMAGENET, COCO, VOC = "imagenet_classes.txt", "coco.names", "pascal_voc_segmentation_labels.txt"
TABBY = 281

#: How each is rewritten, its labels, the class that is chosen after the best one, and what the photo shows.
FILES: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "mobilenet_v2": ({"preprocess": MOBILENET}, IMAGENET, TABBY, "bull mastiff"),
    "mobilenet_v2_qdq": ({"preprocess": MOBILENET}, IMAGENET, TABBY, "bull mastiff"),
    "squeezenet1.1": ({"preprocess": CAFFE}, IMAGENET, TABBY, "bull mastiff"),
    "squeezenet1.1_fp16": ({"preprocess": CAFFE}, IMAGENET, TABBY, "bull mastiff"),
    "keras_mobilenet_v1_025_nhwc": ({"preprocess": "keras-tf"}, IMAGENET, TABBY, "boxer"),
    "yolox_nano": (
        {"preprocess": "yolox", "score": {"task": "detection", "head": "yolox"}},
        COCO,
        15,
        "dog",
    ),
    "deeplabv3_mnv2_nhwc": ({"preprocess": "keras-tf"}, VOC, 0, "dog"),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


@pytest.mark.parametrize("name", FILES)
def test_maps_equal_pythons(browser: Browser, tmp_path: Path, name: str) -> None:
    options, labels, other, shown = FILES[name]
    names = (DATA / "labels" / labels).read_text().splitlines()
    path = tmp_path / f"{name}.cam.onnx"
    rewrite_onnx(
        DATA / "models" / f"{name}.onnx",
        path,
        labels=names[:21] if labels == VOC else names,  # what follows are no classes of the model
        fuse="gradcam",
        **options,
    )
    explainer = Explainer(path)
    assert explainer.preprocess is not None
    session = ort.InferenceSession(path)
    image = session.get_inputs()[0]
    photo = images.load(DATA / "photos" / "gradcam_both.png")
    dtype = np.float16 if image.type == "tensor(float16)" else np.float32
    x = preprocess.apply(photo, explainer.preprocess, dtype)[0][None]
    browser.open()
    browser.choose("#model-file", [path])
    found = browser.choose("#photo-file", [DATA / "photos" / "gradcam_both.png"])
    assert found["problem"] is None
    assert found["caption"].startswith(f"{shown}, ")
    maps = []
    for index in (-1, other):
        if index != -1:
            browser("select", "#other", str(index))
            found = browser.settled()
            assert found["index"] == index
        feeds = {image.name: x, CLASS_INDEX: np.array([index])}
        expected = session.run(["cam.heatmap.gradcam"], feeds)[0][0]
        made = np.reshape(np.array(found["map"], np.float32), found["shape"])
        assert expected.max() > 0.99
        np.testing.assert_allclose(made, expected, atol=1e-3)
        maps.append(made)
    assert np.abs(maps[0] - maps[1]).max() > 0.3
