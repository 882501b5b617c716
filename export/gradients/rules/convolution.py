"""Convolutions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

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


@vjp("Conv", wrt="W")
def conv_w(
    op: Builder,
    g: Var,
    X: Var,
    W: Var,
    *,
    strides: tuple[int, ...],
    pads: tuple[Pad, ...],
    dilations: tuple[int, ...],
    group: int,
) -> Var:
    return _weights(op, X, g, W, strides, pads, dilations, group)


@vjp("Conv", wrt="B")
@vjp("ConvTranspose", wrt="B")
@vjp("DeformConv", wrt="B")
def conv_b(op: Builder, g: Var, X: Var) -> Var:
    over = [0, *range(2, X.rank)]
    return op.ReduceSum(g, over, keepdims=0, dims=(None,))


@vjp("ConvTranspose", wrt="X")
def conv_transpose_x(
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
    # The transposed convolution is the adjoint of a convolution with the same weights: this one.
    g, around = _reached(op, g, X, strides, pads, reach(kernel_shape, dilations))
    return op.Conv(g, W, strides=strides, pads=around, dilations=dilations, group=group, dims=X.dims)


@vjp("ConvTranspose", wrt="W")
def conv_transpose_w(
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
    g, around = _reached(op, g, X, strides, pads, reach(kernel_shape, dilations))
    return _weights(op, g, X, W, strides, around, dilations, group)


def _reached(
    op: Builder, g: Var, X: Var, strides: Sequence[int], pads: Sequence[Pad], spans: Sequence[int]
) -> tuple[Var, list[int]]:
    """The part of a transposed convolution's gradient that its windows reach, and the pads around it.

    An output_shape can lie beyond the windows (negative pads), and output_padding adds cells behind them.
    """
    rank = len(strides)
    if g.dims is None:
        g = Var(g.value, op, (X.shape[0], *[None] * (rank + 1)))
    known = [p for p in pads if isinstance(p, int)]
    assert len(known) == 2 * rank
    begins, ends = [max(p, 0) for p in known[:rank]], [max(p, 0) for p in known[rank:]]
    for k, (stride, span) in enumerate(zip(strides, spans, strict=True)):
        n, m = X.shape[k + 2], g.shape[k + 2]
        before = max(-known[k], 0)
        if isinstance(n, int) and isinstance(m, int):
            reached = (n - 1) * stride + span - begins[k]
            stop = min(m, before + reached)
            ends[k] = reached - (stop - before)
            if before or stop < m:
                g = op.slice(g, [before], [stop], [k + 2])
        elif before or known[rank + k] < 0:
            raise op.shape_unknown(X.value)
    return g, [*begins, *ends]


def _weights(
    op: Builder,
    image: Var,
    g: Var,
    W: Var,
    strides: Sequence[int],
    pads: Sequence[Pad],
    dilations: Sequence[int],
    group: int,
) -> Var:
    """How much each weight (M, C/group, k...) has part in ``g`` (N, M, ...) through ``image`` (N, C, ...).

    The images' windows at the weight's place, times g: a convolution in which batch and channels have
    changed places, and strides and dilations.
    """
    rank = len(strides)
    g = g if g.dims is not None else Var(g.value, op, (None,) * (rank + 2))
    if not all(isinstance(p, int) for p in pads):
        begins, ends = [0, 0, *pads[:rank]], [0, 0, *pads[rank:]]
        image, pads = op.pad(image, begins, ends), (0,) * (2 * rank)
    per_group = W.shape[1]
    n, inside = image.shape[0], [op.dim(image, k) for k in range(2, image.rank)]
    spatial = image.shape[2:]
    if group > 1:
        if not isinstance(per_group, int):
            raise op.shape_unknown(W.value)
        # (N, group * C, ...) -> (C, group * N, ...)
        split = op.vector([0, group, per_group, *inside])
        apart = op.Reshape(image, split, dims=(n, group, per_group, *spatial))
        turned = op.transpose(apart, [2, 1, 0, *range(3, rank + 3)])
        turned = op.Reshape(turned, op.vector([per_group, -1, *inside]), dims=(per_group, None, *spatial))
    else:
        turned = op.transpose(image, [1, 0, *range(2, rank + 2)])
    kernel = op.transpose(g, [1, 0, *range(2, rank + 2)])
    made = op.Conv(turned, kernel, strides=dilations, pads=pads, dilations=strides, group=group)
    made = Var(made.value, op, (W.shape[1], W.shape[0], *[None] * rank))
    made = op.transpose(made, [1, 0, *range(2, rank + 2)])
    # A stride can leave room for windows that are not there.
    return crop(op, made, [0] * rank, W)


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
    sizes = [op.dim(W, k) for k in range(1, W.rank)]
    count = M // group if isinstance(M, int) else None
    split = op.Reshape(W, op.vector([group, -1, *sizes]), dims=(group, count, per_group, *kernel))
    swapped = op.transpose(split, [0, 2, 1, *range(3, rank + 3)])
    joined = group * per_group if isinstance(per_group, int) else None
    behind = [op.dim(swapped, k) for k in range(2, rank + 3)]
    return op.Reshape(swapped, op.vector([-1, *behind]), dims=(joined, count, *kernel))


@vjp("Col2Im", wrt="input")
def col2im_input(
    op: Builder,
    g: Var,
    input: Var,
    *,
    image_shape: tuple[int, ...],
    block_shape: tuple[int, ...],
    dilations: tuple[int, ...] | None,
    pads: tuple[int, ...] | None,
    strides: tuple[int, ...] | None,
) -> Var:
    """Adding windows up is undone by reading them: along each axis, the cells of every window."""
    rank = len(image_shape)
    pads, strides, dilations = pads or (0,) * (2 * rank), strides or (1,) * rank, dilations or (1,) * rank
    x = op.pad(
        g if g.dims else Var(g.value, op, (None,) * (rank + 2)), (0, 0, *pads[:rank]), (0, 0, *pads[rank:])
    )
    for k, (n, size, stride, dilation) in enumerate(
        zip(image_shape, block_shape, strides, dilations, strict=True)
    ):
        windows = (n + pads[k] + pads[rank + k] - (size - 1) * dilation - 1) // stride + 1
        cells = np.arange(size)[:, None] * dilation + np.arange(windows)[None] * stride
        x = op.Gather(
            x, cells, axis=2 + 2 * k, dims=(*x.shape[: 2 + 2 * k], *cells.shape, *x.shape[3 + 2 * k :])
        )
    order = [0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2)]
    return op.reshape_like(op.transpose(x, order), input)
