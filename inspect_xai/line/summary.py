"""What a line did: the outcome for one file, and counts of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inspect_xai.records import VerdictCode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one claimed file.

    Attributes:
        file_name: Path below the source.
        inspection_id: Of its row.
        is_new: It was recorded now; False: that picture, model and policy had a row already.
        verdict: The line's; None where the row stood already and nothing was computed.
        explained: An explanation was recorded with it.
        failed: The picture could not be judged, or not explained although the rules asked for it.
        passes: Forward passes spent on its explanation.
        recorded_for: Serial of the part that the very same bytes were recorded for before, where the file names another
            part: the row describes that earlier one. Empty: the file names the recorded part.
    """

    file_name: str
    inspection_id: int
    is_new: bool
    verdict: VerdictCode | None
    explained: bool
    failed: bool
    passes: int
    recorded_for: str = ""


@dataclass(frozen=True, slots=True)
class LineSummary:
    """What a line did: counts of pictures, forward passes for explanations, and seconds of wall time.

    `under_another_part` counts files whose bytes were recorded for another part before: a camera that froze, or a part
    with two names. `unmatched` counts sidecars and tables in the source that belong to no picture at the end.
    """

    run_id: str
    provider: str
    seen: int = 0
    inspected: int = 0
    already_known: int = 0
    ok: int = 0
    ng: int = 0
    unsure: int = 0
    failed: int = 0
    explained: int = 0
    passes: int = 0
    under_another_part: int = 0
    unmatched: int = 0
    seconds: float = 0.0

    def plus(self, outcomes: Sequence[Outcome]) -> "LineSummary":
        """Return the summary with these outcomes counted in."""
        new = [outcome for outcome in outcomes if outcome.is_new]
        codes = [outcome.verdict for outcome in new]
        return replace(
            self,
            seen=self.seen + len(outcomes),
            inspected=self.inspected + len(new),
            already_known=self.already_known + len(outcomes) - len(new),
            ok=self.ok + codes.count(VerdictCode.OK),
            ng=self.ng + codes.count(VerdictCode.NG),
            unsure=self.unsure + codes.count(VerdictCode.UNSURE),
            failed=self.failed + sum(outcome.failed for outcome in new),
            explained=self.explained + sum(outcome.explained for outcome in new),
            passes=self.passes + sum(outcome.passes for outcome in new),
            under_another_part=self.under_another_part + sum(bool(outcome.recorded_for) for outcome in outcomes),
        )
