"""Final heatmaps of a file equal pytorch-grad-cam's of the module it came from."""

import itertools

import networks
import numpy as np
import pytest
from torchvision_shim import import_pytorch_grad_cam

from onnxcam import Explainer, methods
from onnxcam.export import export_torch
from onnxcam.factorization import factorized
from onnxcam.postprocess import heatmaps, resize, scale
from onnxcam.targets import Finer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CLASSES = {
    "gradcam": "GradCAM",
    "gradcam++:pgc": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcam_elementwise": "GradCAMElementWise",
}
ALONE = {"segeigencam": "SegEigenCAM", "kpcacam": "KPCA_CAM", "fem": "FEM"}
UNSIGNED = {"eigencam": "EigenCAM", "eigengradcam": "EigenGradCAM"}  # their sign is LAPACK's


@pytest.fixture(scope="module")
def pgc():
    return import_pytorch_grad_cam()


@pytest.fixture(scope="module")
def explainer(exported):
    return Explainer(exported.path.read_bytes(), "cpu", session_options={"log_severity_level": 3})


def tokens_as_grid(tensor):
    """What pytorch-grad-cam's README does with a ViT-Tiny's tokens."""
    grid = tensor[:, 1:].reshape(len(tensor), 14, 14, tensor.shape[2])
    return grid.permute(0, 3, 1, 2)


def layers_of(exported):
    """The layers that pytorch-grad-cam sees as they are: none that an operation in place follows."""
    return [n for n in exported.layers if (exported.name, n) != ("densenet121", "features")]


def up_to_sign(raw, expected, **how):
    """The heatmaps of raw maps or of their negatives, whichever is nearer to what is expected."""
    both = [heatmaps([sign * raw], expected.shape[1:]) for sign in (1, -1)]
    near = [min(pair, key=lambda m: np.abs(m - e).max()) for *pair, e in zip(*both, expected, strict=True)]
    np.testing.assert_allclose(near, expected, rtol=0, atol=1e-4, **how)


def outputs_of(pgc, classes):
    return classes and [pgc.utils.model_targets.ClassifierOutputTarget(c) for c in classes]


@networks.each("resnet18", "mobilenet_v3_large", "densenet121", "timm:vit_tiny_patch16_224")
def test_heatmaps(exported, explainer, pgc):
    last, middle = layers_of(exported)
    images = networks.steady(exported)[:2]
    reshape = tokens_as_grid if "vit" in exported.name else None
    cases = itertools.product(CLASSES, [[last], [middle], [middle, last]], [None, [281, 7]])
    for method, layers, classes in cases:
        outputs = outputs_of(pgc, classes)
        modules = [exported.model.get_submodule(n) for n in layers]
        with getattr(pgc, CLASSES[method])(exported.model, modules, reshape) as theirs:
            expected = theirs(images.clone(), outputs)
        ours = explainer.explain_tensor(images.numpy(), method, classes, layers)
        assert ours.heatmaps.shape == expected.shape == (2, *images.shape[2:])
        assert ours.heatmaps.max() > 0.99
        np.testing.assert_allclose(
            ours.heatmaps, expected, rtol=0, atol=1e-4, err_msg=f"{method} {layers} {classes}"
        )


@networks.each("densenet121")
def test_before_an_operation_in_place_the_file_is_right(exported, explainer, pgc):
    """pytorch-grad-cam's activations there are those after the ReLU: its map is another one."""
    images = networks.steady(exported)[:2]
    ours = explainer.explain_tensor(images.numpy(), layers="features")
    with pgc.GradCAM(exported.model, [exported.model.features]) as theirs:
        overwritten = theirs(images.clone(), None)
    assert np.abs(ours.heatmaps - overwritten).max() > 0.01
    _, activations, gradients = networks.by_autograd(exported.model, images, ["features"])
    assert activations["features"].min() < 0
    expected = methods.get("gradcam").function(activations["features"], gradients["features"])
    np.testing.assert_allclose(ours.maps, expected, atol=1e-4 * np.abs(expected).max())


