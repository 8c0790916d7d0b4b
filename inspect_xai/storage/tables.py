"""The tables, typed. Facts are written once; what changes later is appended (`review`, `ledger_event`).

    product -< lot -< part -< capture -< inspection >- model, policy, run
                                          |-- explanation -< explanation_region
                                          |            |--< explanation_tile -< block_map >- map_blob
                                          |            `--> map_blob (the fused map)
                                          |--< review >- reason_code
                                          |-- review_queue_item, image_statistics
                                          `--< study_part >- study -< study_task -< study_rating

Every table has a whole-number `id`, or the ids of its parents with a position. Times are UTC. `sql/schema/` shows the
DDL for both databases (`python -m inspect_xai.storage.schema` writes it); `sql/migrations/` is what makes it.
"""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Select,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from inspect_xai.records import Decision, ModelStatus, Status, VerdictCode
from inspect_xai.storage.types import Bytes, Id, Json, Real, SafeText, UtcTime, Whole

REVISION: Final = "0015"
"""The schema revision this build reads and writes: the newest file in sql/migrations/versions (a test compares)."""

VERSION_TABLE: Final = "inspect_xai_version"  # Alembic's default name is taken where Prefect lives in the database


def _one_of(column: str, values: type[StrEnum] | tuple[str, ...]) -> CheckConstraint:
    names = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({names})", name=column)


def _parent(column: str, *, cascade: bool = False) -> ForeignKey:
    return ForeignKey(column, ondelete="CASCADE" if cascade else None)


class Base(DeclarativeBase):
    """Naming convention of constraints, so that migrations can refer to them."""

    if TYPE_CHECKING:
        __table__: ClassVar[Table]  # SQLAlchemy says FromClause, which knows neither its key nor how to be updated

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - the form SQLAlchemy asks for
        int: Whole,
        float: Real,
        str: SafeText(),
        bytes: Bytes,
        datetime: UtcTime(),
        dict[str, Any]: Json(),
        list[Any]: Json(),
    }


def _id() -> Mapped[int]:
    return mapped_column(Id, primary_key=True)


class Product(Base):
    """A kind of part. An unknown product is the one without a name, so that every part has one."""

    __tablename__ = "product"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(unique=True)


class Lot(Base):
    """Parts made together; the empty code stands for an unknown lot."""

    __tablename__ = "lot"
    __table_args__ = (UniqueConstraint("product_id", "code"), {"sqlite_strict": True})

    id: Mapped[int] = _id()
    product_id: Mapped[int] = mapped_column(_parent("product.id"))
    code: Mapped[str] = mapped_column(index=True)


class PartRow(Base):
    """One physical piece; the same serial in another lot is another piece."""

    __tablename__ = "part"
    __table_args__ = (UniqueConstraint("lot_id", "serial"), {"sqlite_strict": True})

    id: Mapped[int] = _id()
    lot_id: Mapped[int] = mapped_column(_parent("lot.id"))
    serial: Mapped[str] = mapped_column(index=True)


class CaptureRow(Base):
    """One picture; `sha256` is that of the file's bytes, `pixels_sha256` of what was decoded (empty: unknown)."""

    __tablename__ = "capture"
    __table_args__ = (Index(None, "line", "station", "captured_at"), {"sqlite_strict": True})

    id: Mapped[int] = _id()
    sha256: Mapped[str] = mapped_column(unique=True)
    pixels_sha256: Mapped[str]
    file_name: Mapped[str]
    part_id: Mapped[int] = mapped_column(_parent("part.id"), index=True)
    captured_at: Mapped[datetime] = mapped_column(index=True)
    line: Mapped[str]
    station: Mapped[str]
    camera: Mapped[str]
    view: Mapped[str]
    shift: Mapped[str]
    height_px: Mapped[int]
    width_px: Mapped[int]
    archived_to: Mapped[str]
    picture_deleted_at: Mapped[datetime | None]  # by retention
    picture_going_at: Mapped[datetime | None]  # retention began to delete it then: a hold placed later came too late
    identity_source: Mapped[
        str | None
    ]  # source of the part's identity: sidecar, path or file (its name alone); NULL: not written down


