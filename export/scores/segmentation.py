"""One class of a segmentation map, over a region."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...contract import CHOSEN_REGION, CLASS_INDEX, REGION, TOP_CLASS, Score
from ...errors import ScoreError
from ...grids import channel_axis, sides
from ..gradients.builder import Builder, Dims, Var, dims_of, is_static
from ..paths import image_input
from .found import (
    SAME_NUMBERS,
    Choice,
    FoundScore,
    ScoreSpec,
    arg_max,
    find_tensor,
    hot,
    logit,
    optional_input,
)


def find(graph: ir.Graph, spec: ScoreSpec) -> FoundScore:
    """See :func:`onnxcam.export.scores.find_score`.

    The score is the sum of the class's logits over the region (Vinogradova et al. 2020, "Towards
    Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping", eq. 1). Without a
    region it is the pixels that the model gives to the class; without a class, the one with most pixels.
    Of one map alone the pixels count that are more likely than not: a logit above 0, a probability above 0.5.
    """
    chosen = find_tensor(graph, spec.output)
    name = spec.output or chosen.name or ""
    activation, before = logit(chosen)
    same = dims_of(before) == dims_of(chosen)
    value = before if same and not spec.probability else chosen
    dims = dims_of(value)
    named = dims is not None and len(dims) == 3 and spec.task == "segmentation"
    single = named or (dims is not None and is_map(graph, dims))
    axis = None if dims is None else 1 if single else class_axis(graph, dims)
    if dims is None or axis is None:
        shape = "unknown" if dims is None else str(list(dims))
        raise ScoreError(
            f"The score {name!r} has shape {shape}; a segmentation has one map per class, [N, K, H, W] or "
            "[N, H, W, K] (of volumes [N, K, D, H, W]), or one map alone, [N, H, W]. Name another output "
            "with `score=`."
        )
    size = 1 if single else dims[axis]
    classes = size if isinstance(size, int) else None
    if spec.background is not None and classes is not None and not 0 <= spec.background < classes:
        raise ScoreError(f"The background {spec.background} is no class: {name!r} has {classes}.")

    def choose(op: Builder) -> Choice:
        index = optional_input(op, CLASS_INDEX, np.asarray([TOP_CLASS], dtype=np.int64))
        rank = 4 if single else len(dims)
        grid = [*range(1, rank - 1)]
        wished = optional_input(op, REGION, np.full((1,) * (rank - 1), np.nan, dtype=np.float32))
        y, output = (_with_class(op, op.single(op.wrap(v)), single) for v in (value, chosen))
        labels = arg_max(op, output, axis)
        if classes == 1:
            likely = output > (0.5 if spec.probability or _is_probability(chosen) else 0.0)
            likely = op.Squeeze(op.cast(likely, ir.DataType.INT64), [axis], dims=labels.dims)
            labels = Var((likely - 1).value, op, labels.dims)  # -1: of no class
        top = _most_pixels(op, labels, output, axis, spec.background)
        wanted = op.Where(index < 0, top, index, dims=y.shape[:1])
        everywhere = op.Unsqueeze(wanted, grid, dims=(y.shape[0], *[1] * len(grid)))
        mine = op.mask(op.Equal(labels, everywhere), wished)
        mine = Var(mine.value, op, labels.dims)
        fed = _at_size(op, wished, labels)
        taken = Var(op.where(op.IsNaN(fed), mine, fed).value, op, labels.dims)
        region = op.Unsqueeze(taken, [axis])
        one = tuple(1 if k == axis else d for k, d in enumerate(y.shape))
        region = Var(op.cast(region, y.dtype).value, op, one)
        seed = hot(op, wanted, y, axis) * region
        cotangent = op.Squeeze(seed, [1], dims=labels.dims) if single else seed
        return Choice(
            {value: cotangent},
            lambda: op.cast(op.sum(y * seed, [*range(1, rank)], keepdims=False), ir.DataType.FLOAT),
            lambda: wanted,
            {CHOSEN_REGION: op.cast(taken, ir.DataType.FLOAT)},
        )

    record = Score(
        output=name,
        tensor=value.name or "",
        activation=activation if same else None,  # type: ignore[arg-type]
        probability=spec.probability,
        classes=classes,
        task="segmentation",
        background=spec.background,
    )
    return FoundScore(record, (value,), choose)


def class_axis(graph: ir.Graph, dims: Dims) -> int | None:
    """Which axis of (N, K, H, W) or (N, H, W, K) counts the classes; None if it is no such tensor.

    Of images the last, where the other two fit the image better: they are in its proportion, or the image
    itself has its channels last. Of volumes and signals, where the input is of their rank, as it has them.
    """
    if len(dims) in (3, 5):
        whole = dims_of(image_input(graph)) or ()
        if len(whole) != len(dims) or all(d == 1 for d in dims[2:]):
            return None
        return len(dims) - 1 if channel_axis(whole) == len(dims) - 1 else 1
    if len(dims) != 4 or all(d == 1 for d in dims[2:]):
        return None
    image = _photo(graph)
    if image is None or not is_static((*dims[1:], *image[1:])):
        return 1 if image is None else channel_axis(image)
    fits = {1: _stretch(dims[2:4], sides(image)), 3: _stretch(dims[1:3], sides(image))}
    return min(fits, key=lambda axis: (round(fits[axis], 3), axis != channel_axis(image)))


def _photo(graph: ir.Graph) -> Dims | None:
    """The shape of the first input of rank 4; None if there is none."""
    return next((dims for v in graph.inputs if len(dims := dims_of(v) or ()) == 4), None)


_PLACED = SAME_NUMBERS | frozenset(
    "Transpose Resize Upsample Clip Slice Pad QuantizeLinear DequantizeLinear".split()
)


def _is_probability(value: ir.Value) -> bool:
    """Whether a sigmoid made a map, which was then moved or resized."""
    node = value.producer()
    while node is not None and node.op_type in _PLACED and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in ("Sigmoid", "HardSigmoid", "QLinearSigmoid")


def is_map(graph: ir.Graph, dims: Dims) -> bool:
    """Whether (N, H, W) is one number per place, a mask or a depth: in the image's proportion, not small."""
    image = _photo(graph)
    if image is None or len(dims) != 3:
        return False
    whole = sides(image)
    if not is_static((*dims[1:], *whole)):
        return False
    return min(int(d or 0) for d in dims[1:]) >= _A_MAP and _stretch(dims[1:], whole) == 0


