"""The line: what is recorded of good, bad and hostile pictures, and what every interruption leaves behind."""

import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

from inspect_xai.errors import DatabaseAwayError, SettingsError, StoreError
from inspect_xai.explain.window_scores import PreparedPicture, score_windows
from inspect_xai.intake.decode import decode_picture
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.intake.url_source import UrlSource
from inspect_xai.line import stages
from inspect_xai.line.line import Line, drain
from inspect_xai.line.stages import IntakeSpec, Schedule
from inspect_xai.line.summary import LineSummary, Outcome
from inspect_xai.model import engine as engine_module
from inspect_xai.model import session
from inspect_xai.model.engine import Engine
from inspect_xai.policy import DefaultPolicy, ExplainRule, policy_from
from inspect_xai.records import Inspection, Reason, VerdictCode
from inspect_xai.storage.results import RecordedInspection
from inspect_xai.storage.store import Store, open_store
from inspect_xai.verify.replay import Replayer, ReplayOutcome
from tests.support import hostile, spots
from tests.support.line import explaining, rows, run, write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'line.db'}"


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """Two OK parts, one UNSURE, one NG, named as the default pattern says."""
    folder = tmp_path / "incoming"
    for number, spot_px in enumerate([0, 0, 5, 10]):
        write(
            folder / f"L1/S{number % 2}/SN{number}_LOT7_CAM1_top_early_20261122T0615{number:02d}Z.png", number, spot_px
        )
    return folder


def test_pictures_become_rows_with_part_verdict_and_explanation(incoming: Path, bundle: Path, db: str) -> None:
    summary = run(incoming, bundle, db, policy=explaining(0.0))

    assert (summary.seen, summary.inspected, summary.ok, summary.unsure, summary.ng) == (4, 4, 2, 1, 1)
    assert (summary.explained, summary.failed, summary.already_known) == (2, 0, 0)
    recorded = rows(db)
    assert [row.serial for row in recorded] == ["SN0", "SN1", "SN2", "SN3"]
    assert [row.verdict for row in recorded] == ["OK", "OK", "UNSURE", "NG"]
    assert [row.explained_because for row in recorded] == ["", "", "unsure", "ng"]
    assert [row.explanation_status for row in recorded] == ["", "", "explained", "explained"]
    assert sum(row.passes for row in recorded) == summary.passes > 0
    flagged = recorded[3]
    assert (flagged.line, flagged.station, flagged.lot, flagged.camera) == ("L1", "S1", "LOT7", "CAM1")
    assert (flagged.view, flagged.shift, flagged.captured_at.second) == ("top", "early", 3)
    assert flagged.score > flagged.threshold
    with open_store(db) as store:
        stored = store.get(flagged.inspection_id, maps=True)
    assert stored.run.run_id == summary.run_id
    assert stored.run.settings["ok_share"] == 0.0
    assert stored.capture.height_px == 32
    assert len(stored.capture.pixels_sha256) == 64
    assert stored.explanation is not None
    assert stored.explanation.settings.target == "spot"
    fused = stored.explanation.fused
    assert fused is not None
    row, column = np.unravel_index(np.argmax(fused), fused.shape)
    assert 4 <= row < 18  # the map peaks on the spot
    assert 16 <= column < 30


def test_recorded_files_are_archived_where_the_row_says(incoming: Path, bundle: Path, db: str) -> None:
    run(incoming, bundle, db)
    assert [path for path in incoming.rglob("*.png") if "_archive" not in path.parts] == []
    for row in rows(db):
        archived = Path(row.archived_to)
        assert archived.is_relative_to(incoming / "_archive/2026-11-22/L1")
        assert archived.name == f"{Path(row.file_name).stem}~{row.sha256[:12]}.png"
        assert archived.is_file()


