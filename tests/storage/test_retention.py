"""Retention deletes what its rules name and nothing else, says so in the ledger, and leaves the numbers."""

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from benchmarks.support import stored
from benchmarks.support.stored import NOON
from inspect_xai.errors import DatabaseAwayError, IntakeError, NotFoundError, SettingsError, StoreError
from inspect_xai.intake.archive import holds_one_of, refuse_outside, remove_archived
from inspect_xai.records import Decision, Explanation, Inspection, Review, VerdictCode
from inspect_xai.storage import database
from inspect_xai.storage.blob_store import BlobStore
from inspect_xai.storage.retention import DataKind, Retention, Rule
from inspect_xai.storage.store import Store, open_store
from tests.conftest import Run

FROM_NOW_ON = timedelta(hours=-1)  # an age that every file has reached


class Calendar:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Calendar:
    return Calendar()


@pytest.fixture
def maps_at(tmp_path: Path) -> Path:
    return tmp_path / "maps"


@pytest.fixture(params=["in the database", "in a blob store"])
def store(
    request: pytest.FixtureRequest, database_url: str, clock: Calendar, maps_at: Path, rng: np.random.Generator
) -> Iterator[Store]:
    """Two explained inspections of LOT0 and one of LOT1, which shares the maps of the first."""
    blob_store = str(maps_at) if request.param == "in a blob store" else ""
    with open_store(database_url, clock=clock, blob_store=blob_store) as opened:
        stored.prepared(opened)
        first, second = stored.explanation(rng), stored.explanation(rng)
        opened.record([stored.inspection(n, explained=e) for n, e in ((1, first), (2, second), (11, first))])
        yield opened


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.ixm"))


def fused(store: Store, inspection_id: int) -> object:
    explanation = store.get(inspection_id, maps=True).explanation
    assert explanation is not None
    return explanation.fused


def test_without_a_rule_nothing_goes(store: Store, clock: Calendar) -> None:
    clock.now += timedelta(days=100_000)
    assert Retention(store.database).plan().is_empty


def test_maps_go_and_numbers_stay(store: Store, clock: Calendar, maps_at: Path) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("housing", DataKind.MAP, 30), by="Ada")
    clock.now += timedelta(days=29)
    assert retention.plan().is_empty
    clock.now += timedelta(days=2)
    plan = retention.plan()
    assert (len(plan.blob_ids), plan.pictures, plan.inspection_ids, plan.held) == (6, (), (), 0)
    before = store.get(1).explanation
    assert before is not None
    assert fused(store, 1) is not None  # a plan deletes nothing
    retention.execute(plan, by="Ada", remove_picture=_never)
    found = store.get(1, maps=True).explanation
    assert found is not None
    assert (found.fused, found.maps_deleted) == (None, True)
    assert (found.regions, found.coverage, found.forward_passes) == (
        before.regions,
        before.coverage,
        before.forward_passes,
    )
    assert files(maps_at) == []
    assert store.ledger.events(kind="retention")[0].facts["by"] == "Ada"
    assert store.ledger.verify().holds
    assert retention.plan().is_empty


def test_a_map_that_a_held_part_shares_stays(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.MAP, 30), by="Ada")
    hold = retention.place_hold(reason="complaint 7", by="Bob", lot="LOT1")
    clock.now += timedelta(days=31)
    plan = retention.plan()
    assert (len(plan.blob_ids), plan.held) == (3, 1)
    retention.execute(plan, by="Ada", remove_picture=_never)
    assert fused(store, 1) is not None
    assert fused(store, 2) is None
    assert fused(store, 3) is not None
    assert [each.reason for each in retention.holds()] == ["complaint 7"]
    assert retention.release_hold(hold, by="Bob")
    assert not retention.release_hold(hold, by="Bob")
    assert len(retention.plan().blob_ids) == 3
    assert store.ledger.verify().holds


def test_a_hold_placed_after_the_plan_is_obeyed(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    for kind in DataKind:
        retention.set_rule(Rule("", kind, 30), by="Ada")
    clock.now += timedelta(days=31)
    plan = retention.plan()
    assert (len(plan.blob_ids), len(plan.pictures), len(plan.inspection_ids)) == (6, 3, 3)
    retention.place_hold(reason="complaint 8", by="Bob")
    removed: list[str] = []
    retention.execute(plan, by="Ada", remove_picture=removed.append)
    assert removed == []
    assert fused(store, 1) is not None
    assert retention.plan().held == 3


def test_a_rule_of_the_product_goes_before_the_general_one(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.ROW, 1), by="Ada")
    retention.set_rule(Rule("housing", DataKind.ROW, 10), by="Ada")
    retention.set_rule(Rule("housing", DataKind.ROW, 20), by="Ada")
    clock.now += timedelta(days=11)
    assert retention.plan().is_empty
    assert retention.rules() == [Rule("", DataKind.ROW, 1), Rule("housing", DataKind.ROW, 20)]
    assert store.ledger.verify().holds


