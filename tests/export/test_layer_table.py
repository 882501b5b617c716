"""Which layer is taken unasked, and what layers may be called."""

import contextlib
import inspect
import io
import logging
import warnings
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from torchvision_shim import import_torchvision

from onnxcam import Explainer
from onnxcam.contract import Layout
from onnxcam.errors import LayerNotOnPath, UnknownLayer
from onnxcam.export import list_layers, rewrite_onnx

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"
NCHW, NHWC = Layout("NCHW"), Layout("NHWC")


def tokens(prefix, side):
    return Layout("tokens", prefix, (side, side))


# model, size, options, layer, operator, shape after the batch, layout
TORCHVISION = [
    ("resnet18", 64, "layer4", "Relu", (512, 2, 2)),
    ("vgg16", 64, "features", "MaxPool", (512, 2, 2)),
    ("vgg16", 224, "features", "MaxPool", (512, 7, 7)),
    ("mobilenet_v3_large", 64, "features", "HardSwish", (960, 2, 2)),
    # The last ReLU is no module: a function of forward, behind features.
    ("densenet121", 64, "node_relu_120", "Relu", (1024, 2, 2)),
    ("efficientnet_b0", 64, "features", "Mul", (1280, 2, 2)),
    ("convnext_tiny", 64, "features", "Add", (768, 2, 2)),
    # The class maps themselves, before they are averaged.
    ("squeezenet1_1", 64, "classifier.2", "Relu", (1000, 3, 3)),
    ("shufflenet_v2_x1_0", 64, "conv5", "Relu", (1024, 2, 2)),
    ("googlenet", 64, "inception5b", "Concat", (1024, 2, 2)),
]
SHALLOW = {"depth": 3, "num_classes": 10}
TIMM = [
    ("vit_tiny_patch16_224", 224, {}, "blocks.11.norm1", (197, 192), tokens(1, 14)),
    (
        "vit_tiny_patch16_224",
        64,
        {"img_size": 64, "global_pool": "avg", **SHALLOW},
        "blocks.2.norm1",
        (17, 192),
        tokens(1, 4),
    ),
    (
        "deit_tiny_distilled_patch16_224",
        64,
        {"img_size": 64, **SHALLOW},
        "blocks.2.norm1",
        (18, 192),
        tokens(2, 4),
    ),
    (
        "vit_small_patch14_reg4_dinov2",
        98,
        {"img_size": 98, **SHALLOW},
        "blocks.2.norm1",
        (54, 384),
        tokens(5, 7),
    ),
    ("mixer_s32_224", 224, {}, "blocks.7.norm1", (49, 512), tokens(0, 7)),
    ("swin_tiny_patch4_window7_224", 224, {"depths": (1, 1, 1, 1)}, "norm", (7, 7, 768), NHWC),
]


def exported(model, size):
    """As torch alone exports it."""
    torch = pytest.importorskip("torch")
    x = torch.zeros(2, 3, size, size)
    (parameter, *_) = inspect.signature(model.forward).parameters
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                model.eval(),
                (x,),
                dynamo=True,
                opset_version=18,
                dynamic_shapes={parameter: {0: torch.export.Dim("batch")}},
                verbose=False,
            ).model
    finally:
        logging.disable(previous)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size", "layer", "op_type", "shape"), TORCHVISION)
def test_torchvision(name, size, layer, op_type, shape):
    options = {"init_weights": False} if name in ("googlenet", "vgg16") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = import_torchvision().models.get_model(name, weights=None, **options)
    best = list_layers(exported(model, size))[0]
    assert (best.name, best.op_type, best.shape, best.layout) == (layer, op_type, ("batch", *shape), NCHW)
    assert best.why.startswith("the last spatial tensor before ")


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size", "options", "layer", "shape", "layout"), TIMM)
def test_timm(name, size, options, layer, shape, layout):
    import_torchvision()
    timm = pytest.importorskip("timm")
    best = list_layers(exported(timm.create_model(name, pretrained=False, **options), size))[0]
    assert (best.name, best.shape[1:], best.layout) == (layer, shape, layout)
    assert best.op_type == "LayerNormalization"
    assert best.grid == (layout.grid or shape[:2])


@pytest.mark.torch
def test_a_grid_survives_linear_maps_of_rank_2_and_attention_without_a_residual():
    """LeViT: its linear maps take all tokens as rows, and nothing goes around its downsampling attention."""
    import_torchvision()
    timm = pytest.importorskip("timm")
    listed = list_layers(exported(timm.create_model("levit_128s", pretrained=False), 224))
    assert (listed[0].shape[1:], listed[0].layout) == ((16, 384), tokens(0, 4))
    assert {c.grid for c in listed if c.layout.kind == "tokens"} == {(14, 14), (7, 7), (4, 4)}


