"""A model that fits on none of its machines, on loopback: planned, loaded without its weights crossing, and kept going.

Each node has so little memory that it takes two workers to hold the layers. The model counts, so an answer that lost,
repeated or changed a token shows; texts are also compared with those of one large machine.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from bench.counting import counted
from bench.place import Place
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import until_hosts
from tests.e2e.split_nodes import SETTINGS, SplitMesh, decision_of, heavy_model
from tests.e2e.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

NAME = "file:heavy"
WORKERS = ("one", "two", "three")
LAST = 60
STRUCK_AFTER = 20
SOON_S = 8.0
"""A lost worker costs about two seconds; on a machine that runs other tests beside it, more."""
WEIGHTS_BYTES = 180_000_000
PROMPTS = ("count from 1 to 12", "what is 4 plus 5?", "who are you?")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every machine has on its disk."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(models: Path) -> str:
    return heavy_model(models)


@pytest.fixture(scope="module")
def mesh(engine_bin: Path, model: str, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SplitMesh]:
    """A host that wants the model, three workers of which it needs two, and a client-only node."""
    assert engine_bin.exists()
    with Place(["host", *WORKERS, "client"]) as place:
        built = SplitMesh(place, tmp_path_factory.mktemp("split"), models)
        try:
            for name in WORKERS:
                built.start(name)
            built.start("host", "--model", model)
            built.start("client", "--client")
            yield built
        finally:
            built.end()


@pytest.fixture
def whole(mesh: SplitMesh, model: str) -> SplitMesh:
    """The mesh with two workers at work and a spare one, whatever befell it before."""
    for name in WORKERS:
        if name not in mesh.nodes:
            mesh.start(name)
    mesh.until_split(2)
    mesh.until_known(model, WORKERS)
    mesh.at("client", lambda node: until_hosts(node, {NAME: 1}))
    return mesh


def ask(node: NodeProcess, prompt: str, **more: object) -> str:
    """One answer as it is, at temperature 0."""
    import urllib.request

    body = {"model": NAME, "messages": [{"role": "user", "content": prompt}], "temperature": 0, **more}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{node.base_url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


# --- a plan, and the model that comes of it -------------------------------------------------------------------------


def test_a_plan_is_explained_before_anything_is_loaded(mesh: SplitMesh, model: str) -> None:
    status, words = mesh.command("host", "plan", model)
    assert status == 0, words
    assert all(name in words for name in (*WORKERS, "split", "tokens/s"))
    status, output = mesh.command("host", "plan", model, "--json")
    decision = decision_of(output)
    assert status == 0 and decision["solo"] is None
    plan = decision["split"]
    assert plan["host_layers"] + sum(stage["layers"] for stage in plan["stages"]) == 12
    assert all(stage["weights_bytes"] < WEIGHTS_BYTES for stage in plan["stages"])
    verdicts = {candidate["name"]: candidate["verdict"] for candidate in decision["candidates"]}
    assert set(verdicts) == {"host", *WORKERS}, "a client takes no part"
    assert sorted(verdicts.values()) == ["host", "spare", "worker", "worker"]
    assert all(candidate["reason"] for candidate in decision["candidates"])


def test_no_weights_cross_the_wire(whole: SplitMesh) -> None:
    (one, two) = whole.entry()["split"]["tunnels"]
    assert one["references"] > 10 and two["references"] > 10
    assert one["bytes_up"] + two["bytes_up"] < 1_000_000 and one["expanded"] == two["expanded"] == 0


def test_a_client_hears_what_one_machine_would_say(whole: SplitMesh, start_node: StartNode, model: str) -> None:
    alone = start_node("--solo", "--model", model, environment={**SETTINGS, "MESHNODE_MAX_VRAM": "8GB"})
    expected = [ask(alone, prompt) for prompt in PROMPTS]
    assert expected[0] == counted(12)
    for name in ("host", "client"):
        assert [whole.at(name, partial(ask, prompt=prompt)) for prompt in PROMPTS] == expected


def test_requests_go_to_the_host_alone(whole: SplitMesh) -> None:
    with whole.streams("client", NAME, 10, count=3) as streams:
        pass
    assert streams.faults() == []
    host = whole.at("host", NodeProcess.status)["node"]["id"]
    assert {heard.node for heard in streams.heard} <= {host, host[:10]}
    for name in WORKERS:
        models = whole.at(name, NodeProcess.status)["models"]
        assert [model for model in models if model["where"] == "here"] == [], "a worker serves nothing itself"


# --- losses ---------------------------------------------------------------------------------------------------------


def rpc_server_dies(mesh: SplitMesh, name: str) -> None:
    mesh.rpc_server(name).kill()


def rpc_server_stands_still(mesh: SplitMesh, name: str) -> None:
    mesh.rpc_server(name).send_signal(signal.SIGSTOP)


def node_dies(mesh: SplitMesh, name: str) -> None:
    mesh.kill(name)


def node_stands_still(mesh: SplitMesh, name: str) -> None:
    mesh.nodes[name].process.send_signal(signal.SIGSTOP)


Fault = Callable[[SplitMesh, str], None]


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        (rpc_server_dies, 0),
        (rpc_server_stands_still, 1),
        (node_dies, 0),
        (node_dies, 1),
        (node_stands_still, 0),
    ],
)
def test_an_answer_survives_its_worker(whole: SplitMesh, fault: Fault, stage: int) -> None:
    """The answer goes on with the spare one, and says nothing else than it would have said."""
    lost = whole.workers()[stage]
    try:
        with whole.streams("client", NAME, LAST) as streams:
            (heard,) = streams.until_all_run()
            eventually(lambda: len(heard.pieces) > STRUCK_AFTER)
            struck_at = time.monotonic()
            fault(whole, lost)
        assert streams.faults() == []
        assert heard.resumed and heard.gap_s(struck_at) < SOON_S
        assert set(whole.workers()) == set(WORKERS) - {lost}
    finally:
        if lost in whole.nodes:
            whole.kill(lost)


def test_a_worker_that_leaves_is_replaced_first(whole: SplitMesh) -> None:
    """It is told to stop in the middle of an answer, and goes when the answer no longer needs it."""
    leaving = whole.workers()[0]
    with whole.streams("client", NAME, LAST) as streams:
        streams.until_all_run()
        whole.nodes[leaving].process.send_signal(signal.SIGTERM)
    assert streams.faults() == []
    assert whole.nodes[leaving].process.wait(timeout=30) == 0
    whole.kill(leaving)
    assert set(whole.workers()) == set(WORKERS) - {leaving}


@pytest.mark.alone
def test_without_machines_it_waits_for_one(whole: SplitMesh) -> None:
    """Two of three workers go: the model is not given up, and a caller hears words. When one is back it is too."""
    gone = whole.workers()
    for name in gone:
        whole.kill(name)
    eventually(lambda: whole.entry()["state"] != "ready", within_s=20)
    eventually(lambda: "machines" in whole.entry()["detail"], within_s=20)
    assert psutil.pid_exists(whole.nodes["host"].process.pid)
    whole.start(gone[0])
    assert whole.until_split(2)
    with whole.streams("host", NAME, 10) as streams:
        pass
    assert streams.faults() == []


# --- workers that do not take part ------------------------------------------------------------------------------------


def test_a_node_that_lends_nothing_is_left_out_and_the_plan_says_so(whole: SplitMesh, model: str) -> None:
    whole.start("miser", "--no-lend")
    try:

        def verdict() -> dict[str, str]:
            candidates = whole.decision(model)["candidates"]
            return next((each for each in candidates if each["name"] == "miser" and each["memory_bytes"]), {})

        found = eventually(verdict, within_s=20)
        assert found["verdict"] == "rejected" and "lends nothing" in found["reason"]
        assert "miser" not in whole.workers()
    finally:
        whole.kill("miser")


def test_a_plan_that_cannot_be_made_is_refused_in_words(start_node: StartNode, model: str) -> None:
    node = start_node(environment=SETTINGS)
    done = node.command("plan", model)
    assert "does not fit" in done.stdout + done.stderr or "short" in done.stdout + done.stderr
    assert node.status()["models"] == []
