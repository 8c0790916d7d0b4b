"""Answer the verdicts of a sample line as its truth says: flagged parts, and the random share of the passed ones.

    python examples/answer_line.py --db sqlite:///run/inspections.db --truth run/line/truth.csv --until 2026-11-22

In a plant people do this on the review desk (inspect-xai serve). Parts captured from --until on are left to wait.
"""

import argparse
import csv
from datetime import UTC, date, datetime, time
from pathlib import Path

from surfaces import OK_LABEL

from inspect_xai.records import Decision, Review, VerdictCode
from inspect_xai.storage.store import open_store

_PERSON = "truth"


def answer(url: str, *, truth: Path, until: date) -> int:
    """Answer what has no answer yet.

    Returns:
        How many answers were given.
    """
    with truth.open(newline="", encoding="utf-8") as file:
        labels = {row["part"]: row["label"] for row in csv.DictReader(file)}
    count = 0
    with open_store(url, create=False) as store:
        end = datetime.combine(until, time.min, UTC)
        for row in store.day(datetime(2000, 1, 1, tzinfo=UTC), end, by="captured_at"):
            if row.review_decision or (row.verdict == VerdictCode.OK and row.explained_because != "sample"):
                continue
            is_defect = labels[row.serial] != OK_LABEL
            agrees = is_defect == (row.verdict != VerdictCode.OK)  # an unsure model suspects a defect
            decision = Decision.CONFIRM if agrees else Decision.OVERTURN
            said = VerdictCode.NG if is_defect else VerdictCode.OK
            store.review(row.inspection_id, Review(_PERSON, decision, said))
            count += 1
    return count


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", required=True, help="database URL")
    parser.add_argument("--truth", type=Path, required=True, help="truth.csv of make_line.py")
    parser.add_argument("--until", type=date.fromisoformat, required=True, help="first day that is not answered")
    given = parser.parse_args()
    print(f"{answer(given.db, truth=given.truth, until=given.until)} answers")


if __name__ == "__main__":
    main()
