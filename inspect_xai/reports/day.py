"""One day (or several) of inspections as one HTML page that needs nothing beside it, and as Parquet.

    OUT/2026-11-22/report.html          pictures inside, no scripts, nothing loaded from anywhere
    OUT/2026-11-22/manifest.json        written last: counts, and the hash of the page
    OUT/inspections/day=2026-11-22/inspections.parquet

A day is that of capture in the plant's zone: what was made that day, whenever it was inspected. Everything comes from
the database; pictures come from where the database says they were put.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from inspect_xai import __version__
from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.maths import colour
from inspect_xai.pipeline.pictures import PictureLimits
from inspect_xai.pipeline.remote import read_archived
from inspect_xai.records import Reason, Status, VerdictCode
from inspect_xai.reports import words
from inspect_xai.reports.folder import replaced_folder
from inspect_xai.reports.parquet import write_parquet
from inspect_xai.storage.store import Store
from inspect_xai.storage.stored import InspectionSummary, StoredInspection

SCHEMA_VERSION = 1
_THUMBNAIL_PX = (300, 420)  # most rows and columns of a thumbnail; 120 of them make a page of about 2 MB
_JPEG_QUALITY = 82
_MOST_DAYS = 366
_CODES = (VerdictCode.OK, VerdictCode.NG, VerdictCode.UNSURE)


@dataclass(frozen=True, slots=True)
class Report:
    """What was written and what it counts; `flagged` parts are NG or UNSURE, `shown` of them are on the page."""

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


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a table of counts."""

    names: tuple[str, ...]
    ok: int
    ng: int
    unsure: int

    @property
    def total(self) -> int:
        return self.ok + self.ng + self.unsure

    @property
    def flagged_share(self) -> float:
        return (self.ng + self.unsure) / self.total


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
    store: Store, *, first: date, last: date, out: Path, time_zone: str = "UTC", thumbnails: int = 60
) -> Report:
    """Write the report of some days; what stood there for the same days is replaced.

    Args:
        store: Where everything is read from.
        first: First day, in the plant's zone.
        last: Last day, included.
        out: Folder of all reports.
        time_zone: The plant's zone.
        thumbnails: Most flagged parts shown.

    Raises:
        SettingsError: If the days are out of order, or more than a year.
        StoreError: If the database cannot be read.
    """
    if not 0 <= (last - first).days < _MOST_DAYS:
        raise SettingsError(f"from {first} to {last}", expected="a first day and a last day, at most a year apart")
    zone = ZoneInfo(time_zone)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    by_day = {
        day: store.day(_begin(day, zone), _begin(day + timedelta(days=1), zone), by="captured_at") for day in days
    }
    rows = [row for day in days for row in by_day[day]]
    flagged = sorted((row for row in rows if row.verdict != VerdictCode.OK), key=_urgency)
    cards = [_card(store, row, zone) for row in flagged[:thumbnails]]
    name = first.isoformat() if first == last else f"{first.isoformat()}_{last.isoformat()}"
    totals = Counter(row.verdict for row in rows)
    report = Report(
        page=out / name / "report.html",
        parquet=tuple(write_parquet(by_day[day], day=day, out=out) for day in days),
        first=first,
        last=last,
        inspections=len(rows),
        ok=totals[VerdictCode.OK],
        ng=totals[VerdictCode.NG],
        unsure=totals[VerdictCode.UNSURE],
        flagged=len(flagged),
        shown=len(cards),
    )
    page = _render(report, rows, cards, zone)
    with replaced_folder(report.page.parent) as work:
        (work / "report.html").write_text(page, encoding="utf-8")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "inspect_xai": __version__,
            **{key: value for key, value in asdict(report).items() if key not in ("page", "parquet")},
            "files": {"report.html": hashlib.sha256(page.encode()).hexdigest()},
        }
        (work / "manifest.json").write_text(json.dumps(manifest, default=str, indent=2) + "\n", encoding="utf-8")
    return report


def _begin(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time.min, zone).astimezone(UTC)


def _urgency(row: InspectionSummary) -> tuple[bool, float, int]:
    """Sort NG first, and the furthest over its threshold first; pictures without a score come before near misses."""
    return row.verdict != VerdictCode.NG, row.threshold - row.score, row.inspection_id


