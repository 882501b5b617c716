"""The CAM methods: a registry of pure functions on arrays.

To add a method, write one function in a module of this folder, a new one or an existing one::

    @weighting("layercam", source="Jiang et al., IEEE TIP 2021", formula="M = Σ_k relu(G^k) A^k", per="cell")
    def layercam(activations, gradients, *, xp=NUMPY): ...

Nothing else has to be edited: every module of the folder is imported here, and the command line,
the README's table and the tests read the registry.

A method names what it ``needs`` (:data:`NEEDS`) and is called with exactly that, in that order. Most need
the activations A and the gradients G = ∂score/∂A of one layer, both (B, C, h, w), and give a raw map
(B, h, w): at the layer's resolution, in the score's units, of any sign. Scaling and resizing are
:mod:`onnxcam.postprocess`'s. :func:`weighting` is for those whose map is Σ_k W^k A^k: the function gives W,
so that the products can be smoothed before they are summed; :func:`method` is for all others. Further
keyword arguments with defaults are the method's options.

The function has no state. One that is to be computed inside a file calls nothing but operators
(``+ - * /``, ``<``, ``>``) and what :class:`Namespace` lists, because the same function is traced into an
ONNX graph; NumPy is the namespace on the host. One that needs more says why in ``host``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy

from onnxcam.errors import MethodError, nearest
from onnxcam.kinds import is_finite, is_whole

__all__ = ["NEEDS", "NUMPY", "Array", "Method", "Namespace", "get", "method", "names", "weighting"]

Array: TypeAlias = Any  #: a NumPy array on the host, a value of the graph where a method is traced

Need: TypeAlias = Literal[
    "activations", "gradients", "noisy", "curvature", "biases", "attention", "guided", "tail", "masked"
]

#: What a method may need, and what it is given.
NEEDS: Mapping[str, str] = {
    "activations": "A, the layer's activations, (B, C, h, w)",
    "gradients": "G = ∂score/∂A, (B, C, h, w)",
    "noisy": "a function from samples, sigma and a seed to the means of G, G², G³ over noisy copies",
    "curvature": "∂(Σ G·A)/∂A with the factor A held constant, (B, C, h, w); inside a file only",
    "biases": "the input times its gradient, then each node's bias times its; inside a file only",
    "attention": "per block its score's gradient at its attention, (B, heads, queries, h, w); inside a file",
    "guided": "the input's guided gradient; inside a file only",
    "tail": "a function from changed activations of one image to scores; needs the file's tail",
    "masked": "a function from masks over one image to scores",
}

INSIDE = frozenset({"curvature", "biases", "attention", "guided"})  #: needs that exist in the graph alone
RUNS = frozenset({"tail", "masked"})  #: needs that run the model, image by image


class Namespace(Protocol):
    """All that a traced method may call, with NumPy's meaning: part of the array API standard, and einsum."""

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

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """One method of the registry.

    Attributes:
        name: what the user calls it; ``:pgc`` and the like mark a library's variant of a formula.
        function: what it needs, in that order, then its options, to a raw map (B, h, w); of one that runs the
            model, one image's, to a map for each of its T targets, (T, h, w).
        needs: see :data:`NEEDS`.
        source: the paper, or the library for a variant.
        formula: one line, in the papers' symbols: A^k and G^k are channel k of A and G.
        rectify: False if negative evidence takes part in the scaling of the map.
        head: the only head (``contract.Layer.head``) that the method is defined for; None: any.
        fuse: how the maps of several layers become one where nothing else is said.
        host: why the function cannot be traced into a file; None if it can.
        products: A, G to W^k A^k, (B, C, h, w), whose sum over the channels the map is; None for other maps.
        finer: what the target's weights are where the method explains the difference to its nearest classes
            (see :class:`onnxcam.targets.Finer`); None: the target is explained as it is.
        options: the function's further arguments, {name: default}.
    """

    name: str
    function: Callable[..., Array]
    needs: tuple[Need, ...]
    source: str
    formula: str
    rectify: bool = True
    head: Literal["gap-linear"] | None = None
    fuse: str = "mean"
    host: str | None = None
    products: Callable[..., Array] | None = None
    finer: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.function).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "xp"}
        object.__setattr__(self, "options", options)

    def __call__(self, **given: Array) -> Array:
        """The map of what is needed, given by name (what is not needed may be there, too), and of options."""
        options = {name: value for name, value in given.items() if name not in NEEDS}
        return self.function(*(given[name] for name in self.needs), **options)

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the function cannot be called with; what else they must be it says itself.

        Raises:
            MethodError: there is no such option, its value is of another kind than its default (which None
                leaves open), a number that is not finite, or a seed below 0.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(f"{k} ({v})" for k, v in self.options.items()) or "none"
                near = nearest(name, list(self.options))
                raise MethodError(f"The method '{self.name}' has no option {name!r}.{near} It has: {known}.")
            wanted = type(self.options[name])
            if wanted in _WANTED and not _fits(value, wanted, name):
                raise MethodError(
                    f"The option '{name}' of the method '{self.name}' is {_WANTED[wanted]}"
                    f"{', 0 or more' * (name == 'seed')}, such as {self.options[name]!r}, not {value!r}."
                )

    @property
    def kind(self) -> str:
        """What it takes: ``layer``, one pass; ``tail``; many ``passes``; or it is ``inside`` a file."""
        if self.inside:
            return "inside"
        if "tail" in self.needs:
            return "tail"
        return "layer" if {"activations", "gradients"}.issuperset(self.needs) else "passes"

    @property
    def inside(self) -> bool:
        """Whether it exists inside a file alone."""
        return not INSIDE.isdisjoint(self.needs)

    @property
    def layered(self) -> bool:
        """Whether it looks at a layer."""
        return not {"activations", "gradients", "noisy", "curvature", "tail"}.isdisjoint(self.needs)

    @property
    def runs(self) -> bool:
        """Whether it runs the model itself, image by image."""
        return not RUNS.isdisjoint(self.needs)


