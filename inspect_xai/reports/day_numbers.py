"""All numbers of a report, from sums of the database; docs/guides/quality-manager.md says how each is made."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import numpy as np

from inspect_xai.records import Decision, VerdictCode
from inspect_xai.reports.period import Period
from inspect_xai.statistics.control_charts import Limits, ParetoRow, Signal, p_chart, pareto
from inspect_xai.statistics.rates import CorrectedRates, Stratum, corrected_rates
from inspect_xai.storage.report_queries import ReportQueries, Waiting
from inspect_xai.storage.results import StoredModel

CHART_DAYS: Final = 30
LEAST_DAYS: Final = 10
"""Days with parts that limits are drawn from; with fewer, how much days differ is a guess."""

_MANY_A_POINT: Final = 2000  # parts a point from which days differ by more than chance (see Limits.LANEY)
_FEW_A_POINT: Final = 5  # flagged parts a point below which three sigmas mean nothing
_NEVER_DRAWN: Final = 1e-6  # chance of an OK part to be reviewed where no share is drawn
_FIELDS: Final = (
    "line",
    "station",
    "shift",
    "label",
    "verdict",
    "reviewed_verdict",
    "review_decision",
    "is_failed",
    "explained_because",
    "run_id",
    "provider",
    "fingerprint",
    "model_name",
    "model_version",
    "model_status",
    "policy_version",
)
_PRODUCT_FIELDS: Final = ("product", "verdict")
_LOT_FIELDS: Final = ("product", "lot", "verdict", "is_failed", "review_decision")


@dataclass(frozen=True, slots=True)
class Change:
    """A count, its share, and what both were in the period before; p: Fisher's test of the two shares."""

    name: str
    count: int
    share: float | None
    count_before: int
    share_before: float | None
    p: float


