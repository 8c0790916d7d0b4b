"""`inspect-xai ledger`: is the record what it was, and evidence for those who ask."""

from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, echo, print_json, progress_bar, store_of
from inspect_xai.cli.find import LotOption, ProductOption, SinceOption, UntilOption, in_zone

commands = typer.Typer(help="Check the record's chain of hashes, and export evidence.", no_args_is_help=True)

_FINDINGS = 1
_MOST = 100_000


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(commands, name="ledger")


@commands.command()
def verify(
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="A chain head noted down earlier, which must still be in it.")
    ] = None,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for changed, missing or reordered events, and for rows that are not what the events recorded.

    Exit code 0: the ledger holds. 1: it does not, and each finding is listed.

    Example: inspect-xai ledger verify --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store, progress_bar(shown=not as_json) as progress:
        tasks = {what: progress.add_task(f"checking {what}", total=None) for what in ("events", "rows")}
        report = store.verify_ledger(
            heads=heads or [],
            on_progress=lambda what, done, total: progress.update(tasks[what], completed=done, total=total),
        )
    if as_json:
        print_json(report)
    else:
        echo(f"{'holds' if report.holds else 'DOES NOT HOLD'}: {report.events} events, {report.rows} rows")
        for finding in report.findings:
            echo(f"  {finding.kind}: {finding.what}")
        for note in report.notes:
            echo(f"  note: {note}")
        echo(f"head {report.head}")
    if not report.holds:
        raise typer.Exit(_FINDINGS)


@commands.command()
def head(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Print the chain head: keep it elsewhere, and nobody can rewrite the ledger unseen.

    Example: inspect-xai ledger head --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        found = store.ledger_head()
    if as_json:
        print_json({"head": found})
    else:
        echo(found)


@commands.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="The ZIP file to write.")],
    part: Annotated[str | None, typer.Option("--part", help="The part's serial number.")] = None,
    lot: LotOption = None,
    product: ProductOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Where the archived pictures lie now, if they were moved.")
    ] = None,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export evidence of a part, a lot or a period: rows, pictures, maps, reviews, model card, proof of the chain.

    The ZIP can be checked without inspect-xai; its README.txt says how, docs/record.md what is in it. The same record
    gives the same bytes. What is recorded but no longer there (deleted by retention) is listed.

    Example: inspect-xai ledger export --part SN0042 --lot LOT7 --out evidence.zip
    """
    from inspect_xai.pipeline.evidence import export_evidence
    from inspect_xai.settings import load_settings

    if not (part or lot or product or since or until):
        raise typer.BadParameter("give --part, --lot, --product, --since or --until")
    chosen = load_settings(settings, db=db)
    zone = ZoneInfo(chosen.report.time_zone)
    with store_of(chosen) as store:
        found = store.find(
            serial=part, lot=lot, product=product, since=in_zone(since, zone), until=in_zone(until, zone),
            moment="captured_at", limit=_MOST,
        )  # fmt: skip
        made = export_evidence(store, [row.inspection_id for row in found], out=out, archive=archive)
    if as_json:
        print_json(made)
        return
    echo(f"{made.inspections} inspections in {made.files} files: {made.path}")
    echo(f"sha256  {made.sha256}")
    echo(f"head    {made.head}")
    for missing in made.missing:
        echo(f"missing {missing}")
