"""Maps computed inside a file are the host's, for every method that can be fused and every layout."""

import dataclasses

import cv2
import nets
import numpy as np
import onnx
import onnxruntime
import pytest
from traces import traced

import onnxcam
from onnxcam import methods, postprocess
from onnxcam.contract import Fused, Record, Score, read_record
from onnxcam.errors import BadRecord, InputError, MethodError, ModelError, UnknownLayer, VerificationError
from onnxcam.export import FuseSpec, load, rewrite_onnx, strip, verify_maps
from onnxcam.export.needs import PROVIDERS
from onnxcam.fused import IN_GRAPH, find, fusable, require
from onnxcam.grids import channels_first
from onnxcam.interpolation import linear
from onnxcam.interpolation import weights as interpolation_weights

FUSABLE = [n for n, reason in fusable().items() if reason is None]
NEED_BLOCKS = [n for n in FUSABLE if "attention" in methods.get(n).needs]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(**shapes):
    rng = np.random.default_rng(1)
    return {
        k: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]) or 1)).astype(np.float32)
        for k, s in shapes.items()
    }


def residual():
    """Two stages with a shortcut, then pooling and a classifier: layers of two sizes."""
    return nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) s = Relu(c)"
        " d = Conv<pads=[1,1,1,1], strides=[2,2]>(s, w2) e = Conv<strides=[2,2]>(s, w3)"
        " a = Add(d, e) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        initializers=weights(w=(6, 3, 3, 3), wb=(6,), w2=(8, 6, 3, 3), w3=(8, 6, 1, 1), v=(5, 8), b=(5,)),
    )


def open_sizes():
    """Height and width are known at run time alone; layers of two sizes."""
    return nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) s = Relu(c) d = Conv<pads=[1,1,1,1], strides=[2,2]>(s, w2)"
        " r = Relu(d) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v, b)",
        inputs="float[N,3,H,W] x",
        initializers=weights(w=(6, 3, 3, 3), wb=(6,), w2=(8, 6, 3, 3), v=(5, 8), b=(5,)),
    )


def tokens():
    """Patches, a class token, one block of attention, and a head on the class token."""
    ints = {
        "tokens": np.array([0, 6, -1]),
        "first": np.array([0]),
        "one": np.array([1]),
        "batch": np.array([0]),
    }
    body = (
        "q = Conv<strides=[2,2]>(x, w) f = Reshape(q, tokens) t = Transpose<perm=[0,2,1]>(f)"
        " n = Shape<start=0, end=1>(x) rest = Constant<value_ints=[1, 6]>()"
        " size = Concat<axis=0>(n, rest) c = Expand(cls, size) z = Concat<axis=1>(c, t)"
        " m = ReduceMean<keepdims=1>(z, last) zc = Sub(z, m) sq = Mul(zc, zc)"
        " va = ReduceMean<keepdims=1>(sq, last)"
        " sd = Sqrt(va) plain = Div(zc, sd) ln = Mul(plain, gamma)"
        " qq = MatMul(ln, wq) kk = MatMul(ln, wk) vv = MatMul(ln, wv) kt = Transpose<perm=[0,2,1]>(kk)"
        " sc = MatMul(qq, kt) at = Softmax(sc) h = MatMul(at, vv) o = Add(z, h)"
        " g = Gather<axis=1>(o, first) u = Squeeze(g, one) y = Gemm<transB=1>(u, v, b)"
    )
    made = nets.model(
        body,
        initializers=weights(
            w=(6, 3, 2, 2), cls=(1, 1, 6), gamma=(6,), wq=(6, 6), wk=(6, 6), wv=(6, 6), v=(5, 6), b=(5,)
        ),
    )
    ints["last"] = np.array([-1])
    made.graph.initializer.extend(onnx.numpy_helper.from_array(a, k) for k, a in ints.items())
    return made


