"""`inspect-xai msa`: do inspectors agree with themselves, each other, the reference, and the model with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, print_json, store_of

if TYPE_CHECKING:
    from inspect_xai.maths.agreement import Agreement, Kappa
    from inspect_xai.maths.quality import Rate

StudyArgument = Annotated[Path, typer.Argument(help="The study: part,picture,reference,appraiser,trial,answer.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    commands = typer.Typer(no_args_is_help=True, help="Attribute agreement studies (AIAG MSA), as CSV files.")
    commands.command("create")(create)
    commands.command("import")(import_wide)
    commands.command("analyse")(analyse)
    app.add_typer(commands, name="msa")


def create(
    study: StudyArgument,
    appraisers: Annotated[str, typer.Option("--appraisers", help="Names, with commas between.")],
    parts: Annotated[int, typer.Option("--parts", min=2, help="How many; AIAG uses 50.")] = 50,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How often each looks at each part.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice and the order.")] = 1,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw parts from the record and write the sheet to fill in: half flagged, half passed, in random order.

    Experts fill in `reference`, appraisers `answer`, both with OK or NG. The verdict is not on the sheet.

    Example: inspect-xai msa create study.csv --appraisers Ada,Bob,Cleo --parts 50 --trials 3 --db sqlite:///line.db
    """
    from inspect_xai.reports import msa
    from inspect_xai.settings import load_settings

    names = [name.strip() for name in appraisers.split(",") if name.strip()]
    with store_of(load_settings(settings, db=db)) as store:
        rows = msa.create(store, parts=parts, appraisers=names, trials=trials, seed=seed)
    msa.write(study, rows)
    _wrote(study, len(rows), as_json=as_json)


def import_wide(
    table: Annotated[Path, typer.Argument(help='CSV with a row per part: part,reference,"Ada 1","Ada 2",...')],
    study: Annotated[Path, typer.Option("--out", help="The study to write.")],
    as_json: JsonOption = False,
) -> None:
    """Turn a table with a row per part and a column per appraiser and trial into a study.

    Example: inspect-xai msa import table.csv --out study.csv
    """
    from inspect_xai.reports import msa

    rows = msa.read_wide(table)
    msa.write(study, rows)
    _wrote(study, len(rows), as_json=as_json)


def analyse(
    study: StudyArgument,
    defect: Annotated[str, typer.Option("--defect", help="What the study calls a defective part.")] = "NG",
    good: Annotated[str, typer.Option("--good", help="What the study calls a good part.")] = "OK",
    model: Annotated[
        bool, typer.Option("--model", help="Add the model's verdicts from the record as one more.")
    ] = False,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Analyse a study: within and between appraisers, against the reference, with the AIAG limits.

    Exit code 1 where someone's effectiveness, miss rate, false alarms or kappa is unacceptable.

    Example: inspect-xai msa analyse study.csv --model --db sqlite:///line.db
    """
    from inspect_xai.maths.agreement import Grade
    from inspect_xai.reports import msa

    answers = msa.read(study)
    if model:
        from inspect_xai.settings import load_settings

        with store_of(load_settings(settings, db=db)) as store:
            answers = msa.with_model(answers, store)
    found = msa.analyse(answers, defect=defect, good=good)
    if as_json:
        pairs = [{"pair": pair, "kappa": kappa} for pair, kappa in found.pairs.items()]
        print_json({
            "appraisals": found.appraisals, "between": found.between, "between_kappa": found.between_kappa,
            "all_right": found.all_right, "pairs": pairs,
        })  # fmt: skip
    else:
        _tell(found)
    if any(Grade.UNACCEPTABLE in each.grades.values() for each in found.appraisals):
        raise typer.Exit(1)


def _wrote(study: Path, rows: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"study": study, "rows": rows})
    else:
        typer.echo(f"{rows} rows in {study}")


def _tell(found: "Agreement") -> None:
    for each in found.appraisals:
        typer.echo(each.appraiser)
        if each.within.denominator:
            typer.echo(f"  with themselves  {_rate(each.within)}")
        for name, told in (
            ("effectiveness", _rate(each.effectiveness)), ("miss", _rate(each.miss)),
            ("false_alarm", _rate(each.false_alarm)), ("kappa", _kappa(each.kappa)),
        ):  # fmt: skip
            grade = f"  {each.grades[name].value}" if name in each.grades else ""
            typer.echo(f"  {name.replace('_', ' '):<15}  {told}{grade}")
    typer.echo("all together")
    typer.echo(f"  all alike        {_rate(found.between)}")
    typer.echo(f"  all right        {_rate(found.all_right)}")
    for (one, other), kappa in found.pairs.items():
        typer.echo(f"  kappa {one} - {other}: {_kappa(kappa)}")


def _rate(rate: "Rate") -> str:
    if rate.value is None:
        return "nothing to count"
    share = f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f} %)"
    return f"{rate.count} of {rate.denominator}, {share}"


def _kappa(kappa: "Kappa") -> str:
    return "not defined" if kappa.value is None else f"{kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f})"