@dataclass(frozen=True, slots=True)
class Mix:
    """What became of the parts of one group; failed ones are among the UNSURE."""

    names: tuple[str, ...]
    ok: int
    ng: int
    unsure: int
    failed: int
    reviewed: int
    overturned: int
    total_before: int
    flagged_share_before: float | None

    @property
    def total(self) -> int:
        """All inspections of the group."""
        return self.ok + self.ng + self.unsure

    @property
    def flagged_share(self) -> float | None:
        """Share judged NG or UNSURE."""
        return (self.ng + self.unsure) / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class Point:
    """One day of a control chart; no share, no limits on a day without parts, no limits with too few days."""

    day: date
    count: int
    total: int
    share: float | None
    low: float | None
    high: float | None
    signals: tuple[Signal, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Share of flagged parts day by day; `limits` and `center` are None with too few days."""

    names: tuple[str, ...]  # line and station; empty: all together
    points: tuple[Point, ...]
    limits: Limits | None
    center: float | None

    @property
    def days(self) -> int:
        """Days with parts."""
        return sum(point.total > 0 for point in self.points)


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model, the state it judged in, by which policy and on what, and how long a part took."""

    name: str
    version: str
    fingerprint: str
    status: str
    status_now: str
    status_by: str
    golden: str  # what the golden set said, in words
    policy: str
    provider: str
    parts: int
    mean_ms: float
    longest_ms: float


@dataclass(frozen=True, slots=True)
class RunTimes:
    """How long inspections took against the time the line has; `late` took longer. A window of 0: none is known."""

    mean_ms: float
    longest_ms: float
    window_ms: float
    late: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a report says in numbers."""

    headline: tuple[Change, ...]
    pareto: tuple[ParetoRow, ...]
    charts: tuple[Chart, ...]
    labels: tuple[Mix, ...]
    products: tuple[Mix, ...]
    stations: tuple[Mix, ...]
    shifts: tuple[Mix, ...]
    lots: tuple[Mix, ...]
    rates: CorrectedRates | None
    waiting: Waiting
    models: tuple[ModelUse, ...]
    run_times: RunTimes | None


@dataclass(frozen=True, slots=True)
class _Cell:
    """A tally with names instead of positions."""

    facts: dict[str, str]
    parts: int
    duration_ms: float
    longest_ms: float

    @property
    def truth(self) -> str:
        """What a person called the part; empty: nobody did, or they could not say."""
        return "" if self.facts["review_decision"] == Decision.UNDECIDED else self.facts["reviewed_verdict"]


def numbers_of(
    figures: ReportQueries, period: Period, *, models: Mapping[str, StoredModel], window_ms: float = 0.0
) -> Numbers:
    """Make the numbers of a period.

    Args:
        figures: Restricted to the period's shift.
        period: What the report speaks of.
        models: Registered ones by fingerprint.
        window_ms: Time the line has for a part; 0: not known.
    """
    now, before = (_cells(figures, each, by=_FIELDS) for each in (period, period.before))
    total, total_before = _sum(now), _sum(before)
    # A lot is made once: it has no period before, and only its product is counted then.
    lots, products_before = _cells(figures, period, by=_LOT_FIELDS), _cells(figures, period.before, by=_PRODUCT_FIELDS)
    return Numbers(
        headline=tuple(_headline(now, before)),
        pareto=pareto(_labels(now), total, counts_before=_labels(before), inspected_before=total_before),
        charts=_charts(figures, period),
        labels=_mixes(now, before, ("label",)),
        products=_mixes(lots, products_before, ("product",)),
        stations=_mixes(now, before, ("line", "station")),
        shifts=_mixes(now, before, ("shift",)),
        lots=_worst(_mixes(lots, (), ("product", "lot"))),
        rates=_rates(figures, now),
        waiting=figures.waiting(period.span[1]),
        models=_models(now, models),
        run_times=_run_times(figures, period, now, window_ms=window_ms),
    )


def _cells(figures: ReportQueries, period: Period, *, by: tuple[str, ...]) -> list[_Cell]:
    return [
        _Cell(dict(zip(by, each.group, strict=True)), each.parts, each.duration_ms, each.longest_ms)
        for each in figures.tally(*period.span, by=by)
    ]


def _sum(cells: Iterable[_Cell], where: Callable[[_Cell], bool] = lambda _: True) -> int:
    return sum(cell.parts for cell in cells if where(cell))


def _is(field: str, value: str) -> Callable[[_Cell], bool]:
    return lambda cell: cell.facts[field] == value


def _has_failed(cell: _Cell) -> bool:
    return cell.facts["is_failed"] != ""


def _is_reviewed(cell: _Cell) -> bool:
    return cell.facts["review_decision"] != ""


def _is_overturned(cell: _Cell) -> bool:
    return cell.facts["review_decision"] == Decision.OVERTURN


def _headline(now: Sequence[_Cell], before: Sequence[_Cell]) -> Iterable[Change]:
    rows: dict[str, Callable[[_Cell], bool]] = {
        "inspected": lambda _: True,
        "OK": _is("verdict", "OK"),
        "NG": _is("verdict", "NG"),
        "UNSURE": _is("verdict", "UNSURE"),
        "failed": _has_failed,
        "reviewed": _is_reviewed,
        "overturned": _is_overturned,
        "overkill found": lambda cell: cell.facts["verdict"] == "NG" and cell.truth == "OK",
        "escapes found": lambda cell: cell.facts["verdict"] == "OK" and cell.truth == "NG",
    }
    whole, whole_before = _sum(now), _sum(before)
    for name, where in rows.items():
        count, count_before = _sum(now, where), _sum(before, where)
        yield _change(name, count, whole, count_before, whole_before)


def _change(name: str, count: int, whole: int, count_before: int, whole_before: int) -> Change:
    [row] = pareto({name: count}, whole, counts_before={name: count_before}, inspected_before=whole_before)
    return Change(name, count, row.rate, count_before, row.rate_before, row.p)


def _labels(cells: Iterable[_Cell]) -> dict[str, int]:
    """Parts judged NG per defect label."""
    counts: Counter[str] = Counter()
    for cell in cells:
        if cell.facts["verdict"] == VerdictCode.NG:
            counts[cell.facts["label"] or "no label"] += cell.parts
    return counts


def _mixes(now: Iterable[_Cell], before: Iterable[_Cell], fields: tuple[str, ...]) -> tuple[Mix, ...]:
    """Put each group side by side with what it was before; one without parts now has its row too."""
    groups, earlier = _grouped(now, fields), _grouped(before, fields)
    found = []
    for names in sorted({*groups, *earlier}):
        mine, then = groups.get(names, []), earlier.get(names, [])
        ok, ng, unsure = (_sum(mine, _is("verdict", code)) for code in ("OK", "NG", "UNSURE"))
        failed, reviewed, overturned = (_sum(mine, where) for where in (_has_failed, _is_reviewed, _is_overturned))
        total_before = _sum(then)
        share = 1 - _sum(then, _is("verdict", "OK")) / total_before if total_before else None
        found.append(Mix(names, ok, ng, unsure, failed, reviewed, overturned, total_before, share))
    return tuple(found)


def _grouped(cells: Iterable[_Cell], fields: tuple[str, ...]) -> dict[tuple[str, ...], list[_Cell]]:
    groups: dict[tuple[str, ...], list[_Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.facts[field] or "unknown" for field in fields), []).append(cell)
    return groups


def _worst(lots: Iterable[Mix], *, most: int = 10) -> tuple[Mix, ...]:
    """Return the lots with most flagged parts."""
    found = sorted(lots, key=lambda mix: (-(mix.ng + mix.unsure), mix.names))
    return tuple(mix for mix in found[:most] if mix.ng + mix.unsure)


def _run_times(figures: ReportQueries, period: Period, cells: Sequence[_Cell], *, window_ms: float) -> RunTimes | None:
    if not cells:
        return None
    mean, longest = sum(cell.duration_ms for cell in cells) / _sum(cells), max(cell.longest_ms for cell in cells)
    late = figures.slower_than(*period.span, window_ms=window_ms) if window_ms else 0
    return RunTimes(mean, longest, window_ms, late)


def _golden_in_words(golden: Mapping[str, Any] | None) -> str:
    """Return the result of a model's last check against its golden set."""
    if not golden:
        return "no golden set on record"
    at = str(golden.get("verified_at", ""))[:10]
    return f"golden set {'holds' if golden.get('holds', True) else 'DOES NOT HOLD'}{f', {at}' if at else ''}"


def _charts(figures: ReportQueries, period: Period) -> tuple[Chart, ...]:
    """Day by day up to the period's last: all together, then each station that worked in the period."""
    days = [period.last - timedelta(days=n) for n in range(CHART_DAYS - 1, -1, -1)]
    by_day: list[Counter[tuple[str, ...]]] = []
    for day in days:
        counts: Counter[tuple[str, ...]] = Counter()
        for each in figures.tally(*period.span_of(day), by=("line", "station", "verdict")):
            line, station, verdict = each.group
            kind = "total" if verdict == VerdictCode.OK else "flagged"
            for names in ((), (line or "unknown", station or "unknown")):
                counts[*names, "total"] += each.parts
                counts[*names, "flagged"] += each.parts if kind == "flagged" else 0
        by_day.append(counts)
    since = max(0, len(days) - len(period.days))
    stations = sorted({key[:-1] for counts in by_day[since:] for key in counts if len(key) > 1})
    return tuple(chart_of(names, days, by_day) for names in ((), *stations))


def chart_of(names: tuple[str, ...], days: Sequence[date], by_day: Sequence[Counter[tuple[str, ...]]]) -> Chart:
    """Make one chart from counts by (names..., "total" or "flagged")."""
    totals = np.array([counts[*names, "total"] for counts in by_day])
    flagged = np.array([counts[*names, "flagged"] for counts in by_day])
    worked = int(np.count_nonzero(totals))
    shares = [count / total if total else None for count, total in zip(flagged, totals, strict=True)]
    if worked < LEAST_DAYS:
        points = tuple(
            Point(day, int(count), int(total), None if share is None else float(share), None, None, ())
            for day, count, total, share in zip(days, flagged, totals, shares, strict=True)
        )
        return Chart(names, points, None, None)
    kind = Limits.LANEY if totals.sum() / worked >= _MANY_A_POINT else Limits.SIGMA
    if flagged.sum() / worked < _FEW_A_POINT:
        kind = Limits.EXACT
    chart = p_chart(flagged, totals, limits=kind)
    points = tuple(
        Point(
            day,
            int(flagged[n]),
            int(totals[n]),
            float(chart.shares[n]),
            float(chart.low[n]),
            float(chart.high[n]),
            chart.signals[n],
        )
        if totals[n]
        else Point(day, 0, 0, None, None, None, ())
        for n, day in enumerate(days)
    )
    return Chart(names, points, kind, chart.center)


def _rates(figures: ReportQueries, cells: Sequence[_Cell]) -> CorrectedRates | None:
    """Overkill and escape, with the chance of review that each part had; None without parts."""
    if not cells:
        return None
    settings = figures.run_settings(sorted({cell.facts["run_id"] for cell in cells}))
    counts: dict[tuple[str, float], Counter[str]] = {}
    for cell in cells:
        verdict = cell.facts["verdict"]
        share = settings.get(cell.facts["run_id"], {}).get("ok_share")
        share = float(share) if isinstance(share, int | float) else 0.0
        chance = 1.0 if verdict != VerdictCode.OK else min(1.0, max(share, _NEVER_DRAWN))
        drawn = chance == 1 or cell.facts["explained_because"] == "sample"
        kept = counts.setdefault((verdict, chance), Counter())
        kept["parts"] += cell.parts
        if drawn and cell.truth in ("OK", "NG"):
            kept["reviewed"] += cell.parts
        if cell.truth == "NG":
            kept["defects" if drawn else "otherwise"] += cell.parts
    return corrected_rates(
        [
            Stratum(VerdictCode(verdict), chance, c["parts"], c["reviewed"], c["defects"], c["otherwise"])
            for (verdict, chance), c in sorted(counts.items())
        ]
    )


def _models(cells: Iterable[_Cell], models: Mapping[str, StoredModel]) -> tuple[ModelUse, ...]:
    names = ("model_name", "model_version", "fingerprint", "model_status", "policy_version", "provider")
    groups: dict[tuple[str, ...], list[_Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.facts[name] for name in names), []).append(cell)
    found = []
    for (name, version, fingerprint, status, policy, provider), mine in sorted(groups.items()):
        parts = _sum(mine)
        mean, longest = sum(cell.duration_ms for cell in mine) / parts, max(cell.longest_ms for cell in mine)
        known = models[fingerprint]
        today = (known.status, known.status_by, _golden_in_words(known.golden_result))
        found.append(ModelUse(name, version, fingerprint, status, *today, policy, provider, parts, mean, longest))
    return tuple(found)
