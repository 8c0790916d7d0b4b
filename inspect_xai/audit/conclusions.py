"""Report of an audit: the answer and its rule, tables with intervals, the worst pictures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.audit.rows import AuditRow
from inspect_xai.audit.run import CHANCE, Audit
from inspect_xai.audit.sanity import Sanity
from inspect_xai.maths.metrics import Average, average
from inspect_xai.records import Baseline, Method, Status, VerdictCode
from inspect_xai.statistics import map_cohorts
from inspect_xai.statistics.rates import Rate, rate

YES, MOSTLY, NO, UNDECIDED = "yes", "mostly", "no", "undecided"
YES_SHARE, MOSTLY_SHARE = 0.9, 0.6
FEWEST_MAPS = 2
"""Fewest maps of a cohort."""

FEWEST_PICTURES = 5
"""Fewest pictures for an answer."""

TAKES = 0.5
"""Closing pixels that takes this share of the score shows that the score depends on them."""

FOUND = 0.5
"""AUPRO from which a map has found the defect: its pixels come before a sixth of the background on the average."""

RULE = (
    f"A picture counts for the network when closing its defect (filling it in from its surroundings) takes at least "
    f"{TAKES:.0%} of the score, or when the map begins on the defect and finds it (AUPRO of {FOUND} or more); and when "
    f"closing as much of the map's strongest evidence elsewhere does not take {TAKES:.0%} of the score and more than "
    f"closing the defect does. Where the place of the defect is not known, a picture counts when at least half of the "
    f"map lies on the part and at most half on the picture's border. Yes: {YES_SHARE:.0%} of the pictures or more. "
    f"Mostly: {MOSTLY_SHARE:.0%} or more, or one label answered with no. Fewer than {FEWEST_PICTURES} pictures, or "
    "maps that do not notice a network that forgot everything: undecided."
)

SIGNIFICANCE = 0.05
"""A method is called worse than the best below this chance, after Holm's correction within a metric."""

