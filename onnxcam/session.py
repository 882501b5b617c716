"""One ONNX Runtime session: opened on the providers that were asked for, or not at all."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import CHOICES, KEY, SCORE, Record, read_record, refuse_tail
from .errors import BadRecord, InputError, MissingDependency, NotOnnx, ProviderError, TensorError, nearest
from .grids import holds
from .providers import CPU, MISSING_LIBRARY, ON_CUDA, Provider, not_built, preload, requested, why_not

_log = logging.getLogger("onnxcam")

#: What ONNX Runtime says of an operator that none of its providers runs in the types at hand.
_NO_KERNEL = re.compile(
    r"implementation for (?P<op>[\w.]+)\((?P<opset>\d+)\) node with name '(?P<node>[^']*)'"
)

_DTYPES = {
    f"tensor({name})": np.dtype(kind)
    for name, kind in {
        "float": "float32",
        "double": "float64",
        **{n: n for n in ("float16", "bool", "int8", "int16", "int32", "int64")},
        **{n: n for n in ("uint8", "uint16", "uint32", "uint64")},
    }.items()
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the file.

    Attributes:
        name: in the graph.
        dtype: None if NumPy has no such type.
        shape: one entry per axis: a size, a symbol, or None where unknown.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        shape = ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.dtype} ({shape})"


@dataclass(frozen=True)
class Node:
    """A node as ONNX Runtime executes it, after its optimisations."""

    name: str
    op_type: str


class Session:
    """An explainable file, open.

    Safe to call from several threads at once.

    Args:
        model: a path, or the bytes of the file.
        providers: in order of preference, by full or short name ("cuda"), or (name, options). None:
            CUDA if this ONNX Runtime was built with it, else the CPU.
        provider_options: options of the one provider, or one mapping per provider.
        session_options: an ``onnxruntime.SessionOptions``, used as it is; or a mapping: names with a
            dot are configuration entries, the others attributes (``intra_op_num_threads``).
        allow_fallback: where a requested provider does not work, go on without it (a warning is
            logged) instead of raising.
        record_placement: let :meth:`placement` know which provider runs which node.
        tail: whether the file is what follows a layer, which :class:`onnxcam.tail.Tail` opens.
        black_box: from the outputs and the file's name to a record for a file that has none; None: such a
            file is refused.

    Attributes:
        record: the file's record.
        inputs, outputs: the graph's, in order; inputs that have a default are not among them.
        providers: the active ones, in order of preference.

    Raises:
        MissingDependency: there is no onnxruntime.
        NotOnnx: not an ONNX file, or one that this ONNX Runtime cannot load.
        NotExplainable, SchemaTooNew, BadRecord: the file's record.
        ProviderError: a requested provider is missing, broken or not active.
        InputError: unknown session options.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        providers: Provider | Sequence[Provider] | None = None,
        *,
        provider_options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        session_options: Any = None,
        allow_fallback: bool = False,
        record_placement: bool = False,
        tail: bool = False,
        black_box: Callable[[Sequence[TensorInfo], str], Record] | None = None,
    ) -> None:
        ort = _onnxruntime()
        source, what = _source(model)
        options = _session_options(ort, session_options, record_placement)
        if providers is None and getattr(options, "has_providers", bool)():
            wanted: list[tuple[str, dict[str, Any]]] = []  # the user added them to the options
        else:
            wanted = requested(ort, providers, provider_options)
        self._session = _open(ort, source, what, options, wanted, allow_fallback)
        self.inputs = tuple(map(_info, self._session.get_inputs()))
        self.outputs = tuple(map(_info, self._session.get_outputs()))
        self.choices = {i.name: _info(i) for i in self._session.get_overridable_initializers()}
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        metadata = self._session.get_modelmeta().custom_metadata_map
        if black_box is not None and KEY not in metadata:
            self.record: Record = black_box(self.outputs, what)
        else:
            self.record = read_record(metadata, what)
            if not tail:
                refuse_tail(self.record, what)
            _check_record(self.record, self._session, what)
        self._ort = ort
        self._device = _bound_device(self._session)
        self._beside: dict[str, Any] = {}

    def as_feed(self, name: str, value: Any) -> Any:
        """``value`` as something that can be fed, not copied where it can be helped.

        A NumPy array, or an OrtValue on the session's device. Tensors of other libraries come
        through DLPack.

        Raises:
            TensorError: it is no tensor, or one in memory that the session cannot read.
        """
        if isinstance(value, np.ndarray):
            return value
        if isinstance(value, self._ort.OrtValue):
            return value if self._device is not None and value.device_name() != "cpu" else value.numpy()
        if hasattr(value, "__dlpack__"):
            return self._from_dlpack(name, value)
        try:
            array = np.asarray(value)
        except ValueError as e:
            raise TensorError(f"Input '{name}' is no array: its rows differ in length.") from e
        if array.dtype.kind not in "biuf":
            raise TensorError(
                f"Input '{name}' is a {type(value).__name__}, not an array or a tensor of numbers."
            )
        return array

    def _from_dlpack(self, name: str, value: Any) -> Any:
        device, _ = value.__dlpack_device__()
        on_host = device in (1, 3)  # DLPack: kDLCPU and kDLCUDAHost
        if not on_host and self._device is None:
            raise TensorError(
                f"Input '{name}' is on device type {int(device)} of DLPack, but the session runs on "
                f"{self.providers[0]}; move it to the CPU, or open the file on that device."
            )
        try:
            if on_host:
                return np.from_dlpack(value)
            if hasattr(self._ort.OrtValue, "from_dlpack"):
                return self._ort.OrtValue.from_dlpack(value)
            inner = self._ort.capi.onnxruntime_pybind11_state.OrtValue  # private before it was public
            return self._ort.OrtValue(inner.from_dlpack(value.__dlpack__(), False))
        except (BufferError, RuntimeError, AttributeError, TypeError) as e:
            raise TensorError(
                f"Input '{name}' cannot be shared through DLPack: {e} Give a contiguous tensor without "
                "a gradient (`x.detach().contiguous()`), or a NumPy array."
            ) from e

    def run(self, feeds: Mapping[str, Any], fetch: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run the file once.

        Args:
            feeds: per input what :meth:`as_feed` gives.
            fetch: the outputs to bring back; the others stay where they are.

        Returns:
            {output name: array on the host}.

        Raises:
            TensorError: ONNX Runtime refuses an input.
            ProviderError: a provider fails, for want of memory or of a library.
        """
        try:
            if self._device is None:
                values = self._session.run(list(fetch), dict(feeds))
            else:
                values = self._run_bound(feeds, fetch, *self._device)
        except Exception as e:  # ONNX Runtime's errors have no base but Exception
            raise _run_error(e, self.providers) from e
        return dict(zip(fetch, values, strict=True))

    def beside(self, name: str) -> Callable[[Mapping[str, Any]], Any] | None:
        """One of our own small graphs on the session's device, which gives its output as an OrtValue there.

        Args:
            name: of a file of this package.

        Returns:
            From feeds to the output; None where the session runs on the host, and NumPy will do.
        """
        if self._device is None:
            return None
        if name not in self._beside:
            options = self._session.get_provider_options()
            self._beside[name] = _create(
                self._ort,
                str(Path(__file__).with_name(name)),
                _session_options(self._ort, None, False),
                [(provider, options.get(provider, {})) for provider in self.providers],
            )
        session, (kind, device) = self._beside[name], self._device

        def run(feeds: Mapping[str, Any]) -> Any:
            binding = session.io_binding()
            values = {n: self.on_device(v) for n, v in feeds.items()}
            for n, value in values.items():
                binding.bind_ortvalue_input(n, value)
            binding.bind_output(session.get_outputs()[0].name, kind, device)
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            return binding.get_outputs()[0]

        return run

    def on_device(self, value: Any) -> Any:
        """An array as an OrtValue on the session's device; an OrtValue as it is."""
        if not isinstance(value, np.ndarray):
            return value
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), *(self._device or ()))

    def _run_bound(
        self, feeds: Mapping[str, Any], fetch: Sequence[str], kind: str, device: int
    ) -> list[NDArray[Any]]:
        binding = self._session.io_binding()  # one per call: a binding holds its tensors
        # Not bind_cpu_input: it does not know inputs that have a default (cam.class_index). The arrays
        # stay in a variable until the run is over, because older bindings do not keep them alive.
        arrays = {n: np.asarray(v, order="C") for n, v in feeds.items() if isinstance(v, np.ndarray)}
        values = {n: self._ort.OrtValue.ortvalue_from_numpy(a) for n, a in arrays.items()}
        for name, value in {**feeds, **values}.items():
            binding.bind_ortvalue_input(name, value)
        for output in self.outputs:
            binding.bind_output(output.name, kind, device)
        # A tensor from another library may still be being written on that library's stream.
        if len(arrays) < len(feeds):
            binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        results = dict(zip((o.name for o in self.outputs), binding.get_outputs(), strict=True))
        return [results[name].numpy() for name in fetch]

    def placement(self) -> dict[str, tuple[Node, ...]] | None:
        """The nodes that each provider runs; None if it was not recorded or cannot be by this version."""
        try:
            parts = self._session.get_provider_graph_assignment_info()
        except Exception:  # not recorded (an ONNX Runtime error), or a version without it
            return None
        placed: dict[str, tuple[Node, ...]] = {}
        for part in parts:
            nodes = tuple(Node(n.name, n.op_type) for n in part.get_nodes())
            placed[part.ep_name] = placed.get(part.ep_name, ()) + nodes
        return placed


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingDependency(
            'Opening a file needs ONNX Runtime: pip install "onnxcam[cpu]", or "onnxcam[gpu]" for CUDA.'
            + ("" if isinstance(e, ModuleNotFoundError) else f" (The installed one does not load: {e})")
        ) from e
    return onnxruntime


