"""Which files of a URL source are being inspected, by whom and until when; and which are recorded."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Id, UtcTime, SafeText

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "claim",
        sa.Column("id", Id, nullable=False),
        sa.Column("source", SafeText, nullable=False),
        sa.Column("file_name", SafeText, nullable=False),
        sa.Column("model_id", Id, nullable=False),
        sa.Column("policy_id", Id, nullable=False),
        sa.Column("stamp", SafeText, nullable=False),
        sa.Column("owner", SafeText, nullable=False),
        sa.Column("held_until", UtcTime, nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name="fk_claim_model_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_claim_policy_id"),
        sa.PrimaryKeyConstraint("id", name="pk_claim"),
        sa.UniqueConstraint(
            "source", "file_name", "model_id", "policy_id", name="uq_claim_source_file_name_model_id_policy_id"
        ),
        sqlite_strict=True,
    )
