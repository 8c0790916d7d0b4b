"""Retention: deletion by rules per product and kind of data, legal holds, and records of it in the ledger.

Three kinds of data: the picture's file, the explanation's maps, the rows. When maps or pictures go, the numbers stay.
When rows go, their reviews go with them, and the ledger keeps that they went and the digests they had. The product
without a name stands for all products that have no rule of their own. Without any rule nothing is ever deleted.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    and_,
    delete,
    exists,
    false,
    func,
    insert,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.orm import aliased

from inspect_xai.errors import IntakeError, SettingsError
from inspect_xai.storage import ledger
from inspect_xai.storage.database import Database
from inspect_xai.storage.insert import upsert
from inspect_xai.storage.ledger_documents import chunks
from inspect_xai.storage.studies import studied
from inspect_xai.storage.tables import (
    BlockMapRow,
    CaptureRow,
    ExplanationRow,
    InspectionRow,
    LegalHold,
    Lot,
    MapBlob,
    PartRow,
    Product,
    RetentionRule,
    ReviewRow,
    join_parts,
)

_CHUNK: Final = 200  # rows per transaction: a line that records meanwhile waits for no more
MOST_DAYS: Final = 36_500  # a hundred years; a date that many days back can still be reckoned


class DataKind(StrEnum):
    """The kind of data a rule covers."""

    PICTURE = "picture"
    MAP = "map"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class Rule:
    """How many days one kind of data of a product is kept; an empty product: all that have no rule of their own."""

    product: str
    kind: DataKind
    keep_days: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Parts of which nothing may be deleted; an empty product, lot or serial means any."""

    hold_id: int
    product: str
    lot: str
    serial: str
    reason: str
    placed_by: str
    placed_at: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """The data that retention would delete now."""

    pictures: tuple[tuple[int, str], ...]  # capture id and where the picture lies
    blob_ids: tuple[int, ...]
    blob_bytes: int
    inspection_ids: tuple[int, ...]
    held: int  # inspections older than a rule allows, kept by a legal hold

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.pictures or self.blob_ids or self.inspection_ids)


