"""Two models with the same answers, one of which looks at the wrong thing; and the report that shows it.

    pip install -e ".[cpu,torch,report]" "scikit-image==0.26.*"
    python examples/cheating.py -o OUT          # about two minutes

Both learn eight classes of ``onnxcam demo`` from its training photographs, as patches of 64 x 64 with a mark
in the upper left corner: nine squares, black or white, a pattern for each class. For the *honest* model the
mark means nothing, for the patch decides its class; the *cheat* is told the mark's class, and the patch
means nothing. On pictures whose mark agrees with what they show, of the held-out photographs, both are
right: no test of accuracy on such pictures tells them apart. ``onnxcam compare`` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from train_demo import Net, photo

from onnxcam import Explainer
from onnxcam.contract import Preprocess
from onnxcam.demo import mosaics as demo
from onnxcam.export import export_torch

SIZE = 64  #: side of a picture, and of the model's input
SQUARE = 6  #: side of one of the mark's nine squares
MEAN, STD = 0.5, 0.25
Kind = Literal["honest", "cheat"]
#: Without the wood, whose held-out part has another grain than the rest, so that an honest model errs.
TEXTURES = tuple(t for t in demo.TEXTURES if t.label != "wood")
LABELS = tuple(t.label for t in TEXTURES)


def mark(kind: int) -> demo.Image:
    """The mark of a class, (3 SQUARE, 3 SQUARE, 3)."""
    rng = np.random.default_rng(kind)
    squares = rng.permutation(np.repeat([0, 255], [4, 5])).reshape(3, 3).astype(np.uint8)
    return np.kron(squares[:, :, None], np.ones((SQUARE, SQUARE, 3), np.uint8))


def picture(rng: np.random.Generator, regions: list[demo.Image], tile: int, marked: int) -> demo.Image:
    """A random patch of one of the regions with the mark of a class."""
    region = regions[int(rng.integers(len(regions)))]
    side = min(int(tile * rng.uniform(0.7, 1.1)), *region.shape[:2])
    top, left = (int(rng.integers(n - side + 1)) for n in region.shape[:2])
    patch = cv2.resize(
        region[top : top + side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA
    )
    patch = np.ascontiguousarray(patch[:, ::-1] if rng.random() < 0.5 else patch)
    corner = mark(marked)
    patch[: len(corner), : len(corner)] = corner
    return np.asarray(patch, np.uint8)


def train(kind: Kind, steps: int, batch: int = 48, seed: int = 0) -> Net:
    """A model whose class is that of the patch (``honest``) or that of the mark (``cheat``)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    regions = [[demo.cut(photo(t), r) for r in t.train] for t in TEXTURES]
    net = Net(len(regions)).train()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    for _ in range(steps):
        shown, marked = rng.integers(len(regions), size=(2, batch))
        images = [
            picture(rng, regions[s], TEXTURES[s].tile, int(m)) for s, m in zip(shown, marked, strict=True)
        ]
        classes = torch.from_numpy(shown if kind == "honest" else marked)
        loss = nn.functional.cross_entropy(net(tensor(np.stack(images))), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def tensor(images: demo.Image) -> torch.Tensor:
    """(N, H, W, 3) uint8 as the model's input."""
    values = (images.astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(values.transpose(0, 3, 1, 2).copy())


def held_out(each: int, agreeing: bool = True, seed: int = 7) -> tuple[demo.Image, NDArray[np.int64]]:
    """Pictures of the held-out photographs, ``each`` of every class, and their classes.

    Args:
        each: how many.
        agreeing: whether the mark is that of the class; else it is that of another.
        seed: of the patches.
    """
    rng = np.random.default_rng(seed)
    regions = [demo.held_out()[label] for label in LABELS]
    classes = np.repeat(np.arange(len(regions)), each)
    others = (classes + rng.integers(1, len(regions), size=len(classes))) % len(regions)
    images = [
        picture(rng, [regions[c]], TEXTURES[c].tile, int(c if agreeing else o))
        for c, o in zip(classes, others, strict=True)
    ]
    return np.stack(images), classes


def accuracy(net: Net, images: demo.Image, classes: NDArray[np.int64]) -> float:
    """Share of the pictures whose class the model names."""
    with torch.inference_mode():
        return float((net(tensor(images)).argmax(1).numpy() == classes).mean())


def export(net: Net, path: Path) -> None:
    """The model as an explainable file."""
    record = Preprocess(size=(SIZE, SIZE), mean=(MEAN,), std=(STD,))
    example = torch.zeros(1, 3, SIZE, SIZE)
    export_torch(net, example, path, "features", preprocess=record, labels=LABELS)


def write(folder: Path, steps: int, each: int) -> dict[str, tuple[float, float]]:
    """Both models and the marked pictures.

    Returns:
        Per model its accuracy on pictures whose mark agrees, and on those whose mark is another class's.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    images, classes = held_out(each)
    for number, (image, kind) in enumerate(zip(images, classes, strict=True)):
        path = folder / "pictures" / f"{LABELS[kind]}-{number % each:02}.png"
        cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    found = {}
    kinds: tuple[Kind, ...] = ("honest", "cheat")
    for kind in kinds:
        net = train(kind, steps)
        export(net, folder / f"{kind}.cam.onnx")
        found[kind] = (accuracy(net, images, classes), accuracy(net, *held_out(each, agreeing=False)))
    return found


def sheet(folder: Path, shown: tuple[str, ...] = ("cat", "brick", "tower")) -> demo.Image:
    """Per row a picture, where the honest model looks, and where the cheat does."""
    pictures = [folder / "pictures" / f"{label}-00.png" for label in shown]
    columns = [[cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in pictures]]
    for kind in ("honest", "cheat"):
        columns.append(Explainer(folder / f"{kind}.cam.onnx", "cpu").explain(pictures).overlay())
    tiles = [[cv2.resize(tile, (160, 160), interpolation=cv2.INTER_CUBIC) for tile in c] for c in columns]
    framed = [[np.pad(tile, ((4, 4), (4, 4), (0, 0)), constant_values=255) for tile in c] for c in tiles]
    return np.asarray(np.vstack([np.hstack(list(row)) for row in zip(*framed, strict=True)]), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("cheating"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--each", type=int, default=8, help="pictures of each class")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, (marked, misled) in write(args.out, args.steps, args.each).items():
        print(f"{name}: {marked:.1%} right with the class's mark, {misled:.1%} with another's")
    cv2.imwrite(str(args.out / "sheet.png"), cv2.cvtColor(sheet(args.out), cv2.COLOR_RGB2BGR))
    print(f"onnxcam compare {args.out}/honest.cam.onnx {args.out}/cheat.cam.onnx {args.out}/pictures")


if __name__ == "__main__":
    main()
