"""A mesh on machines of its own: three hosts on a switch, nodes started as the README says, the official client.

Each host has its own ports, loopback and address, so that the nodes run with their default settings. Two of them serve
a model each; the third is a client-only node. Then both serve both, and one of them is killed, paused or cut off while
answers run; every answer arrives whole, and afterwards the mesh is one again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import openai
import pytest

from bench.counting import LIMIT_S, Heard, Streams, Take, question
from tests.conftest import NodeProcess
from tests.e2e.meshes import SMALL, hosts_of, invite_of, mesh_of, until_hosts
from tests.e2e.waiting import eventually
from tests.lab.namespaces import Network, why_not, why_not_lossy

pytestmark = [pytest.mark.engine, pytest.mark.skipif(bool(why_not()), reason=why_not())]

Value = TypeVar("Value")

BY_DEFAULT = {"MESHNODE_BIND_HOST": "::", "MESHNODE_BIND_PORT": "9337", "MESHNODE_LAN": "auto"}
MODELS = ("demo", "file:long")
STREAMS = 4
LAST = 200
ATTEMPTS = 5


class Host:
    """A machine with one node. Whatever is asked of the node is asked from inside that machine."""

    def __init__(self, network: Network, name: str, home: Path) -> None:
        self._network = network
        self._home = home
        self.name = name
        self.node: NodeProcess | None = None

    def start(self, *arguments: str) -> None:
        """`meshnode ARGUMENTS`, on the default ports; returns when it is ready."""
        environment = {**BY_DEFAULT, **SMALL, "MESHNODE_PARALLEL": "8", "MESHNODE_DRAIN_TIMEOUT": "2"}
        with self._network.inside(self.name):
            self.node = NodeProcess("--json", *arguments, home=self._home, environment=environment).wait_ready()

    def see(self, look: Callable[[NodeProcess], Value]) -> Value:
        """What `look` finds at the node."""
        assert self.node is not None
        with self._network.inside(self.name):
            return look(self.node)

    def signal(self, number: signal.Signals) -> None:
        """To the node alone, not to its engines."""
        assert self.node is not None
        self.node.process.send_signal(number)

    def streams(self, last: int = LAST) -> Streams:
        """Answers to the official client on this machine, from both models at once."""

        def listen(heard: Heard, take: Take) -> None:
            self.see(lambda node: ask_openai(node, heard, take))

        return Streams(listen, [(model, last) for model in MODELS for _ in range(STREAMS)])

    def until_hosts(self, count: int, within_s: float = 20) -> None:
        """Until the node knows that many hosts for both models."""
        self.see(lambda node: until_hosts(node, dict.fromkeys(MODELS, count), within_s))

    def peers(self) -> set[str]:
        """The states of the members that this one knows of."""
        return {peer["state"] for peer in self.see(mesh_of)["peers"] if peer["role"] == "member"}

    def end(self) -> None:
        """Also when it is paused."""
        if self.node is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            self.node.process.kill()
            self.node.process.communicate()


def ask_openai(node: NodeProcess, heard: Heard, take: Take) -> None:
    """One stream by the official client."""
    asked = question(heard.model, heard.last)
    with (
        openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="unused", max_retries=0, timeout=LIMIT_S) as client,
        client.chat.completions.create(**asked) as stream,
    ):
        heard.node = stream.response.headers["x-meshnode-node"]
        for chunk in stream:
            take(chunk.model_dump())
    heard.ended = True


@pytest.fixture(scope="module")
def second(small_models: Path) -> str:
    """The file of the second model."""
    return str(small_models / "long.gguf")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network("a", "b", "c") as built:
        yield built


@pytest.fixture(scope="module")
def hosts(
    network: Network, engine_bin: Path, second: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Host]]:
    """Three machines, started as in the README: one model each on a and b, and the client on c."""
    assert engine_bin.exists()
    folder = tmp_path_factory.mktemp("mesh")
    hosts = {name: Host(network, name, folder / name) for name in "abc"}
    try:
        hosts["a"].start("--model", "demo")
        token = hosts["a"].see(invite_of)
        hosts["b"].start("--join", token, "--model", second)
        hosts["c"].start("--join", token, "--client")
        hosts["c"].until_hosts(1)
        yield hosts
    finally:
        for host in hosts.values():
            host.end()


@pytest.fixture(scope="module")
def replicated(hosts: dict[str, Host], second: str) -> dict[str, Host]:
    """The same machines after each server was told to load the other's model too."""
    for name, model in (("a", second), ("b", "demo")):
        loaded = hosts[name].see(lambda node, model=model: node.command("load", model))
        assert loaded.returncode == 0, loaded.stderr
    hosts["c"].until_hosts(2)
    return hosts


