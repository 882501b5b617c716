"""The reverse walk: what it builds and what not, accumulation, windows, gaps, and the graphs it emits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcam.errors import LayerNotOnPath, ModelError, NoGradientRule, UnknownLayer
from onnxcam.export.from_onnx import normalize
from onnxcam.export.gradients import add_gradients, engine, registry, vjp

from .cases import CASES, CONVOLUTION, POOLING, vector
from .harness import (
    DOUBLE,
    FLOAT,
    HALF,
    Case,
    Gradient,
    arrays,
    case,
    declare,
    difference,
    feeds_of,
    forward,
    gradient_of,
    ops,
    passes_full_check,
    run_ort,
    run_reference,
    seed_like,
)


def built(
    text: str, *, wrt: Any = ("x",), of: str = "y", opset: int = 18, dynamic: bool = False, **values: Any
):
    """The gradient model of a text, its forward model and what to feed; ``dynamic`` is the batch alone."""
    c = case(
        "engine",
        text,
        wrt=tuple(k for k, v in values.items() if isinstance(v, tuple) and k == "x"),
        opset=opset,
        **values,
    )
    data = arrays(c)
    model = forward(c, FLOAT, data, {"x": ["N", *data["x"].shape[1:]]} if dynamic else None)
    feeds = feeds_of(c, data, FLOAT)
    y = run_ort(model, feeds, ["y"])[0]
    if not dynamic:
        declare(model, y)
    return gradient_of(model, wrt, of, check=not dynamic), model, {**feeds, "seed": seed_like(y)}


# -- activity -----------------------------------------------------------------------------------


def test_nothing_is_built_off_the_path() -> None:
    # The branch through Exp does not depend on x; the weight's gradient is not wanted.
    gradient, _, _ = built("a = Relu(x); e = Exp(w); m = Mul(a, e); y = Add(m, w)", x=(2, 3), w=(2, 3))
    assert ops(gradient) == ["Mul", "Greater", "Where"]


def test_nothing_is_built_before_the_layer() -> None:
    gradient, _, _ = built("a = Exp(x); b = Exp(a); y = Tanh(b)", wrt=("b",), x=(2, 3))
    assert len(gradient.added) == 3  # g * (1 - y * y)
    assert Counter(ops(gradient)) == {"Mul": 2, "Sub": 1}


def test_what_turns_out_unused_is_pruned() -> None:
    # The body of Mish and the rules read values that the gradient does not need in the end.
    gradient, _, _ = built("y = Mish(x)", x=(2, 3))
    used = {i for n in gradient.model.graph.node for i in n.input} | {
        o.name for o in gradient.model.graph.output
    }
    assert all(set(n.output) & used for n in gradient.added)
    constants = {i.name for i in gradient.model.graph.initializer if i.name.startswith("onnxcam/")}
    assert constants <= used


def test_equal_constants_are_shared() -> None:
    gradient, _, _ = built("a = Relu(x); b = Mul(a, a); y = Relu(b)", x=(2, 3))
    zeros = [i for i in gradient.model.graph.initializer if i.name.startswith("onnxcam/")]
    assert len(zeros) == 1


# -- accumulation and several layers ------------------------------------------------------------


def test_a_value_used_twice_gets_both_gradients() -> None:
    gradient, _, feeds = built("a = Mul(x, w); b = Exp(x); y = Add(a, b)", x=(2, 3), w=(2, 3))
    (g,) = run_ort(gradient.model, feeds, gradient.outputs)
    w = next(onnx.numpy_helper.to_array(i) for i in gradient.model.graph.initializer if i.name == "w")
    assert difference(g, feeds["seed"] * (w + np.exp(feeds["x"]))) < 1e-6


def test_layers_that_depend_on_each_other() -> None:
    gradient, _, feeds = built("a = Mul(x, x); b = Exp(a); y = Mul(b, x)", wrt=("b", "a", "x"), x=(2, 3))
    b, a, x = run_ort(gradient.model, feeds, gradient.outputs)
    v, seed = feeds["x"], feeds["seed"]
    assert difference(b, seed * v) < 1e-6
    assert difference(a, seed * v * np.exp(v * v)) < 1e-6
    assert difference(x, seed * np.exp(v * v) * (1 + 2 * v * v)) < 1e-6


def test_the_score_itself_and_a_graph_input_can_be_layers() -> None:
    gradient, _, feeds = built("y = Relu(x)", wrt=("x", "y"), x=(2, 3))
    gx, gy = run_ort(gradient.model, feeds, gradient.outputs)
    assert np.array_equal(gy, feeds["seed"])
    assert np.array_equal(gx, feeds["seed"] * (feeds["x"] > 0))
    assert [o.name for o in gradient.model.graph.output] == ["y", "x.gradient", "y.gradient"]


def test_a_weight_can_be_a_layer() -> None:
    gradient, _, feeds = built("y = MatMul(x, w)", wrt=("w",), x=(2, 3), w=(3, 4))
    (g,) = run_ort(gradient.model, feeds, gradient.outputs)
    assert difference(g, feeds["x"].T @ feeds["seed"]) < 1e-6


def test_two_paths_of_one_gradient_do_not_share_an_output() -> None:
    # a and b get the same gradient, which is the seed: each output has its own name.
    gradient, _, feeds = built("a = Neg(x); b = Exp(x); y = Add(a, b)", wrt=("a", "b"), x=(2, 3))
    for g in run_ort(gradient.model, feeds, gradient.outputs):
        assert np.array_equal(g, feeds["seed"])


# -- windows ------------------------------------------------------------------------------------

BLOCK = """
    q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); kt = Transpose<perm=[0,2,1]>(k);
    s = MatMul(q, kt); p = Softmax(s); o = MatMul(p, v); r = Add(x, o); n = LayerNormalization(r, scale);
    h = MatMul(n, w1); t = Relu(h); u = MatMul(t, w2); z = Add(r, u);
    c = Gather<axis=1>(z, i); y = MatMul(c, head)
