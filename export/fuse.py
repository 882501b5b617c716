"""Maps inside the file: a method and what follows it, traced into the graph.

The functions are those that run on NumPy's arrays: the method's own, :mod:`onnxcam.grids`' and
:func:`onnxcam.postprocess.pipeline`, on tensors of :class:`.namespace.Traced`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import onnx_ir as ir

from .. import methods
from ..contract import Fused, Layer, heatmap_name
from ..errors import MethodError, ModelError, UnknownLayer, nearest
from ..fused import why_not
from ..grids import channel_axis
from ..interpolation import linear
from ..methods import Method
from ..postprocess import pipeline
from .gradients.builder import Builder, Dims, Var, dims_of
from .layers import listed
from .namespace import Traced
from .needs import PROVIDERS, Given, Scene

Size = Literal["layer", "input"]


@dataclass(frozen=True)
class FuseSpec:
    """A map that a file is to compute.

    Attributes:
        method: its name.
        layers: of the file's; None: all of them.
        size: ``input``: as large as the model's input; ``layer``: as the layer's grid, or the largest. None:
            ``input`` of scaled maps, ``layer`` of raw ones. A host that makes a heatmap of a raw map drops
            negative evidence and scales before it enlarges (:func:`onnxcam.postprocess.pipeline`), as the
            file does with a scaled one; of a raw map that was enlarged first it makes another.
        scaled: whether negative evidence is dropped and each image's map scaled to [0, 1]; if not, the map is
            the method's own, in the score's units, and of one layer.
        fuse: how several layers' maps become one; None: as the method has it.
    """

    method: str
    layers: tuple[str, ...] | None = None
    size: Size | None = None
    scaled: bool = True
    fuse: str | None = None


FuseLike: TypeAlias = "str | Mapping[str, Any] | FuseSpec"


@dataclass(frozen=True)
class TracedMap:
    """A fused map, and what its method was given in the graph: what a check on the host starts from."""

    fused: Fused
    given: tuple[Mapping[str, Given], ...]


def as_specs(fuse: FuseLike | Sequence[FuseLike] | None, maps_only: bool = False) -> tuple[FuseSpec, ...]:
    """Methods' names, fields of a :class:`FuseSpec`, or such, one or several.

    Raises:
        MethodError: an unknown method, one that cannot be computed inside a file, an unknown field or value,
            or nothing to fuse for a file of ``maps_only``.
        UnknownLayer: layers that are no names.
    """
    given: Any = () if fuse is None else fuse
    one = isinstance(given, str | Mapping | FuseSpec) or not isinstance(given, Iterable)
    specs = [given] if one else list(given)
    if maps_only and not specs:
        raise MethodError(
            "A file that gives maps alone needs to know which: name a method with fuse= (`--fuse METHOD`)."
        )
    return tuple(_checked(_spec(spec)) for spec in specs)


def _spec(one: FuseLike) -> FuseSpec:
    if isinstance(one, FuseSpec):
        return one
    if not isinstance(one, Mapping):
        return FuseSpec(one)
    known = [f.name for f in dataclasses.fields(FuseSpec)]
    for name in one:
        if name not in known:
            raise MethodError(
                f"A fused map has no field {name!r}.{nearest(str(name), known)} It has {', '.join(known)}."
            )
    if "method" not in one:
        raise MethodError("A fused map needs a method: fuse={'method': 'gradcam', ...}.")
    return FuseSpec(**one)


def _checked(spec: FuseSpec) -> FuseSpec:
    method = methods.get(spec.method)
    reason = why_not(method)
    if reason is not None:
        can = ", ".join(n for n in methods.names() if why_not(methods.get(n)) is None)
        raise MethodError(
            f"The method '{method.name}' cannot be computed inside a file. {reason} These can: {can}."
        )
    if spec.size is not None and spec.size not in get_args(Size):
        raise MethodError(f"The size of a fused map is 'layer' or 'input', not {spec.size!r}.")
    layers = listed(spec.layers)
    return dataclasses.replace(
        spec,
        layers=None if layers is None else tuple(layers),
        fuse=method.fuse if spec.fuse is None else spec.fuse,
    )


def add_maps(scene: Scene, specs: Sequence[FuseSpec]) -> tuple[TracedMap, ...]:
    """Append the nodes and outputs of fused maps.

    Args:
        scene: the graph, and what is known of it.
        specs: checked by :func:`as_specs`.

    Raises:
        UnknownLayer: a layer that the file does not explain.
        MethodError: a layer that the method does not allow, or raw maps of several layers.
        ShapeUnknown: a method that needs a size which is open.
    """
    return tuple(_add(scene, spec) for spec in specs)


def _add(scene: Scene, spec: FuseSpec) -> TracedMap:
    method = methods.get(spec.method)
    sites = _sites(scene, spec, method)
    if not spec.scaled and len(sites) > 1:
        raise MethodError(
            f"Raw maps of {len(sites)} layers are on {len(sites)} scales: fuse the method '{method.name}' at "
            "one of them (layers=), or scaled."
        )
    op, xp = scene.op, Traced(scene.op)
    given: list[Mapping[str, Given]] = []
    raw = []
    with op.working_on(f"map {method.name}", "maps"):
        for site in sites:
            tensors: dict[str, Given] = {need: PROVIDERS[need](scene, site) for need in method.needs}
            given.append(tensors)
            raw.append(_raw(op, xp, method, tensors))
        wanted: Size = spec.size or ("input" if spec.scaled else "layer")
        size, dims = _size(scene, raw, wanted)
        resize = functools.partial(linear, xp=xp)
        if spec.scaled:
            made = pipeline(raw, size, method.rectify, spec.fuse or "mean", xp=xp, resize=resize)
        else:
            made = raw[0] if size is None else resize(raw[0], size)
    image = dims_of(scene.image) or ()
    batch = made.shape[0] if isinstance(made.shape[0], int) or not image else image[0]
    name = op.unique(heatmap_name(method.name))
    like = ir.Value(type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((batch, *dims)))
    op.graph.outputs.append(op.output(made, name, like))
    layers = tuple(site.name for site in sites if site is not None)
    fused = Fused(method.name, name, layers, wanted, spec.scaled, spec.fuse or "mean")
    return TracedMap(fused, tuple(given))


def _sites(scene: Scene, spec: FuseSpec, method: Method) -> Sequence[Layer | None]:
    """The layers to look at; one that is None for a method that looks at none."""
    if not method.layered:
        return [None]
    wanted = tuple(scene.layers) if spec.layers is None else spec.layers
    for name in wanted:
        if name not in scene.layers:
            raise UnknownLayer(
                f"The file does not explain a layer {name!r}, so no map can be fused there."
                f"{nearest(name, list(scene.layers))} It explains {', '.join(map(repr, scene.layers))}."
            )
        if method.head is not None and scene.layers[name].layer.head != method.head:
            raise MethodError(
                f"The method '{method.name}' needs a model that ends in global average pooling and one "
                f"linear layer; after the layer '{name}' there is something else. Fuse 'gradcam', which is "
                "its generalisation."
            )
    return [scene.layers[name].layer for name in wanted]


def _raw(op: Builder, xp: Traced, method: Method, given: Mapping[str, Given]) -> Var:
    """The method's map, in the grid of what it was given."""
    made = method(**{need: g.handed(g.tensors, xp) for need, g in given.items()}, xp=xp)
    first = next(iter(given.values()))
    grid = [op.dim(first.tensors[0], k) for k in range(first.lead, first.tensors[0].rank)]
    return made if len(grid) == 2 else xp.reshape(made, (made.shape[0], *grid))


