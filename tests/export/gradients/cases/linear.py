"""Cases of the rules in ``rules/linear.py``."""

from __future__ import annotations

import numpy as np

from ._make import case

LINEAR = [
    case("matmul", "y = MatMul(a, b)", a=(2, 3), b=(3, 4)),
    case("matmul of vectors", "y = MatMul(a, b)", a=(3,), b=(3,)),
    case("matmul by a vector", "y = MatMul(a, b)", a=(2, 4, 3), b=(3,)),
    case("matmul of a vector", "y = MatMul(a, b)", a=(3,), b=(2, 3, 4)),
    case("matmul of a vector and a matrix", "y = MatMul(a, b)", a=(3,), b=(3, 4)),
    case("matmul by one column", "y = MatMul(a, b)", a=(2, 3, 1), b=(1, 4)),
    case("matmul batched", "y = MatMul(a, b)", a=(2, 5, 3, 4), b=(2, 5, 4, 2)),
    case("matmul one matrix for all", "y = MatMul(a, b)", a=(2, 5, 3, 4), b=(4, 2)),
    case("matmul one matrix to many", "y = MatMul(a, b)", a=(3, 4), b=(2, 4, 2)),
    case("matmul broadcast both sides", "y = MatMul(a, b)", a=(2, 1, 3, 4), b=(5, 4, 2)),
    case("gemm", "y = Gemm(a, b, c)", a=(2, 3), b=(3, 4), c=(4,)),
    case("gemm as torch writes it", "y = Gemm<transB=1>(x, w, c)", x=(2, 3), w=(4, 3), c=(4,)),
    case("gemm transA", "y = Gemm<transA=1, alpha=0.5, beta=2.0>(a, b, c)", a=(3, 2), b=(3, 4), c=(2, 1)),
    case("gemm transB", "y = Gemm<transB=1, alpha=3.0>(a, b)", a=(2, 3), b=(4, 3)),
    case("gemm both transposed", "y = Gemm<transA=1, transB=1>(a, b, c)", a=(3, 2), b=(4, 3), c=()),
    case("einsum attention", 'y = Einsum<equation="bhid,bhjd->bhij">(a, b)', a=(2, 3, 4, 2), b=(2, 3, 5, 2)),
    case("einsum sums an axis out", 'y = Einsum<equation="bij,bk->bk">(a, b)', a=(2, 3, 4), b=(2, 5)),
    case("einsum turns", 'y = Einsum<equation="ij -> ji">(x)', x=(2, 3)),
    case("einsum of three", 'y = Einsum<equation="ij,jk,kl->il">(a, b, c)', a=(2, 3), b=(3, 4), c=(4, 2)),
    case(
        "einsum with an ellipsis",
        'y = Einsum<equation="...ij,...jk->...ik">(a, b)',
        a=(2, 3, 4, 5),
        b=(2, 3, 5, 2),
    ),
    case("einsum without an output", 'y = Einsum<equation="bij,bjk">(a, b)', a=(2, 3, 4), b=(2, 4, 5)),
    case("einsum of a diagonal", 'y = Einsum<equation="...ii->...i">(x)', x=(3, 4, 4)),
    case("einsum of a trace", 'y = Einsum<equation="bii,bi->b">(a, b)', a=(2, 4, 4), b=(2, 4)),
    case("determinant", "y = Det(x)", x=(2, 3, 3)),
    case("determinants of small ones", "y = Det(x)", x=(2, 1, 1)),
    case(
        "determinant of a singular matrix",
        "z = Mul(x, m); y = Det(z)",
        x=(3, 3),
        m=np.array([[1.0, 1, 1], [0, 0, 0], [1, 1, 1]]),
    ),
]
