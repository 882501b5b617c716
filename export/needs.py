"""What a method may need, in the graph: one function for each, in one table.

To add one, write a function from the :class:`Scene` and the layer to :class:`Given`, and enter it in
:data:`PROVIDERS` under its name in :data:`onnxcam.methods.NEEDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ..contract import Layer, Layout
from ..errors import LayerNotOnPath
from ..grids import channels_first
from .gradients.builder import Builder, Var
from .gradients.engine import differentiate
from .namespace import Traced
from .scores import Choice, FoundScore


@dataclass(frozen=True)
class Site:
    """A layer.

    Attributes:
        layer: of the record.
        value: of the source graph.
        activations, gradients: as the file's outputs have them, in the layer's own layout.
    """

    layer: Layer
    value: ir.Value
    activations: Var
    gradients: Var


@dataclass(frozen=True)
class Scene:
    """The graph that maps are traced into.

    Attributes:
        op: its builder.
        image: the input that takes the image.
        channels_last: whether that is (N, H, W, C); None if only its shape can tell.
        choice: what is differentiated.
        found: the score.
        layers: by name.
    """

    op: Builder
    image: ir.Value
    channels_last: bool | None
    choice: Choice
    found: FoundScore
    layers: Mapping[str, Site]
    made: dict[tuple[str, str], Given] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a method is given for one need.

    Attributes:
        tensors: what it is handed, (B, C, ...grid) each; of a need that is one tensor, that alone.
        raw: what it was made of, as the file's outputs have it.
        layout: of ``raw``; None if it is ``tensors`` already.
        several: whether the method is handed a tuple.
    """

    tensors: tuple[Var, ...]
    raw: tuple[Var, ...]
    layout: Layout | None = None
    several: bool = False

    @property
    def first(self) -> Var:
        """The tensor whose grid is the map's."""
        return self.tensors[0]

    def map(self, function: Callable[[Any], Any]) -> Any:
        """What the method is handed, each tensor by way of a function."""
        made = tuple(map(function, self.tensors))
        return made if self.several else made[0]


Provider = Callable[[Scene, Layer | None], Given]


def _of_layer(which: str) -> Provider:
    def provide(scene: Scene, layer: Layer | None) -> Given:
        assert layer is not None
        key = which, layer.name
        if key not in scene.made:
            raw: Var = getattr(scene.layers[layer.name], which)
            tensor = channels_first(raw, layer.layout, Traced(scene.op))
            scene.made[key] = Given((tensor,), (raw,), layer.layout)
        return scene.made[key]

    return provide


def _curvature(scene: Scene, layer: Layer | None) -> Given:
    """The layer's second derivative times its activations: the engine differentiates what it made."""
    assert layer is not None
    key = "curvature", layer.name
    if key not in scene.made:
        op, site = scene.op, scene.layers[layer.name]
        seed = op.cast(op.single(site.activations), site.gradients.dtype)
        op.say_shapes()
        try:
            raw = differentiate(op, {site.gradients.value: seed}, [site.value], "the gradient")[site.value]
        except LayerNotOnPath:  # what follows the layer is piecewise linear
            raw = op.zeros_like(site.gradients)
        raw = Var(raw.value, op, site.gradients.dims)
        tensor = channels_first(raw, layer.layout, Traced(op))
        scene.made[key] = Given((tensor,), (raw,), layer.layout)
    return scene.made[key]


PROVIDERS: dict[str, Provider] = {
    "activations": _of_layer("activations"),
    "gradients": _of_layer("gradients"),
    "curvature": _curvature,
}
