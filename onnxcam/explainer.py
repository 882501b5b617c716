"""Explainer: the front door. A file is opened once and explains for as long as it lives."""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import blackbox, evidence, fused, methods, postprocess, preprocess, rows, smoothing, targets
from . import feeds as inputs
from . import images as photos
from .answers import NO_CLASS
from .blackbox import Judge
from .contract import CHOSEN_BOX, EMBEDDING, SCORE, Fused, Layer, Preprocess, Record
from .errors import InputError, MethodError, TensorError, UnknownLayer, nearest
from .evidence import Evidence
from .grids import channel_axis
from .methods import Method
from .perturbation import Passes, Progress
from .providers import Provider
from .request import File, Request
from .result import Explanation
from .session import Node, TensorInfo
from .smoothing import Smooth
from .tail import Tail
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
        black_box: open a file that was not rewritten, for the methods that need nothing but its scores:
            True, the name of the output that is explained, or a function from {output: array} to one number
            per image and class.

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
        black_box: bool | str | Judge = False,
    ) -> None:
        if not isinstance(max_batch, int) or max_batch < 1:
            raise InputError(f"max_batch is {max_batch!r}; it is a whole number of at least 1.")
        how = {
            "providers": providers,
            "provider_options": provider_options,
            "session_options": session_options,
            "allow_fallback": allow_fallback,
        }
        self._session = blackbox.opened(model, black_box, record_placement=record_placement, **how)
        self.record: Record = self._session.record
        self.providers = self._session.providers
        self._count = self._count_classes()
        self.labels: tuple[str, ...] | None = self.record.labels if labels is None else self._named(labels)
        self.layers = tuple(layer.name for layer in self.record.layers)
        self._image = inputs.image_input(self._session.inputs, self.record.preprocess)
        self.preprocess = self.record.preprocess if preprocess is None else self._resolve(preprocess)
        tail = functools.cache(lambda layer: Tail(model, self.record, layer, **how))
        self._file = File(self._session, self._image, self._channels(), max_batch, tail)

    @property
    def input(self) -> TensorInfo:
        """The input that takes the image."""
        return self._image

    def placement(self) -> dict[str, tuple[Node, ...]] | None:
        """The nodes that each provider runs; None unless ``record_placement``, or if it cannot be known."""
        return self._session.placement()

    def explain(
        self,
        images: Any,
        method: str | Method = "gradcam",
        target: Any = None,
        layers: str | Sequence[str] | None = None,
        fuse: str | None = None,
        *,
        smooth: Smooth = None,
        scale: str = "image",
        channels: Sequence[int] | None = None,
        progress: Progress | None = None,
        **options: Any,
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
            fuse: how several layers become one heatmap: "mean", "max" or "product"; None: as the method has
                it.
            smooth: "tta" (flipped and scaled copies), "noise" or :class:`onnxcam.smoothing.Noise` (noisy
                copies), "eigen" (the first principal component of the weighted channels), or several of them.
            scale: "image": each heatmap is scaled on its own; "batch": all of the call alike, so that they
                can be compared.
            channels: of the layer, that alone take part; None: all.
            progress: called with the number of runs that are done, and that are known of so far, by methods
                that run the model many times.
            **options: of the method; ``onnxcam methods`` lists them.

        Returns:
            One row per image and target; heatmaps a list, each at its photo's own size.

        Raises:
            ImageError, TargetError, MethodError, UnknownLayer: see each.
            InputError: the file records no preprocessing, or has inputs besides the image; progress cannot
                be called.
        """
        how = self.preprocess
        image = self._file.image
        if how is None and len(image.shape) != 4:
            raise InputError(f"The model takes {image}, which is no photo: hand arrays to explain_tensor.")
        if how is None:
            raise InputError(
                "The file records no preprocessing for photos. Give it when opening: "
                'Explainer(..., preprocess="imagenet"), or hand ready tensors to explain_tensor.'
            )
        self._refuse_other_inputs("explain takes photos alone; hand all inputs to explain_tensor")
        named = photos.each(images)
        loaded = [photos.load(picture, name) for name, picture in named]
        request = self._request(method, target, layers, len(loaded), smooth, channels, progress, options)
        fuse = _fusion(request, fuse, scale)
        dtype = image.dtype or np.dtype(np.float32)
        parts, geometries = [], []
        for part in rows.batches(len(loaded), rows.piece(image, self._file.max_batch)):
            ready = [preprocess.apply(picture, how, dtype) for picture in loaded[part]]
            geometries += [geometry for _, geometry in ready]
            feeds = self._checked({image.name: np.stack([tensor for tensor, _ in ready])})
            wanted = _seen_by(request.rows_of(part), geometries[part])
            parts.append(evidence.find(self._file, feeds, wanted, request))
        found = evidence.joined(parts)
        shown = [geometries[i] for i in request.targets.image_index]
        return self._explanation(
            found,
            request,
            fuse,
            heatmaps=_photo_heatmaps(found, shown, request.method.rectify, fuse, scale),
            boxes=_photo_boxes(found.run.arrays.get(CHOSEN_BOX), shown),
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
        fuse: str | None = None,
        *,
        smooth: Smooth = None,
        scale: str = "image",
        channels: Sequence[int] | None = None,
        progress: Progress | None = None,
        **options: Any,
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
            smooth: see :meth:`explain`.
            scale: see :meth:`explain`.
            channels: see :meth:`explain`.
            progress: see :meth:`explain`.
            **options: see :meth:`explain`.

        Returns:
            One row per image and target; heatmaps (R, H, W) at the model input's size: of a signal (R, L),
            of a volume (R, D, H, W).

        Raises:
            TensorError: wrong inputs, shape or dtype, an empty batch, or values that are not finite.
            TargetError, MethodError, UnknownLayer: see each.
        """
        image = self._file.image
        if not isinstance(x, Mapping):
            self._refuse_other_inputs("give all of them: explain_tensor({name: array, ...})")
            x = {image.name: x}
        feeds = self._checked(x)
        shape = inputs.shape_of(feeds[image.name])
        request = self._request(method, target, layers, shape[0], smooth, channels, progress, options)
        fuse = _fusion(request, fuse, scale)
        whole = self._size(shape)
        found = evidence.find(self._file, feeds, _as_input(request.targets, whole), request)
        size = _largest(found.layer_maps)
        if len(size) == len(whole) or (len(size), len(whole)) == (2, 3):  # frames, their time averaged
            size = whole[-len(size) :]
        heatmaps = _mean(
            [
                postprocess.heatmaps(list(group.values()), size, request.method.rectify, fuse, scale)
                for group in found.groups
            ]
        )
        boxes = found.run.arrays.get(CHOSEN_BOX)
        return self._explanation(found, request, fuse, heatmaps=heatmaps, boxes=boxes)

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
                f"labels (`--labels`) has {len(labels)} name{'s' * (len(labels) != 1)}, but the model has "
                f"{self._count} class{'es' * (self._count != 1)}: which name belongs to which class cannot "
                "be known."
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
        self,
        method: str | Method,
        target: Any,
        layers: str | Sequence[str] | None,
        count: int,
        smooth: Smooth,
        channels: Sequence[int] | None,
        progress: Progress | None,
        options: Mapping[str, Any],
    ) -> Request:
        chosen = method if isinstance(method, Method) else methods.get(method)
        chosen.check(options)
        if progress is not None and not callable(progress):
            raise InputError(
                f"progress is {progress!r}; it is called with the number of runs done and known of."
            )
        wanted = targets.resolve(target, count, self._count, self.labels, self.record.score)
        if chosen.finer is not None:
            wanted = targets.refined(wanted, chosen.finer, self.record.score)
        smoothed = smoothing.resolve(smooth)
        held = self._held(chosen, layers, options or smoothed.eigen or channels is not None)
        return Request(
            chosen,
            options,
            () if held is not None else self._layers(chosen, layers),
            wanted,
            smoothed,
            None if channels is None else _channels_of(chosen, channels),
            Passes(progress=progress),
            held,
        )

    def _held(self, method: Method, layers: str | Sequence[str] | None, changed: Any) -> Fused | None:
        """The map that the file computes, where there is no other way to it."""
        if not method.inside and not (self.record.maps_only and not method.runs):
            return None
        if layers is None:
            mine = [f for f in self.record.fused if f.method == method.name]
            found = mine[0] if mine else fused.require(self.record, method.name, ())
        else:
            wanted = [layers] if isinstance(layers, str) else list(layers)
            found = fused.require(self.record, method.name, wanted)
        if changed:
            raise MethodError(
                f"The map of '{method.name}' is computed inside the file, as it was rewritten: it takes no "
                "options, channels or eigen smoothing."
            )
        return found

    def _layers(self, method: Method, layers: str | Sequence[str] | None) -> tuple[Layer, ...]:
        """Those that the method looks at."""
        if method.layered and not self.layers:
            every = map(methods.get, methods.names())
            able = ", ".join(m.name for m in every if not m.layered and not m.inside)
            raise MethodError(
                f"The method '{method.name}' looks at a layer, and a file that was not rewritten shows none: "
                f"take one of {able}, or make the file explainable (`onnxcam rewrite`)."
            )
        if not method.layered:
            return ()
        one = isinstance(layers, str) or not isinstance(layers, Iterable)
        wanted: tuple[Any, ...] = self.layers if layers is None else (layers,) if one else tuple(layers)
        if not wanted:
            raise UnknownLayer(f"layers is empty; the file explains {', '.join(map(repr, self.layers))}.")
        known = {layer.name: layer for layer in self.record.layers}
        for name in wanted:
            if not isinstance(name, str) or name not in known:
                raise UnknownLayer(
                    f"The file does not explain a layer {name!r}.{nearest(str(name), list(known))} "
                    f"It explains {', '.join(map(repr, known))}."
                )
            if method.head is not None and known[name].head != method.head:
                fits = next((n for n in known if known[n].head == method.head), None)
                raise MethodError(
                    f"The method '{method.name}' needs a model that ends in global average pooling and one "
                    f"linear layer; after the layer '{name}' there is something else. Use 'gradcam', which "
                    "is its generalisation" + (f", or layers={fits!r}." if fits else ".")
                )
        return tuple(known[name] for name in wanted)

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

    def _channels(self) -> int:
        """The axis of the image input that counts its channels."""
        if len(self._image.shape) == 4:
            return 3 if inputs.layout_of(self._image, self.preprocess) == "NHWC" else 1
        return channel_axis(self._image.shape) if len(self._image.shape) in (3, 5) else 1

    def _size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of an input's grid: (h, w), a signal's (l,) or a volume's (d, h, w); empty if it has none."""
        if not 3 <= len(shape) <= 5:
            return ()
        return tuple(n for axis, n in enumerate(shape) if axis not in (0, self._file.channels))

    def _explanation(
        self,
        found: Evidence,
        request: Request,
        fuse: str,
        *,
        heatmaps: NDArray[np.float32] | list[NDArray[np.float32]],
        **of_photos: Any,
    ) -> Explanation:
        layer_maps = found.layer_maps
        maps = next(iter(layer_maps.values()))
        if len(layer_maps) > 1:
            several = list(layer_maps.values())
            maps = postprocess.heatmaps(several, _largest(layer_maps), request.method.rectify, fuse)
        run, class_ids = found.run, found.class_ids
        return Explanation(
            maps=maps,
            heatmaps=heatmaps,
            outputs={name: run.per_image(name) for name in self._file.own_outputs},
            class_ids=class_ids,
            scores=found.scores,
            labels=[
                name or _label(self.labels, int(i))
                for i, name in zip(class_ids, run.targets.names or [None] * len(class_ids), strict=True)
            ],
            image_index=request.targets.image_index,
            zero=np.array([not heatmap.any() for heatmap in heatmaps]),
            layer_maps=layer_maps,
            method=request.method.name,
            embeddings=run.per_image(EMBEDDING) if EMBEDDING in run.arrays else None,
            passes=request.passes.model,
            tail_passes=request.passes.tail,
            **of_photos,
        )


