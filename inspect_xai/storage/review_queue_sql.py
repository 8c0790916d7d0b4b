"""SQL of the review queue: filters, entries and counts.

Statements are made once per kind of question and given their values when they are asked: to make one, and to find it
among those that were compiled before, costs more than to run it.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, Tuple, bindparam, case, func, or_, select, tuple_

from inspect_xai.storage import queries, tables
from inspect_xai.storage.results import InspectionSummary
from inspect_xai.storage.review_reasons import ReviewReason, State
from inspect_xai.storage.tables import InspectionRow, ReviewQueueItem
from inspect_xai.storage.types import Whole

BLIND: Final = "blind"
"""The filter by `reason` that finds what is judged blind; the true reason would reveal the verdict."""

_TELLING: Final = ("verdict", "label", "reason")


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """Filters of the queue; None: any value."""

    line: str | None = None
    station: str | None = None
    label: str | None = None
    verdict: str | None = None
    shift: str | None = None
    reason: str | None = None
    inspected_before: datetime | None = None  # for "waiting longer than"

    @property
    def given(self) -> dict[str, Any]:
        """The values that are asked for, by name."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class QueueState:
    """State of an inspection in the queue. `claimed_by` is empty when nobody holds it at this moment."""

    inspection_id: int
    state: State
    priority: int
    reason: ReviewReason
    claimed_by: str
    claimed_until: datetime | None
    first_reviewer: str
    second_reviewer: str  # who gave a second answer that settled nothing
    is_blind: bool  # whoever answers first does so before verdict and map are shown

    def is_own(self, person: str) -> bool:
        """Return whether this person has answered already, so that another one is wanted."""
        return person in (self.first_reviewer, self.second_reviewer)


@dataclass(frozen=True, slots=True)
class QueueEntry(QueueState):
    """One inspection that waits, with a line about it."""

    summary: InspectionSummary


@dataclass(frozen=True, slots=True)
class Overview:
    """Size of the queue: counts by field and value, and the time of its oldest entry."""

    total: int
    oldest_at: datetime | None
    counts: dict[str, dict[str, int]] = field(hash=False)


def entries(
    connection: Connection, wanted: QueueFilter, *, after: tuple[int, int] | None, limit: int, now: datetime
) -> list[QueueEntry]:
    """Return a page of the queue, most urgent first and then longest waiting first."""
    values: dict[str, Any] = wanted.given | {"limit": limit}
    if after is not None:
        values |= {"priority": after[0], "number": after[1]}
    rows = connection.execute(_page(_shape(wanted), goes_on=after is not None), values).all()
    ids = [row.inspection_id for row in rows]
    found = connection.execute(queries.summaries_wanted(), {"wanted": ids}).all() if ids else []
    by_id = {row.inspection_id: queries.summary(row) for row in found}
    return [QueueEntry(**_facts(row, now), summary=by_id[row.inspection_id]) for row in rows]


def standing(row: Row[Any], now: datetime) -> QueueState:
    """Convert a row of `item` to its state at a moment."""
    return QueueState(**_facts(row, now))


def item(connection: Connection, inspection_id: int) -> Row[Any] | None:
    """Return the queue row of an inspection; None: it never was in the queue."""
    return connection.execute(_item(), {"number": inspection_id}).one_or_none()


def neighbors(connection: Connection, here: QueueState, wanted: QueueFilter) -> tuple[int | None, int | None]:
    """Return the inspections before and after one in the queue."""
    values = wanted.given | {"priority": here.priority, "number": here.inspection_id}
    before, after = (_beside(_shape(wanted), before=each) for each in (True, False))
    return connection.execute(before, values).scalar(), connection.execute(after, values).scalar()


def first_free(
    connection: Connection, wanted: QueueFilter, *, person: str, skipped: Collection[int], now: datetime
) -> int | None:
    """Return the most urgent inspection that nobody else holds and this person has not answered."""
    query = _waiting(_shape(wanted)).where(
        or_(ReviewQueueItem.claimed_by.in_(("", person)), ReviewQueueItem.claimed_until < now),
        ReviewQueueItem.first_reviewer != person,
        ReviewQueueItem.second_reviewer != person,
        ReviewQueueItem.inspection_id.not_in(skipped),
    )
    found = connection.execute(query.with_only_columns(ReviewQueueItem.inspection_id).limit(1), wanted.given).scalar()
    return None if found is None else int(found)


def covered(connection: Connection, inspection_ids: Collection[int], person: str) -> frozenset[int]:
    """Return those that this person has yet to judge blind, and so must not see the verdict of."""
    if not inspection_ids:
        return frozenset()
    values = {"wanted": list(inspection_ids), "person": person}
    return frozenset(connection.execute(_covered(), values).scalars())


def total(connection: Connection) -> int:
    """Count the inspections that wait."""
    return int(connection.execute(_total()).scalar_one())