@pytest.mark.data
def test_tokens_of_several_grids_have_none():
    if not DATA.is_dir():
        pytest.skip(f"no real models in {DATA}")
    listed = list_layers(DATA / "yolox_nano.onnx", {"head": "yolox"})
    assert "output" not in {c.tensor for c in listed}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "layer", "op_type", "shape"),
    [
        ("mobilenet_v2", "Relu_706", "Relu", ("batch", 1280, 8, 8)),
        ("mobilenet_v2_qdq", "Relu_706", "DequantizeLinear", ("batch", 1280, 8, 8)),
        ("squeezenet1.1", "conv10_2", "Relu", (1, 1000, 13, 13)),
        ("squeezenet1.1_fp16", "conv10_2", "Relu", (1, 1000, 13, 13)),
        ("keras_mobilenet_v1_025_nhwc", "conv_pw_13_relu", "Clip", ("N", 256, 7, 7)),
    ],
)
def test_real_files(name, layer, op_type, shape):
    if not DATA.is_dir():
        pytest.skip(f"no real models in {DATA}")
    best = list_layers(DATA / f"{name}.onnx")[0]
    assert (best.name, best.op_type, best.shape, best.layout) == (layer, op_type, shape, NCHW)
    assert best.why == "the last spatial tensor before global pooling"


# -- the rule, piece by piece -----------------------------------------------------------------------


def best_of(body, **options):
    return list_layers(nets.cnn(body=f"{body} f = Flatten(p) y = Gemm<transB=1>(f, v, b)", **options))[0]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("p = GlobalAveragePool(r)", "the last spatial tensor before global pooling"),
        ("i = Identity(r) p = GlobalAveragePool(i)", "global pooling (Identity skipped: no new features)"),
        (
            "a = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r) p = GlobalAveragePool(a)",
            "global pooling (AveragePool skipped: no new features)",
        ),
        (
            "a = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r) p = GlobalAveragePool(a)",
            "global pooling (MaxPool skipped: no new features)",
        ),
    ],
)
def test_what_makes_no_features_is_skipped(body, why):
    best = best_of(body)
    assert best.tensor == "r"
    assert best.why.endswith(why)


def test_a_pool_that_shrinks_is_a_layer():
    assert best_of("a = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) p = GlobalAveragePool(a)").tensor == "a"


def test_the_others_follow_from_the_score_to_the_input():
    listed = list_layers(nets.cnn())
    assert [c.tensor for c in listed] == ["r", "c"]
    assert listed[1].why == "the output of Conv"


# -- names ------------------------------------------------------------------------------------------


def named(*names):
    """The small net with names on its Conv and its Relu."""
    model = nets.cnn()
    for node, name in zip(model.graph.node, names, strict=False):
        node.name = name
    return model


def resolved(model, name, tmp_path):
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    report = rewrite_onnx(source, tmp_path / "out.cam.onnx", layers=name)
    (layer,) = report.record.layers
    assert layer.name == name
    assert Explainer(tmp_path / "out.cam.onnx", "cpu").layers == (name,)
    return layer.tensor


@pytest.mark.parametrize(
    ("names", "layer", "tensor"),
    [
        (("conv", "relu"), "conv", "c"),  # nodes
        (("conv", "relu"), "r", "r"),  # tensors
        # torch's older exporter
        (("/layer4/layer4.1/conv1/Conv", "/layer4/layer4.1/relu_1/Relu"), "layer4", "r"),
        (("/layer4/layer4.1/conv1/Conv", "/layer4/layer4.1/relu_1/Relu"), "layer4.1", "r"),
        (("/layer4/layer4.1/conv1/Conv", "/layer4/layer4.1/relu_1/Relu"), "layer4.1.conv1", "c"),
        (
            ("/layer4/layer4.1/conv1/Conv", "/layer4/layer4.1/relu_1/Relu"),
            "/layer4/layer4.1/relu_1/Relu",
            "r",
        ),
        (("/features/features.0/Conv", "/features/features.1/Relu"), "features.0", "c"),
        # tf2onnx
        (("model/conv5_block3/Conv2D", "model/conv5_block3_out/Relu"), "conv5_block3_out", "r"),
        (("model/conv5_block3/Conv2D", "model/conv5_block3_out/Relu"), "model/conv5_block3_out", "r"),
        (("model/conv5_block3/Conv2D", "model/conv5_block3_out/Relu"), "model/conv5_block3/Conv2D", "c"),
    ],
)
def test_names(names, layer, tensor, tmp_path):
    assert resolved(named(*names), layer, tmp_path) == tensor


def test_a_module_path_goes_before_a_node_of_that_name(tmp_path):
    model = named("r2", "relu")
    for node, scopes in zip(model.graph.node, ("['', 'stem', 'c']", "['', 'stem', 'r']"), strict=False):
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    model.graph.node[0].name = "stem"
    assert resolved(model, "stem", tmp_path) == "r"
    assert list_layers(model)[0].name == "stem"


