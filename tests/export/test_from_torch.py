"""From a PyTorch module to an explainable file: what is captured, recorded, refused and verified."""

import collections
import copy
import dataclasses
import re

import networks
import numpy as np
import onnx
import pytest
from torchvision_shim import import_torchvision

from onnxcam import Explainer
from onnxcam.errors import ExportError, ModelError, OutputError, ScoreError, UnknownLayer, VerificationError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
export_torch = pytest.importorskip("onnxcam.export").export_torch
torch_exporters = pytest.importorskip("onnxcam.export.torch_exporters")
nn = torch.nn

pytestmark = pytest.mark.torch


class Net(nn.Module):
    """Conv, norm, ReLU, a shared block that is called twice, an Identity, and a classifier."""

    def __init__(self, end=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.twice = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh())
        self.same = nn.Identity()
        self.fc = nn.Linear(6, 5)
        self.end = end or nn.Identity()
        nn.init.normal_(self.norm.running_mean, std=0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        x = self.twice(self.twice(x))
        return self.end(self.fc(self.same(x).mean((2, 3))))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def image():
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def net():
    return Net().eval()


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def check(model, images, path, layers, classes=(3, 0)):
    """The file's activations and gradients at module paths, against torch.autograd."""
    _, activations, gradients = networks.by_autograd(model, images, layers, list(classes))
    explainer = Explainer(path, "cpu")
    raw = raw_outputs(path, images, classes)
    for name in layers:
        np.testing.assert_allclose(raw[f"cam.activations.{name}"], activations[name], atol=1e-5)
        np.testing.assert_allclose(raw[f"cam.gradients.{name}"], gradients[name], atol=1e-6)
    return explainer


def raw_outputs(path, images, classes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    feeds = {session.get_inputs()[0].name: images.numpy(), "cam.class_index": np.asarray(classes, np.int64)}
    return dict(zip(names, session.run(names, feeds), strict=True))


# -- layers -----------------------------------------------------------------------------------------


def test_paths_and_modules(net, image, tmp_path):
    path = tmp_path / "out.cam.onnx"
    report = export_torch(net, image, path, layers=["relu", net.twice[1], "same"])
    assert [layer.name for layer in report.record.layers] == ["relu", "twice.1", "same"]
    assert report.output_error < 1e-5
    assert report.gradient_error < 1e-5
    assert left(tmp_path) == ["out.cam.onnx"]
    check(net, image, path, ["relu", "twice.1", "same"])


def test_one_module_object(net, image, tmp_path):
    report = export_torch(net, image, tmp_path / "out.cam.onnx", layers=net.relu)
    assert report.record.layers[0].name == "relu"


def test_the_layer_unasked(net, image, tmp_path):
    report = export_torch(net, image, tmp_path / "out.cam.onnx")
    assert report.record.layers[0].name == "twice"
    assert report.gradient_error < 1e-5


def test_a_module_called_twice(net, image, tmp_path):
    path = tmp_path / "out.cam.onnx"
    export_torch(net, image, path, layers=["twice", "twice#0", "twice#1"])
    calls = []
    handle = net.twice.register_forward_hook(lambda module, inputs, output: calls.append(output))
    scores = net(image)
    handle.remove()
    gradients = torch.autograd.grad(scores[:, 2].sum(), calls)
    raw = raw_outputs(path, image, [2, 2])
    for name, k in (("twice", 1), ("twice#0", 0), ("twice#1", 1)):
        np.testing.assert_allclose(raw[f"cam.activations.{name}"], calls[k].detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(raw[f"cam.gradients.{name}"], gradients[k].numpy(), atol=1e-6)


def test_a_norm_that_the_exporter_folds(net, image, tmp_path):
    path = tmp_path / "out.cam.onnx"
    export_torch(net, image, path, layers=["conv", "norm"])
    check(net, image, path, ["conv", "norm"])


def test_an_operation_in_place_behind_the_layer(image, tmp_path):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
            self.fc = nn.Linear(6, 5)

        def forward(self, x):
            x = nn.functional.relu(self.features(x), inplace=True)
            return self.fc(x.mean((2, 3)))

    model, path = InPlace().eval(), tmp_path / "out.cam.onnx"
    export_torch(model, image, path, layers="features")
    check(model, image, path, ["features"])
    assert raw_outputs(path, image, [0, 0])["cam.activations.features"].min() < 0


def test_a_tuple_of_tensors_is_captured_at_its_first(image, tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x):
            y = self.conv(x)
            return y, y.mean()

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.fc = Pair(), nn.Linear(6, 5)

        def forward(self, x):
            y, m = self.pair(x)
            return self.fc(torch.tanh(y).mean((2, 3)) + m)

    report = export_torch(Outer().eval(), image, tmp_path / "out.cam.onnx", layers="pair")
    assert report.record.layers[0].shape[1:] == (6, 6, 6)
    assert report.gradient_error < 1e-5


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("rellu", r"The model has no module 'rellu'\. Nearest: 'relu'"),
        ("twice#x", r"The model has no module 'twice#x'\. Nearest: 'twice'"),
        ([], r"No layer was named: pass layers='auto', a module path or a module or a list of them"),
        (5, r"A layer is a module path or a module, not 5: pass"),
        (["relu", 0], r"A layer is a module path or a module, not 0: pass"),
        (nn.ReLU(), r"The given ReLU is not a module of this model"),
        ("fc", r"The layer 'fc' has shape \['batch', 5\], in which no spatial grid is known"),
    ],
)
def test_unknown_layers(layers, message, net, image, tmp_path):
    with pytest.raises(UnknownLayer, match=message):
        export_torch(net, image, tmp_path / "out.cam.onnx", layers=layers)
    assert left(tmp_path) == []


def test_a_module_that_is_not_called(net, image, tmp_path):
    net.unused = nn.ReLU()
    with pytest.raises(ExportError, match=r"The module 'unused' was called 0 times in a forward pass"):
        export_torch(net, image, tmp_path / "out.cam.onnx", layers="unused")
    with pytest.raises(
        ExportError, match=r"The module 'twice' was called 2 times .* 'twice#2' has no output"
    ):
        export_torch(net, image, tmp_path / "out.cam.onnx", layers="twice#2")
    assert left(tmp_path) == []


# -- the model --------------------------------------------------------------------------------------


def test_training_mode_is_left_as_it_was(image, tmp_path):
    model = Net()
    model.norm.eval()
    modes = [m.training for m in model.modules()]
    statistics = model.norm.running_mean.clone()
    report = export_torch(model, image, tmp_path / "out.cam.onnx", layers="relu")
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(model.norm.running_mean, statistics)
    assert "The model was in training mode; it was exported in evaluation mode." in report.notes
    check(model.eval(), image, tmp_path / "out.cam.onnx", ["relu"])


def test_gradients_and_inputs_are_left_as_they_were(net, image, tmp_path):
    before = image.clone()
    export_torch(net, image, tmp_path / "out.cam.onnx", layers="relu")
    assert torch.equal(image, before)
    assert not image.requires_grad
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_half_precision(net, image, tmp_path):
    path = tmp_path / "out.cam.onnx"
    report = export_torch(copy.deepcopy(net).half(), image.half(), path, layers="relu")
    assert report.output_error < 2e-2
    assert report.gradient_error < 5e-2
    found = Explainer(path, "cpu").explain_tensor(image.half().numpy(), target=3)
    export_torch(net, image, tmp_path / "single.cam.onnx", layers="relu")
    expected = Explainer(tmp_path / "single.cam.onnx", "cpu").explain_tensor(image.numpy(), target=3)
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=0.02)


