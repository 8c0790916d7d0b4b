"""The review desk: which inspections wait for a person, who holds one at the moment, and what they answered.

The queue is working state (`tables.DeskItem`), taken in from the inspections; answers are reviews, part of the record.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, Tuple, func, literal, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from inspect_xai.errors import NotFoundError
from inspect_xai.records import Decision, Review, VerdictCode
from inspect_xai.storage import database, reading, reviews, tables
from inspect_xai.storage.store import Store
from inspect_xai.storage.stored import InspectionSummary, StoredInspection, StoredReview
from inspect_xai.storage.tables import (
    Capture,
    DeskItem,
    DeskMark,
    Inspection,
    Lot,
    Part,
)
from inspect_xai.storage.triage import TIERS, State, Why, share_of, take_in
from inspect_xai.storage.writing import inserting

_OVERVIEW_S: Final = 10.0  # how old the counts may be: they are looked at, not computed with
_LATELY: Final = 300  # inspections of a label that are searched for similar ones: the page must not wait for more


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """What of the queue is wanted; None: no matter which."""

    line: str | None = None
    station: str | None = None
    label: str | None = None
    verdict: str | None = None
    shift: str | None = None
    why: str | None = None
    inspected_before: datetime | None = None  # for "waiting longer than"


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One inspection that waits. `claimed_by` is empty when nobody holds it at this moment."""

    summary: InspectionSummary
    state: State
    tier: int
    why: Why
    claimed_by: str
    claimed_until: datetime | None
    judged_by: str


@dataclass(frozen=True, slots=True)
class Overview:
    """How much waits: counts by field and value, and since when the oldest does."""

    total: int
    oldest_at: datetime | None
    counts: dict[str, dict[str, int]] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person says about an inspection, and what they knew when they said it.

    Attributes:
        key: Names this answer: the same key twice is one review.
        newest_seen: The newest review the person knew of; None: there was none.
    """

    inspection_id: int
    review: Review
    key: str
    newest_seen: int | None


class ConflictKind(StrEnum):
    """Why an answer or a claim was not taken."""

    CLAIMED = "claimed"  # somebody else holds it
    JUDGED = "judged"  # somebody answered meanwhile
    OWN = "own"  # the second answer would come from the person who gave the first
    KEY = "key"  # the key names an answer about another inspection or of another person


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why an answer or a claim was not taken, with the person and, where there is one, their answer."""

    kind: ConflictKind
    person: str
    until: datetime | None = None
    review: StoredReview | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """Under which id an answer stands, and whether it was written now or stood there already."""

    review_id: int
    is_new: bool
    state: State


