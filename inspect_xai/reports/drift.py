"""Drift: each day against a stored quiet month, per station and shift, on what the record knows of each part."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import SettingsError, StudyError
from inspect_xai.reports.period import Period
from inspect_xai.statistics.drift import (
    FEWEST_DAYS,
    Alarm,
    Cell,
    DriftRules,
    FeatureBaseline,
    Rule,
    compare_day,
    find_alarms,
    learn,
)
from inspect_xai.statistics.pca import PcaModel, fit_pca
from inspect_xai.storage.quality_records import Baseline
from inspect_xai.storage.report_queries import DRIFT_FEATURES, FeatureTable, ReportQueries

BASELINE_DAYS: Final = 30
WATCHED_DAYS: Final = 7
"""Compared one by one, so that what lasts or creeps is seen."""

EMBEDDING: Final = "embedding"
PICTURE: Final = "picture"
TOGETHER: Final = {PICTURE: ("brightness", "contrast", "sharpness", "noise"), EMBEDDING: (EMBEDDING,)}
"""Families of numbers that are also watched together, each with the features that are watched by themselves."""

SCHEMA_VERSION: Final = 2
_PARTS: Final = 10_000  # a day at the most, drawn by the pictures' hashes; of them the explained ones have all features
_SHOWN: Final = 2  # parts of the day beside the usual one
_PARTS_PER_NUMBER: Final = 10  # of a family, until it is known where its numbers lie together
_LEAST_STATISTIC: Final = 1e-3  # a flat picture has no sharpness, and no logarithm of it

Place = tuple[str, ...]
Clouds = Mapping[tuple[Place, str], PcaModel]


Day = Mapping[tuple[str, str, str], FeatureTable]
"""By line, station and shift."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Parts that show an alarm: the most changed of its day, and one that was usual; 0: none is known."""

    cell: Cell
    changed: tuple[int, ...]
    usual: int


@dataclass(frozen=True, slots=True)
class Drift:
    """What drifted up to the period's last day.

    Attributes:
        alarms: Raised on any of the days watched.
        evidence: Per alarm raised in the period, in their order.
        cells: Features of stations and shifts that have a baseline.
        missing_days: How many days of baseline the station with most of them still lacks; 0 where one has enough.
        days: The days watched; an alarm's `day` and `since` count in them.
        first: First day of the baseline.
        last: Last day of the baseline.
        set_by: Who chose the baseline; empty: nobody, it is the 30 days before the days watched.
    """

    alarms: tuple[Alarm, ...]
    evidence: tuple[Evidence, ...]
    cells: int
    missing_days: int
    days: tuple[date, ...]
    first: date
    last: date
    set_by: str


@dataclass(frozen=True, slots=True, eq=False)
class DriftBaseline:
    """A baseline: per cell what is quiet and which part is usual, per station and family where its numbers lie."""

    quiet: dict[Cell, FeatureBaseline]
    usual: dict[Cell, int]
    clouds: dict[tuple[Place, str], PcaModel]


@dataclass(frozen=True, slots=True, eq=False)
class _Series:
    """One cell's day: values with the inspections they belong to."""

    ids: NDArray[np.int64]
    values: NDArray[np.float64]


def drift_of(
    figures: ReportQueries, period: Period, *, baseline: Baseline | None = None, rules: DriftRules | None = None
) -> Drift:
    """Hold the 7 days up to the period's last against a baseline.

    Args:
        figures: Restricted to the period's shift.
        period: What the report speaks of.
        baseline: A stored one; None: the 30 days before the days watched are learnt now.
        rules: When a change is an alarm.
    """
    limits = rules or DriftRules()
    watched = tuple(period.last - timedelta(days=n) for n in range(WATCHED_DAYS - 1, -1, -1))
    if baseline is None:
        first, last, who = watched[0] - timedelta(days=BASELINE_DAYS), watched[0] - timedelta(days=1), ""
        learnt, most = learn_from(figures, period, first=first, last=last, rules=limits)
        missing = 0 if learnt.quiet else max(1, FEWEST_DAYS - most)
    else:
        first, last, who = baseline.first, baseline.last, baseline.set_by
        learnt, missing = from_plain(baseline.content), 0
    if not learnt.quiet:
        return Drift((), (), 0, missing, watched, first, last, who)
    series = [cells_of(_of_day(figures, period, day), learnt.clouds) for day in watched]
    compared = [
        compare_day({cell: each.values for cell, each in day.items()}, learnt.quiet, rules=limits) for day in series
    ]
    alarms = leading(find_alarms(compared, learnt.quiet, rules=limits))
    evidence = [_evidence(alarm, series[alarm.day][alarm.cell], learnt) for alarm in alarms]
    named = tuple(replace(alarm, cell=_told(alarm.cell)) for alarm in alarms)
    return Drift(named, tuple(evidence), len(learnt.quiet), 0, watched, first, last, who)


