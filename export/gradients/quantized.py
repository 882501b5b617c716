"""Which tensors of a graph are quantised, and what they stand for.

A file in QDQ form computes ``DequantizeLinear, an operator, QuantizeLinear`` over and over, and ONNX Runtime
runs each such group as one integer kernel. Inside a group there is no floating-point tensor then, and whoever
reads one breaks the group up. What the group has computed is read behind it instead: from the quantised
result, dequantised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from . import definitions
from .builder import NODE_PREFIX, Builder, Var
from .definitions import NoDefinition

#: Operators that make whole numbers of real ones, up to rounding: the gradient goes through them.
QUANTIZING = frozenset(("QuantizeLinear", "DynamicQuantizeLinear"))
#: Operators whose result holds the numbers of their first tensor (of ``inputs``, where they are several).
_MOVING = frozenset(
    """
    Identity Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice Gather GatherND GatherElements Pad
    Expand Tile MaxPool GlobalMaxPool ReduceMax ReduceMin Max Min Relu Clip DepthToSpace SpaceToDepth Resize
    NhwcMaxPool Where
    """.split()
)
OURS = "onnxcam.added"  #: marks, in a node's ``meta``, what was added before the walk
_READING = frozenset(
    "QuantizeLinear DequantizeLinear Identity Cast Reshape Flatten Squeeze Unsqueeze".split()
)
_REAL = frozenset((ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16))


@dataclass(frozen=True)
class Quantization:
    """How the numbers of a tensor are to be read: ``(x - zero_point) * scale``.

    Attributes:
        scale: one number for the whole tensor, or one for each entry of an axis.
        zero_point: of the tensor's own type; None for 0.
        axis: where there are several scales.
    """

    scale: ir.Value
    zero_point: ir.Value | None
    axis: int = 1


def is_real(value: ir.Value) -> bool:
    """Whether a value can be calculated with; quantised ones, the 8-bit floats among them, cannot."""
    return value.dtype is None or value.dtype in _REAL


def requantized(graph: ir.Graph, ours: Collection[ir.Node] = ()) -> dict[ir.Value, ir.Value]:
    """For each floating-point value that is read by QuantizeLinear alone: what is read in its place.

    Args:
        graph: the graph.
        ours: nodes that do not count as readers.

    Returns:
        The output of the DequantizeLinear behind it, or the quantised tensor if there is none.
    """
    found: dict[ir.Value, ir.Value] = {}
    for node in graph:
        source = node.inputs[0] if node.op_type == "QuantizeLinear" and node.inputs else None
        if source is None or source in found or source.is_graph_output() or source.producer() is None:
            continue
        readers = [n for n in source.consumers() if n not in ours]
        if all(n.op_type == "QuantizeLinear" and n.inputs[0] is source for n in readers):
            found[source] = dequantized(node.outputs[0]) or node.outputs[0]
    return found


def readable(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """What to read in the place of values that nothing further should read.

    Returns:
        For a floating-point value that only QuantizeLinear reads, and for a quantised tensor that
        DequantizeLinear reads, the dequantised value; for the former the quantised tensor, if nothing
        dequantises it.
    """
    found = requantized(graph)
    for node in graph:
        for value in node.outputs:
            if not is_real(value) and (there := dequantized(value)) is not None:
                found[value] = there
    return found


def inside_kernel(value: ir.Value, read: Mapping[ir.Value, ir.Value]) -> bool:
    """Whether a value goes into an activation alone that becomes part of an integer kernel, and it with it.

    Args:
        value: any value.
        read: see :func:`readable`.
    """
    users = value.consumers()
    return bool(users) and all(n.op_type in ("Relu", "Clip") and n.outputs[0] in read for n in users)


def dequantized(value: ir.Value) -> ir.Value | None:
    """The output of a DequantizeLinear that reads a quantised tensor; None if there is none."""
    for node in value.consumers():
        if node.op_type == "DequantizeLinear" and node.inputs[0] is value:
            return node.outputs[0]
    # Nodes of no effect may stand between: some exporters write Cast and Identity there.
    for node in value.consumers():
        if node.op_type in ("Identity", "Cast") and node.outputs[0].dtype == value.dtype:
            found = dequantized(node.outputs[0])
            if found is not None:
                return found
    return None


def roundings_of(value: ir.Value) -> set[ir.Value]:
    """The quantised tensors that a value is no more than a reading of, perhaps in other shapes."""
    found = set()
    while (node := value.producer()) is not None and node.op_type in _READING and node.inputs[0] is not None:
        value = node.inputs[0]
        if not is_real(value):
            found.add(value)
    return found


def within_range(op: Builder, value: ir.Value) -> Var:
    """A number of a quantised tensor's type that is at no end of its range."""
    return op.const(np.ones((), (value.dtype or ir.DataType.UINT8).numpy()))