def channels_last():
    """Transposed to (N, H, W, C), a linear map per cell, windows of 2 × 2, and pooling."""
    arrays = weights(w=(6, 3, 3, 3), k=(6, 6), k2=(6, 6), v=(5, 6), b=(5,))
    made = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) t = Transpose<perm=[0,2,3,1]>(r) l = MatMul(t, k)"
        " cut = Reshape(l, six) sw = Transpose<perm=[0,1,3,2,4,5]>(cut) win = Reshape(sw, windows)"
        " i = MatMul(win, k2) e = Exp(i) back = Reshape(e, six2) un = Transpose<perm=[0,1,3,2,4,5]>(back)"
        " j = Reshape(un, four) p = ReduceMean<keepdims=0>(j, hw) y = Gemm<transB=1>(p, v, b)",
        initializers=arrays,
    )
    shapes = {
        "six": [-1, 4, 2, 4, 2, 6],
        "windows": [-1, 4, 6],
        "six2": [-1, 4, 4, 2, 2, 6],
        "four": [-1, 8, 8, 6],
        "hw": [1, 2],
    }
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(a), k) for k, a in shapes.items())
    return made


def signal():
    return nets.model(
        "c = Conv<pads=[1,1]>(x, w, wb) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)"
        " y = Gemm<transB=1>(f, v, b)",
        inputs="float[N,2,20] x",
        initializers=weights(w=(12, 2, 3), wb=(12,), v=(5, 12), b=(5,)),
    )


def volume():
    return nets.model(
        "c = Conv<strides=[2,2,2]>(x, w, wb) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)"
        " y = Gemm<transB=1>(f, v, b)",
        inputs="float[N,1,6,10,8] x",
        initializers=weights(w=(4, 1, 2, 2, 2), wb=(4,), v=(5, 4), b=(5,)),
    )


NETS = {  # each with its layers and the shape of one input
    "residual": (residual, ("r", "s"), (3, 8, 8)),
    "open sizes": (open_sizes, ("r", "s"), (3, 12, 9)),
    "tokens": (tokens, ("ln",), (3, 8, 8)),
    "channels last": (channels_last, ("l",), (3, 8, 8)),
    "windows": (channels_last, ("i",), (3, 8, 8)),
    "signal": (signal, ("r",), (2, 20)),
    "volume": (volume, ("r",), (1, 6, 10, 8)),
}


def rewritten(net, tmp_path, **options):
    source, target = tmp_path / "m.onnx", tmp_path / "m.cam.onnx"
    onnx.save(net, source)
    return rewrite_onnx(source, target, **options), target


def outputs(path, **feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def of_method(path, x, name, layers, **feeds):
    """The file's own tensors, the method's map of each layer made by NumPy, and the file's outputs."""
    found, record = outputs(path, x=x, **feeds), read_record(load(path).metadata_props)
    method, maps = methods.get(name), []
    for layer in (one for one in record.layers if one.name in layers):
        tensors = [channels_first(found[n], layer.layout) for n in (layer.activations, layer.gradients)]
        b, c, *grid = tensors[0].shape
        flat = [t.reshape(b, c, -1, grid[-1]) for t in tensors]
        made = method(activations=flat[0], gradients=flat[1])
        maps.append(np.asarray(made, np.float32).reshape(b, *grid))
    return maps, found


def fits(name, record):
    head = methods.get(name).head
    return all(head in (None, layer.head) for layer in record.layers)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("net", NETS)
def test_every_method_in_the_file_is_the_hosts(tmp_path, net, batch):
    make, layers, shape = NETS[net]
    example = {"x": noise(2, *shape)}
    plain, _ = rewritten(make(), tmp_path, layers=layers[0], example_inputs=example)
    names = [n for n in FUSABLE if fits(n, plain.record) and (net == "tokens" or n not in NEED_BLOCKS)]
    assert len(names) >= 7
    report, path = rewritten(make(), tmp_path, layers=layers[0], fuse=names, example_inputs=example)
    assert report.map_error is not None
    assert report.map_error <= 1e-5
    x = noise(batch, *shape, seed=7)
    for name in (n for n in names if not methods.get(n).inside):
        maps, found = of_method(path, x, name, layers[:1], **{"cam.class_index": np.array([3] * batch)})
        ours = found[f"cam.heatmap.{name}"]
        expected = postprocess.heatmaps(maps, shape[1:], methods.get(name).rectify)
        assert ours.shape == expected.shape == (batch, *shape[1:])
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5, err_msg=name)
        assert ours.dtype == np.float32
    assert found["cam.heatmap.layercam"].max() > 0.99