_A_MAP = 16  #: sides of the smallest map that is taken for one


def _with_class(op: Builder, x: Var, single: bool) -> Var:
    """(N, H, W) as (N, 1, H, W)."""
    return op.Unsqueeze(x, [1], dims=(x.shape[0], 1, *x.shape[1:])) if single else x


def _stretch(grid: Dims, image: Dims) -> float:
    """How far a grid is from the image's proportion, as the logarithm of the ratio of the two scales."""
    a, b = (np.log(int(n or 1) / int(m or 1)) for n, m in zip(grid, image, strict=True))
    return float(abs(a - b))


def _most_pixels(op: Builder, labels: Var, output: Var, axis: int, background: int | None) -> Var:
    """(N,) the class with most pixels but the background; no table of classes by pixels is made."""
    n, k = output.shape[0], output.shape[axis]
    flat = op.Reshape(labels, [0, -1], dims=(n, None))
    size = op.Concat(op.Shape(labels, start=0, end=1), op.Shape(output, start=axis, end=axis + 1), axis=0)
    none = op.Expand(op.const(np.zeros((), np.float32)), size, dims=(n, k))
    one = op.Expand(op.const(np.ones((), np.float32)), op.Shape(flat), dims=flat.dims)
    counts = op.ScatterElements(none, flat, one, axis=1, reduction="add", dims=(n, k))
    if background is not None:
        left_out = op.binary("Equal", op.iota(output, axis), background)
        counts = op.where(left_out, op.const(np.asarray(-1, np.float32)), counts)
    return arg_max(op, Var(counts.value, op, (n, k)), 1)


def _at_size(op: Builder, region: Var, labels: Var) -> Var:
    """A region of any size at that of the label map."""
    x = op.Unsqueeze(region, [1], dims=(region.shape[0], 1, *region.shape[1:]))
    size = op.Concat(op.Shape(x, start=0, end=2), op.Shape(labels, start=1), axis=0)
    resized = op.Resize(
        x,
        None,
        None,
        size,
        mode="nearest",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="floor",
        dims=(region.shape[0], 1, *labels.shape[1:]),
    )
    return op.Squeeze(resized, [1], dims=(region.shape[0], *labels.shape[1:]))
