"""The ledger: append-only events in a hash chain, each with the digests of the rows it concerns.

    hash(n) = sha256(hash(n - 1) + body(n))        body = canonical JSON: id, occurred_at, kind, subject, facts, rows

`rows` holds the digest of every row that the event made or changed, or null for one that retention deleted. So a
changed inspection is found although its table knows no chain. Who owns the database can drop triggers and rewrite the
whole chain; what they cannot do is sign it (`keys`; the signature of an event is that of its hash), or come back to a
chain head that was anchored or printed elsewhere before (`anchors`).
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select, type_coerce
from sqlalchemy.types import NullType

from inspect_xai.errors import StoreError
from inspect_xai.storage import anchors, ledger_rows, signing_keys
from inspect_xai.storage.anchors import Anchor, Anchors
from inspect_xai.storage.database import Database
from inspect_xai.storage.ledger_documents import RowKey, digests, documents, former_of, keys_of
from inspect_xai.storage.ledger_rows import CHANGED_BY, Fetch
from inspect_xai.storage.ledger_rows import Finding as Finding
from inspect_xai.storage.ledger_rows import Progress as Progress
from inspect_xai.storage.tables import LedgerEvent, Model, ReviewRow
from inspect_xai.storage.types import canonical

_LOGGER = logging.getLogger(__name__)

GENESIS: Final = "0" * 64
"""What stands for the hash before the first event."""

KEY: Final = "key"
"""The kind of the events that begin with a key or change to another."""

COVERED_LATE: Final = ("reason_code", "study", "study_answer", "drift_baseline", "alert_sent")
"""Kinds of rows that no event vouched for before revision 0014."""


def no_progress(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it was hashed; `rows` maps "kind/id" to a digest, or to None where the row was deleted."""

    sequence: int
    occurred_at: datetime
    kind: str  # such as verdicts, same_bytes, review, model, policy, rule, hold, retention, audit or key
    subject: str
    facts: dict[str, Any]
    rows: dict[str, str | None]
    previous_hash: str
    hash: str
    signed_by: str = ""  # a public key; empty: not signed
    signature: str = ""  # of `hash`


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """The result of `verify`. `head` is the hash of the last event: note it down outside of the database."""

    events: int
    rows: int
    head: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]  # what is odd but no sign of tampering, for instance a clock that went backwards
    signed_since: int = 0  # the first event that is signed by a key that is trusted; 0: none is
    signed_by: str = ""  # the public key that signed last
    is_pinned: bool = False  # the keys were given, and not only read out of the ledger
    anchored_events: int = 0  # as many events cannot have changed unseen since `anchored_at`
    anchored_at: datetime | None = None
    anchors: int = 0  # how many anchors fit

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
    made: Mapping[str, Iterable[RowKey]],
    deleted: Mapping[str, Iterable[RowKey]] | None = None,
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

    Raises:
        StoreError: Events are signed, and the key set here is not the one that signs.
        SettingsError: The key set here cannot be used.
    """
    rows: dict[str, str | None] = {}
    for name, ids in made.items():
        rows |= {f"{name}/{number}": digest for number, digest in digests(connection, name, list(ids)).items()}
    for name, ids in (deleted or {}).items():
        rows |= {f"{name}/{number}": None for number in ids}
    signer = connection.get_execution_options().get(signing_keys.OPTION)
    if check_key(connection) is None and signer is not None:
        begin_key(connection, signer, now=now)
    return _written(connection, kind, subject, facts=facts, rows=rows, now=now, signer=signer)


def check_key(connection: Connection) -> str | None:
    """Return the public key that signed the newest event; None: it is not signed.

    Raises:
        StoreError: Events are signed, and the key set here is not the one that signed last, or none is set.
        SettingsError: The key set here cannot be used.
    """
    signer: signing_keys.Signer | None = connection.get_execution_options().get(signing_keys.OPTION)
    query = select(LedgerEvent.signed_by).order_by(LedgerEvent.id.desc()).limit(1)
    last = connection.execute(query).scalar()
    if last is not None and signer is None:
        raise StoreError(
            f"the events of this ledger are signed (key {last[:16]}), and no key is set here",
            expected="the file of that key",
            remedy="name it: setting ledger.key or INSPECT_XAI_LEDGER__KEY",
        )
    if last is not None and signer is not None and signer.public_key != last:
        here = signer.public_key[:16]
        raise StoreError(
            f"the events of this ledger are signed with the key {last[:16]}, and {signer.file} is {here}",
            remedy="name the file of that key, or change to the new one: inspect-xai ledger key rotate",
        )
    return last


def begin_key(connection: Connection, signer: signing_keys.Signer, *, now: datetime, before: str = "") -> str:
    """Append an event that names the new key and is signed by it; `before`: a key that was lost."""
    facts = {"change": "begun", "public_key": signer.public_key} | ({"lost": before} if before else {})
    return _written(connection, KEY, signer.public_key, facts=facts, rows={}, now=now, signer=signer)


def rotate_key(connection: Connection, new: signing_keys.Signer, *, by: str, now: datetime, lost: bool = False) -> str:
    """Change to another key: the old one signs that the new one follows, unless it was lost.

    Raises:
        StoreError: Events are not signed yet, or the new key is the old one.
    """
    query = select(LedgerEvent.signed_by).order_by(LedgerEvent.id.desc()).limit(1)
    last = connection.execute(query).scalar()
    if last is None:
        raise StoreError("the events of this ledger are not signed", remedy="set ledger.key: the next event begins it")
    if last == new.public_key:
        raise StoreError(f"the events of this ledger are signed with this very key ({last[:16]}) already")
    if not lost:
        check_key(connection)
        facts = {"change": "rotated", "public_key": new.public_key, "by": by}
        signer = connection.get_execution_options()[signing_keys.OPTION]
        _written(connection, KEY, new.public_key, facts=facts, rows={}, now=now, signer=signer)
    return begin_key(connection, new, now=now, before=last if lost else "")


def adopt(connection: Connection, *, now: datetime) -> int:
    """Vouch for the rows recorded before events vouched for their kind; return their number."""
    made = {kind: list(keys_of(connection, kind)) for kind in COVERED_LATE}
    count = sum(map(len, made.values()))
    if count:
        append(connection, "adopted", "", facts={"rows": count}, now=now, made=made)
    return count


def newest(connection: Connection) -> tuple[int, str]:
    """Return number and hash of the last event."""
    query = select(LedgerEvent.id, LedgerEvent.hash).order_by(LedgerEvent.id.desc()).limit(1)
    last = connection.execute(query).first()
    return (last.id, last.hash) if last else (0, GENESIS)


def hash_at(connection: Connection, number: int) -> str | None:
    """Return the hash of an event; None: no event has that number."""
    return connection.execute(select(LedgerEvent.hash).where(LedgerEvent.id == number)).scalar()


def _written(
    connection: Connection,
    kind: str,
    subject: str,
    *,
    facts: Mapping[str, Any],
    rows: Mapping[str, str | None],
    now: datetime,
    signer: signing_keys.Signer | None,
) -> str:
    number, previous = newest(connection)
    body = canonical(
        {"id": number + 1, "occurred_at": _told(now), "kind": kind, "subject": subject, "facts": facts, "rows": rows}
    )
    event_hash = chained(previous, body)
    row = {
        "id": number + 1,
        "occurred_at": now,
        "kind": kind,
        "subject": subject,
        "body": body,
        "previous_hash": previous,
        "hash": event_hash,
        "signed_by": signer.public_key if signer else None,
        "signature": signer.sign(event_hash) if signer else None,
    }
    connection.execute(insert(LedgerEvent), row)
    return event_hash


def chained(previous_hash: str, body: str) -> str:
    """Compute the hash of an event from the hash before it and its own body.

    >>> chained("0" * 64, "{}")[:8]
    '5508d2b7'
    """
    return hashlib.sha256((previous_hash + body).encode()).hexdigest()


def events(
    connection: Connection, *, after: int = 0, kind: str | None = None, subject: str | None = None
) -> Iterator[Event]:
    """Read the events after one from their bodies, in the order of the chain; one that is broken is logged."""
    query = _as_stored().where(LedgerEvent.id > after)
    if kind is not None:
        query = query.where(LedgerEvent.kind == kind)
    if subject is not None:
        query = query.where(LedgerEvent.subject == subject)
    for row in connection.execute(query.execution_options(yield_per=200)):
        try:
            yield _event(row, _spoken(row.body))
        except (ValueError, TypeError, KeyError):
            _LOGGER.warning("event %d of the ledger cannot be read: run inspect-xai ledger verify", row.id)


def vouching(connection: Connection, names: Collection[str]) -> list[Event]:
    """Return the events that vouch for these rows, named as "kind/id"."""
    wanted = set(names)
    return [event for event in events(connection) if not wanted.isdisjoint(event.rows)]


def chain(connection: Connection, *, after: int) -> list[dict[str, Any]]:
    """Return the events after one as they are hashed and signed, whatever their bodies say."""
    names = ("id", "body", "previous_hash", "hash", "signed_by", "signature")
    query = select(*(LedgerEvent.__table__.columns[name] for name in names)).where(LedgerEvent.id > after)
    return [dict(row) for row in connection.execute(query.order_by(LedgerEvent.id)).mappings()]


def head(connection: Connection) -> str:
    """Return the hash of the last event."""
    return newest(connection)[1]


def evidence(connection: Connection, inspection_ids: Collection[int]) -> dict[str, Any]:
    """Return documents of inspections, reviews and models with the events that vouch for them (`Ledger.evidence`)."""
    found = {"inspection": documents(connection, "inspection", inspection_ids)}
    answered = select(ReviewRow.id).where(ReviewRow.inspection_id.in_(inspection_ids))
    found["review"] = documents(connection, "review", connection.execute(answered).scalars().all())
    fingerprints = {document["model"] for document in found["inspection"].values()}
    judges = select(Model.id).where(Model.fingerprint.in_(fingerprints))
    found["model"] = documents(connection, "model", connection.execute(judges).scalars().all())
    named = {f"{kind}/{number}": document for kind, each in found.items() for number, document in each.items()}
    events_found = vouching(connection, named)
    vouched: dict[str, str | None] = {}
    for event in events_found:
        for name, digest in event.rows.items():
            if name.partition("/")[0] in CHANGED_BY or name not in vouched:  # what never changes: the first counts
                vouched[name] = digest
    for name, document in named.items():
        if hashlib.sha256(canonical(document).encode()).hexdigest() != vouched.get(name):
            named[name] = former_of(name.partition("/")[0], document)  # before signals were vouched for
    told = [asdict(event) | {"occurred_at": _told(event.occurred_at)} for event in events_found]
    return {"schema_version": 1, "documents": named, "events": told, "head": head(connection)}


def verify(
    connection: Connection,
    *,
    heads: Iterable[str] = (),
    public_keys: Collection[str] = (),
    anchors: Anchors | None = None,
    fetch: Fetch | None = None,
    on_progress: Progress = no_progress,
) -> LedgerReport:
    """Look for changed, missing and reordered events, and for rows that are not what the events vouch for.

    One finding for a row, and on to the next, whatever somebody made of the tables.

    Args:
        connection: In a reading transaction: it sees one state of everything.
        heads: Chain heads noted down earlier; each must still be a part of the chain.
        public_keys: Keys of which events must be signed, and those that these keys brought in. Without any, the first
            key that signed is believed.
        anchors: What was anchored elsewhere; each anchor must fit.
        fetch: Reads a map from the blob store by its sha256; None: maps there are not read.
        on_progress: Gets what is checked, how many are done, and of how many.
    """
    walk = _Walk(public_keys, {each.events for each in anchors.found} if anchors else ())
    total = connection.execute(select(func.count()).select_from(LedgerEvent)).scalar_one()
    for number, row in enumerate(connection.execute(_as_stored().execution_options(yield_per=200)), start=1):
        walk.take(row)
        if number % 200 == 0 or number == total:
            on_progress("events", number, total)
    vouched = walk.vouched
    findings = walk.findings + walk.trust.lacking()
    findings += ledger_rows.of_rows(connection, vouched, on_progress)
    findings += ledger_rows.of_maps(connection, vouched, fetch, on_progress)
    findings += ledger_rows.of_pictures(connection, vouched)
    findings += ledger_rows.of_desk(connection, vouched.newest_inspection)
    findings += [
        Finding(0, "forgotten_head", f"the chain once ended in {head}, and no longer holds it")
        for head in heads
        if head not in walk.hashes
    ]
    fitting: list[Anchor] = []
    if anchors is not None:
        fitting, others = _held_against(anchors, walk)
        findings += others
    last = max(fitting, key=lambda each: (each.events, each.anchored_at), default=None)
    since = min((each.anchored_at for each in fitting if last and each.events == last.events), default=None)
    elsewhere = 0 if fetch else ledger_rows.maps_elsewhere(connection)
    notes = walk.notes + [f"{elsewhere} maps lie in a blob store and were not read: say --files"] * bool(elsewhere)
    return LedgerReport(
        events=walk.expected - 1,
        rows=sum(map(len, vouched.rows.values())),
        head=walk.previous,
        findings=tuple(findings),
        notes=tuple(notes),
        signed_since=walk.trust.since,
        signed_by=walk.trust.newest,
        is_pinned=bool(walk.trust.pinned),
        anchored_events=last.events if last else 0,
        anchored_at=since,
        anchors=len(fitting),
    )


class _Trust:
    """The keys that may sign the next event; without given ones the first that signs is trusted."""

    def __init__(self, pinned: Collection[str]) -> None:
        self.pinned = frozenset(pinned)
        self.trusted = set(pinned)
        self.known = set(pinned)  # all that ever were trusted
        self.since = 0
        self.newest = ""
        self.strangers: dict[str, int] = {}  # keys that signed before the first given one did

    def judge(self, row: Row[Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
        """Check the signature of the next event."""
        key, signature = str(row.signed_by or ""), str(row.signature or "")
        if not key and not signature:
            if self.since:
                yield Finding(row.id, "unsigned", f"event {row.id} is not signed; all since event {self.since} were")
            return
        if not signing_keys.fits(key, str(row.hash), signature):
            yield Finding(row.id, "forged", f"the signature of event {row.id} is not that of the key {key[:16]}")
            return
        if not self.pinned and not self.since:
            self.trusted.add(key)
        if key not in self.trusted:
            if self.since:
                yield Finding(row.id, "forged", f"event {row.id} is signed by {key[:16]}, which no trusted key brought")
            else:
                self.strangers.setdefault(key, row.id)
            return
        self.since, self.newest = self.since or row.id, key
        self.known.add(key)
        if row.kind == KEY and facts.get("change") == "rotated":
            self.trusted.discard(key)
            self.trusted.add(str(facts.get("public_key")))
            self.known.add(str(facts.get("public_key")))

    def lacking(self) -> list[Finding]:
        """Report that keys were given and none of them signed."""
        if not self.pinned or self.since:
            return []
        named = f"; signed is by {', '.join(key[:16] for key in self.strangers)}" if self.strangers else ""
        return [Finding(0, "unsigned", f"no event is signed by a given key{named}")]


class _Walk:
    """Reads the events one after the other and keeps what they say."""

    def __init__(self, public_keys: Collection[str], numbers: Collection[int]) -> None:
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.hashes = {GENESIS}
        self.hash_at: dict[int, str] = {}
        self.expected, self.previous = 1, GENESIS
        self.trust = _Trust(public_keys)
        self.vouched = ledger_rows.Vouched()
        self._moment = datetime.min.replace(tzinfo=UTC)
        self._numbers = frozenset(numbers)

    def take(self, row: Row[Any]) -> None:
        """Look at the next event."""
        if row.id > self.expected:
            self.findings.append(Finding(row.id, "missing", f"no event {self.expected} to {row.id - 1}"))
        elif row.id < self.expected or row.previous_hash != self.previous:
            self.findings.append(Finding(row.id, "reordered", f"event {row.id} does not follow event {row.id - 1}"))
        moment = _moment(row.occurred_at)
        spoken = _spoken(row.body)
        facts = spoken.get("facts")
        self.findings += _of_event(row, spoken, moment)
        self.findings += self.trust.judge(row, facts if isinstance(facts, dict) else {})
        if moment is not None:
            if moment < self._moment:
                self.notes.append(f"event {row.id}: the clock went backwards by {self._moment - moment}")
            self._moment = moment
        if row.kind == "adopted":
            self.notes.append(f"event {row.id}: rows recorded before events vouched for them were taken as they were")
        self.findings += self.vouched.hear(row.id, str(row.kind), moment, spoken)
        self.expected, self.previous = row.id + 1, row.hash
        self.hashes.add(row.hash)
        if row.id in self._numbers:
            self.hash_at[row.id] = row.hash


def _held_against(anchors: Anchors, walk: _Walk) -> tuple[list[Anchor], list[Finding]]:
    """Compare anchors with the chain: return those that fit, and findings about the others."""
    findings = [Finding(0, "changed", f"{name} at {anchors.place} is no anchor") for name in anchors.broken]
    if not anchors.found:
        findings.append(Finding(0, "missing", f"there are no anchors at {anchors.place}"))
    fitting = []
    for each in anchors.found:
        named = f"the anchor of {each.anchored_at.isoformat(timespec='seconds')}"
        if each.signed_by and not (each.signed_by in walk.trust.known and each.has_own_signature):
            findings.append(Finding(0, "forged", f"{named} is not signed by a key of this ledger"))
        elif walk.hash_at.get(each.events) != each.head:
            what = f"{named} says that event {each.events} ended in {each.head}; the chain no longer holds it"
            findings.append(Finding(0, "forgotten_head", what))
        else:
            fitting.append(each)
    return fitting, findings


def _of_event(row: Row[Any], spoken: Mapping[str, Any], moment: datetime | None) -> Iterator[Finding]:
    """Check one event by itself: its hash, and its columns against its body."""
    if chained(str(row.previous_hash), str(row.body)) != row.hash:
        yield Finding(row.id, "changed", f"event {row.id} does not hash to what it says")
        return
    told = None if moment is None else _told(moment)
    columns = {"id": row.id, "occurred_at": told, "kind": row.kind, "subject": row.subject}
    if any(spoken.get(name) != value for name, value in columns.items()):
        yield Finding(row.id, "changed", f"the columns of event {row.id} say something else than its body")


def _as_stored() -> Any:
    """Select all events in order, with times as the driver gives them: an invalid one must not end the check."""
    columns = [
        type_coerce(column, NullType()).label(column.name) if column.name == "occurred_at" else column
        for column in LedgerEvent.__table__.columns
    ]
    return select(*columns).order_by(LedgerEvent.id)


def _moment(value: object) -> datetime | None:
    """Parse the time of an event as the driver gave it; None: it is no time."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _spoken(body: object) -> dict[str, Any]:
    """Parse the document of a body; empty where it was overwritten, which the hash shows anyway."""
    try:
        document = json.loads(str(body))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _event(row: Row[Any], body: Mapping[str, Any]) -> Event:
    return Event(
        sequence=body["id"],
        occurred_at=datetime.fromisoformat(body["occurred_at"]),
        kind=body["kind"],
        subject=body["subject"],
        facts=dict(body["facts"]),
        rows=dict(body["rows"]),
        previous_hash=row.previous_hash,
        hash=row.hash,
        signed_by=row.signed_by or "",
        signature=row.signature or "",
    )


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


