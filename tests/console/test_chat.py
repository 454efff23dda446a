"""The chat of the console against real nodes: what a person does in it, and what comes back from the demo model."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

from bench.counting import counted
from tests.conftest import NodeProcess, StartNode
from tests.console.pages import overflows
from tests.e2e.meshes import SMALL, invite_for, until_hosts

pytestmark = pytest.mark.engine
LIMIT_S = 30


def until(page: Any, condition: str, argument: Any = None) -> None:
    """Wait until a function of the page gives true. The policy of the page forbids what `wait_for_function` does."""
    deadline = time.monotonic() + LIMIT_S
    while not page.evaluate(condition, argument):
        assert time.monotonic() < deadline, f"after {LIMIT_S} s it is still not so: {condition} {argument}"
        page.wait_for_timeout(20)


@contextmanager
def slowed(*nodes: NodeProcess) -> Iterator[None]:
    """The engines of these nodes get a tenth of their time: the demo counts to 200 before anybody could press a key."""
    engines = [psutil.Process(pid) for node in nodes for pid in node.engine_pids()]
    over = threading.Event()

    def act(name: str) -> None:
        for engine in engines:
            with suppress(psutil.NoSuchProcess):
                getattr(engine, name)()

    def throttle() -> None:
        while not over.is_set():
            act("suspend")
            over.wait(0.045)
            act("resume")
            over.wait(0.005)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def ask(page: Any, text: str) -> None:
    """Write a question and send it."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def until_over(page: Any, answers: int = 1) -> None:
    """Wait until that many answers are there and none is under way."""
    until(
        page,
        """(count) => document.querySelectorAll(".chat-answer").length === count
          && !document.querySelector(".chat-answer[aria-busy]")""",
        answers,
    )


def texts(page: Any) -> list[str]:
    """The answers as they are shown."""
    return [text.strip() for text in page.locator(".chat-answer .chat-text").all_text_contents()]


def until_text(page: Any, part: str) -> None:
    """Wait until the last answer holds a text."""
    until(
        page,
        "(part) => [...document.querySelectorAll('.chat-answer .chat-text')].at(-1)?.textContent.includes(part)",
        part,
    )


def bodies(page: Any) -> list[dict[str, Any]]:
    """The bodies of the chat requests that the page sends, kept from now on."""
    found: list[dict[str, Any]] = []
    page.on("request", lambda request: "chat/completions" in request.url and found.append(request.post_data_json))
    return found


