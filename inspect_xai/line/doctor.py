"""Is this machine fit to inspect tonight? Every answer comes from trying, not from asking what should work."""

import json
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from inspect_xai.errors import BundleError, InspectXaiError
from inspect_xai.explain.save import versions
from inspect_xai.intake.folder_source import left_by_the_dead
from inspect_xai.intake.url_source import open_source
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.model.engine import Engine
from inspect_xai.policy import read_policy
from inspect_xai.records import ModelStatus
from inspect_xai.storage.database import redact_url, sqlite_file
from inspect_xai.storage.signing_keys import Signer
from inspect_xai.storage.store import Store, open_store
from inspect_xai.storage.tables import REVISION
from inspect_xai.verify.golden import FILES_NOT_KNOWN, LET_FILES_BE_KNOWN

_LEAST_FREE_BYTES = 2 * 10**9
_LEAST_FREE_SHARE = 0.05
_CLOCKS_APART_S = 5.0
_PREFECT_WAIT_S = 5.0
_BUILT = datetime(2026, 1, 1, tzinfo=UTC)  # a clock that lost its battery starts again long before


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: whether it is well, what was found, and else what to do."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Premises:
    """What is to be looked at; an empty source or no bundle is a finding. `prefect` is its API's URL, or empty."""

    bundle: Path | None
    device: str
    db: str
    source: str
    keep: bool
    lease_s: float
    reports: Path
    policy: Path | None = None
    prefect: str = ""
    ignore: tuple[str, ...] = ()
    ledger_key: Path | None = None


def examine(premises: Premises) -> list[Finding]:
    """Look at everything a line needs; what fails is a finding and never an exception of this package.

    Args:
        premises: What to look at. Nothing is recorded, claimed or moved.
    """
    bundle: list[ModelBundle] = []
    said = ", ".join(f"{name} {number}" for name, number in versions().items())
    findings = [Finding("versions", ok=True, found=said)]
    findings += _tried("bundle", lambda: _bundle(premises.bundle, bundle))
    for loaded in bundle:
        findings += _tried("device", lambda loaded=loaded: _device(loaded, premises.device))  # type: ignore[misc]
    if premises.policy:
        findings += _tried("policy", lambda: _policy(premises.policy or Path(), bundle))
    findings += _tried("database", lambda: _database(premises.db, bundle, premises.ledger_key))
    findings += _tried("source", lambda: _source(premises))
    if premises.prefect:
        findings += ask_prefect(premises.prefect)
    return findings + list(_places(premises)) + list(_clock(premises))


