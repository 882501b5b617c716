"""The page of ``examples/web`` in Chromium: its maps against Python's, and what it tells of bad input."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from chromium import WEB, Browser, missing
from nets import model, weights
from numpy.typing import NDArray
from PIL import Image

import onnxcam
from onnxcam import images, postprocess, preprocess
from onnxcam.contract import CLASS_INDEX, KEY
from onnxcam.demo import mosaics
from onnxcam.export import rewrite_onnx
from onnxcam.overlay import overlay

MISSING = missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

PLAIN = Path(onnxcam.demo.__file__).parent / "demo.cam.onnx"  # explainable, without a map
FUSED = WEB / "demo" / "demo.cam.onnx"
CLOSE = 1e-3  # of a map's peak
LABELS = ("ash", "birch", "cedar", "date palm", "elm", "fir", "ginkgo")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


@pytest.fixture(scope="module")
def demo_photo() -> NDArray[np.uint8]:
    return mosaics.mosaics(mosaics.held_out(), 1, mosaics.PHOTO_SEED)[0].image


def write_photo(path: Path, size: tuple[int, int] = (500, 700), channels: int = 3) -> NDArray[np.uint8]:
    """A smooth random picture, RGB or RGBA, as a file that loses nothing."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (9, 11, channels), np.uint8)
    photo = np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
    stored = photo[..., [2, 1, 0, 3][:channels]]
    path.write_bytes(cv2.imencode(".png", stored)[1].tobytes())
    return photo


def photo_net(kind: str = "FLOAT", layout: str = "NHWC", end: str = "", dead: int | None = None) -> bytes:
    """A classifier of seven kinds of trees; the image comes as ``layout`` and as numbers of ``kind``.

    ``dead``: a class that nothing speaks for.
    """
    values = weights(w=(6, 3, 3, 3), wb=(6,), v=(7, 6), b=(7,))
    if dead is not None:
        values["v"][dead] = 0
    before = "t = Transpose<perm=[0,3,1,2]>(x)" if layout == "NHWC" else "t = Identity(x)"
    shape = "N,48,64,3" if layout == "NHWC" else "N,3,48,64"
    made = model(
        f"{before} z = Cast<to=1>(t) s = Mul(z, k) c = Conv<pads=[1,1,1,1], strides=[2,2]>(s, w, wb) "
        "r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) g = Gemm<transB=1>(f, v, b) "
        + (end or "y = Softmax<axis=1>(g)"),
        inputs=f"{kind.lower()}[{shape}] x",
        outputs="float[N,7] y",
        initializers={
            **values,
            "k": np.array(1.0 if kind == "FLOAT" else 0.01, np.float32),
        },
    )
    return made.SerializeToString()


def python_map(path: Path, photo: NDArray[np.uint8], output: str, index: int) -> NDArray[np.float32]:
    """The file's own map in ONNX Runtime, on Python's preprocessing."""
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    record = onnxcam.Explainer(path.read_bytes()).record
    assert record.preprocess is not None
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
    dtype = kinds[session.get_inputs()[0].type]
    x, _ = preprocess.apply(photo, record.preprocess, dtype)
    feeds = {session.get_inputs()[0].name: x[None], CLASS_INDEX: np.array([index])}
    return np.asarray(session.run([output], feeds)[0][0], np.float32)


def shown_map(found: dict[str, Any], key: str = "map") -> NDArray[np.float32]:
    return np.reshape(np.array(found[key], np.float32), found["shape"])


