"""Deep feature factorization: what a layer sees in a set of photos, as a few concepts.

Collins, Achanta and Süsstrunk, "Deep Feature Factorization for Concept Discovery", ECCV 2018: the cells of
all photos together are a matrix of channels × cells; non-negative matrix factorization writes it as concepts
(directions of channels) times maps (how much of each concept there is at each cell). No class is asked for.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import paint, preprocess, rows
from .answers import logits_of
from .errors import BadTail, InputError, TensorError
from .explainer import Explainer
from .folder import encoded, file_stem, write_whole
from .grids import put_back
from .images import Photo
from .kinds import is_whole
from .methods import Method, Need
from .perturbation import TailScorer
from .result import Explanation
from .softmax import softmax

_log = logging.getLogger("onnxcam")

Progress = Callable[[int, int], object]

_CLASSES = 64  #: whose gradients are held at once
_SHOWN = 0.01  #: a class less likely than that is no name for a concept


@dataclass(frozen=True)
class Name:
    """A class that a concept's vector scores high.

    Attributes:
        class_id: the class.
        label: its name.
        probability: the classifier's for a grid that is filled with the concept at its strongest.
    """

    class_id: int
    label: str
    probability: float


@dataclass(frozen=True)
class Factors:
    """Activations as concepts times maps.

    Attributes:
        vectors: (K, C) float32: the activations of a cell where the concept is at its strongest and alone.
        maps: (N, K, h, w) float32 in [0, 1]: how much of each concept there is at each cell; 1 at the cell of
            all images where it is strongest.
        shares: (K,) float32: each concept's part of the sum of all that is explained, descending.
        error: what is not explained: the norm of the rest over that of the activations (both above their
            channels' least value), 0 to 1.
    """

    vectors: NDArray[np.float32]
    maps: NDArray[np.float32]
    shares: NDArray[np.float32]
    error: float


@dataclass(frozen=True)
class Concepts:
    """The concepts of a set of photos.

    Attributes:
        factors: the numbers.
        names: per concept the classes that its vector scores highest, the best first; empty where that
            cannot be told: see :func:`factorize`.
        heatmaps: per photo (K, H, W) float32 in [0, 1] at its size, 0 where the model did not see it.
        images: the photos, (H, W, 3) uint8 RGB.
        seen: per photo (H, W) bool, the pixels that the model saw.
        paths: the photos' paths, or "image 0".
        layer: where.
    """

    factors: Factors
    names: tuple[tuple[Name, ...], ...]
    heatmaps: list[NDArray[np.float32]]
    images: list[Photo]
    seen: list[NDArray[np.bool_]]
    paths: tuple[str, ...]
    layer: str

    def __len__(self) -> int:
        return len(self.factors.vectors)

    def captions(self) -> list[str]:
        """A line for each concept: its share and, where known, what it is like."""
        shares = [f"{share:.0%}" for share in self.factors.shares]
        named = [", ".join(f"{n.label} {n.probability:.2f}" for n in names) for names in self.names]
        return [f"{s}  {n}" if n else s for s, n in zip(shares, named or [""] * len(self), strict=True)]

    def pictures(self, alpha: float = 0.7, legend: bool = True) -> list[Photo]:
        """Each photo in the colours of its concepts.

        Args:
            alpha: weight of the colour where a concept is at its strongest.
            legend: write below what the colours stand for.

        Returns:
            N arrays (H, W, 3) uint8 RGB, each as wide as its photo, but with a legend at least 256 pixels.
        """
        colours = paint.palette(len(self))
        pictures = [
            paint.painted(image, heatmaps, colours, alpha, seen)
            for image, heatmaps, seen in zip(self.images, self.heatmaps, self.seen, strict=True)
        ]
        if not legend:
            return pictures
        return [paint.with_legend(p, colours, self.captions()) for p in pictures]

    def save(self, folder: str | os.PathLike[str], alpha: float = 0.7) -> list[Path]:
        """Write one picture per photo, and ``concepts.json``, which says what the concepts are.

        Args:
            folder: made if it does not exist.
            alpha: see :meth:`pictures`.

        Returns:
            The paths of the pictures.

        Raises:
            OutputError: a file cannot be written.
        """
        target = Path(folder)
        written: list[Path] = []
        for path, picture in zip(self.paths, self.pictures(alpha), strict=True):
            stem = file_stem(path).replace(" ", "-")
            taken = sum(p.name.startswith(f"{stem}.concepts") for p in written)
            written.append(target / (f"{stem}.concepts-{taken + 1}.png" if taken else f"{stem}.concepts.png"))
            write_whole(written[-1], encoded(picture))
        write_whole(target / "concepts.json", json.dumps(self.summary(written), indent=1).encode())
        return written

    def summary(self, written: Sequence[Path] = ()) -> dict[str, Any]:
        """What is known of the concepts, as plain values.

        Args:
            written: the pictures.
        """
        colours = paint.palette(len(self))
        return {
            "layer": self.layer,
            "error": round(self.factors.error, 6),
            "concepts": [
                {
                    "colour": "#" + "".join(f"{v:02x}" for v in colours[k].tolist()),
                    "share": round(float(self.factors.shares[k]), 6),
                    "classes": [
                        {"class_id": n.class_id, "label": n.label, "probability": round(n.probability, 6)}
                        for n in (self.names[k] if self.names else ())
                    ],
                }
                for k in range(len(self))
            ],
            "images": [
                {"image": path, **({"picture": written[i].name} if written else {})}
                for i, path in enumerate(self.paths)
            ],
        }


def factorize(
    explainer: Explainer,
    images: Any,
    layer: str | None = None,
    concepts: int = 8,
    *,
    names: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Concepts:
    """The concepts of a layer in some photos.

    Each concept is named by the classes that a classifier gives to a grid filled with it. Where the file has
    a tail for the layer, that is one run of the tail, whatever the head is; what the tail takes besides the
    grid (what goes around the layer, a class token) is the first photo's. Without a tail the classifier is
    read off the gradients, which are its weights: one run of the model for each class that it knows; that is
    for global average pooling and one linear layer, and for other heads there are no names. The activations
    of all photos are held at once.

    Example:
        >>> onnxcam.factorize(explainer, ["a.jpg", "b.jpg"]).save("out")  # doctest: +SKIP

    Args:
        explainer: open, with preprocessing for photos.
        images: see :meth:`onnxcam.Explainer.explain`; they share the concepts.
        layer: of the file; None: its first.
        concepts: how many.
        names: how many classes to name for each concept; 0: none, which spares the runs.
        seed: of the factorization's start.
        progress: called with the number of classes that are done, and that there are; behind a tail, of
            concepts.

    Raises:
        InputError: too many concepts for the photos, or fewer than one; names or a seed below 0; the layer
            is no grid of an image.
        UnknownLayer, ImageError, TensorError: see :meth:`onnxcam.Explainer.explain`.
    """
    if not is_whole(names, 0) or not is_whole(seed, 0):
        raise InputError(
            f"names and seed of concepts are whole numbers of at least 0, not {names!r} and {seed!r}."
        )
    layer = explainer.layers[0] if layer is None else layer
    found, activations = _read(explainer, images, layer, "activations")
    if found.maps.ndim != 3:
        raise InputError(f"The layer '{layer}' is no grid of an image, so there is nothing to paint.")
    factors = factorized(activations, concepts, seed=seed)
    photos = found.images or []
    heatmaps = []
    for photo, maps in zip(photos, factors.maps, strict=True):
        assert explainer.preprocess is not None
        _, geometry = preprocess.apply(photo, explainer.preprocess)
        heatmaps.append(np.stack([preprocess.to_photo(one, geometry) for one in maps]))
    named = _named(explainer, found, activations, factors.vectors, layer, names, progress) if names else ()
    return Concepts(factors, named, heatmaps, photos, found.seen or [], found.names, layer)


def factorized(
    activations: NDArray[Any], concepts: int, *, seed: int = 0, start: tuple[Any, Any] | None = None
) -> Factors:
    """Activations as concepts times maps.

    As pytorch-grad-cam's ``DeepFeatureFactorization``: each channel's least value is taken off before, and
    added to the concepts after. A factorization says nothing of how a concept's strength is shared between
    vector and map; here each map's largest value is 1.

    Args:
        activations: (N, C, h, w), finite.
        concepts: K, at most C and at most N h w.
        seed: see :func:`nmf`.
        start: see :func:`nmf`.

    Raises:
        InputError: an unusable number of concepts, or activations of another rank.
        TensorError: activations that are not finite.
    """
    if activations.ndim != 4:
        raise InputError(f"Activations have the shape (images, channels, h, w), not {activations.shape}.")
    broken = ~np.isfinite(activations).reshape(len(activations), -1).all(axis=1)
    if broken.any():
        raise TensorError(
            f"The activations of image {np.flatnonzero(broken)[0]} are not finite: the model overflows. A "
            "float16 model may need its float32 version."
        )
    count, channels, *grid = activations.shape
    table = activations.transpose(1, 0, 2, 3).reshape(channels, -1).astype(np.float64)
    most = min(table.shape)
    if not is_whole(concepts, 1) or concepts > most:
        raise InputError(
            f"{count} images of {channels} channels and {grid[0]}×{grid[1]} cells hold 1 to {most} concepts, "
            f"not {concepts!r}."
        )
    least = table.min(axis=1, keepdims=True)
    vectors, maps = nmf(table - least, concepts, seed=seed, start=start)
    strongest = maps.max(axis=1)
    vectors, maps = vectors * strongest, maps / np.where(strongest > 0, strongest, 1)[:, None]
    weight = vectors.sum(axis=0) * maps.sum(axis=1)
    order = np.argsort(-weight, kind="stable")
    whole = np.linalg.norm(table - least)
    rest = np.linalg.norm(table - least - vectors @ maps)
    return Factors(
        (vectors + least).T[order].astype(np.float32),
        maps[order].reshape(concepts, count, *grid).swapaxes(0, 1).astype(np.float32),
        (weight[order] / (weight.sum() or 1)).astype(np.float32),
        float(rest / whole) if whole > 0 else 0.0,
    )


def nmf(
    table: NDArray[Any],
    rank: int,
    *,
    seed: int = 0,
    start: tuple[Any, Any] | None = None,
    iterations: int = 200,
    tolerance: float = 1e-4,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Non-negative matrix factorization: X ≈ W H with the least squared error, to a local minimum.

    Hierarchical alternating least squares (Cichocki and Phan, IEICE Transactions on Fundamentals E92-A,
    2009): one column of W after the other is set to its best value, then the rows of H, until the projected
    gradient has fallen to ``tolerance`` of the first sweep's. Scikit-learn's "cd" solver, step for step.

    Args:
        table: X, (m, n), not negative.
        rank: K.
        seed: of a random start.
        start: W (m, K) and H (K, n) to start from, instead.
        iterations: sweeps, at most.
        tolerance: see above.

    Returns:
        W, (m, K), and H, (K, n), not negative.
    """
    x = np.asarray(table, np.float64)
    if start is None:
        rng = np.random.default_rng(seed)
        size = np.sqrt(x.mean() / rank)
        start = size * rng.random((x.shape[0], rank)), size * rng.random((rank, x.shape[1]))
    w, ht = np.array(start[0], np.float64), np.array(start[1], np.float64).T.copy()
    first = None
    for _ in range(iterations):
        slope = _swept(x, w, ht) + _swept(x.T, ht, w)
        first = slope if first is None else first
        if slope <= tolerance * first:
            break
    return w, ht.T


def _swept(x: NDArray[Any], w: NDArray[Any], ht: NDArray[Any]) -> float:
    """Set each column of ``w`` to its best value in turn; the sum of the projected gradient before."""
    squares, products = ht.T @ ht, x @ ht
    slope = 0.0
    for k in range(w.shape[1]):
        gradient = w @ squares[k] - products[:, k]
        slope += float(np.abs(np.where(w[:, k] > 0, gradient, np.minimum(gradient, 0))).sum())
        if squares[k, k] > 0:
            w[:, k] = np.maximum(w[:, k] - gradient / squares[k, k], 0)
    return slope


def _read(
    explainer: Explainer, images: Any, layer: str, what: Need, target: Any = None
) -> tuple[Explanation, NDArray[np.float32]]:
    """What was found, and the layer's activations or gradients (R, C, h, w)."""
    kept: list[NDArray[np.float32]] = []

    def keep(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        kept.append(tensor)
        return np.zeros((len(tensor), *tensor.shape[2:]), np.float32)

    reader = Method("factorization", keep, (what,), "", "")
    found = explainer.explain(images, reader, target, layer)
    return found, np.concatenate(kept)


def _named(
    explainer: Explainer,
    found: Explanation,
    activations: NDArray[np.float32],
    vectors: NDArray[np.float32],
    layer: str,
    count: int,
    progress: Progress | None,
) -> tuple[tuple[Name, ...], ...]:
    """Per concept the classes that the classifier gives to it; none where that cannot be told."""
    score = explainer.record.score
    if score.task != "classification" or score.output not in found.outputs:
        return ()
    photo = (found.images or [])[:1]
    given = _by_tail(explainer, photo, vectors, activations.shape[2:], layer, progress)
    if given is None:
        head = next(known.head for known in explainer.record.layers if known.name == layer)
        if head != "gap-linear":
            return ()
        # Behind a softmax they are known up to a constant for each image, which a softmax takes off again.
        logits = logits_of(score.activation, found.outputs[score.output][:1])[0]
        given = _by_gradients(explainer, photo, vectors, activations[0], logits, layer, progress)
    probabilities = 1 / (1 + np.exp(-given)) if score.activation == "sigmoid" else softmax(given)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return tuple(
        tuple(
            Name(int(c), _label(explainer.labels, int(c)), float(p[c]))
            for i, c in enumerate(mine)
            if i == 0 or p[c] >= _SHOWN
        )
        for mine, p in zip(best, probabilities, strict=True)
    )


def _by_tail(
    explainer: Explainer,
    photo: list[Photo],
    vectors: NDArray[np.float32],
    grid: tuple[int, ...],
    layer: str,
    progress: Progress | None,
) -> NDArray[Any] | None:
    """(K, classes) logits of grids that are filled with a vector each; None without a tail."""
    score = explainer.record.score
    if all(tail.layer != layer for tail in explainer.record.tails):
        return None
    kept: list[TailScorer] = []

    def keep(_: NDArray[np.float32], tail: TailScorer) -> NDArray[np.float32]:
        kept.append(tail)
        return np.zeros((1, 1, 1), np.float32)

    found = []
    try:
        reader = Method("factorization", keep, ("activations", "tail"), "", "")
        explainer.explain(photo, reader, None, layer)
        (scorer,) = kept
        for part in rows.batches(len(vectors), scorer.copies.batch):
            cells = vectors[part][:, :, None, None]
            filled = np.broadcast_to(cells, (*cells.shape[:2], *grid))
            changed = put_back(filled, scorer.tail.layer.layout, scorer.activations)
            told = scorer.tail.scores(changed, scorer.sides)[score.output]
            found.append(logits_of(score.activation, told))
            if progress is not None:
                progress(part.stop, len(vectors))
    except BadTail as e:
        _log.warning("%s Going on without it: the classifier is read off its gradients, where it can be.", e)
        return None
    return np.concatenate(found)


def _by_gradients(
    explainer: Explainer,
    photo: list[Photo],
    vectors: NDArray[np.float32],
    activations: NDArray[np.float32],
    logits: NDArray[np.float32],
    layer: str,
    progress: Progress | None,
) -> NDArray[Any]:
    """The same behind average pooling and a linear map, of the photo's activations (C, h, w) and logits."""
    classes = len(logits)
    weights = np.empty((classes, len(activations)))
    for part in rows.batches(classes, _CLASSES):
        _, gradients = _read(explainer, photo, layer, "gradients", [list(range(part.start, part.stop))])
        weights[part] = gradients.sum(axis=(2, 3))
        if progress is not None:
            progress(part.stop, classes)
    bias = logits - weights @ activations.mean(axis=(1, 2))
    given: NDArray[Any] = vectors @ weights.T + bias
    return given


def _label(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels is not None and index < len(labels) else f"class {index}"
