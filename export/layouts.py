"""Where a graph's tensors keep their channels and their grid, followed from its inputs and convolutions on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import onnx_ir as ir

from ..contract import Layout
from .axes import (
    Axes,
    Axis,
    Part,
    Tokens,
    cells,
    channels,
    fits,
    fresh,
    has_cells,
    is_whole,
    layout_of,
    regrouped,
)
from .gradients.builder import Dim, Dims, dims_of
from .gradients.registry import constant
from .shapes import in_plain_operators

Layouts: TypeAlias = dict[ir.Value, Layout]
Sizes: TypeAlias = tuple[Dim, ...]


def layouts(graph: ir.Graph) -> Layouts:
    """The layout of every value of which one is known.

    Args:
        graph: with shapes inferred, nodes in topological order.
    """
    plain = in_plain_operators(graph)
    if plain is not graph:
        named = {v.name: layout for v, layout in layouts(plain).items()}
        return {v: named[v.name] for node in graph for v in node.outputs if v.name in named}
    walk = _Walk(graph)
    for node in graph:
        walk.visit(node)
    return walk.known


def input_layout(value: ir.Value) -> Layout | None:
    """The layout of a graph's input, as the file's first operators take it."""
    dims = dims_of(value)
    return None if dims is None else layout_of(_of_input(value, dims))


def grid_of(layout: Layout, dims: Dims) -> Sizes:
    """The sizes of a tensor's grid."""
    return layout.grid or tuple(dims[k] for k in layout.grid_axes)


class _Walk:
    """The axes of a graph's values, followed node by node.

    Attributes:
        axes: of the values of which they are known.
        known: the layouts of those that keep each image's grid.
        varying: the values that depend on an input.
        planar: whether the model takes images or volumes: rank 3 is no signal's then.
        joined: whether tokens were followed; where they were, nothing is guessed.
    """

    def __init__(self, graph: ir.Graph) -> None:
        inputs = [v for v in graph.inputs if not v.is_initializer()]
        self.axes: dict[ir.Value, Axes] = {}
        self.known: Layouts = {}
        self.varying = set(inputs)
        self.planar = any(len(dims_of(v) or ()) > 3 for v in inputs)
        self.joined = False
        for value in inputs:
            dims = dims_of(value)
            axes = _of_input(value, dims) if dims is not None else None
            if axes is not None:
                self.axes[value] = axes

    def visit(self, node: ir.Node) -> None:
        if any(v in self.varying for v in node.inputs):
            self.varying.update(node.outputs)
        rule = _RULES.get(node.op_type)
        for k, output in enumerate(node.outputs):
            dims = dims_of(output)
            if dims is None or output not in self.varying:
                continue
            axes = rule(self, node, k, dims) if rule is not None else None
            if axes is None and k == 0 and node.op_type in _NORMS and not self.joined:
                axes = self._guessed(dims)
            if axes is None or not fits(axes, dims):
                continue
            self.axes[output] = axes
            layout = layout_of(axes)
            if layout is not None:
                self.known[output] = layout
                self.joined |= "T" in layout.axes

    def source(self, node: ir.Node, k: int = 0) -> tuple[Axes, Dims] | None:
        """The axes and sizes of a node's input, if they are known."""
        value = node.inputs[k] if k < len(node.inputs) else None
        dims = dims_of(value) if value is not None else None
        return None if value is None or dims is None or value not in self.axes else (self.axes[value], dims)

    def _guessed(self, dims: Dims) -> Axes | None:
        """Of what a norm makes whose origin is lost: its channels come last, before them stands a grid."""
        if len(dims) == 4 and self.planar:
            return fresh("NHWC", dims)
        if len(dims) != 3 or not isinstance(dims[1], int):
            return None
        if not self.planar:
            return fresh("NLC", dims)
        for prefix in range(9):  # a square behind as few other tokens as possible
            side = math.isqrt(max(dims[1] - prefix, 0))
            if side > 1 and side * side == dims[1] - prefix:
                square = fresh("NHWC", (dims[0], side, side, dims[2]))
                joined = Tokens((*square[1], *square[2]), prefix)  # type: ignore[arg-type]
                tokens: Axis = (joined,) if prefix else joined.cells
                return Axes((square[0], tokens, square[3]), 2)
        return None


# -- inputs -----------------------------------------------------------------------------------------


