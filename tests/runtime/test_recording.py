"""The format of recordings: what is written is read again, by the word of the document, or refused."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import pytest

from onnxcam import recording
from onnxcam.contract import Preprocess
from onnxcam.errors import BadRecording, OutputError
from onnxcam.recording import Maker, Recording, joined, load

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "recording.md"
FIELDS = ("maker", "names", "sha256", "labels", "skipped")
ARRAYS = ("sizes", "class_ids", "scores", "outputs")


def made(count=3, classes=4, **changes):
    """A recording of two layers whose numbers are all different."""
    rng = np.random.default_rng(count)
    maker = Maker(
        "model.cam.onnx",
        ("early", "late"),
        "ab" * 32,
        "a test",
        {"onnxruntime": "1.0", "providers": "CPUExecutionProvider"},
        "layercam",
        activation="softmax",
        labels=tuple(f"Klasse {i} ü" for i in range(classes)),
        preprocess=Preprocess("x", (6, 8), "letterbox", mean=(0.1, 0.2, 0.3)),
    )
    outputs = rng.standard_normal((count, classes)).astype(np.float32)
    class_ids = outputs.argmax(axis=1)
    whole = Recording(
        maker,
        tuple(f"below/{i}.jpg" for i in range(count)),
        tuple(f"{i:064x}" for i in range(count)),
        rng.integers(1, 5000, (count, 2)),
        class_ids,
        tuple(maker.labels[i] for i in class_ids),
        outputs.max(axis=1),
        outputs,
        {
            "early": rng.standard_normal((count, 4, 5)).astype(np.float32),
            "late": rng.standard_normal((count, 2, 3)).astype(np.float32),
        },
        (("broken.jpg", "it is cut"),),
    )
    return replace(whole, **changes)


def same(one, other):
    assert all(getattr(one, name) == getattr(other, name) for name in FIELDS)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert list(one.maps) == list(other.maps) == list(one.maker.layers)
    for layer in one.maps:
        np.testing.assert_array_equal(one.maps[layer], other.maps[layer])


def written(path, text=None, **arrays):
    """A file with these entries, besides those of :func:`made`; None leaves one out."""
    entries = made().arrays() | {k.replace("__", "/"): v for k, v in arrays.items()}
    if "about" not in arrays:
        about = json.loads(entries["about"].tobytes()) | (text or {})
        about = {k: v for k, v in about.items() if v is not None}
        entries["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **{k: v for k, v in entries.items() if v is not None})
    return path


# What is written


def test_what_is_saved_is_loaded(tmp_path):
    whole = made()
    whole.save(tmp_path / "run.npz")
    again = load(tmp_path / "run.npz")
    same(whole, again)
    assert [again.sizes.dtype, again.class_ids.dtype] == [np.int64] * 2
    assert [again.scores.dtype, again.outputs.dtype, again.maps["late"].dtype] == [np.float32] * 3
    assert len(again) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_a_recording_of_no_photos_and_one_without_classes(tmp_path):
    none = replace(recording.empty(made().maker), skipped=(("a.jpg", "why"),))
    none.save(tmp_path / "none.npz")
    same(none, load(tmp_path / "none.npz"))
    other = made(class_ids=np.full(3, -1), outputs=None, labels=("", "", ""))
    other.save(tmp_path / "other.npz")
    same(other, load(tmp_path / "other.npz"))


def test_names_that_are_no_unicode_are_kept(tmp_path):
    odd = made(names=("a\udcff.jpg", "ü/[b].jpg", 'quoted " \n.jpg'))
    odd.save(tmp_path / "run.npz")
    assert load(tmp_path / "run.npz").names == odd.names


def test_the_same_recording_is_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        made().save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_numpy_reads_what_is_written(tmp_path):
    whole = made()
    whole.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as file:
        assert file.files == ["about", *ARRAYS, "maps/0", "maps/1"]
        np.testing.assert_array_equal(file["maps/1"], whole.maps["late"])
        assert file["about"].dtype == np.uint8
        assert json.loads(file["about"].tobytes())["schema"] == recording.SCHEMA == 1


def test_parts_become_one():
    first, second = made(2), made(3, skipped=())
    second = replace(second, names=("x", "y", "z"))
    nothing = replace(recording.empty(first.maker), skipped=(("late.jpg", "why"),))
    whole = joined([nothing, first, second])
    assert whole.names == (*first.names, "x", "y", "z")
    assert whole.skipped == (("late.jpg", "why"), ("broken.jpg", "it is cut"))
    assert whole.maker == first.maker
    for name in ARRAYS:
        np.testing.assert_array_equal(
            getattr(whole, name), np.concatenate([getattr(first, name), getattr(second, name)])
        )
    np.testing.assert_array_equal(whole.maps["early"][2:], second.maps["early"])
    assert joined([nothing, nothing]).skipped == (("late.jpg", "why"),) * 2


def test_what_could_not_be_read_is_not_written(tmp_path):
    for field, value, why in [
        ("scores", np.full(3, np.nan, np.float32), "'scores' holds NaN or infinity, for the photo 'below/0"),
        ("names", ("a", "a", "b"), "the photo 'a' is there twice"),
    ]:
        with pytest.raises(BadRecording, match=rf"The recording is not written to '.*run\.npz': {why}"):
            made(**{field: value}).save(tmp_path / "run.npz")
    assert not list(tmp_path.iterdir())


def test_no_half_written_file(tmp_path, monkeypatch):
    made().save(tmp_path / "run.npz")
    before = (tmp_path / "run.npz").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxcam.folder.os.replace", full)
    with pytest.raises(OutputError, match=r"Cannot write to '.*': No space left on device\. Choose"):
        made(2).save(tmp_path / "run.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    assert (tmp_path / "run.npz").read_bytes() == before


# What others write


def npy(kind, shape, values):
    """An entry by the letter of the format, version 1.0, as a program in C would print it."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({', '.join(map(str, shape))},), }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    code = {"<f4": "f", "<f8": "d", "<i4": "i", "<i8": "q", "|u1": "B", "|i1": "b"}[kind]
    return b"\x93NUMPY\x01\x00" + struct.pack(
        f"<H{len(text)}s{len(values)}{code}", len(text), text.encode(), *values
    )


