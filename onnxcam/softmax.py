"""From logits to shares that add up to one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """exp(y) over its sum along an axis, in the dtype of ``logits``; large ones do not overflow."""
    e = np.exp(logits - logits.max(axis=axis, keepdims=True))
    shares: NDArray[Any] = e / e.sum(axis=axis, keepdims=True)
    return shares
