"""The rules that machines can hold: imports one way, nothing loaded at import, docs that follow the code."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from inspect_xai import errors
from inspect_xai.cli import app
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import reference


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"]
    alone = {"PATH": "", "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=alone)


def error_kinds() -> list[type[errors.InspectXaiError]]:
    return [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.InspectXaiError)
    ]


@pytest.fixture
def copied_project(tmp_path: Path) -> Path:
    for name in ("inspect_xai", "flows"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contract_holds(copied_project: Path) -> None:
    outcome = lint_imports(copied_project)

    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("inspect_xai/maths/sise.py", "import inspect_xai.model.engine", "layers import downwards"),
        ("inspect_xai/line/line.py", "import sqlalchemy", "SQL behind one door"),
        ("inspect_xai/line/line.py", "import onnxruntime", "ONNX behind one door"),
        ("inspect_xai/line/line.py", "import prefect", "the package knows no orchestrator"),
        ("inspect_xai/maths/tiles.py", "import pathlib", "maths, statistics and records know arrays only"),
    ],
)
def test_a_planted_breach_of_the_contract_is_found(copied_project: Path, module: str, line: str, broken: str) -> None:
    planted = copied_project / module
    planted.write_text(f"{planted.read_text()}\n{line}\n")

    outcome = lint_imports(copied_project)

    assert outcome.returncode == 1
    assert f"{broken} BROKEN" in " ".join(outcome.stdout.split())


def test_importing_the_package_loads_no_heavy_library() -> None:
    """Neither does the command line's help, which people call to see whether the thing is there."""
    probe = (
        "import sys; import inspect_xai, inspect_xai.cli; "
        "heavy = ('onnxruntime', 'onnx', 'sqlalchemy', 'torch', 'prefect', 'pandas', 'matplotlib'); "
        "print([m for m in heavy if m in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"


def test_the_public_names_resolve() -> None:
    import inspect_xai

    assert all(getattr(inspect_xai, name) is not None for name in inspect_xai.__all__)


def test_every_command_has_help_with_an_example_and_described_options() -> None:
    commands = reference.walk(typer.main.get_command(app), "inspect-xai")

    assert len(commands) >= 9
    for name, command in commands:
        assert f"Example: {name}" in command.help, name
        undescribed = [parameter.name for parameter in command.params if not parameter.help]
        assert undescribed == [], name
        assert CliRunner().invoke(app, [*name.split()[1:], "--help"]).exit_code == 0


def test_the_reference_page_is_fresh() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.render(), "run `make format`"


def test_every_error_stands_in_the_errors_page_with_its_exit_code() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    kinds = error_kinds()

    assert len(kinds) > 10
    assert [kind.__name__ for kind in kinds if f"| `{kind.__name__}` | {kind.exit_code} |" not in page] == []


def test_no_two_errors_share_an_exit_code() -> None:
    kinds = error_kinds()

    codes = [kind.exit_code for kind in kinds]

    assert len(codes) == len(set(codes))
    assert not {0, 1, 2} & set(codes)
