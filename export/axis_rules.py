"""What each operator makes of the axes of its inputs. To add one, write a function and name its operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..grids import LETTERS
from .axes import (
    LOST,
    Atom,
    Axes,
    Axis,
    Term,
    Tokens,
    agreed,
    atom,
    atoms,
    contracted,
    cut,
    is_cells,
    lettered,
    letters,
    lost,
    mixed,
    reshaped,
    resized,
)
from .gradients.builder import Dims, dims_of
from .gradients.registry import constant

CHANNELS = (1, 2, 3, 4)  #: as many has an image
_TO_THE_END = 2**31 - 1


@dataclass(frozen=True)
class Known:
    """What is known before a node.

    Attributes:
        axes: of the values so far.
        moving: the values that depend on the model's inputs; all others are weights.
        gridded: those of them whose grid is known, but for the inputs.
        image: the shape of the input that takes the image.
    """

    axes: Mapping[ir.Value, Axes]
    moving: set[ir.Value]
    gridded: set[ir.Value]
    image: Dims

    def of_images(self, dims: Dims) -> bool:
        """Whether a shape's first axis may be the images'."""
        a, b = dims[0], self.image[0] if self.image else None
        return not (isinstance(a, int) and isinstance(b, int)) or a == b


@dataclass(frozen=True)
class Step:
    """A node whose outputs' axes are wanted.

    Attributes:
        node: it.
        dims: the shape of its first output.
        source: the axes of its first input; None where unknown.
        before: the shape of that.
        known: see :class:`Known`.
    """

    node: ir.Node
    dims: Dims
    source: Axes | None
    before: Dims | None
    known: Known


Rule: TypeAlias = Callable[[Step], Axes | None]
RULES: dict[str, Rule] = {}


def axes_of(step: Step) -> Axes | None:
    """The axes of a node's first output; None where they are not known."""
    rule = RULES.get(step.node.op_type)
    found = rule(step) if rule is not None else None
    return found if found is not None and len(found) == len(step.dims) else None


def rule(operators: str) -> Callable[[Rule], Rule]:
    """Register the decorated function for some operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators.split(), function))
        return function

    return register


def convolutional(dims: Dims) -> Axes:
    """(N, C, ...grid), as convolutions have it."""
    return lettered("NC" + LETTERS[5 - len(dims) :], dims)


# -- place by place ---------------------------------------------------------------------------------


@rule(
    """
    Abs Add And BiasGelu BitShift Cast CastLike Ceil Celu Clip Cos CumSum DequantizeLinear Div Dropout
    DynamicQuantizeLinear Elu Erf Exp FastGelu Floor Gelu HardSigmoid HardSwish Hardmax Identity IsInf IsNaN
    LayerNormalization LeakyRelu Log LogSoftmax LpNormalization Max Mean MeanVarianceNormalization Min Mish
    Mod Mul Neg Not Or PRelu Pow QuantizeLinear QuickGelu RMSNormalization Reciprocal Relu Round
    ScatterElements ScatterND Selu Shrink Sigmoid Sign SimplifiedLayerNormalization Sin
    SkipLayerNormalization Softmax Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    """
)
def _same_places(step: Step) -> Axes | None:
    """Of the input of the result's shape that knows most of the grid."""
    fits = [
        axes
        for v in step.node.inputs
        if v is not None and (axes := step.known.axes.get(v)) and _alike(dims_of(v), step.dims)
    ]
    if fits:
        return agreed(fits)
    fed = any(v in step.known.axes for v in step.node.inputs if v is not None)
    # Behind a known grid, what is not known is no grid: a decoder's queries.
    unseen = not fed and not step.known.gridded and step.dims[:1] == step.known.image[:1]
    if "Normalization" in step.node.op_type and unseen:
        return _guessed(step)
    return None


@rule("BatchNormalization InstanceNormalization GroupNormalization LRN LpPool")
def _of_images(step: Step) -> Axes | None:
    if step.source is not None:
        return step.source if _alike(step.before, step.dims) else _convolved(step)
    grid = len(step.dims) in (4, 5) and step.known.of_images(step.dims)
    return convolutional(step.dims) if grid else None


def _guessed(step: Step) -> Axes | None:
    """Of a norm over channels that come last, where nothing is known of what it is given."""
    dims = step.dims
    if len(dims) == 4:
        return lettered("NyxC", dims)
    if len(dims) != 3 or not isinstance(dims[1], int):
        return None
    if len(step.known.image) == 3:
        return lettered("NxC", dims)
    for others in range(9):  # a square grid behind as few other tokens as possible
        side = math.isqrt(max(dims[1] - others, 0))
        if side > 1 and side * side == dims[1] - others and _divides(side, step.known.image):
            cells = (Atom("y", side), Atom("x", side))
            return atom("N", dims[0]), (Tokens(others, cells, 0),) if others else cells, atom("C", dims[2])
    return None


