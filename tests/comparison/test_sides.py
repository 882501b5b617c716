"""What may be named as a side, and how the two are brought together."""

from __future__ import annotations

import builtins
import dataclasses

import cv2
import numpy as np
import onnx
import pytest

from onnxcam import Explainer, preprocess
from onnxcam import images as photos
from onnxcam.comparison.sides import STAGES, Side, matching, recorded, stages
from onnxcam.contract import Layout
from onnxcam.errors import ExportError, InputError, MissingDependency, NotOnnx, TargetError, UnknownLayer

from .. import nets

pytest.importorskip("onnx_ir")
from onnxcam.export import Candidate, rewrite_onnx

#: Of three classes; every pixel is most likely of the first.
SEGMENTER = nets.model(
    "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) y = Conv<pads=[1,1,1,1]>(r, v, b)",
    outputs="float[N,3,8,8] y",
    initializers={**nets.weights(w=(4, 3, 3, 3), v=(3, 4, 3, 3)), "b": np.array([100, 0, 0], np.float32)},
)
UNIT = {"size": (8, 8), "mean": (0.5,), "std": (0.25,)}
FEW = {"preprocess": UNIT}


@pytest.fixture
def here(tmp_path):
    """A plain file, an explainable one of it, and three pictures."""
    onnx.save(nets.cnn(), tmp_path / "m.onnx")
    rewrite_onnx(tmp_path / "m.onnx", tmp_path / "m.cam.onnx", "r", preprocess=UNIT)
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / "pictures" / f"{k}.png"), rng.integers(0, 255, (9, 10, 3), np.uint8))
    return tmp_path


def asked(path, folder, layer="r"):
    """What the explainer itself says of the pictures."""
    explainer = Explainer(path, "cpu")
    found = []
    for picture in sorted(folder.iterdir()):
        x, _ = preprocess.apply(photos.load(picture), explainer.preprocess)
        found.append(explainer.explain_tensor(x[None]))
    return found


def test_explainable_files_are_asked_as_they_are(here):
    first, second = recorded(here / "m.cam.onnx", here / "m.cam.onnx", [here / "pictures"])
    for one in (first, second):
        assert one.names == ("0.png", "1.png", "2.png")
        assert one.maker.layers == ("r",)
        expected = asked(here / "m.cam.onnx", here / "pictures")
        np.testing.assert_allclose(one.maps["r"], np.concatenate([e.maps for e in expected]), atol=1e-6)
        np.testing.assert_allclose(one.scores, np.concatenate([e.scores for e in expected]), atol=1e-6)
        assert one.outputs is not None
        assert one.outputs.shape == (3, 5)


def test_a_plain_file_is_rewritten_at_the_other_sides_layers(here):
    """And prepares photos as the other side does, where nothing else is said."""
    first, second = recorded(here / "m.cam.onnx", here / "m.onnx", [here / "pictures"])
    assert second.maker.layers == ("r",)
    assert second.maker.model == "m.onnx"
    assert second.maker.sha256 != first.maker.sha256
    assert second.maker.preprocess.mean == (0.5,)
    assert second.maker.preprocess.size == (8, 8)
    np.testing.assert_array_equal(second.maps["r"], first.maps["r"])
    other, own = recorded(here / "m.onnx", here / "m.cam.onnx", [here / "pictures"])  # whichever comes first
    np.testing.assert_array_equal(other.maps["r"], own.maps["r"])


def test_a_plain_file_is_explained_by_what_the_other_side_is(here):
    """A task that no shape tells, and the logit or the probability."""
    for score, told in (
        ({"task": "embedding"}, ("embedding", False)),
        ({"task": "classification", "probability": True}, ("classification", True)),
    ):
        rewrite_onnx(here / "m.onnx", here / "o.cam.onnx", "r", score, preprocess=UNIT)
        one, two = recorded(here / "o.cam.onnx", here / "m.onnx", [here / "pictures"])
        _, three = recorded(one, here / "m.onnx", [here / "pictures"])
        four, _ = recorded(Side(here / "o.cam.onnx", layers=["c"]), one, [here / "pictures"])  # its own
        assert [(r.maker.task, r.maker.probability) for r in (one, two, three, four)] == [told] * 4
        np.testing.assert_array_equal(two.maps["r"], one.maps["r"])
        np.testing.assert_array_equal(three.maps["r"], one.maps["r"])


def test_a_background_is_nobodys_class_on_either_side(here):
    onnx.save(SEGMENTER, here / "s.onnx")
    names = ["background", "a", "b"]
    rewrite_onnx(here / "s.onnx", here / "s.cam.onnx", "r", preprocess=UNIT, labels=names)
    one, two = recorded(here / "s.cam.onnx", here / "s.onnx", [here / "pictures"])
    _, three = recorded(one, Side(here / "s.onnx", labels=names), [here / "pictures"])
    assert 0 not in one.class_ids
    for other in (two, three):
        assert other.class_ids.tolist() == one.class_ids.tolist()
        np.testing.assert_array_equal(other.maps["r"], one.maps["r"])


