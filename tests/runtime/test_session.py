from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from onnxcam import contract, errors, providers
from onnxcam.session import Session

ort = pytest.importorskip("onnxruntime")
CPU = "CPUExecutionProvider"
ABSENT = "CoreMLExecutionProvider" if sys.platform != "darwin" else "DmlExecutionProvider"


def test_opens_a_path_and_bytes(file, tiny):
    for model in (file, str(file), file.read_bytes(), bytearray(file.read_bytes())):
        session = Session(model, "cpu")
        assert session.providers == (CPU,)
        assert [str(i) for i in session.inputs] == ["float32 (N, 3, 12, 12)"]
        assert session.record == tiny().record()


def test_runs_and_fetches_what_is_asked(file, tiny, provider):
    session = Session(file, [provider])
    x = tiny().x()
    found = session.run({"image": x}, ["cam.activations.top", "scores"])
    assert list(found) == ["cam.activations.top", "scores"]
    np.testing.assert_allclose(found["scores"], tiny().forward(x)["logits"], rtol=1e-3, atol=1e-4)


def test_a_bound_run_gives_what_a_plain_one_gives(file, tiny):
    session = Session(file, "cpu")
    x = tiny().x()
    feeds = {"image": x, contract.CLASS_INDEX: np.array([0, 3, -1])}
    fetch = ["cam.gradients.top", "scores"]
    plain = session.run(feeds, fetch)
    session._device = ("cpu", 0)  # CUDA's way, on what every machine has
    value = ort.OrtValue.ortvalue_from_numpy(x)
    for bound in (session.run(feeds, fetch), session.run({**feeds, "image": value}, fetch)):
        assert list(bound) == fetch
        for name in fetch:
            np.testing.assert_array_equal(bound[name], plain[name])
    session.run({"image": x[:, :, ::1]}, fetch)  # the class index keeps its default


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it has no bytes"),
        (b"hello world, this is no model", "is not an ONNX file"),
        (b"PK\x03\x04" * 50, "is not an ONNX file"),
        ("half", "is a truncated or damaged ONNX file: it ends early or cannot be parsed"),
    ],
)
def test_unreadable_files(tmp_path, file, content, message):
    data = file.read_bytes()[: file.stat().st_size // 2] if content == "half" else content
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(errors.NotOnnx, match=rf"'.*bad\.onnx' {message}"):
        Session(path, "cpu")
    with pytest.raises(errors.NotOnnx, match=rf"[Tt]he model.* {message}"):
        Session(data, "cpu")


def test_missing_files(tmp_path):
    with pytest.raises(errors.NotOnnx, match=r"There is no file '.*gone\.onnx'"):
        Session(tmp_path / "gone.onnx")
    with pytest.raises(errors.NotOnnx, match=r"There is no file 'xxx"):
        Session("x" * 5000)
    with pytest.raises(errors.NotOnnx, match=r"is a folder, not an ONNX file"):
        Session(tmp_path)
    with pytest.raises(errors.NotOnnx, match=r"A model is a path or the bytes of a file, not int"):
        Session(3)


def test_a_model_that_this_runtime_cannot_load(file):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(file)
    model.ir_version = 99
    with pytest.raises(
        errors.NotOnnx, match=rf"ONNX Runtime {ort.__version__} cannot load the model .*IR version"
    ):
        Session(model.SerializeToString(), "cpu")


def test_records(tiny):
    model = tiny()
    with pytest.raises(errors.NotExplainable, match=r"has no 'onnxcam' record.*onnxcam rewrite model.onnx"):
        Session(model.graph_bytes(record=""), "cpu")
    newer = json.dumps({**json.loads(model.record().to_json()), "schema": 9})
    with pytest.raises(
        errors.SchemaTooNew, match=r"has schema 9; this version reads up to 1. Upgrade onnxcam"
    ):
        Session(model.graph_bytes(record=newer), "cpu")
    with pytest.raises(errors.BadRecord, match="is not JSON"):
        Session(model.graph_bytes(record="{"), "cpu")
    none = replace(model.record(), layers=())
    with pytest.raises(errors.BadRecord, match=r"names no layer. Rewrite the source model"):
        Session(model.graph_bytes(record=none), "cpu")
    other = tiny(layers=("top", "features")).record()
    with pytest.raises(
        errors.BadRecord,
        match=r"names the output 'cam.activations.features', which the file does not have: it was changed",
    ):
        Session(model.graph_bytes(record=other), "cpu")


DAMAGED = "The file's onnxcam record is damaged: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [], "has no schema number. Rewrite the source model"),
        (lambda r: {**r, "schema": "1"}, "has no schema number"),
        (lambda r: {**r, "schema": True}, "has no schema number"),
        (lambda r: {**r, "schema": 0}, "has no schema number"),
        (lambda r: {k: v for k, v in r.items() if k != "score"}, DAMAGED + "record has no 'score'. Rewrite"),
        (lambda r: {**r, "score": 3}, DAMAGED + "record.score is not an object"),
        (lambda r: {**r, "layers": "top"}, DAMAGED + "record.layers is 'top', not a list"),
        (lambda r: {**r, "layers": [{**r["layers"][0], "head": "x"}]}, DAMAGED + "record.layers.head is 'x'"),
        (lambda r: {**r, "tool_version": 3}, DAMAGED + "record.tool_version is 3"),
        (lambda r: {**r, "preprocess": {"size": [3]}}, DAMAGED + "record.preprocess.size has 1 entries"),
        (lambda r: {**r, "preprocess": {"size": [0, 3]}}, DAMAGED + "size and resize must be at least 1"),
        (lambda r: {**r, "preprocess": {"resize": "x"}}, DAMAGED + "record.preprocess.resize is 'x'"),
        (lambda r: {**r, "preprocess": {"mean": [0, 0]}}, DAMAGED + "mean has 2 values for 3 channels"),
        (
            lambda r: {**r, "layers": [{**r["layers"][0], "layout": {"kind": "tokens", "grid": [6, 6]}}]},
            r"calls 'cam.activations.top' tokens, but its shape is \(.*6, 6\). Rewrite the source model",
        ),
        (
            lambda r: {**r, "layers": [{**r["layers"][0], "gradients": "scores"}]},
            r"calls 'scores' NCHW, but its shape is ",
        ),
    ],
)  # fmt: skip
def test_damaged_records(tiny, change, message):
    model = tiny(score_shape=(-1, 5))
    damaged = json.dumps(change(json.loads(model.record().to_json())))
    with pytest.raises(errors.BadRecord, match=message):
        Session(model.graph_bytes(record=damaged), "cpu")


