"""Where a graph's tensors keep their channels and their grid, followed from the convolutions on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from ..contract import Layout
from .gradients.builder import Dims, dims_of
from .gradients.registry import constant
from .shapes import in_plain_operators

#: Layouts by value. Beside the contract's kinds, (N, C, h*w) is followed as tokens not yet transposed, and
#: (N * tokens, C) as their rows.
Layouts: TypeAlias = dict[ir.Value, Layout]

_NCHW = Layout("NCHW")
_NHWC = Layout("NHWC")
_CHANNELS_FIRST = frozenset(
    "Conv ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool BatchNormalization "
    "InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth".split()
)
_SAME_PLACES = frozenset(
    "Add Sub Mul Div Pow Sum Max Min Where Relu Sigmoid Tanh Erf Gelu Elu Selu LeakyRelu PRelu HardSigmoid "
    "HardSwish Softplus Mish Swish Clip Identity Cast Dropout Exp Sqrt Neg Abs Reciprocal LayerNormalization "
    "RMSNormalization QuantizeLinear DequantizeLinear BatchNormalization ScatterND Concat".split()
)


@dataclasses.dataclass(frozen=True)
class _Flat(Layout):
    """(N, C, h*w): a grid whose axes are joined but whose channels still come first."""


@dataclasses.dataclass(frozen=True)
class _Rows(Layout):
    """(N * tokens, C): the images' tokens below each other, as a linear map of rank 2 takes them (LeViT)."""


def layouts(graph: ir.Graph) -> Layouts:
    """The layout of every value of rank 3 or 4 whose grid is known.

    Args:
        graph: with shapes inferred, nodes in topological order.
    """
    plain = in_plain_operators(graph)
    if plain is not graph:
        named = {v.name: layout for v, layout in layouts(plain).items()}
        return {v: named[v.name] for node in graph for v in node.outputs if v.name in named}
    found: Layouts = {}
    for node in graph:
        for output in node.outputs[:1]:
            dims = dims_of(output)
            if dims is None or len(dims) not in (2, 3, 4):
                continue
            layout = _layout(node, dims, found)
            if layout is not None:
                found[output] = layout
    return {v: layout for v, layout in found.items() if not isinstance(layout, (_Flat, _Rows))}


def grid_of(layout: Layout, dims: Dims) -> tuple[int | str | None, int | str | None]:
    """The height and width of a tensor's grid."""
    if layout.kind == "NCHW":
        return dims[2], dims[3]
    if layout.kind == "NHWC":
        return dims[1], dims[2]
    return layout.grid or (None, None)


def _layout(node: ir.Node, dims: Dims, found: Layouts) -> Layout | None:
    first = node.inputs[0] if node.inputs else None
    source = found.get(first) if first is not None else None
    source_dims = dims_of(first) if first is not None else None
    special = _SPECIAL.get(node.op_type)
    if (
        special is not None
        and source_dims is not None
        and (layout := special(node, dims, source, source_dims, found))
    ):
        return layout
    if node.op_type in _SAME_PLACES:
        for value in node.inputs:
            if value is not None and value in found and _alike(dims_of(value), dims):
                return found[value]
    if node.op_type in _CHANNELS_FIRST and len(dims) == 4:
        return _NCHW
    if node.op_type in ("LayerNormalization", "RMSNormalization") and len(dims) > 2:
        return _NHWC if len(dims) == 4 else _square(dims)
    if node.op_type == "Resize" and len(dims) == 4:
        return source or _NCHW
    return None


def _transpose(
    node: ir.Node, dims: Dims, source: Layout | None, source_dims: Dims, found: Layouts
) -> Layout | None:
    perm = tuple(node.attributes.get_ints("perm", ()))
    if perm == (0, 2, 3, 1) and source == _NCHW:
        return _NHWC
    if perm == (0, 3, 1, 2) and source in (_NHWC, None):
        return _NCHW if source else None
    if perm == (0, 2, 1) and isinstance(source, _Flat):
        return Layout("tokens", 0, source.grid)
    if perm == (0, 2, 1) and source is not None and source.kind == "tokens" and source.prefix == 0:
        return _Flat("tokens", 0, source.grid)
    return None


def _reshape(
    node: ir.Node, dims: Dims, source: Layout | None, source_dims: Dims, found: Layouts
) -> Layout | None:
    if source is None:
        return _joined_heads(dims, source_dims, found)
    if len(dims) == len(source_dims) and _alike(dims, source_dims):
        return source
    if source.kind == "tokens" and not isinstance(source, _Flat):
        if len(dims) == 2 and len(source_dims) == 3 and dims[1] == source_dims[2]:
            return _Rows("tokens", source.prefix, source.grid)
        count = source.prefix + math.prod(source.grid) if source.grid else None
        if isinstance(source, _Rows):
            whole = len(dims) == 3 and dims[2] == source_dims[1] and dims[1] == count
            return Layout("tokens", source.prefix, source.grid) if whole else None
    h, w = grid_of(source, source_dims)
    if not isinstance(h, int) or not isinstance(w, int):
        return None
    if source == _NCHW and len(dims) == 3 and dims[1] == source_dims[1]:
        return _Flat("tokens", 0, (h, w))
    if source == _NHWC and len(dims) == 3 and dims[2] == source_dims[3] and dims[1] == h * w:
        return Layout("tokens", 0, (h, w))
    if len(dims) == 4 and source.kind == "tokens" and source.prefix == 0:
        if isinstance(source, _Flat) and dims[2:] == (h, w):
            return _NCHW
        if not isinstance(source, _Flat) and dims[1:3] == (h, w):
            return _NHWC
    return None


