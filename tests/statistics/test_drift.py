"""Drift alarms, cohort maps and image statistics: by hand, against scipy, and on simulated plants."""

import math

import cv2
import numpy as np
import pytest
import skimage.filters
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import simpson
from scipy.stats import ks_2samp, kstwobign, mannwhitneyu
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from inspect_xai.errors import StudyError
from inspect_xai.statistics import drift
from inspect_xai.statistics.drift import (
    Cell,
    Comparison,
    DriftRules,
    FeatureBaseline,
    Rule,
    compare_day,
    find_alarms,
    learn,
)
from inspect_xai.statistics.image_statistics import picture_statistics
from inspect_xai.statistics.map_cohorts import compare_cohorts, deviation, gather, outliers

few = settings(max_examples=20, deadline=None)
CELL = Cell(("S1", "early"), "brightness")


def quiet_days(rng: np.random.Generator, days: int, *, parts: int = 200, between: float = 0.2) -> list[np.ndarray]:
    """Days that differ a little from each other, as days do."""
    return [rng.normal(rng.normal(0, between), 1, parts) for _ in range(days)]


class TestLearn:
    def test_spreads_are_those_of_the_days(self, rng: np.random.Generator):
        days = quiet_days(rng, 20, parts=50)
        found = learn(days)
        whole = np.sort(np.concatenate(days))
        distances = np.log([ks_2samp(day, whole, method="asymp").statistic for day in days])
        shifts = [2 * mannwhitneyu(day, whole).statistic / (50 * 1000) - 1 for day in days]
        assert np.array_equal(found.values, whole)
        assert (found.distance, found.distance_spread) == pytest.approx((distances.mean(), distances.std(ddof=1)))
        assert found.shift_spread == pytest.approx(np.std(shifts, ddof=1))

    def test_a_large_baseline_is_thinned_along_its_quantiles(self, rng: np.random.Generator):
        days = quiet_days(rng, 30, parts=1000)
        found = learn(days)
        assert found.values.size == 2000
        assert ks_2samp(found.values, np.concatenate(days), method="asymp").statistic <= 1 / 2000

    def test_days_that_resemble_their_neighbors_are_noticed(self):
        slow = [np.full(30, math.sin(day / 3)) + np.linspace(-1, 1, 30) for day in range(40)]
        fast = [np.full(30, (-1.0) ** day) + np.linspace(-1, 1, 30) for day in range(40)]
        assert learn(slow).memory > 0.8
        assert learn(fast).memory == 0

    def test_thin_days_do_not_count_and_too_few_days_are_refused(self, rng: np.random.Generator):
        days = [*quiet_days(rng, 9), rng.normal(0, 1, 7)]
        with pytest.raises(StudyError, match="9 days with 8 parts"):
            learn(days)

    def test_a_feature_that_never_moves_can_be_learnt(self):
        found = learn([np.zeros(40)] * 12)
        assert found.shift_spread > 0
        assert compare_day({CELL: np.zeros(40)}, {CELL: found})[CELL].q == 1