@networks.each("resnet18", "mobilenet_v3_large")
def test_heatmaps_without_weights(exported, explainer, pgc):
    """Principal components and counts: no sum of weighted channels."""
    images = networks.steady(exported)[:2]
    for method, layer in itertools.product([*ALONE, *UNSIGNED], exported.layers):
        module = exported.model.get_submodule(layer)
        with getattr(pgc, (ALONE | UNSIGNED)[method])(exported.model, [module]) as theirs:
            expected = theirs(images.clone(), outputs_of(pgc, [281, 7]))
        ours = explainer.explain_tensor(images.numpy(), method, [281, 7], layer)
        how = {"err_msg": f"{method} {layer}"}
        if method in ALONE:
            np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4, **how)
        else:
            up_to_sign(ours.maps, expected, **how)


@networks.each("resnet18", "mobilenet_v3_large")
def test_kernels_of_kpcacam(exported, explainer, pgc):
    images = networks.steady(exported)[:2]
    last = exported.layers[0]
    _, activations, _ = networks.by_autograd(exported.model, images, [last])
    near = 1 / float(activations[last].var(axis=(2, 3)).sum(axis=1).max())  # so that cells are alike at all
    for kernel, gamma in [("rbf", near), ("poly", None), ("cosine", None), ("sigmoid", 1e-4)]:
        options = {"kernel": kernel, "gamma": gamma}
        with pgc.KPCA_CAM(exported.model, [exported.model.get_submodule(last)], **options) as theirs:
            expected = theirs(images.clone(), None)
        ours = explainer.explain_tensor(images.numpy(), "kpcacam", layers=last, **options)
        np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4, err_msg=str(options))


@networks.each("resnet18", "mobilenet_v3_large")
def test_fem_by_another_k(exported, explainer, pgc):
    images = networks.steady(exported)[:2]
    with pgc.FEM(exported.model, [exported.model.get_submodule(n) for n in exported.layers], k=1) as theirs:
        expected = theirs(images.clone(), None)
    ours = explainer.explain_tensor(images.numpy(), "fem", k=1)
    np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4)


def augmented(image):
    """The copies of pytorch-grad-cam's aug_smooth."""
    return [factor * one for one in (image, image.flip(3)) for factor in (0.9, 1.0, 1.1)]


# MobileNetV3 and VGG have no images of which all six copies keep away from their kinks; ViT has none.
@networks.each("resnet18", "timm:vit_tiny_patch16_224")
def test_aug_smooth(exported, explainer, pgc):
    images = networks.steady(exported, 1, augmented)
    reshape = tokens_as_grid if "vit" in exported.name else None
    last, middle = exported.layers
    for method, layers in itertools.product(["gradcam", "layercam", "hirescam"], [[last], [middle, last]]):
        modules = [exported.model.get_submodule(n) for n in layers]
        with getattr(pgc, CLASSES[method])(exported.model, modules, reshape) as theirs:
            expected = theirs(images.clone(), outputs_of(pgc, [281]), aug_smooth=True)
        ours = explainer.explain_tensor(images.numpy(), method, [281], layers, smooth="tta")
        np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4, err_msg=f"{method} {layers}")
        assert ours.passes == 7  # the image as it is, which says what is explained, and six copies


@networks.each("resnet18", "mobilenet_v3_large")
def test_eigen_smooth(exported, explainer, pgc):
    images = networks.steady(exported)[:2]
    for method, layer in itertools.product(CLASSES, exported.layers):
        if method == "gradcam_elementwise":  # the library ignores it there
            continue
        with getattr(pgc, CLASSES[method])(exported.model, [exported.model.get_submodule(layer)]) as theirs:
            expected = theirs(images.clone(), outputs_of(pgc, [281, 7]), eigen_smooth=True)
        ours = explainer.explain_tensor(images.numpy(), method, [281, 7], layer, smooth="eigen")
        up_to_sign(ours.maps, expected, err_msg=f"{method} {layer}")


@networks.each("resnet18", "mobilenet_v3_large")
def test_refinecam(exported, explainer, pgc):
    images = networks.steady(exported)[:2]
    theirs = pgc.RefineCAM(exported.model, [exported.model.get_submodule(n) for n in exported.layers])
    expected = theirs(images.clone(), outputs_of(pgc, [281, 7]))
    ours = explainer.explain_tensor(images.numpy(), "refinecam:pgc", [281, 7])
    np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4)
    once = explainer.explain_tensor(images.numpy(), "refinecam:pgc", [281, 7], fuse="product")
    assert np.abs(once.heatmaps - expected).max() > 1e-4  # why the fusion has a name of its own


