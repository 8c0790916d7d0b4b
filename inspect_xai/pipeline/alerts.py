"""Alarms on their way out of the house: a file dropped, a signed webhook, an e-mail; each goes once.

Who is told is the policy's to say ([[alert]], docs/report.md); how a channel is reached, with its secrets, stands in
the settings, since a policy is kept in the record for everybody to read. What was sent is written down after it was
sent: after a crash in between it goes again, under the same id, by which a receiver knows it.
"""

import hashlib
import hmac
import http.client
import json
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from email.message import EmailMessage
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from inspect_xai import __version__
from inspect_xai.errors import AlertError

if TYPE_CHECKING:  # the settings read this module, and are to load no database
    from inspect_xai.storage.watchbook import Watchbook

BACK_OFF_S: Final = (1.0, 4.0, 15.0)
"""Pauses before a webhook or a mail is tried again; what is not gone then goes with the next report."""

NOBODY: Final = "quality"
"""Whose an alarm is that no rule gives to anybody."""

_TIMEOUT_S: Final = 10.0
_TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Channel(StrEnum):
    """A way out."""

    FILE = "file"
    WEBHOOK = "webhook"
    EMAIL = "email"


@dataclass(frozen=True, slots=True)
class AlertRule:
    """Whose an alarm is and where it goes; the first rule that fits counts.

    Attributes:
        owner: Who has to look at it: a name or a department.
        topics: Of alarms (docs/report.md lists them); none: all.
        stations: Where it happened; none: anywhere, and alarms that have no station too.
        send: Channels; none: it stands on the page only.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    owner: str = NOBODY
    topics: tuple[str, ...] = ()
    stations: tuple[str, ...] = ()
    send: tuple[Channel, ...] = ()

    def fits(self, topic: str, station: str) -> bool:
        """Whether an alarm is this rule's."""
        return (not self.topics or topic in self.topics) and (not self.stations or station in self.stations)


@dataclass(frozen=True, slots=True)
class Alert:
    """One alarm as it leaves; the same alarm has the same id in every report that tells it."""

    alert_id: str
    topic: str
    owner: str
    text: str
    period: str
    line: str = ""
    station: str = ""


@dataclass(frozen=True, slots=True)
class Outlets:
    """How the channels are reached; what is empty is not there.

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
        """Channels that have been set up."""
        there = {Channel.FILE: self.folder, Channel.WEBHOOK: self.webhook, Channel.EMAIL: self.smtp_host}
        return tuple(channel for channel, given in there.items() if given)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was sent now, per channel, and what had been sent before."""

    sent: Mapping[Channel, tuple[str, ...]]
    known: Mapping[Channel, tuple[str, ...]]


def rule_for(rules: Sequence[AlertRule], *, topic: str, station: str) -> AlertRule:
    """The rule an alarm falls under; a rule that says nothing where none fits."""
    return next((rule for rule in rules if rule.fits(topic, station)), AlertRule())