def test_layers_by_grid_where_the_names_differ(here):
    model = nets.cnn()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["renamed" if name == "r" else name for name in names]
    onnx.save(model, here / "other.onnx")
    first, second = recorded(here / "m.cam.onnx", here / "other.onnx", [here / "pictures"])
    assert second.maker.layers == ("renamed",)
    np.testing.assert_array_equal(second.maps["renamed"], first.maps["r"])


def test_named_layers_of_an_explainable_file_are_rewritten(here):
    side = Side(here / "m.cam.onnx", layers=["c"])
    first, _ = recorded(side, here / "m.cam.onnx", [here / "pictures"])
    assert first.maker.layers == ("c",)
    with pytest.raises(UnknownLayer, match="nowhere"):
        recorded(Side(here / "m.cam.onnx", layers=["nowhere"]), here / "m.cam.onnx", [here / "pictures"])


def test_recordings_need_no_photos(here):
    first, second = recorded(here / "m.cam.onnx", here / "m.cam.onnx", [here / "pictures"])
    first.save(here / "run.npz")
    first.save(here / "RUN.NPZ")
    recorded(here / "RUN.NPZ", second)
    again, same = recorded(here / "run.npz", second)
    assert same is second
    np.testing.assert_array_equal(again.maps["r"], first.maps["r"])
    one, live = recorded(
        here / "run.npz", here / "m.onnx", [here / "pictures"]
    )  # asked where the recording was
    assert live.maker.layers == ("r",)
    np.testing.assert_array_equal(one.maps["r"], live.maps["r"])


def test_a_class_by_number_is_the_references(here):
    """Where the candidate has the classes in another order, its own number of the same label is explained."""
    names = ["ant", "bee", "cat", "dog", "eel"]
    one, two = Side(here / "m.cam.onnx", labels=names), Side(here / "m.cam.onnx", labels=names[::-1])
    for target in (1, "bee"):
        first, second = recorded(one, two, [here / "pictures"], target=target)
        assert first.class_ids.tolist() == [1] * 3
        assert second.class_ids.tolist() == [3] * 3
        assert set(first.labels) == set(second.labels) == {"bee"}
        _, live = recorded(first, two, [here / "pictures"], target=target)
        assert live.class_ids.tolist() == [3] * 3
    first, second = recorded(one, here / "m.cam.onnx", [here / "pictures"], target=1)
    assert second.class_ids.tolist() == [1] * 3  # without labels the numbers are the same
    with pytest.raises(TargetError, match="Class index 5 is out of range"):
        recorded(one, two, [here / "pictures"], target=5)
    with pytest.raises(InputError, match="The class lists differ"):
        recorded(one, Side(here / "m.cam.onnx", labels=["fox", *names[1:]]), [here / "pictures"], target=1)


def test_errors_say_of_which_side_they_are(here):
    nowhere = Side(here / "m.onnx", layers=["nowhere"])
    with pytest.raises(
        UnknownLayer, match=r"^The candidate \('.*m\.onnx'\): The model has no layer 'nowhere'"
    ):
        recorded(here / "m.cam.onnx", nowhere, [here / "pictures"])
    with pytest.raises(
        UnknownLayer, match=r"^The reference \('.*m\.onnx'\): The model has no layer 'nowhere'"
    ):
        recorded(nowhere, here / "m.cam.onnx", [here / "pictures"])
    with pytest.raises(NotOnnx, match=r"^The candidate: There is no file '.*none\.onnx'"):
        recorded(here / "m.cam.onnx", here / "none.onnx", [here / "pictures"])
    other = Side(here / "m.cam.onnx", preprocess={**UNIT, "size": (9, 9)})
    with pytest.raises(InputError, match=r"^The candidate \('.*m\.cam\.onnx'\): The input 'x' wants float32"):
        recorded(here / "m.cam.onnx", other, [here / "pictures"])


def test_models_need_photos(here):
    with pytest.raises(InputError, match=r"m\.cam\.onnx' is a model, and there are no photos to ask"):
        recorded(here / "m.cam.onnx", here / "m.cam.onnx")


def test_how_a_side_runs_is_recorded(here):
    other = Side(here / "m.cam.onnx", optimization="disable", session_options={"intra_op_num_threads": 1})
    first, second = recorded(Side(here / "m.cam.onnx", providers="cpu"), other, [here / "pictures"])
    assert first.maker.runtime["optimization"] == "all"
    assert second.maker.runtime["optimization"] == "disable"
    assert second.maker.runtime["intra_op_num_threads"] == "1"
    assert second.maker.runtime["providers"] == "CPUExecutionProvider"
    np.testing.assert_allclose(second.maps["r"], first.maps["r"], atol=1e-5)


