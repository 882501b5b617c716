"""Models with random weights, and what the sanity check says of the demo's maps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import cnn, model, weights
from onnx import numpy_helper

from onnxcam import Explainer, demo
from onnxcam.demo import mosaics
from onnxcam.errors import InputError, ModelError
from onnxcam.evaluation import evaluate
from onnxcam.export import list_layers, load, randomised, rewrite_onnx, strip
from onnxcam.export.verify import run
from onnxcam.export.write import staged


def arrays(path):
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}


@pytest.fixture
def plain(tmp_path):
    """The demo's model as it was before it was made explainable."""
    path = tmp_path / "plain.onnx"
    with staged(strip(load(demo.model_bytes())), path):
        pass
    return path


def changed(before, after):
    old, new = arrays(before), arrays(after)
    return {name for name, w in old.items() if name in new and not np.array_equal(w, new[name])}


def test_weights_are_drawn_anew_with_their_mean_and_spread(plain, tmp_path):
    names = randomised(plain, tmp_path / "random.onnx")
    old, new = arrays(plain), arrays(tmp_path / "random.onnx")
    different = changed(plain, tmp_path / "random.onnx")
    assert len(different) == len(names) > 3
    assert all(old[name].ndim > 1 for name in different)
    for name in different:
        n = old[name].size
        assert new[name].dtype == old[name].dtype
        assert new[name].mean() == pytest.approx(
            float(old[name].mean()), abs=5 * float(old[name].std()) / n**0.5
        )
        assert new[name].std() == pytest.approx(float(old[name].std()), rel=5 / n**0.5)
        if n > 100:
            assert abs(np.corrcoef(new[name].ravel(), old[name].ravel())[0, 1]) < 5 / n**0.5


def test_a_cascade_starts_at_the_score(plain, tmp_path):
    every = randomised(plain, tmp_path / "all.onnx")
    sizes = []
    for count in (1, 2, len(every)):
        path = tmp_path / f"{count}.onnx"
        assert randomised(plain, path, cascade=count) == every[:count]
        sizes.append(len(changed(plain, path)))
    assert sizes == [1, 2, len(every)]
    (last,) = changed(plain, tmp_path / "1.onnx")
    user = next(n for n in onnx.load(plain).graph.node if last in n.input)
    assert user.op_type in ("Gemm", "MatMul")  # the classifier


