"""Score-CAM and its relatives: each channel weighted by the score of the image behind it as a mask.

They differ in how a channel becomes a mask, and in what becomes of its score. A channel that is constant says
nothing of where to look: its mask is zero everywhere, and all such channels share one run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcam import postprocess
from onnxcam.errors import MethodError
from onnxcam.perturbation import Scorer, min_max, on_host
from onnxcam.softmax import softmax

from . import Array, method


@method(
    "scorecam",
    needs=("activations", "masked"),
    source="Wang et al., Score-CAM, CVPR Workshops 2020 (the authors' code)",
    formula="M = Σ_k w_k A^k, w_k = the class's probability behind the mask of A^k",
)
def scorecam(activations: Array, masked: Scorer, *, top: int | None = None) -> Array:
    """Each channel weighted by the probability of the class where only that channel's place is seen.

    Wang, Wang, Du, Yang, Zhang, Ding, Mardziel and Hu, "Score-CAM: Score-Weighted Visual Explanations for
    Convolutional Neural Networks", CVPR Workshops 2020, as the authors' code computes it: the mask is the
    channel enlarged to the image, then min-maxed; w_k is the softmax probability of the class; constant
    channels are skipped. (The paper's eq. 5 and algorithm 1 take a softmax over the channels, as the two
    libraries do; their variants are ``scorecam:pgc`` and ``scorecam:torchcam``.)

    Args:
        activations: A, (C, h, w), of one image.
        masked: scores of the image behind masks.
        top: only so many channels, those with the largest standard deviation over the grid; None: all that
            are not constant.

    Returns:
        M, (T, h, w), one for each target.
    """
    chosen = _telling(activations, top)
    scores = masked.masked(lambda part: activations[chosen[part]], len(chosen), stretch=0.0, of="probability")
    return _weighted(scores, activations[chosen])


@method(
    "scorecam:pgc",
    needs=("activations", "masked"),
    source="pytorch-grad-cam, ScoreCAM (Gildenblat et al., 2021)",
    formula="M = Σ_k w_k A^k, w = the softmax over all channels of the scores behind their masks",
)
def scorecam_pgc(activations: Array, masked: Scorer, *, top: int | None = None) -> Array:
    """pytorch-grad-cam's Score-CAM: corners aligned, min-max at the image's size, softmax over channels.

    Args:
        activations: A, (C, h, w), of one image.
        masked: scores of the image behind masks.
        top: see :func:`scorecam`; the softmax is then over these.

    Returns:
        M, (T, h, w), one for each target.
    """

    def masks(channels: Array) -> Array:
        return min_max(postprocess.resize(channels, masked.sides, corners=True), 1e-8)

    return _softmaxed(activations, masked, masks, top)


@method(
    "scorecam:torchcam",
    needs=("activations", "masked"),
    source="torch-cam, ScoreCAM (Fernandez, 2020)",
    formula="M = Σ_k w_k A^k, w = the softmax over all channels of the scores behind their masks",
)
def scorecam_torchcam(activations: Array, masked: Scorer, *, top: int | None = None) -> Array:
    """torch-cam's Score-CAM: min-max on the layer's grid, then enlarged; softmax over channels.

    Args:
        activations: A, (C, h, w), of one image.
        masked: scores of the image behind masks.
        top: see :func:`scorecam`; the softmax is then over these.

    Returns:
        M, (T, h, w), one for each target.
    """
    return _softmaxed(activations, masked, lambda channels: min_max(channels, 1e-8), top)


@method(
    "sscam",
    needs=("activations", "masked"),
    source="Wang et al., SS-CAM: Smoothed Score-CAM, arXiv:2006.14255, 2020",
    formula="M = Σ_k w_k A^k, w = softmax over the channels of the mean score behind noisy masks",
)
def sscam(
    activations: Array,
    masked: Scorer,
    *,
    samples: int = 35,
    sigma: float = 2.0,
    on: str = "mask",
    seed: int = 0,
    top: int | None = None,
) -> Array:
    """Score-CAM with the mean score of noisy copies.

    Wang, Naidu, Michael and Kundu, "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization",
    arXiv:2006.14255, 2020, with its numbers: normal noise on the normalised mask (the paper's first kind), or
    on the masked input (its second). The softmax over channels is the paper's and torch-cam's ``SSCAM``.

    Args:
        activations: A, (C, h, w), of one image.
        masked: scores of the image behind masks.
        samples: noisy copies of each channel.
        sigma: standard deviation of the noise, in units of the mask or of the model's input.
        on: ``mask`` or ``input``.
        seed: of the noise.
        top: see :func:`scorecam`.

    Returns:
        M, (T, h, w), one for each target.
    """
    if on not in ("mask", "input"):
        raise MethodError(f"The noise of sscam is on 'mask' or on 'input', not on {on!r}.")
    if samples < 1 or sigma < 0:
        raise MethodError(
            f"sscam needs at least one sample and a sigma of at least 0, not {samples} and {sigma}."
        )
    chosen = _telling(activations, top, constant=True)
    channels = min_max(activations[chosen], 1e-8)
    count = len(chosen) * samples

    def masks(part: slice) -> Array:
        return postprocess.resize(channels[np.arange(part.start, part.stop) // samples], masked.sides)

    def noise(part: slice, shape: tuple[int, ...]) -> Array:
        draws = [
            np.random.default_rng((seed, k)).standard_normal(shape, dtype=np.float32)
            for k in range(part.start, part.stop)
        ]
        return np.float32(sigma) * np.stack(draws)

    if on == "mask":
        scores = masked.masked(lambda part: masks(part) + noise(part, masked.sides), count)
    else:

        def inputs(part: slice) -> Array:
            return on_host(masked.behind(masks(part))) + noise(part, masked.tensor.shape)

        scores = masked.inputs(inputs, count)
    mean = scores.reshape(len(chosen), samples, -1).mean(axis=1)
    return _weighted(softmax(mean, axis=0), activations[chosen])


@method(
    "iscam",
    needs=("activations", "masked"),
    source="Naidu et al., IS-CAM: Integrated Score-CAM, arXiv:2010.03023, 2020",
    formula="M = Σ_k w_k A^k, w = softmax over k of the mean score behind c_i masks, c_i = Σ_{j<i} j/N",
)
def iscam(
    activations: Array, masked: Scorer, *, intervals: int = 10, first: int = 0, top: int | None = None
) -> Array:
    """Score-CAM with the score averaged over stronger and stronger masks.

    Naidu, Ghosh, Maurya, Shamanth and Kundu, "IS-CAM: Integrated Score-CAM for axiomatic-based explanations",
    arXiv:2010.03023, 2020: the masked input is multiplied with c_i = Σ_{j=0}^{i-1} j/N for i = 1 to N.
    torch-cam documents that and counts j from 1 (``first=1``), so that its factors reach 5.5.

    Args:
        activations: A, (C, h, w), of one image.
        masked: scores of the image behind masks.
        intervals: N.
        first: the j of the first factor.
        top: see :func:`scorecam`.

    Returns:
        M, (T, h, w), one for each target.
    """
    if intervals < 1:
        raise MethodError(f"iscam needs at least one interval, not {intervals}.")
    chosen = _telling(activations, top, constant=True)
    channels = min_max(activations[chosen], 1e-8)
    factors = np.cumsum(np.arange(first, first + intervals) / intervals).astype(np.float32)

    def masks(part: slice) -> Array:
        index = np.arange(part.start, part.stop)
        scaled = factors[index % intervals].reshape(-1, *[1] * (activations.ndim - 1))
        return channels[index // intervals] * scaled

    scores = masked.masked(masks, len(chosen) * intervals)
    mean = scores.reshape(len(chosen), intervals, -1).mean(axis=1)
    return _weighted(softmax(mean, axis=0), activations[chosen])


def _softmaxed(activations: Array, masked: Scorer, masks: Callable[[Array], Array], top: int | None) -> Array:
    """Weights that are a softmax over the channels; the constant ones are scored once."""
    chosen = _telling(activations, top, constant=True)
    varied = np.ptp(activations[chosen].reshape(len(chosen), -1), axis=1) > 0
    telling = chosen[varied]
    runs = telling if varied.all() else np.append(telling, chosen[~varied][0])
    found = masked.masked(lambda part: masks(activations[runs[part]]), len(runs))
    scores = np.empty((len(chosen), found.shape[1]), np.float32)
    scores[varied], scores[~varied] = found[: len(telling)], found[-1]
    return _weighted(softmax(scores, axis=0), activations[chosen])


def _telling(activations: Array, top: int | None, constant: bool = False) -> Array:
    """The channels that vary most over the grid, in their order; all that vary (or all) without ``top``."""
    spread = activations.reshape(len(activations), -1).std(axis=1)
    if top is not None and (not isinstance(top, (int, np.integer)) or top < 1):
        raise MethodError(f"top is how many channels take part, at least 1, not {top!r}.")
    order = np.argsort(-spread, kind="stable")[:top]
    varied = order if constant else order[spread[order] > 0]
    return np.sort(varied)


def _weighted(weights: Array, activations: Array) -> Array:
    """(K, T) and (K, ...grid) to (T, ...grid)."""
    return np.tensordot(weights.T, activations, axes=1)
