"""`inspect-xai retention`: set rules and legal holds, and delete what is due."""

from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.app import apply_retention, store_of, who
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import ByOption, DatabaseOption, JsonOption, SettingsOption, echo, print_json
from inspect_xai.errors import SettingsError

if TYPE_CHECKING:
    from inspect_xai.storage.retention import Plan

commands = typer.Typer(help="Set rules and holds, and delete what is due.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(commands, name="retention", rich_help_panel=Panel.RECORD)


@commands.command("set")
def set_rule(
    kind: Annotated[str | None, typer.Option("--kind", help="picture, map or row. Without: list the rules.")] = None,
    days: Annotated[int | None, typer.Option("--days", help="Days it is kept, at most 36500.", min=0)] = None,
    product: Annotated[str, typer.Option("--product", help="Default: all products without a rule.")] = "",
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set how long data is kept, or list the rules.

    A rule speaks of one kind of data of a product. Nothing is deleted by this.

    Example: inspect-xai retention set --product housing --kind map --days 365
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.retention import DataKind, Retention, Rule

    if (kind is None) != (days is None) or kind not in (None, *DataKind):
        raise typer.BadParameter("give --kind (picture, map or row) and --days, or neither to list the rules")
    with store_of(load_settings(settings, db=db)) as store:
        retention = Retention(store.database)
        if kind is not None and days is not None:
            retention.set_rule(Rule(product, DataKind(kind), days), by=who(by))
        rules = retention.rules()
    if as_json:
        print_json(rules)
        return
    for rule in rules:
        echo(f"{rule.product or 'all other products'}: {rule.kind} for {rule.keep_days} days")
    if not rules:
        echo("no rules: nothing is ever deleted")


@commands.command()
def plan(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Show what the rules would delete now.

    Nothing is changed.

    Example: inspect-xai retention plan --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.retention import Retention

    with store_of(load_settings(settings, db=db)) as store:
        due = Retention(store.database).plan()
    if as_json:
        print_json(due)
        return
    _print(due)


@commands.command()
def apply(
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it this is a dry run.")] = False,
    archive: Annotated[
        list[str] | None,
        typer.Option(
            "--archive", help="Folder or URL below which pictures may be deleted; default: the line's source."
        ),
    ] = None,
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete what the rules say (a dry run without --yes).

    Pictures are deleted below the archive folders and nowhere else. The deletion is written to the ledger; the numbers
    stay when pictures and maps go.

    Example: inspect-xai retention apply --db sqlite:///inspections.db --archive incoming --yes
    """
    from inspect_xai.settings import load_settings

    due = apply_retention(load_settings(settings, db=db), carry_out=yes, archive=archive or (), by=who(by))
    if as_json:
        print_json({"carried_out": yes, "plan": due})
        return
    _print(due)
    echo("deleted" if yes else "dry run: nothing was deleted; say --yes to delete")


@commands.command()
def hold(
    reason: Annotated[str, typer.Option("--reason", help="Why, for instance a complaint's number.")],
    part: Annotated[str, typer.Option("--part", help="Serial number. Default: any.")] = "",
    lot: Annotated[str, typer.Option("--lot", help="Default: any.")] = "",
    product: Annotated[str, typer.Option("--product", help="Default: any.")] = "",
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Place a legal hold.

    Everything of its parts is kept whatever the rules say, until the hold is released.

    Example: inspect-xai retention hold --lot LOT7 --reason "complaint 4711"
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.retention import Retention

    if not (part or lot or product):
        raise typer.BadParameter("give --part, --lot or --product")
    with store_of(load_settings(settings, db=db)) as store:
        retention = Retention(store.database)
        hold_id = retention.place_hold(reason=reason, by=who(by), product=product, lot=lot, serial=part)
        lost = retention.pictures_lost(hold_id)
    if as_json:
        gone = [{"serial": serial, "picture": place} for serial, place in lost]
        print_json({"hold_id": hold_id, "pictures_deleted_before": gone})
        return
    echo(f"hold {hold_id} stands; release it with: inspect-xai retention release {hold_id}")
    if lost:
        echo(f"too late for {len(lost)} pictures, which retention had deleted or was deleting:")
    for serial, place in lost:
        echo(f"  {serial}  {place}")


@commands.command()
def release(
    hold_id: Annotated[int | None, typer.Argument(metavar="ID", help="The hold. Without: list them all.")] = None,
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Release a legal hold, or list the holds.

    Example: inspect-xai retention release 3 --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.retention import Retention

    with store_of(load_settings(settings, db=db)) as store:
        retention = Retention(store.database)
        if hold_id is not None and not retention.release_hold(hold_id, by=who(by)):
            echo(f"no hold {hold_id} stands", err=True)
            raise typer.Exit(1)
        holds = retention.holds()
    if as_json:
        print_json(holds)
        return
    for hold_ in holds:
        scope = {"part": hold_.serial, "lot": hold_.lot, "product": hold_.product}
        named = ", ".join(f"{name} {value}" for name, value in scope.items() if value)
        echo(f"hold {hold_.hold_id}: {named}: {hold_.reason} ({hold_.placed_by}, {hold_.placed_at:%Y-%m-%d})")
    if not holds:
        echo("no holds stand")


@commands.command()
def sweep(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Remove map files that the record does not need.

    Killed lines leave them in the blob store; those an hour old or more are removed. Needs the setting blob_store;
    where the maps lie in the database nothing is left over.

    Example: inspect-xai retention sweep --settings line.toml
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.retention import Retention

    chosen = load_settings(settings, db=db)
    if not chosen.blob_store:
        raise SettingsError("no blob store is named", remedy="set `blob_store`; without one there is nothing to sweep")
    with store_of(chosen) as store:
        removed = Retention(store.database).sweep_blobs()
    if as_json:
        print_json({"removed": removed})
    else:
        echo(f"{len(removed)} files removed from {chosen.blob_store}")


def _print(plan: "Plan") -> None:
    echo(f"pictures     {len(plan.pictures)}")
    echo(f"maps         {len(plan.blob_ids)}, {plan.blob_bytes} bytes")
    echo(f"inspections  {len(plan.inspection_ids)}")
    echo(f"kept by legal holds  {plan.held}")
