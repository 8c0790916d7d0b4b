"""Column types that mean the same on SQLite (STRICT tables) and PostgreSQL.

A STRICT table of SQLite knows INTEGER, REAL, TEXT and BLOB alone, which shuts out SQLAlchemy's own DATETIME, JSON,
VARCHAR and DOUBLE. Migrations import these types too: change none of them once a release has written rows with it.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import REAL, BigInteger, Dialect, Double, Integer, LargeBinary, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.types import TypeEngine

Id: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
Whole = Id  # a count or a number of pixels; SQLite's INTEGER has 64 bits
Real: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")
Bytes = LargeBinary()


class SafeText(TypeDecorator[str]):
    """Text of any origin. What no database takes (NUL, half surrogates of undecodable file names) is spelled out."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - the form SQLAlchemy asks for
        """Convert for the database."""
        return value if value is None else sanitize_text(value)


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC: timestamptz on PostgreSQL, ISO 8601 text of fixed width (so that it sorts) on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type the database stores."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Convert for the database; refuse a time without a zone, which is ambiguous."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone: {value!r}")
        moment = value.astimezone(UTC)
        return moment if dialect.name == "postgresql" else moment.isoformat(timespec="microseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - as above
        """Convert from the database, always to UTC."""
        if value is None:
            return None
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return moment.astimezone(UTC)


class Json(TypeDecorator[Any]):
    """A JSON document: JSONB on PostgreSQL, text on SQLite. NaN and infinities are refused: JSON has none."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type the database stores."""
        if dialect.name == "postgresql":
            # None must be stored as SQL NULL, as on SQLite, and not as JSON's null.
            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Convert for the database."""
        if value is None:
            return None
        return json.loads(canonical(value)) if dialect.name == "postgresql" else canonical(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Convert from the database."""
        return json.loads(value) if isinstance(value, str) and dialect.name != "postgresql" else value


def sanitize_text(words: str) -> str:
    r"""Text that every database takes.

    >>> sanitize_text("a\x00b\udcff")
    'a\\x00b\\udcff'
    """
    return words.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def canonical(document: object) -> str:
    """One spelling per JSON document: sorted keys, no spaces, no escapes; what digests are taken of.

    Raises:
        ValueError: It holds NaN, an infinity or an object that JSON does not know.
    """
    return json.dumps(_plain(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, str):
        return sanitize_text(value)
    if isinstance(value, Mapping):
        return {sanitize_text(str(key)): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"JSON knows no {type(value).__name__}: {value!r}")
