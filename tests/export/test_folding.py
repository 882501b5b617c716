"""Arithmetic on sizes is computed once, and what hangs on it gets its shape."""

import numpy as np
import onnx
import pytest
from nets import model, weights

from_onnx = pytest.importorskip("onnxcam.export.from_onnx")
rewrite_onnx = pytest.importorskip("onnxcam.export").rewrite_onnx

CONV = "c = Conv(p, w) g = GlobalAveragePool(c) y = Flatten(g)"


def pads_by_arithmetic():
    """As torch's older exporter spells ``pad(x, (2, 1, 0, 3))``."""
    made = model(
        "none = ConstantOfShape<value=int64[1]{0}>(four) all = Concat<axis=0>(few, none) "
        "rows = Reshape(all, rows_of_two) "
        "back = Slice(rows, end, start, axis, step) columns = Transpose<perm=[1,0]>(back) "
        f"flat = Reshape(columns, one) pads = Cast<to=7>(flat) p = Pad(x, pads) {CONV}",
        initializers=weights(w=(5, 3, 3, 3)),
    )
    numbers = {
        "four": [4],
        "few": [2, 1, 0, 3],
        "rows_of_two": [-1, 2],
        "end": [-1],
        "start": [np.iinfo(np.int64).min],
        "axis": [0],
        "step": [-1],
        "one": [-1],
    }
    for name, listed in numbers.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(listed, np.int64), name))
    return made


def pads_by_size(inputs):
    """Half of the width on the left, as padding "same" is computed."""
    made = model(
        "s = Shape(x) k = Gather(s, three) h = Div(k, two) o = Unsqueeze(h, zero) "
        f"pads = Concat<axis=0>(before, o, before, zero) p = Pad(x, pads) {CONV}",
        inputs=inputs,
        initializers=weights(w=(5, 3, 3, 3)),
    )
    for name, listed in {"three": 3, "two": 2, "zero": [0], "before": [0, 0, 0]}.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(listed, np.int64), name))
    return made


def shapes(made):
    graph = from_onnx.normalize(from_onnx.load(made)).graph
    values = {v.name: v for node in graph for v in node.outputs}
    return graph, {name: [getattr(d, "value", d) for d in v.shape] for name, v in values.items()}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (pads_by_arithmetic(), ["N", 3, 11, 11]),
        (pads_by_size("float[N,3,8,6] x"), ["N", 3, 8, 9]),
    ],
)
def test_shapes_behind_arithmetic(made, expected, tmp_path):
    graph, known = shapes(made)
    assert known["p"] == expected
    assert [n.op_type for n in graph] == ["Pad", "Conv", "GlobalAveragePool", "Flatten"]
    path = tmp_path / "out.cam.onnx"
    report = rewrite_onnx(made.SerializeToString(), path, layers="c")
    assert report.output_error == 0


def test_a_size_that_is_open_is_computed_at_run_time():
    graph, known = shapes(pads_by_size("float[N,3,8,W] x"))
    assert "Gather" in [n.op_type for n in graph]
    assert not isinstance(known["p"][3], int)


def flattened_by_size(inputs):
    """Cells to tokens, as traces spell it: ``x.reshape(x.shape[0], 5, -1)``."""
    made = model(
        "c = Conv(x, w) s = Shape(c) n = Gather(s, first) u = Unsqueeze(n, zero) "
        "shape = Concat<axis=0>(u, five, rest) r = Reshape(c, shape) t = Transpose<perm=[0,2,1]>(r) "
        "p = ReduceMean<keepdims=0>(t, one) y = Flatten(p)",
        inputs=inputs,
        initializers=weights(w=(5, 3, 3, 3)),
    )
    for name, listed in {"first": 0, "zero": [0], "five": [5], "rest": [-1], "one": [1]}.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(listed, np.int64), name))
    return made


def test_an_open_batch_hides_no_other_size():
    _, known = shapes(flattened_by_size("float[N,3,8,6] x"))
    assert known["t"] == ["N", 24, 5]
    _, known = shapes(flattened_by_size("float[N,3,H,6] x"))
    assert [isinstance(d, int) for d in known["t"]] == [False, False, True]


def test_a_size_that_grows_with_the_batch_stays_open():
    made = model(
        "r = Reshape(x, rows) t = Transpose<perm=[1,0]>(r) y = ReduceMean<keepdims=0>(t, zero)",
        inputs="float[N,3,8,6] x",
        outputs="float[M] y",
    )
    for name, listed in {"rows": [-1, 6], "zero": [0]}.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(listed, np.int64), name))
    _, known = shapes(made)
    assert known["t"][0] == 6
    assert not isinstance(known["t"][1], int)
    assert known["t"][1] != "N"


def test_what_is_no_arithmetic_on_sizes_stays():
    made = model(
        "draw = RandomUniform<shape=[3], dtype=1>() bits = Bernoulli<dtype=7>(ones) "
        "half = Mul(ones, ones) two = Add(one, one) "
        "a = Cast<to=1>(bits) e = Add(draw, a) f = Add(e, half) y = Add(x, f)",
        inputs="float[N,3] x",
        outputs="float[N,3] y, int64[1] two",
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "ones"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.int64), "one"))
    graph, _ = shapes(made)
    assert [n.op_type for n in graph] == [n.op_type for n in made.graph.node]


def test_arithmetic_that_fails_is_left_to_the_run_time():
    made = model(
        "k = Div(one, zero) r = Reshape(one, bad) a = Add(k, r) f = Cast<to=1>(a) y = Add(x, f)",
        inputs="float[N,3] x",
        outputs="float[N,3] y",
    )
    for name, listed in {"one": [1], "zero": [0], "bad": [2, 3]}.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(listed, np.int64), name))
    graph, _ = shapes(made)
    assert "Reshape" in [n.op_type for n in graph]
