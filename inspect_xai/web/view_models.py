"""What the pages show of a record, put into words and shapes before a template sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from inspect_xai.records import Status
from inspect_xai.storage.results import StoredInspection, is_no_better_than_chance
from inspect_xai.storage.review_queue import Conflict, ConflictKind
from inspect_xai.storage.review_queue_sql import QueueEntry
from inspect_xai.web.i18n import Words
from inspect_xai.web.rendering import Archive, blocks_shown, content_name

_OPACITY: Final = 70


class Stage(StrEnum):
    """What the reader can do about an inspection at this moment."""

    READ_ONLY = "read_only"  # their role lets them look
    FIRST = "first"
    BLIND = "blind"  # answer first, then see what the model said
    REVEAL = "reveal"  # after the blind answer
    SECOND = "second"  # somebody answered, another person is wanted
    THIRD = "third"  # two people disagree
    OWN = "own"  # the reader is that somebody
    HELD = "held"  # somebody else is at it
    DONE = "done"

    @property
    def is_open(self) -> bool:
        """Whether an answer is wanted from this reader."""
        return self in (Stage.FIRST, Stage.BLIND, Stage.REVEAL, Stage.SECOND, Stage.THIRD)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How picture and map are drawn. `missing` is the key of the text why there is no picture; empty: there is one.

    Attributes:
        number: Which map: 0 the fused one, 1 and up a block's; -1 none.
        blocks: Names of the blocks with a map.
        opacity: Of the map's largest value, in percent.
        version: Names the content, so that another one has another address.
    """

    missing: str
    has_map: bool
    number: int
    blocks: tuple[str, ...]
    opacity: int
    with_outlines: bool
    version: str


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A label with its score and, for a defect, the limit at which it rejects."""

    label: str
    score: float
    limit: float | None
    is_over: bool
    is_named: bool  # the label the verdict speaks of


@dataclass(frozen=True, slots=True)
class Sheet:
    """The words about one inspection. `no_map` says why there is no map; empty: there is one."""

    verdict: str
    no_map: str
    map_meaning: str
    notes: tuple[str, ...]
    scores: tuple[ScoreRow, ...]
    faithful: str  # whether the map is true to the model; empty: not measured
    is_faithful: bool


def drawing(given: StoredInspection, query: Mapping[str, str], *, is_blind: bool, archive: Archive) -> Drawing:
    """Decide what is drawn, by the record and what the reader asked for in the address."""
    explanation = given.explanation
    has_map = (
        not is_blind
        and explanation is not None
        and explanation.status is Status.EXPLAINED
        and not explanation.maps_deleted
    )
    blocks = blocks_shown(explanation) if has_map else ()
    number = _number_in(query.get("map", ""), least=-1, most=len(blocks), default=0)
    opacity = _number_in(query.get("opacity", ""), least=0, most=100, default=_OPACITY)
    return Drawing(
        missing=archive.fault(given),
        has_map=has_map,
        number=number,
        blocks=blocks,
        opacity=round(opacity, -1),
        with_outlines=query.get("outlines") != "0",
        version=content_name(given.capture.sha256, given.model.fingerprint, given.policy_version),
    )


def sheet(given: StoredInspection, words: Words) -> Sheet:
    """Put an inspection into words."""
    verdict = given.verdict
    explanation = given.explanation
    label = explanation.settings.target if explanation else verdict.label
    notes = tuple(_note(code, words) for code in (explanation.notes if explanation else ()))
    return Sheet(
        verdict=words(
            f"reason.{verdict.reason}",
            label=verdict.label,
            score=words.percent(verdict.score),
            threshold=words.percent(verdict.threshold),
        ),
        no_map=_no_map(given, words, label),
        map_meaning=words("map.meaning", label=label),
        notes=notes,
        scores=_scores(given),
        faithful=_faithful(explanation.faithfulness, words) if explanation else "",
        is_faithful=explanation is None or not is_no_better_than_chance(explanation.faithfulness),
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an answer or a claim was not taken, in words: a title and a sentence."""

    title: str
    text: str


def refusal(conflict: Conflict, words: Words, *, person: str, serial: str) -> Refusal:
    """Put a conflict into words for the person who met it; it may be with an answer of their own from another tab."""
    is_own = conflict.person == person
    time = words.clock(conflict.until) if conflict.until else ""
    key = f"conflict.{conflict.kind}"
    by_oneself = f"{key}_oneself"
    is_somebody = not is_own and conflict.kind in (ConflictKind.CLAIMED, ConflictKind.JUDGED)
    return Refusal(
        words("conflict.title" if is_somebody else "conflict.title_oneself"),
        words(by_oneself if is_own and words.has(by_oneself) else key, name=conflict.person, serial=serial, time=time),
    )


def place_of(entry: QueueEntry) -> str:
    """Write a place in the queue as addresses hold it (`forms.place_in` reads it)."""
    return f"{entry.priority}-{entry.inspection_id}"


def waited(moment: datetime, now: datetime) -> timedelta:
    """How long ago something was."""
    return now - moment


def _note(code: str, words: Words) -> str:
    name, _, number = code.rpartition("_")
    if number.isdecimal():  # bucket_halved_to_4, head_passes_49
        name = name.removesuffix("_to")
        return words(f"note.{name}", number=number) if words.has(f"note.{name}") else words("note.other", code=code)
    return words(f"note.{code}") if words.has(f"note.{code}") else words("note.other", code=code)


def _faithful(found: Mapping[str, float], words: Words) -> str:
    if "deletion_percent" not in found:
        return ""
    shares = {
        "left": found["deletion_percent"],
        "left_random": found["deletion_percent_random"],
        "kept": 100 - found["drop_percent"],
        "kept_random": 100 - found["drop_percent_random"],
    }
    key = "faithful.chance" if is_no_better_than_chance(found) else "faithful.better"
    return words(key, **{name: words.percent(share / 100) for name, share in shares.items()})


def _no_map(given: StoredInspection, words: Words, label: str) -> str:
    explanation = given.explanation
    if explanation is None:
        return words("map.none" if given.failure is None else "map.not_judged")
    if explanation.status is not Status.EXPLAINED:
        return words(f"map.{explanation.status}", label=label)
    return words("map.deleted") if explanation.maps_deleted else ""


def _scores(given: StoredInspection) -> tuple[ScoreRow, ...]:
    if given.prediction is None:
        return ()
    card = given.model.card
    verdict = card.get("verdict", {})
    usual, own = verdict.get("ng_threshold", 0.5), verdict.get("thresholds", {})
    rows = []
    for label, score in zip(card["labels"], given.prediction.scores, strict=False):
        limit = None if label in card.get("ok_labels", ()) else float(own.get(label, usual))
        rows.append(ScoreRow(label, score, limit, limit is not None and score >= limit, label == given.verdict.label))
    return tuple(sorted(rows, key=lambda row: -row.score))


def _number_in(text: str, *, least: int, most: int, default: int) -> int:
    try:
        return min(most, max(least, int(text[:6])))
    except ValueError:
        return default
