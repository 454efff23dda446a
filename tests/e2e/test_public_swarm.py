"""The public swarm as the README has it, on seven machines of network namespaces.

    net       the internet between the sites
    one       a Nostr relay, and A: publishes the demo
    two       another Nostr relay (an independent implementation would do as well), and R: publishes, and carries flows
    b         a home router with symmetric NAT, and behind it B: --auto, serves the demo
    c         a home router, port restricted, and behind it C: --client --auto

C streams an answer of B, first through a relay and then directly; A dies and the mesh stays listed; and with every
Nostr relay down a node comes back by the members that it remembers.
"""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conftest import NodeProcess
from tests.e2e.waiting import eventually
from tests.lab.nat_lab import NatLab, why_not
from tests.lab.nostr_relay import relay

pytestmark = [pytest.mark.engine, pytest.mark.skipif(bool(why_not()), reason=why_not())]

Value = TypeVar("Value")

SITES = {"one": "open", "two": "open", "b": "symmetric", "c": "port_restricted"}
RELAY_PORT = 7777
BY_DEFAULT = {
    "MESHNODE_BIND_HOST": "::",
    "MESHNODE_BIND_PORT": "9337",
    "MESHNODE_PUBLIC_PORT": "9338",
    "MESHNODE_LAN": "off",
    "MESHNODE_PORT_MAP": "auto",
    "MESHNODE_PARALLEL": "4",
    "MESHNODE_DRAIN_TIMEOUT": "2",
}


class Machine:
    """A site with one node. Whatever is asked of the node is asked from inside the site."""

    def __init__(self, lab: NatLab, site: str, home: Path, relays: list[str]) -> None:
        self._lab = lab
        self._site = site
        self._home = home
        self._relays = relays
        self.node: NodeProcess | None = None

    def start(self, *arguments: str) -> None:
        """`meshnode ARGUMENTS`, with the two relays as those of the settings; returns when it is ready."""
        environment = {**BY_DEFAULT, "MESHNODE_NOSTR_RELAY": ",".join(self._relays)}
        with self._lab.inside(self._site):
            started = NodeProcess("--json", *arguments, home=self._home, environment=environment)
            self.node = started.wait_ready()

    def see(self, look: Callable[[NodeProcess], Value]) -> Value:
        """What `look` finds at the node."""
        assert self.node is not None
        with self._lab.inside(self._site):
            return look(self.node)

    def swarm(self) -> dict[str, Any]:
        """The swarm as the node shows it."""
        found: dict[str, Any] = self.see(lambda node: node.status())["swarm"]
        return found

    def others(self) -> set[str]:
        """Names of the members that it sees alive."""
        return {peer["name"] for peer in self.swarm()["peers"] if peer["state"] == "alive" and peer["reachable"]}

    def path_to(self, name: str) -> str | None:
        """By which path the member of this name is linked."""
        return next((peer["path"] for peer in self.swarm()["peers"] if peer["name"] == name), None)

    def kill(self) -> None:
        """As a power cut."""
        if self.node is not None:
            self.node.process.send_signal(signal.SIGKILL)
            self.node.process.communicate()
            self.node = None

    def ask(self, last: int, *, node: str = "", radius: str = "public") -> tuple[str, dict[str, str]]:
        """Count to `last` as a stream, and the headers of the answer."""

        def stream(found: NodeProcess) -> tuple[str, dict[str, str]]:
            body = {
                "model": "demo",
                "stream": True,
                "temperature": 0,
                "max_tokens": 4 * last,
                "messages": [{"role": "user", "content": f"count from 1 to {last}"}],
            }
            request = urllib.request.Request(
                f"{found.base_url}/v1/chat/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json", "x-meshnode-radius": radius},
            )
            text = ""
            with urllib.request.urlopen(request, timeout=60) as answer:
                headers = {name.lower(): value for name, value in answer.headers.items()}
                for line in answer:
                    if line.startswith(b"data: {"):
                        choices = json.loads(line[6:])["choices"]
                        text += (choices[0]["delta"].get("content") or "") if choices else ""
            return text, headers

        return self.see(stream)


def counted(last: int) -> str:
    """What the demo says when it counts."""
    return ", ".join(str(number) for number in range(1, last + 1))


@pytest.fixture(scope="module")
def lab() -> Iterator[NatLab]:
    with NatLab(SITES) as built:
        yield built


@pytest.fixture(scope="module")
def relays(lab: NatLab) -> Iterator[tuple[list[str], ExitStack]]:
    """Two relays, and what ends them."""
    with ExitStack() as running:
        urls = []
        for site in ("one", "two"):
            with lab.inside(site):
                running.enter_context(relay("0.0.0.0", RELAY_PORT))
            urls.append(f"ws://{lab.address(site)}:{RELAY_PORT}")
        yield urls, running


