"""Small ONNX graphs from text, their gradients, and the two ways to run them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcam.export.from_onnx import normalize
from onnxcam.export.gradients import add_gradients

from .reference_ops import KERNELS

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
DOUBLE, FLOAT, HALF = np.float64, np.float32, np.float16


@dataclass(frozen=True)
class Case:
    """One small graph, as ONNX text; its result is the last value, ``y``.

    A tuple is the shape of random numbers, an array or list is itself. What is differentiated (``wrt``)
    and what is named in ``feeds`` are graph inputs; everything else is a constant of the model.
    """

    name: str
    text: str
    values: Mapping[str, Any]
    opset: int = 18
    wrt: tuple[str, ...] = ()
    feeds: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    away_from_zero: tuple[str, ...] = ()
    instead: str = (
        ""  # the same function for onnx.reference, where ONNX defines the operator in float32 alone
    )
    tolerance: float = 1e-6

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.wrt, *self.feeds)


def case(
    name: str,
    text: str,
    *,
    opset: int = 18,
    wrt: Any = None,
    feeds: Any = (),
    positive: Any = (),
    away_from_zero: Any = (),
    instead: str = "",
    tolerance: float = 1e-6,
    **values: Any,
) -> Case:
    """A :class:`Case`; ``wrt`` is x where there is an x, else every tensor given by its shape."""
    if wrt is None:
        wrt = ("x",) if "x" in values else tuple(k for k, v in values.items() if isinstance(v, tuple))
    return Case(
        name,
        text,
        values,
        opset,
        tuple(wrt),
        tuple(feeds),
        tuple(positive),
        tuple(away_from_zero),
        instead=instead,
        tolerance=tolerance,
    )


def arrays(case: Case, resized: Mapping[str, Shape] | None = None) -> dict[str, Array]:
    """The values of a case, the same every time; ``resized`` gives other shapes to some."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    made: dict[str, Array] = {}
    for name, value in case.values.items():
        if not isinstance(value, tuple):
            made[name] = np.asarray(value)
            if made[name].dtype == np.int_:
                made[name] = made[name].astype(np.int64)
            continue
        a = rng.standard_normal((resized or {}).get(name, value))
        if name in case.positive:
            a = np.abs(a) + 0.5
        if name in case.away_from_zero:
            a = np.where(a < 0, a - 0.5, a + 0.5)
        made[name] = np.asarray(a)
    return made


Dims = Sequence[int | str | None] | None


def forward(
    case: Case, dtype: Any, values: Mapping[str, Array], dims: Mapping[str, Dims] | None = None
) -> onnx.ModelProto:
    """The case as a model; ``dims`` replaces the declared shapes of inputs (None: not even the rank)."""
    word = {DOUBLE: "double", FLOAT: "float", HALF: "float16"}[dtype]
    number = str(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    body = case.text.replace(";", "\n").replace("FLOAT", number).replace("TYPE", word)
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {case.opset}, "ai.onnx.ml" : 3]>\n'
        f"g () => ({word} y) {{ {body} }}"
    )
    graph = model.graph
    del graph.output[:]
    graph.output.append(onnx.helper.make_empty_tensor_value_info("y"))
    for name, value in values.items():
        a = cast(value, dtype)
        if name in case.inputs:
            shape = (dims or {}).get(name, a.shape)
            graph.input.append(
                onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), shape)
            )
        else:
            graph.initializer.append(numpy_helper.from_array(a, name))
    return model


def declare(model: onnx.ModelProto, y: Array) -> onnx.ModelProto:
    """State the shape of the result, which inference cannot always find and the checker wants."""
    word = model.graph.output[0].type.tensor_type.elem_type or onnx.helper.np_dtype_to_tensor_dtype(y.dtype)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", word, y.shape))
    return model


def cast(a: Array, dtype: Any) -> Array:
    return a.astype(dtype) if a.dtype.kind == "f" else a


@dataclass(frozen=True)
class Gradient:
    """A model with gradients: give it inputs and a seed."""

    model: onnx.ModelProto
    outputs: tuple[str, ...]
    added: tuple[onnx.NodeProto, ...]


