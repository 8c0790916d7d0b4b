"""How near do `fast` and `quick` come to the map of mu = 0, at what cost, and how near does that map come to itself?

    python -m benchmarks.profiles --split test --pictures 44 --store scores
    python -m benchmarks.profiles --split val --pictures 24 --store scores --faithful --no-noise

Pictures are defective ones that the network judges right, in the one window in which their class scores highest. Every
mask of such a window is scored exactly, once, and again with one gray level of noise on it: that is the noise floor,
below which no approximation can be told from the method's own restlessness. With `--store` these scores are kept and a
killed run goes on where it stood. The profiles, and the rules that leave masks out (mu, Ada-SISE), are then replayed on
the exact scores: the same code chooses the masks and predicts the others' scores as in the product.

Correlation and SSIM are those of the windows' fused maps, each divided by its largest value. `--faithful` asks the
network too: deletion and insertion AUC (50 steps, the card's baseline), Drop (15 %), EBPG and AUPRO on the mask of the
defect, and by how much each differs from `exact`, picture by picture, with the standard error of that difference.
"""

import argparse
import json
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from benchmarks.real import SETS, defective_parts, real_card, real_model, shared_folder
from inspect_xai.explain.batching import ScoreCoroutine
from inspect_xai.explain.budget import OVERHEAD_PASSES, PassBudget, score_within
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.settings import PROFILE_SHARE
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import metrics, sise, tiles
from inspect_xai.maths.tiles import in_window
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.engine import Engine
from inspect_xai.records import PictureLimits, Profile, SelectionRule