def quantization(value: ir.Value) -> Quantization | None:
    """How a quantised tensor is to be read, from the node that quantised it; None where that is not known."""
    node = value.producer()
    if node is None or is_real(value):
        return None
    if node.op_type == "QuantizeLinear":
        return _from(node.inputs[1:3], node.attributes.get_int("axis", 1))
    if node.op_type == "DynamicQuantizeLinear":
        return Quantization(node.outputs[1], node.outputs[2])
    if node.op_type in _MOVING or (node.op_type == "Cast" and _first(node) is not None):
        source = _first(node)
        found = quantization(source) if source is not None and source.dtype == value.dtype else None
        return found if found is not None and _is_single(found.scale) else None
    own = definitions.find(node)
    if own is None:
        return None
    try:
        body = own.function(node, 18, "body")
    except NoDefinition:
        return None
    made = {name: n for n in body.node for name in n.output}
    last = made.get(own.outputs[node.outputs.index(value)])
    if last is None or last.op_type != "QuantizeLinear":
        return None
    actual = dict(zip(body.input, node.inputs, strict=False))
    return _from([actual.get(name) for name in last.input[1:]], 1)


def dequantize(op: Builder, x: Var) -> Var:
    """A quantised tensor whose quantization is known, in real numbers."""
    how = quantization(x.value)
    assert how is not None
    operands = [op.wrap(v) for v in (how.scale, how.zero_point) if v is not None]
    made = op.DequantizeLinear(x, *operands, axis=None if operands[0].rank == 0 else how.axis, dims=x.dims)
    made.value.type, made.value.shape = ir.TensorType(operands[0].dtype), x.value.shape
    return made


def in_real_numbers(value: ir.Value) -> ir.Value:
    """A value that can be calculated with; a quantised one dequantised, by a new node if need be."""
    if is_real(value) or (how := quantization(value)) is None:
        return value
    node = value.producer()
    if (found := dequantized(value)) is not None or node is None or node.graph is None:
        return found or value
    made = ir.node(
        "DequantizeLinear",
        [value, how.scale, how.zero_point][: 2 + (how.zero_point is not None)],
        {} if how.scale.shape is not None and not len(how.scale.shape) else {"axis": how.axis},
        name=f"{NODE_PREFIX}{value.name}/DequantizeLinear",
    )
    made.meta[OURS] = True
    real = made.outputs[0]
    real.name = f"{made.name}_output_0"
    real.type, real.shape = ir.TensorType(how.scale.dtype or ir.DataType.FLOAT), value.shape
    node.graph.insert_after(node, made)
    return real


def of_dequantized(op: Builder, g: Var, value: ir.Value) -> Var:
    """The gradient of a tensor's real numbers, from that of the whole numbers in it."""
    how = quantization(value)
    assert how is not None
    return over(op, g, spread(op, op.wrap(how.scale), op.wrap(value), how.axis))


def spread(op: Builder, scale: Var, x: Var, axis: int, block_size: int = 0) -> Var:
    """Scales of all of ``x``, of the entries of an axis or of blocks, in a shape that broadcasts to its."""
    if scale.rank == 0 or scale.shape == (1,):
        return scale
    axis %= x.rank
    if scale.rank == 1:
        return op.reshape(scale, [1] * axis + [scale.shape[0]] + [1] * (x.rank - axis - 1))
    counts = [1] * (x.rank + 1)
    counts[axis + 1] = block_size
    repeated = op.Tile(op.Unsqueeze(scale, [axis + 1], dims=()), counts)
    joined = op.vector([-1 if k == axis else op.dim(scale, k) for k in range(x.rank)])
    end = op.vector([op.dim(x, axis)])  # the last block may be cut short
    return op.Slice(op.Reshape(repeated, joined), [0], end, [axis], dims=x.dims)


def over(op: Builder, g: Var, scale: Var) -> Var:
    """``g / scale``; where g was multiplied by an equal scale last, what it was before."""
    node = g.value.producer()
    if node is not None and node.op_type == "Mul" and (node.name or "").startswith(NODE_PREFIX):
        before, factor = node.inputs
        assert before is not None
        assert factor is not None
        if _same_number(factor, scale.value):
            return Var(before, op, g.dims)
    return g / op.cast(scale, g.dtype)


def _same_number(a: ir.Value, b: ir.Value) -> bool:
    a, b = _origin(a), _origin(b)
    x, y = a.const_value, b.const_value
    if a is b:
        return _is_single(a)
    return x is not None and y is not None and x.size == y.size == 1 and x.numpy().item() == y.numpy().item()


def _origin(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _from(operands: Iterable[ir.Value | None], axis: int) -> Quantization | None:
    scale, zero_point, *_ = [*operands, None]
    return None if scale is None else Quantization(scale, zero_point, axis)


def _first(node: ir.Node) -> ir.Value | None:
    return node.inputs[int(node.op_type == "Where")] if node.inputs else None


def _is_single(scale: ir.Value) -> bool:
    return scale.shape is not None and all(d == 1 for d in scale.shape)
