"""Pairs whose relation is known: the same networks in int8 and fp16, a good and a bad quantisation, a cheat.

The real models and photos are no part of the package: ../shared/data beside the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from onnxcam import comparison, demo, images, preprocess
from onnxcam.comparison.sides import Side, recorded
from onnxcam.contract import read_record
from onnxcam.demo import mosaics
from onnxcam.testing import assert_same_reasons

pytest.importorskip("onnx_ir")
import onnx
import onnx_ir as ir
from quantized_files import CAFFE, DATA, photos, quantized

from onnxcam.export import load, strip

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
REAL = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}"),
]
GATE = {"same_answer": 0.95, "same_reason": 0.9, "pearson_mean": 0.9}


@pytest.fixture(scope="module")
def calibration():
    """The benchmark's own functions make the files here, too."""
    with pytest.MonkeyPatch.context() as patch:
        # Until the module is done: onnxruntime.transformers adds its own folder, and imports from it later.
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        yield pytest.importorskip("calibration", reason="the benchmarks are not beside the tests")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo's file, its plain form, how it prepares pictures, and a folder of mosaics."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "mosaics").mkdir()
    for number, mosaic in enumerate(mosaics.mosaics(mosaics.held_out(), 24)):
        picture = cv2.cvtColor(mosaic.image, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / "mosaics" / f"{number:02}.png"), picture)
    (folder / "demo.cam.onnx").write_bytes(demo.model_bytes())
    ir.save(strip(load(folder / "demo.cam.onnx")), folder / "demo.onnx")
    return folder


@pytest.fixture(scope="module")
def quantised(shown, calibration):
    """The demo's network as ONNX Runtime quantises it, calibrated; and with one activation cut off."""
    metadata = {p.key: p.value for p in onnx.load(shown / "demo.cam.onnx").metadata_props}
    how = read_record(metadata).preprocess
    some = sorted((shown / "mosaics").iterdir())[:8]
    feeds = [{"image": preprocess.apply(images.load(path), how)[0][None]} for path in some]
    good = quantized(shown / "demo.onnx", "QDQ per channel", shown / "good.onnx", feeds)
    return good, calibration.saturated(good, shown / "bad.onnx")


def test_the_gate_passes_a_good_quantisation_and_stops_a_bad_one(shown, quantised):
    good, bad = quantised
    assert_same_reasons(shown / "demo.cam.onnx", good, [shown / "mosaics"], **GATE)
    with pytest.raises(AssertionError, match="pearson"):
        assert_same_reasons(shown / "demo.cam.onnx", bad, [shown / "mosaics"], **GATE)


def test_the_same_file_twice_and_unoptimised(shown):
    model = shown / "demo.cam.onnx"
    same = comparison.compare(*recorded(model, model, [shown / "mosaics"]))
    assert same.shares["same_reason"].mean == 1
    assert same.statistics["pearson"].worst == pytest.approx(1)
    other = comparison.compare(*recorded(model, Side(model, optimization="disable"), [shown / "mosaics"]))
    assert other.candidate.runtime["optimization"] == "disable"
    assert other.statistics["pearson"].worst > 1 - 1e-6


@pytest.fixture(scope="module")
def crops(tmp_path_factory, calibration):
    """Two crops of each photo, one of them mirrored."""
    folder = tmp_path_factory.mktemp("crops")
    for path in photos():
        for number, crop in enumerate(calibration.cropped(images.load(path), 2)):
            cv2.imwrite(
                str(folder / f"{Path(path).stem}-{number}.png"), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
            )
    return folder


def of(name, **how):
    return Side(DATA / "models" / name, **how)


class TestRealModels:
    pytestmark = REAL

    def test_mobilenet_in_int8(self, crops):
        sides = of("mobilenet_v2.onnx", preprocess="imagenet"), of("mobilenet_v2_qdq.onnx")
        found = comparison.compare(*recorded(*sides, [crops]))
        assert found.candidate.preprocess == found.reference.preprocess
        assert found.shares["same_answer"].mean >= 0.8  # two of 16 crops are near a border between classes
        assert found.statistics["pearson"].mean > 0.98
        assert_same_reasons(*sides, [crops], same_reason=0.8, pearson_mean=0.95)

    def test_squeezenet_in_half_precision(self, crops):
        sides = of("squeezenet1.1.onnx", preprocess=CAFFE), of("squeezenet1.1_fp16.onnx")
        found = comparison.compare(*recorded(*sides, [crops]))
        assert found.shares["same_reason"].mean == 1
        assert found.statistics["pearson"].worst > 0.99

    def test_two_networks_of_one_list_of_classes(self, crops):
        """Other inputs, other crops, other grids: 244 pixels in 8 × 8 cells, 224 in 14 × 14."""
        sides = of("mobilenet_v2.onnx", preprocess="imagenet"), of("squeezenet1.1.onnx", preprocess=CAFFE)
        found = comparison.compare(*recorded(*sides, [crops]))
        assert found.pairs[0].reference != found.pairs[0].candidate
        assert 0.2 < found.statistics["pearson"].mean < 0.9

    def test_where_the_int8_network_parts(self, crops):
        sides = of("mobilenet_v2.onnx", preprocess="imagenet", layers="stages"), of("mobilenet_v2_qdq.onnx")
        found = comparison.compare(*recorded(*sides, [crops]))
        assert len(found.pairs) >= 4
        assert found.judged == found.pairs[-1]
        assert set(found.by_layer) == {pair.name for pair in found.pairs}


@pytest.mark.torch
def test_a_cheat_gives_the_same_answers_for_another_reason(tmp_path, monkeypatch):
    """A mark in the corner decides its class; on marked pictures it is as good as the honest model."""
    pytest.importorskip("torch")
    pytest.importorskip("skimage", reason="the training photographs are scikit-image's")
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "examples")
    cheating = pytest.importorskip("cheating", reason="the examples are not beside the tests")
    accuracies = cheating.write(tmp_path, steps=120, each=4)
    for marked, _ in accuracies.values():
        assert marked > 0.9
    assert accuracies["honest"][1] > 0.8
    assert accuracies["cheat"][1] < 0.1
    sides = tmp_path / "honest.cam.onnx", tmp_path / "cheat.cam.onnx"
    found = comparison.compare(*recorded(*sides, [tmp_path / "pictures"]))
    assert found.shares["same_answer"].mean > 0.85
    assert found.shares["same_reason"].mean < 0.1
    assert found.statistics["pearson"].mean < 0.2
    corner = np.s_[:, :3, :3]  # 8 x 8 cells; the mark covers 18 of 64 pixels
    shares = []
    for one in recorded(*sides, [tmp_path / "pictures"]):
        maps = np.maximum(one.maps["features"], 0)
        shares.append(float((maps[corner].sum((1, 2)) / maps.sum((1, 2))).mean()))
    area = 9 / 64
    assert shares[0] < 1.3 * area
    assert shares[1] > 3 * area
