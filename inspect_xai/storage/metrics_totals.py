"""Running totals of all that was recorded, for a monitor that asks every few seconds: it reads only what is new."""

import threading
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select

from inspect_xai.storage.database import Database
from inspect_xai.storage.tables import CaptureRow, ExplanationRow, InspectionRow


class Group(NamedTuple):
    """A group of inspections; `explained` is the explanation's status, empty where there is none."""

    line: str
    station: str
    verdict: str
    explained: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the first row: all by group.

    Attributes:
        inspections: Their number.
        failures: How many of them carry a failure.
        passes: Forward passes spent on explanations.
        seconds: Wall time of inspecting, with the explaining.
        explaining_s: Wall time of explaining alone.
        newest_at: When the newest picture was inspected; None: nothing was recorded yet.
    """

    inspections: Counter[Group]
    failures: Counter[Group]
    passes: Counter[Group]
    seconds: dict[Group, float]
    explaining_s: dict[Group, float]
    newest_at: datetime | None


class TotalsReader:
    """Adds up what was recorded since it was asked last.

    Rows that retention deletes stay counted until the process restarts, as a monitor expects of a counter. Writers
    take turns (`Database.write`), so that no row appears below one that was counted.

    Args:
        database: An open one; it is not closed here.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._last_id = 0
        self._totals = Totals(Counter(), Counter(), Counter(), {}, {}, None)

    def now(self) -> Totals:
        """Return the totals up to the newest row.

        Raises:
            DatabaseAwayError: If the database cannot be reached.
        """
        query = (
            select(
                CaptureRow.line,
                CaptureRow.station,
                InspectionRow.verdict,
                func.coalesce(ExplanationRow.status, ""),
                func.count(),
                func.count(func.nullif(InspectionRow.failure_kind, "")),
                func.coalesce(func.sum(ExplanationRow.forward_passes), 0),
                func.sum(InspectionRow.duration_ms),
                func.coalesce(func.sum(ExplanationRow.duration_ms), 0.0),
                func.max(InspectionRow.inspected_at),
                func.max(InspectionRow.id),
            )
            .join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
            .join(ExplanationRow, ExplanationRow.inspection_id == InspectionRow.id, isouter=True)
            .group_by(
                CaptureRow.line, CaptureRow.station, InspectionRow.verdict, func.coalesce(ExplanationRow.status, "")
            )
        )
        with self._lock:
            with self._database.read() as connection:
                rows = connection.execute(query.where(InspectionRow.id > self._last_id)).all()
            before = self._totals
            inspections, failures, passes = before.inspections.copy(), before.failures.copy(), before.passes.copy()
            seconds, explaining_s, newest_at = dict(before.seconds), dict(before.explaining_s), before.newest_at
            for *names, count, failed, spent, ms, explaining_ms, inspected_at, last_id in rows:
                group = Group(*names)
                inspections[group] += count
                failures[group] += failed
                passes[group] += int(spent)
                seconds[group] = seconds.get(group, 0.0) + ms / 1e3
                explaining_s[group] = explaining_s.get(group, 0.0) + explaining_ms / 1e3
                newest_at = max(newest_at, inspected_at) if newest_at else inspected_at
                self._last_id = max(self._last_id, last_id)
            self._totals = Totals(inspections, failures, passes, seconds, explaining_s, newest_at)
            return self._totals
