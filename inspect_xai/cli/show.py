"""`inspect-xai show`: everything that is recorded about one inspection."""

from typing import TYPE_CHECKING, Annotated

import typer

from inspect_xai.app import store_of
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.console import DatabaseOption, JsonOption, SettingsOption, echo, print_text_of_json
from inspect_xai.errors import printable
from inspect_xai.records import ModelStatus

if TYPE_CHECKING:
    from inspect_xai.storage.results import StoredExplanation, StoredInspection


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=Panel.RECORD)(show)


def show(
    inspection_id: Annotated[int, typer.Argument(metavar="ID", help="The inspection's number in the database.")],
    db: DatabaseOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything recorded about one inspection.

    Picture, verdict, the model's scores, explanation, provenance and reviews. With --json: the same document that the
    desk's JSON interface gives (docs/reference/api.md).

    Example: inspect-xai show 17 --db sqlite:///inspections.db
    """
    from inspect_xai.settings import load_settings

    with store_of(load_settings(settings, db=db)) as store:
        found = store.get(inspection_id)
    if as_json:
        from inspect_xai.reports.inspection_json import inspection_json

        print_text_of_json(inspection_json(found).model_dump_json(indent=2, by_alias=True))
    else:
        _print(found)


def _print(found: "StoredInspection") -> None:
    from inspect_xai.reports import labels

    capture, verdict = found.capture, found.verdict
    part = capture.part
    echo(f"inspection {found.inspection_id}: {verdict.code} ({verdict.reason}: {labels.REASONS[verdict.reason]})")
    rows = {
        "part": f"{part.serial}  product {part.product or '-'}  lot {part.lot or '-'}"
        + (f"  (from the {capture.identity_source})" if capture.identity_source else ""),
        "captured": f"{capture.captured_at:%Y-%m-%d %H:%M:%S} UTC  line {capture.line or '-'}  "
        f"station {capture.station or '-'}  camera {capture.camera or '-'}  view {capture.view or '-'}  "
        f"shift {capture.shift or '-'}",
        "picture": f"{capture.file_name!r}  {capture.width_px} x {capture.height_px} px  sha256 {capture.sha256}",
        "lies at": f"nowhere: retention deleted it on {found.picture_deleted_at:%Y-%m-%d}"
        if found.picture_deleted_at
        else repr(capture.archived_to),
    }
    if verdict.label:
        rows["score"] = f"{verdict.label} {verdict.score:.4f}, NG from {verdict.threshold:.4f}"
    if found.prediction:
        best = found.prediction
        rows["model said"] = f"{best.label} {best.score:.4f}, {best.margin:.4f} ahead, in window {best.tile}"
    if found.failure:
        rows["failure"] = f"{found.failure.kind}: {found.failure.message}"
    rows |= _explanation_rows(found.explanation, found.explain_reason)
    model, run = found.model, found.run
    rows["model"] = f"{model.name} {model.version}  {found.model_status}  {model.fingerprint}"
    if found.model_status != ModelStatus.APPROVED:
        rows["mark"] = "NOT APPROVED: this model was not approved when it judged this part"
    rows["run"] = f"{run.run_id}  policy {found.policy_version}  {run.provider}  {found.duration_ms:.0f} ms"
    for review in found.reviews:
        rows[f"review {review.review_id}"] = f"{review.reviewer}: {review.decision}, {review.verdict}  {review.note}"
    for name, value in rows.items():
        echo(f"  {name:<12} {printable(value)}")


def _explanation_rows(explanation: "StoredExplanation | None", because: str) -> dict[str, str]:
    from inspect_xai.reports import labels

    if explanation is None:
        return {"explained": "no"}
    settings = explanation.settings
    rival = f" rather than {settings.against}" if settings.against else ""
    rows = {
        "explained": f"{settings.method} for {settings.target}{rival} ({because}): {explanation.status}: "
        f"{labels.STATUSES[explanation.status]}",
        "cost": f"{explanation.forward_passes} passes, {explanation.duration_ms:.0f} ms, "
        f"{explanation.map_bytes} bytes of maps",
    }
    if faithful := labels.faithfulness_in_words(explanation.faithfulness):
        rows["faithful"] = f"{faithful} ({explanation.faithfulness['passes']:.0f} more passes)"
    for number, region in enumerate(explanation.regions, start=1):
        rows[f"region {number}"] = (
            f"from row {region.top_px}, column {region.left_px}: {region.height_px} x {region.width_px} px, "
            f"{region.mass:.0%} of the map"
        )
    for number, note in enumerate(explanation.notes, start=1):
        rows[f"note {number}"] = labels.note_in_words(note)
    return rows