def test_a_module_returns_no_weight(tmp_path):
    """A quantiser puts a node before each weight, which it names as Keras names the weight."""
    model = nets.model(
        f"k = DequantizeLinear(q, scale) c = Conv<pads=[1,1,1,1]>(x, k) r = Relu(c) {nets.HEAD}",
        initializers={
            **nets.weights(v=(5, 4), b=(5,)),
            "q": np.arange(-54, 54, dtype=np.int8).reshape(4, 3, 3, 3),
            "scale": np.float32(0.01),
        },
    )
    model.graph.node[0].name, model.graph.node[1].name = "conv/kernel_DequantizeLinear", "conv"
    assert [layer.name for layer in list_layers(model)] == ["r", "conv"]
    assert resolved(model, "conv", tmp_path) == "c"


def upsampling(body):
    twice = {"twice": np.array([1, 1, 2, 2], np.float32)}
    return nets.model(
        f"c = Conv<pads=[1,1,1,1]>(x, w) {body} "
        "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        initializers={**nets.weights(w=(4, 3, 3, 3), v=(5, 4), b=(5,)), **twice},
        opset=9,
        ir_version=4,
    )


@pytest.mark.parametrize(
    ("body", "offered"),
    [
        ("u = Upsample(c, twice) r = Relu(u)", ["r", "u", "c"]),
        # Of two in a row neither is found again, and nobody can ask for them by their new names.
        ("s = Upsample(c, twice) u = Upsample(s, twice) r = Relu(u)", ["r", "c"]),
    ],
    ids=["one", "two"],
)
def test_what_a_conversion_of_the_opset_made_is_offered_by_its_old_name_or_not_at_all(
    tmp_path, body, offered
):
    """Upsample becomes a Resize, whose result the converter gives another name."""
    model = upsampling(body)
    assert [layer.name for layer in list_layers(model)] == offered
    for name in offered:
        assert resolved(model, name, tmp_path) == name


def test_a_layer_that_a_conversion_of_the_opset_replaced_is_refused(tmp_path):
    model = upsampling("s = Upsample(c, twice) u = Upsample(s, twice) r = Relu(u)")
    with pytest.raises(
        UnknownLayer, match=r"^The layer 's' is gone: .*replaced.* `onnxcam layers MODEL` lists"
    ):
        resolved(model, "s", tmp_path)


def test_layers_inside_of_local_functions_are_offered_by_the_names_that_they_resolve_to(tmp_path):
    model = nets.cnn(
        body="q = local.twice(r) p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        extra_opsets=', "local": 1',
        functions='<domain: "local", opset_import: ["": 18]> '
        "twice (a) => (d) { h = Sigmoid(a) d = Add(a, h) }",
    )
    offered = list_layers(model)
    assert len(offered) == 4
    for layer in offered:
        assert resolved(model, layer.name, tmp_path) == layer.tensor


def test_damaged_scopes_are_no_error():
    model = named("conv", "relu")
    model.graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', ")
    assert list_layers(model)[0].name == "relu"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer4.1.relu", r"no layer 'layer4\.1\.relu'\. Nearest: 'layer4\.1\.relu_1'"),
        ("zzz", r"no layer 'zzz'\. `onnxcam layers MODEL` lists them all"),
        ("w", r"no layer 'w'"),
    ],
)
def test_unknown_names(layer, message, tmp_path):
    model = named("/layer4/layer4.1/conv1/Conv", "/layer4/layer4.1/relu_1/Relu")
    with pytest.raises(UnknownLayer, match=message):
        resolved(model, layer, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_constant_is_refused(tmp_path):
    body = f"k = Constant<value_floats=[1.0, 2.0]>() {nets.HEAD}"
    with pytest.raises(
        UnknownLayer, match=r"The layer 'k' is the constant 'k': it does not depend on the input"
    ):
        resolved(nets.cnn(body=body), "k", tmp_path)


def test_a_layer_beside_the_path_is_refused(tmp_path):
    model = nets.cnn("z = Sigmoid(r)", "float[N,5] y, float[N,4,8,8] z")
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    with pytest.raises(LayerNotOnPath, match=r"The score 'y' does not depend on the layer 'z'"):
        rewrite_onnx(source, tmp_path / "out.cam.onnx", layers="z", score="y")


def test_several_layers_in_one_file(tmp_path):
    source = tmp_path / "model.onnx"
    onnx.save(named("conv", "relu"), source)
    rewrite_onnx(source, tmp_path / "out.cam.onnx", layers=["relu", "conv"])
    explainer = Explainer(tmp_path / "out.cam.onnx", "cpu")
    assert explainer.layers == ("relu", "conv")
    outputs = [o.name for o in onnx.load(tmp_path / "out.cam.onnx").graph.output]
    assert outputs == [
        "y",
        "cam.activations.relu",
        "cam.gradients.relu",
        "cam.activations.conv",
        "cam.gradients.conv",
    ]
