"""The database's address and file: what a URL may say, what is read without the right to write, what replaces it."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.support import stored
from inspect_xai.errors import DatabaseAwayError, NotFoundError, SettingsError, StoreError
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line, drain
from inspect_xai.storage import database
from inspect_xai.storage.store import open_store, was_used
from tests.conftest import Run
from tests.support import spots
from tests.support.line import write

# Addresses


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://inspect:Pw1@x@host/db", "several @. .* as %40 for @"),
        ("postgresql://inspect:Pw1@x/y@host/db", "several @"),
        ("postgresql://inspect:Pw1?x@y@host/db", "several @"),
        ("postgresql://inspect:Pw1/db", "the port in the postgresql URL of the database is no number"),
        ("postgresql://inspect:Pw1@host:Pw1/db", "is no number"),
        ("postgresql://inspect:Pw1@host:99999/db", "Expected 1 to 65535"),
        ("postgresql://inspect:Pw1@host:0/db", "Expected 1 to 65535"),
        ("postgresql:/inspect:Pw1@host", "cannot be read"),
        (" postgresql://inspect:Pw1@host/db", "cannot be read"),
        ("mysql://inspect:Pw1@host/db?password=Pw1", "no store can be kept at 'mysql://inspect:"),
        ("inspections.db", "'inspections.db' is no database URL"),
        ("sqlite:///a?b/inspections.db", "holds a ?"),
        ("sqlite:///:memory:", "no store can be kept"),
    ],
)
def test_a_url_that_cannot_be_meant_gets_one_line_and_no_password(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        database.parsed(url)
    assert "Pw1" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://inspect:Pw1@host/db", "postgresql://inspect:***@host/db"),
        ("postgresql://host/db?user=inspect&password=Pw1&sslpassword=Pw1", "postgresql://host/db?user=inspect"),
        ("sqlite:///inspections.db", "sqlite:///inspections.db"),
    ],
)
def test_a_url_is_shown_without_passwords(url: str, shown: str) -> None:
    assert database.redact_url(url) == shown


def test_escaped_characters_of_a_password_are_understood() -> None:
    address = database.parsed("postgresql://inspect:p%40s%3As%2Fw%23d%3F@host:5433/db")
    assert (address.password, address.host, address.port, address.database) == ("p@s:s/w#d?", "host", 5433, "db")


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r"psycopg is not installed. .*pip install 'inspect-xai\[postgres\]'"):
        open_store("postgresql://host/db", create=False)


@pytest.mark.parametrize("name", ["50%", "50%25", "Prüf stelle #1", "a::b", "a;b&c"])
def test_a_path_is_taken_letter_by_letter(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with open_store(f"sqlite:///{folder}/store.db") as store:
        assert stored.prepared(store).record([stored.inspection(1)])[0].is_new
    assert (folder / "store.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_escaped_path_makes_no_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "my parts").mkdir()
    with pytest.raises(SettingsError, match="as they are"):
        open_store(f"sqlite:///{tmp_path}/my%20parts/store.db")
    assert [path.name for path in tmp_path.iterdir()] == ["my parts"]


# Reading as an account that may not write


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account may read, with a database of one inspection."""
    made = Path(tempfile.mkdtemp(prefix="inspect-xai-test-"))
    made.chmod(0o755)
    with open_store(f"sqlite:///{made}/store.db") as store:
        stored.prepared(store).record([stored.inspection(1)])
    (made / "store.db").chmod(0o644)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


