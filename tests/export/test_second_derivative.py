"""The engine differentiates its own output: H A against torch's double backward, and Shapley-CAM."""

import functools
import warnings

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnxcam import methods
from onnxcam.errors import ScoreError
from onnxcam.export import rewrite_onnx
from onnxcam.methods import Method

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
nn = torch.nn


class Attention(nn.Module):
    """One head over the cells, then their mean."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        t = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(t).chunk(3, dim=-1)
        return ((q @ k.transpose(1, 2) / 6**0.5).softmax(-1) @ v + t).mean(1)


def pooled():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


TAILS = {
    "linear": lambda: pooled(),
    "gelu": lambda: nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GELU(), pooled()),
    "silu and strides": lambda: nn.Sequential(nn.Conv2d(6, 6, 3, stride=2), nn.SiLU(), pooled()),
    "batch norm and tanh": lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Tanh(), nn.MaxPool2d(2), pooled()),
    "group norm and sigmoid": lambda: nn.Sequential(nn.GroupNorm(2, 6), nn.Sigmoid(), pooled()),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm([6, 7, 5]), nn.Hardswish(), pooled()),
    "attention": lambda: Attention(),
}
SCORES = {"logit": {}, "probability": {"probability": True}, "rest": {"score": {"rest": True}}}


def explained(logits, kind, classes):
    """What is differentiated, summed over the batch."""
    if kind == "probability":
        logits = logits.softmax(1)
    if kind == "rest":
        logits = logits + logits.log_softmax(1)
    return logits.gather(1, classes[:, None]).sum()


@functools.cache
def network(tail):
    """A convolution, ``features``, and a head; in evaluation mode."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("features", nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ELU()))
    net.add_module("tail", TAILS[tail]())
    net.add_module("head", nn.Linear(6, 5))
    with torch.no_grad():  # so that classes differ, and second derivatives are no rounding
        net.head.weight *= 4
    return net.eval()


@functools.cache
def exported(tail, probability):
    net = network(tail)
    net = nn.Sequential(net, nn.Softmax(1)) if probability else net
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            net,
            (torch.randn(2, 3, 7, 5),),
            dynamo=True,
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    model = ir.serde.serialize_model(program.model)
    layer = next(n for n in model.graph.node if n.op_type == "Elu").output[0]
    return model.SerializeToString(), layer


@pytest.fixture
def h_times_a(monkeypatch):
    """Two views of the curvature as methods, so that a file carries it."""
    for name, view in (("h_sum", "sum"), ("h_max", "max")):
        function = functools.partial(_view, view)
        monkeypatch.setitem(methods._methods, name, Method(name, function, ("curvature",), "", ""))
    return ["h_sum", "h_max"]


def _view(view, curvature, *, xp=np):
    return getattr(xp, view)(curvature, axis=1)


def run(path, x, classes):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    feeds = {session.get_inputs()[0].name: x.numpy(), "cam.class_index": classes.numpy()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def twice(net, kind, x, classes):
    """A, G and H A by torch.autograd, in float64."""
    net = net.double()
    try:
        a = net.features(x.double()).detach().requires_grad_(True)
        score = explained(net.head(net.tail(a)), kind, classes)
        (g,) = torch.autograd.grad(score, a, create_graph=True)
        inner = (g * a.detach()).sum()
        (h,) = torch.autograd.grad(inner, a, allow_unused=True) if inner.requires_grad else (None,)
        h = torch.zeros_like(a) if h is None else h
    finally:
        net.float()
    return [t.detach().numpy() for t in (a, g, h)]


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("tail", TAILS)
def test_curvature_is_torchs_double_backward(tmp_path, h_times_a, tail, kind):
    model, layer = exported(tail, kind == "probability")
    path = tmp_path / "m.cam.onnx"
    specs = [{"method": n, "size": "layer", "scaled": False} for n in h_times_a]
    rewrite_onnx(model, path, layers=layer, fuse=specs, **SCORES[kind])
    x, classes = torch.randn(3, 3, 7, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 0, 2])
    found = run(path, x, classes)
    a, g, h = twice(network(tail), kind, x, classes)
    for name, expected in (("h_sum", h.sum(axis=1)), ("h_max", h.max(axis=1))):
        tolerance = 2e-5 * np.abs(g * a).max()
        np.testing.assert_allclose(
            found[f"cam.heatmap.{name}"], expected, rtol=0, atol=tolerance, err_msg=name
        )
    # Zero exactly where nothing bends.
    assert (np.abs(h).max() > 0) == (tail != "linear" or kind != "logit")


def test_where_nothing_bends_shapley_cam_is_grad_cam(tmp_path):
    model, layer = exported("linear", False)
    path = tmp_path / "m.cam.onnx"
    specs = [{"method": n, "scaled": False} for n in ("gradcam", "shapleycam")]
    rewrite_onnx(model, path, layers=layer, fuse=specs)
    found = run(path, torch.randn(2, 3, 7, 5), torch.tensor([1, 3]))
    np.testing.assert_array_equal(found["cam.heatmap.shapleycam"], found["cam.heatmap.gradcam"])
    rewrite_onnx(model, path, layers=layer, fuse=specs, score={"rest": True})
    found = run(path, torch.randn(2, 3, 7, 5), torch.tensor([1, 3]))
    assert np.abs(found["cam.heatmap.shapleycam"] - found["cam.heatmap.gradcam"]).max() > 1e-3


def test_shapley_cam_by_hand():
    a, g, h = np.array([[[[1.0, 2.0]]]]), np.array([[[[3.0, 5.0]]]]), np.array([[[[2.0, -6.0]]]])
    made = methods.get("shapleycam").function(a, g, h)
    np.testing.assert_allclose(made, (4 - 0.5 * -2) * a[:, 0])


def test_the_residual_softmax_score_is_told(tmp_path):
    model, layer = exported("gelu", False)
    path = tmp_path / "m.cam.onnx"
    report = rewrite_onnx(model, path, layers=layer, score={"rest": True})
    assert report.record.score.rest
    x, classes = torch.randn(2, 3, 7, 5), torch.tensor([1, -1])
    found = run(path, x, classes)
    with torch.no_grad():
        logits = network("gelu")(x)
    chosen = torch.where(classes < 0, logits.argmax(1), classes)
    expected = (logits + logits.log_softmax(1)).gather(1, chosen[:, None])[:, 0]
    np.testing.assert_allclose(found["cam.score"], expected.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(found["cam.class"], chosen.numpy())


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"rest": True, "probability": True}, "is made of a classifier's logits"),
        (
            {"rest": True, "task": "embedding"},
            r"no `rest` .* of the task 'embedding'.* belongs to classification",
        ),
        (
            {"rest": True, "task": "regression"},
            r"no `rest` .* of the task 'regression'.* belongs to classification",
        ),
    ],
    ids=["probability", "embedding", "regression"],
)
def test_the_residual_softmax_score_is_of_classifiers(tmp_path, score, message):
    model, layer = exported("gelu", False)
    with pytest.raises(ScoreError, match=message):
        rewrite_onnx(model, tmp_path / "m.cam.onnx", layers=layer, score=score)
