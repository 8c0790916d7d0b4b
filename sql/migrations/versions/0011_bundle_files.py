"""Of which files a model's bundle consists; NULL, for models that were there before: nobody wrote it down."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import SafeText

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model", sa.Column("bundle_sha256", SafeText, nullable=True))
