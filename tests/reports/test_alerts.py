"""Alerts on their way out, against real servers on loopback: what arrives, what is tried again, what goes once."""

import base64
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from inspect_xai.errors import AlertError, SettingsError
from inspect_xai.policy import AlertRule, policy_from, rule_for
from inspect_xai.reports.alerts import BACK_OFF_S, Alert, send_alerts, signature
from inspect_xai.settings import Channel, Outlets, load_settings
from inspect_xai.storage.quality_records import QualityRecords
from inspect_xai.storage.store import Store, open_store

DRIFT = Alert("a1", "drift", "optics", "L1 S1: brightness drifted", "2026-11-22", "L1", "S1")
ESCAPE = Alert("b2", "escapes_found", "quality", "1 part passed — Prüfer", "2026-11-22")


@pytest.fixture
def store(tmp_path: Path, sqlite_template: Path) -> Iterator[Store]:
    shutil.copy(sqlite_template, tmp_path / "line.db")
    with open_store(f"sqlite:///{tmp_path / 'line.db'}") as opened:
        yield opened


@pytest.fixture
def book(store: Store) -> QualityRecords:
    return QualityRecords(store.database)


class Receiver(BaseHTTPRequestHandler):
    """Answers with the given codes one after the other, then with 200."""

    codes: ClassVar[list[int]] = []
    got: ClassVar[list[tuple[dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        code = self.codes.pop(0) if self.codes else 200
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def webhook() -> Iterator[str]:
    Receiver.codes, Receiver.got = [], []
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/alerts"
    server.shutdown()
    server.server_close()
    thread.join()


class Mailbox:
    """Keeps what it is sent; refuses receivers named nobody."""

    def __init__(self) -> None:
        self.letters: list[Any] = []

    async def handle_RCPT(self, _: Any, __: Any, envelope: Any, address: str, ___: Any) -> str:  # noqa: N802
        if address.startswith("nobody"):
            return "550 no such person"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _: Any, __: Any, envelope: Any) -> str:  # noqa: N802
        self.letters.append(envelope)
        return "250 OK"


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    box = Mailbox()

    def login(server: Any, session: Any, envelope: Any, mechanism: str, given: LoginPassword) -> AuthResult:
        return AuthResult(success=given.password == b"secret", handled=False)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(box, hostname="127.0.0.1", port=port, authenticator=login, auth_require_tls=False)
    controller.start()
    yield box, port
    controller.stop()


def test_the_first_rule_that_fits_says_whose_an_alarm_is() -> None:
    rules = (AlertRule("optics", ("drift",), ("S1",), (Channel.FILE,)), AlertRule("line", ("drift",)), AlertRule("qm"))
    assert rule_for(rules, topic="drift", station="S1").owner == "optics"
    assert rule_for(rules, topic="drift", station="S2").owner == "line"
    assert rule_for(rules, topic="escapes_found", station="").owner == "qm"
    assert rule_for((), topic="drift", station="S1") == AlertRule("quality")


def test_a_file_is_dropped_once(book: QualityRecords, tmp_path: Path) -> None:
    outlets = Outlets(folder=tmp_path / "out")
    first = send_alerts(book, [DRIFT], rules=(), outlets=outlets)
    again = send_alerts(book, [DRIFT, ESCAPE], rules=(), outlets=outlets)
    assert (first.sent[Channel.FILE], first.known[Channel.FILE]) == (("a1",), ())
    assert (again.sent[Channel.FILE], again.known[Channel.FILE]) == (("b2",), ("a1",))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["alert-a1.json", "alert-b2.json"]
    said = json.loads((tmp_path / "out" / "alert-a1.json").read_text())
    assert (said["alert_id"], said["owner"], said["station"]) == ("a1", "optics", "S1")


def test_a_webhook_is_signed_tried_again_and_keeps_its_id(book: QualityRecords, webhook: str) -> None:
    Receiver.codes = [503, 429]
    pauses: list[float] = []
    outlets = Outlets(webhook=webhook, webhook_secret="key")
    sent = send_alerts(book, [ESCAPE], rules=(), outlets=outlets, pause=pauses.append)
    assert sent.sent[Channel.WEBHOOK] == ("b2",)
    assert pauses == list(BACK_OFF_S[:2])
    assert len(Receiver.got) == 3
    assert {headers["idempotency-key"] for headers, _ in Receiver.got} == {"b2"}
    headers, body = Receiver.got[-1]
    assert headers["x-inspect-xai-signature"] == signature("key", headers["x-inspect-xai-timestamp"], body)
    assert json.loads(body)["text"] == ESCAPE.text
    assert send_alerts(book, [ESCAPE], rules=(), outlets=outlets).sent[Channel.WEBHOOK] == ()
    assert len(Receiver.got) == 3


@pytest.mark.parametrize(("code", "says"), [(403, "answers 403"), (302, "answers 302")])
def test_a_webhook_that_refuses_is_told_at_once_and_nothing_is_noted(
    book: QualityRecords, webhook: str, code: int, says: str
) -> None:
    Receiver.codes = [code]
    with pytest.raises(AlertError, match=says):
        send_alerts(book, [DRIFT], rules=(), outlets=Outlets(webhook=webhook, webhook_secret="key"))
    assert len(Receiver.got) == 1
    assert book.alerts_sent("webhook", ["a1"]) == set()


def test_a_dead_webhook_keeps_no_other_channel_from_its_alerts(
    book: QualityRecords, webhook: str, tmp_path: Path, mailbox: tuple[Mailbox, int]
) -> None:
    box, port = mailbox
    Receiver.codes = [500] * 9
    mail = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_security": "none", "mail_from": "line@plant.example"}
    outlets = Outlets(webhook=webhook, webhook_secret="key", folder=tmp_path, mail_to=("qm@plant.example",), **mail)
    with pytest.raises(AlertError, match=r"answers 500, 4 times in a row.*goes with the next report"):
        send_alerts(book, [DRIFT], rules=(), outlets=outlets, pause=lambda _: None)
    assert (tmp_path / "alert-a1.json").is_file()
    assert len(box.letters) == 1
    Receiver.codes = []
    later = send_alerts(book, [DRIFT], rules=(), outlets=outlets)
    assert [later.sent[channel] for channel in Channel] == [(), ("a1",), ()]


def test_one_mail_tells_all_alerts_of_a_night(book: QualityRecords, mailbox: tuple[Mailbox, int]) -> None:
    box, port = mailbox
    outlets = Outlets(
        smtp_host="127.0.0.1",
        smtp_port=port,
        smtp_security="none",
        smtp_user="line",
        smtp_password="secret",
        mail_from="line@plant.example",
        mail_to=("qm@plant.example", "shift@plant.example"),
    )
    send_alerts(book, [DRIFT, ESCAPE], rules=(), outlets=outlets)
    [letter] = box.letters
    assert letter.rcpt_tos == ["qm@plant.example", "shift@plant.example"]
    assert b"Subject: inspect_xai: 2 alerts for 2026-11-22" in letter.content
    assert b"owner: optics, id: a1" in letter.content


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"smtp_password": "wrong", "smtp_user": "line"}, "says 535"),
        ({"mail_to": ("nobody@plant.example",)}, "refuses"),
        ({"smtp_security": "starttls"}, "STARTTLS extension not supported"),
        ({"mail_to": ()}, "mail_to is empty"),
    ],
)
def test_a_mail_server_that_refuses_is_told(
    book: QualityRecords, mailbox: tuple[Mailbox, int], changed: dict[str, Any], says: str
) -> None:
    given: dict[str, Any] = {
        "smtp_host": "127.0.0.1",
        "smtp_port": mailbox[1],
        "smtp_security": "none",
        "mail_from": "line@plant.example",
        "mail_to": ("qm@plant.example",),
    }
    with pytest.raises(AlertError, match=says):
        send_alerts(book, [DRIFT], rules=(), outlets=Outlets(**given | changed), pause=lambda _: None)
    assert mailbox[0].letters == []


