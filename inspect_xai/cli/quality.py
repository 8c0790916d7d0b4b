"""`inspect-xai drift`, `alarm` and `model calibrate`: what the quality department sets and answers for."""

from datetime import date, datetime
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from inspect_xai.app import store_of, who
from inspect_xai.cli import model
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import ByOption, DatabaseOption, JsonOption, SettingsOption, day_asked, echo, print_json

SinceOption = Annotated[
    datetime, typer.Option("--since", parser=day_asked, metavar="YYYY-MM-DD", help="First day, in the plant's zone.")
]
UntilOption = Annotated[datetime, typer.Option("--until", parser=day_asked, metavar="YYYY-MM-DD", help="Last day.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    drift = typer.Typer(no_args_is_help=True, help="Set what later days are compared with.")
    drift.command("baseline")(baseline)
    app.add_typer(drift, name="drift", rich_help_panel=Panel.DESK)
    alarms = typer.Typer(no_args_is_help=True, help="List and acknowledge the alarms of reports.")
    alarms.command("list")(list_)
    alarms.command("acknowledge")(acknowledge)
    app.add_typer(alarms, name="alarm", rich_help_panel=Panel.DESK)
    model.commands.command()(calibrate)


def baseline(
    since: SinceOption,
    until: UntilOption,
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn the drift baseline from quiet days.

    Every later day is compared with them. A month is usual; at least 10 days with 8 parts are needed, per station, and
    per shift for a shift to be watched by itself. The baseline stands in the database until another is set; the ledger
    says who chose it.

    Example: inspect-xai drift baseline --since 2026-10-01 --until 2026-10-31 --by "Ada, quality"
    """
    from inspect_xai.errors import StudyError
    from inspect_xai.reports.drift import learn_from, to_plain
    from inspect_xai.reports.period import Period
    from inspect_xai.settings import load_settings
    from inspect_xai.statistics.drift import FEWEST_DAYS, DriftRules
    from inspect_xai.storage.quality_records import QualityRecords
    from inspect_xai.storage.report_queries import ReportQueries

    chosen = load_settings(settings, db=db)
    first, last = since.date(), until.date()
    period = Period(first, last, ZoneInfo(chosen.report.time_zone))
    with store_of(chosen) as store:
        learnt, most = learn_from(ReportQueries(store.database), period, first=first, last=last)
        if not learnt.quiet:
            raise StudyError(
                f"no station has more than {most} days with {DriftRules().fewest} parts from {first} to {last}",
                expected=f"{FEWEST_DAYS}",
                remedy="choose a longer period",
            )
        QualityRecords(store.database).set_baseline(first, last, content=to_plain(learnt), by=who(by))
    strata = sorted({cell.stratum for cell in learnt.quiet})
    if as_json:
        print_json({"first": first, "last": last, "cells": len(learnt.quiet), "strata": strata})
        return
    echo(f"{len(learnt.quiet)} features learnt from {first} to {last}:")
    for stratum in strata:
        echo(f"  {' '.join(stratum)}: {', '.join(cell.feature for cell in learnt.quiet if cell.stratum == stratum)}")


def list_(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """List the alarms of the newest reports.

    Each with its owner and who acknowledged it.

    Example: inspect-xai alarm list --settings line.toml
    """
    from inspect_xai.reports.index import reports_in
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.quality_records import QualityRecords

    chosen = load_settings(settings, db=db)
    with store_of(chosen) as store:
        seen = QualityRecords(store.database).acknowledged()
    alarms = {alarm["alarm_id"]: alarm for report in reports_in(chosen.report.out) for alarm in report.alarms}
    if as_json:
        print_json([alarm | {"seen": seen.get(name)} for name, alarm in alarms.items()])
        return
    for name, alarm in alarms.items():
        status = f"seen by {seen[name].by}: {seen[name].note}" if name in seen else "open"
        echo(f"{name}  {alarm['owner']}  {status}\n    {alarm['text']}")


def acknowledge(
    alarm_id: Annotated[str, typer.Argument(help="As the report shows it.")],
    note: Annotated[str, typer.Option("--note", help="What comes of it.")] = "",
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
) -> None:
    """Acknowledge an alarm.

    Somebody looks after it: that goes to the ledger, and later reports show it.

    Example: inspect-xai alarm acknowledge 3f9a0c12b7de --note "lamp ordered" --by "Bob, maintenance"
    """
    from inspect_xai.errors import NotFoundError
    from inspect_xai.reports.index import reports_in
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.quality_records import QualityRecords

    chosen = load_settings(settings, db=db)
    known = {alarm["alarm_id"] for report in reports_in(chosen.report.out) for alarm in report.alarms}
    if alarm_id not in known:
        raise NotFoundError(
            f"no report in {chosen.report.out} has an alarm {alarm_id}", remedy="see: inspect-xai alarm list"
        )
    with store_of(chosen) as store:
        made = QualityRecords(store.database).acknowledge(alarm_id, by=who(by), note=note)
    echo(f"{alarm_id} acknowledged by {made.by}")


def calibrate(
    fingerprint: Annotated[
        str, typer.Argument(metavar="MODEL", help="Fingerprint of a registered model, or its beginning.")
    ],
    since: SinceOption,
    until: Annotated[
        datetime | None,
        typer.Option("--until", parser=day_asked, metavar="YYYY-MM-DD", help="Last day. Default: today."),
    ] = None,
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a model's scores to people's answers.

    A score of 0.9 then means nine in ten; the fit is kept with the model. Reports then say how many escapes are to be
    expected without any label. Fitted on flagged parts with an answer and the random share of the OK parts, each
    weighed by its chance to be reviewed: a rising curve from 200 reviews of each kind, one temperature with fewer, and
    none below 20.

    Example: inspect-xai model calibrate 8c1f02 --since 2026-10-01 --until 2026-10-31
    """
    import numpy as np

    from inspect_xai.reports.calibration import calibrate as fitted
    from inspect_xai.reports.period import Period
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.report_queries import ReportQueries

    chosen = load_settings(settings, db=db)
    zone = ZoneInfo(chosen.report.time_zone)
    last: date = until.date() if until else datetime.now(zone).date()
    period = Period(since.date(), last, zone)
    with store_of(chosen) as store:
        registered = store.registry.model(fingerprint)
        reviews = ReportQueries(store.database).reviewed_scores(*period.span, model=registered)
        content = fitted(
            np.array([review.probability for review in reviews]),
            np.array([review.is_defect for review in reviews], dtype=np.bool_),
            weights=np.array([1 / review.chance for review in reviews]),
        )
        content |= {"since": period.first.isoformat(), "until": period.last.isoformat()}
        store.registry.set_calibration(registered.fingerprint, content, by=who(by))
    if as_json:
        print_json(content)
        return
    echo(
        f"{registered.name} {registered.version}: {content['kind']} on {content['reviews']} reviews "
        f"({content['defects']} defects); expected calibration error {100 * content['expected_error_before']:.2f} % "
        f"before, {100 * content['expected_error']:.2f} % after"
    )
