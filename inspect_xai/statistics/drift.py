"""Drift detection with few alarms: each for a change that is large, lasting and larger than usual between days.

With enough parts two days always differ significantly: the parts of one day share a lamp, a lot and a temperature. So a
change must pass these tests, per feature and stratum:

    the parts      Kolmogorov-Smirnov against the baseline
    the days       more than the baseline's own days differ from it
    many tests     Benjamini-Hochberg over all features and strata of the day, on the worse of the two
    the size       a distance that matters
    the calendar   on consecutive days

Slow drift, too small on any one day, is found by an EWMA chart of the daily shift.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import kolmogorov
from scipy.stats import false_discovery_control, norm
from scipy.stats import t as student

from inspect_xai.errors import StudyError

FEWEST_DAYS = 10
"""Fewest days of a baseline: from fewer the difference between days cannot be estimated."""

_KEPT = 2000  # values stored of a baseline, evenly over its quantiles

_CHANCE_SPREAD, _CHANCE_DAYS = 0.3, 10
"""Standard deviation of the logarithm of Kolmogorov's distribution, that of a day's distance if days were mere samples,
and the number of days it counts for as a prior: from ten days alone the spread is known to a quarter only.
tests/statistics/test_drift.py simulates the effect on false alarms."""

_LEAST_SPREAD = 1e-3  # of a daily shift, so that a constant feature raises no alarm for rounding


class Cell(NamedTuple):
    """One feature in one stratum, for instance (("S3", "early"), "sharpness")."""

    stratum: tuple[str, ...]
    feature: str


class Rule(StrEnum):
    """Rule that raised an alarm."""

    DAYS = "days"  # large on consecutive days
    EWMA = "ewma"  # small on each day, but always the same way


@dataclass(frozen=True, slots=True)
class DriftRules:
    """When a change becomes an alarm.

    The defaults give few false alarms in a quiet year, with baselines of 30 days (benchmarks/drift.py).

    Attributes:
        fewest: A day with fewer parts in a cell is not compared. Low, because of 30 parts a day few are explained.
        distance: Smallest Kolmogorov-Smirnov distance that matters: the share of parts that lie elsewhere.
        q: Largest false discovery rate among a day's findings.
        days: Number of compared days in a row.
        weight: EWMA's weight of the newest day.
        sigmas: EWMA's limit in standard deviations of its own.
        shift: Smallest EWMA of the shift that matters.
    """

    fewest: int = 8
    distance: float = 0.15
    q: float = 0.05
    days: int = 2
    weight: float = 0.2
    sigmas: float = 5.0
    shift: float = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBaseline:
    """A cell's baseline, learnt from days without problems.

    Attributes:
        values: (m,) ascending, at most 2000.
        days: Days it was learnt from.
        distance: Mean logarithm of the days' distances from the whole.
        distance_spread: Its standard deviation.
        shift_spread: Standard deviation of the days' shifts.
        memory: Correlation of a day's shift with the day before, from 0 up.
    """

    values: NDArray[np.float64]
    days: int
    distance: float
    distance_spread: float
    shift_spread: float
    memory: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One day of a cell against its baseline.

    Attributes:
        parts: Parts of the day.
        distance: Kolmogorov-Smirnov distance, 0 to 1.
        shift: Cliff's delta, -1 to 1: chance that a part of today lies higher than one of the baseline, less the
            chance that it lies lower.
        p_parts: Chance of such a distance were today's parts drawn from the baseline.
        p_days: Chance of such a distance among the baseline's own days.
        p: The larger of the two.
        q: p after Benjamini-Hochberg over the day's cells.
    """

    parts: int
    distance: float
    shift: float
    p_parts: float
    p_days: float
    p: float
    q: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change to be looked at.

    Attributes:
        cell: Feature and stratum.
        rule: What raised it.
        day: Index of the day on which it was raised.
        since: Index of the first day that belongs to it.
        size: Distance (DAYS) or size of the averaged shift (EWMA).
        shift: Direction and size of the day's shift.
        p: Of the day's comparison.
        q: Of the day's comparison.
    """

    cell: Cell
    rule: Rule
    day: int
    since: int
    size: float
    shift: float
    p: float
    q: float


def learn(days: Sequence[ArrayLike], *, rules: DriftRules | None = None) -> FeatureBaseline:
    """Learn a feature's distribution, and how much its days differ, from days without problems.

    Args:
        days: One entry per day, oldest first: (n,) values of the feature. Thin days are left out.
        rules: `fewest` defines a thin day.

    Raises:
        StudyError: Fewer than 10 days have enough parts.
    """
    fewest = (rules or DriftRules()).fewest
    samples = [_finite(day) for day in days]
    samples = [sample for sample in samples if sample.size >= fewest]
    if len(samples) < FEWEST_DAYS:
        raise StudyError(
            f"the baseline has {len(samples)} days with {fewest} parts or more",
            expected=f"{FEWEST_DAYS}",
            remedy="choose a longer baseline period, or watch coarser strata",
        )
    whole = np.sort(np.concatenate(samples))
    if whole.size > _KEPT:
        whole = np.quantile(whole, (np.arange(_KEPT) + 0.5) / _KEPT, method="inverted_cdf")
    distances = np.log([max(_distance(sample, whole), 1 / _KEPT) for sample in samples])
    shifts = np.array([_shift(sample, whole) for sample in samples])
    moves = shifts - shifts.mean()
    memory = float(moves[1:] @ moves[:-1] / max(moves @ moves, _LEAST_SPREAD**2))
    return FeatureBaseline(
        whole,
        len(samples),
        float(distances.mean()),
        float(distances.std(ddof=1)),
        max(float(shifts.std(ddof=1)), _LEAST_SPREAD),
        min(max(memory, 0.0), 0.9),
    )


def compare_day(
    samples: Mapping[Cell, ArrayLike], quiet: Mapping[Cell, FeatureBaseline], *, rules: DriftRules | None = None
) -> dict[Cell, Comparison]:
    """Compare one day with the baseline, all cells at once.

    Args:
        samples: Per cell (n,) values of the day. A cell without baseline or with too few parts is left out.
        quiet: Per cell its baseline.
        rules: `fewest` defines too few.

    Source: Benjamini and Hochberg (1995); Cliff, Psychological Bulletin 114 (1993) 494; for the variance with a prior,
        Smyth (2004), "Linear models and empirical Bayes methods", section 4.
    """
    fewest = (rules or DriftRules()).fewest
    measured: dict[Cell, tuple[int, float, float, float, float]] = {}
    for cell, values in samples.items():
        sample = _finite(values)
        if cell not in quiet or sample.size < fewest:
            continue
        usual = quiet[cell]
        distance = _distance(sample, usual.values)
        p_parts = kolmogorov(distance * math.sqrt(sample.size * usual.values.size / (sample.size + usual.values.size)))
        # A new day scatters around a mean that is itself known from a few days only: hence t and the 1 + 1 / days.
        freedom = usual.days - 1 + _CHANCE_DAYS
        variance = ((usual.days - 1) * usual.distance_spread**2 + _CHANCE_DAYS * _CHANCE_SPREAD**2) / freedom
        spread = math.sqrt(variance * (1 + 1 / usual.days))
        p_days = student.sf((math.log(max(distance, 1 / _KEPT)) - usual.distance) / spread, freedom)
        measured[cell] = sample.size, distance, _shift(sample, usual.values), float(p_parts), float(p_days)
    if not measured:
        return {}
    worst = [max(p_parts, p_days) for *_, p_parts, p_days in measured.values()]
    adjusted = false_discovery_control(worst)  # of Benjamini and Hochberg
    return {
        cell: Comparison(*numbers, p, float(q))
        for (cell, numbers), p, q in zip(measured.items(), worst, adjusted, strict=True)
    }


def find_alarms(
    days: Sequence[Mapping[Cell, Comparison]], quiet: Mapping[Cell, FeatureBaseline], *, rules: DriftRules | None = None
) -> tuple[Alarm, ...]:
    """Raise an alarm where a change is large, lasting and unusual.

    An alarm is raised once; the same cell and rule alarm again only after as many calm days as it took to alarm.

    Args:
        days: From `compare_day`, oldest first; a day without a cell neither extends nor ends its run.
        quiet: Per cell its baseline.
        rules: Their limits.

    Returns:
        Alarms by day; those of the last day are tonight's.
    """
    limits = rules or DriftRules()
    raised: list[Alarm] = []
    for cell in dict.fromkeys(cell for day in days for cell in day):
        series = [(index, day[cell]) for index, day in enumerate(days) if cell in day]
        raised += _lasting(cell, series, limits)
        raised += _creeping(cell, series, quiet[cell], limits)
    return tuple(sorted(raised, key=lambda alarm: (alarm.day, alarm.cell, alarm.rule)))


def _lasting(cell: Cell, series: Sequence[tuple[int, Comparison]], rules: DriftRules) -> list[Alarm]:
    loud = [c.q <= rules.q and c.distance >= rules.distance for _, c in series]
    return [
        Alarm(cell, Rule.DAYS, series[at][0], series[since][0], c.distance, c.shift, c.p, c.q)
        for at, since in _onsets(loud, rules.days)
        for c in (series[at][1],)
    ]


def _creeping(
    cell: Cell, series: Sequence[tuple[int, Comparison]], usual: FeatureBaseline, rules: DriftRules
) -> list[Alarm]:
    """Apply the EWMA rule to the daily shift; its spread allows for days that resemble the day before."""
    keep = 1 - rules.weight
    inflated = (1 + usual.memory * keep) / (1 - usual.memory * keep)
    spread = usual.shift_spread * math.sqrt(rules.weight / (1 + keep) * inflated + 1 / usual.days)
    # With few days behind the spread, as many sigmas are less rare than the normal curve says.
    reach = float(student.isf(norm.sf(rules.sigmas), usual.days - 1)) * spread
    averages, mean = [], 0.0
    for _, comparison in series:
        mean = keep * mean + rules.weight * comparison.shift
        averages.append(mean)
    loud = [abs(average) >= max(reach, rules.shift) for average in averages]
    return [
        Alarm(cell, Rule.EWMA, series[at][0], series[since][0], abs(averages[at]), c.shift, c.p, c.q)
        for at, since in _onsets(loud, 1)
        for c in (series[at][1],)
    ]


def _onsets(loud: Sequence[bool], days: int) -> list[tuple[int, int]]:
    """Return (day of the alarm, first day of its run) for runs of `days` loud days, re-armed after `days` calm ones."""
    found, run, calm, armed = [], 0, 0, True
    for at, is_loud in enumerate(loud):
        run, calm = (run + 1, 0) if is_loud else (0, calm + 1)
        armed = armed or calm >= days
        if armed and run >= days:
            found.append((at, at - run + 1))
            armed = False
    return found


def _distance(sample: NDArray[np.float64], usual: NDArray[np.float64]) -> float:
    """Return the largest gap of the two distribution functions: `ks_2samp` without its slow p-value."""
    places = np.concatenate((sample, usual))
    gaps = (np.searchsorted(np.sort(values), places, side="right") / values.size for values in (sample, usual))
    return float(np.abs(np.subtract(*gaps)).max())


def _shift(sample: NDArray[np.float64], usual: NDArray[np.float64]) -> float:
    """Return Cliff's delta, from the Mann-Whitney U: 2 U / (n m) - 1."""
    lower, not_higher = np.searchsorted(usual, sample, side="left"), np.searchsorted(usual, sample, side="right")
    return float((lower + not_higher).mean() / usual.size - 1)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    """Return the finite values: a feature that a part does not have (no region, no map) is NaN."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]
