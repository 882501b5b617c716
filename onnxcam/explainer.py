"""Explainer: the front door. A file is opened once and explains for as long as it lives."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import feeds as inputs
from . import images as photos
from . import methods, postprocess, preprocess, rows, targets
from .contract import (
    CHOSEN_BOX,
    CLASS,
    EMBEDDING,
    PREFIX,
    SCORE,
    TOP_CLASS,
    Layer,
    Preprocess,
    Record,
)
from .errors import InputError, MethodError, TensorError, UnknownLayer, nearest
from .grids import channel_axis
from .methods import Method
from .providers import Provider
from .result import Explanation
from .rows import Rows
from .session import Node, Session
from .targets import Targets


class Explainer:
    """Predictions of an explainable file, and the reasons for them.

    One ONNX Runtime session for its whole life; the calls are safe from several threads at once.
    Method, target and layers are chosen per call.

    Example:
        >>> explainer = Explainer("resnet50.cam.onnx")  # doctest: +SKIP
        >>> explainer.explain("cat.jpg", method="layercam", target="tabby").overlay()  # doctest: +SKIP

    Args:
        model: a path, or the bytes of the file.
        providers: ONNX Runtime's execution providers in order of preference, by full or short name
            ("cuda"), or (name, options). None: CUDA if this ONNX Runtime was built with it, else
            the CPU.
        provider_options: of the one provider, or one mapping per provider.
        session_options: an ``onnxruntime.SessionOptions``, used as it is, or a mapping of its
            attributes and (with a dot in the name) configuration entries.
        allow_fallback: go on without a provider that does not work, instead of raising.
        preprocess: what to do with photos instead of what the file says: a preset's name, fields or
            a record.
        labels: one per class, instead of the file's.
        max_batch: rows in one run; a larger call is split. A file with a fixed batch runs in pieces
            of that.
        record_placement: let :meth:`placement` know which provider runs which node.

    Attributes:
        record: the file's record.
        providers: the active ones.
        labels: one per class, or None.
        preprocess: the record for photos, or None.
        layers: the names of the layers that the file explains.

    Raises:
        MissingDependency: there is no onnxruntime.
        ModelError: not an ONNX file, or one that this ONNX Runtime cannot load.
        ExplainableFileError: the file has no record, or one that this version cannot read.
        ProviderError: a requested provider is missing, broken or not active.
        InputError: unusable options or preprocessing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        providers: Provider | Sequence[Provider] | None = None,
        *,
        provider_options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        session_options: Any = None,
        allow_fallback: bool = False,
        preprocess: str | Mapping[str, Any] | Preprocess | None = None,
        labels: Sequence[str] | None = None,
        max_batch: int = 32,
        record_placement: bool = False,
    ) -> None:
        if not isinstance(max_batch, int) or max_batch < 1:
            raise InputError(f"max_batch is {max_batch!r}; it is a whole number of at least 1.")
        self._session = Session(
            model,
            providers,
            provider_options=provider_options,
            session_options=session_options,
            allow_fallback=allow_fallback,
            record_placement=record_placement,
        )
        self.record: Record = self._session.record
        self.providers = self._session.providers
        self._count = self._count_classes()
        self.labels: tuple[str, ...] | None = self.record.labels if labels is None else self._named(labels)
        self.layers = tuple(layer.name for layer in self.record.layers)
        self._image = inputs.image_input(self._session.inputs, self.record.preprocess)
        self.preprocess = self.record.preprocess if preprocess is None else self._resolve(preprocess)
        self._max_batch = max_batch
        self._own_outputs = tuple(o.name for o in self._session.outputs if not o.name.startswith(PREFIX))
        self._told = frozenset(o.name for o in self._session.outputs) & frozenset(_TOLD)

    def placement(self) -> dict[str, tuple[Node, ...]] | None:
        """The nodes that each provider runs; None unless ``record_placement``, or if it cannot be known."""
        return self._session.placement()

    def explain(
        self,
        images: Any,
        method: str | Method = "gradcam",
        target: Any = None,
        layers: str | Sequence[str] | None = None,
        fuse: str = "mean",
    ) -> Explanation:
        """Explain photos.

        Args:
            images: one photo or several: paths, the bytes of image files, uint8 (H, W, 3) RGB arrays,
                PIL images; see :func:`onnxcam.images.load`.
            method: a name of :func:`onnxcam.methods.names`, or a Method of one's own.
            target: what is explained: None (each image's top class), a class index, a label or one of
                the kinds of :mod:`onnxcam.targets` for every image, or a list with one entry per image,
                each of which may be a list.
            layers: of :attr:`layers`; None: all of them, fused.
            fuse: how several layers become one heatmap: "mean", "max" or "product".

        Returns:
            One row per image and target; heatmaps a list, each at its photo's own size.

        Raises:
            ImageError, TargetError, MethodError, UnknownLayer: see each.
            InputError: the file records no preprocessing, or has inputs besides the image.
        """
        how = self.preprocess
        if how is None and len(self._image.shape) != 4:
            raise InputError(
                f"The model takes {self._image}, which is no photo: hand arrays to explain_tensor."
            )
        if how is None:
            raise InputError(
                "The file records no preprocessing for photos. Give it when opening: "
                'Explainer(..., preprocess="imagenet"), or hand ready tensors to explain_tensor.'
            )
        self._refuse_other_inputs("explain takes photos alone; hand all inputs to explain_tensor")
        named = photos.each(images)
        loaded = [photos.load(image, name) for name, image in named]
        request = self._request(method, target, layers, len(loaded))
        dtype = self._image.dtype or np.dtype(np.float32)
        runs, geometries = [], []
        for part in rows.batches(len(loaded), rows.piece(self._image, self._max_batch)):
            ready = [preprocess.apply(image, how, dtype) for image in loaded[part]]
            geometries += [geometry for _, geometry in ready]
            feeds = self._checked({self._image.name: np.stack([tensor for tensor, _ in ready])})
            runs.append(self._run(feeds, _seen_by(request.rows_of(part), geometries[part]), request))
        run = rows.joined(runs)
        classes = self._classes(run, request)
        layer_maps = self._maps(run, request)
        shown = [geometries[i] for i in request.targets.image_index]
        heatmaps = [
            _photo_heatmap([m[row] for m in layer_maps.values()], shown[row], request.method.rectify, fuse)
            for row in range(len(shown))
        ]
        return self._explanation(
            run,
            request,
            classes,
            layer_maps,
            fuse,
            heatmaps=heatmaps,
            boxes=_photo_boxes(run.arrays.get(CHOSEN_BOX), shown),
            seen=[preprocess.seen(geometry) for geometry in geometries],
            images=loaded,
            names=tuple(name for name, _ in named),
        )

    def explain_tensor(
        self,
        x: Any,
        method: str | Method = "gradcam",
        target: Any = None,
        layers: str | Sequence[str] | None = None,
        fuse: str = "mean",
    ) -> Explanation:
        """Explain the model's own inputs.

        Args:
            x: the image input, with its batch axis: an array, an OrtValue, or a tensor of any library
                that speaks DLPack (on the session's device it is not copied); or {input: one of
                these} for all inputs.
            method: see :meth:`explain`.
            target: see :meth:`explain`.
            layers: see :meth:`explain`.
            fuse: see :meth:`explain`.

        Returns:
            One row per image and target; heatmaps (R, H, W) at the model input's size: of a signal (R, L),
            of a volume (R, D, H, W).

        Raises:
            TensorError: wrong inputs, shape or dtype, an empty batch, or values that are not finite.
            TargetError, MethodError, UnknownLayer: see each.
        """
        if not isinstance(x, Mapping):
            self._refuse_other_inputs("give all of them: explain_tensor({name: array, ...})")
            x = {self._image.name: x}
        feeds = self._checked(x)
        image = feeds[self._image.name]
        shape = inputs.shape_of(image)
        request = self._request(method, target, layers, shape[0])
        whole = self._size(shape)
        run = self._run(feeds, _as_input(request.targets, whole), request)
        classes = self._classes(run, request)
        layer_maps = self._maps(run, request)
        size = _largest(layer_maps)
        if len(size) == len(whole) or (len(size), len(whole)) == (2, 3):  # frames, their time averaged
            size = whole[-len(size) :]
        heatmaps = postprocess.heatmaps(list(layer_maps.values()), size, request.method.rectify, fuse)
        boxes = run.arrays.get(CHOSEN_BOX)
        return self._explanation(run, request, classes, layer_maps, fuse, heatmaps=heatmaps, boxes=boxes)

    def _count_classes(self) -> int | None:
        """As the file declares its scores; what the record says of it is a copy."""
        shapes = {o.name: o.shape for o in self._session.outputs}
        declared = (None,) if SCORE in shapes else shapes[self.record.score.output][1:]
        sizes = [n for n in declared if isinstance(n, int)]
        known = len(declared) > 0 and len(sizes) == len(declared)
        return math.prod(sizes) if known else self.record.score.classes

    def _named(self, labels: Sequence[str]) -> tuple[str, ...]:
        if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
            raise InputError(
                "labels is a list with one name per class; `onnxcam explain --labels` reads a file."
            )
        if self._count is not None and len(labels) != self._count:
            raise InputError(
                f"labels has {len(labels)} names, but the model has {self._count} classes: which name "
                "belongs to which class cannot be known."
            )
        return tuple(labels)

    def _resolve(self, spec: str | Mapping[str, Any] | Preprocess) -> Preprocess:
        if len(self._image.shape) != 4:
            raise InputError(
                f"The model takes {self._image}, which is no photo: leave preprocess out, and hand arrays to "
                "explain_tensor."
            )
        layout = inputs.layout_of(self._image, None)
        return preprocess.resolve(
            spec, size=inputs.size_of(self._image, layout), layout=layout, input=self._image.name
        )

    def _refuse_other_inputs(self, advice: str) -> None:
        if len(self._session.inputs) > 1:
            names = ", ".join(f"'{i.name}'" for i in self._session.inputs)
            raise TensorError(f"The model has the inputs {names}; {advice}.")

    def _request(
        self, method: str | Method, target: Any, layers: str | Sequence[str] | None, count: int
    ) -> _Request:
        chosen = method if isinstance(method, Method) else methods.get(method)
        one = isinstance(layers, str) or not isinstance(layers, Iterable)
        wanted: tuple[Any, ...] = self.layers if layers is None else (layers,) if one else tuple(layers)
        if not wanted:
            raise UnknownLayer(f"layers is empty; the file explains {', '.join(map(repr, self.layers))}.")
        known = {layer.name: layer for layer in self.record.layers}
        for name in wanted:
            if name not in known:
                raise UnknownLayer(
                    f"The file does not explain a layer {name!r}.{nearest(str(name), list(known))} "
                    f"It explains {', '.join(map(repr, known))}."
                )
            if chosen.head is not None and known[name].head != chosen.head:
                fits = next((n for n in known if known[n].head == chosen.head), None)
                raise MethodError(
                    f"The method '{chosen.name}' needs a model that ends in global average pooling and one "
                    f"linear layer; after the layer '{name}' there is something else. Use 'gradcam', which "
                    "is its generalisation" + (f", or layers={fits!r}." if fits else ".")
                )
        return _Request(
            chosen,
            tuple(known[name] for name in wanted),
            targets.resolve(target, count, self._count, self.labels, self.record.score),
        )

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        known = {info.name: info for info in self._session.inputs}
        for name in given:
            if name not in known:
                raise TensorError(
                    f"The model has no input {name!r}.{nearest(str(name), list(known))} "
                    f"It has {', '.join(map(repr, known))}."
                )
        for name in known:
            if name not in given:
                raise TensorError(f"The input '{name}' is missing; the model wants {known[name]}.")
        return {
            name: inputs.check(known[name], self._session.as_feed(name, value))
            for name, value in given.items()
        }

    def _run(self, feeds: Mapping[str, Any], wanted: Targets, request: _Request) -> Rows:
        fetch = [*self._own_outputs, *(n for n in _TOLD if n in self._told)]
        layouts = {
            name: layer.layout
            for layer in request.layers
            for name in _tensors(layer, request.method).values()
        }
        return rows.run(
            self._session,
            feeds,
            wanted,
            list(dict.fromkeys([*fetch, *layouts])),
            layouts,
            self._image,
            self._max_batch,
        )

    def _classes(self, run: Rows, request: _Request) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Per row the class (-1: none) and the score that is explained of it."""
        chosen, image_index = request.targets.class_index, request.targets.image_index
        if SCORE in self._told:
            scores = run.arrays[SCORE].astype(np.float32, copy=False)
            class_ids = run.arrays.get(CLASS, np.full(len(chosen), NO_CLASS))
            own = np.array([name is None for name in run.targets.names or [None] * len(chosen)])
            class_ids = np.where(own, class_ids, NO_CLASS)
        else:
            table = run.arrays[self.record.score.output].reshape(len(chosen), -1)
            # Again, for files that do not record how many classes there are.
            targets.check(int(chosen.max(initial=0)), table.shape[1])
            class_ids = np.where(chosen == TOP_CLASS, table.argmax(axis=1), chosen)
            scores = table[np.arange(len(chosen)), class_ids].astype(np.float32, copy=False)
        if not np.isfinite(scores).all():
            raise TensorError(
                f"The score of image {image_index[np.argmin(np.isfinite(scores))]} is not finite: "
                "the input holds NaN or infinity, or the model overflows."
            )
        return class_ids, scores

    def _maps(self, run: Rows, request: _Request) -> dict[str, NDArray[np.float32]]:
        """Per layer its raw maps (R, ...grid)."""
        maps = {}
        for layer in request.layers:
            tensors = {k: run.arrays[name] for k, name in _tensors(layer, request.method).items()}
            b, _, *grid = next(iter(tensors.values())).shape
            # Methods know images: a signal is one row, and a volume's slices lie below each other.
            flat = {k: t.reshape(*t.shape[:2], math.prod(grid[:-1]), grid[-1]) for k, t in tensors.items()}
            made = request.method(**flat)
            made = np.asarray(made, np.float32)
            wanted = (b, math.prod(grid[:-1]), grid[-1])
            if made.shape != wanted:
                raise MethodError(
                    f"The method '{request.method.name}' gave maps of the shape {made.shape} "
                    f"for the layer '{layer.name}', not {wanted}."
                )
            maps[layer.name] = made.reshape(b, *grid)
        return maps

    def _size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of an input's grid: (h, w), a signal's (l,) or a volume's (d, h, w); empty if it has none."""
        if not 3 <= len(shape) <= 5:
            return ()
        channels = channel_axis(self._image.shape)
        if len(shape) == 4:
            channels = 3 if inputs.layout_of(self._image, self.preprocess) == "NHWC" else 1
        return tuple(n for axis, n in enumerate(shape) if axis not in (0, channels))

    def _explanation(
        self,
        run: Rows,
        request: _Request,
        classes: tuple[NDArray[np.int64], NDArray[np.float32]],
        layer_maps: dict[str, NDArray[np.float32]],
        fuse: str,
        *,
        heatmaps: NDArray[np.float32] | list[NDArray[np.float32]],
        **of_photos: Any,
    ) -> Explanation:
        maps = next(iter(layer_maps.values()))
        if len(layer_maps) > 1:
            several = list(layer_maps.values())
            maps = postprocess.heatmaps(several, _largest(layer_maps), request.method.rectify, fuse)
        return Explanation(
            maps=maps,
            heatmaps=heatmaps,
            outputs={name: run.per_image(name) for name in self._own_outputs},
            class_ids=classes[0],
            scores=classes[1],
            labels=[
                name or _label(self.labels, int(i))
                for i, name in zip(classes[0], run.targets.names or [None] * len(classes[0]), strict=True)
            ],
            image_index=request.targets.image_index,
            zero=np.array([not heatmap.any() for heatmap in heatmaps]),
            layer_maps=layer_maps,
            method=request.method.name,
            embeddings=run.per_image(EMBEDDING) if EMBEDDING in run.arrays else None,
            **of_photos,
        )