_GROUPS: tuple[tuple[str, Callable[[AuditRow], str]], ...] = (
    ("label", lambda row: row.target),
    ("station", lambda row: row.station),
)
_COHORT_SIZE = (64, 64)
_EXACT = 13  # pictures up to which every pattern of signs is tried


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its key in the rows, its name in reports, and whether higher is better."""

    key: str
    name: str
    higher_is_better: bool


METRICS = (
    Metric("aupro", "AUPRO@0.3", True),  # noqa: FBT003  named by the class above
    Metric("aupro_window", "AUPRO@0.3 in its window", True),  # noqa: FBT003
    Metric("ebpg", "EBPG", True),  # noqa: FBT003
    Metric("bbox", "Bbox", True),  # noqa: FBT003
    Metric("miou", "mIoU@20 %", True),  # noqa: FBT003
    Metric("pointing", "pointing game", True),  # noqa: FBT003
    Metric("road", "ROAD", True),  # noqa: FBT003
    Metric("adcc", "ADCC", True),  # noqa: FBT003
    *(Metric(f"drop_{fill}", f"Drop % {fill}", False) for fill in Baseline),  # noqa: FBT003
    *(Metric(f"increase_{fill}", f"Increase % {fill}", True) for fill in Baseline),  # noqa: FBT003
    *(Metric(f"insertion_{fill}", f"insertion {fill}", True) for fill in Baseline),  # noqa: FBT003
    *(Metric(f"deletion_{fill}", f"deletion {fill}", False) for fill in Baseline),  # noqa: FBT003
    Metric("inside", "on the part", True),  # noqa: FBT003
    Metric("border", "on the border", False),  # noqa: FBT003
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One method's average of one metric.

    Attributes:
        average: With its bootstrap interval.
        behind: How much worse than the best method, picture by picture, with its interval; None for the best itself.
        p: How often as large a difference comes about when best and other are swapped at random picture by picture,
            times Holm's factor for the methods compared in this metric; 1 for the best itself.
    """

    average: Average
    behind: Average | None
    p: float

    @property
    def is_best(self) -> bool:
        """Whether no method has a better average."""
        return self.behind is None

    @property
    def is_worse(self) -> bool:
        """Whether the difference to the best is significant."""
        return self.p < SIGNIFICANCE


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method over all pictures that were explained."""

    method: Method
    cells: dict[str, Cell]
    passes: float  # mean
    seconds: float  # median
    without_map: int  # pictures on which it found no evidence

    @property
    def knows_nothing(self) -> bool:
        """Whether it is a baseline method that ignores the network."""
        return self.method in CHANCE


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether the network looks at the defect, on some pictures: "yes", "mostly", "no" or "undecided"."""

    answer: str
    counted: Rate  # pictures that count for the network, of all
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A picture that does not count for the network, or comes nearest to that.

    Attributes:
        row: The picture.
        accused: It does not count for the network.
        strays: Its score was shown to depend on something else. Accused without that: nothing was shown either way.
        why: The numbers behind it, as a sentence.
    """

    row: AuditRow
    accused: bool
    strays: bool
    why: str


@dataclass(frozen=True, slots=True)
class Shares:
    """Where the first method's maps lie, by label or station: means over pictures with their intervals.

    Attributes:
        kind: "label" or "station".
        name: Which one.
        pictures: That were explained.
        on_part: Share of the map on the part.
        on_defect: On the defect; None where its place is known of no picture.
        on_border: On the picture's border.
    """

    kind: str
    name: str
    pictures: int
    on_part: Average
    on_defect: Average | None
    on_border: Average


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Report of an audit.

    Attributes:
        answer: Over all labels.
        by_label: Answers by defect label.
        confusion: Pictures by (true label, predicted label).
        escapes: Defective pictures judged OK, of all defective ones.
        overkill: OK pictures judged NG, of all OK ones.
        unsure: Pictures judged UNSURE, of all.
        right: Pictures whose true label has the highest score, of all.
        methods: In the order of the audit.
        suspects: The worst pictures, worst first.
        shares: Where the maps lie, by label and then by station.
        sanity: None where the checks were not run.
        explained: Pictures that were explained.
        parts: Different parts that they show, by the table; 0 where it names none.
        errors: Pictures that could not be measured, with the reason.
    """

    answer: Answer
    by_label: dict[str, Answer]
    confusion: dict[tuple[str, str], int]
    escapes: Rate
    overkill: Rate
    unsure: Rate
    right: Rate
    methods: tuple[MethodSummary, ...]
    suspects: tuple[Suspect, ...]
    shares: tuple[Shares, ...]
    sanity: Sanity | None
    explained: int
    parts: int
    errors: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class CohortMap:
    """Mean map of many pictures: (H, W) that sums to 1, by label or by station."""

    kind: str
    name: str
    maps: int
    mean: NDArray[np.float64]


def build_report(audit: Audit, *, sanity: Sanity | None = None, most_suspects: int = 10) -> AuditReport:
    """Make an audit's report, which lists the `most_suspects` worst pictures."""
    rows = [row for row in audit.rows if not row.error]
    ok = set(audit.header["ok_labels"])
    explained = [row for row in rows if row.measured]
    first = audit.methods[0]
    by_label = {
        label: answer([row for row in explained if row.label == label], first)
        for label in audit.header["labels"]
        if any(row.label == label for row in explained)
    }
    pairs = [(row.label, row.predicted) for row in rows]
    defective = [row for row in rows if row.label not in ok]
    good = [row for row in rows if row.label in ok]
    return AuditReport(
        answer=_overall(answer(explained, first), by_label, sanity),
        by_label=by_label,
        confusion={pair: pairs.count(pair) for pair in sorted(set(pairs))},
        escapes=rate(sum(row.verdict == VerdictCode.OK for row in defective), len(defective)),
        overkill=rate(sum(row.verdict == VerdictCode.NG for row in good), len(good)),
        unsure=rate(sum(row.verdict == VerdictCode.UNSURE for row in rows), len(rows)),
        right=rate(sum(row.is_right for row in rows), len(rows)),
        methods=summarize(explained, audit.methods, seed=audit.header["settings"]["seed"]),
        suspects=_suspects(explained, first)[:most_suspects],
        shares=tuple(_shares(explained, first, seed=audit.header["settings"]["seed"])),
        sanity=sanity,
        explained=len(explained),
        parts=len({row.part for row in explained if row.part}),
        errors=tuple((row.image, row.error) for row in audit.rows if row.error),
    )


