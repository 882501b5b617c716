"""A network with a switch on every tensor that its quantised form holds in other numbers.

The switchable network is the reference, the fp32 file, in which whoever reads a quantised activation reads
``switch ? DequantizeLinear(QuantizeLinear(x)) : x`` instead, and of a quantised weight ``switch ? what the
quantised file reads : the weight``. All switches off it is the reference; all on it is the quantised file,
computed in float. One session answers for every subset, and since the result is an ONNX file like any other,
:func:`onnxcam.export.rewrite_onnx` makes it explainable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from ..contract import KEY
from ..errors import MissingDependency, ModelError
from .counterparts import Step, Use, check_form, dequantizer, stored, uses
from .explainable import strip
from .from_onnx import inline, load, normalize
from .gradients.definitions.registry import MICROSOFT
from .gradients.registry import input_name
from .paths import fed

SWITCHES = "onnxcam.switches"  #: the input: bool, one entry per tensor
_OURS = "onnxcam.switched"

Kind: TypeAlias = Literal["activation", "weight", "bias", "constant"]
Array: TypeAlias = np.ndarray[Any, Any]
Source: TypeAlias = "str | os.PathLike[str] | bytes"

#: The types that activations may take, and the domain whose QuantizeLinear knows them at every opset.
_DOMAINS = {
    ir.DataType.UINT8: "",
    ir.DataType.INT8: "",
    ir.DataType.UINT16: MICROSOFT,
    ir.DataType.INT16: MICROSOFT,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor that the quantised file holds in other numbers than the reference.

    Attributes:
        name: in the quantised file: of an activation before QuantizeLinear, of a constant as it is stored.
        kind: an activation; a weight or a bias that is quantised; or a constant that is merely another one,
            as after further training.
        reference: its name in the reference.
        readers: the nodes of the reference that read it; "" stands for the model's output.
        type: in which it is stored.
        scale: the smallest and the largest of its scales; None of a constant that is not quantised.
        range: the smallest and the largest number that an activation can have, or a constant has.
    """

    name: str
    kind: Kind
    reference: str
    readers: tuple[str, ...]
    type: str
    scale: tuple[float, float] | None
    range: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Switchable:
    """The network with its switches.

    Attributes:
        model: takes the reference's inputs and :data:`SWITCHES`.
        tensors: one per switch, in the order of the nodes that read them.
        same: quantised constants that stand for the reference's very numbers, and need no switch.
        read: {tensor of the reference: the tensor that its readers read}, where they all read one.
        scores: {output of the reference: the tensor before its switch}.
    """

    model: ir.Model
    tensors: tuple[Tensor, ...]
    same: tuple[str, ...]
    read: dict[str, str]
    scores: dict[str, str]


def switchable(reference: Source, quantised: Source) -> Switchable:
    """Put a switch on every tensor that is quantised.

    Args:
        reference: the fp32 file, or its bytes; explainable or not.
        quantised: the file that Q and DQ were put into; likewise.

    Raises:
        NotOnnx: one of them cannot be read.
        ModelError: the second is not in QDQ form, its scales are not constants, an activation has a type that
            ONNX Runtime does not quantise to, or the two are not of one network.
        MissingDependency: there is no ONNX Runtime.
    """
    ours, theirs = _normal(reference), _normal(quantised)
    check_form(theirs.graph)
    found = uses(ours.graph, theirs.graph)
    operands = [
        v
        for use in found
        for step in use.steps
        for node in (step.quantize, step.dequantize)
        for v in node.inputs[1:]
    ]
    constants = [use.constant for use in found if use.constant is not None]
    scales = [node.inputs[1] for value in constants if (node := dequantizer(value)) is not None]
    numbers = computed(theirs, [v for v in (*operands, *constants, *scales) if v is not None])
    numbers |= computed(ours, [use.value for use in found if use.constant is not None])
    return _Board(ours, numbers).with_switches(found)


