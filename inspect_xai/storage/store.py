"""The record of all inspections, in SQLite or PostgreSQL."""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cache
from pathlib import Path

from sqlalchemy import Select, bindparam, exists, select

from inspect_xai.errors import NotFoundError
from inspect_xai.records import Inspection, Method, Part, Review, Run, Status
from inspect_xai.storage import ledger, queries, reviews, schema, signing_keys, tables
from inspect_xai.storage.blob_store import BlobStore
from inspect_xai.storage.database import Clock, Database, DatabaseFile, open_engine, sqlite_file, utc_now
from inspect_xai.storage.insert import Recorder, encoded_maps, upsert
from inspect_xai.storage.ledger import Ledger
from inspect_xai.storage.ledger_documents import chunks, parts_by
from inspect_xai.storage.model_registry import ModelRegistry
from inspect_xai.storage.results import (
    ArchivedPicture,
    InspectionSummary,
    RecordedInspection,
    Stats,
    StoredInspection,
    StoredReview,
)
from inspect_xai.storage.types import sanitize_text

_ENCODERS = 4  # packing lets go of the interpreter


@cache
def _known() -> Select[tuple[str, int]]:
    """Build the statement once: the line runs it for every picture."""
    model = select(tables.Model.id).where(tables.Model.fingerprint == bindparam("fingerprint")).scalar_subquery()
    policy = select(tables.Policy.id).where(tables.Policy.version == bindparam("version")).scalar_subquery()
    return (
        select(tables.CaptureRow.sha256, tables.InspectionRow.id)
        .join(tables.InspectionRow, tables.InspectionRow.capture_id == tables.CaptureRow.id)
        # A sum keeps SQLite from walking all that the model judged, as it did for more than a few pictures.
        .where(tables.InspectionRow.model_id + 0 == model, tables.InspectionRow.policy_id + 0 == policy)
        .where(tables.CaptureRow.sha256.in_(bindparam("sha256s", expanding=True)))
    )


@cache
def _parts_of() -> Select[tuple[str, str, str, str]]:
    sha256 = tables.CaptureRow.sha256
    return parts_by(sha256).where(sha256.in_(bindparam("sha256s", expanding=True)))


def _as_typed(value: str) -> list[str]:
    """Return a text in the ways that machines write the same letters: as it is, composed and decomposed."""
    return list(dict.fromkeys([value, unicodedata.normalize("NFC", value), unicodedata.normalize("NFD", value)]))


def open_store(
    url: str, *, create: bool = True, blob_store: str = "", ledger_key: Path | None = None, clock: Clock = utc_now
) -> "Store":
    """Open the store at a database URL.

    Args:
        url: "sqlite:///folder/file.db" or "postgresql://user@host/database".
        create: Make or upgrade the schema of an SQLite file where needed. A server's schema is never touched here:
            `inspect-xai db upgrade` does that, when the people who run it say so.
        blob_store: A folder or fsspec URL for the maps; empty: they lie in the database.
        ledger_key: File of the private key that signs the ledger's events, read with the first of them; None: they
            are not signed.
        clock: Tells the time a row was written at.

    Raises:
        SchemaError: The schema is absent, older or newer than this build.
        NotFoundError: There is no such SQLite file and `create` is off.
        DatabaseAwayError: The database cannot be reached.
    """
    file = sqlite_file(url)
    if file is not None and create:
        schema.upgrade_schema(url)
    elif file is not None and not file.exists():
        raise NotFoundError(f"no database at {file}", remedy=f"make one: inspect-xai db upgrade --db {url}")
    opened = None if file is None else DatabaseFile(file)
    engine = open_engine(url, file=opened)
    if ledger_key is not None:
        engine.update_execution_options(**{signing_keys.OPTION: signing_keys.Signer(ledger_key)})
    try:
        schema.check_schema(Database(engine), url)
    except BaseException:
        engine.dispose()
        raise
    return Store(Database(engine, clock, BlobStore(blob_store) if blob_store else None, opened))


