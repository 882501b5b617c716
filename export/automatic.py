"""The layer that is explained where none is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from ..contract import Layout
from ..grids import CHANNELS_FIRST, grid_of
from .gradients.builder import dims_of
from .layouts import Layouts
from .paths import ancestors, op_type, sources
from .scores import SAME_NUMBERS, FoundScore


def best_layer(
    graph: ir.Graph, found: FoundScore, spatial: Sequence[ir.Value], known: Layouts
) -> tuple[ir.Value, str]:
    """The layer to explain by default, and why.

    Args:
        graph: in normal form.
        found: the score.
        spatial: the tensors on the way to it that have a grid, in topological order; at least one.
        known: the layouts of the graph's values.
    """
    spatial = [v for v in spatial if not _has_one_channel(v, known[v])] or spatial
    ranks = {v: len(grid_of(known[v], dims_of(v) or ())) for v in spatial}
    most = max(ranks.values())
    spatial = [v for v in spatial if ranks[v] == most]  # not the time of averaged frames
    tokens = [v for v in spatial if _is_tokens(known[v])]
    spatial = [v for v in spatial if known[v].kind != "factored"] or spatial
    if found.score.task == "segmentation" and (value := _deepest(graph, spatial, known)) is not None:
        return value, "the last tensor of the coarsest grid before pixels cease to look at their neighbours"
    spatial = [v for v in spatial if v not in found.values] or spatial
    front = _front(graph, found.values, set(spatial))
    order = {v: k for k, node in enumerate(graph) for v in node.outputs}
    if found.score.task == "detection" and (shared := _shared(front, set(spatial))):
        last = max(shared, key=lambda v: order.get(v, -1))
        value, _ = _made_by_features(last, set(spatial), known)
        return value, "the last spatial tensor that every box depends on"
    last = max(front or spatial, key=lambda v: order.get(v, -1))
    if _is_tokens(known[last]):
        return _last_first_norm(graph, last, tokens)
    value, skipped = _made_by_features(last, set(spatial), known)
    behind = f" ({', '.join(skipped)} skipped: no new features)" if skipped else ""
    return value, f"the last spatial tensor before {_describe_end(last)}{behind}"


def _has_one_channel(value: ir.Value, layout: Layout) -> bool:
    """Whether a tensor holds one number per place: a norm's statistics, a mask, a depth."""
    dims = dims_of(value) or ()
    if layout.kind == "factored":
        return all(f.size == 1 for axis in layout.axes for f in axis if f.of == "C")
    return len(dims) > 1 and dims[1 if layout.kind in CHANNELS_FIRST else -1] == 1


def _is_tokens(layout: Layout) -> bool:
    """Whether attention mixes such tensors: tokens, also those of windows, with all channels last."""
    if layout.kind != "factored":
        return layout.kind in ("tokens", "NLC")
    *others, last = layout.axes
    return all(f.of == "C" for f in last) and all(f.of != "C" for axis in others for f in axis)


def _made_by_features(value: ir.Value, spatial: set[ir.Value], known: Layouts) -> tuple[ir.Value, list[str]]:
    """The value from which another was only moved, copied or pooled, and what was skipped."""
    skipped = []
    while (source := _adapted(value, known)) in spatial and source is not None:
        skipped.append(op_type(value))
        value = source
    return value, skipped


def _front(graph: ir.Graph, values: Iterable[ir.Value], spatial: set[ir.Value]) -> list[ir.Value]:
    """The spatial tensors from which a score's heads start."""
    front = []
    seen = set(values)
    stack = [*seen]
    while stack:
        value = stack.pop()
        if value in spatial:
            front.append(value)
            continue
        node = value.producer()
        new = [v for v in sources(node, graph) if v not in seen] if node is not None else []
        seen.update(new)
        stack += new
    return front


def _shared(front: Sequence[ir.Value], spatial: set[ir.Value]) -> set[ir.Value]:
    """The spatial tensors that all of the heads depend on."""
    shared = set(spatial)
    for value in front:
        node = value.producer()
        shared &= {value, *(ancestors(node) if node is not None else ())}
    return shared