def test_a_record_nested_without_end(tiny):
    with pytest.raises(errors.BadRecord, match="is not JSON: maximum recursion depth"):
        Session(tiny().graph_bytes(record="[" * 100_000), "cpu")


def test_a_token_grid_that_the_tensor_does_not_hold(tiny):
    model = tiny(layout="tokens", batch=1)
    body = json.loads(model.record().to_json())
    body["layers"][0]["layout"]["grid"] = [99, 99]
    with pytest.raises(errors.BadRecord, match=r"calls 'cam.activations.top' tokens, but its shape is"):
        Session(model.graph_bytes(record=json.dumps(body)), "cpu")


def test_the_fields_of_a_later_revision_are_ignored(tiny):
    model = tiny()
    body = json.loads(model.record().to_json()) | {"later": 1}
    assert Session(model.graph_bytes(record=json.dumps(body)), "cpu").record == model.record()


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("cpu", CPU),
        ("CUDA", "CUDAExecutionProvider"),
        ("trt", "TensorrtExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
        ("openvino", "OpenVINOExecutionProvider"),
        ("coreml", "CoreMLExecutionProvider"),
        ("qnn", "QNNExecutionProvider"),
        ("xnnpack", "XnnpackExecutionProvider"),
        ("dml", "DmlExecutionProvider"),
        ("directml", "DmlExecutionProvider"),
        ("webgpu", "WebGpuExecutionProvider"),
        ("rocm", "ROCMExecutionProvider"),
        ("MyExecutionProvider", "MyExecutionProvider"),
    ],
)
def test_short_names(short, full):
    assert providers.full_name(short) == full


