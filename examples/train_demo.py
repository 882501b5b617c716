"""Train the model that ``onnxcam demo`` carries, and write its files into ``onnxcam/demo``.

    pip install -e ".[cpu,torch]" "scikit-image==0.26.*"
    python examples/train_demo.py            # about five minutes

Nothing is downloaded: the photographs are those inside scikit-image's wheel. The seed is fixed and one
thread is used, so that the same versions on the same kind of processor give the same weights; another
torch gives other weights of the same quality (the figures printed at the end say so).

What is trained on: random mosaics cut from the *training* rectangles of ``onnxcam.demo.mosaics`` with
CutMix's target (Yun et al., ICCV 2019), each class's share of the area; that a class has a place is
never told. Colours are jittered and often removed, so that texture decides. What is measured: patches
and mosaics from the *held-out* rectangles, as shipped, JPEG losses included.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import onnx
import skimage
import torch
from numpy.typing import NDArray
from torch import nn

from onnxcam.contract import Preprocess
from onnxcam.demo import mosaics as demo
from onnxcam.export import rewrite_onnx

INPUT = 128  # side of the model's input
MEAN, STD = 0.5, 0.25
FOLDER = Path(demo.__file__).parent


class Net(nn.Module):
    """Six convolutions, global average pooling, one linear layer; the last grid is 16 x 16.

    A cell of the last grid sees 47 of the 128 pixels, less than a tile of a mosaic. The image is mirrored
    at its border once, by just as much as the convolutions then consume: with zeros around every layer
    the maps light up along the border, where cells see less of their neighbours. Of the 39 pixels the
    odd one lies on the left and on top, so that cell i is centred on pixel 8 i + 3, half a pixel off.
    """

    def __init__(self, classes: int):
        super().__init__()

        def block(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(i, o, kernel, stride, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(o), nn.ReLU()]

        self.border = nn.ReflectionPad2d((20, 19, 20, 19))
        self.features = nn.Sequential(
            *block(3, 16, stride=2),
            *block(16, 32, stride=2),
            *block(32, 48, stride=2),
            *block(48, 96),
            *block(96, 96, groups=96),
            *block(96, 96, kernel=1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(96, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.features(self.border(image))).flatten(1))


def photo(texture: demo.Texture) -> demo.Image:
    """A photograph of scikit-image's wheel, RGB, shrunk as its texture says."""
    path = Path(skimage.__file__).parent / "data" / texture.photo
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise SystemExit(f"{path} is not there; install scikit-image==0.26.*")
    h, w = (n // texture.shrink for n in image.shape[:2])
    return np.asarray(cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), np.uint8)


def training_regions() -> list[list[demo.Image]]:
    """Per class the parts of its photograph that training may see; nothing else reaches it."""
    return [[demo.cut(photo(t), r) for r in t.train] for t in demo.TEXTURES]


def write_held_out(folder: Path, quality: int = 88) -> None:
    """Ship the held-out region of each photograph."""
    for t in demo.TEXTURES:
        region = cv2.cvtColor(demo.cut(photo(t), t.held_out), cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(folder / f"{t.label}.jpg"), region, [cv2.IMWRITE_JPEG_QUALITY, quality]):
            raise SystemExit(f"Cannot write to {folder}")


def colours(rng: np.random.Generator, tile: demo.Image) -> NDArray[np.float32]:
    """Grey half of the time; then random tint, brightness and contrast, and noise."""
    x = tile.astype(np.float32) / 255
    if rng.random() < 0.5:
        x[:] = x.mean(-1, keepdims=True)
    middle = x.mean()
    x = (x - middle) * np.float32(rng.uniform(0.6, 1.4)) + middle * np.float32(rng.uniform(0.6, 1.5))
    x *= rng.uniform(0.75, 1.25, 3).astype(np.float32)
    x += rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(0, 0.02))
    return np.clip(x, 0, 1)


def piece(
    rng: np.random.Generator, regions: list[demo.Image], side: float, size: tuple[int, int]
) -> demo.Image:
    """A random, perhaps mirrored or turned, piece of one of the regions, in ``size`` (h, w)."""
    areas = np.array([r.shape[0] * r.shape[1] for r in regions], float)
    region = regions[int(rng.choice(len(regions), p=areas / areas.sum()))]
    h, w = size if rng.random() < 0.8 else size[::-1]
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    zoom = side * np.exp(rng.uniform(-0.45, 0.35)) / (INPUT / 2)
    zoom = min(zoom, region.shape[0] / (h * stretch), region.shape[1] * stretch / w)
    ch, cw = max(int(h * stretch * zoom), 1), max(int(w / stretch * zoom), 1)
    top, left = rng.integers(region.shape[0] - ch + 1), rng.integers(region.shape[1] - cw + 1)
    how = cv2.INTER_AREA if ch > h else cv2.INTER_LINEAR
    cut = cv2.resize(region[top : top + ch, left : left + cw], (w, h), interpolation=how)
    if (h, w) != size:
        cut = cut.transpose(1, 0, 2)
    return np.asarray(cut[:, ::-1] if rng.random() < 0.5 else cut, np.uint8)


