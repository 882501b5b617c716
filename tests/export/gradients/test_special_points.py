"""Kinks, ties and extremes: what the gradient is there, written out. It is torch's if torch has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .harness import FLOAT, arrays, case, declare, feeds_of, forward, gradient_of, run_ort, run_reference

inf = np.inf


def f(*entries: Any) -> np.ndarray[Any, Any]:
    return np.array(entries, dtype=np.float64)


def s(value: float) -> np.ndarray[Any, Any]:
    return np.array(value, dtype=np.float64)


AXIS_1 = np.array([1], dtype=np.int64)
TIES = f([[1, 2, 2], [2, 0, 2], [1, 2, 2]])[None]  # one image of 3 x 3

#: Name, graph, values, and the gradient of the sum of y with respect to x.
POINTS = [
    ("relu at 0", "y = Relu(x)", {"x": f(-1, 0, -0.0, 1)}, f(0, 0, 0, 1)),
    ("leaky relu at 0", "y = LeakyRelu<alpha=0.5>(x)", {"x": f(-1, 0, 1)}, f(0.5, 0.5, 1)),
    ("elu at 0", "y = Elu<alpha=2.0>(x)", {"x": f(0, 1, -1e4)}, f(2, 1, 0)),
    (
        "clip at its bounds",
        "y = Clip(x, l, h)",
        {"x": f(-1, 0, 0.5, 1, 2), "l": s(0), "h": s(1)},
        f(0, 0, 1, 0, 0),
    ),
    ("relu6", "y = Clip(x, l, h)", {"x": f(-1, 0, 3, 6, 7), "l": s(0), "h": s(6)}, f(0, 0, 1, 0, 0)),
    ("clip with equal bounds", "y = Clip(x, l, h)", {"x": f(-1, 1, 3), "l": s(1), "h": s(1)}, f(0, 0, 0)),
    (
        "hard sigmoid at its bounds",
        "y = HardSigmoid<alpha=0.25>(x)",
        {"x": f(-3, -2, 0, 2, 3)},
        f(0, 0, 0.25, 0, 0),
    ),
    ("hard swish at its bounds", "y = HardSwish(x)", {"x": f(-4, 0, 4)}, f(0, 0.5, 1)),
    ("abs at 0", "y = Abs(x)", {"x": f(-2, 0, 2)}, f(-1, 0, 1)),
    (
        "softmax of a row that is masked out, patched",
        "m = Add(x, w); p = Softmax(m); n = IsNaN(p); q = Where(n, z, p); y = Mul(q, w2)",
        {"x": f([0, 0], [1, 2]), "w": f([0, 0], [-inf, -inf]), "z": s(0), "w2": f([1, 3], [1, 3])},
        f([-0.5, 0.5], [0, 0]),
    ),
    (
        "softmax at its ends",
        "y = Mul(p, w); p = Softmax(x)",
        {"x": f(1e4, -1e4, 1e4), "w": f(1, 2, 3)},
        f(-0.5, 0, 0.5),
    ),
    ("softmax of a sum", "y = Softmax(x)", {"x": f(1e4, -1e4)}, f(0, 0)),
    ("log softmax at its ends", "y = LogSoftmax(x)", {"x": f(1e4, -1e4)}, f(-1, 1)),
    (
        "softmax of masked scores",
        "m = Add(x, w); p = Softmax(m); y = Mul(p, v)",
        {"x": f(1, 2), "w": f(0, -inf), "v": f(5, 7)},
        f(0, 0),
    ),
    ("sigmoid at its ends", "y = Sigmoid(x)", {"x": f(-1e4, 0, 1e4)}, f(0, 0.25, 0)),
    ("tanh at its ends", "y = Tanh(x)", {"x": f(-1e4, 0, 1e4)}, f(0, 1, 0)),
    ("softplus at its ends", "y = Softplus(x)", {"x": f(-1e4, 0, 1e4)}, f(0, 0.5, 1)),
    ("gelu at its ends", "y = Gelu(x)", {"x": f(-1e4, 0, 1e4)}, f(0, 0.5, 1)),
    ("gelu by tanh at its ends", 'y = Gelu<approximate="tanh">(x)', {"x": f(-100, 0, 100)}, f(0, 0.5, 1)),
    ("erf at its ends", "y = Erf(x)", {"x": f(-1e4, 0, 1e4)}, f(0, 2 / np.sqrt(np.pi), 0)),
    ("sqrt at 0", "y = Sqrt(x)", {"x": f(0, 0.25)}, f(inf, 1)),
    ("reduce l2 at 0", "y = ReduceL2(x, a)", {"x": f([0, 0], [3, 4]), "a": AXIS_1}, f([0, 0], [0.6, 0.8])),
    ("max ties", "y = Max(x, w)", {"x": f(1, 2, 3), "w": f(2, 2, 2)}, f(0, 0.5, 1)),
    ("min ties", "y = Min(x, w)", {"x": f(1, 2, 3), "w": f(2, 2, 2)}, f(1, 0.5, 0)),
    ("max with itself", "y = Max(x, x)", {"x": f(1, 2)}, f(1, 1)),
    (
        "reduce max ties share",
        "y = ReduceMax(x, a)",
        {"x": f([1, 1, 0], [2, 3, 1]), "a": AXIS_1},
        f([0.5, 0.5, 0], [0, 1, 0]),
    ),
    ("pow 0 of 0", "y = Pow(x, w)", {"x": f(0, 2), "w": s(0)}, f(0, 0)),
    ("pow 1 of 0", "y = Pow(x, w)", {"x": f(0, 2), "w": f(1, 1)}, f(1, 1)),
    ("pow 2 of 0", "y = Pow(x, w)", {"x": f(0, -2), "w": s(2)}, f(0, -4)),
    ("pow 3 of 0", "y = Pow(x, w)", {"x": f(0, -2), "w": s(3)}, f(0, 12)),
    ("exponent of 0", "y = Pow(w, x)", {"w": f(0, 1), "x": f(2, 3)}, f(0, 0)),
    (
        "where drops a NaN",
        "n = Log(x); c = Less(x, z); y = Where(c, z, n)",
        {"x": f(-1, 2), "z": s(0)},
        f(0, 0.5),
    ),
    (
        "maxpool tiles, the first of equals",
        "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)",
        {"x": f([[7, 7, 1, 2], [7, 7, 2, 2]])[None]},
        f([[1, 0, 0, 1], [0, 0, 0, 0]])[None],
    ),
    (
        "maxpool windows that overlap, the first of equals",
        "y = MaxPool<kernel_shape=[2,2]>(x)",
        {"x": TIES},
        f([[0, 2, 0], [1, 0, 1], [0, 0, 0]])[None],
    ),
    (
        "maxpool of a constant",
        "y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x)",
        {"x": np.zeros((1, 1, 3, 3))},
        f([[1, 1, 0], [1, 1, 0], [0, 0, 0]])[None],
    ),
    (
        "maxpool of the lowest number",
        "y = MaxPool<kernel_shape=[2,2], pads=[0,0,1,1]>(x)",
        {"x": np.full((1, 1, 1, 1), -3e38)},
        f([[1.0]])[None],
    ),
    (
        "global max pool, the first of equals",
        "y = GlobalMaxPool(x)",
        {"x": TIES},
        f([[0, 1, 0], [0, 0, 0], [0, 0, 0]])[None],
    ),
    (
        "layer norm of a constant",
        "y0 = LayerNormalization<epsilon=1.0>(x, w); y = Mul(y0, v)",
        {"x": f([2, 2]), "w": f(1, 1), "v": f(1, 3)},
        f([-1, 1]),
    ),
]


@pytest.mark.parametrize(("name", "text", "values", "expected"), POINTS, ids=[p[0] for p in POINTS])
def test_special_point(name: str, text: str, values: dict[str, Any], expected: np.ndarray[Any, Any]) -> None:
    if expected.ndim == 3:  # an image: with its batch
        expected = expected[None]
        values = {k: v[None] if v.ndim == 3 else v for k, v in values.items()}
    lines = text.split("; ")
    text = "; ".join(lines[::-1] if lines[0].startswith("y =") else lines)
    c = case(name, text, wrt=("x",), opset=20, **values)
    data = arrays(c)
    model = forward(c, FLOAT, data)
    feeds = feeds_of(c, data, FLOAT)
    y = run_ort(model, feeds, ["y"])[0]
    built = gradient_of(declare(model, y), ["x"])
    g = run_ort(built.model, {**feeds, "seed": np.ones_like(y)}, built.outputs)[0]
    np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", [run_reference, run_ort])
def test_unpooling_into_another_shape(run: Any) -> None:
    """ONNX counts the indices in the pool's shape, ONNX Runtime in the one asked for: each finds its own."""
    c = case(
        "unpooled",
        "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i, s)",
        x=f(1, 2, 3, 4).reshape(1, 1, 2, 2),
        i=np.array([[[[0, 3], [9, 14]]]]),
        s=np.array([1, 1, 5, 6]),
        wrt=("x",),
    )
    data = arrays(c)
    model = forward(c, FLOAT, data)
    feeds = feeds_of(c, data, FLOAT)
    y = run(model, feeds, ["y"])[0]
    built = gradient_of(declare(model, y), ["x"])
    seed = np.arange(30, dtype=np.float32).reshape(1, 1, 5, 6)
    g = run(built.model, {**feeds, "seed": seed}, built.outputs)[0]
    assert g.ravel().tolist() == [seed[y == v].item() for v in (1, 2, 3, 4)]
