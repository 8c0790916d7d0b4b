"""The texts of the desk: every language says the same things, and every text is said somewhere."""

import re
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from inspect_xai.records import Reason, Status, VerdictCode
from inspect_xai.storage.review_queue import ConflictKind
from inspect_xai.storage.review_reasons import ReviewReason
from inspect_xai.web import i18n
from inspect_xai.web.auth import Role
from inspect_xai.web.i18n import LANGUAGES, Words, catalog, chosen_language

WEB = Path(i18n.__file__).parent
SOURCES = "\n".join(path.read_text("utf-8") for path in sorted([*WEB.rglob("*.py"), *WEB.glob("templates/*.html")]))


def names_in(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_have_the_same_texts_with_the_same_names(language: str) -> None:
    english, other = catalog("en"), catalog(language)
    assert set(other) == set(english)
    assert {key for key in english if names_in(english[key]) != names_in(other[key])} == set()


def test_every_code_of_a_record_has_a_text() -> None:
    wanted = [f"reason.{code}" for code in Reason] + [f"verdict.{code}" for code in VerdictCode]
    wanted += [f"why.{code}" for code in ReviewReason] + [f"conflict.{code}" for code in ConflictKind]
    wanted += [f"map.{code}" for code in Status if code is not Status.EXPLAINED] + [
        f"role.{role.code}" for role in Role
    ]
    assert [key for key in wanted if key not in catalog("en")] == []


def test_every_text_is_used_somewhere() -> None:
    built = set(re.findall(r"['\"]([a-z_]+\.[a-z_]*)['\"] ~|['\"]([a-z_]+\.[a-z_]*)\{", SOURCES))
    prefixes = tuple(one or other for one, other in built)
    unused = [key for key in catalog("en") if key not in SOURCES and not key.startswith(prefixes)]
    assert unused == []


def test_every_text_a_template_asks_for_is_there() -> None:
    asked = set(re.findall(r"\bt\('([a-z_.0-9]+)'[,)]", SOURCES)) | set(
        re.findall(r"words\(\"([a-z_.0-9]+)\"", SOURCES)
    )
    assert len(asked) > 80
    assert asked - set(catalog("en")) == set()


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("", "en"), ("de", "de"), ("fr, de;q=0.5, en;q=0.4", "de"), ("de;q=x, en", "en"), (",;q=,*", "en")],
)
def test_the_browsers_language_is_taken_where_we_have_it(accepted: str, language: str) -> None:
    assert chosen_language(accepted, default="en") == language


def test_numbers_times_and_ages_read_as_people_write_them() -> None:
    english, german = (Words(language, ZoneInfo("Europe/Berlin")) for language in ("en", "de"))
    shares = (0.0, 0.0001, 0.005, 0.5, 0.504, 0.987, 0.9999, 1.0)
    said = ["0", "<0.1", "0.5", "50", "50.4", "98.7", ">99.9", "100"]
    assert [english.percent(share) for share in shares] == [f"{text}\u00a0%" for text in said]
    assert german.percent(0.987) == "98,7\u00a0%"
    moment = datetime(2026, 7, 1, 22, 30, 5, tzinfo=UTC)
    assert english.moment(moment) == "2026-07-02 00:30:05"
    assert german.moment(moment) == "02.07.2026 00:30:05"
    ages = [english.age(timedelta(seconds=s)) for s in (-5, 59, 60, 7199, 7200, 172_799, 172_800)]
    assert ages == ["under a minute", "under a minute", "1 min", "119 min", "2 h", "47 h", "2 d"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC", "Pacific/Kiritimati"])
def test_no_moment_breaks_a_page(zone: str) -> None:
    told = Words("en", ZoneInfo(zone))
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    assert told.moment(last).startswith("9999-12-31 ")
    assert told.moment(first).endswith(" 00:00:00") or zone in ("Europe/Berlin", "Pacific/Kiritimati")
    assert len(told.clock(first)) == len(told.clock(last)) == 5


def test_reasons_are_told_in_the_readers_language_unless_the_plant_has_its_own() -> None:
    german = Words("de", ZoneInfo("UTC"))
    assert german.reason("DUST", catalog("en")["reason_code.DUST"]) == "Staub, Faser oder Schmutz, der abgeht"
    assert german.reason("DUST", "Flusen von Halle 3") == "Flusen von Halle 3"
    assert german.reason("R17", "see list") == "see list"
