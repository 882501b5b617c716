"""Files that were not rewritten: explained by their scores alone."""

import numpy as np
import onnx
import pytest

from onnxcam import Explainer, errors

from .. import nets

CNN = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) "


def plain(end="y = Gemm<transB=1>(f, v)", outputs="float[N,5] y", **more):
    parts = nets.weights(w=(4, 3, 3, 3), b=(4,), v=(5, 4))
    made = nets.model(CNN + end, outputs=outputs, initializers={**parts, **more})
    return made.SerializeToString()


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def test_a_black_box_is_explained_as_an_explainable_file_is(x, tmp_path):
    rewrite_onnx = pytest.importorskip("onnxcam.export").rewrite_onnx
    rewrite_onnx(plain(), tmp_path / "e.cam.onnx", "r")
    box, whole = Explainer(plain(), "cpu", black_box=True), Explainer(tmp_path / "e.cam.onnx", "cpu")
    assert box.layers == ()
    for method, options in [("rise", {"masks": 30}), ("occlusion", {"window": 0.5})]:
        for target in (None, [[3, 0], [None]]):
            a, b = (e.explain_tensor(x, method, target, **options) for e in (box, whole))
            np.testing.assert_allclose(a.maps, b.maps, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(a.class_ids, b.class_ids)
            np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)
            assert a.passes == b.passes
    # What is explainable stays so.
    again = Explainer(tmp_path / "e.cam.onnx", "cpu", black_box=True)
    assert again.layers == ("r",)
    again.explain_tensor(x, "gradcam")


def test_photos_and_labels_of_a_black_box(x):
    how = {"size": (8, 8), "fit": "stretch", "antialias": False}
    box = Explainer(plain(), "cpu", black_box=True, preprocess=how, labels=[*"abcde"])
    photo = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    result = box.explain(photo, "rise", "c", masks=10)
    assert result.labels == ["c"]
    assert result.heatmaps[0].shape == (20, 30)


def test_probabilities_are_not_taken_twice(x):
    """RISE takes a softmax of logits; of what already is a distribution it takes none."""
    logits = Explainer(plain(), "cpu", black_box=True).explain_tensor(x, "rise", 1, masks=20)
    softmax = plain("z = Gemm<transB=1>(f, v) y = Softmax(z)")
    probs = Explainer(softmax, "cpu", black_box=True).explain_tensor(x, "rise", 1, masks=20)
    np.testing.assert_allclose(logits.maps, probs.maps, rtol=1e-4)


TWO = ("y = Gemm<transB=1>(f, v) z = Mul(y, y)", "float[N,5] y, float[N,5] z")


def test_one_of_several_outputs_is_named(x):
    box = Explainer(plain(*TWO), "cpu", black_box="z")
    lone = Explainer(plain("y = Gemm<transB=1>(f, v) z = Mul(y, y)", "float[N,5] z"), "cpu", black_box=True)
    a, b = (e.explain_tensor(x, "occlusion", 2) for e in (box, lone))
    np.testing.assert_allclose(a.maps, b.maps, rtol=1e-5)
    assert set(a.outputs) == {"y", "z"}


def test_a_function_judges_the_outputs(x):
    """What a classifier and a detector have in common: a number that somebody cares for."""
    box = Explainer(plain(*TWO), "cpu", black_box=lambda found: found["y"][:, 1] - found["z"].sum(axis=1))
    result = box.explain_tensor(x, "occlusion", window=0.5)
    named = {n: Explainer(plain(*TWO), "cpu", black_box=n) for n in "yz"}
    expected = named["y"].explain_tensor(x, "occlusion", 1, window=0.5).maps - sum(
        named["z"].explain_tensor(x, "occlusion", c, window=0.5).maps for c in range(5)
    )
    np.testing.assert_allclose(result.maps, expected, atol=1e-5)
    pair = Explainer(
        plain(*TWO), "cpu", black_box=lambda found: np.stack([found["y"][:, 1], found["z"][:, 2]], 1)
    )
    both = pair.explain_tensor(x, "rise", [[0, 1]] * 2, masks=10)
    assert both.maps.shape == (4, 8, 8)
    scores = named["y"].explain_tensor(x, "rise", 1, masks=10).scores
    np.testing.assert_allclose(both.scores[::2], scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("box", "model", "message"),
    [
        ("q", (), r"^the model \(\d+ bytes\) has no output 'q'\. It has 'y' float32 \(N, 5\)\.$"),
        (
            True,
            TWO,
            r"has 2 outputs with one number per class, \(N, K\): it has 'y' .*Name one, black_box='NAME'",
        ),
        (
            True,
            ("y = Reshape(r, s)", "float[N,4,64] y"),
            r"has no output with one number per class, \(N, K\): it has 'y' float32 \(N, 4, 64\)\. Name one",
        ),
    ],
)
def test_which_output(box, model, message):
    with pytest.raises(errors.TensorError, match=message):
        Explainer(plain(*model, s=np.array([0, 4, -1])), "cpu", black_box=box)


@pytest.mark.parametrize(
    "judge", [lambda f: f["y"][None], lambda f: np.array(["a"]), lambda f: f["y"][:, :0]]
)
def test_a_function_that_gives_something_else(judge, x):
    with pytest.raises(
        errors.TensorError, match=r"^The function of the black box gave .*one number per image"
    ):
        Explainer(plain(), "cpu", black_box=judge).explain_tensor(x, "rise", masks=3)


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "eigencam"])
def test_methods_that_look_at_a_layer(method, x):
    message = (
        rf"^The method '{method}' looks at a layer, and a file that was not rewritten shows none: take one "
        r"of occlusion, rise, or make the file explainable \(`onnxcam rewrite`\)\.$"
    )
    with pytest.raises(errors.MethodError, match=message):
        Explainer(plain(), "cpu", black_box=True).explain_tensor(x, method)


def test_without_black_box_the_way_is_named(x):
    with pytest.raises(errors.NotExplainable, match=r"or open it with black_box=True \(`onnxcam"):
        Explainer(plain(), "cpu")


def test_from_the_command_line(tmp_path, capsys):
    import cv2

    from onnxcam.cli import main

    path = tmp_path / "plain.onnx"
    onnx.save(onnx.load_from_string(plain(*TWO)), path)
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    cv2.imencode(".png", pixels)[1].tofile(tmp_path / "a.png")
    how = ["--preprocess", "imagenet", "--preprocess", "size=8,8", "-o", str(tmp_path / "out")]
    options = ["--option", "masks=5", "--json"]
    assert main(["explain", str(path), str(tmp_path / "a.png"), "--black-box", "y", *how, *options]) == 0
    assert '"method": "rise"' in capsys.readouterr().out
    assert (tmp_path / "out" / "a.png").exists()
