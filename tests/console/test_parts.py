"""Parts that several views share and no view has all of: the question, the table, the fields, the bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine

SCENES = Path(__file__).with_name("scenes.js")


@pytest.fixture
def show(open_console, demo_server) -> Any:
    def shown(scene: str) -> Any:
        page = open_console(demo_server, "spending")
        page.evaluate("\n".join(SCENES.read_text("utf-8").splitlines()[1:]), scene)
        return page

    return shown


def seen(page: Any) -> list[Any]:
    return list(page.evaluate("window.seen"))


def test_a_question_holds_the_focus_and_gives_it_back(show, axe) -> None:
    page = show("ask")
    page.get_by_role("dialog", name="Remove it?").wait_for()
    assert page.evaluate("document.activeElement.innerText") == "Cancel"
    axe(page)
    for _ in range(6):
        page.keyboard.press("Tab")
        inside = "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        assert page.evaluate(inside), "the focus has left the dialog"
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert seen(page) == [False]


def test_a_question_is_answered(show) -> None:
    page = show("ask")
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").wait_for(state="detached")
    assert seen(page) == [True]


def test_a_table_sorts_numbers_as_numbers_and_what_is_missing_last(show, axe) -> None:
    page = show("table")
    names = page.locator("#place tbody td:first-child")
    assert names.all_inner_texts() == ["b", "a", "c"]
    page.get_by_role("button", name="Size").click()
    assert names.all_inner_texts() == ["a", "b", "c"]
    page.get_by_role("button", name="Name").click()
    page.get_by_role("button", name="Name").click()
    assert names.all_inner_texts() == ["c", "b", "a"]
    assert page.get_by_role("columnheader", name="Name").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="a", exact=True).click()
    assert seen(page) == ["a"]
    assert page.get_by_role("button", name="c", exact=True).get_attribute("aria-pressed") == "true"
    axe(page)


def test_fields_tell_values_and_say_what_is_wrong(show, axe) -> None:
    page = show("fields")
    words = page.get_by_label("Words")
    words.fill("abc")
    assert (words.get_attribute("aria-invalid"), page.get_by_role("alert").inner_text()) == ("true", "Not these.")
    number = page.get_by_label("Number")
    number.fill("4.5")
    number.blur()
    number.fill("")
    number.blur()
    assert page.get_by_label("One of").input_value() == "b"
    page.get_by_label("One of").select_option("a")
    page.get_by_role("switch", name="On").check(force=True)
    assert seen(page) == ["abc", 4.5, None, "a", True]
    axe(page)


def test_bars_have_words(show, axe) -> None:
    page = show("bars")
    assert page.get_by_role("img").get_attribute("aria-label") == "GPU 0: Weights 3.00 GB, Free 1.00 GB of 4.00 GB"
    assert [" ".join(text.split()) for text in page.locator(".legend li").all_inner_texts()] == [
        "Weights 3.00 GB",
        "Free 1.00 GB",
    ]
    assert page.get_by_role("progressbar", name="Fetching").get_attribute("aria-valuenow") is None
    assert page.get_by_role("alert").inner_text().split() == ["<i>no</i>.", "Do", "this."]
    page.get_by_role("button", name="Copy: Config").click()
    page.get_by_role("status").filter(has_text="Copied").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == "a = 1"
    axe(page)