ABOUT = {"schema": 1, "maker": {"model": "m.tflite", "layers": ["conv"]}, "names": ["a.jpg", "b.jpg"]}
FOREIGN = {
    "sizes": ("<i4", (2, 2), (480, 640, 10, 20)),
    "class_ids": ("<i4", (2,), (1, 0)),
    "scores": ("<f4", (2,), (0.75, 0.5)),
    "outputs": ("<f8", (2, 2), (0.25, 0.75, 0.5, 0.5)),
    "maps/0": ("<f4", (2, 1, 3), (0, 1, 2, 3, 4, 5)),
}


@pytest.mark.parametrize("kind", ["|u1", "|i1"])
@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_recording_written_without_numpy_is_read(tmp_path, kind, packed):
    text = list(json.dumps(ABOUT | {"labels": ["ü", "cat"]}, ensure_ascii=False).encode())
    text = [b - 256 if kind == "|i1" and b > 127 else b for b in text]
    with zipfile.ZipFile(tmp_path / "run.npz", "w", packed) as file:
        for name, entry in {"about": (kind, (len(text),), text), **FOREIGN}.items():
            file.writestr(f"{name}.npy", npy(*entry))
    read = load(tmp_path / "run.npz")
    assert read.maker == Maker("m.tflite", ("conv",))
    assert (read.names, read.sha256, read.labels) == (("a.jpg", "b.jpg"), ("", ""), ("ü", "cat"))
    assert read.sizes.tolist() == [[480, 640], [10, 20]]
    assert read.class_ids.tolist() == [1, 0]
    assert read.scores.tolist() == [0.75, 0.5]
    assert read.outputs.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert read.maps["conv"].tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    assert read.skipped == ()