def gradient_of(
    model: onnx.ModelProto, wrt: Sequence[str], of: str = "y", check: bool = True, full: bool = True
) -> Gradient:
    """The same graph with the gradient of ``of``; the checker wants the ranks of all inputs."""
    work = normalize(ir.from_proto(model))
    before = {n.name for n in work.graph}
    names = add_gradients(work, of, list(wrt))
    proto = ir.to_proto(work)
    if check:
        onnx.checker.check_model(proto, full_check=passes_full_check(model))
    added = tuple(n for n in proto.graph.node if n.name not in before)
    return Gradient(proto, tuple(names[w] for w in wrt), added)


def passes_full_check(model: onnx.ModelProto) -> bool:
    """Whether ONNX's types and inference accept a forward model (not MeanVarianceNormalization's defaults,
    a float64 RotaryEmbedding, or a ceil_mode whose last window would start in the padding)."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def ops(gradient: Gradient) -> list[str]:
    return [n.op_type for n in gradient.added]


def run_reference(model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
    with np.errstate(all="ignore"):
        return [np.asarray(a) for a in reference(model).run(list(outputs), dict(feeds))]


def reference(model: onnx.ModelProto) -> ReferenceEvaluator:
    return ReferenceEvaluator(model, new_ops=KERNELS)


def run_ort(model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(outputs), dict(feeds)))


Run = Callable[[onnx.ModelProto, Mapping[str, Array], Sequence[str]], list[Array]]


def feeds_of(case: Case, values: Mapping[str, Array], dtype: Any) -> dict[str, Array]:
    return {name: cast(values[name], dtype) for name in case.inputs}


def seed_like(y: Array) -> Array:
    rng = np.random.default_rng(y.size + 17)
    return np.asarray(rng.standard_normal(y.shape), dtype=y.dtype)


def difference(a: Array, b: Array) -> float:
    """The largest difference, as a share of the largest entry of ``b``."""
    if a.shape != b.shape:
        return float("inf")
    scale = float(np.abs(b).max(initial=0)) or 1.0
    worst = float(np.abs(a.astype(DOUBLE) - b).max(initial=0)) / scale
    return worst if np.isfinite(worst) else float("inf")


def finite_difference_error(case: Case, run: Run = run_reference) -> tuple[float, list[Array], Array]:
    """How far the emitted gradient is from a central difference along one random direction.

    Returns:
        The error as a share of the size that the slope typically has, the float64 gradients, and the result.
    """
    values = arrays(case)
    model = forward(replace(case, text=case.instead or case.text), DOUBLE, values)
    feeds = feeds_of(case, values, DOUBLE)
    evaluate = reference(model)
    y = np.asarray(evaluate.run(["y"], feeds)[0])
    seed = seed_like(y)
    declare(model, y)
    built = gradient_of(model, case.wrt)
    grads = run(built.model, {**feeds, "seed": seed}, built.outputs)
    rng = np.random.default_rng(7)
    worst, h = 0.0, 1e-5
    for name, g in zip(case.wrt, grads, strict=True):
        assert g.shape == feeds[name].shape, f"gradient of {name}: {g.shape} for {feeds[name].shape}"
        assert g.dtype == DOUBLE
        u = np.asarray(rng.standard_normal(g.shape))
        sides = [np.asarray(evaluate.run(["y"], {**feeds, name: feeds[name] + t * u})[0]) for t in (h, -h)]
        slope = float(np.sum(seed * (sides[0] - sides[1]))) / (2 * h)
        typical = float(np.sqrt(np.sum(g * g))) or 1.0
        error = abs(slope - float(np.sum(g * u))) / typical
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst, grads, y


__all__ = [
    "Case",
    "Gradient",
    "arrays",
    "case",
    "difference",
    "feeds_of",
    "finite_difference_error",
    "forward",
    "gradient_of",
    "ops",
    "replace",
    "run_ort",
    "run_reference",
    "seed_like",
]