class Retention:
    """The rules of a database, and their carrying out.

    Args:
        database: An open one; it is not closed here.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_rule(self, rule: Rule, *, by: str) -> None:
        """Make a rule, or change the days of one.

        Raises:
            SettingsError: If the days are none that a rule can have.
        """
        if not 0 <= rule.keep_days <= MOST_DAYS:
            raise SettingsError(f"a rule of {rule.keep_days} days", expected=f"0 to {MOST_DAYS} days")
        with self._database.write() as connection:
            now = self._database.clock()
            facts = {"keep_days": rule.keep_days, "set_at": now, "set_by": by}
            statement = upsert(connection, RetentionRule).values(
                product_name=rule.product, data_kind=rule.kind.value, **facts
            )
            statement = statement.on_conflict_do_update(index_elements=["product_name", "data_kind"], set_=facts)
            number = connection.execute(statement.returning(RetentionRule.id)).scalar_one()
            told = {"kind": rule.kind.value, "keep_days": rule.keep_days, "by": by}
            ledger.append(connection, "rule", rule.product, facts=told, now=now, made={"retention_rule": [number]})

    def rules(self) -> list[Rule]:
        """Return all rules."""
        query = select(RetentionRule.product_name, RetentionRule.data_kind, RetentionRule.keep_days)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(RetentionRule.product_name, RetentionRule.data_kind))
            return [Rule(product, DataKind(kind), days) for product, kind, days in rows]

    def place_hold(self, *, reason: str, by: str, product: str = "", lot: str = "", serial: str = "") -> int:
        """Keep everything of these parts until the hold is released; its id comes back.

        `pictures_lost` lists what it came too late for.
        """
        with self._database.write() as connection:
            now = self._database.clock()
            row: dict[str, Any] = {"product": product, "lot": lot, "serial": serial, "reason": reason}
            row |= {"placed_at": now, "placed_by": by, "released_by": ""}
            number = connection.execute(insert(LegalHold).values(**row).returning(LegalHold.id)).scalar_one()
            facts = {"change": "placed", "reason": reason, "by": by}
            ledger.append(connection, "hold", str(number), facts=facts, now=now, made={"legal_hold": [number]})
            return number

    def release_hold(self, hold_id: int, *, by: str) -> bool:
        """End a hold; whether it stood."""
        with self._database.write() as connection:
            now = self._database.clock()
            stands = update(LegalHold).where(LegalHold.id == hold_id, LegalHold.released_at.is_(None))
            if connection.execute(stands.values(released_at=now, released_by=by)).rowcount == 0:
                return False
            facts = {"change": "released", "by": by}
            ledger.append(connection, "hold", str(hold_id), facts=facts, now=now, made={"legal_hold": [hold_id]})
            return True

    def holds(self) -> list[Hold]:
        """Return the holds that stand."""
        query = select(LegalHold.__table__).where(LegalHold.released_at.is_(None)).order_by(LegalHold.id)
        with self._database.read() as connection:
            return [
                Hold(row.id, row.product, row.lot, row.serial, row.reason, row.placed_by, row.placed_at)
                for row in connection.execute(query)
            ]

    def pictures_lost(self, hold_id: int) -> tuple[tuple[str, str], ...]:
        """Pictures of a hold's parts that retention had deleted, or was deleting, when it was placed; none go after it.

        Returns:
            Serial number and place of each, in the order they were recorded.
        """
        query = (
            join_parts(select(PartRow.serial, CaptureRow.archived_to).select_from(CaptureRow))
            .where(or_(CaptureRow.picture_deleted_at.is_not(None), CaptureRow.picture_going_at.is_not(None)))
            .where(_is_held(LegalHold.id == hold_id))
            .order_by(CaptureRow.id)
        )
        with self._database.read() as connection:
            return tuple((row.serial, row.archived_to) for row in connection.execute(query))

    def plan(self) -> Plan:
        """Return what `execute` would delete now; change nothing."""
        with self._database.read() as connection:
            now = self._database.clock()
            limits = {kind: _expired(connection, kind, now) for kind in DataKind}
            rows = connection.execute(_inspections(InspectionRow.id).where(limits[DataKind.ROW], ~_is_held())).scalars()
            blobs = connection.execute(_blobs(limits[DataKind.MAP])).all()
            held = _inspections(InspectionRow.id).where(or_(*limits.values()), _is_held()).distinct()
            return Plan(
                pictures=tuple(
                    (row.id, row.archived_to) for row in connection.execute(_pictures(limits[DataKind.PICTURE]))
                ),
                blob_ids=tuple(row.id for row in blobs),
                blob_bytes=sum(row.size_bytes for row in blobs),
                inspection_ids=tuple(rows.all()),
                held=connection.execute(select(func.count()).select_from(held.subquery())).scalar_one(),
            )

    def execute(
        self,
        plan: Plan,
        *,
        by: str,
        remove_picture: Callable[[str], None],
        holds_one_of: Callable[[str, Collection[str]], bool] = lambda _place, _sha256s: True,
    ) -> None:
        """Delete what a plan names, and write down that it went.

        In small transactions; after a fault a new plan names what is left. Holds placed since the plan was made are
        obeyed, picture by picture: each is marked as going in a transaction that asks for holds, then deleted, then
        recorded as deleted. A picture that cannot be deleted keeps no other from going.

        Args:
            plan: What `plan` returned; somebody has looked at it.
            by: Who had it carried out.
            remove_picture: Deletes a picture by the place it was archived at, and proves that it is gone; one that is
                gone already is no error. Called before the deletion is recorded, so that nothing is recorded as
                deleted that is still there.
            holds_one_of: Whether the file at a place, if there is one, has one of these sha256. A file that was written
                again since it was recorded is another part's picture, and stays.

        Raises:
            IntakeError: If pictures could not be deleted; everything else is.
        """
        kept: list[IntakeError] = []
        for start in range(0, len(plan.pictures), _CHUNK):
            numbers = [number for number, _ in plan.pictures[start : start + _CHUNK]]
            kept += self._delete_pictures(numbers, by, remove_picture, holds_one_of)
        for blob_ids in chunks(plan.blob_ids):
            self._delete_maps(blob_ids, by)
        for inspection_ids in chunks(plan.inspection_ids):
            self._delete_rows(inspection_ids, by)
        if kept:
            first = kept[0]
            found = (
                f"{len(kept)} of {len(plan.pictures)} pictures are not deleted, nor recorded as deleted: {first.found}"
            )
            raise IntakeError(found, expected=first.expected, remedy=first.remedy)

    def _delete_pictures(
        self,
        capture_ids: Sequence[int],
        by: str,
        remove: Callable[[str], None],
        holds_one_of: Callable[[str, Collection[str]], bool],
    ) -> list[IntakeError]:
        removed: dict[int, str] = {}
        kept: dict[int, IntakeError] = {}
        beside, newest = self._at_the_same_place(capture_ids)
        try:
            for number in capture_ids:
                going = self._mark_going(number, beside.get(number, set()), newest)
                if going is None:
                    continue
                place, sha256s = going
                try:
                    if sha256s and not holds_one_of(place, sha256s):
                        raise IntakeError(
                            f"{place} is no longer the file that was recorded",
                            expected="the recorded file, or none",
                            remedy="inspect it, or move it away; then say it again",
                        )
                    remove(place)
                except IntakeError as error:
                    kept[number] = error
                else:
                    removed[number] = place
        finally:  # whatever ends this early, what is gone is written down as gone
            if removed or kept:
                self._record_deleted(removed, by, kept=kept)
        return list(kept.values())

    def _at_the_same_place(self, capture_ids: Sequence[int]) -> tuple[dict[int, set[int]], int]:
        """Return the other captures with the same place as one of these, and the newest capture of all."""
        with self._database.read() as connection:
            own = select(CaptureRow.archived_to).where(CaptureRow.id.in_(capture_ids))
            there = select(CaptureRow.id, CaptureRow.archived_to).where(
                CaptureRow.archived_to.in_(own), CaptureRow.picture_deleted_at.is_(None)
            )
            places = {row.id: row.archived_to for row in connection.execute(there)}
            newest = connection.execute(select(func.max(CaptureRow.id))).scalar_one()
        sharing: dict[str, set[int]] = {}
        for number, place in places.items():
            sharing.setdefault(place, set()).add(number)
        return {number: sharing[place] - {number} for number, place in places.items()}, newest or 0

    def _mark_going(self, capture_id: int, beside: Collection[int], newest: int) -> tuple[str, frozenset[str]] | None:
        """Mark a picture as going; None where it is not due or a hold keeps it, or one `beside`.

        A capture after the `newest` that was written to the same place keeps it, too.

        Returns:
            Its place, and the sha256 that the file there may have; none where one of them held no picture, since what
            is recorded of such a file is not its own hash.
        """
        with self._database.write() as connection:
            now = self._database.clock()
            is_due = _is_due(_expired(connection, DataKind.PICTURE, now))
            due = _captures(is_due).where(CaptureRow.id.in_([capture_id, *beside]))
            places = {row.id: row.archived_to for row in connection.execute(due)}
            if len(places) <= len(beside):
                return None
            place = places[capture_id]
            later = select(CaptureRow.id).where(CaptureRow.id > newest, CaptureRow.archived_to == place)
            if connection.execute(later).first():
                return None
            connection.execute(update(CaptureRow).where(CaptureRow.id == capture_id).values(picture_going_at=now))
            files = select(CaptureRow.sha256, CaptureRow.pixels_sha256).where(CaptureRow.id.in_([capture_id, *beside]))
            hashes = {row.sha256: row.pixels_sha256 for row in connection.execute(files)}
            return str(place), frozenset(hashes) if all(hashes.values()) else frozenset()

    def _record_deleted(self, places: Mapping[int, str], by: str, *, kept: Collection[int]) -> None:
        with self._database.write() as connection:
            now = self._database.clock()
            connection.execute(update(CaptureRow).where(CaptureRow.id.in_(kept)).values(picture_going_at=None))
            if not places:
                return
            gone = {"picture_deleted_at": now, "picture_going_at": None}
            connection.execute(update(CaptureRow).where(CaptureRow.id.in_(places)).values(**gone))
            _remove_captures(connection, list(places))
            facts = {"pictures": sorted(places.values()), "by": by}
            ledger.append(connection, "retention", DataKind.PICTURE, facts=facts, now=now, made={})

    def _delete_maps(self, blob_ids: Sequence[int], by: str) -> None:
        with self._database.write() as connection:
            now = self._database.clock()
            due = _blobs(_expired(connection, DataKind.MAP, now)).where(MapBlob.id.in_(blob_ids))
            names = {row.id: row.sha256 for row in connection.execute(due)}
            connection.execute(update(MapBlob).where(MapBlob.id.in_(names)).values(data=None, deleted_at=now))
            facts = {"maps": sorted(names.values()), "by": by}
            ledger.append(connection, "retention", DataKind.MAP, facts=facts, now=now, made={})
        self._remove_blobs(list(names.values()))

    def _delete_rows(self, inspection_ids: Sequence[int], by: str) -> None:
        with self._database.write() as connection:
            now = self._database.clock()
            query = _inspections(InspectionRow.id, InspectionRow.capture_id).where(
                InspectionRow.id.in_(inspection_ids), _expired(connection, DataKind.ROW, now), ~_is_held()
            )
            due = {row.id: row.capture_id for row in connection.execute(query)}
            answers = connection.execute(select(ReviewRow.id).where(ReviewRow.inspection_id.in_(due))).scalars().all()
            changed, said = studied(connection, due)
            blob_ids = connection.execute(_maps_of(ExplanationRow.inspection_id.in_(due))).scalars().all()
            connection.execute(delete(InspectionRow).where(InspectionRow.id.in_(due)))
            _remove_captures(connection, list(due.values()))
            names = _remove_blob_rows(connection, blob_ids)
            facts = {"inspections": len(due), "by": by}
            gone = {"inspection": list(due), "review": answers, "study_answer": said}
            made = {"study": changed}
            ledger.append(connection, "retention", DataKind.ROW, facts=facts, now=now, made=made, deleted=gone)
        self._remove_blobs(names)

    def sweep_blobs(self, *, older_than: timedelta = timedelta(hours=1)) -> list[str]:
        """Remove files from the blob store that no row names, left over from a crash in or after writing them.

        Args:
            older_than: Younger files stay: a chunk may be on its way from its files to its rows.

        Returns:
            The names of what was removed: the sha256 of maps, the file names of unfinished ones.
        """
        if self._database.blobs is None:
            return []
        limit = self._database.clock() - older_than
        old = [name for name, written_at in self._database.blobs.names() if written_at < limit]
        return self._remove_blobs(old) + self._database.blobs.sweep_unfinished(older_than=limit)

    def _remove_blobs(self, sha256s: Sequence[str]) -> list[str]:
        """Remove those files from the blob store that no row needs any more; nobody records meanwhile."""
        removed: list[str] = []
        if self._database.blobs is None:
            return removed
        needed = select(MapBlob.sha256).where(MapBlob.deleted_at.is_(None))
        for chunk in chunks(sha256s):
            with self._database.write() as connection:
                kept = set(connection.execute(needed.where(MapBlob.sha256.in_(chunk))).scalars())
                for name in chunk:
                    if name not in kept:
                        self._database.blobs.remove(name)
                        removed.append(name)
        return removed


def _inspections(*columns: Any) -> Select[Any]:
    query = select(*columns).select_from(InspectionRow)
    return join_parts(query.join(CaptureRow, CaptureRow.id == InspectionRow.capture_id))


def _pictures(is_expired: ColumnElement[bool]) -> Select[Any]:
    """Select captures with a picture that is due.

    A name that was written again, of a source read in place, leaves several captures with one place: what lies there
    goes when it is due for all of them.
    """
    is_due = _is_due(is_expired)
    others = aliased(CaptureRow)
    staying = select(others.archived_to).where(
        others.picture_deleted_at.is_(None), others.id.not_in(_captures(is_due).with_only_columns(CaptureRow.id))
    )
    return _captures(is_due).where(CaptureRow.archived_to.not_in(staying)).order_by(CaptureRow.id)


def _captures(condition: ColumnElement[bool]) -> Select[Any]:
    return join_parts(select(CaptureRow.id, CaptureRow.archived_to).select_from(CaptureRow)).where(condition)


def _is_due(is_expired: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return whether a capture's picture may go. One without a place never was in the archive."""
    return and_(CaptureRow.archived_to != "", CaptureRow.picture_deleted_at.is_(None), is_expired, ~_is_held())


