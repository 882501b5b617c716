"""Any ONNX file, read and brought to the normal form that differentiation needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
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
from .folding import settle_shapes
from .gradients.add import MINIMUM_OPSET
from .gradients.builder import dims_of
from .gradients.control_flow import subgraphs
from .gradients.expand import lift_constants
from .gradients.registry import constant, schema

OPSET = MINIMUM_OPSET  #: files below are converted up to it; the newest without gaps on CUDA
_LOWEST_IR_VERSION = 8  #: what opset 18 asks for
_BIG = 1024  #: bytes; larger weights never pass through protobuf
_LAYOUTS_OF_HARDWARE = frozenset(("com.microsoft.nchwc", "com.ms.internal.nhwc"))
_UNCONVERTED = "onnxcam.unconverted"  #: where operators wait that ONNX's converter does not know

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
    name = "The given model" if isinstance(source, bytes) else repr(os.fspath(source))
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
    except (ValueError, TypeError, KeyError, AttributeError, ir.serde.SerdeError) as e:
        why = _negative_place(source) or _cause(e)
        raise NotOnnx(f"{name} is not a model that can be read: {why}.") from e
    if model.graph.num_nodes() == 0 or not model.graph.outputs:
        raise NotOnnx(
            f"{name} holds no ONNX graph: it is empty, cut short or of another format. "
            "Export or download it again."
        )
    _check_external(model, name, isinstance(source, bytes))
    _shorten_domain(model)
    _check_defined(model.graph, name)
    _sort(model.graph, name)
    return model


def inline(model: ir.Model) -> None:
    """Replace the calls of local functions by their nodes, in place.

    Raises:
        ModelError: it cannot be done.
    """
    opset = model.graph.opset_imports.get("", OPSET)
    for function in model.functions.values():
        theirs = function.opset_imports.get("", opset)
        if theirs != opset and all(_means_the_same(n, theirs, opset) for n in function.graph.all_nodes()):
            function.opset_imports[""] = opset
    try:
        if all(f.opset_imports.get("", opset) == opset for f in model.functions.values()):
            passes.InlinePass()(model)
        else:  # ONNX's inliner brings their nodes to the model's opset
            model.graph = _through_proto(model, _inlined_at_one_opset).graph
            model.functions.clear()
    except Exception as e:
        raise ModelError(f"The model's local functions cannot be inlined: {_cause(e)}.") from e


def _means_the_same(node: ir.Node, opset: int, other: int) -> bool:
    """Whether a node of one opset is one of another as it stands: newer types alone are no change."""
    if node.domain:
        return True
    before, after = (schema(node.op_type, "", version) for version in (opset, other))
    if before is None or after is None or before.since_version == after.since_version:
        return before is not None and after is not None
    form = [
        ([f.name for f in found.inputs], {n: str(a.default_value) for n, a in found.attributes.items()})
        for found in (before, after)
    ]
    return form[0] == form[1] and node.op_type not in _OTHER_MEANING


_OTHER_MEANING = frozenset("Softmax LogSoftmax Hardmax Resize".split())  #: in one form, at two opsets


def _inlined_at_one_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    typed = onnx.shape_inference.infer_shapes(proto)  # the inliner converts a call by its inputs' types
    return onnx.inliner.inline_local_functions(typed, convert_version=True)


def normalize(
    model: ir.Model,
    input_shapes: Mapping[str, tuple[int | str, ...]] | None = None,
    lower: bool = False,
) -> ir.Model:
    """The normal form: no functions, constants and sizes as initializers, opset 18 or newer, shapes inferred.

    Value names are kept, and node metadata is carried over; nothing that the graph computes changes.
    Initializers that are listed as graph inputs (IR version 3) become plain ones.

    Args:
        model: changed in place; use the returned model, which is another one after an opset conversion.
        input_shapes: sizes to fix on graph inputs before shapes are inferred.
        lower: bring a model above opset 18 down to it; operators that came later (Gelu,
            GroupNormalization, ...) are replaced by ONNX's own definitions of them.

    Raises:
        ModelError: functions that cannot be inlined, an opset that cannot be converted, or
            ``input_shapes`` that contradict the file, or operators that only the computer that saved the file
            is sure to run.
    """
    inline(model)
    _refuse_bound_to_hardware(model.graph)
    passes.RemoveInitializersFromInputsPass()(model)
    lift_constants(model.graph)
    for name, dims in (input_shapes or {}).items():
        _fix_size(model.graph, name, dims)
    # Before IR version 4 the converter looks for initializers among the inputs.
    model.ir_version = max(model.ir_version, _LOWEST_IR_VERSION)
    opset = model.graph.opset_imports.get("", OPSET)
    if opset < OPSET or (lower and opset > OPSET):
        model = _converted(model, opset)
    model.graph.opset_imports.setdefault("", OPSET)
    _name_nodes(model.graph)
    settle_shapes(model)
    return model


def input_named(graph: ir.Graph, name: str) -> ir.Value:
    """A graph input by name.

    Raises:
        ModelError: there is none; those that exist are listed.
    """
    inputs = {v.name: v for v in graph.inputs if not v.is_initializer()}
    if name not in inputs:
        known = ", ".join(repr(n) for n in inputs)
        raise ModelError(f"The model has no input {name!r}; its inputs are {known}.")
    return inputs[name]


def _fix_size(graph: ir.Graph, name: str, dims: tuple[int | str, ...]) -> None:
    value = input_named(graph, name)
    declared = dims_of(value)
    fits = declared is None or (
        len(declared) == len(dims)
        and all(not isinstance(a, int) or a == b for a, b in zip(declared, dims, strict=True))
    )
    if not fits or any(isinstance(d, int) and d < 1 for d in dims):
        raise ModelError(
            f"The input {name!r} cannot have the shape {list(dims)}: the file declares "
            f"{None if declared is None else list(declared)}. `input_shapes` fixes what the file leaves open."
        )
    value.shape = ir.Shape(dims)


def _converted(model: ir.Model, opset: int) -> ir.Model:
    """The model at :data:`OPSET`, through ONNX's own converter, which sees no large weight."""

    def convert(proto: onnx.ModelProto) -> onnx.ModelProto:
        if newer := _newer_operators(model.graph, opset):
            proto = onnx.shape_inference.infer_shapes(proto)
            proto = onnx.inliner.inline_selected_functions(
                proto, [("", op_type) for op_type in newer], inline_schema_functions=True
            )
        return onnx.version_converter.convert_version(proto, OPSET)

    if opset < 9 and any(n.op_type == "Scan" and not n.domain for n in model.graph.all_nodes()):
        raise ModelError(
            "Scan of opset 8 goes through the images of a batch one by one, which ONNX's converter loses. "
            "Export the model again at opset 9 or newer."
        )
    # ONNX Runtime writes operators into ONNX's domain that are not in it, or not at this opset.
    for node in model.graph.all_nodes():
        if not node.domain and schema(node.op_type, "", opset) is None:
            node.domain = _UNCONVERTED
            model.graph.opset_imports[_UNCONVERTED] = 1
    try:
        converted = _through_proto(model, convert)
    except Exception as e:
        raise ModelError(
            f"The model's opset {opset} cannot be converted to {OPSET}: {_cause(e)}. "
            f"Export it again at opset {OPSET}, or differentiate a simpler part."
        ) from e
    for node in converted.graph.all_nodes():
        if node.domain == _UNCONVERTED:
            node.domain = ""
    converted.graph.opset_imports.pop(_UNCONVERTED, None)
    lift_constants(converted.graph)
    if opset < 11:
        _keep_resizing(converted.graph)
    return converted