class TestCompareDay:
    def test_equals_scipy_and_statsmodels(self, rng: np.random.Generator):
        quiet = {Cell(("S1",), str(i)): learn(quiet_days(rng, 12, parts=60)) for i in range(5)}
        today = {cell: rng.normal(0.3 * i, 1, 80) for i, cell in enumerate(quiet)}

        found = compare_day(today, quiet)

        for cell, comparison in found.items():
            usual = quiet[cell]
            oracle = ks_2samp(today[cell], usual.values, method="asymp")
            assert comparison.distance == pytest.approx(oracle.statistic, abs=1e-12)
            # The limit law, which errs to the safe side.
            assert oracle.pvalue <= comparison.p_parts < 1.2 * oracle.pvalue + 0.01
            u = mannwhitneyu(today[cell], usual.values).statistic
            assert comparison.shift == pytest.approx(2 * u / (80 * usual.values.size) - 1, abs=1e-12)
            # Twelve days of the baseline and ten of mere chance, whose log distances spread by 0.3.
            spread = math.sqrt((11 * usual.distance_spread**2 + 10 * 0.3**2) / 21 * 13 / 12)
            score = (math.log(oracle.statistic) - usual.distance) / spread
            assert comparison.p_days == pytest.approx(student.sf(score, 21), rel=1e-9)
            assert comparison.p == max(comparison.p_parts, comparison.p_days)
        adjusted = multipletests([c.p for c in found.values()], method="fdr_bh")[1]
        assert [c.q for c in found.values()] == pytest.approx(adjusted.tolist(), rel=1e-12)

    def test_days_that_are_mere_chance_spread_as_the_prior_says(self):
        """Log of Kolmogorov's law, by Simpson's rule over its density."""
        x = np.linspace(0.2, 4, 4001)
        density, log = kstwobign.pdf(x), np.log(x)
        mean = simpson(density * log, x=x)
        assert math.sqrt(simpson(density * (log - mean) ** 2, x=x)) == pytest.approx(drift._CHANCE_SPREAD, abs=0.01)

    @pytest.mark.parametrize("between", [0.0, 0.3])
    def test_ten_days_of_baseline_see_a_change_and_are_not_fooled(self, between: float):
        """Days of 30 parts: of 400 quiet ones hardly any is rarer than 1 in 100 by far, of 2 sigmas off nearly all."""
        rng = np.random.default_rng(5)
        quiet = [learn(quiet_days(rng, 10, parts=30, between=between)) for _ in range(400)]
        chances = [
            [compare_day({CELL: day + off}, {CELL: usual})[CELL].p for usual, [day] in zip(quiet, days, strict=True)]
            for off in (0, 2)
            for days in [[quiet_days(rng, 1, parts=30, between=between) for _ in quiet]]
        ]
        assert np.mean(np.array(chances[0]) < 0.001) <= 0.01
        assert np.mean(np.array(chances[1]) < 0.01) > 0.95

    def test_shift_by_hand_counts_ties_half(self):
        """Of 3 baseline values today's 2 lies above one and beside one: (1 + 1/2) / 3 x 2 - 1 = 0."""
        quiet = FeatureBaseline(np.array([1.0, 2.0, 3.0]), 10, -3.0, 0.5, 0.1, 0.0)
        rules = DriftRules(fewest=1)
        assert compare_day({CELL: [2.0]}, {CELL: quiet}, rules=rules)[CELL].shift == 0
        assert compare_day({CELL: [9.0]}, {CELL: quiet}, rules=rules)[CELL].shift == 1

    def test_many_parts_make_a_trifle_significant_but_not_unusual(self, rng: np.random.Generator):
        """0.2 sigma with 20,000 parts: certain for a test of parts, nothing special for days that differ by 0.2."""
        quiet = learn(quiet_days(rng, 30))
        found = compare_day({CELL: rng.normal(0.2, 1, 20_000)}, {CELL: quiet})[CELL]
        assert found.p_parts < 1e-6
        assert found.q > 0.05

    def test_parts_without_the_feature_are_left_out(self, rng: np.random.Generator):
        quiet = learn(quiet_days(rng, 12))
        today = np.r_[rng.normal(0, 1, 40), np.full(500, math.nan)]
        assert compare_day({CELL: today}, {CELL: quiet})[CELL].parts == 40
        assert compare_day({CELL: today[33:]}, {CELL: quiet}) == {}
        assert compare_day({Cell(("S9",), "new"): today}, {CELL: quiet}) == {}

    @few
    @given(st.integers(0, 2**32 - 1))
    def test_order_of_parts_and_units_do_not_matter(self, seed: int):
        rng = np.random.default_rng(seed)
        days, today = quiet_days(rng, 10, parts=30), rng.normal(0.5, 1, 50)
        plain = compare_day({CELL: today}, {CELL: learn(days)})[CELL]
        doubled = compare_day({CELL: 2 * rng.permutation(today) + 7}, {CELL: learn([2 * day + 7 for day in days])})[
            CELL
        ]
        assert doubled == plain


QUIET = FeatureBaseline(np.arange(3.0), 30, math.log(0.05), 0.3, 0.05, 0.0)


def series(*days: tuple[float, float]) -> list[dict[Cell, Comparison]]:
    """Days of one cell, each with a distance and a shift; large distances are significant."""
    return [
        {CELL: Comparison(100, distance, shift, 0.0, 0.0, 0.0, 1e-4 if distance > 0.1 else 0.5)}
        for distance, shift in days
    ]


CALM, LOUD, SIGNIFICANT_BUT_SMALL = (0.05, 0.0), (0.4, 0.0), (0.12, 0.0)


