"""Finer targets: which classes they refer to, and the derivative of their score."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcam import Explainer, methods
from onnxcam.answers import logits_of
from onnxcam.contract import Score, Seed
from onnxcam.errors import TargetError
from onnxcam.smoothing import Noise
from onnxcam.targets import Contrast, Finer, Weights, finer_weights, refined, resolve

from .. import nets

pytest.importorskip("onnx_ir")
from onnxcam.export import rewrite_onnx

SCORE = Score("y", "y", seeds=(Seed("y", "y", shape=("N", 6)),))
Y = np.array([2.0, 1.5, -1.0, 2.25, 0.0, 1.0])  # nearest to 2: 2.25, 1.5, then 1; then 0, then -1


def slope(y, of, finer, step=1e-6):
    """∂f/∂y by central differences of the score that is returned; the classes stay those of y."""
    fixed = Finer(of, [int(c) for c in chosen(y, of, finer)], finer.weight, finer.mean)
    each = []
    for k in range(len(y)):
        up, down = (finer_weights(y + s * step * np.eye(len(y))[k], of, fixed)[1] for s in (1, -1))
        each.append((up - down) / (2 * step))
    return np.array(each)


def chosen(y, of, finer):
    """The classes that differ least from the class, by sorting."""
    if not isinstance(finer.references, int):
        return finer.references
    return sorted((c for c in range(len(y)) if c != of), key=lambda c: abs(y[c] - y[of]))[: finer.references]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("references", [1, 3, 5, [2, 4], [4]], ids=str)
@pytest.mark.parametrize("weight", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("of", [0, 2, 3])
def test_weights_are_the_derivative(of, weight, references, mean):
    finer = Finer(of, references, weight, mean)
    weights, score = finer_weights(Y, of, finer)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, slope(Y, of, finer), atol=1e-6)
    others = chosen(Y, of, finer)
    p = np.exp(Y) / np.exp(Y).sum()
    parts = p[others] / p[others].sum() if not mean else np.full(len(others), 1 / len(others))
    assert score == pytest.approx(float(parts @ (Y[of] - weight * Y[others])), rel=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_weights_are_autograds(seed, scale):
    """The softmax's own derivative is part of it: the library detaches nothing."""
    torch = pytest.importorskip("torch")
    y = (scale * np.random.default_rng(seed).normal(size=20)).astype(np.float32)
    of = int(y.argmax())
    others = chosen(y, of, Finer())
    given = torch.tensor(y, dtype=torch.float64, requires_grad=True)
    p = torch.softmax(given, -1)
    parts = sum(p[c] * (given[of] - given[c]) for c in others)
    score = parts / (sum(p[c] for c in others) + 1e-9)
    score.backward()
    weights, found = finer_weights(y, of, Finer())
    # Where the references' share is near the authors' 1e-9, float32's logits decide.
    np.testing.assert_allclose(weights, given.grad.numpy(), rtol=1e-5, atol=1e-6)
    assert found == pytest.approx(float(score.detach()), rel=1e-5, abs=1e-6)
    detached = torch.tensor(y, dtype=torch.float64, requires_grad=True)
    q = torch.softmax(detached.detach(), -1)
    (sum(q[c] * (detached[of] - detached[c]) for c in others) / sum(q[c] for c in others)).backward()
    if scale == 3.0:
        assert np.abs(weights - detached.grad.numpy()).max() > 1e-3


def test_without_weight_the_mean_is_the_class_itself():
    weights, score = finer_weights(Y, 3, Finer(weight=0.0, mean=True))
    np.testing.assert_array_equal(weights, np.eye(6)[3])
    assert score == Y[3]


def test_equal_logits_are_taken_in_their_order():
    weights, _ = finer_weights(np.zeros(5), 2, Finer(references=2, mean=True))
    np.testing.assert_allclose(weights, [-0.5, -0.5, 1, 0, 0])


def test_what_a_finer_target_becomes():
    rows = resolve([None, Finer("c", ["a", 1])], 2, 6, [*"abcdef"], SCORE)
    assert rows.class_index.tolist() == [-1, 2]
    assert rows.finer == (None, Finer("c", (0, 1)))
    every = refined(rows, {"references": 3, "weight": 0.6, "mean": True}, SCORE)
    assert every.finer == (Finer(None, 3, 0.6, mean=True), Finer("c", (0, 1)))
    contrast = resolve(Contrast(1, 2), 1, 6, None, SCORE)
    assert refined(contrast, {}, SCORE).finer == ()  # weights of one's own stay as they are


