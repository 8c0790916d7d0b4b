"""What is closed says so when it is called again."""

import pytest

from inspect_xai.closing import Closing


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