@pytest.fixture
def other_account(folder: Path) -> Iterator[None]:
    """While a test runs, an account that may read that folder and not write there."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
        yield


def test_what_nobody_has_open_is_read_without_the_right_to_write(folder: Path, other_account: None) -> None:
    with open_store(f"sqlite:///{folder}/store.db", create=False) as store:
        assert store.get(1).capture.part.serial == "SN00001"
        assert store.ledger.verify().holds
        with pytest.raises(StoreError, match=r"it is read-only .*give this account the right to write"):
            store.set_reason("DUST", "dust")
    assert [path.name for path in folder.iterdir()] == ["store.db"]


def test_what_a_line_has_open_is_read_as_it_is_now(folder: Path, other_account: None) -> None:
    os.seteuid(os.getuid())
    if os.geteuid() != 0:
        pytest.skip("writes as another account: that takes root")
    with open_store(f"sqlite:///{folder}/store.db") as writer:
        writer.record([stored.inspection(2)])
        for path in folder.glob("store.db-*"):
            path.chmod(0o644)
        os.seteuid(65534)
        with open_store(f"sqlite:///{folder}/store.db", create=False) as store:
            assert len(store.find()) == 2  # the second one lies in the write-ahead log alone
            os.seteuid(0)
            writer.record([stored.inspection(3)])
            os.seteuid(65534)
            assert len(store.find()) == 3
        os.seteuid(0)
        for path in folder.glob("store.db-*"):
            path.chmod(0o600)
        os.seteuid(65534)
        with pytest.raises(StoreError, match=r"write-ahead log needs write access to the folder.*use PostgreSQL"):
            open_store(f"sqlite:///{folder}/store.db", create=False)
        os.seteuid(0)


def touched(file: Path) -> None:
    """Make a file look written to, as the account that owns it."""
    before = os.geteuid()
    os.seteuid(os.getuid())
    os.utime(file, (1, 1))
    os.seteuid(before)


def test_a_file_that_is_written_while_it_is_read_as_it_lies_says_so(folder: Path, other_account: None) -> None:
    with open_store(f"sqlite:///{folder}/store.db", create=False) as store:
        with pytest.raises(DatabaseAwayError, match="was written to while it was read"):
            store.ledger.verify(on_progress=lambda *_: touched(folder / "store.db"))
        assert len(store.find()) == 1


# The file of a line


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


def deleted(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()


def replaced(file: Path) -> None:
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(file.with_name("backup"))) as backup:
        source.backup(backup)
    file.with_name("backup").replace(file)


def overwritten(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(os.urandom(100_000))


@pytest.mark.parametrize(
    ("happens", "said"), [(deleted, "is gone"), (replaced, "was replaced"), (overwritten, "no.*database|damaged")]
)
def test_a_database_that_goes_away_keeps_pictures_out_of_the_archive(
    bundle: Path, tmp_path: Path, happens: object, said: str
) -> None:
    db, incoming = tmp_path / "line.db", tmp_path / "in"
    write(incoming / "a.png", 1)
    with Line(bundle, f"sqlite:///{db}", device="cpu") as line, FolderSource(incoming, settle_s=0) as source:
        drain(line, source)
        write(incoming / "b.png", 2)
        happens(db)  # type: ignore[operator]
        with pytest.raises(StoreError, match=said):
            drain(line, source)
    assert [path.name.split("~")[0] for path in (incoming / "_archive").rglob("*.png")] == ["a"]
    assert [path.name for path in (incoming / "_claimed").rglob("*.png")] == ["b.png"]
    assert db.exists() == (happens is not deleted)  # none is made in its place


def test_a_new_database_beside_a_full_archive_is_refused(cli: Run, bundle: Path, tmp_path: Path) -> None:
    db, incoming = tmp_path / "line.db", tmp_path / "in"
    url = f"sqlite:///{db}"
    write(incoming / "a.png", 1)
    run = ["line", "--source", incoming, "--bundle", bundle, "--db", url, "--device", "cpu", "--settle", 0]
    assert not was_used(url)
    assert cli(*run)[0] == 0
    assert was_used(url)
    deleted(db)
    write(incoming / "b.png", 2)
    code, _, err = cli(*run)
    assert (code, "no line has recorded into" in err, "--new-database" in err) == (50, True, True)
    assert not db.exists()
    assert (incoming / "b.png").exists()
    assert cli("db", "upgrade", "--db", url)[0] == 0
    assert cli(*run)[0] == 50  # empty as before
    assert cli(*run, "--new-database")[0] == 0
    write(incoming / "c.png", 3)
    assert cli(*run)[0] == 0


@pytest.mark.parametrize("archive", ["here", "nowhere"])
def test_the_desk_opens_neither_a_database_nor_an_archive_that_is_not_there(
    cli: Run, tmp_path: Path, archive: str
) -> None:
    (tmp_path / "here").mkdir()
    db = f"sqlite:///{tmp_path}/store.db"
    if archive == "nowhere":
        open_store(db).close()
    code, _, err = cli("serve", "--db", db, "--archive", tmp_path / archive, "--port", 0)
    said = "no database at" if archive == "here" else "is no folder"
    assert (code, said in err) == (NotFoundError.exit_code if archive == "here" else SettingsError.exit_code, True), err
    assert (tmp_path / "store.db").exists() == (archive == "nowhere")


def test_s3_without_its_package_says_what_to_install() -> None:
    said = subprocess.run(  # fsspec keeps what it once imported: a process that never did
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['s3fs'] = None; "
            "import inspect_xai.storage.file_locations as p; "
            "p.opened_root('s3://plant/in')",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImportError: s3fs is not installed: pip install 'inspect-xai[s3]'" in said.stderr