def test_double_precision_has_no_kernels(net, image, tmp_path):
    with pytest.raises(VerificationError, match=r"does not run in ONNX Runtime .*implementation for Conv"):
        export_torch(net.double(), image.double(), tmp_path / "out.cam.onnx", layers="relu")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (lambda m: m.bfloat16(), None, r"The model is in bfloat16.*`model\.float\(\)` or `model\.half\(\)`"),
        (lambda m: m.half(), None, r"The model is in torch\.float16 and example_inputs in torch\.float32"),
        (lambda m: m.to("meta"), None, r"weights are on the meta device"),
        (lambda m: m, (), r"example_inputs holds no tensor"),
        (lambda m: m, torch.zeros(0, 3, 8, 8), r"example_inputs has an empty batch"),
        (lambda m: m.forward, None, r"takes a torch\.nn\.Module, not method"),
    ],
)
def test_what_cannot_be_exported(change, given, message, net, image, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_torch(change(net), image if given is None else given, tmp_path / "out.cam.onnx")
    assert left(tmp_path) == []


def test_torchscript_is_refused(net, image, tmp_path):
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        script = torch.jit.trace(net, image)
    with pytest.raises(ExportError, match="TorchScript module cannot be captured"):
        export_torch(script, image, tmp_path / "out.cam.onnx")


# -- inputs and outputs -----------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.scale = Net(), nn.Linear(4, 5)

    def forward(self, image, facts):
        return self.net(image) + self.scale(facts)


@pytest.mark.parametrize("as_dict", [False, True])
def test_two_inputs(as_dict, image, tmp_path):
    model, facts = TwoInputs().eval(), torch.randn(2, 4)
    given = {"facts": facts, "image": image} if as_dict else (image, facts)
    path = tmp_path / "out.cam.onnx"
    report = export_torch(model, given, path, layers="net.relu")
    assert report.gradient_error < 1e-5
    explainer = Explainer(path, "cpu")
    result = explainer.explain_tensor({"image": image.numpy(), "facts": facts.numpy()}, target=1)
    expected = model(image, facts).detach().numpy()
    np.testing.assert_allclose(result.outputs["output"], expected, atol=1e-5)
    one = explainer.explain_tensor({"image": image[:1].numpy(), "facts": facts[:1].numpy()}, target=1)
    np.testing.assert_allclose(one.heatmaps[0], result.heatmaps[0], atol=1e-5)


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = Net(), kind

    def forward(self, x):
        y = self.net(x)
        return {"logits": y, "double": 2 * y} if self.kind == "dict" else (y, 2 * y)


@pytest.mark.parametrize(("kind", "score"), [("dict", "double"), ("tuple", "output_1")])
def test_several_outputs(kind, score, image, tmp_path):
    model, path = Several(kind).eval(), tmp_path / "out.cam.onnx"
    with pytest.raises(ScoreError, match=rf"The model has 2 outputs; name the one .*'{score}'"):
        export_torch(model, image, path, layers="net.relu")
    assert left(tmp_path) == []
    report = export_torch(model, image, path, layers="net.relu", score=score)
    assert report.record.score.output == score
    assert report.gradient_error < 1e-5
    _, _, gradients = networks.by_autograd(model.net, image, ["relu"], [3, 0])
    raw = raw_outputs(path, image, [3, 0])
    np.testing.assert_allclose(raw["cam.gradients.net.relu"], 2 * gradients["relu"], atol=1e-6)


@pytest.mark.parametrize(("end", "name"), [(nn.Softmax(1), "softmax"), (nn.Sigmoid(), "sigmoid")])
def test_the_logit_is_explained(end, name, image, tmp_path):
    model, path = Net(end).eval(), tmp_path / "out.cam.onnx"
    report = export_torch(model, image, path, layers="relu")
    assert report.record.score.activation == name
    assert not report.record.score.probability
    assert report.gradient_error < 1e-5
    logits = copy.deepcopy(model)
    logits.end = nn.Identity()
    _, _, gradients = networks.by_autograd(logits, image, ["relu"], [3, 0])
    np.testing.assert_allclose(
        raw_outputs(path, image, [3, 0])["cam.gradients.relu"], gradients["relu"], atol=1e-6
    )


def test_the_probability_is_explained_where_asked_for(image, tmp_path):
    model, path = Net(nn.Softmax(1)).eval(), tmp_path / "out.cam.onnx"
    report = export_torch(model, image, path, layers="relu", probability=True)
    assert report.record.score.probability
    check(model, image, path, ["relu"])


def test_a_transformers_model(tmp_path):
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "owl"},
        label2id={"cat": 0, "dog": 1, "owl": 2},
    )
    model = transformers.ViTForImageClassification(config).eval()
    path = tmp_path / "out.cam.onnx"
    report = export_torch(model, {"pixel_values": torch.randn(1, 3, 32, 32)}, path)
    (layer,) = report.record.layers
    assert (layer.layout.kind, layer.layout.prefix, layer.layout.grid) == ("tokens", 1, (4, 4))
    assert report.record.score.output == "logits"
    assert report.record.labels == ("cat", "dog", "owl")
    assert report.gradient_error < 1e-4
    x = torch.randn(3, 3, 32, 32)
    result = Explainer(path, "cpu").explain_tensor(x.numpy(), target="owl")
    assert result.heatmaps.shape == (3, 32, 32)
    np.testing.assert_allclose(result.outputs["logits"], model(x).logits.detach().numpy(), atol=1e-5)


