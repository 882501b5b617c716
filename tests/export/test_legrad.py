"""LeGrad from the blocks that are found in a graph, against torch-cam and torch.autograd."""

import numpy as np
import onnxruntime
import pytest
from torchvision_shim import import_torchvision

from onnxcam import methods, postprocess
from onnxcam.errors import ModelError
from onnxcam.export import export_torch

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
nn = torch.nn


class Block(nn.Module):
    """A block with torch's own attention, as torch-cam wants it."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Averaged(nn.Module):
    """A transformer whose head reads the mean of its patches; a register token follows its class token."""

    def __init__(self, layers=3, width=12, heads=3):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 2, width))
        self.positions = nn.Parameter(torch.randn(1, 2 + 24, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 2:].mean(1))


def of_torchvision():
    vit = import_torchvision().models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=7
    )
    nn.init.normal_(vit.heads.head.weight)  # it starts with zeros
    return vit.eval(), list(vit.encoder.layers), None, {"prefix_tokens": 1}


def averaged():
    model = Averaged().eval()

    def score(tokens):
        return model.head(model.norm(tokens.mean(1)))

    return model, list(model.blocks), score, {"prefix_tokens": 2, "grid_shape": (4, 6)}


SIZES = {"torchvision": (of_torchvision, (32, 32)), "averaged": (averaged, (16, 24))}


def run(path, x, classes):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x.numpy(), "cam.class_index": np.asarray(classes)}
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("name", SIZES)
def test_it_is_torch_cams(tmp_path, name):
    torchcam = pytest.importorskip("torchcam.methods")
    torch.manual_seed(0)
    make, size = SIZES[name]
    model, blocks, score, tokens = make()
    x, classes = torch.randn(3, 3, *size), [5, 0, 2]
    path = tmp_path / "m.cam.onnx"
    spec = {"method": "legrad", "scaled": False, "size": "layer"}
    report = export_torch(model, x[:1], path, fuse=["legrad", spec])
    assert report.map_error <= 1e-5
    with torchcam.LeGrad(model, blocks, score_projection=score, **tokens) as extractor:
        scores = model(x)
        expected = extractor(classes, scores, normalized=False)[0].detach().numpy()
    found = run(path, x, classes)
    raw = found["cam.heatmap.legrad_1"]
    assert raw.shape == expected.shape
    np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-4 * expected.max())
    whole = postprocess.heatmaps([expected], size)
    np.testing.assert_allclose(found["cam.heatmap.legrad"], whole, rtol=0, atol=1e-4)
    assert expected.std() > 0.05 * expected.mean()


def test_by_hand():
    gradients = [np.array([[[[[1.0, -2.0]], [[3.0, 4.0]]]]]), np.array([[[[[0.0, 2.0]], [[-1.0, 2.0]]]]])]
    made = methods.get("legrad").function(gradients)
    np.testing.assert_allclose(made, [[[(2 + 0) / 2, (2 + 2) / 2]]])


class Cut(nn.Module):
    """A convolutional network: no block at all."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        return self.net(x)


class Bypassed(Averaged):
    """Its head reads the patches, too."""

    def forward(self, x):
        return super().forward(x) + self.patches(x).mean((2, 3))[:, :7]


class Halved(Averaged):
    """Between its blocks every second token is dropped."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks[0](torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions)
        return self.head(self.norm(self.blocks[1](x[:, ::2])).mean(1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Cut, "0 attentions over all tokens were found, and 0 of their blocks: the method needs a vision"),
        (Bypassed, "What follows the tokens of the last block, .* reads more than these"),
        (
            Halved,
            "2 attentions over all tokens were found, and 2 of their blocks, which keep different tokens",
        ),
    ],
    ids=["convolutions", "bypass", "halved"],
)
def test_what_is_no_such_transformer_is_refused(tmp_path, model, message):
    made = model().eval()
    layers = "net.1" if model is Cut else "patches"
    with pytest.raises(ModelError, match=message):
        export_torch(made, torch.randn(1, 3, 16, 24), tmp_path / "m.cam.onnx", layers, fuse="legrad")


def test_the_score_of_a_block_is_the_models(tmp_path):
    model, x, path = Averaged().eval(), torch.randn(1, 3, 16, 24), tmp_path / "m.cam.onnx"
    with pytest.raises(ModelError, match="The score of a block is one output's logit or probability"):
        export_torch(model, x, path, "patches", {"rest": True}, fuse="legrad")
