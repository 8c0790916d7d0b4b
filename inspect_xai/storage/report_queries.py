"""Aggregates for reports, computed by the database: a year of inspections costs no more memory than a day."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Select, and_, case, func, select
from sqlalchemy.orm import aliased

from inspect_xai.records import Decision, Status, VerdictCode
from inspect_xai.storage import queries
from inspect_xai.storage.database import Database
from inspect_xai.storage.map_codec import decode
from inspect_xai.storage.results import InspectionSummary, StoredModel
from inspect_xai.storage.tables import (
    CaptureRow,
    ExplanationRegion,
    ExplanationRow,
    ExplanationTile,
    ImageStatisticsRow,
    InspectionRow,
    Lot,
    MapBlob,
    Model,
    PartRow,
    Policy,
    Product,
    ReviewRow,
    RunRow,
)

AGES: Final = (timedelta(days=1), timedelta(days=3), timedelta(days=7))
"""Where the waiting parts are divided by age."""

DRIFT_FEATURES: Final = (
    "score",
    "margin",
    "brightness",
    "contrast",
    "sharpness",
    "noise",
    "support_share",
    "region_row_px",
    "region_column_px",
    "region_area_px",
    "region_mass",
    "energy_in_roi",
    "faithfulness_percent",
)
"""What is watched for drift: the judged label's score, the network's margin, four image statistics; and of explained
parts how much of the picture the map covers, where its heaviest region lies, how large it is and how much of the map it
holds, the map's share inside the region of interest, and how much more of the score goes with what the map marks than
with blobs of the same area."""

EMBEDDING_SIZE: Final = 16
"""Numbers of an embedding (maths/embedding.py makes them, `ImageStatisticsRow` keeps them)."""

_AT_A_TIME: Final = 64  # rows on their way from the database


@dataclass(frozen=True, slots=True)
class Tally:
    """Inspections that share the values of some fields.

    Attributes:
        group: The values, in the order asked for.
        parts: How many.
        duration_ms: What they took in all, explanations included.
        longest_ms: What the slowest took.
    """

    group: tuple[str, ...]
    parts: int
    duration_ms: float
    longest_ms: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Flagged parts nobody answered for: how many, by age at a given moment, and since when the oldest waits."""

    total: int
    by_age: tuple[int, ...]  # younger than AGES[0], then up to each next, then older than the last
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True, eq=False)
class StoredMap:
    """One explanation's map with what a cohort needs to know. `score_spread` is the lowest of its windows."""

    inspection_id: int
    serial: str
    faithfulness: dict[str, float]
    score_spread: float | None
    fused: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReviewedScore:
    """A model's probability of a defect, whether a person called it one, and the chance the part had to be reviewed."""

    probability: float
    is_defect: bool
    chance: float


def _chance_of_defect(scores: Sequence[Sequence[float | None]], model: StoredModel) -> NDArray[np.float64]:
    """One less what goes to the OK labels; without one, the highest score."""
    if not scores:
        return np.empty(0)
    table = np.nan_to_num(np.array(scores, dtype=np.float64))
    good = [model.card["labels"].index(label) for label in model.card["ok_labels"]]
    found = 1 - table[:, good].sum(axis=1) if good else table.max(axis=1)
    return np.asarray(np.clip(found, 0, 1))


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTable:
    """Features of parts that are watched for drift.

    Attributes:
        ids: (n,) of their inspections.
        values: (n, features) in the order of `DRIFT_FEATURES`; NaN where a part has none.
        embeddings: (n, 16); rows of NaN likewise.
    """

    ids: NDArray[np.int64]
    values: NDArray[np.float64]
    embeddings: NDArray[np.float32]


def _watched(rows: Sequence[Sequence[Any]]) -> FeatureTable:
    nothing = np.full(EMBEDDING_SIZE, np.nan, dtype=np.float32)
    given = [nothing if row[1] is None else np.frombuffer(row[1], "<f4") for row in rows]
    return FeatureTable(
        np.array([row[0] for row in rows]),
        np.array([row[2:] for row in rows], dtype=np.float64),  # None becomes NaN
        np.array([each if each.size == EMBEDDING_SIZE else nothing for each in given], dtype=np.float32),
    )


@dataclass(frozen=True, slots=True)
class CohortKey:
    """Maps that can be laid over each other: one product, place, label and picture size (height, width)."""

    product: str
    line: str
    station: str
    view: str
    label: str
    size: tuple[int, int]


def _drawn(share: float) -> ColumnElement[bool]:
    """Return whether a picture is in a sample of this share, drawn by its hash: the same ones every night."""
    return CaptureRow.sha256 < f"{int(share * 16**8):08x}"


