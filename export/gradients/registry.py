"""One gradient rule per (operator, input), bound by ONNX's own formal names.

A rule is a function ``rule(op, g, <tensors>, *, <attributes>)``::

    @vjp("Div", wrt="B")
    def div_b(op, g, B, C):
        return -g * C / B

``op`` builds nodes, ``g`` is the gradient of the node's output, the tensors are inputs or outputs by
their formal names in the ONNX specification, keyword-only parameters are attributes (or inputs that
must be constant: the newer form of many attributes). The rule returns the gradient in the shape of
the input; for the operators that broadcast, in the shape of the output: the engine sums it down.

Three names are special: ``index`` (which of a variadic input's tensors), ``gs`` instead of ``g`` (one
gradient per output, None where nothing flows; ``g`` is for nodes whose first output alone has one), and,
for convolutions and pools, ``strides, pads, dilations, kernel_shape``, which come with the defaults that
the specification gives in prose and with ``auto_pad`` resolved.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .builder import Builder, Var
from .cotangent import Cotangent
from .definitions import signature
from .geometry import GEOMETRY_NAMES, geometry

_SPECIAL = frozenset(("op", "g", "gs", "index"))


@dataclass(frozen=True)
class Rule:
    """A gradient rule and how its parameters are bound."""

    op_type: str
    domain: str
    wrt: str
    since: int
    function: Callable[..., Cotangent]
    tensors: tuple[str, ...]
    attributes: tuple[str, ...]
    wants: frozenset[str]

    @property
    def name(self) -> str:
        return f"vjp {self.op_type}.{self.wrt}"


_RULES: dict[tuple[str, str, str], list[Rule]] = {}
_STOPS: dict[tuple[str, str, str | None], str] = {}
_REFUSALS: dict[tuple[str, str], str] = {}


def vjp(
    op_type: str, wrt: str, since: int = 1, domain: str = ""
) -> Callable[[Callable[..., Cotangent]], Callable[..., Cotangent]]:
    """Register the rule for one input of an operator; see the module's docstring.

    Args:
        op_type: the operator.
        wrt: the input's formal name in the specification.
        since: the opset from which the rule holds; the newest not above the model's is taken.
        domain: the operator's domain.

    Raises:
        ValueError: the same (operator, input, since) is registered already.
    """

    def register(function: Callable[..., Cotangent]) -> Callable[..., Cotangent]:
        rule = bound(function, op_type, wrt, since, domain)
        siblings = _RULES.setdefault((domain, op_type, wrt), [])
        if any(r.since == since for r in siblings):
            raise ValueError(f"{rule.name} since {since} is registered twice")
        siblings.append(rule)
        siblings.sort(key=lambda r: -r.since)
        return function

    return register


def bound(
    function: Callable[..., Cotangent], op_type: str, wrt: str, since: int = 1, domain: str = ""
) -> Rule:
    """A function as the rule for one input of an operator, not registered; see :func:`vjp`."""
    parameters = inspect.signature(function).parameters.values()
    return Rule(
        op_type,
        domain,
        wrt,
        since,
        function,
        tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY and p.name not in _SPECIAL),
        tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        frozenset(p.name for p in parameters) & _SPECIAL,
    )


def stop(op_type: str, reason: str, wrt: Sequence[str] | None = None, domain: str = "") -> None:
    """Say that nothing flows back through an operator (or some of its inputs), and why."""
    for name in [None] if wrt is None else wrt:
        if (domain, op_type, name) in _STOPS:
            raise ValueError(f"stop {op_type}.{name} is registered twice")
        _STOPS[domain, op_type, name] = reason


def refuse(op_type: str, reason: str, domain: str = "") -> None:
    """Say why an operator has no rule and will not get one."""
    if (domain, op_type) in _REFUSALS:
        raise ValueError(f"refuse {op_type} is registered twice")
    _REFUSALS[domain, op_type] = reason


def refusal(node: ir.Node) -> str:
    """Why an operator has no rule."""
    return _REFUSALS.get((node.domain, node.op_type), "no gradient rule")


def registered() -> list[Rule]:
    """Every rule, by operator."""
    return [r for key in sorted(_RULES) for r in _RULES[key]]


def stops() -> dict[tuple[str, str, str | None], str]:
    """Every (domain, operator, input or None for all) that nothing flows through, with its reason."""
    return dict(_STOPS)


def find_rule(node: ir.Node, wrt: str, opset: int) -> Rule | None:
    """The newest rule for an input of a node, or None."""
    return next((r for r in _RULES.get((node.domain, node.op_type, wrt), ()) if r.since <= opset), None)


def why_not(node: ir.Node, wrt: str, opset: int) -> str | None:
    """Why an input of a node has no usable rule, as far as the node shows; None if it has one."""
    rule = find_rule(node, wrt, opset)
    if rule is None:
        return refusal(node)
    names, _ = _formal(node.op_type, node.domain, opset, False)
    for name, value in zip(names, node.inputs, strict=False):
        if name in rule.attributes and value is not None and constant(value) is None:
            return _computed(name)
    return None


def stop_reason(node: ir.Node, wrt: str) -> str | None:
    """Why nothing flows back through an input of a node; None if something does."""
    key = (node.domain, node.op_type)
    return _STOPS.get((*key, None)) or _STOPS.get((*key, wrt))


@lru_cache(maxsize=4096)
def schema(op_type: str, domain: str, opset: int) -> onnx.defs.OpSchema | None:
    """The operator's schema at an opset, or None for operators that ONNX does not define."""
    try:
        return onnx.defs.get_schema(op_type, max_inclusive_version=opset, domain=domain)
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=4096)
def _formal(op_type: str, domain: str, opset: int, outputs: bool) -> tuple[tuple[str, ...], bool]:
    """Formal names of inputs or outputs, and whether the last is variadic."""
    found = schema(op_type, domain, opset)
    if found is None:
        inputs_here, outputs_here, last_repeats = signature(op_type, domain)
        return (outputs_here, False) if outputs else (inputs_here, last_repeats)
    formals = found.outputs if outputs else found.inputs
    variadic = bool(formals) and formals[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    return tuple(f.name for f in formals), variadic


def input_name(node: ir.Node, index: int, opset: int) -> str:
    """The formal name of a node's input (``input 3`` where no schema says)."""
    names, variadic = _formal(node.op_type, node.domain, opset, False)
    if index < len(names):
        return names[index]
    return names[-1] if variadic else f"input {index}"


def like_input(node: ir.Node, index: int, opset: int) -> set[ir.Value]:
    """The inputs and outputs of a node that must have the element type of its input ``index``."""
    found = schema(node.op_type, node.domain, opset)
    if found is None:
        return set()
    kinds = [[f.type_str for f in formals] for formals in (found.inputs, found.outputs)]
    wanted = kinds[0][min(index, len(kinds[0]) - 1)]
    return {
        value
        for of_side, values in zip(kinds, (node.inputs, node.outputs), strict=True)
        for k, value in enumerate(values)
        if value is not None and of_side[min(k, len(of_side) - 1)] == wanted
    }


class Unsupported(Exception):
    """A rule cannot treat a node; the message says why."""


def _computed(name: str) -> str:
    return f"its input {name} is computed at run time"


def call(
    rule: Rule,
    op: Builder,
    node: ir.Node,
    index: int,
    gs: Sequence[Var | None],
    view: Callable[[ir.Value], Var],
) -> Cotangent:
    """Apply a rule.

    Args:
        rule: the rule for the node's input ``index``.
        op: where new nodes go.
        node: the forward node.
        index: which input is differentiated.
        gs: the gradient of each output, None where nothing flows.
        view: how the rule sees a forward value (as it is, or the part of it that matters).

    Raises:
        Unsupported: an input that must be constant is not, or what the rule says.
    """
    opset = op.opset
    arguments: dict[str, Any] = {name: _tensor(node, name, opset, view) for name in rule.tensors}
    wanted_geometry = [a for a in rule.attributes if a in GEOMETRY_NAMES]
    if wanted_geometry and node.op_type in (
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "MaxUnpool",
        "DeformConv",
    ):
        resolved = geometry(op, node)
        arguments |= {a: resolved[a] for a in wanted_geometry}
    for name in rule.attributes:
        if name not in arguments:
            arguments[name] = _attribute(node, name, opset)
    if "op" in rule.wants:
        arguments["op"] = op
    if "g" in rule.wants:
        if gs[0] is None or any(g is not None for g in gs[1:]):
            raise Unsupported("a gradient flows into its further outputs")
        arguments["g"] = gs[0]
    if "gs" in rule.wants:
        arguments["gs"] = gs
    if "index" in rule.wants:
        names, _ = _formal(node.op_type, node.domain, opset, False)
        arguments["index"] = index - (len(names) - 1)
    return rule.function(**arguments)


def _tensor(node: ir.Node, name: str, opset: int, view: Callable[[ir.Value], Var]) -> Any:
    for outputs, values in ((False, node.inputs), (True, node.outputs)):
        names, variadic = _formal(node.op_type, node.domain, opset, outputs)
        if name in names:
            at = names.index(name)
            if variadic and at == len(names) - 1:
                return tuple(None if v is None else view(v) for v in values[at:])
            value = values[at] if at < len(values) else None
            return None if value is None else view(value)
    raise TypeError(f"{node.op_type} has no input or output named {name!r}")


def _attribute(node: ir.Node, name: str, opset: int) -> Any:
    if name in node.attributes:
        return plain(node.attributes[name].value)
    names, _ = _formal(node.op_type, node.domain, opset, False)
    if name in names:
        at = names.index(name)
        value = node.inputs[at] if at < len(node.inputs) else None
        if value is None:
            return None
        array = constant(value)
        if array is None:
            raise Unsupported(_computed(name))
        return tuple(array.tolist()) if array.ndim else array.item()
    found = schema(node.op_type, node.domain, opset)
    if found is None or name not in found.attributes:
        raise TypeError(f"{node.op_type} has no attribute or input named {name!r}")
    default = found.attributes[name].default_value
    if default.type == onnx.AttributeProto.UNDEFINED:
        return None
    return plain(onnx.helper.get_attribute_value(default))


def constant(value: ir.Value) -> np.ndarray[Any, Any] | None:
    """The array behind an initializer or a Constant node; None if computed at run time."""
    tensor = value.const_value
    if tensor is None:
        tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def plain(value: Any) -> Any:
    """An attribute's value as Python: tuples for lists, str for bytes."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        return tuple(plain(v) for v in value)
    return value
