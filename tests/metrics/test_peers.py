"""The libraries' own metric classes, on the same model, images and maps."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from metrics.cases import number, scorer
from torchvision_shim import import_pytorch_grad_cam

from onnxcam.metrics import Case

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    # NumPy 2 says it of torch, where pytorch-grad-cam hands tensors to NumPy.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

SIDE, CLASSES, TARGET = 24, 4, 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(4)]
    layers += [torch.nn.Flatten(), torch.nn.Linear(128, CLASSES), torch.nn.Softmax(1)]
    net = torch.nn.Sequential(*layers).eval()
    with torch.no_grad():
        net[4].weight *= 8  # a score that moves
    return net


@pytest.fixture(scope="module", params=range(3))
def given(request):
    """An image and a smooth map without equal pixels."""
    rng = np.random.default_rng(request.param)
    image = rng.standard_normal((3, SIDE, SIDE)).astype(np.float32)
    y, x = np.mgrid[:SIDE, :SIDE] - rng.uniform(6, 18, 2)[:, None, None]
    heat = np.exp(-(x**2 + y**2) / 60) + 1e-3 * rng.random((SIDE, SIDE))
    return image, (heat / heat.max()).astype(np.float32)


def other_map(x):
    """A map that depends on the input: what stands for a CAM method."""
    heat = np.abs(np.asarray(x)).sum(axis=0)
    return (heat / heat.max()).astype(np.float32)


def a_case(model, image, heatmap, **more):
    @torch.no_grad()
    def scores(batch):
        return model(torch.from_numpy(np.ascontiguousarray(batch)))[:, TARGET].numpy()

    score = scorer(scores)
    clean = float(score(lambda part: image[None], 1)[0])
    return Case(image, heatmap, score, clean, explain=other_map, **more)


# pytorch-grad-cam


@pytest.fixture
def pgc(model, given):
    """Calls a metric of the library's as its users do: (input, cams, targets, model)."""
    import_pytorch_grad_cam()
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    image, own = given

    def call(metric, heatmap=own):
        wanted = [targets.ClassifierOutputTarget(TARGET)]
        found = metric(torch.from_numpy(image[None]), heatmap[None], wanted, model)
        return float(np.asarray(found)[0])

    return call


@pytest.fixture
def quiet(monkeypatch):
    """ROAD's noise is drawn from torch there and from NumPy here: without it they are to agree."""
    import_pytorch_grad_cam()
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    monkeypatch.setattr(road.torch, "randn_like", torch.zeros_like)


def test_confidence_is_pytorch_grad_cams(pgc, model, given):
    library = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    one = a_case(model, *given)
    assert number("drop:pgc", one) == pytest.approx(pgc(library.DropInConfidence()), abs=1e-6)
    assert number("increase", one) == pgc(library.IncreaseInConfidence())
    change = pgc(library.CamMultImageConfidenceChange())
    assert one.shown_score() - one.clean == pytest.approx(change, abs=1e-6)


@pytest.mark.usefixtures("quiet")
def test_road_is_pytorch_grad_cams(pgc, model, given):
    library = pytest.importorskip("pytorch_grad_cam.metrics.road")
    one = a_case(model, *given)
    combined = pgc(library.ROADCombined())
    assert abs(combined) > 1e-3
    assert number("road:pgc", one, noise=0.0) == pytest.approx(combined, abs=2e-6)
    # By rank the same number of pixels goes, up to the rounding of a percentile: 576 pixels.
    assert number("road", one) == pytest.approx(combined, abs=0.01)


@pytest.mark.usefixtures("quiet")
def test_the_morf_average_is_pytorch_grad_cams(pgc, model, given):
    """One side of the combination, with the shares named as each has them: it removes 100 - p."""
    library = pytest.importorskip("pytorch_grad_cam.metrics.road")
    from onnxcam.metrics.road import _change

    one = a_case(model, *given)
    keeps = {("most", p): one.heatmap < np.percentile(one.heatmap, p) for p in (20, 70)}
    wanted = pgc(library.ROADMostRelevantFirstAverage(percentiles=[20, 70]))
    assert _change(one, keeps, 0, 0.0) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.usefixtures("quiet")