"""
SIZES: dict[str, Any] = {
    "x": (2, 9, 4),
    "wq": (4, 4),
    "wk": (4, 4),
    "wv": (4, 4),
    "scale": (4,),
    "w1": (4, 16),
    "w2": (16, 4),
    "i": np.array(0, np.int64),
    "head": (4, 3),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic batch"])
def test_a_class_token_keeps_the_work_on_its_row(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, _, feeds = built(BLOCK, dynamic=dynamic, **SIZES)
    (g,) = run_ort(gradient.model, feeds, gradient.outputs)
    assert g.shape == (2, 9, 4)
    work = gradient_sizes(gradient, feeds)
    hidden = [shape for shape in work if len(shape) == 3 and shape[2] == 16]
    assert hidden
    assert set(hidden) == {(2, 1, 16)}  # the MLP: one token of nine
    scores = [shape for shape in work if shape in ((2, 9, 9), (2, 1, 9))]
    assert scores
    assert set(scores) == {(2, 1, 9)}  # one row of the attention
    monkeypatch.setattr(engine, "input_axes", lambda *_: None)
    whole, _, _ = built(BLOCK, dynamic=dynamic, **SIZES)
    assert difference(run_ort(whole.model, feeds, whole.outputs)[0], g) < 1e-6
    assert (2, 9, 16) in gradient_sizes(whole, feeds)


def gradient_sizes(gradient: Gradient, feeds: dict[str, Any]) -> list[tuple[int, ...]]:
    """The shapes of all results of added nodes, from a run."""
    model = onnx.ModelProto()
    model.CopyFrom(gradient.model)
    names = [n.output[0] for n in gradient.added if n.output[0] not in gradient.outputs]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return [a.shape for a in run_ort(model, feeds, names)]


@pytest.mark.parametrize(
    "tail",
    [
        "c = Gather<axis=1>(z, i); y = Exp(c)",
        "c = Gather<axis=1>(z, i); y = Relu(c)",
        "c, d = Split<axis=1>(z, two); y = Exp(d)",
        "c, d = Split<axis=1>(z, two); e = Exp(c); f = Exp(d); y = Concat<axis=1>(f, e)",
        "c = Slice(z, one, three, one); d = Slice(z, three, five, one); y = Mul(c, d)",
        "c = Slice(z, one, three, one); d = Slice(z, one, three, one); y = Mul(c, d)",
        "c = Slice(z, one, three, one); d = Slice(z, one, three, two_axis);"
        "e = Transpose<perm=[0,2,1]>(d); f = ReduceSum(c); g = ReduceSum(e); y = Add(f, g)",
    ],
)
@pytest.mark.parametrize(
    "middle",
    [
        "z = Softmax(x)",
        "z = Softmax<axis=1>(x)",
        "t = Transpose<perm=[0,2,1]>(x); r = Relu(t); z = Transpose<perm=[0,2,1]>(r)",
        "z = Add(x, row)",
        "z = Mul(x, column)",
        "z = Mul(x, x)",
        "z = Max(x, row)",
        "z = Min(x, x)",
        "z = Pow(x, three_f)",
        "z = MatMul(x, square)",
        "z = MatMul(tall, x)",
        "z = MatMul(x, x)",
        "r = Reshape(x, four); t = Tanh(r); z = Reshape(t, back)",
        "z = Concat<axis=2>(x, x)",
        "z = Concat<axis=1>(x, x)",
        "z = Where(mask, x, row)",
        "z = LayerNormalization(x, row)",
        "z = LayerNormalization<axis=1>(x, square)",
        "z = Clip(x, low)",
        "w = Expand(x, shape); z = Exp(w)",
    ],
)
def test_windows_change_nothing_but_the_work(middle: str, tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        "x": (2, 5, 5),
        "row": (5,),
        "column": (5, 1),
        "square": (5, 5),
        "tall": (2, 5, 5),
        "i": np.array(1, np.int64),
        "two": vector(2, -2 % 5),
        "one": vector(1),
        "three": vector(3),
        "five": vector(5),
        "two_axis": vector(2),
        "four": vector(2, 5, 5, 1),
        "back": vector(2, 5, 5),
        "low": np.array(-0.5),
        "three_f": np.full(5, 3.0),
        "shape": vector(2, 5, 5),
        "mask": np.eye(5, dtype=bool),
    }
    if "Concat<axis=1>(x" in middle:
        values["two"] = vector(2, 8)
    text = f"{middle}; {tail}"
    values = {
        k: v
        for k, v in values.items()
        if k in "".join(c if c.isalnum() or c == "_" else " " for c in text).split()
    }
    values["x"] = (2, 5, 5)
    gradient, _, feeds = built(text, **values)
    got = run_ort(gradient.model, feeds, gradient.outputs)[0]
    monkeypatch.setattr(engine, "input_axes", lambda *_: None)
    whole, _, _ = built(text, **values)
    assert difference(got, run_ort(whole.model, feeds, whole.outputs)[0]) < 1e-6


# -- expansion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["m = Mish(x); y = Exp(m)", "m = Celu(x); y = Exp(m)"])
def test_expansion_leaves_the_forward_nodes_untouched(text: str) -> None:
    gradient, model, _ = built(text, x=(2, 3))
    before = normalize(ir.from_proto(model))
    kept = [n for n in gradient.model.graph.node if not n.name.startswith("onnxcam/")]
    assert [(n.op_type, list(n.input), list(n.output)) for n in kept] == [
        (n.op_type, [v.name for v in n.inputs if v], [v.name for v in n.outputs]) for n in before.graph
    ]
    # In expanding, every node says where it comes from.
    assert any(n.doc_string.startswith("definition of ") for n in gradient.added)


# -- errors -------------------------------------------------------------------------------------


@pytest.fixture
def fewer_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody had written these."""
    for key in (("", "Det", "X"), ("", "CumSum", "x"), ("", "Tan", "input")):
        monkeypatch.delitem(registry._RULES, key)


