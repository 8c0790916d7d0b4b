"""What the quality department's numbers rest on: picture signals, drift baselines, calibrations, alerts that went out."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Bytes, Id, Json, Real, UtcTime, SafeText

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model", sa.Column("calibration", Json, nullable=True))
    op.create_table(
        "picture_signal",
        sa.Column("inspection_id", Id, nullable=False),
        sa.Column("brightness", Real, nullable=False),
        sa.Column("contrast", Real, nullable=False),
        sa.Column("clipped", Real, nullable=False),
        sa.Column("sharpness", Real, nullable=False),
        sa.Column("noise", Real, nullable=False),
        sa.Column("embedding", Bytes, nullable=True),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspection.id"], name="fk_picture_signal_inspection_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("inspection_id", name="pk_picture_signal"),
        sqlite_strict=True,
    )
    op.create_table(
        "drift_baseline",
        sa.Column("id", Id, nullable=False),
        sa.Column("first_day", SafeText, nullable=False),
        sa.Column("last_day", SafeText, nullable=False),
        sa.Column("set_at", UtcTime, nullable=False),
        sa.Column("set_by", SafeText, nullable=False),
        sa.Column("content", Bytes, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drift_baseline"),
        sqlite_strict=True,
    )
    op.create_table(
        "alert_sent",
        sa.Column("alert_id", SafeText, nullable=False),
        sa.Column("channel", SafeText, nullable=False),
        sa.Column("sent_at", UtcTime, nullable=False),
        sa.Column("text", SafeText, nullable=False),
        sa.PrimaryKeyConstraint("alert_id", "channel", name="pk_alert_sent"),
        sqlite_strict=True,
    )
