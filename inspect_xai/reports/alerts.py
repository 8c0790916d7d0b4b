"""Alerts: a file in a folder, a signed webhook, an e-mail; each is sent once.

The policy says who is notified ([[alert]], docs/guides/quality-manager.md); the settings say how a channel is
reached, with its secrets, since a policy is kept in the record for everybody to read. What was sent is recorded after
it was sent: after a crash in between it is sent again under the same id, by which a receiver recognizes it.
"""

import hashlib
import hmac
import json
import queue
import smtplib
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inspect_xai import __version__
from inspect_xai.errors import AlertError, printable
from inspect_xai.policy import AlertRule, rule_for
from inspect_xai.settings import Channel, Outlets

if TYPE_CHECKING:  # the settings read this module, and are to load no database
    from httpx import URL

    from inspect_xai.storage.quality_records import QualityRecords

BACK_OFF_S: Final = (1.0, 4.0, 15.0)
"""Pauses before a webhook or a mail is tried again; what is not gone then goes with the next report."""


EXCHANGE_S: Final = 60.0
"""Most seconds of one exchange with a webhook or a mail server, from looking up its name to its whole answer."""

CHANNEL_S: Final = 300.0
"""Most seconds of a webhook or of mail for all alerts of a report, with tries and pauses."""

_TIMEOUT_S: Final = 10.0  # of each wait inside an exchange
_MOST_CHARACTERS: Final = 200  # of what a server said
_TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Alert:
    """One alarm as it is sent; it has the same id in every report that shows it."""

    alert_id: str
    topic: str
    owner: str
    text: str
    period: str
    line: str = ""
    station: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was sent now, per channel, and what had been sent before."""

    sent: Mapping[Channel, tuple[str, ...]]
    known: Mapping[Channel, tuple[str, ...]]


def send_alerts(
    book: "QualityRecords",
    alerts: Sequence[Alert],
    *,
    rules: Sequence[AlertRule],
    outlets: Outlets,
    pause: Callable[[float], None] = time.sleep,
    exchange_s: float = EXCHANGE_S,
    channel_s: float = CHANNEL_S,
) -> Delivery:
    """Send what has not been sent yet, channel by channel; without any rule everything goes to every channel set up.

    Args:
        book: Knows what was sent.
        alerts: Of a report.
        rules: Of the policy.
        outlets: How channels are reached.
        pause: Waits a number of seconds.
        exchange_s: Most seconds of one exchange with a server.
        channel_s: Most seconds of webhook and mail each, for all alerts together.

    Raises:
        AlertError: A rule names a channel that is not set up, or a channel did not take its alerts. The others were
            served before.
    """
    wanted = {channel: _wanted(alerts, rules, channel, outlets) for channel in Channel}
    missing = [channel.value for channel, mine in wanted.items() if mine and channel not in outlets.open]
    if missing:
        raise AlertError(
            f"the policy sends alerts by {' and '.join(missing)}, which is not set up",
            remedy="fill in [alert] of the settings; docs/guides/quality-manager.md shows it",
        )
    sent: dict[Channel, tuple[str, ...]] = {}
    known: dict[Channel, tuple[str, ...]] = {}
    faults = []
    for channel, mine in wanted.items():
        before = book.alerts_sent(channel, [each.alert_id for each in mine])
        new = [each for each in mine if each.alert_id not in before]
        known[channel] = tuple(each.alert_id for each in mine if each.alert_id in before)
        gone: list[str] = []
        tries = _Tries(exchange_s, channel_s, pause)
        try:
            for parcel in [new] if channel is Channel.EMAIL and new else [[each] for each in new]:
                _SENDERS[channel](parcel, outlets, tries)
                book.note_alerts(channel, {each.alert_id: each.text for each in parcel})
                gone += [each.alert_id for each in parcel]
        except AlertError as error:
            faults.append(error)
        sent[channel] = tuple(gone)
    if faults:
        rest = "; ".join(str(each.found) for each in faults)
        raise AlertError(
            f"alerts did not go out: {rest}", remedy="see to what is named; what was not sent goes with the next report"
        )
    return Delivery(sent, known)


def _wanted(alerts: Sequence[Alert], rules: Sequence[AlertRule], channel: Channel, outlets: Outlets) -> list[Alert]:
    if not rules:
        return list(alerts) if channel in outlets.open else []
    return [each for each in alerts if channel in rule_for(rules, topic=each.topic, station=each.station).send]


def document_of(alert: Alert) -> dict[str, Any]:
    """Return what a receiver gets, as JSON."""
    return {"schema_version": 1, "sender": f"inspect_xai {__version__}", **asdict(alert)}


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """How a receiver makes sure that a webhook is ours and new: HMAC-SHA256 of "timestamp.body".

    >>> signature("key", "1", b"{}")[:20]
    'sha256=1ba6b8171186e'
    """
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _drop(alerts: Sequence[Alert], outlets: Outlets, _: "_Tries") -> None:
    """Write each aside and rename it, so that whoever watches the folder never reads half of one."""
    folder = outlets.folder or Path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for alert in alerts:
            aside = folder / f".alert-{alert.alert_id}.part"
            aside.write_text(json.dumps(document_of(alert), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            aside.replace(folder / f"alert-{alert.alert_id}.json")
    except OSError as error:
        raise AlertError(f"{folder} takes no files: {error.strerror}") from error


class _Tries:
    """The tries of one channel: each bounded in time, and all of them with the pauses between.

    Args:
        exchange_s: Most seconds of one exchange.
        channel_s: Most seconds of all, from now.
        pause: Waits a number of seconds.
    """

    def __init__(self, exchange_s: float, channel_s: float, pause: Callable[[float], None]) -> None:
        self._exchange_s, self._channel_s, self._pause = exchange_s, channel_s, pause
        self._end = time.monotonic() + channel_s

    def deliver(self, once: Callable[[], str], whom: str) -> None:
        """Try, and again after pauses while `once` says what is wrong; "" is success.

        Raises:
            AlertError: The last try failed too, or the time is over.
        """
        trouble = "was not asked"
        for seconds in (0.0, *BACK_OFF_S):
            left = self._end - time.monotonic() - seconds
            if left <= 0:
                raise AlertError(
                    f"{whom} {trouble}; the {self._channel_s:g} seconds for all alerts of a channel are over"
                )
            if seconds:
                self._pause(seconds)
            trouble = _within(min(self._exchange_s, left), once)
            if not trouble:
                return
        raise AlertError(f"{whom} {trouble}, {len(BACK_OFF_S) + 1} times in a row")


def _within(seconds: float, once: Callable[[], str]) -> str:
    """Do `once` in a thread of its own, since neither HTTP nor SMTP can be given a time for a whole exchange.

    A thread that takes longer is left behind: it ends with its connection, or with the process.
    """
    outcome: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(once())
        except Exception as error:  # noqa: BLE001  raised again by the thread that waits
            outcome.put(error)

    threading.Thread(target=work, name="alert", daemon=True).start()
    try:
        found = outcome.get(timeout=seconds)
    except queue.Empty:
        return f"gives no whole answer within {seconds:.3g} seconds"
    if isinstance(found, Exception):
        raise found
    return found


def _post(alerts: Sequence[Alert], outlets: Outlets, tries: "_Tries") -> None:
    """Post each; no redirect is followed (what is signed for one address goes to no other) and no proxy asked."""
    import httpx  # only who sends needs it; the settings read this module

    address = _address_of(outlets.webhook)
    if not outlets.webhook_secret:
        raise AlertError("alert.webhook has no alert.webhook_secret to sign with")
    whom = _webhook_named(address)
    trusted = ssl.create_default_context()  # the machine's certificates, a plant's own among them
    for alert in alerts:
        body = json.dumps(document_of(alert), ensure_ascii=False).encode()

        def once(body: bytes = body, alert: Alert = alert) -> str:
            stamp = str(int(time.time()))
            headers = {
                "Content-Type": "application/json",
                "Idempotency-Key": alert.alert_id,
                "X-Inspect-Xai-Timestamp": stamp,
                "X-Inspect-Xai-Signature": signature(outlets.webhook_secret, stamp, body),
            }
            try:
                with (
                    httpx.Client(verify=trusted, trust_env=False, follow_redirects=False, timeout=_TIMEOUT_S) as client,
                    client.stream("POST", address, content=body, headers=headers) as answer,
                ):
                    code, phrase = answer.status_code, answer.reason_phrase
            except (httpx.TransportError, OSError) as error:
                return f"cannot be reached: {_said(error)}"
            if code in range(200, 300):
                return ""
            if code in _TRY_AGAIN:
                return f"answers {code}"
            raise AlertError(f"{whom} answers {code} {_said(phrase)}".rstrip())

        tries.deliver(once, whom)


def _address_of(webhook: str) -> "URL":
    """Parse the webhook's URL; it may hold a password, which no message contains.

    Raises:
        AlertError: It is no http(s) URL.
    """
    import httpx

    try:
        address = httpx.URL(webhook)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not address.host:
        raise AlertError("alert.webhook is no http(s) URL (it is not shown: it may hold a password)")
    return address


def _webhook_named(address: "URL") -> str:
    """Name a webhook by host and port, unless these may be part of a password that holds "/", "?" or "#" unquoted."""
    if "@" in str(address.copy_with(username=None, password=None)):
        return "the webhook"
    return f"the webhook at {address.netloc.decode('ascii')}"


def _said(by: object) -> str:
    """Say what a server or a library said: one line, and not too much."""
    text = printable(str(by)) or type(by).__name__
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " ..."


def _mail(alerts: Sequence[Alert], outlets: Outlets, tries: "_Tries") -> None:
    """One mail for all alerts of a night."""
    if not outlets.mail_from or not outlets.mail_to:
        raise AlertError("alert.smtp_host is set, but alert.mail_from or alert.mail_to is empty")
    letter, whom = _letter(alerts, outlets), f"the mail server {outlets.smtp_host}"
    tries.deliver(lambda: _hand_over(letter, outlets, whom), whom)


def _hand_over(letter: EmailMessage, outlets: Outlets, whom: str) -> str:
    """Give a mail to the server; what is wrong where another try may help, else "".

    Raises:
        AlertError: The server refuses for good.
    """
    secure = ssl.create_default_context()
    try:
        if outlets.smtp_security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                outlets.smtp_host, outlets.smtp_port, timeout=_TIMEOUT_S, context=secure
            )
        else:
            server = smtplib.SMTP(outlets.smtp_host, outlets.smtp_port, timeout=_TIMEOUT_S)
        with server:
            if outlets.smtp_security == "starttls":
                server.starttls(context=secure)
            if outlets.smtp_user:
                server.login(outlets.smtp_user, outlets.smtp_password)
            server.send_message(letter)
    except smtplib.SMTPResponseException as error:
        reply = error.smtp_error  # bytes, whatever the library's types say
        said = _said(reply.decode(errors="replace") if isinstance(reply, bytes) else reply)
        if error.smtp_code >= 500:
            raise AlertError(f"{whom} says {error.smtp_code} {said}") from error
        return f"says {error.smtp_code} {said}"
    except (smtplib.SMTPNotSupportedError, smtplib.SMTPRecipientsRefused, ssl.SSLCertVerificationError) as error:
        raise AlertError(f"{whom} refuses: {_said(error)}") from error
    except UnicodeEncodeError:  # its words hold a letter of the password
        raise AlertError("alert.smtp_user or alert.smtp_password has a character beyond ASCII") from None
    except (OSError, smtplib.SMTPException) as error:
        return f"cannot be reached: {_said(error)}"
    return ""


def _letter(alerts: Sequence[Alert], outlets: Outlets) -> EmailMessage:
    """Write one mail for all alerts; the same alerts are the same mail, known by its Message-ID.

    Raises:
        AlertError: Sender or receivers cannot stand in a header.
    """
    message = EmailMessage()
    try:
        message["From"], message["To"] = outlets.mail_from, ", ".join(outlets.mail_to)
    except ValueError as error:
        raise AlertError(f"alert.mail_from or alert.mail_to is no address: {_said(error)}") from error
    count = f"{len(alerts)} alert{'' if len(alerts) == 1 else 's'}"
    message["Subject"] = f"inspect_xai: {count} for {printable(alerts[0].period)}"
    names = hashlib.sha256("".join(each.alert_id for each in alerts).encode()).hexdigest()[:32]
    message["Message-ID"] = f"<{names}@inspect-xai>"
    message.set_content("\n".join(f"* {each.text}\n  owner: {each.owner}, id: {each.alert_id}" for each in alerts))
    return message


_SENDERS: Final[Mapping[Channel, Callable[[Sequence[Alert], Outlets, _Tries], None]]] = {
    Channel.FILE: _drop,
    Channel.WEBHOOK: _post,
    Channel.EMAIL: _mail,
}
