"""`inspect-xai report`: a day of inspections as a page and as Parquet."""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, day_asked, echo, print_json, store_of

if TYPE_CHECKING:
    from inspect_xai.pipeline.alerts import Alert, AlertRule, Delivery
    from inspect_xai.reports.day import Report
    from inspect_xai.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(report)


def report(
    db: DatabaseOption = None,
    on: Annotated[
        datetime | None,
        typer.Option("--date", parser=day_asked, metavar="YYYY-MM-DD", help="The day of capture. Default: yesterday."),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option("--since", parser=day_asked, metavar="YYYY-MM-DD", help="First day.")
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option("--until", parser=day_asked, metavar="YYYY-MM-DD", help="Last day. Default: the first."),
    ] = None,
    shift: Annotated[str, typer.Option("--shift", help="Only this shift, as named with the pictures.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for one folder per day.")] = None,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Also print the page as A4 PDF with this machine's Chromium.")
    ] = False,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", help="The plant's zone, in which a day begins and ends.")
    ] = None,
    alerts: Annotated[
        bool, typer.Option("--alerts", help="Send alarms that were not sent yet, as policy and settings say.")
    ] = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a day, a shift or any days: what was judged, flagged and why, and what changed.

    One HTML page with everything inside it, report.json with its numbers, summary.txt for mail or chat, and one
    Parquet file per whole day. Only the database is read, and the archived pictures for thumbnails; no model runs.
    Each number stands beside that of the period before, which is as long.

    Example: inspect-xai report --db sqlite:///inspections.db --date 2026-11-22 --out reports
    Example: inspect-xai report --since 2026-11-16 --until 2026-11-22 --shift EARLY --pdf
    """
    from inspect_xai.settings import load_settings

    if on and (since or until):
        raise typer.BadParameter("give either --date or --since and --until")
    chosen = load_settings(settings, db=db, report={"out": out, "time_zone": time_zone})
    last = (on or until or since or yesterday(chosen)).date()
    first = (since or datetime.combine(last, time.min)).date()
    written = write_report_of(chosen, first=first, last=last, shift=shift)
    sent = send_alerts_of(chosen, written.alerts) if alerts else None
    printed = None
    if pdf:
        from inspect_xai.reports.pdf import print_pdf

        printed = print_pdf(written.page)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(written) | {"pdf": printed, "sent": None if sent is None else sent.sent})
        return
    echo(
        f"{written.inspections} inspections: {written.ok} OK, {written.ng} NG, {written.unsure} UNSURE; "
        f"{written.shown} of {written.flagged} flagged parts shown"
    )
    echo(f"page     {written.page}")
    if printed:
        echo(f"pdf      {printed}")
    for channel, ids in sent.sent.items() if sent else ():
        if ids:
            echo(f"alerts   {len(ids)} by {channel.value}")
    for path in written.parquet:
        echo(f"parquet  {path}")


def yesterday(settings: "Settings") -> datetime:
    """Return a moment of the day that ended last in the plant's zone."""
    return datetime.now(ZoneInfo(settings.report.time_zone)) - timedelta(days=1)


def write_report_of(settings: "Settings", *, first: date, last: date, shift: str = "") -> "Report":
    """Write the report that the settings describe."""
    from inspect_xai.reports.day import write_report

    chosen = settings.report
    with store_of(settings) as store:
        return write_report(
            store,
            first=first,
            last=last,
            out=chosen.out,
            time_zone=chosen.time_zone,
            thumbnails=chosen.thumbnails,
            shift=shift,
            rules=_rules(settings),
            window_ms=chosen.window_ms,
        )


def send_alerts_of(settings: "Settings", alerts: "Sequence[Alert]") -> "Delivery":
    """Send the alarms of a report that were not sent yet.

    Raises:
        AlertError: A channel did not take them, or is not set up.
    """
    from inspect_xai.pipeline.alerts import send_alerts
    from inspect_xai.storage.watchbook import Watchbook

    with store_of(settings) as store:
        return send_alerts(Watchbook(store), alerts, rules=_rules(settings), outlets=settings.alert.outlets())


def _rules(settings: "Settings") -> "tuple[AlertRule, ...]":
    """Whose alarms are, as the plant's policy says; without one, the quality department's."""
    if settings.line.policy is None:
        return ()
    from inspect_xai.pipeline.policy import read_policy

    return read_policy(settings.line.policy).alert
