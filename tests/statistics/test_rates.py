"""Rates, corrected overkill and escape, control charts, Pareto: published numbers, oracles and simulations."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, false_discovery_control, fisher_exact, hypergeom
from statsmodels.stats.proportion import proportion_confint

from inspect_xai.records import VerdictCode
from inspect_xai.statistics import control_charts, rates
from inspect_xai.statistics.control_charts import Limits, Signal, p_chart, pareto
from inspect_xai.statistics.rates import Estimate, Interval, Stratum, corrected_rates, rate, reviews_needed, strata

OK, NG, UNSURE = VerdictCode.OK, VerdictCode.NG, VerdictCode.UNSURE
few = settings(max_examples=30, deadline=None)


def test_examples_in_docstrings_hold():
    for module in (rates, control_charts):
        assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


class TestRate:
    @pytest.mark.parametrize(
        ("count", "denominator", "wilson", "exact"),
        [
            (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
            (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
            (0, 20, (0.0000, 0.1611), (0.0000, 0.1684)),
            (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
        ],
    )
    def test_equals_newcombe_s_table(self, count: int, denominator: int, wilson: tuple, exact: tuple):
        """Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17 (1998) 857, table I."""
        ours = rate(count, denominator), rate(count, denominator, interval=Interval.EXACT)
        assert (ours[0].low, ours[0].high) == pytest.approx(wilson, abs=5.1e-5)
        assert (ours[1].low, ours[1].high) == pytest.approx(exact, abs=5.1e-5)

    @pytest.mark.parametrize(("count", "denominator"), [(0, 20), (1, 29), (15, 148), (81, 263), (7, 7), (3, 100_000)])
    @pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
    def test_equals_scipy(self, count: int, denominator: int, confidence: float):
        """Made by statsmodels; scipy's `proportion_ci` is written apart from it."""
        tested = binomtest(count, denominator)
        for kind, method in ((Interval.WILSON, "wilson"), (Interval.EXACT, "exact")):
            ours = rate(count, denominator, interval=kind, confidence=confidence)
            theirs = tested.proportion_ci(confidence, method=method)
            assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)

    def test_nothing_counted_has_no_value_and_excludes_nothing(self):
        assert rate(0, 0) == rates.Rate(0, 0, None, 0.0, 1.0)

    @pytest.mark.parametrize(("count", "denominator"), [(3, 2), (-1, 5), (1, 0)])
    def test_refuses_what_is_no_share(self, count: int, denominator: int):
        with pytest.raises(ValueError, match=f"a count of {count} out of {denominator}"):
            rate(count, denominator)

    @few
    @given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from(list(Interval)))
    def test_interval_holds_the_share_and_narrows_with_ten_times_the_parts(self, n: int, share: float, kind: Interval):
        count = round(share * n)
        small, large = rate(count, n, interval=kind), rate(10 * count, 10 * n, interval=kind)
        assert small.low <= small.value + 1e-12
        assert small.value <= small.high + 1e-12
        assert large.high - large.low < small.high - small.low

    def test_higher_confidence_is_wider(self):
        assert rate(3, 40, confidence=0.99).high > rate(3, 40).high > rate(3, 40, confidence=0.9).high


class TestStrata:
    def test_counts_by_hand(self):
        counted = strata(
            ["OK", "OK", "OK", "OK", "NG", "NG", "UNSURE"],
            chosen=[1, 1, 0, 0, 1, 1, 1],
            inclusion=[0.5, 0.5, 0.5, 0.5, 1, 1, 1],
            defect=[0, math.nan, 1, math.nan, 1, 0, math.nan],
        )
        assert counted == (
            Stratum(OK, 0.5, parts=4, reviewed=1, defects=0, found_otherwise=1),
            Stratum(NG, 1.0, parts=2, reviewed=2, defects=1),
            Stratum(UNSURE, 1.0, parts=1, reviewed=0, defects=0),
        )

    @few
    @given(st.integers(0, 2**32 - 1))
    def test_order_of_the_parts_does_not_matter(self, seed: int):
        rng = np.random.default_rng(seed)
        n = 40
        rows = {
            "verdicts": rng.choice(["OK", "NG", "UNSURE"], n),
            "chosen": rng.random(n) < 0.5,
            "inclusion": rng.choice([0.02, 0.1, 1.0], n),
            "defect": rng.choice([0.0, 1.0, math.nan], n),
        }
        order = rng.permutation(n)
        shuffled = {name: column[order] for name, column in rows.items()}
        assert strata(rows.pop("verdicts"), **rows) == strata(shuffled.pop("verdicts"), **shuffled)

    @pytest.mark.parametrize(
        ("verdicts", "defect", "message"),
        [(["OK", "ok"], [0, 0], "1 parts"), (["OK", "OK"], [0, 2], "neither"), (["OK", "OK"], [0], "shape")],
    )
    def test_refuses_unknown_verdicts_reviews_and_lengths(self, verdicts: list, defect: list, message: str):
        with pytest.raises(ValueError, match=message):
            strata(verdicts, chosen=[True, True], inclusion=[1, 1], defect=defect)


