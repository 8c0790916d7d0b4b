"""The working state of the review desk."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Id, UtcTime, SafeText

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "desk_item",
        sa.Column("inspection_id", Id, nullable=False),
        sa.Column("state", SafeText, nullable=False),
        sa.Column("tier", Id, nullable=False),
        sa.Column("why", SafeText, nullable=False),
        sa.Column("verdict", SafeText, nullable=False),
        sa.Column("label", SafeText, nullable=False),
        sa.Column("line", SafeText, nullable=False),
        sa.Column("station", SafeText, nullable=False),
        sa.Column("shift", SafeText, nullable=False),
        sa.Column("inspected_at", UtcTime, nullable=False),
        sa.Column("claimed_by", SafeText, nullable=False),
        sa.Column("claimed_until", UtcTime, nullable=True),
        sa.Column("judged_by", SafeText, nullable=False),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_desk_item_state")),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspection.id"], name="fk_desk_item_inspection_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("inspection_id", name="pk_desk_item"),
        sqlite_strict=True,
    )
    op.create_index("ix_desk_item_state_tier_inspection_id", "desk_item", ["state", "tier", "inspection_id"])

    op.create_table(
        "desk_mark",
        sa.Column("id", Id, autoincrement=False, nullable=False),
        sa.Column("seen_id", Id, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_desk_mark"),
        sqlite_strict=True,
    )

    op.create_table(
        "desk_answer",
        sa.Column("key", SafeText, nullable=False),
        sa.Column("review_id", Id, nullable=False),
        sa.ForeignKeyConstraint(["review_id"], ["review.id"], name="fk_desk_answer_review_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name="pk_desk_answer"),
        sqlite_strict=True,
    )
    op.create_index("ix_desk_answer_review_id", "desk_answer", ["review_id"])