def sample(
    rng: np.random.Generator, regions: list[list[demo.Image]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One training image (INPUT, INPUT, 3) in [0, 1] and each class's share of its area."""
    image = np.empty((INPUT, INPUT, 3), np.float32)
    target = np.zeros(len(regions), np.float32)
    x, y = (int(v) for v in rng.integers(INPUT // 4, INPUT * 3 // 4, size=2))
    if rng.random() < 0.25:
        x = y = INPUT  # one class fills the image
    one = int(rng.integers(len(regions))) if rng.random() < 0.15 else -1
    for top, bottom in ((0, y), (y, INPUT)):
        for left, right in ((0, x), (x, INPUT)):
            if bottom > top and right > left:
                c = one if one >= 0 else int(rng.integers(len(regions)))
                side = demo.TEXTURES[c].tile
                cell = piece(rng, regions[c], side, (bottom - top, right - left))
                image[top:bottom, left:right] = colours(rng, cell)
                target[c] += (bottom - top) * (right - left) / INPUT**2
    return image, target


def tensor(images: NDArray[np.float32]) -> torch.Tensor:
    """(N, H, W, 3) in [0, 1] to the model's input."""
    return torch.from_numpy((images.transpose(0, 3, 1, 2) - MEAN) / STD).float().contiguous()


def train(steps: int, batch: int, seed: int) -> Net:
    """Adam with one cycle of the learning rate, cross-entropy against the area shares."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    regions = training_regions()
    net = Net(len(regions)).train()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    start, running = time.time(), 0.0
    for step in range(1, steps + 1):
        images, targets = zip(*(sample(rng, regions) for _ in range(batch)), strict=True)
        loss = nn.functional.cross_entropy(net(tensor(np.stack(images))), torch.from_numpy(np.stack(targets)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        running += (loss.item() - running) * max(0.02, 1 / step)
        if step % 100 == 0 or step == steps:
            print(f"step {step:5d}/{steps}  loss {running:.3f}  {time.time() - start:.0f} s", flush=True)
    return net.eval()


def patches(
    regions: Mapping[str, demo.Image], grey: bool, each: int = 60, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out images of one class each, at the mosaics' scale, as model input with their classes."""
    rng = np.random.default_rng(seed)
    images, classes = [], []
    for c, (t, region) in enumerate(zip(demo.TEXTURES, regions.values(), strict=True)):
        for _ in range(each):
            side = min(t.tile, *region.shape[:2])
            top, left = rng.integers(region.shape[0] - side + 1), rng.integers(region.shape[1] - side + 1)
            crop = region[top : top + side, left : left + side]
            crop = cv2.resize(crop, (INPUT // 2, INPUT // 2), interpolation=cv2.INTER_AREA)
            images.append(np.tile(crop, (2, 2, 1)).astype(np.float32) / 255)
            classes.append(c)
    stack = np.stack(images)
    if grey:
        stack[:] = stack.mean(-1, keepdims=True)
    return tensor(stack), torch.tensor(classes)


def grad_cam_shares(net: Net, regions: Mapping[str, demo.Image]) -> dict[str, float]:
    """Grad-CAM by torch's autograd on the held-out mosaics: the mean share of heat in place, by class."""
    shares: dict[str, list[float]] = {label: [] for label in demo.LABELS}
    for m in demo.mosaics(regions):
        small = cv2.resize(m.image, (INPUT, INPUT), interpolation=cv2.INTER_AREA)
        a = net.features(net.border(tensor(small[None].astype(np.float32) / 255))).detach().requires_grad_()
        scores = net.head(net.pool(a).flatten(1))[0]
        for label, place in m.tiles.items():
            (g,) = torch.autograd.grad(scores[demo.LABELS.index(label)], a, retain_graph=True)
            cam = (g.mean((2, 3), keepdim=True) * a).sum(1).relu()[0].detach().numpy()
            cam = cv2.resize(cam, (demo.SIZE, demo.SIZE), interpolation=cv2.INTER_LINEAR)
            shares[label].append(demo.share(cam - cam.min(), place))
    return {label: float(np.mean(values)) for label, values in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the files (the package's)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    write_held_out(args.out)
    held_out = demo.held_out(args.out)
    net = train(args.steps, args.batch, args.seed)
    print(f"{sum(p.numel() for p in net.parameters())} parameters")
    for grey in (False, True):
        images, classes = patches(held_out, grey)
        with torch.inference_mode():
            right = net(images).argmax(1) == classes
        worst = min((right[classes == c].float().mean().item(), n) for c, n in enumerate(demo.LABELS))
        kind = "grey" if grey else "in colour"
        print(f"held-out patches {kind}: {right.float().mean():.1%} right; worst: {worst[1]} {worst[0]:.0%}")
    shares = grad_cam_shares(net, held_out)
    print("share of Grad-CAM's heat in place (uniform 0.25), by torch.autograd:")
    print("  " + "  ".join(f"{label} {value:.2f}" for label, value in shares.items()))
    print(f"  mean {np.mean(list(shares.values())):.3f}")
    export(net, args.out / "demo.cam.onnx")


def export(net: Net, path: Path) -> None:
    """Write the explainable file: torch's ONNX export, then the rewrite that any ONNX file gets."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "demo.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about its own code
            torch.onnx.export(
                net,
                (torch.zeros(2, 3, INPUT, INPUT),),
                str(plain),
                dynamo=True,
                external_data=False,
                opset_version=18,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        model = onnx.load(plain)
        graph = model.graph
        for noted in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            # Of torch's notes only the module paths are for users; the others hold folders of this computer.
            kept = [m for m in noted.metadata_props if m.key == "pkg.torch.onnx.name_scopes"]
            del noted.metadata_props[:]
            noted.metadata_props.extend(kept)
        onnx.save(model, plain)
        record = Preprocess(size=(INPUT, INPUT), mean=(MEAN,), std=(STD,))
        print(rewrite_onnx(plain, path, layers="features", preprocess=record, labels=demo.LABELS))


if __name__ == "__main__":
    main()