class Model(Base):
    """One model bundle by its fingerprint; the ledger keeps who changed its status, when and why."""

    __tablename__ = "model"
    __table_args__ = (_one_of("status", ModelStatus), {"sqlite_strict": True})

    id: Mapped[int] = _id()
    fingerprint: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    version: Mapped[str]
    card: Mapped[dict[str, Any]]
    status: Mapped[str]
    registered_at: Mapped[datetime]
    registered_by: Mapped[str]
    status_at: Mapped[datetime]
    status_by: Mapped[str]
    golden_result: Mapped[dict[str, Any] | None]  # the result of the golden set the status rests on
    calibration: Mapped[dict[str, Any] | None]  # from its scores to probabilities of a defect, fitted on reviews
    bundle_sha256: Mapped[str | None]  # of all files of the bundle that was registered; NULL: from before it was kept


class Policy(Base):
    """Thresholds and rules for explaining, versioned apart from the model; NULL content: known by its version alone."""

    __tablename__ = "policy"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    version: Mapped[str] = mapped_column(unique=True)
    content: Mapped[dict[str, Any] | None]
    registered_at: Mapped[datetime]


class RunRow(Base):
    """One opening of a line: what judged the pictures recorded under it."""

    __tablename__ = "run"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    run_id: Mapped[str] = mapped_column(unique=True)
    started_at: Mapped[datetime]
    provider: Mapped[str]
    versions: Mapped[dict[str, Any]]
    settings: Mapped[dict[str, Any]]


class InspectionRow(Base):
    """One capture judged by one model under one policy: what the network said, and what the line should do."""

    __tablename__ = "inspection"
    __table_args__ = (
        UniqueConstraint("capture_id", "model_id", "policy_id"),
        _one_of("verdict", VerdictCode),
        Index(None, "verdict", "inspected_at"),
        Index(None, "label", "inspected_at"),
        {"sqlite_strict": True, "sqlite_autoincrement": True},  # the id of a deleted row is never given again
    )

    id: Mapped[int] = _id()
    capture_id: Mapped[int] = mapped_column(_parent("capture.id"))
    model_id: Mapped[int] = mapped_column(_parent("model.id"), index=True)
    policy_id: Mapped[int] = mapped_column(_parent("policy.id"))
    run_id: Mapped[int] = mapped_column(_parent("run.id"), index=True)
    inspected_at: Mapped[datetime] = mapped_column(index=True)
    recorded_at: Mapped[datetime]
    model_status: Mapped[str]  # the model's when the verdict was recorded
    verdict: Mapped[str]
    reason: Mapped[str]
    label: Mapped[str]  # the defect label nearest to or furthest over its threshold
    score: Mapped[float]
    threshold: Mapped[float]
    predicted_label: Mapped[str | None]  # NULL, as the next four: the picture did not reach the network
    predicted_score: Mapped[float | None]
    margin: Mapped[float | None]
    worst_tile: Mapped[int | None]
    scores: Mapped[list[Any] | None]
    explain_reason: Mapped[str]
    failure_kind: Mapped[str]  # empty: none
    failure_message: Mapped[str]
    duration_ms: Mapped[float]


class ImageStatisticsRow(Base):
    """Image statistics, which are watched for drift, and the embedding of explained parts.

    `embedding` is a fixed projection of the last block's mean features, 16 numbers of float32, little endian.
    """

    __tablename__ = "image_statistics"
    __table_args__ = ({"sqlite_strict": True},)

    inspection_id: Mapped[int] = mapped_column(_parent("inspection.id", cascade=True), primary_key=True)
    brightness: Mapped[float]
    contrast: Mapped[float]
    clipped_share: Mapped[float]
    sharpness: Mapped[float]
    noise: Mapped[float]
    embedding: Mapped[bytes | None]


class MapBlob(Base):
    """Encoded maps, each once; without `data` they lie in the blob store, or retention deleted them."""

    __tablename__ = "map_blob"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    sha256: Mapped[str] = mapped_column(unique=True)
    codec: Mapped[str]
    dtype: Mapped[str]
    precision: Mapped[str]
    shape: Mapped[list[Any]]
    size_bytes: Mapped[int]
    data: Mapped[bytes | None]
    deleted_at: Mapped[datetime | None]


