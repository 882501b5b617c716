"""Node building for gradient rules: tensors with operators, and nodes by their ONNX names.

Everything that the exporter adds to a graph is built here, so that every node's name starts
with ``onnxcam/`` and its doc_string says which rule made it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

NODE_PREFIX = "onnxcam/"
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_END = 2**31 - 1  #: of a slice that goes on to the end
_LONG = 64  #: entries above which a counted constant is not stored

Dim: TypeAlias = int | str | None  #: a size, a symbol, or unknown
Dims: TypeAlias = tuple[Dim, ...]
Scalar: TypeAlias = int | float


def dims_of(value: ir.Value) -> Dims | None:
    """A value's shape as plain Python; None if its rank is unknown."""
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def is_static(dims: Sequence[Dim]) -> bool:
    """Whether every dim is a number."""
    return all(isinstance(d, int) for d in dims)


@dataclass(frozen=True, eq=False)
class Var:
    """A tensor of the graph under construction, with arithmetic.

    Attributes:
        value: the graph's value.
        op: the builder that makes new nodes.
        dims: its shape where known; None if even the rank is unknown.
    """

    value: ir.Value
    op: Builder
    dims: Dims | None

    def __post_init__(self) -> None:
        if self.dims is not None and self.value.shape is None:
            self.op.found[self.value] = self.dims

    @property
    def dtype(self) -> ir.DataType:
        """The element type (float32 where the graph does not say)."""
        return self.value.dtype or ir.DataType.FLOAT

    @property
    def shape(self) -> Dims:
        """The dims; raises ``op.shape_unknown`` if the rank is unknown."""
        if self.dims is None:
            raise self.op.shape_unknown(self.value)
        return self.dims

    @property
    def rank(self) -> int:
        """The number of axes; an error if unknown."""
        return len(self.shape)

    def __add__(self, other: Operand) -> Var:
        return self.op.binary("Add", self, other)

    def __radd__(self, other: Operand) -> Var:
        return self.op.binary("Add", other, self)

    def __sub__(self, other: Operand) -> Var:
        return self.op.binary("Sub", self, other)

    def __rsub__(self, other: Operand) -> Var:
        return self.op.binary("Sub", other, self)

    def __mul__(self, other: Operand) -> Var:
        return self if _is(other, 1) else self.op.binary("Mul", self, other)

    def __rmul__(self, other: Operand) -> Var:
        return self * other

    def __truediv__(self, other: Operand) -> Var:
        return self if _is(other, 1) else self.op.binary("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Var:
        return self.op.binary("Div", other, self)

    def __neg__(self) -> Var:
        return self.op.Neg(self)

    def __gt__(self, other: Operand) -> Var:
        return self.op.binary("Greater", self, other)

    def __lt__(self, other: Operand) -> Var:
        return self.op.binary("Less", self, other)

    def __ge__(self, other: Operand) -> Var:
        return self.op.binary("GreaterOrEqual", self, other)

    def __le__(self, other: Operand) -> Var:
        return self.op.binary("LessOrEqual", self, other)

    def __getitem__(self, slices: slice | tuple[slice, ...]) -> Var:
        """Slices of the first axes, as NumPy has them, but without steps."""
        wanted = slices if isinstance(slices, tuple) else (slices,)
        if not all(isinstance(s, slice) and s.step is None for s in wanted):
            raise TypeError(f"A tensor of the graph is cut by slices without steps, not by {slices!r}.")
        axes = [k for k, s in enumerate(wanted) if s != slice(None)]
        starts = [wanted[k].start or 0 for k in axes]
        ends = [_END if wanted[k].stop is None else wanted[k].stop for k in axes]
        return self.op.slice(self, starts, ends, axes) if axes else self


Operand: TypeAlias = Var | Scalar


class Builder:
    """Appends nodes to a graph: ``op.Relu(x)``, ``op.Slice(x, starts, ends, axes)``.

    Tensor arguments are :class:`Var`, numbers, sequences of ints (an int64 constant) or arrays;
    ``None`` is an absent optional input. Keyword arguments are attributes.
    """

    def __init__(self, graph: ir.Graph, shape_unknown: Callable[[ir.Value], Exception] | None = None) -> None:
        self.graph = graph
        self.opset = graph.opset_imports.get("", 18)
        self.doc = ""  #: goes into the doc_string of new nodes: the rule at work
        self.scope = ""  #: goes into their names: the forward node
        self.added: list[ir.Node] = []
        self.subgraphs: list[Builder] = []  #: builders of graphs inside this one's nodes
        self.found: dict[ir.Value, Dims] = {}  #: shapes of what was made, which the graph does not say
        self._unknown = shape_unknown
        self._constants: dict[tuple[Any, ...], Var] = {}
        self._one_hots: dict[ir.Value, Var] = {}
        self._numbers: dict[str, int] = {}
        self._taken = {v.name for n in graph.all_nodes() for v in n.outputs} | set(graph.initializers)
        self._taken |= {v.name for v in graph.inputs}

    def inside(self, graph: ir.Graph) -> Builder:
        """A builder of a graph inside one of our nodes; what is in it counts as added, names stay unique."""
        inner = Builder(graph, self._unknown)
        inner.doc, inner.scope = self.doc, self.scope
        inner._taken, inner._numbers = self._taken, self._numbers
        inner.added = [*graph]
        self.subgraphs.append(inner)
        return inner

    # -- wrapping and naming ---------------------------------------------------------------

    def wrap(self, value: ir.Value) -> Var:
        """A forward value as an operand."""
        return Var(value, self, dims_of(value))

    def say_shapes(self) -> None:
        """Note in the graph the shapes of all that was made so far: what differentiates it asks for them."""
        for value, dims in self.found.items():
            if value.shape is None:
                value.shape = ir.Shape(dims)
        self.found.clear()

    def shape_unknown(self, value: ir.Value) -> Exception:
        """The error to raise where a rule needs a shape that is not known."""
        return self._unknown(value) if self._unknown else ValueError(f"shape of {value.name!r} is unknown")

    def unique(self, wanted: str) -> str:
        """``wanted``, or with a number if it is taken; reserved from now on."""
        name, n = wanted, self._numbers.get(wanted, 1)
        while name in self._taken:
            name, n = f"{wanted}_{n}", n + 1
        self._numbers[wanted] = n  # a name of thousands is not counted through each time
        self._taken.add(name)
        return name

    @contextlib.contextmanager
    def working_on(self, rule: str, node: str) -> Iterator[None]:
        """Nodes made inside are named after the forward node and say the rule."""
        before = self.doc, self.scope
        name = node.removeprefix(NODE_PREFIX).strip("/")
        self.doc, self.scope = f"{rule} of {node}", name + "/" if name else ""
        try:
            yield
        finally:
            self.doc, self.scope = before

    # -- nodes --------------------------------------------------------------------------------

    def __getattr__(self, op_type: str) -> Callable[..., Var]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)

        def make(*inputs: Any, dims: Dims | None = None, **attributes: Any) -> Var:
            return self.node(op_type, inputs, attributes, dims)

        return make

    def node(
        self,
        op_type: str,
        inputs: Sequence[Any],
        attributes: dict[str, Any] | None = None,
        dims: Dims | None = None,
    ) -> Var:
        """Append one node of one output.

        Args:
            op_type: the operator.
            inputs: see the class.
            attributes: by name; those that are None are left out.
            dims: the output's shape, where it is known and is not that of the operands.
        """
        like = next((i for i in inputs if isinstance(i, Var) and _is_float(i.dtype)), None)
        operands = [None if i is None else self.operand(i, like) for i in inputs]
        while operands and operands[-1] is None:
            operands.pop()
        made = ir.node(
            op_type,
            [None if o is None else o.value for o in operands],
            {k: v for k, v in (attributes or {}).items() if v is not None},
            name=self.unique(f"{NODE_PREFIX}{self.scope}{op_type}"),
            doc_string=self.doc or None,
        )
        value = made.outputs[0]
        value.name = self.unique(f"{made.name}_output_0")
        dtype = _result_dtype(op_type, operands, attributes or {})
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        self.graph.append(made)
        self.added.append(made)
        return Var(value, self, dims if dims is not None else _guess_dims(op_type, operands))

    def operand(self, x: Any, like: Var | None = None) -> Var:
        """``x`` as a tensor; a number takes the dtype of ``like``, ints in a sequence are int64."""
        if isinstance(x, Var):
            return x
        if isinstance(x, np.ndarray | np.generic):
            return self.const(np.asarray(x))
        if isinstance(x, int | float):
            return self.const(np.asarray(x, dtype=(like.dtype if like else ir.DataType.FLOAT).numpy()))
        return self.const(np.asarray(x, dtype=np.int64))

    def const(self, array: np.ndarray[Any, Any]) -> Var:
        """A constant; equal ones share an initializer."""
        array = np.ascontiguousarray(array) if array.ndim else array
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = self.unique(f"{NODE_PREFIX}const")
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
            self._constants[key] = Var(value, self, tuple(array.shape))
        return self._constants[key]

    def binary(self, op_type: str, a: Operand, b: Operand) -> Var:
        """An arithmetic or comparison node; a number takes the tensor's dtype."""
        like = a if isinstance(a, Var) else b
        assert isinstance(like, Var)
        return self.node(op_type, [self.operand(a, like), self.operand(b, like)])

    def output(self, x: Var, name: str, like: ir.Value, single: bool = False) -> ir.Value:
        """A value fit to be a graph output: named ``name``, typed and shaped as ``like``.

        ``single`` says that it is float32 where ``like`` is of half precision.

        A value that others use, or that stands for a graph input, gets an Identity of its own.
        """
        value = x.value
        ours = value.producer() in set(self.added) and not value.uses() and not value.is_graph_output()
        if not ours:
            with self.working_on("vjp output", name):
                value = self.Identity(x).value
        value.name = name
        value.type = ir.TensorType(ir.DataType.FLOAT) if single and like.dtype in HALF else like.type
        value.shape = like.shape
        return value

    # -- shapes -------------------------------------------------------------------------------

    def dim(self, x: Var, axis: int) -> int | Var:
        """The size of an axis: a number where the graph knows it, else a scalar int64 tensor."""
        size = x.shape[axis]
        axis %= x.rank
        if isinstance(size, int):
            return size
        return self.Squeeze(self.Shape(x, start=axis, end=axis + 1), [0], dims=())

    def shape_of(self, x: Var) -> Var:
        """The shape of ``x`` as an int64 vector, constant if it is static."""
        if x.dims is not None and is_static(x.dims):
            return self.const(np.asarray(x.dims, dtype=np.int64))
        return self.Shape(x)

    def reshape(self, x: Var, dims: Sequence[Dim | Var], like: Var | None = None) -> Var:
        """``x`` with new dims; those that are not numbers are read at run time.

        Args:
            x: the tensor.
            dims: sizes, scalar tensors, or symbols and None. One that is not a number is left to
                Reshape (-1); with more of them, ``like`` must be a tensor of that shape.
            like: see ``dims``.
        """
        known = tuple(None if isinstance(d, Var) else d for d in dims)
        if x.dims is not None and known == x.dims and None not in known:
            return x
        open_dims = [k for k, d in enumerate(dims) if not isinstance(d, int)]
        # 0 would mean "copy this axis": an empty axis needs the run-time shape.
        if len(open_dims) <= 1 and 0 not in dims:
            target: Any = [d if isinstance(d, int) else -1 for d in dims]
        elif any(isinstance(d, Var) for d in dims):
            parts = [
                self.reshape_scalar(d) if isinstance(d, Var) else self.const(np.asarray([d], np.int64))
                for d in dims
            ]
            target = self.Concat(*parts, axis=0)
        elif like is not None:
            target = self.shape_of(like)
        else:
            raise self.shape_unknown(x.value)
        return self.Reshape(x, target, dims=known)

    def reshape_scalar(self, x: Var) -> Var:
        """A scalar as a vector of one entry."""
        return self.Unsqueeze(x, [0], dims=(1,))

    def reshape_like(self, x: Var, like: Var) -> Var:
        """``x`` in the shape of ``like``."""
        return self.Reshape(x, self.Shape(like)) if like.dims is None else self.reshape(x, like.dims, like)

    def expand_like(self, x: Var, like: Var) -> Var:
        """``x`` broadcast to the shape of ``like``."""
        if x.dims is not None and like.dims is not None and x.dims == like.dims and None not in x.dims:
            return x
        return self.Expand(x, self.shape_of(like), dims=like.dims)

    def zeros_like(self, x: Var) -> Var:
        """Zeros in the shape and dtype of ``x``."""
        zero = self.const(np.zeros((), x.dtype.numpy()))
        return self.Expand(zero, self.shape_of(x), dims=x.dims)

    def sum(self, x: Var, axes: Sequence[int], keepdims: bool = True) -> Var:
        """Sum over axes."""
        axes = sorted(a % x.rank for a in axes)
        if not axes:
            return x
        dims = tuple(1 if k in axes else d for k, d in enumerate(x.shape) if keepdims or k not in axes)
        return self.ReduceSum(x, axes, keepdims=int(keepdims), dims=dims)

    def count(self, x: Var, axes: Sequence[int]) -> Scalar | Var:
        """The number of elements along axes: an int, or a scalar of x's dtype where unknown."""
        sizes = [x.shape[a] for a in axes]
        if is_static(sizes):
            return math.prod(int(s) for s in sizes if s is not None)
        picked = self.Gather(self.Shape(x), [a % x.rank for a in axes], axis=0)
        return self.Cast(self.ReduceProd(picked, keepdims=0, dims=()), to=x.dtype, dims=())

    def slice(self, x: Var, starts: Any, ends: Any, axes: Sequence[int], steps: Any = None) -> Var:
        """Slice along axes; bounds are ints or an int64 vector."""
        dims: list[Dim] = list(x.shape)
        fixed = not isinstance(starts, Var) and not isinstance(ends, Var)
        for k, axis in enumerate(axes):
            size = dims[axis]
            if fixed and isinstance(size, int):
                step = 1 if steps is None else steps[k]
                dims[axis] = len(range(*slice(starts[k], _clamp(ends[k], step), step).indices(size)))
            else:
                dims[axis] = None
        return self.Slice(x, starts, ends, list(axes), steps, dims=tuple(dims))

    def pad(self, x: Var, begins: Sequence[Any], ends: Sequence[Any], value: Scalar = 0) -> Var:
        """Constant padding on every axis; entries are ints or scalar int64 tensors."""
        both = [*begins, *ends]
        if all(isinstance(p, int) and p == 0 for p in both):
            return x
        if all(isinstance(p, int) for p in both):
            pads: Any = both
        else:
            pads = self.Concat(
                *[self.operand([p]) if isinstance(p, int) else self.reshape_scalar(p) for p in both], axis=0
            )
        dims = tuple(
            d + b + e
            if isinstance(d, int) and isinstance(b, int) and isinstance(e, int)
            else None
            if not (b == 0 and e == 0)
            else d
            for d, b, e in zip(x.shape, begins, ends, strict=True)
        )
        fill = None if value == 0 else self.operand(value, x)
        return self.Pad(x, pads, fill, dims=dims)

    def transpose(self, x: Var, perm: Sequence[int]) -> Var:
        """Transpose; nothing for the identity."""
        if list(perm) == list(range(len(perm))):
            return x
        dims = None if x.dims is None else tuple(x.dims[p] for p in perm)
        return self.Transpose(x, perm=list(perm), dims=dims)

    def swap(self, x: Var) -> Var:
        """The last two axes exchanged."""
        return self.transpose(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])

    def where(self, condition: Var, a: Operand, b: Operand) -> Var:
        """Select; numbers take the other branch's dtype."""
        like = a if isinstance(a, Var) else b if isinstance(b, Var) else None
        dims = _broadcast([condition.dims, *(x.dims if isinstance(x, Var) else () for x in (a, b))])
        return self.Where(condition, self.operand(a, like), self.operand(b, like), dims=dims)

    def times(self, g: Var, W: Var, transposed: bool = False) -> Var:
        """``g @ W`` (or ``g @ W`` with W's last two axes exchanged).

        If g is a one-hot table this picks rows of W instead: a classifier's weights are read once.
        """
        indices = self._one_hots.get(g.value)
        if indices is None or W.rank != 2:
            return self.MatMul(g, self.swap(W) if transposed else W)
        rows = self.Gather(W, indices, axis=int(transposed))
        picked = Var(rows.value, self, (W.shape[0], g.shape[0]) if transposed else (g.shape[0], W.shape[1]))
        return self.swap(picked) if transposed else picked

    def one_hot(self, indices: Var, like: Var) -> Var:
        """(N, K) in the dtype and shape of ``like``: 1 at each row's index, else 0."""
        column = self.Unsqueeze(indices, [1], dims=(like.shape[0], 1))
        table = self.mask(self.Equal(column, self.iota(like, 1)), like)
        table = Var(table.value, self, like.dims)
        self._one_hots[table.value] = indices
        return table

    def iota(self, x: Var, axis: int) -> Var:
        """0, 1, 2, ... along an axis of ``x``: int64, one axis."""
        size = self.dim(x, axis)
        if isinstance(size, int) and size <= _LONG:
            return self.const(np.arange(size, dtype=np.int64))
        # Not stored but counted: ONNX Runtime folds it at load if the size is a number.
        zero, one = (self.const(np.asarray(v, dtype=np.int64)) for v in (0, 1))
        limit = self.const(np.asarray(size, dtype=np.int64)) if isinstance(size, int) else size
        return self.Range(zero, limit, one, dims=(x.shape[axis],))

    def vector(self, entries: Sequence[int | Var]) -> Any:
        """Ints and int64 scalars as bounds: a plain list if all are ints, else a vector of the graph."""
        if all(isinstance(e, int) for e in entries):
            return list(entries)
        parts = [self.reshape_scalar(e) if isinstance(e, Var) else self.operand([e]) for e in entries]
        return parts[0] if len(parts) == 1 else self.Concat(*parts, axis=0, dims=(len(parts),))

    def array(self, x: Var) -> np.ndarray[Any, Any] | None:
        """The array behind a constant; None if it is computed at run time."""
        tensor = x.value.const_value
        return None if tensor is None else tensor.numpy()

    def ints(self, x: Var) -> tuple[int, ...] | None:
        """A constant vector as ints; None if it is computed at run time."""
        array = self.array(x)
        return None if array is None else tuple(int(v) for v in array.reshape(-1))

    def scalar(self, x: Var) -> float | None:
        """A constant of one entry; None otherwise."""
        array = self.array(x)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def cast(self, x: Var, to: ir.DataType) -> Var:
        """Cast; nothing if it is that type already."""
        return x if x.dtype == to else self.Cast(x, to=to, dims=x.dims)

    def single(self, x: Var) -> Var:
        """Half precision as float32; anything else as it is."""
        return self.cast(x, ir.DataType.FLOAT) if x.dtype in HALF else x

    def mask(self, condition: Var, like: Var) -> Var:
        """A condition as 0 and 1 in the dtype of ``like``."""
        return self.Cast(condition, to=like.dtype, dims=condition.dims)