@pytest.mark.parametrize("fuse", ["mean", "max", "product"])
@pytest.mark.parametrize("net", ["residual", "open sizes"])
def test_two_layers_become_one_map(tmp_path, net, fuse):
    make, layers, shape = NETS[net]
    spec = {"method": "gradcam", "fuse": fuse}
    report, path = rewritten(
        make(), tmp_path, layers=layers, fuse=spec, example_inputs={"x": noise(2, *shape)}
    )
    assert report.record.fused == (Fused("gradcam", "cam.heatmap.gradcam", layers, "input", True, fuse),)
    x = noise(3, *shape, seed=2)
    maps, found = of_method(path, x, "gradcam", layers)
    assert maps[0].shape != maps[1].shape
    expected = postprocess.heatmaps(maps, shape[1:], True, fuse)
    np.testing.assert_allclose(found["cam.heatmap.gradcam"], expected, rtol=0, atol=1e-5)


def test_it_is_what_the_explainer_gives(tmp_path):
    _, path = rewritten(residual(), tmp_path, layers=("r", "s"), fuse="layercam")
    x = noise(2, 3, 8, 8, seed=3)
    told = onnxcam.Explainer(path, "cpu").explain_tensor(x, "layercam")
    np.testing.assert_allclose(outputs(path, x=x)["cam.heatmap.layercam"], told.heatmaps, rtol=0, atol=1e-5)


def test_the_class_moves_the_map(tmp_path):
    _, path = rewritten(residual(), tmp_path, fuse="gradcam")
    x = noise(1, 3, 8, 8)
    a, b = (outputs(path, x=x, **{"cam.class_index": np.array([k])})["cam.heatmap.gradcam"] for k in (0, 3))
    assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize(("size", "shape"), [("layer", (4, 4)), ("input", (8, 8))])
def test_raw_maps_are_in_the_scores_units(tmp_path, size, shape):
    spec = FuseSpec("hirescam", size=size, scaled=False)
    _, path = rewritten(residual(), tmp_path, layers="r", fuse=spec)
    x = noise(2, 3, 8, 8)
    (raw,), found = of_method(path, x, "hirescam", ["r"])
    ours = found["cam.heatmap.hirescam"]
    assert ours.shape == (2, *shape)
    assert raw.min() < 0
    np.testing.assert_allclose(ours, postprocess.resize(raw, shape), rtol=1e-5, atol=1e-5 * np.abs(raw).max())


def test_maps_of_a_layers_size(tmp_path):
    specs = [{"method": "gradcam", "size": "layer"}, {"method": "gradcam", "size": "layer", "layers": "r"}]
    report, path = rewritten(residual(), tmp_path, layers=("r", "s"), fuse=specs)
    both, one = report.record.fused
    assert (both.layers, one.layers) == (("r", "s"), ("r",))
    maps, found = of_method(path, noise(2, 3, 8, 8), "gradcam", ["r", "s"])
    np.testing.assert_allclose(found[both.output], postprocess.heatmaps(maps, (8, 8)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[one.output], postprocess.heatmaps(maps[:1], (4, 4)), rtol=0, atol=1e-5)


def test_a_map_without_contrast_is_zero(tmp_path):
    _, path = rewritten(nets.cnn(), tmp_path, fuse=["gradcam", "cam"])
    found = outputs(path, x=np.zeros((2, 3, 8, 8), np.float32) - 0.0)
    flat = [m for name, m in found.items() if name.startswith("cam.heatmap.")]
    assert len(flat) == 2
    assert all(np.isfinite(m).all() for m in flat)


def test_maps_only(tmp_path):
    report, path = rewritten(residual(), tmp_path, fuse="gradcam", maps_only=True)
    assert report.record.maps_only
    assert report.map_error <= 1e-5
    assert report.output_error == 0.0
    x = noise(2, 3, 8, 8)
    found = outputs(path, x=x)
    assert [*found] == ["y", "cam.heatmap.gradcam"]
    _, full = rewritten(residual(), tmp_path, fuse="gradcam")
    for name, array in found.items():
        np.testing.assert_allclose(outputs(full, x=x)[name], array, rtol=0, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "complete"))] == []