_NEWEST: Final = aliased(ReviewRow)
_OWN_COLUMNS: Final[dict[str, ColumnElement[Any]]] = {
    "is_failed": case((InspectionRow.failure_kind != "", "yes"), else_=""),
    "review_decision": func.coalesce(_NEWEST.decision, ""),
    "reviewed_verdict": func.coalesce(_NEWEST.verdict, ""),
}


def _fields(names: Sequence[str]) -> Select[Any]:
    """SELECT of fields of `InspectionSummary` that joins no table they do not need.

    Over a month that is what a report's time goes to; and the newest review is looked up once for all it said.
    """
    columns = {name: _OWN_COLUMNS[name] if name in _OWN_COLUMNS else queries.column(name) for name in names}
    query = select(*(column.label(name) for name, column in columns.items()))
    query = query.select_from(InspectionRow).join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
    wanted = set(names)
    if wanted & {"serial", "lot", "product"}:
        query = query.join(PartRow, PartRow.id == CaptureRow.part_id)
    if wanted & {"lot", "product"}:
        query = query.join(Lot, Lot.id == PartRow.lot_id).join(Product, Product.id == Lot.product_id)
    if wanted & {"fingerprint", "model_name", "model_version"}:
        query = query.join(Model, Model.id == InspectionRow.model_id)
    if "policy_version" in wanted:
        query = query.join(Policy, Policy.id == InspectionRow.policy_id)
    if wanted & {"run_id", "provider"}:
        query = query.join(RunRow, RunRow.id == InspectionRow.run_id)
    if wanted & {"explanation_status", "passes", "support_share"}:
        query = query.outerjoin(ExplanationRow, ExplanationRow.inspection_id == InspectionRow.id)
    if wanted & {"review_decision", "reviewed_verdict"}:
        newest = (
            select(func.max(ReviewRow.id)).where(ReviewRow.inspection_id == InspectionRow.id).correlate(InspectionRow)
        )
        query = query.outerjoin(_NEWEST, _NEWEST.id == newest.scalar_subquery())
    return query


