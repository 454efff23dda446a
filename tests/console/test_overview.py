"""The overview and what stands around every view, in a real browser beside real nodes."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest

from tests.conftest import StartNode
from tests.console.pages import ask, overflows, wait_until_live
from tests.e2e.meshes import SMALL, invite_for
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

HOSTILE = '<img src=x onerror="document.body.id=`hit`">\u202egnp.exe\u0007' + "w" * 4000
PUT = """async (members) => {
  const { status } = await import("./store.js");
  status.value = { ...status.value, ...members };
}"""
"""Shows members that the node did not send: for what no healthy node says."""


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.innerText.trim()"))


def headline(page: Any) -> list[str]:
    return list(page.locator(".headline-words p").all_inner_texts())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_is_accessible_and_fits(open_console, demo_server, axe, theme, width) -> None:
    page = open_console(demo_server, width=width, theme=theme)
    axe(page)
    assert not overflows(page)


def test_a_page_of_320_pixels_is_wide_enough_for_everything_that_can_go_wrong(open_console, demo_server, axe) -> None:
    page = open_console(demo_server, width=320)
    page.evaluate(
        PUT,
        {
            "problems": [problem("failure"), problem("warning")],
            "tasks": [{"task": "build", "text": HOSTILE, "done": 2, "total": 4, "unit": "steps"}],
            "downloads": [
                {"model": HOSTILE, "state": "running", "done_bytes": 5, "total_bytes": None, "bytes_per_s": 0}
            ],
        },
    )
    page.get_by_role("heading", name="2 problems").wait_for()
    axe(page)
    assert not overflows(page)


def test_it_says_what_answers_and_where(open_console, demo_server) -> None:
    page = open_console(demo_server)
    assert headline(page) == ["Ready", "demo answers on this node."]
    assert page.locator(".endpoint code").inner_text() == demo_server.ready["api"]
    page.get_by_role("button", name="Copy the API address").click()
    page.get_by_role("status").filter(has_text="Copied").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == demo_server.ready["api"]
    assert page.title().startswith("Overview · Ready · ")


def test_it_follows_the_node(open_console, demo_server) -> None:
    page = open_console(demo_server)
    before = demo_server.status()["requests"]["finished"]
    ask(demo_server)
    page.get_by_text(f"running, {before + 1} finished").wait_for()


def problem(severity: str) -> dict[str, Any]:
    return {
        "code": "engine-crash-loop",
        "severity": severity,
        "title": "The engine keeps crashing",
        "text": HOSTILE,
        "fix": "read its log: meshnode logs --engine",
        "subject": severity,
        "since": 1.0,
    }


def test_a_problem_comes_with_its_fix_and_without_markup_of_strangers(open_console, demo_server) -> None:
    page = open_console(demo_server)
    page.evaluate(PUT, {"problems": [problem("failure")]})
    shown = page.locator(".notice.bad")
    shown.get_by_text("Read its log: meshnode logs --engine.").wait_for()
    assert "<img src=x" in shown.inner_text()
    assert "\u202e" not in shown.inner_text() and len(shown.inner_text()) < 1000
    assert page.evaluate("document.body.id") == ""


def test_long_work_shows_how_far_it_is(open_console, demo_server) -> None:
    page = open_console(demo_server)
    page.evaluate(PUT, {"tasks": [{"task": "build", "text": "building", "done": 120, "total": 480, "unit": "steps"}]})
    bar = page.get_by_role("progressbar", name="building")
    assert (bar.get_attribute("aria-valuenow"), bar.get_attribute("aria-valuemax")) == ("120", "480")
    page.get_by_text("120 of 480 · 25 %").wait_for()


def test_an_idle_node_is_set_to_work_from_the_page(open_console, start_node: StartNode, axe) -> None:
    node = start_node(wait=False).wait_listening()
    page = open_console(node)
    page.get_by_role("heading", name="First steps").wait_for()
    axe(page)
    page.get_by_role("button", name="Load the demo").click()
    page.get_by_text("demo answers on this node.").wait_for(timeout=30_000)
    assert page.get_by_role("heading", name="First steps").count() == 0


def test_an_invite_is_redeemed_on_the_page(open_console, start_node: StartNode) -> None:
    founder = start_node("--model", "demo", environment=SMALL)
    joiner = start_node(wait=False, environment=SMALL).wait_listening()
    page = open_console(joiner)
    page.get_by_label("Invite").fill("mn1nonsense")
    page.expected("status of 4")
    page.get_by_role("button", name="Join", exact=True).click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Invite").fill(f" {invite_for(founder, 1)}\n")
    page.get_by_role("button", name="Join", exact=True).click()
    page.get_by_text("demo answers in the mesh.").wait_for(timeout=30_000)


# --- around every view ------------------------------------------------------------------------------------------------


def test_everything_is_reached_by_keyboard(open_console, demo_server) -> None:
    page = open_console(demo_server)
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "view"
    page.get_by_role("link", name="Spending").focus()
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    page.keyboard.press("Enter")
    wait_until_live(page, "spending")
    assert ring == "2px"
    assert page.evaluate("document.activeElement.id") == "view"
    assert page.locator("h1").all_inner_texts() == ["Spending"]
    assert page.locator("nav [aria-current=page]").inner_text() == "Spending"


def test_the_theme_is_kept(open_console, demo_server) -> None:
    page = open_console(demo_server)
    switch = page.get_by_role("button", name="Theme: ")
    switch.click()
    switch.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.reload()
    wait_until_live(page, "overview")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_view_that_does_not_exist_says_so(open_console, demo_server) -> None:
    page = open_console(demo_server, "no%ZZwhere/<b>", wait=False)
    page.get_by_text("There is no such view.").wait_for()
    assert page.locator("h1").inner_text() == "Not found"


def test_a_fault_of_one_view_leaves_the_others_alone(open_console, demo_server) -> None:
    page = open_console(demo_server)
    page.expected("TypeError")
    page.evaluate(PUT, {"mesh": {"name": "x", "peers": 5}})
    page.get_by_text("This view cannot be shown").wait_for()
    page.get_by_role("link", name="Spending").click()
    page.get_by_role("heading", name="Spending", exact=True).first.wait_for()


def test_a_view_that_cannot_be_fetched_says_so(open_console, demo_server) -> None:
    page = open_console(demo_server)
    page.expected("ERR_FAILED")
    page.route("**/views/settings.js", lambda route: route.abort())
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("button", name="Load the page again").wait_for()


def test_a_node_that_says_nothing_at_all_counts_as_lost(open_console, demo_server) -> None:
    page = open_console(demo_server)
    page.clock.install()
    held: list[Any] = []
    page.route("**/api/events", lambda route: held.append(route))
    page.reload()
    page.get_by_text("Asking the node").wait_for()
    page.clock.fast_forward(45_000)
    page.get_by_text("The console lost the node; retrying in 1 s.").wait_for()
    held[0].abort()
    page.unroute("**/api/events")
    page.get_by_role("button", name="Try now").click()
    wait_until_live(page, "overview")


def test_the_first_paint_waits_for_nobody(open_console, demo_server) -> None:
    page = open_console(demo_server)
    painted_ms = []
    for _ in range(5):
        page.reload()
        wait_until_live(page, "overview")
        painted_ms.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    assert min(painted_ms) < 300
    loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)")
    assert set(loaded) == {demo_server.console_url}


def test_a_node_that_is_started_again_is_found_again(open_console, start_node: StartNode) -> None:
    node = start_node("--model", "demo", environment=SMALL)
    page = open_console(node)
    page.expected("ERR_")
    node.end(signal.SIGKILL)
    banner = page.get_by_text("The console lost the node; retrying")
    banner.wait_for()
    assert page.locator("body.stale").count() == 1
    assert page.title().startswith("Overview · Lost · ")
    assert headline(page)[0] == "Lost"
    page.get_by_role("button", name="Try now").click()
    banner.wait_for()
    ports = [text.rpartition(":")[2] for text in (node.base_url, node.console_url)]
    again = start_node(
        *("--model", "demo", "--port", ports[0], "--console", ports[1]),
        environment={**SMALL, "MESHNODE_HOME": str(node.home)},
    )
    banner.wait_for(state="detached")
    eventually(lambda: page.title().startswith("Overview · Ready · "))
    assert page.locator("body.stale").count() == 0
    # The token of the page is that of the node before; calls go on all the same.
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("row", name="ctx_size").wait_for()
    assert again.console_url == node.console_url


def test_a_page_with_the_token_of_an_earlier_start_gets_the_new_one(open_console, demo_server) -> None:
    page = open_console(demo_server, wait=False)
    page.expected("status of 403")
    outdated = re.sub(
        'token" content="[^"]+"',
        'token" content="of-an-earlier-start"',
        page.request.get(f"{demo_server.console_url}/").text(),
    )
    page.route("**/", lambda route: route.fulfill(body=outdated, content_type="text/html"), times=1)
    page.reload()
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("row", name="ctx_size").wait_for()
