"""Compare rows with the ledger's events: at most one finding for a row, and the check always goes on to the next.

Rows that never change are held against the first digest that an event gave of them, those that may change against the
last one. What needs no digest is held against what is recorded anyway: maps against their own sha256, marks of
deletion against what retention recorded in the ledger, the desk's queue against the inspections and answers.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, and_, case, exists, func, or_, select
from sqlalchemy.exc import OperationalError

from inspect_xai.errors import DatabaseAwayError, StoreError
from inspect_xai.storage.ledger_documents import VOUCHED, RowKey, chunks, digests, key_of, keys_of
from inspect_xai.storage.map_codec import described
from inspect_xai.storage.review_reasons import BLIND_PRIORITY, PRIORITIES, State
from inspect_xai.storage.tables import (
    BlockMapRow,
    CaptureRow,
    ExplanationRow,
    InspectionRow,
    MapBlob,
    ReviewCursor,
    ReviewQueueItem,
    ReviewRow,
)

Progress = Callable[[str, int, int], None]
Fetch = Callable[[str], bytes]
Key = TypeVar("Key")
Value = TypeVar("Value")

CHANGED_BY: Final[Mapping[str, frozenset[str]]] = {
    "model": frozenset({"model"}),
    "policy": frozenset({"policy"}),  # a version that a verdict named first gets its content, once
    "retention_rule": frozenset({"rule"}),
    "legal_hold": frozenset({"hold"}),
    "reason_code": frozenset({"reason"}),
    "study": frozenset({"retention"}),  # its parts go with their inspections
}
"""Events that may record another state of a row; a row of another kind never changes."""

DELETED_BY: Final = "retention"
_NEVER_AGAIN: Final = ("inspection", "review")  # the id of a deleted one is never given to another
_MAPS_AT_ONCE: Final = 100
# What comes of values that no column of this kind could hold: no JSON, no time, no UTF-8, NULL.
_UNREADABLE: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OperationalError)


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where ledger or rows are not what they were."""

    sequence: int  # the event that shows it; 0: none does
    kind: str  # changed, missing, reordered, unvouched, forgotten_head, unsigned or forged
    what: str


@dataclass(slots=True)
class Vouched:
    """The rows that the events vouch for, collected as they are read in order."""

    rows: dict[str, dict[RowKey, tuple[int, str | None]]] = field(default_factory=lambda: defaultdict(dict))
    former: dict[RowKey, str] = field(default_factory=dict)  # digests of policies before they had a content
    maps_gone: dict[str, set[datetime]] = field(default_factory=lambda: defaultdict(set))
    pictures_gone: dict[str, set[datetime]] = field(default_factory=lambda: defaultdict(set))

    def hear(self, sequence: int, kind: str, moment: datetime | None, body: Mapping[str, Any]) -> Iterator[Finding]:
        """Take in the rows that one event vouches for; what it may not vouch for is a finding."""
        facts, rows = body.get("facts"), body.get("rows")
        if kind == DELETED_BY and isinstance(facts, dict) and moment is not None:
            for name, gone in (("maps", self.maps_gone), ("pictures", self.pictures_gone)):
                for each in facts.get(name) or ():
                    gone[str(each)].add(moment)
        for name, digest in rows.items() if isinstance(rows, dict) else ():
            row_kind, _, words = name.partition("/")
            key = key_of(row_kind, words)
            if row_kind in VOUCHED and key is not None:
                yield from self._hear_row(sequence, kind, row_kind, key, digest)

    def _hear_row(
        self, sequence: int, event_kind: str, kind: str, key: RowKey, digest: str | None
    ) -> Iterator[Finding]:
        known = self.rows[kind].get(key)
        if not self._is_allowed(event_kind, kind, key, known, digest):
            first = f", otherwise than event {known[0]} did" if known else ""
            yield Finding(sequence, "changed", f"event {sequence} ({event_kind}) says what {kind} {key} is{first}")
            return
        if kind == "policy" and known and known[1] and known[1] != digest:
            self.former[key] = known[1]
        if known is None or known[1] != digest:
            self.rows[kind][key] = (sequence, digest)

    def _is_allowed(
        self, event_kind: str, kind: str, key: RowKey, known: tuple[int, str | None] | None, digest: str | None
    ) -> bool:
        if digest is None:
            return event_kind == DELETED_BY
        if known is None or known[1] == digest:
            return True
        if known[1] is None:
            return kind not in _NEVER_AGAIN
        if kind == "policy" and key in self.former:
            return False
        return event_kind in CHANGED_BY.get(kind, ())

    @property
    def newest_inspection(self) -> int:
        """The largest number an inspection ever had."""
        return max((int(key) for key in self.rows["inspection"]), default=0)