class ExplanationRow(Base):
    """Method, settings, cost and faithfulness of an explanation map. See `Explanation.coverage`."""

    __tablename__ = "explanation"
    __table_args__ = (_one_of("status", Status), {"sqlite_strict": True})

    id: Mapped[int] = _id()
    inspection_id: Mapped[int] = mapped_column(_parent("inspection.id", cascade=True), unique=True)
    status: Mapped[str]
    method: Mapped[str]
    target: Mapped[str]
    contrast_label: Mapped[str]
    mu: Mapped[float]
    baseline: Mapped[str]
    settings: Mapped[dict[str, Any]]  # all of them, also those without a column
    forward_passes: Mapped[int]
    provider: Mapped[str]
    duration_ms: Mapped[float]
    timings_ms: Mapped[dict[str, Any]]
    notes: Mapped[list[Any]]
    faithfulness: Mapped[dict[str, Any]]
    coverage: Mapped[float]
    energy_in_roi: Mapped[float | None]  # faithfulness["energy_in_roi"], for reports in plain SQL; as the next seven
    drop_percent: Mapped[float | None]  # NULL: not measured (explain/faithfulness.py says what each is)
    drop_percent_random: Mapped[float | None]
    increase_percent: Mapped[float | None]
    increase_percent_random: Mapped[float | None]
    deletion_percent: Mapped[float | None]
    deletion_percent_random: Mapped[float | None]
    faithfulness_passes: Mapped[int | None]  # not among `forward_passes`
    fused_blob_id: Mapped[int] = mapped_column(_parent("map_blob.id"), index=True)


