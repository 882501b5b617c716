"""Cases of the rules in ``rules/spectral.py``."""

from __future__ import annotations

import numpy as np

from ..harness import Case
from ._make import case


def dft(
    name: str, attributes: str, x: tuple[int, ...], length: int | None = None, axis: int = 1
) -> list[Case]:
    """At opset 18, where the axis is an attribute, and at 20, where it is an input."""
    more = {} if length is None else {"l": np.array(length)}
    before = f"<{', '.join(a for a in (attributes, f'axis={axis}') if a)}>"
    given = "l" * bool(more)
    return [
        case(f"{name}, before opset 20", f"y = DFT{before}(x, {given})", x=x, **more),
        case(
            name,
            f"y = DFT{f'<{attributes}>' * bool(attributes)}(x, {given}, a)",
            x=x,
            a=np.array(axis),
            **more,
            opset=20,
        ),
    ]


REAL, PAIRS = (2, 6, 3, 1), (2, 5, 3, 2)
ONE, BACK, BOTH = "onesided=1", "inverse=1", "inverse=1, onesided=1"
WINDOW = np.hanning(7)[:-1]

SPECTRAL = [
    *dft("transform of real numbers", "", REAL),
    *dft("transform of pairs", "", PAIRS),
    *dft("transform of the last but one", "", PAIRS, axis=-2),
    *dft("transform, padded", "", REAL, length=8),
    *dft("transform, cut", "", PAIRS, length=3),
    *dft("one-sided transform", ONE, REAL),
    *dft("one-sided transform, odd", ONE, (2, 5, 3, 1)),
    *dft("one-sided transform, padded", ONE, REAL, length=9),
    *dft("one-sided transform, cut", ONE, REAL, length=4),
    *dft("inverse transform", BACK, PAIRS),
    *dft("inverse transform, padded", BACK, PAIRS, length=7),
    *dft("inverse transform of real numbers", BACK, REAL, length=4),
    *dft("real inverse transform", BOTH, PAIRS),
    *dft("real inverse transform, odd", BOTH, PAIRS, length=9),
    case("transform along the default axis", "y = DFT(x)", x=PAIRS, opset=20),
    case("transform of a computed length", "y = DFT<axis=1>(x, l)", x=REAL, l=np.array(8), feeds=("l",)),
    case(
        "real inverse transform of a computed length",
        f"y = DFT<{BOTH}, axis=1>(x, l)",
        x=PAIRS,
        l=np.array(9),
        feeds=("l",),
    ),
    case(
        "short transforms",
        "y = STFT<onesided=1>(x, s, w)",
        x=(2, 20, 1),
        s=np.array(3),
        w=WINDOW,
        wrt=("x", "w"),
    ),
    case("short transforms, whole", "y = STFT<onesided=0>(x, s, w)", x=(2, 17, 1), s=np.array(4), w=WINDOW),
    case(
        "short transforms without a window",
        "y = STFT<onesided=1>(x, s, , l)",
        x=(2, 18, 1),
        s=np.array(2),
        l=np.array(5),
    ),
    case(
        "short transforms of pairs",
        "y = STFT<onesided=0>(x, s, w, l)",
        x=(2, 15, 2),
        s=np.array(5),
        w=WINDOW,
        l=np.array(6),
        wrt=("x", "w"),
    ),
    case(
        "short transforms of a computed length",
        "y = STFT<onesided=1>(x, s, , l)",
        x=(2, 18, 1),
        s=np.array(2),
        l=np.array(5),
        feeds=("s", "l"),
    ),
]
