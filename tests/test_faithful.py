"""Faithfulness with every explanation: against the network by hand, beside chance, switched off, on several windows."""

import numpy as np
import pytest

from inspect_xai.maths import metrics, sise
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.pipeline.explain import Explainer
from inspect_xai.pipeline.faithful import PASSES, order_of, random_blobs
from inspect_xai.records import Method, Status
from tests.test_audit import SIDE, bundle_of


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
        explainer.method = Method.CENTRE
        blind = [explainer(picture, target="pit").faithfulness for picture in pictures]

    assert all(found["deletion_percent"] < 5 for found in true), "without the pit there is no score"
    assert np.mean([found["deletion_percent_random"] for found in true]) > 50
    assert np.mean([found["deletion_percent"] for found in blind]) > 50
    random = [[found["deletion_percent_random"] for found in each] for each in (true, blind)]
    assert random[0] == random[1], "chance depends on the picture alone"
    assert len(set(random[0])) > 1, "and differs from picture to picture"


def test_the_cost_is_counted_apart_and_can_be_saved(honest: ModelBundle):
    with Explainer(honest, device="cpu", threads=1) as explainer:
        measured = explainer(pitted(), target="pit")
        explainer.faithfulness = False
        bare = explainer(pitted(), target="pit")

    assert measured.faithfulness["passes"] == PASSES == 8
    assert measured.passes == bare.passes
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
    assert steps < 0.1 * drawn.std() * 5, "neighbours are alike: blobs, not dots"


def test_ties_and_gaps_make_a_whole_rank_map():
    assert order_of(np.array([[7, 3], [3, 90]])).tolist() == [[2, 0], [1, 3]]
