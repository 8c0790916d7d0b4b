"""Tables and documents that people write: what Notepad, Excel and editors save is read alike."""

import doctest

import pytest

from inspect_xai import errors, files

TABLE = "image,label\nPrüf.png,crack\n"


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(files).failed == doctest.testmod(errors).failed == 0


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        TABLE.encode("utf-8-sig"),
        TABLE.replace(",", ";").encode(),
        TABLE.replace(",", ", ").encode(),
        TABLE.replace("\n", "\r\n").encode(),
        b'"image";"label"\n"Pr\xc3\xbcf.png";"crack"',
    ],
)
def test_a_table_says_the_same_however_it_was_saved(content: bytes) -> None:
    assert files.read_table(content) == (["image", "label"], [(2, {"image": "Prüf.png", "label": "crack"})])


def test_a_short_row_has_empty_cells() -> None:
    assert files.read_table(b"file,serial,lot\nP1.png,SN1\n")[1] == [
        (2, {"file": "P1.png", "serial": "SN1", "lot": ""})
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE.encode("cp1252"), 'not UTF-8: byte 0xfc at position 14; save it as "UTF-8", in Excel as "CSV UTF-8"'),
        (TABLE.encode("utf-16"), 'UTF-16; save it as "UTF-8", in Excel as "CSV UTF-8"'),
        (b"image,label\na,b,c\n", "line 2 has more cells than the head line"),
        (b'image,label\n"a,b\n', "the table is no CSV: unexpected end of data"),
    ],
)
def test_what_is_no_table_says_what_to_do(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files.read_table(content)


def test_toml_with_a_byte_order_mark_is_toml() -> None:
    assert files.read_toml(b"\xef\xbb\xbf[line]\r\nsettle_s = 0\r\n") == {"line": {"settle_s": 0}}


def test_toml_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|[Ii]nvalid"):
        files.read_toml(b"a = " + b"[" * 100_000)