NO_CLASS = -1  #: the class of a row that is of none
_TOLD = (SCORE, CLASS, CHOSEN_BOX, EMBEDDING)


@dataclass(frozen=True)
class _Request:
    """What one call asks for."""

    method: Method
    layers: tuple[Layer, ...]
    targets: Targets

    def rows_of(self, part: slice) -> Targets:
        """The rows of the images in ``part``, counted from its start."""
        index = self.targets.image_index
        return self.targets.rows((index >= part.start) & (index < part.stop), part.start)


def _tensors(layer: Layer, method: Method) -> dict[str, str]:
    """The outputs of ``layer`` that ``method`` reads."""
    names = {"activations": layer.activations, "gradients": layer.gradients}
    return {kind: names[kind] for kind in method.needs}


def _photo_heatmap(
    layer_maps: Sequence[NDArray[np.float32]], geometry: preprocess.Geometry, rectify: bool, fuse: str
) -> NDArray[np.float32]:
    """``postprocess.heatmaps`` for one row, onto a photo: scaled over what the model saw, 0 elsewhere."""
    placed = []
    for grid in layer_maps:
        scaled = postprocess.scale((np.maximum(grid, 0) if rectify else grid)[None])[0]
        placed.append(preprocess.to_photo(scaled, geometry)[None])
    fused = postprocess.fuse(placed, fuse)[0]
    window = preprocess.window(geometry)
    heatmap = np.zeros(geometry.photo, np.float32)
    heatmap[window] = postprocess.scale(fused[window][None])[0]
    return heatmap


