"""`inspect-xai line`: the main job, from a folder of pictures to recorded inspections."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.app import open_line_of, open_source_of, stopped_by_signals
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, echo, print_json, progress_bar
from inspect_xai.errors import SettingsError

if TYPE_CHECKING:
    from inspect_xai.line.summary import LineSummary
    from inspect_xai.settings import Settings

_WATCH_EVERY_S = 1.0
_LIST_EVERY_S = 15.0  # of a URL: every listing is a request, or many


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=Panel.LINE)(line)


def line(
    source: Annotated[
        str | None, typer.Option("--source", help="Folder the cameras write into, or a URL (s3://bucket/folder).")
    ] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="The model: a bundle folder.")] = None,
    db: DatabaseOption = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Masks per run; default: measured or usual here.")
    ] = None,
    ok_share: Annotated[
        float | None, typer.Option("--ok-share", help="Share of the OK pictures explained too, 0 to 1.")
    ] = None,
    policy_version: Annotated[
        str | None, typer.Option("--policy-version", help="Version of the rules; changed ones need another.")
    ] = None,
    claim_size: Annotated[int | None, typer.Option("--claim-size", help="Pictures claimed at a time.")] = None,
    settle: Annotated[
        float | None, typer.Option("--settle", help="Seconds a file must rest before it is taken; 0: nobody writes.")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Golden set the model must reproduce here before it begins.")
    ] = None,
    in_place: Annotated[bool | None, typer.Option("--in-place", help="Leave the files where they are.")] = None,
    new_database: Annotated[
        bool | None, typer.Option("--new-database", help="Begin an empty database beside an archive that is not.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on and wait for new pictures until stopped.")] = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Inspect what the cameras left, and record it.

    All NG and UNSURE pictures and a repeatable share of the OK ones are explained. Each picture is recorded once per
    model and policy, whatever happens in between; running the command again does only what is left. Recorded files
    move to SOURCE/_archive, files without a picture in them to SOURCE/_rejected. Ctrl-C or SIGTERM finishes the
    picture at work and records what is done.

    What is not given as an option comes from the settings.

    Example: inspect-xai line --source incoming --bundle tile.bundle --db sqlite:///inspections.db
    """
    from inspect_xai.intake.folder_source import FolderSource
    from inspect_xai.line.line import drain
    from inspect_xai.settings import load_settings

    chosen = load_settings(
        settings,
        db=db,
        bundle=bundle,
        device=device,
        batch_size=batch_size,
        line={
            "source": source,
            "ok_share": ok_share,
            "claim_size": claim_size,
            "settle_s": settle,
            "in_place": in_place,
            "golden": golden,
            "policy_version": policy_version,
            "new_database": new_database,
        },
    )
    with open_source_of(chosen) as pictures:
        watch_every_s = _WATCH_EVERY_S if isinstance(pictures, FolderSource) else _LIST_EVERY_S
        if watch and pictures.keep and isinstance(pictures, FolderSource):
            raise SettingsError(
                "--watch on a source whose files stay in place",
                expected="a folder whose files may be moved",
                remedy="run the command again for new pictures, or drop --in-place",
            )
        with open_line_of(chosen) as opened, stopped_by_signals() as stop, progress_bar(shown=not as_json) as progress:
            total = pictures.count() if isinstance(pictures, FolderSource) and not progress.disable else None
            task = progress.add_task("inspecting", total=total)
            summary = drain(
                opened,
                pictures,
                chunk=chosen.line.claim_size,
                watch_every_s=watch_every_s if watch else None,
                stop=stop,
                on_progress=lambda: progress.advance(task),
            )
    if as_json:
        print_json(summary)
    else:
        if stop.is_set():
            echo("stopped when asked: the picture at work is recorded, the rest given back")
        print_summary(summary, chosen)


def print_summary(summary: "LineSummary", settings: "Settings") -> None:
    """Say in a few lines what a line did."""
    if summary.unmatched:
        echo(
            f"{summary.unmatched} JSON or CSV files belong to no picture, so nobody read them: the log above names them"
        )
    if not summary.seen:
        echo("no picture is waiting")
        return
    pictures = "picture" if summary.inspected == 1 else "pictures"
    echo(
        f"{summary.inspected} {pictures} inspected in {summary.seconds:.1f} s on {summary.provider}: "
        f"{summary.ok} OK, {summary.ng} NG, {summary.unsure} UNSURE"
    )
    echo(f"{summary.explained} explained with {summary.passes} forward passes")
    if summary.already_known:
        echo(f"{summary.already_known} were recorded already")
    if summary.under_another_part:
        echo(f"{summary.under_another_part} have the very bytes of a picture recorded for another part: see the log")
    if summary.failed:
        echo(f"{summary.failed} could not be judged or explained: the log above and the report say why")
    echo(f"run {summary.run_id} in {_without_password(settings.db)}")


def _without_password(url: str) -> str:
    from inspect_xai.storage.database import redact_url

    return redact_url(url)
