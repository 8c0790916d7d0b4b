"""The time a report speaks of: days of the plant's zone, all of each or one shift of it."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from inspect_xai.errors import SettingsError

_MOST_DAYS = 366


@dataclass(frozen=True, slots=True)
class Period:
    """From the first day to the last, both included, as captured; `shift` empty: the whole days.

    Raises:
        SettingsError: The days are out of order, or more than a year.
    """

    first: date
    last: date
    zone: ZoneInfo
    shift: str = ""

    def __post_init__(self) -> None:
        if not 0 <= (self.last - self.first).days < _MOST_DAYS:
            expected = "a first day and a last day, at most a year apart"
            raise SettingsError(f"from {self.first} to {self.last}", expected=expected)

    @property
    def days(self) -> list[date]:
        """Each day of it."""
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    @property
    def name(self) -> str:
        """What its folder is called: a shift may be named by anybody, so only plain characters of it are used."""
        span = self.first.isoformat() if self.first == self.last else f"{self.first}_{self.last}"
        return f"{span}_{re.sub(r'[^A-Za-z0-9-]+', '-', self.shift)}" if self.shift else span

    @property
    def title(self) -> str:
        """For a heading."""
        span = str(self.first) if self.first == self.last else f"{self.first} to {self.last}"
        return f"{span}, shift {self.shift}" if self.shift else span

    @property
    def span(self) -> tuple[datetime, datetime]:
        """First moment, and first moment after."""
        return self.begin(self.first), self.begin(self.last + timedelta(days=1))

    @property
    def before(self) -> "Period":
        """As many days that end where this one begins, and the same shift of them."""
        return Period(
            self.first - timedelta(days=len(self.days)), self.first - timedelta(days=1), self.zone, self.shift
        )

    def begin(self, day: date) -> datetime:
        """When a day begins, in UTC; a day in which clocks are changed has 23 or 25 hours."""
        return datetime.combine(day, time.min, self.zone).astimezone(UTC)

    def span_of(self, day: date) -> tuple[datetime, datetime]:
        """First moment of a day, and first moment after."""
        return self.begin(day), self.begin(day + timedelta(days=1))
