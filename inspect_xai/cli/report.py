"""`inspect-xai report`: a day of inspections as a page and as Parquet."""

from datetime import datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.app import send_alerts_of, write_report_of, yesterday
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, day_asked, echo, print_json

if TYPE_CHECKING:
    pass


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=Panel.DESK)(report)


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
    """Write the report of a day, a shift or any days.

    It says what was judged, flagged and why, and what changed. One HTML page with everything inside it, report.json
    with its numbers, summary.txt for mail or chat, and one Parquet file per whole day. Only the database is read, and
    the archived pictures for thumbnails; no model runs. Each number stands beside that of the period before, which is
    as long.

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
