"""Files: folders replaced as a whole, TOML and CSV as people save them, tables as Parquet, values as JSON.

fastparquet is called here and nowhere else: it is no longer developed, and one day something takes its place. It and
pandas are imported when they are used: a process that judges parts needs neither.
"""

import codecs
import csv
import dataclasses
import io
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inspect_xai.records import document_key

if TYPE_CHECKING:
    import pandas as pd

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(content: bytes) -> str:
    r"""Decode a text file; a byte order mark is skipped.

    Raises:
        ValueError: If it is not UTF-8; the message says how to save it.

    >>> decode_text(b"\xef\xbb\xbfname = 1")
    'name = 1'
    """
    if content.startswith(_UTF_16):
        raise ValueError('the file is UTF-16; save it as "UTF-8", in Excel as "CSV UTF-8"')
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the file is not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}; "
            'save it as "UTF-8", in Excel as "CSV UTF-8"'
        ) from error


def read_toml(content: bytes) -> dict[str, Any]:
    """Read a TOML document.

    Raises:
        ValueError: If it is not UTF-8 or no TOML.
    """
    try:
        return tomllib.loads(decode_text(content))
    except RecursionError as error:
        raise ValueError("the values are nested too deeply") from error


def read_table(content: bytes) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    r"""Read a CSV table with a head line.

    Cells are divided by commas, or by semicolons where the head line has no comma; spaces around a cell say nothing.

    Returns:
        The names of the columns, and for each row the number of its (last) line and its cells by column; cells that
        a short row lacks are empty.

    Raises:
        ValueError: If it is not UTF-8 or no CSV, or a row has more cells than the head line.

    >>> read_table(b"image; label\nP1.png; crack\n")
    (['image', 'label'], [(2, {'image': 'P1.png', 'label': 'crack'})])
    """
    text = decode_text(content)
    delimiter = "," if "," in text.partition("\n")[0] else ";"
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True, restval="")
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more cells than the head line")
            rows.append((reader.line_num, {name.strip(): value.strip() for name, value in row.items()}))
    except csv.Error as error:
        raise ValueError(f"the table is no CSV: {error}") from error
    return columns, rows


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to write into; without an error it takes the place of `folder`, with one it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    work.chmod(0o755)
    before = work.with_name(f"{work.name}-before")
    try:
        yield work
        if folder.exists():
            folder.rename(before)
        work.rename(folder)
    except BaseException:
        if before.exists() and not folder.exists():
            before.rename(folder)
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(before, ignore_errors=True)


def write_frame(path: Path, frame: "pd.DataFrame") -> None:
    """Write a table; the file is there whole or not at all, also after a power cut.

    Args:
        path: The file; one that stands there is replaced.
        frame: Columns of numbers, times without a zone, or texts.
    """
    import fastparquet

    texts = {name: "utf8" for name in frame.columns if frame[name].dtype == object}
    draft = path.with_name(f"{path.name}.part")
    # Opened here: fastparquet's own opener takes "::" in a folder's name for a chain of URLs.
    fastparquet.write(
        str(draft), frame, compression="ZSTD", write_index=False, object_encoding=texts, stats=True, open_with=open
    )
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def read_frames(paths: Sequence[Path]) -> "list[pd.DataFrame]":
    """Read tables, one for each file."""
    import fastparquet

    frames = []
    for path in paths:
        with path.open("rb") as file:  # given a path, fastparquet leaves the file open
            frames.append(fastparquet.ParquetFile(file).to_pandas())
    return frames


def json_form(value: Any) -> Any:
    """Return the JSON form of a value that `json` does not know.

    Raises:
        TypeError: For a type no record holds.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {document_key(entry.name): getattr(value, entry.name) for entry in dataclasses.fields(value)}
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
