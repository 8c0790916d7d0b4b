"""The part that a picture shows: read from its path by one pattern, or from the sidecar file beside it."""

import hashlib
import json
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from zoneinfo import ZoneInfo

from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.records import MAX_NAME_CHARS, Part, is_printable
from inspect_xai.settings import DEFAULT_PATTERN

FIELDS = ("line", "station", "serial", "product", "lot", "camera", "view", "shift", "captured_at")

FIRST_CAPTURE = datetime(1990, 1, 1, tzinfo=UTC)
"""Earlier times are those of a clock that was never set; later ones than tomorrow's are refused as well."""

_CLOCKS_APART = timedelta(days=1)
_BUILT = datetime(2026, 1, 1, tzinfo=UTC)  # a clock that says less lost its battery: it refuses no time
_NO_CLOCK = datetime(2100, 1, 1, tzinfo=UTC)

_TIME = r"\d{8}T\d{6}(?:\.\d{1,6})?Z"
# The archive keeps a picture's name and adds the first digits of its hash; put back into a source it is the same part.
HASH_DIGITS = 12
_ARCHIVED = re.compile(rf"~[0-9a-f]{{{HASH_DIGITS}}}$")


SHARED_BY = "inspect_xai_shared_by"
"""Key of the sidecar that each picture gets which shared one with others: nobody knows which of them it meant."""

AMBIGUOUS = "inspect_xai_ambiguous"
"""Key of the sidecar that a picture gets beside which several lie that may be its own."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The part and circumstances of a capture, as known before its pixels are read.

    Attributes:
        part: The physical piece.
        captured_at: When, in UTC.
        known_from: "sidecar", "path", or "file" where neither says it: then the serial is the file's stem and the time
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
        zone: The plant's, in which a sidecar's time without zone is read; None: such a time is refused.

    Raises:
        SettingsError: If the pattern names unknown fields or cannot be read in one way.
    """

    def __init__(self, pattern: str = DEFAULT_PATTERN, *, zone: ZoneInfo | None = None) -> None:
        self.pattern = pattern
        self._zone = zone
        self._regex = _compile(pattern)

    def identify(
        self, file_name: str, *, modified_at: datetime, sidecar: bytes | None = None, recorded: bool = False
    ) -> Identity:
        """Return which part a picture shows.

        Text is brought into Unicode's composed form (NFC), and control characters of a path are spelled out.

        Args:
            file_name: Path below the source, with forward slashes.
            modified_at: The file's last change, UTC; stands in where no time is known.
            sidecar: Content of the JSON file beside the picture, whose fields go before those of the path; null stands
                for a field that is not given.
            recorded: The sidecar is the identity of a recorded picture, which is not held to any bound again.

        Raises:
            PictureError: If there is a sidecar and it does not say what it must, a field is longer than
                `MAX_NAME_CHARS`, no serial is left, or the time lies before `FIRST_CAPTURE` or after tomorrow: nobody
                knows which part the picture shows.
        """
        stated = self._of_path(file_name)
        if sidecar is not None:
            beside = _read_sidecar(sidecar, self._zone)
            if beside.error is not None:
                raise beside.error
            stated = beside.over(stated)
        if not recorded:
            stated = replace(stated, fields={name: composed(value) for name, value in stated.fields.items()})
            _require_bounds(stated.fields)
            if stated.captured_at is not None:
                _require_time(stated.captured_at, modified_at=modified_at)
        return stated.identity(modified_at)

    def stand_in(self, file_name: str, *, modified_at: datetime, sidecar: bytes | None = None) -> Identity:
        """Return what can be recorded of a picture whose identity cannot be read whole.

        What its sidecar says rightly goes before its path; where neither leaves a serial, its file's name stands in.
        """
        stated = self._of_path(file_name).recordable(modified_at)
        if sidecar is not None:
            stated = _read_sidecar(sidecar, self._zone).recordable(modified_at).over(stated)
        if not stated.fields.get("serial"):
            return by_file(file_name, modified_at=modified_at)
        return stated.identity(modified_at)

    def _of_path(self, file_name: str) -> "_Stated":
        path = _without_suffix(file_name)
        match = self._regex.fullmatch(str(path))
        if match:
            fields = match.groupdict()
            time = fields.pop("captured_at", None)
            captured_at = None if time is None else _parse_compact(time)
            if time is None or captured_at is not None:  # digits such as month 13 are no time: it is another pattern's
                return _Stated(fields, captured_at, "path")
        return _Stated({"serial": path.name}, None, "file")


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a path or a sidecar says of a picture; `error`: what is wrong with the rest of it."""

    fields: dict[str, str]
    captured_at: datetime | None
    known_from: str
    error: PictureError | None = None

    def over(self, other: "_Stated") -> "_Stated":
        """Return this, and what the other says beside it."""
        if not self.fields and self.captured_at is None and self.error is not None:
            return other
        return _Stated(other.fields | self.fields, self.captured_at or other.captured_at, self.known_from)

    def recordable(self, modified_at: datetime) -> "_Stated":
        """Return what of this is within bounds."""
        fields = {}
        for name, value in self.fields.items():
            with suppress(PictureError):
                _require_bounds({name: composed(value)})
                fields[name] = composed(value)
        captured_at = None
        with suppress(PictureError):
            if self.captured_at is not None:
                _require_time(self.captured_at, modified_at=modified_at)
            captured_at = self.captured_at
        return replace(self, fields=fields, captured_at=captured_at)

    def identity(self, modified_at: datetime) -> Identity:
        fields = dict(self.fields)
        part = Part(fields.pop("serial"), fields.pop("product", ""), fields.pop("lot", ""))
        return Identity(part=part, captured_at=self.captured_at or modified_at, known_from=self.known_from, **fields)


def by_file(file_name: str, *, modified_at: datetime) -> Identity:
    """Return an identity that any database takes: the serial is the file's name, shortened to its start and a hash."""
    name = composed(_without_suffix(file_name).name)
    if len(name) > MAX_NAME_CHARS or not name.strip():
        name = f"{name[: MAX_NAME_CHARS // 2]}~{hashlib.sha256(file_name.encode()).hexdigest()[:HASH_DIGITS]}"
    return Identity(Part(name), modified_at, "file")


