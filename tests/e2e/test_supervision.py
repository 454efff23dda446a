"""Engines that die and models that come and go: what callers and onlookers see, and that the node goes on."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anthropic
import openai
import psutil
import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e.small_models import copy_demo, long_model
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

QUESTION: Any = [{"role": "user", "content": "count from 1 to 200"}]
ENDLESS: dict[str, Any] = {"messages": QUESTION, "max_tokens": 30_000, "extra_body": {"ignore_eos": True}}


def client_of(node: NodeProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="unused", max_retries=0)


def answers(node: NodeProcess, model: str = "demo") -> bool:
    """Whether the next ordinary request works."""
    with client_of(node) as client:
        try:
            return bool(client.chat.completions.create(model=model, messages=QUESTION, max_tokens=2).usage)
        except openai.APIStatusError as error:
            assert error.status_code == 503 and error.response.headers["retry-after"]
            return False


def entry_of(node: NodeProcess, model: str) -> dict[str, Any]:
    return next((entry for entry in node.status()["models"] if entry["id"] == model), {})


def problems(node: NodeProcess) -> list[str]:
    return [problem["code"] for problem in node.status()["problems"]]


def kill_engine(node: NodeProcess, model: str) -> None:
    """End llama-server the hard way once it is ready."""
    engine = eventually(lambda: (entry := entry_of(node, model))["state"] == "ready" and entry["engine"])
    os.kill(engine["pid"], signal.SIGKILL)
    eventually(lambda: entry_of(node, model)["engine"]["pid"] != engine["pid"])


@contextmanager
def in_background(work: Any) -> Iterator[list[Any]]:
    """Run `work` in a thread for the length of the block; the list gets its result or its exception at the end."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        thread.join(30)


# --- crashes --------------------------------------------------------------------------------------------------


def test_engine_that_dies_is_restarted(start_node: StartNode, small_models: Path) -> None:
    """What was asked of it goes on in the next one (test_rebuilt_engines.py looks at the texts)."""
    node = start_node("--model", str(small_models / "long.gguf"), "--parallel", "2")
    name = "file:long"
    with client_of(node) as client:
        plain = lambda: client.chat.completions.create(model=name, **{**ENDLESS, "max_tokens": 2000})  # noqa: E731
        with (
            in_background(plain) as found,
            client.chat.completions.create(model=name, **ENDLESS, stream=True) as stream,
        ):
            pieces = iter(stream)
            assert next(pieces)
            eventually(lambda: entry_of(node, name)["busy"] == 2)
            kill_engine(node, name)
            for _ in range(200):  # more than what was under way
                assert next(pieces)
        (answer,) = found
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2000
    eventually(lambda: answers(node, name))
    assert entry_of(node, name)["engine"]["restarts"] == 1
    eventually(lambda: problems(node) == [])
    assert entry_of(node, name)["busy"] == 0


def test_streams_of_an_engine_that_does_not_come_back_end_in_an_error(start_node: StartNode, tmp_path: Path) -> None:
    model = long_model(tmp_path / "long.gguf")
    node = start_node("--model", str(model), "--parallel", "2")
    with (
        client_of(node) as client,
        anthropic.Anthropic(base_url=node.base_url, api_key="unused", max_retries=0) as other,
    ):
        stream = iter(client.chat.completions.create(model="long", **ENDLESS, stream=True))
        messages = iter(
            other.messages.create(
                model="long", max_tokens=30_000, messages=QUESTION, stream=True, extra_body={"ignore_eos": True}
            )
        )
        assert next(stream) and next(messages).type == "message_start"
        model.unlink()
        os.kill(entry_of(node, "file:long")["engine"]["pid"], signal.SIGKILL)
        with pytest.raises(openai.APIError) as cut:
            list(stream)
        assert "engine" in cut.value.message and not isinstance(cut.value, openai.APIConnectionError)
        with pytest.raises(anthropic.APIStatusError) as failure:
            list(messages)
        assert "api_error" in str(failure.value)
    outcomes = [entry["outcome"] for entry in node.status()["requests"]["recent"][:2]]
    assert outcomes == ["failed", "failed"]