def computed(model: ir.Model, values: Iterable[ir.Value]) -> dict[ir.Value, Array]:
    """The arrays of values that depend on no input.

    Raises:
        ModelError: one of them depends on an input.
        MissingDependency: there is no ONNX Runtime.
    """
    graph = model.graph
    moving = {*fed(graph), *(v for v in graph.inputs if not v.is_initializer())}
    found, wanted = {}, []
    for value in dict.fromkeys(values):
        if value in moving:
            raise ModelError(
                f"The quantised file computes the scale or zero point {value.name!r} from its input. "
                "Quantise statically: quantize_static(..., quant_format=QuantFormat.QDQ)."
            )
        if value.const_value is not None:
            found[value] = value.const_value.numpy()
        else:
            wanted.append(value)
    if wanted:
        found |= dict(zip(wanted, _run(model, wanted), strict=True))
    return found


def _run(model: ir.Model, wanted: list[ir.Value]) -> list[Array]:
    """What the nodes behind some constants compute, in ONNX Runtime."""
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise MissingDependency(
            'Reading quantised weights needs ONNX Runtime: `pip install "onnxcam[cpu]"`.'
        ) from e
    behind = set(wanted)
    nodes = []
    for node in reversed(model.graph):
        if any(v in behind for v in node.outputs):
            nodes.append(ir.to_proto(node))
            behind.update(v for v in node.inputs if v is not None)
    graph = onnx.helper.make_graph(
        nodes[::-1],
        "constants",
        [],
        [onnx.helper.make_tensor_value_info(_name(v), v.dtype or ir.DataType.FLOAT, None) for v in wanted],
        [ir.to_proto(v.const_value) for v in behind if v.is_initializer() and v.const_value is not None],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {}))


def _normal(source: Source) -> ir.Model:
    model = load(source)
    if KEY in model.metadata_props:
        return strip(model)
    inline(model)
    return normalize(model)


@dataclass(frozen=True)
class _Rounding:
    """How an activation becomes whole numbers and real ones again: (scale, zero point) there and back."""

    type: ir.DataType
    axis: int
    there: tuple[Array, Array]
    back: tuple[Array, Array]

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.type, self.axis, *(a.tobytes() for a in (*self.there, *self.back)))

    @property
    def range(self) -> tuple[float, float]:
        scale, zero = (a.astype(np.float64).ravel() for a in self.back)
        return float(((self.type.min - zero) * scale).min()), float(((self.type.max - zero) * scale).max())


