"""The store on SQLite and PostgreSQL: what goes in comes out, once, whatever is repeated."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from benchmarks.support import stored
from benchmarks.support.stored import FINGERPRINT, NOON, RUN
from inspect_xai.errors import DatabaseAwayError, NotFoundError, SettingsError, StoreError
from inspect_xai.records import CellAxis, CellGrid, Failure, Part, Profile, Reason, Verdict, VerdictCode
from inspect_xai.storage.store import Store, open_store


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with open_store(database_url) as opened:
        yield stored.prepared(opened)


def counts(
    store: Store, start: datetime, end: datetime, *, by: Sequence[str] = ("verdict",), moment: str = "inspected_at"
) -> dict[tuple[str, ...], int]:
    return {each.group: each.inspections for each in store.stats(start, end, by=by, moment=moment)}


def test_an_explained_inspection_comes_back_as_it_went_in(store: Store, rng: np.random.Generator) -> None:
    given = stored.inspection(1, explained=stored.explanation(rng))
    [recorded] = store.record([given])
    assert recorded.is_new
    found = store.get(recorded.inspection_id, maps=True)
    assert found.capture == given.capture
    assert (found.verdict, found.prediction, found.failure) == (given.verdict, given.prediction, None)
    assert (found.inspected_at, found.run) == (given.inspected_at, RUN)
    assert (found.model.fingerprint, found.model.status, found.model_status) == (FINGERPRINT, "candidate", "candidate")
    assert found.model.card["labels"] == ["crack", "free"]
    before, after = given.explanation, found.explanation
    assert before is not None
    assert after is not None
    assert (after.settings, after.status, after.forward_passes) == (
        before.settings,
        before.status,
        before.forward_passes,
    )
    assert (after.regions, after.notes) == (before.regions, before.notes)
    assert (after.timings_ms, after.faithfulness) == (before.timings_ms, before.faithfulness)
    assert after.coverage == np.mean(before.fused > 1e-3 * before.fused.max())
    assert after.fused is not None
    assert np.abs(after.fused - before.fused).max() <= np.ptp(before.fused) / 8_190 * 1.001
    for was, came in zip(before.tiles[0].blocks, after.tiles[0].blocks, strict=True):
        assert (came.tensor, came.kept_channels, came.note, came.otsu_threshold) == (
            was.tensor,
            was.kept_channels,
            was.note,
            was.otsu_threshold,
        )
        if was.sums is None:
            assert came.sums is None
            assert math.isnan(came.beta)
        else:
            assert came.sums is not None
            assert np.abs(came.sums - was.sums).max() <= np.ptp(was.sums) / 8_190 * 1.001
    assert after.tiles[0].tile == before.tiles[0].tile


def test_how_an_explanation_was_limited_comes_back(store: Store, rng: np.random.Generator) -> None:
    given = stored.explanation(rng)
    tile = given.tiles[0]
    grid = CellGrid(CellAxis(15.0, 4.0), CellAxis(7.5, 4.0))
    blocks = (dataclasses.replace(tile.blocks[0], predicted_scores=4, grid=grid), *tile.blocks[1:])
    settings = dataclasses.replace(given.settings, profile=Profile.QUICK, max_passes=40, budget_s=1.5)
    limited = dataclasses.replace(given, settings=settings, tiles=(dataclasses.replace(tile, blocks=blocks),))
    [recorded] = store.record([stored.inspection(1, explained=limited)])
    found = store.get(recorded.inspection_id).explanation
    assert found is not None
    assert found.settings == settings
    assert isinstance(found.settings.profile, Profile)
    assert [block.predicted_scores for block in found.tiles[0].blocks] == [4, 0, 0]
    assert [block.grid for block in found.tiles[0].blocks] == [grid, None, None]
    written = store.ledger.evidence([recorded.inspection_id])["documents"][f"inspection/{recorded.inspection_id}"]
    told = [block.get("predicted", "left out") for block in written["explanation"]["blocks"]]
    assert ["grid" in block for block in written["explanation"]["blocks"]] == [True, False, False]
    assert store.ledger.verify().holds
    assert told == [4, "left out", "left out"]  # 0 is left out: digests of older rows, which had no such count, hold


def test_maps_come_only_when_asked_for(store: Store, rng: np.random.Generator) -> None:
    [recorded] = store.record([stored.inspection(1, explained=stored.explanation(rng))])
    found = store.get(recorded.inspection_id).explanation
    assert found is not None
    assert found.fused is None
    assert found.tiles[0].blocks[0].sums is None
    assert found.map_bytes > 0
    assert not found.maps_deleted


def test_recording_again_adds_nothing(store: Store, rng: np.random.Generator) -> None:
    chunk = [stored.inspection(number, explained=stored.explanation(rng)) for number in range(3)]
    first = store.record(chunk)
    again = store.record([*chunk, stored.inspection(7), stored.inspection(7)])
    assert [each.inspection_id for each in again[:3]] == [each.inspection_id for each in first]
    assert [each.is_new for each in again] == [False, False, False, True, False]
    assert again[3].inspection_id == again[4].inspection_id
    assert counts(store, NOON, NOON + timedelta(days=1)) == {("NG",): 4}


def test_the_same_bytes_under_another_name_are_the_same_capture(store: Store) -> None:
    given = stored.inspection(1)
    renamed = stored.of_part(given, given.capture.sha256, file_name="copy.png")
    first, second = store.record([given, renamed])
    assert (second.inspection_id, second.is_new) == (first.inspection_id, False)


def test_the_same_part_again_is_another_capture_of_that_part(store: Store) -> None:
    given = stored.inspection(1)
    store.record([given, stored.of_part(given, "b" * 64)])
    assert [each.sha256 for each in store.find(serial="SN00001")] == ["b" * 64, given.capture.sha256]


def test_another_policy_or_model_judges_anew(store: Store) -> None:
    given = stored.inspection(1)
    store.registry.register_model("e" * 64, stored.CARD)
    ids = store.record(
        [given, dataclasses.replace(given, policy_version="2"), dataclasses.replace(given, fingerprint="e" * 64)]
    )
    assert all(each.is_new for each in ids)
    assert store.known([given.capture.sha256, "0" * 64], FINGERPRINT, "2") == {
        given.capture.sha256: ids[1].inspection_id
    }


def test_known_takes_more_names_than_a_statement_does(store: Store) -> None:
    names = [f"{number:064x}" for number in range(1200)]
    store.record([stored.inspection(1100)])
    assert list(store.known(names, FINGERPRINT, "1")) == [names[1100]]


def test_known_never_walks_all_inspections(tmp_path: Path) -> None:
    """On SQLite, which did so for more than a few pictures; a server plans by its statistics."""
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        asked: list[tuple[str, tuple[str, ...]]] = []
        event.listen(store.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2:4]))
        store.known([f"{number:064x}" for number in range(40)], FINGERPRINT, "1")
        [(statement, given)] = asked[-1:]
        with store.database.read() as connection:
            plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given)]
        assert plan[0].startswith("SEARCH capture USING COVERING INDEX sqlite_autoindex_capture_1 (sha256=?)")
        assert plan[1].startswith("SEARCH inspection USING COVERING INDEX sqlite_autoindex_inspection_1 (capture_id=?)")


def test_a_picture_that_did_not_decode_is_an_inspection_with_a_failure(store: Store) -> None:
    given = dataclasses.replace(
        stored.inspection(1),
        verdict=Verdict(VerdictCode.UNSURE, Reason.BAD_IMAGE, "", 0.0, 0.5),
        prediction=None,
        failure=Failure("PictureError", "truncated"),
    )
    [recorded] = store.record([given])
    found = store.get(recorded.inspection_id)
    assert (found.prediction, found.failure, found.explanation) == (None, given.failure, None)
    [summary] = store.day(NOON, NOON + timedelta(hours=1))
    assert (summary.reason, summary.failure_kind, summary.predicted_label) == ("BAD_IMAGE", "PictureError", "")


def test_names_no_database_takes_are_spelled_out(store: Store) -> None:
    given = stored.inspection(1)
    [recorded] = store.record([stored.of_part(given, "c" * 64, file_name="a\x00b\udcff'; DROP TABLE part; -- é🙂")])
    assert store.get(recorded.inspection_id).capture.file_name == "a\\x00b\\udcff'; DROP TABLE part; -- é🙂"


def test_a_score_that_is_no_number_comes_back_as_none(store: Store) -> None:
    given = stored.inspection(1)
    assert given.prediction is not None
    prediction = dataclasses.replace(given.prediction, scores=(float("nan"), 0.25), margin=float("nan"))
    [recorded] = store.record([dataclasses.replace(given, prediction=prediction)])
    found = store.get(recorded.inspection_id).prediction
    assert found is not None
    assert math.isnan(found.scores[0])
    assert found.scores[1] == 0.25
    assert math.isnan(found.margin)


def test_a_chunk_is_written_whole_or_not_at_all(store: Store) -> None:
    stranger = dataclasses.replace(stored.inspection(2), fingerprint="0" * 64)
    with pytest.raises(StoreError, match="no model with fingerprint 0000"):
        store.record([stored.inspection(1), stranger])
    assert store.day(NOON, NOON + timedelta(days=1)) == []
    with pytest.raises(StoreError, match="no run 'other'"):
        store.record([dataclasses.replace(stored.inspection(1), run_id="other")])


def test_a_day_is_half_open_and_in_order(store: Store) -> None:
    store.record([stored.inspection(number) for number in (5, 3, 4)])
    start = NOON + timedelta(seconds=4)
    # a plant's zone: the same moments, told otherwise
    day = store.day(start.astimezone(timezone(timedelta(hours=9))), start + timedelta(seconds=2))
    assert [each.serial for each in day] == ["SN00003", "SN00004"]
    assert day[0].inspected_at == start
    assert day[0].inspected_at.tzinfo is UTC


def test_counts_by_several_fields(store: Store) -> None:
    store.record([stored.inspection(n, code=VerdictCode.OK if n % 2 else VerdictCode.NG) for n in range(4)])
    found = counts(store, NOON, NOON + timedelta(days=1), by=("station", "verdict"))
    assert found == {("S0", "NG"): 1, ("S0", "OK"): 1, ("S1", "OK"): 1, ("S2", "NG"): 1}


def test_a_picture_inspected_late_counts_for_the_day_it_was_taken(store: Store) -> None:
    late = dataclasses.replace(stored.inspection(77), inspected_at=NOON + timedelta(days=30))
    store.record([late])
    day = (late.capture.captured_at, late.capture.captured_at + timedelta(seconds=1))
    assert [each.serial for each in store.find(since=day[0], until=day[1], moment="captured_at")] == ["SN00077"]
    assert store.find(since=day[0], until=day[1]) == []
    assert counts(store, *day, moment="captured_at") == {("NG",): 1}
    assert counts(store, *day) == {}


def test_find_narrows_by_everything_given(store: Store, rng: np.random.Generator) -> None:
    explained = stored.explanation(rng)  # its regions have their middles at (2.5, 4) and (9, 10)
    store.record([stored.inspection(n, explained=explained if n == 12 else None) for n in (1, 12, 13)])
    assert [each.serial for each in store.find(lot="LOT1")] == ["SN00013", "SN00012"]
    assert [each.serial for each in store.find(lot="LOT1", limit=1)] == ["SN00013"]
    assert [each.serial for each in store.find(near_px=(3, 4, 0.5))] == ["SN00012"]
    assert store.find(near_px=(3, 4, 0.4)) == []
    assert store.find(label="free") == []
    assert store.find(verdict="OK") == []
    assert len(store.find(fingerprint="ffff", product="housing", since=NOON, until=NOON + timedelta(seconds=14))) == 2
    assert store.find(fingerprint="%") == []


def test_registering_twice_changes_nothing(store: Store) -> None:
    changed = dataclasses.replace(stored.CARD, version="2")
    assert store.registry.register_model(FINGERPRINT, changed, registered_by="Bob").registered_by == "Ada"
    store.begin_run(dataclasses.replace(RUN, provider="other"))
    [recorded] = store.record([stored.inspection(1)])
    assert store.get(recorded.inspection_id).run == RUN


def test_a_policy_version_means_one_thing(store: Store) -> None:
    store.registry.register_policy("1", {"thresholds": {"crack": 0.5}})
    store.registry.register_policy("1", {"thresholds": {"crack": 0.5}})
    with pytest.raises(StoreError, match="another content"):
        store.registry.register_policy("1", {"thresholds": {"crack": 0.6}})


def test_a_policy_known_by_its_version_alone_gets_its_content_later(store: Store) -> None:
    store.record([stored.inspection(1)])
    store.registry.register_policy("1", {"a": 1})
    with pytest.raises(StoreError, match="another content"):
        store.registry.register_policy("1", {"a": 2})


def test_a_model_is_found_by_the_beginning_of_its_fingerprint(store: Store) -> None:
    store.registry.register_model("fe" * 32, stored.CARD)
    assert store.registry.model("fff").fingerprint == FINGERPRINT
    assert store.registry.model("fe" * 32).fingerprint == "fe" * 32
    with pytest.raises(NotFoundError, match="several models' fingerprints begin with 'f'"):
        store.registry.model("f")
    with pytest.raises(NotFoundError, match="no such model"):
        store.registry.model("%")


def test_pictures_know_the_part_they_were_recorded_for(store: Store) -> None:
    store.record([stored.inspection(1), stored.inspection(12)])
    sha256s = [f"{number:064x}" for number in range(1200)]
    assert store.parts_of(sha256s) == {
        sha256s[1]: Part("SN00001", "housing", "LOT0"),
        sha256s[12]: Part("SN00012", "housing", "LOT1"),
    }
    assert store.inspection_ids() == [1, 2]


def test_no_such_inspection(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no inspection 77"):
        store.get(77)


def test_times_without_a_zone_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="without a zone"):
        store.day(datetime(2026, 1, 1), NOON)  # noqa: DTZ001


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "sqlite:///:memory:", "mysql://x/y", ""])
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(SettingsError):
        open_store(url)


def test_a_missing_file_is_not_made_when_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="inspect-xai db upgrade --db sqlite:///"):
        open_store(f"sqlite:///{tmp_path}/none.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StoreError, match="no SQLite database"):
        open_store(f"sqlite:///{tmp_path}/store.db")


def test_a_server_that_is_not_there_hides_the_password() -> None:
    with pytest.raises(DatabaseAwayError) as caught:
        open_store("postgresql://someone:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_a_chunk_costs_as_many_statements_as_one_inspection(store: Store, rng: np.random.Generator) -> None:
    seen: list[str] = []
    event.listen(store.database.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    counts = []
    for first, last in ((1, 2), (2, 42)):
        store.record([stored.inspection(number, explained=stored.explanation(rng)) for number in range(first, last)])
        counts.append(len(seen))
        seen.clear()

    assert counts[1] <= counts[0] <= 45


def test_the_same_picture_twice_in_a_chunk_is_new_once(store: Store) -> None:
    recorded = store.record([stored.inspection(number) for number in (5, 4, 5)])
    assert [each.is_new for each in recorded] == [True, True, False]
    assert recorded[0].inspection_id == recorded[2].inspection_id < recorded[1].inspection_id
