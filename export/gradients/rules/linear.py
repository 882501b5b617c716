"""Matrix products."""

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
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    mine, others = terms[index], [t for k, t in enumerate(terms) if k != index]
    if not arrow or "." in equation or any(len(set(t)) < len(t) for t in terms):
        raise Unsupported(
            f"the equation {equation!r} repeats a label in a term, has an ellipsis or no output"
        )
    # Labels that only this term has were summed over: their gradient is the same everywhere.
    kept = [c for c in mine if c in out or any(c in t for t in others)]
    rest = [x for k, x in enumerate(Inputs) if k != index]
    made = op.Einsum(g, *rest, equation=f"{','.join([out, *others])}->{''.join(kept)}")
    if len(kept) == len(mine):
        return Var(made.value, op, Inputs[index].dims)
    axes = [k for k, c in enumerate(mine) if c not in kept]
    return op.expand_like(op.Unsqueeze(made, axes), Inputs[index])
