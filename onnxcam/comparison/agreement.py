"""How much two maps of one photo agree: a registry of plain functions on aligned maps.

To add a measure, write one function here::

    @measure("cosine", better="higher", low=-1, high=1, source="...", formula="Σab / √(Σa² Σb²)")
    def cosine(maps: Maps) -> Values: ...

Nothing else has to be edited: ``onnxcam compare``, the gate, the tables and the tests read the registry.
Every measure is symmetric, and blind to the maps' scale.

One rule for all says where a measure is defined. A map without contrast, the same in every cell, points
nowhere, so with one of them there is no agreement to measure: NaN. Only if both are zero everywhere, neither
model sees evidence, and they agree fully.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError, nearest
from ..metrics import require
from ..metrics.sanity import structural_similarity

Values: TypeAlias = NDArray[np.float64]
Better: TypeAlias = Literal["higher", "lower"]


@dataclass(frozen=True, eq=False)
class Maps:
    """N pairs of maps, each pair on one grid.

    Attributes:
        first, second: (N, h, w) float.
        ys, xs: (N, h) and (N, w), the centres of the rows and of the columns in the photo, in diagonals of
            the part of the photo that the grid covers.
    """

    first: NDArray[Any]
    second: NDArray[Any]
    ys: Values
    xs: Values

    def flat(self) -> tuple[Values, Values]:
        """The two sides' cells, (N, h w) float64."""
        one, two = (m.reshape(len(m), -1).astype(np.float64) for m in (self.first, self.second))
        return one, two

    def only(self, these: NDArray[np.bool_]) -> Maps:
        """Some of the pairs."""
        return Maps(self.first[these], self.second[these], self.ys[these], self.xs[these])


@dataclass(frozen=True)
class Measure:
    """One measure of the registry.

    Attributes:
        name: what the user calls it.
        function: N pairs of maps with contrast to N values; NaN where it is not defined for the grid.
        better: which way the maps agree more.
        low, high: the range of its values.
        source: where it is defined.
        formula: one line. a and b are the maps, p and q their heat as shares that add up to one.
        extra: of the packages, where it needs more than the run time has.
    """

    name: str
    function: Callable[[Maps], Values]
    better: Better
    low: float
    high: float
    source: str
    formula: str
    extra: str | None = None

    @property
    def best(self) -> float:
        """Its value for equal maps."""
        return self.high if self.better == "higher" else self.low

    def meets(self, value: float, threshold: float) -> bool:
        """Whether a value is as good as a threshold, or better."""
        return value >= threshold if self.better == "higher" else value <= threshold


_measures: dict[str, Measure] = {}


def measure(
    name: str, *, better: Better, low: float, high: float, source: str, formula: str, extra: str | None = None
) -> Callable[[Callable[[Maps], Values]], Callable[[Maps], Values]]:
    """Register the decorated function; the arguments are :class:`Measure`'s."""

    def register(function: Callable[[Maps], Values]) -> Callable[[Maps], Values]:
        if name in _measures:
            raise ValueError(f"The measure {name!r} is registered twice.")
        _measures[name] = Measure(name, function, better, low, high, source, formula, extra)
        return function

    return register


def names() -> list[str]:
    """The names of all measures, in the order of this module."""
    return list(_measures)


def get(name: str) -> Measure:
    """The measure of that name.

    Raises:
        MetricError: there is none; the nearest names are given.
    """
    if not isinstance(name, str) or name not in _measures:
        known = names()
        raise MetricError(
            f"No measure of agreement {name!r}.{nearest(str(name), known)} There are: {', '.join(known)}."
        )
    return _measures[name]


def agreement(maps: Maps, wanted: Sequence[str]) -> dict[str, Values]:
    """Each measure of each pair.

    Args:
        maps: N pairs.
        wanted: names of measures.

    Returns:
        {name: (N,) float64}, NaN where it is not defined; see the module.

    Raises:
        MetricError: an unknown measure.
        MissingDependency: it needs a package of the extra ``[metrics]``.
    """
    one, two = maps.flat()
    said = (one.max(axis=1) > one.min(axis=1)) & (two.max(axis=1) > two.min(axis=1))
    silent = ~(one.any(axis=1) | two.any(axis=1))
    part = maps if said.all() else maps.only(said)
    found = {}
    for chosen in map(get, wanted):
        values = np.full(len(one), np.nan)
        values[silent] = chosen.best
        if said.any():  # rounding must not carry a value out of its range
            values[said] = np.clip(chosen.function(part), chosen.low, chosen.high)
        found[chosen.name] = values
    return found


