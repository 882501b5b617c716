"""If by the branch taken, sequences that the graph shows, and what is refused by name."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxcam.errors import NoGradientRule
from onnxcam.export.from_onnx import normalize
from onnxcam.export.gradients import add_gradients
from onnxcam.export.gradients.builder import Builder
from onnxcam.export.gradients.engine import differentiate, prune

from .harness import run_ort

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 4))
W = RNG.standard_normal((4, 3))
SHAPES = {"three": np.array(3)}


def model(text, word="double", opset=18):
    """``x`` (N, 4) to ``y``; conditions c and d; a weight W."""
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (FLOAT[N,4] x, bool c, bool d) => (y) {{ {text} }}'
    )
    proto = onnx.parser.parse_model(text.replace("FLOAT", word).replace("(y)", f"({word} y)", 1))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("y"))
    dtype = {"double": np.float64, "float": np.float32}[word]
    for name, array in {"W": W.astype(dtype), "always": np.array(True), **SHAPES}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def differentiated(proto, wrt="x"):
    work = normalize(ir.from_proto(proto))
    return add_gradients(work, "y", [wrt])[wrt], ir.to_proto(work)


def declared(proto, y):
    """With the result's shape, for the checker."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(y.dtype)
    graph = proto.graph
    next(v for v in graph.output if v.name == "y").CopyFrom(
        onnx.helper.make_tensor_value_info("y", kind, ["N", *y.shape[1:]])
    )
    return proto


ONE = "y = If(c) <then_branch = t () => (FLOAT[N,3] a) {%s}, else_branch = e () => (FLOAT[N,3] b) {%s}>"
GRAPHS = {
    "captured": "h = Tanh(x) " + ONE % ("a = MatMul(h, W)", "q = MatMul(h, W) b = Sigmoid(q)"),
    "one branch ignores the value": "h = Tanh(x) k = Exp(x) "
    + ONE % ("a = MatMul(h, W)", "b = MatMul(k, W)"),
    "passed on unchanged": "h = MatMul(x, W) " + ONE % ("a = Identity(h)", "b = Neg(h)"),
    "a value read twice": "h = MatMul(x, W) " + ONE % ("a = Mul(h, h)", "q = Exp(h) b = Add(q, h)"),
    "a constant inside": "h = MatMul(x, W) "
    + ONE % ("k = Constant<value = double {3.0}>() a = Mul(h, k)", "b = Neg(h)"),
    "an operator with a definition": "h = MatMul(x, W) " + ONE % ("a = Softsign(h)", "b = LogSoftmax(h)"),
    "nested": "h = Tanh(x) k = Sigmoid(x) "
    + ONE
    % (
        "a = MatMul(h, W)",
        "q = MatMul(k, W) s = Tanh(q) b = If(d) <then_branch = t2 () => (FLOAT[N,3] a2) { a2 = Mul(s, q) }, "
        "else_branch = e2 () => (FLOAT[N,3] b2) { b2 = MatMul(h, W) }>",
    ),
    "several outputs": "h = Tanh(x) p, r = If(c) <then_branch = t () => (FLOAT[N,4] a, FLOAT[N,4] b) "
    "{ a = Exp(h) b = Mul(h, a) }, else_branch = e () => (FLOAT[N,4] k, FLOAT[N,4] l) "
    "{ k = Neg(h) l = Sin(h) }> s = Sin(p) y = Mul(s, r)",
    "one of several outputs used": "h = Tanh(x) p, r = If(c) <then_branch = t () => (FLOAT[N,4] a, "
    "FLOAT[N,4] b) { a = Exp(h) b = Mul(h, a) }, else_branch = e () => (FLOAT[N,4] k, FLOAT[N,4] l) "
    "{ k = Neg(h) l = Sin(h) }> y = Sin(r)",
    "one behind another": "h = Tanh(x) p = If(c) <then_branch = t () => (FLOAT[N,4] a) { a = Exp(h) }, "
    "else_branch = e () => (FLOAT[N,4] b) { b = Sin(h) }> y = If(d) <then_branch = t2 () => (FLOAT[N,4] a2) "
    "{ a2 = Mul(p, h) }, else_branch = e2 () => (FLOAT[N,4] b2) { b2 = Neg(p) }>",
    "a window": "h = Tanh(x) p = If(c) <then_branch = t () => (FLOAT[N,4] a) { a = Exp(h) }, "
    "else_branch = e () => (FLOAT[N,4] b) { b = Sin(h) }> s = Constant<value = int64[1] {1}>() "
    "e = Constant<value = int64[1] {2}>() y = Slice(p, s, e, s)",
    "shapes that differ": "h = Tanh(x) y = If(c) <then_branch = t () => (FLOAT[N,3] a) { a = MatMul(h, W) }, "
    "else_branch = e () => (FLOAT[N,4] b) { b = Sin(h) }>",
    "a constant condition": "h = Tanh(x) y = If(always) <then_branch = t () => "
    "(FLOAT[N,3] a) { q = MatMul(h, W) a = Sin(q) }, else_branch = e () => (FLOAT[N,4] b) { b = Neg(h) }>",
}