def test_where_a_tenth_of_the_map_is_zero_the_library_removes_the_whole_image(pgc, model, given):
    """A rectified map: below the tenth percentile, 0, lies nothing; ``road`` still removes nine tenths."""
    library = pytest.importorskip("pytorch_grad_cam.metrics.road")
    image, heatmap = given
    heatmap = heatmap.copy()
    heatmap[: SIDE // 4] = 0
    one = a_case(model, image, heatmap)
    wanted = pgc(library.ROADMostRelevantFirst(10), heatmap)
    assert wanted == pytest.approx(one.score_of(np.zeros_like(image)) - one.clean, abs=1e-6)
    assert number("road:pgc", one, noise=0.0) == pytest.approx(pgc(library.ROADCombined(), heatmap), abs=2e-6)
    assert abs(number("road", one) - number("road:pgc", one)) > 1e-3


@pytest.mark.usefixtures("quiet")
def test_coherency_complexity_and_arcc_are_pytorch_grad_cams(pgc, model, given):
    library = pytest.importorskip("pytorch_grad_cam.metrics.arcc")

    def method(input_tensor, targets):
        return np.stack([other_map(x.numpy()) for x in input_tensor])

    image, heatmap = given
    one = a_case(model, image, heatmap)
    cams = heatmap[None]
    assert number("complexity", one) == pytest.approx(float(library.Complexity()(cams)[0]), abs=1e-6)
    coherency = library.Coherency()(torch.from_numpy(image[None]), cams, None, model, method)[0]
    assert number("coherency:pgc", one) == pytest.approx(float(coherency), abs=1e-6)
    assert number("coherency", one) == pytest.approx(float(coherency), abs=1e-5)
    assert number("arcc:pgc", one, noise=0.0) == pytest.approx(pgc(library.ARCC(method)), abs=1e-5)


# torch-cam


class Extractor:
    """What torch-cam's metrics ask of a CAM extractor, with a map that is given."""

    def __init__(self, model, heatmap):
        self.model, self.heatmap = model, heatmap

    def __call__(self, class_idx, scores, **_):
        return [torch.from_numpy(self.heatmap[None])]

    def fuse_cams(self, cams):
        return cams[0]

    @contextlib.contextmanager
    def _hooks_off(self):
        yield


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_deletion_and_insertion_are_torch_cams(model, given, steps):
    library = pytest.importorskip("torchcam.metrics")
    image, heatmap = given
    theirs = library.DeletionInsertionMetric(Extractor(model, heatmap), steps=steps)
    theirs.update(torch.from_numpy(image[None]), TARGET)
    one, wanted = a_case(model, image, heatmap), theirs.summary()
    assert number("deletion", one, steps=steps) == pytest.approx(wanted["deletion_auc"], abs=1e-6)
    assert number("insertion:torchcam", one, steps=steps) == pytest.approx(wanted["insertion_auc"], abs=1e-6)


def test_equal_pixels_are_taken_in_torch_cams_order(model, given):
    library = pytest.importorskip("torchcam.metrics")
    image, heatmap = given
    heatmap = np.round(heatmap * 4) / 4  # five values
    theirs = library.DeletionInsertionMetric(Extractor(model, heatmap))
    theirs.update(torch.from_numpy(image[None]), TARGET)
    wanted = theirs.summary()["deletion_auc"]
    assert number("deletion", a_case(model, image, heatmap)) == pytest.approx(wanted, abs=1e-6)


def test_drop_and_increase_are_torch_cams(model, given):
    library = pytest.importorskip("torchcam.metrics")
    image, heatmap = given
    theirs = library.ClassificationMetric(Extractor(model, heatmap))
    theirs.update(torch.from_numpy(image[None]), TARGET)
    one, wanted = a_case(model, image, heatmap), theirs.summary()
    assert number("drop:torchcam", one) == pytest.approx(wanted["avg_drop"], abs=1e-6)
    assert number("drop", one) == pytest.approx(wanted["avg_drop"], abs=1e-5)
    assert number("increase", one) == wanted["conf_increase"]


# captum


def test_infidelity_is_captums(model, given):
    captum = pytest.importorskip("captum.metrics")
    from onnxcam.metrics.fidelity import _squares

    image, heatmap = given
    squares = torch.from_numpy(_squares(heatmap.shape, 50, 0).astype(np.float32))[:, None]

    def perturb(inputs):
        # The square is I; a heatmap is of a pixel, so each of its three channels has a third of it.
        return squares.expand(-1, 3, -1, -1), inputs * (1 - squares)

    wanted = captum.infidelity(
        model,
        perturb,
        torch.from_numpy(image[None]),
        torch.from_numpy(heatmap).expand(1, 3, -1, -1) / 3,
        target=TARGET,
        n_perturb_samples=50,
        normalize=True,
    )
    assert number("infidelity", a_case(model, image, heatmap)) == pytest.approx(float(wanted), rel=1e-4)


def test_sensitivity_is_captums(model, given):
    captum = pytest.importorskip("captum.metrics")
    image, _ = given
    drawn = np.random.default_rng(0).uniform(-0.02, 0.02, (10, *image.shape)).astype(np.float32)

    def explain(inputs):
        # A tuple: of a bare tensor captum broadcasts the samples against each other.
        return (torch.from_numpy(np.stack([other_map(x.numpy())[None] for x in bare(inputs)])),)

    def bare(inputs):
        return inputs[0] if isinstance(inputs, tuple) else inputs

    wanted = captum.sensitivity_max(
        explain,
        torch.from_numpy(image[None]),
        perturb_func=lambda x, *_: bare(x) + torch.from_numpy(drawn),
        n_perturb_samples=10,
    )
    one = a_case(model, image, other_map(image))
    assert number("sensitivity", one) == pytest.approx(float(wanted), rel=1e-4)
