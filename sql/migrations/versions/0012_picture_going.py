"""When retention begins to delete a picture, so that a legal hold placed meanwhile can tell what it no longer saves."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import UtcTime

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("capture", sa.Column("picture_going_at", UtcTime, nullable=True))
