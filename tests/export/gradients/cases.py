"""The cases of the gradient rules, one line each, by family."""

from __future__ import annotations

import numpy as np

from .harness import Case, case

BOOLS = np.array([[True, False, True, True], [False, False, True, False]])


def vector(*entries: int) -> np.ndarray:
    return np.array(entries, dtype=np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float64)


N = (2, 3, 7, 5)  # an image of odd size

CONVOLUTION = [
    case("conv", "y = Conv(x, w)", x=(2, 3, 6, 5), w=(4, 3, 3, 2)),
    case("conv padded, with a bias", "y = Conv<pads=[1,1,1,1]>(x, w, b)", x=N, w=(4, 3, 3, 3), b=(4,)),
    case("conv 1x1", "y = Conv(x, w)", x=N, w=(4, 3, 1, 1)),
    case("conv 1x1 stride 2", "y = Conv<strides=[2,2]>(x, w)", x=N, w=(4, 3, 1, 1)),
    case(
        "conv stride 2 leaves a row",
        "y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)",
        x=(1, 4, 6, 6),
        w=(6, 4, 3, 3),
    ),
    case("conv stride 3 and 2", "y = Conv<strides=[3,2]>(x, w)", x=(2, 3, 9, 8), w=(2, 3, 2, 3)),
    case("conv patches", "y = Conv<strides=[4,4]>(x, w)", x=(1, 3, 9, 11), w=(5, 3, 4, 4)),
    case("conv dilated", "y = Conv<dilations=[2,3], pads=[2,3,2,3]>(x, w)", x=N, w=(4, 3, 3, 3)),
    case(
        "conv dilated stride 2",
        "y = Conv<dilations=[2,1], strides=[2,2], pads=[1,0,1,0]>(x, w)",
        x=N,
        w=(4, 3, 3, 2),
    ),
    case("conv in groups", "y = Conv<group=2, pads=[1,1,1,1]>(x, w)", x=(1, 4, 5, 6), w=(6, 2, 3, 3)),
    case("conv in groups stride 2", "y = Conv<group=2, strides=[2,2]>(x, w)", x=(1, 4, 5, 6), w=(6, 2, 3, 3)),
    case("conv depthwise", "y = Conv<group=3, pads=[1,1,1,1]>(x, w)", x=N, w=(3, 1, 3, 3)),
    case(
        "conv depthwise, two filters a channel",
        "y = Conv<group=3, pads=[1,1,1,1]>(x, w)",
        x=N,
        w=(6, 1, 3, 3),
    ),
    case(
        "conv depthwise stride 2",
        "y = Conv<group=3, strides=[2,2], pads=[1,1,1,1]>(x, w)",
        x=N,
        w=(3, 1, 3, 3),
    ),
    case("conv asymmetric pads", "y = Conv<pads=[0,1,2,0]>(x, w)", x=N, w=(4, 3, 3, 3)),
    case(
        "conv asymmetric pads stride 2",
        "y = Conv<strides=[2,2], pads=[0,1,1,2]>(x, w)",
        x=(1, 3, 8, 7),
        w=(4, 3, 3, 3),
    ),
    case("conv pads beyond the kernel", "y = Conv<pads=[3,3,3,3]>(x, w)", x=(1, 2, 4, 4), w=(3, 2, 2, 2)),
    case(
        "conv SAME_UPPER",
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)',
        x=(1, 3, 6, 7),
        w=(4, 3, 3, 3),
    ),
    case(
        "conv SAME_LOWER",
        'y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)',
        x=(1, 3, 6, 7),
        w=(4, 3, 3, 3),
    ),
    case(
        "conv SAME_UPPER stride 1, even kernel",
        'y = Conv<auto_pad="SAME_UPPER">(x, w)',
        x=(1, 3, 6, 7),
        w=(4, 3, 2, 4),
    ),
    case("conv VALID", 'y = Conv<auto_pad="VALID", strides=[2,1]>(x, w)', x=(1, 3, 6, 7), w=(4, 3, 3, 3)),
    case("conv 1-D", "y = Conv<strides=[2], pads=[1,2]>(x, w)", x=(2, 3, 8), w=(4, 3, 3)),
    case(
        "conv 3-D",
        "y = Conv<strides=[1,2,1], pads=[1,0,1,1,0,1]>(x, w)",
        x=(1, 2, 4, 5, 3),
        w=(3, 2, 2, 3, 3),
    ),
    case("conv then relu", "c = Conv<pads=[1,1,1,1]>(x, w, b); y = Relu(c)", x=N, w=(4, 3, 3, 3), b=(4,)),
]

