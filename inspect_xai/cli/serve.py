"""`inspect-xai serve` and `inspect-xai serve token`: the review desk, and tokens of those who sign in there."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import echo
from inspect_xai.errors import NotFoundError, SettingsError

if TYPE_CHECKING:
    from inspect_xai.settings import ServeSettings, Settings

_MOST_CONNECTIONS = 500


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=Panel.DESK)(serve)
    app.command("serve token", rich_help_panel=Panel.DESK)(token)


def serve(
    db: Annotated[str | None, typer.Option("--db", help="Database URL.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="TCP port; default: 8080; 0: a free one.")] = None,
    archive: Annotated[
        list[str] | None, typer.Option("--archive", help="Folder or URL of the pictures; default: the line's source.")
    ] = None,
    people: Annotated[
        Path | None, typer.Option("--people", help="TOML file of who may sign in (see: inspect-xai serve token).")
    ] = None,
    proxy_header: Annotated[
        str | None, typer.Option("--proxy-header", help="Header in which a sign-on proxy gives the user's name.")
    ] = None,
    proxy_address: Annotated[
        list[str] | None,
        typer.Option("--proxy-address", help="The proxy's address: the header counts from there alone."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Further name the desk is reached under.")
    ] = None,
    https: Annotated[bool | None, typer.Option("--https", help="Browsers come over https, through the proxy.")] = None,
    path: Annotated[
        str | None, typer.Option("--path", help="Path the proxy serves the desk under, for instance /inspect.")
    ] = None,
    language: Annotated[str | None, typer.Option("--language", help="en or de; readers can choose.")] = None,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", help="The plant's, for instance Europe/Berlin.")
    ] = None,
    blind_share: Annotated[
        float | None, typer.Option("--blind-share", help="Share of parts judged before the model's verdict is shown.")
    ] = None,
    second_share: Annotated[
        float | None, typer.Option("--second-share", help="Share of answers that a second person checks.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="TOML file with settings; or the variable INSPECT_XAI_SETTINGS.")
    ] = None,
) -> None:
    """Serve the review desk in a browser.

    People judge flagged parts there. It listens on this machine alone. Beyond it people must say who they are: list
    them with tokens (--people), or put it behind the plant's sign-on proxy (--proxy-header, --proxy-address); else it
    refuses to start. Pictures are shown from the archive folders and from nowhere else. Ctrl-C ends it.

    What is not given as an option comes from the settings, section [serve].

    Example: inspect-xai serve --db sqlite:///inspections.db --archive incoming --port 8080
    """
    from inspect_xai.settings import load_settings

    flags = {
        "host": host,
        "port": port,
        "archive": archive or None,
        "people": people,
        "proxy_header": proxy_header,
        "proxy_addresses": proxy_address or None,
        "hosts": allow_host or None,
        "https": https,
        "path": path,
        "language": language,
        "time_zone": time_zone,
        "blind_share": blind_share,
        "second_share": second_share,
    }
    chosen = load_settings(settings, db=db, serve=flags)
    desk = _with_archive(chosen)
    _run(chosen, desk.model_copy(update={"reports": desk.reports or chosen.report.out}))


def token(
    name: Annotated[str, typer.Argument(help="Who the token is for; the name stands on their answers.")],
    role: Annotated[str, typer.Option("--role", help="viewer, operator, quality or admin.")] = "operator",
) -> None:
    """Make a sign-in token for a person.

    Prints their entry for the file of people. The token itself goes to stderr, once: hand it over, for instance as the
    barcode of a badge. The file holds its sha256 only. A viewer looks, an operator judges, quality corrects others and
    takes over what they hold, an admin also signs everybody out.

    Example: inspect-xai serve token "Ada Lovelace" --role quality >> people.toml
    """
    from inspect_xai.web.auth import MAX_NAME, Role, digest_of, new_token

    if role.upper() not in Role.__members__:
        raise SettingsError(f"--role is {role!r}", expected=f"one of {', '.join(known.code for known in Role)}")
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise SettingsError(f"the name {name!r}", expected=f"1 to {MAX_NAME} printable characters")
    new = new_token()
    # A JSON string is a TOML string too.
    quoted = json.dumps(name, ensure_ascii=False)
    echo(f'[[person]]\nname = {quoted}\nrole = "{role.lower()}"\ntoken_sha256 = "{digest_of(new)}"\n')
    echo(f"token of {name}: {new}", err=True)


def _with_archive(settings: "Settings") -> "ServeSettings":
    """Where no archive is named, the line's own source folder is: it holds _archive and _rejected."""
    serve_, source = settings.serve, settings.line.source
    return serve_ if serve_.archive or not source else serve_.model_copy(update={"archive": (source,)})


def _refuse_missing(db: str, archive: Sequence[Path | str]) -> None:
    """Refuse a database or an archive that is not there: an empty desk would look as if nothing were flagged.

    Raises:
        NotFoundError: If there is no such SQLite file.
        SettingsError: If an archive folder is none, or fsspec cannot open its URL.
    """
    from inspect_xai.storage import database, file_locations

    file = database.sqlite_file(db)
    if file is not None and not file.exists():
        raise NotFoundError(f"no database at {file}", remedy=f"make one: inspect-xai db upgrade --db {db}")
    for place in map(str, archive):
        try:
            is_there = ("://" in place and bool(file_locations.opened_root(place))) or Path(place).is_dir()
        except (ImportError, ValueError, OSError) as error:
            raise SettingsError(f"the archive {place} cannot be opened: {error}") from error
        if not is_there:
            raise SettingsError(
                f"the archive {place} is no folder", remedy="give the folder of the pictures: --archive"
            )


def _run(settings: "Settings", desk: "ServeSettings") -> None:
    import uvicorn

    from inspect_xai.web.app import create_app

    _refuse_missing(settings.db, desk.archive)
    app = create_app(settings.db, desk, blob_store=settings.blob_store, ledger_key=settings.ledger.key)
    family = socket.AF_INET6 if ":" in desk.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((desk.host, desk.port))
        except OSError as error:
            raise SettingsError(
                f"nothing can listen on {desk.host} port {desk.port}: {error}", remedy="give another --host or --port"
            ) from error
        shown = f"[{desk.host}]" if ":" in desk.host else desk.host
        echo(f"Review desk: http://{shown}:{listener.getsockname()[1]}{desk.path}/  (Ctrl-C ends it)")
        # Proxy headers are read by the desk itself, from the proxy's own addresses alone.
        config = uvicorn.Config(
            app,
            log_level="warning",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(config).run(sockets=[listener])
