"""ONNX's own node tests: one small model per case, with data, written by ONNX's maintainers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

Array = np.ndarray[Any, Any]

#: The types that numbers are computed in. The eight- and four-bit floats only store what was rounded.
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class NodeTest:
    """A case: its model, its data, and the operator that it is about.

    A case whose name ends in ``_expanded`` holds ONNX's definition of an operator in place of its node.
    """

    name: str
    operator: str
    model: onnx.ModelProto
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]

    @property
    def spelt_out(self) -> bool:
        """Whether the model holds the operator's definition, a graph of simpler ones."""
        return "_expanded" in self.name

    @property
    def feeds(self) -> dict[str, Any]:
        return dict(zip((v.name for v in self.model.graph.input), self.inputs, strict=False))

    @property
    def float_inputs(self) -> list[str]:
        """The inputs that could have a gradient: tensors of numbers, not empty."""
        return [
            v.name
            for v, data in zip(self.model.graph.input, self.inputs, strict=False)
            if is_float(v) and isinstance(data, np.ndarray) and data.size
        ]

    @property
    def in_training(self) -> bool:
        """Whether it is about training: optimisers, dropout that drops, statistics that are gathered."""
        modes = [a.i for n in self.model.graph.node for a in n.attribute if a.name == "training_mode"]
        given = [data for name, data in self.feeds.items() if name in ("t", "training_mode")]
        dropping = self.operator == "Dropout" and any(bool(np.any(data)) for data in given)
        return any(modes) or dropping or self.operator.startswith("ai.onnx.preview.training.")

    @property
    def float_outputs(self) -> list[str]:
        return [
            v.name
            for v, data in zip(self.model.graph.output, self.outputs, strict=False)
            if is_float(v) and np.asarray(data).size
        ]


def is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in FLOATS


@cache
def node_tests() -> dict[str, list[NodeTest]]:
    """Every node test with float inputs and float outputs, by operator; but none of training."""
    by_operator: dict[str, list[NodeTest]] = {}
    for test in _all():
        if test.float_inputs and test.float_outputs and not test.in_training:
            by_operator.setdefault(test.operator, []).append(test)
    return dict(sorted(by_operator.items()))


def _all() -> Iterator[NodeTest]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests' own overflows
        from onnx.backend.test.case.node import collect_testcases

        found = {case.name: case for case in collect_testcases(None)}
    for name, case in found.items():
        whole = found.get(re.sub(r"_expanded.*", "", name), case)
        inputs, outputs = case.data_sets[0]
        yield NodeTest(
            name, _operator(whole.model), case.model, tuple(_array(i) for i in inputs), tuple(outputs)
        )


def _operator(model: onnx.ModelProto) -> str:
    """The operator under test: the only node, or the one that is not there to prepare its inputs."""
    ops = dict.fromkeys(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.graph.node)
    return next((o for o in ops if o in ("If", "Loop", "Scan")), [*ops][-1])


def _array(data: Any) -> Any:
    if isinstance(data, TensorProto):
        data = onnx.numpy_helper.to_array(data)
    return np.asarray(data) if isinstance(data, np.generic | float) else data
