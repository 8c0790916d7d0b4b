"""`inspect-xai model`: register, verify, approve, retire and calibrate models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.app import _golden_of, _verify, store_of, who
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import (
    ByOption,
    DatabaseOption,
    DeviceOption,
    JsonOption,
    PixelSettingsOption,
    SettingsOption,
    echo,
    print_json,
)
from inspect_xai.errors import BundleError, GoldenSetError, SettingsError
from inspect_xai.records import ModelStatus

if TYPE_CHECKING:
    from inspect_xai.storage.results import StoredModel
    from inspect_xai.storage.store import Store
    from inspect_xai.verify.golden import GoldenReport

commands = typer.Typer(help="Register, verify, approve and calibrate models.", no_args_is_help=True)

BundleArgument = Annotated[Path, typer.Argument(help="The bundle folder.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A fingerprint, its beginning, or a bundle.")]
GoldenOption = Annotated[
    Path | None, typer.Option("--golden", help="The golden set. Default: golden/ inside the bundle, if it is there.")
]
NoteOption = Annotated[str, typer.Option("--note", help="Why, for the ledger.")]
_FINDINGS = 1
_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(commands, name="model", rich_help_panel=Panel.AUDITOR)


@commands.command("register")
def register_(
    bundle: BundleArgument,
    golden: GoldenOption = None,
    device: DeviceOption = "auto",
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a model as a candidate.

    Where a golden set travels with it, it must reproduce that. A model that is known with other files becomes a
    candidate again: whoever approved it did not see these.

    Example: inspect-xai model register tile.bundle --db sqlite:///inspections.db
    """
    from inspect_xai.model.bundle import load_bundle
    from inspect_xai.settings import load_settings
    from inspect_xai.verify.golden import keep_result

    chosen = load_settings(settings, db=db)
    loaded = load_bundle(bundle)
    report = _verify(bundle, golden, device, chosen.line.limits) if _golden_of(bundle, golden) else None
    if report is not None and not report.holds:
        _print_report(report, as_json=as_json)
        raise typer.Exit(_FINDINGS)
    with store_of(chosen, create=True) as store:
        store.registry.register_model(
            loaded.fingerprint, loaded.card, bundle_sha256=loaded.sha256, registered_by=who(by), other_files=True
        )
        if report is not None:
            keep_result(store, report, by=who(by), note="verified at registration")
        _print(store.registry.model(loaded.fingerprint), as_json=as_json)