def test_the_seed_decides(plain, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        randomised(plain, tmp_path / name, seed)
    assert not changed(tmp_path / "a", tmp_path / "b")
    assert changed(tmp_path / "a", tmp_path / "c")


def test_an_explainable_file_stays_explainable_and_its_gradients_are_the_new_weights(plain, tmp_path):
    layer = [layer.name for layer in list_layers(plain)][:1]
    labels = list(mosaics.LABELS)
    rewrite_onnx(plain, tmp_path / "m.cam.onnx", layer, preprocess="unit", labels=labels)
    randomised(tmp_path / "m.cam.onnx", tmp_path / "r.cam.onnx", 3)
    randomised(plain, tmp_path / "r.onnx", 3)
    rewrite_onnx(tmp_path / "r.onnx", tmp_path / "other.cam.onnx", layer, preprocess="unit", labels=labels)
    made, wanted = (Explainer(tmp_path / name, ["cpu"]) for name in ("r.cam.onnx", "other.cam.onnx"))
    assert made.layers == tuple(layer)
    assert made.record.labels == tuple(labels)
    assert made.record.preprocess == wanted.record.preprocess
    x = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    np.testing.assert_allclose(
        made.explain_tensor(x, target=2).maps, wanted.explain_tensor(x, target=2).maps, rtol=1e-5, atol=1e-7
    )


def test_weights_behind_constant_operators_and_in_constant_nodes_are_found(tmp_path):
    """A transposed weight that is computed from an initializer, and one that is a Constant."""
    numbers = ",".join(f"{n}.5" for n in range(16))
    made = model(
        f"t = Transpose<perm=[1,0]>(w) f = Flatten(x) h = MatMul(f, t) n = Add(b, b) "
        f"k = Constant<value=float[2,8] {{{numbers}}}>() y = MatMul(h, k)",
        inputs="float[N,1,2,2] x",
        outputs="float[N,8] y, float[2] n",
        initializers=weights(w=(2, 4), b=(2,)),
    )
    names = randomised(made.SerializeToString(), tmp_path / "r.onnx")
    assert len(names) == 2
    x = np.ones((1, 1, 2, 2), np.float32)
    before, after = (run(m, {"x": x}) for m in (made.SerializeToString(), str(tmp_path / "r.onnx")))
    assert not np.allclose(before["y"], after["y"])
    np.testing.assert_array_equal(before["n"], after["n"])
    w = arrays(tmp_path / "r.onnx")
    assert not np.array_equal(w["w"], weights(w=(2, 4))["w"])


def test_biases_and_norms_stay(tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes(cnn().SerializeToString())
    randomised(source, tmp_path / "r.onnx")
    assert changed(source, tmp_path / "r.onnx") == {"w", "v"}


def test_quantised_weights_stay_in_their_type(tmp_path):
    w = np.array([[[[120]]], [[[127]]], [[[-128]]], [[[90]]]], np.int8)
    scalars = {"s": np.float32(0.1), "z": np.int8(0)}
    made = model(
        "d = DequantizeLinear(w, s, z) c = Conv(x, d) p = GlobalAveragePool(c) y = Flatten(p)",
        inputs="float[N,1,2,2] x",
        outputs="float[N,4] y",
        initializers={"w": w, **{k: np.array(v) for k, v in scalars.items()}},
    )
    randomised(made.SerializeToString(), tmp_path / "r.onnx", seed=1)
    new = arrays(tmp_path / "r.onnx")
    assert new["w"].dtype == np.int8
    assert not np.array_equal(new["w"], w)
    assert new["s"] == np.float32(0.1)
    run(str(tmp_path / "r.onnx"), {"x": np.ones((1, 1, 2, 2), np.float32)})


def test_a_shared_weight_is_drawn_once(tmp_path):
    made = model(
        "f = Flatten(x) a = MatMul(f, w) y = MatMul(a, w)",
        inputs="float[N,1,2,2] x",
        outputs="float[N,4] y",
        initializers=weights(w=(4, 4)),
    )
    one, two = tmp_path / "1.onnx", tmp_path / "2.onnx"
    for path, count in ((one, 1), (two, 2)):
        assert len(randomised(made.SerializeToString(), path, cascade=count)) == count
    np.testing.assert_array_equal(arrays(one)["w"], arrays(two)["w"])


@pytest.mark.parametrize("cascade", [0, 3])
def test_a_cascade_that_is_no_number_of_layers_is_refused(tmp_path, cascade):
    with pytest.raises(ModelError, match=rf"cascade is {cascade}, but it counts .* backwards: 1 to 2\."):
        randomised(cnn().SerializeToString(), tmp_path / "r.onnx", cascade=cascade)
    assert not (tmp_path / "r.onnx").exists()


def test_a_seed_that_is_none_is_refused(tmp_path):
    for seed in (-1, 0.5):
        with pytest.raises(InputError, match=rf"seed of the random weights is a whole .*, not {seed}\.$"):
            randomised(cnn().SerializeToString(), tmp_path / "r.onnx", seed)


def test_a_model_without_weights_is_refused(tmp_path):
    made = model("p = GlobalAveragePool(x) y = Flatten(p)", outputs="float[N,3] y")
    with pytest.raises(ModelError, match="no layer with weights that could be made random"):
        randomised(made.SerializeToString(), tmp_path / "r.onnx")


def test_gradcam_of_the_demo_passes_the_sanity_check(tmp_path):
    """Its maps change with the weights; the mean of the activations, of the input's edges, changes less."""
    (tmp_path / "m.cam.onnx").write_bytes(demo.model_bytes())
    randomised(tmp_path / "m.cam.onnx", tmp_path / "r.cam.onnx")
    photos = [m.image for m in mosaics.mosaics(mosaics.held_out(), 4)]
    explainers = [Explainer(tmp_path / name, ["cpu"]) for name in ("m.cam.onnx", "r.cam.onnx")]
    names = ["randomised_ssim", "randomised_rank"]
    found = evaluate(explainers[0], photos, ["gradcam"], names, randomised=explainers[1])
    assert found.rows[0].measured["randomised_ssim"].mean < 0.6
    assert abs(found.rows[0].measured["randomised_rank"].mean) < 0.6
    same = evaluate(explainers[0], photos[:1], ["gradcam"], names, randomised=explainers[0])
    assert same.rows[0].measured["randomised_ssim"].mean == pytest.approx(1)
