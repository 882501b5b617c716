"""A small network, its QDQ form by ONNX Runtime's quantiser, and ways to spoil one tensor of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import nets
import numpy as np
import onnx
from onnx import helper, numpy_helper
from quantized_files import quantized

SIZE = 24
PREPROCESS: dict[str, Any] = {"size": (SIZE, SIZE), "fit": "stretch", "mean": 0.5, "std": 0.25}
LAYER = "r4"
#: p1 is read by two nodes, w3 too; r1 and r2 are left to the range by the quantiser.
BODY = """
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
    c2 = Conv<pads=[1,1,1,1], group=8>(p1, w2, b2) r2 = Clip(c2, zero, six) c3 = Conv(r2, w3, b3)
    a = Add(p1, c3) d = Conv(a, w3, b3) k = Concat<axis=1>(d, p1)
    c4 = Conv<pads=[1,1,1,1]>(k, w4, b4) r4 = Relu(c4)
    g = GlobalAveragePool(r4) f = Flatten(g) y = Gemm<transB=1>(f, v, b)
"""


def network() -> onnx.ModelProto:
    shapes: dict[str, tuple[int, ...]] = {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (8, 1, 3, 3),
        "b2": (8,),
        "w3": (8, 8, 1, 1),
        "b3": (8,),
        "w4": (16, 16, 3, 3),
        "b4": (16,),
        "v": (5, 16),
        "b": (5,),
    }
    found = nets.weights(**shapes)
    found["six"], found["zero"] = np.array(6, np.float32), np.array(0, np.float32)
    made = nets.model(BODY, inputs=f"float[N,3,{SIZE},{SIZE}] x", initializers=found)
    for node in made.graph.node:
        node.name = f"node_{node.output[0]}"
    return made


def pair(folder: Path, form: str = "QDQ") -> tuple[Path, Path]:
    """The network's file and its QDQ form, calibrated on pictures like :func:`photos`."""
    source = folder / "net.onnx"
    onnx.save(network(), source)
    pixels = [picture(seed) for seed in range(100, 116)]
    feeds = [{"x": ((p / 255 - 0.5) / 0.25).transpose(2, 0, 1)[None].astype(np.float32)} for p in pixels]
    return source, quantized(source, form, folder / f"{form}.onnx", feeds)


def picture(seed: int) -> np.ndarray[Any, Any]:
    """Something with places: blobs of colour on noise, uint8 (24, 24, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    found = rng.normal(128, 20, (SIZE, SIZE, 3))
    for _ in range(3):
        at, width = rng.uniform(0, SIZE, 2), rng.uniform(2, 5)
        blob = np.exp(-((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / (2 * width**2))
        found += rng.normal(0, 90, 3) * blob[..., None]
    return np.clip(found, 0, 255).astype(np.uint8)


def photos(folder: Path, count: int = 6) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{k}.png" for k in range(count)]
    for k, path in enumerate(paths):
        cv2.imwrite(str(path), picture(k)[..., ::-1])
    return paths


def spoil(source: Path, tensor: str, factor: float, target: Path) -> Path:
    """A QDQ file in which the scale of one tensor, an activation or a weight, is another one."""
    model = onnx.load(source)
    makers = {n.output[0]: n for n in model.graph.node}
    dequantizing = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    found = []
    for node in dequantizing:
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in ("Cast", "Identity"):
            maker = makers.get(maker.input[0])
        if maker is None and node.input[0] == tensor:
            found += [node]
        elif maker is not None and maker.op_type == "QuantizeLinear" and maker.input[0] == tensor:
            found += [node, maker]
    assert found, f"there is no quantised tensor {tensor!r}"
    for k, node in enumerate({id(n): n for n in found}.values()):
        scale = constant(model, node.input[1])
        spoilt = (scale * np.float32(factor)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(spoilt, f"spoilt_{k}"))
        node.input[1] = f"spoilt_{k}"
    onnx.save(model, target)
    return target


def constant(model: onnx.ModelProto, name: str) -> np.ndarray[Any, Any]:
    """An initializer, perhaps behind Identity."""
    for node in model.graph.node:
        if node.op_type == "Identity" and node.output[0] == name:
            return constant(model, node.input[0])
    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))


def alone(source: Path, qdq: Path, tensor: str, target: Path) -> Path:
    """The network with one tensor quantised, put together by hand from the QDQ file's numbers.

    Args:
        source: the fp32 file.
        qdq: by ONNX Runtime's quantiser, whose names are used.
        tensor: an activation, or a weight or bias, by its fp32 name.
        target: where to write.
    """
    model, theirs = onnx.load(source), onnx.load(qdq)
    there = {i.name for i in theirs.graph.initializer}
    if f"{tensor}_quantized" in there:
        node = next(n for n in theirs.graph.node if n.input[0] == f"{tensor}_quantized")
        whole, scale, zero = (constant(theirs, name).astype(np.float64) for name in node.input)
        spread = (-1, *[1] * (whole.ndim - 1))
        real = (whole - zero.reshape(spread)) * scale.reshape(spread)
        kept = next(i for i in model.graph.initializer if i.name == tensor)
        kept.CopyFrom(numpy_helper.from_array(real.astype(np.float32), tensor))
    else:
        there_ = {n.name for n in theirs.graph.node}
        rounding = next(
            n for n in theirs.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor
        )
        for kind, name in zip("sz", rounding.input[1:], strict=True):
            array = constant(theirs, name)
            model.graph.initializer.append(numpy_helper.from_array(array, f"{tensor}.{kind}"))
        nodes = []
        for node in model.graph.node:
            for k, name in enumerate(node.input):
                if name == tensor:
                    node.input[k] = f"{tensor}.dq"
            maker = next((n for n in nodes if node.input[0] in n.output), None)
            if tensor in node.output and node.name not in there_:  # left to the range
                assert node.op_type in ("Relu", "Clip")
                assert maker is not None
                maker.output[0] = tensor
            else:
                nodes.append(node)
        operands = [f"{tensor}.s", f"{tensor}.z"]
        at = next((k + 1 for k, n in enumerate(nodes) if tensor in n.output), 0)
        nodes[at:at] = [
            helper.make_node("QuantizeLinear", [tensor, *operands], [f"{tensor}.q"]),
            helper.make_node("DequantizeLinear", [f"{tensor}.q", *operands], [f"{tensor}.dq"]),
        ]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    onnx.save(model, target)
    return target
