"""The gradients in the file equal torch.autograd's, on whole networks."""

import functools
import itertools

import networks
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@functools.lru_cache(1)
def session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, images, classes=None):
    opened = session(path)
    feeds = {opened.get_inputs()[0].name: images.numpy()}
    if classes is not None:
        feeds["cam.class_index"] = np.asarray(classes, np.int64)
    names = [o.name for o in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feeds), strict=True))


@networks.each(*networks.NETWORKS)
def test_gradients_equal_autograd(exported):
    drawn = np.random.default_rng(0).integers(0, 1000, 3)
    for batch, classes in itertools.product([1, 3], [None, drawn]):
        images = networks.steady(exported)[:batch]
        classes = None if classes is None else classes[:batch]
        scores, activations, gradients = networks.by_autograd(
            exported.model, images, exported.layers, classes
        )
        ours = run(str(exported.path), images, classes)
        np.testing.assert_allclose(ours["output"], scores, atol=1e-4 * np.abs(scores).max())
        for layer in exported.layers:
            found, expected = ours[f"cam.activations.{layer}"], activations[layer]
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
            close(ours[f"cam.gradients.{layer}"], gradients[layer], (layer, batch, classes))
    report = exported.report
    assert report.output_error < 1e-4
    assert report.gradient_error < 1e-2
    assert not any("fixed" in note for note in report.notes)
    assert [layer.name for layer in report.record.layers] == [*exported.layers]
    assert not any(isinstance(layer.shape[0], int) for layer in report.record.layers)


def close(found, expected, case):
    """Cosine, and nearly all elements; the rest sit on the kink of a ReLU or in a max-pool's tie."""
    assert found.shape == expected.shape
    for ours, theirs in zip(found, expected, strict=True):
        a, b = (v.ravel().astype(np.float64) for v in (ours, theirs))
        assert np.abs(b).max() > 0
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        off = np.mean(np.abs(a - b) > 1e-4 * np.abs(b).max())
        assert cosine >= 0.9999, (case, cosine)
        assert off <= 1e-3, (case, off)
