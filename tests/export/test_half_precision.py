"""Files in half precision: their gradients are those of single precision, however small."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxcam import Explainer
from onnxcam.errors import ModelError, ProviderError, VerificationError
from onnxcam.export import load, rewrite_onnx, strip
from onnxcam.export.bfloat16 import twin
from onnxcam.export.verify import compare

from .. import nets

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real models and photos in {DATA}")


def rounded(model: onnx.ModelProto, to: type = np.float16) -> onnx.ModelProto:
    """Every weight as half precision keeps it, in single precision."""
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            kept = array.astype(to).astype(np.float32)
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


def deep(depth: int = 48, width: int = 8, opset: int = 18) -> onnx.ModelProto:
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
    return nets.model(" ".join(text), "float[N,3,24,20] x", "float[N,5] y", made, opset=opset)


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
# The CPU has no kernels for it: what runs here is a file's twin, which rounds what float32 computes.

SINCE = 22  #: the opset from which ONNX has convolutions in bfloat16
bfloat16 = pytest.importorskip("ml_dtypes").bfloat16


def in_bfloat16(model: onnx.ModelProto, borders: bool = False) -> onnx.ModelProto:
    """Weights and everything between the borders in bfloat16; the borders stay float32, or are it, too."""
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(bfloat16), tensor.name))
    kept = {t.name for t in model.graph.initializer}
    image = next(v for v in model.graph.input if v.name not in kept)
    result = model.graph.output[0]
    del model.graph.value_info[:]
    if borders:
        for value in (image, result):
            value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
        return model
    for node in model.graph.node:
        node.input[:] = ["x16" if name == image.name else name for name in node.input]
        node.output[:] = ["y16" if name == result.name else name for name in node.output]
    down = onnx.helper.make_node("Cast", [image.name], ["x16"], to=onnx.TensorProto.BFLOAT16)
    model.graph.node.insert(0, down)
    model.graph.node.append(onnx.helper.make_node("Cast", ["y16"], [result.name], to=onnx.TensorProto.FLOAT))
    return model


def run(path: str | Path, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    return ort.InferenceSession(path, quiet, providers=["CPUExecutionProvider"]).run(outputs, feeds)


def through(path: Path, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    with twin(path) as there:
        return run(there, feeds, outputs)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_the_twin_rounds_to_the_nearest_and_ties_to_even(tmp_path):
    x = np.array([1, 1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, -3e38, 1e-40, 0.1], np.float32)
    model = nets.model("v = Cast<to=16>(x) h = Identity(v) y = Cast<to=1>(h)", "float[N] x", "float[N] y")
    onnx.save(model, tmp_path / "model.onnx")
    (y,) = through(tmp_path / "model.onnx", {"x": x}, ["y"])
    np.testing.assert_array_equal(y, x.astype(bfloat16).astype(np.float32))


def test_the_twin_rounds_inside_a_loop_too(tmp_path):
    model = nets.model(
        "v = Cast<to=16>(x) s = Cast<to=16>(first) e, o = Scan<num_scan_inputs=1, body = b (bfloat16[4] h, "
        "bfloat16[4] u) => (bfloat16[4] k, bfloat16[4] l) { k = Add(h, u) l = Mul(k, third) }>(s, v) "
        "y = Cast<to=1>(o)",
        "float[8,4] x, float[4] first",
        "float[8,4] y",
        {"third": np.float32([1 / 3]).astype(bfloat16)},
    )
    onnx.save(model, tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    x, first = rng.standard_normal((8, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    (y,) = through(tmp_path / "model.onnx", {"x": x, "first": first}, ["y"])
    sums = first.astype(bfloat16)
    for row, found in zip(x.astype(bfloat16), y, strict=True):
        sums = sums + row
        np.testing.assert_array_equal(found, (sums * bfloat16(1 / 3)).astype(np.float32))


def test_the_twin_computes_what_kernels_in_bfloat16_do(tmp_path):
    """torch has such kernels for the CPU."""
    torch = pytest.importorskip("torch")
    source = tmp_path / "model.onnx"
    onnx.save(in_bfloat16(nets.cnn(opset=SINCE)), source)
    rewrite_onnx(source, tmp_path / "model.cam.onnx", "r")
    x = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    found, y = through(tmp_path / "model.cam.onnx", {"x": x}, ["cam.activations.r", "y"])
    made = nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,))
    w, wb, v, b = (torch.from_numpy(made[k]).bfloat16() for k in ("w", "wb", "v", "b"))
    kept = torch.relu(torch.nn.functional.conv2d(torch.from_numpy(x).bfloat16(), w, wb, padding=1))
    logits = torch.nn.functional.linear(kept.mean((2, 3)), v, b)
    same = found == kept.float().numpy()
    assert same.mean() > 0.99  # the others: sums in another order, on the other side of a tie
    np.testing.assert_allclose(found, kept.float().numpy(), rtol=2**-7, atol=1e-6)
    np.testing.assert_allclose(y, logits.float().numpy(), rtol=2**-6, atol=2**-7)


@pytest.mark.parametrize("borders", [False, True])
def test_a_bfloat16_file_is_verified_by_its_twin(tmp_path, borders):
    source, target = tmp_path / "model.onnx", tmp_path / "model.cam.onnx"
    onnx.save(in_bfloat16(nets.cnn(opset=SINCE), borders), source)
    report = rewrite_onnx(source, target, "r")
    assert report.output_error == 0
    assert any(
        n.startswith("The file computes in bfloat16, for which ONNX Runtime has") for n in report.notes
    )
    types = {o.name: o.type.tensor_type.elem_type for o in onnx.load(target).graph.output}
    assert types["cam.activations.r"] == types["cam.gradients.r"] == onnx.TensorProto.FLOAT
    assert types["y"] == (onnx.TensorProto.BFLOAT16 if borders else onnx.TensorProto.FLOAT)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    (gradients,) = through(target, {"x": x, "cam.class_index": np.array([2])}, ["cam.gradients.r"])
    v = nets.weights(w=(4, 3, 3, 3), wb=(4,), v=(5, 4), b=(5,))["v"].astype(bfloat16).astype(np.float32)
    np.testing.assert_allclose(
        gradients, np.broadcast_to(v[2][None, :, None, None] / 64, gradients.shape), rtol=1e-6
    )


def test_a_bfloat16_file_that_computes_something_else_is_found_out(tmp_path):
    model = in_bfloat16(nets.cnn(opset=SINCE))
    report = rewrite_onnx(model.SerializeToString(), tmp_path / "model.cam.onnx", "r")
    for tensor in model.graph.initializer:
        if tensor.name == "b":
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32) * 3
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(bfloat16), "b"))
    x = {"x": np.ones((1, 3, 8, 8), np.float32)}
    with pytest.raises(
        VerificationError, match=r"output 'y' differs from the original's by .* \(allowed: 0\.05\)"
    ):
        compare(model.SerializeToString(), report.path, report.record, x, bfloat16=True)


def test_operators_that_onnx_has_in_bfloat16_only_later_are_said(tmp_path):
    with pytest.raises(
        ModelError,
        match=r"At opset 18 ONNX has no bfloat16 for Conv 'c', GlobalAveragePool 'p', and no ONNX Runtime "
        r"loads such a file, .*Bring the model to opset 22 or newer",
    ):
        rewrite_onnx(in_bfloat16(nets.cnn()).SerializeToString(), tmp_path / "model.cam.onnx", "r")
    assert not any(tmp_path.iterdir())


def test_without_its_kernels_a_provider_cannot_open_a_file(tmp_path):
    target = tmp_path / "model.cam.onnx"
    rewrite_onnx(in_bfloat16(nets.cnn(opset=SINCE)).SerializeToString(), target, "r")
    with pytest.raises(
        ProviderError,
        match=r"CPUExecutionProvider of ONNX Runtime .* has no kernel for Conv of opset 22 .* 'c' in .*: "
        r"it lacks the operator or its type, as bfloat16.* providers='cuda'.* float32",
    ):
        Explainer(target, "cpu")


def test_a_provider_that_has_its_kernels_and_does_not_come_up_is_blamed(tmp_path, monkeypatch):
    class Broken:
        def __getattr__(self, name):
            return getattr(ort, name)

        def get_available_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def InferenceSession(self, source, options, *, providers, **more):
            if "CUDAExecutionProvider" in providers:
                raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
            return ort.InferenceSession(source, options, providers=providers)

    monkeypatch.setattr("onnxcam.session._onnxruntime", Broken)
    target = tmp_path / "model.cam.onnx"
    rewrite_onnx(in_bfloat16(nets.cnn(opset=SINCE)).SerializeToString(), target, "r", preprocess="imagenet")
    with pytest.raises(
        ProviderError, match=r"CUDAExecutionProvider does not work here: CUDA failure 100: no CUDA-capable"
    ):
        Explainer(target, "cuda")


@pytest.mark.parametrize("layer", ["s5", "s20", "s47"])
def test_the_gradients_of_a_deep_network_in_bfloat16(tmp_path, layer):
    for name, model in (
        ("single", rounded(deep(), bfloat16)),
        ("narrow", in_bfloat16(deep(opset=SINCE))),
    ):
        onnx.save(model, tmp_path / f"{name}.onnx")
        rewrite_onnx(tmp_path / f"{name}.onnx", tmp_path / f"{name}.cam.onnx", layer)
    x = np.random.default_rng(1).standard_normal((2, 3, 24, 20)).astype(np.float32)
    feeds, outputs = {"x": x, "cam.class_index": np.array([0, 1])}, [f"cam.gradients.{layer}"]
    (wanted,) = run(tmp_path / "single.cam.onnx", feeds, outputs)
    (found,) = through(tmp_path / "narrow.cam.onnx", feeds, outputs)
    assert all(correlation(a, b) >= 0.999 for a, b in zip(found, wanted, strict=True))


def test_the_gradient_of_a_tiny_probability_is_no_zero_in_bfloat16(tmp_path):
    for name, model in (
        ("single", rounded(deep(12), bfloat16)),
        ("narrow", in_bfloat16(deep(12, opset=SINCE))),
    ):
        onnx.save(model, tmp_path / f"{name}.onnx")
        rewrite_onnx(tmp_path / f"{name}.onnx", tmp_path / f"{name}.cam.onnx", "s5", probability=True)
    x = np.random.default_rng(1).standard_normal((1, 3, 24, 20)).astype(np.float32)
    feeds = {"x": x, "cam.class_index": np.array([1])}
    y, wanted = run(tmp_path / "single.cam.onnx", feeds, ["y", "cam.gradients.s5"])
    (found,) = through(tmp_path / "narrow.cam.onnx", feeds, ["cam.gradients.s5"])
    assert 1e-6 < y[0, 1] < 1e-4
    assert (found != 0).mean() >= (wanted != 0).mean() - 0.01
    assert correlation(found, wanted) >= 0.999


@real
@pytest.mark.parametrize(
    ("name", "layer", "how", "least"),
    [
        ("squeezenet1.1", "auto", "imagenet", 0.999),
        ("mobilenet_v2", "auto", IMAGENET, 0.999),
        # Rounding the weights alone, in a file of single precision, moves these as much.
        ("squeezenet1.1", "fire5/concat_1", "imagenet", 0.99),
    ],
)
@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_real_maps_in_bfloat16_are_those_of_single_precision(tmp_path, name, layer, how, least, method):
    photos = sorted(map(str, (DATA / "photos").glob("*.[jb][pm][gp]")))[:6]
    source = onnx.load(DATA / "models" / f"{name}.onnx")
    onnx.save(source, tmp_path / "single.onnx")
    onnx.save(in_bfloat16(onnx.version_converter.convert_version(source, SINCE)), tmp_path / "narrow.onnx")
    maps = []
    for kind in ("single", "narrow"):
        rewrite_onnx(tmp_path / f"{kind}.onnx", tmp_path / f"{kind}.cam.onnx", layer, preprocess=how)
    files = contextlib.nullcontext(tmp_path / "single.cam.onnx"), twin(tmp_path / "narrow.cam.onnx")
    for file in files:
        with file as path:
            explainer = Explainer(path, "cpu")
            classes = maps[0][0] if maps else None
            found = explainer.explain(photos, target=classes, method=method)
            maps.append((found.class_ids.tolist(), found.heatmaps))
    correlations = [correlation(a, b) for a, b in zip(maps[0][1], maps[1][1], strict=True)]
    assert np.median(correlations) >= least, correlations
