"""What a browser asks for and sends, read and checked: filters from the address, answers from the form."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl

from inspect_xai.records import Decision, Review, VerdictCode
from inspect_xai.storage.results import StoredInspection
from inspect_xai.storage.review_queue_sql import QueueFilter

FILTERS: Final = ("line", "station", "label", "verdict", "shift", "why")
OLDER: Final = {"h1": 1, "h8": 8, "h24": 24, "h168": 168}
ON_DEFECT: Final = ("yes", "partly", "no")
_MOST_TEXT: Final = 200
_MOST_NOTE: Final = 2000


class FormError(Exception):
    """An answer lacks something; `key` names the text that says what."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def filter_words(query: Mapping[str, str]) -> dict[str, str]:
    """Return the filters of an address as a query string; other parameters are left out."""
    kept = {name: query[name][:_MOST_TEXT] for name in FILTERS if name in query and query[name] != "*"}
    if query.get("older") in OLDER:
        kept["older"] = query["older"]
    return kept


def filters_in(text: str) -> dict[str, str]:
    """Return the filters of a query string that a form carried along."""
    try:
        return filter_words(dict(parse_qsl(text, keep_blank_values=True, max_num_fields=20)))
    except ValueError:
        return {}


def queue_filter(words: Mapping[str, str], now: datetime) -> QueueFilter:
    """Return the filters as the store takes them."""
    older = OLDER.get(words.get("older", ""))
    return QueueFilter(
        **{"reason" if name == "why" else name: words[name] for name in FILTERS if name in words},
        inspected_before=now - timedelta(hours=older) if older else None,
    )


def place_in(text: str) -> tuple[int, int] | None:
    """Return the place in the queue from which an address continues.

    >>> place_in("3-1042"), place_in("x")
    ((3, 1042), None)
    """
    tier, _, number = text.partition("-")
    if tier.isascii() and tier.isdigit() and number.isascii() and number.isdigit() and len(text) < 24:
        return min(int(tier), 99), min(int(number), 2**63 - 1)
    return None


def number_in(text: str) -> int | None:
    """Parse an id; None: it is no whole number of that size.

    >>> number_in("1042"), number_in("-1"), number_in("9" * 30)
    (1042, None, None)
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def answer_in(
    fields: Mapping[str, str], inspection: StoredInspection, *, person: str, blind: bool, reasons: Mapping[str, str]
) -> Review:
    """Read an answer from the fields of a form.

    Args:
        fields: As they were sent. A blind answer says `verdict`, another one `decision`.
        inspection: What the answer is about.
        person: Who answers.
        blind: Whether the model's verdict was hidden.
        reasons: The plant's reason codes.

    Raises:
        FormError: Something is missing or cannot be meant.
    """
    decision, verdict = _decided(fields, inspection, blind=blind)
    reason = fields.get("reason", "")
    if reason and reason not in reasons:
        raise FormError("form.reason")
    if decision is Decision.OVERTURN and not blind and not reason:
        raise FormError("form.reason")
    label = fields.get("label", "")
    if label and label not in inspection.model.card["labels"]:
        raise FormError("form.label")
    note = fields.get("note", "").strip()
    if len(note) > _MOST_NOTE:
        raise FormError("form.note")
    on_defect = fields.get("on_defect", "")
    return Review(
        reviewer=person,
        decision=decision,
        verdict=verdict,
        true_label=label,
        reason_code=reason,
        map_rating=on_defect if on_defect in ON_DEFECT and not blind else "",
        blind=blind,
        box=box_in(fields, (inspection.capture.height_px, inspection.capture.width_px)),
        note=note,
    )


def verdict_of(decision: Decision | str, said: VerdictCode | str) -> VerdictCode:
    """Return the verdict that follows from a person's answer to the model's; an unsure model suspects a defect.

    >>> verdict_of(Decision.CONFIRM, VerdictCode.UNSURE), verdict_of(Decision.OVERTURN, VerdictCode.UNSURE)
    (<VerdictCode.NG: 'NG'>, <VerdictCode.OK: 'OK'>)
    """
    decision, said = Decision(decision), VerdictCode(said)  # words of a form or a record too
    if decision is Decision.UNDECIDED:
        return VerdictCode.UNSURE
    agrees = decision is Decision.CONFIRM
    return VerdictCode.OK if agrees is (said is VerdictCode.OK) else VerdictCode.NG


def box_in(fields: Mapping[str, str], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the box of a form, (top, left, height, width) in source pixels; None: none was drawn.

    Raises:
        FormError: It is no box, or it reaches out of the picture.
    """
    texts = [fields.get(f"box_{name}", "").strip() for name in ("top", "left", "height", "width")]
    if not any(texts):
        return None
    if not all(text.isascii() and text.isdigit() and len(text) < 8 for text in texts):
        raise FormError("form.box")
    top, left, height, width = (int(text) for text in texts)
    if height < 1 or width < 1 or top + height > size[0] or left + width > size[1]:
        raise FormError("form.box")
    return top, left, height, width


def _decided(fields: Mapping[str, str], inspection: StoredInspection, *, blind: bool) -> tuple[Decision, VerdictCode]:
    said = inspection.verdict.code
    try:
        if not blind:
            decision = Decision(fields.get("decision", ""))
            return decision, verdict_of(decision, said)
        verdict = VerdictCode(fields.get("verdict", ""))
    except ValueError as error:
        raise FormError("form.decision") from error
    if verdict is VerdictCode.UNSURE:
        return Decision.UNDECIDED, verdict
    agrees = (verdict is VerdictCode.OK) is (said is VerdictCode.OK)
    return (Decision.CONFIRM if agrees else Decision.OVERTURN), verdict