def test_a_map_that_reads_no_gradient_leaves_none_in_the_file(tmp_path, monkeypatch):
    """With maps_only; the check then has no gradient to look at."""
    mean = methods.Method(
        "amean",
        lambda activations, *, xp=np: xp.mean(activations, axis=1),
        ("activations",),
        "",
        "",
    )
    monkeypatch.setitem(methods._methods, "amean", mean)
    report, path = rewritten(residual(), tmp_path, fuse="amean", maps_only=True)
    assert report.map_error <= 1e-5
    assert report.nodes_added < 25
    r = outputs(path, x=noise(1, 3, 8, 8))
    assert r["cam.heatmap.amean"].max() > 0.99


@pytest.mark.parametrize("maps_only", [False, True])
def test_strip_takes_the_maps_out_again(tmp_path, maps_only):
    net = residual()
    _, path = rewritten(net, tmp_path, fuse=["gradcam", "layercam"], maps_only=maps_only)
    stripped = strip(load(path))
    assert [o.name for o in stripped.graph.outputs] == ["y"]
    assert [n.op_type for n in stripped.graph] == [n.op_type for n in net.graph.node]
    assert [n.outputs[0].name for n in stripped.graph] == [n.output[0] for n in net.graph.node]


# -- the record ---------------------------------------------------------------------------------------


def test_the_record_says_what_is_fused(tmp_path):
    specs = ["gradcam", FuseSpec("gradcam", ("s",), "layer", False), {"method": "layercam", "layers": "r"}]
    report, path = rewritten(residual(), tmp_path, layers=("r", "s"), fuse=specs)
    fused = (
        Fused("gradcam", "cam.heatmap.gradcam", ("r", "s")),
        Fused("gradcam", "cam.heatmap.gradcam_1", ("s",), "layer", False),
        Fused("layercam", "cam.heatmap.layercam", ("r",)),
    )
    assert report.record.fused == read_record(load(path).metadata_props).fused == fused
    assert not report.record.maps_only
    text = str(report)
    assert "computes cam.heatmap.layercam: 'layercam' at 'r'" in text
    assert "maps within" in text
    record = report.record
    assert find(record, "gradcam", ["s", "r"]) == fused[0]
    assert find(record, "gradcam", ["s"]) == fused[1]
    assert find(record, "gradcam", ["r", "s"], "max") is None
    assert find(record, "layercam", ["r"], "max") == fused[2]
    assert find(record, "layercam", ["s"]) is None


def test_a_file_of_maps_alone_names_those_it_holds():
    record = Record(
        (), Score("y", "y"), fused=(Fused("gradcam", "cam.heatmap.gradcam", ("r",)),), maps_only=True
    )
    assert require(record, "gradcam", ["r"]).output == "cam.heatmap.gradcam"
    with pytest.raises(
        MethodError,
        match=r"^The file holds no map of the method 'layercam' at 'r', nor what it is made of\. It holds "
        r"'gradcam' at 'r': take one of these, or rewrite the model with fuse='layercam' \(`--fuse .*\)\.$",
    ):
        require(record, "layercam", ["r"])
    with pytest.raises(
        MethodError,
        match=r"^The file holds no map of the method 'fullgrad', nor what it is made of\. Rewrite the model "
        r"with fuse='fullgrad' .* `onnxcam inspect FILE` lists what else it can be asked for\.$",
    ):
        require(dataclasses.replace(record, fused=(), maps_only=False), "fullgrad", [])


def test_records_from_before_maps_load():
    new = Record((), Score("y", "y"))
    old = new.to_json().replace(',"maps_only":false', "")
    assert '"fused":[]' in old
    assert Record.from_json(old) == new


def test_a_map_that_is_not_there_is_a_damaged_record(tmp_path):
    _, path = rewritten(residual(), tmp_path, fuse="gradcam", maps_only=True)
    model = onnx.load(path)
    onnxcam.Explainer(model.SerializeToString(), "cpu")
    del model.graph.output[1]
    with pytest.raises(
        BadRecord, match=r"names the output 'cam\.heatmap\.gradcam', which the file does not have"
    ):
        onnxcam.Explainer(model.SerializeToString(), "cpu")


