"""torch's two ONNX exporters, and what helps where they refuse a model.

The newer one (``torch.export``) comes first: it keeps the sizes of its inputs open and leaves a program whose
values have the names of the file's. Attention that it refuses is written out in matrix products for it. The
older one (TorchScript) records a run of the model.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from ..errors import ExportError, VerificationError
from .verify import TOLERANCE, relative_error, run

_NEWEST_OF_OLDER = 20  #: the last opset that the older exporter knows
_FUSED = "scaled_dot_product_attention"  #: of torch.nn.functional
_STACK_TRACE = "pkg.torch.onnx.stack_trace"  #: paths of the machine that exported


@dataclass(frozen=True)
class Exported:
    """A model as one of torch's exporters wrote it.

    Attributes:
        model: the graph; inputs are the example's tensors in their order, outputs the module's.
        program: what ``torch.export`` traced; None from the older exporter.
        way: the exporter and the sizes, in a few words.
        notes: sentences that the user should read.
    """

    model: ir.Model
    program: torch.export.ExportedProgram | None
    way: str
    notes: tuple[str, ...] = ()


def export_graph(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_batch: bool,
    dynamic_size: bool,
    opset: int,
) -> Exported:
    """Export a module by the first way that works.

    Args:
        model: in evaluation mode; it runs on the inputs and returns a tensor or a tuple of them.
        args: positional inputs.
        kwargs: keyword inputs.
        dynamic_batch: leave the first axis of every input open, if any exporter can.
        dynamic_size: leave height and width of image inputs open, too.
        opset: of the file; the older exporter ends at 20.

    Raises:
        ExportError: neither exporter takes it; the reasons of both are given.
    """
    wanted = (dynamic_batch, dynamic_size)
    sizes = [wanted, (False, False)] if any(wanted) else [wanted]
    refusals: dict[tuple[bool, bool], Exception] = {}
    ways: list[tuple[str, Callable[[], contextlib.AbstractContextManager[None]]]] = [
        ("newer exporter", contextlib.nullcontext)
    ]
    if _attends(model, args, kwargs):
        ways.append(("newer exporter, attention written out", _attention_written_out))
    for taken in sizes:
        for way, changed in ways:
            try:
                with changed():
                    found = _by_program(model, args, kwargs, *taken, opset)
            except Exception as e:
                refusals.setdefault(taken, e)
                continue
            return _told(found.model, found.exported_program, way, wanted, taken, refusals)
    newer = refusals[False, False]
    if any(isinstance(e, GuardOnDataDependentSymNode) for e in _chain(newer)):
        raise ExportError(
            f"torch could not export the model: {first_line(newer)}. Its older exporter would keep, for all "
            f"inputs, the branch that example_inputs take. {_NEXT}"
        ) from newer
    why = (
        f"torch's newer exporter refused the model ({first_line(newer)}); its older one recorded a run on "
        "example_inputs: what the model decides in Python stays as it was there."
    )
    refusals = {}
    for taken in sizes:
        try:
            graph = _by_trace(model, args, kwargs, *taken, opset)
        except Exception as e:
            refusals[taken] = e
            continue
        return _told(graph, None, "older exporter", wanted, taken, refusals, why)
    raise ExportError(
        f"torch could not export the model: {first_line(newer)}. Its older exporter could not either: "
        f"{first_line(refusals[False, False])}. {_NEXT}"
    ) from newer


_NEXT = (
    "Try `torch.export.export(model, args)` alone to see all of it, or export an ONNX file by other means "
    "and rewrite that."
)


def _told(
    graph: ir.Model,
    program: torch.export.ExportedProgram | None,
    way: str,
    wanted: tuple[bool, bool],
    taken: tuple[bool, bool],
    refusals: Mapping[tuple[bool, bool], Exception],
    *notes: str,
) -> Exported:
    """With what its user should know of its sizes."""
    for node in graph.graph.all_nodes():
        node.metadata_props.pop(_STACK_TRACE, None)
        for value in node.inputs:
            # onnxscript forgets to list the bounds where it simplifies several clamps of one tensor.
            if value is None or value.producer() is not None or value.is_initializer():
                continue
            if value.const_value is not None:
                graph.graph.register_initializer(value)
    if taken != wanted:
        fixed = (
            "The sizes are fixed to those of example_inputs: torch could not export the model with open ones "
            f"({first_line(refusals[wanted])})."
        )
        notes = (*notes, fixed)
    return Exported(graph, program, f"{way}, {'open' if taken[0] else 'fixed'} batch", notes)


# -- the newer exporter -----------------------------------------------------------------------------


def _by_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: bool, size: bool, opset: int
) -> Any:
    shapes = None
    if batch or size:
        # torch takes a size of 1 for a constant.
        args, kwargs = pytree.tree_map(_doubled, (args, kwargs)) if batch else (args, kwargs)
        shapes = _dynamic_shapes(model, args, kwargs, batch, size)
    # With autograd on, attention is decomposed into other kernels than it was traced with, of other strides.
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            model,
            args,
            kwargs=kwargs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=shapes,
            verbose=False,
            optimize=True,
        )
    assert program is not None
    shapes_found = [v.shape for v in program.model.graph.inputs if v.shape is not None and len(v.shape)]
    if batch and any(isinstance(shape[0], int) for shape in shapes_found):
        raise ValueError("the model computes with the number of images")
    return program


def _doubled(x: Any) -> Any:
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) and x.ndim and x.shape[0] == 1 else x


def _dynamic_shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: bool, size: bool
) -> dict[str, Any]:
    """The open axes of every input, by the names of the forward method's parameters."""
    n = torch.export.Dim("batch") if batch else None
    bound = inspect.signature(model.forward).bind(*args, **kwargs)

    def axes(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return None
        opened: dict[int, Any] = {}
        if n is not None and x.ndim:
            opened[0] = n
        if size and x.ndim == 4:
            opened |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        return opened

    return {name: pytree.tree_map(axes, value) for name, value in bound.arguments.items()}


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(d) + mask) v, as torch defines ``scaled_dot_product_attention``."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    weights = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        weights = weights.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        weights = weights + attn_mask
    return torch.dropout(weights.softmax(-1), dropout_p, dropout_p > 0) @ value