@pytest.mark.parametrize(
    ("finer", "message"),
    [
        (Finer(references=0), r"^A Finer has 1 to 5 classes to refer to, not 0\.$"),
        (Finer(references=6), r"^A Finer has 1 to 5 classes to refer to, not 6\.$"),
        (Finer(references=[]), r"^A Finer has 1 to 5 classes to refer to, not 0\.$"),
        (Finer(references=[9]), r"^Class index 9 is out of range: the model has 6 classes"),
        (Finer(of="zebra"), r"^There is no label 'zebra'"),
    ],
    ids=str,
)
def test_unusable_finer_targets(finer, message):
    with pytest.raises(TargetError, match=message):
        resolve(finer, 1, 6, [*"abcdef"], SCORE)


def test_a_file_without_weights_says_how_to_get_them():
    message = r'^The file takes no weights for its score.*score=\{"seed": True\}.*onnxcam rewrite --seed'
    with pytest.raises(TargetError, match=message):
        resolve(Finer(), 1, 6, None, Score("y", "y"))
    with pytest.raises(TargetError, match=message):
        refined(resolve(None, 1, 6, None, Score("y", "y")), {}, Score("y", "y"))
    other = Score("y", "y", task="embedding")
    with pytest.raises(TargetError, match=r"^A Finer is a target of a classification, and this"):
        resolve(Finer(), 1, 6, None, other)


@pytest.fixture(scope="module", params=["", "Softmax", "Sigmoid"])
def explainer(request, tmp_path_factory):
    """Six classes, behind what the parameter says."""
    head = f"y = {request.param}(l)" if request.param else "y = Identity(l)"
    made = nets.model(
        "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Tanh(c) g = GlobalAveragePool(r) h = Conv(g, u)"
        f" l = Flatten(h) {head}",
        outputs="float[N,6] y",
        initializers={k: 3 * v for k, v in nets.weights(w=(4, 3, 3, 3), b=(4,), u=(6, 4, 1, 1)).items()},
    )
    folder = tmp_path_factory.mktemp("finer")
    onnx.save(made, folder / "m.onnx")
    rewrite_onnx(folder / "m.onnx", folder / "m.cam.onnx", layers="r", score={"seed": True})
    return Explainer(folder / "m.cam.onnx", ["cpu"])


@pytest.mark.parametrize(
    ("method", "mean", "weight"), [("finercam", False, 1.0), ("finercam:torchcam", True, 0.6)]
)
def test_maps_of_each_image_by_its_own_nearest_classes(explainer, method, mean, weight):
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    result = explainer.explain_tensor(x, method)
    plain = explainer.explain_tensor(x, target=[[*range(6)]] * 3)
    by_class = plain.maps.reshape(3, 6, 8, 8)
    y = result.outputs["y"].astype(float)
    activation = explainer.record.score.activation
    before = {"softmax": np.log, "sigmoid": lambda p: np.log(p) - np.log(1 - p), None: lambda p: p}
    logits = before[activation](y)
    for i in range(3):
        of = int(y[i].argmax())
        weights, score = finer_weights(logits[i], of, Finer(of, 3, weight, mean))
        # Grad-CAM is linear in the score's derivative.
        expected = np.tensordot(weights, by_class[i], axes=1)
        np.testing.assert_allclose(result.maps[i], expected, atol=1e-4 * np.abs(by_class[i]).max())
        assert result.class_ids[i] == of
        assert result.scores[i] == pytest.approx(score, abs=1e-4)
    asked = explainer.explain_tensor(x, target=Finer(references=3, weight=weight, mean=mean))
    np.testing.assert_allclose(asked.maps, result.maps, atol=1e-6)


def test_another_method_can_be_finer(explainer):
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    layer = explainer.explain_tensor(x, "layercam", Finer(3, [1], 1.0, mean=True))
    contrast = explainer.explain_tensor(x, "layercam", Contrast(3, 1))
    np.testing.assert_allclose(layer.maps, contrast.maps, atol=1e-6)
    assert methods.get("finercam").finer == {"references": 3, "weight": 1.0}


