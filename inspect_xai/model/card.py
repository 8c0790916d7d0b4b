"""Model card (card.toml): the facts about a network, read strictly, written in one canonical form."""

import difflib
import json
import reprlib
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from inspect_xai.errors import CardError
from inspect_xai.files import decode_text, read_toml
from inspect_xai.records import (
    MAX_NAME_CHARS,
    Activation,
    ExplainSpec,
    Fit,
    InputSpec,
    ModelCard,
    OutputSpec,
    Resize,
    VerdictSpec,
    is_printable,
)

_ADAPTER = TypeAdapter(ModelCard)
_MOST_CARD_BYTES = 1 << 20
_MOST_SIDE_PX = 16_384
# Far beyond any camera's levels and any network's units; numbers beyond these leave nothing of the picture in float32.
_LARGEST_NUMBER = 1e6
_LEAST_DIVISOR = 1e-6
_SECTIONS: dict[str, type] = {"input": InputSpec, "output": OutputSpec, "verdict": VerdictSpec, "explain": ExplainSpec}
_REMEDY = "edit the card; docs/reference/card.md lists every key"


def read_card(path: Path, *, alone: bool = False) -> ModelCard:
    """Read a card from a TOML file.

    Args:
        path: The file, usually `card.toml`.
        alone: It must list its labels itself, and not name a file of them.

    Raises:
        CardError: If the file cannot be read or is no valid card; every mistake is listed.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_CARD_BYTES + 1)
        if len(raw) > _MOST_CARD_BYTES:
            raise CardError(f"{path} is larger than {_MOST_CARD_BYTES} bytes", expected="a card of a few lines")
        document = read_toml(raw)
    except OSError as error:
        raise CardError(f"{path} cannot be read: {error.strerror}", remedy="give the path of a card.toml") from error
    except ValueError as error:
        raise CardError(f"{path} is no TOML: {error}", expected="a TOML file in UTF-8", remedy=_REMEDY) from error
    return card_from(document, source=str(path), folder=None if alone else path.parent)


def card_text(path: Path, card: ModelCard) -> bytes:
    """Return the card's file as it was written; with its labels listed where it names a file of labels."""
    text = path.read_bytes()
    return card_toml(card).encode() if isinstance(read_toml(text).get("labels"), str) else text


def card_from(document: dict[str, Any], *, source: str = "card", folder: Path | None = None) -> ModelCard:
    """Make a card from plain values.

    Args:
        document: The card's keys, as TOML gives them.
        source: Where they come from, for messages.
        folder: Below which `labels = "labels.txt"` lies; None: such a file is not read.

    Raises:
        CardError: If a key is missing, unknown, of the wrong kind, or contradicts another; every mistake is listed.
    """
    plain, mistakes = _without_shorthand(document)
    if isinstance(plain.get("labels"), str):
        plain["labels"] = _labels_in(plain["labels"], folder, source=source)
    try:
        # Strict JSON: a list may become a tuple and a word an enum, but "224" never becomes a number.
        card = _ADAPTER.validate_json(json.dumps(plain, default=str), strict=True)
    except ValidationError as error:
        mistakes += [_translated(dict(detail)) for detail in error.errors()]
    else:
        mistakes += _contradictions(card)
    if mistakes:
        raise CardError(f"{source}: " + "; ".join(mistakes), remedy=_REMEDY)
    return card


def check_card(card: ModelCard) -> None:
    """Refuse a card made in code that contradicts itself.

    Raises:
        CardError: Listing every mistake.
    """
    mistakes = list(_contradictions(card))
    if mistakes:
        raise CardError("the card: " + "; ".join(mistakes))


