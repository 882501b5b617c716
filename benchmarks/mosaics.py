"""Where every method looks, on pictures whose truth is known.

    python benchmarks/mosaics.py [--count 64] [--only NAME] [--write]

The demo's model on the demo's held-out mosaics: four tiles of four classes, each class explained in turn.
*Pointing*: how often the hottest pixel lies in the class's tile; *energy*: the share of the heat that does. A
map of noise and the area of the tile say what chance gives. *Passes*: images that one mosaic's four maps took
through the whole file, and copies that went through its tail. ``--write`` puts the table into the README;
``--gallery`` draws every method's map of one mosaic instead.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import onnxcam
from onnxcam import demo, methods
from onnxcam.demo import mosaics
from onnxcam.export import rewrite_onnx

README = Path(__file__).resolve().parents[1] / "README.md"
SIDE, COLUMNS = 128, 7  #: of the pictures, in pixels, and of their rows
OPTIONS: dict[str, dict[str, Any]] = {"rise": {"masks": 1000}}  #: where the default is for larger networks


@dataclass(frozen=True)
class Row:
    """One method's figures."""

    name: str
    kind: str
    pointing: float
    energy: float
    passes: float
    tail_passes: float
    seconds: float


def opened(folder: Path) -> Iterator[tuple[str, onnxcam.Explainer]]:
    """For each method the demo's model as it needs it: with a tail and weights, or with the map inside."""
    source = demo.model_bytes()
    rewrite_onnx(source, folder / "demo.cam.onnx", "features", {"seed": True}, tail=True)
    whole = onnxcam.Explainer(folder / "demo.cam.onnx", "cpu")
    for name in methods.names():
        if not methods.get(name).inside:
            yield name, whole
            continue
        try:
            raw = {"method": name, "size": "layer", "scaled": False}
            rewrite_onnx(source, folder / "inside.cam.onnx", "features", fuse=raw)
        except onnxcam.OnnxcamError as e:
            print(f"{name}: {e}")
            continue
        yield name, onnxcam.Explainer(folder / "inside.cam.onnx", "cpu")


def measured(name: str, explainer: onnxcam.Explainer, shown: Sequence[mosaics.Mosaic]) -> Row:
    """One method on all mosaics."""
    hits, shares, passes, tails = [], [], 0, 0
    started = time.perf_counter()
    for mosaic in shown:
        found = explainer.explain(mosaic.image, name, [list(mosaic.tiles)], **OPTIONS.get(name, {}))
        passes, tails = passes + found.passes, tails + found.tail_passes
        for heatmap, place in zip(found.heatmaps, mosaic.tiles.values(), strict=True):
            hits.append(inside(heatmap, place))
            shares.append(mosaics.share(heatmap, place))
    seconds = (time.perf_counter() - started) / len(shown)
    n = len(shown)
    kind = methods.get(name).kind
    return Row(name, kind, float(np.mean(hits)), float(np.mean(shares)), passes / n, tails / n, seconds)


def pictured(name: str, explainer: onnxcam.Explainer, photo: mosaics.Image) -> mosaics.Image:
    """A method's overlay for "cat", with its name below."""
    found = explainer.explain(photo, name, "cat", **OPTIONS.get(name, {}))
    drawn = cv2.resize(found.overlay()[0], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    framed = cv2.copyMakeBorder(drawn, 4, 22, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cv2.putText(framed, name, (6, SIDE + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (32, 32, 32), 1, cv2.LINE_AA)
    return np.asarray(framed, np.uint8)


def gallery(pictures: Sequence[mosaics.Image]) -> mosaics.Image:
    """Rows of pictures."""
    blank = np.full_like(pictures[0], 255)
    filled = [*pictures, *[blank] * (-len(pictures) % COLUMNS)]
    rows = [np.hstack(filled[i : i + COLUMNS]) for i in range(0, len(filled), COLUMNS)]
    return np.asarray(np.vstack(rows), np.uint8)


def chance(shown: Sequence[mosaics.Mosaic]) -> list[Row]:
    """What maps of noise and the tiles' areas score."""
    places = [place for mosaic in shown for place in mosaic.tiles.values()]
    noise = mosaics.noise_maps(len(places))
    hits = [inside(n, p) for n, p in zip(noise, places, strict=True)]
    shares = [mosaics.share(n, p) for n, p in zip(noise, places, strict=True)]
    area = float(np.mean([mosaics.area(p) for p in places]))
    return [
        Row("(noise)", "-", float(np.mean(hits)), float(np.mean(shares)), 0, 0, 0),
        Row("(the tile's area)", "-", area, area, 0, 0, 0),
    ]


def inside(heatmap: np.ndarray[Any, Any], place: mosaics.Rectangle) -> bool:
    """Whether the first of the hottest pixels lies in a rectangle; not if there is no heat."""
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    left, top, right, bottom = place
    return bool(heatmap.any() and left <= x < right and top <= y < bottom)


def table(rows: Sequence[Row]) -> str:
    """In Markdown, the best energy first."""
    lines = [
        "| method | needs | pointing | energy | passes | tail |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda r: -r.energy):
        name = f"`{row.name}`" if row.passes else row.name
        runs = f"{row.passes:.0f} | {row.tail_passes:.0f}" if row.passes else "- | -"
        lines.append(f"| {name} | {row.kind} | {row.pointing:.3f} | {row.energy:.3f} | {runs} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=mosaics.COUNT)
    parser.add_argument("--only", help="methods whose name contains this")
    parser.add_argument("--write", action="store_true", help="into the README")
    parser.add_argument("--gallery", type=Path, help="every method's overlay of one mosaic, as a picture")
    args = parser.parse_args()
    shown = mosaics.mosaics(mosaics.held_out(), args.count)
    rows, pictures = [], []
    (photo,) = mosaics.mosaics(mosaics.held_out(), 1, mosaics.PHOTO_SEED)
    with tempfile.TemporaryDirectory() as folder:
        for name, explainer in opened(Path(folder)):
            if args.only and args.only not in name:
                continue
            try:
                if args.gallery:
                    pictures.append(pictured(name, explainer, photo.image))
                    continue
                rows.append(measured(name, explainer, shown))
            except onnxcam.OnnxcamError as e:
                print(f"{name}: {e}")
                continue
            print(rows[-1], flush=True)
    if args.gallery:
        jpeg = [cv2.IMWRITE_JPEG_QUALITY, 88]
        cv2.imwrite(str(args.gallery), cv2.cvtColor(gallery(pictures), cv2.COLOR_RGB2BGR), jpeg)
        return
    text = table([*rows, *chance(shown)])
    print(text)
    if args.write:
        old = README.read_text()
        new = re.sub(
            r"(<!-- mosaics -->\n).*?(\n?<!-- /mosaics -->)",
            lambda m: m[1] + text + "\n" + m[2].lstrip("\n"),
            old,
            flags=re.DOTALL,
        )
        README.write_text(new)


if __name__ == "__main__":
    main()