@networks.each("resnet18", "mobilenet_v3_large")
def test_finercam(exported, pgc, tmp_path):
    images = networks.steady(exported)[:2]
    path = tmp_path / "seeded.cam.onnx"
    export_torch(exported.model, images[:1], path, layers=list(exported.layers), score={"seed": True})
    seeded = Explainer(path, "cpu", session_options={"log_severity_level": 3})
    for layer in exported.layers:
        with pgc.FinerCAM(exported.model, [exported.model.get_submodule(layer)]) as theirs:
            expected = theirs(images.clone())
            other = theirs(images.clone(), target_idx=7, alpha=0.5, comparison_categories=[1, 4])
        ours = seeded.explain_tensor(images.numpy(), "finercam", layers=layer)
        np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4, err_msg=layer)
        scores = ours.outputs[seeded.record.score.output]
        ranked = np.argsort(np.abs(scores - scores[:, 7:8]), axis=1)[:, [1, 4]]
        finer = [Finer(7, references=[int(c) for c in row], weight=0.5) for row in ranked]
        ours = seeded.explain_tensor(images.numpy(), target=finer, layers=layer)
        np.testing.assert_allclose(ours.heatmaps, other, rtol=0, atol=1e-4, err_msg=layer)
        assert ours.class_ids.tolist() == [7, 7]


@pytest.mark.filterwarnings("ignore:Maximum number of iterations 200 reached")  # of both
@networks.each("resnet18", "mobilenet_v3_large")
def test_deep_feature_factorization(exported, explainer, pgc):
    """From the same start the same factors; from a start of our own none that are worse by much."""
    images = networks.steady(exported)
    count = 4
    for layer in exported.layers:
        read = pgc.DeepFeatureFactorization(exported.model, exported.model.get_submodule(layer))
        vectors, maps = read(images.clone(), count)
        activations = read.activations_and_grads.activations[0].numpy()
        channels, cells = activations.shape[1], activations[:, 0].size
        least = activations.min(axis=(0, 2, 3))
        table = activations.swapaxes(0, 1).reshape(channels, cells) - least[:, None]
        # scikit-learn's random start.
        rng, size = np.random.RandomState(0), np.sqrt(table.mean() / count)
        h, w = (np.abs(size * rng.standard_normal(s)) for s in [(count, cells), (channels, count)])
        mine = activations_of(explainer, images, layer)
        ours = factorized(mine, count, start=(w, h))
        same = [
            max(range(count), key=lambda j: np.corrcoef(maps_of(maps, j), enlarged_of(ours, k, images))[0, 1])
            for k in range(count)
        ]
        assert sorted(same) == [*range(count)]
        for k, j in enumerate(same):
            np.testing.assert_allclose(enlarged_of(ours, k, images), maps_of(maps, j), rtol=0, atol=1e-3)
            apart = vectors[:, j] - least  # up to the scale, which a factorization leaves open
            vector = ours.vectors[k] - least
            np.testing.assert_allclose(vector / vector.max(), apart / apart.max(), rtol=0, atol=2e-3)
        theirs = np.linalg.norm(table - (vectors - least[:, None]) @ fitted(table, vectors - least[:, None]))
        error = theirs / np.linalg.norm(table)
        assert abs(ours.error - error) < 1e-3
        assert factorized(mine, count).error < error + 0.02


def activations_of(explainer, images, layer):
    kept = []
    keep = methods.Method("keep", lambda a: kept.append(a) or a.mean(1), ("activations",), "", "")
    explainer.explain_tensor(images.numpy(), keep, layers=layer)
    return kept[0]


def maps_of(maps, j):
    return np.stack([image[j] for image in maps]).ravel()


def enlarged_of(factors, k, images):
    return resize(scale(factors.maps[:, k]), images.shape[2:]).ravel()


def fitted(table, vectors):
    """The best maps for given concepts: the library gives its own scaled ones alone."""
    from scipy.optimize import nnls

    return np.stack([nnls(vectors, column)[0] for column in table.T], axis=1)
