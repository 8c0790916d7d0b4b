"""Files lie where a reader looks for them: tests mirror the package, and nothing is imported from a test file."""

import ast
import tomllib
from collections import Counter
from pathlib import Path

from tests.conftest import ROOT

PACKAGE, TESTS = ROOT / "inspect_xai", ROOT / "tests"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.name.startswith("_"))
TEST_FILES = sorted(path.relative_to(TESTS) for path in TESTS.rglob("test_*.py"))
COVERED = {
    (Path(folder) / name).as_posix(): test
    for folder, names in tomllib.loads((TESTS / "COVERED.toml").read_text(encoding="utf-8")).items()
    for name, test in names.items()
}
NAMED_TWICE = {
    "app.py": "what flows and commands call; the web application",
    "calibration.py": "the statistic; its page in a report",
    "drift.py": "the statistic; its page in a report",
    "quantize.py": "how a network is quantized; how the quantized one is compared",
    "settings.py": "of the product; of an explanation",
    "studies.py": "stored; as pages",
}
"""Beside these a command may bear the name of the module that does its work: cli/retention.py, storage/retention.py."""


def imported(path: Path) -> set[str]:
    """Every module, and every name in one, that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def mirror(module: Path) -> Path:
    return module.parent / f"test_{module.name}"


def test_no_test_file_is_imported() -> None:
    files = [path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    test_modules = {f"tests.{'.'.join(path.with_suffix('').parts)}" for path in TEST_FILES}
    assert {
        (path.relative_to(ROOT).as_posix(), name)
        for path in files
        for name in imported(path)
        if name in test_modules or name.rpartition(".")[0] in test_modules
    } == set()


def test_benchmarks_and_examples_import_no_tests() -> None:
    files = [path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    assert [path.name for path in files for name in imported(path) if name.partition(".")[0] == "tests"] == []


def test_every_module_has_its_test_file_or_a_line_in_the_list() -> None:
    without = {module.as_posix() for module in MODULES if mirror(module) not in TEST_FILES}
    assert set(COVERED) == without
    assert [test for test in COVERED.values() if Path(test) not in TEST_FILES] == []


def test_a_file_is_found_by_its_name() -> None:
    library = Counter(module.name for module in MODULES if module.parts[0] != "cli")
    assert {name for name, count in library.items() if count > 1} == set(NAMED_TWICE)
    mirrors = {mirror(module).name for module in MODULES}
    assert [
        name for name, count in Counter(path.name for path in TEST_FILES).items() if count > 1 and name not in mirrors
    ] == []
