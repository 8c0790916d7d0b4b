"""What the desk refuses: forged forms, borrowed names, foreign hosts, hostile words and files, floods."""

import dataclasses
import html.parser
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from benchmarks.support import desk_inspections as making
from inspect_xai.errors import SettingsError
from inspect_xai.records import Part
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.review_queue_sql import QueueFilter
from inspect_xai.storage.store import open_store
from inspect_xai.storage.web_sessions import Sessions
from inspect_xai.web import middleware
from inspect_xai.web.auth import Access, Person, Role, is_loopback, read_people
from inspect_xai.web.middleware import Rate
from inspect_xai.web.rendering import Archive, MissingPictureError
from tests.support.desk import PEOPLE, Desk, Visitor, people_file, serving

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</textarea></select><svg onload=alert(1)>",
    "../../etc/passwd",
    "‮​\x07 \udcff",
    "a" * 3000,
)


def sendable(words: str) -> bytes:
    """What a client can send of some words: half a surrogate has no UTF-8."""
    return words.encode("utf-8", "replace")


@pytest.fixture(scope="module")
def desk(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk of people with tokens; its tests leave no answers behind."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(sqlite_template, folder / "desk.db")
    url = f"sqlite:///{folder}/desk.db"
    making.filled(url, folder / "archive", flagged=4, good=1)
    given_ = ServeSettings(archive=(folder / "archive",), people=people_file(folder), requests_per_minute=100_000)
    with serving(url, given_) as served:
        yield served


@pytest.fixture(scope="module")
def visitors(desk: Desk) -> dict[str, Visitor]:
    return {name: desk.client(token=f"token of {name}") for name in PEOPLE}


# ---- who may come in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "desk.plant.example"])
def test_an_open_desk_refuses_to_listen_to_a_network(host: str, desk: Desk) -> None:
    with pytest.raises(SettingsError, match="as long as nobody has to say who they are"):
        Access(ServeSettings(host=host), Sessions(desk.store.database, idle_s=100))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_this_machine_alone(host: str, desk: Desk) -> None:
    assert is_loopback(host)
    assert Access(ServeSettings(host=host), Sessions(desk.store.database, idle_s=100)).is_open


def test_a_proxys_header_needs_the_proxys_address(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="anybody could send X-User"):
        Access(ServeSettings(host="192.168.1.5", proxy_header="X-User"), Sessions(desk.store.database, idle_s=100))
    with pytest.raises(SettingsError, match="no address of a proxy"):
        Access(
            ServeSettings(proxy_header="X-User", proxy_addresses=("gateway",)),
            Sessions(desk.store.database, idle_s=100),
        )
    Access(ServeSettings(host="192.168.1.5", people=people_file(tmp_path)), Sessions(desk.store.database, idle_s=100))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "person = 3",
        '[[person]]\nname = "A"\nrole = "king"',
        '[[person]]\nname = "A"\nrole = "viewer"\ntoken_sha256 = "short"',
        '[[person]]\nname = "A"\nrole = "viewer"\npassword = "x"',
        '[[person]]\nname = ""\nrole = "viewer"',
        '[[person]]\nname = "A"\nrole = "viewer"\n[[person]]\nname = "A"\nrole = "admin"',
    ],
)
def test_a_list_of_people_that_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "people.toml").write_text(text)
    with pytest.raises(SettingsError):
        read_people(tmp_path / "people.toml")


def test_nobody_sees_anything_before_signing_in(desk: Desk) -> None:
    stranger = desk.client()
    pages = ["/", "/queue", "/inspections/1", "/parts?serial=SN00001", "/models", "/help"]
    assert {stranger.get(page).status_code for page in pages} == {303}
    assert stranger.get("/queue?line=L1").headers["location"] == "/signin?next=/queue%3Fline%3DL1"
    for image in ("picture.png", "thumbnail.png", "map.png", "overlay.png", "outlines.svg", "block-1.png"):
        assert stranger.get(f"/inspections/1/{image}").status_code == 401
    for path in (
        "inspections",
        "inspections/1",
        "inspections/1/map",
        "queue",
        "models",
        "openapi.json",
        "parts/SN00001",
    ):
        assert stranger.get(f"/api/v1/{path}").status_code == 401
    assert stranger.get("/metrics").status_code == 401
    assert stranger.post("/queue/next").status_code == 401
    assert stranger.get("/health/live").status_code == 200


