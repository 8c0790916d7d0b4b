"""`inspect-xai audit`: measure whether a network looks at the defect, and compare two such audits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import DeviceOption, JsonOption, PixelSettingsOption, echo, print_json, progress_bar
from inspect_xai.records import Baseline, Method, Profile

if TYPE_CHECKING:
    from inspect_xai.audit.compare import Comparison
    from inspect_xai.audit.conclusions import AuditReport
    from inspect_xai.audit.run import Audit

_FINDINGS = 1


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=Panel.AUDITOR)(audit)
    app.command("audit compare", rich_help_panel=Panel.AUDITOR)(compare)


def audit(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    manifest: Annotated[
        Path, typer.Option("--manifest", help="CSV of pictures: image,label[,mask][,boxes][,part][,station].")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make, or to go on in where an audit was cut short.")],
    methods: Annotated[
        str, typer.Option("--methods", help="Compared methods; the answer rests on the first.")
    ] = "sise,grad-sise,grad-cam,layer-cam",
    sample: Annotated[int, typer.Option("--sample", help="Number of pictures measured, drawn at random; 0: all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    profile: Annotated[
        Profile | None, typer.Option("--profile", help="How many masks get a pass. Default: the card's.")
    ] = None,
    mu: Annotated[float | None, typer.Option("--mu", help="Selection threshold of sise. Default: the card's.")] = None,
    baseline: Annotated[
        Baseline | None, typer.Option("--baseline", help="What masks put in the picture's place. Default: the card's.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Of the insertion and deletion curves.")] = 50,
    every: Annotated[
        bool, typer.Option("--all", help="Explain defective pictures judged wrong too, by their true label.")
    ] = False,
    region: Annotated[
        str,
        typer.Option("--region", help="Where the part is: auto, picture, top,left,height,width in px, or a mask file."),
    ] = "auto",
    sanity: Annotated[int, typer.Option("--sanity", help="Pictures for the sanity checks; 0: none.")] = 3,
    adcc: Annotated[
        bool, typer.Option("--adcc", help="Measure ADCC too: one more explanation for each picture and method.")
    ] = False,
    db: Annotated[
        str | None, typer.Option("--db", help="Database to keep the numbers in, beside the model.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads. Default: all cores.")] = None,
    device: DeviceOption = "auto",
    settings: PixelSettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure whether a network looks at the defect.

    The pictures' truth must be known. Writes report.html, audit.json, rows and maps into --out. Kill it and run it
    again: it goes on.
    Exit code 0: the answer is yes, mostly or undecided. 1: it is no, or the sanity check failed.

    Example: inspect-xai audit tile.bundle --manifest parts.csv --methods sise,grad-cam --out audit --sample 200
    """
    from inspect_xai.app import audit_model
    from inspect_xai.audit.run import AuditSettings
    from inspect_xai.reports.audit_page import as_plain
    from inspect_xai.settings import load_settings

    loaded = load_settings(settings, db=db)
    chosen = AuditSettings(
        _methods(methods),
        profile,
        mu,
        baseline,
        sample,
        seed,
        steps,
        only_right=not every,
        region=region,
        sanity=sanity,
        adcc=adcc,
        limits=loaded.line.limits,
    )
    with progress_bar(shown=not as_json) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in ("measuring", "sanity")}
        done = audit_model(
            bundle,
            manifest,
            out,
            settings=chosen,
            keep_in=loaded if db is not None else None,
            settings_file=settings,
            device=device,
            threads=threads,
            on_step=lambda name, count, total: progress.update(tasks[name], completed=count, total=total),
        )
    if as_json:
        print_json(as_plain(done.audit, done.report) | {"page": done.written.page})
    else:
        _print(done.report, done.audit)
        echo(f"page     {done.written.page}")
        echo(f"numbers  {done.written.numbers}")
    if done.failed:
        raise typer.Exit(_FINDINGS)


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Folder of the audit of the model in use.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Folder of the audit of the model to take its place.")],
    tolerances: Annotated[
        Path | None, typer.Option("--tolerances", help="TOML file of what B may do worse. Default: nothing is held.")
    ] = None,
    allow_different: Annotated[
        bool, typer.Option("--allow-different", help="Compare although the two were made with other settings.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two audits of the same pictures.

    Verdicts, evidence and metrics are compared. Refused where methods, steps, fill, sample or whatever else changes
    numbers differ, and each difference is named.

    Exit code 0: within the tolerances, or none were given. 1: beyond them.

    Example: inspect-xai audit compare audit-old audit-new --tolerances gate.toml
    """
    from inspect_xai.audit.compare import Tolerances, compare_audits, read_tolerances
    from inspect_xai.audit.run import open_audit

    allowed = read_tolerances(tolerances) if tolerances else Tolerances()
    found = compare_audits(open_audit(before), open_audit(after), tolerances=allowed, allow_different=allow_different)
    if as_json:
        print_json(found)
    else:
        _print_comparison(found)
    if found.breaches:
        raise typer.Exit(_FINDINGS)


def _methods(text: str) -> tuple[Method, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in list(Method)]
    if unknown or not names:
        raise typer.BadParameter(f"{', '.join(unknown) or 'nothing'}; known are {', '.join(Method)}")
    return tuple(Method(name) for name in names)


def _print(report: "AuditReport", audit: "Audit") -> None:
    counted = report.answer.counted
    reasons = [f"{counted.count} of {counted.denominator} pictures count for the network", *report.answer.reasons]
    echo(f"looks at the defect: {report.answer.answer} ({'; '.join(reasons)})")
    for label, found in report.by_label.items():
        echo(f"  {label}: {found.answer} ({found.counted.count} of {found.counted.denominator})")
    if report.sanity:
        echo(f"sanity: {'passed' if report.sanity.passed else 'failed'}")
    columns = [key for key in ("aupro", "ebpg", "inside", "drop_mean", "road") if _is_measured(report, key)]
    if report.methods:
        echo(f"{'method':12}" + "".join(f"{key:>11}" for key in columns) + f"{'passes':>9}{'seconds':>9}")
    for method in report.methods:
        numbers = "".join(
            f"{method.cells[key].average.mean:>11.3f}" if key in method.cells else f"{'-':>11}" for key in columns
        )
        echo(f"{method.method:12}{numbers}{method.passes:>9.0f}{method.seconds:>9.2f}")
    if report.errors:
        echo(f"{len(report.errors)} of {len(audit.rows)} pictures could not be measured: {report.errors[0][1]}")


def _is_measured(report: "AuditReport", key: str) -> bool:
    return any(key in method.cells for method in report.methods)


def _print_comparison(found: "Comparison") -> None:
    echo(
        f"{found.pictures} pictures: {len(found.changed)} changed, {found.newly_wrong} newly wrong, "
        f"{found.newly_right} newly right (McNemar p = {found.p_value:.3g}), {found.new_escapes} new escapes, "
        f"{found.new_overkill} new overkill, {found.new_unsure} newly UNSURE"
    )
    for difference in found.differences:
        echo(f"made with other settings: {difference}")
    for part in found.changed:
        echo(f"  {part.image} ({part.label}): {part.before} -> {part.after}")
    if found.correlation is not None:
        echo(f"maps of {found.method}: median rank correlation {found.correlation:.3f}; furthest moved:")
        for part in found.moved[:5]:
            echo(f"  {part.image} ({part.label}): {part.correlation:.3f}")
    for key, step in found.metrics.items():
        echo(f"  {key:16} {step.mean:+.4f} ({step.low:+.4f} to {step.high:+.4f})")
    for breach in found.breaches:
        echo(f"beyond tolerance: {breach}")