POOLING = [
    case("maxpool tiles", "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", x=(2, 3, 6, 4)),
    case("maxpool leaves a row", "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", x=N),
    case(
        "maxpool 3 stride 2 padded", "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", x=N
    ),
    case("maxpool stride 1", "y = MaxPool<kernel_shape=[3,2], pads=[1,0,1,0]>(x)", x=N),
    case("maxpool dilated", "y = MaxPool<kernel_shape=[2,2], dilations=[2,3]>(x)", x=N),
    case(
        "maxpool ceil_mode", "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", x=(1, 2, 6, 8)
    ),
    case(
        "maxpool asymmetric pads",
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>(x)",
        x=(1, 2, 6, 8),
    ),
    case("maxpool stride above the kernel", "y = MaxPool<kernel_shape=[1,2], strides=[2,3]>(x)", x=N),
    case(
        "maxpool SAME_UPPER",
        'y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x)',
        x=(1, 2, 6, 7),
    ),
    case(
        "maxpool SAME_LOWER",
        'y = MaxPool<kernel_shape=[2,2], strides=[1,1], auto_pad="SAME_LOWER">(x)',
        x=(1, 2, 6, 7),
    ),
    case("maxpool VALID", 'y = MaxPool<kernel_shape=[2,3], strides=[2,2], auto_pad="VALID">(x)', x=N),
    case("maxpool 1-D", "y = MaxPool<kernel_shape=[3], strides=[2], pads=[1,0]>(x)", x=(2, 3, 8)),
    case("maxpool 3-D", "y = MaxPool<kernel_shape=[2,2,2], strides=[2,1,2]>(x)", x=(1, 2, 4, 3, 5)),
    case("averagepool tiles", "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", x=(2, 3, 6, 4)),
    case("averagepool leaves a row", "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", x=N),
    case("averagepool padded", "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", x=N),
    case(
        "averagepool padded, counting",
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(x)",
        x=N,
    ),
    case("averagepool stride 1", "y = AveragePool<kernel_shape=[3,2], pads=[1,0,1,0]>(x)", x=N),
    case(
        "averagepool ceil_mode",
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)",
        x=(1, 2, 6, 8),
    ),
    case(
        "averagepool ceil_mode, counting",
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1,"
        "count_include_pad=1>(x)",
        x=(1, 2, 6, 8),
    ),
    case(
        "averagepool asymmetric pads",
        "y = AveragePool<kernel_shape=[3,2], strides=[2,2], pads=[0,1,2,0]>(x)",
        x=N,
    ),
    case(
        "averagepool SAME_UPPER",
        'y = AveragePool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x)',
        x=(1, 2, 6, 7),
    ),
    case("averagepool dilated", "y = AveragePool<kernel_shape=[2,2], dilations=[2,1]>(x)", x=N, opset=19),
    case("averagepool 1-D", "y = AveragePool<kernel_shape=[3], strides=[2], pads=[1,1]>(x)", x=(2, 3, 8)),
    case("averagepool 3-D", "y = AveragePool<kernel_shape=[2,1,2], strides=[1,2,2]>(x)", x=(1, 2, 4, 3, 5)),
    case("global average pool", "y = GlobalAveragePool(x)", x=N),
    case("global average pool 1-D", "y = GlobalAveragePool(x)", x=(2, 3, 5)),
    case("global max pool", "y = GlobalMaxPool(x)", x=N),
]