@dataclasses.dataclass
class NotTensors:
    value: int = 0


def test_an_output_without_tensors(image, tmp_path):
    class Nothing(nn.Module):
        def forward(self, x):
            return NotTensors()

    with pytest.raises(ExportError, match=r"returns NotTensors, which holds no tensor to explain"):
        export_torch(Nothing(), image, tmp_path / "out.cam.onnx")
    assert left(tmp_path) == []


# -- sizes ------------------------------------------------------------------------------------------


def test_open_sizes(net, image, tmp_path):
    path = tmp_path / "out.cam.onnx"
    export_torch(net, image, path, layers="relu", dynamic_size=True)
    for shape in ((1, 3, 8, 8), (3, 3, 12, 20)):
        x = torch.randn(shape)
        check(net, x, path, ["relu"], [1] * shape[0])
        assert Explainer(path, "cpu").explain_tensor(x.numpy()).heatmaps.shape == (shape[0], *shape[2:])


def test_a_fixed_batch(net, image, tmp_path):
    report = export_torch(net, image, tmp_path / "out.cam.onnx", layers="relu", dynamic_batch=False)
    assert report.record.layers[0].shape == (2, 6, 8, 8)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_model_that_fixes_its_batch(batch, net, image, tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) * float(x.shape[0])

    report = export_torch(Fixed(), image[:batch], tmp_path / "out.cam.onnx", layers="net.relu")
    assert report.record.layers[0].shape[0] == batch
    assert any(note.startswith("The sizes are fixed to those of example_inputs") for note in report.notes)


