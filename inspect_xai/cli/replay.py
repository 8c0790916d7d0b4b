"""`inspect-xai replay`: recompute recorded decisions and say whether they hold."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from inspect_xai.app import store_of
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import (
    DatabaseOption,
    DeviceOption,
    JsonOption,
    SettingsOption,
    day_asked,
    echo,
    print_json,
    progress_bar,
)
from inspect_xai.errors import BundleError, PictureError, SettingsError

if TYPE_CHECKING:
    from inspect_xai.settings import Settings
    from inspect_xai.storage.store import Store
    from inspect_xai.verify.replay import Replay, Replayer

_FINDINGS = 1


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=Panel.RECORD)(replay)


def replay(
    inspection_id: Annotated[
        int | None, typer.Argument(metavar="ID", help="The inspection's number; else --date or --sample.")
    ] = None,
    on: Annotated[
        datetime | None,
        typer.Option("--date", parser=day_asked, metavar="YYYY-MM-DD", help="All that was captured on this day."),
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", help="Number drawn at random, of all or of the day's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the drawing: the same seed draws the same ones.")] = 0,
    bundle: Annotated[
        list[Path] | None, typer.Option("--bundle", help="The model; several: each inspection takes its own.")
    ] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Where the archived pictures lie now, if they were moved.")
    ] = None,
    device: DeviceOption = "auto",
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute recorded decisions and compare.

    Prediction, verdict and explanation are computed from the archived picture. Each inspection holds (everything within
    the tolerances of docs/reference/record.md), differs (what, by how much, and which version, provider or card field
    changed since), or cannot be replayed (what is missing). Exit code 0: all hold. 1: one differs or cannot be
    replayed; the output says which.

    Example: inspect-xai replay 17 --db sqlite:///inspections.db --bundle tile.bundle
    """
    from inspect_xai.settings import load_settings

    if (inspection_id is None) == (on is None and sample is None):
        raise typer.BadParameter("give an ID, or --date and/or --sample")
    chosen = load_settings(settings, db=db)
    bundles = bundle or ([chosen.bundle] if chosen.bundle else [])
    if not bundles:
        raise SettingsError("no bundle is named", remedy="give --bundle DIR, or set `bundle` in the settings")
    with store_of(chosen) as store, ExitStack() as opened, progress_bar(shown=not as_json) as progress:
        ids = [inspection_id] if inspection_id is not None else _chosen_ids(store, chosen, on, sample, seed)
        models = _Models(bundles, device, opened)
        task = progress.add_task("replaying", total=len(ids))
        results = []
        for result in _replays(store, ids, models, archive):
            results.append(result)
            progress.advance(task)
            if not as_json:
                _print(result)
    counts = Counter(str(result.outcome) for result in results)
    if as_json:
        print_json({"counts": {name: counts[name] for name in ("holds", "differs", "cannot")}, "replays": results})
    elif len(results) != 1:
        echo(
            f"{len(results)} replayed: {counts['holds']} hold, {counts['differs']} differ, "
            f"{counts['cannot']} cannot be replayed"
        )
    if counts["differs"] or counts["cannot"]:
        raise typer.Exit(_FINDINGS)


class _Models:
    """The bundles named, each opened when the first inspection needs it."""

    def __init__(self, bundles: Sequence[Path], device: str, opened: ExitStack) -> None:
        self._waiting, self._device, self._opened = list(bundles), device, opened
        self._open: list[Replayer] = []
        self.errors: list[str] = []

    def of(self, fingerprint: str) -> "Replayer | None":
        """Return the model with this fingerprint; else the first one that opens, to be compared with the record."""
        from inspect_xai.verify.replay import Replayer

        while self._waiting and not any(model.fingerprint == fingerprint for model in self._open):
            try:
                self._open.append(self._opened.enter_context(Replayer(self._waiting.pop(0), device=self._device)))
            except BundleError as error:
                self.errors.append(str(error))
        return next((model for model in self._open if model.fingerprint == fingerprint), next(iter(self._open), None))


def _replays(store: "Store", ids: Sequence[int], models: _Models, archive: Path | None) -> Iterator["Replay"]:
    from inspect_xai.verify.replay import archived_picture, not_reproducible

    for number in ids:
        stored = store.get(number, maps=True)
        model = models.of(stored.model.fingerprint)
        missing = [] if model else [f"the model: {error}" for error in models.errors]
        picture = b""
        try:
            picture = archived_picture(stored, archive=archive)
        except PictureError as error:
            missing.append(f"the picture: {error}")
        yield not_reproducible(stored, *missing) if missing or model is None else model.replay(stored, picture)


def _chosen_ids(store: "Store", settings: "Settings", on: datetime | None, sample: int | None, seed: int) -> list[int]:
    if on is None:
        ids = store.inspection_ids()
    else:
        zone = ZoneInfo(settings.report.time_zone)
        start = datetime.combine(on.date(), time.min, zone)
        end = datetime.combine(on.date() + timedelta(days=1), time.min, zone)
        ids = [row.inspection_id for row in store.day(start, end, by="captured_at")]
    if sample is None:
        return ids
    return sorted(random.Random(seed).sample(ids, min(sample, len(ids))))  # noqa: S311  a sample, no secret


def _print(result: "Replay") -> None:
    echo(f"inspection {result.inspection_id}: {result.outcome}{_how_near(result)}")
    for each in result.differences:
        off = "" if each.off is None else f" (off by {each.off:.3g}, allowed {each.allowed:.3g})"
        echo(f"  {each.what}: recorded {each.recorded}, now {each.now}{off}")
    for change in result.changed:
        echo(f"  changed since: {change.what} was {change.recorded}, is {change.now}")
    for missing in result.missing:
        echo(f"  missing: {missing}")


def _how_near(result: "Replay") -> str:
    said = [] if result.score_off is None else [f"scores off by {result.score_off:.1e}"]
    if result.agreement is not None:
        said.append(f"map by {result.agreement.off:.1e}, {result.agreement.overlap:.0%} of its top pixels the same")
    return f"  ({', '.join(said)})" if said else ""
