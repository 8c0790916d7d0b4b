"""The ledger: append-only events in a hash chain, each vouching for the rows it speaks of.

    hash(n) = sha256(hash(n - 1) + body(n))        body = canonical JSON: id, occurred_at, kind, subject, facts, rows

`rows` holds the digest of every row that the event made or changed, or null for one that retention deleted. So a
changed inspection is found although its table knows no chain. Who owns the database can drop triggers and rewrite the
whole chain; what they cannot do is come back to a chain head that was printed or sent elsewhere before. Keep heads (the
nightly report prints one) and give them to `verify`.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select

from inspect_xai.storage.documents import VOUCHED, chunks, digests, documents, without_signal
from inspect_xai.storage.tables import LedgerEvent, Model, Review
from inspect_xai.storage.types import canonical

Progress = Callable[[str, int, int], None]
GENESIS: Final = "0" * 64
"""What stands for the hash before the first event."""


def unheard(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it was hashed; `rows` maps "kind/id" to a digest, or to None where the row was deleted."""

    sequence: int
    occurred_at: datetime
    kind: str  # such as verdicts, same_bytes, review, model, policy, rule, hold, retention or audit
    subject: str
    facts: dict[str, Any]
    rows: dict[str, str | None]
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where ledger or rows are not what they were."""

    sequence: int  # the event that shows it; 0: none does
    kind: str  # changed, missing, reordered, unvouched or forgotten_head
    what: str


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What `verify` saw. `head` is the hash of the last event: note it down outside of the database."""

    events: int
    rows: int
    head: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]  # what is odd but no sign of tampering, for instance a clock that went backwards

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def append(
    connection: Connection,
    kind: str,
    subject: str,
    *,
    facts: Mapping[str, Any],
    now: datetime,
    made: Mapping[str, Iterable[int]],
    deleted: Mapping[str, Iterable[int]] | None = None,
) -> str:
    """Add an event in the transaction that also writes what it speaks of.

    Args:
        connection: In a writing transaction, which keeps every other writer out.
        kind: What happened.
        subject: To whom or what: a run, a fingerprint, an inspection.
        facts: What a reader of the ledger should know, as JSON.
        now: The time of the clock.
        made: Ids of rows that were made or changed, by kind of row (`documents.VOUCHED`).
        deleted: Ids of rows that were deleted.

    Returns:
        The new chain head.
    """
    rows: dict[str, str | None] = {}
    for name, ids in made.items():
        rows |= {f"{name}/{number}": digest for number, digest in digests(connection, name, list(ids)).items()}
    for name, ids in (deleted or {}).items():
        rows |= {f"{name}/{number}": None for number in ids}
    last = connection.execute(select(LedgerEvent.id, LedgerEvent.hash).order_by(LedgerEvent.id.desc()).limit(1)).first()
    sequence, previous = (last.id + 1, last.hash) if last else (1, GENESIS)
    body = canonical(
        {
            "id": sequence,
            "occurred_at": _told(now),
            "kind": kind,
            "subject": subject,
            "facts": facts,
            "rows": rows,
        }
    )
    event_hash = chained(previous, body)
    row = {
        "id": sequence,
        "occurred_at": now,
        "kind": kind,
        "subject": subject,
        "body": body,
        "previous_hash": previous,
        "hash": event_hash,
    }
    connection.execute(LedgerEvent.__table__.insert(), row)  # type: ignore[attr-defined]
    return event_hash


def chained(previous_hash: str, body: str) -> str:
    """The hash of an event, from the one before it and its own body.

    >>> chained("0" * 64, "{}")[:8]
    '5508d2b7'
    """
    return hashlib.sha256((previous_hash + body).encode()).hexdigest()


def body_of(event: Event) -> str:
    """The body of an event as it was hashed."""
    return canonical(
        {
            "id": event.sequence,
            "occurred_at": _told(event.occurred_at),
            "kind": event.kind,
            "subject": event.subject,
            "facts": event.facts,
            "rows": event.rows,
        }
    )


def events(
    connection: Connection, *, after: int = 0, kind: str | None = None, subject: str | None = None
) -> Iterator[Event]:
    """Events after one, in the order of the chain, as their bodies tell them."""
    query = select(LedgerEvent.__table__).where(LedgerEvent.id > after).order_by(LedgerEvent.id)
    if kind is not None:
        query = query.where(LedgerEvent.kind == kind)
    if subject is not None:
        query = query.where(LedgerEvent.subject == subject)
    for row in connection.execute(query.execution_options(yield_per=200)):
        yield _event(row, json.loads(row.body))


def vouching(connection: Connection, names: Collection[str]) -> list[Event]:
    """The events that speak of these rows, given as "kind/id"."""
    wanted = set(names)
    return [event for event in events(connection) if not wanted.isdisjoint(event.rows)]


def head(connection: Connection) -> str:
    """The hash of the last event."""
    query = select(LedgerEvent.hash).order_by(LedgerEvent.id.desc()).limit(1)
    return connection.execute(query).scalar() or GENESIS


