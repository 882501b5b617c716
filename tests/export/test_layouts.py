"""Layers of every shape: signals and volumes, windows, heads and tokens among others, all of them upright.

Where a map must lie is known from the input: one place of it is changed, and the layer, put together by its
recorded layout, changes there.
"""

import contextlib
import io
import logging
import warnings

import nets
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from torchvision_shim import import_torchvision

from onnxcam import Explainer
from onnxcam.contract import Factor, Layout
from onnxcam.errors import InputError, UnknownLayer
from onnxcam.export import list_layers, rewrite_onnx
from onnxcam.export.verify import run
from onnxcam.grids import channels_first

F = Factor


def model(body, inputs, **weights):
    return nets.model(
        f"{body} y = MatMul(f, v)", inputs, "float[N,5] y", {"v": nets.weights(v=(4, 5))["v"], **weights}
    )


def integers(**lists):
    return {name: np.array(values) for name, values in lists.items()}


def known(proto):
    return {c.tensor: c for c in list_layers(proto)}


def changed_at(proto, tensor, layout, image, place, patch=1):
    """Where a tensor changes when one place of the input does: the index of the largest change."""
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    again = image.copy()
    again[(slice(None), slice(None), *(slice(p * patch, (p + 1) * patch) for p in place))] += 3.0
    a, b = (channels_first(run(proto.SerializeToString(), {"x": x})[tensor], layout) for x in (image, again))
    difference = np.abs(a - b).sum(axis=1)[-1]
    return np.unravel_index(difference.argmax(), difference.shape)


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# -- signals and volumes ----------------------------------------------------------------------------

CONVS = {
    "signal": (1, (24,)),
    "image": (2, (8, 12)),
    "volume": (3, (6, 8, 4)),
}