def counts_for_network(row: AuditRow, method: Method) -> bool:
    """Apply the rule to one picture."""
    measured = row.of(method)
    if measured is None:
        return False
    numbers = measured.numbers
    if row.closed_drop is None:
        return numbers["inside"] >= 0.5 and numbers["border"] <= 0.5
    points = numbers.get("near", 0.0) > 0 and numbers.get("aupro", 0.0) >= FOUND
    return not strays(row, method) and (row.closed_drop >= TAKES or points)


def strays(row: AuditRow, method: Method) -> bool:
    """Whether the score was shown to depend on something else more than on the defect."""
    measured = row.of(method)
    if measured is None:
        return False
    if row.closed_drop is None:
        return measured.numbers["inside"] < 0.5 or measured.numbers["border"] > 0.5
    elsewhere = measured.numbers["elsewhere_drop"]
    return elsewhere >= TAKES and elsewhere > row.closed_drop


def answer(rows: Sequence[AuditRow], method: Method) -> Answer:
    """Apply the rule to several pictures."""
    counted = rate(sum(counts_for_network(row, method) for row in rows), len(rows))
    if len(rows) < FEWEST_PICTURES:
        return Answer(UNDECIDED, counted, (f"{len(rows)} pictures were explained, {FEWEST_PICTURES} are needed",))
    share = counted.count / counted.denominator
    return Answer(YES if share >= YES_SHARE else MOSTLY if share >= MOSTLY_SHARE else NO, counted, ())


def _overall(plain: Answer, by_label: dict[str, Answer], sanity: Sanity | None) -> Answer:
    result, reasons = plain.answer, list(plain.reasons)
    accused = [label for label, of_label in by_label.items() if of_label.answer == NO]
    if accused:
        reasons.append(f"no for the label {', '.join(accused)}")
        result = MOSTLY if result == YES else result
    if sanity is not None and not sanity.passed:
        reasons.append("the maps hardly change when all weights are shuffled, so they do not show what it looks at")
        result = UNDECIDED
    return Answer(result, plain.counted, tuple(reasons))


def summarize(rows: Sequence[AuditRow], methods: Sequence[Method], *, seed: int) -> tuple[MethodSummary, ...]:
    """Average every metric over the explained pictures for every method, and compare each with the best pairwise."""
    if not rows:
        return ()
    cells: dict[Method, dict[str, Cell]] = {method: {} for method in methods}
    for metric in METRICS:
        values = _values(rows, methods, metric.key)
        if not values:
            continue
        sign = 1.0 if metric.higher_is_better else -1.0
        best = max(
            (method for method in values if method not in CHANCE), key=lambda method: sign * values[method].mean()
        )
        steps = {method: sign * (values[best] - numbers) for method, numbers in values.items() if method is not best}
        chances = _holm({method: _chance_of(step, seed=seed) for method, step in steps.items()})
        for method, numbers in values.items():
            behind = None if method is best else average(steps[method], seed=seed)
            cells[method][metric.key] = Cell(average(numbers, seed=seed), behind, chances.get(method, 1.0))
    return tuple(_summary(rows, method, cells[method]) for method in methods)


def _chance_of(steps: NDArray[np.float64], *, seed: int) -> float:
    """Return the p of a one-sided paired permutation test: how often random signs give a mean at least as large.

    Exact up to 2^13 sign patterns; beyond that as many random ones, counting the observed one.
    """
    total = steps.sum() - 1e-12 * np.abs(steps).sum()  # sums in another order must tie
    if steps.size <= _EXACT:
        signs = 1 - 2 * (np.arange(2**steps.size)[:, None] >> np.arange(steps.size) & 1)
        return float((signs @ steps >= total).mean())
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (2**_EXACT - 1, steps.size))
    return float((1 + (signs @ steps >= total).sum()) / 2**_EXACT)


def _holm(chances: dict[Method, float]) -> dict[Method, float]:
    """Correct p-values for the number of methods compared (Holm)."""
    corrected, floor = {}, 0.0
    for still_tested, (method, chance) in zip(
        range(len(chances), 0, -1), sorted(chances.items(), key=lambda item: item[1]), strict=True
    ):
        floor = max(floor, min(1.0, still_tested * chance))
        corrected[method] = floor
    return {method: corrected[method] for method in chances}


