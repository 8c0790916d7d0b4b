"""What is printed: names that command nothing, on terminals that cannot show them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.support import stored
from inspect_xai.storage.store import open_store
from tests.conftest import Run

NAME = "Prüf \u2713\n2026 OK \x1b[32mPASS"


@pytest.fixture
def db(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/named.db"
    with open_store(url) as store:
        stored.prepared(store)
        part = stored.Part(NAME, "housing", "LOT1")
        store.record([stored.of_part(stored.inspection(1), "a" * 64, part=part, file_name=f"{NAME}.png")])
    return url


def printed(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "inspect_xai", *arguments]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(command, env=kept | environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode("latin-1")


def test_names_stay_on_their_line_and_command_no_terminal(cli: Run, db: str) -> None:
    for command in (["find"], ["trace", NAME], ["show", "1"]):
        code, out, _ = cli(*command, "--db", db)
        assert code == 0
        assert r"Prüf ✓\n2026 OK \x1b[32mPASS" in out
        assert "\x1b" not in out
    code, _, err = cli("trace", "nobody\x1b[2J", "--db", db)
    assert (code, err) == (1, "no part has the serial 'nobody\\x1b[2J'\n")


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_a_terminal_of_any_encoding_shows_what_it_can(db: str, environment: dict[str, str]) -> None:
    out = printed("find", "--db", db, **environment)
    assert "PASS" in out
    [row] = json.loads(
        printed("find", "--json", "--db", db, **environment).encode("latin-1").decode("utf-8", "replace")
    )
    assert row["serial"].endswith("PASS")
