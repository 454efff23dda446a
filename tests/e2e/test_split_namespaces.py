"""Machines of their own, 20 ms from each other: a model that fits on none of four is streamed to a fifth.

The nodes are started as the README says, with their default settings but for the memory that they may use. The plan is
explained, the model comes up without its weights crossing a line, the client-only node streams, a worker is killed in
the middle of an answer, and the answer arrives whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from bench.counting import LIMIT_S, Heard, Streams, Take, question
from bench.line import LineShape
from bench.place import Place
from tests.conftest import NodeProcess
from tests.e2e.meshes import until_hosts
from tests.e2e.split_nodes import SplitMesh, decision_of, heavy_model
from tests.e2e.waiting import eventually
from tests.lab.far_network import why_not

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.skipif(bool(why_not()), reason=why_not())]

FAR = LineShape(delay_s=0.02)
NAME = "file:heavy"
WORKERS = ("one", "two", "three")
LAST = 40
SOON_S = 10.0
WIRE_BYTES = 4_000_000
"""What five nodes say to each other while the model loads; its weights would be twenty times as much."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Place(["host", *WORKERS, "client"], FAR) as built:
        yield built


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every machine has on its disk."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(models: Path) -> str:
    return heavy_model(models)


@pytest.fixture(scope="module")
def mesh(
    place: Place, engine_bin: Path, models: Path, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SplitMesh]:
    """Four nodes that serve nothing yet, and the client."""
    assert engine_bin.exists()
    built = SplitMesh(place, tmp_path_factory.mktemp("split"), models)
    try:
        for name in ("host", *WORKERS):
            built.start(name)
        built.start("client", "--client")
        yield built
    finally:
        built.end()


def streams(mesh: SplitMesh, last: int) -> Streams:
    """One answer to the official client on the machine of the client."""

    def listen(heard: Heard, take: Take) -> None:
        mesh.at("client", lambda node: ask_openai(node, heard, take))

    return Streams(listen, [(NAME, last)])


def ask_openai(node: NodeProcess, heard: Heard, take: Take) -> None:
    """By the official client, until the stream ends."""
    with (
        openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="unused", max_retries=0, timeout=LIMIT_S) as client,
        client.chat.completions.create(**question(heard.model, heard.last)) as stream,
    ):
        for chunk in stream:
            take(chunk.model_dump())
    heard.ended = True


@pytest.mark.alone
def test_the_plan_is_explained_first(mesh: SplitMesh, model: str) -> None:
    def planned() -> str:
        status, words = mesh.command("host", "plan", model)
        return words if status == 0 and all(name in words for name in WORKERS) else ""

    words = eventually(planned, within_s=30)
    assert "ms" in words and "tokens/s" in words
    _, output = mesh.command("host", "plan", model, "--json")
    decision = decision_of(output)
    assert decision["solo"] is None and decision["split"]["stages"]
    rtts = {each["name"]: each["rtt_s"] for each in decision["candidates"] if each["name"] in WORKERS}
    assert all(0.04 <= rtt_s < 0.06 for rtt_s in rtts.values()), rtts


def test_it_is_loaded_without_its_weights_and_streamed_to_the_client(mesh: SplitMesh, place: Place, model: str) -> None:
    before = place.carried_bytes()
    status, words = mesh.command("host", "load", model)
    assert status == 0, words
    assert place.carried_bytes() - before < WIRE_BYTES
    assert len(mesh.workers()) >= 2
    mesh.at("client", lambda node: until_hosts(node, {NAME: 1}))
    with streams(mesh, 30) as heard:
        pass
    assert heard.faults() == []


def test_a_worker_is_killed_and_the_answer_completes(mesh: SplitMesh) -> None:
    lost = mesh.workers()[0]
    with streams(mesh, LAST) as answers:
        (heard,) = answers.until_all_run()
        eventually(lambda: len(heard.pieces) > 10, within_s=20)
        killed_at = time.monotonic()
        mesh.kill(lost)
    assert answers.faults() == []
    assert heard.gap_s(killed_at) < SOON_S
    assert lost not in mesh.workers()
    with streams(mesh, 10) as afterwards:
        pass
    assert afterwards.faults() == []


def test_two_workers_are_not_enough_to_lose(mesh: SplitMesh) -> None:
    """The survivors hold the model still; when one more goes, the model waits, and comes back with the machine."""
    lost = mesh.workers()[0]
    mesh.kill(lost)
    eventually(lambda: mesh.entry()["state"] != "ready", within_s=30)
    mesh.start(lost)
    eventually(lambda: lost in mesh.workers(), within_s=40)
    mesh.at("client", lambda node: until_hosts(node, {NAME: 1}))
    with streams(mesh, 10) as afterwards:
        pass
    assert afterwards.faults() == []
