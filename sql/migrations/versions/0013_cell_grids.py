"""Where the cells of a block lie on the window; NULL: from edge to edge, as in all rows that were there before."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Json

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("block_map", sa.Column("grid", Json, nullable=True))
