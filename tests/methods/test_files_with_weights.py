"""A file that takes weights gives logits beside its table: methods of probabilities read the table."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcam import Explainer, demo
from onnxcam.demo import mosaics

pytest.importorskip("onnx_ir")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    from onnxcam.export import rewrite_onnx

    path = tmp_path_factory.mktemp("seed") / "seeded.cam.onnx"
    plain = Explainer(demo.model_bytes(), ["cpu"])
    rewrite_onnx(demo.model_bytes(), path, list(plain.layers), score={"seed": True})
    return plain, Explainer(path, ["cpu"])


@pytest.mark.parametrize(
    ("method", "options"),
    [("rise", {"masks": 60}), ("scorecam", {}), ("occlusion", {})],
    ids=["rise", "scorecam", "occlusion"],
)
def test_weights_that_are_not_given_change_no_map(both, method, options):
    (photo,) = (m.image for m in mosaics.mosaics(mosaics.held_out(), 1))
    maps = [e.explain(photo, method, target=[[2, 5]], **options).maps for e in both]
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-3, atol=1e-5 * np.abs(maps[0]).max())
