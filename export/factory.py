"""What ``pkg.module:factory`` stands for, on the command line: a PyTorch model."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from ..errors import ExportError, MissingDependency, nearest


def make_module(spec: str) -> Any:
    """The ``torch.nn.Module`` that ``pkg.module:factory`` stands for.

    Raises:
        ExportError: it stands for nothing, or for something else.
    """
    import torch

    where, colon, attribute = spec.partition(":")
    if not (colon and where and attribute):
        raise ExportError(
            f"{spec!r} is not of the form pkg.module:factory, such as torchvision.models:resnet50."
        )
    found = _import(where)
    for name in attribute.split("."):
        if not hasattr(found, name):
            known = [n for n in dir(found) if not n.startswith("_")]
            raise ExportError(f"{where!r} has no {attribute!r}.{nearest(name, known)}")
        found = getattr(found, name)
    if isinstance(found, torch.nn.Module):
        return found
    if not callable(found):
        raise ExportError(
            f"{spec!r} is of type {type(found).__name__}, neither a torch.nn.Module nor a function that "
            "returns one."
        )
    try:
        made = found()
    except Exception as e:
        raise ExportError(
            f"{spec}() raised {type(e).__name__}: {e}. A factory is called without arguments; write a "
            "function of your own around one that needs some."
        ) from e
    if not isinstance(made, torch.nn.Module):
        raise ExportError(
            f"{spec}() returned an object of type {type(made).__name__}, not a torch.nn.Module."
        )
    return made


def _import(where: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as e:
        if e.name is not None and (where == e.name or where.startswith(f"{e.name}.")):
            raise ExportError(
                f"There is no module {e.name!r}, neither installed nor in the current folder ({here})."
            ) from e
        raise MissingDependency(f"Importing {where!r} needs {e.name!r}, which is not installed.") from e
    except Exception as e:
        raise ExportError(f"Importing {where!r} raised {type(e).__name__}: {e}.") from e