def _divides(side: int, image: Dims) -> bool:
    """Whether an image may be cut into as many squares along each side."""
    sizes = [d for d in image[1:] if isinstance(d, int) and d not in CHANNELS]
    return not sizes or (len(set(sizes)) == 1 and sizes[0] % side == 0)


# -- moves ------------------------------------------------------------------------------------------


@rule("Reshape Flatten Squeeze Unsqueeze")
def _reshaped(step: Step) -> Axes | None:
    if step.source is None or step.before is None or not step.dims:
        return None
    return reshaped(step.source, step.before, step.dims)


@rule("Transpose")
def _transposed(step: Step) -> Axes | None:
    if step.source is None:
        return None
    perm = step.node.attributes.get_ints("perm", ()) or range(len(step.source))[::-1]
    return tuple(step.source[k] for k in perm)


@rule("Expand Tile")
def _repeated(step: Step) -> Axes | None:
    if step.source is None or step.before is None or len(step.source) != len(step.dims):
        return None
    counts = constant(step.node.inputs[1]) if step.node.op_type == "Tile" and step.node.inputs[1] else None
    found = []
    for k, (axis, b, d) in enumerate(zip(step.source, step.before, step.dims, strict=True)):
        # An open batch may be spelt anew where it is expanded to what it is.
        kept = (
            counts[k] == 1
            if counts is not None
            else b == d is not None
            or (
                step.node.op_type == "Expand" and k == 0 and not isinstance(b, int) and not isinstance(d, int)
            )
        )
        found.append(axis if kept else lost(axis, d))
    return tuple(found)


@rule("Slice")
def _sliced(step: Step) -> Axes | None:
    inputs = [constant(v) if v is not None else None for v in step.node.inputs[1:]]
    starts, ends, axes, steps = (*inputs, None, None, None, None)[:4]
    if step.source is None or step.before is None or starts is None or ends is None:
        return None
    chosen = range(len(starts)) if axes is None else axes.tolist()
    found = list(step.source)
    for j, k in enumerate(chosen):
        k %= len(found)
        stride = 1 if steps is None else int(steps[j])
        found[k] = _part(found[k], step.before[k], step.dims[k], int(starts[j]), int(ends[j]), stride)
    return tuple(found)


def _part(
    axis: Axis, before: int | str | None, after: int | str | None, start: int, end: int, stride: int
) -> Axis:
    """Of a slice of one axis."""
    if before is None or (not isinstance(before, int) and isinstance(after, int)):
        return lost(axis, after)
    if stride > 1:  # every so-manieth, from one end to the other
        start = max(start + before, 0) if isinstance(before, int) and start < 0 else start
        whole = end >= _TO_THE_END
        if isinstance(before, int) and isinstance(after, int):
            whole = start + (after - 1) * stride >= before - stride
        return resized(axis, before, after) if 0 <= start < stride and whole else lost(axis, after)
    if stride < 1:
        return lost(axis, after)
    if isinstance(before, int):
        start = max(start + before, 0) if start < 0 else min(start, before)
        back = before - start - after if isinstance(after, int) else 0
    elif start < 0 or 0 <= end < _TO_THE_END:
        return lost(axis, after)
    else:
        back = -end if end < 0 else 0
    return cut(axis, before, after, start, back)


@rule("Gather")
def _gathered(step: Step) -> Axes | None:
    where = step.node.inputs[1]
    rank = len(dims_of(where) or ()) if where is not None else 0
    if step.source is None or step.before is None or where is None or dims_of(where) is None or rank > 2:
        return None
    k = step.node.attributes.get_int("axis", 0) % len(step.source)
    if rank == 2:
        return _tiled(step, k, constant(where))
    if rank == 0:
        return mixed((*step.source[:k], *step.source[k + 1 :]), [step.source[k]])
    index = constant(where)
    axis, size = step.source[k], step.dims[k]
    found = lost(axis, size)
    if index is not None and len(index) and (index == index[0] + range(len(index))).all():
        found = _part(axis, step.before[k], size, int(index[0]), _TO_THE_END, 1)
    return (*step.source[:k], found, *step.source[k + 1 :])


def _tiled(step: Step, k: int, index: NDArray[Any] | None) -> Axes | None:
    """An axis cut into tiles by a table of indices, in either order, as torch's unfold is exported."""
    assert step.source is not None
    size = None if step.before is None else step.before[k]
    if index is None or index.size != size:
        return None
    turned = bool(index.size > 1 and index[0, 1:2].sum() != 1)
    in_order = index.T if turned else index
    if (in_order.ravel() != np.arange(size)).any():
        return None
    parts = reshaped((step.source[k],), (size,), in_order.shape)
    if parts is None:
        return None
    return (*step.source[:k], *(parts[::-1] if turned else parts), *step.source[k + 1 :])


