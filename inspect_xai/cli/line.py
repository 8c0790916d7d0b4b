"""`inspect-xai line`: the main job, from a folder of pictures to recorded inspections."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, echo, print_json, progress_bar, who
from inspect_xai.errors import SettingsError, StoreError

if TYPE_CHECKING:
    from inspect_xai.pipeline.line import Line
    from inspect_xai.pipeline.outcome import LineSummary
    from inspect_xai.pipeline.remote import Source
    from inspect_xai.settings import Settings

_WATCH_EVERY_S = 1.0
_LIST_EVERY_S = 15.0  # of a URL: every listing is a request, or many


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(line)


def line(
    source: Annotated[
        str | None, typer.Option("--source", help="Folder the cameras write into, or a URL (s3://bucket/folder).")
    ] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="The model: a bundle folder.")] = None,
    db: DatabaseOption = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = None,
    bucket: Annotated[
        int | None, typer.Option("--bucket", min=1, help="Masks per run; default: measured or usual here.")
    ] = None,
    ok_share: Annotated[
        float | None, typer.Option("--ok-share", help="Share of the OK pictures explained too, 0 to 1.")
    ] = None,
    policy_version: Annotated[
        str | None, typer.Option("--policy-version", help="Version of the rules; changed ones need another.")
    ] = None,
    chunk: Annotated[int | None, typer.Option("--chunk", help="Pictures claimed at a time.")] = None,
    settle: Annotated[
        float | None, typer.Option("--settle", help="Seconds a file must rest before it is taken; 0: nobody writes.")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Golden set the model must reproduce here before it begins.")
    ] = None,
    keep: Annotated[bool | None, typer.Option("--keep", help="Leave the files where they are.")] = None,
    new_database: Annotated[
        bool | None, typer.Option("--new-database", help="Begin an empty database beside an archive that is not.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on and wait for new pictures until stopped.")] = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Inspect what the cameras left: claim, judge, explain, record, put away.

    All NG and UNSURE pictures and a repeatable share of the OK ones are explained. Each picture is recorded once per
    model and policy, whatever happens in between; running the command again does only what is left. Recorded files
    move to SOURCE/_archive, files without a picture in them to SOURCE/_rejected. Ctrl-C or SIGTERM finishes the
    picture at work and records what is done.

    What is not given as an option comes from the settings.

    Example: inspect-xai line --source incoming --bundle tile.bundle --db sqlite:///inspections.db
    """
    from inspect_xai.pipeline.intake import FolderSource
    from inspect_xai.pipeline.line import drain
    from inspect_xai.settings import load_settings

    chosen = load_settings(
        settings,
        db=db,
        bundle=bundle,
        device=device,
        bucket=bucket,
        line={
            "source": source, "ok_share": ok_share, "chunk": chunk, "settle_s": settle, "keep": keep, "golden": golden,
            "policy_version": policy_version, "new_database": new_database,
        },
    )  # fmt: skip
    with open_source_of(chosen) as pictures:
        watch_every_s = _WATCH_EVERY_S if isinstance(pictures, FolderSource) else _LIST_EVERY_S
        if watch and pictures.keep and isinstance(pictures, FolderSource):
            raise SettingsError(
                "--watch on a source whose files stay in place", expected="a folder whose files may be moved",
                remedy="run the command again for new pictures, or drop --keep",
            )  # fmt: skip
        with open_line_of(chosen) as opened, stopped_by_signals() as stop, progress_bar(shown=not as_json) as progress:
            total = pictures.count() if isinstance(pictures, FolderSource) and not progress.disable else None
            task = progress.add_task("inspecting", total=total)
            summary = drain(
                opened,
                pictures,
                chunk=chosen.line.chunk,
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


def open_line_of(settings: "Settings", *, explain_all: bool = False) -> "Line":
    """Open the line that the settings describe; with `explain_all` every verdict is explained.

    Raises:
        SettingsError: If no bundle is named.
        StoreError: If the database is new beside a full archive, and the settings do not say that this is meant.
    """
    from inspect_xai.cli.logs import log_as_json
    from inspect_xai.pipeline.line import Line
    from inspect_xai.pipeline.policy import LineRules, read_policy

    if settings.log == "json":
        log_as_json()
    if settings.bundle is None:
        raise SettingsError("no bundle is named", remedy="give --bundle DIR, or set `bundle` in the settings")
    _refuse_new_database(settings)
    chosen = settings.line
    twice = sorted({"policy_version", "ok_share"} & chosen.model_fields_set)
    if chosen.policy and twice:
        raise SettingsError(
            f"{' and '.join(twice)} beside the policy {chosen.policy}", expected="either",
            remedy="the policy says both: take them out of the settings and flags",
        )  # fmt: skip
    rules = LineRules(
        policy_version=chosen.policy_version,
        ok_share=chosen.ok_share,
        path_pattern=chosen.path_pattern,
        limits=chosen.limits,
        time_zone=settings.report.time_zone if "time_zone" in settings.report.model_fields_set else "",
        plan=read_policy(chosen.policy) if chosen.policy else None,
    )
    return Line(
        settings.bundle, settings.db, device=settings.device, rules=rules.explaining_all() if explain_all else rules,
        threads=settings.threads, bucket=settings.bucket, memory_mb=settings.memory_mb, blob_store=settings.blob_store,
        golden=chosen.golden, ledger_key=settings.ledger.key, opened_by=who(),
    )  # fmt: skip


def _refuse_new_database(settings: "Settings") -> None:
    """Refuse to begin an empty database beside a full archive: most likely it is not the one that was meant.

    Raises:
        StoreError: If so, unless the settings say that it is meant.
    """
    from inspect_xai.storage.database import shown
    from inspect_xai.storage.store import was_used

    source = settings.line.source
    if settings.line.new_database or not source or "://" in source or was_used(settings.db):
        return
    archive = Path(source) / "_archive"
    if any(path.is_file() for path in archive.rglob("*")):
        raise StoreError(
            f"no line has recorded into the database {shown(settings.db)}, but {archive} holds pictures",
            expected="the database that they are recorded in",
            remedy="name it with --db, or put it back; to begin another one, say --new-database once",
        )


def open_source_of(settings: "Settings") -> "Source":
    """Open the source that the settings name.

    Raises:
        SettingsError: If none is named.
    """
    from inspect_xai.pipeline.remote import open_source

    chosen = settings.line
    if not chosen.source:
        raise SettingsError("no source is named", remedy="give --source DIR, or set `source` under [line]")
    return open_source(
        chosen.source, settle_s=chosen.settle_s, lease_s=chosen.lease_s, keep=chosen.keep, ignore=chosen.ignore
    )


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Turn SIGTERM and the first Ctrl-C into an event; a second Ctrl-C interrupts as usual."""
    stop = threading.Event()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before[1])

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


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
    from inspect_xai.storage.database import shown

    return shown(url)