def test_a_second_run_adds_nothing_even_when_the_files_come_back(incoming: Path, bundle: Path, db: str) -> None:
    run(incoming, bundle, db)
    before = rows(db)
    again = run(incoming, bundle, db)
    assert (again.seen, again.inspected) == (0, 0)
    for row in before:
        shutil.copy(row.archived_to, incoming / f"copy of {Path(row.file_name).name}")
    again = run(incoming, bundle, db)
    assert (again.seen, again.inspected, again.already_known) == (4, 0, 4)
    assert rows(db) == before
    assert list(incoming.glob("*.png")) == []


def test_another_policy_version_inspects_again_beside_the_old_rows(incoming: Path, bundle: Path, db: str) -> None:
    run(incoming, bundle, db)
    for row in rows(db):
        shutil.copy(row.archived_to, incoming)
    assert run(incoming, bundle, db, policy=DefaultPolicy("2")).inspected == 4
    assert Counter(row.policy_version for row in rows(db)) == {"1": 4, "2": 4}


def test_the_same_bytes_twice_in_one_chunk_are_one_capture(tmp_path: Path, bundle: Path, db: str) -> None:
    write(tmp_path / "in/a.png", 1)
    write(tmp_path / "in/b.png", 1)
    summary = run(tmp_path / "in", bundle, db)
    assert (summary.seen, summary.inspected, summary.already_known) == (2, 1, 1)
    assert len(rows(db)) == 1
    assert len(list((tmp_path / "in/_archive").rglob("*.png"))) == 2


def test_a_sidecar_that_comes_late_is_told(
    incoming: Path, bundle: Path, db: str, caplog: pytest.LogCaptureFixture
) -> None:
    (incoming / "late.json").write_text('{"serial": "TRUE"}')
    assert run(incoming, bundle, db).unmatched == 1
    assert "late.json belongs to no picture" in caplog.text


def test_hostile_files_get_a_row_with_a_reason_and_the_next_picture_is_inspected(
    tmp_path: Path, bundle: Path, db: str
) -> None:
    folder = tmp_path / "in"
    broken, sound = hostile.plant(folder)

    summary = run(folder, bundle, db)

    recorded = {row.file_name: row for row in rows(db)}
    assert set(recorded) == set(broken) | set(sound)
    for name, words in broken.items():
        row = recorded[name]
        assert (row.verdict, row.reason, row.failure_kind) == ("UNSURE", "BAD_IMAGE", "PictureError"), name
        assert re.search(words, row.failure_message), (name, row.failure_message)
        assert "_rejected" in row.archived_to, name
        assert os.path.lexists(row.archived_to), name
    for name in sound:
        row = recorded[name]
        assert (row.failure_kind, row.failure_message) == ("", ""), name
        assert row.predicted_label in ("spot", "free"), name
        assert Path(row.archived_to).is_file(), name
    assert summary.inspected == len(broken) + len(sound)
    assert summary.failed == len(broken)
    assert list((folder / "_claimed").iterdir()) == []
    assert (tmp_path / "outside.png").is_file()  # what a link pointed to was neither read nor moved
    assert (tmp_path / "elsewhere/secret.png").is_file()
    assert (len(broken), len(sound)) == (78, 49)  # the counts in docs/guides/line.md
    assert run(folder, bundle, db).seen == 0


def test_empty_files_of_two_parts_are_two_rows(tmp_path: Path, bundle: Path, db: str) -> None:
    (tmp_path / "in").mkdir()
    for name in ("SN1.png", "SN2.png"):
        (tmp_path / "in" / name).touch()
    assert run(tmp_path / "in", bundle, db).inspected == 2
    assert {row.serial for row in rows(db)} == {"SN1", "SN2"}


def test_a_file_that_vanishes_after_its_claim_gets_a_row(incoming: Path, bundle: Path, db: str) -> None:
    with Line(bundle, db, device="cpu") as line, FolderSource(incoming, settle_s=0) as source:
        claims = sorted(source.claim(10), key=lambda claim: claim.file_name)
        Path(claims[0].location).unlink()
        outcomes = line.inspect(source, claims)
    assert [outcome.failed for outcome in outcomes] == [True, False, False, False]
    assert "No such file" in rows(db)[0].failure_message


