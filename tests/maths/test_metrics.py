"""Metrics: whole curves on 2x2 pictures, slow oracles, and what must hold for any map."""

import doctest
import itertools
import time

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from inspect_xai.errors import ExplanationError
from inspect_xai.maths import metrics
from inspect_xai.maths.sise import rank_map

few = settings(max_examples=30, deadline=None)
truths = npst.arrays(np.bool_, (6, 7)).filter(np.any)
maps = npst.arrays(np.float32, (6, 7), elements=st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.5, 1.0, 3.0]))


def ranked(values: np.ndarray) -> np.ndarray:
    return rank_map(values, values, values)


def test_examples_in_docstrings_hold():
    assert doctest.testmod(metrics).failed == 0


class TestLocalization:
    fused = np.array([[4, 0, 0, 0, 0], [3, 2, 0, 0, 1]], dtype=np.float32)
    truth = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 1]], dtype=bool)
    rank = ranked(fused)  # 0 4 5 6 7 / 1 2 8 9 3

    def test_by_hand(self):
        assert metrics.ebpg(self.fused, self.truth) == pytest.approx(7 / 10)
        assert metrics.iou(self.rank, self.truth) == pytest.approx(1 / 4)  # top 2 of 10 against 3
        assert metrics.iou(self.rank, self.truth, share=0.4) == pytest.approx(3 / 4)
        assert metrics.bbox(self.rank, self.truth) == pytest.approx(2 / 3)
        assert metrics.pointing_game(self.rank, self.truth)
        assert not metrics.pointing_game(self.rank, ~self.truth)

    def test_aupro_by_hand(self):
        # parts: {(0,0), (1,1)} touch at a corner; {(1,4)} stands alone; background 7 pixels, one of them ranked second.
        # found after background shares 0, 1/7 and 1/7
        late = 1 - (1 / 7) / 0.3
        assert metrics.aupro(self.rank, self.truth) == pytest.approx(((1 + late) / 2 + late) / 2)
        assert metrics.aupro(self.rank, self.truth, limit=0.1) == pytest.approx((1 / 2 + 0) / 2)

    @few
    @given(maps, truths, st.sampled_from([0.1, 0.3, 1.0]))
    def test_aupro_equals_the_area_under_curves_drawn_point_by_point(self, fused, truth, limit: float):
        rank = ranked(fused)
        assert metrics.aupro(rank, truth, limit=limit) == pytest.approx(_aupro(rank, truth, limit), abs=1e-12)

    def test_aupro_of_maps_that_know_everything_or_nothing(self):
        truth = np.zeros((64, 64), dtype=bool)
        truth[5:9, 5:9] = truth[40:60, 30:50] = True
        assert metrics.aupro(ranked(truth.astype(np.float32)), truth) == 1
        assert metrics.aupro(ranked(-truth.astype(np.float32)), truth) == 0
        chance = [metrics.aupro(ranked(metrics.random_map((64, 64), seed)), truth) for seed in range(40)]
        assert np.mean(chance) == pytest.approx(0.15, abs=0.02)
        assert metrics.aupro(ranked(truth.astype(np.float32)), np.ones((64, 64), dtype=bool)) == 1

    def test_a_small_defect_counts_as_much_as_a_large_one(self):
        truth = np.zeros((20, 20), dtype=bool)
        truth[0, 0] = truth[10:20, 10:20] = True
        found_large = np.zeros((20, 20), dtype=np.float32)
        found_large[10:20, 10:20] = 2
        found_large[0, 1:] = 1
        found_large[1:9] = 1  # every background pixel up to the limit comes before the small one
        found_large[0, 0] = -1
        assert metrics.aupro(ranked(found_large), truth) == 0.5

    @few
    @given(maps, truths)
    def test_all_stay_in_the_unit_interval(self, fused, truth):
        rank = ranked(fused)
        numbers = [metrics.ebpg(fused, truth), metrics.aupro(rank, truth), metrics.bbox(rank, truth)]
        assert all(0 <= number <= 1 + 1e-12 for number in [*numbers, metrics.iou(rank, truth)])
        assert metrics.ebpg(fused * 7, truth) == pytest.approx(numbers[0])

    def test_a_map_of_zeros_takes_exactly_as_many_pixels_as_asked(self):
        truth = np.zeros((10, 10), dtype=bool)
        truth[0, :5] = True
        nothing = np.zeros((10, 10), dtype=np.float32)
        assert metrics.ebpg(nothing, truth) == 0
        assert metrics.iou(ranked(nothing), truth) == 5 / 20  # reading order

    def test_refuses_signed_maps_other_shapes_and_pictures_without_a_defect(self):
        with pytest.raises(ExplanationError, match=r"smallest value is -3\.0"):
            metrics.ebpg(np.array([[-3.0, 1]]), np.array([[True, False]]))
        with pytest.raises(ExplanationError, match="nan"):
            metrics.ebpg(np.array([[np.nan, 1]]), np.array([[True, False]]))
        for metric in (metrics.ebpg, metrics.iou, metrics.bbox, metrics.pointing_game, metrics.aupro):
            with pytest.raises(ValueError, match=r"shape \(2, 5\).*shape \(3, 5\)"):
                metric(self.rank, np.ones((3, 5), dtype=bool))
            with pytest.raises(ValueError, match="and 0 pixels"):
                metric(self.rank, np.zeros((2, 5), dtype=bool))

    @pytest.mark.parametrize(("pixels", "share", "count"), [(100, 0.29, 29), (40, 0.15, 6), (6, 0.15, 0), (9, 1.0, 9)])
    def test_shares_are_rounded_down_and_not_by_accident(self, pixels: int, share: float, count: int):
        assert metrics.share_of(pixels, share) == count


