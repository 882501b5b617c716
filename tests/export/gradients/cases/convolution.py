"""Cases of the rules in ``rules/convolution.py``."""

from __future__ import annotations

from ._make import N, case, vector

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

#: With respect to weights and biases, which may be computed at run time.
CONVOLUTION_WEIGHTS = [
    case(
        name,
        f"y = Conv<kernel_shape={[*w[2:]]}, {attributes}>(x, w, b)",
        x=x,
        w=w,
        b=(w[0],),
        wrt=("x", "w", "b"),
    )
    for name, attributes, x, w in (
        ("conv weights", "pads=[1,0,1,0]", (2, 3, 6, 5), (4, 3, 3, 2)),
        ("conv weights, stride leaves a row", "strides=[2,3]", (2, 3, 8, 8), (4, 3, 3, 3)),
        ("conv weights, dilated", "dilations=[2,1], pads=[1,2,0,1]", N, (4, 3, 3, 2)),
        ("conv weights in groups", "group=2, strides=[2,1], pads=[1,1,1,1]", (2, 4, 5, 6), (6, 2, 3, 3)),
        ("conv weights, depthwise", "group=3, pads=[1,1,1,1]", N, (6, 1, 3, 3)),
        ("conv weights, SAME_UPPER", 'auto_pad="SAME_UPPER", strides=[2,2]', (1, 3, 6, 7), (4, 3, 3, 3)),
        ("conv weights 1-D", "strides=[2], pads=[1,2]", (2, 3, 8), (4, 3, 3)),
        ("conv weights 3-D", "strides=[1,2,1]", (1, 2, 4, 5, 3), (3, 2, 2, 3, 3)),
    )
]

TRANSPOSED = [
    case(
        "convtranspose with a bias",
        "y = ConvTranspose(x, w, b)",
        x=(2, 3, 4, 5),
        w=(3, 4, 3, 2),
        b=(4,),
        wrt=("b",),
    ),
    *(
        case(
            name,
            f"y = ConvTranspose<kernel_shape={[*w[2:]]}, {attributes}>(x, w)",
            x=x,
            w=w,
            wrt=("x", "w"),
        )
        for name, attributes, x, w in (
            ("convtranspose", "pads=[0,0,0,0]", (2, 3, 4, 5), (3, 4, 3, 2)),
            ("convtranspose doubling", "strides=[2,2], pads=[1,1,1,1]", (2, 3, 4, 5), (3, 2, 4, 4)),
            (
                "convtranspose with output_padding",
                "strides=[2,3], pads=[1,0,1,0], output_padding=[1,2]",
                (1, 3, 4, 3),
                (3, 2, 3, 3),
            ),
            ("convtranspose dilated", "dilations=[2,1], pads=[1,1,2,0]", (1, 3, 5, 4), (3, 2, 2, 3)),
            ("convtranspose in groups", "group=2, strides=[2,1]", (2, 4, 3, 4), (4, 3, 2, 3)),
            ("convtranspose 1-D", "strides=[3]", (2, 3, 4), (3, 2, 2)),
            ("convtranspose 3-D", "strides=[1,2,1], pads=[0,1,0,0,1,0]", (1, 2, 2, 3, 3), (2, 2, 2, 3, 2)),
        )
    ),
    case("col2im", "y = Col2Im(x, i, k)", x=(2, 18, 20), i=vector(6, 7), k=vector(3, 3)),
    case(
        "col2im with strides",
        "y = Col2Im<strides=[2,1], dilations=[1,2], pads=[1,0,0,1]>(x, i, k)",
        x=(1, 8, 12),
        i=vector(5, 5),
        k=vector(2, 2),
    ),
    case("col2im 3-D", "y = Col2Im(x, i, k)", x=(1, 8, 8), i=vector(3, 3, 3), k=vector(2, 2, 2)),
]