def test_short_names_agree_with_onnxruntime():
    known = {providers.full_name(name.lower()) for name in providers._KNOWN}
    assert {CPU, "CUDAExecutionProvider", "CoreMLExecutionProvider"} <= known & set(ort.get_all_providers())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cudo", "no execution provider 'cudo'. Nearest: 'cuda'.*Known short names are"),
        ([], r'No execution provider is named; write providers=\["cpu"\]'),
        (
            ABSENT,
            f"{ABSENT} was asked for, but the installed onnxruntime .* is built without it: it has .*{CPU}",
        ),
        ([ABSENT, "cpu"], f"{ABSENT} was asked for"),
    ],
)
def test_providers_that_are_not_there(file, wanted, message):
    with pytest.raises(errors.ProviderError, match=message):
        Session(file, wanted)


def test_a_missing_provider_says_which_wheel_has_it(file):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(
        errors.ProviderError,
        match=r'To have it: pip install "onnxcam\[gpu\]" \(uninstall the other onnxruntime wheel first.*'
        r'To run on the CPU: providers=\["cpu"\]',
    ):
        Session(file, ["cuda"])


def test_fallback_where_it_is_permitted(file, caplog):
    session = Session(file, ABSENT, allow_fallback=True)
    assert session.providers == (CPU,)
    assert "was asked for" in caplog.text
    assert "Going on without it, as allow_fallback permits" in caplog.text


