"""The ledger finds what was changed behind its back: done here with raw SQL, triggers dropped, on both databases."""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from benchmarks.support import stored
from benchmarks.support.stored import FINGERPRINT, NOON
from inspect_xai.errors import NotFoundError, StoreError
from inspect_xai.records import Decision, ImageStatistics, Inspection, ModelStatus, Review, VerdictCode
from inspect_xai.storage import database, ledger, ledger_documents, schema
from inspect_xai.storage.ledger import GENESIS, chained
from inspect_xai.storage.store import Store, open_store
from inspect_xai.storage.types import canonical
from inspect_xai.verify.evidence_export import export_evidence
from tests.support.tampering import kinds, tamper, without_triggers

ANSWER = Review("Ada", Decision.OVERTURN, VerdictCode.OK, "free", map_rating="no", box=(1, 2, 3, 4), note="dust")


@pytest.fixture
def store(database_url: str, rng: np.random.Generator) -> Iterator[Store]:
    """A store with three events of verdicts and one of everything else."""
    with open_store(database_url) as opened:
        stored.prepared(opened)
        for number in range(3):
            opened.record(
                [stored.inspection(number, explained=stored.explanation(rng)), stored.inspection(number + 10)]
            )
        opened.review(1, ANSWER)
        opened.registry.set_model_status(
            FINGERPRINT, ModelStatus.APPROVED, by="Bob", note="golden set holds", golden={"worst": 0}
        )
        yield opened


def test_an_untouched_ledger_holds(store: Store) -> None:
    report = store.ledger.verify(heads=[GENESIS, store.ledger.head()])
    assert (report.holds, report.notes) == (True, ())
    assert [each.kind for each in store.ledger.events()] == [
        "model",
        "verdicts",
        "verdicts",
        "verdicts",
        "review",
        "model",
    ]
    assert report.events == 6
    assert report.rows == 6 + 1 + 1 + 1  # inspections, model, policy, review
    assert report.head == store.ledger.head() == store.ledger.events()[-1].hash


def test_an_event_says_what_happened(store: Store) -> None:
    verdicts = store.ledger.events(kind="verdicts")[0]
    assert (verdicts.subject, verdicts.facts) == ("run-1", {"verdicts": {"NG": 2}})
    assert set(verdicts.rows) == {"inspection/1", "inspection/2", "policy/1"}
    [approved] = store.ledger.events(after=2, kind="model", subject=FINGERPRINT)
    assert approved.facts == {"change": "approved", "before": "candidate", "by": "Bob", "note": "golden set holds"}