def test_hashes_are_the_same_in_either_case(tmp_path):
    path = written(tmp_path / "run.npz", {"sha256": ["AB" * 32, "ab" * 32, ""]})
    assert load(path).sha256 == ("ab" * 32, "ab" * 32, "")


def test_entries_and_fields_that_are_not_known_are_left_alone(tmp_path):
    more = {"note": "of a later revision", "maker": {**ABOUT["maker"], "layers": ["a", "b"], "mood": "good"}}
    path = written(tmp_path / "run.npz", more, extra=np.zeros(3), odd=np.array(["text"]))
    assert load(path).maker == Maker("m.tflite", ("a", "b"))


def test_the_writer_of_the_document_writes_what_is_read(tmp_path, monkeypatch):
    """The document's own code, run as it stands there, by the standard library alone."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    assert set(re.findall(r"^import (\w+)", code, re.M)) == {"json", "struct", "zipfile"}
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/recording.md", "exec"), {})
    read = load("device.npz")
    assert read.maker == Maker(
        "pets.tflite",
        ("block5/out",),
        tool="camera 2.1",
        runtime={"delegate": "hexagon"},
        labels=("cat", "dog"),
        preprocess=Preprocess(size=(224, 224), fit="crop", resize=256),
    )
    assert read.names == ("a.jpg", "below/b.jpg")
    assert read.sizes.tolist() == [[480, 640], [720, 1280]]
    assert read.class_ids.tolist() == [0, 1]
    assert read.scores.tolist() == [2.5, 3.0]
    assert read.outputs.tolist() == [[2.5, -1.0], [0.25, 3.0]]
    assert read.maps["block5/out"].tolist() == [[[0.0, 0.5], [1.0, 0.25]], [[4.0, -0.5], [0.125, 0.0]]]


def test_the_document_names_every_entry_and_field(tmp_path):
    """And no other: first columns of its three tables."""
    tables = re.split(r"\n\n(?=\|)", DOCUMENT.read_text(encoding="utf-8"))[1:]
    named = [re.findall(r"^\| `([\w/]+)", table, re.M) for table in tables]
    entries, about, maker = named
    whole = made()
    assert sorted(entries) == sorted({name.replace("maps/1", "maps/0") for name in whole.arrays()})
    assert sorted(about) == sorted(json.loads(whole.arrays()["about"].tobytes()))
    assert sorted(maker) == sorted(field.name for field in fields(Maker))
    defaults = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", tables[2], re.M))
    for field in fields(Maker):
        required = field.default is MISSING and field.default_factory is MISSING
        assert required == (field.name not in defaults), field.name
        if not required:
            default = field.default_factory() if field.default is MISSING else field.default
            assert json.loads(defaults[field.name]) == default


# What is refused

AGAIN = " Record it again with `onnxcam record`, or see docs/recording.md for how other programs write one."


def refused(path, why, more=AGAIN):
    with pytest.raises(BadRecording, match=f"{why}.*{re.escape(more)}$"):
        load(path)


def damaged(path, why):
    refused(path, rf"^The recording '{re.escape(str(path))}' is damaged: {re.escape(why)}")


@pytest.mark.parametrize("name", ["about", "sizes", "class_ids", "scores"])
def test_a_file_without_an_entry(tmp_path, name):
    path = written(tmp_path / "run.npz", **{name: None})
    refused(path, rf"^'.*run\.npz' is no recording: it has no entry '{name}'\.")


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (b"", "is not JSON: Expecting value"),
        (b"{", "is not JSON: Expecting property name"),
        (b"[" * 100_000, "is not JSON: "),
        (b"\xff", "is not JSON: 'utf-8' codec"),
        (b"[]", "has no schema number"),
        (b"{}", "has no schema number"),
        (b'{"schema": true}', "has no schema number"),
        (b'{"schema": 0}', "has no schema number"),
    ],
    ids=["empty", "cut", "deep", "bytes", "list", "none", "bool", "zero"],
)
def test_an_entry_about_that_says_nothing(tmp_path, about, why):
    path = written(tmp_path / "run.npz", about=np.frombuffer(about, np.uint8))
    refused(path, rf"^The entry 'about' of '.*run\.npz' {why}")


def test_an_entry_about_of_numbers(tmp_path):
    path = written(tmp_path / "run.npz", about=np.zeros(3))
    refused(path, r"^The entry 'about' of '.*run\.npz' is float64, not bytes \(uint8\)\.")


def test_a_newer_recording(tmp_path):
    with pytest.raises(
        BadRecording,
        match=r"The recording '.*run\.npz' has schema 2; this version reads up to 1\. Upgrade onnxcam \(`pip",
    ):
        load(written(tmp_path / "run.npz", {"schema": 2}))


MAKER = {"model": "m", "layers": ["early", "late"]}


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"maker": None}, "maker is not an object"),
        ({"maker": {"layers": []}}, "maker has no 'model'"),
        ({"maker": {"model": "m"}}, "maker has no 'layers'"),
        ({"maker": {**MAKER, "task": "guess"}}, "maker.task is 'guess', not one of 'classification'"),
        ({"maker": {**MAKER, "labels": "cat"}}, "maker.labels is 'cat', not a list"),
        ({"maker": {**MAKER, "preprocess": {"size": [0, 1]}}}, "size and resize must be at least 1"),
        ({"maker": {**MAKER, "layers": ["early", "early"]}}, "the layer 'early' is there twice"),
        (
            {"maker": {**MAKER, "layers": ["a", "b", "c"]}},
            "it has no entry 'maps/2', the maps of the layer",
        ),
        ({"maker": {**MAKER, "labels": ["a", "b"]}}, "there are 2 labels for the 4 classes of 'outputs'"),
        ({"names": None}, "names is None, not a list"),
        ({"names": ["a", 2, "c"]}, "names is 2"),
        ({"names": ["a", "b"]}, "'sha256' has 3 entries for 2 photos"),
        ({"names": ["a", "b", "a"]}, "the photo 'a' is there twice"),
        ({"names": ["a", "b", "broken.jpg"]}, "the photo 'broken.jpg' is there twice"),
        ({"labels": ["a"]}, "'labels' has 1 entries for 3 photos"),
        ({"skipped": [["a"]]}, "skipped has 1 entries, not 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_that_contradicts_the_numbers(tmp_path, about, why):
    path = written(tmp_path / "run.npz", about)
    damaged(path, why)


@pytest.mark.parametrize(
    ("name", "array", "why"),
    [
        ("sizes", np.ones((3, 3), int), "'sizes' is to hold the height and width of each photo, in pixels"),
        ("sizes", np.zeros((3, 2), int), "'sizes' is to hold the height and width of each photo, in pixels"),
        ("sizes", np.ones(3, int), "'sizes' is int64 (3,), not numbers on 2 axes"),
        ("sizes", np.full((3, 2), 1.5), "'sizes' is float64 and holds what is no whole number"),
        ("class_ids", np.array([0, np.nan, 1]), "'class_ids' is float64 and holds what is no whole number"),
        (
            "class_ids",
            np.full(3, 2**63, np.uint64),
            "'class_ids' is uint64 and holds what is no whole",
        ),
        (
            "class_ids",
            np.array([0, 4, 1]),
            "the photo 'below/1.jpg' has the class 4: classes are 0 to 3, -1",
        ),
        (
            "class_ids",
            np.array([0, 1, -2]),
            "the photo 'below/2.jpg' has the class -2: classes are 0 to 3",
        ),
        ("class_ids", np.array([0, 1]), "'class_ids' has 2 entries for 3 photos"),
        ("scores", np.array(["a"] * 3), "'scores' is <U1 (3,), not numbers on 1 axis"),
        ("scores", np.ones(3, bool), "'scores' is bool (3,), not numbers on 1 axis"),
        ("scores", np.array([0, 1e300, 0]), "'scores' holds NaN or infinity, for the photo 'below/1.jpg'"),
        ("outputs", np.ones((2, 4)), "'outputs' has 2 entries for 3 photos"),
        ("outputs", np.ones((3, 0)), "'outputs' is empty: its shape is (3, 0)"),
        ("maps__1", np.ones((3, 2)), "'maps/1' is float64 (3, 2), not numbers on 3 axes"),
        ("maps__1", np.ones((3, 0, 2)), "'maps/1' is empty: its shape is (3, 0, 2)"),
        (
            "maps__0",
            np.full((3, 1, 1), np.inf),
            "'maps/0' holds NaN or infinity, for the photo 'below/0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_are_wrong(tmp_path, name, array, why):
    path = written(tmp_path / "run.npz", **{name: array})
    damaged(path, why)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "File is not a zip file"),
        (b"no zip at all", "File is not a zip file"),
        (None, "Is a directory"),
    ],
    ids=["empty", "text", "folder"],
)
def test_what_is_no_recording(tmp_path, data, why):
    path = tmp_path / "run.npz"
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)
    with pytest.raises(
        BadRecording,
        match=rf"run\.npz' is no recording, or a damaged one: {why}\. `onnxcam record` makes one\.$",
    ):
        load(path)


def test_a_lone_array_and_pickled_objects(tmp_path):
    np.save(tmp_path / "run.npy", np.zeros(3))
    with pytest.raises(BadRecording, match=r"run\.npy' is no recording, or a damaged one: File is not a zip"):
        load(tmp_path / "run.npy")
    path = written(tmp_path / "run.npz", scores=np.array([{}, {}, {}], object))
    with pytest.raises(BadRecording, match=r"a damaged one: Object arrays cannot be loaded"):
        load(path)


def test_there_is_no_such_file(tmp_path):
    refused(tmp_path / "run.npz", r"^There is no recording '.*run\.npz'\.", " `onnxcam record` makes one.")


def test_an_entry_that_is_longer_than_its_shape(tmp_path):
    entries = {"about": ("|u1", (1,), [0]), **FOREIGN}
    with zipfile.ZipFile(tmp_path / "run.npz", "w") as file:
        for name, entry in entries.items():
            file.writestr(f"{name}.npy", npy(*entry) + b"\0" * (name == "scores"))
    with pytest.raises(BadRecording, match=r"a damaged one: the entry 'scores' is longer than its shape\."):
        load(tmp_path / "run.npz")


def test_a_shape_that_no_memory_holds(tmp_path):
    entries = {"about": ("|u1", (1,), [0]), **FOREIGN, "maps/0": ("<f4", (1 << 40, 1 << 10, 3), ())}
    with zipfile.ZipFile(tmp_path / "run.npz", "w") as file:
        for name, entry in entries.items():
            file.writestr(f"{name}.npy", npy(*entry))
    refused(tmp_path / "run.npz", r"is no recording, or a damaged one: ", " `onnxcam record` makes one.")


@pytest.mark.parametrize("share", range(0, 100, 4))
def test_a_file_that_is_cut_is_refused(tmp_path, share):
    path = tmp_path / "run.npz"
    made().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * share // 100])
    with pytest.raises(BadRecording, match="is no recording, or a damaged one"):
        load(path)


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_is_refused_or_unharmed(tmp_path, seed):
    """Whatever byte is changed: what is loaded is what was saved, or nothing is."""
    path = tmp_path / "run.npz"
    whole = made()
    whole.save(path)
    data, rng = path.read_bytes(), np.random.default_rng(seed)
    refused = 0
    for at in rng.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            read = load(path)
        except BadRecording:
            refused += 1
        else:
            same(whole, read)
    assert refused > 30
