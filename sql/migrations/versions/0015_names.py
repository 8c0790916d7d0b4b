"""Columns and tables get the names of the field; no value changes, and the ledger's documents keep their keys."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Bytes, Id, Json, Real, SafeText, UtcTime

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_COLUMNS = {
    "capture": {"known_from": "identity_source"},
    "model": {"golden": "golden_result"},
    "inspection": {"explained_because": "explain_reason"},
    "explanation": {"against": "contrast_label", "passes": "forward_passes", "support_share": "coverage"},
    "block_map": {
        "positive": "positive_channels",
        "kept": "kept_channels",
        "constant": "constant_channels",
        "predicted": "predicted_scores",
        "otsu": "otsu_threshold",
    },
    "review": {"map_on_defect": "map_rating"},
    "claim": {"stamp": "file_version", "held_until": "lease_expires_at"},
}


def upgrade() -> None:
    for table, columns in _COLUMNS.items():
        for old, new in columns.items():
            op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    # SQLite renames no constraint, and theirs have the table's or a column's name in them: these are made again.
    _image_statistics()
    _review_queue()
    _web_session()
    _study()


def _copy(old: str, new: str, columns: dict[str, str]) -> None:
    op.execute(f"INSERT INTO {new} ({', '.join(columns.values())}) SELECT {', '.join(columns)} FROM {old}")
    op.drop_table(old)


def _same(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


def _image_statistics() -> None:
    op.create_table(
        "image_statistics",
        sa.Column("inspection_id", Id, nullable=False),
        sa.Column("brightness", Real, nullable=False),
        sa.Column("contrast", Real, nullable=False),
        sa.Column("clipped_share", Real, nullable=False),
        sa.Column("sharpness", Real, nullable=False),
        sa.Column("noise", Real, nullable=False),
        sa.Column("embedding", Bytes, nullable=True),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspection.id"], name="fk_image_statistics_inspection_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("inspection_id", name="pk_image_statistics"),
        sqlite_strict=True,
    )
    columns = _same("inspection_id", "brightness", "contrast", "sharpness", "noise", "embedding")
    _copy("picture_signal", "image_statistics", columns | {"clipped": "clipped_share"})


def _review_queue() -> None:
    op.create_table(
        "review_queue_item",
        sa.Column("inspection_id", Id, nullable=False),
        sa.Column("state", SafeText, nullable=False),
        sa.Column("priority", Id, nullable=False),
        sa.Column("reason", SafeText, nullable=False),
        sa.Column("verdict", SafeText, nullable=False),
        sa.Column("label", SafeText, nullable=False),
        sa.Column("line", SafeText, nullable=False),
        sa.Column("station", SafeText, nullable=False),
        sa.Column("shift", SafeText, nullable=False),
        sa.Column("inspected_at", UtcTime, nullable=False),
        sa.Column("claimed_by", SafeText, nullable=False),
        sa.Column("claimed_until", UtcTime, nullable=True),
        sa.Column("first_reviewer", SafeText, nullable=False),
        sa.Column("second_reviewer", SafeText, server_default=sa.text("''"), nullable=False),
        sa.Column("blind", Id, server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_review_queue_item_state")),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspection.id"], name="fk_review_queue_item_inspection_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("inspection_id", name="pk_review_queue_item"),
        sqlite_strict=True,
    )
    columns = _same("inspection_id", "state", "verdict", "label", "line", "station", "shift", "inspected_at")
    columns |= _same("claimed_by", "claimed_until", "blind") | {"tier": "priority", "why": "reason"}
    columns |= {"judged_by": "first_reviewer", "second_by": "second_reviewer"}
    _copy("desk_item", "review_queue_item", columns)
    op.create_index(
        "ix_review_queue_item_state_priority_inspection_id",
        "review_queue_item",
        ["state", "priority", "inspection_id"],
    )
    op.create_index("ix_review_queue_item_claimed_by", "review_queue_item", ["claimed_by"])

    op.create_table(
        "review_cursor",
        sa.Column("id", Id, autoincrement=False, nullable=False),
        sa.Column("last_enqueued_id", Id, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_review_cursor"),
        sqlite_strict=True,
    )
    _copy("desk_mark", "review_cursor", {"id": "id", "seen_id": "last_enqueued_id"})

    op.create_table(
        "review_request_key",
        sa.Column("key", SafeText, nullable=False),
        sa.Column("review_id", Id, nullable=False),
        sa.ForeignKeyConstraint(
            ["review_id"], ["review.id"], name="fk_review_request_key_review_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key", name="pk_review_request_key"),
        sqlite_strict=True,
    )
    _copy("desk_answer", "review_request_key", _same('"key"', "review_id"))
    op.create_index("ix_review_request_key_review_id", "review_request_key", ["review_id"])


def _web_session() -> None:
    op.create_table(
        "web_session",
        sa.Column("id_sha256", SafeText, nullable=False),
        sa.Column("person", SafeText, nullable=False),
        sa.Column("used_at", UtcTime, nullable=False),
        sa.Column("language", SafeText, nullable=False),
        sa.Column("theme", SafeText, nullable=False),
        sa.Column("skipped", Json, nullable=False),
        sa.PrimaryKeyConstraint("id_sha256", name="pk_web_session"),
        sqlite_strict=True,
    )
    _copy("desk_session", "web_session", _same("id_sha256", "person", "used_at", "language", "theme", "skipped"))
    op.create_index("ix_web_session_used_at", "web_session", ["used_at"])


def _study() -> None:
    # The ratings are put aside first: SQLite deletes the rows that refer to those of a table it drops.
    for table in ("study_answer", "study_task"):
        op.execute(f"CREATE TEMPORARY TABLE former_{table} AS SELECT * FROM {table}")
        op.drop_table(table)
    op.create_table(
        "study_task",
        sa.Column("id", Id, nullable=False),
        sa.Column("study_id", Id, nullable=False),
        sa.Column("appraiser", SafeText, nullable=False),
        sa.Column("trial", Id, nullable=False),
        sa.Column("run_order", Id, nullable=False),
        sa.Column("part_position", Id, nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id", "part_position"],
            ["study_part.study_id", "study_part.position"],
            name="fk_study_task_study_id_part_position",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_study_task"),
        sa.UniqueConstraint(
            "study_id", "appraiser", "trial", "run_order", name="uq_study_task_study_id_appraiser_trial_run_order"
        ),
        sqlite_strict=True,
    )
    columns = _same("id", "study_id", "appraiser", "trial", "part_position") | {"place": "run_order"}
    _copy("former_study_task", "study_task", columns)
    op.create_table(
        "study_rating",
        sa.Column("id", Id, nullable=False),
        sa.Column("task_id", Id, nullable=False),
        sa.Column("verdict", SafeText, nullable=False),
        sa.Column("answered_by", SafeText, nullable=False),
        sa.Column("answered_at", UtcTime, nullable=False),
        sa.CheckConstraint("verdict IN ('OK', 'NG', 'UNSURE')", name=op.f("ck_study_rating_verdict")),
        sa.ForeignKeyConstraint(["task_id"], ["study_task.id"], name="fk_study_rating_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_study_rating"),
        sqlite_strict=True,
    )
    _copy("former_study_answer", "study_rating", _same("id", "task_id", "verdict", "answered_by", "answered_at"))
    op.create_index("ix_study_rating_task_id", "study_rating", ["task_id"])
    if op.get_bind().dialect.name == "postgresql":  # the next id follows those that were copied
        for table in ("study_task", "study_rating"):
            op.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), "
                f"(SELECT coalesce(max(id), 0) + 1 FROM {table}), false)"
            )