@rule("Pad")
def _padded(step: Step) -> Axes | None:
    pads = constant(step.node.inputs[1]) if len(step.node.inputs) > 1 and step.node.inputs[1] else None
    if step.source is None or step.before is None or pads is None:
        return None
    listed = step.node.inputs[3] if len(step.node.inputs) > 3 else None
    chosen = constant(listed) if listed is not None else None
    if listed is not None and chosen is None:
        return None
    axes = range(len(step.source)) if chosen is None else [int(k) % len(step.source) for k in chosen]
    found = list(step.source)
    for j, k in enumerate(axes):
        front, back = int(pads[j]), int(pads[j + len(axes)])
        found[k] = cut(found[k], step.before[k], step.dims[k], -front, -back)
    return tuple(found)


@rule("Concat")
def _joined(step: Step) -> Axes | None:
    """Joined channels keep the grid; joined tokens are the grid's with others before and after them."""
    inputs = [v for v in step.node.inputs if v is not None]
    at = next((j for j, v in enumerate(inputs) if letters(step.known.axes.get(v, ()))), None)
    if at is None:
        at = next((j for j, v in enumerate(inputs) if v in step.known.axes), None)
    if at is None:
        return None
    axes = step.known.axes[inputs[at]]
    k = step.node.attributes.get_int("axis", 0) % len(axes)
    alike = [other for v in inputs if len(other := step.known.axes.get(v, ())) == len(axes)]
    before, behind = (
        agreed([a[part] for a in (axes, *alike)], LETTERS + LOST) for part in (slice(k), slice(k + 1, None))
    )
    found = lost(axes[k], step.dims[k])
    sizes = [(dims_of(v) or step.dims)[k] for v in inputs]
    own = sizes[at]
    others = [
        v
        for j, v in enumerate(inputs)
        if j != at and (letters(step.known.axes.get(v, ())) or sizes[j] == own)
    ]
    ints = [d for d in sizes if isinstance(d, int)]
    if letters([axes[k]]) and not others and len(ints) == len(sizes):
        first = axes[k][0]
        tokens = first if len(axes[k]) == 1 and isinstance(first, Tokens) else None
        if tokens is not None or is_cells(axes[k]):
            found = (
                Tokens(
                    sum(ints[:at]) + (tokens.before if tokens else 0),
                    tuple(atoms([axes[k]])),
                    sum(ints[at + 1 :]) + (tokens.after if tokens else 0),
                ),
            )
    return (*before, found, *behind)


def pieces(step: Step) -> Sequence[Axes | None]:
    """Of every output of a Split."""
    shapes = [dims_of(v) for v in step.node.outputs]
    if step.source is None or step.before is None or any(d is None for d in shapes):
        return [None] * len(shapes)
    k = step.node.attributes.get_int("axis", 0) % len(step.source)
    start, found = 0, []
    for dims in shapes:
        assert dims is not None
        axis = lost(step.source[k], dims[k])
        if isinstance(dims[k], int):
            axis = _part(step.source[k], step.before[k], dims[k], start, _TO_THE_END, 1)
            start += int(dims[k] or 0)
        found.append((*step.source[:k], axis, *step.source[k + 1 :]))
    return found


# -- the neighbourhood ------------------------------------------------------------------------------


@rule("Conv ConvTranspose DeformConv ConvInteger")
def _convolved_anew(step: Step) -> Axes | None:
    weight = dims_of(step.node.inputs[1]) if step.node.inputs[1] is not None else None
    looks_around = weight is None or any(d != 1 for d in weight[2:])
    of_input = step.node.inputs[0] in _inputs(step.node)
    own = step.known.of_images(step.dims)
    found = _convolved(step)
    if found is not None and (LOST not in {a.of for a in atoms(found[2:])} or not (looks_around and own)):
        return found
    # What looks at its neighbours shows where the grid lies.
    return convolutional(step.dims) if own and (looks_around or of_input) else None


@rule("MaxPool AveragePool QLinearAveragePool")
def _pooled(step: Step) -> Axes | None:
    if step.source is None:
        return convolutional(step.dims) if step.known.of_images(step.dims) else None
    return _convolved(step)


def _convolved(step: Step) -> Axes | None:
    """(N, C, ...) over its neighbours, and over its channels where they are more or fewer afterwards."""
    if step.source is None or step.before is None or len(step.source) != len(step.dims) or len(step.dims) < 3:
        return None
    groups = step.node.attributes.get_int("group", 1)
    keeps = step.node.op_type not in ("Conv", "ConvTranspose", "DeformConv", "ConvInteger") or (
        groups == step.dims[1] == step.before[1]
    )
    grid = [
        resized(axis, b, d)
        for axis, b, d in zip(step.source[2:], step.before[2:], step.dims[2:], strict=True)
    ]
    if keeps:
        return step.source[0], resized(step.source[1], step.before[1], step.dims[1]), *grid
    n, *grid = mixed((step.source[0], *grid), [step.source[1]])
    return n, atom("C", step.dims[1]), *grid


