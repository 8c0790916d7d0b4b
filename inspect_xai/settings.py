"""All settings of the line and its reports: defaults < TOML file < INSPECT_XAI_* variables < options of a command.

    db = "sqlite:////srv/inspect/inspections.db"     # or INSPECT_XAI_DB
    bundle = "/srv/inspect/tile.bundle"
    [line]
    source = "/srv/inspect/incoming"                 # or INSPECT_XAI_LINE__SOURCE
    ok_share = 0.05
    [report]
    time_zone = "Europe/Berlin"

Read by commands and flows only, and handed down as values. Keys by their names of 0.1 (`RENAMED`) count until 0.3.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from inspect_xai.errors import SettingsError
from inspect_xai.files import read_toml
from inspect_xai.logs import warn_renamed
from inspect_xai.records import MAX_NAME_CHARS, PictureLimits

DEFAULT_PATTERN = "{line}/{station}/{serial}_{lot}_{camera}_{view}_{shift}_{captured_at}"


FILE_VARIABLE = "INSPECT_XAI_SETTINGS"
_PREFIX = "INSPECT_XAI_"
_USUAL = PictureLimits()

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "bucket": "batch_size",
        "line.chunk": "line.claim_size",
        "line.honour_exif": "line.honor_exif",
        "line.keep": "line.in_place",
        "report.window_ms": "report.takt_ms",
    }
)
"""Settings by their names of 0.1."""

_NOT_SETTINGS = frozenset({FILE_VARIABLE, "INSPECT_XAI_SHARED", "INSPECT_XAI_HOME"})


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"no time zone is called {name!r}") from error
    return name


def _web_address(url: str) -> str:
    if url and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
        raise ValueError("no http(s) address without user, query and fragment")
    return url.rstrip("/")


class LineSettings(BaseModel):
    """How pictures are taken in, judged and explained.

    Attributes:
        source: Folder the cameras write into, or a URL that fsspec knows.
        claim_size: Pictures claimed at a time, and those of one task of a flow.
        settle_s: Seconds a file must not change before it is taken; 0 where nobody writes any more.
        lease_s: Seconds without a sign of life after which another machine's claims are taken over.
        in_place: Leave the files where they are.
        ignore: Patterns of names of files and folders that are passed over, beside those of NAS systems and Windows.
        new_database: Begin a database in which no line recorded yet beside an archive that holds pictures.
        ok_share: Share of the OK pictures that is explained too, chosen by their hash.
        path_pattern: Which part a picture shows, read from its path.
        policy_version: Under which version of these rules inspections are recorded; with another version the same
            picture is inspected again beside the old row.
        policy: The plant's policy file, in the place of `ok_share` and `policy_version`.
        max_pixels: Larger pictures are refused.
        white_level: The value of 16-bit pictures that counts as white.
        honor_exif: Turn pictures as their EXIF orientation says. These three hold for every command that reads a
            picture file (`limits`).
        golden: Folder with the model's golden set, which it must reproduce before the line starts (see: inspect-xai
            model golden-create).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = ""
    claim_size: int = Field(default=128, ge=1, le=10_000)
    settle_s: float = Field(default=1.0, ge=0, le=3600)
    lease_s: float = Field(default=600.0, gt=0)
    in_place: bool = False
    ignore: tuple[str, ...] = ()
    new_database: bool = False
    ok_share: float = Field(default=0.05, ge=0, le=1)
    path_pattern: str = DEFAULT_PATTERN
    policy_version: str = Field(default="1", min_length=1, max_length=MAX_NAME_CHARS)
    policy: Path | None = None
    max_pixels: int = Field(default=_USUAL.max_pixels, ge=1)
    white_level: int = Field(default=_USUAL.white_level, ge=1, le=65_535)
    honor_exif: bool = _USUAL.honour_exif
    golden: Path | None = None

    @property
    def limits(self) -> PictureLimits:
        """Return what picture files may be and how they become pixels, for the line and for every other command."""
        return PictureLimits(self.max_pixels, self.white_level, self.honor_exif)


