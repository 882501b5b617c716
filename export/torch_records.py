"""Preprocessing and labels, as timm, torchvision and Hugging Face record them.

Their objects are read by their attributes; none of the three is imported unless the object came from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..contract import Preprocess

Spec = str | Mapping[str, Any] | Preprocess

#: Pillow's names and numbers, as the three libraries write them.
_INTERPOLATION = {
    "nearest": "nearest",
    "bilinear": "linear",
    "bicubic": "cubic",
    "lanczos": "lanczos",
    "box": "area",
    "0": "nearest",
    "1": "lanczos",
    "2": "linear",
    "3": "cubic",
    "4": "area",
}
_TIMM_FIT = {"center": "crop", "squash": "stretch", "border": "letterbox"}


def find_preprocess(carrier: Any) -> Spec | None:
    """The preprocessing that an object describes.

    Args:
        carrier: a timm model or its data config; torchvision's weights or their transforms; a Hugging
            Face image processor; or what :func:`onnxcam.preprocess.resolve` takes, which is returned as
            it is.

    Returns:
        A specification, or None if the object carries none.
    """
    if isinstance(carrier, str | Preprocess):
        return carrier
    if isinstance(carrier, Mapping):
        return _timm(carrier) if "crop_pct" in carrier or "input_size" in carrier else dict(carrier)
    if hasattr(carrier, "transforms") and hasattr(carrier, "meta"):  # torchvision's weights
        carrier = carrier.transforms()
    if hasattr(carrier, "crop_size") and hasattr(carrier, "resize_size"):  # and their transforms
        return _torchvision(carrier)
    if hasattr(carrier, "image_mean") and hasattr(carrier, "do_normalize"):
        return _hugging_face(carrier)
    config = getattr(carrier, "pretrained_cfg", None)
    if isinstance(config, Mapping) and "input_size" in config:
        return _timm(config)
    return None


def find_labels(carrier: Any) -> Sequence[str] | None:
    """The class names that an object carries, in index order; None if it carries none."""
    meta = getattr(carrier, "meta", None)  # torchvision's weights
    if isinstance(meta, Mapping) and meta.get("categories"):
        return [str(c) for c in meta["categories"]]
    table = getattr(getattr(carrier, "config", None), "id2label", None)  # Hugging Face
    if isinstance(table, Mapping) and table:
        names = [str(table[k]) for k in sorted(table, key=int)]
        invented = all(name == f"LABEL_{k}" for k, name in enumerate(names))
        return None if invented else names
    config = getattr(carrier, "pretrained_cfg", None)
    if isinstance(config, Mapping):
        if config.get("label_names"):
            return [str(c) for c in config["label_names"]]
        return _timm_labels(config)
    return None


def _timm(config: Mapping[str, Any]) -> Spec:
    height, width = config["input_size"][-2:]
    crop = float(config.get("crop_pct") or 1.0)
    fit = _TIMM_FIT.get(str(config.get("crop_mode") or "center"), "crop")
    spec: dict[str, Any] = {
        "size": (height, width),
        "fit": fit,
        "interpolation": _interpolation(config.get("interpolation")),
        "mean": tuple(map(float, config.get("mean", (0.0,)))),
        "std": tuple(map(float, config.get("std", (1.0,)))),
        "channels": "L" if config["input_size"][0] == 1 else "RGB",
    }
    if fit == "crop":
        # timm rounds down, and scales both sides of a size that is not square.
        spec["resize"] = int(height / crop) if height == width else (int(height / crop), int(width / crop))
    return spec


def _torchvision(preset: Any) -> Spec:
    size, resize = _first(preset.crop_size), _first(preset.resize_size)
    return {
        "size": (size, size),
        "fit": "crop",
        "resize": resize,
        "interpolation": _interpolation(preset.interpolation),
        "antialias": bool(getattr(preset, "antialias", True)),
        "mean": tuple(map(float, preset.mean)),
        "std": tuple(map(float, preset.std)),
    }


def _hugging_face(processor: Any) -> Spec:
    size = dict(getattr(processor, "size", None) or {})
    crop = (
        dict(getattr(processor, "crop_size", None) or {})
        if getattr(processor, "do_center_crop", False)
        else {}
    )
    spec: dict[str, Any] = {"interpolation": _interpolation(getattr(processor, "resample", None))}
    whole = (size["height"], size["width"]) if "height" in size else None
    if crop:
        spec |= {
            "fit": "crop",
            "size": (crop["height"], crop["width"]),
            "resize": whole or size.get("shortest_edge"),
        }
    elif whole is not None:
        spec |= {"fit": "stretch", "size": whole}
    elif "shortest_edge" in size:
        edge = size["shortest_edge"]
        spec |= {"fit": "crop", "size": (edge, edge), "resize": edge}
    if getattr(processor, "do_rescale", True):
        spec["scale"] = float(getattr(processor, "rescale_factor", 1 / 255))
    else:
        spec["scale"] = 1.0
    if processor.do_normalize:
        spec |= {
            "mean": tuple(map(float, processor.image_mean)),
            "std": tuple(map(float, processor.image_std)),
        }
    return spec


def _timm_labels(config: Mapping[str, Any]) -> Sequence[str] | None:
    data = sys.modules.get("timm.data")
    if data is None or not (config.get("tag") or config.get("num_classes") == 1000):
        return None
    subset = data.infer_imagenet_subset({**config})
    if subset is None:
        return None
    info = data.ImageNetInfo(subset)
    count = int(config.get("num_classes") or info.num_classes())
    return [info.index_to_description(k) for k in range(count)] if count == info.num_classes() else None


def _interpolation(name: Any) -> str:
    """A mode's name from Pillow's enum, torchvision's, or a string; timm's ``random`` means bilinear."""
    text = str(getattr(name, "value", name)).lower().rsplit(".", 1)[-1]
    return _INTERPOLATION.get(text, "linear")


def _first(size: Any) -> int:
    return int(size[0]) if isinstance(size, list | tuple) else int(size)
