"""Gradients through If: by the branch that is taken.

Beside an If stands another with the same condition, whose branches hold the gradients of the first one's. A
branch repeats what it needs of its forward computation, since values inside a branch are seen by nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from .builder import NODE_PREFIX, Builder, Var
from .registry import constant

_BRANCHES = ("then_branch", "else_branch")


def is_if(node: ir.Node) -> bool:
    """Whether a node is ONNX's If."""
    return node.op_type == "If" and not node.domain


def captured_by(node: ir.Node) -> list[ir.Value]:
    """Outer values that the subgraphs of a control-flow node read."""
    graphs = [*subgraphs(node)]
    inner = [n for graph in graphs for n in graph.all_nodes()]
    own = {v for n in inner for v in n.outputs}
    for graph in (*graphs, *(g for n in inner for g in subgraphs(n))):
        own.update(graph.inputs, graph.initializers.values())
    reads = [v for n in inner for v in n.inputs] + [v for graph in graphs for v in graph.outputs]
    return [v for v in reads if v is not None and v not in own]


def branches(op: Builder, node: ir.Node) -> list[Builder]:
    """A builder for a copy of each branch, with names of its own."""
    return [op.inside(copied(op, node.attributes[name].as_graph())) for name in _BRANCHES]


def taken_branch(op: Builder, node: ir.Node) -> dict[ir.Value, ir.Value] | None:
    """Append a copy of the branch that a constant condition takes; None if the run time decides.

    Returns:
        For each output of ``node`` the value that recomputes it.
    """
    condition = None if node.inputs[0] is None else constant(node.inputs[0])
    if condition is None:
        return None
    copy = copied(op, node.attributes[_BRANCHES[not condition.item()]].as_graph())
    outputs = [*copy.outputs]
    copy.outputs.clear()
    for name, value in [*copy.initializers.items()]:
        del copy.initializers[name]
        op.graph.register_initializer(value)
    for inner in [*copy]:
        copy.remove(inner)
        op.graph.append(inner)
        op.added.append(inner)
    return dict(zip(node.outputs, outputs, strict=True))


def copied(op: Builder, graph: ir.Graph) -> ir.Graph:
    """A copy of a graph inside a node, with names of its own."""

    def named(name: str | None) -> str:
        name = name or ""
        return name if name.startswith(NODE_PREFIX) else f"{NODE_PREFIX}{op.scope}{name}"

    copy = graph.clone(allow_outer_scope_values=True)
    copy.opset_imports.update(op.graph.opset_imports)
    for inner in (copy, *(g for n in copy.all_nodes() for g in subgraphs(n))):
        for name, value in list(inner.initializers.items()):
            del inner.initializers[name]
            value.name = op.unique(named(name))
            inner.register_initializer(value)
        for value in inner.inputs:
            value.name = op.unique(named(value.name))
        for node in inner:
            node.name = op.unique(named(node.name or node.op_type))
            for value in node.outputs:
                value.name = op.unique(named(value.name)) if value.name else value.name
    return copy


def select(
    op: Builder,
    node: ir.Node,
    inner: Sequence[Builder],
    gradients: Sequence[Mapping[ir.Value, Var]],
    wanted: Sequence[ir.Value],
) -> list[Var]:
    """Append the If that gives the gradient of the branch taken.

    Args:
        op: the builder of the graph that holds ``node``.
        node: the forward If.
        inner: the builder of each branch's copy; its graph gets its outputs here.
        gradients: for each branch, the gradients of the outer values that it reaches.
        wanted: the outer values; where a branch does not use one, its gradient there is zero.
    """
    types = {v: g.dtype for found in gradients for v, g in found.items()}
    for within, found in zip(inner, gradients, strict=True):
        outputs: list[ir.Value] = []
        for value in wanted:
            g = found[value] if value in found else within.zeros_like(within.wrap(value))
            g = within.cast(g, types.get(value, g.dtype))
            g = computed_inside(within, g, outputs)
            g.value.type = g.value.type or value.type
            outputs.append(g.value)
        within.graph.outputs[:] = outputs
    made = ir.Node(
        "",
        "If",
        [node.inputs[0]],
        [ir.AttrGraph(name, within.graph) for name, within in zip(_BRANCHES, inner, strict=True)],
        num_outputs=len(wanted),
        name=op.unique(f"{NODE_PREFIX}{op.scope}If"),
        doc_string=op.doc or None,
    )
    for k, (value, forward) in enumerate(zip(made.outputs, wanted, strict=True)):
        value.name = op.unique(f"{made.name}_output_{k}")
        value.type = ir.TensorType(types[forward]) if forward in types else forward.type
    op.graph.append(made)
    op.added.append(made)
    return [Var(v, op, op.wrap(forward).dims) for v, forward in zip(made.outputs, wanted, strict=True)]


def computed_inside(within: Builder, x: Var, others: Sequence[ir.Value]) -> Var:
    """A graph inside a node returns what is computed in it, and each of it once."""
    foreign = x.value.graph is not within.graph or x.value.producer() is None
    if foreign or x.value in others:
        return within.Identity(within.wrap(x.value), dims=x.dims)
    return x


def empty(graph: ir.Graph) -> None:
    """Remove everything from a discarded subgraph: nothing in it may count as a use of what lies outside."""
    graph.outputs.clear()
    for node in reversed(graph):
        for inner in subgraphs(node):
            empty(inner)
        graph.remove(node, safe=True)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
