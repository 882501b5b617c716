"""Real files of other tasks on real photos: a segmentation, a detector, an embedding and two outputs.

The models and photos are no part of the package: ../shared/data beside the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from onnxcam import Explainer, images
from onnxcam.targets import Box, Region

pytest.importorskip("onnx_ir")

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}"),
]


@pytest.fixture(scope="module")
def worked(tmp_path_factory, monkeypatch_module):
    """What the worked example writes: {task: (explainer, picture)}."""
    import other_tasks

    out = tmp_path_factory.mktemp("tasks")
    for task in (
        other_tasks.segmentation,
        other_tasks.detection,
        other_tasks.embedding,
        other_tasks.two_outputs,
    ):
        task(DATA, out)
    return out


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
        yield patch


def photo(name):
    return str(DATA / "photos" / name)


def mask_of(animal):
    mask = cv2.imread(photo(f"{animal}_segmentation_mask.bmp"), cv2.IMREAD_UNCHANGED)
    return (mask if mask.ndim == 2 else mask[..., 0]) == {"bird": 3, "dog": 0}[animal]


def upper(heat):
    return heat[: len(heat) // 2].sum() / heat.sum()


def inside(heat, box):
    x1, y1, x2, y2 = np.rint(box).astype(int)
    return heat[y1:y2, x1:x2].sum() / heat.sum()


def test_every_task_is_pictured(worked):
    for name in ("segmentation", "detection", "embedding", "two_outputs"):
        picture = cv2.imread(str(worked / f"{name}.png"))
        assert picture is not None
        assert picture.std() > 10


@pytest.mark.parametrize("animal", ["bird", "dog"])
def test_the_evidence_of_a_segmentation(worked, animal):
    explainer = Explainer(worked / "deeplabv3.cam.onnx", "cpu")
    result = explainer.explain(photo(f"{animal}_segmentation.bmp"))
    assert result.labels == [animal]  # not the background, which has most pixels
    heat, mask = result.heatmaps[0], mask_of(animal)
    assert heat[mask].sum() / heat.sum() / mask.mean() >= 1.5
    given = explainer.explain(photo(f"{animal}_segmentation.bmp"), target=Region(animal, mask))
    assert np.corrcoef(given.heatmaps[0].ravel(), heat.ravel())[0, 1] > 0.95


def test_a_region_draws_the_evidence_to_it(worked):
    explainer = Explainer(worked / "deeplabv3.cam.onnx", "cpu")
    both = photo("gradcam_both.png")
    below = np.zeros(images.load(both).shape[:2], bool)
    below[len(below) // 2 :] = True
    # The network takes the cat for another dog; what there is of a cat lies where the cat is.
    dog, cat = explainer.explain(both, target=[["dog", Region("cat", below)]]).heatmaps
    assert upper(dog) - upper(cat) >= 0.2
    nothing = explainer.explain(both, target="cat")
    assert nothing.zero.all()
    assert nothing.scores.tolist() == [0]


def test_each_detection_is_explained_by_what_its_box_holds(worked):
    explainer = Explainer(worked / "yolox.cam.onnx", "cpu")
    both = photo("gradcam_both.png")
    result = explainer.explain(both, target=[["dog", "cat"]], method="hirescam")
    assert (result.scores > 0.5).all()
    for own, other in ((0, 1), (1, 0)):
        heat = result.heatmaps[own]
        assert inside(heat, result.boxes[own]) >= 0.8
        assert inside(heat, result.boxes[own]) - inside(heat, result.boxes[other]) >= 0.5
    by_box = explainer.explain(both, target=[[Box(b) for b in result.boxes]], method="hirescam")
    assert by_box.labels == ["dog", "cat"]
    np.testing.assert_allclose(by_box.maps, result.maps, atol=1e-6)


def test_what_a_photo_shares_with_each_half_of_it(worked):
    explainer = Explainer(worked / "embedding.cam.onnx", "cpu")
    from onnxcam.targets import Similar

    both = images.load(photo("gradcam_both.png"))
    half = both.shape[0] // 2
    references = explainer.explain([both[:half], both[half:]]).embeddings
    dog, cat = explainer.explain(both, target=[[Similar(r) for r in references]]).heatmaps
    assert upper(dog) - upper(cat) >= 0.4


def test_a_rating_and_its_opposite(worked):
    from onnxcam.targets import Contrast, Weights

    explainer = Explainer(worked / "two_outputs.cam.onnx", "cpu")
    more, less = Weights({"dog_not_cat": 1.0}), Weights({"dog_not_cat": -1.0})
    asked = [more, less, Contrast("tabby", "bull mastiff")]
    result = explainer.explain(photo("gradcam_both.png"), target=[asked])
    dog, cat, tabby = result.heatmaps
    assert upper(dog) - upper(cat) >= 0.4
    assert upper(tabby) <= 0.2
    np.testing.assert_allclose(result.scores[:2], result.outputs["dog_not_cat"][0] * [1, -1], rtol=1e-4)
