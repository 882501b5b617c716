"""Matrix products, and what else is made of sums of products."""

import string

import numpy as np

from ..builder import Builder, Var
from ..registry import Unsupported, vjp


@vjp("MatMul", wrt="A")
def matmul_a(op: Builder, g: Var, A: Var, B: Var) -> Var:
    if B.rank == 1:  # (..., K) @ (K) -> (...): an outer product
        return op.Unsqueeze(g, [-1], dims=(*g.shape, 1)) * B
    if A.rank == 1:  # (K) @ (..., K, M) -> (..., M)
        return op.sum(op.Unsqueeze(g, [-2], dims=(*g.shape[:-1], 1, g.shape[-1])) * B, [-1], keepdims=False)
    return op.times(g, B, transposed=True)


@vjp("MatMul", wrt="B")
def matmul_b(op: Builder, g: Var, A: Var, B: Var) -> Var:
    if A.rank == 1 and B.rank == 1:
        return g * A
    if B.rank == 1:
        return op.sum(op.Unsqueeze(g, [-1], dims=(*g.shape, 1)) * A, range(A.rank - 1), keepdims=False)
    if A.rank == 1:
        return op.Unsqueeze(A, [1], dims=(*A.shape, 1)) * op.Unsqueeze(
            g, [-2], dims=(*g.shape[:-1], 1, g.shape[-1])
        )
    return op.MatMul(op.swap(A), g)


@vjp("Gemm", wrt="A")
def gemm_a(op: Builder, g: Var, A: Var, B: Var, *, alpha: float, transA: int, transB: int) -> Var:
    out = op.times(g, B, transposed=not transB) * alpha
    return op.swap(out) if transA else out


@vjp("Gemm", wrt="B")
def gemm_b(op: Builder, g: Var, A: Var, *, alpha: float, transA: int, transB: int) -> Var:
    out = op.MatMul(A if transA else op.swap(A), g) * alpha
    return op.swap(out) if transB else out


@vjp("Gemm", wrt="C")
def gemm_c(g: Var, *, beta: float) -> Var:
    return g * beta


@vjp("Einsum", wrt="Inputs")
def einsum_inputs(op: Builder, g: Var, Inputs: tuple[Var, ...], index: int, *, equation: str) -> Var:
    terms, out = _spelled_out(equation, Inputs)
    mine, others = terms[index], [t for k, t in enumerate(terms) if k != index]
    rest = [x for k, x in enumerate(Inputs) if k != index]
    # A label that the term repeats reads a diagonal: apart from it the gradient is zero.
    unique, diagonals = "", []
    for at, label in enumerate(mine):
        fresh = label if label not in unique else _fresh("".join(terms) + out + unique)
        if fresh != label:
            diagonals.append((label + fresh, at))
        unique += fresh
    for pair, at in diagonals:
        others.append(pair)
        rest.append(_diagonal(op, Inputs[index], mine.index(pair[0]), at))
    # Labels that only this term has were summed over: their gradient is the same everywhere.
    kept = [c for c in unique if c in out or any(c in t for t in others)]
    made = op.Einsum(g, *rest, equation=f"{','.join([out, *others])}->{''.join(kept)}")
    if len(kept) == len(unique):
        return Var(made.value, op, Inputs[index].dims)
    axes = [k for k, c in enumerate(unique) if c not in kept]
    return op.expand_like(op.Unsqueeze(made, axes), Inputs[index])


def _spelled_out(equation: str, inputs: tuple[Var, ...]) -> tuple[list[str], str]:
    """The terms and the output with labels for their ellipses, and with the output that is left out."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [
        x.rank - len(t.replace("...", "")) if "..." in t else 0 for t, x in zip(terms, inputs, strict=True)
    ]
    names = ""
    for _ in range(max(hidden)):
        names += _fresh(left + out + names)
    if len({h for h, t in zip(hidden, terms, strict=True) if "..." in t}) > 1:
        raise Unsupported(f"the ellipses of {equation!r} stand for different numbers of axes")
    if not arrow:
        once = sorted(c for c in set(left) - set(".,") if left.count(c) == 1)
        out = "..." * bool(names) + "".join(once)
    return [t.replace("...", names) for t in terms], out.replace("...", names)


def _fresh(used: str) -> str:
    return next(c for c in string.ascii_letters if c not in used)


def _diagonal(op: Builder, x: Var, a: int, b: int) -> Var:
    """1 where the places along two axes are the same, else 0."""
    rows = op.Unsqueeze(op.iota(x, a), [1], dims=(x.shape[a], 1))
    return op.mask(op.Equal(rows, op.iota(x, b)), x)


@vjp("Det", wrt="X")
def det_x(op: Builder, g: Var, X: Var) -> Var:
    # The cofactors, from the determinants of all minors at once: exact for singular matrices too.
    n = X.shape[-1]
    if not isinstance(n, int):
        raise op.shape_unknown(X.value)
    g = op.Unsqueeze(g, [-1, -2])
    if n == 1:
        return Var(op.Expand(g, op.shape_of(X)).value, op, X.dims)
    others = np.asarray([[k for k in range(n) if k != left_out] for left_out in range(n)])
    batch = X.rank - 2
    minors = op.Gather(op.Gather(X, others, axis=batch), others, axis=batch + 2)
    lead = [*range(batch)]
    order = [*lead, batch, batch + 2, batch + 1, batch + 3]
    cofactors = op.Det(op.Transpose(minors, perm=order))
    signs = (-1.0) ** np.add.outer(np.arange(n), np.arange(n))
    return Var((cofactors * op.const(signs.astype(X.dtype.numpy())) * g).value, op, X.dims)
