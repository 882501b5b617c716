"""``onnxcam export``: how a model and its inputs are named."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from onnxcam.cli import export
from onnxcam.errors import InputError

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytestmark = pytest.mark.torch

MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def make():
    return Net()

class space:
    net = Net()

number = 3
needs = lambda a: a
three = lambda: 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with modules in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "cli_models.py").write_text(MODULE)
    (tmp_path / "cli_needs.py").write_text("import not_a_package_of_anyone\n")
    (tmp_path / "cli_raises.py").write_text("1 / 0\n")
    yield tmp_path
    for name in ("cli_models", "cli_needs", "cli_raises"):
        sys.modules.pop(name, None)


def test_export_of_a_factory_in_the_current_folder(cli, here):
    names = here / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    ran = cli(
        *("export", "cli_models:make", "--layer", "body.1", "--input", "1x3x16x16", "-o", "made.cam.onnx"),
        *("--preprocess", "half", "--labels", names, "--score", "output", "--json"),
    )
    assert ran.status == 0, ran.err
    assert ran.data["path"] == "made.cam.onnx"
    assert ran.data["gradient_error"] < 1e-5
    assert [layer["name"] for layer in ran.data["record"]["layers"]] == ["body.1"]
    assert ran.data["record"]["labels"] == list("abcde")
    assert ran.data["record"]["preprocess"]["size"] == [16, 16]
    assert (here / "made.cam.onnx").exists()


@pytest.mark.parametrize("spec", ["cli_models:make", "cli_models:Net", "cli_models:space.net"])
def test_a_model_is_a_factory_a_class_or_an_object(here, spec):
    from onnxcam.export.factory import make_module

    assert isinstance(make_module(spec), torch.nn.Module)


def test_everything_reaches_the_library(cli, here, monkeypatch):
    seen = {}

    def fake(model, example, target, layers, **more):
        seen.update(more, model=model, example=example, target=target, layers=layers)
        raise InputError("enough")

    monkeypatch.setattr("onnxcam.export.export_torch", fake, raising=False)
    ran = cli(
        *("export", "cli_models:space.net", "-i", "x:1x3x8x8", "-i", "ids:int64:2x16", "-l", "a", "-l", "b"),
        *("--probability", "--dynamic-size", "--no-verify", "--preprocess", "mean=1,2,3"),
    )
    assert (ran.status, ran.err) == (2, "error: enough\n")
    assert str(seen["target"]) == "net.cam.onnx"
    assert seen["layers"] == ["a", "b"]
    assert {k: (v.dtype, tuple(v.shape)) for k, v in seen["example"].items()} == {
        "x": (torch.float32, (1, 3, 8, 8)),
        "ids": (torch.int64, (2, 16)),
    }
    assert seen["probability"]
    assert seen["dynamic_size"]
    assert not seen["verify"]
    assert seen["preprocess"] == {"mean": [1, 2, 3]}
    assert seen["labels"] is None


def test_inputs_without_names_are_positional():
    one = export.example_inputs([export.parse_input("2x3")])
    assert tuple(one.shape) == (2, 3)
    two = export.example_inputs([export.parse_input(t) for t in ("2x3", "bool:4")])
    assert [t.dtype for t in two] == [torch.float32, torch.bool]
    assert two[1].all()
    again = export.example_inputs([export.parse_input("2x3")])
    np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x3x224x224", ("", "float32", (1, 3, 224, 224))),
        ("float16:1x3", ("", "float16", (1, 3))),
        ("ids:int64:1x16", ("ids", "int64", (1, 16))),
        ("image:1X3", ("image", "float32", (1, 3))),
        ("7", ("", "float32", (7,))),
    ],
)
def test_input_specs(text, expected):
    assert export.parse_input(text) == expected


@pytest.mark.parametrize("text", ["", "1x3xax2", "1x0", "a:b:c:1x2", "1x-3", "1,3", "image:"])
def test_bad_input_specs(cli, text):
    ran = cli("export", "a:b", "-i", text)
    assert ran.status == 2
    assert f"--input {text!r} is not [name:][dtype:]shape with a shape such as 1x3x224x224" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cli_models", "-i", "1x3"], "'cli_models' is not of the form pkg.module:factory, such as "),
        (["cli_models:", "-i", "1x3"], "'cli_models:' is not of the form pkg.module:factory"),
        (["cli_models:mak", "-i", "1x3"], "'cli_models' has no 'mak'. Nearest: 'make'."),
        (
            ["cli_models:number", "-i", "1x3"],
            "'cli_models:number' is of type int, neither a torch.nn.Module nor a function that returns one.",
        ),
        (
            ["cli_models:three", "-i", "1x3"],
            "cli_models:three() returned an object of type int, not a torch.nn.Module.",
        ),
        (
            ["cli_models:needs", "-i", "1x3"],
            "A factory is called without arguments; write a function of your own",
        ),
        (
            ["cli_modelz:make", "-i", "1x3"],
            "There is no module 'cli_modelz', neither installed nor in the current folder (",
        ),
        (
            ["cli_needs:make", "-i", "1x3"],
            "Importing 'cli_needs' needs 'not_a_package_of_anyone', which is not installed.",
        ),
        (
            ["cli_raises:make", "-i", "1x3"],
            "Importing 'cli_raises' raised ZeroDivisionError: division by zero.",
        ),
        (["cli_models:make"], "the following arguments are required: -i/--input"),
        (["cli_models:make", "-i", "x:1x3", "-i", "1x3"], "Some --input have a name and some do not"),
        (["cli_models:make", "-i", "x:1x3", "-i", "x:1x3"], "Two --input have the same name."),
        (["cli_models:make", "-i", "x:flot32:1x3"], "has no known dtype. Nearest: 'float32'"),
        (["cli_models:make", "-i", "1x3x16x16", "-l", "body.7"], "The model has no module 'body.7'."),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_errors(cli, here, arguments, message):
    ran = cli("export", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert not list(here.glob("*.onnx"))