class ReportSettings(BaseModel):
    """What a report covers.

    Attributes:
        out: Folder that receives one folder per day.
        time_zone: The plant's zone: in it a day begins and ends.
        thumbnails: Most flagged parts shown with pictures.
        takt_ms: Time the line has for a part; run times are compared with it. 0: none is known.
        desk_url: Address under which browsers reach the review desk, with its path where it has one; the nightly flow
            links to the report's page there. Empty: it names the page's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path = Path("reports")
    time_zone: str = "UTC"
    thumbnails: int = Field(default=60, ge=0, le=1000)
    takt_ms: float = Field(default=0.0, ge=0)
    desk_url: str = ""

    _is_a_zone = field_validator("time_zone")(_known_zone)
    _is_an_address = field_validator("desk_url")(_web_address)


class Channel(StrEnum):
    """How an alert is sent."""

    FILE = "file"
    WEBHOOK = "webhook"
    EMAIL = "email"


@dataclass(frozen=True, slots=True)
class Outlets:
    """How the channels are reached; what is empty is not set up.

    Attributes:
        folder: Receives `alert-ID.json`.
        webhook: URL that is posted to.
        webhook_secret: Key of the signature.
        smtp_host: Mail server.
        smtp_port: Its port.
        smtp_security: "starttls", "tls" from the first byte, or "none" inside a closed network.
        smtp_user: Where the server asks for one.
        smtp_password: The same.
        mail_from: Sender.
        mail_to: Receivers.
    """

    folder: Path | None = None
    webhook: str = ""
    webhook_secret: str = field(default="", repr=False)
    smtp_host: str = ""
    smtp_port: int = 587
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str = ""
    smtp_password: str = field(default="", repr=False)
    mail_from: str = ""
    mail_to: tuple[str, ...] = ()

    @property
    def open(self) -> tuple[Channel, ...]:
        """Return the channels that have been set up."""
        places = {Channel.FILE: self.folder, Channel.WEBHOOK: self.webhook, Channel.EMAIL: self.smtp_host}
        return tuple(channel for channel, place in places.items() if place)


class AlertSettings(BaseModel):
    """How alerts are sent; the policy says who gets which ([[alert]]). What is empty is not set up.

    Attributes:
        folder: Receives one JSON file per alert.
        webhook: URL that is posted to.
        webhook_secret: Key its posts are signed with (HMAC-SHA256).
        smtp_host: Mail server.
        smtp_port: Its port.
        smtp_security: "starttls", "tls", or "none" inside a closed network.
        smtp_user: Where the server asks for one.
        smtp_password: The same.
        mail_from: Sender.
        mail_to: Receivers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path | None = None
    webhook: str = ""
    webhook_secret: SecretStr = SecretStr("")
    smtp_host: str = ""
    smtp_port: int = Field(default=587, ge=1, le=65_535)
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")
    mail_from: str = ""
    mail_to: tuple[str, ...] = ()

    def outlets(self) -> Outlets:
        """Return the same for those who send."""
        values = self.model_dump() | {"webhook_secret": self.webhook_secret.get_secret_value()}
        return Outlets(**values | {"smtp_password": self.smtp_password.get_secret_value()})


