"""Cases of the rules in ``rules/resize.py``."""

from __future__ import annotations

import numpy as np

from ..harness import Case
from ._make import case, vector


def resize(name: str, attributes: str, factors: tuple[float, ...], x: tuple[int, ...] = (2, 3, 5, 4)) -> Case:
    scales = f"f = Constant<value_floats={[float(f) for f in factors]}>()"  # float32 whatever x is
    return case(f"resize {name}", f"{scales}; y = Resize<{attributes}>(x, , f)", x=x)


HALF = "half_pixel"
RESIZE = [
    resize("nearest, doubled", 'mode="nearest"', (1, 1, 2, 2)),
    resize(
        "nearest, asymmetric floor",
        'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
        (1, 1, 3, 2),
    ),
    resize(
        "nearest, asymmetric ceil",
        'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"',
        (1, 1, 2, 2),
    ),
    resize(
        "nearest, asymmetric round",
        'mode="nearest", coordinate_transformation_mode="asymmetric"',
        (1, 1, 3, 2),
    ),
    resize("nearest, not whole", 'mode="nearest"', (1, 1, 1.6, 0.5)),
    resize("nearest, channels too", 'mode="nearest"', (1, 2, 2, 1), (1, 2, 3, 4)),
    resize("linear, doubled", 'mode="linear"', (1, 1, 2, 2)),
    resize(
        "linear, asymmetric", 'mode="linear", coordinate_transformation_mode="asymmetric"', (1, 1, 2, 1.5)
    ),
    resize(
        "linear, pytorch",
        'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"',
        (1, 1, 2, 0.25),
    ),
    resize("linear, antialiased", 'mode="linear", antialias=1', (1, 1, 0.6, 0.5)),
    resize("cubic", 'mode="cubic"', (1, 1, 1.6, 2)),
    resize(
        "cubic, other coefficient", 'mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1', (1, 1, 1.6, 0.75)
    ),
    resize("of one spatial axis", 'mode="linear"', (1, 1, 2), (2, 3, 4)),
    resize("of channels last", 'mode="nearest"', (1, 2, 2, 1), (2, 4, 5, 3)),
    case("resize to sizes", 'y = Resize<mode="linear">(x, , , s)', x=(2, 3, 5, 4), s=vector(2, 3, 7, 6)),
    case(
        "resize to sizes, corners aligned",
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , s)',
        x=(2, 3, 5, 4),
        s=vector(2, 3, 9, 3),
    ),
    case(
        "resize of named axes",
        'y = Resize<mode="linear", axes=[3,2]>(x, , , s)',
        x=(2, 3, 5, 4),
        s=vector(6, 8),
    ),
    case(
        "resize, not larger",
        'y = Resize<mode="linear", axes=[2,3], keep_aspect_ratio_policy="not_larger">(x, , , s)',
        x=(1, 2, 4, 6),
        s=vector(8, 18),
    ),
    *(
        case(
            f"resize {mode}, not smaller, a size rounded up",
            f'y = Resize<mode="{mode}", axes=[2,3], keep_aspect_ratio_policy="not_smaller">(x, , , s)',
            x=(1, 2, 4, 6),
            s=vector(5, 6),
        )
        for mode in ("nearest", "linear", "cubic")
    ),
    case(
        "resize of a crop",
        'y = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize", '
        "extrapolation_value=3.0>(x, r, , s)",
        x=(1, 1, 6, 5),
        r=np.array([0, 0, 0.2, 0.4, 1, 1, 0.8, 1.2]),
        s=vector(1, 1, 3, 4),
    ),
    case(
        "resize by computed sizes",
        "h = Shape<start=2>(z); b = Shape<end=2>(x); s = Concat<axis=0>(b, h); "
        'y = Resize<mode="linear">(x, , , s)',
        x=(2, 3, 5, 4),
        z=(1, 1, 10, 6),
        feeds=("z",),
    ),
]
