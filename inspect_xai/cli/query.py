"""`inspect-xai find`, `trace` and `stats`: queries of the record."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from inspect_xai.app import store_of
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import (
    DatabaseOption,
    JsonOption,
    SettingsOption,
    echo,
    print_json,
    print_text_of_json,
    time_asked,
)
from inspect_xai.errors import printable

if TYPE_CHECKING:
    from inspect_xai.storage.store import Store

_LONG_AGO, _LONG_AFTER = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)

LotOption = Annotated[str | None, typer.Option("--lot", help="Its lot.")]
ProductOption = Annotated[str | None, typer.Option("--product", help="Its product.")]
SinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--since", parser=time_asked, metavar="YYYY-MM-DD[THH:MM:SS]", help="Captured at or after, in the plant's zone."
    ),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option(
        "--until", parser=time_asked, metavar="YYYY-MM-DD[THH:MM:SS]", help="Captured before, in the plant's zone."
    ),
]
InspectionTimeOption = Annotated[
    bool, typer.Option("--by-inspection-time", help="--since and --until mean when the picture was inspected.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (find, trace, stats):
        app.command(rich_help_panel=Panel.RECORD)(command)


def find(
    part: Annotated[str | None, typer.Option("--part", help="The part's serial number.")] = None,
    lot: LotOption = None,
    product: ProductOption = None,
    label: Annotated[str | None, typer.Option("--label", help="The defect label the verdict speaks of.")] = None,
    verdict: Annotated[str | None, typer.Option("--verdict", help="OK, NG or UNSURE.")] = None,
    region_near: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--region-near", metavar="ROW COLUMN RADIUS", help="Explained by a region near this pixel."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Fingerprint of the model's bundle, or its beginning.")
    ] = None,
    model_file: Annotated[
        str | None, typer.Option("--model-file", help="sha256 of the model's .onnx file, or its beginning.")
    ] = None,
    picture: Annotated[str | None, typer.Option("--picture", help="sha256 of the picture's file.")] = None,
    map_: Annotated[str | None, typer.Option("--map", help="sha256 of a stored map.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    by_inspection_time: InspectionTimeOption = False,
    limit: Annotated[int, typer.Option("--limit", help="Most inspections shown.", min=1)] = 100,
    whole: Annotated[
        bool, typer.Option("--whole", help="Everything about each, as JSON, one a line: to be copied elsewhere.")
    ] = False,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find inspections, newest first.

    Those that fit every option, by the time their pictures were taken. From the hash of a picture, map, model or model
    file it leads back to the parts. --whole writes the same documents as the desk's JSON interface
    (docs/reference/api.md).

    Example: inspect-xai find --lot LOT7 --label crack --region-near 120 80 20 --since 2026-11-01
    """
    from inspect_xai.settings import load_settings

    chosen = load_settings(settings, db=db)
    zone = ZoneInfo(chosen.report.time_zone)
    with store_of(chosen) as store:
        inspections = store.find(
            serial=part,
            lot=lot,
            product=product,
            label=label,
            verdict=verdict,
            fingerprint=model,
            model_file=model_file,
            since=in_zone(since, zone),
            until=in_zone(until, zone),
            near_px=region_near,
            sha256=picture,
            map_sha256=map_,
            moment=moment_of(by_inspection_time=by_inspection_time),
            limit=limit,
        )
        if whole:
            from inspect_xai.reports.inspection_json import inspection_json

            for row in inspections:
                print_text_of_json(inspection_json(store.get(row.inspection_id)).model_dump_json(by_alias=True))
            return
    if as_json:
        print_json(inspections)
        return
    _print_table(
        [
            (
                str(row.inspection_id),
                f"captured {row.captured_at.astimezone(zone):%Y-%m-%d %H:%M:%S}",
                f"inspected {row.inspected_at.astimezone(zone):%Y-%m-%d %H:%M:%S}",
                row.verdict,
                row.label or "-",
                f"{row.score:.3f}",
                row.serial,
                f"lot {row.lot or '-'}",
                f"{row.line or '-'}/{row.station or '-'}",
                f"{row.model_name} {row.model_version}{'' if row.model_status == 'approved' else ' (not approved)'}",
                f"reviewed: {row.reviewed_verdict}" if row.review_decision else "",
            )
            for row in inspections
        ]
    )
    echo(f"{len(inspections)} found" + (", perhaps more: raise --limit" if len(inspections) == limit else ""))


