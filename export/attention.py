"""The blocks of a vision transformer: their attention, their tokens, and what the model makes of those.

A block is found by its attention, a softmax over (B, heads, T, T) or (B * heads, T, T), and by its residual
additions: its tokens are the last sum of two tensors (B, T, C) between one attention and the next. What
follows the last block's tokens is the head, which can be put behind any other block's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..contract import Layout
from ..errors import ModelError
from .gradients.builder import NODE_PREFIX, Builder, Var, dims_of
from .gradients.control_flow import captured_by
from .gradients.registry import constant
from .layouts import Layouts


@dataclass(frozen=True)
class Block:
    """One block: its attention (B, heads, T, T), and the tokens (B, T, C) that leave it."""

    attention: ir.Value
    tokens: ir.Value


@dataclass(frozen=True)
class Transformer:
    """The blocks in forward order, the layout of their tokens, and the nodes of the head."""

    blocks: tuple[Block, ...]
    layout: Layout
    head: tuple[ir.Node, ...]


def transformer(path: Sequence[ir.Value], score: ir.Value, known: Layouts) -> Transformer:
    """The blocks of a graph.

    Args:
        path: the values that the score depends on, in topological order.
        score: the value that is explained.
        known: the layouts of the graph's values.

    Raises:
        ModelError: there are none, they keep other tokens, or the head reads more than the last one's tokens.
    """
    attentions = [v for v in path if _is_attention(v)]
    sums = [v for v in path if _is_residual(v, path)]
    blocks = []
    for index, attention in enumerate(attentions):
        behind = _descendants(path, [attention])
        upcoming = attentions[index + 1] if index + 1 < len(attentions) else score
        before = _ancestors(upcoming)
        own = [v for v in sums if v in behind and (v in before or v is upcoming)]
        if own:
            blocks.append(Block(attention, own[-1]))
    layouts = {known.get(block.tokens) for block in blocks}
    layout = next(iter(layouts)) if len(layouts) == 1 else None
    if not blocks or len(blocks) < len(attentions) or layout is None or layout.kind != "tokens":
        raise ModelError(
            f"{len(attentions)} attentions over all tokens were found, and {len(blocks)} of their blocks"
            + ("" if layout is not None or not blocks else ", which keep different tokens")
            + ": the method needs a vision transformer whose blocks all have the same tokens, with softmax "
            "attention and residual additions (ViT, DeiT, DINOv2)."
        )
    end = blocks[-1].tokens
    inside = _descendants(path, [end])
    nodes = dict.fromkeys(node for v in path if v in inside and (node := v.producer()) is not None)
    around = [v for node in nodes for v in node.inputs if v in set(path) - inside - {end}]
    if around or any(captured_by(node) for node in nodes) or score not in inside:
        raise ModelError(
            f"What follows the tokens of the last block, {end.name!r}, reads more than these"
            + (f" ({around[0].name!r})" if around else "")
            + ": a head of that kind cannot be put behind the other blocks."
        )
    return Transformer(tuple(blocks), layout, tuple(nodes))


def behind(
    op: Builder, head: Iterable[ir.Node], end: ir.Value, tokens: ir.Value, score: ir.Value
) -> ir.Value:
    """The score that the head gives a block: of the mean of its tokens, which stands for each of them.

    Args:
        op: where the copy of the head goes.
        head: its nodes.
        end: what it reads: the last block's tokens.
        tokens: the block's.
        score: what it gives.
    """
    x = op.wrap(tokens)
    mean = op.ReduceMean(x, [1], keepdims=1, dims=(x.shape[0], 1, x.shape[2]))
    stand_ins = {end: op.expand_like(mean, x).value}
    _copy(op, head, stand_ins)
    return stand_ins[score]


def _copy(op: Builder, nodes: Iterable[ir.Node], stand_ins: dict[ir.Value, ir.Value]) -> None:
    for node in nodes:
        made = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else stand_ins.get(v, v) for v in node.inputs],
            node.attributes.values(),
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            name=op.unique(f"{NODE_PREFIX}{op.scope}{node.op_type}"),
            doc_string=op.doc or None,
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name = op.unique(f"{made.name}_output") if old.name else old.name
            new.type, new.shape = old.type, old.shape
            stand_ins[old] = new
        op.graph.append(made)
        op.added.append(made)


def over_cells(op: Builder, x: Var, tokens: Var, layout: Layout) -> Var:
    """(B, heads, T, T), or (B * heads, T, T), as (B, heads, T, h, w): of the keys, those of the grid.

    Args:
        op: where nodes go.
        x: over all keys.
        tokens: (B, T, C).
        layout: of the tokens.
    """
    assert layout.grid is not None
    queries, keys = x.shape[-2:]
    assert isinstance(queries, int)
    assert isinstance(keys, int)
    cells = op.slice(x, [layout.prefix], [keys - layout.suffix], [x.rank - 1])
    heads = x.shape[1] if x.rank == 4 else None
    target = op.vector([op.dim(tokens, 0), -1, queries, *layout.grid])
    return op.Reshape(cells, target, dims=(tokens.shape[0], heads, queries, *layout.grid))


def _is_attention(value: ir.Value) -> bool:
    node, dims = value.producer(), dims_of(value)
    if node is None or node.op_type != "Softmax" or dims is None or len(dims) not in (3, 4):
        return False
    last = node.attributes.get_int("axis", -1) in (-1, len(dims) - 1)
    return last and isinstance(dims[-1], int) and dims[-1] == dims[-2]


def _is_residual(value: ir.Value, path: Collection[ir.Value]) -> bool:
    node, dims = value.producer(), dims_of(value)
    if node is None or node.op_type != "Add" or dims is None or len(dims) != 3:
        return False
    return all(v is not None and constant(v) is None and dims_of(v) == dims for v in node.inputs)


def _descendants(path: Iterable[ir.Value], of: Iterable[ir.Value]) -> set[ir.Value]:
    """Those of a path's values that depend on some of them, without these."""
    found, seen = set[ir.Value](), set(of)
    for value in path:
        node = value.producer()
        if node is not None and any(v in seen for v in node.inputs):
            seen.add(value)
            found.add(value)
    return found


def _ancestors(value: ir.Value) -> set[ir.Value]:
    found: set[ir.Value] = set()
    stack = [value]
    while stack:
        node = stack.pop().producer()
        for source in node.inputs if node is not None else ():
            if source is not None and source not in found:
                found.add(source)
                stack.append(source)
    return found
