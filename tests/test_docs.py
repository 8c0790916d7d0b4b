"""The documentation holds: its code runs, every page is in the navigation, a benchmark figure stands in one place."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import pytest
import yaml
from surfaces import render

from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
MEASUREMENTS = DOCS / "measurements"
CODE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICKSTART = CODE.findall((DOCS / "quickstart.md").read_text(encoding="utf-8"))


def code_of(language: str) -> str:
    return "\n".join(body for kind, body in QUICKSTART if kind == language)


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the quick start has: the network, the card of the page, and pictures of a part."""
    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copy(ROOT / "examples" / "sample" / "model.onnx", folder / "model.onnx")
    (folder / "card.toml").write_text(code_of("toml"), encoding="utf-8")
    picture = cv2.imencode(".png", render(4, 2, label="crack", surface="cast").rgb[..., ::-1])[1].tobytes()
    taken = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
    (folder / "incoming").mkdir()
    for file in (folder / "part42.png", folder / "incoming" / "part42.png"):
        file.write_bytes(picture)
        os.utime(file, (taken, taken))
    return folder


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_quick_start_does_what_it_says(desktop: Path) -> None:
    """One test, because each block uses what the one before it left."""
    run(["bash", "-euc", code_of("bash")], desktop)
    assert sorted(path.name for path in (desktop / "maps" / "part42").iterdir()) == [
        *("blocks.npz", "manifest.json", "map.npy", "overlay.png", "rank.npy")
    ]
    assert list((desktop / "incoming" / "_archive").rglob("part42*.png"))
    assert list((desktop / "reports").rglob("report.html"))
    status, label, passes = run([sys.executable, "-c", code_of("python")], desktop).splitlines()[0].split()
    assert (status, label) == ("explained", "crack")
    assert 16 <= int(passes) < 200


def test_the_quick_start_has_code_of_every_kind() -> None:
    assert {kind for kind, _body in QUICKSTART} == {"toml", "bash", "python"}


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
