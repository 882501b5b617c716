"""What the cases are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..harness import Case, case

Array = np.ndarray[Any, Any]

BOOLS = np.array([[True, False, True, True], [False, False, True, False]])
N = (2, 3, 7, 5)  # an image of odd size


def vector(*entries: int) -> Array:
    return np.array(entries, dtype=np.int64)


def scalar(value: float) -> Array:
    return np.array(value, dtype=np.float64)


__all__ = ["BOOLS", "Case", "N", "case", "scalar", "vector"]
