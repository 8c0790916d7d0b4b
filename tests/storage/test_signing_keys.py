"""Events are signed with a key outside of the database, and heads are anchored outside of it: forgers are found."""

import dataclasses
import hashlib
import json
import stat
import subprocess
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from benchmarks.support import stored
from benchmarks.support.stored import NOON
from inspect_xai.errors import SettingsError, StoreError
from inspect_xai.storage import database, ledger, signing_keys
from inspect_xai.storage.store import Store, open_store
from inspect_xai.verify.evidence_export import export_evidence
from tests.conftest import Run
from tests.support.tampering import kinds, tamper, without_triggers


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signing_keys.create_key(tmp_path / "ledger.key")
    return tmp_path / "ledger.key"


@pytest.fixture
def public(key: Path) -> str:
    return signing_keys.read_public_key(signing_keys.public_file(key))


@pytest.fixture
def signed(database_url: str, key: Path) -> Iterator[Store]:
    """Event 1 (model) is not signed, since no key was set yet; 2 begins with the key, 3 and 4 are verdicts."""
    with open_store(database_url) as before:
        stored.prepared(before)
    with open_store(database_url, ledger_key=key) as opened:
        for number in (1, 2):
            opened.record([stored.inspection(number)])
        yield opened


def test_a_key_is_made_once_and_for_its_owner_alone(key: Path, public: str) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert public == signing_keys.Signer(key).public_key
    assert len(bytes.fromhex(public)) == 32
    with pytest.raises(SettingsError, match="is there already"):
        signing_keys.create_key(key)
    key.chmod(0o644)
    with pytest.raises(SettingsError, match=r"others may read or replace the ledger's key .* \(mode 0644\)"):
        signing_keys.Signer(key).sign("x")
    key.chmod(0o440)  # as secrets reach a container
    assert signing_keys.fits(public, "x", signing_keys.Signer(key).sign("x"))
    assert not signing_keys.fits(public, "y", signing_keys.Signer(key).sign("x"))


