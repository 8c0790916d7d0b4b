"""`inspect-xai explain`: which folder an explanation goes to."""

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.support import hostile, spots


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(hostile.encoded(hostile.surface(seed)))
    return path


def test_a_later_call_replaces_the_same_picture_alone(cli: Run, bundle: Path, tmp_path: Path) -> None:
    monday, tuesday = picture(tmp_path / "monday/P1.png", 1), picture(tmp_path / "tuesday/P1.png", 2)

    def folders(*pictures: Path) -> list[str]:
        code, out, err = cli(
            "explain", bundle, *pictures, "--out", tmp_path / "maps", "--device", "cpu", "--no-faithfulness", "--json"
        )
        assert code == 0, err
        return [Path(row["folder"]).name for row in json.loads(out)]

    assert folders(monday) == ["P1"]
    assert folders(tuesday) == ["P1-2"]
    assert (folders(tuesday), folders(monday)) == (["P1-2"], ["P1"])
    assert folders(tuesday, monday) == ["P1-2", "P1"]
    sources = {name: json.loads((tmp_path / "maps" / name / "manifest.json").read_text()) for name in ("P1", "P1-2")}
    assert {name: found["picture"]["source"] for name, found in sources.items()} == {
        "P1": str(monday),
        "P1-2": str(tuesday),
    }
