"""One function for each job: from settings to opened parts, work done, and results to present."""

import getpass
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from inspect_xai.errors import GoldenSetError, SettingsError, StoreError

if TYPE_CHECKING:
    from inspect_xai.audit.conclusions import AuditReport
    from inspect_xai.audit.run import Audit, AuditSettings
    from inspect_xai.audit.sanity import Sanity
    from inspect_xai.intake.url_source import Source
    from inspect_xai.line.line import Line
    from inspect_xai.model.bundle import ModelBundle
    from inspect_xai.model.engine import Engine
    from inspect_xai.policy import AlertRule
    from inspect_xai.records import PictureLimits
    from inspect_xai.reports.alerts import Alert, Delivery
    from inspect_xai.reports.audit_page import WrittenAudit
    from inspect_xai.reports.daily import Report
    from inspect_xai.settings import Settings
    from inspect_xai.storage.anchors import Anchor
    from inspect_xai.storage.retention import Plan
    from inspect_xai.storage.store import Store
    from inspect_xai.verify.golden import GoldenReport


def open_line_of(settings: "Settings", *, explain_all: bool = False) -> "Line":
    """Open the line that the settings describe; with `explain_all` every verdict is explained.

    Raises:
        SettingsError: If no bundle is named.
        StoreError: If the database is new beside a full archive, and the settings do not say that this is meant.
    """
    from inspect_xai.line.line import Line
    from inspect_xai.line.stages import IntakeSpec
    from inspect_xai.logs import log_as_json
    from inspect_xai.policy import DefaultPolicy, ExplainRule, read_policy

    if settings.log == "json":
        log_as_json()
    if settings.bundle is None:
        raise SettingsError("no bundle is named", remedy="give --bundle DIR, or set `bundle` in the settings")
    _refuse_new_database(settings)
    chosen = settings.line
    twice = sorted({"policy_version", "ok_share"} & chosen.model_fields_set)
    if chosen.policy and twice:
        raise SettingsError(
            f"{' and '.join(twice)} beside the policy {chosen.policy}",
            expected="either",
            remedy="the policy says both: take them out of the settings and flags",
        )
    policy = (
        read_policy(chosen.policy)
        if chosen.policy
        else DefaultPolicy(chosen.policy_version, ExplainRule(ok_share=chosen.ok_share))
    )
    zone = settings.report.time_zone if "time_zone" in settings.report.model_fields_set else ""
    return Line(
        settings.bundle,
        settings.db,
        device=settings.device,
        policy=policy.explaining_all() if explain_all else policy,
        intake=IntakeSpec(chosen.path_pattern, chosen.limits, zone),
        threads=settings.threads,
        bucket=settings.batch_size,
        memory_mb=settings.memory_mb,
        blob_store=settings.blob_store,
        golden=chosen.golden,
        ledger_key=settings.ledger.key,
        opened_by=who(),
    )


def _refuse_new_database(settings: "Settings") -> None:
    """Refuse to begin an empty database beside a full archive: most likely it is not the one that was meant.

    Raises:
        StoreError: If so, unless the settings say that it is meant.
    """
    from inspect_xai.storage.database import redact_url
    from inspect_xai.storage.store import was_used

    source = settings.line.source
    if settings.line.new_database or not source or "://" in source or was_used(settings.db):
        return
    archive = Path(source) / "_archive"
    if any(path.is_file() for path in archive.rglob("*")):
        raise StoreError(
            f"no line has recorded into the database {redact_url(settings.db)}, but {archive} holds pictures",
            expected="the database that they are recorded in",
            remedy="name it with --db, or put it back; to begin another one, say --new-database once",
        )


def open_source_of(settings: "Settings") -> "Source":
    """Open the source that the settings name.

    Raises:
        SettingsError: If none is named.
    """
    from inspect_xai.intake.url_source import open_source

    chosen = settings.line
    if not chosen.source:
        raise SettingsError("no source is named", remedy="give --source DIR, or set `source` under [line]")
    return open_source(
        chosen.source, settle_s=chosen.settle_s, lease_s=chosen.lease_s, keep=chosen.in_place, ignore=chosen.ignore
    )


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Turn SIGTERM and the first Ctrl-C into an event; a second Ctrl-C interrupts as usual."""
    stop = threading.Event()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before[1])

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def yesterday(settings: "Settings") -> datetime:
    """Return a moment of the day that ended last in the plant's zone."""
    return datetime.now(ZoneInfo(settings.report.time_zone)) - timedelta(days=1)


