"""What becomes of a node test when its graph is differentiated.

The graph that :func:`add_gradients` makes of the file as it is, evaluated in float64 (:mod:`.widen`), is
compared with central differences of ONNX's own graph along a random direction. Where ``onnx.reference`` has
no kernel, ONNX Runtime evaluates both in float32. The same graph then runs in ONNX Runtime.
"""

from __future__ import annotations

import enum
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeImplementationError

from onnxcam.errors import LayerNotOnPath, NoGradientRule, OnnxcamError
from onnxcam.export.from_onnx import normalize
from onnxcam.export.gradients import add_gradients

from ..export.gradients.reference_ops import KERNELS
from .node_tests import Array, NodeTest
from .widen import wide_feeds, widened

#: The newest opset that the installed ONNX Runtime loads.
NEWEST_IN_ORT = 26


class Kind(enum.IntEnum):
    """An outcome; of several, the greatest counts."""

    STOPPED = 0  #: nothing flows, and that is so (or is said to be so: ``note``)
    PASS = 1
    UNEVALUATED = 2
    NO_RULE = 3
    WRONG = 4


@dataclass(frozen=True)
class Outcome:
    """Of one input and output of a case.

    Attributes:
        kind: what became of it.
        case, pair: which.
        note: the reason, or what differs.
        constants: whether the other inputs had to be constants of the model.
        nudged: whether the data lay on a kink and was moved off it.
        exact: evaluated in float64, not in float32 by ONNX Runtime.
        in_ort: whether the graph ran in ONNX Runtime, with the same gradient; None: the case itself does not.
        spelt_out: whether the case holds a definition in place of the operator's node.
    """

    kind: Kind
    case: str
    pair: str
    note: str = ""
    constants: bool = False
    nudged: bool = False
    exact: bool = True
    in_ort: bool | None = None
    spelt_out: bool = False


@dataclass(frozen=True)
class Precision:
    """How finely a way of evaluating resolves a slope."""

    steps: tuple[float, ...]
    tolerance: float


EXACT = Precision((1e-5, 1e-6, 1e-8, 1e-3, 1e-2, 3e-2), 1e-5)  # the long ones for kernels with float32 inside
SINGLE = Precision((1e-2, 3e-2, 1e-1), 2e-2)

Feeds = Mapping[str, Any]
Run = Callable[[Feeds], list[Array]]


