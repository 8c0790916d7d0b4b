"""A review desk served on loopback, and browsers without JavaScript that visit it."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from benchmarks.support import desk_inspections
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.store import Store
from inspect_xai.web.app import create_app
from inspect_xai.web.auth import digest_of


class Desk:
    """A served desk and how tests talk to it."""

    def __init__(self, app: FastAPI, base: str) -> None:
        self.app = app
        self.base = base
        self.store: Store = app.state.site.store
        self._visitors: list[Visitor] = []

    def client(self, name: str = "", *, token: str = "", headers: dict[str, str] | None = None) -> "Visitor":
        """Open a browser without JavaScript, signed in if a name or token is given."""
        visitor = Visitor(self.base, headers or {})
        self._visitors.append(visitor)
        if name or token:
            visitor.sign_in(name=name, token=token)
        return visitor

    def close(self) -> None:
        """Send all visitors away."""
        for visitor in self._visitors:
            visitor.http.close()


class Visitor:
    """A browser without JavaScript: keeps cookies, reads the forgery token of the page it saw last."""

    def __init__(self, base: str, headers: dict[str, str]) -> None:
        self.http = httpx.Client(base_url=base, headers=headers, follow_redirects=False, timeout=20)
        self.csrf = ""
        self.page = ""

    def get(self, path: str, **kwargs: object) -> httpx.Response:
        response = self.http.get(path, **kwargs)  # type: ignore[arg-type]
        if response.headers.get("content-type", "").startswith("text/html"):
            self.page = response.text
            self.csrf = self.hidden("csrf") or self.csrf
        return response

    def post(self, path: str, fields: dict[str, str] | None = None, **kwargs: object) -> httpx.Response:
        return self.http.post(path, data={"csrf": self.csrf} | (fields or {}), **kwargs)  # type: ignore[arg-type]

    def follow(self, response: httpx.Response) -> httpx.Response:
        assert response.status_code == 303, response.text
        return self.get(response.headers["location"])

    def sign_in(self, *, name: str = "", token: str = "") -> None:
        self.get("/signin")
        response = self.post("/signin", {"name": name, "token": token})
        self.follow(response)

    def hidden(self, name: str) -> str:
        """Return the value of a hidden field of the page seen last, of the judgment form first."""
        form = re.search(r'<form id="judge".*?</form>', self.page, re.DOTALL)
        for text in (form[0] if form else "", self.page):
            found = re.search(rf'name="{name}" value="([^"]*)"', text)
            if found:
                return found[1]
        return ""

    def judge(self, inspection_id: int, **fields: str) -> httpx.Response:
        """Open a part and answer."""
        self.get(f"/inspections/{inspection_id}")
        return self.answer(inspection_id, **fields)

    def answer(self, inspection_id: int, **fields: str) -> httpx.Response:
        """Answer on the page seen last."""
        kept = {name: self.hidden(name) for name in ("key", "newest", "back")}
        if 'name="blind"' in self.page:
            kept["blind"] = "1"
        return self.post(f"/inspections/{inspection_id}/review", kept | fields)


@contextmanager
def serving(url: str, settings: ServeSettings) -> Iterator[Desk]:
    """Serve a desk over a real socket on loopback."""
    app = create_app(url, settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none", proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        desk = Desk(app, f"http://127.0.0.1:{port}")
        try:
            yield desk
        finally:
            desk.close()
    finally:
        server.should_exit = True
        thread.join(timeout=10)


PEOPLE = {"Vera": "viewer", "Otto": "operator", "Olga": "operator", "Quinn": "quality", "Adam": "admin"}


def people_file(folder: Path) -> Path:
    file = folder / "people.toml"
    entries = [
        f'[[person]]\nname = "{name}"\nrole = "{role}"\ntoken_sha256 = "{digest_of("token of " + name)}"\n'
        for name, role in PEOPLE.items()
    ]
    file.write_text("\n".join(entries))
    return file


@contextmanager
def opening(template: Path, folder: Path, *, flagged: int, good: int) -> Iterator[Callable[..., Desk]]:
    """Give a function that opens a desk with parts to judge and good ones; further arguments are settings."""
    with ExitStack() as stack:

        def open_desk(*, flagged: int = flagged, good: int = good, **settings: object) -> Desk:
            shutil.copy(template, folder / "desk.db")
            url = f"sqlite:///{folder}/desk.db"
            desk_inspections.filled(url, folder / "archive", flagged=flagged, good=good)
            served = ServeSettings(archive=(folder / "archive",), **settings)  # type: ignore[arg-type]
            return stack.enter_context(serving(url, served))

        yield open_desk
