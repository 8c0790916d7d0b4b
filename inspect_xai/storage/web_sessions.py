"""Sessions of browsers, kept in the database so that neither a restart nor a second process signs anybody out."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, delete, select, update

from inspect_xai.storage.database import Database
from inspect_xai.storage.insert import upsert
from inspect_xai.storage.tables import WebSession


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One browser. `person` is empty where nobody signed in yet."""

    person: str
    used_at: datetime
    language: str
    theme: str
    skipped: tuple[int, ...]  # inspections left for later, newest last


class Sessions:
    """The sessions of a database, by the sha256 of their ids. May be shared by threads.

    Args:
        database: An open one; it is not closed here.
        idle_s: Seconds after which a session ends that nobody used.
    """

    def __init__(self, database: Database, *, idle_s: float) -> None:
        self._database = database
        self._idle = timedelta(seconds=idle_s)

    def find(self, id_sha256: str) -> StoredSession | None:
        """Return the live session under an id; None: there is none. Its last use is updated now and then."""
        with self._database.read() as connection:
            row = connection.execute(_session(), {"wanted": id_sha256}).one_or_none()
        now = self._database.clock()
        if row is None or now - row.used_at > self._idle:
            return None
        if now - row.used_at > self._idle / 100:
            self.change(id_sha256, used_at=now)
        return StoredSession(row.person, row.used_at, row.language, row.theme, tuple(row.skipped))

    def begin(self, id_sha256: str, *, person: str, language: str, theme: str, instead_of: str = "") -> None:
        """Begin a session in the place of another one; those that ended by themselves go."""
        now = self._database.clock()
        row = {"person": person, "used_at": now, "language": language, "theme": theme, "skipped": []}
        with self._database.write() as connection:
            ended = (WebSession.used_at < now - self._idle) | (WebSession.id_sha256 == instead_of)
            connection.execute(delete(WebSession).where(ended))
            made = upsert(connection, WebSession).values(id_sha256=id_sha256, **row)
            connection.execute(made.on_conflict_do_update(index_elements=["id_sha256"], set_=row))

    def change(self, id_sha256: str, **values: Any) -> None:
        """Keep what a browser chose."""
        with self._database.write() as connection:
            connection.execute(update(WebSession).where(WebSession.id_sha256 == id_sha256).values(**values))

    def end(self, id_sha256: str) -> None:
        """End a session: its cookie is worth nothing any more."""
        with self._database.write() as connection:
            connection.execute(delete(WebSession).where(WebSession.id_sha256 == id_sha256))

    def end_all(self) -> None:
        """Sign everybody out, whichever process of the desk they talk to."""
        with self._database.write() as connection:
            connection.execute(delete(WebSession))


@cache
def _session() -> Select[Any]:
    """Made once: it is asked with every page."""
    return select(WebSession.__table__).where(WebSession.id_sha256 == bindparam("wanted"))