@pytest.mark.parametrize("kind", CONVS)
def test_grids_of_any_rank_are_explained(kind, tmp_path):
    """Convolution, ReLU, global average, linear: Grad-CAM is Σ_k v_kc A^k over the number of cells."""
    rank, grid = CONVS[kind]
    w = nets.weights(w=(4, 2, *[3] * rank))["w"]
    sizes = ",".join("n" if k == 0 else str(n) for k, n in enumerate(grid))
    proto = model(
        f"c = Conv<pads=[{','.join('1' * 2 * rank)}], strides=[{','.join('2' * rank)}]>(x, w) r = Relu(c) "
        "p = GlobalAveragePool(r) f = Flatten(p)",
        f"float[N,2,{sizes}] x",
        w=w,
    )
    source = tmp_path / "model.onnx"
    onnx.save(proto, source)
    report = rewrite_onnx(source, tmp_path / "out.cam.onnx")
    (layer,) = report.record.layers
    assert layer.layout == Layout({1: "NCL", 2: "NCHW", 3: "NCDHW"}[rank])
    assert (layer.tensor, layer.head) == ("r", "gap-linear")
    x = random(3, 2, *grid)
    explainer = Explainer(tmp_path / "out.cam.onnx", "cpu", max_batch=2)
    result = explainer.explain_tensor(x, target=[1, 2, None])
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("r"))
    values = run(proto.SerializeToString(), {"x": x})
    classes = [1, 2, values["y"][2].argmax()]
    assert result.class_ids.tolist() == classes
    rows = onnx.numpy_helper.to_array(next(i for i in proto.graph.initializer if i.name == "v")).T[classes]
    small = tuple(n // 2 for n in grid)
    wanted = np.einsum("nk...,nk->n...", values["r"], rows) / np.prod(small)
    assert result.maps.shape == (3, *small)
    np.testing.assert_allclose(result.maps, wanted, atol=1e-6)
    np.testing.assert_allclose(
        explainer.explain_tensor(x, "cam", [1, 2, None]).maps, wanted * np.prod(small), atol=1e-5
    )
    assert result.heatmaps.shape == (3, *grid)
    assert result.heatmaps.min() == 0
    np.testing.assert_allclose(result.heatmaps.reshape(3, -1).max(axis=1), 1, atol=1e-6)


def test_a_heatmap_of_a_volume_is_linear_in_each_axis():
    from onnxcam.postprocess import resize

    ramp = np.arange(3, dtype=np.float32)
    line = np.interp((np.arange(12) + 0.5) / 4 - 0.5, ramp, ramp)
    for axis in range(3):
        shape, size = [1, 1, 1], [2, 5, 7]
        shape[axis], size[axis] = 3, 12
        found = resize(ramp.reshape(1, *shape), size)[0]
        wanted = np.broadcast_to(line.reshape([-1 if k == axis else 1 for k in range(3)]), size)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(resize(ramp[None], (12,))[0], line, atol=1e-6)


@pytest.fixture
def signal_file(tmp_path):
    source = tmp_path / "signal.onnx"
    onnx.save(
        model(
            "c = Conv<pads=[1,1]>(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)",
            "float[N,2,24] x",
            w=nets.weights(w=(4, 2, 3))["w"],
        ),
        source,
    )
    return source


def test_signals_are_no_photos(signal_file, tmp_path):
    target = tmp_path / "out.cam.onnx"
    with pytest.raises(InputError, match=r"input 'x' has shape \['N', 2, 24\], which is no photo's: leave"):
        rewrite_onnx(signal_file, target, preprocess="imagenet")
    assert not target.exists()
    rewrite_onnx(signal_file, target)
    explainer = Explainer(target, "cpu")
    with pytest.raises(InputError, match=r"which is no photo: hand arrays to explain_tensor"):
        explainer.explain([np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(InputError, match=r"which is no photo: leave preprocess out"):
        Explainer(target, "cpu", preprocess="imagenet")
    result = explainer.explain_tensor(random(1, 2, 24))
    with pytest.raises(
        InputError, match=r"Overlays are of images, and these maps are of signals: plot `heat"
    ):
        result.overlay()


def test_layers_of_other_ranks_have_no_common_heatmap(tmp_path):
    """Frames whose time is averaged away half-way."""
    proto = model(
        "c = Conv<pads=[1,1,1,1,1,1]>(x, w) r = Relu(c) z = ReduceMean<keepdims=0>(r, two) d = Conv(z, u) "
        "p = GlobalAveragePool(d) f = Flatten(p)",
        "float[N,2,4,6,8] x",
        **nets.weights(w=(4, 2, 3, 3, 3), u=(4, 4, 1, 1)),
        **integers(two=[2]),
    )
    source = tmp_path / "model.onnx"
    onnx.save(proto, source)
    rewrite_onnx(source, tmp_path / "out.cam.onnx", layers=["d", "r"])
    explainer = Explainer(tmp_path / "out.cam.onnx", "cpu")
    x = random(1, 2, 4, 6, 8)
    assert explainer.explain_tensor(x, layers="d").heatmaps.shape == (1, 6, 8)
    assert explainer.explain_tensor(x, layers="r").heatmaps.shape == (1, 4, 6, 8)
    with pytest.raises(
        InputError, match=r"grids \(height, width\) and \(depth, height, width\) make no common"
    ):
        explainer.explain_tensor(x)
    with pytest.raises(InputError, match=r"maps are of volumes: draw slices of `heatmaps` instead"):
        explainer.explain_tensor(x, layers="r").overlay()


def test_frames_of_a_video(tmp_path):
    """(N, T, 3, H, W): convolutions see one frame after another, and the head averages their answers."""
    proto = model(
        "a = Reshape(x, frames) c = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w) r = Relu(c) "
        "g = GlobalAveragePool(r) b = Reshape(g, clips) f = ReduceMean<keepdims=0>(b, one)",
        "float[N,5,3,8,12] x",
        **nets.weights(w=(4, 3, 3, 3)),
        **integers(frames=[-1, 3, 8, 12], clips=[-1, 5, 4], one=[1]),
    )
    listed = list_layers(proto)
    assert (listed[0].tensor, listed[0].grid) == ("r", (5, 4, 6))
    assert known(proto)["b"].grid == (5,)  # the frames alone: may be named, is not taken unasked
    source = tmp_path / "model.onnx"
    onnx.save(proto, source)
    rewrite_onnx(source, tmp_path / "out.cam.onnx")
    explainer = Explainer(tmp_path / "out.cam.onnx", "cpu")
    x = random(2, 5, 3, 8, 12)
    result = explainer.explain_tensor(x, "hirescam")
    assert (result.maps.shape, result.heatmaps.shape) == ((2, 5, 4, 6), (2, 5, 8, 12))
    silent = x.copy()
    silent[:, 3] = 0  # without a bias, a frame of zeros has no activations
    assert not explainer.explain_tensor(silent, "hirescam").maps[:, 3].any()
    assert explainer.explain_tensor(silent, "hirescam").maps[:, 2].any()


def test_channels_of_signals_may_come_last(tmp_path):
    proto = model(
        "n = LayerNormalization(x, g) m = MatMul(n, w) r = Relu(m) f = ReduceMean<keepdims=0>(r, one)",
        "float[N,20,6] x",
        **nets.weights(w=(6, 4), g=(6,)),
        **integers(one=[1]),
    )
    assert {c.layout.kind for c in known(proto).values()} == {"NLC"}
    source = tmp_path / "model.onnx"
    onnx.save(proto, source)
    rewrite_onnx(source, tmp_path / "out.cam.onnx", layers="r")
    result = Explainer(tmp_path / "out.cam.onnx", "cpu").explain_tensor(random(2, 20, 6))
    assert (result.maps.shape, result.heatmaps.shape) == ((2, 20), (2, 20))


# -- what becomes of a grid -------------------------------------------------------------------------

STEM = "c = Conv<kernel_shape=[2,2], strides=[2,2]>(x, w) h = Transpose<perm=[0,2,3,1]>(c) "
END = " t = Reshape(k, flat) m = MatMul(t, u) f = ReduceMean<keepdims=0>(m, one)"
WEIGHTS = nets.weights(w=(4, 3, 2, 2), u=(4, 4), v2=(4, 4))
LISTS = {"flat": [0, -1, 4], "one": [1]}
N_, C = F("N", None), F("C", 4)


def after(body, **lists):
    """Patches of two, (N, 8, 12, 4), and what is made of them, to ``k``."""
    return model(STEM + body + END, "float[N,3,16,24] x", **WEIGHTS, **integers(**LISTS, **lists))


CUTS = {
    "windows": (
        "s = Reshape(h, cut) o = Transpose<perm=[0,1,3,2,4,5]>(s) q = Reshape(o, windows) k = MatMul(q, v2)",
        {"cut": [0, 2, 4, 3, 4, 4], "windows": [-1, 16, 4]},
        Layout("factored", axes=((N_, F("y", 2, 4), F("x", 3, 4)), (F("y", 4), F("x", 4)), (C,))),
    ),
    "strided windows": (  # MaxViT's grid attention
        "s = Reshape(h, cut) o = Transpose<perm=[0,2,4,1,3,5]>(s) q = Reshape(o, windows) k = MatMul(q, v2)",
        {"cut": [0, 4, 2, 4, 3, 4], "windows": [-1, 16, 4]},
        Layout("factored", axes=((N_, F("y", 2), F("x", 3)), (F("y", 4, 2), F("x", 4, 3)), (C,))),
    ),
    "heads": (
        "s = Reshape(h, cut) o = Transpose<perm=[0,2,1,3]>(s) z = Relu(o) q = Transpose<perm=[0,2,1,3]>(z) "
        "k = Reshape(q, flat)",
        {"cut": [0, 96, 2, 2]},
        None,
    ),
    "tokens on both sides": (
        "s = Reshape(h, flat) o = Concat<axis=1>(cls, s, reg) z = Add(o, o) k = Slice(z, one, end, one)",
        {"end": [-2]},
        None,
    ),
    "merged patches": (  # Swin's: every second row and column becomes a channel
        "s = Reshape(h, cut) o = Transpose<perm=[0,1,3,4,2,5]>(s) q = Reshape(o, joined) k = MatMul(q, big)",
        {"cut": [0, 4, 2, 6, 2, 4], "joined": [0, 4, 6, 16]},
        Layout("NHWC"),
    ),
}


def test_windows_and_strided_windows_are_upright():
    for name in ("windows", "strided windows"):
        body, lists, layout = CUTS[name]
        proto = after(body, **lists)
        assert known(proto)["k"].layout == layout
        for place in ((1, 2), (6, 3), (4, 11)):
            assert changed_at(proto, "k", layout, random(2, 3, 16, 24), place, 2) == place


def test_heads_are_channels():
    body, lists, _ = CUTS["heads"]
    proto = after(body, **lists)
    layout = known(proto)["z"].layout
    assert layout == Layout("factored", axes=((N_,), (F("C", 2),), (F("y", 8, 1), F("x", 12)), (F("C", 2),)))
    assert known(proto)["m"].layout == Layout("tokens", 0, (8, 12))
    assert changed_at(proto, "z", layout, random(2, 3, 16, 24), (5, 9), 2) == (5, 9)


def test_tokens_before_and_behind_the_grid():
    body, lists, _ = CUTS["tokens on both sides"]
    weights = {"cls": random(2, 1, 4), "reg": random(2, 2, 4)}
    proto = model(STEM + body + END, "float[2,3,16,24] x", **WEIGHTS, **integers(**LISTS, **lists), **weights)
    layout = known(proto)["z"].layout
    assert layout == Layout("tokens", 1, (8, 12), 2)
    assert known(proto)["k"].layout == Layout("tokens", 0, (8, 12))
    assert changed_at(proto, "z", layout, random(2, 3, 16, 24), (7, 11), 2) == (7, 11)


def test_rows_that_become_channels_leave_a_coarser_grid():
    body, lists, layout = CUTS["merged patches"]
    proto = model(
        STEM + body + END,
        "float[N,3,16,24] x",
        **WEIGHTS,
        **nets.weights(big=(16, 4)),
        **integers(**LISTS, **lists),
    )
    found = known(proto)["k"]
    assert (found.layout, found.grid) == (layout, (4, 6))
    assert changed_at(proto, "k", layout, random(2, 3, 16, 24), (3, 4), 4) == (3, 4)


def test_a_rolled_grid_is_nobodys_until_it_is_rolled_back(tmp_path):
    roll = (
        "a{0} = Slice({1}, {2}, far, one) b{0} = Slice({1}, none, {2}, one) k{0} = Concat<axis=1>(a{0}, b{0})"
    )
    body = (
        roll.format("", "h", "three") + " z = Relu(k) " + roll.format("2", "z", "five") + " r = Add(h, k2) "
    )
    proto = after(
        body.replace("k = ", "k1 = ").replace("Relu(k)", "Relu(k1)") + "k = Relu(r)",
        three=[3],
        five=[5],
        far=[2**62],
        none=[0],
    )
    listed = known(proto)
    assert "z" not in listed
    assert listed["r"].layout == Layout("NHWC")
    source = tmp_path / "model.onnx"
    onnx.save(proto, source)
    with pytest.raises(UnknownLayer, match=r"'z' has shape .* its places are not, or no longer, the image's"):
        rewrite_onnx(source, tmp_path / "out.cam.onnx", layers="z")


def test_a_mirrored_grid_is_not_offered():
    proto = after("k = Slice(h, minus, least, two, minus)", minus=[-1], least=[-(2**62)], two=[2])
    assert "k" not in known(proto)


@pytest.mark.parametrize("turned", [False, True])
def test_tiles_that_a_table_of_indices_cuts(turned):
    """torch's unfold, as it is exported."""
    tables = {"ys": np.arange(8).reshape(2, 4), "xs": np.arange(12).reshape(3, 4)}
    if turned:
        tables = {name: table.T for name, table in tables.items()}
    order = "[0,3,5,2,4,1]" if turned else "[0,2,4,3,5,1]"
    proto = model(
        "c = Conv<kernel_shape=[2,2], strides=[2,2]>(x, w) a = Gather<axis=2>(c, ys) "
        f"b = Gather<axis=4>(a, xs) o = Transpose<perm={order}>(b) q = Reshape(o, windows) k = MatMul(q, v2)"
        + END,
        "float[N,3,16,24] x",
        **WEIGHTS,
        **integers(**LISTS, windows=[-1, 16, 4]),
        **tables,
    )
    layout = known(proto)["k"].layout
    assert layout == CUTS["windows"][2]
    for place in ((1, 2), (6, 3), (4, 11)):
        assert changed_at(proto, "k", layout, random(2, 3, 16, 24), place, 2) == place


def test_queries_are_no_grid():
    """DETR's decoder: learned queries, repeated for each image, look at the image."""
    body = (
        "n = Shape<start=0, end=1>(x) s = Concat<axis=0>(n, more) e = Expand(queries, s) "
        "p = LayerNormalization(e, g) kk = Transpose<perm=[0,2,1]>(t) a = MatMul(p, kk) b = Softmax(a) "
        "m = MatMul(b, t) r = Add(e, m) l = LayerNormalization(r, g) f = ReduceMean<keepdims=0>(l, one)"
    )
    proto = model(
        STEM + " t = Reshape(h, flat) " + body,
        "float[N,3,16,16] x",
        **WEIGHTS,
        **nets.weights(queries=(1, 4, 4), g=(4,)),
        **integers(**LISTS, more=[4, 4]),
    )
    listed = known(proto)
    assert {"c", "t"} < set(listed)
    assert not {"r", "l", "e", "p"} & set(listed)


STATIC = "float[2,3,16,16] x"
DYNAMIC = "float[N,3,H,W] x"
NOT_OFFERED = {
    # what is moved, the graph's input, further lists
    "images in another order": ("k = Gather<axis=0>(c, turned)", STATIC, {"turned": [1, 0]}),
    "every image twice": ("k = Tile(c, twice)", "float[N,3,16,16] x", {"twice": [2, 1, 1, 1]}),
    "the second half, every other row": (
        "k = Slice(c, from, to, rows, two)",
        STATIC,
        {"from": [4], "to": [8], "rows": [2], "two": [2]},
    ),
    "the first rows of an open height": ("k = Gather<axis=2>(c, first)", DYNAMIC, {"first": [0, 1]}),
    "itself, turned": ("o = Transpose<perm=[0,1,3,2]>(c) k = Add(c, o)", STATIC, {}),
    "beside itself, turned": ("o = Transpose<perm=[0,1,3,2]>(c) k = Concat<axis=1>(c, o)", STATIC, {}),
    "columns averaged away": ("k = ReduceMean<keepdims=0>(c, last)", STATIC, {"last": [3]}),
    "a row of nothing": (
        "e = Slice(c, zero, zero, rows) k = Reshape(e, flat)",
        STATIC,
        {"zero": [0], "rows": [2], "flat": [2, 4, -1]},
    ),
}


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_is_nobodys_is_not_offered(name):
    body, inputs, lists = NOT_OFFERED[name]
    proto = nets.model(
        f"c = Conv<kernel_shape=[2,2], strides=[2,2]>(x, w) {body} y = ReduceSum<keepdims=0>(k, rest)",
        inputs,
        "float[M] y",
        {
            **nets.weights(w=(4, 3, 2, 2)),
            **integers(**{"rest": [1, 2] if "keepdims" in body or "flat" in lists else [1, 2, 3], **lists}),
        },
    )
    assert "k" not in {c.tensor for c in list_layers(proto)}


def test_steps_of_time_are_channels():
    """Spiking networks repeat an image along a new first axis, and join that with the batch."""
    proto = nets.model(
        "c = Conv<kernel_shape=[2,2], strides=[2,2]>(x, w) s = Unsqueeze(c, zero) q = Tile(s, four) "
        "p = Reshape(q, again) k = Relu(p) y = ReduceSum<keepdims=0>(k, rest)",
        "float[N,3,16,16] x",
        "float[M] y",
        {
            **nets.weights(w=(4, 3, 2, 2)),
            **integers(zero=[0], four=[4, 1, 1, 1, 1], again=[-1, 4, 8, 8], rest=[1, 2, 3]),
        },
    )
    layout = known(proto)["k"].layout
    assert layout.axes[0] == (F("C", 4), N_)
    for place in ((1, 2), (6, 3)):
        assert changed_at(proto, "k", layout, random(2, 3, 16, 16), place, 2) == place


def test_joined_grids_have_none():
    proto = after(
        "s = Reshape(h, flat) a = Slice(h, one, far, one) b = Reshape(a, flat) k = Concat<axis=1>(s, b)",
        far=[99],
    )
    assert "k" not in known(proto)


def test_windows_are_explained_in_pieces_and_with_a_padded_batch(tmp_path):
    """Their first axis counts windows, not images: pieces of a batch must not be cut there."""
    body, lists, _ = CUTS["windows"]
    results = []
    for batch in ("N", "2"):
        proto = model(
            STEM + body + " r = Relu(k) " + END.replace("(k,", "(r,").replace("flat", "whole"),
            f"float[{batch},3,16,24] x",
            **WEIGHTS,
            **integers(**LISTS, **lists, whole=[-1, 96, 4]),
        )
        source, target = tmp_path / f"{batch}.onnx", tmp_path / f"{batch}.cam.onnx"
        onnx.save(proto, source)
        rewrite_onnx(source, target, layers="r")
        explainer = Explainer(target, "cpu", max_batch=2)
        results.append(explainer.explain_tensor(random(3, 3, 16, 24), "hirescam", target=[[0, 1], 2, None]))
    assert results[0].maps.shape == (4, 8, 12)
    for name in ("maps", "heatmaps"):
        np.testing.assert_allclose(getattr(results[1], name), getattr(results[0], name), atol=1e-6)


# -- networks ---------------------------------------------------------------------------------------

#: Of each family a shallow one.
NETWORKS = {
    "swin_tiny_patch4_window7_224": {"img_size": 112, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 2)},
    "maxvit_rmlp_pico_rw_256": {"img_size": 128, "embed_dim": (32, 32, 32, 64), "depths": (1, 1, 1, 1)},
    "test_coatnet": {"img_size": 128},
    "vit_small_patch14_reg4_dinov2": {"img_size": 112, "depth": 2, "embed_dim": 48, "num_heads": 4},
    "deit_tiny_distilled_patch16_224": {"img_size": 128, "depth": 2, "embed_dim": 48},
    "mobilevit_xxs": {},
    "edgenext_xx_small": {},
}
SIZES = {"mobilevit_xxs": 128, "edgenext_xx_small": 256}
PLACES = ((1, 5), (6, 1), (3, 3), (5, 6), (1, 2), (6, 4))  #: of eight by eight


def looking_at_themselves(q, k, v, attn_mask=None, **_):
    """Attention in which tokens mostly attend to themselves: what was changed shows where."""
    import torch

    weights = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + (0 if attn_mask is None else attn_mask)
    if q.shape[-2] == k.shape[-2]:
        weights = weights + 10 * torch.eye(q.shape[-2])
    return weights.softmax(-1) @ v


@pytest.mark.torch
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_network_is_upright(name, monkeypatch):
    torch = pytest.importorskip("torch")
    import_torchvision()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=10, **NETWORKS[name]).eval()
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # for the patch below
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.75, 1.25)
    size = SIZES.get(name) or NETWORKS[name]["img_size"]
    x = torch.randn(1, 3, size, size)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", looking_at_themselves)
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            proto = torch.onnx.export(network, (x,), dynamo=True, opset_version=18).model_proto
    finally:
        logging.disable(previous)
    listed = [c for c in list_layers(proto) if min(c.grid) >= 8]
    assert {c.layout.kind for c in listed} > {"NCHW"}
    outputs = {o.name for o in proto.graph.output}
    extra = [onnx.helper.make_empty_tensor_value_info(c.tensor) for c in listed if c.tensor not in outputs]
    proto.graph.output.extend(extra)
    (feed,) = [i.name for i in proto.graph.input]
    file = proto.SerializeToString()

    def values(image):
        found = run(file, {feed: image})
        return [channels_first(found[c.tensor], c.layout)[0] for c in listed]

    plain, step, changes = values(x.numpy()), size // 8, []
    for k, (r, c) in enumerate(PLACES):
        image = x.numpy().copy()
        patch = image[:, :, r * step : (r + 1) * step, c * step : (c + 1) * step]
        patch += 3 * np.random.default_rng(k).standard_normal(patch.shape)
        changes.append([np.abs(a - b).sum(axis=0) for a, b in zip(plain, values(image), strict=True)])
    astray = []
    for j, c in enumerate(listed):
        maps = np.stack([change[j] for change in changes])
        if not maps.any():
            continue  # a branch that starts switched off
        maps /= maps.mean(axis=0) + 1e-6 * maps.mean()  # what every change brings is no place's
        hits = sum(_near(m, place) for m, place in zip(maps, PLACES, strict=True))
        if hits < 4:
            astray.append((c.name, c.op_type, c.layout.kind, hits))
    assert astray == []


def _near(change, place):
    """Whether a map's largest entry is at the place that was changed, or the next to it."""
    at = (np.array(np.unravel_index(change.argmax(), change.shape)) + 0.5) / change.shape * 8
    return (np.abs(at - np.array(place) - 0.5) <= 0.5 + 12 / np.array(change.shape)).all()