def learn_from(
    figures: ReportQueries, period: Period, *, first: date, last: date, rules: DriftRules | None = None
) -> tuple[DriftBaseline, int]:
    """Learn a baseline from quiet days.

    A shift with enough parts has cells of its own, so that its ways are not held against another's; a station whose
    shifts have too few has cells of all its shifts together.

    Returns:
        The baseline, and the most days that any station had with enough parts.
    """
    days = [_of_day(figures, period, first + timedelta(days=n)) for n in range((last - first).days + 1)]
    return learn_days(days, rules=rules or DriftRules())


def learn_days(days: Sequence[Day], *, rules: DriftRules) -> tuple[DriftBaseline, int]:
    """Learn from days, oldest first, what `learn_from` reads."""
    clouds = _clouds(days)
    history: dict[Cell, list[_Series]] = {}
    for day in days:
        for cell, series in cells_of(day, clouds).items():
            history.setdefault(cell, []).append(series)
    quiet: dict[Cell, FeatureBaseline] = {}
    most = 0
    for cell, given in history.items():
        most = max(most, sum(int(np.isfinite(each.values).sum()) >= rules.fewest for each in given))
        try:
            quiet[cell] = learn([each.values for each in given], rules=rules)
        except StudyError:  # too few days of this feature here
            continue
    by_shift = {(cell.stratum[:2], cell.feature) for cell in quiet if len(cell.stratum) > 2}
    kept = {
        cell: q for cell, q in quiet.items() if len(cell.stratum) > 2 or (cell.stratum, cell.feature) not in by_shift
    }
    return DriftBaseline(kept, {cell: _usual(history[cell]) for cell in kept}, clouds), most


def to_plain(learnt: DriftBaseline) -> dict[str, Any]:
    """Return a baseline as plain values, to be stored."""
    cells = [
        {"stratum": list(cell.stratum), "feature": cell.feature, "usual": learnt.usual[cell]}
        | dataclasses.asdict(dataclasses.replace(quiet, values=np.empty(0)))
        | {"values": [float(f"{value:.6g}") for value in quiet.values]}
        for cell, quiet in learnt.quiet.items()
    ]
    clouds = [
        {"place": list(place), "family": family, "center": cloud.center.tolist(), "axes": cloud.axes.tolist()}
        for (place, family), cloud in learnt.clouds.items()
    ]
    return {"schema_version": SCHEMA_VERSION, "cells": cells, "clouds": clouds}


def from_plain(content: Mapping[str, Any]) -> DriftBaseline:
    """Return a stored baseline as an object.

    Raises:
        SettingsError: It was stored by another version.
    """
    if content.get("schema_version") != SCHEMA_VERSION:
        raise SettingsError(
            f"the drift baseline has schema {content.get('schema_version')}",
            expected=str(SCHEMA_VERSION),
            remedy="learn it again: inspect-xai drift baseline",
        )
    quiet, usual = {}, {}
    for each in content["cells"]:
        facts = dict(each)
        cell = Cell(tuple(facts.pop("stratum")), facts.pop("feature"))
        usual[cell] = int(facts.pop("usual"))
        quiet[cell] = FeatureBaseline(**facts | {"values": np.array(facts["values"], dtype=np.float64)})
    clouds = {}
    for each in content["clouds"]:
        center = each["center"] if "center" in each else each["centre"]  # as 0.1 wrote it; codespell:ignore
        clouds[tuple(each["place"]), each["family"]] = PcaModel(np.array(center), np.array(each["axes"]))
    return DriftBaseline(quiet, usual, clouds)


