"""Objects close at the end of a with block, and refuse calls after it."""

from pathlib import Path

import pytest

from inspect_xai.closing import Closing
from inspect_xai.errors import InspectXaiError
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line
from tests.support.spots import spot_bundle


class Door(Closing):
    is_open = True

    def close(self) -> None:
        self.is_open = False


def test_a_with_block_closes_also_when_it_fails() -> None:
    door = Door()

    def fail() -> None:
        with door as same:
            assert same is door
            assert door.is_open
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not door.is_open


@pytest.mark.parametrize("keep", [False, True])
def test_a_closed_source_is_refused(tmp_path: Path, *, keep: bool) -> None:
    with FolderSource(tmp_path, keep=keep) as source:
        assert source.claim(1) == []
    with pytest.raises(InspectXaiError, match=f"the source {tmp_path} is closed"):
        source.claim(1)


def test_a_closed_line_is_refused(tmp_path: Path) -> None:
    with Line(spot_bundle(tmp_path / "bundle"), f"sqlite:///{tmp_path}/line.db", device="cpu") as line:
        pass
    with FolderSource(tmp_path) as source, pytest.raises(InspectXaiError, match=r"the line of model spots is closed"):
        line.inspect(source, [])