def test_photos_have_to_be_prepared_somehow(here):
    rewrite_onnx(here / "m.onnx", here / "bare.cam.onnx", "r")
    with pytest.raises(InputError, match=r"bare\.cam\.onnx' records no preprocessing .* --preprocess, or"):
        recorded(here / "bare.cam.onnx", here / "bare.cam.onnx", [here / "pictures"])
    side = Side(here / "bare.cam.onnx", preprocess=UNIT)
    assert len(recorded(side, here / "bare.cam.onnx", [here / "pictures"])[1]) == 3


@pytest.mark.torch
def test_a_pytorch_model_is_exported_at_the_same_module(here, monkeypatch):
    pytest.importorskip("torch")
    (here / "sides_models.py").write_text(
        "import torch\n"
        "def other():\n"
        "    return make(1)\n"
        "def make(seed=0):\n"
        "    torch.manual_seed(seed)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 5))\n"
    )
    monkeypatch.chdir(here)
    side = Side("sides_models:make", layers=["1"], preprocess=UNIT, shape=(1, 3, 8, 8))
    first, second = recorded(side, Side("sides_models:make", shape=(1, 3, 8, 8)), [here / "pictures"])
    assert first.maker.model == "sides_models:make"
    again, other = recorded(side, dataclasses.replace(side, source="sides_models:other"), [here / "pictures"])
    assert again.maker.sha256 == first.maker.sha256  # of what it was exported to
    assert len(other.maker.sha256) == 64
    assert other.maker.sha256 != first.maker.sha256  # other weights, another model
    assert first.maker.layers == second.maker.layers == ("1",)
    np.testing.assert_allclose(first.maps["1"], second.maps["1"], atol=1e-6)
    with pytest.raises(InputError, match=r"'sides_models:make' is a PyTorch model, whose layers are"):
        recorded(dataclasses.replace(side, layers=STAGES), side, [here / "pictures"])
    with pytest.raises(ExportError, match="'sides_models' has no 'missing'"):
        recorded(Side("sides_models:missing"), side, [here / "pictures"])


@pytest.mark.parametrize(
    ("source", "absent", "message"),
    [
        ("m.onnx", "onnxcam.export", r"is not explainable yet, .* `pip install \"onnxcam\[export\]\"`"),
        (
            "models:make",
            "torch",
            r"is a PyTorch model, and torch .* `pip install \"onnxcam\[torch\]\"`",
        ),
    ],
)
def test_what_is_missing_to_make_a_model_explainable(here, monkeypatch, source, absent, message):
    real = builtins.__import__

    def without(name, globals=None, locals=None, fromlist=(), level=0):
        package = (globals or {}).get("__package__") or ""
        whole = f"{package.rpartition('.')[0]}.{name}" if level == 2 else name
        if whole == absent:
            raise ImportError(f"No module named {absent!r}", name=absent)
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.chdir(here)
    with pytest.raises(MissingDependency, match=message):
        recorded(Side(source, **FEW), here / "m.cam.onnx", [here / "pictures"])


def candidate(name, grid):
    return Candidate(name, name, "Conv", ("N", 4, *grid), Layout(), "")


#: The best first, then from the score to the input, as list_layers gives them.
LISTED = [
    candidate("last", (4, 4)),
    candidate("pooled", (1, 1)),
    candidate("before", (4, 4)),
    candidate("middle", (8, 8)),
    candidate("early", (8, 8)),
    candidate("open", ("h", "w")),
]


def test_the_last_layer_of_each_resolution():
    assert stages(LISTED) == ["middle", "last"]


def test_matching_by_name_then_by_grid():
    assert matching(LISTED, {"before": (4, 4), "other": (8, 8)}) == ["before", "middle"]
    assert matching(LISTED, {"a": (4, 4), "b": (4, 4)}) == ["last"]
    assert matching(LISTED, {"none": (5, 5)}) == []


def test_stages_of_a_file(here):
    model = nets.model(
        "a = Conv<pads=[1,1,1,1]>(x, w, wb) e = Relu(a) c = Conv<pads=[1,1,1,1], strides=[2,2]>(e, u, wb)"
        f" r = Relu(c) {nets.HEAD}",
        initializers=nets.weights(w=(4, 3, 3, 3), u=(4, 4, 3, 3), wb=(4,), v=(5, 4), b=(5,)),
    )
    onnx.save(model, here / "deep.onnx")
    first, second = recorded(
        Side(here / "deep.onnx", layers=STAGES, **FEW),
        Side(here / "deep.onnx", layers=STAGES),
        [here / "pictures"],
    )
    assert first.maker.layers == second.maker.layers == ("e", "r")
    assert first.maps["e"].shape == (3, 8, 8)
    assert first.maps["r"].shape == (3, 4, 4)