def test_the_chain_is_what_the_formula_says(store: Store, database_url: str) -> None:
    engine = database.open_engine(database_url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT body, previous_hash, hash FROM ledger_event ORDER BY id")).all()
    engine.dispose()
    previous = "0" * 64
    for body, said, hashed in rows:
        assert (said, hashed) == (previous, chained(previous, body))
        previous = hashed


def test_recording_what_stands_there_makes_no_event(store: Store) -> None:
    head = store.ledger.head()
    store.record([stored.inspection(10)])
    store.registry.register_model(FINGERPRINT, stored.CARD)
    assert store.ledger.head() == head


def test_the_database_forbids_changes(store: Store, database_url: str) -> None:
    engine = database.open_engine(database_url)
    for statement in (
        "UPDATE ledger_event SET kind = 'x'",
        "DELETE FROM ledger_event",
        "UPDATE review SET decision = 'confirm'",
        "DELETE FROM review",
    ):
        with pytest.raises(StoreError, match="is append-only"), database.Database(engine).write() as connection:
            connection.execute(text(statement))
    engine.dispose()


def test_the_database_forbids_replacing(store: Store, database_url: str) -> None:
    engine = database.open_engine(database_url)
    columns = "occurred_at, kind, subject, body, previous_hash, hash"
    statement = {
        "sqlite": f"INSERT OR REPLACE INTO ledger_event (id, {columns}) SELECT id, {columns} FROM ledger_event",
        "postgresql": "TRUNCATE ledger_event",
    }[engine.dialect.name]
    with pytest.raises(StoreError, match="is append-only"), database.Database(engine).write() as connection:
        connection.execute(text(statement))
    engine.dispose()


TAMPERING = [
    ("UPDATE ledger_event SET body = replace(body, 'NG', 'OK') WHERE id = 3", [(3, "changed")]),
    ("UPDATE ledger_event SET body = 'x' WHERE id = 5", [(5, "changed"), (0, "unvouched")]),
    ("UPDATE ledger_event SET subject = 'run-2' WHERE id = 2", [(2, "changed")]),
    ("UPDATE ledger_event SET occurred_at = '2020-01-01T00:00:00.000000+00:00' WHERE id = 4", [(4, "changed")]),
    ("DELETE FROM ledger_event WHERE id = 5", [(6, "missing"), (0, "unvouched")]),
    ("DELETE FROM ledger_event WHERE id = 1", [(2, "missing")]),
    ("DELETE FROM review", [(5, "missing")]),
    ("UPDATE review SET decision = 'confirm'", [(5, "changed")]),
    ("UPDATE inspection SET verdict = 'OK' WHERE id = 3", [(3, "changed")]),
    ("UPDATE inspection SET score = score + 0.0000001 WHERE id = 3", [(3, "changed")]),
    ("UPDATE capture SET shift = 'night' WHERE id = 4", [(3, "changed")]),
    ("UPDATE part SET serial = 'other' WHERE serial = 'SN00002'", [(4, "changed")]),
    ("UPDATE explanation_region SET area_px = 11 WHERE explanation_id = 1 AND position = 0", [(2, "changed")]),
    ("UPDATE block_map SET kept_channels = 7 WHERE explanation_id = 2 AND position = 1", [(3, "changed")]),
    ("UPDATE model SET status = 'retired'", [(6, "changed")]),
    ("DELETE FROM explanation WHERE id = 1", [(2, "changed")]),
    ("DELETE FROM inspection WHERE id = 6", [(4, "missing")]),
]


def test_what_raw_sql_did_is_found(store: Store, database_url: str) -> None:
    engine = database.open_engine(database_url)
    with engine.connect() as connection:
        for statement, expected in TAMPERING:
            with connection.begin() as transaction:
                for each in (*without_triggers(connection), statement):
                    connection.execute(text(each))
                found = [(finding.sequence, finding.kind) for finding in ledger.verify(connection).findings]
                assert found == expected, statement
                transaction.rollback()
    engine.dispose()
    assert store.ledger.verify().holds


def _watched(number: int, rng: np.random.Generator) -> Inspection:
    explained = dataclasses.replace(stored.explanation(rng), embedding=tuple(n / 8 for n in range(16)))
    signal = ImageStatistics(brightness=120.5, contrast=30.25, clipped_share=0.0, sharpness=80.0, noise=1.5)
    return dataclasses.replace(stored.inspection(number, explained=explained), image_statistics=signal)


def test_what_is_watched_for_drift_is_vouched_for(store: Store, database_url: str, rng: np.random.Generator) -> None:
    [row] = store.record([_watched(20, rng)])
    sequence = store.ledger.events()[-1].sequence
    document = store.ledger.evidence([row.inspection_id])["documents"][f"inspection/{row.inspection_id}"]
    assert document["signal"] == {
        "brightness": 120.5,
        "contrast": 30.25,
        "clipped": 0.0,
        "sharpness": 80.0,
        "noise": 1.5,
        "embedding": np.arange(0, 2, 1 / 8, dtype="<f4").tobytes().hex(),
    }
    assert store.ledger.verify().holds
    tamper(database_url, f"UPDATE image_statistics SET noise = 1 WHERE inspection_id = {row.inspection_id}")
    assert kinds(store) == [(sequence, "changed")]
    tamper(database_url, f"DELETE FROM image_statistics WHERE inspection_id = {row.inspection_id}")
    assert kinds(store) == [(sequence, "changed")]


def test_a_digest_from_before_signals_were_vouched_for_still_holds(store: Store, database_url: str) -> None:
    """Such a record has a signal that its digest knows nothing of."""
    tamper(database_url, "INSERT INTO image_statistics VALUES (1, 120.5, 30.25, 0.0, 80.0, 1.5, NULL)")
    assert store.ledger.verify().holds
    told = store.ledger.evidence([1])
    assert "signal" not in told["documents"]["inspection/1"]
    spelled = canonical(told["documents"]["inspection/1"])
    [event] = [each for each in told["events"] if "inspection/1" in each["rows"]]
    assert hashlib.sha256(spelled.encode()).hexdigest() == event["rows"]["inspection/1"]
    tamper(database_url, "UPDATE inspection SET score = 0.5 WHERE id = 1")
    assert kinds(store) == [(event["sequence"], "changed")]


def test_digests_are_of_the_canonical_spelling(store: Store) -> None:
    with store.database.read() as connection:
        for kind in ("inspection", "review", "model"):
            every = ledger_documents.documents(connection, kind, [1, 2, 3])
            assert ledger_documents.digests(connection, kind, [1, 2, 3]) == {
                number: hashlib.sha256(canonical(document).encode()).hexdigest() for number, document in every.items()
            }
            assert every


def test_a_long_check_says_how_far_it_is(store: Store) -> None:
    heard: list[tuple[str, int, int]] = []
    report = store.ledger.verify(on_progress=lambda *given: heard.append(given))
    assert heard[0] == ("events", report.events, report.events)
    assert ("rows", report.rows, report.rows) in heard
    assert heard[-1] == ("maps", 9, 9)  # two sums and a fused map of each of three explanations


def test_reordered_events_are_found(store: Store, database_url: str) -> None:
    moves = [f"UPDATE ledger_event SET id = {new} WHERE id = {old}" for old, new in ((3, 99), (4, 3), (99, 4))]
    tamper(database_url, *moves)
    found = kinds(store)
    assert (3, "reordered") in found
    assert (4, "reordered") in found


def test_an_event_that_was_hashed_anew_breaks_the_chain(store: Store, database_url: str) -> None:
    event = store.ledger.events()[2]
    body = json.dumps({"facts": {}, "rows": {}}).replace("'", "''")
    new = chained(event.previous_hash, body)
    engine = database.open_engine(database_url)
    with engine.begin() as connection:
        for statement in without_triggers(connection):
            connection.execute(text(statement))
        connection.execute(
            text("UPDATE ledger_event SET body = :body, hash = :hash WHERE id = 3"), {"body": body, "hash": new}
        )
    engine.dispose()
    assert {(3, "changed"), (4, "reordered")} <= set(kinds(store))


def test_a_chain_cut_at_its_end_is_found_by_its_rows_and_by_a_head_noted_down(store: Store, database_url: str) -> None:
    head = store.ledger.head()
    store.record([stored.inspection(50)])
    later = store.ledger.head()
    tamper(database_url, "DELETE FROM ledger_event WHERE id = 7")
    assert kinds(store) == [(0, "unvouched")]
    tamper(database_url, "DELETE FROM inspection WHERE id = 7")
    assert kinds(store, heads=[head]) == []
    assert kinds(store, heads=[head, later]) == [(0, "forgotten_head")]


def test_a_clock_that_goes_backwards_is_noted_and_breaks_nothing(database_url: str) -> None:
    times = iter([NOON, NOON - timedelta(days=400), NOON + timedelta(seconds=1)])
    with open_store(database_url, clock=lambda: next(times)) as store:
        stored.prepared(store)
        store.record([stored.inspection(1)])
        store.record([stored.inspection(2)])
        report = store.ledger.verify()
        assert report.holds
        assert report.notes == ("event 2: the clock went backwards by 400 days, 0:00:00",)
        assert [event.sequence for event in store.ledger.events()] == [1, 2, 3]


def test_a_review_comes_back_as_it_was_given(store: Store) -> None:
    store.set_reason("dust", "Dust on the part")
    given = dataclasses.replace(ANSWER, reason_code="dust", blind=True)
    found = store.review(2, given)
    assert store.get(2).reviews == (found,)
    fields = {field.name for field in dataclasses.fields(Review)}
    assert {name: getattr(found, name) for name in fields} == dataclasses.asdict(given)
    assert not found.superseded
    assert store.reasons() == {"dust": "Dust on the part"}
    [summary] = store.find(serial="SN00010")
    assert (summary.review_decision, summary.reviewed_verdict) == ("overturn", "OK")


def test_a_correction_supersedes_and_keeps_the_first_answer(store: Store) -> None:
    second = store.review(1, dataclasses.replace(ANSWER, decision=Decision.CONFIRM), supersedes=1)
    first, newest = store.get(1).reviews
    assert (first.superseded, newest.superseded, newest.supersedes_id) == (True, False, first.review_id)
    with pytest.raises(StoreError, match="review 1 was corrected meanwhile, by Ada: confirm"):
        store.review(1, ANSWER, supersedes=1)
    with pytest.raises(NotFoundError, match="inspection 2 has no review 1"):
        store.review(2, ANSWER, supersedes=1)
    assert second.review_id == newest.review_id
    assert store.ledger.verify().holds


def test_reviews_of_nothing_and_for_no_listed_reason_are_refused(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no inspection 99"):
        store.review(99, ANSWER)
    with pytest.raises(StoreError, match="no reason code 'scratch' in the list"):
        store.review(1, dataclasses.replace(ANSWER, reason_code="scratch"))
    assert store.ledger.verify().events == 6


def test_the_status_of_a_model_is_on_the_verdicts_it_gave(store: Store) -> None:
    [recorded] = store.record([stored.inspection(60)])
    assert store.get(recorded.inspection_id).model_status == "approved"
    assert store.get(1).model_status == "candidate"
    [model] = store.registry.models()
    assert (model.status, model.status_by, model.golden_result) == ("approved", "Bob", {"worst": 0})
    with pytest.raises(NotFoundError):
        store.registry.set_model_status("0" * 64, ModelStatus.RETIRED, by="Bob")


def test_a_part_is_traced_both_ways(store: Store) -> None:
    [found] = store.trace("SN00001", product="housing")
    assert (found.model.fingerprint, found.capture.file_name) == (FINGERPRINT, "L1/S3/SN00001.png")
    assert store.trace("SN9") == []
    engine = store.database.engine
    with database.Database(engine).read() as connection:
        map_sha256 = (
            connection.execute(
                text(
                    "SELECT sha256 FROM block_map JOIN map_blob ON map_blob.id = sums_blob_id WHERE explanation_id = 2"
                )
            )
            .scalars()
            .first()
        )
    assert [each.serial for each in store.find(map_sha256=map_sha256)] == ["SN00001"]
    assert [each.serial for each in store.find(sha256=found.capture.sha256)] == ["SN00001"]
    assert found.explanation is not None
    assert map_sha256 in found.explanation.sums_sha256
    assert [each.serial for each in store.find(map_sha256=found.explanation.fused_sha256)] == ["SN00001"]


def test_evidence_can_be_checked_with_nothing_but_a_hash_function(store: Store) -> None:
    told = json.loads(json.dumps(store.ledger.evidence([1, 3])))
    assert set(told["documents"]) == {"inspection/1", "inspection/3", "review/1", "model/1"}
    assert told["documents"]["inspection/1"]["capture"]["part"] == {
        "serial": "SN00000",
        "lot": "LOT0",
        "product": "housing",
    }
    latest = {}
    for event in told["events"]:
        body = {name: event[name] for name in ("occurred_at", "kind", "subject", "facts", "rows")}
        body["id"] = event["sequence"]
        spelled = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256((event["previous_hash"] + spelled).encode()).hexdigest() == event["hash"]
        latest |= event["rows"]
    for name, document in told["documents"].items():
        spelled = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(spelled.encode()).hexdigest() == latest[name]
    assert told["head"] == store.ledger.head()


def test_an_audit_stands_beside_its_model(store: Store) -> None:
    facts = {"audited_at": NOON, "settings": {"methods": ["sise"]}, "numbers": {"ebpg": 0.5}}
    assert store.registry.record_audit("a1", FINGERPRINT, **facts)  # type: ignore[arg-type]
    assert not store.registry.record_audit("a1", FINGERPRINT, **facts)  # type: ignore[arg-type]
    assert store.registry.audits(FINGERPRINT) == [("a1", NOON, facts["settings"], facts["numbers"])]
    with pytest.raises(NotFoundError):
        store.registry.record_audit("a2", "0" * 64, **facts)  # type: ignore[arg-type]
    assert store.ledger.verify().holds


def test_triggers_are_in_the_ddl_people_read() -> None:
    assert "ledger_event_no_update" in schema.ddl("sqlite")
    assert "ledger_event_no_change" in schema.ddl("postgresql")


def test_broken_events_stop_neither_the_list_nor_the_evidence(
    store: Store, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = ["UPDATE ledger_event SET body = '[' WHERE id = 3", "UPDATE ledger_event SET body = '{}' WHERE id = 6"]
    if database_url.startswith("sqlite"):
        broken.append("UPDATE ledger_event SET occurred_at = 'then' WHERE id = 4")
    tamper(database_url, *broken)
    assert [event.sequence for event in store.ledger.events()] == [1, 2, 4, 5]
    assert [record.getMessage() for record in caplog.records] == [
        f"event {number} of the ledger cannot be read: run inspect-xai ledger verify" for number in (3, 6)
    ]
    made = export_evidence(store, [1, 3], out=tmp_path / "evidence.zip")
    said = [line for line in made.missing if "picture" not in line]
    assert said == [
        "event 3 of the ledger: its body cannot be read",
        "event 6 of the ledger: its body cannot be read",
        "an event for inspection/3: none that can be read recorded it",
    ]
    with zipfile.ZipFile(made.path) as files:
        chain = [json.loads(line) for line in files.read("chain.jsonl").splitlines()]
    assert [line["body"] for line in chain][2::3] == ["[", "{}"]
    assert chain[-1]["hash"] == store.ledger.head()