def assert_close(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= CLOSE * np.abs(b).max()
    assert np.abs(b).max() > 0


def with_record(path: Path, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file whose record is changed; what ``change`` returns takes its place, if it is text."""
    made = onnx.load(path)
    entry = next(e for e in made.metadata_props if e.key == KEY)
    record = json.loads(entry.value)
    entry.value = change(record) or json.dumps(record)
    return made.SerializeToString()


# -- what it shows -----------------------------------------------------------------------------------


def test_two_classes_of_the_demo_equal_pythons_and_differ(
    browser: Browser, demo_photo: NDArray[np.uint8]
) -> None:
    explainer = onnxcam.Explainer(PLAIN.read_bytes())  # makes its maps on the host
    assert explainer.preprocess is not None
    x = preprocess.apply(demo_photo, explainer.preprocess)[0][None]
    first = browser.open()
    logits = explainer.explain_tensor(x).outputs["logits"][0]
    best = np.argsort(-logits)
    assert [one["index"] for one in first["ranked"]] == best.tolist()
    np.testing.assert_allclose([one["score"] for one in first["ranked"]], logits[best], atol=1e-3)
    assert first["index"] == best[0]
    assert [one["text"][0] for one in first["classes"]] == [mosaics.LABELS[i] for i in best[:5]]
    maps = []
    for index in map(int, best[1:3]):
        found = browser.click(f'#classes [data-index="{index}"]')
        assert found["index"] == index
        assert [one["index"] for one in found["classes"] if one["pressed"]] == [index]
        assert mosaics.LABELS[index] in found["caption"]
        expected = explainer.explain_tensor(x, "gradcam", target=index).heatmaps[0]
        assert_close(shown_map(found), expected)
        assert_close(shown_map(found), python_map(FUSED, demo_photo, "cam.heatmap.gradcam", index))
        maps.append(shown_map(found))
    assert np.abs(maps[0] - maps[1]).max() > 0.5
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] < 0.5


def test_each_map_of_a_file_can_be_chosen(browser: Browser, demo_photo: NDArray[np.uint8]) -> None:
    browser.open()
    seen = []
    for i, name in enumerate(("gradcam", "layercam", "hirescam")):
        browser("select", "#method", str(i))
        found = browser.settled()
        assert name in found["caption"]
        expected = python_map(FUSED, demo_photo, f"cam.heatmap.{name}", found["index"])
        assert_close(shown_map(found), expected)
        seen.append(expected)
    assert np.abs(seen[0] - seen[1]).max() > 2 * CLOSE


def test_a_class_beyond_the_buttons_is_chosen_from_the_list(browser: Browser) -> None:
    last = browser.open()["ranked"][-1]["index"]
    browser("select", "#other", str(last))
    found = browser.settled()
    assert found["index"] == last
    assert found["classes"][-1] == {**found["classes"][-1], "index": last, "pressed": True}
    found = browser.click("#follow")
    assert found["index"] == found["ranked"][0]["index"]


def test_a_file_of_ones_own_in_another_layout_and_fit(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "trees.cam.onnx"
    fields = {
        "size": (48, 64),
        "fit": "letterbox",
        "channels": "BGR",
        "layout": "NHWC",
        "scale": 1.0,
        "mean": (103.9, 116.8, 123.7),
        "std": (58.4, 57.1, 57.4),
        "interpolation": "cubic",
    }
    rewrite_onnx(photo_net(), path, preprocess=fields, labels=LABELS, fuse="layercam")
    photo = write_photo(tmp_path / "tall.png", (700, 500))
    browser.open()
    browser.drop(path)
    found = browser.drop(tmp_path / "tall.png")
    assert found["model"] == "trees.cam.onnx"
    assert found["classes"][0]["text"][1].endswith(" %")  # after a softmax, the scores are probabilities
    for index in (2, 5):
        browser("select", "#other", str(index))
        found = browser.settled()
        assert LABELS[index] in found["caption"]
        assert_close(shown_map(found), python_map(path, photo, "cam.heatmap.layercam", index))
    assert_close(shown_map(found), python_map(path, photo, "cam.heatmap.layercam", 5))
    how = onnxcam.Explainer(path).preprocess
    assert how is not None
    _, geometry = preprocess.apply(photo, how)
    ys, xs = preprocess.window(geometry)
    heat = preprocess.to_photo(python_map(path, photo, "cam.heatmap.layercam", 5), geometry)
    heat[ys, xs] = postprocess.scale(heat[ys, xs][None])[0]  # as Explainer does: by what the model saw
    expected = overlay(photo, heat, seen=preprocess.seen(geometry))
    data = np.frombuffer(base64.b64decode(browser("picture")), np.uint8)
    picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
    off = np.abs(picture.astype(int) - expected)
    assert off.max() <= 5  # an entry of the colour map more or less, blended by the browser's arithmetic
    assert off.mean() < 1


def test_what_a_crop_hides_is_dark_and_without_heat(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "crop.cam.onnx"
    fields = {"size": (48, 64), "fit": "crop", "layout": "NHWC"}
    rewrite_onnx(photo_net(), path, preprocess=fields, fuse="gradcam")
    photo = write_photo(tmp_path / "wide.png", (300, 800))
    browser.open()
    browser.drop(path)
    browser.drop(tmp_path / "wide.png")
    browser("fill", "#blend", "100")
    data = np.frombuffer(base64.b64decode(browser("picture")), np.uint8)
    picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
    dark = 0.45 * cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    hidden = np.r_[0:200, 600:800]
    assert np.abs(picture[:, hidden] - dark[:, hidden]).max() <= 2
    assert np.ptp(picture[:, 200:600].astype(int), axis=2).min() > 50  # jet's colours, nowhere grey


@pytest.mark.parametrize("kind", ["uint8", "float16"])
def test_inputs_of_other_types(browser: Browser, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.cam.onnx"
    fields = {"size": (48, 64), "scale": 1.0, "fit": "crop"}
    rewrite_onnx(photo_net(kind, "NCHW"), path, preprocess=fields, labels=LABELS, fuse="gradcam")
    photo = write_photo(tmp_path / "photo.png")
    browser.open()
    browser.drop(path)
    found = browser.drop(tmp_path / "photo.png")
    assert_close(shown_map(found), python_map(path, photo, "cam.heatmap.gradcam", found["index"]))


def test_a_raw_map_on_the_layers_grid_is_scaled_by_the_page(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "raw.cam.onnx"
    spec = {"method": "gradcam", "size": "layer", "scaled": False}
    rewrite_onnx(photo_net(), path, preprocess={"size": (48, 64), "layout": "NHWC"}, fuse=spec)
    photo = write_photo(tmp_path / "photo.png")
    browser.open()
    browser.drop(path)
    found = browser.drop(tmp_path / "photo.png")
    raw = python_map(path, photo, "cam.heatmap.gradcam", found["index"])
    assert raw.shape == (24, 32)
    assert_close(shown_map(found), raw)
    assert_close(shown_map(found, "heat"), postprocess.scale(np.maximum(raw, 0)[None])[0])
    assert found["classes"][0]["text"][0].startswith("class ")


def test_a_class_that_nothing_speaks_for(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "dead.cam.onnx"
    made = photo_net(dead=4, end="y = Identity(g)")
    rewrite_onnx(made, path, preprocess={"size": (48, 64), "layout": "NHWC"}, labels=LABELS, fuse="gradcam")
    browser.open()
    browser.drop(path)
    browser("select", "#other", "4")
    found = browser.settled()
    assert not np.any(found["map"])
    assert found["caption"].endswith("by gradcam. Nothing speaks for it: the map is zero.")


def test_a_detection_is_framed(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "found.cam.onnx"
    # YOLOv8's head: per cell four numbers of a box and the classes' probabilities
    made = model(
        "c = Conv<pads=[1,1,1,1], strides=[8,8]>(x, w, wb) r = Relu(c) d = Conv(r, v, b) s = Sigmoid(d) "
        "q = Reshape(s, shape) y = Mul(q, k)",
        inputs="float[N,3,64,64] x",
        outputs="float[N,7,64] y",
        initializers={
            **weights(w=(6, 3, 3, 3), wb=(6,), v=(7, 6, 1, 1), b=(7,)),
            "shape": np.array([0, 7, 64]),
            "k": np.array([30, 30, 40, 40, 1, 1, 1], np.float32)[:, None],
        },
    ).SerializeToString()
    rewrite_onnx(
        made,
        path,
        layers="r",
        score={"task": "detection", "head": "yolov8"},
        preprocess={"size": (64, 64)},
        labels=LABELS[:3],
        fuse="gradcam",
    )
    photo = write_photo(tmp_path / "photo.png", (640, 640))
    browser.open()
    browser.drop(path)
    found = browser.drop(tmp_path / "photo.png")
    result = onnxcam.Explainer(path).explain(photo, "gradcam")
    assert result.boxes is not None
    assert found["index"] == result.class_ids[0]
    assert abs(found["score"] - result.scores[0]) < 1e-3
    assert_close(shown_map(found), python_map(path, photo, "cam.heatmap.gradcam", -1))
    x1, y1, x2, y2 = np.rint(result.boxes[0]).astype(int)
    assert 0 < x1 < x2 - 20 < 620
    browser("fill", "#blend", "0")
    data = np.frombuffer(base64.b64decode(browser("picture")), np.uint8)
    picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
    middle = (y1 + y2) // 2
    for x in (x1, x2):
        assert picture[middle, x - 3 : x + 3].min(axis=1).max() > 200  # white
        assert picture[middle, x - 5 : x + 5].max(axis=1).min() < 60  # in black


def test_an_embedding_has_no_classes(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "faces.cam.onnx"
    made = photo_net(end="y = Identity(g)")
    fields = {"size": (48, 64), "layout": "NHWC"}
    rewrite_onnx(made, path, score={"task": "embedding"}, preprocess=fields, fuse="gradcam")
    photo = write_photo(tmp_path / "photo.png")
    browser.open()
    browser.drop(path)
    found = browser.drop(tmp_path / "photo.png")
    x = preprocess.apply(photo, onnxcam.Explainer(path).preprocess)[0]  # type: ignore[arg-type]
    output = ort.InferenceSession(path.read_bytes()).run(["cam.heatmap.gradcam"], {"x": x[None]})[0][0]
    assert_close(shown_map(found), output)
    assert found["classes"] == []
    assert found["caption"].startswith("what makes the embedding")


def test_a_segmentation_ranks_its_classes_by_their_pixels(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "land.cam.onnx"
    made = model(
        "c = Conv<pads=[1,1,1,1]>(x, w, wb) r = Relu(c) y = Conv(r, v)",
        inputs="float[N,3,32,32] x",
        outputs="float[N,4,32,32] y",
        initializers=weights(w=(6, 3, 3, 3), wb=(6,), v=(4, 6, 1, 1)),
    ).SerializeToString()
    rewrite_onnx(made, path, layers="r", preprocess={"size": (32, 32)}, fuse="gradcam")
    photo = write_photo(tmp_path / "photo.png")
    browser.open()
    browser.drop(path)
    found = browser.drop(tmp_path / "photo.png")
    x = preprocess.apply(photo, onnxcam.Explainer(path).preprocess)[0]  # type: ignore[arg-type]
    logits = ort.InferenceSession(path.read_bytes()).run(["y"], {"x": x[None]})[0][0]
    shares = np.bincount(logits.argmax(0).ravel(), minlength=4) / 1024
    ranked = np.sort(shares[shares > 0])[::-1]
    np.testing.assert_allclose([one["score"] for one in found["ranked"]], ranked, atol=2e-3)
    assert f"share of the pixels {100 * ranked[0]:.0f} %" in found["caption"]
    assert found["index"] == shares.argmax()
    assert_close(shown_map(found), python_map(path, photo, "cam.heatmap.gradcam", found["index"]))


def test_weights_beside_the_file_are_dropped_with_it(browser: Browser, tmp_path: Path) -> None:
    whole = tmp_path / "whole.cam.onnx"
    rewrite_onnx(photo_net(), whole, preprocess={"size": (48, 64), "layout": "NHWC"}, fuse="gradcam")
    path = tmp_path / "split.cam.onnx"
    options = {"save_as_external_data": True, "location": "split.data", "size_threshold": 100}
    onnx.save_model(onnx.load(whole), path, **options)
    browser.open()
    assert browser.drop(path)["problem"] == (
        "split.cam.onnx keeps its weights in a file beside it. Drop the two together."
    )
    found = browser.drop(path, tmp_path / "split.data")
    assert found["problem"] is None
    assert found["model"] == "split.cam.onnx"


def test_transparent_pixels_lie_on_white(browser: Browser, tmp_path: Path) -> None:
    write_photo(tmp_path / "clear.png", channels=4)
    browser.open()
    found = browser.drop(tmp_path / "clear.png")
    photo = images.load(tmp_path / "clear.png")
    expected = python_map(FUSED, photo, "cam.heatmap.gradcam", found["index"])
    # the browser blends in its own arithmetic: a level more or less
    assert np.abs(shown_map(found) - expected).max() < 0.02


def test_a_photo_is_turned_upright(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    write_photo(tmp_path / "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.open(tmp_path / "photo.png").save(path, quality=95, exif=exif)
    browser.open()
    found = browser.drop(path)
    photo = images.load(path)
    assert photo.shape == (700, 500, 3)
    assert browser("evaluate", "[explained.photo.height, explained.photo.width]") == [700, 500]
    expected = python_map(FUSED, photo, "cam.heatmap.gradcam", found["index"])
    assert np.abs(shown_map(found) - expected).max() < 0.02  # two JPEG decoders


def test_nothing_is_asked_of_elsewhere(browser: Browser) -> None:
    browser.open()
    browser("select", "#colormap", "viridis")
    browser("fill", "#blend", "80")
    assert browser("evaluate", "getComputedStyle(document.getElementById('heat')).opacity") == "0.8"
    assert browser("seen") == {"elsewhere": [], "errors": []}
    assert browser("evaluate", "crossOriginIsolated") is True


def test_the_server_gives_nothing_outside_its_folder(browser: Browser) -> None:
    browser.open()
    for path in ("/..%2f..%2fpyproject.toml", "/%2e%2e/%2e%2e/pyproject.toml", "/src", "/%"):
        assert browser("evaluate", f"fetch('{path}').then((r) => r.status)") == 404


# -- the camera --------------------------------------------------------------------------------------


def test_the_camera_is_explained_frame_by_frame(browser: Browser, tmp_path: Path) -> None:
    assert browser.open(camera=True)["runs"] == 1
    browser("click", "#camera")
    browser("runs", 4)
    assert browser("evaluate", "document.getElementById('camera').textContent") == "Stop the camera"
    assert browser("evaluate", "document.getElementById('problem').hidden") is True
    (tmp_path / "notes.txt").write_text("no model")
    browser("drop", [str(tmp_path / "notes.txt")])  # the camera goes on, and what was told stays
    runs = browser("evaluate", "runs")
    browser("runs", runs + 3)
    assert "notes.txt" in browser("evaluate", "document.getElementById('problem').textContent")
    assert browser("evaluate", "document.getElementById('problem').hidden") is False
    browser("click", "#camera")
    stopped = browser.settled()
    assert stopped["problem"] is None
    assert browser("evaluate", "document.getElementById('video').srcObject") is None
    size = browser("evaluate", "[explained.photo.width, explained.photo.height]")
    assert size == [640, 480]


def test_a_refused_camera(browser: Browser) -> None:
    browser.open()
    browser("click", "#camera")
    browser(
        "text",
        "#problem",
        "The camera was refused. Allow it for this page in the browser's settings, or drop a photo.",
    )


CAMERAS = {
    "NotFoundError": "There is no camera. Connect one, or drop a photo.",
    "NotReadableError": "The camera is in use elsewhere. Close the other program, or drop a photo.",
    "OddError": "The camera cannot be opened: so it is. Drop a photo instead.",
}


@pytest.mark.parametrize("name", CAMERAS)
def test_a_camera_that_fails(browser: Browser, name: str) -> None:
    browser.open()
    browser(
        "evaluate",
        "navigator.mediaDevices.getUserMedia = async () => "
        f"{{ throw new DOMException('so it is', '{name}') }}",
    )
    browser("click", "#camera")
    browser("text", "#problem", CAMERAS[name])
    assert browser.settled()["problem"] == CAMERAS[name]


def test_a_camera_without_a_picture(browser: Browser) -> None:
    browser.open(camera=True)
    browser("evaluate", "HTMLVideoElement.prototype.play = async () => { throw new Error('no frames') }")
    browser("click", "#camera")
    browser("text", "#problem", "The camera shows nothing: no frames. Drop a photo instead.")


def test_a_page_that_is_not_secure(browser: Browser) -> None:
    browser.open()
    browser("evaluate", "Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    browser("click", "#camera")
    browser(
        "text",
        "#problem",
        "The browser gives the camera to secure pages alone. Open this one by https:// or on http://localhost.",
    )


# -- bad input ---------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "text": (
        "notes.txt",
        lambda: b"What I did on my holidays, and what next.",
        "notes.txt is not an ONNX file, or only a part of one. Choose a whole one; its name ends in "
        ".cam.onnx.",
    ),
    "empty": (
        "empty.onnx",
        lambda: b"",
        "empty.onnx is not an ONNX file, or only a part of one. Choose a whole one; its name ends in "
        ".cam.onnx.",
    ),
    "cut short": (
        "half.cam.onnx",
        lambda: FUSED.read_bytes()[:200_000],
        "half.cam.onnx is not an ONNX file, or only a part of one. Choose a whole one; its name ends in "
        ".cam.onnx.",
    ),
    "not explainable": (
        "trees.onnx",
        lambda: photo_net(),
        "trees.onnx is an ONNX model, but not an explainable one. Make one of it with onnxcam rewrite "
        "trees.onnx -o trees.cam.onnx --fuse gradcam --preprocess imagenet and drop that.",
    ),
    "no map": (
        "my plain.cam.onnx",
        lambda: PLAIN.read_bytes(),
        "my plain.cam.onnx is explainable but computes no map itself. Rewrite it with onnxcam rewrite "
        '"my plain.cam.onnx" -o fused.cam.onnx --fuse gradcam and drop that.',
    ),
    "newer schema": (
        "new.cam.onnx",
        lambda: with_record(FUSED, lambda record: record.update(schema=7)),
        "The onnxcam record of new.cam.onnx has schema 7, but this page reads up to 1. Take the page of a "
        "newer onnxcam, or rewrite the source model with this one.",
    ),
    "no schema": (
        "old.cam.onnx",
        lambda: with_record(FUSED, lambda record: record.pop("schema") and None),
        "The onnxcam record of old.cam.onnx is damaged: it has no schema number. Rewrite the source model.",
    ),
    "record cut": (
        "torn.cam.onnx",
        lambda: with_record(FUSED, lambda record: json.dumps(record)[:-9]),
        "The onnxcam record of torn.cam.onnx is damaged: it is not JSON. Rewrite the source model.",
    ),
    "no score": (
        "mute.cam.onnx",
        lambda: with_record(FUSED, lambda record: record.pop("score") and None),
        "The onnxcam record of mute.cam.onnx is damaged: it has no score. Rewrite the source model.",
    ),
    "maps": (
        "maps.cam.onnx",
        lambda: with_record(FUSED, lambda record: record.update(fused=[1])),
        "The onnxcam record of maps.cam.onnx is damaged: its fused maps are not a list of outputs. Rewrite "
        "the source model.",
    ),
    "unknown fit": (
        "fit.cam.onnx",
        lambda: with_record(FUSED, lambda record: record["preprocess"].update(fit="squeeze")),
        'The onnxcam record of fit.cam.onnx is damaged: preprocess.fit is "squeeze". Rewrite the '
        "source model.",
    ),
    "a word for a size": (
        "size.cam.onnx",
        lambda: with_record(FUSED, lambda record: record["preprocess"].update(size=["a", "b"])),
        'The onnxcam record of size.cam.onnx is damaged: preprocess.size is ["a","b"]. Rewrite the '
        "source model.",
    ),
    "another size": (
        "wide.cam.onnx",
        lambda: with_record(FUSED, lambda record: record["preprocess"].update(size=[128, 96])),
        "onnxruntime-web stopped while running wide.cam.onnx: ",
    ),
    "a tail": (
        "part.tail.onnx",
        lambda: with_record(FUSED, lambda record: record.update(tail_of="whole.cam.onnx")),
        "part.tail.onnx is what follows one layer of whole.cam.onnx, not a whole model. Drop whole.cam.onnx "
        "itself.",
    ),
    "no preprocessing": (
        "bare.cam.onnx",
        lambda: with_record(FUSED, lambda record: record.update(preprocess=None)),
        "bare.cam.onnx does not say how a photo becomes its input. Rewrite it with onnxcam rewrite "
        "bare.cam.onnx -o photos.cam.onnx --fuse gradcam --preprocess imagenet, or with the preset that it "
        "was trained with.",
    ),
    "no photo": (
        "broken.png",
        lambda: b"\x89PNG\r\n\x1a\n and then nothing",
        "broken.png cannot be decoded as a photo. Choose a JPEG, PNG, WebP or AVIF file.",
    ),
}


@pytest.fixture(scope="class")
def opened(browser: Browser) -> Browser:
    browser.open()
    return browser


class TestRefusals:
    """On one page, one after the other: it goes on after each."""

    @pytest.mark.parametrize("case", REFUSED)
    def test_is_told_and_the_page_goes_on(self, opened: Browser, tmp_path: Path, case: str) -> None:
        name, make, message = REFUSED[case]
        (tmp_path / name).write_bytes(make())
        found = opened.drop(tmp_path / name)
        assert found["problem"].startswith(message)
        assert found["problem"] == message or message.endswith(": ")  # the runtime's own words
        if case == "another size":  # found out after it was opened
            found = opened.drop(FUSED)
            assert found["problem"] is None
            return
        assert found["model"] == "demo.cam.onnx"
        assert found["status"] == "The picture is the last one that worked."
        other = next(one["index"] for one in found["classes"] if not one["pressed"])
        after = opened.click(f'#classes [data-index="{other}"]')
        assert after["problem"] is None
        assert (after["index"], after["runs"]) == (other, found["runs"] + 1)


def test_a_model_with_a_second_input(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "two.cam.onnx"
    made = onnx.load_from_string(photo_net(end="o = Add(g, e) y = Softmax<axis=1>(o)"))
    made.graph.input.append(onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, [1, 7]))
    fields = {"size": (48, 64), "layout": "NHWC", "input": "x"}
    rewrite_onnx(made.SerializeToString(), path, preprocess=fields, fuse="gradcam")
    browser.open()
    assert browser.drop(path)["problem"] == (
        'two.cam.onnx takes more than a photo ("e"), which this page has not got. Make these inputs '
        "constants "
        "of the model before it is rewritten."
    )


def test_a_model_of_whole_numbers_of_64_bits(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "long.cam.onnx"
    rewrite_onnx(photo_net("INT64"), path, preprocess={"size": (48, 64), "layout": "NHWC"}, fuse="gradcam")
    browser.open()
    assert browser.drop(path)["problem"] == (
        "long.cam.onnx takes int64 values, which this browser has no array for. Rewrite the model in "
        "float32, or use a newer browser."
    )


TOO_LARGE = {
    "File.prototype.arrayBuffer = async () => { throw new Error() }": (
        FUSED,
        "demo.cam.onnx is too large for this browser, or can no longer be read. Choose it again.",
    ),
    "OffscreenCanvas.prototype.getContext = () => null": (
        FUSED.with_name("photo.png"),
        "A photo of 256 × 256 pixels is too large for this browser. Choose a smaller one.",
    ),
    "ImageData = () => null": (
        FUSED,
        "Something unexpected happened: ImageData is not a constructor. Reload the page.",
    ),
}


@pytest.mark.parametrize("broken", TOO_LARGE)
def test_a_browser_at_its_limits(browser: Browser, broken: str) -> None:
    path, message = TOO_LARGE[broken]
    browser.open()
    browser("evaluate", broken)
    assert browser.drop(path)["problem"] == message


def test_a_model_that_the_runtime_cannot_run(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "odd.cam.onnx"
    made = onnx.load(FUSED)
    made.graph.node[0].op_type = "Nonsense"
    path.write_bytes(made.SerializeToString())
    browser.open()
    problem = browser.drop(path)["problem"]
    assert problem.startswith("onnxruntime-web cannot run odd.cam.onnx: ")
    assert "Nonsense" in problem
    assert problem.endswith("Check it with onnxcam doctor odd.cam.onnx.")


def test_a_page_without_its_packages(browser: Browser) -> None:
    browser("open", {"without": "onnxruntime-web"})
    assert browser.settled()["problem"] == (
        "onnxruntime-web is not there: run npm ci in examples/web and reload this page."
    )


def test_a_page_without_its_demo_takes_files_all_the_same(browser: Browser, tmp_path: Path) -> None:
    browser("open", {"without": "demo/"})
    assert browser.settled()["problem"] == (
        "demo/photo.png is not there. Drop a photo and a .cam.onnx of your own."
    )
    write_photo(tmp_path / "photo.png")
    browser.choose("#photo-file", [tmp_path / "photo.png"])
    found = browser.choose("#model-file", [FUSED])
    assert found["runs"] == 1
    assert found["problem"] is None


# -- for everyone ------------------------------------------------------------------------------------

NAMELESS = """[...document.querySelectorAll("button, input, select, canvas")].filter(
  (e) => !(e.getAttribute("aria-label") || e.labels?.[0]?.textContent.trim() || e.textContent.trim())
).map((e) => e.id)"""


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_fits_the_screen_and_names_its_controls(browser: Browser, tmp_path: Path, width: int) -> None:
    browser.open(width=width, dark=width == 390)
    assert browser("evaluate", NAMELESS) == []
    assert browser("evaluate", "document.documentElement.scrollWidth") <= width
    path = tmp_path / f"a_file_with_a_name_as_long_as_{'a_very_' * 20}long_name.cam.onnx"
    labels = [f"{label}, also called {'a very ' * 20}{label}" for label in LABELS]
    fields = {"size": (48, 64), "layout": "NHWC"}
    rewrite_onnx(photo_net(), path, preprocess=fields, labels=labels, fuse=["gradcam", "layercam"])
    assert browser.drop(path)["problem"] is None
    assert browser("evaluate", "document.documentElement.scrollWidth") <= width


def test_a_class_is_chosen_by_keyboard_and_keeps_the_focus(browser: Browser) -> None:
    index = browser.open()["classes"][1]["index"]
    browser("evaluate", "document.querySelector('#classes button').focus()")
    browser("press", "Tab")
    browser("press", "Enter")
    assert browser.settled()["index"] == index
    assert browser("evaluate", "document.activeElement.dataset.index") == str(index)
