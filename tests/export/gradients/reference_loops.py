"""Scan along any axis in any direction, and Loop's stacks, which ``onnx.reference`` lacks or gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]


class _Repeated(OpRun):
    def need_context(self) -> bool:
        return True

    def _repeat(self, context: Any, named: dict[str, Any]) -> list[Any]:
        known = dict(context or {})
        return list(self._run_body({**known, **named}))  # type: ignore[attr-defined]


class Scan(_Repeated):
    def _run(self, *args: Any, context: Any = None, num_scan_inputs: int = 1, **attributes: Any) -> Any:
        body = self.body  # type: ignore[attr-defined]
        count = len(args) - num_scan_inputs
        states, scanned = list(args[:count]), args[count:]
        made = len(body.output_names) - count

        def each(name: str, n: int) -> list[int]:
            return list(attributes.get(name) or [0] * n)

        axes, ways = each("scan_input_axes", num_scan_inputs), each("scan_input_directions", num_scan_inputs)
        slices = [
            np.moveaxis(np.asarray(x), axis, 0)[:: -1 if way else 1]
            for x, axis, way in zip(scanned, axes, ways, strict=True)
        ]
        stacks: list[list[Any]] = [[] for _ in range(made)]
        for t in range(len(slices[0])):
            named = dict(zip(body.input_names, [*states, *(s[t] for s in slices)], strict=True))
            outputs = self._repeat(context, named)
            states = outputs[:count]
            for stack, x in zip(stacks, outputs[count:], strict=True):
                stack.append(x)
        axes, ways = each("scan_output_axes", made), each("scan_output_directions", made)
        return *states, *(
            np.stack(stack[:: -1 if way else 1], axis)
            for stack, axis, way in zip(stacks, axes, ways, strict=True)
        )


class Loop(_Repeated):
    def _run(self, count: Any, go: Any, *states: Any, context: Any = None, **attributes: Any) -> Any:
        body = self.body  # type: ignore[attr-defined]
        carried = list(states)
        stacks: list[list[Any]] = [[] for _ in range(len(body.output_names) - 1 - len(states))]
        t = 0
        while (go is None or bool(go)) and (count is None or t < int(count)):
            on = np.asarray(True) if go is None else go
            named = dict(zip(body.input_names, [np.asarray(t, np.int64), on, *carried], strict=True))
            go, *outputs = self._repeat(context, named)
            carried = outputs[: len(states)]
            for stack, x in zip(stacks, outputs[len(states) :], strict=True):
                stack.append(x)
            t += 1
        return *carried, *(np.stack(stack) for stack in stacks)


for _kernel in (Scan, Loop):
    _kernel.op_domain = ""
KERNELS = [Scan, Loop]
