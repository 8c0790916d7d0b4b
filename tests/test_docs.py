"""The documentation holds: its code runs, every page is in the navigation, a benchmark figure stands in one place."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer.main
import yaml
from surfaces import render

from inspect_xai.cli import app
from inspect_xai.model.build.build import build_bundle
from inspect_xai.policy import policy_from
from inspect_xai.settings import load_settings
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import reference

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
MEASUREMENTS = DOCS / "measurements"
QUICKSTART = DOCS / "quickstart.md"
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLLOWED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", QUICKSTART, *sorted((DOCS / "guides").glob("*.md"))]
"""The pages that a reader follows step by step: their blocks are run, or say what they need."""
NEEDS = "# needs: "
NOT_RUN = {
    ("quickstart.md", "git, make and Python; installs packages"),
    ("auditor.md", "the magnetic tile pictures and a network trained on them"),
    ("deployment.md", "root and systemd"),
    ("deployment.md", "Docker"),
    ("deployment.md", "a Prefect server"),
    ("line.md", "PostgreSQL and the extras of the tests"),
    ("line.md", "a checkout and idle cores; takes minutes"),
    ("quality-manager.md", "a month of recorded inspections"),
}
TAKEN = datetime(2026, 11, 22, 12, tzinfo=UTC)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in CODE.findall(page.read_text(encoding="utf-8")) if kind == language]


def runnable(page: Path) -> str:
    """The page's shell blocks that need nothing but a network, its card and a picture."""
    return "".join(body for body in blocks(page, "bash") if not body.startswith((NEEDS, "make ")))


def write_picture(file: Path, *, mask: Path | None = None) -> None:
    """A part with a crack, taken on the day that the pages name."""
    picture = render(4, 2, label="crack", surface="cast")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(cv2.imencode(".png", picture.rgb[..., ::-1])[1].tobytes())
    os.utime(file, (TAKEN.timestamp(), TAKEN.timestamp()))
    if mask:
        cv2.imwrite(str(mask), picture.mask.astype(np.uint8) * 255)


@pytest.fixture(scope="module")
def sample_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    build_bundle(ROOT / "examples/sample/model.onnx", ROOT / "examples/sample/card.toml", folder / "sample.bundle")
    return folder / "sample.bundle"


@pytest.fixture
def desktop(tmp_path: Path) -> Path:
    """What a reader has: a network, the card of the quick start, and pictures of a part."""
    for name in ("model.onnx", "my.onnx"):
        shutil.copy(ROOT / "examples" / "sample" / "model.onnx", tmp_path / name)
    (tmp_path / "card.toml").write_text("".join(blocks(QUICKSTART, "toml")), encoding="utf-8")
    for name in ("part42.png", "typical.png", "incoming/part42.png"):
        write_picture(tmp_path / name)
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_shell(page: Path, folder: Path) -> str:
    return run(["bash", "-euc", runnable(page)], folder)


def run_python(page: Path, folder: Path) -> str:
    return run([sys.executable, "-c", "".join(blocks(page, "python"))], folder)


@pytest.mark.slow
def test_the_quick_start_does_what_it_says(desktop: Path) -> None:
    """One test, because each block uses what the one before it left."""
    run_shell(QUICKSTART, desktop)
    assert sorted(path.name for path in (desktop / "maps" / "part42").iterdir()) == [
        *("blocks.npz", "manifest.json", "map.npy", "overlay.png", "rank.npy")
    ]
    assert list((desktop / "incoming" / "_archive").rglob("part42*.png"))
    assert list((desktop / "reports").rglob("report.html"))
    status, label, passes = run_python(QUICKSTART, desktop).splitlines()[0].split()
    assert (status, label) == ("explained", "crack")
    assert 16 <= int(passes) < 200


@pytest.mark.slow
def test_the_readme_does_what_it_says(desktop: Path) -> None:
    run_python(ROOT / "README.md", desktop)
    run_shell(ROOT / "README.md", desktop)
    assert list((desktop / "reports").rglob("report.html"))


@pytest.mark.slow
def test_the_auditors_guide_audits_and_compares(sample_bundle: Path, tmp_path: Path) -> None:
    guide = DOCS / "guides" / "auditor.md"
    shutil.copytree(sample_bundle, tmp_path / "tile.bundle")
    write_picture(tmp_path / "p1.png", mask=tmp_path / "m1.png")
    (tmp_path / "parts.csv").write_text("image,label,mask,part\np1.png,crack,m1.png,P1\n")
    (tmp_path / "gate.toml").write_text("".join(blocks(guide, "toml")), encoding="utf-8")
    audit, compare = runnable(guide).splitlines()
    run(["bash", "-euc", audit], tmp_path)
    for name in ("audit-old", "audit-new"):
        shutil.copytree(tmp_path / "audit", tmp_path / name)
    assert "1 pictures: 0 changed" in run(["bash", "-euc", compare], tmp_path)


@pytest.mark.slow
def test_the_plant_engineers_guide_proves_a_line(sample_bundle: Path, desktop: Path) -> None:
    shutil.copytree(sample_bundle, desktop / "my.bundle")
    (desktop / "line.toml").write_text(
        'db = "sqlite:///line.db"\nbundle = "my.bundle"\n[line]\nsource = "incoming"\n[report]\nout = "reports"\n'
    )
    run(["inspect-xai", "db", "upgrade", "--settings", "line.toml"], desktop)
    for step in (["register"], ["approve", "--without-golden", "--note", "audited"]):
        run(["inspect-xai", "model", step[0], "my.bundle", "--db", "sqlite:///line.db", *step[1:]], desktop)
    printed = run_shell(DOCS / "guides" / "plant-engineer.md", desktop)
    assert "20000" in printed or "20,000" in printed


