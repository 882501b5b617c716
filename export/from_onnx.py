"""Any ONNX file, read and brought to the normal form that differentiation needs."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import google.protobuf.message
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as passes

from ..errors import ModelError, NotOnnx
from .gradients.add import MINIMUM_OPSET
from .gradients.expand import lift_constants
from .gradients.registry import schema

OPSET = MINIMUM_OPSET  #: files below are converted up to it; the newest without gaps on CUDA
_LOWEST_IR_VERSION = 8  #: what opset 18 asks for
_BIG = 1024  #: bytes; larger weights never pass through protobuf

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | ir.Model | onnx.ModelProto"


def load(source: ModelSource) -> ir.Model:
    """Read a model; its weights stay on disk until they are needed.

    Args:
        source: a path, the file's bytes, or a model in memory (changed in place by what follows).

    Raises:
        NotOnnx: missing, empty, truncated, not ONNX, or without its external data.
    """
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, onnx.ModelProto):
        return ir.from_proto(source)
    name = "the given bytes" if isinstance(source, bytes) else repr(os.fspath(source))
    try:
        if isinstance(source, bytes):
            model = ir.from_proto(onnx.load_from_string(source))
        else:
            path = Path(source)
            if path.is_dir():
                raise NotOnnx(f"{name} is a folder, not an ONNX file. Give the .onnx file inside it.")
            model = ir.load(path)
    except FileNotFoundError as e:
        raise NotOnnx(f"There is no file {name}. Check the path.") from e
    except (google.protobuf.message.DecodeError, UnicodeDecodeError) as e:
        raise NotOnnx(
            f"{name} is not an ONNX model, or it is cut short ({e}). Export or download it again."
        ) from e
    except OSError as e:
        raise NotOnnx(f"{name} cannot be read: {e}.") from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise NotOnnx(f"{name} is not a valid ONNX model: {e}. Check it with `onnx.checker`.") from e
    if model.graph.num_nodes() == 0 or not model.graph.outputs:
        raise NotOnnx(
            f"{name} holds no ONNX graph: it is empty, cut short or of another format. "
            "Export or download it again."
        )
    _check_external(model, name)
    return model


def normalize(
    model: ir.Model,
    input_shapes: Mapping[str, tuple[int | str, ...]] | None = None,
    lower: bool = False,
) -> ir.Model:
    """The normal form: no functions, constants as initializers, opset 18 or newer, shapes inferred.

    Value names are kept, and node metadata is carried over; nothing that the graph computes changes.
    Initializers that are listed as graph inputs (IR version 3) become plain ones.

    Args:
        model: changed in place; use the returned model, which is another one after an opset conversion.
        input_shapes: sizes to fix on graph inputs before shapes are inferred.
        lower: bring a model above opset 18 down to it; operators that came later (Gelu,
            GroupNormalization, ...) are replaced by ONNX's own definitions of them.

    Raises:
        ModelError: functions that cannot be inlined, or an opset that cannot be converted.
    """
    try:
        passes.InlinePass()(model)
    except Exception as e:
        raise ModelError(f"The model's local functions cannot be inlined: {_cause(e)}.") from e
    passes.RemoveInitializersFromInputsPass()(model)
    lift_constants(model.graph)
    for name, dims in (input_shapes or {}).items():
        value = next((v for v in model.graph.inputs if v.name == name), None)
        if value is None:
            known = ", ".join(repr(v.name) for v in model.graph.inputs)
            raise ModelError(f"The model has no input {name!r}; its inputs are {known}.")
        value.shape = ir.Shape(dims)
    # Before IR version 4 the converter looks for initializers among the inputs.
    model.ir_version = max(model.ir_version, _LOWEST_IR_VERSION)
    opset = model.graph.opset_imports.get("", OPSET)
    if opset < OPSET or (lower and opset > OPSET):
        model = _converted(model, opset)
    model.graph.opset_imports.setdefault("", OPSET)
    _name_nodes(model.graph)
    _infer_shapes(model)
    return model


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _converted(model: ir.Model, opset: int) -> ir.Model:
    """The model at :data:`OPSET`, through ONNX's own converter, which sees no large weight."""

    def convert(proto: onnx.ModelProto) -> onnx.ModelProto:
        if newer := _newer_operators(model.graph, opset):
            proto = onnx.shape_inference.infer_shapes(proto)
            proto = onnx.inliner.inline_selected_functions(
                proto, [("", op_type) for op_type in newer], inline_schema_functions=True
            )
        return onnx.version_converter.convert_version(proto, OPSET)

    metadata = {v.name: (dict(n.metadata_props), n.name) for n in model.graph for v in n.outputs if v.name}
    with _without_big_weights(model) as big:
        try:
            proto = convert(ir.to_proto(model))
        except Exception as e:
            raise ModelError(
                f"The model's opset {opset} cannot be converted to {OPSET}: {_cause(e)}. "
                f"Export it again at opset {OPSET}, or differentiate a simpler part."
            ) from e
    converted = ir.from_proto(proto)
    for name, tensor in big.items():
        value = next(v for v in converted.graph.inputs if v.name == name)
        value.const_value = tensor
        converted.graph.register_initializer(value)
    passes.RemoveInitializersFromInputsPass()(converted)
    for node in converted.graph:
        for v in node.outputs:
            if v.name in metadata:
                props, name_of_node = metadata[v.name]
                node.metadata_props.update(props)
                node.name = node.name or name_of_node
    converted.metadata_props.update(model.metadata_props)
    lift_constants(converted.graph)
    return converted


def _newer_operators(graph: ir.Graph, opset: int) -> list[str]:
    """Operators that :data:`OPSET` lacks or that its converter cannot bring down."""
    used = {n.op_type for n in graph.all_nodes() if not n.domain} if opset > OPSET else set()
    return sorted(t for t in used if schema(t, "", OPSET) is None or t == "GroupNormalization")


def _infer_shapes(model: ir.Model) -> None:
    """Shapes from ONNX's own inference; what the file says already stays."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


@contextlib.contextmanager
def _without_big_weights(model: ir.Model) -> Iterator[dict[str, ir.TensorProtocol]]:
    """Weights above a kilobyte as typed graph inputs while inside."""
    graph = model.graph
    big: dict[str, ir.TensorProtocol] = {}
    inputs = list(graph.inputs)
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _BIG:
            big[name] = tensor
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tuple(tensor.shape.numpy()))
            value.const_value = None
            del graph.initializers[name]
            graph.inputs.append(value)
    try:
        yield big
    finally:
        for value in list(graph.inputs)[len(inputs) :]:
            assert value.name is not None
            value.const_value = big[value.name]
            graph.register_initializer(value)
        graph.inputs[:] = inputs


def _name_nodes(graph: ir.Graph) -> None:
    """Nodes without a name get their first output's: messages and placements need one."""
    taken = {node.name for node in graph if node.name}
    for node in graph:
        if not node.name and node.outputs and node.outputs[0].name not in taken:
            node.name = node.outputs[0].name


def _check_external(model: ir.Model, name: str) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not os.path.exists(tensor.path):
            raise NotOnnx(
                f"{name} keeps its weights in {os.fspath(tensor.location)!r}, which is missing. "
                "Put that file beside the model."
            )


def _cause(e: BaseException) -> str:
    """The innermost message of a chain of errors, on one line."""
    while e.__cause__ is not None:
        e = e.__cause__
    return " ".join(str(e).split()).rstrip(".") or type(e).__name__
