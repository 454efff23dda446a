"""A whole mesh in the NAT lab: relays on open sites, a member behind each type of router, clients that come to them.

    with NatMesh(folder) as mesh:                     # two relays, one member a type; they know each other
        with mesh.visited_by("symmetric") as (client,):     # a new machine behind a router of its own
            client.ask("call", node=mesh.members["full"].id, limit_s=10)

A client is linked with the relays only and dials a member when it wants something of it, so that every call is a first
contact: no router has seen the two before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.nat_lab import TYPES, NatLab

ROOT = Path(__file__).parents[2]
RELAYS = ("relay1", "relay2")
PATIENCE_S = 60.0
KINDS = {"open": "none", "symmetric": "symmetric"}
"""What nodes should find out about the router of each type; of all others: cone."""


class NatNode:
    """A process of tests/lab/nat_node.py on a site. `ask` waits for the answer, `begin` does not."""

    def __init__(self, lab: NatLab, site: str, folder: Path, role: str, *flags: str) -> None:
        self.site = site
        command = [sys.executable, "-m", "tests.lab.nat_node", str(folder / site), role, *flags]
        with lab.inside(site):
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._number = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.id = ""

    def begin(self, do: str, **given: Any) -> Future[dict[str, Any]]:
        """Ask for something."""
        assert self._process.stdin is not None
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            self._number += 1
            self._waiting[self._number] = future
            self._process.stdin.write(json.dumps({"id": self._number, "do": do, **given}) + "\n")
            self._process.stdin.flush()
        return future

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """Ask for something and wait. Raises RuntimeError when it fails there."""
        return answered(self.begin(do, **given))

    def leave(self) -> None:
        """It begins to say goodbye."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self) -> None:
        """It has said goodbye, or is killed."""
        assert self._process.stdout is not None
        self.leave()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            self._waiting.pop(answer.pop("id")).set_result(answer)
        for future in self._waiting.values():
            future.set_result({"error": "the node has ended; its own words stand above"})