def of_rows(connection: Connection, vouched: Vouched, on_progress: Progress) -> Iterator[Finding]:
    """Find rows that differ from what the events recorded, that are gone, or that no event vouches for."""
    total, done = sum(len(vouched.rows[kind]) for kind in VOUCHED), 0
    for kind in VOUCHED:
        known = vouched.rows[kind]
        for chunk in chunks(known):
            yield from _of_chunk(connection, kind, {key: known[key] for key in chunk}, vouched)
            done += len(chunk)
            on_progress("rows", done, total)
        for key in keys_of(connection, kind):
            if key not in known:
                yield Finding(0, "unvouched", f"{kind} {key} is in no event: written past the store, or events cut off")


def _of_chunk(
    connection: Connection, kind: str, known: Mapping[RowKey, tuple[int, str | None]], vouched: Vouched
) -> Iterator[Finding]:
    found, broken = _tried(list(known), lambda ids: digests(connection, kind, ids))
    doubtful = [key for key in found if found[key] != known[key][1] or key in vouched.former]
    former, _ = _tried(doubtful, lambda ids: digests(connection, kind, ids, former=True))
    for key, (sequence, digest) in known.items():
        if key in broken:
            yield Finding(sequence, "changed", f"{kind} {key} cannot be read: {broken[key]}")
        elif digest is not None and key not in found:
            yield Finding(sequence, "missing", f"{kind} {key} is gone without a deletion in the ledger")
        elif kind == "policy" and key in vouched.former:
            if (digest, vouched.former[key]) != (found[key], former.get(key)):
                yield Finding(sequence, "changed", f"{kind} {key} is not what event {sequence} recorded")
        elif digest != found.get(key) and (kind != "inspection" or digest != former.get(key)):
            yield Finding(sequence, "changed", f"{kind} {key} is not what event {sequence} recorded")


def of_maps(connection: Connection, vouched: Vouched, fetch: Fetch | None, on_progress: Progress) -> Iterator[Finding]:
    """Find maps that do not hash to their sha256, and marks of deletion that no event recorded.

    Args:
        connection: In a reading transaction.
        vouched: What the events say.
        fetch: Reads a map from the blob store by its sha256; None: maps there are not read.
        on_progress: Gets how many maps are done, and of how many.
    """
    ids = list(connection.execute(select(MapBlob.id).order_by(MapBlob.id)).scalars())
    for start in range(0, len(ids), _MAPS_AT_ONCE):
        chunk = ids[start : start + _MAPS_AT_ONCE]
        rows, broken = _tried(chunk, lambda some: _by_id(connection, MapBlob, some))
        for number in chunk:
            if number in broken:
                yield Finding(0, "changed", f"map {number} cannot be read: {broken[number]}")
            elif number in rows:
                kind, what = _wrong_with_map(connection, rows[number], vouched.maps_gone, fetch) or ("", "")
                if kind:
                    yield Finding(0, kind, f"map {number} ({rows[number].sha256}) {what}")
        on_progress("maps", start + len(chunk), len(ids))


