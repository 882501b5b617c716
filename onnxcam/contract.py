"""The contract of an explainable file: its tensor names and its JSON record.

Both halves import these names; nothing else in the project spells them. The record is stored
in the model's ``metadata_props`` under :data:`KEY`, so that ONNX Runtime reads it without the
``onnx`` package.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .errors import BadRecord, NotExplainable, SchemaTooNew

KEY = "onnxcam"  #: the metadata property that holds the record
SCHEMA = 1  #: the newest schema that this version reads and the one it writes
PREFIX = "cam."  #: every graph input and output that we add starts so
CLASS_INDEX = "cam.class_index"  #: input, int64 [N]; -1 (the default) is each image's top class
REGION = "cam.region"  #: input, float32 [N, h, w] or [N, d, h, w]: the pixels' weights, at any size
BOX = "cam.box"  #: input, float32 [N, 4]: x1, y1, x2, y2 in pixels of the model's input
REFERENCE = "cam.reference"  #: input, float32 [N, D]: what an embedding is compared with
SEED = "cam.seed"  #: input: a cotangent in the score's shape, where one was asked for
WITH_GRADIENTS = "cam.with_gradients"  #: input of a tail, bool [1]; False (the default) leaves them out
PATCHES = "cam.patches"  #: input of a tail, float32 [R, C]: the channels of changed cells of the layer
CELLS = "cam.cells"  #: input of a tail, int64 [R, 2]: of each changed cell the copy and the place in the grid
SCORE = "cam.score"  #: output, float32 [N]: the number that is explained
CLASS = "cam.class"  #: output, int64 [N]: the class that is explained
EMBEDDING = "cam.embedding"  #: output, float32 [N, D]: what :data:`REFERENCE` is compared with
CHOSEN_BOX = "cam.chosen_box"  #: output, float32 [N, 4]: the detection that is explained, like :data:`BOX`
CHOSEN_REGION = "cam.chosen_region"  #: output, float32 [N, h, w]: what is explained, like :data:`REGION`
TOP_CLASS = -1

Task: TypeAlias = Literal["classification", "regression", "segmentation", "detection", "embedding"]

#: The inputs by which each task's score is chosen. Feeding them is optional, for the whole batch or, with
#: -1 or NaN in its place, for one image.
CHOICES: Mapping[Task, tuple[str, ...]] = {
    "classification": (CLASS_INDEX,),
    "regression": (CLASS_INDEX,),
    "segmentation": (CLASS_INDEX, REGION),
    "detection": (CLASS_INDEX, BOX),
    "embedding": (REFERENCE,),
}


def seed_name(output: str | None = None) -> str:
    """The graph input for the weights of an output; of the score itself without one."""
    return SEED if output is None else f"{SEED}.{output}"


def activations_name(layer: str) -> str:
    """The graph output that carries a layer's activations."""
    return f"cam.activations.{layer}"


def gradients_name(layer: str) -> str:
    """The graph output that carries d score / d activations of a layer."""
    return f"cam.gradients.{layer}"


def heatmap_name(method: str) -> str:
    """The graph output that carries a map computed inside the file."""
    return f"cam.heatmap.{method}"


def side_name(number: int) -> str:
    """The output of a file, and the input of its tails, that carries what goes around a layer."""
    return f"cam.side.{number}"


@dataclass(frozen=True)
class Factor:
    """A part of a tensor's axis.

    Attributes:
        of: N, the images; C, channels; or a letter of the grid: z, y, x for depth, rows and columns.
        size: None for N.
        stride: of the grid's letters, how many cells one step spans.
    """

    of: Literal["N", "C", "z", "y", "x"]
    size: int | None
    stride: int = 1