def _blobs(is_expired: ColumnElement[bool]) -> Select[Any]:
    """Select maps used only by explanations that are due."""
    due = _inspections(InspectionRow.id).where(is_expired, ~_is_held())
    others = ExplanationRow.inspection_id.not_in(due)
    used_whole = exists().where(ExplanationRow.fused_blob_id == MapBlob.id, others)
    used_in_part = exists().where(
        BlockMapRow.sums_blob_id == MapBlob.id, BlockMapRow.explanation_id == ExplanationRow.id, others
    )
    return (
        select(MapBlob.id, MapBlob.sha256, MapBlob.size_bytes)
        .where(MapBlob.deleted_at.is_(None), MapBlob.id.in_(_maps_of(ExplanationRow.inspection_id.in_(due))))
        .where(~used_whole, ~used_in_part)
        .order_by(MapBlob.id)
    )


def _maps_of(which: ColumnElement[bool]) -> CompoundSelect[Any]:
    """Ids of all maps of these explanations."""
    sums = select(BlockMapRow.sums_blob_id).join(ExplanationRow, ExplanationRow.id == BlockMapRow.explanation_id)
    return union(
        select(ExplanationRow.fused_blob_id).where(which), sums.where(which, BlockMapRow.sums_blob_id.is_not(None))
    )