POINTWISE = [
    case("add", "y = Add(a, b)", a=(2, 3), b=(2, 3)),
    case("add leading dims", "y = Add(a, b)", a=(2, 3, 4), b=(4,)),
    case("add both sides", "y = Add(a, b)", a=(2, 1, 4), b=(3, 1)),
    case("add a scalar", "y = Add(a, b)", a=(2, 3), b=()),
    case("add to itself", "y = Add(x, x)", x=(2, 3)),
    case("sub", "y = Sub(a, b)", a=(2, 3), b=(1, 3)),
    case("se-block", "y = Mul(a, b)", a=(2, 6, 5, 5), b=(2, 6, 1, 1)),
    case("mul by itself", "y = Mul(x, x)", x=(2, 3)),
    case("mul both sides", "y = Mul(a, b)", a=(3, 1), b=(2, 1, 4)),
    case("mul a constant", "y = Mul(x, c)", x=(2, 3), c=scalar(3)),
    case("div", "y = Div(a, b)", a=(2, 3, 4), b=(3, 1), away_from_zero=("b",)),
    case("div by a scalar", "y = Div(a, b)", a=(2, 3), b=(), away_from_zero=("b",)),
    case("pow 2", "y = Pow(x, p)", x=(2, 3), p=scalar(2)),
    case("pow 1", "y = Pow(x, p)", x=(2, 3), p=scalar(1)),
    case("pow 3 of negatives", "y = Pow(x, p)", x=(2, 3), p=scalar(3)),
    case("pow -0.5", "y = Pow(x, p)", x=(2, 3), p=scalar(-0.5), positive=("x",)),
    case("pow 2 of many", "y = Pow(x, p)", x=(3,), p=np.full((2, 1), 2.0)),
    case("pow of a whole-number exponent", "y = Pow(x, p)", x=(2, 3), p=np.array(3, np.int64)),
    case("pow both", "y = Pow(a, b)", a=(2, 3), b=(3,), positive=("a",)),
    case("sum of three", "y = Sum(a, b, c)", a=(2, 3), b=(3,), c=(2, 1)),
    case("mean of three", "y = Mean(a, b, c)", a=(2, 3), b=(3,), c=(2, 1)),
    case("max of three", "y = Max(a, b, c)", a=(2, 3), b=(3,), c=(2, 1)),
    case("max of one", "y = Max(x)", x=(2, 3)),
    case("min", "y = Min(a, b)", a=(2, 3), b=(2, 1)),
    case("relu6 as max and min", "m = Max(x, z); y = Min(m, s)", x=(4, 5), z=scalar(0), s=scalar(0.6)),
    case("where", "y = Where(c, a, b)", a=(2, 4), b=(1, 4), c=BOOLS),
    case("where masks attention", "y = Where(c, x, f)", x=(2, 4), f=scalar(-1e9), c=BOOLS),
    case("neg", "y = Neg(x)", x=(2, 3)),
    case("identity", "y = Identity(x)", x=(2, 3)),
    case("dropout", "y = Dropout(x)", x=(2, 3)),
    case("dropout with a ratio", "y = Dropout(x, r)", x=(2, 3), r=np.array(0.5)),
    case("cast to and fro", "i = Cast<to=FLOAT>(x); y = Mul(i, i)", x=(2, 3)),
    case("cast there and back", "h = Cast<to=11>(x); s = Mul(h, h); y = Cast<to=FLOAT>(s)", x=(2, 3)),
    case("exp", "y = Exp(x)", x=(2, 3)),
    case("log", "y = Log(x)", x=(2, 3), positive=("x",)),
    case("sqrt", "y = Sqrt(x)", x=(2, 3), positive=("x",)),
    case("reciprocal", "y = Reciprocal(x)", x=(2, 3), away_from_zero=("x",)),
    case("abs", "y = Abs(x)", x=(2, 3), away_from_zero=("x",)),
    case("erf", "y = Erf(x)", x=(2, 3)),
    case("sin", "y = Sin(x)", x=(2, 3)),
    case("cos", "y = Cos(x)", x=(2, 3)),
    case("relu", "y = Relu(x)", x=(4, 5)),
    case("clip", "y = Clip(x, l, h)", x=(4, 5), l=scalar(-0.4), h=scalar(0.7)),
    case("clip without a lower bound", "y = Clip(x, , h)", x=(4, 5), h=scalar(0.7)),
    case("clip without an upper bound", "y = Clip(x, l)", x=(4, 5), l=scalar(-0.4)),
    case("clip without bounds", "y = Clip(x)", x=(4, 5)),
    case("leaky relu", "y = LeakyRelu<alpha=0.2>(x)", x=(4, 5)),
    case("elu", "y = Elu<alpha=1.5>(x)", x=(4, 5)),
    case("sigmoid", "y = Sigmoid(x)", x=(4, 5)),
    case("hard sigmoid", "y = HardSigmoid<alpha=0.3, beta=0.4>(x)", x=(4, 5)),
    case("hard sigmoid by default", "h = Mul(x, three); y = HardSigmoid(h)", x=(4, 5), three=scalar(3)),
    case("hard swish", "h = Mul(x, three); y = HardSwish(h)", x=(4, 5), three=scalar(3)),
    case("tanh", "y = Tanh(x)", x=(4, 5)),
    case("softplus", "y = Softplus(x)", x=(4, 5)),
    case("gelu", "y = Gelu(x)", x=(4, 5), opset=20),
    case("gelu by tanh", 'y = Gelu<approximate="tanh">(x)', x=(4, 5), opset=20),
    case("softmax", "y = Softmax(x)", x=(2, 3, 4)),
    case("softmax of axis 1", "y = Softmax<axis=1>(x)", x=(2, 3, 4)),
    case("log softmax", "y = LogSoftmax<axis=-2>(x)", x=(2, 3, 4)),
]

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
]

