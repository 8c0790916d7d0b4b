"""Who somebody is and what they may do.

A desk is run in one of three ways:

    open      nobody is listed: the desk listens on loopback only, and whoever sits there signs in by name
    people    a file lists names, roles and the sha256 of tokens: people sign in with theirs, scripts send it as Bearer
    proxy     a sign-on proxy sends the name in a header, believed from its configured addresses alone

A session is a browser; its forms carry a token that no other site can know.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from starlette.requests import HTTPConnection

from inspect_xai.errors import SettingsError
from inspect_xai.files import read_toml
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.web_sessions import Sessions

MAX_NAME = 60
_ID: Final = re.compile("[A-Za-z0-9_-]{43}")
_KEPT: Final = "inspect_xai.session"


class Role(IntEnum):
    """What somebody may do; each may do all that the ones before it may."""

    VIEWER = 1  # look
    OPERATOR = 2  # judge
    QUALITY = 3  # correct what others said, take over what others hold
    ADMIN = 4  # end all sessions

    @property
    def code(self) -> str:
        """The name in files and texts."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is known at this moment."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether they may do what needs this role."""
        return self.role >= role


@dataclass(frozen=True, slots=True)
class Session:
    """One browser. `person` is None before somebody signed in; a new visitor's is kept nowhere but in their cookie."""

    session_id: str
    person: str | None = None
    language: str = ""
    theme: str = "auto"
    skipped: tuple[int, ...] = ()  # inspections the person left for later, newest last


class Access:
    """Knows people and sessions. Sessions outlast a restart, unless the list of people was changed.

    Args:
        settings: Of the desk.
        sessions: Where browsers are remembered.

    Raises:
        SettingsError: The desk would be open to a network without anybody being asked who they are, or the file of
            people cannot be read.
    """

    def __init__(self, settings: ServeSettings, sessions: Sessions) -> None:
        self.settings = settings
        self._sessions = sessions
        self._people = read_people(settings.people) if settings.people else {}
        self._by_token = {digest: person for person, digest in self._people.values() if digest}
        # A session counts where it was made: a name taken on an open desk is nobody on one that asks for tokens.
        self._realm = hashlib.sha256(
            f"{settings.proxy_header}|{sorted((each.name, digest) for each, digest in self._people.values())}".encode()
        ).hexdigest()
        self.proxies = frozenset(_address(text) for text in settings.proxy_addresses)
        self._check()

    @property
    def is_open(self) -> bool:
        """Whether whoever sits at this machine signs in by name alone."""
        return not self.settings.people and not self.settings.proxy_header

    @property
    def cookie(self) -> str:
        """Name of the session cookie; the prefix makes browsers refuse one that was not set over https by this host."""
        if not self.settings.https:
            return "inspect-xai"
        # Browsers take "__Host-" for the path "/" alone.
        return "__Secure-inspect-xai" if self.settings.path else "__Host-inspect-xai"

    @property
    def cookie_path(self) -> str:
        """The path the session cookie is sent to."""
        return self.settings.path or "/"

    def _check(self) -> None:
        if self.is_open and not is_loopback(self.settings.host):
            raise SettingsError(
                f"the desk would listen on {self.settings.host} for everybody",
                expected="a loopback address such as 127.0.0.1 as long as nobody has to say who they are",
                remedy="list people with tokens (--people FILE), or name your sign-on proxy "
                "(--proxy-header and --proxy-address)",
            )
        if self.settings.proxy_header and not self.proxies:
            raise SettingsError(
                f"anybody could send {self.settings.proxy_header} and be whom they like",
                expected="the proxy's own address beside the header",
                remedy="give --proxy-address",
            )

    def signed_in(self, connection: HTTPConnection) -> Person | None:
        """Who sends this request; None: nobody known.

        A Bearer token counts before everything else, then the proxy's header, then the session.
        """
        bearer = self.bearer(connection)
        if bearer is not None:
            return self.person_of_token(bearer)
        if self.settings.proxy_header:
            name = self._from_proxy(connection)
            return None if name is None else self._known(name)
        session = self.session(connection)
        return None if session is None or session.person is None else self._known(session.person)

    def is_by_proxy(self, connection: HTTPConnection) -> bool:
        """Whether the plant's sign-on proxy says who asks, so that nobody signs in here."""
        return bool(self.settings.proxy_header) and self.bearer(connection) is None

    def bearer(self, connection: HTTPConnection) -> str | None:
        """Return the bearer token of a request; None: it has none, so its forms must carry a CSRF token."""
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    def person_of_token(self, token: str) -> Person | None:
        """Return the person of a token. Only digests are compared, so timing reveals nothing about it."""
        return self._by_token.get(digest_of(token))

    def is_name_free_to_take(self, name: str) -> bool:
        """Whether somebody may sign in under this name without a token."""
        return self.is_open and 0 < len(name.strip()) <= MAX_NAME and name.isprintable()

    def session(self, connection: HTTPConnection) -> Session | None:
        """Return the session of a request; None without its cookie. It is looked up once per request."""
        if _KEPT not in connection.scope:
            session_id = connection.cookies.get(self.cookie, "")
            # What stands there first serves the page that reports a database that is away.
            connection.scope[_KEPT] = Session(session_id) if _ID.fullmatch(session_id) else None
            if connection.scope[_KEPT] is not None:
                connection.scope[_KEPT] = self._found(session_id)
        session: Session | None = connection.scope[_KEPT]
        return session

    def visitor(self, connection: HTTPConnection) -> Session:
        """Make a session for a browser that has none; it is stored only when somebody signs in."""
        session = connection.scope[_KEPT] = Session(secrets.token_urlsafe(32))
        return session

    def begin(self, person: str | None, *, like: Session | None = None) -> Session:
        """Begin a session under a new id; `like` is the one it replaces; its choices are kept."""
        like = like or Session("")
        session = Session(secrets.token_urlsafe(32), person, like.language, like.theme)
        self._sessions.begin(
            self._key(session.session_id),
            person=person or "",
            language=session.language,
            theme=session.theme,
            instead_of=self._key(like.session_id),
        )
        return session

    def choose(self, session: Session, *, language: str, theme: str) -> None:
        """Keep what somebody chose, also before they signed in."""
        chosen = {"language": language or session.language, "theme": theme or session.theme}
        if session.person is None:
            self._sessions.begin(self._key(session.session_id), person="", **chosen)
        else:
            self._sessions.change(self._key(session.session_id), **chosen)

    def leave_for_later(self, session: Session, skipped: Sequence[int]) -> None:
        """Keep which inspections somebody left for later."""
        self._sessions.change(self._key(session.session_id), skipped=list(skipped))

    def end(self, session: Session) -> None:
        """End a session: its cookie is worth nothing any more."""
        self._sessions.end(self._key(session.session_id))

    def end_all(self) -> None:
        """Sign everybody out."""
        self._sessions.end_all()

    def forgery_token(self, session: Session) -> str:
        """Return the CSRF token of this session's forms: other sites know neither it nor the session's id."""
        return hmac.new(session.session_id.encode(), b"form", hashlib.sha256).hexdigest()

    def is_genuine(self, session: Session | None, token: str) -> bool:
        """Whether a form comes from a page that was made for this session."""
        return session is not None and hmac.compare_digest(self.forgery_token(session).encode(), token.encode())

    def client(self, connection: HTTPConnection) -> str:
        """Return the address that a request comes from; behind the proxy, the one that the proxy saw."""
        host = connection.client.host if connection.client else ""
        if self._is_proxy(host):
            return connection.headers.get("x-forwarded-for", host).rpartition(",")[2].strip() or host
        return host

    def _found(self, session_id: str) -> Session:
        kept = self._sessions.find(self._key(session_id))
        if kept is None:
            return Session(session_id)
        return Session(session_id, kept.person or None, kept.language, kept.theme, kept.skipped)

    def _key(self, session_id: str) -> str:
        return hashlib.sha256(f"{self._realm}|{session_id}".encode()).hexdigest()

    def _from_proxy(self, connection: HTTPConnection) -> str | None:
        host = connection.client.host if connection.client else ""
        names = connection.headers.getlist(self.settings.proxy_header)
        if not self._is_proxy(host) or len(names) != 1:  # two: one of them was smuggled past the proxy
            return None
        name = names[0].strip()
        return name if 0 < len(name) <= MAX_NAME and name.isprintable() else None

    def _is_proxy(self, host: str) -> bool:
        try:
            return bool(self.proxies) and ipaddress.ip_address(host) in self.proxies
        except ValueError:
            return False

    def _known(self, name: str) -> Person | None:
        if name in self._people:
            return self._people[name][0]
        if self.is_open:
            return Person(name, Role[self.settings.open_role.upper()])
        return Person(name, Role.VIEWER) if self.settings.proxy_header else None


