"""What agreement means: the scores of pairs of models whose relation is known.

    python benchmarks/calibration.py [--second FILE] [--crops 8] [--json FILE]

On 64 held-out mosaics of ``onnxcam demo``: its network against itself, in half precision, quantised by ONNX
Runtime with calibration, with one activation of that saturated, trained again from another seed (``--second``
FILE: what ``examples/train_demo.py --seed 2 --out`` wrote; without it, five minutes are spent on that), with
random weights, and against maps of noise. On the photos of ../shared/data, each cropped and mirrored
``--crops`` times: MobileNetV2 against its int8 version of its authors, against another network of the same
classes (SqueezeNet) and noise; SqueezeNet against its half-precision twin.

A row: the share of the same answers, the mean Pearson correlation of the maps of those, and over all photos
the mean of each measure (in brackets the worse of its 5 % and 95 % quantiles).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.transformers import float16

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from overhead import machine
from quantized_files import CAFFE, DATA, photos, quantized

from onnxcam import comparison, demo, images, preprocess
from onnxcam.comparison import agreement
from onnxcam.comparison.data import Statistic
from onnxcam.comparison.sides import Side, recorded
from onnxcam.contract import KEY, read_record
from onnxcam.demo import mosaics
from onnxcam.export import load, randomised, strip
from onnxcam.recording import Recording

MEASURES = comparison.MEASURES


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--second", type=Path, help="another training of the demo's network")
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(machine(1))
    with tempfile.TemporaryDirectory() as folder:
        rows = [*of_demo(Path(folder), args.second), *of_photos(Path(folder), args.crops)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def of_demo(folder: Path, second: Path | None) -> Iterator[dict[str, Any]]:
    """The demo's network and what was made of it."""
    here = folder / "mosaics"
    here.mkdir()
    for number, mosaic in enumerate(mosaics.mosaics(mosaics.held_out())):
        cv2.imwrite(str(here / f"{number:02}.png"), cv2.cvtColor(mosaic.image, cv2.COLOR_RGB2BGR))
    model = folder / "demo.cam.onnx"
    model.write_bytes(demo.model_bytes())
    plain = folder / "demo.onnx"
    ir.save(strip(load(model)), plain)
    record = read_record({p.key: p.value for p in onnx.load(model).metadata_props if p.key == KEY})
    how = dataclasses.asdict(record.preprocess) if record.preprocess else {}
    head = f"the demo's network, {len(list(here.iterdir()))} mosaics"
    yield line(head, "itself", recorded(model, model, [here]))
    yield line(
        head, "without graph optimisation", recorded(model, Side(model, optimization="disable"), [here])
    )

    half = folder / "half.onnx"
    onnx.save(float16.convert_float_to_float16(onnx.load(plain), keep_io_types=True), half)
    yield line(head, "in half precision", recorded(model, Side(half, preprocess=how), [here]))

    some = sorted(here.iterdir())[:16]
    taken = [{"image": preprocess.apply(images.load(one), record.preprocess)[0][None]} for one in some]
    whole = quantized(plain, "QDQ per channel", folder / "int8.onnx", taken)
    yield line(head, "quantised, calibrated", recorded(model, Side(whole, preprocess=how), [here]))
    broken = saturated(whole, folder / "broken.onnx")
    yield line(head, "one activation saturated", recorded(model, Side(broken, preprocess=how), [here]))

    yield line(head, "another training", recorded(model, second or trained(folder), [here]))
    random = folder / "random.cam.onnx"
    randomised(model, random, seed=1)
    yield line(head, "random weights", recorded(model, random, [here]))
    yield line(head, "maps of noise", with_noise(recorded(model, model, [here])[0]))


def of_photos(folder: Path, crops: int) -> Iterator[dict[str, Any]]:
    """Real networks on real photos."""
    here = folder / "photos"
    here.mkdir()
    for path in photos():
        for number, crop in enumerate(cropped(images.load(path), crops)):
            cv2.imwrite(str(here / f"{Path(path).stem}-{number}.png"), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    head = f"real networks, {len(list(here.iterdir()))} crops of photos"
    mobilenet = Side(DATA / "models" / "mobilenet_v2.onnx", preprocess="imagenet")
    quantised = Side(DATA / "models" / "mobilenet_v2_qdq.onnx", preprocess="imagenet")
    yield line(head, "MobileNetV2, int8 by its authors", recorded(mobilenet, quantised, [here]))
    squeezenet = Side(DATA / "models" / "squeezenet1.1.onnx", preprocess=CAFFE)
    twin = Side(DATA / "models" / "squeezenet1.1_fp16.onnx", preprocess=CAFFE)
    yield line(head, "SqueezeNet in half precision", recorded(squeezenet, twin, [here]))
    first, second = recorded(mobilenet, squeezenet, [here])
    yield line(head, "MobileNetV2 and SqueezeNet", (first, second))
    yield line(head, "MobileNetV2 and maps of noise", with_noise(first))


def line(head: str, name: str, sides: tuple[Recording, Recording]) -> dict[str, Any]:
    """One row, printed."""
    last = tuple(one.maker.layers[-1] for one in sides)
    found = comparison.compare(*sides, pairs=[(last[0], last[1])], measures=MEASURES)
    answers = found.shares["same_answer"].mean
    same = [row.agreement[found.judged.name]["pearson"] for row in found.rows if row.same_answer]
    alike = float(np.mean([one for one in same if one is not None]))
    cells = [f"{found.statistics[m].mean:.3f} ({_tail(found.statistics[m], m):.3f})" for m in MEASURES]
    print(" | ".join([head, name, f"{answers:.1%}", f"{alike:.3f}", *cells]), flush=True)
    return {"on": head, "pair": name, "same_answer": answers, "pearson of same answers": alike} | {
        m: dataclasses.asdict(found.statistics[m]) for m in MEASURES
    }


def _tail(found: Statistic, measure: str) -> float:
    return found.p05 if agreement.get(measure).better == "higher" else found.p95


def with_noise(one: Recording, seed: int = 0) -> tuple[Recording, Recording]:
    """A recording, and the same with maps of uniform noise."""
    rng = np.random.default_rng(seed)
    maps = {name: rng.random(m.shape, np.float32) for name, m in one.maps.items()}
    return one, dataclasses.replace(one, maps=maps)


def cropped(photo: images.Photo, count: int, seed: int = 0) -> Iterator[images.Photo]:
    """Crops of three quarters of a photo's sides, every other one mirrored."""
    rng = np.random.default_rng(seed)
    h, w = (3 * n // 4 for n in photo.shape[:2])
    for number in range(count):
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(photo.shape, (h, w), strict=False))
        part = photo[top : top + h, left : left + w]
        yield np.ascontiguousarray(part[:, ::-1] if number % 2 else part)


def saturated(source: Path, target: Path, by: float = 40.0) -> Path:
    """The file with the scale of the activation in its middle divided, so that most of it is cut off."""
    model = onnx.load(source)
    weights = {one.name: one for one in model.graph.initializer}
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in weights]
    scale = weights[quantizers[len(quantizers) // 2].input[1]]
    less = onnx.numpy_helper.to_array(scale) / np.float32(by)
    scale.CopyFrom(onnx.numpy_helper.from_array(less, scale.name))
    onnx.save(model, target)
    return target


def trained(folder: Path) -> Path:
    """The demo's network from another seed."""
    import train_demo

    path = folder / "second.cam.onnx"
    train_demo.export(train_demo.train(1000, 48, 2), path)
    return path


if __name__ == "__main__":
    main()
