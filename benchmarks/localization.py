"""Do the maps lie on the defects, and does the network agree? Methods against each other on the real pictures.

    python -m benchmarks.localization --split test --methods sise,grad-cam,layer-cam
    python -m benchmarks.localization --split test,val --methods sise --pictures 0
    python -m benchmarks.localization --level window --methods sise,rise --max-passes 500

Only pictures that the network judges right. `--level picture` explains every window that the verdict rests on and
measures on the stitched map; `--level window` cuts out the one window in which the class scores highest and takes it
for the picture, so that no background far from any evidence helps (AUPRO saturates on large pictures). What hides
pixels hides them in that window in either case. Beside every table stand a random map and a Gaussian in the center.
Numbers are means with 95 % bootstrap intervals over pictures; `!` marks a method that is worse than the table's best
beyond chance (the interval of the difference, picture by picture, leaves out 0). `--resample parts` draws
physical parts with all their pictures instead: those of one part under several lamps are alike. With `--cache` the
network's answers to masked windows are kept, so that a killed run goes on where it stood and a table can be printed
again in minutes.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.real import RealPart, defective_parts, networks, real_card, real_model, shared_folder
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.explain.window_scores import WindowScores
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import metrics, sise, tiles
from inspect_xai.maths.sise import order_of
from inspect_xai.maths.tiles import in_window
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.engine import Engine, MaskScores, Trace
from inspect_xai.records import Baseline, CellGrid, Explanation, Method, ModelCard, PictureLimits, Tile

CHANCE = (Method.RANDOM, Method.CENTER)
FILLS = (Baseline.MEAN, Baseline.BLUR)  # of insertion and deletion
COLUMNS = {
    "aupro": "AUPRO@0.3",
    "aupro_window": "AUPRO win",
    "aupro_values": "AUPRO map",
    "ebpg": "EBPG",
    "bbox": "Bbox",
    "pointing": "pointing",
    **{f"drop_{fill}": f"Drop {fill}" for fill in Baseline},
    **{f"deletion_{fill}": f"del. {fill}" for fill in FILLS},
    **{f"insertion_{fill}": f"ins. {fill}" for fill in FILLS},
    "passes": "passes",
    "seconds": "s",
}
LOWER_IS_BETTER = (*(f"drop_{fill}" for fill in Baseline), *(f"deletion_{fill}" for fill in FILLS))
STEPS = 20  # of the curves
COSTS = ("passes", "seconds")


class RememberingEngine(Engine):
    """An engine that keeps on disk what the network said of masked windows."""

    folder: Path | None = None
    traced: dict[tuple[bytes, int, int], Trace] | None = None

    def trace(
        self,
        window: NDArray[np.generic],
        *,
        target: int = -1,
        against: int = -1,
        gradients: bool = False,  # noqa: ARG002
    ) -> Trace:
        """As an engine does, once for all methods that ask it of one picture: times are then shared, too."""
        self.traced = {} if self.traced is None else self.traced
        key = np.ascontiguousarray(window).tobytes(), target, against
        if key not in self.traced:
            self.traced[key] = super().trace(window, target=target, against=against, gradients=True)
        return self.traced[key]

    @property
    def windows_at_once(self) -> int:
        """One: scores are kept window by window."""
        return 1

    def score_masks(
        self,
        window: NDArray[np.generic],
        maps: NDArray[np.float32],
        *,
        baseline: NDArray[np.float32],
        grid: CellGrid | None = None,
    ) -> MaskScores:
        """As an engine does, once."""
        if self.folder is None:
            return super().score_masks(window, maps, baseline=baseline, grid=grid)
        arrays = (np.asarray(window, np.float32), maps, baseline)
        key = hashlib.blake2b(self.bundle.fingerprint.encode(), digest_size=16)
        for array in arrays:
            key.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        path = self.folder / f"{key.hexdigest()}.npz"
        if path.exists():
            with np.load(path) as kept:
                return MaskScores(kept["probabilities"], kept["minimum"], kept["span"])
        said = super().score_masks(window, maps, baseline=baseline, grid=grid)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(file, probabilities=said.probabilities, minimum=said.minimum, span=said.span)
        partial.replace(path)
        return said


@dataclass(frozen=True)
class Row:
    """One method on one picture."""

    label: str
    part: str
    method: str
    numbers: dict[str, float]


def main() -> None:
    options = parsed()
    shared = shared_folder()
    print(
        f"onnxruntime {onnxruntime.__version__}, split {options.split}, level {options.level}, profile "
        f"{options.profile}, max passes {options.max_passes or 'none'}, mu 0.3, masks hide behind the mean color"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in networks(options.networks):
            bundle = build_bundle(real_model(shared, name), real_card(shared, name), Path(scratch) / name)
            engine = RememberingEngine(bundle, device="cpu", threads=options.threads)
            if options.cache:
                engine.folder = Path(options.cache)
                engine.folder.mkdir(parents=True, exist_ok=True)
            with (
                engine,
                Explainer(
                    engine, profile=options.profile, max_passes=options.max_passes, faithfulness=False
                ) as explainer,
            ):
                rows = measured_rows(explainer, chosen_parts(shared, name, options), options)
            for label in [*dict.fromkeys(row.label for row in rows), "all"]:
                print_table(name, label, [row for row in rows if label in (row.label, "all")], options.resample)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods",
        default="sise",
        help="comma-separated, a profile of its own behind a colon (grad-sise:quick); random and center come too",
    )
    parser.add_argument("--networks", default="", help="comma-separated; default: all there are (benchmarks.real)")
    parser.add_argument("--pictures", type=int, default=0, help="at most so many of each set, drawn by --seed; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", help="train, val or test, or several with commas")
    parser.add_argument("--level", default="picture", choices=["picture", "window"])
    parser.add_argument("--profile", default="exact", choices=["exact", "fast", "quick"])
    parser.add_argument("--max-passes", type=int, default=None, help="for methods that mask, on one picture")
    parser.add_argument("--resample", default="pictures", choices=["pictures", "parts"], help="for the intervals")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cache", default=None, help="folder for the network's answers to masked windows")
    return parser.parse_args()


def chosen_parts(shared: Path, name: str, options: argparse.Namespace) -> list[RealPart]:
    parts = [part for split in options.split.split(",") for part in defective_parts(shared, name, split=split)]
    order = np.random.default_rng(options.seed).permutation(len(parts))
    return [parts[index] for index in order]


def measured_rows(explainer: Explainer, parts: list[RealPart], options: argparse.Namespace) -> list[Row]:
    """Measure picture after picture, until as many as were asked for were judged right."""
    rows: list[Row] = []
    pictures = 0
    for part in parts:
        found = list(measured(explainer, part, options))
        rows += found
        pictures += bool(found)
        if found:
            print(f"\r{pictures} pictures", end="", file=sys.stderr, flush=True)
        if pictures == options.pictures:
            break
    return rows


def measured(explainer: Explainer, part: RealPart, options: argparse.Namespace) -> Iterator[Row]:
    """Explain one picture by every method and measure each."""
    picture, truth = read_picture(part.path, limits=PictureLimits()).pixels, part.mask
    look = explainer.look(picture)
    if look.prediction.label != part.label:
        return
    target = explainer.card.labels.index(part.label)
    tile = look.tiles[int(np.argmax(look.scores[:, target]))]
    if options.level == "window":
        seen = tiles.cut(look.picture, tile, explainer.card.input).astype(np.uint8)
        truth = in_window(truth, tile, explainer.card.input, outside=0).astype(np.bool_)
        look = explainer.look(seen)
        tile = look.tiles[0]
        if not truth.any() or look.prediction.label != part.label:
            return
    if isinstance(explainer.engine, RememberingEngine):
        explainer.engine.traced = None
    for named in [*options.methods.split(","), *CHANCE]:
        settings = settings_of(explainer.card, named, profile=options.profile, max_passes=options.max_passes)
        began = time.perf_counter()
        found = explainer.explain(look, target=part.label, settings=settings)
        seconds = time.perf_counter() - began
        numbers = numbers_of(explainer.engine, look, tile, found, truth=truth, target=target)
        yield Row(part.label, part.part, named, numbers | {"passes": float(found.forward_passes), "seconds": seconds})


def settings_of(
    card: ModelCard, named: str, *, profile: str | None = None, max_passes: int | None = None
) -> ExplainSettings:
    """Return how a method explains that is named with or without a profile of its own: `grad-sise:quick`."""
    method, _, own = named.partition(":")
    return ExplainSettings.of_card(
        card, method=method, profile=own or profile, max_passes=max_passes, faithfulness=False
    )


def numbers_of(
    engine: Engine, look: WindowScores, tile: Tile, found: Explanation, *, truth: NDArray[np.bool_], target: int
) -> dict[str, float]:
    spec = engine.card.input
    window = tiles.cut(look.picture, tile, spec)
    rank = order_of(in_window(found.rank, tile, spec, outside=found.rank.size))
    truth_seen = in_window(truth, tile, spec, outside=0).astype(np.bool_)
    hidden = {fill: sise.baseline_picture(window, fill, mean=engine.mean_px) for fill in Baseline}
    shown = [window, *(metrics.keep_top(window, rank, fill=other) for other in hidden.values())]
    full, *kept = engine.predict(np.stack(shown))[:, target]
    by_values = order_of(-in_window(found.fused, tile, spec, outside=0))
    drops = {f"drop_{fill}": float(metrics.drop_percent(full, one)) for fill, one in zip(Baseline, kept, strict=True)}
    curves = {}
    for fill in FILLS:
        for name, before, after in (("deletion", window, hidden[fill]), ("insertion", hidden[fill], window)):
            shown_so_far = np.stack(list(metrics.exchanged(before, after, rank, steps=STEPS)))
            curves[f"{name}_{fill}"] = metrics.area_under(engine.predict(shown_so_far)[:, target] / full)
    return (
        drops
        | curves
        | {
            "aupro": metrics.aupro(found.rank, truth),
            "aupro_window": metrics.aupro(rank, truth_seen) if truth_seen.any() else float("nan"),
            "aupro_values": metrics.aupro(by_values, truth_seen) if truth_seen.any() else float("nan"),
            "ebpg": metrics.ebpg(found.fused, truth),
            "bbox": metrics.bbox(found.rank, truth),
            "pointing": float(metrics.pointing_game(found.rank, truth)),
        }
    )


def print_table(name: str, label: str, rows: list[Row], resample: str) -> None:
    methods = list(dict.fromkeys(row.method for row in rows))
    parts = np.array([row.part for row in rows if row.method == methods[0]]) if methods else np.array([])
    values = {
        method: {key: np.array([row.numbers[key] for row in rows if row.method == method]) for key in COLUMNS}
        for method in methods
    }
    print(f"\n{name}, {label}, {len(parts)} pictures of {len(set(parts))} parts, intervals over {resample}")
    groups = parts if resample == "parts" else np.arange(len(parts))
    print(f"{'':16}" + "".join(f"{head:>22}" for head in COLUMNS.values()))
    for method in methods:
        cells = [cell(values, method, key, groups) for key in COLUMNS]
        print(f"{method:16}" + "".join(f"{text:>22}" for text in cells), flush=True)


def cell(values: dict[str, dict[str, NDArray[np.float64]]], method: str, key: str, groups: NDArray[np.generic]) -> str:
    """Write mean, interval and, where a method trails the best one beyond chance, a mark."""
    numbers = values[method][key]
    if key in COSTS:
        return f"{numbers.mean():.0f}" if key == "passes" else f"{np.median(numbers):.2f}"
    sign = -1.0 if key in LOWER_IS_BETTER else 1.0
    usable = ~np.isnan(numbers)
    own = averaged(numbers[usable], groups[usable])
    best = max((one for one in values if one not in CHANCE), key=lambda one: sign * values[one][key][usable].mean())
    behind = averaged(sign * (values[best][key] - numbers)[usable], groups[usable]).low > 0
    digits = 1 if key.startswith("drop") else 3
    return f"{own.mean:.{digits}f} [{own.low:.{digits}f}, {own.high:.{digits}f}]{'!' if behind else ' '}"


def averaged(numbers: NDArray[np.float64], groups: NDArray[np.generic], *, resamples: int = 2000) -> metrics.Average:
    """Average over pictures, with the interval that drawing whole groups of them, with replacement, gives."""
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, numbers), np.bincount(group)
    drawn = np.random.default_rng(0).integers(0, len(sums), (resamples, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return metrics.Average(float(numbers.mean()), float(low), float(high), numbers.size)


if __name__ == "__main__":
    main()