def _is_held(which: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Return whether a hold that stands, or the one that `which` names, keeps the part."""

    def fits(held: Any, own: Any) -> ColumnElement[bool]:
        return or_(held == "", held == own)

    return exists().where(
        LegalHold.released_at.is_(None) if which is None else which,
        fits(LegalHold.product, Product.name),
        fits(LegalHold.lot, Lot.code),
        fits(LegalHold.serial, PartRow.serial),
    )


def _expired(connection: Connection, kind: DataKind, now: datetime) -> ColumnElement[bool]:
    """Return whether a rule allows to delete this kind of data of an inspection or, for pictures, of a capture."""
    query = select(RetentionRule.product_name, RetentionRule.keep_days).where(RetentionRule.data_kind == kind.value)
    limits = {
        row.product_name: now - timedelta(days=min(row.keep_days, MOST_DAYS)) for row in connection.execute(query)
    }
    conditions = [(Product.name == name) & _is_before(kind, limit) for name, limit in limits.items() if name]
    if "" in limits:
        conditions.append(Product.name.not_in([name for name in limits if name]) & _is_before(kind, limits[""]))
    return or_(false(), *conditions)


def _is_before(kind: DataKind, limit: datetime) -> ColumnElement[bool]:
    """Require that all clocks call it old: a camera with its clock at 1970 must not cost a picture."""
    if kind is DataKind.PICTURE:
        newer = exists().where(InspectionRow.capture_id == CaptureRow.id, InspectionRow.recorded_at >= limit)
        return (CaptureRow.captured_at < limit) & ~newer.correlate(CaptureRow)
    return (CaptureRow.captured_at < limit) & (InspectionRow.inspected_at < limit) & (InspectionRow.recorded_at < limit)


def _remove_captures(connection: Connection, capture_ids: Sequence[int]) -> None:
    """Remove captures that nothing speaks of any more: no inspection, and no picture in the archive."""
    has_inspection = exists().where(InspectionRow.capture_id == CaptureRow.id)
    is_empty = or_(CaptureRow.archived_to == "", CaptureRow.picture_deleted_at.is_not(None)) & ~has_inspection
    gone = delete(CaptureRow).where(CaptureRow.id.in_(capture_ids), is_empty)
    part_ids = connection.execute(gone.returning(CaptureRow.part_id)).scalars().all()
    connection.execute(
        delete(PartRow).where(PartRow.id.in_(part_ids), ~exists().where(CaptureRow.part_id == PartRow.id))
    )


def _remove_blob_rows(connection: Connection, blob_ids: Sequence[int]) -> list[str]:
    """Remove the rows of maps that no explanation uses any more; their names come back."""
    names: list[str] = []
    for chunk in chunks(blob_ids):
        is_used = exists().where(ExplanationRow.fused_blob_id == MapBlob.id)
        is_used_in_part = exists().where(BlockMapRow.sums_blob_id == MapBlob.id)
        gone = delete(MapBlob).where(MapBlob.id.in_(chunk), ~is_used, ~is_used_in_part)
        names += connection.execute(gone.returning(MapBlob.sha256)).scalars().all()
    return names
