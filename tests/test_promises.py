"""What the package promises about itself: imports, public names, what a wheel holds."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import onnxcam
import onnxcam.export

ROOT = Path(__file__).resolve().parents[1]

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def python(code, *blocked):
    """Run code in a fresh interpreter that cannot import some packages; its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=set(blocked)) + code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_runtime_imports_neither_torch_nor_onnx():
    code = """
import onnxcam, onnxcam.explainer, onnxcam.demo, onnxcam.cli
found = {m.partition(".")[0] for m in sys.modules}
print(*sorted(found & {"torch", "onnx", "onnx_ir", "rich", "matplotlib", "PIL", "scipy"}))
"""
    assert python(code, "torch", "onnx", "onnx_ir") == ""


def test_explaining_works_where_neither_torch_nor_onnx_can_be_imported():
    code = """
from importlib.resources import files
import onnxcam, numpy as np
e = onnxcam.Explainer((files("onnxcam.demo") / "demo.cam.onnx").read_bytes(), ["CPUExecutionProvider"])
print(e.explain([np.zeros((50, 60, 3), np.uint8)], target=0).heatmaps[0].shape)
"""
    assert python(code, "torch", "onnx", "onnx_ir", "rich") == "(50, 60)"


def test_without_a_runtime_the_import_works_and_opening_says_what_to_install():
    code = """
import onnxcam
try:
    onnxcam.Explainer("m.cam.onnx")
except onnxcam.OnnxcamError as e:
    print(type(e).__name__, e)
"""
    said = python(code, "onnxruntime")
    assert said.startswith("MissingDependency")
    assert 'pip install "onnxcam[cpu]"' in said
    assert 'onnxcam[gpu]"' in said


def test_exporting_without_its_packages_says_what_to_install():
    code = """
from onnxcam.errors import MissingDependency
try:
    {}
except MissingDependency as e:
    print(e)
"""
    said = python(code.format("import onnxcam.export"), "onnx_ir")
    assert (
        said == "Rewriting models needs 'onnx_ir', which is not installed: `pip install \"onnxcam[export]\"`."
    )
    said = python(code.format("from onnxcam.export import export_torch"), "torch")
    assert (
        said
        == "Exporting from PyTorch needs 'torch', which is not installed: `pip install \"onnxcam[torch]\"`."
    )
    assert python("import onnxcam.export; print('torch' in sys.modules)") == "False"


def test_rewriting_without_a_runtime_says_what_to_install(tmp_path):
    from nets import cnn

    (tmp_path / "m.onnx").write_bytes(cnn().SerializeToString())
    code = f"""
from pathlib import Path
from onnxcam.errors import MissingDependency
from onnxcam.export import rewrite_onnx
folder = Path({str(tmp_path)!r})
try:
    rewrite_onnx(folder / "m.onnx", folder / "m.cam.onnx")
except MissingDependency as e:
    print(e)
print(sorted(p.name for p in folder.iterdir()))
rewrite_onnx(folder / "m.onnx", folder / "m.cam.onnx", verify=False)
print(sorted(p.name for p in folder.iterdir()))
"""
    said = python(code, "onnxruntime").splitlines()
    assert said[0].startswith("Checking a rewritten model needs ONNX Runtime, and none is installed")
    assert said[1:] == ["['m.onnx']", "['m.cam.onnx', 'm.onnx']"]


@pytest.mark.parametrize("module", [onnxcam, onnxcam.export])
def test_all_is_sorted_and_true(module):
    assert list(module.__all__) == sorted(module.__all__)
    if module is onnxcam.export:
        pytest.importorskip("torch")
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_unknown_names_of_the_export_package():
    with pytest.raises(AttributeError, match=r"module 'onnxcam\.export' has no attribute 'nothing'"):
        _ = onnxcam.export.nothing


def test_the_wheel_holds_both_halves_and_the_demo(tmp_path):
    source = tmp_path / "source"  # a build leaves files behind
    source.mkdir()
    for folder in ("onnxcam", "export"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "onnxcam/py.typed",
        "onnxcam/explainer.py",
        "onnxcam/demo/demo.cam.onnx",
        "onnxcam/cli/__init__.py",
    }
    wanted |= {"onnxcam/export/rewrite.py", "onnxcam/export/gradients/rules/pointwise.py"}
    assert wanted <= names
    sources = {
        str(p.relative_to(ROOT)) for folder in ("onnxcam", "export") for p in (ROOT / folder).rglob("*.py")
    }
    packed = {n.replace("onnxcam/export/", "export/") for n in names if n.endswith(".py")}
    assert packed == sources
    assert not any(n.startswith(("tests/", "export/")) for n in names)