def test_pictures_go_before_they_are_written_down_as_gone(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("housing", DataKind.PICTURE, 30), by="Ada")
    clock.now += timedelta(days=31)

    def fails(place: str) -> None:
        raise OSError("the archive is away")

    with pytest.raises(OSError, match="archive is away"):
        retention.execute(retention.plan(), by="Ada", remove_picture=fails)
    removed: list[str] = []
    plan = retention.plan()
    retention.execute(plan, by="Ada", remove_picture=removed.append)
    assert removed == ["archive/SN00001.png", "archive/SN00002.png", "archive/SN00011.png"]
    assert retention.plan().is_empty
    assert store.get(1).capture.file_name == "L1/S3/SN00001.png"
    assert store.ledger.verify().holds


def test_a_camera_that_believes_in_1970_costs_no_picture(store: Store, clock: Calendar) -> None:
    given = stored.inspection(30)
    capture = dataclasses.replace(given.capture, captured_at=NOON.replace(year=1970))
    store.record([dataclasses.replace(given, capture=capture)])
    retention = Retention(store.database)
    for kind in DataKind:
        retention.set_rule(Rule("", kind, 30), by="Ada")
    assert retention.plan().is_empty


def test_rows_go_with_their_reviews_and_maps(store: Store, clock: Calendar, database_url: str, maps_at: Path) -> None:
    store.review(1, Review("Ada", Decision.CONFIRM, VerdictCode.NG))
    retention = Retention(store.database)
    retention.place_hold(reason="complaint", by="Bob", lot="LOT1")
    retention.set_rule(Rule("housing", DataKind.ROW, 30), by="Ada")
    retention.set_rule(Rule("housing", DataKind.PICTURE, 30), by="Ada")
    clock.now += timedelta(days=31)
    retention.execute(retention.plan(), by="Ada", remove_picture=[].append)
    with pytest.raises(NotFoundError):
        store.get(1)
    assert fused(store, 3) is not None
    # the pictures went first, so nothing speaks of the two captures any more
    counts = {"capture": 1, "part": 1, "explanation": 1, "review": 0, "map_blob": 3, "block_map": 3}
    assert rows(database_url, *counts) == counts
    assert len(files(maps_at)) in (0, 3)
    assert store.ledger.verify().holds
    event = store.ledger.events(kind="retention")[-1]
    assert event.rows == {"inspection/1": None, "inspection/2": None, "review/1": None}
    [again] = store.record([stored.inspection(1)])
    assert again.inspection_id > 3  # a number is never given twice


def rows(url: str, *tables: str) -> dict[str, int]:
    engine = database.open_engine(url)
    with engine.connect() as connection:
        found = {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in tables}
    engine.dispose()
    return found


def _never(place: str) -> None:
    raise AssertionError(f"{place} was to stay")


def test_maps_deleted_by_retention_come_back_when_recorded_anew(
    store: Store, clock: Calendar, rng: np.random.Generator
) -> None:
    found = store.get(2, maps=True).explanation
    assert found is not None
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.MAP, 1), by="Ada")
    clock.now += timedelta(days=2)
    retention.execute(retention.plan(), by="Ada", remove_picture=_never)
    fresh = np.random.default_rng(20261123)
    stored.explanation(fresh)
    store.record([stored.inspection(40, explained=stored.explanation(fresh))])
    assert np.array_equal(fused(store, 4), found.fused)  # type: ignore[arg-type]


@pytest.fixture
def explained(rng: np.random.Generator) -> Explanation:
    return stored.explanation(rng)