def _attention_written_out() -> contextlib.AbstractContextManager[None]:
    # The exporter's own translation takes rank 4 alone.
    return _replaced(nn.functional, _FUSED, _attention)


def _attends(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a model calls torch's fused attention."""
    fused = getattr(nn.functional, _FUSED)
    calls: list[None] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return fused(*args, **kwargs)

    with _replaced(nn.functional, _FUSED, counted), _quietly(), torch.no_grad():
        model(*args, **kwargs)
    return bool(calls)


# -- the older exporter -----------------------------------------------------------------------------


def _by_trace(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: bool, size: bool, opset: int
) -> ir.Model:
    names = _input_names(model, args, kwargs)
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    axes = {name: _open_axes(name, x, batch, size) for name, x in zip(names, tensors, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        with (
            _quietly(),
            torch.no_grad(),
            _taking_tensors(model, args, kwargs),
            # It logs a failure's graph to the terminal, whatever is asked of it.
            _replaced(torch._C, "_jit_onnx_log", lambda *_: None),
        ):
            torch.onnx.export(
                model,
                tuple(tensors),
                path,
                dynamo=False,
                opset_version=min(opset, _NEWEST_OF_OLDER),
                input_names=names,
                dynamic_axes=axes,
                verbose=False,
            )
        others = [_other(x, axes[name]) for name, x in zip(names, tensors, strict=True)]
        _check_on(path, model, args, kwargs, dict(zip(names, others, strict=True)))
        graph = ir.load(path)
        for value in graph.graph.initializers.values():  # the folder will be gone
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return graph


def _input_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """What the newer exporter calls the tensors: by their parameters, with a place in a list."""
    given = inspect.signature(model.forward).bind_partial(*args).arguments | kwargs
    names = []
    for name, value in given.items():
        for k, leaf in enumerate(pytree.tree_leaves(value)):
            if isinstance(leaf, torch.Tensor):
                names.append(name if leaf is value else f"{name}_{k}")
    return names


def _open_axes(name: str, x: torch.Tensor, batch: bool, size: bool) -> dict[int, str]:
    axes = {0: "batch"} if batch and x.ndim else {}
    return axes | ({2: f"{name}_height", 3: f"{name}_width"} if size and x.ndim == 4 else {})


def _taking_tensors(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> contextlib.AbstractContextManager[None]:
    """The model takes the tensors among its inputs, one by one, and nothing else."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    forward = model.forward

    def forward_of_tensors(*tensors: torch.Tensor) -> Any:
        filled = list(leaves)
        for k, tensor in zip(places, tensors, strict=True):
            filled[k] = tensor
        given_args, given_kwargs = pytree.tree_unflatten(filled, spec)
        return forward(*given_args, **given_kwargs)

    return _replaced(model, "forward", forward_of_tensors)


def _other(x: torch.Tensor, axes: dict[int, str]) -> torch.Tensor:
    """Another input: of other values, and twice as large where it may be."""
    for axis in axes:
        x = torch.cat([x, x], axis)
    return x / 2 if x.is_floating_point() else x


def _check_on(
    path: str,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inputs: dict[str, torch.Tensor],
) -> None:
    """A trace may hold numbers of the run that it recorded: it must agree on another input.

    Raises:
        VerificationError: it does not, or does not run.
    """
    with _quietly(), torch.no_grad(), _taking_tensors(model, args, kwargs):
        expected = model(*inputs.values())
    found = run(path, {name: x.detach().cpu().numpy() for name, x in inputs.items()})
    for ours, theirs in zip(found.values(), pytree.tree_leaves(expected), strict=True):
        array = theirs.detach().cpu().numpy()
        if not relative_error(ours, array) <= 10 * TOLERANCE.get(array.dtype.name, 0.0):
            raise VerificationError("what it recorded on one input is wrong on another")


# -- what both take ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute's own value is back afterwards; one that was the class's is its again."""
    own = vars(owner).get(name, _replaced)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if own is not _replaced:
            setattr(owner, name, own)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' progress, warnings and logs; errors come through."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _chain(e: BaseException) -> list[BaseException]:
    """An error, what caused that, and so on."""
    chain = [e]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return chain


def first_line(e: BaseException) -> str:
    """The cause of a chain of errors, in one line."""
    cause = _chain(e)[-1]
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (lines[0] if lines else type(cause).__name__).rstrip(".")[:300]
