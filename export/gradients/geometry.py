"""The geometry of convolutions and pools, with the specification's defaults and auto_pad resolved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import onnx_ir as ir

from .builder import Builder, Var, dims_of, is_static

GEOMETRY_NAMES = frozenset(("strides", "pads", "dilations", "kernel_shape"))

Pad: TypeAlias = int | Var  #: a padding: known, or an int64 scalar computed at run time


def geometry(op: Builder, node: ir.Node) -> dict[str, tuple[Any, ...]]:
    """Strides, pads (begins, then ends), dilations and kernel_shape of a windowed operator.

    Pads are ints, except for ``auto_pad=SAME_*`` with a stride over a size that is not known
    until run time: then they are int64 scalars of the graph.
    """
    data = node.inputs[0]
    assert data is not None
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items()}
    kernel: Any = attributes.get("kernel_shape")
    if kernel is None:
        weight = node.inputs[1]
        dims = dims_of(weight) if weight is not None else None
        if dims is None or not is_static(dims[2:]):
            raise op.shape_unknown(weight or data)
        kernel = dims[2:]
    rank = len(kernel)
    strides = tuple(attributes.get("strides") or (1,) * rank)
    dilations = tuple(attributes.get("dilations") or (1,) * rank)
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if node.op_type == "ConvTranspose":
        pads = _transposed(op, node, kernel, strides, dilations, attributes)
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same(op, op.wrap(data), kernel, strides, dilations, auto_pad == "SAME_LOWER")
    elif auto_pad == "VALID":
        pads = (0,) * (2 * rank)
    else:
        pads = tuple(attributes.get("pads") or (0,) * (2 * rank))
    return {"strides": strides, "pads": pads, "dilations": dilations, "kernel_shape": tuple(kernel)}


def _transposed(
    op: Builder,
    node: ir.Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    attributes: dict[str, Any],
) -> tuple[Pad, ...]:
    """The pads of a ConvTranspose, which ``output_shape`` and ``auto_pad`` state by its result's size."""
    rank = len(kernel)
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad in ("NOTSET", "VALID") and not attributes.get("output_shape"):
        return (
            tuple(attributes.get("pads") or (0,) * (2 * rank)) if auto_pad == "NOTSET" else (0,) * (2 * rank)
        )
    data, result = node.inputs[0], node.outputs[0]
    before, after = (dims_of(v) if v is not None else None for v in (data, result))
    if before is None or after is None or not is_static((*before[2:], *after[2:])):
        raise op.shape_unknown(result)
    extra = attributes.get("output_padding") or (0,) * rank
    begins, ends = [], []
    sizes: Any = zip(before[2:], after[2:], strides, reach(kernel, dilations), extra, strict=True)
    for n, m, stride, span, more in sizes:
        total = (n - 1) * stride + more + span - m
        small, large = total // 2, total - total // 2
        begins.append(small if auto_pad == "SAME_UPPER" else large)
        ends.append(large if auto_pad == "SAME_UPPER" else small)
    return (*begins, *ends)


def reach(kernel_shape: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """How many cells a window spans along each axis."""
    return [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]


def _same(
    op: Builder,
    x: Var,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    lower: bool,
) -> tuple[Pad, ...]:
    begins: list[Pad] = []
    ends: list[Pad] = []
    for axis, (span, stride) in enumerate(zip(reach(kernel, dilations), strides, strict=True)):
        size = op.dim(x, axis + 2)
        small: Pad
        large: Pad
        if isinstance(size, int) or stride == 1:
            # With stride 1 the total does not depend on the size.
            n = size if isinstance(size, int) else span
            total = max((-(-n // stride) - 1) * stride + span - n, 0)
            small, large = total // 2, total - total // 2
        else:
            covered = (size + (stride - 1)) / stride * stride + (span - stride)
            amount = op.Max(covered - size, op.operand(0, size), dims=())
            small = amount / 2
            large = amount - small
        begins.append(large if lower else small)
        ends.append(small if lower else large)
    return (*begins, *ends)