def write_report_of(settings: "Settings", *, first: date, last: date, shift: str = "") -> "Report":
    """Write the report that the settings describe."""
    from inspect_xai.reports.daily import write_report

    chosen = settings.report
    with store_of(settings) as store:
        return write_report(
            store,
            first=first,
            last=last,
            out=chosen.out,
            time_zone=chosen.time_zone,
            thumbnails=chosen.thumbnails,
            shift=shift,
            rules=_rules(settings),
            window_ms=chosen.takt_ms,
        )


def send_alerts_of(settings: "Settings", alerts: "Sequence[Alert]") -> "Delivery":
    """Send the alarms of a report that were not sent yet.

    Raises:
        AlertError: A channel did not take them, or is not set up.
    """
    from inspect_xai.reports.alerts import send_alerts
    from inspect_xai.storage.quality_records import QualityRecords

    with store_of(settings) as store:
        return send_alerts(
            QualityRecords(store.database), alerts, rules=_rules(settings), outlets=settings.alert.outlets()
        )


def _rules(settings: "Settings") -> "tuple[AlertRule, ...]":
    """Return the policy's rules for alarms; without a policy there are none, and the quality department owns all."""
    if settings.line.policy is None:
        return ()
    from inspect_xai.policy import read_policy

    return read_policy(settings.line.policy).alert


def apply_retention(settings: "Settings", *, carry_out: bool, archive: Sequence[str] = (), by: str) -> "Plan":
    """Find what the rules would delete now, and delete it where `carry_out` says so.

    Args:
        settings: Which database, and the line's source.
        carry_out: Delete; else a dry run.
        archive: Folders below which pictures may be deleted; none: the line's source.
        by: Who deletes, for the ledger.

    Returns:
        What was, or would be, deleted.

    Raises:
        SettingsError: If a picture that is due lies in none of the folders; nothing is deleted then.
    """
    from inspect_xai.intake.archive import holds_one_of, refuse_outside, remove_archived
    from inspect_xai.storage.retention import Retention

    with store_of(settings) as store:
        retention = Retention(store.database)
        found = retention.plan()
        if carry_out and not found.is_empty:
            refuse_outside([place for _, place in found.pictures], archive or [settings.line.source])
            retention.execute(found, by=by, remove_picture=remove_archived, holds_one_of=holds_one_of)
    return found


def _golden_of(bundle: Path, golden: Path | None) -> Path | None:
    from inspect_xai.verify.golden import FOLDER

    if golden is not None:
        return golden
    return bundle / FOLDER if (bundle / FOLDER).is_dir() else None


def _verify(bundle: Path, golden: Path | None, device: str, limits: "PictureLimits") -> "GoldenReport":
    from inspect_xai.explain.explainer import Explainer
    from inspect_xai.verify.golden import verify_golden

    folder = _golden_of(bundle, golden)
    if folder is None:
        raise GoldenSetError(
            f"{bundle} holds no golden set",
            remedy=f"name one with --golden, or: inspect-xai model golden-create {bundle} ...",
        )
    with Explainer(bundle, device=device, limits=limits, faithfulness=False) as explainer:
        return verify_golden(explainer, folder)


def verify_golden_of(settings: "Settings", *, by: str) -> "GoldenReport":
    """Verify the golden set of the settings' bundle on their device, and keep the result with the model.

    Args:
        settings: Which bundle (and golden set, under `[line] golden`), device and database.
        by: Who asks, for the ledger.

    Raises:
        SettingsError: If no bundle is named.
        GoldenSetError: If there is no golden set.
    """
    from inspect_xai.verify.golden import keep_result

    if settings.bundle is None:
        raise SettingsError("no bundle is named", remedy="set `bundle` in the settings")
    report = _verify(settings.bundle, settings.line.golden, settings.device, settings.line.limits)
    with store_of(settings) as store:
        keep_result(store, report, by=by, note="verified")
    return report


def anchor_head(settings: "Settings", place: str | None = None) -> "Anchor":
    """Anchor the head of the ledger that the settings name.

    Args:
        settings: Which database, key and place.
        place: Another place than that of the settings.

    Raises:
        SettingsError: No place is named.
        StoreError: There is no event, or the newest anchor there is none of this ledger.
    """
    wanted = place or settings.ledger.anchors
    if not wanted:
        remedy = "give --to PLACE, or set `anchors` under [ledger]"
        raise SettingsError("no place for the anchors is named", remedy=remedy)
    with store_of(settings) as store:
        return store.ledger.anchor(wanted)


def store_of(settings: "Settings", *, create: bool = False) -> "Store":
    """Open the store that the settings name.

    Raises:
        StoreError: If it cannot be used.
    """
    from inspect_xai.storage.store import open_store

    return open_store(settings.db, create=create, blob_store=settings.blob_store, ledger_key=settings.ledger.key)


