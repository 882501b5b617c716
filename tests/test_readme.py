"""The README cannot drift: its tables are written from the registries, its code runs, its commands exist.

``python tests/test_readme.py --write`` rewrites the tables.
"""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def escaped(text):
    return text.replace("|", "\\|")


def methods_table():
    from onnxcam import methods

    rows = [methods.get(name) for name in methods.names()]
    lines = [f"| `{m.name}` | {m.kind} | {escaped(m.formula)} | {m.source} |" for m in rows]
    return "\n".join(["| name | needs | map | source |", "| --- | --- | --- | --- |", *lines])


def measures_table():
    from onnxcam.comparison import agreement

    rows = [agreement.get(name) for name in agreement.names()]
    ranges = {m.name: f"{m.low:g} to {m.high:g}" for m in rows}
    lines = [
        f"| `{m.name}` | {m.better} | {ranges[m.name]} | {escaped(m.formula)} | {m.source} |" for m in rows
    ]
    return "\n".join(
        [
            "| measure | better | range | a and b: the maps; p and q: their heat as shares | source |",
            "| --- | --- | --- | --- | --- |",
            *lines,
        ]
    )


def operators_list():
    from onnxcam.export.gradients import registered

    names = sorted({r.op_type if not r.domain else f"{r.domain}.{r.op_type}" for r in registered()})
    text, line = [], ""
    for name in names:
        if len(line) + len(name) > 100:
            text.append(line.rstrip())
            line = ""
        line += name + " "
    return "\n".join([*text, line.rstrip()])


def architectures_table():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from coverage import RESULTS, table

    return table(json.loads(RESULTS.read_text()))


TABLES = {
    "methods": methods_table,
    "measures": measures_table,
    "operators": operators_list,
    "architectures": architectures_table,
}


def block(text, name):
    return re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_written_from_the_registries(name):
    found = block(README.read_text(), name)
    assert found is not None
    assert found[1] == TABLES[name](), "run `python tests/test_readme.py --write`"


def test_every_command_is_in_the_readme_and_every_command_named_exists(capsys):
    from onnxcam.cli import main

    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^    (\w+) {2,}", capsys.readouterr().out, re.MULTILINE))
    build = "layers|rewrite|export|strip|inspect|culprit"
    run = "explain|concepts|evaluate|record|compare|demo|methods|doctor"
    named = set(re.findall(rf"onnxcam ({build}|{run})\b", README.read_text()))
    assert named <= known
    assert {
        "layers",
        "rewrite",
        "explain",
        "inspect",
        "strip",
        "doctor",
        "record",
        "compare",
        "culprit",
    } <= named


def test_the_gate_is_one(tmp_path):
    from onnxcam.comparison import gate

    (tmp_path / "gate.toml").write_text(re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)[0])
    found = gate.load(tmp_path / "gate.toml")
    assert [one.text for one in found.criteria] == [
        "same_answer >= 0.98",
        "same_reason >= 0.95",
        "pearson.low >= 0.9",
    ]
    assert (found.max_skipped, found.measure, found.threshold) == (0.05, "pearson", 0.8)


def test_make_targets_exist():
    text = (ROOT / "Makefile").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    for target in re.findall(r"`?make ([\w-]+)", README.read_text()):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target


@pytest.mark.torch
def test_export_then_explain_runs_as_written(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision_shim").import_torchvision()
    import cv2
    import numpy as np

    build = torchvision.models.resnet50
    # The weights cannot be downloaded in a test; what they record is used as written.
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: build(weights=None))
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("dog.jpg", np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8))
    code = python_blocks()[0]
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["result"].heatmaps[0].shape == (300, 400)
    assert len(scope["explainer"].labels) == 1000
    assert (tmp_path / "out" / "manifest.json").exists()

    # The two blocks that follow, on a plain export of the same kind.
    from nets import cnn

    (tmp_path / "model.onnx").write_bytes(cnn(inputs="float[N,3,32,32] x").SerializeToString())
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(name, np.zeros((20, 30, 3), np.uint8))
    exec(compile(python_blocks()[1], "README.md", "exec"), {})
    exec(compile(python_blocks()[2], "README.md", "exec"), {"onnxcam": scope["onnxcam"]})


if __name__ == "__main__" and "--write" in sys.argv:
    text = README.read_text()
    for name, make in TABLES.items():
        text = re.sub(
            rf"<!-- {name} -->\n.*?<!-- /{name} -->",
            lambda _, name=name, make=make: f"<!-- {name} -->\n{make()}\n<!-- /{name} -->",
            text,
            flags=re.DOTALL,
        )
    README.write_text(text)
