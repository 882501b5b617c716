"""Cases of the rules in ``rules/indexing.py``."""

from __future__ import annotations

import numpy as np

from ._make import BOOLS, case, vector

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
    *(
        case(
            f"scatter elements, {how}",
            f'y = ScatterElements<axis=1, reduction="{how}">(x, i, u)',
            x=(2, 5),
            i=np.array([[0, 3, -1], [1, 1, 4] if how != "none" else [1, 2, 4]]),
            u=(2, 3),
            wrt=("x", "u"),
        )
        for how in ("none", "add", "mul", "max", "min")
    ),
    case(
        "scatter elements, products with zeros",
        'v = Mul(u, m); y = ScatterElements<axis=1, reduction="mul">(x, i, v)',
        x=(2, 5),
        i=np.array([[0, 3, 3], [1, 1, 1]]),
        u=(2, 3),
        m=np.array([[0.0, 1, 0], [0, 1, 0]]),
        wrt=("x", "u"),
    ),
    *(
        case(
            f"scatter nd, {how}",
            f'y = ScatterND<reduction="{how}">(x, i, u)',
            x=(4, 3),
            i=np.array([[1], [3], [1]]),
            u=(3, 3),
            wrt=("x", "u"),
        )
        for how in ("mul", "max", "min")
    ),
    *(
        case(
            f"tensor scatter, {name}",
            f"y = TensorScatter{how}(x, u{', i' * ('i' in values)})",
            x=(2, 5, 3),
            **values,
            wrt=("x", "u"),
            opset=24,
        )
        for name, how, values in (
            ("from the start", "", {"u": (2, 3, 3)}),
            ("each its own place", "", {"u": (2, 3, 3), "i": vector(2, 0)}),
            ("in a ring", '<mode="circular">', {"u": (2, 3, 3), "i": vector(3, 4)}),
            ("along the last axis", "<axis=2>", {"u": (2, 5, 2), "i": vector(1, 0)}),
        )
    ),
    case("features of rows", "y = ai.onnx.ml.ArrayFeatureExtractor(x, i)", x=(2, 3, 4), i=vector(2, 0, 2)),
    case(
        "features of a vector", "y = ai.onnx.ml.ArrayFeatureExtractor(x, i)", x=(5,), i=np.array([[1], [3]])
    ),
    case(
        "features named at run time",
        "y = ai.onnx.ml.ArrayFeatureExtractor(x, i)",
        x=(2, 4),
        i=vector(2, 0, 2),
        feeds=("i",),
    ),
    case("gather nd in batches", "y = GatherND<batch_dims=1>(x, i)", x=(2, 3, 4), i=np.array([[1], [2]])),
    case(
        "gather nd in batches of two axes",
        "y = GatherND<batch_dims=2>(x, i)",
        x=(2, 2, 4, 3),
        i=np.array([[[1], [3]], [[0], [2]]]),
    ),
    case("top k", "y, i = TopK<axis=1>(x, k)", x=(2, 6, 3), k=vector(2)),
    case("top k, smallest", "y, i = TopK<largest=0>(x, k)", x=(3, 5), k=vector(3)),
    case("compress", "y = Compress<axis=1>(x, c)", x=(2, 4, 3), c=BOOLS[0]),
    case("compress everything", "y = Compress(x, c)", x=(2, 4), c=BOOLS[0]),
    case("reverse sequence", "y = ReverseSequence(x, l)", x=(4, 3, 2), l=vector(1, 3, 4)),
    case(
        "reverse sequence in rows",
        "y = ReverseSequence<batch_axis=0, time_axis=1>(x, l)",
        x=(3, 4, 2),
        l=vector(4, 2, 1),
    ),
    case("one hot's values", "y = OneHot(i, d, v)", v=(2,), i=np.array([[1, 0], [-1, 2]]), d=np.array(4)),
    case("trilu", "y = Trilu<upper=0>(x, k)", x=(2, 4, 5), k=np.array(1)),
]
