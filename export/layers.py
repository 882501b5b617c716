"""Which tensors of a graph can be explained, what they are called, and which is the best."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..contract import Layout
from ..errors import UnknownLayer, nearest
from .from_onnx import ModelSource, load, normalize
from .gradients.builder import Dims, dims_of
from .gradients.engine import captured_by
from .gradients.registry import constant, input_name, stop_reason
from .layouts import grid_of, layouts
from .score import SAME_NUMBERS, find_score

_SCOPES = "pkg.torch.onnx.name_scopes"
_QUANTIZED = (ir.DataType.INT8, ir.DataType.UINT8)  # followed, so that the error names their operators
AUTO = "auto"


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
    def grid(self) -> tuple[int | str | None, int | str | None]:
        """(h, w): the resolution of its map."""
        return grid_of(self.layout, self.shape)


def list_layers(source: ModelSource, score: str | None = None) -> list[Candidate]:
    """The tensors of a model that can be explained, best first.

    The first is what ``layers="auto"`` takes; the others follow from the score back to the input.

    Args:
        source: a path, bytes, or a model.
        score: the output to explain; may be left out if there is only one.

    Raises:
        NotOnnx, ScoreError, ModelError: see :func:`onnxcam.export.rewrite_onnx`.
    """
    model = load(source)
    names = Names(model.graph)
    model = normalize(model)
    found = find_score(model.graph, score)
    return candidates(model.graph, found.value, names)


def candidates(graph: ir.Graph, score: ir.Value, names: Names) -> list[Candidate]:
    """See :func:`list_layers`; for a graph in normal form.

    Args:
        graph: in normal form.
        score: the value that is differentiated.
        names: of the graph as it was before normalization.
    """
    known = layouts(graph)
    path = _on_path(graph, score)
    spatial = [v for v in path if v in known and _is_spatial(v, known[v]) and _own_batch(v, score)]
    spatial = [v for v in spatial if v.dtype is None or v.dtype.is_floating_point()]
    if not spatial:
        return []
    best, why = _best(graph, score, spatial, known)
    ordered = [best] + [v for v in reversed(spatial) if v is not best]
    return [
        Candidate(
            names.of(v),
            v.name or "",
            _op_type(v),
            dims_of(v) or (),
            known[v],
            why if v is best else _describe(v),
        )
        for v in ordered
    ]


class Names:
    """What the values of a graph are called: module paths, node names, tensor names.

    Made before normalization, which strips node metadata; value names survive it.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._values = {v.name for n in graph for v in n.outputs if v.name}
        self._values |= {v.name for v in graph.inputs if v.name}
        self._nodes = {n.name: n.outputs[0].name for n in graph if n.name and n.outputs and n.outputs[0].name}
        self._modules = _module_outputs(graph)
        self._display: dict[str, str] = {}
        for node in graph:
            if node.name and node.outputs and node.outputs[0].name:
                self._display[node.outputs[0].name] = node.name
        # The outermost module that ends in a value is its name: layer4, not layer4.2.relu.
        for path, tensor in sorted(self._modules.items(), key=lambda item: -len(item[0])):
            self._display[tensor] = path

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


def _best(
    graph: ir.Graph, score: ir.Value, spatial: Sequence[ir.Value], known: dict[ir.Value, Layout]
) -> tuple[ir.Value, str]:
    """The layer to explain by default, and why."""
    inside = set(spatial)
    last = _last_before_pooling(graph, score, inside)
    if known[last].kind == "tokens":
        return _last_first_norm(graph, last, spatial)
    value, skipped = last, []
    while (source := _adapted(value, known)) in inside and source is not None:
        skipped.append(_op_type(value))
        value = source
    behind = f" ({', '.join(skipped)} skipped: no new features)" if skipped else ""
    return value, f"the last spatial tensor before {_describe_end(last)}{behind}"


def _last_before_pooling(graph: ir.Graph, score: ir.Value, spatial: set[ir.Value]) -> ir.Value:
    """The spatial tensor from which the score's head starts; the latest, if there are several."""
    front = set()
    seen = {score}
    stack = [score]
    while stack:
        value = stack.pop()
        if value in spatial:
            front.add(value)
            continue
        node = value.producer()
        new = [v for v in _sources(node, graph) if v not in seen] if node is not None else []
        seen.update(new)
        stack += new
    order = {v: k for k, node in enumerate(graph) for v in node.outputs}
    return max(front or spatial, key=lambda v: order.get(v, -1))


def _last_first_norm(graph: ir.Graph, last: ir.Value, spatial: Sequence[ir.Value]) -> tuple[ir.Value, str]:
    """For token models: the first norm of the last block.

    What follows it in a class-token model changes that one token alone, so that later tensors have no
    gradient anywhere else.
    """
    tokens = [v for v in spatial if len(dims_of(v) or ()) == 3]
    norms = [
        v
        for v in tokens
        if _op_type(v) in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
    ]
    attention = [
        n
        for n in graph
        if n.op_type in ("Softmax", "Attention", "MultiHeadAttention") and _leads_to(n.outputs[0], last)
    ]
    if attention:
        before = _ancestors(attention[-1])
        inside = [v for v in norms if v in before]
        if inside:
            return inside[-1], "the output of the last attention block's first norm"
        inside = [v for v in tokens if v in before and _op_type(v) in ("Add", "Concat")]
        if inside:
            return inside[-1], "the tokens that enter the last attention block"
    inside = [v for v in norms if v is not last]
    if len(inside) >= 2:
        return inside[-2], "the output of the last block's first norm"
    return last, "the last tokens before the head"


