"""Retention marks deleted pictures; ledger and reviews become append-only by triggers (sql/triggers, made after it)."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("capture", sa.Column("picture_deleted_at", UtcTime, nullable=True))
