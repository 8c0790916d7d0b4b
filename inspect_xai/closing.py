"""Objects that are closed after use: the `with` block of all of them, and the error after it."""

from abc import ABC, abstractmethod
from typing import Self

from inspect_xai.errors import InspectXaiError


class Closing(ABC):
    """Closes itself at the end of a `with` block."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Free what is held; closing twice does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def closed(what: str) -> InspectXaiError:
    """Return the error for a call on something that was closed."""
    return InspectXaiError(f"{what} is closed", expected="an open one", remedy="call inside the with block")