def canonical(card: ModelCard) -> str:
    """Return the card as JSON text that is equal for equal cards, whatever the order or the comments of the file.

    What a card leaves at its default is left out, so that a key added to a later version changes no old fingerprint.
    """
    document = _ADAPTER.dump_python(card, mode="json", exclude_defaults=True)
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def card_toml(card: ModelCard) -> str:
    """Return the card as a TOML document that `read_card` reads back as the same card."""
    plain = asdict(card)
    top = [f"{key} = {_toml(value)}" for key, value in plain.items() if key not in _SECTIONS]
    lines = ["\n".join(top)]
    for section in _SECTIONS:
        tables = {key: value for key, value in plain[section].items() if isinstance(value, dict)}
        rows = [f"{key} = {_toml(value)}" for key, value in plain[section].items() if key not in tables]
        lines.append("\n".join([f"[{section}]", *rows]))
        for name, table in tables.items():
            if table:
                rows = [f"{_toml(key)} = {_toml(value)}" for key, value in table.items()]
                lines.append("\n".join([f"[{section}.{name}]", *rows]))
    return "\n\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's too, but for DEL, which JSON leaves as it is and TOML forbids.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _without_shorthand(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Spell out `ok_label = "x"` and `blocks = "auto"`."""
    plain, mistakes = dict(document), []
    if "ok_label" in plain:
        label = plain.pop("ok_label")
        if "ok_labels" in plain:
            mistakes.append("ok_label: found beside ok_labels, expected one of the two")
        plain["ok_labels"] = [label]
    explain = plain.get("explain")
    if isinstance(explain, dict) and explain.get("blocks") == "auto":
        plain["explain"] = explain | {"blocks": []}
    return plain, mistakes


def _labels_in(name: str, folder: Path | None, *, source: str) -> list[str]:
    """Read the file of labels that a card names: one per line, in the order of the network's output."""
    if folder is None:
        raise CardError(
            f"{source}: labels: found {reprlib.repr(name)}, expected a list of labels",
            remedy="name a file of labels in the card.toml that a bundle is built from; the bundle holds the list",
        )
    path = folder / name
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_CARD_BYTES + 1)
        if len(raw) > _MOST_CARD_BYTES:
            raise CardError(
                f"{source}: labels: {path} is larger than {_MOST_CARD_BYTES} bytes", expected="one label per line"
            )
        lines = decode_text(raw).rstrip().split("\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CardError(
            f"{source}: labels: {path} cannot be read: {why}",
            expected="a text file in UTF-8 with one label per line",
            remedy="give its path relative to the card, or list the labels: labels = [...]",
        ) from error
    return [line.strip() for line in lines]


def _translated(detail: dict[str, Any]) -> str:
    """Describe one mistake that pydantic found as "key: found, expected"."""
    *above, last = detail["loc"]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return f"{key}: found nothing, expected this key"
    if detail["type"] == "unexpected_keyword_argument":
        home = _SECTIONS.get(str(above[0])) if above else ModelCard
        known = [field.name for field in fields(home)] if home else []
        near = difflib.get_close_matches(str(last), known, n=1)
        expected = f"did you mean {near[0]}" if near else f"expected one of {', '.join(known)}"
        return f"{key}: unknown key, {expected}"
    expected = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}: found {reprlib.repr(detail['input'])}, expected {expected}"


def _contradictions(card: ModelCard) -> Iterator[str]:
    """Yield one text for each value that is invalid or contradicts another."""
    yield from _wrong_names(card)
    yield from _wrong_labels(card)
    yield from _wrong_input(card.input)
    verdict, explain = card.verdict, card.explain
    for key, threshold in [("ng_threshold", verdict.ng_threshold), *verdict.thresholds.items()]:
        if not 0 < threshold <= 1:
            where = key if key == "ng_threshold" else f"thresholds.{key}"
            yield f"verdict.{where}: found {threshold}, expected a probability above 0 and up to 1"
    for label in verdict.thresholds:
        if label not in card.defect_labels:
            yield f"verdict.thresholds.{label}: no defect label, expected one of {', '.join(card.defect_labels)}"
    if not 0 <= verdict.unsure_margin < 1:
        yield f"verdict.unsure_margin: found {verdict.unsure_margin}, expected at least 0 and below 1"
    if not 0 <= explain.mu < 1:
        yield f"explain.mu: found {explain.mu}, expected at least 0 and below 1 (at 1 no channel is selected)"
    if not 0 < explain.int8_fidelity < 1:
        yield f"explain.int8_fidelity: found {explain.int8_fidelity}, expected a correlation above 0 and below 1"
    if len(set(explain.blocks)) < len(explain.blocks) or "" in explain.blocks:
        yield f"explain.blocks: found {list(explain.blocks)}, expected different tensor names"