def line(*, passed: int, sampled: int, escapes: int, **ng: int) -> list[Stratum]:
    """A day: OK parts with a random share reviewed, and NG parts that were all reviewed."""
    rejected, true = ng.get("rejected", 100), ng.get("true", 80)
    return [Stratum(OK, 0.02, passed, sampled, escapes), Stratum(NG, 1.0, rejected, rejected, true)]


class TestCorrectedRates:
    def test_by_hand(self):
        """2 of 100 sampled OK parts are defects: 20 of all 1000; with the 80 caught, a fifth of all 100 defects."""
        found = corrected_rates(line(passed=1000, sampled=100, escapes=2), escape_resolution=0.1, miss_resolution=0.5)
        assert found.escape_of_passed.value == pytest.approx(20 / 1000)
        assert found.escape_of_defects.value == pytest.approx(20 / 100)
        assert found.overkill_of_good.value == pytest.approx(20 / (20 + 980))
        assert found.overkill_of_rejected.value == pytest.approx(20 / 100)
        assert found.pending == 0

    def test_reviews_of_flagged_parts_alone_would_have_claimed_no_escape(self):
        only_flagged = [Stratum(OK, 0.02, 1000, 0, 0), Stratum(NG, 1.0, 100, 100, 80)]
        found = corrected_rates(only_flagged)
        assert found.escape_of_defects == Estimate(
            None, 0.0, 1000 / 1080, pytest.approx(found.escape_of_defects.needed)
        )
        assert found.escape_of_passed.value is None
        assert found.escape_of_passed.needed == reviews_needed(1000, 0.01)

    @pytest.mark.parametrize(
        ("parts", "sampled", "escapes"), [(1000, 100, 2), (50, 20, 0), (300, 299, 7), (40, 10, 10)]
    )
    def test_interval_is_the_inverted_hypergeometric_test(self, parts: int, sampled: int, escapes: int):
        """Every count of escapes that either one-sided 2.5 % test does not reject, by plain search."""
        bad = np.arange(escapes, parts - (sampled - escapes) + 1)
        few_enough = hypergeom.cdf(escapes, parts, bad, sampled) > 0.025
        many_enough = hypergeom.sf(escapes - 1, parts, bad, sampled) > 0.025
        kept = bad[few_enough & many_enough] / parts

        found = corrected_rates(line(passed=parts, sampled=sampled, escapes=escapes)).escape_of_passed

        assert (found.low, found.high) == (kept.min(), kept.max())

    def test_equals_the_horvitz_thompson_estimate_over_the_parts(self):
        """Each reviewed part weighs 1 over its chance; here the sample is just as large as its chance says."""
        weights, defect = (
            np.r_[np.full(100, 10.0), np.full(50, 1.0)],
            np.r_[[1.0] * 3, [0.0] * 97, [1.0] * 40, [0.0] * 10],
        )
        passed = weights > 1
        found = corrected_rates([Stratum(OK, 0.1, 1000, 100, 3), Stratum(NG, 1.0, 50, 50, 40)], escape_resolution=0.9)
        escapes, defects = (weights * defect)[passed].sum(), (weights * defect).sum()
        assert found.escape_of_passed.value == pytest.approx(escapes / 1000, abs=1e-12)
        assert corrected_rates(found.strata, miss_resolution=0.9).escape_of_defects.value == pytest.approx(
            escapes / defects, abs=1e-12
        )

    def test_tends_to_clopper_pearson_where_the_sample_is_a_trifle(self):
        found = corrected_rates(line(passed=100_000_000, sampled=2000, escapes=3)).escape_of_passed
        assert (found.low, found.high) == pytest.approx(proportion_confint(3, 2000, method="beta"), rel=1e-4)

    def test_zero_escapes_still_have_an_upper_limit(self):
        """Rule of three, two-sided: -ln(0.025) / n."""
        found = corrected_rates(line(passed=1_000_000, sampled=1000, escapes=0)).escape_of_passed
        assert found.value == found.low == 0
        assert found.high == pytest.approx(-math.log(0.025) / 1000, rel=0.003)

    def test_no_doubt_is_left_when_every_part_was_reviewed(self):
        found = corrected_rates(line(passed=500, sampled=500, escapes=5))
        assert found.escape_of_passed == Estimate(0.01, 0.01, 0.01, 0)
        assert found.escape_of_defects == Estimate(5 / 85, 5 / 85, 5 / 85, 0)

    def test_pending_flagged_parts_may_be_anything(self):
        """10 of 15 NG parts are unreviewed; 2 of 5 reviewed are defects, so there are 2 to 12."""
        found = corrected_rates([Stratum(OK, 1.0, 100, 100, 0), Stratum(NG, 1.0, 15, 5, 2)])
        assert found.overkill_of_rejected == Estimate(None, 3 / 15, 13 / 15, needed=10)
        assert found.pending == 10

    def test_a_complaint_raises_the_floor_and_nothing_else(self):
        plain = corrected_rates(line(passed=10_000, sampled=1000, escapes=0)).escape_of_passed
        strata = [Stratum(OK, 0.1, 10_000, 1000, 0, found_otherwise=4), *line(passed=1, sampled=1, escapes=0)[1:]]
        with_complaints = corrected_rates(strata).escape_of_passed
        assert (with_complaints.low, with_complaints.value) == (0.0004, 0.0004)
        assert with_complaints.high == plain.high

    def test_two_equal_shares_say_what_one_says(self):
        """Melding two halves of one sample loses a little, never gains."""
        one = corrected_rates(line(passed=20_000, sampled=2000, escapes=6)).escape_of_passed
        halves = [Stratum(OK, 0.1, 10_000, 1000, 3), Stratum(OK, 0.100001, 10_000, 1000, 3)]
        two = corrected_rates([*halves, *line(passed=1, sampled=1, escapes=0)[1:]]).escape_of_passed
        assert two.value == one.value
        assert two.low == pytest.approx(one.low, rel=0.05)
        assert one.high <= two.high < 1.15 * one.high

    def test_a_share_without_reviews_borrows_the_value_but_not_the_certainty(self):
        sampled = Stratum(OK, 0.1, 10_000, 1000, 5)
        found = corrected_rates([sampled, Stratum(OK, 0.2, 100, 0, 0)]).escape_of_passed
        alone = corrected_rates([sampled]).escape_of_passed
        assert found.value == pytest.approx(0.005)
        assert found.high == pytest.approx((alone.high * 10_000 + 100) / 10_100, rel=0.02)

    def test_no_parts_no_numbers(self):
        nothing = Estimate(None, 0.0, 1.0, 0)
        found = corrected_rates([])
        assert [found.escape_of_passed, found.escape_of_defects, found.overkill_of_good] == [nothing] * 3

    @pytest.mark.parametrize("wrong", [(10, 11, 0, 0), (10, 5, 6, 0), (10, 10, 0, 1), (10, 5, -1, 0)])
    def test_refuses_counts_that_cannot_be(self, wrong: tuple):
        with pytest.raises(ValueError, match="defects <= reviewed <= parts"):
            corrected_rates([Stratum(OK, 0.5, *wrong)])

    @few
    @given(st.integers(1, 2000), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 300), st.floats(0, 1))
    def test_intervals_hold_the_estimate(self, parts: int, share: float, bad: float, rejected: int, true: float):
        sampled = math.ceil(share * parts)
        day = line(
            passed=parts, sampled=sampled, escapes=int(bad * sampled), rejected=rejected, true=int(true * rejected)
        )
        found = corrected_rates(day, escape_resolution=0.99, miss_resolution=0.99, overkill_resolution=1)
        for estimate in (found.escape_of_passed, found.escape_of_defects, found.overkill_of_good):
            assume(estimate.value is not None)
            assert 0 <= estimate.low <= estimate.value + 1 / parts <= estimate.high + 2 / parts <= 1 + 3 / parts