SHAPE = [
    case("reshape", "y = Reshape(x, s)", x=(2, 3, 4), s=vector(2, 12)),
    case("reshape with 0 and -1", "y = Reshape(x, s)", x=(2, 3, 4), s=vector(0, -1)),
    case("flatten", "y = Flatten(x)", x=N),
    case("flatten at 2", "y = Flatten<axis=-2>(x)", x=N),
    case("flatten all", "y = Flatten<axis=0>(x)", x=(2, 3)),
    case("squeeze", "y = Squeeze(x, s)", x=(2, 1, 3, 1), s=vector(1, -1)),
    case("squeeze all", "y = Squeeze(x)", x=(2, 1, 3, 1)),
    case("unsqueeze", "y = Unsqueeze(x, s)", x=(2, 3), s=vector(0, -1)),
    case("transpose", "y = Transpose<perm=[2,0,3,1]>(x)", x=N),
    case("transpose by default", "y = Transpose(x)", x=(2, 3, 4)),
    case("expand", "y = Expand(x, s)", x=(3, 1), s=vector(2, 3, 4)),
    case("expand beyond what is asked", "y = Expand(x, s)", x=(2, 3, 4), s=vector(1, 4)),
    case("expand to a run-time shape", "s = Shape(z); y = Expand(x, s)", x=(1, 3), z=(4, 3), feeds=("z",)),
    case("tile", "y = Tile(x, r)", x=(2, 3), r=vector(3, 2)),
    case("tile nothing", "y = Tile(x, r)", x=(2, 3), r=vector(1, 1)),
    case("concat", "y = Concat<axis=1>(a, b, c)", a=(2, 3), b=(2, 1), c=(2, 4)),
    case("concat from the back", "y = Concat<axis=-2>(a, b)", a=(2, 3), b=(4, 3)),
    case("concat with itself", "y = Concat<axis=0>(x, x)", x=(2, 3)),
    case("concat a constant", "y = Concat<axis=1>(c, x)", x=(2, 4, 3), c=(2, 1, 3)),
    case("split", "a, b = Split<axis=1>(x, s); y = Mul(a, b)", x=(2, 6), s=vector(3, 3)),
    case("split, first part", "a, b = Split<axis=1>(x, s); y = Exp(a)", x=(2, 6), s=vector(2, 4)),
    case("split, last part", "a, b, c = Split<axis=-1>(x, s); y = Exp(c)", x=(2, 6), s=vector(2, 3, 1)),
    case(
        "split, two of three",
        "a, b, c = Split<axis=0>(x, s); d = Exp(a); y = Concat<axis=0>(c, d)",
        x=(6, 2),
        s=vector(2, 3, 1),
    ),
    case("split evenly", "a, b, c = Split<axis=1, num_outputs=3>(x); d = Mul(a, b); y = Mul(d, c)", x=(2, 6)),
    case("split unevenly", "a, b = Split<axis=1, num_outputs=2>(x); y = Exp(b)", x=(2, 5)),
    case("slice", "y = Slice(x, s, e)", x=(4, 5), s=vector(1, 0), e=vector(3, 4)),
    case("slice an axis", "y = Slice(x, s, e, a)", x=(4, 5), s=vector(-2), e=vector(2**63 - 1), a=vector(-1)),
    case(
        "slice the class token", "y = Slice(x, s, e, a)", x=(2, 5, 3), s=vector(0), e=vector(1), a=vector(1)
    ),
    case(
        "slice beyond the end", "y = Slice(x, s, e, a)", x=(4, 5), s=vector(-100), e=vector(100), a=vector(0)
    ),
    case(
        "slice step 2",
        "y = Slice(x, s, e, a, t)",
        x=(4, 7),
        s=vector(1),
        e=vector(7),
        a=vector(1),
        t=vector(2),
    ),
    case(
        "slice backwards",
        "y = Slice(x, s, e, a, t)",
        x=(4, 5),
        s=vector(-1),
        e=vector(-(2**63)),
        a=vector(1),
        t=vector(-1),
    ),
    case(
        "slice backwards by 2",
        "y = Slice(x, s, e, a, t)",
        x=(7, 3),
        s=vector(5),
        e=vector(0),
        a=vector(0),
        t=vector(-2),
    ),
    case(
        "slice backwards to the start",
        "y = Slice(x, s, e, a, t)",
        x=(5,),
        s=vector(3),
        e=vector(-100),
        a=vector(0),
        t=vector(-1),
    ),
    case(
        "slice two axes",
        "y = Slice(x, s, e, a, t)",
        x=(2, 6, 7),
        s=vector(1, -2),
        e=vector(5, 0),
        a=vector(1, 2),
        t=vector(2, -2),
    ),
    case(
        "slice two stretches",
        "y = Slice(x, s, e, a)",
        x=(2, 6, 7),
        s=vector(1, 2),
        e=vector(5, 4),
        a=vector(2, 1),
    ),
    case(
        "slice with run-time bounds",
        "y = Slice(x, s, e, a)",
        x=(4, 5),
        s=vector(1),
        e=vector(4),
        a=vector(1),
        feeds=("s", "e"),
    ),
    case(
        "slice with a run-time end",
        "y = Slice(x, s, e, a)",
        x=(4, 5),
        s=vector(-4),
        e=vector(-1),
        a=vector(1),
        feeds=("e",),
    ),
    case(
        "slice to a run-time size",
        "h = Shape<start=1, end=2>(z); s = Sub(h, k); y = Slice(x, s, h, a)",
        x=(4, 5),
        z=(4, 5),
        k=vector(2),
        a=vector(1),
        feeds=("z",),
    ),
    case("pad", "y = Pad(x, p)", x=(2, 3), p=vector(1, 0, 2, 3)),
    case("pad an axis", "y = Pad(x, p, c, a)", x=(2, 3, 4), p=vector(1, 2), c=scalar(3), a=vector(-1)),
    case("pad negative", "y = Pad(x, p)", x=(5, 4), p=vector(-1, 2, -2, -1)),
    case("pad reflect", 'y = Pad<mode="reflect">(x, p)', x=(1, 2, 4, 5), p=vector(0, 0, 1, 2, 0, 0, 2, 1)),
    case("pad edge", 'y = Pad<mode="edge">(x, p)', x=(1, 2, 4, 5), p=vector(0, 0, 1, 6, 0, 0, 2, 1)),
    case("pad wrap", 'y = Pad<mode="wrap">(x, p)', x=(2, 5), p=vector(0, 2, 0, 3), opset=19),
]

