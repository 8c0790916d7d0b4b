"""How many false alarms a quiet year gives, and how many days a planted change takes to be seen.

    python -m benchmarks.drift                 the whole table (about ten minutes on one idle core)
    python -m benchmarks.drift --years 1 --runs 4
    python -m benchmarks.drift --rendered      pictures through the sample network instead (about five minutes)

A simulated plant: 4 stations x 2 shifts x 12 features, some hundred parts a day in each. Parts scatter with sigma 1;
days scatter too, by 0.2 sigma, half of it shared by a stratum's features, and resemble the day before (0.5): what a
test that counts parts takes for drift. The first 30 days are the baseline.

Rendered: one station that sees castings, 12 days of 30 pictures as the baseline, 5 quiet days, and for each trouble
4 days with it. Watched are the score, the margin and the image statistics of every picture; nothing is explained.
"""

import argparse
import itertools
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy
import statsmodels
from numpy.typing import NDArray

from inspect_xai.maths.drift import Alarm, Cell, Comparison, DriftRules, Quiet, Rule, compare_day, find_alarms, learn
from inspect_xai.maths.optics import picture_statistics
from inspect_xai.model.bundle import build_bundle
from inspect_xai.pipeline.explain import Explainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from surfaces import OK_LABEL, Condition, render
from surfaces.picture import ORDINARY

STATIONS, SHIFTS = ("S1", "S2", "S3", "S4"), ("early", "late")
FEATURES = (
    "score", "margin", "brightness", "sharpness", "noise", "embedding",
    "region_row", "region_column", "region_area", "region_mass", "roi_energy", "faithfulness",
)  # fmt: skip
CELLS = tuple(Cell(stratum, feature) for stratum in itertools.product(STATIONS, SHIFTS) for feature in FEATURES)
BASELINE_DAYS = 30

Change = Callable[[Cell, int, NDArray[np.float64], np.random.Generator], NDArray[np.float64]]
"""From a cell, days since the change, the quiet values and a generator to the changed values."""


def at_s1(moves: Mapping[str, float], *, per_day: bool = False) -> Change:
    """Shift features of station S1, in sigmas of the parts; at once, or by as much every day."""

    def change(cell: Cell, since: int, values: NDArray[np.float64], _: np.random.Generator) -> NDArray[np.float64]:
        if cell.stratum[0] != "S1" or since < 0:
            return values
        return values + moves.get(cell.feature, 0.0) * (since + 1 if per_day else 1)

    return change


