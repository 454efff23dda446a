"""The chat where a real model gives no occasion: errors, thoughts, images, floods of text, and what is said aloud."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.console.fake_chat import BREAK, END, FakeChat, answer, chunk, fake_chat, status
from tests.console.test_chat import ask, texts, until, until_over, until_text

LOADING = {"message": "parrot is loading", "code": "model_loading", "fix": "wait for a moment"}
RATE = 2000
"""Tokens a second that the page must take."""
WATCH = """() => {
  window.longest = 0;
  new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => {
    window.longest = Math.max(window.longest, duration);
  })).observe({ type: "longtask" });
  window.frames_ = 0;
  const frame = () => { window.frames_ += 1; requestAnimationFrame(frame); };
  frame();
}"""
AT_END = """() => {
  const log = document.querySelector(".chat-log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 2;
}"""
SLOW_TASK_MS = 1500
"""Far above the 0.3 s that were measured, as tests share the machine."""


@pytest.fixture
def node() -> Iterator[FakeChat]:
    """A node that answers as it is told."""
    with fake_chat() as fake:
        yield fake


@pytest.fixture
def page(node: FakeChat, open_console: Any) -> Any:
    """The chat of that node."""
    return open_console(node, "chat")


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_refusal_is_shown_with_what_to_do(page: Any, node: FakeChat) -> None:
    page.expected("503")
    node.refusals = [(503, LOADING)]
    node.scripts = [answer("at last")]
    ask(page, "now?")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert [line for line in alert.inner_text().lower().split("\n") if line] == [
        "parrot is loading.",
        "wait for a moment.",
    ]
    page.get_by_role("button", name="Try again").click()
    until_text(page, "at last")
    assert [len(body["messages"]) for body in node.asked] == [1, 1]
    assert alert.count() == 0


def test_an_error_in_the_middle_keeps_what_came(page: Any, node: FakeChat) -> None:
    event = b'data: {"error": {"message": "the engine has ended", "code": "engine_crashed"}}\n\n'
    node.scripts = [[chunk("half of "), chunk("it"), event]]
    ask(page, "go")
    page.get_by_text("the engine has ended").wait_for()
    assert texts(page) == ["half of it"]


def test_a_connection_that_breaks_keeps_what_came(page: Any, node: FakeChat) -> None:
    page.expected("ERR_INCOMPLETE_CHUNKED")
    node.scripts = [[chunk("half of it"), 0.2, BREAK], answer("all of it")]
    ask(page, "go")
    page.get_by_text("ended before the answer was complete").wait_for()
    assert texts(page) == ["half of it"]
    page.get_by_role("button", name="Try again").click()
    until_text(page, "all of it")


def test_a_stream_that_ends_early_is_not_taken_for_whole(page: Any, node: FakeChat) -> None:
    node.scripts = [[chunk("half of it")]]
    ask(page, "go")
    page.get_by_text("ended before the answer was complete").wait_for()
    assert texts(page) == ["half of it"]


def test_a_node_that_is_gone_is_told_before_anything_came(page: Any) -> None:
    page.expected("ERR_FAILED")
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, "anybody?")
    page.get_by_text("The node does not answer").wait_for()
    assert page.get_by_role("button", name="Try again").is_visible()


def test_no_model_and_none_that_chats(open_console: Any) -> None:
    with fake_chat(status=status(capabilities=["embedding"])) as node:
        page = open_console(node, "chat")
        page.get_by_text("No model answers now").first.wait_for()
        page.get_by_label("Your message").fill("hello")
        assert page.get_by_role("button", name="Send").is_disabled()
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)
        assert node.asked == []
        page.context.close()


# --- what an answer is made of ----------------------------------------------------------------------------------------


def test_stop_closes_the_stream_at_once(page: Any, node: FakeChat) -> None:
    node.scripts = [[chunk("one"), threading.Event()]]
    ask(page, "go")
    until_text(page, "one")
    page.keyboard.press("Escape")
    assert node.left.wait(2)
    until_over(page)
    assert page.get_by_text("stopped", exact=True).is_visible()


def test_thoughts_are_folded_and_timed(page: Any, node: FakeChat) -> None:
    more = threading.Event()
    thoughts = [chunk(reasoning="First I "), chunk(reasoning="<b>think</b>.")]
    node.scripts = [[*thoughts, more, 0.3, *answer("Then I speak.")], answer("Again.")]
    ask(page, "go")
    page.get_by_text("Thinking, ").wait_for()
    more.set()
    until_over(page)
    summary = page.locator("summary")
    assert summary.inner_text().startswith("Thought for ")
    assert not page.get_by_text("First I").is_visible()
    summary.click()
    assert page.locator(".chat-thoughts .chat-plain").inner_text() == "First I <b>think</b>."
    assert texts(page) == ["Then I speak."]
    ask(page, "more")
    until_over(page, 2)
    assert [message["content"] for message in node.asked[1]["messages"]] == ["go", "Then I speak.", "more"]


def test_a_resumed_answer_is_marked(page: Any, node: FakeChat) -> None:
    timings = {"predicted_per_second": 123456}
    node.scripts = [
        [chunk("a"), b": ping\n\n: meshnode-resumed 1\n\n", chunk("b", finish="stop", timings=timings), END]
    ]
    ask(page, "go")
    until_over(page)
    assert texts(page) == ["ab"]
    assert page.get_by_text("continued by another node").is_visible()
    assert "123,456" not in page.locator(".chat-facts").inner_text()


def test_an_answer_of_strangers_is_marked(page: Any, node: FakeChat) -> None:
    node.scripts = [answer("near"), [chunk("a"), b": meshnode-resumed 1 radius=public\n\n", *answer("b")]]
    ask(page, "go")
    until_over(page)
    assert page.get_by_text("answered by a stranger").count() == 0
    ask(page, "on")
    until_over(page, 2)
    assert page.get_by_text("answered by a stranger").count() == 1
    node.radius, node.scripts = "public", [answer("far")]
    ask(page, "further")
    until_over(page, 3)
    assert page.get_by_text("answered by a stranger").count() == 2


# --- how far a conversation may go ------------------------------------------------------------------------------------

NOT_HERE = {"where": "public (2)", "radius": "public"}


def at_most(page: Any, choice: str) -> None:
    """Say how far the open conversation may go."""
    page.get_by_role("button", name="System prompt and parameters").click()
    page.get_by_label("How far it may go").select_option(choice)
    page.get_by_role("button", name="Done").click()


def test_a_conversation_is_kept_nearer_than_the_node_says(page: Any, node: FakeChat) -> None:
    node.scripts = [answer("one"), answer("two"), answer("three")]
    ask(page, "go")
    until_over(page)
    page.get_by_role("button", name="System prompt and parameters").click()
    choice = page.get_by_label("How far it may go")
    values = choice.locator("option").evaluate_all("all => all.map((one) => one.value)")
    assert values == ["", "local", "trusted", "public"]
    link = page.get_by_role("dialog").get_by_role("link")
    assert link.get_attribute("href") == "#/public"
    page.get_by_role("button", name="Done").click()
    at_most(page, "local")
    assert page.get_by_role("button", name="System prompt and parameters").inner_text() == "1 set"
    ask(page, "on")
    until_over(page, 2)
    page.reload()
    page.get_by_text("two", exact=True).wait_for()
    ask(page, "further")
    until_over(page, 3)
    assert node.radii == ["", "local", "local"], "it is kept with the conversation"


def test_a_model_beyond_the_radius_is_said_to_be(node: FakeChat, open_console: Any) -> None:
    node.status = status(**NOT_HERE)
    page = open_console(node, "chat")
    page.get_by_text("Only strangers serve parrot").wait_for()
    assert page.get_by_role("main").get_by_role("link", name="Public").get_attribute("href") == "#/public"
    assert "too far" in page.get_by_label("Model").inner_text()
    node.status |= {"trust": {"radius": "public", "owner": None, "ends_at": None}}
    node.radius, node.scripts = "public", [answer("far")]
    page = open_console(node, "chat")
    assert page.get_by_text("Only strangers serve parrot").count() == 0
    ask(page, "go")
    until_over(page)
    page.get_by_text("answered by a stranger").wait_for()
    at_most(page, "trusted")
    page.get_by_text("Only strangers serve parrot").wait_for()
    assert node.radii == [""]


def test_a_conversation_may_go_further_than_the_node_says(node: FakeChat, open_console: Any) -> None:
    node.status = status(**NOT_HERE)
    node.radius, node.scripts = "public", [answer("far")]
    page = open_console(node, "chat")
    page.get_by_text("Only strangers serve parrot").wait_for()
    at_most(page, "public")
    page.get_by_text("Only strangers serve parrot").wait_for(state="detached")
    ask(page, "go")
    until_over(page)
    assert node.radii == ["public"]


def test_code_is_copied_as_it_was_written(page: Any, node: FakeChat) -> None:
    code = 'def f():\n\treturn "<b>" &amp; 1  \n\n# end'
    node.scripts = [answer(f"Look:\n\n```python\n{code}\n```\n\nand `x`", 9)]
    ask(page, "go")
    until_over(page)
    page.get_by_role("button", name="Copy python").click()
    until(page, "async () => (await navigator.clipboard.readText()).startsWith('def')")
    assert page.evaluate("navigator.clipboard.readText()") == code
    page.get_by_role("button", name="Copy the answer").click()
    until(page, "async () => (await navigator.clipboard.readText()).startsWith('Look')")


PICTURE = """async ([width, height]) => {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").fillRect(0, 0, width, height);
  const blob = await canvas.convertToBlob();
  return Array.from(new Uint8Array(await blob.arrayBuffer()));
}"""
SIZE = """(url) => new Promise((resolve) => {
  const image = new Image();
  image.onload = () => resolve([image.width, image.height]);
  image.src = url;
})"""


def test_images_for_a_model_that_sees(open_console: Any) -> None:
    with fake_chat(status=status(capabilities=["completion", "chat", "vision"])) as node:
        page = open_console(node, "chat")
        large = bytes(page.evaluate(PICTURE, [3000, 600]))
        small = bytes(page.evaluate(PICTURE, [40, 30]))
        page.locator("input[type=file]").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": large})
        page.get_by_alt_text("Image 1").wait_for()
        give = """([kind, bytes]) => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(bytes)], "b.png", { type: "image/png" }));
          const field = document.querySelector(".chat-composer textarea");
          const how = { bubbles: true, cancelable: true };
          field.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", { ...how, clipboardData: files })
            : new DragEvent("drop", { ...how, dataTransfer: files }));
        }"""
        page.evaluate(give, ["paste", list(small)])
        page.get_by_alt_text("Image 2").wait_for()
        page.evaluate(give, ["drop", list(small)])
        page.get_by_alt_text("Image 3").wait_for()
        page.get_by_role("button", name="Remove image 3").click()
        page.locator("input[type=file]").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": b"no"})
        page.get_by_text("not an image").wait_for()
        node.scripts = [answer("two pictures")]
        ask(page, "what is it?")
        until_over(page)
        (message,) = node.asked[0]["messages"]
        words, first, second = message["content"]
        assert words == {"type": "text", "text": "what is it?"}
        sizes = [page.evaluate(SIZE, part["image_url"]["url"]) for part in (first, second)]
        assert sizes == [[1280, 256], [40, 30]]
        assert first["image_url"]["url"].startswith("data:image/")
        assert page.locator(".chat-question img").count() == 2
        page.context.close()


def test_no_images_for_a_model_that_does_not_see(page: Any) -> None:
    assert page.locator("input[type=file]").count() == 0
    assert page.get_by_role("button", name="Add images").count() == 0


# --- reading along ----------------------------------------------------------------------------------------------------


def test_it_is_said_by_sentences_and_not_by_tokens(page: Any, node: FakeChat) -> None:
    page.evaluate("""() => {
      window.said = [];
      const region = document.querySelector("[role=status]");
      new MutationObserver(() => window.said.push(region.textContent.trim())).observe(region,
        { childList: true, characterData: true, subtree: true });
    }""")
    node.scripts = [answer("A first sentence of some words. A second one. " * 5, 200)]
    ask(page, "go")
    until_over(page)
    until(page, "() => window.said.some((text) => text.includes('complete'))")
    said = page.evaluate("window.said")
    assert len(said) <= 4 and any("A second one." in text for text in said)
    assert page.get_by_role("log").get_attribute("aria-live") == "off"


def test_it_follows_the_answer_only_for_a_reader_at_its_end(page: Any, node: FakeChat) -> None:
    first, second = threading.Event(), threading.Event()
    lines = "\n\n".join(f"line {number}" for number in range(60))
    node.scripts = [[chunk(lines), first, chunk("\n\n" + lines), second, *answer("\n\nthe end")]]
    ask(page, "go")
    until(page, "() => document.querySelectorAll('.chat-text p').length === 60")
    until(page, AT_END)
    page.locator(".chat-log").hover()
    page.mouse.wheel(0, -600)
    page.get_by_role("button", name="To the end").wait_for()
    before = page.evaluate("document.querySelector('.chat-log').scrollTop")
    first.set()
    until(page, "() => document.querySelectorAll('.chat-text p').length >= 119")
    page.wait_for_timeout(100)
    assert page.evaluate("document.querySelector('.chat-log').scrollTop") == before
    page.get_by_role("button", name="To the end").click()
    until(page, AT_END)
    second.set()
    until_over(page)
    until(page, AT_END)
    assert page.get_by_role("button", name="To the end").count() == 0


def test_another_tab_sees_what_is_kept(page: Any, node: FakeChat) -> None:
    other = page.context.new_page()
    other.goto(f"{node.console_url}/#/chat")
    other.get_by_label("Your message").wait_for()
    node.scripts = [answer("yes")]
    ask(page, "is this kept?")
    until_over(page)
    other.get_by_role("link", name="is this kept?").click()
    until_text(other, "yes")
    other.get_by_role("button", name="Delete all").click()
    other.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    until(page, "() => !document.querySelector('.chat-list li')")
    other.close()


def begun(page: Any, node: FakeChat) -> None:
    """An answer that will not go on."""
    node.scripts = [[chunk("a beginning"), threading.Event()]]
    ask(page, "go")
    until_text(page, "a beginning")


def test_a_page_that_closes_keeps_the_beginning(page: Any, node: FakeChat) -> None:
    begun(page, node)
    page.reload()
    until_text(page, "a beginning")
    page.get_by_text("page was closed").wait_for()


def test_a_page_that_crashes_has_kept_the_beginning(page: Any, node: FakeChat) -> None:
    begun(page, node)
    until(
        page,
        """async () => {
      const { loadAll } = await import("/chat/storage.js");
      return (await loadAll()).some(({ messages }) => messages.length === 2);
    }""",
    )
    address, context = page.url, page.context
    with pytest.raises(Exception, match="crash"):
        page.goto("chrome://crash")
    other = context.new_page()
    other.goto(address)
    until_text(other, "a beginning")
    other.get_by_text("page was closed").wait_for()


def test_a_full_store_is_told(page: Any, node: FakeChat) -> None:
    page.evaluate("""async () => {
      const { entries, LIMIT_BYTES } = await import("/chat/storage.js");
      await entries();
      const open = indexedDB.open("meshnode-chat");
      const database = await new Promise((resolve) => { open.onsuccess = () => resolve(open.result); });
      const change = database.transaction("entries", "readwrite");
      change.objectStore("entries").put({ id: "large", title: "large", updated: 1, size: LIMIT_BYTES });
      await new Promise((resolve) => { change.oncomplete = resolve; });
      database.close();
    }""")
    page.reload()
    node.scripts = [answer("yes")]
    ask(page, "is there room?")
    page.get_by_text("This conversation is not kept").wait_for()
    until_over(page)
    assert texts(page) == ["yes"]


# --- floods -----------------------------------------------------------------------------------------------------------


def test_two_thousand_tokens_a_second(page: Any, node: FakeChat) -> None:
    words = [f"**word** {number}{'.' + chr(10) * 2 if number % 40 == 39 else ''} " for number in range(2 * RATE)]
    batch = RATE // 100
    script: list[Any] = []
    for at in range(0, len(words), batch):
        script += [b"".join(chunk(word) for word in words[at : at + batch]), 0.01]
    node.scripts = [[*script, chunk(finish="stop"), END]]
    page.evaluate(WATCH)
    begun = time.monotonic()
    ask(page, "go")
    until_text(page, "word 3999")
    took_s = time.monotonic() - begun
    until_over(page)
    assert page.evaluate("window.longest") < SLOW_TASK_MS
    assert page.evaluate("window.frames_") > 10 * took_s, "ten frames a second, also on a machine that is shared"
    assert page.locator(".chat-text strong").count() == len(words)


FLOODS = {
    "10,000 lines": "\n".join(f"line {number} with **some** bold" for number in range(10_000)),
    "10,000 paragraphs": "\n\n".join(f"paragraph {number}" for number in range(10_000)),
    "10,000 lines of code": "```\n" + "\n".join(f"print({number})" for number in range(10_000)) + "\n```",
    "a list of 10,000": "\n".join(f"- item {number}" for number in range(10_000)),
    "a megabyte on one line": "lorem ipsum " * 87_382,
    "a megabyte without a space": "x" * (1 << 20),
    "a megabyte of code on one line": "```\n" + "y" * (1 << 20),
    "a megabyte of emphasis": "_a" * (1 << 19),
    "nothing but brackets": "[" * (1 << 18),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_leaves_the_page_usable(page: Any, node: FakeChat, name: str) -> None:
    text = FLOODS[name]
    node.scripts = [answer(text, 400), answer("and on")]
    page.evaluate(WATCH)
    ask(page, "go")
    until_over(page)
    end = text.rstrip("`\n")[-12:].removeprefix("- ").strip()
    until_text(page, end)
    assert page.evaluate("window.longest") < SLOW_TASK_MS
    page.locator(".chat-log").evaluate("(log) => { log.scrollTop = log.scrollHeight / 2; }")
    begun = time.monotonic()
    ask(page, "more")
    until_over(page, 2)
    assert time.monotonic() - begun < 5
    assert texts(page)[1] == "and on"