def who(named: str = "") -> str:
    """Return who works here: the name given, or the account's on this machine."""
    if named:
        return named
    try:
        account = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        account = f"user {os.getuid()}"
    return f"{account}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class FinishedAudit:
    """The result of an audit, and where it is written."""

    audit: "Audit"
    report: "AuditReport"
    written: "WrittenAudit"

    @property
    def failed(self) -> bool:
        """Return whether the answer is no, or the sanity check failed."""
        sanity = self.report.sanity
        return self.report.answer.answer == "no" or (sanity is not None and not sanity.passed)


def audit_model(
    bundle: Path,
    manifest: Path,
    out: Path,
    *,
    settings: "AuditSettings",
    keep_in: "Settings | None" = None,
    settings_file: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    on_step: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> FinishedAudit:
    """Measure a model on labeled pictures, write the report, and keep the numbers beside the model.

    Args:
        bundle: The bundle folder.
        manifest: CSV of pictures: image,label[,mask][,boxes][,part][,station].
        out: Folder of the audit; one that was cut short goes on.
        settings: What is measured, and how.
        keep_in: Settings of the database that keeps the numbers; None: they are not kept.
        settings_file: Where the settings were read, for the command line that the page prints.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Of the network; default: all cores.
        on_step: Called with what is done ("measuring" or "sanity"), how many, and of how many.
    """
    from inspect_xai.audit.conclusions import build_report
    from inspect_xai.audit.run import run_audit
    from inspect_xai.explain.explainer import Explainer
    from inspect_xai.reports.audit_page import write_audit

    with Explainer(bundle, device=device, threads=threads) as explainer:
        engine = explainer.engine
        if keep_in is not None:
            _make_known(keep_in, engine.bundle)  # a database that does not fit is refused now, not after hours
        measured = run_audit(engine, manifest, out, settings=settings, on_row=partial(on_step, "measuring"))
        sanity = _checked(engine, measured, settings, partial(on_step, "sanity"))
    report = build_report(measured, sanity=sanity)
    command = _command(bundle, manifest, out, settings, file=settings_file)
    written = write_audit(measured, report, command=command)
    if keep_in is not None:
        _keep(keep_in, engine.bundle, measured, report)
    return FinishedAudit(measured, report, written)


def _checked(engine: "Engine", audit: "Audit", settings: "AuditSettings", on_step: object) -> "Sanity | None":
    """Run the sanity checks on explained pictures spread over the rows; none where there are none, or none wanted."""
    from inspect_xai.audit.sanity import check_sanity

    explained = [row for row in audit.rows if row.measured]
    if not settings.sanity or not explained:
        return None
    step = max(1, len(explained) // settings.sanity)
    parts = [(audit.pictures / row.image, row.target) for row in explained[::step][: settings.sanity]]
    return check_sanity(
        engine,
        parts,
        settings=settings.explain_settings(engine.card, settings.methods[0]),
        seed=settings.seed,
        limits=settings.limits,
        keep=audit.folder / "sanity.json",
        on_step=on_step,  # type: ignore[arg-type]
    )


def _command(bundle: Path, manifest: Path, out: Path, settings: "AuditSettings", *, file: Path | None) -> str:
    words = ["inspect-xai audit", str(bundle), "--manifest", str(manifest), "--methods", ",".join(settings.methods)]
    for name in ("profile", "mu", "baseline", "sample", "seed", "steps", "region", "sanity"):
        value = getattr(settings, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--adcc"] if settings.adcc else []
    words += [] if settings.only_right else ["--all"]
    words += [] if file is None else ["--settings", str(file)]
    return " ".join([*words, "--out", str(out)])


def _make_known(settings: "Settings", bundle: "ModelBundle") -> None:
    """Register the model as a candidate where it is new: most models are audited before they are approved."""
    with store_of(settings) as store:
        store.registry.register_model(bundle.fingerprint, bundle.card, bundle_sha256=bundle.sha256, registered_by=who())


def _keep(settings: "Settings", bundle: "ModelBundle", audit: "Audit", report: "AuditReport") -> None:
    """Store the numbers beside the model; the same audit twice is one."""
    import hashlib
    import json
    from datetime import UTC, datetime

    from inspect_xai.reports.audit_page import as_plain

    numbers = as_plain(audit, report)
    made_with = numbers.pop("made_with")
    identity = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()
    with store_of(settings) as store:
        store.registry.record_audit(
            identity, bundle.fingerprint, audited_at=datetime.now(UTC), settings=made_with, numbers=numbers
        )