class TestReviewsNeeded:
    def test_is_the_smallest_sample_that_reaches_the_resolution(self):
        for parts in (200, 5000):
            enough = reviews_needed(parts, 0.01)
            at = [
                corrected_rates(line(passed=parts, sampled=n, escapes=0)).escape_of_passed for n in (enough - 1, enough)
            ]
            assert at[0].high > 0.01 >= at[1].high
            assert (at[0].needed, at[1].needed) == (1, 0)

    def test_ruling_out_a_single_escape_takes_nearly_all(self):
        assert reviews_needed(999, 0.0) == 975  # (999 - n) / 999 <= 0.025

    def test_small_lots_of_which_any_share_is_tolerated_need_none(self):
        assert reviews_needed(0, 0.01) == 0


class TestSimulatedLine:
    """A year of days with a known truth, sampled as the line does it."""

    def day(self, rng: np.random.Generator, *, share: tuple[float, ...]) -> tuple[list[Stratum], dict[str, float]]:
        made, truth = [], {"passed": 0, "escapes": 0, "rejected": 90, "overkill": 30}
        for part in share:
            passed, bad = 3000, int(rng.integers(0, 40))
            sampled = int(rng.binomial(passed, part))
            made.append(Stratum(OK, part, passed, sampled, int(rng.hypergeometric(bad, passed - bad, sampled))))
            truth["passed"] += passed
            truth["escapes"] += bad
        made.append(Stratum(NG, 1.0, 90, 90, 60))
        return made, truth

    @pytest.mark.parametrize("share", [(0.05,), (0.03, 0.2)])
    def test_the_estimate_is_unbiased_and_the_intervals_cover(self, share: tuple[float, ...]):
        rng = np.random.default_rng(7)
        days, errors, covered = 300 if len(share) == 1 else 150, [], np.zeros(3)
        for _ in range(days):
            made, truth = self.day(rng, share=share)
            found = corrected_rates(made, escape_resolution=0.99)
            good = truth["passed"] - truth["escapes"] + truth["overkill"]
            expected = (
                truth["escapes"] / truth["passed"],
                truth["escapes"] / (truth["escapes"] + 60),
                truth["overkill"] / good,
            )
            estimates = found.escape_of_passed, found.escape_of_defects, found.overkill_of_good
            errors.append(found.escape_of_passed.value - expected[0])
            covered += [e.low - 1e-12 <= x <= e.high + 1e-12 for e, x in zip(estimates, expected, strict=True)]
        standard_error = np.std(errors) / math.sqrt(days)
        assert abs(np.mean(errors)) < 3 * standard_error
        assert np.all(covered / days >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / days))

    def test_what_a_plain_confusion_matrix_of_the_reviews_says_is_wrong_by_the_sampling_share(self):
        """Why all this: 1 of 50 OK parts reviewed, so the uncorrected miss rate is near a fiftieth of the true one."""
        made = line(passed=50_000, sampled=1000, escapes=2)
        naive = 2 / (2 + 80)
        corrected = corrected_rates(made, miss_resolution=0.9).escape_of_defects
        assert naive == pytest.approx(0.024, abs=0.001)
        assert corrected.value == pytest.approx(100 / 180)
        assert corrected.low > naive