def _joined_heads(dims: Dims, source_dims: Dims, found: Layouts) -> Layout | None:
    """Attention's result, (N, tokens, heads, C / heads) as (N, tokens, C): where the latest such tokens are.

    Attention mixes tokens, so that nothing is followed through it; where no residual goes around it (LeViT's
    downsampling), the number of tokens tells.
    """
    if len(source_dims) != 4 or len(dims) != 3 or source_dims[:2] != dims[:2] or not isinstance(dims[1], int):
        return None
    for layout in reversed(found.values()):
        plain = layout.kind == "tokens" and not isinstance(layout, (_Flat, _Rows))
        if plain and layout.grid and layout.prefix + math.prod(layout.grid) == dims[1]:
            return layout
    return None


def _concat(
    node: ir.Node, dims: Dims, source: Layout | None, source_dims: Dims, found: Layouts
) -> Layout | None:
    """Tokens put before the grid's (class, register) are its prefix."""
    axis = node.attributes.get_int("axis", 0) % len(dims)
    at = next((k for k, v in enumerate(node.inputs) if v in found and found[v].kind == "tokens"), None)
    if len(dims) != 3 or axis != 1 or at is None:
        shared = next((found[v] for v in node.inputs if v in found), None)
        # Joining channels keeps the grid; joining anything else does not.
        channel = {"NCHW": 1, "NHWC": 3, "tokens": 2}
        first = isinstance(shared, (_Flat, _Rows))
        return shared if shared is not None and (1 if first else channel[shared.kind]) == axis else None
    tokens = node.inputs[at]
    assert tokens is not None
    before = [dims_of(v) for v in node.inputs[:at] if v is not None]
    sizes = [d[1] for d in before if d is not None]
    layout = found[tokens]
    token_dims = dims_of(tokens)
    total = dims[1]
    if isinstance(layout, _Flat) or not all(isinstance(s, int) for s in sizes) or token_dims is None:
        return None
    prefix = layout.prefix + sum(s for s in sizes if isinstance(s, int))
    cells = math.prod(layout.grid) if layout.grid else None
    return Layout("tokens", prefix, layout.grid) if cells is None or total in (prefix + cells, None) else None


def _slice(
    node: ir.Node, dims: Dims, source: Layout | None, source_dims: Dims, found: Layouts
) -> Layout | None:
    """Cutting the prefix off, or some of the channels."""
    if source is None or len(dims) != len(source_dims):
        return None
    if source.kind == "tokens":
        if source.grid is None or isinstance(source, _Flat):
            return None
        cut = (
            source_dims[1] - dims[1] if isinstance(source_dims[1], int) and isinstance(dims[1], int) else None
        )
        starts = constant(node.inputs[1]) if node.inputs[1] is not None else None
        if cut == 0:
            return source
        from_front = starts is not None and starts.reshape(-1)[-1] == cut
        return (
            dataclasses.replace(source, prefix=source.prefix - cut)
            if cut and from_front and cut <= source.prefix
            else None
        )
    return source


def _matmul(
    node: ir.Node, dims: Dims, source: Layout | None, source_dims: Dims, found: Layouts
) -> Layout | None:
    """A linear map of the channels, where they come last."""
    weight = node.inputs[1]
    weight_dims = dims_of(weight) if weight is not None else None
    if weight_dims is None or len(weight_dims) != 2 or (len(dims) > 2 and source_dims[:-1] != dims[:-1]):
        return None
    if len(dims) == 2:
        return source if isinstance(source, _Rows) else None
    # Without a known source nothing is guessed: rank 4 may be heads and attention (CaiT), not a grid.
    return None if source is None or source.kind == "NCHW" or isinstance(source, _Flat) else source


_SPECIAL: dict[str, Callable[[ir.Node, Dims, Layout | None, Dims, Layouts], Layout | None]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Concat": _concat,
    "Slice": _slice,
    "MatMul": _matmul,
    "Gemm": _matmul,
}


def _square(dims: Dims) -> Layout | None:
    """Tokens whose origin is not known: a square grid behind as few other tokens as possible."""
    if not isinstance(dims[1], int):
        return None
    for prefix in range(9):
        side = math.isqrt(max(dims[1] - prefix, 0))
        if side > 1 and side * side == dims[1] - prefix:
            return Layout("tokens", prefix, (side, side))
    return None


def _alike(a: Dims | None, b: Dims) -> bool:
    """Equal dims, apart from a batch that shape inference may have named differently."""
    return a is not None and len(a) == len(b) and a[1:] == b[1:]