@pytest.fixture(scope="module")
def machines(
    lab: NatLab, relays: tuple[list[str], ExitStack], engine_bin: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Machine]]:
    assert engine_bin.exists()
    folder = tmp_path_factory.mktemp("swarm")
    sites = {"A": "one", "R": "two", "B": "b", "C": "c"}
    made = {name: Machine(lab, site, folder / name, relays[0]) for name, site in sites.items()}
    try:
        yield made
    finally:
        for machine in made.values():
            machine.kill()


# The tests of this file are one story, in this order.


def test_a_publishes_and_r_joins_by_the_name(machines: dict[str, Machine]) -> None:
    machines["A"].start("--model", "demo", "--mesh-name", "garden", "--name", "A")
    machines["R"].start("--mesh-name", "garden", "--name", "R")
    eventually(lambda: machines["R"].others() == {"A"}, within_s=30)
    assert machines["A"].swarm()["mesh"]["name"] == "garden" and machines["A"].swarm()["publishing"]


def test_b_behind_a_symmetric_nat_joins_by_itself(machines: dict[str, Machine]) -> None:
    machines["B"].start("--auto", "--publish", "--model", "demo", "--name", "B")
    eventually(lambda: machines["B"].others() >= {"A", "R"}, within_s=30)
    assert machines["B"].swarm()["mesh"]["name"] == "garden"
    eventually(lambda: "B" in machines["A"].others(), within_s=20)


def test_c_finds_the_mesh_and_asks_within_it(machines: dict[str, Machine]) -> None:
    machines["C"].start("--client", "--auto", "--name", "C", "--verify", "spot")
    eventually(lambda: machines["C"].others() >= {"A", "B"}, within_s=30)
    text, headers = machines["C"].ask(20)
    assert text.rstrip(".") == counted(20) and headers["x-meshnode-radius"] == "public"


def test_what_went_to_strangers_is_written_down_and_looked_at(machines: dict[str, Machine]) -> None:
    def log_of(name: str) -> list[dict[str, Any]]:
        found = machines[name].see(lambda node: node.command("audit", "show", "--json"))
        records: list[dict[str, Any]] = json.loads(found.stdout)["records"]
        return records

    # A second node with the same weights scored the answer again, and agrees.
    checked = eventually(lambda: [each for each in log_of("C") if each["kind"] == "checked"], within_s=20)
    (asked,) = [each for each in log_of("C") if each["kind"] == "asked"]
    assert checked[0]["node"] == asked["node"] and checked[0]["verdict"] != "bad"
    by = "A" if asked["node"] == machines["A"].see(lambda node: node.status())["node"]["id"] else "B"
    (served,) = [each for each in log_of(by) if each.get("request") == asked["request"]]
    assert served["output_sha256"] == asked["output_sha256"] and served["tokens_out"] == asked["tokens_out"] > 0
    assert "count" not in json.dumps([log_of("C"), log_of(by)])
    assert machines["C"].see(lambda node: node.command("audit", "verify")).returncode == 0


def test_without_leave_no_prompt_goes_to_strangers(machines: dict[str, Machine]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        machines["C"].ask(5, radius="trusted")
    assert refused.value.code == 403 and b"out" in refused.value.read()


def test_a_dies_and_c_is_answered_by_b_over_a_path_that_becomes_direct(machines: dict[str, Machine]) -> None:
    machines["A"].kill()
    eventually(lambda: machines["C"].others() == {"B", "R"}, within_s=30)
    text, headers = machines["C"].ask(100)
    assert text.rstrip(".") == counted(100) and headers["x-meshnode-radius"] == "public"
    assert machines["C"].path_to("B") in ("relayed", "direct")
    # A symmetric NAT and a cone: it takes some guessing, while the link is in use.
    eventually(lambda: machines["C"].path_to("B") == "direct", within_s=60)
    text, _ = machines["C"].ask(50)
    assert text.rstrip(".") == counted(50)


def test_the_mesh_stays_listed(machines: dict[str, Machine], lab: NatLab) -> None:
    def listed() -> bool:
        found = machines["R"].see(lambda node: node.command("discover", "--json", timeout_s=30))
        meshes = json.loads(found.stdout)["meshes"] if found.returncode == 0 else []
        return any(mesh["name"] == "garden" for mesh in meshes)

    eventually(listed, within_s=90)


def test_with_every_relay_down_a_node_comes_back_by_its_memory(
    machines: dict[str, Machine], relays: tuple[list[str], ExitStack]
) -> None:
    relays[1].close()
    c = machines["C"]
    c.kill()
    begun = time.monotonic()
    c.start("--client", "--auto", "--name", "C")
    eventually(lambda: c.others() >= {"B", "R"}, within_s=30)
    assert time.monotonic() - begun < 30
    text, _ = c.ask(20)
    assert text.rstrip(".") == counted(20)
