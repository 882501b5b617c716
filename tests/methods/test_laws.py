"""What must hold for any activations and gradients, and the registry's own promises."""

import importlib
import pkgutil

import numpy as np
import pytest

from onnxcam import methods
from onnxcam.errors import MethodError
from onnxcam.postprocess import heatmaps

NAMES = [n for n in methods.names() if {*methods.get(n).needs} <= {"activations", "gradients"}]
# S_k G³ against G²: a factor on G changes α
NONLINEAR = {"gradcam++", "gradcam++:pgc", "refinecam", "refinecam:pgc"}
COMPONENTS = ["eigencam", "eigengradcam", "segeigencam", "kpcacam"]


def run(name, activations, gradients, **kwargs):
    return methods.get(name)(activations=activations, gradients=gradients, **kwargs)


def final(name, activations, gradients):
    return heatmaps([run(name, activations, gradients)], (12, 16), methods.get(name).rectify)


@pytest.fixture(params=["relu", "signed"])
def tensors(request):
    rng = np.random.default_rng(7)
    activations, gradients = rng.normal(size=(2, 3, 6, 4, 5)).astype(np.float32)
    return (np.maximum(activations, 0) if request.param == "relu" else activations), gradients


def gap_linear(activations):
    """The gradient of mean pooling and a linear map."""
    weights = np.random.default_rng(3).normal(size=(len(activations), activations.shape[1], 1, 1))
    return np.broadcast_to(weights / (4 * 5), activations.shape).astype(np.float32), weights


def test_on_a_pooled_linear_head_hirescam_is_gradcam_and_cam_a_multiple(tensors):
    activations, _ = tensors
    gradients, weights = gap_linear(activations)
    gradcam = run("gradcam", activations, gradients)
    np.testing.assert_allclose(run("hirescam", activations, gradients), gradcam, atol=1e-6)
    np.testing.assert_allclose(run("cam", activations, gradients), gradcam * 20, atol=1e-5)
    np.testing.assert_allclose(run("cam", activations, gradients), (weights * activations).sum(1), atol=1e-5)


def test_the_mean_of_cam_is_the_score(tensors):
    activations, _ = tensors
    gradients, weights = gap_linear(activations)
    score = (weights[..., 0, 0] * activations.mean((2, 3))).sum(1)
    np.testing.assert_allclose(run("cam", activations, gradients).mean((1, 2)), score, atol=1e-6)


def test_xgradcam_keeps_the_sum_of_gradient_times_activation(tensors):
    activations, gradients = (t.astype(float) for t in tensors)
    total = (gradients * activations).sum((1, 2, 3))
    np.testing.assert_allclose(run("xgradcam", activations, gradients).sum((1, 2)), total, rtol=1e-9)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "randomcam"])
def test_the_order_of_channels_does_not_matter(name, tensors):
    activations, gradients = tensors
    order = np.random.default_rng(1).permutation(6)
    permuted = run(name, activations[:, order], gradients[:, order])
    np.testing.assert_allclose(permuted, run(name, activations, gradients), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted({*NAMES} - NONLINEAR))
def test_a_positive_factor_of_the_gradient_changes_no_heatmap(name, tensors):
    activations, gradients = tensors
    for factor in (np.float32(0.01), np.float32(37)):
        # 1e-7 is added to the range of the raw map: 1e-5 of a range of 0.01.
        np.testing.assert_allclose(
            final(name, activations, factor * gradients), final(name, activations, gradients), atol=2e-5
        )


