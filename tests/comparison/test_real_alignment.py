"""One real network that sees the same photos in different ways: its maps meet where they are in the photo."""

import dataclasses
from pathlib import Path

import pytest

from onnxcam.comparison import compare
from onnxcam.comparison.sides import Side, recorded

pytest.importorskip("onnx_ir")

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}"),
]
PHOTOS = ("cat_720p.jpg", "hot_dog.jpg", "owl.jpg", "parrot.jpg", "pets.jpg")


@pytest.mark.parametrize(
    "how", [{"fit": "letterbox", "resize": None}, {"resize": 400}], ids=["letterbox", "zoom"]
)
def test_maps_agree_more_in_the_photo_than_cell_by_cell(how):
    model, photos = DATA / "models" / "mobilenet_v2.onnx", [DATA / "photos" / name for name in PHOTOS]
    views = ({"preset": "imagenet"}, {"preset": "imagenet", **how})
    sides = recorded(*(Side(model, preprocess=view) for view in views), photos)
    # Without knowing how photos become inputs, the grids are laid on each other as they are.
    blind = (dataclasses.replace(s, maker=dataclasses.replace(s.maker, preprocess=None)) for s in sides)
    placed, unplaced = compare(*sides), compare(*blind)
    assert placed.statistics["pearson"].mean > unplaced.statistics["pearson"].mean + 0.03
    assert placed.statistics["js"].mean < 0.7 * unplaced.statistics["js"].mean