@pytest.mark.usefixtures("fewer_rules")
def test_all_gaps_are_in_one_error() -> None:
    text = "a = Det(x); b = CumSum(x, i); c = Tan(b); d = Mul(a, c); e = Det(x); y = Mul(d, e)"
    with pytest.raises(NoGradientRule) as caught:
        built(text, x=(2, 2), i=np.array(0, np.int64))
    assert str(caught.value) == (
        "4 operators between 'x' and 'y' cannot be differentiated:\n"
        "  Det (opset 18)  node 'a'  input X: no gradient rule\n"
        "  CumSum (opset 18)  node 'b'  input x: no gradient rule\n"
        "  Tan (opset 18)  node 'c'  input input: no gradient rule\n"
        "  Det (opset 18)  node 'e'  input X: no gradient rule\n"
        "Choose a later layer (`onnxcam layers MODEL` lists those that work), a score that lies before "
        'them, or add the rules: README, "Adding a gradient rule".'
    )


def test_a_gap_before_the_layer_does_not_matter() -> None:
    gradient, _, _ = built("a = CumSum(x, i); y = Exp(a)", wrt=("a",), x=(2, 2), i=np.array(0, np.int64))
    assert ops(gradient) == ["Mul"]


@pytest.mark.usefixtures("fewer_rules")
def test_run_time_attributes_are_among_the_gaps() -> None:
    text = "t = Tile(x, r); a = Det(t); y = Exp(a)"
    c = case("gaps", text, x=(2, 2), r=vector(1, 1), feeds=("r",))
    with pytest.raises(NoGradientRule) as caught:
        gradient_of(forward(c, FLOAT, arrays(c)), ["x"])
    assert "Tile (opset 18)  node 't'  input input: its input repeats is computed at run time" in str(
        caught.value
    )
    assert "Det (opset 18)  node 'a'  input X: no gradient rule" in str(caught.value)