Fault = Callable[[Network, Host, list[str]], AbstractContextManager[None]]


@contextmanager
def killed(_: Network, host: Host, models: list[str]) -> Iterator[None]:
    """The power goes; later the machine is started again, without an invite."""
    host.end()
    try:
        yield
    finally:
        host.start(*(flag for model in models for flag in ("--model", model)))


@contextmanager
def paused(_: Network, host: Host, __: list[str]) -> Iterator[None]:
    """The node stands still and says nothing; its engines go on."""
    host.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.signal(signal.SIGCONT)


@contextmanager
def cut_off(network: Network, host: Host, _: list[str]) -> Iterator[None]:
    """Packets to and from the machine vanish, until the others have given it up for dead."""
    network.split({host.name})
    try:
        yield
        eventually(lambda: host.peers() == {"dead"}, within_s=20)
        assert host.see(hosts_of) == dict.fromkeys(MODELS, 1), "alone it still answers for what it has"
    finally:
        network.heal()


def test_the_client_streams_from_both(hosts: dict[str, Host]) -> None:
    with hosts["c"].streams() as streams:
        pass
    assert streams.faults() == []


def test_each_node_lists_and_reaches_the_models_of_all(hosts: dict[str, Host]) -> None:
    def ask(node: NodeProcess) -> list[str]:
        with openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="unused", max_retries=0) as client:
            answers = [
                client.chat.completions.create(
                    model=model.id, messages=[{"role": "user", "content": "count from 1 to 3"}]
                )
                for model in client.models.list()
            ]
        return [f"{answer.model}: {answer.choices[0].message.content}" for answer in answers]

    for host in hosts.values():
        assert sorted(host.see(ask)) == [f"{model}: 1, 2, 3" for model in MODELS]


@pytest.mark.parametrize(("fault", "name"), [(killed, "a"), (paused, "b"), (cut_off, "b")])
def test_answers_arrive_whole(
    fault: Fault, name: str, network: Network, replicated: dict[str, Host], second: str
) -> None:
    """`a` founded the mesh and gave out the invites; that must not matter."""
    client = replicated["c"]
    client.until_hosts(2, within_s=40)
    eventually(lambda: both_answer(client), within_s=40)  # they are warm now: the long answers begin together
    for _ in range(ATTEMPTS):
        with client.streams() as streams:
            streams.until_all_run()
            with fault(network, replicated[name], ["demo", second]):
                streams.wait()
                assert streams.faults() == []
                recent = client.see(NodeProcess.status)["requests"]["recent"]
                resumed = sum(entry["resumed"] for entry in recent[-len(streams.heard) :])
                client.until_hosts(1)
                with client.streams(10) as meanwhile:
                    pass
                assert meanwhile.faults() == []
        client.until_hosts(2, within_s=40)
        with client.streams(10) as afterwards:
            pass
        assert afterwards.faults() == []
        eventually(lambda: busy(replicated) == 0)
        if resumed:
            return
    pytest.fail(f"each time all answers of {name} had left it before the fault")


@pytest.mark.skipif(bool(why_not_lossy()), reason=why_not_lossy())
def test_answers_arrive_whole_over_a_bad_line(network: Network, hosts: dict[str, Host]) -> None:
    """Every tenth packet is lost, in both directions."""
    client = hosts["c"]
    network.lose(10)
    try:
        with client.streams(50) as streams:
            pass
    finally:
        network.lose(0)
    assert streams.faults() == []


def both_answer(client: Host) -> bool:
    """Ask short questions: whether both hosts of both models answered some. One that has failed rests for a while."""
    with client.streams(10) as streams:
        pass
    assert streams.faults() == []
    recent = client.see(NodeProcess.status)["requests"]["recent"][-2 * STREAMS :]
    return len({(entry["model"], entry["where"]) for entry in recent}) == 2 * len(MODELS)


def busy(hosts: dict[str, Host]) -> int:
    """Slots in use on both machines: an answer that nobody waits for any more must not hold one."""
    return sum(model["busy"] for name in "ab" for model in hosts[name].see(NodeProcess.status)["models"])
