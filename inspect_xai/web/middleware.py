"""What every request passes before any page sees it, and what every answer carries."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inspect_xai.web.auth import Access

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "img-src 'self'",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": with it browsers send "Origin: null" along with a form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
"""What every answer carries."""

_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_METHODS: Final = _SAFE_METHODS | {"POST"}
_BODY_S: Final = 10.0  # a form of a few kilobytes that takes longer is not sent by a browser
_MOST_CLIENTS: Final = 10_000
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

Refuse = Callable[[HTTPConnection, int, str], Awaitable[ASGIApp]]
"""Makes the page for a refused request from its status and the key of its text."""


class Guard:
    """Refuses what no honest browser or script sends.

    Args:
        app: What is guarded.
        access: Knows settings and addresses.
        refuse: Makes the answer to a refused request.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, app: ASGIApp, *, access: Access, refuse: Refuse, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._access = access
        self._refuse = refuse
        self._hosts = _LOOPBACK_NAMES | {access.settings.host, *access.settings.hosts}
        self._requests = Rate(access.settings.requests_per_minute, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _below(scope, self._access.settings.path)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    if name != "Content-Security-Policy" or name not in headers:  # a report has a stricter one
                        headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if "location" in headers:
                    headers["location"] = _led_to(headers["location"], self._access.settings.path)
            await send(message)

        connection = HTTPConnection(scope)
        refusal = self._refusal(connection)
        if refusal is None and scope["method"] not in _SAFE_METHODS:
            try:
                receive = await asyncio.wait_for(self._whole_body(receive), _BODY_S)
            except TimeoutError:
                refusal = 408, "error.408"
            except _TooLongError:
                refusal = 413, "error.413"
        app = self._app if refusal is None else await self._refuse(connection, *refusal)
        await app(scope, receive, send_with_headers)

    def _refusal(self, connection: HTTPConnection) -> tuple[int, str] | None:
        method, headers = connection.scope["method"], connection.headers
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or _without_port(host) not in self._hosts:
            return 421, "error.421"
        client = self._access.client(connection)
        if not self._requests.allows(client):
            return 429, "error.429"
        if method not in _METHODS:
            return 405, "error.405"
        if method in _SAFE_METHODS:
            return None
        if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > self._most_bytes:
            return 413, "error.413"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "error.cross_site"
        origin = headers.get("origin")
        scheme = "https" if self._access.settings.https else connection.scope["scheme"]
        if origin is not None and origin != f"{scheme}://{host}":
            return 403, "error.cross_site"
        return None

    @property
    def _most_bytes(self) -> int:
        return self._access.settings.max_body_bytes

    async def _whole_body(self, receive: Receive) -> Receive:
        """Take the body in before a worker thread is bound to it: a slow client then holds nothing but a socket."""
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._most_bytes:
                raise _TooLongError
            if not message.get("more_body", False):
                break
        whole = iter([{"type": "http.request", "body": b"".join(chunks), "more_body": False}])

        async def receive_again() -> Message:
            return next(whole, None) or await receive()

        return receive_again


class _TooLongError(Exception):
    """The body is longer than the settings allow."""


class Rate:
    """A limit of requests a minute per client, as a bucket that fills evenly.

    >>> now = 0.0
    >>> rate = Rate(2, lambda: now)
    >>> [rate.allows("a"), rate.allows("a"), rate.allows("a"), rate.allows("b")]
    [True, True, False, True]
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._most = float(per_minute)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, client: str) -> float:
        """How many requests the client has left at this moment."""
        now = self._clock()
        left, seen_at = self._left.get(client, (self._most, now))
        return min(self._most, left + (now - seen_at) * self._most / 60)

    def allows(self, client: str) -> bool:
        """Whether one more request is within the rate; it is counted."""
        left = self.left(client)
        allowed = left >= 1
        self._left[client] = (left - allowed, self._clock())
        self._left.move_to_end(client)
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return allowed


def _below(scope: Scope, root: str) -> None:
    """Set a request's path below the desk's own, whether the proxy passed that on or left it out."""
    scope["root_path"] = root
    if root and not f"{scope['path']}/".startswith(f"{root}/"):
        scope["path"] = root + scope["path"]


def _led_to(location: str, root: str) -> str:
    """Where a redirect leads, as a path of this host: pages name theirs without the desk's own path before it."""
    if location.startswith("/"):
        return root + location
    # A slash too many is taken away by the router, with what it takes for scheme and host.
    scheme, colon, rest = location.partition("://")
    return f"/{rest.partition('/')[2]}" if colon and scheme in ("http", "https") else location


def _without_port(host: str) -> str:
    """Return the host name of a Host header.

    >>> _without_port("[::1]:8080"), _without_port("desk.plant:80")
    ('[::1]', 'desk.plant')
    """
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdigit() else host.lower()