def test_a_file_that_grows_while_it_is_read_gets_a_row(tmp_path: Path, bundle: Path, db: str) -> None:
    folder, stop = tmp_path / "in", threading.Event()
    write(folder / "b.png", 1)
    growing = folder / "a.png"
    growing.write_bytes(hostile.PNG + bytes(60_000_000))  # long enough for a reader to be overtaken

    def grow() -> None:
        with growing.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        run(folder, bundle, db)
    finally:
        stop.set()
        writer.join()
    found = {row.file_name: (row.verdict, row.reason) for row in rows(db)}
    assert found == {"a.png": ("UNSURE", "BAD_IMAGE"), "b.png": ("OK", "CLEAR")}
    assert "while it was read" in next(row.failure_message for row in rows(db) if row.file_name == "a.png")


def test_a_file_that_vanishes_between_list_and_claim_stops_nothing(incoming: Path, bundle: Path, db: str) -> None:
    with Line(bundle, db, device="cpu") as line, FolderSource(incoming, settle_s=0) as source:
        found = list(source._files())
        Path(found[0][1]).unlink()
        source._walk = iter(found)
        assert drain(line, source, chunk=2).inspected == 3
    assert len(rows(db)) == 3  # nothing is known of it, so there is nothing to record


def _work_as_nobody(folder: Path, bundle: Path, db: str) -> None:
    with Line(bundle, db, device="cpu") as line:
        with FolderSource(folder / "first", settle_s=0) as source:
            drain(line, source)  # what is imported late lies where only root may read
        if os.geteuid() == 0:  # root may read everything
            for path in folder.parent.glob("line.db*"):
                path.chmod(0o666)
            os.seteuid(65534)
        with FolderSource(folder, settle_s=0) as source:
            drain(line, source)


def test_a_file_that_may_not_be_read_gets_a_row(bundle: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="inspect-xai-") as name:
        place = Path(name)
        place.chmod(0o777)
        folder, db = place / "in", f"sqlite:///{place / 'line.db'}"
        forbidden = write(folder / "a.png", 1)
        write(folder / "b.png", 2)
        write(folder / "first/c.png", 3)
        forbidden.chmod(0)
        folder.chmod(0o777)
        worker = multiprocessing.get_context("spawn").Process(target=_work_as_nobody, args=(folder, bundle, db))
        worker.start()
        worker.join(120)
        assert worker.exitcode == 0
        found = {row.file_name: (row.verdict, row.reason) for row in rows(db)}
        assert found == {"a.png": ("UNSURE", "BAD_IMAGE"), "b.png": ("OK", "CLEAR"), "c.png": ("OK", "CLEAR")}
        assert "Permission denied" in next(row.failure_message for row in rows(db) if row.file_name == "a.png")
        assert len(list((folder / "_rejected").rglob("a~*.png"))) == 1


def test_a_model_that_puts_out_nan_is_recorded_and_the_next_picture_goes_on(tmp_path: Path, db: str) -> None:
    bundle = spots.spot_bundle(tmp_path / "failing", fails_on_white=True)
    folder = tmp_path / "in"
    write(folder / "b.png", 1)
    (folder / "a.png").write_bytes(hostile.encoded(np.full((32, 32, 3), 255, np.uint8)))
    (folder / "c.png").write_bytes(hostile.encoded(np.full((32, 32, 3), 254, np.uint8)))
    summary = run(folder, bundle, db)
    recorded = {row.file_name: row for row in rows(db)}
    assert (summary.inspected, summary.failed, summary.ok) == (3, 2, 1)
    assert recorded["a.png"].reason == Reason.MODEL_FAILED
    assert recorded["a.png"].verdict == VerdictCode.UNSURE
    assert "NaN" in recorded["a.png"].failure_message
    assert "_archive" in recorded["a.png"].archived_to  # it is a sound picture
    assert recorded["b.png"].verdict == VerdictCode.OK


