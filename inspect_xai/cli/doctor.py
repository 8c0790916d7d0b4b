"""`inspect-xai doctor` and `inspect-xai bench`: whether a line would run on this machine, and how fast."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import DatabaseOption, JsonOption, PixelSettingsOption, SettingsOption, echo, print_json
from inspect_xai.errors import InspectXaiError

if TYPE_CHECKING:
    from inspect_xai.explain.benchmark import BenchReport, Night

_FINDINGS = 1


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=Panel.OPERATIONS)(doctor)
    app.command(rich_help_panel=Panel.OPERATIONS)(bench)


def doctor(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="The model: a bundle folder.")] = None,
    db: DatabaseOption = None,
    source: Annotated[str | None, typer.Option("--source", help="Folder or URL the line reads.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether a line would run here.

    Settings, model, device, database, folders, room and clock are checked. The device counts only when it has run
    prediction, trace and masks; a folder when a byte was written there. One line each. Exit code 0: all is well. 1:
    something is to be done, and the line says what.

    Example: inspect-xai doctor --settings line.toml
    """
    from inspect_xai.line.doctor import Finding, Premises, examine
    from inspect_xai.settings import load_settings

    try:
        chosen = load_settings(settings, db=db, bundle=bundle, device=device, line={"source": source})
    except InspectXaiError as error:
        findings = [Finding("settings", ok=False, found=error.found, remedy=error.remedy)]
    else:
        premises = Premises(
            chosen.bundle,
            chosen.device,
            chosen.db,
            chosen.line.source,
            chosen.line.in_place,
            chosen.line.lease_s,
            chosen.report.out,
            chosen.line.policy,
            os.environ.get("PREFECT_API_URL", ""),
            chosen.line.ignore,
            chosen.ledger.key,
        )
        findings = [Finding("settings", ok=True, found="they can be read"), *examine(premises)]
    if as_json:
        print_json({"ok": all(finding.ok for finding in findings), "findings": findings})
    else:
        for finding in findings:
            remedy = f". Fix: {finding.remedy}" if finding.remedy else ""
            echo(f"{'ok  ' if finding.ok else 'FIX '}  {finding.check:<20}  {finding.found}{remedy}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else _FINDINGS)


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    picture: Annotated[
        Path | None, typer.Option("--picture", help="A typical picture; default: noise, which costs about the most.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        list[int] | None, typer.Option("--threads", min=1, help="Threads to try; default: 1 and all cores.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Measurements of each setting, in turn.")] = 5,
    pictures: Annotated[int | None, typer.Option("--pictures", min=1, help="Pictures to be done.")] = None,
    window: Annotated[float | None, typer.Option("--window", min=0.01, help="Hours there are for them.")] = None,
    explained: Annotated[
        float, typer.Option("--explained", min=0, max=1, help="Share of the pictures that is explained.")
    ] = 1.0,
    memory: Annotated[
        int, typer.Option("--memory-mb", min=1, help="How far a batch size may make the process grow on a CPU.")
    ] = 1000,
    save: Annotated[
        bool, typer.Option("--save", help="Save the batch size for `line` and `explain` on this machine.")
    ] = False,
    settings: PixelSettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast a model runs here.

    Every number of masks per run and of threads is measured in turn, several rounds of it; on a CPU also one process
    with all cores against one process for each. Then: what to choose (settings `threads` and `batch_size`), what
    an explanation by the card's method takes under each profile, and with --pictures and --window whether they fit:
    exit code 1 when not, under the card's own profile.

    With --save lines and explanations on this machine take the batch size unasked: the smallest that is as fast as
    any, to 3 %, within --memory-mb.

    Example: inspect-xai bench tile.bundle --pictures 20000 --window 8 --explained 0.1
    """
    from inspect_xai.explain.benchmark import Night
    from inspect_xai.explain.benchmark import bench as measure
    from inspect_xai.intake.sources import read_picture
    from inspect_xai.model.bundle import load_bundle
    from inspect_xai.settings import load_settings

    limits = load_settings(settings).line.limits
    if (pictures is None) != (window is None):
        raise typer.BadParameter("give both --pictures and --window")
    night = Night(pictures, window, explained) if pictures and window else None
    loaded = load_bundle(bundle)
    report = measure(
        loaded,
        read_picture(picture, limits=limits).pixels if picture else None,
        device=device,
        threads=threads or (),
        rounds=rounds,
        night=night,
        memory_mb=memory,
        keep=save,
    )
    if as_json:
        print_json(report)
    else:
        _print(report, night)
    own = next(each for each in report.expected if each.profile is loaded.card.explain.profile)
    raise typer.Exit(_FINDINGS if own.fits is False else 0)


def _print(report: "BenchReport", night: "Night | None") -> None:
    echo(f"{report.provider}, forward passes per second: median (slowest to fastest round)")
    for rate in report.rates:
        chosen = "  <- fastest" if rate == report.best else ""
        spread = f"({rate.slowest_per_s:.1f} to {rate.fastest_per_s:.1f})"
        echo(f"threads {rate.threads:>2}  batch size {rate.bucket:>2}  {rate.per_s:>8.1f}  {spread}{chosen}")
    for choice in report.chosen:
        kept = f"saved in {choice.kept}" if choice.kept else "save it with --save, or say --batch-size"
        echo(f"threads {choice.threads:>2}: batch size {choice.bucket} is as fast as any; now {choice.before} ({kept})")
    for rate in report.shared:
        chosen = "  <- faster together" if rate.per_s == max(each.per_s for each in report.shared) else ""
        spread = f"({rate.slowest_per_s:.1f} to {rate.fastest_per_s:.1f})"
        echo(f"processes {rate.processes:>2} with {rate.threads:>2} threads  {rate.per_s:>8.1f}  {spread}{chosen}")
    echo(f"one picture of {report.windows} windows is judged in {report.look_s * 1e3:.0f} ms")
    for each in report.expected:
        line = f"{each.profile:<6}  {each.passes:>6} passes, about {each.seconds:.2f} s an explained window"
        if night:
            fits = "yes" if each.fits else "no"
            line += f"; {night.pictures} pictures in {night.hours:g} h: {each.hours:.1f} h, fits in the window: {fits}"
        echo(line)
