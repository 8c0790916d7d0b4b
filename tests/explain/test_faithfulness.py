"""Faithfulness with every explanation: against the network by hand, beside chance, switched off, on several windows."""

import dataclasses
import shutil
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from sqlalchemy import text

from benchmarks.support import stored
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.faithfulness import PASSES, random_blobs
from inspect_xai.maths import metrics, sise
from inspect_xai.maths.sise import k_smallest, order_of
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import Inspection, Method, Status
from inspect_xai.reports import labels
from inspect_xai.storage.report_queries import DRIFT_FEATURES, ReportQueries
from inspect_xai.storage.review_queue import Desk
from inspect_xai.storage.review_reasons import ReviewReason
from inspect_xai.storage.store import open_store
from inspect_xai.web import view_models
from inspect_xai.web.i18n import Words
from inspect_xai.web.view_models import sheet
from tests.support.hand_built import SIDE, bundle_of

UTC = ZoneInfo("UTC")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return bundle_of(tmp_path_factory.mktemp("faithful"), "bright")


def pitted(row: int = 5, column: int = 9) -> np.ndarray:
    picture = np.full((SIDE, SIDE), 128, np.uint8)
    picture[row : row + 5, column : column + 5] = 240
    return picture


def test_numbers_are_the_networks_own_answers(honest: ModelBundle):
    with Explainer(honest, device="cpu", threads=1, baseline="black") as explainer:
        found = explainer(pitted(), target="pit")
        window = pitted()[..., None].astype(np.float32)
        full = float(explainer.engine.predict(window[None])[0, 0])
        nothing = np.zeros_like(window)

        def score(kept: np.ndarray) -> float:
            return float(explainer.engine.predict(np.where(kept[..., None], window, nothing)[None])[0, 0])

        top = [sise.top_k(found.rank, int(share * SIDE**2)) for share in (0.15, 0.05, 0.1, 0.2)]
        shown, left = score(top[0]), [score(~taken) for taken in top[1:]]

    assert found.faithfulness["drop_percent"] == pytest.approx(100 * max(0, full - shown) / full, abs=1e-3)
    assert found.faithfulness["increase_percent"] == (100 if shown > full else 0)
    assert found.faithfulness["deletion_percent"] == pytest.approx(100 * np.mean(left) / full, abs=1e-3)
    assert set(found.faithfulness) == {
        *(f"{name}_percent{beside}" for name in ("drop", "increase", "deletion") for beside in ("", "_random")),
        "passes",
    }


def test_a_true_map_beats_blobs_and_a_blind_one_does_not(honest: ModelBundle):
    rng = np.random.default_rng(0)
    pictures = [pitted(*rng.integers(2, 24, 2)) for _ in range(6)]
    with Explainer(honest, device="cpu", threads=1, baseline="black") as explainer:
        true = [explainer(picture, target="pit").faithfulness for picture in pictures]
        knows_nothing = dataclasses.replace(explainer.settings, method=Method.CENTER)
        blind = [explainer(picture, target="pit", settings=knows_nothing).faithfulness for picture in pictures]

    assert all(found["deletion_percent"] < 5 for found in true), "without the pit there is no score"
    assert np.mean([found["deletion_percent_random"] for found in true]) > 50
    assert np.mean([found["deletion_percent"] for found in blind]) > 50
    random = [[found["deletion_percent_random"] for found in each] for each in (true, blind)]
    assert random[0] == random[1], "chance depends on the picture alone"
    assert len(set(random[0])) > 1, "and differs from picture to picture"


def test_the_cost_is_counted_apart_and_can_be_saved(honest: ModelBundle):
    with Explainer(honest, device="cpu", threads=1) as explainer:
        measured = explainer(pitted(), target="pit")
        bare = explainer(pitted(), target="pit", settings=dataclasses.replace(explainer.settings, faithfulness=False))

    assert measured.faithfulness["passes"] == PASSES == 8
    assert measured.forward_passes == bare.forward_passes
    assert "faithfulness" in measured.timings_ms
    assert bare.faithfulness == {}
    assert "faithfulness" not in bare.timings_ms
    np.testing.assert_array_equal(measured.fused, bare.fused)


def test_without_a_map_nothing_is_measured(honest: ModelBundle):
    with Explainer(honest, device="cpu", threads=1) as explainer:
        found = explainer(np.full((SIDE, SIDE), 128, np.uint8), target="pit")

    assert found.status is not Status.EXPLAINED
    assert found.faithfulness == {}


def test_the_strongest_window_is_measured(honest: ModelBundle):
    wide = np.full((SIDE, 3 * SIDE), 128, np.uint8)
    wide[5:10, 70:75] = 240
    with Explainer(honest, device="cpu", threads=1, baseline="black") as explainer:
        found = explainer(wide, target="pit")

    assert found.faithfulness["deletion_percent"] < 5
    assert found.faithfulness["passes"] == PASSES, "one window, however many there are"


def test_random_blobs_know_nothing_and_take_exactly_as_many_pixels():
    drawn = random_blobs((40, 64), seed=3)
    rank = order_of(-drawn)

    assert sorted(rank.ravel()) == list(range(40 * 64))
    assert metrics.top_k(rank, 384).sum() == 384
    np.testing.assert_array_equal(drawn, random_blobs((40, 64), seed=3))
    assert not np.array_equal(drawn, random_blobs((40, 64), seed=4))
    steps = np.abs(np.diff(drawn, axis=1)).mean()
    assert steps < 0.1 * drawn.std() * 5, "neighbors are alike: blobs, not dots"


