"""The confidence of one box and class of a detector, before non-maximum suppression.

How a detector keeps its boxes is its *head*:

=======  ==========================================================================================
yolov5   one output (N, A, 5 + K): cx, cy, w, h in pixels, objectness, class scores (also v7; v6, v3)
yolov8   one output (N, 4 + K, A): cx, cy, w, h in pixels, class scores (also v9, v11)
yolov10  one output (N, A, 6) without need of suppression: x1, y1, x2, y2 in pixels, score, class (also v26)
yolox    one output (N, A, 5 + K) as the network makes it: offsets and log-sizes in cells of the
         grids of stride 8, 16 and 32, objectness, class scores
detr     two outputs: class logits (N, A, K + 1), the last of them "nothing"; boxes (N, A, 4), cx, cy, w, h
         in shares of the image (also YOLOS)
rtdetr   the same with independent classes (N, A, K) (also Deformable DETR)
nms      the inputs of a NonMaxSuppression in the graph: boxes (N, A, 4), scores (N, K, A)
=======  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...contract import BOX, CHOSEN_BOX, CLASS_INDEX, TOP_CLASS, Score
from ...errors import ScoreError
from ...grids import sides
from ..gradients.builder import Builder, Var, dims_of, is_static
from .found import (
    Choice,
    FoundScore,
    ScoreSpec,
    Units,
    arg_max,
    find_tensor,
    given,
    hot,
    optional_input,
    pick,
    pick_row,
)

_WITH_BOXES = ("detr", "rtdetr")  #: heads whose boxes are an output of their own
_STRIDES = (8, 16, 32)  #: of YOLOX's three grids, in the order of its rows


@dataclass(frozen=True)
class Detections:
    """What a head holds, as operands.

    Attributes:
        boxes: (N, A, 4) x1, y1, x2, y2 in the head's units.
        confidence: (N, A, K).
        seeds: from the one-hot row (N, A, 1), its index (N,) and the class's one-hot (N, 1, K) to the
            cotangents.
        labels: (N, A) int64, where each row is of one class alone; then K is 1.
    """

    boxes: Var
    confidence: Var
    seeds: Callable[[Var, Var, Var], dict[ir.Value, Var]]
    labels: Var | None = None


@dataclass(frozen=True)
class _Head:
    values: tuple[ir.Value, ...]
    classes: int | None
    read: Callable[[Builder], Detections]
    units: Units = "pixels"


def find(graph: ir.Graph, spec: ScoreSpec) -> FoundScore:
    """See :func:`onnxcam.export.scores.find_score`.

    Without a class or a box the most confident detection is explained. With a box it is the one that fits
    it best (overlap times confidence), of the given class if there is one.
    """
    kind = spec.head or _told(graph, spec)
    if spec.boxes is not None and kind not in _WITH_BOXES:
        raise ScoreError(
            f"The head {kind!r} says where its boxes are, so that there is no output of boxes to name: leave "
            f"`boxes` (`--boxes`) out, or name another head; those with such an output are "
            f"{', '.join(_WITH_BOXES)}."
        )
    head = _HEADS[kind](graph, spec)
    shares = (spec.box_units or head.units) == "shares"
    size = _image_size(graph) if shares else (1, 1)

    def choose(op: Builder) -> Choice:
        index = optional_input(op, CLASS_INDEX, np.asarray([TOP_CLASS], dtype=np.int64))
        box = optional_input(op, BOX, np.full((1, 1), np.nan, dtype=np.float32))
        found = head.read(op)
        n, a, k = found.confidence.shape
        boxes = found.boxes
        if shares:
            pixels = boxes * op.const(np.asarray([size[1], size[0]] * 2, np.float32))
            boxes = Var(pixels.value, op, boxes.dims)
        # A class that was asked for leaves the others at 0.
        column = op.Unsqueeze(index, [1, 2], dims=(index.shape[0], 1, 1))
        own = (
            op.iota(found.confidence, 2)
            if found.labels is None
            else op.Unsqueeze(found.labels, [2], dims=(n, a, 1))
        )
        asked = op.Or(column < 0, op.binary("Equal", column, own))
        confidence = Var((found.confidence * op.mask(asked, found.confidence)).value, op, (n, a, k))
        best = op.node("ReduceMax", [confidence, [2]], {"keepdims": 0}, (n, a))
        fits = op.where(given(op, box), _overlap(op, boxes, box), op.const(np.ones((), np.float32)))
        at = arg_max(op, Var((op.cast(best, ir.DataType.FLOAT) * fits).value, op, (n, a)), 1)
        classes = pick_row(op, confidence, at)
        wanted = arg_max(op, classes, 1)
        row = hot(op, at, op.slice(confidence, [0], [1], [2]), 1)
        of_class = op.Unsqueeze(hot(op, wanted, classes, 1), [1], dims=(n, 1, k))
        score = pick(op, classes, wanted)
        if found.labels is not None:  # perhaps no row is of the class that was asked for
            row = Var((row * op.mask(asked, row)).value, op, row.dims)
            wanted = op.where(index < 0, pick(op, found.labels, at), index)
        return Choice(
            found.seeds(row, at, of_class),
            lambda: op.cast(score, ir.DataType.FLOAT),
            lambda: wanted,
            {CHOSEN_BOX: pick_row(op, boxes, at)},
        )

    first = head.values[0]
    name = first.name or ""
    record = Score(spec.output or name, name, classes=head.classes, task="detection")
    return FoundScore(record, head.values, choose)


def _told(graph: ir.Graph, spec: ScoreSpec) -> str:
    """The head, where the graph leaves no doubt."""
    if any(n.op_type == "NonMaxSuppression" for n in graph):
        return "nms"
    floats = [v for v in graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
    if _boxes_output(graph, spec) is not None and len(floats) > 1:
        raise ScoreError(
            "Whether this detector's last class means 'nothing' cannot be seen: name its head with "
            '`score={"task": "detection", "head": "detr"}` (it does: DETR, YOLOS) or "rtdetr" (it does not).'
        )
    dims = dims_of(find_tensor(graph, spec.output))
    match dims:
        case (_, int(c), a) if c > 5 and (not isinstance(a, int) or a > c):
            return "yolov8"
        case (_, _, int(c)) if c > 5:
            raise ScoreError(
                f"Whether the boxes in {list(dims)} are decoded cannot be seen: name the head with "
                '`score={"task": "detection", "head": "yolov5"}` (pixels) or "yolox" (cells of the grid)'
                + (', or "yolov10" (x1, y1, x2, y2, score, class).' if c == 6 else ".")
            )
    raise ScoreError(
        f"No detector's head is known in {'an unknown shape' if dims is None else list(dims)}: name it with "
        f'`score={{"task": "detection", "head": ...}}`; there are {", ".join(_HEADS)}.'
    )


def _yolo(graph: ir.Graph, spec: ScoreSpec) -> _Head:
    value = find_tensor(graph, spec.output)
    dims = dims_of(value)
    columns = spec.head != "yolov5" and spec.head != "yolox"
    first = 4 if columns else 5
    width = None if dims is None or len(dims) != 3 else dims[1] if columns else dims[2]
    if not isinstance(width, int) or width <= first:
        raise ScoreError(
            f"The score {value.name!r} has shape {'unknown' if dims is None else list(dims)}; the head "
            f"{spec.head or 'yolov8'!r} has {'[N, 4 + K, A]' if columns else '[N, A, 5 + K]'}."
        )
    grid = _cells(graph, value) if spec.head == "yolox" else None

    def read(op: Builder) -> Detections:
        y = op.single(op.wrap(value))
        y = op.transpose(y, [0, 2, 1]) if columns else y
        classes = op.slice(y, [first], [width], [2])
        box = op.cast(op.slice(y, [0], [4], [2]), ir.DataType.FLOAT)
        if grid is not None:
            cells, strides = (op.const(table) for table in grid)
            centre = (op.slice(box, [0], [2], [2]) + cells) * strides
            box = op.Concat(centre, op.Exp(op.slice(box, [2], [4], [2])) * strides, axis=2, dims=box.dims)
        objectness = None if columns else op.slice(y, [4], [5], [2])
        confidence = classes if objectness is None else objectness * classes

        def seeds(row: Var, at: Var, column: Var) -> dict[ir.Value, Var]:
            n = y.shape[0]
            if objectness is None:
                part = column
            else:  # of the product objectness * class
                classes_there = op.Unsqueeze(pick_row(op, classes, at), [1], dims=column.dims)
                box_there = op.Unsqueeze(pick_row(op, objectness, at), [1], dims=(n, 1, 1))
                slopes = op.sum(classes_there * column, [2]), column * box_there
                part = op.Concat(*slopes, axis=2, dims=(n, 1, width - 4))
            whole = row * op.pad(part, [0, 0, 4], [0, 0, 0])
            whole = Var(whole.value, op, y.dims)
            return {value: op.transpose(whole, [0, 2, 1]) if columns else whole}

        return Detections(_corners(op, box), confidence, seeds)

    return _Head((value,), width - first, read)


def _rows(graph: ir.Graph, spec: ScoreSpec) -> _Head:
    value = find_tensor(graph, spec.output)
    dims = dims_of(value)
    if dims is None or len(dims) != 3 or dims[2] != 6:
        raise ScoreError(
            f"The score {value.name!r} has shape {'unknown' if dims is None else list(dims)}; the head "
            "'yolov10' has [N, A, 6]."
        )

    def read(op: Builder) -> Detections:
        y = op.single(op.wrap(value))
        n, a, _ = y.shape
        labels = op.cast(op.Squeeze(op.slice(y, [5], [6], [2]), [2], dims=(n, a)), ir.DataType.INT64)

        def seeds(row: Var, at: Var, column: Var) -> dict[ir.Value, Var]:
            return {value: Var((row * op.pad(column, [0, 0, 4], [0, 0, 1])).value, op, y.dims)}

        boxes = op.cast(op.slice(y, [0], [4], [2]), ir.DataType.FLOAT)
        return Detections(boxes, op.slice(y, [4], [5], [2]), seeds, labels)

    return _Head((value,), None, read)


def _detr(graph: ir.Graph, spec: ScoreSpec) -> _Head:
    boxes = _boxes_output(graph, spec)
    others = [v for v in graph.outputs if v is not boxes and _ranked(v, 3)]
    named = find_tensor(graph, spec.output) if spec.output is not None else None
    scores = named or (others[0] if len(others) == 1 else None)
    dims = None if scores is None else dims_of(scores)
    if boxes is None or scores is None or dims is None or len(dims) != 3 or not isinstance(dims[2], int):
        raise ScoreError(
            f"The head {spec.head!r} has class scores [N, A, K] and boxes [N, A, 4]; the outputs are "
            f"{', '.join(f'{v.name!r} {list(dims_of(v) or ())}' for v in graph.outputs)}. Name them: "
            '`score={"task": "detection", "output": ..., "boxes": ...}`.'
        )
    nothing = spec.head == "detr"
    classes = dims[2] - nothing

    def read(op: Builder) -> Detections:
        z = op.single(op.wrap(scores))
        shares = op.Softmax(z, axis=2) if nothing else op.Sigmoid(z)
        confidence = op.slice(shares, [0], [classes], [2])

        def seeds(row: Var, at: Var, column: Var) -> dict[ir.Value, Var]:
            whole = row * op.pad(column, [0, 0, 0], [0, 0, int(nothing)])
            return {scores: Var(whole.value, op, z.dims)}

        corners = _corners(op, op.cast(op.wrap(boxes), ir.DataType.FLOAT))
        return Detections(corners, confidence, seeds)

    return _Head((scores,), classes, read, "shares")


def _suppressed(graph: ir.Graph, spec: ScoreSpec) -> _Head:
    nodes = [n for n in graph if n.op_type == "NonMaxSuppression"]
    if not nodes:
        raise ScoreError("The head 'nms' needs a NonMaxSuppression in the graph, and there is none.")
    node = nodes[-1]  # a first one may choose the regions that are looked at (Faster R-CNN)
    boxes, scores = node.inputs[0], node.inputs[1]
    assert boxes is not None
    assert scores is not None
    centred = bool(node.attributes.get_int("center_point_box", 0))
    dims = dims_of(scores)
    classes = dims[1] if dims is not None and len(dims) == 3 and isinstance(dims[1], int) else None

    def read(op: Builder) -> Detections:
        s = op.single(op.wrap(scores))
        if s.dims is None:
            s = Var(s.value, op, (None, classes, None))
        confidence = op.transpose(s, [0, 2, 1])
        box = op.cast(op.wrap(boxes), ir.DataType.FLOAT)
        box = Var(box.value, op, (*confidence.shape[:2], 4))
        # Corners come as y1, x1, y2, x2.
        corners = _corners(op, box) if centred else op.Gather(box, [1, 0, 3, 2], axis=2, dims=box.dims)

        def seeds(row: Var, at: Var, column: Var) -> dict[ir.Value, Var]:
            whole = op.transpose(Var((row * column).value, op, confidence.dims), [0, 2, 1])
            return {scores: whole}

        return Detections(corners, confidence, seeds)

    return _Head((scores,), classes, read)


_HEADS: dict[str, Callable[[ir.Graph, ScoreSpec], _Head]] = {
    "yolov5": _yolo,
    "yolov8": _yolo,
    "yolov10": _rows,
    "yolox": _yolo,
    "detr": _detr,
    "rtdetr": _detr,
    "nms": _suppressed,
}


def _corners(op: Builder, box: Var) -> Var:
    """cx, cy, w, h as x1, y1, x2, y2."""
    centre, half = op.slice(box, [0], [2], [2]), op.slice(box, [2], [4], [2]) * 0.5
    return op.Concat(centre - half, centre + half, axis=2, dims=box.dims)


def _overlap(op: Builder, boxes: Var, box: Var) -> Var:
    """(N, A): intersection over union of boxes (N, A, 4) with one box each (N, 4)."""
    n, a, _ = boxes.shape
    # One entry where nothing was fed: then nothing is read of it.
    full = op.Expand(box, [1, 4], dims=(box.shape[0], 4))
    one = op.Unsqueeze(full, [1], dims=(box.shape[0], 1, 4))
    low = op.Max(*(op.slice(x, [0], [2], [2]) for x in (boxes, one)), dims=(n, a, 2))
    high = op.Min(*(op.slice(x, [2], [4], [2]) for x in (boxes, one)), dims=(n, a, 2))
    both = _area(op, op.Max(high - low, op.operand(0.0, boxes), dims=(n, a, 2)))
    areas = [_area(op, op.slice(x, [2], [4], [2]) - op.slice(x, [0], [2], [2])) for x in (boxes, one)]
    union = op.Max(areas[0] + areas[1] - both, op.operand(1e-9, boxes), dims=(n, a))
    return Var((both / union).value, op, (n, a))


def _area(op: Builder, sides: Var) -> Var:
    n, a, _ = sides.shape
    product = op.slice(sides, [0], [1], [2]) * op.slice(sides, [1], [2], [2])
    return op.Squeeze(product, [2], dims=(n, a))


def _cells(graph: ir.Graph, value: ir.Value) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The corner (A, 2) and the stride (A, 1) of each row's cell."""
    h, w = _image_size(graph)
    cells, strides = [], []
    for stride in _STRIDES:
        ys, xs = np.mgrid[: h // stride, : w // stride]
        cells.append(np.stack([xs.ravel(), ys.ravel()], 1))
        strides.append(np.full((xs.size, 1), stride))
    table = np.concatenate(cells).astype(np.float32)
    rows = (dims_of(value) or (None, None))[1]
    if isinstance(rows, int) and rows != len(table):
        raise ScoreError(
            f"The head 'yolox' has one row for each cell of the grids of stride 8, 16 and 32: {len(table)} "
            f"for an image of {h} x {w}, but {value.name!r} has {rows}."
        )
    return table, np.concatenate(strides).astype(np.float32)


def _image_size(graph: ir.Graph) -> tuple[int, int]:
    for value in graph.inputs:
        dims = dims_of(value) or ()
        if len(dims) == 4:
            size = sides(dims)
            if is_static(size):
                return size  # type: ignore[return-value]
    raise ScoreError(
        "The boxes of this head depend on the size of the image, which the model leaves open: "
        "fix it with `input_shapes=`."
    )


def _boxes_output(graph: ir.Graph, spec: ScoreSpec) -> ir.Value | None:
    if spec.boxes is not None:
        return find_tensor(graph, spec.boxes)
    found = [v for v in graph.outputs if _ranked(v, 3) and (dims_of(v) or ())[-1] == 4]
    return found[0] if len(found) == 1 else None


def _ranked(value: ir.Value, rank: int) -> bool:
    return value.shape is not None and len(value.shape) == rank
