"""Convolutions."""

from collections.abc import Sequence
from typing import Any

from ..builder import Builder, Dim, Var, is_static
from ..geometry import Pad, reach
from ..registry import vjp


@vjp("Conv", wrt="X")
def conv_x(
    op: Builder,
    g: Var,
    X: Var,
    W: Var,
    *,
    strides: tuple[int, ...],
    pads: tuple[Pad, ...],
    dilations: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    group: int,
) -> Var:
    rank = len(strides)
    begins, ends = pads[:rank], pads[rank:]
    spans = reach(kernel_shape, dilations)
    static = all(isinstance(p, int) for p in pads)
    back = [s - 1 - p if isinstance(p, int) else -1 for s, p in zip(spans * 2, pads, strict=True)]
    if static and all(s == 1 for s in strides) and min(back) >= 0:
        # With stride 1 the adjoint is a convolution with the mirrored weights; ONNX Runtime folds the
        # mirroring of a constant at load, and its Conv is faster than its ConvTranspose (depthwise: ~10x).
        return op.Conv(g, _mirrored(op, W, group), pads=back, dilations=dilations, group=group, dims=X.dims)
    sizes: tuple[Any, ...] = X.shape[2:]
    if static and begins == ends and is_static(sizes):
        # A stride can leave far-edge rows unread; output_padding gives them their zero gradient.
        unread = [(n + p + p - r) % s for n, p, r, s in zip(sizes, begins, spans, strides, strict=True)]
        return op.ConvTranspose(
            g,
            W,
            strides=strides,
            pads=pads,
            dilations=dilations,
            group=group,
            output_padding=unread,
            dims=X.dims,
        )
    return scatter_windows(op, g, W, X, strides, begins, dilations, spans, group)


def scatter_windows(
    op: Builder,
    g: Var,
    W: Var,
    X: Var,
    strides: Sequence[int],
    begins: Sequence[Pad],
    dilations: Sequence[int],
    spans: Sequence[int],
    group: int = 1,
) -> Var:
    """The adjoint of reading windows from ``X`` padded by ``begins``: each cell of g times W, added up.

    A ConvTranspose without pads, then a crop: CUDA has no kernel for asymmetric pads, and sizes may be
    known only at run time.
    """
    output_padding = [s - 1 for s in strides]
    dims: tuple[Dim, ...] = tuple(
        o * s + r - 1 if isinstance(o, int) else None
        for o, s, r in zip(g.shape[2:], strides, spans, strict=True)
    )
    full = op.ConvTranspose(
        g,
        W,
        strides=strides,
        dilations=dilations,
        group=group,
        output_padding=output_padding,
        dims=(g.shape[0], _times(W.shape[1], group), *dims),
    )
    return crop(op, full, begins, X)


def crop(op: Builder, full: Var, begins: Sequence[Pad], like: Var) -> Var:
    """The part of ``full`` that starts at ``begins`` on the spatial axes and has the size of ``like``."""
    axes = range(2, like.rank)
    wanted = [
        a for a in axes if begins[a - 2] != 0 or full.shape[a] != like.shape[a] or like.shape[a] is None
    ]
    if not wanted:
        return full
    starts = [begins[a - 2] for a in wanted]
    ends = [_plus(begins[a - 2], op.dim(like, a)) for a in wanted]
    cut = op.slice(full, op.vector(starts), op.vector(ends), wanted)
    return Var(cut.value, op, (*full.shape[:2], *like.shape[2:]))


def _times(n: Dim, factor: int) -> Dim:
    return n * factor if isinstance(n, int) else None


def _plus(a: Pad, b: Pad) -> Pad:
    return a if isinstance(b, int) and b == 0 else a + b


def _mirrored(op: Builder, W: Var, group: int) -> Var:
    """Weights (M, C/group, k...) reversed along the kernel, in and out channels exchanged per group."""
    M, per_group, *kernel = W.shape
    axes = [k + 2 for k, size in enumerate(kernel) if size != 1]
    if axes:
        W = op.slice(W, [-1] * len(axes), [-(2**63)] * len(axes), axes, [-1] * len(axes))
    rank = len(kernel)
    if group == 1:
        return op.transpose(W, [1, 0, *range(2, rank + 2)])
    if per_group == 1 and group == M:
        return W  # depthwise, one filter a channel
    assert isinstance(M, int)
    assert isinstance(per_group, int)
    split = op.reshape(W, (group, M // group, per_group, *kernel))
    swapped = op.transpose(split, [0, 2, 1, *range(3, rank + 3)])
    return op.reshape(swapped, (group * per_group, M // group, *kernel))