def test_the_explainer_reads_a_file_of_maps_alone(tmp_path):
    _, path = rewritten(residual(), tmp_path, fuse=["gradcam", "fullgrad"], maps_only=True)
    x = noise(2, 3, 8, 8)
    explainer, found = onnxcam.Explainer(path, "cpu"), outputs(path, x=x)
    for method in ("gradcam", "fullgrad"):
        told = explainer.explain_tensor(x, method)
        np.testing.assert_allclose(told.heatmaps, found[f"cam.heatmap.{method}"], rtol=0, atol=1e-6)
    with pytest.raises(
        MethodError, match=r"holds no map of the method 'layercam', .* It holds 'gradcam' at 'r', 'full"
    ):
        explainer.explain_tensor(x, "layercam")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scale": "batch"},
            r"each image's scaled on its own: leave scale='batch' out, .* --fuse-raw`\)\.$",
        ),
        (
            {"fuse": "max"},
            r"its layers fused by 'mean': leave fuse='max' out, or rewrite .*'fuse': 'max'\}\.$",
        ),
    ],
)
def test_what_a_file_did_to_its_map_cannot_be_undone(tmp_path, options, message):
    _, path = rewritten(residual(), tmp_path, layers=["s", "r"], fuse="gradcam", maps_only=True)
    explainer, x = onnxcam.Explainer(path, "cpu"), noise(2, 3, 8, 8)
    with pytest.raises(MethodError, match=rf"^The file gives the map of 'gradcam' finished, {message}"):
        explainer.explain_tensor(x, **options)
    same = explainer.explain_tensor(x, fuse="mean")
    np.testing.assert_array_equal(same.heatmaps, explainer.explain_tensor(x).heatmaps)


def test_maps_as_the_method_gives_them_are_scaled_over_the_batch(tmp_path):
    raw = FuseSpec("gradcam", size="layer", scaled=False)
    _, whole = rewritten(residual(), tmp_path)
    found = onnxcam.Explainer(whole, "cpu").explain_tensor(noise(3, 3, 8, 8), scale="batch")
    _, path = rewritten(residual(), tmp_path, fuse=raw, maps_only=True)
    told = onnxcam.Explainer(path, "cpu").explain_tensor(noise(3, 3, 8, 8), scale="batch")
    assert found.heatmaps.max() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(told.heatmaps, found.heatmaps, atol=1e-5)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "activation_mean"])
def test_the_hosts_heatmap_is_the_same_whatever_the_file_holds(tmp_path, method, scaled):
    """Raw maps are of the layer's size unless another is named, so that they are enlarged last."""
    x = noise(2, 3, 8, 8, seed=5)
    _, whole = rewritten(residual(), tmp_path, layers="r")
    expected = onnxcam.Explainer(whole, "cpu").explain_tensor(x, method)
    report, path = rewritten(
        residual(), tmp_path, layers="r", fuse={"method": method, "scaled": scaled}, maps_only=True
    )
    assert [f.size for f in report.record.fused] == ["input" if scaled else "layer"]
    told = onnxcam.Explainer(path, "cpu").explain_tensor(x, method)
    np.testing.assert_allclose(told.heatmaps, expected.heatmaps, rtol=0, atol=1e-5)
    if not scaled:
        np.testing.assert_allclose(told.maps, expected.maps, rtol=1e-4, atol=1e-6)


# -- what cannot be -----------------------------------------------------------------------------------


