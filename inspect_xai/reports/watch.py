"""Drift: the period's last day against the days before it, per station, on what the record knows of each part."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import StudyError
from inspect_xai.maths.drift import FEWEST_DAYS, Alarm, Cell, DriftRules, compare_day, find_alarms, learn
from inspect_xai.reports.period import Period
from inspect_xai.storage.figures import DRIFT_FEATURES, Figures

BASELINE_DAYS: Final = 30
_WATCHED_DAYS: Final = 7  # compared one by one, so that what lasts or creeps is seen
_PARTS: Final = 2000  # a day and feature at the most, drawn by the pictures' hashes


@dataclass(frozen=True, slots=True)
class Drift:
    """What drifted up to the period's last day.

    Attributes:
        alarms: Raised on any of the days watched.
        cells: Features per station that had a baseline.
        missing_days: How many days of baseline the station with most of them still lacks; 0 where one has enough.
        days: The days watched; an alarm's `day` and `since` count in them.
    """

    alarms: tuple[Alarm, ...]
    cells: int
    missing_days: int
    days: tuple[date, ...]


def drift_of(figures: Figures, period: Period, *, rules: DriftRules | None = None) -> Drift:
    """Learn from 30 days and hold the 7 days after them, the last of which is the period's, against them."""
    limits = rules or DriftRules()
    watched = [period.last - timedelta(days=n) for n in range(_WATCHED_DAYS - 1, -1, -1)]
    before = [watched[0] - timedelta(days=n) for n in range(BASELINE_DAYS, 0, -1)]
    history: dict[Cell, list[NDArray[np.float64]]] = {}
    for day in before:
        for cell, values in _cells(figures, period, day).items():
            history.setdefault(cell, []).append(values)
    quiet, most = {}, 0
    for cell, days in history.items():
        most = max(most, sum(int(np.isfinite(values).sum()) >= limits.fewest for values in days))
        try:
            quiet[cell] = learn(days, rules=limits)
        except StudyError:  # too few days of this feature here
            continue
    if not quiet:
        return Drift((), 0, FEWEST_DAYS - most, tuple(watched))
    days_now = [compare_day(_cells(figures, period, day), quiet, rules=limits) for day in watched]
    return Drift(find_alarms(days_now, quiet, rules=limits), len(quiet), 0, tuple(watched))


def _cells(figures: Figures, period: Period, day: date) -> dict[Cell, NDArray[np.float64]]:
    samples = figures.features(*period.span_of(day), most=_PARTS)
    return {
        Cell(place, feature): values[:, n]
        for place, values in samples.items()
        for n, feature in enumerate(DRIFT_FEATURES)
    }
