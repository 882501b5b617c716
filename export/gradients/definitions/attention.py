"""What ONNX Runtime's attention operators compute, in the forms of vision models: no past, no cache."""

from .registry import MICROSOFT, Call, NoDefinition, define


def _refuse(call: Call, *names: str) -> None:
    for name in names:
        if name in call:
            raise NoDefinition(f"it has the input {name}")


def _heads(call: Call, name: str, x: str) -> str:
    """Lines: (N, L, heads * D) as (N, heads, L, D)."""
    return (
        f"{name}_split = Reshape ({x}, {call.ints(0, 0, call.attribute('num_heads'), -1)})\n"
        f"{name} = Transpose <perm = [0, 2, 1, 3]> ({name}_split)\n"
    )


def _attend(call: Call, head_size: str, mask: str) -> str:
    """Lines: softmax(q k' / sqrt(D) + what is given) v, heads joined to ``output``.

    Args:
        call: the node.
        head_size: a line that makes ``root``, the square root of D, where no scale is given.
        mask: the input that hides keys, where it is given.
    """
    scale = call.attribute("scale", 0.0)
    text = "turned = Transpose <perm = [0, 1, 3, 2]> (k)\nproduct = MatMul (q, turned)\n"
    if scale:
        text += f"scores = Mul (product, {call.number(scale)})\n"
    else:
        text += head_size + "scores = Div (product, root)\n"
    last = "scores"
    if mask in call:
        text += _hidden(call, mask)
        text += f"masked = Add ({last}, hidden)\n"
        last = "masked"
    if "attention_bias" in call:
        text += f"biased = Add ({last}, attention_bias)\n"
        last = "biased"
    if call.attribute("unidirectional", 0):
        text += f"""
        all = Equal ({last}, {last})
        seen = Trilu <upper = 0> (all)
        causal = Where (seen, {last}, {call.number(call.attribute("mask_filter_value", -10000.0))})
        """
        last = "causal"
    return (
        text
        + f"""
    shares = Softmax <axis = -1> ({last})
    mixed = MatMul (shares, v)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    output = Reshape (back, {call.ints(0, 0, -1)})
    """
    )


def _hidden(call: Call, mask: str) -> str:
    """Lines: a mask of ones and zeros as what is added to the scores."""
    rank = call.rank(mask)
    if rank not in (2, 3):
        raise NoDefinition(f"its {mask} has {rank} axes")
    axes = call.ints(1, 2) if rank == 2 else call.ints(1)
    return f"""
    kept = Cast <to = {call.dtype.value}> ({mask})
    kept_wide = Unsqueeze (kept, {axes})
    dropped = Sub ({call.number(1.0)}, kept_wide)
    hidden = Mul (dropped, {call.number(call.attribute("mask_filter_value", -10000.0))})
    """


def _root_of_head_size(call: Call) -> str:
    return f"""
    size = Shape <start = -1> (q)
    size_typed = Cast <to = {call.dtype.value}> (size)
    root = Sqrt (size_typed)
    """


@define(
    "Attention",
    "input, weights, bias, mask_index, past, attention_bias, past_sequence_length => output, present",
    domain=MICROSOFT,
)
def attention(call: Call) -> str:
    _refuse(call, "past", "past_sequence_length")
    if call.attribute("do_rotary", 0) or call.wants(1):
        raise NoDefinition("it turns positions or gives out its present state")
    text = "product_all = MatMul (input, weights)\n"
    joined = "product_all"
    if "bias" in call:
        text += "joined = Add (product_all, bias)\n"
        joined = "joined"
    sizes = call.attribute("qkv_hidden_sizes")
    if sizes:
        text += f"q_flat, k_flat, v_flat = Split <axis = -1> ({joined}, {call.ints(*sizes)})\n"
    else:
        text += f"q_flat, k_flat, v_flat = Split <axis = -1, num_outputs = 3> ({joined})\n"
    text += _heads(call, "q", "q_flat") + _heads(call, "k", "k_flat") + _heads(call, "v", "v_flat")
    return text + _attend(call, _root_of_head_size(call), "mask_index")


@define(
    "MultiHeadAttention",
    "query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value, past_sequence_length, "
    "cache_indirection => output, present_key, present_value, qk",
    domain=MICROSOFT,
)
def multi_head_attention(call: Call) -> str:
    _refuse(call, "past_key", "past_value", "past_sequence_length", "cache_indirection")
    if "key" not in call or "value" not in call or any(call.wants(k) for k in (1, 2, 3)):
        raise NoDefinition("its key and value are packed into the query, or it gives out its state")
    text, flat = "", {"q": "query", "k": "key", "v": "value"}
    if "bias" in call:
        # The widths of query and key are equal; the value takes what is left.
        width = call.value("query").shape
        if width is None or not isinstance(width[-1], int):
            raise NoDefinition("the width of its query is not known")
        n = width[-1]
        for x, start, end in (("q", 0, n), ("k", n, 2 * n), ("v", 2 * n, 2**62)):
            text += f"bias_{x} = Slice (bias, {call.ints(start)}, {call.ints(end)})\n"
            text += f"{x}_biased = Add ({flat[x]}, bias_{x})\n"
            flat[x] = f"{x}_biased"
    for x, source in flat.items():
        rank = call.rank({"q": "query", "k": "key", "v": "value"}[x])
        if rank == 4 and x != "q" and "bias" not in call:
            text += f"{x} = Identity ({source})\n"
        elif rank == 3:
            text += _heads(call, x, source)
        else:
            raise NoDefinition("its inputs are packed")
    return text + _attend(call, _root_of_head_size(call), "key_padding_mask")
