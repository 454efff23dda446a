"""Settings, folders and the log in a real browser, beside a real node."""

from __future__ import annotations

import pytest

from tests.console.pages import ask, overflows
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("view", ["settings", "spending"])
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_it_is_accessible_and_fits(open_console, demo_server, axe, view, theme, width) -> None:
    page = open_console(demo_server, view, width=width, theme=theme)
    if view == "settings":
        page.get_by_role("row", name="ctx_size").wait_for()
        page.locator(".log").wait_for()
    axe(page)
    assert not overflows(page)


def test_every_value_says_where_it_comes_from(open_console, demo_server) -> None:
    page = open_console(demo_server, "settings")
    for name, value, source in (
        ("model", "demo", "--model"),
        ("lan", "off", "MESHNODE_LAN"),
        ("queue", "256", "built-in"),
    ):
        row = page.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True)).first
        assert row.locator("td").all_inner_texts()[:3] == [name, value, source]
    assert str(demo_server.home) in page.locator(".paths").inner_text()


def test_the_table_is_filtered_and_sorted(open_console, demo_server) -> None:
    page = open_console(demo_server, "settings")
    page.get_by_label("Filter").fill("UDP PORT")
    names = page.locator("tbody td:first-child")
    assert names.all_inner_texts() == ["solo", "public_port", "port_map", "bind_port"]
    page.get_by_role("button", name="Setting", exact=True).click()
    assert names.all_inner_texts() == ["bind_port", "port_map", "public_port", "solo"]
    assert page.get_by_role("columnheader", name="Setting").get_attribute("aria-sort") == "ascending"
    page.get_by_label("Filter").fill("")
    page.get_by_text("Only what was set").click()
    assert "built-in" not in page.locator("tbody").inner_text()
    page.get_by_label("Filter").fill("no such setting")
    page.get_by_text("No setting is like this.").wait_for()


def test_the_log_is_followed(open_console, demo_server) -> None:
    page = open_console(demo_server, "settings")
    log = page.get_by_role("region", name="Log of the node")
    log.get_by_text("node ready").first.wait_for()
    before = log.inner_text().count(" request ")
    ask(demo_server)
    eventually(lambda: log.inner_text().count(" request ") == before + 1)


def test_the_log_stands_still_when_told(open_console, demo_server) -> None:
    page = open_console(demo_server, "settings")
    looks: list[str] = []
    page.on("request", lambda request: "/api/logs" in request.url and looks.append(request.url))
    page.clock.install()
    page.reload()
    page.locator(".log").wait_for()
    with page.expect_request("**/api/logs?*"):
        page.clock.fast_forward(3000)
    with page.expect_request("**/api/logs?*"):
        page.get_by_text("Follow", exact=True).click()  # it looks once more, and then no more
    seen = len(looks)
    page.clock.fast_forward(60_000)
    page.evaluate("fetch('api/status').then((answer) => answer.text())")
    assert len(looks) == seen


def test_the_log_of_the_engine_is_shown(open_console, demo_server) -> None:
    page = open_console(demo_server, "settings")
    page.get_by_label("Source", exact=True).select_option("engine")
    page.get_by_text("engine-demo.log").or_(page.get_by_text("No engine has said anything yet.")).first.wait_for()


def test_the_theme_is_chosen_here_as_well(open_console, demo_server) -> None:
    page = open_console(demo_server, "settings")
    page.get_by_label("Theme", exact=True).select_option("dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_label("Theme", exact=True).select_option("system")
    assert page.evaluate("document.documentElement.dataset.theme") is None
    assert page.evaluate("localStorage.length") == 0
