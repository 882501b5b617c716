"""What a method may need, in the graph: one function for each, in one table.

To add one, write a function from the :class:`Scene` and the layer to :class:`Given`, and enter it in
:data:`PROVIDERS` under its name in :data:`onnxcam.methods.NEEDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ..contract import Layer, Layout
from ..errors import LayerNotOnPath, ModelError
from ..grids import CHANNELS_FIRST, CHANNELS_LAST, channel_axis, channels_first
from .attention import behind, over_cells, transformer
from .biases import bias
from .gradients.builder import Builder, Var
from .gradients.engine import differentiate
from .gradients.quantized import is_real
from .gradients.registry import Rule, bound
from .layouts import Layouts
from .namespace import Traced
from .paths import on_path
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
        known: the layouts of the graph's values.
        made: what was provided already.
    """

    op: Builder
    image: ir.Value
    channels_last: bool | None
    choice: Choice
    found: FoundScore
    layers: Mapping[str, Site]
    known: Layouts
    made: dict[tuple[str, str], Given] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a method is given for one need.

    Attributes:
        tensors: (B, C, ...grid) each, in the grid of the map the first.
        raw: what they were made of, as the file's outputs have it.
        layout: of ``raw``; None if it is ``tensors`` already.
        several: whether the method is handed a tuple.
        lead: how many axes stand before the grid.
    """

    tensors: tuple[Var, ...]
    raw: tuple[Var, ...]
    layout: Layout | None = None
    several: bool = False
    lead: int = 2

    def handed(self, tensors: Sequence[Any], xp: Any) -> Any:
        """What the method is handed of such tensors: images, a signal being one row, a volume one column."""
        made = tuple(self._as_image(tensor, xp) for tensor in tensors)
        return made if self.several else made[0]

    def _as_image(self, tensor: Any, xp: Any) -> Any:
        *lead, width = tensor.shape
        flat = len(tensor.shape) - self.lead == 2
        return tensor if flat else xp.reshape(tensor, (*lead[: self.lead], -1, width))


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


def _biases(scene: Scene, layer: Layer | None) -> Given:
    """The input times its gradient, and each bias times the gradient where it is added."""
    key = "biases", ""
    if key not in scene.made:
        op = scene.op
        path = on_path(op.graph, scene.choice.seeds)
        found = {v: b for v in path if v in scene.known and (b := bias(op, _maker(v))) is not None}
        gradients = _from_score(scene, [scene.image, *found])
        pairs = [(scene.image, op.single(op.wrap(scene.image))), *found.items()]
        terms = [(v, Var((gradients[v] * b).value, op, gradients[v].dims)) for v, b in pairs]
        layouts = {scene.image: image_layout(scene), **scene.known}
        made = tuple(channels_first(term, layouts[v], Traced(op)) for v, term in terms)
        scene.made[key] = Given(made, made, several=True)
    return scene.made[key]


def _guided(scene: Scene, layer: Layer | None) -> Given:
    """The input's gradient, which a ReLU passes on only where it is positive."""
    key = "guided", ""
    if key not in scene.made:
        rules = [bound(_guided_relu, "Relu", "X")]
        raw = _from_score(scene, [scene.image], rules)[scene.image]
        layout = image_layout(scene)
        scene.made[key] = Given((channels_first(raw, layout, Traced(scene.op)),), (raw,), layout)
    return scene.made[key]


def _guided_relu(op: Builder, g: Var, Y: Var) -> Var:
    return op.where(Y > 0, op.binary("Max", g, 0.0), 0.0)


def _attention(scene: Scene, layer: Layer | None) -> Given:
    """Per block the gradient of its score, which the head makes of its tokens, at its attention."""
    key = "attention", ""
    if key not in scene.made:
        op, score = scene.op, scene.found.value
        if set(scene.choice.seeds) != {score} or scene.found.score.rest:
            raise ModelError(
                "The score of a block is one output's logit or probability: leave other scores (`rest`, "
                "`seed` of several outputs) out to fuse a map that is made of the blocks' attention."
            )
        model = transformer(on_path(op.graph, [score]), score, scene.known)
        end = model.blocks[-1].tokens
        made = []
        for block in model.blocks:
            with op.working_on("the score of a block", block.attention.name or ""):
                own = behind(op, model.head, end, block.tokens, score)
                op.say_shapes()
                gradients = differentiate(op, {own: scene.choice.seeds[score]}, [block.attention])
                gradient = op.single(gradients[block.attention])
                made.append(over_cells(op, gradient, op.wrap(block.tokens), model.layout))
        scene.made[key] = Given(tuple(made), tuple(made), several=True, lead=3)
    return scene.made[key]


def _from_score(scene: Scene, wrt: Sequence[ir.Value], rules: Sequence[Rule] = ()) -> dict[ir.Value, Var]:
    """The score's gradients, in float32 at least."""
    score = scene.found.score
    if not is_real(scene.image):
        raise ModelError(
            f"The model's input {scene.image.name!r} holds whole numbers: it has no gradient, and a map that "
            "is made of that cannot be fused."
        )
    made = differentiate(
        scene.op, scene.choice.seeds, wrt, score.output, unclipped=not score.probability, rules=rules
    )
    return {value: scene.op.single(g) for value, g in made.items()}


def image_layout(scene: Scene) -> Layout:
    """Of the image input."""
    dims = scene.op.wrap(scene.image).shape
    channels = channel_axis(dims) if 3 <= len(dims) <= 5 else -1
    if len(dims) == 4 and scene.channels_last is not None:
        channels = 3 if scene.channels_last else 1
    kinds = {1: CHANNELS_FIRST, len(dims) - 1: CHANNELS_LAST}
    if channels not in kinds:
        raise ModelError(
            f"The model's input {scene.image.name!r}, {list(dims)}, is no signal, image or volume: a map in "
            "its grid cannot be fused."
        )
    return Layout(kinds[channels][len(dims) - 3])  # type: ignore[arg-type]


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


PROVIDERS: dict[str, Provider] = {
    "activations": _of_layer("activations"),
    "gradients": _of_layer("gradients"),
    "curvature": _curvature,
    "biases": _biases,
    "guided": _guided,
    "attention": _attention,
}