def _seen_by(wanted: Targets, geometries: Sequence[preprocess.Geometry]) -> Targets:
    """Boxes and regions of photos as the model sees them."""
    return targets.placed(
        wanted,
        lambda i, corners: preprocess.box_to_input(corners, geometries[i]),
        lambda i, mask: preprocess.mask_to_input(mask, geometries[i]),
    )


def _as_input(wanted: Targets, size: tuple[int, ...]) -> Targets:
    """Regions at the model input's size."""

    def fitted(_: int, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        other = mask.ndim == len(size) and mask.shape != size
        return preprocess.resize_mask(mask, size) if other else mask

    return targets.placed(wanted, lambda _, corners: corners, fitted)


def _photo_boxes(
    boxes: NDArray[np.float32] | None, geometries: Sequence[preprocess.Geometry]
) -> NDArray[np.float32] | None:
    if boxes is None:
        return None
    pairs = zip(boxes, geometries, strict=True)
    return np.stack([preprocess.box_to_photo(box, geometry) for box, geometry in pairs])


def _label(labels: Sequence[str] | None, index: int) -> str:
    if index == NO_CLASS:
        return ""
    return labels[index] if labels is not None and index < len(labels) else f"class {index}"


def _largest(layer_maps: Mapping[str, NDArray[np.float32]]) -> tuple[int, ...]:
    return max((m.shape[1:] for m in layer_maps.values()), key=math.prod)
