"""The report of the day that ended last, as a Prefect flow to be scheduled after midnight in the plant's zone.

python -m flows.nightly_report line.toml
"""

import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.events import emit_event

from flows.common import leave_behind, tried_again
from inspect_xai.app import send_alerts_of, write_report_of, yesterday
from inspect_xai.reports.alerts import Alert
from inspect_xai.settings import load_settings

EVENT = "inspect-xai.alert"


@flow(name="nightly-report")
def nightly_report(
    settings: str | None = None, db: str | None = None, day: date | None = None, *, alerts: bool = True
) -> dict[str, Any]:
    """Write the report of `day`, by default of yesterday; writing it again replaces it.

    Every alarm becomes a Prefect event that automations can act on; with `alerts` those that were not sent yet also go
    the ways that policy and settings name. The report stands even where a way is closed: then the run fails after it.
    """
    file = Path(settings) if settings else None
    chosen = load_settings(file, db=db)
    written = write_day(settings=settings, db=db, day=day or yesterday(chosen).date())
    alarms = written.pop("alerts")
    numbers = {name: value for name, value in written.items() if name != "summary"}
    name, desk = Path(written["page"]).parent.name, chosen.report.desk_url
    link = f"{desk}/reports/{name}" if desk else ""
    leave_behind("nightly-report", numbers, summary=written["summary"], link=link)
    for alert in alarms:
        _emit(alert)
    sent = send_day(alarms, settings=settings, db=db) if alerts else {}
    return written | {"alarms": len(alarms), "sent": sent}


@tried_again("write-day")
def write_day(*, settings: str | None, db: str | None, day: date) -> dict[str, Any]:
    """Write one day's page and Parquet file; plain values come back."""
    report = write_report_of(load_settings(Path(settings) if settings else None, db=db), first=day, last=day)
    return {
        "day": day.isoformat(),
        "page": str(report.page.absolute()),
        "summary": (report.page.parent / "summary.txt").read_text(encoding="utf-8"),
        "inspections": report.inspections,
        "ng": report.ng,
        "unsure": report.unsure,
        "alerts": [asdict(alert) for alert in report.alerts],
    }


@tried_again("send-alerts")
def send_day(alarms: Sequence[dict[str, Any]], *, settings: str | None, db: str | None) -> dict[str, int]:
    """Send what was not sent yet; how many went out by channel."""
    chosen = load_settings(Path(settings) if settings else None, db=db)
    delivery = send_alerts_of(chosen, [Alert(**alarm) for alarm in alarms])
    return {channel.value: len(ids) for channel, ids in delivery.sent.items() if ids}


def _emit(alert: dict[str, Any]) -> None:
    """Emit an event; its id comes from the alarm's, so that the same alarm is the same event."""
    resource = {"prefect.resource.id": f"{EVENT}.{alert['alert_id']}", "prefect.resource.name": alert["topic"]}
    emit_event(EVENT, resource=resource, payload=alert, id=uuid.uuid5(uuid.NAMESPACE_URL, alert["alert_id"]))


if __name__ == "__main__":
    nightly_report(sys.argv[1] if len(sys.argv) > 1 else None)