def evidence(connection: Connection, inspection_ids: Collection[int]) -> dict[str, Any]:
    """Documents of inspections, their reviews and models, and the events that vouch for them (`Store.evidence`)."""
    found = {"inspection": documents(connection, "inspection", inspection_ids)}
    answered = select(Review.id).where(Review.inspection_id.in_(inspection_ids))
    found["review"] = documents(connection, "review", connection.execute(answered).scalars().all())
    fingerprints = {document["model"] for document in found["inspection"].values()}
    judges = select(Model.id).where(Model.fingerprint.in_(fingerprints))
    found["model"] = documents(connection, "model", connection.execute(judges).scalars().all())
    named = {f"{kind}/{number}": document for kind, each in found.items() for number, document in each.items()}
    events_found = vouching(connection, named)
    vouched = {name: digest for event in events_found for name, digest in event.rows.items()}
    for name, document in named.items():
        if hashlib.sha256(canonical(document).encode()).hexdigest() != vouched.get(name):
            named[name] = without_signal(document)  # as its digest was taken, before signals were vouched for
    told = [asdict(event) | {"occurred_at": _told(event.occurred_at)} for event in events_found]
    return {"schema_version": 1, "documents": named, "events": told, "head": head(connection)}


def verify(connection: Connection, *, heads: Iterable[str] = (), on_progress: Progress = unheard) -> LedgerReport:
    """Look for changed, missing and reordered events, and for rows that are not what the events vouch for.

    Args:
        connection: In a reading transaction: it sees one state of everything.
        heads: Chain heads noted down earlier; each must still be a part of the chain.
        on_progress: Is told what is looked at, how many are done, and of how many.
    """
    findings: list[Finding] = []
    notes: list[str] = []
    vouched: dict[str, dict[int, tuple[int, str | None]]] = defaultdict(dict)
    hashes, expected, previous, moment = {GENESIS}, 1, GENESIS, datetime.min.replace(tzinfo=UTC)
    total = connection.execute(select(func.count()).select_from(LedgerEvent)).scalar_one()
    every = select(LedgerEvent.__table__).order_by(LedgerEvent.id).execution_options(yield_per=200)
    for number, row in enumerate(connection.execute(every), start=1):
        if row.id != expected:
            findings.append(Finding(row.id, "missing", f"no event {expected} to {row.id - 1}"))
        elif row.previous_hash != previous:
            findings.append(Finding(row.id, "reordered", f"event {row.id} does not follow event {row.id - 1}"))
        spoken = _spoken(row.body)
        findings += _of_event(row, spoken)
        if row.occurred_at < moment:
            notes.append(f"event {row.id}: the clock went backwards by {moment - row.occurred_at}")
        expected, previous, moment = row.id + 1, row.hash, row.occurred_at
        hashes.add(row.hash)
        for kind, row_id, digest in _vouched(spoken):
            vouched[kind][row_id] = (row.id, digest)
        if number % 200 == 0 or number == total:
            on_progress("events", number, total)
    findings += _of_rows(connection, vouched, on_progress)
    findings += [
        Finding(0, "forgotten_head", f"the chain once ended in {head}, and no longer holds it")
        for head in heads
        if head not in hashes
    ]
    return LedgerReport(expected - 1, sum(map(len, vouched.values())), previous, tuple(findings), tuple(notes))


def _of_event(row: Row[Any], spoken: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with one event by itself."""
    if chained(row.previous_hash, row.body) != row.hash:
        yield Finding(row.id, "changed", f"event {row.id} does not hash to what it says")
        return
    columns = {"id": row.id, "occurred_at": _told(row.occurred_at), "kind": row.kind, "subject": row.subject}
    if any(spoken.get(name) != value for name, value in columns.items()):
        yield Finding(row.id, "changed", f"the columns of event {row.id} say something else than its body")


def _vouched(spoken: Mapping[str, Any]) -> Iterator[tuple[str, int, str | None]]:
    rows = spoken.get("rows", {})
    for name, digest in rows.items() if isinstance(rows, dict) else ():
        kind, _, number = name.partition("/")
        if number.isdecimal():
            yield kind, int(number), digest


def _spoken(body: str) -> dict[str, Any]:
    """The document of a body; empty for one that was written over, which its hash has told already."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _of_rows(
    connection: Connection, vouched: Mapping[str, Mapping[int, tuple[int, str | None]]], on_progress: Progress
) -> Iterator[Finding]:
    total, done = sum(len(known) for kind, known in vouched.items() if kind in VOUCHED), 0
    for kind, table in VOUCHED.items():
        known = vouched.get(kind, {})
        for chunk in chunks(known):
            found = digests(connection, kind, chunk)
            others = [number for number in chunk if number in found and found[number] != known[number][1]]
            former = digests(connection, kind, others, former=True)
            for number in chunk:
                sequence, digest = known[number]
                if digest is not None and digest == former.get(number):
                    continue  # taken before signals were vouched for
                if digest is not None and number not in found:
                    yield Finding(sequence, "missing", f"{kind} {number} is gone without a deletion in the ledger")
                elif digest != found.get(number):
                    yield Finding(sequence, "changed", f"{kind} {number} is not what event {sequence} recorded")
            done += len(chunk)
            on_progress("rows", done, total)
        for number in connection.execute(select(table.__table__.columns["id"])).scalars():
            if number not in known:
                yield Finding(
                    0, "unvouched", f"{kind} {number} is in no event: written past the store, or events cut off"
                )


def _event(row: Row[Any], body: Mapping[str, Any]) -> Event:
    return Event(
        sequence=body["id"],
        occurred_at=datetime.fromisoformat(body["occurred_at"]),
        kind=body["kind"],
        subject=body["subject"],
        facts=body["facts"],
        rows=body["rows"],
        previous_hash=row.previous_hash,
        hash=row.hash,
    )


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