def _inputs(node: ir.Node) -> Sequence[ir.Value]:
    return node.graph.inputs if node.graph is not None else ()


@rule("Resize Upsample")
def _scaled(step: Step) -> Axes | None:
    if step.source is None or step.before is None:
        known = len(step.dims) in (4, 5) and step.known.of_images(step.dims)
        return convolutional(step.dims) if known else None
    triples = zip(step.source, step.before, step.dims, strict=True)
    # An open batch may be spelt anew.
    return tuple(
        t[0] if k == 0 and not (isinstance(t[1], int) and isinstance(t[2], int)) else resized(*t)
        for k, t in enumerate(triples)
    )


@rule("DepthToSpace SpaceToDepth")
def _blocks(step: Step) -> Axes | None:
    if step.source is None or step.before is None:
        return convolutional(step.dims) if step.known.of_images(step.dims) else None
    grid = (resized(*t) for t in zip(step.source[2:], step.before[2:], step.dims[2:], strict=True))
    return step.source[0], lost(step.source[1], step.dims[1]), *grid


# -- sums -------------------------------------------------------------------------------------------


@rule("MatMul MatMulInteger")
def _multiplied(step: Step) -> Axes | None:
    a, b = step.node.inputs[:2]
    a_dims, b_dims = dims_of(a) if a else None, dims_of(b) if b else None
    if a_dims is None or b_dims is None or len(a_dims) < 2 or len(b_dims) < 2:
        return None
    letters_of = "abcdefgh"[: max(len(a_dims), len(b_dims)) - 2]
    batch = [letters_of[len(letters_of) - len(d) + 2 :] for d in (a_dims, b_dims)]
    labels = f"{batch[0]}ik", f"{batch[1]}kj", f"{letters_of}ij"
    return _einsum(step, labels[:2], labels[2])


@rule("Gemm")
def _linear(step: Step) -> Axes | None:
    flipped = [step.node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    return _einsum(step, ("ki" if flipped[0] else "ik", "jk" if flipped[1] else "kj"), "ij")


@rule("Einsum")
def _summed(step: Step) -> Axes | None:
    equation = step.node.attributes.get_string("equation", "").replace(" ", "")
    if "." in equation or "->" not in equation:
        return None
    operands, result = equation.split("->")
    return _einsum(step, operands.split(","), result)


def _einsum(step: Step, operands: Sequence[str], result: str) -> Axes | None:
    terms = []
    for labels, v in zip(operands, step.node.inputs, strict=False):
        dims = dims_of(v) if v is not None else None
        if v is None or dims is None or len(dims) != len(labels) or len(set(labels)) < len(labels):
            return None
        terms.append(Term(labels, step.known.axes.get(v), dims, v not in step.known.moving))
    return contracted(terms, result, step.dims) if len(result) == len(step.dims) else None


@rule("Attention MultiHeadAttention QAttention")
def _attended(step: Step) -> Axes | None:
    """Each token's is the query's."""
    if step.source is None or step.before is None or len(step.source) != len(step.dims):
        return None
    return *step.source[:-1], atom("C", step.dims[-1])


@rule("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare ReduceProd")
def _reduced(step: Step) -> Axes | None:
    if step.source is None:
        return None
    listed = step.node.inputs[1] if len(step.node.inputs) > 1 else None
    gone = constant(listed) if listed is not None else None
    if listed is not None and gone is None:
        return None
    noop = step.node.attributes.get_int("noop_with_empty_axes", 0)
    ints = gone.tolist() if gone is not None else step.node.attributes.get_ints("axes", ())
    rank = len(step.source)
    over = {k % rank for k in ints} or (set() if noop else set(range(rank)))
    if step.node.attributes.get_int("keepdims", 1):
        kept = tuple(() if k in over else a for k, a in enumerate(step.source))
    else:
        kept = tuple(a for k, a in enumerate(step.source) if k not in over)
    return mixed(kept, [step.source[k] for k in over])


@rule("GlobalAveragePool GlobalMaxPool GlobalLpPool")
def _pooled_away(step: Step) -> Axes | None:
    return None if step.source is None else (*step.source[:2], *((),) * (len(step.dims) - 2))


def _alike(a: Dims | None, b: Dims) -> bool:
    """Equal shapes, apart from a batch that shape inference may have named differently."""
    return a is not None and len(a) == len(b) and a[1:] == b[1:]
