"""Scan, Loop and the recurrent operators: float64 against finite differences, ONNX Runtime against that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxcam.errors import NoGradientRule
from onnxcam.export.from_onnx import normalize
from onnxcam.export.gradients.builder import Builder
from onnxcam.export.gradients.engine import differentiate, prune, shape_unknown

from .harness import (
    FLOAT,
    HALF,
    Case,
    arrays,
    case,
    declare,
    difference,
    feeds_of,
    finite_difference_error,
    forward,
    gradient_of,
    run_ort,
    seed_like,
)

CELL = "m = MatMul(h, w); a = Add(m, u); k = Tanh(a); o = Mul(k, u)"
SCAN = "Scan<num_scan_inputs = 1%s, body = b (TYPE[2,4] h, TYPE[2,4] u) => (TYPE[2,4] k, TYPE[2,4] o) {%s}>"
LOOP = "Loop(n, go, x)<body = b (int64 i, bool p, TYPE%s h) => (bool q, TYPE%s k%s) {%s}>"
STEP = "q = Identity(p); d = Cast<to = FLOAT>(i); m = MatMul(h, w); a = Add(m, d); k = Sin(a); o = Mul(k, h)"
STACKED = ", TYPE[2,4] o"
AXES = (
    ", scan_input_axes = [1], scan_input_directions = [1], scan_output_axes = [2], "
    "scan_output_directions = [1]"
)
GO = {"n": np.array(3), "go": np.array(True)}


def loop(name: str, text: str, x: Any = (2, 4), w: Any = (4, 4), **values: Any) -> Case:
    wrt = values.pop("wrt", ("x", "w"))
    return case(name, text, x=x, w=w, wrt=wrt, **{**GO, **values})


LOOPS = [
    case("a scan's stack", f"r, y = {SCAN % ('', CELL)}(s, x)", x=(5, 2, 4), s=(2, 4), w=(4, 4), wrt="xsw"),
    case("a scan's end", f"y, r = {SCAN % ('', CELL)}(s, x)", x=(5, 2, 4), s=(2, 4), w=(4, 4), wrt="xsw"),
    case(
        "a scan along other axes, from the end",
        f"e, r = {SCAN % (AXES, CELL)}(s, x); z = ReduceSum<keepdims = 0>(r); y = Mul(e, z)",
        x=(2, 5, 4),
        s=(2, 4),
        w=(4, 4),
        wrt="xsw",
    ),
    case(
        "a state that depends on one that counts",
        "e, f, y = Scan<num_scan_inputs = 1, body = b (TYPE[4] h, TYPE[4] g, TYPE[4] u) => "
        "(TYPE[4] k, TYPE[4] l, TYPE[4] o) { k = Mul(h, u); l = Add(g, h); o = Sin(g) }>(s, t, x)",
        x=(3, 4),
        s=(4,),
        t=(4,),
        wrt="xst",
    ),
    case(
        "a state that counts steps",
        "c, y = Scan<num_scan_inputs = 1, body = b (int64 n, TYPE[4] u) => (int64 m, TYPE[4] o) "
        "{ m = Add(n, one); d = Cast<to = FLOAT>(m); v = Mul(d, u); o = Sin(v) }>(zero, x)",
        x=(3, 4),
        one=np.array(1),
        zero=np.array(0),
    ),
    case(
        "a scan inside another",
        "e, y = Scan<num_scan_inputs = 1, body = b (TYPE[4] h, TYPE[3,4] u) => (TYPE[4] k, TYPE[3,4] o) "
        "{ k, o = Scan<num_scan_inputs = 1, body = c (TYPE[4] h2, TYPE[4] u2) => (TYPE[4] k2, TYPE[4] o2) "
        "{ m = Mul(h2, w); a = Add(m, u2); k2 = Tanh(a); o2 = Mul(k2, h2) }>(h, u) }>(s, x)",
        x=(2, 3, 4),
        s=(4,),
        w=(4,),
        wrt="xsw",
    ),
    case(
        "a branch inside a scan",
        "e, y = Scan<num_scan_inputs = 1, body = b (TYPE[4] h, TYPE[4] u) => (TYPE[4] k, TYPE[4] o) "
        "{ z = ReduceSum<keepdims = 0>(u); p = Greater(z, zero); k = If(p) <then_branch = t () => "
        "(TYPE[4] r) { r = Mul(h, w) }, else_branch = f () => (TYPE[4] v) { v = Sin(u) }>; o = Mul(k, u) }>"
        "(s, x)",
        x=(4, 4),
        s=(4,),
        w=(4,),
        zero=np.array(0.0),
        wrt="xsw",
    ),
    loop("a loop's end", f"y = {LOOP % ('[2,4]', '[2,4]', '', STEP.rpartition(';')[0])}"),
    loop("a loop's stack", f"e, y = {LOOP % ('[2,4]', '[2,4]', STACKED, STEP)}"),
    loop("a loop, both", f"e, z = {LOOP % ('[2,4]', '[2,4]', STACKED, STEP)}; y = Add(e, z)"),
    loop(
        "a loop of a number of the run time",
        f"y, z = {LOOP % ('[2,4]', '[2,4]', STACKED, STEP)}",
        feeds=("n",),
    ),
    loop(
        "a loop that ends itself",
        f"y, z = {LOOP % ('[2,4]', '[2,4]', STACKED, STEP.replace('q = Identity(p)', 'q = Less(i, last)'))}",
        n=np.array(9),
        last=np.array(2),
    ),
    loop(
        "a loop whose shapes nobody gives",
        f"y, z = {LOOP % ('[]', '[]', ', TYPE[] o', STEP)}",
    ),
    case(
        "a loop over a number",
        "y, z = Loop(n, go, x)<body = b (int64 i, bool p, TYPE[] h) => (bool q, TYPE[] k, TYPE[] o) "
        "{ q = Identity(p); a = Mul(h, w); k = Sin(a); o = Mul(k, h) }>",
        x=np.array(0.7),
        w=np.array(1.3),
        wrt="xw",
        **GO,
    ),
    loop(
        "a loop without a state",
        "y = Loop(n, go)<body = b (int64 i, bool p) => (bool q, TYPE[2,4] o) "
        "{ q = Identity(p); d = Cast<to = FLOAT>(i); a = Add(x, d); m = MatMul(a, w); o = Sin(m) }>",
    ),
    loop(
        "a loop whose state passes by",
        "e, y = Loop(n, go, x)<body = b (int64 i, bool p, TYPE[2,4] h) => (bool q, TYPE[2,4] k, TYPE[2,4] o) "
        "{ q = Identity(p); k = Identity(h); m = MatMul(h, w); o = Sin(m) }>",
    ),
]


def recurrent(op: str, name: str, attributes: str = "", ways: int = 1, **more: Any) -> Case:
    """Over 4 steps of a batch of 2, from 5 numbers to 3; all results count."""
    rows = {"RNN": 3, "GRU": 9, "LSTM": 12}[op]
    values = {"x": (4, 2, 5), "w": (ways, rows, 5), "r": (ways, rows, 3), **more}
    given = [v if v in values else "" for v in "xwrbnhcp"]
    while not given[-1]:
        given.pop()
    cells = op == "LSTM"
    return case(
        f"{op}, {name}",
        f"s, h1{', c1' * cells} = {op}<hidden_size = 3{attributes}>({', '.join(given)}); "
        f"e = Mul(h1, {'c1' if cells else 'h1'}); y = Add(s, e)",
        **values,
        wrt=tuple(k for k in values if k != "n"),
    )


BOTH = {"attributes": ', direction = "bidirectional"', "ways": 2}
BACK = ', direction = "reverse"'
LENGTHS = np.array([4, 2], np.int32)
RECURRENT = [
    recurrent("RNN", "plain"),
    recurrent("RNN", "from the end, with all", BACK, b=(1, 6), h=(1, 2, 3)),
    recurrent("GRU", "plain"),
    recurrent("GRU", "both ways, with all", **BOTH, b=(2, 18), h=(2, 2, 3)),
    recurrent("GRU", "reset behind the product", BACK + ", linear_before_reset = 1", b=(1, 18)),
    recurrent("LSTM", "plain"),
    recurrent("LSTM", "with peepholes", b=(1, 24), h=(1, 2, 3), c=(1, 2, 3), p=(1, 9)),
    recurrent("LSTM", "both ways, with all", **BOTH, b=(2, 24), h=(2, 2, 3), c=(2, 2, 3)),
]
#: What onnx.reference computes otherwise, or not: sequences that end early, other activations.
RUNTIME = [
    recurrent("GRU", "both ways, with lengths", **BOTH, b=(2, 18), n=LENGTHS, h=(2, 2, 3)),
    recurrent("LSTM", "both ways, with lengths", **BOTH, b=(2, 24), n=LENGTHS),
    recurrent("GRU", "plain"),
    recurrent("GRU", "both ways, with all", **BOTH, b=(2, 18), h=(2, 2, 3)),
    recurrent("GRU", "reset behind the product", BACK + ", linear_before_reset = 1", b=(1, 18)),
    recurrent("LSTM", "plain"),
    recurrent("LSTM", "with peepholes", b=(1, 24), h=(1, 2, 3), c=(1, 2, 3), p=(1, 9)),
    recurrent("LSTM", "both ways, with all", **BOTH, b=(2, 24), h=(2, 2, 3), c=(2, 2, 3)),
]
#: What onnx.reference computes otherwise, or not: sequences that end early, other activations.
RUNTIME = [
    recurrent("GRU", "both ways, with lengths", **BOTH, b=(2, 18), n=LENGTHS, h=(2, 2, 3)),
    recurrent("LSTM", "both ways, with lengths", **BOTH, b=(2, 24), n=LENGTHS),
    recurrent(
        "RNN", "both ways, other activations", BOTH["attributes"] + ', activations = ["Relu", "Tanh"]', 2
    ),
]
CASES = LOOPS + RECURRENT


def in_runtime(c: Case, resized: Any = None, batch: bool = False) -> tuple[np.ndarray, list[np.ndarray]]:
    """The result and the gradients in float32; ``batch``: with a symbol for the size of the batch."""
    values = arrays(c, resized)
    dims = {n: [v.shape[0], "N", v.shape[2]] for n, v in values.items() if n in "xhc" and v.ndim == 3}
    model = forward(c, FLOAT, values, dims if batch else None)
    feeds = feeds_of(c, values, FLOAT)
    y = run_ort(model, feeds, ["y"])[0]
    if not batch:
        declare(model, y)
    built = gradient_of(model, c.wrt, check=False)
    y, *grads = run_ort(built.model, {**feeds, "seed": seed_like(y)}, ["y", *built.outputs])
    return y, grads


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_gradient(c: Case) -> None:
    error, grads, y = finite_difference_error(c)
    assert error < c.tolerance
    y32, grads32 = in_runtime(c)
    assert difference(y32, y) < 1e-5
    for name, a, b in zip(c.wrt, grads32, grads, strict=True):
        assert difference(a, b) < 1e-5, name


@pytest.mark.parametrize("c", RUNTIME, ids=lambda c: c.name)
def test_what_onnx_runtime_alone_computes(c: Case) -> None:
    values = arrays(c)
    model, feeds = forward(c, FLOAT, values), feeds_of(c, values, FLOAT)
    y = run_ort(model, feeds, ["y"])[0]
    seed = seed_like(y)
    built = gradient_of(declare(model, y), c.wrt)
    for name, g in zip(c.wrt, run_ort(built.model, {**feeds, "seed": seed}, built.outputs), strict=True):
        u = seed_like(g) / np.float32(np.sqrt(g.size))

        def along(t: float, name: str = name, u: np.ndarray = u) -> float:
            return float(
                np.sum(seed * run_ort(model, {**feeds, name: feeds[name] + np.float32(t) * u}, ["y"])[0])
            )

        slope = (4 * (along(0.05) - along(-0.05)) / 0.1 - (along(0.1) - along(-0.1)) / 0.2) / 3
        assert abs(slope - np.sum(g * u)) < 2e-3 * np.linalg.norm(g), name


@pytest.mark.parametrize("count", [0, 1, 4])
def test_one_file_for_any_number_of_repetitions(count: int) -> None:
    """A number that the run time reads: x is halved so often, and with none of it nothing happens."""
    c = loop(
        "halved",
        "y = Loop(n, go, x)<body = b (int64 i, bool p, TYPE[2,4] h) => (bool q, TYPE[2,4] k) "
        "{ q = Identity(p); k = Mul(h, w) }>",
        w=np.array(0.5),
        n=np.array(count),
        feeds=("n",),
    )
    y, (x, w) = in_runtime(c)
    seed = seed_like(y)
    np.testing.assert_allclose(x, seed * 0.5**count, rtol=1e-6)
    expected = np.sum(seed * arrays(c)["x"]) * count * 0.5 ** (count - 1)
    np.testing.assert_allclose(w, expected, rtol=1e-5)


@pytest.mark.parametrize("c", RECURRENT, ids=lambda c: c.name)
def test_any_batch(c: Case) -> None:
    """One graph is right at two sizes of the batch."""
    three = {n: (v[0], 3, v[2]) for n, v in c.values.items() if n in "xhc" and isinstance(v, tuple)}
    assert in_runtime(c, batch=True)[1][0].shape == (4, 2, 5)
    for a, b in zip(in_runtime(c, three, batch=True)[1], in_runtime(c, three)[1], strict=True):
        assert difference(a, b) < 1e-5


def test_what_a_repetition_does_not_need_is_not_kept() -> None:
    c = next(c for c in LOOPS if c.name == "a state that depends on one that counts")
    model = forward(c, FLOAT, arrays(c))
    (again,) = [n for n in gradient_of(model, ["t"], check=False).added if len(n.output) > 2]
    assert len(again.output) == 3 + 1  # the sine's argument; that of the product is not


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (", clip = 3.0", "it clips what goes into its activations"),
        (", input_forget = 1", "it couples its input and forget gates"),
        (', activations = ["Sigmoid", "Affine", "Tanh"]', "its activation Affine is not known"),
    ],
)
def test_what_is_not_defined_is_said(attributes: str, reason: str) -> None:
    c = recurrent("LSTM", "refused", attributes)
    with pytest.raises(NoGradientRule, match=f"LSTM .* input X: {reason}"):
        gradient_of(forward(c, FLOAT, arrays(c)), ["x"], check=False)


@pytest.mark.parametrize("shapes", ["[];[]", "[r,4];[s,4]", "[r,4];[2,4]"])
def test_a_state_that_grows_is_refused(shapes: str) -> None:
    begin, end = shapes.split(";")
    c = loop(
        "grows",
        f"y = Loop(n, go, x)<body = b (int64 i, bool p, TYPE{begin} h) => (bool q, TYPE{end} k) "
        "{ q = Identity(p); m = MatMul(h, w); a = Sin(m); k = Concat<axis = 0>(h, a) }>",
    )
    with pytest.raises(NoGradientRule, match=r"Loop .* input v_initial: its state 'h' may change its shape"):
        gradient_of(forward(c, FLOAT, arrays(c)), ["x"], check=False)


def test_half_precision_is_differentiated_in_float32() -> None:
    c = LOOPS[0]
    model = normalize(ir.from_proto(forward(c, HALF, arrays(c))))
    seed = ir.Value(name="seed", shape=ir.Shape([5, 2, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(seed)
    op = Builder(model.graph, shape_unknown)
    values = {v.name: v for v in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs))}
    found = differentiate(op, {values["y"]: op.wrap(seed)}, [values["w"]])[values["w"]]
    model.graph.outputs.append(op.output(found, "g", values["w"], single=True))
    prune(op)
    g = np.asarray(seed_like(np.zeros((5, 2, 4), np.float32)))
    (got,) = run_ort(ir.to_proto(model), {**feeds_of(c, arrays(c), HALF), "seed": g}, ["g"])
    assert got.dtype == np.float32
    assert difference(got, in_runtime(c)[1][2]) < 1e-2


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_columns_of_an_image_are_read_as_torch_does(tmp_path: Path, kind: str) -> None:
    """A recogniser of text: convolutions, then two layers over the columns, both ways."""
    torch = pytest.importorskip("torch")
    from onnxcam.export import export_torch

    class Recogniser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = torch.nn.Conv2d(3, 4, 3, 4, 1), torch.nn.ReLU()
            self.rnn = getattr(torch.nn, kind)(4 * 4, 6, num_layers=2, bidirectional=True, batch_first=True)
            self.head = torch.nn.Linear(12, 5)

        def forward(self, x: Any) -> Any:
            columns = self.act(self.conv(x)).permute(0, 3, 1, 2).flatten(2)
            return self.head(self.rnn(columns)[0].mean(1))

    torch.manual_seed(0)
    report = export_torch(
        Recogniser().eval(), torch.randn(1, 3, 16, 40), tmp_path / "model.onnx", layers="act"
    )
    assert report.gradient_error is not None
    assert report.gradient_error < 1e-5