class ServeSettings(BaseModel):
    """How the review desk is served.

    Attributes:
        host: Address to listen on. Beyond loopback only with `people` or `proxy_header`.
        port: TCP port; 0: a free one.
        archive: Folders, or URLs that fsspec knows, below which pictures may lie; a picture elsewhere is not shown.
        reports: Folder of the reports that are listed. Default: report.out.
        people: TOML file of who may sign in, with which role and token (see: inspect-xai serve token).
        proxy_header: Header in which a sign-on proxy gives the user's name, for instance X-Forwarded-User.
        proxy_addresses: Addresses of that proxy; from any other address the header counts for nothing.
        hosts: Further names the desk is reached under; requests for others are refused.
        https: Browsers reach the desk over https (through the proxy): the cookie then never travels without, and forms
            must come from a page of https.
        path: Path below which browsers reach the desk, such as "/inspect" for https://plant.example/inspect/; every
            link, form, redirect and cookie begins with it. The proxy may pass it on or leave it out.
        open_role: Role of whoever signs in by name alone, where neither people nor proxy are set.
        language: Of pages until their reader chooses one: "en" or "de".
        time_zone: The plant's zone: in it times are shown.
        claim_s: Seconds a part stays with the operator who opened it.
        session_s: Seconds after which a session ends that nobody used.
        blind_share: Share of parts judged before verdict and map are shown.
        second_share: Share of answered parts that a second person answers too.
        max_body_bytes: Longer posts are refused.
        requests_per_minute: More from one address are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    archive: tuple[Path | str, ...] = ()
    reports: Path | None = None
    people: Path | None = None
    proxy_header: str = ""
    proxy_addresses: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    https: bool = False
    path: str = Field(default="", pattern=r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*$", max_length=200)
    open_role: Literal["viewer", "operator", "quality", "admin"] = "quality"
    language: Literal["en", "de"] = "en"
    time_zone: str = "UTC"
    claim_s: float = Field(default=300.0, gt=0)
    session_s: float = Field(default=36_000.0, gt=0)
    blind_share: float = Field(default=0.0, ge=0, le=1)
    second_share: float = Field(default=0.0, ge=0, le=1)
    max_body_bytes: int = Field(default=64_000, ge=1000)
    requests_per_minute: int = Field(default=1200, ge=1)

    _is_a_zone = field_validator("time_zone")(_known_zone)


class LedgerSettings(BaseModel):
    """How the ledger is signed and anchored.

    Attributes:
        key: File of the private key that signs events (see: inspect-xai ledger key create); empty: they are not signed.
        public_keys: Files of the public keys that `ledger verify` believes, and none but those that they bring in.
        anchors: Where the chain's heads are kept, out of reach of the database's owner: a file named
            *.jsonl, a folder, or a URL that fsspec knows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Path | None = None
    public_keys: tuple[Path, ...] = ()
    anchors: str = ""


class Settings(BaseSettings):
    """Everything that can be set. `bundle` is a bundle folder, `db` the database's URL.

    `blob_store` is a folder or URL for the explanation maps; empty: they lie in the database. `log`: how a line logs.
    `threads`: of the network; default: all cores, 1 where several lines share them (`inspect-xai bench` measures both).
    `batch_size`: masks per run; default: what `inspect-xai bench --save` found here, else 8 on a CPU; a GPU is measured
    at the first start. `memory_mb`: most memory that a session takes on a GPU; default: all there is.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    db: str = "sqlite:///inspections.db"
    blob_store: str = ""
    bundle: Path | None = None
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1, le=4096)
    memory_mb: int | None = Field(None, ge=100)
    log: Literal["text", "json"] = "text"
    line: LineSettings = LineSettings()
    report: ReportSettings = ReportSettings()
    alert: AlertSettings = AlertSettings()
    serve: ServeSettings = ServeSettings()
    ledger: LedgerSettings = LedgerSettings()


def load_settings(file: Path | None = None, **flags: Any) -> Settings:
    """Read the settings from all places they can stand in.

    Args:
        file: A TOML file; default: the one INSPECT_XAI_SETTINGS names, if any.
        **flags: Values from the command line by name (`line={"claim_size": 8}` for a section); None: not given.

    Raises:
        SettingsError: If the file cannot be read, a key is unknown or a value cannot be meant.
    """
    named = os.environ.get(FILE_VARIABLE)
    path = file or (Path(named) if named else None)
    if path is not None and not path.is_file():
        raise SettingsError(f"there is no settings file {path}", remedy=f"correct --settings or {FILE_VARIABLE}")
    _refuse_unknown_variables()
    try:
        document = _with_current_keys(read_toml(path.read_bytes())) if path else {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is no TOML: {error}") from error
    variables = _with_current_variables(os.environ)

    class Reader(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the library's signature
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            env_settings.env_vars = {name.lower(): value for name, value in variables.items() if value}  # type: ignore[attr-defined]
            from_variables = InitSettingsSource(settings_cls, init_kwargs=_with_current_keys(env_settings()))
            return init_settings, from_variables, InitSettingsSource(settings_cls, init_kwargs=document)

    try:
        return Reader(**_given(flags))
    except ValidationError as error:
        raise _explained(error, path, flags=_given(flags)) from error
    except ValueError as error:  # a section's variable that is no JSON, for instance
        raise SettingsError(f"the settings cannot be read: {error}") from error


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    kept = {name: _given(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in kept.items() if value is not None and value != {}}


def _with_current_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of settings with its keys of today; of each old one a warning is logged.

    Raises:
        SettingsError: If a setting stands under both names.
    """
    document = {name: dict(value) if isinstance(value, dict) else value for name, value in document.items()}
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        holder = document.get(section) if section else document
        if isinstance(holder, dict) and key in holder:
            current = new.rpartition(".")[2]
            _refuse_both(old, new, both=current in holder)
            holder[current] = holder.pop(key)
    return document