def broadcast_dims(a: Dims, b: Dims) -> Dims:
    """The dims of two broadcast operands; None where it cannot be told."""
    out: list[Dim] = []
    for x, y in zip(_left_pad(a, len(b)), _left_pad(b, len(a)), strict=True):
        if x == 1:
            out.append(y)
        elif y == 1 or x == y:
            out.append(x)
        elif isinstance(x, int):
            out.append(x)  # a symbol against a number above 1 can only be that number or 1
        elif isinstance(y, int):
            out.append(y)
        else:
            out.append(None)
    return tuple(out)


def _left_pad(dims: Dims, rank: int) -> Dims:
    return (1,) * max(0, rank - len(dims)) + dims


def _broadcast(all_dims: Sequence[Dims | None]) -> Dims | None:
    out: Dims = ()
    for dims in all_dims:
        if dims is None:
            return None
        out = broadcast_dims(out, dims)
    return out


_SAME_DIMS = frozenset(
    """
    Neg Exp Log Sqrt Erf Tanh Sigmoid Relu Abs Sign Cast Not Reciprocal Softmax Clip Identity Sin Cos IsNaN
    """.split()
)
_BROADCASTING = frozenset(
    """
    Add Sub Mul Div Pow Greater Less GreaterOrEqual LessOrEqual Equal And Or Max Min
    """.split()
)
_TO_BOOL = frozenset(
    ["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "And", "Or", "Not", "IsNaN"]
)


def _guess_dims(op_type: str, operands: Sequence[Var | None]) -> Dims | None:
    known = [o.dims for o in operands if o is not None]
    if op_type in _SAME_DIMS and known:
        return known[0]
    if op_type in _BROADCASTING:
        return _broadcast(known)
    if op_type == "MatMul" and known[0] is not None and known[1] is not None:
        a, b = known[0], known[1]
        if len(a) >= 2 and len(b) >= 2:
            return (*broadcast_dims(a[:-2], b[:-2]), a[-2], b[-1])
    return None


def _result_dtype(
    op_type: str, operands: Sequence[Var | None], attributes: dict[str, Any]
) -> ir.DataType | None:
    if op_type in _TO_BOOL:
        return ir.DataType.BOOL
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    if op_type in ("Shape", "ArgMax", "NonZero", "Size"):
        return ir.DataType.INT64
    source = operands[{"Where": 1, "OneHot": 2}.get(op_type, 0)] if operands else None
    return source.dtype if source is not None else None


def _clamp(end: int, step: int) -> int | None:
    # ONNX writes "to the very start" of a reversed slice as a large negative end.
    return None if step < 0 and end < -(2**31) else end


def _is(x: Any, number: int) -> bool:
    return isinstance(x, int | float) and x == number


def _is_float(dtype: ir.DataType) -> bool:
    return bool(dtype.is_floating_point())
