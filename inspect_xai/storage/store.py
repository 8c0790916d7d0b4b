"""The record of all inspections, in SQLite or PostgreSQL: what goes in stays, and comes out as frozen values."""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, Select, bindparam, exists, select

from inspect_xai.errors import NotFoundError, StoreError
from inspect_xai.records import Inspection, ModelCard, ModelStatus, Part, Review, Run
from inspect_xai.storage import anchors, database, ledger, queries, reviews, schema, signing_keys, tables
from inspect_xai.storage.blob_store import BlobStore
from inspect_xai.storage.insert import Recorder, encoded_maps, found_or_made, inserting
from inspect_xai.storage.ledger_documents import chunks, parts_by
from inspect_xai.storage.results import (
    ArchivedPicture,
    InspectionSummary,
    RecordedInspection,
    Stats,
    StoredInspection,
    StoredModel,
    StoredReview,
)
from inspect_xai.storage.types import spelled

_ENCODERS = 4  # packing lets go of the interpreter

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


@cache
def _known() -> Select[tuple[str, int]]:
    """The line asks this for every picture: making the statement took longer than running it."""
    model = select(tables.Model.id).where(tables.Model.fingerprint == bindparam("fingerprint")).scalar_subquery()
    policy = select(tables.Policy.id).where(tables.Policy.version == bindparam("version")).scalar_subquery()
    return (
        select(tables.Capture.sha256, tables.Inspection.id)
        .join(tables.Inspection, tables.Inspection.capture_id == tables.Capture.id)
        # A sum keeps SQLite from walking all that the model judged, as it did for more than a few pictures.
        .where(tables.Inspection.model_id + 0 == model, tables.Inspection.policy_id + 0 == policy)
        .where(tables.Capture.sha256.in_(bindparam("sha256s", expanding=True)))
    )


@cache
def _parts_of() -> Select[tuple[str, str, str, str]]:
    sha256 = tables.Capture.sha256
    return parts_by(sha256).where(sha256.in_(bindparam("sha256s", expanding=True)))


def _of_files(bundle_sha256: str | None) -> dict[str, str]:
    """What an event says of a bundle's files, where they are known."""
    return {} if bundle_sha256 is None else {"bundle_sha256": bundle_sha256}


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
    file = database.sqlite_file(url)
    if file is not None and create:
        schema.upgrade_schema(url)
    elif file is not None and not file.exists():
        raise NotFoundError(f"no database at {file}", remedy=f"make one: inspect-xai db upgrade --db {url}")
    opened = None if file is None else database.DatabaseFile(file)
    engine = database.open_engine(url, file=opened)
    if ledger_key is not None:
        engine.update_execution_options(**{signing_keys.OPTION: signing_keys.Signer(ledger_key)})
    try:
        schema.check_schema(engine, url)
    except BaseException:
        engine.dispose()
        raise
    return Store(engine, blobs=BlobStore(blob_store) if blob_store else None, clock=clock, file=opened)


def was_used(url: str) -> bool:
    """Whether a line ever recorded into a database; one that is not there was not. Nothing is made or changed.

    Raises:
        StoreError: The database cannot be read.
    """
    file = database.sqlite_file(url)
    if file is not None and not file.exists():
        return False
    engine = database.open_engine(url, file=None if file is None else database.DatabaseFile(file))
    try:
        with database.reading(engine) as connection:
            return schema.has_table(connection, tables.Run.__tablename__) and bool(
                connection.execute(select(exists(select(tables.Run.id)))).scalar()
            )
    finally:
        engine.dispose()


