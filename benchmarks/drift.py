"""How many false alarms a quiet year gives, and how many days a planted change takes to be seen.

    python -m benchmarks.drift                     the whole table (about fifteen minutes on one idle core)
    python -m benchmarks.drift --years 2 --runs 3 --parts 30

Castings are rendered, judged and explained once (`benchmarks/pools.py`, kept in --keep), 200 in each condition. Days
are drawn from them: rendering a year would take a day. Each day takes its parts from 100 of the castings, and its lamp
wanders between 94 and 100 % and remembers the day before: days differ, as days do, in every feature. The number of
parts is Poisson's. One station and shift, a baseline of 30 days, then each night what the shipped report does: the last
7 days against the baseline (`reports/drift.py`), and the alarms that the last of them raises.

What was measured is kept too, a line of JSON per run: begun again it goes on.
"""

import argparse
import json
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
import statsmodels
from numpy.typing import NDArray
from statsmodels.stats.rates import confint_poisson

from benchmarks import pools
from inspect_xai.reports.drift import WATCHED_DAYS, Day, cells_of, leading, learn_days
from inspect_xai.statistics.drift import DriftRules, compare_day, find_alarms
from inspect_xai.storage.report_queries import FeatureTable

BASELINE_DAYS = 30
CALM_DAYS = WATCHED_DAYS  # between the baseline and the change
BAD_DAYS = 14
YEAR = 365
_CASTINGS = 100  # of a day
_MEMORY = 0.5  # correlation of a day's lamp with the day before

PLANTED: dict[str, tuple[str, ...]] = {
    "lamp at 86 %, was 94 to 100 %": (pools.LAMPS[5],),
    "lamp darker by 3 % a day, to 86 %": pools.LAMPS[2:],
    "dirt on the lens": ("dirt",),
    "fixture moved by 9 and 14 px": ("fixture",),
    "half of the defects of a new kind": ("dent",),
    "wrong model": ("wrong",),
}
"""Which pool the days of a trouble are drawn from; the last one stays."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What a stretch of nights came to.

    Attributes:
        alarms: (night, feature) of each, counted from the first night after the baseline.
        naive: Nights times features whose Kolmogorov-Smirnov p, Bonferroni-corrected over the night, is below 0.05.
        cells: Features watched.
        explained: Of the parts, the share that is explained.
    """

    alarms: tuple[tuple[int, str], ...]
    naive: int
    cells: int
    explained: float


def quiet_days(
    given: Mapping[str, FeatureTable], days: int, *, parts: int, rng: np.random.Generator
) -> Iterator[FeatureTable]:
    """Draw days of which each has its own castings and its own lamp."""
    level = rng.normal()
    for _ in range(days):
        level = _MEMORY * level + np.sqrt(1 - _MEMORY**2) * rng.normal()
        step = float(np.clip(1 + level / 2, 0, 1.999))  # 0: 100 %, 1: 97 %, 2: 94 %
        low = int(step)
        darker = (rng.random(count := rng.poisson(parts)) < step - low).astype(np.intp)
        whole = _joined(given[pools.LAMPS[low]], given[pools.LAMPS[low + 1]])
        castings = len(given[pools.LAMPS[low]].ids)
        yield _taken(whole, _drawn(castings, count, rng) + darker * castings)


def bad_days(
    given: Mapping[str, FeatureTable], plan: Sequence[str], *, parts: int, rng: np.random.Generator
) -> list[FeatureTable]:
    """Draw the days of a trouble."""
    made = []
    for since in range(BAD_DAYS):
        pool = given[plan[min(since, len(plan) - 1)]]
        made.append(_taken(pool, _drawn(len(pool.ids), rng.poisson(parts), rng)))
    return made