def trace(
    part: Annotated[str, typer.Argument(metavar="PART", help="The part's serial number.")],
    lot: LotOption = None,
    product: ProductOption = None,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the history of a part, oldest first.

    Everything known of it: pictures, verdicts, maps, reviews and the model file's hash.

    Exit code 0: known. 1: no part has that serial. The way back from a hash is `inspect-xai find`.

    Example: inspect-xai trace SN0042 --lot LOT7 --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        steps = _steps(store, part, lot, product)
        repeats = store.ledger.events(kind="same_bytes", subject=part)
    if as_json:
        print_json(steps)
    for step in [] if as_json else steps:
        echo(f"inspection {step['inspection_id']}: {step['verdict']}")
        facts = {name: value for name, value in step.items() if name not in ("inspection_id", "verdict")}
        _print_table(
            [
                (f"  {name}", str(entry) or "-")
                for name, value in facts.items()
                for entry in (value if isinstance(value, list) else [value])
            ]
        )
    for event in repeats:
        facts = event.facts
        if lot in (None, facts["lot"]) and product in (None, facts["product"]):
            echo(
                f"not inspected again: {facts['file_name']!r} holds the very picture of inspection "
                f"{facts['inspection']} (event {event.sequence} of the ledger)",
                err=True,
            )
    if not steps:
        echo(f"no part has the serial {part!r}", err=True)
        raise typer.Exit(1)


def stats(
    by: Annotated[
        str, typer.Option("--by", help="Fields to group by, with commas: line, station, shift, lot, model_name, ...")
    ] = "line,station",
    since: SinceOption = None,
    until: UntilOption = None,
    by_inspection_time: InspectionTimeOption = False,
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count verdicts, explanations and answers by group.

    The period is that of capture. Escapes and overkill count what people answered; the report of the day estimates the
    rates.

    Example: inspect-xai stats --by line,station,verdict --since 2026-11-22 --until 2026-11-23
    """
    from dataclasses import fields

    from inspect_xai.settings import load_settings
    from inspect_xai.storage.results import InspectionSummary

    names = [name.strip() for name in by.split(",") if name.strip()]
    known = sorted(field.name for field in fields(InspectionSummary))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise typer.BadParameter(
            f"no field is called {', '.join(unknown) or 'nothing'}; there are {', '.join(known)}", param_hint="--by"
        )
    chosen = load_settings(settings, db=db)
    zone = ZoneInfo(chosen.report.time_zone)
    start, end = in_zone(since, zone) or _LONG_AGO, in_zone(until, zone) or _LONG_AFTER
    with store_of(chosen) as store:
        rows = store.stats(start, end, by=names, moment=moment_of(by_inspection_time=by_inspection_time))
    if as_json:
        print_json([dict(zip(names, row.group, strict=True)) | _counts(row) for row in rows])
        return
    columns = ("inspections", "ok", "ng", "unsure", "failed", "explained", "reviewed", "overkill", "escapes")
    counts = [
        (*(value or "-" for value in row.group), *(str(getattr(row, column)) for column in columns)) for row in rows
    ]
    _print_table([(*names, *columns), *counts])


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with their columns below each other."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        echo("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def _counts(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__ if name != "group"}


def _steps(store: "Store", serial: str, lot: str | None, product: str | None) -> list[dict[str, Any]]:
    """Return the chain of each inspection as plain values."""
    steps = []
    for inspection in store.trace(serial, lot=lot, product=product):
        explanation = inspection.explanation
        steps.append(
            {
                "inspection_id": inspection.inspection_id,
                "part": inspection.capture.part.serial,
                "lot": inspection.capture.part.lot,
                "product": inspection.capture.part.product,
                "known_from": inspection.capture.identity_source or "",
                "captured_at": inspection.capture.captured_at.isoformat(),
                "picture": inspection.capture.archived_to,
                "picture_sha256": inspection.capture.sha256,
                "pixels_sha256": inspection.capture.pixels_sha256,
                "inspected_at": inspection.inspected_at.isoformat(),
                "verdict": inspection.verdict.code.value,
                "reason": inspection.verdict.reason.value,
                "label": inspection.verdict.label,
                "score": inspection.verdict.score,
                "threshold": inspection.verdict.threshold,
                "map_sha256": explanation.fused_sha256 if explanation else "",
                "sums_sha256": list(explanation.sums_sha256) if explanation else [],
                "reviews": [
                    f"{review.reviewer}, {review.reviewed_at:%Y-%m-%d %H:%M} UTC: {review.decision}, {review.verdict}"
                    for review in inspection.reviews
                ],
                "policy": inspection.policy_version,
                "run": inspection.run.run_id,
                "model": f"{inspection.model.name} {inspection.model.version}",
                "model_status": inspection.model_status,
                "fingerprint": inspection.model.fingerprint,
                "model_file_sha256": inspection.run.settings.get("model_sha256", ""),
            }
        )
    return steps


def in_zone(moment: datetime | None, zone: ZoneInfo) -> datetime | None:
    """Return a time given on the command line, which is meant in the plant's zone."""
    return None if moment is None else moment.replace(tzinfo=zone).astimezone(UTC)


def moment_of(*, by_inspection_time: bool) -> str:
    """Return which time of an inspection --since and --until speak of."""
    return "inspected_at" if by_inspection_time else "captured_at"