@measure(
    "pearson",
    better="higher",
    low=-1,
    high=1,
    source="Pearson, Proceedings of the Royal Society of London 58, 1895",
    formula="cov(a, b) / (σ_a σ_b)",
)
def pearson(maps: Maps) -> Values:
    """The linear correlation over the cells: where one map is above its mean, is the other?"""
    return _correlation(*maps.flat())


@measure(
    "spearman",
    better="higher",
    low=-1,
    high=1,
    source="Spearman, The Proof and Measurement of Association, American Journal of Psychology 15, 1904",
    formula="Pearson's correlation of the cells' ranks",
)
def spearman(maps: Maps) -> Values:
    """The correlation of the ranks: do the maps order the cells alike? Ties get the mean of their ranks."""
    one, two = maps.flat()
    return _correlation(ranks(one), ranks(two))


@measure(
    "cosine",
    better="higher",
    low=-1,
    high=1,
    source="Salton and McGill, Introduction to Modern Information Retrieval, 1983",
    formula="Σ a b / √(Σ a² Σ b²)",
)
def cosine(maps: Maps) -> Values:
    """The cosine of the angle between the maps as vectors; of maps that are not negative, in [0, 1]."""
    return _cosine(*maps.flat())


@measure(
    "iou20",
    better="higher",
    low=0,
    high=1,
    source="Jaccard, New Phytologist 11, 1912; of fuzzy sets as Ruzicka, Biologia 13, 1958",
    formula="Σ min(s, t) / Σ max(s, t), s and t the membership in the hottest fifth of the cells",
)
def iou20(maps: Maps) -> Values:
    """The overlap of the hottest 20 % of the cells.

    A fifth of n cells is n/5, not rounded. Cells that tie for the last places share them as fractional
    members, so that neither the order of the cells nor that of the sides decides. A cell at the map's minimum
    is not hot, however few are hotter: else two maps of one hot cell each, in different places, would agree
    in all the cells where nothing is.
    """
    one, two = (_hottest(side, 5) for side in maps.flat())
    shared: Values = np.minimum(one, two).sum(axis=1) / np.maximum(one, two).sum(axis=1)
    return shared


@measure(
    "peak",
    better="lower",
    low=0,
    high=1,
    source="ours: the pointing game of Zhang et al., ECCV 2016, between two maps",
    formula="|argmax a - argmax b| / diagonal",
)
def peak(maps: Maps) -> Values:
    """The distance between the peaks, as a share of the diagonal of the part of the photo that both see.

    In the photo's own proportions. Where several cells are equally hot, the peak is their centroid.
    """
    places = []
    for side in (maps.first, maps.second):
        top = (side == side.max(axis=(1, 2), keepdims=True)).astype(np.float64)
        top /= top.sum(axis=(1, 2), keepdims=True)
        places.append(((top.sum(axis=2) * maps.ys).sum(axis=1), (top.sum(axis=1) * maps.xs).sum(axis=1)))
    (y, x), (v, u) = places
    distance: Values = np.hypot(y - v, x - u)
    return distance


@measure(
    "js",
    better="lower",
    low=0,
    high=1,
    source="Lin, Divergence Measures Based on the Shannon Entropy, IEEE Trans. Information Theory 37, 1991",
    formula="H((p + q) / 2) - (H(p) + H(q)) / 2, in bits",
)
def js(maps: Maps) -> Values:
    """The Jensen-Shannon divergence of the maps as distributions of heat, base 2: 1 if they share no cell.

    Evidence below zero, which only methods without rectification have, is moved up to zero first.
    """
    p, q = map(shares, maps.flat())
    return _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2


