"""SESS equals pytorch-grad-cam's, and its resizing torchvision's."""

import numpy as np
import pytest
from torchvision_shim import import_pytorch_grad_cam, import_torchvision

from onnxcam import Explainer, interpolation, sess
from onnxcam.export import rewrite_onnx

from .. import nets

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SIZE = 24, 30
LAYER = "3"
WINDOWS = {"scales": [16, 21, 33], "window": 16, "stride": 10}  # shrunk, and with a rest at the edges
METHODS = {"gradcam": "GradCAM", "layercam": "LayerCAM"}


@pytest.fixture(scope="module")
def pgc():
    return import_pytorch_grad_cam()


@pytest.fixture(scope="module")
def network():
    """Smooth, so that rounding moves no gradient over a kink."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.Tanh(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    ).eval()


@pytest.fixture(scope="module")
def explainer(network, tmp_path_factory):
    """The same network written by hand, which is quicker than exporting it."""
    weights = {f"p{name.replace('.', '')}": value.numpy() for name, value in network.state_dict().items()}
    net = nets.model(
        "a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, p0weight, p0bias) t = Tanh(a) "
        "c = Conv<pads=[1,1,1,1]>(t, p2weight, p2bias) s = Sigmoid(c) m = Mul(c, s) "
        "g = GlobalAveragePool(m) f = Flatten(g) y = Gemm<transB=1>(f, p6weight, p6bias)",
        "float[N,3,H,W] x",
        "float[N,5] y",
        weights,
    )
    path = tmp_path_factory.mktemp("sess") / "net.cam.onnx"
    rewrite_onnx(net.SerializeToString(), path, "m")
    return Explainer(path, "cpu")


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, *SIZE)).astype(np.float32)) * 3


def theirs(pgc, network, images, classes=None, method="gradcam", **how):
    named = {"window": "window_size", "stride": "step_size", "threshold": "theta", "blur": "smooth"}
    named |= {"prefilter": "pre_filter_ratio", "probability": "use_softmax_scores"}
    given = {named.get(name, name): value for name, value in how.items()}
    outputs = classes and [pgc.utils.model_targets.ClassifierOutputTarget(c) for c in classes]
    base = getattr(pgc, METHODS[method])
    with pgc.SESS(network, [network.get_submodule(LAYER)], base_method=base, **given) as library:
        return library(images.clone(), outputs)


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"blur": False, "prefilter": 0.4},
        {"probability": False, "threshold": 0.1},
    ],
    ids=["plain", "filtered", "scores"],
)
def test_heatmaps(pgc, network, explainer, images, method, pool, how):
    for classes in (None, [3, 1]):
        given = {**WINDOWS, "pool": pool, **how}
        expected = theirs(pgc, network, images, classes, method, **given)
        ours = sess.enhanced(explainer, images.numpy(), method, classes, batch=7, **given)
        assert ours.dtype == np.float32
        assert ours.shape == expected.shape == (2, *SIZE)
        assert expected.std() > 0.05
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_by_default(pgc, network, explainer, images):
    """Twelve scales of a square, from the image's size on."""
    square = images[:1, :, :, :24].contiguous()
    expected = theirs(pgc, network, square)
    np.testing.assert_allclose(sess.enhanced(explainer, square.numpy()), expected, rtol=0, atol=1e-4)
    plain = explainer.explain_tensor(square.numpy()).heatmaps
    assert np.abs(plain - expected).max() > 0.1


@pytest.mark.parametrize("size", [(24, 30), (12, 15), (7, 9), (25, 31), (48, 60), (61, 83), (1, 1)], ids=str)
def test_images_are_resized_as_torchvision_does(images, size):
    """In float64: in float32 it rounds the places where it looks, by some 1e-6 of a pixel."""
    import_torchvision()
    functional = pytest.importorskip("torchvision.transforms.functional")
    expected = functional.resize(images[0].double(), list(size)).numpy()
    ours = interpolation.antialiased(images[0].numpy(), size)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=4e-6)
