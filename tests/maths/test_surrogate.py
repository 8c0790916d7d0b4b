"""Predicted mask scores: by hand, as properties, and against scikit-learn-free textbook formulas."""

import numpy as np
import pytest

from inspect_xai.maths import surrogate


def some_masks(rng: np.random.Generator, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Blobs at random places of a 7 x 7 grid, and a smooth score: how much of the cell (2, 5) they show."""
    rows, columns = np.mgrid[:7, :7]
    centers = rng.uniform(0, 7, (n, 2))
    squared = (rows - centers[:, :1, None]) ** 2 + (columns - centers[:, 1:, None]) ** 2
    features = np.exp(-squared / 4).astype(np.float32)
    masks = surrogate.describe_masks(features, cells=(7, 7))
    return masks, 0.05 + 0.9 * features[:, 2, 5].astype(np.float64)


def nothing_unseen(masks: np.ndarray) -> np.ndarray:
    return np.zeros(len(masks))


def test_masks_of_any_resolution_meet_on_one_grid_by_area() -> None:
    fine = np.array([[[0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 1, 1], [4, 4, 1, 3]]], np.float32)
    coarse = np.array([[[0, 2], [4, 1.5]]], np.float32)

    on_grid = [surrogate.describe_masks(features, cells=(2, 2)) for features in (fine, coarse)]

    assert on_grid[0].tolist() == [[0.0, 0.5, 1.0, 0.375]]
    assert np.array_equal(on_grid[0], on_grid[1])


def test_a_grid_that_does_not_divide_the_map_still_averages_by_area() -> None:
    features = np.array([[[0.0, 3.0, 3.0]]], np.float32)  # cells of 1.5: (0 + 3/2) / 1.5 and 3

    assert surrogate.describe_masks(features, cells=(1, 2))[0] == pytest.approx([1 / 3, 1.0])


def test_the_grid_is_the_deepest_blocks_capped() -> None:
    assert surrogate.grid_of([(112, 112), (7, 7)]) == (7, 7)
    assert surrogate.grid_of([(64, 64), (4, 6)]) == (4, 6)
    assert surrogate.grid_of([(64, 64), (14, 16)]) == (7, 7)


def test_a_larger_count_only_adds_masks(rng: np.random.Generator) -> None:
    masks, _ = some_masks(rng)
    blocks = np.zeros(len(masks), np.intp)

    few, many = (surrogate.order_masks(masks, blocks, detail=nothing_unseen(masks), count=count) for count in (10, 25))

    assert np.array_equal(many[:10], few)
    assert len(set(many)) == 25


def test_all_masks_can_be_asked_for_even_where_some_are_alike(rng: np.random.Generator) -> None:
    masks, _ = some_masks(rng, 12)
    twice = np.concatenate([masks, masks])

    order = surrogate.order_masks(twice, np.zeros(24, np.intp), detail=nothing_unseen(twice), count=99)

    assert sorted(order) == list(range(24))
    assert len({int(pick) % 12 for pick in order[:12]}) == 12, "a copy tells nothing new and comes late"


def test_a_mask_of_a_small_block_weighs_more(rng: np.random.Generator) -> None:
    masks, _ = some_masks(rng, 40)
    blocks = np.array([0] * 38 + [1] * 2)

    assert set(surrogate.order_masks(masks, blocks, detail=nothing_unseen(masks), count=2)) == {38, 39}


def test_of_equal_masks_the_finer_block_s_are_looked_at_more(rng: np.random.Generator) -> None:
    masks, _ = some_masks(rng, 20)
    both = np.concatenate([masks, masks])
    blocks = np.repeat([0, 1], 20)
    detail = np.repeat([surrogate.unseen_detail((28, 28), cells=(7, 7)), 0.0], 20)

    seen, unseen = (surrogate.order_masks(both, blocks, detail=found, count=20) for found in (np.zeros(40), detail))

    assert (seen < 20).sum() < (unseen < 20).sum()


def test_of_equal_blocks_the_deepest_is_looked_at_first(rng: np.random.Generator) -> None:
    masks, _ = some_masks(rng, 20)
    order = surrogate.order_masks(np.concatenate([masks, masks]), np.repeat([0, 1], 20), detail=np.zeros(40), count=40)

    assert (order[:20] >= 20).all()


def test_scored_masks_keep_their_scores_and_others_come_near(rng: np.random.Generator) -> None:
    masks, scores = some_masks(rng)
    scored = surrogate.order_masks(masks, np.zeros(len(masks), np.intp), detail=nothing_unseen(masks), count=30)

    predicted = surrogate.predict_scores(masks, scored, scores[scored], detail=nothing_unseen(masks))

    others = np.setdiff1d(np.arange(len(masks)), scored)
    assert np.array_equal(predicted[scored], scores[scored])
    assert np.abs(predicted[others] - scores[others]).mean() < 0.25 * np.abs(scores[others] - scores.mean()).mean()
    assert ((predicted >= 0) & (predicted <= 1)).all()


def test_a_copy_of_a_scored_mask_gets_its_score(rng: np.random.Generator) -> None:
    masks, scores = some_masks(rng, 20)
    twice = np.concatenate([masks, masks[:5]])

    predicted = surrogate.predict_scores(twice, np.arange(20), scores, detail=nothing_unseen(twice))

    np.testing.assert_allclose(predicted[20:], scores[:5], rtol=0.05)


@pytest.mark.parametrize("level", [0.0, 1e-9, 0.3, 1.0])
def test_equal_scores_predict_themselves(level: float, rng: np.random.Generator) -> None:
    masks, _ = some_masks(rng, 20)

    predicted = surrogate.predict_scores(masks, np.arange(10), np.full(10, level), detail=nothing_unseen(masks))

    np.testing.assert_allclose(predicted, max(level, 0.0), atol=1e-6)


def test_masks_that_are_all_alike_do_not_divide_by_zero() -> None:
    masks = np.ones((20, 4))

    order = surrogate.order_masks(masks, np.zeros(20, np.intp), detail=nothing_unseen(masks), count=16)
    predicted = surrogate.predict_scores(masks, order, np.linspace(0.2, 0.4, 16), detail=nothing_unseen(masks))

    assert np.isfinite(predicted).all()


def test_a_block_without_masks_has_a_place_beside_the_others(rng: np.random.Generator) -> None:
    nothing, some = np.zeros((0, 14, 14), np.float32), rng.random((3, 7, 7))
    described = [surrogate.describe_masks(features, cells=(7, 7)) for features in (nothing, some)]
    assert [each.shape for each in described] == [(0, 49), (3, 49)]
