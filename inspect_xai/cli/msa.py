"""`inspect-xai msa`: agreement of inspectors with themselves, each other, the reference and the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.app import store_of, who
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import ByOption, DatabaseOption, JsonOption, SettingsOption, echo, print_json

if TYPE_CHECKING:
    from inspect_xai.records import StudyRating
    from inspect_xai.statistics.agreement import Agreement, Kappa
    from inspect_xai.statistics.rates import Rate
    from inspect_xai.storage.store import Store

StudyArgument = Annotated[
    str, typer.Argument(help="A study on the review desk by its name, or a CSV file (its name ends with .csv).")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    commands = typer.Typer(no_args_is_help=True, help="Run attribute agreement studies (AIAG MSA).")
    commands.command("create")(create)
    commands.command("list")(list_)
    commands.command("export")(export)
    commands.command("import")(import_wide)
    commands.command("analyze")(analyze)
    app.add_typer(commands, name="msa", rich_help_panel=Panel.DESK)


def create(
    study: StudyArgument,
    appraisers: Annotated[str, typer.Option("--appraisers", help="Names, with commas between.")],
    parts: Annotated[int, typer.Option("--parts", min=2, help="How many; AIAG uses 50.")] = 50,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How often each looks at each part.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice and the order.")] = 1,
    inspection: Annotated[
        list[int] | None, typer.Option("--inspection", help="Take this one, instead of drawing; may be given again.")
    ] = None,
    by: ByOption = "",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a study from the record.

    Half of its parts are flagged and half passed, in a new random order for each trial. A name sets it up on the review
    desk: there each appraiser judges blind, part by part, and somebody of the quality department gives the reference.
    The model takes part with what it said of these pictures. A file name (.csv) writes a sheet to be filled in instead:
    experts fill in `reference`, appraisers `answer`, both with OK or NG; the verdict is not on it.

    Example: inspect-xai msa create autumn --appraisers Ada,Bob,Cleo --parts 50 --trials 3 --db sqlite:///line.db
    """
    from inspect_xai.reports import msa_csv
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.studies import Studies

    names = [name.strip() for name in appraisers.split(",") if name.strip()]
    with store_of(load_settings(settings, db=db)) as store:
        if not _is_file(study):
            made = Studies(store.database).create(
                study,
                appraisers=names,
                parts=parts,
                trials=trials,
                seed=seed,
                by=who(by),
                inspection_ids=inspection or (),
            )
            if as_json:
                print_json(made)
            else:
                echo(f"{made.name}: {made.parts} parts, {len(names)} appraisers, {trials} trials; it waits on the desk")
            return
        rows = msa_csv.create(store, parts=parts, appraisers=names, trials=trials, seed=seed)
    msa_csv.write(Path(study), rows)
    _wrote(Path(study), len(rows), as_json=as_json)


