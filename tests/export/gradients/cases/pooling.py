"""Cases of the rules in ``rules/pooling.py``."""

from __future__ import annotations

import numpy as np

from ._make import N, case, vector

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
    case("lppool", "y = LpPool<kernel_shape=[2,2]>(x)", x=N, opset=18),
    case(
        "lppool of third order", "y = LpPool<kernel_shape=[3,2], strides=[2,1], p=3, pads=[1,0,1,1]>(x)", x=N
    ),
    case("lppool of first order", "y = LpPool<kernel_shape=[2,2], strides=[2,2], p=1>(x)", x=(1, 2, 4, 6)),
    case("lppool dilated", "y = LpPool<kernel_shape=[2,2], dilations=[2,1], ceil_mode=1>(x)", x=N),
    case("global lppool", "y = GlobalLpPool<p=3>(x)", x=N),
]

UNPOOLING = [
    case(
        "maxunpool",
        "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i)",
        x=(1, 2, 2, 2),
        i=np.array([[[[0, 3], [9, 14]], [[17, 18], [28, 27]]]]),
    ),
    case(
        "maxunpool into a shape",
        "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i, s)",
        x=(1, 2, 2, 2),
        i=np.array([[[[0, 3], [9, 14]], [[17, 18], [28, 27]]]]),
        s=vector(1, 2, 4, 4),
    ),
    case(
        "maxunpool, two to one cell",
        "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i, s)",
        x=(1, 1, 2, 2),
        i=np.array([[[[0, 3], [3, 14]]]]),
        s=vector(1, 1, 4, 4),
    ),
]
