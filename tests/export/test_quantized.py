"""Files that ONNX Runtime's quantisers and optimiser made: what they compute stays as it was, and their maps
are those of the original."""

from __future__ import annotations

import collections
import statistics
import tempfile
from pathlib import Path

import nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from quantized_files import (
    FORMATS,
    called,
    correlation,
    quantized,
)

from onnxcam import Explainer
from onnxcam.export import list_layers, rewrite_onnx

STATIC = [form for form in FORMATS if form != "dynamic"]
BODY = """
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
    c2 = Conv<pads=[1,1,1,1], group=8>(p1, w2, b2) r2 = Clip(c2, zero, six) c3 = Conv(r2, w3, b3)
    a = Add(p1, c3) s = Sigmoid(a) m = Mul(a, s) k = Concat<axis=1>(m, p1)
    c4 = Conv<pads=[1,1,1,1]>(k, w4, b4) r4 = Relu(c4)
    g = GlobalAveragePool(r4) f = Flatten(g) y = Gemm<transB=1>(f, v, b)
"""
SIZE = 24


def network() -> onnx.ModelProto:
    shapes = {
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
    nodes = nets.model(BODY, inputs=f"float[N,3,{SIZE},{SIZE}] x", initializers=found)
    for node in nodes.graph.node:
        node.name = f"node_{node.output[0]}"
    return nodes


def image(seed: int, count: int = 1) -> np.ndarray:
    """Something with places: blobs of colour on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    found = 0.3 * rng.standard_normal((count, 3, SIZE, SIZE))
    for n in range(count):
        for _ in range(3):
            at, width = rng.uniform(0, SIZE, 2), rng.uniform(2, 5)
            blob = np.exp(-((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / (2 * width**2))
            found[n] += 3 * rng.standard_normal((3, 1, 1)) * blob
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def files():
    """The network's file, and by form the file that ONNX Runtime's quantiser makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "net.onnx"
        onnx.save(network(), source)
        found = {"original": source}
        for form in FORMATS:
            feeds = [{"x": image(seed, 4)} for seed in range(8)]
            found[form] = quantized(source, form, Path(folder) / f"{form}.onnx", feeds)
        yield found


def options(saved=None, level=None, **entries):
    made = ort.SessionOptions()
    made.log_severity_level = 4
    made.intra_op_num_threads = 1
    if saved is not None:
        made.optimized_model_filepath = str(saved)
    if level is not None:
        made.graph_optimization_level = level
    for key, value in entries.items():
        made.add_session_config_entry(f"session.{key}", value)
    return made


def outputs(path, x, names=None, opened=None):
    session = ort.InferenceSession(str(path), opened or options(), providers=["CPUExecutionProvider"])
    names = names or [o.name for o in session.get_outputs() if not o.name.startswith("cam.")]
    return session.run(names, {session.get_inputs()[0].name: x})


def kernels(path, folder) -> collections.Counter:
    """How many nodes of each kind ONNX Runtime runs for the forward graph."""
    saved = folder / "optimized.onnx"
    ort.InferenceSession(str(path), options(saved), providers=["CPUExecutionProvider"])
    return collections.Counter(
        n.op_type for n in onnx.load(saved).graph.node if not n.name.startswith("onnxcam/")
    )


FUSED = ("QLinearConv", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearConcat", "QGemm", "Conv")


def layers_of(path) -> list[str]:
    return [layer.name for layer in list_layers(path)]


# -- the forward graph --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_outputs_stay_bit_for_bit_at_every_layer(form, files, tmp_path):
    x = image(99, 3)
    expected = outputs(files[form], x)
    before = kernels(files[form], tmp_path)
    names = layers_of(files[form])
    assert len(names) >= 5
    for name in names:
        target = tmp_path / "out.cam.onnx"
        report = rewrite_onnx(files[form], target, layers=name)
        # On a CPU without int8 products ONNX Runtime fuses int8 tensors only where nothing else reads them.
        entries = {"qdqisint8allowed": "1"} if "int8" in form else {}
        if entries:
            expected = outputs(files[form], x, opened=options(**entries))
        else:
            assert report.output_error == 0
            after = kernels(target, tmp_path)
            assert {k: after[k] for k in FUSED} == {k: before[k] for k in FUSED}, name
        for a, b in zip(expected, outputs(target, x, opened=options(**entries)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", FORMATS)
def test_the_weights_are_not_copied(form, files, tmp_path):
    report = rewrite_onnx(files[form], tmp_path / "out.cam.onnx", layers=layers_of(files[form])[-1])
    assert report.copied_bytes < 2500  # the pool's table of positions
    there = {i.name: i for i in onnx.load(files[form]).graph.initializer}
    for tensor in onnx.load(tmp_path / "out.cam.onnx").graph.initializer:
        if tensor.name in there:
            assert onnx.numpy_helper.to_array(tensor).tobytes() == (
                onnx.numpy_helper.to_array(there[tensor.name]).tobytes()
            )


# -- the maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layer", ["r4", "a"])
def test_the_maps_are_the_originals(form, layer, files, tmp_path):
    rewrite_onnx(files["original"], tmp_path / "original.cam.onnx", layers=layer)
    name = called(files[form], files["original"], layer)
    rewrite_onnx(files[form], tmp_path / "again.cam.onnx", layers=name)
    original, again = (Explainer(tmp_path / f"{n}.cam.onnx", "cpu") for n in ("original", "again"))
    for method in ("gradcam", "layercam", "hirescam"):
        found = []
        for seed in range(20):
            x = image(500 + seed)
            wanted = original.explain_tensor(x, method)
            got = again.explain_tensor(x, method, target=int(wanted.class_ids[0]))
            if not wanted.zero.any():
                found.append(correlation(wanted.heatmaps[0], got.heatmaps[0]))
        assert len(found) >= 10
        assert statistics.median(found) >= 0.95, (method, sorted(found))
