"""The page in a real browser, on pocket: what a person sees and does. The tests build on one folder of runs and run in this order."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.app.web.browser.conftest import (
    TIMEOUT_MS,
    ServedStudio,
    choose,
    open_tab,
    serve,
    shot,
    wait_for_pairs,
    wait_for_state,
    wait_until,
)

SIZES = ((1366, 768), (1920, 1080), (390, 844))
TABS = ("Compare", "Erase", "Queue", "Audit", "Board")
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def test_the_page_opens_with_a_finished_comparison_and_contacts_no_other_host(browser: Any, studio: ServedStudio) -> None:
    page, hosts, errors = browser.new_page(), set(), []
    page.set_default_timeout(TIMEOUT_MS)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url.startswith("http") else None)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(studio.url)
    wait_for_pairs(page, 4, "a watercolor picture of a house")
    sentence = page.locator("#result .sentence").inner_text()
    assert "the same noise" in sentence and "watercolor (UCE)" in sentence
    wait_until(page, "[...document.querySelectorAll('#result .view:not([hidden]) img')].every(i => i.complete && i.naturalWidth === 64)")
    assert "classifiers read" in page.locator("#result .facts").inner_text()
    assert hosts == {studio.url.split("/")[2]}
    assert not errors
    page.close()


def test_compare_fits_one_screen_and_answers_to_chips_and_keys(page: Any) -> None:
    wait_for_pairs(page, 4)
    page.locator("#examples button", has_text="neon").click()
    wait_until(page, "document.querySelector('#prompt textarea').value.includes('neon')")
    page.keyboard.press("Control+Enter")
    wait_for_pairs(page, 4, "a neon picture of a boat")
    assert page.locator("#result .film").evaluate("e => e.getBoundingClientRect().bottom") <= 768, "Compare must fit one screen"
    page.locator("#result .sentence").click()
    for key, seed in (("ArrowRight", "8"), ("ArrowRight", "9"), ("ArrowLeft", "8")):
        page.keyboard.press(key)
        assert page.locator("#result .view:visible figcaption").inner_text().split() == ["before", "seed", seed, "after"]
    page.locator("#result .wipe:visible").fill("80")
    assert page.locator("#result .frame:visible").evaluate("e => getComputedStyle(e).getPropertyValue('--x')") == "80%"
    page.locator("[data-act=enlarge]").click()
    assert page.locator("dialog.lightbox img").count() == 2
    page.keyboard.press("Escape")
    page.locator("dialog.lightbox").wait_for(state="detached")
    shot(page, "studio-compare")


def test_a_link_and_the_history_bring_results_back(page: Any, open_page: Callable[..., Any]) -> None:
    wait_for_pairs(page, 4)
    page.locator("#prompt textarea").fill("a sketch of a tree")
    page.locator("#seed input").fill("123")
    page.locator("#strength-0 input[type=number]").fill("0.5")
    page.locator("#strength-0 input[type=number]").press("Tab")
    page.locator("#compare").click()
    wait_for_pairs(page, 4, "at strength 0.5")
    query = urlsplit(page.url).query
    assert parse_qs(query)["seed"] == ["123"] and parse_qs(query)["edits"] == ["0.5*watercolor (UCE)"]
    again = open_page(query=f"?{query}")
    wait_for_pairs(again, 4, "at strength 0.5")
    assert again.locator("#prompt textarea").input_value() == "a sketch of a tree"
    assert again.locator("#seed input").input_value() == "123"
    assert again.locator("#strength-0 input[type=number]").input_value() == "0.5"
    page.locator("#history [data-id]").last.click()
    wait_for_pairs(page, 4, "a watercolor picture of a house")
    assert page.locator("#seed input").input_value() == "7"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    assert Path(download.value.path()).read_bytes()[:2] == b"PK"


def test_a_broken_link_says_so_and_shows_the_first_comparison(open_page: Callable[..., Any]) -> None:
    page = open_page(query="?prompt=a+boat&edits=nothing&count=4")
    page.get_by_text("This link could not be followed").wait_for()
    wait_for_pairs(page, 4, "a watercolor picture of a house")


def test_a_new_seed_several_strengths_and_a_grid(page: Any) -> None:
    wait_for_pairs(page, 4)
    page.locator("#dice").click()
    wait_until(
        page, "document.querySelector('#result .view figcaption') && !document.querySelector('#result').innerText.includes('seed 7')"
    )
    page.get_by_role("button", name="Several strengths").click()
    page.locator("#strengths").click()
    wait_until(page, "document.querySelectorAll('#sheet .cell img').length === 4")
    page.locator("#grid-prompts textarea").fill("a neon picture of a boat\na sketch of a tree")
    page.locator("#make-grid").click()
    wait_until(page, "document.querySelectorAll('#sheet tbody tr').length === 2 && document.querySelectorAll('#sheet .cell').length === 4")
    page.locator("#sheet .cell").last.click()
    assert "a sketch of a tree" in page.locator("dialog.lightbox figcaption").inner_text()
    page.keyboard.press("Escape")


def test_stop_ends_a_comparison(page: Any) -> None:
    wait_for_pairs(page, 4)
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("number input for Sampling steps").fill("100")
    page.get_by_label("number input for Sampling steps").press("Tab")
    page.locator("#compare").click()
    page.get_by_text("Generating with pocket").wait_for()
    page.locator("#stop").click()
    page.get_by_text("Stopped. Press Compare").wait_for()


def test_the_keyboard_alone_is_enough(page: Any) -> None:
    def tab_to(condition: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"(() => {{ const e = document.activeElement; return {condition}; }})()"):
                return
        pytest.fail(f"Tab never reaches {condition}")

    wait_for_pairs(page, 4)
    tab_to("e.getAttribute('role') === 'tab'")
    tab_to("e.id === 'compare'")
    tab_to("e.classList.contains('wipe')")
    tab_to("e.classList.contains('tile')")
    page.locator("h1").click()
    tab_to("e.getAttribute('role') === 'tab' && e.innerText === 'Erase'")
    page.keyboard.press("Enter")
    page.locator("#concept").wait_for()
    tab_to("e.id === 'erase'")


def test_unknown_words_are_named_and_html_is_text(page: Any) -> None:
    wait_for_pairs(page, 4)
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    page.locator("#prompt textarea").fill("a <img src=x onerror=alert(1)> zeppelin")
    page.locator("#compare").click()
    wait_for_pairs(page, 4, "zeppelin")
    assert "never saw" in page.locator("#result .note").inner_text()
    assert page.locator("#result .sentence img").count() == 0
    page.locator("#seed input").fill("x" * 5)
    page.locator("#compare").click()
    page.get_by_text("A seed is a whole number").first.wait_for()
    assert page.locator("#result .tile").count() == 0, "images that no longer belong must leave"


def test_a_concept_is_checked_while_it_is_typed(page: Any) -> None:
    open_tab(page, "Erase")
    page.locator("#known").get_by_text("The model knows “neon”").wait_for()
    page.locator("#concept textarea, #concept input").first.fill("stained glas")
    page.locator("#known").get_by_text("Did you mean 'stained glass'").wait_for()
    page.locator("#known .chips button", has_text="boat").click()
    page.locator("#known").get_by_text("The model knows “boat”").wait_for()
    wait_until(page, "document.querySelector('#kind input:checked')?.parentElement.innerText.trim() === 'a thing'")
    choose(page, "method", "UCE")
    page.locator("#advice").get_by_text("On this machine about 10 seconds").wait_for()
    assert "--" not in page.locator("body").inner_text(), "no words of the command line on the page"
    page.locator("#concept textarea, #concept input").first.fill("zeppelin, <b>blimp</b>")
    page.locator("#erase").click()
    page.locator("#erase-note").get_by_text("Press Erase again").wait_for()
    note = page.locator("#erase-note").inner_text()
    assert "separate several concepts with ;" in note and "'zeppelin'" in note and "<b>blimp</b>" in note
    page.locator("#erase").click()  # the audit that would follow knows no such concept, which is reported before the work as well
    page.get_by_text("Unknown concept for suite pocket").first.wait_for()
    open_tab(page, "Queue")
    assert page.locator("#queue").get_by_text("zeppelin").count() == 0


def test_a_long_job_lets_a_short_one_pass_and_can_be_cancelled_and_continued(page: Any, open_page: Callable[..., Any]) -> None:
    open_tab(page, "Erase")
    page.locator("#concept textarea, #concept input").first.fill("sketch")
    choose(page, "suite", "no, only erase")
    page.locator("#options > button").click()
    page.locator("#advice").get_by_text("about").wait_for()
    page.locator("#option-steps").fill("600")  # more than this test gives it time for
    page.get_by_text("Advanced options").click()
    page.locator("#option-trajectories").fill("12")
    assert page.locator("#compare-edit").is_disabled() and page.locator("#prepare-download").is_disabled()
    page.locator("#erase").click()
    page.locator("#job-view").get_by_text(re.compile(r"Training, step \d\d+ of")).wait_for()
    page.locator("#job-view .bar").wait_for()
    page.locator("#job-view .preview").wait_for()
    shot(page, "studio-erase")

    second = open_page()
    open_tab(second, "Erase")
    wait_for_state(second, "running")
    second.locator("#concept textarea, #concept input").first.fill("moon")
    choose(second, "method", "UCE")
    choose(second, "suite", "no, only erase")
    second.locator("#erase").click()
    second.locator("#job-view h3", has_text="moon by UCE").wait_for()
    wait_for_state(second, "done")
    open_tab(second, "Queue")
    assert second.locator("#queue .state.running").count() == 1, "the long job must still be there when the short one is done"

    page.locator("#job input").click()
    page.get_by_role("option", name="sketch by ESD").click()
    page.locator("#cancel").click()
    wait_for_state(page, "cancelled")
    second.locator("#queue .state.cancelled").wait_for()
    page.locator("#continue").click()
    wait_for_state(page, "running")
    page.locator("#job-view").get_by_text("Training, step").wait_for()
    page.locator("#cancel").click()
    wait_for_state(page, "cancelled")


def test_erase_to_the_end_download_and_compare(page: Any) -> None:
    open_tab(page, "Erase")
    page.locator("#concept textarea, #concept input").first.fill("neon")
    choose(page, "suite", "no, only erase")
    page.locator("#options > button").click()
    page.locator("#advice").get_by_text("about").wait_for()
    page.locator("#option-steps").fill("20")
    open_tab(page, "Compare")
    open_tab(page, "Erase")
    page.locator("#known").get_by_text("neon").first.wait_for()
    assert page.locator("#option-steps").input_value() == "20", "what a visitor wrote is still there"
    page.get_by_text("Advanced options").click()
    page.locator("#option-trajectories").fill("12")
    page.locator("#erase").click()
    page.locator("#job-view h3", has_text="neon by ESD").wait_for()
    wait_for_state(page, "done")
    assert page.locator("#job-view .ends img").count() == 2
    assert page.locator("#cancel").is_disabled()
    page.locator("#prepare-download").click()
    page.locator("#file a").first.wait_for()
    page.locator("#compare-edit").click()
    wait_for_pairs(page, 4, "neon (ESD)")


def test_the_queue_moves_renames_and_deletes(page: Any, studio: ServedStudio) -> None:
    open_tab(page, "Erase")
    choose(page, "suite", "no, only erase")
    for name in ("heart", "star", "tree"):
        page.locator("#concept textarea, #concept input").first.fill(name)
        page.locator("#known").get_by_text(f"“{name}”").wait_for()
        page.locator("#erase").click()
        page.locator("#erase-note").get_by_text(f"{name} by ESD").wait_for()
    open_tab(page, "Queue")
    row = page.locator("#queue tr", has_text="tree by ESD")
    row.get_by_text("number 2").wait_for()
    row.get_by_role("button", name="Up").click()
    page.locator("#queue tr", has_text="star by ESD").get_by_text("number 2").wait_for()
    page.once("dialog", lambda dialog: dialog.accept("the last star"))
    page.locator("#queue tr", has_text="star by ESD").get_by_role("button", name="Rename").click()
    page.locator("#queue").get_by_text("the last star").wait_for()
    for name in ("the last star", "tree by ESD", "heart by ESD"):
        page.locator("#queue tr", has_text=name).get_by_role("button", name="Cancel").click()
        page.locator("#queue tr", has_text=name).locator(".state.cancelled").wait_for()
        page.once("dialog", lambda dialog: dialog.accept())
        page.locator("#queue tr", has_text=name).get_by_role("button", name="Delete").click()
        wait_until(page, "name => !document.querySelector('#queue').innerText.includes(name)", name)
    page.get_by_role("button", name="Disk space").click()
    page.locator("#disk").get_by_text("All runs of this studio take").wait_for()
    page.get_by_role("button", name="Remove prepared downloads").click()
    page.locator("#disk").get_by_text("freed").wait_for()
    page.locator("#queue .open", has_text="sketch by ESD").click()
    page.locator("#job-view h3", has_text="sketch by ESD").wait_for()


def test_an_audit_opens_its_report_and_the_board_shows_it(page: Any) -> None:
    open_tab(page, "Audit")
    choose(page, "audit-edits", "watercolor (UCE)")
    page.keyboard.press("Escape")
    choose(page, "audit-suite", "pocket-dev")  # without attacks and rewordings, a third of the images
    page.locator("#audit-expected").get_by_text("images with and without").wait_for()
    page.locator("#audit").click()
    page.locator("#report .gates").get_by_text("not yet").first.wait_for()
    page.locator("#cancel-audit").click()
    page.locator("#report .state.cancelled").wait_for()
    open_tab(page, "Queue")
    page.locator("#queue .open", has_text="audit of watercolor").click()  # opens where audits are followed
    page.locator("#report .state.cancelled").wait_for()
    page.locator("#audit").click()
    page.locator("#report .strip img").first.wait_for()
    wait_until(page, "document.querySelector('#report iframe')")
    page.frame_locator("#report iframe").get_by_text("UA").first.wait_for()
    assert re.match(r"watercolor by UCE, pocket-dev smoke", page.locator("#report-choice input").input_value())
    shot(page, "studio-audit")
    open_tab(page, "Board")
    page.locator("#board tr[data-row]").first.click()
    page.locator("#detail .pairs img").first.wait_for()
    page.locator("#plot g[data-row]").first.press("Enter")
    choose(page, "board-concepts", "watercolor")
    page.locator("#board th", has_text="Concept").get_by_role("button").click()
    assert page.locator("#board th", has_text="Concept").get_attribute("aria-sort") == "descending"
    shot(page, "studio-board")
    open_tab(page, "Compare")
    page.locator("#cards").get_by_text("erased").first.wait_for()


def test_another_model_brings_its_own_edits_and_images(page: Any) -> None:
    wait_for_pairs(page, 4)
    choose(page, "model", "pocket-flow")
    wait_for_pairs(page, 4, "made by pocket-flow")
    assert "No edit is applied" in page.locator("#result .sentence").inner_text()


def test_on_a_phone_the_result_follows_the_button(open_page: Callable[..., Any]) -> None:
    page = open_page(390, 844, "dark")
    wait_for_pairs(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_role("tab").all_inner_texts() == list(TABS), "every tab must be in sight"
    page.locator("#compare").scroll_into_view_if_needed()
    button, frame = (page.locator(s).bounding_box() for s in ("#compare", "#result .frame:visible"))
    assert frame["y"] - (button["y"] + button["height"]) < 160, "the result must follow the button"
    assert frame["width"] > 330
    tiles = page.locator("#result .tile[data-pair]").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert min(tiles) > 150, "tiles must fill the width"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_tab_is_readable_by_everyone(open_page: Callable[..., Any], width: int, height: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    page = open_page(width, height, scheme)
    wait_for_pairs(page, 4)
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(700)  # the tab fills itself
        record = axe.run(page, options={"runOnly": WCAG}).response
        contrast = next((len(rule["nodes"]) for rule in record["passes"] if rule["id"] == "color-contrast"), 0)
        assert contrast > 5, f"{name}: nothing was checked"
        faults = [(rule["id"], node["html"][:200]) for rule in record["violations"] for node in rule["nodes"]]
        assert not faults, json.dumps(faults, indent=1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shot(page, f"{width}-{scheme}-{name.lower()}")


def test_a_killed_studio_loses_nothing(browser: Any, folder: Path) -> None:
    served = serve(folder / "second", folder / "cache")
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(served.url)
    page.locator("#compare").wait_for()
    open_tab(page, "Erase")
    page.locator("#erase").click()
    wait_for_state(page, "running")
    served.process.kill()
    served.process.wait()
    served = serve(folder / "second", folder / "cache")
    page.goto(served.url)
    page.locator("#compare").wait_for()
    open_tab(page, "Erase")
    wait_for_state(page, "interrupted")
    page.get_by_text("Continue takes it up where it stopped").wait_for()
    served.stop()
    page.close()
    assert not served.complaints(), served.complaints()


def test_the_terminal_stays_quiet(studio: ServedStudio) -> None:
    """Last: nothing that visitors did above left a traceback or a warning in the studio's terminal."""
    assert not studio.complaints(), studio.complaints()
