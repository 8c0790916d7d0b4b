"""The time a report speaks of: days of the plant's zone, all of each or one shift of it."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from unicodedata import normalize
from zoneinfo import ZoneInfo

from inspect_xai.errors import SettingsError

FIRST_DAY, LAST_DAY = date(1970, 1, 1), date(2999, 12, 31)
"""Of what can be asked for; beyond them lie slips of the hand, and soon the ends of the calendar."""

_MOST_DAYS = 366
_WITH_DIGITS = re.compile(r"-[0-9a-f]{8}$")
_MOST_CHARACTERS = 40  # of a shift in a folder's name, which has 255 bytes


@dataclass(frozen=True, slots=True)
class Period:
    """From the first day to the last, both included, as captured; `shift` empty: the whole days.

    Raises:
        SettingsError: The days are out of order, more than a year, or not between `FIRST_DAY` and `LAST_DAY`.
    """

    first: date
    last: date
    zone: ZoneInfo
    shift: str = ""

    def __post_init__(self) -> None:
        for day in (self.first, self.last):
            refuse_far_off(day)
        if not 0 <= (self.last - self.first).days < _MOST_DAYS:
            expected = "a first day and a last day, at most a year apart"
            raise SettingsError(f"from {self.first} to {self.last}", expected=expected)

    @property
    def days(self) -> list[date]:
        """Each day of it."""
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    @property
    def name(self) -> str:
        """What its folder is called; no two shifts share one.

        Of a shift's name letters and digits of any script are kept; where that changes it, digits of its hash follow.
        """
        span = self.first.isoformat() if self.first == self.last else f"{self.first}_{self.last}"
        if not self.shift:
            return span
        kept = re.sub(r"[^\w-]+|_+", "-", normalize("NFC", self.shift))[:_MOST_CHARACTERS]
        return (
            f"{span}_{kept}"
            if kept == self.shift and not _WITH_DIGITS.search(kept)
            else f"{span}_{kept}-{_digits(self.shift)}"
        )

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


def refuse_far_off(day: date) -> None:
    """Refuse a day that nobody can mean.

    Raises:
        SettingsError: It is before `FIRST_DAY` or after `LAST_DAY`.
    """
    if not FIRST_DAY <= day <= LAST_DAY:
        raise SettingsError(f"the day {day}", expected=f"a day from {FIRST_DAY} to {LAST_DAY}")


def _digits(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