def counted(connection: Connection) -> Overview:
    """Count what waits, row by row."""
    names = ("reason", "verdict", "label", "line", "station", "shift")
    columns = [getattr(ReviewQueueItem, name) for name in names]
    blind = case((is_blind(), 1), else_=0).label("is_blind")
    query = select(*columns, blind, func.count(), func.min(ReviewQueueItem.inspected_at)).where(
        ReviewQueueItem.state == State.OPEN
    )
    rows = connection.execute(query.group_by(*columns, blind)).all()
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for *values, covers, count, _ in rows:
        told = dict(zip(names, values, strict=True))
        if covers:  # what is judged blind is not given away by a count either
            told = {name: value for name, value in told.items() if name not in _TELLING} | {"reason": BLIND}
        for name, value in told.items():
            counts[name][value] += count
    return Overview(
        total=sum(row[-2] for row in rows),
        oldest_at=min((row[-1] for row in rows), default=None),
        counts={name: dict(sorted(counter.items())) for name, counter in counts.items()},
    )


def is_blind() -> ColumnElement[bool]:
    """Return whether an item waits for an answer that is given before verdict and map are shown."""
    return (ReviewQueueItem.blind == 1) & (ReviewQueueItem.first_reviewer == "") & (ReviewQueueItem.state == State.OPEN)


def waits_blind() -> ColumnElement[bool]:
    """Return whether an inspection waits to be judged blind, so that no page about another one may speak of it."""
    return (
        select(ReviewQueueItem.inspection_id)
        .where(ReviewQueueItem.inspection_id == InspectionRow.id, is_blind())
        .exists()
    )


def _facts(row: Row[Any], now: datetime) -> dict[str, Any]:
    is_held = bool(row.claimed_by) and row.claimed_until > now
    return {
        "inspection_id": row.inspection_id,
        "state": State(row.state),
        "priority": row.priority,
        "reason": ReviewReason(row.reason),
        "claimed_by": row.claimed_by if is_held else "",
        "claimed_until": row.claimed_until if is_held else None,
        "first_reviewer": row.first_reviewer,
        "second_reviewer": row.second_reviewer,
        "is_blind": bool(row.blind) and row.state == State.OPEN and not row.first_reviewer,
    }


def _shape(wanted: QueueFilter) -> tuple[str, ...]:
    """Return the names of the filters, which select the statement; BLIND in place of `reason` for blind parts."""
    return tuple(BLIND if (name, value) == ("reason", BLIND) else name for name, value in wanted.given.items())


@cache
def _waiting(shape: tuple[str, ...]) -> Select[Any]:
    conditions = [getattr(ReviewQueueItem, name) == bindparam(name) for name in shape if name not in (BLIND, _BEFORE)]
    if _BEFORE in shape:
        conditions.append(ReviewQueueItem.inspected_at < bindparam(_BEFORE, type_=ReviewQueueItem.inspected_at.type))
    if BLIND in shape:
        conditions.append(is_blind())
    if set(shape) & set(_TELLING):
        conditions.append(~is_blind())  # that a part is among these would reveal its verdict
    return select(ReviewQueueItem.__table__).where(ReviewQueueItem.state == State.OPEN, *conditions).order_by(*_PLACE)


@cache
def _page(shape: tuple[str, ...], *, goes_on: bool) -> Select[Any]:
    query = _waiting(shape)
    if goes_on:
        query = query.where(_place() > _here())
    return query.limit(bindparam("limit", type_=Whole))


@cache
def _beside(shape: tuple[str, ...], *, before: bool) -> Select[Any]:
    query = _waiting(shape).with_only_columns(ReviewQueueItem.inspection_id).limit(1)
    if before:
        backwards = (column.desc() for column in _PLACE)
        return query.order_by(None).order_by(*backwards).where(_place() < _here())
    return query.where(_place() > _here())


@cache
def _item() -> Select[Any]:
    return select(ReviewQueueItem.__table__).where(ReviewQueueItem.inspection_id == bindparam("number"))


@cache
def _covered() -> Select[Any]:
    said = select(tables.ReviewRow.id).where(
        tables.ReviewRow.inspection_id == ReviewQueueItem.inspection_id,
        tables.ReviewRow.reviewer == bindparam("person"),
        tables.ReviewRow.blind == 1,
    )
    mine = ReviewQueueItem.inspection_id.in_(bindparam("wanted", expanding=True))
    return select(ReviewQueueItem.inspection_id).where(mine, is_blind(), ~said.correlate(ReviewQueueItem).exists())


@cache
def _total() -> Select[Any]:
    return select(func.count()).select_from(ReviewQueueItem).where(ReviewQueueItem.state == State.OPEN)


_BEFORE: Final = "inspected_before"
_PLACE: Final = (ReviewQueueItem.priority, ReviewQueueItem.inspection_id)


def _place() -> Tuple:
    """Return the sort key of an item."""
    return tuple_(*_PLACE)


def _here() -> Tuple:
    return tuple_(bindparam("priority", type_=Whole), bindparam("number", type_=Whole))