STEPS = 50
FAITHFUL = ("deletion", "insertion", "Drop %", "EBPG", "AUPRO")
Stacks = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Exact:
    """One window with every mask of positive alpha scored: features (n, h, w), alphas (n,), scores (n,) per block."""

    features: Stacks
    alphas: Stacks
    scores: Stacks

    @property
    def size(self) -> int:
        """How many masks."""
        return sum(len(scores) for scores in self.scores)

    def plan(self, share: float) -> tuple[list[NDArray[np.float64]], int]:
        """Score masks as a profile does, taking the exact scores in the network's place."""
        known = {
            features[index].tobytes(): float(scores[index])
            for features, scores in zip(self.features, self.scores, strict=True)
            for index in range(len(features))
        }

        def look_up(maps: NDArray[np.float32]) -> ScoreCoroutine[NDArray[np.float64]]:
            yield from ()  # asks nobody
            return np.array([known[each.tobytes()] for each in maps])

        try:
            next(score_within(self.features, look_up, PassBudget(share, None, None)))
        except StopIteration as end:
            scores, scored = end.value
        return scores, int(sum(which.sum() for which in scored))

    def selected(self, rule: SelectionRule, mu: float) -> "Exact":
        """Leave out the masks that a rule leaves out; positive alphas alone decide either rule."""
        kept = [sise.select(alphas, rule=rule, mu=mu).kept if len(alphas) else slice(0) for alphas in self.alphas]
        return Exact(*([each[which] for each, which in zip(stack, kept, strict=True)] for stack in self._stacks()))

    def _stacks(self) -> tuple[Stacks, Stacks, Stacks]:
        return self.features, self.alphas, self.scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=44, help="pictures judged right, both sets together")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--store", type=Path, help="a folder to keep the exact scores in")
    parser.add_argument("--faithful", action="store_true", help="ask the network whether the maps are true to it")
    parser.add_argument("--no-noise", action="store_true", help="leave out the noise floor and half of the passes")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    shared = shared_folder()
    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, split {options.split}; mean (lowest)")
    near: list[dict[str, tuple[float, ...]]] = []
    true: list[dict[str, tuple[float, ...]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or Path(scratch)
        store.mkdir(parents=True, exist_ok=True)
        for name in SETS:
            found = list(measure_set(shared, Path(scratch), store, name, options))
            show_near(name, [each for each, _ in found])
            near += [each for each, _ in found]
            true += [each for _, each in found]
    show_near("both", near)
    if options.faithful:
        show_true(true)


def measure_set(
    shared: Path, scratch: Path, store: Path, name: str, options: argparse.Namespace
) -> Iterator[tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]]:
    bundle = build_bundle(real_model(shared, name), real_card(shared, name), scratch / f"{name}.bundle")
    parts = list(defective_parts(shared, name, split=options.split))
    found = 0
    with Explainer(bundle, device="cpu", mu=0.0, threads=options.threads) as explainer:
        for index in np.random.default_rng(1).permutation(len(parts)):
            if found == (options.pictures + 1) // len(SETS):
                return
            part = parts[index]
            look = explainer.look(read_picture(part.path, limits=PictureLimits()).pixels)
            if look.prediction.label != part.label:
                continue
            found += 1
            target = bundle.card.labels.index(part.label)
            tile = look.tiles[int(np.argmax(look.scores[:, target]))]
            window = tiles.cut(look.picture, tile, bundle.card.input)
            path = store / f"{name}_{options.split}_{index}.npz"
            if not path.exists():
                collect(explainer, window, target, path, seed=None if options.no_noise else int(index))
            exact, noisy = load(path, ""), None if options.no_noise else load(path, "n")
            maps, passes = variants(exact)
            rows = nearness(exact, maps, passes, noisy)
            asked = {}
            if options.faithful:
                truth = in_window(part.mask, tile, bundle.card.input, outside=0).astype(np.bool_)
                asked = judged(path.with_suffix(".json"), explainer, window, target, maps=maps, truth=truth)
            yield rows, asked


def collect(explainer: Explainer, window: NDArray[np.float32], target: int, path: Path, *, seed: int | None) -> None:
    """Score every mask of a window, and with a seed of the window with noise on it, and keep the numbers."""
    windows = {"": window}
    if seed is not None:
        noise = np.random.default_rng(seed).normal(0, 1, window.shape[:2])[..., None]
        windows["n"] = np.clip(np.rint(window + noise), 0, 255).astype(np.float32)
    numbers: dict[str, NDArray[np.float32]] = {}
    for prefix, seen in windows.items():
        hidden = sise.baseline_picture(seen, explainer.settings.baseline, mean=explainer.engine.mean_px)
        trace = explainer.engine.trace(seen, target=target)
        for block, (name, features) in enumerate(trace.features.items()):
            kept = sise.select(trace.alphas[name], rule=SelectionRule.MU, mu=0.0).kept
            kept = kept[sise.with_contrast(*sise.extremes(features[kept], seen.shape[:2]))]
            said = explainer.engine.score_masks(seen, features[kept], baseline=hidden)
            numbers[f"{prefix}f{block}"] = features[kept]
            numbers[f"{prefix}a{block}"] = trace.alphas[name][kept]
            numbers[f"{prefix}s{block}"] = said.probabilities[:, target]
    np.savez(path, **numbers)  # type: ignore[arg-type]


def load(path: Path, prefix: str) -> Exact:
    """Read what `collect` kept of a window, or with the prefix "n" of its noisy twin."""
    with np.load(path) as file:
        blocks = range(sum(key.startswith(f"{prefix}f") and key[len(prefix) + 1 :].isdigit() for key in file))
        return Exact(*([file[f"{prefix}{kind}{block}"] for block in blocks] for kind in "fas"))


def variants(exact: Exact) -> tuple[dict[str, sise.Fusion], dict[str, int]]:
    """Make the map of every profile and rule, and count its passes."""
    maps = {"exact": fuse(exact.features, exact.scores)}
    passes = {"exact": OVERHEAD_PASSES + exact.size}
    for profile in (Profile.FAST, Profile.QUICK):
        scores, scored = exact.plan(PROFILE_SHARE[profile])
        maps[str(profile)] = fuse(exact.features, scores)
        passes[str(profile)] = OVERHEAD_PASSES + scored
    for key, rule, mu in (("mu = 0.3", SelectionRule.MU, 0.3), ("ada-sise", SelectionRule.ADA, 0.0)):
        fewer = exact.selected(rule, mu)
        maps[key] = fuse(fewer.features, fewer.scores)
        passes[key] = OVERHEAD_PASSES + fewer.size
    return maps, passes


def fuse(features: Stacks, scores: list[NDArray[np.float64]] | Stacks) -> sise.Fusion:
    size = (224, 224)
    blocks = (
        sise.normalized(sise.weighted_sums(each, said, size=size), size)
        for each, said in zip(features, scores, strict=True)
    )
    return sise.fuse([block for block in blocks if block is not None])


def nearness(
    exact: Exact, maps: dict[str, sise.Fusion], passes: dict[str, int], noisy: Exact | None
) -> dict[str, tuple[float, ...]]:
    """Share of the passes, correlation and SSIM with the exact map, of every variant and of the noise floor."""
    again = maps | ({"noise floor": fuse(noisy.features, noisy.scores)} if noisy else {})
    whole = passes["exact"]
    return {
        key: (passes.get(key, whole) / whole, *alike(maps["exact"].fused, fusion.fused))
        for key, fusion in again.items()
        if key != "exact"
    }


def alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[float, float]:
    """Pearson's correlation and SSIM of two maps."""
    first, second = (found / (found.max() or 1.0) for found in (one, other))
    corr = float(np.corrcoef(first.ravel(), second.ravel())[0, 1]) if second.any() else 0.0
    return corr, float(structural_similarity(first, second, data_range=1.0))


def judged(
    path: Path,
    explainer: Explainer,
    window: NDArray[np.float32],
    target: int,
    *,
    maps: dict[str, sise.Fusion],
    truth: NDArray[np.bool_],
) -> dict[str, tuple[float, ...]]:
    """Ask the network about every map that it was not asked about before, and keep what it says."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for key, fusion in maps.items():
        mark = f"{key} {zlib.crc32(fusion.fused.tobytes()):08x}"  # another map under the same name is asked about anew
        if mark not in found:
            found[mark] = truth_of(explainer, window, target, fusion, truth)
            path.write_text(json.dumps(found))
    return {key: tuple(found[f"{key} {zlib.crc32(fusion.fused.tobytes()):08x}"]) for key, fusion in maps.items()}


def truth_of(
    explainer: Explainer, window: NDArray[np.float32], target: int, fusion: sise.Fusion, truth: NDArray[np.bool_]
) -> tuple[float, ...]:
    """Return what the network and the mask of the defect say of a map: see FAITHFUL."""
    rank = sise.rank_map(fusion.fused, fusion.before_last, fusion.deepest)
    hidden = sise.baseline_picture(window, explainer.settings.baseline, mean=explainer.engine.mean_px)
    return ask(explainer.engine, window, target, fused=fusion.fused, rank=rank, hidden=hidden, truth=truth)


def ask(
    engine: Engine,
    window: NDArray[np.float32],
    target: int,
    *,
    fused: NDArray[np.float32],
    rank: NDArray[np.int32],
    hidden: NDArray[np.float32],
    truth: NDArray[np.bool_],
) -> tuple[float, ...]:
    pictures = [
        window,
        metrics.keep_top(window, rank, fill=hidden),
        *metrics.exchanged(window, hidden, rank, steps=STEPS),
        *metrics.exchanged(hidden, window, rank, steps=STEPS),
    ]
    full, kept, *curves = engine.predict(np.stack(pictures))[:, target].tolist()
    return (
        metrics.area_under(curves[: STEPS + 1]),
        metrics.area_under(curves[STEPS + 1 :]),
        float(metrics.drop_percent(full, kept)),
        metrics.ebpg(fused, truth) if truth.any() else np.nan,
        metrics.aupro(rank, truth) if truth.any() else np.nan,
    )


def show_near(name: str, rows: list[dict[str, tuple[float, ...]]]) -> None:
    for key in rows[0] if rows else ():
        share, corr, ssim = np.array([row[key] for row in rows]).T
        print(
            f"{name:14} {key:12} n {len(rows):3d}  passes {share.mean():5.3f}"
            f"  corr {corr.mean():5.3f} ({corr.min():5.3f})  ssim {ssim.mean():5.3f} ({ssim.min():5.3f})",
            flush=True,
        )


def show_true(rows: list[dict[str, tuple[float, ...]]]) -> None:
    whole = np.array([row["exact"] for row in rows])
    for key in rows[0]:
        found = np.array([row[key] for row in rows])
        apart = found - whole
        error = np.nanstd(apart, axis=0, ddof=1) / np.sqrt(len(rows))
        cells = [
            f"{name} {mean:7.3f} ({shift:+.3f} +- {wide:.3f})"
            for name, mean, shift, wide in zip(
                FAITHFUL, np.nanmean(found, axis=0), np.nanmean(apart, axis=0), error, strict=True
            )
        ]
        print(f"{key:12} n {len(rows):3d}  " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