@pytest.mark.parametrize("d", [False, True])
@pytest.mark.parametrize("c", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_if_has_the_gradient_of_the_branch_taken(name, c, d):
    proto = model(GRAPHS[name])
    feeds = {"x": X, "c": np.array(c), "d": np.array(d)}
    gradient, built = differentiated(proto)
    forward = ReferenceEvaluator(proto)
    y = np.asarray(forward.run(["y"], feeds)[0])
    seed = RNG.standard_normal(y.shape)
    g = np.asarray(ReferenceEvaluator(built).run([gradient], {**feeds, "seed": seed})[0])
    assert g.shape == X.shape
    u = RNG.standard_normal(X.shape)
    ends = [np.asarray(forward.run(["y"], {**feeds, "x": X + t * u})[0]) for t in (1e-5, -1e-5)]
    slope = float(np.sum(seed * (ends[0] - ends[1]))) / 2e-5
    assert slope == pytest.approx(float(np.sum(g * u)), rel=1e-6, abs=1e-8 * np.linalg.norm(g))

    # The same file in float32, in ONNX Runtime.
    single, feeds32 = (
        model(GRAPHS[name].replace("double", "float"), "float"),
        {**feeds, "x": X.astype(np.float32)},
    )
    gradient, built = differentiated(single)
    if name != "shapes that differ":
        onnx.checker.check_model(declared(built, y.astype(np.float32)), full_check=True)
    got = run_ort(built, {**feeds32, "seed": seed.astype(np.float32)}, [gradient])[0]
    np.testing.assert_allclose(got, g, rtol=1e-4, atol=1e-5 * np.abs(g).max())


def test_a_constant_condition_leaves_no_if_in_the_gradient():
    _, built = differentiated(model(GRAPHS["a constant condition"]))
    assert [n.op_type for n in built.graph.node if n.op_type == "If"] == ["If"]  # the model's own


def test_what_branches_captured_from_a_layer_between_has_its_gradient():
    proto = model(GRAPHS["nested"])
    gradient, built = differentiated(proto, wrt="k")
    feeds = {"x": X, "c": np.array(False), "d": np.array(True), "seed": np.ones((2, 3))}
    (g,) = ReferenceEvaluator(built).run([gradient], feeds)
    k = 1 / (1 + np.exp(-X))
    q = k @ W
    s = np.tanh(q)
    np.testing.assert_allclose(g, (s + q * (1 - s * s)) @ W.T)
    (g,) = ReferenceEvaluator(built).run([gradient], {**feeds, "d": np.array(False)})
    assert not np.asarray(g).any()


def test_a_gap_inside_a_branch_is_named_and_nothing_is_left_behind():
    text = "h = Tanh(x) " + ONE % ("q = MatMul(h, W) a = Det2(q)", "b = MatMul(h, W)")
    proto = model(text.replace("Det2", "Foo"))
    proto.graph.node[1].attribute[0].g.node[1].domain = "com.acme"
    proto.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))
    work = ir.from_proto(proto)
    before = len([*work.graph])
    with pytest.raises(NoGradientRule, match=r"com\.acme\.Foo .* input input 0: no gradient rule"):
        add_gradients(work, "y", ["x"])
    assert len([*work.graph]) == before
    h = next(v for n in work.graph for v in n.outputs if v.name == "h")
    assert {n.graph.name for n in h.consumers()} == {"t", "e"}  # no copy of a branch reads it any more


def test_a_discarded_gradient_frees_what_its_branches_read():
    work = normalize(ir.from_proto(model(GRAPHS["nested"])))
    h = next(v for n in work.graph for v in n.outputs if v.name == "h")
    uses = len(h.uses())
    op = Builder(work.graph)
    y = work.graph.outputs[0]
    differentiate(op, {y: op.wrap(y)}, [work.graph.inputs[0]])
    assert len(h.uses()) > uses
    prune(op)
    assert len(h.uses()) == uses


