"""Which part a picture shows: read from its path by one pattern, or from the sidecar file beside it."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.records import Part

DEFAULT_PATTERN = "{line}/{station}/{serial}_{lot}_{camera}_{view}_{shift}_{captured_at}"
FIELDS = ("line", "station", "serial", "product", "lot", "camera", "view", "shift", "captured_at")

_TIME = r"\d{8}T\d{6}(?:\.\d{1,6})?Z"
# The archive keeps a picture's name and adds the first digits of its hash; put back into a source it is the same part.
HASH_DIGITS = 12
_ARCHIVED = re.compile(rf"~[0-9a-f]{{{HASH_DIGITS}}}$")


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known of a capture before its pixels are looked at.

    Attributes:
        part: The physical piece.
        captured_at: When, in UTC.
        known_from: "sidecar", "path", or "file" where neither told: then the serial is the file's stem and the time
            that of its last change.
    """

    part: Part
    captured_at: datetime
    known_from: str
    line: str = ""
    station: str = ""
    camera: str = ""
    view: str = ""
    shift: str = ""


class PathPattern:
    """Reads part and circumstances from a picture's path below its source, suffix left off.

    A field holds neither a slash nor the characters that stand next to it in the pattern, so a path is read in one
    way or not at all: with `{serial}_{lot}` a serial that holds an underscore does not match. `{_}` stands for
    something not kept. Times look like 20261122T061500Z or 20261122T061500.250Z.

    Args:
        pattern: For instance `{line}/{station}/{serial}_{captured_at}`.

    Raises:
        SettingsError: If the pattern names unknown fields or cannot be read in one way.
    """

    def __init__(self, pattern: str = DEFAULT_PATTERN) -> None:
        self.pattern = pattern
        self._regex = _compile(pattern)

    def identify(self, file_name: str, *, modified_at: datetime, sidecar: bytes | None = None) -> Identity:
        """Say which part a picture shows.

        Args:
            file_name: Path below the source, with forward slashes.
            modified_at: The file's last change, UTC; stands in where no time is known.
            sidecar: Content of the JSON file beside the picture, whose fields go before those of the path.

        Raises:
            PictureError: If there is a sidecar and it does not say what it must: its picture's part is unknown.
        """
        path = PurePosixPath(_ARCHIVED.sub("", str(PurePosixPath(file_name).with_suffix(""))))
        fields: dict[str, str] = {}
        captured_at = None
        known_from = "file"
        match = self._regex.fullmatch(str(path))
        if match:
            found = match.groupdict()
            captured_at = _parse_compact(found.pop("captured_at")) if "captured_at" in found else modified_at
            if captured_at is not None:  # digits such as month 13 are no time: then the path is not of this pattern
                fields, known_from = found, "path"
        if sidecar is not None:
            told, told_at = _read_sidecar(sidecar)
            fields, captured_at, known_from = fields | told, told_at or captured_at, "sidecar"
        return Identity(
            part=Part(fields.pop("serial", path.name), fields.pop("product", ""), fields.pop("lot", "")),
            captured_at=captured_at or modified_at,
            known_from=known_from,
            **fields,
        )


def _compile(pattern: str) -> re.Pattern[str]:
    # Odd pieces are the names between braces: "{a}/{b}" -> "", "a", "/", "b", "".
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    literals, names = pieces[::2], pieces[1::2]
    kept = [name for name in names if name != "_"]
    unknown = sorted(set(kept) - set(FIELDS))
    if unknown or len(kept) != len(set(kept)) or "serial" not in kept:
        raise SettingsError(
            f"the path pattern {pattern!r} has the fields {', '.join(names) or 'none'}",
            expected=f"each at most once, serial among them, of: {', '.join(FIELDS)}, or _ for what is not kept",
            remedy="correct path_pattern in the settings",
        )
    if any(brace in literal for brace in "{}" for literal in literals) or "" in literals[1:-1]:
        raise SettingsError(
            f"the path pattern {pattern!r} cannot be read in one way",
            expected="closed braces, and a character between two fields",
            remedy="correct path_pattern in the settings",
        )
    regex = re.escape(literals[0])
    for before, name, after in zip(literals, names, literals[1:], strict=False):
        if name == "captured_at":
            field = _TIME
        else:
            beside = re.escape("/" + before[-1:] + after[:1])
            field = f"[^{beside}]+"
        regex += (f"(?:{field})" if name == "_" else f"(?P<{name}>{field})") + re.escape(after)
    return re.compile(regex)


def _parse_compact(text: str) -> datetime | None:
    form = "%Y%m%dT%H%M%S.%fZ" if "." in text else "%Y%m%dT%H%M%SZ"
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


def _read_sidecar(content: bytes) -> tuple[dict[str, str], datetime | None]:
    """Return the known text fields and the time of a sidecar; a camera's own further keys are left alone."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PictureError(f"the sidecar file is no JSON: {error}", remedy="mend or remove the sidecar") from error
    if not isinstance(said, dict):
        raise PictureError("the sidecar file holds no JSON object", expected=f"an object with {', '.join(FIELDS)}")
    fields = {name: said[name] for name in FIELDS if name in said}
    wrong = sorted(name for name, value in fields.items() if not (isinstance(value, str) and value.isprintable()))
    if wrong or fields.get("serial") == "":
        raise PictureError(
            f"the sidecar gives {', '.join(wrong) or 'serial'} no text", expected="printable text in quotation marks"
        )
    stated = fields.pop("captured_at", None)
    return fields, None if stated is None else _parse_iso(stated)


def _parse_iso(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise PictureError(
            f"the sidecar's captured_at is {text!r}", expected="a time with its zone, such as 2026-11-22T06:15:00Z"
        )
    return moment.astimezone(UTC)
