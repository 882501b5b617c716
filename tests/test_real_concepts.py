"""Concepts and class-free maps of a real classifier on the photo of a dog above a cat.

The model and the photo are no part of the package: ../shared/data beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcam import Explainer, factorize, postprocess

pytest.importorskip("onnx_ir")

from onnxcam.export import rewrite_onnx

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}"),
]
BOTH = DATA / "photos" / "gradcam_both.png"
DOGS, CATS = {"bull mastiff", "boxer", "Great Dane"}, {"tabby", "tiger cat", "Egyptian cat", "lynx"}


@pytest.fixture(scope="module")
def explainer(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "m.cam.onnx"
    labels = (DATA / "labels" / "imagenet_classes.txt").read_text().splitlines()
    how = {"preset": "imagenet-stretch", "antialias": False}
    rewrite_onnx(DATA / "models" / "mobilenet_v2.onnx", path, preprocess=how, labels=labels)
    return Explainer(path, "cpu")


def test_concepts_of_dog_and_cat_have_their_names_and_places(explainer):
    found = factorize(explainer, str(BOTH), concepts=4)
    (heatmaps,) = found.heatmaps
    rows = np.arange(heatmaps.shape[1])
    height = [float((h.sum(1) @ rows) / h.sum() / len(rows)) for h in heatmaps]  # 0: the top, 1: the bottom
    best = [names[0].label for names in found.names]
    dogs = [h for h, name in zip(height, best, strict=True) if name in DOGS]
    cats = [h for h, name in zip(height, best, strict=True) if name in CATS]
    assert dogs
    assert cats
    assert max(dogs) < min(cats)
    assert len(dogs) + len(cats) == 4


@pytest.mark.parametrize("name", ["eigencam", "eigengradcam", "segeigencam", "kpcacam"])
def test_components_show_the_animals_and_not_the_room(explainer, name):
    """The other sign, which is as good a component, shows the wall and the floor."""
    result = explainer.explain(str(BOTH), name)
    (heatmap,) = result.heatmaps
    h, w = heatmap.shape
    animals = np.zeros((h, w), bool)
    animals[int(0.05 * h) : int(0.65 * h), int(0.3 * w) : int(0.7 * w)] = True  # the dog
    animals[int(0.5 * h) :, int(0.2 * w) : int(0.9 * w)] = True  # the cat
    area = animals.mean()
    turned = postprocess.heatmaps([-result.maps], (h, w))[0]
    assert heatmap[animals].sum() / heatmap.sum() > area + 0.2
    assert turned[animals].sum() / turned.sum() < area - 0.1
