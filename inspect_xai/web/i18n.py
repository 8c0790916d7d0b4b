"""All texts of the desk, one catalog file per language, and how numbers, times and ages are written."""

import tomllib
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

LANGUAGES = {"en": "English", "de": "Deutsch"}


@cache
def catalog(language: str) -> dict[str, str]:
    """Return the texts of a language by dotted key."""
    document = tomllib.loads((files("inspect_xai.web") / "texts" / f"{language}.toml").read_text("utf-8"))
    return {f"{group}.{key}": text for group, texts in document.items() for key, text in texts.items()}


def chosen_language(accepted: str, *, default: str) -> str:
    """Return the first language of an Accept-Language header that there are texts for.

    >>> chosen_language("fr;q=0.9, de-AT;q=0.8, en;q=0.1", default="en")
    'de'
    """
    wishes = []
    for position, part in enumerate(accepted.split(",")[:20]):
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        wishes.append((-weight, position, name.split("-")[0].lower()))
    return next((name for _, _, name in sorted(wishes) if name in LANGUAGES), default)


@dataclass(frozen=True, slots=True)
class Words:
    """The texts of one language, for one plant."""

    language: str
    zone: ZoneInfo

    def __call__(self, key: str, **values: object) -> str:
        """Return the text under a key with its names filled in; a missing key is a programming error (KeyError)."""
        text = catalog(self.language)[key]
        return text.format(**values) if values else text

    def has(self, key: str) -> bool:
        """Whether there is a text under a key, for codes that come from records."""
        return key in catalog(self.language)

    def percent(self, share: float) -> str:
        """Write a probability in percent; only what is certain is 0 % or 100 %."""
        text = f"{share * 100:.1f}".removesuffix(".0")
        if text == "100" and share < 1:
            text = ">99.9"
        elif text == "0" and share > 0:
            text = "<0.1"
        return (text.replace(".", ",") if self.language == "de" else text) + "\u00a0%"

    def decimal(self, value: float) -> str:
        """Write a number with two decimals, as the language does."""
        text = f"{value:.2f}"
        return text.replace(".", ",") if self.language == "de" else text

    def reason(self, code: str, meaning: str) -> str:
        """Return what a reason code means: in the plant's words, or the reader's language for default codes."""
        key = f"reason_code.{code}"
        is_ours = meaning in {catalog(language).get(key) for language in LANGUAGES}
        return self(key) if is_ours else meaning

    def moment(self, moment: datetime) -> str:
        """Date and time in the plant's zone; at the ends of the calendar, where a zone has no time, as it was given."""
        local = self._local(moment)
        return f"{local:%d.%m.%Y %H:%M:%S}" if self.language == "de" else f"{local:%Y-%m-%d %H:%M:%S}"

    def clock(self, moment: datetime) -> str:
        """Write the time of day in the plant's zone."""
        return f"{self._local(moment):%H:%M}"

    def _local(self, moment: datetime) -> datetime:
        try:
            return moment.astimezone(self.zone)
        except (OverflowError, ValueError):  # years 1 and 9999
            return moment

    def age(self, span: timedelta) -> str:
        """How long something has waited, in its largest unit."""
        seconds = max(0.0, span.total_seconds())
        for key, length, most in (("minutes", 60, 120), ("hours", 3600, 48), ("days", 86_400, None)):
            if seconds < 60:
                break
            if most is None or seconds < most * length:
                return self(f"age.{key}", n=int(seconds // length))
        return self("age.seconds")