def _source(model: Any) -> tuple[str | bytes, str]:
    """The model as ONNX Runtime takes it, and its name for messages."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        if not len(model):
            raise NotOnnx("The model is empty: it has no bytes.")
        return bytes(model), f"the model ({len(model)} bytes)"
    if not isinstance(model, (str, os.PathLike)):
        raise NotOnnx(f"A model is a path or the bytes of a file, not {type(model).__name__}.")
    path = Path(model)
    if os.path.isdir(path):  # not Path's own, which raises for a name that is too long
        raise NotOnnx(f"'{path}' is a folder, not an ONNX file.")
    if not os.path.exists(path):
        raise NotOnnx(f"There is no file '{path}'.")
    if path.stat().st_size == 0:
        raise NotOnnx(f"'{path}' is empty: it has no bytes.")
    return str(path), f"'{path}'"


def _session_options(ort: Any, given: Any, record_placement: bool) -> Any:
    if isinstance(given, ort.SessionOptions):
        return given
    if not isinstance(given or {}, Mapping):
        raise InputError(
            "session_options is an onnxruntime.SessionOptions or a mapping of its attributes, not "
            f"{type(given).__name__}."
        )
    options = ort.SessionOptions()
    # Errors only: each session would warn that cam.class_index is an initializer that can be fed.
    options.log_severity_level = 3
    if record_placement:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in dict(given or {}).items():
        name = str(key)
        if "." in name:
            options.add_session_config_entry(name, str(value))
        elif hasattr(options, name):
            try:
                setattr(options, name, value)
            except (TypeError, AttributeError) as e:
                raise InputError(f"onnxruntime.SessionOptions does not take {value!r} as {name!r}.") from e
        else:
            known = [n for n in dir(options) if not n.startswith("_")]
            raise InputError(
                f"onnxruntime.SessionOptions has no attribute {name!r}.{nearest(name, known)} "
                "Configuration entries have a dot in their name."
            )
    return options


def _open(
    ort: Any,
    source: str | bytes,
    what: str,
    options: Any,
    wanted: list[tuple[str, dict[str, Any]]],
    allow_fallback: bool,
) -> Any:
    usable = []
    for name, settings in wanted:
        if name in ort.get_available_providers():
            usable.append((name, settings))
        else:
            _refuse(not_built(ort, name), allow_fallback)
    if any(name in ON_CUDA for name, _ in usable):
        preload(ort)
    try:
        session = _create(ort, source, options, usable or ([(CPU, {})] if wanted else []))
    except Exception as e:  # ONNX Runtime's errors have no base but Exception
        names = [name for name, _ in usable]
        accelerators = [name for name, _ in usable if name != CPU]
        if not accelerators or isinstance(e, _model_errors(ort)):
            raise _load_error(ort, e, source, what, names) from e
        try:
            session = _create(ort, source, options, [(CPU, {})])
        except Exception as model_error:
            no_kernel = ort.capi.onnxruntime_pybind11_state.NotImplemented
            if not isinstance(model_error, no_kernel) or isinstance(e, no_kernel):
                # The file is at fault, not the provider.
                raise _load_error(ort, model_error, source, what, names) from e
            # What the CPU has no kernels for may well be what the provider is wanted for.
            raise ProviderError(why_not(ort, accelerators, str(e))) from e
        _refuse(why_not(ort, accelerators, str(e)), allow_fallback, e)
    for name, _ in usable:
        if name not in session.get_providers():
            _refuse(why_not(ort, [name], ""), allow_fallback)
    return session


def _create(ort: Any, source: str | bytes, options: Any, providers: list[tuple[str, dict[str, Any]]]) -> Any:
    session = ort.InferenceSession(
        source,
        options,
        providers=[name for name, _ in providers] or None,
        provider_options=[settings for _, settings in providers] or None,
        enable_fallback=0,
    )
    session.disable_fallback()
    return session


def _refuse(message: str, allow_fallback: bool, cause: Exception | None = None) -> None:
    if not allow_fallback:
        raise ProviderError(message) from cause
    _log.warning("%s Going on without it, as allow_fallback permits.", message)


def _model_errors(ort: Any) -> tuple[type[Exception], ...]:
    state = ort.capi.onnxruntime_pybind11_state
    return (state.InvalidProtobuf, state.NoSuchFile, state.InvalidGraph)


def _load_error(
    ort: Any, e: Exception, source: str | bytes, what: str, names: Sequence[str]
) -> NotOnnx | ProviderError:
    if isinstance(e, ValueError):  # ONNX Runtime's check of the provider arguments
        return ProviderError(f"ONNX Runtime refuses the provider options: {e}.")
    head = source[:1] if isinstance(source, bytes) else _first_byte(source)
    reason = _reason(e)
    if "No graph was found" in reason or isinstance(e, ort.capi.onnxruntime_pybind11_state.InvalidProtobuf):
        # An ONNX file starts with its first field, the IR version.
        if head == b"\x08":
            return NotOnnx(f"{what} is a truncated or damaged ONNX file: it ends early or cannot be parsed.")
        return NotOnnx(f"{what} is not an ONNX file.")
    if missing := _NO_KERNEL.search(reason):
        op, opset, node = missing.groups()
        return ProviderError(
            f"{' and '.join(names) or CPU} of ONNX Runtime {ort.__version__} has no kernel for {op} of opset "
            f"{opset} at the node {node!r} in {what}: it lacks the operator or its type, as bfloat16, for "
            "which there are kernels on CUDA and hardly any on the CPU. Open the file with providers='cuda', "
            "or rewrite the model from its float32 version."
        )
    return NotOnnx(f"ONNX Runtime {ort.__version__} cannot load {what}: {reason}")


def _first_byte(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1)


def _reason(e: Exception) -> str:
    """ONNX Runtime's message without its status prefix."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(e)).strip()


