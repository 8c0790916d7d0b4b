"""Rows of an audit, and their storage: Parquet files, one for every few pictures.

    OUT/rows/000000.parquet, 000001.parquet, ...   whole files with the same columns: one table for any reader

A line of the table is one method on one picture; a picture without an explanation has one line without a method.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import pandas as pd

from inspect_xai.audit.measure import NUMBERS
from inspect_xai.files import read_frames, write_frame
from inspect_xai.records import Method

PIECE_PICTURES, PIECE_S = 16, 20.0
"""A file is written after this many pictures or seconds: the most that is lost when the audit is killed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One method on one picture."""

    method: Method
    status: str
    numbers: dict[str, float]
    passes: int
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One picture: its true label, the network's prediction, and the numbers of each method.

    Attributes:
        image: As written in the table.
        label: Its true label.
        part: Serial of the part.
        station: Where it was taken.
        predicted: The label with the highest score.
        score: Its probability.
        verdict: OK, NG or UNSURE.
        target: The label that was explained; empty where nothing was.
        closed_drop: Share of the score that closing the defect takes; None where its place is not known.
        truth_share: Share of the picture that the defect covers; None likewise.
        measured: By method; empty where nothing was explained.
        map_file: Below the audit's folder; empty likewise.
        error: Why the picture could not be measured; empty where it could.
    """

    image: str
    label: str
    part: str = ""
    station: str = ""
    predicted: str = ""
    score: float = 0.0
    verdict: str = ""
    target: str = ""
    closed_drop: float | None = None
    truth_share: float | None = None
    measured: tuple[Measured, ...] = ()
    map_file: str = ""
    error: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the true label has the highest score."""
        return not self.error and self.predicted == self.label

    def of(self, method: Method) -> Measured | None:
        """Return the numbers of a method; None where it was not run."""
        return next((measured for measured in self.measured if measured.method is method), None)


_OF_PICTURE = tuple(entry.name for entry in fields(AuditRow) if entry.name != "measured")
_NUMBERS_OF_PICTURE = ("score", "closed_drop", "truth_share")
_OF_METHOD = {"method": "", "status": "", "notes": "[]", "passes": 0, "seconds": 0.0}  # of a line without a method


@dataclass(slots=True)
class RowWriter:
    """Buffers rows and writes them in files; the rest is written when the audit ends, also by an error."""

    folder: Path
    _waiting: list[AuditRow] = field(default_factory=list)
    _written_at: float = field(default_factory=time.monotonic)

    def add(self, row: AuditRow) -> None:
        """Take a row."""
        self._waiting.append(row)
        if len(self._waiting) >= PIECE_PICTURES or time.monotonic() - self._written_at >= PIECE_S:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows into a new file."""
        if self._waiting:
            last = max((int(path.stem) for path in _pieces(self.folder)), default=-1)
            write_frame(self.folder / f"{last + 1:06d}.parquet", as_frame(self._waiting))
        self._waiting.clear()
        self._written_at = time.monotonic()

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        for draft in self.folder.glob("*.part"):  # the process was killed while it was written
            draft.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def read_rows(folder: Path) -> list[AuditRow]:
    """Read all rows in the order they were written; none where there is no folder."""
    return [row for frame in read_frames(_pieces(folder)) for row in _rows_of(frame)]


def as_frame(rows: list[AuditRow]) -> pd.DataFrame:
    """Return rows as a flat table, one line for each method and picture."""
    lines = [line for row in rows for line in _lines_of(row)]
    columns: dict[str, Any] = {}
    for name in (*_OF_PICTURE, *_OF_METHOD, *NUMBERS):
        is_number = name in (*_NUMBERS_OF_PICTURE, "seconds", *NUMBERS)
        kind = "int64" if name == "passes" else "float64" if is_number else "object"
        columns[name] = pd.Series([line[name] for line in lines], dtype=kind)
    return pd.DataFrame(columns)


def _pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _lines_of(row: AuditRow) -> Iterator[dict[str, Any]]:
    picture = {name: getattr(row, name) for name in _OF_PICTURE}
    nothing = dict.fromkeys(NUMBERS, math.nan)
    if not row.measured:
        yield picture | _OF_METHOD | nothing
    for measured in row.measured:
        unknown = measured.numbers.keys() - set(NUMBERS)
        if unknown:
            raise ValueError(f"unknown numbers {', '.join(sorted(unknown))}; expected names of measure.NUMBERS")
        method = {name: getattr(measured, name) for name in _OF_METHOD}
        method |= {"method": str(measured.method), "notes": json.dumps(measured.notes)}
        yield picture | method | nothing | measured.numbers


def _rows_of(frame: pd.DataFrame) -> Iterator[AuditRow]:
    lines = frame.to_dict("records")
    for _, group in groupby(lines, key=lambda line: line["image"]):
        of_picture = list(group)
        picture: dict[str, Any] = {name: of_picture[0][name] for name in _OF_PICTURE}
        for name in ("closed_drop", "truth_share"):
            picture[name] = None if math.isnan(picture[name]) else picture[name]
        yield AuditRow(**picture, measured=tuple(_measured_of(line) for line in of_picture if line["method"]))


def _measured_of(line: dict[Any, Any]) -> Measured:
    return Measured(
        Method(line["method"]),
        line["status"],
        {name: line[name] for name in NUMBERS if not math.isnan(line[name])},
        int(line["passes"]),
        line["seconds"],
        tuple(json.loads(line["notes"])),
    )
