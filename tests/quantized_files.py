"""Real classifiers quantised by ONNX Runtime, and how far their heatmaps are from the originals'."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxcam import Explainer, preprocess
from onnxcam.errors import UnknownLayer
from onnxcam.export import rewrite_onnx
from onnxcam.export.from_onnx import load, normalize
from onnxcam.export.layers import Names
from onnxcam.images import load as load_photo

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CAFFE = {
    "size": (224, 224),
    "fit": "stretch",
    "channels": "BGR",
    "scale": 1.0,
    "mean": (104.0, 117.0, 123.0),
    "std": (1.0,),
}
PREPROCESS: dict[str, Any] = {
    "mobilenet_v2": {"preset": "imagenet-stretch", "antialias": False},
    "keras_mobilenet_v1_025_nhwc": "keras-tf",
    "squeezenet1.1": CAFFE,
}
#: A layer in the middle of each.
MIDDLE = {
    "mobilenet_v2": "Relu_621",
    "keras_mobilenet_v1_025_nhwc": "conv_pw_7_relu",
    "squeezenet1.1": "fire5/concat_1",
}
#: By layer and method, one correlation per photo; a photo of which the original's map is zero has none.
Agreement: TypeAlias = dict[str, dict[str, list[float]]]
METHODS = ("gradcam", "gradcam++", "layercam", "hirescam")
#: What ONNX Runtime's quantisers are asked for.
FORMATS: dict[str, dict[str, Any]] = {
    "QDQ": {"quant_format": "QDQ", "activation_type": "QUInt8", "weight_type": "QUInt8"},
    "QDQ per channel": {
        "quant_format": "QDQ",
        "activation_type": "QUInt8",
        "weight_type": "QInt8",
        "per_channel": True,
    },
    "QDQ int8": {"quant_format": "QDQ", "activation_type": "QInt8", "weight_type": "QInt8"},
    "QOperator": {"quant_format": "QOperator", "activation_type": "QUInt8", "weight_type": "QUInt8"},
    "QOperator per channel": {
        "quant_format": "QOperator",
        "activation_type": "QUInt8",
        "weight_type": "QInt8",
        "per_channel": True,
    },
    "dynamic": {"weight_type": "QUInt8"},
}


def photos() -> list[str]:
    """The photos, without the masks that belong to them."""
    folder = DATA / "photos"
    kept = [p for p in folder.iterdir() if p.suffix in (".bmp", ".jpg", ".png") and "_mask" not in p.name]
    return sorted(str(p) for p in kept)


def quantized_by_its_authors(model: str) -> Path | None:
    """A quantised file that came with the model."""
    path = DATA / "models" / f"{model}_qdq.onnx"
    return path if path.is_file() else None


def quantized(source: Path, form: str, target: Path, feeds: Sequence[Mapping[str, Any]]) -> Path:
    """A file quantised by ONNX Runtime.

    Args:
        source: the original.
        form: a key of :data:`FORMATS`.
        target: where to write.
        feeds: the inputs that calibrate.
    """
    from onnxruntime import quantization

    options = FORMATS[form]
    types = {k: getattr(quantization.QuantType, v) for k, v in options.items() if k.endswith("_type")}
    plain = target.with_suffix(".opset18.onnx")
    model = ir.to_proto(normalize(load(source)))  # the quantisers ask for opset 11 or 13
    del model.graph.value_info[:]  # they turn weights, and leave what was said of them
    onnx.save(model, plain)
    if form == "dynamic":
        quantization.quantize_dynamic(plain, target, **types)
        return target

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[Mapping[str, Any]] = iter(feeds)

        def get_next(self) -> Any:
            return next(self._left, None)

    quantization.quantize_static(
        plain,
        target,
        Reader(),
        quant_format=quantization.QuantFormat[options["quant_format"]],
        per_channel=options.get("per_channel", False),
        **types,
    )
    return target


def agreement(model: str, form: str, folder: Path) -> Agreement:
    """The correlation of a quantised file's heatmaps with its original's, photo by photo.

    Args:
        model: a key of :data:`MIDDLE`.
        form: a key of :data:`FORMATS`, or ``authors``.
        folder: for the files.
    """
    source = DATA / "models" / f"{model}.onnx"
    original = _original(model, folder)
    if form == "authors":
        path = quantized_by_its_authors(model)
        assert path is not None
    else:
        path = quantized(source, form, folder / f"{model}.{form}.onnx", _feeds(original))
    theirs = {name: called(path, source, name) for name in original.layers}
    again = _explainer(path, folder / f"{model}.{form}.cam.onnx", model, tuple(theirs.values()))
    return _correlations(original, again, theirs, lambda photo: photo)


def agreement_under_noise(model: str, folder: Path, levels: float = 4) -> Agreement:
    """The same of the original with itself, on photos with noise: how firm its maps are."""
    original, rng = _original(model, folder), np.random.default_rng(0)

    def shaken(photo: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.clip(photo + rng.normal(0, levels, photo.shape), 0, 255).astype(np.uint8)

    return _correlations(original, original, {name: name for name in original.layers}, shaken)


def _original(model: str, folder: Path) -> Explainer:
    layers = (_automatic(model), MIDDLE[model])
    return _explainer(DATA / "models" / f"{model}.onnx", folder / f"{model}.cam.onnx", model, layers)


def _correlations(
    original: Explainer,
    again: Explainer,
    theirs: Mapping[str, str],
    change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
) -> Agreement:
    found: Agreement = {}
    for name, other in theirs.items():
        found[name] = {method: [] for method in METHODS}
        for method in METHODS:
            for photo in map(load_photo, photos()):
                wanted = original.explain(photo, method, layers=name)
                target = int(wanted.class_ids[0])
                got = again.explain(change(photo), method, target=target, layers=other)
                if not wanted.zero.any():
                    found[name][method].append(correlation(wanted.heatmaps[0], got.heatmaps[0]))
    return found


def correlation(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Pearson's; 0 where one of them is the same everywhere."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if a.std() and b.std() else 0.0


@functools.cache
def _automatic(model: str) -> str:
    from onnxcam.export import list_layers

    return list_layers(DATA / "models" / f"{model}.onnx")[0].name


def called(path: Path, source: Path, layer: str) -> str:
    """A layer's name in the quantised file: where an activation became part of a range, what went into it."""
    original, names = load(source).graph, Names(load(path).graph)
    tensor = Names(original).resolve(layer)
    with contextlib.suppress(UnknownLayer):
        return names.resolve(tensor)
    node = next(n for n in original if any(v.name == tensor for v in n.outputs))
    assert node.op_type in ("Relu", "Clip")
    assert node.inputs[0] is not None
    return names.resolve(node.inputs[0].name or "")


def _explainer(source: Path, target: Path, model: str, layers: tuple[str, ...]) -> Explainer:
    if not target.exists():
        rewrite_onnx(source, target, layers=layers, preprocess=PREPROCESS[model])
    return Explainer(target, "cpu")


def _feeds(explainer: Explainer) -> list[dict[str, Any]]:
    record = explainer.preprocess
    assert record is not None
    return [
        {record.input: preprocess.apply(load_photo(p), record, np.dtype(np.float32))[0][None]}
        for p in photos()
    ]
