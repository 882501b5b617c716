"""Every opset from 7 to the newest that ONNX Runtime loads: operators as each of them writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcam.errors import ModelError
from onnxcam.export import load, normalize, rewrite_onnx

NEWEST = 26


class Network:
    """A network in the making, at one opset."""

    def __init__(self, opset: int) -> None:
        self.opset, self.nodes, self.tensors = opset, [], []

    def constant(self, *values: Any, dtype: Any = np.int64, shape: Any = None) -> str:
        name = f"k{len(self.tensors)}"
        array = np.array(values, dtype)
        self.tensors.append(numpy_helper.from_array(array if shape is None else array.reshape(shape), name))
        return name

    def __call__(self, op: str, *inputs: str, out: str | list[str] = "", **attributes: Any) -> Any:
        outputs = out if isinstance(out, list) else [out or f"v{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, **attributes))
        return outputs if isinstance(out, list) else outputs[0]

    def moved(self, op: str, x: str, since: int, out: Any = "", **values: Any) -> Any:
        """An operator whose integers were attributes before an opset, and are inputs from it on."""
        if self.opset < since:
            return self(op, x, out=out, **values)
        return self(op, x, *(self.constant(*np.atleast_1d(v)) for v in values.values()), out=out)

    def model(self, ir_version: int) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 5])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])
        inputs = [x]
        if ir_version == 3:  # initializers are graph inputs
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.tensors]
        graph = helper.make_graph(self.nodes, "g", inputs, [y], self.tensors)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version
        )


def network(opset: int, ir_version: int = 8) -> onnx.ModelProto:
    """Convolution to softmax, over the operators whose form changed most."""
    net = Network(opset)
    rng = np.random.default_rng(0)
    eye = net.constant(*np.eye(3).ravel(), dtype=np.float32, shape=(3, 3, 1, 1))
    h = net("Conv", "x", eye, out="r")
    w = net.constant(*(0.4 * rng.standard_normal(4 * 3 * 9)), dtype=np.float32, shape=(4, 3, 3, 3))
    h = net("Conv", h, w, pads=[1, 1, 1, 1])
    statistics = [
        net.constant(*v, dtype=np.float32) for v in ([1, 2, 0.5, 1], [0, 1, 0, 0], [0.1] * 4, [0.9] * 4)
    ]
    h = net("BatchNormalization", h, *statistics)
    factors = (1.0, 1.0, 2.0, 2.0)
    if opset == 7:
        h = net("Upsample", h, mode="nearest", scales=factors)
    elif opset in (8, 9, 10):
        scales = net.constant(*factors, dtype=np.float32)
        h = (
            net("Upsample", h, mode="linear", scales=factors)
            if opset == 8
            else net("Upsample" if opset == 9 else "Resize", h, scales, mode="linear")
        )
    else:
        roi = "" if opset >= 13 else net.constant(dtype=np.float32)
        h = net("Resize", h, roi, net.constant(*factors, dtype=np.float32), mode="linear")
    h = net.moved("Pad", h, 11, pads=[0, 0, 1, 0, 0, 0, 0, 2])
    h = net.moved("Slice", h, 10, starts=[1, 0], ends=[11, 9], axes=[2, 3])
    if opset < 11:
        h = net("Clip", h, min=-0.7, max=2.0)
    else:
        h = net("Clip", h, *(net.constant(v, dtype=np.float32, shape=()) for v in (-0.7, 2.0)))
    a, b = _split(net, h)
    h = net("Concat", b, a, axis=1)
    h = net("Tanh", h)
    pooled = net("GlobalAveragePool", h)
    mean = net.moved("ReduceMean", h, 18, axes=[2, 3])
    peak = net.moved("ReduceMax", h, 18, axes=[2, 3])
    h = net("Sum", pooled, mean, peak)
    h = net.moved("Squeeze", h, 13, axes=[2, 3])
    h = net.moved("Unsqueeze", h, 13, axes=[1])
    h = net.moved("Squeeze", h, 13, axes=[1])
    best, _ = (
        net("TopK", h, out=["t0", "t1"], k=2, axis=1)
        if opset < 10
        else net("TopK", h, net.constant(2), out=["t0", "t1"], axis=1)
    )
    h = net("Concat", h, best, axis=1)
    h = net("Dropout", h)
    # Before opset 13 what follows the axis is flattened into it: (N, 2, 3) is softmaxed as (N, 6).
    h = net("Reshape", h, net.constant(0, 2, 3))
    h = net("Softmax", h, axis=1)
    net("Reshape", h, net.constant(0, 6), out="y")
    return net.model(ir_version)


def _split(net: Network, h: str) -> list[str]:
    if net.opset < 13:
        return net("Split", h, out=["s0", "s1"], axis=1, split=[1, 3])
    return net("Split", h, net.constant(1, 3), out=["s0", "s1"], axis=1)


def session(model: Any) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_a_network_of_each_opset(tmp_path, opset):
    check(tmp_path, network(opset))


@pytest.mark.parametrize("opset", [7, 8, 11])
def test_initializers_that_are_inputs(tmp_path, opset):
    check(tmp_path, network(opset, ir_version=3))


@pytest.mark.parametrize("opset", [19, 21, 23, NEWEST])
def test_lowered_to_18(tmp_path, opset):
    check(tmp_path, network(opset), lower=True)
    assert onnx.load(tmp_path / "model.cam.onnx").opset_import[0].version == 18


def test_a_newer_opset_stays(tmp_path):
    check(tmp_path, network(21))
    assert onnx.load(tmp_path / "model.cam.onnx").opset_import[0].version == 21


def check(folder: Any, net: onnx.ModelProto, **options: Any) -> None:
    """The outputs are the original's, and the gradient is their slope, taken on the original."""
    source, target = folder / "model.onnx", folder / "model.cam.onnx"
    onnx.save(net, source)
    report = rewrite_onnx(source, target, "r", probability=True, **options)
    assert report.output_error is not None
    assert report.output_error < 1e-5
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 6, 5)).astype(np.float32)
    classes = np.array([1, 4])
    before, after = session(source.read_bytes()), session(target.read_bytes())
    gradient = after.run(["cam.gradients.r"], {"x": x, "cam.class_index": classes})[0].astype(np.float64)
    h = np.float32(2e-3)
    for _ in range(3):
        u = rng.standard_normal(x.shape).astype(np.float32)
        up, down = (before.run(["y"], {"x": x + sign * h * u})[0][[0, 1], classes] for sign in (1, -1))
        slopes = (up.astype(np.float64) - down) / (2 * h)
        wanted = (gradient * u).reshape(2, -1).sum(1)
        assert np.abs(slopes - wanted).max() < 1e-2 * np.linalg.norm(gradient)