def judge(test: NodeTest) -> list[Outcome]:
    """The outcomes of a case, one per float input and output."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        shared: _Shared = {}
        return [
            _Pair(test, of, wrt, shared).outcome() for of in test.float_outputs for wrt in test.float_inputs
        ]


_Differentiated = tuple[onnx.ModelProto, dict[str, str]]
_Shared = dict[tuple[str, bool], _Differentiated | None]


def differentiated(model: onnx.ModelProto, of: str, wrt: Sequence[str]) -> _Differentiated:
    """A model with gradients, and their names; its seed is called ``cotangent``."""
    work = normalize(ir.from_proto(model))
    names = add_gradients(work, of, wrt, seed="cotangent")
    return ir.to_proto(work), names


class _Pair:
    """One input and output; those of a case share the graph with all gradients, where there is one."""

    def __init__(self, test: NodeTest, of: str, wrt: str, shared: _Shared) -> None:
        self.test, self.of, self.wrt, self.shared = test, of, wrt, shared
        self.constants = False

    def outcome(self) -> Outcome:
        try:
            model, gradient = self._differentiated()
        except LayerNotOnPath as e:
            return self._stopped(str(e))
        except OnnxcamError as e:
            return self._says(Kind.NO_RULE, _reason(e))
        except Exception as e:
            return self._says(Kind.WRONG, f"{type(e).__name__}: {e}")
        return self._compared(model, gradient)

    def _says(self, kind: Kind, note: str = "", **more: Any) -> Outcome:
        pair = f"d {self.of} / d {self.wrt}"
        more |= {"constants": self.constants, "spelt_out": self.test.spelt_out}
        return Outcome(kind, self.test.name, pair, note, **more)

    def _differentiated(self) -> tuple[onnx.ModelProto, str]:
        """With the inputs as they are; failing that, with all others as constants, as files have them."""
        try:
            return self._with_gradient()
        except LayerNotOnPath:
            raise
        except OnnxcamError:
            self.constants = True
            return self._with_gradient()

    def _with_gradient(self, lowered: bool = False) -> tuple[onnx.ModelProto, str]:
        """The case with its gradient; alone, where not every input has one."""
        model = _lowered(self._model) if lowered else self._model
        if not self.constants:
            key = self.of, lowered
            if key not in self.shared:
                try:
                    self.shared[key] = differentiated(model, self.of, self.test.float_inputs)
                except Exception:
                    self.shared[key] = None
            if (together := self.shared[key]) is not None:
                return together[0], together[1][self.wrt]
        alone, names = differentiated(model, self.of, [self.wrt])
        return alone, names[self.wrt]

    @property
    def _model(self) -> onnx.ModelProto:
        """The case as it is differentiated."""
        return self._with_constants if self.constants else self.test.model

    @cached_property
    def _with_constants(self) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(self.test.model)
        graph = copy.graph
        for value in [v for v in graph.input if v.name != self.wrt]:
            data = self.test.feeds[value.name]
            if isinstance(data, np.ndarray):
                graph.initializer.append(numpy_helper.from_array(data, value.name))
                graph.input.remove(value)
        return copy

    # -- comparing ----------------------------------------------------------------------------

    def _compared(self, model: onnx.ModelProto, gradient: str) -> Outcome:
        forward = self._model
        ways: list[tuple[bool, Callable[[], tuple[Run, Run]], Feeds, Precision]] = [
            (
                True,
                lambda: (in_reference(forward, [self.of]), in_reference(model, [gradient])),
                wide_feeds(self.test.feeds),
                EXACT,
            ),
            (
                False,
                lambda: (in_ort(forward, [self.of]), in_ort(model, [gradient])),
                self.test.feeds,
                SINGLE,
            ),
        ]
        failed = []
        for exact, make, feeds, precision in ways:
            try:
                value, backward = make()
                y = self._y(value, feeds)
            except Exception as e:
                failed.append(_first_line(e))
                continue
            if not self._is_expected(y):
                failed.append(
                    f"{'onnx.reference' if exact else 'ONNX Runtime'} gives another value than the case"
                )
                continue
            try:
                found, nudged = self._agree(value, backward, feeds, precision)
            except Exception as e:
                if exact and _lacks_kernel(e):
                    failed.append(_first_line(e))
                    continue
                return self._says(Kind.WRONG, f"the gradient does not run: {_first_line(e)}", exact=exact)
            try:
                ran, why = self._runs(model, gradient) if exact else (True, "")
            except OnnxcamError as e:  # what ONNX defines at its newest opset alone
                return self._says(Kind.NO_RULE, _reason(e), exact=exact, nudged=nudged)
            if found:
                return self._says(Kind.WRONG, found, exact=exact, nudged=nudged, in_ort=ran)
            if why:
                return self._says(Kind.WRONG, why, exact=exact, nudged=nudged, in_ort=ran)
            return self._says(Kind.PASS, exact=exact, nudged=nudged, in_ort=ran)
        return self._says(Kind.UNEVALUATED, "; ".join(failed))

    def _y(self, value: Run, feeds: Feeds) -> Array:
        return np.asarray(value(feeds)[0]).astype(np.float64)

    @cached_property
    def _expected(self) -> Array:
        at = [v.name for v in self.test.model.graph.output].index(self.of)
        return np.asarray(_plain(self.test.outputs[at])).astype(np.float64)

    def _is_expected(self, y: Array) -> bool:
        """Whether a value is the one that comes with the case, up to the rounding of its type."""
        expected = self._expected
        if y.shape != expected.shape:
            return False
        both = np.isfinite(y) & np.isfinite(expected)
        scale = float(np.abs(expected[both]).max(initial=0)) or 1.0
        off = np.abs(y - expected)[both]
        return bool(np.all(np.isfinite(y) == np.isfinite(expected)) and off.max(initial=0) <= 2e-2 * scale)

    def _agree(self, value: Run, backward: Run, feeds: Feeds, precision: Precision) -> tuple[str, bool]:
        """What differs (empty if nothing does), and whether the data had to be moved off a kink."""
        text = ""
        for nudge in (0.0, 1e-2, -1e-2, 3e-2):
            moved = self._nudged(feeds, nudge)
            text, kinked = self._differ(value, backward, moved, precision)
            if not text or not kinked:
                return text, nudge != 0
        return f"{text} (kinks on the way)", True

    def _nudged(self, feeds: Feeds, amount: float) -> Feeds:
        """The data, the differentiated input moved by a share of its size, the same every time.

        Towards zero, so that bounds like those of Acos hold, or (a negative share) away from it, for Acosh.
        """
        if not amount:
            return feeds
        x = feeds[self.wrt]
        finite = x[np.isfinite(x)]
        size = float(np.sqrt(np.mean(np.square(finite.astype(np.float64))))) if finite.size else 1.0
        noise = self._rng("nudge").uniform(-1, 1, x.shape) * (size or 1.0)
        sign = np.where(x == 0, np.sign(noise), -np.sign(x))
        return {**feeds, self.wrt: (x + amount * sign * np.abs(noise)).astype(x.dtype)}

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self.test.name}/{self.of}/{self.wrt}/{what}".encode()))

    def _differ(self, value: Run, backward: Run, feeds: Feeds, precision: Precision) -> tuple[str, bool]:
        y = self._y(value, feeds)
        if y.shape != self._expected.shape:
            return f"the result has the shape {y.shape} there", True
        seed = np.where(np.isfinite(y), self._rng("seed").standard_normal(y.shape), 0)
        x = feeds[self.wrt]
        declared = next(v.type for v in self.test.model.graph.output if v.name == self.of)
        dtype = _numpy_type(declared) if precision is SINGLE else np.dtype(np.float64)
        g = np.asarray(backward({**feeds, "cotangent": seed.astype(dtype)})[0])
        if g.shape != x.shape:
            return f"the gradient has shape {g.shape} for {x.shape}", False
        g = g.astype(np.float64)
        finite = np.isfinite(x.astype(np.float64))
        if x.shape == y.shape:  # entry by entry: where the value is no number, neither is its gradient
            finite &= np.isfinite(y)
        if not np.isfinite(g[finite]).all():
            return "the gradient is not finite", True
        g = np.where(finite, g, 0)
        u = np.where(finite, self._rng("direction").standard_normal(x.shape), 0)
        typical = float(np.sqrt(np.sum(g * g)))
        expected = float(np.sum(g * u))
        scale = max(1.0, float(np.abs(x[finite]).max(initial=0)) if x.dtype.kind == "f" else 1.0)

        def along(t: float) -> float:
            moved = self._y(value, {**feeds, self.wrt: (x + t * u).astype(x.dtype)})
            if moved.shape != y.shape:
                return np.nan
            total = np.where(seed == 0, 0, seed * (moved - np.where(np.isfinite(y), y, 0)))
            return float(np.sum(total))

        def off(found: float) -> float:
            return abs(found - expected) / max(typical, 1e-8 if precision is EXACT else 1e-3)

        best = np.inf
        slope, rough = np.nan, False
        for step in precision.steps:
            h = step * scale
            ahead, behind = along(h), along(-h)
            central = (ahead - behind) / (2 * h)
            error = off(central)
            if error > precision.tolerance:  # Richardson's extrapolation
                central = (4 * (along(h / 2) - along(-h / 2)) / h - central) / 3
                error = off(central)
            if np.isfinite(error) and error < best:
                best, slope = error, central
            if error <= precision.tolerance:
                return "", False
            if step == precision.steps[0]:
                # Off a kink, central differences agree and one-sided ones come closer to them.
                closer = along(h / 8), along(-h / 8)
                near = 4 * (closer[0] - closer[1]) / h
                bends = abs(ahead + behind) / h, 8 * abs(closer[0] + closer[1]) / h
                least = precision.tolerance * typical
                bent = bends[1] > max(least, bends[0] / 2)
                jumps = abs(near - (ahead - behind) / (2 * h)) > 100 * max(least, precision.tolerance)
                rough = bool(bent or jumps)
        kinked = rough or not np.isfinite(best)
        return f"slope {slope:.6g}, gradient {expected:.6g}, off by {best:.2g} of its size", kinked

    def _runs(self, model: onnx.ModelProto, gradient: str) -> tuple[bool | None, str]:
        """Whether ONNX Runtime, if it runs the case, runs the differentiated file to the same gradient."""
        forward = _lowered(self._model)
        try:
            y = in_ort(forward, [self.of])(self.test.feeds)[0]
        except Exception:
            return None, ""
        if forward.opset_import != self._model.opset_import:
            model, gradient = self._with_gradient(lowered=True)
        finite = np.isfinite(y.astype(np.float64))
        seed = np.where(finite, self._rng("seed").standard_normal(y.shape), 0).astype(y.dtype)
        try:
            got = in_ort(model, [gradient])({**self.test.feeds, "cotangent": seed})[0].astype(np.float64)
        except Exception as e:
            return False, f"ONNX Runtime does not run the gradient: {_first_line(e)}"
        wanted = np.asarray(
            in_reference(model, [gradient])(
                {**wide_feeds(self.test.feeds), "cotangent": seed.astype(np.float64)}
            )[0]
        )
        size = float(np.sqrt(np.mean(np.square(wanted[np.isfinite(wanted)])))) if wanted.size else 0.0
        off = np.abs(got - wanted)[np.isfinite(wanted)] / max(size, 1e-3)
        # Where rounding decides a maximum or a bound, single entries differ.
        if off.size and float(np.quantile(off, 0.8)) > (3e-2 if y.dtype.itemsize < 4 else 1e-3):
            # Where it computes another value than ONNX's reference, it is held to its own.
            own, _ = self._agree(
                in_ort(forward, [self.of]), in_ort(model, [gradient]), self.test.feeds, SINGLE
            )
            if own:
                return False, f"ONNX Runtime gives another gradient, off by up to {off.max():.2g} of its size"
        return True, ""

    # -- stopped ------------------------------------------------------------------------------

    def _stopped(self, message: str) -> Outcome:
        """Nothing flows: whether the value itself moves with the input, says a difference."""
        _, stopped, reason = message.partition(" lets nothing through (")
        reason = reason.split("). ")[0] if stopped else "the output does not depend on it"
        try:
            value, feeds = in_reference(self.test.model, [self.of]), wide_feeds(self.test.feeds)
            y = self._y(value, feeds)
            x = feeds[self.wrt]
            u = self._rng("direction").standard_normal(x.shape)
            moved = self._y(value, {**feeds, self.wrt: x + 1e-6 * u})
        except Exception:
            return self._says(Kind.STOPPED, reason)
        moves = moved.shape == y.shape and 0 < np.nanmax(np.abs(moved - y), initial=0) < 1e-3
        return self._says(Kind.STOPPED, f"held constant: {reason}" if moves else reason)


def _lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """At the newest opset that ONNX Runtime loads, if it is above."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for o in copy.opset_import:
        if o.domain in ("", "ai.onnx"):
            o.version = min(o.version, NEWEST_IN_ORT)
    return copy