@dataclass(frozen=True)
class Layout:
    """Where a layer's tensor keeps its channels and its grid of one, two or three axes.

    Attributes:
        kind: the axes by their letters (D, H, W of a volume, H, W of an image, L of a signal); ``tokens``, a
            tensor (N, prefix + cells + suffix, C) with the cells row by row; or ``factored``: windows, heads
            and whatever else ``axes`` describes.
        prefix: tokens before the grid's (class, distillation and register tokens).
        grid: of ``tokens``: (h, w), of volumes (d, h, w), of signals (l,); else None.
        suffix: tokens behind the grid's.
        axes: of ``factored``: each axis as a product of factors, the slowest first. With a prefix or a
            suffix, all of the grid's factors follow each other in one axis, and those are around them.
    """

    kind: Literal["NCL", "NLC", "NCHW", "NHWC", "NCDHW", "NDHWC", "tokens", "factored"] = "NCHW"
    prefix: int = 0
    grid: tuple[int, ...] | None = None
    suffix: int = 0
    axes: tuple[tuple[Factor, ...], ...] = ()


@dataclass(frozen=True)
class Layer:
    """One layer that a file explains.

    Attributes:
        name: what the user calls it: a module path, a node name or a tensor name.
        tensor: the value of the source graph.
        activations, gradients: the graph outputs, of equal shape and dtype; but the gradients of half
            precision are float32, so that small ones do not become zero, and so are activations in
            bfloat16, which NumPy does not know.
        layout: see :class:`Layout`.
        shape: one entry per axis: a size, a symbol, or None where unknown.
        head: ``gap-linear`` if only global average pooling and a linear map lie between the
            layer and the score, so that the gradient is the classifier's weight over h*w and
            CAM (Zhou et al. 2016) applies; None for any other head.
    """

    name: str
    tensor: str
    activations: str
    gradients: str
    layout: Layout = field(default_factory=Layout)
    shape: tuple[int | str | None, ...] = ()
    head: Literal["gap-linear"] | None = None


@dataclass(frozen=True)
class Seed:
    """An input that takes the weights of a linear functional, to be explained instead of the choice.

    The functional is the sum of weight times value over ``tensor``. Unfed it is NaN; weights for several
    outputs add up.

    Attributes:
        output: what the user calls it: a graph output, or an inner tensor.
        tensor: the value that is differentiated: the logit before the output's softmax or sigmoid, or the
            output itself.
        input: the graph input, in the shape and dtype of ``tensor`` (float32 for half precision).
        shape: of ``tensor``: a size, a symbol or None per axis.
    """

    output: str
    tensor: str
    input: str = SEED
    shape: tuple[int | str | None, ...] = ()


