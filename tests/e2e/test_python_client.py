"""`meshnode.Client` in the test's own process, against real nodes with real engines."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

import meshnode
from meshnode.errors import BadRequest, InviteInvalid
from meshnode.sdk.counting import SLACK_TOKENS
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, invite_for, until_hosts
from tests.loopback import LOOPBACK_ONLY

pytestmark = [pytest.mark.engine, pytest.mark.anyio]

COUNT = ", ".join(str(number) for number in range(1, 21))
QUESTION = "count from 1 to 20"
LONG_QUESTION = "count from 1 to 200"
ENDLESS: dict[str, Any] = {"max_tokens": 30_000, "ignore_eos": True}
PROGRAMS = re.findall(
    r"^```python\n(.*?)^```$",
    (Path(__file__).parents[2] / "docs" / "python.md").read_text("utf-8"),
    re.MULTILINE | re.DOTALL,
)


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MESHNODE_") and name != "MESHNODE_CACHE"]:
        monkeypatch.delenv(name)
    for name, value in LOOPBACK_ONLY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def founder(start_shared_node: StartNode) -> Iterator[NodeProcess]:
    """A node that serves the demo."""
    node = start_shared_node("--model", "demo", "--parallel", "2", environment=SMALL)
    yield node
    node.end()


@pytest.fixture(scope="module")
def token(founder: NodeProcess) -> str:
    return invite_for(founder, 40)


@pytest.fixture(scope="module")
def patient(start_shared_node: StartNode, small_models: Path) -> Iterator[NodeProcess]:
    """A node whose model can talk for a minute, to one caller."""
    environment = {**SMALL, "MESHNODE_CTX_SIZE": "32768"}
    model = str(small_models / "long.gguf")
    node = start_shared_node("--model", model, "--parallel", "1", environment=environment)
    yield node
    node.end()


@asynccontextmanager
async def joined(token: str) -> AsyncIterator[meshnode.Client]:
    """A client that has heard that the model is ready: a node tells news of itself once a second."""
    async with meshnode.Client.join(token) as mesh, asyncio.timeout(60):
        while not all([model.ready for model in await mesh.models.list()] or [False]):
            await asyncio.sleep(0.01)
        yield mesh


async def until(check: Callable[[], object], within_s: float = 10) -> None:
    """As `eventually`, while the client of this process goes on."""
    deadline = time.monotonic() + within_s
    while not await asyncio.to_thread(check):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.01)


def busy(node: NodeProcess) -> int:
    return sum(model["busy"] + model["waiting"] for model in node.status()["models"])


# --- answers --------------------------------------------------------------------------------------------------


async def test_models_pieces_and_whole_answers(founder: NodeProcess, token: str) -> None:
    node = founder.status()["node"]
    async with joined(token) as mesh:
        (model,) = await mesh.models.list()
        assert (model.id, model.nodes, model.ready) == ("demo", (node["id"],), True)
        assert (await mesh.models.retrieve("demo")).context_length == 1024
        pieces = [piece async for piece in mesh.chat(QUESTION, model="demo", temperature=0)]
        assert "".join(pieces) == COUNT and len(pieces) > 30, "as the tokens come"
        answer = await mesh.chat(QUESTION, temperature=0)
        assert answer == COUNT and (answer.model, answer.node) == ("demo", node["short"])
        assert answer.finish_reason == "stop" and answer.resumed == 0
        assert answer.usage is not None and answer.usage.completion_tokens == len(pieces) + 1
        assert await mesh.chat(QUESTION, temperature=0, stop=[", 4"]) == "1, 2, 3"
        assert (await mesh.chat(QUESTION, max_tokens=2)).finish_reason == "length"


async def test_the_same_names_and_values_as_the_openai_sdk(founder: NodeProcess, token: str) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    with_usage = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    with openai.OpenAI(base_url=f"{founder.base_url}/v1", api_key="unused", max_retries=0) as theirs:
        answer = theirs.chat.completions.create(**asked)
        chunks = list(theirs.chat.completions.create(**with_usage))
        listed = theirs.models.list().data
    async with joined(token) as mesh:
        mine = await mesh.chat.completions.create(**asked)
        my_chunks = [chunk async for chunk in await mesh.chat.completions.create(**with_usage)]
        my_models = await mesh.models.list()
    assert mine.usage is not None and answer.usage is not None
    for same in ("object", "model"):
        assert getattr(mine, same) == getattr(answer, same)
    for same in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(mine.usage, same) == getattr(answer.usage, same)
    assert mine.choices[0].message.content == answer.choices[0].message.content == COUNT
    assert mine.choices[0].finish_reason == answer.choices[0].finish_reason
    texts = [[choice.delta.content for chunk in found for choice in chunk.choices] for found in (my_chunks, chunks)]
    assert texts[0] == texts[1]
    assert my_chunks[-1].usage is not None and my_chunks[-1].choices == ()
    assert [model.id for model in my_models.data] == [model.id for model in listed]


async def test_two_clients_stream_side_by_side(token: str) -> None:
    async with joined(token) as one, joined(token) as two:
        answers = await asyncio.gather(*(mesh.chat(QUESTION, temperature=0)._whole() for mesh in (one, two, one, two)))
    assert answers == [COUNT] * 4


async def test_refusals(founder: NodeProcess, token: str) -> None:
    made = json.loads(founder.command("invite", "--ttl", "1s", "--json").stdout)
    await until(lambda: time.time() > made["expires_at"])
    with pytest.raises(InviteInvalid, match="expired"):
        await meshnode.Client.join(made["token"]).__aenter__()
    async with joined(token) as mesh:
        with pytest.raises(BadRequest, match="exceeds"):
            await mesh.chat("x " * 2000, model="demo")
        with pytest.raises(BadRequest, match="embedding"):
            await mesh.embeddings.create(model="demo", input="x")


# --- leaving early --------------------------------------------------------------------------------------------


@pytest.mark.alone
async def test_a_loop_that_is_left_frees_the_slot(patient: NodeProcess) -> None:
    async with joined(invite_for(patient, 1)) as mesh:
        for _ in range(3):
            reply = mesh.chat(LONG_QUESTION, **ENDLESS)
            async for _piece in reply:
                await until(lambda: busy(patient) == 1)
                break
            left_at = time.monotonic()
            await until(lambda: busy(patient) == 0)
            assert time.monotonic() - left_at < 1
        stream = await mesh.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": LONG_QUESTION}], stream=True, **ENDLESS
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                async for _chunk in stream:
                    pass
        left_at = time.monotonic()
        await until(lambda: busy(patient) == 0)
        assert time.monotonic() - left_at < 1


@pytest.mark.alone
async def test_a_client_that_ends_takes_its_answers_along(patient: NodeProcess) -> None:
    async with joined(invite_for(patient, 1)) as mesh:
        pieces = aiter(mesh.chat(LONG_QUESTION, **ENDLESS))
        await anext(pieces)
    left_at = time.monotonic()
    await until(lambda: busy(patient) == 0)
    assert time.monotonic() - left_at < 1


async def test_a_slow_reader_slows_the_model_down(patient: NodeProcess) -> None:
    """What waits for a program that looks away is bounded, on both machines."""
    async with joined(invite_for(patient, 1)) as mesh:
        stream = await mesh.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": LONG_QUESTION}], stream=True, **ENDLESS
        )
        exchange = stream._exchange
        await until(lambda: exchange._waiting_bytes > 256 << 10, within_s=30)
        full = exchange._waiting_bytes
        await asyncio.sleep(0.5)
        assert exchange._waiting_bytes == full, "nothing more is taken in"
        await stream.close()
        await until(lambda: busy(patient) == 0)


# --- conversations --------------------------------------------------------------------------------------------


async def test_a_conversation_outgrows_the_context_and_goes_on(token: str) -> None:
    async with joined(token) as mesh:
        talk = mesh.conversation(model="demo", system="You count.", max_tokens=200, temperature=0)
        sizes = []
        for turn in range(16):
            first = 1 + turn % 3
            reply = talk.say(f"count from {first} to 20")
            assert await reply == ", ".join(str(number) for number in range(first, 21))
            assert reply.usage is not None
            sizes.append(reply.usage.prompt_tokens)
        assert talk.dropped > 0 and talk.messages[0] == {"role": "system", "content": "You count."}
        assert 600 < max(sizes) <= 1024 - 200
        question = {"role": "user", "content": "count from 3 to 20"}
        estimate = await talk._counts.prompt("demo", "You count.", [*talk.messages[1:], question])
        answer = await talk._chat.completions.create(model="demo", messages=[*talk.messages, question], max_tokens=1)
        assert answer.usage is not None
        over = estimate - answer.usage.prompt_tokens
        assert 0 <= over <= SLACK_TOKENS + len(talk.messages), f"{over} tokens too many"


# --- failover -------------------------------------------------------------------------------------------------


async def test_an_answer_outlives_the_node_that_gives_it(
    founder: NodeProcess, token: str, start_node: StartNode
) -> None:
    replica = start_node("--join", token, "--model", "demo", environment=SMALL)
    await asyncio.to_thread(until_hosts, founder, {"demo": 2})
    name = replica.status()["node"]["short"]
    asked: dict[str, Any] = {"model": "demo", "temperature": 0}
    async with joined(token) as mesh:
        await until_both(mesh)
        expected = await mesh.chat("count from 1 to 200", **asked)
        for _ in range(20):
            reply = mesh.chat("count from 1 to 200", **asked)
            async for _piece in reply:
                if reply.node == name and replica.process.poll() is None:
                    replica.process.kill()
                elif reply.node != name:
                    break
            if replica.process.poll() is not None:
                break
        assert reply.node == name, "the router never chose the replica"
        assert reply.text == expected and reply.finish_reason == "stop"
        assert reply.resumed == 1
        assert (await mesh.chat(QUESTION, **asked)) == COUNT, "and the next question finds the other node"


async def until_both(mesh: meshnode.Client) -> None:
    async with asyncio.timeout(10):
        while len((await mesh.models.retrieve("demo")).nodes) < 2:
            await asyncio.sleep(0.01)


# --- the documentation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_the_programs_of_the_documentation_run_as_they_stand(number: int, token: str) -> None:
    environment = {**os.environ, "MESHNODE_INVITE": token}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAMS[number]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = {0: COUNT, 1: "stop", 2: "5 messages", 3: COUNT, 4: "did you mean demo?", 5: "back in"}[number]
    assert said in done.stdout, done.stdout
