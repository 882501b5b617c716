"""Files in half precision: their gradients are those of single precision, however small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxcam import Explainer
from onnxcam.errors import VerificationError
from onnxcam.export import load, rewrite_onnx, strip

from .. import nets

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}")


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every weight as half precision keeps it, in single precision."""
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            kept = array.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(kept, tensor.name))
    return model


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    return float16.convert_float_to_float16(model, keep_io_types=False)


def both(model: onnx.ModelProto, folder: Path, layer: str, **options) -> list[ort.InferenceSession]:
    """The explainable file in single and in half precision, with the same weights."""
    sessions = []
    for name, made in (("single", rounded(model)), ("half", in_half(rounded(model)))):
        source, target = folder / f"{name}.onnx", folder / f"{name}.cam.onnx"
        onnx.save(made, source)
        rewrite_onnx(source, target, layer, **options)
        quiet = ort.SessionOptions()
        quiet.log_severity_level = 4
        sessions.append(ort.InferenceSession(target, quiet, providers=["CPUExecutionProvider"]))
    return sessions


def deep(depth: int = 48, width: int = 8) -> onnx.ModelProto:
    """A residual network: a convolution and a ReLU in every step, then pooling and a classifier."""
    rng = np.random.default_rng(0)
    weights = {"w0": rng.standard_normal((width, 3, 3, 3)) * 0.3}
    text = ["s0 = Conv<pads=[1,1,1,1]>(x, w0)"]
    for k in range(1, depth):
        weights[f"w{k}"] = rng.standard_normal((width, width, 3, 3)) * 0.06 / np.sqrt(width)
        text.append(
            f"c{k} = Conv<pads=[1,1,1,1]>(s{k - 1}, w{k}) r{k} = Relu(c{k}) s{k} = Add(s{k - 1}, r{k})"
        )
    weights |= {"v": rng.standard_normal((5, width)), "b": np.array([0, -6, 0, 0, 3.0])}
    text.append(
        f"p = GlobalAveragePool(s{depth - 1}) f = Flatten(p) z = Gemm<transB=1>(f, v, b) y = Softmax(z)"
    )
    made = {k: v.astype(np.float32) for k, v in weights.items()}
    return nets.model(" ".join(text), "float[N,3,24,20] x", "float[N,5] y", made)


@pytest.mark.parametrize("layer", ["s10", "s30", "s47"])
def test_the_gradients_of_a_deep_network(tmp_path, layer):
    single, half = both(deep(), tmp_path, layer)
    x = np.random.default_rng(1).standard_normal((2, 3, 24, 20)).astype(np.float32)
    wanted = single.run([f"cam.gradients.{layer}"], {"x": x, "cam.class_index": np.array([0, 1])})[0]
    found = half.run(
        [f"cam.gradients.{layer}"], {"x": x.astype(np.float16), "cam.class_index": np.array([0, 1])}
    )[0]
    assert found.dtype == np.float32
    for a, b in zip(found, wanted, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.999


def test_the_gradient_of_a_tiny_probability_is_no_zero(tmp_path):
    single, half = both(deep(12), tmp_path, "s5", probability=True)
    x = np.random.default_rng(1).standard_normal((1, 3, 24, 20)).astype(np.float32)
    out = single.run(["y"], {"x": x})[0]
    chosen = {"cam.class_index": np.array([1])}
    wanted = single.run(["cam.gradients.s5"], {"x": x, **chosen})[0]
    found = half.run(["cam.gradients.s5"], {"x": x.astype(np.float16), **chosen})[0]
    assert 1e-6 < out[0, 1] < 1e-4
    assert np.abs(wanted).max() < 6e-8 * 16  # of which half precision keeps 4 bits
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] >= 0.999


def test_the_original_comes_back(tmp_path):
    model = in_half(deep(3))
    onnx.save(model, tmp_path / "half.onnx")
    rewrite_onnx(tmp_path / "half.onnx", tmp_path / "half.cam.onnx", "s1", {"seed": True})
    back = strip(load(tmp_path / "half.cam.onnx"))
    assert [n.op_type for n in back.graph] == [n.op_type for n in model.graph.node]
    assert [v.name for v in back.graph.inputs] == ["x"]