def test_an_error_nobody_foresaw_is_recorded_and_logged(
    incoming: Path, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter([ZeroDivisionError("by chance"), None, None, None])
    decode = decode_picture

    def sometimes(data: bytes, **options: object) -> object:
        if error := next(calls):
            raise error
        return decode(data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "decode_picture", sometimes)
    summary = run(incoming, bundle, db)
    assert (summary.inspected, summary.failed) == (4, 1)
    (row,) = (row for row in rows(db) if row.failure_kind)
    assert (row.verdict, row.reason, row.failure_kind) == ("UNSURE", "UNFORESEEN", "ZeroDivisionError")
    (record,) = (record for record in caplog.records if record.exc_info)
    assert row.sha256 in record.getMessage()
    assert f"serial {row.serial}" in record.getMessage()


def test_an_explanation_that_fails_leaves_the_verdict(
    incoming: Path, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(stages, "explain_together", fail)
    with Line(bundle, db, device="cpu") as line, FolderSource(incoming, settle_s=0) as source:
        drain(line, source)
    flagged = [row for row in rows(db) if row.verdict != "OK"]
    assert [(row.verdict, row.failure_kind) for row in flagged] == [("UNSURE", "MemoryError"), ("NG", "MemoryError")]
    assert all(row.predicted_label and row.explanation_status == "" for row in flagged)


def test_the_sample_of_ok_pictures_is_the_same_in_every_run() -> None:
    names = [f"{number:08x}" + "0" * 56 for number in np.linspace(0, 2**32 - 1, 1000, dtype=np.int64)]
    chosen = [ExplainRule(ok_share=0.1).why(VerdictCode.OK, name) for name in names]
    assert chosen.count("sample") == 100
    assert ExplainRule(ok_share=1.0).why(VerdictCode.OK, "f" * 64) == "sample"
    assert ExplainRule(ok_share=0.0).why(VerdictCode.OK, "0" * 64) == ""
    assert ExplainRule(ok_share=0.0).why(VerdictCode.NG, "f" * 64) == "ng"


def test_sampled_ok_pictures_are_explained(incoming: Path, bundle: Path, db: str) -> None:
    assert run(incoming, bundle, db, policy=explaining(1.0)).explained == 4
    assert [row.explained_because for row in rows(db)] == ["sample", "sample", "unsure", "ng"]


def test_a_crash_between_recording_and_moving_is_harmless(
    incoming: Path, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Line(bundle, db, device="cpu") as line, FolderSource(incoming, settle_s=0) as source:
        monkeypatch.setattr(source, "move", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            drain(line, source)
    before = rows(db)
    assert len(before) == 4
    summary = run(incoming, bundle, db)
    assert (summary.seen, summary.inspected, summary.already_known) == (4, 0, 4)
    assert rows(db) == before
    assert all(Path(row.archived_to).is_file() for row in before)


def test_a_database_that_is_away_for_a_moment_costs_nothing(
    incoming: Path, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, failures = Store.record, iter([True, True, False])

    def sometimes(store: Store, inspections: Sequence[Inspection]) -> list[RecordedInspection]:
        if next(failures, False):
            raise DatabaseAwayError("away")
        return record(store, inspections)

    monkeypatch.setattr(Store, "record", sometimes)
    with (
        Line(bundle, db, device="cpu", schedule=Schedule(retry_after_s=(0.0, 0.0))) as line,
        FolderSource(incoming, settle_s=0) as source,
    ):
        assert drain(line, source).inspected == 4
    assert len(rows(db)) == 4


def test_a_database_that_stays_away_leaves_the_files_claimed(
    incoming: Path, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise DatabaseAwayError("away")

    monkeypatch.setattr(Store, "record", away)
    with (
        Line(bundle, db, device="cpu", schedule=Schedule(retry_after_s=(0.0,))) as line,
        FolderSource(incoming, settle_s=0) as source,
        pytest.raises(DatabaseAwayError),
    ):
        drain(line, source)
    assert rows(db) == []
    assert len(list((incoming / "_claimed").rglob("*.png"))) == 4
    monkeypatch.undo()
    assert run(incoming, bundle, db).inspected == 4


def test_a_broken_store_ends_the_line_and_is_no_pictures_fault(
    incoming: Path, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "known", refuse)
    with (
        Line(bundle, db, device="cpu") as line,
        FolderSource(incoming, settle_s=0) as source,
        pytest.raises(StoreError),
    ):
        drain(line, source)
    assert rows(db) == []


def test_a_stop_finishes_the_picture_and_gives_the_rest_back(incoming: Path, bundle: Path, db: str) -> None:
    stop = threading.Event()
    with Line(bundle, db, device="cpu") as line, FolderSource(incoming, settle_s=0) as source:
        summary = drain(line, source, stop=stop, on_progress=stop.set)
    assert summary.seen == len(rows(db)) == 1
    assert len(list(incoming.glob("L1/*/*.png"))) == 3
    assert list((incoming / "_claimed").iterdir()) == []


@pytest.mark.parametrize("overlap", [False, True])
def test_pictures_are_recorded_between_the_networks_runs_or_beside_them(
    tmp_path: Path, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    for number in range(6):
        write(tmp_path / f"in/{number}.png", number)
    record, calls = Store.record, iter(range(6))
    meeting = threading.Barrier(2)  # of the record of two pictures, and the network at work on the next
    recorders: list[threading.Thread] = []

    def recording(store: Store, inspections: Sequence[Inspection]) -> list[RecordedInspection]:
        recorders.append(threading.current_thread())
        if overlap and len(recorders) < 3:
            meeting.wait(30)
        return record(store, inspections)

    def scoring(engine: Engine, prepared: PreparedPicture) -> NDArray[np.float32]:
        if next(calls) in (2, 4) and overlap:
            meeting.wait(30)
        return score_windows(engine, prepared)

    monkeypatch.setattr(Store, "record", recording)
    monkeypatch.setattr(stages, "score_windows", scoring)
    schedule = Schedule(overlap=overlap, read_at_once=2, record_at_once=2)
    with (
        Line(bundle, db, device="cpu", policy=explaining(0.0), schedule=schedule) as line,
        FolderSource(tmp_path / "in", settle_s=0) as source,
    ):
        outcomes = line.inspect(source, source.claim(6))
    assert [outcome.inspection_id for outcome in outcomes] == list(range(1, 7))
    assert [thread is threading.main_thread() for thread in recorders] == [not overlap] * 3


@pytest.mark.parametrize("schedule", [Schedule(record_after_s=0), Schedule(waiting_bytes=0)], ids=["time", "memory"])
def test_nothing_judged_waits_long_or_piles_up_before_it_is_recorded(
    incoming: Path, bundle: Path, db: str, schedule: Schedule
) -> None:
    with (
        Line(bundle, db, device="cpu", policy=explaining(1.0), schedule=schedule) as line,
        FolderSource(incoming, settle_s=0) as source,
    ):
        seen: list[int] = []
        line.inspect(source, source.claim(4), after_each=lambda: bool(seen.append(len(rows(db)))))
    assert seen == [0, 1, 2, 3]


def test_a_chunk_half_recorded_is_inspected_again_without_loss(
    incoming: Path, bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a flow does it: the task of that chunk is tried again."""
    record = Store.record

    def away_for_one(store: Store, inspections: Sequence[Inspection]) -> list[RecordedInspection]:
        if len(inspections) == 1:
            raise DatabaseAwayError("it is away")
        return record(store, inspections)

    schedule = Schedule(record_at_once=3, retry_after_s=())
    with Line(bundle, db, device="cpu", schedule=schedule) as line, FolderSource(incoming, settle_s=0) as source:
        claims = source.claim(4)
        with monkeypatch.context() as patched:
            patched.setattr(Store, "record", away_for_one)
            with pytest.raises(DatabaseAwayError):
                line.inspect(source, claims)
        assert len(rows(db)) == 3
        assert [Path(claim.location).exists() for claim in claims] == [True] * 4
        outcomes = line.inspect(source, claims)
    assert [outcome.is_new for outcome in outcomes] == [False, False, False, True]
    assert [row.verdict for row in rows(db)].count(VerdictCode.UNSURE) == 1, "no file was missed"
    assert len(list(incoming.glob("_archive/*/L1/*/*.png"))) == 4


def test_watching_takes_pictures_as_they_come(tmp_path: Path, bundle: Path, db: str) -> None:
    folder, stop = tmp_path / "in", threading.Event()
    folder.mkdir()
    seen = []

    def note() -> None:
        seen.append(1)
        if len(seen) == 2:
            stop.set()

    with Line(bundle, db, device="cpu") as line, FolderSource(folder, settle_s=0) as source:
        threading.Timer(0.05, write, (folder / "a.png", 1)).start()
        threading.Timer(0.15, write, (folder / "b.png", 2)).start()
        summary = drain(line, source, watch_every_s=0.02, stop=stop, on_progress=note)
    assert summary.inspected + summary.failed >= 1
    assert {row.file_name for row in rows(db)} == {"a.png", "b.png"}


def test_a_sidecar_that_comes_late_to_a_line_that_is_stopped_is_counted(tmp_path: Path, bundle: Path, db: str) -> None:
    folder, stop = tmp_path / "in", threading.Event()
    write(folder / "a.png", 1)

    def come_late() -> None:
        (folder / "late.json").write_text('{"serial": "TRUE"}')
        stop.set()

    with Line(bundle, db, device="cpu") as line, FolderSource(folder, settle_s=0) as source:
        assert drain(line, source, watch_every_s=0.02, stop=stop, on_progress=come_late).unmatched == 1


def test_kept_and_remote_files_are_recorded_once_and_stay(incoming: Path, bundle: Path, db: str) -> None:
    for _ in range(2):
        with Line(bundle, db, device="cpu") as line, FolderSource(incoming, settle_s=0, keep=True) as source:
            drain(line, source)
    assert len(rows(db)) == 4
    assert sorted(path.name for path in incoming.iterdir()) == ["L1"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/shop/a.png", hostile.encoded(spots.part(77)))
    memory.pipe("/shop/b.png", b"rubbish")
    try:
        for expected in (2, 0):
            with Line(bundle, db, device="cpu") as line, UrlSource("memory://shop") as remote:
                assert drain(line, remote).inspected == expected
    finally:
        memory.rm("/shop", recursive=True)
    recorded = {row.file_name: row for row in rows(db)}
    assert recorded["a.png"].archived_to == "memory:///shop/a.png"
    assert recorded["b.png"].reason == Reason.BAD_IMAGE


def test_a_remote_chunk_tried_again_still_knows_its_sidecars(
    bundle: Path, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/again/a.png": hostile.encoded(spots.part(78)), "/again/a.json": b'{"serial": "SN78"}'})

    def away(*_: object) -> None:
        raise DatabaseAwayError("it is away")

    try:
        with (
            Line(bundle, db, device="cpu", schedule=Schedule(retry_after_s=())) as line,
            UrlSource("memory://again") as remote,
        ):
            claims = remote.claim(9)
            with monkeypatch.context() as patched:
                patched.setattr(Store, "record", away)
                with pytest.raises(DatabaseAwayError):
                    line.inspect(remote, claims)
            line.inspect(remote, claims)
            assert remote._beside == {}, "what is recorded is forgotten"
    finally:
        memory.rm("/again", recursive=True)
    assert [row.serial for row in rows(db)] == ["SN78"]


def test_a_wrong_pattern_refuses_to_start(bundle: Path, db: str) -> None:
    with pytest.raises(SettingsError):
        Line(bundle, db, intake=IntakeSpec("{line}"))


def test_summaries_count_what_was_new() -> None:
    outcome = Outcome("a", 1, is_new=True, verdict=VerdictCode.NG, explained=True, failed=False, passes=9)
    old = dataclasses.replace(outcome, is_new=False, verdict=None)
    summary = LineSummary("run", "CPU").plus([outcome, old]).plus([outcome])
    assert (summary.seen, summary.inspected, summary.already_known, summary.ng) == (3, 2, 1, 2)
    assert (summary.passes, summary.explained, summary.ok) == (18, 2, 0)


def _work(folder: Path, bundle: Path, db: str) -> None:
    run(folder, bundle, db)


@pytest.mark.slow
def test_two_lines_share_a_folder_and_a_killed_one_loses_nothing(tmp_path: Path, bundle: Path, db: str) -> None:
    folder = tmp_path / "in"
    for number in range(120):
        write(folder / f"{number:03d}.png", number, spot_px=10 * (number % 2))
    open_store(db).close()
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work, args=(folder, bundle, db)) for _ in range(2)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    while len(rows(db)) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers[0].pid is not None
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join()
    run(folder, bundle, db)
    assert Counter(row.file_name for row in rows(db)) == {f"{number:03d}.png": 1 for number in range(120)}
    assert len(list((folder / "_archive").rglob("*.png"))) == 120
    assert list((folder / "_claimed").iterdir()) == []


def white(path: Path, side: int) -> Path:
    """A picture whose every window is over the threshold, and all score alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(hostile.encoded(np.full((side, side, 3), 255, np.uint8)))
    return path


def test_of_a_picture_that_is_flagged_all_over_64_windows_are_explained_and_the_record_says_so(
    tmp_path: Path, bundle: Path, db: str
) -> None:
    white(tmp_path / "in/a.png", 240)  # 10 x 10 windows of 32 px, a quarter shared
    run(tmp_path / "in", bundle, db)
    (row,) = rows(db)
    with open_store(db) as store:
        stored = store.get(row.inspection_id, maps=True)
    assert stored.explanation is not None
    assert len(stored.explanation.tiles) == 64
    assert "windows_left_out" in stored.explanation.notes
    assert (stored.run.settings["max_windows"], stored.run.settings["max_seconds"]) == (64, 600.0)
    with Replayer(bundle, device="cpu") as replayer:
        found = replayer.replay(stored, Path(row.archived_to).read_bytes())
    assert (found.outcome, found.differences) == (ReplayOutcome.HOLDS, ())


def test_a_policy_says_how_many_windows_are_explained(tmp_path: Path, bundle: Path, db: str) -> None:
    white(tmp_path / "in/a.png", 80)
    run(tmp_path / "in", bundle, db, policy=policy_from({"version": "few", "explain": {"max_windows": 3}}))
    with open_store(db) as store:
        explanation = store.get(rows(db)[0].inspection_id).explanation
    assert explanation is not None
    assert (len(explanation.tiles), "windows_left_out" in explanation.notes) == (3, True)
    assert (
        "max_windows" not in policy_from({"version": "1"}).content["explain"]
    )  # kept versions stand for what they did
    with pytest.raises(SettingsError, match="max_windows: found 0, expected at least 1"):
        policy_from({"version": "none", "explain": {"max_windows": 0}})


def test_a_picture_that_takes_long_is_given_back_when_the_line_is_stopped(
    tmp_path: Path, bundle: Path, db: str
) -> None:
    white(tmp_path / "in/a.png", 2400)  # 10,000 windows
    (tmp_path / "in/a.json").write_text('{"serial": "SN1"}')
    with Line(bundle, db, device="cpu") as line, FolderSource(tmp_path / "in", settle_s=0) as source:
        stop, runs = threading.Event(), 0
        engine_run = session.run

        def slow(*arguments: object, **options: object) -> object:
            nonlocal runs
            runs += 1
            stop.set()
            time.sleep(0.25)
            return engine_run(*arguments, **options)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_module, "run", slow)
            assert drain(line, source, stop=stop).seen == 0
        assert 1 < runs < 20  # two seconds are waited for
    assert rows(db) == []
    assert sorted(path.name for path in (tmp_path / "in").glob("*.*")) == ["a.json", "a.png"]