def _through_proto(model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> ir.Model:
    """What a tool of ONNX's makes of a model; it sees no large weight, and names and metadata survive."""
    metadata = {v.name: (dict(n.metadata_props), n.name) for n in model.graph for v in n.outputs if v.name}
    places = {place: v.name for place, v in _places(model.graph).items()}
    with _without_big_weights(model) as big:
        proto = change(ir.to_proto(model))
    changed = ir.from_proto(proto)
    inputs = {v.name: v for v in changed.graph.inputs}
    for name, tensor in big.items():
        inputs[name].const_value = tensor
        changed.graph.register_initializer(inputs[name])
    passes.RemoveInitializersFromInputsPass()(changed)
    kept = {v.name for node in changed.graph for v in node.outputs}
    for place, value in _places(changed.graph).items():
        before = places.get(place)
        if before and before not in kept:
            value.name = before
    for node in changed.graph:
        for v in node.outputs:
            if v.name in metadata:
                props, name_of_node = metadata[v.name]
                node.metadata_props.update(props)
                node.name = node.name or name_of_node
    changed.metadata_props.update(model.metadata_props)
    return changed


def _places(graph: ir.Graph) -> dict[tuple[str | None, str | None, int], ir.Value]:
    """Values by the first input of the node that makes them, and by who reads them as which input.

    Where the converter has put another node in one's place (Resize for Upsample), its result has a new name.
    """
    found = {}
    for node in graph:
        if node.inputs and node.inputs[0] is not None:
            for reader, index in node.outputs[0].uses():
                found[node.inputs[0].name, reader.outputs[0].name, index] = node.outputs[0]
    return found


def _keep_resizing(graph: ir.Graph) -> None:
    """What Upsample and the first Resize mean, which the converter takes for the newer Resize's default.

    Cells are asymmetric; the nearest is the one below when an axis grows, the one above when it shrinks.
    """
    for node in graph.all_nodes():
        if node.op_type != "Resize" or node.domain or "coordinate_transformation_mode" in node.attributes:
            continue
        factors = None if len(node.inputs) < 3 or node.inputs[2] is None else constant(node.inputs[2])
        shrinks = factors is not None and (factors < 1).any()
        node.attributes["coordinate_transformation_mode"] = ir.AttrString(
            "coordinate_transformation_mode", "asymmetric"
        )
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil" if shrinks else "floor")


def _newer_operators(graph: ir.Graph, opset: int) -> list[str]:
    """Operators that :data:`OPSET` lacks or that its converter cannot bring down."""
    used = {n.op_type for n in graph.all_nodes() if not n.domain} if opset > OPSET else set()
    return sorted(t for t in used if schema(t, "", OPSET) is None or t == "GroupNormalization")


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


def _refuse_bound_to_hardware(graph: ir.Graph) -> None:
    for node in graph.all_nodes():
        if node.domain in _LAYOUTS_OF_HARDWARE:
            raise ModelError(
                f"ONNX Runtime saved this file at optimisation level ALL: {node.domain}.{node.op_type} "
                f"{node.name or node.outputs[0].name!r} keeps its data in the layout of the CPU that saved "
                "it. Save it at level EXTENDED (`GraphOptimizationLevel.ORT_ENABLE_EXTENDED`), or give the "
                "original file."
            )


def _name_nodes(graph: ir.Graph) -> None:
    """Nodes without a name get their first output's: messages and placements need one."""
    taken = {node.name for node in graph if node.name}
    for node in graph:
        if not node.name and node.outputs and node.outputs[0].name not in taken:
            node.name = node.outputs[0].name


def _check_defined(graph: ir.Graph, name: str) -> None:
    """Every value that a node reads must come from somewhere."""
    defined = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in defined:
                raise NotOnnx(
                    f"{name} reads {value.name!r}, which nothing in it defines as a tensor "
                    "(sparse initializers are not supported). Export it again with dense weights."
                )


def _shorten_domain(model: ir.Model) -> None:
    """ONNX's own domain has two spellings; the empty one is that of its tools."""
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        for node in graph.all_nodes():
            if node.domain == "ai.onnx":
                node.domain = ""
    for imports in (model.graph.opset_imports, *(f.opset_imports for f in model.functions.values())):
        if "ai.onnx" in imports:
            imports[""] = imports.pop("ai.onnx")


def _sort(graph: ir.Graph, name: str) -> None:
    """Bring nodes behind those whose results they read, as ONNX asks for."""
    try:
        graph.sort()
    except ValueError as e:
        around = ", ".join(repr(v) for v in _cycle(graph))
        raise NotOnnx(
            f"{name} has a cycle: {around} and back to the first are computed from each other. "
            "The file is damaged; export it again."
        ) from e


def _cycle(graph: ir.Graph) -> list[str]:
    """The names of some values that depend on each other, in order."""
    # Of what only nodes of the cycle, and those behind it, are left: from any of them, backwards, in the end
    # round and round.
    left = set(graph)
    ready = [n for n in graph if not any(v is not None and v.producer() in left for v in n.inputs)]
    while ready:
        node = ready.pop()
        left.discard(node)
        for user in {u for v in node.outputs for u in v.consumers()}:
            if user in left and not any(v is not None and v.producer() in left for v in user.inputs):
                ready.append(user)
    node = next(n for n in graph if n in left)
    seen: dict[ir.Node, int] = {}
    path: list[str] = []
    while node not in seen:
        seen[node] = len(path)
        value = next(v for v in node.inputs if v is not None and v.producer() in left)
        path.append(value.name or "")
        found = value.producer()
        assert found is not None
        node = found
    return path[seen[node] :][::-1]


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that a model holds: initializers and attributes, in subgraphs and functions too."""
    graphs: list[ir.Graph] = [model.graph, *(f.graph for f in model.functions.values())]
    while graphs:
        graph = graphs.pop()
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            graphs.extend(subgraphs(node))
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _check_external(model: ir.Model, name: str, is_bytes: bool) -> None:
    """Before anything is read of it: weights outside the file must lie whole beside it."""
    for tensor in _tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = os.fspath(tensor.location)
        if is_bytes:
            raise NotOnnx(
                f"{name} keeps its weights in the file {location!r}, which its bytes do not lead to. "
                "Give the path of the model instead."
            )
        folder = os.path.realpath(tensor.base_dir or ".")
        inside = os.path.realpath(os.path.join(folder, location))
        if not inside.startswith(os.path.join(folder, "")):
            raise NotOnnx(
                f"{name} names {location!r} for its weights, which lies outside its own folder and is not "
                "read. Put the data file beside the model, and its plain name into it."
            )
        if not os.path.exists(inside):
            raise NotOnnx(
                f"{name} keeps its weights in {location!r}, which is missing. Put that file beside the model."
            )
        if os.path.getsize(inside) < (tensor.offset or 0) + tensor.nbytes:
            raise NotOnnx(
                f"{name} keeps its weights in {location!r}, which is cut short. Export or download it again."
            )


def _negative_place(source: ModelSource) -> str | None:
    """What is wrong with where a weight is said to lie, which the reader of files does not say."""
    if not isinstance(source, str | os.PathLike):
        return None
    for tensor in onnx.load(source, load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            if entry.key in ("offset", "length") and entry.value.startswith("-"):
                return f"its weight {tensor.name!r} has the {entry.key} {entry.value} in its data file"
    return None


def _cause(e: BaseException) -> str:
    """The innermost message of a chain of errors, on one line."""
    while e.__cause__ is not None:
        e = e.__cause__
    return " ".join(str(e).split()).rstrip(".") or type(e).__name__