class Store:
    """Each call is one transaction; nothing it returns is tied to the database. May be shared by threads."""

    def __init__(
        self,
        engine: Engine,
        *,
        blobs: BlobStore | None = None,
        clock: Clock = utc_now,
        file: database.DatabaseFile | None = None,
    ) -> None:
        self._engine = engine
        self._file = file
        self._blobs = blobs
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; the store is not to be used afterwards."""
        self._engine.dispose()

    def check_file(self) -> None:
        """Look whether the database's file is still the one that was opened; a server's database always is.

        Raises:
            StoreError: If it is gone, was replaced or overwritten: whatever rests on its rows has to wait.
        """
        if self._file is not None:
            self._file.check()

    def register_model(
        self,
        fingerprint: str,
        card: ModelCard,
        *,
        bundle_sha256: str | None = None,
        registered_by: str = "",
        other_files: bool = False,
    ) -> StoredModel:
        """Make a model known, as a candidate; one that is known already stays as it is.

        Args:
            fingerprint: Of its bundle.
            card: As the bundle has it.
            bundle_sha256: Of all files of the bundle; None: not known.
            registered_by: Who makes it known.
            other_files: Let other files than the registered ones stand for the model from now on: it is a candidate
                again, and without a golden result.

        Raises:
            BundleError: It is known with other files.
        """
        with database.writing(self._engine) as connection:
            now = self._clock()
            number, is_new = found_or_made(
                connection,
                tables.Model,
                {"fingerprint": fingerprint},
                name=card.name,
                version=card.version,
                card=dataclasses.asdict(card),
                status=ModelStatus.CANDIDATE.value,
                registered_at=now,
                registered_by=registered_by,
                status_at=now,
                status_by=registered_by,
                bundle_sha256=bundle_sha256,
            )
            if is_new:
                facts = {"change": "registered", "name": card.name, "version": card.version, "by": registered_by}
                facts |= _of_files(bundle_sha256)
                ledger.append(connection, "model", fingerprint, facts=facts, now=now, made={"model": [number]})
            known = queries.model(connection, tables.Model.fingerprint == fingerprint)
            if bundle_sha256 is None or known.bundle_sha256 == bundle_sha256:
                return known
            if not other_files:
                known.check_files(bundle_sha256)
                return known
            facts = {"change": "registered again", "before": known.status, "by": registered_by}
            changes = {"bundle_sha256": bundle_sha256, "golden": None}
            return self._change_model(
                connection, fingerprint, ModelStatus.CANDIDATE, by=registered_by, changes=changes,
                facts=facts | _of_files(bundle_sha256),
            )  # fmt: skip

    def set_model_status(
        self,
        fingerprint: str,
        status: ModelStatus,
        *,
        by: str,
        note: str = "",
        golden: Mapping[str, Any] | None = None,
        bundle_sha256: str | None = None,
    ) -> StoredModel:
        """Approve or retire a model; who did it, when, why and on which golden-set result goes to the ledger.

        Args:
            fingerprint: Of the model.
            status: The new one.
            by: Who says so.
            note: Why.
            golden: The result of its golden set; None: the one before stays.
            bundle_sha256: Of the files that were looked at. They must be the registered ones; where none are kept yet
                (the model was registered by an older version) they are kept from now on. None: none were looked at.

        Raises:
            BundleError: The files are not those that are registered.
            NotFoundError: The model is not registered.
        """
        with database.writing(self._engine) as connection:
            before = queries.model(connection, tables.Model.fingerprint == fingerprint)
            changes: dict[str, Any] = {}
            if golden is not None:
                changes["golden"] = dict(golden)
            if bundle_sha256 is not None:
                before.check_files(bundle_sha256)
                changes["bundle_sha256"] = bundle_sha256
            facts = {"change": status.value, "before": before.status, "by": by, "note": note}
            facts |= _of_files(bundle_sha256 or before.bundle_sha256)
            return self._change_model(connection, fingerprint, status, by=by, changes=changes, facts=facts)

    def _change_model(
        self,
        connection: Connection,
        fingerprint: str,
        status: ModelStatus,
        *,
        by: str,
        changes: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> StoredModel:
        now, model = self._clock(), tables.Model.__table__
        values = {"status": status.value, "status_at": now, "status_by": by, **changes}
        statement = model.update().where(model.c.fingerprint == fingerprint).values(**values)  # type: ignore[attr-defined]
        number = connection.execute(statement.returning(model.c.id)).scalar_one()
        ledger.append(connection, "model", fingerprint, facts=facts, now=now, made={"model": [number]})
        return queries.model(connection, model.c.id == number)

    def model(self, fingerprint: str) -> StoredModel:
        """The registered model with this fingerprint, or beginning of one.

        Raises:
            NotFoundError: None has it, or more than one begins so.
        """
        begins = tables.Model.fingerprint.startswith(fingerprint, autoescape=True)
        with database.reading(self._engine) as connection:
            found = connection.execute(select(tables.Model.id).where(begins).limit(2)).scalars().all()
            if len(found) > 1:
                raise NotFoundError(
                    f"several models' fingerprints begin with {fingerprint!r}", remedy="give more of it"
                )
            return queries.model(connection, tables.Model.id == (found[0] if found else 0))

    def models(self) -> list[StoredModel]:
        """All registered models, newest first."""
        with database.reading(self._engine) as connection:
            return queries.models(connection)

    def register_policy(self, version: str, content: Mapping[str, Any], *, by: str = "") -> None:
        """Keep what a policy version says, once and for all; who said it first goes to the ledger.

        Raises:
            StoreError: Something else is kept under that version already.
        """
        with database.writing(self._engine) as connection:
            key = {"version": version}
            found_or_made(connection, tables.Policy, key, registered_at=self._clock())
            kept = select(tables.Policy.content).where(tables.Policy.version == version)
            before = connection.execute(kept).scalar()
            if before is None:
                policy = tables.Policy.__table__
                update = policy.update().where(policy.c.version == version).values(content=dict(content))  # type: ignore[attr-defined]
                number = connection.execute(update.returning(policy.c.id)).scalar_one()
                ledger.append(
                    connection, "policy", version, facts={"by": by}, now=self._clock(), made={"policy": [number]}
                )
            elif before != dict(content):
                remedy = "give the changed policy a version of its own (setting line.policy_version)"
                raise StoreError(f"policy {version!r} is kept with another content", remedy=remedy)

    def begin_run(self, run: Run) -> None:
        """Write down what will judge the pictures recorded under `run.run_id`; the same run twice is one.

        Raises:
            StoreError: The ledger's events are signed with another key than the one set here.
        """
        facts = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
        with database.writing(self._engine) as connection:
            ledger.check_key(connection)  # before a picture is claimed, and not with the first one recorded
            statement = inserting(connection, tables.Run).values(**facts)
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
        if self._blobs is not None:  # blob first, row second: a crash in between leaves a file, never a row without
            for blob in (blob for encoded in maps.values() for blob in encoded.all()):
                self._blobs.put(blob.sha256, blob.data)
        with database.writing(self._engine) as connection:
            now = self._clock()
            recorder = Recorder(connection, now, blobs=self._blobs)
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
        facts = {"inspection": inspection_id, "file_name": spelled(file_name)}
        facts |= {name: spelled(value) for name, value in dataclasses.asdict(part).items()}
        with database.writing(self._engine) as connection:
            told = ledger.events(connection, kind="same_bytes", subject=part.serial)
            if all(event.facts != facts for event in told):
                ledger.append(connection, "same_bytes", part.serial, facts=facts, now=self._clock(), made={})

    def review(self, inspection_id: int, review: Review, *, supersedes: int | None = None) -> StoredReview:
        """Append a person's answer; with `supersedes` it corrects an earlier answer to the same inspection.

        Raises:
            NotFoundError: There is no such inspection.
            StoreError: The reason code is not in the list, or the earlier answer was corrected meanwhile.
        """
        with database.writing(self._engine) as connection:
            return reviews.append(connection, inspection_id, review, supersedes=supersedes, now=self._clock())

    def set_reason(self, code: str, meaning: str) -> None:
        """Put a reason code into the plant's list, or say anew what it means."""
        with database.writing(self._engine) as connection:
            statement = inserting(connection, tables.ReasonCode).values(code=code, meaning=meaning)
            statement = statement.on_conflict_do_update(index_elements=["code"], set_={"meaning": meaning})
            number = connection.execute(statement.returning(tables.ReasonCode.id)).scalar_one()
            facts = {"meaning": spelled(meaning)}
            ledger.append(connection, "reason", code, facts=facts, now=self._clock(), made={"reason_code": [number]})

    def reasons(self) -> dict[str, str]:
        """The plant's reason codes and what they mean, in the order they were listed."""
        query = select(tables.ReasonCode.code, tables.ReasonCode.meaning).order_by(tables.ReasonCode.id)
        with database.reading(self._engine) as connection:
            return {row.code: row.meaning for row in connection.execute(query)}

    def known(self, sha256s: Sequence[str], fingerprint: str, policy_version: str) -> dict[str, int]:
        """Which pictures this model has judged under this policy already: inspection ids by sha256."""
        found: dict[str, int] = {}
        with database.reading(self._engine) as connection:
            for start in range(0, len(sha256s), 500):  # databases bound the number of parameters
                given = {"fingerprint": fingerprint, "version": policy_version, "sha256s": sha256s[start : start + 500]}
                found |= {row.sha256: row.id for row in connection.execute(_known(), given)}
        return found

    def get(self, inspection_id: int, *, maps: bool = False) -> StoredInspection:
        """One inspection with everything that belongs to it; with `maps` the explanation maps, decoded and checked.

        Raises:
            NotFoundError: There is none under that id.
            StoreError: A map does not hash to what was recorded.
        """
        with database.reading(self._engine) as connection:
            return queries.inspections(connection, [inspection_id], self._fetch if maps else None)[0]

    def day(self, start: datetime, end: datetime, *, by: str = "inspected_at") -> list[InspectionSummary]:
        """Inspections with start <= time < end, oldest first. The caller knows the plant's zone.

        Args:
            start: First moment.
            end: First moment after.
            by: The time meant: "inspected_at", or "captured_at" for what was made that day.
        """
        moment = queries.column(by)
        query = queries.summaries().where(moment >= start, moment < end)
        with database.reading(self._engine) as connection:
            rows = connection.execute(query.order_by(moment, tables.Inspection.id))
            return [queries.summary(row) for row in rows]

    def counts(
        self, start: datetime, end: datetime, *, by: Sequence[str] = ("verdict",), moment: str = "inspected_at"
    ) -> dict[tuple[str, ...], int]:
        """How many inspections with start <= moment < end, by fields of `InspectionSummary`; see `stats`.

        >>> store.counts(monday, tuesday, by=("station", "verdict"))  # doctest: +SKIP
        {("S3", "NG"): 12, ("S3", "OK"): 480}
        """
        return {each.group: each.inspections for each in self.stats(start, end, by=by, moment=moment)}

    def stats(
        self,
        start: datetime,
        end: datetime,
        *,
        by: Sequence[str] = ("line", "station"),
        moment: str = "inspected_at",
    ) -> list[Stats]:
        """Sums over the inspections with start <= moment < end.

        Args:
            start: First moment.
            end: First moment after.
            by: Fields of `InspectionSummary` to group by.
            moment: "inspected_at", or "captured_at" for when the pictures were taken, as reports count.
        """
        with database.reading(self._engine) as connection:
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
            limit: At most so many.
        """
        query = queries.summaries()
        equal = {
            "serial": serial,
            "lot": lot,
            "product": product,
            "label": label,
            "verdict": verdict,
            "sha256": sha256,
        }
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
        with database.reading(self._engine) as connection:
            if model_file is not None:
                query = query.where(tables.Inspection.run_id.in_(queries.runs_of_file(connection, model_file)))
            newest = query.order_by(queries.column(moment).desc(), tables.Inspection.id.desc()).limit(limit)
            return [queries.summary(row) for row in connection.execute(newest)]

    def inspection_ids(self) -> list[int]:
        """Ids of all inspections, oldest first: what a sample is drawn from."""
        with database.reading(self._engine) as connection:
            return list(connection.execute(select(tables.Inspection.id).order_by(tables.Inspection.id)).scalars())

    def parts_of(self, sha256s: Sequence[str]) -> dict[str, Part]:
        """Which part each of these pictures was recorded for."""
        found: dict[str, Part] = {}
        with database.reading(self._engine) as connection:
            for chunk in chunks(sha256s):
                rows = connection.execute(_parts_of(), {"sha256s": chunk})
                found |= {sha256: Part(serial, product, lot) for sha256, serial, lot, product in rows}
        return found

    def trace(self, serial: str, *, lot: str | None = None, product: str | None = None) -> list[StoredInspection]:
        """Everything known of a part, from its pictures to the reviews and the model file's hash; oldest first.

        Empty where no part has that serial. The other direction is `find` by the hash of a picture, map,
        model or model file.
        """
        found = self.find(serial=serial, lot=lot, product=product, limit=10_000)
        with database.reading(self._engine) as connection:
            return queries.inspections(connection, [each.inspection_id for each in reversed(found)])

    def verify_ledger(
        self,
        *,
        heads: Iterable[str] = (),
        public_keys: Collection[str] = (),
        anchored_at: str = "",
        blobs: bool = False,
        on_progress: ledger.Progress = ledger.unheard,
    ) -> ledger.LedgerReport:
        """Look for events and rows that are not what they were.

        Args:
            heads: Chain heads noted down earlier.
            public_keys: Keys that events must be signed with, and those that these keys brought in.
            anchored_at: The place of the anchors, which must fit; empty: they are not looked at.
            blobs: Read the maps in the blob store too.
            on_progress: Is told what is looked at ("events", "rows", "maps"), how many are done, and of how many.

        Raises:
            DatabaseAwayError: The database, the anchors or the blob store cannot be read.
        """
        known = anchors.read(anchored_at) if anchored_at else None
        with database.reading(self._engine) as connection:
            return ledger.verify(
                connection, heads=heads, public_keys=public_keys, anchors=known, on_progress=on_progress,
                fetch=self._fetch if blobs else None,
            )  # fmt: skip

    def archived(self) -> list[ArchivedPicture]:
        """Every picture that must lie in the archive: recorded there, and not deleted by retention."""
        columns = (tables.Capture.id, tables.Capture.sha256, tables.Capture.archived_to, tables.Capture.height_px)
        query = select(*columns).where(tables.Capture.archived_to != "", tables.Capture.picture_deleted_at.is_(None))
        with database.reading(self._engine) as connection:
            rows = connection.execute(query.order_by(tables.Capture.id))
            return [ArchivedPicture(row.id, row.sha256, row.archived_to, row.height_px > 0) for row in rows]

    def anchor_ledger(self, place: str) -> anchors.Anchor:
        """Keep the chain's head at a place that the database's owner cannot write.

        Args:
            place: A file whose name ends in ".jsonl", a folder, or a URL that fsspec knows (`storage.anchors`).

        Raises:
            StoreError: There is no event yet, or the newest anchor there is none of this ledger: nothing is written.
            DatabaseAwayError: The place cannot be read or written.
        """
        before = anchors.read(place).found[-1:]
        with database.reading(self._engine) as connection:
            number, head = ledger.newest(connection)
            for last in before:
                if ledger.hash_at(connection, last.events) != last.head:
                    raise StoreError(
                        f"the newest anchor at {place} says that event {last.events} ended in {last.head}: this "
                        "ledger does not hold it",
                        remedy="run: inspect-xai ledger verify --anchors; give every database a place of its own",
                    )
        if not number:
            raise StoreError("the ledger has no event yet", remedy="anchor it when something was recorded")
        anchor = anchors.Anchor(self._clock(), number, head)
        signer = self._engine.get_execution_options().get(signing_keys.OPTION)
        if signer is not None:
            signed = {"signed_by": signer.public_key, "signature": signer.sign(anchor.words)}
            anchor = dataclasses.replace(anchor, **signed)
        anchors.write(place, anchor)
        return anchor

    def signed_by(self) -> str:
        """The public key that signed the newest event; empty: it is not signed.

        Raises:
            StoreError: It is signed, and the key set here is not that one, or none is set.
            SettingsError: The key set here cannot be used.
        """
        with database.reading(self._engine) as connection:
            return ledger.check_key(connection) or ""

    def rotate_ledger_key(self, new: Path, *, by: str, lost: bool = False) -> str:
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
        with database.writing(self._engine) as connection:
            ledger.rotate_key(connection, signer, by=by, now=self._clock(), lost=lost)
        self._engine.update_execution_options(**{signing_keys.OPTION: signer})
        return signer.public_key

    def ledger_head(self) -> str:
        """The hash of the last event: what to print or send elsewhere, so that the chain cannot be rewritten unseen."""
        with database.reading(self._engine) as connection:
            return ledger.head(connection)

    def events(self, *, after: int = 0, kind: str | None = None, subject: str | None = None) -> list[ledger.Event]:
        """Events of the ledger in the order of the chain."""
        with database.reading(self._engine) as connection:
            return list(ledger.events(connection, after=after, kind=kind, subject=subject))

    def evidence(self, inspection_ids: Sequence[int]) -> dict[str, Any]:
        """What the record says of these inspections, as JSON, with the events that vouch for it and the chain head.

        A reader can check it without us: the sha256 of each document, spelled canonically (sorted keys, no spaces),
        stands in the `rows` of an event, and that of `previous_hash` and the event's body is its `hash`.
        """
        with database.reading(self._engine) as connection:
            return ledger.evidence(connection, inspection_ids)

    def record_audit(
        self,
        audit_id: str,
        fingerprint: str,
        *,
        audited_at: datetime,
        settings: Mapping[str, Any],
        numbers: Mapping[str, Any],
    ) -> bool:
        """Keep an audit's numbers beside its model; whether it was new. The same audit twice is one.

        Raises:
            NotFoundError: The model is not registered.
        """
        with database.writing(self._engine) as connection:
            queries.model(connection, tables.Model.fingerprint == fingerprint)
            model_id = connection.execute(
                select(tables.Model.id).where(tables.Model.fingerprint == fingerprint)
            ).scalar_one()
            facts = {
                "model_id": model_id,
                "audited_at": audited_at,
                "settings": dict(settings),
                "numbers": dict(numbers),
            }
            number, is_new = found_or_made(connection, tables.Audit, {"audit_id": audit_id}, **facts)
            if is_new:
                now = self._clock()
                ledger.append(
                    connection, "audit", fingerprint, facts={"audit": audit_id}, now=now, made={"audit": [number]}
                )
            return is_new

    def audits(self, fingerprint: str) -> list[tuple[str, datetime, dict[str, Any], dict[str, Any]]]:
        """Audits of a model, oldest first: id, time, settings, numbers."""
        audit = tables.Audit
        query = select(audit.audit_id, audit.audited_at, audit.settings, audit.numbers)
        query = query.join(tables.Model, tables.Model.id == audit.model_id).where(
            tables.Model.fingerprint == fingerprint
        )
        with database.reading(self._engine) as connection:
            return [tuple(row) for row in connection.execute(query.order_by(audit.id))]

    def sweep_blobs(self, *, older_than: timedelta = timedelta(hours=1)) -> list[str]:
        """Remove files from the blob store that no row names, left over from a crash in or after writing them.

        Args:
            older_than: Younger files stay: a chunk may be on its way from its files to its rows.

        Returns:
            The names of what was removed: the sha256 of maps, the file names of unfinished ones.
        """
        if self._blobs is None:
            return []
        limit = self._clock() - older_than
        old = [name for name, written_at in self._blobs.names() if written_at < limit]
        return self.remove_blobs(old) + self._blobs.sweep_unfinished(older_than=limit)

    def remove_blobs(self, sha256s: Sequence[str]) -> list[str]:
        """Remove those files from the blob store that no row needs any more; nobody records meanwhile."""
        removed: list[str] = []
        if self._blobs is None:
            return removed
        needed = select(tables.MapBlob.sha256).where(tables.MapBlob.deleted_at.is_(None))
        for start in range(0, len(sha256s), 500):
            chunk = sha256s[start : start + 500]
            with database.writing(self._engine) as connection:
                kept = set(connection.execute(needed.where(tables.MapBlob.sha256.in_(chunk))).scalars())
                for name in chunk:
                    if name not in kept:
                        self._blobs.remove(name)
                        removed.append(name)
        return removed

    def _fetch(self, sha256: str) -> bytes:
        if self._blobs is None:
            remedy = "name the blob store it was recorded with (setting blob_store)"
            raise StoreError(f"the map {sha256} does not lie in the database", remedy=remedy)
        return self._blobs.get(sha256)