def test_a_token_opens_the_desk_and_a_wrong_one_does_not(desk: Desk) -> None:
    visitor = desk.client()
    visitor.get("/signin")
    before = visitor.http.cookies["inspect-xai"]
    wrong = visitor.post("/signin", {"token": "token of nobody", "name": "Adam"})
    assert wrong.status_code == 401
    assert "not known here" in wrong.text
    visitor.get("/signin")
    right = visitor.post("/signin", {"token": " token of Otto\n", "next": "//evil.example"})
    assert (right.status_code, right.headers["location"]) == (303, "/queue")
    cookie = right.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert visitor.http.cookies["inspect-xai"] != before  # an id known before signing in is worth nothing after it
    assert "Otto (operator)" in visitor.get("/queue").text
    stale = httpx.get(f"{desk.base}/queue", cookies={"inspect-xai": before})
    assert stale.status_code == 303


def test_over_https_the_cookie_never_travels_without(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    with serving(f"sqlite:///{tmp_path}/desk.db", ServeSettings(https=True)) as served:
        cookie = served.client().get("/signin").headers["set-cookie"]
    assert cookie.startswith("__Host-inspect-xai=")
    assert "Secure" in cookie
    with serving(f"sqlite:///{tmp_path}/desk.db", ServeSettings(https=True, path="/inspect")) as served:
        cookie = served.client().get("/signin").headers["set-cookie"]
    assert cookie.startswith("__Secure-inspect-xai=")  # "__Host-" would need the path "/"
    assert {"Secure", "Path=/inspect"} <= set(cookie.split("; "))


def asking(session_id: str, cookie: str = "inspect-xai") -> HTTPConnection:
    return HTTPConnection({"type": "http", "headers": [(b"cookie", f"{cookie}={session_id}".encode())]})


def test_sessions_end(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    now = datetime(2026, 11, 23, tzinfo=UTC)
    with open_store(f"sqlite:///{tmp_path}/desk.db", clock=lambda: now) as store:
        access = Access(ServeSettings(session_s=100), Sessions(store.database, idle_s=100))
        first, second = access.begin("Ada"), access.begin("Bert")
        now += timedelta(seconds=90)
        assert access.signed_in(asking(first.session_id)) == Person("Ada", Role.QUALITY)
        now += timedelta(seconds=60)
        assert access.signed_in(asking(first.session_id)) is not None  # used at 90
        assert access.signed_in(asking(second.session_id)) is None  # unused since 0
        access.end(first)
        assert access.signed_in(asking(first.session_id)) is None
        third = access.begin("Cleo")
        access.end_all()
        assert access.signed_in(asking(third.session_id)) is None
        for nothing in ("", "x", "a" * 43, "'; DROP TABLE web_session"):
            assert access.signed_in(asking(nothing)) is None


def test_a_restart_or_a_second_process_signs_nobody_out(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    url = f"sqlite:///{tmp_path}/desk.db"
    making.filled(url, tmp_path / "archive", flagged=3, good=0)
    people = ServeSettings(archive=(tmp_path / "archive",), people=people_file(tmp_path))
    with serving(url, people) as one, serving(url, people) as other:
        otto = one.client(token="token of Otto")
        otto.follow(otto.post("/preferences", {"language": "de", "theme": "dark", "back": "/queue"}))
        otto.get("/inspections/3")
        assert otto.post("/queue/next", {"skip": "3"}).headers["location"] != "/inspections/3"
        cookies = dict(otto.http.cookies)
        there = other.client()
        there.http.cookies.update(cookies)
        page = there.get("/queue").text
        assert 'data-theme="dark"' in page
        assert "Otto" in page
        assert there.judge(1, decision="confirm").status_code == 303  # its forms count there too
        otto.post("/signout")
        assert there.get("/queue").status_code == 303  # and who leaves here has left there
        otto = one.client(token="token of Otto")
        cookies = dict(otto.http.cookies)
    with serving(url, people) as again:
        back = again.client()
        back.http.cookies.update(cookies)
        assert back.get("/queue").status_code == 200
    rows = sqlite3.connect(tmp_path / "desk.db").execute("SELECT id_sha256 FROM web_session").fetchall()
    assert not {cookies["inspect-xai"]} & {row[0] for row in rows}  # who reads the table cannot sit down


def test_a_name_taken_on_an_open_desk_is_nobody_where_tokens_are_asked_for(
    sqlite_template: Path, tmp_path: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    url = f"sqlite:///{tmp_path}/desk.db"
    with serving(url, ServeSettings()) as opened:
        cookies = dict(opened.client("Adam").http.cookies)
    with serving(url, ServeSettings(people=people_file(tmp_path))) as closed:
        visitor = closed.client()
        visitor.http.cookies.update(cookies)
        assert visitor.get("/queue").status_code == 303


def test_visitors_leave_no_trace_before_they_sign_in(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    with serving(f"sqlite:///{tmp_path}/desk.db", ServeSettings(people=people_file(tmp_path))) as served:
        for _ in range(3):
            served.client().get("/signin")
        scripts = served.client(headers={"Authorization": "Bearer token of Vera"})
        scripts.get("/queue")
    count = sqlite3.connect(tmp_path / "desk.db").execute("SELECT count(*) FROM web_session").fetchone()
    assert count == (0,)


# ---- what each role may do ---------------------------------------------------------------------------------------


def test_a_viewer_looks_and_cannot_judge(desk: Desk, visitors: dict[str, Visitor]) -> None:
    vera = visitors["Vera"]
    page = vera.get("/inspections/1").text
    assert "Your role lets you look" in page
    assert 'id="judge"' not in page
    for path in ("/queue/next", "/inspections/1/claim", "/inspections/1/release", "/inspections/1/review"):
        assert vera.post(path, {"decision": "confirm"}).status_code == 403
    bearer = {"Authorization": "Bearer token of Vera", "Idempotency-Key": "viewer-key"}
    answer = vera.http.post("/api/v1/inspections/1/reviews", json={"decision": "confirm"}, headers=bearer)
    assert answer.status_code == 403
    assert desk.store.get(1).reviews == ()


def test_only_quality_takes_over_what_others_hold(desk: Desk, visitors: dict[str, Visitor]) -> None:
    otto, olga, quinn = visitors["Otto"], visitors["Olga"], visitors["Quinn"]
    otto.get("/inspections/4")
    assert otto.post("/inspections/4/claim").status_code == 303
    olga.get("/inspections/4")
    assert olga.post("/inspections/4/release").status_code == 303  # gives back nothing: it is not hers
    assert desk.app.state.site.desk.seen(4, "Otto", QueueFilter()).standing.claimed_by == "Otto"
    assert olga.post("/inspections/4/release", {"whoever": "1"}).status_code == 403
    assert "Take it from Otto" in quinn.get("/inspections/4").text
    assert quinn.post("/inspections/4/release", {"whoever": "1"}).status_code == 303
    assert desk.app.state.site.desk.seen(4, "Otto", QueueFilter()).standing.claimed_by == ""


def test_only_an_admin_signs_everybody_out(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    with serving(f"sqlite:///{tmp_path}/desk.db", ServeSettings(people=people_file(tmp_path))) as desk:
        signs_everybody_out(desk)


def signs_everybody_out(desk: Desk) -> None:
    otto, adam = (desk.client(token=f"token of {name}") for name in ("Otto", "Adam"))
    assert otto.post("/signout", {"everybody": "1"}).status_code == 403
    assert otto.get("/queue").status_code == 200
    assert adam.post("/signout", {"everybody": "1"}).status_code == 303
    assert otto.get("/queue").status_code == 303


# ---- forged requests ---------------------------------------------------------------------------------------------


def test_a_form_without_the_token_of_its_session_is_refused(desk: Desk, visitors: dict[str, Visitor]) -> None:
    otto, olga = visitors["Otto"], visitors["Olga"]
    otto.get("/inspections/1")
    olga.get("/inspections/1")
    for forged in ("", "0" * 64, olga.csrf, "é"):
        refused = otto.post("/inspections/1/review", {"csrf": forged, "decision": "confirm"})
        assert refused.status_code == 403
        assert "too old or comes from elsewhere" in refused.text
    assert otto.http.post("/signin", data={"token": "token of Adam"}).status_code == 403
    assert otto.http.post("/preferences", data={"theme": "dark"}).status_code == 403
    assert desk.store.get(1).reviews == ()


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://HERE"},  # the same host, but another scheme is another site
        {"Origin": "HERE"},
    ],
)
def test_a_form_sent_by_another_site_is_refused(
    desk: Desk, visitors: dict[str, Visitor], headers: dict[str, str]
) -> None:
    otto = visitors["Otto"]
    otto.get("/queue")
    headers = {name: value.replace("HERE", desk.base.removeprefix("http://")) for name, value in headers.items()}
    assert otto.post("/preferences", {"theme": "dark"}, headers=headers).status_code == 403


def test_a_form_of_our_own_page_passes(desk: Desk, visitors: dict[str, Visitor]) -> None:
    otto = visitors["Otto"]
    otto.get("/queue")
    headers = {"Origin": desk.base, "Sec-Fetch-Site": "same-origin"}
    assert otto.post("/preferences", {"theme": "auto"}, headers=headers).status_code == 303


def test_only_forms_are_forms(visitors: dict[str, Visitor]) -> None:
    otto = visitors["Otto"]
    otto.get("/queue")
    for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
        sent = otto.http.post("/queue/next", content=f"csrf={otto.csrf}", headers={"Content-Type": kind})
        assert sent.status_code == 400
    many = "&".join(f"a{i}=1" for i in range(200))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert otto.http.post("/queue/next", content=many, headers=form).status_code == 400
    assert otto.http.post("/queue/next", content=b"csrf=\xff", headers=form).status_code == 400
    for path in ("/queue/next", "/inspections/1/review", "/signout", "/inspections/1/claim"):
        assert otto.get(path).status_code == 405
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert otto.http.request(method, "/inspections/1").status_code == 405


def test_a_browsers_session_needs_the_token_of_its_page_for_the_json_interface_too(
    desk: Desk, visitors: dict[str, Visitor]
) -> None:
    otto = visitors["Otto"]
    otto.get("/queue")
    path, key = "/api/v1/inspections/99/reviews", {"Idempotency-Key": "session-key"}
    said = {"decision": "confirm"}
    assert otto.http.post(path, json=said, headers=key).status_code == 403
    assert otto.http.post(path, json=said, headers=key | {"X-CSRF-Token": otto.csrf}).status_code == 404
    wrong = httpx.get(f"{desk.base}/api/v1/queue", headers={"Authorization": "Bearer wrong"}, cookies=otto.http.cookies)
    assert wrong.status_code == 401  # a token that is none is not made good by a session


# ---- borrowed names ----------------------------------------------------------------------------------------------


def test_no_header_makes_anybody_somebody_unless_a_proxy_is_named(desk: Desk) -> None:
    for header in ("X-Forwarded-User", "X-Remote-User", "Remote-User", "X-User"):
        assert desk.client(headers={header: "Adam"}).get("/queue").status_code == 303


def test_the_proxys_header_counts_from_its_address_alone(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    url = f"sqlite:///{tmp_path}/desk.db"
    elsewhere = ServeSettings(proxy_header="X-User", proxy_addresses=("10.0.0.5",), people=people_file(tmp_path))
    with serving(url, elsewhere) as served:
        assert served.client(headers={"X-User": "Adam"}).get("/queue").status_code == 303
        assert served.client(headers={"X-User": "Adam", "X-Forwarded-For": "10.0.0.5"}).get("/queue").status_code == 303
    here = elsewhere.model_copy(update={"proxy_addresses": ("127.0.0.1",)})
    with serving(url, here) as served:
        assert "Adam (admin)" in served.client(headers={"X-User": "Adam"}).get("/queue").text
        assert "Zoe (viewer)" in served.client(headers={"X-User": "Zoe"}).get("/queue").text
        twice = httpx.get(f"{served.base}/queue", headers=[("X-User", "Vera"), ("X-User", "Adam")])
        assert twice.status_code == 303
        for name in ("", "a" * 61, "Ad\tam"):
            assert served.client(headers={"X-User": name}).get("/queue").status_code == 303
        # The session only carries the forgery token: whose it is, the proxy says anew each time.
        visitor = served.client(headers={"X-User": "Adam"})
        visitor.get("/queue")
        visitor.http.headers["X-User"] = "Vera"
        assert visitor.post("/signout", {"everybody": "1"}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@evil"])
def test_a_request_for_another_host_is_refused(desk: Desk, host: str) -> None:
    """So that a name which an attacker lets point here (DNS rebinding) opens nothing."""
    assert desk.client().get("/signin", headers={"Host": host}).status_code == 421
    assert desk.client().get("/health/live", headers={"Host": "localhost:1"}).status_code == 200


# ---- hostile words and files -------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Notes what a page could run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            text = value or ""
            runs = name.startswith("on") or name == "style" or name == "srcdoc"
            leads = name in ("href", "src", "action", "formaction", "xlink:href") and not text.startswith(("/", "#"))
            if runs or leads:
                self.found.append(f"<{tag} {name}={text!r}>")
        if tag in ("iframe", "object", "embed", "base", "style"):
            self.found.append(f"<{tag}>")
        if tag == "script" and dict(attrs).get("src") != "/static/desk.js":
            self.found.append("<script>")


def test_hostile_words_stay_words_on_every_page(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    url = f"sqlite:///{tmp_path}/desk.db"
    archive = tmp_path / "archive"
    with open_store(url) as store:
        card = dataclasses.replace(
            making.CARD, name=HOSTILE[0], labels=("crack", HOSTILE[1], "free"), description=HOSTILE[5]
        )
        store.registry.register_model(making.FINGERPRINT, card, registered_by=HOSTILE[1])
        store.begin_run(making.RUN)
        given_ = []
        for number, words in enumerate(HOSTILE, 1):
            each = making.inspection(archive, number)
            capture = dataclasses.replace(
                each.capture,
                part=Part(words, words, words),
                file_name=words,
                line=words,
                station=words,
                camera=words,
                view=words,
                shift=words,
            )
            verdict = dataclasses.replace(each.verdict, label=words)
            explanation = dataclasses.replace(each.explanation, notes=(words,))  # type: ignore[type-var]
            given_.append(dataclasses.replace(each, capture=capture, verdict=verdict, explanation=explanation))
        store.record(given_)
        store.set_reason(HOSTILE[1], HOSTILE[0])
    with serving(url, ServeSettings(archive=(archive,))) as served:
        visitor = served.client(HOSTILE[1][:60])
        pages = []
        for number, words in enumerate(HOSTILE, 1):
            pages.append(
                visitor.get(f"/inspections/{number}", params={"map": sendable(words), "line": sendable(words)})
            )
            pages.append(
                visitor.answer(number, decision="overturn", note=sendable(words[:1999]).decode())
            )  # refused: the form comes again
            visitor.follow(
                visitor.judge(number, decision="confirm", note=sendable(words[:1999]).decode(), label=HOSTILE[1])
            )
            pages.append(visitor.get(f"/inspections/{number}?done={number}"))
            pages.append(visitor.get("/parts", params={"serial": sendable(words)}))
            pages.append(visitor.get("/queue", params={"line": sendable(words)}))
        late = {"decision": "confirm", "key": "late", "newest": "", "note": HOSTILE[0], "label": HOSTILE[5]}
        pages.append(visitor.post("/inspections/1/review", late | {"label": ""}))
        pages += [visitor.get("/models"), visitor.get("/nowhere/<script>"), visitor.get("/queue")]
    assert {page.status_code for page in pages} == {200, 404, 409, 422}
    for page in pages:
        reader = Reader()
        reader.feed(page.text)
        assert reader.found == [], page.url
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
    assert any("{{ 7 * 7 }}{% raw %}" in page.text for page in pages)


def test_no_page_but_the_archive_reaches_a_file(tmp_path: Path) -> None:
    inside, outside = tmp_path / "archive", tmp_path / "secret"
    inside.mkdir()
    outside.mkdir()
    (outside / "key.png").write_bytes(b"secret")
    (inside / "part.png").write_bytes(b"picture")
    (inside / "link.png").symlink_to(outside / "key.png")
    (inside / "folder").symlink_to(outside)
    archive = Archive([inside])
    assert archive.locate("part.png") == archive.locate(str(inside / "part.png")) == str(inside / "part.png")
    hostile = (
        "folder/../part.png",
        "../secret/key.png",
        str(outside / "key.png"),
        "link.png",
        "folder/key.png",
        "/etc/passwd",
        "part.png\x00.txt",
        f"{inside}/../secret/key.png",
        "~/key.png",
        "file:///etc/passwd",
        f"{inside}-secret/key.png",
        "",
        ".",
    )
    for path in hostile:
        with pytest.raises(MissingPictureError):
            archive.locate(path)
    with pytest.raises(MissingPictureError, match="no_archive"):
        Archive([]).locate(str(inside / "part.png"))


def test_no_url_but_the_archives_own_is_fetched() -> None:
    archive = Archive(["memory://plant/archive", "s3://bucket/line1/"])
    for good in ("memory://plant/archive/a/part.png", "s3://bucket/line1/part 7.png"):
        assert archive.locate(good) == good
    hostile = (
        "memory://plant/archive",
        "memory://plant/archive-secret/key.png",
        "memory://plant/archive/../secret/key.png",
        "memory://plant/archive/%2e%2e/secret/key.png",
        "memory://plant/archive/..\\secret\\key.png",
        "memory://plant/archive//key.png",
        "memory://plant/archive/x.zip::file:///etc/passwd",
        "zip://key.png::memory://plant/archive/x.zip",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "s3://bucket/line10/part.png",
        "S3://bucket/line1/part.png",
        "/etc/passwd",
        "part.png",
    )
    for url in hostile:
        with pytest.raises(MissingPictureError):
            archive.locate(url)


def test_addresses_that_climb_find_nothing(desk: Desk, visitors: dict[str, Visitor]) -> None:
    host, port = desk.base.removeprefix("http://").split(":")
    cookie = visitors["Vera"].http.cookies["inspect-xai"]
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/....//app.py",
        "//static/",
        "/static/",
        "/static/%00",
        "/inspections/1/..%2f..%2fqueue",
        "/inspections/1/picture.png/../../../etc/passwd",
    ):
        # A client library would tidy the path up before sending it.
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: inspect-xai={cookie}\r\nConnection: close\r\n\r\n"
            raw.sendall(head.encode())
            answer = b""
            while chunk := raw.recv(65_536):
                answer += chunk
        assert answer.split(b" ", 2)[1] in (b"404", b"400"), path
        assert b"create_app" not in answer


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.dictionaries(
        st.sampled_from(
            ["line", "label", "older", "after", "why", "map", "opacity", "done", "compare", "serial", "next"]
        ),
        st.text(max_size=30).filter(lambda text: "\udcff" not in text),
    ),
    path=st.sampled_from(["/queue", "/inspections/1", "/parts", "/signin", "/api/v1/queue", "/api/v1/inspections"]),
)
def test_no_address_breaks_a_page(visitors: dict[str, Visitor], words: dict[str, str], path: str) -> None:
    encodable = {name: text.encode("utf-8", "ignore") for name, text in words.items()}
    assert visitors["Vera"].get(path, params=encodable).status_code < 500


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", str(2**63), "9" * 400, "%00", "1%20or%201=1"])
def test_an_id_that_is_none_is_not_found(visitors: dict[str, Visitor], number: str) -> None:
    assert visitors["Vera"].get(f"/inspections/{number}").status_code in (404, 422)
    assert visitors["Vera"].get(f"/inspections/{number}/picture.png").status_code in (404, 422)
    assert visitors["Vera"].get(f"/api/v1/inspections/{number}").status_code in (404, 422)


# ---- floods ------------------------------------------------------------------------------------------------------


def test_posts_that_are_too_long_or_too_slow_are_refused(
    desk: Desk, visitors: dict[str, Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    otto = visitors["Otto"]
    otto.get("/queue")
    assert otto.post("/queue/next", {"note": "x" * 70_000}).status_code == 413

    def in_pieces() -> Iterator[bytes]:
        yield from [b"a=" + b"x" * 999] * 80

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert otto.http.post("/queue/next", content=in_pieces(), headers=form).status_code == 413

    monkeypatch.setattr(middleware, "_BODY_S", 0.2)
    host, port = desk.base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(f"POST /queue/next HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n\r\na".encode())
        start = time.monotonic()
        assert b" 408 " in slow.recv(1000)
        assert time.monotonic() - start < 5


def test_every_error_of_the_json_interface_is_a_kind_and_a_sentence(
    desk: Desk, visitors: dict[str, Visitor], sqlite_template: Path, tmp_path: Path
) -> None:
    otto, vera, nobody = visitors["Otto"].http, visitors["Vera"].http, desk.client().http
    reviews, key = "/api/v1/inspections/1/reviews", {"Idempotency-Key": "order-4711-17"}
    bearer = {"Authorization": "Bearer token of Otto", **key}
    confirm = {"decision": "confirm", "newest_seen": 99}
    told = [
        (401, "error.401", nobody.get("/api/v1/models")),
        (401, "error.401", nobody.post(reviews, json=confirm, headers=key)),
        (401, "error.401", nobody.get("/metrics")),
        (403, "error.403", vera.post(reviews, json=confirm, headers=key)),
        (403, "error.csrf", otto.post(reviews, json=confirm, headers=key)),
        (
            403,
            "error.cross_site",
            nobody.post(reviews, json=confirm, headers={**bearer, "Origin": "https://evil.example"}),
        ),
        (404, "error.404", otto.get("/api/v1/no/such/path")),
        (404, "error.404", otto.get("/api")),
        (404, "error.404", otto.get("/api/v1/inspections/9999")),
        (405, "error.405", otto.post("/api/v1/models")),
        (405, "error.405", otto.delete("/api/v1/models")),
        (409, "conflict.judged", nobody.post(reviews, json=confirm, headers=bearer)),
        (413, "error.413", nobody.post(reviews, content=b"x" * 70_000, headers=bearer)),
        (422, "error.422", otto.get("/api/v1/inspections?limit=abc")),
        (422, "error.422", otto.get("/api/v1/inspections?after=1&after=2")),
        (422, "form.reason", nobody.post(reviews, json={"decision": "overturn"}, headers=bearer)),
    ]
    shutil.copy(sqlite_template, tmp_path / "few.db")
    with serving(f"sqlite:///{tmp_path}/few.db", ServeSettings(requests_per_minute=1)) as few:
        few.client().http.get("/health/live")
        told.append((429, "error.429", few.client().http.get("/api/v1/models")))
    for status, kind, answer in told:
        assert (answer.status_code, answer.json()["error"]) == (status, kind)
        assert set(answer.json()) == {"error", "message"}
        assert answer.json()["message"].endswith(".")
        assert " " in answer.json()["message"]
    assert "limit" in told[13][2].json()["message"]
    assert told[0][2].headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["/queue", "/api/desk", "/static", "inspect", "/inspect/", "/a//b", "/in spect", "/.."]
)
def test_a_path_that_cannot_be_meant_is_refused(path: str, sqlite_template: Path, tmp_path: Path) -> None:
    from inspect_xai.web.app import create_app

    shutil.copy(sqlite_template, tmp_path / "desk.db")
    with pytest.raises((SettingsError, ValueError), match=r"begins like a page|String should match"):
        create_app(f"sqlite:///{tmp_path}/desk.db", ServeSettings(path=path))


def test_requests_beyond_the_rate_are_refused_and_let_in_again() -> None:
    now = 0.0
    rate = Rate(60, lambda: now)
    assert [rate.allows("a") for _ in range(61)] == [True] * 60 + [False]
    assert rate.allows("b")
    now = 1.5
    assert [rate.allows("a"), rate.allows("a")] == [True, False]
    for number in range(20_000):
        rate.allows(str(number))
    assert len(rate._left) <= 10_000


def test_tokens_are_not_guessed_at_speed(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    with serving(f"sqlite:///{tmp_path}/desk.db", ServeSettings(people=people_file(tmp_path))) as served:
        guesser = served.client()
        guesser.get("/signin")
        codes = [guesser.post("/signin", {"token": f"guess {n}"}).status_code for n in range(12)]
        assert codes == [401] * 10 + [429] * 2
        assert guesser.post("/signin", {"token": "token of Otto"}).status_code == 429  # not even the right one, for now
        # Behind no proxy, a made-up X-Forwarded-For is nobody else.
        again = guesser.post("/signin", {"token": "guess"}, headers={"X-Forwarded-For": "8.8.8.8"})
        assert again.status_code == 429


def test_a_database_that_is_away_is_said_and_nothing_leaks(sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    with serving(f"sqlite:///{tmp_path}/desk.db", ServeSettings()) as served:
        visitor = served.client("Ada")
        served.store.close()
        for file in tmp_path.glob("desk.db*"):
            file.unlink()
        (tmp_path / "desk.db").mkdir()
        answers = [visitor.get(path) for path in ("/queue", "/models", "/health/ready", "/api/v1/models")]
    assert {answer.status_code for answer in answers} <= {500, 503}
    assert answers[-1].json()["error"] in ("error.500", "error.503")
    assert answers[-1].json()["message"].endswith(".")
    for answer in answers:
        assert "Traceback" not in answer.text
        assert str(tmp_path) not in answer.text
        assert "content-security-policy" in answer.headers


def test_roles_include_those_before_them() -> None:
    assert [role.code for role in sorted(Role)] == ["viewer", "operator", "quality", "admin"]