def _render(report: Report, rows: Sequence[InspectionSummary], cards: Sequence[_Card], zone: ZoneInfo) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    flagged = [row for row in rows if row.verdict != VerdictCode.OK]
    by_hour = report.first == report.last
    return environment.get_template("day.html").render(
        report=report,
        zone=zone.key,
        written=_local(datetime.now(UTC), zone),
        version=__version__,
        bars=_bars(rows, zone, by_hour=by_hour),
        bar_unit="hour" if by_hour else "day",
        stations=_count(rows, lambda row: (row.line or "unknown", row.station or "unknown")),
        labels=_count([row for row in flagged if row.label], lambda row: (row.label,)),
        origins=_count(
            rows,
            lambda row: (
                f"{row.model_name} {row.model_version}", row.fingerprint[:12], row.model_status, row.policy_version,
                row.run_id[:12], row.provider,
            ),
        ),
        cards=cards,
        reasons={code: words.REASONS[code] for code in Reason if any(row.reason == code for row in flagged)},
        statuses={code: words.STATUSES[code] for code in Status if any(row.explanation_status == code for row in rows)},
        no_cause=words.NO_CAUSE,
    )  # fmt: skip


def _count(rows: Sequence[InspectionSummary], names: Callable[[InspectionSummary], tuple[str, ...]]) -> list[_Row]:
    counts = Counter((names(row), row.verdict) for row in rows)
    return [_Row(key, *(counts[key, code] for code in _CODES)) for key in sorted({key for key, _ in counts})]


def _bars(rows: Sequence[InspectionSummary], zone: ZoneInfo, *, by_hour: bool) -> list[dict[str, Any]]:
    """Return one bar per hour (or day) from the first to the last with pictures, heights as shares of the highest."""

    def slot(row: InspectionSummary) -> Any:
        moment = row.captured_at.astimezone(zone)
        return moment.hour if by_hour else moment.date()

    counts = Counter((slot(row), row.verdict) for row in rows)
    present = sorted({key for key, _ in counts})
    if not present:
        return []
    slots: list[Any] = list(range(present[0], present[-1] + 1)) if by_hour else present
    highest = max(sum(counts[key, code] for code in _CODES) for key in slots)
    return [
        {"name": f"{key:02d}" if by_hour else f"{key:%d %b}"}
        | {code.value.lower(): counts[key, code] for code in _CODES}
        | {f"{code.value.lower()}_share": counts[key, code] / highest for code in _CODES}
        for key in slots
    ]


def _card(store: Store, row: InspectionSummary, zone: ZoneInfo) -> _Card:
    stored = store.get(row.inspection_id, maps=True)
    explanation = stored.explanation
    picture, missing = _archived(stored)
    overlay = ""
    if picture is not None and explanation is not None and explanation.status is Status.EXPLAINED:
        if explanation.fused is None:
            missing = "the map was deleted by retention"
        elif explanation.fused.shape != picture.shape[:2]:
            missing = "the map belongs to a picture of another size"
        else:
            overlay = _data_uri(colour.overlay(picture, explanation.fused, regions=explanation.regions))
    return _Card(
        row=row,
        stored=stored,
        captured=_local(row.captured_at, zone),
        reason=words.REASONS[Reason(row.reason)],
        status=words.STATUSES[explanation.status] if explanation else "",
        notes=tuple(words.note_in_words(note) for note in explanation.notes) if explanation else (),
        picture="" if picture is None else _data_uri(picture),
        overlay=overlay,
        missing=missing,
    )


def _archived(stored: StoredInspection) -> tuple[NDArray[np.uint8] | None, str]:
    """Return the picture from the archive as the model saw it, or why there is none."""
    capture = stored.capture
    if not capture.height_px:
        return None, "the file holds no picture"
    limits = PictureLimits(**_as_mapping(stored.run.settings.get("limits")))
    try:
        picture = read_archived(capture.archived_to, limits=limits)
    except PictureError as error:
        return None, f"the picture is missing from the archive: {error}"
    if picture.sha256 != capture.sha256:
        return None, f"the file at {capture.archived_to} is another picture than the one inspected"
    return picture.pixels, ""


def _as_mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _data_uri(picture: NDArray[np.uint8]) -> str:
    """Return a small JPEG of an RGB or gray picture that stands inside the page."""
    rows, columns = picture.shape[:2]
    scale = min(1.0, _THUMBNAIL_PX[0] / rows, _THUMBNAIL_PX[1] / columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    bgr = small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _local(moment: datetime, zone: ZoneInfo) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S}"