def _run_error(e: Exception, providers: Sequence[str]) -> TensorError | ProviderError:
    reason = _reason(e)
    if type(e).__name__ == "InvalidArgument":
        return TensorError(f"ONNX Runtime refuses the input: {reason}")
    missing = MISSING_LIBRARY.search(reason)
    if missing:
        reason = f"the library {missing.group()} is missing. {reason}"
    return ProviderError(f"The run failed on {', '.join(providers)}: {reason}")


def _info(arg: Any) -> TensorInfo:
    return TensorInfo(arg.name, _DTYPES.get(arg.type), tuple(arg.shape))


def _bound_device(session: Any) -> tuple[str, int] | None:
    """The device on which outputs are bound; None where plain runs are right."""
    on_cuda = [name for name in session.get_providers() if name in ON_CUDA]
    if not on_cuda:
        return None
    return "cuda", int(session.get_provider_options().get(on_cuda[0], {}).get("device_id", 0))


def _check_record(record: Record, session: Any, what: str) -> None:
    """Raise BadRecord if the record speaks of tensors that the file does not have, or not so."""
    if not record.layers:
        raise BadRecord(f"The record of {what} names no layer. Rewrite the source model.")
    outputs = {o.name for o in session.get_outputs()}
    inputs = {i.name for i in (*session.get_overridable_initializers(), *session.get_inputs())}
    for kind, name, known in _named(record, outputs, inputs):
        if name not in known:
            raise BadRecord(
                f"The record of {what} names the {kind} '{name}', which the file does not have: it was "
                "changed after it was made explainable. Rewrite the source model."
            )
    shapes = {o.name: o.shape for o in session.get_outputs()}
    for layer in () if record.maps_only else record.layers:
        for name in (layer.gradients,) if record.tail_of else (layer.activations, layer.gradients):
            if shapes[name] and not holds(shapes[name], layer.layout):
                raise BadRecord(
                    f"The record of {what} calls '{name}' {layer.layout.kind}, but its shape is "
                    f"{tuple(shapes[name])}. Rewrite the source model."
                )


def _named(record: Record, outputs: set[str], inputs: set[str]) -> Iterator[tuple[str, str, set[str]]]:
    if SCORE not in outputs:
        yield "output", record.score.output, outputs
    for layer in () if record.maps_only else record.layers:
        yield (
            ("input", layer.activations, inputs) if record.tail_of else ("output", layer.activations, outputs)
        )
        yield "output", layer.gradients, outputs
    for fused in record.fused:
        yield "output", fused.output, outputs
    for side in (side for tail in record.tails for side in tail.sides):
        yield "output", side.name, outputs
    for name in (*CHOICES[record.score.task], *(seed.input for seed in record.score.seeds)):
        yield "input", name, inputs
