"""The wheel holds all that the product needs, and the product needs no torch."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the tree and unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, NoTorch())
"""


def run_installed(installed: Path, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code that sees the wheel and not the checkout, on a machine that has no torch."""
    code = f"{NO_TORCH}\nsys.path.insert(0, {str(installed)!r})\n{code}"
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=alone)


def test_the_wheel_makes_a_database_from_the_migrations_it_carries(installed: Path, tmp_path: Path) -> None:
    code = (
        "sys.argv = ['inspect-xai', 'db', 'upgrade', '--db', 'sqlite:///made.db']; "
        "import inspect_xai; print(inspect_xai.__file__); from inspect_xai.cli import main; main()"
    )

    outcome = run_installed(installed, code, tmp_path)

    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(str(installed))
    assert (tmp_path / "made.db").is_file()


def test_every_room_imports_without_torch(installed: Path, tmp_path: Path) -> None:
    code = (
        "import pkgutil, importlib, inspect_xai; "
        "names = [m.name for m in pkgutil.walk_packages(inspect_xai.__path__, 'inspect_xai.')"
        " if m.name not in ('inspect_xai.__main__', 'inspect_xai.model.build.export')]; "
        "[importlib.import_module(name) for name in names]; print(len(names))"
    )

    outcome = run_installed(installed, code, tmp_path)

    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) > 40


def test_the_wheel_holds_no_flows_no_tests_and_no_weights(installed: Path) -> None:
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}

    assert top == {"inspect_xai"}
    assert not list(installed.rglob("*.onnx"))
