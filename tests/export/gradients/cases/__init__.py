"""The cases of the gradient rules, one line each, a module per family of rules."""

from __future__ import annotations

from ._make import Case, vector
from .convolution import CONVOLUTION, CONVOLUTION_WEIGHTS, TRANSPOSED
from .expanded import EXPANDED
from .indexing import INDEXING
from .linear import LINEAR
from .normalization import NORMALIZATION
from .pointwise import POINTWISE
from .pooling import POOLING, UNPOOLING
from .quantization import QUANTIZATION
from .reduction import REDUCTION
from .resize import RESIZE
from .sampling import SAMPLING
from .shape import SHAPE
from .spectral import SPECTRAL

CASES: list[Case] = [
    *CONVOLUTION,
    *CONVOLUTION_WEIGHTS,
    *TRANSPOSED,
    *POOLING,
    *UNPOOLING,
    *POINTWISE,
    *LINEAR,
    *SHAPE,
    *INDEXING,
    *REDUCTION,
    *NORMALIZATION,
    *EXPANDED,
    *QUANTIZATION,
    *RESIZE,
    *SAMPLING,
    *SPECTRAL,
]

__all__ = ["CASES", "CONVOLUTION", "EXPANDED", "POOLING", "vector"]