def _of_input(value: ir.Value, dims: Dims) -> Axes | None:
    """As the first convolution or matrix takes an input; else by where an image's channels may be."""
    letters = {3: "L", 4: "HW", 5: "DHW"}.get(len(dims))
    if letters is None:
        return None
    at = _channel_axis(value, [*range(len(dims))])
    if at is None and len(dims) > 3:
        likely = [k for k in (1, len(dims) - 1, 2) if dims[k] in (1, 3, 4)]
        at = likely[0] if likely else None
    if at is None or at == 0:
        return None
    order = iter(letters)
    return fresh("".join("N" if k == 0 else "C" if k == at else next(order) for k in range(len(dims))), dims)


def _channel_axis(value: ir.Value, order: list[int]) -> int | None:
    """Which axis of an input its first convolutions or matrices contract.

    Args:
        value: the input, or what it became.
        order: for each axis of ``value``, which of the input's it is.
    """
    stack = [(value, order)]
    while stack:
        value, order = stack.pop()
        for node in value.consumers():
            if node.inputs[0] is not value and node.op_type not in _ELEMENTWISE:
                continue
            if node.op_type == "Conv":
                return order[1]
            if node.op_type in ("MatMul", "Gemm") and node.inputs[1] is not None:
                return order[-1] if constant(node.inputs[1]) is not None else None
            moved = order
            if node.op_type == "Transpose":
                perm = node.attributes.get_ints("perm", tuple(reversed(range(len(order)))))
                moved = [order[k] for k in perm]
            elif node.op_type not in _ELEMENTWISE | {"Pad", "Slice", "BatchNormalization", "Resize"}:
                continue
            if len(dims_of(node.outputs[0]) or ()) == len(order):
                stack.append((node.outputs[0], moved))
    return None


# -- operators --------------------------------------------------------------------------------------
# A rule gives the axes of output k of a node from those of its inputs; None where they are not known.

_Rule: TypeAlias = Callable[[_Walk, ir.Node, int, Dims], Axes | None]

_ELEMENTWISE = frozenset(
    "Add Sub Mul Div Pow Sum Max Min Where Mod Relu Sigmoid Tanh Erf Gelu Elu Selu Celu LeakyRelu PRelu "
    "ThresholdedRelu HardSigmoid HardSwish Softplus Softsign Mish Swish Clip Identity Cast CastLike Dropout Exp "
    "Log Sqrt Neg Abs Sign Sin Cos Floor Ceil Round Reciprocal Softmax LogSoftmax QuantizeLinear "
    "DequantizeLinear LpNormalization CumSum BitShift Shrink".split()
)
_NORMS = frozenset("LayerNormalization RMSNormalization".split())
_FIRST = _NORMS | frozenset("BatchNormalization InstanceNormalization GroupNormalization LRN".split())
_FIRST |= frozenset("MeanVarianceNormalization ScatterND ScatterElements Attention Trilu".split())
_CONVOLVING = frozenset("Conv ConvTranspose DeformConv DepthToSpace SpaceToDepth".split())
_POOLING = frozenset("MaxPool AveragePool LpPool".split())


