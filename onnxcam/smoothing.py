"""Smoothing: the same explanation of changed copies of the input, and their mean.

A smoothing is data: groups of changes. The raw maps of a group's copies are averaged; the heatmaps of the
groups are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .contract import BOX, REGION
from .errors import InputError, nearest
from .kinds import is_finite, is_whole
from .targets import Targets


@dataclass(frozen=True)
class Change:
    """What is done to an input.

    Attributes:
        flip: left and right are exchanged.
        factor: on the values of the model's input.
        sigma: standard deviation of normal noise that is added, as a share of the input's range (its largest
            less its smallest value).
        seed: of the noise.
    """

    flip: bool = False
    factor: float = 1.0
    sigma: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Noise:
    """Copies with normal noise; their raw maps are averaged.

    Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, for any method. Where the file itself
    scales a map, there is no raw one, and the scaled ones are averaged.

    Attributes:
        samples: how many.
        sigma: see :class:`Change`; the paper found 0.1 to 0.2 to look best.
        seed: of the first; the k-th has ``seed + k``.
    """

    samples: int = 8
    sigma: float = 0.15
    seed: int = 0


@dataclass(frozen=True)
class Smoothing:
    """How an explanation is smoothed.

    Attributes:
        groups: see the module.
        eigen: the products of a weighting are projected on their first principal component instead of summed.
    """

    groups: tuple[tuple[Change, ...], ...] = ((Change(),),)
    eigen: bool = False


Smooth: TypeAlias = "str | Noise | Iterable[str | Noise] | None"

#: Test-time augmentation as pytorch-grad-cam has it: both orientations, three strengths.
AUGMENTATIONS = tuple(Change(flip, factor) for flip in (False, True) for factor in (1.0, 0.9, 1.1))


def resolve(smooth: Smooth) -> Smoothing:
    """What ``smooth`` asks for.

    Args:
        smooth: None; "tta", "noise", "eigen", a :class:`Noise`, or several of them: noise then is added to
            each augmented copy.

    Raises:
        InputError: another name, or noise without samples, strength or a seed.
    """
    several = isinstance(smooth, Iterable) and not isinstance(smooth, (str, bytes))
    asked: list[Any] = [] if smooth is None else list(smooth) if several else [smooth]  # type: ignore[arg-type]
    found = Smoothing()
    for one in asked:
        if one == "eigen":
            found = replace(found, eigen=True)
        elif one == "tta":
            found = replace(found, groups=tuple((change,) for change in AUGMENTATIONS))
        elif one != "noise" and not isinstance(one, Noise):
            raise InputError(
                f"No smoothing {one!r}.{nearest(str(one), list(NAMES))} There are: {', '.join(NAMES)}."
            )
    for one in asked:
        if one == "noise" or isinstance(one, Noise):
            noise = one if isinstance(one, Noise) else Noise()
            strong = is_finite(noise.sigma) and noise.sigma > 0
            if not (is_whole(noise.samples, 1) and strong and is_whole(noise.seed, 0)):
                raise InputError(
                    "Noise needs at least one sample, a sigma above 0 and a seed of at least 0, not "
                    f"{noise.samples!r}, {noise.sigma!r} and {noise.seed!r}."
                )
            found = replace(found, groups=tuple(_noisy(group, noise) for group in found.groups))
    return found


NAMES = ("tta", "noise", "eigen")


def _noisy(group: Iterable[Change], noise: Noise) -> tuple[Change, ...]:
    return tuple(
        replace(change, sigma=noise.sigma, seed=noise.seed + k)
        for change in group
        for k in range(noise.samples)
    )


def changed(x: NDArray[Any], change: Change, channels: int) -> NDArray[Any]:
    """A batch of inputs, changed.

    Args:
        x: (N, ...).
        change: what is done.
        channels: which axis counts channels.
    """
    if change.flip:
        x = np.flip(x, columns(x, channels))
    if change.factor != 1:
        x = rounded(x * change.factor, x.dtype)
    if change.sigma:
        x = noisy(x, change.sigma, change.seed)
    return np.ascontiguousarray(x)


def noisy(x: NDArray[Any], sigma: float, seed: int) -> NDArray[Any]:
    """A batch of inputs with :func:`noise_like` added, in their dtype."""
    return rounded(x + noise_like(x, sigma, seed), x.dtype)


def noise_like(x: NDArray[Any], sigma: float, seed: int) -> NDArray[np.float32]:
    """Normal noise of ``sigma`` times each image's range; the same whichever others are in its batch."""
    axes = tuple(range(1, x.ndim))
    wide = x.astype(np.float32, copy=False)
    scale = sigma * (wide.max(axis=axes, keepdims=True) - wide.min(axis=axes, keepdims=True))
    one = np.random.default_rng(seed).standard_normal(x.shape[1:], dtype=np.float32)
    noise: NDArray[np.float32] = scale * one
    return noise


def rounded(x: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As a dtype; integers are rounded, and cut to what they can hold."""
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        x = np.clip(np.rint(x), info.min, info.max)
    return x.astype(dtype, copy=False)


def undone(maps: NDArray[np.float32], change: Change) -> NDArray[np.float32]:
    """Maps of changed inputs, where the unchanged ones have them."""
    return maps[..., ::-1] if change.flip else maps


def asked(targets: Targets, change: Change, width: int) -> Targets:
    """The targets of changed inputs; of boxes and regions the places.

    Args:
        targets: of the unchanged inputs.
        change: what was done.
        width: of the input in pixels.
    """
    if not change.flip or not targets.feeds:
        return targets

    def flipped(name: str, value: NDArray[Any]) -> NDArray[Any]:
        if name == BOX:
            x1, y1, x2, y2 = value
            return np.array([width - x2, y1, width - x1, y2], value.dtype)
        return np.ascontiguousarray(value[..., ::-1]) if name == REGION else value

    feeds = tuple({name: flipped(name, value) for name, value in row.items()} for row in targets.feeds)
    return replace(targets, feeds=feeds)


def columns(x: NDArray[Any], channels: int) -> int:
    """Which axis of a batch counts columns."""
    return x.ndim - 1 if channels != x.ndim - 1 else x.ndim - 2
