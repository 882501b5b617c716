"""Cases of operators without a rule of their own: the gradient of what ONNX defines them as."""

from __future__ import annotations

import numpy as np

from ._make import N, case, scalar, vector

EXPANDED = [
    case("mish", "y = Mish(x)", x=(4, 5)),
    case(
        "celu",
        "y = Celu<alpha=1.5>(x)",
        instead="p = Max(x, z); d = Div(x, a); e = Exp(d); f = Sub(e, o); g = Mul(f, a); n = Min(z, g);"
        "y = Add(p, n)",
        x=(4, 5),
        z=scalar(0),
        a=scalar(1.5),
        o=scalar(1),
    ),
    case("selu", "y = Selu(x)", x=(4, 5)),
    case("softsign", "y = Softsign(x)", x=(4, 5)),
    case("thresholded relu", "y = ThresholdedRelu<alpha=0.3>(x)", x=(4, 5)),
    case("prelu", "y = PRelu(x, s)", x=(2, 3, 4), s=(3, 1)),
    case("swish", "y = Swish<alpha=1.2>(x)", x=(4, 5), opset=24),
    case(
        "mean variance norm",
        "y = MeanVarianceNormalization(x)",
        instead="m = ReduceMean(x, a); d = Sub(x, m); q = Mul(d, d); v = ReduceMean(q, a); s = Sqrt(v);"
        "y = Div(d, s)",
        x=N,
        a=vector(0, 2, 3),
    ),
    case("reduce l1", "y = ReduceL1(x, a)", x=(2, 3, 4), a=vector(1)),
    case("reduce sum of squares", "y = ReduceSumSquare<keepdims=0>(x, a)", x=(2, 3, 4), a=vector(1)),
    case("reduce log sum", "y = ReduceLogSum(x, a)", x=(2, 3, 4), a=vector(1), positive=("x",)),
    case("reduce log sum exp", "y = ReduceLogSumExp(x, a)", x=(2, 3, 4), a=vector(1)),
    case(
        "softmax cross-entropy", "y = SoftmaxCrossEntropyLoss(x, t)", x=(2, 4), t=vector(1, 3), feeds=("t",)
    ),
    case("center crop", "y = CenterCropPad<axes=[1]>(x, s)", x=(2, 7), s=vector(4)),
    case("attention", "y = Attention(q, k, v)", q=(2, 3, 4, 5), k=(2, 3, 6, 5), v=(2, 3, 6, 5), opset=23),
    case("attention, causal", "y = Attention<is_causal=1>(x, x, x)", x=(1, 2, 4, 5), opset=23),
    case("attention, masked", "y = Attention(x, x, x, m)", x=(1, 2, 4, 5), m=(4, 4), opset=23),
    case(
        "attention, three axes",
        "y = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x)",
        x=(2, 4, 6),
        opset=23,
    ),
    case("attention, grouped heads", "y = Attention(q, k, k)", q=(1, 4, 3, 2), k=(1, 2, 5, 2), opset=23),
    case(
        "rotary embedding", "y = RotaryEmbedding(x, c, s)", x=(1, 2, 3, 4), c=(1, 3, 2), s=(1, 3, 2), opset=23
    ),
    case(
        "rotary embedding with positions",
        "y = RotaryEmbedding(x, c, s, p)",
        x=(2, 2, 3, 4),
        c=(6, 2),
        s=(6, 2),
        p=np.array([[0, 1, 2], [3, 4, 5]]),
        opset=23,
    ),
]
