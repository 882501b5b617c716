"""Cases of the rules in ``rules/sampling.py``."""

from __future__ import annotations

import numpy as np

from ..harness import Case
from ._make import case, vector

rng = np.random.default_rng(4)

ROIS = np.array([[0.3, 0.5, 4.2, 3.6], [1.1, 0.2, 2.0, 5.3], [-0.7, 1.4, 3.3, 2.9]])


def grid_sample(mode: str, padding: str, corners: int, volume: bool = False) -> Case:
    x, sizes = ((2, 2, 3, 4, 3), (2, 2, 1, 3, 3)) if volume else ((2, 3, 4, 5), (2, 2, 3, 2))
    # Also outside the image, and never on a cell's centre or edge, where the slope jumps.
    grid = rng.uniform(-1.3, 1.3, sizes)
    return case(
        f"grid sample {mode}, {padding}, {'corners' if corners else 'edges'}{', volume' * volume}",
        f'y = GridSample<mode="{mode}", padding_mode="{padding}", align_corners={corners}>(x, s)',
        x=x,
        s=grid,
        wrt=("x", "s"),
        opset=20,
        tolerance=1e-4,
    )


def deform(name: str, attributes: str, groups: int = 1, of: int = 1, masked: bool = False) -> Case:
    out, cells = (3, 4), 6
    return case(
        f"deformable convolution{name}",
        f"y = DeformConv<kernel_shape=[2,3], {attributes}>(x, w, o{', b, m' * masked})",
        x=(2, 4, 4, 6),
        w=(2, 4 // groups, 2, 3),
        o=rng.uniform(-1.4, 1.4, (2, of * cells * 2, *out)),
        **({"b": (2,), "m": (2, of * cells, *out)} if masked else {}),
        wrt=("x", "w", "o", *("b", "m") * masked),
        opset=19,
        tolerance=1e-4,
    )


SAMPLING = [
    *(
        grid_sample(mode, padding, corners)
        for mode in ("nearest", "linear", "cubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    ),
    grid_sample("linear", "zeros", 0, volume=True),
    grid_sample("linear", "reflection", 1, volume=True),
    grid_sample("nearest", "border", 0, volume=True),
    case(
        "affine grid",
        "y = AffineGrid(t, s)",
        t=(2, 2, 3),
        s=vector(2, 3, 4, 5),
        opset=20,
    ),
    case(
        "affine grid of a volume",
        "y = AffineGrid<align_corners=1>(t, s)",
        t=(2, 3, 4),
        s=vector(2, 3, 2, 3, 4),
        opset=20,
    ),
    *(
        case(
            f"roi align, {name}",
            f"y = RoiAlign<{mode}output_height=2, output_width=3, sampling_ratio=2, "
            "spatial_scale=0.9>(x, r, i)",
            x=(2, 3, 5, 6),
            r=ROIS,
            i=vector(1, 0, 1),
        )
        for name, mode in (
            ("half a pixel off", ""),
            ("as before", 'coordinate_transformation_mode="output_half_pixel", '),
            ("the largest", 'mode="max", '),
        )
    ),
    deform("", "strides=[1,1]"),
    deform(", padded with strides", "strides=[2,2], pads=[1,1,1,2]"),
    deform(", in groups, with a mask", "group=2, offset_group=2", groups=2, of=2, masked=True),
]