def test_a_store_without_its_blob_store_says_so(database_url: str, maps_at: Path, explained: Explanation) -> None:
    with open_store(database_url, blob_store=str(maps_at)) as store:
        stored.prepared(store).record([stored.inspection(1, explained=explained)])
        assert len(files(maps_at)) == 3
    with open_store(database_url) as store, pytest.raises(StoreError, match="does not lie in the database"):
        store.get(1, maps=True)
    for path in maps_at.rglob("*.ixm"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with open_store(database_url, blob_store=str(maps_at)) as store:
        with pytest.raises(StoreError, match="was changed"):
            store.get(1, maps=True)
        for path in maps_at.rglob("*.ixm"):
            path.unlink()
        with pytest.raises(StoreError, match="is not in the blob store"):
            store.get(1, maps=True)


def test_a_crash_between_file_and_row_leaves_only_what_the_sweep_takes(
    database_url: str, maps_at: Path, explained: Explanation
) -> None:
    with open_store(database_url, blob_store=str(maps_at)) as store:
        store.registry.register_model(stored.FINGERPRINT, stored.CARD)
        with pytest.raises(StoreError, match="no run"):  # the rows are refused, after the files were written
            store.record([stored.inspection(1, explained=explained)])
        assert len(files(maps_at)) == 3
        assert Retention(store.database).sweep_blobs() == []
        assert len(Retention(store.database).sweep_blobs(older_than=FROM_NOW_ON)) == 3
        assert files(maps_at) == []
        stored.prepared(store).record([stored.inspection(1, explained=explained)])
        assert Retention(store.database).sweep_blobs(older_than=FROM_NOW_ON) == []
        assert len(files(maps_at)) == 3


def test_a_blob_store_that_takes_nothing_leaves_no_row(tmp_path: Path, explained: Explanation) -> None:
    (tmp_path / "maps").write_text("a file stands where the folder should be")
    with open_store(f"sqlite:///{tmp_path}/store.db", blob_store=str(tmp_path / "maps")) as store:
        stored.prepared(store)
        with pytest.raises(DatabaseAwayError, match="takes nothing"):
            store.record([stored.inspection(1, explained=explained)])
        assert store.find() == []
        (tmp_path / "maps").unlink()
        assert store.record([stored.inspection(1, explained=explained)])[0].is_new


def test_maps_lie_at_any_fsspec_url(tmp_path: Path, explained: Explanation) -> None:
    with open_store(f"sqlite:///{tmp_path}/store.db", blob_store="memory://maps-of-a-test") as store:
        stored.prepared(store).record([stored.inspection(1, explained=explained)])
        assert fused(store, 1) is not None
        assert Retention(store.database).sweep_blobs(older_than=FROM_NOW_ON) == []


# Names that say more than a name


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "in/_archive").mkdir(parents=True)
    return tmp_path / "in/_archive"


@pytest.mark.parametrize("name", ["SN1.png::evil.png", "plain::name.png", "zip:x::y?z#%2e*[1].png", "memory:a.png"])
def test_a_picture_is_deleted_whatever_it_is_named_and_no_other(archive: Path, name: str) -> None:
    other, due = archive / "SN1.png", archive / name
    for path in (other, due, archive / "SN1.json", due.with_suffix(".json")):
        path.write_bytes(b"x")
    remove_archived(str(due))
    assert sorted(path.name for path in archive.iterdir()) == ["SN1.json", "SN1.png"]
    remove_archived(str(due))  # gone already