def _wrong_names(card: ModelCard) -> Iterator[str]:
    for key, name in [("name", card.name), ("version", card.version), *(("labels", label) for label in card.labels)]:
        if len(name) > MAX_NAME_CHARS or not is_printable(name):
            yield f"{key}: found {name[:40]!r}, expected at most {MAX_NAME_CHARS} printable characters"
    for key in ("name", "version"):
        if not getattr(card, key).strip():
            yield f"{key}: found an empty text, expected a name"


def _wrong_labels(card: ModelCard) -> Iterator[str]:
    if not card.labels or not all(label.strip() for label in card.labels):
        yield f"labels: found {list(card.labels)}, expected at least one name and no empty one"
    for key, labels in (("labels", card.labels), ("ok_labels", card.ok_labels)):
        doubled = sorted({label for label in labels if labels.count(label) > 1})
        if doubled:
            yield f"{key}: found {', '.join(doubled)} more than once, expected different names"
    if len(card.labels) == 1 and card.output.activation is Activation.SOFTMAX:
        yield "labels: found one label with a softmax over it, which is always 1; expected two or more, or sigmoid"
    for label in card.ok_labels:
        if label not in card.labels:
            yield f"ok_labels: found {label!r}, expected one of {', '.join(card.labels)}"
    positive = card.output.positive_label
    if positive and (len(card.labels) != 2 or positive not in card.labels):
        expected = f"one of {', '.join(card.labels)}" if len(card.labels) == 2 else "this key for two labels only"
        yield f"output.positive_label: found {positive!r}, expected {expected}"


def _wrong_input(spec: InputSpec) -> Iterator[str]:
    for key in ("height", "width"):
        side = getattr(spec, key)
        if not 1 < side <= _MOST_SIDE_PX:
            yield f"input.{key}: found {side}, expected 2 to {_MOST_SIDE_PX} pixels"
    if not 0 <= spec.tile_overlap <= 0.9:
        yield f"input.tile_overlap: found {spec.tile_overlap}, expected 0 to 0.9"
    if not _LEAST_DIVISOR <= spec.scale <= _LARGEST_NUMBER:
        yield f"input.scale: found {spec.scale}, expected a number from {_LEAST_DIVISOR} to {_LARGEST_NUMBER:g}"
    for key, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) not in (1, spec.depth):
            lengths = "1" if spec.depth == 1 else f"1 or {spec.depth}"
            yield f"input.{key}: found {len(numbers)} numbers, expected {lengths} for {spec.channels} channels"
    if not all(abs(number) <= _LARGEST_NUMBER for number in spec.mean):
        yield f"input.mean: found {list(spec.mean)}, expected numbers from -{_LARGEST_NUMBER:g} to {_LARGEST_NUMBER:g}"
    if not all(_LEAST_DIVISOR <= number <= _LARGEST_NUMBER for number in spec.std):
        yield f"input.std: found {list(spec.std)}, expected numbers from {_LEAST_DIVISOR} to {_LARGEST_NUMBER:g}"
    yield from _wrong_resizing(spec)


def _wrong_resizing(spec: InputSpec) -> Iterator[str]:
    if spec.resize is not Resize.AREA and spec.fit is Fit.TILE:
        yield f"input.resize: found {spec.resize}, but tiles are cut at native scale; expected another fit beside it"
    if spec.resize_short and spec.fit is not Fit.CENTER_CROP:
        yield f'input.resize_short: found with fit = "{spec.fit}", expected with fit = "center-crop" only'
    elif spec.resize_short and not max(spec.height, spec.width) <= spec.resize_short <= _MOST_SIDE_PX:
        yield (
            f"input.resize_short: found {spec.resize_short}, expected {max(spec.height, spec.width)} to "
            f"{_MOST_SIDE_PX} pixels, so that the network's window lies within the picture"
        )
    if spec.pad_color and spec.fit is not Fit.LETTERBOX:
        yield f'input.pad_color: found with fit = "{spec.fit}", expected with fit = "letterbox" only'
    if spec.pad_color and len(spec.pad_color) not in (1, spec.depth):
        yield f"input.pad_color: found {len(spec.pad_color)} numbers, expected 1 or {spec.depth}"
    if not all(0 <= number <= 255 for number in spec.pad_color):
        yield f"input.pad_color: found {list(spec.pad_color)}, expected whole numbers from 0 to 255"