def maps_elsewhere(connection: Connection) -> int:
    """Count the maps that lie in a blob store."""
    there = select(func.count()).where(MapBlob.data.is_(None), MapBlob.deleted_at.is_(None))
    return connection.execute(there).scalar_one()


def _wrong_with_map(
    connection: Connection, row: Row[Any], gone: Mapping[str, Collection[datetime]], fetch: Fetch | None
) -> tuple[str, str] | None:
    deletions = gone.get(row.sha256, ())
    if row.deleted_at is not None:
        if row.data is not None:
            return "changed", "is marked as deleted, and its bytes are there"
        return None if row.deleted_at in deletions else ("changed", "is marked as deleted, and no event says so")
    data = row.data
    if data is None:
        if deletions and not _is_used_since(connection, row.id, max(deletions)):
            return "changed", "was deleted by retention, and its mark is gone"
        if fetch is None:
            return None
        try:
            data = fetch(row.sha256)
        except DatabaseAwayError:
            raise
        except StoreError as error:
            return "missing", f"is not there: {error.found}"
    says = {name: getattr(row, name) for name in ("codec", "dtype", "precision", "shape", "size_bytes")}
    try:
        if hashlib.sha256(data).hexdigest() != row.sha256:
            return "changed", "has other bytes than were recorded"
        return None if says == described(data) else ("changed", "is described otherwise than its bytes say")
    except (StoreError, TypeError) as error:
        return "changed", f"is none: {error}"


def _is_used_since(connection: Connection, blob_id: int, moment: datetime) -> bool:
    """Return whether an explanation recorded after a moment uses a map: it was written again with it."""
    in_part = exists().where(BlockMapRow.explanation_id == ExplanationRow.id, BlockMapRow.sums_blob_id == blob_id)
    used = (
        select(InspectionRow.id)
        .join(ExplanationRow, ExplanationRow.inspection_id == InspectionRow.id)
        .where(InspectionRow.recorded_at >= moment, or_(ExplanationRow.fused_blob_id == blob_id, in_part))
    )
    return connection.execute(used.limit(1)).first() is not None


def of_pictures(connection: Connection, vouched: Vouched) -> Iterator[Finding]:
    """Find marks of deleted pictures that no retention event recorded, and deletions without their mark."""
    gone = vouched.pictures_gone
    places = select(
        CaptureRow.id, CaptureRow.archived_to, CaptureRow.picture_deleted_at.is_not(None).label("is_marked")
    )
    every = connection.execute(places if gone else places.where(CaptureRow.picture_deleted_at.is_not(None)))
    for chunk in chunks([row.id for row in every if row.is_marked or row.archived_to in gone]):
        rows, broken = _tried(chunk, lambda some: _by_id(connection, CaptureRow, some))
        for number in chunk:
            if number in broken:
                yield Finding(0, "changed", f"capture {number} cannot be read: {broken[number]}")
                continue
            row = rows[number]
            moments = gone.get(row.archived_to, ())
            if row.picture_deleted_at is not None and row.picture_deleted_at not in moments:
                yield Finding(
                    0, "changed", f"the picture of capture {number} is marked as deleted, and no event says so"
                )
            elif row.picture_deleted_at is None and moments and _was_there(connection, number, max(moments)):
                yield Finding(
                    0, "changed", f"the picture of capture {number} was deleted by retention, and its mark is gone"
                )


def _was_there(connection: Connection, capture_id: int, moment: datetime) -> bool:
    """Return whether a capture was recorded before a moment; its place may have been used again since."""
    found = select(InspectionRow.id).where(InspectionRow.capture_id == capture_id, InspectionRow.recorded_at < moment)
    return connection.execute(found.limit(1)).first() is not None


