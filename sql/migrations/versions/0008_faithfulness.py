"""Whether a map is true to the network, beside chance, as columns; NULL in rows that were there before."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import Real, Whole

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("drop_percent", "increase_percent", "deletion_percent"):
        op.add_column("explanation", sa.Column(name, Real, nullable=True))
        op.add_column("explanation", sa.Column(f"{name}_random", Real, nullable=True))
    op.add_column("explanation", sa.Column("faithfulness_passes", Whole, nullable=True))
