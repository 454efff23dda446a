"""The parts of the chat that know of no page, run in the browser that has to run them: streams, answers, conversations,
Markdown that grows, and what is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.console.fake_chat import FakeChat, fake_chat
from tests.console.hostile_texts import HOSTILE

STREAM = (
    'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\r\n\r\n'
    ": ping\n\n"
    'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
    'event: x\nid: 4\ndata: {"choices":[{"delta":\ndata: {"content":"eins ü 数"}}]}\n\n'
    ": meshnode-radius trusted\n\n: meshnode-radius of all\n\n"
    ": meshnode-resumed 2\n\n"
    ": meshnode-resumed 3 radius=public\n\n: meshnode-resumed 4 radius=mars\n\n"
    'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\r\r'
    'data:{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    "data: not json\n\ndata: 7\n\ndata: null\n\n"
    "data: [DONE]\n\n"
    "data: never ended"
)
TEXTS = {
    "prose": "One *two*\nthree.\n\nFour `five`  \nsix\n\n\n\nSeven\n===\n\n---\n\nEight",
    "lists": "1. a\n2. b\n   - c\n\n   d\n3. e\n\n- [x] f\n- g\n\n  ```py\n  h = 1\n  ```\n\ni",
    "code": "a\n```python\nprint('```')\n  ``` no end\n\n\nx\n```\nb\n\n~~~\n```\n~~~\n```js\nnever ends\n",
    "tables": "| a | b |\n|:-:|--:|\n| 1 | **2** |\n| 3 |\n\nafter\n\nx | y\n--|--\n1 | 2",
    "references": "See [one] and [two][t].\n\n[one]: https://one.example\n\n> q\n\n[t]: https://two.example 'T'\n\n.",
    "broken": "**bold *both\n\n| a |\n|---\n\n```\n<b>\n``\n\n[x](y\n\n# \n\n- \n-\n\n>",
    "endings": "a\r\nb\r\n\r\n```\r\nc\r\n```\r\nd\re",
}


@pytest.fixture(scope="module")
def node() -> Iterator[FakeChat]:
    """A node that nobody asks anything."""
    with fake_chat() as fake:
        yield fake


@pytest.fixture(scope="module")
def run(node: FakeChat, browser: Any) -> Iterator[Callable[..., Any]]:
    """`run("stream", "(module, argument) => ...", argument)` gives what the function makes of a module of the chat."""
    page = browser.new_page()
    page.goto(f"{node.console_url}/#/chat")

    def call(module: str, function: str, argument: Any = None) -> Any:
        code = f"async (argument) => ({function})(await import('/chat/{module}.js'), argument)"
        return page.evaluate(code, argument)

    yield call
    page.close()


def test_a_stream_is_the_same_however_it_is_cut(run: Any) -> None:
    read = """({ readStream }, [text, size]) => {
      const bytes = new TextEncoder().encode(text);
      const cut = size || bytes.length;
      let at = 0;
      const body = new ReadableStream({ pull: (control) =>
        at < bytes.length ? (control.enqueue(bytes.slice(at, at + cut)), (at += cut)) : control.close() });
      const items = [];
      return readStream(body, (some) => items.push(...some)).then(() => items);
    }"""
    whole = run("stream", read, [STREAM, 0])
    assert [{name: value for name, value in item.items() if value} for item in whole] == [
        {},
        {"reasoning": "hm"},
        {"content": "eins ü 数"},
        {"radius": "trusted"},
        {"resumed": 2},
        {"resumed": 3, "radius": "public"},
        {"finish": "stop"},
        {"usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        {"end": True},
    ]
    for size in (1, 2, 3, 7, 64):
        assert run("stream", read, [STREAM, size]) == whole


def test_an_event_without_end_is_refused(run: Any) -> None:
    feed = """({ eventReader }) => {
      const read = eventReader();
      for (let count = 0; count < 100; count += 1)
        try { read("x".repeat(1 << 20)); } catch { return count; }
      return null;
    }"""
    assert 4 <= run("stream", feed) <= 16


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ('{"error":{"message":"no","code":"engine_crashed"}}', {"code": "engine-crashed", "message": "no", "fix": ""}),
        ('{"error":"plain"}', {"code": "error", "message": "plain", "fix": ""}),
        ('{"error":{"code":503,"fix":"wait"}}', {"code": "503", "message": "the node gave no reason", "fix": "wait"}),
    ],
)
def test_errors_of_a_stream(run: Any, event: str, error: dict[str, str]) -> None:
    item = run("stream", "({ itemOf }, data) => itemOf({ data })", event)
    made = run("answer", "({ errorOf }, error) => errorOf(error)", item["error"])
    assert made == error


def answer_of(run: Any, items: list[tuple[int, dict[str, Any]]], **how: Any) -> dict[str, Any]:
    """The answer that these items make, each at its time in ms; it was asked at 1000 and ends at 9000."""
    made = run(
        "answer",
        """({ begin, take, finish }, [items, how]) => {
          const answer = begin("1", "m", 1000);
          for (const [at, item] of items) take(answer, item, at);
          return finish(answer, 9000, how);
        }""",
        [items, how],
    )
    return dict(made)


def test_an_answer_knows_its_times_and_counts(run: Any) -> None:
    text = {"content": "a", "reasoning": ""}
    usage = {"prompt_tokens": 5, "completion_tokens": 11}
    items = [(1500, {"content": "", "reasoning": "hm"}), (3500, text), (6500, text), (6500, {"finish": "stop"})]
    made = answer_of(run, [*items, (6600, {"usage": usage}), (6601, {"end": True})])
    assert (made["state"], made["content"], made["reasoning"]) == ("done", "aa", "hm")
    assert (made["first"] - made["asked"], made["thought"]) == (500, 2000)
    assert made["usage"] == {"prompt": 5, "completion": 11}
    assert made["speed"] == 2.0, "ten tokens after the first in five seconds"
    timings = {"timings": {"predicted_per_second": 99.5}}
    assert answer_of(run, [*items, (6600, timings)])["speed"] == 99.5
    resumed = answer_of(run, [*items, (4000, {"resumed": 1}), (6600, timings)])
    assert resumed["resumed"] == 1 and resumed["speed"] < 1, "the engine's figure is that of the second node only"
    farther = answer_of(run, [(1200, {"radius": "trusted"}), (1300, {"resumed": 1, "radius": ""}), *items])
    assert farther["radius"] == "trusted"
    assert answer_of(run, [*items, (7000, {"resumed": 1, "radius": "public"})])["radius"] == "public"


def test_how_an_answer_ends(run: Any) -> None:
    text = (2000, {"content": "a", "reasoning": ""})
    cut = answer_of(run, [text])
    assert (cut["state"], cut["error"]["code"]) == ("failed", "connection-lost")
    assert answer_of(run, [text], stopped=True)["state"] == "stopped"
    told = answer_of(run, [text, (2100, {"error": {"code": "x", "message": "broke"}})])
    assert (told["state"], told["error"]["message"], told["content"]) == ("failed", "broke", "a")
    refused = answer_of(run, [], error={"code": "busy", "message": "later", "fix": ""})
    assert (refused["state"], refused["error"]["code"]) == ("failed", "busy")
    only_thoughts = answer_of(run, [(2000, {"content": "", "reasoning": "hm"}), (2100, {"end": True})])
    assert (only_thoughts["state"], only_thoughts["thought"]) == ("done", 7000)


def test_only_whole_sentences_are_spoken(run: Any) -> None:
    speak = """({ sentences }, parts) => {
      let text = ""; let from = 0; const said = [];
      for (const part of parts) {
        text += part;
        const { say, upto } = sentences(text, from, part === "");
        from = upto;
        said.push(say);
      }
      return said;
    }"""
    assert run("answer", speak, ["Version 1.", "5 is **out", "**. Next", "", ""]) == [
        "",
        "",
        "Version 1.5 is out .",
        "Next",
        "",
    ]
    (long,) = run("answer", speak, ["word " * 1000 + ". "])
    assert len(long) < 700


def test_conversations_change_as_they_should(run: Any) -> None:
    made = run(
        "conversation",
        """({ fresh, added, edited, unanswered, titleOf, withParameter, requestBody }) => {
          let talk = fresh("1", "m", 0);
          const empty = [titleOf(talk), unanswered(talk)];
          talk = added(talk, { id: "a", role: "user", content: "  one  " });
          talk = added(talk, { id: "b", role: "assistant", content: "two", images: undefined });
          talk = added(talk, { id: "c", role: "user", content: "", images: ["data:image/jpeg;base64,AA"] });
          talk = added(talk, { id: "d", role: "assistant", content: "", state: "failed" });
          const set = withParameter(withParameter(talk, "seed", 0), "stop", ["x"]);
          return {
            empty, title: titleOf(talk), named: titleOf({ ...talk, title: "T" }),
            again: unanswered(talk).messages.map(({ id }) => id),
            edited: edited(talk, "a", "new").messages, unknown: edited(talk, "z", "new") === talk,
            seeing: requestBody({ ...set, system: " " }, true),
            blind: requestBody({ ...set, system: "S" }, false).messages,
            unset: withParameter(withParameter(set, "seed", ""), "stop", []).parameters,
          };
        }""",
    )
    assert made["empty"] == ["New conversation", None]
    assert (made["title"], made["named"]) == ("one", "T")
    assert made["again"] == ["a", "b", "c"]
    assert made["edited"] == [{"id": "a", "role": "user", "content": "new"}] and made["unknown"]
    image = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AA"}}
    asked = [{"role": "user", "content": "  one  "}, {"role": "assistant", "content": "two"}]
    assert made["seeing"]["messages"] == [*asked, {"role": "user", "content": [image]}]
    assert made["seeing"]["seed"] == 0 and made["seeing"]["stop"] == ["x"] and made["seeing"]["stream"] is True
    assert made["seeing"]["stream_options"] == {"include_usage": True}
    assert made["blind"] == [{"role": "system", "content": "S"}, *asked, {"role": "user", "content": ""}]
    assert made["unset"] == {}


@pytest.mark.parametrize(
    ("key", "words", "right"),
    [
        ("temperature", "", True),
        ("temperature", "0", True),
        ("temperature", "0.7", True),
        ("temperature", "-1", False),
        ("temperature", "warm", False),
        ("top_p", "1.01", False),
        ("max_tokens", "0", False),
        ("max_tokens", "1.5", False),
        ("max_tokens", "100", True),
        ("seed", "4294967295", True),
        ("seed", "Infinity", False),
    ],
)
def test_what_may_be_typed_for_a_parameter(run: Any, key: str, words: str, right: bool) -> None:
    judge = "(m, [key, words]) => m.faultOf(m.PARAMETERS.find((one) => one.key === key), words)"
    assert (run("conversation", judge, [key, words]) == "") is right


GROW = """async ({ Growing }, [text, cuts]) => {
  const box = document.body.appendChild(document.createElement("div"));
  const growing = new Growing(box);
  const shown = [];
  for (const to of [...cuts, text.length]) {
    growing.dueAt = 0;
    growing.write(text.slice(0, to), to === text.length);
    shown.push(box.textContent.length);
  }
  while (growing.offset < growing.text.length) await new Promise((resolve) => setTimeout(resolve, 5));
  const markup = box.innerHTML;
  const copied = [...box.querySelectorAll("figure")].map((figure) => figure.pieces.text);
  box.remove();
  return { markup, copied, shown };
}"""


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_grows_ends_as_one_that_came_whole(run: Any, name: str) -> None:
    text = TEXTS[name]
    whole = run("markdown", GROW, [text, []])
    dice = random.Random(name)
    for cuts in (list(range(len(text))), *(sorted(dice.sample(range(len(text)), 8)) for _ in range(4))):
        grown = run("markdown", GROW, [text, cuts])
        assert grown["markup"] == whole["markup"]
        assert grown["copied"] == whole["copied"]


def test_what_is_shown_of_them(run: Any) -> None:
    code = run("markdown", GROW, [TEXTS["code"], []])
    assert code["copied"] == ["print('```')\n  ``` no end\n\n\nx", "```", "never ends"]
    references = run("markdown", GROW, [TEXTS["references"], []])["markup"]
    assert references.count('rel="noopener noreferrer"') == 2 and "https://one.example" in references
    assert 'align="right"' in run("markdown", GROW, [TEXTS["tables"], []])["markup"]
    assert run("markdown", GROW, [TEXTS["endings"], []])["copied"] == ["c"]


def test_blocks_that_are_over_are_not_touched_again(run: Any) -> None:
    kept = run(
        "markdown",
        """({ Growing }) => {
          const box = document.body.appendChild(document.createElement("div"));
          const growing = new Growing(box);
          growing.write("first\\n\\nsecond", false);
          const first = box.firstElementChild;
          for (const more of [" *more*", "\\n\\nthird", " of it\\n\\n# fourth"]) {
            growing.dueAt = 0;
            growing.write(growing.text + more, false);
          }
          return [first === box.firstElementChild, box.children.length];
        }""",
    )
    assert kept == [True, 4]


def test_what_is_too_large_is_shown_as_it_was_written(run: Any) -> None:
    parts = ["**a** " * 5000 + "end", "**b**", "- *c*\n" * 9000 + "- end", "**d**"]
    shown = run("markdown", GROW, ["\n\n".join(parts), []])["markup"]
    for part in parts[::2]:
        assert part in shown.replace('</span><span class="chat-piece">', "")
    assert shown.count("<strong>") == 2, "the paragraph and the list are plain, what stands between and after is not"
    assert shown.count("chat-plain") == 2


def test_hostile_texts_end_as_they_came(run: Any) -> None:
    for text in HOSTILE.values():
        cuts = list(range(0, len(text), max(5, len(text) // 20)))
        assert run("markdown", GROW, [text, cuts])["markup"] == run("markdown", GROW, [text, []])["markup"]


def test_there_is_an_end_to_what_is_kept(run: Any) -> None:
    kept = run(
        "storage",
        """async ({ save, load, entries, remove, clear, Full, LIMIT_BYTES }) => {
          await clear();
          const talk = { id: "a", model: "m", updated: 5, messages: ["x".repeat(1000)] };
          const entry = await save(talk, "A", []);
          const list = await entries();
          const full = [{ id: "a", size: LIMIT_BYTES }];
          const refused = await save({ ...talk, id: "b" }, "B", full).catch((error) => error instanceof Full);
          const replaced = await save(talk, "A2", full);
          const found = [(await load("a")).messages.length, await load("b")];
          await remove("a");
          return { entry, list, refused, replaced: replaced.title, found, left: await entries() };
        }""",
    )
    assert kept["entry"]["size"] > 1000 and kept["list"] == [kept["entry"]]
    assert kept["refused"] is True and kept["replaced"] == "A2"
    assert kept["found"] == [1, None] and kept["left"] == []
