"""Which part a picture shows: read from its path by one pattern, or from the sidecar file beside it."""

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
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
        """Say which part a picture shows.

        Text is brought into Unicode's composed form (NFC), and control characters of a path are spelled out.

        Args:
            file_name: Path below the source, with forward slashes.
            modified_at: The file's last change, UTC; stands in where no time is known.
            sidecar: Content of the JSON file beside the picture, whose fields go before those of the path.
            recorded: The sidecar is the identity of a recorded picture, which is not held to any bound again.

        Raises:
            PictureError: If there is a sidecar and it does not say what it must, a field is longer than
                `MAX_NAME_CHARS`, no serial is left, or the time lies before `FIRST_CAPTURE` or after tomorrow: nobody
                knows which part the picture shows.
        """
        path = _without_suffix(file_name)
        fields, stated_at, known_from = {"serial": path.name}, None, "file"
        match = self._regex.fullmatch(str(path))
        if match:
            found = match.groupdict()
            time = found.pop("captured_at", None)
            at = None if time is None else _parse_compact(time)
            if time is None or at is not None:  # digits such as month 13 are no time: the path is not of this pattern
                fields, stated_at, known_from = found, at, "path"
        if sidecar is not None:
            told, told_at = _read_sidecar(sidecar, self._zone)
            fields, stated_at, known_from = fields | told, told_at or stated_at, "sidecar"
        if not recorded:
            fields = {name: composed(value) for name, value in fields.items()}
            _require_bounds(fields)
            if stated_at is not None:
                _require_time(stated_at, modified_at=modified_at)
        return Identity(
            part=Part(fields.pop("serial"), fields.pop("product", ""), fields.pop("lot", "")),
            captured_at=stated_at or modified_at,
            known_from=known_from,
            **fields,
        )

    def stand_in(self, file_name: str, *, modified_at: datetime) -> Identity:
        """Say of a picture what its path does, or, where that cannot be recorded, just what its file is called."""
        try:
            return self.identify(file_name, modified_at=modified_at)
        except PictureError:
            return by_file(file_name, modified_at=modified_at)


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
    if not fields["serial"].strip():
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


def _read_sidecar(content: bytes, zone: ZoneInfo | None) -> tuple[dict[str, str], datetime | None]:
    """Return the known text fields and the time of a sidecar; a camera's own further keys are left alone."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PictureError(f"the sidecar file is no JSON: {error}", remedy="mend or remove the sidecar") from error
    if not isinstance(said, dict):
        raise PictureError("the sidecar file holds no JSON object", expected=f"an object with {', '.join(FIELDS)}")
    if SHARED_BY in said:
        raise shared(said[SHARED_BY])
    fields = {name: said[name] for name in FIELDS if name in said}
    wrong = sorted(name for name, value in fields.items() if not (isinstance(value, str) and is_printable(value)))
    if wrong or ("serial" in fields and not fields["serial"].strip()):
        raise PictureError(
            f"the sidecar gives {', '.join(wrong) or 'serial'} no text", expected="printable text in quotation marks"
        )
    stated = fields.pop("captured_at", None)
    return fields, None if stated is None else _parse_iso(stated, zone)


def shared(pictures: object) -> PictureError:
    """Return the error of a picture whose sidecar may mean another one as well."""
    names = [str(name) for name in pictures] if isinstance(pictures, list | tuple) else []
    return PictureError(
        f"one sidecar lies beside {len(names)} pictures: {', '.join(names)}",
        expected="a sidecar for each picture",
        remedy="name them as the pictures, suffix and all, such as P1.png.json",
    )


def _parse_iso(text: str, zone: ZoneInfo | None) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise PictureError(
        f"the sidecar's captured_at is {text[:80]!r}",
        expected="a time with its zone, such as 2026-11-22T06:15:00Z",
        remedy="write the zone, or set the plant's with time_zone in [report]",
    )
