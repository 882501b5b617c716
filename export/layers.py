"""Which tensors of a graph can be explained, what they are called, and which is the best."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..contract import KEY, Layout
from ..errors import UnknownLayer, nearest
from ..grids import grid_of
from .automatic import best_layer
from .from_onnx import ModelSource, inline, load, normalize
from .gradients.builder import Dims, dims_of
from .gradients.control_flow import subgraphs
from .gradients.engine import is_differentiable
from .gradients.quantized import inside_kernel, is_real, quantization, readable
from .layouts import Layouts, layouts
from .paths import fed, on_path, op_type
from .scores import FoundScore, ScoreSpec, find_score

_SCOPES = "pkg.torch.onnx.name_scopes"
AUTO = "auto"
_FEW = 5


@dataclass(frozen=True)
class Candidate:
    """A tensor that can be explained.

    Attributes:
        name: what to call it: its module path where the file records one, else its node's name.
        tensor: the value's name in the graph.
        op_type: the operator that makes it.
        shape: a size, a symbol or None per axis.
        layout: where its channels and its grid are.
        why: for the first of a list, why it is the first; else what it is.
    """

    name: str
    tensor: str
    op_type: str
    shape: Dims
    layout: Layout
    why: str

    @property
    def grid(self) -> tuple[int | str | None, ...]:
        """(h, w): the resolution of its map; (l,) or (d, h, w) where it has one axis or three."""
        return grid_of(self.layout, self.shape)


def list_layers(
    source: ModelSource,
    score: str | Mapping[str, Any] | ScoreSpec | None = None,
    *,
    probability: bool = False,
) -> list[Candidate]:
    """The tensors of a model that can be explained, best first.

    The first is what ``layers="auto"`` takes; the others follow from the score back to the input.

    Args:
        source: a path, bytes, or a model; of an explainable one the layers of its source.
        score: what to explain; see :func:`onnxcam.export.rewrite_onnx`.
        probability: the same.

    Raises:
        NotOnnx, ScoreError, ModelError: see :func:`onnxcam.export.rewrite_onnx`.
    """
    from .explainable import strip  # which reads .fuse, and that this module

    model = load(source)
    if KEY in model.metadata_props:
        model = strip(model)
    inline(model)
    names = Names(model.graph)
    model = normalize(model)
    found = find_score(model.graph, score, probability)
    return candidates(model.graph, found, names, layouts(model.graph))


def listed(layers: Any, kinds: tuple[type, ...] = (str,), called: str = "a name") -> list[Any] | None:
    """The layers that ``layers`` asks for; None for the automatic one.

    Args:
        layers: ``auto`` or None; or one layer or several.
        kinds: of what type a layer is.
        called: these types in words.

    Raises:
        UnknownLayer: no layer, or what is of another type.
    """
    if layers is None or (isinstance(layers, str) and layers == AUTO):
        return None
    one = isinstance(layers, (*kinds, bytes, Mapping)) or not isinstance(layers, Iterable)
    found = [layers] if one else list(layers)
    instead = f"pass layers='auto', {called} or a list of them. `onnxcam layers MODEL` lists those of a file."
    if not found:
        raise UnknownLayer(f"No layer was named: {instead}")
    for layer in found:
        if not isinstance(layer, kinds):
            raise UnknownLayer(f"A layer is {called}, not {layer!r}: {instead}")
    return found


def candidates(graph: ir.Graph, found: FoundScore, names: Names, known: Layouts) -> list[Candidate]:
    """See :func:`list_layers`; for a graph in normal form.

    Args:
        graph: in normal form.
        found: the score.
        names: of the graph as it was before normalization.
        known: the layouts of the graph's values.
    """
    path = on_path(graph, found.values)
    # What a conversion of the opset made has no name by which it could be asked for.
    spatial = [v for v in path if v in names and v in known and _is_spatial(v, known[v])]
    spatial = [v for v in spatial if is_real(v) or quantization(v) is not None]
    if not spatial:
        return []
    best, why = best_layer(graph, found, spatial, known)
    read = readable(graph)
    behind = {there: v for v, there in reversed(read.items()) if is_real(v)}
    best = read.get(best, best)
    rest = [v for v in reversed(spatial) if v not in read and not inside_kernel(v, read)]
    rest = [v for v in rest if known[v].kind != "factored" or op_type(v) not in _MOVES]
    ordered = [best] + [v for v in rest if v is not best]
    return [
        Candidate(
            names.of(behind.get(v, v)),
            v.name or "",
            op_type(v),
            dims_of(v) or (),
            known[v],
            why if v is best else _describe(v),
        )
        for v in ordered
    ]


def differentiable_layers(graph: ir.Graph, found: FoundScore, names: Names, known: Layouts) -> list[str]:
    """A few layers that can be explained, the best and those nearest to the score; each was tried."""
    works: list[str] = []
    fails = 0
    values = {v.name: v for node in graph for v in node.outputs} | {v.name: v for v in graph.inputs}
    for candidate in candidates(graph, found, names, known):
        if is_differentiable(graph, found.values, values[candidate.tensor]):
            works.append(candidate.name)
        else:
            fails += 1
        if len(works) == _FEW or fails > _FEW:
            break
    return works


class Names:
    """What the values of a graph are called: module paths, node names, tensor names.

    Made of a graph without functions and before normalization, which strips node metadata; value names
    survive it, unless an operator becomes another one with the opset.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._values = {v.name for n in graph for v in n.outputs if v.name}
        self._values |= {v.name for v in graph.inputs if v.name}
        self._nodes = {n.name: n.outputs[0].name for n in graph if n.name and n.outputs and n.outputs[0].name}
        self._fed = {v.name for v in fed(graph)}
        self._modules = _module_outputs(graph)
        self._inside: dict[str, ir.Node] = {}
        for node in graph:
            for inner in (n for inside in subgraphs(node) for n in inside.all_nodes()):
                self._inside |= {
                    name: node for name in (inner.name, *(v.name for v in inner.outputs)) if name
                }
        self._display: dict[str, str] = {}
        for node in graph:
            if node.name and node.outputs and node.outputs[0].name:
                self._display[node.outputs[0].name] = node.name
        # The outermost module that ends in a value is its name: layer4, not layer4.2.relu.
        for path, tensor in sorted(self._modules.items(), key=lambda item: -len(item[0])):
            self._display[tensor] = path

    def __contains__(self, value: ir.Value) -> bool:
        """Whether a value has been there before."""
        return value.name in self._values

    def is_fed(self, tensor: str) -> bool:
        """Whether a tensor depends on the inputs."""
        return tensor in self._fed

    def of(self, value: ir.Value) -> str:
        """The name to show for a value."""
        name = value.name or ""
        return self._display.get(name, name)

    def resolve(self, name: str) -> str:
        """The tensor that a user's name stands for.

        Raises:
            UnknownLayer: with the nearest names.
        """
        if name in self._modules:
            return self._modules[name]
        if name in self._values:
            return name
        if name in self._nodes:
            return self._nodes[name] or ""
        # What ONNX Runtime's quantiser calls the tensors and nodes that it puts in the place of others.
        if f"{name}_quantized" in self._values:
            return f"{name}_quantized"
        if f"{name}_quant" in self._nodes:
            return self._nodes[f"{name}_quant"] or ""
        if name in self._inside:
            node = self._inside[name]
            label = node.name or node.outputs[0].name
            raise UnknownLayer(
                f"The layer {name!r} lies inside {node.op_type} {label!r}, and nothing outside sees what is "
                "in there. Name a layer before or behind it: `onnxcam layers MODEL` lists them."
            )
        known = [*self._modules, *(n for n in self._nodes if n), *self._values]
        raise UnknownLayer(
            f"The model has no layer {name!r}.{nearest(name, list(dict.fromkeys(known)))} "
            "`onnxcam layers MODEL` lists them all."
        )


