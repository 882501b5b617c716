"""What a model wants to be fed: which input is the image, and whether an array fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from .contract import Preprocess
from .errors import TensorError
from .grids import channel_axis
from .session import TensorInfo


def image_input(inputs: Sequence[TensorInfo], recorded: Preprocess | None) -> TensorInfo:
    """The input that takes the image: the recorded one, or the first of rank 4; else a volume or a signal."""

    def rank(info: TensorInfo) -> tuple[bool, int]:
        order = (4, 5, 3)
        by_rank = order.index(len(info.shape)) if len(info.shape) in order else len(order)
        return recorded is None or info.name != recorded.input, by_rank

    return min(inputs, key=rank)


def layout_of(info: TensorInfo, recorded: Preprocess | None) -> Literal["NCHW", "NHWC"]:
    """As recorded, else by where the declared shape has an image's channels."""
    if recorded is not None:
        return recorded.layout
    return "NHWC" if len(info.shape) == 4 and channel_axis(info.shape) == 3 else "NCHW"


def size_of(info: TensorInfo, layout: str) -> tuple[int, int] | None:
    """(H, W) of an image input; None where it is dynamic."""
    match info.shape[2:] if layout == "NCHW" else info.shape[1:3]:
        case (int(h), int(w)):
            return h, w
    return None


def shape_of(value: Any) -> tuple[int, ...]:
    """Of an array or an OrtValue."""
    return tuple(value.shape if isinstance(value, np.ndarray) else value.shape())


def check(info: TensorInfo, value: Any) -> Any:
    """``value`` as the input takes it: shape checked, floats cast to the declared float type.

    Raises:
        TensorError: it does not fit.
    """
    shape = shape_of(value)
    dtype = value.dtype if isinstance(value, np.ndarray) else value.data_type()
    if len(shape) != len(info.shape) or not _fits(info, shape[1:]):
        raise TensorError(
            f"The input '{info.name}' wants {info}, but got {dtype} {shape}.{_shape_hint(info, shape)}"
        )
    if shape and shape[0] == 0:
        raise TensorError(f"The input '{info.name}' is an empty batch: its shape is {shape}.")
    if not isinstance(value, np.ndarray):
        return value  # on the device: ONNX Runtime checks the type, and the score shows what is not finite
    if info.dtype is not None and value.dtype != info.dtype:
        if value.dtype.kind != "f" or info.dtype.kind != "f":
            hint = " Photos (uint8) go to explain." if value.dtype == np.uint8 else ""
            raise TensorError(f"The input '{info.name}' wants {info}, but got {dtype} {shape}.{hint}")
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            value = value.astype(info.dtype)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise TensorError(f"The input '{info.name}' holds NaN or infinity as {value.dtype}.")
    return value


def _shape_hint(info: TensorInfo, shape: tuple[int, ...]) -> str:
    if len(shape) == len(info.shape) - 1:
        return " Is the batch axis missing? Try x[None]."
    if len(shape) == len(info.shape) == 4:
        _, a, b, c = shape
        if _fits(info, (c, a, b)):
            return " The channels are last: try x.transpose(0, 3, 1, 2)."
        if _fits(info, (b, c, a)):
            return " The channels are first: try x.transpose(0, 2, 3, 1)."
    return ""


def _fits(info: TensorInfo, rest: tuple[int, ...]) -> bool:
    """Whether ``rest`` are sizes for the axes after the first, which is the batch."""
    wanted = info.shape[1:]
    return len(wanted) == len(rest) and all(
        not isinstance(want, int) or want == got for want, got in zip(wanted, rest, strict=True)
    )
