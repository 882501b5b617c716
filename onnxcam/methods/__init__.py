"""The CAM methods: a registry of pure functions on arrays.

To add a method, write one function in a module of this folder, a new one or an existing one::

    @method("layercam", source="Jiang et al., IEEE TIP 2021", formula="M = Σ_k relu(G^k) A^k")
    def layercam(activations, gradients, *, xp=NUMPY): ...

Nothing else has to be edited: every module of the folder is imported here, and the command line,
the README's table and the tests read the registry.

A method maps the activations A and the gradients G = ∂score/∂A of one layer, both (B, C, h, w), to
a raw map (B, h, w): at the layer's resolution, in the score's units, of any sign. Scaling and
resizing are :mod:`onnxcam.postprocess`'s. The function has no state and calls nothing but operators
(``+ - * /``, ``<``, ``>``) and what :class:`Namespace` lists, because the same function is also
traced into an ONNX graph; NumPy is the namespace on the host.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy

from onnxcam.errors import MethodError, nearest

__all__ = ["NUMPY", "Array", "Method", "Namespace", "get", "method", "names"]

Array: TypeAlias = Any  #: a NumPy array on the host, a value of the graph where a method is traced


class Namespace(Protocol):
    """All that a method may call, with NumPy's meaning: a subset of the array API standard, and einsum."""

    def sum(self, x: Array, /, *, axis: int | tuple[int, ...], keepdims: bool = False) -> Array: ...
    def mean(self, x: Array, /, *, axis: int | tuple[int, ...], keepdims: bool = False) -> Array: ...
    def max(self, x: Array, /, *, axis: int | tuple[int, ...], keepdims: bool = False) -> Array: ...
    def min(self, x: Array, /, *, axis: int | tuple[int, ...], keepdims: bool = False) -> Array: ...
    def maximum(self, a: Array, b: Array | float, /) -> Array: ...
    def minimum(self, a: Array, b: Array | float, /) -> Array: ...
    def where(self, condition: Array, a: Array | float, b: Array | float, /) -> Array: ...
    def exp(self, x: Array, /) -> Array: ...
    def abs(self, x: Array, /) -> Array: ...
    def sqrt(self, x: Array, /) -> Array: ...
    def matmul(self, a: Array, b: Array, /) -> Array: ...
    def reshape(self, x: Array, shape: tuple[int, ...], /) -> Array: ...
    def einsum(self, equation: str, /, *operands: Array) -> Array: ...


NUMPY = cast(Namespace, numpy)  #: the host's namespace


class Function(Protocol):
    """A method's function: ``activations`` and ``gradients`` (B, C, h, w) to a map (B, h, w)."""

    def __call__(self, activations: Array, gradients: Array, *, xp: Namespace = ...) -> Array: ...


F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Method:
    """One method of the registry.

    Attributes:
        name: what the user calls it; ``:pgc`` and the like mark a library's variant of a formula.
        function: see :class:`Function`; what ``needs`` does not list may be None.
        needs: the tensors that the function reads.
        source: the paper, or the library for a variant.
        formula: one line, in the papers' symbols: A^k and G^k are channel k of A and G.
        rectify: False if negative evidence takes part in the scaling of the map.
        head: the only head (``contract.Layer.head``) that the method is defined for; None: any.
    """

    name: str
    function: Function
    needs: tuple[Literal["activations", "gradients"], ...]
    source: str
    formula: str
    rectify: bool = True
    head: Literal["gap-linear"] | None = None


_methods: dict[str, Method] = {}


def method(
    name: str,
    *,
    source: str,
    formula: str,
    needs: tuple[Literal["activations", "gradients"], ...] = ("activations", "gradients"),
    rectify: bool = True,
    head: Literal["gap-linear"] | None = None,
) -> Callable[[F], F]:
    """Register the decorated function; the arguments are :class:`Method`'s."""

    def register(function: F) -> F:
        if name in _methods:
            raise ValueError(f"The method {name!r} is registered twice.")
        _methods[name] = Method(name, function, needs, source, formula, rectify, head)
        return function

    return register


def names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(_methods)


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        MethodError: there is none; the nearest names are given.
    """
    if not isinstance(name, str) or name not in _methods:
        known = names()
        raise MethodError(f"No method {name!r}.{nearest(str(name), known)} There are: {', '.join(known)}.")
    return _methods[name]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