def _with_current_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with its INSPECT_XAI_* variables by their names of today."""
    current = dict(variables)
    for name in variables:
        if (now := _current_variable(name)) != name:
            _refuse_both(name, now, both=now in variables)
            current[now] = current.pop(name)
    return current


def _current_variable(name: str) -> str:
    setting = name.removeprefix(_PREFIX).lower().replace("__", ".")
    is_renamed = name.startswith(_PREFIX) and setting in RENAMED
    return _PREFIX + RENAMED[setting].upper().replace(".", "__") if is_renamed else name


def _refuse_both(old: str, new: str, *, both: bool) -> None:
    if both:
        raise SettingsError(f"{old} and {new} are one setting, and both are set", remedy=f"remove {old}")
    warn_renamed(old, new)


def _refuse_unknown_variables() -> None:
    """Refuse a misspelt INSPECT_XAI_* variable, which would otherwise silently be no setting at all."""
    for variable in sorted(os.environ):
        name = _current_variable(variable).removeprefix(_PREFIX).split("__")[0].lower()
        if variable.startswith(_PREFIX) and variable not in _NOT_SETTINGS and name not in Settings.model_fields:
            raise SettingsError(
                f"the variable {variable} is set, and there is no setting {name}{_meant(name, Settings.model_fields)}",
                expected=f"{', '.join(_PREFIX + field.upper() for field in Settings.model_fields)} or {FILE_VARIABLE}",
                remedy="correct its name or unset it",
            )


_SECRET = re.compile(
    r"^(db|alert|blob_store)$|webhook|secret|password|smtp_user|desk_url"
)  # values that no message repeats


def _explained(error: ValidationError, path: Path | None, *, flags: Mapping[str, Any]) -> SettingsError:
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        place = _set_by(problem["loc"], path, flags)
        if problem["type"] == "extra_forbidden":
            problems.append(f"{key} is no setting{_meant_in(problem['loc'])} ({place})")
        elif _SECRET.search(key):
            problems.append(f"{key}: {problem['msg']} ({place})")
        else:
            problems.append(f"{key} is {problem['input']!r}: {problem['msg']} ({place})")
    return SettingsError("; ".join(problems), remedy="correct it there; docs/guides/line.md shows all settings")


def _set_by(location: tuple[int | str, ...], path: Path | None, flags: Mapping[str, Any]) -> str:
    """Say where a setting was set: what is asked first counts, as in `load_settings`."""
    names = [part for part in location if isinstance(part, str)]
    within: Any = flags
    for name in names:
        within = within.get(name) if isinstance(within, Mapping) else None
    if within is not None:
        return "set by an option of the command"
    full = _PREFIX + "__".join(names).upper()
    for variable in sorted(os.environ):
        if _holds(_current_variable(variable).upper(), full):
            return f"set by the variable {variable}"
    return f"set in {path}"


def _holds(variable: str, full: str) -> bool:
    """Return whether a variable sets this very setting, a part of it, or as JSON the section that it stands in."""
    section = variable.startswith(_PREFIX) and full.startswith(variable + "__")
    return variable == full or variable.startswith(full + "__") or section


def _meant_in(location: tuple[int | str, ...]) -> str:
    """Guess which setting of the same section was meant."""
    fields: Mapping[str, Any] = Settings.model_fields
    section, name = "", str(location[-1])
    for part in location[:-1]:
        section += f"{part}."
        fields = getattr(fields[str(part)].annotation, "model_fields", {})
    return _meant(name, fields, section=section)


def _meant(name: str, fields: Mapping[str, Any], *, section: str = "") -> str:
    near = get_close_matches(name, fields, n=1)
    return f"; did you mean {section}{near[0]}?" if near else ""