class Desk:
    """The desk of one store. Each call is one transaction; may be shared by threads.

    Args:
        store: An open store; the desk does not close it.
        claim_s: Seconds a claim holds.
        second_share: Share of the answered inspections that a second person answers too, chosen by the picture's
            hash. Overturned OK verdicts and disagreements of two models always are.
    """

    def __init__(self, store: Store, *, claim_s: float = 300.0, second_share: float = 0.0) -> None:
        self._engine = store._engine
        self._clock = store._clock
        self._claim = timedelta(seconds=claim_s)
        self._second_share = second_share
        self._overview: tuple[float, Overview] | None = None

    def take_in(self) -> int:
        """Put on the desk what was recorded since the last look.

        Returns:
            How many inspections came onto the desk.
        """
        added = 0
        while True:
            with database.reading(self._engine) as connection:
                seen = connection.execute(select(DeskMark.seen_id)).scalar() or 0
                newest = connection.execute(select(func.max(Inspection.id))).scalar() or 0
            if newest <= seen:
                return added
            with database.writing(self._engine) as connection:
                added += take_in(connection)

    def queue(self, wanted: QueueFilter, *, after: tuple[int, int] | None = None, limit: int = 25) -> list[QueueEntry]:
        """What waits, most urgent first and then longest waiting first.

        Args:
            wanted: What of it.
            after: (tier, inspection id) of the last entry seen.
            limit: At most so many.
        """
        query = _waiting(wanted)
        if after is not None:
            query = query.where(_place() > tuple_(*map(literal, after)))
        with database.reading(self._engine) as connection:
            rows = connection.execute(query.limit(limit)).all()
            by_id = _summaries(connection, [row.inspection_id for row in rows])
        now = self._clock()
        return [_entry(row, by_id[row.inspection_id], now) for row in rows]

    def overview(self) -> Overview:
        """How much waits. The total is of this moment, the rest may be some seconds old: it is counted row by row."""
        waiting = select(func.count()).select_from(DeskItem).where(DeskItem.state == State.OPEN)
        with database.reading(self._engine) as connection:
            total = connection.execute(waiting).scalar_one()
            if self._overview is None or time.monotonic() - self._overview[0] > _OVERVIEW_S:
                self._overview = (time.monotonic(), _counted(connection))
        return dataclasses.replace(self._overview[1], total=total)

    def entry(self, inspection_id: int) -> QueueEntry | None:
        """Where an inspection stands on the desk; None: it never was on it."""
        with database.reading(self._engine) as connection:
            row = _item(connection, inspection_id)
            if row is None:
                return None
            summary = _summaries(connection, [inspection_id])[inspection_id]
        return _entry(row, summary, self._clock())

    def neighbours(self, entry: QueueEntry, wanted: QueueFilter) -> tuple[int | None, int | None]:
        """The inspections before and after one in the queue."""
        place, here = _place(), tuple_(literal(entry.tier), literal(entry.summary.inspection_id))
        query = _waiting(wanted).with_only_columns(DeskItem.inspection_id).limit(1)
        before = query.order_by(None).order_by(DeskItem.tier.desc(), DeskItem.inspection_id.desc())
        with database.reading(self._engine) as connection:
            return (
                connection.execute(before.where(place < here)).scalar(),
                connection.execute(query.where(place > here)).scalar(),
            )

    def claim_next(self, person: str, wanted: QueueFilter, *, skipped: Sequence[int] = ()) -> int | None:
        """Hold the most urgent inspection that nobody else holds and that is not this person's own to check.

        Args:
            person: Who wants it.
            wanted: What of the queue.
            skipped: Inspections they left for later.

        Returns:
            Its id; None: nothing waits.
        """
        now = self._clock()
        query = _waiting(wanted).where(
            or_(DeskItem.claimed_by.in_(("", person)), DeskItem.claimed_until < now),
            DeskItem.judged_by != person,
            DeskItem.inspection_id.not_in(skipped),
        )
        with database.writing(self._engine) as connection:
            row = connection.execute(query.limit(1)).one_or_none()
            if row is None:
                return None
            _hold(connection, row.inspection_id, person, now + self._claim)
            return int(row.inspection_id)

    def claim(self, inspection_id: int, person: str) -> Conflict | None:
        """Hold an inspection, or hold it on; None: it is this person's now.

        Raises:
            NotFoundError: It is not on the desk.
        """
        now = self._clock()
        with database.writing(self._engine) as connection:
            row = _item(connection, inspection_id)
            if row is None:
                raise NotFoundError(f"inspection {inspection_id} is not on the desk")
            held = _held_by_another(row, person, now)
            if held is None:
                _hold(connection, inspection_id, person, now + self._claim)
            return held

    def release(self, inspection_id: int, person: str, *, whoever_holds_it: bool = False) -> bool:
        """Give a held inspection back to the queue; whether there was something to give back."""
        statement = update(DeskItem).where(DeskItem.inspection_id == inspection_id, DeskItem.claimed_by != "")
        if not whoever_holds_it:
            statement = statement.where(DeskItem.claimed_by == person)
        with database.writing(self._engine) as connection:
            return bool(connection.execute(statement.values(claimed_by="", claimed_until=None)).rowcount)

    def answer(self, answer: Answer, *, may_correct_others: bool = False) -> Taken | Conflict:
        """Append what a person says; nothing that was said before is changed.

        An answer by the person who gave the last one corrects that one.

        Args:
            answer: What they say.
            may_correct_others: Their role lets them correct what others said.

        Raises:
            NotFoundError: There is no such inspection.
            StoreError: The reason code is unknown.
        """
        now = self._clock()
        person = answer.review.reviewer
        with database.writing(self._engine) as connection:
            item = _item(connection, answer.inspection_id)
            state = State(item.state) if item else State.DONE
            known = _under_key(connection, answer.key)
            if known is not None:
                if (known.inspection_id, known.reviewer) != (answer.inspection_id, person):
                    return Conflict(ConflictKind.KEY, known.reviewer)
                return Taken(known.id, is_new=False, state=state)
            said = reading.reviews(connection, answer.inspection_id)
            conflict = _conflict(answer, item, said, now=now, may_correct_others=may_correct_others)
            if conflict is not None:
                return conflict
            corrected = _corrected(answer, said, state, may_correct_others=may_correct_others)
            review = reviews.append(connection, answer.inspection_id, answer.review, supersedes=corrected, now=now)
            key = {"key": answer.key, "review_id": review.review_id}
            connection.execute(inserting(connection, tables.DeskAnswer).values(**key))
            if item is not None and not answer.review.blind:
                state = self._next_state(connection, answer, item)
                _put(connection, item, state, person)
        return Taken(review.review_id, is_new=True, state=state)

    def recorded_after(self, inspection_id: int, *, limit: int = 100) -> list[InspectionSummary]:
        """Inspections in the order they were recorded, after one: for those who copy them elsewhere."""
        query = reading.summaries().where(Inspection.id > inspection_id).order_by(Inspection.id).limit(limit)
        with database.reading(self._engine) as connection:
            return [reading.summary(row) for row in connection.execute(query)]

    def similar_to(self, given: StoredInspection, *, limit: int = 6) -> list[InspectionSummary]:
        """Inspections that lately showed the same defect at the same place of a part at the same station."""
        explanation = given.explanation
        if explanation is None or not explanation.regions or given.verdict.code is VerdictCode.OK:
            return []
        capture, region = given.capture, explanation.regions[0]
        radius = max(capture.height_px, capture.width_px) / 10
        near = reading.region_near(region.top_px + region.height_px / 2, region.left_px + region.width_px / 2, radius)
        lately = (
            select(Inspection.id)
            .where(Inspection.label == given.verdict.label, Inspection.id != given.inspection_id)
            .order_by(Inspection.inspected_at.desc())
            .limit(_LATELY)
        )
        query = (
            reading.summaries()
            .where(Inspection.id.in_(lately.subquery().select()), near)
            .where(Capture.line == capture.line, Capture.station == capture.station)
            .where(reading.column("product") == capture.part.product)
            .order_by(Inspection.inspected_at.desc())
            .limit(limit)
        )
        with database.reading(self._engine) as connection:
            return [reading.summary(row) for row in connection.execute(query)]

    def good_part_like(self, inspection_id: int) -> int | None:
        """The newest inspection that was judged OK at the same station on the same product."""
        here = aliased(Capture)
        mine = (
            select(here.line, here.station, Lot.product_id)
            .select_from(Inspection)
            .join(here, here.id == Inspection.capture_id)
            .join(Part, Part.id == here.part_id)
            .join(Lot, Lot.id == Part.lot_id)
            .where(Inspection.id == inspection_id)
        )
        with database.reading(self._engine) as connection:
            place = connection.execute(mine).one_or_none()
            if place is None:
                return None
            query = (
                select(Inspection.id)
                .join(Capture, Capture.id == Inspection.capture_id)
                .join(Part, Part.id == Capture.part_id)
                .join(Lot, Lot.id == Part.lot_id)
                .where(Capture.line == place.line, Capture.station == place.station)
                .where(Lot.product_id == place.product_id, Inspection.verdict == VerdictCode.OK)
                .where(Inspection.id != inspection_id)
                .order_by(Capture.captured_at.desc())
                .limit(1)
            )
            return connection.execute(query).scalar()

    def _next_state(self, connection: Connection, answer: Answer, item: Row[Any]) -> State:
        if item.judged_by:
            return State.DONE
        query = select(Capture.sha256).join(Inspection, Inspection.capture_id == Capture.id)
        sha256 = connection.execute(query.where(Inspection.id == answer.inspection_id)).scalar_one()
        a_second_is_wanted = (
            answer.review.decision is Decision.UNDECIDED
            or item.why == Why.DISAGREEMENT
            or (item.verdict == VerdictCode.OK and answer.review.decision is Decision.OVERTURN)
            or share_of(sha256, "second") < self._second_share
        )
        return State.OPEN if a_second_is_wanted else State.DONE