def _tried(check: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run a check to its end, or to the error that becomes its finding."""
    findings: list[Finding] = []
    try:
        findings.extend(look())
    except InspectXaiError as error:
        found = error.found + (f" (expected {error.expected})" if error.expected else "")
        findings.append(Finding(check, ok=False, found=found, remedy=error.remedy))
    return findings


def _bundle(folder: Path | None, loaded: list[ModelBundle]) -> Iterator[Finding]:
    if folder is None:
        yield Finding("bundle", ok=False, found="none is named", remedy="set `bundle` in the settings, or --bundle")
        return
    bundle = load_bundle(folder)
    loaded.append(bundle)
    yield Finding(
        "bundle", ok=True, found=f"{bundle.card.name} {bundle.card.version}, {bundle.fingerprint[:12]}, files unchanged"
    )


def _device(bundle: ModelBundle, device: str) -> Iterator[Finding]:
    with Engine(bundle, device=device) as engine:
        start = time.perf_counter()
        engine.warm_up()
        spent = time.perf_counter() - start
        yield Finding(
            "device",
            ok=True,
            found=f"{device} wanted; {engine.provider} ran prediction, trace and masks in {spent:.2f} s",
        )


def _policy(file: Path, bundle: list[ModelBundle]) -> Iterator[Finding]:
    policy = read_policy(file)
    for loaded in bundle:
        policy.check_against(loaded.card)
    yield Finding("policy", ok=True, found=f"{file} has version {policy.version}")


def _database(url: str, bundle: list[ModelBundle], ledger_key: Path | None) -> Iterator[Finding]:
    with open_store(url, create=False, ledger_key=ledger_key) as store:
        yield Finding("database", ok=True, found=f"{redact_url(url)} has schema {REVISION}")
        for loaded in bundle:
            yield _approval(store, loaded)
        yield from _tried("ledger", lambda: _signatures(store, ledger_key))
        newest = store.find(limit=1)
    ahead = [row for row in newest if row.inspected_at > datetime.now(UTC) + timedelta(minutes=1)]
    for row in ahead:
        yield Finding(
            "clock",
            ok=False,
            found=f"newest inspection of {row.inspected_at:%Y-%m-%d %H:%M} UTC, yet to come",
            remedy="set this machine's clock, or that of the machine that recorded it",
        )


def _signatures(store: Store, ledger_key: Path | None) -> Iterator[Finding]:
    """Say whether events are signed; a key that cannot sign the next one is an error of the store or the settings."""
    signed_by = store.ledger.signed_by()
    if signed_by:
        found = f"events are signed with {signed_by[:16]}, which is the key set here"
    elif ledger_key is not None:
        found = f"no event is signed yet; the next one will be, with {Signer(ledger_key).public_key[:16]}"
    else:
        found = "events are not signed: no key is set (inspect-xai ledger key create)"
    yield Finding("ledger", ok=True, found=found)


def _approval(store: Store, bundle: ModelBundle) -> Finding:
    name = bundle.fingerprint[:12]
    known = next((model for model in store.registry.models() if model.fingerprint == bundle.fingerprint), None)
    ask = f"have quality say: inspect-xai model approve {name} --db URL"
    if known is None:
        return Finding("model", ok=False, found=f"{name} is not registered", remedy=ask)
    try:
        known.check_files(bundle.sha256)
    except BundleError as error:
        return Finding("model", ok=False, found=f"{error.found} (expected {error.expected})", remedy=error.remedy)
    if known.status != ModelStatus.APPROVED.value:
        return Finding("model", ok=False, found=f"{name} is {known.status}", remedy=ask)
    if known.bundle_sha256 is None:
        found = f"{name} is approved, but {FILES_NOT_KNOWN}"
        return Finding("model", ok=False, found=found, remedy=LET_FILES_BE_KNOWN)
    return Finding("model", ok=True, found=f"{name} is approved, and its files are those that were")


def _source(premises: Premises) -> Iterator[Finding]:
    if not premises.source:
        yield Finding("source", ok=False, found="none is named", remedy="set `source` under [line], or --source")
        return
    with open_source(premises.source, settle_s=0, keep=True, ignore=premises.ignore) as source:  # claims nothing
        yield Finding("source", ok=True, found=f"{premises.source} can be read")
        strays = source.strays()
    if "://" in premises.source:
        return
    left = left_by_the_dead(Path(premises.source), lease_s=premises.lease_s)
    yield Finding(
        "claims",
        ok=not left,
        found=f"{len(left)} lines that are gone left files claimed" + (f": {left[0]}" if left else ""),
        remedy="run the line: it takes them over" if left else "",
    )
    named = f": {', '.join(strays[:3])}" if strays else ""
    yield Finding(
        "sidecars",
        ok=not strays,
        found=f"{len(strays)} JSON or CSV files belong to no picture{named}",
        remedy="name them as their pictures, have them written first, or list them under `ignore`" if strays else "",
    )


def ask_prefect(api: str) -> Iterator[Finding]:
    """Ask the orchestrator what it will start next, and whether a GPU's turn is held by a run that is gone."""
    try:
        scheduled = _asked(api, "flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
        running = _asked(api, "flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})
        limits = _asked(api, "v2/concurrency_limits/filter", {})
    except (OSError, ValueError) as error:
        yield Finding("prefect", ok=False, found=f"{api} does not answer: {error}", remedy="start its server")
        return
    yield Finding(
        "prefect",
        ok=bool(scheduled),
        found=f"{len(running)} runs at work, {len(scheduled)} scheduled",
        remedy="" if scheduled else "nothing will start by itself: deploy deploy/prefect.yaml, or restart its server",
    )
    held = [limit["name"] for limit in limits if limit["name"].startswith("gpu-") and limit["active_slots"] > 0]
    if held:
        stale = not running
        yield Finding(
            "prefect's slots",
            ok=not stale,
            found=f"{', '.join(held)} taken" + (" while no run is at work" * stale),
            remedy=f"they free themselves after five minutes; at once: prefect gcl update {held[0]} --active-slots 0"
            if stale
            else "",
        )


def _asked(api: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(  # noqa: S310  the plant's own server, from its settings
        f"{api.rstrip('/')}/{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_PREFECT_WAIT_S) as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.loads(answer.read())
    return found


def _places(premises: Premises) -> Iterator[Finding]:
    """Write a byte to every folder that is to be written, and see what room is left there."""
    places = {"reports": premises.reports}
    file = sqlite_file(premises.db)
    if file is not None and str(file) not in ("", ":memory:"):
        places["database"] = file.absolute().parent
    if premises.source and "://" not in premises.source and not premises.keep:
        places["source"] = Path(premises.source)
    for name, place in places.items():
        folder = _existing(place)
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as probe:
                probe.write(b"x")
                probe.flush()
            usage = shutil.disk_usage(folder)
        except OSError as error:
            yield Finding(
                f"folder of {name}",
                ok=False,
                found=f"{folder} cannot be written: {error.strerror}",
                remedy=f"let the user {os.geteuid()} write there",
            )
            continue
        enough = usage.free >= max(_LEAST_FREE_BYTES, _LEAST_FREE_SHARE * usage.total)
        yield Finding(
            f"folder of {name}",
            ok=enough,
            found=f"{folder} can be written, {usage.free / 1e9:.1f} GB free",
            remedy="" if enough else "make room: at least 2 GB and a twentieth of the disk",
        )


def _existing(place: Path) -> Path:
    """Return a folder, or the nearest one above it that exists and in which it would be made."""
    folder = place.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _clock(premises: Premises) -> Iterator[Finding]:
    """Hold this machine's clock to its build and to the clock that stamps the source's files."""
    now = datetime.now(UTC)
    if now < _BUILT:
        yield Finding("clock", ok=False, found=f"it says {now:%Y-%m-%d}", remedy="set it, and have NTP keep it")
        return
    apart = 0.0
    if premises.source and "://" not in premises.source and not premises.keep:
        try:
            with tempfile.NamedTemporaryFile(dir=premises.source, prefix=".doctor-") as probe:
                apart = abs(os.fstat(probe.fileno()).st_mtime - time.time())
        except OSError:
            return  # said already: the folder cannot be written
    yield Finding(
        "clock",
        ok=apart < _CLOCKS_APART_S,
        found=f"{now:%Y-%m-%d %H:%M:%S} UTC, {apart:.1f} s off the source's files",
        remedy="" if apart < _CLOCKS_APART_S else "have NTP keep both machines' clocks",
    )
