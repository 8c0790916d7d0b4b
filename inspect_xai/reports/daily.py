"""A day, a shift or any period as one HTML page that needs nothing beside it, as JSON, as a sentence and as Parquet.

    OUT/2026-11-22/report.html          pictures inside, no scripts, nothing loaded from anywhere
    OUT/2026-11-22/report.json          all numbers of the page
    OUT/2026-11-22/summary.txt          one paragraph, for mail or chat
    OUT/2026-11-22/manifest.json        written last: counts, and the hashes of the files
    OUT/inspections/day=2026-11-22/inspections.parquet

A day is that of capture in the plant's zone: what was made that day, whenever it was inspected. Everything comes from
the database; pictures come from where the database says they were put. The same record gives the
same files, but for the time of writing on the page.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from inspect_xai import __version__
from inspect_xai.errors import NotFoundError, SettingsError
from inspect_xai.files import json_form, replaced_folder
from inspect_xai.policy import AlertRule
from inspect_xai.records import Reason, Status, VerdictCode
from inspect_xai.reports import charts, html, labels
from inspect_xai.reports.alarms import DRIFT_WORDS, Alarm, alarms_of, alerts_of, estimate_in_words, reported, summary_of
from inspect_xai.reports.alerts import Alert
from inspect_xai.reports.calibration import Expected, expected_of
from inspect_xai.reports.cohorts import CohortPicture, Odd, cohorts_of
from inspect_xai.reports.day_numbers import LEAST_DAYS, Numbers, numbers_of
from inspect_xai.reports.drift import PICTURE, TOGETHER, Drift, drift_of
from inspect_xai.reports.parquet import write_parquet
from inspect_xai.reports.period import Period
from inspect_xai.reports.thumbnails import archived, data_uri, pictures_of
from inspect_xai.statistics.drift import DriftRules
from inspect_xai.storage.quality_records import QualityRecords
from inspect_xai.storage.report_queries import ReportQueries
from inspect_xai.storage.results import InspectionSummary, StoredInspection
from inspect_xai.storage.store import Store

SCHEMA_VERSION = 3
_MOST_PICTURE_BYTES = 2_200_000  # of the flagged parts, as written on the page
_OF_THE_PICTURE = frozenset({PICTURE, *TOGETHER[PICTURE]})  # drift of these is seen without a map
_MOST_BARS = 62
_MOST_SHIFTS_NAMED = 20
_CODES = (VerdictCode.OK, VerdictCode.NG, VerdictCode.UNSURE)


@dataclass(frozen=True, slots=True)
class Report:
    """What was written and what it counts; `flagged` parts are NG or UNSURE, `shown` of them are on the page.

    `alerts` are its alarms as they are sent.
    """

    page: Path
    parquet: tuple[Path, ...]
    first: date
    last: date
    inspections: int
    ok: int
    ng: int
    unsure: int
    flagged: int
    shown: int
    alerts: tuple[Alert, ...]


@dataclass(frozen=True, slots=True)
class _Proof:
    """Pictures that show a drift alarm: what drifted, the most changed parts, the usual one, as (caption, data URI)."""

    what: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Card:
    """One flagged part as the page shows it; pictures are data URIs, empty where `missing` says why there is none."""

    row: InspectionSummary
    stored: StoredInspection
    captured: str
    reason: str
    status: str
    notes: tuple[str, ...]
    picture: str
    overlay: str
    missing: str


def write_report(
    store: Store,
    *,
    first: date,
    last: date,
    out: Path,
    time_zone: str = "UTC",
    thumbnails: int = 60,
    shift: str = "",
    rules: Sequence[AlertRule] = (),
    window_ms: float = 0.0,
) -> Report:
    """Write the report of some days; what stood there for the same days is replaced.

    Args:
        store: Where everything is read from.
        first: First day, in the plant's zone.
        last: Last day, included.
        out: Folder of all reports.
        time_zone: The plant's zone.
        thumbnails: Most flagged parts shown; fewer where their pictures would make the page heavy.
        shift: Only what was captured in this shift; no Parquet is written then, which holds whole days.
        rules: Of the policy: who owns each alarm.
        window_ms: Time the line has for a part; 0: not known.

    Raises:
        SettingsError: If the days are out of order, or more than a year, or nothing was ever captured in the shift.
        StoreError: If the database cannot be read.
    """
    period = Period(first, last, ZoneInfo(time_zone), shift)
    figures = ReportQueries(store.database, shift=shift or None)
    if shift:
        _refuse_unknown_shift(shift, figures.shifts())
    seen = _look_through(figures, period, out=out, most=thumbnails)
    book, models = QualityRecords(store.database), store.registry.models()
    numbers = numbers_of(figures, period, models={each.fingerprint: each for each in models}, window_ms=window_ms)
    baseline = book.baseline()
    drift = drift_of(figures, period, baseline=baseline)
    alarms = alarms_of(numbers, period, drift, rules=rules, seen=book.acknowledged())
    expected = expected_of(figures, period, models)
    against = None if baseline is None else Period(baseline.first, baseline.last, period.zone, shift)
    cohorts, odd = cohorts_of(
        figures, period, photograph_of=lambda number: archived(store.get(number))[0], against=against
    )
    cards = _cards(store, seen.flagged, period.zone)
    counts = {each.name: each.count for each in numbers.headline}
    report = Report(
        page=out / period.name / "report.html",
        parquet=tuple(seen.parquet),
        first=first,
        last=last,
        inspections=counts["inspected"],
        ok=counts["OK"],
        ng=counts["NG"],
        unsure=counts["UNSURE"],
        flagged=counts["NG"] + counts["UNSURE"],
        shown=len(cards),
        alerts=tuple(alerts_of(alarms, period)),
    )
    facts = {"schema_version": SCHEMA_VERSION, "period": _named(period), "alarms": alarms, "numbers": numbers}
    facts |= {
        "expected": expected,
        "cohorts": [each.numbers for each in cohorts],
        "deserve_a_look": odd,
        "drift": drift,
    }
    files = {
        "report.html": _render(
            report,
            period,
            numbers,
            alarms=alarms,
            expected=expected,
            cohorts=cohorts,
            odd=_odd_parts(store, odd),
            drift=drift,
            proofs=_proofs(store, drift, period),
            cards=cards,
            seen=seen,
        ),
        "report.json": json.dumps(facts, default=json_form, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "summary.txt": summary_of(numbers, alarms, period) + "\n",
    }
    with replaced_folder(report.page.parent) as work:
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "inspect_xai": __version__,
            **{key: value for key, value in asdict(report).items() if key not in ("page", "parquet", "alerts")},
            "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()},
        }
        (work / "manifest.json").write_text(json.dumps(manifest, default=str, indent=2) + "\n", encoding="utf-8")
    return report


@dataclass(slots=True)
class _Seen:
    """What a walk through the rows gathers: day by day, so that a year needs the memory of a day."""

    parquet: list[Path]
    flagged: list[InspectionSummary]
    slots: Counter[tuple[Any, str]]
    reasons: set[str]
    statuses: set[str]


def _refuse_unknown_shift(shift: str, known: Sequence[str]) -> None:
    if shift not in known:
        raise SettingsError(
            f"nothing was ever captured in the shift {shift!r}",
            expected=f"one of {', '.join(known[:_MOST_SHIFTS_NAMED])}" if known else "pictures that name a shift",
            remedy="spell it as the pictures do",
        )


def _look_through(figures: ReportQueries, period: Period, *, out: Path, most: int) -> _Seen:
    seen = _Seen([], [], Counter(), set(), set())
    unit = _bar_unit(period)
    for day in period.days:
        rows = figures.rows(*period.span_of(day))
        if not period.shift:
            seen.parquet.append(write_parquet(rows, day=day, out=out))
        flagged = [row for row in rows if row.verdict != VerdictCode.OK]
        seen.flagged = heapq.nsmallest(most, [*seen.flagged, *flagged], key=_urgency)
        seen.reasons |= {row.reason for row in flagged}
        seen.statuses |= {row.explanation_status for row in rows}
        for row in rows:
            slot = row.captured_at.astimezone(period.zone).hour if unit == "hour" else day
            if unit == "month":
                slot = day.replace(day=1)
            seen.slots[slot, row.verdict] += 1
    return seen


def _named(period: Period) -> dict[str, Any]:
    return {"first": period.first, "last": period.last, "shift": period.shift, "time_zone": period.zone.key}


def _urgency(row: InspectionSummary) -> tuple[bool, float, int]:
    """Sort NG first, and the furthest over its threshold first; pictures without a score come before near misses."""
    return row.verdict != VerdictCode.NG, row.threshold - row.score, row.inspection_id


def _render(
    report: Report,
    period: Period,
    numbers: Numbers,
    *,
    alarms: Sequence[Alarm],
    expected: Sequence[Expected],
    cohorts: Sequence[CohortPicture],
    odd: Sequence[tuple[Odd, str, str]],
    drift: Drift,
    proofs: Sequence[_Proof],
    cards: Sequence[_Card],
    seen: _Seen,
) -> str:
    environment = html.environment()
    environment.globals |= {
        "control_chart": charts.control_chart,
        "pareto_chart": charts.pareto_chart,
        "reliability_chart": charts.reliability_chart,
        "verdict_chart": charts.verdict_chart,
        "data_uri": data_uri,
        "in_words": estimate_in_words,
    }
    return environment.get_template("day.html").render(
        report=report,
        period=period,
        numbers=numbers,
        alarms=alarms,
        expected=expected,
        proofs=proofs,
        charts=[chart for chart in numbers.charts if chart.days > 1],
        least_days=LEAST_DAYS,
        fewest_parts=DriftRules().fewest,
        written=_local(datetime.now(UTC), period.zone),
        version=__version__,
        bars=_bars(seen.slots, unit=_bar_unit(period)),
        bar_unit=_bar_unit(period),
        cohorts=cohorts,
        odd=odd,
        drift=drift,
        cards=cards,
        reasons={code: labels.REASONS[code] for code in Reason if code in seen.reasons},
        statuses={code: labels.STATUSES[code] for code in Status if code in seen.statuses},
        no_cause=labels.NO_CAUSE,
    )


def _bar_unit(period: Period) -> str:
    """Return what one bar stands for, so that each bar can be read."""
    days = (period.last - period.first).days + 1
    return "hour" if days == 1 else "day" if days <= _MOST_BARS else "month"


def _bars(slots: Counter[tuple[Any, str]], *, unit: str) -> list[charts.Bar]:
    """Return one bar per hour, day or month, from the first to the last with pictures."""
    present = sorted({key for key, _ in slots})
    if not present:
        return []
    shown: list[Any] = list(range(present[0], present[-1] + 1)) if unit == "hour" else present
    form = {"hour": "{:02d}", "day": "{:%d %b}", "month": "{:%b}"}[unit]
    return [charts.Bar(form.format(key), *(slots[key, code] for code in _CODES)) for key in shown]


def _odd_parts(store: Store, odd: Sequence[Odd]) -> list[tuple[Odd, str, str]]:
    """Each with its overlay as a data URI, or why there is none."""
    found = []
    for each in odd:
        _, overlay, missing = pictures_of(store.get(each.inspection_id, maps=True))
        found.append((each, overlay, missing))
    return found


def _proofs(store: Store, drift: Drift, period: Period, *, most: int = 6) -> list[_Proof]:
    """Return the pictures of the first drift alarms; one that retention deleted is left out."""
    found = []
    for at in reported(drift, period)[:most]:
        evidence, pictures = drift.evidence[at], list[tuple[str, str]]()
        named = [("usual in the baseline", evidence.usual), *(("most changed", each) for each in evidence.changed)]
        for caption, number in named:
            try:
                stored = store.get(number, maps=True)
            except NotFoundError:
                continue
            picture, overlay, _ = pictures_of(stored)
            drawn = picture if evidence.cell.feature in _OF_THE_PICTURE else overlay or picture
            if drawn:
                pictures.append((f"{caption}: {stored.capture.part.serial}", drawn))
        found.append(
            _Proof(f"{' '.join(evidence.cell.stratum)}: {DRIFT_WORDS[evidence.cell.feature]}", tuple(pictures))
        )
    return found


def _cards(store: Store, flagged: Sequence[InspectionSummary], zone: ZoneInfo) -> list[_Card]:
    """Return the parts shown: as many as keep the page small enough for mail."""
    cards: list[_Card] = []
    weight = 0
    for row in flagged:
        card = _card(store, row, zone)
        weight += len(card.picture) + len(card.overlay)
        if weight > _MOST_PICTURE_BYTES:
            break
        cards.append(card)
    return cards


def _card(store: Store, row: InspectionSummary, zone: ZoneInfo) -> _Card:
    stored = store.get(row.inspection_id, maps=True)
    explanation = stored.explanation
    picture, overlay, missing = pictures_of(stored)
    return _Card(
        row=row,
        stored=stored,
        captured=_local(row.captured_at, zone),
        reason=labels.REASONS[Reason(row.reason)],
        status=labels.STATUSES[explanation.status] if explanation else "",
        notes=tuple(labels.note_in_words(note) for note in explanation.notes) if explanation else (),
        picture=picture,
        overlay=overlay,
        missing=missing,
    )


def _local(moment: datetime, zone: ZoneInfo) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S}"
