"""`inspect-xai db`: upgrade and check the database's schema."""

import typer

from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, echo, print_json

commands = typer.Typer(help="Upgrade and check the database.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(commands, name="db", rich_help_panel=Panel.OPERATIONS)


@commands.command()
def upgrade(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Upgrade the database to this version's schema.

    Makes an SQLite file where there is none. All of it happens in one transaction, so an interruption leaves the old
    schema. Back up first all the same.

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
    """Check whether the database fits this version.

    It is not changed. Exit code 0: it fits. 52: it does not, and the message names the command to run.

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