def _adapted(value: ir.Value, known: dict[ir.Value, Layout]) -> ir.Value | None:
    """What a value's node only moves, copies or pools to another size; None if it makes features."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.inputs else None
    if node is None or source is None or source not in known:
        return None
    if node.op_type in SAME_NUMBERS or node.op_type in ("Transpose", "AveragePool"):
        return source
    same = grid_of(known[source], dims_of(source) or ()) == grid_of(known[value], dims_of(value) or ())
    return source if node.op_type == "MaxPool" and same else None


def _on_path(graph: ir.Graph, score: ir.Value) -> list[ir.Value]:
    """The values that the score depends on through floating-point inputs, in topological order."""
    wanted = {score}
    stack = [score]
    while stack:
        node = stack.pop().producer()
        for source in _sources(node, graph) if node is not None else ():
            if source not in wanted:
                wanted.add(source)
                stack.append(source)
    # A value that only constants feed is not the image's.
    fed: set[ir.Value] = set(graph.inputs)
    path = []
    for node in graph:
        if any(v in fed for v in (*node.inputs, *captured_by(node))):
            fed.update(node.outputs)
        path += [v for v in node.outputs if v in wanted and v in fed]
    return path


def _sources(node: ir.Node, graph: ir.Graph) -> Iterable[ir.Value]:
    opset = graph.opset_imports.get("", 18)
    return [
        v
        for k, v in enumerate(node.inputs)
        if v is not None
        and (v.dtype is None or v.dtype.is_floating_point() or v.dtype in _QUANTIZED)
        and not v.is_initializer()
        and stop_reason(node, input_name(node, k, opset)) is None
    ]


def _ancestors(node: ir.Node) -> set[ir.Value]:
    found: set[ir.Value] = set()
    stack = list(node.inputs)
    while stack:
        value = stack.pop()
        if value is not None and value not in found:
            found.add(value)
            producer = value.producer()
            stack += list(producer.inputs) if producer is not None else []
    return found


def _leads_to(value: ir.Value, target: ir.Value) -> bool:
    producer = target.producer()
    return value is target or (producer is not None and value in _ancestors(producer))


def _is_spatial(value: ir.Value, layout: Layout) -> bool:
    h, w = grid_of(layout, dims_of(value) or ())
    if layout.kind == "tokens":
        return layout.grid is not None and layout.grid != (1, 1)
    return not (h == 1 and w == 1)


def _own_batch(value: ir.Value, score: ir.Value) -> bool:
    """Whether a tensor's first axis is the image's, not windows or heads."""
    dims, score_dims = dims_of(value), dims_of(score)
    if not dims or not score_dims:
        return True
    a, b = dims[0], score_dims[0]
    return a == b or a is None or b is None or not (isinstance(a, int) and isinstance(b, int))


def _op_type(value: ir.Value) -> str:
    node = value.producer()
    return node.op_type if node is not None else "input"


def _describe(value: ir.Value) -> str:
    return f"the output of {_op_type(value)}"


def _describe_end(value: ir.Value) -> str:
    users = [n.op_type for n in value.consumers()]
    if any(u in ("GlobalAveragePool", "ReduceMean", "GlobalMaxPool", "ReduceMax") for u in users):
        return "global pooling"
    if any(u in ("Flatten", "Reshape") for u in users):
        return "flattening"
    return "the classifier's head"


def linear_head(graph: ir.Graph, value: ir.Value, layout: Layout, score: ir.Value) -> bool:
    """Whether only global average pooling and linear maps lie between a layer and the score (CAM's head)."""
    path = set(_on_path(graph, score))
    pooled = False
    while value is not score:
        users = [n for n in dict.fromkeys(value.consumers()) if any(v in path for v in n.outputs)]
        if len(users) != 1:
            return False
        node = users[0]
        kind = node.op_type
        if kind in ("GlobalAveragePool", "ReduceMean") and not pooled:
            pooled = _pools_grid(node, layout)
            if not pooled:
                return False
        elif kind in ("Transpose",) and not pooled:
            layout = Layout("NCHW" if layout.kind == "NHWC" else "NHWC")
        elif kind == "Add":
            others = [v for v in node.inputs if v is not value]
            if not pooled or not all(v is not None and v.is_initializer() for v in others):
                return False
        elif kind in ("Gemm", "MatMul", "Conv"):
            if not pooled or node.inputs[0] is not value:
                return False
        elif kind not in SAME_NUMBERS and not (pooled and kind == "Transpose"):
            return False
        value = node.outputs[0]
    return pooled


def _pools_grid(node: ir.Node, layout: Layout) -> bool:
    if layout.kind == "tokens":
        return False
    if node.op_type == "GlobalAveragePool":
        return layout.kind == "NCHW"
    axes = node.attributes.get_ints("axes", ())
    if not axes and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        axes = tuple(array.tolist()) if array is not None else ()
    wanted = {2, 3} if layout.kind == "NCHW" else {1, 2}
    return {a % 4 for a in axes} == wanted