def leading(alarms: Sequence[Alarm]) -> list[Alarm]:
    """Leave out alarms that repeat another one.

    What moved at once is no creeping, though it drags the average along. And one cause moves many components, and the
    numbers they are made of: those are named where they alarm by themselves by then, and else the component that
    moved most stands for all.
    """
    kept: list[Alarm] = []
    moved = {alarm.cell for alarm in alarms if alarm.rule is Rule.DAYS}
    alarms = [alarm for alarm in alarms if alarm.rule is Rule.DAYS or alarm.cell not in moved]
    for alarm in sorted(alarms, key=lambda each: (each.day, " " in each.cell.feature, -each.size)):
        family = _told(alarm.cell).feature
        said = {_told(each.cell).feature for each in kept if each.cell.stratum == alarm.cell.stratum}
        if " " not in alarm.cell.feature or not said & {family, *TOGETHER[family]}:
            kept.append(alarm)
    return sorted(kept, key=lambda each: (each.day, each.cell, each.rule))


def _told(cell: Cell) -> Cell:
    """Name a cell as people read it: a component bears the name of its family."""
    return cell._replace(feature=cell.feature.partition(" ")[0])


def cells_of(day: Day, clouds: Clouds) -> dict[Cell, _Series]:
    """Return the series of a day: of each shift, and of all shifts of a station together."""
    found: dict[Cell, _Series] = {}
    together: dict[Place, list[FeatureTable]] = {}
    for (line, station, shift), watched in day.items():
        together.setdefault((line, station), []).append(watched)
        if shift:
            found |= _features((line, station, shift), watched, clouds)
    for place, parts in together.items():
        found |= _features(place, _all(parts), clouds)
    return found


def _of_day(figures: ReportQueries, period: Period, day: date) -> Day:
    return figures.features(*period.span_of(day), most=_PARTS)


def _all(parts: Sequence[FeatureTable]) -> FeatureTable:
    return FeatureTable(
        np.concatenate([each.ids for each in parts]),
        np.concatenate([each.values for each in parts]),
        np.concatenate([each.embeddings for each in parts]),
    )


def _families(watched: FeatureTable) -> dict[str, NDArray[np.floating]]:
    """Numbers that go together, by family (n, d); of pictures their logarithms, since light multiplies."""
    columns = [DRIFT_FEATURES.index(name) for name in TOGETHER[PICTURE]]
    return {PICTURE: np.log(np.maximum(watched.values[:, columns], _LEAST_STATISTIC)), EMBEDDING: watched.embeddings}


def _clouds(days: Iterable[Day]) -> dict[tuple[Place, str], PcaModel]:
    """Where the numbers of each station lie; a station with few parts has no cloud."""
    gathered: dict[Place, list[FeatureTable]] = {}
    for day in days:
        for (line, station, _), watched in day.items():
            gathered.setdefault((line, station), []).append(watched)
    found = {}
    for place, parts in gathered.items():
        for family, numbers in _families(_all(parts)).items():
            known = numbers[np.isfinite(numbers).all(axis=1)]
            cloud = fit_pca(known) if len(known) >= _PARTS_PER_NUMBER * numbers.shape[1] else None
            if cloud is not None:
                found[place, family] = cloud
    return found


def _features(stratum: Place, watched: FeatureTable, clouds: Clouds) -> Iterable[tuple[Cell, _Series]]:
    columns = dict(zip(DRIFT_FEATURES, watched.values.T, strict=True))
    for family, numbers in _families(watched).items():
        cloud = clouds.get((stratum[:2], family))
        if cloud is None:
            continue
        if family == EMBEDDING:
            columns[EMBEDDING] = cloud.distances(numbers)
        columns |= {f"{family} {n}": values for n, values in enumerate(cloud.components(numbers).T, 1)}
    return [(Cell(stratum, feature), _Series(watched.ids, values)) for feature, values in columns.items()]


def _usual(history: Sequence[_Series]) -> int:
    """Return the inspection in the middle of a cell's baseline; 0 where there is none."""
    ids, values = (np.concatenate(given) for given in zip(*((s.ids, s.values) for s in history), strict=True))
    known = np.isfinite(values)
    if not known.any():
        return 0
    return int(ids[known][np.argmin(np.abs(values[known] - np.median(values[known])))])


def _evidence(alarm: Alarm, series: _Series, learnt: DriftBaseline) -> Evidence:
    """Return the parts furthest in the direction of the alarm."""
    known = np.isfinite(series.values)
    order = np.argsort(series.values[known] * (-1 if alarm.shift > 0 else 1), kind="stable")
    changed = series.ids[known][order][:_SHOWN]
    return Evidence(_told(alarm.cell), tuple(int(each) for each in changed), learnt.usual[alarm.cell])
