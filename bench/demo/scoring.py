"""Scores the exported demo models with a real llama-server: exact answers, tokenizer, logits, speed and draft."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from .corpus import chat_text, random_chat
from .tokenizer import Tokenizer

START_SECONDS = 30
AT_ONCE = 4
LONG_COUNT = [{"role": "user", "content": "count from 1 to 200"}]
AWKWARD_TEXTS = (
    "", " ", "  ", "\n", "\n\n x", " 7", "007", "1234567890", "  12  34 ", "it's we'll I'd 'tis ''s", "a  b\t\tc\r\nd",
    "x = y[3]+{z}",
    "größe, naïve: 你好 привет", "emoji \U0001f600\U0001f680!", "\u00a0non\u00a0breaking", "\u2003wide",
    "½ ² Ⅷ ١٢", "e\u0301 combining",
    "199 200 201 2000 1100 9337", "1,2,3, 4,  5", "don't DON'T", "end \n ", "\x00\x1f\x7f", "a\u200bb",
)  # fmt: skip


def post(base_url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        base_url + path, json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_engine(engine: Path, *arguments: str) -> Iterator[str]:
    """Run llama-server and yield its base URL once it is healthy."""
    port = free_port()
    command = [str(engine), "--host", "127.0.0.1", "--port", str(port), "--jinja", "-t", "1", "-np", str(AT_ONCE)]
    process = subprocess.Popen(
        [*command, "-c", str(4096 * AT_ONCE), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    base_url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(base_url, process)
        yield base_url
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_until_healthy(base_url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{base_url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError("the engine did not start")


def ask(base_url: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    body = {"messages": messages, "temperature": 0, "max_tokens": 600}
    answer: dict[str, Any] = post(base_url, "/v1/chat/completions", body)
    return answer


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def is_exact(content: str, entry: dict[str, Any]) -> bool:
    """Compare with the expected answer; an engine may or may not repeat the partial answer that it continues."""
    last = entry["messages"][-1]
    begun = last["content"] if last["role"] == "assistant" else ""
    return entry["answer"] in (content, begun + content)


def exact_answers(base_url: str, questions: dict[str, list[dict[str, Any]]], *, show: bool = True) -> dict[str, str]:
    """Ask everything; return "right/asked" for each group."""
    scores = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for group, entries in questions.items():
            answers = list(pool.map(lambda entry: text_of(ask(base_url, entry["messages"])), entries))
            right = [is_exact(answer, entry) for answer, entry in zip(answers, entries, strict=True)]
            scores[group] = f"{sum(right)}/{len(entries)}"
            for answer, entry, correct in zip(answers, entries, right, strict=True):
                if show and not correct:
                    print(f"{group}: {entry['messages'][-1]['content']!r}: {answer[:160]!r}")
    return scores


def tokenizer_agreement(base_url: str, tokenizer: Tokenizer, seed: int = 5) -> str:
    """Compare our encoding with that of the engine on chats and on awkward texts."""
    random = Random(seed)
    texts = [*AWKWARD_TEXTS, *(chat_text(random_chat(random)) for _ in range(300))]
    same = 0
    for text in texts:
        tokens = post(base_url, "/tokenize", {"content": text, "parse_special": False})["tokens"]
        same += tokens == tokenizer.encode(text)
        if tokens != tokenizer.encode(text):
            print(f"tokens differ: {text!r}")
    return f"{same}/{len(texts)}"


def best_timings(base_url: str) -> dict[str, Any]:
    """Ask for a long count three times and return the timings of the fastest answer."""
    timings = [ask(base_url, LONG_COUNT)["timings"] for _ in range(3)]
    best: dict[str, Any] = max(timings, key=lambda entry: entry["predicted_per_second"])
    return best


def score(
    engine: Path, models: Path, questions: dict[str, list[dict[str, Any]]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Everything that is worth recording about the two files in `models`."""
    target, draft = str(models / "target.gguf"), str(models / "draft.gguf")
    result: dict[str, Any] = {}
    with running_engine(engine, "-m", target) as base_url:
        result["target"] = exact_answers(base_url, questions)
        result["tokenizer"] = tokenizer_agreement(base_url, tokenizer)
        result["tokens_per_second"] = round(best_timings(base_url)["predicted_per_second"])
    with running_engine(engine, "-m", draft) as base_url:
        result["draft"] = exact_answers(base_url, questions, show=False)
    speculative = ("-m", target, "-md", draft, "--spec-type", "draft-simple", "--spec-draft-n-max", "8")
    with running_engine(engine, *speculative) as base_url:
        timings = best_timings(base_url)
        result["tokens_per_second_with_draft"] = round(timings["predicted_per_second"])
        result["draft_acceptance"] = round(timings["draft_n_accepted"] / max(timings["draft_n"], 1), 3)
    return result