def _size(scene: Scene, raw: Sequence[Var], size: Size) -> tuple[list[int | Var] | None, Dims]:
    """What to resize to, None to leave the maps as they are; and the sizes as far as the graph knows them."""
    rank = raw[0].rank - 1
    op, image = scene.op, scene.op.wrap(scene.image)
    axes: list[int] = []
    if 3 <= image.rank <= 5:
        last = scene.channels_last if image.rank == 4 else None
        channels = channel_axis(image.shape) if last is None else 3 if last else 1
        axes = [k for k in range(1, image.rank) if k != channels]
    if size == "input" and (len(axes) == rank or (rank, len(axes)) == (2, 3)):  # frames: time was averaged
        wanted = tuple(image.shape[k] for k in axes[-rank:])
        same = all(m.shape[1:] == wanted for m in raw) and None not in wanted
        return None if same else [op.dim(image, k) for k in axes[-rank:]], wanted
    if len(raw) == 1:
        return None, raw[0].shape[1:]
    grids = [m.shape[1:] for m in raw]
    if not all(isinstance(d, int) for grid in grids for d in grid):
        raise ModelError(
            "Which of several layers has the largest grid is not known where their sizes are open: fuse them "
            "at the input's size (size='input'), or one by one."
        )
    largest = max(grids, key=lambda grid: math.prod(d for d in grid if isinstance(d, int)))
    return [d for d in largest if isinstance(d, int)], largest
