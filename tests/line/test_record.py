"""Recording: batches, a database that is away or refuses rows, bytes known for another part, versions kept before."""

import gzip
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from benchmarks.support import stored
from inspect_xai.errors import DatabaseAwayError, ExplanationError, PictureError, RefusedError, StoreError
from inspect_xai.intake.identity import by_file
from inspect_xai.intake.sources import Claim
from inspect_xai.line.line import Line
from inspect_xai.line.record import Recorder, in_batches, pipelined
from inspect_xai.line.stages import IntakeSpec, PictureState, Schedule
from inspect_xai.policy import DefaultPolicy, ExplainRule, Policy, policy_from
from inspect_xai.records import Inspection, Part, PictureLimits, Reason, VerdictCode
from inspect_xai.storage.results import RecordedInspection
from inspect_xai.storage.schema import upgrade_schema
from tests.conftest import ROOT
from tests.support import spots

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


class FakeStore:
    """Numbers what it is given; refuses rows that say so, and is away for the first calls."""

    def __init__(self, *, away: int = 0, refuses: Iterable[str] = (), parts: dict[str, Part] | None = None) -> None:
        self.away, self.refuses, self.parts = away, set(refuses), parts or {}
        self.transactions: list[list[Inspection]] = []
        self.same_bytes: list[tuple[int, str, str]] = []

    def record(self, inspections: Sequence[Inspection]) -> list[RecordedInspection]:
        if self.away:
            self.away -= 1
            raise DatabaseAwayError("it is away")
        if self.refuses & {inspection.capture.part.serial for inspection in inspections}:
            raise RefusedError("the database refused a row")
        first = 1 + sum(map(len, self.transactions))
        self.transactions.append(list(inspections))
        return [RecordedInspection(first + index, is_new=True) for index in range(len(inspections))]

    def known(self, sha256s: Sequence[str], fingerprint: str, policy_version: str) -> dict[str, int]:
        assert (fingerprint, policy_version) == ("f" * 64, "7")
        return dict.fromkeys(sha256s[:1], 3)

    def parts_of(self, sha256s: Sequence[str]) -> dict[str, Part]:
        return {sha256: self.parts[sha256] for sha256 in sha256s if sha256 in self.parts}

    def note_same_bytes(self, inspection_id: int, *, file_name: str, part: Part) -> None:
        self.same_bytes.append((inspection_id, file_name, part.serial))


class FakeSource:
    def destination(self, claim: Claim, *, rejected: bool, **_: object) -> str:
        return f"{'rejected' if rejected else 'archive'}/{claim.file_name}"


SOURCE: object = FakeSource()


def recorder(store: FakeStore, retry_after_s: Sequence[float] = ()) -> Recorder:
    return Recorder(
        store,  # type: ignore[arg-type]
        fingerprint="f" * 64,
        policy_version="7",
        run_id="run-1",
        retry_after_s=retry_after_s,
    )


def state(name: str, *, serial: str = "", error: Exception | None = None, **known: object) -> PictureState:
    identity = by_file(f"{serial or name}.png", modified_at=NOON)
    claim = Claim(f"{name}.png", f"in/{name}.png", NOON)
    return PictureState(claim, NOON, identity, sha256=name * 64, size_px=(32, 16), error=error, **known)  # type: ignore[arg-type]


def test_pictures_are_recorded_in_one_transaction_but_those_that_are_known() -> None:
    store = FakeStore()
    done = recorder(store).record(SOURCE, [state("a"), state("b", known_id=9), state("c")])  # type: ignore[arg-type]
    (transaction,) = store.transactions
    assert [inspection.capture.file_name for inspection in transaction] == ["a.png", "c.png"]
    assert [picture.outcome.inspection_id for picture in done] == [1, 9, 2]
    assert [picture.outcome.is_new for picture in done] == [True, False, True]
    assert [picture.destination for picture in done] == ["archive/a.png", "archive/b.png", "archive/c.png"]
    assert recorder(store).known(["x", "y"]) == {"x": 3}


