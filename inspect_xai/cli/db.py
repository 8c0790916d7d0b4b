"""`inspect-xai db`: the database's schema."""

import typer

from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, echo, print_json

commands = typer.Typer(help="Make, upgrade and check the database.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(commands, name="db")


@commands.command()
def upgrade(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Bring the database to the schema this version reads and writes; makes an SQLite file where there is none.

    All of it happens in one transaction, so an interruption leaves the old schema. Back up first all the same.

    Example: inspect-xai db upgrade --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.database import redact_url
    from inspect_xai.storage.schema import upgrade_schema
    from inspect_xai.storage.tables import REVISION

    url = load_settings(settings, db=db).db
    before = upgrade_schema(url)
    if as_json:
        print_json({"db": redact_url(url), "before": before or None, "schema": REVISION})
    elif before == REVISION:
        echo(f"{redact_url(url)} has schema {REVISION} already")
    else:
        echo(f"{redact_url(url)} brought from schema {before or 'none'} to {REVISION}")


@commands.command()
def status(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Say whether the database fits this version; it is not changed.

    Exit code 0: it fits. 52: it does not, and the message names the command to run.

    Example: inspect-xai db status --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.database import redact_url
    from inspect_xai.storage.store import open_store
    from inspect_xai.storage.tables import REVISION

    url = load_settings(settings, db=db).db
    open_store(url, create=False).close()
    if as_json:
        print_json({"db": redact_url(url), "schema": REVISION, "fits": True})
    else:
        echo(f"{redact_url(url)} has schema {REVISION}, which is what this version needs")