def was_used(url: str) -> bool:
    """Return whether a line ever recorded into a database; one that is not there was not. Nothing is made or changed.

    Raises:
        StoreError: The database cannot be read.
    """
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return False
    database = Database(open_engine(url, file=None if file is None else DatabaseFile(file)))
    try:
        with database.read() as connection:
            return schema.has_table(connection, tables.RunRow.__tablename__) and bool(
                connection.execute(select(exists(select(tables.RunRow.id)))).scalar()
            )
    finally:
        database.close()


class Store(AbstractContextManager["Store"]):
    """Inspections and reviews. Each call is one transaction; what it returns is not tied to the database.

    May be shared by threads.

    Attributes:
        database: What the modules beside it are opened with: `Desk(store.database)`.
        registry: Models, policies and audits.
        ledger: The chain of events that vouches for all rows.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.registry = ModelRegistry(database)
        self.ledger = Ledger(database)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; the store is not to be used afterwards."""
        self.database.close()

    def begin_run(self, run: Run) -> None:
        """Write down what will judge the pictures recorded under `run.run_id`; the same run twice is one.

        Raises:
            StoreError: The ledger's events are signed with another key than the one set here.
        """
        facts = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
        with self.database.write() as connection:
            ledger.check_key(connection)  # before a picture is claimed, and not with the first one recorded
            statement = upsert(connection, tables.RunRow).values(**facts)
            connection.execute(statement.on_conflict_do_nothing(index_elements=["run_id"]))

    def record(self, inspections: Sequence[Inspection]) -> list[RecordedInspection]:
        """Write a chunk of inspections: all of them or none.

        An inspection is known by picture (sha256), model and policy version. One that stands there already is left as
        it is and its id comes back, so that a chunk may be recorded again after any fault.

        Returns:
            One entry per inspection, in their order.

        Raises:
            StoreError: The model or the run is not registered.
            DatabaseAwayError: The database cannot be reached; nothing was written.
        """
        explanations = {number: each.explanation for number, each in enumerate(inspections) if each.explanation}
        with ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encode") as encoders:
            maps = dict(zip(explanations, encoders.map(encoded_maps, explanations.values()), strict=True))
        blobs = self.database.blobs
        if blobs is not None:  # blob first, row second: a crash in between leaves a file, never a row without
            for blob in (blob for encoded in maps.values() for blob in encoded.all()):
                blobs.put(blob.sha256, blob.data)
        with self.database.write() as connection:
            now = self.database.clock()
            recorder = Recorder(connection, now, blobs=blobs)
            recorded = recorder.record(inspections, [maps.get(number) for number in range(len(inspections))])
            new = [each.inspection_id for each in recorded if each.is_new]
            if new:
                made = {"inspection": new, "policy": recorder.new_policies}
                verdicts = Counter(
                    each.verdict.code.value for each, row in zip(inspections, recorded, strict=True) if row.is_new
                )
                subject = inspections[0].run_id
                ledger.append(connection, "verdicts", subject, facts={"verdicts": verdicts}, now=now, made=made)
            return recorded

    def note_same_bytes(self, inspection_id: int, *, file_name: str, part: Part) -> None:
        """Tell the ledger that a file named for another part holds the very picture of an inspection; once per file.

        Such a file gets no inspection of its own: this is how the record knows of it.
        """
        facts = {"inspection": inspection_id, "file_name": sanitize_text(file_name)}
        facts |= {name: sanitize_text(value) for name, value in dataclasses.asdict(part).items()}
        with self.database.write() as connection:
            told = ledger.events(connection, kind="same_bytes", subject=part.serial)
            if all(event.facts != facts for event in told):
                ledger.append(connection, "same_bytes", part.serial, facts=facts, now=self.database.clock(), made={})

    def review(self, inspection_id: int, review: Review, *, supersedes: int | None = None) -> StoredReview:
        """Append a person's answer; with `supersedes` it corrects an earlier answer to the same inspection.

        Raises:
            NotFoundError: There is no such inspection.
            StoreError: The reason code is not in the list, or the earlier answer was corrected meanwhile.
        """
        with self.database.write() as connection:
            return reviews.append(connection, inspection_id, review, supersedes=supersedes, now=self.database.clock())

    def set_reason(self, code: str, meaning: str) -> None:
        """Put a reason code into the plant's list, or change its meaning."""
        with self.database.write() as connection:
            statement = upsert(connection, tables.ReasonCode).values(code=code, meaning=meaning)
            statement = statement.on_conflict_do_update(index_elements=["code"], set_={"meaning": meaning})
            number = connection.execute(statement.returning(tables.ReasonCode.id)).scalar_one()
            facts = {"meaning": sanitize_text(meaning)}
            ledger.append(
                connection, "reason", code, facts=facts, now=self.database.clock(), made={"reason_code": [number]}
            )

    def reasons(self) -> dict[str, str]:
        """Return the plant's reason codes with their meanings, in the order they were listed."""
        query = select(tables.ReasonCode.code, tables.ReasonCode.meaning).order_by(tables.ReasonCode.id)
        with self.database.read() as connection:
            return {row.code: row.meaning for row in connection.execute(query)}

    def known(self, sha256s: Sequence[str], fingerprint: str, policy_version: str) -> dict[str, int]:
        """Return the pictures that this model has judged under this policy: inspection ids by sha256."""
        found: dict[str, int] = {}
        with self.database.read() as connection:
            for chunk in chunks(sha256s):
                given = {"fingerprint": fingerprint, "version": policy_version, "sha256s": chunk}
                found |= {row.sha256: row.id for row in connection.execute(_known(), given)}
        return found

    def is_explained(self, sha256: str, *, fingerprint: str, method: Method) -> bool:
        """Tell whether any inspection of a picture by this model, by whatever policy, holds an explanation.

        Args:
            sha256: Of the picture's file.
            fingerprint: Of the model.
            method: An explanation by another one does not count.
        """
        query = (
            select(tables.ExplanationRow.id)
            .join(tables.InspectionRow, tables.InspectionRow.id == tables.ExplanationRow.inspection_id)
            .join(tables.CaptureRow, tables.CaptureRow.id == tables.InspectionRow.capture_id)
            .join(tables.Model, tables.Model.id == tables.InspectionRow.model_id)
            .where(tables.CaptureRow.sha256 == sha256, tables.Model.fingerprint == fingerprint)
            .where(tables.ExplanationRow.method == method.value, tables.ExplanationRow.status != Status.FAILED.value)
        )
        with self.database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def get(self, inspection_id: int, *, maps: bool = False) -> StoredInspection:
        """One inspection with everything that belongs to it; with `maps` the explanation maps, decoded and checked.

        Raises:
            NotFoundError: There is none under that id.
            StoreError: A map does not hash to what was recorded.
        """
        with self.database.read() as connection:
            return queries.inspections(connection, [inspection_id], self.database.read_blob if maps else None)[0]

    def day(self, start: datetime, end: datetime, *, by: str = "inspected_at") -> list[InspectionSummary]:
        """Inspections with start <= time < end, oldest first. The caller knows the plant's zone.

        Args:
            start: First moment.
            end: First moment after.
            by: The time meant: "inspected_at", or "captured_at" for what was made that day.
        """
        moment = queries.column(by)
        query = queries.summaries().where(moment >= start, moment < end)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(moment, tables.InspectionRow.id))
            return [queries.summary(row) for row in rows]

    def stats(
        self, start: datetime, end: datetime, *, by: Sequence[str] = ("line", "station"), moment: str = "inspected_at"
    ) -> list[Stats]:
        """Sum over the inspections with start <= moment < end.

        Args:
            start: First moment.
            end: First moment after.
            by: Fields of `InspectionSummary` to group by.
            moment: "inspected_at", or "captured_at" for when the pictures were taken, as reports count.
        """
        with self.database.read() as connection:
            return queries.stats(connection, start, end, by=by, moment=moment)

    def find(
        self,
        *,
        serial: str | None = None,
        lot: str | None = None,
        product: str | None = None,
        label: str | None = None,
        verdict: str | None = None,
        fingerprint: str | None = None,
        model_file: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        near_px: tuple[float, float, float] | None = None,
        sha256: str | None = None,
        map_sha256: str | None = None,
        moment: str = "inspected_at",
        limit: int = 100,
    ) -> list[InspectionSummary]:
        """Inspections that fit everything given, newest first.

        Args:
            serial: Of the part.
            lot: Its lot.
            product: Its product.
            label: The defect label the verdict speaks of.
            verdict: OK, NG or UNSURE.
            fingerprint: Of the model's bundle, or its beginning.
            model_file: sha256 of the network's file, or its beginning.
            since: First moment.
            until: First moment after.
            near_px: (row, column, radius): a region of the explanation has its middle within `radius` of that pixel.
            sha256: Of the picture's file.
            map_sha256: Of a stored map of the explanation.
            moment: What `since`, `until` and the order speak of: "inspected_at" or "captured_at".
            limit: Maximum number of inspections.
        """
        query = queries.summaries()
        equal = {"serial": serial, "lot": lot, "product": product, "label": label, "verdict": verdict, "sha256": sha256}
        for name, value in equal.items():
            if value is not None:
                query = query.where(queries.column(name).in_(_as_typed(value)))
        if fingerprint is not None:
            query = query.where(tables.Model.fingerprint.startswith(fingerprint, autoescape=True))
        if since is not None:
            query = query.where(queries.column(moment) >= since)
        if until is not None:
            query = query.where(queries.column(moment) < until)
        if near_px is not None:
            query = query.where(queries.region_near(*near_px))
        if map_sha256 is not None:
            query = query.where(queries.has_map(map_sha256))
        with self.database.read() as connection:
            if model_file is not None:
                query = query.where(tables.InspectionRow.run_id.in_(queries.runs_of_file(connection, model_file)))
            newest = query.order_by(queries.column(moment).desc(), tables.InspectionRow.id.desc()).limit(limit)
            return [queries.summary(row) for row in connection.execute(newest)]

    def inspection_ids(self) -> list[int]:
        """Ids of all inspections, oldest first: what a sample is drawn from."""
        with self.database.read() as connection:
            return list(connection.execute(select(tables.InspectionRow.id).order_by(tables.InspectionRow.id)).scalars())

    def parts_of(self, sha256s: Sequence[str]) -> dict[str, Part]:
        """Return the part that each of these pictures was recorded for."""
        found: dict[str, Part] = {}
        with self.database.read() as connection:
            for chunk in chunks(sha256s):
                rows = connection.execute(_parts_of(), {"sha256s": chunk})
                found |= {sha256: Part(serial, product, lot) for sha256, serial, lot, product in rows}
        return found

    def trace(self, serial: str, *, lot: str | None = None, product: str | None = None) -> list[StoredInspection]:
        """Return everything known of a part, from its pictures to reviews and model file hash; oldest first.

        Empty where no part has that serial. The other direction is `find` by the hash of a picture, map,
        model or model file.
        """
        found = self.find(serial=serial, lot=lot, product=product, limit=10_000)
        with self.database.read() as connection:
            return queries.inspections(connection, [each.inspection_id for each in reversed(found)])

    def archived(self) -> list[ArchivedPicture]:
        """Every picture that must lie in the archive: recorded there, and not deleted by retention."""
        columns = (
            tables.CaptureRow.id,
            tables.CaptureRow.sha256,
            tables.CaptureRow.archived_to,
            tables.CaptureRow.height_px,
        )
        query = select(*columns).where(
            tables.CaptureRow.archived_to != "", tables.CaptureRow.picture_deleted_at.is_(None)
        )
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(tables.CaptureRow.id))
            return [ArchivedPicture(row.id, row.sha256, row.archived_to, row.height_px > 0) for row in rows]