#: What an option is, by the type of its default.
_WANTED: Mapping[type, str] = {int: "a whole number", float: "a finite number", str: "a name"}


def _fits(value: Any, wanted: type, name: str) -> bool:
    if wanted is str:
        return isinstance(value, str)
    return is_whole(value, 0 if name == "seed" else -math.inf) if wanted is int else is_finite(value)


_methods: dict[str, Method] = {}


def method(
    name: str,
    *,
    needs: tuple[Need, ...] = ("activations", "gradients"),
    source: str,
    formula: str,
    **fields: Any,
) -> Callable[[F], F]:
    """Register the decorated function; the arguments are :class:`Method`'s."""

    def register(function: F) -> F:
        if name in _methods:
            raise ValueError(f"The method {name!r} is registered twice.")
        _methods[name] = Method(name, function, needs, source, formula, **fields)
        return function

    return register


def weighting(
    name: str, *, per: Literal["channel", "cell"], source: str, formula: str, **fields: Any
) -> Callable[[F], F]:
    """Register a method by the weights of M = Σ_k W^k A^k.

    The decorated function gives W: one ``per`` channel, (B, C), or one per cell, (B, C, h, w). The other
    arguments are :class:`Method`'s.
    """

    def register(weights: F) -> F:
        @functools.wraps(weights)
        def function(activations: Array, gradients: Array, *, xp: Namespace = NUMPY, **options: Any) -> Array:
            w = weights(activations, gradients, xp=xp, **options)
            if per == "channel":  # the product is never stored: a third of the time
                return xp.einsum("bk,bkhw->bhw", w, activations)
            return xp.sum(w * activations, axis=1)

        @functools.wraps(weights)
        def products(activations: Array, gradients: Array, **options: Any) -> Array:
            w = weights(activations, gradients, **options)
            return (w[:, :, None, None] if per == "channel" else w) * activations

        method(name, source=source, formula=formula, products=products, **fields)(function)
        return weights

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
