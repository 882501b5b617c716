"""Reductions: the gradient goes back to every cell that was reduced."""

from ..builder import Builder, Var
from ..registry import vjp


def _axes(data: Var, axes: tuple[int, ...] | None, noop_with_empty_axes: int) -> list[int]:
    if not axes:
        return [] if noop_with_empty_axes else list(range(data.rank))
    return sorted(a % data.rank for a in axes)


def _restored(op: Builder, x: Var, data: Var, axes: list[int], keepdims: int) -> Var:
    """A reduced tensor with its reduced axes back, of size 1."""
    if keepdims or not axes:
        return x
    dims = tuple(1 if k in axes else d for k, d in enumerate(data.shape))
    return op.Unsqueeze(x, axes, dims=dims)


@vjp("ReduceSum", wrt="data")
def reduce_sum_data(
    op: Builder, g: Var, data: Var, *, axes: tuple[int, ...] | None, keepdims: int, noop_with_empty_axes: int
) -> Var:
    over = _axes(data, axes, noop_with_empty_axes)
    return op.expand_like(_restored(op, g, data, over, keepdims), data)


@vjp("ReduceMean", wrt="data")
def reduce_mean_data(
    op: Builder, g: Var, data: Var, *, axes: tuple[int, ...] | None, keepdims: int, noop_with_empty_axes: int
) -> Var:
    over = _axes(data, axes, noop_with_empty_axes)
    return op.expand_like(_restored(op, g / op.count(data, over), data, over, keepdims), data)


@vjp("ReduceMax", wrt="data")
@vjp("ReduceMin", wrt="data")
def reduce_extreme_data(
    op: Builder,
    g: Var,
    data: Var,
    reduced: Var,
    *,
    axes: tuple[int, ...] | None,
    keepdims: int,
    noop_with_empty_axes: int,
) -> Var:
    # Cells that tie share the gradient, as in torch.amax.
    over = _axes(data, axes, noop_with_empty_axes)
    hit = op.mask(op.Equal(data, _restored(op, reduced, data, over, keepdims)), g)
    return _restored(op, g, data, over, keepdims) * hit / op.sum(hit, over)


@vjp("ReduceL2", wrt="data")
def reduce_l2_data(
    op: Builder,
    g: Var,
    data: Var,
    reduced: Var,
    *,
    axes: tuple[int, ...] | None,
    keepdims: int,
    noop_with_empty_axes: int,
) -> Var:
    # At the origin the norm has no gradient; torch takes 0.
    over = _axes(data, axes, noop_with_empty_axes)
    norm = _restored(op, reduced, data, over, keepdims)
    unit = data / op.where(norm > 0, norm, 1.0)
    return _restored(op, g, data, over, keepdims) * unit


@vjp("ReduceProd", wrt="data")
def reduce_prod_data(
    op: Builder,
    g: Var,
    data: Var,
    *,
    axes: tuple[int, ...] | None,
    keepdims: int,
    noop_with_empty_axes: int,
) -> Var:
    over = _axes(data, axes, noop_with_empty_axes)
    zero = op.Equal(data, op.operand(0.0, data), dims=data.dims)
    others = product_of_others(op, data, zero, over)
    return _restored(op, g, data, over, keepdims) * others


def product_of_others(op: Builder, x: Var, zero: Var, axes: list[int]) -> Var:
    """For each cell the product of the others along axes; ``zero`` says which cells are."""
    safe = op.where(zero, 1.0, x)
    whole = op.node("ReduceProd", [safe, axes], {"keepdims": 1}) if axes else safe
    whole = Var(whole.value, op, tuple(1 if k in axes else d for k, d in enumerate(x.shape)))
    is_zero = op.mask(zero, x)
    # Another zero makes it zero; its own does not count.
    elsewhere = op.sum(is_zero, axes) - is_zero
    return op.where(elsewhere > 0.5, op.operand(0.0, x), whole / safe)


@vjp("CumSum", wrt="x")
def cum_sum_x(op: Builder, g: Var, x: Var, axis: Var, *, exclusive: int, reverse: int) -> Var:
    return op.CumSum(g, axis, exclusive=exclusive, reverse=1 - reverse, dims=x.dims)


@vjp("CumProd", wrt="x")
def cum_prod_x(op: Builder, g: Var, x: Var, axis: Var, y: Var, *, exclusive: int, reverse: int) -> Var:
    """Each product that an entry is part of, without that entry.

    Up to the first zero that is the product over the entry; at the first zero itself it is what the products
    are with a one in its place; behind it the first zero remains in all of them.
    """
    forth = {"exclusive": exclusive, "reverse": reverse}
    zero = op.Equal(x, op.operand(0.0, x), dims=x.dims)
    zeros = op.CumSum(op.mask(zero, x), axis, reverse=reverse, dims=x.dims)
    first = op.And(zero, zeros < 1.5, dims=x.dims)
    repaired = op.CumProd(op.where(first, 1.0, x), axis, dims=x.dims, **forth)

    def of_all(products: Var) -> Var:
        return op.CumSum(g * products, axis, exclusive=exclusive, reverse=1 - reverse, dims=x.dims)

    before = of_all(y) / op.where(zero, 1.0, x)
    behind = op.where(zeros > 0.5, op.operand(0.0, x), before)
    return op.where(first, of_all(repaired), behind)


@vjp("LpNormalization", wrt="input")
def lp_normalization_input(op: Builder, g: Var, input: Var, output: Var, *, axis: int, p: int) -> Var:
    # A vector of zeros stays one, and no gradient flows.
    axis %= input.rank
    if p == 1:
        norm, slope = op.sum(op.Abs(input), [axis]), op.Sign(input)
    else:
        norm, slope = op.Sqrt(op.sum(input * input, [axis])), output
    inner = slope * op.sum(g * output, [axis])
    return op.where(norm > 0, (g - inner) / op.where(norm > 0, norm, 1.0), op.operand(0.0, input))
