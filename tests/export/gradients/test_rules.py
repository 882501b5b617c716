"""Every rule: float64 against finite differences, ONNX Runtime float32 against that, and the registry."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import onnx
import pytest

from onnxcam.errors import ModelError, NoGradientRule, ShapeUnknown
from onnxcam.export.gradients import engine, registered, registry, stop, stops, vjp
from onnxcam.export.gradients.geometry import GEOMETRY_NAMES

from .cases import CASES, CONVOLUTION, EXPANDED, POOLING
from .harness import (
    FLOAT,
    Array,
    Case,
    Dims,
    arrays,
    declare,
    difference,
    feeds_of,
    finite_difference_error,
    forward,
    gradient_of,
    run_ort,
    seed_like,
)

NEWEST_OPSET = 26
by_name = {c.name: c for c in CASES}


@functools.cache
def in_double(name: str) -> tuple[float, list[Array], Array]:
    return finite_difference_error(by_name[name])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gradient(case: Case) -> None:
    error, grads, y = in_double(case.name)
    assert error < case.tolerance
    y32, *grads32 = in_runtime(case)
    assert difference(y32, y) < 1e-5
    for name, a, b in zip(case.wrt, grads32, grads, strict=True):
        assert a.dtype == np.float32
        assert difference(a, b) < 1e-5, name


def in_runtime(
    case: Case, resized: dict[str, tuple[int, ...]] | None = None, dims: dict[str, Dims] | None = None
):
    """The result and the gradients from ONNX Runtime in float32; ``dims`` replaces the declared shapes."""
    values = arrays(case, resized)
    model = forward(case, FLOAT, values, dims)
    feeds = feeds_of(case, values, FLOAT)
    y = run_ort(model, feeds, ["y"])[0]
    if dims is None:
        declare(model, y)
    built = gradient_of(model, case.wrt, check=dims is None)
    return run_ort(built.model, {**feeds, "seed": seed_like(y)}, ["y", *built.outputs])


# -- what the file does not say -----------------------------------------------------------------


def with_symbols(shape: tuple[int, ...], batch_only: bool) -> Dims:
    """The shape as an exporter writes it with a dynamic batch, or with a dynamic height and width too.

    Equal sizes get equal symbols; channels, and sizes of 1, stay numbers.
    """
    return [
        f"s{n}" if n != 1 and (a == 0 or (not batch_only and (a != 1 or len(shape) == 2))) else n
        for a, n in enumerate(shape)
    ]


def grown(shape: tuple[int, ...], dims: Dims) -> tuple[int, ...]:
    return tuple(n if isinstance(d, int) else n + 2 for n, d in zip(shape, dims or (), strict=True))


#: Its shape inference (onnx 1.23) takes an unknown width for 0, and the seed has that shape then.
WRONGLY_INFERRED = "attention, three axes"
#: Cases that need heights and widths, and what the error says where they are open.
FIXED_SIZES = {
    "resize, not larger": "its sizes are computed at run time, with the policy 'not_larger'",
    **{
        f"resize {mode}, not smaller, a size rounded up": "its sizes are computed at run time"
        for mode in ("nearest", "linear", "cubic")
    },
    "determinant": "The gradient needs the shape of 'x'",
}


@pytest.mark.parametrize("batch_only", [True, False], ids=["batch", "sizes"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_symbolic_sizes(case: Case, batch_only: bool) -> None:
    """One graph is right at two sizes, or says that it needs a shape."""
    shapes = {n: case.values[n] for n in case.inputs if isinstance(case.values[n], tuple)}
    dims = {n: with_symbols(shape, batch_only) for n, shape in shapes.items()}
    if case.name == WRONGLY_INFERRED and not batch_only:
        pytest.skip("onnx infers a size of 0")
    fixed = {} if batch_only else FIXED_SIZES
    if case.name in fixed:
        with pytest.raises(ModelError, match=fixed[case.name]):
            in_runtime(case, None, dims)
        return
    _, *got = in_runtime(case, None, dims)
    for a, b in zip(got, in_double(case.name)[1], strict=True):
        assert difference(a, b) < 1e-5
    resized = {n: grown(shape, dims[n]) for n, shape in shapes.items()}
    try:
        static = in_runtime(case, resized)
    except Exception:
        assert case not in CONVOLUTION + POOLING
        return  # the operator itself does not take this size
    for a, b in zip(in_runtime(case, resized, dims), static, strict=True):
        assert difference(a, b) < 1e-5


@pytest.mark.parametrize("how", ["no sizes", "no rank"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_unknown_shapes(case: Case, how: str) -> None:
    """The right answer or an error, never a wrong one."""
    if case.name == WRONGLY_INFERRED and how == "no sizes":
        pytest.skip("onnx infers a size of 0")
    dims = {n: [None] * np.ndim(v) if how == "no sizes" else None for n, v in arrays(case).items()}
    try:
        _, *got = in_runtime(case, None, dims)
    except ShapeUnknown:
        return
    except NoGradientRule as e:
        message = str(e)
        assert "run time" in message or case in EXPANDED
        return
    for a, b in zip(got, in_double(case.name)[1], strict=True):
        assert difference(a, b) < 1e-5


# -- the checker is checked ---------------------------------------------------------------------

SPOILT = {
    "conv": "vjp Conv.X",
    "conv asymmetric pads stride 2": "vjp Conv.X",
    "maxpool 3 stride 2 padded": "vjp MaxPool.X",
    "averagepool padded": "vjp AveragePool.X",
    "relu": "vjp Relu.X",
    "gelu": "vjp Gelu.X",
    "softmax": "vjp Softmax.input",
    "matmul batched": "vjp MatMul.B",
    "gemm": "vjp Gemm.A",
    "layer norm": "vjp LayerNormalization.X",
    "reduce mean as pooling": "vjp ReduceMean.data",
    "gather duplicates": "vjp Gather.data",
    "concat": "vjp Concat.inputs",
    "attention": "vjp MatMul.A",
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_rule_spoilt_by_a_thousandth_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = in_double(name)[1]  # before it is spoilt: it is kept
    find = engine.find_rule

    def spoilt(node, wrt, opset):
        rule = find(node, wrt, opset)
        if rule is None or rule.name != SPOILT[name]:
            return rule

        def slightly_off(**arguments):
            g = rule.function(**arguments)
            if isinstance(g, engine.Window):
                return dataclasses.replace(g, part=g.part * 1.001)
            return g * 1.001

        return dataclasses.replace(rule, function=slightly_off)

    monkeypatch.setattr(engine, "find_rule", spoilt)
    error, grads, _ = finite_difference_error(by_name[name])
    assert error > by_name[name].tolerance
    assert max(map(difference, grads, right)) > 1e-4


# -- the registry -------------------------------------------------------------------------------


@functools.cache
def rules_used() -> dict[str, set[str]]:
    """The rules that each case goes through."""
    used: dict[str, set[str]] = {}
    for case in CASES:
        names: set[str] = set()

        def call(rule, *arguments, names=names):
            names.add(rule.name)
            return registry.call(rule, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "call", call)
            gradient_of(forward(case, FLOAT, arrays(case)), case.wrt, check=False)
        used[case.name] = names
    return used


def test_every_rule_has_a_case() -> None:
    missing = {r.name for r in registered()} - set().union(*rules_used().values())
    assert not missing


def test_every_case_goes_through_a_rule() -> None:
    assert all(rules_used().values())
    own = {f"vjp {o.split('(')[0].split('<')[0].split('= ')[1]}" for c in EXPANDED for o in [c.text]}
    assert not own & {r.name.split(".")[0] for r in registered()}, "has a rule: move the case to its family"


def test_case_names_are_unique() -> None:
    assert len(by_name) == len(CASES)


@pytest.mark.parametrize("rule", registered(), ids=lambda r: r.name)
def test_every_name_of_a_rule_is_in_the_schema(rule: registry.Rule) -> None:
    for opset in {max(rule.since, engine_minimum()), max(rule.since, NEWEST_OPSET)}:
        schema = registry.schema(rule.op_type, rule.domain, opset)
        if schema is None:  # newer than the minimum
            assert opset < NEWEST_OPSET
            continue
        inputs, outputs = [i.name for i in schema.inputs], [o.name for o in schema.outputs]
        assert rule.wrt in inputs
        assert set(rule.tensors) <= {*inputs, *outputs}
        prose = GEOMETRY_NAMES if "strides" in schema.attributes else set()
        assert set(rule.attributes) <= {*inputs, *schema.attributes, *prose}


def engine_minimum() -> int:
    from onnxcam.export.gradients.add import MINIMUM_OPSET

    return MINIMUM_OPSET


@pytest.mark.parametrize("key", stops(), ids=lambda k: f"{k[1]}.{k[2] or '*'}")
def test_every_stop_is_a_real_input(key: tuple[str, str, str | None]) -> None:
    domain, op_type, wrt = key
    schema = onnx.defs.get_schema(op_type, max_inclusive_version=NEWEST_OPSET, domain=domain)
    if wrt is not None:
        assert wrt in [i.name for i in schema.inputs]
    assert (domain, op_type, wrt) not in {(r.domain, r.op_type, r.wrt) for r in registered()}
    assert wrt is not None or op_type not in {r.op_type for r in registered()}


def test_registering_twice_raises() -> None:
    with pytest.raises(ValueError, match=r"vjp Relu\.X since 1 is registered twice"):
        vjp("Relu", wrt="X")(lambda g: g)
    with pytest.raises(ValueError, match=r"stop Floor\.None is registered twice"):
        stop("Floor", "again")


def test_a_newer_rule_wins_from_its_opset_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx_ir as ir

    monkeypatch.setattr(registry, "_RULES", {})
    vjp("Relu", wrt="X")(lambda g: g)
    vjp("Relu", wrt="X", since=14)(lambda g, Y: g)
    node = ir.node("Relu", [ir.Value(name="x")])
    assert [registry.find_rule(node, "X", opset).since for opset in (13, 14, 20)] == [1, 14, 14]  # type: ignore[union-attr]


def test_the_error_says_that_a_shape_is_needed() -> None:
    case = by_name["averagepool padded"]
    with pytest.raises(
        ShapeUnknown, match=r"needs the shape of '.*', which shape inference could not find\. Fix the"
    ):
        in_runtime(case, None, {"x": None})