def composed(text: str) -> str:
    r"""Return text as it is kept: composed (NFC), with control characters and marks of direction spelled out.

    >>> composed("Pru\u0308fling\n"), composed("a b")
    ('Prüfling\\n', 'a b')
    """
    normal = unicodedata.normalize("NFC", text)
    if is_printable(normal):
        return normal
    return "".join(char if is_printable(char) else char.encode("unicode_escape").decode() for char in normal)


def _without_suffix(file_name: str) -> PurePosixPath:
    return PurePosixPath(_ARCHIVED.sub("", str(PurePosixPath(file_name).with_suffix(""))))


def _require_bounds(fields: dict[str, str]) -> None:
    long = sorted(name for name, value in fields.items() if len(value) > MAX_NAME_CHARS)
    if long:
        raise PictureError(
            f"{long[0]} has {len(fields[long[0]])} characters: {fields[long[0]][:40]!r} ..",
            expected=f"at most {MAX_NAME_CHARS}",
            remedy="correct what names the part: sidecar, manifest or path",
        )
    if not fields.get("serial", "-").strip():
        raise PictureError("the serial is blank", expected="the number of the part", remedy="correct what names it")


def _require_time(captured_at: datetime, *, modified_at: datetime) -> None:
    """Refuse the times of clocks that were never set; later than tomorrow is by this machine's clock or the files'."""
    now = datetime.now(UTC)
    latest = max(now, modified_at) + _CLOCKS_APART if now > _BUILT else _NO_CLOCK
    if not FIRST_CAPTURE <= captured_at <= latest:
        raise PictureError(
            f"the picture is said to be of {captured_at:%Y-%m-%d %H:%M:%S} UTC",
            expected=f"a time from {FIRST_CAPTURE:%Y-%m-%d} to {latest:%Y-%m-%d}",
            remedy="set the camera's clock",
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


def _read_sidecar(content: bytes, zone: ZoneInfo | None) -> _Stated:
    """Return the known fields of a sidecar, and what is wrong with it; a camera's own further keys are left alone."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        return _unread(PictureError(f"the sidecar file is no JSON: {error}", remedy="correct or remove the sidecar"))
    if not isinstance(document, dict):
        expected = f"an object with {', '.join(FIELDS)}"
        return _unread(PictureError("the sidecar file holds no JSON object", expected=expected))
    if SHARED_BY in document:
        return _unread(shared(document[SHARED_BY]))
    if AMBIGUOUS in document:
        return _unread(ambiguous(document[AMBIGUOUS]))
    stated = {name: document[name] for name in FIELDS if document.get(name) is not None}
    fields = {name: value for name, value in stated.items() if isinstance(value, str) and is_printable(value)}
    if "serial" in fields and not fields["serial"].strip():
        del fields["serial"]
    problem = None
    if wrong := sorted(stated.keys() - fields.keys()):
        problem = PictureError(
            f"the sidecar gives {', '.join(wrong)} no text", expected="printable text in quotation marks"
        )
    captured_at = None
    if "captured_at" in fields:
        try:
            captured_at = _parse_iso(fields.pop("captured_at"), zone)
        except PictureError as error:
            problem = problem or error
    return _Stated(fields, captured_at, "sidecar", problem)


def _unread(error: PictureError) -> _Stated:
    return _Stated({}, None, "", error)


def shared(pictures: object) -> PictureError:
    """Return the error of a picture whose sidecar may mean another one as well."""
    names = [str(name) for name in pictures] if isinstance(pictures, list | tuple) else []
    return PictureError(
        f"one sidecar lies beside {len(names)} pictures: {', '.join(names)}",
        expected="a sidecar for each picture",
        remedy="name them as the pictures, suffix and all, such as P1.png.json",
    )


def ambiguous(sidecars: object) -> PictureError:
    """Return the error of a picture beside which several sidecars lie that may be its own."""
    names = [str(name) for name in sidecars] if isinstance(sidecars, list | tuple) else []
    return PictureError(
        f"{len(names)} sidecars may be the picture's: {', '.join(names)}",
        expected="one",
        remedy="name it as the picture in upper and lower case, and remove the others",
    )


def _parse_iso(text: str, zone: ZoneInfo | None) -> datetime:
    remedy = "write the zone, or set the plant's with time_zone in [report]"
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        remedy = "write year, month and day in this order"
    raise PictureError(
        f"the sidecar's captured_at is {text[:80]!r}",
        expected="a time with its zone, such as 2026-11-22T06:15:00Z",
        remedy=remedy,
    )
