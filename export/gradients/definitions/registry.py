"""How a definition is written, found and made an ONNX function.

::

    @define("QuickGelu", "X => Y", domain=MICROSOFT)
    def quick_gelu(call):
        return f'''
        scaled = Mul (X, {call.number(call.attribute("alpha", 1.702))})
        gate = Sigmoid (scaled)
        Y = Mul (X, gate)
        '''

The first line names the formal inputs and outputs as the operator's documentation does (``*`` marks a
variadic input); the body is ONNX text over these names and may depend on the node's attributes, on which
of its inputs are given and on their types. Everything in it is ai.onnx from opset 18 on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..builder import dims_of

MICROSOFT = "com.microsoft"


class NoDefinition(Exception):
    """A definition does not cover a node; the message says why."""


class Call:
    """A node as its definition sees it.

    Attributes:
        node: the node.
        opset: the ai.onnx opset of its model.
    """

    def __init__(self, node: ir.Node, formals: tuple[str, ...], opset: int) -> None:
        self.node = node
        self.opset = opset
        self._values = dict(zip(formals, node.inputs, strict=False))
        self._constants: list[onnx.NodeProto] = []

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def given(self, *names: str) -> str:
        """Formal names as operands, without the optional ones that are absent at the end."""
        present = list(names)
        while present and present[-1] not in self:
            present.pop()
        if missing := [n for n in present if n not in self]:
            raise NoDefinition(f"its input {missing[0]} is missing")
        return ", ".join(present)

    def wants(self, index: int) -> bool:
        """Whether the node's output ``index`` is there and named."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, strings as str; ``default`` where it is absent."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        return found.value.decode() if isinstance(found.value, bytes) else found.value

    def attributes(self, *names: str) -> str:
        """Those attributes of the node that are there, as ONNX text: ``<group = 2, pads = [1, 1]>``."""
        parts = [f"{n} = {_text(self.attribute(n))}" for n in names if n in self.node.attributes]
        return f"<{', '.join(parts)}>" if parts else ""

    def value(self, name: str) -> ir.Value:
        """An input that is there."""
        value = self._values.get(name)
        if value is None:
            raise NoDefinition(f"its input {name} is missing")
        return value

    def rank(self, name: str) -> int:
        """An input's number of axes."""
        rank = rank_of(self.value(name))
        if rank is None:
            raise NoDefinition(f"the rank of its input {name} is not known")
        return rank

    @property
    def dtype(self) -> ir.DataType:
        """The floating-point type that the node computes in: that of its first input of such a type."""
        for value in self._values.values():
            if value is not None and value.dtype is not None and value.dtype.is_floating_point():
                return value.dtype
        return ir.DataType.FLOAT

    def number(self, value: float, dtype: ir.DataType | None = None) -> str:
        """The name of a scalar constant, of :attr:`dtype` where none is given."""
        return self._constant(np.asarray(value, (dtype or self.dtype).numpy()))

    def ints(self, *values: int) -> str:
        """The name of a constant int64 vector."""
        return self._constant(np.asarray(values, np.int64))

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"constant_{len(self._constants)}"
        tensor = ir.serde.serialize_tensor(ir.tensor(array, name=name))
        self._constants.append(onnx.helper.make_node("Constant", [], [name], value=tensor))
        return name

    def function(self, body: str, outputs: tuple[str, ...], domain: str) -> onnx.FunctionProto:
        """The body as a function from the node's inputs to those of its outputs that have a name."""
        inputs = ", ".join(list(self._values)[: len(self.node.inputs)])
        named = ", ".join(n for k, n in enumerate(outputs) if self.wants(k))
        made = onnx.parser.parse_function(
            f'<opset_import: ["" : {self.opset}], domain: "{domain}"> '
            f"{self.node.op_type} ({inputs}) => ({named}) {{ {body} }}"
        )
        nodes = [*self._constants, *made.node]
        del made.node[:]
        made.node.extend(nodes)
        return made


@dataclass(frozen=True)
class Definition:
    """An operator's formal names and the function that writes its body for a node."""

    domain: str
    op_type: str
    inputs: tuple[str, ...]
    variadic: bool
    outputs: tuple[str, ...]
    body: Callable[[Call], str]

    def function(self, node: ir.Node, opset: int, domain: str) -> onnx.FunctionProto:
        """The definition of one node.

        Raises:
            NoDefinition: it does not cover this node.
        """
        formals = self.inputs
        if self.variadic:
            *fixed, last = formals
            formals = (*fixed, *(f"{last}_{k}" for k in range(len(node.inputs) - len(fixed))))
        call = Call(node, formals, opset)
        return call.function(self.body(call), self.outputs, domain)


_DEFINITIONS: dict[tuple[str, str], Definition] = {}


def define(
    op_type: str, formals: str, domain: str = ""
) -> Callable[[Callable[[Call], str]], Callable[[Call], str]]:
    """Register a definition; see the module's docstring.

    Args:
        op_type: the operator.
        formals: ``inputs => outputs``, as the operator's documentation names them.
        domain: the operator's domain.

    Raises:
        ValueError: the operator is defined already.
    """
    left, right = formals.split("=>")
    inputs, outputs = (tuple(n.strip() for n in side.split(",")) for side in (left, right))

    def register(body: Callable[[Call], str]) -> Callable[[Call], str]:
        if (domain, op_type) in _DEFINITIONS:
            raise ValueError(f"{domain}.{op_type} is defined twice")
        variadic = inputs[-1].endswith("*")
        names = (*inputs[:-1], inputs[-1].rstrip("*"))
        _DEFINITIONS[domain, op_type] = Definition(domain, op_type, names, variadic, outputs, body)
        return body

    return register


def defined() -> list[Definition]:
    """Every definition, by domain and operator."""
    return [_DEFINITIONS[key] for key in sorted(_DEFINITIONS)]


def find(node: ir.Node) -> Definition | None:
    """The definition of a node's operator, or None."""
    return _DEFINITIONS.get((node.domain, node.op_type))


def signature(op_type: str, domain: str) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Formal inputs, formal outputs, and whether the last input is variadic; nothing for other operators."""
    found = _DEFINITIONS.get((domain, op_type))
    return ((), (), False) if found is None else (found.inputs, found.outputs, found.variadic)


def rank_of(value: ir.Value) -> int | None:
    """A value's number of axes, as far as its shape or the nodes before it say."""
    seen = 0
    while (dims := dims_of(value)) is None and seen < 8:
        node, seen = value.producer(), seen + 1
        if node is None or node.domain:
            return None
        if node.op_type == "Transpose" and "perm" in node.attributes:
            return len(node.attributes["perm"].as_ints())
        if node.op_type == "Reshape" and node.inputs[1] is not None:
            sizes = dims_of(node.inputs[1])
            return sizes[0] if sizes and isinstance(sizes[0], int) else None
        if (
            node.op_type not in ("Softmax", "Cast", "Identity", "Split", "Slice", "Dropout")
            or not node.inputs
        ):
            return None
        source = node.inputs[0]
        if source is None:
            return None
        value = source
    return None if dims is None else len(dims)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(v) for v in value)}]"
    # ONNX text takes a number with a point or an exponent for a float.
    return repr(float(value)) if isinstance(value, float) else str(int(value))
