"""Calibration and what follows from it: by hand, by recovering planted distortions, and as properties."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import poisson

from inspect_xai.errors import StudyError
from inspect_xai.statistics.calibration import (
    Isotonic,
    apply_isotonic,
    apply_temperature,
    expected_errors,
    fit_isotonic,
    fit_temperature,
    reliability,
)
from inspect_xai.statistics.rates import rate

few = settings(max_examples=25, deadline=None)


class TestReliability:
    def test_by_hand(self):
        """Two bins: gap |0.2 - 0.5| for 2 parts, gap |0.9 - 1| for 2: ECE 0.2, MCE 0.3."""
        found = reliability([0.1, 0.3, 0.9, 0.9], [0, 1, 1, 1], bins=2)
        assert [(b.low, b.high, b.weight) for b in found.bins] == [(0, 0.5, 2), (0.5, 1, 2)]
        assert [b.mean for b in found.bins] == pytest.approx([0.2, 0.9])
        assert [b.observed for b in found.bins] == [0.5, 1.0]
        assert (found.expected_error, found.largest_error) == pytest.approx((0.2, 0.3))
        assert found.brier == pytest.approx((0.01 + 0.49 + 0.01 + 0.01) / 4)
        assert found.bins[0].counted == rate(1, 2)

    def test_a_weight_of_three_is_three_parts(self):
        thrice = reliability([0.2, 0.2, 0.2, 0.7], [1, 1, 1, 0])
        weighted = reliability([0.2, 0.7], [1, 0], weights=[3, 1])
        assert (weighted.expected_error, weighted.brier) == pytest.approx((thrice.expected_error, thrice.brier))

    @few
    @given(st.integers(0, 2**32 - 1))
    def test_equals_the_definition_in_a_table(self, seed: int):
        """Guo et al. (2017), equation 3, as sums over groups."""
        rng = np.random.default_rng(seed)
        score, truth, weight = rng.random(200), rng.random(200) < 0.3, rng.integers(1, 20, 200).astype(float)
        table = pd.DataFrame({"gap": weight * (score - truth), "weight": weight})
        gaps = table.groupby(pd.cut(score, np.linspace(0, 1, 11), right=False), observed=True).sum()
        found = reliability(score, truth, weights=weight)
        assert found.expected_error == pytest.approx(gaps["gap"].abs().sum() / weight.sum(), abs=1e-12)
        assert found.largest_error == pytest.approx((gaps["gap"].abs() / gaps["weight"]).max(), abs=1e-12)

    def test_certainty_goes_to_the_last_bin(self):
        assert [(b.low, b.high) for b in reliability([1.0, 0.0], [1, 0]).bins] == [(0, 0.1), (0.9, 1.0)]

    def test_honest_probabilities_have_next_to_no_error(self):
        rng = np.random.default_rng(1)
        honest = rng.random(20_000)
        found = reliability(honest, rng.random(20_000) < honest)
        assert found.expected_error < 0.02
        assert sum(b.counted.low <= b.mean <= b.counted.high for b in found.bins) >= 8

    @pytest.mark.parametrize(
        "wrong", [([], [], None), ([1.1], [1], None), ([0.5], [0.5], None), ([0.5], [1, 0], None), ([0.5], [1], [0.0])]
    )
    def test_refuses_what_cannot_be_compared(self, wrong: tuple):
        with pytest.raises(StudyError, match="probabilities"):
            reliability(wrong[0], wrong[1], weights=wrong[2])


class TestTemperature:
    def planted(self, temperature: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
        """Scores of a network whose logits are `temperature` times too large, and labels drawn from the honest ones."""
        rng = np.random.default_rng(2)
        honest = softmax(rng.normal(0, 2, (n, 3)), axis=1)
        labels = (rng.random((n, 1)) > honest.cumsum(axis=1)).sum(axis=1)
        return softmax(np.log(honest) * temperature, axis=1), np.minimum(labels, 2)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
    def test_a_planted_temperature_is_found(self, temperature: float):
        scores, labels = self.planted(temperature)
        assert fit_temperature(scores, labels) == pytest.approx(temperature, rel=0.04)

    def test_the_fit_is_where_the_surprise_is_least(self):
        scores, labels = self.planted(2.5, n=500)
        best = fit_temperature(scores, labels)

        def surprise(temperature: float) -> float:
            return -np.log(apply_temperature(scores, temperature)[np.arange(500), labels]).sum()

        assert surprise(best) < min(surprise(best * 1.001), surprise(best / 1.001))

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
    def test_of_two_classes_it_equals_statsmodels_logistic_regression(self, temperature: float):
        """Log-odds over a temperature are a regression without intercept; its slope is one over the temperature."""
        rng = np.random.default_rng(9)
        odds = rng.normal(-1, 2, 3000)
        label = (rng.random(3000) < 1 / (1 + np.exp(-odds / temperature))).astype(int)
        weight = rng.integers(1, 20, 3000).astype(float)
        scores = np.c_[1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))]
        slope = sm.GLM(label, odds, family=sm.families.Binomial(), freq_weights=weight).fit(tol=1e-12).params[0]
        assert fit_temperature(scores, label, weights=weight) == pytest.approx(1 / slope, abs=1e-6)

    def test_calibrating_lowers_the_error_and_keeps_the_leader(self):
        scores, labels = self.planted(2.5)
        mended = apply_temperature(scores, fit_temperature(scores, labels))
        errors = [reliability(s.max(axis=1), s.argmax(axis=1) == labels).expected_error for s in (scores, mended)]
        assert errors[0] > 0.08
        assert errors[1] < 0.02
        assert np.array_equal(scores.argmax(axis=1), mended.argmax(axis=1))

    def test_by_hand(self):
        """Odds of 4 to 1 at temperature 2 are odds of 2 to 1."""
        assert apply_temperature([[0.8, 0.2]], 2.0)[0].tolist() == pytest.approx([2 / 3, 1 / 3])

    def test_scores_of_exactly_zero_do_not_break_it(self):
        assert math.isfinite(fit_temperature([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 1, 1]))

    def test_a_network_that_is_always_right_is_sharpened_to_the_end_of_the_range(self):
        assert fit_temperature([[0.6, 0.4]] * 5, [0] * 5) == pytest.approx(0.05, rel=1e-3)

    @pytest.mark.parametrize(
        ("scores", "labels"), [(np.zeros((0, 2)), []), ([[0.5, 0.5]], [2]), ([[0.5, 0.5]], [0, 1]), ([[2.0, 0]], [0])]
    )
    def test_refuses_what_cannot_be_fitted(self, scores: np.ndarray, labels: list):
        with pytest.raises(StudyError):
            fit_temperature(scores, labels)


class TestIsotonic:
    def test_by_hand(self):
        """0.4 and 0.6 go the wrong way: both get their mean 1/2. The knot between equal levels is left out."""
        curve = fit_isotonic([0.2, 0.4, 0.6, 0.8], [0, 1, 0, 1])
        assert curve == Isotonic((0.2, 0.4, 0.6, 0.8), (0.0, 0.5, 0.5, 1.0))
        assert apply_isotonic(curve, [0.0, 0.3, 0.5, 0.9]).tolist() == pytest.approx([0, 0.25, 0.5, 1])

    def test_equal_scores_get_one_value_by_weight(self):
        curve = fit_isotonic([0.5, 0.5, 0.9], [1, 0, 1], weights=[1, 3, 1])
        assert curve == Isotonic((0.5, 0.9), (0.25, 1.0))

    @few
    @given(st.integers(0, 2**32 - 1))
    def test_equals_the_min_max_formula(self, seed: int):
        """Of the means from each place onwards the least, and of these the largest (Robertson et al., 1988)."""
        rng = np.random.default_rng(seed)
        scores, weight = np.sort(rng.random(40)), rng.uniform(0.5, 20, 40)
        truth = (rng.random(40) < scores).astype(float)
        truth[:2] = 0, 1
        sums, masses = (np.r_[0, np.cumsum(each)] for each in (weight * truth, weight))
        level = [
            max(min((sums[t] - sums[s]) / (masses[t] - masses[s]) for t in range(i + 1, 41)) for s in range(i + 1))
            for i in range(40)
        ]
        mended = apply_isotonic(fit_isotonic(scores, truth, weights=weight), scores)
        assert mended == pytest.approx(np.array(level), abs=1e-9)

    @few
    @given(st.integers(0, 2**32 - 1))
    def test_never_falls_and_keeps_the_share_of_defects(self, seed: int):
        rng = np.random.default_rng(seed)
        scores, truth = rng.random(60).round(2), rng.random(60) < 0.4
        if truth.all() or not truth.any():
            return
        mended = apply_isotonic(fit_isotonic(scores, truth), scores)
        assert np.all(np.diff(mended[np.argsort(scores, kind="stable")]) >= -1e-12)
        assert mended.mean() == pytest.approx(truth.mean())

    def test_reviews_of_one_kind_are_no_ground(self):
        with pytest.raises(StudyError, match="all 2 reviews say good"):
            fit_isotonic([0.1, 0.2], [0, 0])


class TestExpectedErrors:
    def test_by_hand(self):
        found = expected_errors([0.1, 0.2, 0.9, 0.6], passed=[1, 1, 0, 0], rejected=[0, 0, 1, 0])
        assert (found.escapes, found.overkill) == pytest.approx((0.3, 0.1))
        assert found.escape_of_passed == pytest.approx(0.15)
        assert found.escape_of_defects == pytest.approx(0.3 / 1.8)
        assert found.overkill_of_good == pytest.approx(0.1 / 2.2)
        assert (found.escapes_low, found.escapes_high) == (0, poisson.ppf(0.975, 0.3))

    def test_nothing_judged_nothing_expected(self):
        found = expected_errors([], passed=[], rejected=[])
        assert (found.escapes, found.escape_of_passed, found.escape_of_defects) == (0, None, None)

    def test_the_escapes_of_an_honest_line_are_foretold_and_covered(self):
        rng = np.random.default_rng(4)
        covered = 0
        for _ in range(200):
            chance = rng.beta(0.3, 3, 2000)
            defect, passed = rng.random(2000) < chance, chance < 0.3
            found = expected_errors(chance, passed=passed, rejected=~passed)
            covered += found.escapes_low <= np.count_nonzero(defect & passed) <= found.escapes_high
        assert covered >= 190

    def test_calibrated_on_the_weighted_reviews_it_foretells_the_escapes_that_raw_scores_hide(self):
        """A network too sure of itself, by no mere temperature; all flagged and 5 % of passed parts are reviewed."""
        rng = np.random.default_rng(6)
        true = rng.beta(0.2, 2, 200_000)
        logit = np.log(np.maximum(true, 1e-12)) - np.log(np.maximum(1 - true, 1e-12))
        scores = 1 / (1 + np.exp(-np.clip(np.where(logit < 0, 2.0, 1.2) * logit, -600, 600)))
        defect, passed = rng.random(scores.size) < true, scores < 0.3
        reviewed = ~passed | (rng.random(scores.size) < 0.05)
        pairs, truth = np.c_[1 - scores, scores], int(np.count_nonzero(defect & passed))

        def foretold(weights: np.ndarray | None) -> float:
            temperature = fit_temperature(pairs[reviewed], defect[reviewed].astype(int), weights=weights)
            mended = apply_temperature(pairs, temperature)[:, 1]
            return expected_errors(mended, passed=passed, rejected=~passed).escapes / truth

        assert expected_errors(scores, passed=passed, rejected=~passed).escapes < 0.6 * truth
        weighed, unweighed = foretold(np.where(passed, 20.0, 1.0)[reviewed]), foretold(None)
        assert weighed == pytest.approx(1, abs=0.08)
        assert unweighed < weighed - 0.1

    @pytest.mark.parametrize("wrong", [[1.2], [0.1, 0.2]])
    def test_refuses_what_is_no_probability_per_part(self, wrong: list):
        with pytest.raises(StudyError):
            expected_errors(wrong, passed=[True], rejected=[False])