class TestFindAlarms:
    def raised(self, days: list[dict[Cell, Comparison]], **rules: float) -> list[tuple[Rule, int, int]]:
        found = find_alarms(days, {CELL: QUIET}, rules=DriftRules(**rules))  # type: ignore[arg-type]
        return [(alarm.rule, alarm.day, alarm.since) for alarm in found]

    def test_a_single_loud_day_is_no_alarm_and_two_are_one(self):
        assert self.raised(series(CALM, LOUD, CALM, LOUD, CALM)) == []
        assert self.raised(series(CALM, LOUD, LOUD, CALM)) == [(Rule.DAYS, 2, 1)]

    def test_an_alarm_is_raised_once_until_calm_days_arm_it_again(self):
        assert self.raised(series(*[LOUD] * 6)) == [(Rule.DAYS, 1, 0)]
        assert self.raised(series(LOUD, LOUD, CALM, LOUD, LOUD)) == [(Rule.DAYS, 1, 0)]
        assert self.raised(series(LOUD, LOUD, CALM, CALM, LOUD, LOUD)) == [(Rule.DAYS, 1, 0), (Rule.DAYS, 5, 4)]

    def test_a_significant_trifle_is_none(self):
        assert self.raised(series(*[SIGNIFICANT_BUT_SMALL] * 20)) == []

    def test_a_day_without_the_cell_neither_feeds_nor_ends_a_run(self):
        days = series(CALM, LOUD, LOUD)
        days.insert(2, {})
        assert self.raised(days) == [(Rule.DAYS, 3, 1)]

    def test_ewma_by_hand(self):
        """Weight 0.5, shift 0.4 each day: averages 0.2, 0.3, 0.35; with the floor at 0.34 the third is over it."""
        days = series(*[(0.05, 0.4)] * 4)
        assert self.raised(days, weight=0.5, shift=0.34, sigmas=1.0) == [(Rule.EWMA, 2, 2)]

    def test_ewma_looks_both_ways_and_forgives_what_cancels(self):
        assert self.raised(series(*[(0.05, -0.4)] * 9), weight=0.5, shift=0.34, sigmas=1.0)[0][0] is Rule.EWMA
        assert self.raised(series(*[(0.05, 0.4), (0.05, -0.4)] * 9), weight=0.5, shift=0.34, sigmas=1.0) == []

    def test_what_the_alarm_names(self):
        alarm = find_alarms(series(LOUD, (0.5, -0.3)), {CELL: QUIET})[0]
        assert (alarm.cell.stratum, alarm.cell.feature) == (("S1", "early"), "brightness")
        assert (alarm.size, alarm.shift, alarm.q) == (0.5, -0.3, 1e-4)

    def test_no_days_no_alarms(self):
        assert find_alarms([], {}) == ()


class TestSimulatedPlant:
    """Four strata x five features; benchmarks/drift.py has years."""

    cells = tuple(Cell((stratum,), feature) for stratum in "ABCD" for feature in "vwxyz")

    def run(self, *, days: int, seed: int, moved: float = 0.0) -> tuple[drift.Alarm, ...]:
        """After 10 days feature v of stratum A moves by `moved` standard deviations of the parts."""
        rng = np.random.default_rng(seed)
        quiet = {cell: learn(quiet_days(rng, 30, parts=100)) for cell in self.cells}
        compared = []
        for day in range(days):
            today = {cell: quiet_days(rng, 1, parts=100)[0] for cell in self.cells}
            if day >= 10:
                today[self.cells[0]] += moved
            compared.append(compare_day(today, quiet))
        return find_alarms(compared, quiet)

    def test_a_quiet_quarter_is_quiet(self):
        assert len(self.run(days=90, seed=1)) == 0

    @pytest.mark.parametrize(("moved", "within"), [(1.5, 2), (1.0, 8)])
    def test_a_planted_shift_is_seen_in_days_and_named(self, moved: float, within: int):
        alarms = self.run(days=20, seed=2, moved=moved)
        assert {alarm.cell for alarm in alarms} == {self.cells[0]}
        assert 10 <= alarms[0].day < 10 + within