def test_a_further_output_on_the_way_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._RULES, ("", "LayerNormalization", "X"), [])
    vjp("LayerNormalization", wrt="X")(lambda g: g)
    with pytest.raises(
        NoGradientRule, match=r"LayerNormalization .* a gradient flows into its further outputs"
    ):
        built("a, mean = LayerNormalization(x, s); y = Exp(mean)", x=(2, 3), s=(3,))


def test_a_rule_that_needs_a_constant_is_a_gap_too() -> None:
    message = r"Resize .*input X: its sizes are computed at run time, with the policy 'not_larger'"
    text = 'y = Resize<keep_aspect_ratio_policy="not_larger">(x, , , s)'
    with pytest.raises(NoGradientRule, match=message):
        built(text, wrt=("x",), x=(1, 1, 2, 2), s=vector(1, 1, 4, 4), feeds=("s",))


@pytest.mark.parametrize(
    ("text", "layer", "message"),
    [
        (
            "a = Relu(x); b = Exp(x); y = Neg(b)",
            "a",
            r"The score 'y' does not depend on the layer 'a': no gradient can reach it\. Choose",
        ),
        (
            "a = ArgMax(x); b = Cast<to=FLOAT>(a); y = Exp(b)",
            "x",
            r"On the way, ArgMax 'a' lets nothing through \(its result is a whole number\)",
        ),
        ("a = Round(x); y = Exp(a)", "x", r"Round 'a' lets nothing through \(piecewise constant"),
        ("a = EyeLike(x); y = Exp(a)", "x", r"EyeLike 'a' lets nothing through \(it reads the shape"),
        (
            "a = Relu(x); y = Exp(x)",
            "a",
            "Choose a layer before the score: `onnxcam layers MODEL` lists those that work",
        ),
        (
            "a = Exp(x); y = Clip(w, , h); h = ReduceMax<keepdims=0>(a)",
            "x",
            r"Clip 'y' lets nothing through \(the bounds are taken",
        ),
    ],
)
def test_a_layer_that_is_not_on_the_path(text: str, layer: str, message: str) -> None:
    lines = [t.strip() for t in text.split(";")]
    lines.sort(key=lambda t: t.startswith("y ="))
    values: dict[str, Any] = {"x": (2, 3)}
    if "(w" in text:
        values["w"] = (2, 3)
    with pytest.raises(LayerNotOnPath, match=message):
        built("; ".join(lines), wrt=(layer,), **values)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UnknownLayer, match=r"no value named 'rela'.*'relu'"):
        built("relu = Relu(x); y = Exp(relu)", wrt=("rela",), x=(2, 3))


def test_a_seed_whose_name_is_taken() -> None:
    with pytest.raises(ModelError, match="has a value named 'seed' already: choose another name"):
        built("seed = Relu(x); y = Exp(seed)", x=(2, 3))


def test_an_old_opset() -> None:
    c = case("old", "y = Relu(x)", x=(2,), opset=13)
    model = ir.from_proto(forward(c, FLOAT, arrays(c)))
    with pytest.raises(ModelError, match="needs opset 18 or newer, and the model has 13"):
        add_gradients(model, "y", ["x"])