def test_every_block_of_a_followed_page_says_what_it_is() -> None:
    kinds = {(page.name, kind) for page in FOLLOWED for kind, _body in CODE.findall(page.read_text(encoding="utf-8"))}
    assert {kind for _page, kind in kinds} == {"bash", "python", "toml", "json", "csv", "text"}
    assert {kind for page, kind in kinds if page == "quickstart.md"} == {"bash", "python", "toml"}
    indented = [page.name for page in FOLLOWED if re.search(r"\n\n    \S", page.read_text(encoding="utf-8"))]
    assert indented == [], "code stands between ```"


def test_blocks_that_are_not_run_say_what_they_need() -> None:
    """A block without such a line is run by a slow test above, which each page with one has."""
    found = {
        (page.name, body.splitlines()[0].removeprefix(NEEDS))
        for page in FOLLOWED
        for body in blocks(page, "bash")
        if body.startswith(NEEDS)
    }
    assert found == NOT_RUN
    assert {page.name for page in FOLLOWED if runnable(page)} == {
        "README.md",
        "quickstart.md",
        "auditor.md",
        "plant-engineer.md",
    }


def test_every_target_of_make_that_a_page_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        (page.name, target)
        for page in {*FOLLOWED, *PAGES}
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) >= 6
    assert {(page, target) for page, target in named if target not in targets} == set()


def test_every_command_in_the_documentation_has_the_options_that_there_are() -> None:
    commands = dict(reference.walk(typer.main.get_command(app), "inspect-xai"))
    lines = [
        (page.name, shlex.split(line.replace("\\\n", " "), comments=True))
        for page in {*FOLLOWED, *PAGES} - {reference.PAGE}
        for line in re.findall(
            r"^ {0,4}(inspect-xai (?:[^\n]*\\\n)*[^\n]*)$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert len(lines) > 30
    for page, words in lines:
        name = max((name for name in commands if f"{' '.join(words)} ".startswith(f"{name} ")), key=len)
        try:
            commands[name].make_context(name, words[len(name.split()) :])
        except Exception as error:  # noqa: BLE001  click's errors, vendored by typer or not
            pytest.fail(f"{page}: {' '.join(words)}: {error}")


def test_settings_policies_and_tables_of_the_guides_are_read(tmp_path: Path) -> None:
    line, manager = (
        [tomllib.loads(body) for body in blocks(DOCS / "guides" / name, "toml")]
        for name in ("line.md", "quality-manager.md")
    )
    for number, body in enumerate(
        [blocks(DOCS / "guides/line.md", "toml")[0], blocks(DOCS / "guides/quality-manager.md", "toml")[1]]
    ):
        (tmp_path / f"{number}.toml").write_text(body, encoding="utf-8")
        load_settings(tmp_path / f"{number}.toml")
    policy_from(line[1])
    policy_from({"version": "1"} | manager[0])
    (sidecar,) = blocks(DOCS / "guides/line.md", "json")
    (table,) = blocks(DOCS / "guides/line.md", "csv")
    assert json.loads(sidecar)["serial"] == "SN0042"
    assert [row["serial"] for row in csv.DictReader(io.StringIO(table))] == ["SN0042"]


def test_every_page_is_in_the_navigation() -> None:
    document = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(_leaves(yaml.safe_load(document)["nav"])) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def _leaves(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value)


def test_every_section_that_the_code_cites_is_in_the_method_notes() -> None:
    headings = re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", (DOCS / "method.md").read_text(encoding="utf-8"), re.MULTILINE)
    rows = re.findall(r"^\| (9\.\d+) \|", (DOCS / "method.md").read_text(encoding="utf-8"), re.MULTILINE)
    known = {*headings, *rows}
    cited = {
        (path.relative_to(ROOT).as_posix(), number)
        for path in [*(ROOT / "inspect_xai").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *PAGES]
        for phrase in re.findall(
            r"method\s+notes,?\s+(?:sections?\s+)?([\d., toand]+\d)", path.read_text(encoding="utf-8")
        )
        for number in re.findall(r"\d+(?:\.\d+)?", phrase)
    }
    assert len(cited) >= 20
    assert {(path, number) for path, number in cited if number not in known} == set()


def test_a_decision_has_its_parts_and_a_date() -> None:
    pages = sorted((DOCS / "decisions").glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.search(r"^Date: 20\d\d-\d\d-\d\d", text, re.MULTILINE), page.name
        assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], page.name


def test_benchmark_figures_stand_with_the_measurements_only() -> None:
    """Of the numbers with three decimals (correlations, AUPRO, EBPG) on the measurement pages none stands elsewhere."""
    figures = {
        number
        for page in MEASUREMENTS.glob("*.md")
        for row in page.read_text(encoding="utf-8").splitlines()
        if row.startswith("|")
        for number in re.findall(r"(?<![\d.])0\.\d{3}(?!\d)", row)
    }
    assert len(figures) > 100
    pages = [ROOT / "README.md", DOCS / "index.md", DOCS / "quickstart.md", DOCS / "method.md"]
    texts = {page.name: CODE.sub("", page.read_text(encoding="utf-8")) for page in pages}
    assert {(name, number) for name, text in texts.items() for number in figures if number in text} == set()


def test_the_site_loads_nothing_from_other_hosts() -> None:
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert configuration["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & set(configuration)