def _aupro(rank: np.ndarray, truth: np.ndarray, limit: float) -> float:
    """Threshold by threshold, part by part, each part found by flooding."""
    parts: list[set[tuple[int, int]]] = []
    left = set(zip(*np.nonzero(truth), strict=True))
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            pixel = edge.pop()
            part.add(pixel)
            near = {(pixel[0] + i, pixel[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge.extend(near)
        parts.append(part)
    background = int((~truth).sum())
    areas = []
    for part in parts:
        points = []
        for k in range(rank.size + 1):
            taken = rank < k
            found = sum(bool(taken[pixel]) for pixel in part) / len(part)
            points.append(((taken & ~truth).sum() / max(1, background), found))
        area = sum(
            (min(limit, x1) - min(limit, x0)) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points)
        )
        area += max(0.0, limit - points[-1][0]) * points[-1][1]
        areas.append(area / limit)
    return float(np.mean(areas))


class TestPerturbation:
    # The toy of hand-checked curves: the score is the sum of the pixels.
    picture = np.array([[0.4, 0.3], [0.2, 0.1]], dtype=np.float32)[..., np.newaxis]
    rank = np.array([[0, 1], [2, 3]], dtype=np.int32)
    black = np.zeros((2, 2, 1), dtype=np.float32)

    def test_deletion_by_hand(self):
        curve = [float(p.sum()) for p in metrics.exchanged(self.picture, self.black, self.rank, steps=2)]
        assert curve == pytest.approx([1.0, 0.3, 0.0])
        assert metrics.area_under(curve) == pytest.approx(0.4)

    def test_insertion_by_hand(self):
        curve = [float(p.sum()) for p in metrics.exchanged(self.black, self.picture, self.rank, steps=2)]
        assert curve == pytest.approx([0.0, 0.7, 1.0])
        assert metrics.area_under(curve) == pytest.approx(0.6)

    def test_the_default_curve_has_51_pictures_of_even_steps(self, rng):
        picture = np.ones((20, 30, 3), dtype=np.float32)
        rank = ranked(rng.random((20, 30)))
        left = [int(p[..., 0].sum()) for p in metrics.exchanged(picture, np.zeros_like(picture), rank)]
        assert left == [600 - 12 * step for step in range(51)]

    def test_more_steps_than_pixels_go_pixel_by_pixel(self):
        curve = [float(p.sum()) for p in metrics.exchanged(self.picture, self.black, self.rank, steps=8)]
        assert curve == pytest.approx([1, 1, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1, 0])

    def test_the_fill_stands_where_pixels_go(self):
        fill = np.full((2, 2, 1), 9, dtype=np.float32)
        kept = metrics.keep_top(self.picture, self.rank, fill=fill, share=0.5)
        assert kept[..., 0].tolist() == [[pytest.approx(0.4), pytest.approx(0.3)], [9, 9]]
        assert kept.dtype == np.float32

    def test_exactly_15_percent_stay_even_of_a_map_of_zeros(self):
        picture = np.ones((10, 20, 3), dtype=np.float32)
        nothing = np.zeros((10, 20), dtype=np.float32)
        kept = metrics.keep_top(picture, ranked(nothing), fill=np.zeros_like(picture))
        assert kept.sum() == 30 * 3

    @few
    @given(maps, st.integers(1, 60))
    def test_deletion_and_insertion_mirror_each_other(self, fused, steps: int):
        picture, fill = np.full((6, 7, 1), 5, dtype=np.float32), np.full((6, 7, 1), 2, dtype=np.float32)
        gone = list(metrics.exchanged(picture, fill, ranked(fused), steps=steps))
        come = list(metrics.exchanged(fill, picture, ranked(fused), steps=steps))
        assert len(gone) == len(come) == steps + 1
        assert all(np.all(a + b == 7) for a, b in zip(gone, come, strict=True))
        assert np.array_equal(gone[0], picture)
        assert np.array_equal(gone[-1], fill)

    def test_the_picture_seen_through_its_map(self):
        seen = metrics.shown_through(
            np.full((1, 3, 1), 100, dtype=np.float32), np.array([[2, 3, 4]]), fill=np.zeros((1, 3, 1), dtype=np.float32)
        )
        assert seen[..., 0].tolist() == [[0, 50, 100]]


class TestImputation:
    def test_one_pixel_is_the_weighted_mean_of_its_neighbors(self):
        picture = np.array([[12, 6, 12], [6, 200, 6], [12, 6, 24]], dtype=np.float32)[..., np.newaxis]
        removed = np.zeros((3, 3), dtype=bool)
        removed[1, 1] = True
        closed = metrics.imputed(picture, removed, np.random.default_rng(3))
        noise = np.random.default_rng(3).normal(0, metrics.ROAD_NOISE_PX)
        assert closed[1, 1, 0] == pytest.approx(4 * 6 / 6 + (12 + 12 + 12 + 24) / 12 + noise, rel=1e-6)
        assert np.array_equal(closed[~removed], picture[~removed])

    def test_a_corner_has_three_neighbors(self):
        picture = np.array([[200, 10], [20, 30]], dtype=np.float32)[..., np.newaxis]
        removed = np.array([[True, False], [False, False]])
        closed = metrics.imputed(picture, removed, np.random.default_rng(3))
        noise = np.random.default_rng(3).normal(0, metrics.ROAD_NOISE_PX)
        assert closed[0, 0, 0] == pytest.approx(
            (10 / 6 + 20 / 6 + 30 / 12) / (1 / 6 + 1 / 6 + 1 / 12) + noise, rel=1e-6
        )

    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_equals_relaxation_until_nothing_moves(self, rng, share: float):
        picture = (255 * rng.random((9, 11, 3))).astype(np.float32)
        removed = rng.random((9, 11)) < share
        closed = metrics.imputed(picture, removed, np.random.default_rng(5)).astype(np.float64)
        closed[removed] -= np.random.default_rng(5).normal(0, metrics.ROAD_NOISE_PX, (removed.sum(), 3))
        np.testing.assert_allclose(closed, _relaxed(picture, removed), atol=1e-3)

    def test_nothing_removed_changes_nothing_and_everything_removed_is_refused(self, rng):
        picture = rng.random((4, 5, 3)).astype(np.float32)
        assert np.array_equal(metrics.imputed(picture, np.zeros((4, 5), dtype=bool), rng), picture)
        with pytest.raises(ValueError, match="all 20 pixels were removed"):
            metrics.imputed(picture, np.ones((4, 5), dtype=bool), rng)

    def test_is_quick_where_most_of_a_real_picture_is_gone(self, rng):
        picture = (255 * rng.random((224, 224, 3))).astype(np.float32)
        started = time.perf_counter()
        metrics.imputed(picture, rng.random((224, 224)) < 0.8, rng)
        assert time.perf_counter() - started < 20  # an unsymmetric factorization takes minutes

    def test_road_removes_most_relevant_first_then_least(self):
        picture = np.arange(25, dtype=np.float32).reshape(5, 5, 1) * 10
        rank = np.arange(25, dtype=np.int32).reshape(5, 5)
        pictures = list(metrics.road(picture, rank, seed=0, shares=(0.2, 0.4)))
        changed = [sorted(rank[p[..., 0] != picture[..., 0]].tolist()) for p in pictures]
        assert changed == [list(range(5)), list(range(10)), list(range(20, 25)), list(range(15, 25))]
        again = list(metrics.road(picture, rank, seed=0, shares=(0.2, 0.4)))
        assert all(np.array_equal(a, b) for a, b in zip(pictures, again, strict=True))
        assert len(list(metrics.road(picture, rank, seed=0))) == 8


def _relaxed(picture: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Every removed pixel set to the mean of its neighbors, over and over."""
    closed = picture.astype(np.float64)
    closed[removed] = 128
    height, width = removed.shape
    for _ in range(4000):
        before = closed.copy()
        for row, column in zip(*np.nonzero(removed), strict=True):
            total, weights = np.zeros(picture.shape[2]), 0.0
            for i in range(max(0, row - 1), min(height, row + 2)):
                for j in range(max(0, column - 1), min(width, column + 2)):
                    if (i, j) != (row, column):
                        weight = 1 / 6 if i == row or j == column else 1 / 12
                        total, weights = total + weight * closed[i, j], weights + weight
            closed[row, column] = total / weights
        if np.abs(closed - before).max() < 1e-8:
            break
    return closed


class TestNumbers:
    def test_drop_and_increase_by_hand(self):
        full, kept = [0.8, 0.5, 0.4, 0.0], [0.2, 0.5, 0.6, 0.1]
        assert metrics.drop_percent(full, kept).tolist() == pytest.approx([75, 0, 0, 0])
        assert metrics.increase_percent(full, kept).tolist() == [0, 0, 100, 100]
        assert float(metrics.drop_percent(0.5, 0.25)) == 50

    def test_road_combined_by_hand(self):
        assert metrics.road_combined([0.2, 0.0, 1.0, 0.6]) == pytest.approx((0.8 + 0.6) / 4)
        assert metrics.road_combined([0.5] * 8) == 0

    def test_adcc_by_hand(self):
        assert metrics.adcc(coherency=1.0, complexity=0.5, drop=0.5) == pytest.approx(3 / (1 + 2 + 2))
        assert metrics.adcc(coherency=0.0, complexity=0.1, drop=0.1) == 0
        assert metrics.adcc(coherency=0.9, complexity=0.1, drop=1.0) == 0

    def test_coherency_is_correlation_moved_to_the_unit_interval(self, rng):
        first, second = rng.random((2, 8, 8)).astype(np.float32)
        expected = (scipy.stats.pearsonr(first.ravel(), second.ravel()).statistic + 1) / 2
        assert metrics.coherency(first, second) == pytest.approx(expected, rel=1e-5)
        assert metrics.coherency(first, 3 * first + 1) == pytest.approx(1)
        assert metrics.coherency(first, -first) == pytest.approx(0, abs=1e-6)
        assert metrics.coherency(first, np.ones((8, 8))) == 0

    def test_complexity_by_hand(self):
        assert metrics.complexity(np.array([[1, 1, 1, 5], [1, 1, 1, 3]])) == pytest.approx(1.5 / 8)
        assert metrics.complexity(np.full((2, 2), 7)) == 0


class TestAverage:
    def test_of_equal_values_is_that_value(self):
        assert metrics.average([2.5] * 7, seed=1) == metrics.Average(2.5, 2.5, 2.5, 7)

    def test_agrees_with_scipys_bootstrap(self, rng):
        values = rng.exponential(size=60)
        ours = metrics.average(values, seed=1)
        theirs = scipy.stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
        ).confidence_interval
        assert ours.mean == pytest.approx(values.mean())
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)

    def test_same_seed_same_interval(self, rng):
        values = rng.random(20)
        assert metrics.average(values, seed=4) == metrics.average(values, seed=4)
        assert metrics.average(values, seed=4) != metrics.average(values, seed=5)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        hits = 0
        for seed in range(200):
            values = np.random.default_rng(seed).random(40)
            interval = metrics.average(values, seed=seed, confidence=0.9, resamples=200)
            hits += interval.low <= 0.5 <= interval.high
        assert 165 <= hits <= 195

    @pytest.mark.parametrize("values", [[], [0.1, np.nan], [[1.0]]])
    def test_refuses_nothing_and_nan(self, values):
        with pytest.raises(ValueError, match="values to average"):
            metrics.average(values, seed=0)


class TestKnowNothings:
    def test_random_map_is_seeded(self):
        assert np.array_equal(metrics.random_map((4, 5), 1), metrics.random_map((4, 5), 1))
        assert not np.array_equal(metrics.random_map((4, 5), 1), metrics.random_map((4, 5), 2))

    def test_center_map_peaks_in_the_middle_and_is_symmetric(self):
        hill = metrics.center_map((9, 15))
        assert np.unravel_index(hill.argmax(), hill.shape) == (4, 7)
        assert hill[4, 7] == 1
        np.testing.assert_allclose(hill, hill[::-1, ::-1], rtol=1e-6)
        # one standard deviation, a quarter of the height, from the center
        assert metrics.center_map((101, 1))[25, 0] == pytest.approx(np.exp(-0.5 * (25 / 25.25) ** 2), rel=1e-5)