def test_crash_loop_ends_in_a_problem_and_can_be_mended(start_node: StartNode) -> None:
    node = start_node("--model", "demo")
    seen = set()
    for _ in range(3):
        kill_engine(node, "demo")
        seen |= set(problems(node))
        eventually(lambda: answers(node))
    assert seen == {"engine-restarting"} and problems(node) == []
    kill_engine(node, "demo")
    eventually(lambda: problems(node) == ["engine-crash-loop"])
    assert entry_of(node, "demo")["state"] == "failed"
    with client_of(node) as client, pytest.raises(openai.InternalServerError) as refusal:
        client.chat.completions.create(model="demo", messages=QUESTION)
    assert refusal.value.status_code == 503 and "stopped 4 times in a row" in refusal.value.message
    told = node.command("status").stdout
    assert "The engine keeps crashing" in told and "meshnode load demo" in told
    assert node.command("doctor").returncode == 7
    # What the Problem advises mends it.
    assert node.command("load", "demo").returncode == 0
    assert answers(node) and problems(node) == []
    node.end()
    assert node.process.returncode == 0


def test_model_that_is_gone_when_the_engine_restarts(start_node: StartNode, tmp_path: Path) -> None:
    model = copy_demo(tmp_path / "gone.gguf")
    node = start_node("--model", str(model), "--model", "demo")
    model.unlink()
    (pid,) = [entry["engine"]["pid"] for entry in node.status()["models"] if entry["id"] == "file:gone"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: problems(node) == ["model-load-failed"])
    assert entry_of(node, "file:gone")["state"] == "failed"
    assert answers(node, "demo")


def test_engine_killed_while_it_loads(start_node: StartNode, small_models: Path) -> None:
    node = start_node("--model", str(small_models / "long.gguf"), "--parallel", "1", wait=False)

    def engines() -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(node.process.pid).children(recursive=True)
            return [child for child in children if "--alias" in child.cmdline()]
        return []

    (engine,) = eventually(engines)
    engine.kill()
    told, _ = node.process.communicate(timeout=20)
    assert node.process.returncode == 4
    error = json.loads(told)["error"]
    assert error["code"] == "model-does-not-fit" and "the system ended the engine while loading" in error["message"]


# --- several models -------------------------------------------------------------------------------------------


def test_models_come_and_go_while_others_serve(start_node: StartNode, small_models: Path) -> None:
    node = start_node("--model", "demo", "--parallel", "2")
    long = str(small_models / "long.gguf")
    assert node.command("load", long).returncode == 0
    assert answers(node) and answers(node, "long")
    again = node.command("load", long)
    assert again.returncode == 4 and "file:long is ready here" in again.stderr
    with client_of(node) as client:
        asked: dict[str, Any] = {"messages": QUESTION, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
        stream = client.chat.completions.create(model="long", **asked, stream=True)
        pieces = iter(stream)
        assert next(pieces)
        with in_background(lambda: node.command("unload", "long")) as found:
            eventually(lambda: not entry_of(node, "file:long"))
            # Nobody new is let in, and who was in is answered to the end.
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="long", messages=QUESTION)
            reasons = [chunk.choices[0].finish_reason for chunk in pieces if chunk.choices]
            assert reasons[-1] == "length"
        assert found[0].returncode == 0
    assert answers(node)
    assert node.command("unload", "long").returncode == 4
    assert [entry["id"] for entry in node.status()["models"]] == ["demo"]


def test_node_without_models_serves_what_is_loaded_later(start_node: StartNode) -> None:
    node = start_node()
    assert node.status()["ready"] is False
    with client_of(node) as client, pytest.raises(openai.InternalServerError, match="meshnode load") as refusal:
        client.chat.completions.create(model="demo", messages=QUESTION)
    assert refusal.value.status_code == 503
    loaded = node.command("load", "demo", "--json")
    assert loaded.returncode == 0 and '"state": "ready"' in loaded.stdout
    assert answers(node)
    missing = node.command("load", "demp")
    assert missing.returncode == 4 and "demo" in missing.stderr


