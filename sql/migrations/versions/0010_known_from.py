"""What told which part a picture shows; NULL, in rows that were there before: nobody wrote it down."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import SafeText

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("capture", sa.Column("known_from", SafeText, nullable=True))
