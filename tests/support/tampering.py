"""SQL past the ledger, and what the ledger finds then."""

from sqlalchemy import Connection, text

from inspect_xai.storage import database
from inspect_xai.storage.store import Store


def tamper(url: str, *statements: str) -> None:
    """Run SQL past the store, with the triggers out of the way."""
    engine = database.open_engine(url)
    with engine.begin() as connection:
        for statement in (*without_triggers(connection), *statements):
            connection.execute(text(statement))
    engine.dispose()


def without_triggers(connection: Connection) -> list[str]:
    if connection.dialect.name == "postgresql":
        return ["ALTER TABLE ledger_event DISABLE TRIGGER USER", "ALTER TABLE review DISABLE TRIGGER USER"]
    names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars()
    return [f"DROP TRIGGER {name}" for name in names]


def kinds(store: Store, **heads: object) -> list[tuple[int, str]]:
    return [(finding.sequence, finding.kind) for finding in store.ledger.verify(**heads).findings]  # type: ignore[arg-type]