class ExplanationRegion(Base):
    """A connected part of the explanation map in source pixels; position 0 has the most mass."""

    __tablename__ = "explanation_region"
    __table_args__ = ({"sqlite_strict": True},)

    explanation_id: Mapped[int] = mapped_column(_parent("explanation.id", cascade=True), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    top_px: Mapped[int]
    left_px: Mapped[int]
    height_px: Mapped[int]
    width_px: Mapped[int]
    area_px: Mapped[int]
    peak: Mapped[float]
    mass: Mapped[float]


class ExplanationTile(Base):
    """One explained window of the picture."""

    __tablename__ = "explanation_tile"
    __table_args__ = (_one_of("status", Status), {"sqlite_strict": True})

    explanation_id: Mapped[int] = mapped_column(_parent("explanation.id", cascade=True), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    tile_index: Mapped[int]  # which window of the picture's grid
    top_px: Mapped[int]
    left_px: Mapped[int]
    height_px: Mapped[int]
    width_px: Mapped[int]
    status: Mapped[str]
    scores: Mapped[list[Any]]
    baseline_score: Mapped[float | None]
    score_spread: Mapped[float | None]


class BlockMapRow(Base):
    """One convolutional block's share in one window, rebuilt from `sums_blob_id` (NULL: dropped, `note` says why)."""

    __tablename__ = "block_map"
    __table_args__ = (
        ForeignKeyConstraint(
            ["explanation_id", "tile_position"],
            ["explanation_tile.explanation_id", "explanation_tile.position"],
            ondelete="CASCADE",
        ),
        {"sqlite_strict": True},
    )

    explanation_id: Mapped[int] = mapped_column(primary_key=True)
    tile_position: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # shallow to deep
    tensor: Mapped[str]
    channels: Mapped[int]
    positive_channels: Mapped[int]
    kept_channels: Mapped[int]
    constant_channels: Mapped[int]
    beta: Mapped[float | None]
    threshold: Mapped[float | None]
    score_min: Mapped[float | None]
    score_max: Mapped[float | None]
    otsu_threshold: Mapped[float | None]
    note: Mapped[str]
    predicted_scores: Mapped[int] = mapped_column(server_default=text("0"))  # masks whose score no forward pass gave
    grid: Mapped[dict[str, Any] | None]  # where its cells lie on the window; NULL: from edge to edge
    sums_blob_id: Mapped[int | None] = mapped_column(_parent("map_blob.id"), index=True)


class ReasonCode(Base):
    """A reason for overturning a verdict, from the plant's own list."""

    __tablename__ = "reason_code"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    code: Mapped[str] = mapped_column(unique=True)
    meaning: Mapped[str]


class ReviewRow(Base):
    """A person's answer. Triggers refuse UPDATE and DELETE; a correction is a new row that supersedes the old one."""

    __tablename__ = "review"
    __table_args__ = (
        _one_of("decision", Decision),
        UniqueConstraint("supersedes_id"),  # an answer is corrected once; the next correction corrects that one
        Index(None, "inspection_id", "reviewed_at"),
        {"sqlite_strict": True, "sqlite_autoincrement": True},
    )

    id: Mapped[int] = _id()
    inspection_id: Mapped[int] = mapped_column(_parent("inspection.id", cascade=True))
    supersedes_id: Mapped[int | None] = mapped_column(_parent("review.id", cascade=True))
    reviewer: Mapped[str]
    reviewed_at: Mapped[datetime] = mapped_column(index=True)
    decision: Mapped[str]
    verdict: Mapped[str]  # the person's own: OK, NG or UNSURE
    true_label: Mapped[str]
    reason_code_id: Mapped[int | None] = mapped_column(_parent("reason_code.id"))
    map_rating: Mapped[str]  # "yes", "no", "partly"; empty: not said
    blind: Mapped[int]  # 1: given before verdict and map were shown
    box: Mapped[list[Any] | None]  # [top, left, height, width] in source pixels, where a person saw the defect
    note: Mapped[str]


class ReviewQueueItem(Base):
    """An inspection in the review queue: working state, no part of the record, rebuilt from it at any time.

    What the desk filters by is repeated here, so that a page of the queue is one walk along one index.
    """

    __tablename__ = "review_queue_item"
    __table_args__ = (
        _one_of("state", ("open", "done")),
        Index(None, "state", "priority", "inspection_id"),
        Index(None, "claimed_by"),
        {"sqlite_strict": True},
    )

    inspection_id: Mapped[int] = mapped_column(_parent("inspection.id", cascade=True), primary_key=True)
    state: Mapped[str]  # open: an answer is wanted, a second one where `first_reviewer` stands; or done
    priority: Mapped[int]  # 0 is the most urgent
    reason: Mapped[str]  # what put it there, as a code
    verdict: Mapped[str]
    label: Mapped[str]
    line: Mapped[str]
    station: Mapped[str]
    shift: Mapped[str]
    inspected_at: Mapped[datetime]
    claimed_by: Mapped[str]  # empty: nobody
    claimed_until: Mapped[datetime | None]
    first_reviewer: Mapped[str]  # who answered first; nobody is the second inspector of their own answer
    second_reviewer: Mapped[str] = mapped_column(
        server_default=text("''")
    )  # who answered second, where a third person is wanted
    blind: Mapped[int] = mapped_column(server_default=text("0"))  # 1: judged before verdict and map are shown


class ReviewCursor(Base):
    """The last inspection that was considered for the queue: one row."""

    __tablename__ = "review_cursor"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    last_enqueued_id: Mapped[int]


class ReviewRequestKey(Base):
    """Idempotency key of a review: sent again after a broken connection, it is the same review."""

    __tablename__ = "review_request_key"
    __table_args__ = ({"sqlite_strict": True},)

    key: Mapped[str] = mapped_column(primary_key=True)
    review_id: Mapped[int] = mapped_column(_parent("review.id", cascade=True), index=True)


class WebSession(Base):
    """A browser that is signed in, or chose a language before: in the database, so that a restart ends no session.

    Only the sha256 of its id is kept: who reads the table cannot sit down in somebody's place.
    """

    __tablename__ = "web_session"
    __table_args__ = (Index(None, "used_at"), {"sqlite_strict": True})

    id_sha256: Mapped[str] = mapped_column(primary_key=True)
    person: Mapped[str]  # empty: nobody signed in yet
    used_at: Mapped[datetime]
    language: Mapped[str]
    theme: Mapped[str]
    skipped: Mapped[list[Any]]  # inspections the person left for later, newest last


class StudyRow(Base):
    """An attribute agreement study (AIAG MSA) on the desk: some parts, judged blind by several people several times."""

    __tablename__ = "study"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    trials: Mapped[int]
    seed: Mapped[int]  # of the choice of parts and of every order
    created_at: Mapped[datetime]
    created_by: Mapped[str]


class StudyPart(Base):
    """One part of a study: the very picture, and with it what the model said."""

    __tablename__ = "study_part"
    __table_args__ = (UniqueConstraint("study_id", "inspection_id"), {"sqlite_strict": True})

    study_id: Mapped[int] = mapped_column(_parent("study.id", cascade=True), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    inspection_id: Mapped[int] = mapped_column(_parent("inspection.id", cascade=True), index=True)


class StudyTask(Base):
    """A part at its place in an appraiser's trial. Trial 0 by nobody in particular gives the reference."""

    __tablename__ = "study_task"
    __table_args__ = (
        ForeignKeyConstraint(
            ["study_id", "part_position"], ["study_part.study_id", "study_part.position"], ondelete="CASCADE"
        ),
        UniqueConstraint("study_id", "appraiser", "trial", "run_order"),
        {"sqlite_strict": True},
    )

    id: Mapped[int] = _id()
    study_id: Mapped[int]
    appraiser: Mapped[str]  # empty: the reference
    trial: Mapped[int]
    run_order: Mapped[int]  # 1, 2, 3, ... in the order that was drawn
    part_position: Mapped[int]


class StudyRatingRow(Base):
    """A rating of a part in a study. Appended: of a trial the first answer counts, of the reference the last."""

    __tablename__ = "study_rating"
    __table_args__ = (_one_of("verdict", VerdictCode), {"sqlite_strict": True})

    id: Mapped[int] = _id()
    task_id: Mapped[int] = mapped_column(_parent("study_task.id", cascade=True), index=True)
    verdict: Mapped[str]
    answered_by: Mapped[str]
    answered_at: Mapped[datetime]


class ClaimRow(Base):
    """A worker's claim on a file of a URL source, for one model and policy: working state, no part of the record.

    Without `lease_expires_at` the file is recorded; with another `file_version` (size and time) it is new.
    """

    __tablename__ = "claim"
    __table_args__ = (UniqueConstraint("source", "file_name", "model_id", "policy_id"), {"sqlite_strict": True})

    id: Mapped[int] = _id()
    source: Mapped[str]
    file_name: Mapped[str]
    model_id: Mapped[int] = mapped_column(_parent("model.id"))
    policy_id: Mapped[int] = mapped_column(_parent("policy.id"))
    file_version: Mapped[str]
    owner: Mapped[str]
    lease_expires_at: Mapped[datetime | None]


class LedgerEvent(Base):
    """The hash chain: `hash` = sha256(previous_hash + body); triggers refuse UPDATE and DELETE."""

    __tablename__ = "ledger_event"
    __table_args__ = (Index(None, "kind", "subject"), {"sqlite_strict": True})

    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)  # 1, 2, 3, ... without a gap
    occurred_at: Mapped[datetime] = mapped_column(index=True)
    kind: Mapped[str]
    subject: Mapped[str]
    body: Mapped[str]  # canonical JSON as hashed: text on both databases, since JSONB would respell it
    previous_hash: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    signed_by: Mapped[str | None]  # a public key (`storage.signing_keys`); NULL: not signed
    signature: Mapped[str | None]  # of `hash`


class RetentionRule(Base):
    """Days that one kind of data of a product is kept; the product without a name stands for all without a rule."""

    __tablename__ = "retention_rule"
    __table_args__ = (
        _one_of("data_kind", ("picture", "map", "row")),
        UniqueConstraint("product_name", "data_kind"),
        {"sqlite_strict": True},
    )

    id: Mapped[int] = _id()
    product_name: Mapped[str]
    data_kind: Mapped[str]
    keep_days: Mapped[int]
    set_at: Mapped[datetime]
    set_by: Mapped[str]


class LegalHold(Base):
    """Nothing of these parts is deleted while the hold stands; empty product, lot or serial mean any."""

    __tablename__ = "legal_hold"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    product: Mapped[str]
    lot: Mapped[str]
    serial: Mapped[str]
    reason: Mapped[str]
    placed_at: Mapped[datetime]
    placed_by: Mapped[str]
    released_at: Mapped[datetime | None]
    released_by: Mapped[str]


class Audit(Base):
    """A model measured on labeled pictures, beside the model; the numbers are the audit's own document."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    audit_id: Mapped[str] = mapped_column(unique=True)
    model_id: Mapped[int] = mapped_column(_parent("model.id"), index=True)
    audited_at: Mapped[datetime]
    settings: Mapped[dict[str, Any]]
    numbers: Mapped[dict[str, Any]]


class DriftBaselineRow(Base):
    """Distribution of every watched feature in a reference month, by line, station and shift; the newest counts.

    `content` is a zstd frame of JSON (`inspect_xai.reports.drift`); the ledger keeps who set it.
    """

    __tablename__ = "drift_baseline"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[int] = _id()
    first_day: Mapped[str]  # as the plant's calendar has it
    last_day: Mapped[str]
    set_at: Mapped[datetime]
    set_by: Mapped[str]
    content: Mapped[bytes]


class AlertSent(Base):
    """An alert that went out on a channel, so that it goes once."""

    __tablename__ = "alert_sent"
    __table_args__ = ({"sqlite_strict": True},)

    alert_id: Mapped[str] = mapped_column(primary_key=True)
    channel: Mapped[str] = mapped_column(primary_key=True)
    sent_at: Mapped[datetime]
    text: Mapped[str]


def join_parts(query: Select[Any]) -> Select[Any]:
    """Join the part, lot and product of the captures that a query selects."""
    query = query.join(PartRow, PartRow.id == CaptureRow.part_id).join(Lot, Lot.id == PartRow.lot_id)
    return query.join(Product, Product.id == Lot.product_id)
