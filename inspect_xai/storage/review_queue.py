"""The review queue: inspections that wait for a person, claims on them, and answers.

The queue is working state (`tables.ReviewQueueItem`), filled from the inspections; answers are part of the record.
"""

import dataclasses
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, func, or_, select, update
from sqlalchemy.orm import aliased

from inspect_xai.errors import NotFoundError
from inspect_xai.records import Decision, Review, VerdictCode
from inspect_xai.storage import queries, review_queue_sql, reviews, tables
from inspect_xai.storage.database import Database
from inspect_xai.storage.insert import upsert
from inspect_xai.storage.results import InspectionSummary, StoredInspection, StoredReview
from inspect_xai.storage.review_queue_sql import Overview, QueueEntry, QueueFilter, QueueState
from inspect_xai.storage.review_reasons import PRIORITIES, ReviewReason, State, enqueue_new, share_of
from inspect_xai.storage.tables import CaptureRow, InspectionRow, Lot, PartRow, ReviewCursor, ReviewQueueItem
from inspect_xai.storage.types import Real, Whole

_OVERVIEW_S: Final = 10.0  # how old the counts may be: they are looked at, not computed with
_LATELY: Final = 300  # inspections of a label that are searched for similar ones: the page must not wait for more


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's answer about an inspection, with the newest review they knew.

    Attributes:
        key: Names this answer: the same key twice is one review.
        newest_seen: The newest review the person knew of; None: there was none.
    """

    inspection_id: int
    review: Review
    key: str
    newest_seen: int | None


class ConflictKind(StrEnum):
    """The reason an answer or a claim was refused."""

    CLAIMED = "claimed"  # somebody else holds it
    JUDGED = "judged"  # somebody answered meanwhile
    OWN = "own"  # the second answer would come from the person who gave the first
    BLIND = "blind"  # it is judged blind first, and once
    KEY = "key"  # the key names an answer about another inspection or of another person
    CHANGED = "changed"  # the key names an answer of this person about this inspection that says something else


@dataclass(frozen=True, slots=True)
class Conflict:
    """A refused answer or claim: the reason, the person and, where there is one, their answer."""

    kind: ConflictKind
    person: str
    until: datetime | None = None
    review: StoredReview | None = None


@dataclass(frozen=True, slots=True)
class AnswerAccepted:
    """The id of an accepted answer, and whether it was written now or existed already."""

    review_id: int
    is_new: bool
    state: State


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """One inspection as somebody meets it in the queue.

    Attributes:
        standing: Where it stands; None: it never was on the desk.
        previous_id: The one before it in the queue.
        next_id: The one after it.
        is_covered: They judge it blind and have not yet, so they must not see what the model said.
    """

    standing: QueueState | None
    previous_id: int | None
    next_id: int | None
    is_covered: bool


class Desk:
    """The desk of a database. Each call is one transaction; may be shared by threads.

    Args:
        database: An open one; it is not closed here.
        claim_s: Seconds a claim holds.
        second_share: Share of the answered inspections that a second person answers too, chosen by the picture's
            hash. Overturned OK verdicts and disagreements of two models always are, and where two people disagree, a
            third one is asked.
        blind_share: Share of the inspections that come onto the desk and are judged before verdict and map are shown.
    """

    def __init__(
        self, database: Database, *, claim_s: float = 300.0, second_share: float = 0.0, blind_share: float = 0.0
    ) -> None:
        self._database = database
        self._claim = timedelta(seconds=claim_s)
        self._second_share = second_share
        self._blind_share = blind_share
        self._overview: tuple[float, Overview] | None = None

    def enqueue_new(self) -> int:
        """Put on the desk what was recorded since the last look.

        Returns:
            How many inspections came onto the desk.
        """
        added = 0
        while True:
            with self._database.read() as connection:
                seen, newest = connection.execute(_marks()).one()
            if newest <= seen:
                return added
            with self._database.write() as connection:
                added += enqueue_new(connection, blind_share=self._blind_share)

    def queue(self, wanted: QueueFilter, *, after: tuple[int, int] | None = None, limit: int = 25) -> list[QueueEntry]:
        """Return a page of the queue, most urgent first and then longest waiting first.

        Args:
            wanted: What of it.
            after: (priority, inspection id) of the last entry seen.
            limit: Maximum number of entries.
        """
        with self._database.read() as connection:
            return review_queue_sql.entries(connection, wanted, after=after, limit=limit, now=self._database.clock())

    def overview(self) -> Overview:
        """Count what waits. The total is current, the rest may be some seconds old: it is counted row by row."""
        with self._database.read() as connection:
            total = review_queue_sql.total(connection)
            if self._overview is None or time.monotonic() - self._overview[0] > _OVERVIEW_S:
                self._overview = (time.monotonic(), review_queue_sql.counted(connection))
        return dataclasses.replace(self._overview[1], total=total)

    def seen(self, inspection_id: int, person: str, wanted: QueueFilter) -> QueuePosition:
        """Return an inspection's state and its neighbors in a person's view of the queue."""
        with self._database.read() as connection:
            row = review_queue_sql.item(connection, inspection_id)
            if row is None:
                return QueuePosition(None, None, None, is_covered=False)
            here = review_queue_sql.standing(row, self._database.clock())
            before, after = review_queue_sql.neighbors(connection, here, wanted)
            is_covered = here.is_blind and bool(review_queue_sql.covered(connection, [inspection_id], person))
        return QueuePosition(here, before, after, is_covered=is_covered)

    def covered(self, inspection_ids: Collection[int], person: str) -> frozenset[int]:
        """Return those that this person has yet to judge blind, and so must not see the verdict of."""
        if not inspection_ids:
            return frozenset()
        with self._database.read() as connection:
            return review_queue_sql.covered(connection, inspection_ids, person)

    def claim_next(self, person: str, wanted: QueueFilter, *, skipped: Sequence[int] = ()) -> int | None:
        """Hold the most urgent inspection that nobody else holds and that is not this person's own to check.

        Args:
            person: Who wants it.
            wanted: What of the queue.
            skipped: Inspections they left for later.

        Returns:
            Its id; None: nothing waits.
        """
        now = self._database.clock()
        with self._database.write() as connection:
            found = review_queue_sql.first_free(connection, wanted, person=person, skipped=skipped, now=now)
            if found is not None:
                _hold(connection, found, person, now + self._claim)
        return found

    def claim(self, inspection_id: int, person: str) -> Conflict | None:
        """Hold an inspection, or hold it on; None: it is this person's now.

        Raises:
            NotFoundError: It is not on the desk.
        """
        now = self._database.clock()
        with self._database.write() as connection:
            row = review_queue_sql.item(connection, inspection_id)
            if row is None:
                raise NotFoundError(f"inspection {inspection_id} is not on the desk")
            held = _held_by_another(row, person, now)
            if held is None:
                _hold(connection, inspection_id, person, now + self._claim)
            return held

    def release(self, inspection_id: int, person: str, *, whoever_holds_it: bool = False) -> bool:
        """Give a held inspection back to the queue; whether there was something to give back."""
        statement = update(ReviewQueueItem).where(
            ReviewQueueItem.inspection_id == inspection_id, ReviewQueueItem.claimed_by != ""
        )
        if not whoever_holds_it:
            statement = statement.where(ReviewQueueItem.claimed_by == person)
        with self._database.write() as connection:
            return bool(connection.execute(statement.values(claimed_by="", claimed_until=None)).rowcount)

    def answer(self, answer: Answer, *, may_correct_others: bool = False) -> AnswerAccepted | Conflict:
        """Append what a person says; nothing that was said before is changed.

        An answer by the person who gave the last one corrects that one. The same key with the same content is the
        same answer; with another content nothing is written, and the conflict shows what stands.

        Args:
            answer: What they say.
            may_correct_others: Their role lets them correct what others said.

        Raises:
            NotFoundError: There is no such inspection.
            StoreError: The reason code is unknown.
        """
        now = self._database.clock()
        person = answer.review.reviewer
        with self._database.write() as connection:
            item = review_queue_sql.item(connection, answer.inspection_id)
            state = State(item.state) if item else State.DONE
            known = _under_key(connection, answer.key)
            if known is not None:
                if (known.inspection_id, known.reviewer) != (answer.inspection_id, person):
                    return Conflict(ConflictKind.KEY, known.reviewer)
                stands = next(r for r in queries.reviews(connection, known.inspection_id) if r.review_id == known.id)
                if not _says_the_same(stands, answer.review):
                    return Conflict(ConflictKind.CHANGED, person, review=stands)
                return AnswerAccepted(known.id, is_new=False, state=state)
            said = queries.reviews(connection, answer.inspection_id)
            conflict = _conflict(answer, item, said, now=now, may_correct_others=may_correct_others)
            if conflict is not None:
                return conflict
            corrected = _corrected(answer, said, state, may_correct_others=may_correct_others)
            review = reviews.append(connection, answer.inspection_id, answer.review, supersedes=corrected, now=now)
            key = {"key": answer.key, "review_id": review.review_id}
            connection.execute(upsert(connection, tables.ReviewRequestKey).values(**key))
            if item is not None and not answer.review.blind:
                why = self._why_once_more(connection, answer, item, said)
                state = State.DONE if why is None else State.OPEN
                _put(connection, item, why, person)
        return AnswerAccepted(review.review_id, is_new=True, state=state)

    def recorded_after(self, inspection_id: int, *, limit: int = 100) -> list[InspectionSummary]:
        """Inspections in the order they were recorded, after one: for those who copy them elsewhere."""
        query = queries.summaries().where(InspectionRow.id > inspection_id).order_by(InspectionRow.id).limit(limit)
        with self._database.read() as connection:
            return [queries.summary(row) for row in connection.execute(query)]

    def history_of(self, inspection_id: int, *, limit: int = 8) -> list[InspectionSummary]:
        """Return the other inspections of the same part, newest first."""
        values = {"number": inspection_id, "limit": limit}
        with self._database.read() as connection:
            return [queries.summary(row) for row in connection.execute(_history(), values)]

    def similar_to(self, given: StoredInspection, *, limit: int = 6) -> list[InspectionSummary]:
        """Inspections that lately showed the same defect at the same place of a part, seen by the same camera."""
        explanation = given.explanation
        if explanation is None or not explanation.regions or given.verdict.code is VerdictCode.OK:
            return []
        capture, region = given.capture, explanation.regions[0]
        values = {
            "number": given.inspection_id,
            "label": given.verdict.label,
            "product": capture.part.product,
            "line": capture.line,
            "station": capture.station,
            "limit": limit,
            "camera": capture.camera,
            "view": capture.view,
            "row_px": region.top_px + region.height_px / 2,
            "column_px": region.left_px + region.width_px / 2,
            "radius_px": max(capture.height_px, capture.width_px) / 10,
        }
        with self._database.read() as connection:
            return [queries.summary(row) for row in connection.execute(_similar(), values)]

    def good_part_like(self, inspection_id: int) -> int | None:
        """Return the newest inspection of a good part of the same product, station, camera and view.

        A part is good where every model said OK to each of its pictures, and every answer that stands did so too.
        """
        here = aliased(CaptureRow)
        mine = (
            select(here.line, here.station, here.camera, here.view, Lot.product_id)
            .select_from(InspectionRow)
            .join(here, here.id == InspectionRow.capture_id)
            .join(PartRow, PartRow.id == here.part_id)
            .join(Lot, Lot.id == PartRow.lot_id)
            .where(InspectionRow.id == inspection_id)
        )
        with self._database.read() as connection:
            place = connection.execute(mine).one_or_none()
            if place is None:
                return None
            query = (
                select(InspectionRow.id)
                .join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
                .join(PartRow, PartRow.id == CaptureRow.part_id)
                .join(Lot, Lot.id == PartRow.lot_id)
                .where(CaptureRow.line == place.line, CaptureRow.station == place.station)
                .where(CaptureRow.camera == place.camera, CaptureRow.view == place.view)
                .where(Lot.product_id == place.product_id, InspectionRow.verdict == VerdictCode.OK)
                .where(InspectionRow.id != inspection_id, ~review_queue_sql.waits_blind(), ~_is_faulted())
                .where(CaptureRow.archived_to != "", CaptureRow.picture_deleted_at.is_(None))
                .order_by(CaptureRow.captured_at.desc())
                .limit(1)
            )
            return connection.execute(query).scalar()

    def _why_once_more(
        self, connection: Connection, answer: Answer, item: Row[Any], said: tuple[StoredReview, ...]
    ) -> ReviewReason | None:
        """Return the reason for asking another person after this answer; None: it settles the matter."""
        is_undecided = answer.review.decision is Decision.UNDECIDED
        if item.second_reviewer or item.state == State.DONE:  # a third answer, or a correction
            return None
        if item.first_reviewer:
            first = next((each.verdict for each in reversed(said) if each.reviewer == item.first_reviewer), "")
            disagrees = first not in (VerdictCode.UNSURE, answer.review.verdict)
            return ReviewReason.DISPUTED if is_undecided or disagrees else None
        query = select(CaptureRow.sha256).join(InspectionRow, InspectionRow.capture_id == CaptureRow.id)
        sha256 = connection.execute(query.where(InspectionRow.id == answer.inspection_id)).scalar_one()
        a_second_is_wanted = (
            is_undecided
            or item.reason == ReviewReason.DISAGREEMENT
            or (item.verdict == VerdictCode.OK and answer.review.decision is Decision.OVERTURN)
            or share_of(sha256, "second") < self._second_share
        )
        return ReviewReason.SECOND_LOOK if a_second_is_wanted else None


@cache
def _marks() -> Select[Any]:
    """Select the last inspection that was enqueued or passed over, and the newest."""
    seen, newest = select(func.max(ReviewCursor.last_enqueued_id)), select(func.max(InspectionRow.id))
    return select(*(func.coalesce(each.scalar_subquery(), 0) for each in (seen, newest)))


@cache
def _history() -> Select[Any]:
    here = aliased(CaptureRow)
    part = select(here.part_id).join(InspectionRow, InspectionRow.capture_id == here.id)
    mine = part.where(InspectionRow.id == bindparam("number")).correlate(None).scalar_subquery()
    return (
        queries.summaries()
        .where(CaptureRow.part_id == mine, InspectionRow.id != bindparam("number"))
        .order_by(InspectionRow.inspected_at.desc(), InspectionRow.id.desc())
        .limit(bindparam("limit", type_=Whole))
    )


@cache
def _similar() -> Select[Any]:
    """Lately inspected parts with a region of the same label near a pixel; built once, as in review_queue_sql.py."""
    lately = (
        select(InspectionRow.id)
        .where(InspectionRow.label == bindparam("label"), InspectionRow.id != bindparam("number"))
        .order_by(InspectionRow.inspected_at.desc())
        .limit(_LATELY)
    )
    place = (bindparam(name, type_=Real) for name in ("row_px", "column_px", "radius_px"))
    return (
        queries.summaries()
        .where(
            InspectionRow.id.in_(lately.subquery().select()),
            queries.region_near(*place),
            ~review_queue_sql.waits_blind(),
        )
        .where(CaptureRow.line == bindparam("line"), CaptureRow.station == bindparam("station"))
        .where(CaptureRow.camera == bindparam("camera"), CaptureRow.view == bindparam("view"))
        .where(queries.column("product") == bindparam("product"))
        .order_by(InspectionRow.inspected_at.desc())
        .limit(bindparam("limit", type_=Whole))
    )


def _is_faulted() -> ColumnElement[bool]:
    """Return whether any model, or any answer that stands, said other than OK of a picture of the part."""
    other, seen = aliased(CaptureRow), aliased(InspectionRow)
    review, later = aliased(tables.ReviewRow), aliased(tables.ReviewRow)
    is_corrected = select(later.id).where(later.supersedes_id == review.id).correlate(review).exists()
    is_refused = (
        select(review.id)
        .where(review.inspection_id == seen.id, review.verdict != VerdictCode.OK, review.blind == 0, ~is_corrected)
        .correlate(seen)
        .exists()
    )
    return (
        select(seen.id)
        .join(other, other.id == seen.capture_id)
        .where(other.part_id == CaptureRow.part_id, or_(seen.verdict != VerdictCode.OK, is_refused))
        .correlate(CaptureRow)
        .exists()
    )


def _says_the_same(stands: StoredReview, review: Review) -> bool:
    return all(getattr(stands, each.name) == getattr(review, each.name) for each in dataclasses.fields(review))


def _under_key(connection: Connection, key: str) -> Row[Any] | None:
    query = select(tables.ReviewRow.id, tables.ReviewRow.inspection_id, tables.ReviewRow.reviewer)
    query = query.join(tables.ReviewRequestKey, tables.ReviewRequestKey.review_id == tables.ReviewRow.id)
    return connection.execute(query.where(tables.ReviewRequestKey.key == key)).one_or_none()


def _hold(connection: Connection, inspection_id: int, person: str, until: datetime) -> None:
    # One at a time: whoever goes on to the next part has let go of the one before.
    connection.execute(
        update(ReviewQueueItem)
        .where(ReviewQueueItem.claimed_by == person, ReviewQueueItem.inspection_id != inspection_id)
        .values(claimed_by="", claimed_until=None)
    )
    connection.execute(
        update(ReviewQueueItem)
        .where(ReviewQueueItem.inspection_id == inspection_id)
        .values(claimed_by=person, claimed_until=until)
    )


def _held_by_another(row: Row[Any] | None, person: str, now: datetime) -> Conflict | None:
    if row is None or row.claimed_by in ("", person) or row.claimed_until <= now:
        return None
    return Conflict(ConflictKind.CLAIMED, row.claimed_by, until=row.claimed_until)


def _conflict(
    answer: Answer, item: Row[Any] | None, said: tuple[StoredReview, ...], *, now: datetime, may_correct_others: bool
) -> Conflict | None:
    person = answer.review.reviewer
    newest = said[-1] if said else None
    if (newest.review_id if newest else None) != answer.newest_seen:
        return Conflict(ConflictKind.JUDGED, newest.reviewer if newest else "", review=newest)
    held = _held_by_another(item, person, now)
    if held is not None:
        return held
    is_open = item is not None and item.state == State.OPEN
    if item is not None and is_open and person in (item.first_reviewer, item.second_reviewer):
        return Conflict(ConflictKind.OWN, person, review=newest)
    has_looked = any(each.blind and each.reviewer == person for each in said)
    is_covered = item is not None and is_open and bool(item.blind) and not item.first_reviewer and not has_looked
    if answer.review.blind is not is_covered:
        return Conflict(ConflictKind.BLIND, person)
    if not is_open and newest is not None and newest.reviewer != person and not may_correct_others:
        return Conflict(ConflictKind.JUDGED, newest.reviewer, review=newest)
    return None


def _corrected(answer: Answer, said: tuple[StoredReview, ...], state: State, *, may_correct_others: bool) -> int | None:
    """Return the answer that this one corrects; None for a first answer or that of a second person."""
    if answer.review.blind or state is State.OPEN:
        return None
    for review in reversed(said):
        if not review.blind and (review.reviewer == answer.review.reviewer or may_correct_others):
            return None if review.superseded else review.review_id
    return None


def _put(connection: Connection, item: Row[Any], why: ReviewReason | None, person: str) -> None:
    """Write down who answered, and for what reason the item waits on; None: it is done."""
    place = {"state": State.DONE} if why is None else {"state": State.OPEN, "priority": PRIORITIES[why], "reason": why}
    who = (
        {"second_reviewer": person}
        if item.first_reviewer and why is not None
        else {"first_reviewer": item.first_reviewer or person}
    )
    connection.execute(
        update(ReviewQueueItem)
        .where(ReviewQueueItem.inspection_id == item.inspection_id)
        .values(claimed_by="", claimed_until=None, **place, **who)
    )