def _values(rows: Sequence[AuditRow], methods: Sequence[Method], key: str) -> dict[Method, NDArray[np.float64]]:
    """Return a metric's values (n,) by method, of the pictures where every method has it."""
    numbers = [{method: measured.numbers for method in methods if (measured := row.of(method))} for row in rows]
    usable = [of_row for of_row in numbers if all(key in of_row.get(method, {}) for method in methods)]
    return {method: np.array([of_row[method][key] for of_row in usable]) for method in methods} if usable else {}


def _summary(rows: Sequence[AuditRow], method: Method, cells: dict[str, Cell]) -> MethodSummary:
    of_method = [measured for row in rows if (measured := row.of(method)) is not None]
    return MethodSummary(
        method,
        cells,
        float(np.mean([measured.passes for measured in of_method])),
        float(np.median([measured.seconds for measured in of_method])),
        sum(measured.status != Status.EXPLAINED for measured in of_method),
    )


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the points (cost, quality) that no other beats in both, cheapest first.

    >>> pareto([(1, 0.5), (2, 0.4), (3, 0.9)])
    [(1, 0.5), (3, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def _shares(rows: Sequence[AuditRow], method: Method, *, seed: int) -> Iterator[Shares]:
    for kind, named in _GROUPS:
        for name in sorted({named(row) for row in rows} - {""}):
            found = [measured.numbers for row in rows if named(row) == name and (measured := row.of(method))]
            if found:
                on_defect = [numbers["ebpg"] for numbers in found if "ebpg" in numbers]
                yield Shares(
                    kind,
                    name,
                    len(found),
                    average([numbers["inside"] for numbers in found], seed=seed),
                    average(on_defect, seed=seed) if on_defect else None,
                    average([numbers["border"] for numbers in found], seed=seed),
                )


def _suspects(rows: Sequence[AuditRow], method: Method) -> tuple[Suspect, ...]:
    """Sort pictures by how much their evidence lies elsewhere, those that do not count for the network first."""
    suspects = [
        Suspect(row, not counts_for_network(row, method), strays(row, method), _why(row, method)) for row in rows
    ]
    return tuple(sorted(suspects, key=lambda one: (not one.accused, not one.strays, -_astray(one.row, method))))


def _astray(row: AuditRow, method: Method) -> float:
    measured = row.of(method)
    if measured is None:
        return 0.0
    numbers = measured.numbers
    if row.closed_drop is None:
        return 1 - numbers["inside"] + numbers["border"]
    return numbers["elsewhere_drop"] - row.closed_drop - numbers.get("aupro", 0.0)


def _why(row: AuditRow, method: Method) -> str:
    measured = row.of(method)
    if measured is None:
        return "not explained"
    numbers = measured.numbers
    if row.closed_drop is None:
        return f"{numbers['inside']:.0%} of the map on the part, {numbers['border']:.0%} on the picture's border"
    where = "begins on the defect" if numbers.get("near") else "begins elsewhere"
    return (
        f"closing the defect takes {row.closed_drop:.0%} of the score, closing the strongest evidence elsewhere "
        f"{numbers['elsewhere_drop']:.0%}; the map {where}, AUPRO {numbers.get('aupro', 0.0):.2f}"
    )


def cohort_maps(audit: Audit) -> list[CohortMap]:
    """Average the first method's maps per label and per station, all brought to one size."""
    first = str(audit.methods[0])
    found = []
    for kind, named in _GROUPS:
        for name in sorted({named(row) for row in audit.rows if row.map_file and named(row)}):
            members = (row for row in audit.rows if row.map_file and named(row) == name)
            gathered = map_cohorts.gather((_to_cohort(audit.maps(row)[first]) for row in members), _COHORT_SIZE)
            if gathered.maps >= FEWEST_MAPS:
                found.append(CohortMap(kind, name, gathered.maps, gathered.mean))
    return found


def _to_cohort(reduced: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = _COHORT_SIZE
    return np.asarray(cv2.resize(reduced, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)