@dataclass(frozen=True)
class Score:
    """What is explained.

    ``classification`` and ``regression``: one entry of (N, K), (N,), or of any shape, counted row by row.
    ``segmentation``: the sum of one class's scores over a region of (N, K, H, W), (N, H, W, K), (N, H, W), or
    of volumes and signals likewise. ``detection``: the confidence of
    one box and class. ``embedding``: the cosine similarity of (N, D) to a reference.

    Attributes:
        output: the graph output that holds the scores, or an inner tensor; then :data:`SCORE` and
            :data:`CLASS` are outputs of the file.
        tensor: the value that is differentiated: the logit before the output's softmax or
            sigmoid, or the output itself.
        activation: what lies between ``tensor`` and ``output``; None if they are the same.
        probability: True if the output after its activation is explained instead of the logit.
        classes: K, or None where the file does not say.
        task: see above; :data:`CHOICES` are its inputs.
        background: the class of a segmentation that is nobody's top class; None if there is none.
        seeds: the inputs for general scores.
        rest: whether it is the residual softmax score y + log softmax(y) of the class instead of its logit y.
    """

    output: str
    tensor: str
    activation: Literal["softmax", "log_softmax", "sigmoid"] | None = None
    probability: bool = False
    classes: int | None = None
    task: Task = "classification"
    background: int | None = None
    seeds: tuple[Seed, ...] = ()
    rest: bool = False


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes the model's input: value = (pixel * scale - mean) / std.

    Attributes:
        input: the graph input that takes the image.
        size: (H, W) of the model's input in pixels.
        fit: ``stretch`` to the size; ``crop``: resize the shorter side, then cut the centre;
            ``letterbox``: fit the whole photo inside and pad.
        resize: with ``crop``, the shorter side before cutting, or (H, W); None: the size itself.
        interpolation: of the resize, with Pillow's antialiasing when it shrinks if ``antialias``.
        channels: ``RGB``, ``BGR`` or ``L`` (one grey channel).
        scale: factor on the 0-255 pixel value.
        mean, std: one value per channel (in the order of ``channels``) or a single one.
        layout: of the tensor.
        pad_value: grey of the letterbox's bars, 0-255.
        anchor: where the letterbox puts the photo.
    """

    input: str = ""
    size: tuple[int, int] = (224, 224)
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    resize: int | tuple[int, int] | None = None
    interpolation: Literal["nearest", "linear", "cubic", "lanczos", "area"] = "linear"
    antialias: bool = True
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    pad_value: int = 114
    anchor: Literal["center", "top-left"] = "center"

    def __post_init__(self) -> None:
        """Raise ValueError where no photo could be brought into such an input."""
        resize = (
            self.resize if isinstance(self.resize, tuple) else (1 if self.resize is None else self.resize,)
        )
        if min(*self.size, *resize) < 1 or self.scale == 0 or 0 in self.std:
            raise ValueError("size and resize must be at least 1, scale and std must not be zero")
        count = 1 if self.channels == "L" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, count):
                channels = f"channel{'s' * (count != 1)} ({self.channels})"
                raise ValueError(f"{name} has {len(values)} values for {count} {channels}")


@dataclass(frozen=True)
class Source:
    """Where the file came from: the source's name, SHA-256 of its bytes ("" for a module)."""

    name: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Fused:
    """A map that the file itself computes, (N, ...grid) float32.

    Attributes:
        method: its name.
        output: the graph output that carries it.
        layers: of this record, those that it was made from; empty for a method that looks at no layer.
        size: ``input``: of the model's input; ``layer``: of the layer's grid, of several the largest.
        scaled: whether it is a finished heatmap in [0, 1] (:func:`onnxcam.postprocess.heatmaps`); if not, it
            is the method's own map, in the score's units, resized where ``size`` says so.
        fuse: how several layers became one.
    """

    method: str
    output: str
    layers: tuple[str, ...] = ()
    size: Literal["layer", "input"] = "input"
    scaled: bool = True
    fuse: str = "mean"


@dataclass(frozen=True)
class Side:
    """A value that a tail reads and that its layer does not make: what goes around the layer.

    Attributes:
        name: the file's output, and the tail's input.
        tensor: the value of the source graph; "" if it is none.
        rows: how many entries of the first axis each image has, one image's after the other's; 0 if the
            value is the same for all images of a run.
    """

    name: str
    tensor: str = ""
    rows: int = 1


@dataclass(frozen=True)
class Tail:
    """What follows a layer, as a file of its own.

    Attributes:
        layer: its name.
        file: that lies beside the file which has this record.
        sha256: of its bytes, in hexadecimal; weights that lie beside it are not in it.
        sides: what it takes besides the layer's activations.
        rows: how many entries of the first axis of the layer's tensor each image has.
        local: whether it takes :data:`PATCHES` and :data:`CELLS`, of copies that differ from one image's
            activations in some cells alone; then those are what it is run on.
    """

    layer: str
    file: str
    sha256: str
    sides: tuple[Side, ...] = ()
    rows: int = 1
    local: bool = False


