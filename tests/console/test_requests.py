"""The list of requests in a real browser: filled by real requests, filtered, held, exported, and free of prompts."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NodeProcess
from tests.console.pages import overflows

pytestmark = pytest.mark.engine

SECRET = "the colour of the barn door is heliotrope"
HOSTILE = "<img src=x onerror=alert(1)>\u202egnp"


def ask(node: NodeProcess, model: str = "demo", **members: Any) -> str:
    """The id of a finished request."""
    body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": SECRET}], **members}
    request = urllib.request.Request(
        f"{node.base_url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            answer.read()
            return str(answer.headers["x-meshnode-request-id"])
    except urllib.error.HTTPError as refused:
        with refused:
            return str(refused.headers["x-meshnode-request-id"])


def shown(request: str) -> str:
    """As much of an id as stands in the list."""
    return request[:12]


def row(page: Any, request: str) -> Any:
    """The row of a request."""
    return page.locator("tbody tr").filter(has_text=shown(request))


def test_requests_appear_and_can_be_told_apart(open_console, demo_server) -> None:
    page = open_console(demo_server, "requests")
    plain, streamed, refused = ask(demo_server), ask(demo_server, stream=True), ask(demo_server, HOSTILE)
    row(page, streamed).wait_for()
    assert "answered" in row(page, plain).inner_text()
    assert "demo" in row(page, plain).inner_text() and "this node" in row(page, plain).inner_text()
    words = row(page, refused).inner_text()
    assert "refused (404)" in words
    page.get_by_label("Outcome").select_option("refused")
    row(page, refused).wait_for()
    assert row(page, plain).count() == 0
    page.get_by_label("Contains").fill(plain)
    page.get_by_text("No request is like that").wait_for()
    page.get_by_role("button", name="Clear the filter").click()
    page.get_by_label("Contains").fill(plain)
    page.wait_for_function("document.querySelectorAll('tbody tr').length === 1")
    assert row(page, plain).count() == 1


def test_names_that_callers_wrote_are_text(open_console, demo_server) -> None:
    refused = ask(demo_server, HOSTILE)
    page = open_console(demo_server, "requests")
    row(page, refused).wait_for()
    assert "onerror" not in row(page, refused).inner_text(), "what is not shaped like a name is not kept at all"
    assert page.locator("main img").count() == 0
    assert "\u202e" not in page.content()
    wanted = ask(demo_server, "nobody/has-this")
    assert "nobody/has-this" in row(page, wanted).inner_text()


def test_details_open_and_give_the_focus_back(open_console, demo_server) -> None:
    request = ask(demo_server, stream=True)
    page = open_console(demo_server, "requests")
    opener = page.get_by_role("button", name=shown(request), exact=True)
    opener.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    words = dialog.inner_text()
    assert request in words and "/v1/chat/completions, streamed" in words and "First token after" in words
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert opener.evaluate("each => each === document.activeElement")
    page.get_by_role("button", name=f"Copy {shown(request)}").click()
    page.wait_for_function("want => navigator.clipboard.readText().then(text => text === want)", arg=request)


def test_the_list_can_be_held(open_console, demo_server) -> None:
    before = ask(demo_server)
    page = open_console(demo_server, "requests")
    row(page, before).wait_for()
    live = page.get_by_role("switch", name="Live")
    live.press("Space")
    page.get_by_text("paused").wait_for()
    other = open_console(demo_server, "requests")
    after = ask(demo_server)
    row(other, after).wait_for()
    assert row(page, after).count() == 0
    live.press("Space")
    row(page, after).wait_for()


def test_what_is_running_stands_above(open_console, demo_server) -> None:
    page = open_console(demo_server, "requests")
    body = {"model": "demo", "stream": True, "max_tokens": 4000, "ignore_eos": True, "prompt": "count"}
    request = urllib.request.Request(
        f"{demo_server.base_url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        answer.readline()
        running = page.get_by_role("list", name="Running requests").filter(
            has_text=shown(answer.headers["x-meshnode-request-id"])
        )
        running.wait_for()
        assert "pieces so far" in running.inner_text()
    running.wait_for(state="detached")


def test_an_export_has_what_is_shown_and_no_prompt(open_console, demo_server, tmp_path: Path) -> None:
    request = ask(demo_server)
    page = open_console(demo_server, "requests")
    row(page, request).wait_for()
    assert "never kept" in page.locator("main").inner_text()
    page.get_by_label("Contains").fill(request)
    page.wait_for_function("document.querySelectorAll('tbody tr').length === 1")
    with page.expect_download() as started:
        page.get_by_role("button", name="Export as JSON").click()
    file = tmp_path / "requests.json"
    started.value.save_as(file)
    text = file.read_text()
    assert [each["id"] for each in json.loads(text)["requests"]] == [request]
    assert "heliotrope" not in text + page.content()


def test_more_than_the_live_part_can_be_seen(open_console, demo_server) -> None:
    first = ask(demo_server)
    for _ in range(50):
        ask(demo_server, "nobody-has-this")
    page = open_console(demo_server, "requests")
    page.locator("tbody tr").first.wait_for()
    assert row(page, first).count() == 0
    page.get_by_role("button", name="Show more").click()
    row(page, first).wait_for()
    assert page.get_by_role("button", name="Show more").count() == 0


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_it_is_accessible_and_fits(open_console, demo_server, axe, theme: str, width: int) -> None:
    request = ask(demo_server)
    page = open_console(demo_server, "requests", width=width, theme=theme)
    page.locator("tbody tr").first.wait_for()
    axe(page)
    assert not overflows(page)
    page.locator("tbody button").first.click()
    page.get_by_role("dialog").wait_for()
    axe(page)
    assert request in page.get_by_role("dialog").inner_text()


def test_no_requests_yet(start_node, open_console) -> None:
    page = open_console(start_node("--private-mesh-name", "quiet"), "requests")
    page.get_by_text("Nobody has asked anything yet").wait_for()
    page.get_by_text("No request is running.").wait_for()
