"""The other commands: rewrite, layers, inspect, strip, methods, doctor and demo."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from nets import cnn, model

import onnxcam.methods
from onnxcam import Explainer, contract, demo, doctor
from onnxcam.cli import main, options
from onnxcam.cli.terminal import shape_text, size_text
from onnxcam.contract import read_record
from onnxcam.digest import sha256
from onnxcam.doctor import ProviderState
from onnxcam.errors import InputError, MissingDependency
from onnxcam.fused import fusable
from onnxcam.targets import Box, Contrast

DATA = Path(__file__).parents[3] / "shared" / "data"


def record_of(path):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return read_record(session.get_modelmeta().custom_metadata_map)


# rewrite


def test_rewrite_writes_beside_the_source(cli, plain_file):
    ran = cli("rewrite", plain_file)
    target = plain_file.with_name("plain.cam.onnx")
    assert ran.status == 0, ran.err
    assert ran.out.startswith(f"{target}: explains 'logits' at ")
    assert "verified: outputs within" in ran.out
    assert "The file records no preprocessing" in ran.err
    assert record_of(target).preprocess is None


def test_rewrite_hands_everything_to_the_library(cli, plain_file, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(len(demo.mosaics.LABELS))) + "\n\n")
    layers = [layer["name"] for layer in cli("layers", plain_file, "--json").data[:2]]
    target = tmp_path / "made.cam.onnx"
    ran = cli(
        *("rewrite", plain_file, "-o", target, "--json", "--layer", layers[1], "-l", layers[0]),
        *("--score", "logits", "--probability", "--labels", names),
        *("--preprocess", "imagenet", "--preprocess", "mean=0.1,0.2,0.3", "--preprocess", "fit=stretch"),
    )
    assert (ran.status, ran.err) == (0, "")
    assert ran.data["path"] == str(target)
    assert ran.data["output_error"] is not None
    record = record_of(target)
    assert json.loads(record.to_json()) == {"schema": 1, **ran.data["record"]}
    assert [layer.name for layer in record.layers] == [layers[1], layers[0]]
    assert record.score.probability
    assert record.labels[:2] == ("class 0", "class 1")
    assert record.preprocess.mean == (0.1, 0.2, 0.3)
    assert record.preprocess.std == (0.229, 0.224, 0.225)
    assert record.preprocess.fit == "stretch"


def test_rewrite_without_verification(cli, plain_file, tmp_path):
    ran = cli("rewrite", plain_file, "-o", tmp_path / "x.cam.onnx", "--no-verify", "--json")
    assert ran.data["output_error"] is None


def test_rewrite_lowers_the_opset(cli, tmp_path):
    model = cnn("e = Elu(y)", "float[N,5] e", opset=22, ir_version=10)
    (tmp_path / "new.onnx").write_bytes(model.SerializeToString())
    opsets = [
        cli("rewrite", tmp_path / "new.onnx", "-o", tmp_path / "x.cam.onnx", "--json", *flag).data["opset"]
        for flag in ([], ["--lower"])
    ]
    assert opsets == [22, 18]


@pytest.mark.parametrize("how", ["same", "link", "default"])
def test_the_source_is_never_overwritten(cli, demo_file, how):
    before = demo_file.read_bytes()
    link = demo_file.with_name("link.onnx")
    os.link(demo_file, link)
    output = {"same": ["-o", demo_file], "link": ["-o", link], "default": []}[how]
    ran = cli("rewrite", demo_file, *output)
    assert ran.status == 2
    assert "is the source itself, which is never overwritten. Name another file with -o." in ran.err
    assert demo_file.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{here}/nope.onnx"], "There is no file '{here}/nope.onnx'."),
        (["{here}/text.onnx"], "is not an ONNX model, or it is cut short"),
        (["{plain}", "--layer", "nope"], "The model has no layer 'nope'."),
        (["{plain}", "--score", "logitz"], "logitz"),
        (
            ["{plain}", "--labels", "{here}/text.onnx"],
            "There is 1 label for the 9 classes of 'logits'. Give one for each class",
        ),
        (["{plain}", "--preprocess", "meen=1"], "Unknown preprocessing field 'meen'; the fields are"),
        (["{plain}", "--preprocess", "{here}/none.json"], "'{here}/none.json' cannot be read"),
        (["{plain}", "-o", "{here}/no/where.onnx"], "Choose another place with -o."),
        (["{plain}", "--fuse", "gradcma"], "No method 'gradcma'. Nearest: 'gradcam'"),
        (["{plain}", "--fuse", "finercam"], "'finercam' cannot be computed inside a file. It explains"),
        (["{plain}", "--maps-only"], "name a method with fuse= (`--fuse METHOD`)"),
        (
            ["{plain}", "--fuse-raw"],
            "--fuse-raw says how fused maps are, and no map is fused: name a method with --fuse METHOD",
        ),
        (["{plain}", "--fuse-size", "input"], "--fuse-size says how fused maps are, and no map is fused"),
        (["{plain}", "--boxes", "logits"], "There is no `boxes` (`--boxes`) of the task 'classification'"),
        (["{plain}", "--background", "0"], "`background` (`--background`) of the task 'classification'"),
    ],
    ids=lambda v: " ".join(v[1:]) or v[0] if isinstance(v, list) else None,
)
def test_rewrite_errors(cli, plain_file, tmp_path, arguments, message):
    (tmp_path / "text.onnx").write_text("no model\n")
    before = sorted(tmp_path.iterdir())
    places = {"here": tmp_path, "plain": plain_file}
    ran = cli("rewrite", *[a.format(**places) for a in arguments])
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert message.format(**places) in ran.err
    assert sorted(tmp_path.iterdir()) == before


# layers


def test_layers(cli, plain_file):
    found = cli("layers", plain_file, "--json").data
    assert found[0]["why"].startswith("the last spatial tensor before ")
    assert set(found[0]) == {"name", "tensor", "op_type", "shape", "layout", "grid", "why"}
    ran = cli("layers", plain_file)
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["name", "shape", "map", "layout", "why"]
    assert lines[2].split()[0] == found[0]["name"]
    assert shape_text(found[0]["shape"]) in lines[2]
    assert found[0]["why"] in lines[2]


def test_layers_shows_the_best_and_all_of_them_when_asked(cli, plain_file, monkeypatch):
    from onnxcam.cli import layers

    found = cli("layers", plain_file, "--json").data
    monkeypatch.setattr(layers, "_SHOWN", 2)
    short, long = cli("layers", plain_file), cli("layers", plain_file, "--all")
    assert len(short.out.splitlines()) == 2 + 2 + 1
    assert short.err == f"{len(found) - 2} more, down to the input, with --all.\n"
    assert len(long.out.splitlines()) == 2 + len(found) + 1
    assert long.err == ""


@pytest.mark.parametrize("columns", [80, 140])
def test_tables_fit_the_terminal(cli, plain_file, demo_file, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in (["layers", plain_file], ["inspect", demo_file], ["methods"], ["doctor"]):
        assert max(map(len, cli(*words).out.splitlines())) <= columns


def test_layers_of_an_explainable_file_are_its_sources(cli, plain_file, demo_file):
    pytest.importorskip("onnx_ir")
    ran = cli("layers", demo_file, "--json")
    assert ran.status == 0, ran.err
    assert [one["name"] for one in ran.data] == [
        one["name"] for one in cli("layers", plain_file, "--json").data
    ]


def test_layers_errors(cli, plain_file):
    ran = cli("layers", plain_file, "--score", "nope")
    assert ran.status == 2
    assert "nope" in ran.err


# inspect and strip


def test_inspect(cli, demo_file):
    record = record_of(demo_file)
    ran = cli("inspect", demo_file)
    assert (ran.status, ran.err) == (0, "")
    text = " ".join(ran.out.split())
    for expected in (
        str(demo_file),
        record.layers[0].name,
        record.layers[0].activations,
        record.labels[0],
        f"{len(record.labels)}: ",
        f"{record.score.output}, {len(record.labels)} classes",
        contract.CLASS_INDEX,
        "gradcam",
    ):
        assert expected in text


def test_inspect_as_json_is_the_record_and_what_is_known_of_the_file(cli, demo_file):
    data = cli("inspect", demo_file, "--json").data
    record = json.loads(record_of(demo_file).to_json())
    assert {key: data[key] for key in record} == record
    assert data["bytes"] == demo_file.stat().st_size
    assert data["sha256"] == sha256(demo_file)
    assert data["outputs"][0]["name"] == "logits"
    known = map(onnxcam.methods.get, onnxcam.methods.names())
    assert data["methods"] == [m.name for m in known if not m.inside and "tail" not in m.needs]


def test_inspect_of_other_forms(cli, tiny_file):
    model = tiny_file(preprocess=None, labels=None, softmax=True, layout="tokens", layers=("features", "top"))
    text = " ".join(cli("inspect", model).out.split())
    assert "preprocessing not recorded" in text
    assert "labels not recorded" in text
    assert "the logit before the softmax" in text
    assert "1+tokens" in text
    assert "cam" not in cli("inspect", model, "--json").data["methods"]  # not at "features"
    crop = contract.Preprocess(size=(12, 12), fit="crop", resize=14)
    assert "resize to 14, crop to 12×12 (linear antialiased), RGB" in cli(
        "inspect", tiny_file(preprocess=crop)
    ).out.replace("\n", " ")


def test_inspect_errors(cli, plain_file, tmp_path):
    assert "is an ONNX model but not an explainable one" in cli("inspect", plain_file).err
    ran = cli("inspect", tmp_path / "nope.onnx")
    assert (ran.status, ran.err) == (2, f"error: There is no file '{tmp_path / 'nope.onnx'}'.\n")


def test_rewrite_and_inspect_of_fused_maps(cli, plain_file, tmp_path):
    file, raw = tmp_path / "fused.cam.onnx", tmp_path / "raw.cam.onnx"
    text = cli("rewrite", plain_file, "-o", file, "--fuse", "gradcam", "--fuse", "layercam").out
    assert "computes cam.heatmap.layercam: 'layercam' at " in text
    assert ", maps within " in text
    assert [f.method for f in record_of(file).fused] == ["gradcam", "layercam"]
    text = " ".join(cli("inspect", file).out.split())
    assert "computes cam.heatmap.gradcam ('gradcam' at " in text
    assert ", scaled, at the input's size); cam.heatmap.layercam" in text
    options = ("--fuse", "hirescam", "--fuse-raw", "--fuse-size", "layer", "--maps-only")
    text = cli("rewrite", plain_file, "-o", raw, *options).out
    assert "gives these maps alone: the layers' tensors are no outputs" in text
    (fused,) = record_of(raw).fused
    assert (fused.size, fused.scaled) == ("layer", False)
    cli("rewrite", plain_file, "-o", raw, "--fuse", "gradcam", "--fuse-raw", "--maps-only")
    assert record_of(raw).fused[0].size == "layer"
    cli("rewrite", plain_file, "-o", raw, *options)
    data = cli("inspect", raw, "--json").data
    assert [o["name"] for o in data["outputs"]] == ["logits", "cam.heatmap.hirescam"]
    assert (data["maps_only"], data["methods"]) == (True, ["hirescam"])
    text = " ".join(cli("inspect", raw).out.split())
    assert "methods hirescam computes cam.heatmap.hirescam ('hirescam' at " in text
    assert ", raw, at the layer's size)" in text


def test_the_residual_softmax_score(cli, plain_file, tmp_path):
    file = tmp_path / "rest.cam.onnx"
    assert cli("rewrite", plain_file, "-o", file, "--rest", "--fuse", "shapleycam").status == 0
    assert record_of(file).score.rest
    text = " ".join(cli("inspect", file).out.split())
    assert "plus the logarithm of its softmax" in text
    assert "shapleycam" in cli("inspect", file, "--json").data["methods"]
    ran = cli("rewrite", plain_file, "-o", file, "--rest", "--probability")
    assert (ran.status, "is made of a classifier's logits" in ran.err) == (2, True)


def test_strip_gives_the_original_graph_back(cli, demo_file, plain_file):
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    answers = []
    for path in (demo_file, plain_file):
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        size = [n if isinstance(n, int) else 1 for n in session.get_inputs()[0].shape]
        answers.append(session.run(["logits"], {session.get_inputs()[0].name: np.resize(x, size)})[0])
    np.testing.assert_array_equal(*answers)
    assert [o.name for o in session.get_outputs()] == ["logits"]
    assert [i.name for i in session.get_overridable_initializers()] == []
    assert contract.KEY not in session.get_modelmeta().custom_metadata_map


def test_strip_errors(cli, demo_file, plain_file, tmp_path):
    assert "is the source itself" in cli("strip", demo_file, "-o", demo_file).err
    ran = cli("strip", plain_file, "-o", tmp_path / "x.onnx")
    assert ran.status == 2
    assert "is an ONNX model but not an explainable one" in ran.err
    assert not (tmp_path / "x.onnx").exists()
    assert "the following arguments are required: -o/--output" in cli("strip", demo_file).err


# methods


def test_methods_are_the_registry(cli):
    ran = cli("methods", "--json")
    assert [m["name"] for m in ran.data] == onnxcam.methods.names()
    assert next(m for m in ran.data if m["name"] == "cam") == {
        "name": "cam",
        "formula": onnxcam.methods.get("cam").formula,
        "source": onnxcam.methods.get("cam").source,
        "kind": "layer",
        "needs": ["activations", "gradients"],
        "options": {},
        "rectify": False,
        "head": "gap-linear",
        "not_inside": None,
    }
    assert {m["name"]: m["not_inside"] for m in ran.data} == fusable()
    text = cli("methods").out
    for name in onnxcam.methods.names():
        assert f" {name} " in text
    assert "It explains a difference of scores that is chosen when the file runs." in text
    assert "finercam, finercam:torchcam" in text


# doctor


def test_doctor(cli, demo_file):
    ran = cli("doctor", "--provider", "cpu")
    assert (ran.status, ran.err) == (0, "")
    assert f"onnxruntime             {ort.__version__}" in ran.out
    assert "CPU " in ran.out
    data = cli("doctor", demo_file, "--provider", "cpu", "--json").data
    assert data["problems"] == []
    states = {p["short"]: p for p in data["providers"]}
    assert states["cpu"] == {
        "name": "CPUExecutionProvider",
        "short": "cpu",
        "state": "works",
        "detail": "the reference",
    }
    assert states["rocm"]["state"] == "absent"
    assert states["rocm"]["detail"] == "pip install onnxruntime-rocm"
    assert data["model"]["providers"] == ["CPUExecutionProvider"]
    nodes = data["model"]["nodes"]
    if nodes is not None:  # an ONNX Runtime that can tell
        assert {"Conv"} <= {n["op_type"] for n in nodes["CPUExecutionProvider"]}
        assert "CPU" in cli("doctor", demo_file, "--provider", "cpu").out.split("as ONNX Runtime runs it:")[1]


def test_doctor_reports_a_requested_provider_that_is_not_there(cli, demo_file):
    ran = cli("doctor", demo_file, "--provider", "qnn")
    assert ran.status == 1
    assert (
        "problem: QNNExecutionProvider is not in the installed onnxruntime: pip install onnxruntime-qnn\n"
        in ran.err
    )
    assert "problem: QNNExecutionProvider was asked for, but" in ran.err
    assert cli("doctor", "--provider", "acl").status == 1  # one that no wheel has
    ran = cli("doctor", "--provider", "cudda")
    assert (ran.status, ran.err.split(".")[0]) == (2, "error: There is no execution provider 'cudda'")


def test_doctor_reports_a_provider_that_does_not_work(cli, monkeypatch):
    broken = [
        ProviderState(
            "CUDAExecutionProvider", "cuda", "broken", "CUDAExecutionProvider does not work here: why."
        ),
        ProviderState("XExecutionProvider", "x", "broken", "its heatmap differs"),
        ProviderState("CPUExecutionProvider", "cpu", "works", "the reference"),
    ]
    monkeypatch.setattr(doctor, "check_providers", lambda also: broken)
    assert cli("doctor", "--provider", "cpu").status == 0
    ran = cli("doctor", "--provider", "cuda", "--provider", "XExecutionProvider")
    assert ran.status == 1
    assert ran.err.splitlines() == [
        "problem: CUDAExecutionProvider does not work here: why.",
        "problem: XExecutionProvider: its heatmap differs",
    ]


def test_doctor_without_a_runtime(cli, monkeypatch):
    def missing(also):
        raise MissingDependency("Opening a file needs ONNX Runtime.")

    monkeypatch.setattr(doctor, "check_providers", missing)
    ran = cli("doctor", "some.onnx")
    assert ran.status == 1
    assert ran.err == "problem: Opening a file needs ONNX Runtime.\n"
    assert cli("doctor", "--json").data["problems"] == ["Opening a file needs ONNX Runtime."]


def test_doctor_says_what_runs_elsewhere(cli, demo_file, monkeypatch):
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    nodes = {
        cuda: [{"name": "c", "op_type": "Conv"}],
        cpu: [{"name": f"n{i}", "op_type": "Pad"} for i in range(22)],
    }
    monkeypatch.setattr(doctor, "placement", lambda *_: {"providers": [cuda, cpu], "nodes": nodes})
    ran = cli("doctor", demo_file)
    assert f"Not on {cuda}:\n  Pad  n0\n" in ran.out
    assert ran.err == "  ... and 2 more, with --json.\n"
    monkeypatch.setattr(doctor, "placement", lambda *_: {"providers": [cpu], "nodes": None})
    assert "this ONNX Runtime does not say" in cli("doctor", demo_file).out


def test_a_provider_whose_heatmap_differs_is_broken(monkeypatch):
    explain = Explainer.explain_tensor
    calls = []

    def second_is_wrong(self, x):
        result = explain(self, x)
        calls.append(x)
        if len(calls) > 1:
            result.heatmaps[:] = 1 - result.heatmaps
        return result

    monkeypatch.setattr(Explainer, "explain_tensor", second_is_wrong)
    states = {s.short: s for s in doctor.check_providers()}
    assert states["cpu"].state == "broken"
    assert "differs from the CPU's by up to" in states["cpu"].detail


def test_versions_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(
        doctor,
        "_version",
        lambda name: {"onnxruntime": "1.2", "onnxruntime-gpu": "1.3"}.get(name),
    )
    found = doctor.versions()
    assert found["onnxruntime"] == "1.2"
    assert found["onnxruntime-gpu"] == "1.3"  # both wheels: that is worth seeing
    assert found["torch"] is None


# demo


def test_demo(cli, tmp_path):
    ran = cli("demo", "-o", tmp_path / "made", "--provider", "cpu")
    assert (ran.status, ran.err) == (0, "")
    rows = {line.split()[0]: line.split() for line in ran.out.splitlines() if line.strip()}
    assert {"gradcam", "random", "uniform"} <= set(rows)
    share = {name: float(rows[name][1].rstrip("%")) for name in ("gradcam", "random", "uniform")}
    assert share["gradcam"] > 2 * max(share["random"], share["uniform"])
    assert (tmp_path / "made" / "sheet.png").exists()
    assert f"In {tmp_path / 'made'}: " in ran.out


def test_demo_as_json(cli, tmp_path, monkeypatch):
    run = demo.run
    monkeypatch.setattr(demo, "run", lambda folder, **how: run(folder, count=2, **how))
    data = cli("demo", "-o", tmp_path / "made", "--json").data
    assert [row["name"] for row in data["table"]][-2:] == ["random", "uniform"]
    assert all(Path(f).exists() for f in data["files"])
    assert len(data["explained"]) == 2


def test_demo_errors(cli, tmp_path):
    (tmp_path / "file").write_text("in the way")
    ran = cli("demo", "-o", tmp_path / "file" / "below")
    assert ran.status == 2
    assert "cannot be made" in ran.err


# the values of options


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, None),
        (["imagenet"], "imagenet"),
        (["imagenet", "size=320"], {"preset": "imagenet", "size": 320}),
        (["size=320x240"], {"size": [320, 240]}),
        (["size=320,240", "mean=0.5"], {"size": [320, 240], "mean": 0.5}),
        (["mean=0.1,0.2,0.3", "channels=BGR"], {"mean": [0.1, 0.2, 0.3], "channels": "BGR"}),
        (["antialias=false", "resize=null"], {"antialias": False, "resize": None}),
        (["mean=[1, 2, 3]"], {"mean": [1, 2, 3]}),
    ],
    ids=str,
)
def test_preprocess_values(values, expected):
    assert options.preprocess(values) == expected


def test_preprocess_from_a_file(tmp_path):
    path = tmp_path / "how.json"
    path.write_text('{"size": [3, 4], "mean": 0.5}')
    assert options.preprocess([str(path), "mean=0.1"]) == {"size": [3, 4], "mean": 0.1}
    path.write_text('{"layers": [], "preprocess": {"size": [3, 4]}}')  # inspect --json
    assert options.preprocess([str(path)]) == {"size": [3, 4]}
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"is no preprocessing record: it holds no JSON object"):
        options.preprocess([str(path)])
    path.write_text("{")
    with pytest.raises(InputError, match=r"how.json' is not JSON: "):
        options.preprocess([str(path)])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "tench\n goldfish \n\n", ["tench", "goldfish"]),
        ("a.txt", "\ufefftench\r\n\r\ngoldfish\r\n", ["tench", "", "goldfish"]),
        ("a.json", '["tench", "goldfish"]', ["tench", "goldfish"]),
        ("a.json", '{"1": "goldfish", "0": "tench"}', ["tench", "goldfish"]),
        ("a.json", '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', ["tench", "goldfish"]),
        ("a.json", '{"id2label": {"0": "tench"}, "x": 1}', ["tench"]),
    ],
)
def test_label_files(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert options.labels(str(path)) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"\n\n", r"The label file '.*' is empty. Write one name per line"),
        ("a.txt", b"caf\xe9\n", r"is not UTF-8 text \(byte 3\). Save it as UTF-8"),
        ("a.json", b'{"0": "a", "2": "b"}', r"has gaps: its indices are not 0 to 1. Give every class a name"),
        ("a.json", b'{"a": 3}', r"is neither a list of names nor \{index: name\}"),
        ("a.json", b"[]", r"is neither a list of names"),
        ("a.json", b"[", r"is not JSON"),
        ("none.txt", None, r"'.*none.txt' cannot be read: No such file or directory.$"),
    ],
)
def test_label_file_errors(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        options.labels(str(tmp_path / name))


def targets_of(*words):
    parser = argparse.ArgumentParser()
    options.add_targets(parser)
    return options.targets(parser.parse_args([*words]))


def test_targets():
    assert targets_of() == []
    assert targets_of("-t281", "-ttabby", "-t-1", "-t3d") == [281, "tabby", -1, "3d"]


def test_targets_that_are_more_than_a_class(tmp_path):
    assert targets_of("-t1", "--against", "2", "--against", "cat") == [Contrast(1, [2, "cat"])]
    assert targets_of("--box", "1,2,30.5,4") == [Box((1, 2, 30.5, 4))]
    assert targets_of("--box", "1,2,3,4", "-tcat", "-tdog") == [Box((1, 2, 3, 4), n) for n in ("cat", "dog")]
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[1, 2] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    (region,) = targets_of("--region", str(tmp_path / "mask.png"), "-t2")
    assert region.of == 2
    np.testing.assert_array_equal(np.argwhere(region.mask), [[1, 2]])
    np.save(tmp_path / "reference.npy", np.arange(3.0))
    (similar,) = targets_of("--reference", str(tmp_path / "reference.npy"))
    np.testing.assert_array_equal(similar.reference, [0, 1, 2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "2"], "--against needs a --target to set its classes against"),
        (["--box", ""], "--box is X1,Y1,X2,Y2 in pixels of the photo, not ''"),
        (["--box", "1,2,3"], "--box is X1,Y1,X2,Y2 in pixels of the photo, not '1,2,3'"),
        (["--box", "1,2,3,4", "--region", "m.png"], "--box and --region exclude each other"),
        (["--reference", "nowhere.npy"], "'nowhere.npy' is no array of NumPy's"),
    ],
)
def test_target_options_that_do_not_fit(words, message):
    with pytest.raises(InputError, match=message):
        targets_of(*words)


def test_rewriting_for_another_score(cli, tmp_path):
    source = tmp_path / "maps.onnx"
    weights = {"w": np.ones((4, 3, 3, 3), np.float32), "v": np.ones((2, 4, 1, 1), np.float32)}
    net = model("r = Conv(x, w) y = Conv(r, v)", outputs="float[N,2,6,6] y", initializers=weights)
    source.write_bytes(net.SerializeToString())
    words = ("--score", "y", "--task", "segmentation", "--background", 1, "--seed", "--layer", "r")
    ran = cli("rewrite", source, *words)
    assert ran.status == 0, ran.err
    score = record_of(source.with_name("maps.cam.onnx")).score
    assert (score.task, score.background, [s.input for s in score.seeds]) == ("segmentation", 1, ["cam.seed"])
    text = " ".join(cli("inspect", source.with_name("maps.cam.onnx")).out.split())
    assert "y, segmentation, 2 classes" in text
    assert "cam.region float32 N×h×w over the image" in text
    assert "cam.seed float32 N×2×6×6 (weights)" in text
    assert cli("layers", source, "--task", "segmentation").status == 0
    wrong = cli("rewrite", source, "--task", "embedding", "--seed", "nope")
    assert wrong.status == 2
    assert "The model has no output 'nope'" in wrong.err


def test_numbers_as_people_read_them():
    assert shape_text(("N", 3, None)) == "N×3×?"
    assert shape_text(()) == "scalar"
    assert [size_text(n) for n in (12, 1200, 13992702, 5e12)] == [
        "12 bytes",
        "1.2 kB",
        "14.0 MB",
        "5000.0 GB",
    ]


# the whole road


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real models and photos of ../shared/data are not here")
def test_a_real_model_and_real_photos(cli, tmp_path):
    model = tmp_path / "mobilenet.cam.onnx"
    ran = cli(
        *("rewrite", DATA / "models" / "mobilenet_v2.onnx", "-o", model),
        *("--preprocess", "imagenet-stretch", "--labels", DATA / "labels" / "imagenet_classes.txt"),
    )
    assert ran.status == 0, ran.err
    ran = cli("explain", model, DATA / "photos", "-o", tmp_path / "out", "--json", "--provider", "cpu")
    assert ran.status == 0, ran.err
    labels = {Path(item["image"]).stem: item["label"] for item in ran.data["items"]}
    assert labels["cat_720p"] == "Egyptian cat"
    assert labels["parrot"] == "macaw"
    ran = cli(
        *("explain", model, DATA / "photos" / "gradcam_both.png", "-o", tmp_path / "both", "--json"),
        *("-t", "tabby", "-t", "bull mastiff", "--provider", "cpu"),
    )
    assert [item["class_id"] for item in ran.data["items"]] == [281, 243]


def test_main_takes_the_processes_own_arguments(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["onnxcam", "methods", "--json"])
    assert main() == 0
    assert json.loads(capsys.readouterr().out)
