"""Files that cannot be what they claim: one sentence each, nothing read that must not be, nothing written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcam.errors import LayerNotOnPath, ModelError, NotOnnx
from onnxcam.export import load, rewrite_onnx

from .. import nets


def outside(tensor: onnx.TensorProto, location: str, offset: Any = 0) -> bytes:
    """Say that a tensor's data lies in a file; the data."""
    raw = onnx.numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", len(raw))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return raw


def refused(net: onnx.ModelProto, folder: Path, error: type[Exception], message: str) -> None:
    source = folder / "model.onnx"
    source.write_bytes(net.SerializeToString())
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(error, match=message):
        rewrite_onnx(source, folder / "out.cam.onnx", "r")
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize("location", ["../secret", "{folder}/../secret", "link", "sub/../../secret"])
@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
def test_weights_outside_the_folder_are_not_read(tmp_path, location, where):
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"\0" * 10_000)
    os.symlink(tmp_path / "secret", folder / "link")
    net = nets.cnn()
    holder = onnx.numpy_helper.from_array(np.zeros((1,), np.float32), "k")
    if where == "initializer":
        tensor = net.graph.initializer[0]
    else:
        constant = onnx.helper.make_node("Constant", [], ["k"], value=holder)
        tensor = constant.attribute[0].t
        if where == "subgraph":
            branch = onnx.helper.make_graph(
                [constant], "b", [], [onnx.helper.make_empty_tensor_value_info("k")]
            )
            choice = onnx.helper.make_node("If", ["yes"], ["t"], then_branch=branch, else_branch=branch)
            net.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
            tensor = choice.attribute[0].g.node[0].attribute[0].t
            constant = choice
        net.graph.node.insert(0, constant)
        tensor = (
            net.graph.node[0].attribute[0].t
            if where == "attribute"
            else (net.graph.node[0].attribute[0].g.node[0].attribute[0].t)
        )
    outside(tensor, location.format(folder=folder))
    refused(net, folder, NotOnnx, "for its weights, which lies outside its own folder and is not read")


@pytest.mark.parametrize("location", [r"..\..\secret", "file:///etc/passwd", "https://example.org/w.bin"])
def test_locations_of_other_systems_are_names_of_files(tmp_path, location):
    net = nets.cnn()
    outside(net.graph.initializer[0], location)
    refused(net, tmp_path, NotOnnx, "keeps its weights in .*, which is missing")


@pytest.mark.parametrize(
    ("offset", "message"),
    [(400, "which is cut short"), (-4, "its weight 'w' has the offset -4 in its data file")],
)
def test_places_beyond_the_data(tmp_path, offset, message):
    net = nets.cnn()
    (tmp_path / "w.bin").write_bytes(outside(net.graph.initializer[0], "w.bin", offset))
    refused(net, tmp_path, NotOnnx, message)


def test_a_cycle_is_named(tmp_path):
    net = nets.cnn(
        body="a = Add(r, b2) b2 = Mul(a, a) p = GlobalAveragePool(b2) f = Flatten(p) y = Gemm(f, v, b)"
    )
    refused(net, tmp_path, NotOnnx, "has a cycle: '(a', 'b2|b2', 'a)' and back to the first are computed")


def test_nodes_in_any_order_are_sorted(tmp_path):
    net = nets.cnn()
    nodes = list(net.graph.node)
    del net.graph.node[:]
    net.graph.node.extend(reversed(nodes))
    assert next(iter(load(net.SerializeToString()).graph)).op_type == "Conv"
    (tmp_path / "model.onnx").write_bytes(net.SerializeToString())
    assert rewrite_onnx(tmp_path / "model.onnx", tmp_path / "out.cam.onnx", "r").output_error == 0


def test_two_values_of_one_name(tmp_path):
    net = nets.cnn()
    net.graph.node.append(net.graph.node[1])
    refused(net, tmp_path, NotOnnx, "Output 'r' is redeclared")


@pytest.mark.parametrize(
    ("dims", "said"), [(["N", 7, 8, 8], r"\['N', 7, 8, 8\]"), (["N", 4, 8], r"\['N', 4, 8\]")]
)
def test_shapes_that_contradict_their_nodes(tmp_path, dims, said):
    net = nets.cnn()
    net.graph.value_info.append(onnx.helper.make_tensor_value_info("r", 1, dims))
    message = (
        rf"The file says that 'r' has the shape {said}, but its Relu makes it \['N', 4, 8, 8\]\. The file"
    )
    refused(net, tmp_path, ModelError, message)


@pytest.mark.parametrize(
    "data", [b"this is text\n" * 30, b"PK\x03\x04" + b"0" * 300, b"\x18\x00\x00\x00ORTM" + b"0" * 300]
)
def test_files_of_other_kinds(tmp_path, data):
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(NotOnnx, match="is not an ONNX model, or it is cut short"):
        rewrite_onnx(tmp_path / "model.onnx", tmp_path / "out.cam.onnx")


@pytest.mark.parametrize(
    ("cut", "node", "reason"),
    [
        ("q = Round(f)", "Round 'q'", "piecewise constant"),
        ("i = Cast<to=7>(f) q = Cast<to=1>(i)", "Cast 'i'", "its result is a whole number"),
        ("g = Greater(f, f) q = Cast<to=1>(g)", "Greater 'g'", "its result is true or false"),
        ("s = Shape(f) i = Cast<to=1>(s) q = Expand(i, s)", "Shape 's'", "it reads the shape"),
    ],
)
def test_where_a_path_is_cut(tmp_path, cut, node, reason):
    net = nets.cnn(body=f"p = GlobalAveragePool(r) f = Flatten(p) {cut} y = Gemm<transB=1>(q, v, b)")
    refused(net, tmp_path, LayerNotOnPath, rf"On the way, {node} lets nothing through \({reason}")