def test_nobody_listens(book: QualityRecords) -> None:
    nowhere = Outlets(webhook="http://127.0.0.1:9/", webhook_secret="key")
    with pytest.raises(AlertError, match=r"127.0.0.1:9 cannot be reached: .*4 times in a row"):
        send_alerts(book, [DRIFT], rules=(), outlets=nowhere, pause=lambda _: None)


@pytest.mark.parametrize(
    ("outlets", "says"),
    [
        (Outlets(webhook="ftp://plant/"), "no http"),
        (Outlets(webhook="http://127.0.0.1:9/"), "webhook_secret"),
        (Outlets(folder=Path("/dev/null/x")), "takes no files"),
    ],
)
def test_a_channel_set_up_wrongly_is_told(book: QualityRecords, outlets: Outlets, says: str) -> None:
    with pytest.raises(AlertError, match=says):
        send_alerts(book, [DRIFT], rules=(), outlets=outlets)


def test_a_rule_for_a_channel_that_is_not_there_is_refused(book: QualityRecords) -> None:
    with pytest.raises(AlertError, match="sends alerts by webhook, which is not set up"):
        send_alerts(book, [DRIFT], rules=(AlertRule(send=(Channel.WEBHOOK,)),), outlets=Outlets())


def test_rules_stand_in_the_policy_and_change_no_verdict() -> None:
    plain = policy_from({"version": "7"})
    told = policy_from({"version": "7", "alert": [{"owner": "optics", "topics": ["drift"], "send": ["file", "email"]}]})
    assert told.alert == (AlertRule("optics", ("drift",), (), (Channel.FILE, Channel.EMAIL)),)
    assert told.content == plain.content
    with pytest.raises(SettingsError, match=r"alert\.0\.send\.0"):
        policy_from({"version": "7", "alert": [{"send": ["pigeon"]}]})


