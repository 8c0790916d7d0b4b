"""Train the sample network on freshly rendered surfaces and export it, with an honest card.

    python examples/train_sample.py --out DIR --minutes 30

Writes DIR/model.onnx and DIR/card.toml. Needs the extra `export` (torch). Nothing is downloaded and no weights are
taken over: the pictures come from `surfaces`, the network starts from random numbers. Series (seeds) of their own
serve for learning, choosing the threshold and the held-out figures, and those are measured on the exported file in
ONNX Runtime, with the product's own windows and verdicts.

The committed weights printed this, after about 15 minutes of computing on one core (rendering included):

    8264 windows to learn from
    held-out windows (series 3): 1291, accuracy 0.967, balanced accuracy 0.944
    truth / answer    scratch      pit    crack    stain     free   recall
    scratch               116        0        2        0       22    0.829
    pit                     0      144        0        0        3    0.980
    crack                   2        0      164        0        3    0.970
    stain                   0        0        0      125        7    0.947
    free                    2        1        0        1      699    0.994
    defects found: 549; shown undamaged, 545 of these windows are called free
    91 defective parts (whole pictures of series 3): 3 OK, 85 NG, 3 UNSURE
    209 good parts (whole pictures of series 3): 187 OK, 3 NG, 19 UNSURE

What it misses are mostly faint scratches on castings and steel; what it flags for nothing are lint and cut-off marks.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from surfaces import LABELS, OK_LABEL, render
from torch import nn

from inspect_xai.explain.verdict import judge, worst_window
from inspect_xai.maths.tiles import as_channels, cut, windows
from inspect_xai.records import InputSpec, ModelCard, VerdictCode, VerdictSpec

LEARN, CHOOSE, HELD_OUT = 1, 2, 3  # series of the renderer; make_line.py's default is 7
WINDOW_PX = 128
OPSET = 18
CLOSE, WHOLE = 12, 5  # rounds over close-ups, then over whole windows
_BATCH = 64
_SHOWS = 0.3  # share of a defect that a window must hold to show it; a mere corner of one nobody would notice
_OVERKILL = 0.02  # the threshold is the lowest that rejects no more than this share of good parts


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Pieces of pictures as the network sees them.

    Attributes:
        pixels: uint8 (N, 128, 128, 3).
        labels: int64 (N,), indices into `LABELS`.
        focus: int64 (N, 2), (row, column) of a pixel of the defect; of any pixel in windows that show none.
        sound: uint8 (N, 128, 128, 3), the same windows of the same parts without the defect.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    focus: NDArray[np.int64]
    sound: NDArray[np.uint8]


class Residual(nn.Module):
    """Two 3x3 convolutions with a way around them; (N, C, h, w) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels))
        self.end = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Add what the convolutions found to what came in."""
        return self.end(features + self.body(features))


class SampleNet(nn.Module):
    """Four stages, 64 to 8 px wide: normalized windows (N, 3, 128, 128) -> logits (N, 5)."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 48, 96)) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Sequential(*_convolution(3, widths[0], stride=2), nn.ReLU())]
        for before, after in itertools.pairwise(widths):
            stages.append(nn.Sequential(*_convolution(before, after, stride=2), nn.ReLU(), Residual(after)))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], len(LABELS))

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Give one logit per label."""
        return self.head(self.stages(window).mean(dim=(2, 3)))


def _convolution(before: int, after: int, *, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after)


def cut_windows(series: int, index: int, *, with_sound: bool = False) -> Windows:
    """Render one picture, six in ten of them defective, and cut two or three windows out of it.

    A window counts as its defect when it shows enough of it, as sound when it shows none. What lies between is left
    out: nobody could say what the right answer is.

    Args:
        series: Seed of the renderer.
        index: Number of the picture.
        with_sound: Render the undamaged part too; else `sound` repeats `pixels`.
    """
    rng = np.random.default_rng([series, index, 99])
    label = str(rng.choice(LABELS[:-1])) if rng.random() < 0.6 else OK_LABEL
    picture = render(series, index, label=label)
    sound = render(series, index, label=OK_LABEL) if with_sound and label != OK_LABEL else picture
    enough = _SHOWS * picture.mask.sum()
    wanted = {label: 2, OK_LABEL: 1 if label != OK_LABEL else 2}
    places, names, focus = [], [], []
    for _ in range(60):
        top, left = (int(rng.integers(extent - WINDOW_PX + 1)) for extent in picture.mask.shape)
        place = np.s_[top : top + WINDOW_PX, left : left + WINDOW_PX]
        shown = int(picture.mask[place].sum())
        name = OK_LABEL if shown == 0 else label if shown >= enough else ""
        if wanted.get(name, 0) > 0:
            wanted[name] -= 1
            places.append(place)
            names.append(LABELS.index(name))
            inside = np.argwhere(picture.mask[place] | (shown == 0))
            focus.append(inside[rng.integers(len(inside))])
    pixels, before = (np.array([rgb[place] for place in places]) for rgb in (picture.rgb, sound.rgb))
    return Windows(pixels, np.array(names, np.int64), np.array(focus, np.int64), before)


def render_windows(series: int, pictures: int, *, with_sound: bool = False) -> Windows:
    """Cut windows out of pictures 0 to `pictures` - 1 of a series, on all cores."""
    jobs = [(series, index, with_sound) for index in range(pictures)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        cuts = list(pool.map(_cut, jobs, chunksize=32))
    return Windows(
        np.concatenate([each.pixels for each in cuts]),
        np.concatenate([each.labels for each in cuts]),
        np.concatenate([each.focus for each in cuts]),
        np.concatenate([each.sound for each in cuts]),
    )


def _cut(job: tuple[int, int, bool]) -> Windows:
    cv2.setNumThreads(1)  # the processes share the cores already
    return cut_windows(job[0], job[1], with_sound=job[2])


def train(learn: Windows, spec: InputSpec, *, close: int, whole: int, minutes: float) -> SampleNet:
    """Train a network from random weights, on one thread so that the sums come out alike everywhere.

    It first learns from close-ups, a quarter of a window: they cost a quarter, and a pit is not lost in them.

    Args:
        learn: What to learn from.
        spec: How windows are normalized.
        close: Rounds over close-ups.
        whole: Rounds over whole windows, after that.
        minutes: A machine too slow for all rounds stops then, its learning rate run down all the same.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = SampleNet()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.02)
    labels = torch.from_numpy(learn.labels)
    rounds, batches, began = close + whole, len(labels) // _BATCH, time.monotonic()
    for number in range(rounds):
        side = WINDOW_PX // 2 if number < close else WINDOW_PX
        total = 0.0
        chosen_by_step = torch.randperm(len(labels))[: batches * _BATCH].view(batches, _BATCH)
        for step, chosen in enumerate(chosen_by_step, start=number * batches):
            done = max(step / (rounds * batches), (time.monotonic() - began) / (60 * minutes))
            if done >= 1:
                return net.eval()
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(1.0, step / 200) * 0.5 * (1 + np.cos(np.pi * done))
            loss = criterion(net(_varied(learn, chosen, spec, side_px=side)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        passed = time.monotonic() - began
        print(f"round {number + 1}/{rounds}, {side} px: loss {total / batches:.4f}, {passed:.0f} s", flush=True)
    return net.eval()


def _varied(learn: Windows, chosen: torch.Tensor, spec: InputSpec, *, side_px: int) -> torch.Tensor:
    """Cut squares that hold the focus out of windows, turn, mirror, light and normalize them: float32 (N, 3, s, s)."""
    focus = torch.from_numpy(learn.focus)[chosen]
    aside = torch.randint(side_px // 8, side_px - side_px // 8, focus.shape)
    corner = (focus - aside).clamp(0, WINDOW_PX - side_px)
    rows, columns = (corner[:, axis, None] + torch.arange(side_px) for axis in (0, 1))
    pixels = torch.from_numpy(learn.pixels)[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
    batch = torch.rot90(pixels, int(torch.randint(4, ())), (1, 2)).permute(0, 3, 1, 2)
    if torch.rand(()) < 0.5:
        batch = batch.flip(3)
    light = (1 + 0.08 * torch.randn(len(batch), 1, 1, 1)).clamp(0.8, 1.2) / spec.scale
    mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
    return torch.addcmul(-mean / std, batch.contiguous().float(), light / std)


def export(net: SampleNet, path: Path) -> None:
    """Write the network as ONNX with a free batch dimension and without any trace of the machine that made it."""
    program: Any = torch.onnx.export(
        net,
        (torch.zeros(2, 3, WINDOW_PX, WINDOW_PX),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["window"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    model = program.model_proto
    graph = model.graph
    # The exporter notes source lines, and so paths, on every node.
    for item in (model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


@dataclass(frozen=True, slots=True)
class Sample:
    """The exported network, run as its card says."""

    session: ort.InferenceSession
    spec: InputSpec

    def probabilities(self, pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """Judge windows (N, 128, 128, 3) in pixel units: float32 (N, 5)."""
        found = []
        for start in range(0, len(pixels), 32):
            batch = (pixels[start : start + 32] / np.float32(self.spec.scale) - self.spec.mean) / self.spec.std
            fed = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), dtype=np.float32)
            found.append(np.asarray(self.session.run(None, {"window": fed})[0]))
        logits = np.concatenate(found)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    def line(self, series: int, pictures: int) -> tuple[list[NDArray[np.float32]], list[str]]:
        """Judge whole pictures: probabilities (windows, 5) of each, and its true label."""
        scores, labels = [], []
        for index in range(pictures):
            picture = render(series, index)
            rgb = as_channels(picture.rgb, self.spec.channels)
            scores.append(
                self.probabilities(np.stack([cut(rgb, t, self.spec) for t in windows(rgb.shape[:2], self.spec)]))
            )
            labels.append(picture.label)
        return scores, labels


def verdicts(
    scores: Sequence[NDArray[np.float32]], labels: Sequence[str], card: ModelCard
) -> dict[str, dict[str, int]]:
    """Count verdicts by truth: {"defective" | "good": {"NG" | "UNSURE" | "OK": parts}}."""
    counts = {truth: {code.value: 0 for code in VerdictCode} for truth in ("defective", "good")}
    for each, label in zip(scores, labels, strict=True):
        verdict = judge(each[worst_window(each, card, card.verdict)], card, card.verdict)
        counts["good" if label == OK_LABEL else "defective"][verdict.code.value] += 1
    return counts


def choose_threshold(scores: Sequence[NDArray[np.float32]], labels: Sequence[str], card: ModelCard) -> ModelCard:
    """Return the card with the lowest threshold whose overkill on these parts is within `_OVERKILL`."""
    for threshold in np.arange(0.5, 0.96, 0.05):
        trial = replace(card, verdict=VerdictSpec(ng_threshold=round(float(threshold), 2), unsure_margin=0.3))
        good = verdicts(scores, labels, trial)["good"]
        if good["NG"] <= _OVERKILL * sum(good.values()):
            break
    return trial


def held_out_figures(sample: Sample, held_out: Windows) -> list[str]:
    """Measure the network on windows of parts it never saw, and whether its answer hangs on the defect.

    Returns:
        Lines to read: accuracy, balanced accuracy, confusion table, and how many defects found turn into "free" when
        the same part is shown undamaged.
    """
    answers = sample.probabilities(held_out.pixels).argmax(axis=1)
    table = np.zeros((len(LABELS), len(LABELS)), np.int64)
    np.add.at(table, (held_out.labels, answers), 1)
    recalls = table.diagonal() / table.sum(axis=1)
    free = LABELS.index(OK_LABEL)
    found = (held_out.labels != free) & (answers == held_out.labels)
    turned = int((sample.probabilities(held_out.sound[found]).argmax(axis=1) == free).sum())
    width = max(map(len, LABELS)) + 2
    return [
        f"held-out windows (series {HELD_OUT}): {len(answers)}, accuracy {table.trace() / len(answers):.3f}, "
        f"balanced accuracy {recalls.mean():.3f}",
        "truth / answer".ljust(16) + "".join(label.rjust(width) for label in (*LABELS, "recall")),
        *(
            label.ljust(16) + "".join(str(count).rjust(width) for count in row) + f"{recall:.3f}".rjust(width)
            for label, row, recall in zip(LABELS, table, recalls, strict=True)
        ),
        f"defects found: {int(found.sum())}; shown undamaged, {turned} of these windows are called free",
    ]


def card_text(card: ModelCard) -> str:
    """Write the card as people would, with what is worth knowing beside it."""
    mean, std = (json.dumps(list(numbers)) for numbers in (card.input.mean, card.input.std))
    return f'''name = "{card.name}"
version = "{card.version}"
labels = {json.dumps(card.labels)}
ok_label = "{OK_LABEL}"
description = """
{card.description}"""

[input]
height = {card.input.height}
width = {card.input.width}
channels = "rgb"
fit = "tile"             # larger pictures are cut at native scale and judged by their worst window
tile_overlap = {card.input.tile_overlap}
scale = {card.input.scale}
mean = {mean}
std = {std}

[output]
activation = "softmax"

[verdict]
# the lowest that rejected at most {_OVERKILL:.0%} of the good parts of series {CHOOSE}
ng_threshold = {card.verdict.ng_threshold}
unsure_margin = {card.verdict.unsure_margin}

[explain]
method = "grad-sise"
profile = "quick"
baseline = "mean"
blocks = "auto"
'''


def make(learn: Windows, out: Path, *, close: int, whole: int, minutes: float) -> None:
    """Train, export, choose the threshold, measure, and write model.onnx and card.toml into a folder."""
    few = learn.pixels[::8].reshape(-1, 3) / 255.0
    mean, std = (tuple(round(float(x), 3) for x in numbers) for numbers in (few.mean(axis=0), few.std(axis=0)))
    spec = InputSpec(WINDOW_PX, WINDOW_PX, mean=mean, std=std)
    export(train(learn, spec, close=close, whole=whole, minutes=minutes), out / "model.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sample = Sample(ort.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"]), spec)
    card = ModelCard("sample-surfaces", "2026.11", LABELS, spec, ok_labels=(OK_LABEL,))
    card = choose_threshold(*sample.line(CHOOSE, 300), card)
    figures = held_out_figures(sample, render_windows(HELD_OUT, 500, with_sound=True))
    for truth, counts in verdicts(*sample.line(HELD_OUT, 300), card).items():
        said = ", ".join(f"{count} {code}" for code, count in counts.items())
        figures.append(f"{sum(counts.values())} {truth} parts (whole pictures of series {HELD_OUT}): {said}")
    print("\n".join(figures))
    about = [
        "Trained by examples/train_sample.py on surfaces that examples/surfaces renders: steel, castings, tiles.",
        "It has seen rendered pictures only; real parts need a network of their own.",
        *figures,
    ]
    (out / "card.toml").write_text(card_text(replace(card, description="\n".join(about))), encoding="utf-8")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for model.onnx and card.toml")
    parser.add_argument("--minutes", type=float, default=30, help="longest training time (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=3200, help="pictures to learn from (default: %(default)s)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    learn = render_windows(LEARN, given.pictures)
    print(f"{len(learn.labels)} windows to learn from:", dict(zip(LABELS, np.bincount(learn.labels), strict=True)))
    make(learn, given.out, close=CLOSE, whole=WHOLE, minutes=given.minutes)


if __name__ == "__main__":
    main()