# -- names and domains ------------------------------------------------------------------------------


def test_the_default_domain_by_its_long_name(tmp_path):
    net = network(13)
    net.opset_import[0].domain = "ai.onnx"
    for node in net.graph.node[::2]:
        node.domain = "ai.onnx"
    check(tmp_path, net)


# -- functions ----------------------------------------------------------------------------------


def with_functions(inner_opset: int, outer_opset: int) -> onnx.ModelProto:
    """Functions in functions, written at another opset than the model, with an attribute and a default."""
    text = f"""
        <ir_version: 8, opset_import: ["" : {outer_opset}, "local" : 1]>
        g (float[N,3,6,5] x, float[3,3,1,1] eye) => (float[N,3] y) {{
            r = Conv(x, eye)
            h = local.block<alpha=0.3>(r)
            k = local.pooled(h)
            y = Softmax<axis=1>(k)
        }}
        <domain: "local", opset_import: ["" : {inner_opset}]>
        squeezed (t) => (s) {{ s = Flatten<axis=1>(t) }}
        <domain: "local", opset_import: ["" : {inner_opset}, "local" : 1]>
        pooled (t) => (s) {{ p = GlobalAveragePool(t) q = local.squeezed(p) s = Mul(q, q) }}
        <domain: "local", opset_import: ["" : {inner_opset}]>
        block <alpha: float = 0.1> (t) => (s) {{ a = LeakyRelu<alpha: float = @alpha>(t) s = Tanh(a) }}
    """
    net = onnx.parser.parse_model(text)
    del net.graph.input[1]
    net.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32)[..., None, None], "eye"))
    net.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    return net


@pytest.mark.parametrize(("inner", "outer"), [(18, 18), (17, 18), (13, 18), (18, 21), (13, 13), (17, 13)])
def test_functions_in_functions_of_other_opsets(tmp_path, inner, outer):
    source, target = tmp_path / "model.onnx", tmp_path / "model.cam.onnx"
    onnx.save(with_functions(inner, outer), source)
    report = rewrite_onnx(source, target, "r", probability=True)
    assert report.output_error is not None
    assert report.output_error < 1e-6
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 5)).astype(np.float32)
    gradient = session(target.read_bytes()).run(["cam.gradients.r"], {"x": x})[0]
    a = np.tanh(np.where(x > 0, x, 0.3 * x))
    q = a.mean((2, 3))
    e = np.exp(q * q)
    p = e / e.sum(1, keepdims=True)
    k = p.argmax(1)
    of_logits = p[[0, 1], k][:, None] * (np.eye(3)[k] - p)
    wanted = (of_logits * 2 * q / 30)[..., None, None] * (1 - a * a) * np.where(x > 0, 1, 0.3)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_functions_that_cannot_be_inlined(tmp_path):
    net = with_functions(18, 18)
    net.functions[1].node[0].op_type = "NoSuchOperator"
    model = load(net.SerializeToString())
    assert "NoSuchOperator" in {n.op_type for n in normalize(model).graph}
    recursive = with_functions(18, 18)
    recursive.functions[0].node[0].domain, recursive.functions[0].node[0].op_type = "local", "pooled"
    del recursive.functions[0].node[0].attribute[:]
    with pytest.raises(ModelError, match="The model's local functions cannot be inlined"):
        normalize(load(recursive.SerializeToString()))
