"""What every command shares: JSON for machines, a progress bar for people, options with one meaning."""

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inspect_xai.errors import printable
from inspect_xai.files import json_form

SettingsOption = Annotated[
    Path | None, typer.Option("--settings", help="TOML file with settings; or the variable INSPECT_XAI_SETTINGS.")
]
PixelSettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help="TOML file with settings, or the variable INSPECT_XAI_SETTINGS: white_level, honor_exif and max_pixels "
        "under [line] say how files become pixels.",
    ),
]
DatabaseOption = Annotated[
    str | None, typer.Option("--db", help="Database URL, for instance sqlite:///inspections.db.", show_default=False)
]
ByOption = Annotated[str, typer.Option("--by", help="Who does this, for the ledger. Default: who is logged in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text for people.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


def day_asked(text: str) -> datetime:
    """Parse a day given on the command line: its midnight, without a zone.

    Raises:
        BadParameter: It is written in another form, or there is no such day.
        SettingsError: It is further off than anybody can mean.
    """
    return _asked(text, "%Y-%m-%d")


def time_asked(text: str) -> datetime:
    """Parse a day or a moment given on the command line, without a zone.

    Raises:
        BadParameter: As `day_asked`.
        SettingsError: The same.
    """
    return _asked(text, "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S")


def _asked(text: str, *forms: str) -> datetime:
    from inspect_xai.reports.period import refuse_far_off

    for form in forms:
        try:
            found = datetime.strptime(text.strip(), form)  # noqa: DTZ007  the plant's zone stands in the settings
        except ValueError:
            continue
        refuse_far_off(found.date())
        return found
    examples = " or ".join(datetime(2026, 11, 22, 6, 30).strftime(form) for form in forms)  # noqa: DTZ001  an example
    raise typer.BadParameter(f"{text!r} is no day written as in {examples} (year-month-day)")


def use_any_terminal() -> None:
    r"""Let no output fail or command the terminal: what cannot be shown is written as an escape such as \u2713."""
    if sys.getfilesystemencoding() == "ascii":  # file names would fail, too: begin again in UTF-8 mode
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", "inspect_xai", *sys.argv[1:]])  # noqa: S606
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PrintableLines())


class _PrintableLines(logging.Formatter):
    """Writes each record as one line, with the traceback behind it where there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the library's name
        return printable(super().formatMessage(record))


def echo(text: str = "", *, err: bool = False) -> None:
    """Print lines for people; names in them may hold anything (`printable` for what must stay one line)."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def print_json(value: Any) -> None:
    """Print `value` as JSON; dataclasses, enums, times, paths and numpy numbers become plain values."""
    print_text_of_json(json.dumps(value, default=json_form, indent=2, ensure_ascii=False, allow_nan=False))


def print_text_of_json(text: str) -> None:
    """Print JSON text; where the terminal cannot show all of it, with JSON's own escapes."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2 if "\n" in text else None)
    typer.echo(text)


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Progress]:
    """Give a progress bar on stderr; it stays silent where stderr is no terminal or `shown` is false."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        yield progress