def test_a_url_names_one_file_letter_by_letter(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"held")
    (tmp_path / "a.png::b.png").write_bytes(b"due")
    remove_archived(f"file://{tmp_path}/a.png::b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(IntakeError, match="delete it by hand"):
        remove_archived("s3://plant/a.png?versionId=b.png")


def test_a_sidecar_that_two_pictures_share_goes_with_the_last(archive: Path) -> None:
    for name in ("a.png", "a.JPG", "a.json"):
        (archive / name).write_bytes(b"x")
    remove_archived(str(archive / "a.png"))
    assert sorted(path.name for path in archive.iterdir()) == ["a.JPG", "a.json"]
    remove_archived(str(archive / "a.JPG"))
    assert list(archive.iterdir()) == []


def test_what_is_there_still_does_not_count_as_gone(archive: Path) -> None:
    (archive / "a.png").mkdir()
    with pytest.raises(IntakeError, match="cannot be deleted"):
        remove_archived(str(archive / "a.png"))
    raw = archive / "b\udcff.png"  # left in place by --keep, and recorded with its odd byte as hex
    raw.write_bytes(b"x")
    with pytest.raises(IntakeError, match="delete it by hand"):
        remove_archived(str(archive / "b\\xff.png"))
    assert raw.exists()


def test_a_link_lies_where_it_lies(archive: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    (archive / "link.png").symlink_to(outside)
    refuse_outside([str(archive / "link.png")], [str(archive)])
    remove_archived(str(archive / "link.png"))
    assert outside.exists()
    (archive / "other.png").write_bytes(b"x")
    with pytest.raises(SettingsError, match="lies in none of the archive folders"):
        refuse_outside([str(archive / "../../outside.png")], [str(archive)])


@pytest.mark.parametrize("name", ["never-mounted", "empty"])
def test_an_archive_that_is_away_does_not_count_as_deleted(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="see that its disk is mounted"):
        refuse_outside([str(tmp_path / name / "a.png")], [str(tmp_path / name)])


def test_a_hold_placed_while_pictures_go_keeps_the_rest_and_tells_what_is_lost(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.PICTURE, 30), by="Ada")
    clock.now += timedelta(days=31)
    removed: list[str] = []
    holds: list[int] = []

    def remove(place: str) -> None:
        if not removed:  # while the first one goes
            holds.append(retention.place_hold(reason="complaint 9", by="Bob", lot="LOT0"))
        removed.append(place)

    retention.execute(retention.plan(), by="Ada", remove_picture=remove)
    assert removed == ["archive/SN00001.png", "archive/SN00011.png"]  # the second of LOT0 is kept
    assert retention.pictures_lost(holds[0]) == (("SN00001", "archive/SN00001.png"),)
    assert retention.pictures_lost(retention.place_hold(reason="other", by="Bob", serial="SN00002")) == ()
    assert [store.get(number).picture_deleted_at is None for number in (1, 2, 3)] == [False, True, False]
    assert store.ledger.verify().holds


def written_again(number: int, name: str) -> Inspection:
    """An inspection whose picture was read in place, under a name that others had before it."""
    given = stored.inspection(number)
    return dataclasses.replace(given, capture=dataclasses.replace(given.capture, archived_to=name))


def test_a_name_that_was_written_again_goes_when_all_its_parts_may(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.PICTURE, 30), by="Ada")
    store.record([written_again(3, "in/latest.png"), written_again(12, "in/latest.png")])  # of LOT0 and of LOT1
    hold = retention.place_hold(reason="complaint 10", by="Bob", lot="LOT1")
    clock.now += timedelta(days=31)
    others = ["archive/SN00001.png", "archive/SN00002.png"]
    assert [place for _, place in retention.plan().pictures] == others
    retention.release_hold(hold, by="Bob")
    plan = retention.plan()
    assert [place for _, place in plan.pictures] == [*others, "archive/SN00011.png", "in/latest.png", "in/latest.png"]
    retention.place_hold(reason="complaint 11", by="Bob", serial="SN00012")
    removed: list[str] = []
    retention.execute(plan, by="Ada", remove_picture=removed.append)
    assert removed == [*others, "archive/SN00011.png"]
    assert store.ledger.verify().holds


def test_a_name_that_is_written_again_while_pictures_go_stays(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.PICTURE, 30), by="Ada")
    clock.now += timedelta(days=31)
    removed: list[str] = []

    def remove(place: str) -> None:
        if not removed:
            store.record([written_again(12, "archive/SN00002.png")])
        removed.append(place)

    retention.execute(retention.plan(), by="Ada", remove_picture=remove)
    assert removed == ["archive/SN00001.png", "archive/SN00011.png"]
    assert store.ledger.verify().holds


def test_a_picture_that_cannot_go_keeps_no_other(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.PICTURE, 30), by="Ada")
    clock.now += timedelta(days=31)
    removed: list[str] = []

    def remove(place: str) -> None:
        if "SN00001" in place:
            raise IntakeError(f"{place} is locked")
        removed.append(place)

    with pytest.raises(IntakeError, match=r"1 of 3 pictures are not deleted, nor recorded as deleted: .* is locked"):
        retention.execute(retention.plan(), by="Ada", remove_picture=remove)
    assert removed == ["archive/SN00002.png", "archive/SN00011.png"]
    assert [place for _, place in retention.plan().pictures] == ["archive/SN00001.png"]
    assert retention.pictures_lost(retention.place_hold(reason="c", by="Bob", serial="SN00001")) == ()


def test_what_went_before_a_fault_is_written_down(store: Store, clock: Calendar) -> None:
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.PICTURE, 30), by="Ada")
    clock.now += timedelta(days=31)

    def remove(place: str) -> None:
        if "SN00002" in place:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retention.execute(retention.plan(), by="Ada", remove_picture=remove)
    assert [place for _, place in retention.plan().pictures] == ["archive/SN00002.png", "archive/SN00011.png"]


@pytest.mark.parametrize("days", [-1, 36_501, 99_999_999])
def test_absurd_days_are_refused(store: Store, days: int) -> None:
    with pytest.raises(SettingsError, match=f"a rule of {days} days. Expected 0 to 36500 days"):
        Retention(store.database).set_rule(Rule("", DataKind.ROW, days), by="Ada")