class TestCohort:
    def test_mean_and_spread_by_hand(self):
        """Maps are brought to a total of 1: [1, 0] and [1/2, 1/2]; strength does not count, the empty map neither."""
        found = gather([np.array([[8.0, 0.0]]), np.array([[1.0, 1.0]]), np.zeros((1, 2))], (1, 2))
        assert (found.maps, found.empty) == (2, 1)
        assert found.mean.tolist() == [[0.75, 0.25]]
        assert found.spread[0].tolist() == pytest.approx([0.5 / math.sqrt(2)] * 2)

    def test_spread_is_the_standard_deviation_of_the_shares(self, rng: np.random.Generator):
        maps = list(rng.random((12, 4, 5)))
        week = gather(maps, (4, 5))
        shares = np.array([m / m.sum() for m in maps])
        np.testing.assert_allclose(week.spread, shares.std(axis=0, ddof=1), atol=1e-12)

    def test_a_moved_fixture_moves_the_center_of_evidence(self):
        spot = np.zeros((20, 20))
        spot[5:8, 5:8] = 1
        before, now = gather([spot], (20, 20)), gather([np.roll(spot, (4, -2), axis=(0, 1))], (20, 20))
        change = compare_cohorts(now, before)
        assert (change.down_px, change.right_px) == pytest.approx((4, -2))
        assert change.moved == pytest.approx(1)
        assert change.difference.sum() == pytest.approx(0)

    def test_nothing_to_compare_is_said(self):
        empty, full = gather([], (2, 2)), gather([np.ones((2, 2))], (2, 2))
        assert compare_cohorts(empty, full) is None
        assert compare_cohorts(full, full).moved == 0

    def test_deviation_by_hand(self):
        """Evidence on one of two equal places: cosine 1 / sqrt 2."""
        usual = gather([np.array([[1.0, 1.0, 0.0]])], (1, 3))
        assert deviation(np.array([[2.0, 2.0, 0.0]]), usual) == pytest.approx(0)
        assert deviation(np.array([[1.0, 0.0, 0.0]]), usual) == pytest.approx(1 - 1 / math.sqrt(2))
        assert deviation(np.array([[0.0, 0.0, 5.0]]), usual) == 1
        assert deviation(np.zeros((1, 3)), usual) is None

    def test_the_part_that_is_unlike_its_cohort_stands_out(self, rng: np.random.Generator):
        row, column = np.indices((16, 16))
        centers = [(4 + rng.normal(0, 0.5), 4 + rng.normal(0, 0.5)) for _ in range(40)] + [(12, 12)]
        maps = [np.exp(-((row - r) ** 2 + (column - c) ** 2) / 8) for r, c in centers]
        usual = gather(maps, (16, 16))
        marked = outliers(np.array([deviation(m, usual) for m in maps]))
        assert marked[40]
        assert marked[:40].sum() <= 1

    def test_outliers_of_equal_or_unknown_deviations_are_none(self):
        assert not outliers(np.full(5, 0.2)).any()
        assert not outliers(np.full(3, np.nan)).any()
        assert outliers(np.array([0.1, 0.1, 0.1, np.nan, 0.9])).tolist() == [False, False, False, False, True]

    @pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.array([[0, -1.0], [0, 0]]), np.full((2, 2), np.nan)])
    def test_refuses_what_is_no_map_of_that_size(self, wrong: np.ndarray):
        with pytest.raises(ValueError, match="found a map of shape"):
            gather([wrong], (2, 2))


class TestPictureStatistics:
    def test_a_flat_picture_has_brightness_alone(self):
        found = picture_statistics(np.full((10, 12), 100, np.uint8))
        assert found == type(found)(100.0, 0.0, 0.0, 0.0, 0.0)

    def test_laplacian_by_hand(self):
        """One bright pixel of 9 in a 5 x 5: the inner 3 x 3 Laplacian is -36 once, 9 four times, 0 four times."""
        picture = np.zeros((5, 5), np.uint8)
        picture[2, 2] = 9
        assert picture_statistics(picture).sharpness == pytest.approx(np.var([-36, 9, 9, 9, 9, 0, 0, 0, 0]))

    @pytest.mark.parametrize("sigma", [2.0, 8.0])
    def test_planted_noise_is_measured_on_a_shaded_picture_with_an_edge(self, rng: np.random.Generator, sigma: float):
        shaded = np.tile(np.linspace(60, 140, 200), (200, 1))
        shaded[:, 120:] += 50
        picture = np.clip(np.round(shaded + rng.normal(0, sigma, shaded.shape)), 0, 255).astype(np.uint8)
        assert picture_statistics(picture).noise == pytest.approx(sigma, rel=0.05)

    def test_dimming_defocus_and_overexposure_move_their_own_number(self, rng: np.random.Generator):
        picture = (skimage.filters.gaussian(rng.random((80, 80, 3)), 1.5, channel_axis=2) * 255).astype(np.uint8)
        plain = picture_statistics(picture)
        dimmed = picture_statistics((picture * 0.7).astype(np.uint8))
        blurred = picture_statistics(cv2.GaussianBlur(picture, (0, 0), 2))
        glaring = picture_statistics(np.clip(picture.astype(int) + 120, 0, 255).astype(np.uint8))
        assert dimmed.brightness == pytest.approx(0.7 * plain.brightness, rel=0.02)
        assert blurred.sharpness < 0.2 * plain.sharpness
        assert blurred.brightness == pytest.approx(plain.brightness, rel=0.02)
        assert plain.clipped_share == 0 < glaring.clipped_share

    @pytest.mark.parametrize("wrong", [np.zeros((5, 5)), np.zeros((2, 9), np.uint8), np.zeros(9, np.uint8)])
    def test_refuses_what_is_no_picture(self, wrong: np.ndarray):
        with pytest.raises(ValueError, match="expected uint8"):
            picture_statistics(wrong)
