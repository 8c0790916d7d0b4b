"""The engine against bare ONNX Runtime: scoring, tracing, a whole explanation, memory and start, in turn in one run.

    python -m benchmarks.engine --networks lite0 resnet18 resnet50

`lite0` is the trained network beside the checkout, on a real tile with a defect; the ResNets are plain definitions with
random weights (extra `export`) on random squares. Bursts last `--burst` seconds and go round in turn, so that a busy
machine slows both sides alike; a ratio is the median over rounds of the ratios within a round.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.memory import BUCKET, peak_mb
from benchmarks.real import defective_parts, real_card, real_model, shared_folder
from inspect_xai.explain.explainer import Explainer
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import tiles
from inspect_xai.model.build.build import add_int8, build_bundle
from inspect_xai.model.build.quantize import quantize_scoring
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.model.engine import Engine
from inspect_xai.records import InputSpec, ModelCard, PictureLimits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["lite0", "resnet18", "resnet50"])
    parser.add_argument("--burst", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mu", nargs="+", type=float, default=[0.0, 0.3], help="of the whole explanations")
    parser.add_argument("--only-start", metavar="BUNDLE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_start:
        start_of_a_line(Path(options.only_start))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"onnxruntime {ort.__version__}, numpy {np.__version__}, {cores} cores, bucket {BUCKET}, 224 x 224, fp32")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.networks:
            measure(name, make_bundle(name, Path(scratch)), options)


def measure(name: str, bundle: ModelBundle, options: argparse.Namespace) -> None:
    rng = np.random.default_rng(7)
    window = defective_window(bundle) if name == "lite0" else rendered_window(bundle)
    hidden = np.zeros_like(window)
    batch = np.stack([window] * BUCKET)
    shallow, deep = bundle.blocks[0], bundle.blocks[-1]
    halves = np.arange(BUCKET) * 2 // BUCKET  # the first half of a run masks one window, the second another
    maps = {end.height: rng.random((BUCKET, end.height, end.width)).astype(np.float32) for end in (shallow, deep)}
    with Engine(bundle, device="cpu", bucket=BUCKET) as engine:
        feed = {"picture": np.ascontiguousarray(np.moveaxis(batch, -1, 1))}
        bare = engine._session("predict")
        tasks: dict[str, Callable[[], object]] = {
            "bare forwards": lambda: bare.run(["probabilities"], feed),
            **{
                f"scoring {side} px": lambda m=m: engine.score_masks(window, m, baseline=hidden)
                for side, m in maps.items()
            },
            "trace": lambda: engine.trace(window),
            "two windows in a run": lambda: engine.score_together(
                np.stack([window, window[::-1]]), maps[deep.height], baselines=np.stack([hidden] * 2), image=halves
            ),
            "two half runs": lambda: [
                engine.score_masks(each, maps[deep.height][halves == number], baseline=hidden)
                for number, each in enumerate((window, window[::-1]))
            ],
        }
        rates = in_turn(tasks, burst=options.burst, rounds=options.rounds)
    forward = BUCKET * rates["bare forwards"]
    print(f"{name:9} bare forwards        {np.median(forward):7.1f} /s  spread {spread(forward)}")
    for side in maps:
        ratio = rates[f"scoring {side} px"] / rates["bare forwards"]
        print(
            f"{name:9} scoring from {side:3d} px  {np.median(ratio):7.3f} of bare    spread {spread(ratio)}  (bar 0.95)"
        )
    gain = rates["two windows in a run"] / rates["two half runs"]
    print(f"{name:9} two windows in a run {np.median(gain):7.3f} of half runs  spread {spread(gain)}")
    cost = forward / rates["trace"]
    print(f"{name:9} trace                {np.median(cost):7.2f} forwards   spread {spread(cost)}  (bar 6)")
    for mu in options.mu:
        whole(name, bundle, window.astype(np.uint8), mu)
    in_8_bits(name, bundle, window, options)
    started = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--only-start", str(bundle.folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    print(f"{name:9} start of a line      {started.stdout.strip()}  (bar 3 s)", flush=True)


def rendered_window(bundle: ModelBundle) -> np.ndarray:
    """Random squares, float32 (H, W, 3): for networks that learned nothing."""
    spec = bundle.card.input
    squares = np.random.default_rng(7).integers(0, 256, (spec.height // 8, spec.width // 8, 3))
    return squares.repeat(8, axis=0).repeat(8, axis=1).astype(np.float32)


def defective_window(bundle: ModelBundle) -> np.ndarray:
    """Return the deciding window of the first tile of the test split that has a defect and is judged right."""
    with Explainer(bundle, device="cpu", faithfulness=False) as explainer:
        for part in defective_parts(shared_folder(), "magnetic-tile", split="test"):
            look = explainer.look(read_picture(part.path, limits=PictureLimits()).pixels)
            if look.prediction.label == part.label:
                target = bundle.card.labels.index(part.label)
                tile = look.tiles[int(np.argmax(look.scores[:, target]))]
                return tiles.cut(look.picture, tile, bundle.card.input)
    sys.exit("no defective tile of the test split is judged right")


def in_8_bits(name: str, bundle: ModelBundle, window: np.ndarray, options: argparse.Namespace) -> None:
    """Scoring in 8 bits against float scoring, per mask and per explanation; how faithful it is, this does not say."""
    hidden = np.zeros_like(window)
    picture = {"picture": nchw(window), "baseline": nchw(hidden), "image": np.zeros(1, np.int64)}
    with Engine(bundle, device="cpu", bucket=BUCKET) as engine, tempfile.TemporaryDirectory() as scratch:
        features = engine.trace(window).features.values()
        feeds = [picture | {"maps": maps[:BUCKET, None]} for maps in features]
        sizes = sorted({end.height for end in bundle.blocks})
        draft = add_int8(
            bundle, quantize_scoring(bundle, feeds), Path(scratch) / "int8", facts={"largest_px": sizes[-1]}
        )
        maps = list(features)[-1][:BUCKET]
        with Engine(draft, device="cpu", bucket=BUCKET) as whole_numbers:
            engines = {"float": engine, "int8": whole_numbers}
            rates = in_turn(
                {key: lambda e=each: e.score_masks(window, maps, baseline=hidden) for key, each in engines.items()},
                burst=options.burst,
                rounds=options.rounds,
            )
            ratio = rates["int8"] / rates["float"]
            print(f"{name:9} int8 per mask         {np.median(ratio):7.2f} of float   spread {spread(ratio)}")
            for size in (sizes[0], sizes[-1]):
                whole_numbers.int8_px = size
                took: dict[str, list[float]] = {key: [] for key in engines}
                for _ in range(3):
                    for key, each in engines.items():
                        explainer = Explainer(each, faithfulness=False)
                        look = explainer.look(window.astype(np.uint8))
                        took[key].append(timed(partial(explainer.explain, look, target=look.prediction.label)))
                gain = np.array(took["float"]) / np.array(took["int8"])
                which = "all blocks" if size == sizes[-1] else "deepest"
                print(
                    f"{name:9} int8 exact, {which:10} {np.median(gain):7.2f} x as fast   spread {spread(gain)}",
                    flush=True,
                )


def nchw(window: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(window, -1, 0)[None], np.float32)


def whole(name: str, bundle: ModelBundle, picture: np.ndarray, mu: float) -> None:
    """Return a whole exact explanation against its passes at the bare rate plus one trace, in turn."""
    with Explainer(bundle, device="cpu", mu=mu, bucket=BUCKET, faithfulness=False) as explainer:
        look = explainer.look(picture)
        engine = explainer.engine
        feed = {"picture": np.zeros((BUCKET, 3, *picture.shape[:2]), np.float32)}
        target = look.prediction.label
        ratios, shares = [], []
        for _ in range(3):
            forwards = timed(lambda: [engine._session("predict").run(["probabilities"], feed) for _ in range(8)])
            bare = forwards / (8 * BUCKET)
            trace = timed(lambda: engine.trace(picture.astype(np.float32)))
            began = time.perf_counter()
            explanation = explainer.explain(look, target=target)
            took = time.perf_counter() - began
            ratios.append(took / (explanation.forward_passes * bare + trace))
            shares.append(trace / took)
    print(
        f"{name:9} exact, mu {mu:.1f}        {np.median(ratios):7.3f} of passes at bare rate + trace  {spread(ratios)}"
        "  (bar 1.10)"
    )
    print(
        f"{name:9} its trace            {100 * np.median(shares):7.1f} % of {explanation.forward_passes} passes"
        "  (bar 2 %)"
    )


def start_of_a_line(folder: Path) -> None:
    began = time.perf_counter()
    with Engine(load_bundle(folder), device="cpu") as engine:
        engine.warm_up()
        took = time.perf_counter() - began
    print(f"{took:7.2f} s, peak {peak_mb():.0f} MB")


def in_turn(tasks: dict[str, Callable[[], object]], *, burst: float, rounds: int) -> dict[str, np.ndarray]:
    """Return calls per second of each task, one number a round; the first two rounds are discarded."""
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 2):
        for name, task in tasks.items():
            began, calls = time.perf_counter(), 0
            while time.perf_counter() - began < burst:
                task()
                calls += 1
            rates[name].append(calls / (time.perf_counter() - began))
    return {name: np.array(values[2:]) for name, values in rates.items()}


def timed(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def spread(values) -> str:  # type: ignore[no-untyped-def]
    return f"{min(values):.3g} to {max(values):.3g}"


def make_bundle(name: str, scratch: Path) -> ModelBundle:
    if name == "lite0":
        shared = shared_folder()
        return build_bundle(real_model(shared, "magnetic-tile"), real_card(shared, "magnetic-tile"), scratch / name)
    path = scratch / f"{name}.onnx"
    export_resnet(path, bottleneck=name == "resnet50")
    card = ModelCard(name, "1", tuple(f"class {k}" for k in range(6)), InputSpec(224, 224, mean=(0.45,), std=(0.22,)))
    return build_bundle(path, card, scratch / name)


def export_resnet(path: Path, *, bottleneck: bool) -> None:
    """Write ResNet-18 or ResNet-50 (He et al. 2016, table 1) with random weights."""
    import torch
    from torch import nn

    def norm(before: int, after: int, kernel: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after))

    class Block(nn.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            after = width * (4 if bottleneck else 1)
            if bottleneck:
                inner = [norm(before, width, 1, 1), nn.ReLU(), norm(width, width, 3, stride), nn.ReLU()]
                self.body = nn.Sequential(*inner, norm(width, after, 1, 1))
            else:
                self.body = nn.Sequential(norm(before, width, 3, stride), nn.ReLU(), norm(width, after, 3, 1))
            self.cut = nn.Identity() if (before, stride) == (after, 1) else norm(before, after, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.cut(x))

    torch.manual_seed(3)
    layers: list[nn.Module] = [norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, depth in enumerate((3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)):
        for index in range(depth):
            layers.append(Block(before, 64 << stage, 2 if stage and not index else 1))
            before = (64 << stage) * (4 if bottleneck else 1)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 6)).eval()
    example = torch.zeros(1, 3, 224, 224)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=False,
            opset_version=18,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )


if __name__ == "__main__":
    main()
