"""A day's inspections as flat Parquet files by line, for pandas, DuckDB and spreadsheets.

    OUT/inspections/day=2026-11-22/on_line=L1/inspections.parquet

The folders' names are the partitions: a reader given OUT/inspections sees the columns `day` and `on_line`, and opens
the files of the days and lines it is asked for alone. `on_line` is made for folders (quoted like a URL; `unknown` where
no line is); the column `line` has the name itself. Times are UTC without a zone.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pandas as pd

from inspect_xai.files import replaced_folder, write_frame
from inspect_xai.storage.results import InspectionSummary

FILE_NAME = "inspections.parquet"
_LONGEST: Final = 120  # characters of a folder's name: file systems take 255
_COLUMN_TYPES: dict[Any, str] = {
    int: "int64",
    float: "float64",
    float | None: "float64",
    str: "object",
    datetime: "datetime64[us]",
}


def write_parquet(rows: Sequence[InspectionSummary], *, day: date, out: Path) -> Path:
    """Write the inspections of one day; what stands there for the day is replaced as a whole.

    Args:
        rows: The day's inspections.
        day: In the plant's zone.
        out: Folder of all days.

    Returns:
        The day's folder, with one file for each line; one without rows where nothing was inspected.
    """
    by_folder: dict[str, list[InspectionSummary]] = defaultdict(list)
    for row in rows:
        by_folder[_folder_of(row.line)].append(row)
    folder = out / "inspections" / f"day={day.isoformat()}"
    with replaced_folder(folder) as work:
        for name, of_line in sorted(by_folder.items()) or [(_folder_of(""), [])]:
            (work / name).mkdir()
            write_frame(work / name / FILE_NAME, as_frame(of_line))
    return folder


def _folder_of(line: str) -> str:
    """Return the partition of a line. Its first character is a letter or quoted: readers take 007 for the number 7.

    >>> _folder_of("L 1/a"), _folder_of("007"), _folder_of("")
    ('on_line=L 1%2Fa', 'on_line=%3007', 'on_line=unknown')
    """
    name = f"on_line={quote(line, safe=' ') or 'unknown'}"
    if line and line[0].isascii() and not line[0].isalpha() and not name.startswith("on_line=%"):
        name = f"on_line=%{ord(line[0]):02X}{quote(line[1:], safe=' ')}"
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 13]}-{hashlib.sha256(line.encode()).hexdigest()[:12]}"


def as_frame(rows: Sequence[InspectionSummary]) -> pd.DataFrame:
    """Return one row per inspection and one column per field, typed alike on a day without any."""
    columns = {}
    for field in dataclasses.fields(InspectionSummary):
        values = list(map(attrgetter(field.name), rows))
        if field.type is datetime:
            values = [value.astimezone(UTC).replace(tzinfo=None) for value in values]
        columns[field.name] = pd.Series(values, dtype=_COLUMN_TYPES[field.type])
    return pd.DataFrame(columns)
