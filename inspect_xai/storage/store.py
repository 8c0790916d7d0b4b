"""The record of all inspections, in SQLite or PostgreSQL: what goes in stays, and comes out as frozen values."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine, func, select

from inspect_xai.errors import NotFoundError, StoreError
from inspect_xai.records import Inspection, ModelCard, Run
from inspect_xai.storage import database, reading, schema, tables
from inspect_xai.storage.stored import InspectionSummary, RecordedInspection, StoredInspection, StoredModel
from inspect_xai.storage.writing import Recorder, encoded_maps, found_or_made, inserting

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def open_store(url: str, *, create: bool = True, clock: Clock = utc_now) -> "Store":
    """Open the store at a database URL.

    Args:
        url: "sqlite:///folder/file.db" or "postgresql://user@host/database".
        create: Make or upgrade the schema of an SQLite file where needed. A server's schema is never touched here:
            `inspect-xai db upgrade` does that, when the people who run it say so.
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
    engine = database.open_engine(url)
    try:
        schema.check_schema(engine, url)
    except BaseException:
        engine.dispose()
        raise
    return Store(engine, clock=clock)


class Store:
    """Each call is one transaction; nothing it returns is tied to the database. May be shared by threads."""

    def __init__(self, engine: Engine, *, clock: Clock = utc_now) -> None:
        self._engine = engine
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

    def register_model(self, fingerprint: str, card: ModelCard, *, registered_by: str = "") -> StoredModel:
        """Make a model known, as a candidate; one that is known already stays as it is."""
        with database.writing(self._engine) as connection:
            now = self._clock()
            found_or_made(
                connection,
                tables.Model,
                {"fingerprint": fingerprint},
                name=card.name,
                version=card.version,
                card=dataclasses.asdict(card),
                status="candidate",
                registered_at=now,
                registered_by=registered_by,
                status_at=now,
                status_by=registered_by,
            )
            return reading.model(connection, tables.Model.fingerprint == fingerprint)

    def register_policy(self, version: str, content: Mapping[str, Any]) -> None:
        """Keep what a policy version says, once and for all.

        Raises:
            StoreError: Something else is kept under that version already.
        """
        with database.writing(self._engine) as connection:
            key = {"version": version}
            found_or_made(connection, tables.Policy, key, registered_at=self._clock())
            kept = select(tables.Policy.content).where(tables.Policy.version == version)
            before = connection.execute(kept).scalar()
            if before is None:
                update = tables.Policy.__table__.update().where(tables.Policy.version == version)  # type: ignore[attr-defined]
                connection.execute(update.values(content=dict(content)))
            elif before != dict(content):
                remedy = "give the changed policy a version of its own"
                raise StoreError(f"policy {version!r} is kept with another content", remedy=remedy)

    def begin_run(self, run: Run) -> None:
        """Write down what will judge the pictures recorded under `run.run_id`; the same run twice is one."""
        facts = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
        with database.writing(self._engine) as connection:
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
        maps = [encoded_maps(each.explanation) if each.explanation else None for each in inspections]
        with database.writing(self._engine) as connection:
            recorder = Recorder(connection, self._clock())
            return [recorder.record(each, encoded) for each, encoded in zip(inspections, maps, strict=True)]

    def known(self, sha256s: Sequence[str], fingerprint: str, policy_version: str) -> dict[str, int]:
        """Which pictures this model has judged under this policy already: inspection ids by sha256."""
        query = (
            select(tables.Capture.sha256, tables.Inspection.id)
            .join(tables.Inspection, tables.Inspection.capture_id == tables.Capture.id)
            .join(tables.Model, tables.Model.id == tables.Inspection.model_id)
            .join(tables.Policy, tables.Policy.id == tables.Inspection.policy_id)
            .where(tables.Model.fingerprint == fingerprint, tables.Policy.version == policy_version)
        )
        found: dict[str, int] = {}
        with database.reading(self._engine) as connection:
            for start in range(0, len(sha256s), 500):  # databases bound the number of parameters
                part = query.where(tables.Capture.sha256.in_(sha256s[start : start + 500]))
                found |= {row.sha256: row.id for row in connection.execute(part)}
        return found

    def get(self, inspection_id: int, *, maps: bool = False) -> StoredInspection:
        """One inspection with everything that belongs to it; with `maps` the explanation maps, decoded and checked.

        Raises:
            NotFoundError: There is none under that id.
            StoreError: A map does not hash to what was recorded.
        """
        with database.reading(self._engine) as connection:
            return reading.inspection(connection, inspection_id, self._fetch if maps else None)

    def day(self, start: datetime, end: datetime, *, by: str = "inspected_at") -> list[InspectionSummary]:
        """Inspections with start <= time < end, oldest first. The caller knows the plant's zone.

        Args:
            start: First moment.
            end: First moment after.
            by: The time meant: "inspected_at", or "captured_at" for what was made that day.
        """
        moment = reading.column(by)
        query = reading.summaries().where(moment >= start, moment < end)
        with database.reading(self._engine) as connection:
            rows = connection.execute(query.order_by(moment, tables.Inspection.id))
            return [reading.summary(row) for row in rows]

    def counts(self, start: datetime, end: datetime, *, by: Sequence[str] = ("verdict",)) -> dict[tuple[str, ...], int]:
        """How many inspections with start <= inspected_at < end, by fields of `InspectionSummary`.

        >>> store.counts(monday, tuesday, by=("station", "verdict"))  # doctest: +SKIP
        {("S3", "NG"): 12, ("S3", "OK"): 480}
        """
        inside = reading.summaries().where(
            tables.Inspection.inspected_at >= start, tables.Inspection.inspected_at < end
        )
        named = inside.subquery("inspections").c
        columns = [named[name] for name in by]
        query = select(*columns, func.count()).group_by(*columns).order_by(*columns)
        with database.reading(self._engine) as connection:
            return {tuple(row[:-1]): row[-1] for row in connection.execute(query)}

    def find(
        self,
        *,
        serial: str | None = None,
        lot: str | None = None,
        product: str | None = None,
        label: str | None = None,
        verdict: str | None = None,
        fingerprint: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        near_px: tuple[float, float, float] | None = None,
        limit: int = 100,
    ) -> list[InspectionSummary]:
        """Inspections that fit everything given, newest first.

        Args:
            serial: Of the part.
            lot: Its lot.
            product: Its product.
            label: The defect label the verdict speaks of.
            verdict: OK, NG or UNSURE.
            fingerprint: Of the model, or its beginning.
            since: Inspected at or after.
            until: Inspected before.
            near_px: (row, column, radius): a region of the explanation has its middle within `radius` of that pixel.
            limit: At most so many.
        """
        query = reading.summaries()
        equal = {"serial": serial, "lot": lot, "product": product, "label": label, "verdict": verdict}
        for name, value in equal.items():
            if value is not None:
                query = query.where(reading.column(name) == value)
        if fingerprint is not None:
            query = query.where(tables.Model.fingerprint.startswith(fingerprint, autoescape=True))
        if since is not None:
            query = query.where(tables.Inspection.inspected_at >= since)
        if until is not None:
            query = query.where(tables.Inspection.inspected_at < until)
        if near_px is not None:
            query = query.where(reading.region_near(*near_px))
        with database.reading(self._engine) as connection:
            newest = query.order_by(tables.Inspection.inspected_at.desc(), tables.Inspection.id.desc()).limit(limit)
            return [reading.summary(row) for row in connection.execute(newest)]

    def _fetch(self, sha256: str) -> bytes:
        raise StoreError(f"the map {sha256} is in no blob store this one knows")