@pytest.mark.parametrize(
    ("error", "reason", "archived_to"),
    [
        (PictureError("no picture"), Reason.BAD_IMAGE, "rejected/a.png"),
        (ExplanationError("NaN"), Reason.MODEL_FAILED, "archive/a.png"),
        (ZeroDivisionError("x" * 3000), Reason.UNFORESEEN, "archive/a.png"),
    ],
)
def test_a_failure_becomes_a_row_with_its_reason(error: Exception, reason: Reason, archived_to: str) -> None:
    store = FakeStore()
    (picture,) = recorder(store).record(SOURCE, [state("a", error=error, duration_ms=4.5)])  # type: ignore[arg-type]
    ((inspection,),) = store.transactions
    assert (inspection.verdict.code, inspection.verdict.reason) == (VerdictCode.UNSURE, reason)
    assert inspection.failure is not None
    assert inspection.failure.kind == type(error).__name__
    assert len(inspection.failure.message) <= 2000
    assert (inspection.capture.archived_to, inspection.capture.height_px, inspection.capture.width_px) == (
        archived_to,
        32,
        16,
    )
    assert (inspection.policy_version, inspection.run_id, inspection.duration_ms) == ("7", "run-1", 4.5)
    assert (picture.outcome.failed, picture.outcome.verdict) == (True, VerdictCode.UNSURE)