@pytest.mark.parametrize("content", ["", "-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "no.key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="holds no private key"):
        signing_keys.Signer(file).sign("x")
    with pytest.raises(SettingsError, match="holds no public key"):
        signing_keys.read_public_key(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        signing_keys.Signer(tmp_path / "absent").sign("x")


def test_events_are_signed_from_the_first_with_a_key_on(signed: Store, public: str) -> None:
    events = signed.ledger.events()
    assert [(each.kind, each.signed_by) for each in events] == [
        ("model", ""),
        ("key", public),
        ("verdicts", public),
        ("verdicts", public),
    ]
    assert events[1].facts == {"change": "begun", "public_key": public}
    assert all(signing_keys.fits(public, each.hash, each.signature) for each in events[1:])
    for pinned in ([], [public]):
        report = signed.ledger.verify(public_keys=pinned)
        assert (report.findings, report.notes) == ((), ())
        assert (report.signed_since, report.signed_by, report.is_pinned) == (2, public, bool(pinned))


def test_nobody_writes_unsigned_events_into_a_signed_ledger(
    signed: Store, database_url: str, tmp_path: Path, public: str
) -> None:
    other = signing_keys.create_key(tmp_path / "other.key")
    with open_store(database_url) as without, pytest.raises(StoreError, match="no key is set here"):
        without.record([stored.inspection(3)])
    with open_store(database_url) as without, pytest.raises(StoreError, match="no key is set here"):
        without.begin_run(stored.RUN)  # a line is told before it claims a picture
    with open_store(database_url, ledger_key=other.file) as wrong, pytest.raises(StoreError, match="ledger key rotate"):
        wrong.record([stored.inspection(3)])
    with open_store(database_url, ledger_key=tmp_path / "absent") as reading:
        assert reading.find()  # who only reads needs no key
    assert signed.ledger.verify(public_keys=[public]).findings == ()


def forge(url: str, *statements: str) -> None:
    """Append an event without the key, as who owns the database can."""
    tamper(url, *statements)
    engine = database.open_engine(url)
    with database.Database(engine).write() as connection:
        ledger._written(connection, "retention", "row", facts={}, rows={}, now=NOON, signer=None)
    engine.dispose()


def test_what_a_forger_does_without_the_key_is_found(signed: Store, database_url: str, public: str) -> None:
    engine = database.open_engine(database_url)
    with engine.connect() as connection:
        forged = signing_keys.Signer(signed.database.engine.get_execution_options()[signing_keys.OPTION].file).sign("x")
        cases = [
            ("UPDATE ledger_event SET signature = NULL, signed_by = NULL WHERE id = 3", [(3, "unsigned")]),
            (f"UPDATE ledger_event SET signature = '{forged}' WHERE id = 3", [(3, "forged")]),
            (f"UPDATE ledger_event SET signed_by = '{'0' * 64}' WHERE id = 3", [(3, "forged")]),
            ("UPDATE ledger_event SET signature = 'no digits' WHERE id = 4", [(4, "forged")]),
            ("UPDATE ledger_event SET signature = NULL, signed_by = NULL", [(0, "unsigned")]),
        ]
        for statement, expected in cases:
            with connection.begin() as transaction:
                for each in (*without_triggers(connection), statement):
                    connection.execute(text(each))
                found = ledger.verify(connection, public_keys=[public]).findings
                assert [(each.sequence, each.kind) for each in found] == expected, statement
                transaction.rollback()
    engine.dispose()
    forge(database_url)
    assert kinds(signed, public_keys=[public]) == [(5, "unsigned")]


def test_a_forger_with_a_key_of_their_own_is_found_by_the_pinned_one(
    signed: Store, database_url: str, tmp_path: Path, public: str
) -> None:
    mallory = signing_keys.create_key(tmp_path / "mallory.key")
    tamper(database_url, "DELETE FROM ledger_event WHERE id > 1", "DELETE FROM inspection", "DELETE FROM policy")
    with open_store(database_url, ledger_key=mallory.file) as theirs:
        theirs.record([stored.inspection(1)])
        assert theirs.ledger.verify().holds  # their key is the first: nobody knows better
        [finding] = theirs.ledger.verify(public_keys=[public]).findings
    assert finding.what == f"no event is signed by a given key; signed is by {mallory.public_key[:16]}"


def test_a_forger_cannot_go_on_with_a_key_of_their_own(
    signed: Store, database_url: str, tmp_path: Path, public: str
) -> None:
    mallory = signing_keys.create_key(tmp_path / "mallory.key")
    engine = database.open_engine(database_url)
    with database.Database(engine).write() as connection:
        ledger.begin_key(connection, mallory, now=NOON, before=public)
    engine.dispose()
    assert kinds(signed) == kinds(signed, public_keys=[public]) == [(5, "forged")]


def test_a_key_changes_by_an_event_that_the_old_one_signs(
    signed: Store, database_url: str, tmp_path: Path, public: str
) -> None:
    new = signing_keys.create_key(tmp_path / "new.key")
    assert signed.ledger.rotate_key(new.file, by="Bob") == new.public_key
    signed.record([stored.inspection(5)])
    rotated, begun, verdicts = signed.ledger.events(after=4)
    assert rotated.facts == {"change": "rotated", "public_key": new.public_key, "by": "Bob"}
    assert [each.signed_by for each in (rotated, begun, verdicts)] == [public, new.public_key, new.public_key]
    for pinned in ([], [public], [new.public_key], [public, new.public_key]):
        assert signed.ledger.verify(public_keys=pinned).holds
    engine = database.open_engine(database_url)
    old = signing_keys.Signer(tmp_path / "ledger.key")
    with database.Database(engine).write() as connection:
        ledger._written(connection, "verdicts", "", facts={}, rows={}, now=NOON, signer=old)
    engine.dispose()
    assert kinds(signed, public_keys=[public]) == [(8, "forged")]  # the old key counts no more


def test_a_lost_key_is_followed_by_one_that_must_be_pinned(
    signed: Store, tmp_path: Path, public: str, database_url: str
) -> None:
    new = signing_keys.create_key(tmp_path / "new.key")
    with open_store(database_url) as without:
        without.ledger.rotate_key(new.file, by="Bob", lost=True)
        without.record([stored.inspection(5)])
        assert kinds(without, public_keys=[public]) == [(5, "forged"), (6, "forged")]
        assert without.ledger.verify(public_keys=[public, new.public_key]).holds


def test_a_ledger_that_is_not_signed_has_no_key_to_change(database_url: str, key: Path) -> None:
    with open_store(database_url) as store:
        stored.prepared(store)
        with pytest.raises(StoreError, match="are not signed"):
            store.ledger.rotate_key(key, by="Bob")


# --- anchors -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["anchors.jsonl", "anchors", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket" if request.param == "file" else str(tmp_path / request.param)


def test_an_anchor_says_since_when_nothing_changed_unseen(sqlite_url: str, key: Path, public: str, place: str) -> None:
    times = iter(NOON + timedelta(hours=n) for n in range(100))
    with open_store(sqlite_url, ledger_key=key, clock=lambda: next(times)) as store:
        stored.prepared(store)  # events 1 (key) and 2 (model)
        first = store.ledger.anchor(place)
        store.record([stored.inspection(1)])
        second = store.ledger.anchor(place)
        store.record([stored.inspection(2)])
        assert (first.events, second.events, second.signed_by) == (2, 3, public)
        report = store.ledger.verify(anchored_at=place, public_keys=[public])
        assert report.findings == ()
        assert (report.anchors, report.anchored_events, report.anchored_at) == (2, 3, second.anchored_at)
    # Whoever has the key too writes everything anew: the anchors tell.
    tamper(sqlite_url, "DELETE FROM ledger_event WHERE id > 2", "DELETE FROM inspection", "DELETE FROM policy")
    with open_store(sqlite_url, ledger_key=key) as store:
        store.record([stored.inspection(1)])
        assert store.ledger.verify(public_keys=[public]).holds
        report = store.ledger.verify(anchored_at=place, public_keys=[public])
        assert [(each.sequence, each.kind) for each in report.findings] == [(0, "forgotten_head")]
        assert (report.anchored_events, report.anchored_at) == (2, first.anchored_at)
        with pytest.raises(StoreError, match="this ledger does not hold it"):
            store.ledger.anchor(place)


def test_anchors_that_are_gone_broken_or_of_others_are_findings(sqlite_url: str, key: Path, tmp_path: Path) -> None:
    place = tmp_path / "anchors.jsonl"
    with open_store(sqlite_url, ledger_key=key) as store:
        stored.prepared(store)
        assert kinds(store, anchored_at=str(place)) == [(0, "missing")]
        anchor = store.ledger.anchor(str(place))
        line = json.loads(place.read_text())
        assert line == {
            "anchored_at": anchor.anchored_at.isoformat(timespec="microseconds"),
            "events": 2,
            "head": store.ledger.head(),
            "signed_by": anchor.signed_by,
            "signature": anchor.signature,
        }
        moved = line | {"anchored_at": "2020-01-01T00:00:00.000000+00:00"}
        place.write_text(f"{json.dumps(line)}\n{json.dumps(moved)}\nno anchor\n")
        assert kinds(store, anchored_at=str(place)) == [(0, "changed"), (0, "forged")]
        bare = {name: line[name] for name in ("anchored_at", "events", "head")}
        place.write_text(json.dumps(bare) + "\n")
        assert store.ledger.verify(anchored_at=str(place)).holds  # as of a line without a key


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{tmp_path}/store.db"


# --- commands ------------------------------------------------------------------------------------------------------


def test_the_commands_make_use_change_and_believe_a_key(
    cli: Run, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(sqlite_url) as store:
        stored.prepared(store).record([stored.inspection(1)])
    code, out, _ = cli("ledger", "verify", "--db", sqlite_url)
    assert (code, "events are not signed" in out, "no anchor fits or was given" in out) == (0, True, True)
    assert cli("ledger", "key", "create", tmp_path / "a.key")[0] == 0
    monkeypatch.setenv("INSPECT_XAI_LEDGER__KEY", str(tmp_path / "a.key"))
    monkeypatch.setenv("INSPECT_XAI_LEDGER__ANCHORS", str(tmp_path / "anchors.jsonl"))
    assert cli("retention", "hold", "--lot", "LOT0", "--reason", "complaint", "--db", sqlite_url)[0] == 0
    assert cli("ledger", "anchor", "--db", sqlite_url)[0] == 0
    code, out, _ = cli("ledger", "verify", "--db", sqlite_url, "--public-key", tmp_path / "a.key.pub")
    public = signing_keys.read_public_key(tmp_path / "a.key.pub")
    assert code == 0
    assert f"signed since event 3, by key {public}\n" in out
    assert "events 1 to 4 cannot have changed unseen since " in out
    assert cli("ledger", "key", "create", tmp_path / "b.key")[0] == 0
    assert cli("ledger", "key", "rotate", tmp_path / "b.key", "--db", sqlite_url)[0] == 0
    code, out, _ = cli("ledger", "verify", "--db", sqlite_url)
    assert "nobody vouches for that key: give --public-key" in out
    code, _, said = cli("retention", "hold", "--lot", "LOT1", "--reason", "x", "--db", sqlite_url)
    assert (code, "inspect-xai ledger key rotate" in said) == (50, True)
    tamper(sqlite_url, "UPDATE inspection SET verdict = 'OK'")
    code, out, _ = cli("ledger", "verify", "--db", sqlite_url, "--json")
    assert (code, [each["kind"] for each in json.loads(out)["findings"]]) == (1, ["changed"])


def test_files_are_read_and_hashed_when_asked(
    cli: Run, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECT_XAI_BLOB_STORE", str(tmp_path / "maps"))
    picture = tmp_path / "SN1::x.png"
    picture.write_bytes(b"as it was")
    given = stored.inspection(1, explained=stored.explanation(np.random.default_rng(1)))
    capture = dataclasses.replace(
        given.capture, sha256=hashlib.sha256(b"as it was").hexdigest(), archived_to=str(picture)
    )
    with open_store(sqlite_url, blob_store=str(tmp_path / "maps")) as store:
        stored.prepared(store).record([dataclasses.replace(given, capture=capture)])
    code, out, _ = cli("ledger", "verify", "--db", sqlite_url)
    assert (code, "3 maps lie in a blob store and were not read: say --files" in out) == (0, True)
    code, out, _ = cli("ledger", "verify", "--db", sqlite_url, "--files")
    assert (code, "1 archived files read, 0 of them without a picture to hash" in out) == (0, True)
    picture.write_bytes(b"another")
    one, other, third = sorted((tmp_path / "maps").rglob("*.ixm"))
    one.write_bytes(other.read_bytes())
    third.unlink()
    assert cli("ledger", "verify", "--db", sqlite_url)[0] == 0
    code, out, _ = cli("ledger", "verify", "--db", sqlite_url, "--files", "--json")
    found = {each["kind"]: each["what"] for each in json.loads(out)["findings"]}
    assert code == 1
    assert len(json.loads(out)["findings"]) == 3
    assert found["changed"] == f"the picture of capture 1 at {picture} is another file than was recorded"
    assert found["missing"].endswith(f"the map {third.stem} is not in the blob store {tmp_path / 'maps'}")
    picture.unlink()
    code, out, _ = cli("ledger", "verify", "--db", sqlite_url, "--files", "--json")
    assert [each["kind"] for each in json.loads(out)["findings"]].count("missing") == 2


def test_evidence_holds_signatures_that_openssl_confirms(signed: Store, public: str, tmp_path: Path) -> None:
    export_evidence(signed, [1], out=tmp_path / "evidence.zip")
    with zipfile.ZipFile(tmp_path / "evidence.zip") as found:
        found.extractall(tmp_path / "e")
    pem = tmp_path / "e" / "public_keys" / f"{public[:16]}.pem"
    assert "openssl pkeyutl -verify" in (tmp_path / "e" / "README.txt").read_text()
    lines = [json.loads(line) for line in (tmp_path / "e" / "chain.jsonl").read_text().splitlines()]
    assert [line.get("signed_by") for line in lines] == [None, *[public] * 3]  # the model was registered before
    (tmp_path / "hash.txt").write_text(lines[-1]["hash"])
    (tmp_path / "signature.bin").write_bytes(bytes.fromhex(lines[-1]["signature"]))
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        str(pem),
        "-rawin",
        "-in",
        str(tmp_path / "hash.txt"),
    ]
    told = subprocess.run([*command, "-sigfile", str(tmp_path / "signature.bin")], capture_output=True, text=True)
    assert (told.returncode, told.stdout.strip()) == (0, "Signature Verified Successfully")
