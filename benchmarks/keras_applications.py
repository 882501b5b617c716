"""Keras's own ONNX exporter: are its files explained as torch.autograd explains the Keras model?

    pip install --target PACKAGES --no-deps keras absl-py namex h5py optree rich
    PYTHONPATH=PACKAGES python benchmarks/keras_applications.py        # beside the test tools; Keras on torch

VGG16, ResNet50 and MobileNetV3Small (random weights, BatchNorm statistics randomised) are written by
``model.export(path, format="onnx")`` and rewritten from the file alone, at the automatic layer and at one in
the middle. A file's layers are Keras layers under other names, and transposed where a convolution wants its
channels first: the Keras layer is found by its values. Then these must agree with it:

- the recorded layout: which axes of the file's tensor are height, width and channels of Keras's (N, h, w, C);
- the gradient of the logit, against torch.autograd through the Keras model from that layer on;
- the map, upright: the images are wider than high.

The rows go to results/coverage.json, beside those of coverage.py.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from datetime import date
from typing import Any

import numpy as np

os.environ["KERAS_BACKEND"] = "torch"
import keras
import onnx
import torch
from coverage import EQUAL, RESULTS, cosine, kept

from onnxcam import Explainer
from onnxcam.export import Candidate, list_layers, rewrite_onnx
from onnxcam.export.verify import run

APPLICATIONS = ("VGG16", "ResNet50", "MobileNetV3Small")
HEIGHT, WIDTH = 96, 128
CLOSE = 1e-4  #: of the largest entry

Array = np.ndarray[Any, Any]


def main() -> int:
    """Check all; 1 if a gradient, layout or map differs."""
    warnings.simplefilter("ignore")
    failed = False
    for name in APPLICATIONS:
        started = time.monotonic()
        rows = check(name)
        failed |= any(row["kind"] != "equal" for row in rows)
        results = kept()
        results["networks"][f"keras:{name}"] = {
            "rows": rows,
            "way": "Keras's exporter, open batch",
            "seconds": round(time.monotonic() - started),
        }
        results["date"] = str(date.today())
        results.setdefault("versions", {})["keras"] = keras.__version__
        RESULTS.write_text(json.dumps(results, indent=0, sort_keys=True) + "\n")
        for row in rows:
            print(
                f"keras:{name:18}{row['layer']:30}{row['layout']:7}{row['kind']:14}{row['text']}", flush=True
            )
    return int(failed)


def check(name: str) -> list[dict[str, str]]:
    """The rows of one network."""
    model = built(name)
    images = np.random.default_rng(1).standard_normal((2, HEIGHT, WIDTH, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "model.onnx")
        model(images[:1])  # Keras exports what was called
        model.export(source, format="onnx", verbose=False)
        listed = list_layers(source)
        outputs = outputs_of(model, images)
        rows = [judge(source, listed[0], model, outputs, images)]
        for layer in listed[len(listed) // 2 :]:  # to the first that a Keras layer returns
            rows[1:] = [judge(source, layer, model, outputs, images)]
            if rows[1]["kind"] != "no reference":
                break
        return rows


def built(name: str) -> Any:
    """A Keras application with random weights and BatchNorm statistics."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(HEIGHT, WIDTH, 3))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.75, 1.25, layer.moving_variance.shape))
    return model


def outputs_of(model: Any, images: Array) -> dict[str, Array]:
    """What the layers return that have a grid, (N, h, w, C)."""
    layers = [x for x in model.layers[1:] if len(x.output.shape) == 4]
    found = keras.Model(model.inputs, [x.output for x in layers])(images, training=False)
    return {x.name: y.detach().numpy() for x, y in zip(layers, found, strict=True)}


def judge(
    source: str, layer: Candidate, model: Any, outputs: dict[str, Array], images: Array
) -> dict[str, str]:
    """The row of one layer."""
    target = f"{source}.cam.onnx"
    recorded = rewrite_onnx(source, target, layers=layer.tensor).record.layers[0]
    result = Explainer(target, "cpu").explain_tensor(images, method="hirescam")
    inputs = onnx.load(target, load_external_data=False).graph.input
    found = run(target, {inputs[0].name: images})
    kind = recorded.layout.kind
    axes = {"NHWC": (0, 1, 2, 3), "NCHW": (0, 2, 3, 1)}[kind]
    activations = found[recorded.activations].transpose(axes).astype(np.float64)
    gradients = found[recorded.gradients].transpose(axes).astype(np.float64)

    def row(verdict: str, text: str) -> dict[str, str]:
        return {"layer": layer.name, "layout": kind, "kind": verdict, "text": text}

    same = [n for n, y in outputs.items() if y.shape == activations.shape and close(activations, y)]
    if not same:
        return row("no reference", "no Keras layer returns this tensor in the recorded layout")
    reference = by_autograd(model, same[-1], images, result.class_ids)
    figures = f"{cosine(gradients, reference):10.7f}  Keras's {same[-1]}"
    expected = (reference * outputs[same[-1]]).sum(-1)
    if result.maps.shape != expected.shape or cosine(result.maps, expected) <= EQUAL:
        return row("different", f"{figures}: the map is not its layer's")
    return row("equal" if cosine(gradients, reference) > EQUAL else "different", figures)


def by_autograd(model: Any, layer: str, images: Array, classes: Array) -> Array:
    """d logit[classes] / d layer, (N, h, w, C), through Keras's own modules."""
    last = model.layers[-1]
    activation, last.activation = last.activation, keras.activations.linear
    try:
        output, logits = keras.Model(model.inputs, [model.get_layer(layer).output, model.output])(images)
    finally:
        last.activation = activation
    picked = logits[torch.arange(len(images)), torch.as_tensor(classes)].sum()
    (gradient,) = torch.autograd.grad(picked, output)
    return gradient.numpy().astype(np.float64)


def close(a: Array, b: Array) -> bool:
    """Within :data:`CLOSE`."""
    return bool(np.abs(a - b).max() <= CLOSE * np.abs(b).max())


if __name__ == "__main__":
    sys.exit(main())