INDEXING = [
    case("gather a scalar", "y = Gather<axis=1>(x, i)", x=(2, 5, 3), i=np.array(0, np.int64)),
    case("gather a negative scalar", "y = Gather<axis=1>(x, i)", x=(2, 5, 3), i=np.array(-1, np.int64)),
    case("gather an only entry", "y = Gather<axis=1>(x, i)", x=(2, 1, 3), i=np.array(0, np.int64)),
    case("gather a stretch", "y = Gather<axis=0>(x, i)", x=(6, 2), i=vector(2, 3, 4)),
    case("gather a permutation", "y = Gather<axis=-1>(x, i)", x=(2, 4), i=vector(2, 0, -1, 1)),
    case("gather duplicates", "y = Gather<axis=0>(x, i)", x=(4, 2), i=vector(1, 1, -3, 0)),
    case("gather many duplicates", "y = Gather<axis=1>(x, i)", x=(2, 3, 2), i=vector(1, 1, 1, 1, 1, 1, 2)),
    case("gather a table", "y = Gather<axis=1>(x, i)", x=(2, 5, 3), i=np.array([[0, 2], [4, 2], [-2, 1]])),
    case("gather at run time", "y = Gather<axis=1>(x, i)", x=(2, 5, 3), i=vector(3, 0, -2, 3), feeds=("i",)),
    case(
        "gather a scalar at run time",
        "y = Gather<axis=1>(x, i)",
        x=(2, 5, 3),
        i=np.array(-2, np.int64),
        feeds=("i",),
    ),
    case(
        "gather a table at run time",
        "y = Gather<axis=1>(x, i)",
        x=(2, 5, 3),
        i=np.array([[0, 2], [-1, 2]]),
        feeds=("i",),
    ),
    case("gather int32 at run time", "y = Gather(x, i)", x=(5,), i=np.array([1, 1], np.int32), feeds=("i",)),
    case("gather the row of the maximum", "i = ArgMax<axis=0, keepdims=0>(x); y = Gather(x, i)", x=(5,)),
    case(
        "gather elements", "y = GatherElements<axis=1>(x, i)", x=(3, 4), i=np.array([[0, 0], [1, -1], [3, 2]])
    ),
    case("gathernd", "y = GatherND(x, i)", x=(3, 4), i=np.array([[0, 1], [2, -1], [0, 1]])),
    case("gathernd of slices", "y = GatherND(x, i)", x=(3, 4, 2), i=np.array([[[2], [1]], [[2], [-3]]])),
    case("scatternd", "y = ScatterND(a, i, b)", a=(4, 3), b=(2, 3), i=np.array([[2], [0]])),
    case(
        "scatternd add", 'y = ScatterND<reduction="add">(a, i, b)', a=(4, 3), b=(2, 3), i=np.array([[2], [2]])
    ),
    case("scatternd of cells", "y = ScatterND(a, i, b)", a=(4, 3), b=(2,), i=np.array([[2, 1], [0, 0]])),
]

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
]

