"""Claims on files of a URL source, shared among workers: owner, lease, and which files are recorded."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, select, update

from inspect_xai.storage.database import Database
from inspect_xai.storage.insert import upsert
from inspect_xai.storage.ledger_documents import chunks
from inspect_xai.storage.tables import ClaimRow, Model, Policy

_MOST_NAME_BYTES = 1000  # of what is indexed


class Claims:
    """One worker's claims on the files of a source, for one model and policy.

    A claim holds for `lease_s` and is renewed while its worker lives; after that any worker may take the file over. It
    spares work and decides nothing: what is recorded once is the database's own rule. Leases follow the workers'
    clocks, which must agree to within a lease.

    Args:
        database: An open one; it is not closed here.
        source: Of which source, by its URL.
        fingerprint: Of the model, which is registered.
        policy_version: Of the policy, which is registered.
        owner: Who claims: a name no other worker has.
        lease_s: How long a claim holds without a sign of life.
    """

    def __init__(
        self,
        database: Database,
        source: str,
        *,
        fingerprint: str,
        policy_version: str,
        owner: str,
        lease_s: float = 600.0,
    ) -> None:
        self._database, self._owner = database, owner
        self._lease = timedelta(seconds=lease_s)
        with database.read() as connection:
            model_id = select(Model.id).where(Model.fingerprint == fingerprint)
            policy_id = select(Policy.id).where(Policy.version == policy_version)
            self._work = {
                "source": source,
                "model_id": connection.execute(model_id).scalar_one(),
                "policy_id": connection.execute(policy_id).scalar_one(),
            }

    def take(self, files: Mapping[str, str], *, most: int) -> set[str]:
        """Claim what nobody holds and nobody has recorded.

        Args:
            files: Stamp (size and time of change) by file name; a recorded file with another stamp is a new one.
            most: How many are wanted; the first ones that are free.

        Returns:
            The names that are this worker's now.
        """
        with self._database.write() as connection:
            now = self._database.clock()
            kept = [_kept(name) for name in files]
            held = {name: row for part in chunks(kept) for name, row in self._rows(connection, part)}
            free = (name for name, stamp in files.items() if _is_free(held.get(_kept(name)), stamp, now))
            taken = set(islice(free, most))
            rows = [
                {
                    **self._work,
                    "file_name": _kept(name),
                    "file_version": files[name],
                    "owner": self._owner,
                    "lease_expires_at": now + self._lease,
                }
                for name in sorted(taken)
            ]
            if rows:
                statement = upsert(connection, ClaimRow)
                statement = statement.on_conflict_do_update(
                    index_elements=["source", "file_name", "model_id", "policy_id"],
                    set_={name: statement.excluded[name] for name in ("file_version", "owner", "lease_expires_at")},
                )
                connection.execute(statement, rows)
        return taken

    def renew(self) -> None:
        """Give a sign of life: all of this worker's claims hold for another lease."""
        with self._database.write() as connection:
            held = update(ClaimRow).where(*self._mine(), ClaimRow.lease_expires_at.is_not(None))
            connection.execute(held.values(lease_expires_at=self._database.clock() + self._lease))

    def recorded(self, names: Sequence[str]) -> None:
        """Say that files are recorded: nobody reads them again for this model and policy."""
        if not names:
            return
        with self._database.write() as connection:
            for part in chunks(_kept(name) for name in names):
                connection.execute(
                    update(ClaimRow).where(*self._mine(), ClaimRow.file_name.in_(part)).values(lease_expires_at=None)
                )

    def release(self) -> None:
        """Give back what is not recorded, for any worker to take."""
        with self._database.write() as connection:
            connection.execute(delete(ClaimRow).where(*self._mine(), ClaimRow.lease_expires_at.is_not(None)))

    def _mine(self) -> list[ColumnElement[bool]]:
        return [*self._here(), ClaimRow.owner == self._owner]

    def _here(self) -> list[ColumnElement[bool]]:
        return [getattr(ClaimRow, name) == value for name, value in self._work.items()]

    def _rows(self, connection: Connection, names: Sequence[str]) -> Iterator[tuple[str, Row[Any]]]:
        query = select(ClaimRow.file_name, ClaimRow.file_version, ClaimRow.lease_expires_at).where(
            *self._here(), ClaimRow.file_name.in_(names)
        )
        for row in connection.execute(query):
            yield row.file_name, row


def _kept(name: str) -> str:
    """Return what stands for a file: its name, or that of a long path as a hash, since an index takes no more."""
    data = name.encode("utf-8", "backslashreplace")
    return name if len(data) <= _MOST_NAME_BYTES else f"sha256:{hashlib.sha256(data).hexdigest()}"


def _is_free(held: Row[Any] | None, stamp: str, now: datetime) -> bool:
    if held is None:
        return True
    return bool(held.file_version != stamp if held.lease_expires_at is None else held.lease_expires_at <= now)
