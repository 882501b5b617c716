"""Cases of the rules in ``rules/reduction.py``."""

from __future__ import annotations

import numpy as np

from ._make import N, case, vector

#: Columns with none, one and two zeros, at the ends and between.
SOME_ZEROS = np.ones((2, 5, 3))
SOME_ZEROS[0, [0, 2, 4], 0] = SOME_ZEROS[0, 2, 1] = SOME_ZEROS[1, 0, 0] = SOME_ZEROS[1, 4, 1] = 0
SOME_ZEROS[1, 1:3, 2] = 0

REDUCTION = [
    case("reduce mean as pooling", "y = ReduceMean<keepdims=1>(x, a)", x=N, a=vector(2, 3)),
    case("reduce mean dropping axes", "y = ReduceMean<keepdims=0>(x, a)", x=N, a=vector(-1, -2)),
    case("reduce mean of all", "y = ReduceMean<keepdims=0>(x)", x=N),
    case("reduce mean as noop", "y = ReduceMean<noop_with_empty_axes=1>(x)", x=(2, 3)),
    case(
        "reduce mean as noop, empty axes",
        "y = ReduceMean<noop_with_empty_axes=1>(x, a)",
        x=(2, 3),
        a=vector(),
    ),
    case("reduce sum", "y = ReduceSum<keepdims=0>(x, a)", x=(2, 3, 4), a=vector(1)),
    case("reduce sum of all", "y = ReduceSum(x)", x=(2, 3, 4)),
    case("reduce sum as noop", "y = ReduceSum<noop_with_empty_axes=1, keepdims=0>(x)", x=(2, 3)),
    case("reduce max", "y = ReduceMax<keepdims=0>(x, a)", x=(2, 3, 4), a=vector(0, -1)),
    case("reduce min", "y = ReduceMin(x, a)", x=(2, 3, 4), a=vector(1)),
    case("reduce l2", "y = ReduceL2<keepdims=1>(x, a)", x=(2, 3, 4), a=vector(-1)),
    case("reduce l2 dropping axes", "y = ReduceL2<keepdims=0>(x, a)", x=(2, 3, 4), a=vector(0, 2)),
    case("reduce prod", "y = ReduceProd(x, a)", x=(2, 3, 4), a=vector(1)),
    case("reduce prod of everything", "y = ReduceProd<keepdims=0>(x)", x=(2, 3)),
    case(
        "reduce prod with zeros",
        "z = Mul(x, m); y = ReduceProd(z, a)",
        x=(3, 4),
        m=np.array([[1.0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]),
        a=vector(1),
    ),
    *(
        case(
            f"cumsum{', exclusive' * exclusive}{', reversed' * reverse}",
            f"y = CumSum<exclusive={exclusive}, reverse={reverse}>(x, a)",
            x=(2, 5, 3),
            a=np.array(1),
        )
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    *(
        case(
            f"cumprod{', exclusive' * exclusive}{', reversed' * reverse}{zeros}",
            f"z = Mul(x, m); y = CumProd<exclusive={exclusive}, reverse={reverse}>(z, a)",
            x=(2, 5, 3),
            m=mask,
            a=np.array(1),
            opset=26,
        )
        for zeros, mask in (("", 1.0), (" with zeros", SOME_ZEROS))
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    case("lp normalization", "y = LpNormalization<axis=1>(x)", x=(2, 5, 3)),
    case(
        "lp normalization of first order", "y = LpNormalization<p=1>(x)", x=(2, 5, 3), away_from_zero=("x",)
    ),
]

#: ONNX's own definition passes through float32, which a difference quotient would notice.
