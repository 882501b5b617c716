"""Messages that no other test reads: what, where, what next."""

import errno
import os

import nets
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxcam.export.verify as verify
import onnxcam.export.write as write
from onnxcam.errors import (
    ExportError,
    ModelError,
    NoGradientRule,
    OutputError,
    UnknownLayer,
    VerificationError,
)
from onnxcam.export import add_gradients, normalize, rewrite_onnx


def test_functions_of_another_opset(tmp_path):
    net = nets.cnn(
        body="q = local.outer(r) p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        extra_opsets=', "local": 1',
        functions='<domain: "local", opset_import: ["": 11, "local": 1]> outer (a) => (d) '
        "{ c = local.inner(a) d = ReduceMax<axes=[1]>(c) } "
        '<domain: "local", opset_import: ["": 11]> inner (a) => (d) { d = ReduceSum<axes=[1]>(a) }',
    )
    with pytest.raises(ModelError, match=r"The model's local functions cannot be inlined: .*Type unknown"):
        rewrite_onnx(net.SerializeToString(), tmp_path / "out.cam.onnx")
    assert not any(tmp_path.iterdir())


def test_a_scan_that_onnx_s_converter_spoils():
    net = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 8]> '
        "g (float[1,2] s, float[1,3,2] x) => (float[1,2] e, float[1,3,2] y) "
        "{ e, y = Scan<num_scan_inputs=1, body = b (float[2] h, float[2] u) => (float[2] k, float[2] o) "
        "{ k = Add(h, u) o = Identity(k) }>(, s, x) }"
    )
    with pytest.raises(ModelError, match=r"Scan of opset 8 .* Export the model again at opset 9 or newer\."):
        normalize(ir.from_proto(net))


def test_values_that_do_not_exist():
    model = normalize(ir.from_proto(nets.cnn()))
    with pytest.raises(UnknownLayer, match=r"The graph has no value named 'yy'\. Nearest: 'y'"):
        add_gradients(model, "yy", ["x"])


@pytest.mark.parametrize(
    ("body", "initializers", "message"),
    [
        (
            "p = Concat<axis=3>(v, v) s = Reshape(p, k) y = DFT<axis=1, inverse=1, onesided=1>(s, n)",
            {"k": np.array([1, 24, 2]), "n": np.array(50)},
            r"DFT .*its spectrum has 24 entries, and dft_length wants 26",
        ),
        (
            "y = RoiAlign(v, r, i)",
            {"r": np.ones((1, 4), np.float32), "i": np.zeros(1, np.int64)},
            r"RoiAlign .*its sampling_ratio is 0: each region takes a number of samples of its own",
        ),
        (
            "z = Squeeze(v, k) y = DeformConv(z, w, o)",
            {
                "k": np.array([0]),
                "w": np.ones((1, 4, 1), np.float32),
                "o": np.ones((1, 2, 6), np.float32),
            },
            r"DeformConv .*it is not two-dimensional",
        ),
        (
            'y = Resize<mode="linear", antialias=1, keep_aspect_ratio_policy="not_smaller">(v, , , s)',
            {"s": np.array([1, 1, 5, 6])},
            r"Resize .*its policy rounds a size up, and it is half_pixel or weighs its edges",
        ),
    ],
)
def test_what_a_rule_cannot_do(body, initializers, message):
    net = nets.model(body, inputs="float[1,1,4,6] v", initializers=initializers, opset=19)
    del net.graph.output[0].type.tensor_type.shape.dim[:]
    net.graph.output[0].type.tensor_type.ClearField("shape")
    model = normalize(ir.from_proto(net))
    with pytest.raises(NoGradientRule, match=message):
        add_gradients(model, "y", ["v"])


def test_a_result_that_onnx_refuses(tmp_path, monkeypatch):
    def refuse(_):
        raise onnx.checker.ValidationError("no such thing")

    monkeypatch.setattr(write.onnx.checker, "check_model", refuse)
    with pytest.raises(VerificationError, match=r"ONNX's checker refuses the rewritten model: no such thing"):
        rewrite_onnx(nets.cnn().SerializeToString(), tmp_path / "out.cam.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["ir.save", "os.replace"])
def test_a_disk_that_is_full(tmp_path, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"onnxcam.export.write.{call}", full)
    with pytest.raises(OutputError, match=r"Cannot write .*out\.cam\.onnx': No space left on device"):
        rewrite_onnx(nets.cnn().SerializeToString(), tmp_path / "out.cam.onnx")
    monkeypatch.undo()
    assert not any(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite(tmp_path, monkeypatch):
    original = verify._run

    def overflowing(*arguments):
        found = original(*arguments)
        return {k: v * np.inf if k.startswith("cam.gradients") else v for k, v in found.items()}

    monkeypatch.setattr(verify, "_run", overflowing)
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(VerificationError, match=r"The gradient at layer 'r' has shape .* or is not finite"),
    ):
        rewrite_onnx(nets.cnn().SerializeToString(), tmp_path / "out.cam.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.torch
def test_an_output_that_differs(tmp_path):
    torch = pytest.importorskip("torch")
    from onnxcam.export import export_torch

    class Other(torch.nn.Module):
        """Computes something else while it is exported."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x).mean((2, 3))
            return y if torch.compiler.is_exporting() else y + 1

    with pytest.raises(VerificationError, match=r"The exported output 'output' differs from the model's by "):
        export_torch(Other(), torch.zeros(2, 3, 8, 8), tmp_path / "out.cam.onnx", layers="conv")
    assert not any(tmp_path.iterdir())


@pytest.mark.torch
def test_inputs_that_do_not_fit_a_module(tmp_path):
    torch = pytest.importorskip("torch")
    from onnxcam.export import export_torch

    model = torch.nn.Conv2d(3, 4, 3)
    with pytest.raises(ExportError, match=r"example_inputs holds no tensor: give a tensor, a tuple of them"):
        export_torch(model, (), tmp_path / "out.cam.onnx")
    with pytest.raises(
        ExportError, match=r"The model is on cpu and example_inputs on meta: move them to one"
    ):
        export_torch(model, torch.zeros(1, 3, 8, 8, device="meta"), tmp_path / "out.cam.onnx")
