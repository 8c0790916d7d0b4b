"""What every command shares: JSON for machines, a progress bar for people, options with one meaning."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text for people.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


def print_json(value: Any) -> None:
    """Print `value` as JSON; dataclasses, enums, times, paths and numpy numbers become plain values."""
    typer.echo(json.dumps(value, default=plain, indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """Return the JSON form of a value that `json` does not know.

    Raises:
        TypeError: For a type no record holds.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"no JSON form for {type(value).__name__}")


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Progress]:
    """Give a progress bar on stderr; it stays silent where stderr is no terminal or `shown` is false."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        yield progress