def send_alerts(
    book: "Watchbook",
    alerts: Sequence[Alert],
    *,
    rules: Sequence[AlertRule],
    outlets: Outlets,
    pause: Callable[[float], None] = time.sleep,
) -> Delivery:
    """Send what has not been sent yet, channel by channel; without any rule everything goes to every channel set up.

    Args:
        book: Knows what was sent.
        alerts: Of a report.
        rules: Of the policy.
        outlets: How channels are reached.
        pause: Waits so many seconds.

    Raises:
        AlertError: A rule names a channel that is not set up, or a channel did not take its alerts. The others were
            served before.
    """
    wanted = {channel: _wanted(alerts, rules, channel, outlets) for channel in Channel}
    missing = [channel.value for channel, mine in wanted.items() if mine and channel not in outlets.open]
    if missing:
        raise AlertError(
            f"the policy sends alerts by {' and '.join(missing)}, which is not set up",
            remedy="fill in [alert] of the settings; docs/report.md shows it",
        )
    sent: dict[Channel, tuple[str, ...]] = {}
    known: dict[Channel, tuple[str, ...]] = {}
    faults = []
    for channel, mine in wanted.items():
        before = book.alerts_sent(channel, [each.alert_id for each in mine])
        new = [each for each in mine if each.alert_id not in before]
        known[channel] = tuple(each.alert_id for each in mine if each.alert_id in before)
        gone: list[str] = []
        try:
            for parcel in [new] if channel is Channel.EMAIL and new else [[each] for each in new]:
                _SENDERS[channel](parcel, outlets, pause)
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
    """What a receiver gets, as JSON."""
    return {"schema_version": 1, "sender": f"inspect_xai {__version__}", **asdict(alert)}


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """How a receiver makes sure that a webhook is ours and new: HMAC-SHA256 of "timestamp.body".

    >>> signature("key", "1", b"{}")[:20]
    'sha256=1ba6b8171186e'
    """
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _drop(alerts: Sequence[Alert], outlets: Outlets, _: Callable[[float], None]) -> None:
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


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is signed for one address goes to no other."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _post(alerts: Sequence[Alert], outlets: Outlets, pause: Callable[[float], None]) -> None:
    place = urlsplit(outlets.webhook)
    if place.scheme not in ("http", "https") or not place.hostname:
        raise AlertError(f"alert.webhook is {outlets.webhook!r}, which is no http(s) URL")
    if not outlets.webhook_secret:
        raise AlertError("alert.webhook has no alert.webhook_secret to sign with")
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    for alert in alerts:
        body = json.dumps(document_of(alert), ensure_ascii=False).encode()

        def once(body: bytes = body, alert: Alert = alert) -> str:
            stamp = str(int(time.time()))
            headers = {
                "Content-Type": "application/json", "Idempotency-Key": alert.alert_id,
                "X-Inspect-Xai-Timestamp": stamp,
                "X-Inspect-Xai-Signature": signature(outlets.webhook_secret, stamp, body),
            }  # fmt: skip
            request = urllib.request.Request(outlets.webhook, data=body, headers=headers, method="POST")  # noqa: S310  checked above
            try:
                with opener.open(request, timeout=_TIMEOUT_S):
                    return ""
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _TRY_AGAIN:
                    raise AlertError(f"the webhook at {place.netloc} answers {error.code} {error.reason}") from error
                return f"answers {error.code}"
            except (OSError, http.client.HTTPException) as error:
                return f"cannot be reached: {getattr(error, 'reason', error)}"

        _patiently(once, f"the webhook at {place.netloc}", pause)


def _mail(alerts: Sequence[Alert], outlets: Outlets, pause: Callable[[float], None]) -> None:
    """One mail for all alerts of a night."""
    if not outlets.mail_from or not outlets.mail_to:
        raise AlertError("alert.smtp_host is set, but alert.mail_from or alert.mail_to is empty")
    message = EmailMessage()
    message["From"], message["To"] = outlets.mail_from, ", ".join(outlets.mail_to)
    count = f"{len(alerts)} alert{'' if len(alerts) == 1 else 's'}"
    message["Subject"] = f"inspect_xai: {count} for {alerts[0].period}"
    names = hashlib.sha256("".join(each.alert_id for each in alerts).encode()).hexdigest()[:32]
    message["Message-ID"] = f"<{names}@inspect-xai>"  # the same alerts are the same mail
    message.set_content("\n".join(f"* {each.text}\n  owner: {each.owner}, id: {each.alert_id}" for each in alerts))

    def once() -> str:
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
                server.send_message(message)
        except smtplib.SMTPResponseException as error:
            said = (
                error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
            )
            if error.smtp_code >= 500:
                raise AlertError(f"the mail server {outlets.smtp_host} says {error.smtp_code} {said}") from error
            return f"says {error.smtp_code} {said}"
        except (smtplib.SMTPNotSupportedError, smtplib.SMTPRecipientsRefused, ssl.SSLCertVerificationError) as error:
            raise AlertError(f"the mail server {outlets.smtp_host} refuses: {error}") from error
        except (OSError, smtplib.SMTPException) as error:
            return f"cannot be reached: {error}"
        return ""

    _patiently(once, f"the mail server {outlets.smtp_host}", pause)


def _patiently(once: Callable[[], str], whom: str, pause: Callable[[float], None]) -> None:
    """Try, and again after pauses while it says what is wrong; "" is success."""
    trouble = once()
    for seconds in BACK_OFF_S:
        if not trouble:
            return
        pause(seconds)
        trouble = once()
    if trouble:
        raise AlertError(f"{whom} {trouble}, {len(BACK_OFF_S) + 1} times in a row")


_SENDERS: Final[Mapping[Channel, Callable[[Sequence[Alert], Outlets, Callable[[float], None]], None]]] = {
    Channel.FILE: _drop,
    Channel.WEBHOOK: _post,
    Channel.EMAIL: _mail,
}