@dataclass(frozen=True)
class Record:
    """All that a runtime must know about an explainable file; see the module's docstring.

    Attributes:
        fused: the maps that the file itself computes.
        maps_only: whether those are all that it explains by: the layers' tensors are no outputs.
        tails: the files of what follows each layer, where they were asked for.
        tail_of: of such a file, the name of the one that it belongs to; it has that one's record but for
            the other layers. Empty for any other file.
    """

    layers: tuple[Layer, ...]
    score: Score
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None
    fused: tuple[Fused, ...] = ()
    maps_only: bool = False
    source: Source = field(default_factory=Source)
    tool_version: str = ""
    tails: tuple[Tail, ...] = ()
    tail_of: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Compact JSON; :meth:`from_json` gives an equal record back."""
        body = {"schema": self.schema, **dataclasses.asdict(self)}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Parse a record.

        Raises:
            SchemaTooNew: written by a newer onnxcam.
            BadRecord: not JSON, or a field is missing or of the wrong type.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise BadRecord(f"The file's onnxcam record is not JSON: {e}. Rewrite the source model.") from e
        schema = body.get("schema") if isinstance(body, dict) else None
        if type(schema) is not int or schema < 1:
            raise BadRecord("The file's onnxcam record has no schema number. Rewrite the source model.")
        if schema > SCHEMA:
            raise SchemaTooNew(
                f"The file's onnxcam record has schema {schema}; this version reads up to {SCHEMA}. "
                "Upgrade onnxcam (`pip install -U onnxcam`) or rewrite the source model with this version."
            )
        try:
            return typing.cast(Record, build(cls, body, "record"))
        except (TypeError, ValueError, KeyError) as e:
            raise BadRecord(f"The file's onnxcam record is damaged: {e}. Rewrite the source model.") from e


def read_record(metadata: Mapping[str, str], what: str = "the file") -> Record:
    """The record in a model's metadata.

    Args:
        metadata: the model's metadata properties.
        what: the file's name for the message.

    Raises:
        NotExplainable: there is none.
        SchemaTooNew, BadRecord: see :meth:`Record.from_json`.
    """
    if KEY not in metadata:
        raise NotExplainable(
            f"{what} is an ONNX model but not an explainable one: it has no '{KEY}' record. "
            "Make one with `onnxcam rewrite model.onnx -o model.cam.onnx`, or open it with black_box=True "
            "(`onnxcam explain --black-box`) for methods that need nothing but scores."
        )
    return Record.from_json(metadata[KEY])


def refuse_tail(record: Record, what: str = "The model") -> None:
    """Raise NotExplainable if a record is that of what follows a layer alone."""
    if record.tail_of:
        raise NotExplainable(
            f"{what} is a tail: it computes what follows a layer, and no image goes in. Take "
            f"'{record.tail_of}', the explainable file that it was written with."
        )


def make_preprocess(fields: Mapping[str, Any]) -> Preprocess:
    """A :class:`Preprocess` from plain values (lists for tuples, a number for a one-tuple).

    Raises:
        ValueError: an unknown field or a value outside its field's choices.
    """
    plain = dict(fields)
    for name in ("mean", "std"):
        if isinstance(plain.get(name), (int, float)):
            plain[name] = (float(plain[name]),)
    if isinstance(plain.get("size"), int):
        plain["size"] = (plain["size"], plain["size"])
    known = [f.name for f in dataclasses.fields(Preprocess)]
    unknown = sorted(set(plain) - set(known))
    if unknown:
        raise ValueError(f"Unknown preprocessing field {unknown[0]!r}; the fields are {', '.join(known)}.")
    try:
        return typing.cast(Preprocess, build(Preprocess, plain, "preprocess"))
    except (TypeError, ValueError) as e:
        raise ValueError(f"Unusable preprocessing: {e}.") from e


def build(kind: Any, value: Any, where: str) -> Any:
    """``value`` (plain JSON) as the annotated type ``kind``.

    Fields that a dataclass does not know are from a later revision of the same schema: ignored.

    Raises:
        TypeError, ValueError: it is none; ``where`` says where it stands.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"{where} is not an object")
        hints = typing.get_type_hints(kind)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        missing = [
            n
            for n, f in fields.items()
            if n not in value
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ValueError(f"{where} has no '{missing[0]}'")
        return kind(**{n: build(hints[n], v, f"{where}.{n}") for n, v in value.items() if n in fields})  # type: ignore[operator]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        args = tuple(arm for arm in args if arm is not type(None))
        if len(args) == 1:  # an optional value: why it does not fit is worth saying
            return build(args[0], value, where)
        for arm in args:
            try:
                return build(arm, value, where)
            except (TypeError, ValueError):
                continue
        raise TypeError(f"{where} is {value!r}")
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} is {value!r}, not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"{where} is {value!r}, not a list")
        if args[-1] is Ellipsis:
            return tuple(build(args[0], v, where) for v in value)
        if len(args) != len(value):
            raise ValueError(f"{where} has {len(value)} entries, not {len(args)}")
        return tuple(build(a, v, where) for a, v in zip(args, value, strict=True))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise TypeError(f"{where} is {value!r}, not an object")
        return {build(args[0], k, where): build(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{where} is {value!r}")
    return value