def test_secrets_of_the_settings_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_XAI_ALERT__WEBHOOK", "http://plant.example/")
    monkeypatch.setenv("INSPECT_XAI_ALERT__WEBHOOK_SECRET", "very-secret")
    settings = load_settings()
    assert "very-secret" not in repr(settings) + repr(settings.alert.outlets())
    assert settings.alert.outlets().webhook_secret == "very-secret"  # noqa: S105
    assert settings.alert.outlets().open == (Channel.WEBHOOK,)


def test_an_acknowledgement_stands_in_the_ledger(store: Store, book: QualityRecords) -> None:
    book.acknowledge("a1", by="Ada", note="lamp ordered")
    book.acknowledge("a1", by="Bob", note="lamp changed")
    assert (book.acknowledged()["a1"].by, book.acknowledged()["a1"].note) == ("Bob", "lamp changed")
    assert [event.facts["by"] for event in store.ledger.events(kind="alarm_acknowledged")] == ["Ada", "Bob"]


@pytest.fixture
def slow() -> Iterator[Callable[[bytes, bytes], int]]:
    """Start servers that say a greeting, then the same few bytes ten times a second; give the port of each."""
    servers: list[socket.socket] = []
    over = threading.Event()

    def speak(each: socket.socket, first: bytes, then: bytes) -> None:
        with each, suppress(OSError):
            each.sendall(first)
            while not over.wait(0.1):
                each.sendall(then)

    def accept(server: socket.socket, first: bytes, then: bytes) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=speak, args=(server.accept()[0], first, then), daemon=True).start()

    def start(first: bytes, then: bytes) -> int:
        servers.append(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=accept, args=(servers[-1], first, then), daemon=True).start()
        port: int = servers[-1].getsockname()[1]
        return port

    yield start
    over.set()
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


DRIPS = {
    "a header without end": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "interim answers without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a status line without end": (b"HTTP/1.1 ", b"2"),
    "silence": (b"", b""),
}


@pytest.mark.parametrize("drip", DRIPS)
def test_an_exchange_with_a_webhook_ends_however_slowly_it_answers(
    book: QualityRecords, slow: Callable[[bytes, bytes], int], drip: str
) -> None:
    outlets = Outlets(webhook=f"http://127.0.0.1:{slow(*DRIPS[drip])}/", webhook_secret="key")
    begun = time.monotonic()
    with pytest.raises(AlertError, match=r"gives no whole answer within 0\.3 seconds, 4 times in a row"):
        send_alerts(book, [DRIFT], rules=(), outlets=outlets, pause=lambda _: None, exchange_s=0.3)
    assert 1.2 <= time.monotonic() - begun < 4
    assert book.alerts_sent("webhook", ["a1"]) == set()


@pytest.mark.parametrize("security", ["none", "tls"])
def test_an_exchange_with_a_mail_server_ends_however_slowly_it_answers(
    book: QualityRecords, slow: Callable[[bytes, bytes], int], security: Literal["none", "tls"]
) -> None:
    port = slow(b"220-hold on\r\n", b"220-hold on\r\n") if security == "none" else slow(b"\x16\x03\x03\x40\x00", b"\0")
    mail = Outlets(smtp_host="127.0.0.1", smtp_port=port, smtp_security=security, mail_from="a@b.c", mail_to=("d@e.f",))
    begun = time.monotonic()
    with pytest.raises(AlertError, match=r"the mail server 127\.0\.0\.1 gives no whole answer"):
        send_alerts(book, [DRIFT], rules=(), outlets=mail, pause=lambda _: None, exchange_s=0.3)
    assert time.monotonic() - begun < 4


