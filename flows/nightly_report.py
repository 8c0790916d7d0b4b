"""The report of the day that ended last, as a Prefect flow to be scheduled after midnight in the plant's zone.

python flows/nightly_report.py line.toml
"""

import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # read when prefect is imported
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from inspect_xai.cli.report import write_report_of, yesterday
from inspect_xai.errors import DatabaseAwayError
from inspect_xai.settings import load_settings

BACK_OFF_S: list[float] = [30, 120, 600]


@flow(name="nightly-report")
def nightly_report(settings: str | None = None, db: str | None = None, day: date | None = None) -> dict[str, Any]:
    """Write the report of `day`, by default of yesterday; writing it again replaces it."""
    file = Path(settings) if settings else None
    chosen = day or yesterday(load_settings(file, db=db)).date()
    return write_day(settings=settings, db=db, day=chosen)


def _database_is_away(_task: object, _run: object, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), DatabaseAwayError)


@task(
    name="write-day",
    retries=len(BACK_OFF_S),
    retry_delay_seconds=BACK_OFF_S,
    retry_condition_fn=_database_is_away,
    cache_policy=NO_CACHE,
)
def write_day(*, settings: str | None, db: str | None, day: date) -> dict[str, Any]:
    """Write one day's page and Parquet file; plain values come back."""
    report = write_report_of(load_settings(Path(settings) if settings else None, db=db), first=day, last=day)
    return {
        "day": day.isoformat(),
        "page": str(report.page),
        "summary": (report.page.parent / "summary.txt").read_text(encoding="utf-8"),
        "inspections": report.inspections,
        "ng": report.ng,
        "unsure": report.unsure,
    }


if __name__ == "__main__":
    nightly_report(sys.argv[1] if len(sys.argv) > 1 else None)
