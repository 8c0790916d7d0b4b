"""Studies and sessions on the desk; which parts are judged blind, and by whom a third time."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Id, Json, UtcTime, SafeText

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# As the desk orders them from this revision on; blind parts stand at 0, whatever put them there.
_ORDER = (
    "", "failed", "unsure", "near_threshold", "weak_explanation", "outside_roi", "disagreement", "disputed",
    "second_look", "ng", "sample",
)


def upgrade() -> None:
    op.add_column("desk_item", sa.Column("second_by", SafeText, server_default=sa.text("''"), nullable=False))
    op.add_column("desk_item", sa.Column("blind", Id, server_default=sa.text("0"), nullable=False))
    op.create_index("ix_desk_item_claimed_by", "desk_item", ["claimed_by"])
    for tier, why in enumerate(_ORDER):
        op.execute(sa.text("UPDATE desk_item SET tier = :tier WHERE why = :why").bindparams(tier=tier, why=why))

    op.create_table(
        "desk_session",
        sa.Column("id_sha256", SafeText, nullable=False),
        sa.Column("person", SafeText, nullable=False),
        sa.Column("used_at", UtcTime, nullable=False),
        sa.Column("language", SafeText, nullable=False),
        sa.Column("theme", SafeText, nullable=False),
        sa.Column("skipped", Json, nullable=False),
        sa.PrimaryKeyConstraint("id_sha256", name="pk_desk_session"),
        sqlite_strict=True,
    )
    op.create_index("ix_desk_session_used_at", "desk_session", ["used_at"])

    op.create_table(
        "study",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", SafeText, nullable=False),
        sa.Column("trials", Id, nullable=False),
        sa.Column("seed", Id, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("created_by", SafeText, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_study"),
        sa.UniqueConstraint("name", name="uq_study_name"),
        sqlite_strict=True,
    )
    op.create_table(
        "study_part",
        sa.Column("study_id", Id, nullable=False),
        sa.Column("position", Id, nullable=False),
        sa.Column("inspection_id", Id, nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_study_part_study_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspection.id"], name="fk_study_part_inspection_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "position", name="pk_study_part"),
        sa.UniqueConstraint("study_id", "inspection_id", name="uq_study_part_study_id_inspection_id"),
        sqlite_strict=True,
    )
    op.create_index("ix_study_part_inspection_id", "study_part", ["inspection_id"])
    op.create_table(
        "study_task",
        sa.Column("id", Id, nullable=False),
        sa.Column("study_id", Id, nullable=False),
        sa.Column("appraiser", SafeText, nullable=False),
        sa.Column("trial", Id, nullable=False),
        sa.Column("place", Id, nullable=False),
        sa.Column("part_position", Id, nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id", "part_position"],
            ["study_part.study_id", "study_part.position"],
            name="fk_study_task_study_id_part_position",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_study_task"),
        sa.UniqueConstraint(
            "study_id", "appraiser", "trial", "place", name="uq_study_task_study_id_appraiser_trial_place"
        ),
        sqlite_strict=True,
    )
    op.create_table(
        "study_answer",
        sa.Column("id", Id, nullable=False),
        sa.Column("task_id", Id, nullable=False),
        sa.Column("verdict", SafeText, nullable=False),
        sa.Column("answered_by", SafeText, nullable=False),
        sa.Column("answered_at", UtcTime, nullable=False),
        sa.CheckConstraint("verdict IN ('OK', 'NG', 'UNSURE')", name=op.f("ck_study_answer_verdict")),
        sa.ForeignKeyConstraint(["task_id"], ["study_task.id"], name="fk_study_answer_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_study_answer"),
        sqlite_strict=True,
    )
    op.create_index("ix_study_answer_task_id", "study_answer", ["task_id"])