@measure(
    "ssim",
    better="higher",
    low=-1,
    high=1,
    source="Wang et al., IEEE Trans. Image Processing 13, 2004; scikit-image, structural_similarity",
    formula="mean of (2 μ_a μ_b + C₁)(2 σ_ab + C₂) / (μ_a² + μ_b² + C₁)(σ_a² + σ_b² + C₂) over windows",
)
def ssim(maps: Maps) -> Values:
    """The structural similarity of the maps, each scaled to [0, 1]: do they look alike?

    With scikit-image's defaults: windows of 7×7 cells that lie within the grid, equally weighted, sample
    covariances, K = (0.01, 0.03). The Gaussian window of the paper has 11 cells, more than the last layer of
    most networks. Not defined for a grid of fewer than 7 rows or columns.
    """
    if min(maps.first.shape[1:]) < _WINDOW:
        return np.full(len(maps.first), np.nan)
    cells = _WINDOW**2
    edge = slice(_WINDOW // 2, -(_WINDOW // 2))

    def mean(x: Values) -> Values:
        return np.asarray(cv2.blur(x, (_WINDOW, _WINDOW))[edge, edge], np.float64)

    low, high = (
        np.stack([f(side, axis=(1, 2)) for side in (maps.first, maps.second)]) for f in (np.min, np.max)
    )
    sides = np.stack([maps.first, maps.second]).astype(np.float64) - low[:, :, None, None]
    sides /= (high.astype(np.float64) - low)[:, :, None, None]
    return np.array(
        [structural_similarity(a, b, mean, cells / (cells - 1)) for a, b in zip(*sides, strict=True)]
    )


@measure(
    "emd",
    better="lower",
    low=0,
    high=1,
    source="Rubner, Tomasi and Guibas, The Earth Mover's Distance, Int. J. Computer Vision 40, 2000",
    formula="min Σ_ij f_ij |place_i - place_j| / diagonal, f moving p to q",
    extra="metrics",
)
def emd(maps: Maps) -> Values:
    """How far the heat of one map must be moved to make the other: its work, in diagonals of the common part.

    Exact, by linear programming. Heat that both have in a cell stays there, which costs nothing and is
    optimal because distances obey the triangle inequality; so only surplus and want are matched. On a grid of
    7×7 that takes milliseconds, of 28×28 about a second.
    """
    p, q = map(shares, maps.flat())
    optimize, sparse = (require(f"scipy.{part}", "emd") for part in ("optimize", "sparse"))
    h, w = maps.first.shape[1:]
    places = np.stack([np.repeat(maps.ys, w, axis=1), np.tile(maps.xs, h)], axis=-1)
    return np.array([_work(*one, optimize, sparse) for one in zip(p - q, places, strict=True)])


_WINDOW = 7  #: of SSIM, in cells


def _work(surplus: Values, places: Values, optimize: Any, sparse: Any) -> float:
    """The least work that takes the cells' surplus (n,) to where it is wanting; places (n, 2)."""
    give, take = surplus > 0, surplus < 0
    if not (give.any() and take.any()):
        return 0.0
    supply, demand = surplus[give], -surplus[take]
    demand *= supply.sum() / demand.sum()  # equal but for rounding, and the solver wants them equal
    distance = np.linalg.norm(places[give][:, None] - places[take][None], axis=-1)
    rows = sparse.kron(sparse.eye_array(len(supply)), np.ones((1, len(demand))))
    columns = sparse.kron(np.ones((1, len(supply))), sparse.eye_array(len(demand)))
    solved = optimize.linprog(
        distance.ravel(),
        A_eq=sparse.vstack([rows, columns]).tocsr(),
        b_eq=np.concatenate([supply, demand]),
        method="highs",
    )
    if not solved.success:
        raise MetricError(f"The earth mover's distance was not found: {solved.message}")
    return float(solved.fun)


def ranks(cells: Values) -> Values:
    """Of (N, n) values along each row, from 1; equal values get the mean of their ranks."""
    order = cells.argsort(axis=1)
    ordered = np.take_along_axis(cells, order, axis=1)
    new = np.ones(cells.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    groups = np.cumsum(new.ravel()) - 1  # of equal values, counted through all rows
    sizes = np.bincount(groups)
    middles = np.cumsum(sizes) - (sizes - 1) / 2
    found = np.empty(cells.shape)
    starts = np.arange(len(cells))[:, None] * cells.shape[1]
    np.put_along_axis(found, order, middles[groups].reshape(cells.shape) - starts, axis=1)
    return found


def shares(cells: Values) -> Values:
    """(N, n) values as distributions: moved up to zero where some are below it, over their sum."""
    heat = cells - np.minimum(cells.min(axis=1, keepdims=True), 0)
    found: Values = heat / heat.sum(axis=1, keepdims=True)
    return found


def _hottest(cells: Values, part: int) -> Values:
    """The cells' membership (N, n) in the hottest 1/part of them."""
    n = cells.shape[1]
    ordered = np.sort(cells, axis=1)
    last = ordered[:, n * (part - 1) // part, None]  # of those that are wholly or partly in
    above, tied = cells > last, cells == last
    left = n / part - above.sum(axis=1, keepdims=True)
    tied &= last > ordered[:, :1]
    members: Values = above + tied * (left / np.maximum(tied.sum(axis=1, keepdims=True), 1))
    return members


def _correlation(one: Values, two: Values) -> Values:
    return _cosine(*(side - side.mean(axis=1, keepdims=True) for side in (one, two)))


def _cosine(one: Values, two: Values) -> Values:
    found: Values = (one * two).sum(axis=1) / np.sqrt((one * one).sum(axis=1) * (two * two).sum(axis=1))
    return found


def _entropy(p: Values) -> Values:
    """In bits, of each row."""
    found: Values = -(p * np.log2(np.where(p > 0, p, 1))).sum(axis=1)
    return found