#: ONNX's own definition passes through float32, which a difference quotient would notice.
GROUP_NORM = """
    r = Reshape(x, f); m = ReduceMean(r, last); d = Sub(r, m); q = Mul(d, d); v = ReduceMean(q, last);
    ve = Add(v, e); sd = Sqrt(ve); n = Div(d, sd); h = Shape(x);
    u = Reshape(n, h); st = Reshape(s, t); bt = Reshape(b, t);
    us = Mul(u, st); y = Add(us, bt)"""

NORMALIZATION = [
    case(
        "batch norm",
        "y = BatchNormalization<epsilon=0.01>(x, s, b, m, v)",
        x=N,
        s=(3,),
        b=(3,),
        m=(3,),
        v=(3,),
        positive=("v",),
    ),
    case(
        "batch norm of rank 2",
        "y = BatchNormalization(x, s, b, m, v)",
        x=(4, 3),
        s=(3,),
        b=(3,),
        m=(3,),
        v=(3,),
        positive=("v",),
    ),
    case("layer norm", "y = LayerNormalization<epsilon=0.01>(x, s, b)", x=(2, 4, 5), s=(5,), b=(5,)),
    case("layer norm of two axes", "y = LayerNormalization<axis=1>(x, s)", x=(2, 4, 5), s=(4, 5)),
    case("instance norm", "y = InstanceNormalization<epsilon=0.01>(x, s, b)", x=N, s=(3,), b=(3,)),
    case("instance norm 1-D", "y = InstanceNormalization(x, s, b)", x=(2, 3, 5), s=(3,), b=(3,)),
    case(
        "group norm",
        "y = GroupNormalization<num_groups=2, epsilon=0.01>(x, s, b)",
        instead=GROUP_NORM,
        f=vector(0, 2, -1),
        e=scalar(0.01),
        last=vector(2),
        t=vector(6, 1, 1),
        x=(2, 6, 3, 5),
        s=(6,),
        b=(6,),
        opset=21,
    ),
    case(
        "group norm 1-D",
        "y = GroupNormalization<num_groups=3>(x, s, b)",
        instead=GROUP_NORM,
        f=vector(0, 3, -1),
        e=scalar(1e-5),
        last=vector(2),
        t=vector(6, 1),
        x=(2, 6, 5),
        s=(6,),
        b=(6,),
        opset=21,
    ),
    case("rms norm", "y = RMSNormalization<epsilon=0.01>(x, s)", x=(2, 4, 5), s=(5,), opset=23),
    case("rms norm of two axes", "y = RMSNormalization<axis=-2>(x, s)", x=(2, 4, 5), s=(4, 5), opset=23),
]

#: Operators without a rule of their own: the gradient of what ONNX defines them as.
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

CASES: list[Case] = [
    *CONVOLUTION,
    *POOLING,
    *POINTWISE,
    *LINEAR,
    *SHAPE,
    *INDEXING,
    *REDUCTION,
    *NORMALIZATION,
    *EXPANDED,
]