BRANCHES = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[2,3] x, bool[] c) => (float[2,3] y) {
    a = Exp(x)
    b = If (c) <
        then_branch = t () => (float[2,3] u) { u = Relu(a) },
        else_branch = e () => (float[2,3] v) { v = Neg(a) }
    >
    y = Exp(b)
}
"""


def test_behind_an_if_there_is_none_in_the_gradient() -> None:
    assert ops(gradient_of(onnx.parser.parse_model(BRANCHES), ["b"], check=False)) == ["Mul"]


# -- what is emitted ----------------------------------------------------------------------------

#: Missing on CUDA, TensorRT or the web, or not worth a node (GRADIENTS.md, 2.2).
FORBIDDEN = {
    "MaxUnpool",
    "Col2Im",
    "OneHot",
    "Mean",
    "EyeLike",
    "Hardmax",
    "RandomNormalLike",
    "Flatten",
    "Size",
    "Identity",
    "Loop",
    "If",
    "Scan",
}


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_emitted_nodes(c: Case) -> None:
    model = forward(c, FLOAT, arrays(c))
    gradient = gradient_of(model, c.wrt, check=False)
    there = {n.op_type for n in model.graph.node}
    for node in gradient.added:
        assert node.domain == ""
        assert node.name.startswith("onnxcam/")
        assert node.doc_string.startswith(("vjp ", "definition of "))
        assert all(o.startswith("onnxcam/") or o.endswith(".gradient") for o in node.output)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "ConvTranspose":
            pads = attributes.get("pads", [])
            assert pads[: len(pads) // 2] == pads[len(pads) // 2 :], "CUDA has no kernel for asymmetric pads"
            assert "auto_pad" not in attributes
            assert "output_shape" not in attributes
        if node.op_type == "MaxPool":
            assert len(node.output) == 1, "neither TensorRT nor WebGPU gives the indices"
        if node.doc_string.startswith("vjp ") and not node.doc_string.startswith("vjp output"):
            assert node.op_type not in FORBIDDEN - there


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_half_precision_stays_half(c: Case) -> None:
    with np.errstate(over="ignore"):  # a mask of -1e9
        model = forward(c, HALF, arrays(c))
    gradient = gradient_of(model, c.wrt, check=False)
    types = {o.name: o.type.tensor_type.elem_type for o in gradient.model.graph.output}
    assert {types[name] for name in gradient.outputs} == {onnx.TensorProto.FLOAT16}
    if passes_full_check(model):
        onnx.checker.check_model(gradient.model, full_check=True)


@pytest.mark.parametrize("c", CONVOLUTION + POOLING, ids=lambda c: c.name)
def test_classic_operators_need_no_scatter_and_no_gather(c: Case) -> None:
    gradient = gradient_of(forward(c, FLOAT, arrays(c)), c.wrt, check=False)
    assert not {"ScatterND", "ScatterElements", "GatherElements", "GatherND"} & set(ops(gradient))


def test_reference_and_runtime_agree_on_a_small_network() -> None:
    c = case(
        "network",
        """c1 = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w1); r1 = Relu(c1);
        p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r1);
        c2 = Conv<pads=[1,1,1,1], group=2>(p, w2); r2 = HardSwish(c2);
        s = GlobalAveragePool(r2); g = HardSigmoid(s); e = Mul(r2, g);
        a = Add(e, p); m = ReduceMean<keepdims=0>(a, axes); y = Gemm<transB=1>(m, w3)""",
        x=(2, 3, 13, 11),
        w1=(4, 3, 3, 3),
        w2=(4, 2, 3, 3),
        w3=(5, 4),
        axes=vector(2, 3),
    )
    values = arrays(c)
    results = []
    for dtype, run in ((DOUBLE, run_reference), (FLOAT, run_ort)):
        gradient = gradient_of(forward(c, dtype, values), ["x", "r2", "p"])
        seed = np.arange(10).reshape(2, 5).astype(dtype)
        results.append(run(gradient.model, {**feeds_of(c, values, dtype), "seed": seed}, gradient.outputs))
    for a, b in zip(results[1], results[0], strict=True):
        assert difference(a, b) < 1e-5


@pytest.mark.usefixtures("fewer_rules")
def test_a_failure_leaves_the_model_as_it_was():
    model = normalize(
        ir.from_onnx_text(
            '<ir_version: 8, opset_import: ["": 18]> g (float[N,4,8,8] x) => (float[N,4,8,8] y) '
            "{ a = Mish(x) b = Tan(a) y = Relu(b) }"
        )
    )
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(NoGradientRule, match="Tan"):
        add_gradients(model, "y", ["x"])
    assert ir.to_proto(model).SerializeToString() == before


def test_gaps_behind_whole_numbers_are_listed_too():
    model = normalize(
        ir.from_onnx_text(
            '<ir_version: 8, opset_import: ["": 18, "other": 1]> g (float[N,4] x) => (float[N,4] y) '
            "<uint8[N,4] q, float[N,4] d> "
            "{ q = other.Pack(x) c = Cast<to=2>(q) d = other.Unpack(c) y = Relu(d) }"
        )
    )
    with pytest.raises(NoGradientRule, match=r"(?s)2 operators.*other\.Pack.*other\.Unpack"):
        add_gradients(model, "y", ["x"])


def test_half_precision_through_float32_and_past_it() -> None:
    """One way goes through a Cast to float32 and back, the other does not: they are added in float32."""
    text = "w = Cast<to=1>(x); e = Exp(w); h = Cast<to=10>(e); y = Mul(h, x)"
    model = forward(case("two ways", text, x=(2, 3)), HALF, {"x": np.ones((2, 3))})
    gradient = gradient_of(model, ("x",), check=False)
    x = np.linspace(0.1, 1, 6).reshape(2, 3).astype(np.float16)
    (found,) = run_ort(gradient.model, {"x": x, "seed": np.ones_like(x)}, gradient.outputs)
    assert found.dtype == np.float16
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found, np.exp(exact) * (1 + exact), rtol=5e-3)
