"""Packages that only some calls need, and how to get them."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingDependency


def require(package: str, what: str, extra: str) -> Any:
    """A package of one of the extras, imported.

    Args:
        package: a module.
        what: that needs it, as the beginning of a sentence.
        extra: that brings it.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise MissingDependency(
            f"{what} needs {package.partition('.')[0]!r}, which is not installed: "
            f'`pip install "onnxcam[{extra}]"`.'
        ) from e
