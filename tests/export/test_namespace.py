"""What a method may call computes in a graph what it computes on NumPy's arrays."""

import inspect

import numpy as np
import pytest
from traces import traced

from onnxcam import methods
from onnxcam.errors import ShapeUnknown
from onnxcam.export.namespace import Traced


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


A, B = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
CASES = {
    "sum": lambda a, b, xp: xp.sum(a * b, axis=1),
    "sum, axes kept": lambda a, b, xp: a - xp.sum(b, axis=(2, 3), keepdims=True),
    "mean": lambda a, b, xp: xp.mean(a, axis=(2, 3)),
    "mean of a condition": lambda a, b, xp: xp.mean(a > b, axis=(-2, -1)),
    "max": lambda a, b, xp: xp.max(a, axis=(1, 2, 3), keepdims=True),
    "min": lambda a, b, xp: xp.min(a, axis=-1),
    "maximum": lambda a, b, xp: xp.maximum(a, b) + xp.maximum(a, 0.5),
    "minimum": lambda a, b, xp: xp.minimum(a, b) + xp.minimum(0, b),
    "where": lambda a, b, xp: xp.where(a < b, a, 1.0) + xp.where(b > 0, 2, a),
    "where of numbers": lambda a, b, xp: xp.where(a <= b, 1.0, -0.5),
    "exp": lambda a, b, xp: xp.exp(a),
    "abs": lambda a, b, xp: xp.abs(a) / (1.0 + xp.abs(b)),
    "sqrt": lambda a, b, xp: xp.sqrt(a * a),
    "matmul": lambda a, b, xp: xp.matmul(xp.abs(a), xp.reshape(b, (2, 3, 5, 4))),
    "einsum": lambda a, b, xp: xp.einsum("bk,bkhw->bhw", xp.mean(b, axis=(2, 3)), a),
    "einsum of other axes": lambda a, b, xp: xp.einsum("bkhw,bkhw->bk", a, b),
    "einsum over the first": lambda a, b, xp: xp.einsum("bk,bkhw->khw", xp.mean(b, axis=(2, 3)), a),
    "einsum of one": lambda a, b, xp: xp.einsum("bkhw->bk", a),
    "reshape": lambda a, b, xp: xp.reshape(a, (-1, 3, 20)),
    "permute_dims": lambda a, b, xp: xp.permute_dims(a, (0, 2, 3, 1)),
    "asarray": lambda a, b, xp: xp.asarray(a, dtype=np.float16),
    "slices": lambda a, b, xp: a[:, 1:, :-1] + b[:, :2, 1:],
    "no slices": lambda a, b, xp: a[:] + b[:, :],
    "operators": lambda a, b, xp: -a * 2 + 1 - b / 3 - (2 - a) * (1 / (b * b + 1)) + 0.5 * a,
    "comparisons": lambda a, b, xp: xp.where(a >= 0.1, a, b),
}


@pytest.mark.parametrize("opset", [18, 22])
@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_what_numpy_does(name, opset):
    result, dims = traced(CASES[name], A, B, opset=opset)
    expected = CASES[name](A, B, xp=np)
    assert result.shape == expected.shape == dims
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


OPEN = {name: f for name, f in CASES.items() if name not in ("matmul", "reshape", "slices")} | {
    "reshape to symbols": lambda a, b, xp: xp.reshape(a, (a.shape[0], -1, a.shape[2], a.shape[3])),
    "reshape, one left": lambda a, b, xp: xp.reshape(a, (a.shape[0], -1)),
    "reshape, two symbols": lambda a, b, xp: xp.reshape(a, (1, a.shape[0], a.shape[1], -1)),
}


@pytest.mark.parametrize("name", OPEN)
def test_sizes_may_be_open(name):
    result, dims = traced(OPEN[name], A, B, open_dims=True)
    expected = OPEN[name](A, B, xp=np)
    assert result.shape == expected.shape
    assert len(dims) == expected.ndim
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_a_size_that_is_nowhere_is_an_error():
    with pytest.raises(ShapeUnknown, match="The gradient needs the shape of 'x0'"):
        traced(lambda a, xp: xp.reshape(a, ("N", "K", "h")), A, open_dims=True)


@pytest.mark.parametrize("key", [0, (slice(None), 1), slice(0, 4, 2)], ids=str)
def test_a_tensor_is_cut_by_slices_alone(key):
    with pytest.raises(TypeError, match="is cut by slices without steps"):
        traced(lambda a, xp: a[key], A)


def test_it_has_all_that_a_method_may_call():
    declared = {n for n, f in inspect.getmembers(methods.Namespace) if not n.startswith("_") and callable(f)}
    assert declared == {n for n in dir(Traced) if not n.startswith("_")} - BEYOND


#: What layouts and interpolation need.
BEYOND = {"permute_dims", "asarray", "arange", "size"}