def _photo_heatmaps(
    found: Evidence, shown: Sequence[preprocess.Geometry], rectify: bool, fuse: str, scale: str
) -> list[NDArray[np.float32]]:
    """``postprocess.heatmaps`` onto photos: per row, scaled over what the model saw, 0 elsewhere."""
    groups = []
    for group in found.groups:
        scaled = [postprocess.scale(np.maximum(m, 0) if rectify else m, scale) for m in group.values()]
        placed = []
        for row, geometry in enumerate(shown):
            seen = preprocess.window(geometry)
            each = [preprocess.to_photo(m[row], geometry)[seen][None] for m in scaled]
            placed.append(postprocess.fuse(each, fuse)[0])
        groups.append(postprocess.scale_each(placed, scale))
    heatmaps = []
    for row, geometry in enumerate(shown):
        heatmap = np.zeros(geometry.photo, np.float32)
        heatmap[preprocess.window(geometry)] = _mean([group[row] for group in groups])
        heatmaps.append(heatmap)
    return heatmaps


def _mean(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return maps[0] if len(maps) == 1 else np.mean(maps, axis=0)


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


def _fusion(request: Request, fuse: str | None, scale: str) -> str:
    """How several layers become one heatmap; what a file did to its map cannot be undone."""
    name, held = request.method.name, request.fused
    if held is not None and held.scaled:
        finished = f"The file gives the map of '{name}' finished, "
        if scale == "batch":
            raise MethodError(
                f"{finished}each image's scaled on its own: leave scale='batch' out, or rewrite the model "
                f"with fuse={{'method': '{name}', 'scaled': False}} (`--fuse {name} --fuse-raw`)."
            )
        if len(held.layers) > 1 and fuse not in (None, held.fuse):
            raise MethodError(
                f"{finished}its layers fused by '{held.fuse}': leave fuse={fuse!r} out, or rewrite the model "
                f"with fuse={{'method': '{name}', 'fuse': {fuse!r}}}."
            )
    return request.method.fuse if fuse is None else fuse


def _channels_of(method: Method, channels: Sequence[int]) -> tuple[int, ...]:
    """The channels that alone take part."""
    if "tail" in method.needs or not method.layered:
        why = "runs what follows all of them" if method.layered else "looks at no layer"
        raise MethodError(f"The method '{method.name}' {why}: leave channels out.")
    try:
        chosen = tuple(map(operator.index, channels))
    except TypeError:
        chosen = ()
    if not chosen:
        raise InputError(f"channels are numbers of the layer's channels, such as [0, 17], not {channels!r}.")
    return chosen


def _label(labels: Sequence[str] | None, index: int) -> str:
    if index == NO_CLASS:
        return ""
    return labels[index] if labels is not None and index < len(labels) else f"class {index}"


def _largest(layer_maps: Mapping[str, NDArray[np.float32]]) -> tuple[int, ...]:
    return max((m.shape[1:] for m in layer_maps.values()), key=math.prod)