@commands.command("golden-create")
def golden_create(
    bundle: BundleArgument,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Picture files, some of each label.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder. Default: golden/ inside the bundle.")] = None,
    device: DeviceOption = "auto",
    settings: PixelSettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a golden set from pictures.

    It keeps what the model says of them, so that every machine can show that it computes the same.

    Example: inspect-xai model golden-create tile.bundle good1.png crack1.png crack2.png
    """
    from inspect_xai.explain.explainer import Explainer
    from inspect_xai.settings import load_settings
    from inspect_xai.verify.golden import FOLDER, make_golden

    limits = load_settings(settings).line.limits
    folder = out or bundle / FOLDER
    with Explainer(bundle, device=device, faithfulness=False) as explainer:
        made = make_golden(explainer, pictures, out=folder, limits=limits)
    if as_json:
        print_json({"folder": folder} | made)
        return
    echo(f"golden set of {made['name']} {made['version']}, made on {made['provider']}: {folder}")
    for entry in made["pictures"]:
        echo(f"  {entry['picture']}  {entry['source']}  {entry['verdict']}, {entry['target']}")


@commands.command()
def verify(
    bundle: BundleArgument,
    golden: GoldenOption = None,
    device: DeviceOption = "auto",
    by: ByOption = "",
    db: Annotated[
        str | None, typer.Option("--db", help="Record the result with the model there.", show_default=False)
    ] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a model's golden set on a device.

    Exit code 0: everything is within the tolerances of docs/reference/record.md. 1: it is not; the table says where.

    Example: inspect-xai model verify tile.bundle --golden tile.bundle/golden --device cuda
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.verify.golden import keep_result

    chosen = load_settings(settings, db=db)
    report = _verify(bundle, golden, device, chosen.line.limits)
    if db is not None:
        with store_of(chosen) as store:
            keep_result(store, report, by=who(by), note="verified")
    _print_report(report, as_json=as_json)
    if not report.holds:
        raise typer.Exit(_FINDINGS)


@commands.command()
def approve(
    model: ModelArgument,
    without_golden: Annotated[
        bool, typer.Option("--without-golden", help="Although no golden result holds; say why with --note.")
    ] = False,
    note: NoteOption = "",
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a registered model.

    From now on its verdicts carry no mark. Its golden set must hold. Named by its bundle, the bundle's files must be
    those that were registered. Lines refuse any others.

    Example: inspect-xai model approve 3f0c --db sqlite:///inspections.db --note "audit 2026-11"
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        registered = _registered(store, model)
        if not (registered.golden_result or {}).get("holds") and not (without_golden and note):
            raise GoldenSetError(
                f"{registered.name} {registered.version} has no golden result that holds",
                remedy="inspect-xai model verify BUNDLE --db URL; or say --without-golden and why with --note",
            )
        _print(
            store.registry.set_model_status(registered.fingerprint, ModelStatus.APPROVED, by=who(by), note=note),
            as_json=as_json,
        )


@commands.command()
def retire(
    model: ModelArgument,
    note: NoteOption = "",
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Retire a model.

    What it judged stays as it is, and what it still judges is marked.

    Example: inspect-xai model retire 3f0c --db sqlite:///inspections.db --note "replaced by version 2"
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        found = store.registry.model(_fingerprint(model))
        _print(
            store.registry.set_model_status(found.fingerprint, ModelStatus.RETIRED, by=who(by), note=note),
            as_json=as_json,
        )


@commands.command("list")
def list_(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """List all registered models, newest first.

    Example: inspect-xai model list --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        models = store.registry.models()
    if as_json:
        print_json(models)
        return
    for model in models:
        _print(model, as_json=False)


def _registered(store: "Store", model: str) -> "StoredModel":
    """Return the model to approve; its files must be known, and be those at hand."""
    from inspect_xai.model.bundle import load_bundle
    from inspect_xai.verify.golden import FILES_NOT_KNOWN, LET_FILES_BE_KNOWN

    found = store.registry.model(_fingerprint(model))
    if Path(model).is_dir():
        found.check_files(load_bundle(model).sha256)
    if found.bundle_sha256 is None:
        raise BundleError(f"{found.name} {found.version} was {FILES_NOT_KNOWN}", remedy=LET_FILES_BE_KNOWN)
    return found


def _fingerprint(model: str) -> str:
    from inspect_xai.model.bundle import load_bundle

    if Path(model).is_dir():
        return load_bundle(model).fingerprint
    if not model:
        raise SettingsError("an empty fingerprint", expected="a fingerprint, its beginning, or a bundle folder")
    return model


def _print(model: "StoredModel", *, as_json: bool) -> None:
    if as_json:
        print_json(model)
        return
    golden = model.golden_result
    result = "no golden result"
    if golden is not None:
        word = "holds" if golden["holds"] else "DOES NOT HOLD"
        result = f"golden set {word} on {golden['provider']} ({golden['verified_at']})"
    echo(
        f"{model.fingerprint[:16]}  {model.name} {model.version}  {model.status}  "
        f"by {model.status_by}, {model.status_at:%Y-%m-%d %H:%M} UTC; {result}"
    )


def _print_report(report: "GoldenReport", *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    echo(
        f"{'holds' if report.holds else 'DOES NOT HOLD'} on {report.provider}: {len(report.checks)} pictures, "
        f"model {report.fingerprint[:16]}"
    )
    echo("  picture              verdict           score off   map off   top pixels the same")
    for check in report.checks[:_SHOWN]:
        verdict = check.verdict if check.verdict == check.verdict_now else f"{check.verdict} -> {check.verdict_now}"
        echo(
            f"  {check.picture:<20} {verdict:<16} {check.score_off:>10.1e} {check.map_off:>9.1e} "
            f"{check.overlap:>9.0%}{'' if check.holds else '  differs'}"
        )
    if len(report.checks) > _SHOWN:
        echo(f"  and {len(report.checks) - _SHOWN} that are nearer")