def test_a_database_that_is_away_is_called_again(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore(away=2)
    assert len(recorder(store, (0.0, 0.0)).record(SOURCE, [state("a")])) == 1  # type: ignore[arg-type]
    assert caplog.text.count("Next try in 0 s.") == 2
    with pytest.raises(DatabaseAwayError):
        recorder(FakeStore(away=3), (0.0, 0.0)).record(SOURCE, [state("a")])  # type: ignore[arg-type]


def test_of_a_batch_that_is_refused_one_picture_is_recorded_under_its_files_name() -> None:
    store = FakeStore(refuses=["BAD"])
    pictures = [state("a", serial="SN1"), state("b", serial="BAD"), state("c", serial="SN3")]
    done = recorder(store).record(SOURCE, pictures)  # type: ignore[arg-type]
    assert [picture.outcome.failed for picture in done] == [False, True, False]
    rows = [(row.capture.part.serial, row.failure and row.failure.kind) for (row,) in store.transactions]
    assert rows == [("SN1", None), ("b", "RefusedError"), ("SN3", None)]


def test_a_database_that_refuses_even_the_files_name_ends_the_line() -> None:
    with pytest.raises(RefusedError):
        recorder(FakeStore(refuses=["b", "BAD"])).record(SOURCE, [state("b", serial="BAD")])  # type: ignore[arg-type]


def test_bytes_recorded_for_another_part_leave_a_note() -> None:
    store = FakeStore(parts={"a" * 64: Part("SN7"), "b" * 64: Part("b")})
    done = recorder(store).record(SOURCE, [state("a", known_id=4), state("b", known_id=5)])  # type: ignore[arg-type]
    assert [picture.outcome.recorded_for for picture in done] == ["SN7", ""]
    assert store.same_bytes == [(4, "a.png", "a")]


def sizes(batches: Iterable[list[PictureState]]) -> list[int]:
    return [len(batch) for batch in batches]


def test_batches_end_when_they_are_full_late_large_or_the_line_is_stopped() -> None:
    pictures = [state(name) for name in "abcde"]
    stops = iter([False, False, False, True])
    assert sizes(in_batches(pictures, None, Schedule())) == [5]
    assert sizes(in_batches(pictures, None, Schedule(record_at_once=2))) == [2, 2, 1]
    assert sizes(in_batches(pictures, None, Schedule(record_after_s=-1.0))) == [1] * 5
    assert sizes(in_batches(pictures, lambda: next(stops), Schedule(record_at_once=3))) == [3, 1]
    maps = stored.explanation(np.random.default_rng(1))  # 16 x 16 float32
    explained = [state(name, explanation=maps) for name in "abcde"]
    assert sizes(in_batches(explained, None, Schedule(waiting_bytes=16 * 16 * 4))) == [2, 2, 1]


def test_without_overlap_work_is_done_between_the_items() -> None:
    events: list[str] = []

    def items() -> Iterator[int]:
        for number in range(3):
            events.append(f"make {number}")
            yield number

    def work(number: int) -> int:
        events.append(f"work {number}")
        assert threading.current_thread() is threading.main_thread()
        return number * 10

    with ThreadPoolExecutor(1) as worker:
        assert list(pipelined(work, items(), worker=worker, overlap=False)) == [0, 10, 20]
    assert events == ["make 0", "work 0", "make 1", "work 1", "make 2", "work 2"]


def test_with_overlap_work_is_done_while_the_next_item_is_made() -> None:
    meeting = threading.Barrier(2)

    def items() -> Iterator[int]:
        for number in range(3):
            if number:
                meeting.wait(30)  # for the work on the one before
            yield number

    def work(number: int) -> int:
        if number < 2:
            meeting.wait(30)
        return number * 10

    with ThreadPoolExecutor(1) as worker:
        assert list(pipelined(work, items(), worker=worker, overlap=True)) == [0, 10, 20]


def test_work_that_fails_beside_ends_the_pipeline() -> None:
    def work(_: int) -> int:
        raise StoreError("the disk is full")

    with ThreadPoolExecutor(1) as worker, pytest.raises(StoreError, match="disk"):
        list(pipelined(work, range(3), worker=worker, overlap=True))


# A database that a line of 0.1 made (schema 0010) with four policies: 1 and 2 without a file, 7 from one, and 1+all.

PLANT = policy_from(
    {
        "version": "7",
        "explain": {"verdicts": ["NG"], "ok_share": 0.25},
        "product": {"M12": {"method": "grad-cam"}},
        "threshold": [{"station": "S2", "unsure_margin": 0.0}],
        "region": [{"station": "S1", "view": "top", "boxes": [[0, 0, 16, 32]]}],
    }
)
SHARE = DefaultPolicy("1", ExplainRule(ok_share=0.25))
POLICIES: list[tuple[Policy, PictureLimits]] = [
    (SHARE, PictureLimits()),
    (DefaultPolicy("2"), PictureLimits(white_level=4095)),
    (PLANT, PictureLimits()),
    (SHARE.explaining_all(), PictureLimits()),
]


@pytest.fixture
def earlier(tmp_path: Path) -> str:
    file = tmp_path / "line.db"
    file.write_bytes(gzip.decompress((ROOT / "tests/reference/line_0010.db.gz").read_bytes()))
    url = f"sqlite:///{file}"
    upgrade_schema(url)
    return url


def settings_by_run(url: str) -> list[dict[str, object]]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return [json.loads(settings) for (settings,) in connection.execute("SELECT settings FROM run ORDER BY id")]


def test_policies_recorded_by_earlier_versions_keep_their_content_and_runs_their_keys(
    earlier: str, tmp_path: Path
) -> None:
    bundle = spots.spot_bundle(tmp_path)
    for policy, limits in POLICIES:
        Line(bundle, earlier, device="cpu", policy=policy, intake=IntakeSpec(limits=limits)).close()
    *before, first, second, plant, everything = settings_by_run(earlier)
    assert len(before) == 4
    for old, new in zip(before, (first, second, plant, everything), strict=True):
        assert set(new) == set(old)
        assert (new["plan"], new["limits"], new["path_pattern"]) == (old["plan"], old["limits"], old["path_pattern"])
    assert (first["policy_version"], first["ok_share"], first["plan"]) == ("1", 0.25, None)
    assert (plant["policy_version"], plant["ok_share"]) == ("7", 0.25)  # 0.1 wrote what the policy overruled


def test_another_content_under_an_earlier_version_is_refused(earlier: str, tmp_path: Path) -> None:
    bundle = spots.spot_bundle(tmp_path)
    changed: list[tuple[Policy, PictureLimits]] = [
        (DefaultPolicy("1", ExplainRule(ok_share=0.5)), PictureLimits()),
        (DefaultPolicy("2"), PictureLimits()),
        (policy_from(PLANT.content | {"version": "7", "region": []}), PictureLimits()),
        (Policy("1", ExplainRule(ok_share=0.25)), PictureLimits()),  # a file that says the same is another content
    ]
    for policy, limits in changed:
        with pytest.raises(StoreError, match="is kept with another content"):
            Line(bundle, earlier, device="cpu", policy=policy, intake=IntakeSpec(limits=limits))
