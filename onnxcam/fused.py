"""Maps computed inside a file: which methods can be, and which a file holds."""

from __future__ import annotations

from collections.abc import Sequence

from . import methods
from .contract import Fused, Record
from .errors import MethodError
from .methods import Method

#: What the graph holds or can be made to hold, so that a method which needs nothing else can be traced.
IN_GRAPH = frozenset({"activations", "gradients"}) | methods.INSIDE


def fusable() -> dict[str, str | None]:
    """Every method by name: None if it can be computed inside a file, else the reason why not."""
    return {name: why_not(methods.get(name)) for name in methods.names()}


def why_not(method: Method) -> str | None:
    """Why a method cannot be computed inside a file, in a sentence; None if it can."""
    if method.host is not None:
        return method.host
    if method.runs:
        return "It runs the model many times."
    if method.finer is not None:
        return "It explains a difference of scores that is chosen when the file runs."
    if not IN_GRAPH.issuperset(method.needs):
        return "It runs the model on noisy copies of the input."
    return None


def usable(record: Record) -> list[str]:
    """The methods that a file can be asked for: those it holds, and of the layers' tensors others."""
    held = {fused.method for fused in record.fused}
    return [name for name in methods.names() if name in held or _of_tensors(record, methods.get(name))]


def _of_tensors(record: Record, method: Method) -> bool:
    heads = {layer.head for layer in record.layers}
    there = not record.maps_only and not method.inside and ("tail" not in method.needs or bool(record.tails))
    return there and (method.head is None or heads == {method.head})


def find(record: Record, method: str, layers: Sequence[str], fuse: str | None = None) -> Fused | None:
    """The map of a method, at these layers, that a file holds; None if it holds none.

    Args:
        record: the file's.
        method: a method's name.
        layers: their names, in any order; of none for methods that look at no layer.
        fuse: how the layers' maps become one; None: in any way.
    """
    for fused in record.fused:
        of_layers = set(fused.layers) == set(layers)
        if fused.method == method and of_layers and (fuse in (None, fused.fuse) or len(layers) < 2):
            return fused
    return None


def require(record: Record, method: str, layers: Sequence[str]) -> Fused:
    """:func:`find`, for what is nowhere else: the layers' tensors are no outputs of the file.

    Raises:
        MethodError: the file does not hold the map; the message names those that it does, if any.
    """
    found = find(record, method, layers)
    if found is None:
        at = f" at {', '.join(map(repr, layers))}" if layers else ""
        held = ", ".join(map(told, record.fused))
        anew = f"the model with fuse={method!r} (`--fuse {method}`)"
        instead = f"It holds {held}: take one of these, or rewrite {anew}." if held else f"Rewrite {anew}."
        others = "" if record.maps_only else " `onnxcam inspect FILE` lists what else it can be asked for."
        raise MethodError(
            f"The file holds no map of the method '{method}'{at}, nor what it is made of. {instead}{others}"
        )
    return found


def told(fused: Fused) -> str:
    """A map in words: ``'gradcam' at 'layer4'``."""
    return f"'{fused.method}'" + (f" at {', '.join(map(repr, fused.layers))}" if fused.layers else "")