def test_inputs_that_the_model_cannot_take(net, tmp_path):
    with pytest.raises(ExportError, match=r"The model does not run on example_inputs: .*channels"):
        export_torch(net, torch.zeros(1, 4, 8, 8), tmp_path / "out.cam.onnx")
    with pytest.raises(
        ExportError, match=r"does not run on example_inputs: .*unexpected keyword argument 'y'"
    ):
        export_torch(net, {"y": torch.zeros(1, 3, 8, 8)}, tmp_path / "out.cam.onnx")
    assert left(tmp_path) == []


# -- failures ---------------------------------------------------------------------------------------


def test_what_torch_cannot_export(net, image, tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            y = self.net(x)
            return y if y.sum() > 0 else 2 * y

    with pytest.raises(
        ExportError, match=r"torch could not export the model: .+\. Try `torch\.export\.export"
    ) as e:
        export_torch(Branching(), image, tmp_path / "out.cam.onnx", layers="net.relu")
    assert "data-dependent" in str(e.value)
    assert "Its older exporter would keep, for all inputs, the branch that example_inputs take." in str(
        e.value
    )
    assert len(str(e.value)) < 600
    assert left(tmp_path) == []


# -- the ways of exporting ----------------------------------------------------------------------------


class Traced(Net):
    """torch's newer exporter knows no RReLU, its older one does."""

    def __init__(self, end=None):
        super().__init__(end)
        self.relu = nn.RReLU()


OLDER = r"torch's newer exporter refused the model \(No ONNX function found for .*rrelu.*\); its older one"


@pytest.mark.parametrize("sizes", ["fixed", "batch", "all"])
def test_the_older_exporter(sizes, image, tmp_path):
    model, path = Traced().eval(), tmp_path / "out.cam.onnx"
    layers = ["conv", "norm", "relu", "twice"]
    fixed = sizes == "fixed"
    report = export_torch(
        model, image, path, layers=layers, dynamic_batch=not fixed, dynamic_size=sizes == "all"
    )
    assert re.match(OLDER, report.notes[0])
    assert report.gradient_error < 1e-5
    assert report.record.score.output == "output"
    check(model, image, path, layers)
    shape = {"fixed": (2, 3, 8, 8), "batch": (3, 3, 8, 8), "all": (1, 3, 10, 7)}[sizes]
    check(model, torch.randn(shape), path, layers, [4] * shape[0])
    assert vars(model).get("forward") is None
    assert not any(m._forward_hooks for m in model.modules())


def test_the_older_exporter_and_the_layer_unasked(image, tmp_path):
    model, path = Traced().eval(), tmp_path / "out.cam.onnx"
    report = export_torch(model, image, path)
    assert report.record.layers[0].name == "twice"
    assert report.gradient_error < 1e-5
    raw = raw_outputs(path, image, [1, 2])
    _, activations, gradients = networks.by_autograd(model, image, ["twice"], [1, 2])
    np.testing.assert_allclose(raw["cam.gradients.twice"], gradients["twice"], atol=1e-6)
    np.testing.assert_allclose(raw["cam.activations.twice"], activations["twice"], atol=1e-5)


def test_the_older_exporter_ends_at_opset_20(image, tmp_path):
    report = export_torch(Traced().eval(), image, tmp_path / "out.cam.onnx", layers="relu", opset=21)
    assert report.opset == 20


def test_the_older_exporter_and_a_logit_that_no_module_returns(image, tmp_path):
    report = export_torch(Traced(nn.Softmax(1)).eval(), image, tmp_path / "out.cam.onnx", layers="relu")
    assert report.gradient_error is None
    assert any("was not compared with torch.autograd" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["dict", "list", "tuple"])
def test_the_older_exporter_and_inputs_of_many_kinds(kind, image, tmp_path):
    class Inputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = Traced(), nn.Linear(4, 5)

        def forward(self, image, unused=None, half=False, facts=None, **more):
            first, second = facts
            y = self.net(image / 2 if half else image) + self.scale(first) - second
            return {"logits": y, "double": 2 * y}

    model, facts = Inputs().eval(), [torch.randn(2, 4), torch.randn(2, 5)]
    given = {
        "dict": {"facts": facts, "half": True, "image": image},
        "list": {"image": image, "facts": facts},
        "tuple": (image, None, False, tuple(facts)),
    }[kind]
    path = tmp_path / "out.cam.onnx"
    report = export_torch(model, given, path, layers="net.relu", score="double")
    assert re.match(OLDER, report.notes[0])
    assert report.gradient_error < 1e-5
    feeds = {"image": image.numpy(), "facts_0": facts[0].numpy(), "facts_1": facts[1].numpy()}
    outputs = Explainer(path, "cpu").explain_tensor(feeds, target=1).outputs
    expected = model(image, half=kind == "dict", facts=facts)
    for name in ("logits", "double"):
        np.testing.assert_allclose(outputs[name], expected[name].detach().numpy(), atol=1e-5)


def test_a_trace_that_fixes_its_batch(image, tmp_path):
    class Fixed(Traced):
        def forward(self, x):
            return super().forward(x) * float(x.shape[0])

    report = export_torch(Fixed().eval(), image, tmp_path / "out.cam.onnx", layers="relu")
    assert report.record.layers[0].shape == (2, 6, 8, 8)
    assert any("what it recorded on one input is wrong on another" in note for note in report.notes)


def test_a_trace_that_holds_a_number_of_its_run(image, tmp_path):
    class Recorded(Traced):
        def forward(self, x):
            return super().forward(x) * float(x.abs().mean())

    with pytest.raises(
        ExportError,
        match=r"torch could not export the model: .+ Its older exporter could not either: what it recorded "
        r"on one input is wrong on another\. Try `torch\.export\.export",
    ):
        export_torch(Recorded().eval(), image, tmp_path / "out.cam.onnx", layers="relu")
    assert left(tmp_path) == []


def test_what_neither_exporter_takes(image, tmp_path, capfd):
    class Neither(Net):
        def forward(self, x):
            return super().forward(x).kthvalue(2, 1, keepdim=True)[0]

    with pytest.raises(
        ExportError,
        match=r"could not export the model: No ONNX function found for .*kthvalue.* Its older exporter could "
        r"not either: Exporting the operator 'aten::kthvalue' to ONNX .* is not supported\. Try",
    ):
        export_torch(Neither().eval(), image, tmp_path / "out.cam.onnx")
    assert left(tmp_path) == []
    assert capfd.readouterr() == ("", "")


class Attends(nn.Module):
    """Attention over windows, of rank 5, which torch's newer exporter does not take as it is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 2, 2)
        self.norm, self.qkv, self.fc = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2))  # (B, 16, 8)
        windows = self.qkv(x).unflatten(1, (2, 8)).unflatten(-1, (3, 2, 4))  # (B, 2, 8, 3, 2, 4)
        q, k, v = windows.permute(3, 0, 1, 4, 2, 5)  # (B, 2, 2, 8, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.fc(y.transpose(2, 3).reshape(x.shape).mean(1))


def test_attention_is_written_out_where_torch_refuses_it(image, tmp_path):
    model, path = Attends().eval(), tmp_path / "out.cam.onnx"
    fused = nn.functional.scaled_dot_product_attention
    exported = torch_exporters.export_graph(model, (image,), {}, True, False, 18)
    assert exported.way == "newer exporter, attention written out, open batch"
    assert nn.functional.scaled_dot_product_attention is fused
    report = export_torch(model, image, path, layers="conv")
    assert report.notes == ()
    check(model, image, path, ["conv"])
    check(model, torch.randn(5, 3, 8, 8), path, ["conv"], range(5))


def test_a_tensor_that_is_clamped_twice(image, tmp_path):
    class Clamped(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("low", torch.tensor(-0.5))
            self.register_buffer("high", torch.tensor(0.5))

        def forward(self, x):
            x = self.conv(x)
            return self.fc((x.clamp(self.low, self.high) * x.clamp(2 * self.low, self.high)).mean((2, 3)))

    model, path = Clamped().eval(), tmp_path / "out.cam.onnx"
    export_torch(model, image, path, layers="conv")
    check(model, image, path, ["conv"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.randn(6, 7)},
        {"attn_mask": torch.rand(2, 1, 6, 7) > 0.3},
        {"enable_gqa": True},
    ],
    ids=["plain", "causal", "scale", "added mask", "boolean mask", "grouped queries"],
)
def test_attention_written_out_is_torchs(options):
    heads = 2 if "enable_gqa" in options else 4
    q, k, v = torch.randn(2, 4, 6, 5), torch.randn(2, heads, 7, 5), torch.randn(2, heads, 7, 3)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, **options)
    with torch_exporters._attention_written_out():
        found = nn.functional.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("last", [False, True])
def test_maps_whose_class_axis_or_likelihood_the_record_does_not_say(last, tmp_path):
    """A sigmoid before a squeeze; as many classes, channels last, as the map has rows."""

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8 if last else 1, 1)

        def forward(self, x):
            y = self.b(torch.relu(self.a(x)))
            return y.permute(0, 2, 3, 1) if last else torch.sigmoid(y).squeeze(1)

    torch.manual_seed(0)
    size = (16, 32) if last else (32, 32)
    report = export_torch(
        Maps(), torch.randn(2, 3, *size), tmp_path / "out.cam.onnx", score={"task": "segmentation"}
    )
    assert report.gradient_error < 1e-4


def test_a_model_that_is_random(net, image, tmp_path):
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x + torch.randn_like(x))

    with pytest.raises(VerificationError, match=r"output 'output' differs .* Nothing was written.*random"):
        export_torch(Random(), image, tmp_path / "out.cam.onnx", layers="net.relu")
    assert left(tmp_path) == []
    report = export_torch(Random(), image, tmp_path / "out.cam.onnx", layers="net.relu", verify=False)
    assert (report.output_error, report.gradient_error) == (None, None)
    assert left(tmp_path) == ["out.cam.onnx"]


def test_a_wrong_gradient_is_not_written(net, image, tmp_path, monkeypatch):
    class Detached(nn.Module):
        """Autograd sees half of what the file's graph computes."""

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            y = self.net(x)
            return y if torch.compiler.is_exporting() else y / 2 + y.detach() / 2

    (tmp_path / "out.cam.onnx").write_bytes(b"precious")
    with pytest.raises(
        VerificationError, match=r"gradient at 'net\.relu' differs from torch\.autograd's by 1 of its"
    ):
        export_torch(Detached(), image, tmp_path / "out.cam.onnx", layers="net.relu")
    assert (tmp_path / "out.cam.onnx").read_bytes() == b"precious"
    assert left(tmp_path) == ["out.cam.onnx"]


def test_a_target_that_cannot_be_written(net, image, tmp_path):
    with pytest.raises(OutputError, match=r"Cannot write .*missing.*No such file or directory"):
        export_torch(net, image, tmp_path / "missing" / "out.cam.onnx", layers="relu")
    with pytest.raises(OutputError, match=r"Cannot write .* it is a folder"):
        export_torch(net, image, tmp_path, layers="relu")


# -- what the file holds ----------------------------------------------------------------------------


def test_the_file_names_modules_but_no_paths_of_this_machine(net, image, tmp_path):
    export_torch(net, image, tmp_path / "out.cam.onnx", layers="relu")
    keys = collections.Counter(
        p.key for n in onnx.load(tmp_path / "out.cam.onnx").graph.node for p in n.metadata_props
    )
    assert keys["pkg.torch.onnx.name_scopes"] > 3
    assert "pkg.torch.onnx.stack_trace" not in keys
    assert b"site-packages" not in (tmp_path / "out.cam.onnx").read_bytes()


def test_labels(net, image, tmp_path):
    path = tmp_path / "out.cam.onnx"
    with pytest.raises(ModelError, match=r"There are 2 labels for the 5 classes of 'output'"):
        export_torch(net, image, path, layers="relu", labels=["a", "b"])
    assert left(tmp_path) == []
    assert export_torch(net, image, path, layers="relu", labels=[*"abcde"]).record.labels == (*"abcde",)


def test_a_timm_model_brings_its_records(tmp_path):
    import_torchvision()
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", pretrained=False, pretrained_cfg_overlay={"crop_pct": 0.9})
    model.pretrained_cfg["label_names"] = [f"kind {k}" for k in range(1000)]
    record = export_torch(
        model, torch.randn(1, 3, 32, 32), tmp_path / "out.cam.onnx", dynamic_size=True
    ).record
    config = model.pretrained_cfg
    found = record.preprocess
    assert found.size == tuple(config["input_size"][1:])
    assert found.resize == int(found.size[0] / 0.9)
    assert (found.fit, found.channels, found.mean) == ("crop", "RGB", tuple(config["mean"]))
    assert record.labels[7] == "kind 7"


def test_attention_with_a_learnt_bias_is_compared_with_autograd(tmp_path):
    import_torchvision()
    model = pytest.importorskip("timm").create_model("test_vit_relpos", pretrained=False).eval()
    report = export_torch(model, torch.randn(2, 3, 160, 160), tmp_path / "out.cam.onnx")
    assert report.record.layers[0].name == "blocks.8.norm1"
    assert report.gradient_error < 1e-3
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_whose_head_was_changed_keeps_no_labels(tmp_path):
    import_torchvision()
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", pretrained=False, num_classes=4)
    model.pretrained_cfg["label_names"] = [f"kind {k}" for k in range(1000)]
    assert export_torch(model, torch.randn(1, 3, 32, 32), tmp_path / "out.cam.onnx").record.labels is None


@pytest.mark.parametrize("whole", [True, False])
def test_torchvision_weights(whole, image, tmp_path):
    weights = import_torchvision().models.ResNet18_Weights.IMAGENET1K_V1
    model = Net().eval()
    model.fc = nn.Linear(6, 1000)
    preprocess = weights if whole else weights.transforms()
    record = export_torch(
        model, image, tmp_path / "out.cam.onnx", layers="relu", preprocess=preprocess, dynamic_size=True
    ).record
    found = record.preprocess
    assert (found.size, found.resize, found.fit, found.antialias) == ((224, 224), 256, "crop", True)
    assert found.std == (0.229, 0.224, 0.225)
    assert (record.labels or [None])[0] == ("tench" if whole else None)


def test_a_hugging_face_processor(net, image, tmp_path):
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    processor = transformers.ViTImageProcessor(
        size={"height": 40, "width": 48}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=3
    )
    found = export_torch(
        net, image, tmp_path / "out.cam.onnx", layers="relu", preprocess=processor, dynamic_size=True
    ).record.preprocess
    assert (found.size, found.fit, found.interpolation) == ((40, 48), "stretch", "cubic")
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.scale == pytest.approx(1 / 255)


class Maps(nn.Module):
    """A segmentation, an embedding, or a detector's rows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh())
        self.head = nn.Conv2d(6, 7, 3, 1, 1)

    def forward(self, x):
        y = self.head(self.features(x))
        if self.kind == "segmentation":
            return nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear")
        return y.mean((2, 3)) if self.kind == "embedding" else y.flatten(2).transpose(1, 2).sigmoid()


@pytest.mark.parametrize("kind", ["segmentation", "embedding", "detection"])
def test_scores_of_other_tasks(kind, tmp_path):
    model, image = Maps(kind).eval(), torch.randn(2, 3, 12, 10)
    score = {"task": kind, **({"head": "yolov5"} if kind == "detection" else {})}
    report = export_torch(model, image, tmp_path / "out.cam.onnx", layers="features", score=score)
    assert report.record.score.task == kind
    if kind == "detection":
        assert report.gradient_error is None
        assert "not compared with torch.autograd" in str(report)
    else:
        assert report.gradient_error < 1e-5