def new_defect(cell: Cell, since: int, values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """From one day on 25 % of station S1's flagged parts show a defect in a corner where there was none."""
    if cell.stratum[0] != "S1" or since < 0 or cell.feature not in {"region_row", "region_column", "region_area"}:
        return values
    return np.where(rng.random(values.size) < 0.25, values + 3, values)


PLANTED: dict[str, Change] = {
    "lamp dims by 0.02 sigma a day": at_s1({"brightness": -0.02, "noise": 0.01}, per_day=True),
    "lamp dims at once": at_s1({"brightness": -1.0, "noise": 0.5, "score": 0.2}),
    "fixture moved": at_s1({"region_row": 0.8, "region_column": 0.5, "roi_energy": -0.6}),
    "dirty lens": at_s1({"sharpness": -0.6, "score": 0.3, "faithfulness": -0.2}),
    "new defect kind": new_defect,
    "wrong model": at_s1({"score": 1.0, "margin": -1.2, "embedding": 3.0, "faithfulness": -1.0}),
    "trifle (0.1 sigma, no alarm wanted)": at_s1({"brightness": 0.1}),
}


def plant(
    days: int, *, seed: int, parts: int, change: Change | None, start: int
) -> list[dict[Cell, NDArray[np.float64]]]:
    """Make `days` of values for every cell; the change begins on day `start`."""
    rng = np.random.default_rng(seed)
    strata = sorted({cell.stratum for cell in CELLS})
    shared = {stratum: _days(days, rng) for stratum in strata}
    own = {cell: _days(days, rng) for cell in CELLS}
    made = []
    for day in range(days):
        values = {}
        for cell in CELLS:
            centre = 0.2 * (shared[cell.stratum][day] + own[cell][day]) / np.sqrt(2)
            quiet = rng.normal(centre, 1, rng.poisson(parts))
            values[cell] = quiet if change is None else change(cell, day - start, quiet, rng)
        made.append(values)
    return made


def _days(days: int, rng: np.random.Generator, memory: float = 0.5) -> NDArray[np.float64]:
    steps = rng.normal(0, np.sqrt(1 - memory**2), days)
    steps[0] = rng.normal()
    for day in range(1, days):
        steps[day] += memory * steps[day - 1]
    return steps


def watch(
    days: Sequence[Mapping[Cell, NDArray[np.float64]]], rules: DriftRules
) -> tuple[list[dict[Cell, Comparison]], dict[Cell, Quiet]]:
    """Learn from the first days and compare the others."""
    quiet = {cell: learn([day[cell] for day in days[:BASELINE_DAYS]], rules=rules) for cell in CELLS}
    return [compare_day(day, quiet, rules=rules) for day in days[BASELINE_DAYS:]], quiet


def naive(compared: Sequence[Mapping[Cell, Comparison]]) -> tuple[int, int]:
    """Alarms of the usual practice: any cell with a Kolmogorov-Smirnov p below 0.01; without and with Bonferroni."""
    plain = sum(c.p_parts < 0.01 for day in compared for c in day.values())
    corrected = sum(c.p_parts < 0.01 / len(day) for day in compared for c in day.values())
    return plain, corrected


def count(alarms: Sequence[Alarm], rule: Rule) -> int:
    """How many alarms a rule raised."""
    return sum(alarm.rule is rule for alarm in alarms)


def quiet_years(years: int, *, parts: int, rules: DriftRules) -> None:
    """Print what a year in which nothing happens costs."""
    for seed in range(years):
        began = time.perf_counter()
        compared, quiet = watch(plant(BASELINE_DAYS + 365, seed=seed, parts=parts, change=None, start=0), rules)
        alarms = find_alarms(compared, quiet, rules=rules)
        plain, corrected = naive(compared)
        print(
            f"quiet year {seed}  cells {len(CELLS)}  parts a day {parts}  false alarms {len(alarms)}"
            f"  (days rule {count(alarms, Rule.DAYS)}, EWMA {count(alarms, Rule.EWMA)})"
            f"  | KS p < 0.01 alone {plain}, with Bonferroni {corrected}  | {time.perf_counter() - began:.0f} s",
            flush=True,
        )


def planted(runs: int, *, parts: int, rules: DriftRules, horizon: int = 60) -> None:
    """Print how long each planted change stays unseen."""
    for name, change in PLANTED.items():
        seen, wrong = [], 0
        for seed in range(runs):
            days = plant(
                BASELINE_DAYS + 10 + horizon, seed=1000 + seed, parts=parts, change=change, start=BASELINE_DAYS + 10
            )
            compared, quiet = watch(days, rules)
            alarms = find_alarms(compared, quiet, rules=rules)
            true = [alarm.day - 9 for alarm in alarms if alarm.cell.stratum[0] == "S1" and alarm.day >= 10]
            wrong += sum(alarm.cell.stratum[0] != "S1" or alarm.day < 10 for alarm in alarms)
            seen.append(min(true, default=np.inf))
        found = np.isfinite(seen)
        spread = f"median {np.median(seen):g}  slowest {max(seen):g}" if found.all() else f"seen days {sorted(seen)}"
        print(
            f"planted: {name:38}  runs {runs}  seen {found.sum()}  day of first alarm: {spread}  | wrong alarms {wrong}"
        )


TROUBLES: dict[str, tuple[Condition, str | None]] = {
    "lamp at 85 %": (Condition(lamp=0.85), None),
    "lamp darker by 3 % a day": (Condition(lamp=0.97), None),
    "dirt on the lens": (Condition(lens_dirt=1.0), None),
    "fixture moved by 9 and 14 px": (Condition(shift_px=(9.0, 14.0)), None),
    "half of the defects are dents, a new kind": (ORDINARY, "dent"),
}
SEEN = ("score", "margin", "brightness", "sharpness", "noise")


def rendered(*, quiet_days: int = 12, calm_days: int = 5, bad_days: int = 4, parts: int = 30) -> None:
    """Print what is seen of planted troubles on rendered pictures, judged by the sample network."""
    sample = Path(__file__).resolve().parent.parent / "examples" / "sample"
    rules = DriftRules()
    with tempfile.TemporaryDirectory() as folder:
        bundle = build_bundle(sample / "model.onnx", sample / "card.toml", Path(folder) / "sample.bundle")
        with Explainer(bundle, device="cpu") as explainer:
            count = itertools.count()

            def day(condition: Condition = ORDINARY, kind: str | None = None) -> dict[Cell, NDArray[np.float64]]:
                rows = [_judged(explainer, next(count), condition, kind) for _ in range(parts)]
                columns = np.array(rows).T
                return {Cell(("S2",), name): column for name, column in zip(SEEN, columns, strict=True)}

            usual = [day() for _ in range(quiet_days)]
            quiet = {cell: learn([each[cell] for each in usual], rules=rules) for cell in usual[0]}
            calm = [compare_day(day(), quiet, rules=rules) for _ in range(calm_days)]
            print(
                f"rendered: {calm_days} quiet days  false alarms {len(find_alarms(calm, quiet, rules=rules))}",
                flush=True,
            )
            for name, (condition, kind) in TROUBLES.items():
                days = []
                for since in range(bad_days):
                    now = replace(condition, lamp=condition.lamp ** (since + 1)) if "a day" in name else condition
                    days.append(compare_day(day(now, kind), quiet, rules=rules))
                alarms = [a for a in find_alarms([*calm, *days], quiet, rules=rules) if a.day >= calm_days]
                told = ", ".join(f"{a.cell.feature} on day {a.day - calm_days + 1}" for a in alarms) or "not seen"
                largest = max(days[-1].items(), key=lambda pair: pair[1].distance)
                print(
                    f"rendered: {name:42} {told}  (last day: {largest[0].feature} {largest[1].distance:.2f})",
                    flush=True,
                )


def _judged(explainer: Explainer, index: int, condition: Condition, kind: str | None) -> tuple[float, ...]:
    picture = render(11, index, surface="cast", condition=condition)
    if kind and picture.label != OK_LABEL and index % 2:
        picture = render(11, index, label=kind, surface="cast", condition=condition)
    look, seen = explainer.look(picture.rgb), picture_statistics(picture.rgb)
    return look.verdict.score, look.prediction.margin, seen.brightness, seen.sharpness, seen.noise


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=3)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--parts", type=int, default=300)
    parser.add_argument("--rendered", action="store_true")
    options = parser.parse_args()
    rules = DriftRules()
    print(
        f"{rules}\npython {platform.python_version()}  scipy {scipy.__version__}  statsmodels {statsmodels.__version__}"
    )
    if options.rendered:
        rendered()
        return
    quiet_years(options.years, parts=options.parts, rules=rules)
    planted(options.runs, parts=options.parts, rules=rules)


if __name__ == "__main__":
    main()