@pytest.mark.parametrize("name", sorted(NONLINEAR))
def test_a_factor_of_the_gradient_does_change_gradcampp(name, tensors):
    activations, gradients = tensors
    difference = final(name, activations, 37 * gradients) - final(name, activations, gradients)
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_meet(name, tensors):
    activations, gradients = tensors
    together = final(name, activations, gradients)
    for i in range(len(activations)):
        one = slice(i, i + 1)
        np.testing.assert_allclose(together[one], final(name, activations[one], gradients[one]), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_left_alone(name, tensors):
    activations, gradients = (t.copy() for t in tensors)
    run(name, activations, gradients)
    np.testing.assert_array_equal(activations, tensors[0])
    np.testing.assert_array_equal(gradients, tensors[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_float32_map_agrees_with_float64(name, tensors):
    activations, gradients = tensors
    exact = run(name, activations.astype(float), gradients.astype(float))
    raw = run(name, activations, gradients)
    assert raw.dtype == np.float32
    assert raw.shape == (3, 4, 5)
    # Signed activations may nearly cancel in a denominator, hence 1e-3 of the largest.
    np.testing.assert_allclose(raw, exact, atol=1e-3 * np.abs(exact).max())


class Traced:
    """An array that has nothing but the operators a method may use: no shape, no index, no method."""

    __hash__ = None

    def __init__(self, value):
        self._value = value

    def __bool__(self):
        raise TypeError("a traced value has no truth: use where()")

    def __eq__(self, other):
        raise TypeError("== is not in the vocabulary")


def _operator(name):
    def apply(self, *other):
        return Traced(getattr(self._value, name)(*(_plain(o) for o in other)))

    return apply


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "lt", "gt"):
    setattr(Traced, f"__{_name}__", _operator(f"__{_name}__"))


def _plain(value):
    return value._value if isinstance(value, Traced) else value


class Vocabulary:
    """A namespace with exactly the functions of methods.Namespace."""

    def __init__(self):
        for name in (n for n in vars(methods.Namespace) if not n.startswith("_")):
            setattr(self, name, self._wrap(getattr(np, name)))

    @staticmethod
    def _wrap(function):
        return lambda *args, **kwargs: Traced(function(*map(_plain, args), **kwargs))


def test_the_vocabulary_is_small():
    assert sorted(vars(Vocabulary())) == sorted(
        [
            "abs",
            "einsum",
            "exp",
            "matmul",
            "max",
            "maximum",
            "mean",
            "min",
            "minimum",
            "reshape",
            "sqrt",
            "sum",
            "where",
        ]
    )


@pytest.mark.parametrize("name", [n for n in NAMES if methods.get(n).host is None])
def test_a_method_needs_nothing_but_the_vocabulary(name, tensors):
    record = methods.get(name)
    inputs = {n: Traced(t) for n, t in zip(("activations", "gradients"), tensors, strict=True)}
    traced = record(**inputs, xp=Vocabulary())
    assert isinstance(traced, Traced)
    np.testing.assert_array_equal(traced._value, run(name, *tensors))


def test_names():
    listed = [
        "cam",
        "gradcam",
        "gradcam++",
        "gradcam++:pgc",
        "gradcam_elementwise",
        "hirescam",
        "layercam",
        "xgradcam",
    ]
    assert {*listed} <= {*NAMES}
    assert sorted(methods.names()) == methods.names()


def test_options_are_what_the_function_takes_beside_its_needs():
    own = methods.Method("own", lambda a, *, xp=methods.NUMPY, k=2: a * k, ("activations",), "s", "M = k A")
    assert own.options == {"k": 2}
    assert own(activations=3, gradients=None) == 6
    assert own(activations=3, k=5) == 15
    assert methods.get("gradcam").options == {}


@pytest.mark.parametrize("name", [n for n in NAMES if methods.get(n).products is not None])
def test_the_products_of_a_weighting_add_up_to_its_map(name, tensors):
    products = methods.get(name).products(*tensors)
    assert products.shape == tensors[0].shape
    np.testing.assert_allclose(products.sum(1), run(name, *tensors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", methods.names())
def test_a_record_is_complete(name):
    record = methods.get(name)
    assert record.name == name
    assert record.source
    assert record.formula.startswith(("M = ", "M_ij = "))
    assert {*record.needs} <= {*methods.NEEDS}
    doc = record.function.__doc__ or ""
    for section in ("Args:", "Returns:", "(T, h, w)" if record.runs else "(B, h, w)"):
        assert section in doc, section


@pytest.mark.parametrize("name", ["activation_mean", "eigencam", "kpcacam", "fem"])
def test_without_a_class_no_gradient_is_read(name, tensors):
    assert methods.get(name).needs == ("activations",)
    np.testing.assert_array_equal(run(name, tensors[0], None), run(name, *tensors))


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_knows_no_constant(name, tensors):
    activations, gradients = (t.astype(float) for t in tensors)
    gradients = np.ones_like(gradients)  # so that the weighted channels, too, are moved by a constant
    raw = run(name, activations, gradients)
    np.testing.assert_allclose(raw.mean((1, 2)), 0, atol=1e-9)
    moved = run(name, activations + 3.0, gradients)
    np.testing.assert_allclose(moved, raw, atol=1e-9)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_turned_with_its_cells(name, tensors):
    activations, gradients = (t.astype(float) for t in tensors)
    turned = run(name, activations[..., ::-1, :], gradients[..., ::-1, :])
    np.testing.assert_allclose(turned, run(name, activations, gradients)[:, ::-1], atol=1e-9)


def test_eigencam_has_the_variance_of_the_first_component(tensors):
    activations = tensors[0].astype(float)
    for image, raw in zip(activations, run("eigencam", activations, None), strict=True):
        cells = image.reshape(6, -1) - image.reshape(6, -1).mean(1, keepdims=True)
        assert np.linalg.norm(raw) == pytest.approx(np.linalg.svd(cells, compute_uv=False)[0])


def test_few_are_unrectified_and_cam_alone_is_bound_to_its_head():
    assert [n for n in NAMES if not methods.get(n).rectify] == ["activation_mean", "cam"]
    assert {n: methods.get(n).head for n in NAMES if methods.get(n).head} == {"cam": "gap-linear"}


def test_every_module_of_the_folder_is_registered():
    modules = {m.name for m in pkgutil.iter_modules(methods.__path__)}
    assert {methods.get(n).function.__module__.rpartition(".")[2] for n in methods.names()} == modules


def test_an_unknown_method_names_the_nearest():
    message = r"^No method 'grad-cam'\. Nearest: 'gradcam'.* There are: .*cam, .*gradcam, gradcam\+\+"
    with pytest.raises(MethodError, match=message):
        methods.get("grad-cam")
    with pytest.raises(MethodError, match=r"^No method 'zzz'\. There are: .*cam, "):
        methods.get("zzz")
    with pytest.raises(MethodError, match=r"^No method None\."):
        methods.get(None)


def test_a_name_is_registered_once(monkeypatch):
    module = importlib.import_module("onnxcam.methods")
    with pytest.raises(ValueError, match=r"^The method 'gradcam' is registered twice\.$"):
        module.method("gradcam", source="s", formula="M = 0")(lambda a, g, xp: a)
