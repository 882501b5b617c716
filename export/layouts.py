"""Where a graph's tensors keep their channels and their grid, followed from the input on."""

from __future__ import annotations

from typing import TypeAlias

import onnx_ir as ir

from ..contract import Factor, Layout
from ..grids import CHANNELS_FIRST, CHANNELS_LAST, LETTERS, channel_axis, grid_of
from .axes import LOST, Atom, Axes, Axis, Tokens, atoms, lettered, letters
from .axis_rules import CHANNELS, Known, Step, axes_of, pieces
from .gradients.builder import Dims, dims_of
from .gradients.control_flow import captured_by
from .paths import image_input
from .shapes import in_plain_operators

#: Layouts by value: of those whose grid is known.
Layouts: TypeAlias = dict[ir.Value, Layout]


def layouts(graph: ir.Graph) -> Layouts:
    """The layout of every value whose grid is known.

    Args:
        graph: with shapes inferred, nodes in topological order.
    """
    plain = in_plain_operators(graph)
    if plain is not graph:
        named = {v.name: layout for v, layout in layouts(plain).items()}
        return {v: named[v.name] for node in graph for v in node.outputs if v.name in named}
    image = dims_of(image_input(graph)) or ()
    kept = ((v, layout_of(axes, one_image=image[:1] == (1,))) for v, axes in _axes(graph).items())
    return {
        v: layout
        for v, layout in kept
        if layout is not None
        and v.producer() is not None
        # Of an image one axis alone is no place.
        and (len(image) != 4 or len(grid_of(layout, dims_of(v) or ())) > 1)
    }


def _axes(graph: ir.Graph) -> dict[ir.Value, Axes]:
    """The axes of every value that is followed."""
    image = image_input(graph)
    dims = dims_of(image) or ()
    found = {image: seed} if (seed := _seed(image, dims)) else {}
    moving = {v for v in graph.inputs if not v.is_initializer()}
    gridded: set[ir.Value] = set()
    known = Known(found, moving, gridded, dims)
    for node in graph:
        if node.op_type in _OF_SIZES or not any(v in moving for v in (*node.inputs, *captured_by(node))):
            continue
        moving.update(node.outputs)
        first = node.inputs[0] if node.inputs else None
        shape = dims_of(node.outputs[0])
        if shape is None or not shape:
            continue
        step = Step(
            node, shape, found.get(first) if first else None, dims_of(first) if first else None, known
        )
        made = pieces(step) if node.op_type == "Split" else [axes_of(step)]
        new = {v: axes for v, axes in zip(node.outputs, made, strict=False) if axes is not None}
        found |= new
        gridded.update(v for v, axes in new.items() if letters(axes))
    return found


_OF_SIZES = ("Shape", "Size")  #: what depends on the image's size alone is a constant here


def _seed(image: ir.Value, dims: Dims) -> Axes | None:
    """Of the input that takes the image; None where its channels cannot be told."""
    rank = len(dims)
    if not 3 <= rank <= 5:
        return None
    axis = channel_axis(dims)
    if rank == 3:
        users = {n.op_type for n in image.consumers()}
        axis = 1 if "Conv" in users else 2 if users & {"MatMul", "LayerNormalization"} else 0
    if axis == 0 or (rank > 3 and dims[axis] not in CHANNELS):
        return None
    places = "N" + LETTERS[5 - rank :]
    return lettered(f"{places[:axis]}C{places[axis:]}", dims)


def layout_of(axes: Axes, one_image: bool = False) -> Layout | None:
    """Axes as the contract has them; None where there is no grid, or it could not be put together.

    Args:
        axes: of a tensor.
        one_image: the batch is always one, and need not be among the axes.
    """
    of = [a.of for a in atoms(axes)]
    grid = [letter for letter in LETTERS if letter in of]
    places = [(a.of, a.stride) for a in atoms(axes) if a.of in LETTERS]
    if not grid or LOST in of or of.count("N") not in (1, 1 - one_image) or len(set(places)) < len(places):
        return None
    return _plain(axes) or _tokens(axes) or _factored(axes)


def _plain(axes: Axes) -> Layout | None:
    """One axis for each letter; an image may have lost its rows or its columns."""
    rank = len(axes)
    if not 3 <= rank <= 5 or not _is_batch(axes[0]) or (rank == 5 and len(letters(axes)) < 3):
        return None
    for kinds, channels, grid in ((CHANNELS_FIRST, axes[1], axes[2:]), (CHANNELS_LAST, axes[-1], axes[1:-1])):
        alone = all(_is_letter(a, letter) for a, letter in zip(grid, LETTERS[5 - rank :], strict=True))
        if alone and _is_channels(channels):
            return Layout(kinds[rank - 3])  # type: ignore[arg-type]
    return None


def _tokens(axes: Axes) -> Layout | None:
    """(N, tokens, C), the cells row by row."""
    if len(axes) != 3 or not _is_batch(axes[0]) or not _is_channels(axes[2]):
        return None
    (*_, last) = axes[1]
    around = last if isinstance(last, Tokens) else Tokens(0, tuple(atoms([axes[1]])), 0)
    sizes = [a.size for a in around.cells if a.size is not None]
    in_order = [a.of for a in around.cells] == [letter for letter in LETTERS if letter in letters([axes[1]])]
    if axes[1] not in ((around,), around.cells) or not in_order or len(sizes) < len(around.cells):
        return None
    return Layout("tokens", around.before, tuple(sizes), around.after)


def _factored(axes: Axes) -> Layout | None:
    """Anything else whose sizes are known."""
    around = [a for axis in axes for a in axis if isinstance(a, Tokens)]
    flat = atoms(axes)
    if any(a.size is None for a in flat if a.of != "N") or len(around) > 1:
        return None
    if around and letters(axes) != letters([(around[0],)]):
        return None
    if around and sum(a.of in LETTERS for a in flat) > len(around[0].cells):
        return None
    factors = tuple(tuple(_factor(a) for a in atoms([axis])) for axis in axes)
    before, after = (around[0].before, around[0].after) if around else (0, 0)
    return Layout("factored", before, None, after, factors)


def _factor(a: Atom) -> Factor:
    return Factor(a.of, None if a.of == "N" else a.size, a.stride)  # type: ignore[arg-type]


def _is_batch(axis: Axis) -> bool:
    return all(isinstance(a, Atom) and a.of == "N" for a in axis)


def _is_channels(axis: Axis) -> bool:
    return all(isinstance(a, Atom) and a.of == "C" for a in axis)


def _is_letter(axis: Axis, letter: str) -> bool:
    return len(axis) <= 1 and all(isinstance(a, Atom) and a.of == letter for a in axis)