def test_all_alerts_of_a_channel_share_one_time(book: QualityRecords, slow: Callable[[bytes, bytes], int]) -> None:
    outlets = Outlets(webhook=f"http://127.0.0.1:{slow(*DRIPS['silence'])}/", webhook_secret="key")
    begun = time.monotonic()
    with pytest.raises(AlertError, match=r"within 0\.\d+ seconds; the 0\.5 seconds for all alerts of a channel"):
        send_alerts(book, [DRIFT, ESCAPE], rules=(), outlets=outlets, channel_s=0.5)
    assert time.monotonic() - begun < 3


def test_a_body_without_end_is_not_read(book: QualityRecords, slow: Callable[[bytes, bytes], int]) -> None:
    port = slow(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"a" * 1000)
    sent = send_alerts(
        book, [DRIFT], rules=(), outlets=Outlets(webhook=f"http://127.0.0.1:{port}/", webhook_secret="k")
    )
    assert sent.sent[Channel.WEBHOOK] == ("a1",)


@pytest.mark.parametrize(
    "url",
    [
        "http://ada:s3cret@127.0.0.1:{port}/in",
        "http://ada:12/s3cret@127.0.0.1:{port}/in",
        "http://ada:s3cret/@127.0.0.1:{port}/in",
        "ftp://ada:s3cret@127.0.0.1/",
        "http://ada:s3cret@127.0.0.1:70000/",
        "http://ada:s3cret\n@127.0.0.1/",
    ],
)
def test_no_message_tells_a_password_of_the_url(
    book: QualityRecords, slow: Callable[[bytes, bytes], int], url: str
) -> None:
    port = slow(b"HTTP/1.1 404 Not here\r\nContent-Length: 0\r\n\r\n", b"")
    outlets = Outlets(webhook=url.format(port=port), webhook_secret="very-secret")
    with pytest.raises(AlertError) as caught:
        send_alerts(book, [DRIFT], rules=(), outlets=outlets, pause=lambda _: None, exchange_s=1)
    for secret in ("s3cret", "ada", "very-secret", ":12"):
        assert secret not in str(caught.value)


def test_a_name_and_a_password_in_the_url_reach_the_server(book: QualityRecords, webhook: str) -> None:
    address = webhook.replace("://", "://ada:s3cret@")
    send_alerts(book, [DRIFT], rules=(), outlets=Outlets(webhook=address, webhook_secret="key"))
    assert Receiver.got[0][0]["authorization"] == "Basic " + base64.b64encode(b"ada:s3cret").decode()


def test_no_proxy_of_the_environment_is_asked(
    book: QualityRecords, webhook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9/")
    sent = send_alerts(book, [DRIFT], rules=(), outlets=Outlets(webhook=webhook, webhook_secret="key"))
    assert sent.sent[Channel.WEBHOOK] == ("a1",)


def test_what_a_server_says_commands_no_terminal(book: QualityRecords, slow: Callable[[bytes, bytes], int]) -> None:
    port = slow(b"HTTP/1.1 404 \x1b[31mgone\x1b[0m" + b"E" * 5000 + b"\r\nContent-Length: 0\r\n\r\n", b"")
    outlets = Outlets(webhook=f"http://127.0.0.1:{port}/", webhook_secret="key")
    with pytest.raises(AlertError) as caught:
        send_alerts(book, [DRIFT], rules=(), outlets=outlets, pause=lambda _: None, exchange_s=1)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"smtp_user": "line", "smtp_password": "schlüssel"}, "smtp_password has a character beyond ASCII"),
        ({"mail_from": "a@b.c\r\nBcc: d@e.f"}, "mail_from or alert.mail_to is no address"),
    ],
)
def test_settings_that_no_mail_can_carry_are_told(
    book: QualityRecords, mailbox: tuple[Mailbox, int], changed: dict[str, Any], says: str
) -> None:
    given: dict[str, Any] = {
        "smtp_host": "127.0.0.1",
        "smtp_port": mailbox[1],
        "smtp_security": "none",
        "mail_from": "line@plant.example",
        "mail_to": ("qm@plant.example",),
    }
    with pytest.raises(AlertError, match=says) as caught:
        send_alerts(book, [DRIFT], rules=(), outlets=Outlets(**given | changed), pause=lambda _: None)
    assert "ü" not in str(caught.value)
