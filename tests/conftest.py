"""What every test can use: where the real pictures lie, and seeds."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.support import postgres
from inspect_xai.cli import main
from inspect_xai.storage.schema import upgrade_schema

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the real pictures and trained networks (`data/`, `models/`); skips where it is absent."""
    folder = Path(os.environ.get("INSPECT_XAI_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir() or not (folder / "models").is_dir():
        pytest.skip(f"no real pictures at {folder}: set INSPECT_XAI_SHARED to a folder with data/ and models/")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20261123)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Cluster]:
    """A throw-away PostgreSQL on loopback; skips where the server programs are absent."""
    if postgres.programs() is None:
        pytest.skip("no PostgreSQL server programs: install the package `postgresql`")
    with postgres.cluster() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema and no rows, to be copied: that is faster than migrating per test."""
    file = tmp_path_factory.mktemp("template") / "empty.db"
    upgrade_schema(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def postgres_template(postgres_server: postgres.Cluster) -> str:
    """The name of a PostgreSQL database with the schema and no rows."""
    url = postgres_server.create()
    upgrade_schema(url)
    return url.rpartition("/")[2]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with the schema and no rows: each test runs on SQLite and on PostgreSQL."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        return str(server.create(template=request.getfixturevalue("postgres_template")))
    shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "store.db")
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `inspect-xai ...` in an empty folder; gives exit code, stdout and stderr."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inspect-xai", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run
