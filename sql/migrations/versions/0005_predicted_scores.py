"""How many of a block's mask scores were predicted in place of a forward pass; none, in rows that were there before."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Id

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("block_map", sa.Column("predicted", Id, server_default=sa.text("0"), nullable=False))