class Broken:
    """An onnxruntime that says it has CUDA but whose CUDA does not come up."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __getattr__(self, name: str) -> object:
        return getattr(ort, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", CPU]

    def InferenceSession(self, source, options, *, providers, provider_options, enable_fallback):
        assert enable_fallback == 0
        if "CUDAExecutionProvider" in providers and self.how != "silent":
            raise RuntimeError(self.how)
        return ort.InferenceSession(source, options, providers=[CPU])


@pytest.fixture
def broken(monkeypatch):
    def install(how: str, library: str = "") -> None:
        monkeypatch.setattr("onnxcam.session._onnxruntime", lambda: Broken(how))
        monkeypatch.setattr("onnxcam.providers._load_library", lambda ort, name: library)

    return install


@pytest.mark.parametrize("wanted", ["cuda", ["cuda", "cpu"], None])
def test_a_provider_that_onnxruntime_silently_left_out(file, broken, wanted):
    broken("silent", "libcudnn.so.9: cannot open shared object file: No such file or directory")
    with pytest.raises(
        errors.ProviderError,
        match=r"CUDAExecutionProvider does not work here: the library libcudnn\.so\.9 is missing\. "
        r'Install what it needs \(`pip install "onnxcam\[gpu\]"`\).*or run on the CPU with '
        r'providers=\["cpu"\]',
    ):
        Session(file, wanted)
    assert Session(file, wanted, allow_fallback=True).providers == (CPU,)


def test_a_provider_that_raises(file, broken):
    broken("CUDA failure 100: no CUDA-capable device is detected")
    with pytest.raises(errors.ProviderError, match=r"does not work here: CUDA failure 100: no CUDA-capable"):
        Session(file, "cuda")
    assert Session(file, "cuda", allow_fallback=True).providers == (CPU,)


def test_the_file_is_blamed_where_it_is_at_fault(file, broken):
    broken("CUDA failure 100")
    with pytest.raises(errors.NotOnnx, match=r"truncated or damaged"):
        Session(file.read_bytes()[:300], "cuda")


def test_options_reach_onnxruntime(file):
    session = Session(
        file, "cpu", session_options={"intra_op_num_threads": 1, "session.intra_op.allow_spinning": 0}
    )
    options = session._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    own = ort.SessionOptions()
    own.inter_op_num_threads = 2
    assert Session(file, "cpu", session_options=own)._session.get_session_options().inter_op_num_threads == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"intra_threads": 1}, r"no attribute 'intra_threads'. Nearest: 'intra_op_num_threads'"),
        ({"intra_op_num_threads": "a"}, r"SessionOptions does not take 'a' as 'intra_op_num_threads'"),
        ({3: 4}, r"SessionOptions has no attribute '3'"),
        (4, r"session_options is an onnxruntime.SessionOptions or a mapping of its attributes, not int"),
    ],
)
def test_unusable_session_options(file, given, message):
    with pytest.raises(errors.InputError, match=message):
        Session(file, "cpu", session_options=given)


@pytest.mark.parametrize("wanted", [3, [3], [("cpu",)], {"cpu": {}}])
def test_what_names_no_provider(file, wanted):
    with pytest.raises(
        errors.ProviderError, match=r"An execution provider is a name or \(name, options\), as"
    ):
        Session(file, wanted)


@pytest.mark.parametrize("given", [3, "x", [3]])
def test_what_are_no_provider_options(file, given):
    with pytest.raises(
        errors.ProviderError, match=r"provider_options is a mapping, or one for each provider"
    ):
        Session(file, "cpu", provider_options=given)


def test_one_session_options_object_serves_several_files(file):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    x = np.zeros((1, 3, 12, 12), np.float32)
    first, second = (Session(file, "cpu", session_options=options) for _ in range(2))
    np.testing.assert_array_equal(
        first.run({"image": x}, ["scores"])["scores"], second.run({"image": x}, ["scores"])["scores"]
    )


def test_provider_options_reach_onnxruntime(file):
    arena = {"arena_extend_strategy": "kSameAsRequested"}
    for wanted, options in (
        (("cpu", arena), None),
        ([("cpu", arena)], None),
        ("cpu", arena),
        (["cpu"], [arena]),
        (None if "CUDAExecutionProvider" not in ort.get_available_providers() else "cpu", arena),
    ):
        assert providers.requested(ort, wanted, options) == [(CPU, arena)]
    with pytest.raises(
        errors.ProviderError, match=r"provider_options has 2 entries for 1 provider; give one"
    ):
        Session(file, "cpu", provider_options=[{}, {}])


def test_a_refused_input_is_the_callers(file):
    with pytest.raises(errors.TensorError, match=r"ONNX Runtime refuses the input: .*image"):
        Session(file, "cpu").run({"image": np.zeros((3, 12, 12), np.float32)}, ["scores"])


def test_a_failing_run_names_the_provider_and_the_library(file, monkeypatch):
    session = Session(file, "cpu")

    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError("libcudnn.so.9: cannot open shared object file")

        def io_binding(self) -> None:
            self.run()

    monkeypatch.setattr(session, "_session", Failing())
    with pytest.raises(
        errors.ProviderError, match=rf"The run failed on {CPU}: the library libcudnn\.so\.9 is missing"
    ):
        session.run({}, ["scores"])


def test_a_tensor_on_a_foreign_device(file):
    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 8, 0  # Metal

        def __dlpack__(self, **_: object) -> None:
            raise AssertionError

    with pytest.raises(
        errors.TensorError, match=r"'image' is on device type 8 of DLPack.*move it to the CPU"
    ):
        Session(file, "cpu").as_feed("image", Elsewhere())


def test_import_needs_no_runtime_and_opening_says_what_to_install(file):
    code = f"""
import sys
for name in ("onnxruntime", "onnx", "onnx_ir", "torch", "PIL", "rich"):
    sys.modules[name] = None
import onnxcam
try:
    onnxcam.Explainer({str(file)!r})
except onnxcam.errors.MissingDependency as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        'Opening a file needs ONNX Runtime: pip install "onnxcam[cpu]", or "onnxcam[gpu]" for CUDA.'
    )
