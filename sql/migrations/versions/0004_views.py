"""The first reporting views; views and triggers are made from their files after every upgrade, so nothing is left here.

A changed view or trigger needs a revision like this one: without it no database would take the change.
"""

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