class Ledger:
    """The ledger of a database. Each call is one transaction.

    Args:
        database: An open one; it is not closed here.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def verify(
        self,
        *,
        heads: Iterable[str] = (),
        public_keys: Collection[str] = (),
        anchored_at: str = "",
        blobs: bool = False,
        on_progress: Progress = no_progress,
    ) -> LedgerReport:
        """Look for events and rows that are not what they were.

        Args:
            heads: Chain heads noted down earlier.
            public_keys: Keys that events must be signed with, and those that these keys brought in.
            anchored_at: The place of the anchors, which must fit; empty: they are not looked at.
            blobs: Read the maps in the blob store too.
            on_progress: Gets what is checked ("events", "rows", "maps"), how many are done, and of how many.

        Raises:
            DatabaseAwayError: The database, the anchors or the blob store cannot be read.
        """
        known = anchors.read(anchored_at) if anchored_at else None
        with self._database.read() as connection:
            return verify(
                connection,
                heads=heads,
                public_keys=public_keys,
                anchors=known,
                on_progress=on_progress,
                fetch=self._database.read_blob if blobs else None,
            )

    def anchor(self, place: str) -> anchors.Anchor:
        """Keep the chain's head at a place that the database's owner cannot write.

        Args:
            place: A file whose name ends in ".jsonl", a folder, or a URL that fsspec knows (`storage.anchors`).

        Raises:
            StoreError: There is no event yet, or the newest anchor there is none of this ledger: nothing is written.
            DatabaseAwayError: The place cannot be read or written.
        """
        before = anchors.read(place).found[-1:]
        with self._database.read() as connection:
            number, head = newest(connection)
            for last in before:
                if hash_at(connection, last.events) != last.head:
                    raise StoreError(
                        f"the newest anchor at {place} says that event {last.events} ended in {last.head}: this "
                        "ledger does not hold it",
                        remedy="run: inspect-xai ledger verify --anchors; give every database a place of its own",
                    )
        if not number:
            raise StoreError("the ledger has no event yet", remedy="anchor it when something was recorded")
        anchor = anchors.Anchor(self._database.clock(), number, head)
        signer = self._database.engine.get_execution_options().get(signing_keys.OPTION)
        if signer is not None:
            signed = {"signed_by": signer.public_key, "signature": signer.sign(anchor.words)}
            anchor = dataclasses.replace(anchor, **signed)
        anchors.write(place, anchor)
        return anchor

    def signed_by(self) -> str:
        """Return the public key that signed the newest event; empty: it is not signed.

        Raises:
            StoreError: It is signed, and the key set here is not that one, or none is set.
            SettingsError: The key set here cannot be used.
        """
        with self._database.read() as connection:
            return check_key(connection) or ""

    def rotate_key(self, new: Path, *, by: str, lost: bool = False) -> str:
        """Sign with another key from now on; the old one signs that, unless it was lost.

        Args:
            new: File of the new private key.
            by: Who changes it.
            lost: The old key is not there any more; then `verify` wants the new public key given.

        Returns:
            The new public key.

        Raises:
            StoreError: Events are not signed yet, or the key set here is not the one that signs.
        """
        signer = signing_keys.Signer(new)
        with self._database.write() as connection:
            rotate_key(connection, signer, by=by, now=self._database.clock(), lost=lost)
        self._database.engine.update_execution_options(**{signing_keys.OPTION: signer})
        return signer.public_key

    def head(self) -> str:
        """Return the hash of the last event: kept elsewhere, it shows whether the chain was rewritten."""
        with self._database.read() as connection:
            return head(connection)

    def events(self, *, after: int = 0, kind: str | None = None, subject: str | None = None) -> list[Event]:
        """Events of the ledger in the order of the chain."""
        with self._database.read() as connection:
            return list(events(connection, after=after, kind=kind, subject=subject))

    def chain(self, *, after: int = 0) -> list[dict[str, Any]]:
        """Return the events after one as they are hashed and signed, whatever their bodies say."""
        with self._database.read() as connection:
            return chain(connection, after=after)

    def evidence(self, inspection_ids: Sequence[int]) -> dict[str, Any]:
        """Return the documents of these inspections, the events that vouch for them and the chain head, as JSON.

        A reader can check it without us: the sha256 of each document, spelled canonically (sorted keys, no spaces),
        stands in the `rows` of an event, and that of `previous_hash` and the event's body is its `hash`.
        """
        with self._database.read() as connection:
            return evidence(connection, inspection_ids)