class _Board:
    """The reference, while switches are put into it."""

    def __init__(self, model: ir.Model, numbers: dict[ir.Value, Array]) -> None:
        self._model = model
        self._graph = model.graph
        self._numbers = numbers
        self._places: dict[tuple[Any, ...], int] = {}
        self._tensors: list[Tensor] = []
        self._same: dict[str, None] = {}
        self._switched: dict[tuple[Any, ...], ir.Value] = {}
        self._input = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))
        self._scalars: dict[tuple[str, int], ir.Value] = {}

    def with_switches(self, found: Iterable[Use]) -> Switchable:
        """Put them where the quantised file reads other numbers."""
        order = {node: k for k, node in enumerate(self._graph)}
        values = [*self._graph.inputs, *self._graph.initializers.values()]
        values += [v for node in self._graph for v in node.outputs]
        names = {v: v.name or "" for v in values}
        readers = {v: len(v.uses()) + v.is_graph_output() for v in values}
        read: dict[ir.Value, list[ir.Value]] = {}
        scores = {}
        for use in sorted(found, key=lambda u: (len(order) if u.node is None else order[u.node], u.index)):
            new = self._constant(use) if use.constant is not None else self._activation(use)
            if new is use.value:
                continue
            read.setdefault(use.value, []).append(new)
            if use.node is not None:
                use.node.replace_input_with(use.index, new)
            else:
                name = names[use.value]
                use.value.name = scores[name] = f"{_OURS}.{name}"
                new.name = name
                self._graph.outputs[use.index] = new
        self._input.shape = ir.Shape([len(self._tensors)])
        self._graph.inputs.append(self._input)
        self._graph.opset_imports.setdefault(MICROSOFT, 1)
        self._graph.sort()
        alike = {v: new for v, new in read.items() if len(new) == readers[v] and len(set(new)) == 1}
        return Switchable(
            self._model,
            tuple(self._tensors),
            tuple(self._same),
            {names[v]: new[0].name or "" for v, new in alike.items()},
            scores,
        )

    def _activation(self, use: Use) -> ir.Value:
        value = use.value
        key: tuple[Any, ...] = (value,)
        for step in use.steps:
            how = self._rounding(step)
            before = value if step.before is None else step.before
            key = (*key, before is value, how.key)
            scales = how.there[0]
            told = Tensor(
                _name(step.quantize.inputs[0]),
                "activation",
                _name(use.value),
                (),
                how.type.name.lower(),
                (float(scales.min()), float(scales.max())),
                how.range,
            )
            if any(t.name == told.name for t in self._tensors) and key not in self._places:
                told = replace(told, name=_name(step.quantize.outputs[0]))  # read in several ways
            number = self._number(key, told, use)
            if key not in self._switched:
                self._switched[key] = self._either(number, self._rounded(number, before, how), value)
            value = self._switched[key]
        return value

    def _constant(self, use: Use) -> ir.Value:
        assert use.constant is not None
        ours, theirs = self._numbers[use.value], self._numbers[use.constant]
        quantised, kept = dequantizer(use.constant), stored(use.constant)
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise _other_constant(
                use,
                f"is {ours.dtype} {list(ours.shape)} in the reference and {theirs.dtype} "
                f"{list(theirs.shape)} in the quantised file",
            )
        if np.array_equal(ours, theirs):
            if quantised is not None:
                self._same[_name(kept)] = None
            return use.value
        if ours.dtype.kind != "f":
            raise _other_constant(use, "holds other whole numbers in the quantised file")
        scale = None if quantised is None else self._numbers[quantised.inputs[1]]  # type: ignore[index]
        told = Tensor(
            _name(kept),
            "constant" if quantised is None else "bias" if _is_bias(use) else "weight",
            _name(use.value),
            (),
            (kept.dtype or ir.DataType.FLOAT).name.lower(),
            None if scale is None else (float(scale.min()), float(scale.max())),
            (float(theirs.min()), float(theirs.max())),
        )
        number = self._number((kept,), told, use)
        key = (use.value, use.constant)
        if key not in self._switched:
            self._switched[key] = self._chosen(number, ours, theirs)
        return self._switched[key]

    def _number(self, key: tuple[Any, ...], told: Tensor, use: Use) -> int:
        """Of a tensor's switch, new or known; the reader is noted."""
        number = self._places.setdefault(key, len(self._tensors))
        if number == len(self._tensors):
            self._tensors.append(told)
        known = self._tensors[number]
        reader = "" if use.node is None else use.node.name or ""
        self._tensors[number] = replace(known, readers=tuple(dict.fromkeys((*known.readers, reader))))
        return number

    def _rounding(self, step: Step) -> _Rounding:
        there, back = (self._operands(node) for node in (step.quantize, step.dequantize))
        type = step.quantize.outputs[0].dtype or ir.DataType.UINT8
        blocks = step.quantize.attributes.get_int("block_size", 0)
        if type not in _DOMAINS or blocks:
            held = f"blocks of {blocks}" if blocks else type.name.lower()
            known = ", ".join(t.name.lower() for t in _DOMAINS)
            raise ModelError(
                f"The activation {_name(step.quantize.inputs[0])!r} is held in {held}, which has no "
                f"switch. Quantise activations to {known}, with one scale or one per channel."
            )
        return _Rounding(type, step.quantize.attributes.get_int("axis", 1), there, back)

    def _operands(self, node: ir.Node) -> tuple[Array, Array]:
        scale, zero, *_ = [*node.inputs[1:], None]
        assert scale is not None
        scales = self._numbers[scale].astype(np.float32)
        whole = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
        assert whole is not None
        none = np.zeros(scales.shape, (whole.dtype or ir.DataType.UINT8).numpy())
        zeros = none if zero is None else self._numbers[zero]
        # One scale may be written as a number or as a list of one, which older opsets took for the same.
        return (scales.reshape(()), zeros.reshape(())) if scales.size == 1 else (scales, zeros)

    def _rounded(self, number: int, value: ir.Value, how: _Rounding) -> ir.Value:
        """``DequantizeLinear(QuantizeLinear(value))``, which takes float32 at every opset."""
        name, domain = f"{_OURS}.{number}", _DOMAINS[how.type]
        operands = [
            [self._initializer(f"{name}.{side}.{what}", a) for what, a in zip("sz", pair, strict=True)]
            for side, pair in (("q", how.there), ("dq", how.back))
        ]
        axis = {} if how.there[0].ndim == 0 else {"axis": how.axis}
        real = value.dtype or ir.DataType.FLOAT
        if real != ir.DataType.FLOAT:
            value = self._node("Cast", [value], f"{name}.wide", ir.DataType.FLOAT, {"to": ir.DataType.FLOAT})
        whole = self._node("QuantizeLinear", [value, *operands[0]], f"{name}.q", how.type, axis, domain)
        back = self._node(
            "DequantizeLinear", [whole, *operands[1]], f"{name}.dq", ir.DataType.FLOAT, axis, domain
        )
        return back if real == ir.DataType.FLOAT else self._node("Cast", [back], name, real, {"to": real})

    def _either(self, number: int, on: ir.Value, off: ir.Value) -> ir.Value:
        """``on`` or ``off``, exactly: ONNX Runtime's Where takes longer than the convolutions around it."""
        real = off.dtype or ir.DataType.FLOAT
        name = f"{_OURS}.{number}.{len(self._switched)}"
        parts = [
            self._node("Mul", [value, self._scalar(number, which, real)], f"{name}.{which}", real)
            for value, which in ((on, "on"), (off, "off"))
        ]
        made = self._node("Add", parts, f"{name}.either", real)
        made.shape = off.shape
        return made

    def _chosen(self, number: int, off: Array, on: Array) -> ir.Value:
        """One of two constants."""
        name = f"{_OURS}.{number}.{len(self._switched)}"
        both = self._initializer(f"{name}.both", np.stack([off, on]))
        which = self._scalar(number, "which", ir.DataType.INT64)
        made = self._node("Gather", [both, which], f"{name}.chosen", ir.tensor(on).dtype)
        made.shape = ir.Shape(on.shape)
        return made

    def _scalar(self, number: int, what: str, type: ir.DataType) -> ir.Value:
        """A switch as a number: 1 if it is on (or, of ``off``, if it is off), else 0."""
        key = f"{_OURS}.{what}.{type.name.lower()}"
        if (key, -1) not in self._scalars:
            source = self._input
            if what == "off":
                source = self._node("Not", [source], f"{key}.not", ir.DataType.BOOL)
            self._scalars[key, -1] = self._node("Cast", [source], key, type, {"to": type})
        if (key, number) not in self._scalars:
            index = self._initializer(f"{key}.{number}.index", np.array(number, np.int64))
            made = self._node("Gather", [self._scalars[key, -1], index], f"{key}.{number}", type)
            made.shape = ir.Shape([])
            self._scalars[key, number] = made
        return self._scalars[key, number]

    def _node(
        self,
        op_type: str,
        operands: list[ir.Value],
        name: str,
        type: ir.DataType,
        attributes: dict[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        node = ir.node(op_type, operands, attributes or {}, domain=domain, name=name)
        made = node.outputs[0]
        made.name, made.type = name, ir.TensorType(type)
        made.shape = operands[0].shape
        self._graph.append(node)
        return made

    def _initializer(self, name: str, array: Array) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _is_bias(use: Use) -> bool:
    """Whether what is read is added, channel by channel."""
    node = use.node
    if node is None or node.op_type == "Add":
        return node is not None
    return input_name(node, use.index, 18) in ("B", "C") and use.index == 2


def _other_constant(use: Use, how: str) -> ModelError:
    reader = "the model's output" if use.node is None else f"{use.node.op_type} {use.node.name!r}"
    return ModelError(
        f"The two files are not of one network: the constant {_name(use.value)!r} that {reader} reads {how}. "
        "Give the very file that was quantised."
    )
