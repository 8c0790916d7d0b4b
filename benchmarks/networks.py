"""Train two more networks for benchmarks, so that nothing is chosen for two networks of one architecture.

    python -m benchmarks.networks --out DIR          (about ten minutes on two cores)

Writes DIR/<name>.onnx and DIR/<name>.json, read by `benchmarks.real` where INSPECT_XAI_NETWORKS names DIR:

| name | network | learns from |
| --- | --- | --- |
| ball-screw-residual | four stages of residual blocks, 128 px | windows of the real set's train positions |
| sample-plain | VGG-like: pairs of 3x3 convolutions, pooling; 128 px | rendered surfaces (examples), series 1 |

From random weights, one thread, seeds fixed. Needs the extra `export` (torch).
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.real import ROOT, shared_folder

sys.path.insert(0, str(ROOT / "examples"))
from surfaces import LABELS
from train_sample import SampleNet, export, render_windows

SIDE_PX = 128
MEAN, STD = 127.0, 40.0
_BATCH = 32
Windows = tuple[NDArray[np.uint8], NDArray[np.int64]]


class PlainNet(nn.Module):
    """VGG-like: two 3x3 convolutions and a pooling, four times; normalized windows (N, 3, 128, 128) -> logits."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (12, 24, 48, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            for channels in (before, after):
                layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Give one logit per label."""
        return self.head(self.features(window).mean(dim=(2, 3)))


class ResidualNet(SampleNet):
    """The sample network's stages with a head for `classes` labels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(self.head.in_features, classes)


def ball_screw_windows(shared: Path, *, per_picture: int, seed: int) -> Windows:
    """Cut windows (N, 128, 128, 3) with at least half of a pit, and windows without any, out of the train pictures."""
    rng, folder = np.random.default_rng(seed), shared / "data" / "ball-screw"
    pixels, labels = [], []
    with (folder / "train.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            picture = cv2.cvtColor(np.asarray(cv2.imread(str(folder / row["image"]))), cv2.COLOR_BGR2RGB)
            mask = cv2.imread(str(folder / row["mask"]), cv2.IMREAD_GRAYSCALE) if row["mask"] else None
            truth = np.zeros(picture.shape[:2], bool) if mask is None else mask > 127
            pits = np.argwhere(truth)
            wanted = {1: per_picture if len(pits) else 0, 0: per_picture}
            for _ in range(40 * per_picture):
                if not any(wanted.values()):
                    break
                middle = pits[rng.integers(len(pits))] if wanted[1] else rng.integers(0, truth.shape)
                corner = np.clip(
                    middle - rng.integers(SIDE_PX // 8, SIDE_PX * 7 // 8, 2), 0, np.array(truth.shape) - SIDE_PX
                )
                place = np.s_[corner[0] : corner[0] + SIDE_PX, corner[1] : corner[1] + SIDE_PX]
                shown = int(truth[place].sum())
                label = 1 if shown >= 120 else 0 if shown == 0 else -1
                if wanted.get(label, 0):
                    wanted[label] -= 1
                    pixels.append(picture[place])
                    labels.append(label)
    return np.stack(pixels), np.array(labels, np.int64)


def learn(net: nn.Module, windows: Windows, *, rounds: int) -> nn.Module:
    """Train from random weights; windows are mirrored, turned and lit at random."""
    torch.set_num_threads(1)
    pixels, labels = (torch.from_numpy(array) for array in windows)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.02)
    steps, began = rounds * (len(labels) // _BATCH), time.monotonic()
    for step in range(steps):
        if step % (len(labels) // _BATCH) == 0:
            order = torch.randperm(len(labels))
        chosen = order[step % (len(labels) // _BATCH) * _BATCH :][:_BATCH]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))
        batch = torch.rot90(pixels[chosen], int(torch.randint(4, ())), (1, 2)).permute(0, 3, 1, 2).float()
        batch = batch.flip(3) if torch.rand(()) < 0.5 else batch
        lit = batch * (1 + 0.08 * torch.randn(len(batch), 1, 1, 1)).clamp(0.8, 1.2)
        loss = criterion(net((lit - MEAN) / STD), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}/{steps}: loss {float(loss.detach()):.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return net.eval()


def write(net: nn.Module, path: Path, labels: Sequence[str]) -> None:
    """Export a network with the description that `benchmarks.real.real_card` reads."""
    export(net, path)  # type: ignore[arg-type]
    feed = {"mean_255": [MEAN] * 3, "std_255": [STD] * 3}
    described = {"labels": list(labels), "input": {"shape": [1, 3, SIDE_PX, SIDE_PX]}, "preprocessing": feed}
    path.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    pits = ball_screw_windows(shared_folder(), per_picture=16, seed=0)
    print(f"ball-screw-residual: {len(pits[1])} windows, {int(pits[1].sum())} with a pit")
    write(
        learn(ResidualNet(2), pits, rounds=options.rounds),
        options.out / "ball-screw-residual.onnx",
        ("clean", "pitting"),
    )
    rendered = render_windows(1, 1200)
    print(f"sample-plain: {len(rendered.labels)} windows")
    net = learn(PlainNet(len(LABELS)), (rendered.pixels, rendered.labels), rounds=options.rounds)
    write(net, options.out / "sample-plain.onnx", LABELS)


if __name__ == "__main__":
    main()