def test_an_answer_with_what_is_known_of_it(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    assert "this node" in page.get_by_label("Model").inner_text()
    ask(page, "count from 1 to 20")
    until_over(page)
    assert texts(page) == [counted(20)]
    facts = page.locator(".chat-facts").inner_text()
    node = demo_server.status()["node"]
    assert f"{node['name']} ({node['short']})" in facts
    assert re.search(r"first token after [\d.]+ m?s", facts)
    assert re.search(r"[\d,]+ tokens/s", facts)
    assert re.search(r"\d+ tokens read, 40 written", facts)
    assert page.get_by_label("Your message").evaluate("(field) => field === document.activeElement")


@pytest.mark.alone
def test_stop_keeps_what_came_and_frees_the_engine(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    with slowed(demo_server):
        ask(page, "count from 1 to 200")
        until_text(page, "1, 2")
        page.get_by_role("button", name="Stop").click()
        until_over(page)
    (text,) = texts(page)
    assert counted(200).startswith(text) and len(text) < len(counted(200))
    assert page.get_by_text("stopped", exact=True).is_visible()
    assert page.locator(".notice.bad").count() == 0
    until(page, "() => fetch('api/status').then((a) => a.json()).then((s) => s.models[0].busy === 0)")


def test_regenerate_replaces_the_answer(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    sent = bodies(page)
    ask(page, "count from 1 to 5")
    until_over(page)
    page.get_by_role("button", name="Answer again").click()
    until(page, "() => document.querySelectorAll('.chat-answer').length === 1")
    until_over(page)
    assert texts(page) == [counted(5)]
    assert len(sent) == 2 and sent[0] == sent[1]


def test_edit_and_resend_replaces_what_follows(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    sent = bodies(page)
    ask(page, "count from 1 to 3")
    until_over(page, 1)
    ask(page, "count from 1 to 4")
    until_over(page, 2)
    page.get_by_role("button", name="Edit and ask again").first.click()
    field = page.get_by_label("The question", exact=True)
    assert field.input_value() == "count from 1 to 3"
    field.fill("count from 1 to 6")
    page.keyboard.press("Enter")
    until_text(page, "6")
    until_over(page, 1)
    assert texts(page) == [counted(6)]
    assert sent[-1]["messages"] == [{"role": "user", "content": "count from 1 to 6"}]
    assert [message["content"] for message in sent[1]["messages"]] == [
        "count from 1 to 3",
        counted(3),
        "count from 1 to 4",
    ]


def test_parameters_reach_the_engine(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    sent = bodies(page)
    page.get_by_role("button", name="System prompt and parameters").click()
    page.get_by_label("System prompt").last.fill("You count.")
    page.get_by_label("Temperature").fill("7")
    assert page.get_by_role("alert").inner_text() == "A number from 0 to 5"
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Top p").fill("0.9")
    page.get_by_label("Seed").fill("11")
    page.get_by_label("Most tokens").fill("7")
    page.get_by_label("Stop at").fill("999")
    page.get_by_role("button", name="Done").click()
    assert page.get_by_role("button", name="System prompt and parameters").inner_text() == "6 set"
    ask(page, "count from 1 to 50")
    until_over(page)
    (body,) = sent
    assert {name: body[name] for name in ("temperature", "top_p", "seed", "max_tokens", "stop")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 11,
        "max_tokens": 7,
        "stop": ["999"],
    }
    assert body["messages"][0] == {"role": "system", "content": "You count."}
    facts = page.locator(".chat-facts").inner_text()
    assert "7 written" in facts and "cut at the limit of tokens" in facts
    page.get_by_role("button", name="System prompt and parameters").click()
    page.get_by_role("button", name="Defaults").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Answer again").click()
    until_text(page, "50")
    until_over(page)
    assert "seed" not in sent[1] and "temperature" not in sent[1]


def test_the_same_seed_gives_the_same_answer(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    page.get_by_role("button", name="System prompt and parameters").click()
    page.get_by_label("Temperature").fill("2")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Most tokens").fill("24")
    page.get_by_role("button", name="Done").click()
    ask(page, "hello")
    until_over(page)
    (first,) = texts(page)
    page.get_by_role("button", name="Answer again").click()
    page.wait_for_selector(".chat-answer[aria-busy]", state="detached")
    until_over(page)
    assert texts(page) == [first]


def test_conversations_are_kept_named_exported_and_deleted(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    for last in (3, 4):
        page.get_by_role("link", name="New conversation").click()
        until(page, "() => !document.querySelector('.chat-turn')")
        ask(page, f"count from 1 to {last}")
        until_over(page)
    page.reload()
    until_over(page)
    assert texts(page) == [counted(4)]
    entries = page.locator(".chat-list li")
    assert entries.locator(".chat-title").all_inner_texts() == ["count from 1 to 4", "count from 1 to 3"]

    page.get_by_role("link", name=re.compile("count from 1 to 3")).click()
    until_text(page, counted(3))
    page.get_by_role("button", name="Rename count from 1 to 3").click()
    page.get_by_label("Title").fill("Three")
    page.keyboard.press("Enter")
    page.get_by_role("link", name=re.compile("Three")).wait_for()

    page.get_by_role("banner").get_by_role("link").first.click()
    page.wait_for_selector(".view-overview")  # and back: it is still open
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Chat").click()
    until_text(page, counted(3))

    assert saved(page, "This conversation, Markdown").startswith("# Three\n\n## You\n\ncount from 1 to 3\n\n## demo")
    one = json.loads(saved(page, "This conversation, JSON"))
    assert [message["content"] for message in one["conversations"][0]["messages"]] == ["count from 1 to 3", counted(3)]
    every = json.loads(saved(page, "All conversations, JSON"))
    assert len(every["conversations"]) == 2

    page.get_by_role("button", name="Delete Three").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    until(page, "() => document.querySelectorAll('.chat-list li').length === 1")
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    until(page, "() => !document.querySelector('.chat-list li')")
    page.reload()
    page.get_by_label("Your message").wait_for()
    assert entries.count() == 0 and page.locator(".chat-turn").count() == 0


def saved(page: Any, kind: str) -> str:
    """What an export writes."""
    page.get_by_role("button", name="Export").first.click()
    with page.expect_download() as download:
        page.get_by_role("button", name=kind).click()
    page.get_by_role("button", name="Close").click()
    return str(download.value.path().read_text("utf-8"))


def test_an_answer_goes_on_while_the_reader_looks_elsewhere(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    with slowed(demo_server):
        ask(page, "count from 1 to 120")
        until_text(page, "1, 2")
        page.get_by_role("navigation", name="Views").get_by_role("link", name="Overview").click()
        page.wait_for_selector(".view-overview")
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Chat").click()
    until_text(page, "120")
    until_over(page)
    assert texts(page) == [counted(120)]


def test_everything_by_keyboard(open_console: Any, demo_server: NodeProcess) -> None:
    page = open_console(demo_server, "chat")
    page.get_by_label("Your message").wait_for()
    page.keyboard.type("count from 1")
    page.keyboard.press("Shift+Enter")
    assert page.get_by_label("Your message").input_value() == "count from 1\n"
    page.keyboard.press("Backspace")
    page.keyboard.type(" to 200")
    with slowed(demo_server):
        page.keyboard.press("Enter")
        until_text(page, "1, 2")
        page.keyboard.press("Escape")
        until_over(page)
    assert page.get_by_text("stopped", exact=True).is_visible()

    def reach(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Shift+Tab")
            if (
                page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
                == name
            ):
                return
        pytest.fail(f"{name} cannot be reached")

    reach("Answer again")
    with slowed(demo_server):
        page.keyboard.press("Enter")
        page.wait_for_selector(".chat-answer[aria-busy]")
        page.keyboard.press("Escape")
        until_over(page)
    reach("Edit and ask again")
    page.keyboard.press("Enter")
    page.get_by_label("The question", exact=True).fill("count from 1 to 7")
    page.keyboard.press("Enter")
    until_text(page, "7")
    until_over(page)
    assert texts(page) == [counted(7)]
    reach("System prompt and parameters")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "System prompt and parameters"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_is_accessible_and_fits(
    open_console: Any, demo_server: NodeProcess, axe: Callable[[Any], None], theme: str, width: int
) -> None:
    page = open_console(demo_server, "chat", width=width, theme=theme)
    axe(page)
    ask(page, "count from 1 to 30")
    until_over(page)
    axe(page)
    assert not overflows(page)
    page.get_by_role("button", name="System prompt and parameters").click()
    axe(page)
    page.keyboard.press("Escape")
    if width == 360:
        page.get_by_role("button", name="Conversations").click()
        page.get_by_role("dialog").wait_for()
        axe(page)
        assert not overflows(page)


def test_an_answer_outlives_the_node_that_writes_it(open_console: Any, start_node: StartNode) -> None:
    founder = start_node("--model", "demo", "--name", "cellar", environment=SMALL)
    token = invite_for(founder, 10)
    replica = start_node("--join", token, "--model", "demo", "--name", "attic", environment=SMALL)
    gateway = start_node("--join", token, "--name", "laptop")
    until_hosts(gateway, {"demo": 2})
    nodes = {"cellar": founder, "attic": replica}
    page = open_console(gateway, "chat")
    offered = page.get_by_label("Model").inner_text()
    assert all(name in offered for name in nodes)
    with slowed(founder, replica):
        ask(page, "count from 1 to 200")
        until_text(page, "1, 2")
        serving = page.locator(".chat-facts").inner_text()
        (name,) = [name for name in nodes if name in serving]
        nodes[name].process.kill()
        page.get_by_text("continued by another node").wait_for()
    until_over(page)
    assert texts(page) == [counted(200)]
    assert name in page.locator(".chat-facts").inner_text()


def test_a_node_that_ends_leaves_what_came(open_console: Any, start_node: StartNode) -> None:
    node = start_node("--model", "demo", environment=SMALL)
    page = open_console(node, "chat")
    page.expected("ERR_")
    with slowed(node):
        ask(page, "count from 1 to 200")
        until_text(page, "1, 2")
        node.process.kill()
        until_over(page)
    (text,) = texts(page)
    assert text and counted(200).startswith(text)
    page.get_by_text("ended before the answer was complete").wait_for()
    assert page.get_by_role("button", name="Try again").is_visible()
