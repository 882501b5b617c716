"""Tails from changed cells alone: the same scores as from whole activations, whatever follows the layer."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from torchvision_shim import import_torchvision

from onnxcam import Explainer
from onnxcam.contract import CELLS, KEY, PATCHES, WITH_GRADIENTS
from onnxcam.errors import VerificationError
from onnxcam.export import export_torch, rewrite_onnx
from onnxcam.export.spread import Spread, Window, of_layer, through, together

from .. import nets
from .test_tails import again, image, open_, run

POOLED = "p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, v, b)"

P = "pads=[1,1,1,1]"
#: What follows a layer r of four channels, up to t with four channels.
BODIES = {
    "stride 1": f"d = Conv<{P}>(r, u, ub) t = Relu(d)",
    "stride 2": f"d = Conv<{P}, strides=[2,2]>(r, u, ub) t = Relu(d)",
    "no padding": "d = Conv<strides=[2,1]>(r, u) t = Tanh(d)",
    "wide padding": "d = Conv<pads=[3,3,3,3]>(r, u, ub) t = Relu(d)",
    "padding at one side": "d = Conv<pads=[0,2,1,0]>(r, u) t = Relu(d)",
    "same, stride 2": 'd = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(r, u) t = Relu(d)',
    "same below": 'd = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(r, even) t = Relu(d)',
    "dilation": "d = Conv<pads=[2,2,2,2], dilations=[2,2]>(r, u) t = Relu(d)",
    "uneven kernel": "d = Conv<pads=[0,1,0,1]>(r, long) t = Sigmoid(d)",
    "groups": f"d = Conv<{P}, group=2>(r, pairs, ub) t = Relu(d)",
    "depthwise": f"d = Conv<{P}, group=4, strides=[2,2]>(r, each, ub) t = Relu(d)",
    "multiplied": f"c2 = Conv<{P}, group=4>(r, doubled) d = Conv(c2, back) t = Relu(d)",
    "one by one, stride 2": "d = Conv<strides=[2,2]>(r, one) t = Relu(d)",
    "max pool": f"d = Conv<{P}>(r, u) t = MaxPool<kernel_shape=[3,3], strides=[2,2], {P}>(d)",
    "max pool, ceil": f"m = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(r) t = Conv<{P}>(m, u)",
    "max pool, dilated": f"m = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(r) t = Conv<{P}>(m, u)",
    "average pool": f"m = AveragePool<kernel_shape=[3,3], strides=[2,2], {P}>(r) t = Conv(m, one)",
    "average pool, padding counts": f"m = AveragePool<kernel_shape=[3,3], {P}, count_include_pad=1>(r) "
    "t = Conv(m, one)",
    "subsampling pool": f"m = MaxPool<kernel_shape=[1,1], strides=[2,2]>(r) t = Conv<{P}>(m, u)",
    "identity shortcut": f"d = Conv<{P}>(r, u) e = Relu(d) g = Conv(e, one) s = Add(g, r) t = Relu(s)",
    "projection": f"d = Conv<{P}, strides=[2,2]>(r, u) e = Relu(d) g = Conv(e, one) "
    "h = Conv<strides=[2,2]>(r, one, ub) s = Add(g, h) t = Relu(s)",
    "shortcut that reaches elsewhere": "d = Conv<pads=[0,0,0,2]>(r, right) "
    f"e = Conv<pads=[0,2,0,0]>(r, right) s = Add(d, e) t = Conv<{P}>(s, u)",
    "two blocks": f"d = Conv<{P}>(r, u) s = Add(d, r) e = Relu(s) g = Conv<{P}>(e, u) "
    "q = Add(g, e) t = Relu(q)",
    "branches": f"d = Conv<{P}>(r, u) e = Conv(r, one) c2 = Concat<axis=1>(d, e) t = Conv(c2, back)",
    "normalized": f"d = Conv<{P}>(r, u) e = BatchNormalization(d, scale, ub, mean, variance) "
    "t = PRelu(e, slope)",
    "channel by channel": f"d = Conv<{P}>(r, u) e = Mul(d, slope) g = Sub(half, e) t = Clip(g, low, half)",
    "gate of its own": f"d = Conv<{P}>(r, u) e = Conv<{P}>(r, narrow) g = Sigmoid(e) t = Mul(d, g)",
    "what goes around": f"t1 = Conv<{P}>(r, u) t = Add(t1, c)",
    "what goes around, joined": f"t1 = Conv<{P}>(r, u) j = Concat<axis=1>(c, t1) t = Conv(j, back)",
    "over the whole grid": f"d = Conv<{P}>(r, u) i = InstanceNormalization(d, scale, ub) t = Relu(i)",
    "squeezed and excited": f"d = Conv<{P}>(r, u) m = ReduceMean(d, axes) k = Conv(m, one) g = Sigmoid(k) "
    "t = Mul(d, g)",
    "around what is whole": f"d = Conv<{P}>(r, u) e = InstanceNormalization(d, scale, ub) "
    "j = Concat<axis=1>(e, c) g = Conv(j, back) t = Relu(g)",
    "maximum": f"d = Conv<{P}>(r, u) t = GlobalMaxPool(d)",
    "enlarged": f'd = Conv<{P}>(r, u) t = Resize<mode="nearest">(d, , twice)',
}
WEIGHTS = {
    **nets.weights(
        w=(4, 3, 3, 3), u=(4, 4, 3, 3), even=(4, 4, 2, 2), long=(4, 4, 1, 3), pairs=(4, 2, 3, 3),
        each=(4, 1, 3, 3), doubled=(8, 1, 3, 3), back=(4, 8, 1, 1), one=(4, 4, 1, 1),
        right=(4, 4, 1, 3), narrow=(1, 4, 3, 3),
        ub=(4,), scale=(4,), mean=(4,), slope=(4, 1, 1), v=(5, 4), b=(5,),
    ),
    "variance": np.array([0.5, 1, 2, 1.5], np.float32),
    "half": np.float32(0.5),
    "low": np.float32(-0.5),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "axes": np.array([2, 3]),
}  # fmt: skip


def network(body, size, head=POOLED):
    """A layer r that is no ReLU, so that maxima below zero are seen; c goes around it."""
    made = nets.model(
        f"c = Conv<pads=[1,1,1,1]>(x, w) r = Tanh(c) {body} {head}",
        inputs=f"float[N,3,{size[0]},{size[1]}] x",
        initializers=WEIGHTS,
    )
    read = {name for node in made.graph.node for name in node.input}
    kept = [t for t in made.graph.initializer if t.name in read]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


def written(net, folder):
    onnx.save(net, folder / "model.onnx")
    return rewrite_onnx(folder / "model.onnx", folder / "model.cam.onnx", layers="r", tail=True)


def without_this_way(path):
    """The file, whose record says nothing of the way from changed cells, as older ones do not."""
    model = onnx.load(path)
    (entry,) = [p for p in model.metadata_props if p.key == KEY]
    body = json.loads(entry.value)
    for tail in body["tails"]:
        del tail["local"]
    entry.value = json.dumps(body)
    older = path.with_name("older.cam.onnx")
    onnx.save(model, older)
    return older


def compared(report, changes, seed=0):
    """The outputs from patches, and from the same activations in whole: each (K, ...)."""
    (tail,) = report.record.tails
    rng = np.random.default_rng(seed)
    size = report.record.layers[0].shape[1:]
    main = run(report.path, {"x": image(1, size=size[1:])})
    session = open_(report.path.with_name(tail.file))
    names = [o.name for o in session.get_outputs() if "gradients" not in o.name]
    copies, cells = np.array([(k, c) for k, some in enumerate(changes) for c in some]).T
    values = rng.standard_normal((len(cells), size[0])).astype(np.float32)
    base = main["cam.activations.r"]
    whole = np.repeat(base, len(changes), axis=0)
    whole.reshape(len(changes), size[0], -1)[copies, :, cells] = values
    sides = {s.name: main[s.name] for s in tail.sides}
    fed = {"cam.activations.r": base, **sides, PATCHES: values, CELLS: np.stack([copies, cells], 1)}
    repeated = {s.name: np.repeat(main[s.name], len(changes), axis=0) for s in tail.sides}
    return (
        session.run(names, fed),
        session.run(names, {"cam.activations.r": whole, **repeated}),
        session.run(names, {"cam.activations.r": base, **sides}),
    )


@pytest.mark.parametrize("size", [(7, 7), (9, 13)], ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_every_cell_alone(name, size, tmp_path):
    report = written(network(BODIES[name], size), tmp_path)
    assert report.record.tails[0].local
    local, whole, base = compared(report, [[cell] for cell in range(size[0] * size[1])])
    for ours, theirs, unchanged in zip(local, whole, base, strict=True):
        assert np.abs(theirs - unchanged).max() > 1e-3 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["stride 2", "max pool", "projection", "two blocks", "squeezed and excited"])
def test_several_cells_of_some_copies_in_any_order(name, tmp_path):
    report = written(network(BODIES[name], (8, 11)), tmp_path)
    for changes in ([[87]], [[1]], [[0, 10, 87], [5]], [[40, 3, 4, 41], [87, 0], [12], list(range(88))]):
        for ours, theirs in zip(*compared(report, changes)[:2], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_a_head_that_counts_its_images(tmp_path):
    """Reshape to the batch that the graph itself measures, before and after the grid."""
    head = (
        "n1 = Shape<start=0, end=1>(r) k = Concat<axis=0>(n1, four) p = GlobalAveragePool(t) "
        "f = Reshape(p, k) y = Gemm<transB=1>(f, v, b)"
    )
    net = network(BODIES["stride 1"], (7, 7), head)
    net.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4]), "four"))
    report = written(net, tmp_path)
    assert report.record.tails[0].local
    for ours, theirs in zip(*compared(report, [[3], [4], [48]])[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_gradients_are_those_of_the_file(tmp_path):
    report = written(network(BODIES["two blocks"], (7, 7)), tmp_path)
    assert report.record.tails[0].local
    main = run(report.path, {"x": image(3, size=(7, 7))})
    ours = again(report, main, np.array([2, 0, 1, 1]))["cam.gradients.r"]
    np.testing.assert_allclose(ours, main["cam.gradients.r"][[2, 0, 1, 1]], rtol=1e-4, atol=1e-6)


def test_weights_are_in_the_file_once(tmp_path):
    net = network(BODIES["two blocks"], (7, 7))
    report = written(net, tmp_path)
    tail = onnx.load(tmp_path / report.record.tails[0].file)
    branches = [a.g for n in tail.graph.node if n.op_type == "If" for a in n.attribute]
    large = [t for g in (tail.graph, *branches) for t in g.initializer if np.prod(t.dims) == 4 * 4 * 9]
    assert [t.name for t in large] == ["u"]
    inputs = {i.name for i in tail.graph.input}
    assert {PATCHES, CELLS, WITH_GRADIENTS} <= inputs


@pytest.mark.parametrize(
    "body",
    [
        "t = Relu(r)",
        "e = InstanceNormalization(r, scale, ub) t = Conv<pads=[1,1,1,1]>(e, u)",
        "k = Mul(u, half) t = Conv<pads=[1,1,1,1]>(r, k)",
        "m = ReduceMean(r, axes) g = Sigmoid(m) e = Mul(r, g) t = Conv<pads=[1,1,1,1]>(e, u)",
    ],
    ids=["no convolution", "a norm over the grid first", "computed weights", "excited first"],
)
def test_where_nothing_is_gained_there_is_no_such_way(body, tmp_path):
    report = written(network(body, (7, 7)), tmp_path)
    assert not report.record.tails[0].local
    session = open_(tmp_path / report.record.tails[0].file)
    assert PATCHES not in {i.name for i in session.get_overridable_initializers()}


@pytest.mark.parametrize(
    "change",
    [{"batch": 2}, {"rows": "H"}],
    ids=["a fixed batch", "a grid of any size"],
)
def test_sizes_that_it_cannot_do_without(change, tmp_path):
    net = network(BODIES["stride 1"], (7, 7))
    dims = net.graph.input[0].type.tensor_type.shape.dim
    if "batch" in change:
        dims[0].dim_value = net.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    else:
        dims[2].dim_param = change["rows"]
    assert not written(net, tmp_path).record.tails[0].local


def test_a_way_that_gives_other_scores_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Window, "offsets", lambda window: np.zeros(window.count, np.int64))
    with pytest.raises(VerificationError, match=r"another 'y' from changed cells alone.*Nothing was written"):
        written(network(BODIES["stride 1"], (7, 7)), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


# -- sets of cells ----------------------------------------------------------------------------------


def by_hand(window, changed):
    """The outputs whose windows hold a changed cell."""
    found = np.zeros(window.after, bool)
    for place in np.ndindex(*window.after):
        for step in np.ndindex(*window.kernel):
            at = [
                p * s - b + k * d
                for p, s, b, k, d in zip(
                    place, window.strides, window.begins, step, window.dilations, strict=True
                )
            ]
            if all(0 <= i < n for i, n in zip(at, window.before, strict=True)):
                found[place] |= changed[tuple(at)]
    return found


@pytest.mark.parametrize(
    "window",
    [
        Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (5, 6), (5, 6)),
        Window((3, 3), (2, 2), (1, 1), (1, 1), (1, 0), (7, 8), (4, 4)),
        Window((2, 3), (2, 1), (1, 2), (0, 3), (1, 1), (7, 8), (4, 8)),
        Window((1, 1), (2, 2), (1, 1), (0, 0), (0, 0), (7, 8), (4, 4)),
    ],
    ids=["plain", "stride", "dilation", "subsampling"],
)
def test_a_change_spreads_to_the_windows_that_hold_it(window):
    layer = of_layer(window.before)
    behind = through(layer, window)
    ((rows, columns),) = behind.products
    total = 0
    for place in np.ndindex(*window.before):
        changed = np.zeros(window.before, bool)
        changed[place] = True
        want = by_hand(window, changed)
        np.testing.assert_array_equal(np.outer(rows[place[0]], columns[place[1]]), want)
        total += want.mean()
    assert behind.share() == pytest.approx(total / np.prod(window.before))
    want = [sum(1 for _ in _places(window, place)) for place in np.ndindex(*window.after)]
    np.testing.assert_array_equal(window.inside(), want)


def _places(window, place):
    """The cells of one window that are no padding."""
    alone = np.zeros(window.before, bool)
    for cell in np.ndindex(*window.before):
        alone[cell] = True
        if by_hand(window, alone)[place]:
            yield cell
        alone[cell] = False


def test_what_meets_is_of_all_cells_of_either():
    layer = of_layer((5, 5))
    wide = through(layer, Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (5, 5), (5, 5)))
    left = through(layer, Window((1, 2), (1, 1), (1, 1), (0, 1), (0, 0), (5, 5), (5, 5)))
    right = through(layer, Window((1, 2), (1, 1), (1, 1), (0, 0), (0, 1), (5, 5), (5, 5)))
    assert together([layer, wide]) is wide
    assert together([left, wide, right]) is wide
    both = together([left, right])
    assert isinstance(both, Spread)
    assert both.of == (left, right)
    assert both.holds(layer)
    assert not left.holds(right)
    assert not wide.holds(through(wide, wide.window))


# -- networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "local"),
    [
        ("resnet18", "layer2", True),
        ("resnet50", "layer3", True),
        ("vgg11", "features.10", True),
        ("mobilenet_v2", "features.10", True),
        ("mobilenet_v3_large", "features.3", False),  # squeezed and excited at once
    ],
    ids=["resnet18", "resnet50", "vgg11", "mobilenet_v2", "mobilenet_v3_large"],
)
def test_networks(name, layer, local, tmp_path):
    torch = pytest.importorskip("torch")
    build = import_torchvision().models.get_model
    torch.manual_seed(0)
    model = build(name, weights=None).eval()
    if name == "vgg11":
        model.classifier = torch.nn.Linear(512 * 7 * 7, 10)  # for 1000 classes it has half a gigabyte
    x = torch.randn(1, 3, 96, 96)
    report = export_torch(model, x, tmp_path / "model.cam.onnx", layer, tail=True)
    (tail,) = report.record.tails
    assert tail.local == local
    maps = [
        Explainer(file, "cpu", session_options={"log_severity_level": 4}, max_batch=24)
        .explain_tensor(x.numpy(), "reciprocam", 3)
        .maps
        for file in (report.path, without_this_way(report.path))
    ]
    ours, theirs = maps
    assert np.ptp(theirs) > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
