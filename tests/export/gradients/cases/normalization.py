"""Cases of the rules in ``rules/normalization.py``."""

from __future__ import annotations

from ._make import N, case, scalar, vector

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
    case(
        "batch norm, every tensor",
        "y = BatchNormalization<epsilon=0.01>(x, s, b, m, v)",
        x=(2, 3, 4, 2),
        s=(3,),
        b=(3,),
        m=(3,),
        v=(3,),
        positive=("v",),
        wrt=("x", "s", "b", "m", "v"),
    ),
    case(
        "instance norm, every tensor",
        "y = InstanceNormalization(x, s, b)",
        x=(2, 3, 4, 5),
        s=(3,),
        b=(3,),
        wrt=("x", "s", "b"),
    ),
    case(
        "layer norm, every tensor",
        "y = LayerNormalization<axis=2>(x, s, b)",
        x=(2, 3, 4, 5),
        s=(4, 5),
        b=(5,),
        wrt=("x", "s", "b"),
    ),
    case(
        "layer norm, mean and deviation too",
        "n, m, i = LayerNormalization(x, s); h = Mul(n, m); y = Mul(h, i)",
        x=(2, 3, 5),
        s=(5,),
        wrt=("x", "s"),
    ),
    case(
        "layer norm, the mean alone", "n, m, i = LayerNormalization(x, s); y = Mul(m, i)", x=(2, 3, 5), s=(5,)
    ),
    case("rms norm, its scale", "y = RMSNormalization(x, s)", x=(2, 4, 5), s=(5,), opset=23, wrt=("x", "s")),
    case("lrn", "y = LRN<size=3, alpha=0.4, bias=1.5>(x)", x=(2, 7, 3, 4)),
]
