"""The console in a real browser: Chromium, driven by Playwright, against real nodes.

A page that says anything on the browser's console, fails to load something, throws, or breaks the content policy fails
its test, unless the test has said that it expects this. The browser lives as long as one file of tests, as Playwright
keeps an event loop in this thread and async tests of other files need theirs.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NodeProcess
from tests.console.browser import find, launch
from tests.console.pages import wait_until_live

TELL_OF_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""
AXE = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.filter(({ impact }) => impact === "serious" || impact === "critical")
    .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 200)} ${node.failureSummary}`));
}"""

OpenConsole = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; the tests are skipped where there is none, but never in continuous integration."""
    installed = importlib.util.find_spec("playwright") is not None
    if find() is None or not installed:
        assert os.environ.get("CI") != "true", "the console must be tested, and Chromium or Playwright is missing"
        pytest.skip("no Chromium found" if installed else "Playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = launch(driver)
        yield chromium
        chromium.close()


class Faults:
    """What went wrong on a page, but for what is expected."""

    def __init__(self, page: Any) -> None:
        self._seen: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        page.on("console", lambda message: message.type == "error" and self._seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self._seen.append(f"thrown: {error}"))
        page.on("requestfailed", self._failed)

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page itself ended it
            self._seen.append(f"request: {request.url} {request.failure}")

    def expected(self, pattern: str) -> None:
        """Let pass whatever a regular expression is found in, before and from now on."""
        self._expected.append(re.compile(pattern))

    def left(self) -> list[str]:
        """What nobody expected."""
        return [text for text in self._seen if not any(pattern.search(text) for pattern in self._expected)]


@pytest.fixture
def open_console(browser: Any, request: pytest.FixtureRequest) -> Iterator[OpenConsole]:
    """`open_console(node, "mesh", width=360, theme="dark")` is a Page that shows a view and has the node's status.

    `page.expected(PATTERN)` lets faults pass that belong to the test; all others fail it at its end.
    """
    if "start_node" in request.fixturenames:
        request.getfixturevalue("start_node")  # so that pages are closed before their nodes end
    faults: list[Faults] = []
    with ExitStack() as stack:

        def open_page(
            node: NodeProcess,
            view: str = "overview",
            *,
            width: int = 1280,
            height: int = 800,
            theme: str = "light",
            reduced_motion: bool = True,
            wait: bool = True,
        ) -> Any:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=theme,
                reduced_motion="reduce" if reduced_motion else "no-preference",
                locale="en-GB",
                permissions=["clipboard-read", "clipboard-write"],
            )
            stack.callback(context.close)
            context.add_init_script(TELL_OF_VIOLATIONS)
            page = context.new_page()
            page.set_default_timeout(30_000)
            found = Faults(page)
            faults.append(found)
            page.expected = found.expected
            page.goto(f"{node.console_url}/#/{view}")
            if wait:
                wait_until_live(page, view.split("/")[0])
            return page

        yield open_page
        stack.close()
    assert [fault for found in faults for fault in found.left()] == []


@cache
def _axe_source() -> str:
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")


@pytest.fixture(scope="session")
def axe() -> Callable[[Any], None]:
    """`axe(page)` fails when axe-core finds anything serious or critical on a page as it is now."""

    def check(page: Any) -> None:
        page.evaluate(_axe_source())
        assert page.evaluate(AXE) == []

    return check