def answered(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """The answer. Raises RuntimeError when it is an error."""
    answer = future.result(timeout=120)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


class NatMesh:
    """See the module. `spare` is how many clients of each type there may be; with `mapping` the routers of the members
    forward a port when they are asked to, and the members ask. Use it as a context manager.
    """

    def __init__(
        self,
        folder: Path,
        *,
        spare: int = 1,
        types: tuple[str, ...] = TYPES,
        fast_relays: bool = False,
        mapping: bool = False,
    ) -> None:
        self._folder = folder
        self._types = types
        self._fast = ("--fast-relay",) if fast_relays else ()
        self._free = {kind: [f"client-{kind}-{number}" for number in range(spare)] for kind in types}
        sites = dict.fromkeys(RELAYS, "open") | {f"member-{kind}": kind for kind in types}
        sites |= {site: kind for kind, names in self._free.items() for site in names}
        self.lab = NatLab(sites)
        self.relays: list[NatNode] = []
        self.members: dict[str, NatNode] = {}
        self._mapping = ("--map",) if mapping else ()
        self._routers = ExitStack()
        self._nodes: list[NatNode] = []
        self._invites: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.lab.__enter__()
        try:
            self._grow()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._dismiss(list(self._nodes))
        self._routers.close()
        self.lab.__exit__(None, None, None)

    @contextmanager
    def visited_by(self, *types: str) -> Iterator[list[NatNode]]:
        """New clients, one behind a router of each of these types, which leave after the block.

        They know what they are behind, and where everybody is.
        """
        before = list(self._nodes)
        try:
            yield self._clients(*types)
        finally:
            self._dismiss([node for node in self._nodes if node not in before])

    def _clients(self, *types: str) -> list[NatNode]:
        nodes = [self._node(self._free[kind].pop(), "client") for kind in types]
        self._bring_in(nodes, "client")
        for node in nodes:
            # Where nothing is known of an address a relay is asked, and who is reached so has not seen the node itself.
            until(partial(self._knows_all, node), f"the client {node.site}", node)
            for relay in self.relays:
                node.ask("link", node=relay.id)
        for node, kind in zip(nodes, types, strict=True):
            until(partial(self._is_settled, node, kind), f"the client behind {kind}", node)
        return nodes

    def _dismiss(self, nodes: Iterable[NatNode]) -> None:
        """They say goodbye, or are killed."""
        leaving = list(nodes)
        for node in leaving:
            node.leave()
        for node in leaving:
            node.end()
            self._nodes.remove(node)

    def _grow(self) -> None:
        self.relays = [self._node(site, "member", "--relay", *self._fast) for site in RELAYS]
        if self._mapping:
            self._folder.mkdir(parents=True, exist_ok=True)
            for kind in self._types:
                self._routers.enter_context(self.lab.mapping(f"member-{kind}", self._folder))
        self.members = {kind: self._node(f"member-{kind}", "member", *self._mapping) for kind in self._types}
        first, *others = [*self.relays, *self.members.values()]
        first.id = first.ask("start", found=True)["node"]
        self._invites = {role: first.ask("invite", role=role)["token"] for role in ("member", "client")}
        self._bring_in(others, "member")
        for kind, node in self.members.items():
            # Who can be dialled may never learn what it is behind: nobody that it dialled itself has told it.
            ready = partial(self._is_mapped, node) if self._mapping else partial(self._is_settled, node, kind)
            until(ready, f"the member behind {kind}", node)

    def _bring_in(self, nodes: list[NatNode], role: str) -> None:
        started = [(node, node.begin("start")) for node in nodes]
        for node, future in started:
            node.id = answered(future)["node"]
        for future in [node.begin("join", token=self._invites[role]) for node in nodes]:
            answered(future)

    def _is_settled(self, node: NatNode, kind: str) -> bool:
        """Whether it knows what it is behind, where everybody is, and has both relays."""
        facts = node.ask("facts")
        known = facts["members"]
        return (
            facts["nat"]["kind"] == KINDS.get(kind, "cone")
            and self._knows_all(node)
            and all(known[relay.id]["path"] == "direct" for relay in self.relays)
        )

    def _is_mapped(self, node: NatNode) -> bool:
        """Whether its router forwards a port, and the relays know."""
        mapped = node.ask("facts")["nat"]["mapped"]
        told = [relay.ask("facts")["members"].get(node.id) for relay in self.relays]
        return bool(mapped) and all(facts is not None and mapped[0] in facts["addresses"] for facts in told)

    def _knows_all(self, node: NatNode) -> bool:
        known = node.ask("facts")["members"]
        others = {each.id for each in (*self.relays, *self.members.values())} - {node.id}
        return all(other in known and known[other]["addresses"] for other in others)

    def _node(self, site: str, role: str, *flags: str) -> NatNode:
        node = NatNode(self.lab, site, self._folder, role, *flags)
        self._nodes.append(node)
        return node


def until(true: Callable[[], bool], what: str, node: NatNode) -> None:
    """Wait until it is so. Raises TimeoutError with what the node knows."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} is not ready: {json.dumps(node.ask('facts'), indent=1)}")
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Meeting:
    """First contact of a client behind a router of type `one` with a member behind `other`, in seconds from the call.

    `path` is that of the first answer; `direct_s` is None where it stayed relayed; `fault` says why there is no answer.
    `first`: they were not linked before, as a client is that has lost an access node and takes any other.
    """

    one: str
    other: str
    usable_s: float = 0.0
    path: str | None = None
    direct_s: float | None = None
    tries: int = 1
    fault: str = ""
    first: bool = True

    @property
    def kind(self) -> str:
        """cone: neither is symmetric; mixed: one of them; symmetric: both."""
        return ("cone", "mixed", "symmetric")[(self.one, self.other).count("symmetric")]


def meet(
    mesh: NatMesh, clients: Mapping[str, NatNode], *, call_s: float = 10.0, direct_s: float = 11.0
) -> list[Meeting]:
    """Each of the clients (by type) calls each member, one call at a time; those that guess ports go on beside."""
    pairs = [Meeting(one, other) for one in clients for other in mesh.members]
    pairs.sort(key=lambda pair: ("cone", "mixed", "symmetric").index(pair.kind))
    called: list[tuple[Meeting, Future[dict[str, Any]]]] = []
    for pair in pairs:
        client, node = clients[pair.one], mesh.members[pair.other].id
        answer = client.begin("call", node=node, limit_s=call_s).result(timeout=call_s + 60)
        fault = answer.get("error") or ("" if answer["whole"] else "the answer was not whole")
        first = not answer.get("linked_before")
        known = {name: answer[name] for name in ("usable_s", "path", "tries") if name in answer}
        pair = replace(pair, **known, fault=fault, first=first)
        looking = client.begin("until_direct", node=node, limit_s=0.0 if pair.kind == "symmetric" else direct_s)
        if pair.kind == "cone":
            looking.result(timeout=direct_s + 60)
        called.append((pair, looking))
    return [replace(pair, direct_s=looking.result(timeout=direct_s + 60)["direct_s"]) for pair, looking in called]
