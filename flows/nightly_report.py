"""The report of the day that ended last, as a Prefect flow to be scheduled after midnight in the plant's zone.

python -m flows.nightly_report line.toml
"""

import sys
from datetime import date
from pathlib import Path
from typing import Any

from prefect import flow

from flows.rules import leave_behind, tried_again
from inspect_xai.cli.report import write_report_of, yesterday
from inspect_xai.settings import load_settings


@flow(name="nightly-report")
def nightly_report(settings: str | None = None, db: str | None = None, day: date | None = None) -> dict[str, Any]:
    """Write the report of `day`, by default of yesterday; writing it again replaces it."""
    file = Path(settings) if settings else None
    chosen = day or yesterday(load_settings(file, db=db)).date()
    written = write_day(settings=settings, db=db, day=chosen)
    leave_behind("nightly-report", written, summary=written["summary"], page=Path(written["page"]))
    return written


@tried_again("write-day")
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
