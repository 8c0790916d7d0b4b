"""`inspect-xai explain`: pictures in, a folder of maps for each out."""

import json
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import DeviceOption, JsonOption, PixelSettingsOption, echo, print_json, progress_bar
from inspect_xai.errors import InspectXaiError, SettingsError, printable
from inspect_xai.files import read_table
from inspect_xai.records import Baseline, Method, Profile, Status

if TYPE_CHECKING:
    from inspect_xai.explain.explainer import Explainer


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=Panel.AUDITOR)(explain)


def _seconds(text: str) -> float:
    """Read a time as people write it: 0.5 or 0.5s."""
    return float(text.removesuffix("s"))


def explain(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder (see: inspect-xai bundle build).")],
    pictures: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    method: Annotated[Method | None, typer.Option("--method", help="Default: the card's.")] = None,
    target: Annotated[
        str, typer.Option("--target", help="A label; `predicted`; or `true`: the label known of the picture.")
    ] = "predicted",
    against: Annotated[str | None, typer.Option("--against", help="Rival label: evidence for target over it.")] = None,
    mu: Annotated[
        float | None, typer.Option("--mu", help="Keep channels above this share of the best, 0 to 1.")
    ] = None,
    baseline: Annotated[
        Baseline | None, typer.Option("--baseline", help="What masks put in the picture's place.")
    ] = None,
    profile: Annotated[
        Profile | None, typer.Option("--profile", help="exact: score every mask; fast, quick: predict most scores.")
    ] = None,
    max_passes: Annotated[int | None, typer.Option("--max-passes", help="Passes per picture at the most.")] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", parser=_seconds, metavar="SECONDS", help="Seconds per picture, about.")
    ] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness/--no-faithfulness", help="Eight passes more: is the map true?")
    ] = True,
    truth: Annotated[
        Path | None, typer.Option("--truth", help="CSV with columns image,label, for --target true.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for one folder per picture.")] = Path("explanations"),
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Masks per run; default: measured or usual here.")
    ] = None,
    settings: PixelSettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain pictures: where a class gets its score from.

    Every picture gets a folder with manifest.json, map.npy, rank.npy, blocks.npz and overlay.png; one of the same
    picture is replaced, and another picture of the same name gets a number. A picture that cannot be explained is
    reported and the next one goes on; the exit code is then that of the first error.

    With `--target true` the label comes from --truth, else from the name of the folder the picture lies in.

    Example: inspect-xai explain tile.bundle part42.png --target crack --against free --out maps
    """
    from inspect_xai.explain.explainer import Explainer
    from inspect_xai.explain.settings import ExplainSettings
    from inspect_xai.model.bundle import load_bundle
    from inspect_xai.settings import load_settings

    loaded = load_bundle(bundle)
    how = ExplainSettings.of_card(
        loaded.card,
        method=method,
        mu=mu,
        baseline=baseline,
        profile=profile,
        max_passes=max_passes,
        budget_s=budget,
        faithfulness=faithfulness,
    )
    limits = load_settings(settings).line.limits
    labels = _read_truth(truth) if truth else {}
    rows: list[dict[str, Any]] = []
    first_error: InspectXaiError | None = None
    taken: set[str] = set()
    with (
        Explainer(loaded, how, device=device, bucket=batch_size, limits=limits) as explainer,
        progress_bar(shown=not as_json) as progress,
    ):
        task = progress.add_task("explaining", total=len(pictures))
        for picture in pictures:
            wanted = _true_label(picture, labels) if target == "true" else target
            try:
                rows.append(_explain_one(explainer, picture, out, taken, target=wanted, against=against))
            except InspectXaiError as error:
                first_error = first_error or error
                rows.append({"picture": str(picture), "error": type(error).__name__, "message": str(error)})
            progress.advance(task)
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            echo(_line(row))
    if first_error is not None:
        raise typer.Exit(first_error.exit_code)


def _explain_one(
    explainer: "Explainer", path: Path, out: Path, taken: set[str], *, target: str, against: str | None
) -> dict[str, Any]:
    from inspect_xai.explain.save import describe, save_explanation
    from inspect_xai.intake.sources import read_picture

    read = read_picture(path, limits=explainer.limits)
    folder = _free_folder(out, path.stem, read.sha256, taken)
    look = explainer.look(read.pixels)
    label = look.prediction.label if target == "predicted" else target
    explanation = explainer.explain(look, target=label, against=against)
    bundle = explainer.engine.bundle
    save_explanation(
        folder,
        explanation,
        picture=read.pixels,
        bundle=bundle,
        verdict=look.verdict,
        source=str(path),
        sha256=read.sha256,
        limits=explainer.limits,
    )
    return {"picture": str(path), "folder": str(folder)} | describe(explanation, bundle=bundle, verdict=look.verdict)


def _line(row: dict[str, Any]) -> str:
    from inspect_xai.reports.labels import STATUSES, faithfulness_in_words

    if "error" in row:
        return f"{printable(row['picture'])}: {row['error']}: {row['message']}"
    verdict, prediction = row["verdict"], row["prediction"]
    aim = row["target"] + (f" against {row['against']}" if row["against"] else "")
    said = f"{verdict['code']}, {prediction['label']} {prediction['score']:.3f}"
    cost = f"{row['passes']} passes{_saved(row)}, {row['duration_ms'] / 1000:.2f} s"
    faithful = faithfulness_in_words(row["faithfulness"])
    line = f"{printable(row['picture'])}: {said}; {row['method']} for {aim}: {row['status']}, {cost} -> {row['folder']}"
    if row["status"] != Status.EXPLAINED:
        return f"{line}\n  {STATUSES[row['status']]}"
    return f"{line}\n  {faithful}" if faithful else line


def _saved(row: dict[str, Any]) -> str:
    """Say how far the passes went: which scores were predicted, and whether windows are missing."""
    blocks = [block for tile in row["tiles"] for block in tile["blocks"]]
    predicted, masks = (sum(block[count] for block in blocks) for count in ("predicted", "kept"))
    said = [f"{predicted} of {masks} scores predicted"] if predicted else []
    said += ["not all windows"] if "windows_left_out" in row["notes"] else []
    return f" ({', '.join(said)})" if said else ""


def _free_folder(out: Path, stem: str, sha256: str, taken: set[str]) -> Path:
    """Return a picture's folder: its stem, with the first number that holds no other picture's explanation.

    Args:
        out: Where the folders lie.
        stem: Of the picture's name.
        sha256: Of the picture's file.
        taken: Names given away in this call, normalized: on some disks names that differ in case are one.
    """
    from inspect_xai.intake.sidecars import normalized

    for name in chain([stem], (f"{stem}-{number}" for number in count(2))):
        key = normalized(name)
        if key not in taken and _explained_picture(out / name) in (None, sha256):
            taken.add(key)
            return out / name
    raise AssertionError("numbers do not end")


def _explained_picture(folder: Path) -> str | None:
    """Return the sha256 of the picture that a folder explains; None: it holds no explanation."""
    try:
        return str(json.loads((folder / "manifest.json").read_bytes())["picture"]["sha256"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _read_truth(path: Path) -> dict[Path, str]:
    try:
        columns, rows = read_table(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read: {error}", expected="a CSV file with columns image,label"
        ) from error
    if not {"image", "label"} <= set(columns):
        raise SettingsError(
            f"{path} has the columns {', '.join(columns) or 'none'}", expected="a CSV file with columns image,label"
        )
    return {(path.parent / row["image"]).resolve(): row["label"] for _, row in rows}


def _true_label(picture: Path, labels: dict[Path, str]) -> str:
    return labels.get(picture.resolve(), picture.resolve().parent.name)
