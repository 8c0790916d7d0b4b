"""`inspect-xai reinspect`: inspect archived pictures again; new rows stand beside the old ones."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from inspect_xai.app import open_line_of, stopped_by_signals, store_of
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import (
    DatabaseOption,
    JsonOption,
    SettingsOption,
    day_asked,
    echo,
    print_json,
    progress_bar,
)
from inspect_xai.cli.line import print_summary

if TYPE_CHECKING:
    from inspect_xai.line.line import Line
    from inspect_xai.settings import Settings
    from inspect_xai.storage.results import InspectionSummary
    from inspect_xai.storage.store import Store

SinceOption = Annotated[
    datetime,
    typer.Option(
        "--since", parser=day_asked, metavar="YYYY-MM-DD", help="First day of inspection, in the plant's zone."
    ),
]
ArchiveOption = Annotated[Path | None, typer.Option("--archive", help="Where the archive was moved to, if it was.")]
BundleOption = Annotated[Path | None, typer.Option("--bundle", help="The model: a bundle folder.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
_FINDINGS = 1


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=Panel.LINE)(reinspect)


def reinspect(
    since: SinceOption,
    bundle: BundleOption = None,
    db: DatabaseOption = None,
    device: DeviceOption = None,
    archive: ArchiveOption = None,
    explain_missing: Annotated[
        bool,
        typer.Option("--explain-missing", help="Only what the same model judged and did not explain, and explain it."),
    ] = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Inspect archived pictures again.

    With a new model or policy the old rows stay and new ones stand beside them. Every picture recorded since then is
    read from the archive, as the part it was recorded for. Run it again and only what is left is done. Exit code 1:
    pictures are gone or no longer those that were recorded; the log names them.

    With --explain-missing only what the same model judged without an explanation, or explained by another method than
    it does now, is inspected once more: by the rules of today, except that every verdict is explained, and under the
    policy version `VERSION+all`.

    Example: inspect-xai reinspect --bundle new.bundle --since 2026-11-01 --db sqlite:///inspections.db
    Example: inspect-xai reinspect --explain-missing --since 2026-11-01 --bundle tile.bundle --db sqlite:///line.db
    """
    from inspect_xai.records import VerdictCode
    from inspect_xai.settings import load_settings

    def wanted_by(store: "Store", line: "Line") -> "Callable[[InspectionSummary], bool]":
        def wanted(row: "InspectionSummary") -> bool:
            method = line.method_of(row.product, VerdictCode(row.verdict))
            return row.fingerprint == line.fingerprint and not store.is_explained(
                row.sha256, fingerprint=line.fingerprint, method=method
            )

        return wanted

    chosen = load_settings(settings, db=db, bundle=bundle, device=device)
    if explain_missing:
        _again(chosen, since, archive=archive, as_json=as_json, explain_all=True, wanted_by=wanted_by)
    else:
        _again(chosen, since, archive=archive, as_json=as_json)


def _again(
    settings: "Settings",
    since: datetime,
    *,
    archive: Path | None,
    as_json: bool,
    explain_all: bool = False,
    wanted_by: "Callable[[Store, Line], Callable[[InspectionSummary], bool]]" = lambda _store, _line: lambda _row: True,
) -> None:
    from inspect_xai.intake.archive import ArchiveSource
    from inspect_xai.line.line import drain

    start = since.replace(tzinfo=ZoneInfo(settings.report.time_zone))
    with (
        store_of(settings) as store,
        open_line_of(settings, explain_all=explain_all) as line,
        stopped_by_signals() as stop,
        progress_bar(shown=not as_json) as progress,
    ):
        pictures = ArchiveSource(
            store, since=start, wanted=wanted_by(store, line), archive=archive, limits=line.intake.limits
        )
        task = progress.add_task("inspecting again", total=None)
        summary = drain(
            line, pictures, chunk=settings.line.claim_size, stop=stop, on_progress=lambda: progress.advance(task)
        )
    if as_json:
        print_json({"summary": summary, "missing": pictures.missing})
    else:
        print_summary(summary, settings)
        if pictures.missing:
            echo(f"{pictures.missing} pictures are gone or no longer those that were recorded: see the log")
    raise typer.Exit(_FINDINGS if pictures.missing else 0)