def test_what_can_be_fused_and_what_cannot():
    told = fusable()
    assert sorted(told) == methods.names()
    for name in ("gradcam", "gradcam++", "layercam", "cam", "xgradcam", "hirescam"):
        assert told[name] is None
    assert told["finercam"] == "It explains a difference of scores that is chosen when the file runs."
    assert all(reason is None or (reason[0].isupper() and reason[-1] == ".") for reason in told.values())
    assert set(PROVIDERS) == IN_GRAPH


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"fuse": "finercam"},
            MethodError,
            "'finercam' cannot be computed inside a file. It expl",
        ),
        ({"fuse": "gradcma"}, MethodError, "No method 'gradcma'. Nearest: 'gradcam'"),
        ({"fuse": {"method": "gradcam", "sizes": "layer"}}, MethodError, "no field 'sizes'. Nearest: 'size'"),
        ({"fuse": {"size": "layer"}}, MethodError, "A fused map needs a method"),
        ({"fuse": {"method": "gradcam", "size": 7}}, MethodError, "is 'layer' or 'input', not 7"),
        ({"fuse": 7}, MethodError, "No method 7"),
        ({"fuse": {"method": "gradcam", "layers": 7}}, UnknownLayer, "A layer is a name, not 7"),
        ({"fuse": FuseSpec("gradcam", "qq")}, UnknownLayer, "does not explain a layer 'qq'"),
        ({"fuse": {"method": "gradcam", "layers": "q"}}, UnknownLayer, "does not explain a layer 'q'"),
        (
            {"fuse": {"method": "gradcam", "scaled": False}},
            MethodError,
            "Raw maps of 2 layers are on 2 scales",
        ),
        ({"fuse": {"method": "gradcam", "fuse": "median"}}, InputError, "No fusion 'median'"),
        ({"fuse": "cam"}, MethodError, "after the layer 's' there is something else"),
        ({"maps_only": True}, MethodError, "gives maps alone needs to know which"),
    ],
    ids=lambda v: "" if isinstance(v, dict | type) else v[:24],
)
def test_what_cannot_be_fused_says_why(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        rewritten(residual(), tmp_path, layers=("r", "s"), **options)
    assert not (tmp_path / "m.cam.onnx").exists()


def test_open_layers_have_no_largest(tmp_path):
    with pytest.raises(ModelError, match="not known where their sizes are open"):
        rewritten(open_sizes(), tmp_path, layers=("r", "s"), fuse={"method": "gradcam", "size": "layer"})


def test_a_wrong_map_is_caught(tmp_path, monkeypatch):
    """The check is checked: a host that computes something else by a thousandth."""
    real = verify_maps.on_host
    monkeypatch.setattr(verify_maps, "on_host", lambda *a: real(*a) * np.float32(0.999))
    with pytest.raises(VerificationError, match=r"'cam.heatmap.gradcam' differs from the host's by 0\.001"):
        rewritten(residual(), tmp_path, fuse="gradcam")
    monkeypatch.setattr(verify_maps, "on_host", lambda *a: real(*a)[:, 1:])
    with pytest.raises(VerificationError, match=r"has shape \(2, 8, 8\) \(the host's: \(2, 7, 8\)\)"):
        rewritten(residual(), tmp_path, fuse="gradcam")
    rewritten(residual(), tmp_path, fuse="gradcam", verify=False)


# -- resizing ----

SIZES = [
    ((7, 7), (224, 224)),
    ((7, 5), (50, 33)),
    ((56, 40), (28, 20)),
    ((33, 21), (17, 5)),
    ((1, 1), (9, 4)),
    ((5, 4), (1, 1)),
    ((9, 9), (9, 12)),
    ((200, 300), (513, 999)),
]


@pytest.mark.parametrize("open_dims", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_resizing_is_opencvs(source, target, open_dims):
    maps = np.random.default_rng(0).random((2, *source), np.float32)
    expected = np.stack([cv2.resize(m, target[::-1], interpolation=cv2.INTER_LINEAR) for m in maps])

    def run(x, like, *, xp):
        return linear(x, [xp.size(like, k) for k in (0, 1)], xp)

    result, _ = traced(run, maps, np.zeros(target, np.float32), open_dims=open_dims)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(linear(maps, target), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("open_dims", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize(("source", "target"), [((9,), (20,)), ((3, 5, 4), (6, 4, 9))], ids=str)
def test_resizing_of_signals_and_volumes(source, target, open_dims):
    maps = np.random.default_rng(0).random((2, *source), np.float32)

    def run(x, like, *, xp):
        return linear(x, [xp.size(like, k) for k in range(len(target))], xp)

    result, _ = traced(run, maps, np.zeros(target, np.float32), open_dims=open_dims)
    np.testing.assert_allclose(result, postprocess.resize(maps, target), rtol=0, atol=1e-6)


def test_weights_of_a_resize_add_up():
    for cells, pixels in [(3, 8), (8, 3), (1, 5), (300, 999)]:
        np.testing.assert_allclose(interpolation_weights(cells, pixels).sum(axis=1), 1, rtol=1e-6)