@pytest.mark.parametrize("smooth", ["tta", Noise(3, 0.3)], ids=["tta", "noise"])
def test_changed_copies_are_asked_for_the_weights_of_the_unchanged_image(explainer, smooth):
    """The derivative of one and the same functional is averaged, whatever the copies themselves score."""
    x = np.random.default_rng(2).standard_normal((2, 3, 8, 8)).astype(np.float32)
    plain = explainer.explain_tensor(x, "finercam")
    y = plain.outputs["y"].astype(np.float32)
    logits = logits_of(explainer.record.score.activation, y)
    functionals = [
        Weights(finer_weights(logits[i], int(of), Finer(int(of)))[0]) for i, of in enumerate(plain.class_ids)
    ]
    expected = explainer.explain_tensor(x, target=functionals, smooth=smooth).maps
    found = explainer.explain_tensor(x, "finercam", smooth=smooth)
    np.testing.assert_allclose(found.maps, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found.maps - plain.maps).max() > 1e-2 * np.abs(plain.maps).max()
    assert found.class_ids.tolist() == plain.class_ids.tolist()


@pytest.fixture(scope="module")
def with_tails(tmp_path_factory):
    """A file of two layers, of any batch or of a fixed one, with what follows each of them."""
    made = {}
    for batch in ("N", 2):
        folder = tmp_path_factory.mktemp("tails")
        net = nets.model(
            "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Tanh(c) d = Conv<pads=[1,1,1,1]>(r, k) e = Add(d, r) "
            "s = Softplus(e) g = GlobalAveragePool(s) h = Conv(g, u) y = Flatten(h)",
            f"float[{batch},3,8,8] x",
            f"float[{batch},6] y",
            nets.weights(w=(4, 3, 3, 3), b=(4,), k=(4, 4, 3, 3), u=(6, 4, 1, 1)),
        )
        path = folder / "m.cam.onnx"
        rewrite_onnx(net.SerializeToString(), path, layers=["r", "d"], score={"seed": True}, tail=True)
        made[batch] = path
    return made


TARGETS = [[None, Finer(2, [0, 1]), Contrast(1, 3)], None, [Finer(weight=0.5, mean=True), 4]]


@pytest.mark.parametrize("layers", ["r", "d", None])
@pytest.mark.parametrize("method", ["finercam", "finercam:torchcam", "layercam", "eigencam"])
@pytest.mark.parametrize("batch", ["N", 2])
def test_behind_a_tail_the_file_runs_once(with_tails, batch, method, layers):
    x = np.random.default_rng(2).standard_normal((3, 3, 8, 8)).astype(np.float32)
    alone = Explainer(with_tails[batch].read_bytes(), ["cpu"])  # of bytes: no file lies beside it
    explainer = Explainer(with_tails[batch], ["cpu"], max_batch=2)
    for target in [TARGETS, [Finer(), Finer(5), Finer(1, 2)]]:
        whole, found = (e.explain_tensor(x, method, target, layers) for e in (alone, explainer))
        for name in whole.layer_maps:
            large = np.abs(whole.layer_maps[name]).max()
            np.testing.assert_allclose(found.layer_maps[name], whole.layer_maps[name], atol=1e-5 * large)
        np.testing.assert_allclose(found.heatmaps, whole.heatmaps, atol=1e-4)
        np.testing.assert_array_equal(found.class_ids, whole.class_ids)
        np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.outputs["y"], whole.outputs["y"], rtol=1e-5)
        assert found.labels == whole.labels
        assert found.passes == 3
        assert whole.passes > len(whole)
        assert found.tail_passes == len(found)
    one = explainer.explain_tensor(x[:1], "finercam")
    assert (one.passes, one.tail_passes) == (1, 1)
    # Images without such a target, in a run of their own, are not run again.
    last = explainer.explain_tensor(x, target=[0, None, Finer()])
    assert (last.passes, last.tail_passes) == (3, 1)


def test_without_the_tails_file_it_runs_twice_and_says_so(with_tails, tmp_path, caplog):
    x = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)
    moved = tmp_path / "m.cam.onnx"
    moved.write_bytes(with_tails["N"].read_bytes())
    found = Explainer(moved, ["cpu"]).explain_tensor(x, "finercam")
    assert (found.passes, found.tail_passes) == (4, 0)
    assert "Going on without it: the whole file runs twice." in caplog.text
    expected = Explainer(with_tails["N"], ["cpu"]).explain_tensor(x, "finercam")
    np.testing.assert_allclose(found.maps, expected.maps, atol=1e-5)
