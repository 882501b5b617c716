"""Beyond classes: a segmentation, a detection, an embedding and a weighted sum, each worked and pictured.

    python examples/other_tasks.py FOLDER -o OUT

FOLDER holds ``models/`` (deeplabv3_mnv2_nhwc.onnx, yolox_nano.onnx, mobilenet_v2.onnx), ``photos/`` and
``labels/`` (pascal_voc_segmentation_labels.txt, coco.names, imagenet_classes.txt).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxcam import Explainer, images
from onnxcam.export import rewrite_onnx
from onnxcam.targets import Box, Contrast, Region, Similar, Weights

YOLOX = {
    "size": (416, 416),
    "fit": "letterbox",
    "anchor": "top-left",
    "channels": "BGR",
    "scale": 1.0,
    "antialias": False,
}
MOBILENET = {"preset": "imagenet-stretch", "antialias": False}


def segmentation(folder: Path, out: Path) -> None:
    """Which evidence makes the pixels of a class that class (Seg-Grad-CAM)."""
    labels = _lines(folder / "labels" / "pascal_voc_segmentation_labels.txt")
    target = out / "deeplabv3.cam.onnx"
    report = rewrite_onnx(
        folder / "models" / "deeplabv3_mnv2_nhwc.onnx",
        target,
        preprocess={"preset": "keras-tf", "size": (257, 257)},
        labels=labels,
    )
    print(report)
    explainer = Explainer(target, "cpu")
    photos = [
        folder / "photos" / name for name in ("bird_segmentation.bmp", "cat_720p.jpg", "gradcam_both.png")
    ]
    h, w = images.load(photos[2]).shape[:2]
    below = np.zeros((h, w), bool)
    below[h // 2 :] = True
    # Each photo's main class over the pixels given to it; and another class over pixels that we choose.
    _show(explainer, photos, [None, None, [None, Region("cat", below)]], out / "segmentation.png")


def detection(folder: Path, out: Path) -> None:
    """Which evidence makes a box and its class."""
    target = out / "yolox.cam.onnx"
    report = rewrite_onnx(
        folder / "models" / "yolox_nano.onnx",
        target,
        score={"task": "detection", "head": "yolox"},
        preprocess=YOLOX,
        labels=_lines(folder / "labels" / "coco.names"),
    )
    print(report)
    explainer = Explainer(target, "cpu")
    both = folder / "photos" / "gradcam_both.png"
    h, w = images.load(both).shape[:2]
    lower = Box((0.2 * w, h / 2, 0.8 * w, h))
    # The most confident box; the best of a class; and the one that fits a box drawn by hand.
    _show(explainer, both, [[None, "cat", lower]], out / "detection.png", method="hirescam")


def embedding(folder: Path, out: Path) -> None:
    """What two photos have in common: the pooled features of a classifier serve as an embedding."""
    source = folder / "models" / "mobilenet_v2.onnx"
    pooled = next(n for n in onnx.load(source).graph.node if n.op_type == "Gemm").input[0]
    target = out / "embedding.cam.onnx"
    report = rewrite_onnx(source, target, score={"output": pooled, "task": "embedding"}, preprocess=MOBILENET)
    print(report)
    explainer = Explainer(target, "cpu")
    both = images.load(folder / "photos" / "gradcam_both.png")
    half = both.shape[0] // 2
    dog, cat = explainer.explain([both[:half], both[half:]]).embeddings  # the two animals, cut out
    _show(
        explainer, both, [[Similar(dog, "like the dog"), Similar(cat, "like the cat")]], out / "embedding.png"
    )


def two_outputs(folder: Path, out: Path) -> None:
    """A classifier that also rates, how much more a dog than a cat a photo shows; and sums of the two."""
    model = onnx.load(folder / "models" / "mobilenet_v2.onnx")
    weights = np.zeros((1000, 1), np.float32)
    weights[151:269] = 1 / 118  # ImageNet's dogs
    weights[281:286] = -1 / 5  # and its cats
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "dog_not_cat_weights"))
    model.graph.node.append(helper.make_node("MatMul", ["scores", "dog_not_cat_weights"], ["dog_not_cat"]))
    model.graph.output.append(helper.make_tensor_value_info("dog_not_cat", TensorProto.FLOAT, ["batch", 1]))
    source, target = out / "two_outputs.onnx", out / "two_outputs.cam.onnx"
    onnx.save(model, source)
    report = rewrite_onnx(
        source,
        target,
        score={"output": "scores", "seed": ["scores", "dog_not_cat"]},
        preprocess=MOBILENET,
        labels=_lines(folder / "labels" / "imagenet_classes.txt"),
    )
    print(report)
    asked = [
        None,
        Weights({"dog_not_cat": 1.0}),
        Weights({"dog_not_cat": -1.0}),
        Contrast("tabby", "bull mastiff"),
        Weights({"scores": {"tabby": 1.0}, "dog_not_cat": -0.5}),
    ]
    both = folder / "photos" / "gradcam_both.png"
    _show(Explainer(target, "cpu"), both, [asked], out / "two_outputs.png")


def _show(explainer: Explainer, photo: Any, target: Any, path: Path, method: str = "gradcam") -> None:
    found = explainer.explain(photo, target=target, method=method)
    for label, score in zip(found.labels, found.scores, strict=True):
        print(f"  {label}: {score:.4g}")
    cv2.imwrite(str(path), cv2.cvtColor(found.sheet(), cv2.COLOR_RGB2BGR))
    print(f"  -> {path}")


def _lines(path: Path) -> list[str]:
    """The names in a label file; a remark may follow behind an empty line."""
    return path.read_text().partition("\n\n")[0].strip().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for task in (segmentation, detection, embedding, two_outputs):
        print(f"{task.__name__.replace('_', ' ')}: {task.__doc__}")
        task(args.folder, args.output)


if __name__ == "__main__":
    main()
