"""`inspect-xai ledger`: verify, sign and anchor the record; export evidence."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from inspect_xai.app import anchor_head, store_of, who
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import ByOption, DatabaseOption, JsonOption, SettingsOption, echo, print_json, progress_bar
from inspect_xai.cli.query import LotOption, ProductOption, SinceOption, UntilOption, in_zone

if TYPE_CHECKING:
    from inspect_xai.storage.ledger import LedgerReport

commands = typer.Typer(help="Verify, sign and anchor the ledger; export evidence.", no_args_is_help=True)
key_commands = typer.Typer(help="Create and rotate the key that signs events.", no_args_is_help=True)
commands.add_typer(key_commands, name="key")

_FINDINGS = 1
_MOST = 100_000


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(commands, name="ledger", rich_help_panel=Panel.RECORD)


@commands.command()
def verify(
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="A chain head noted down earlier, which must still be in it.")
    ] = None,
    public_keys: Annotated[
        list[Path] | None,
        typer.Option(
            "--public-key", help="PEM file of a key that must have signed. Default: setting ledger.public_keys."
        ),
    ] = None,
    anchors: Annotated[
        str | None,
        typer.Option("--anchors", help="Where heads are anchored: FILE.jsonl, folder or URL. Default: setting."),
    ] = None,
    files: Annotated[
        bool, typer.Option("--files", help="Read and hash every archived picture, and every map in the blob store.")
    ] = False,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Where the archived pictures lie now, if they were moved.")
    ] = None,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify the ledger and the rows it records.

    It finds changed, missing and reordered events, and rows that are not what the events recorded. It says since which
    event they are signed, and since when none of them can have been changed unseen. With public keys only these are
    believed, and the keys that events signed by them bring in; without, the first that signed is.

    Exit code 0: the ledger holds. 1: it does not, and each finding is listed, one for a row.

    Example: inspect-xai ledger verify --db sqlite:///inspections.db --public-key ledger.key.pub --files
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.signing_keys import read_public_key
    from inspect_xai.verify.file_check import check_pictures

    chosen = load_settings(settings, db=db)
    pinned = [read_public_key(file) for file in public_keys or chosen.ledger.public_keys]
    with store_of(chosen) as store, progress_bar(shown=not as_json) as progress:
        names = ("events", "rows", "maps", *(["pictures"] if files else []))
        tasks = {what: progress.add_task(f"checking {what}", total=None) for what in names}
        report = store.ledger.verify(
            heads=heads or [],
            public_keys=pinned,
            anchored_at=anchors or chosen.ledger.anchors,
            blobs=files,
            on_progress=lambda what, done, total: progress.update(tasks[what], completed=done, total=total),
        )
        if files:
            checked = check_pictures(
                store,
                archive=archive,
                on_progress=lambda done, total: progress.update(tasks["pictures"], completed=done, total=total),
            )
            note = f"{checked.read} archived files read, {checked.unhashed} of them without a picture to hash"
            report = dataclasses.replace(
                report, findings=(*report.findings, *checked.findings), notes=(*report.notes, note)
            )
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report.holds:
        raise typer.Exit(_FINDINGS)


def _print(report: "LedgerReport") -> None:
    echo(f"{'holds' if report.holds else 'DOES NOT HOLD'}: {report.events} events, {report.rows} rows")
    for finding in report.findings:
        echo(f"  {finding.kind}: {finding.what}")
    for note in report.notes:
        echo(f"  note: {note}")
    if not report.signed_since:
        echo("events are not signed: who owns the database can write a new chain (inspect-xai ledger key create)")
    else:
        pinned = "" if report.is_pinned else "; nobody vouches for that key: give --public-key"
        echo(f"signed since event {report.signed_since}, by key {report.signed_by}{pinned}")
    if report.anchored_at is None:
        echo("no anchor fits or was given: compare the head with one noted down elsewhere (inspect-xai ledger anchor)")
    else:
        since = report.anchored_at.isoformat(timespec="seconds")
        echo(
            f"events 1 to {report.anchored_events} cannot have changed unseen since {since} ({report.anchors} anchors)"
        )
    echo(f"head {report.head}")


@commands.command()
def anchor(
    place: Annotated[
        str | None, typer.Option("--to", help="FILE.jsonl, a folder or a URL. Default: setting ledger.anchors.")
    ] = None,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Anchor the chain's head outside the database.

    The place must be one that the database's owner cannot write: an append-only file or an object store with
    retention. From then on nothing that is recorded now can change unseen: see `ledger verify --anchors`. Refused where
    the newest anchor there is not of this ledger.

    Example: inspect-xai ledger anchor --to /mnt/quality/anchors.jsonl --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings

    chosen = load_settings(settings, db=db)
    made = anchor_head(chosen, place)
    if as_json:
        print_json(made)
    else:
        signed = f"signed by {made.signed_by}" if made.signed_by else "not signed: no ledger.key is set"
        echo(f"anchored {made.events} events at {place or chosen.ledger.anchors}: head {made.head}, {signed}")


@key_commands.command()
def create(
    file: Annotated[Path, typer.Argument(help="The new private key; its public key goes beside it, FILE.pub.")],
    as_json: JsonOption = False,
) -> None:
    """Create a key (Ed25519) that signs events.

    Nothing is signed until ledger.key (INSPECT_XAI_LEDGER__KEY) names it. Everybody who writes into the database then
    needs the key: lines, desk, flows and commands. Keep a copy where it cannot be lost, and give the public key to
    those who verify.

    Example: inspect-xai ledger key create /etc/inspect-xai/ledger.key
    """
    from inspect_xai.storage.signing_keys import create_key, public_file

    made = create_key(file)
    if as_json:
        print_json({"key": file, "public_key_file": public_file(file), "public_key": made.public_key})
    else:
        echo(f"private key  {file}")
        echo(f"public key   {public_file(file)}")
        echo(f"             {made.public_key}")


@key_commands.command()
def rotate(
    file: Annotated[Path, typer.Argument(help="The new private key.")],
    lost: Annotated[
        bool, typer.Option("--old-key-lost", help="The old key is gone and cannot sign that this one follows.")
    ] = False,
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the key that signs events.

    The key in use signs that, so those who verify need no new public key. Then name the new key in ledger.key, wherever
    the old one is named. With --old-key-lost the new key stands for itself: `ledger verify` then wants both public
    keys.

    Example: inspect-xai ledger key rotate /etc/inspect-xai/ledger-2027.key --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        public_key = store.ledger.rotate_key(file, by=who(by), lost=lost)
    if as_json:
        print_json({"key": file, "public_key": public_key})
    else:
        echo(f"events are signed with {public_key} from now on: set ledger.key to {file}")


@commands.command()
def head(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Print the chain's head.

    Keep it elsewhere, and nobody can rewrite the ledger unseen.

    Example: inspect-xai ledger head --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        found = store.ledger.head()
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
    """Export evidence of a part, a lot or a period.

    The ZIP holds rows, pictures, maps, reviews, model card and proof of the chain. It can be checked without
    inspect-xai; its README.txt says how, docs/reference/record.md what is in it. The same record gives the same bytes.
    What is recorded but no longer there (deleted by retention) is listed.

    Example: inspect-xai ledger export --part SN0042 --lot LOT7 --out evidence.zip
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.verify.evidence_export import export_evidence

    if not (part or lot or product or since or until):
        raise typer.BadParameter("give --part, --lot, --product, --since or --until")
    chosen = load_settings(settings, db=db)
    zone = ZoneInfo(chosen.report.time_zone)
    with store_of(chosen) as store:
        found = store.find(
            serial=part,
            lot=lot,
            product=product,
            since=in_zone(since, zone),
            until=in_zone(until, zone),
            moment="captured_at",
            limit=_MOST,
        )
        made = export_evidence(store, [row.inspection_id for row in found], out=out, archive=archive)
    if as_json:
        print_json(made)
        return
    echo(f"{made.inspections} inspections in {made.files} files: {made.path}")
    echo(f"sha256  {made.sha256}")
    echo(f"head    {made.head}")
    for missing in made.missing:
        echo(f"missing {missing}")
