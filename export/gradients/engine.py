"""The reverse walk: from a score back to the values asked for, and no further.

The engine owns what no rule should know: which nodes lie on the way (activity), broadcasting,
accumulation, gradients that are mostly zero, operators that must be expanded, and the pruning of
what turned out unused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...errors import LayerNotOnPath, NoGradientRule, ShapeUnknown
from . import rules as _rules  # noqa: F401  (importing it fills the registry)
from .builder import Builder, Dims, Var, dims_of
from .control_flow import branches, captured_by, copied, empty, is_if, select, subgraphs, taken_branch
from .cotangent import Cotangent, Window, dense, total, window
from .definitions import NoDefinition
from .expand import expand
from .locality import input_axes
from .loops import Loop, Places, infer, is_loop, seeded, settle, turned_back
from .quantized import QUANTIZING, dequantize, dequantized, is_real, requantized, roundings_of, within_range
from .registry import (
    Rule,
    Unsupported,
    call,
    find_rule,
    input_name,
    like_input,
    refusal,
    stop_reason,
    why_not,
)
from .sequences import resolve, stands_aside

#: Operators whose inputs broadcast: their rules return the output's shape, and the engine sums it
#: down to the input's. (MatMul broadcasts all but its last two axes, and Gemm only its C.)
BROADCASTING = frozenset(
    """
    Add Sub Mul Div Pow Max Min Sum Mean Where PRelu Expand Mod
    """.split()
)


@dataclass(frozen=True)
class Gap:
    """A place where the gradient cannot go on."""

    node: ir.Node
    wrt: str
    reason: str
    opset: int

    def __str__(self) -> str:
        domain = f"{self.node.domain}." if self.node.domain else ""
        return (
            f"  {domain}{self.node.op_type} (opset {self.opset})  node {_label(self.node)!r}  "
            f"input {self.wrt}: {self.reason}"
        )


@dataclass(frozen=True)
class Step:
    """One node of the walk.

    Attributes:
        node: the forward node.
        indices: the inputs that the gradient flows to.
        body: what recomputes each output, if the gradient goes through a definition.
        branches: the walk inside each branch, if the node is an If.
        loop: the body and the walk inside it, if it is repeated.
    """

    node: ir.Node
    indices: tuple[int, ...]
    body: Mapping[ir.Value, ir.Value] | None = None
    branches: tuple[_Walk, ...] = ()
    loop: tuple[Loop, _Walk] | None = None


def differentiate(
    op: Builder,
    seeds: Mapping[ir.Value, Var],
    wrt: Sequence[ir.Value],
    name: str = "",
    unclipped: bool = False,
    rules: Sequence[Rule] = (),
) -> dict[ir.Value, Var]:
    """Append the gradient of ``sum of (value * seed)`` with respect to values of the graph.

    Args:
        op: the builder of the graph; shapes inferred, functions inlined.
        seeds: the values to differentiate, each with its cotangent, in its shape.
        wrt: graph inputs or intermediate values.
        name: what to call the score in messages; the first value's own name if empty.
        unclipped: let the gradient through the quantisations right before ``seeds`` at the ends of their
            ranges, too: an image may score higher than those that the ranges were made for.
        rules: that stand in the place of the registered ones on this walk (:func:`.registry.bound`).

    Returns:
        For each value of ``wrt`` its gradient, in its shape.

    Raises:
        LayerNotOnPath: none of ``seeds`` depends on one of them.
        NoGradientRule: operators on the way have no gradient: all of them are listed.
        ShapeUnknown: a rule needs a shape that the graph does not know.
    """
    name = name or next(iter(seeds)).name or "the score"
    walk = _Walk(op, seeds, wrt, rules)
    walk.unclipped = set().union(*map(roundings_of, seeds)) if unclipped else set()
    for value in wrt:
        if not walk.leads_from(value):
            raise LayerNotOnPath(_not_on_path(value, name, walk.stopped))
    if walk.gaps:
        raise NoGradientRule(_gap_message(walk.gaps, wrt, name))
    gradients = _reverse(op, walk, seeds, wrt)
    if walk.gaps:
        raise NoGradientRule(_gap_message(walk.gaps, wrt, name))
    for value in wrt:
        if value not in gradients:
            raise LayerNotOnPath(_not_on_path(value, name, walk.stopped))
    return gradients


def is_differentiable(graph: ir.Graph, of: Iterable[ir.Value], wrt: ir.Value) -> bool:
    """Whether :func:`differentiate` succeeds; the graph is left as it is."""
    op = Builder(graph, shape_unknown)
    try:
        differentiate(op, {value: op.wrap(value) for value in of}, [wrt])
    except (LayerNotOnPath, NoGradientRule, ShapeUnknown):
        return False
    finally:
        prune(op)
    return True


class _Walk:
    """What lies between the values asked for and the score: steps in forward order, and gaps."""

    def __init__(
        self, op: Builder, of: Iterable[ir.Value], wrt: Sequence[ir.Value], rules: Sequence[Rule] = ()
    ) -> None:
        self.op = op
        self.rules = rules
        self.gaps: list[Gap] = []
        self.stopped: list[tuple[ir.Node, str]] = []
        self.wrt = wrt
        self.reached = set(wrt)
        self._links: list[tuple[Iterable[ir.Value | None], Sequence[ir.Value]]] = []
        self._of = frozenset(of)
        self._requantized = requantized(op.graph)
        self.unclipped: set[ir.Value] = set()
        self._recomputed: dict[ir.Value, ir.Value] = {}
        ancestors = _ancestors(self._of)
        self.steps = self._plan([n for n in op.graph if n in ancestors])

    def rule(self, node: ir.Node, wrt: str) -> Rule:
        """For an input of a node that has one."""
        wanted = node.domain, node.op_type, wrt
        other = next((r for r in self.rules if (r.domain, r.op_type, r.wrt) == wanted), None)
        rule = other or find_rule(node, wrt, self.op.opset)
        assert rule is not None
        return rule

    def leads_from(self, value: ir.Value) -> bool:
        """Whether the score was reached from this value, over steps and gaps."""
        seen: set[ir.Value | None] = {value}
        for reads, writes in self._links:
            if any(v in seen for v in reads):
                seen.update(writes)
        return not self._of.isdisjoint(seen)

    def _plan(self, nodes: Iterable[ir.Node]) -> list[Step]:
        steps: list[Step] = []
        for node in nodes:
            opset = self.op.opset
            captured = [v for v in dict.fromkeys(captured_by(node)) if v in self.reached]
            if is_loop(node):
                steps += self._plan_loop(node, captured)
                continue
            if captured and is_if(node):
                steps += self._plan_if(node, captured)
            elif captured:
                self.gaps.append(Gap(node, "(captured)", refusal(node), opset))
                self._links.append((captured, node.outputs))
                self.reached.update(node.outputs)
            indices = self._carrying(node)
            if not indices:
                continue
            if stands_aside(node):
                self.reached.update(node.outputs)
                self._links.append(([node.inputs[i] for i in indices], node.outputs))
                continue
            names = [input_name(node, i, opset) for i in indices]
            missing = {n: reason for n in names if (reason := why_not(node, n, opset)) is not None}
            # Whole numbers carry a gradient where they come from a quantised tensor, and behind a gap, so
            # that every gap is found.
            whole = node.op_type in QUANTIZING or any(
                not _is_float(v) for i in indices if (v := node.inputs[i]) is not None
            )
            outputs = [v for v in node.outputs if whole or _is_float(v)]
            if not missing:
                steps.append(Step(node, indices))
            else:
                before = len(self.op.added)
                body = None
                try:
                    with self.op.working_on(f"definition of {node.op_type}", node.name or ""):
                        body = resolve(self.op, node)
                        if body is None and (body := expand(self.op, node)) is not None:
                            self._note_results(node, body)
                except NoDefinition as e:
                    missing = dict.fromkeys(missing, str(e))
                if body is None:
                    self.gaps += [Gap(node, n, reason, opset) for n, reason in missing.items()]
                    outputs = list(node.outputs)
                else:
                    steps += self._plan(self.op.added[before:])
                    steps.append(Step(node, indices, body))
                    outputs = [v for v in outputs if body.get(v) in self.reached]
            if not outputs:
                self.stopped.append((node, "its result is a whole number"))
            self.reached.update(outputs)
            self._links.append(([node.inputs[i] for i in indices], outputs))
        return steps

    def _plan_if(self, node: ir.Node, captured: Sequence[ir.Value]) -> list[Step]:
        """Through both branches, or through the one that a constant condition takes."""
        before = len(self.op.added)
        with self.op.working_on("branch of If", node.name or ""):
            body = taken_branch(self.op, node)
            inner = () if body is not None else branches(self.op, node)
        if body is not None:
            steps = self._plan(self.op.added[before:])
            outputs = [v for v in node.outputs if body[v] in self.reached]
            steps.append(Step(node, (), body))
        else:
            walks = tuple(_Walk(op, op.graph.outputs, captured, self.rules) for op in inner)
            for walk in walks:
                self.gaps += walk.gaps
                self.stopped += walk.stopped
            reached = zip(node.outputs, *(w.op.graph.outputs for w in walks), strict=True)
            outputs = [
                v for v, *ends in reached if any(e in w.reached for e, w in zip(ends, walks, strict=True))
            ]
            steps = [Step(node, (), branches=walks)]
        self.reached.update(outputs)
        self._links.append((captured, outputs))
        return steps

    def _plan_loop(self, node: ir.Node, captured: Sequence[ir.Value]) -> list[Step]:
        """Through the body, for the states, slices and outer values that the gradient flows to."""
        places = Places.of(node)
        flowing = [v in self.reached and v is not None and _is_float(v) for v in node.inputs]
        if not any(flowing) and not captured:
            return []
        states = {k for k in range(places.states) if flowing[places.index_of(k)]}
        scanned = tuple(j for j in range(places.scanned) if flowing[places.index_of(places.states + j)])
        while True:
            with self.op.working_on(f"body of {node.op_type}", node.name or ""):
                inner = self.op.inside(copied(self.op, places.body))
            kept = infer(self.op, places, inner.graph)
            before, slices = places.before(inner.graph), places.slices(inner.graph)
            behind = places.behind(inner.graph)
            wrt = [*(before[k] for k in sorted(states)), *(slices[j] for j in scanned), *captured]
            walk = _Walk(inner, [*behind, *places.stacked(inner.graph)], wrt, self.rules)
            # A state that depends on one that counts does so, too, from the next repetition on.
            more = {k for k, v in enumerate(behind) if v in walk.reached and _is_float(v)} - states
            if not more:
                break
            states |= more
        for k in sorted(states):
            if not kept[k]:
                state = places.before(places.body)[k].name
                reason = f"its state {state!r} may change its shape from one repetition to the next"
                self.gaps.append(
                    Gap(node, input_name(node, places.index_of(k), self.op.opset), reason, self.op.opset)
                )
        self.gaps += walk.gaps
        self.stopped += walk.stopped
        outputs = [v for k, v in enumerate(node.outputs[: places.states]) if k in states]
        stacked = zip(node.outputs[places.states :], places.stacked(inner.graph), strict=True)
        outputs += [v for v, end in stacked if end in walk.reached and _is_float(end)]
        self.reached.update(outputs)
        self._links.append(([*node.inputs, *captured], outputs))
        loop = Loop(places, inner, walk.reached, tuple(sorted(states)), scanned, tuple(captured))
        return [Step(node, (), loop=(loop, walk))]

    def _note_results(self, node: ir.Node, body: Mapping[ir.Value, ir.Value]) -> None:
        """What a definition recomputes is there already; so is what it quantises, up to rounding."""
        for there, again in body.items():
            made = again.producer()
            if again in node.inputs or made is None:
                continue
            self._recomputed[again] = there
            if made.op_type == "QuantizeLinear" and made.inputs[0] is not None:
                self._requantized[made.inputs[0]] = dequantized(there) or there

    def view(self, node: ir.Node, index: int, g: Var) -> Callable[[ir.Value], Var]:
        """How a rule for one input of a node sees the node's tensors.

        What a definition recomputes is the result that is there already; what only a quantised tensor is
        made of is that tensor, dequantised; and whole numbers that carry a gradient are real ones. To a
        gradient in float32 half precision is float32, too.
        """

        def seen(value: ir.Value) -> Var:
            whole = not is_real(value) and value in like_input(node, index, self.op.opset)
            while value in self._recomputed:
                whole = whole or is_real(value)
                value = self._recomputed[value]
            if value in self.unclipped and node.op_type in QUANTIZING:
                return within_range(self.op, value)
            stand_in = self._requantized.get(value, value)
            x = self.op.wrap(stand_in)
            if is_real(stand_in):
                return self.op.single(x) if g.dtype == ir.DataType.FLOAT else x
            if stand_in is not value:
                return dequantize(self.op, x)
            return self.op.cast(x, g.dtype) if whole else x

        return seen

    def _carrying(self, node: ir.Node) -> tuple[int, ...]:
        """The inputs through which the score depends on the values asked for."""
        indices = []
        for i, value in enumerate(node.inputs):
            if value not in self.reached or value is None:
                continue
            reason = stop_reason(node, input_name(node, i, self.op.opset))
            if reason is None:
                indices.append(i)
            else:
                self.stopped.append((node, reason))
        return tuple(indices)


def _reverse(
    op: Builder, walk: _Walk, seeds: Mapping[ir.Value, Var], wrt: Sequence[ir.Value]
) -> dict[ir.Value, Var]:
    """Apply the rules from the last step to the first."""
    flowing: dict[ir.Value, list[Cotangent]] = {value: [seed] for value, seed in seeds.items()}
    found: dict[ir.Value, Var] = {}
    targets = set(wrt)

    def collect(value: ir.Value) -> Cotangent | None:
        parts = flowing.pop(value, None)
        if not parts:
            return None
        with op.working_on("vjp total", value.name or ""):
            g = total(op, parts)
            if value in targets:
                found[value] = g = dense(op, g)
        return g

    for step in reversed(walk.steps):
        node = step.node
        gs = [collect(v) for v in node.outputs]
        if all(g is None for g in gs):
            continue
        if step.body is not None:
            for v, g in zip(node.outputs, gs, strict=True):
                if g is not None:
                    flowing.setdefault(step.body[v], []).append(g)
            continue
        if step.branches:
            with op.working_on("vjp If", node.name or node.op_type):
                inside = _through_branches(op, step, gs)
            walk.gaps += [gap for w in step.branches for gap in w.gaps]
            for v, part in inside.items():
                flowing.setdefault(v, []).append(part)
            continue
        if step.loop is not None:
            loop, inside_it = step.loop
            with op.working_on(f"vjp {node.op_type}", node.name or node.op_type):
                seed = seeded(op, loop, [None if g is None else dense(op, g) for g in gs])
                ends = _reverse(loop.inner, inside_it, seed.seeds, inside_it.wrt)
                walk.gaps += inside_it.gaps
                if inside_it.gaps:
                    continue
                settle(loop, seed, ends)
                prune(loop.inner)
                through = turned_back(op, loop, seed)
            for v, part in through:
                flowing.setdefault(v, []).append(part)
            continue
        for index in step.indices:
            wrt_name = input_name(node, index, op.opset)
            rule = walk.rule(node, wrt_name)
            try:
                with op.working_on(rule.name, node.name or node.op_type):
                    g = _apply(walk, rule, node, index, gs)
            except Unsupported as e:
                walk.gaps.append(Gap(node, wrt_name, str(e), op.opset))
                continue
            value = node.inputs[index]
            assert value is not None
            flowing.setdefault(value, []).append(g)
    for value in wrt:
        collect(value)
    return found


def _through_branches(op: Builder, step: Step, gs: Sequence[Cotangent | None]) -> dict[ir.Value, Var]:
    """The gradient of what the branches of an If read, by the branch that is taken."""
    full = [None if g is None else dense(op, g) for g in gs]
    found = []
    for walk in step.branches:
        inner, seeds = walk.op, dict[ir.Value, Var]()
        for end, g in zip(inner.graph.outputs, full, strict=True):
            if g is not None:
                here = Var(g.value, inner, dims_of(end) or g.dims)
                seeds[end] = seeds[end] + here if end in seeds else here
        found.append(_reverse(inner, walk, seeds, walk.wrt))
    wanted = [v for v in step.branches[0].wrt if any(v in part for part in found)]
    inner_ops = [walk.op for walk in step.branches]
    gradients = select(op, step.node, inner_ops, found, wanted) if wanted else []
    for inner in inner_ops:
        prune(inner)
    return dict(zip(wanted, gradients, strict=True))


def _apply(walk: _Walk, rule: Rule, node: ir.Node, index: int, gs: Sequence[Cotangent | None]) -> Cotangent:
    """One rule, on a stretch of the tensors if the gradient is zero elsewhere and the node allows it."""
    op = walk.op
    alone = gs[0] if sum(g is not None for g in gs) == 1 else None
    if isinstance(alone, Window):
        axes = input_axes(node, alone.axis)
        if axes is not None and not _ambiguous(node, axes):
            return _apply_on_stretch(walk, rule, node, index, alone, axes)
    full = [None if g is None else dense(op, g) for g in gs]
    first = next(g for g in full if g is not None)
    g = call(rule, op, node, index, full, walk.view(node, index, first))
    value = node.inputs[index]
    assert value is not None
    if isinstance(g, Window):
        return g
    return _finish(op, node, g, dims_of(node.outputs[0]), index, op.wrap(value))


def _apply_on_stretch(
    walk: _Walk, rule: Rule, node: ir.Node, index: int, g: Window, axes: Sequence[int | None]
) -> Cotangent:
    op = walk.op
    seen = walk.view(node, index, g.part)
    where = {v: a for v, a in zip(node.inputs, axes, strict=True) if v is not None}
    where |= dict.fromkeys(node.outputs, g.axis)

    def view(value: ir.Value) -> Var:
        x, axis = seen(value), where.get(value)
        return x if axis is None else op.slice(x, [g.start], [g.end], [axis])

    part = call(rule, op, node, index, [g.part, *[None] * (len(node.outputs) - 1)], view)
    axis = axes[index]
    value = node.inputs[index]
    assert value is not None
    if isinstance(part, Window):  # a stretch of a stretch: one of the two is filled in
        part = part.dense(op)
    x = op.wrap(value)
    stretch = Var(view(value).value, op, tuple(g.length if k == axis else d for k, d in enumerate(x.shape)))
    out = tuple(g.length if k == g.axis else d for k, d in enumerate(dims_of(node.outputs[0]) or ()))
    part = _finish(op, node, part, out, index, stretch if axis is not None else x)
    return part if axis is None else window(op, part, x, axis, g.start, g.length)


def _finish(op: Builder, node: ir.Node, g: Var, out: Dims | None, index: int, x: Var) -> Var:
    """Undo broadcasting, and note the shape that the gradient now has: that of its input."""
    if node.op_type in BROADCASTING or (node.op_type == "Gemm" and index == 2):
        g = sum_to(op, Var(g.value, op, out), x)
    elif node.op_type == "MatMul":
        g = sum_to(op, g, x)
    if g.dims != x.dims and x.dims is not None:
        g = Var(g.value, op, x.dims)
    if g.value.shape is None and x.dims is not None and g.value.producer() in op.added[-64:]:
        g.value.shape = ir.Shape(x.dims)
    return g


def sum_to(op: Builder, g: Var, x: Var) -> Var:
    """Sum ``g`` down to the shape of ``x``, which was broadcast to the shape of ``g``."""
    source, target = g.shape, x.shape
    lead = len(source) - len(target)
    pairs = list(zip(source[lead:], target, strict=True))
    if all((a == b and b is not None) or b == 1 or isinstance(b, int) for a, b in pairs):
        g = op.sum(g, range(lead), keepdims=False)
        stretched = [k for k, (a, b) in enumerate(pairs) if b == 1 and a != 1]
        return op.sum(g, stretched)
    # Sizes that only the run time knows: sum where they turn out to differ.
    padded = op.shape_of(x)
    if lead:
        padded = op.Concat([1] * lead, padded, axis=0)
    differ = op.Not(op.Equal(padded, op.Shape(g)))
    axes = op.Squeeze(op.NonZero(differ), [0])
    g = op.ReduceSum(g, axes, keepdims=1, noop_with_empty_axes=1)
    return op.Reshape(g, op.shape_of(x), dims=x.dims)


def _ambiguous(node: ir.Node, axes: Sequence[int | None]) -> bool:
    """Whether one value stands at two inputs with its cells on different axes."""
    seen: dict[ir.Value, int | None] = {}
    return any(v is not None and seen.setdefault(v, a) != a for v, a in zip(node.inputs, axes, strict=True))


def _ancestors(of: Iterable[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    stack = [*of]
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            stack += [v for v in node.inputs if v is not None]
            stack += captured_by(node)
    return found


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _label(node: ir.Node) -> str:
    return node.name or (node.outputs[0].name if node.outputs else "") or "(unnamed)"


def _not_on_path(value: ir.Value, name: str, stopped: Sequence[tuple[ir.Node, str]]) -> str:
    text = f"The score {name!r} does not depend on the layer {value.name!r}: no gradient can reach it."
    if stopped:
        node, reason = stopped[0]
        text += f" On the way, {node.op_type} {_label(node)!r} lets nothing through ({reason})."
    return text + " Choose a layer before the score: `onnxcam layers MODEL` lists those that work."


def _gap_message(gaps: Sequence[Gap], wrt: Sequence[ir.Value], name: str) -> str:
    layers = ", ".join(repr(v.name) for v in wrt)
    listed = "\n".join(dict.fromkeys(str(g) for g in gaps))
    count = len({g.node for g in gaps})
    return (
        f"{count} operator{'s' if count > 1 else ''} between {layers} and {name!r} "
        f"cannot be differentiated:\n{listed}\n"
        "Choose a later layer (`onnxcam layers MODEL` lists those that work), a score that lies before "
        'them, or add the rules: README, "Adding a gradient rule".'
    )


def prune(op: Builder) -> None:
    """Remove what the builder added and nothing uses."""
    kept = {graph for node in op.added for graph in subgraphs(node)} if op.subgraphs else set()
    for inner in op.subgraphs:
        if inner.graph not in kept:
            empty(inner.graph)
    for node in reversed(op.added):
        if node.graph is op.graph and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            for graph in subgraphs(node):
                empty(graph)
            op.graph.remove(node, safe=True)
    for name, value in list(op.graph.initializers.items()):
        ours = value.name is not None and value.name.startswith("onnxcam/")
        if ours and not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del op.graph.initializers[name]


def shape_unknown(value: ir.Value) -> ShapeUnknown:
    """The error for a value whose shape a rule needs."""
    return ShapeUnknown(
        f"The gradient needs the shape of {value.name!r}, which shape inference could not find. "
        "Fix the model's input sizes (`input_shapes=`), or export it with static shapes."
    )