# fmt: off
WAFERS = [12, 15, 8, 10, 4, 7, 16, 9, 14, 10, 5, 6, 17, 12, 22, 8, 10, 5, 13, 11, 20, 18, 24, 15, 9, 12, 7, 13, 9, 6]
# fmt: on


class TestPChart:
    def test_equals_the_nist_example(self):
        """NIST/SEMATECH e-Handbook, 6.3.3.2: 30 wafers of 50 chips, center 0.2313; wafers 15 and 23 are out."""
        chart = p_chart(WAFERS, [50] * 30)
        assert chart.center == pytest.approx(0.2313, abs=5e-5)
        assert (chart.low[0], chart.high[0]) == pytest.approx((0.0524, 0.4102), abs=5e-5)
        assert [i + 1 for i, signals in enumerate(chart.signals) if signals] == [15, 23]

    def test_limits_follow_the_totals_by_hand(self):
        chart = p_chart([10, 40], [100, 400], center=0.1)
        assert chart.high.tolist() == pytest.approx([0.1 + 3 * 0.03, 0.1 + 3 * 0.015])
        assert chart.low.tolist() == pytest.approx([0.01, 0.055])

    def test_the_eighth_point_on_one_side_is_a_run_and_a_day_without_parts_ends_none(self):
        counts, totals = [11] * 4 + [0] + [11] * 5 + [9], [100] * 4 + [0] + [100] * 6
        chart = p_chart(counts, totals, center=0.1)
        assert [i for i, signals in enumerate(chart.signals) if signals == (Signal.RUN,)] == [8, 9]

    def test_a_point_on_the_center_ends_a_run(self):
        chart = p_chart([11] * 7 + [10] + [11] * 7, [100] * 15, center=0.1)
        assert not any(chart.signals)

    def test_exact_limits_hold_their_tail_where_the_textbook_s_do_not(self):
        """One defect expected in 100 parts: 3 sigma lets 1.8 % of the points out, the binomial quantile 0.034 %."""
        textbook, exact = (
            p_chart([1], [100], center=0.01, limits=kind).high[0] * 100 for kind in (Limits.SIGMA, Limits.EXACT)
        )
        assert binom.sf(math.floor(textbook), 100, 0.01) > 0.018
        assert binom.sf(exact, 100, 0.01) < 0.00135

    def test_laney_keeps_quiet_where_days_differ_by_more_than_chance(self):
        rng = np.random.default_rng(3)
        totals = np.full(365, 100_000)
        counts = rng.binomial(totals, np.clip(rng.normal(0.02, 0.002, 365), 0, 1))
        out = {kind: sum(Signal.BEYOND in s for s in p_chart(counts, totals, limits=kind).signals) for kind in Limits}
        assert out[Limits.SIGMA] > 100
        assert out[Limits.LANEY] <= 4

    def test_laney_s_spread_by_hand(self):
        """Standardized points 2, -2, 2: moving ranges 4 and 4, over d2 = 1.128."""
        chart = p_chart([32, 8, 32], [100, 100, 100], center=0.2, limits=Limits.LANEY)
        assert chart.spread == pytest.approx((12 + 12) / 2 / 4 * 2 / (2 / math.sqrt(math.pi)) / 1, rel=1e-12)

    @pytest.mark.parametrize("kind", list(Limits))
    @pytest.mark.parametrize(("counts", "totals"), [([], []), ([0], [0]), ([0, 0], [5, 0]), ([5, 5], [5, 5])])
    def test_degenerate_charts_signal_nothing(self, kind: Limits, counts: list, totals: list):
        chart = p_chart(counts, totals, limits=kind)
        assert not any(chart.signals)
        assert len(chart.signals) == len(counts)

    def test_refuses_more_defects_than_parts(self):
        with pytest.raises(ValueError, match="0 <= count <= total"):
            p_chart([3], [2])