# -- real files -------------------------------------------------------------------------------------

IMAGENET = {"preset": "imagenet-stretch", "antialias": False}


@real
@pytest.mark.parametrize(
    ("name", "layer", "how", "least"),
    [
        ("mobilenet_v2", "auto", IMAGENET, 0.999),
        ("mobilenet_v2", "Relu_621", IMAGENET, 0.999),
        ("keras_mobilenet_v1_025_nhwc", "auto", "keras-tf", 0.999),
        # Narrow layers answer to half precision's rounding as to noise: the forward run differs already.
        ("keras_mobilenet_v1_025_nhwc", "conv_pw_7_relu", "keras-tf", 0.95),
    ],
)
def test_real_maps_are_those_of_single_precision(tmp_path, name, layer, how, least):
    photos = sorted(map(str, (DATA / "photos").glob("*.[jb][pm][gp]")))[:6]
    source = onnx.load(DATA / "models" / f"{name}.onnx")
    maps = []
    for kind, model in (("single", source), ("half", in_half(onnx.load(DATA / "models" / f"{name}.onnx")))):
        onnx.save(model, tmp_path / f"{kind}.onnx")
        rewrite_onnx(tmp_path / f"{kind}.onnx", tmp_path / f"{kind}.cam.onnx", layer, preprocess=how)
        explainer = Explainer(tmp_path / f"{kind}.cam.onnx", "cpu")
        classes = maps[0][0] if maps else None
        found = explainer.explain(photos, target=classes, method="layercam")
        maps.append((found.class_ids.tolist(), found.heatmaps))
    correlations = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(maps[0][1], maps[1][1], strict=True)
    ]
    assert np.median(correlations) >= least, correlations


# -- bfloat16 ---------------------------------------------------------------------------------------


def in_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and everything between the borders in bfloat16; the borders stay float32."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(ml_dtypes.bfloat16), tensor.name))
    image, result = model.graph.input[0], model.graph.output[0]
    for node in model.graph.node:
        node.input[:] = ["x16" if name == image.name else name for name in node.input]
        node.output[:] = ["y16" if name == result.name else name for name in node.output]
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["x16"], to=onnx.TensorProto.BFLOAT16))
    model.graph.node.append(onnx.helper.make_node("Cast", ["y16"], [result.name], to=onnx.TensorProto.FLOAT))
    return model


def test_what_onnx_runtime_has_no_bfloat16_kernels_for_is_said(tmp_path):
    source = tmp_path / "model.onnx"
    onnx.save(in_bfloat16(nets.cnn()), source)
    with pytest.raises(
        VerificationError, match=r"The original model does not run in ONNX Runtime .*bfloat16"
    ):
        rewrite_onnx(source, tmp_path / "model.cam.onnx", "r")
    assert not (tmp_path / "model.cam.onnx").exists()


def test_bfloat16_is_explained_in_float32(tmp_path):
    source, target = tmp_path / "model.onnx", tmp_path / "model.cam.onnx"
    onnx.save(in_bfloat16(nets.cnn()), source)
    report = rewrite_onnx(source, target, "r", verify=False)
    types = {o.name: o.type.tensor_type.elem_type for o in onnx.load(target).graph.output}
    assert types["cam.activations.r"] == types["cam.gradients.r"] == onnx.TensorProto.FLOAT
    assert types["y"] == onnx.TensorProto.FLOAT
    # The same file with its bfloat16 nodes in float32 gives the gradient of the rounded weights.
    assert dataclasses.replace(report).record.layers[0].name == "r"
    evaluate = onnx.reference.ReferenceEvaluator(str(target))
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    gradients = evaluate.run(["cam.gradients.r"], {"x": x, "cam.class_index": np.array([2])})[0]
    v = nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,))["v"]
    np.testing.assert_allclose(
        gradients, np.broadcast_to(v[2][None, :, None, None] / 64, gradients.shape), rtol=1e-2
    )