def _module_outputs(graph: ir.Graph) -> dict[str, str]:
    """For each module path the tensor that its module returns: its last value that is used outside."""
    inside: dict[str, list[ir.Node]] = {}
    scopes = {node: _scopes(node) for node in graph}
    for node, paths in scopes.items():
        for path in paths:
            inside.setdefault(path, []).append(node)
    outputs: dict[str, str] = {}
    returned = set(fed(graph))  # quantised weights are made by nodes, too, of constants
    for path, nodes in inside.items():
        members = set(nodes)
        for node in reversed(nodes):
            value = node.outputs[0] if node.outputs else None
            leaves = value is not None and (
                value.is_graph_output() or any(user not in members for user in value.consumers())
            )
            if (
                leaves
                and value is not None
                and value in returned
                and value.name
                and (value.dtype is None or value.dtype.is_floating_point())
            ):
                outputs[path] = value.name
                break
    return outputs


def _scopes(node: ir.Node) -> list[str]:
    """The module paths that a node lies in, outermost first."""
    recorded = node.metadata_props.get(_SCOPES)
    if recorded:
        try:
            entries = ast.literal_eval(recorded)
        except (ValueError, SyntaxError):
            return []
        return [e for e in entries[:-1] if e]
    name = node.name or ""
    parts = [p for p in name.split("/") if p][:-1]
    if name.startswith("/"):  # torch's older exporter: /layer4/layer4.1/relu_1/Relu
        paths: list[str] = []
        for part in parts:
            last = paths[-1] if paths else ""
            paths.append(part if not last or part.startswith(last + ".") else f"{last}.{part}")
        return paths
    # TensorFlow: model/conv5_block3_out/Relu; each part is a name its user knows.
    return list(dict.fromkeys([*parts, *("/".join(parts[:k]) for k in range(2, len(parts) + 1))]))


#: Whose results hold what their inputs do, in another order: windows and heads are listed once.
_MOVES = frozenset("Reshape Transpose Squeeze Unsqueeze Flatten Slice Split Gather Identity Cast".split())


def _is_spatial(value: ir.Value, layout: Layout) -> bool:
    return any(size != 1 for size in grid_of(layout, dims_of(value) or ()))


def _describe(value: ir.Value) -> str:
    return f"the output of {op_type(value)}"