# -- sequences ----------------------------------------------------------------------------------

SEQUENCES = {
    "an element": "h = Tanh(x) k = Exp(x) s = SequenceConstruct(h, k) i = Constant<value = int64 {1}>() "
    "y = SequenceAt(s, i)",
    "the last element": "h = Tanh(x) k = Exp(x) s = SequenceConstruct(k, h) "
    "i = Constant<value = int64 {-1}>() y = SequenceAt(s, i)",
    "joined": "h = Tanh(x) k = Exp(x) s = SequenceConstruct(h, k) y = ConcatFromSequence<axis = 1>(s)",
    "stacked": "h = Tanh(x) k = Exp(x) s = SequenceConstruct(h, k) "
    "y = ConcatFromSequence<axis = -1, new_axis = 1>(s)",
    "read twice": "h = Tanh(x) k = Exp(x) s = SequenceConstruct(h, k) i = Constant<value = int64 {0}>() "
    "a = SequenceAt(s, i) b = ConcatFromSequence<axis = 0>(s) m = Sum(a) y = Concat<axis = 0>(m, b)",
    "a part of equal ones": "h = Tanh(x) n = Constant<value = int64 {3}>() "
    "s = SplitToSequence<axis = 1>(h, n) i = Constant<value = int64 {1}>() p = SequenceAt(s, i) y = Exp(p)",
    "a part of given ones": "h = Tanh(x) n = Constant<value = int64[2] {1, 3}>() "
    "s = SplitToSequence<axis = 1>(h, n) i = Constant<value = int64 {-1}>() p = SequenceAt(s, i) y = Exp(p)",
    "unbound": "h = Tanh(x) s = SplitToSequence<axis = 1, keepdims = 0>(h) "
    "i = Constant<value = int64 {2}>() p = SequenceAt(s, i) y = Exp(p)",
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_that_the_graph_shows_is_no_obstacle(name):
    proto = model(SEQUENCES[name])
    feeds = {"x": X, "c": np.array(True), "d": np.array(True)}
    gradient, built = differentiated(proto)
    forward = ReferenceEvaluator(proto)
    y = np.asarray(forward.run(["y"], feeds)[0])
    seed = RNG.standard_normal(y.shape)
    g = np.asarray(ReferenceEvaluator(built).run([gradient], {**feeds, "seed": seed})[0])
    u = RNG.standard_normal(X.shape)
    ends = [np.asarray(forward.run(["y"], {**feeds, "x": X + t * u})[0]) for t in (1e-5, -1e-5)]
    slope = float(np.sum(seed * (ends[0] - ends[1]))) / 2e-5
    assert slope == pytest.approx(float(np.sum(g * u)), rel=1e-6)
    gradient, built = differentiated(model(SEQUENCES[name], "float"))
    single = {**feeds, "x": X.astype(np.float32), "seed": seed.astype(np.float32)}
    np.testing.assert_allclose(run_ort(built, single, [gradient])[0], g, rtol=1e-4, atol=1e-5)


# -- what is refused ----------------------------------------------------------------------------

LOOP = (
    "y = Loop(three, always, %s) <body = l (int64 i, bool p, FLOAT[N,4] q) => (bool p2, FLOAT[N,4] r) "
    "{ p2 = Identity(p) %s }>"
)
REFUSED = {
    "a sequence inside a Loop": (
        LOOP % ("x", "s = SequenceConstruct(q, q) j = Cast<to = 7>(p) r = SequenceAt(s, j)"),
        "SequenceConstruct .*input inputs: it handles a sequence of tensors",
    ),
    "a sequence inside a Loop that captures": (
        "h = Tanh(x) " + LOOP % ("x", "s = SequenceConstruct(h, q) j = Cast<to = 7>(p) r = SequenceAt(s, j)"),
        "SequenceConstruct .*input inputs: it handles a sequence of tensors",
    ),
    "sequence of the run time": (
        "h = Tanh(x) s = SequenceConstruct(h, x) j = Cast<to = 7>(c) y = SequenceAt(s, j)",
        "SequenceConstruct .*input inputs: it handles a sequence of tensors",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_the_run_time_knows_is_refused_by_name(name):
    text, message = REFUSED[name]
    proto = model(text)
    with pytest.raises(NoGradientRule, match=message):
        differentiated(proto)