def _drawn(castings: int, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.choice(rng.choice(castings, _CASTINGS, replace=False), count)


def _joined(one: FeatureTable, other: FeatureTable) -> FeatureTable:
    return FeatureTable(
        *(np.concatenate(both) for both in zip(*((w.ids, w.values, w.embeddings) for w in (one, other)), strict=True))
    )


def _taken(pool: FeatureTable, rows: NDArray[np.intp]) -> FeatureTable:
    return FeatureTable(pool.ids[rows], pool.values[rows], pool.embeddings[rows])


def watch(parts: Sequence[FeatureTable], rules: DriftRules) -> Watch:
    """Learn from the first days, and write the report of every later night."""
    days: list[Day] = [{pools.PLACE: each} for each in parts]
    learnt, _ = learn_days(days[:BASELINE_DAYS], rules=rules)
    compared = [
        compare_day({cell: s.values for cell, s in cells_of(day, learnt.clouds).items()}, learnt.quiet, rules=rules)
        for day in days[BASELINE_DAYS:]
    ]
    told = []
    for night in range(len(compared)):
        first = max(0, night - WATCHED_DAYS + 1)
        raised = leading(find_alarms(compared[first : night + 1], learnt.quiet, rules=rules))
        told += [(night, alarm.cell.feature) for alarm in raised if first + alarm.day == night]
    naive = sum(c.p_parts < 0.05 / len(day) for day in compared for c in day.values())
    explained = np.mean(np.concatenate([np.isfinite(each.embeddings[:, 0]) for each in parts]))
    return Watch(tuple(told), naive, len(learnt.quiet), float(explained))


class Kept:
    """Lines of JSON in a file: what was measured once is not measured again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        rows = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self._known = {tuple(row["key"]): row for row in map(json.loads, rows)}

    def run(
        self, about: tuple[str | int, ...], days: Iterator[FeatureTable] | list[FeatureTable], rules: DriftRules
    ) -> Watch:
        """Watch the days unless that was done before."""
        key = (*about, str(rules))
        if key not in self._known:
            seen = watch(list(days), rules)
            row = {"key": key, "alarms": seen.alarms, "naive": seen.naive, "cells": seen.cells}
            row["explained"] = seen.explained
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            self._known[key] = row
        row = self._known[key]
        alarms = tuple((night, feature) for night, feature in row["alarms"])
        return Watch(alarms, row["naive"], row["cells"], row["explained"])


def quiet_years(given: Mapping[str, FeatureTable], kept: Kept, years: int, *, parts: int, rules: DriftRules) -> str:
    """Watch years in which nothing happens; a row of the table."""
    seen = [
        kept.run(
            ("quiet", parts, seed),
            quiet_days(given, BASELINE_DAYS + YEAR, parts=parts, rng=np.random.default_rng([seed, parts])),
            rules,
        )
        for seed in range(years)
    ]
    count = sum(len(each.alarms) for each in seen)
    low, high = confint_poisson(count, years, method="exact-c")
    naive = np.mean([each.naive for each in seen])
    explained = parts * np.mean([each.explained for each in seen])
    cells = {each.cells for each in seen}
    which = ", ".join(
        f"{feature} {times}" for feature, times in Counter(f for each in seen for _, f in each.alarms).items()
    )
    print(f"quiet, {parts} parts a day: {years} years, {count} alarms ({which}); features {sorted(cells)}")
    return f"| {parts} | {explained:.0f} | {count / years:.1f} ({low:.1f} to {high:.1f}) | {naive:.0f} |"


def planted(
    given: Mapping[str, FeatureTable], kept: Kept, name: str, *, runs: int, parts: int, rules: DriftRules
) -> str:
    """Watch a trouble begin; a cell of the table."""
    first, by = [], Counter[str]()
    for seed in range(runs):
        rng = np.random.default_rng([1000 + seed, parts])
        calm = quiet_days(given, BASELINE_DAYS + CALM_DAYS, parts=parts, rng=rng)
        # Calm days are drawn before the bad ones: of a seed they are the same for every trouble.
        days = [*calm, *bad_days(given, PLANTED[name], parts=parts, rng=rng)]
        seen = kept.run((name, parts, seed), days, rules)
        after = [(night - CALM_DAYS + 1, feature) for night, feature in seen.alarms if night >= CALM_DAYS]
        first.append(min((night for night, _ in after), default=0))
        by.update({feature for night, feature in after if night == first[-1]})
    known = sorted(day for day in first if day)
    leaders = ", ".join(f"{feature} {times}" for feature, times in by.most_common(5))
    print(f"{name}, {parts} parts a day: days {known}, not seen {first.count(0)} of {runs}; by {leaders}", flush=True)
    if not known:
        return "not seen"
    middle = f"day {np.median(known):.0f}" + (f" ({known[0]} to {known[-1]})" if known[0] < known[-1] else "")
    return middle if len(known) == runs else f"{middle}, in {len(known)} of {runs}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, default=Path("build/drift"), help="folder of pools and measurements")
    parser.add_argument("--years", type=int, default=10)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--parts", type=int, nargs="+", default=[30, 100, 300], help="parts a day")
    parser.add_argument("--sigmas", type=float, default=DriftRules().sigmas, help="EWMA's limit (default: %(default)s)")
    options = parser.parse_args()
    pools.fill(options.keep, parts=200)
    given, rules = pools.read(options.keep), DriftRules(sigmas=options.sigmas)
    kept = Kept(options.keep / "measured.jsonl")
    print(
        f"{rules}\npython {platform.python_version()}  scipy {scipy.__version__}  statsmodels {statsmodels.__version__}"
    )
    found = {
        name: [planted(given, kept, name, runs=options.runs, parts=parts, rules=rules) for parts in options.parts]
        for name in PLANTED
    }
    quiet = [quiet_years(given, kept, options.years, parts=parts, rules=rules) for parts in options.parts]
    print(f"\n| planted | {' | '.join(f'{parts} parts a day' for parts in options.parts)} |")
    print("| --- |" + " --- |" * len(options.parts))
    for name, cells in found.items():
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| parts a day | of them explained | false alarms in a quiet year (95 %) | Kolmogorov-Smirnov alone |")
    print("| --- | --- | --- | --- |")
    print("\n".join(quiet))


if __name__ == "__main__":
    main()
