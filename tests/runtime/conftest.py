"""A small explainable model whose maps can be worked out by hand, in several forms.

conv 3x3 -> Relu ("features") -> 1x1 conv -> Relu ("top") -> global average pooling -> linear. The
gradient subgraph is written out node by node, without the exporter, so that these tests stand on
their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcam import contract
from onnxcam.contract import Layer, Layout, Preprocess, Record, Score

C, K, SIZE = 6, 5, 12  # channels, classes, height and width of the input
LABELS = ("tabby, tabby cat", "crane", "crane", "Ringneck Snake, grass snake", "hot pot")


@dataclass(frozen=True)
class Tiny:
    """The model's weights, what it was asked to be, and NumPy's answer."""

    softmax: bool = False
    batch: int | str = "N"
    size: int | None = SIZE
    nhwc: bool = False
    layout: str = "NCHW"
    layers: tuple[str, ...] = ("top",)
    half: bool = False
    labels: tuple[str, ...] | None = LABELS
    classes: int | None = K
    preprocess: Preprocess | None = field(
        default_factory=lambda: Preprocess(size=(SIZE, SIZE), antialias=False, mean=(0.5,), std=(0.25,))
    )
    score_shape: tuple[int, ...] = ()

    @property
    def weights(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(5)
        return {
            "w1": (rng.standard_normal((C, 3, 3, 3)) * 0.3).astype(np.float32),
            "b1": (rng.standard_normal(C) * 0.1).astype(np.float32),
            "w2": (rng.standard_normal((C, C, 1, 1)) * 0.6).astype(np.float32),
            "b2": (rng.standard_normal(C) * 0.1 + 0.2).astype(np.float32),
            "w": rng.standard_normal((K, C)).astype(np.float32),
            "b": rng.standard_normal(K).astype(np.float32) * 0.1,
        }

    def forward(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """NumPy's values for an NCHW float batch."""
        w = self.weights
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        features = np.maximum(np.einsum("nchwij,kcij->nkhw", windows, w["w1"]) + w["b1"][:, None, None], 0)
        top = np.maximum(
            np.einsum("nchw,kc->nkhw", features, w["w2"][:, :, 0, 0]) + w["b2"][:, None, None], 0
        )
        logits = top.mean((2, 3)) @ w["w"].T + w["b"]
        e = np.exp(logits - logits.max(1, keepdims=True))
        return {"features": features, "top": top, "logits": logits, "probs": e / e.sum(1, keepdims=True)}

    def gradients(self, x: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
        values, w = self.forward(x), self.weights
        top = np.broadcast_to(
            w["w"][classes][:, :, None, None] / np.prod(values["top"].shape[2:]), values["top"].shape
        )
        features = np.einsum("nkhw,kc->nchw", top * (values["top"] > 0), w["w2"][:, :, 0, 0])
        return {"features": features, "top": top}

    def gradcam(self, x: np.ndarray, classes: np.ndarray, layer: str = "top") -> np.ndarray:
        g = self.gradients(x, classes)[layer].mean((2, 3), keepdims=True)
        return (g * self.forward(x)[layer]).sum(1)

    def x(self, n: int = 3, seed: int = 0) -> np.ndarray:
        """An NCHW batch; ``fed`` gives it in the model's own form."""
        size = self.size or SIZE
        return np.random.default_rng(seed).standard_normal((n, 3, size, size)).astype(np.float32)

    def fed(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if self.nhwc else x

    def record(self) -> Record:
        return Record(
            layers=tuple(
                Layer(
                    name,
                    name,
                    contract.activations_name(name),
                    contract.gradients_name(name),
                    Layout("tokens", 1, (SIZE // 2, SIZE // 2))
                    if self.layout == "tokens"
                    else Layout(self.layout),
                    head="gap-linear" if name == "top" else None,
                )
                for name in self.layers
            ),
            score=Score(
                "scores", "logits", activation="softmax" if self.softmax else None, classes=self.classes
            ),
            preprocess=self.preprocess
            and replace(self.preprocess, input="image", layout="NHWC" if self.nhwc else "NCHW"),
            labels=self.labels,
        )

    def graph_bytes(self, record: Record | str | None = None) -> bytes:
        """The file; ``record`` replaces the true one, a string as it is, "" for none at all."""
        kind = np.float16 if self.half else np.float32
        init = {k: v.astype(kind) for k, v in self.weights.items()}
        init |= {"zero": np.zeros((), np.int64), "spatial": np.array([2, 3]), "flat": np.array([0, C])}
        init |= {"floor": np.zeros((), kind), "one": np.ones((), kind)}
        nodes = []

        def add(op: str, inputs: str, output: str, **attributes: object) -> None:
            nodes.append(helper.make_node(op, inputs.split(), [output], **attributes))

        source = "image"
        if self.nhwc:
            add("Transpose", "image", "nchw", perm=[0, 3, 1, 2])
            source = "nchw"
        add("Conv", f"{source} w1 b1", "c1", pads=[1, 1, 1, 1], strides=[2, 2])
        add("Relu", "c1", "features")
        add("Conv", "features w2 b2", "c2")
        add("Relu", "c2", "top")
        add("GlobalAveragePool", "top", "pooled")
        add("Reshape", "pooled flat", "vector")
        add("Gemm", "vector w b", "logits", transB=1)
        last = "logits"
        if self.softmax:
            add("Softmax", "logits", "probs", axis=1)
            last = "probs"
        if self.score_shape:
            init["score_shape"] = np.array(self.score_shape)
            add("Reshape", f"{last} score_shape", "scores")
        else:
            add("Identity", last, "scores")
        # The gradient of the class's logit: its row of the classifier over h*w, everywhere.
        add("ArgMax", "logits", "best", axis=1, keepdims=0)
        add("Less", f"{contract.CLASS_INDEX} zero", "is_top")
        add("Where", f"is_top best {contract.CLASS_INDEX}", "chosen")
        add("Gather", "w chosen", "row", axis=0)
        add("Unsqueeze", "row spatial", "row4")
        add("Shape", "top", "top_shape")
        add("Expand", "row4 top_shape", "wide")
        add("Mul", "top floor", "nothing")
        add("Add", "nothing one", "ones")
        add("ReduceSum", "ones spatial", "cells", keepdims=1)
        add("Div", "wide cells", "d_top")
        add("Greater", "top floor", "passes")
        add("Where", "passes d_top floor", "d_c2")
        add("ConvTranspose", "d_c2 w2", "d_features")
        outputs = []
        for name in self.layers:
            for tensor, output in (
                (name, contract.activations_name(name)),
                (f"d_{name}", contract.gradients_name(name)),
            ):
                if self.layout == "NHWC":
                    add("Transpose", tensor, output, perm=[0, 2, 3, 1])
                elif self.layout == "tokens":  # one class token before the grid
                    init |= {"tokens": np.array([0, C, -1])}
                    add("Reshape", f"{tensor} tokens", f"{tensor}_flat")
                    add("Transpose", f"{tensor}_flat", f"{tensor}_grid", perm=[0, 2, 1])
                    init |= {"lead": np.array([0, 1, 0, 0, 0, 0]), "seven": np.array(7, kind)}
                    add("Pad", f"{tensor}_grid lead seven", output)
                else:
                    add("Identity", tensor, output)
                outputs.append(output)
        element = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        image = [self.batch, 3, self.size or "H", self.size or "W"]
        if self.nhwc:
            image = [image[0], image[2], image[3], image[1]]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [
                helper.make_tensor_value_info("image", element, image),
                helper.make_tensor_value_info(contract.CLASS_INDEX, TensorProto.INT64, ["M"]),
            ],
            [
                helper.make_tensor_value_info("scores", element, None),
                *(helper.make_tensor_value_info(name, element, None) for name in outputs),
            ],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in init.items()]
            + [numpy_helper.from_array(np.array([-1]), contract.CLASS_INDEX)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        text = (record or self.record()).to_json() if not isinstance(record, str) else record
        if text:
            helper.set_model_props(model, {contract.KEY: text})
        return model.SerializeToString()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Tiny]:
    """Makes the model: ``tiny(softmax=True, batch=1, ...)``."""
    return Tiny


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The plain model as a file."""
    path = tmp_path / "tiny.cam.onnx"
    path.write_bytes(Tiny().graph_bytes())
    return path
