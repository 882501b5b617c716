"""The outputs of a PyTorch model's modules, captured as they leave them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import ExportError


@dataclass(frozen=True)
class Target:
    """A module whose output is captured: its path, and which of its calls."""

    name: str
    path: str
    call: int = -1


@contextlib.contextmanager
def capturing(
    model: nn.Module, targets: Sequence[Target], finish: Callable[[Any, list[torch.Tensor]], Any]
) -> Iterator[None]:
    """Make the model return ``finish(its output, the captured tensors)`` inside.

    What a module returns is captured as it leaves it: what follows gets a clone, so that an operation
    in place (a ReLU behind a DenseNet's last norm) cannot change it.
    """
    calls: dict[str, list[torch.Tensor]] = {}

    def hook_for(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            tensor, rebuild = _first_tensor(output, path)
            calls.setdefault(path, []).append(tensor)
            return rebuild(tensor.clone())

        return hook

    def root(module: nn.Module, inputs: Any, output: Any) -> Any:
        found = []
        for t in targets:
            made = calls.get(t.path, [])
            if not made or t.call >= len(made):
                raise ExportError(
                    f"The module {t.path!r} was called {len(made)} times in a forward pass, so {t.name!r} "
                    "has no output to explain."
                )
            found.append(made[t.call])
        calls.clear()
        return finish(output, found)

    modules = dict(model.named_modules(remove_duplicate=False))
    handles = [modules[path].register_forward_hook(hook_for(path)) for path in {t.path for t in targets}]
    handles.append(model.register_forward_hook(root))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any, path: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """The (first) tensor of a module's output, and how to put another in its place."""
    if isinstance(output, torch.Tensor):
        return output, lambda t: t
    leaves, spec = pytree.tree_flatten(output)
    at = next((k for k, v in enumerate(leaves) if isinstance(v, torch.Tensor)), None)
    if at is None:
        raise ExportError(
            f"The module {path!r} returns {type(output).__name__}, which holds no tensor to explain."
        )

    def rebuild(t: torch.Tensor) -> Any:
        return pytree.tree_unflatten([*leaves[:at], t, *leaves[at + 1 :]], spec)

    return leaves[at], rebuild


def outputs_by_name(output: Any) -> dict[str, torch.Tensor]:
    """A model's tensors by name: ``output`` for one alone, keys for dicts, ``output_k`` else."""
    if isinstance(output, torch.Tensor):
        return {"output": output}
    if isinstance(output, Mapping):  # Hugging Face's ModelOutput is one
        return {str(k): v for k, v in output.items() if isinstance(v, torch.Tensor)}
    leaves = [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]
    return {f"output_{k}" if len(leaves) > 1 else "output": v for k, v in enumerate(leaves)}


@dataclass(frozen=True)
class Captured:
    """An exported model.

    Attributes:
        model: as torch exported it, with the user's output names.
        tensors: the layers' values by the user's name.
        origins: what torch called the values that were renamed.
        program: what ``torch.export`` traced; None from torch's older exporter.
    """

    model: ir.Model
    tensors: dict[str, str]
    origins: dict[str, str]
    program: torch.export.ExportedProgram | None
