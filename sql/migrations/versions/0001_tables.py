"""The tables of a first installation."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Bytes, Id, Json, Real, UtcTime, SafeText

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ledger_event",
        sa.Column("id", Id, autoincrement=False, nullable=False),
        sa.Column("occurred_at", UtcTime, nullable=False),
        sa.Column("kind", SafeText, nullable=False),
        sa.Column("subject", SafeText, nullable=False),
        sa.Column("body", SafeText, nullable=False),
        sa.Column("previous_hash", SafeText, nullable=False),
        sa.Column("hash", SafeText, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_event"),
        sa.UniqueConstraint("hash", name="uq_ledger_event_hash"),
        sqlite_strict=True,
    )
    op.create_index("ix_ledger_event_kind_subject", "ledger_event", ["kind", "subject"])
    op.create_index("ix_ledger_event_occurred_at", "ledger_event", ["occurred_at"])

    op.create_table(
        "legal_hold",
        sa.Column("id", Id, nullable=False),
        sa.Column("product", SafeText, nullable=False),
        sa.Column("lot", SafeText, nullable=False),
        sa.Column("serial", SafeText, nullable=False),
        sa.Column("reason", SafeText, nullable=False),
        sa.Column("placed_at", UtcTime, nullable=False),
        sa.Column("placed_by", SafeText, nullable=False),
        sa.Column("released_at", UtcTime, nullable=True),
        sa.Column("released_by", SafeText, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_legal_hold"),
        sqlite_strict=True,
    )

    op.create_table(
        "map_blob",
        sa.Column("id", Id, nullable=False),
        sa.Column("sha256", SafeText, nullable=False),
        sa.Column("codec", SafeText, nullable=False),
        sa.Column("dtype", SafeText, nullable=False),
        sa.Column("precision", SafeText, nullable=False),
        sa.Column("shape", Json, nullable=False),
        sa.Column("size_bytes", Id, nullable=False),
        sa.Column("data", Bytes, nullable=True),
        sa.Column("deleted_at", UtcTime, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_map_blob"),
        sa.UniqueConstraint("sha256", name="uq_map_blob_sha256"),
        sqlite_strict=True,
    )

    op.create_table(
        "model",
        sa.Column("id", Id, nullable=False),
        sa.Column("fingerprint", SafeText, nullable=False),
        sa.Column("name", SafeText, nullable=False),
        sa.Column("version", SafeText, nullable=False),
        sa.Column("card", Json, nullable=False),
        sa.Column("status", SafeText, nullable=False),
        sa.Column("registered_at", UtcTime, nullable=False),
        sa.Column("registered_by", SafeText, nullable=False),
        sa.Column("status_at", UtcTime, nullable=False),
        sa.Column("status_by", SafeText, nullable=False),
        sa.Column("golden", Json, nullable=True),
        sa.CheckConstraint("status IN ('candidate', 'approved', 'retired')", name=op.f("ck_model_status")),
        sa.PrimaryKeyConstraint("id", name="pk_model"),
        sa.UniqueConstraint("fingerprint", name="uq_model_fingerprint"),
        sqlite_strict=True,
    )

    op.create_table(
        "policy",
        sa.Column("id", Id, nullable=False),
        sa.Column("version", SafeText, nullable=False),
        sa.Column("content", Json, nullable=True),
        sa.Column("registered_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_policy"),
        sa.UniqueConstraint("version", name="uq_policy_version"),
        sqlite_strict=True,
    )

    op.create_table(
        "product",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", SafeText, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_product"),
        sa.UniqueConstraint("name", name="uq_product_name"),
        sqlite_strict=True,
    )

    op.create_table(
        "reason_code",
        sa.Column("id", Id, nullable=False),
        sa.Column("code", SafeText, nullable=False),
        sa.Column("meaning", SafeText, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reason_code"),
        sa.UniqueConstraint("code", name="uq_reason_code_code"),
        sqlite_strict=True,
    )

    op.create_table(
        "retention_rule",
        sa.Column("id", Id, nullable=False),
        sa.Column("product_name", SafeText, nullable=False),
        sa.Column("data_kind", SafeText, nullable=False),
        sa.Column("keep_days", Id, nullable=False),
        sa.Column("set_at", UtcTime, nullable=False),
        sa.Column("set_by", SafeText, nullable=False),
        sa.CheckConstraint("data_kind IN ('picture', 'map', 'row')", name=op.f("ck_retention_rule_data_kind")),
        sa.PrimaryKeyConstraint("id", name="pk_retention_rule"),
        sa.UniqueConstraint("product_name", "data_kind", name="uq_retention_rule_product_name_data_kind"),
        sqlite_strict=True,
    )

    op.create_table(
        "run",
        sa.Column("id", Id, nullable=False),
        sa.Column("run_id", SafeText, nullable=False),
        sa.Column("started_at", UtcTime, nullable=False),
        sa.Column("provider", SafeText, nullable=False),
        sa.Column("versions", Json, nullable=False),
        sa.Column("settings", Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
        sa.UniqueConstraint("run_id", name="uq_run_run_id"),
        sqlite_strict=True,
    )

    op.create_table(
        "audit",
        sa.Column("id", Id, nullable=False),
        sa.Column("audit_id", SafeText, nullable=False),
        sa.Column("model_id", Id, nullable=False),
        sa.Column("audited_at", UtcTime, nullable=False),
        sa.Column("settings", Json, nullable=False),
        sa.Column("numbers", Json, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name="fk_audit_model_id"),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sa.UniqueConstraint("audit_id", name="uq_audit_audit_id"),
        sqlite_strict=True,
    )
    op.create_index("ix_audit_model_id", "audit", ["model_id"])

    op.create_table(
        "lot",
        sa.Column("id", Id, nullable=False),
        sa.Column("product_id", Id, nullable=False),
        sa.Column("code", SafeText, nullable=False),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"], name="fk_lot_product_id"),
        sa.PrimaryKeyConstraint("id", name="pk_lot"),
        sa.UniqueConstraint("product_id", "code", name="uq_lot_product_id_code"),
        sqlite_strict=True,
    )
    op.create_index("ix_lot_code", "lot", ["code"])

    op.create_table(
        "part",
        sa.Column("id", Id, nullable=False),
        sa.Column("lot_id", Id, nullable=False),
        sa.Column("serial", SafeText, nullable=False),
        sa.ForeignKeyConstraint(["lot_id"], ["lot.id"], name="fk_part_lot_id"),
        sa.PrimaryKeyConstraint("id", name="pk_part"),
        sa.UniqueConstraint("lot_id", "serial", name="uq_part_lot_id_serial"),
        sqlite_strict=True,
    )
    op.create_index("ix_part_serial", "part", ["serial"])

    op.create_table(
        "capture",
        sa.Column("id", Id, nullable=False),
        sa.Column("sha256", SafeText, nullable=False),
        sa.Column("pixels_sha256", SafeText, nullable=False),
        sa.Column("file_name", SafeText, nullable=False),
        sa.Column("part_id", Id, nullable=False),
        sa.Column("captured_at", UtcTime, nullable=False),
        sa.Column("line", SafeText, nullable=False),
        sa.Column("station", SafeText, nullable=False),
        sa.Column("camera", SafeText, nullable=False),
        sa.Column("view", SafeText, nullable=False),
        sa.Column("shift", SafeText, nullable=False),
        sa.Column("height_px", Id, nullable=False),
        sa.Column("width_px", Id, nullable=False),
        sa.Column("archived_to", SafeText, nullable=False),
        sa.ForeignKeyConstraint(["part_id"], ["part.id"], name="fk_capture_part_id"),
        sa.PrimaryKeyConstraint("id", name="pk_capture"),
        sa.UniqueConstraint("sha256", name="uq_capture_sha256"),
        sqlite_strict=True,
    )
    op.create_index("ix_capture_captured_at", "capture", ["captured_at"])
    op.create_index("ix_capture_line_station_captured_at", "capture", ["line", "station", "captured_at"])
    op.create_index("ix_capture_part_id", "capture", ["part_id"])

    op.create_table(
        "inspection",
        sa.Column("id", Id, nullable=False),
        sa.Column("capture_id", Id, nullable=False),
        sa.Column("model_id", Id, nullable=False),
        sa.Column("policy_id", Id, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("inspected_at", UtcTime, nullable=False),
        sa.Column("recorded_at", UtcTime, nullable=False),
        sa.Column("model_status", SafeText, nullable=False),
        sa.Column("verdict", SafeText, nullable=False),
        sa.Column("reason", SafeText, nullable=False),
        sa.Column("label", SafeText, nullable=False),
        sa.Column("score", Real, nullable=False),
        sa.Column("threshold", Real, nullable=False),
        sa.Column("predicted_label", SafeText, nullable=True),
        sa.Column("predicted_score", Real, nullable=True),
        sa.Column("margin", Real, nullable=True),
        sa.Column("worst_tile", Id, nullable=True),
        sa.Column("scores", Json, nullable=True),
        sa.Column("explained_because", SafeText, nullable=False),
        sa.Column("failure_kind", SafeText, nullable=False),
        sa.Column("failure_message", SafeText, nullable=False),
        sa.Column("duration_ms", Real, nullable=False),
        sa.CheckConstraint("verdict IN ('OK', 'NG', 'UNSURE')", name=op.f("ck_inspection_verdict")),
        sa.ForeignKeyConstraint(["capture_id"], ["capture.id"], name="fk_inspection_capture_id"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name="fk_inspection_model_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_inspection_policy_id"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_inspection_run_id"),
        sa.PrimaryKeyConstraint("id", name="pk_inspection"),
        sa.UniqueConstraint("capture_id", "model_id", "policy_id", name="uq_inspection_capture_id_model_id_policy_id"),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_index("ix_inspection_inspected_at", "inspection", ["inspected_at"])
    op.create_index("ix_inspection_label_inspected_at", "inspection", ["label", "inspected_at"])
    op.create_index("ix_inspection_model_id", "inspection", ["model_id"])
    op.create_index("ix_inspection_run_id", "inspection", ["run_id"])
    op.create_index("ix_inspection_verdict_inspected_at", "inspection", ["verdict", "inspected_at"])

    op.create_table(
        "explanation",
        sa.Column("id", Id, nullable=False),
        sa.Column("inspection_id", Id, nullable=False),
        sa.Column("status", SafeText, nullable=False),
        sa.Column("method", SafeText, nullable=False),
        sa.Column("target", SafeText, nullable=False),
        sa.Column("against", SafeText, nullable=False),
        sa.Column("mu", Real, nullable=False),
        sa.Column("baseline", SafeText, nullable=False),
        sa.Column("settings", Json, nullable=False),
        sa.Column("passes", Id, nullable=False),
        sa.Column("provider", SafeText, nullable=False),
        sa.Column("duration_ms", Real, nullable=False),
        sa.Column("timings_ms", Json, nullable=False),
        sa.Column("notes", Json, nullable=False),
        sa.Column("faithfulness", Json, nullable=False),
        sa.Column("support_share", Real, nullable=False),
        sa.Column("energy_in_roi", Real, nullable=True),
        sa.Column("fused_blob_id", Id, nullable=False),
        sa.CheckConstraint(
            "status IN ('explained', 'no_evidence', 'not_explained', 'failed')", name=op.f("ck_explanation_status")
        ),
        sa.ForeignKeyConstraint(["fused_blob_id"], ["map_blob.id"], name="fk_explanation_fused_blob_id"),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspection.id"], name="fk_explanation_inspection_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_explanation"),
        sa.UniqueConstraint("inspection_id", name="uq_explanation_inspection_id"),
        sqlite_strict=True,
    )
    op.create_index("ix_explanation_fused_blob_id", "explanation", ["fused_blob_id"])

    op.create_table(
        "review",
        sa.Column("id", Id, nullable=False),
        sa.Column("inspection_id", Id, nullable=False),
        sa.Column("supersedes_id", Id, nullable=True),
        sa.Column("reviewer", SafeText, nullable=False),
        sa.Column("reviewed_at", UtcTime, nullable=False),
        sa.Column("decision", SafeText, nullable=False),
        sa.Column("verdict", SafeText, nullable=False),
        sa.Column("true_label", SafeText, nullable=False),
        sa.Column("reason_code_id", Id, nullable=True),
        sa.Column("map_on_defect", SafeText, nullable=False),
        sa.Column("blind", Id, nullable=False),
        sa.Column("box", Json, nullable=True),
        sa.Column("note", SafeText, nullable=False),
        sa.CheckConstraint("decision IN ('confirm', 'overturn', 'undecided')", name=op.f("ck_review_decision")),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspection.id"], name="fk_review_inspection_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["reason_code_id"], ["reason_code.id"], name="fk_review_reason_code_id"),
        sa.ForeignKeyConstraint(["supersedes_id"], ["review.id"], name="fk_review_supersedes_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_review"),
        sa.UniqueConstraint("supersedes_id", name="uq_review_supersedes_id"),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_index("ix_review_inspection_id_reviewed_at", "review", ["inspection_id", "reviewed_at"])
    op.create_index("ix_review_reviewed_at", "review", ["reviewed_at"])

    op.create_table(
        "explanation_region",
        sa.Column("explanation_id", Id, nullable=False),
        sa.Column("position", Id, nullable=False),
        sa.Column("top_px", Id, nullable=False),
        sa.Column("left_px", Id, nullable=False),
        sa.Column("height_px", Id, nullable=False),
        sa.Column("width_px", Id, nullable=False),
        sa.Column("area_px", Id, nullable=False),
        sa.Column("peak", Real, nullable=False),
        sa.Column("mass", Real, nullable=False),
        sa.ForeignKeyConstraint(
            ["explanation_id"], ["explanation.id"], name="fk_explanation_region_explanation_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("explanation_id", "position", name="pk_explanation_region"),
        sqlite_strict=True,
    )

    op.create_table(
        "explanation_tile",
        sa.Column("explanation_id", Id, nullable=False),
        sa.Column("position", Id, nullable=False),
        sa.Column("tile_index", Id, nullable=False),
        sa.Column("top_px", Id, nullable=False),
        sa.Column("left_px", Id, nullable=False),
        sa.Column("height_px", Id, nullable=False),
        sa.Column("width_px", Id, nullable=False),
        sa.Column("status", SafeText, nullable=False),
        sa.Column("scores", Json, nullable=False),
        sa.Column("baseline_score", Real, nullable=True),
        sa.Column("score_spread", Real, nullable=True),
        sa.CheckConstraint(
            "status IN ('explained', 'no_evidence', 'not_explained', 'failed')", name=op.f("ck_explanation_tile_status")
        ),
        sa.ForeignKeyConstraint(
            ["explanation_id"], ["explanation.id"], name="fk_explanation_tile_explanation_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("explanation_id", "position", name="pk_explanation_tile"),
        sqlite_strict=True,
    )

    op.create_table(
        "block_map",
        sa.Column("explanation_id", Id, nullable=False),
        sa.Column("tile_position", Id, nullable=False),
        sa.Column("position", Id, nullable=False),
        sa.Column("tensor", SafeText, nullable=False),
        sa.Column("channels", Id, nullable=False),
        sa.Column("positive", Id, nullable=False),
        sa.Column("kept", Id, nullable=False),
        sa.Column("constant", Id, nullable=False),
        sa.Column("beta", Real, nullable=True),
        sa.Column("threshold", Real, nullable=True),
        sa.Column("score_min", Real, nullable=True),
        sa.Column("score_max", Real, nullable=True),
        sa.Column("otsu", Real, nullable=True),
        sa.Column("note", SafeText, nullable=False),
        sa.Column("sums_blob_id", Id, nullable=True),
        sa.ForeignKeyConstraint(
            ["explanation_id", "tile_position"],
            ["explanation_tile.explanation_id", "explanation_tile.position"],
            name="fk_block_map_explanation_id_tile_position",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["sums_blob_id"], ["map_blob.id"], name="fk_block_map_sums_blob_id"),
        sa.PrimaryKeyConstraint("explanation_id", "tile_position", "position", name="pk_block_map"),
        sqlite_strict=True,
    )
    op.create_index("ix_block_map_sums_blob_id", "block_map", ["sums_blob_id"])