def _under_key(connection: Connection, key: str) -> Row[Any] | None:
    query = select(tables.Review.id, tables.Review.inspection_id, tables.Review.reviewer)
    query = query.join(tables.DeskAnswer, tables.DeskAnswer.review_id == tables.Review.id)
    return connection.execute(query.where(tables.DeskAnswer.key == key)).one_or_none()


def _counted(connection: Connection) -> Overview:
    names = ("why", "verdict", "label", "line", "station", "shift")
    columns = [getattr(DeskItem, name) for name in names]
    query = select(*columns, func.count(), func.min(DeskItem.inspected_at)).where(DeskItem.state == State.OPEN)
    rows = connection.execute(query.group_by(*columns)).all()
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for row in rows:
        for name, value in zip(names, row[:-2], strict=True):
            counts[name][value] += row[-2]
    return Overview(
        total=sum(row[-2] for row in rows),
        oldest_at=min((row[-1] for row in rows), default=None),
        counts={name: dict(sorted(counter.items())) for name, counter in counts.items()},
    )


def _place() -> Tuple:
    """Where an item stands in the queue."""
    return tuple_(DeskItem.tier, DeskItem.inspection_id)


def _conditions(wanted: QueueFilter) -> list[ColumnElement[bool]]:
    conditions = [
        getattr(DeskItem, name) == getattr(wanted, name)
        for name in ("line", "station", "label", "verdict", "shift", "why")
        if getattr(wanted, name) is not None
    ]
    if wanted.inspected_before is not None:
        conditions.append(DeskItem.inspected_at < wanted.inspected_before)
    return conditions