def list_(db: DatabaseOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """List the desk's studies and their progress.

    The newest comes first.

    Example: inspect-xai msa list --db sqlite:///line.db
    """
    from inspect_xai.settings import load_settings
    from inspect_xai.storage.studies import Studies

    with store_of(load_settings(settings, db=db)) as store:
        studies = Studies(store.database)
        listed = [(study, studies.progress(study.study_id)) for study in studies.all()]
    if as_json:
        print_json([{"study": study, "progress": progress} for study, progress in listed])
        return
    for study, progress in listed:
        echo(f"{study.name}: {study.parts} parts, {study.trials} trials, by {study.created_by}")
        for row in progress:
            task = f"{row.appraiser}, trial {row.trial}" if row.trial else "reference"
            echo(f"  {task:<28} {row.answered} of {row.parts}")
    echo(f"{len(listed)} studies")


def export(
    study: Annotated[str, typer.Argument(help="The study's name on the desk.")],
    out: Annotated[Path, typer.Option("--out", help="The CSV file to write.")],
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a study of the desk as CSV.

    For a spreadsheet or another program; the model's verdicts are in it.

    Example: inspect-xai msa export autumn --out autumn.csv --db sqlite:///line.db
    """
    from inspect_xai.reports import msa_csv
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        rows = _on_desk(store, study)
    msa_csv.write(out, rows)
    _wrote(out, len(rows), as_json=as_json)


def import_wide(
    table: Annotated[Path, typer.Argument(help='CSV with a row per part: part,reference,"Ada 1","Ada 2",...')],
    study: Annotated[Path, typer.Option("--out", help="The study to write.")],
    as_json: JsonOption = False,
) -> None:
    """Import a table with a row for each part.

    It has a column for each appraiser and trial, and becomes a study.

    Example: inspect-xai msa import table.csv --out study.csv
    """
    from inspect_xai.reports import msa_csv

    rows = msa_csv.read_wide(table)
    msa_csv.write(study, rows)
    _wrote(study, len(rows), as_json=as_json)


def analyze(
    study: StudyArgument,
    defect: Annotated[str, typer.Option("--defect", help="What the study calls a defective part.")] = "NG",
    good: Annotated[str, typer.Option("--good", help="What the study calls a good part.")] = "OK",
    model: Annotated[
        bool,
        typer.Option(
            "--model", help="Add the model's verdicts from the record to a file's study; one on the desk has them."
        ),
    ] = False,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Analyze a study by the AIAG limits.

    Within and between appraisers, and against the reference. Exit code 1 where someone's effectiveness, miss rate,
    false alarms or kappa is unacceptable.

    Example: inspect-xai msa analyze autumn --db sqlite:///line.db
    """
    from inspect_xai.reports import msa_csv
    from inspect_xai.settings import load_settings
    from inspect_xai.statistics.agreement import Grade
    from inspect_xai.statistics.agreement import analyze as analyzed

    if not _is_file(study):
        with store_of(load_settings(settings, db=db)) as store:
            answers = _on_desk(store, study)
    else:
        answers = msa_csv.read(Path(study))
        if model:
            with store_of(load_settings(settings, db=db)) as store:
                answers = msa_csv.with_model(answers, store)
    found = analyzed(answers, defect=defect, good=good)
    if as_json:
        pairs = [{"pair": pair, "kappa": kappa} for pair, kappa in found.pairs.items()]
        print_json(
            {
                "appraisals": found.appraisals,
                "between": found.between,
                "between_kappa": found.between_kappa,
                "all_right": found.all_right,
                "pairs": pairs,
            }
        )
    else:
        _print(found)
    if any(Grade.UNACCEPTABLE in each.grades.values() for each in found.appraisals):
        raise typer.Exit(1)


def _is_file(study: str) -> bool:
    return study.lower().endswith(".csv")


def _on_desk(store: "Store", name: str) -> "list[StudyRating]":
    from inspect_xai.storage.studies import Studies

    studies = Studies(store.database)
    return studies.rows(studies.get(name).study_id)


def _wrote(study: Path, rows: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"study": study, "rows": rows})
    else:
        echo(f"{rows} rows in {study}")


def _print(found: "Agreement") -> None:
    for appraisal in found.appraisals:
        echo(appraisal.appraiser)
        if appraisal.within.denominator:
            echo(f"  with themselves  {_rate(appraisal.within)}")
        for name, figure in (
            ("effectiveness", _rate(appraisal.effectiveness)),
            ("miss", _rate(appraisal.miss)),
            ("false_alarm", _rate(appraisal.false_alarm)),
            ("kappa", _kappa(appraisal.kappa)),
        ):
            grade = f"  {appraisal.grades[name].value}" if name in appraisal.grades else ""
            echo(f"  {name.replace('_', ' '):<15}  {figure}{grade}")
    echo("all together")
    echo(f"  all alike        {_rate(found.between)}")
    echo(f"  all right        {_rate(found.all_right)}")
    for (one, other), kappa in found.pairs.items():
        echo(f"  kappa {one} - {other}: {_kappa(kappa)}")


def _rate(rate: "Rate") -> str:
    if rate.value is None:
        return "nothing to count"
    share = f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f} %)"
    return f"{rate.count} of {rate.denominator}, {share}"


def _kappa(kappa: "Kappa") -> str:
    return "not defined" if kappa.value is None else f"{kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f})"
