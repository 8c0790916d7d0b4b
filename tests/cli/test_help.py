"""The command line's help, and names of 0.1 that still work: every summary is whole, every command in a section."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from inspect_xai.cli import app
from inspect_xai.cli.command_group import Panel
from inspect_xai.cli.renamed import COMMANDS, OPTIONS, current_names
from inspect_xai.logs import warn_renamed
from tests.conftest import Run

ROOT: Any = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def nothing_warned() -> None:
    warn_renamed.cache_clear()


def groups(group: TyperGroup = ROOT, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperGroup]]:
    """Yield all groups of commands with their names."""
    yield name, group
    for key, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from groups(command, (*name, key))


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(("name", "group"), [pytest.param(*each, id=" ".join(each[0]) or "all") for each in groups()])
def test_no_summary_is_cut_at_80_columns(
    name: tuple[str, ...], group: TyperGroup, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = cli(*name, "--help")
    assert (code, err) == (0, "")
    assert "..." not in out.partition("[ARGS]...")[2]
    assert out.isascii()
    shown = words(out)
    for key, command in group.commands.items():
        summary = (command.help or "").strip().splitlines()[0]
        assert len(summary) < 55, f"{key}: {summary}"
        assert f"{key} {summary}" in shown


def test_every_command_stands_in_a_section_and_every_section_is_there(cli: Run) -> None:
    panels = {name: getattr(command, "rich_help_panel", None) for name, command in ROOT.commands.items()}
    assert {name for name, panel in panels.items() if panel not in list(Panel)} == set()
    _, out, _ = cli("--help")
    sections = [line.rstrip(":") for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections == ["Options", *Panel]


@pytest.mark.parametrize("old", COMMANDS)
def test_a_command_answers_to_its_old_name_and_warns(
    old: tuple[str, ...], cli: Run, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, _ = cli(*old, "--help")
    assert code == 0
    assert f"inspect-xai {' '.join(old)} is now called inspect-xai {' '.join(COMMANDS[old])}" in caplog.text
    assert "Usage: inspect-xai " in out
    assert " ".join(old) not in [line.strip().partition("  ")[0] for line in cli("--help")[1].splitlines()]


@pytest.mark.parametrize(("command", "old"), [(command, old) for command in OPTIONS for old in OPTIONS[command]])
def test_an_option_answers_to_its_old_name_and_warns_once(
    command: str, old: str, caplog: pytest.LogCaptureFixture
) -> None:
    new = OPTIONS[command][old]
    assert current_names([command, f"{old}=3", old, "--", old]) == [command, f"{new}=3", new, "--", old]
    assert [record.message for record in caplog.records] == [f"{old} is now called {new}; the old name goes in 0.3"]
    known = {name for parameter in ROOT.commands[command].params for name in parameter.opts}
    assert (new in known, old in known) == (True, False)


def test_an_old_option_reaches_the_command(cli: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, _, err = cli("line", "--source", tmp_path, "--keep", "--watch", "--chunk", 3)
    assert (code, "--watch on a source whose files stay in place" in err) == (60, True)
    assert "--keep is now called --in-place" in caplog.text
    assert cli("line", "--chunk", "many")[0] == 2
