"""Whether what a caller gave is a number that can be counted or calculated with; NumPy's are."""

from __future__ import annotations

import math
import numbers
from typing import Any


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """A whole number of at least ``least``; True and False are none."""
    return not isinstance(value, bool) and isinstance(value, numbers.Integral) and int(value) >= least


def is_finite(value: Any) -> bool:
    """A number, neither infinite nor NaN; True and False are none."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