def read_people(path: Path) -> dict[str, tuple[Person, str]]:
    """Read who may do what: people and the sha256 of their tokens (empty: none), by name.

    The file holds `[[person]]` tables with `name`, `role` and, where there is no proxy, `token_sha256`.

    Raises:
        SettingsError: It cannot be read or says something it cannot mean.
    """
    try:
        entries = read_toml(path.read_bytes())["person"]
        people = {entry["name"]: _person(entry) for entry in entries}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read as a list of people: {type(error).__name__}: {error}",
            expected='[[person]] tables with name, role ("viewer", "operator", "quality" or "admin") and token_sha256',
            remedy="write an entry with: inspect-xai serve token NAME --role operator",
        ) from error
    if len(people) != len(entries):
        raise SettingsError(f"{path} lists a name twice", remedy="give each person one entry")
    return people


def _person(entry: dict[str, str]) -> tuple[Person, str]:
    unknown = set(entry) - {"name", "role", "token_sha256"}
    digest = entry.get("token_sha256", "").lower()
    if unknown or (digest and (len(digest) != 64 or not set(digest) <= set("0123456789abcdef"))):
        raise ValueError(f"the entry of {entry['name']!r} holds {sorted(unknown) or 'no sha256 in token_sha256'}")
    if not 0 < len(entry["name"]) <= MAX_NAME:
        raise ValueError(f"a name has 1 to {MAX_NAME} characters")
    return Person(entry["name"], Role[entry["role"].upper()]), digest


def digest_of(token: str) -> str:
    """Hash a token for storage. Tokens are long and random, so one round of sha256 is enough."""
    return hashlib.sha256(token.strip().encode()).hexdigest()


def new_token() -> str:
    """Make a random token, short enough for a badge's barcode."""
    return secrets.token_urlsafe(18)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise SettingsError(f"{text!r} is no address of a proxy", expected="an IP address such as 10.0.0.5") from error
