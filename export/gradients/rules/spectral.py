"""Fourier transforms: linear, and each other's adjoints.

Complex numbers lie as pairs of real ones on the last axis. As a map of pairs the transform F has the adjoint
of complex matrices, its conjugate transpose, which is N times the inverse transform; real inputs take the
real part of it. A spectrum of which one half is kept comes back with zeros in place of the other.
"""

from typing import Any

import numpy as np

from ..builder import Builder, Var
from ..registry import Unsupported, vjp
from .indexing import added_along

_Size = int | Var


@vjp("DFT", wrt="input")
def dft_input(
    op: Builder,
    g: Var,
    input: Var,
    dft_length: Var | None,
    *,
    axis: int | None,
    inverse: int,
    onesided: int,
) -> Var:
    axis = (-2 if axis is None else axis) % input.rank
    g = Var(g.value, op, (*input.shape[:axis], None, *input.shape[axis + 1 : -1], None))
    size = op.dim(input, axis)
    length: _Size = 2 * (size - 1) if inverse and onesided else size
    if dft_length is not None:
        known = op.scalar(dft_length)
        length = _scalar(op, dft_length) if known is None else int(known)
    if not inverse:
        found = _adjoint(op, g, length, axis)
    elif not onesided:
        found = _transform(op, g, length, axis) / _real(op, length, g)
    else:
        # All but the first and, of an even length, the last stand for their mirror images, too.
        half = _transform(op, g, length, axis, onesided=1)
        if isinstance(size, int) and isinstance(length, int) and size != length // 2 + 1:
            raise Unsupported(
                f"its spectrum has {size} entries, and dft_length wants {length // 2 + 1}: what ONNX Runtime "
                "makes of that is not what ONNX defines"
            )
        k = op.iota(half, axis)
        mirrored = op.And(k > 0, k + k < op.operand(length, k))
        behind = [*range(1, input.rank - axis)]
        weight = op.Unsqueeze(op.mask(mirrored, g) + 1.0, behind)
        found = Var((half * weight).value, op, half.dims) / _real(op, length, g)
        length = op.dim(half, axis)
    return _parts(op, _resized(op, found, axis, length, size), input)


@vjp("STFT", wrt="signal")
def stft_signal(
    op: Builder,
    g: Var,
    signal: Var,
    frame_step: Var,
    window: Var | None,
    frame_length: Var | None,
) -> Var:
    framed = _of_frames(op, g, signal, window, frame_length)
    if window is not None:
        framed = Var((framed * op.Unsqueeze(window, [1])).value, op, framed.dims)
    flat = op.Reshape(
        framed, op.vector([0, -1, op.dim(signal, 2)]), dims=(signal.shape[0], None, signal.shape[2])
    )
    size = op.dim(signal, 1)
    added = added_along(op, flat, 1, _rows(op, framed, frame_step), size)
    return Var(added.value, op, signal.dims)


@vjp("STFT", wrt="window")
def stft_window(
    op: Builder, g: Var, signal: Var, frame_step: Var, window: Var, frame_length: Var | None
) -> Var:
    framed = _of_frames(op, g, signal, window, frame_length)
    read = op.Gather(signal, _rows(op, framed, frame_step), axis=1)
    frames = op.Reshape(read, op.shape_of(framed), dims=framed.dims)
    return op.sum(Var((framed * frames).value, op, framed.dims), [0, 1, 3], keepdims=False)


def _of_frames(op: Builder, g: Var, signal: Var, window: Var | None, frame_length: Var | None) -> Var:
    """The gradient of the windowed frames, (batch, frames, frame length, 1 or 2)."""
    g = Var(g.value, op, (signal.shape[0], None, None, 2))
    length: _Size = op.dim(signal, 1)
    if window is not None:
        length = op.dim(window, 0)
    elif frame_length is not None:
        known = op.scalar(frame_length)
        length = _scalar(op, frame_length) if known is None else int(known)
    return _parts(op, _adjoint(op, g, length, 2), signal)


def _rows(op: Builder, framed: Var, frame_step: Var) -> Var:
    """Which entry of the signal each entry of the frames is, one after the other: int64."""
    step = op.cast(_scalar(op, frame_step), op.operand([0]).dtype)
    starts = op.Unsqueeze(op.iota(framed, 1) * step, [1])
    return op.Reshape(starts + op.iota(framed, 2), [-1], dims=(None,))


def _transform(op: Builder, x: Var, length: _Size, axis: int, inverse: int = 0, onesided: int = 0) -> Var:
    """DFT, of a tensor that it pads with zeros or cuts to the length; not scaled unless ``inverse``."""
    size = length // 2 + 1 if onesided and isinstance(length, int) else length
    dims = tuple(
        2 if k == x.rank - 1 else (size if isinstance(size, int) else None) if k == axis else d
        for k, d in enumerate(x.shape)
    )
    given: list[Var] = [x, op.const(np.asarray(length, np.int64)) if isinstance(length, int) else length]
    attributes = {"inverse": inverse or None, "onesided": onesided or None}
    if op.opset < 20:
        return op.node("DFT", given, {**attributes, "axis": axis}, dims)
    return op.node("DFT", [*given, op.const(np.asarray(axis, np.int64))], attributes, dims)


def _adjoint(op: Builder, g: Var, length: _Size, axis: int) -> Var:
    """Of the transform, whole or one-sided."""
    return _transform(op, g, length, axis, inverse=1) * _real(op, length, g)


def _resized(op: Builder, x: Var, axis: int, length: Any, size: Any) -> Var:
    """The adjoint of padding with zeros, or cutting, from ``size`` to ``length`` entries."""
    if length is size or (isinstance(length, int) and length == size):
        return x
    ends: list[Any] = [size - length if k == axis else 0 for k in range(x.rank)]
    return op.pad(x, [0] * x.rank, ends)


def _parts(op: Builder, x: Var, input: Var) -> Var:
    """Pairs, or their real parts where the input has these alone."""
    kept = op.dim(input, -1)
    if isinstance(kept, int) and kept == 2:
        return x
    return op.slice(x, [0], op.vector([kept]), [x.rank - 1])


def _real(op: Builder, length: _Size, like: Var) -> Var | float:
    return op.cast(length, like.dtype) if isinstance(length, Var) else float(length)


def _scalar(op: Builder, x: Var) -> Var:
    """A whole number in int64, without axes."""
    plain = x if x.dims == () else op.Reshape(x, np.zeros(0, np.int64), dims=())
    return op.cast(plain, op.operand([0]).dtype)