class ReportQueries:
    """Sums and streams over what was captured with start <= captured_at < end.

    Args:
        database: An open one; it is not closed here.
        shift: Only what was captured in this shift; None: everything.
    """

    def __init__(self, database: Database, *, shift: str | None = None) -> None:
        self._database = database
        self._shift = shift

    def shifts(self) -> list[str]:
        """Return the names of all shifts with a capture."""
        query = select(CaptureRow.shift).distinct().where(CaptureRow.shift != "").order_by(CaptureRow.shift)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def rows(self, start: datetime, end: datetime) -> list[InspectionSummary]:
        """Return the inspections themselves, oldest first: for a day, not for a year."""
        names = [each.name for each in dataclasses.fields(InspectionSummary)]
        query = _fields(names).where(*self._during(start, end)).order_by(CaptureRow.captured_at, InspectionRow.id)
        with self._database.read() as connection:
            return [InspectionSummary(*row) for row in connection.execute(query).all()]

    def tally(self, start: datetime, end: datetime, *, by: Sequence[str]) -> list[Tally]:
        """Count by fields of `InspectionSummary`, sorted by their values; "is_failed" is "yes" or empty.

        Example:
            >>> figures.tally(monday, tuesday, by=("station", "verdict"))  # doctest: +SKIP
            [Tally(group=("S3", "NG"), parts=12, duration_ms=900.5, longest_ms=120.0), ...]
        """
        given = _fields(by).add_columns(InspectionRow.duration_ms.label("ms"))
        inside = given.where(*self._during(start, end)).subquery("inside").c
        groups = [inside[name] for name in by]
        sums = (func.count(), func.sum(inside.ms), func.max(inside.ms))
        query = select(*groups, *sums).group_by(*groups).order_by(*groups)
        with self._database.read() as connection:
            return [
                Tally(tuple(row[: len(groups)]), int(row[-3]), float(row[-2]), float(row[-1]))
                for row in connection.execute(query)
            ]

    def features(self, start: datetime, end: datetime, *, most: int) -> dict[tuple[str, str, str], FeatureTable]:
        """Return the features watched for drift, by line, station and shift.

        Args:
            start: First moment of capture.
            end: First moment after.
            most: Approximate limit of parts; of more, those with the lowest hashes, which favors no kind.
        """
        region = ExplanationRegion
        columns = (
            CaptureRow.line,
            CaptureRow.station,
            CaptureRow.shift,
            InspectionRow.id,
            ImageStatisticsRow.embedding,
            InspectionRow.score,
            InspectionRow.margin,
            ImageStatisticsRow.brightness,
            ImageStatisticsRow.contrast,
            ImageStatisticsRow.sharpness,
            ImageStatisticsRow.noise,
            ExplanationRow.coverage,
            region.top_px + region.height_px / 2.0,
            region.left_px + region.width_px / 2.0,
            region.area_px,
            region.mass,
            ExplanationRow.energy_in_roi,
            ExplanationRow.deletion_percent_random - ExplanationRow.deletion_percent,
        )
        parts = (
            select(func.count()).select_from(InspectionRow).join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
        ).where(*self._during(start, end))
        query = (
            select(*columns)
            .join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
            .outerjoin(ImageStatisticsRow, ImageStatisticsRow.inspection_id == InspectionRow.id)
            .outerjoin(ExplanationRow, ExplanationRow.inspection_id == InspectionRow.id)
            .outerjoin(region, and_(region.explanation_id == ExplanationRow.id, region.position == 0))
            .where(*self._during(start, end), InspectionRow.failure_kind == "")
            .order_by(CaptureRow.captured_at, InspectionRow.id)
        )
        found: dict[tuple[str, str, str], list[Any]] = {}
        with self._database.read() as connection:
            count = connection.execute(parts).scalar_one()
            if count > most:
                query = query.where(_drawn(most / count))
            for line, station, shift, *rest in connection.execute(query):
                found.setdefault((line, station, shift), []).append(rest)
        return {place: _watched(rows) for place, rows in sorted(found.items())}

    def defect_scores(
        self, start: datetime, end: datetime, *, model: StoredModel
    ) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
        """Return a model's probability of a defect (n,) and verdict (n,) for each part it judged."""
        query = (
            select(InspectionRow.scores, InspectionRow.verdict)
            .join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
            .join(Model, Model.id == InspectionRow.model_id)
            .where(*self._during(start, end), Model.fingerprint == model.fingerprint, InspectionRow.scores.is_not(None))
            .order_by(CaptureRow.captured_at, InspectionRow.id)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return _chance_of_defect([row.scores for row in rows], model), np.array(
            [row.verdict for row in rows], dtype=str
        )

    def reviewed_scores(self, start: datetime, end: datetime, *, model: StoredModel) -> list[ReviewedScore]:
        """Return the scores of parts that a person called OK or NG, with the chance each had to be reviewed."""
        newest = (
            select(func.max(ReviewRow.id)).where(ReviewRow.inspection_id == InspectionRow.id).correlate(InspectionRow)
        )
        query = (
            select(
                InspectionRow.scores,
                InspectionRow.verdict,
                InspectionRow.explain_reason,
                ReviewRow.verdict,
                RunRow.settings,
            )
            .join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
            .join(Model, Model.id == InspectionRow.model_id)
            .join(RunRow, RunRow.id == InspectionRow.run_id)
            .join(ReviewRow, ReviewRow.id == newest.scalar_subquery())
            .where(*self._during(start, end), Model.fingerprint == model.fingerprint, InspectionRow.scores.is_not(None))
            .where(ReviewRow.decision != Decision.UNDECIDED, ReviewRow.verdict.in_((VerdictCode.OK, VerdictCode.NG)))
            .order_by(CaptureRow.captured_at, InspectionRow.id)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        chances = _chance_of_defect([row[0] for row in rows], model)
        found = []
        for (_, verdict, because, said, settings), chance in zip(rows, chances, strict=True):
            share = settings.get("ok_share") if verdict == VerdictCode.OK else 1.0
            if verdict != VerdictCode.OK or (because == "sample" and isinstance(share, int | float) and share > 0):
                found.append(ReviewedScore(float(chance), said == VerdictCode.NG, float(share)))
        return found

    def slower_than(self, start: datetime, end: datetime, *, window_ms: float) -> int:
        """Count the inspections that took longer than `window_ms`."""
        query = (
            select(func.count()).select_from(InspectionRow).join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
        )
        with self._database.read() as connection:
            found = connection.execute(query.where(*self._during(start, end), InspectionRow.duration_ms > window_ms))
            return int(found.scalar_one())

    def run_settings(self, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """By which settings each run worked."""
        query = select(RunRow.run_id, RunRow.settings).where(RunRow.run_id.in_(run_ids))
        with self._database.read() as connection:
            return {row.run_id: dict(row.settings) for row in connection.execute(query)}

    def waiting(self, moment: datetime) -> Waiting:
        """Count flagged parts captured before `moment` that have no answer yet."""
        answered = (
            select(ReviewRow.id).where(ReviewRow.inspection_id == InspectionRow.id).correlate(InspectionRow).exists()
        )
        age_limits = [moment - age for age in AGES]
        newer = [func.sum(case((CaptureRow.captured_at >= limit, 1), else_=0)) for limit in age_limits]
        query = (
            select(func.count(), func.min(CaptureRow.captured_at), *newer)
            .select_from(InspectionRow)
            .join(CaptureRow, CaptureRow.id == InspectionRow.capture_id)
            .where(InspectionRow.verdict.in_((VerdictCode.NG, VerdictCode.UNSURE)), CaptureRow.captured_at < moment)
            .where(~answered)
        )
        if self._shift is not None:
            query = query.where(CaptureRow.shift == self._shift)
        with self._database.read() as connection:
            total, oldest, *counts = connection.execute(query).one()
        steps = [0, *(int(count or 0) for count in counts), int(total)]
        ages = tuple(after - before for before, after in pairwise(steps))
        return Waiting(int(total), ages, oldest)

    def cohorts(self, start: datetime, end: datetime) -> list[tuple[CohortKey, int]]:
        """Count the stored maps of defects by cohort, the largest first."""
        names = [queries.column(name) for name in ("product", "line", "station", "view")]
        keys = [*names, ExplanationRow.target, CaptureRow.height_px, CaptureRow.width_px]
        query = self._explained(start, end, *keys, func.count()).group_by(*keys)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        found = [(CohortKey(r[0], r[1], r[2], r[3], r[4], (r[5], r[6])), int(r[7])) for r in rows]
        return sorted(found, key=lambda each: (-each[1], *dataclasses.astuple(each[0])))

    def maps(self, key: CohortKey, start: datetime, end: datetime, *, share: float = 1.0) -> Iterator[StoredMap]:
        """Yield the maps of one cohort in the order of their ids, with only a few in memory.

        Args:
            key: The cohort.
            start: First moment of capture.
            end: First moment after.
            share: About so much of them: those with the lowest hashes, which favors no kind.
        """
        spread = (
            select(func.min(ExplanationTile.score_spread))
            .where(ExplanationTile.explanation_id == ExplanationRow.id)
            .correlate(ExplanationRow)
            .scalar_subquery()
        )
        columns = (InspectionRow.id, queries.column("serial"), ExplanationRow.faithfulness, spread, MapBlob.sha256)
        query = self._explained(start, end, *columns).where(
            *(queries.column(name) == getattr(key, name) for name in ("product", "line", "station", "view")),
            ExplanationRow.target == key.label,
            CaptureRow.height_px == key.size[0],
            CaptureRow.width_px == key.size[1],
        )
        if share < 1:
            query = query.where(_drawn(share))
        last = 0
        while True:  # page by page, so that no transaction stays open while the caller works
            page = query.where(InspectionRow.id > last).order_by(InspectionRow.id).limit(_AT_A_TIME)
            with self._database.read() as connection:
                rows = connection.execute(page.add_columns(MapBlob.data)).all()
            for row in rows:
                number, serial, faithfulness, score_spread, sha256, data = row
                blob = self._database.read_blob(sha256) if data is None else data
                fused = decode(blob, sha256=sha256)
                if fused.shape == key.size:
                    yield StoredMap(number, serial, faithfulness, score_spread, fused)
            if len(rows) < _AT_A_TIME:
                return
            last = rows[-1][0]

    def _explained(self, start: datetime, end: datetime, *columns: Any) -> Any:
        return (
            queries.summaries()
            .with_only_columns(*columns, maintain_column_froms=True)
            .join(MapBlob, MapBlob.id == ExplanationRow.fused_blob_id)
            .where(
                *self._during(start, end),
                InspectionRow.verdict != VerdictCode.OK,
                ExplanationRow.status == Status.EXPLAINED,
                MapBlob.deleted_at.is_(None),
            )
        )

    def _during(self, start: datetime, end: datetime) -> tuple[ColumnElement[bool], ...]:
        inside = and_(CaptureRow.captured_at >= start, CaptureRow.captured_at < end)
        # Said of the inspection too: without statistics SQLite walks all inspections and looks each one's capture up.
        captured = aliased(CaptureRow)
        span = select(captured.id).where(captured.captured_at >= start, captured.captured_at < end)
        inside = and_(inside, InspectionRow.capture_id.in_(span))
        return (inside,) if self._shift is None else (inside, CaptureRow.shift == self._shift)