def test_one_bad_model_does_not_keep_the_others_from_serving(start_node: StartNode, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF, or is it")
    node = start_node("--model", "demo", "--model", str(bad))
    assert answers(node)
    assert problems(node) == ["model-load-failed"]
    with client_of(node) as client, pytest.raises(openai.InternalServerError) as refusal:
        client.chat.completions.create(model="file:bad", messages=QUESTION)
    assert refusal.value.status_code == 503 and "cannot be read" in refusal.value.message
    assert node.command("unload", "file:bad").returncode == 0
    assert problems(node) == []


def test_model_on_its_way_out_cannot_be_loaded_anew(start_node: StartNode, small_models: Path) -> None:
    long = str(small_models / "long.gguf")
    node = start_node("--model", long, "--parallel", "1")
    with ExitStack() as stack, streaming(node, 30_000):
        found = stack.enter_context(in_background(lambda: node.command("unload", "long")))
        eventually(lambda: not entry_of(node, "file:long"))
        refused = node.command("load", long)
        assert refused.returncode == 4 and "still being unloaded" in refused.stderr
    assert found[0].returncode == 0
    assert node.command("load", long).returncode == 0
    assert answers(node, "long")


# --- stopping -------------------------------------------------------------------------------------------------


@contextmanager
def streaming(node: NodeProcess, tokens: int) -> Iterator[Iterator[Any]]:
    with client_of(node) as client:
        asked: dict[str, Any] = {"messages": QUESTION, "max_tokens": tokens, "extra_body": {"ignore_eos": True}}
        with client.chat.completions.create(model="long", **asked, stream=True) as stream:
            pieces = iter(stream)
            assert next(pieces)
            yield pieces


@pytest.mark.parametrize("how", ["signal", "command"])
def test_stop_lets_a_stream_finish(how: str, start_node: StartNode, small_models: Path) -> None:
    node = start_node("--model", str(small_models / "long.gguf"), "--parallel", "1")
    (pid,) = node.engine_pids()
    with streaming(node, 400) as pieces:
        if how == "signal":
            node.process.send_signal(signal.SIGINT)
            eventually(lambda: node.status()["state"] == "stopping")
            with pytest.raises((openai.APIConnectionError, openai.InternalServerError)), client_of(node) as late:
                late.chat.completions.create(model="long", messages=QUESTION)
            reasons = [chunk.choices[0].finish_reason for chunk in pieces if chunk.choices]
        else:
            with in_background(lambda: node.command("stop")) as found:
                reasons = [chunk.choices[0].finish_reason for chunk in pieces if chunk.choices]
            assert found[0].returncode == 0 and "has stopped" in found[0].stderr
            assert node.process.poll() is not None or node.process.wait(2) == 0
    assert reasons[-1] == "length" and len(reasons) > 300
    node.process.wait(10)
    assert node.process.returncode == 0
    assert not psutil.pid_exists(pid)


def test_second_ctrl_c_cuts_a_stream(start_node: StartNode, small_models: Path) -> None:
    node = start_node("--model", str(small_models / "long.gguf"), "--parallel", "1")
    (pid,) = node.engine_pids()
    with streaming(node, 30_000) as pieces:
        node.process.send_signal(signal.SIGINT)
        eventually(lambda: node.status()["state"] == "stopping")
        assert next(pieces)
        node.process.send_signal(signal.SIGINT)
        node.process.wait(3)
        with pytest.raises(openai.APIConnectionError):
            list(pieces)
    assert node.process.returncode == 0
    assert not psutil.pid_exists(pid)


def test_stop_now(start_node: StartNode, small_models: Path) -> None:
    node = start_node("--model", str(small_models / "long.gguf"), "--parallel", "1")
    with streaming(node, 30_000):
        assert node.command("stop", "--now", timeout_s=10).returncode == 0
    assert node.process.wait(2) == 0


def test_killed_node_leaves_nothing_and_its_home_can_be_used_again(start_node: StartNode, small_models: Path) -> None:
    node = start_node("--model", str(small_models / "long.gguf"), "--model", "demo", "--parallel", "1")
    pids = node.engine_pids()
    with streaming(node, 30_000):
        node.process.kill()
        node.process.wait()
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), within_s=5)
    assert node.command("ps").returncode == 3
    following = NodeProcess("--json", "--port", "0", "--console", "0", "--model", "demo", home=node.home).wait_ready()
    try:
        assert answers(following)
    finally:
        following.end()
    assert following.process.returncode == 0