#: Where each pixel is made of one pixel: no evidence moves between places.
_POINTWISE = SAME_NUMBERS | frozenset(
    """
    Add Sub Mul Div Relu Clip Sigmoid HardSigmoid HardSwish Tanh Gelu Erf Exp Pow Sqrt LeakyRelu PRelu Elu
    BatchNormalization LayerNormalization Softmax LogSoftmax Concat Transpose Resize Upsample Gemm MatMul Max
    Min Where Slice Split DepthToSpace QuantizeLinear DequantizeLinear
    """.split()
)
_LARGEST_STRIDE = 32  #: coarser grids are those of pyramid pooling, not of a backbone


def _deepest(graph: ir.Graph, spatial: Sequence[ir.Value], known: Layouts) -> ir.Value | None:
    """The last tensor of the coarsest grid that reaches its neighbours' scores; None if no size is known.

    Behind it (in a decoder of 1x1 convolutions) the map of a region is that region alone.
    """
    inside = set(spatial)
    mixing = [
        n
        for n in graph
        if any(v in inside for v in n.inputs) and n.op_type not in _POINTWISE and not _is_1x1(n)
    ]
    before: set[ir.Value] = set()
    for node in reversed(mixing):
        if not any(v in before for v in node.outputs):
            before |= ancestors(node)
    cells = {v: _cells(v, known[v]) for v in spatial if v in before}
    whole = max((n for n in cells.values() if n is not None), default=None)
    sizes = [n for n in cells.values() if n is not None and n * _LARGEST_STRIDE**2 >= (whole or 0)]
    if not sizes:
        return None
    return [v for v, n in cells.items() if n == min(sizes)][-1]


def _is_1x1(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "Conv" and len(node.inputs) > 1 else None
    dims = dims_of(weight) if weight is not None else None
    return dims is not None and all(d == 1 for d in dims[2:])


def _cells(value: ir.Value, layout: Layout) -> int | None:
    grid = grid_of(layout, dims_of(value) or ())
    sizes = [n for n in grid if isinstance(n, int)]
    return math.prod(sizes) if len(sizes) == len(grid) else None


_NORMS = frozenset(
    f"{skip}{kind}Normalization" for skip in ("", "Skip") for kind in ("Layer", "RMS", "SimplifiedLayer")
)
_ATTENDING = frozenset("Softmax QLinearSoftmax BiasSoftmax Attention MultiHeadAttention".split())


def _last_first_norm(graph: ir.Graph, last: ir.Value, tokens: Sequence[ir.Value]) -> tuple[ir.Value, str]:
    """For token models: the first norm of the last block.

    What follows it in a class-token model changes that one token alone, so that later tensors have no
    gradient anywhere else.
    """
    norms = [v for v in tokens if op_type(v) in _NORMS and v.index() == 0]
    producer = last.producer()
    behind = {last, *(ancestors(producer) if producer is not None else ())}
    attention = [n for n in graph if n.op_type in _ATTENDING and n.outputs[0] in behind]
    if attention:
        before = ancestors(attention[-1])
        inside = [v for v in norms if v in before]
        if inside:
            return inside[-1], "the output of the last attention block's first norm"
        inside = [v for v in tokens if v in before and op_type(v) in ("Add", "Concat")]
        if inside:
            return inside[-1], "the tokens that enter the last attention block"
    inside = [v for v in norms if v is not last]
    if len(inside) >= 2:
        return inside[-2], "the output of the last block's first norm"
    return last, "the last tokens before the head"


def _adapted(value: ir.Value, known: Layouts) -> ir.Value | None:
    """What a value's node only moves, copies or pools to another size; None if it makes features."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.inputs else None
    if node is None or source is None or source not in known:
        return None
    unchanged = node.op_type == "Pad" and dims_of(source) == dims_of(value)
    if node.op_type in SAME_NUMBERS or node.op_type in ("Transpose", "AveragePool") or unchanged:
        return source
    same = grid_of(known[source], dims_of(source) or ()) == grid_of(known[value], dims_of(value) or ())
    return source if node.op_type == "MaxPool" and same else None


def _describe_end(value: ir.Value) -> str:
    users = [n.op_type for n in value.consumers()]
    if any(u in ("GlobalAveragePool", "ReduceMean", "GlobalMaxPool", "ReduceMax") for u in users):
        return "global pooling"
    if any(u in ("Flatten", "Reshape") for u in users):
        return "flattening"
    return "the classifier's head"
