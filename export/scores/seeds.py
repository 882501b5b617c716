"""Weights of one's own: any linear functional of any outputs, given at run time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ...contract import Seed, seed_name
from ..gradients.builder import Builder, Var, dims_of
from .found import Choice, FoundScore, ScoreSpec, find_tensor, given, logit, optional_input, rows


def with_seeds(graph: ir.Graph, found: FoundScore, spec: ScoreSpec) -> FoundScore:
    """The score with the inputs that ``spec`` asks for.

    Raises:
        ScoreError: an output that is unknown or not floating-point.
    """
    if not spec.seed:
        return found
    if isinstance(spec.seed, bool):
        pairs = [(found.score.output, found.value, seed_name())]
    else:
        pairs = [(name, _differentiated(graph, name, spec), seed_name(name)) for name in spec.seed]
    seeds = tuple(Seed(o, v.name or "", i, dims_of(v) or ()) for o, v, i in pairs)
    values = tuple(v for _, v, _ in pairs)
    return dataclasses.replace(
        found,
        score=dataclasses.replace(found.score, seeds=seeds),
        values=tuple(dict.fromkeys((*found.values, *values))),
        choose=_choosing(found.choose, seeds, values),
        told=False,
        seeded=values,
    )


def _differentiated(graph: ir.Graph, output: str, spec: ScoreSpec) -> ir.Value:
    """The logit behind an output, where it has the output's shape."""
    chosen = find_tensor(graph, output)
    _, value = logit(chosen)
    return value if not spec.probability and dims_of(value) == dims_of(chosen) else chosen


def _choosing(
    choose: Callable[[Builder], Choice], seeds: tuple[Seed, ...], values: tuple[ir.Value, ...]
) -> Callable[[Builder], Choice]:
    def with_weights(op: Builder) -> Choice:
        choice = choose(op)
        fed = {}
        for seed, value in zip(seeds, values, strict=True):
            x = op.single(op.wrap(value))
            nothing = np.full((1,) * x.rank, np.nan, dtype=x.dtype.numpy())
            fed[value] = optional_input(op, seed.input, nothing)
        flags = {value: given(op, rows(op, weights)) for value, weights in fed.items()}
        any_fed, *rest = flags.values()
        for flag in rest:
            any_fed = op.Or(any_fed, flag)
        merged: dict[ir.Value, Var] = {}
        for value in dict.fromkeys((*choice.seeds, *fed)):
            x = op.single(op.wrap(value))
            zero = op.const(np.zeros((), x.dtype.numpy()))
            unfed = choice.seeds.get(value, zero)
            weights = op.where(_ranked(op, flags[value], x), fed[value], zero) if value in fed else zero
            seed_ = op.where(_ranked(op, any_fed, x), weights, unfed)
            # Where nothing was fed for an output and nothing is chosen of it, one zero stands for all.
            seed_ = seed_ if value in choice.seeds else op.Expand(seed_, op.shape_of(x))
            merged[value] = Var(seed_.value, op, x.dims)

        def score() -> Var:
            total = None
            for value in fed:
                x = op.single(op.wrap(value))
                part = op.cast(op.sum(rows(op, x * merged[value]), [1], keepdims=False), ir.DataType.FLOAT)
                total = part if total is None else total + part
            assert total is not None
            flag = op.Squeeze(any_fed, [1], dims=any_fed.shape[:1])
            return op.where(flag, total, choice.score())

        return Choice(merged, score, choice.classes, choice.further)

    return with_weights


def _ranked(op: Builder, flag: Var, like: Var) -> Var:
    """(N, 1) with as many axes as ``like``."""
    if like.rank == 1:
        return op.Squeeze(flag, [1], dims=flag.shape[:1])
    if like.rank == 2:
        return flag
    axes = [*range(2, like.rank)]
    return op.Unsqueeze(flag, axes, dims=(*flag.shape, *[1] * len(axes)))
