"""Text files that people write, read alike everywhere: TOML and CSV in UTF-8, as Notepad and Excel save them."""

import codecs
import csv
import io
import tomllib
from typing import Any

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