def _elementwise(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    """Those of an input in the result's shape; of inputs that stretch each other, each axis' own."""
    found = [s for n in range(len(node.inputs)) if (s := walk.source(node, n)) is not None]
    whole = [axes for axes, sizes in found if _alike(sizes, dims)]
    if whole:
        return next((axes for axes in whole if layout_of(axes) is not None), whole[0])
    each = []
    for at, dim in enumerate(dims):
        behind = at - len(dims)
        owners = [a[behind] for a, s in found if len(s) >= -behind and (s[behind] != 1 or dim == 1)]
        if not owners:
            return None
        each.append(owners[0])
    return Axes(tuple(each), max(axes.rank for axes, _ in found))


def _first(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    return source[0] if source is not None and k == 0 and _alike(source[1], dims) else None


def _channels_first(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    """A convolution or a pooling; one whose input is not known starts a grid."""
    source = walk.source(node)
    if source is None:
        letters = {3: "" if walk.planar else "NCL", 4: "NCHW", 5: "NCDHW"}.get(len(dims))
        return fresh(letters, dims) if letters and k == 0 else None
    axes, sizes = source
    if len(sizes) != len(dims) or len(dims) < 3:
        return None
    each: list[Axis] = [axes[0], channels(dims[1]) if node.op_type in _CONVOLVING else axes[1]]
    for axis, before, after in zip(axes.each[2:], sizes[2:], dims[2:], strict=True):
        kept = _resized(axis, before, after)
        if kept is None:
            return None
        each.append(kept)
    return Axes(tuple(each), axes.rank)


def _resize(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    if source is None:
        return fresh("NCHW", dims) if len(dims) == 4 else None
    axes, sizes = source
    if len(sizes) != len(dims):
        return None
    each = [_resized(*three) for three in zip(axes.each, sizes, dims, strict=True)]
    return None if None in each else Axes(tuple(axis for axis in each if axis is not None), axes.rank)


def _resized(axis: Axis, before: Dim, after: Dim) -> Axis | None:
    """An axis of another size: of the grid only a whole one can have it."""
    if before == after and (isinstance(before, int) or not is_whole(axis)):
        return axis
    if is_whole(axis) and isinstance(part := axis[0], Part) and isinstance(part.of, int):
        return cells(part.of, after)
    if axis and all(isinstance(item, Part) and item.of == "C" for item in axis):
        return channels(after)
    return None


def _global_pool(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    if source is None:
        return None
    return Axes((*source[0].each[:2], *((),) * (len(dims) - 2)), source[0].rank)


def _reduce(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    reduced = _axes_of(node, len(source[1])) if source is not None else None
    if source is None or reduced is None:
        return None
    if node.attributes.get_int("keepdims", 1):
        each = [() if at in reduced else axis for at, axis in enumerate(source[0].each)]
        return Axes(tuple(each), source[0].rank)
    return source[0].picked([at for at in range(len(source[1])) if at not in reduced])


def _transpose(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    if source is None:
        return None
    return source[0].picked(node.attributes.get_ints("perm", tuple(reversed(range(len(dims))))))


def _reshape(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    if source is None:
        return None
    axes, sizes = source
    if len(sizes) == len(dims) and _alike(sizes, dims):
        return axes
    return regrouped(axes, dims)


def _squeeze(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    gone = _axes_of(node, len(source[1])) if source is not None else None
    if source is None or gone is None:
        return _reshape(walk, node, k, dims)
    return source[0].picked([at for at in range(len(source[1])) if at not in gone])


def _unsqueeze(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    new = _axes_of(node, len(dims)) if source is not None else None
    if source is None or new is None:
        return _reshape(walk, node, k, dims)
    old = iter(source[0].each)
    return Axes(tuple(() if at in new else next(old, ()) for at in range(len(dims))), source[0].rank)


def _expand(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    """What is repeated along an axis of size 1 makes features of it."""
    source = walk.source(node)
    if source is None or len(source[1]) != len(dims):
        return None
    axes, sizes = source
    each = []
    for axis, before, after in zip(axes.each, sizes, dims, strict=True):
        if before != after and before != 1 and isinstance(before, int):
            return None
        each.append(channels(after) if before == 1 and after != 1 else axis)
    return Axes(tuple(each), axes.rank)


def _matmul(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    """Rows of the left matrix, columns of the right one; a weight's are features."""
    left, right = walk.source(node, 0), walk.source(node, 1)
    if len(dims) < 2 or any(v in walk.varying and v not in walk.axes for v in node.inputs):
        return None
    if right is None and left is not None and len(left[1]) == len(dims):
        return left[0].with_axis(-1, channels(dims[-1]))
    if left is None and right is not None and len(right[1]) == len(dims):
        return right[0].with_axis(-2, channels(dims[-2]))
    if left is None or right is None or not len(left[1]) == len(right[1]) == len(dims):
        return None
    return left[0].with_axis(-1, right[0][-1])


def _gemm(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    if source is None or node.attributes.get_int("transA", 0):
        return None
    return source[0].with_axis(1, channels(dims[1]))


def _einsum(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    """Each letter stands for one axis; a weight's own are features."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    terms, _, result = equation.partition("->")
    if "." in equation or not result or len(result) != len(dims):
        return None
    axes: dict[str, Axis] = {}
    rank = 0
    for at, term in enumerate(terms.split(",")):
        source = walk.source(node, at)
        if source is None and node.inputs[at] in walk.varying:
            return None
        if source is not None:
            rank = max(rank, source[0].rank)
            axes |= {c: a for c, a in zip(term, source[0].each, strict=False) if c not in axes}
    named = zip(result, dims, strict=True)
    return Axes(tuple(axes.get(letter, channels(dim)) for letter, dim in named), rank) if axes else None


def _concat(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    """Tokens joined to a grid's stand around it; several grids in one axis are none."""
    at = node.attributes.get_int("axis", 0) % len(dims)
    rolled = _rolled(walk, node, at, dims)
    if rolled is not None:
        return rolled
    found = [walk.source(node, n) for n in range(len(node.inputs))]
    known = [s[0] for s in found if s is not None]
    if not known or any(len(axes) != len(dims) for axes in known):
        return None
    grids = [n for n, s in enumerate(found) if s is not None and has_cells(s[0][at])]
    if not grids:
        if any(item.of == "N" for axes in known for item in axes[at] if isinstance(item, Part)):
            return None
        complete = next((axes for axes in known if layout_of(axes) is not None), known[0])
        return complete.with_axis(at, channels(dims[at]))
    sizes = [(dims_of(v) or (None,) * len(dims))[at] for v in node.inputs if v is not None]
    if len(grids) > 1 or len(sizes) != len(node.inputs):
        return None
    source = found[grids[0]]
    before, after = sizes[: grids[0]], sizes[grids[0] + 1 :]
    return _surrounded(source[0], at, before, after) if source is not None else None


def _surrounded(axes: Axes, at: int, before: Sequence[Dim], after: Sequence[Dim]) -> Axes | None:
    axis = axes[at]
    counts = [sum(n for n in sizes if isinstance(n, int)) for sizes in (before, after)]
    if not all(isinstance(n, int) for n in (*before, *after)):
        return None
    inner = axis[0] if len(axis) == 1 and isinstance(axis[0], Tokens) else None
    parts = tuple(item for item in axis if isinstance(item, Part))
    if inner is None:
        if len(parts) != len(axis) or any(part.size is None or part.of in ("N", "C") for part in parts):
            return None
        inner = Tokens(parts)
    made = Tokens(inner.cells, inner.before + counts[0], inner.after + counts[1])
    return axes.with_axis(at, (made,) if made.before or made.after else made.cells)


def _rolled(walk: _Walk, node: ir.Node, at: int, dims: Dims) -> Axes | None:
    """An axis whose end was put before its start: two slices of one tensor."""
    slices = [v.producer() if v is not None else None for v in node.inputs]
    if len(slices) != 2 or any(s is None or s.op_type != "Slice" for s in slices):
        return None
    end, start = (s for s in slices if s is not None)
    source = walk.source(start)
    if end.inputs[0] is not start.inputs[0] or source is None or source[1] != dims:
        return None
    axes, (axis, size) = source[0], (source[0][at], dims[at])
    cut, kept = (_cut(s, at, size) for s in (end, start))
    if not is_whole(axis) or cut is None or kept is None or not isinstance(size, int):
        return None
    part = axis[0]
    if cut[1:] != (size, 1) or kept != (0, cut[0], 1) or not isinstance(part, Part):
        return None
    shift = (part.shift + cut[0]) % size
    return axes.with_axis(at, (Part(part.of, part.size, part.step, part.whole, shift),))


def _slice(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    if source is None or len(source[1]) != len(dims):
        return None
    axes, sizes = source
    for at, (before, after) in enumerate(zip(sizes, dims, strict=True)):
        if before == after and isinstance(before, int):
            continue
        made = _sliced(axes, at, _cut(node, at, before), before, after)
        if made is None:
            return None
        axes = made
    return axes


def _split(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    if source is None:
        return None
    at = node.attributes.get_int("axis", 0) % len(dims)
    sizes = [(dims_of(v) or (None,) * len(dims))[at] for v in node.outputs[: k + 1]]
    numbers = [n for n in sizes if isinstance(n, int)]
    if len(numbers) != len(sizes):
        return None
    return _sliced(source[0], at, (sum(numbers[:-1]), sum(numbers), 1), source[1][at], dims[at])


def _sliced(axes: Axes, at: int, cut: tuple[int, int, int] | None, before: Dim, after: Dim) -> Axes | None:
    """Some of an axis' entries: of features any, of a whole axis of the grid a window, of tokens all cells."""
    axis = axes[at]
    if len(axis) == 1 and isinstance(tokens := axis[0], Tokens):
        if cut is None or cut[2] != 1:
            return None
        ahead, behind = tokens.before - cut[0], tokens.after - (tokens.size - cut[1])
        if not (0 <= ahead and 0 <= behind and cut[0] >= 0 and cut[1] <= tokens.size):
            return axes.with_axis(at, channels(after)) if not _meets_cells(tokens, cut) else None
        made = Tokens(tokens.cells, ahead, behind)
        return axes.with_axis(at, (made,) if ahead or behind else made.cells)
    kept = _resized(axis, before, after)
    return None if kept is None else axes.with_axis(at, kept)


def _meets_cells(tokens: Tokens, cut: tuple[int, int, int]) -> bool:
    return cut[1] > tokens.before and cut[0] < tokens.size - tokens.after


def _cut(node: ir.Node, at: int, size: Dim) -> tuple[int, int, int] | None:
    """Start, end and step of a Slice along an axis, counted from the front."""
    given = [constant(v) if v is not None else None for v in node.inputs[1:]]
    if len(given) < 2 or given[0] is None or given[1] is None or not isinstance(size, int):
        return None
    starts, ends = (g.reshape(-1).tolist() for g in given[:2] if g is not None)
    axes = given[2].reshape(-1).tolist() if len(given) > 2 and given[2] is not None else range(len(starts))
    steps = given[3].reshape(-1).tolist() if len(given) > 3 and given[3] is not None else [1] * len(starts)
    rank = len(dims_of(node.outputs[0]) or ())
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % rank == at:
            if step < 1:
                return None
            first, last = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
            return first, last, step
    return 0, size, 1


def _gather(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    """One entry of an axis, which is gone then; or some features."""
    source = walk.source(node)
    index = constant(node.inputs[1]) if node.inputs[1] is not None else None
    if source is None or index is None:
        return None
    axes, sizes = source
    at = node.attributes.get_int("axis", 0) % len(sizes)
    if index.ndim == 0:
        return axes.picked([n for n in range(len(sizes)) if n != at])
    if index.ndim == 1 and not has_cells(axes[at]) and at > 0:
        return axes.with_axis(at, channels(dims[at]))
    return axes if index.tolist() == [*range(sizes[at] if isinstance(sizes[at], int) else 0)] else None


def _pad(walk: _Walk, node: ir.Node, k: int, dims: Dims) -> Axes | None:
    source = walk.source(node)
    if source is None or len(source[1]) != len(dims):
        return None
    axes, sizes = source
    for at, (before, after) in enumerate(zip(sizes, dims, strict=True)):
        if before == after and isinstance(before, int):
            continue
        resized = _resized(axes[at], before, after)
        if resized is not None:
            axes = axes.with_axis(at, resized)
            continue
        pads = constant(node.inputs[1]) if len(node.inputs) == 2 and node.inputs[1] is not None else None
        if pads is None or len(pads) != 2 * len(dims):
            return None
        made = _surrounded(axes, at, [int(pads[at])], [int(pads[at + len(dims)])])
        if made is None or min(pads[at], pads[at + len(dims)]) < 0:
            return None
        axes = made
    return axes


def _axes_of(node: ir.Node, rank: int) -> set[int] | None:
    """The axes that a node names, as attribute or input; None where it names none."""
    named: Iterable[int] = node.attributes.get_ints("axes", ())
    if not named and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        named = array.reshape(-1).tolist() if array is not None else ()
    return {axis % rank for axis in named} or None


def _alike(a: Dims, b: Dims) -> bool:
    """Equal dims, apart from a batch that shape inference may have named differently."""
    return len(a) == len(b) and a[1:] == b[1:]


def _each(names: Iterable[str], rule: _Rule) -> Iterator[tuple[str, _Rule]]:
    return ((name, rule) for name in names)


_RULES: dict[str, _Rule] = {
    **dict(_each(_ELEMENTWISE, _elementwise)),
    **dict(_each(_FIRST, _first)),
    **dict(_each(_CONVOLVING | _POOLING, _channels_first)),
    **dict(_each(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool)),
    **dict(_each((f"Reduce{kind}" for kind in "Mean Sum Max Min L1 L2 LogSumExp".split()), _reduce)),
    **dict(_each(("Reshape", "Flatten"), _reshape)),
    **dict(_each(("Expand", "Tile"), _expand)),
    **dict(_each(("Resize", "Upsample"), _resize)),
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
}