def test_absurd_days_of_an_older_version_do_not_stop_the_plan(store: Store, database_url: str) -> None:
    Retention(store.database).set_rule(Rule("", DataKind.ROW, 1), by="Ada")
    engine = database.open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE retention_rule SET keep_days = 99999999"))
    engine.dispose()
    assert Retention(store.database).plan().is_empty


@pytest.mark.parametrize("kind", [DataKind.ROW, DataKind.MAP])
def test_a_map_that_retention_takes_between_file_and_row_is_written_again(
    tmp_path: Path, clock: Calendar, explained: Explanation, kind: DataKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, maps = f"sqlite:///{tmp_path}/store.db", tmp_path / "maps"
    with open_store(url, clock=clock, blob_store=str(maps)) as store:
        stored.prepared(store).record([stored.inspection(1, explained=explained)])
        retention = Retention(store.database)
        retention.set_rule(Rule("", kind, 30), by="Ada")
        clock.now += timedelta(days=31)
        plan, put, puts = retention.plan(), BlobStore.put, []

        def interrupted(blobs: BlobStore, sha256: str, data: bytes) -> None:
            put(blobs, sha256, data)
            puts.append(sha256)
            if len(puts) == 3:  # all files are written, no row is yet
                worker = threading.Thread(
                    target=retention.execute, args=(plan,), kwargs={"by": "A", "remove_picture": _never}
                )
                worker.start()
                worker.join()
                assert files(maps) == []

        monkeypatch.setattr(BlobStore, "put", interrupted)
        store.record([stored.inspection(2, explained=explained)])
        assert len(files(maps)) == 3
        assert fused(store, 2) is not None


def test_a_blob_store_in_a_folder_with_colons(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path / "a::b"))
    blobs.put("ab12", b"map")
    assert (tmp_path / "a::b/ab/ab12.ixm").read_bytes() == b"map"
    assert blobs.get("ab12") == b"map"


def test_a_sweep_takes_what_killed_lines_left_and_no_map(
    cli: Run, tmp_path: Path, explained: Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, maps = f"sqlite:///{tmp_path}/store.db", tmp_path / "maps"
    with open_store(url, blob_store=str(maps)) as store:
        stored.prepared(store).record([stored.inspection(1, explained=explained)])
    kept = files(maps)
    (maps / "ab").mkdir(exist_ok=True)
    left = [maps / "ab/ab12.ixm", maps / "ab/ab12.ixm.0a1b2c3d.part", maps / "ab/ab34.ixm.0a1b2c3d.part"]
    for path in left:
        path.write_bytes(b"half a map")
    for path in left[:2]:
        os.utime(path, (1, 1))  # the third is young: somebody may be writing it
    monkeypatch.setenv("INSPECT_XAI_BLOB_STORE", str(maps))
    code, out, err = cli("retention", "sweep", "--db", url, "--json")
    assert (code, json.loads(out)) == (0, {"removed": ["ab12", "ab12.ixm.0a1b2c3d.part"]}), err
    assert files(maps) == kept
    assert [path.exists() for path in left] == [False, False, True]
    monkeypatch.delenv("INSPECT_XAI_BLOB_STORE")
    code, _, err = cli("retention", "sweep", "--db", url)
    assert (code, "no blob store is named" in err) == (60, True)


def test_a_file_written_again_since_it_was_recorded_is_not_deleted(
    store: Store, clock: Calendar, tmp_path: Path
) -> None:
    """With files left in place a camera may write the next part under the old name, before a line has seen it."""
    places = [tmp_path / f"{number}.png" for number in range(2)]
    for number, place in enumerate(places):
        place.write_bytes(b"part %d" % number)
        sha256 = hashlib.sha256(place.read_bytes()).hexdigest()
        store.record([stored.of_part(stored.inspection(number), sha256, archived_to=str(place))])
    places[0].write_bytes(b"another part")
    retention = Retention(store.database)
    retention.set_rule(Rule("", DataKind.PICTURE, 30), by="Ada")
    clock.now += timedelta(days=31)
    given = {"by": "Ada", "remove_picture": remove_archived, "holds_one_of": holds_one_of}
    with pytest.raises(IntakeError, match=r"0\.png is no longer the file that was recorded"):
        retention.execute(retention.plan(), **given)  # type: ignore[arg-type]
    assert places[0].read_bytes() == b"another part"
    assert not places[1].exists()
    places[0].unlink()
    retention.execute(retention.plan(), **given)  # type: ignore[arg-type]
    assert retention.plan().is_empty
    assert store.ledger.verify().holds