class TestPareto:
    def test_change_equals_newcombe_s_example(self):
        """Newcombe on differences, Stat. Med. 17 (1998) 873, table II, method 10: 56/70 - 48/80."""
        row = pareto({"scratch": 56}, 70, counts_before={"scratch": 48}, inspected_before=80)[0]
        assert (row.change, row.low, row.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
        assert row.p == pytest.approx(fisher_exact([[56, 14], [48, 32]])[1], rel=1e-6)

    def test_rows_shares_and_correction_by_hand(self):
        rows = pareto({"dent": 1, "scratch": 6}, 100, counts_before={"dent": 3, "stain": 2}, inspected_before=100)
        assert [(row.label, row.count) for row in rows] == [("scratch", 6), ("dent", 1), ("stain", 0)]
        assert [row.cumulative for row in rows] == pytest.approx([6 / 7, 1, 1])
        assert rows[0].q == pytest.approx(3 * rows[0].p)
        assert all(row.q >= row.p for row in rows)
        assert [row.q for row in rows] == pytest.approx(false_discovery_control([row.p for row in rows]), abs=1e-12)

    def test_the_same_period_twice_has_not_changed(self):
        for row in pareto({"a": 5, "b": 2}, 50, counts_before={"a": 5, "b": 2}, inspected_before=50):
            assert (row.change, row.p, row.q) == (0, 1, 1)

    def test_no_period_before_no_change(self):
        row = pareto({"a": 5}, 50, counts_before={}, inspected_before=0)[0]
        assert (row.rate, row.rate_before, row.change, row.low, row.p) == (0.1, None, None, None, 1)
        assert pareto({}, 0, counts_before={}, inspected_before=0) == ()

    def test_refuses_more_defects_than_parts(self):
        with pytest.raises(ValueError, match="'a': 51"):
            pareto({"a": 51}, 50, counts_before={}, inspected_before=0)
