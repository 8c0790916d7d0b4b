"""Events of the ledger may be signed; NULL: they are not. `schema` then has the ledger vouch for what it did not yet."""

import sqlalchemy as sa
from alembic import op

from inspect_xai.storage.types import SafeText

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("ledger_event", sa.Column("signed_by", SafeText, nullable=True))
    op.add_column("ledger_event", sa.Column("signature", SafeText, nullable=True))