def of_desk(connection: Connection, newest_inspection: int) -> Iterator[Finding]:
    """Find entries of the review queue that contradict the inspections or the answers.

    Args:
        connection: In a reading transaction.
        newest_inspection: The largest number an inspection ever had.
    """
    seen = max(connection.execute(select(ReviewCursor.last_enqueued_id)).scalars(), default=0)
    if seen > newest_inspection:
        yield Finding(0, "changed", f"the desk's mark stands at inspection {seen}, and there were {newest_inspection}")
    queries = {
        "missing": (_left_out(seen), "inspection {} belongs on the desk, and is not in its queue"),
        "changed": (_false_items(), "the desk's entry of inspection {} is not what inspection and answers say"),
    }
    for kind, (query, what) in queries.items():
        for number in connection.execute(query).scalars():
            yield Finding(0, kind, what.format(number))


def _left_out(seen: int) -> Any:
    """Select flagged inspections that should be in the queue and are not (`review_reasons.enqueue_new`)."""
    flagged = or_(InspectionRow.verdict != "OK", InspectionRow.explain_reason != "", InspectionRow.failure_kind != "")
    is_there = exists().where(ReviewQueueItem.inspection_id == InspectionRow.id)
    return select(InspectionRow.id).where(InspectionRow.id <= seen, flagged, ~is_there).order_by(InspectionRow.id)


def _false_items() -> Any:
    repeated = [
        getattr(ReviewQueueItem, name) == getattr(InspectionRow, name) for name in ("verdict", "label", "inspected_at")
    ]
    repeated += [getattr(ReviewQueueItem, name) == getattr(CaptureRow, name) for name in ("line", "station", "shift")]
    is_of_it = (
        exists()
        .where(InspectionRow.id == ReviewQueueItem.inspection_id, CaptureRow.id == InspectionRow.capture_id, *repeated)
        .correlate(ReviewQueueItem)
    )

    def answered(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        open_eyed = (ReviewRow.inspection_id == ReviewQueueItem.inspection_id) & (ReviewRow.blind == 0)
        return exists().where(open_eyed, *conditions).correlate(ReviewQueueItem)

    tier = case({str(why): number for why, number in PRIORITIES.items()}, value=ReviewQueueItem.reason)
    has_its_tier = or_(
        ReviewQueueItem.priority == tier, and_(ReviewQueueItem.priority == BLIND_PRIORITY, ReviewQueueItem.blind == 1)
    )
    is_false = or_(
        ~is_of_it,
        ReviewQueueItem.state.not_in([str(state) for state in State]),
        (ReviewQueueItem.state == State.DONE) & ~answered(),
        *(
            (person != "") & ~answered(ReviewRow.reviewer == person)
            for person in (ReviewQueueItem.first_reviewer, ReviewQueueItem.second_reviewer)
        ),
        tier.is_(None),
        ~has_its_tier,
    )
    return select(ReviewQueueItem.inspection_id).where(is_false).order_by(ReviewQueueItem.inspection_id)


def _by_id(connection: Connection, table: Any, ids: Sequence[int]) -> dict[int, Row[Any]]:
    rows = connection.execute(select(table.__table__).where(table.id.in_(ids))).all()
    return {row.id: row for row in rows}


def _tried(
    keys: Sequence[Key], read: Callable[[list[Key]], Mapping[Key, Value]]
) -> tuple[dict[Key, Value], dict[Key, str]]:
    """Read rows together; where one cannot be read, one by one, with the fault of each."""
    if not keys:
        return {}, {}
    try:
        return dict(read(list(keys))), {}
    except _UNREADABLE as error:
        _raise_unless_of_a_row(error)
    found: dict[Key, Value] = {}
    broken: dict[Key, str] = {}
    for key in keys:
        try:
            found |= read([key])
        except _UNREADABLE as error:
            _raise_unless_of_a_row(error)
            broken[key] = f"{type(error).__name__}: {error}"
    return found, broken


def _raise_unless_of_a_row(error: Exception) -> None:
    """SQLite says "Could not decode to UTF-8" of a value; whatever else it cannot do lies not at the row."""
    if isinstance(error, OperationalError) and "decode" not in str(error.orig):
        raise error
