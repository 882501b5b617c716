"""Recurrent operators as a Scan over their steps."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .registry import Call, NoDefinition, define

_ACTIVATIONS = frozenset("Sigmoid Tanh Relu Softplus Softsign".split())
_WORDS = {
    ir.DataType.FLOAT: "float",
    ir.DataType.DOUBLE: "double",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}

#: From the call, the activations' names and the direction's prefix: what a step makes of ``x`` (the inputs'
#: share of all gates) and the states ``h`` (and ``c``): lines that make ``h_new`` (and ``c_new``).
_Step = Callable[[Call, list[str], str], str]


def _recurrent(call: Call, default: list[str], states: str, step: _Step) -> str:
    """The body of a recurrent operator.

    Args:
        call: the node.
        default: the activations of one direction.
        states: ``h``, or ``hc`` where there are cells, too.
        step: one step.
    """
    if call.attribute("clip") is not None:
        raise NoDefinition("it clips what goes into its activations")
    kind = call.attribute("direction", "forward")
    ways = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[kind]
    names = [n.capitalize() for n in call.attribute("activations", default * len(ways))]
    names = [next((a for a in _ACTIVATIONS if a.lower() == n.lower()), n) for n in names]
    if unknown := sorted(set(names) - _ACTIVATIONS):
        raise NoDefinition(f"its activation {unknown[0]} is not known")
    batched = call.attribute("layout", 0) == 1
    text = f"""
    steps = {"Transpose <perm = [1, 0, 2]> (X)" if batched else "Identity (X)"}
    size = Shape <start = 1, end = 2> (steps)
    hidden = Shape <start = 2, end = 3> (R)
    empty = Concat <axis = 0> (size, hidden)
    count = Shape <start = 0, end = 1> (steps)
    many = Squeeze (count)
    numbers = Range ({call.number(0, ir.DataType.INT64)}, many, {call.number(1, ir.DataType.INT64)})
    """
    for state in states:
        if f"initial_{state}" in call and batched:
            text += f"first_{state} = Transpose <perm = [1, 0, 2]> (initial_{state})\n"
        elif f"initial_{state}" in call:
            text += f"first_{state} = Identity (initial_{state})\n"
    for at, way in enumerate(ways):
        text += _direction(call, names[at * len(default) :][: len(default)], states, step, at, way)
    for name, axis, turned in (("Y", 1, [2, 0, 1, 3]), *((f"Y_{s}", 0, [1, 0, 2]) for s in states)):
        if not call.wants({"Y": 0, "Y_h": 1, "Y_c": 2}[name]):
            continue
        parts = ", ".join(f"{name}_{at}" for at in range(len(ways)))
        text += f"{name}_all = Concat <axis = {axis}> ({parts})\n"
        text += (
            f"{name} = " + (f"Transpose <perm = {turned}>" if batched else "Identity") + f" ({name}_all)\n"
        )
    return text


def _direction(call: Call, names: list[str], states: str, step: _Step, at: int, way: int) -> str:
    """Lines: the results ``Y_0``, ``Y_h_0``, ... of one direction."""
    word = _WORDS[call.dtype]
    number = call.number(at, ir.DataType.INT64)
    text = ""
    for name in ("W", "R", "B", "P"):
        if name in call:
            text += f"{name}_{at} = Gather <axis = 0> ({name}, {number})\n"
    text += f"""
    Wt_{at} = Transpose <perm = [1, 0]> (W_{at})
    Rt_{at} = Transpose <perm = [1, 0]> (R_{at})
    """
    if "B" in call:
        text += f"Wb_{at}, Rb_{at} = Split <num_outputs = 2> (B_{at})\n"
        text += f"xw_{at} = MatMul (steps, Wt_{at})\nx_{at} = Add (xw_{at}, Wb_{at})\n"
    else:
        text += f"x_{at} = MatMul (steps, Wt_{at})\n"
    for state in states:
        if f"initial_{state}" in call:
            text += f"{state}0_{at} = Gather <axis = 0> (first_{state}, {number})\n"
        else:
            text += f"{state}0_{at} = Expand ({call.number(0.0)}, empty)\n"
    inner = step(call, names, str(at))
    if "sequence_lens" in call:  # beyond a sequence's end its state stays, and its result is 0
        inner += f"""
        length = Cast <to = 7> (sequence_lens)
        going = Less (t, length)
        there = Unsqueeze (going, {call.ints(1)})
        """
        inner += "".join(f"{s}_kept = Where (there, {s}_new, {s})\n" for s in states)
        inner += f"y = Where (there, h_new, {call.number(0.0)})\n"
        kept = [f"{s}_kept" for s in states]
    else:
        inner += "y = Identity (h_new)\n"
        kept = [f"{s}_new" for s in states]
    shape = f"{word}[batch, hidden]"
    taken = ", ".join([*(f"{shape} {s}" for s in states), f"{word}[batch, gates] x", "int64 t"])
    given = ", ".join(f"{shape} {name}" for name in (*kept, "y"))
    ends = ", ".join(f"{s}_end_{at}" for s in states)
    text += f"""
    {ends}, y_{at} = Scan <num_scan_inputs = 2, scan_input_directions = [{way}, {way}],
        scan_output_directions = [{way}], body = step_{at} ({taken}) => ({given}) {{ {inner} }}>
        ({", ".join(f"{s}0_{at}" for s in states)}, x_{at}, numbers)
    Y_{at} = Unsqueeze (y_{at}, {call.ints(1)})
    """
    return text + "".join(f"Y_{s}_{at} = Unsqueeze ({s}_end_{at}, {call.ints(0)})\n" for s in states)


def _plus(y: str, x: str, bias: str, given: bool) -> str:
    """Lines: a sum with a bias that may be missing."""
    return f"{y} = Add ({x}, {bias})\n" if given else f"{y} = Identity ({x})\n"


@define("RNN", "X, W, R, B, sequence_lens, initial_h => Y, Y_h")
def rnn(call: Call) -> str:
    def step(call: Call, names: list[str], at: str) -> str:
        return (
            f"hr = MatMul (h, Rt_{at})\n"
            + _plus("hb", "hr", f"Rb_{at}", "B" in call)
            + f"sum = Add (x, hb)\nh_new = {names[0]} (sum)\n"
        )

    return _recurrent(call, ["Tanh"], "h", step)


@define("GRU", "X, W, R, B, sequence_lens, initial_h => Y, Y_h")
def gru(call: Call) -> str:
    def step(call: Call, names: list[str], at: str) -> str:
        f, g = names
        three = "Split <axis = -1, num_outputs = 3>"
        text = f"xz, xr, xh = {three} (x)\n"
        if call.attribute("linear_before_reset", 0):
            text += f"hr = MatMul (h, Rt_{at})\n" + _plus("hb", "hr", f"Rb_{at}", "B" in call)
            text += f"hz, hs, hh = {three} (hb)\n"
        else:
            text += f"Rz, Rr, Rh = {three} (Rt_{at})\n"
            if "B" in call:
                text += f"bz, br, bh = Split <axis = 0, num_outputs = 3> (Rb_{at})\n"
            text += "hRz = MatMul (h, Rz)\n" + _plus("hz", "hRz", "bz", "B" in call)
            text += "hRr = MatMul (h, Rr)\n" + _plus("hs", "hRr", "br", "B" in call)
        text += f"""
        az = Add (xz, hz)
        z = {f} (az)
        ar = Add (xr, hs)
        r = {f} (ar)
        """
        if call.attribute("linear_before_reset", 0):
            text += "reset = Mul (r, hh)\n"
        else:
            text += "rh = Mul (r, h)\nhRh = MatMul (rh, Rh)\n" + _plus("reset", "hRh", "bh", "B" in call)
        return (
            text
            + f"""
        ah = Add (xh, reset)
        n = {g} (ah)
        change = Sub (h, n)
        part = Mul (z, change)
        h_new = Add (n, part)
        """
        )

    return _recurrent(call, ["Sigmoid", "Tanh"], "h", step)


@define("LSTM", "X, W, R, B, sequence_lens, initial_h, initial_c, P => Y, Y_h, Y_c")
def lstm(call: Call) -> str:
    if call.attribute("input_forget", 0):
        raise NoDefinition("it couples its input and forget gates")

    def step(call: Call, names: list[str], at: str) -> str:
        f, g, h = names
        text = f"hr = MatMul (h, Rt_{at})\n" + _plus("hb", "hr", f"Rb_{at}", "B" in call)
        text += "sum = Add (x, hb)\nai, ao, af, ac = Split <axis = -1, num_outputs = 4> (sum)\n"
        peep = "P" in call
        if peep:
            text += f"pi, po, pf = Split <axis = 0, num_outputs = 3> (P_{at})\n"
            text += "ci = Mul (pi, c)\ncf = Mul (pf, c)\n"
        text += _plus("bi", "ai", "ci", peep) + _plus("bf", "af", "cf", peep)
        text += f"""
        i = {f} (bi)
        keep = {f} (bf)
        new = {g} (ac)
        kept = Mul (keep, c)
        added = Mul (i, new)
        c_new = Add (kept, added)
        """
        text += "co = Mul (po, c_new)\n" if peep else ""
        return (
            text
            + _plus("bo", "ao", "co", peep)
            + f"o = {f} (bo)\nseen = {h} (c_new)\nh_new = Mul (o, seen)\n"
        )

    return _recurrent(call, ["Sigmoid", "Tanh", "Tanh"], "hc", step)