def test_ties_and_gaps_make_a_whole_rank_map():
    assert order_of(np.array([[7, 3], [3, 90]])).tolist() == [[2, 0], [1, 3]]


@pytest.mark.parametrize("values", [[[7, 3], [3, 90]], [[0.5, -1.0, 0.5], [0.5, 2.0, -1.0]]])
def test_the_first_ones_are_those_that_a_whole_order_puts_first(values: list[list[float]]):
    given = np.array(values)
    for count in range(given.size + 1):
        np.testing.assert_array_equal(k_smallest(given, count), order_of(given) < count)
    assert k_smallest(np.array([[7, 3], [3, 90]]), 1).tolist() == [[False, True], [False, False]], "of ties the first"


def recorded(number: int, faithfulness: dict[str, float]) -> Inspection:
    explained = dataclasses.replace(
        stored.explanation(np.random.default_rng(number)), faithfulness=faithfulness, notes=()
    )
    given = stored.inspection(number, explained=explained)
    return dataclasses.replace(given, verdict=dataclasses.replace(given.verdict, score=0.99), explain_reason="ng")


def numbers(drop: float, drop_random: float, deletion: float, deletion_random: float) -> dict[str, float]:
    return {
        "drop_percent": drop,
        "drop_percent_random": drop_random,
        "increase_percent": 0.0,
        "increase_percent_random": 100.0,
        "deletion_percent": deletion,
        "deletion_percent_random": deletion_random,
        "passes": 8.0,
    }


def test_numbers_are_columns_of_the_record_and_wait_on_the_desk(database_url: str):
    true, chance = numbers(10, 90, 5.5, 80), numbers(90, 90, 80.25, 80)
    with open_store(database_url) as store:
        stored.prepared(store)
        store.record([recorded(1, true), recorded(2, chance), recorded(3, {})])
        rows = {row.inspection_id: row for row in store.find()}
        with store.database.read() as connection:
            columns = connection.execute(text("SELECT * FROM explanation ORDER BY id")).mappings().all()
            overview = connection.execute(text("SELECT * FROM inspection_overview ORDER BY inspection_id")).mappings()
            overview = overview.all()
        found = ReportQueries(store.database).features(stored.NOON, stored.NOON + timedelta(days=1), most=100)
        Desk(store.database).enqueue_new()
        with store.database.read() as connection:
            why = dict(connection.execute(text("SELECT inspection_id, reason FROM review_queue_item")).tuples().all())

    assert rows[1].deletion_percent == 5.5
    assert (rows[2].drop_percent, rows[2].deletion_percent_random) == (90, 80)
    assert rows[3].drop_percent is None
    assert [row["faithfulness_passes"] for row in columns] == [8, 8, None]
    assert [row["increase_percent_random"] for row in columns] == [100, 100, None]
    assert overview[0]["deletion_percent"] == 5.5
    watched = [each.values[0, DRIFT_FEATURES.index("faithfulness_percent")] for each in found.values()]
    assert watched[1:] == [74.5, -0.25], "of the stations S1 and S2"
    assert why == {1: ReviewReason.NG, 2: ReviewReason.WEAK_EXPLANATION, 3: ReviewReason.NG}


def test_the_words_say_which_it_is():
    assert labels.faithfulness_in_words({}) == ""
    assert labels.faithfulness_in_words(numbers(10, 90, 5.5, 80)) == (
        "without what the map marks 6 % of the score is left (as much anywhere: 80 %); "
        "its top 15 % alone keep 90 % (anywhere: 10 %)"
    )
    assert labels.faithfulness_in_words(numbers(90, 90, 80.25, 80)).startswith("no better than chance: ")


@pytest.mark.parametrize(
    ("language", "true", "chance"),
    [
        ("en", "leaves 5.5% of the score, taking away as much anywhere 80%", "Weak map: what it marks"),
        ("de", "bleiben 5,5% des Werts; ohne ebenso viel irgendwo 80%", "Schwache Karte: Was sie markiert"),
    ],
)
def test_the_inspection_page_says_it_in_one_line(
    language: str, true: str, chance: str, tmp_path: Path, sqlite_template: Path
):
    shutil.copy(sqlite_template, tmp_path / "store.db")
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        stored.prepared(store)
        store.record([recorded(1, numbers(10, 90, 5.5, 80)), recorded(2, numbers(90, 90, 80.25, 80)), recorded(3, {})])
        sheets = [sheet(store.get(number), Words(language, UTC)) for number in (1, 2, 3)]

    assert true in sheets[0].faithful.replace("\xa0", " ").replace(" %", "%")
    assert sheets[1].faithful.startswith(chance)
    assert sheets[2].faithful == ""
    assert [each.is_faithful for each in sheets] == [True, False, True]


def test_notes_of_every_method_have_words_in_both_languages():
    for language in ("en", "de"):
        for code in (
            "scores_predicted",
            "stride_grid",
            "not_settled",
            "knows_nothing",
            "bucket_halved_to_4",
            "head_passes_49",
            "low_score_spread",
        ):
            said = view_models._note(code, Words(language, UTC))
            assert code not in said
            assert "{" not in said
