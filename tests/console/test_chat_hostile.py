"""Hostile text in the chat: through the real pipeline of the page, in pieces as models write it, and over a stream.

Nothing of it may run, load, navigate, get an attribute that is not listed here, or hide a name of the page. The policy
of the node would stop most of it too, so the fixtures watch that the policy has nothing to report.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.console.fake_chat import FakeChat, answer, fake_chat
from tests.console.hostile_texts import HOSTILE

ELEMENTS = """
a b blockquote br button code del div em figcaption figure h1 h2 h3 h4 h5 h6 hr i kbd li mark ol p path pre s span
strong sub sup svg table tbody td th thead tr u ul
"""
JUDGE = """(root) => {
  const faults = [];
  const attributes = {
    a: ["href", "target", "rel", "title"], ol: ["start"], td: ["align"], th: ["align"],
    button: ["type", "class", "aria-label", "title", "data-state"], pre: ["tabindex", "role", "aria-label"],
    div: ["class", "tabindex", "role", "aria-label"], figure: ["class"], code: ["class"], span: ["class"],
    svg: ["class", "width", "height", "viewBox", "aria-hidden", "focusable"], path: ["d"],
  };
  const classes = /^(|chat-\\w+|code chat-code|language-[\\w+#.-]*|button quiet bare|icon icon-copy)$/;
  for (const element of root.querySelectorAll("*")) {
    const name = element.localName;
    if (!ELEMENTS.includes(name)) faults.push(`element ${name}`);
    const ours = element.closest("figcaption, figure") !== null;
    if (["button", "svg", "path"].includes(name) && !ours) faults.push(`${name} outside of a frame of ours`);
    for (const attribute of element.attributes)
      if (!(attributes[name] ?? []).includes(attribute.name)) faults.push(`${name} has ${attribute.name}`);
    if (!classes.test(element.getAttribute("class") ?? "")) faults.push(`${name} has class ${element.className}`);
    if (name === "a" && element.hasAttribute("href")) {
      if (!/^(https?:\\/\\/|mailto:)/.test(element.href)) faults.push(`address ${element.href}`);
      if (new URL(element.href).origin === location.origin) faults.push(`an address of this page: ${element.href}`);
      if (element.target !== "_blank" || element.rel !== "noopener noreferrer") faults.push("a link that knows us");
    }
  }
  return faults;
}""".replace("ELEMENTS", repr(ELEMENTS.split()))
CATCH = "window.hits = 0; window.pwned = () => { window.hits += 1; };"
NAMES = """() => [document.body.localName, typeof document.getElementById, document.getElementById("view").localName,
  document.getElementById("app").localName, document.defaultView === window,
  document.querySelector("base") === null, window.hits]"""


@pytest.fixture
def node() -> Iterator[FakeChat]:
    """A node that answers as it is told."""
    with fake_chat() as fake:
        yield fake


@pytest.fixture
def page(node: FakeChat, open_console: Any) -> Any:
    """The chat of that node; asking for anything from elsewhere fails the test."""
    page = open_console(node, "chat")
    foreign: list[str] = []
    page.on("request", lambda request: request.url.startswith(node.console_url) or foreign.append(request.url))
    page.evaluate(CATCH)
    names = page.evaluate(NAMES)
    yield page
    assert page.evaluate(NAMES) == names
    assert foreign == []
    assert page.url.startswith(node.console_url)
    assert len(page.context.pages) == 1


def test_the_corpus_is_large_enough() -> None:
    assert len(HOSTILE) >= 30


def test_nothing_of_it_gets_through_the_pipeline(page: Any) -> None:
    found = page.evaluate(
        """async (texts) => {
          const { render } = await import("/chat/markdown.js");
          const faults = {};
          for (const [name, text] of Object.entries(texts)) {
            const box = document.createElement("div");
            box.className = "probe";
            document.querySelector(".chat-log").append(box);
            let fragment;
            try { fragment = render(text); } catch (error) { fragment = document.createTextNode(text); }
            box.append(fragment);
            const found = (JUDGE)(box);
            if (found.length) faults[name] = found;
            for (const element of box.querySelectorAll("*")) element.dispatchEvent(new MouseEvent("mouseover"));
            await new Promise((resolve) => setTimeout(resolve));
          }
          await new Promise((resolve) => setTimeout(resolve, 300));
          return faults;
        }""".replace("JUDGE", JUDGE),
        HOSTILE,
    )
    assert found == {}


@pytest.mark.parametrize("size", [1, 7])
def test_no_half_of_it_gets_through_while_it_grows(page: Any, size: int) -> None:
    found = page.evaluate(
        """async ([texts, size]) => {
          const { Growing } = await import("/chat/markdown.js");
          const faults = {};
          for (const [name, whole] of Object.entries(texts)) {
            const text = whole.slice(0, 400);
            const box = document.querySelector(".chat-log").appendChild(document.createElement("div"));
            const growing = new Growing(box);
            for (let to = size; ; to += size) {
              const done = to >= text.length;
              growing.dueAt = 0;
              growing.write(text.slice(0, to), done);
              const found = (JUDGE)(box);
              if (found.length) faults[`${name} at ${to}`] = found;
              if (done) break;
            }
            growing.stop();
            await new Promise((resolve) => setTimeout(resolve));
            box.remove();
          }
          return faults;
        }""".replace("JUDGE", JUDGE),
        [HOSTILE, size],
    )
    assert found == {}


def test_the_judge_sees_what_must_not_be(page: Any) -> None:
    bad = """([markup]) => {
      const box = new DOMParser().parseFromString(markup, "text/html").body;
      return (JUDGE)(box);
    }""".replace("JUDGE", JUDGE)
    markup = (
        '<p><script>1</script><b id=x onclick=y>z</b><a href="javascript:1">a</a><a href="/api">b</a><button>c</button>'
    )
    page.expected("inline event handler|policy: ")
    faults = page.evaluate(bad, [markup])
    for fault in ("element script", "b has id", "b has onclick", "address javascript:1", "button outside"):
        assert any(fault in one for one in faults), (fault, faults)


def test_over_a_stream_it_is_text_like_any_other(page: Any, node: FakeChat, axe: Any) -> None:
    whole = "\n\n".join(f"{name}:\n\n{text}" for name, text in HOSTILE.items() if not name.startswith("deep"))
    node.scripts = [answer(whole, 900), answer(HOSTILE["deep"], 40)]
    for count in (1, 2):
        page.get_by_label("Your message").fill("<img src=x onerror=pwned()> **not bold**")
        page.keyboard.press("Enter")
        page.get_by_label("Copy the answer").nth(count - 1).wait_for()
    page.wait_for_timeout(300)
    for text in page.locator(".chat-text").all():
        assert text.evaluate(JUDGE) == []
    assert "<img src=x onerror=pwned()> **not bold**" in page.locator(".chat-question .chat-plain").first.text_content()
    assert page.locator("main img, main iframe, main script, main form:not(.chat-composer)").count() == 0
    axe(page)


def test_a_title_and_an_error_of_it_are_text_as_well(page: Any, node: FakeChat) -> None:
    message = "‮<img src=x onerror=pwned()> [x](javascript:pwned())"
    node.refusals = [(400, {"message": message, "code": "<b>bad</b>", "type": "x"})]
    page.expected("400")
    page.get_by_label("Your message").fill(HOSTILE["image with a handler"])
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("javascript:pwned()").wait_for()
    assert page.locator(".chat-title").text_content() == HOSTILE["image with a handler"]
    assert page.locator("main img, main b").count() == 0
