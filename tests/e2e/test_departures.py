"""Callers that leave: streaming, plain or still in the queue, each gives its place up at once while others go on."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.alone]

FREE_WITHIN_S = 1.0
ENDLESS: dict[str, Any] = {
    "model": "long",
    "messages": [{"role": "user", "content": "count from 1 to 200"}],
    "max_tokens": 30_000,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def node(start_shared_node: StartNode, small_models: Path) -> Iterator[NodeProcess]:
    """Two slots, and a model that goes on for minutes."""
    node = start_shared_node("--model", str(small_models / "long.gguf"), "--parallel", "2")
    yield node
    node.end()


def occupied(node: NodeProcess) -> tuple[int, int]:
    """(slots in use, callers that wait)."""
    (model,) = node.status()["models"]
    return model["busy"], model["waiting"]


def until_occupied(node: NodeProcess, busy: int, waiting: int = 0, within_s: float = 10) -> None:
    eventually(lambda: occupied(node) == (busy, waiting), within_s)


@contextmanager
def asking(node: NodeProcess, **changes: Any) -> Iterator[http.client.HTTPConnection]:
    """A request that was sent; leaving the block closes its connection."""
    target = urlsplit(node.base_url)
    with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)) as connection:
        body = json.dumps({**ENDLESS, **changes})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        yield connection


@contextmanager
def streaming(node: NodeProcess) -> Iterator[http.client.HTTPResponse]:
    """A stream of which the beginning has arrived."""
    with asking(node, stream=True) as connection, closing(connection.getresponse()) as answer:
        assert answer.status == 200 and answer.readline().startswith(b"data: ")
        yield answer


def slot_answers_within(node: NodeProcess, seconds: float) -> None:
    """Not only the gateway's count: llama-server itself has a slot for the next request at once."""
    begun = time.monotonic()
    with asking(node, max_tokens=1) as connection:
        assert connection.getresponse().status == 200
    assert time.monotonic() - begun < seconds


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "while another streams"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_leaving_frees_the_slot(node: NodeProcess, stream: bool, beside: bool) -> None:
    with ExitStack() as others:
        other = others.enter_context(streaming(node)) if beside else None
        with streaming(node) if stream else asking(node):
            until_occupied(node, 1 + beside)
        until_occupied(node, int(beside), within_s=FREE_WITHIN_S)
        slot_answers_within(node, FREE_WITHIN_S)
        if other:
            assert other.readline() == b"\n" and other.readline().startswith(b"data: ")
    until_occupied(node, 0, within_s=FREE_WITHIN_S)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_leaving_the_queue(node: NodeProcess, stream: bool) -> None:
    with streaming(node), streaming(node):
        with asking(node, stream=stream):
            until_occupied(node, 2, 1)
            with asking(node, stream=stream):
                until_occupied(node, 2, 2)
            until_occupied(node, 2, 1, within_s=FREE_WITHIN_S)
        until_occupied(node, 2, 0, within_s=FREE_WITHIN_S)
    until_occupied(node, 0, within_s=FREE_WITHIN_S)


def test_who_waits_moves_up_when_another_leaves(node: NodeProcess) -> None:
    with ExitStack() as waiting, streaming(node):
        with streaming(node):
            third = waiting.enter_context(asking(node, max_tokens=2))
            until_occupied(node, 2, 1)
        begun = time.monotonic()
        assert third.getresponse().status == 200
        assert time.monotonic() - begun < 2 * FREE_WITHIN_S
    until_occupied(node, 0, within_s=FREE_WITHIN_S)


def test_time_out_of_the_client_counts_as_leaving(node: NodeProcess) -> None:
    body = {name: value for name, value in ENDLESS.items() if name != "ignore_eos"}
    with openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="unused", max_retries=0, timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**body, extra_body={"ignore_eos": True})
        until_occupied(node, 0, within_s=FREE_WITHIN_S)
        stream = client.chat.completions.create(**body, stream=True, extra_body={"ignore_eos": True})
        assert next(iter(stream))
        stream.close()
    until_occupied(node, 0, within_s=FREE_WITHIN_S)


def test_reader_that_stops_reading_holds_up_nobody_else(node: NodeProcess) -> None:
    with asking(node, stream=True) as stalled:
        until_occupied(node, 1)
        assert stalled.sock is not None
        for _ in range(3):
            slot_answers_within(node, 2.0)
        assert occupied(node)[0] == 1
    until_occupied(node, 0, within_s=FREE_WITHIN_S)


def test_departures_are_told_from_failures(node: NodeProcess) -> None:
    with streaming(node):
        pass
    until_occupied(node, 0)
    last = eventually(lambda: [entry for entry in node.status()["requests"]["recent"] if entry["outcome"] == "left"])
    assert last[-1]["status"] in (200, 499) and last[-1]["error"] == ""
    assert node.status()["problems"] == []


def test_many_departures_at_once_leave_nothing_behind(node: NodeProcess) -> None:
    def come_and_go(stream: bool) -> None:
        with asking(node, stream=stream):
            pass

    threads = [threading.Thread(target=come_and_go, args=(number % 2 == 0,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until_occupied(node, 0, within_s=3)
    slot_answers_within(node, FREE_WITHIN_S)
