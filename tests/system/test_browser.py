"""The desk in a real browser: the walk of an operator by keyboard, two operators at once, and readers with less."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.support import desk_inspections as making
from inspect_xai.records import VerdictCode
from inspect_xai.reports.daily import write_report
from inspect_xai.settings import ServeSettings
from inspect_xai.storage.store import open_store
from inspect_xai.storage.studies import Studies
from tests.support.desk import Desk, opening, serving

pytestmark = pytest.mark.browser
Open = Callable[..., Desk]
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; skips loudly where there is none, and fails in CI, where there must be one."""
    program = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if program is None or sync_playwright is None:
        missing = "apt-get install chromium fonts-dejavu-core; pip install 'inspect-xai[browser]'"
        if os.environ.get("CI") == "true":
            pytest.fail(f"no browser: {missing}")
        pytest.skip(f"no browser, so no page was seen by anybody: {missing}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(sqlite_template: Path, tmp_path: Path) -> Iterator[Open]:
    with opening(sqlite_template, tmp_path, flagged=6, good=6) as open_desk:
        yield open_desk


@pytest.fixture
def sit_down(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Signs somebody in and gives their page; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    with ExitStack() as stack:

        def sit(desk: Desk, name: str, **context: object) -> Any:
            options: dict[str, Any] = {"viewport": {"width": 1600, "height": 1000}, "locale": "en-GB"} | context
            page = stack.enter_context(chromium.new_context(**options)).new_page()
            page.set_default_timeout(15_000)
            page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
            page.goto(desk.base)
            page.fill("#name", name)
            page.click("main button")
            page.wait_for_selector(".who")  # the address of the sign-in page ends with /queue too
            page.wait_for_load_state()  # keys are heard once the page's script has run
            return page

        yield sit
        meant = ("409 (Conflict)", "422 (Unprocessable")  # browsers complain of every answer that is no success
        assert [each for each in complaints if not any(code in each for code in meant)] == []


def number(page: Any) -> int:
    return int(page.url.partition("/inspections/")[2].partition("?")[0])


def go(page: Any, key: str) -> int:
    """Press a key that leads to another part, and say to which."""
    before = page.url
    page.keyboard.press(key)
    page.wait_for_url(lambda url: url != before)
    page.wait_for_load_state()
    return number(page)


def test_an_operator_judges_by_keyboard(opened: Open, sit_down: Any) -> None:
    desk = opened(flagged=6)
    page = sit_down(desk, "Ada")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "SN00003"
    page.evaluate("document.activeElement.blur()")
    assert go(page, "Enter") == 1

    # The map: other blocks, weaker, off and on, outlines off and on.
    shown = page.locator("#map")
    assert "map.png" in shown.get_attribute("href")
    page.keyboard.press("2")
    assert "block-2.png" in shown.get_attribute("href")
    page.keyboard.press("[")
    assert shown.get_attribute("opacity") == "0.6"
    page.keyboard.press("m")
    assert shown.get_attribute("opacity") == "0"
    page.keyboard.press("m")
    assert shown.get_attribute("opacity") == "0.6"
    page.keyboard.press("x")
    page.locator("#outlines").wait_for(state="hidden")
    page.locator("#opacity").fill("30")
    assert shown.get_attribute("opacity") == "0.3"
    page.locator("#opacity").blur()
    page.keyboard.press("0")
    page.wait_for_function("document.querySelector('#map').getBBox().width > 0")

    assert go(page, "c") == 3  # agrees with the model
    assert "Saved: part SN00001" in page.inner_text("main")
    assert go(page, "j") == 5  # left for later
    assert go(page, "k") == 3  # back to it
    page.keyboard.press("o")
    page.locator("#reasons.wanted").wait_for(state="visible")
    assert desk.store.get(3).reviews == ()  # nothing was sent yet
    page.keyboard.press("2")
    assert page.locator("[name=reason]:checked").get_attribute("value") == "DUST"
    assert go(page, "Enter") == 5
    assert go(page, "u") == 2

    said = {n: [(r.decision, r.verdict, r.reason_code) for r in desk.store.get(n).reviews] for n in (1, 3, 5)}
    assert said == {1: [("confirm", "NG", "")], 3: [("overturn", "OK", "DUST")], 5: [("undecided", "UNSURE", "")]}


def test_a_box_is_drawn_in_pixels_of_the_picture_at_any_zoom(opened: Open, sit_down: Any) -> None:
    desk = opened(flagged=1)
    page = sit_down(desk, "Ada")
    go(page, "Enter")
    stage = page.locator("#stage")
    place = stage.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.wheel(0, -300)
    page.wait_for_function("document.querySelector('#stage').viewBox.baseVal.width < 96")
    corners = stage.evaluate(
        "s => [[40, 30], [52, 47]].map(([x, y]) => { const p = new DOMPoint(x, y).matrixTransform(s.getScreenCTM());"
        " return [p.x, p.y]; })"
    )
    page.keyboard.press("b")
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=4)
    page.mouse.up()
    assert page.locator("#box").get_attribute("width") == "12"

    page.keyboard.press("f")
    assert stage.get_attribute("viewBox") == "0 0 96 96"
    page.keyboard.press("n")  # one pixel of the picture is one pixel of the screen
    assert stage.evaluate("s => s.getScreenCTM().a") == pytest.approx(1, abs=0.01)

    page.keyboard.press("c")
    page.wait_for_url("**/queue?done=1")
    assert desk.store.get(1).reviews[0].box == (30, 40, 17, 12)


def test_of_two_operators_the_late_one_sees_who_was_faster(opened: Open, sit_down: Any) -> None:
    desk = opened(flagged=1, claim_s=0.01)
    ada, bert = sit_down(desk, "Ada"), sit_down(desk, "Bert")
    go(ada, "Enter")
    go(bert, "Enter")
    bert.keyboard.press("c")
    bert.wait_for_url("**/queue?done=1")
    ada.keyboard.press("c")
    ada.wait_for_url("**/review")
    told = ada.inner_text("main")
    assert "Bert has answered part SN00001 meanwhile" in told
    assert "What you wanted to say" in told
    assert [review.reviewer for review in desk.store.get(1).reviews] == ["Bert"]


def test_a_blind_part_is_judged_before_it_is_uncovered(opened: Open, sit_down: Any) -> None:
    desk = opened(flagged=1, blind_share=1.0)
    page = sit_down(desk, "Ada")
    go(page, "Enter")
    assert page.locator("#map").count() == 0
    assert "UNSURE" not in page.inner_text("main")
    page.keyboard.press("g")
    page.wait_for_selector("#map")
    page.wait_for_load_state()  # keys are heard once the page's script has run
    assert "Now you see verdict and map" in page.inner_text("main")
    page.keyboard.press("c")
    page.wait_for_url("**/queue?done=1")
    assert [(r.blind, r.verdict) for r in desk.store.get(1).reviews] == [(True, "OK"), (False, "NG")]


def test_without_javascript_everything_works_too(opened: Open, sit_down: Any) -> None:
    desk = opened(flagged=2)
    page = sit_down(desk, "Ada", java_script_enabled=False)
    page.click("text=Judge the next part")
    page.locator("#opacity").wait_for(state="hidden")
    page.locator("[data-zoom=in]").wait_for(state="hidden")  # what needs a script is not offered
    page.click("text=Block 2")
    page.click("text=weaker")
    assert "block-2.png" in page.locator("#map").get_attribute("href")
    assert page.locator("#map").get_attribute("opacity") == "0.5"
    page.click("text=Outlines")
    page.locator("#outlines").wait_for(state="hidden")
    page.click("text=Beside a good part")
    page.click(".answer.OK")
    assert "Please choose a reason" in page.inner_text("main")
    page.check("[value=REFLECTION]")
    page.click("summary:has-text('More')")
    page.click("summary:has-text('More')")
    page.fill("[name=note]", "lamp")
    page.click(".answer.OK")
    assert number(page) == 2
    (review,) = desk.store.get(1).reviews
    assert (review.decision, review.reason_code, review.note) == ("overturn", "REFLECTION", "lamp")


def test_help_lists_the_keys_and_lets_go_of_them(opened: Open, sit_down: Any) -> None:
    desk = opened(flagged=1)
    page = sit_down(desk, "Ada")
    go(page, "Enter")
    page.keyboard.press("?")
    page.locator("#help").wait_for(state="visible")
    page.keyboard.press("c")  # covered: no answer is sent
    page.keyboard.press("Escape")
    page.locator("#help").wait_for(state="hidden")
    page.click("#more summary")
    page.fill("#note", "could be dust")  # letters typed into a field are no keys of the desk
    assert page.input_value("#note") == "could be dust"
    assert desk.store.get(1).reviews == ()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(opened: Open, sit_down: Any, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    desk = opened(flagged=3)
    page = sit_down(desk, "Ada", color_scheme=theme)
    desk.client("Bert").judge(2, decision="confirm", note="seen")
    found: dict[str, list[str]] = {}
    paths = (
        "/queue",
        "/inspections/1",
        "/inspections/2",
        "/inspections/4",
        "/parts?serial=SN00001",
        "/models",
        "/help",
        "/studies",
        "/studies/1",
        "/studies/1/judge",
        "/studies/2",
        "/studies/3/judge?reference=1",
    )
    studies = Studies(desk.store.database)
    studies.create("first", appraisers=["Ada"], trials=1, by="Quinn", inspection_ids=[1, 4])
    done = studies.create("done", appraisers=["Bert"], trials=1, by="Quinn", inspection_ids=[1, 4])
    studies.create("open", appraisers=["Bert"], trials=1, by="Quinn", inspection_ids=[1, 4])
    for who in ("", "Bert"):
        while task := studies.next_task(done.study_id, who):
            studies.answer(task, VerdictCode.OK if task.inspection_id == 4 else VerdictCode.NG, by=who or "Quinn")
    for path in paths:
        page.goto(desk.base + path)
        violations = Axe().run(page).response["violations"]
        found[path] = [f"{v['id']}: {[node['html'][:150] for node in v['nodes']]}" for v in violations]
    assert {path: each for path, each in found.items() if each} == {}, json.dumps(found, indent=1)


def test_hostile_words_run_nothing(sqlite_template: Path, tmp_path: Path, sit_down: Any) -> None:
    shutil.copy(sqlite_template, tmp_path / "desk.db")
    url = f"sqlite:///{tmp_path}/desk.db"
    hostile = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
    with open_store(url) as store:
        making.prepared(store).record(
            [making.inspection(tmp_path / "archive", 1, serial=hostile, lot="<svg onload=alert(3)>")]
        )
    with serving(url, ServeSettings(archive=(tmp_path / "archive",))) as desk:
        page = sit_down(desk, "<b>Ada</b>")
        go(page, "Enter")
        assert hostile in page.inner_text("main")


@pytest.mark.parametrize("size", [(1920, 1080), (1280, 800), (800, 1200)])
def test_the_picture_is_the_largest_thing_and_targets_fit_gloves(
    opened: Open, sit_down: Any, size: tuple[int, int]
) -> None:
    page = sit_down(opened(flagged=1), "Ada", viewport={"width": size[0], "height": size[1]})
    go(page, "Enter")
    stage, answers = page.locator("#stage").bounding_box(), page.locator(".answers").bounding_box()
    assert stage["width"] * stage["height"] > 0.35 * size[0] * size[1]
    assert answers["y"] + answers["height"] <= size[1]  # in view without scrolling, as is the verdict
    assert page.locator("main h1").bounding_box()["y"] < size[1] / 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heights = page.eval_on_selector_all("main .answer", "all => all.map(each => each.getBoundingClientRect().height)")
    assert min(heights) >= 60
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 18


def test_a_small_study_is_judged_by_keyboard(opened: Open, sit_down: Any) -> None:
    desk = opened(flagged=1, good=1)
    quinn = sit_down(desk, "Quinn")
    quinn.click("nav >> text=Studies")
    quinn.fill("#name", "Autumn")
    quinn.fill("#appraisers", "Ada, Bob")
    quinn.fill("[name=parts]", "2")
    quinn.fill("[name=trials]", "2")
    quinn.click("main button")
    quinn.wait_for_url("**/studies/1")
    quinn.keyboard.press("Enter")  # the reference: inspection 1 is defective
    quinn.wait_for_url("**/judge?reference=1")
    studies = Studies(desk.store.database)
    for place in (1, 2):
        quinn.wait_for_selector(f"h1:has-text('Part {place} of 2')")
        quinn.wait_for_load_state()  # before that no script listens to keys
        task = studies.task(int(quinn.get_attribute("[name=task]", "value")))
        quinn.keyboard.press("d" if task.inspection_id == 1 else "g")
    quinn.wait_for_url("**/studies/1")
    for who in ("Ada", "Bob"):
        page = sit_down(desk, who)
        page.goto(f"{desk.base}/studies/1")
        page.keyboard.press("Enter")
        for trial in (1, 2):
            for place in (1, 2):
                page.wait_for_selector(f"h1:has-text('Part {place} of 2')")
                page.wait_for_selector(f".because:has-text('trial {trial} of 2')")
                page.wait_for_load_state()
                page.wait_for_function("document.querySelector('image.pixels').getBBox().width > 0")
                task = studies.task(int(page.get_attribute("[name=task]", "value")))
                page.keyboard.press("d" if task.inspection_id == 1 and (who, trial) != ("Bob", 2) else "g")
        page.wait_for_selector("text=You have judged every part in every trial.")
    quinn.reload()
    rows = [row.inner_text().split() for row in quinn.query_selector_all("table:last-of-type tbody tr")]
    told = {row[0]: row for row in rows}
    assert told["Ada"][1:7] == ["100", "%", "2", "of", "2", "100"]
    assert told["Bob"][1:7] == ["50", "%", "1", "of", "2", "50"]
    assert desk.store.ledger.verify().holds


@pytest.mark.slow
def test_a_report_shows_its_charts_as_served_and_nothing_of_it_lies_over_the_edge_of_a4(
    opened: Open, sit_down: Any, tmp_path: Path
) -> None:
    """Whatever the policy it is served with forbids would stand in the browser's console, which fails the test."""
    desk = opened(flagged=6, good=6, reports=tmp_path / "reports")
    day = desk.store.get(1).capture.captured_at.date()
    written = write_report(desk.store, first=day - timedelta(days=20), last=day, out=tmp_path / "reports")
    page = sit_down(desk, "Ada", color_scheme="dark")
    page.goto(f"{desk.base}/reports/{written.page.parent.name}/page")
    ink = "getComputedStyle(document.querySelector('svg.chart text')).fill"
    assert page.evaluate(ink) == "rgb(154, 165, 177)"
    assert "parts inspected (count)" in page.inner_text("main")
    boxes = page.evaluate("[...document.querySelectorAll('svg.chart *')].map(e => e.getBoundingClientRect().width)")
    assert max(boxes) > 100
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 687, "height": 1017})  # what is left of A4 between the margins
    assert page.evaluate(ink) == "rgb(68, 68, 68)"  # a dark screen prints as light
    assert page.evaluate("document.documentElement.scrollWidth") <= 687
