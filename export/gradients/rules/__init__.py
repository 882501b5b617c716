"""The gradient rules, by operator family. A new module is added to the import below."""

from . import (
    convolution,
    indexing,
    linear,
    nondifferentiable,
    normalization,
    pointwise,
    pooling,
    quantization,
    reduction,
    refused,
    resize,
    sampling,
    shape,
    spectral,
)

__all__ = [
    "convolution",
    "indexing",
    "linear",
    "nondifferentiable",
    "normalization",
    "pointwise",
    "pooling",
    "quantization",
    "reduction",
    "refused",
    "resize",
    "sampling",
    "shape",
    "spectral",
]
