"""Maps of methods that mask the input equal the libraries' of the module that a file came from."""

import networks
import numpy as np
import pytest
from torchvision_shim import import_pytorch_grad_cam

from onnxcam import Explainer
from onnxcam.postprocess import scale

torch = pytest.importorskip("torch")
torchcam = pytest.importorskip("torchcam")
pytestmark = pytest.mark.torch

CLASS = 7


@pytest.fixture(scope="module")
def pgc():
    return import_pytorch_grad_cam()


@pytest.fixture(scope="module")
def explainer(exported):
    return Explainer(exported.path.read_bytes(), "cpu", session_options={"log_severity_level": 3})


def image_of(exported):
    return networks.steady(exported)[:1]


@networks.each("resnet18", "mobilenet_v3_large")
def test_scorecam_of_pytorch_grad_cam(exported, explainer, pgc):
    image = image_of(exported)
    for layer in exported.layers:
        outputs = [pgc.utils.model_targets.ClassifierOutputTarget(CLASS)]
        with pgc.ScoreCAM(exported.model, [exported.model.get_submodule(layer)]) as theirs:
            expected = theirs(image.clone(), outputs)
        ours = explainer.explain_tensor(image.numpy(), "scorecam:pgc", CLASS, layer)
        np.testing.assert_allclose(ours.heatmaps, expected, rtol=0, atol=1e-4, err_msg=layer)


@networks.each("resnet18", "mobilenet_v3_large")
def test_scorecam_of_torchcam(exported, explainer):
    image = image_of(exported)
    for layer in exported.layers:
        with torchcam.methods.ScoreCAM(exported.model, layer, input_shape=tuple(image.shape[1:])) as theirs:
            with torch.no_grad():
                exported.model(image)
            [expected] = theirs(CLASS)
        ours = explainer.explain_tensor(image.numpy(), "scorecam:torchcam", CLASS, layer)
        ours = scale(np.maximum(ours.maps, 0))
        np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-4, err_msg=layer)


@networks.each("resnet18")
def test_sscam_and_iscam_of_torchcam(exported, explainer, monkeypatch):
    """On a few channels; torch-cam's noise is replaced by ours."""
    image = image_of(exported)
    layer, top = exported.layers[-1], 12
    tensor = {}
    hook = exported.model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: tensor.update(a=output.detach().numpy()[0])
    )
    with torch.no_grad():
        exported.model(image)
    hook.remove()
    spread = tensor["a"].reshape(len(tensor["a"]), -1).std(axis=1)
    chosen = np.sort(np.argsort(-spread, kind="stable")[:top])

    class Some(torch.nn.Module):
        """The network, whose layer keeps the chosen channels, scattered back behind it."""

        def __init__(self):
            super().__init__()
            self.net = exported.model
            self.some = torch.nn.Identity()

        def forward(self, x):
            hook = self.net.get_submodule(layer).register_forward_hook(
                lambda module, args, output: (self.some(output[:, chosen]), output)[1]
            )
            try:
                return self.net(x)
            finally:
                hook.remove()

    some, shape = Some().eval(), tuple(image.shape[1:])
    samples = 3
    noise = np.stack(
        [
            [
                np.random.default_rng((5, k * samples + i)).standard_normal(image.shape[2:], dtype=np.float32)
                for k in range(top)
            ]
            for i in range(samples)
        ]
    )
    for theirs, name, options in [
        (
            torchcam.methods.SSCAM(some, "some", input_shape=shape, num_samples=samples),
            "sscam",
            {"samples": samples, "seed": 5},
        ),
        (
            torchcam.methods.ISCAM(some, "some", input_shape=shape, num_samples=4),
            "iscam",
            {"intervals": 4, "first": 1},
        ),
    ]:
        if name == "sscam":
            draws = [torch.from_numpy(one)[None] for one in np.float32(2) * noise]
            monkeypatch.setattr(theirs._distrib, "sample", lambda size, left=draws: left.pop(0))
        with theirs, torch.no_grad():
            some(image)
            [expected] = theirs(CLASS)
        ours = explainer.explain_tensor(image.numpy(), name, CLASS, layer, top=top, **options)
        ours = scale(np.maximum(ours.maps, 0))
        np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-4, err_msg=name)


@networks.each("resnet18", "mobilenet_v3_large")
def test_occlusion_of_captum(exported, explainer):
    captum = pytest.importorskip("captum.attr")
    image = image_of(exported)
    side = image.shape[-1]
    window, stride = side // 6, side // 12
    theirs = captum.Occlusion(exported.model).attribute(
        image,
        sliding_window_shapes=(3, window, window),
        strides=(3, stride, stride),
        target=CLASS,
        baselines=0.5,
        perturbations_per_eval=8,
    )
    expected = theirs.detach().numpy()[:, 0]  # the same for each colour
    ours = explainer.explain_tensor(
        image.numpy(), "occlusion", CLASS, window=window / side, stride=stride / window, baseline=0.5
    )
    np.testing.assert_allclose(ours.maps, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
