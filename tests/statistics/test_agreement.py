"""Attribute agreement against published studies, statsmodels and arithmetic by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa, fleiss_kappa

from inspect_xai.errors import StudyError
from inspect_xai.statistics.agreement import Agreement, Grade, attribute_agreement, cohen
from inspect_xai.statistics.rates import Interval, rate
from tests.support.aiag import aiag

few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def aiag_study() -> Agreement:
    answers, reference = aiag()
    return attribute_agreement(answers, reference, defect="0", good="1")


class TestAiagExample:
    """AIAG, Measurement Systems Analysis, 4th edition, chapter III section C: 50 parts, 3 appraisers, 3 trials."""

    def test_effectiveness_miss_and_false_alarm_are_the_manual_s(self, aiag_study: Agreement):
        rows = [
            [round(100 * r.value, 1) for r in (a.effectiveness, a.miss, a.false_alarm)] for a in aiag_study.appraisals
        ]
        assert rows == [
            [84.0, 6.2, 4.9],
            [90.0, 6.2, 2.0],
            [80.0, 12.5, 8.8],
        ]  # 3 of 48 is 6.25 %, printed as 6.3 there

    def test_the_counts_behind_them(self, aiag_study: Agreement):
        a, b, c = aiag_study.appraisals
        assert [(x.miss.count, x.miss.denominator) for x in (a, b, c)] == [(3, 48), (3, 48), (6, 48)]
        assert [(x.false_alarm.count, x.false_alarm.denominator) for x in (a, b, c)] == [(5, 102), (2, 102), (9, 102)]
        assert (aiag_study.all_right.count, aiag_study.between.count) == (39, 39)

    def test_grades_are_the_manual_s(self, aiag_study: Agreement):
        graded = [
            [a.grades[name].value for name in ("effectiveness", "miss", "false_alarm")] for a in aiag_study.appraisals
        ]
        assert graded == [
            ["marginal", "unacceptable", "acceptable"],
            ["acceptable", "unacceptable", "acceptable"],
            ["marginal", "unacceptable", "marginal"],
        ]

    def test_kappas_are_the_manual_s(self, aiag_study: Agreement):
        assert [round(kappa.value, 2) for kappa in aiag_study.pairs.values()] == [0.86, 0.78, 0.79]  # A-B, A-C, B-C
        assert [round(a.kappa.value, 2) for a in aiag_study.appraisals] == [0.88, 0.92, 0.77]

    def test_kappas_equal_statsmodels_on_the_manual_s_cross_tables(self, aiag_study: Agreement):
        tables = {("A", "B"): [[44, 6], [3, 97]], ("A", "C"): [[43, 7], [8, 92]], ("B", "C"): [[42, 5], [9, 94]]}
        for pair, table in tables.items():
            expected = cohens_kappa(np.array(table), return_results=False)
            assert aiag_study.pairs[pair].value == pytest.approx(expected, abs=1e-9)


BEARINGS = {
    "EG": "YYY NNN YYY YNN YYY YYY YYY NNN NNN YYY NNN YYY YYY NNN YYY",
    "BL": "YYY NNN YYY YNN YYY YYY NNN NNN NNN YYY NNN YYY YYY NNN YYY",
    "MH": "YYY YYY YYY YYY YYY YYY YYY NNY YNN YYY YNY YYY YYY NNN YYY",
}


@pytest.fixture(scope="module")
def bearings_study() -> Agreement:
    answers = {who: [list(part) for part in parts.split()] for who, parts in BEARINGS.items()}
    return attribute_agreement(answers, list("YNYYYNYNNYNYYYY"), defect="Y", good="N")


class TestBearingsExample:
    """jaspQualityControl (JASP), example "visual inspection of black spots" and the results in its test suite."""

    def test_shares_and_exact_intervals(self, bearings_study: Agreement):
        within = [(a.within.count, 100 * a.within.low, 100 * a.within.high) for a in bearings_study.appraisals]
        right = [
            (a.effectiveness.count, 100 * a.effectiveness.low, 100 * a.effectiveness.high)
            for a in bearings_study.appraisals
        ]
        assert np.ravel(within) == pytest.approx([14, 68.052, 99.831, 14, 68.052, 99.831, 12, 51.911, 95.669], abs=6e-4)
        assert np.ravel(right) == pytest.approx([12, 51.911, 95.669, 11, 44.9, 92.213, 9, 32.287, 83.664], abs=6e-4)
        assert (bearings_study.between.count, 100 * bearings_study.between.low) == (9, pytest.approx(32.287, abs=6e-4))
        assert (bearings_study.all_right.count, 100 * bearings_study.all_right.high) == (
            7,
            pytest.approx(73.414, abs=6e-4),
        )

    def test_miss_and_false_alarm(self, bearings_study: Agreement):
        rows = [(round(100 * a.miss.value, 2), round(100 * a.false_alarm.value, 2)) for a in bearings_study.appraisals]
        assert rows == [(16.67, 20.0), (26.67, 20.0), (10.0, 66.67)]

    def test_cohen_against_the_reference(self, bearings_study: Agreement):
        expected = [0.612903225806452, 0.492307692307692, 0.264150943396226]
        assert [a.kappa.value for a in bearings_study.appraisals] == pytest.approx(expected, abs=1e-12)

    def test_fleiss_within_and_between(self, bearings_study: Agreement):
        within = [a.within_kappa.value for a in bearings_study.appraisals]
        assert within == pytest.approx([0.905462184873949, 0.91, 0.543918918918919], abs=1e-12)
        assert bearings_study.between_kappa.value == pytest.approx(0.641666666666666, abs=1e-12)


FLEISS_1971 = """
444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333 144444 224445
333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224 111155 224444 133333 555555
"""


class TestKappa:
    def test_fleiss_s_diagnoses(self):
        """Fleiss, Psychological Bulletin 76 (1971) 378, table 1: 30 patients, 6 diagnoses each, kappa 0.430."""
        patients = np.array([list(row) for row in FLEISS_1971.split()])
        raters = {f"rater {i}": patients[:, i] for i in range(6)}
        study = attribute_agreement(raters, ["1"] * 29 + ["2"], defect="1", good="2")
        kappa = study.between_kappa
        assert round(kappa.value, 3) == 0.430
        assert kappa.value == pytest.approx(fleiss_kappa(aggregate_raters(patients)[0]), abs=1e-12)
        assert kappa.low < 0.430 < kappa.high
        assert kappa.parts == 30

    def test_fleiss_s_interval_leaves_out_one_patient_after_the_other(self):
        """Tukey's jackknife by plain loops over statsmodels' kappa."""
        patients = np.array([list(row) for row in FLEISS_1971.split()])
        raters = {f"rater {i}": patients[:, i] for i in range(6)}
        kappa = attribute_agreement(raters, ["1"] * 29 + ["2"], defect="1", good="2").between_kappa
        counts = aggregate_raters(patients)[0]
        without = np.array([fleiss_kappa(np.delete(counts, part, axis=0)) for part in range(30)])
        reach = student.ppf(0.975, 29) * math.sqrt(29 / 30 * ((without - without.mean()) ** 2).sum())
        assert (kappa.low, kappa.high) == pytest.approx((kappa.value - reach, kappa.value + reach), abs=1e-9)

    def test_cohen_s_diagnoses_with_the_published_error(self):
        """Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions, table 18.1."""
        table = np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]])
        pairs = [(i, j) for i in range(3) for j in range(3) for _ in range(table[i, j])]
        first, second = np.array(pairs).astype(str).T[:, :, None]

        kappa = cohen(first, second)

        assert kappa.value == pytest.approx(0.676, abs=5e-4)
        error = (kappa.high - kappa.low) / 2 / 1.984  # t, 99 degrees of freedom
        assert error == pytest.approx(0.087, rel=0.06)  # jackknife against their large-sample formula
        oracle = cohens_kappa(table)
        assert kappa.value == pytest.approx(oracle.kappa, abs=1e-12)
        assert oracle.std_kappa == pytest.approx(0.087, abs=1e-3)

    def test_cohen_s_interval_leaves_out_one_part_after_the_other(self):
        """Tukey's jackknife by plain loops over statsmodels' kappa."""
        table = np.array([[75.0, 1, 4], [5, 4, 1], [0, 0, 10]])
        places = [(i, j) for i in range(3) for j in range(3) for _ in range(int(table[i, j]))]
        first, second = np.array(places).astype(str).T[:, :, None]

        def left_out(place: tuple[int, int]) -> float:
            fewer = table.copy()
            fewer[place] -= 1
            return cohens_kappa(fewer, return_results=False)

        without = np.array([left_out(place) for place in places])
        reach = student.ppf(0.975, 99) * math.sqrt(99 / 100 * ((without - without.mean()) ** 2).sum())
        kappa = cohen(first, second)
        assert (kappa.low, kappa.high) == pytest.approx((kappa.value - reach, kappa.value + reach), abs=1e-9)

    def test_half_right_by_hand(self):
        """Agreement 3/4; by chance 1/2 x 3/4 + 1/2 x 1/4 = 1/2; kappa (3/4 - 1/2) / (1 - 1/2) = 1/2."""
        kappa = cohen(np.array([["a"], ["a"], ["b"], ["b"]]), np.array([["a"], ["a"], ["b"], ["a"]]))
        assert kappa.value == pytest.approx(0.5)

    def test_perfect_agreement_of_few_parts_is_no_proof(self):
        """All 10 parts agree, half of them bad: share at least 0.6915, chance 0.5, kappa at least 0.383."""
        column = np.array([["a"]] * 5 + [["b"]] * 5)
        kappa = cohen(column, column)
        low = rate(10, 10, interval=Interval.EXACT).low
        assert (kappa.value, kappa.high) == (1, 1)
        assert kappa.low == pytest.approx((low - 0.5) / 0.5)

    def test_one_category_has_no_kappa(self):
        column = np.array([["a"]] * 4)
        assert cohen(column, column).value is None

    def test_a_category_that_one_part_brings_in_leaves_the_interval_open(self):
        first, second = np.array([["a"], ["a"], ["b"]]), np.array([["a"], ["a"], ["b"]])
        assert (cohen(first, second).low, cohen(first, second).high) == (-1, 1)

    def test_unequal_trials_are_paired_each_with_each(self):
        """The one answer of the model meets all three of the person."""
        model, person = np.array([["a"], ["b"], ["a"]]), np.array([list("aab"), list("bbb"), list("aaa")])
        repeated = cohen(np.repeat(model, 3, axis=1), person)
        assert cohen(model, person) == repeated

    @few
    @given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(1, 3))
    def test_order_of_parts_and_names_of_categories_do_not_matter(self, seed: int, categories: int, trials: int):
        rng = np.random.default_rng(seed)
        first, second = rng.integers(0, categories, (2, 25, trials)).astype(str)
        order, names = rng.permutation(25), np.array(list("wxyz"))
        renamed = (names[column[order].astype(int)] for column in (first, second))
        ours, theirs = cohen(first, second), cohen(*renamed)
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-9)

    def test_the_interval_covers_with_repeated_trials(self):
        """150 studies of 50 parts x 3 trials, where trials of one part go wrong together."""
        rng = np.random.default_rng(5)

        def study(parts: int) -> tuple[np.ndarray, np.ndarray]:
            truth = (rng.random(parts) < 0.4).astype(int)
            hard = rng.random(parts) < 0.25
            wrong = rng.random((parts, 3)) < np.where(hard, 0.6, 0.01)[:, None]
            return np.where(wrong, 1 - truth[:, None], truth[:, None]).astype(str), np.repeat(
                truth[:, None], 3, axis=1
            ).astype(str)

        true = cohen(*study(40_000)).value
        found = [cohen(*study(50)) for _ in range(150)]
        covered = np.mean([kappa.low <= true <= kappa.high for kappa in found])
        assert covered >= 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / 150)


class TestModelAsAppraiser:
    def test_the_model_s_column_is_treated_like_a_person_s(self):
        answers, reference = aiag()
        alone = attribute_agreement({"model": answers["A"]}, reference, defect="0", good="1")
        among = attribute_agreement({**answers, "model": answers["A"]}, reference, defect="0", good="1")
        assert alone.appraisals[0] == among.appraisals[-1]
        assert among.pairs["A", "model"].value == 1

    def test_unsure_is_neither_a_miss_nor_a_false_alarm_but_not_effective(self):
        model = attribute_agreement(
            {"model": ["UNSURE", "NG", "OK", "UNSURE"]}, ["NG", "NG", "OK", "OK"], defect="NG", good="OK"
        ).appraisals[0]
        assert (model.effectiveness.value, model.miss.count, model.false_alarm.count) == (0.5, 0, 0)

    def test_a_single_answer_knows_nothing_of_repeatability(self):
        study = attribute_agreement({"model": ["NG", "OK"]}, ["NG", "OK"], defect="NG", good="OK")
        assert study.appraisals[0].within.value is None
        assert study.appraisals[0].within_kappa is None
        assert study.between_kappa is None

    def test_a_study_without_defects_has_no_miss_rate_and_no_grade_for_it(self):
        model = attribute_agreement({"model": ["OK"] * 3}, ["OK"] * 3, defect="NG", good="OK").appraisals[0]
        assert model.miss.value is None
        assert set(model.grades) == {"effectiveness", "false_alarm"}

    @pytest.mark.parametrize(
        ("right", "grade"),
        [(18, Grade.ACCEPTABLE), (17, Grade.MARGINAL), (16, Grade.MARGINAL), (15, Grade.UNACCEPTABLE)],
    )
    def test_limits_belong_to_the_better_class(self, right: int, grade: Grade):
        answers = ["NG"] * right + ["OK"] * (20 - right)
        model = attribute_agreement({"model": answers}, ["NG"] * 20, defect="NG", good="OK").appraisals[0]
        assert model.grades["effectiveness"] is grade


class TestRefused:
    @pytest.mark.parametrize(
        ("answers", "reference", "message"),
        [
            ({}, ["OK"], "0 appraisers"),
            ({"A": []}, [], "0 parts"),
            ({"A": ["OK", "NG"]}, ["OK"], "shape"),
            (
                {"A": [["OK", None], ["OK", "NG"]]},
                ["OK", "NG"],
                "A has 1 of 4 answers missing, the first for part 0 in trial 1",
            ),
            ({"A": ["OK", math.nan]}, ["OK", "NG"], "1 of 2 answers missing"),
            ({"A": ["OK", ""]}, ["OK", "NG"], "1 of 2 answers missing"),
            ({"A": ["OK", "NG"]}, ["OK", "scratch"], "scratch"),
        ],
    )
    def test_an_incomplete_study_says_what_is_missing(self, answers: dict, reference: list, message: str):
        with pytest.raises(StudyError, match=message):
            attribute_agreement(answers, reference, defect="NG", good="OK")