def _waiting(wanted: QueueFilter) -> Select[Any]:
    return (
        select(DeskItem.__table__)
        .where(DeskItem.state == State.OPEN, *_conditions(wanted))
        .order_by(DeskItem.tier, DeskItem.inspection_id)
    )


def _summaries(connection: Connection, ids: list[int]) -> dict[int, InspectionSummary]:
    rows = connection.execute(reading.summaries().where(Inspection.id.in_(ids)))
    return {row.inspection_id: reading.summary(row) for row in rows}


def _entry(row: Row[Any], summary: InspectionSummary, now: datetime) -> QueueEntry:
    is_held = bool(row.claimed_by) and row.claimed_until > now
    return QueueEntry(
        summary=summary,
        state=State(row.state),
        tier=row.tier,
        why=Why(row.why),
        claimed_by=row.claimed_by if is_held else "",
        claimed_until=row.claimed_until if is_held else None,
        judged_by=row.judged_by,
    )


def _item(connection: Connection, inspection_id: int) -> Row[Any] | None:
    return connection.execute(select(DeskItem.__table__).where(DeskItem.inspection_id == inspection_id)).one_or_none()


def _hold(connection: Connection, inspection_id: int, person: str, until: datetime) -> None:
    # One at a time: whoever goes on to the next part has let go of the one before.
    connection.execute(
        update(DeskItem)
        .where(DeskItem.claimed_by == person, DeskItem.inspection_id != inspection_id)
        .values(claimed_by="", claimed_until=None)
    )
    connection.execute(
        update(DeskItem).where(DeskItem.inspection_id == inspection_id).values(claimed_by=person, claimed_until=until)
    )


def _held_by_another(row: Row[Any] | None, person: str, now: datetime) -> Conflict | None:
    if row is None or row.claimed_by in ("", person) or row.claimed_until <= now:
        return None
    return Conflict(ConflictKind.CLAIMED, row.claimed_by, until=row.claimed_until)


def _conflict(
    answer: Answer,
    item: Row[Any] | None,
    said: tuple[StoredReview, ...],
    *,
    now: datetime,
    may_correct_others: bool,
) -> Conflict | None:
    person = answer.review.reviewer
    newest = said[-1] if said else None
    if (newest.review_id if newest else None) != answer.newest_seen:
        return Conflict(ConflictKind.JUDGED, newest.reviewer if newest else "", review=newest)
    held = _held_by_another(item, person, now)
    if held is not None:
        return held
    is_open = item is not None and item.state == State.OPEN
    if item is not None and is_open and item.judged_by == person:
        return Conflict(ConflictKind.OWN, person, review=newest)
    if not is_open and newest is not None and newest.reviewer != person and not may_correct_others:
        return Conflict(ConflictKind.JUDGED, newest.reviewer, review=newest)
    return None


def _corrected(answer: Answer, said: tuple[StoredReview, ...], state: State, *, may_correct_others: bool) -> int | None:
    """The answer that this one corrects; None where it is a first answer or that of a second person."""
    if answer.review.blind or state is State.OPEN:
        return None
    for review in reversed(said):
        if not review.blind and (review.reviewer == answer.review.reviewer or may_correct_others):
            return None if review.superseded else review.review_id
    return None


def _put(connection: Connection, item: Row[Any], state: State, person: str) -> None:
    tier = {"tier": TIERS[Why.SECOND_LOOK], "why": Why.SECOND_LOOK} if state is State.OPEN else {}
    connection.execute(
        update(DeskItem)
        .where(DeskItem.inspection_id == item.inspection_id)
        .values(state=state, claimed_by="", claimed_until=None, judged_by=item.judged_by or person, **tier)
    )