def in_reference(model: onnx.ModelProto, outputs: Sequence[str]) -> Run:
    """The model in float64, in NumPy."""
    evaluator = ReferenceEvaluator(widened(model), new_ops=KERNELS)  # type: ignore[arg-type]
    known = {v.name for v in model.graph.input}
    return lambda feeds: list(
        evaluator.run(list(outputs), {n: a for n, a in feeds.items() if n in known})  # type: ignore[arg-type]
    )


def in_ort(model: onnx.ModelProto, outputs: Sequence[str]) -> Run:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, 10)
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {v.name for v in session.get_inputs()}
    return lambda feeds: session.run(list(outputs), {n: a for n, a in feeds.items() if n in known})


def _plain(data: Any) -> Any:
    return numpy_helper.to_array(data) if isinstance(data, TensorProto) else data


def _numpy_type(declared: onnx.TypeProto) -> np.dtype[Any]:
    return onnx.helper.tensor_dtype_to_np_dtype(declared.tensor_type.elem_type or TensorProto.FLOAT)


def _lacks_kernel(e: Exception) -> bool:
    return isinstance(e, NotImplementedError | RuntimeImplementationError)


def _reason(e: OnnxcamError) -> str:
    """Of a refusal: the operators that have no rule, and why."""
    if not isinstance(e, NoGradientRule):
        return _first_line(e)
    lines = [line.strip() for line in str(e).splitlines() if line.startswith("  ")]
    return "; ".join(
        dict.fromkeys(f"{line.split(' ')[0]} {line.split('  input ')[-1]}" for line in lines)
    ) or _first_line(e)


def _first_line(e: BaseException) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"
